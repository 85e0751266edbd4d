//! A limit for log lines that every request would write while something is wrong.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// The shortest time between two lines.
pub(crate) const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Lets one line through per [`LOG_INTERVAL`].
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    /// From when on the next line may be written, in nanoseconds.
    next: AtomicU64,
}

impl LogLimit {
    /// Whether a line may be written now. `elapsed` is read from a clock that only goes forward.
    pub(crate) fn allows(&self, elapsed: Duration) -> bool {
        let now = nanos(elapsed);
        let next = self.next.load(Ordering::Relaxed);
        let after = now.saturating_add(nanos(LOG_INTERVAL));
        now >= next && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_is_written() {
        let limit = LogLimit::default();
        let lines = (0..65).filter(|second| limit.allows(Duration::from_secs(*second))).collect::<Vec<_>>();
        assert_eq!(lines, [0, 30, 60]);
    }
}
