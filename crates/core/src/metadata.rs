//! What callers attach to a key: a JSON object we keep and give back.

use serde_json::{Map, Value};

use crate::Invalid;

/// A JSON object of at most 4 KiB, written compactly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct Metadata(Map<String, Value>);

impl Metadata {
    /// The most bytes of its compact JSON.
    pub const MAX_BYTES: usize = 4096;

    /// Takes an object.
    ///
    /// # Errors
    /// [`Invalid`] when its compact JSON is larger than [`Metadata::MAX_BYTES`] or holds a NUL character,
    /// which PostgreSQL cannot keep.
    pub fn new(object: Map<String, Value>) -> Result<Self, Invalid> {
        let metadata = Self(object);
        let text = metadata.to_json();
        if text.len() > Self::MAX_BYTES {
            return Err(Invalid::new(format!("must be at most {} bytes of JSON", Self::MAX_BYTES)));
        }
        if text.contains("\\u0000") {
            return Err(Invalid::new("must not have NUL characters"));
        }
        Ok(metadata)
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> &Map<String, Value> {
        &self.0
    }

    /// As compact JSON, the form it is stored in.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }
}
