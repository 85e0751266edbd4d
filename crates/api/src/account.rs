//! Account keys (storlaunch): camelCase, RFC 3339, every answer in an envelope.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tollkey_core::{
    self as core, Invalid, Mode,
    audit::{ActorKind, TargetKind},
};

pub use crate::applications::RateLimit;
use crate::{
    Open, Secret,
    problem::FieldError,
    time::{Moment, Rfc3339},
};

/// An answer. One of `data` and `error` is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Envelope<T> {
    /// What was asked for.
    pub data: T,
    /// Null.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>, example = json!(null)))]
    pub error: (),
    /// About this answer.
    pub meta: Meta,
}

/// A list as an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ListEnvelope<T> {
    /// The things, newest first.
    pub data: Vec<T>,
    /// Null.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>, example = json!(null)))]
    pub error: (),
    /// About this answer.
    pub meta: ListMeta,
}

/// An answer that says what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorEnvelope {
    /// Null.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>, example = json!(null)))]
    pub data: (),
    /// What went wrong.
    pub error: ErrorBody,
    /// About this answer.
    pub meta: Meta,
}

/// About an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Meta {
    /// The request's id, as in `X-Request-Id`: `req_` and a ULID.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "req_01K30DW000E008000000000001")
    )]
    pub request_id: String,
    /// When it was answered.
    pub timestamp: Rfc3339,
}

/// About a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ListMeta {
    /// The request's id, as in `X-Request-Id`: `req_` and a ULID.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "req_01K30DW000E008000000000001")
    )]
    pub request_id: String,
    /// When it was answered.
    pub timestamp: Rfc3339,
    /// What to give as `cursor` for what comes next; null at the end.
    pub next_cursor: Option<String>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ErrorEnvelopeBody))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorBody {
    /// A stable code to switch on.
    #[cfg_attr(feature = "openapi", schema(example = "VALIDATION_ERROR"))]
    pub code: String,
    /// This occurrence in a sentence.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "/name must have 1 to 100 characters")
    )]
    pub message: String,
    /// More about it, when there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<ErrorDetails>,
}

/// More about what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorDetails {
    /// The code the other surfaces have for it, which can be finer.
    #[cfg_attr(feature = "openapi", schema(example = "validation_failed"))]
    pub code: String,
    /// Each member and the rule it breaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl ErrorBody {
    /// A problem in this surface's words. Its codes follow from the status.
    #[must_use]
    pub fn new(problem: &core::Problem) -> Self {
        let (code, status, _) = problem.code.row();
        let said = match status {
            400 => "VALIDATION_ERROR",
            401 => "INVALID_API_KEY",
            403 => "FORBIDDEN",
            404 => "NOT_FOUND",
            405 => "METHOD_NOT_ALLOWED",
            408 => "REQUEST_TIMEOUT",
            409 => "CONFLICT",
            413 => "PAYLOAD_TOO_LARGE",
            415 => "UNSUPPORTED_MEDIA_TYPE",
            422 => "IDEMPOTENCY_MISMATCH",
            429 => "RATE_LIMITED",
            503 => "UNAVAILABLE",
            _ => "INTERNAL_ERROR",
        };
        let errors: Vec<_> = problem.errors.iter().map(FieldError::from).collect();
        // The code of ours is told where it says more than the one of this surface.
        let details = (!errors.is_empty() || !code.eq_ignore_ascii_case(said) && status != 401)
            .then(|| ErrorDetails {
                code: code.to_owned(),
                errors,
            });
        Self {
            code: said.to_owned(),
            message: problem.detail.clone(),
            details,
        }
    }
}

/// What a key can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Access {
    /// Everything: not for clients.
    Secret,
    /// The public catalogue, read-only: safe to embed in a frontend.
    Publishable,
}

impl Access {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Secret, Self::Publishable];

    /// Its name.
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

/// The body of `POST /account/api-keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreateAccountKey))]
pub struct CreateKey {
    /// Its label: 1 to 100 characters after trimming.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "Production CI", min_length = 1, max_length = 100)
    )]
    pub name: String,
    /// Test keys see test data only.
    #[serde(deserialize_with = "crate::word::required")]
    pub environment: Mode,
    /// What it can call.
    #[serde(deserialize_with = "crate::word::required")]
    pub access: Access,
    /// When it ends; must be in the future. Never, or with the key that makes it, when absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "2027-01-01T00:00:00Z"))]
    pub expires_at: Option<Moment>,
    /// The networks it may be used from, in CIDR form with host bits zero. Any, or those of the key that makes it, when
    /// absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"]), min_items = 1, max_items = 100))]
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used, counted by each verifier for itself. Unlimited, or as the key that makes it, when
    /// absent or null.
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

/// What the document does not know; each member is there only on a key that has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountKeyExtras))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Extras {
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Rfc3339>,
    /// The networks it may be used from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// What the caller attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
}

/// A new key, with its text. This is the only answer that ever holds it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = CreatedAccountKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "key_01K30DW000E008000000000002")
    )]
    pub id: String,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Production webhook handler"))]
    pub name: String,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub environment: Open<Mode>,
    /// What it can call.
    #[cfg_attr(feature = "openapi", schema(value_type = Access))]
    pub access: Open<Access>,
    /// The whole key. Store it now: it cannot be shown again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(example = "sk_live_abc123...xyz9z8a"))]
    pub value: Secret,
    /// When it was made.
    pub created_at: Rfc3339,
    /// What the document does not know.
    #[serde(flatten)]
    pub extras: Extras,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountKey))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Key {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "key_01K30DW000E008000000000002")
    )]
    pub id: String,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Production webhook handler"))]
    pub name: String,
    /// How it begins.
    #[cfg_attr(feature = "openapi", schema(example = "sk_live_"))]
    pub prefix: String,
    /// The last four characters.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub environment: Open<Mode>,
    /// What it can call.
    #[cfg_attr(feature = "openapi", schema(value_type = Access))]
    pub access: Open<Access>,
    /// When it was made.
    pub created_at: Rfc3339,
    /// Its last successful verification, a few seconds late at most.
    pub last_used_at: Option<Rfc3339>,
    /// When it was revoked.
    pub revoked_at: Option<Rfc3339>,
    /// What the document does not know.
    #[serde(flatten)]
    pub extras: Extras,
}

/// The query of `GET /account/api-keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListKeys {
    /// How many keys, 1 to 1000; 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 1000))]
    pub limit: Option<u32>,
    /// Where to go on, from `meta.nextCursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// For operators only: whose keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// The query of `GET /account/audit-log`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListAuditLog {
    /// How many entries, 1 to 100; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// Where to go on, from `meta.nextCursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only this action, such as `api_key.created`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// For operators only: whose log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// An entry of the audit log: one change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountAuditEntry))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditEntry {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "aud_01K30DW000E008000000000003")
    )]
    pub id: String,
    /// When.
    pub occurred_at: Rfc3339,
    /// What was done, such as `api_key.revoked`.
    #[cfg_attr(feature = "openapi", schema(example = "api_key.revoked"))]
    pub action: String,
    /// By whom.
    pub actor: Actor,
    /// To what.
    pub target: Target,
    /// The id of the request that did it; null when none did.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "req_01K30DW000E008000000000001")
    )]
    pub request_id: Option<String>,
    /// The address it came from, when known.
    #[cfg_attr(feature = "openapi", schema(example = "203.0.113.7"))]
    pub ip: Option<String>,
    /// What is different now, in the members' names of the audit log. Never holds a secret.
    #[cfg_attr(feature = "openapi", schema(value_type = Object, example = json!({"status": "revoked"})))]
    pub changes: Value,
    /// SHA-256 over this entry and the hash before it in this account, as hex.
    #[cfg_attr(feature = "openapi", schema(min_length = 64, max_length = 64))]
    pub hash: String,
}

/// Who did something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountAuditActor))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Actor {
    /// What sort of caller.
    #[cfg_attr(feature = "openapi", schema(value_type = ActorKind))]
    pub r#type: Open<ActorKind>,
    /// The `sub` of a token, or the id of a key.
    pub id: String,
}

/// What something was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AccountAuditTarget))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Target {
    /// What sort of thing.
    #[cfg_attr(feature = "openapi", schema(value_type = TargetKind))]
    pub r#type: Open<TargetKind>,
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "key_01K30DW000E008000000000002")
    )]
    pub id: String,
}
