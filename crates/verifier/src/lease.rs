//! Keeping the lease, applying changes, waiting for others.
//!
//! The rules that must not be loosened:
//!
//! - A lease counts from before it was asked for, and is granted only by a renewal at exactly the change up to which
//!   everything has been evicted.
//! - Holders of a lease subtract the margin, those who wait for its end add it.
//! - Reporting what has been applied extends no lease.
//! - What is reported as applied is applied by every subscriber as well, as long as its lease lasts.
//! - A silent verifier may be removed only a lease and a margin after its renewals were read, and only if they have not
//!   moved since. One that renews is alive, and its row is what the next revoker waits for.

use std::{collections::HashMap, pin::pin, sync::atomic::Ordering, time::Duration};

use tokio::time::{sleep, timeout};
use tollkey_core::{Position, Seq, VerifierId};

use crate::{
    clock::nanos,
    source::{Primary, Source, Unavailable},
    stats::count,
    verifier::{Inner, Verifier},
};

/// How many changes are read at once.
const CHANGES: usize = 1000;
/// Between two looks at what others have applied: at first this long, then twice as long each time,
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// but no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// The longest that a verifier that stops waits for the leases of its subscribers, and then for the source.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// By how much two clocks may drift apart over a lease: a thousandth of it (quartz drifts by less than a tenth of
/// that, and NTP slews by at most half of it) and a millisecond for the grain of clocks.
#[must_use]
pub fn margin(lease: Duration) -> Duration {
    lease / 1000 + Duration::from_millis(1)
}

impl<S: Primary> Verifier<S> {
    /// Keeps the lease: renews each third of it, applies changes, reports them. Ends when `shutdown` does, with
    /// [`Verifier::stop`]. While the source is unavailable it keeps trying; the lease then ends by itself.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.0.keep_lease() => {}
        }
        self.stop().await;
    }

    /// Tells [`Verifier::run`] that something may have changed.
    pub fn poke(&self) {
        self.0.poked.notify_one();
    }

    /// Waits until change `seq` holds everywhere: until no verifier, this one included, can still answer from before
    /// it. `since` is the clock's `elapsed`, read after the statement that raised the counter and before the commit.
    ///
    /// It takes as long as the slowest verifier needs to apply the change; at most, when one is silent or the source
    /// fails, a lease and a margin, and once for a silent one a little more to remove it.
    pub async fn settle(&self, seq: Seq, since: Duration) {
        let inner = &*self.0;
        let started = inner.clock.elapsed();
        inner.settle(seq, since).await;
        let waited = inner.clock.elapsed().saturating_sub(started);
        count(&inner.counters.settles);
        inner
            .counters
            .settle_nanos
            .fetch_add(nanos(waited), Ordering::Relaxed);
    }

    /// Waits until all changes made so far hold everywhere. For answers that say "it is so already": who made it so
    /// may still be waiting, or have died waiting.
    ///
    /// # Errors
    /// [`Unavailable`] when the source does not say where the change counter stands.
    pub async fn settle_current(&self) -> Result<(), Unavailable> {
        let inner = &*self.0;
        let seq = inner.within(inner.lease, inner.catch_up()).await?.seq;
        // Read afterwards: every lease that does not cover `seq` was asked for before `seq` was committed.
        self.settle(seq, inner.clock.elapsed()).await;
        Ok(())
    }

    /// Stops answering from the cache, for good, and removes this verifier's row once no subscriber holds a lease any more.
    ///
    /// Takes at most ten seconds, however long a lease is. If a subscriber's lease is still valid after five, the row stays:
    /// the next change waits for it, as it does for a verifier that crashed.
    pub async fn stop(&self) {
        let inner = &*self.0;
        inner.memory.stop();
        inner.poked.notify_one(); // so that a `run` that did not call this ends, too
        if let Some(end) = inner.memory.subscribed_until() {
            // Nothing has been granted since. The runtime's clock is never ahead of ours: ours counts sleep, too.
            let left = Duration::from_nanos(end.saturating_sub(nanos(inner.clock.elapsed())));
            sleep(left.min(STOP_WAIT)).await;
            if left > STOP_WAIT {
                tracing::warn!(
                    "a subscriber still has a lease; the next change waits for this verifier"
                );
                return;
            }
        }
        if inner
            .within(STOP_WAIT, inner.source.unregister(inner.id()))
            .await
            .is_err()
        {
            tracing::warn!("could not unregister; the next change waits for this verifier's lease");
        }
    }
}

impl<S: Primary> Inner<S> {
    /// Renews the lease, applies changes and reports them until the verifier is stopped.
    async fn keep_lease(&self) {
        let mut reported = Seq::default();
        let mut connected = true;
        while !self.memory.is_stopped() {
            let renewed = self.within(self.lease, self.renew()).await;
            if renewed.is_ok() != connected {
                connected = renewed.is_ok();
                if connected {
                    tracing::info!("the lease is renewed again; keys are answered from memory");
                } else {
                    tracing::warn!(
                        "the lease cannot be renewed; when it ends, every verification asks the source"
                    );
                }
            }
            // After a failure sooner, so that a short outage costs no lease.
            let pause = match renewed {
                Ok(seq) => {
                    reported = seq;
                    self.lease / 3
                }
                Err(Unavailable) => self.lease / 10,
            };
            let mut due = pin!(sleep(pause.max(FIRST_PAUSE)));
            loop {
                tokio::select! {
                    () = &mut due => break,
                    () = self.poked.notified() => {}
                }
                if let Ok(seq) = self.within(self.lease, self.report(reported)).await {
                    reported = seq;
                }
                if self.memory.has_lost_lease() {
                    break; // no need to wait for the next third
                }
            }
        }
    }

    /// Renews the lease, after applying what is missing for it. Answers the change that was reported with it.
    async fn renew(&self) -> Result<Seq, Unavailable> {
        let mut pause = FIRST_PAUSE;
        loop {
            let asked = self.clock.elapsed();
            let (applied, generation, reported) = self.memory.applied_everywhere(nanos(asked));
            let renewed = self.source.renew(self.id(), reported, applied).await?;
            self.failures.store(0, Ordering::Relaxed);
            if renewed {
                let end = (asked + self.lease).saturating_sub(self.margin);
                if self.memory.grant(generation, nanos(end)) || self.memory.is_stopped() {
                    return Ok(reported);
                }
                continue; // everything was forgotten meanwhile; what was renewed is not what is remembered now
            }
            if self.catch_up().await? == applied {
                // Refused although nothing is missing: a change is being committed right now.
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Applies what is missing and reports what is applied everywhere, if `reported` was something else. Answers what
    /// is reported now.
    async fn report(&self, reported: Seq) -> Result<Seq, Unavailable> {
        self.catch_up().await?;
        let (.., applied) = self.memory.applied_everywhere(nanos(self.clock.elapsed()));
        if applied != reported {
            self.source.report(self.id(), applied).await?;
        }
        Ok(applied)
    }

    /// Applies all changes made so far. Answers up to where all are applied.
    pub(crate) async fn catch_up(&self) -> Result<Position, Unavailable> {
        let _applying = self.applying.lock().await;
        loop {
            let (applied, _) = self.memory.applied();
            let log = self.source.changes_after(applied, CHANGES).await?;
            let whole = self.memory.apply(&log);
            let now = self.memory.applied().0;
            self.applied
                .send_if_modified(|position| std::mem::replace(position, now) != now);
            if whole {
                return Ok(log.current);
            }
        }
    }

    async fn settle(&self, seq: Seq, since: Duration) {
        let whole = self.lease + self.margin;
        let over = since + whole; // every lease that does not cover `seq` has ended then
        let first = self.until(over, self.source.behind(seq, self.id())).await;
        let seen_at = self.clock.elapsed();

        if self.until(over, self.catch_up()).await.is_err() {
            // This process must not say yes either. A renewal that is still under way grants nothing any more.
            self.memory.drop_lease();
            tracing::warn!(
                seq = seq.0,
                "a change could not be applied here; nothing is answered from memory"
            );
        }
        // Somebody else may be waiting for this verifier, too.
        self.poked.notify_one();

        let mut others = first.as_ref().ok().map(Vec::len);
        if others.is_none_or(|others| others > 0) {
            count(&self.counters.settles_for_verifiers);
        }
        let mut waited_for_subscribers = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let (.., applied) = self.memory.applied_everywhere(nanos(self.clock.elapsed()));
            if others == Some(0) && applied >= seq {
                return;
            }
            if applied < seq && !std::mem::replace(&mut waited_for_subscribers, true) {
                count(&self.counters.settles_for_subscribers);
            }
            if !self.pause_until(over, pause).await {
                break;
            }
            if others != Some(0) {
                let behind = self.until(over, self.source.behind(seq, self.id())).await;
                others = behind.ok().map(|rows| rows.len());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }

        count(&self.counters.settles_over_a_lease);
        tracing::warn!(
            seq = seq.0,
            verifiers = ?first.iter().flatten().map(|(id, _)| id).collect::<Vec<_>>(),
            "a change had to wait for a whole lease: some verifier or subscriber did not report, or the source failed"
        );
        // A first look that came late would hold the answer back for as long again; leave it to the next change then.
        if let Ok(rows) = first
            && seen_at.saturating_sub(since) <= whole / 10
        {
            self.remove_silent(seq, rows.into_iter().collect(), seen_at + whole)
                .await;
        }
    }

    /// Removes those of `seen` that are behind `seq` and have not renewed until `silent_until`, a lease and a margin
    /// after they were seen: no lease of theirs is left.
    async fn remove_silent(
        &self,
        seq: Seq,
        seen: HashMap<VerifierId, u64>,
        silent_until: Duration,
    ) {
        while self.pause_until(silent_until, LONGEST_PAUSE).await {}
        let removed = self.within(self.lease, async {
            for (id, renewals) in self.source.behind(seq, self.id()).await? {
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

    /// Sleeps for `pause`, but not beyond `end`. False when `end` is there.
    async fn pause_until(&self, end: Duration, pause: Duration) -> bool {
        let left = end.saturating_sub(self.clock.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(pause.min(left)).await;
        true
    }

    /// An answer that comes before `end`.
    async fn until<T>(
        &self,
        end: Duration,
        answer: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        self.within(end.saturating_sub(self.clock.elapsed()), answer)
            .await
    }
}

impl<S: Source> Inner<S> {
    /// An answer that comes within `limit`.
    pub(crate) async fn within<T, E: From<Unavailable>>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(Unavailable.into()))
    }
}
