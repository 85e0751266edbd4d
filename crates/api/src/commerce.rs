//! Commerce keys (pepay, crypto-checkout, hellgate): snake_case, Unix seconds.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tollkey_core::{Invalid, Mode, Scope, Status, feature::Feature};

use crate::{
    Open, Patch, Secret,
    time::{Moment, UnixSeconds},
};

/// What the keys of this surface are for; the documents have one word for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum KeyScope {
    /// Commerce operations.
    #[default]
    Commerce,
}

impl KeyScope {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commerce => "commerce",
        }
    }
}

impl AsRef<str> for KeyScope {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How often a key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct RateLimit {
    /// How many uses, 1 to 1 000 000.
    pub limit: i64,
    /// In how many seconds, 1 to 86 400.
    pub window_seconds: i64,
}

impl RateLimit {
    /// So many uses in so many seconds. The server refuses what is out of bounds.
    #[must_use]
    pub const fn new(limit: i64, window_seconds: i64) -> Self {
        Self {
            limit,
            window_seconds,
        }
    }
}

/// A rate limit in a request: another member is a mistake of the caller's there, not a newer server's. It describes
/// [`RateLimit`] too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(as = CommerceKeyRateLimit, description = "How often a key may be used.")
)]
struct RequestedRateLimit {
    /// How many uses, 1 to 1 000 000.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 100, minimum = 1, maximum = 1_000_000)
    )]
    limit: i64,
    /// In how many seconds, 1 to 86 400.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 60, minimum = 1, maximum = 86_400)
    )]
    window_seconds: i64,
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for RateLimit {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        RequestedRateLimit::schema()
    }
}
#[cfg(feature = "openapi")]
impl utoipa::ToSchema for RateLimit {
    fn name() -> std::borrow::Cow<'static, str> {
        RequestedRateLimit::name()
    }
}

/// Reads a rate limit in a request, or null. For `#[serde(default, deserialize_with = "…")]`.
///
/// # Errors
/// For anything but an object with exactly its members.
pub(crate) fn requested<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RateLimit>, D::Error> {
    let requested: Option<RequestedRateLimit> = crate::object::option(deserializer)?;
    Ok(requested.map(|limit| RateLimit::new(limit.limit, limit.window_seconds)))
}

impl From<tollkey_core::RateLimit> for RateLimit {
    fn from(limit: tollkey_core::RateLimit) -> Self {
        Self {
            limit: limit.limit().get().into(),
            window_seconds: limit.window_seconds().get().into(),
        }
    }
}

impl TryFrom<RateLimit> for tollkey_core::RateLimit {
    type Error = Invalid;

    fn try_from(limit: RateLimit) -> Result<Self, Invalid> {
        Self::new(limit.limit, limit.window_seconds)
    }
}

/// The body of `POST /api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreateCommerceKey))]
pub struct CreateKey {
    /// Its label: 1 to 255 characters after trimming.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Commerce Server Key", min_length = 1, max_length = 255)
    )]
    pub name: String,
    /// What it is for; can be left out.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::word::option"
    )]
    pub scope: Option<KeyScope>,
    /// Live or test; `live` when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::word::option"
    )]
    pub mode: Option<Mode>,
    /// Exactly these scopes; `["commerce"]` when absent or null. An empty list is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"]), min_items = 1))]
    pub scopes: Option<Vec<String>>,
    /// When it ends; must be in the future. Never, when absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = 1_798_761_600))]
    pub expires_at: Option<Moment>,
    /// Makes it a scoped key of these merchants. Only where the account's operating model has scoped keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["merchant-1"]), min_items = 1, max_items = 100))]
    pub merchants: Option<Vec<String>>,
    /// Makes it a scoped key of these features; all of the account's operating model with `merchants` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>, example = json!(["tokens.list"]), min_items = 1))]
    pub features: Option<Vec<String>>,
    /// The networks it may be used from, in CIDR form with host bits zero. Any, when absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"]), min_items = 1, max_items = 100))]
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used, counted by each verifier for itself. Unlimited, when absent or null.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::commerce::requested"
    )]
    pub rate_limit: Option<RateLimit>,
    /// An object of at most 4 KiB of JSON, kept and given back. Whole numbers beyond 64 bits come back as floating point.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::metadata::object"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>, example = json!({"owner": "checkout"})))]
    pub metadata: Option<Map<String, Value>>,
}

/// The body of `PATCH /api-keys/{id}`: a JSON merge patch (RFC 7396).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UpdateCommerceKey))]
pub struct UpdateKey {
    /// The new label; it cannot be cleared.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, max_length = 255))]
    pub name: Patch<String>,
    /// The mode it has; it stands in the key's text and cannot be changed.
    #[serde(
        default,
        skip_serializing_if = "Patch::is_absent",
        deserialize_with = "crate::word::patch"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Mode>))]
    pub mode: Patch<Mode>,
    /// Exactly these scopes; null gives the default, `["commerce"]`.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, min_items = 1))]
    pub scopes: Patch<Vec<String>>,
    /// When it ends, in the future; null is never.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Moment>))]
    pub expires_at: Patch<Moment>,
    /// The merchants of a scoped key; once set they cannot be cleared.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, min_items = 1))]
    pub merchants: Patch<Vec<String>>,
    /// The features of a scoped key; once set they cannot be cleared.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>, min_items = 1))]
    pub features: Patch<Vec<String>>,
    /// The networks it may be used from; null allows any.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, min_items = 1))]
    pub allowed_ips: Patch<Vec<String>>,
    /// How often it may be used, merged with what there is; null is unlimited.
    #[serde(
        default,
        skip_serializing_if = "Patch::is_absent",
        deserialize_with = "crate::object::patch"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<UpdateRateLimit>))]
    pub rate_limit: Patch<UpdateRateLimit>,
    /// Merged with what there is, member by member; null clears it.
    #[serde(
        default,
        skip_serializing_if = "Patch::is_absent",
        deserialize_with = "crate::metadata::patch"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Patch<Map<String, Value>>,
}

/// A rate limit in a merge patch; what is absent stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UpdateCommerceKeyRateLimit))]
pub struct UpdateRateLimit {
    /// How many uses.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<i64>, minimum = 1, maximum = 1_000_000))]
    pub limit: Patch<i64>,
    /// In how many seconds.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<i64>, minimum = 1, maximum = 86_400))]
    pub window_seconds: Patch<i64>,
}

/// A new key, with its text: the five members of the document, then the rest. This is the only answer that ever
/// holds the text.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreatedCommerceKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub key_id: String,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Commerce Server Key"))]
    pub name: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(value_type = KeyScope))]
    pub scope: Open<KeyScope>,
    /// The whole key. Store it now: it cannot be shown again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(example = "ck_live_abc123xyz..."))]
    pub api_key: Secret,
    /// When it ends; null is never.
    pub expires_at: Option<UnixSeconds>,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// Its scopes, as given.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["commerce"])))]
    pub scopes: Vec<Scope>,
    /// How it begins; shown later.
    #[cfg_attr(feature = "openapi", schema(example = "ck_live_abc123"))]
    pub prefix: String,
    /// The merchants of a scoped key.
    pub merchants: Option<Vec<String>>,
    /// The features of a scoped key.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// When it was made.
    pub created_at: UnixSeconds,
}

/// A key: the nine members of the document, then the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CommerceKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Key {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub key_id: String,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Commerce Server Key"))]
    pub name: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(value_type = KeyScope))]
    pub scope: Open<KeyScope>,
    /// Where it stands.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
    /// When it ends; null is never.
    pub expires_at: Option<UnixSeconds>,
    /// Its last successful verification, a few seconds late at most.
    pub last_used_at: Option<UnixSeconds>,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// When it was revoked.
    pub revoked_at: Option<UnixSeconds>,
    /// Why it was revoked, if somebody said so.
    pub revoked_reason: Option<String>,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// Its scopes, as given.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["commerce"])))]
    pub scopes: Vec<Scope>,
    /// How it begins.
    #[cfg_attr(feature = "openapi", schema(example = "ck_live_abc123"))]
    pub prefix: String,
    /// The last four characters.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// The merchants of a scoped key.
    pub merchants: Option<Vec<String>>,
    /// The features of a scoped key.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// The networks it may be used from; null allows any.
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used; null is unlimited.
    pub rate_limit: Option<RateLimit>,
    /// What the caller attached.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// The key it succeeds.
    pub rotated_from: Option<String>,
    /// The key that succeeds it.
    pub rotated_to: Option<String>,
}

/// The query of `GET /api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListKeys {
    /// Can be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub scope: Option<KeyScope>,
    /// How many keys, 1 to 1000; 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 1000))]
    pub limit: Option<u32>,
    /// Where to go on, from a `Link` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// For operators only: whose keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// The body of `POST /api-keys/{id}/revoke`; none at all is fine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = RevokeCommerceKey))]
pub struct RevokeKey {
    /// Why: at most 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "rotated", max_length = 255))]
    pub reason: Option<String>,
}

/// The body of `POST /api-keys/{id}/suspend` and `…/resume`; none at all is fine.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Nothing {}

/// The body of `POST /api-keys/{id}/rotate`; none at all is fine.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = RotateCommerceKey))]
pub struct RotateKey {
    /// For how many seconds the old key goes on working, 0 to 604 800; 0 when absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = 86_400, minimum = 0, maximum = 604_800)
    )]
    pub overlap_seconds: Option<i64>,
}

/// What a revocation answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Message {
    /// Always the same words.
    #[cfg_attr(feature = "openapi", schema(example = "API key revoked successfully"))]
    pub message: String,
}
