//! Entity tags, and preconditions of changes (RFC 9110, sections 8.8.3 and 13.1.1).
//!
//! An [`EntityTag`] is a hash of the managed state: the fields that a change can set, and the ID. It is the same on every
//! surface and replica. Usage and the passage of time do not change it. [`Preconditions`] are those that a caller
//! requires of a change; they are checked in the transaction of the change.

use std::fmt;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    Account, ApiKey, Application, Invalid, Problem, Restrictions, Scope, ServiceKey, Timestamp, hex,
};

/// The length of a tag in bytes: half of a SHA-256.
const LEN: usize = 16;

/// A strong entity tag. Its `Display` is the value of the header `ETag`, including the quotation marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntityTag([u8; LEN]);

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        hex::write(&self.0, f)?;
        f.write_str("\"")
    }
}

impl EntityTag {
    /// The state is an array, so its JSON is the same whenever the state is.
    fn of(kind: &str, state: &Value) -> Self {
        let hash = Sha256::digest(json!([kind, state]).to_string());
        let mut tag = [0; LEN];
        tag.copy_from_slice(&hash[..LEN]);
        Self(tag)
    }

    /// Reads the text between the quotation marks. Tags are compared character by character, so an upper-case digit
    /// does not match.
    fn parse(opaque: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(opaque).ok()?;
        let tag = hex::read(text).ok().map(Self)?;
        (!text.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(tag)
    }
}

/// The precision in which the store keeps times.
fn micros(time: Option<Timestamp>) -> Value {
    json!(time.map(Timestamp::as_microsecond))
}

impl ApiKey {
    /// Returns the tag of the managed state. A revocation by an ancestor or an application counts from the moment at
    /// which it applies, not only once it is recorded on this key.
    #[must_use]
    pub fn entity_tag(&self) -> EntityTag {
        let Restrictions {
            expires_at,
            allowed_ips,
            features,
            merchants,
            rate_limit,
            scopes,
        } = &self.restrictions;
        let scopes: Vec<&str> = scopes.iter().map(Scope::as_str).collect();
        let features: Option<Vec<&str>> = features
            .as_ref()
            .map(|features| features.iter().map(|feature| feature.as_str()).collect());
        let allowed_ips: Option<Vec<String>> = allowed_ips
            .as_ref()
            .map(|list| list.networks().iter().map(ToString::to_string).collect());
        let rate_limit = rate_limit.map(|limit| (limit.limit(), limit.window_seconds()));
        let revocation = self
            .revocation()
            .map(|revocation| (micros(Some(revocation.at)), revocation.reason));
        EntityTag::of(
            "api_key",
            &json!([
                self.id.to_string(),
                self.name,
                scopes,
                merchants,
                features,
                allowed_ips,
                rate_limit,
                micros(*expires_at),
                self.metadata.as_ref().map(|metadata| metadata.as_json()),
                micros(self.suspended_at),
                revocation,
                self.rotated_to.map(|id| id.to_string()),
            ]),
        )
    }
}

impl Application {
    /// Returns the tag of the managed state. The keys of the application are not part of it.
    #[must_use]
    pub fn entity_tag(&self) -> EntityTag {
        EntityTag::of(
            "application",
            &json!([
                self.id.to_string(),
                self.name,
                self.description,
                self.is_enabled
            ]),
        )
    }
}

impl Account {
    /// Returns the tag of the managed state: the settings of the account.
    #[must_use]
    pub fn entity_tag(&self) -> EntityTag {
        EntityTag::of(
            "account",
            &json!([self.id.as_str(), self.operating_model.as_str()]),
        )
    }
}

impl ServiceKey {
    /// Returns the tag of the managed state.
    #[must_use]
    pub fn entity_tag(&self) -> EntityTag {
        EntityTag::of(
            "service_key",
            &json!([self.id.to_string(), self.name, micros(self.revoked_at)]),
        )
    }
}

/// What a caller requires of the current state before it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preconditions {
    if_match: Option<IfMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum IfMatch {
    /// Any state of a resource that exists.
    Any,
    /// One of these states. A weak tag, or one that Tollkey cannot have created, matches no state.
    OneOf(Vec<EntityTag>),
}

impl Preconditions {
    /// No requirement.
    pub const NONE: Self = Self { if_match: None };

    /// Reads the values of all `If-Match` headers of a request.
    ///
    /// # Errors
    /// [`Invalid`] unless they are a single `*` or a list of entity tags.
    ///
    /// ```
    /// use tollkey_core::etag::Preconditions;
    /// assert_eq!(Preconditions::parse([]), Ok(Preconditions::NONE));
    /// assert!(Preconditions::parse([b"*".as_slice()]).is_ok());
    /// assert!(Preconditions::parse([b"\"a\", W/\"b\"".as_slice()]).is_ok());
    /// assert!(Preconditions::parse([b"unquoted".as_slice()]).is_err());
    /// ```
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Invalid> {
        let values: Vec<&[u8]> = values.into_iter().map(<[u8]>::trim_ascii).collect();
        let if_match = match values.as_slice() {
            [] => None,
            [b"*"] => Some(IfMatch::Any),
            lists => {
                let (mut tags, mut count) = (Vec::new(), 0);
                for list in lists {
                    count += read_tags(list, &mut tags).ok_or_else(rule)?;
                }
                if count == 0 {
                    return Err(rule());
                }
                Some(IfMatch::OneOf(tags))
            }
        };
        Ok(Self { if_match })
    }

    /// Checks the current state.
    ///
    /// # Errors
    /// `precondition_failed` if the caller requires another state.
    pub fn check(&self, current: EntityTag) -> Result<(), Problem> {
        match &self.if_match {
            Some(IfMatch::OneOf(tags)) if !tags.contains(&current) => {
                Err(Problem::precondition_failed())
            }
            _ => Ok(()),
        }
    }
}

fn rule() -> Invalid {
    Invalid::new("must be * or a list of ETag values with their quotation marks")
}

/// Adds the tags of a list that can match, and returns the number of all its tags. `None` for a malformed list.
fn read_tags(list: &[u8], tags: &mut Vec<EntityTag>) -> Option<usize> {
    let (mut rest, mut count) = (list, 0);
    while !rest.is_empty() {
        // Empty elements are allowed (RFC 9110, section 5.6.1.2).
        if let Some(next) = rest.strip_prefix(b",") {
            rest = next.trim_ascii_start();
            continue;
        }
        let strong = rest.strip_prefix(b"W/").unwrap_or(rest);
        let is_weak = strong.len() < rest.len();
        let quoted = strong.strip_prefix(b"\"")?;
        let end = quoted.iter().position(|byte| *byte == b'"')?;
        let (opaque, after) = quoted.split_at(end);
        if !opaque
            .iter()
            .all(|byte| matches!(byte, b'!'..=b'~' | 0x80..))
        {
            return None;
        }
        tags.extend(EntityTag::parse(opaque).filter(|_| !is_weak));
        count += 1;
        rest = after[1..].trim_ascii_start();
        if !matches!(rest.first(), None | Some(b',')) {
            return None;
        }
    }
    Some(count)
}
