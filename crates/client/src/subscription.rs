//! The subscription of processes that verify from their own memory: [`Client::subscription`]. `tollkey-verifier` builds on
//! it what most want; its rules are in the OpenAPI document.

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

/// The subscription: [`Client::subscription`]. Its calls are sent once: when and whether again is for the subscriber to say, who
/// has a lease to mind.
#[derive(Debug, Clone)]
pub struct Subscription(Client);

impl Subscription {
    pub(crate) fn new(client: &Client) -> Self {
        Self(client.clone())
    }

    /// `POST /sync`: says up to where this process has forgotten what was changed, waits for news, and brings a lease,
    /// which counts from before this was sent.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tollkey_client::VerifierId;
    /// # async fn example(service: tollkey_client::Client, me: VerifierId) -> Result<(), tollkey_client::Error> {
    /// let first = service.subscription().poll(me).await?;
    /// // Forget what `first.changes` names, then:
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

    /// `POST /sync/lookup`: the key with this digest of its text, and everything a verification judges it by.
    ///
    /// ```no_run
    /// # use tollkey_client::Digest;
    /// # async fn example(service: tollkey_client::Client, presented: &str) -> Result<(), tollkey_client::Error> {
    /// let found = service.subscription().lookup(Digest::of(presented)).await?;
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
    /// The ID of this poll, 16 random hexadecimal digits, and those of the polls before it that had a response within the last
    /// two leases, and at least of the last 16, the newest first, at most 512. A poll without a response is repeated with the same ID and the same [`usage`](Self::usage), which the server
    /// then counts once.
    pub fn ids(
        mut self,
        id: impl Into<String>,
        previous: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.body.poll_id = Some(id.into());
        self.body.previous_poll_ids = previous.into_iter().map(Into::into).collect();
        self
    }

    /// The cursor of the last answer, once everything that came with it has been applied. Left out in the first poll of all and in no
    /// other.
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.body.cursor = Some(cursor.into());
        self
    }

    /// For how long the answer may wait for news, in whole milliseconds; not at all when not set. The call may take so much
    /// longer.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How keys were used since the last poll that had a response.
    pub fn usage(mut self, usage: impl IntoIterator<Item = Usage>) -> Self {
        self.body.usage = usage.into_iter().collect();
        self
    }

    /// The last poll of all: nothing is answered from memory any more.
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
