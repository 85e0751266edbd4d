//! Waiting until a change is propagated: until no verifier can decide by the state before it.
//!
//! The rules (change them only with a model in `crates/model` that shows that the change is safe):
//!
//! - The wait ends when every other verifier has reported the change as applied, or when every lease that
//!   does not cover the change has expired: a lease and a margin after the change was committed.
//! - A silent verifier is removed only a lease and a margin after its renewals were read, and only if it has
//!   not renewed since. A verifier that renews is running, so its row must stay: the next change waits for
//!   it.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;
use tollkey_core::{Seq, VerifierId};

use crate::{
    clock::nanos,
    source::{Primary, Unavailable},
    stats::count,
    verifier::{Inner, Verifier},
};

/// The first pause before the reports of other verifiers are read again. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

impl<S: Primary> Verifier<S> {
    /// Waits until change `seq` is propagated: until no verifier, this one included, can decide by the state before it.
    /// `since` is the clock's `elapsed`, read after the statement that raised the counter and before the commit.
    ///
    /// This takes as long as the slowest verifier needs to apply the change. If a verifier is silent or the
    /// source fails, it takes a lease and a margin at most, and once per silent verifier a little longer to
    /// remove its row.
    pub async fn wait_until_propagated(&self, seq: Seq, since: Duration) {
        let inner = &*self.0;
        let started = inner.clock.elapsed();
        inner.wait_until_propagated(seq, since).await;
        let waited = inner.clock.elapsed().saturating_sub(started);
        count(&inner.counters.propagations);
        inner
            .counters
            .propagation_nanos
            .fetch_add(nanos(waited), Ordering::Relaxed);
    }

    /// Waits until all changes committed so far are propagated. Used when a request changes nothing because
    /// an earlier one has made the change: the process that committed it may still be waiting, or may have
    /// crashed while it waited.
    ///
    /// # Errors
    /// [`Unavailable`] if the changes cannot be read from the source.
    pub async fn wait_until_all_propagated(&self) -> Result<(), Unavailable> {
        let inner = &*self.0;
        let seq = inner.within(inner.lease, inner.catch_up()).await?.seq;
        // The clock is read last: the renewal of every lease that does not cover `seq` was sent before `seq`
        // was committed.
        self.wait_until_propagated(seq, inner.clock.elapsed()).await;
        Ok(())
    }
}

impl<S: Primary> Inner<S> {
    async fn wait_until_propagated(&self, seq: Seq, since: Duration) {
        let longest = self.lease + self.margin;
        let end = since + longest; // by then, every lease that does not cover `seq` has expired
        let first = self
            .until(end, self.source.lagging_verifiers(seq, self.id()))
            .await;
        let seen_at = self.clock.elapsed();

        if self.until(end, self.catch_up()).await.is_err() {
            // This process must not use its cache either. Dropping the lease also invalidates a renewal in flight.
            self.cache.drop_lease();
            tracing::warn!(
                seq = seq.0,
                "a change could not be applied here; no key is verified from the cache"
            );
        }
        // Another process may be waiting for this verifier to report.
        self.notification.notify_one();

        let mut lagging = first.as_ref().ok().map(Vec::len);
        if lagging.is_none_or(|lagging| lagging > 0) {
            count(&self.counters.propagations_for_verifiers);
        }
        let mut waited_for_subscribers = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let (.., applied) = self.cache.applied_everywhere(nanos(self.clock.elapsed()));
            if lagging == Some(0) && applied >= seq {
                return;
            }
            if applied < seq && !std::mem::replace(&mut waited_for_subscribers, true) {
                count(&self.counters.propagations_for_subscribers);
            }
            if !self.pause_until(end, pause).await {
                break;
            }
            if lagging != Some(0) {
                let rows = self
                    .until(end, self.source.lagging_verifiers(seq, self.id()))
                    .await;
                lagging = rows.ok().map(|rows| rows.len());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }

        count(&self.counters.propagations_over_a_lease);
        tracing::warn!(
            seq = seq.0,
            verifiers = ?first.iter().flatten().map(|(id, _)| id).collect::<Vec<_>>(),
            "a change waited for a whole lease: a verifier or subscriber did not report it, or the source failed"
        );
        // If the rows were read late, removing them would delay the response again; the next change removes them.
        if let Ok(rows) = first
            && seen_at.saturating_sub(since) <= longest / 10
        {
            self.remove_silent(seq, rows.into_iter().collect(), seen_at + longest)
                .await;
        }
    }

    /// Removes the verifiers in `seen` that have neither reported `seq` nor renewed by `silent_until`, a
    /// lease and a margin after `seen` was read. All of their leases have expired by then.
    async fn remove_silent(
        &self,
        seq: Seq,
        seen: HashMap<VerifierId, u64>,
        silent_until: Duration,
    ) {
        while self.pause_until(silent_until, LONGEST_PAUSE).await {}
        let removed = self.within(self.lease, async {
            for (id, renewals) in self.source.lagging_verifiers(seq, self.id()).await? {
                if seen.get(&id) == Some(&renewals) {
                    tracing::warn!(verifier = %id, "removing a verifier that has been silent for a lease");
                    self.source.remove_if_not_renewed(id, renewals).await?;
                }
            }
            Ok::<_, Unavailable>(())
        });
        if removed.await.is_err() {
            tracing::warn!(
                "could not remove silent verifiers; the next change waits for them again"
            );
        }
    }

    /// Sleeps for `pause`, but not beyond `end`. Returns `false` if `end` has passed.
    async fn pause_until(&self, end: Duration, pause: Duration) -> bool {
        let left = end.saturating_sub(self.clock.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(pause.min(left)).await;
        true
    }

    /// Fails if `response` is not ready before `end`.
    async fn until<T>(
        &self,
        end: Duration,
        response: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        self.within(end.saturating_sub(self.clock.elapsed()), response)
            .await
    }
}
