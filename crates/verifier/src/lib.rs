//! Verifies API keys from a cache, with immediate revocation.
//!
//! A [`Verifier`] decides from cached keys, without a query to the store. Nevertheless, the response to a
//! revocation is sent only when no verifier can accept the key any more:
//!
//! - The store numbers changes ([`Seq`]). For each change, a verifier evicts the keys that it affects.
//! - A verifier uses its cache only while it holds a *lease*, which is granted only at the newest change.
//! - A process that commits a change waits, before it responds, until every other verifier has either
//!   reported the change as applied or no longer holds a lease ([`Verifier::wait_until_propagated`]).
//!
//! The model checker in `tollkey-model` checks these rules. `docs/leases.md` has the reasons.
//!
//! | module | contents |
//! |---|---|
//! | [`source`] | where keys, changes and leases come from: a [`Primary`] or an [`Upstream`] |
//! | `verifier`, [`verdict`] | verifying a key, and the result |
//! | `reservation` | a use of a key that is reserved while its request runs |
//! | `look_up`, `requester` | looking up keys that are not cached, and sharing look-ups fairly |
//! | `cache` | the cached keys, the lease, and evictions |
//! | `lease` | keeping the lease of a primary, and applying changes |
//! | `propagation` | waiting until a change is propagated |
//! | `subscription` | leases for verifiers without a primary |
//! | `rate`, [`usage`] | rate limits, and usage counts |
//! | `usable`, `watches` | waiting until a key can no longer be used |
//! | `share` | fair shares of a bounded number of bytes |
//! | [`clock`] | the clock of a real machine |
//!
//! ```
//! use std::sync::Arc;
//! use tollkey_core::{AccessRequest, VerifierId};
//! use tollkey_verifier::{Settings, Verifier, testing::{ManualClock, MemorySource, record}};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let source = MemorySource::default();
//! let text = format!("ck_test_{}", "a".repeat(32));
//! source.put(&text, record(&text));
//!
//! let clock = Arc::new(ManualClock::default());
//! let id = VerifierId::from_bytes([1; 16]);
//! let verifier = Verifier::new(id, source, clock, Settings::default()).await.unwrap();
//! let verdict = verifier.verify(&text, &AccessRequest::default()).await.unwrap();
//! assert_eq!(verdict.outcome, Ok(()));
//! # });
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod cache;
pub mod clock;
mod lease;
mod locks;
mod log_limit;
mod look_up;
mod propagation;
mod rate;
mod requester;
mod reservation;
mod settings;
mod share;
pub mod source;
mod stats;
mod subscription;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod usable;
pub mod usage;
pub mod verdict;
mod verifier;
mod watches;

pub use clock::{SystemClock, margin};
pub use log_limit::LogLimit;
pub use rate::RateStatus;
pub use requester::Requester;
pub use reservation::Reservation;
pub use settings::Settings;
pub use source::{
    EndSubscription, Poll, PollError, PollId, PollIds, PollResponse, Primary, ServiceSnapshot,
    Snapshot, Source, SourceError, Unavailable, Upstream,
};
pub use stats::Stats;
pub use tollkey_core::{ChangeLog, Changed, Position, Seq, Usage, VerifierId};
pub use verdict::{CachedKey, Verdict};
pub use verifier::{OnBehalfOf, Verifier};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
