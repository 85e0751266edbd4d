//! The audit log: snake_case, Unix seconds.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tollkey_core::audit::{ActorKind, TargetKind};

use crate::{Open, time::UnixSeconds};

/// An entry of the audit log: one change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditEntry {
    /// The ID of the entry.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000003")
    )]
    pub id: String,
    /// The time of the change.
    pub occurred_at: UnixSeconds,
    /// The action, such as `api_key.revoked`.
    #[cfg_attr(feature = "openapi", schema(example = "api_key.revoked"))]
    pub action: String,
    /// The actor that made the change.
    pub actor: AuditActor,
    /// The resource that was changed.
    pub target: AuditTarget,
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditActor {
    /// The type of the actor.
    #[cfg_attr(feature = "openapi", schema(value_type = ActorKind))]
    pub r#type: Open<ActorKind>,
    /// The `sub` of the actor's token, or the ID of its key.
    #[cfg_attr(feature = "openapi", schema(example = "user_7"))]
    pub id: String,
}

/// The resource that a change is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditTarget {
    /// The type of the resource.
    #[cfg_attr(feature = "openapi", schema(value_type = TargetKind))]
    pub r#type: Open<TargetKind>,
    /// The ID of the resource.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
}

/// The query of `GET /audit-log`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListAuditLog {
    /// The maximum number of entries: 1 to 100. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// The cursor of the next page, from the `Link` header of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Returns only entries with this action, such as `api_key.revoked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Returns only entries about the resource with this ID: at most 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(max_length = 255))]
    pub target_id: Option<String>,
    /// Returns only entries of this actor: the `sub` of a token, or the ID of a key, at most 255
    /// characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(max_length = 255))]
    pub actor_id: Option<String>,
    /// Returns only entries at or after this time: Unix seconds or RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Returns only entries before this time: Unix seconds or RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// The ID of the account. Required for operators, and only operators can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(example = "acme"))]
    pub account: Option<String>,
}
