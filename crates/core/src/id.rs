//! IDs: UUIDv7, printed hyphenated or, in the account keys API, as a prefix such as `key_` and 26 characters of
//! Crockford base 32 for the same 128 bits.

use std::{cmp::Ordering, fmt, hash, marker::PhantomData, str::FromStr};

use jiff::Timestamp;
use rand::Rng;
use ulid::Ulid;
use uuid::Uuid;

use crate::{ApiKey, Application, Invalid, ServiceKey, audit};

/// A type of resource that an [`Id`] identifies.
pub trait Entity {
    /// The prefix of the Crockford form, for types that have this form.
    const PREFIX: Option<&'static str> = None;
}

impl Entity for ApiKey {
    const PREFIX: Option<&'static str> = Some("key_");
}
impl Entity for Application {}
impl Entity for ServiceKey {}
impl Entity for audit::Entry {
    const PREFIX: Option<&'static str> = Some("aud_");
}

/// The ID of an API key. Prints hyphenated; [`Id::crockford`] returns the other form. Both can be parsed.
pub type KeyId = Id<ApiKey>;
/// The ID of an application.
pub type ApplicationId = Id<Application>;
/// The ID of a service key.
pub type ServiceKeyId = Id<ServiceKey>;
/// The ID of an audit log entry.
pub type AuditId = Id<audit::Entry>;

/// A UUIDv7 that identifies one type of resource.
///
/// ```
/// use tollkey_core::KeyId;
/// let id: KeyId = "0198c0de-0000-7000-8000-000000000001".parse().unwrap();
/// assert_eq!(id.crockford(), "key_01K30DW000E008000000000001");
/// assert_eq!(id.crockford().parse(), Ok(id));
/// ```
pub struct Id<Of> {
    uuid: Uuid,
    of: PhantomData<fn() -> Of>,
}

impl<Of> Id<Of> {
    /// Creates an ID with the time `now`. The other 74 bits are random.
    pub fn new(now: Timestamp, rng: &mut (impl Rng + ?Sized)) -> Self {
        let mut random = [0; 10];
        rng.fill_bytes(&mut random);
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &random)
            .into_uuid()
            .into()
    }

    /// The 16 bytes, as they are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.uuid.as_bytes()
    }

    /// Creates the ID with these 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self {
            uuid: Uuid::from_bytes(bytes),
            of: PhantomData,
        }
    }
}

impl<Of: Entity> Id<Of> {
    /// Returns the form of the account keys API: the prefix and 26 Crockford base-32 characters.
    #[must_use]
    pub fn crockford(&self) -> String {
        format!(
            "{}{}",
            Of::PREFIX.unwrap_or_default(),
            Ulid(self.uuid.as_u128())
        )
    }
}

/// The text is not a valid ID. Callers respond as to an unknown ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a valid ID")]
pub struct InvalidId;

impl From<InvalidId> for Invalid {
    fn from(rule: InvalidId) -> Self {
        Self::new(rule.to_string())
    }
}

impl<Of: Entity> FromStr for Id<Of> {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if let Some(base32) = Of::PREFIX.and_then(|prefix| text.strip_prefix(prefix)) {
            // 26 characters have 130 bits: a first character above 7 would be an alias of another ID.
            if !matches!(base32.as_bytes().first(), Some(b'0'..=b'7')) {
                return Err(InvalidId);
            }
            let ulid = Ulid::from_string(base32).map_err(|_| InvalidId)?;
            return Ok(Uuid::from_u128(ulid.0).into());
        }
        if text.len() != 36 {
            return Err(InvalidId);
        }
        Uuid::try_parse(text).map(Into::into).map_err(|_| InvalidId)
    }
}

impl<Of> From<Uuid> for Id<Of> {
    fn from(uuid: Uuid) -> Self {
        Self {
            uuid,
            of: PhantomData,
        }
    }
}
impl<Of> fmt::Display for Id<Of> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uuid.hyphenated().fmt(f)
    }
}
impl<Of> fmt::Debug for Id<Of> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl<Of> Clone for Id<Of> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<Of> Copy for Id<Of> {}
impl<Of> PartialEq for Id<Of> {
    fn eq(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }
}
impl<Of> Eq for Id<Of> {}
impl<Of> PartialOrd for Id<Of> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<Of> Ord for Id<Of> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.uuid.cmp(&other.uuid)
    }
}
impl<Of> hash::Hash for Id<Of> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.uuid.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_printed_forms_of_an_id_are_parsed() {
        let id: KeyId = "0198c0de-0000-7000-8000-000000000001".parse().unwrap();
        assert_eq!(id.to_string(), "0198c0de-0000-7000-8000-000000000001");
        assert_eq!(id.crockford(), "key_01K30DW000E008000000000001");
        assert_eq!(id.crockford().parse(), Ok(id));
        assert_eq!(id.crockford().to_lowercase().parse(), Ok(id));
    }

    #[test]
    fn invalid_ids_are_rejected() {
        for text in [
            "",
            "key_",
            "key_81K30DW000E008000000000001",
            "key_01K30DW000E00800000000000U",
            "0198c0de000070008000000000000001",
            "{0198c0de-0000-7000-8000-000000000001}",
            "urn:uuid:0198c0de-0000-7000-8000-000000000001",
            "0198c0de-0000-7000-8000-00000000000g",
        ] {
            assert_eq!(text.parse::<KeyId>(), Err(InvalidId), "{text}");
        }
        assert!(
            "key_01K30DW000E008000000000001"
                .parse::<ApplicationId>()
                .is_err()
        );
    }
}
