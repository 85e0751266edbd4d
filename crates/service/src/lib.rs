//! The use cases of Tollkey: what each operation does, whichever API or command calls it.
//!
//! A use case is a function that takes the [`Service`], the [`RequestActor`] and plain arguments, runs in one
//! transaction, and returns a domain value, which the caller renders after the commit. Wire types and HTML are in the
//! server, SQL is in `tollkey-store`, and the rules are in `tollkey-core`.
//!
//! A change returns only after it has been propagated: no replica still uses the previous state ([`Service::change`]).
#![forbid(unsafe_code)]

pub mod accounts;
mod actor;
pub mod api_keys;
pub mod applications;
pub mod audit;
pub mod background;
pub mod idempotency;
pub mod measures;
mod random;
mod revocations;
mod service;
pub mod service_keys;
pub mod sessions;
mod source;

pub use tollkey_store::Page;

pub use self::{
    actor::RequestActor,
    idempotency::Outcome,
    random::Random,
    revocations::Revocations,
    service::{Limits, Service},
    source::StoreSource,
};
