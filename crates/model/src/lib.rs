//! The lease protocol (`docs/leases.md`) as a model for the model checker [stateright](https://www.stateright.rs).
//!
//! [`Protocol`] has the steps, [`State`] what they change, and [`Rule`] the rules that they keep. The checker
//! takes the steps in every order and searches for a verification that began after the response to the
//! revocation of its key and accepted the key. `tests/it.rs` finds none with all rules. If any one rule is
//! left out, it finds one, except for two rules about marking, without which [`FINISHABLE`] fails instead.
//!
//! `crates/model/README.md` lists the simplifications and why they hide no fault.
#![forbid(unsafe_code)]

mod protocol;
mod rules;
mod state;

pub use protocol::{
    Action, Bounds, COMPLETE, CacheOwner, CallerTask, FINISHABLE, Protocol, SAFE, SubscriberKind,
};
pub use rules::{Rule, Rules};
pub use state::{Creation, Key, Marking, State};
