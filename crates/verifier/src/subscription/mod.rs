//! Leases for verifiers without a store of their own: a subscriber polls a verifier that has one.
//!
//! A subscriber's lease nests in the lease it was granted from, so a change that waits for a verifier waits for its
//! subscribers too. The verifier's side is [`subscribers`] and `serve`, the subscriber's side `subscriber` and
//! [`poll_watch`]. The reasons are in `docs/leases.md`.

pub(crate) mod poll_watch;
mod serve;
pub(crate) mod subscriber;
pub(crate) mod subscribers;
