//! The metadata of a key: a JSON object that is stored and returned with it.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::{Invalid, heap};

/// A JSON object of at most 4 KiB, in the form of its stored text.
///
/// A parsed object can take 35 times as much memory, and verifications do not need it, so the text is parsed only by
/// [`Metadata::object`]. Two objects are equal if they have the same fields, in any order.
#[derive(Debug, Clone)]
pub struct Metadata(Box<str>);

impl Metadata {
    /// The maximum size of its compact JSON in bytes.
    pub const MAX_BYTES: usize = 4096;
    /// The maximum number of levels of nesting. Parsers of JSON have a limit (serde_json: 128), and metadata is nested
    /// in other objects: in responses and in the audit log.
    pub const MAX_DEPTH: usize = 64;

    /// Creates metadata from an object.
    ///
    /// # Errors
    /// [`Invalid`] if its compact JSON is larger than [`Metadata::MAX_BYTES`], if it nests deeper than
    /// [`Metadata::MAX_DEPTH`], or if it contains a NUL character, which PostgreSQL cannot store.
    pub fn new(object: Map<String, Value>) -> Result<Self, Invalid> {
        let json = Value::Object(object).to_string();
        if json.len() > Self::MAX_BYTES {
            return Err(Invalid::new(format!(
                "must be at most {} bytes of JSON",
                Self::MAX_BYTES
            )));
        }
        check(&json)?;
        Ok(Self(json.into()))
    }

    /// Reads the JSON of an object, as [`Metadata::as_json`] returns it. The text is checked and kept without building
    /// an object.
    ///
    /// # Errors
    /// [`Invalid`] as for [`Metadata::new`], and for a text that is not a JSON object.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        if json.len() > Self::MAX_BYTES {
            // It can be small enough without white space.
            return Self::new(serde_json::from_str(json).map_err(|_| not_an_object())?);
        }
        check(json)?;
        Ok(Self(json.into()))
    }

    /// Applies a JSON merge patch (RFC 7396) and returns the result.
    ///
    /// # Errors
    /// [`Invalid`] as for [`Metadata::new`].
    pub fn merged(&self, patch: Map<String, Value>) -> Result<Self, Invalid> {
        let mut merged = Value::Object(self.object());
        json_patch::merge(&mut merged, &Value::Object(patch));
        match merged {
            Value::Object(object) => Self::new(object),
            _ => Err(not_an_object()),
        }
    }

    /// Parses the text and returns the object. Keep the result if it is needed again.
    #[must_use]
    pub fn object(&self) -> Map<String, Value> {
        // This cannot fail: the same parser read the text when the metadata was created.
        serde_json::from_str(&self.0).unwrap_or_default()
    }

    /// Returns the JSON, as it is stored.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Estimates its heap memory in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        heap::allocation(self.0.len())
    }
}

impl Default for Metadata {
    /// An object without fields.
    fn default() -> Self {
        Self("{}".into())
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || self.object() == other.object()
    }
}

impl Eq for Metadata {}

/// Writes the text unchanged.
impl serde::Serialize for Metadata {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &serde_json::value::RawValue =
            serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// Reads JSON with [`Metadata::parse`]. Other formats are errors.
impl<'de> serde::Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(D::Error::custom)
    }
}

/// Checks, without building a value, that a text is a JSON object that does not nest too deep and has no NUL character.
fn check(json: &str) -> Result<(), Invalid> {
    let mut broken = None;
    let mut reader = serde_json::Deserializer::from_str(json);
    let read = Check {
        levels: Metadata::MAX_DEPTH,
        outermost: true,
        broken: &mut broken,
    }
    .deserialize(&mut reader);
    match (broken, read.and_then(|()| reader.end())) {
        (Some(rule), _) => Err(rule),
        (None, Err(_)) => Err(not_an_object()),
        (None, Ok(())) => Ok(()),
    }
}

/// Checks one value, which can have at most this many `levels` of nesting.
struct Check<'a> {
    levels: usize,
    outermost: bool,
    /// The rule that the value breaks.
    broken: &'a mut Option<Invalid>,
}

impl Check<'_> {
    /// Returns the check of a value inside this one, with at most this many levels.
    fn inner(&mut self, levels: usize) -> Check<'_> {
        Check {
            levels,
            outermost: false,
            broken: self.broken,
        }
    }

    /// Records the broken rule, and returns an error that ends the parsing.
    fn fail<E: Error>(&mut self, rule: Invalid) -> E {
        *self.broken = Some(rule);
        E::custom("breaks a rule of metadata")
    }

    /// Accepts a value that is not an object, unless it is the outermost value.
    fn check_not_outermost<E: Error>(mut self) -> Result<(), E> {
        if self.outermost {
            Err(self.fail(not_an_object()))
        } else {
            Ok(())
        }
    }

    fn check_depth<E: Error>(&mut self) -> Result<(), E> {
        if self.levels > 0 {
            return Ok(());
        }
        Err(self.fail(Invalid::new(format!(
            "must have at most {} levels of nesting",
            Metadata::MAX_DEPTH
        ))))
    }

    /// Checks the decoded string, because JSON text can contain `\u0000` without a NUL character, as part of `\\u0000`.
    fn text<E: Error>(&mut self, text: &str) -> Result<(), E> {
        if text.contains('\0') {
            Err(self.fail(Invalid::new("must not contain NUL characters")))
        } else {
            Ok(())
        }
    }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.check_not_outermost()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.check_not_outermost()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.check_not_outermost()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.check_not_outermost()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.check_not_outermost()
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        self.text(text)?;
        self.check_not_outermost()
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        if self.outermost {
            return Err(self.fail(not_an_object()));
        }
        self.check_depth()?;
        let levels = self.levels - 1;
        while items.next_element_seed(self.inner(levels))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.check_depth()?;
        let levels = self.levels - 1;
        while fields.next_key_seed(self.inner(0))?.is_some() {
            fields.next_value_seed(self.inner(levels))?;
        }
        Ok(())
    }
}

fn not_an_object() -> Invalid {
    Invalid::new("must be an object")
}
