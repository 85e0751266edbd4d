//! Keys that were created by keys: a revocation also rejects them, and none exceeds the limits of its ancestors.
//! Subscribers of the previous release receive equivalent restrictions. `../system/lineage_attack.rs` has the tests of
//! an attack during the revocation.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::{ApiKey, Clock as _, Digest, IpList, KeyId, RateLimit, Timestamp};
use tollkey_store::Backend;

use crate::{
    storlaunch::error_code,
    support::{
        App, Key, Reply, TOKEN_SIGN_IN,
        account_keys::{KEYS, create_key, created_key, key_request},
        each_backend, each_backend_with,
    },
};

const DAY: Duration = Duration::from_secs(86_400);

/// A root key with a daily limit, its child and grandchild with another one. All limits are unused.
async fn limited_family(app: &App, root: u32, child: u32) -> [Key; 3] {
    let limited = |limit: u32| {
        let mut body = key_request("live", "secret");
        body["rateLimit"] = json!({"limit": limit, "windowSeconds": DAY.as_secs()});
        body
    };
    let root = create_key(app, &app.management_token("acme"), limited(root)).await;
    let child_key = create_key(app, &root.text, limited(child)).await;
    let grandchild = create_key(app, &child_key.text, limited(child)).await;
    // Each creation used the limits of its creator and the creator's ancestors.
    app.clock.advance(2 * DAY);
    [root, child_key, grandchild]
}

#[actix_web::test]
async fn uses_of_a_child_count_against_its_parents_limit() {
    each_backend(async |app: &App| {
        let family = limited_family(app, 2, 2).await;
        for first in 0..family.len() {
            // A denial for another reason uses no limit.
            for key in family.iter().cycle().take(9) {
                assert_eq!(
                    app.verify(&key.text, json!({"mode": "test"})).await["code"],
                    "wrong_mode"
                );
            }
            let mut codes = Vec::new();
            for key in family.iter().cycle().skip(first).take(100) {
                codes.push(app.code(&key.text).await);
            }
            assert_eq!(codes[..2], ["valid", "valid"], "first key: {first}");
            assert!(
                codes[2..].iter().all(|code| code == "rate_limited"),
                "first key: {first}: {codes:?}"
            );
            app.clock.advance(2 * DAY);
        }

        // The same with parallel requests.
        let requests = family
            .iter()
            .cycle()
            .take(100)
            .map(|key| app.get("/whoami").bearer(&key.text).into_future());
        let replies = join_all(requests.collect::<Vec<_>>()).await;
        assert_eq!(
            replies.iter().filter(|reply| reply.status == 200).count(),
            2
        );
        assert!(
            replies
                .iter()
                .all(|reply| matches!(reply.status, 200 | 429))
        );
    })
    .await;
}

#[actix_web::test]
async fn use_denied_by_one_limit_does_not_use_the_others() {
    each_backend(async |app: &App| {
        let [root, child, grandchild] = limited_family(app, 5, 2).await;
        let codes = async |key: &Key, times: usize| {
            let mut codes = Vec::new();
            for _ in 0..times {
                codes.push(app.code(&key.text).await);
            }
            codes
        };
        assert_eq!(codes(&grandchild, 2).await, ["valid", "valid"]);
        // The child has no use remaining, its parent three.
        assert_eq!(codes(&child, 5).await, ["rate_limited"; 5]);
        assert_eq!(codes(&grandchild, 5).await, ["rate_limited"; 5]);
        assert_eq!(
            codes(&root, 4).await,
            ["valid", "valid", "valid", "rate_limited"]
        );
    })
    .await;
}

#[actix_web::test]
async fn reported_rate_limit_has_the_fewest_remaining_uses() {
    each_backend(async |app: &App| {
        let [root, child, grandchild] = limited_family(app, 4, 2).await;
        let reported = async |key: &Key| {
            let verdict = app.verify(&key.text, json!({})).await;
            assert_eq!(verdict["code"], "valid", "{verdict}");
            (
                verdict["rate_limit"]["limit"].clone(),
                verdict["rate_limit"]["remaining"].clone(),
            )
        };
        // Remaining: 3 for the root, 1 for the child.
        assert_eq!(reported(&child).await, (json!(2), json!(1)));
        // Remaining: 2 and 1, but this request is about the root.
        assert_eq!(reported(&root).await, (json!(4), json!(2)));
        assert_eq!(reported(&root).await, (json!(4), json!(1)));
        app.clock.advance(2 * DAY);
        for left in [3, 2, 1] {
            assert_eq!(reported(&root).await, (json!(4), json!(left)));
        }
        // Remaining: 0 for the root, 1 each for child and grandchild.
        assert_eq!(reported(&grandchild).await, (json!(4), json!(0)));
        let reply = app.get("/whoami").bearer(&grandchild.text).await;
        assert_eq!(reply.status, 429, "{reply}");
    })
    .await;
}

/// Signs in to the dashboard.
async fn sign_in(app: &App, account: &str) -> String {
    let token = app.management_token(account);
    let fields =
        serde_urlencoded::to_string([("token", token.as_str()), ("next", "/dashboard/keys")])
            .expect("a form");
    let reply = app
        .call("POST", "/dashboard/sign-in/token")
        .header("sec-fetch-site", "same-origin")
        .form(&fields)
        .await;
    assert_eq!(reply.status, 303, "{}", reply.status);
    reply
        .header("set-cookie")
        .and_then(|cookie| cookie.split(';').next())
        .expect("a cookie")
        .to_owned()
}

#[actix_web::test]
async fn effective_status_is_the_same_in_all_apis() {
    // The root, a chain below it, and children.
    const TREE: usize = 13;
    each_backend_with(
        &[TOKEN_SIGN_IN, ("TOLLKEY_ACCOUNT_KEY_LIMIT", "13")],
        async |app: &App| {
            let token = app.management_token("acme");
            let cookie = sign_in(app, "acme").await;
            let root = create_key(app, &token, key_request("live", "secret")).await;
            let child = create_key(app, &root.text, key_request("live", "secret")).await;
            let mut keys = vec![
                create_key(app, &child.text, key_request("live", "publishable")).await,
                child,
            ];
            while keys.len() < TREE - 1 {
                keys.push(create_key(app, &root.text, key_request("test", "publishable")).await);
            }
            let over = async || {
                let reply = app
                    .post(KEYS, key_request("live", "secret"))
                    .bearer(&token)
                    .await;
                (
                    error_code(app, &reply),
                    reply.json()["error"]["details"]["code"].clone(),
                )
            };
            let limit_reached = ((403, "FORBIDDEN".to_owned()), json!("key_limit_reached"));
            assert_eq!(over().await, limit_reached);

            let revoked = app
                .delete(&format!("{KEYS}/{}", root.id))
                .bearer(&token)
                .await;
            assert_eq!(revoked.status, 200, "{revoked}");
            keys.push(root);

            let list = app
                .get(&format!("{KEYS}?limit=100"))
                .bearer(&token)
                .await
                .json();
            let rows = list["data"].as_array().expect("an array");
            assert_eq!(rows.len(), TREE);
            assert!(
                rows.iter().all(|row| row["revokedAt"].is_string()),
                "{list}"
            );

            let page = async |status: &str| {
                let path = format!("/dashboard/keys?status={status}");
                let reply = app
                    .get(&path)
                    .header("cookie", &cookie)
                    .header("sec-fetch-site", "same-origin")
                    .await;
                assert_eq!(reply.status, 200, "{reply}");
                keys.iter()
                    .filter(|key| {
                        reply
                            .body
                            .contains(&format!("/dashboard/keys/{}", key.hyphenated_id()))
                    })
                    .count()
            };
            assert_eq!((page("revoked").await, page("active").await), (TREE, 0));

            for _ in 0..TREE {
                create_key(app, &token, key_request("live", "secret")).await;
            }
            assert_eq!(over().await, limit_reached);
        },
    )
    .await;
}

/// The status, the code in the envelope and the problem's code of a rejection.
fn rejection(app: &App, reply: &Reply) -> (u16, String, String) {
    let (status, code) = error_code(app, reply);
    let problem = reply.json()["error"]["details"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (status, code, problem)
}

#[actix_web::test]
async fn key_at_the_depth_limit_cannot_create_keys() {
    for (settings, depth) in [
        (&[][..], 3),
        (&[("TOLLKEY_KEY_DEPTH_LIMIT", "1")][..], 1),
        (&[("TOLLKEY_KEY_DEPTH_LIMIT", "0")][..], 0),
    ] {
        each_backend_with(settings, async |app: &App| {
            let token = app.management_token("acme");
            let mut chain = vec![create_key(app, &token, key_request("live", "secret")).await];
            for _ in 0..depth {
                let creator = chain.last().expect("the root").text.clone();
                chain.push(create_key(app, &creator, key_request("live", "secret")).await);
            }
            let last = chain.last().expect("the root");
            let expected = (
                403,
                "FORBIDDEN".to_owned(),
                "key_depth_limit_reached".to_owned(),
            );
            for access in ["secret", "publishable"] {
                for environment in ["live", "test"] {
                    let reply = app
                        .post(KEYS, key_request(environment, access))
                        .bearer(&last.text)
                        .await;
                    assert_eq!(rejection(app, &reply), expected, "{depth}: {reply}");
                }
            }
            let list = app.get(KEYS).bearer(&token).await.json();
            assert_eq!(
                list["data"].as_array().map(Vec::len),
                Some(depth + 1),
                "no key was created"
            );
            assert_eq!(
                app.code(&last.text).await,
                "valid",
                "the key itself stays valid"
            );
            // A token creates keys at depth 0, regardless of the limit.
            create_key(app, &token, key_request("live", "secret")).await;
        })
        .await;
    }
}

/// Subscribers of the previous release know every field but the last, and authorize by these.
#[actix_web::test]
async fn lookup_merges_the_restrictions_of_ancestors() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let root = create_key(app, &token, key_request("live", "secret")).await;
        let mut body = key_request("live", "secret");
        body["allowedIps"] = json!(["203.0.113.0/24", "198.51.100.0/24"]);
        body["rateLimit"] = json!({"limit": 5, "windowSeconds": 60});
        let child = created_key(&app.post(KEYS, body).bearer(&root.text).await);
        let lookup = async || {
            let body = json!({"digest": Digest::of_key(&child.text).hex().to_string()});
            let reply = app.post("/sync/lookup", body).bearer(&app.service()).await;
            assert_eq!(reply.status, 200, "{reply}");
            reply.json()["key"].clone()
        };
        let fields = ["revoked_at", "suspended_at", "expires_at", "allowed_ips", "rate_limit", "ancestor_rate_limits"];
        let own = json!({"limit": 5, "window_seconds": 60});
        let both = json!(["203.0.113.0/24", "198.51.100.0/24"]);
        let shared = json!([{"key_id": root.hyphenated_id(), "rate_limit": {"limit": 9, "window_seconds": 60}}]);
        let at = app.clock.now();
        type Row = (fn(&mut ApiKey, Timestamp), [Value; 6]);
        let rows: [Row; 6] = [
            (|_, _| (), [json!(null), json!(null), json!(null), both.clone(), own.clone(), json!(null)]),
            (
                |root, _| root.restrictions.rate_limit = RateLimit::new(9, 60).ok(),
                [json!(null), json!(null), json!(null), both.clone(), own.clone(), shared.clone()],
            ),
            (
                |root, _| root.restrictions.allowed_ips = IpList::parse(["203.0.113.128/25"]).ok(),
                [json!(null), json!(null), json!(null), json!(["203.0.113.128/25"]), own.clone(), shared.clone()],
            ),
            (
                |root, at| root.restrictions.expires_at = Some(at),
                [
                    json!(null),
                    json!(null),
                    json!(at.as_second()),
                    json!(["203.0.113.128/25"]),
                    own.clone(),
                    shared.clone(),
                ],
            ),
            (
                |root, at| root.suspended_at = Some(at),
                [
                    json!(null),
                    json!(at.as_second()),
                    json!(at.as_second()),
                    json!(["203.0.113.128/25"]),
                    own.clone(),
                    shared.clone(),
                ],
            ),
            (
                |root, at| root.revoked_at = Some(at),
                [
                    json!(at.as_second()),
                    json!(at.as_second()),
                    json!(at.as_second()),
                    json!(["203.0.113.128/25"]),
                    own,
                    shared,
                ],
            ),
        ];
        for (edit, expected) in rows {
            app.edit_key("acme", &root.id, move |key| edit(key, at)).await;
            let key = lookup().await;
            assert_eq!(fields.map(|field| key[field].clone()), expected, "{key}");
        }
    })
    .await;
}

#[actix_web::test]
async fn deleting_an_application_skips_expired_keys() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let expired = app
            .key(
                &token,
                &application,
                json!({"expiresAt": app.in_seconds(10)}),
            )
            .await;
        app.clock.advance(Duration::from_secs(20));
        let usable = app.key(&token, &application, json!({})).await;
        assert_eq!(
            app.delete(&format!("/applications/{application}"))
                .bearer(&token)
                .await
                .status,
            204
        );
        for _ in 0..2 {
            assert_eq!(
                [app.code(&usable.text).await, app.code(&expired.text).await],
                ["revoked", "expired"]
            );
            app.revocations_recorded().await;
        }
        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        let targets: Vec<&Value> = log
            .as_array()
            .expect("an array")
            .iter()
            .map(|entry| &entry["target"]["id"])
            .collect();
        assert_eq!(targets, [&json!(usable.id)]);
    })
    .await;
}

/// Simulates a server of the previous release that was killed after it revoked the root, before its descendants.
#[actix_web::test]
async fn repeat_of_an_interrupted_revocation_rejects_every_descendant() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let root = create_key(app, &token, key_request("live", "secret")).await;
        let child = create_key(app, &root.text, key_request("live", "secret")).await;
        let grandchild = create_key(app, &child.text, key_request("live", "publishable")).await;
        let keys = [&root, &child, &grandchild];
        for key in keys {
            assert_eq!(
                app.code(&key.text).await,
                if key.id == grandchild.id {
                    "route_not_allowed"
                } else {
                    "valid"
                }
            );
        }
        let at = app.clock.now();
        let hex = root
            .id
            .parse::<KeyId>()
            .expect("a key ID")
            .as_bytes()
            .map(|byte| format!("{byte:02x}"))
            .concat();
        let id = match app.running().state().service.store.backend() {
            Backend::Sqlite => format!("x'{hex}'"),
            Backend::Postgres => format!("'\\x{hex}'"),
        };
        app.database.sql(&format!(
            "UPDATE api_keys SET revoked_at = {} WHERE id = {id}",
            at.as_microsecond()
        ));
        assert_eq!(app.code(&child.text).await, "valid", "the child is cached");

        let repeat = app
            .delete(&format!("{KEYS}/{}", root.id))
            .bearer(&token)
            .await;
        assert_eq!(repeat.status, 200, "{repeat}");
        for _ in 0..2 {
            for key in keys {
                assert_eq!(app.code(&key.text).await, "revoked");
            }
            app.revocations_recorded().await;
        }
        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        assert_eq!(
            log.as_array().map(Vec::len),
            Some(2),
            "one entry for each descendant: {log}"
        );
    })
    .await;
}
