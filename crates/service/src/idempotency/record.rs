//! The content of an idempotency record and of a replay.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroize as _;

#[derive(Debug)]
pub enum Outcome<T, R = T> {
    Created(T),
    /// An earlier request with the same Idempotency-Key created it. The value is as it was then.
    Replayed(R),
    /// An earlier request created it on a server of release 0.1.0, which recorded the HTTP response instead of the
    /// created value.
    ReplayedResponse(StoredResponse),
}

/// A response that release 0.1.0 recorded. Records expire after 24 hours.
#[derive(Debug, Deserialize)]
pub struct StoredResponse {
    pub status: u16,
    pub location: Option<String>,
    /// The JSON of what was created; it can contain a key.
    pub body: Secret,
}

/// The value that a replay returns for a created `T`: `T` itself, or a part of it. The idempotency record contains its
/// [`Snapshot`](Self::Snapshot).
pub trait Recorded<T>: Sized {
    /// The content of the record as JSON, before encryption. Each release must read the records that earlier releases
    /// wrote in the last 24 hours. A replay is rendered when it is sent, so after an upgrade that renders values
    /// differently, it differs from the first response.
    type Snapshot: Serialize + DeserializeOwned;

    fn snapshot(created: &T) -> Self::Snapshot;

    /// Returns `None` if the content is invalid.
    fn restore(snapshot: Self::Snapshot) -> Option<Self>;
}

/// A secret string in a snapshot: hidden by `Debug` and wiped on drop.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
