//! The types of Tollkey's HTTP API, one file per surface. Server and client share them.
//!
//! Each surface has its own case of field names (snake_case or camelCase) and its own time format.
//!
//! A client can read the responses of a newer server: it ignores unknown fields and keeps unknown enum values
//! ([`Open`]). The server rejects unknown fields of requests, and a verifier ([`sync`]) rejects unknown enum
//! values.
//!
//! | feature | effect |
//! |---|---|
//! | `server` | Responses can be constructed, and those with a full key are `Serialize`. Without this feature, every response is `#[non_exhaustive]`, and a client cannot write a full key into a log as JSON by accident. |
//! | `openapi` | Every type has a schema in the OpenAPI document. |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod account;
pub mod applications;
pub mod audit;
pub mod commerce;
mod enum_value;
#[cfg(feature = "openapi")]
mod examples;
mod metadata;
mod object;
pub mod open;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod operator;
pub mod patch;
pub mod problem;
pub mod secret;
pub mod sync;
pub mod time;
pub mod unkey;
pub mod verification;

pub use open::Open;
pub use patch::Patch;
pub use secret::Secret;

/// Without the feature `server`, requests and responses are `Serialize`, except responses with a full key.
///
/// ```
/// fn write<T: serde::Serialize>() {}
/// write::<tollkey_api::verification::VerifyRequest>();
/// write::<tollkey_api::commerce::Key>();
/// ```
///
/// ```compile_fail
/// fn write<T: serde::Serialize>() {}
/// write::<tollkey_api::account::CreatedKey>();
/// ```
///
/// ```compile_fail
/// fn write<T: serde::Serialize>() {}
/// write::<tollkey_api::applications::CreatedKey>();
/// ```
///
/// ```compile_fail
/// fn write<T: serde::Serialize>() {}
/// write::<tollkey_api::commerce::CreatedKey>();
/// ```
///
/// ```compile_fail
/// fn write<T: serde::Serialize>() {}
/// write::<tollkey_api::operator::CreatedServiceKey>();
/// ```
#[cfg(all(doctest, not(feature = "server")))]
struct SerializeDocTests;
