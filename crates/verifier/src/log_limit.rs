//! A limit for log lines that every request would write while something is wrong.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// The shortest time between two lines.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Limits how many lines of one kind are logged: by default one in 30 s.
#[derive(Debug)]
pub struct LogLimit {
    /// How many lines an interval has.
    lines: u32,
    /// When the next interval begins at the earliest, in nanoseconds.
    next: AtomicU64,
    /// How many more lines this interval has.
    left: AtomicU32,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new(1)
    }
}

impl LogLimit {
    /// At most this many lines in 30 s.
    #[must_use]
    pub const fn new(lines: u32) -> Self {
        Self {
            lines,
            next: AtomicU64::new(0),
            left: AtomicU32::new(0),
        }
    }

    /// Whether a line may be logged now. `elapsed` is read from a clock that only goes forward.
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
    fn one_line_per_interval_is_written() {
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
