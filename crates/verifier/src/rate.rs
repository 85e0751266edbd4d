//! The rate limits of keys.
//!
//! They use the generic cell rate algorithm with one atomic number per key: the time at which the whole limit
//! is available again. The algorithm is exact under concurrent use, because that number changes by
//! compare-and-swap. A library would read the clock a second time, and would not report when the whole limit
//! is available.

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
    clock::nanos,
    share::{FIRST, LAST, Shares},
};

/// The state of a key's rate limit after a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateStatus {
    /// The number of uses per window.
    pub limit: u32,
    /// The window, in seconds.
    pub window_seconds: u32,
    /// The number of uses that remain now.
    pub remaining: u32,
    /// The whole seconds until the whole limit is available again, if the key is not used until then.
    pub reset_seconds: u32,
}

impl RateStatus {
    /// Returns the values of the fields `RateLimit-Policy` and `RateLimit`
    /// (draft-ietf-httpapi-ratelimit-headers-11). After a denial, `t` is the time until the next use is
    /// possible, as in `Retry-After`.
    #[must_use]
    pub fn fields(&self, retry_after_seconds: Option<u32>) -> [String; 2] {
        let reset = retry_after_seconds.unwrap_or(self.reset_seconds);
        [
            format!("\"key\";q={};w={}", self.limit, self.window_seconds),
            format!("\"key\";r={};t={reset}", self.remaining),
        ]
    }
}

/// The rate limit of a key and its current state.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: RateLimit,
    /// The nanoseconds until an exhausted limit has one use again.
    each: u64,
    /// When the whole limit is available again; in the past if it is available now.
    full_at: AtomicU64,
}

impl Limiter {
    fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            each: nanos(limit.window()) / u64::from(limit.limit().get()),
            full_at: AtomicU64::new(0),
        }
    }

    /// Takes one use at `now`. The error is the number of seconds until a use is available.
    pub(crate) fn take(&self, now: u64) -> (RateStatus, Result<(), u32>) {
        let whole = self.each * u64::from(self.limit.limit().get());
        let mut seen = self.full_at.load(Ordering::Acquire);
        loop {
            let next = seen.max(now) + self.each;
            let used = next - now;
            if used > whole {
                return (self.status(0, seen - now), Err(seconds(used - whole)));
            }
            match self.full_at.compare_exchange_weak(
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

    /// Returns the seconds until a use is available, or `None` if one is available at `now`.
    fn wait(&self, now: u64) -> Option<u32> {
        let whole = self.each * u64::from(self.limit.limit().get());
        let used = self.full_at.load(Ordering::Acquire).max(now) + self.each - now;
        (used > whole).then(|| seconds(used - whole))
    }

    /// Gives back the part of one use that has not become available again since `taken_at`. Otherwise, a long
    /// request would make a second use available.
    pub(crate) fn give_back(&self, taken_at: u64, now: u64) {
        let left = self.each.saturating_sub(now.saturating_sub(taken_at));
        let _ = self
            .full_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |at| {
                Some(at.saturating_sub(left))
            });
    }

    fn status(&self, remaining: u64, until_full: u64) -> RateStatus {
        RateStatus {
            limit: self.limit.limit().get(),
            window_seconds: self.limit.window_seconds().get(),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset_seconds: seconds(until_full),
        }
    }

    /// Returns the nanoseconds until the whole limit is available again; 0 if it is available now.
    fn until_full(&self, now: u64) -> u64 {
        self.full_at.load(Ordering::Acquire).saturating_sub(now)
    }
}

/// Takes one use from every rate limit on the path from the root to the key, or from none of them. Returns
/// the status of the limit with the fewest remaining uses. The error is the number of seconds until all
/// limits have a use. `None` if the path has no limits.
pub(crate) fn take_all(path: &[Arc<Limiter>], now: u64) -> Option<(RateStatus, Result<(), u32>)> {
    let mut least: Option<RateStatus> = None;
    for (taken, limiter) in path.iter().enumerate() {
        let (status, outcome) = limiter.take(now);
        if let Err(seconds) = outcome {
            give_back_all(&path[..taken], now, now);
            let later = path[taken + 1..]
                .iter()
                .filter_map(|limiter| limiter.wait(now));
            return Some((status, Err(later.fold(seconds, u32::max))));
        }
        // Of two limits with the same remaining uses, the one that takes longer to be fully available is reported.
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

/// Gives back the uses that [`take_all`] took.
pub(crate) fn give_back_all(path: &[Arc<Limiter>], taken_at: u64, now: u64) {
    path.iter()
        .for_each(|limiter| limiter.give_back(taken_at, now));
}

/// Whole seconds, rounded up.
fn seconds(nanos: u64) -> u32 {
    u32::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

/// The limiters of keys with a rate limit. They outlive the cached keys, so that a change to a key, or its
/// eviction, does not reset its rate limit. Only a change of the limit does.
///
/// Their bytes are bounded, with fair shares for accounts ([`Shares`]). Above the bound, a limiter that is
/// full (its whole limit is available) is dropped first, of any account, because a new one has the same
/// state. If none is found, an account that holds more than its fair share loses a limiter, so that the keys
/// of one account cannot reset the rate limits of another. An account whose limiters take more than its share
/// may lose its own.
#[derive(Debug)]
pub(crate) struct Limiters {
    all: BTreeMap<LimiterId, Arc<Limiter>>,
    /// The bytes of each account, and the last of its keys that was scanned.
    shares: Shares<Option<KeyId>>,
    /// The last limiter of all accounts that was scanned.
    scanned: Option<LimiterId>,
}

/// An account and a key. All keys of a tree belong to one account, so the limiter of a parent key has one
/// entry, which its descendants share.
type LimiterId = (AccountId, KeyId);

impl Limiters {
    /// The bytes of a limiter: the limiter with two reference counts, and its slot in a tree whose nodes are
    /// half empty at worst.
    pub(crate) const EACH: usize = allocation(16 + size_of::<Limiter>())
        + 2 * (size_of::<LimiterId>() + size_of::<Arc<Limiter>>());

    /// The maximum number of limiters that are scanned to find one to drop, so that the work of one cache
    /// miss is bounded.
    const SCANNED: usize = 32;

    pub(crate) fn new(max: usize) -> Self {
        Self {
            all: BTreeMap::new(),
            shares: Shares::new(max),
            scanned: None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shares.held()
    }

    /// Returns the limiter of a key. If the limit has changed, a `fresh` record of the key resets the
    /// limiter; an outdated record does not.
    pub(crate) fn get_or_insert(
        &mut self,
        account: &AccountId,
        key: KeyId,
        limit: RateLimit,
        fresh: bool,
        now: u64,
    ) -> Arc<Limiter> {
        let id = (account.clone(), key);
        if let Some(limiter) = self.all.get_mut(&id) {
            if fresh && limiter.limit != limit {
                *limiter = Arc::new(Limiter::new(limit));
            }
            return Arc::clone(limiter);
        }
        while !self.shares.fits(account, Self::EACH) {
            let Some(id) = self.next_to_drop(account, now) else {
                break;
            };
            self.all.remove(&id);
            self.shares.remove(&id.0, Self::EACH);
        }
        let limiter = Arc::new(Limiter::new(limit));
        self.shares.add(account, Self::EACH);
        // One ID, shared by all limiters of the account.
        let account = self.shares.id(account).unwrap_or(id.0);
        self.all.insert((account, key), Arc::clone(&limiter));
        limiter
    }

    /// Returns the limiter to drop so that an account gets one more, or `None` if there are no limiters.
    fn next_to_drop(&mut self, account: &AccountId, now: u64) -> Option<LimiterId> {
        let after = self
            .scanned
            .take()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let (scanned, (lost, id)) = self.scan(after, (Bound::Unbounded, Bound::Unbounded), now)?;
        self.scanned = Some(scanned);
        if lost == 0 {
            return Some(id);
        }
        let Some(payer) = self.shares.payer(account, Self::EACH) else {
            return Some(id);
        };
        let all = (
            Bound::Included((payer.clone(), FIRST)),
            Bound::Included((payer.clone(), LAST)),
        );
        let scanned = self.shares.get_mut(&payer).and_then(|scanned| *scanned);
        let after = scanned.map_or(all.0.clone(), |key| Bound::Excluded((payer.clone(), key)));
        let ((_, key), (_, id)) = self.scan(after, all, now)?;
        if let Some(scanned) = self.shares.get_mut(&payer) {
            *scanned = Some(key);
        }
        Some(id)
    }

    /// Scans the next limiters of the range `all` after `after`. Returns the last of them, and the one with
    /// the smallest [`lost`] time, with that time: 0 for a limiter that is full.
    fn scan(
        &self,
        after: Bound<LimiterId>,
        all: (Bound<LimiterId>, Bound<LimiterId>),
        now: u64,
    ) -> Option<(LimiterId, (u64, LimiterId))> {
        let rest = self.all.range((after, all.1.clone()));
        let (mut last, mut least) = (None, None);
        for (id, limiter) in rest.chain(self.all.range(all)).take(Self::SCANNED) {
            let lost = lost(limiter, now);
            last = Some(id);
            if least.is_none_or(|(least, _)| lost < least) {
                least = Some((lost, id));
            }
            if lost == 0 {
                break;
            }
        }
        let (lost, id) = least?;
        Some((last?.clone(), (lost, id.clone())))
    }
}

/// Returns for how many nanoseconds a key could exceed its limit if this limiter were dropped, because a new
/// one is full. For a limiter that a cached key uses, this is the whole window, because the key can still
/// exhaust the dropped limiter.
fn lost(limiter: &Arc<Limiter>, now: u64) -> u64 {
    if Arc::strong_count(limiter) > 1 {
        nanos(limiter.limit.window())
    } else {
        limiter.until_full(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limiter(limit: i64, window: i64) -> Limiter {
        Limiter::new(RateLimit::new(limit, window).unwrap())
    }

    #[test]
    fn whole_limit_is_available_immediately_and_returns_evenly() {
        let limiter = limiter(3, 60);
        let now = 1000 * SECOND;
        for (remaining, reset) in [(2, 20), (1, 40), (0, 60)] {
            let (status, taken) = limiter.take(now);
            assert_eq!(
                (status.remaining, status.reset_seconds, taken),
                (remaining, reset, Ok(()))
            );
        }
        let (status, taken) = limiter.take(now);
        assert_eq!(
            (status.remaining, status.reset_seconds, taken),
            (0, 60, Err(20))
        );
        let (status, taken) = limiter.take(now + 20 * SECOND - 1);
        assert_eq!(
            (status.remaining, status.reset_seconds, taken),
            (0, 41, Err(1))
        );
        let (status, taken) = limiter.take(now + 20 * SECOND);
        assert_eq!(
            (status.remaining, status.reset_seconds, taken),
            (0, 60, Ok(()))
        );
        assert_eq!(limiter.until_full(now + 80 * SECOND - 1), 1);
        assert_eq!(limiter.until_full(now + 80 * SECOND), 0);
    }

    #[test]
    fn use_that_is_given_back_is_available_again() {
        let (one, other) = (limiter(3, 60), limiter(3, 60));
        let now = 1000 * SECOND;
        one.take(now).1.unwrap();
        other.take(now).1.unwrap();
        one.take(now + SECOND).1.unwrap();
        one.give_back(now + SECOND, now + SECOND);
        assert_eq!(one.take(now + 2 * SECOND), other.take(now + 2 * SECOND));
    }

    #[test]
    fn use_that_is_given_back_late_does_not_exceed_the_limit() {
        let limiter = limiter(1, 60);
        let now = 1000 * SECOND;
        limiter.take(now).1.unwrap();
        // After a minute the first use is available again, and is taken again.
        limiter.take(now + 60 * SECOND).1.unwrap();
        limiter.give_back(now, now + 61 * SECOND);
        assert_eq!(limiter.take(now + 61 * SECOND).1, Err(59));
    }

    #[test]
    fn reset_of_an_uneven_window_is_at_most_the_window() {
        for (limit, window) in [
            (7, 60),
            (3, 1),
            (1_000_000, 1),
            (1_000_000, 86_400),
            (1, 86_400),
            (999_983, 86_399),
        ] {
            let limiter = limiter(limit, window);
            for _ in 0..limit.min(1000) {
                let (status, taken) = limiter.take(5);
                assert_eq!(taken, Ok(()));
                assert!(
                    i64::from(status.reset_seconds) <= window
                        && i64::from(status.remaining) < limit
                );
            }
        }
    }

    #[test]
    fn earlier_time_of_another_thread_does_not_exceed_the_limit() {
        let limiter = limiter(1, 1);
        assert_eq!(limiter.take(10 * SECOND).1, Ok(()));
        assert_eq!(limiter.take(10 * SECOND - 5).1, Err(2));
    }

    #[test]
    fn use_takes_from_every_limit_of_the_path_or_none() {
        let now = 1000 * SECOND;
        let (root, parent, key) = (limiter(4, 60), limiter(3, 30), limiter(2, 60));
        let path = [root, parent, key].map(Arc::new);
        let (status, taken) = take_all(&path, now).unwrap();
        assert_eq!((status.limit, status.remaining, taken), (2, 1, Ok(())));
        assert_eq!(take_all(&path, now).unwrap().0.remaining, 0);
        // The key's own limit is exhausted: no use is taken from the root and the parent.
        let (status, taken) = take_all(&path, now).unwrap();
        assert_eq!((status.limit, status.remaining, taken), (2, 0, Err(30)));
        assert_eq!(take_all(&path[..2], now).unwrap().0.remaining, 0);
        // Two limits are exhausted: the longer wait is returned.
        let (status, taken) = take_all(&path, now).unwrap();
        assert_eq!((status.limit, taken), (3, Err(30)));
        assert_eq!(path[0].take(now).0.remaining, 0);
        assert_eq!(take_all(&[], now), None);
    }

    #[test]
    fn limit_with_the_fewest_remaining_uses_is_reported() {
        let path = [limiter(3, 60), limiter(3, 600), limiter(9, 60)].map(Arc::new);
        let (status, _) = take_all(&path, 0).unwrap();
        assert_eq!(
            (status.remaining, status.window_seconds),
            (2, 600),
            "of two limits with 2 remaining uses, the one with the longer window"
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

    /// Limiters of one use per window.
    struct World {
        all: Limiters,
        max: usize,
    }

    impl World {
        /// Creates an empty set whose maximum bytes are those of `count` limiters of one account.
        fn new(count: usize) -> Self {
            let mut shares = Shares::<()>::new(usize::MAX);
            shares.add(&account("small"), Limiters::EACH);
            let max = shares.held() + (count - 1) * Limiters::EACH;
            Self {
                all: Limiters::new(max),
                max,
            }
        }

        /// Takes one use of a key. Returns whether one was available.
        fn take(&mut self, name: &str, n: u32, window: i64, now: u64) -> bool {
            let limit = RateLimit::new(1, window).unwrap();
            let taken = self
                .all
                .get_or_insert(&account(name), id(n), limit, true, now)
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
    fn full_limiter_is_dropped_first() {
        let mut world = World::new(100);
        for n in 0..100 {
            let window = if n == 70 { 1 } else { 86_400 };
            assert!(world.take("small", n, window, 0));
        }
        let later = 2 * SECOND;
        // 32 limiters are scanned for each new one.
        for n in 0..3 {
            assert!(world.take("small", 1000 + n, 86_400, later));
        }
        assert!(!world.has("small", 70));
        assert_eq!(world.len("small"), 100);
    }

    #[test]
    fn full_limiter_of_any_account_is_dropped_first() {
        let mut world = World::new(20);
        assert!(world.take("small", 0, 1, 0));
        (0..15).for_each(|n| assert!(world.take("flood", n, 86_400, 0)));
        let mut n = 100;
        while world.has("small", 0) {
            assert!(n < 200);
            world.take("flood", n, 86_400, 2 * SECOND);
            n += 1;
        }
        // The account with the most limiters has not lost any of them.
        assert!((0..15).chain(100..n).all(|n| world.has("flood", n)));
    }

    #[test]
    fn limiter_of_a_cached_key_is_not_dropped_first() {
        let mut world = World::new(20);
        let limit = RateLimit::new(1, 86_400).unwrap();
        let held: Vec<_> = (0..10)
            .map(|n| {
                world
                    .all
                    .get_or_insert(&account("small"), id(n), limit, true, 0)
            })
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
        assert!(
            world.len("flood") > 1490,
            "the account uses all bytes that the other does not need"
        );
        // A later account gets its share.
        for n in 0..700 {
            world.take("late", n, 86_400, 3);
        }
        assert!((0..700).all(|n| !world.take("late", n, 86_400, 4)));
        assert!((0..500).all(|n| !world.take("small", n, 86_400, 4)));
    }

    #[test]
    fn scanned_limiter_that_is_full_soonest_is_dropped() {
        let mut world = World::new(64);
        (0..32).for_each(|n| assert!(world.take("small", n, 86_400, 0)));
        (32..64).for_each(|n| assert!(world.take("small", n, 3600, 0)));
        (64..70).for_each(|n| assert!(world.take("small", n, 86_400, 1)));
        // One scan covers half of the limiters, so some scans find only limiters with a window of a day.
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
    fn limiter_is_created_even_above_the_bound() {
        let mut all = Limiters::new(0);
        let limit = RateLimit::new(1, 60).unwrap();
        for n in 0..10 {
            assert_eq!(
                all.get_or_insert(&account("a"), id(n), limit, true, 0)
                    .take(0)
                    .1,
                Ok(())
            );
        }
        assert_eq!(all.all.len(), 1, "only the newest limiter is stored");
    }

    #[test]
    fn only_a_fresh_record_with_another_limit_resets_a_limiter() {
        let (small, large) = (
            RateLimit::new(1, 60).unwrap(),
            RateLimit::new(2, 60).unwrap(),
        );
        let mut all = Limiters::new(10_000);
        let mut of = |limit, fresh| all.get_or_insert(&account("a"), id(1), limit, fresh, 0);
        let first = of(small, true);
        assert!(Arc::ptr_eq(&first, &of(small, true)));
        assert!(Arc::ptr_eq(&first, &of(large, false)));
        let second = of(large, true);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &of(large, true)));
    }
}
