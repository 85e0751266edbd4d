//! Commerce keys, in the order of pepay's document. Tests of Tollkey's additions follow: suspension,
//! changes and the key limit.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::{
    AccountId, ApiKey, Clock as _, Family, KeyId, Mode, PlainKey, feature::Feature,
};
use tollkey_server::server::RunningServer;
use tollkey_verifier::testing::START;

use crate::{
    app::each_backend_with_replica,
    assert_response,
    support::{App, Call, Key, Reply, each_backend, each_backend_with},
};

fn path(key: &Key) -> String {
    format!("/api-keys/{}", key.id)
}

fn crockford(id: &str) -> String {
    id.parse::<KeyId>().expect("a key ID").crockford()
}

/// Returns the key as the API represents it.
async fn row(app: &App, token: &str, key: &Key) -> Value {
    let reply = app.get(&path(key)).bearer(token).await;
    assert_eq!(reply.status, 200, "{reply}");
    reply.json()
}

/// The status of the key.
async fn status(app: &App, token: &str, key: &Key) -> String {
    row(app, token, key).await["status"]
        .as_str()
        .expect("a status")
        .to_owned()
}

/// A call of `suspend`, `resume` or `revoke`, without a body.
fn act(app: &App, token: &str, key: &Key, action: &str) -> Call {
    app.call("POST", &format!("{}/{action}", path(key)))
        .bearer(token)
}

/// Returns the action and the changes of every audit entry of the key, oldest first.
async fn log(app: &App, token: &str, key: &Key) -> Vec<(String, Value)> {
    let entries = app
        .get(&format!("/audit-log?target_id={}", key.id))
        .bearer(token)
        .await
        .json();
    let entries = entries.as_array().expect("an array").iter().rev();
    entries
        .map(|entry| {
            (
                entry["action"].as_str().unwrap().to_owned(),
                entry["changes"].clone(),
            )
        })
        .collect()
}

/// The target of the `Link` header.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.header("link")?;
    let target = link
        .strip_prefix('<')
        .and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
    Some(target.unwrap_or_else(|| panic!("{link}")).to_owned())
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array()
        .expect("an array")
        .iter()
        .map(|row| row["key_id"].as_str().unwrap().to_owned())
        .collect()
}

// Request: list

#[actix_web::test]
async fn list_returns_the_documented_fields() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        assert_response!(app.get("/api-keys?scope=commerce").bearer(&token).await, @"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        []
        ");
        app.set_model("acme", "ecosystem").await;
        let first = app.commerce_key(&token, json!({"expires_at": null})).await;
        app.clock.advance(Duration::from_secs(60));
        let revoked = app.commerce_key(&token, json!({"name": "Old", "expires_at": START + 86_400})).await;
        let reply = app.post(&format!("{}/revoke", path(&revoked)), json!({"reason": "leaked"})).bearer(&token).await;
        assert_eq!(reply.status, 200);
        app.clock.advance(Duration::from_secs(60));
        app.commerce_key(
            &token,
            json!({
                "name": "Partner", "mode": "test", "scopes": ["sessions:write", "links:read"],
                "merchants": ["m_1", "m_2"], "features": ["tokens.list"], "allowed_ips": ["203.0.113.0/24", "2001:db8::/32"],
                "rate_limit": {"limit": 5, "window_seconds": 60}, "metadata": {"owner": "checkout"}
            }),
        )
        .await;
        assert_eq!(app.get("/whoami").header("x-commerce-api-key", &first.text).await.status, 200);
        app.running().state().service.flush_usage().await;
        assert_response!(app.get("/api-keys?scope=commerce").bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDRZ60E914J7TKNP8Y7748

        [
          {
            "key_id": "019b76dc-7cc0-7b9a-bb01-696bec22ee83",
            "name": "Partner",
            "scope": "commerce",
            "status": "active",
            "expires_at": null,
            "last_used_at": null,
            "created_at": 1767225720,
            "revoked_at": null,
            "revoked_reason": null,
            "mode": "test",
            "scopes": [
              "sessions:write",
              "links:read"
            ],
            "prefix": "ck_test_zhqKD6",
            "last4": "o91T",
            "merchants": [
              "m_1",
              "m_2"
            ],
            "features": [
              "tokens.list"
            ],
            "allowed_ips": [
              "203.0.113.0/24",
              "2001:db8::/32"
            ],
            "rate_limit": {
              "limit": 5,
              "window_seconds": 60
            },
            "metadata": {
              "owner": "checkout"
            },
            "rotated_from": null,
            "rotated_to": null
          },
          {
            "key_id": "019b76db-9260-7503-9279-5d0b3f0c00aa",
            "name": "Old",
            "scope": "commerce",
            "status": "revoked",
            "expires_at": 1767312000,
            "last_used_at": null,
            "created_at": 1767225660,
            "revoked_at": 1767225660,
            "revoked_reason": "leaked",
            "mode": "live",
            "scopes": [
              "commerce"
            ],
            "prefix": "ck_live_B9yQSD",
            "last4": "4emO",
            "merchants": null,
            "features": null,
            "allowed_ips": null,
            "rate_limit": null,
            "metadata": null,
            "rotated_from": null,
            "rotated_to": null
          },
          {
            "key_id": "019b76da-a800-7819-b062-c680488a0d74",
            "name": "Commerce Server Key",
            "scope": "commerce",
            "status": "active",
            "expires_at": null,
            "last_used_at": 1767225720,
            "created_at": 1767225600,
            "revoked_at": null,
            "revoked_reason": null,
            "mode": "live",
            "scopes": [
              "commerce"
            ],
            "prefix": "ck_live_aDz7zb",
            "last4": "CHXQ",
            "merchants": null,
            "features": null,
            "allowed_ips": null,
            "rate_limit": null,
            "metadata": null,
            "rotated_from": null,
            "rotated_to": null
          }
        ]
        "#);
    })
    .await;
}

#[actix_web::test]
async fn list_has_only_commerce_keys_of_the_account() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        app.commerce_key(&app.management_token("globex"), json!({}))
            .await;
        for family in [Family::Secret, Family::Publishable] {
            app.insert_key("acme", family, Mode::Live).await;
        }
        let application = app.application(&token, "Web Store").await;
        app.key(&token, &application, json!({})).await;
        for query in ["", "?scope=commerce", "?limit=1000"] {
            let reply = app.get(&format!("/api-keys{query}")).bearer(&token).await;
            assert_eq!(
                (ids(&reply.json()), next(&reply)),
                (vec![key.id.clone()], None),
                "{query}"
            );
        }
        let operator = app.operator();
        let reply = app.get("/api-keys?account=acme").bearer(&operator).await;
        assert_eq!(ids(&reply.json()), [key.id.as_str()]);
    })
    .await;
}

#[actix_web::test]
async fn pages_of_a_list_have_every_key_exactly_once() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let mut created = Vec::new();
        for count in [1, 7, 1, 8, 4] {
            for _ in 0..count {
                created.push(app.commerce_key(&token, json!({})).await.id); // all at the same time
            }
            app.clock.advance(Duration::from_millis(700)); // in some rounds into the next second
        }
        let all = ids(&app.get("/api-keys").bearer(&token).await.json());
        let sorted = |ids: &[String]| {
            let mut ids = ids.to_vec();
            ids.sort();
            ids
        };
        assert_eq!(sorted(&all), sorted(&created));
        let moments = |ids: &[String]| {
            let times = ids
                .iter()
                .map(|id| created.iter().position(|own| own == id).unwrap());
            times
                .map(|at| {
                    [
                        0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4,
                    ][at]
                })
                .collect::<Vec<u8>>()
        };
        assert!(
            moments(&all).is_sorted_by(|a, b| a >= b),
            "newest first: {:?}",
            moments(&all)
        );

        for limit in [1, 2, 3, 7, 20, 21, 22, 1000] {
            let mut found = Vec::new();
            let mut at = Some(format!("/api-keys?limit={limit}&scope=commerce"));
            let mut pages = 0;
            while let Some(path) = at {
                let reply = app.get(&path).bearer(&token).await;
                assert_eq!(reply.status, 200, "{path} {reply}");
                let page = ids(&reply.json());
                at = next(&reply);
                assert!(
                    at.is_none() || page.len() == limit,
                    "only the last page is not full"
                );
                found.extend(page);
                pages += 1;
            }
            assert_eq!(found, all, "limit {limit}");
            assert_eq!(pages, all.len().div_ceil(limit).max(1), "limit {limit}");
        }

        // Keys created or revoked in the meantime do not shift later pages.
        let reply = app.get("/api-keys?limit=10").bearer(&token).await;
        app.commerce_key(&token, json!({})).await;
        let gone = Key {
            id: all[9].clone(),
            text: String::new(),
        };
        assert_eq!(act(app, &token, &gone, "revoke").await.status, 200);
        let rest = app
            .get(&next(&reply).expect("a second page"))
            .bearer(&token)
            .await;
        assert_eq!(ids(&rest.json()), all[10..20]);

        // The link to an operator's next page keeps `account`. A cursor returns no keys of another account.
        let reply = app
            .get("/api-keys?account=acme&limit=20")
            .bearer(&app.operator())
            .await;
        let on = next(&reply).expect("a second page");
        assert_eq!(
            app.get(&on)
                .bearer(&app.operator())
                .await
                .json()
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let cursor = next(&app.get("/api-keys?limit=1").bearer(&token).await).unwrap();
        assert_eq!(
            app.get(&cursor)
                .bearer(&app.management_token("globex"))
                .await
                .json(),
            json!([])
        );
    })
    .await;
}

#[actix_web::test]
async fn default_page_size_is_1000() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let (state, now) = (app.running().state(), app.clock.now());
        let account: AccountId = "acme".parse().expect("an account ID");
        let keys: Vec<(ApiKey, PlainKey)> = (0..1001)
            .map(|n| {
                let text = app.generate_key(Family::Commerce, Mode::Live);
                let id = state.service.random.with(|rng| KeyId::new(now, rng));
                let key = ApiKey::new(
                    id,
                    account.clone(),
                    &text,
                    (Family::Commerce, Mode::Live),
                    now,
                );
                (
                    ApiKey {
                        name: format!("Key {n}"),
                        ..key
                    },
                    text,
                )
            })
            .collect();
        let inserted = state.service.store.write(move |tx| {
            let mut account = tx.account(&account);
            keys.iter()
                .try_for_each(|(key, text)| account.insert_key(key, &text.digest()))
        });
        let _ = inserted.await.expect("keys in the store");
        let mut found = Vec::new();
        let mut at = Some("/api-keys".to_owned());
        let mut sizes = Vec::new();
        while let Some(path) = at {
            let reply = app.get(&path).bearer(&token).await;
            let page = ids(&reply.json());
            sizes.push(page.len());
            found.extend(page);
            at = next(&reply);
        }
        assert_eq!(sizes, [1000, 1]);
        assert_eq!(found.iter().collect::<HashSet<_>>().len(), 1001);
    })
    .await;
}

#[actix_web::test]
async fn invalid_query_parameters_are_400() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.commerce_key(&token, json!({})).await;
        let limit = "must be between 1 and 1000";
        let cursor = "must be a cursor from an earlier response";
        for (query, error) in [
            ("scope=payments", "scope must be commerce".to_owned()),
            ("scope=", "scope must be commerce".to_owned()),
            (
                "scope=commerce&scope=commerce",
                "scope must not be repeated".to_owned(),
            ),
            ("limit=0", format!("limit {limit}")),
            ("limit=1001", format!("limit {limit}")),
            (
                "limit=-1",
                "limit must be a whole number within its range".to_owned(),
            ),
            (
                "limit=ten",
                "limit must be a whole number within its range".to_owned(),
            ),
            ("cursor=x", format!("cursor {cursor}")),
            ("cursor=", format!("cursor {cursor}")),
            ("cursor=1.2", format!("cursor {cursor}")),
            ("page=1", "page is unknown".to_owned()),
            ("status=active", "status is unknown".to_owned()),
            ("Scope=commerce", "Scope is unknown; use `scope`".to_owned()),
        ] {
            let reply = app.get(&format!("/api-keys?{query}")).bearer(&token).await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error]),
                "{query}"
            );
        }
        assert_eq!(
            app.get("/api-keys?account=acme")
                .bearer(&token)
                .await
                .code(),
            "forbidden"
        );
    })
    .await;
}

// Request: create

#[actix_web::test]
async fn creation_returns_the_documented_fields() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "Commerce Server Key", "expires_at": null});
        assert_response!(app.post("/api-keys", body).bearer(&token).await, @r#"
        201
        cache-control: no-store
        content-type: application/json
        location: /api/v1/api-keys/019b76da-a800-7474-bdc5-e24d2a413b15
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "key_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "name": "Commerce Server Key",
          "scope": "commerce",
          "api_key": "ck_live_(32)",
          "expires_at": null,
          "mode": "live",
          "scopes": [
            "commerce"
          ],
          "prefix": "ck_live_9yYtHh",
          "merchants": null,
          "features": null,
          "created_at": 1767225600
        }
        "#);
        app.set_model("acme", "ecosystem").await;
        let body = json!({
            "name": "  Partner\u{a0}", "scope": "commerce", "mode": "test", "scopes": ["links:read", "commerce", "links:read"],
            "expires_at": START + 60, "merchants": ["m_2", "m_1", "m_2"], "features": ["cardholder_data.forward", "tokens.list"],
            "allowed_ips": ["203.0.113.7/32", "2001:db8::/32"], "rate_limit": {"limit": 5, "window_seconds": 60},
            "metadata": {"owner": "checkout", "n": 1.5}
        });
        assert_response!(app.post("/api-keys", body).bearer(&token).await, @r#"
        201
        cache-control: no-store
        content-type: application/json
        location: /api/v1/api-keys/019b76da-a800-7e67-8170-5ac1f259c85a
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00NCR9TXZM51K51CMX

        {
          "key_id": "019b76da-a800-7e67-8170-5ac1f259c85a",
          "name": "Partner",
          "scope": "commerce",
          "api_key": "ck_test_(32)",
          "expires_at": 1767225660,
          "mode": "test",
          "scopes": [
            "links:read",
            "commerce"
          ],
          "prefix": "ck_test_eDPB9y",
          "merchants": [
            "m_2",
            "m_1"
          ],
          "features": [
            "cardholder_data.forward",
            "tokens.list"
          ],
          "created_at": 1767225600
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn full_key_is_only_in_the_creation_response() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"metadata": {"a": 1}}))
            .await;
        let random = &key.text["ck_live_".len()..];
        for path in ["/api-keys".to_owned(), path(&key), "/audit-log".to_owned()] {
            let body = app.get(&path).bearer(&token).await.body;
            assert!(body.contains(&key.id) && !body.contains(random), "{path}");
        }
        let patched = app
            .patch(&path(&key), json!({"name": "New"}))
            .bearer(&token)
            .await
            .body;
        assert!(!patched.contains(random));
        assert_eq!(
            row(app, &token, &key).await["last4"],
            key.text[key.text.len() - 4..]
        );
    })
    .await;
}

#[actix_web::test]
async fn optional_fields_may_be_null() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let bare = app.commerce_key(&token, json!({"name": "n"})).await;
        let bare = row(app, &token, &bare).await;
        assert_eq!(
            (&bare["mode"], &bare["scopes"]),
            (&json!("live"), &json!(["commerce"]))
        );
        let fields = [
            "scope",
            "mode",
            "scopes",
            "expires_at",
            "merchants",
            "features",
            "allowed_ips",
            "rate_limit",
            "metadata",
        ];
        let mut all = json!({"name": "n"});
        for field in fields {
            all[field] = Value::Null;
            let key = app
                .commerce_key(&token, json!({"name": "n", field: null}))
                .await;
            assert_same_except_ids(&row(app, &token, &key).await, &bare, field);
        }
        let key = app.commerce_key(&token, all).await;
        assert_same_except_ids(&row(app, &token, &key).await, &bare, "all fields");
        let key = app.commerce_key(&token, json!({"metadata": {}})).await;
        assert_eq!(row(app, &token, &key).await["metadata"], json!({}));
    })
    .await;
}

fn assert_same_except_ids(row: &Value, other: &Value, why: &str) {
    let (mut row, mut other) = (row.clone(), other.clone());
    for row in [&mut row, &mut other] {
        for field in ["key_id", "prefix", "last4"] {
            row[field] = Value::Null;
        }
    }
    assert_eq!(row, other, "{why}");
}

#[actix_web::test]
async fn expiration_is_a_future_time_in_either_format() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for (end, shown) in [
            (Value::Null, Value::Null),
            (json!(START + 1), json!(START + 1)),
            (json!("2026-01-01T00:00:01Z"), json!(START + 1)),
            (json!("2026-01-01T02:00:01+02:00"), json!(START + 1)),
            (json!("2026-01-01T00:00:01.999Z"), json!(START + 1)),
            (json!("2100-01-01T00:00:00Z"), json!(4_102_444_800_i64)),
        ] {
            let body = json!({"name": "n", "expires_at": end});
            let reply = app.post("/api-keys", body).bearer(&token).await;
            assert_eq!(
                (reply.status, &reply.json()["expires_at"]),
                (201, &shown),
                "{end}"
            );
            let id = reply.json()["key_id"].as_str().unwrap().to_owned();
            assert_eq!(
                row(
                    app,
                    &token,
                    &Key {
                        id,
                        text: String::new()
                    }
                )
                .await["expires_at"],
                shown,
                "{end}"
            );
        }
        let form =
            "/expires_at must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z";
        let future = "/expires_at must be in the future";
        for (end, error) in [
            (json!(START), future),
            (json!(START - 1), future),
            (json!(0), future),
            (json!(-1), future),
            (json!("2026-01-01T00:00:00Z"), future),
            (json!((START + 1) as f64 + 0.5), form),
            (json!("2027-01-01"), form),
            (json!("2027-01-01T00:00:00"), form),
            (json!(""), form),
            (json!((START + 1).to_string()), form),
            (json!(i64::MAX), form),
            (json!(true), form),
            (json!([]), form),
        ] {
            let reply = app
                .post("/api-keys", json!({"name": "n", "expires_at": end}))
                .bearer(&token)
                .await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error.to_owned()]),
                "{end}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn invalid_creation_is_400_with_the_field_and_creates_nothing() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        let empty = "must not be empty; on creation, omit the field to set no restriction";
        let reference = "each item must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -";
        let cases = [
            (json!({}), "/name is required".to_owned()),
            (json!({"name": null}), "/name must be a string".to_owned()),
            (json!({"name": 5}), "/name must be a string".to_owned()),
            (json!({"name": ""}), "/name must have 1 to 255 characters".to_owned()),
            (json!({"name": " \t\n "}), "/name must have 1 to 255 characters".to_owned()),
            (json!({"name": "x".repeat(256)}), "/name must have 1 to 255 characters".to_owned()),
            (json!({"name": "a\u{7}b"}), "/name must not contain control characters".to_owned()),
            (json!({"name": "n", "scope": "payments"}), "/scope must be commerce".to_owned()),
            (json!({"name": "n", "scope": ["commerce"]}), "/scope must be a string".to_owned()),
            (json!({"name": "n", "mode": "sandbox"}), "/mode must be one of live, test".to_owned()),
            (json!({"name": "n", "mode": "LIVE"}), "/mode must be one of live, test".to_owned()),
            (json!({"name": "n", "mode": []}), "/mode must be a string".to_owned()),
            (json!({"name": "n", "mode": {"test": null}}), "/mode must be a string".to_owned()),
            (json!({"name": "n", "scope": {"commerce": null}}), "/scope must be a string".to_owned()),
            (
                json!({"name": "n", "scopes": []}),
                "/scopes must not be empty; on creation, omit the field for the default, [\"commerce\"]".to_owned(),
            ),
            (json!({"name": "n", "scopes": "links:read"}), "/scopes must be an array".to_owned()),
            (json!({"name": "n", "scopes": [null]}), "/scopes/0 must be a string".to_owned()),
            (json!({"name": "n", "merchants": []}), format!("/merchants {empty}")),
            (json!({"name": "n", "merchants": [""]}), format!("/merchants {reference}")),
            (json!({"name": "n", "merchants": ["m 1"]}), format!("/merchants {reference}")),
            (json!({"name": "n", "merchants": ["*"]}), format!("/merchants {reference}")),
            (json!({"name": "n", "merchants": ["m".repeat(129)]}), format!("/merchants {reference}")),
            (
                json!({"name": "n", "merchants": (0..101).map(|n| format!("m_{n}")).collect::<Vec<_>>()}),
                "/merchants must have at most 100 items".to_owned(),
            ),
            (json!({"name": "n", "features": []}), format!("/features {empty}")),
            (
                json!({"name": "n", "features": ["tokens.delete"]}),
                format!("/features must be one of {}", Feature::ALL.map(Feature::as_str).join(", ")),
            ),
            (
                json!({"name": "n", "allowed_ips": []}),
                "/allowed_ips must not be empty; on creation, omit the field to set no restriction".to_owned(),
            ),
            (
                json!({"name": "n", "allowed_ips": ["10.0.0.1/8"]}),
                "/allowed_ips `10.0.0.1/8` has host bits set; did you mean `10.0.0.0/8`?".to_owned(),
            ),
            (json!({"name": "n", "rate_limit": []}), "/rate_limit must be an object".to_owned()),
            (json!({"name": "n", "rate_limit": [1, 60]}), "/rate_limit must be an object".to_owned()),
            (json!({"name": "n", "rate_limit": {"limit": 1}}), "/rate_limit/window_seconds is required".to_owned()),
            (
                json!({"name": "n", "rate_limit": {"limit": 1, "window_seconds": 86_401}}),
                "/rate_limit/window_seconds must be between 1 and 86400".to_owned(),
            ),
            (
                json!({"name": "n", "rate_limit": {"limit": 1, "window_seconds": 1, "burst": 9}}),
                "/rate_limit/burst is unknown".to_owned(),
            ),
            (json!({"name": "n", "metadata": []}), "/metadata must be an object".to_owned()),
            (
                json!({"name": "n", "metadata": {"x": "y".repeat(4096)}}),
                "/metadata must be at most 4096 bytes of JSON".to_owned(),
            ),
            // Fields of other APIs, and fields that the server sets.
            (
                json!({"name": "n", "expiresAt": null}),
                "/expiresAt is unknown; use `expires_at`".to_owned(),
            ),
            (json!({"name": "n", "description": "d"}), "/description is unknown".to_owned()),
            (json!({"name": "n", "account_id": "globex"}), "/account_id is unknown".to_owned()),
            (json!({"name": "n", "application_id": null}), "/application_id is unknown".to_owned()),
            (json!({"name": "n", "family": "secret"}), "/family is unknown".to_owned()),
            (json!({"name": "n", "status": "active"}), "/status is unknown".to_owned()),
            (json!({"name": "n", "rotated_from": null}), "/rotated_from is unknown".to_owned()),
            (json!({"name": "n", "api_key": "x"}), "/api_key is unknown".to_owned()),
            (json!([{"name": "n"}]), " The body must be a JSON object.".to_owned()),
        ];
        for (body, error) in cases {
            let reply = app.post("/api-keys", body.clone()).bearer(&token).await;
            assert_eq!((reply.status, reply.errors()), (400, vec![error]), "{body}");
        }
        // All errors in one response.
        let body = json!({
            "name": "", "scopes": [], "expires_at": 0, "merchants": [], "features": [], "allowed_ips": [],
            "rate_limit": {"limit": 0, "window_seconds": 0}, "metadata": {"x": "\u{0}"}
        });
        let reply = app.post("/api-keys", body).bearer(&token).await;
        let pointers: Vec<String> =
            reply.errors().iter().map(|error| error.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(
            pointers,
            [
                "/name",
                "/scopes",
                "/expires_at",
                "/merchants",
                "/features",
                "/allowed_ips",
                "/rate_limit/limit",
                "/rate_limit/window_seconds",
                "/metadata"
            ]
        );
        assert_eq!(app.get("/api-keys").bearer(&token).await.json(), json!([]));
        assert_eq!(app.get("/audit-log?action=api_key.created").bearer(&token).await.json(), json!([]));

        let longest = "é".repeat(255);
        let reply = app.post("/api-keys", json!({"name": longest})).bearer(&token).await;
        assert_eq!((reply.status, &reply.json()["name"]), (201, &json!(longest)));
    })
    .await;
}

// Request: revoke

#[actix_web::test]
async fn revocation_has_the_documented_response() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let other = app.commerce_key(&token, json!({})).await;
        assert_eq!(app.code(&key.text).await, "valid");
        app.clock.advance(Duration::from_secs(5));
        assert_response!(act(app, &token, &key, "revoke").await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNEW8D9XFSK1DK65GCCHR

        {
          "message": "API key revoked successfully"
        }
        "#);
        assert_eq!(app.code(&key.text).await, "revoked");
        assert_eq!(app.code(&other.text).await, "valid");
        let revoked = row(app, &token, &key).await;
        assert_eq!(
            [
                &revoked["status"],
                &revoked["revoked_at"],
                &revoked["revoked_reason"]
            ],
            [&json!("revoked"), &json!(START + 5), &Value::Null]
        );
        // A repeated revocation changes nothing, not even the reason, and adds no audit entry.
        app.clock.advance(Duration::from_secs(5));
        let again = app
            .post(
                &format!("{}/revoke", path(&key)),
                json!({"reason": "again"}),
            )
            .bearer(&token)
            .await;
        assert_eq!(
            (again.status, again.body.as_str()),
            (200, r#"{"message":"API key revoked successfully"}"#)
        );
        assert_eq!(row(app, &token, &key).await, revoked);
        let actions: Vec<String> = log(app, &token, &key)
            .await
            .into_iter()
            .map(|(action, _)| action)
            .collect();
        assert_eq!(actions, ["api_key.created", "api_key.revoked"]);
    })
    .await;
}

#[actix_web::test]
async fn revocation_has_an_optional_body_with_a_reason() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let longest = "é".repeat(255);
        for (body, reason) in [
            (None, Value::Null),
            (Some(json!({})), Value::Null),
            (Some(json!({"reason": null})), Value::Null),
            (Some(json!({"reason": "  "})), Value::Null),
            (Some(json!({"reason": " leaked "})), json!("leaked")),
            (Some(json!({"reason": longest})), json!(longest)),
        ] {
            let key = app.commerce_key(&token, json!({})).await;
            let call = app
                .call("POST", &format!("/api-keys/{}/revoke", crockford(&key.id)))
                .bearer(&token);
            let reply = body.clone().map_or_else(
                || call,
                |body| {
                    app.post(&format!("/api-keys/{}/revoke", crockford(&key.id)), body)
                        .bearer(&token)
                },
            );
            let reply = reply.await;
            assert_eq!(reply.status, 200, "{body:?} {reply}");
            assert_eq!(
                row(app, &token, &key).await["revoked_reason"],
                reason,
                "{body:?}"
            );
            let changes = json!({"status": "revoked", "reason": reason});
            assert_eq!(
                log(app, &token, &key).await[1],
                ("api_key.revoked".to_owned(), changes)
            );
        }
        let key = app.commerce_key(&token, json!({})).await;
        for (body, error) in [
            (
                json!({"reason": "x".repeat(256)}),
                "/reason must have at most 255 characters",
            ),
            (
                json!({"reason": "a\u{1b}b"}),
                "/reason must not contain control characters",
            ),
            (json!({"reason": 7}), "/reason must be a string"),
            (json!({"because": "x"}), "/because is unknown"),
            (json!([]), " The body must be a JSON object."),
        ] {
            let reply = app
                .post(&format!("{}/revoke", path(&key)), body.clone())
                .bearer(&token)
                .await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error.to_owned()]),
                "{body}"
            );
        }
        let form = act(app, &token, &key, "revoke").form("reason=x").await;
        assert_eq!(
            (form.status, form.code().as_str()),
            (415, "unsupported_media_type")
        );
        assert_eq!(status(app, &token, &key).await, "active");
    })
    .await;
}

// Authentication and errors

#[actix_web::test]
async fn key_management_requires_a_management_token() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let secret = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let calls = |app: &App| {
            let path = path(&key);
            [
                app.get("/api-keys?scope=commerce"),
                app.post("/api-keys", json!({"name": "n"})),
                app.get(&path),
                app.patch(&path, json!({"name": "n"})),
                app.call("POST", &format!("{path}/revoke")),
                app.call("POST", &format!("{path}/suspend")),
                app.call("POST", &format!("{path}/resume")),
                app.call("POST", &format!("{path}/rotate")),
            ]
        };
        for call in calls(app) {
            let reply = call.await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (401, "missing_credentials")
            );
            assert!(
                reply
                    .header("www-authenticate")
                    .is_some_and(|challenge| challenge.starts_with("Bearer"))
            );
        }
        for call in calls(app) {
            let reply = call.bearer("eyEXAMPLE.eyEXAMPLE.EXAMPLE").await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (401, "invalid_token")
            );
        }
        for valid in [
            &key.text,
            &secret,
            &app.service_key().await.text,
            &app.service(),
        ] {
            for call in calls(app) {
                let reply = call.bearer(valid).await;
                assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
            }
        }
        for call in calls(app) {
            let reply = call.header("x-commerce-api-key", &key.text).await;
            assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
        }
        assert_eq!(status(app, &token, &key).await, "active");
        assert_eq!(
            ids(&app.get("/api-keys").bearer(&token).await.json()),
            [key.id.as_str()]
        );
    })
    .await;
}

#[actix_web::test]
async fn commerce_operations_accept_x_commerce_api_key() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let gone = app.commerce_key(&token, json!({})).await;
        assert_eq!(act(app, &token, &gone, "revoke").await.status, 200);
        let suspended = app.commerce_key(&token, json!({})).await;
        assert_eq!(act(app, &token, &suspended, "suspend").await.status, 200);
        let expired = app.commerce_key(&token, json!({"expires_at": START + 10})).await;
        app.clock.advance(Duration::from_secs(10));
        assert_response!(app.get("/whoami").header("x-commerce-api-key", &key.text).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRGAQ4W691G5322W014

        {
          "id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "family": "commerce",
          "mode": "live",
          "status": "active",
          "account_id": "acme",
          "application_id": null,
          "name": "Commerce Server Key",
          "scopes": [
            "commerce",
            "links:read",
            "links:write",
            "sessions:read",
            "sessions:write",
            "webhooks:read",
            "webhooks:write",
            "events:read",
            "customers:read",
            "customers:write"
          ],
          "merchants": null,
          "features": null,
          "created_at": 1767225600,
          "expires_at": null
        }
        "#);
        assert_response!(app.get("/whoami").await, @r#"
        401
        cache-control: no-store
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey"
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRGMMYS0CFFQTCVJ070

        {
          "type": "urn:tollkey:problem:missing_credentials",
          "title": "A credential is required",
          "status": 401,
          "detail": "Send a credential in the Authorization header with the scheme Bearer.",
          "code": "missing_credentials",
          "request_id": "req_01KDVDNKRGMMYS0CFFQTCVJ070"
        }
        "#);
        assert_response!(app.get("/whoami").header("x-commerce-api-key", &gone.text).await, @r#"
        401
        cache-control: no-store
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey", error="invalid_token", error_description="The API key is unknown or revoked. Check the key, or use another one."
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRGXKQ6TD12KNEQ85FY

        {
          "type": "urn:tollkey:problem:invalid_api_key",
          "title": "The API key is not valid",
          "status": 401,
          "detail": "The API key is unknown or revoked. Check the key, or use another one.",
          "code": "invalid_api_key",
          "request_id": "req_01KDVDNKRGXKQ6TD12KNEQ85FY"
        }
        "#);
        assert_response!(app.get("/whoami").header("x-commerce-api-key", &suspended.text).await, @r#"
        403
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRGYAN7R9TDP6ZFX3V4

        {
          "type": "urn:tollkey:problem:suspended",
          "title": "Key suspended",
          "status": 403,
          "detail": "The key is suspended. Resume it, or use another key.",
          "code": "suspended",
          "request_id": "req_01KDVDNKRGYAN7R9TDP6ZFX3V4"
        }
        "#);
        assert_response!(app.get("/whoami").header("x-commerce-api-key", &expired.text).await, @r#"
        403
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNKRGJRMMAS0GCK8A4M5G

        {
          "type": "urn:tollkey:problem:expired",
          "title": "Key expired",
          "status": 403,
          "detail": "The key has expired. Use another key.",
          "code": "expired",
          "request_id": "req_01KDVDNKRGJRMMAS0GCK8A4M5G"
        }
        "#);

        let unknown = app.generate_key(Family::Commerce, Mode::Live).expose().to_owned();
        for at in ["/whoami", "/authz/forward-auth", "/authz/auth-request", "/authz/ext-authz/-/orders"] {
            assert_eq!(app.get(at).await.status, 401, "{at}");
            for (key, status, code) in [
                (&key.text, 200, ""),
                (&unknown, 401, "invalid_api_key"),
                (&gone.text, 401, "invalid_api_key"),
                (&"ck_live_short".to_owned(), 401, "invalid_api_key"),
                (&suspended.text, 403, "suspended"),
                (&expired.text, 403, "expired"),
            ] {
                let reply = app.get(at).header("x-commerce-api-key", key).await;
                assert_eq!(reply.status, status, "{at} {code} {reply}");
                if status != 200 {
                    assert_eq!(reply.code(), code, "{at}");
                }
            }
            let twice = app.get(at).header("x-commerce-api-key", &key.text).bearer(&key.text).await;
            assert_eq!((twice.status, twice.code().as_str()), (400, "multiple_credentials"), "{at}");
            let query = app.get(&format!("{at}?x-commerce-api-key={}", key.text)).await;
            assert_ne!(query.status, 200, "{at}: not accepted in the query");
        }
        for (key, expected) in [(&key, "active"), (&gone, "revoked"), (&suspended, "suspended"), (&expired, "expired")] {
            assert_eq!(status(app, &token, key).await, expected);
        }
    })
    .await;
}

#[actix_web::test]
async fn only_successful_uses_update_last_used_at() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"scopes": ["links:read"]}))
            .await;
        let last_used = async || {
            app.running().state().service.flush_usage().await;
            row(app, &token, &key).await["last_used_at"].clone()
        };
        assert_eq!(last_used().await, Value::Null);
        let at = |app: &App, path: &str| app.get(path).header("x-commerce-api-key", &key.text);
        assert_eq!(at(app, "/whoami").await.status, 200);
        assert_eq!(last_used().await, json!(START));
        app.clock.advance(Duration::from_secs(7));
        assert_eq!(
            at(app, "/authz/forward-auth?scope=links:read").await.status,
            200
        );
        assert_eq!(last_used().await, json!(START + 7));
        // Denials, management calls and suspension do not change it.
        app.clock.advance(Duration::from_secs(7));
        assert_eq!(
            at(app, "/authz/forward-auth?scope=links:write")
                .await
                .status,
            403
        );
        assert_eq!(
            app.patch(&path(&key), json!({"name": "New"}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(act(app, &token, &key, "suspend").await.status, 200);
        assert_eq!(at(app, "/whoami").await.status, 403);
        assert_eq!(last_used().await, json!(START + 7));
        // Uses that are not yet written survive a change of the key and its revocation.
        assert_eq!(act(app, &token, &key, "resume").await.status, 200);
        assert_eq!(at(app, "/whoami").await.status, 200);
        assert_eq!(
            app.patch(&path(&key), json!({"name": "Newer"}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(last_used().await, json!(START + 14));
        app.clock.advance(Duration::from_secs(7));
        assert_eq!(at(app, "/whoami").await.status, 200);
        assert_eq!(act(app, &token, &key, "revoke").await.status, 200);
        assert_eq!(last_used().await, json!(START + 21));
        assert_eq!(
            row(app, &token, &key).await["name"],
            "Newer",
            "writing the usage changes nothing else"
        );
    })
    .await;
}

// Additions to pepay's document: get

#[actix_web::test]
async fn get_returns_the_row_of_the_list_for_either_id_format() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"metadata": {"a": [1]}}))
            .await;
        let list = app.get("/api-keys").bearer(&token).await.json();
        for id in [
            key.id.clone(),
            crockford(&key.id),
            crockford(&key.id).to_lowercase(),
        ] {
            let reply = app.get(&format!("/api-keys/{id}")).bearer(&token).await;
            assert_eq!(reply.json(), list[0], "{id}");
        }
        let head = app.call("HEAD", &path(&key)).bearer(&token).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    })
    .await;
}

#[actix_web::test]
async fn inaccessible_keys_and_malformed_ids_are_the_same_404() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let theirs = app
            .commerce_key(&app.management_token("globex"), json!({}))
            .await;
        let application = app.application(&token, "Web Store").await;
        let of_application = app.key(&token, &application, json!({})).await;
        let secret = app
            .insert(
                "acme",
                &app.generate_key(Family::Secret, Mode::Live),
                |_| (),
            )
            .await;
        let publishable = app
            .insert(
                "acme",
                &app.generate_key(Family::Publishable, Mode::Test),
                |_| (),
            )
            .await;
        let unknown = "01890000-0000-7000-8000-000000000000".to_owned();
        let ids = [
            unknown.clone(),
            crockford(&unknown),
            theirs.id.clone(),
            crockford(&theirs.id),
            of_application.id.clone(),
            secret.id.clone(),
            publishable.id.clone(),
            application,
            "nonsense".to_owned(),
            "%20".to_owned(),
        ];
        for (method, rest, body) in [
            ("GET", "", None),
            ("PATCH", "", Some(json!({"name": "Mine"}))),
            ("POST", "/revoke", None),
            ("POST", "/suspend", None),
            ("POST", "/resume", None),
            ("POST", "/rotate", None),
        ] {
            let mut replies = Vec::new();
            for id in &ids {
                let call = app
                    .call(method, &format!("/api-keys/{id}{rest}"))
                    .bearer(&token);
                let call = call.header("x-request-id", "same");
                let call = if let Some(body) = &body {
                    call.json(body.clone())
                } else {
                    call
                };
                let reply = call.await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (404, "not_found"),
                    "{method} {id}{rest}"
                );
                replies.push(reply.to_string());
            }
            replies.dedup();
            assert_eq!(replies.len(), 1, "{method} {rest}");
        }
        let theirs = row(app, &app.management_token("globex"), &theirs).await;
        assert_eq!(
            (&theirs["status"], &theirs["name"]),
            (&json!("active"), &json!("Commerce Server Key"))
        );
        for key in [&of_application.text, &secret.text] {
            assert_eq!(app.code(key).await, "valid");
        }
    })
    .await;
}

// Suspend and resume

#[actix_web::test]
async fn suspended_key_is_denied_until_it_is_resumed() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let active = row(app, &token, &key).await;
        assert_eq!(app.code(&key.text).await, "valid");
        assert_response!(act(app, &token, &key, "suspend").await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00YGM6CM5JKNZ6EGBG

        {
          "key_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "name": "Commerce Server Key",
          "scope": "commerce",
          "status": "suspended",
          "expires_at": null,
          "last_used_at": null,
          "created_at": 1767225600,
          "revoked_at": null,
          "revoked_reason": null,
          "mode": "live",
          "scopes": [
            "commerce"
          ],
          "prefix": "ck_live_9yYtHh",
          "last4": "fmUQ",
          "merchants": null,
          "features": null,
          "allowed_ips": null,
          "rate_limit": null,
          "metadata": null,
          "rotated_from": null,
          "rotated_to": null
        }
        "#);
        assert_eq!(app.code(&key.text).await, "suspended");
        let again = act(app, &token, &key, "suspend").json(json!({})).await;
        assert_eq!(
            (again.status, &again.json()),
            (200, &row(app, &token, &key).await)
        );
        let resumed = act(app, &token, &key, "resume").await;
        assert_eq!((resumed.status, &resumed.json()), (200, &active));
        assert_eq!(app.code(&key.text).await, "valid");
        assert_eq!(
            act(app, &token, &key, "resume")
                .json(json!({}))
                .await
                .json(),
            active
        );
        // Repeated calls add no audit entry.
        assert_eq!(
            log(app, &token, &key).await[1..],
            [
                (
                    "api_key.suspended".to_owned(),
                    json!({"status": "suspended"})
                ),
                ("api_key.resumed".to_owned(), json!({"status": "active"})),
            ]
        );
        for action in ["suspend", "resume"] {
            let reply = act(app, &token, &key, action)
                .json(json!({"reason": "x"}))
                .await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec!["/reason is unknown".to_owned()]),
                "{action}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn revoked_and_expired_keys_cannot_be_changed() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let revoked = app.commerce_key(&token, json!({})).await;
        let suspended = app.commerce_key(&token, json!({})).await;
        assert_eq!(act(app, &token, &suspended, "suspend").await.status, 200);
        for key in [&revoked, &suspended] {
            assert_eq!(act(app, &token, key, "revoke").await.status, 200);
        }
        let expired = app.commerce_key(&token, json!({"expires_at": START + 1})).await;
        app.clock.advance(Duration::from_secs(1));
        assert_response!(act(app, &token, &revoked, "resume").await, @r#"
        409
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNAZ856T343WG6WYETWJ2

        {
          "type": "urn:tollkey:problem:key_revoked",
          "title": "The key is revoked",
          "status": 409,
          "detail": "The key is revoked. Revocation is final; create another key.",
          "code": "key_revoked",
          "request_id": "req_01KDVDNAZ856T343WG6WYETWJ2"
        }
        "#);
        assert_response!(app.patch(&path(&expired), json!({"expires_at": null})).bearer(&token).await, @r#"
        409
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNAZ8KJ4FK80SK4G2M22B

        {
          "type": "urn:tollkey:problem:key_expired",
          "title": "The key has expired",
          "status": 409,
          "detail": "The key has expired. Create another key.",
          "code": "key_expired",
          "request_id": "req_01KDVDNAZ8KJ4FK80SK4G2M22B"
        }
        "#);
        for key in [&revoked, &suspended] {
            let before = row(app, &token, key).await;
            for action in ["suspend", "resume", "rotate"] {
                let reply = act(app, &token, key, action).await;
                assert_eq!((reply.status, reply.code().as_str()), (409, "key_revoked"), "{action}");
            }
            for patch in [json!({"name": "New"}), json!({"expires_at": null}), json!({})] {
                let reply = app.patch(&path(key), patch.clone()).bearer(&token).await;
                assert_eq!((reply.status, reply.code().as_str()), (409, "key_revoked"), "{patch}");
            }
            assert_eq!(row(app, &token, key).await, before);
            assert_eq!(app.code(&key.text).await, "revoked");
        }
        for patch in [json!({"name": "New"}), json!({"expires_at": START + 1000}), json!({})] {
            let reply = app.patch(&path(&expired), patch.clone()).bearer(&token).await;
            assert_eq!((reply.status, reply.code().as_str()), (409, "key_expired"), "{patch}");
        }
        let rotated = act(app, &token, &expired, "rotate").await;
        assert_eq!((rotated.status, rotated.code().as_str()), (409, "key_expired"));
        assert_eq!(app.code(&expired.text).await, "expired");
        // An expired key can still be suspended or resumed, but stays expired.
        for action in ["suspend", "resume"] {
            let reply = act(app, &token, &expired, action).await;
            assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("expired")), "{action}");
            assert_eq!(app.code(&expired.text).await, "expired");
        }
        // A suspended key can be changed, and stays suspended.
        let key = app.commerce_key(&token, json!({})).await;
        assert_eq!(act(app, &token, &key, "suspend").await.status, 200);
        let reply = app.patch(&path(&key), json!({"name": "New"})).bearer(&token).await;
        assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("suspended")));
        // Revocation takes precedence over suspension.
        assert_eq!(act(app, &token, &key, "revoke").await.status, 200);
        assert_eq!(status(app, &token, &key).await, "revoked");
        assert_eq!(act(app, &token, &expired, "revoke").await.status, 200);
        assert_eq!(status(app, &token, &expired).await, "revoked");
    })
    .await;
}

// Patch

/// A key with a value in every field.
async fn full(app: &App, token: &str) -> Key {
    let body = json!({
        "name": "Server", "scopes": ["links:read", "links:write"], "expires_at": START + 1000,
        "merchants": ["m_1"], "features": ["tokens.list"], "allowed_ips": ["203.0.113.0/24"],
        "rate_limit": {"limit": 5, "window_seconds": 60}, "metadata": {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    });
    app.commerce_key(token, body).await
}

#[actix_web::test]
async fn merge_patch_sets_values_and_clears_nulls() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        let end = START + 1000;
        let was = json!({"limit": 5, "window_seconds": 60});
        let cases = [
            (json!({"name": " New "}), json!({"name": "New"}), json!({"name": ["Server", "New"]})),
            (json!({"mode": "live"}), json!({}), json!({})),
            (
                json!({"scopes": ["customers:read"]}),
                json!({"scopes": ["customers:read"]}),
                json!({"scopes": [["links:read", "links:write"], ["customers:read"]]}),
            ),
            (
                json!({"scopes": null}),
                json!({"scopes": ["commerce"]}),
                json!({"scopes": [["links:read", "links:write"], ["commerce"]]}),
            ),
            (json!({"expires_at": null}), json!({"expires_at": null}), json!({"expires_at": [end, null]})),
            (json!({"expires_at": START + 5}), json!({"expires_at": START + 5}), json!({"expires_at": [end, START + 5]})),
            (
                json!({"expires_at": "2026-01-01T01:00:00+00:00"}),
                json!({"expires_at": START + 3600}),
                json!({"expires_at": [end, START + 3600]}),
            ),
            (
                json!({"merchants": ["m_3", "m_2"]}),
                json!({"merchants": ["m_3", "m_2"]}),
                json!({"merchants": [["m_1"], ["m_3", "m_2"]]}),
            ),
            (
                json!({"features": ["tokens.retrieve"]}),
                json!({"features": ["tokens.retrieve"]}),
                json!({"features": [["tokens.list"], ["tokens.retrieve"]]}),
            ),
            (
                json!({"allowed_ips": ["2001:db8::/32"]}),
                json!({"allowed_ips": ["2001:db8::/32"]}),
                json!({"allowed_ips": [["203.0.113.0/24"], ["2001:db8::/32"]]}),
            ),
            (json!({"allowed_ips": null}), json!({"allowed_ips": null}), json!({"allowed_ips": [["203.0.113.0/24"], null]})),
            (
                json!({"rate_limit": {"limit": 9}}),
                json!({"rate_limit": {"limit": 9, "window_seconds": 60}}),
                json!({"rate_limit": [was, {"limit": 9, "window_seconds": 60}]}),
            ),
            (
                json!({"rate_limit": {"window_seconds": 1}}),
                json!({"rate_limit": {"limit": 5, "window_seconds": 1}}),
                json!({"rate_limit": [was, {"limit": 5, "window_seconds": 1}]}),
            ),
            (
                json!({"rate_limit": {"limit": 1, "window_seconds": 2}}),
                json!({"rate_limit": {"limit": 1, "window_seconds": 2}}),
                json!({"rate_limit": [was, {"limit": 1, "window_seconds": 2}]}),
            ),
            (json!({"rate_limit": {}}), json!({}), json!({})),
            (json!({"rate_limit": null}), json!({"rate_limit": null}), json!({"rate_limit": [was, null]})),
            // Metadata may be personal data, so the permanent audit log only records that it changed.
            (json!({"metadata": null}), json!({"metadata": null}), json!({"metadata": "changed"})),
            (json!({"metadata": {}}), json!({}), json!({})),
            (
                json!({"metadata": {"a": {"b": null, "e": 3}, "d": {"x": null, "y": 1}, "z": null}}),
                json!({"metadata": {"a": {"c": 2, "e": 3}, "d": {"y": 1}}}),
                json!({"metadata": "changed"}),
            ),
            (
                json!({"metadata": {"a": 1, "f": [null]}}),
                json!({"metadata": {"a": 1, "d": [1, 2], "f": [null]}}),
                json!({"metadata": "changed"}),
            ),
            (json!({"metadata": {"d": [1, 2]}}), json!({}), json!({})),
            // Up to 4096 bytes after merging.
            (
                json!({"metadata": {"x": "y".repeat(4060)}}),
                json!({"metadata": {"a": {"b": 1, "c": 2}, "d": [1, 2], "x": "y".repeat(4060)}}),
                json!({"metadata": "changed"}),
            ),
            (
                json!({"name": "Server", "scopes": ["links:read", "links:write"], "expires_at": end}),
                json!({}),
                json!({}),
            ),
            (
                json!({"name": "New", "allowed_ips": null, "rate_limit": null}),
                json!({"name": "New", "allowed_ips": null, "rate_limit": null}),
                json!({"name": ["Server", "New"], "allowed_ips": [["203.0.113.0/24"], null], "rate_limit": [was, null]}),
            ),
            (json!({}), json!({}), json!({})),
        ];
        let other = full(app, &token).await;
        let untouched = row(app, &token, &other).await;
        for (patch, differs, changes) in cases {
            let key = full(app, &token).await;
            let mut expected = row(app, &token, &key).await;
            for (field, value) in differs.as_object().unwrap() {
                expected[field] = value.clone();
            }
            let reply = app.patch(&path(&key), patch.clone()).bearer(&token).await;
            assert_eq!((reply.status, &reply.json()), (200, &expected), "{patch}");
            assert_eq!(row(app, &token, &key).await, expected, "{patch}");
            let mut entries = vec![];
            if changes != json!({}) {
                entries.push(("api_key.updated".to_owned(), changes));
            }
            assert_eq!(log(app, &token, &key).await[1..], entries, "{patch}");
            // Repeating the patch changes nothing.
            assert_eq!(app.patch(&path(&key), patch.clone()).bearer(&token).await.json(), expected, "{patch}");
            assert_eq!(log(app, &token, &key).await.len(), 1 + entries.len(), "{patch}");
        }
        assert_eq!(row(app, &token, &other).await, untouched);
    })
    .await;
}

#[actix_web::test]
async fn empty_body_is_an_empty_object() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let reply = app.call("POST", "/api-keys").bearer(&token).await;
        assert_eq!(
            (reply.status, reply.errors()),
            (400, vec!["/name is required".to_owned()])
        );
        let key = app.commerce_key(&token, json!({})).await;
        let before = row(app, &token, &key).await;
        let reply = app.call("PATCH", &path(&key)).bearer(&token).await;
        assert_eq!((reply.status, reply.json()), (200, before));
    })
    .await;
}

#[actix_web::test]
async fn merge_patch_of_a_key_without_optional_values() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        for (patch, differs) in [
            // Null for an absent value changes nothing.
            (
                json!({"expires_at": null, "merchants": null, "features": null}),
                json!({}),
            ),
            (
                json!({"allowed_ips": null, "rate_limit": null, "metadata": null, "scopes": null}),
                json!({}),
            ),
            (json!({"merchants": ["m_1"]}), json!({"merchants": ["m_1"]})),
            (
                json!({"features": ["tokens.list"]}),
                json!({"features": ["tokens.list"]}),
            ),
            (
                json!({"allowed_ips": ["192.0.2.1/32"]}),
                json!({"allowed_ips": ["192.0.2.1/32"]}),
            ),
            (
                json!({"rate_limit": {"limit": 1, "window_seconds": 2}}),
                json!({"rate_limit": {"limit": 1, "window_seconds": 2}}),
            ),
            (
                json!({"metadata": {"a": null, "b": {"c": null, "d": 1}}}),
                json!({"metadata": {"b": {"d": 1}}}),
            ),
        ] {
            let key = app.commerce_key(&token, json!({})).await;
            let mut expected = row(app, &token, &key).await;
            for (field, value) in differs.as_object().unwrap() {
                expected[field] = value.clone();
            }
            // The media type of merge patches is accepted, too.
            let call = app
                .call("PATCH", &path(&key))
                .header("content-type", "application/merge-patch+json");
            let reply = call.body(patch.to_string()).bearer(&token).await;
            assert_eq!((reply.status, &reply.json()), (200, &expected), "{patch}");
        }
        let key = app.commerce_key(&token, json!({})).await;
        for (patch, error) in [
            (json!({"rate_limit": {}}), "/rate_limit requires `limit`"),
            (
                json!({"rate_limit": {"limit": 5}}),
                "/rate_limit requires `window_seconds`",
            ),
            (
                json!({"rate_limit": {"window_seconds": 5}}),
                "/rate_limit requires `limit`",
            ),
        ] {
            let reply = app.patch(&path(&key), patch.clone()).bearer(&token).await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error.to_owned()]),
                "{patch}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn invalid_merge_patch_changes_nothing() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        let key = full(app, &token).await;
        let before = row(app, &token, &key).await;
        let cleared = |field: &str| vec![format!("/{field} cannot be cleared")];
        let empty = "must not be empty; on creation, omit the field to set no restriction";
        let one = |error: &str| vec![error.to_owned()];
        let cases = [
            (json!({"name": null}), cleared("name")),
            (json!({"name": " "}), one("/name must have 1 to 255 characters")),
            (json!({"mode": null}), cleared("mode")),
            (json!({"mode": "test"}), one("/mode cannot be changed after creation")),
            (json!({"mode": "none"}), one("/mode must be one of live, test")),
            (json!({"scopes": []}), one("/scopes must not be empty; on creation, omit the field for the default, [\"commerce\"]")),
            (json!({"expires_at": START}), one("/expires_at must be in the future")),
            (json!({"merchants": null}), cleared("merchants")),
            (json!({"features": null}), cleared("features")),
            (
                json!({"merchants": null, "features": null, "mode": "test", "name": "New"}),
                vec![
                    "/mode cannot be changed after creation".to_owned(),
                    "/merchants cannot be cleared".to_owned(),
                    "/features cannot be cleared".to_owned(),
                ],
            ),
            (json!({"merchants": []}), vec![format!("/merchants {empty}")]),
            (json!({"features": []}), vec![format!("/features {empty}")]),
            (json!({"allowed_ips": []}), one("/allowed_ips must not be empty; on creation, omit the field to set no restriction")),
            (json!({"rate_limit": {"limit": null}}), one("/rate_limit/limit cannot be cleared")),
            (json!({"rate_limit": {"limit": 0}}), one("/rate_limit/limit must be between 1 and 1000000")),
            (
                json!({
                    "name": "", "expires_at": START, "rate_limit": {"limit": 0, "window_seconds": 0},
                    "metadata": {"x": "y".repeat(5000)},
                }),
                vec![
                    "/name must have 1 to 255 characters".to_owned(),
                    "/expires_at must be in the future".to_owned(),
                    "/rate_limit/limit must be between 1 and 1000000".to_owned(),
                    "/rate_limit/window_seconds must be between 1 and 86400".to_owned(),
                    "/metadata must be at most 4096 bytes of JSON".to_owned(),
                ],
            ),
            (json!({"rate_limit": []}), one("/rate_limit must be an object")),
            (json!({"rate_limit": [9, 9]}), one("/rate_limit must be an object")),
            (json!({"rate_limit": {"burst": 1}}), one("/rate_limit/burst is unknown")),
            (json!({"metadata": []}), one("/metadata must be an object")),
            (json!({"metadata": "x"}), one("/metadata must be an object")),
            (json!({"metadata": {"x": "y".repeat(4061)}}), one("/metadata must be at most 4096 bytes of JSON")),
            (json!({"scope": "commerce"}), one("/scope is unknown; did you mean `scopes`?")),
            (json!({"status": "active"}), one("/status is unknown")),
            (json!({"key_id": key.id}), one("/key_id is unknown")),
            (json!({"account_id": "globex"}), one("/account_id is unknown")),
            (json!({"revoked_at": null}), one("/revoked_at is unknown")),
            (json!([]), one(" The body must be a JSON object.")),
            (json!(null), one(" The body must be a JSON object.")),
        ];
        for (patch, errors) in cases {
            let reply = app.patch(&path(&key), patch.clone()).bearer(&token).await;
            assert_eq!((reply.status, reply.errors()), (400, errors), "{patch}");
        }
        let form = app.call("PATCH", &path(&key)).form("name=x").bearer(&token).await;
        assert_eq!(form.status, 415);
        assert_eq!(row(app, &token, &key).await, before);
        assert_eq!(log(app, &token, &key).await.len(), 1);
    })
    .await;
}

// Propagation of changes

#[actix_web::test]
async fn change_applies_on_all_replicas_after_its_response() {
    each_backend_with_replica(None, async |app: &App, replica: &RunningServer| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        let key = app.commerce_key(&token, json!({})).await;
        let request = json!({
            "key": key.text, "method": "GET", "path": "/tokens", "merchant": "m_1", "client_ip": "203.0.113.7",
            "scopes": ["links:read"]
        });
        let assert_code = async |expected: &str, after: &str| {
            for at in [app.running().address(), replica.address()] {
                for _ in 0..2 {
                    let call = Call::new(at, "POST", "/verify").json(request.clone()).bearer(&app.service());
                    assert_eq!(call.await.json()["code"], expected, "{after}");
                }
            }
        };
        assert_code("valid", "created").await;
        for (action, expected) in [("suspend", "suspended"), ("resume", "valid")] {
            assert_eq!(act(app, &token, &key, action).await.status, 200);
            assert_code(expected, action).await;
        }
        for (patch, expected) in [
            (json!({"scopes": ["links:write"]}), "insufficient_scope"),
            (json!({"scopes": null}), "valid"),
            (json!({"allowed_ips": ["198.51.100.0/24"]}), "ip_not_allowed"),
            (json!({"allowed_ips": ["203.0.113.0/24"]}), "valid"),
            (json!({"merchants": ["m_2"]}), "merchant_not_allowed"),
            (json!({"merchants": ["m_1"]}), "valid"),
            (json!({"features": ["tokens.retrieve"]}), "route_not_allowed"),
            (json!({"features": ["tokens.list"]}), "valid"),
            (json!({"rate_limit": {"limit": 1000, "window_seconds": 1}}), "valid"),
            (json!({"name": "New", "metadata": {"a": 1}}), "valid"),
        ] {
            let reply = app.patch(&path(&key), patch.clone()).bearer(&token).await;
            assert_eq!(reply.status, 200, "{patch} {reply}");
            assert_code(expected, &patch.to_string()).await;
        }
        assert_eq!(app.verify(&key.text, request.clone()).await["key"]["name"], "New");
        let reply = app.patch(&path(&key), json!({"expires_at": START + 60})).bearer(&token).await;
        assert_eq!(reply.status, 200);
        assert_code("valid", "an expiration").await;
        let reply = app.patch(&path(&key), json!({"expires_at": START + 120})).bearer(&token).await;
        assert_eq!(reply.status, 200);
        app.clock.advance(Duration::from_secs(119));
        assert_code("valid", "a later expiration").await;
        app.clock.advance(Duration::from_secs(1));
        assert_code("expired", "the expiration").await;
        assert_eq!(act(app, &token, &key, "revoke").await.status, 200);
        assert_code("revoked", "revoked").await;
    })
    .await;
}

#[actix_web::test]
async fn parallel_changes_are_all_applied_and_logged_once() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let at = |n: usize| [app.running().address(), replica.address()][n % 2];
        let all = async |calls: Vec<Call>| {
            let replies = join_all(calls.into_iter().map(IntoFuture::into_future)).await;
            let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
            assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        };
        let count = async |action: &str| {
            log(app, &token, &key)
                .await
                .iter()
                .filter(|(own, _)| own == action)
                .count()
        };
        // Parallel patches each add a metadata field, while the key is used.
        let patch = |n: usize| {
            let body = json!({"metadata": {(format!("n_{n}")): n}});
            Call::new(at(n), "PATCH", &path(&key))
                .json(body)
                .bearer(&token)
        };
        let verify = |n: usize| {
            Call::new(at(n), "POST", "/verify")
                .json(json!({"key": key.text}))
                .bearer(&app.service())
        };
        all((0..20).map(patch).chain((0..20).map(verify)).collect()).await;
        app.running().state().service.flush_usage().await;
        let metadata = row(app, &token, &key).await["metadata"].clone();
        assert_eq!(metadata.as_object().unwrap().len(), 20, "{metadata}");
        assert_eq!(count("api_key.updated").await, 20);
        for action in ["suspend", "resume"] {
            all((0..10)
                .map(|n| {
                    Call::new(at(n), "POST", &format!("{}/{action}", path(&key))).bearer(&token)
                })
                .collect())
            .await;
        }
        assert_eq!(
            (
                count("api_key.suspended").await,
                count("api_key.resumed").await
            ),
            (1, 1)
        );
        let revoke = |n: usize| {
            let body = json!({"reason": format!("reason {n}")});
            Call::new(at(n), "POST", &format!("{}/revoke", path(&key)))
                .json(body)
                .bearer(&token)
        };
        all((0..20).map(revoke).chain((0..20).map(verify)).collect()).await;
        for running in [app.running(), &replica] {
            running.state().service.flush_usage().await;
        }
        assert_eq!(count("api_key.revoked").await, 1);
        let (_, changes) = log(app, &token, &key).await.pop().expect("the revocation");
        let row = row(app, &token, &key).await;
        assert_eq!(
            (&row["status"], &row["revoked_reason"]),
            (&json!("revoked"), &changes["reason"])
        );
        assert_eq!(app.code(&key.text).await, "revoked");
        replica.stop().await;
    })
    .await;
}

// Key limit

#[actix_web::test]
async fn key_limit_counts_usable_commerce_keys() {
    each_backend_with(&[("TOLLKEY_ACCOUNT_KEY_LIMIT", "2")], async |app: &App| {
        let token = app.management_token("acme");
        let create = |body: Value| app.post("/api-keys", body).bearer(&token);
        let first = app.commerce_key(&token, json!({"expires_at": START + 60})).await;
        let second = app.commerce_key(&token, json!({})).await;
        assert_response!(create(json!({"name": "n"})).await, @r#"
        403
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00PHGSG3NSVB3Y7GEW

        {
          "type": "urn:tollkey:problem:key_limit_reached",
          "title": "Maximum number of API keys reached",
          "status": 403,
          "detail": "The account already has its maximum number of keys of this kind that are neither revoked nor expired (2). Revoke a key first.",
          "code": "key_limit_reached",
          "request_id": "req_01KDVDNA00PHGSG3NSVB3Y7GEW"
        }
        "#);
        // Suspended keys count, revoked and expired keys do not.
        assert_eq!(act(app, &token, &second, "suspend").await.status, 200);
        assert_eq!(create(json!({"name": "n"})).await.code(), "key_limit_reached");
        assert_eq!(act(app, &token, &second, "revoke").await.status, 200);
        app.commerce_key(&token, json!({})).await;
        assert_eq!(create(json!({"name": "n"})).await.code(), "key_limit_reached");
        app.clock.advance(Duration::from_secs(60));
        assert_eq!(status(app, &token, &first).await, "expired");
        app.commerce_key(&token, json!({"mode": "test"})).await;
        assert_eq!(create(json!({"name": "n", "mode": "test"})).await.code(), "key_limit_reached");
        assert_eq!(ids(&app.get("/api-keys").bearer(&token).await.json()).len(), 4);
        // Other accounts and families are counted separately.
        app.commerce_key(&app.management_token("globex"), json!({})).await;
        let application = app.application(&token, "Web Store").await;
        app.key(&token, &application, json!({})).await;
    })
    .await;
}

#[actix_web::test]
async fn key_limit_is_exact_under_50_parallel_creations() {
    each_backend_with(&[("TOLLKEY_ACCOUNT_KEY_LIMIT", "7")], async |app: &App| {
        let token = app.management_token("acme");
        let replica = app.replica().await;
        let addresses = [app.running().address(), replica.address()];
        let calls = (0..50).map(|n| {
            let call = Call::new(addresses[n % 2], "POST", "/api-keys")
                .json(json!({"name": "n"}))
                .bearer(&token);
            call.into_future()
        });
        let replies = join_all(calls).await;
        let created = replies.iter().filter(|reply| reply.status == 201).count();
        let rejected = replies
            .iter()
            .filter(|reply| reply.status == 403 && reply.code() == "key_limit_reached")
            .count();
        assert_eq!(
            (created, rejected),
            (7, 43),
            "{:?}",
            replies.iter().map(|reply| reply.status).collect::<Vec<_>>()
        );
        assert_eq!(
            ids(&app.get("/api-keys").bearer(&token).await.json()).len(),
            7
        );
        let entries = app
            .get("/audit-log?action=api_key.created")
            .bearer(&token)
            .await
            .json();
        assert_eq!(entries.as_array().unwrap().len(), 7);
        replica.stop().await;
    })
    .await;
}
