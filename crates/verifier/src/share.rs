//! Fair shares of a bounded number of bytes.
//!
//! [`Shares`] counts the bytes that each account holds. While there is room an account may hold any number of them, up to
//! all. When there is none, the account with the most bytes gives some up, whichever account needs them: so the accounts
//! that need least keep what they have, and the others get equal parts of the rest.

use std::collections::{BTreeSet, HashMap};

use tollkey_core::{AccountId, KeyId, heap::allocation};

/// The least and the greatest ID of a key.
pub(crate) const FIRST: KeyId = KeyId::from_bytes([0; 16]);
pub(crate) const LAST: KeyId = KeyId::from_bytes([u8::MAX; 16]);

/// An account with no more than this part of all bytes is within its fair share, however many accounts there are:
/// otherwise, with many accounts, the second entry of an account would have to make room for the first of another.
const PARTS: usize = 16;

/// What an account itself takes: its ID, and its places in a map and in a tree, which are half empty on average.
const ACCOUNT: usize =
    2 * (size_of::<AccountId>() + size_of::<usize>()) + 2 * (size_of::<AccountId>() + 48);

/// The bytes that accounts hold, and something of each account.
#[derive(Debug)]
pub(crate) struct Shares<T> {
    max: usize,
    held: usize,
    accounts: HashMap<AccountId, Share<T>>,
    by_bytes: BTreeSet<(usize, AccountId)>,
}

#[derive(Debug)]
struct Share<T> {
    bytes: usize,
    of: T,
}

impl<T: Default> Shares<T> {
    /// Shares of `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            held: 0,
            accounts: HashMap::new(),
            by_bytes: BTreeSet::new(),
        }
    }

    /// The most bytes of one thing: an account that holds no more than that is always within its fair share.
    pub(crate) fn largest(&self) -> usize {
        self.max / PARTS
    }

    /// How many bytes all accounts hold.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The ID of an account that holds bytes, to be shared by all that is kept of the account.
    pub(crate) fn id(&self, account: &AccountId) -> Option<AccountId> {
        self.accounts
            .get_key_value(account)
            .map(|(id, _)| id.clone())
    }

    /// What is kept of an account that holds bytes.
    pub(crate) fn get_mut(&mut self, account: &AccountId) -> Option<&mut T> {
        self.accounts.get_mut(account).map(|share| &mut share.of)
    }

    /// Whether there is room for so many more bytes of an account.
    pub(crate) fn fits(&self, account: &AccountId, bytes: usize) -> bool {
        let own = if self.accounts.contains_key(account) {
            0
        } else {
            own_bytes(account)
        };
        self.held.saturating_add(bytes).saturating_add(own) <= self.max
    }

    /// The account that makes room for `bytes` more of `account`: the one that holds the most, which can be the same
    /// when it holds any. `None` when that is within its fair share too: then any account may make room.
    pub(crate) fn payer(&self, account: &AccountId, bytes: usize) -> Option<AccountId> {
        let own = self.accounts.get(account).map_or(0, |share| share.bytes);
        let accounts = self.accounts.len() + usize::from(own == 0);
        let (most, heaviest) = self.by_bytes.last()?;
        let pays_itself = own > 0 && own + bytes >= *most;
        let (most, id) = if pays_itself {
            (own + bytes, account)
        } else {
            (*most, heaviest)
        };
        (most > (self.held + bytes) / accounts.clamp(1, PARTS)).then(|| id.clone())
    }

    /// The account that holds the most bytes, and how many.
    pub(crate) fn heaviest(&self) -> Option<(&AccountId, usize)> {
        self.by_bytes
            .last()
            .map(|(bytes, account)| (account, *bytes))
    }

    /// Gives an account so many more bytes. Returns what is kept of it.
    pub(crate) fn add(&mut self, account: &AccountId, bytes: usize) -> &mut T {
        let share = self
            .accounts
            .entry(account.clone())
            .or_insert_with(|| Share {
                bytes: 0,
                of: T::default(),
            });
        let before = share.bytes;
        share.bytes += if before == 0 {
            bytes + own_bytes(account)
        } else {
            bytes
        };
        self.held += share.bytes - before;
        if before > 0 {
            self.by_bytes.remove(&(before, account.clone()));
        }
        self.by_bytes.insert((share.bytes, account.clone()));
        &mut share.of
    }

    /// Takes so many bytes from an account, which is gone when it holds no more.
    pub(crate) fn remove(&mut self, account: &AccountId, bytes: usize) {
        let Some(share) = self.accounts.get_mut(account) else {
            return;
        };
        self.by_bytes.remove(&(share.bytes, account.clone()));
        share.bytes = share.bytes.saturating_sub(bytes);
        if share.bytes > own_bytes(account) {
            self.held = self.held.saturating_sub(bytes);
            self.by_bytes.insert((share.bytes, account.clone()));
        } else {
            self.held = self.held.saturating_sub(bytes + share.bytes);
            self.accounts.remove(account);
        }
    }

    /// Takes all bytes from all accounts.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.max);
    }
}

/// What an account takes itself, whatever it holds.
fn own_bytes(account: &AccountId) -> usize {
    ACCOUNT + allocation(2 * size_of::<usize>() + account.as_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    /// Gives bytes as the cache does: as long as there is no room, the payer gives up ten bytes, where there is one.
    fn give(shares: &mut Shares<()>, name: &str, bytes: usize) {
        let id = account(name);
        while !shares.fits(&id, bytes) {
            let payer = shares.payer(&id, bytes).unwrap_or_else(|| id.clone());
            shares.remove(&payer, 10);
        }
        shares.add(&id, bytes);
    }

    fn bytes(shares: &Shares<()>, name: &str) -> usize {
        let id = account(name);
        shares
            .accounts
            .get(&id)
            .map_or(0, |share| share.bytes - own_bytes(&id))
    }

    #[test]
    fn one_account_alone_may_hold_everything() {
        let mut shares = Shares::new(100_000);
        while shares.fits(&account("a"), 10) {
            give(&mut shares, "a", 10);
        }
        assert!(shares.held() > 99_980 && bytes(&shares, "a") > 99_000);
        assert_eq!(
            shares.payer(&account("a"), 10),
            None,
            "within its share: any of its entries may go"
        );
    }

    #[test]
    fn account_that_needs_little_keeps_it_from_one_that_takes_all() {
        let mut shares = Shares::new(100_000);
        for _ in 0..100 {
            give(&mut shares, "small", 10);
            give(&mut shares, "other", 20);
        }
        for _ in 0..100_000 {
            give(&mut shares, "flood", 10);
        }
        assert_eq!(
            (bytes(&shares, "small"), bytes(&shares, "other")),
            (1000, 2000)
        );
        // And the other way round: what was given to the flood first is given up for those that come later.
        for _ in 0..3000 {
            give(&mut shares, "late", 10);
        }
        assert_eq!(
            (bytes(&shares, "small"), bytes(&shares, "late")),
            (1000, 30_000)
        );
        assert!(shares.held() <= 100_000);
        assert_eq!(shares.heaviest().unwrap().0, &account("flood"));
    }

    #[test]
    fn accounts_that_need_more_get_equal_parts() {
        let mut shares = Shares::new(100_000);
        for _ in 0..10_000 {
            give(&mut shares, "a", 10);
        }
        for _ in 0..10_000 {
            give(&mut shares, "b", 10);
        }
        assert!(bytes(&shares, "a").abs_diff(bytes(&shares, "b")) <= 20);
    }

    #[test]
    fn account_that_holds_nothing_makes_no_room() {
        let mut shares = Shares::<()>::new(100_000);
        assert_eq!(shares.payer(&account("a"), 10), None);
        shares.add(&account("a"), 10);
        assert_eq!(
            shares.payer(&account("b"), 5000),
            None,
            "nobody else holds more than a fair share either"
        );
        shares.add(&account("c"), 2000);
        assert_eq!(shares.payer(&account("b"), 500), Some(account("c")));
        assert_eq!(shares.payer(&account("a"), 5000), Some(account("a")));
    }

    #[test]
    fn account_without_bytes_takes_none_itself() {
        let mut shares = Shares::<()>::new(100_000);
        shares.add(&account("a"), 10);
        shares.add(&account("a"), 20);
        assert!(shares.held() > 30);
        shares.remove(&account("a"), 20);
        shares.remove(&account("a"), 10);
        assert_eq!(
            (shares.held(), shares.accounts.len(), shares.by_bytes.len()),
            (0, 0, 0)
        );
    }
}
