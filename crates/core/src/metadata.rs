//! What callers attach to a key: a JSON object we keep and give back.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::{Invalid, heap};

/// A JSON object of at most 4 KiB, kept as the text it is stored as.
///
/// Parsed, an object can take 35 times as much memory, and a verification does not need it: it is parsed when it is
/// read ([`Metadata::object`]). Two objects are equal when they have the same fields, whatever their order.
#[derive(Debug, Clone)]
pub struct Metadata(Box<str>);

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

    /// Reads the JSON of an object, as [`Metadata::as_json`] returns it. The text is kept as it is; no object is built.
    ///
    /// # Errors
    /// [`Invalid`] as for [`Metadata::new`], and for what is not the JSON of an object.
    pub fn parse(json: &str) -> Result<Self, Invalid> {
        if json.len() > Self::MAX_BYTES {
            // Written with white space, it can be small enough without.
            return Self::new(serde_json::from_str(json).map_err(|_| not_an_object())?);
        }
        check(json)?;
        Ok(Self(json.into()))
    }

    /// This after a JSON merge patch (RFC 7396): members that are null go, objects are merged, others replaced.
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

    /// The object. Parses the text: keep the result rather than call this again.
    #[must_use]
    pub fn object(&self) -> Map<String, Value> {
        // It was read to its end when it was taken, by the same parser.
        serde_json::from_str(&self.0).unwrap_or_default()
    }

    /// As JSON, the form it is stored in.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Estimates the heap it takes, in bytes.
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

/// Written as the text it is.
#[cfg(feature = "serde")]
impl serde::Serialize for Metadata {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &serde_json::value::RawValue =
            serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// Read by [`Metadata::parse`], from JSON only.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<serde_json::value::RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(D::Error::custom)
    }
}

/// Checks that a text is the JSON of an object which does not nest too deep and has no NUL character. Builds nothing.
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

/// Checks one value, which can have so many `levels` of nesting.
struct Check<'a> {
    levels: usize,
    outermost: bool,
    /// The rule that the value breaks.
    broken: &'a mut Option<Invalid>,
}

impl Check<'_> {
    /// Checks a value inside this one.
    fn inner(&mut self) -> Check<'_> {
        Check {
            levels: self.levels - 1,
            outermost: false,
            broken: self.broken,
        }
    }

    /// Checks the name of a field.
    fn name(&mut self) -> Check<'_> {
        Check {
            levels: 0,
            outermost: false,
            broken: self.broken,
        }
    }

    /// Ends reading because of a broken rule.
    fn fail<E: Error>(&mut self, rule: Invalid) -> E {
        *self.broken = Some(rule);
        E::custom("breaks a rule of metadata")
    }

    /// A value that is not an object.
    fn other<E: Error>(mut self) -> Result<(), E> {
        if self.outermost {
            Err(self.fail(not_an_object()))
        } else {
            Ok(())
        }
    }

    fn nests<E: Error>(&mut self) -> Result<(), E> {
        if self.levels > 0 {
            return Ok(());
        }
        Err(self.fail(Invalid::new(format!(
            "must have at most {} levels of nesting",
            Metadata::MAX_DEPTH
        ))))
    }

    /// Checks the text itself: in its JSON a NUL and a written backslash followed by `u0000` look alike.
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
        self.other()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.other()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.other()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.other()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.other()
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        self.text(text)?;
        self.other()
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        if self.outermost {
            return Err(self.fail(not_an_object()));
        }
        self.nests()?;
        while items.next_element_seed(self.inner())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.nests()?;
        while fields.next_key_seed(self.name())?.is_some() {
            fields.next_value_seed(self.inner())?;
        }
        Ok(())
    }
}

fn not_an_object() -> Invalid {
    Invalid::new("must be an object")
}
