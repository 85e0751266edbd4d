//! Waiting until a key can no longer be used, for requests that continue after they were authorized.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tollkey_core::{Denial, KeyContext, Seq, Timestamp, decide_usable};

use crate::{
    cache::Entry,
    clock::nanos,
    requester::Requester,
    source::{Source, SourceError},
    verdict::CachedKey,
    verifier::{Inner, Verifier},
};

/// The pause before a key is looked up again after a failed look-up, or while there is no lease: only a lease
/// guarantees that changes are notified.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before the wall clock is read again, because it may have been set.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

impl<S: Source> Verifier<S> {
    /// Waits until this key can no longer be used for any request: it is revoked, expired or suspended, or its application
    /// is disabled. Returns the denial. Under a lease it resolves as soon as a verification would deny the key. While the
    /// source does not respond, it keeps waiting.
    pub async fn until_unusable(&self, key: &CachedKey) -> Denial {
        self.0.until_unusable(&key.0).await
    }
}

impl<S: Source> Inner<S> {
    async fn until_unusable(&self, entry: &Entry) -> Denial {
        loop {
            // Watch before reading, so that no change in between is missed.
            let (mut changed, applied) = self.cache.watch(&entry.record.key);
            let pause = match self.current(entry).await {
                Ok(None) => return Denial::UnknownKey,
                Ok(Some((seq, current))) => {
                    match decide_usable(&current.record, self.clock.now()) {
                        Err(denial) => return denial,
                        // The record may not include a change that is applied here.
                        Ok(())
                            if seq < applied
                                || !self.cache.has_lease(nanos(self.clock.elapsed())) =>
                        {
                            PAUSE
                        }
                        Ok(()) => until_expiration(&current.record, self.clock.now()),
                    }
                }
                Err(_) => PAUSE,
            };
            // Read the key again, with or without a notification.
            let _ = timeout(pause, changed.changed()).await;
        }
    }

    /// Returns the current key and the change up to which it is current, or `None` if it is unknown.
    async fn current(&self, entry: &Entry) -> Result<Option<(Seq, Arc<Entry>)>, SourceError> {
        let (applied, _) = self.cache.applied();
        if let Some(current) = self.cache.get(&entry.digest, nanos(self.clock.elapsed())) {
            return Ok(Some((applied.seq, current)));
        }
        let requester = Requester::Account(entry.record.key.account_id.clone());
        let (snapshot, current) = self.fetch_key(&entry.digest, requester).await?;
        Ok(current.map(|current| (snapshot.seq, current)))
    }
}

/// Returns the time until the key expires, at most [`LONGEST_PAUSE`].
fn until_expiration(record: &KeyContext, now: Timestamp) -> Duration {
    let left = record
        .key
        .expiration()
        .map(|expires_at| expires_at.duration_since(now));
    let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
    // One millisecond longer, so that the key has expired by then.
    left.map_or(LONGEST_PAUSE, |left| {
        (left + Duration::from_millis(1)).min(LONGEST_PAUSE)
    })
}
