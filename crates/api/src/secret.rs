//! A full key in a request or response.
//!
//! [`Secret`] hides its value from `Debug`, wipes it on drop, and is not `Serialize`, so that a program
//! cannot write it into a log or a file as JSON by accident:
//!
//! ```compile_fail
//! # use tollkey_api::Secret;
//! serde_json::to_string(&Secret::new("ck_test_EXAMPLE"));
//! ```
//!
//! ```compile_fail
//! #[derive(serde::Serialize)]
//! struct Job {
//!     key: tollkey_api::Secret,
//! }
//! ```
//!
//! A program that needs the value calls [`Secret::expose`]:
//!
//! ```
//! # use tollkey_api::Secret;
//! serde_json::to_string(Secret::new("ck_test_EXAMPLE").expose());
//!
//! #[derive(serde::Deserialize)]
//! struct Job {
//!     key: tollkey_api::Secret,
//! }
//! ```

use std::fmt;

use serde::{Deserialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A full key, in a request or in the response to its creation.
#[derive(Clone, PartialEq, Eq, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Creates a secret from this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret value.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}
impl From<&String> for Secret {
    fn from(text: &String) -> Self {
        Self(text.clone())
    }
}
impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
impl From<&Self> for Secret {
    fn from(secret: &Self) -> Self {
        secret.clone()
    }
}

/// Writes the secret into a request, or into the response to its creation. For
/// `#[serde(serialize_with = "…")]`.
///
/// # Errors
/// Those of the serializer.
pub(crate) fn write<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&secret.0)
}

/// Like [`write`], for an optional field.
///
/// # Errors
/// Those of the serializer.
pub(crate) fn write_option<S: Serializer>(
    secret: &Option<Secret>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => write(secret, serializer),
        None => serializer.serialize_none(),
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
