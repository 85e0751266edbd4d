//! The subscription of processes that cache keys and verify them locally: [`Client::subscription`]. `tollkey-verifier` is built
//! on it; the OpenAPI document has its rules.

use std::time::Duration;

use reqwest::Method;
use tollkey_api::sync::{LookupRequest, SyncRequest};
use tollkey_core::{Digest, VerifierId};

pub use tollkey_api::sync::{Change, KeyRecord, LookupResponse, SyncResponse, Usage};

use crate::{
    Client, Request,
    request::{Call, sends},
    retry::Repeat,
};

/// The subscription: [`Client::subscription`]. Its calls are sent once, because only the subscriber knows its lease and
/// can decide when to repeat them.
#[derive(Debug, Clone)]
pub struct Subscription(pub(crate) Client);

impl Subscription {
    /// `POST /sync`: reports the changes that this process has applied, waits for new ones, and renews the lease, which counts
    /// from before the request was sent.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tollkey_client::VerifierId;
    /// # async fn example(service: tollkey_client::Client, me: VerifierId) -> Result<(), tollkey_client::Error> {
    /// let first = service.subscription().poll(me).await?;
    /// // Evict the keys that `first.changes` names, then:
    /// let next = service.subscription().poll(me).cursor(first.cursor).wait(Duration::from_secs(1)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "sync")]
    pub fn poll(&self, subscriber: VerifierId) -> Poll {
        let call = Call::new(&self.0, Method::POST, "/api/v1/sync", &[])
            .for_service()
            .repeated(Repeat::Never);
        let body = SyncRequest {
            subscriber: subscriber.to_string(),
            ..SyncRequest::default()
        };
        Poll {
            call,
            wait: Duration::ZERO,
            body,
        }
    }

    /// `POST /sync/lookup`: returns the key with this SHA-256 and everything that a verification needs.
    ///
    /// ```no_run
    /// # use tollkey_client::Digest;
    /// # async fn example(service: tollkey_client::Client, presented: &str) -> Result<(), tollkey_client::Error> {
    /// let found = service.subscription().lookup(Digest::of_key(presented)).await?;
    /// println!("{}", found.key.is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "syncLookup")]
    pub fn lookup(&self, digest: Digest) -> Request<LookupResponse> {
        let call = Call::new(&self.0, Method::POST, "/api/v1/sync/lookup", &[])
            .for_service()
            .repeated(Repeat::Never);
        call.json(&LookupRequest {
            digest: digest.hex().to_string(),
        })
        .reading()
    }
}

/// One poll: [`Subscription::poll`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Poll {
    call: Call,
    wait: Duration,
    body: SyncRequest,
}

impl Poll {
    /// The ID of this poll, 16 random hexadecimal digits, and the IDs of previous polls that had a response: those of the last two
    /// leases and at least the last 16, newest first, at most 512. Repeat a poll without a response with the same ID and the same
    /// [`usage`](Self::usage), which the server then counts once.
    pub fn ids(
        mut self,
        id: impl Into<String>,
        previous: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.body.poll_id = Some(id.into());
        self.body.previous_poll_ids = previous.into_iter().map(Into::into).collect();
        self
    }

    /// The cursor of the last response, once all its changes have been applied. Omitted in the very first poll only.
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.body.cursor = Some(cursor.into());
        self
    }

    /// How long the server may wait for changes, in whole milliseconds; not at all when not set. The timeout of the call is
    /// extended by it.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How keys were used since the last poll that had a response.
    pub fn usage(mut self, usage: impl IntoIterator<Item = Usage>) -> Self {
        self.body.usage = usage.into_iter().collect();
        self
    }

    /// Makes this the last poll: this process no longer verifies from its cache.
    pub fn leave(mut self) -> Self {
        self.body.leave = true;
        self
    }

    fn request(mut self) -> Request<SyncResponse> {
        self.body.wait_ms = u32::try_from(self.wait.as_millis()).unwrap_or(u32::MAX);
        self.call.waiting(self.wait).json(&self.body).reading()
    }
}
sends!(Poll => SyncResponse);
