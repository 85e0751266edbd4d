//! The counter of changes: what was changed, in which order, and who has to know.
//!
//! Every change to an existing key, application, account or service key raises one counter in its own
//! transaction. Verifiers follow that counter; none answers from memory without knowing where it stands.

use std::fmt;

use rand::CryptoRng;

use crate::{AccountId, ApplicationId, KeyId, ServiceKeyId};

/// A value of the change counter. It grows by one with each change and never falls in one database;
/// a reader that sees it fall is talking to a database that was restored or failed over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub i64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a change touched: everything remembered under it is to be forgotten.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Changed {
    /// One key.
    Key(KeyId),
    /// An application, and with it all of its keys.
    Application(ApplicationId),
    /// An account, and with it all of its keys.
    Account(AccountId),
    /// One service key.
    ServiceKey(ServiceKeyId),
}

/// The changes after some value of the counter, and the counter itself, read from one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeLog {
    /// The counter.
    pub current: Seq,
    /// The changes, oldest first. Ends before `current` when there are more than were asked for; begins later than
    /// the next one when what was asked for is no longer kept.
    pub changes: Vec<(Seq, Changed)>,
}

/// Who answers from memory: random per process start, so that a restarted process is a new verifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifierId([u8; 16]);

impl VerifierId {
    /// A new id, from `rng`.
    pub fn new(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The id with these bytes, as it was stored.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, as they are stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for VerifierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VerifierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierId({self})")
    }
}
