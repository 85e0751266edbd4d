//! Responses of a newer server, with fields and enum values that this release does not know: they are read, and the
//! values are kept as strings.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tollkey_api::{
    Open, account, applications, audit, commerce, operator,
    problem::{FieldError, Problem},
    sync, unkey, verification,
};
use tollkey_core::{
    Mode, Scope, Status,
    audit::{ActorKind, TargetKind},
    feature::Feature,
};

/// An enum value that this release does not know.
const NEW: &str = "a_new_value";

/// Reads a response, with an unknown field in place of each `"+"`.
fn read<T: DeserializeOwned + Debug>(text: &str) -> T {
    let newer = text.replace(r#""+""#, r#""a_new_field": {"of": ["any", null, 7]}"#);
    assert_ne!(newer, text, "the text has no unknown field");
    serde_json::from_str(&newer).unwrap_or_else(|error| panic!("{error}: {newer}"))
}

fn assert_unknown<T: AsRef<str>>(value: &Open<T>) {
    assert_eq!(
        (value.as_str(), matches!(value, Open::Unknown(_))),
        (NEW, true)
    );
}

fn assert_features(features: Option<Vec<Open<Feature>>>) {
    let features = features.unwrap();
    assert!(features[0] == Feature::TokensList);
    assert_unknown(&features[1]);
    assert_eq!(features.len(), 2);
}

fn assert_scopes(scopes: &[Scope]) {
    assert_eq!(scopes, [Scope::LINKS_READ, Scope::from(NEW)]);
}

#[test]
fn newer_commerce_responses_are_read() {
    let key: commerce::Key = read(
        r#"{
            "+", "key_id": "k1", "name": "Commerce Server Key", "scope": "a_new_value", "status": "a_new_value",
            "expires_at": null, "last_used_at": 1771848000, "created_at": 1771848000, "revoked_at": null,
            "revoked_reason": null, "mode": "a_new_value", "scopes": ["links:read", "a_new_value"], "prefix": "ck_",
            "last4": "9z8a", "merchants": null, "features": ["tokens.list", "a_new_value"], "allowed_ips": null,
            "rate_limit": {"+", "limit": 100, "window_seconds": 60}, "metadata": {"+"}, "rotated_from": null,
            "rotated_to": null
        }"#,
    );
    assert_unknown(&key.scope);
    assert_unknown(&key.status);
    assert_unknown(&key.mode);
    assert_scopes(&key.scopes);
    assert_features(key.features);
    assert_eq!(key.rate_limit, Some(commerce::RateLimit::new(100, 60)));
    assert_eq!(key.metadata.unwrap().len(), 1);

    let created: commerce::CreatedKey = read(
        r#"{
            "+", "key_id": "k1", "name": "Commerce Server Key", "scope": "a_new_value", "api_key": "ck_test_EXAMPLE",
            "expires_at": null, "mode": "a_new_value", "scopes": ["links:read", "a_new_value"], "prefix": "ck_test_",
            "merchants": null, "features": ["tokens.list", "a_new_value"], "created_at": 1771848000
        }"#,
    );
    assert_unknown(&created.scope);
    assert_unknown(&created.mode);
    assert_scopes(&created.scopes);
    assert_features(created.features);
    assert_eq!(created.api_key.expose(), "ck_test_EXAMPLE");

    let message: commerce::Message = read(r#"{"+", "message": "API key revoked successfully"}"#);
    assert_eq!(message.message, "API key revoked successfully");
}

#[test]
fn newer_applications_responses_are_read() {
    let page: applications::Page<applications::Application> = read(
        r#"{
            "+", "page": 1, "limit": 10, "totalItems": 1, "totalPages": 1, "hasPreviousPage": false,
            "hasNextPage": false, "items": [{
                "+", "id": "a1", "name": "Production Web Store", "description": null, "isEnabled": true,
                "createdAt": "2026-02-23T12:00:00Z", "apiKeys": [
                    {"+", "id": "k1", "keyPrefix": "ks_", "description": "Primary", "status": "a_new_value"}
                ]
            }]
        }"#,
    );
    assert_eq!(
        (page.page, page.limit, page.total_items, page.total_pages),
        (1, 10, 1, 1)
    );
    for application in &page {
        assert_unknown(&application.api_keys.as_ref().unwrap()[0].status);
    }
    assert_eq!(
        page.into_iter()
            .map(|application| application.id)
            .collect::<Vec<_>>(),
        ["a1"]
    );

    let key: applications::Key = read(
        r#"{
            "+", "id": "k1", "keyPrefix": "ks_test_", "description": "Primary", "status": "a_new_value",
            "applicationId": "a1", "last4": "9z8a", "mode": "a_new_value", "scopes": ["links:read", "a_new_value"],
            "allowedIps": null, "rateLimit": {"+", "limit": 100, "windowSeconds": 60}, "metadata": null,
            "createdAt": "2026-02-23T12:00:00Z", "expiresAt": null, "lastUsedAt": null, "revokedAt": null,
            "revokedReason": null
        }"#,
    );
    assert_unknown(&key.status);
    assert_unknown(&key.mode);
    assert_scopes(&key.scopes);
    assert_eq!(key.rate_limit, Some(applications::RateLimit::new(100, 60)));

    let created: applications::CreatedKey = read(
        r#"{
            "+", "id": "k1", "applicationId": "a1", "fullKey": "ks_test_EXAMPLE", "keyPrefix": "ks_test_",
            "description": "Primary", "createdAt": "2026-02-23T12:00:00Z"
        }"#,
    );
    assert_eq!(created.full_key.expose(), "ks_test_EXAMPLE");
}

#[test]
fn newer_account_responses_are_read() {
    let list: account::ListEnvelope<account::Key> = read(
        r#"{
            "+", "error": null,
            "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z", "nextCursor": null},
            "data": [{
                "+", "id": "key_1", "name": "Production CI", "prefix": "sk_live_", "last4": "9z8a",
                "environment": "a_new_value", "access": "a_new_value", "createdAt": "2026-02-23T12:00:00Z",
                "lastUsedAt": null, "revokedAt": null, "expiresAt": "2027-01-01T00:00:00Z",
                "rateLimit": {"+", "limit": 100, "windowSeconds": 60}
            }]
        }"#,
    );
    let key = &list.data[0];
    assert_unknown(&key.environment);
    assert_unknown(&key.access);
    assert_eq!(
        key.extras.expires_at.unwrap().to_string(),
        "2027-01-01T00:00:00Z"
    );
    assert_eq!(
        key.extras.rate_limit,
        Some(account::RateLimit::new(100, 60))
    );

    let created: account::Envelope<account::CreatedKey> = read(
        r#"{
            "+", "error": null, "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z"},
            "data": {
                "+", "id": "key_1", "name": "Production CI", "environment": "a_new_value", "access": "a_new_value",
                "value": "sk_test_EXAMPLE", "createdAt": "2026-02-23T12:00:00Z", "metadata": {"+"}
            }
        }"#,
    );
    assert_unknown(&created.data.environment);
    assert_unknown(&created.data.access);
    assert_eq!(created.data.value.expose(), "sk_test_EXAMPLE");
    assert_eq!(created.data.extras.metadata.unwrap().len(), 1);

    let log: account::ListEnvelope<account::AuditEntry> = read(
        r#"{
            "+", "error": null,
            "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z", "nextCursor": "7"},
            "data": [{
                "+", "id": "aud_1", "occurredAt": "2026-02-23T12:00:00Z", "action": "api_key.a_new_value",
                "actor": {"+", "type": "a_new_value", "id": "user_7"},
                "target": {"+", "type": "a_new_value", "id": "thing_1"},
                "requestId": null, "ip": null, "changes": {"+"}, "hash": "00"
            }]
        }"#,
    );
    assert_eq!(
        (log.data[0].action.as_str(), log.meta.next_cursor.as_deref()),
        ("api_key.a_new_value", Some("7"))
    );
    assert_unknown(&log.data[0].actor.r#type);
    assert_unknown(&log.data[0].target.r#type);

    let error: account::ErrorEnvelope = read(
        r#"{
            "+", "data": null, "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z"},
            "error": {"+", "code": "A_NEW_VALUE", "message": "It is so.", "details": {
                "+", "code": "a_new_value", "errors": [{"+", "pointer": "/name", "detail": "must have one"}]
            }}
        }"#,
    );
    let details = error.error.details.unwrap();
    assert_eq!(
        (
            error.error.code.as_str(),
            details.code.as_str(),
            details.errors.len()
        ),
        ("A_NEW_VALUE", NEW, 1)
    );
}

#[test]
fn newer_audit_responses_are_read() {
    let entry: audit::AuditEntry = read(
        r#"{
            "+", "id": "e1", "occurred_at": 1771848000, "action": "api_key.a_new_value",
            "actor": {"+", "type": "a_new_value", "id": "user_7"},
            "target": {"+", "type": "a_new_value", "id": "thing_1"},
            "request_id": null, "ip": null, "changes": {"+"}, "hash": "00"
        }"#,
    );
    assert_eq!(entry.action, "api_key.a_new_value");
    assert_unknown(&entry.actor.r#type);
    assert_unknown(&entry.target.r#type);
}

#[test]
fn newer_operator_responses_are_read() {
    let account: operator::Account =
        read(r#"{"+", "id": "acme", "operating_model": "a_new_value"}"#);
    assert_unknown(&account.operating_model);
    let created: operator::CreatedServiceKey = read(
        r#"{"+", "id": "s1", "name": "checkout gateway", "key": "tks_EXAMPLE", "created_at": 1771848000}"#,
    );
    assert_eq!(created.key.expose(), "tks_EXAMPLE");
    let key: operator::ServiceKey = read(
        r#"{"+", "id": "s1", "name": "gateway", "last4": "9z8a", "created_at": 1771848000, "revoked_at": 1771848001}"#,
    );
    assert_eq!(key.revoked_at.map(|at| at.seconds()), Some(1_771_848_001));
}

#[test]
fn newer_verification_responses_are_read() {
    let batch: verification::VerifyBatchResponse = read(
        r#"{"+", "results": [
            {"+", "valid": false, "code": "a_new_value", "key": {"id": "k1"}, "rate_limit": null},
            {
                "+", "valid": true, "code": "valid",
                "rate_limit": {"+", "limit": 100, "remaining": 42, "reset_seconds": 17},
                "key": {
                    "+", "id": "k1", "account_id": "acme", "application_id": null, "name": "Key",
                    "family": "a_new_value", "mode": "a_new_value", "scopes": ["links:read", "a_new_value"],
                    "merchants": null, "features": ["tokens.list", "a_new_value"], "expires_at": null, "metadata": null
                }
            }
        ]}"#,
    );
    let [denied, allowed] = <[_; 2]>::try_from(batch.results).unwrap();
    assert_unknown(&denied.into_result().unwrap_err().code);
    let valid = allowed.into_result().unwrap();
    assert_unknown(&valid.key.family);
    assert_unknown(&valid.key.mode);
    assert_scopes(&valid.key.scopes);
    assert_features(valid.key.features);
    assert_eq!(valid.rate_limit.map(|limit| limit.remaining), Some(42));

    let introspected: verification::IntrospectResponse = read(
        r#"{"+", "active": true, "scope": "links:read a_new_value", "token_type": "a_new_value", "mode": "a_new_value"}"#,
    );
    assert_unknown(&introspected.mode.unwrap());
    let inactive: verification::IntrospectResponse = read(r#"{"+", "active": false}"#);
    assert_eq!(inactive, verification::IntrospectResponse::inactive());

    let own: verification::WhoAmI = read(
        r#"{
            "+", "id": "k1", "family": "a_new_value", "mode": "a_new_value", "status": "a_new_value",
            "account_id": "acme", "application_id": null, "name": "Key", "scopes": ["links:read", "a_new_value"],
            "merchants": null, "features": ["tokens.list", "a_new_value"], "created_at": 1771848000, "expires_at": null
        }"#,
    );
    assert_unknown(&own.family);
    assert_unknown(&own.mode);
    assert_unknown(&own.status);
    let rest = own.rest.unwrap();
    assert_scopes(&rest.scopes);
    assert_features(rest.features);
}

#[test]
fn newer_unkey_responses_are_read() {
    let response: unkey::VerifyKeyResponse = read(
        r#"{
            "+", "meta": {"+", "requestId": "req_1"},
            "data": {
                "+", "valid": false, "code": "a_new_value", "keyId": "k1", "name": "Checkout", "enabled": true,
                "permissions": ["links:read", "a_new_value"], "identity": {"+", "id": "acme", "externalId": "acme"}
            }
        }"#,
    );
    assert!(!response.data.valid);
    assert_unknown(&response.data.code);
    assert_scopes(&response.data.permissions.unwrap());
    assert_eq!(response.data.identity.unwrap().external_id, "acme");

    let error: unkey::ErrorResponse = read(
        r#"{
            "+", "meta": {"requestId": "req_1"},
            "error": {
                "+", "title": "t", "detail": "d", "status": 400, "type": "u",
                "errors": [{"+", "location": "body.key", "message": "is required"}]
            }
        }"#,
    );
    assert_eq!(error.error.errors.unwrap()[0].location, "body.key");
}

#[test]
fn newer_problems_are_read() {
    let problem: Problem = read(
        r#"{
            "+", "type": "urn:tollkey:problem:a_new_value", "title": "New", "status": 499, "detail": "It is so.",
            "code": "a_new_value", "request_id": "req_1", "errors": [{"+", "pointer": "/name", "detail": "must have one"}]
        }"#,
    );
    assert_eq!((problem.code.as_str(), problem.status), (NEW, 499));
    let FieldError { pointer, .. } = &problem.errors[0];
    assert_eq!(pointer, "/name");
}

/// The response to a lookup.
fn lookup_response(mode: &str, rate_limit: &str) -> String {
    format!(
        r#"{{
            "+", "seq": 43, "key": {{
                "+", "id": "k1", "account_id": "acme", "application_id": null, "name": "Key", "family": "commerce",
                "mode": "{mode}", "prefix": "ck_", "last4": "9z8a", "scopes": ["a_new_value"], "merchants": null,
                "features": ["tokens.list"], "allowed_ips": null, "rate_limit": {rate_limit}, "expires_at": null,
                "metadata": null, "created_at": 1771848000, "suspended_at": null, "revoked_at": null,
                "rotated_at": null, "application_enabled": true, "operating_model": "ecosystem"
            }}
        }}"#
    )
}

#[test]
fn newer_sync_responses_are_read() {
    let response: sync::SyncResponse = read(
        r#"{"+", "seq": 43, "cursor": "43-1", "changes": [{"+", "type": "a_new_value", "id": "k1"}], "lease_ms": 2650}"#,
    );
    assert_eq!(response.changes.unwrap()[0].kind, NEW);
    let found: sync::LookupResponse = read(&lookup_response(
        "test",
        r#"{"limit": 100, "window_seconds": 60}"#,
    ));
    let key = found.key.unwrap();
    assert_eq!(
        (key.mode, key.rate_limit),
        (Mode::Test, Some(commerce::RateLimit::new(100, 60)))
    );
    assert_eq!(key.scopes, [NEW]);
}

/// A subscriber caches the text, because a decision does not need the object.
#[test]
fn metadata_of_a_looked_up_key_is_kept_as_text() {
    let json = r#"{"z":1.0,"a":[0,{"y":null,"b":"\u0001"}]}"#;
    let text = lookup_response("test", "null")
        .replace(r#""metadata": null"#, &format!(r#""metadata": {json}"#));
    let found: sync::LookupResponse = read(&text);
    let key = found.key.unwrap();
    assert_eq!(key.metadata.as_ref().unwrap().as_json(), json);
    let sent = serde_json::to_string(&key).unwrap();
    assert!(sent.contains(&format!(r#""metadata":{json},"#)), "{sent}");
}

#[test]
fn debug_output_hides_subscriber_ids_and_hashes() {
    let request = sync::SyncRequest {
        subscriber: "0f1e2d3c4b5a69788796a5b4c3d2e1f0".to_owned(),
        cursor: Some("43-1".to_owned()),
        wait_ms: 1000,
        usage: Vec::new(),
        leave: true,
        ..Default::default()
    };
    let shown =
        r#"SyncRequest { cursor: Some("43-1"), wait_ms: 1000, usage: [], leave: true, .. }"#;
    assert_eq!(format!("{request:?}"), shown);
    assert!(!format!("{request:#?}").contains("0f1e"));
    let lookup = sync::LookupRequest {
        digest: "ba78".to_owned(),
    };
    assert!(!format!("{lookup:?}").contains("ba78"));
}

/// A verifier must not ignore a restriction that it does not know.
#[test]
fn verifier_rejects_unknown_values_and_unknown_limits() {
    for (mode, rate_limit) in [
        (NEW, "null"),
        (
            "test",
            r#"{"limit": 100, "window_seconds": 60, "burst": 1}"#,
        ),
        ("test", r#"{"limit": 100}"#),
        ("test", "[100, 60]"),
    ] {
        let text = lookup_response(mode, rate_limit).replace(r#""+","#, "");
        assert!(
            serde_json::from_str::<sync::LookupResponse>(&text).is_err(),
            "{text}"
        );
    }
    let text = lookup_response("test", "null").replace(r#""+","#, "");
    assert!(
        serde_json::from_str::<sync::LookupResponse>(&text).is_ok(),
        "{text}"
    );
}

/// An absent restriction would be read as no restriction.
#[test]
fn verifier_rejects_absent_fields() {
    let complete: Value =
        serde_json::from_str(&lookup_response("test", "null").replace(r#""+","#, "")).unwrap();
    let fields = complete["key"].as_object().unwrap();
    assert_eq!(fields.len(), 21);
    for field in fields.keys() {
        let mut incomplete = complete.clone();
        incomplete["key"].as_object_mut().unwrap().remove(field);
        assert!(
            serde_json::from_value::<sync::LookupResponse>(incomplete).is_err(),
            "{field}"
        );
    }
    let values: Value = fields.values().cloned().collect();
    for other in [
        json!({"seq": 43}),
        json!({"seq": 43, "key": values}),
        json!([43, complete["key"]]),
        json!([43, null]),
    ] {
        assert!(
            serde_json::from_value::<sync::LookupResponse>(other.clone()).is_err(),
            "{other}"
        );
    }
    let unknown: sync::LookupResponse =
        serde_json::from_value(json!({"seq": 43, "key": null})).unwrap();
    assert_eq!(unknown.key, None);

    let response = json!({"seq": 43, "cursor": "43-1", "changes": null, "lease_ms": 2650});
    assert!(serde_json::from_value::<sync::SyncResponse>(response.clone()).is_ok());
    for field in response.as_object().unwrap().keys() {
        let mut incomplete = response.clone();
        incomplete.as_object_mut().unwrap().remove(field);
        assert!(
            serde_json::from_value::<sync::SyncResponse>(incomplete).is_err(),
            "{field}"
        );
    }
    assert!(serde_json::from_str::<sync::SyncResponse>(r#"[43, "43-1", [], 2650]"#).is_err());
}

#[test]
fn requests_are_read_strictly() {
    fn assert_rejected<T: DeserializeOwned + Debug>(text: &str) {
        let error = serde_json::from_str::<T>(text).unwrap_err().to_string();
        assert!(
            error.contains("unknown") && error.contains("a_new_"),
            "{error}: {text}"
        );
    }
    assert_rejected::<commerce::CreateKey>(r#"{"name": "k", "mode": "a_new_value"}"#);
    assert_rejected::<commerce::CreateKey>(r#"{"name": "k", "scope": "a_new_value"}"#);
    assert_rejected::<commerce::CreateKey>(r#"{"name": "k", "a_new_field": 1}"#);
    assert_rejected::<commerce::CreateKey>(
        r#"{"name": "k", "rate_limit": {"limit": 1, "window_seconds": 1, "a_new_field": 1}}"#,
    );
    assert_rejected::<applications::CreateKey>(r#"{"description": "k", "mode": "a_new_value"}"#);
    assert_rejected::<applications::CreateKey>(
        r#"{"description": "k", "rateLimit": {"limit": 1, "windowSeconds": 1, "a_new_field": 1}}"#,
    );
    assert_rejected::<account::CreateKey>(
        r#"{"name": "k", "environment": "a_new_value", "access": "secret"}"#,
    );
    assert_rejected::<account::CreateKey>(
        r#"{"name": "k", "environment": "live", "access": "a_new_value"}"#,
    );
    assert_rejected::<account::CreateKey>(
        r#"{"name": "k", "environment": "live", "access": "secret",
            "rateLimit": {"limit": 1, "windowSeconds": 1, "a_new_field": 1}}"#,
    );
    assert_rejected::<operator::PutAccount>(r#"{"operating_model": "a_new_value"}"#);
    assert_rejected::<verification::VerifyRequest>(
        r#"{"key": "ck_test_EXAMPLE", "mode": "a_new_value"}"#,
    );
}

#[test]
fn values_of_this_release_are_known() {
    let entry: audit::AuditActor = read(r#"{"+", "type": "api_key", "id": "k1"}"#);
    assert!(entry.r#type == ActorKind::ApiKey);
    let entry: audit::AuditTarget = read(r#"{"+", "type": "application", "id": "a1"}"#);
    assert!(entry.r#type == TargetKind::Application);
    let key: applications::IncludedKey = read(
        r#"{"+", "id": "k1", "keyPrefix": "ks_", "description": "Primary", "status": "suspended"}"#,
    );
    assert_eq!(key.status.known(), Some(Status::Suspended));
    for (value, access) in [
        ("secret", account::Access::Secret),
        ("publishable", account::Access::Publishable),
    ] {
        let read: Open<account::Access> = serde_json::from_str(&format!("\"{value}\"")).unwrap();
        assert_eq!(
            (read.known(), access.to_string().as_str(), value.parse()),
            (Some(access), value, Ok(access))
        );
    }
    let error = "Secret".parse::<account::Access>().unwrap_err().to_string();
    assert_eq!(error, "must be one of secret, publishable");
    let read: Open<commerce::KeyScope> = serde_json::from_str("\"commerce\"").unwrap();
    assert!(read == commerce::KeyScope::Commerce);
    assert_eq!(commerce::KeyScope::Commerce.to_string(), "commerce");
}
