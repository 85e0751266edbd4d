//! The words of Tollkey on the wire, one file per surface.
//!
//! Server and client share these types, so they cannot drift. Each surface has its own case and its own form of
//! time; what the words mean is in `tollkey-core`.
//!
//! A client reads what a newer server answers: members it does not know are passed over, words it does not know are kept
//! ([`Open`]). Requests are read strictly, and a verifier ([`sync`]) refuses words it does not know: whoever decides does
//! not guess.
//!
//! | feature | with it |
//! |---|---|
//! | `server` | answers can be built, and those that hold the text of a new key are `Serialize`. Without it every answer is `#[non_exhaustive]`, and a program that creates keys cannot write one into a log as JSON by accident |
//! | `openapi` | every type describes itself in the OpenAPI document |
#![forbid(unsafe_code)]

pub mod account;
pub mod applications;
pub mod audit;
pub mod commerce;
mod metadata;
mod object;
pub mod open;
pub mod operator;
pub mod patch;
pub mod problem;
pub mod secret;
pub mod sync;
pub mod time;
pub mod verification;
mod word;

pub use open::Open;
pub use patch::Patch;
pub use secret::Secret;

/// Without `server`, requests and other answers are written, those with the text of a new key are not.
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
struct Written;
