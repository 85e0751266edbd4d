//! Looking up keys that are not cached, within bounds that keep a silent source or a flood of unknown keys from delaying
//! other requests.

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
    verifier::{Found, Inner},
};

/// After so many look-ups in a row without a response, the source counts as not responding. Not after the first: a closed
/// connection costs that much.
const FAILURES: u64 = 3;

impl<S: Source> Inner<S> {
    /// Looks up a key at the source; `None` if it is unknown.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        digest: Digest,
        requester: Requester,
    ) -> Result<Option<Found>, SourceError> {
        let (_, entry) = match self.runtime.get() {
            None => self.fetch_key(&digest, requester).await?,
            Some(runtime) => {
                let inner = Arc::clone(self);
                let fetched =
                    runtime.spawn(async move { inner.fetch_key(&digest, requester).await });
                // Canceled with the request; and with the runtime, which then fetches nothing any more.
                AbortOnDropHandle::new(fetched)
                    .await
                    .unwrap_or(Err(SourceError::Unavailable))?
            }
        };
        // An unknown key is not cached: it could be created a moment later.
        let elapsed = nanos(self.clock.elapsed());
        Ok(entry.map(|entry| Found { entry, elapsed }))
    }

    /// Fetches a key from the source, and caches it if that is safe.
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

    /// Sends a request to the source when it is the requester's turn. Fails if too many requests wait, or after the limit,
    /// which includes the wait: a flood of unknown keys slows the look-ups of its own requester, and nothing else.
    ///
    /// While the source does not respond, one look-up at a time probes whether it does again, and all others fail
    /// immediately. In a subscriber without a lease, all fail immediately while its poll has no response: the poll is the
    /// probe. Returns the response with the generation of the cache at which it was requested.
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
            // It was not sent, because too many wait. The source rejects them, so it can be reached.
            return Err(SourceError::Rejected);
        }
        match &response {
            Ok(_) | Err(SourceError::Rejected | SourceError::Unreadable) => {
                self.failures.store(0, Ordering::Relaxed)
            }
            Err(SourceError::Unavailable) => {
                // After a long wait in the queue, too little of the limit was left for the source to respond.
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
    /// Fetches a service key from the source, and caches it if that is safe.
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
