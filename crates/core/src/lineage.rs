//! The restrictions that a key inherits from its ancestors and from the deletion of its application.
//!
//! If a key creates a key, it is the parent of that key, and the ancestors of the parent are also ancestors of that
//! key. Every decision about a key includes the restrictions of all its ancestors (contract, section 4). So one
//! revocation denies a whole tree of keys immediately, however large it is. [`Inherited`] has the combined
//! restrictions, so a decision does not need the ancestors themselves.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::{
    AccountId, ApiKey, ApplicationId, IpList, KeyId, RateLimit, Status, audit::Actor, heap,
};

/// The reason of a revocation by the deletion of the application.
pub const APPLICATION_DELETED: &str = "application_deleted";
/// The reason of a revocation by the revocation of an ancestor.
pub const PARENT_REVOKED: &str = "maker_revoked";

/// The revocation of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation<'a> {
    /// When the key was revoked.
    pub at: Timestamp,
    /// The reason, if any.
    pub reason: Option<&'a str>,
}

/// The restrictions that a key inherits. `None` and an empty list mean no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inherited {
    /// The earliest revocation of an ancestor, or the deletion of the application.
    pub revoked: Option<(Timestamp, &'static str)>,
    /// The earliest expiration of an ancestor.
    pub expires_at: Option<Timestamp>,
    /// The earliest suspension of an ancestor.
    pub suspended_at: Option<Timestamp>,
    /// The IP allowlists of the ancestors, without duplicates. The client must be in all of them.
    pub allowed_ips: Vec<IpList>,
    /// The rate limits of the ancestors, the root first. Each use of the key counts against all of them.
    pub rate_limits: Vec<(KeyId, RateLimit)>,
}

impl Inherited {
    /// Combines the restrictions of `ancestors`, the root first.
    pub fn from_ancestors<'a>(ancestors: impl IntoIterator<Item = &'a ApiKey>) -> Self {
        let mut inherited = Self::default();
        for ancestor in ancestors {
            if let Some(at) = ancestor.revoked_at {
                inherited.revoke(at, PARENT_REVOKED);
            }
            inherited.expires_at = earliest(inherited.expires_at, ancestor.own_expiration());
            inherited.suspended_at = earliest(inherited.suspended_at, ancestor.suspended_at);
            if let Some(list) = &ancestor.restrictions.allowed_ips
                && !inherited.allowed_ips.contains(list)
            {
                inherited.allowed_ips.push(list.clone());
            }
            inherited.rate_limits.extend(
                ancestor
                    .restrictions
                    .rate_limit
                    .map(|limit| (ancestor.id, limit)),
            );
        }
        inherited
    }

    /// Adds a revocation; the earliest one applies.
    pub(crate) fn revoke(&mut self, at: Timestamp, reason: &'static str) {
        if self.revoked.is_none_or(|(earlier, _)| at < earlier) {
            self.revoked = Some((at, reason));
        }
    }

    /// Returns the first status that applies to any ancestor at `now`.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        Status::of(
            self.revoked.is_some(),
            self.expires_at,
            self.suspended_at.is_some(),
            now,
        )
    }

    /// Estimates its heap memory in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        heap::vec(&self.allowed_ips)
            + self
                .allowed_ips
                .iter()
                .map(IpList::heap_bytes)
                .sum::<usize>()
            + heap::vec(&self.rate_limits)
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.allowed_ips.shrink_to_fit();
        self.allowed_ips.iter_mut().for_each(IpList::shrink_to_fit);
        self.rate_limits.shrink_to_fit();
    }

    /// Whether the client's IP address is in the IP allowlist of every ancestor.
    #[must_use]
    pub fn allows(&self, client: Option<IpAddr>) -> bool {
        self.allowed_ips
            .iter()
            .all(|list| client.is_some_and(|address| list.contains(address)))
    }
}

/// Returns the earlier of two times, where `None` is never.
pub(crate) fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A revocation that applies to many keys and is not yet recorded on all of them.
///
/// It is stored in the transaction of the revocation itself, so that any replica can finish it, even after a crash. All
/// keys are denied from this transaction on. Recording sets `revoked_at` of each key, and writes an audit entry with
/// the actor and the time of the revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRevocation {
    /// The account.
    pub account_id: AccountId,
    /// The key or the application that was revoked or deleted.
    pub root: Root,
    /// The time of the revocation or deletion.
    pub revoked_at: Timestamp,
    /// The actor.
    pub actor: Actor,
    /// The ID of the request; `None` for the command line.
    pub request_id: Option<String>,
    /// The client's IP address, if known.
    pub ip: Option<IpAddr>,
}

/// The root of a revocation that applies to many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Root {
    /// A key: its descendants are revoked.
    Key(KeyId),
    /// An application: its keys are revoked.
    Application(ApplicationId),
}
