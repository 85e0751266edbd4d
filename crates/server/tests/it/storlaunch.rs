//! Account keys, in the order of the storlaunch document: list, create, revoke, key types recap,
//! events. Tests of what the document leaves open (error envelope, pagination, permissions) follow.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_core::{Clock as _, Family, KeyId, Mode};
use tollkey_store::Backend;

use crate::{
    assert_response,
    support::{
        App, Call, Key, Reply,
        account_keys::{KEYS, create_key, created_key, key_request},
        each_backend, eventually,
    },
};

/// The prefix of the document, and the prefix of the other APIs.
const MOUNTS: [&str; 2] = ["/v1", "/api/v1"];
const AUDIT_LOG: &str = "/v1/account/audit-log";

/// The field names of an object, in their order.
fn names(object: &Value) -> Vec<&str> {
    object
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

fn is_request_id(text: &str) -> bool {
    let crockford =
        |b: u8| matches!(b, b'0'..=b'9' | b'A'..=b'Z') && !matches!(b, b'I' | b'L' | b'O' | b'U');
    text.strip_prefix("req_")
        .is_some_and(|ulid| ulid.len() == 26 && ulid.bytes().all(crockford))
}

/// Asserts that a response has a valid envelope. Returns its JSON.
pub fn envelope(app: &App, reply: &Reply) -> Value {
    let json = reply.json();
    assert_eq!(names(&json), ["data", "error", "meta"], "{reply}");
    assert_ne!(json["data"].is_null(), json["error"].is_null(), "{reply}");
    assert_eq!(json["error"].is_null(), reply.status < 400, "{reply}");
    let own = json["meta"]["requestId"].as_str().expect("a request ID");
    assert!(is_request_id(own), "{reply}");
    assert_eq!(reply.header("x-request-id"), Some(own), "{reply}");
    let whole_seconds = jiff::Timestamp::from_second(app.clock.now().as_second())
        .expect("a time")
        .to_string();
    assert_eq!(json["meta"]["timestamp"], whole_seconds, "{reply}");
    assert_eq!(
        reply.header("content-type"),
        Some("application/json"),
        "{reply}"
    );
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{reply}");
    json
}

/// Status and code of an error in its envelope.
pub fn error_code(app: &App, reply: &Reply) -> (u16, String) {
    let error = envelope(app, reply)["error"].clone();
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{reply}"
    );
    assert!(
        names(&error)
            .iter()
            .all(|field| ["code", "message", "details"].contains(field)),
        "{reply}"
    );
    (
        reply.status,
        error["code"].as_str().expect("a code").to_owned(),
    )
}

fn failure(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// The errors of a 400, each as its pointer and detail.
pub fn field_errors(app: &App, reply: &Reply) -> Vec<String> {
    assert_eq!(
        error_code(app, reply),
        failure(400, "VALIDATION_ERROR"),
        "{reply}"
    );
    let errors = reply.json()["error"]["details"]["errors"].clone();
    let text = |error: &Value, field: &str| error[field].as_str().unwrap_or("?").to_owned();
    let errors = errors.as_array().cloned().unwrap_or_default();
    errors
        .iter()
        .map(|error| format!("{} {}", text(error, "pointer"), text(error, "detail")))
        .collect()
}

/// The `data` of a list.
async fn data(app: &App, path: &str, by: &str) -> Vec<Value> {
    let reply = app.get(path).bearer(by).await;
    assert_eq!(reply.status, 200, "{reply}");
    envelope(app, &reply)["data"]
        .as_array()
        .expect("an array")
        .clone()
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["id"].as_str().expect("an ID"))
        .collect()
}

/// A secret key of `acme`.
async fn secret_key(app: &App, environment: &str) -> Key {
    create_key(
        app,
        &app.management_token("acme"),
        key_request(environment, "secret"),
    )
    .await
}

// List

#[actix_web::test]
async fn list_has_metadata_of_keys_newest_first() {
    each_backend(async |app: &App| {
        let first = secret_key(app, "live").await;
        app.clock.advance(Duration::from_secs(60));
        let second = create_key(app, &first.text, key_request("test", "publishable")).await;
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", second.id))
                .bearer(&first.text)
                .await
                .status,
            200
        );
        app.running().state().service.flush_usage().await;
        assert_response!(app.get(KEYS).bearer(&first.text).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDQ4K03R79WC4VYM43RKXG

        {
          "data": [
            {
              "id": "key_01KDVDQ4K0FKQ987VA03V5Y7JK",
              "name": "Production webhook handler",
              "prefix": "pk_test_",
              "last4": "NsyM",
              "environment": "test",
              "access": "publishable",
              "createdAt": "2026-01-01T00:01:00Z",
              "lastUsedAt": null,
              "revokedAt": "2026-01-01T00:01:00Z"
            },
            {
              "id": "key_01KDVDNA00EHTBVHF29MN42ERN",
              "name": "Production webhook handler",
              "prefix": "sk_live_",
              "last4": "fmUQ",
              "environment": "live",
              "access": "secret",
              "createdAt": "2026-01-01T00:00:00Z",
              "lastUsedAt": "2026-01-01T00:01:00Z",
              "revokedAt": null
            }
          ],
          "error": null,
          "meta": {
            "requestId": "req_01KDVDQ4K03R79WC4VYM43RKXG",
            "timestamp": "2026-01-01T00:01:00Z",
            "nextCursor": null
          }
        }
        "#);
        let rows = data(app, KEYS, &first.text).await;
        for row in &rows {
            let documented = [
                "id",
                "name",
                "prefix",
                "last4",
                "environment",
                "access",
                "createdAt",
                "lastUsedAt",
                "revokedAt",
            ];
            assert_eq!(names(row), documented);
        }
        // `prefix` and `last4` identify a key.
        assert!(
            first.text.starts_with("sk_live_")
                && first.text.ends_with(rows[1]["last4"].as_str().unwrap())
        );
        assert!(
            second.text.starts_with("pk_test_")
                && second.text.ends_with(rows[0]["last4"].as_str().unwrap())
        );
        let listed = app.get(KEYS).bearer(&first.text).await.body;
        assert!(!listed.contains(&first.text[8..]) && !listed.contains(&second.text[8..]));
    })
    .await;
}

#[actix_web::test]
async fn last_used_at_is_null_until_the_first_use() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = secret_key(app, "live").await;
        let last_used = async || {
            app.running().state().service.flush_usage().await;
            data(app, KEYS, &token).await[0]["lastUsedAt"].clone()
        };
        assert_eq!(last_used().await, Value::Null);
        data(app, KEYS, &key.text).await;
        assert_eq!(last_used().await, "2026-01-01T00:00:00Z");
        app.clock.advance(Duration::from_millis(90_500));
        assert_eq!(
            last_used().await,
            "2026-01-01T00:00:00Z",
            "a list requested with a token is no use of the key"
        );
        assert_eq!(app.code(&key.text).await, "valid");
        assert_eq!(last_used().await, "2026-01-01T00:01:30Z");
    })
    .await;
}

#[actix_web::test]
async fn list_is_paginated_by_limit_and_cursor() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let mut created_key = Vec::new();
        for i in 0..5 {
            created_key.push(
                create_key(app, &token, key_request("live", "secret"))
                    .await
                    .id,
            );
            // Two have the same time, so the cursor needs the ID, too.
            app.clock.advance(Duration::from_secs(i % 2));
        }
        // Neither a key of another account nor one of another family is listed.
        create_key(
            app,
            &app.management_token("globex"),
            key_request("live", "secret"),
        )
        .await;
        app.insert_key("acme", Family::Commerce, Mode::Live).await;
        // Newest first, and by ID within the same time.
        created_key.sort_by(|a, b| b.cmp(a));
        let (mut seen, mut cursor, mut sizes) = (Vec::new(), None::<String>, Vec::new());
        loop {
            let after = cursor
                .as_ref()
                .map(|cursor| format!("&cursor={cursor}"))
                .unwrap_or_default();
            let page = envelope(
                app,
                &app.get(&format!("{KEYS}?limit=2{after}"))
                    .bearer(&token)
                    .await,
            );
            let rows = page["data"].as_array().unwrap();
            sizes.push(rows.len());
            seen.extend(ids(rows).into_iter().map(str::to_owned));
            assert_eq!(
                names(&page["meta"]),
                ["requestId", "timestamp", "nextCursor"]
            );
            match page["meta"]["nextCursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!((seen, sizes), (created_key.clone(), vec![2, 2, 1]));
        assert_eq!(
            ids(&data(app, &format!("{KEYS}?limit=5"), &token).await),
            created_key
        );
        for (query, rule) in [
            ("limit=0", "limit must be between 1 and 1000"),
            ("limit=1001", "limit must be between 1 and 1000"),
            ("limit=x", "limit must be a whole number within its range"),
            ("limit=1&limit=1", "limit must not be repeated"),
            (
                "cursor=x",
                "cursor must be a cursor from an earlier response",
            ),
            (
                "cursor=",
                "cursor must be a cursor from an earlier response",
            ),
            ("page=1", "page is unknown"),
        ] {
            assert_eq!(
                field_errors(
                    app,
                    &app.get(&format!("{KEYS}?{query}")).bearer(&token).await
                ),
                [rule],
                "{query}"
            );
        }
    })
    .await;
}

// Create

#[actix_web::test]
async fn creation_returns_the_key_once() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "  Production webhook handler ", "environment": "live", "access": "secret"});
        let first = app.post(KEYS, body).bearer(&token).await;
        assert_response!(first, @r#"
        201
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "data": {
            "id": "key_01KDVDNA00EHTBVHF29MN42ERN",
            "name": "Production webhook handler",
            "environment": "live",
            "access": "secret",
            "value": "sk_live_(32)",
            "createdAt": "2026-01-01T00:00:00Z"
          },
          "error": null,
          "meta": {
            "requestId": "req_01KDVDNA00HXPX69B46WBKBWSC",
            "timestamp": "2026-01-01T00:00:00Z"
          }
        }
        "#);
        let key = created_key(&first);
        app.clock.advance(Duration::from_millis(1700));
        assert_response!(app.post(KEYS, key_request("test", "publishable")).bearer(&key.text).await, @r#"
        201
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNBN40QT6EFQNM6ZM32RB

        {
          "data": {
            "id": "key_01KDVDNBN4FKQ987VA03V5Y7JK",
            "name": "Production webhook handler",
            "environment": "test",
            "access": "publishable",
            "value": "pk_test_(32)",
            "createdAt": "2026-01-01T00:00:01Z"
          },
          "error": null,
          "meta": {
            "requestId": "req_01KDVDNBN40QT6EFQNM6ZM32RB",
            "timestamp": "2026-01-01T00:00:01Z"
          }
        }
        "#);
        let data = first.json()["data"].clone();
        assert_eq!(names(&data), ["id", "name", "environment", "access", "value", "createdAt"]);
        assert_eq!(key.text.len(), "sk_live_".len() + 32);
        assert!(key.text["sk_live_".len()..].bytes().all(|b| b.is_ascii_alphanumeric()));
        // No other response contains the key.
        for path in [KEYS, AUDIT_LOG, "/audit-log"] {
            let by = if path == "/audit-log" { &token } else { &key.text };
            assert!(!app.get(path).bearer(by).await.body.contains(&key.text[8..]), "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn invalid_creation_is_400_with_every_error() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let now = app.in_seconds(0);
        for (field, value, rule) in [
            ("name", Value::Null, "/name must be a string"),
            ("name", json!(""), "/name must have 1 to 100 characters"),
            ("name", json!("   "), "/name must have 1 to 100 characters"),
            (
                "name",
                json!("é".repeat(101)),
                "/name must have 1 to 100 characters",
            ),
            (
                "name",
                json!("a\u{7}b"),
                "/name must not contain control characters",
            ),
            ("name", json!(7), "/name must be a string"),
            ("environment", Value::Null, "/environment must be a string"),
            (
                "environment",
                json!("Live"),
                "/environment must be one of live, test, production, sandbox",
            ),
            (
                "environment",
                json!("staging"),
                "/environment must be one of live, test, production, sandbox",
            ),
            (
                "environment",
                json!(["live"]),
                "/environment must be a string",
            ),
            (
                "access",
                json!("admin"),
                "/access must be one of secret, publishable",
            ),
            (
                "access",
                json!("Secret"),
                "/access must be one of secret, publishable",
            ),
            ("access", json!(1), "/access must be a string"),
            ("scopes", json!(["commerce"]), "/scopes is unknown"),
            ("mode", json!("live"), "/mode is unknown"),
            ("accountId", json!("globex"), "/accountId is unknown"),
            (
                "expires_at",
                json!(1),
                "/expires_at is unknown; use `expiresAt`",
            ),
            ("expiresAt", json!(now), "/expiresAt must be in the future"),
            (
                "allowedIps",
                json!([]),
                "/allowedIps must not be empty; on creation, omit the field to set no restriction",
            ),
            (
                "allowedIps",
                json!(["10.0.0.1/8"]),
                "/allowedIps `10.0.0.1/8` has host bits set; did you mean `10.0.0.0/8`?",
            ),
            (
                "rateLimit",
                json!({"limit": 0, "windowSeconds": 1}),
                "/rateLimit/limit must be between 1 and 1000000",
            ),
            (
                "rateLimit",
                json!({"limit": 1, "windowSeconds": 86_401}),
                "/rateLimit/windowSeconds must be between 1 and 86400",
            ),
            (
                "rateLimit",
                json!({"limit": 1}),
                "/rateLimit/windowSeconds is required",
            ),
            (
                "metadata",
                json!({"x": "y".repeat(4096)}),
                "/metadata must be at most 4096 bytes of JSON",
            ),
            ("metadata", json!(["x"]), "/metadata must be an object"),
        ] {
            let mut body = key_request("live", "secret");
            body[field] = value;
            assert_eq!(
                field_errors(app, &app.post(KEYS, body.clone()).bearer(&token).await),
                [rule],
                "{body}"
            );
        }
        for field in ["name", "environment", "access"] {
            let mut body = key_request("live", "secret");
            body.as_object_mut().unwrap().remove(field);
            let rule = match field {
                "access" => "/access is required with the environment `live` or `test`".to_owned(),
                _ => format!("/{field} is required"),
            };
            assert_eq!(
                field_errors(app, &app.post(KEYS, body).bearer(&token).await),
                [rule]
            );
        }
        // Whether `access` is required depends on the environment.
        for (environment, rule) in [
            (None, "/environment is required"),
            (Some(json!(["live"])), "/environment must be a string"),
            (
                Some(json!("staging")),
                "/environment must be one of live, test, production, sandbox",
            ),
        ] {
            let mut body = json!({"name": "Worker"});
            if let Some(environment) = environment {
                body["environment"] = environment;
            }
            assert_eq!(
                field_errors(app, &app.post(KEYS, body.clone()).bearer(&token).await),
                [rule],
                "{body}"
            );
        }
        // All errors in one response.
        let mut body = key_request("live", "secret");
        (body["name"], body["expiresAt"], body["allowedIps"]) = (json!(""), json!(0), json!(["x"]));
        assert_response!(app.post(KEYS, body).bearer(&token).await, @r#"
        400
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00XC5CNGJQSCFHJKAH

        {
          "data": null,
          "error": {
            "code": "VALIDATION_ERROR",
            "message": "3 fields are invalid: /name, /expiresAt, /allowedIps",
            "details": {
              "code": "validation_failed",
              "errors": [
                {
                  "pointer": "/name",
                  "detail": "must have 1 to 100 characters"
                },
                {
                  "pointer": "/expiresAt",
                  "detail": "must be in the future"
                },
                {
                  "pointer": "/allowedIps",
                  "detail": "`x` is not in CIDR notation, such as 203.0.113.0/24"
                }
              ]
            }
          },
          "meta": {
            "requestId": "req_01KDVDNA00XC5CNGJQSCFHJKAH",
            "timestamp": "2026-01-01T00:00:00Z"
          }
        }
        "#);
        assert_eq!(data(app, KEYS, &token).await, Vec::<Value>::new());
        assert_eq!(data(app, AUDIT_LOG, &token).await, Vec::<Value>::new());
        for name in ["a".repeat(100), "é".repeat(100)] {
            let key = app
                .post(
                    KEYS,
                    json!({"name": name, "environment": "test", "access": "secret"}),
                )
                .bearer(&token);
            assert_eq!(key.await.json()["data"]["name"], name);
        }
    })
    .await;
}

/// These are the values of the vendor's client libraries, which send no `access`.
#[actix_web::test]
async fn production_and_sandbox_count_as_live_and_test() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let create = async |by: &str, environment: &str, access: Value| {
            let body = json!({"name": "Worker", "environment": environment, "access": access});
            app.post(KEYS, body).bearer(by).await
        };
        let body = json!({"name": "Worker", "environment": "production"});
        let first = app.post(KEYS, body).bearer(&token).await;
        assert_response!(first, @r#"
        201
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "data": {
            "id": "key_01KDVDNA00EHTBVHF29MN42ERN",
            "name": "Worker",
            "environment": "live",
            "access": "secret",
            "value": "sk_live_(32)",
            "createdAt": "2026-01-01T00:00:00Z"
          },
          "error": null,
          "meta": {
            "requestId": "req_01KDVDNA00HXPX69B46WBKBWSC",
            "timestamp": "2026-01-01T00:00:00Z"
          }
        }
        "#);
        for (environment, access, shown, prefix) in [
            ("production", Value::Null, ["live", "secret"], "sk_live_"),
            ("sandbox", Value::Null, ["test", "secret"], "sk_test_"),
            ("sandbox", json!("secret"), ["test", "secret"], "sk_test_"),
            (
                "production",
                json!("publishable"),
                ["live", "publishable"],
                "pk_live_",
            ),
            (
                "sandbox",
                json!("publishable"),
                ["test", "publishable"],
                "pk_test_",
            ),
        ] {
            let reply = create(&token, environment, access).await;
            assert_eq!(reply.status, 201, "{reply}");
            let key = &envelope(app, &reply)["data"];
            assert_eq!([&key["environment"], &key["access"]], shown, "{reply}");
            assert!(created_key(&reply).text.starts_with(prefix), "{reply}");
            let listed = data(app, KEYS, &token).await;
            let row = listed.iter().find(|row| row["id"] == key["id"]);
            let row = row.expect("the key in the list");
            assert_eq!([&row["environment"], &row["access"]], shown, "{reply}");
        }
        // The rules of the modes apply.
        let test = secret_key(app, "test").await;
        let live = create(&test.text, "production", Value::Null).await;
        assert_eq!(error_code(app, &live), failure(403, "FORBIDDEN"));
        let sandbox = create(&test.text, "sandbox", Value::Null).await;
        assert_eq!(sandbox.status, 201, "{sandbox}");
        // The values are compared exactly.
        for environment in ["Production", "SANDBOX", "prod"] {
            let reply = create(&token, environment, json!("secret")).await;
            assert_eq!(
                field_errors(app, &reply),
                ["/environment must be one of live, test, production, sandbox"]
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn undocumented_fields_are_returned_only_if_they_are_set() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let mut body = key_request("live", "secret");
        for field in ["expiresAt", "allowedIps", "rateLimit", "metadata"] {
            body[field] = Value::Null; // null is the same as an absent field
        }
        let plain = app.post(KEYS, body).bearer(&token).await.json();
        assert_eq!(
            names(&plain["data"]),
            ["id", "name", "environment", "access", "value", "createdAt"]
        );
        let mut body = key_request("test", "publishable");
        body["expiresAt"] = json!("2026-02-01T01:00:00+01:00");
        body["allowedIps"] = json!(["203.0.113.0/24", "::ffff:10.0.0.0/104"]);
        body["rateLimit"] = json!({"limit": 10, "windowSeconds": 60});
        body["metadata"] = json!({"owner": "checkout", "b": [1, null], "a": {}});
        assert_response!(app.post(KEYS, body).bearer(&token).await, @r#"
        201
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA000QT6EFQNM6ZM32RB

        {
          "data": {
            "id": "key_01KDVDNA00FKQ987VA03V5Y7JK",
            "name": "Production webhook handler",
            "environment": "test",
            "access": "publishable",
            "value": "pk_test_(32)",
            "createdAt": "2026-01-01T00:00:00Z",
            "expiresAt": "2026-02-01T00:00:00Z",
            "allowedIps": [
              "203.0.113.0/24",
              "10.0.0.0/8"
            ],
            "rateLimit": {
              "limit": 10,
              "windowSeconds": 60
            },
            "metadata": {
              "owner": "checkout",
              "b": [
                1,
                null
              ],
              "a": {}
            }
          },
          "error": null,
          "meta": {
            "requestId": "req_01KDVDNA000QT6EFQNM6ZM32RB",
            "timestamp": "2026-01-01T00:00:00Z"
          }
        }
        "#);
        let row = data(app, KEYS, &token).await[0].clone();
        assert_eq!(
            names(&row)[9..],
            ["expiresAt", "allowedIps", "rateLimit", "metadata"]
        );
        assert_eq!(row["expiresAt"], "2026-02-01T00:00:00Z");
        assert_eq!(row["allowedIps"], json!(["203.0.113.0/24", "10.0.0.0/8"]));
        assert_eq!(row["rateLimit"], json!({"limit": 10, "windowSeconds": 60}));
        assert_eq!(
            row["metadata"].to_string(),
            r#"{"owner":"checkout","b":[1,null],"a":{}}"#
        );
    })
    .await;
}

// Revoke

#[actix_web::test]
async fn delete_and_post_revoke_a_key() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        let (deleted, posted) = (
            create_key(app, &owner.text, key_request("live", "secret")).await,
            create_key(app, &owner.text, key_request("live", "secret")).await,
        );
        for key in [&deleted, &posted] {
            assert_eq!(app.get(KEYS).bearer(&key.text).await.status, 200);
        }
        app.running().state().service.flush_usage().await;
        app.clock.advance(Duration::from_secs(5));
        assert_response!(app.delete(&format!("{KEYS}/{}", deleted.id)).bearer(&owner.text).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNEW897AARKP3R8654ZN1

        {
          "data": {
            "id": "key_01KDVDNA00FKQ987VA03V5Y7JK",
            "name": "Production webhook handler",
            "prefix": "sk_live_",
            "last4": "NsyM",
            "environment": "live",
            "access": "secret",
            "createdAt": "2026-01-01T00:00:00Z",
            "lastUsedAt": "2026-01-01T00:00:00Z",
            "revokedAt": "2026-01-01T00:00:05Z"
          },
          "error": null,
          "meta": {
            "requestId": "req_01KDVDNEW897AARKP3R8654ZN1",
            "timestamp": "2026-01-01T00:00:05Z"
          }
        }
        "#);
        let row = app.call("POST", &format!("{KEYS}/{}/revoke", posted.id)).bearer(&owner.text).await;
        assert_eq!(row.status, 200, "{row}");
        let row = envelope(app, &row)["data"].clone();
        assert_eq!((row["id"].as_str(), row["revokedAt"].as_str()), (Some(&*posted.id), Some("2026-01-01T00:00:05Z")));
        for key in [&deleted, &posted] {
            let denied = app.get(KEYS).bearer(&key.text).await;
            assert_eq!(error_code(app, &denied), failure(401, "INVALID_API_KEY"));
            assert_eq!(app.code(&key.text).await, "revoked");
        }
        assert_response!(app.get(KEYS).bearer(&deleted.text).await, @r#"
        401
        cache-control: no-store
        content-type: application/json
        www-authenticate: Bearer realm="tollkey", error="invalid_token", error_description="The API key is unknown or revoked. Check the key, or use another one."
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNEW8Q340Z7PASX79EXQC

        {
          "data": null,
          "error": {
            "code": "INVALID_API_KEY",
            "message": "The API key is unknown or revoked. Check the key, or use another one."
          },
          "meta": {
            "requestId": "req_01KDVDNEW8Q340Z7PASX79EXQC",
            "timestamp": "2026-01-01T00:00:05Z"
          }
        }
        "#);

        // Repeated revocations return the same row and add no audit entry.
        app.clock.advance(Duration::from_secs(5));
        for (method, path) in [
            ("DELETE", format!("{KEYS}/{}", deleted.id)),
            ("POST", format!("{KEYS}/{}/revoke", deleted.id)),
            ("POST", format!("/api{KEYS}/{}/revoke", deleted.id)),
        ] {
            let again = app.call(method, &path).bearer(&owner.text).await;
            assert_eq!(again.status, 200, "{again}");
            assert_eq!(envelope(app, &again)["data"]["revokedAt"], "2026-01-01T00:00:05Z");
        }
        assert_eq!(data(app, &format!("{AUDIT_LOG}?action=api_key.revoked"), &owner.text).await.len(), 2);
        // Other keys are unchanged.
        assert_eq!(app.code(&owner.text).await, "valid");
        let rows = data(app, KEYS, &owner.text).await;
        assert_eq!(rows.iter().filter(|row| row["revokedAt"].is_null()).count(), 1);
    })
    .await;
}

#[actix_web::test]
async fn revocation_accepts_no_fields() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        let path = format!(
            "{KEYS}/{}/revoke",
            create_key(app, &owner.text, key_request("live", "secret"))
                .await
                .id
        );
        let unknown_field = app
            .post(&path, json!({"reason": "x"}))
            .bearer(&owner.text)
            .await;
        assert_eq!(field_errors(app, &unknown_field), ["/reason is unknown"]);
        let wrong_type = app
            .call("POST", &path)
            .header("content-type", "text/plain")
            .body("x")
            .bearer(&owner.text);
        assert_eq!(
            error_code(app, &wrong_type.await),
            failure(415, "UNSUPPORTED_MEDIA_TYPE")
        );
        assert_eq!(
            app.post(&path, json!({})).bearer(&owner.text).await.status,
            200
        );
    })
    .await;
}

#[actix_web::test]
async fn key_can_revoke_itself() {
    each_backend(async |app: &App| {
        let key = secret_key(app, "test").await;
        let path = format!("{KEYS}/{}", key.id);
        assert_eq!(app.delete(&path).bearer(&key.text).await.status, 200);
        assert_eq!(
            error_code(app, &app.delete(&path).bearer(&key.text).await),
            failure(401, "INVALID_API_KEY")
        );
    })
    .await;
}

#[actix_web::test]
async fn ids_are_accepted_in_both_formats_and_returned_in_one() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        let key = create_key(app, &owner.text, key_request("live", "secret")).await;
        let id: KeyId = key.id.parse().unwrap();
        assert_eq!(
            (key.id.len(), key.id.as_str()),
            (30, id.crockford().as_str())
        );
        for form in [
            id.to_string(),
            id.crockford(),
            id.crockford().to_lowercase(),
        ] {
            let reply = app
                .delete(&format!("{KEYS}/{form}"))
                .bearer(&owner.text)
                .await;
            assert_eq!(
                (reply.status, reply.json()["data"]["id"].as_str()),
                (200, Some(&*key.id)),
                "{form}: {reply}"
            );
        }
        // A malformed ID has the same response as an unknown one.
        let unknown = KeyId::from_bytes([9; 16]);
        let mut bodies = Vec::new();
        for form in [
            unknown.crockford(),
            unknown.to_string(),
            "x".to_owned(),
            "key_".to_owned(),
            format!("{id}0"),
        ] {
            for (method, rest) in [("DELETE", ""), ("POST", "/revoke")] {
                let reply = app
                    .call(method, &format!("{KEYS}/{form}{rest}"))
                    .bearer(&owner.text)
                    .await;
                assert_eq!(error_code(app, &reply), failure(404, "NOT_FOUND"), "{form}");
                bodies.push(reply.json()["error"].clone());
            }
        }
        bodies.dedup();
        assert_eq!(bodies.len(), 1, "{bodies:?}");
    })
    .await;
}

// Key types recap

#[actix_web::test]
async fn key_types_have_the_documented_access() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for (prefix, environment, access) in [
            ("pk_test_", "test", "publishable"),
            ("pk_live_", "live", "publishable"),
            ("sk_test_", "test", "secret"),
            ("sk_live_", "live", "secret"),
        ] {
            let key = create_key(app, &token, key_request(environment, access)).await;
            assert!(key.text.starts_with(prefix), "{prefix}");
            let rows = data(app, KEYS, &token).await;
            let row = rows
                .iter()
                .find(|row| row["id"] == key.id.as_str())
                .expect("a row for the family");
            assert_eq!(
                (&row["prefix"], &row["environment"], &row["access"]),
                (&json!(prefix), &json!(environment), &json!(access))
            );
            // Full account access, or only the public catalogue.
            let lists = app.get(KEYS).bearer(&key.text).await;
            let catalogue = json!({"method": "GET", "path": "/v1/storefront/products"});
            assert_eq!(
                app.verify(&key.text, catalogue).await["valid"],
                true,
                "{prefix}"
            );
            let order = app.verify(
                &key.text,
                json!({"method": "POST", "path": "/v1/orders", "scopes": ["links:write"]}),
            );
            if access == "secret" {
                assert_eq!(lists.status, 200, "{prefix}");
                assert_eq!(order.await["valid"], true, "{prefix}");
            } else {
                assert_eq!(
                    error_code(app, &lists),
                    failure(403, "FORBIDDEN"),
                    "{prefix}"
                );
                assert_eq!(order.await["code"], "route_not_allowed", "{prefix}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn publishable_key_can_only_call_the_documented_routes() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let service = app.service();
        for environment in ["test", "live"] {
            let key = create_key(app, &token, key_request(environment, "publishable"))
                .await
                .text;
            for (method, path, allowed) in [
                // GET /v1/storefront/public/*
                ("GET", "/v1/storefront/public/banner", true),
                ("GET", "/v1/storefront/public/a/b/c", true),
                ("HEAD", "/v1/storefront/public/banner", true),
                ("GET", "/api/v1/storefront/public/banner", true),
                ("GET", "/v1/storefront/public", false),
                ("GET", "/v1/storefront/public/", false),
                ("GET", "/v1/storefront/publicity/x", false),
                ("POST", "/v1/storefront/public/banner", false),
                // GET /v1/storefront/products
                ("GET", "/v1/storefront/products", true),
                ("HEAD", "/v1/storefront/products", true),
                ("GET", "/v1/storefront/products?page=2", true),
                ("GET", "/api/v1/storefront/products", true),
                ("POST", "/v1/storefront/products", false),
                ("DELETE", "/v1/storefront/products", false),
                ("OPTIONS", "/v1/storefront/products", false),
                ("get", "/v1/storefront/products", false),
                ("GET", "/v1/storefront/Products", false),
                ("GET", "/v1/storefront/products/", false),
                // GET /v1/storefront/products/:id
                ("GET", "/v1/storefront/products/prod_1", true),
                ("HEAD", "/v1/storefront/products/prod_1", true),
                ("GET", "/api/v1/storefront/products/prod_1?expand=x", true),
                ("PATCH", "/v1/storefront/products/prod_1", false),
                ("GET", "/v1/storefront/products/prod_1/reviews", false),
                // Other paths, and ambiguous ones.
                ("GET", "/v1/storefront", false),
                ("GET", "/v1/storefront/cart", false),
                ("GET", "/v1/account/api-keys", false),
                ("GET", "/storefront/products", false),
                ("GET", "/v2/storefront/products", false),
                ("GET", "/api/api/v1/storefront/products", false),
                ("GET", "//v1/storefront/products", false),
                ("GET", "/v1/storefront/public/../cart", false),
                ("GET", "/v1/storefront/public/%2e%2e/cart", false),
                ("GET", "/v1/storefront/public/..%2fcart", false),
                ("GET", "/v1/storefront/products/..;/cart", false),
                ("GET", "/v1/storefront/products/a%00", false),
                ("GET", "/v1/storefront/products/a%252fb", false),
                ("GET", "/v1/storefront/products/a%5cb", false),
                ("GET", "/", false),
                ("GET", "", false),
            ] {
                let body = json!({"key": key, "method": method, "path": path});
                let verdict = app.post("/verify", body).bearer(&service).await.json();
                let forwarded = app
                    .get("/authz/forward-auth")
                    .header("x-forwarded-method", method)
                    .header("x-forwarded-uri", path)
                    .header("x-api-key", &key)
                    .await;
                let actual = (
                    verdict["code"].as_str().unwrap().to_owned(),
                    forwarded.status,
                );
                let expected = if allowed {
                    ("valid", 200)
                } else {
                    ("route_not_allowed", 403)
                };
                assert_eq!(
                    actual,
                    (expected.0.to_owned(), expected.1),
                    "{method} {path}"
                );
                if !allowed {
                    assert_eq!(forwarded.code(), "route_not_allowed", "{method} {path}");
                }
            }
            // A request without a method or a path matches no route.
            for need in [
                json!({}),
                json!({"method": "GET"}),
                json!({"path": "/v1/storefront/products"}),
            ] {
                assert_eq!(app.verify(&key, need).await["code"], "route_not_allowed");
            }
        }
    })
    .await;
}

/// Every operation of the API under each prefix, on the key with that ID.
fn operations(app: &App, id: &str) -> Vec<(String, Call)> {
    let on = |mount: &str| {
        let keys = format!("{mount}/account/api-keys");
        [
            ("list", app.get(&keys)),
            ("create", app.post(&keys, key_request("test", "secret"))),
            ("delete", app.delete(&format!("{keys}/{id}"))),
            ("revoke", app.call("POST", &format!("{keys}/{id}/revoke"))),
            ("audit log", app.get(&format!("{mount}/account/audit-log"))),
        ]
        .map(|(name, call)| (format!("{name} under {mount}"), call))
    };
    MOUNTS.into_iter().flat_map(on).collect()
}

#[actix_web::test]
async fn every_operation_exists_under_both_prefixes() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        let key = create_key(app, &owner.text, key_request("live", "secret")).await;
        let mut responses: Vec<(u16, Value)> = Vec::new();
        for (name, call) in operations(app, &key.id) {
            let reply = call.bearer(&owner.text).await;
            assert_eq!(
                reply.status,
                if name.starts_with("create") { 201 } else { 200 },
                "{name}: {reply}"
            );
            responses.push((reply.status, envelope(app, &reply)["data"].clone()));
        }
        // A key revoked under one prefix is also revoked under the other.
        let (v1, api) = responses.split_at(5);
        assert_eq!((&v1[2], &v1[3]), (&api[2], &api[3]));
        assert_eq!(
            (
                api[0].1.as_array().unwrap().len(),
                v1[0].1.as_array().unwrap().len()
            ),
            (3, 2)
        );
    })
    .await;
}

#[actix_web::test]
async fn only_secret_keys_and_management_tokens_may_call() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let owner = secret_key(app, "live").await;
        let application = app.application(&token, "Web Store").await;
        let publishable = create_key(app, &owner.text, key_request("live", "publishable"))
            .await
            .text;
        let commerce = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let application_key = app.key(&token, &application, json!({})).await.text;
        let service_key = app.service_key().await.text;
        let before = data(app, KEYS, &token).await;
        for (caller, credential) in [
            ("pk_", &publishable),
            ("ck_", &commerce),
            ("ks_", &application_key),
            ("tks_", &service_key),
            ("a token with the role service", &app.service()),
            ("a token without an account", &app.token(None, &[])),
        ] {
            for (name, call) in operations(app, &owner.id) {
                assert_eq!(
                    error_code(app, &call.bearer(credential).await),
                    failure(403, "FORBIDDEN"),
                    "{caller}: {name}"
                );
            }
        }
        for (name, call) in operations(app, &owner.id) {
            assert_eq!(
                error_code(app, &call.await),
                failure(401, "INVALID_API_KEY"),
                "no credential: {name}"
            );
        }
        assert_eq!(data(app, KEYS, &token).await, before);
        // The key is accepted in three headers, but not in two at the same time, nor in the query.
        for header in ["x-api-key", "x-commerce-api-key"] {
            assert_eq!(
                app.get(KEYS).header(header, &owner.text).await.status,
                200,
                "{header}"
            );
            let twice = app
                .get(KEYS)
                .bearer(&owner.text)
                .header(header, &owner.text)
                .await;
            assert_eq!(
                error_code(app, &twice),
                failure(400, "VALIDATION_ERROR"),
                "{header}"
            );
        }
        let in_query = app.get(&format!("{KEYS}?api_key={}", owner.text)).await;
        assert_eq!(error_code(app, &in_query), failure(401, "INVALID_API_KEY"));
    })
    .await;
}

#[actix_web::test]
async fn only_operators_can_select_an_account() {
    each_backend(async |app: &App| {
        let (token, operator) = (app.management_token("acme"), app.operator());
        let owner = secret_key(app, "live").await;
        let named = |call: &str| format!("{call}?account=acme");
        let created = app
            .post(&named(KEYS), key_request("live", "secret"))
            .bearer(&operator)
            .await;
        assert_eq!(created.status, 201, "{created}");
        let key = created_key(&created);
        assert_eq!(
            data(app, &named(KEYS), &operator).await,
            data(app, KEYS, &token).await
        );
        assert_eq!(
            data(app, &format!("{KEYS}?account=globex"), &operator).await,
            Vec::<Value>::new()
        );
        let log = data(app, &named(AUDIT_LOG), &operator).await;
        assert_eq!(log[0]["actor"], json!({"type": "operator", "id": "user_1"}));
        for mount in MOUNTS {
            let keys = format!("{mount}/account/api-keys");
            for (caller, credential) in [("merchant", &token), ("sk_", &owner.text)] {
                for call in [
                    app.get(&named(&keys)),
                    app.post(&named(&keys), key_request("live", "secret")),
                    app.delete(&named(&format!("{keys}/{}", key.id))),
                    app.call("POST", &named(&format!("{keys}/{}/revoke", key.id))),
                    app.get(&named(&format!("{mount}/account/audit-log"))),
                    app.get(&format!("{keys}?account=acme&account=acme")),
                    app.get(&format!("{keys}?account=")),
                    app.get(&format!("{keys}?%61ccount=acme")),
                ] {
                    assert_eq!(
                        error_code(app, &call.bearer(credential).await),
                        failure(403, "FORBIDDEN"),
                        "{caller}"
                    );
                }
            }
            for query in [
                "",
                "?account=",
                "?account=acme&account=acme",
                "?account=a%20b",
            ] {
                let reply = app.get(&format!("{keys}{query}")).bearer(&operator).await;
                assert_eq!(
                    error_code(app, &reply),
                    failure(400, "VALIDATION_ERROR"),
                    "{query}"
                );
            }
        }
        assert_eq!(
            app.delete(&named(&format!("{KEYS}/{}", key.id)))
                .bearer(&operator)
                .await
                .status,
            200
        );
        assert_eq!(app.code(&key.text).await, "revoked");
    })
    .await;
}

#[actix_web::test]
async fn test_key_manages_only_test_keys_and_a_live_key_both() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let (live, test) = (secret_key(app, "live").await, secret_key(app, "test").await);
        let other = create_key(app, &token, key_request("live", "publishable")).await;
        assert_eq!(ids(&data(app, KEYS, &test.text).await), [&test.id]);
        assert_eq!(
            ids(&data(app, KEYS, &live.text).await),
            [&other.id, &test.id, &live.id]
        );

        for access in ["secret", "publishable"] {
            let denied = app
                .post(KEYS, key_request("live", access))
                .bearer(&test.text)
                .await;
            assert_eq!(error_code(app, &denied), failure(403, "FORBIDDEN"));
            for by in [&test, &live] {
                create_key(app, &by.text, key_request("test", access)).await;
            }
            create_key(app, &live.text, key_request("live", access)).await;
        }
        // For a test key, a live key has the same response as an unknown key.
        let unknown = KeyId::from_bytes([9; 16]).crockford();
        for (method, rest) in [("DELETE", ""), ("POST", "/revoke")] {
            let mut errors = Vec::new();
            for id in [
                &unknown,
                &live.id,
                &other.id,
                &other.id.parse::<KeyId>().unwrap().to_string(),
            ] {
                let reply = app
                    .call(method, &format!("{KEYS}/{id}{rest}"))
                    .bearer(&test.text)
                    .await;
                assert_eq!(error_code(app, &reply), failure(404, "NOT_FOUND"));
                errors.push(reply.json()["error"].clone());
            }
            errors.dedup();
            assert_eq!(errors.len(), 1, "{errors:?}");
        }
        assert_eq!(app.code(&live.text).await, "valid");
        assert_eq!(
            app.verify(
                &other.text,
                json!({"method": "GET", "path": "/v1/storefront/products"})
            )
            .await["valid"],
            true
        );
        let second = create_key(app, &test.text, key_request("test", "secret")).await;
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", second.id))
                .bearer(&test.text)
                .await
                .status,
            200
        );
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", test.id))
                .bearer(&live.text)
                .await
                .status,
            200
        );
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", other.id))
                .bearer(&live.text)
                .await
                .status,
            200
        );
        assert_eq!(data(app, KEYS, &live.text).await.len(), 10);
    })
    .await;
}

// Events: the audit log

#[actix_web::test]
async fn creation_and_revocation_have_an_audit_entry() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let first = secret_key(app, "live").await;
        app.clock.advance(Duration::from_secs(1));
        let second = create_key(app, &first.text, key_request("test", "publishable")).await;
        app.clock.advance(Duration::from_secs(1));
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", second.id))
                .bearer(&first.text)
                .await
                .status,
            200
        );
        assert_response!(app.get(AUDIT_LOG).bearer(&first.text).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNBYG3R79WC4VYM43RKXG

        {
          "data": [
            {
              "id": "aud_01KDVDNBYGFR9SZRSGRSN7NZ6C",
              "occurredAt": "2026-01-01T00:00:02Z",
              "action": "api_key.revoked",
              "actor": {
                "type": "api_key",
                "id": "key_01KDVDNA00EHTBVHF29MN42ERN"
              },
              "target": {
                "type": "api_key",
                "id": "key_01KDVDNAZ8FKQ987VA03V5Y7JK"
              },
              "requestId": "req_01KDVDNBYGPHGSG3NSVB3Y7GEW",
              "ip": null,
              "changes": {
                "status": "revoked",
                "reason": null
              },
              "hash": "bf2b9a924ebdc2f6236fbe081d44277211c42105d01d5c5138c9c22e33067e9a"
            },
            {
              "id": "aud_01KDVDNAZ8FXQT36S0382XCT5P",
              "occurredAt": "2026-01-01T00:00:01Z",
              "action": "api_key.created",
              "actor": {
                "type": "api_key",
                "id": "key_01KDVDNA00EHTBVHF29MN42ERN"
              },
              "target": {
                "type": "api_key",
                "id": "key_01KDVDNAZ8FKQ987VA03V5Y7JK"
              },
              "requestId": "req_01KDVDNAZ80QT6EFQNM6ZM32RB",
              "ip": null,
              "changes": {
                "name": "Production webhook handler",
                "family": "publishable",
                "mode": "test",
                "prefix": "pk_test_",
                "last4": "NsyM",
                "application_id": null,
                "scopes": [],
                "merchants": null,
                "features": null,
                "allowed_ips": null,
                "rate_limit": null,
                "expires_at": null,
                "created_by": "019b76da-a800-7474-bdc5-e24d2a413b15"
              },
              "hash": "5d16805f43e4167c2b10bd7b1493b13b042a88dd8c46dc00ecb59ff45b9f49e6"
            },
            {
              "id": "aud_01KDVDNA00EEQ8RFQSKE6Z4KM1",
              "occurredAt": "2026-01-01T00:00:00Z",
              "action": "api_key.created",
              "actor": {
                "type": "merchant",
                "id": "user_1"
              },
              "target": {
                "type": "api_key",
                "id": "key_01KDVDNA00EHTBVHF29MN42ERN"
              },
              "requestId": "req_01KDVDNA00HXPX69B46WBKBWSC",
              "ip": null,
              "changes": {
                "name": "Production webhook handler",
                "family": "secret",
                "mode": "live",
                "prefix": "sk_live_",
                "last4": "fmUQ",
                "application_id": null,
                "scopes": [],
                "merchants": null,
                "features": null,
                "allowed_ips": null,
                "rate_limit": null,
                "expires_at": null
              },
              "hash": "f247cd1a7afda70a5218fddfb519e6352d6590fa634ea5f2ac32b24add192b56"
            }
          ],
          "error": null,
          "meta": {
            "requestId": "req_01KDVDNBYG3R79WC4VYM43RKXG",
            "timestamp": "2026-01-01T00:00:02Z",
            "nextCursor": null
          }
        }
        "#);
        let log = data(app, AUDIT_LOG, &first.text).await;
        let actions: Vec<&str> = log
            .iter()
            .map(|entry| entry["action"].as_str().unwrap())
            .collect();
        assert_eq!(
            actions,
            ["api_key.revoked", "api_key.created", "api_key.created"]
        );
        for entry in &log {
            assert!(entry["id"].as_str().unwrap().starts_with("aud_"), "{entry}");
            assert!(
                is_request_id(entry["requestId"].as_str().unwrap()),
                "{entry}"
            );
        }
        assert_eq!(
            log[0]["target"],
            json!({"type": "api_key", "id": second.id})
        );
        assert_eq!(log[0]["actor"], json!({"type": "api_key", "id": first.id}));
        assert_eq!(log[2]["actor"], json!({"type": "merchant", "id": "user_1"}));
        assert_eq!(
            log[1]["changes"]["created_by"],
            first.id.parse::<KeyId>().unwrap().to_string()
        );
        assert_eq!(data(app, AUDIT_LOG, &token).await, log);
        // The account's whole audit log has the same entries, with IDs in the other format.
        let whole = app.get("/audit-log").bearer(&token).await.json();
        let hashes = |log: &[Value]| {
            log.iter()
                .map(|entry| entry["hash"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(hashes(whole.as_array().unwrap()), hashes(&log));
        assert_eq!(
            whole[0]["target"]["id"],
            second.id.parse::<KeyId>().unwrap().to_string()
        );
    })
    .await;
}

#[actix_web::test]
async fn audit_log_is_paginated_and_filtered() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let live = secret_key(app, "live").await;
        let test = secret_key(app, "test").await;
        let application = app.application(&token, "Web Store").await;
        app.key(&token, &application, json!({"mode": "live"})).await;
        let test_application_key = app.key(&token, &application, json!({"mode": "test"})).await;
        let gone = create_key(app, &live.text, key_request("test", "secret")).await;
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", gone.id))
                .bearer(&live.text)
                .await
                .status,
            200
        );

        let all = data(app, AUDIT_LOG, &live.text).await;
        assert_eq!(all.len(), 7);
        let (mut seen, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let after = cursor
                .as_ref()
                .map(|cursor| format!("&cursor={cursor}"))
                .unwrap_or_default();
            let page = envelope(
                app,
                &app.get(&format!("{AUDIT_LOG}?limit=3{after}"))
                    .bearer(&live.text)
                    .await,
            );
            seen.extend(page["data"].as_array().unwrap().clone());
            match page["meta"]["nextCursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(seen, all);

        // A test key sees only entries about test keys, of all families. The same holds for its pages.
        let target = |entry: &Value| entry["target"]["id"].as_str().unwrap().to_owned();
        let seen: Vec<String> = data(app, AUDIT_LOG, &test.text)
            .await
            .iter()
            .map(target)
            .collect();
        let in_test = test_application_key
            .id
            .parse::<KeyId>()
            .unwrap()
            .crockford();
        assert_eq!(
            seen,
            [&gone.id, &gone.id, &in_test, &test.id].map(String::as_str)
        );
        let page = envelope(
            app,
            &app.get(&format!("{AUDIT_LOG}?limit=4"))
                .bearer(&test.text)
                .await,
        );
        assert_eq!(page["meta"]["nextCursor"], Value::Null);

        let revoked = data(
            app,
            &format!("{AUDIT_LOG}?action=api_key.revoked"),
            &live.text,
        )
        .await;
        assert_eq!(
            revoked.iter().map(target).collect::<Vec<_>>(),
            [gone.id.as_str()]
        );
        assert_eq!(
            data(
                app,
                &format!("{AUDIT_LOG}?action=api_key.created"),
                &live.text
            )
            .await
            .len(),
            5
        );
        for (query, rule) in [
            ("limit=0", "limit must be between 1 and 100"),
            ("limit=101", "limit must be between 1 and 100"),
            (
                "cursor=x",
                "cursor must be a cursor from an earlier response",
            ),
            (
                "cursor=007",
                "cursor must be a cursor from an earlier response",
            ),
            (
                "cursor=%2B7",
                "cursor must be a cursor from an earlier response",
            ),
            ("since=2026-01-01T00:00:00Z", "since is unknown"),
        ] {
            assert_eq!(
                field_errors(
                    app,
                    &app.get(&format!("{AUDIT_LOG}?{query}"))
                        .bearer(&live.text)
                        .await
                ),
                [rule]
            );
        }
        let unknown_action = app
            .get(&format!("{AUDIT_LOG}?action=x"))
            .bearer(&live.text)
            .await;
        assert_eq!(field_errors(app, &unknown_action).len(), 1);
    })
    .await;
}

#[actix_web::test]
async fn audit_log_is_filtered_by_entity_type_and_time() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let live = secret_key(app, "live").await;
        app.clock.advance(Duration::from_secs(60));
        app.application(&token, "Web Store").await;
        app.clock.advance(Duration::from_secs(60));
        let model = app.put("/accounts/acme", json!({"operating_model": "ecosystem"}));
        assert_eq!(model.bearer(&app.operator()).await.status, 200);
        let actions = async |query: &str, by: &str| -> Vec<String> {
            let entries = data(app, &format!("{AUDIT_LOG}?{query}"), by).await;
            let action = |entry: &Value| entry["action"].as_str().unwrap().to_owned();
            entries.iter().map(action).collect()
        };
        let (key, application, account) =
            ("api_key.created", "application.created", "account.updated");
        for (query, expected) in [
            ("", &[account, application, key][..]),
            ("entityType=api_key", &[key]),
            ("entityType=application", &[application]),
            ("entityType=account", &[account]),
            // No entry has another type.
            ("entityType=order", &[]),
            ("entityType=API_KEY", &[]),
            ("entityType=", &[]),
            ("entityType=account&action=account.updated", &[account]),
            ("entityType=account&action=application.created", &[]),
            ("from=2026-01-01T00:01:00Z", &[account, application]),
            ("from=2026-01-01T00:01:01Z", &[account]),
            ("to=2026-01-01T00:01:00Z", &[key]),
            (
                "from=2026-01-01T01:01:00%2B01:00&to=2026-01-01T00:02:00Z",
                &[application],
            ),
            ("from=1767225600&to=1767225661", &[application, key]),
            ("from=1767225660&to=1767225660", &[]),
            (
                "entityType=api_key&from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z&limit=1",
                &[key],
            ),
        ] {
            assert_eq!(actions(query, &live.text).await, expected, "{query}");
            assert_eq!(actions(query, &token).await, expected, "{query}");
        }
        // A test key sees only entries about test keys, whatever it filters by.
        let test = secret_key(app, "test").await;
        assert_eq!(actions("entityType=api_key", &test.text).await, [key]);
        assert_eq!(actions("entityType=account", &test.text).await, [""; 0]);
        // The cursor of a page leads to the rest of the filtered log.
        let page = async |query: &str| {
            let reply = app
                .get(&format!("{AUDIT_LOG}?entityType=api_key&limit=1{query}"))
                .bearer(&live.text)
                .await;
            let json = envelope(app, &reply);
            let next = json["meta"]["nextCursor"].as_str().map(str::to_owned);
            (json["data"][0]["target"]["id"].clone(), next)
        };
        let (newest, next) = page("").await;
        assert_eq!(newest, test.id);
        let next = format!("&cursor={}", next.expect("a cursor"));
        assert_eq!(page(&next).await, (json!(live.id), None));
        let time = "must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z";
        for (query, rules) in [
            ("from=yesterday", &[format!("from {time}")][..]),
            (
                "from=&to=x",
                &[format!("from {time}"), format!("to {time}")],
            ),
            (
                "entityType=order&limit=0",
                &["limit must be between 1 and 100".to_owned()],
            ),
            (
                "entityType=order&entityType=order",
                &["entityType must not be repeated".to_owned()],
            ),
            (
                "entity_type=order",
                &["entity_type is unknown; use `entityType`".to_owned()],
            ),
        ] {
            let path = format!("{AUDIT_LOG}?{query}");
            let reply = app.get(&path).bearer(&live.text).await;
            assert_eq!(field_errors(app, &reply), rules, "{query}");
        }
    })
    .await;
}

// Error envelopes

#[actix_web::test]
async fn every_error_has_its_code_in_an_envelope() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let owner = secret_key(app, "live").await;
        let gone = create_key(app, &owner.text, key_request("live", "secret")).await;
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", gone.id))
                .bearer(&owner.text)
                .await
                .status,
            200
        );
        let mut body = key_request("live", "secret");
        body["rateLimit"] = json!({"limit": 1, "windowSeconds": 60});
        let limited = create_key(app, &token, body).await;
        let unknown = app.generate_key(Family::Secret, Mode::Live);
        for mount in MOUNTS {
            let keys = format!("{mount}/account/api-keys");
            let create = || app.post(&keys, key_request("live", "secret"));
            let broken = |body: &str| {
                app.call("POST", &keys)
                    .header("content-type", "application/json")
                    .body(body)
            };
            for (call, status, code) in [
                (app.get(&keys), 401, "INVALID_API_KEY"),
                (
                    app.get(&keys).bearer(unknown.expose()),
                    401,
                    "INVALID_API_KEY",
                ),
                (app.get(&keys).bearer(&gone.text), 401, "INVALID_API_KEY"),
                (app.get(&keys).bearer("x"), 401, "INVALID_API_KEY"),
                (
                    app.get(&keys).bearer("eyEXAMPLE.eyEXAMPLE.EXAMPLE"),
                    401,
                    "INVALID_API_KEY",
                ),
                (
                    app.get(&keys).header("authorization", "Basic eDp5"),
                    401,
                    "INVALID_API_KEY",
                ),
                (create(), 401, "INVALID_API_KEY"),
                // Without a valid credential the body is not examined.
                (broken("{"), 401, "INVALID_API_KEY"),
                (
                    app.get(&keys).bearer(&owner.text).bearer(&owner.text),
                    400,
                    "VALIDATION_ERROR",
                ),
                (broken("{").bearer(&owner.text), 400, "VALIDATION_ERROR"),
                (broken("[]").bearer(&owner.text), 400, "VALIDATION_ERROR"),
                (broken("").bearer(&owner.text), 400, "VALIDATION_ERROR"),
                (
                    app.delete(&format!("{keys}/x")).bearer(&owner.text),
                    404,
                    "NOT_FOUND",
                ),
                (
                    app.get(&format!("{keys}/{}", owner.id)).bearer(&owner.text),
                    405,
                    "METHOD_NOT_ALLOWED",
                ),
                (
                    broken(&format!("{{\"name\":\"{}\"}}", "x".repeat(70_000))).bearer(&owner.text),
                    413,
                    "PAYLOAD_TOO_LARGE",
                ),
                (
                    app.call("POST", &keys)
                        .chunked(&[b' '; 70_000])
                        .header("content-type", "application/json")
                        .bearer(&owner.text),
                    413,
                    "PAYLOAD_TOO_LARGE",
                ),
                (
                    app.call("POST", &keys)
                        .header("content-type", "text/plain")
                        .body("{}")
                        .bearer(&owner.text),
                    415,
                    "UNSUPPORTED_MEDIA_TYPE",
                ),
                (
                    app.call("POST", &keys).body("{}").bearer(&owner.text),
                    415,
                    "UNSUPPORTED_MEDIA_TYPE",
                ),
                (
                    create()
                        .header("content-encoding", "gzip")
                        .bearer(&owner.text),
                    415,
                    "UNSUPPORTED_MEDIA_TYPE",
                ),
                (
                    create()
                        .header("idempotency-key", "short")
                        .bearer(&owner.text),
                    400,
                    "VALIDATION_ERROR",
                ),
            ] {
                let reply = call.await;
                assert_eq!(error_code(app, &reply), failure(status, code), "{reply}");
            }
            // 409 and 422
            let key = format!("an idempotency key of {mount}");
            assert_eq!(
                create()
                    .header("idempotency-key", &key)
                    .bearer(&owner.text)
                    .await
                    .status,
                201
            );
            let other = app
                .post(&keys, key_request("test", "secret"))
                .header("idempotency-key", &key)
                .bearer(&owner.text);
            assert_eq!(
                error_code(app, &other.await),
                failure(422, "IDEMPOTENCY_MISMATCH")
            );
            app.database
                .sql("UPDATE kept_answers SET sealed = fingerprint");
            let unreadable = create()
                .header("idempotency-key", &key)
                .bearer(&owner.text)
                .await;
            assert_eq!(error_code(app, &unreadable), failure(409, "CONFLICT"));
            assert_eq!(
                unreadable.json()["error"]["details"]["code"],
                "idempotency_replay_unavailable"
            );
        }
        // 429
        assert_eq!(app.get(KEYS).bearer(&limited.text).await.status, 200);
        assert_response!(app.get(KEYS).bearer(&limited.text).await, @r#"
        429
        cache-control: no-store
        content-type: application/json
        ratelimit: "key";r=0;t=60
        ratelimit-policy: "key";q=1;w=60
        retry-after: 60
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA005Z6FVABXAW0DBHFX

        {
          "data": null,
          "error": {
            "code": "RATE_LIMITED",
            "message": "The key's rate limit is exceeded. Try again after the time in Retry-After."
          },
          "meta": {
            "requestId": "req_01KDVDNA005Z6FVABXAW0DBHFX",
            "timestamp": "2026-01-01T00:00:00Z"
          }
        }
        "#);
        // 500, without internal details.
        app.database.sql("ALTER TABLE audit_log RENAME TO lost");
        let reply = app.get(AUDIT_LOG).bearer(&owner.text).await;
        assert_eq!(error_code(app, &reply), failure(500, "INTERNAL_ERROR"));
        assert!(
            !reply.body.contains("audit_log") && !reply.body.contains("lost"),
            "{reply}"
        );
        app.database.sql("ALTER TABLE lost RENAME TO audit_log");
        // 503
        if app.database.backend() == Backend::Postgres {
            app.database.refuse_connections(true);
            let reply = app.get(KEYS).bearer(&token).await;
            assert_eq!(
                error_code(app, &reply),
                failure(503, "UNAVAILABLE"),
                "{reply}"
            );
            assert_eq!(reply.header("retry-after"), Some("1"));
            app.database.refuse_connections(false);
            eventually("the database is reachable again", async || {
                app.get(KEYS).bearer(&token).await.status == 200
            })
            .await;
        }
    })
    .await;
}

#[actix_web::test]
async fn every_path_under_v1_returns_an_envelope() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        for method in [
            "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND",
        ] {
            for path in [
                "/v1",
                "/v1/",
                "/v1/x",
                "/v1//",
                "/v1//account/api-keys",
                "/v1/account",
                "/v1/account/",
                "/v1/account/api-keys/",
                "/v1/account/api-keys/x/y",
                "/v1/account/api-keys/x/revoke/",
                "/v1/Account/api-keys",
                "/v1/applications",
                "/v1/whoami",
                "/v1/livez",
                "/v1/../livez",
                "/v1/%2e%2e/livez",
                "/v1/x?account=acme",
                "/v1/account/api%2dkeysx",
                "/v1/%zz",
                "/api/v1/account",
                "/api/v1/account/",
                "/api/v1/account/x",
                "/api/v1/account/api-keys/x/y",
                "/%761/x",
                "/api/%761/account/x",
            ] {
                let reply = app.call(method, path).bearer(&owner.text).await;
                assert_eq!(
                    error_code(app, &reply),
                    failure(404, "NOT_FOUND"),
                    "{method} {path}"
                );
            }
        }
        // Other paths return problems instead.
        for path in [
            "/v1x",
            "/api/v1/accountx",
            "/api/v1/accounts",
            "/api/v1",
            "/api/",
        ] {
            let reply = app.get(path).await;
            assert_eq!(
                reply.header("content-type"),
                Some("application/problem+json"),
                "{path}: {reply}"
            );
        }
        // Needlessly percent-encoded paths are equivalent.
        for path in [
            "/%761/account/api-keys",
            "/v1/account/%61pi-keys",
            "/api/v1/acc%6Funt/api-keys",
        ] {
            let reply = app.get(path).bearer(&owner.text).await;
            assert_eq!(reply.status, 200, "{path}: {reply}");
            envelope(app, &reply);
            assert_eq!(
                error_code(app, &app.get(path).await),
                failure(401, "INVALID_API_KEY"),
                "{path}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn unsupported_method_is_405_with_the_allowed_methods() {
    each_backend(async |app: &App| {
        for mount in MOUNTS {
            for (path, allow) in [
                ("/account/api-keys", "GET, POST, HEAD"),
                ("/account/api-keys/x", "DELETE"),
                ("/account/api-keys/x/revoke", "POST"),
                ("/account/audit-log", "GET, HEAD"),
            ] {
                for method in ["PUT", "PATCH", "OPTIONS", "PROPFIND"] {
                    let reply = app.call(method, &format!("{mount}{path}")).await;
                    assert_eq!(
                        error_code(app, &reply),
                        failure(405, "METHOD_NOT_ALLOWED"),
                        "{method} {mount}{path}"
                    );
                    assert_eq!(reply.header("allow"), Some(allow), "{method} {mount}{path}");
                }
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn head_returns_the_headers_of_get() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        for (path, status) in [(KEYS, 200), (AUDIT_LOG, 200), ("/v1/x", 404)] {
            let get = app.get(path).bearer(&owner.text).await;
            let head = app.call("HEAD", path).bearer(&owner.text).await;
            assert_eq!((head.status, head.body.as_str()), (status, ""), "{path}");
            assert_eq!(
                head.header("content-length"),
                get.header("content-length"),
                "{path}"
            );
            assert!(
                head.header("x-request-id").is_some_and(is_request_id),
                "{path}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn request_id_in_the_documented_format_is_kept() {
    each_backend(async |app: &App| {
        let owner = secret_key(app, "live").await;
        let own = "req_01KDVDNA00ZZZZZZZZZZZZZZZZ";
        for (call, status) in [
            (app.get(KEYS).bearer(&owner.text), 200),
            (app.get(KEYS), 401),
            (app.get("/v1/x"), 404),
            (app.get("/api/v1/account/x"), 404),
        ] {
            let reply = call.header("X-Request-Id", own).await;
            assert_eq!(
                (
                    reply.status,
                    envelope(app, &reply)["meta"]["requestId"].as_str()
                ),
                (status, Some(own))
            );
        }
        // The audit entry has the request ID, too.
        app.post(KEYS, key_request("live", "secret"))
            .header("x-request-id", own)
            .bearer(&owner.text)
            .await;
        assert_eq!(data(app, AUDIT_LOG, &owner.text).await[0]["requestId"], own);
        for other in [
            "a-b-c",
            "01KDVDNA00ZZZZZZZZZZZZZZZZ",
            "req_01KDVDNA00ZZZZZZZZZZZZZZZ",
            "req_01KDVDNA00ZZZZZZZZZZZZZZZZZ",
            "req_81KDVDNA00ZZZZZZZZZZZZZZZZ",
            "req_01KDVDNA00ZZZZZZZZZZZZZZZU",
            "req_01KDVDNA00ZZZZZZZZZZZZZZZI",
            "REQ_01KDVDNA00ZZZZZZZZZZZZZZZZ",
            "req_",
            "",
        ] {
            let reply = app
                .get(KEYS)
                .bearer(&owner.text)
                .header("x-request-id", other)
                .await;
            assert_ne!(envelope(app, &reply)["meta"]["requestId"], other);
        }
        let twice = app
            .get(KEYS)
            .bearer(&owner.text)
            .header("x-request-id", own)
            .header("x-request-id", own)
            .await;
        assert_ne!(envelope(app, &twice)["meta"]["requestId"], own);
    })
    .await;
}

#[actix_web::test]
async fn key_limit_applies_to_account_keys() {
    for database in tollkey_store::testing::backends() {
        let app = App::start(database, &[("TOLLKEY_ACCOUNT_KEY_LIMIT", "2")]).await;
        let owner = secret_key(&app, "live").await;
        let second = create_key(&app, &owner.text, key_request("test", "publishable")).await;
        let third = app
            .post(KEYS, key_request("live", "secret"))
            .bearer(&owner.text)
            .await;
        assert_eq!(error_code(&app, &third), failure(403, "FORBIDDEN"));
        assert_eq!(
            third.json()["error"]["details"]["code"],
            "key_limit_reached"
        );
        // Keys of other families and accounts are counted separately.
        create_key(
            &app,
            &app.management_token("globex"),
            key_request("live", "secret"),
        )
        .await;
        assert_eq!(
            app.post("/api-keys", json!({"name": "x"}))
                .bearer(&app.management_token("acme"))
                .await
                .status,
            201
        );
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", second.id))
                .bearer(&owner.text)
                .await
                .status,
            200
        );
        create_key(&app, &owner.text, key_request("live", "secret")).await;
        app.stop().await;
    }
}

#[actix_web::test]
async fn expired_key_is_403_with_key_expired() {
    each_backend(async |app: &App| {
        let mut body = key_request("live", "secret");
        body["expiresAt"] = json!(app.in_seconds(60));
        let key = create_key(app, &app.management_token("acme"), body).await;
        assert_eq!(app.get(KEYS).bearer(&key.text).await.status, 200);
        app.clock.advance(Duration::from_secs(60));
        let reply = app.get(KEYS).bearer(&key.text).await;
        assert_eq!(error_code(app, &reply), failure(403, "FORBIDDEN"));
        assert_eq!(reply.json()["error"]["details"]["code"], "expired");
        assert!(app.clock.now() > "2026-01-01T00:00:59Z".parse().unwrap());
    })
    .await;
}
