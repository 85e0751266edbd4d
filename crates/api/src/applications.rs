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
    /// 1 to 100 characters after trimming; unique in the account, case-sensitively, among those not deleted.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Production Web Store", min_length = 1, max_length = 100)
    )]
    pub name: String,
    /// At most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Primary e-commerce backend", max_length = 500)
    )]
    pub description: Option<String>,
}

/// The body of `PATCH /applications/{id}`: a JSON merge patch (RFC 7396).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateApplication {
    /// The new name; it cannot be cleared.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "Web Store EU", max_length = 100))]
    pub name: Patch<String>,
    /// The new description; `null` clears it.
    #[serde(default, skip_serializing_if = "Patch::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, max_length = 500))]
    pub description: Patch<String>,
}

/// The body of `PATCH /applications/{id}/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetApplicationStatus {
    /// `false` denies all keys of the application, `true` brings them back.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub is_enabled: bool,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Application {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000001")
    )]
    pub id: String,
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(example = "Production Web Store"))]
    pub name: String,
    /// What it is for, or null.
    #[cfg_attr(feature = "openapi", schema(example = "Primary e-commerce backend"))]
    pub description: Option<String>,
    /// Whether its keys work.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub is_enabled: bool,
    /// When it was made.
    pub created_at: Rfc3339,
    /// Its keys, newest first; only with `include=apiKeys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_keys: Option<Vec<IncludedKey>>,
}

/// A key inside an application, with `include=apiKeys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct IncludedKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
    /// How it begins.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc1"))]
    pub key_prefix: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub description: String,
    /// Where it stands.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
}

/// The body of `POST /applications/{id}/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateKey {
    /// What it is for: 1 to 255 characters after trimming.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Primary checkout key", min_length = 1, max_length = 255)
    )]
    pub description: String,
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
    #[cfg_attr(feature = "openapi", schema(example = "2027-01-01T00:00:00Z"))]
    pub expires_at: Option<Moment>,
    /// The networks it may be used from, in CIDR form with host bits zero. Any, when absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"]), min_items = 1, max_items = 100))]
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used, counted by each verifier for itself. Unlimited, when absent or null.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::applications::requested"
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

/// How often a key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(as = ApplicationKeyRateLimit, description = "How often a key may be used.")
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

/// A new key, with its text. This is the only answer that ever holds it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreatedApplicationKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
    /// Its application.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000001")
    )]
    pub application_id: String,
    /// The whole key. Store it now: it cannot be shown again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc123xyz..."))]
    pub full_key: Secret,
    /// How it begins; shown later.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc1"))]
    pub key_prefix: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub description: String,
    /// When it was made.
    pub created_at: Rfc3339,
}

/// A key of an application, in `GET /applications/{id}/api-keys`: the four members of [`IncludedKey`], then the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ApplicationKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Key {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
    /// How it begins.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_abc1"))]
    pub key_prefix: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub description: String,
    /// Where it stands.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
    /// Its application.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000001")
    )]
    pub application_id: String,
    /// The last four characters.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// Its scopes, as given.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["commerce"])))]
    pub scopes: Vec<Scope>,
    /// The networks it may be used from; null allows any.
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used; null is unlimited.
    pub rate_limit: Option<RateLimit>,
    /// What the caller attached.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// When it was made.
    pub created_at: Rfc3339,
    /// When it ends; null is never.
    pub expires_at: Option<Rfc3339>,
    /// Its last successful verification, a few seconds late at most.
    pub last_used_at: Option<Rfc3339>,
    /// When it was revoked.
    pub revoked_at: Option<Rfc3339>,
    /// Why it was revoked, if somebody said so.
    pub revoked_reason: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Which page this is, from 1.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub page: u32,
    /// How many items a page has.
    #[cfg_attr(feature = "openapi", schema(example = 10))]
    pub limit: u32,
    /// How many items there are.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub total_items: u64,
    /// How many pages there are; 0 when there is no item.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub total_pages: u64,
    /// Whether there is a page before this one.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub has_previous_page: bool,
    /// Whether there is a page after this one.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub has_next_page: bool,
}

impl<T> Page<T> {
    /// A page of a list of `total_items`.
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
    /// Adds each application's keys, the newest 100 of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(inline))]
    pub include: Option<Include>,
    /// Which page, from 1; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1))]
    pub page: Option<u32>,
    /// How many items, 1 to 100; 10 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// For operators only: whose applications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// What a list can include.
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
    /// Which page, from 1; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1))]
    pub page: Option<u32>,
    /// How many items, 1 to 100; 10 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// For operators only: whose keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}
