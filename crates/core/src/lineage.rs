//! What binds a key besides its own restrictions: its ancestors, and the deletion of its application.
//!
//! A key that is created by a key has that key as its parent, and the parent's ancestors as its own. Every decision about
//! a descendant evaluates all of them (contract, section 4), so one revocation rejects a whole tree at the same moment,
//! however large it is. [`Inherited`] is what is left of the ancestors once they are resolved: their number does not
//! matter to a decision.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::{
    AccountId, ApiKey, ApplicationId, IpList, KeyId, RateLimit, Status, audit::Actor, heap,
};

/// Why a key of a deleted application is revoked.
pub const APPLICATION_DELETED: &str = "application_deleted";
/// Why a key is revoked whose parent key, or an ancestor further up, was revoked.
pub const MAKER_REVOKED: &str = "maker_revoked";

/// The revocation of a key: since when it applies, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation<'a> {
    /// Since when.
    pub at: Timestamp,
    /// The reason, if the caller gave one.
    pub reason: Option<&'a str>,
}

/// The restrictions that a key inherits. Each `None` and each empty list is the absence of a restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inherited {
    /// The earliest revocation of an ancestor, or the deletion of the application.
    pub revoked: Option<(Timestamp, &'static str)>,
    /// The earliest expiration of an ancestor.
    pub expires_at: Option<Timestamp>,
    /// Since when the ancestor is suspended that was suspended first.
    pub suspended_at: Option<Timestamp>,
    /// The IP allowlists of the ancestors: the client has to be in each of them. Equal lists are kept once.
    pub allowed_ips: Vec<IpList>,
    /// The rate limits of the ancestors, the root's first: each use of the key counts against all of them.
    pub rate_limits: Vec<(KeyId, RateLimit)>,
}

impl Inherited {
    /// What a key inherits from `ancestors`, the root first.
    pub fn from_ancestors<'a>(ancestors: impl IntoIterator<Item = &'a ApiKey>) -> Self {
        let mut inherited = Self::default();
        for ancestor in ancestors {
            if let Some(at) = ancestor.revoked_at {
                inherited.revoke(at, MAKER_REVOKED);
            }
            inherited.expires_at = earliest(inherited.expires_at, ancestor.own_expiration());
            inherited.suspended_at = earliest(inherited.suspended_at, ancestor.suspended_at);
            if let Some(list) = &ancestor.grants.allowed_ips
                && !inherited.allowed_ips.contains(list)
            {
                inherited.allowed_ips.push(list.clone());
            }
            inherited
                .rate_limits
                .extend(ancestor.grants.rate_limit.map(|limit| (ancestor.id, limit)));
        }
        inherited
    }

    /// Adds a revocation; the earliest one counts.
    pub(crate) fn revoke(&mut self, at: Timestamp, reason: &'static str) {
        if self.revoked.is_none_or(|(earlier, _)| at < earlier) {
            self.revoked = Some((at, reason));
        }
    }

    /// The first status that applies to any ancestor at `now`.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        Status::of(
            self.revoked.is_some(),
            self.expires_at,
            self.suspended_at.is_some(),
            now,
        )
    }

    /// Estimates the heap it takes, in bytes.
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

    /// Whether a client at that address passes the IP allowlist of every ancestor.
    #[must_use]
    pub fn allows(&self, client: Option<IpAddr>) -> bool {
        self.allowed_ips
            .iter()
            .all(|list| client.is_some_and(|address| list.contains(address)))
    }
}

/// The earlier of two times, where `None` is never.
pub(crate) fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A revocation that applies to many keys and is not yet recorded on all of them.
///
/// It is written in the transaction of the revocation itself, so that any replica can finish it, also after a crash. The
/// keys are rejected from that transaction on; recording gives each its own `revoked_at` and its audit entry, with the
/// actor and the time of the revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRevocation {
    /// The account.
    pub account_id: AccountId,
    /// The key or the application that was revoked or deleted.
    pub root: Root,
    /// When.
    pub revoked_at: Timestamp,
    /// The caller who did that.
    pub actor: Actor,
    /// Its request; none at the command line.
    pub request_id: Option<String>,
    /// The address that it came from.
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
