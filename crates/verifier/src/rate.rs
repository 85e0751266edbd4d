//! Allowances: how often a key may still be used.
//!
//! The generic cell rate algorithm on one atomic number per key, the time at which the allowance would be whole
//! again. It is exact under parallel use, because that number moves by compare-and-swap. A library would need a
//! clock read of its own and does not tell when the allowance is whole again, so these few lines are ours.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tollkey_core::{KeyId, RateLimit, heap::allocation};

use crate::{clock::nanos, verdict::RateStatus};

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
        Self { limit, each: nanos(limit.window()) / u64::from(limit.limit().get()), whole_at: AtomicU64::new(0) }
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
            match self.whole_at.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
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
        let _ = self.whole_at.fetch_update(Ordering::AcqRel, Ordering::Acquire, |at| Some(at.saturating_sub(left)));
    }

    fn status(&self, remaining: u64, until_whole: u64) -> RateStatus {
        RateStatus {
            limit: self.limit.limit().get(),
            window_seconds: self.limit.window_seconds().get(),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset_seconds: seconds(until_whole),
        }
    }

    fn is_whole(&self, now: u64) -> bool {
        self.whole_at.load(Ordering::Acquire) <= now
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
            let later = path[taken + 1..].iter().filter_map(|allowance| allowance.wait(now));
            return Some((status, Err(later.fold(seconds, u32::max))));
        }
        // Of two with as little left, the one that takes longer to be whole again.
        let left = |status: &RateStatus| (status.remaining, std::cmp::Reverse(status.reset_seconds));
        if least.as_ref().is_none_or(|least| left(&status) < left(least)) {
            least = Some(status);
        }
    }
    least.map(|status| (status, Ok(())))
}

/// Gives back what [`take_all`] took.
pub(crate) fn give_back_all(path: &[Arc<Allowance>], taken_at: u64, now: u64) {
    path.iter().for_each(|allowance| allowance.give_back(taken_at, now));
}

/// Whole seconds, rounded up.
fn seconds(nanos: u64) -> u32 {
    u32::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

/// The allowances of all keys that have one. They are kept apart from what is remembered of the keys, so that a
/// change to a key gives it no new allowance unless its limit is what changed.
#[derive(Debug)]
pub(crate) struct Allowances {
    by_key: HashMap<KeyId, Arc<Allowance>>,
    /// Every key of the map once, the one looked at next in front.
    order: VecDeque<KeyId>,
    max: usize,
}

impl Allowances {
    /// How many bytes an allowance takes: itself with two reference counts, and its places in the map and in the queue,
    /// which are half empty on average.
    pub(crate) const EACH: usize = allocation(16 + size_of::<Allowance>())
        + 2 * (size_of::<KeyId>() + size_of::<Arc<Allowance>>() + 1)
        + 2 * size_of::<KeyId>();

    /// How many allowances are looked at to find one that may go, so that no single miss pays for all of them.
    const LOOK_AT: usize = 32;

    pub(crate) fn new(max: usize) -> Self {
        Self { by_key: HashMap::new(), order: VecDeque::new(), max: max.max(1) }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The allowance of that key. When its limit is another one, a `fresh` look at the key begins a new allowance;
    /// one that is known to be old does not.
    pub(crate) fn of(&mut self, key: KeyId, limit: RateLimit, fresh: bool, now: u64) -> Arc<Allowance> {
        if let Some(allowance) = self.by_key.get_mut(&key) {
            if fresh && allowance.limit != limit {
                *allowance = Arc::new(Allowance::new(limit));
            }
            return Arc::clone(allowance);
        }
        if self.by_key.len() >= self.max {
            self.drop_one(now);
        }
        let allowance = Arc::new(Allowance::new(limit));
        self.by_key.insert(key, Arc::clone(&allowance));
        self.order.push_back(key);
        allowance
    }

    /// Drops an allowance that is whole and in nobody's hands, for which a new one is as good; if none of those
    /// looked at is, the last one looked at.
    fn drop_one(&mut self, now: u64) {
        for looked_at in 1..=Self::LOOK_AT {
            let Some(key) = self.order.pop_front() else { return };
            let expendable = self.by_key.get(&key).is_none_or(|it| it.is_whole(now) && Arc::strong_count(it) == 1);
            if expendable || looked_at == Self::LOOK_AT {
                self.by_key.remove(&key);
                return;
            }
            self.order.push_back(key);
        }
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
            assert_eq!((status.remaining, status.reset_seconds, taken), (remaining, reset, Ok(())));
        }
        let (status, taken) = allowance.take(now);
        assert_eq!((status.remaining, status.reset_seconds, taken), (0, 60, Err(20)));
        let (status, taken) = allowance.take(now + 20 * SECOND - 1);
        assert_eq!((status.remaining, status.reset_seconds, taken), (0, 41, Err(1)));
        let (status, taken) = allowance.take(now + 20 * SECOND);
        assert_eq!((status.remaining, status.reset_seconds, taken), (0, 60, Ok(())));
        assert!(!allowance.is_whole(now + 80 * SECOND - 1));
        assert!(allowance.is_whole(now + 80 * SECOND));
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
        for (limit, window) in [(7, 60), (3, 1), (1_000_000, 1), (1_000_000, 86_400), (1, 86_400), (999_983, 86_399)] {
            let allowance = allowance(limit, window);
            for _ in 0..limit.min(1000) {
                let (status, taken) = allowance.take(5);
                assert_eq!(taken, Ok(()));
                assert!(i64::from(status.reset_seconds) <= window && i64::from(status.remaining) < limit);
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
        assert_eq!((status.remaining, status.window_seconds), (2, 600), "of two with 2 left, the slower one");
    }

    #[test]
    fn the_number_of_allowances_is_bounded_and_whole_ones_go_first() {
        let limit = RateLimit::new(1, 60).unwrap();
        let id = |n: u8| KeyId::from_bytes([n; 16]);
        let mut all = Allowances::new(3);
        for n in 0..3 {
            let taken = all.of(id(n), limit, true, 0);
            if n != 1 {
                assert_eq!(taken.take(1).1, Ok(()));
            }
        }
        let _ = all.of(id(9), limit, true, 1);
        assert_eq!((all.by_key.len(), all.order.len()), (3, 3));
        assert!(!all.by_key.contains_key(&id(1)), "the only whole one went");
        for n in 10..60 {
            let _ = all.of(id(n), limit, true, 1).take(1);
            assert_eq!((all.by_key.len(), all.order.len()), (3, 3));
        }
    }

    #[test]
    fn only_a_fresh_look_at_a_changed_limit_begins_anew() {
        let (small, large) = (RateLimit::new(1, 60).unwrap(), RateLimit::new(2, 60).unwrap());
        let key = KeyId::from_bytes([1; 16]);
        let mut all = Allowances::new(3);
        let first = all.of(key, small, true, 0);
        assert!(Arc::ptr_eq(&first, &all.of(key, small, true, 0)));
        assert!(Arc::ptr_eq(&first, &all.of(key, large, false, 0)));
        let second = all.of(key, large, true, 0);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &all.of(key, large, true, 0)));
    }
}
