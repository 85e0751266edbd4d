//! The content of an idempotency record and of a replay.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroize as _;

/// The outcome of a request that creates something.
#[derive(Debug)]
pub enum Outcome<T, R = T> {
    /// It was created now.
    Created(T),
    /// An earlier request with the same Idempotency-Key created it. This is the state when it was created.
    Replayed(R),
    /// An earlier request created it, under release 0.1.0, which recorded the response.
    ReplayedResponse(StoredResponse),
}

/// A response that release 0.1.0 recorded. Records expire after 24 hours.
#[derive(Debug, Deserialize)]
pub struct StoredResponse {
    /// The HTTP status.
    pub status: u16,
    /// The value of `Location`.
    pub location: Option<String>,
    /// The JSON of what was created; it can contain a key.
    pub body: Secret,
}

/// The content of the idempotency record of a created `T`, which a replay returns: `T` itself, or less.
pub trait Recorded<T>: Sized {
    /// The JSON format before it is encrypted. Changed fields must still read the records of the last 24 hours. The API
    /// renders a replay again, so a release that renders differently changes the replays of 24 hours.
    type Snapshot: Serialize + DeserializeOwned;

    /// Returns the record of a created value.
    fn snapshot(created: &T) -> Self::Snapshot;

    /// Reads the record, or returns `None` if it is invalid.
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

    /// Returns the secret.
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
