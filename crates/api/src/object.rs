//! Objects in a body. Serde would also read a struct from an array of its members' values, which no description of ours
//! allows, and an optional member that is absent as null, which in an answer may be the word for "any".

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::Patch;

/// Reads an object.
///
/// # Errors
/// For anything else, and those of the object itself.
pub(crate) fn required<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|object| object.0)
}

/// Reads a member that has to be there, if only as null. For `#[serde(deserialize_with = "…")]` without a default.
///
/// # Errors
/// Those of the value.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// Has answers read from objects only, with the members of a twin that is read for them (`#[serde(remote = "…")]`).
macro_rules! from_objects {
    ($($answer:ty: $twin:literal,)*) => {$(
        impl<'de> serde::Deserialize<'de> for $answer {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(transparent)]
                struct Members(#[serde(with = $twin)] $answer);

                crate::object::required(deserializer).map(|Members(answer)| answer)
            }
        }
    )*};
}
pub(crate) use from_objects;

/// Reads an object, or null. For `#[serde(deserialize_with = "…")]`, with a default where it may be absent.
///
/// # Errors
/// For anything else, and those of the object itself.
pub(crate) fn option<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Reads a member of a merge patch that is an object. For `#[serde(default, deserialize_with = "…")]`.
///
/// # Errors
/// As for [`option`].
pub(crate) fn patch<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Patch<T>, D::Error> {
    Ok(option(deserializer)?.map_or(Patch::Null, Patch::Value))
}

/// Reads an array of objects. For `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// For anything else, and those of the objects themselves.
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

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}
