//! Applications and their keys (kadosei): camelCase, RFC 3339.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tollkey_core::{Mode, Scope, Status};

use crate::{
    Open, Patch, Secret,
    time::{Moment, Rfc3339},
};

/// The body of `POST /applications`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateApplication {
    /// The name: 1 to 100 characters after trimming white space. It must be unique among the
    /// applications of the account. Upper and lower case are different.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Production Web Store", min_length = 1, max_length = 100)
    )]
    pub name: String,
    /// The description: at most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Primary e-commerce backend", max_length = 500)
    )]
    pub description: Option<String>,
}

/// The body of `PATCH /applications/{id}`: a JSON merge patch (RFC 7396). The application keeps the
/// value of each absent field.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateApplication {
    /// The new name: 1 to 100 characters. It cannot be cleared.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "Web Store EU", min_length = 1, max_length = 100))]
    pub name: Patch<String>,
    /// The new description: at most 500 characters. Null removes it.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, max_length = 500))]
    pub description: Patch<String>,
}

/// The body of `PATCH /applications/{id}/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetApplicationStatus {
    /// `false` denies all keys of the application, `true` allows them again.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub is_enabled: bool,
}

/// An application, which groups the keys of one integration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Application {
    /// The ID of the application.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::application_id))]
    pub id: String,
    /// The name of the application.
    #[cfg_attr(feature = "openapi", schema(example = "Production Web Store"))]
    pub name: String,
    /// The description, or null.
    #[cfg_attr(
        feature = "openapi",
        schema(required, example = "Primary e-commerce backend")
    )]
    pub description: Option<String>,
    /// Whether the application is enabled. The keys of a disabled application are denied.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub is_enabled: bool,
    /// The time when the application was created.
    pub created_at: Rfc3339,
    /// The keys of the application, newest first, at most 100. Present only with `include=apiKeys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, max_items = 100))]
    pub api_keys: Option<Vec<IncludedKey>>,
}

/// A key in the list of its application, with `include=apiKeys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = IncludedApplicationKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct IncludedKey {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// The first characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc1"))]
    pub key_prefix: String,
    /// The description of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub description: String,
    /// The status of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
}

/// The body of `POST /applications/{id}/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreateApplicationKey))]
pub struct CreateKey {
    /// The description of the key: 1 to 255 characters after trimming white space.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Primary checkout key", min_length = 1, max_length = 255)
    )]
    pub description: String,
    /// The mode of the key. Default: `live`.
    #[serde(default, deserialize_with = "crate::enum_value::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The scopes of the key. Default: `["commerce"]`. An empty list is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"]), min_items = 1, max_items = 128, pattern = "^[a-z][a-z0-9._:-]{0,63}$"))]
    pub scopes: Option<Vec<String>>,
    /// The time when the key expires: RFC 3339 or Unix seconds, in the future. By default the key
    /// does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Moment>,
    /// The IP ranges that the key can be used from: 1 to 100 CIDRs whose host bits are zero. By
    /// default every IP address is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"]), min_items = 1, max_items = 100, pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))]
    pub allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, which each verifier counts for itself. By default the key has no
    /// limit.
    #[serde(default, deserialize_with = "crate::applications::requested")]
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

/// A limit on how often a key can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ApplicationKeyRateLimit))]
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = KeyRateLimit))]
pub(crate) struct RequestedRateLimit {
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

/// A new key. Only the response to its creation contains the full key.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreatedApplicationKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedKey {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// The ID of the application.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::application_id))]
    pub application_id: String,
    /// The full key. Store it now: it is not returned again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "ks_live_abc123xyz..."))]
    pub full_key: Secret,
    /// The first characters of the key. Later responses show them to identify it.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc1"))]
    pub key_prefix: String,
    /// The description of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub description: String,
    /// The time when the key was created.
    pub created_at: Rfc3339,
}

/// A key of an application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ApplicationKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Key {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// The first characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc1"))]
    pub key_prefix: String,
    /// The description of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub description: String,
    /// The status of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
    /// The ID of the application.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::application_id))]
    pub application_id: String,
    /// The last four characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// The scopes of the key as they were set, without the scopes that they imply.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["commerce"])))]
    pub scopes: Vec<Scope>,
    /// The IP ranges that the key can be used from. Null allows every IP address.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rate_limit: Option<RateLimit>,
    /// The metadata of the key, or null.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// The time when the key was created.
    pub created_at: Rfc3339,
    /// The time when the key expires, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expires_at: Option<Rfc3339>,
    /// The time of the last successful verification, with a delay of up to a minute, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used_at: Option<Rfc3339>,
    /// The time when the key was revoked, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_at: Option<Rfc3339>,
    /// The reason for the revocation, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_reason: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Page<T> {
    /// The items of this page, newest first.
    pub items: Vec<T>,
    /// The number of this page, starting at 1.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub page: u32,
    /// The maximum number of items on a page.
    #[cfg_attr(feature = "openapi", schema(example = 10))]
    pub limit: u32,
    /// The number of items on all pages.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub total_items: u64,
    /// The number of pages. 0 if there are no items.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub total_pages: u64,
    /// Whether a page before this one exists.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub has_previous_page: bool,
    /// Whether a page after this one exists.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub has_next_page: bool,
}

impl<T> Page<T> {
    /// Creates a page of a list with `total_items` items.
    #[must_use]
    pub fn new(items: Vec<T>, page: u32, limit: u32, total_items: u64) -> Self {
        let total_pages = total_items.div_ceil(limit.into());
        Self {
            items,
            page,
            limit,
            total_items,
            total_pages,
            has_previous_page: page > 1 && total_pages > 0,
            has_next_page: u64::from(page) < total_pages,
        }
    }
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Page<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

/// The query of `GET /applications`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListApplications {
    /// `apiKeys` adds the keys of each application: the newest 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub include: Option<Include>,
    /// The number of the page, starting at 1. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1))]
    pub page: Option<u32>,
    /// The maximum number of applications on a page: 1 to 100. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// The ID of the account. Required for operators, and only operators can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(example = "acme"))]
    pub account: Option<String>,
}

/// The objects that the list of applications can include.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Include {
    /// The keys of each application.
    #[serde(rename = "apiKeys")]
    ApiKeys,
}

/// The query of `GET /applications/{id}/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListKeys {
    /// The number of the page, starting at 1. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1))]
    pub page: Option<u32>,
    /// The maximum number of keys on a page: 1 to 100. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// The ID of the account. Required for operators, and only operators can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(example = "acme"))]
    pub account: Option<String>,
}
