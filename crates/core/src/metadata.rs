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
    /// The most levels of nesting. Readers of JSON give up at some depth (serde_json at 128), and metadata is printed
    /// inside other objects: in answers, and in the audit log.
    pub const MAX_DEPTH: usize = 64;

    /// Takes an object.
    ///
    /// # Errors
    /// [`Invalid`] when its compact JSON is larger than [`Metadata::MAX_BYTES`], it nests deeper than
    /// [`Metadata::MAX_DEPTH`] or holds a NUL character, which PostgreSQL cannot keep.
    pub fn new(object: Map<String, Value>) -> Result<Self, Invalid> {
        let metadata = Self(object);
        if metadata.to_json().len() > Self::MAX_BYTES {
            return Err(Invalid::new(format!("must be at most {} bytes of JSON", Self::MAX_BYTES)));
        }
        check_object(&metadata.0, Self::MAX_DEPTH)?;
        Ok(metadata)
    }

    /// This after a JSON merge patch (RFC 7396): members that are null go, objects are merged, others replaced.
    ///
    /// # Errors
    /// [`Invalid`] as for [`Metadata::new`].
    pub fn merged(&self, patch: Map<String, Value>) -> Result<Self, Invalid> {
        let mut merged = Value::Object(self.0.clone());
        json_patch::merge(&mut merged, &Value::Object(patch));
        match merged {
            Value::Object(object) => Self::new(object),
            _ => Err(Invalid::new("must be an object")),
        }
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

fn check_object(object: &Map<String, Value>, levels: usize) -> Result<(), Invalid> {
    let Some(below) = levels.checked_sub(1) else { return Err(too_deep()) };
    object.iter().try_for_each(|(name, value)| {
        check_text(name)?;
        check(value, below)
    })
}

fn check(value: &Value, levels: usize) -> Result<(), Invalid> {
    match value {
        Value::Object(object) => check_object(object, levels),
        Value::Array(items) => {
            let Some(below) = levels.checked_sub(1) else { return Err(too_deep()) };
            items.iter().try_for_each(|item| check(item, below))
        }
        Value::String(text) => check_text(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Looks at the text itself: in its JSON a NUL and a written backslash followed by `u0000` look alike.
fn check_text(text: &str) -> Result<(), Invalid> {
    if text.contains('\0') { Err(Invalid::new("must not have NUL characters")) } else { Ok(()) }
}

fn too_deep() -> Invalid {
    Invalid::new(format!("must nest at most {} levels deep", Metadata::MAX_DEPTH))
}
