//! Repeated requests: `Idempotency-Key` on every operation that creates a resource.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::KeyId;

use crate::{
    assert_response,
    storlaunch::{envelope, field_errors},
    support::{
        App, Call, Reply,
        account_keys::{create_key, key_request},
        each_backend, eventually, settings,
    },
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The `Idempotency-Key` of the requests.
const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

/// A request that creates a resource.
struct CreateRequest {
    path: String,
    body: Value,
    other_body: Value,
    /// The field of the response with the secret, if there is one.
    secret: Option<&'static str>,
    enveloped: bool,
    /// The path of the list that has the created resource.
    list: String,
    by: String,
}

impl CreateRequest {
    fn call(&self, app: &App) -> Call {
        self.with(app, self.body.clone())
    }

    fn with(&self, app: &App, body: Value) -> Call {
        app.post(&self.path, body).bearer(&self.by)
    }

    /// Returns the created resource from the response.
    fn created(&self, app: &App, reply: &Reply) -> Value {
        if self.enveloped {
            envelope(app, reply)["data"].clone()
        } else {
            reply.json()
        }
    }

    async fn count(&self, app: &App) -> usize {
        let reply = app.get(&self.list).bearer(&self.by).await;
        assert_eq!(reply.status, 200, "{reply}");
        let json = reply.json();
        let items = [&json, &json["items"], &json["data"]]
            .into_iter()
            .find_map(Value::as_array);
        items.unwrap_or_else(|| panic!("no list: {reply}")).len()
    }
}

/// Returns a request for each operation that creates a resource.
async fn every_create_request(app: &App) -> Vec<CreateRequest> {
    let (by, operator) = (app.management_token("acme"), app.operator());
    let application = app.application(&by, "Web Store").await;
    let commerce = app
        .post("/api-keys", json!({"name": "Checkout"}))
        .bearer(&by)
        .await
        .json();
    let rotated = commerce["key_id"].as_str().expect("an ID").to_owned();
    let request =
        |path: &str, body: Value, other_body: Value, secret: Option<&'static str>| CreateRequest {
            path: path.to_owned(),
            body,
            other_body,
            secret,
            enveloped: path.contains("/account/"),
            list: path.to_owned(),
            by: by.clone(),
        };
    vec![
        request(
            "/applications",
            json!({"name": "First"}),
            json!({"name": "Second"}),
            None,
        ),
        request(
            &format!("/applications/{application}/api-keys"),
            json!({"description": "Checkout"}),
            json!({"description": "Checkout", "mode": "test"}),
            Some("fullKey"),
        ),
        request(
            "/api-keys",
            json!({"name": "Checkout"}),
            json!({"name": "checkout"}),
            Some("api_key"),
        ),
        CreateRequest {
            list: "/api-keys".to_owned(),
            ..request(
                &format!("/api-keys/{rotated}/rotate"),
                json!({"overlap_seconds": 60}),
                json!({"overlap_seconds": 61}),
                Some("api_key"),
            )
        },
        request(
            "/v1/account/api-keys",
            key_request("live", "secret"),
            key_request("live", "publishable"),
            Some("value"),
        ),
        CreateRequest {
            by: operator,
            ..request(
                "/service-keys",
                json!({"name": "gateway"}),
                json!({"name": "Gateway"}),
                Some("key"),
            )
        },
    ]
}

async fn entries(app: &App) -> usize {
    let log = app
        .get("/audit-log")
        .bearer(&app.management_token("acme"))
        .await
        .json();
    log.as_array().expect("an array").len()
}

#[actix_web::test]
async fn repeated_request_is_replayed_and_creates_nothing() {
    each_backend(async |app: &App| {
        for request in every_create_request(app).await {
            let path = &request.path;
            let before = (request.count(app).await, entries(app).await);
            let first = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(first.status, 201, "{path}: {first}");
            assert_eq!(first.header("idempotent-replayed"), None, "{path}");
            let after = (request.count(app).await, entries(app).await);
            assert_eq!(after.0, before.0 + 1, "{path}");
            app.clock.advance(Duration::from_secs(7));
            for header_value in [KEY.to_owned(), format!("\"{KEY}\""), KEY.to_owned()] {
                let again = request
                    .call(app)
                    .header(IDEMPOTENCY_KEY, header_value)
                    .await;
                assert_eq!(
                    (again.status, again.header("idempotent-replayed")),
                    (201, Some("true")),
                    "{path}: {again}"
                );
                assert_eq!(again.header("location"), first.header("location"), "{path}");
                assert_eq!(again.header("cache-control"), Some("no-store"), "{path}");
                assert_eq!(
                    again.header("content-type"),
                    first.header("content-type"),
                    "{path}"
                );
                assert_ne!(
                    again.header("x-request-id"),
                    first.header("x-request-id"),
                    "{path}"
                );
                if request.enveloped {
                    // The envelope is new, the data is that of the first response.
                    assert_eq!(
                        envelope(app, &again)["data"].to_string(),
                        first.json()["data"].to_string(),
                        "{path}"
                    );
                } else {
                    assert_eq!(again.body, first.body, "{path}");
                }
                if let Some(secret) = request.secret {
                    let secret = request.created(app, &again)[secret]
                        .as_str()
                        .expect("a secret")
                        .to_owned();
                    assert!(first.body.contains(&secret), "{path}");
                    if !path.contains("service-keys") {
                        assert_ne!(app.code(&secret).await, "unknown_key", "{path}");
                    }
                }
            }
            let other = request
                .with(app, request.other_body.clone())
                .header(IDEMPOTENCY_KEY, KEY)
                .await;
            assert_eq!(other.status, 422, "{path}: {other}");
            assert_eq!(
                (request.count(app).await, entries(app).await),
                after,
                "{path}"
            );
        }
    })
    .await;
}

/// A replay returns the state at the time of creation, even after later changes.
#[actix_web::test]
async fn replay_after_changes_is_byte_identical() {
    each_backend(async |app: &App| {
        let (by, operator) = (app.management_token("acme"), app.operator());
        let application = app.application(&by, "Web Store").await;
        let commerce = json!({
            "name": "Checkout", "mode": "test", "scopes": ["links:read", "links:write"], "allowed_ips": ["203.0.113.0/24"],
            "rate_limit": {"limit": 9, "window_seconds": 60}, "metadata": {"b": 1, "a": {"c": [null]}},
        });
        let call = |method: &str, path: String, body: Value, token: &str| app.call(method, &path).json(body).bearer(token);
        for (path, body, token, id, changes) in [
            (
                "/applications".to_owned(),
                json!({"name": "First", "description": "d"}),
                &by,
                "id",
                vec![
                    ("PATCH", "/applications/{}", json!({"name": "Renamed", "description": null})),
                    ("PATCH", "/applications/{}/status", json!({"isEnabled": false})),
                    ("DELETE", "/applications/{}", json!({})),
                ],
            ),
            (
                "/api-keys".to_owned(),
                commerce,
                &by,
                "key_id",
                vec![
                    ("PATCH", "/api-keys/{}", json!({"name": "Renamed", "scopes": ["events:read"], "metadata": null})),
                    ("POST", "/api-keys/{}/rotate", json!({"overlap_seconds": 60})),
                    ("POST", "/api-keys/{}/revoke", json!({"reason": "r"})),
                ],
            ),
            (
                format!("/applications/{application}/api-keys"),
                json!({"description": "Checkout"}),
                &by,
                "id",
                vec![
                    ("DELETE", "/applications/{application}/api-keys/{}", json!({})),
                    ("DELETE", "/applications/{application}", json!({})),
                ],
            ),
            (
                "/v1/account/api-keys".to_owned(),
                key_request("live", "secret"),
                &by,
                "id",
                vec![("DELETE", "/account/api-keys/{}", json!({}))],
            ),
            (
                "/service-keys".to_owned(),
                json!({"name": "gateway"}),
                &operator,
                "id",
                vec![("DELETE", "/service-keys/{}", json!({}))],
            ),
        ] {
            let send = || app.post(&path, body.clone()).bearer(token).header(IDEMPOTENCY_KEY, KEY);
            let first = send().await;
            assert_eq!(first.status, 201, "{path}: {first}");
            let data = |reply: &Reply| match reply.json() {
                json if json["data"].is_object() => json["data"].to_string(),
                _ => reply.body.clone(),
            };
            let created: Value = serde_json::from_str(&data(&first)).expect("JSON");
            let created_id = created[id].as_str().expect("an ID").to_owned();
            for (method, at, change) in changes {
                let at = at.replace("{}", &created_id).replace("{application}", &application);
                let reply = call(method, at.clone(), change, token).await;
                assert!(reply.status < 300, "{method} {at}: {reply}");
                app.clock.advance(Duration::from_secs(1));
                let again = send().await;
                assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")), "{at}: {again}");
                assert_eq!(again.header("location"), first.header("location"), "{at}");
                assert_eq!(data(&again), data(&first), "{method} {at}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn different_body_is_a_mismatch() {
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let create = |body: &str| {
            let call = app.call("POST", "/api-keys").header("content-type", "application/json").body(body);
            call.bearer(&by).header(IDEMPOTENCY_KEY, KEY)
        };
        assert_eq!(create(r#"{"name":"Checkout"}"#).await.status, 201);
        // Bodies are compared byte by byte.
        for body in [r#"{"name":"checkout"}"#, r#"{"name": "Checkout"}"#, "", "{", r#"{"name":"Checkout","nope":1}"#] {
            assert_eq!(create(body).await.code(), "idempotency_mismatch", "{body}");
        }
        assert_response!(create("{}").await, @r#"
        422
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00W6DJ06G5TSMBDJZX

        {
          "type": "urn:tollkey:problem:idempotency_mismatch",
          "title": "The Idempotency-Key was already used",
          "status": 422,
          "detail": "This Idempotency-Key was already used with a different body. Send the same body, or another Idempotency-Key.",
          "code": "idempotency_mismatch",
          "request_id": "req_01KDVDNA00W6DJ06G5TSMBDJZX"
        }
        "#);
        let replayed = create(r#"{"name":"Checkout"}"#).await;
        assert_response!(replayed, @r#"
        201
        cache-control: no-store
        content-type: application/json
        idempotent-replayed: true
        location: /api/v1/api-keys/019b76da-a800-7122-adf6-eccfc4caa8cd
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00BZHK1HKAFBYCRBCS

        {
          "key_id": "019b76da-a800-7122-adf6-eccfc4caa8cd",
          "name": "Checkout",
          "scope": "commerce",
          "api_key": "ck_live_(32)",
          "expires_at": null,
          "mode": "live",
          "scopes": [
            "commerce"
          ],
          "prefix": "ck_live_tHhJYi",
          "merchants": null,
          "features": null,
          "created_at": 1767225600
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn header_has_16_to_255_printable_characters() {
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let create = |value: &[u8]| {
            app.post("/api-keys", json!({"name": "x"}))
                .bearer(&by)
                .header(IDEMPOTENCY_KEY, value)
        };
        let rule = "must have 16 to 255 printable ASCII characters without quotation marks and backslashes";
        let (shortest, longest) = ("k".repeat(16), "k".repeat(255));
        for good in [
            shortest.clone(),
            longest.clone(),
            format!("\"{}\"", "q".repeat(16)),
            format!("\"{}\"", "q".repeat(255)),
            "with spaces in it :-)".to_owned(),
        ] {
            assert_eq!(create(good.as_bytes()).await.status, 201, "{good}");
        }
        for bad in [
            "".as_bytes(),
            "k".repeat(15).as_bytes(),
            "k".repeat(256).as_bytes(),
            format!("\"{}\"", "k".repeat(15)).as_bytes(),
            format!("\"{}\"", "k".repeat(256)).as_bytes(),
            format!("\"{}", "k".repeat(20)).as_bytes(),
            format!("{}\"", "k".repeat(20)).as_bytes(),
            format!("{}\"{}", "k".repeat(10), "k".repeat(10)).as_bytes(),
            format!("{}\\{}", "k".repeat(10), "k".repeat(10)).as_bytes(),
            format!("{}\t{}", "k".repeat(10), "k".repeat(10)).as_bytes(),
            "kkkkkkkkkkkkkkkkké".as_bytes(),
            b"kkkkkkkkkkkkkkkkkkk\xff",
        ] {
            let reply = create(bad).await;
            assert_eq!(
                reply.errors(),
                [format!("Idempotency-Key {rule}")],
                "{bad:?}: {reply}"
            );
        }
        // Actix rejects other control characters itself.
        for bad in [
            b"kkkkkkkkkkkkkkkk\x01".as_slice(),
            b"kkkkkkkkkkkkkkkk\x7f",
            b"kkkkkkkkkkkkkkkk\0",
        ] {
            assert_eq!(create(bad).await.status, 400, "{bad:?}");
        }
        let twice = create(KEY.as_bytes()).header(IDEMPOTENCY_KEY, KEY).await;
        assert_eq!(twice.errors(), ["Idempotency-Key must not be repeated"]);
        let twice = create(KEY.as_bytes())
            .header(IDEMPOTENCY_KEY, format!("{KEY}2"))
            .await;
        assert_eq!(twice.errors(), ["Idempotency-Key must not be repeated"]);
        let listed = app.get("/api-keys").bearer(&by).await.json();
        assert_eq!(listed.as_array().unwrap().len(), 5);
        // Without a valid credential, the header is not validated.
        let unauthenticated = app
            .post("/api-keys", json!({"name": "x"}))
            .header(IDEMPOTENCY_KEY, "short")
            .await;
        assert_eq!(unauthenticated.code(), "missing_credentials");
        // Without the header, every request creates a resource. GET ignores the header.
        for _ in 0..2 {
            assert_eq!(
                app.post("/api-keys", json!({"name": "x"}))
                    .bearer(&by)
                    .await
                    .status,
                201
            );
        }
        let get = app
            .get("/api-keys")
            .bearer(&by)
            .header(IDEMPOTENCY_KEY, "short")
            .await;
        assert_eq!((get.status, get.header("idempotent-replayed")), (200, None));
    })
    .await;
}

/// The vendor's client libraries send both headers.
#[actix_web::test]
async fn account_surface_also_reads_x_idempotency_key() {
    const ALIAS: &str = "x-idempotency-key";
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let send = async |path: &str, body: Value, headers: &[(&str, &str)]| {
            let mut call = app.post(path, body).bearer(&by);
            for (name, value) in headers {
                call = call.header(name, value);
            }
            call.await
        };
        let account = async |headers: &[(&str, &str)]| {
            let body = key_request("live", "secret");
            send("/v1/account/api-keys", body, headers).await
        };
        let first = account(&[(ALIAS, KEY)]).await;
        assert_eq!(
            (first.status, first.header("idempotent-replayed")),
            (201, None),
            "{first}"
        );
        let quoted = format!("\"{KEY}\"");
        for headers in [
            &[(ALIAS, KEY)][..],
            &[(IDEMPOTENCY_KEY, KEY)],
            &[(IDEMPOTENCY_KEY, KEY), (ALIAS, KEY)],
            &[(IDEMPOTENCY_KEY, quoted.as_str()), (ALIAS, KEY)],
        ] {
            let again = account(headers).await;
            assert_eq!(
                (again.status, again.header("idempotent-replayed")),
                (201, Some("true")),
                "{headers:?}: {again}"
            );
            assert_eq!(
                envelope(app, &again)["data"],
                envelope(app, &first)["data"],
                "{headers:?}"
            );
        }
        let other = format!("{KEY}2");
        let length = "must have 16 to 255 printable ASCII characters without quotation marks and backslashes";
        for (headers, rule) in [
            (
                &[(IDEMPOTENCY_KEY, KEY), (ALIAS, other.as_str())][..],
                "X-Idempotency-Key must equal Idempotency-Key if both are sent; send one of them".to_owned(),
            ),
            (
                &[(ALIAS, KEY), (ALIAS, KEY)],
                "X-Idempotency-Key must not be repeated".to_owned(),
            ),
            (&[(ALIAS, "short")], format!("X-Idempotency-Key {length}")),
            (
                &[(IDEMPOTENCY_KEY, "short"), (ALIAS, KEY)],
                format!("Idempotency-Key {length}"),
            ),
        ] {
            assert_eq!(
                field_errors(app, &account(headers).await),
                [rule],
                "{headers:?}"
            );
        }
        assert_eq!(
            envelope(app, &app.get("/v1/account/api-keys").bearer(&by).await)["data"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        // The other APIs do not know the header.
        for _ in 0..2 {
            let reply = send("/api-keys", json!({"name": "x"}), &[(ALIAS, KEY)]).await;
            assert_eq!(
                (reply.status, reply.header("idempotent-replayed")),
                (201, None),
                "{reply}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn records_are_scoped_by_account_actor_mode_and_path() {
    each_backend(async |app: &App| {
        let acme = app.management_token("acme");
        let globex = app.management_token("globex");
        let application = app.application(&acme, "Web Store").await;
        let other_application = app.application(&acme, "Other").await;
        let live = create_key(app, &acme, key_request("live", "secret"))
            .await
            .text;
        let second = create_key(app, &acme, key_request("live", "secret"))
            .await
            .text;
        let test = create_key(app, &acme, key_request("test", "secret"))
            .await
            .text;
        let operator = app.operator();
        let account_keys = "/v1/account/api-keys";
        let description = json!({"description": "Checkout"});
        let requests = [
            (
                account_keys.to_owned(),
                &acme,
                key_request("test", "secret"),
            ),
            (
                account_keys.to_owned(),
                &globex,
                key_request("test", "secret"),
            ),
            (
                account_keys.to_owned(),
                &live,
                key_request("test", "secret"),
            ),
            (
                account_keys.to_owned(),
                &second,
                key_request("test", "secret"),
            ),
            (
                account_keys.to_owned(),
                &test,
                key_request("test", "secret"),
            ),
            (
                format!("{account_keys}?account=acme"),
                &operator,
                key_request("test", "secret"),
            ),
            (
                format!("{account_keys}?account=globex"),
                &operator,
                key_request("test", "secret"),
            ),
            (
                format!("/applications/{application}/api-keys"),
                &acme,
                description.clone(),
            ),
            (
                format!("/applications/{other_application}/api-keys"),
                &acme,
                description,
            ),
            ("/api-keys".to_owned(), &acme, json!({"name": "Checkout"})),
            (
                "/applications".to_owned(),
                &acme,
                json!({"name": "Checkout"}),
            ),
        ];
        let mut bodies = Vec::new();
        for (path, by, body) in &requests {
            let reply = app
                .post(path, body.clone())
                .bearer(by)
                .header(IDEMPOTENCY_KEY, KEY)
                .await;
            assert_eq!(
                (reply.status, reply.header("idempotent-replayed")),
                (201, None),
                "{path}: {reply}"
            );
            bodies.push(reply.body);
        }
        for (path, by, body) in &requests {
            let reply = app
                .post(path, body.clone())
                .bearer(by)
                .header(IDEMPOTENCY_KEY, KEY)
                .await;
            assert_eq!(
                (reply.status, reply.header("idempotent-replayed")),
                (201, Some("true")),
                "{path}: {reply}"
            );
        }
        // The other prefix of the account API and other spellings of the path address the same operation.
        let first = app
            .post(account_keys, key_request("test", "secret"))
            .bearer(&live)
            .header(IDEMPOTENCY_KEY, KEY)
            .await;
        for path in [
            "/api/v1/account/api-keys",
            "/v1/account/%61pi-keys",
            "/api/v1/account/api-keys?",
        ] {
            let again = app
                .post(path, key_request("test", "secret"))
                .bearer(&live)
                .header(IDEMPOTENCY_KEY, KEY)
                .await;
            assert_eq!(
                (again.status, again.header("idempotent-replayed")),
                (201, Some("true")),
                "{path}: {again}"
            );
            assert_eq!(again.json()["data"], first.json()["data"], "{path}");
        }
        // Another `Idempotency-Key` is another request.
        let other = app
            .post(account_keys, key_request("test", "secret"))
            .bearer(&live)
            .header(IDEMPOTENCY_KEY, KEY.to_uppercase());
        assert_eq!(other.await.header("idempotent-replayed"), None);
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), requests.len());
    })
    .await;
}

#[actix_web::test]
async fn error_responses_are_not_recorded() {
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let again = |path: &str, body: Value| {
            app.post(path, body)
                .bearer(&by)
                .header(IDEMPOTENCY_KEY, KEY)
        };
        // 400, then another body
        assert_eq!(again("/api-keys", json!({"name": ""})).await.status, 400);
        let first = again("/api-keys", json!({"name": "Checkout"})).await;
        assert_eq!(
            (first.status, first.header("idempotent-replayed")),
            (201, None)
        );
        // 409, then the same body after the name became available
        let taken = app.application(&by, "Web Store").await;
        let same = || again("/applications", json!({"name": "Web Store"}));
        assert_eq!(same().await.code(), "application_name_taken");
        assert_eq!(
            app.delete(&format!("/applications/{taken}"))
                .bearer(&by)
                .await
                .status,
            204
        );
        let created = same().await;
        assert_eq!(
            (created.status, created.header("idempotent-replayed")),
            (201, None)
        );
        assert_eq!(same().await.body, created.body);
        // 404 and 409 of a rotation
        let unknown = KeyId::from_bytes([9; 16]);
        for _ in 0..2 {
            assert_eq!(
                again(&format!("/api-keys/{unknown}/rotate"), json!({}))
                    .await
                    .status,
                404
            );
        }
        let id = first.json()["key_id"].as_str().unwrap().to_owned();
        let rotate = || again(&format!("/api-keys/{id}/rotate"), json!({}));
        assert_eq!(
            app.post(&format!("/api-keys/{id}/suspend"), json!({}))
                .bearer(&by)
                .await
                .status,
            200
        );
        assert_eq!(rotate().await.code(), "key_suspended");
        assert_eq!(
            app.post(&format!("/api-keys/{id}/resume"), json!({}))
                .bearer(&by)
                .await
                .status,
            200
        );
        let rotated = rotate().await;
        assert_eq!(
            (rotated.status, rotated.header("idempotent-replayed")),
            (201, None),
            "{rotated}"
        );
        // The replay returns the first response, although another rotation would be a 409.
        assert_eq!(rotate().await.body, rotated.body);
        let without = app
            .post(&format!("/api-keys/{id}/rotate"), json!({}))
            .bearer(&by)
            .await;
        assert_eq!(without.status, 409, "{without}");
        // 413 and 415
        let large = json!({"name": "x", "metadata": {"x": "y".repeat(70_000)}});
        let other = "another idempotency key";
        let call = |body: Value| {
            app.post("/api-keys", body)
                .bearer(&by)
                .header(IDEMPOTENCY_KEY, other)
        };
        assert_eq!(call(large).await.status, 413);
        let text = app
            .call("POST", "/api-keys")
            .header("content-type", "text/plain")
            .body("{}")
            .bearer(&by);
        assert_eq!(text.header(IDEMPOTENCY_KEY, other).await.status, 415);
        assert_eq!(
            call(json!({"name": "x"}))
                .await
                .header("idempotent-replayed"),
            None
        );
    })
    .await;
}

#[actix_web::test]
async fn record_is_kept_for_24_hours() {
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let create = |name: &str| {
            app.post("/api-keys", json!({"name": name}))
                .bearer(&by)
                .header(IDEMPOTENCY_KEY, KEY)
        };
        let first = create("Checkout").await;
        app.clock.advance(Duration::from_secs(24 * 3600 - 1));
        let state = app.running().state();
        state.service.prune().await;
        let last = create("Checkout").await;
        assert_eq!(
            (last.header("idempotent-replayed"), &last.body),
            (Some("true"), &first.body)
        );
        assert_eq!(create("checkout").await.status, 422);
        // The record expires by the clock, before it is pruned; a replay does not extend it.
        app.clock.advance(Duration::from_secs(1));
        let second = create("checkout").await;
        assert_eq!(
            (second.status, second.header("idempotent-replayed")),
            (201, None),
            "{second}"
        );
        assert_eq!(create("checkout").await.body, second.body);
        assert_eq!(create("Checkout").await.status, 422);
        let rows = || {
            app.database
                .dump()
                .lines()
                .filter(|line| line.starts_with("kept_answers.id"))
                .count()
        };
        state.service.prune().await;
        assert_eq!(rows(), 1);
        app.clock.advance(Duration::from_secs(24 * 3600));
        state.service.prune().await;
        assert_eq!(rows(), 0);
    })
    .await;
}

/// The expiration was in the future when the key was created, and is in the past when the request is repeated.
#[actix_web::test]
async fn replay_is_not_validated_again() {
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let application = app.application(&by, "Web Store").await;
        let end = app.in_seconds(60);
        let mut account_key = key_request("live", "secret");
        account_key["expiresAt"] = json!(end);
        let requests = [
            (
                "/api-keys".to_owned(),
                json!({"name": "x", "expires_at": end}),
            ),
            (
                format!("/applications/{application}/api-keys"),
                json!({"description": "x", "expiresAt": end}),
            ),
            ("/v1/account/api-keys".to_owned(), account_key),
        ];
        let send = |path: &str, body: &Value| {
            app.post(path, body.clone())
                .bearer(&by)
                .header(IDEMPOTENCY_KEY, KEY)
        };
        let mut firsts = Vec::new();
        for (path, body) in &requests {
            firsts.push(send(path, body).await);
        }
        app.clock.advance(Duration::from_secs(61));
        for ((path, body), first) in requests.iter().zip(firsts) {
            let again = send(path, body).await;
            assert_eq!((first.status, again.status), (201, 201), "{path}: {again}");
            assert_eq!(again.header("idempotent-replayed"), Some("true"), "{path}");
            assert_eq!(
                app.post(path, body.clone()).bearer(&by).await.status,
                400,
                "{path}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn replay_works_on_another_replica() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        for request in every_create_request(app).await {
            let first = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(first.status, 201, "{first}");
            let on_replica = |body: &Value| {
                let call = Call::new(replica.address(), "POST", &request.path).json(body.clone());
                call.bearer(&request.by).header(IDEMPOTENCY_KEY, KEY)
            };
            let again = on_replica(&request.body).await;
            assert_eq!(again.header("idempotent-replayed"), Some("true"), "{again}");
            assert_eq!(request.created(app, &again), request.created(app, &first));
            assert_eq!(on_replica(&request.other_body).await.status, 422);
        }
        replica.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn parallel_repeats_after_the_response_are_replayed() {
    each_backend(async |app: &App| {
        for request in every_create_request(app).await {
            let first = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(first.status, 201, "{first}");
            let again = join_all(
                (0..20).map(|_| request.call(app).header(IDEMPOTENCY_KEY, KEY).into_future()),
            )
            .await;
            for reply in again {
                assert_eq!(
                    (reply.status, reply.header("idempotent-replayed")),
                    (201, Some("true")),
                    "{reply}"
                );
                assert_eq!(request.created(app, &reply), request.created(app, &first));
            }
            let other = |_| {
                request
                    .with(app, request.other_body.clone())
                    .header(IDEMPOTENCY_KEY, KEY)
                    .into_future()
            };
            for reply in join_all((0..20).map(other)).await {
                assert_eq!(reply.status, 422, "{reply}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn only_one_of_50_parallel_repeats_is_executed() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        for request in every_create_request(app).await {
            let before = (request.count(app).await, entries(app).await);
            let calls = (0..50).map(|i| {
                let address = if i % 2 == 0 {
                    app.running().address()
                } else {
                    replica.address()
                };
                let call = Call::new(address, "POST", &request.path).json(request.body.clone());
                call.bearer(&request.by)
                    .header(IDEMPOTENCY_KEY, KEY)
                    .into_future()
            });
            let replies = join_all(calls).await;
            let path = &request.path;
            assert_eq!(request.count(app).await, before.0 + 1, "{path}");
            assert!(entries(app).await <= before.1 + 1, "{path}");
            let mut created = Vec::new();
            for reply in &replies {
                match reply.status {
                    201 => created.push(reply),
                    409 => {
                        let json = reply.json();
                        let code = if request.enveloped {
                            &json["error"]["details"]["code"]
                        } else {
                            &json["code"]
                        };
                        assert_eq!(code, "idempotency_in_progress", "{path}: {reply}");
                        assert_eq!(reply.header("retry-after"), Some("1"), "{path}");
                    }
                    _ => panic!("{path}: {reply}"),
                }
            }
            assert_eq!(
                created
                    .iter()
                    .filter(|reply| reply.header("idempotent-replayed").is_none())
                    .count(),
                1,
                "{path}"
            );
            for reply in &created {
                assert_eq!(
                    request.created(app, reply),
                    request.created(app, created[0]),
                    "{path}"
                );
            }
            let afterwards = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(
                afterwards.header("idempotent-replayed"),
                Some("true"),
                "{path}: {afterwards}"
            );
        }
        replica.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn repeat_after_a_lost_response_returns_the_same_secret() {
    each_backend(async |app: &App| {
        for request in every_create_request(app).await {
            let before = request.count(app).await;
            let path = &request.path;
            // The whole request is sent, but the client disconnects before the response.
            request
                .call(app)
                .header(IDEMPOTENCY_KEY, KEY)
                .hold_body()
                .await
                .write_body()
                .await
                .expect("the server accepts the body");
            eventually("the request is processed", async || {
                request.count(app).await == before + 1
            })
            .await;
            let again = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(
                (again.status, again.header("idempotent-replayed")),
                (201, Some("true")),
                "{path}: {again}"
            );
            let twice = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(
                request.created(app, &again),
                request.created(app, &twice),
                "{path}"
            );
            assert_eq!(request.count(app).await, before + 1, "{path}");
            let created = request.created(app, &again);
            if let Some(secret) = request.secret.filter(|_| !path.contains("service-keys")) {
                assert_eq!(
                    app.code(created[secret].as_str().unwrap()).await,
                    "valid",
                    "{path}"
                );
            }
        }
    })
    .await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The database alone reveals neither the secrets nor the Idempotency-Keys, and cannot decrypt the records.
#[actix_web::test]
async fn database_dump_reveals_no_secret() {
    each_backend(async |app: &App| {
        let requests = every_create_request(app).await;
        let mut never = vec![KEY.to_owned()];
        let mut shown = Vec::new();
        for request in &requests {
            let reply = request.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(reply.status, 201, "{reply}");
            let created = request.created(app, &reply);
            if let Some(secret) = request.secret {
                let secret = created[secret].as_str().unwrap();
                never.extend([secret.to_owned(), secret[secret.len() - 32..].to_owned()]);
            }
            let id = if created["id"].is_null() {
                &created["key_id"]
            } else {
                &created["id"]
            };
            shown.push(id.as_str().unwrap().to_owned());
        }
        let dump = app.database.dump();
        let lower = dump.to_lowercase();
        // The dump has the records and the IDs. Otherwise the absence of secrets would prove nothing.
        let rows = dump
            .lines()
            .filter(|line| line.starts_with("kept_answers.sealed: "))
            .count();
        assert_eq!(rows, requests.len());
        for id in shown {
            let id = id.parse::<KeyId>().map_or(id, |id| hex(id.as_bytes()));
            assert!(
                lower.contains(&id) || lower.contains(&id.replace('-', "")),
                "{id}"
            );
        }
        for never in never {
            assert!(!dump.contains(&never), "{}", &never[..8]);
            assert!(!lower.contains(&hex(never.as_bytes())), "{}", &never[..8]);
        }
    })
    .await;
}

#[actix_web::test]
async fn replay_requires_the_sealing_secret_of_the_record() {
    each_backend(async |app: &App| {
        let by = app.management_token("acme");
        let create = async |settings: &tollkey_server::config::Settings, key: &str| {
            let replica = app.replica_with(settings).await;
            let call = Call::new(replica.address(), "POST", "/api-keys").json(json!({"name": "Checkout"}));
            let reply = call.bearer(&by).header(IDEMPOTENCY_KEY, key).await;
            replica.stop().await;
            reply
        };
        let with = |secret: &str| settings(app.database.url(), &[("TOLLKEY_SEALING_SECRET", secret)]);
        let (first_secret, other) = (with(&"1".repeat(32)), with(&"2".repeat(32)));
        let first = create(&first_secret, KEY).await;
        assert_eq!(first.status, 201, "{first}");
        let again = create(&first_secret, KEY).await;
        assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &first.body));
        let failed = create(&other, KEY).await;
        assert_eq!((failed.status, failed.code().as_str()), (409, "idempotency_replay_unavailable"), "{failed}");
        // The default is derived from the secret that signs tokens, so all replicas with that secret can replay.
        let default = "another idempotency key";
        let first =
            app.post("/api-keys", json!({"name": "Checkout"})).bearer(&by).header(IDEMPOTENCY_KEY, default).await;
        assert_eq!(create(&app.settings, default).await.body, first.body);
        assert_eq!(create(&first_secret, default).await.code(), "idempotency_replay_unavailable");
        // A sealed response is bound to its Idempotency-Key: a copy in another record cannot be decrypted.
        app.database.sql("UPDATE kept_answers SET sealed = (SELECT sealed FROM kept_answers ORDER BY id LIMIT 1)");
        let mut codes = [create(&first_secret, KEY).await.code(), create(&app.settings, default).await.code()];
        codes.sort();
        assert_eq!(codes, ["", "idempotency_replay_unavailable"], "only the record with its own sealed response is replayed");
        let listed = app.get("/api-keys").bearer(&by).await.json();
        assert_eq!(listed.as_array().unwrap().len(), 2, "no other key was created");
    })
    .await;
}
