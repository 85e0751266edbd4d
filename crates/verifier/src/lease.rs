//! Keeping the lease of a verifier that has a store.
//!
//! The rules, which must not be loosened:
//!
//! - A lease starts when its renewal is sent, not when the result arrives. A renewal succeeds only if the
//!   change counter is exactly at the change up to which this verifier has evicted everything.
//! - The holder of a lease subtracts the margin; a verifier that waits for the end of a lease adds it.
//! - A report of applied changes does not extend the lease.
//! - A change is reported as applied only if every subscriber whose lease is valid has applied it too.
//!
//! `docs/leases.md` has the reasons.

use std::{pin::pin, sync::atomic::Ordering, time::Duration};

use tokio::time::{sleep, timeout};
use tollkey_core::{Position, Seq};

use crate::{
    clock::nanos,
    source::{Primary, Source, Unavailable},
    verifier::{Inner, Verifier},
};

/// The maximum number of changes that are read at a time.
const CHANGES: usize = 1000;
/// The first pause after a renewal that was rejected because a change is being committed. It doubles with
/// each rejection.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// How long a stopping verifier waits for the leases of its subscribers, and then for the source.
const STOP_WAIT: Duration = Duration::from_secs(5);

impl<S: Primary> Verifier<S> {
    /// Keeps the lease: renews it every third of its length, applies changes and reports them. When
    /// `shutdown` resolves, [stops](Verifier::stop) the verifier. While the source is unavailable, it keeps
    /// trying, and the lease expires.
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

    /// Permanently stops verifying from the cache, and removes this verifier's row once no subscriber holds a lease.
    ///
    /// Takes at most ten seconds, even if leases are longer. If a subscriber's lease is still valid after
    /// five seconds, the row stays, and the next change waits for it as for a crashed verifier.
    pub async fn stop(&self) {
        let inner = &*self.0;
        inner.cache.stop();
        inner.notification.notify_one(); // a concurrent `run` ends too
        if let Some(end) = inner.cache.subscribed_until() {
            // No lease is granted after `cache.stop`. Sleeping by the runtime's clock is never too short:
            // unlike `self.clock`, it may not count the time in which the machine is suspended.
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
            // Renew sooner after a failure, so that the lease does not expire during a short outage.
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

    /// Renews the lease. If changes are missing, applies them first. Returns the change that was reported
    /// with the renewal.
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
                continue; // the cache was cleared meanwhile, so the renewal does not count
            }
            if self.catch_up().await? == applied {
                // The renewal was rejected although no change is missing: a change is being committed.
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Applies the missing changes. Then reports the change up to which this verifier and its subscribers
    /// have applied everything, unless it is `reported`. Returns that change.
    async fn report(&self, reported: Seq) -> Result<Seq, Unavailable> {
        self.catch_up().await?;
        let (.., applied) = self.cache.applied_everywhere(nanos(self.clock.elapsed()));
        if applied != reported {
            self.source.report(self.id(), applied).await?;
        }
        Ok(applied)
    }

    /// Applies all changes committed so far. Returns their position.
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
