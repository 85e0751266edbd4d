//! What the audit log says about keys.

use serde_json::{Map, Value, json};
use tollkey_core::{ApiKey, Status, Timestamp};

/// Returns what the audit log says about a new key: its grants, and neither its text nor its metadata. The log is kept forever, and
/// metadata can be personal data.
pub(super) fn described(key: &ApiKey) -> Map<String, Value> {
    let grants = &key.grants;
    let mut members = Map::new();
    let mut member = |name: &str, value: Value| members.insert(name.to_owned(), value);
    member("name", json!(key.name));
    member("family", json!(key.family.as_str()));
    member("mode", json!(key.mode.as_str()));
    member("prefix", json!(key.prefix));
    member("last4", json!(key.last4));
    member(
        "application_id",
        json!(key.application_id.map(|id| id.to_string())),
    );
    member(
        "scopes",
        grants.scopes.iter().map(ToString::to_string).collect(),
    );
    member("merchants", json!(grants.merchants));
    let features = grants.features.as_ref();
    member(
        "features",
        json!(features.map(|all| {
            all.iter()
                .map(|feature| feature.as_str())
                .collect::<Vec<_>>()
        })),
    );
    let networks = grants.allowed_ips.as_ref();
    member(
        "allowed_ips",
        json!(networks.map(|list| {
            list.networks()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })),
    );
    let limit = grants.rate_limit;
    member(
        "rate_limit",
        json!(limit.map(
            |limit| json!({"limit": limit.limit(), "window_seconds": limit.window_seconds()})
        )),
    );
    member(
        "expires_at",
        json!(grants.expires_at.map(|end| end.as_second())),
    );
    if let Some(maker) = key.created_by {
        member("created_by", json!(maker.to_string()));
    }
    members
}

/// Returns what is different, as `[before, after]`.
pub(super) fn differences(before: &ApiKey, after: &ApiKey) -> Map<String, Value> {
    let mut changes = Map::new();
    for ((name, was), (_, is)) in described(before).into_iter().zip(described(after)) {
        if was != is {
            changes.insert(name, json!([was, is]));
        }
    }
    if before.metadata != after.metadata {
        changes.insert("metadata".to_owned(), json!("changed"));
    }
    changes
}

/// Returns what the audit log says about a key whose status was changed.
pub(crate) fn status_change(key: &ApiKey, now: Timestamp) -> Value {
    match key.status(now) {
        Status::Revoked => json!({"status": "revoked", "reason": key.revoked_reason}),
        status => json!({"status": status.as_str()}),
    }
}
