//! Every answer, as a newer server may give it: with members and words that this release does not know. Each is read,
//! what is known of it is there, and the words are kept as they came.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tollkey_api::{
    Open, account, applications, audit, commerce, operator,
    problem::{FieldError, Problem},
    sync, verification,
};
use tollkey_core::{
    Mode, Scope, Status,
    audit::{ActorKind, TargetKind},
    feature::Feature,
};

/// What stands for a word that this release does not know.
const NEW: &str = "a_new_word";

/// Reads an answer whose every object has a member that nobody knows: `"+"` in the text stands for one.
fn read<T: DeserializeOwned + Debug>(text: &str) -> T {
    let newer = text.replace(r#""+""#, r#""a_new_member": {"of": ["any", null, 7]}"#);
    assert_ne!(newer, text, "no member is new");
    serde_json::from_str(&newer).unwrap_or_else(|error| panic!("{error}: {newer}"))
}

fn new<T: AsRef<str>>(word: &Open<T>) {
    assert_eq!(
        (word.as_str(), matches!(word, Open::Unknown(_))),
        (NEW, true)
    );
}

fn features(features: Option<Vec<Open<Feature>>>) {
    let features = features.unwrap();
    assert!(features[0] == Feature::TokensList);
    new(&features[1]);
    assert_eq!(features.len(), 2);
}

fn scopes(scopes: &[Scope]) {
    assert_eq!(scopes, [Scope::LINKS_READ, Scope::from(NEW)]);
}

#[test]
fn commerce() {
    let key: commerce::Key = read(
        r#"{
            "+", "key_id": "k1", "name": "Commerce Server Key", "scope": "a_new_word", "status": "a_new_word",
            "expires_at": null, "last_used_at": 1771848000, "created_at": 1771848000, "revoked_at": null,
            "revoked_reason": null, "mode": "a_new_word", "scopes": ["links:read", "a_new_word"], "prefix": "ck_",
            "last4": "9z8a", "merchants": null, "features": ["tokens.list", "a_new_word"], "allowed_ips": null,
            "rate_limit": {"+", "limit": 100, "window_seconds": 60}, "metadata": {"+"}, "rotated_from": null,
            "rotated_to": null
        }"#,
    );
    new(&key.scope);
    new(&key.status);
    new(&key.mode);
    scopes(&key.scopes);
    features(key.features);
    assert_eq!(key.rate_limit, Some(commerce::RateLimit::new(100, 60)));
    assert_eq!(key.metadata.unwrap().len(), 1);

    let created: commerce::CreatedKey = read(
        r#"{
            "+", "key_id": "k1", "name": "Commerce Server Key", "scope": "a_new_word", "api_key": "ck_test_EXAMPLE",
            "expires_at": null, "mode": "a_new_word", "scopes": ["links:read", "a_new_word"], "prefix": "ck_test_",
            "merchants": null, "features": ["tokens.list", "a_new_word"], "created_at": 1771848000
        }"#,
    );
    new(&created.scope);
    new(&created.mode);
    scopes(&created.scopes);
    features(created.features);
    assert_eq!(created.api_key.expose(), "ck_test_EXAMPLE");

    let message: commerce::Message = read(r#"{"+", "message": "API key revoked successfully"}"#);
    assert_eq!(message.message, "API key revoked successfully");
}

#[test]
fn applications() {
    let page: applications::Page<applications::Application> = read(
        r#"{
            "+", "page": 1, "limit": 10, "totalItems": 1, "totalPages": 1, "hasPreviousPage": false,
            "hasNextPage": false, "items": [{
                "+", "id": "a1", "name": "Production Web Store", "description": null, "isEnabled": true,
                "createdAt": "2026-02-23T12:00:00Z", "apiKeys": [
                    {"+", "id": "k1", "keyPrefix": "ks_", "description": "Primary", "status": "a_new_word"}
                ]
            }]
        }"#,
    );
    assert_eq!(
        (page.page, page.limit, page.total_items, page.total_pages),
        (1, 10, 1, 1)
    );
    for application in &page {
        new(&application.api_keys.as_ref().unwrap()[0].status);
    }
    assert_eq!(
        page.into_iter()
            .map(|application| application.id)
            .collect::<Vec<_>>(),
        ["a1"]
    );

    let key: applications::Key = read(
        r#"{
            "+", "id": "k1", "keyPrefix": "ks_test_", "description": "Primary", "status": "a_new_word",
            "applicationId": "a1", "last4": "9z8a", "mode": "a_new_word", "scopes": ["links:read", "a_new_word"],
            "allowedIps": null, "rateLimit": {"+", "limit": 100, "windowSeconds": 60}, "metadata": null,
            "createdAt": "2026-02-23T12:00:00Z", "expiresAt": null, "lastUsedAt": null, "revokedAt": null,
            "revokedReason": null
        }"#,
    );
    new(&key.status);
    new(&key.mode);
    scopes(&key.scopes);
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
fn account() {
    let list: account::ListEnvelope<account::Key> = read(
        r#"{
            "+", "error": null,
            "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z", "nextCursor": null},
            "data": [{
                "+", "id": "key_1", "name": "Production CI", "prefix": "sk_live_", "last4": "9z8a",
                "environment": "a_new_word", "access": "a_new_word", "createdAt": "2026-02-23T12:00:00Z",
                "lastUsedAt": null, "revokedAt": null, "expiresAt": "2027-01-01T00:00:00Z",
                "rateLimit": {"+", "limit": 100, "windowSeconds": 60}
            }]
        }"#,
    );
    let key = &list.data[0];
    new(&key.environment);
    new(&key.access);
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
                "+", "id": "key_1", "name": "Production CI", "environment": "a_new_word", "access": "a_new_word",
                "value": "sk_test_EXAMPLE", "createdAt": "2026-02-23T12:00:00Z", "metadata": {"+"}
            }
        }"#,
    );
    new(&created.data.environment);
    new(&created.data.access);
    assert_eq!(created.data.value.expose(), "sk_test_EXAMPLE");
    assert_eq!(created.data.extras.metadata.unwrap().len(), 1);

    let log: account::ListEnvelope<account::AuditEntry> = read(
        r#"{
            "+", "error": null,
            "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z", "nextCursor": "7"},
            "data": [{
                "+", "id": "aud_1", "occurredAt": "2026-02-23T12:00:00Z", "action": "api_key.a_new_word",
                "actor": {"+", "type": "a_new_word", "id": "user_7"},
                "target": {"+", "type": "a_new_word", "id": "thing_1"},
                "requestId": null, "ip": null, "changes": {"+"}, "hash": "00"
            }]
        }"#,
    );
    assert_eq!(
        (log.data[0].action.as_str(), log.meta.next_cursor.as_deref()),
        ("api_key.a_new_word", Some("7"))
    );
    new(&log.data[0].actor.r#type);
    new(&log.data[0].target.r#type);

    let error: account::ErrorEnvelope = read(
        r#"{
            "+", "data": null, "meta": {"+", "requestId": "req_1", "timestamp": "2026-02-23T12:00:00Z"},
            "error": {"+", "code": "A_NEW_WORD", "message": "It is so.", "details": {
                "+", "code": "a_new_word", "errors": [{"+", "pointer": "/name", "detail": "must have one"}]
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
        ("A_NEW_WORD", NEW, 1)
    );
}

#[test]
fn audit() {
    let entry: audit::AuditEntry = read(
        r#"{
            "+", "id": "e1", "occurred_at": 1771848000, "action": "api_key.a_new_word",
            "actor": {"+", "type": "a_new_word", "id": "user_7"},
            "target": {"+", "type": "a_new_word", "id": "thing_1"},
            "request_id": null, "ip": null, "changes": {"+"}, "hash": "00"
        }"#,
    );
    assert_eq!(entry.action, "api_key.a_new_word");
    new(&entry.actor.r#type);
    new(&entry.target.r#type);
}

#[test]
fn operator() {
    let account: operator::Account =
        read(r#"{"+", "id": "acme", "operating_model": "a_new_word"}"#);
    new(&account.operating_model);
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
fn verification() {
    let batch: verification::VerifyBatchResponse = read(
        r#"{"+", "results": [
            {"+", "valid": false, "code": "a_new_word", "key": {"id": "k1"}, "rate_limit": null},
            {
                "+", "valid": true, "code": "valid",
                "rate_limit": {"+", "limit": 100, "remaining": 42, "reset_seconds": 17},
                "key": {
                    "+", "id": "k1", "account_id": "acme", "application_id": null, "name": "Key",
                    "family": "a_new_word", "mode": "a_new_word", "scopes": ["links:read", "a_new_word"],
                    "merchants": null, "features": ["tokens.list", "a_new_word"], "expires_at": null, "metadata": null
                }
            }
        ]}"#,
    );
    let [denied, allowed] = <[_; 2]>::try_from(batch.results).unwrap();
    new(&denied.into_result().unwrap_err().code);
    let valid = allowed.into_result().unwrap();
    new(&valid.key.family);
    new(&valid.key.mode);
    scopes(&valid.key.scopes);
    features(valid.key.features);
    assert_eq!(valid.rate_limit.map(|limit| limit.remaining), Some(42));

    let introspected: verification::IntrospectResponse = read(
        r#"{"+", "active": true, "scope": "links:read a_new_word", "token_type": "a_new_word", "mode": "a_new_word"}"#,
    );
    new(&introspected.mode.unwrap());
    let inactive: verification::IntrospectResponse = read(r#"{"+", "active": false}"#);
    assert_eq!(inactive, verification::IntrospectResponse::inactive());

    let own: verification::WhoAmI = read(
        r#"{
            "+", "id": "k1", "family": "a_new_word", "mode": "a_new_word", "status": "a_new_word",
            "account_id": "acme", "application_id": null, "name": "Key", "scopes": ["links:read", "a_new_word"],
            "merchants": null, "features": ["tokens.list", "a_new_word"], "created_at": 1771848000, "expires_at": null
        }"#,
    );
    new(&own.family);
    new(&own.mode);
    new(&own.status);
    let rest = own.rest.unwrap();
    scopes(&rest.scopes);
    features(rest.features);
}

#[test]
fn problems() {
    let problem: Problem = read(
        r#"{
            "+", "type": "urn:tollkey:problem:a_new_word", "title": "New", "status": 499, "detail": "It is so.",
            "code": "a_new_word", "request_id": "req_1", "errors": [{"+", "pointer": "/name", "detail": "must have one"}]
        }"#,
    );
    assert_eq!((problem.code.as_str(), problem.status), (NEW, 499));
    let FieldError { pointer, .. } = &problem.errors[0];
    assert_eq!(pointer, "/name");
}

/// A record as the server tells a verifier.
fn record(mode: &str, rate_limit: &str) -> String {
    format!(
        r#"{{
            "+", "seq": 43, "key": {{
                "+", "id": "k1", "account_id": "acme", "application_id": null, "name": "Key", "family": "commerce",
                "mode": "{mode}", "prefix": "ck_", "last4": "9z8a", "scopes": ["a_new_word"], "merchants": null,
                "features": ["tokens.list"], "allowed_ips": null, "rate_limit": {rate_limit}, "expires_at": null,
                "metadata": null, "created_at": 1771848000, "suspended_at": null, "revoked_at": null,
                "rotated_at": null, "application_enabled": true, "operating_model": "ecosystem"
            }}
        }}"#
    )
}

#[test]
fn the_subscription() {
    let answer: sync::SyncResponse = read(
        r#"{"+", "seq": 43, "cursor": "43-1", "changes": [{"+", "type": "a_new_word", "id": "k1"}], "lease_ms": 2650}"#,
    );
    assert_eq!(answer.changes.unwrap()[0].kind, NEW);
    let found: sync::LookupResponse =
        read(&record("test", r#"{"limit": 100, "window_seconds": 60}"#));
    let key = found.key.unwrap();
    assert_eq!(
        (key.mode, key.rate_limit),
        (Mode::Test, Some(commerce::RateLimit::new(100, 60)))
    );
    assert_eq!(key.scopes, [NEW]);
}

/// A subscriber caches the text; it does not need the object to authorize a request.
#[test]
fn metadata_of_a_looked_up_key_stays_text() {
    let json = r#"{"z":1.0,"a":[0,{"y":null,"b":"\u0001"}]}"#;
    let told =
        record("test", "null").replace(r#""metadata": null"#, &format!(r#""metadata": {json}"#));
    let found: sync::LookupResponse = read(&told);
    let key = found.key.unwrap();
    assert_eq!(key.metadata.as_ref().unwrap().as_json(), json);
    let sent = serde_json::to_string(&key).unwrap();
    assert!(sent.contains(&format!(r#""metadata":{json},"#)), "{sent}");
}

#[test]
fn what_is_told_to_nobody_else_is_not_shown() {
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

/// Whoever judges by them must not guess.
#[test]
fn a_verifier_reads_no_word_and_no_limit_that_it_does_not_know() {
    for (mode, rate_limit) in [
        (NEW, "null"),
        (
            "test",
            r#"{"limit": 100, "window_seconds": 60, "burst": 1}"#,
        ),
        ("test", r#"{"limit": 100}"#),
        ("test", "[100, 60]"),
    ] {
        let text = record(mode, rate_limit).replace(r#""+","#, "");
        assert!(
            serde_json::from_str::<sync::LookupResponse>(&text).is_err(),
            "{text}"
        );
    }
    let text = record("test", "null").replace(r#""+","#, "");
    assert!(
        serde_json::from_str::<sync::LookupResponse>(&text).is_ok(),
        "{text}"
    );
}

/// An absent restriction would read as none.
#[test]
fn a_verifier_reads_objects_with_all_their_members() {
    let whole: Value =
        serde_json::from_str(&record("test", "null").replace(r#""+","#, "")).unwrap();
    let members = whole["key"].as_object().unwrap();
    assert_eq!(members.len(), 21);
    for member in members.keys() {
        let mut lacking = whole.clone();
        lacking["key"].as_object_mut().unwrap().remove(member);
        assert!(
            serde_json::from_value::<sync::LookupResponse>(lacking).is_err(),
            "{member}"
        );
    }
    let values: Value = members.values().cloned().collect();
    for other in [
        json!({"seq": 43}),
        json!({"seq": 43, "key": values}),
        json!([43, whole["key"]]),
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

    let answer = json!({"seq": 43, "cursor": "43-1", "changes": null, "lease_ms": 2650});
    assert!(serde_json::from_value::<sync::SyncResponse>(answer.clone()).is_ok());
    for member in answer.as_object().unwrap().keys() {
        let mut lacking = answer.clone();
        lacking.as_object_mut().unwrap().remove(member);
        assert!(
            serde_json::from_value::<sync::SyncResponse>(lacking).is_err(),
            "{member}"
        );
    }
    assert!(serde_json::from_str::<sync::SyncResponse>(r#"[43, "43-1", [], 2650]"#).is_err());
}

#[test]
fn requests_are_read_strictly() {
    fn refused<T: DeserializeOwned + Debug>(text: &str) {
        let error = serde_json::from_str::<T>(text).unwrap_err().to_string();
        assert!(
            error.contains("unknown") && error.contains("a_new_"),
            "{error}: {text}"
        );
    }
    refused::<commerce::CreateKey>(r#"{"name": "k", "mode": "a_new_word"}"#);
    refused::<commerce::CreateKey>(r#"{"name": "k", "scope": "a_new_word"}"#);
    refused::<commerce::CreateKey>(r#"{"name": "k", "a_new_member": 1}"#);
    refused::<commerce::CreateKey>(
        r#"{"name": "k", "rate_limit": {"limit": 1, "window_seconds": 1, "a_new_member": 1}}"#,
    );
    refused::<applications::CreateKey>(r#"{"description": "k", "mode": "a_new_word"}"#);
    refused::<applications::CreateKey>(
        r#"{"description": "k", "rateLimit": {"limit": 1, "windowSeconds": 1, "a_new_member": 1}}"#,
    );
    refused::<account::CreateKey>(
        r#"{"name": "k", "environment": "a_new_word", "access": "secret"}"#,
    );
    refused::<account::CreateKey>(
        r#"{"name": "k", "environment": "live", "access": "a_new_word"}"#,
    );
    refused::<account::CreateKey>(
        r#"{"name": "k", "environment": "live", "access": "secret",
            "rateLimit": {"limit": 1, "windowSeconds": 1, "a_new_member": 1}}"#,
    );
    refused::<operator::PutAccount>(r#"{"operating_model": "a_new_word"}"#);
    refused::<verification::VerifyRequest>(r#"{"key": "ck_test_EXAMPLE", "mode": "a_new_word"}"#);
}

/// The words of this release are known ones.
#[test]
fn known_words_are_known() {
    let entry: audit::AuditActor = read(r#"{"+", "type": "api_key", "id": "k1"}"#);
    assert!(entry.r#type == ActorKind::ApiKey);
    let entry: audit::AuditTarget = read(r#"{"+", "type": "application", "id": "a1"}"#);
    assert!(entry.r#type == TargetKind::Application);
    let key: applications::IncludedKey = read(
        r#"{"+", "id": "k1", "keyPrefix": "ks_", "description": "Primary", "status": "suspended"}"#,
    );
    assert_eq!(key.status.known(), Some(Status::Suspended));
    for (word, access) in [
        ("secret", account::Access::Secret),
        ("publishable", account::Access::Publishable),
    ] {
        let read: Open<account::Access> = serde_json::from_str(&format!("\"{word}\"")).unwrap();
        assert_eq!(
            (read.known(), access.to_string().as_str(), word.parse()),
            (Some(access), word, Ok(access))
        );
    }
    let refused = "Secret".parse::<account::Access>().unwrap_err().to_string();
    assert_eq!(refused, "must be one of secret, publishable");
    let read: Open<commerce::KeyScope> = serde_json::from_str("\"commerce\"").unwrap();
    assert!(read == commerce::KeyScope::Commerce);
    assert_eq!(commerce::KeyScope::Commerce.to_string(), "commerce");
}
