//! Leases for verifiers without a store of their own: a subscriber polls a verifier that has one.
//!
//! A subscriber's lease nests in the lease it was granted from, so a change that waits for a verifier waits for its
//! subscribers too. `serve` and [`subscribers`] are the verifier's side; `subscriber`, [`poll_sequence`] and
//! [`poll_watch`] are the subscriber's. The reasons are in `docs/leases.md`.

pub(crate) mod poll_sequence;
pub(crate) mod poll_watch;
mod serve;
mod subscriber;
pub(crate) mod subscribers;
