//! Serving subscribers: verifiers without a store subscribe to a verifier that has one.
//!
//! The changes that a poll acknowledges are recorded when it arrives; then it waits for new ones. The rules are in
//! `subscribers.rs`.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tollkey_core::Digest;

use crate::{
    cache::Acknowledged,
    clock::nanos,
    requester::Requester,
    source::{
        EndSubscription, Poll, PollError, PollResponse, Primary, Snapshot, Source, SourceError,
        Upstream,
    },
    subscription::subscribers::{NoLease, SharedId},
    verifier::Verifier,
};

/// The maximum number of changes in a response.
const CHANGES: usize = 500;
/// The longest wait of a poll that arrives after [`Verifier::release_polls`]. Without a wait, a subscriber that has no other
/// replica would poll without a pause.
const RELEASED_WAIT: Duration = Duration::from_millis(100);

impl<S: Primary> Verifier<S> {
    /// Looks up a key for a subscriber in the cache, or else at the source. Does not count a use of the key, because the
    /// subscriber counts it.
    ///
    /// # Errors
    /// If the key is not cached: [`SourceError::Unavailable`] if the source does not respond or too many look-ups wait;
    /// [`SourceError::Unreadable`] if the key cannot be read.
    pub async fn find_for(
        &self,
        requester: Requester,
        digest: &Digest,
    ) -> Result<Snapshot, SourceError> {
        let inner = &*self.0;
        // The position is read first: an entry that is read afterwards under a lease includes every change up to it.
        let (applied, _) = inner.cache.applied();
        match inner.cache.get(digest, nanos(inner.clock.elapsed())) {
            Some(entry) => {
                inner.counters.hits.count();
                Ok(Snapshot {
                    seq: applied.seq,
                    record: Some(entry.record.clone()),
                })
            }
            None => Ok(inner.fetch_key(digest, requester).await?.0),
        }
    }

    /// Makes the polls of subscribers return immediately, and later polls after at most 100 ms, so that subscribers move to
    /// another server before this one stops. Leases are still granted.
    pub fn release_polls(&self) {
        self.0.releases_polls.send_replace(true);
    }

    /// Returns the error for a subscriber whose ID another process uses too. Also wakes up the report of applied changes,
    /// because acknowledgements under that ID no longer count.
    fn shared_id(&self, _: SharedId) -> PollError {
        tracing::warn!(
            "two processes use one subscriber ID, as clones of a machine do; both are told to take a new ID"
        );
        self.0.notification.notify_one();
        PollError::SharedId
    }
}

impl<S: Primary> Source for Verifier<S> {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, SourceError> {
        self.find_for(Requester::Service(Arc::default()), digest)
            .await
    }
}

impl<S: Primary> Upstream for Verifier<S> {
    async fn poll(&self, poll: Poll) -> Result<PollResponse, PollError> {
        let inner = &*self.0;
        let ids = poll.ids.as_ref();
        let now = || nanos(inner.clock.elapsed());
        match inner
            .cache
            .acknowledge(poll.subscriber, ids, poll.position, now())
        {
            Ok(Acknowledged::More) => inner.notification.notify_one(), // there is more to report
            Ok(Acknowledged::NoMore) => {}
            Ok(Acknowledged::Late) => return Ok(PollResponse::unchanged(poll.position)),
            Err(shared) => return Err(self.shared_id(shared)),
        }
        let (mut applied, mut released) =
            (inner.applied.subscribe(), inner.releases_polls.subscribe());
        let is_released = *released.borrow();
        let wait = poll.wait.min(if is_released {
            RELEASED_WAIT
        } else {
            inner.lease / 3
        });
        if wait > Duration::ZERO {
            // The response has the changes that are known when the wait ends, for any reason.
            tokio::select! {
                _ = applied.wait_for(|applied| *applied != poll.position) => {}
                _ = released.wait_for(|released| *released && !is_released) => {}
                () = sleep(wait) => {}
            }
        }
        if inner.cache.is_stopped() {
            return Err(PollError::Rejected);
        }
        let (response, counts) = inner
            .cache
            .serve(poll.subscriber, ids, poll.position, CHANGES, now())
            .map_err(|why| match why {
                NoLease::Full => {
                    tracing::warn!("there are too many subscribers; one more is rejected");
                    PollError::Rejected
                }
                NoLease::SharedId => self.shared_id(SharedId),
            })?;
        // Only after the last possible error: after an error, the subscriber sends the usage again.
        if counts {
            inner.ledger.receive(poll.usage);
        }
        Ok(response)
    }

    async fn end_subscription(&self, leave: EndSubscription) -> Result<(), PollError> {
        let inner = &*self.0;
        let left = inner.cache.end_subscription(
            leave.subscriber,
            leave.ids.as_ref(),
            nanos(inner.clock.elapsed()),
        );
        if left.map_err(|shared| self.shared_id(shared))? {
            inner.ledger.receive(leave.usage);
        }
        inner.notification.notify_one();
        Ok(())
    }
}
