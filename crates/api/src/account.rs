//! Account keys (storlaunch): camelCase, RFC 3339, each response in an envelope.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tollkey_core::{
    self as core, Invalid, Mode,
    audit::{ActorKind, TargetKind},
};

pub use crate::applications::RateLimit;
#[cfg(feature = "openapi")]
use crate::applications::RequestedRateLimit;
use crate::{
    Open, Secret,
    problem::FieldError,
    time::{Moment, Rfc3339},
};

/// A response: the data, and information about the response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Envelope<T> {
    /// The result.
    pub data: T,
    /// Always null in a successful response.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>, example = json!(null)))]
    pub error: (),
    /// Information about the response.
    pub meta: Meta,
}

/// A response with a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ListEnvelope<T> {
    /// The items, newest first.
    pub data: Vec<T>,
    /// Always null in a successful response.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>, example = json!(null)))]
    pub error: (),
    /// Information about the response.
    pub meta: ListMeta,
}

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorEnvelope {
    /// Always null in an error response.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>, example = json!(null)))]
    pub data: (),
    /// The error.
    pub error: ErrorBody,
    /// Information about the response.
    pub meta: Meta,
}

/// Information about a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = EnvelopeMeta))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Meta {
    /// The ID of the request, as in the header `X-Request-Id`: `req_` and a ULID.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::request_id))]
    pub request_id: String,
    /// The time of the response.
    pub timestamp: Rfc3339,
}

/// Information about a response with a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ListEnvelopeMeta))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ListMeta {
    /// The ID of the request, as in the header `X-Request-Id`: `req_` and a ULID.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::request_id))]
    pub request_id: String,
    /// The time of the response.
    pub timestamp: Rfc3339,
    /// The `cursor` of the next page. Null on the last page.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub next_cursor: Option<String>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ErrorEnvelopeBody))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorBody {
    /// The code of the error, which follows from the status of the response. It does not change
    /// between releases.
    #[cfg_attr(feature = "openapi", schema(example = "VALIDATION_ERROR"))]
    pub code: String,
    /// What is wrong with this request, and what to do next.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "/name: must have 1 to 100 characters")
    )]
    pub message: String,
    /// Details of the error. Absent for an error without details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub details: Option<ErrorDetails>,
}

/// Details of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ErrorEnvelopeDetails))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorDetails {
    /// The code of the error in the other APIs of this server, which is more specific.
    #[cfg_attr(feature = "openapi", schema(example = "validation_failed"))]
    pub code: String,
    /// The invalid fields and the rules that they break.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl ErrorBody {
    /// Creates the error of a problem. Its code follows from the status.
    #[must_use]
    pub fn new(problem: &core::Problem) -> Self {
        let (code, status, _) = problem.code.row();
        let account_code = match status {
            400 => "VALIDATION_ERROR",
            401 => "INVALID_API_KEY",
            403 => "FORBIDDEN",
            404 => "NOT_FOUND",
            405 => "METHOD_NOT_ALLOWED",
            408 => "REQUEST_TIMEOUT",
            409 => "CONFLICT",
            412 => "PRECONDITION_FAILED",
            413 => "PAYLOAD_TOO_LARGE",
            415 => "UNSUPPORTED_MEDIA_TYPE",
            422 => "IDEMPOTENCY_MISMATCH",
            429 => "RATE_LIMITED",
            503 => "UNAVAILABLE",
            _ => "INTERNAL_ERROR",
        };
        let errors: Vec<_> = problem.errors.iter().map(FieldError::from).collect();
        // Reports the code of the problem if it is more specific than the code of this surface.
        let details = (!errors.is_empty()
            || !code.eq_ignore_ascii_case(account_code) && status != 401)
            .then(|| ErrorDetails {
                code: code.to_owned(),
                errors,
            });
        Self {
            code: account_code.to_owned(),
            message: problem.detail.clone(),
            details,
        }
    }
}

/// The access of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Access {
    /// Full access to the account. Must not be exposed to clients.
    Secret,
    /// Read-only access to the public catalog. Safe to embed in a frontend.
    Publishable,
}

impl Access {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Secret, Self::Publishable];

    /// The value in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Publishable => "publishable",
        }
    }
}

impl AsRef<str> for Access {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Access {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|access| access.as_str() == text)
            .ok_or_else(|| {
                Invalid::new(format!(
                    "must be one of {}",
                    Self::ALL.map(Self::as_str).join(", ")
                ))
            })
    }
}

/// The mode of a new key, in the values of the document (`live`, `test`) or of the vendor's client
/// libraries (`production`, `sandbox`). Responses have the values of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountKeyEnvironment))]
pub enum Environment {
    /// A live key.
    Live,
    /// A test key.
    Test,
    /// The same as `live`.
    Production,
    /// The same as `test`.
    Sandbox,
}

impl Environment {
    /// Returns the mode of a key with this environment.
    #[must_use]
    pub fn mode(self) -> Mode {
        match self {
            Self::Live | Self::Production => Mode::Live,
            Self::Test | Self::Sandbox => Mode::Test,
        }
    }

    /// Returns the access of a key whose request has none. The document requires `access`; the
    /// vendor's client libraries, which send the other two values, do not know it.
    #[must_use]
    pub fn default_access(self) -> Option<Access> {
        match self {
            Self::Live | Self::Test => None,
            Self::Production | Self::Sandbox => Some(Access::Secret),
        }
    }
}

impl From<Mode> for Environment {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Live => Self::Live,
            Mode::Test => Self::Test,
        }
    }
}

/// The body of `POST /account/api-keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreateAccountKey))]
pub struct CreateKey {
    /// The label of the key: 1 to 100 characters after trimming white space.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Production CI", min_length = 1, max_length = 100)
    )]
    pub name: String,
    /// The mode of the key: `live` or `test`, also accepted as `production` or `sandbox`. A test
    /// key can read and manage only test keys.
    #[serde(deserialize_with = "crate::enum_value::required")]
    pub environment: Environment,
    /// The access of the key. `secret` is full access; `publishable` is read-only access to the
    /// public catalog. Required with the environment `live` or `test`. Default with `production`
    /// or `sandbox`: `secret`.
    #[serde(default, deserialize_with = "crate::enum_value::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// The time when the key expires: RFC 3339 or Unix seconds, in the future. By default it is the
    /// expiration of the parent key, or never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Moment>,
    /// The IP ranges that the key can be used from: 1 to 100 CIDRs whose host bits are zero. By
    /// default they are those of the parent key, or every IP address is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"]), min_items = 1, max_items = 100, pattern = "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"))]
    pub allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, which each verifier counts for itself. By default it is that of
    /// the parent key, or there is no limit.
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

/// Restrictions and metadata of a key. Each field is present only if the key has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountKeyExtras))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Extras {
    /// The time when the key expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub expires_at: Option<Rfc3339>,
    /// The IP ranges that the key can be used from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub rate_limit: Option<RateLimit>,
    /// The metadata of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub metadata: Option<Map<String, Value>>,
}

/// A new key. Only the response to its creation contains the full key.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreatedAccountKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedKey {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::account_key_id))]
    pub id: String,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Production webhook handler"))]
    pub name: String,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub environment: Open<Mode>,
    /// The access of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Access))]
    pub access: Open<Access>,
    /// The full key. Store it now: it is not returned again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "sk_live_abc123...xyz9z8a"))]
    pub value: Secret,
    /// The time when the key was created.
    pub created_at: Rfc3339,
    /// Restrictions and metadata of the key.
    #[serde(flatten)]
    pub extras: Extras,
}

/// An account key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Key {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::account_key_id))]
    pub id: String,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Production webhook handler"))]
    pub name: String,
    /// The first characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "sk_live_"))]
    pub prefix: String,
    /// The last four characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub environment: Open<Mode>,
    /// The access of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Access))]
    pub access: Open<Access>,
    /// The time when the key was created.
    pub created_at: Rfc3339,
    /// The time of the last successful verification, with a delay of up to a minute, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used_at: Option<Rfc3339>,
    /// The time when the key was revoked, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_at: Option<Rfc3339>,
    /// Restrictions and metadata of the key.
    #[serde(flatten)]
    pub extras: Extras,
}

/// The query of `GET /account/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListKeys {
    /// The maximum number of keys: 1 to 1,000. Default: 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 1000))]
    pub limit: Option<u32>,
    /// The cursor of the next page, from `meta.nextCursor` of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The ID of the account. Required for operators, and only operators can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(example = "acme"))]
    pub account: Option<String>,
}

/// The query of `GET /account/audit-log`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListAuditLog {
    /// The maximum number of entries: 1 to 100. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// The cursor of the next page, from `meta.nextCursor` of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Returns only entries with this action, such as `api_key.created`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Returns only entries about a resource of this type: `api_key`, `application` or `account`.
    /// With another value, the list is empty.
    #[serde(rename = "entityType", default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_type: Option<String>,
    /// Returns only entries at or after this time: RFC 3339 or Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Returns only entries before this time: RFC 3339 or Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The ID of the account. Required for operators, and only operators can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(example = "acme"))]
    pub account: Option<String>,
}

/// An entry of the audit log: one change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountAuditEntry))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditEntry {
    /// The ID of the entry.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "aud_01K30DW000E008000000000003")
    )]
    pub id: String,
    /// The time of the change.
    pub occurred_at: Rfc3339,
    /// The action, such as `api_key.revoked`.
    #[cfg_attr(feature = "openapi", schema(example = "api_key.revoked"))]
    pub action: String,
    /// The actor that made the change.
    pub actor: Actor,
    /// The resource that was changed.
    pub target: Target,
    /// The ID of the request that made the change. Null if no request made it.
    #[cfg_attr(feature = "openapi", schema(required, example = crate::examples::request_id))]
    pub request_id: Option<String>,
    /// The IP address of the client, or null if it is not known.
    #[cfg_attr(feature = "openapi", schema(required, example = "203.0.113.7"))]
    pub ip: Option<String>,
    /// The changed fields. Contains no secret.
    #[cfg_attr(feature = "openapi", schema(value_type = Object, example = json!({"status": "revoked"})))]
    pub changes: Value,
    /// The SHA-256 over this entry and the hash of the previous entry of the account, in
    /// hexadecimal digits.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::hash, pattern = "^[0-9a-f]{64}$"))]
    pub hash: String,
}

/// The actor of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountAuditActor))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Actor {
    /// The type of the actor.
    #[cfg_attr(feature = "openapi", schema(value_type = ActorKind))]
    pub r#type: Open<ActorKind>,
    /// The `sub` of the actor's token, or the ID of its key.
    pub id: String,
}

/// The resource that a change is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountAuditTarget))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Target {
    /// The type of the resource.
    #[cfg_attr(feature = "openapi", schema(value_type = TargetKind))]
    pub r#type: Open<TargetKind>,
    /// The ID of the resource.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::account_key_id))]
    pub id: String,
}
