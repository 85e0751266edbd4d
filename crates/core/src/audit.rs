//! The audit log: one entry per change, chained by hashes in each account.
//!
//! Each entry's hash covers all its members and the hash before it, so an edit, an insertion or a gap breaks the
//! chain. Truncation and rewriting from some entry on are found by whoever kept an earlier hash: see [`verify`].

use std::{fmt, net::IpAddr, str::FromStr};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    AccountId, ApplicationId, AuditId, Invalid, KeyId, Mode, hex,
    spelling::{array, unknown_value},
};

/// What was done. The name on the wire is `thing.verb`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    AsRefStr,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[strum(parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Action {
    /// A key was made.
    #[strum(serialize = "api_key.created")]
    ApiKeyCreated,
    /// A key's grants or labels were changed.
    #[strum(serialize = "api_key.updated")]
    ApiKeyUpdated,
    /// A key was ended.
    #[strum(serialize = "api_key.revoked")]
    ApiKeyRevoked,
    /// A key was stopped.
    #[strum(serialize = "api_key.suspended")]
    ApiKeySuspended,
    /// A stopped key works again.
    #[strum(serialize = "api_key.resumed")]
    ApiKeyResumed,
    /// A key got a successor.
    #[strum(serialize = "api_key.rotated")]
    ApiKeyRotated,
    /// An application was made.
    #[strum(serialize = "application.created")]
    ApplicationCreated,
    /// An application's name or description was changed.
    #[strum(serialize = "application.updated")]
    ApplicationUpdated,
    /// An application was enabled.
    #[strum(serialize = "application.enabled")]
    ApplicationEnabled,
    /// An application was disabled.
    #[strum(serialize = "application.disabled")]
    ApplicationDisabled,
    /// An application was deleted.
    #[strum(serialize = "application.deleted")]
    ApplicationDeleted,
    /// An account's operating model was set.
    #[strum(serialize = "account.updated")]
    AccountUpdated,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// The spelling that is stored and sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// What sort of caller.
    pub kind: ActorKind,
    /// The `sub` of a token, the id of a key, or the operating system's user for the command line.
    pub id: String,
}

/// The type of an actor: `merchant` is a management token of the account, `operator` a management token with the role
/// `operator`, `api_key` an API key, and `cli` the command line of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum ActorKind {
    /// A management token of the account.
    Merchant,
    /// A management token with the role `operator`.
    Operator,
    /// An API key.
    ApiKey,
    /// The command line of the server.
    Cli,
}

impl ActorKind {
    /// All kinds.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// The spelling that is stored and sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What it was done to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What sort of thing.
    pub kind: TargetKind,
    /// Its id, hyphenated.
    pub id: String,
    /// The mode of a key; an `sk_test_` sees only entries about test keys.
    pub mode: Option<Mode>,
}

impl Target {
    /// A key.
    #[must_use]
    pub fn key(id: KeyId, mode: Mode) -> Self {
        Self {
            kind: TargetKind::ApiKey,
            id: id.to_string(),
            mode: Some(mode),
        }
    }

    /// An application.
    #[must_use]
    pub fn application(id: ApplicationId) -> Self {
        Self {
            kind: TargetKind::Application,
            id: id.to_string(),
            mode: None,
        }
    }

    /// An account.
    #[must_use]
    pub fn account(id: &AccountId) -> Self {
        Self {
            kind: TargetKind::Account,
            id: id.to_string(),
            mode: None,
        }
    }
}

/// The type of the resource that a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum TargetKind {
    /// An API key.
    ApiKey,
    /// An application.
    Application,
    /// An account.
    Account,
}

impl TargetKind {
    /// All kinds.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// The spelling that is stored and sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A link of the chain: SHA-256, printed as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What stands before the first entry of an account.
    pub const GENESIS: Self = Self([0; 32]);

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Hash {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::read(text)
            .map(Self)
            .ok_or_else(|| Invalid::new("must be 64 hex digits"))
    }
}
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a change says about itself, before it has a place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// A fresh id.
    pub id: AuditId,
    /// Whose log it goes into.
    pub account_id: AccountId,
    /// When.
    pub occurred_at: Timestamp,
    /// What was done.
    pub action: Action,
    /// By whom.
    pub actor: Actor,
    /// To what.
    pub target: Target,
    /// The request's id, when a request did it.
    pub request_id: Option<String>,
    /// The caller's address, when known.
    pub ip: Option<IpAddr>,
    /// What is different, as an object; never a secret.
    pub changes: Value,
}

/// Where an account's chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of the last entry; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Before the first entry.
    pub const GENESIS: Self = Self {
        seq: 0,
        hash: Hash::GENESIS,
    };
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub draft: Draft,
    /// Its number in the account's chain, from 1, without gaps.
    pub seq: u64,
    /// Covers the entry and the hash before it.
    pub hash: Hash,
}

impl Draft {
    /// Gives the entry its place behind `head`.
    #[must_use]
    pub fn seal(self, head: Head) -> Entry {
        let seq = head.seq + 1;
        Entry {
            hash: self.hash(seq, head.hash),
            seq,
            draft: self,
        }
    }

    /// SHA-256 over every member, each with its length before it, so that no two entries read the same. An absent
    /// member has a length that no present one can have.
    fn hash(&self, seq: u64, previous: Hash) -> Hash {
        let mut hasher = Sha256::new();
        let mut optional = |bytes: Option<&[u8]>| {
            hasher.update(
                bytes
                    .map_or(u64::MAX, |bytes| bytes.len() as u64)
                    .to_be_bytes(),
            );
            hasher.update(bytes.unwrap_or_default());
        };
        let mut member = |bytes: &[u8]| optional(Some(bytes));
        member(b"tollkey audit entry 1");
        member(previous.as_bytes());
        member(&seq.to_be_bytes());
        member(self.id.as_bytes());
        member(self.account_id.as_str().as_bytes());
        member(&self.occurred_at.as_microsecond().to_be_bytes());
        member(self.action.as_str().as_bytes());
        member(self.actor.kind.as_str().as_bytes());
        member(self.actor.id.as_bytes());
        member(self.target.kind.as_str().as_bytes());
        member(self.target.id.as_bytes());
        member(self.changes.to_string().as_bytes());
        optional(self.target.mode.map(|mode| mode.as_str().as_bytes()));
        optional(self.request_id.as_deref().map(str::as_bytes));
        optional(
            self.ip
                .map(|ip| ip.to_string())
                .as_deref()
                .map(str::as_bytes),
        );
        Hash(hasher.finalize().into())
    }
}

/// The log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Entries are missing or were inserted before this one.
    #[error("entry {expected} of account {account} is missing: the next one there is {found}")]
    Gap {
        /// Whose log.
        account: AccountId,
        /// The number that should come next.
        expected: u64,
        /// The number that does.
        found: u64,
    },
    /// This entry, or the one before it, is not what was written.
    #[error("entry {seq} of account {account} was changed, or follows a changed one")]
    Broken {
        /// Whose log.
        account: AccountId,
        /// Which entry.
        seq: u64,
    },
}

impl ChainError {
    /// Whose log it is.
    #[must_use]
    pub fn account(&self) -> &AccountId {
        match self {
            Self::Gap { account, .. } | Self::Broken { account, .. } => account,
        }
    }
}

/// Checks the next entry of an account's chain and moves the head to it. Start with [`Head::GENESIS`].
///
/// # Errors
/// [`ChainError`] at the first entry that does not follow.
pub fn verify(head: Head, entry: &Entry) -> Result<Head, ChainError> {
    let account = || entry.draft.account_id.clone();
    if entry.seq != head.seq + 1 {
        return Err(ChainError::Gap {
            account: account(),
            expected: head.seq + 1,
            found: entry.seq,
        });
    }
    if entry.draft.hash(entry.seq, head.hash) != entry.hash {
        return Err(ChainError::Broken {
            account: account(),
            seq: entry.seq,
        });
    }
    Ok(Head {
        seq: entry.seq,
        hash: entry.hash,
    })
}
