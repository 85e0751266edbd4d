//! Reads enum values from JSON strings. Serde would also read an enum from an object with one
//! field.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IntoDeserializer, Visitor},
};

use crate::Patch;

/// Reads an enum value. For `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// Fails unless the JSON value is a string that is a value of the enum.
pub(crate) fn required<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    EnumValue::deserialize(deserializer).map(|value| value.0)
}

/// Reads an enum value, or null. For `#[serde(default, deserialize_with = "…")]`.
///
/// # Errors
/// Those of [`required`].
pub(crate) fn option<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<EnumValue<T>>::deserialize(deserializer)?.map(|value| value.0))
}

/// Reads an enum value in a merge patch. For `#[serde(default, deserialize_with = "…")]`.
///
/// # Errors
/// Those of [`required`].
pub(crate) fn patch<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Patch<T>, D::Error> {
    Ok(option(deserializer)?.map_or(Patch::Null, Patch::Value))
}

struct EnumValue<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for EnumValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(EnumValueVisitor(PhantomData))
            .map(Self)
    }
}

struct EnumValueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for EnumValueVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::deserialize(text.into_deserializer())
    }
}
