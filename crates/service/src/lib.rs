//! The use cases of Tollkey: what each operation does, for every API and command that calls it.
//!
//! A use case is a function that takes the [`Service`], the [`RequestActor`] and plain arguments, runs in one
//! transaction, and returns a domain value, which the caller renders after the commit. This crate has no web
//! framework, no wire types, no HTML and no SQL: `tollkey-store` stores the data, `tollkey-core` has the rules, and
//! the server has the APIs.
//!
//! A change returns only after it has been propagated: no replica still uses the previous state ([`Service::change`]).
#![forbid(unsafe_code)]

pub mod accounts;
mod actor;
pub mod api_keys;
pub mod applications;
pub mod audit;
mod background;
pub mod idempotency;
pub mod measures;
mod random;
mod revocations;
mod service;
pub mod service_keys;
pub mod sessions;
mod source;

pub use tollkey_store::Paged as Page;

pub use self::{
    actor::RequestActor,
    idempotency::Outcome,
    random::Random,
    revocations::Revocations,
    service::{Limits, Service},
    source::StoreSource,
};
