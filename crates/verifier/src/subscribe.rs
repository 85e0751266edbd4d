//! Subscribing: keeping a lease that nests in another verifier's.
//!
//! The rules that must not be loosened:
//!
//! - A lease is taken only after everything that came with it has been applied, and counts from before it was asked
//!   for.
//! - What is acknowledged has been forgotten already.
//! - A subscriber that has missed too much, or is told of another history, forgets everything.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tollkey_core::{Clock, Position, Usage, VerifierId};

use crate::{
    clock::nanos,
    follow::margin,
    source::{News, Poll, Unavailable, Upstream},
    verifier::{Settings, Verifier},
};

/// How long an answer may take beyond what it was asked to wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a poll that brought no lease: at first this long, then twice as long each time,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// but no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

impl<S: Upstream> Verifier<S> {
    /// A verifier that remembers nothing yet and asks `source` for everything, until [`Verifier::subscribe`] runs and
    /// has got it a lease. `id` must be new for each start of a process, and known to nobody else.
    #[must_use]
    pub fn subscriber(id: VerifierId, source: S, clock: Arc<dyn Clock>, settings: Settings) -> Self {
        Self::with(id, source, clock, settings, PATIENCE, Position::default())
    }

    /// Keeps the subscription. Ends when `shutdown` does; nothing is answered from memory any more then. While nobody
    /// answers it keeps trying; the lease then ends by itself.
    pub async fn subscribe(self, shutdown: impl Future<Output = ()>) {
        let inner = &*self.0;
        let mut shutdown = pin!(shutdown);
        let mut connected = true;
        let mut wait = Duration::ZERO; // nobody waits for news without a lease
        let mut pause = FIRST_PAUSE;
        while !inner.memory.is_stopped() {
            let polled = tokio::select! {
                () = &mut shutdown => break,
                polled = self.poll_once(wait) => polled,
            };
            if polled.is_ok() != connected {
                connected = polled.is_ok();
                if connected {
                    tracing::info!("subscribed again; keys are answered from memory");
                } else {
                    tracing::warn!("the subscription does not answer; when the lease ends, every verification asks");
                }
            }
            wait = match polled {
                Ok(News { lease, .. }) if !lease.is_zero() => {
                    pause = FIRST_PAUSE;
                    lease / 3
                }
                // More of the log is waiting.
                Ok(News { changes: Some(changes), .. }) if !changes.is_empty() => Duration::ZERO,
                Ok(_) | Err(Unavailable) => {
                    tokio::select! {
                        () = &mut shutdown => break,
                        () = sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    Duration::ZERO
                }
            };
        }
        self.unsubscribe().await;
    }

    /// One poll: applies what it brings and takes the lease that comes with it.
    async fn poll_once(&self, wait: Duration) -> Result<News, Unavailable> {
        let inner = &*self.0;
        let (position, _) = inner.memory.applied();
        let counted = Counted { verifier: self, usage: self.some_usage() };
        // With more to tell than fits, nobody waits.
        let wait = if counted.usage.len() < Poll::USAGE / 2 { wait } else { Duration::ZERO };
        let poll = Poll { subscriber: inner.id, position, wait, usage: counted.usage.clone() };
        let asked = inner.clock.elapsed();
        let news = inner.within(wait + PATIENCE, inner.source.poll(poll)).await?;
        counted.was_told();
        inner.failures.store(0, Ordering::Relaxed);
        inner.memory.follow(news.position, news.changes.as_deref());
        if !news.lease.is_zero() {
            // Only now that nothing is left of what was changed. Forgetting everything began a new generation.
            let (_, generation) = inner.memory.applied();
            let end = (asked + news.lease).saturating_sub(margin(news.lease));
            inner.memory.grant(generation, nanos(end));
        }
        Ok(news)
    }

    /// As much of what was counted as one poll takes along.
    fn some_usage(&self) -> Vec<Usage> {
        let inner = &*self.0;
        let mut usage = inner.ledger.take(inner.clock.now(), Poll::USAGE / 2);
        self.restore_usage(usage.split_off(usage.len().min(Poll::USAGE)));
        usage
    }

    /// Stops answering from memory, for good, and says so to who would wait for it, with what is left of the counts.
    async fn unsubscribe(&self) {
        let inner = &*self.0;
        inner.memory.stop();
        loop {
            let usage = self.some_usage();
            let last = usage.is_empty();
            if inner.within(PATIENCE, inner.source.leave(inner.id, usage)).await.is_err() {
                tracing::warn!("could not end the subscription; the next change waits for this verifier's lease");
                return;
            }
            if last {
                return;
            }
        }
    }
}

/// Counts under way to the source; put back unless they got there.
struct Counted<'a, S: Upstream> {
    verifier: &'a Verifier<S>,
    usage: Vec<Usage>,
}

impl<S: Upstream> Counted<'_, S> {
    fn was_told(mut self) {
        self.usage.clear();
    }
}

impl<S: Upstream> Drop for Counted<'_, S> {
    fn drop(&mut self) {
        self.verifier.restore_usage(std::mem::take(&mut self.usage));
    }
}
