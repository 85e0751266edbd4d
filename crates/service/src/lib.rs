//! Use-cases: what happens. No actix, no diesel: callers come in as [`Manager`](crate::caller::Manager), what is
//! kept goes through `tollkey-store`, and every change goes through [`State::change`](crate::state::State::change),
//! which answers only once it holds everywhere.

pub mod accounts;
pub mod api_keys;
pub mod applications;
pub mod audit;
pub mod idempotency;
pub mod revocations;
pub mod service_keys;
pub mod sign_in;

pub use tollkey_store::Paged as Page;
