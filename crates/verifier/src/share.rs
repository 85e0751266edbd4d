//! Fair shares of a bounded number of bytes.
//!
//! [`Shares`] counts the bytes that each account holds. While bytes are free, an account may hold any number
//! of them. When an account needs more bytes than are free, the account with the most bytes gives some up. As
//! a result, accounts that need few bytes keep all of theirs, and the others share the rest equally.

use std::collections::{BTreeSet, HashMap};

use tollkey_core::{AccountId, KeyId, heap::allocation};

/// The smallest and the largest key ID.
pub(crate) const FIRST: KeyId = KeyId::from_bytes([0; 16]);
pub(crate) const LAST: KeyId = KeyId::from_bytes([u8::MAX; 16]);

/// An account with at most 1/`PARTS` of all bytes is within its fair share, even if there are more accounts
/// than `PARTS`. Otherwise, with many accounts, the second entry of one would be evicted for the first entry
/// of another.
const PARTS: usize = 16;

/// The bytes of an account without entries: its ID, and its slots in a map and in a tree, which are half
/// empty on average.
const ACCOUNT: usize =
    2 * (size_of::<AccountId>() + size_of::<usize>()) + 2 * (size_of::<AccountId>() + 48);

/// The bytes that accounts hold, with a value for each account.
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
    value: T,
}

impl<T: Default> Shares<T> {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            held: 0,
            accounts: HashMap::new(),
            by_bytes: BTreeSet::new(),
        }
    }

    /// Returns the maximum bytes of one entry.
    pub(crate) fn largest(&self) -> usize {
        self.max / PARTS
    }

    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Returns a clone of the stored account ID, so that all entries of the account share its memory.
    pub(crate) fn id(&self, account: &AccountId) -> Option<AccountId> {
        self.accounts
            .get_key_value(account)
            .map(|(id, _)| id.clone())
    }

    pub(crate) fn get_mut(&mut self, account: &AccountId) -> Option<&mut T> {
        self.accounts.get_mut(account).map(|share| &mut share.value)
    }

    /// Returns whether `bytes` more of an account fit.
    pub(crate) fn fits(&self, account: &AccountId, bytes: usize) -> bool {
        let own = if self.accounts.contains_key(account) {
            0
        } else {
            own_bytes(account)
        };
        self.held.saturating_add(bytes).saturating_add(own) <= self.max
    }

    /// Returns the account that has to give up bytes so that `account` gets `bytes` more: the account that
    /// would then hold the most, which can be `account` itself. `None` if no account exceeds its fair share:
    /// then any account may give up bytes.
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

    pub(crate) fn heaviest(&self) -> Option<(&AccountId, usize)> {
        self.by_bytes
            .last()
            .map(|(bytes, account)| (account, *bytes))
    }

    /// Adds bytes to an account. Returns its value.
    pub(crate) fn add(&mut self, account: &AccountId, bytes: usize) -> &mut T {
        let share = self
            .accounts
            .entry(account.clone())
            .or_insert_with(|| Share {
                bytes: 0,
                value: T::default(),
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
        &mut share.value
    }

    /// Subtracts the bytes of removed entries from an account, and removes the account when it has no entries.
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

    /// Removes all accounts.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.max);
    }
}

/// The bytes that an account takes in addition to its entries.
fn own_bytes(account: &AccountId) -> usize {
    ACCOUNT + allocation(2 * size_of::<usize>() + account.as_str().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    /// Adds bytes to an account as the cache does: the payer, or the account itself, gives up ten bytes until they fit.
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
            "within its share: any entry may be evicted"
        );
    }

    #[test]
    fn small_account_keeps_its_bytes_during_a_flood() {
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
        // A later account gets bytes that the flood held first.
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
    fn account_without_bytes_is_no_payer() {
        let mut shares = Shares::<()>::new(100_000);
        assert_eq!(shares.payer(&account("a"), 10), None);
        shares.add(&account("a"), 10);
        assert_eq!(
            shares.payer(&account("b"), 5000),
            None,
            "no account holds more than its fair share"
        );
        shares.add(&account("c"), 2000);
        assert_eq!(shares.payer(&account("b"), 500), Some(account("c")));
        assert_eq!(shares.payer(&account("a"), 5000), Some(account("a")));
    }

    #[test]
    fn removed_account_takes_no_bytes() {
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
