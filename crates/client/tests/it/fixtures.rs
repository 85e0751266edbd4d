//! Responses of a server with every field of the OpenAPI document.

use serde_json::{Value, json};

pub const APPLICATION: &str = "0198c0de-0000-7000-8000-000000000001";
pub const KEY: &str = "0198c0de-0000-7000-8000-000000000002";
pub const OTHER_KEY: &str = "0198c0de-0000-7000-8000-000000000003";
pub const ACCOUNT_KEY: &str = "key_01K30DW000E008000000000002";
/// 2026-02-23T12:00:00Z.
pub const NOON: i64 = 1_771_848_000;
pub const NOON_TEXT: &str = "2026-02-23T12:00:00Z";
/// 2027-01-01T00:00:00Z.
pub const END: i64 = 1_798_761_600;
pub const END_TEXT: &str = "2027-01-01T00:00:00Z";

pub fn application() -> Value {
    json!({
        "id": APPLICATION,
        "name": "Production Web Store",
        "description": "Primary e-commerce backend",
        "isEnabled": true,
        "createdAt": NOON_TEXT,
    })
}

pub fn applications() -> Value {
    let mut application = application();
    application["apiKeys"] = json!([
        {"id": KEY, "keyPrefix": "ks_live_a1b2", "description": "Primary checkout key", "status": "active"},
    ]);
    numbered_page(&json!([application]))
}

pub fn numbered_page(items: &Value) -> Value {
    json!({
        "items": items,
        "page": 2,
        "limit": 20,
        "totalItems": 21,
        "totalPages": 2,
        "hasPreviousPage": true,
        "hasNextPage": false,
    })
}

pub fn created_application_key() -> Value {
    json!({
        "id": KEY,
        "applicationId": APPLICATION,
        "fullKey": "ks_test_EXAMPLE1",
        "keyPrefix": "ks_test_EXAM",
        "description": "Primary checkout key",
        "createdAt": NOON_TEXT,
    })
}

pub fn application_key() -> Value {
    json!({
        "id": KEY,
        "keyPrefix": "ks_live_a1b2",
        "description": "Primary checkout key",
        "status": "revoked",
        "applicationId": APPLICATION,
        "last4": "9z8a",
        "mode": "live",
        "scopes": ["sessions:write"],
        "allowedIps": ["203.0.113.0/24"],
        "rateLimit": {"limit": 100, "windowSeconds": 60},
        "metadata": {"team": "checkout"},
        "createdAt": NOON_TEXT,
        "expiresAt": END_TEXT,
        "lastUsedAt": NOON_TEXT,
        "revokedAt": NOON_TEXT,
        "revokedReason": "rotated",
    })
}

pub fn created_commerce_key() -> Value {
    json!({
        "key_id": KEY,
        "name": "Commerce Server Key",
        "scope": "commerce",
        "api_key": "ck_test_EXAMPLE1",
        "expires_at": END,
        "mode": "test",
        "scopes": ["links:read"],
        "prefix": "ck_test_EXAMPL",
        "merchants": ["merchant_42"],
        "features": ["tokens.list"],
        "created_at": NOON,
    })
}

pub fn commerce_key() -> Value {
    json!({
        "key_id": KEY,
        "name": "Commerce Server Key",
        "scope": "commerce",
        "status": "active",
        "expires_at": END,
        "last_used_at": NOON,
        "created_at": NOON,
        "revoked_at": null,
        "revoked_reason": null,
        "mode": "test",
        "scopes": ["links:read"],
        "prefix": "ck_test_EXAMPL",
        "last4": "9z8a",
        "merchants": ["merchant_42"],
        "features": ["tokens.list"],
        "allowed_ips": ["203.0.113.0/24"],
        "rate_limit": {"limit": 100, "window_seconds": 60},
        "metadata": {"team": "checkout"},
        "rotated_from": OTHER_KEY,
        "rotated_to": null,
    })
}

pub fn message() -> Value {
    json!({"message": "API key revoked successfully"})
}

/// The envelope of the account surface.
pub fn envelope(data: &Value) -> Value {
    json!({
        "data": data,
        "error": null,
        "meta": {"requestId": super::support::REQUEST_ID, "timestamp": NOON_TEXT},
    })
}

pub fn list_envelope(data: &Value, next_cursor: Option<&str>) -> Value {
    let mut envelope = envelope(data);
    envelope["meta"]["nextCursor"] = next_cursor.into();
    envelope
}

pub fn created_account_key() -> Value {
    json!({
        "id": ACCOUNT_KEY,
        "name": "Production CI",
        "environment": "test",
        "access": "secret",
        "value": "sk_test_EXAMPLE1",
        "createdAt": NOON_TEXT,
        "expiresAt": END_TEXT,
        "allowedIps": ["203.0.113.0/24"],
        "rateLimit": {"limit": 100, "windowSeconds": 60},
        "metadata": {"team": "checkout"},
    })
}

pub fn account_key() -> Value {
    json!({
        "id": ACCOUNT_KEY,
        "name": "Production CI",
        "prefix": "sk_live_",
        "last4": "9z8a",
        "environment": "live",
        "access": "publishable",
        "createdAt": NOON_TEXT,
        "lastUsedAt": null,
        "revokedAt": NOON_TEXT,
        "expiresAt": END_TEXT,
        "allowedIps": ["203.0.113.0/24"],
        "rateLimit": {"limit": 100, "windowSeconds": 60},
        "metadata": {"team": "checkout"},
    })
}

pub fn account_audit_entry() -> Value {
    json!({
        "id": "aud_01K30DW000E008000000000003",
        "occurredAt": NOON_TEXT,
        "action": "api_key.revoked",
        "actor": {"type": "api_key", "id": ACCOUNT_KEY},
        "target": {"type": "api_key", "id": ACCOUNT_KEY},
        "requestId": super::support::REQUEST_ID,
        "ip": "203.0.113.7",
        "changes": {"status": "revoked"},
        "hash": "00".repeat(32),
    })
}

pub fn audit_entry() -> Value {
    json!({
        "id": "0198c0de-0000-7000-8000-000000000009",
        "occurred_at": NOON,
        "action": "api_key.revoked",
        "actor": {"type": "merchant", "id": "user_7"},
        "target": {"type": "api_key", "id": KEY},
        "request_id": super::support::REQUEST_ID,
        "ip": null,
        "changes": {"status": "revoked"},
        "hash": "00".repeat(32),
    })
}

pub fn valid() -> Value {
    json!({
        "valid": true,
        "code": "valid",
        "key": {
            "id": KEY,
            "account_id": "acme",
            "application_id": APPLICATION,
            "name": "Primary checkout key",
            "family": "application",
            "mode": "test",
            "scopes": ["sessions:write"],
            "merchants": ["merchant_42"],
            "features": ["tokens.list"],
            "expires_at": END,
            "metadata": {"team": "checkout"},
        },
        "rate_limit": {"limit": 100, "remaining": 42, "reset_seconds": 17},
    })
}

pub fn invalid(code: &str) -> Value {
    json!({"valid": false, "code": code})
}

pub fn introspected() -> Value {
    json!({
        "active": true,
        "scope": "sessions:read sessions:write",
        "client_id": APPLICATION,
        "sub": "acme",
        "token_type": "Bearer",
        "exp": END,
        "iat": NOON,
        "jti": KEY,
        "mode": "test",
    })
}

pub fn whoami() -> Value {
    json!({
        "id": KEY,
        "family": "application",
        "mode": "live",
        "status": "active",
        "account_id": "acme",
        "application_id": APPLICATION,
        "name": "Primary checkout key",
        "scopes": ["sessions:write"],
        "merchants": null,
        "features": null,
        "created_at": NOON,
        "expires_at": null,
    })
}

pub fn account() -> Value {
    json!({"id": "acme", "operating_model": "ecosystem"})
}

pub fn created_service_key() -> Value {
    json!({"id": KEY, "name": "checkout gateway", "key": "tks_EXAMPLE1", "created_at": NOON})
}

pub fn service_key() -> Value {
    json!({"id": KEY, "name": "checkout gateway", "last4": "9z8a", "created_at": NOON, "revoked_at": NOON})
}

pub fn news() -> Value {
    json!({
        "seq": 7,
        "cursor": "a-7",
        "changes": [{"type": "key", "id": KEY}],
        "lease_ms": 2500,
    })
}

pub fn found() -> Value {
    json!({
        "seq": 7,
        "key": {
            "id": KEY,
            "account_id": "acme",
            "application_id": null,
            "name": "Commerce Server Key",
            "family": "commerce",
            "mode": "test",
            "prefix": "ck_test_EXAMPL",
            "last4": "9z8a",
            "scopes": ["links:read"],
            "merchants": null,
            "features": ["tokens.list"],
            "allowed_ips": null,
            "rate_limit": {"limit": 100, "window_seconds": 60},
            "expires_at": null,
            "metadata": null,
            "created_at": NOON,
            "suspended_at": null,
            "revoked_at": null,
            "rotated_at": null,
            "application_enabled": true,
            "operating_model": "primary_merchant",
        },
    })
}
