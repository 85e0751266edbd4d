//! Allowances: how often a key may still be used.
//!
//! The generic cell rate algorithm on one atomic number per key, the time at which the allowance would be whole
//! again. It is exact under parallel use, because that number moves by compare-and-swap. A library would need a
//! clock read of its own and does not tell when the allowance is whole again, so these few lines are ours.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tollkey_core::{AccountId, KeyId, RateLimit, heap::allocation};

use crate::{
    cache::{FIRST, LAST},
    clock::nanos,
    share::Shares,
    verdict::RateStatus,
};

/// What is left of one key's rate limit.
#[derive(Debug)]
pub(crate) struct Allowance {
    limit: RateLimit,
    /// Nanoseconds until one use comes back.
    each: u64,
    /// When the whole limit is there again; in the past when it is.
    whole_at: AtomicU64,
}

impl Allowance {
    fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            each: nanos(limit.window()) / u64::from(limit.limit().get()),
            whole_at: AtomicU64::new(0),
        }
    }

    /// Takes one use at `now`, or else says in how many seconds there will be one.
    pub(crate) fn take(&self, now: u64) -> (RateStatus, Result<(), u32>) {
        let whole = self.each * u64::from(self.limit.limit().get());
        let mut seen = self.whole_at.load(Ordering::Acquire);
        loop {
            let next = seen.max(now) + self.each;
            let used = next - now;
            if used > whole {
                return (self.status(0, seen - now), Err(seconds(used - whole)));
            }
            match self.whole_at.compare_exchange_weak(
                seen,
                next,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return (self.status((whole - used) / self.each, used), Ok(())),
                Err(other) => seen = other,
            }
        }
    }

    /// In how many seconds there will be a use; `None` when there is one at `now`.
    fn wait(&self, now: u64) -> Option<u32> {
        let whole = self.each * u64::from(self.limit.limit().get());
        let used = self.whole_at.load(Ordering::Acquire).max(now) + self.each - now;
        (used > whole).then(|| seconds(used - whole))
    }

    /// Gives back one use that was taken, but for what time has given back of it already: whoever holds on to one until
    /// it has come back by itself has no second one of it.
    pub(crate) fn give_back(&self, taken_at: u64, now: u64) {
        let left = self.each.saturating_sub(now.saturating_sub(taken_at));
        let _ = self
            .whole_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |at| {
                Some(at.saturating_sub(left))
            });
    }

    fn status(&self, remaining: u64, until_whole: u64) -> RateStatus {
        RateStatus {
            limit: self.limit.limit().get(),
            window_seconds: self.limit.window_seconds().get(),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset_seconds: seconds(until_whole),
        }
    }

    /// In how many nanoseconds the whole limit will be available again: 0 when it is.
    fn until_whole(&self, now: u64) -> u64 {
        self.whole_at.load(Ordering::Acquire).saturating_sub(now)
    }
}

/// Takes one use from every rate limit on the path from the root to the key, in this order: from all of them or from
/// none. Reports the limit with the least left and, when one is empty, in how many seconds none is. `None` without limits.
pub(crate) fn take_all(path: &[Arc<Allowance>], now: u64) -> Option<(RateStatus, Result<(), u32>)> {
    let mut least: Option<RateStatus> = None;
    for (taken, allowance) in path.iter().enumerate() {
        let (status, outcome) = allowance.take(now);
        if let Err(seconds) = outcome {
            give_back_all(&path[..taken], now, now);
            let later = path[taken + 1..]
                .iter()
                .filter_map(|allowance| allowance.wait(now));
            return Some((status, Err(later.fold(seconds, u32::max))));
        }
        // Of two with as little left, the one that takes longer to be whole again.
        let left =
            |status: &RateStatus| (status.remaining, std::cmp::Reverse(status.reset_seconds));
        if least
            .as_ref()
            .is_none_or(|least| left(&status) < left(least))
        {
            least = Some(status);
        }
    }
    least.map(|status| (status, Ok(())))
}

/// Gives back what [`take_all`] took.
pub(crate) fn give_back_all(path: &[Arc<Allowance>], taken_at: u64, now: u64) {
    path.iter()
        .for_each(|allowance| allowance.give_back(taken_at, now));
}

/// Whole seconds, rounded up.
fn seconds(nanos: u64) -> u32 {
    u32::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

/// The rate limits of all keys that have one, as far as they are used up. They outlive the cached keys, so that a change to
/// a key, or its eviction, does not make its rate limit available again. A change of the limit does.
///
/// They are bounded in bytes, and accounts have fair shares of all bytes ([`Shares`]). Where there is no room, one goes
/// first that is whole, whatever its account: a new one is as good. If there is none, an account that holds more than its
/// fair share gives one up, so that the keys of one account cannot reset the rate limits of another. An account that uses
/// more limited keys than its share has room for may lose its own.
#[derive(Debug)]
pub(crate) struct Allowances {
    all: BTreeMap<Place, Arc<Allowance>>,
    /// The bytes of each account, and up to which key its allowances have been looked at.
    shares: Shares<Option<KeyId>>,
    /// Up to where the allowances of all accounts have been looked at.
    looked_at: Option<Place>,
}

/// An account and a key of it: all keys of a tree are of one account, so a limit of a parent key has one place.
type Place = (AccountId, KeyId);

impl Allowances {
    /// How many bytes an allowance takes: itself with two reference counts, and its place in a tree whose nodes are half
    /// empty at worst.
    pub(crate) const EACH: usize = allocation(16 + size_of::<Allowance>())
        + 2 * (size_of::<Place>() + size_of::<Arc<Allowance>>());

    /// How many allowances are looked at to find one that may go, so that no single miss pays for all of them.
    const LOOK_AT: usize = 32;

    /// At most so many bytes of allowances.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            all: BTreeMap::new(),
            shares: Shares::new(max),
            looked_at: None,
        }
    }

    /// How many bytes they take, as estimated.
    pub(crate) fn bytes(&self) -> usize {
        self.shares.held()
    }

    /// The allowance of that key. When its limit is another one, a `fresh` look at the key begins a new allowance;
    /// one that is known to be old does not.
    pub(crate) fn of(
        &mut self,
        account: &AccountId,
        key: KeyId,
        limit: RateLimit,
        fresh: bool,
        now: u64,
    ) -> Arc<Allowance> {
        let place = (account.clone(), key);
        if let Some(allowance) = self.all.get_mut(&place) {
            if fresh && allowance.limit != limit {
                *allowance = Arc::new(Allowance::new(limit));
            }
            return Arc::clone(allowance);
        }
        while !self.shares.fits(account, Self::EACH) {
            let Some(place) = self.next_to_go(account, now) else {
                break;
            };
            self.all.remove(&place);
            self.shares.remove(&place.0, Self::EACH);
        }
        let allowance = Arc::new(Allowance::new(limit));
        self.shares.add(account, Self::EACH);
        // One ID for all allowances of the account.
        let account = self.shares.id(account).unwrap_or(place.0);
        self.all.insert((account, key), Arc::clone(&allowance));
        allowance
    }

    /// The allowance that makes room for one more of an account; `None` when there is none at all.
    fn next_to_go(&mut self, account: &AccountId, now: u64) -> Option<Place> {
        let after = self
            .looked_at
            .take()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let (looked_at, (lost, place)) =
            self.look(after, (Bound::Unbounded, Bound::Unbounded), now)?;
        self.looked_at = Some(looked_at);
        if lost == 0 {
            return Some(place);
        }
        let Some(payer) = self.shares.payer(account, Self::EACH) else {
            return Some(place);
        };
        let all = (
            Bound::Included((payer.clone(), FIRST)),
            Bound::Included((payer.clone(), LAST)),
        );
        let looked_at = self.shares.get_mut(&payer).and_then(|looked_at| *looked_at);
        let after = looked_at.map_or(all.0.clone(), |key| Bound::Excluded((payer.clone(), key)));
        let ((_, key), (_, place)) = self.look(after, all, now)?;
        if let Some(looked_at) = self.shares.get_mut(&payer) {
            *looked_at = Some(key);
        }
        Some(place)
    }

    /// Looks at the next few of `all`, in turn. Returns the last of them, and the one of which least is lost when it goes,
    /// with what is lost: nothing of one that is whole.
    fn look(
        &self,
        after: Bound<Place>,
        all: (Bound<Place>, Bound<Place>),
        now: u64,
    ) -> Option<(Place, (u64, Place))> {
        let rest = self.all.range((after, all.1.clone()));
        let (mut last, mut least) = (None, None);
        for (place, allowance) in rest.chain(self.all.range(all)).take(Self::LOOK_AT) {
            let lost = lost(allowance, now);
            last = Some(place);
            if least.is_none_or(|(least, _)| lost < least) {
                least = Some((lost, place));
            }
            if lost == 0 {
                break;
            }
        }
        let (lost, place) = least?;
        Some((last?.clone(), (lost, place.clone())))
    }
}

/// For how long a key could be used more often than its limit allows if this allowance went, in nanoseconds: a new one is
/// whole from the beginning. One that a cached key still takes from could be used up after it went.
fn lost(allowance: &Arc<Allowance>, now: u64) -> u64 {
    if Arc::strong_count(allowance) > 1 {
        nanos(allowance.limit.window())
    } else {
        allowance.until_whole(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn allowance(limit: i64, window: i64) -> Allowance {
        Allowance::new(RateLimit::new(limit, window).unwrap())
    }

    #[test]
    fn the_whole_limit_may_be_used_at_once_and_comes_back_evenly() {
        let allowance = allowance(3, 60);
        let now = 1000 * SECOND;
        for (remaining, reset) in [(2, 20), (1, 40), (0, 60)] {
            let (status, taken) = allowance.take(now);
            assert_eq!(
                (status.remaining, status.reset_seconds, taken),
                (remaining, reset, Ok(()))
            );
        }
        let (status, taken) = allowance.take(now);
        assert_eq!(
            (status.remaining, status.reset_seconds, taken),
            (0, 60, Err(20))
        );
        let (status, taken) = allowance.take(now + 20 * SECOND - 1);
        assert_eq!(
            (status.remaining, status.reset_seconds, taken),
            (0, 41, Err(1))
        );
        let (status, taken) = allowance.take(now + 20 * SECOND);
        assert_eq!(
            (status.remaining, status.reset_seconds, taken),
            (0, 60, Ok(()))
        );
        assert_eq!(allowance.until_whole(now + 80 * SECOND - 1), 1);
        assert_eq!(allowance.until_whole(now + 80 * SECOND), 0);
    }

    #[test]
    fn a_use_that_is_given_back_was_never_taken() {
        let (one, other) = (allowance(3, 60), allowance(3, 60));
        let now = 1000 * SECOND;
        one.take(now).1.unwrap();
        other.take(now).1.unwrap();
        one.take(now + SECOND).1.unwrap();
        one.give_back(now + SECOND, now + SECOND);
        assert_eq!(one.take(now + 2 * SECOND), other.take(now + 2 * SECOND));
    }

    #[test]
    fn a_use_that_is_given_back_late_makes_no_more_than_there_are() {
        let allowance = allowance(1, 60);
        let now = 1000 * SECOND;
        allowance.take(now).1.unwrap();
        // A minute on the first one has come back by itself, and is used.
        allowance.take(now + 60 * SECOND).1.unwrap();
        allowance.give_back(now, now + 61 * SECOND);
        assert_eq!(allowance.take(now + 61 * SECOND).1, Err(59));
    }

    #[test]
    fn a_window_that_does_not_divide_evenly_never_reports_more_than_itself() {
        for (limit, window) in [
            (7, 60),
            (3, 1),
            (1_000_000, 1),
            (1_000_000, 86_400),
            (1, 86_400),
            (999_983, 86_399),
        ] {
            let allowance = allowance(limit, window);
            for _ in 0..limit.min(1000) {
                let (status, taken) = allowance.take(5);
                assert_eq!(taken, Ok(()));
                assert!(
                    i64::from(status.reset_seconds) <= window
                        && i64::from(status.remaining) < limit
                );
            }
        }
    }

    #[test]
    fn a_clock_read_a_little_late_by_another_thread_does_no_harm() {
        let allowance = allowance(1, 1);
        assert_eq!(allowance.take(10 * SECOND).1, Ok(()));
        assert_eq!(allowance.take(10 * SECOND - 5).1, Err(2));
    }

    #[test]
    fn a_use_takes_from_every_limit_of_the_path_or_from_none() {
        let now = 1000 * SECOND;
        let (root, parent, key) = (allowance(4, 60), allowance(3, 30), allowance(2, 60));
        let path = [root, parent, key].map(Arc::new);
        let (status, taken) = take_all(&path, now).unwrap();
        assert_eq!((status.limit, status.remaining, taken), (2, 1, Ok(())));
        assert_eq!(take_all(&path, now).unwrap().0.remaining, 0);
        // The key's own limit is empty: the root and the parent keep what they have.
        let (status, taken) = take_all(&path, now).unwrap();
        assert_eq!((status.limit, status.remaining, taken), (2, 0, Err(30)));
        assert_eq!(take_all(&path[..2], now).unwrap().0.remaining, 0);
        // Two limits are empty: the wait is that of the later one.
        let (status, taken) = take_all(&path, now).unwrap();
        assert_eq!((status.limit, taken), (3, Err(30)));
        assert_eq!(path[0].take(now).0.remaining, 0);
        assert_eq!(take_all(&[], now), None);
    }

    #[test]
    fn the_limit_with_the_least_left_is_reported() {
        let path = [allowance(3, 60), allowance(3, 600), allowance(9, 60)].map(Arc::new);
        let (status, _) = take_all(&path, 0).unwrap();
        assert_eq!(
            (status.remaining, status.window_seconds),
            (2, 600),
            "of two with 2 left, the slower one"
        );
    }

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    fn id(n: u32) -> KeyId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        KeyId::from_bytes(bytes)
    }

    /// Allowances of one use in so many seconds each, with room for so many of one account.
    struct World {
        all: Allowances,
        max: usize,
    }

    impl World {
        fn new(room: usize) -> Self {
            let mut shares = Shares::<()>::new(usize::MAX);
            shares.add(&account("small"), Allowances::EACH);
            let max = shares.held() + (room - 1) * Allowances::EACH;
            Self {
                all: Allowances::new(max),
                max,
            }
        }

        /// Looks a key up, and uses it when it is not used up. Returns whether it was.
        fn take(&mut self, name: &str, n: u32, window: i64, now: u64) -> bool {
            let limit = RateLimit::new(1, window).unwrap();
            let taken = self
                .all
                .of(&account(name), id(n), limit, true, now)
                .take(now)
                .1
                .is_ok();
            assert!(
                self.all.bytes() <= self.max && self.all.all.contains_key(&(account(name), id(n)))
            );
            taken
        }

        fn has(&self, name: &str, n: u32) -> bool {
            self.all.all.contains_key(&(account(name), id(n)))
        }

        fn len(&self, name: &str) -> usize {
            self.all
                .all
                .keys()
                .filter(|(of, _)| *of == account(name))
                .count()
        }
    }

    #[test]
    fn allowance_that_is_whole_goes_first() {
        let mut world = World::new(100);
        for n in 0..100 {
            let window = if n == 70 { 1 } else { 86_400 };
            assert!(world.take("small", n, window, 0));
        }
        let later = 2 * SECOND;
        // 32 are looked at for each new one.
        for n in 0..3 {
            assert!(world.take("small", 1000 + n, 86_400, later));
        }
        assert!(!world.has("small", 70));
        assert_eq!(world.len("small"), 100);
    }

    #[test]
    fn allowance_that_is_whole_goes_whatever_its_account() {
        let mut world = World::new(20);
        assert!(world.take("small", 0, 1, 0));
        (0..15).for_each(|n| assert!(world.take("flood", n, 86_400, 0)));
        let mut n = 100;
        while world.has("small", 0) {
            assert!(n < 200);
            world.take("flood", n, 86_400, 2 * SECOND);
            n += 1;
        }
        // The account that holds the most has lost none.
        assert!((0..15).chain(100..n).all(|n| world.has("flood", n)));
    }

    #[test]
    fn allowance_in_use_by_a_cached_key_is_not_whole() {
        let mut world = World::new(20);
        let limit = RateLimit::new(1, 86_400).unwrap();
        let held: Vec<_> = (0..10)
            .map(|n| world.all.of(&account("small"), id(n), limit, true, 0))
            .collect();
        for n in 10..1000 {
            world.take("small", n, 1, u64::from(n) * 2 * SECOND);
        }
        assert!((0..10).all(|n| world.has("small", n)));
        drop(held);
        for n in 1000..1100 {
            world.take("small", n, 86_400, 10_000 * SECOND);
        }
        assert!((0..10).all(|n| !world.has("small", n)));
    }

    #[test]
    fn flood_of_one_account_does_not_reset_limits_of_another() {
        let mut world = World::new(2000);
        for n in 0..500 {
            assert!(world.take("small", n, 86_400, 0));
        }
        for n in 0..50_000 {
            world.take("flood", n, 86_400, 1);
        }
        assert!((0..500).all(|n| !world.take("small", n, 86_400, 2)));
        assert!(world.len("flood") > 1490, "what the other leaves is used");
        // Nor does one that was there first leave no room for others.
        for n in 0..700 {
            world.take("late", n, 86_400, 3);
        }
        assert!((0..700).all(|n| !world.take("late", n, 86_400, 4)));
        assert!((0..500).all(|n| !world.take("small", n, 86_400, 4)));
    }

    #[test]
    fn account_over_its_share_loses_those_that_return_soonest() {
        let mut world = World::new(64);
        (0..32).for_each(|n| assert!(world.take("small", n, 86_400, 0)));
        (32..64).for_each(|n| assert!(world.take("small", n, 3600, 0)));
        (64..70).for_each(|n| assert!(world.take("small", n, 86_400, 1)));
        // Of 32 looked at in turn: those of an hour are half of all.
        let hours = (32..64).filter(|n| world.has("small", *n)).count();
        let days = (0..32).filter(|n| world.has("small", *n)).count();
        assert!(
            hours < 32 && days + hours == 58 && days >= 28,
            "{days} and {hours}"
        );
    }

    #[test]
    fn many_accounts_within_their_shares_replace_each_other() {
        let mut world = World::new(1000);
        for n in 0..5000 {
            assert!(world.take(&format!("account-{n}"), n, 86_400, u64::from(n)));
        }
        let kept = world.all.all.len();
        assert!((100..1000).contains(&kept), "{kept}");
    }

    #[test]
    fn no_room_at_all_still_gives_an_allowance() {
        let mut all = Allowances::new(0);
        let limit = RateLimit::new(1, 60).unwrap();
        for n in 0..10 {
            assert_eq!(
                all.of(&account("a"), id(n), limit, true, 0).take(0).1,
                Ok(())
            );
        }
        assert_eq!(all.all.len(), 1, "the one in use");
    }

    #[test]
    fn only_a_fresh_look_at_a_changed_limit_begins_anew() {
        let (small, large) = (
            RateLimit::new(1, 60).unwrap(),
            RateLimit::new(2, 60).unwrap(),
        );
        let mut all = Allowances::new(10_000);
        let mut of = |limit, fresh| all.of(&account("a"), id(1), limit, fresh, 0);
        let first = of(small, true);
        assert!(Arc::ptr_eq(&first, &of(small, true)));
        assert!(Arc::ptr_eq(&first, &of(large, false)));
        let second = of(large, true);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &of(large, true)));
    }
}
