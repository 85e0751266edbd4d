//! The counters of a verifier, for metrics.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tollkey_core::Seq;

/// The state of a verifier and what it has done since it was started. Counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Verifications from the cache, of keys and of service keys.
    pub hits: u64,
    /// Verifications that looked a key up at the source.
    pub misses: u64,
    /// Verifications that failed because the source did not respond.
    pub unavailable: u64,
    /// Keys that are cached now.
    pub entries: usize,
    /// How many bytes the cached keys, the rate limits and the usage counts take, as estimated; at most
    /// [`crate::Settings::max_bytes`].
    pub bytes: usize,
    /// Keys evicted to make room for others.
    pub evictions: u64,
    /// Keys evicted because of a change.
    pub changed: u64,
    /// How often the cache was cleared: the log of changes had a gap, or the counter went back.
    pub resets: u64,
    /// The change up to which everything is applied.
    pub seq: Seq,
    /// How long the lease is still valid.
    pub lease_left: Duration,
    /// Changes that have been waited for ([`crate::Verifier::wait_until_propagated`]).
    pub propagations: u64,
    /// How long all of those waits took together.
    pub propagation_wait: Duration,
    /// How many of them waited for a whole lease, because some verifier did not report.
    pub propagations_over_a_lease: u64,
    /// How many of them waited for another verifier of the source.
    pub propagations_for_verifiers: u64,
    /// How many of them waited for a subscriber of this verifier.
    pub propagations_for_subscribers: u64,
    /// How many subscribers hold a lease from this verifier now.
    pub subscribers: usize,
    /// Usage counts that were dropped because they were not taken in time.
    pub usage_dropped: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: Striped,
    pub(crate) misses: AtomicU64,
    pub(crate) unavailable: AtomicU64,
    pub(crate) propagations: AtomicU64,
    pub(crate) propagation_nanos: AtomicU64,
    pub(crate) propagations_over_a_lease: AtomicU64,
    pub(crate) propagations_for_verifiers: AtomicU64,
    pub(crate) propagations_for_subscribers: AtomicU64,
}

/// Adds one to a counter that orders nothing.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A counter for the hot path: threads count in separate stripes, so that they do not take a cache line from each other
/// with every verification.
#[derive(Debug, Default)]
pub(crate) struct Striped([Stripe; STRIPES]);

const STRIPES: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))] // two cache lines: processors fetch them in pairs
struct Stripe(AtomicU64);

thread_local! {
    static MINE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES
    };
}

impl Striped {
    pub(crate) fn count(&self) {
        count(&self.0[MINE.with(|mine| *mine)].0);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|stripe| stripe.0.load(Ordering::Relaxed))
            .sum()
    }
}
