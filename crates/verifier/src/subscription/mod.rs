//! Leases for verifiers without a store: a subscriber polls a verifier that has one.
//!
//! A subscriber's lease nests in the lease of the verifier that granted it, so a change that waits for the verifier also
//! waits for its subscribers. `serve` and [`subscribers`] implement the verifier's side; `subscriber`, [`poll_sequence`] and
//! [`poll_watch`] implement the subscriber's side. `docs/leases.md` has the reasons.

pub(crate) mod poll_sequence;
pub(crate) mod poll_watch;
mod serve;
mod subscriber;
pub(crate) mod subscribers;
