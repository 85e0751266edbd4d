//! The change log: which resources were changed, and in which order.
//!
//! Every change to an existing key, application, account or service key increments one counter in the same
//! transaction. Verifiers follow the counter, so that they know which cached keys to evict.

use std::{fmt, str::FromStr};

use rand::CryptoRng;

use crate::{AccountId, ApplicationId, Invalid, KeyId, ServiceKeyId, hex};

/// A value of the change counter, which grows by one with each change and never decreases. If a reader sees a lower
/// value than before, the database was restored or failed over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub i64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A changed resource. Verifiers evict the cached keys that the change affects.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Changed {
    /// One key.
    Key(KeyId),
    /// An application. The change affects all of its keys.
    Application(ApplicationId),
    /// An account. The change affects all of its keys.
    Account(AccountId),
    /// One service key.
    ServiceKey(ServiceKeyId),
}

impl Changed {
    /// Returns the type, as it is stored and sent, and the ID.
    #[must_use]
    pub fn to_parts(&self) -> (&'static str, String) {
        match self {
            Self::Key(id) => ("key", id.to_string()),
            Self::Application(id) => ("application", id.to_string()),
            Self::Account(id) => ("account", id.to_string()),
            Self::ServiceKey(id) => ("service_key", id.to_string()),
        }
    }

    /// Reads the type and the ID, as [`Changed::to_parts`] returns them.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown type, and for an ID that is not valid for the type.
    pub fn from_parts(kind: &str, id: &str) -> Result<Self, Invalid> {
        Ok(match kind {
            "key" => Self::Key(id.parse()?),
            "application" => Self::Application(id.parse()?),
            "account" => Self::Account(id.parse()?),
            "service_key" => Self::ServiceKey(id.parse()?),
            _ => {
                return Err(Invalid::new(
                    "must be key, application, account or service_key",
                ));
            }
        })
    }
}

/// A position in the change log: the value of the counter, and the time of the change that set it.
///
/// The counter alone does not identify a position: a database that was restored and then changed the same number of
/// times has the same count. The time distinguishes the two, because it is unlikely to be equal to the microsecond.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position {
    /// The value of the counter.
    pub seq: Seq,
    /// The time of the change that set the counter, in microseconds since 1970-01-01; 0 before the first change.
    pub at: i64,
}

impl fmt::Display for Position {
    /// Writes the cursor of subscribers, such as `42-1767225600000000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.seq, self.at)
    }
}

impl FromStr for Position {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text
            .split_once('-')
            .and_then(|(seq, at)| Some((seq.parse().ok()?, at.parse().ok()?)));
        match parts {
            Some((seq, at)) => Ok(Self { seq: Seq(seq), at }),
            None => Err(Invalid::new("must be a cursor from an earlier response")),
        }
    }
}

/// The changes after a requested position, and the current position, read from one snapshot of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeLog {
    /// The current position.
    pub current: Position,
    /// The changes, oldest first, each with the position after it. They end before `current` if they exceed the
    /// requested number. `None` if the log does not continue from the requested position, because it was deleted or
    /// belongs to another history; a verifier at this position must clear its cache.
    pub changes: Option<Vec<(Position, Changed)>>,
}

/// The ID of a verifier. It is random for each start of a process, so that a restarted process is a new verifier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifierId([u8; 16]);

impl VerifierId {
    /// Creates a random ID.
    pub fn new(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Creates the ID with these stored bytes.
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
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for VerifierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierId({self})")
    }
}

impl FromStr for VerifierId {
    type Err = Invalid;

    /// Reads the 32 hexadecimal digits that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::read(text).map(Self)
    }
}
