//! Stored API keys, without the full key: their restrictions, status and transitions.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    AccountId, ApplicationId, Family, Invalid, IpList, KeyId, Mode, PlainKey, RateLimit, Scope,
    feature::Feature,
    heap,
    lineage::{APPLICATION_DELETED, Inherited, Revocation, earliest},
    metadata::Metadata,
    spelling::{spelled, unknown_value},
    time::to_seconds,
};

/// An API key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C)] // the fields that every verification reads come first, for the processor's caches
pub struct ApiKey {
    /// The documented key system that it belongs to.
    pub family: Family,
    /// Live or test.
    pub mode: Mode,
    /// The restrictions from its ancestors and from the deletion of its application, if there are any.
    pub inherited: Option<Box<Inherited>>,
    /// The time of the revocation that is recorded on this key, if any. [`ApiKey::revocation`] also returns
    /// inherited ones.
    pub revoked_at: Option<Timestamp>,
    /// When the key itself was suspended, if it is suspended.
    pub suspended_at: Option<Timestamp>,
    /// Its permissions and restrictions.
    pub restrictions: Restrictions,
    /// The account that it belongs to.
    pub account_id: AccountId,
    /// Its ID.
    pub id: KeyId,
    /// Its application, for keys of the application family.
    pub application_id: Option<ApplicationId>,
    /// Its parent key: the key that created it, if a key did.
    pub created_by: Option<KeyId>,
    /// Its predecessor.
    pub rotated_from: Option<KeyId>,
    /// Its successor.
    pub rotated_to: Option<KeyId>,
    /// When it was rotated.
    pub rotated_at: Option<Timestamp>,
    /// Its label.
    pub name: String,
    /// The displayed beginning of the key: `ck_live_` + 6 characters, `ks_live_` + 4, `sk_live_`, `pk_live_`.
    pub prefix: String,
    /// The last four characters of the key.
    pub last4: String,
    /// Its metadata.
    pub metadata: Option<Metadata>,
    /// When it was created.
    pub created_at: Timestamp,
    /// The time of the last successful verification that has been stored.
    pub last_used_at: Option<Timestamp>,
    /// The reason that is recorded with `revoked_at`, if any.
    pub revoked_reason: Option<String>,
}

/// The properties of a new key that its creator chooses.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// The label.
    pub name: String,
    /// Live or test.
    pub mode: Mode,
    /// The permissions and restrictions.
    pub restrictions: Restrictions,
    /// The metadata.
    pub metadata: Option<Metadata>,
}

impl NewKey {
    /// Creates the key. The caller sets its application and its parent key.
    #[must_use]
    pub fn into_key(
        self,
        id: KeyId,
        account_id: AccountId,
        text: &PlainKey,
        family: Family,
        now: Timestamp,
    ) -> ApiKey {
        ApiKey {
            name: self.name,
            restrictions: self.restrictions,
            metadata: self.metadata,
            ..ApiKey::new(id, account_id, text, (family, self.mode), now)
        }
    }
}

/// The permissions and restrictions of a key. `None` means no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[repr(C)] // the fields that every verification reads come first, for the processor's caches
pub struct Restrictions {
    /// When the key expires.
    pub expires_at: Option<Timestamp>,
    /// The IP ranges that the key can be used from.
    pub allowed_ips: Option<IpList>,
    /// The features that a scoped key is limited to; never an empty list.
    pub features: Option<Vec<Feature>>,
    /// The merchants that a scoped key is limited to; never an empty list.
    pub merchants: Option<Vec<String>>,
    /// How often the key can be used.
    pub rate_limit: Option<RateLimit>,
    /// The scopes as requested. [`crate::Catalogue::expand`] adds those that they imply.
    pub scopes: Vec<Scope>,
}

impl Restrictions {
    /// Whether the key is a scoped key (hellgate): limited to merchants or to features.
    #[must_use]
    pub fn is_scoped(&self) -> bool {
        self.merchants.is_some() || self.features.is_some()
    }

    /// Reads an expiration and truncates it to whole seconds, the precision in which it is shown.
    ///
    /// # Errors
    /// [`Invalid`] unless the truncated time is in the future.
    pub fn parse_expiration(
        end: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Invalid> {
        match end.map(to_seconds) {
            Some(end) if end <= now => Err(Invalid::new("must be in the future")),
            end => Ok(end),
        }
    }
}

/// The status of a key: the first of these values that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Status {
    /// Revoked permanently.
    Revoked,
    /// Past its expiration.
    Expired,
    /// Suspended until it is resumed.
    Suspended,
    /// Usable.
    Active,
}

spelled!(Status, "All values, in the order in which they apply.");

impl Status {
    /// Returns the first value that applies at `now`.
    #[inline]
    pub(crate) fn of(
        is_revoked: bool,
        expires_at: Option<Timestamp>,
        is_suspended: bool,
        now: Timestamp,
    ) -> Self {
        if is_revoked {
            Self::Revoked
        } else if expires_at.is_some_and(|end| end <= now) {
            Self::Expired
        } else if is_suspended {
            Self::Suspended
        } else {
            Self::Active
        }
    }
}

/// The effect of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Transition {
    /// The key was changed.
    Changed,
    /// The key already had this state, so nothing needs to be stored.
    Unchanged,
}

/// The reason why the status of a key does not allow a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case", prefix = "key_")]
pub enum TransitionError {
    /// Revocation is final.
    #[error("The key is revoked. Revocation is final; create another key.")]
    Revoked,
    /// The key has expired.
    #[error("The key has expired. Create another key.")]
    Expired,
    /// The key is suspended.
    #[error("The key is suspended. Resume it first.")]
    Suspended,
    /// The key has a successor, which can be rotated instead.
    #[error("The key is already rotated. Rotate its successor instead.")]
    AlreadyRotated,
}

impl ApiKey {
    /// Creates a key without a name and without restrictions. All code that builds a key starts with it, also in tests,
    /// so that a new field needs a default only here.
    #[must_use]
    pub fn new(
        id: KeyId,
        account_id: AccountId,
        text: &PlainKey,
        kind: (Family, Mode),
        now: Timestamp,
    ) -> Self {
        let (family, mode) = kind;
        Self {
            id,
            account_id,
            application_id: None,
            name: String::new(),
            family,
            mode,
            prefix: text.shown_prefix(),
            last4: text.last4(),
            restrictions: Restrictions::default(),
            metadata: None,
            created_at: now,
            created_by: None,
            last_used_at: None,
            suspended_at: None,
            revoked_at: None,
            revoked_reason: None,
            rotated_from: None,
            rotated_to: None,
            rotated_at: None,
            inherited: None,
        }
    }

    /// Adds the restrictions of the ancestors, the root first.
    #[must_use]
    pub fn with_ancestors<'a>(mut self, ancestors: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut inherited = Inherited::from_ancestors(ancestors);
        if let Some((at, reason)) = self.inherited.as_ref().and_then(|own| own.revoked) {
            inherited.revoke(at, reason);
        }
        self.inherit(inherited);
        self
    }

    /// Adds the revocation by the deletion of the application, unless the key had already expired at that time.
    #[must_use]
    pub fn with_deleted_application(mut self, deleted_at: Timestamp) -> Self {
        if self.expiration().is_none_or(|end| end > deleted_at) {
            let mut inherited = self.inherited.take().map(|own| *own).unwrap_or_default();
            inherited.revoke(deleted_at, APPLICATION_DELETED);
            self.inherit(inherited);
        }
        self
    }

    fn inherit(&mut self, inherited: Inherited) {
        self.inherited = (inherited != Inherited::default()).then(|| Box::new(inherited));
    }

    /// Returns the status of the key at `now`: its own or that of an ancestor, whichever applies first.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        let own = Status::of(
            self.revoked_at.is_some(),
            self.own_expiration(),
            self.suspended_at.is_some(),
            now,
        );
        match &self.inherited {
            None => own,
            Some(inherited) => own.min(inherited.status(now)),
        }
    }

    /// Returns the revocation that applies: the key's own, otherwise the earliest that it inherits.
    #[must_use]
    pub fn revocation(&self) -> Option<Revocation<'_>> {
        match (self.revoked_at, &self.inherited) {
            (Some(at), _) => Some(Revocation {
                at,
                reason: self.revoked_reason.as_deref(),
            }),
            (None, Some(inherited)) => inherited.revoked.map(|(at, reason)| Revocation {
                at,
                reason: Some(reason),
            }),
            (None, None) => None,
        }
    }

    /// Returns the reason of the revocation that applies, if it has one.
    #[must_use]
    pub fn revocation_reason(&self) -> Option<&str> {
        self.revocation()?.reason
    }

    /// Returns the earliest expiration of the key and its ancestors.
    #[must_use]
    pub fn expiration(&self) -> Option<Timestamp> {
        let inherited = self.inherited.as_ref().and_then(|all| all.expires_at);
        earliest(self.own_expiration(), inherited)
    }

    /// Returns the expiration of the key itself. A key that was rotated without an overlap has expired, whatever the
    /// clock of a replica shows.
    pub(crate) fn own_expiration(&self) -> Option<Timestamp> {
        let end = self.restrictions.expires_at?;
        Some(if self.rotated_at.is_some_and(|at| end <= at) {
            Timestamp::UNIX_EPOCH
        } else {
            end
        })
    }

    /// Returns the earliest suspension of the key and its ancestors.
    #[must_use]
    pub fn suspension(&self) -> Option<Timestamp> {
        let inherited = self.inherited.as_ref().and_then(|all| all.suspended_at);
        earliest(self.suspended_at, inherited)
    }

    /// Whether the client's IP address is in the IP allowlists of the key and of all its ancestors. An unknown address
    /// is not in any list.
    #[must_use]
    #[inline]
    pub fn allows_client(&self, client: Option<IpAddr>) -> bool {
        let own = self.restrictions.allowed_ips.as_ref();
        own.is_none_or(|list| client.is_some_and(|address| list.contains(address)))
            && self
                .inherited
                .as_ref()
                .is_none_or(|inherited| inherited.allows(client))
    }

    /// Returns the IP ranges that the key can be used from: the intersection of the IP allowlists of the key and its
    /// ancestors. `None` without a list.
    #[must_use]
    pub fn effective_allowlist(&self) -> Option<IpList> {
        let inherited = self
            .inherited
            .iter()
            .flat_map(|inherited| &inherited.allowed_ips);
        self.restrictions
            .allowed_ips
            .iter()
            .chain(inherited)
            .cloned()
            .reduce(|common, list| common.intersection(&list))
    }

    /// Returns the rate limits that each use of the key counts against, with the ID of the key that has the limit:
    /// those of its ancestors, the root first, then its own.
    pub fn rate_limits(&self) -> impl Iterator<Item = (KeyId, RateLimit)> {
        let inherited = self
            .inherited
            .iter()
            .flat_map(|inherited| &inherited.rate_limits);
        inherited
            .copied()
            .chain(self.restrictions.rate_limit.map(|limit| (self.id, limit)))
    }

    /// Revokes the key. Changes nothing, not even the reason, if the key or an ancestor is already revoked.
    pub fn revoke(&mut self, now: Timestamp, reason: Option<String>) -> Transition {
        if self.revocation().is_some() {
            return Transition::Unchanged;
        }
        self.revoked_at = Some(now);
        self.revoked_reason = reason;
        Transition::Changed
    }

    /// Records the inherited revocation, with its time and reason, on the key itself.
    pub fn record_inherited_revocation(&mut self) -> Transition {
        let Some(Revocation { at, reason }) =
            self.revocation().filter(|_| self.revoked_at.is_none())
        else {
            return Transition::Unchanged;
        };
        (self.revoked_at, self.revoked_reason) = (Some(at), reason.map(str::to_owned));
        Transition::Changed
    }

    /// Suspends the key until it is resumed.
    ///
    /// # Errors
    /// [`TransitionError::Revoked`].
    pub fn suspend(&mut self, now: Timestamp) -> Result<Transition, TransitionError> {
        if self.revocation().is_some() {
            return Err(TransitionError::Revoked);
        }
        if self.suspended_at.is_some() {
            return Ok(Transition::Unchanged);
        }
        self.suspended_at = Some(now);
        Ok(Transition::Changed)
    }

    /// Resumes a suspended key.
    ///
    /// # Errors
    /// [`TransitionError::Revoked`].
    pub fn resume(&mut self) -> Result<Transition, TransitionError> {
        if self.revocation().is_some() {
            return Err(TransitionError::Revoked);
        }
        Ok(match self.suspended_at.take() {
            Some(_) => Transition::Changed,
            None => Transition::Unchanged,
        })
    }

    /// Sets the expiration. The expiration of a rotated key can only become earlier, so that its overlap does
    /// not become longer.
    ///
    /// # Errors
    /// [`Invalid`] for a later expiration of a rotated key.
    pub fn set_expiration(&mut self, end: Option<Timestamp>) -> Result<(), Invalid> {
        let is_later = |current: Timestamp| end.is_none_or(|end| end > current);
        if self.rotated_to.is_some() && self.restrictions.expires_at.is_some_and(is_later) {
            return Err(Invalid::new(
                "must not be later than its current value, because the key is rotated",
            ));
        }
        self.restrictions.expires_at = end;
        Ok(())
    }

    /// Estimates its heap memory in bytes, without the account ID, which many keys can share.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let Restrictions {
            scopes,
            merchants,
            features,
            allowed_ips,
            rate_limit: _,
            expires_at: _,
        } = &self.restrictions;
        let texts = [&self.name, &self.prefix, &self.last4]
            .into_iter()
            .chain(&self.revoked_reason);
        texts.map(heap::string).sum::<usize>()
            + heap::vec(scopes)
            + scopes.iter().map(Scope::heap_bytes).sum::<usize>()
            + merchants.as_ref().map_or(0, heap::strings)
            + features.as_ref().map_or(0, heap::vec)
            + allowed_ips.as_ref().map_or(0, IpList::heap_bytes)
            + self.metadata.as_ref().map_or(0, Metadata::heap_bytes)
            + self.inherited.as_ref().map_or(0, |it| {
                heap::allocation(size_of::<Inherited>()) + it.heap_bytes()
            })
    }

    /// Estimates how many bytes the name, the restrictions and the metadata take in a list, to limit the size of pages.
    #[must_use]
    pub fn listed_bytes(&self) -> usize {
        let Restrictions {
            scopes,
            merchants,
            features: _, // at most five
            allowed_ips,
            rate_limit: _,
            expires_at: _,
        } = &self.restrictions;
        self.name.len()
            + 16 * scopes.len()
            + merchants.iter().flatten().map(String::len).sum::<usize>()
            + 20 * allowed_ips.as_ref().map_or(0, |list| list.networks().len())
            + self
                .metadata
                .as_ref()
                .map_or(0, |metadata| metadata.as_json().len())
    }

    /// Drops spare capacity, and the reason of a revocation, which no decision needs.
    pub(crate) fn compact(&mut self) {
        self.revoked_reason = None;
        for text in [&mut self.name, &mut self.prefix, &mut self.last4] {
            text.shrink_to_fit();
        }
        let Restrictions {
            scopes,
            merchants,
            features,
            allowed_ips,
            rate_limit: _,
            expires_at: _,
        } = &mut self.restrictions;
        scopes.shrink_to_fit();
        scopes.iter_mut().for_each(Scope::compact);
        if let Some(merchants) = merchants {
            merchants.shrink_to_fit();
            merchants.iter_mut().for_each(String::shrink_to_fit);
        }
        if let Some(features) = features {
            features.shrink_to_fit();
        }
        if let Some(list) = allowed_ips {
            list.shrink_to_fit();
        }
        if let Some(inherited) = &mut self.inherited {
            inherited.shrink_to_fit();
        }
    }

    /// Checks that the permissions and restrictions of the key can be changed.
    ///
    /// # Errors
    /// [`TransitionError::Revoked`], [`TransitionError::Expired`].
    pub fn check_changeable(&self, now: Timestamp) -> Result<(), TransitionError> {
        match self.status(now) {
            Status::Revoked => Err(TransitionError::Revoked),
            Status::Expired => Err(TransitionError::Expired),
            Status::Suspended | Status::Active => Ok(()),
        }
    }

    /// Checks that the key can be rotated.
    ///
    /// # Errors
    /// [`TransitionError`] unless the key is active and has no successor yet.
    pub fn check_rotatable(&self, now: Timestamp) -> Result<(), TransitionError> {
        self.check_changeable(now)?;
        if self.suspended_at.is_some() {
            return Err(TransitionError::Suspended);
        }
        if self.rotated_to.is_some() {
            return Err(TransitionError::AlreadyRotated);
        }
        Ok(())
    }

    /// Creates the successor with the same permissions, restrictions and expiration. The key itself expires at the end
    /// of the overlap, or earlier. Each key stores the ID of the other.
    ///
    /// # Errors
    /// [`TransitionError`] unless the key is active and has no successor yet.
    pub fn rotate(
        &mut self,
        id: KeyId,
        text: &PlainKey,
        overlap: Overlap,
        now: Timestamp,
    ) -> Result<Self, TransitionError> {
        self.check_rotatable(now)?;
        let successor = Self {
            application_id: self.application_id,
            name: self.name.clone(),
            restrictions: self.restrictions.clone(),
            metadata: self.metadata.clone(),
            created_by: self.created_by,
            inherited: self.inherited.clone(),
            rotated_from: Some(self.id),
            ..Self::new(
                id,
                self.account_id.clone(),
                text,
                (self.family, self.mode),
                now,
            )
        };
        let end = now.saturating_add(overlap.0).unwrap_or(Timestamp::MAX);
        self.restrictions.expires_at =
            Some(self.restrictions.expires_at.map_or(end, |own| own.min(end)));
        self.rotated_to = Some(id);
        self.rotated_at = Some(now);
        Ok(successor)
    }
}

/// How long a rotated key stays valid alongside its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overlap(SignedDuration);

impl Overlap {
    /// The maximum: 7 days.
    pub const MAX_SECONDS: i64 = 604_800;

    /// Reads a number of seconds.
    ///
    /// # Errors
    /// [`Invalid`] unless 0 to [`Overlap::MAX_SECONDS`].
    pub fn parse(seconds: i64) -> Result<Self, Invalid> {
        if (0..=Self::MAX_SECONDS).contains(&seconds) {
            Ok(Self(SignedDuration::from_secs(seconds)))
        } else {
            Err(Invalid::new(format!(
                "must be between 0 and {}",
                Self::MAX_SECONDS
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiration_is_a_whole_second_in_the_future() {
        let at = |second, nano| Timestamp::new(second, nano).unwrap();
        let end = |end, now| Restrictions::parse_expiration(Some(end), now).ok();
        assert_eq!(Restrictions::parse_expiration(None, at(10, 0)), Ok(None));
        assert_eq!(end(at(11, 0), at(10, 0)), Some(Some(at(11, 0))));
        assert_eq!(end(at(11, 999_999_999), at(10, 0)), Some(Some(at(11, 0))));
        assert_eq!(
            end(Timestamp::MAX, at(10, 0)),
            Some(Some(at(Timestamp::MAX.as_second(), 0)))
        );
        // Not in the future once it is truncated.
        for (past, now) in [
            (at(10, 0), at(10, 0)),
            (at(10, 999_999_999), at(10, 0)),
            (at(10, 700), at(10, 600)),
        ] {
            assert_eq!(end(past, now), None);
        }
    }
}
