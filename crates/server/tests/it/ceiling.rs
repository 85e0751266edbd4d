//! A key that creates keys cannot give them more than its own limits, whether a field is set, omitted or null.

use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tollkey_core::KeyId;

use crate::{
    storlaunch::{envelope, error_code, field_errors},
    support::{
        App, Call, Key, Reply,
        account_keys::{create_key, created_key, key_request},
        each_backend, each_backend_with, eventually,
    },
};

const KEYS: &str = "/v1/account/api-keys";

/// Clients connect directly: the client IP is the peer of the connection.
const DIRECT: &[(&str, &str)] = &[("TOLLKEY_TRUSTED_PROXIES", "none")];

fn limits(app: &App) -> Value {
    let mut body = key_request("live", "secret");
    body["allowedIps"] = json!(["203.0.113.0/24", "127.0.0.0/8", "2001:db8::/32"]);
    body["expiresAt"] = json!(app.in_seconds(3600));
    body["rateLimit"] = json!({"limit": 500, "windowSeconds": 100});
    body
}

async fn limited(app: &App) -> Key {
    create_key(app, &app.management_token("acme"), limits(app)).await
}

/// Sends a request to create a key with this additional field.
async fn create_with(app: &App, creator: &Key, field: &str, value: &Value) -> Reply {
    let mut body = key_request("live", "secret");
    body[field] = value.clone();
    app.post(KEYS, body).bearer(&creator.text).await
}

async fn row(app: &App, id: &str) -> Value {
    rows(app)
        .await
        .into_iter()
        .find(|row| row["id"] == id)
        .expect("the row of the key")
}

async fn rows(app: &App) -> Vec<Value> {
    let reply = app.get(KEYS).bearer(&app.management_token("acme")).await;
    envelope(app, &reply)["data"].as_array().unwrap().clone()
}

#[actix_web::test]
async fn omitted_and_null_limits_are_inherited() {
    each_backend_with(DIRECT, async |app: &App| {
        let creator = limited(app).await;
        for access in ["secret", "publishable"] {
            for environment in ["live", "test"] {
                for nulls in [false, true] {
                    let mut body = key_request(environment, access);
                    for field in ["allowedIps", "expiresAt", "rateLimit", "metadata"] {
                        if nulls {
                            body[field] = Value::Null;
                        }
                    }
                    let reply = app.post(KEYS, body).bearer(&creator.text).await;
                    assert_eq!(reply.status, 201, "{reply}");
                    let row = row(app, &created_key(&reply).id).await;
                    for shown in [&envelope(app, &reply)["data"], &row] {
                        assert_eq!(
                            shown["allowedIps"],
                            json!(["203.0.113.0/24", "127.0.0.0/8", "2001:db8::/32"])
                        );
                        assert_eq!(shown["expiresAt"], "2026-01-01T01:00:00Z");
                        assert_eq!(
                            shown["rateLimit"],
                            json!({"limit": 500, "windowSeconds": 100})
                        );
                    }
                }
            }
        }
        // Further descendants also inherit the limits.
        let child = create_key(app, &creator.text, key_request("live", "secret")).await;
        let grandchild = create_key(app, &child.text, key_request("live", "secret")).await;
        assert_eq!(
            row(app, &grandchild.id).await["expiresAt"],
            "2026-01-01T01:00:00Z"
        );
        // Fields that are not limits are not inherited.
        let mut body = limits(app);
        body["metadata"] = json!({"owner": "checkout"});
        let creator = create_key(app, &app.management_token("acme"), body).await;
        let child = create_key(app, &creator.text, key_request("live", "secret")).await;
        assert_eq!(row(app, &child.id).await.get("metadata"), None);
    })
    .await;
}

#[actix_web::test]
async fn limits_beyond_the_creator_are_rejected() {
    each_backend_with(DIRECT, async |app: &App| {
        let creator = limited(app).await;
        let end = |seconds: i64| json!(app.in_seconds(seconds));
        let limit = |limit: u32, window: u32| json!({"limit": limit, "windowSeconds": window});
        let before = rows(app).await.len();
        for (field, value) in [
            ("allowedIps", json!(["0.0.0.0/0"])),
            ("allowedIps", json!(["::/0"])),
            ("allowedIps", json!(["203.0.112.0/23"])),
            ("allowedIps", json!(["203.0.113.0/24", "198.51.100.7/32"])),
            ("allowedIps", json!(["10.0.0.0/8"])),
            ("allowedIps", json!(["2001:db9::/32"])),
            ("allowedIps", json!(["2001:d00::/24"])),
            ("allowedIps", json!(["::ffff:0:0/96"])),
            ("expiresAt", end(3601)),
            ("expiresAt", end(86_400 * 365)),
            ("rateLimit", limit(501, 100)),
            ("rateLimit", limit(500, 99)),
            ("rateLimit", limit(10, 1)),
            ("rateLimit", limit(1000, 200)),
            ("rateLimit", limit(1_000_000, 86_400)),
        ] {
            let reply = create_with(app, &creator, field, &value).await;
            assert_eq!(
                error_code(app, &reply),
                (403, "FORBIDDEN".to_owned()),
                "{field}: {value}"
            );
        }
        for (field, value) in [
            ("allowedIps", json!([])),
            ("allowedIps", json!([""])),
            ("allowedIps", json!(["*"])),
            ("allowedIps", json!("0.0.0.0/0")),
            ("expiresAt", json!("")),
            ("expiresAt", json!(0)),
            ("expiresAt", json!("never")),
            ("rateLimit", json!({})),
            ("rateLimit", json!([])),
            ("rateLimit", limit(0, 0)),
            ("rateLimit", json!({"limit": null, "windowSeconds": null})),
            ("environment", json!(["test", "live"])),
            ("createdBy", Value::Null),
            ("accountId", json!("globex")),
        ] {
            let reply = create_with(app, &creator, field, &value).await;
            // Each error is about this field or a field inside it.
            let rules = field_errors(app, &reply);
            assert!(!rules.is_empty(), "{field}: {value}");
            assert!(
                rules
                    .iter()
                    .all(|rule| rule.starts_with(&format!("/{field}"))),
                "{field}: {value} {rules:?}"
            );
        }
        assert_eq!(rows(app).await.len(), before);
        for (field, value, shown) in [
            (
                "allowedIps",
                json!(["203.0.113.0/25"]),
                json!(["203.0.113.0/25"]),
            ),
            (
                "allowedIps",
                json!(["::ffff:203.0.113.7/128", "2001:db8:1::/48"]),
                json!(["203.0.113.7/32", "2001:db8:1::/48"]),
            ),
            (
                "allowedIps",
                json!(["203.0.113.0/24", "127.0.0.0/8"]),
                json!(["203.0.113.0/24", "127.0.0.0/8"]),
            ),
            ("expiresAt", end(3600), end(3600)),
            ("expiresAt", end(1), end(1)),
            ("rateLimit", limit(500, 100), limit(500, 100)),
            ("rateLimit", limit(500, 101), limit(500, 101)),
            ("rateLimit", limit(5, 1), limit(5, 1)),
            ("rateLimit", limit(1, 86_400), limit(1, 86_400)),
        ] {
            let reply = create_with(app, &creator, field, &value).await;
            assert_eq!(reply.status, 201, "{field}: {value}: {reply}");
            assert_eq!(envelope(app, &reply)["data"][field], shown);
        }
    })
    .await;
}

#[actix_web::test]
async fn unlimited_creator_may_set_any_limits() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let creator = create_key(app, &token, key_request("live", "secret")).await;
        for by in [&creator.text, &token] {
            create_key(app, by, limits(app)).await;
            let key = create_key(app, by, key_request("live", "secret")).await;
            assert_eq!(
                row(app, &key.id).await.as_object().unwrap().len(),
                9,
                "only the documented fields"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn audit_entry_names_the_creator() {
    each_backend_with(DIRECT, async |app: &App| {
        let creator = limited(app).await;
        let child = create_key(app, &creator.text, key_request("live", "secret")).await;
        let log = app
            .get("/audit-log?action=api_key.created")
            .bearer(&app.management_token("acme"))
            .await
            .json();
        let creator_id = creator.id.parse::<KeyId>().unwrap().to_string();
        assert_eq!(
            log[0]["target"]["id"],
            child.id.parse::<KeyId>().unwrap().to_string()
        );
        assert_eq!(
            log[0]["actor"],
            json!({"type": "api_key", "id": creator_id})
        );
        assert_eq!(log[0]["changes"]["created_by"], creator_id);
        // The entry has the inherited limits.
        assert_eq!(
            log[0]["changes"]["rate_limit"],
            json!({"limit": 500, "window_seconds": 100})
        );
        assert_eq!(log[0]["changes"]["expires_at"], 1_767_229_200);
        assert_eq!(log[1]["actor"]["type"], "merchant");
        // Both forms of the creator's ID find the keys that it created, so an operator can list the keys that a
        // stolen key created.
        for id in [&creator.id, &creator_id] {
            let created = app.get(&format!("/audit-log?action=api_key.created&actor_id={id}"));
            assert_eq!(
                created.bearer(&app.management_token("acme")).await.json(),
                json!([log[0]])
            );
        }
        assert_eq!(log[1]["changes"].get("created_by"), None);
    })
    .await;
}

#[actix_web::test]
async fn revoking_a_key_revokes_its_descendants() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let creator = create_key(app, &token, key_request("live", "secret")).await;
        let sibling = create_key(app, &token, key_request("live", "secret")).await;
        let child = create_key(app, &creator.text, key_request("live", "secret")).await;
        let catalogue = create_key(app, &creator.text, key_request("test", "publishable")).await;
        let grandchild = create_key(app, &child.text, key_request("test", "secret")).await;
        let of_sibling = create_key(app, &sibling.text, key_request("live", "secret")).await;
        let foreign = create_key(
            app,
            &app.management_token("globex"),
            key_request("live", "secret"),
        )
        .await;
        let codes = async |keys: &[&Key]| {
            let mut codes = Vec::new();
            for key in keys {
                codes.push(app.code(&key.text).await);
            }
            codes
        };
        let (revoked_keys, other_keys) = (
            [&creator, &child, &catalogue, &grandchild],
            [&sibling, &of_sibling, &foreign],
        );
        // Publishable keys deny a request without a route.
        assert_eq!(
            codes(&revoked_keys).await,
            ["valid", "valid", "route_not_allowed", "valid"]
        );

        // A descendant may revoke its creator, and is revoked with it.
        let reply = app
            .delete(&format!("/v1/account/api-keys/{}", creator.id))
            .bearer(&child.text)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        assert_eq!(codes(&revoked_keys).await, ["revoked"; 4]);
        assert_eq!(codes(&other_keys).await, ["valid"; 3]);
        app.revocations_recorded().await;
        assert_eq!(codes(&revoked_keys).await, ["revoked"; 4]);

        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        let reasons: Vec<_> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| &entry["changes"]["reason"])
            .collect();
        assert_eq!(
            reasons,
            [
                &json!("maker_revoked"),
                &json!("maker_revoked"),
                &json!("maker_revoked"),
                &Value::Null
            ]
        );
        let id = |key: &Key| key.id.parse::<KeyId>().unwrap().to_string();
        assert_eq!(log[3]["target"]["id"], id(&creator));
        for entry in log.as_array().unwrap() {
            assert_eq!(entry["actor"], json!({"type": "api_key", "id": id(&child)}));
        }
        // A repeated revocation adds no entry.
        let reply = app
            .delete(&format!("/account/api-keys/{}", creator.id))
            .bearer(&token)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        assert_eq!(
            app.get("/audit-log?action=api_key.revoked")
                .bearer(&token)
                .await
                .json(),
            log
        );

        // A key that revokes itself also revokes its descendants.
        assert_eq!(
            app.delete("/whoami").bearer(&sibling.text).await.status,
            204
        );
        assert_eq!(codes(&other_keys).await, ["revoked", "revoked", "valid"]);
    })
    .await;
}

#[actix_web::test]
async fn key_created_during_revocation_of_its_creator_is_revoked() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for _ in 0..5 {
            let creator = create_key(app, &token, key_request("live", "secret")).await;
            let creations = join_all((0..10).map(|_| {
                app.post("/account/api-keys", key_request("live", "secret"))
                    .bearer(&creator.text)
                    .into_future()
            }));
            let revocations = app
                .delete(&format!("/account/api-keys/{}", creator.id))
                .bearer(&token)
                .into_future();
            let (created, revoked) = join(creations, revocations).await;
            assert_eq!(revoked.status, 200, "{revoked}");
            for reply in created.iter().filter(|reply| reply.status == 201) {
                let text = envelope(app, reply)["data"]["value"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                assert_eq!(app.code(&text).await, "revoked");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn concurrent_revocations_revoke_each_key_once() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        let token = app.management_token("acme");
        let mut all = Vec::new();
        for _ in 0..3 {
            let mut generations =
                vec![create_key(app, &token, key_request("live", "secret")).await];
            for _ in 0..3 {
                let creator = generations.last().unwrap().text.clone();
                create_key(app, &creator, key_request("test", "publishable")).await;
                generations.push(create_key(app, &creator, key_request("live", "secret")).await);
            }
            // From the oldest to the youngest key and back, on two replicas in turn.
            let revocations = generations
                .iter()
                .chain(generations.iter().rev())
                .enumerate()
                .map(|(i, key)| {
                    let address = if i % 2 == 0 {
                        app.running().address()
                    } else {
                        replica.address()
                    };
                    Call::new(address, "DELETE", &format!("/account/api-keys/{}", key.id))
                        .bearer(&token)
                        .into_future()
                });
            for reply in join_all(revocations.collect::<Vec<_>>()).await {
                assert_eq!(reply.status, 200, "{reply}");
            }
            for key in &generations {
                assert_eq!(app.code(&key.text).await, "revoked");
            }
            all.extend(generations);
        }
        let keys = app.get("/account/api-keys").bearer(&token).await.json();
        assert!(
            keys["data"]
                .as_array()
                .unwrap()
                .iter()
                .all(|key| key["revokedAt"].is_string()),
            "{keys}"
        );
        app.revocations_recorded().await;
        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        assert_eq!(
            log.as_array().unwrap().len(),
            keys["data"].as_array().unwrap().len(),
            "one entry for each key"
        );
        replica.stop().await;
    })
    .await;
}

/// The creator is authenticated when the head of its request has arrived, and again when the key is created.
#[actix_web::test]
async fn creator_revoked_or_expired_during_its_request_is_401() {
    each_backend_with(DIRECT, async |app: &App| {
        let token = app.management_token("acme");
        for end in ["revoked", "suspended", "expired"] {
            let creator = limited(app).await;
            let last_used = async || {
                app.running().state().service.flush_usage().await;
                row(app, &creator.id).await["lastUsedAt"].clone()
            };
            let held = app
                .post(KEYS, key_request("live", "secret"))
                .bearer(&creator.text)
                .hold_body()
                .await;
            eventually("the creator is authenticated", async || {
                last_used().await != Value::Null
            })
            .await;
            match end {
                "revoked" => {
                    assert_eq!(
                        app.delete(&format!("{KEYS}/{}", creator.id))
                            .bearer(&token)
                            .await
                            .status,
                        200
                    );
                }
                "suspended" => {
                    let at = app.running().state().service.clock.now();
                    app.edit_key("acme", &creator.id, move |key| key.suspended_at = Some(at))
                        .await;
                }
                _ => app.clock.advance(Duration::from_secs(3600)),
            }
            let before = rows(app).await.len();
            let reply = held.send_body().await;
            assert_eq!(
                error_code(app, &reply),
                (401, "INVALID_API_KEY".to_owned()),
                "{end}"
            );
            assert_eq!(rows(app).await.len(), before, "{end}");
        }
        // An active creator succeeds with the same held request.
        let creator = create_key(app, &token, key_request("live", "secret")).await;
        let held = app
            .post(KEYS, key_request("live", "secret"))
            .bearer(&creator.text)
            .hold_body()
            .await;
        let reply = held.send_body().await;
        assert_eq!(reply.status, 201, "{reply}");
        assert_eq!(app.code(&created_key(&reply).text).await, "valid");
    })
    .await;
}

/// A revoked key gets 401, also for a request that would replay a response.
#[actix_web::test]
async fn revoked_creator_gets_no_replayed_response() {
    each_backend_with(DIRECT, async |app: &App| {
        let creator = limited(app).await;
        let create = || {
            app.post(KEYS, key_request("live", "secret"))
                .bearer(&creator.text)
                .header("idempotency-key", "0123456789abcdef")
        };
        assert_eq!(create().await.status, 201);
        assert_eq!(create().await.header("idempotent-replayed"), Some("true"));
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", creator.id))
                .bearer(&app.management_token("acme"))
                .await
                .status,
            200
        );
        let reply = create().await;
        assert_eq!(error_code(app, &reply), (401, "INVALID_API_KEY".to_owned()));
    })
    .await;
}

/// The IP allowlist of a creator applies to its own requests.
#[actix_web::test]
async fn ip_allowlist_of_the_creator_applies() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let mut body = key_request("live", "secret");
        body["allowedIps"] = json!(["203.0.113.0/24"]);
        let creator = create_key(app, &token, body).await;
        let create = || {
            app.post(KEYS, key_request("live", "secret"))
                .bearer(&creator.text)
        };
        for (forwarded, allowed) in [
            (None, false), // from the loopback address
            (Some("203.0.113.9"), true),
            (Some("::ffff:203.0.113.9"), true),
            (Some("203.0.113.9, 198.51.100.1"), false),
            (Some("198.51.100.1, 203.0.113.9"), true),
            (Some("203.0.113.9, 127.0.0.1"), true),
            (Some("203.0.113.9, x"), false),
            (Some(""), false),
        ] {
            let call = match forwarded {
                Some(hops) => create().header("x-forwarded-for", hops),
                None => create(),
            };
            let reply = call.await;
            if allowed {
                assert_eq!(reply.status, 201, "{forwarded:?}: {reply}");
            } else {
                assert_eq!(
                    error_code(app, &reply),
                    (403, "FORBIDDEN".to_owned()),
                    "{forwarded:?}"
                );
                assert_eq!(reply.json()["error"]["details"]["code"], "ip_not_allowed");
            }
        }
    })
    .await;
}
