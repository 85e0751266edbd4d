//! Background work, which the server runs regularly.

use std::time::Duration;

use tollkey_core::{ApiKey, time::day, usage::outcome_code};
use tollkey_verifier::usage::BATCH;

use crate::{idempotency, measures, revocations, service::Service};

/// Days for which usage is kept: about 13 months, so that a month can be compared with the same month a year earlier.
const USAGE_KEPT_DAYS: i32 = 400;

/// The longest time that usage waits before it is written. When many keys are in use, each is written this often.
const USAGE_WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// When usage is written. The usage of a few keys is written each time, so that other replicas show it within
/// seconds. The usage of many keys waits for a minute: otherwise the database has a write every few
/// seconds for each key in use.
#[derive(Debug, Default)]
pub struct UsageSchedule {
    /// When all usage was last written, in terms of [`tollkey_core::Clock::elapsed`].
    written_at: Duration,
}

impl UsageSchedule {
    /// Returns whether usage is written at `now`: few keys and rows are waiting, the rows are full, or the
    /// interval has ended.
    fn is_due(&self, waiting: usize, is_full: bool, now: Duration) -> bool {
        let has_waited = now.saturating_sub(self.written_at) >= USAGE_WRITE_INTERVAL;
        waiting <= BATCH || is_full || has_waited
    }
}

impl Service {
    /// Collects the counted usage, and writes it if that is due. The server calls this every few seconds.
    pub async fn flush_usage_when_due(&self, schedule: &mut UsageSchedule) {
        let is_full = self.collect_usage().await;
        let waiting = self.verifier.usage_waiting();
        let now = self.clock.elapsed();
        // A write that failed is repeated with the next call.
        if schedule.is_due(waiting, is_full, now) && self.write_usage().await {
            schedule.written_at = now;
        }
    }

    /// Writes all usage that was counted while verifying. Counts that cannot be written are kept for the next call.
    pub async fn flush_usage(&self) {
        self.write_usage().await;
    }

    /// Collects usage until the rows are full, and returns whether they are.
    async fn collect_usage(&self) -> bool {
        let mut is_full = false;
        // Bounded, so that usage that is added meanwhile waits for the next call. Fewer keys than a batch are collected
        // where the rows are nearly full, so only 0 means that no key waits.
        for _ in 0..self.verifier.usage_waiting() {
            match self.verifier.collect_usage() {
                Some(0) => break,
                Some(_) => tokio::task::yield_now().await,
                None => {
                    is_full = true;
                    break;
                }
            }
        }
        self.record_outcomes();
        is_full
    }

    fn record_outcomes(&self) {
        for (outcome, count) in self.verifier.take_outcomes() {
            measures::record_verifications(outcome_code(outcome), count);
        }
    }

    /// Returns whether all of it was written.
    async fn write_usage(&self) -> bool {
        // Only what is counted now: usage that is added meanwhile waits for the next call.
        for _ in 0..self.verifier.usage_waiting().div_ceil(BATCH) {
            let counted = self.verifier.take_usage();
            self.record_outcomes();
            if let Err(error) = self.store.add_usage(counted.clone()).await {
                tracing::warn!(%error, "cannot store usage counts; retrying with the next flush");
                self.verifier.restore_usage(counted);
                return false;
            }
        }
        true
    }

    /// Returns the key with the last use that this replica has collected and not yet written.
    pub(crate) fn with_waiting_usage(&self, mut key: ApiKey) -> ApiKey {
        let waiting = self.verifier.waiting_usage(&key.id);
        let last_used_at = waiting.iter().filter_map(|usage| usage.last_used_at).max();
        key.last_used_at = key.last_used_at.max(last_used_at);
        key
    }

    pub async fn record_revocations(&self) {
        if let Err(problem) = revocations::record_pending(self).await {
            tracing::warn!(
                code = problem.code.as_str(),
                "cannot record a revocation on all descendant keys, which are rejected anyway; retrying"
            );
        }
    }

    /// Deletes old usage, expired idempotency records and expired sessions.
    pub async fn prune(&self) {
        let now = self.clock.now();
        if let Err(error) = self.store.prune_usage(day(now) - USAGE_KEPT_DAYS).await {
            tracing::warn!(%error, "cannot delete old usage counts; retrying");
        }
        if let Err(error) = self
            .store
            .prune_idempotency_records(idempotency::oldest_valid_record(now))
            .await
        {
            tracing::warn!(%error, "cannot delete expired idempotency records; retrying");
        }
        if let Err(error) = self.store.prune_sessions(now).await {
            tracing::warn!(%error, "cannot delete expired sessions; retrying");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn usage_of_a_few_keys_is_written_every_time() {
        let schedule = UsageSchedule::default();
        for tick in 1..4 {
            assert!(schedule.is_due(BATCH, false, tick * 5 * SECOND));
        }
    }

    #[test]
    fn usage_of_many_keys_is_written_once_a_minute() {
        let mut schedule = UsageSchedule::default();
        let mut written = Vec::new();
        for seconds in (5..=180).step_by(5) {
            if schedule.is_due(BATCH + 1, false, seconds * SECOND) {
                written.push(seconds);
                schedule.written_at = seconds * SECOND;
            }
        }
        assert_eq!(written, [60, 120, 180]);
    }

    #[test]
    fn usage_is_written_when_the_rows_are_full() {
        let schedule = UsageSchedule::default();
        assert!(schedule.is_due(BATCH + 1, true, 5 * SECOND));
        assert!(!schedule.is_due(BATCH + 1, false, 5 * SECOND));
    }
}
