//! Commerce keys (pepay, crypto-checkout, hellgate): snake_case, Unix seconds.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tollkey_core::{Invalid, Mode, Scope, Status, feature::Feature};

use crate::{
    Open, Patch, Secret,
    time::{Moment, UnixSeconds},
};

/// The purpose of a key. The documents define one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum KeyScope {
    /// Commerce operations.
    #[default]
    Commerce,
}

impl KeyScope {
    /// The value in JSON.
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

/// A limit on how often a key can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CommerceKeyRateLimit))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct RateLimit {
    /// The number of uses in one window: 1 to 1,000,000.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 100, minimum = 1, maximum = 1_000_000)
    )]
    pub limit: i64,
    /// The length of the window in seconds: 1 to 86,400.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 60, minimum = 1, maximum = 86_400)
    )]
    pub window_seconds: i64,
}

impl RateLimit {
    /// Creates a limit of this many uses in this many seconds. The server rejects values out of
    /// range.
    #[must_use]
    pub const fn new(limit: i64, window_seconds: i64) -> Self {
        Self {
            limit,
            window_seconds,
        }
    }
}

/// A limit on how often a key can be used.
// In a request, an unknown field is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreateCommerceKeyRateLimit))]
struct RequestedRateLimit {
    /// The number of uses in one window: 1 to 1,000,000.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 100, minimum = 1, maximum = 1_000_000)
    )]
    limit: i64,
    /// The length of the window in seconds: 1 to 86,400.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 60, minimum = 1, maximum = 86_400)
    )]
    window_seconds: i64,
}

/// Reads a rate limit in a request, or null. For `#[serde(default, deserialize_with = "…")]`.
///
/// # Errors
/// Any value except null and an object with exactly the two fields.
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
    /// The label of the key: 1 to 255 characters after trimming white space.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Commerce Server Key", min_length = 1, max_length = 255)
    )]
    pub name: String,
    /// The purpose of the key. `commerce` is the only value and the default.
    #[serde(default, deserialize_with = "crate::enum_value::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<KeyScope>,
    /// The mode of the key. Default: `live`.
    #[serde(default, deserialize_with = "crate::enum_value::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The scopes of the key. Default: `["commerce"]`. An empty list is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"]), min_items = 1, max_items = 128, pattern = "^[a-z][a-z0-9._:-]{0,63}$"))]
    pub scopes: Option<Vec<String>>,
    /// The time when the key expires: Unix seconds or RFC 3339, in the future. By default the key
    /// does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Moment>,
    /// The merchants that the key is limited to: 1 to 100 IDs, each with 1 to 128 characters from
    /// `A-Z a-z 0-9 . _ : @ -`. Makes the key a scoped key, which requires the operating model
    /// `ecosystem` or `managed_ecosystem`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["merchant-1"]), min_items = 1, max_items = 100, min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:@-]+$"))]
    pub merchants: Option<Vec<String>>,
    /// The features that the key is limited to. Makes the key a scoped key. With `merchants` alone,
    /// the key has all features of the account's operating model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>, example = json!(["tokens.list"]), min_items = 1, max_items = 5))]
    pub features: Option<Vec<String>>,
    /// The IP ranges that the key can be used from: 1 to 100 CIDRs whose host bits are zero. By
    /// default every IP address is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"]), min_items = 1, max_items = 100, pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))]
    pub allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, which each verifier counts for itself. By default the key has no
    /// limit.
    #[serde(default, deserialize_with = "crate::commerce::requested")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<RequestedRateLimit>))]
    pub rate_limit: Option<RateLimit>,
    /// An object of at most 4,096 bytes of JSON and 64 levels of nesting, which is stored and
    /// returned with the key. Integers beyond 64 bits are returned as floating-point numbers.
    #[serde(default, deserialize_with = "crate::metadata::object")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>, example = json!({"owner": "checkout"})))]
    pub metadata: Option<Map<String, Value>>,
}

/// The body of `PATCH /api-keys/{id}`: a JSON merge patch (RFC 7396). The key keeps the value of
/// each absent field.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UpdateCommerceKey))]
pub struct UpdateKey {
    /// The new label: 1 to 255 characters. It cannot be cleared.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, min_length = 1, max_length = 255))]
    pub name: Patch<String>,
    /// The current mode. It cannot be changed, because it is part of the key.
    #[serde(default, deserialize_with = "crate::enum_value::patch")]
    #[serde(skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Patch<Mode>,
    /// The new scopes, which replace the old ones. Null sets the default, `["commerce"]`.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 128, pattern = "^[a-z][a-z0-9._:-]{0,63}$"))]
    pub scopes: Patch<Vec<String>>,
    /// The new expiration: Unix seconds or RFC 3339, in the future. Null means that the key does
    /// not expire. A rotated key cannot get a later expiration.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Moment>))]
    pub expires_at: Patch<Moment>,
    /// The new merchants, which replace the old ones. They cannot be cleared: null is accepted only
    /// for a key without merchants.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 100, min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:@-]+$"))]
    pub merchants: Patch<Vec<String>>,
    /// The new features, which replace the old ones. They cannot be cleared: null is accepted only
    /// for a key without features.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>, min_items = 1, max_items = 5))]
    pub features: Patch<Vec<String>>,
    /// The new IP ranges, which replace the old ones. Null allows every IP address.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 100, pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))]
    pub allowed_ips: Patch<Vec<String>>,
    /// The fields of the rate limit to change. Null removes the limit.
    #[serde(default, deserialize_with = "crate::object::patch")]
    #[serde(skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<UpdateRateLimit>))]
    pub rate_limit: Patch<UpdateRateLimit>,
    /// The fields of the metadata to change; a field with null is removed. Null removes all
    /// metadata.
    #[serde(default, deserialize_with = "crate::metadata::patch")]
    #[serde(skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Patch<Map<String, Value>>,
}

/// The fields of a rate limit to change. The limit keeps the value of each absent field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UpdateCommerceKeyRateLimit))]
pub struct UpdateRateLimit {
    /// The number of uses in one window: 1 to 1,000,000.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = i64, example = 100, minimum = 1, maximum = 1_000_000))]
    pub limit: Patch<i64>,
    /// The length of the window in seconds: 1 to 86,400.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = i64, example = 60, minimum = 1, maximum = 86_400))]
    pub window_seconds: Patch<i64>,
}

/// A new key. Only the response to its creation contains the full key.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreatedCommerceKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedKey {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub key_id: String,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Commerce Server Key"))]
    pub name: String,
    /// The purpose of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = KeyScope))]
    pub scope: Open<KeyScope>,
    /// The full key. Store it now: it is not returned again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "ck_live_abc123xyz..."))]
    pub api_key: Secret,
    /// The time when the key expires, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expires_at: Option<UnixSeconds>,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// The scopes of the key as they were set, without the scopes that they imply.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["commerce"])))]
    pub scopes: Vec<Scope>,
    /// The first characters of the key. Later responses show them to identify it.
    #[cfg_attr(feature = "openapi", schema(example = "ck_live_abc123"))]
    pub prefix: String,
    /// The merchants that the key is limited to, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub merchants: Option<Vec<String>>,
    /// The features that the key is limited to, or null.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// The time when the key was created.
    pub created_at: UnixSeconds,
}

/// A commerce key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CommerceKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Key {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub key_id: String,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Commerce Server Key"))]
    pub name: String,
    /// The purpose of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = KeyScope))]
    pub scope: Open<KeyScope>,
    /// The status of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
    /// The time when the key expires, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expires_at: Option<UnixSeconds>,
    /// The time of the last successful verification, with a delay of up to a minute, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used_at: Option<UnixSeconds>,
    /// The time when the key was created.
    pub created_at: UnixSeconds,
    /// The time when the key was revoked, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_at: Option<UnixSeconds>,
    /// The reason for the revocation, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_reason: Option<String>,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// The scopes of the key as they were set, without the scopes that they imply.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["commerce"])))]
    pub scopes: Vec<Scope>,
    /// The first characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "ck_live_abc123"))]
    pub prefix: String,
    /// The last four characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// The merchants that the key is limited to, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub merchants: Option<Vec<String>>,
    /// The features that the key is limited to, or null.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// The IP ranges that the key can be used from. Null allows every IP address.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rate_limit: Option<RateLimit>,
    /// The metadata of the key, or null.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// The ID of the predecessor, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rotated_from: Option<String>,
    /// The ID of the successor, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rotated_to: Option<String>,
}

/// The query of `GET /api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListKeys {
    /// The purpose of the keys. `commerce` is the only value and the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub scope: Option<KeyScope>,
    /// The maximum number of keys: 1 to 1,000. Default: 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 1000))]
    pub limit: Option<u32>,
    /// The cursor of the next page, from the `Link` header of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The ID of the account. Required for operators, and only operators can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(example = "acme"))]
    pub account: Option<String>,
}

/// The body of `POST /api-keys/{id}/revoke`, which can be empty.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = RevokeCommerceKey))]
pub struct RevokeKey {
    /// The reason for the revocation: at most 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "rotated", max_length = 255))]
    pub reason: Option<String>,
}

/// A body without fields, which can be empty.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = EmptyBody))]
pub struct Nothing {}

/// The body of `POST /api-keys/{id}/rotate`, which can be empty.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = RotateCommerceKey))]
pub struct RotateKey {
    /// The length of the overlap in seconds, during which the predecessor still works: 0 to 604,800
    /// (7 days). Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = 86_400, minimum = 0, maximum = 604_800)
    )]
    pub overlap_seconds: Option<i64>,
}

/// The response to a revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = RevocationMessage))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Message {
    /// Always `API key revoked successfully`.
    #[cfg_attr(feature = "openapi", schema(example = "API key revoked successfully"))]
    pub message: String,
}
