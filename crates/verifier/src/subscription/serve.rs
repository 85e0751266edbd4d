//! Serving subscribers: a verifier of a store is what verifiers without one subscribe to.
//!
//! A poll acknowledges changes, which is recorded when it arrives, and waits for new ones. The rules are in
//! `subscribers.rs`.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tollkey_core::Digest;

use crate::{
    cache::Acknowledged,
    clock::nanos,
    requester::Requester,
    source::{Leave, News, Poll, PollError, Primary, Snapshot, Source, SourceError, Upstream},
    subscription::subscribers::{NoLease, SharedId},
    verifier::Verifier,
};

/// The most changes in one response.
const CHANGES: usize = 500;
/// The longest a poll waits once polls are released. Without any wait, a subscriber that has no other replica would poll
/// without a pause.
const RELEASED_WAIT: Duration = Duration::from_millis(100);

impl<S: Primary> Verifier<S> {
    /// Looks a key up for a subscriber: from the cache, or else from the source. No use of the key is counted; the
    /// subscriber does that.
    ///
    /// # Errors
    /// When the key is not cached: [`SourceError::Unavailable`] if the source does not respond, or too many look-ups of this
    /// requester wait; [`SourceError::Unreadable`] if the key cannot be read.
    pub async fn find_for(
        &self,
        requester: Requester,
        digest: &Digest,
    ) -> Result<Snapshot, SourceError> {
        let inner = &*self.0;
        // The position is read first. Whatever is found afterwards under a lease shows every change up to it.
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

    /// Lets the polls of subscribers return immediately, and those that arrive later after 100 ms at the latest: for a
    /// server that stops soon, so that subscribers move to another one. Leases are granted as before.
    pub fn release_polls(&self) {
        self.0.releases_polls.send_replace(true);
    }

    /// The error for a subscriber whose ID another process uses as well. What is applied everywhere is reported anew: no
    /// acknowledgement under that ID counts any more.
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
    async fn poll(&self, poll: Poll) -> Result<News, PollError> {
        let inner = &*self.0;
        let ids = poll.ids.as_ref();
        let now = || nanos(inner.clock.elapsed());
        match inner
            .cache
            .acknowledge(poll.subscriber, ids, poll.position, now())
        {
            Ok(Acknowledged::More) => inner.notification.notify_one(), // there is more to report
            Ok(Acknowledged::NoMore) => {}
            Ok(Acknowledged::Late) => return Ok(News::none(poll.position)),
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
            // Whatever ends the wait, the response has the changes that are known by then.
            tokio::select! {
                _ = applied.wait_for(|applied| *applied != poll.position) => {}
                _ = released.wait_for(|released| *released && !is_released) => {}
                () = sleep(wait) => {}
            }
        }
        if inner.cache.is_stopped() {
            return Err(PollError::Rejected);
        }
        let (news, counts) = inner
            .cache
            .serve(poll.subscriber, ids, poll.position, CHANGES, now())
            .map_err(|why| match why {
                NoLease::Full => {
                    tracing::warn!("there are too many subscribers; one more is rejected");
                    PollError::Rejected
                }
                NoLease::SharedId => self.shared_id(SharedId),
            })?;
        // Only now that the subscriber will not send it again.
        if counts {
            inner.ledger.receive(poll.usage);
        }
        Ok(news)
    }

    async fn leave(&self, leave: Leave) -> Result<(), PollError> {
        let inner = &*self.0;
        let left = inner.cache.leave(
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
