//! Keeping the lease of a verifier that has the store itself.
//!
//! The rules, which must not be loosened:
//!
//! - A lease counts from before its renewal was sent, and is granted only by a renewal at exactly the change up to which
//!   everything has been evicted.
//! - The holder of a lease subtracts the margin; a verifier that waits for its end adds it.
//! - Reporting what has been applied does not extend the lease.
//! - What is reported as applied is also applied by every subscriber whose lease is valid.
//!
//! `docs/leases.md` has the reasons, and `propagation` the waiting for other verifiers.

use std::{pin::pin, sync::atomic::Ordering, time::Duration};

use tokio::time::{sleep, timeout};
use tollkey_core::{Position, Seq};

use crate::{
    clock::nanos,
    source::{Primary, Source, Unavailable},
    verifier::{Inner, Verifier},
};

/// How many changes are read at a time.
const CHANGES: usize = 1000;
/// The pause after the first renewal that was rejected because of a change that is being committed. It doubles each time,
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// up to this one.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// The longest that a verifier that stops waits for the leases of its subscribers, and then for the source.
const STOP_WAIT: Duration = Duration::from_secs(5);

impl<S: Primary> Verifier<S> {
    /// Keeps the lease: renews it every third of its length, applies changes and reports them. Ends with
    /// [`Verifier::stop`] when `shutdown` resolves. While the source is unavailable it keeps trying, and the lease ends by
    /// itself.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.0.keep_lease() => {}
        }
        self.stop().await;
    }

    /// Notifies [`Verifier::run`] that there may be a change, so that it does not wait for the next renewal.
    pub fn notify(&self) {
        self.0.notification.notify_one();
    }

    /// Stops verifying from the cache, for good, and removes this verifier's row once no subscriber holds a lease.
    ///
    /// Takes at most ten seconds, however long a lease is. If a subscriber's lease is still valid after five, the row stays:
    /// the next change waits for it, as it does for a verifier that crashed.
    pub async fn stop(&self) {
        let inner = &*self.0;
        inner.cache.stop();
        inner.notification.notify_one(); // so that a `run` that did not call this ends, too
        if let Some(end) = inner.cache.subscribed_until() {
            // No lease has been granted since. The runtime's clock is never ahead of ours: ours counts sleep, too.
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
        while !self.cache.is_stopped() {
            let renewed = self.within(self.lease, self.renew()).await;
            if renewed.is_ok() != connected {
                connected = renewed.is_ok();
                if connected {
                    tracing::info!("the lease is renewed again; keys are verified from the cache");
                } else {
                    tracing::warn!(
                        "the lease cannot be renewed; when it ends, every verification needs the source"
                    );
                }
            }
            // Sooner after a failure, so that a short outage does not cost the lease.
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
                    () = self.notification.notified() => {}
                }
                if let Ok(seq) = self.within(self.lease, self.report(reported)).await {
                    reported = seq;
                }
                if self.cache.has_lost_lease() {
                    break; // renew immediately
                }
            }
        }
    }

    /// Renews the lease, after applying the changes that are missing for it. Returns the change that was reported with the
    /// renewal.
    async fn renew(&self) -> Result<Seq, Unavailable> {
        let mut pause = FIRST_PAUSE;
        loop {
            let sent_at = self.clock.elapsed();
            let (applied, generation, reported) = self.cache.applied_everywhere(nanos(sent_at));
            let renewed = self.source.renew(self.id(), reported, applied).await?;
            self.failures.store(0, Ordering::Relaxed);
            if renewed {
                let end = (sent_at + self.lease).saturating_sub(self.margin);
                if self.cache.grant(generation, nanos(end)) || self.cache.is_stopped() {
                    return Ok(reported);
                }
                continue; // the cache was cleared meanwhile, so this renewal says nothing about what is cached now
            }
            if self.catch_up().await? == applied {
                // Rejected although nothing is missing: a change is being committed right now.
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Applies the missing changes and reports what is applied everywhere, unless that is what `reported` says. Returns
    /// what is reported now.
    async fn report(&self, reported: Seq) -> Result<Seq, Unavailable> {
        self.catch_up().await?;
        let (.., applied) = self.cache.applied_everywhere(nanos(self.clock.elapsed()));
        if applied != reported {
            self.source.report(self.id(), applied).await?;
        }
        Ok(applied)
    }

    /// Applies all changes committed so far. Returns the position up to which all are applied.
    pub(crate) async fn catch_up(&self) -> Result<Position, Unavailable> {
        let _applying = self.applying.lock().await;
        loop {
            let (applied, _) = self.cache.applied();
            let log = self.source.changes_after(applied, CHANGES).await?;
            let is_complete = self.cache.apply(&log);
            let now = self.cache.applied().0;
            self.applied
                .send_if_modified(|position| std::mem::replace(position, now) != now);
            if is_complete {
                return Ok(log.current);
            }
        }
    }
}

impl<S: Source> Inner<S> {
    /// Fails if `response` takes longer than `limit`.
    pub(crate) async fn within<T, E: From<Unavailable>>(
        &self,
        limit: Duration,
        response: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timeout(limit, response)
            .await
            .unwrap_or_else(|_| Err(Unavailable.into()))
    }
}
