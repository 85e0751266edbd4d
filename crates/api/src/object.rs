//! Reads structs from JSON objects only. Serde also accepts an array, which the OpenAPI document does not
//! allow, and reads an absent optional field as null, which in a response can mean "no restriction".

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::Patch;

/// Reads an object.
///
/// # Errors
/// Every other value, and the errors of the struct.
pub(crate) fn required<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|object| object.0)
}

/// Reads a field that must be present, but can be null. For `#[serde(deserialize_with = "…")]`
/// without a default.
///
/// # Errors
/// Those of the value.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// Implements `Serialize`, and `Deserialize` from objects only, for responses that derive both with
/// `#[serde(remote = "Self")]`. The literal is the path of the derived function that reads.
macro_rules! from_objects {
    ($($response:ty: $read:literal),*) => {$(
        impl serde::Serialize for $response {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                <$response>::serialize(self, serializer) // the derived function, not this one
            }
        }

        impl<'de> serde::Deserialize<'de> for $response {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(transparent)]
                struct Fields(#[serde(deserialize_with = $read)] $response);

                crate::object::required(deserializer).map(|Fields(response)| response)
            }
        }
    )*};
}
pub(crate) use from_objects;

/// Reads an object, or null. For `#[serde(deserialize_with = "…")]`, with a default if the field
/// can be absent.
///
/// # Errors
/// Every other value, and the errors of the struct.
pub(crate) fn option<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Reads a field of a merge patch that is an object. For `#[serde(default, deserialize_with =
/// "…")]`.
///
/// # Errors
/// Those of [`option`].
pub(crate) fn patch<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Patch<T>, D::Error> {
    Ok(option(deserializer)?.map_or(Patch::Null, Patch::Value))
}

/// Reads an array of objects. For `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// Every other value, and the errors of the structs.
pub(crate) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Object<T>>::deserialize(deserializer)?
        .into_iter()
        .map(|object| object.0)
        .collect())
}

/// A struct that is read from an object only.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_map(ObjectVisitor(PhantomData))
            .map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}
