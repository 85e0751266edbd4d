//! The audit log: one entry for each change, chained by hashes within each account.
//!
//! Each entry's hash covers all of its fields and the previous hash, so an edit, an insertion or a gap breaks the chain
//! ([`verify`]). A chain that was truncated, or rewritten from some entry to its end, is still intact: only a
//! comparison with a hash that was stored elsewhere reveals it.

use std::{fmt, net::IpAddr, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    AccountId, ApplicationId, AuditId, Invalid, KeyId, Mode, hex,
    spelling::{spelled, unknown_value},
};

/// The action of an entry, spelled as the type of the resource and a verb.
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
    /// A key was created.
    #[strum(serialize = "api_key.created")]
    ApiKeyCreated,
    /// The restrictions, the name or the metadata of a key were changed.
    #[strum(serialize = "api_key.updated")]
    ApiKeyUpdated,
    /// A key was revoked.
    #[strum(serialize = "api_key.revoked")]
    ApiKeyRevoked,
    /// A key was suspended.
    #[strum(serialize = "api_key.suspended")]
    ApiKeySuspended,
    /// A key was resumed.
    #[strum(serialize = "api_key.resumed")]
    ApiKeyResumed,
    /// A key was rotated.
    #[strum(serialize = "api_key.rotated")]
    ApiKeyRotated,
    /// An application was created.
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

spelled!(Action, "All actions.");

/// The actor of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The type of the actor.
    pub kind: ActorKind,
    /// The `sub` of a token, the ID of a key, or the operating system's user for the command line.
    pub id: String,
}

/// The type of an actor: `merchant` is a management token of the account, `operator` a management token with the role
/// `operator`, `api_key` an API key, and `cli` the command line of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

spelled!(ActorKind, "All kinds.");

/// The resource that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The type of the resource.
    pub kind: TargetKind,
    /// Its ID, hyphenated for keys and applications.
    pub id: String,
    /// The mode of a key. An `sk_test_` key can see only entries about test keys.
    pub mode: Option<Mode>,
}

impl Target {
    /// Creates the target for a key.
    #[must_use]
    pub fn key(id: KeyId, mode: Mode) -> Self {
        Self {
            kind: TargetKind::ApiKey,
            id: id.to_string(),
            mode: Some(mode),
        }
    }

    /// Creates the target for an application.
    #[must_use]
    pub fn application(id: ApplicationId) -> Self {
        Self {
            kind: TargetKind::Application,
            id: id.to_string(),
            mode: None,
        }
    }

    /// Creates the target for an account.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

spelled!(TargetKind, "All kinds.");

/// The SHA-256 of an entry in the chain, printed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The previous hash of an account's first entry.
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
        hex::read(text).map(Self)
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

/// The content of an entry, which does not depend on the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The ID of the entry.
    pub id: AuditId,
    /// The account whose log the entry belongs to.
    pub account_id: AccountId,
    /// The time of the change.
    pub occurred_at: Timestamp,
    /// The action.
    pub action: Action,
    /// The actor that made the change.
    pub actor: Actor,
    /// The resource that was changed.
    pub target: Target,
    /// The ID of the request that made the change, if a request made it.
    pub request_id: Option<String>,
    /// The client's IP address, if known.
    pub ip: Option<IpAddr>,
    /// The changed fields, as an object without secrets.
    pub changes: Value,
}

/// The end of an account's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of the last entry; 0 before the first.
    pub seq: u64,
    /// The hash of the last entry.
    pub hash: Hash,
}

impl Head {
    /// The head of an empty chain.
    pub const GENESIS: Self = Self {
        seq: 0,
        hash: Hash::GENESIS,
    };
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its content.
    pub draft: Draft,
    /// Its number in the account's chain, from 1, without gaps.
    pub seq: u64,
    /// The hash over the entry and the previous hash.
    pub hash: Hash,
}

impl Draft {
    /// Creates the entry with this content that follows `head`.
    #[must_use]
    pub fn seal(self, head: Head) -> Entry {
        let seq = head.seq + 1;
        Entry {
            hash: self.hash(seq, head.hash),
            seq,
            draft: self,
        }
    }

    /// Returns the SHA-256 over all fields. Each has its length in front of it, so that two different entries never
    /// have the same bytes. The length of an absent field is `u64::MAX`, which no other field has.
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
        let mut field = |bytes: &[u8]| optional(Some(bytes));
        field(b"tollkey audit entry 1");
        field(previous.as_bytes());
        field(&seq.to_be_bytes());
        field(self.id.as_bytes());
        field(self.account_id.as_str().as_bytes());
        field(&self.occurred_at.as_microsecond().to_be_bytes());
        field(self.action.as_str().as_bytes());
        field(self.actor.kind.as_str().as_bytes());
        field(self.actor.id.as_bytes());
        field(self.target.kind.as_str().as_bytes());
        field(self.target.id.as_bytes());
        field(self.changes.to_string().as_bytes());
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

/// The chain of an account is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Entries are missing or were inserted before this one.
    #[error("entry {expected} of account {account} is missing: the next entry is {found}")]
    Gap {
        /// The account.
        account: AccountId,
        /// The expected number.
        expected: u64,
        /// The number of the entry.
        found: u64,
    },
    /// This entry, or the one before it, was changed.
    #[error("entry {seq} of account {account} was changed, or follows a changed one")]
    Broken {
        /// The account.
        account: AccountId,
        /// The number of the entry.
        seq: u64,
    },
}

impl ChainError {
    /// The account whose chain is broken.
    #[must_use]
    pub fn account(&self) -> &AccountId {
        match self {
            Self::Gap { account, .. } | Self::Broken { account, .. } => account,
        }
    }
}

/// Checks that an entry follows `head`, and returns the new head. Start with [`Head::GENESIS`].
///
/// # Errors
/// [`ChainError`] if the entry does not follow `head`.
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
