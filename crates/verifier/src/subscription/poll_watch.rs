//! Tracks whether the polls of a subscription get responses. While a response is overdue, look-ups fail immediately.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{clock::nanos, log_limit::LogLimit};

/// How late a response may be before it is overdue. Shorter than a third of a lease, so that an upstream that stops
/// responding is detected before the lease ends.
const OVERDUE: Duration = Duration::from_millis(500);
/// The latest start of the next poll after the end of a poll. Longer than the longest pause between two polls.
const NEXT_POLL: Duration = Duration::from_millis(1500);
/// The time after the end of a poll at which a missing next poll is an error of this process.
const STALLED: Duration = Duration::from_secs(10);

/// The state of the polls of one subscription. Times are nanoseconds of the verifier's clock.
#[derive(Debug)]
pub(crate) struct PollWatch {
    /// The latest end of the last poll.
    ends_at: AtomicU64,
    /// When a response becomes overdue; in the future while a poll may wait, and [`u64::MAX`] after a response.
    overdue_at: AtomicU64,
    stalled: LogLimit,
}

impl PollWatch {
    /// Creates the state for a verifier that starts to poll at `now`.
    pub(crate) fn subscriber(now: Duration) -> Self {
        Self::new(nanos(now))
    }

    /// Creates the state for a verifier that never polls.
    pub(crate) fn off() -> Self {
        Self::new(u64::MAX)
    }

    fn new(ends_at: u64) -> Self {
        Self {
            ends_at: AtomicU64::new(ends_at),
            overdue_at: AtomicU64::new(u64::MAX),
            stalled: LogLimit::default(),
        }
    }

    /// Starts a poll that may wait for `wait` and ends after `limit`. If the returned value is dropped without a call of
    /// [`PollInFlight::end`], this process has given up the poll, which is not a failure of the upstream.
    pub(crate) fn begin(&self, now: Duration, wait: Duration, limit: Duration) -> PollInFlight<'_> {
        self.ends_at.store(nanos(now + limit), Ordering::SeqCst);
        self.overdue_at
            .fetch_min(nanos(now + wait + OVERDUE), Ordering::SeqCst);
        PollInFlight(self)
    }

    /// Whether a response is overdue. `false` if no poll is in flight or due, because then no poll could detect that the
    /// upstream responds again.
    pub(crate) fn is_overdue(&self, now: Duration) -> bool {
        let is_polling = nanos(now)
            < self
                .ends_at
                .load(Ordering::SeqCst)
                .saturating_add(nanos(NEXT_POLL));
        is_polling && nanos(now) >= self.overdue_at.load(Ordering::SeqCst)
    }

    /// Whether this process does not run the subscription.
    pub(crate) fn is_stalled(&self, now: Duration) -> bool {
        nanos(now)
            >= self
                .ends_at
                .load(Ordering::SeqCst)
                .saturating_add(nanos(STALLED))
    }

    pub(crate) fn log_stalled(&self, now: Duration) {
        if self.stalled.allows(now) {
            tracing::error!(
                "the subscription is not polled, so every verification needs the server; keep the runtime that runs the \
                 subscription alive, and do not block its threads"
            );
        }
    }
}

/// A poll that has no response yet.
#[derive(Debug)]
pub(crate) struct PollInFlight<'a>(&'a PollWatch);

impl PollInFlight<'_> {
    /// Records that the poll has ended at `now`, with a response or without.
    pub(crate) fn end(self, now: Duration, has_response: bool) {
        let watch = self.0;
        if has_response {
            watch.overdue_at.store(u64::MAX, Ordering::SeqCst);
        } else {
            watch.overdue_at.fetch_min(nanos(now), Ordering::SeqCst);
        }
        std::mem::forget(self);
    }
}

impl Drop for PollInFlight<'_> {
    fn drop(&mut self) {
        self.0.overdue_at.store(u64::MAX, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(3);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(100_000 + millis)
    }

    #[test]
    fn response_is_overdue_after_the_wait_until_it_arrives() {
        let watch = PollWatch::subscriber(at(0));
        let poll = watch.begin(at(0), WAIT, LIMIT);
        assert_eq!(
            [0, 1499, 1500, 2999].map(|millis| watch.is_overdue(at(millis))),
            [false, false, true, true]
        );
        poll.end(at(3000), false);
        assert!(watch.is_overdue(at(3000)));
        // The next poll is the probe: until it has a response, look-ups are not sent.
        let poll = watch.begin(at(3100), Duration::ZERO, Duration::from_secs(2));
        assert!(watch.is_overdue(at(3100)));
        poll.end(at(3200), true);
        assert!(!watch.is_overdue(at(3200)));
    }

    #[test]
    fn response_of_a_failed_poll_is_overdue_immediately() {
        let watch = PollWatch::subscriber(at(0));
        watch.begin(at(0), WAIT, LIMIT).end(at(1), false);
        assert!(watch.is_overdue(at(1)));
    }

    #[test]
    fn nothing_is_overdue_when_nothing_polls() {
        let watch = PollWatch::subscriber(at(0));
        watch.begin(at(0), WAIT, LIMIT).end(at(3000), false);
        assert_eq!(
            [4499, 4500].map(|millis| watch.is_overdue(at(millis))),
            [true, false]
        );
        drop(watch.begin(at(5000), WAIT, LIMIT));
        assert!(!watch.is_overdue(at(7000)), "given up by this process");
        assert!(!PollWatch::off().is_overdue(at(1_000_000)));
    }
}
