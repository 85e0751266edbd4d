//! The counter of changes: what was changed, in which order, and who has to know.
//!
//! Every change to an existing key, application, account or service key raises one counter in its own
//! transaction. Verifiers follow that counter; none answers from memory without knowing where it stands.

use std::{fmt, str::FromStr};

use rand::CryptoRng;

use crate::{AccountId, ApplicationId, Invalid, KeyId, ServiceKeyId, hex};

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

impl Changed {
    /// The word for what it is, as stored and on the wire, and its id.
    #[must_use]
    pub fn to_parts(&self) -> (&'static str, String) {
        match self {
            Self::Key(id) => ("key", id.to_string()),
            Self::Application(id) => ("application", id.to_string()),
            Self::Account(id) => ("account", id.to_string()),
            Self::ServiceKey(id) => ("service_key", id.to_string()),
        }
    }

    /// The reverse of [`Changed::to_parts`].
    ///
    /// # Errors
    /// [`Invalid`] for another word, and for an id that is none of its kind.
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

/// A place in the log of changes: how many there have been, and when the last of them was made.
///
/// The counter alone does not tell two histories apart: a database that was restored, and has since been changed as
/// often as before, shows the same count for something else. No two histories have made the same change in the same
/// microsecond.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position {
    /// The value of the counter.
    pub seq: Seq,
    /// When the change that made it so was made, in microseconds since 1970; 0 before the first one.
    pub at: i64,
}

impl fmt::Display for Position {
    /// `42-1767225600000000`: what subscribers give back as their cursor.
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

/// The changes after some position, and where the counter stands, read from one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeLog {
    /// Where the counter stands.
    pub current: Position,
    /// The changes, oldest first, each with the position it led to; they end before `current` when there are more
    /// than were asked for. `None` when the log does not go on from the position that was asked about: it is no longer
    /// kept, or belongs to another history. Whoever was there forgets everything.
    pub changes: Option<Vec<(Position, Changed)>>,
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

    /// The 32 hexadecimal digits of [`Display`](fmt::Display).
    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::read(text)
            .map(Self)
            .ok_or_else(|| Invalid::new("must be 32 hex digits"))
    }
}
