//! Enum values in responses, which a newer server can extend.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, IntoDeserializer, Visitor,
        value::{Error as ValueError, StrDeserializer},
    },
};

/// An enum value in a response. A newer server can send a value that this release does not know; it is kept
/// as a string.
///
/// ```
/// use tollkey_api::Open;
/// use tollkey_core::Status;
///
/// let status: Open<Status> = serde_json::from_str(r#""active""#)?;
/// assert!(status == Status::Active);
///
/// let newer: Open<Status> = serde_json::from_str(r#""on_hold""#)?;
/// assert_eq!(newer.known(), None);
/// assert_eq!(newer.to_string(), "on_hold");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Open<T> {
    /// A value that this release knows.
    Known(T),
    /// Another value.
    Unknown(String),
}

impl<T> Open<T> {
    /// Returns the value if this release knows it.
    #[must_use]
    pub fn known(&self) -> Option<T>
    where
        T: Copy,
    {
        match self {
            Self::Known(value) => Some(*value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T: AsRef<str>> Open<T> {
    /// The value in JSON.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(value) => value.as_ref(),
            Self::Unknown(text) => text,
        }
    }
}

impl<T> From<T> for Open<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for Open<T> {
    fn eq(&self, value: &T) -> bool {
        matches!(self, Self::Known(own) if own == value)
    }
}

impl<T: AsRef<str>> AsRef<str> for Open<T> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl<T: AsRef<str>> fmt::Display for Open<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<T: Serialize> Serialize for Open<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Unknown(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Open<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(OpenVisitor(PhantomData))
    }
}

struct OpenVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OpenVisitor<T> {
    type Value = Open<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Open<T>, E> {
        let value: StrDeserializer<'_, ValueError> = text.into_deserializer();
        Ok(T::deserialize(value).map_or_else(|_| Open::Unknown(text.to_owned()), Open::Known))
    }
}

#[cfg(test)]
mod tests {
    use tollkey_core::{Status, feature::Feature};

    use super::*;

    #[test]
    fn value_is_written_as_it_was_read() {
        for text in [r#""active""#, r#""on_hold""#, r#""""#, r#""Active""#] {
            let value: Open<Status> = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), text);
            assert_eq!(format!("\"{value}\""), text);
        }
        let feature: Open<Feature> = serde_json::from_str(r#""tokens.list""#).unwrap();
        assert_eq!(feature.known(), Some(Feature::TokensList));
    }

    #[test]
    fn unknown_value_is_not_equal_to_a_known_one() {
        let value: Open<Status> = serde_json::from_str(r#""on_hold""#).unwrap();
        assert_eq!(value, Open::Unknown("on_hold".to_owned()));
        for known in [
            Status::Revoked,
            Status::Expired,
            Status::Suspended,
            Status::Active,
        ] {
            assert!(value != known, "{known}");
            assert!(Open::Known(known) == known, "{known}");
        }
    }

    #[test]
    fn only_strings_are_read_as_values() {
        for text in [
            "null",
            "1",
            "true",
            "[]",
            r#"["active"]"#,
            "{}",
            r#"{"active": null}"#,
        ] {
            assert!(
                serde_json::from_str::<Open<Status>>(text).is_err(),
                "{text}"
            );
        }
    }
}
