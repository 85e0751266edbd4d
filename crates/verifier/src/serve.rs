//! Serving subscribers: a verifier of a store is what verifiers without one subscribe to.
//!
//! A poll is an acknowledgement, taken down as it comes, and a question, answered when there is something new. The
//! rules are in `subscribers.rs`.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tollkey_core::{Digest, Usage, VerifierId};

use crate::{
    clock::nanos,
    source::{News, Poll, Primary, Snapshot, Source, Unavailable, Upstream},
    verifier::{Requester, Verifier},
};

/// How many changes one answer brings.
const CHANGES: usize = 500;

impl<S: Primary> Verifier<S> {
    /// Looks a key up for a subscriber: from the cache, or else from the source. No use of the key is counted; the
    /// subscriber does that.
    ///
    /// # Errors
    /// [`Unavailable`] when the key is not cached and the source does not respond, or too many look-ups of this requester wait.
    pub async fn find_for(&self, requester: Requester, digest: &Digest) -> Result<Snapshot, Unavailable> {
        let inner = &*self.0;
        // The position is read first. Whatever is found afterwards under a lease shows every change up to it.
        let (applied, _) = inner.memory.applied();
        match inner.memory.recall(digest, nanos(inner.clock.elapsed())) {
            Some(entry) => {
                inner.counters.hits.count();
                Ok(Snapshot { seq: applied.seq, record: Some(entry.record.clone()) })
            }
            None => inner.fetch(digest, requester).await.map(|(snapshot, _)| snapshot),
        }
    }
}

impl<S: Primary> Source for Verifier<S> {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, Unavailable> {
        self.find_for(Requester::Service(Arc::default()), digest).await
    }
}

impl<S: Primary> Upstream for Verifier<S> {
    async fn poll(&self, poll: Poll) -> Result<News, Unavailable> {
        let inner = &*self.0;
        if inner.memory.acknowledge(poll.subscriber, poll.position, nanos(inner.clock.elapsed())) {
            inner.poked.notify_one(); // there is more to report
        }
        let wait = poll.wait.min(inner.lease / 3);
        if wait > Duration::ZERO {
            let mut applied = inner.applied.subscribe();
            // Whether it came or not, what there is by then is answered.
            let _ = timeout(wait, applied.wait_for(|applied| *applied != poll.position)).await;
        }
        if inner.memory.is_stopped() {
            return Err(Unavailable);
        }
        let news = inner.memory.serve(poll.subscriber, poll.position, CHANGES, nanos(inner.clock.elapsed()));
        let news = news.map_err(|_| {
            tracing::warn!("there are too many subscribers; one more is refused");
            Unavailable
        })?;
        // Only now that it will not be told again.
        self.restore_usage(poll.usage);
        Ok(news)
    }

    async fn leave(&self, subscriber: VerifierId, usage: Vec<Usage>) -> Result<(), Unavailable> {
        self.restore_usage(usage);
        self.0.memory.leave(subscriber);
        self.0.poked.notify_one();
        Ok(())
    }
}
