//! The ceiling: a key that makes keys makes none beyond itself, whatever it asks for, leaves out or sets to null.

use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tollkey_core::KeyId;

use crate::{
    storlaunch::{envelope, made, make, refusal, rules, wanted},
    support::{App, Call, Key, Reply, each_backend, each_backend_with, eventually},
};

const KEYS: &str = "/v1/account/api-keys";

/// Clients connect themselves: the address of a client is that of the connection.
const DIRECT: &[(&str, &str)] = &[("TOLLKEY_TRUSTED_PROXIES", "none")];

/// From these networks, until then, that often: everything a maker can be limited by.
fn limits(app: &App) -> Value {
    let mut body = wanted("live", "secret");
    body["allowedIps"] = json!(["203.0.113.0/24", "127.0.0.0/8", "2001:db8::/32"]);
    body["expiresAt"] = json!(app.in_seconds(3600));
    body["rateLimit"] = json!({"limit": 500, "windowSeconds": 100});
    body
}

async fn limited(app: &App) -> Key {
    make(app, &app.merchant("acme"), limits(app)).await
}

/// A request of a key for a key with this member besides the documented three.
async fn ask(app: &App, by: &Key, member: &str, value: &Value) -> Reply {
    let mut body = wanted("live", "secret");
    body[member] = value.clone();
    app.post(KEYS, body).bearer(&by.text).await
}

/// The row of a key.
async fn row(app: &App, id: &str) -> Value {
    rows(app)
        .await
        .into_iter()
        .find(|row| row["id"] == id)
        .expect("its row")
}

async fn rows(app: &App) -> Vec<Value> {
    let reply = app.get(KEYS).bearer(&app.merchant("acme")).await;
    envelope(app, &reply)["data"].as_array().unwrap().clone()
}

#[actix_web::test]
async fn what_is_left_out_or_null_is_taken_from_the_maker() {
    each_backend_with(DIRECT, async |app: &App| {
        let maker = limited(app).await;
        for access in ["secret", "publishable"] {
            for environment in ["live", "test"] {
                for nulls in [false, true] {
                    let mut body = wanted(environment, access);
                    for member in ["allowedIps", "expiresAt", "rateLimit", "metadata"] {
                        if nulls {
                            body[member] = Value::Null;
                        }
                    }
                    let reply = app.post(KEYS, body).bearer(&maker.text).await;
                    assert_eq!(reply.status, 201, "{reply}");
                    let row = row(app, &made(&reply).id).await;
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
        // And on, from generation to generation.
        let child = make(app, &maker.text, wanted("live", "secret")).await;
        let grandchild = make(app, &child.text, wanted("live", "secret")).await;
        assert_eq!(
            row(app, &grandchild.id).await["expiresAt"],
            "2026-01-01T01:00:00Z"
        );
        // What is not a limit is not passed on.
        let mut body = limits(app);
        body["metadata"] = json!({"owner": "checkout"});
        let maker = make(app, &app.merchant("acme"), body).await;
        let child = make(app, &maker.text, wanted("live", "secret")).await;
        assert_eq!(row(app, &child.id).await.get("metadata"), None);
    })
    .await;
}

#[actix_web::test]
async fn what_lies_beyond_the_maker_is_refused_and_what_lies_within_is_given() {
    each_backend_with(DIRECT, async |app: &App| {
        let maker = limited(app).await;
        let end = |seconds: i64| json!(app.in_seconds(seconds));
        let limit = |limit: u32, window: u32| json!({"limit": limit, "windowSeconds": window});
        let before = rows(app).await.len();
        for (member, value) in [
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
            let reply = ask(app, &maker, member, &value).await;
            assert_eq!(
                refusal(app, &reply),
                (403, "FORBIDDEN".to_owned()),
                "{member}: {value}"
            );
        }
        for (member, value) in [
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
            let reply = ask(app, &maker, member, &value).await;
            // Each is about this field, or a field inside of it.
            let rules = rules(app, &reply);
            assert!(!rules.is_empty(), "{member}: {value}");
            assert!(
                rules
                    .iter()
                    .all(|rule| rule.starts_with(&format!("/{member}"))),
                "{member}: {value} {rules:?}"
            );
        }
        assert_eq!(rows(app).await.len(), before);
        for (member, value, shown) in [
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
            let reply = ask(app, &maker, member, &value).await;
            assert_eq!(reply.status, 201, "{member}: {value}: {reply}");
            assert_eq!(envelope(app, &reply)["data"][member], shown);
        }
    })
    .await;
}

#[actix_web::test]
async fn a_maker_without_limits_gives_any_and_a_management_token_too() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let maker = make(app, &token, wanted("live", "secret")).await;
        for by in [&maker.text, &token] {
            make(app, by, limits(app)).await;
            let key = make(app, by, wanted("live", "secret")).await;
            assert_eq!(
                row(app, &key.id).await.as_object().unwrap().len(),
                9,
                "nothing but what is documented"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn the_log_says_which_key_made_a_key() {
    each_backend_with(DIRECT, async |app: &App| {
        let maker = limited(app).await;
        let child = make(app, &maker.text, wanted("live", "secret")).await;
        let log = app
            .get("/audit-log?action=api_key.created")
            .bearer(&app.merchant("acme"))
            .await
            .json();
        let maker_id = maker.id.parse::<KeyId>().unwrap().to_string();
        assert_eq!(
            log[0]["target"]["id"],
            child.id.parse::<KeyId>().unwrap().to_string()
        );
        assert_eq!(log[0]["actor"], json!({"type": "api_key", "id": maker_id}));
        assert_eq!(log[0]["changes"]["created_by"], maker_id);
        // With what it holds: the limits it inherited.
        assert_eq!(
            log[0]["changes"]["rate_limit"],
            json!({"limit": 500, "window_seconds": 100})
        );
        assert_eq!(log[0]["changes"]["expires_at"], 1_767_229_200);
        assert_eq!(log[1]["actor"]["type"], "merchant");
        // What a key made is found by the key, in either form of its id: a stolen one is revoked with what it made.
        for id in [&maker.id, &maker_id] {
            let made = app.get(&format!("/audit-log?action=api_key.created&actor_id={id}"));
            assert_eq!(
                made.bearer(&app.merchant("acme")).await.json(),
                json!([log[0]])
            );
        }
        assert_eq!(log[1]["changes"].get("created_by"), None);
    })
    .await;
}

#[actix_web::test]
async fn a_key_is_revoked_with_the_key_that_made_it_and_with_that_ones_maker() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let maker = make(app, &token, wanted("live", "secret")).await;
        let sibling = make(app, &token, wanted("live", "secret")).await;
        let child = make(app, &maker.text, wanted("live", "secret")).await;
        let catalogue = make(app, &maker.text, wanted("test", "publishable")).await;
        let grandchild = make(app, &child.text, wanted("test", "secret")).await;
        let of_sibling = make(app, &sibling.text, wanted("live", "secret")).await;
        let foreign = make(app, &app.merchant("globex"), wanted("live", "secret")).await;
        let codes = async |keys: &[&Key]| {
            let mut codes = Vec::new();
            for key in keys {
                codes.push(app.code(&key.text).await);
            }
            codes
        };
        let (gone, stay) = (
            [&maker, &child, &catalogue, &grandchild],
            [&sibling, &of_sibling, &foreign],
        );
        // Publishable keys may not do what is not asked for.
        assert_eq!(
            codes(&gone).await,
            ["valid", "valid", "route_not_allowed", "valid"]
        );

        // By one that was made, which does not save it.
        let reply = app
            .delete(&format!("/v1/account/api-keys/{}", maker.id))
            .bearer(&child.text)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        assert_eq!(codes(&gone).await, ["revoked"; 4]);
        assert_eq!(codes(&stay).await, ["valid"; 3]);
        app.revocations_recorded().await;
        assert_eq!(codes(&gone).await, ["revoked"; 4]);

        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        let said: Vec<_> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| &entry["changes"]["reason"])
            .collect();
        assert_eq!(
            said,
            [
                &json!("maker_revoked"),
                &json!("maker_revoked"),
                &json!("maker_revoked"),
                &Value::Null
            ]
        );
        let id = |key: &Key| key.id.parse::<KeyId>().unwrap().to_string();
        assert_eq!(log[3]["target"]["id"], id(&maker));
        for entry in log.as_array().unwrap() {
            assert_eq!(entry["actor"], json!({"type": "api_key", "id": id(&child)}));
        }
        // A repeat adds nothing.
        let reply = app
            .delete(&format!("/account/api-keys/{}", maker.id))
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

        // What ends itself ends what it made.
        assert_eq!(
            app.delete("/whoami").bearer(&sibling.text).await.status,
            204
        );
        assert_eq!(codes(&stay).await, ["revoked", "revoked", "valid"]);
    })
    .await;
}

#[actix_web::test]
async fn a_key_made_while_its_maker_is_revoked_is_never_there_afterwards() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        for _ in 0..5 {
            let maker = make(app, &token, wanted("live", "secret")).await;
            let makes = join_all((0..10).map(|_| {
                app.post("/account/api-keys", wanted("live", "secret"))
                    .bearer(&maker.text)
                    .into_future()
            }));
            let revokes = app
                .delete(&format!("/account/api-keys/{}", maker.id))
                .bearer(&token)
                .into_future();
            let (made, revoked) = join(makes, revokes).await;
            assert_eq!(revoked.status, 200, "{revoked}");
            for reply in made.iter().filter(|reply| reply.status == 201) {
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
async fn generations_revoked_at_once_are_all_gone_and_each_once() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        let token = app.merchant("acme");
        let mut all = Vec::new();
        for _ in 0..3 {
            let mut generations = vec![make(app, &token, wanted("live", "secret")).await];
            for _ in 0..3 {
                let maker = generations.last().unwrap().text.clone();
                make(app, &maker, wanted("test", "publishable")).await;
                generations.push(make(app, &maker, wanted("live", "secret")).await);
            }
            // The youngest first, the eldest first, by two servers.
            let revokes = generations
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
            for reply in join_all(revokes.collect::<Vec<_>>()).await {
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
            "each once"
        );
        replica.stop().await;
    })
    .await;
}

/// A key's request is judged when its head is there; what it makes is judged again when it is made.
#[actix_web::test]
async fn a_key_that_ends_while_its_request_is_running_makes_nothing() {
    each_backend_with(DIRECT, async |app: &App| {
        let token = app.merchant("acme");
        for ending in ["revoked", "suspended", "expired"] {
            let maker = limited(app).await;
            let last_used = async || {
                app.running().state().service.flush_usage().await;
                row(app, &maker.id).await["lastUsedAt"].clone()
            };
            let held = app
                .post(KEYS, wanted("live", "secret"))
                .bearer(&maker.text)
                .hold_body()
                .await;
            eventually("the maker is judged", async || {
                last_used().await != Value::Null
            })
            .await;
            match ending {
                "revoked" => {
                    assert_eq!(
                        app.delete(&format!("{KEYS}/{}", maker.id))
                            .bearer(&token)
                            .await
                            .status,
                        200
                    );
                }
                "suspended" => {
                    let at = app.running().state().service.clock.now();
                    app.edit_key("acme", &maker.id, move |key| key.suspended_at = Some(at))
                        .await;
                }
                _ => app.clock.advance(Duration::from_secs(3600)),
            }
            let before = rows(app).await.len();
            let reply = held.send_body().await;
            assert_eq!(
                refusal(app, &reply),
                (401, "INVALID_API_KEY".to_owned()),
                "{ending}"
            );
            assert_eq!(rows(app).await.len(), before, "{ending}");
        }
        // A maker that goes on makes it.
        let maker = make(app, &token, wanted("live", "secret")).await;
        let held = app
            .post(KEYS, wanted("live", "secret"))
            .bearer(&maker.text)
            .hold_body()
            .await;
        let reply = held.send_body().await;
        assert_eq!(reply.status, 201, "{reply}");
        assert_eq!(app.code(&made(&reply).text).await, "valid");
    })
    .await;
}

/// With an Idempotency-Key, too: neither a first answer nor a kept one goes to a key that has ended.
#[actix_web::test]
async fn a_key_that_has_ended_is_given_no_kept_answer() {
    each_backend_with(DIRECT, async |app: &App| {
        let maker = limited(app).await;
        let create = || {
            app.post(KEYS, wanted("live", "secret"))
                .bearer(&maker.text)
                .header("idempotency-key", "0123456789abcdef")
        };
        assert_eq!(create().await.status, 201);
        assert_eq!(create().await.header("idempotent-replayed"), Some("true"));
        assert_eq!(
            app.delete(&format!("{KEYS}/{}", maker.id))
                .bearer(&app.merchant("acme"))
                .await
                .status,
            200
        );
        let reply = create().await;
        assert_eq!(refusal(app, &reply), (401, "INVALID_API_KEY".to_owned()));
    })
    .await;
}

/// A limit is no property of the request: a maker that may not be used from somewhere makes nothing from there.
#[actix_web::test]
async fn a_maker_is_held_to_its_own_limits_when_it_calls() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let mut body = wanted("live", "secret");
        body["allowedIps"] = json!(["203.0.113.0/24"]);
        let maker = make(app, &token, body).await;
        let create = || app.post(KEYS, wanted("live", "secret")).bearer(&maker.text);
        for (forwarded, allowed) in [
            (None, false), // from the loopback itself
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
                    refusal(app, &reply),
                    (403, "FORBIDDEN".to_owned()),
                    "{forwarded:?}"
                );
                assert_eq!(reply.json()["error"]["details"]["code"], "ip_not_allowed");
            }
        }
    })
    .await;
}
