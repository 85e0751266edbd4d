//! Requests that are sent again: `Idempotency-Key` on everything that creates.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::KeyId;

use crate::{
    assert_answer,
    storlaunch::{envelope, make, wanted},
    support::{App, Call, Reply, each_backend, eventually, settings},
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// What a client calls its request.
const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

/// A creating request, and where what it made can be counted.
struct Creating {
    path: String,
    body: Value,
    other_body: Value,
    /// The member that holds the secret, if one does.
    secret: Option<&'static str>,
    enveloped: bool,
    /// Where the things are, and how many there are before.
    list: String,
    by: String,
}

impl Creating {
    fn call(&self, app: &App) -> Call {
        self.with(app, self.body.clone())
    }

    fn with(&self, app: &App, body: Value) -> Call {
        app.post(&self.path, body).bearer(&self.by)
    }

    /// What was made, as the answer says it.
    fn made(&self, app: &App, reply: &Reply) -> Value {
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

/// Every creating POST of the contract.
async fn every_creating_post(app: &App) -> Vec<Creating> {
    let (by, operator) = (app.merchant("acme"), app.operator());
    let application = app.application(&by, "Web Store").await;
    let commerce = app
        .post("/api-keys", json!({"name": "Checkout"}))
        .bearer(&by)
        .await
        .json();
    let rotated = commerce["key_id"].as_str().expect("an id").to_owned();
    let creating =
        |path: &str, body: Value, other_body: Value, secret: Option<&'static str>| Creating {
            path: path.to_owned(),
            body,
            other_body,
            secret,
            enveloped: path.contains("/account/"),
            list: path.to_owned(),
            by: by.clone(),
        };
    vec![
        creating(
            "/applications",
            json!({"name": "First"}),
            json!({"name": "Second"}),
            None,
        ),
        creating(
            &format!("/applications/{application}/api-keys"),
            json!({"description": "Checkout"}),
            json!({"description": "Checkout", "mode": "test"}),
            Some("fullKey"),
        ),
        creating(
            "/api-keys",
            json!({"name": "Checkout"}),
            json!({"name": "checkout"}),
            Some("api_key"),
        ),
        Creating {
            list: "/api-keys".to_owned(),
            ..creating(
                &format!("/api-keys/{rotated}/rotate"),
                json!({"overlap_seconds": 60}),
                json!({"overlap_seconds": 61}),
                Some("api_key"),
            )
        },
        creating(
            "/v1/account/api-keys",
            wanted("live", "secret"),
            wanted("live", "publishable"),
            Some("value"),
        ),
        Creating {
            by: operator,
            ..creating(
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
        .bearer(&app.merchant("acme"))
        .await
        .json();
    log.as_array().expect("an array").len()
}

#[actix_web::test]
async fn the_same_request_again_gets_the_same_answer_and_makes_nothing() {
    each_backend(async |app: &App| {
        for creating in every_creating_post(app).await {
            let path = &creating.path;
            let before = (creating.count(app).await, entries(app).await);
            let first = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(first.status, 201, "{path}: {first}");
            assert_eq!(first.header("idempotent-replayed"), None, "{path}");
            let after = (creating.count(app).await, entries(app).await);
            assert_eq!(after.0, before.0 + 1, "{path}");
            app.clock.advance(Duration::from_secs(7));
            for written in [KEY.to_owned(), format!("\"{KEY}\""), KEY.to_owned()] {
                let again = creating.call(app).header(IDEMPOTENCY_KEY, written).await;
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
                if creating.enveloped {
                    // The envelope is of this answer, what is in it of the first.
                    assert_eq!(
                        envelope(app, &again)["data"].to_string(),
                        first.json()["data"].to_string(),
                        "{path}"
                    );
                } else {
                    assert_eq!(again.body, first.body, "{path}");
                }
                if let Some(secret) = creating.secret {
                    let secret = creating.made(app, &again)[secret]
                        .as_str()
                        .expect("a secret")
                        .to_owned();
                    assert!(first.body.contains(&secret), "{path}");
                    if !path.contains("service-keys") {
                        assert_ne!(app.code(&secret).await, "unknown_key", "{path}");
                    }
                }
            }
            let other = creating
                .with(app, creating.other_body.clone())
                .header(IDEMPOTENCY_KEY, KEY)
                .await;
            assert_eq!(other.status, 422, "{path}: {other}");
            assert_eq!(
                (creating.count(app).await, entries(app).await),
                after,
                "{path}"
            );
        }
    })
    .await;
}

/// A replay returns what was created as it was then, whatever has changed since.
#[actix_web::test]
async fn replay_after_changes_is_byte_identical() {
    each_backend(async |app: &App| {
        let (by, operator) = (app.merchant("acme"), app.operator());
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
                wanted("live", "secret"),
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
            let created_id = created[id].as_str().expect("an id").to_owned();
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
async fn another_body_is_a_mismatch() {
    each_backend(async |app: &App| {
        let by = app.merchant("acme");
        let create = |body: &str| {
            let call = app.call("POST", "/api-keys").header("content-type", "application/json").body(body);
            call.bearer(&by).header(IDEMPOTENCY_KEY, KEY)
        };
        assert_eq!(create(r#"{"name":"Checkout"}"#).await.status, 201);
        // Byte by byte.
        for body in [r#"{"name":"checkout"}"#, r#"{"name": "Checkout"}"#, "", "{", r#"{"name":"Checkout","nope":1}"#] {
            assert_eq!(create(body).await.code(), "idempotency_mismatch", "{body}");
        }
        assert_answer!(create("{}").await, @r#"
        422
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00W6DJ06G5TSMBDJZX

        {"type":"urn:tollkey:problem:idempotency_mismatch","title":"The Idempotency-Key was already used","status":422,"detail":"This Idempotency-Key was already used with a different body. Send the same body, or another Idempotency-Key.","code":"idempotency_mismatch","request_id":"req_01KDVDNA00W6DJ06G5TSMBDJZX"}
        "#);
        let replayed = create(r#"{"name":"Checkout"}"#).await;
        assert_answer!(replayed, @r#"
        201
        cache-control: no-store
        content-type: application/json
        idempotent-replayed: true
        location: /api/v1/api-keys/019b76da-a800-7122-adf6-eccfc4caa8cd
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00BZHK1HKAFBYCRBCS

        {"key_id":"019b76da-a800-7122-adf6-eccfc4caa8cd","name":"Checkout","scope":"commerce","api_key":"ck_live_(32)","expires_at":null,"mode":"live","scopes":["commerce"],"prefix":"ck_live_tHhJYi","merchants":null,"features":null,"created_at":1767225600}
        "#);
    })
    .await;
}

#[actix_web::test]
async fn the_header_has_16_to_255_printable_characters_once() {
    each_backend(async |app: &App| {
        let by = app.merchant("acme");
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
        // Actix itself refuses other control characters before anybody sees them.
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
        // Who is not known learns nothing about it.
        let stranger = app
            .post("/api-keys", json!({"name": "x"}))
            .header(IDEMPOTENCY_KEY, "short")
            .await;
        assert_eq!(stranger.code(), "missing_credentials");
        // Without one every request makes something; on what creates nothing it means nothing.
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

#[actix_web::test]
async fn account_actor_mode_and_path_have_places_of_their_own() {
    each_backend(async |app: &App| {
        let acme = app.merchant("acme");
        let globex = app.merchant("globex");
        let application = app.application(&acme, "Web Store").await;
        let other_application = app.application(&acme, "Other").await;
        let live = make(app, &acme, wanted("live", "secret")).await.text;
        let second = make(app, &acme, wanted("live", "secret")).await.text;
        let test = make(app, &acme, wanted("test", "secret")).await.text;
        let operator = app.operator();
        let account_keys = "/v1/account/api-keys";
        let description = json!({"description": "Checkout"});
        let places = [
            (account_keys.to_owned(), &acme, wanted("test", "secret")),
            (account_keys.to_owned(), &globex, wanted("test", "secret")),
            (account_keys.to_owned(), &live, wanted("test", "secret")),
            (account_keys.to_owned(), &second, wanted("test", "secret")),
            (account_keys.to_owned(), &test, wanted("test", "secret")),
            (
                format!("{account_keys}?account=acme"),
                &operator,
                wanted("test", "secret"),
            ),
            (
                format!("{account_keys}?account=globex"),
                &operator,
                wanted("test", "secret"),
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
        for (path, by, body) in &places {
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
        for (path, by, body) in &places {
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
        // The two mounts of the account surface are one place, however the path is written.
        let first = app
            .post(account_keys, wanted("test", "secret"))
            .bearer(&live)
            .header(IDEMPOTENCY_KEY, KEY)
            .await;
        for path in [
            "/api/v1/account/api-keys",
            "/v1/account/%61pi-keys",
            "/api/v1/account/api-keys?",
        ] {
            let again = app
                .post(path, wanted("test", "secret"))
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
        // Another key is another request.
        let other = app
            .post(account_keys, wanted("test", "secret"))
            .bearer(&live)
            .header(IDEMPOTENCY_KEY, KEY.to_uppercase());
        assert_eq!(other.await.header("idempotent-replayed"), None);
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), places.len());
    })
    .await;
}

#[actix_web::test]
async fn a_refusal_is_not_kept() {
    each_backend(async |app: &App| {
        let by = app.merchant("acme");
        let again = |path: &str, body: Value| {
            app.post(path, body)
                .bearer(&by)
                .header(IDEMPOTENCY_KEY, KEY)
        };
        // 400, then another body altogether
        assert_eq!(again("/api-keys", json!({"name": ""})).await.status, 400);
        let first = again("/api-keys", json!({"name": "Checkout"})).await;
        assert_eq!(
            (first.status, first.header("idempotent-replayed")),
            (201, None)
        );
        // 409, then the same body once the name is free
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
        let made = same().await;
        assert_eq!(
            (made.status, made.header("idempotent-replayed")),
            (201, None)
        );
        assert_eq!(same().await.body, made.body);
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
        // What can no longer be done was done: the first answer, not 409.
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
async fn an_answer_is_kept_for_24_hours() {
    each_backend(async |app: &App| {
        let by = app.merchant("acme");
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
        // By the clock, whether or not it has been swept; a replay keeps nothing alive.
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

/// The end was in the future when the key was made; the replay asks for nothing new.
#[actix_web::test]
async fn a_replay_is_not_judged_again() {
    each_backend(async |app: &App| {
        let by = app.merchant("acme");
        let application = app.application(&by, "Web Store").await;
        let end = app.in_seconds(60);
        let mut account_key = wanted("live", "secret");
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
async fn another_replica_gives_the_same_answer() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        for creating in every_creating_post(app).await {
            let first = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(first.status, 201, "{first}");
            let there = |body: &Value| {
                let call = Call::new(replica.address(), "POST", &creating.path).json(body.clone());
                call.bearer(&creating.by).header(IDEMPOTENCY_KEY, KEY)
            };
            let again = there(&creating.body).await;
            assert_eq!(again.header("idempotent-replayed"), Some("true"), "{again}");
            assert_eq!(creating.made(app, &again), creating.made(app, &first));
            assert_eq!(there(&creating.other_body).await.status, 422);
        }
        replica.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn once_it_is_answered_each_of_many_repeats_gets_the_answer() {
    each_backend(async |app: &App| {
        for creating in every_creating_post(app).await {
            let first = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(first.status, 201, "{first}");
            let again = join_all((0..20).map(|_| {
                creating
                    .call(app)
                    .header(IDEMPOTENCY_KEY, KEY)
                    .into_future()
            }))
            .await;
            for reply in again {
                assert_eq!(
                    (reply.status, reply.header("idempotent-replayed")),
                    (201, Some("true")),
                    "{reply}"
                );
                assert_eq!(creating.made(app, &reply), creating.made(app, &first));
            }
            let other = |_| {
                creating
                    .with(app, creating.other_body.clone())
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
async fn of_many_at_once_one_is_done_and_the_others_are_replayed_or_told_to_wait() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        for creating in every_creating_post(app).await {
            let before = (creating.count(app).await, entries(app).await);
            let calls = (0..50).map(|i| {
                let address = if i % 2 == 0 {
                    app.running().address()
                } else {
                    replica.address()
                };
                let call = Call::new(address, "POST", &creating.path).json(creating.body.clone());
                call.bearer(&creating.by)
                    .header(IDEMPOTENCY_KEY, KEY)
                    .into_future()
            });
            let replies = join_all(calls).await;
            let path = &creating.path;
            assert_eq!(creating.count(app).await, before.0 + 1, "{path}");
            assert!(entries(app).await <= before.1 + 1, "{path}");
            let mut made = Vec::new();
            for reply in &replies {
                match reply.status {
                    201 => made.push(reply),
                    409 => {
                        let json = reply.json();
                        let code = if creating.enveloped {
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
                made.iter()
                    .filter(|reply| reply.header("idempotent-replayed").is_none())
                    .count(),
                1,
                "{path}"
            );
            for reply in &made {
                assert_eq!(
                    creating.made(app, reply),
                    creating.made(app, made[0]),
                    "{path}"
                );
            }
            let afterwards = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
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
async fn a_request_that_lost_its_answer_gets_the_same_secret_when_it_is_sent_again() {
    each_backend(async |app: &App| {
        for creating in every_creating_post(app).await {
            let before = creating.count(app).await;
            let path = &creating.path;
            // Everything is sent; nobody is there when the answer comes.
            creating
                .call(app)
                .header(IDEMPOTENCY_KEY, KEY)
                .hang_up()
                .await;
            eventually("the request is done", async || {
                creating.count(app).await == before + 1
            })
            .await;
            let again = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(
                (again.status, again.header("idempotent-replayed")),
                (201, Some("true")),
                "{path}: {again}"
            );
            let twice = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(
                creating.made(app, &again),
                creating.made(app, &twice),
                "{path}"
            );
            assert_eq!(creating.count(app).await, before + 1, "{path}");
            let made = creating.made(app, &again);
            if let Some(secret) = creating.secret.filter(|_| !path.contains("service-keys")) {
                assert_eq!(
                    app.code(made[secret].as_str().unwrap()).await,
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

/// Who has the database alone has neither the secret, nor the Idempotency-Key, nor a way to open what is kept.
#[actix_web::test]
async fn a_dump_of_the_database_holds_no_secret_and_opens_nothing() {
    each_backend(async |app: &App| {
        let creating = every_creating_post(app).await;
        let mut never = vec![KEY.to_owned()];
        let mut shown = Vec::new();
        for creating in &creating {
            let reply = creating.call(app).header(IDEMPOTENCY_KEY, KEY).await;
            assert_eq!(reply.status, 201, "{reply}");
            let made = creating.made(app, &reply);
            if let Some(secret) = creating.secret {
                let secret = made[secret].as_str().unwrap();
                never.extend([secret.to_owned(), secret[secret.len() - 32..].to_owned()]);
            }
            let id = if made["id"].is_null() {
                &made["key_id"]
            } else {
                &made["id"]
            };
            shown.push(id.as_str().unwrap().to_owned());
        }
        let dump = app.database.dump();
        let lower = dump.to_lowercase();
        // The dump is one: what may be in it is found in it.
        let rows = dump
            .lines()
            .filter(|line| line.starts_with("kept_answers.sealed: "))
            .count();
        assert_eq!(rows, creating.len());
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
async fn only_the_servers_sealing_secret_opens_what_is_kept() {
    each_backend(async |app: &App| {
        let by = app.merchant("acme");
        let at = async |settings: &tollkey_server::config::Settings, key: &str| {
            let replica = app.replica_with(settings).await;
            let call = Call::new(replica.address(), "POST", "/api-keys").json(json!({"name": "Checkout"}));
            let reply = call.bearer(&by).header(IDEMPOTENCY_KEY, key).await;
            replica.stop().await;
            reply
        };
        let with = |secret: &str| settings(app.database.url(), &[("TOLLKEY_SEALING_SECRET", secret)]);
        let (one, other) = (with(&"1".repeat(32)), with(&"2".repeat(32)));
        let first = at(&one, KEY).await;
        assert_eq!(first.status, 201, "{first}");
        let again = at(&one, KEY).await;
        assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &first.body));
        let closed = at(&other, KEY).await;
        assert_eq!((closed.status, closed.code().as_str()), (409, "idempotency_replay_unavailable"), "{closed}");
        // Without one of its own the secret that signs tokens takes its place, on every replica that has it.
        let default = "another idempotency key";
        let first =
            app.post("/api-keys", json!({"name": "Checkout"})).bearer(&by).header(IDEMPOTENCY_KEY, default).await;
        assert_eq!(at(&app.settings, default).await.body, first.body);
        assert_eq!(at(&one, default).await.code(), "idempotency_replay_unavailable");
        // It is opened by no other Idempotency-Key either: an answer moved to another's place stays shut.
        app.database.sql("UPDATE kept_answers SET sealed = (SELECT sealed FROM kept_answers ORDER BY id LIMIT 1)");
        let mut codes = [at(&one, KEY).await.code(), at(&app.settings, default).await.code()];
        codes.sort();
        assert_eq!(codes, ["", "idempotency_replay_unavailable"], "the one whose place that was still opens it");
        let listed = app.get("/api-keys").bearer(&by).await.json();
        assert_eq!(listed.as_array().unwrap().len(), 2, "nothing was made in their place");
    })
    .await;
}
