//! Looking up keys that are not cached. Look-ups are bounded, so that a source that does not respond or a flood of unknown
//! keys does not delay other requests.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_util::task::AbortOnDropHandle;
use tollkey_core::{Digest, ServiceKeyId};
use tollkey_fair::Priority;

use crate::{
    cache::{Entry, Generation},
    clock::nanos,
    requester::Requester,
    source::{Primary, Snapshot, Source, SourceError, Unavailable},
    stats::count,
    verifier::{Inner, LookUpResult},
};

/// The number of consecutive look-ups without a response after which the source counts as not responding. More than one,
/// because a closed connection fails one look-up.
const FAILURES: u64 = 3;

impl<S: Source> Inner<S> {
    /// Looks up a key at the source; `None` if it is unknown.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        digest: Digest,
        requester: Requester,
    ) -> Result<Option<LookUpResult>, SourceError> {
        let (_, entry) = match self.runtime.get() {
            None => self.fetch_key(&digest, requester).await?,
            Some(runtime) => {
                let inner = Arc::clone(self);
                let fetched =
                    runtime.spawn(async move { inner.fetch_key(&digest, requester).await });
                // The task is canceled with the request, and fails when its runtime is shut down.
                AbortOnDropHandle::new(fetched)
                    .await
                    .unwrap_or(Err(SourceError::Unavailable))?
            }
        };
        // An unknown key is not cached, because it could be created a moment later.
        let elapsed = nanos(self.clock.elapsed());
        Ok(entry.map(|entry| LookUpResult { entry, elapsed }))
    }

    /// Fetches a key from the source, and caches it if the response is fresh.
    pub(crate) async fn fetch_key(
        &self,
        digest: &Digest,
        requester: Requester,
    ) -> Result<(Snapshot, Option<Arc<Entry>>), SourceError> {
        let (snapshot, generation) = self.fetch(self.source.find(digest), requester).await?;
        let Some(record) = snapshot.record.clone() else {
            return Ok((snapshot, None));
        };
        let entry = self.cache.insert_fetched(
            digest,
            snapshot.seq,
            generation,
            record,
            nanos(self.clock.elapsed()),
        );
        Ok((snapshot, Some(entry)))
    }

    /// Sends a request to the source when it is the requester's turn. Returns the response with the generation of the cache
    /// in which it was requested. Fails if too many requests wait, or after `look_up_limit`, which includes the wait.
    ///
    /// While the source does not respond, one look-up at a time probes it, and all others fail immediately. In a subscriber
    /// without a lease, the poll is the probe: all look-ups fail immediately while it has no response.
    async fn fetch<T>(
        &self,
        request: impl Future<Output = Result<T, SourceError>>,
        requester: Requester,
    ) -> Result<(T, Generation), SourceError> {
        count(&self.counters.misses);
        let response = self.send(request, requester).await;
        response.inspect_err(|_| count(&self.counters.unavailable))
    }

    /// Fails if this is a subscriber without a lease whose poll has no response yet.
    fn check_polls(&self, now: Duration) -> Result<(), SourceError> {
        let (is_overdue, is_stalled) = (
            self.poll_watch.is_overdue(now),
            self.poll_watch.is_stalled(now),
        );
        if !(is_overdue || is_stalled)
            || self.cache.lease_end() > nanos(now)
            || self.cache.is_stopped()
        {
            return Ok(());
        }
        if is_stalled {
            self.poll_watch.log_stalled(now);
        }
        if is_overdue {
            Err(SourceError::Unavailable)
        } else {
            Ok(())
        }
    }

    async fn send<T>(
        &self,
        request: impl Future<Output = Result<T, SourceError>>,
        requester: Requester,
    ) -> Result<(T, Generation), SourceError> {
        let began_at = self.clock.elapsed();
        self.check_polls(began_at)?;
        let fails = self.failures.load(Ordering::Relaxed) >= FAILURES;
        let _probe = if fails {
            Some(
                self.probe
                    .try_acquire()
                    .map_err(|_| SourceError::Unavailable)?,
            )
        } else {
            None
        };
        let mut sent_at = None;
        let response = self.within(self.look_up_limit, async {
            let look_ups = self.look_ups.of(&requester);
            let _permit = look_ups
                .acquire(requester, Priority::Normal)
                .await
                .map_err(|_| SourceError::Unavailable)?;
            sent_at = Some(self.clock.elapsed());
            let generation = self.cache.generation();
            Ok((request.await?, generation))
        });
        let response = response.await;
        if sent_at.is_some() {
            self.rejects.store(
                matches!(response, Err(SourceError::Rejected)),
                Ordering::Relaxed,
            );
        } else if response.is_err() && self.rejects.load(Ordering::Relaxed) {
            // Not sent because too many look-ups wait. The source rejected the last one, so it can be reached.
            return Err(SourceError::Rejected);
        }
        match &response {
            Ok(_) | Err(SourceError::Rejected | SourceError::Unreadable) => {
                self.failures.store(0, Ordering::Relaxed)
            }
            Err(SourceError::Unavailable) => {
                // After a long wait in the queue, a timeout does not count: little time was left for the source to respond.
                let limit_at = began_at + self.look_up_limit;
                if sent_at.is_some_and(|at| {
                    self.clock.elapsed() < limit_at || at < began_at + self.look_up_limit / 2
                }) {
                    count(&self.failures);
                }
            }
        }
        response
    }
}

impl<S: Primary> Inner<S> {
    /// Fetches a service key from the source, and caches it if the response is fresh.
    pub(crate) async fn fetch_service_key(
        &self,
        digest: &Digest,
        requester: Requester,
    ) -> Result<Option<ServiceKeyId>, Unavailable> {
        let (snapshot, generation) = self
            .fetch(self.source.find_service_key(digest), requester)
            .await?;
        if let Some(id) = snapshot.id {
            self.cache
                .insert_fetched_service_key(digest, snapshot.seq, generation, id);
        }
        Ok(snapshot.id)
    }
}
