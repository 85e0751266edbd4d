//! The content of audit entries about keys.

use serde_json::{Map, Value, json};
use tollkey_core::{ApiKey, Status, Timestamp};

/// Excludes the full key and the metadata: the log is kept forever, and metadata can be personal data.
pub(super) fn audit_fields(key: &ApiKey) -> Map<String, Value> {
    let restrictions = &key.restrictions;
    let mut fields = Map::new();
    let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    field("name", json!(key.name));
    field("family", json!(key.family.as_str()));
    field("mode", json!(key.mode.as_str()));
    field("prefix", json!(key.prefix));
    field("last4", json!(key.last4));
    field(
        "application_id",
        json!(key.application_id.map(|id| id.to_string())),
    );
    field(
        "scopes",
        restrictions
            .scopes
            .iter()
            .map(ToString::to_string)
            .collect(),
    );
    field("merchants", json!(restrictions.merchants));
    let features = restrictions.features.as_ref();
    field(
        "features",
        json!(features.map(|all| {
            all.iter()
                .map(|feature| feature.as_str())
                .collect::<Vec<_>>()
        })),
    );
    let allowed_ips = restrictions.allowed_ips.as_ref();
    field(
        "allowed_ips",
        json!(allowed_ips.map(|list| {
            list.networks()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })),
    );
    let limit = restrictions.rate_limit;
    field(
        "rate_limit",
        json!(limit.map(
            |limit| json!({"limit": limit.limit(), "window_seconds": limit.window_seconds()})
        )),
    );
    field(
        "expires_at",
        json!(restrictions.expires_at.map(|end| end.as_second())),
    );
    if let Some(creator) = key.created_by {
        field("created_by", json!(creator.to_string()));
    }
    fields
}

/// Returns the fields that differ, as `[before, after]`. For metadata, only the fact that it changed.
pub(super) fn differences(before: &ApiKey, after: &ApiKey) -> Map<String, Value> {
    let mut changes = Map::new();
    for ((name, was), (_, is)) in audit_fields(before).into_iter().zip(audit_fields(after)) {
        if was != is {
            changes.insert(name, json!([was, is]));
        }
    }
    if before.metadata != after.metadata {
        changes.insert("metadata".to_owned(), json!("changed"));
    }
    changes
}

pub(crate) fn status_change(key: &ApiKey, now: Timestamp) -> Value {
    match key.status(now) {
        Status::Revoked => json!({"status": "revoked", "reason": key.revoked_reason}),
        status => json!({"status": status.as_str()}),
    }
}
