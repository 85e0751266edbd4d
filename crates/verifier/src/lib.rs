//! Verification from memory, and revocation without a window.
//!
//! A [`Verifier`] answers whether a key may do something. Keys it has seen are answered from memory, without the
//! store; and yet a revocation returns only when no verifier can still say yes. Three things make that so:
//!
//! - the store counts changes ([`Seq`]); a verifier knows up to which one it has forgotten what was changed;
//! - a verifier answers from memory only while it holds a *lease*, which it gets only for the newest count;
//! - whoever makes a change waits, before answering, until every other verifier has either reported that change as
//!   applied or lost its lease ([`Verifier::settle`]).
//!
//! The rules are explored by a model checker, in the crate `tollkey-model`; the comments in `cache.rs` and `lease.rs` name the ones that must
//! not be loosened.
//!
//! | module | says |
//! |---|---|
//! | [`source`] | where keys, changes and leases come from: a [`Primary`] or an [`Upstream`] |
//! | `verifier` | one verification: memory, else the source; then the judgement |
//! | `cache` | what is remembered, under which lease, and how it is forgotten |
//! | `lease` | keeping the lease of a primary, applying changes, waiting for others |
//! | `subscription` | leases for verifiers without a primary |
//! | `http` (a feature) | a server of Tollkey as an upstream |
//! | [`verdict`], [`usage`] | what a verification answers, and what is counted of it |
//! | `rate` | allowances |
//! | `usable`, `watches` | telling requests that go on when their key can no longer be used |
//! | `share` | fair shares of bounded memory |
//! | [`clock`] | the clock of a real machine |
//!
//! ```
//! use std::sync::Arc;
//! use tollkey_core::{KeyText, Need, VerifierId};
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
//! let verdict = verifier.verify(&text, &Need::default()).await.unwrap();
//! assert_eq!(verdict.outcome, Ok(()));
//! # });
//! ```
#![forbid(unsafe_code)]

mod cache;
pub mod clock;
#[cfg(feature = "http")]
pub mod http;
mod lease;
mod locks;
mod log_limit;
mod rate;
mod reservation;
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

pub use clock::SystemClock;
pub use lease::margin;
pub use log_limit::LogLimit;
pub use reservation::Reservation;
pub use source::{
    Leave, News, Poll, PollError, PollId, PollIds, Primary, ServiceSnapshot, Snapshot, Source,
    SourceError, Unavailable, Upstream,
};
pub use stats::Stats;
pub use tollkey_core::{ChangeLog, Changed, Position, Seq, Usage, VerifierId};
pub use verdict::{Known, RateStatus, Verdict};
pub use verifier::{OnBehalfOf, Requester, Settings, Verifier};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
