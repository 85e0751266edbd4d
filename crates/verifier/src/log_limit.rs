//! Limits log lines that every request could otherwise write.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// The interval to which the limit applies.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Limits the log lines of one kind: by default one line per 30 s.
#[derive(Debug)]
pub struct LogLimit {
    /// The maximum number of lines in an interval.
    lines: u32,
    /// The earliest start of the next interval, in nanoseconds.
    next: AtomicU64,
    /// The number of lines that remain in this interval.
    left: AtomicU32,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new(1)
    }
}

impl LogLimit {
    /// Creates a limit of `lines` per 30 s.
    #[must_use]
    pub const fn new(lines: u32) -> Self {
        Self {
            lines,
            next: AtomicU64::new(0),
            left: AtomicU32::new(0),
        }
    }

    /// Returns whether a line may be logged now. `elapsed` must be read from a monotonic clock.
    pub fn allows(&self, elapsed: Duration) -> bool {
        let now = nanos(elapsed);
        let next = self.next.load(Ordering::Relaxed);
        let after = now.saturating_add(nanos(LOG_INTERVAL));
        if now >= next
            && self
                .next
                .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.left
                .store(self.lines.saturating_sub(1), Ordering::Relaxed);
            return true;
        }
        let one_less = |left: u32| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_per_interval_are_limited() {
        let limit = LogLimit::default();
        let lines = (0..65)
            .filter(|second| limit.allows(Duration::from_secs(*second)))
            .collect::<Vec<_>>();
        assert_eq!(lines, [0, 30, 60]);
        let limit = LogLimit::new(3);
        let lines = (0..65)
            .filter(|second| limit.allows(Duration::from_secs(*second)))
            .collect::<Vec<_>>();
        assert_eq!(lines, [0, 1, 2, 30, 31, 32, 60, 61, 62]);
    }
}
