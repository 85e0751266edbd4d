//! The words of Tollkey on the wire, one file per surface.
//!
//! Server and client share these types, so they cannot drift. Each surface has its own case and its own form of
//! time; what the words mean is in `tollkey-core`. With the feature `openapi` every type describes itself in the
//! OpenAPI document.
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
