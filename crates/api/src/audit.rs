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
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000003")
    )]
    pub id: String,
    /// When.
    pub occurred_at: UnixSeconds,
    /// What was done, such as `api_key.revoked`.
    #[cfg_attr(feature = "openapi", schema(example = "api_key.revoked"))]
    pub action: String,
    /// By whom.
    pub actor: AuditActor,
    /// To what.
    pub target: AuditTarget,
    /// The id of the request that did it; null when none did.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "req_01K30DW000E008000000000001")
    )]
    pub request_id: Option<String>,
    /// The address it came from, when known.
    #[cfg_attr(feature = "openapi", schema(example = "203.0.113.7"))]
    pub ip: Option<String>,
    /// What is different now. Never holds a secret.
    #[cfg_attr(feature = "openapi", schema(value_type = Object, example = json!({"status": "revoked"})))]
    pub changes: Value,
    /// SHA-256 over this entry and the hash before it in this account, as hex.
    #[cfg_attr(feature = "openapi", schema(min_length = 64, max_length = 64))]
    pub hash: String,
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditActor {
    /// What sort of caller.
    #[cfg_attr(feature = "openapi", schema(value_type = ActorKind))]
    pub r#type: Open<ActorKind>,
    /// The `sub` of its token, or the id of its key.
    #[cfg_attr(feature = "openapi", schema(example = "user_7"))]
    pub id: String,
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AuditTarget {
    /// What sort of thing.
    #[cfg_attr(feature = "openapi", schema(value_type = TargetKind))]
    pub r#type: Open<TargetKind>,
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
}

/// The query of `GET /audit-log`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub struct ListAuditLog {
    /// How many entries, 1 to 100; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(minimum = 1, maximum = 100))]
    pub limit: Option<u32>,
    /// Where to go on: from the `Link` header of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only entries of this action, such as `api_key.revoked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only entries about the thing with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_id: Option<String>,
    /// Only what this caller did: the `sub` of a token, or the id of a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<String>,
    /// Only entries at or after this time (Unix seconds or RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only entries before this time (Unix seconds or RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// For operators only: whose log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}
