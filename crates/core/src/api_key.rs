//! An API key as it is kept: everything but its text.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    AccountId, ApplicationId, Family, Invalid, IpList, KeyId, KeyText, Mode, RateLimit, Scope,
    feature::Feature,
    heap,
    lineage::{APPLICATION_DELETED, Inherited, Revocation, earliest},
    metadata::Metadata,
    spelling::{array, unknown_value},
    time::to_seconds,
};

/// An API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub account_id: AccountId,
    /// Its application, for keys of the application family.
    pub application_id: Option<ApplicationId>,
    /// Its label.
    pub name: String,
    /// Which documented key system it belongs to.
    pub family: Family,
    /// Live or test.
    pub mode: Mode,
    /// The shown beginning: `ck_live_` + 6 characters, `ks_live_` + 4, `sk_live_`, `pk_live_`.
    pub prefix: String,
    /// The last four characters.
    pub last4: String,
    /// What it may do.
    pub grants: Grants,
    /// What the caller attached.
    pub metadata: Option<Metadata>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its parent key: the key that created it, if a key did.
    pub created_by: Option<KeyId>,
    /// The last *successful* verification, as far as it has been written down.
    pub last_used_at: Option<Timestamp>,
    /// Since when the key itself is suspended, if it is.
    pub suspended_at: Option<Timestamp>,
    /// When the key's own revocation was recorded, if it was. See [`ApiKey::revocation`] for the one that applies.
    pub revoked_at: Option<Timestamp>,
    /// The reason recorded with it, if the caller gave one.
    pub revoked_reason: Option<String>,
    /// The key this one succeeds.
    pub rotated_from: Option<KeyId>,
    /// The key that succeeds this one.
    pub rotated_to: Option<KeyId>,
    /// When it got its successor.
    pub rotated_at: Option<Timestamp>,
    /// What binds it besides all that: its ancestors, and the deletion of its application. `None` when nothing does.
    pub inherited: Option<Box<Inherited>>,
}

/// What the caller chooses of a key that it creates.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// The label.
    pub name: String,
    /// Live or test.
    pub mode: Mode,
    /// What the key may do, and until when.
    pub grants: Grants,
    /// What the caller attaches.
    pub metadata: Option<Metadata>,
}

impl NewKey {
    /// The key as it is created. Its application and its parent key are the caller's to add.
    #[must_use]
    pub fn into_key(
        self,
        id: KeyId,
        account_id: AccountId,
        text: &KeyText,
        family: Family,
        now: Timestamp,
    ) -> ApiKey {
        ApiKey {
            name: self.name,
            grants: self.grants,
            metadata: self.metadata,
            ..ApiKey::new(id, account_id, text, (family, self.mode), now)
        }
    }
}

/// What a key may do, and until when. Each `None` is the absence of a restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// The scopes as given at creation; see [`crate::Catalogue::expand`] for what they satisfy.
    pub scopes: Vec<Scope>,
    /// The merchants a scoped key is bound to; never an empty list.
    pub merchants: Option<Vec<String>>,
    /// The features a scoped key is bound to; never an empty list.
    pub features: Option<Vec<Feature>>,
    /// The networks it may be used from.
    pub allowed_ips: Option<IpList>,
    /// How often it may be used.
    pub rate_limit: Option<RateLimit>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

impl Grants {
    /// Whether the key is a scoped key of hellgate's.
    #[must_use]
    pub fn is_scoped(&self) -> bool {
        self.merchants.is_some() || self.features.is_some()
    }

    /// Reads when a key shall end: at a whole second, as it will be shown.
    ///
    /// # Errors
    /// [`Invalid`] unless that lies in the future.
    pub fn parse_end(end: Option<Timestamp>, now: Timestamp) -> Result<Option<Timestamp>, Invalid> {
        match end.map(to_seconds) {
            Some(end) if end <= now => Err(Invalid::new("must be in the future")),
            end => Ok(end),
        }
    }
}

/// The status of a key: the first of these values that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Status {
    /// Ended by somebody, for good.
    Revoked,
    /// Past its `expires_at`.
    Expired,
    /// Stopped until resumed.
    Suspended,
    /// Usable.
    Active,
}

impl Status {
    /// All of them, the first that applies first.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// The first that applies at `now` to a key with this expiration.
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

    /// The spelling in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What a transition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Transition {
    /// The key is different now.
    Changed,
    /// It was so already; nothing is to be written.
    AlreadySo,
}

/// The reason why the status of a key does not allow a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unchangeable {
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
    /// A key without a name and without a restriction: the start of every other one, in tests as well, so that a new field
    /// is set here and where it matters.
    #[must_use]
    pub fn new(
        id: KeyId,
        account_id: AccountId,
        text: &KeyText,
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
            grants: Grants::default(),
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

    /// Binds the key to what its ancestors allow, the root first.
    #[must_use]
    pub fn with_ancestors<'a>(mut self, ancestors: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut inherited = Inherited::from_ancestors(ancestors);
        if let Some((at, reason)) = self
            .inherited
            .as_ref()
            .and_then(|inherited| inherited.revoked)
        {
            inherited.revoke(at, reason);
        }
        self.inherit(inherited);
        self
    }

    /// Binds the key to the deletion of its application, which revokes it unless it had expired before.
    #[must_use]
    pub fn with_deleted_application(mut self, deleted_at: Timestamp) -> Self {
        if self.expiration().is_none_or(|end| end > deleted_at) {
            let mut inherited = self
                .inherited
                .take()
                .map_or_else(Inherited::default, |inherited| *inherited);
            inherited.revoke(deleted_at, APPLICATION_DELETED);
            self.inherit(inherited);
        }
        self
    }

    fn inherit(&mut self, inherited: Inherited) {
        self.inherited = (inherited != Inherited::default()).then(|| Box::new(inherited));
    }

    /// The status of the key at `now`: its own, and that of its ancestors.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        let own = Status::of(
            self.revoked_at.is_some(),
            self.own_expiration(),
            self.suspended_at.is_some(),
            now,
        );
        // Most keys inherit nothing: they are decided without a look at what is not in their row.
        match &self.inherited {
            None => own,
            Some(inherited) => own.min(inherited.status(now)),
        }
    }

    /// The revocation that applies: the key's own, else the earliest of an ancestor or of its application.
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

    /// When the key expires: with itself or with the first of its ancestors.
    #[must_use]
    pub fn expiration(&self) -> Option<Timestamp> {
        let own = self.own_expiration();
        self.inherited
            .as_ref()
            .map_or(own, |inherited| earliest(own, inherited.expires_at))
    }

    /// The expiration of the key itself. A key whose overlap had ended when it was rotated has expired, whatever the
    /// clock of a replica says.
    pub(crate) fn own_expiration(&self) -> Option<Timestamp> {
        let end = self.grants.expires_at?;
        Some(if self.rotated_at.is_some_and(|at| end <= at) {
            Timestamp::UNIX_EPOCH
        } else {
            end
        })
    }

    /// Since when the key is suspended, by itself or by the first of its ancestors.
    #[must_use]
    pub fn suspension(&self) -> Option<Timestamp> {
        self.inherited
            .as_ref()
            .map_or(self.suspended_at, |inherited| {
                earliest(self.suspended_at, inherited.suspended_at)
            })
    }

    /// Whether the key may be used from that address: by its own IP allowlist and by those of its ancestors. A client
    /// without an address passes no list.
    #[must_use]
    #[inline]
    pub fn allows_client(&self, client: Option<IpAddr>) -> bool {
        let own = self.grants.allowed_ips.as_ref();
        own.is_none_or(|list| client.is_some_and(|address| list.contains(address)))
            && self
                .inherited
                .as_ref()
                .is_none_or(|inherited| inherited.allows(client))
    }

    /// The networks from which the key may be used: those that its own IP allowlist and those of its ancestors have in
    /// common; `None` when there is no list.
    #[must_use]
    pub fn effective_allowlist(&self) -> Option<IpList> {
        let inherited = self
            .inherited
            .iter()
            .flat_map(|inherited| &inherited.allowed_ips);
        self.grants
            .allowed_ips
            .iter()
            .chain(inherited)
            .cloned()
            .reduce(|one, other| one.intersection(&other))
    }

    /// The rate limits that a use of the key counts against, with the key that each belongs to: those of its ancestors,
    /// the root's first, then its own.
    pub fn rate_limits(&self) -> impl Iterator<Item = (KeyId, RateLimit)> {
        let inherited = self
            .inherited
            .iter()
            .flat_map(|inherited| &inherited.rate_limits);
        inherited
            .copied()
            .chain(self.grants.rate_limit.map(|limit| (self.id, limit)))
    }

    /// Revokes the key. A repeat changes nothing, not even the reason; nor does it when an ancestor is revoked.
    pub fn revoke(&mut self, now: Timestamp, reason: Option<String>) -> Transition {
        if self.revocation().is_some() {
            return Transition::AlreadySo;
        }
        self.revoked_at = Some(now);
        self.revoked_reason = reason;
        Transition::Changed
    }

    /// Records on the key itself the revocation that it inherits, with the time and the reason of that one.
    pub fn record_inherited_revocation(&mut self) -> Transition {
        let Some(Revocation { at, reason }) =
            self.revocation().filter(|_| self.revoked_at.is_none())
        else {
            return Transition::AlreadySo;
        };
        (self.revoked_at, self.revoked_reason) = (Some(at), reason.map(str::to_owned));
        Transition::Changed
    }

    /// Stops the key until it is resumed.
    ///
    /// # Errors
    /// [`Unchangeable::Revoked`].
    pub fn suspend(&mut self, now: Timestamp) -> Result<Transition, Unchangeable> {
        if self.revocation().is_some() {
            return Err(Unchangeable::Revoked);
        }
        if self.suspended_at.is_some() {
            return Ok(Transition::AlreadySo);
        }
        self.suspended_at = Some(now);
        Ok(Transition::Changed)
    }

    /// Lets a suspended key work again.
    ///
    /// # Errors
    /// [`Unchangeable::Revoked`].
    pub fn resume(&mut self) -> Result<Transition, Unchangeable> {
        if self.revocation().is_some() {
            return Err(Unchangeable::Revoked);
        }
        Ok(match self.suspended_at.take() {
            Some(_) => Transition::Changed,
            None => Transition::AlreadySo,
        })
    }

    /// Moves the key's end. Once rotated it can end sooner, not later: the overlap is a promise.
    ///
    /// # Errors
    /// [`Invalid`] for a later end of a key that has a successor.
    pub fn set_end(&mut self, end: Option<Timestamp>) -> Result<(), Invalid> {
        let later = |own: Timestamp| end.is_none_or(|end| end > own);
        if self.rotated_to.is_some() && self.grants.expires_at.is_some_and(later) {
            return Err(Invalid::new(
                "must not be later than its current value, because the key is rotated",
            ));
        }
        self.grants.expires_at = end;
        Ok(())
    }

    /// Estimates the heap it takes, in bytes, without the account ID, which many keys can share.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let Grants {
            scopes,
            merchants,
            features,
            allowed_ips,
            rate_limit: _,
            expires_at: _,
        } = &self.grants;
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

    /// How many bytes the name, the restrictions and the metadata take in a list, roughly: what pages of keys are limited by.
    #[must_use]
    pub fn listed_bytes(&self) -> usize {
        let Grants {
            scopes,
            merchants,
            features: _, // at most five
            allowed_ips,
            rate_limit: _,
            expires_at: _,
        } = &self.grants;
        self.name.len()
            + 16 * scopes.len()
            + merchants.iter().flatten().map(String::len).sum::<usize>()
            + 20 * allowed_ips.as_ref().map_or(0, |list| list.networks().len())
            + self
                .metadata
                .as_ref()
                .map_or(0, |metadata| metadata.as_json().len())
    }

    /// Gives up spare capacity, and what no decision about the key needs.
    pub(crate) fn compact(&mut self) {
        self.revoked_reason = None;
        for text in [&mut self.name, &mut self.prefix, &mut self.last4] {
            text.shrink_to_fit();
        }
        let Grants {
            scopes,
            merchants,
            features,
            allowed_ips,
            rate_limit: _,
            expires_at: _,
        } = &mut self.grants;
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

    /// Whether what the key may do can still be changed.
    ///
    /// # Errors
    /// [`Unchangeable::Revoked`], [`Unchangeable::Expired`].
    pub fn changeable(&self, now: Timestamp) -> Result<(), Unchangeable> {
        match self.status(now) {
            Status::Revoked => Err(Unchangeable::Revoked),
            Status::Expired => Err(Unchangeable::Expired),
            Status::Suspended | Status::Active => Ok(()),
        }
    }

    /// Whether the key can have a successor.
    ///
    /// # Errors
    /// [`Unchangeable`] unless the key is active and has no successor yet.
    pub fn rotatable(&self, now: Timestamp) -> Result<(), Unchangeable> {
        self.changeable(now)?;
        if self.suspended_at.is_some() {
            return Err(Unchangeable::Suspended);
        }
        if self.rotated_to.is_some() {
            return Err(Unchangeable::AlreadyRotated);
        }
        Ok(())
    }

    /// Gives the key a successor with the same grants and the same end, and lets the key itself end after the
    /// overlap, unless it ends sooner anyway. Each names the other.
    ///
    /// # Errors
    /// [`Unchangeable`] unless the key is active and has no successor yet.
    pub fn rotate(
        &mut self,
        id: KeyId,
        text: &KeyText,
        overlap: Overlap,
        now: Timestamp,
    ) -> Result<Self, Unchangeable> {
        self.rotatable(now)?;
        let successor = Self {
            application_id: self.application_id,
            name: self.name.clone(),
            grants: self.grants.clone(),
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
        self.grants.expires_at = Some(self.grants.expires_at.map_or(end, |own| own.min(end)));
        self.rotated_to = Some(id);
        self.rotated_at = Some(now);
        Ok(successor)
    }
}

/// For how long a rotated key goes on working beside its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overlap(SignedDuration);

impl Overlap {
    /// The longest: a week.
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
    fn a_key_ends_at_a_whole_second_in_the_future() {
        let at = |second, nano| Timestamp::new(second, nano).unwrap();
        let end = |end, now| Grants::parse_end(Some(end), now).ok();
        assert_eq!(Grants::parse_end(None, at(10, 0)), Ok(None));
        assert_eq!(end(at(11, 0), at(10, 0)), Some(Some(at(11, 0))));
        assert_eq!(end(at(11, 999_999_999), at(10, 0)), Some(Some(at(11, 0))));
        assert_eq!(
            end(Timestamp::MAX, at(10, 0)),
            Some(Some(at(Timestamp::MAX.as_second(), 0)))
        );
        // Cut, it is over.
        for (over, now) in [
            (at(10, 0), at(10, 0)),
            (at(10, 999_999_999), at(10, 0)),
            (at(10, 700), at(10, 600)),
        ] {
            assert_eq!(end(over, now), None);
        }
    }
}
