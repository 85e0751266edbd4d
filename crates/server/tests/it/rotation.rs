//! Rotation: a key and its successor refer to each other, both work during the overlap, and
//! `last_used_at` of the predecessor shows when it is no longer in use.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::{Clock as _, KeyId};
use tollkey_server::server::RunningServer;
use tollkey_verifier::testing::{ManualClock, START};

use crate::{
    app::each_backend_with_replica,
    assert_response,
    support::{App, Call, Key, Reply, each_backend, each_backend_with},
};

fn path(key: &Key) -> String {
    format!("/api-keys/{}", key.id)
}

fn rotate(app: &App, token: &str, key: &Key, body: Value) -> Call {
    app.post(&format!("{}/rotate", path(key)), body)
        .bearer(token)
}

/// The created key of a response.
fn created(reply: &Reply) -> Key {
    assert_eq!(reply.status, 201, "{reply}");
    let json = reply.json();
    let text = |member: &str| json[member].as_str().expect("a string").to_owned();
    Key {
        id: text("key_id"),
        text: text("api_key"),
    }
}

async fn row(app: &App, token: &str, key: &Key) -> Value {
    let reply = app.get(&path(key)).bearer(token).await;
    assert_eq!(reply.status, 200, "{reply}");
    reply.json()
}

async fn codes(app: &App, keys: [&Key; 2]) -> [String; 2] {
    [app.code(&keys[0].text).await, app.code(&keys[1].text).await]
}

async fn revoke(app: &App, token: &str, key: &Key) {
    let reply = app
        .call("POST", &format!("{}/revoke", path(key)))
        .bearer(token)
        .await;
    assert_eq!(reply.status, 200, "{reply}");
}

/// Action, target and changes of every audit entry except creations, oldest first.
async fn log(app: &App, token: &str) -> Vec<(String, String, Value)> {
    let entries = app.get("/audit-log").bearer(token).await.json();
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let entries = entries.as_array().expect("an array").iter().rev();
    let entries = entries.map(|entry| {
        (
            text(&entry["action"]),
            text(&entry["target"]["id"]),
            entry["changes"].clone(),
        )
    });
    entries
        .filter(|(action, ..)| action != "api_key.created")
        .collect()
}

#[actix_web::test]
async fn predecessor_and_successor_both_work_during_the_overlap() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let old = app
            .commerce_key(
                &token,
                json!({"name": "WooCommerce plugin", "scopes": ["sessions:write"]}),
            )
            .await;
        app.clock.advance(Duration::from_secs(10));
        let reply = rotate(app, &token, &old, json!({"overlap_seconds": 3600})).await;
        assert_response!(reply, @r#"
        201
        cache-control: no-store
        content-type: application/json
        location: /api/v1/api-keys/019b76da-cf10-7cee-941f-6a00f65f1e53
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRG0QT6EFQNM6ZM32RB

        {
          "key_id": "019b76da-cf10-7cee-941f-6a00f65f1e53",
          "name": "WooCommerce plugin",
          "scope": "commerce",
          "api_key": "ck_live_(32)",
          "expires_at": null,
          "mode": "live",
          "scopes": [
            "sessions:write"
          ],
          "prefix": "ck_live_hMKncW",
          "merchants": null,
          "features": null,
          "created_at": 1767225610
        }
        "#);
        let new = created(&reply);
        assert_eq!(
            reply.header("location"),
            Some(format!("/api/v1/api-keys/{}", new.id).as_str())
        );
        assert_response!(app.get("/api-keys").bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRGPHGSG3NSVB3Y7GEW

        [
          {
            "key_id": "019b76da-cf10-7cee-941f-6a00f65f1e53",
            "name": "WooCommerce plugin",
            "scope": "commerce",
            "status": "active",
            "expires_at": null,
            "last_used_at": null,
            "created_at": 1767225610,
            "revoked_at": null,
            "revoked_reason": null,
            "mode": "live",
            "scopes": [
              "sessions:write"
            ],
            "prefix": "ck_live_hMKncW",
            "last4": "NsyM",
            "merchants": null,
            "features": null,
            "allowed_ips": null,
            "rate_limit": null,
            "metadata": null,
            "rotated_from": "019b76da-a800-7474-bdc5-e24d2a413b15",
            "rotated_to": null
          },
          {
            "key_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
            "name": "WooCommerce plugin",
            "scope": "commerce",
            "status": "active",
            "expires_at": 1767229210,
            "last_used_at": null,
            "created_at": 1767225600,
            "revoked_at": null,
            "revoked_reason": null,
            "mode": "live",
            "scopes": [
              "sessions:write"
            ],
            "prefix": "ck_live_9yYtHh",
            "last4": "fmUQ",
            "merchants": null,
            "features": null,
            "allowed_ips": null,
            "rate_limit": null,
            "metadata": null,
            "rotated_from": null,
            "rotated_to": "019b76da-cf10-7cee-941f-6a00f65f1e53"
          }
        ]
        "#);
        assert_eq!(codes(app, [&old, &new]).await, ["valid", "valid"]);
        for key in [&old, &new] {
            let reply = app
                .get("/authz/forward-auth?scope=sessions:write")
                .bearer(&key.text)
                .await;
            assert_eq!(
                (reply.status, reply.header("x-auth-key-id")),
                (200, Some(key.id.as_str()))
            );
        }
        // The predecessor expires exactly at the end of the overlap.
        app.clock.advance(Duration::from_millis(3_599_999));
        assert_eq!(codes(app, [&old, &new]).await, ["valid", "valid"]);
        app.clock.advance(Duration::from_millis(1));
        assert_eq!(codes(app, [&old, &new]).await, ["expired", "valid"]);
        let (old, new) = (row(app, &token, &old).await, row(app, &token, &new).await);
        assert_eq!(
            [&old["status"], &old["expires_at"]],
            [&json!("expired"), &json!(START + 3610)]
        );
        assert_eq!(
            [&new["status"], &new["expires_at"]],
            [&json!("active"), &Value::Null]
        );
        assert_eq!(
            [&old["rotated_from"], &old["rotated_to"]],
            [&Value::Null, &new["key_id"]]
        );
        assert_eq!(
            [&new["rotated_from"], &new["rotated_to"]],
            [&old["key_id"], &Value::Null]
        );
    })
    .await;
}

#[actix_web::test]
async fn successor_keeps_restrictions_metadata_and_expiration() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        for (body, overlap) in [
            (json!({}), 60),
            (json!({"mode": "test", "scopes": ["links:read", "events:read"]}), 0),
            (
                json!({
                    "name": "Partner", "mode": "test", "scopes": ["commerce", "links:read"], "expires_at": START + 5000,
                    "merchants": ["m_2", "m_1"], "features": ["payment_data.list"], "allowed_ips": ["203.0.113.0/24"],
                    "rate_limit": {"limit": 5, "window_seconds": 60}, "metadata": {"a": {"b": [null, 1.5]}}
                }),
                60,
            ),
        ] {
            let old = app.commerce_key(&token, body.clone()).await;
            let before = row(app, &token, &old).await;
            app.clock.advance(Duration::from_secs(100));
            let new = created(&rotate(app, &token, &old, json!({"overlap_seconds": overlap})).await);
            assert_ne!((&old.id, &old.text), (&new.id, &new.text));
            let (old, new) = (row(app, &token, &old).await, row(app, &token, &new).await);
            for member in [
                "name",
                "scope",
                "mode",
                "scopes",
                "expires_at",
                "merchants",
                "features",
                "allowed_ips",
                "rate_limit",
                "metadata",
            ] {
                assert_eq!(new[member], before[member], "{member} of {body}");
            }
            assert_eq!(
                [&new["last_used_at"], &new["revoked_at"], &new["revoked_reason"]],
                [&Value::Null, &Value::Null, &Value::Null]
            );
            assert_eq!(new["created_at"], app.clock.now().as_second());
            // Nothing else of the predecessor has changed.
            for (member, value) in before.as_object().unwrap() {
                if !["status", "expires_at", "rotated_to"].contains(&member.as_str()) {
                    assert_eq!(&old[member], value, "{member} of {body}");
                }
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn predecessor_expires_immediately_without_an_overlap() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for body in [
            None,
            Some(json!({})),
            Some(json!({"overlap_seconds": null})),
            Some(json!({"overlap_seconds": 0})),
        ] {
            let old = app.commerce_key(&token, json!({})).await;
            assert_eq!(app.code(&old.text).await, "valid", "cached");
            let call = match &body {
                None => app
                    .call("POST", &format!("{}/rotate", path(&old)))
                    .bearer(&token),
                Some(body) => rotate(app, &token, &old, body.clone()),
            };
            let new = created(&call.await);
            assert_eq!(
                codes(app, [&old, &new]).await,
                ["expired", "valid"],
                "{body:?}"
            );
            let old = row(app, &token, &old).await;
            let now = app.clock.now().as_second();
            assert_eq!(
                [&old["status"], &old["expires_at"]],
                [&json!("expired"), &json!(now)],
                "{body:?}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn rotation_holds_on_a_replica_with_a_slow_clock() {
    let slow_clock = ManualClock::default();
    each_backend_with_replica(
        Some(&slow_clock),
        async |app: &App, replica: &RunningServer| {
            app.clock.advance(Duration::from_secs(5)); // the replica's clock is five seconds slow
            let token = app.management_token("acme");
            let code = async |key: &Key| {
                let call =
                    Call::new(replica.address(), "POST", "/verify").json(json!({"key": key.text}));
                let reply = call.bearer(&app.service()).await;
                reply.json()["code"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{reply}"))
                    .to_owned()
            };
            let old = app.commerce_key(&token, json!({})).await;
            assert_eq!(code(&old).await, "valid");
            let new = created(&rotate(app, &token, &old, json!({})).await);
            assert_eq!(
                (code(&old).await.as_str(), code(&new).await.as_str()),
                ("expired", "valid")
            );
            let seen = Call::new(replica.address(), "GET", &path(&old))
                .bearer(&token)
                .await
                .json();
            assert_eq!(seen["status"], "expired");
            // The replica also rejects another rotation and changes.
            for call in [
                Call::new(replica.address(), "POST", &format!("{}/rotate", path(&old))),
                Call::new(replica.address(), "PATCH", &path(&old))
                    .json(json!({"expires_at": null})),
            ] {
                let reply = call.bearer(&token).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (409, "key_expired"),
                    "{reply}"
                );
            }
            // A cached key that is rotated with an overlap stays valid, until it is revoked.
            assert_eq!(code(&new).await, "valid");
            let newest = created(&rotate(app, &token, &new, json!({"overlap_seconds": 60})).await);
            assert_eq!(
                (code(&new).await.as_str(), code(&newest).await.as_str()),
                ("valid", "valid")
            );
            revoke(app, &token, &new).await;
            assert_eq!(
                (code(&new).await.as_str(), code(&newest).await.as_str()),
                ("revoked", "valid")
            );
        },
    )
    .await;
}

#[actix_web::test]
async fn predecessor_expires_at_the_earlier_of_two_times() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let start = app.clock.now().as_second();
        for (own, overlap, end) in [
            (50, 100, 50),
            (100, 50, 50),
            (70, 70, 70),
            (604_801, 604_800, 604_800),
            (50, 0, 0),
        ] {
            let old = app
                .commerce_key(&token, json!({"expires_at": start + own}))
                .await;
            let new =
                created(&rotate(app, &token, &old, json!({"overlap_seconds": overlap})).await);
            assert_eq!(
                row(app, &token, &old).await["expires_at"],
                start + end,
                "{own} {overlap}"
            );
            assert_eq!(
                row(app, &token, &new).await["expires_at"],
                start + own,
                "{own} {overlap}"
            );
        }
        let old = app
            .commerce_key(&token, json!({"expires_at": start + 50}))
            .await;
        let new = created(&rotate(app, &token, &old, json!({"overlap_seconds": 100})).await);
        app.clock.advance(Duration::from_secs(49));
        assert_eq!(codes(app, [&old, &new]).await, ["valid", "valid"]);
        app.clock.advance(Duration::from_secs(1));
        assert_eq!(codes(app, [&old, &new]).await, ["expired", "expired"]);
    })
    .await;
}

#[actix_web::test]
async fn revoking_the_predecessor_ends_the_overlap() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let old = app.commerce_key(&token, json!({})).await;
        assert_eq!(app.code(&old.text).await, "valid");
        app.clock.advance(Duration::from_secs(10));
        let new = created(&rotate(app, &token, &old, json!({"overlap_seconds": 3600})).await);
        let last_used = async |key: &Key| {
            app.running().state().service.flush_usage().await;
            row(app, &token, key).await["last_used_at"].clone()
        };
        assert_eq!(
            (last_used(&old).await, last_used(&new).await),
            (json!(START), Value::Null)
        );
        app.clock.advance(Duration::from_secs(10));
        assert_eq!(
            app.code(&old.text).await,
            "valid",
            "a client still uses the predecessor"
        );
        assert_eq!(
            (last_used(&old).await, last_used(&new).await),
            (json!(START + 20), Value::Null)
        );
        app.clock.advance(Duration::from_secs(10));
        assert_eq!(app.code(&new.text).await, "valid");
        assert_eq!(
            (last_used(&old).await, last_used(&new).await),
            (json!(START + 20), json!(START + 30))
        );
        revoke(app, &token, &old).await;
        assert_eq!(codes(app, [&old, &new]).await, ["revoked", "valid"]);
        let ended = row(app, &token, &old).await;
        assert_eq!(
            [
                &ended["status"],
                &ended["revoked_at"],
                &ended["expires_at"],
                &ended["rotated_to"]
            ],
            [
                &json!("revoked"),
                &json!(START + 30),
                &json!(START + 3610),
                &json!(new.id)
            ]
        );
        // Revoking the successor does not affect the predecessor.
        let newest = created(&rotate(app, &token, &new, json!({"overlap_seconds": 60})).await);
        revoke(app, &token, &newest).await;
        assert_eq!(codes(app, [&new, &newest]).await, ["valid", "revoked"]);
        app.clock.advance(Duration::from_secs(60));
        assert_eq!(codes(app, [&new, &newest]).await, ["expired", "revoked"]);
    })
    .await;
}

#[actix_web::test]
async fn only_active_keys_without_a_successor_can_be_rotated() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let suspended = app.commerce_key(&token, json!({})).await;
        let reply = app
            .call("POST", &format!("{}/suspend", path(&suspended)))
            .bearer(&token)
            .await;
        assert_eq!(reply.status, 200);
        let revoked = app.commerce_key(&token, json!({})).await;
        revoke(app, &token, &revoked).await;
        let expired = app
            .commerce_key(&token, json!({"expires_at": START + 1}))
            .await;
        let rotated = app.commerce_key(&token, json!({})).await;
        let successor =
            created(&rotate(app, &token, &rotated, json!({"overlap_seconds": 3600})).await);
        let over = app.commerce_key(&token, json!({})).await;
        created(&rotate(app, &token, &over, json!({})).await);
        let ended = app.commerce_key(&token, json!({})).await;
        created(&rotate(app, &token, &ended, json!({"overlap_seconds": 3600})).await);
        revoke(app, &token, &ended).await;
        app.clock.advance(Duration::from_secs(1));
        assert_response!(rotate(app, &token, &rotated, json!({})).await, @r#"
        409
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNAZ8QJ1Q3RPSQHNSCEE6

        {
          "type": "urn:tollkey:problem:key_already_rotated",
          "title": "The key is already rotated",
          "status": 409,
          "detail": "The key is already rotated. Rotate its successor instead.",
          "code": "key_already_rotated",
          "request_id": "req_01KDVDNAZ8QJ1Q3RPSQHNSCEE6"
        }
        "#);
        let count = async || {
            app.get("/api-keys")
                .bearer(&token)
                .await
                .json()
                .as_array()
                .unwrap()
                .len()
        };
        let before = (count().await, log(app, &token).await.len());
        for (key, code) in [
            (&suspended, "key_suspended"),
            (&revoked, "key_revoked"),
            (&expired, "key_expired"),
            (&rotated, "key_already_rotated"),
            (&over, "key_expired"),
            (&ended, "key_revoked"),
        ] {
            let was = row(app, &token, key).await;
            for body in [json!({}), json!({"overlap_seconds": 60})] {
                let reply = rotate(app, &token, key, body).await;
                assert_eq!((reply.status, reply.code().as_str()), (409, code));
            }
            assert_eq!(row(app, &token, key).await, was, "{code}");
        }
        assert_eq!(
            (count().await, log(app, &token).await.len()),
            before,
            "no key was created"
        );
        // For a suspended key, suspension is reported first. After it is resumed, the overlap continues.
        let act = |action: &str| {
            app.call("POST", &format!("{}/{action}", path(&rotated)))
                .bearer(&token)
        };
        assert_eq!(act("suspend").await.status, 200);
        assert_eq!(
            codes(app, [&rotated, &successor]).await,
            ["suspended", "valid"]
        );
        assert_eq!(
            rotate(app, &token, &rotated, json!({})).await.code(),
            "key_suspended"
        );
        assert_eq!(act("resume").await.status, 200);
        assert_eq!(codes(app, [&rotated, &successor]).await, ["valid", "valid"]);
        // A resumed key can be rotated, and so can a successor.
        assert_eq!(
            app.call("POST", &format!("{}/resume", path(&suspended)))
                .bearer(&token)
                .await
                .status,
            200
        );
        created(&rotate(app, &token, &suspended, json!({})).await);
        let third = created(&rotate(app, &token, &successor, json!({"overlap_seconds": 60})).await);
        assert_eq!(codes(app, [&rotated, &successor]).await, ["valid", "valid"]);
        let rows = [
            row(app, &token, &rotated).await,
            row(app, &token, &successor).await,
            row(app, &token, &third).await,
        ];
        let chain: Vec<[&Value; 2]> = rows
            .iter()
            .map(|row| [&row["rotated_from"], &row["rotated_to"]])
            .collect();
        assert_eq!(
            chain,
            [
                [&Value::Null, &json!(successor.id)],
                [&json!(rotated.id), &json!(third.id)],
                [&json!(successor.id), &Value::Null],
            ]
        );
    })
    .await;
}

#[actix_web::test]
async fn overlap_is_0_to_604800_seconds() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let number = "must be a whole number within its range";
        for (body, error) in [
            (
                json!({"overlap_seconds": -1}),
                "/overlap_seconds must be between 0 and 604800".to_owned(),
            ),
            (
                json!({"overlap_seconds": 604_801}),
                "/overlap_seconds must be between 0 and 604800".to_owned(),
            ),
            (
                json!({"overlap_seconds": i64::MAX}),
                "/overlap_seconds must be between 0 and 604800".to_owned(),
            ),
            (
                json!({"overlap_seconds": 1.5}),
                format!("/overlap_seconds {number}"),
            ),
            (
                json!({"overlap_seconds": "60"}),
                format!("/overlap_seconds {number}"),
            ),
            (
                json!({"overlap_seconds": []}),
                format!("/overlap_seconds {number}"),
            ),
            (json!({"overlap": 60}), "/overlap is unknown".to_owned()),
            (json!({"name": "New"}), "/name is unknown".to_owned()),
            (
                json!({"scopes": ["commerce"]}),
                "/scopes is unknown".to_owned(),
            ),
            (json!({"mode": "live"}), "/mode is unknown".to_owned()),
            (
                json!({"expires_at": null}),
                "/expires_at is unknown".to_owned(),
            ),
            (json!([]), " The body must be a JSON object.".to_owned()),
        ] {
            let reply = rotate(app, &token, &key, body.clone()).await;
            assert_eq!((reply.status, reply.errors()), (400, vec![error]), "{body}");
        }
        assert_eq!(row(app, &token, &key).await["rotated_to"], Value::Null);
        for overlap in [0, 1, 604_800] {
            let key = app.commerce_key(&token, json!({})).await;
            created(&rotate(app, &token, &key, json!({"overlap_seconds": overlap})).await);
            assert_eq!(row(app, &token, &key).await["expires_at"], START + overlap);
        }
    })
    .await;
}

#[actix_web::test]
async fn predecessor_can_be_changed_but_not_extended() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let old = app.commerce_key(&token, json!({})).await;
        let new = created(&rotate(app, &token, &old, json!({"overlap_seconds": 60})).await);
        let patch = async |body: Value| {
            let reply = app.patch(&path(&old), body).bearer(&token).await;
            assert_eq!(reply.status, 200, "{reply}");
            assert_eq!(reply.json()["rotated_to"], new.id);
        };
        patch(json!({"name": "Old", "scopes": ["links:read"]})).await;
        let successor = row(app, &token, &new).await;
        assert_eq!(
            (&successor["name"], &successor["scopes"]),
            (&json!("Commerce Server Key"), &json!(["commerce"]))
        );
        patch(json!({"expires_at": START + 60})).await;
        patch(json!({"expires_at": START + 30})).await;
        for later in [json!(null), json!(START + 31), json!(START + 60)] {
            let reply = app
                .patch(&path(&old), json!({"name": "x", "expires_at": later}))
                .bearer(&token)
                .await;
            let rule =
                "/expires_at must not be later than its current value, because the key is rotated"
                    .to_owned();
            assert_eq!((reply.status, reply.errors()), (400, vec![rule]));
        }
        assert_eq!(row(app, &token, &old).await["name"], "Old");
        app.clock.advance(Duration::from_secs(29));
        assert_eq!(codes(app, [&old, &new]).await, ["valid", "valid"]);
        app.clock.advance(Duration::from_secs(1));
        assert_eq!(codes(app, [&old, &new]).await, ["expired", "valid"]);
        let reply = app
            .patch(&path(&old), json!({"expires_at": null}))
            .bearer(&token)
            .await;
        assert_eq!((reply.status, reply.code().as_str()), (409, "key_expired"));
        // The successor's expiration can be changed freely.
        let reply = app
            .patch(&path(&new), json!({"expires_at": START + 1000}))
            .bearer(&token)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        let reply = app
            .patch(&path(&new), json!({"expires_at": null}))
            .bearer(&token)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
    })
    .await;
}

#[actix_web::test]
async fn both_keys_count_towards_the_limit_during_the_overlap() {
    each_backend_with(&[("TOLLKEY_ACCOUNT_KEY_LIMIT", "2")], async |app: &App| {
        let token = app.management_token("acme");
        let (first, second) = (
            app.commerce_key(&token, json!({})).await,
            app.commerce_key(&token, json!({})).await,
        );
        let reply = rotate(app, &token, &first, json!({"overlap_seconds": 60})).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "key_limit_reached")
        );
        assert_eq!(
            row(app, &token, &first).await["rotated_to"],
            Value::Null,
            "the key is not rotated"
        );
        assert_eq!(app.code(&first.text).await, "valid");
        // Without an overlap, the successor takes the predecessor's place in the count.
        let third = created(&rotate(app, &token, &first, json!({})).await);
        assert_eq!(
            rotate(app, &token, &third, json!({"overlap_seconds": 1}))
                .await
                .code(),
            "key_limit_reached"
        );
        revoke(app, &token, &second).await;
        let fourth = created(&rotate(app, &token, &third, json!({"overlap_seconds": 60})).await);
        assert_eq!(codes(app, [&third, &fourth]).await, ["valid", "valid"]);
        assert_eq!(
            app.post("/api-keys", json!({"name": "n"}))
                .bearer(&token)
                .await
                .code(),
            "key_limit_reached"
        );
        app.clock.advance(Duration::from_secs(60));
        app.commerce_key(&token, json!({})).await;
    })
    .await;
}

#[actix_web::test]
async fn scoped_key_is_rotated_only_if_it_could_be_created_now() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        let lists = app
            .commerce_key(
                &token,
                json!({"features": ["tokens.list", "cardholder_data.forward"]}),
            )
            .await;
        let forwards = app
            .commerce_key(&token, json!({"features": ["cardholder_data.forward"]}))
            .await;
        let merchants = app
            .commerce_key(&token, json!({"merchants": ["m_1"]}))
            .await;
        let plain = app.commerce_key(&token, json!({})).await;
        for model in ["primary_merchant", "platform"] {
            app.set_model("acme", model).await;
            for key in [&lists, &forwards, &merchants] {
                let reply = rotate(app, &token, key, json!({})).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "scoped_keys_unavailable"),
                    "{model}"
                );
                assert_eq!(row(app, &token, key).await["rotated_to"], Value::Null);
            }
        }
        let plain = created(&rotate(app, &token, &plain, json!({})).await);
        app.set_model("acme", "managed_ecosystem").await;
        let reply = rotate(app, &token, &lists, json!({})).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "feature_unavailable")
        );
        for key in [&forwards, &merchants, &plain] {
            created(&rotate(app, &token, key, json!({})).await);
        }
        app.set_model("acme", "ecosystem").await;
        let lists = created(&rotate(app, &token, &lists, json!({})).await);
        let verify = async |path: &str| {
            app.verify(&lists.text, json!({"method": "GET", "path": path}))
                .await
        };
        assert_eq!(verify("/tokens").await["code"], "valid");
        assert_eq!(verify("/tokens/tok_1").await["code"], "route_not_allowed");
    })
    .await;
}

#[actix_web::test]
async fn rotation_is_one_audit_entry_without_secrets() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"expires_at": START + 100, "scopes": ["links:read"], "metadata": {"owner": "a person"}});
        let old = app.commerce_key(&token, body).await;
        let new = created(&rotate(app, &token, &old, json!({"overlap_seconds": 60})).await);
        let changes = json!({
            "expires_at": [START + 100, START + 60],
            "rotated_to": new.id,
            "successor": {
                "name": "Commerce Server Key", "family": "commerce", "mode": "live", "prefix": new.text[..14],
                "last4": new.text[36..], "application_id": null, "scopes": ["links:read"], "merchants": null,
                "features": null, "allowed_ips": null, "rate_limit": null, "expires_at": START + 100
            }
        });
        assert_eq!(log(app, &token).await, [("api_key.rotated".to_owned(), old.id.clone(), changes)]);
        let whole = app.get("/audit-log").bearer(&token).await.body;
        for secret in [&old.text[8..], &new.text[8..], "a person"] {
            assert!(!whole.contains(secret));
        }
        let created = app.get("/audit-log?action=api_key.created").bearer(&token).await.json();
        assert_eq!(created.as_array().unwrap().len(), 1, "the successor's creation is part of the rotation");
    })
    .await;
}

#[actix_web::test]
async fn rotating_another_accounts_key_is_404() {
    each_backend(async |app: &App| {
        let (acme, globex) = (app.management_token("acme"), app.management_token("globex"));
        let key = app.commerce_key(&acme, json!({})).await;
        let before = row(app, &acme, &key).await;
        let crockford = key.id.parse::<KeyId>().unwrap().crockford();
        for id in [
            key.id.as_str(),
            &crockford,
            "01890000-0000-7000-8000-000000000000",
            "nonsense",
        ] {
            for body in [json!({}), json!({"overlap_seconds": 60})] {
                let reply = app
                    .post(&format!("/api-keys/{id}/rotate"), body)
                    .bearer(&globex)
                    .await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (404, "not_found"),
                    "{id}"
                );
            }
        }
        assert_eq!(row(app, &acme, &key).await, before);
        assert_eq!(app.get("/api-keys").bearer(&globex).await.json(), json!([]));
        // Its own account can rotate it by either format of its ID, and so can an operator.
        let reply = app
            .post(&format!("/api-keys/{crockford}/rotate"), json!({}))
            .bearer(&acme)
            .await;
        let new = created(&reply);
        let operator = app.operator();
        let path = format!("/api-keys/{}/rotate", new.id);
        assert_eq!(
            app.post(&format!("{path}?account=globex"), json!({}))
                .bearer(&operator)
                .await
                .status,
            404
        );
        created(
            &app.post(&format!("{path}?account=acme"), json!({}))
                .bearer(&operator)
                .await,
        );
        assert_eq!(app.get("/api-keys").bearer(&globex).await.json(), json!([]));
    })
    .await;
}

#[actix_web::test]
async fn only_one_of_20_parallel_rotations_creates_a_successor() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        let token = app.management_token("acme");
        for overlap in [0, 3600] {
            let old = app.commerce_key(&token, json!({})).await;
            let calls = (0..20).map(|n| {
                let address = if n % 2 == 0 {
                    app.running().address()
                } else {
                    replica.address()
                };
                let call = Call::new(address, "POST", &format!("{}/rotate", path(&old)));
                call.json(json!({"overlap_seconds": overlap}))
                    .bearer(&token)
                    .into_future()
            });
            let replies = join_all(calls).await;
            let code = if overlap == 0 {
                "key_expired"
            } else {
                "key_already_rotated"
            };
            let rejected = replies
                .iter()
                .filter(|reply| reply.status == 409 && reply.code() == code)
                .count();
            let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
            assert_eq!(rejected, 19, "{statuses:?}");
            let new = created(
                replies
                    .iter()
                    .find(|reply| reply.status == 201)
                    .expect("one successor"),
            );
            assert_eq!(row(app, &token, &old).await["rotated_to"], new.id);
            let list = app.get("/api-keys").bearer(&token).await.json();
            let successors = list
                .as_array()
                .unwrap()
                .iter()
                .filter(|row| row["rotated_from"] == old.id)
                .count();
            assert_eq!(successors, 1);
            assert_eq!(
                log(app, &token)
                    .await
                    .iter()
                    .filter(|(_, target, _)| *target == old.id)
                    .count(),
                1
            );
        }
        replica.stop().await;
    })
    .await;
}
