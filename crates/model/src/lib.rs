//! The lease protocol as a model, small enough that a machine can go through everything that may happen in it.
//!
//! Keys are answered from memory, and yet a revocation is answered only when nobody can still say yes to the key. This
//! page is that protocol without the code around it. [`Protocol`] says which steps there are and what each does,
//! [`State`] what there is to remember, [`Rule`] which rules the steps keep. A model checker
//! ([stateright](https://www.stateright.rs)) takes the steps in every order: a process that pauses, dies, is cut off or
//! hears of nothing is one whose next step comes late or never, so none of these needs a word of its own. What it
//! looks for is one thing: **a verification that began after the revocation of its key was answered, and was answered
//! yes**.
//!
//! `tests/it.rs` goes through everything with all rules kept and finds no such verification; and leaves each rule out
//! in turn, and finds one. So no rule is missing, as far as the model reaches, and none is there for nothing. (Two rules
//! about marking protect [`FINISHABLE`] instead, and their counterexample is a marking that no replica can finish.)
//! `cargo test -p tollkey-model -- --nocapture` prints how each rule would be missed, step by step.
//!
//! # The protocol in short
//!
//! - The **database** has a change counter. A change raises it in its own transaction, and holds its row until the
//!   commit.
//! - A **verifier** has a memory and a row in the database. It *renews its lease* with one statement: "here I am, and I
//!   have applied everything up to *n*; if the counter is exactly *n*". If it is not, it reads what has changed, evicts
//!   it, and asks again. It *reports* what it has applied whenever that is more. It *fetches* a key it does not
//!   remember, and remembers it only if no later change has begun to be applied.
//! - A **caller** revokes our key, or changes something else, and waits: until no row of another verifier is behind its
//!   change, or until a lease is over since its UPDATE. It removes rows that have been silent for a lease.
//! - A **repeat** finds the key revoked already, and waits in the same way for what the counter says now.
//! - A **subscriber** is a resource server with a memory of its own, which has its lease and its changes from a
//!   replica by polling it.
//!
//! # Keys that create keys
//!
//! The revoked key can have descendants, and a verification of any of them must be rejected from the same moment.
//!
//! - A **record** of a descendant contains the status of its ancestors, read together with the counter value. A revocation
//!   writes the row of the revoked key only, and its change evicts the cached descendants too.
//! - A **creation** by a key locks every ancestor and checks that it is active, in the transaction that inserts the key.
//!   So it commits before the revocation, which then covers the new key, or it is rejected.
//! - The **marking** of the descendants' own rows follows later, by any replica, and is not part of the promise: the model
//!   lets it never run, stop anywhere and go on elsewhere. It exists for lists and audit entries ([`COMPLETE`]), and for
//!   servers of the **previous release**, which read the own row of a key only. These reject a descendant once the change
//!   at the end of the marking has propagated.
//!
//! The code is in `crates/verifier/src/cache.rs` (the cache, called memory here), `lease.rs` and `propagation.rs` (leases
//! and waiting), and `crates/store/src/leases.rs` (the statements). A step of the model is atomic there: a statement, or
//! what happens under the lock of the cache.
//!
//! # What was made simpler, and why nothing is lost by it
//!
//! - **One key.** Changes to other things are changes too, but what they revoke is not looked at: whatever could go
//!   wrong with another key goes wrong with ours in a run where the names are exchanged.
//! - **One verified key a run.** A world with descendants begins once with each key that could be verified ([`Key`]). One
//!   batch of a marking is one step, and so is each half of a creation.
//! - **Ticks and the worst clocks.** A tick is a piece of real time. A clock may be off by one tick over a lease, and
//!   the margin is one tick. Only the worst matters: a holder whose clock is slow and may answer for longest, someone
//!   waiting whose clock is fast; all steps may come later anyway. So a lease of `n` ticks lasts `n - 1 + 1` for its
//!   holder and is waited for during `n + 1 - 1`: without either margin, one too many or too few. (The margin of the
//!   product covers two clocks that drift apart; here it is the drift of one from real time, half of that.)
//! - **A verification reads its clock together with the end of the lease.** In the code the clock is read a little
//!   before. Between the two only a grant can change anything, and then the look could as well have come after it.
//! - **Only verifications that begin after the answer.** All others may say yes.
//! - **A fetch itself** is answered from a snapshot that was read after the verification began; only what it leaves in
//!   memory can do harm.
//! - **Restarts.** A process that starts again is another verifier, with an empty memory.
//! - **A crash** is a step only where another process goes on with the work of the crashed one, that is during a marking.
//! - **Dropping the lease** when a change could not be applied in its own process is left out: by then a lease is over
//!   anyway. The code does it all the same.
//!
//! Not in the model: databases that are restored to an older state (everything is forgotten then, which tests of the
//! verifier cover), and SQL itself: that a statement is one step is for the tests of the store to show.
#![forbid(unsafe_code)]

mod protocol;
mod rules;
mod state;

pub use protocol::{Action, Bounds, COMPLETE, FINISHABLE, Following, Protocol, SAFE, Who, Wish};
pub use rules::{Rule, Rules};
pub use state::{Creation, Key, Marking, State};
