//! Verification compatible with Unkey's API: `POST /v2/keys.verifyKey`.
//!
//! The SDKs parse the whole response, so each form of a response is a snapshot.

use serde_json::{Value, json};
use tollkey_core::{
    ApiKey, Clock as _, Family, IpList, Mode, RateLimit, Restrictions, Scope, feature::Feature,
    metadata::Metadata,
};

use crate::{
    assert_response,
    support::{App, Call, Reply, each_backend},
};

const PATH: &str = "/v2/keys.verifyKey";
/// The ID of the key in snapshots.
const KEY_ID: &str = "0198c0de-0000-7000-8000-000000000002";

/// A change to a key before it is inserted.
type Edit = Box<dyn FnOnce(&mut ApiKey)>;

/// A request with a fixed request ID and without a credential.
fn request(app: &App, body: Value) -> Call {
    app.post(PATH, body).header("x-request-id", "req-1")
}

/// Inserts a commerce key of `acme` and returns the full key.
async fn insert(app: &App, edit: impl FnOnce(&mut ApiKey)) -> String {
    let text = app.generate_key(Family::Commerce, Mode::Live);
    app.insert("acme", &text, edit).await.text
}

/// Inserts a key with these scopes and returns the full key.
async fn with_scopes(app: &App, scopes: &[Scope]) -> String {
    let scopes = scopes.to_vec();
    insert(app, |key| key.restrictions.scopes = scopes).await
}

/// The `data` of a verification with the role `service`.
async fn verify(app: &App, key: &str, mut body: Value) -> Value {
    body["key"] = json!(key);
    let reply = request(app, body).bearer(&app.service()).await;
    assert_eq!(reply.status, 200, "{reply}");
    let json = reply.json();
    assert_eq!(json["meta"], json!({"requestId": "req-1"}), "{reply}");
    json["data"].clone()
}

async fn code(app: &App, key: &str, body: Value) -> String {
    let data = verify(app, key, body).await;
    let code = data["code"].as_str().expect("a code");
    assert_eq!(data["valid"], code == "VALID", "{data}");
    code.to_owned()
}

/// The invalid fields of an error, each as its location and message, sorted.
fn errors(reply: &Reply) -> Vec<String> {
    let json = reply.json();
    let errors = json["error"]["errors"].as_array().expect("an array");
    let text = |error: &Value, field: &str| error[field].as_str().expect(field).to_owned();
    let mut errors: Vec<String> = errors
        .iter()
        .map(|error| format!("{} {}", text(error, "location"), text(error, "message")))
        .collect();
    errors.sort();
    errors
}

#[actix_web::test]
async fn valid_key_has_the_fields_that_the_sdks_document() {
    each_backend(async |app: &App| {
        let metadata = json!({"plan": "pro"}).as_object().cloned();
        let key = insert(app, |key| {
            key.id = KEY_ID.parse().expect("a key ID");
            key.name = "Checkout".to_owned();
            key.metadata = metadata.and_then(|metadata| Metadata::new(metadata).ok());
            key.restrictions = Restrictions {
                scopes: vec![Scope::LINKS_READ, Scope::SESSIONS_WRITE],
                rate_limit: RateLimit::new(5, 60).ok(),
                expires_at: "2100-01-01T00:00:00Z".parse().ok(),
                ..Restrictions::default()
            };
        })
        .await;
        let body = json!({
            "key": key, "tags": ["region=eu", "path=/links:read.v1-a_b"], "migrationId": "m_1234",
            "permissions": "links:read AND (sessions:read OR sessions:write)"
        });
        let service = app.service_key().await.text;
        assert_response!(request(app, body).bearer(&service).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "data": {
            "valid": true,
            "code": "VALID",
            "keyId": "0198c0de-0000-7000-8000-000000000002",
            "name": "Checkout",
            "meta": {
              "plan": "pro"
            },
            "expires": 4102444800000,
            "enabled": true,
            "permissions": [
              "links:read",
              "sessions:write"
            ],
            "identity": {
              "id": "acme",
              "externalId": "acme"
            },
            "ratelimits": [
              {
                "exceeded": false,
                "id": "0198c0de-0000-7000-8000-000000000002",
                "name": "key",
                "limit": 5,
                "duration": 60000,
                "reset": 1767225612000,
                "remaining": 4,
                "autoApply": true
              }
            ]
          }
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn fields_that_a_key_does_not_have_are_absent() {
    each_backend(async |app: &App| {
        let key = insert(app, |key| {
            key.id = KEY_ID.parse().expect("a key ID");
            key.restrictions.scopes = vec![Scope::EVENTS_READ];
        })
        .await;
        assert_eq!(
            verify(app, &key, json!({})).await,
            json!({
                "valid": true, "code": "VALID", "keyId": KEY_ID, "name": "Example", "enabled": true,
                "permissions": ["events:read"], "identity": {"id": "acme", "externalId": "acme"}
            })
        );
    })
    .await;
}

#[actix_web::test]
async fn each_denial_has_its_code() {
    each_backend(async |app: &App| {
        app.set_model("acme", "ecosystem").await;
        let now = app.clock.now();
        let rows: Vec<(&str, Edit, Value, &str)> = vec![
            ("unrestricted", Box::new(|_| ()), json!({}), "VALID"),
            (
                "revoked",
                Box::new(move |key| key.revoked_at = Some(now)),
                json!({}),
                "NOT_FOUND",
            ),
            (
                "expired",
                Box::new(move |key| key.restrictions.expires_at = Some(now)),
                json!({}),
                "EXPIRED",
            ),
            (
                "suspended",
                Box::new(move |key| key.suspended_at = Some(now)),
                json!({}),
                "DISABLED",
            ),
            (
                "expired and suspended",
                Box::new(move |key| {
                    key.restrictions.expires_at = Some(now);
                    key.suspended_at = Some(now);
                }),
                json!({}),
                "EXPIRED",
            ),
            (
                "IP allowlist",
                Box::new(|key| {
                    key.restrictions.allowed_ips = IpList::parse(["0.0.0.0/0", "::/0"]).ok()
                }),
                json!({}),
                "FORBIDDEN",
            ),
            (
                "merchants",
                Box::new(|key| key.restrictions.merchants = Some(vec!["m_1".to_owned()])),
                json!({}),
                "FORBIDDEN",
            ),
            (
                "features",
                Box::new(|key| key.restrictions.features = Some(vec![Feature::TokensList])),
                json!({}),
                "FORBIDDEN",
            ),
            (
                "features and a missing scope",
                Box::new(|key| key.restrictions.features = Some(vec![Feature::TokensList])),
                json!({"permissions": "refunds:read"}),
                "FORBIDDEN",
            ),
            (
                "a missing scope",
                Box::new(|key| key.restrictions.scopes = vec![Scope::LINKS_READ]),
                json!({"permissions": "links:write"}),
                "INSUFFICIENT_PERMISSIONS",
            ),
        ];
        for (name, edit, body, expected) in rows {
            let key = insert(app, edit).await;
            assert_eq!(code(app, &key, body).await, expected, "{name}");
        }
        let publishable = app
            .insert_key("acme", Family::Publishable, Mode::Live)
            .await;
        assert_eq!(code(app, &publishable, json!({})).await, "FORBIDDEN");
        for unknown in ["", "nonsense", " ck_live_x", &"x".repeat(10_000)] {
            let data = verify(app, unknown, json!({})).await;
            assert_eq!(
                data,
                json!({"valid": false, "code": "NOT_FOUND"}),
                "{unknown}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn denied_key_has_its_fields_unless_it_is_revoked() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let created = app
            .key(&token, &application, json!({"scopes": ["links:read"]}))
            .await;
        let fields = |valid: bool, code: &str, enabled: bool| {
            json!({
                "valid": valid, "code": code, "keyId": created.id, "name": "Checkout", "enabled": enabled,
                "permissions": ["links:read"], "identity": {"id": "acme", "externalId": "acme"}
            })
        };
        let key = &created.text;
        assert_eq!(verify(app, key, json!({})).await, fields(true, "VALID", true));
        let status = format!("/applications/{application}/status");
        for (enabled, expected) in [
            (false, fields(false, "DISABLED", false)),
            (true, fields(true, "VALID", true)),
        ] {
            let reply = app.patch(&status, json!({"isEnabled": enabled})).bearer(&token).await;
            assert_eq!(reply.status, 200, "{reply}");
            assert_eq!(verify(app, key, json!({})).await, expected);
        }
        assert_eq!(
            verify(app, key, json!({"permissions": "links:write"})).await,
            fields(false, "INSUFFICIENT_PERMISSIONS", true)
        );
        let now = app.clock.now();
        app.edit_key("acme", &created.id, move |key| key.suspended_at = Some(now)).await;
        assert_eq!(verify(app, key, json!({})).await, fields(false, "DISABLED", false));
        app.edit_key("acme", &created.id, |key| key.suspended_at = None).await;
        let path = format!("/applications/{application}/api-keys/{}", created.id);
        assert_eq!(app.delete(&path).bearer(&token).await.status, 204);
        assert_eq!(
            verify(app, key, json!({})).await,
            json!({"valid": false, "code": "NOT_FOUND"})
        );
    })
    .await;
}

#[actix_web::test]
async fn permissions_are_an_expression_of_scopes() {
    each_backend(async |app: &App| {
        let key = with_scopes(app, &[Scope::LINKS_READ, Scope::EVENTS_READ]).await;
        let commerce = with_scopes(app, &[Scope::COMMERCE]).await;
        let secret = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let lacks = "INSUFFICIENT_PERMISSIONS";
        for (key, permissions, expected) in [
            (&key, "links:read", "VALID"),
            (&key, "links:write", lacks),
            (&key, "links:read AND events:read", "VALID"),
            (&key, "links:read and links:write", lacks),
            (&key, "links:write Or events:read", "VALID"),
            (&key, "links:read OR links:write AND sessions:read", "VALID"),
            (&key, "(links:read OR links:write) AND sessions:read", lacks),
            (
                &key,
                "(links:read OR links:write) AND (events:read)",
                "VALID",
            ),
            // A scope that the server does not know is not an error.
            (&key, "documents.read", lacks),
            (&key, "documents.read OR links:read", "VALID"),
            (&key, "documents.read AND links:read", lacks),
            (&key, "*", lacks),
            (&key, "links:*", lacks),
            (&key, "commerce", lacks),
            (&commerce, "links:write AND commerce", "VALID"),
            (&commerce, "documents.read", lacks),
            (&secret, "links:write AND commerce", "VALID"),
            (&secret, "documents.read", lacks),
        ] {
            let body = json!({"permissions": permissions});
            assert_eq!(code(app, key, body).await, expected, "{permissions}");
        }
    })
    .await;
}

#[actix_web::test]
async fn only_a_valid_result_takes_a_use_of_the_rate_limit() {
    each_backend(async |app: &App| {
        let key = insert(app, |key| {
            key.id = KEY_ID.parse().expect("a key ID");
            key.restrictions = Restrictions {
                scopes: vec![Scope::LINKS_READ],
                rate_limit: RateLimit::new(2, 60).ok(),
                ..Restrictions::default()
            };
        })
        .await;
        let lacking = json!({"permissions": "links:read AND links:write"});
        let denied = async || {
            let data = verify(app, &key, lacking.clone()).await;
            assert_eq!(data["code"], "INSUFFICIENT_PERMISSIONS");
            assert_eq!(data.get("ratelimits"), None);
        };
        for _ in 0..4 {
            denied().await;
        }
        for remaining in [1, 0] {
            let data = verify(app, &key, json!({"permissions": "links:read"})).await;
            assert_eq!(data["ratelimits"][0]["remaining"], remaining);
            assert_eq!(data["ratelimits"][0]["exceeded"], false);
            denied().await;
        }
        let body = json!({"key": key, "permissions": "links:read"});
        assert_response!(request(app, body).bearer(&app.service()).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "data": {
            "valid": false,
            "code": "RATE_LIMITED",
            "keyId": "0198c0de-0000-7000-8000-000000000002",
            "name": "Example",
            "enabled": true,
            "permissions": [
              "links:read"
            ],
            "identity": {
              "id": "acme",
              "externalId": "acme"
            },
            "ratelimits": [
              {
                "exceeded": true,
                "id": "0198c0de-0000-7000-8000-000000000002",
                "name": "key",
                "limit": 2,
                "duration": 60000,
                "reset": 1767225630000,
                "remaining": 0,
                "autoApply": true
              }
            ]
          }
        }
        "#);
        // The limit is that of the other APIs.
        assert_eq!(app.code(&key).await, "rate_limited");
        denied().await;
    })
    .await;
}

#[actix_web::test]
async fn invalid_fields_are_reported_with_their_locations() {
    each_backend(async |app: &App| {
        let service = app.service();
        let send = |body: Value| request(app, body).bearer(&service);
        let body = json!({
            "key": "x", "credits": {"cost": 2}, "ratelimits": [{"name": "requests"}], "keyspaces": ["ks_1"],
            "tags": ["a b"], "permissions": "links:read AND"
        });
        assert_response!(send(body).await, @r#"
        400
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "error": {
            "title": "The request is not valid",
            "detail": "5 fields are invalid: /credits, /keyspaces, /ratelimits, /tags/0, /permissions",
            "status": 400,
            "type": "urn:tollkey:problem:validation_failed",
            "errors": [
              {
                "location": "body.credits",
                "message": "is not supported, because keys have no credits; omit it"
              },
              {
                "location": "body.keyspaces",
                "message": "is not supported, because keys are in no keyspace; omit it"
              },
              {
                "location": "body.ratelimits",
                "message": "is not supported; omit it, and set the rate limit of the key instead"
              },
              {
                "location": "body.tags[0]",
                "message": "must have 1 to 256 characters from A-Z a-z 0-9 _ = / . : -"
              },
              {
                "location": "body.permissions",
                "message": "must have a scope or an opening parenthesis at position 15"
              }
            ]
          }
        }
        "#);
        let tag = "must have 1 to 256 characters from A-Z a-z 0-9 _ = / . : -";
        let rows = [
            (json!({}), vec!["body.key is required".to_owned()]),
            (json!({"key": 7}), vec!["body.key must be a string".to_owned()]),
            (
                json!({"key": "x", "apiId": "api_1"}),
                vec!["body.apiId is unknown".to_owned()],
            ),
            (
                json!({"key": "x", "migration_id": "m_1"}),
                vec!["body.migration_id is unknown; use `migrationId`".to_owned()],
            ),
            (
                json!({"key": "x", "tags": "a", "permissions": ["links:read"]}),
                vec![
                    "body.permissions must be a string".to_owned(),
                    "body.tags must be an array".to_owned(),
                ],
            ),
            (
                json!({"key": "x", "tags": vec!["a"; 21]}),
                vec!["body.tags must have at most 20 items".to_owned()],
            ),
            (
                json!({"key": "x", "tags": ["", "a", "x".repeat(257), "é"]}),
                [0, 2, 3].map(|index| format!("body.tags[{index}] {tag}")).to_vec(),
            ),
            (
                json!({"key": "x", "migrationId": "m".repeat(257)}),
                vec!["body.migrationId must have at most 256 characters".to_owned()],
            ),
            (
                json!({"key": "x", "permissions": ""}),
                vec!["body.permissions must have 1 to 1000 characters".to_owned()],
            ),
            (
                json!({"key": "x", "permissions": "s3cret!"}),
                vec![
                    "body.permissions has an invalid character at position 7; use scopes, AND, OR and parentheses".to_owned(),
                ],
            ),
        ];
        for (body, expected) in rows {
            let reply = send(body.clone()).await;
            assert_eq!((reply.status, errors(&reply)), (400, expected), "{body}");
            assert!(!reply.body.contains("s3cret"), "{reply}");
        }
        // Fields with null count as absent.
        let body = json!({
            "key": "x", "tags": null, "permissions": null, "credits": null, "ratelimits": null, "migrationId": null
        });
        assert_eq!(send(body).await.status, 200);
        let full = json!({
            "key": "x", "tags": vec!["a".repeat(256); 20], "migrationId": "é".repeat(256)
        });
        assert_eq!(send(full).await.status, 200);
    })
    .await;
}

#[actix_web::test]
async fn errors_have_the_form_that_the_sdks_parse() {
    each_backend(async |app: &App| {
        let service = app.service();
        let valid = || request(app, json!({"key": "x"}));
        assert_response!(valid().await, @r#"
        401
        cache-control: no-store
        content-type: application/json
        www-authenticate: Bearer realm="tollkey"
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "error": {
            "title": "A credential is required",
            "detail": "Send a credential in the Authorization header with the scheme Bearer.",
            "status": 401,
            "type": "urn:tollkey:problem:missing_credentials"
          }
        }
        "#);
        assert_response!(valid().bearer(&app.management_token("acme")).await, @r#"
        403
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "error": {
            "title": "Access denied",
            "detail": "This operation requires a service key, a management token with the role `service`, or a secret key.",
            "status": 403,
            "type": "urn:tollkey:problem:forbidden"
          }
        }
        "#);
        let malformed = app
            .call("POST", PATH)
            .header("x-request-id", "req-1")
            .header("content-type", "application/json")
            .bearer(&service)
            .body("{");
        assert_response!(malformed.await, @r#"
        400
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "error": {
            "title": "The body is not valid JSON",
            "detail": "The body is not valid JSON at line 1, column 1: EOF while parsing an object.",
            "status": 400,
            "type": "urn:tollkey:problem:malformed_json",
            "errors": []
          }
        }
        "#);
        let other = app.post("/v2/keys.createKey", json!({"apiId": "api_1"}));
        assert_response!(other.header("x-request-id", "req-1").bearer(&service).await, @r#"
        404
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "error": {
            "title": "Not found",
            "detail": "No resource exists at this path. Check the URL.",
            "status": 404,
            "type": "urn:tollkey:problem:not_found"
          }
        }
        "#);
        // The form is the same with the other statuses.
        let form = |reply: &Reply| {
            let error = reply.json()["error"].clone();
            let fields: Vec<String> = error.as_object().expect("an error").keys().cloned().collect();
            assert_eq!(fields[..4], ["title", "detail", "status", "type"], "{reply}");
            assert_eq!(error["status"], reply.status, "{reply}");
            assert_eq!(reply.header("content-type"), Some("application/json"), "{reply}");
            let kind = error["type"].as_str().expect("a type");
            (reply.status, kind.rsplit(':').next().expect("a code").to_owned())
        };
        let typed = |content_type: &str, body: String| {
            let call = app.call("POST", PATH).bearer(&service);
            call.header("content-type", content_type).body(body)
        };
        let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        for (call, expected) in [
            (app.get(PATH).bearer(&service), (405, "method_not_allowed")),
            (typed("text/plain", "{}".to_owned()), (415, "unsupported_media_type")),
            (typed("application/json", " ".repeat(65_537)), (413, "payload_too_large")),
            (valid().bearer(&service).bearer(&service), (400, "multiple_credentials")),
            (valid().bearer(&key), (403, "forbidden")),
            (valid().bearer("garbage"), (401, "invalid_api_key")),
            (app.get("/v2"), (404, "not_found")),
            (app.get("/api/v2/keys"), (404, "not_found")),
        ] {
            let reply = call.await;
            let (status, code) = form(&reply);
            assert_eq!((status, code.as_str()), expected, "{reply}");
        }
        assert_eq!(app.get(PATH).await.header("allow"), Some("POST"));
    })
    .await;
}

#[actix_web::test]
async fn rate_limited_caller_gets_the_media_type_of_the_sdks() {
    each_backend(async |app: &App| {
        let text = app.generate_key(Family::Secret, Mode::Live);
        let limit = |key: &mut ApiKey| key.restrictions.rate_limit = RateLimit::new(1, 60).ok();
        let caller = app.insert("acme", &text, limit).await.text;
        let call = || request(app, json!({"key": "x"})).bearer(&caller);
        assert_eq!(call().await.status, 200);
        assert_response!(call().await, @r#"
        429
        cache-control: no-store
        content-type: application/problem+json
        ratelimit: "key";r=0;t=60
        ratelimit-policy: "key";q=1;w=60
        retry-after: 60
        x-content-type-options: nosniff
        x-request-id: req-1

        {
          "meta": {
            "requestId": "req-1"
          },
          "error": {
            "title": "Too many requests",
            "detail": "The key's rate limit is exceeded. Try again after the time in Retry-After.",
            "status": 429,
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded"
          }
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn secret_key_finds_only_keys_of_its_account_and_mode() {
    each_backend(async |app: &App| {
        let own_live = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let own_test = app.insert_key("acme", Family::Commerce, Mode::Test).await;
        let other = app.insert_key("globex", Family::Commerce, Mode::Test).await;
        let live = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let test = app.insert_key("acme", Family::Secret, Mode::Test).await;
        for (caller, key, expected) in [
            (&live, &own_live, "VALID"),
            (&live, &own_test, "VALID"),
            (&live, &other, "NOT_FOUND"),
            (&test, &own_live, "NOT_FOUND"),
            (&test, &own_test, "VALID"),
            (&test, &other, "NOT_FOUND"),
        ] {
            let reply = request(app, json!({"key": key})).bearer(caller).await;
            let data = &reply.json()["data"];
            assert_eq!(data["code"], expected, "{reply}");
            assert_eq!(data.get("keyId").is_some(), expected == "VALID", "{reply}");
        }
    })
    .await;
}

#[actix_web::test]
async fn route_is_also_under_api() {
    each_backend(async |app: &App| {
        let key = with_scopes(app, &[Scope::LINKS_READ]).await;
        let call = |path: &str| {
            let call = app.post(path, json!({"key": key}));
            call.header("x-request-id", "req-1").bearer(&app.service())
        };
        let first = call(PATH).await;
        let second = call("/api/v2/keys.verifyKey").await;
        assert_eq!(first.status, 200, "{first}");
        assert_eq!(first.to_string(), second.to_string());
        let wrong = app.get("/api/v2/keys.verifyKey").await;
        assert_eq!(
            (wrong.status, wrong.header("allow")),
            (405, Some("POST")),
            "{wrong}"
        );
    })
    .await;
}
