//! Background work, which the server runs regularly.

use tollkey_core::{time::day, usage::outcome_code};
use tollkey_verifier::usage::BATCH;

use crate::{idempotency, measures, revocations, service::Service};

/// Days for which usage is kept: about 13 months, so that a month can be compared with the same month a year earlier.
const USAGE_KEPT_DAYS: i32 = 400;

impl Service {
    /// Stores the usage that the verifier counted. Counts that cannot be stored are kept for the next call.
    pub async fn flush_usage(&self) {
        // Only what is counted now: usage that is added meanwhile waits for the next call.
        for _ in 0..self.verifier.usage_waiting().div_ceil(BATCH) {
            let counted = self.verifier.take_usage();
            if let Err(error) = self.store.add_usage(counted.clone()).await {
                tracing::warn!(%error, "cannot store usage counts; retrying with the next flush");
                self.verifier.restore_usage(counted);
                return;
            }
            for usage in &counted {
                measures::record_verifications(outcome_code(usage.outcome), usage.count);
            }
        }
    }

    /// Records pending revocations that apply to many keys.
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
            .prune_kept_answers(idempotency::kept_since(now))
            .await
        {
            tracing::warn!(%error, "cannot delete expired idempotency records; retrying");
        }
        if let Err(error) = self.store.prune_sessions(now).await {
            tracing::warn!(%error, "cannot delete expired sessions; retrying");
        }
    }
}
