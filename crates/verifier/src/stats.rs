//! The counters of a verifier, for metrics.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tollkey_core::Seq;

/// The state of a verifier, and counters since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Verifications of keys and service keys from the cache.
    pub hits: u64,
    /// Verifications that looked a key up at the source.
    pub misses: u64,
    /// Verifications that failed because the source did not respond.
    pub unavailable: u64,
    /// Keys that are cached now.
    pub entries: usize,
    /// The estimated bytes of the cached keys, the rate limits and the usage counts, at most
    /// [`crate::Settings::max_bytes`].
    pub bytes: usize,
    /// Keys evicted to free space.
    pub evictions: u64,
    /// Keys evicted because of a change.
    pub changed: u64,
    /// How often the cache was cleared: the log of changes had a gap, or the counter went back.
    pub resets: u64,
    /// The change up to which everything is applied.
    pub seq: Seq,
    /// The length of leases. For a subscriber, whose server chooses the length of each lease, the longest time for a
    /// response.
    pub lease_length: Duration,
    /// The remaining time of the lease.
    pub lease_left: Duration,
    /// Calls of [`crate::Verifier::wait_until_propagated`].
    pub propagations: u64,
    /// The total time of these calls.
    pub propagation_wait: Duration,
    /// Calls that waited for a whole lease, because a verifier did not report.
    pub propagations_over_a_lease: u64,
    /// Calls that waited for another verifier of the source.
    pub propagations_for_verifiers: u64,
    /// Calls that waited for a subscriber of this verifier.
    pub propagations_for_subscribers: u64,
    /// Subscribers that hold a lease from this verifier now.
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

/// Adds one to a counter, without any memory ordering.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A counter for the hot path. Threads count in separate stripes, so that they do not contend for one cache line.
#[derive(Debug, Default)]
pub(crate) struct Striped([Stripe; STRIPES]);

const STRIPES: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))] // two cache lines: processors fetch them in pairs
struct Stripe(AtomicU64);

thread_local! {
    static STRIPE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES
    };
}

impl Striped {
    pub(crate) fn count(&self) {
        count(&self.0[STRIPE.with(|stripe| *stripe)].0);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|stripe| stripe.0.load(Ordering::Relaxed))
            .sum()
    }
}
