//! Load from one account does not starve other accounts, cache misses or lease renewals.

use std::{cell::Cell, sync::Arc, time::Duration};

use futures_util::future::{join, join_all};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tollkey_core::{
    AccountId, ApiKey, Clock as _, Digest, Family, KeyId, Mode, PlainKey, Scope,
    key_format::CredentialKind,
};
use tollkey_server::{
    assembly,
    auth::jwt::{NewToken, create_token},
    config::Secret,
    server,
};
use tollkey_service::Random;
use tollkey_store::testing::backends;
use tollkey_verifier::SystemClock;

use crate::support::{App, Call, Reply, SECRET, TOKEN_SIGN_IN, each_backend_with, settings};

const TOKENS: &[(&str, &str)] = &[TOKEN_SIGN_IN];

/// Creates keys for `acme`. The name of a key contains `needle` if `is_match` accepts its number.
fn fill(app: &App, keys: u64, is_match: impl Fn(u64) -> bool + Sync) {
    let account: AccountId = "acme".parse().expect("an account");
    let random = Random::new(StdRng::seed_from_u64(7));
    let begin = app.clock.now();
    let keys = (0..keys).map(|number| {
        let created_at = begin + Duration::from_secs(number);
        let kind = (Family::Commerce, Mode::Live);
        let (id, text) = random.with(|rng| {
            (
                KeyId::new(created_at, rng),
                PlainKey::generate(CredentialKind::Key(kind.0, kind.1), rng),
            )
        });
        let mut key = ApiKey::new(id, account.clone(), &text, kind, created_at);
        key.name = if is_match(number) {
            format!("needle {number}")
        } else {
            format!("key {number}")
        };
        key.restrictions.scopes = vec![Scope::COMMERCE];
        (key, Digest::of_key(text.expose()))
    });
    app.running()
        .state()
        .service
        .store
        .fill(std::iter::empty(), keys, |_| ())
        .expect("a filled database");
}

/// Signs in to the dashboard for `acme`. Returns the session cookie.
async fn sign_in(app: &App) -> String {
    let token = app.management_token("acme");
    let form =
        serde_urlencoded::to_string([("token", token.as_str()), ("next", "/dashboard/keys")])
            .expect("a form");
    let reply = app
        .call("POST", "/dashboard/sign-in/token")
        .header("sec-fetch-site", "same-origin")
        .form(&form)
        .await;
    assert_eq!(reply.status, 303, "{reply}");
    reply
        .header("set-cookie")
        .expect("a cookie")
        .split(';')
        .next()
        .expect("a pair")
        .to_owned()
}

fn page(app: &App, cookie: &str, path: &str) -> Call {
    app.get(path)
        .header("cookie", cookie)
        .header("sec-fetch-site", "same-origin")
}

#[actix_web::test]
async fn searches_of_one_account_do_not_starve_others() {
    each_backend_with(TOKENS, async |app| {
        fill(app, 20_000, |_| false);
        let cookie = sign_in(app).await;
        let other = app.management_token("other");
        let mut uncached = Vec::new();
        for _ in 0..6 {
            uncached.push(app.commerce_key(&other, json!({})).await.text);
        }
        let has_ended = Cell::new(false);
        let flood = join_all((0..20).map(|_| async {
            for _ in 0..200 {
                if has_ended.get() {
                    return;
                }
                let reply = page(app, &cookie, "/dashboard/keys?q=nothing").await;
                assert!(matches!(reply.status, 200 | 503), "{reply}");
            }
        }));
        let others = async {
            for key in &uncached {
                assert_eq!(app.code(key).await, "valid");
                let list = app.get("/api-keys?scope=commerce").bearer(&other).await;
                assert_eq!(list.status, 200, "{list}");
                app.commerce_key(&other, json!({})).await;
            }
            has_ended.set(true);
        };
        join(flood, others).await;
    })
    .await;
}

#[actix_web::test]
async fn continued_search_finds_every_match() {
    each_backend_with(TOKENS, async |app| {
        const KEYS: u64 = 11_000;
        fill(app, KEYS, |number| {
            number == 0 || number == 500 || number == KEYS - 1
        });
        let cookie = sign_in(app).await;
        let mut path = "/dashboard/keys?q=needle".to_owned();
        let (mut found, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let reply = page(app, &cookie, &path).await;
            assert_eq!(reply.status, 200, "{reply}");
            let names = reply
                .body
                .split('<')
                .filter_map(|part| part.split_once('>')?.1.strip_prefix("needle "));
            found.extend(names.map(|number| number.trim().parse::<u64>().expect("a number")));
            let Some((before, after)) = reply.body.split_once("\" rel=\"next\">") else {
                break;
            };
            labels.push(after.split('<').next().expect("a label").to_owned());
            path = before
                .rsplit_once("href=\"")
                .expect("a link")
                .1
                .replace("&#38;", "&")
                .replace("&amp;", "&");
        }
        assert_eq!(found, [KEYS - 1, 500, 0]);
        assert_eq!(labels, ["Search further", "Search further"]);
    })
    .await;
}

#[actix_web::test]
async fn oversized_search_texts_are_rejected() {
    each_backend_with(TOKENS, async |app| {
        let (cookie, token) = (sign_in(app).await, app.management_token("acme"));
        let rejected = |reply: &Reply, field: &str, detail: &str| {
            assert_eq!(reply.status, 400, "{field}: {reply}");
            assert!(
                reply.body.contains(field) && reply.body.contains(detail),
                "{field}: {reply}"
            );
        };
        for length in [256, 2_000, 50_000] {
            let text = "a".repeat(length);
            let limit = if length > 4_096 {
                "must have at most 4096 bytes"
            } else {
                "must have at most 255 characters"
            };
            rejected(
                &page(app, &cookie, &format!("/dashboard/keys?q={text}")).await,
                "q",
                limit,
            );
            for field in ["target_id", "actor_id"] {
                rejected(
                    &page(app, &cookie, &format!("/dashboard/audit?{field}={text}")).await,
                    field,
                    limit,
                );
                let reply = app
                    .get(&format!("/audit-log?{field}={text}"))
                    .bearer(&token)
                    .await;
                assert_eq!(reply.errors(), [format!("{field} {limit}")]);
                let reply = app
                    .get(&format!("/account/audit-log?{field}={text}"))
                    .bearer(&token)
                    .await;
                assert_eq!(reply.status, 400, "{reply}");
            }
        }
        // The length of other parameters is limited, too.
        let text = "1".repeat(50_000);
        for path in [
            "/api-keys?scope=commerce&cursor=",
            "/account/api-keys?cursor=",
            "/audit-log?cursor=",
            "/audit-log?since=",
            "/audit-log?action=",
            "/applications?page=",
            "/api-keys?account=",
        ] {
            let reply = app.get(&format!("{path}{text}")).bearer(&token).await;
            assert!(matches!(reply.status, 400 | 403), "{path}: {reply}");
        }
        for path in [
            "/dashboard/keys?cursor=",
            "/dashboard/keys?application=",
            "/dashboard/keys?mode=",
        ] {
            let reply = page(app, &cookie, &format!("{path}{text}")).await;
            assert_eq!(reply.status, 400, "{path}: {reply}");
        }
        // The maximum length of a name is accepted.
        let reply = page(
            app,
            &cookie,
            &format!("/dashboard/keys?q={}", "%C3%BC".repeat(255)),
        )
        .await;
        assert_eq!(reply.status, 200, "{reply}");
    })
    .await;
}

/// Uses the real clock, so that the lease expires unless it is renewed.
#[actix_web::test]
async fn cached_key_stays_valid_during_changes_and_lists() {
    for database in backends() {
        let settings = settings(database.url(), &[]);
        let random = Random::new(StdRng::seed_from_u64(1));
        let opened = assembly::open(&settings, Arc::new(SystemClock), random)
            .await
            .expect("an open server");
        let running = server::start(&settings, opened.state, None).expect("a running server");
        let token = |account: Option<&str>, roles: &[&str]| {
            let token = NewToken {
                subject: "user_1".to_owned(),
                account: account.map(|account| account.parse().expect("an account")),
                roles: roles.iter().map(ToString::to_string).collect(),
                lifetime: jiff::SignedDuration::from_hours(1),
            };
            create_token(
                &Secret::new(SECRET),
                &settings.tokens.claims,
                &token,
                SystemClock.now(),
            )
            .expect("a token")
        };
        let (acme, service) = (token(Some("acme"), &[]), token(None, &["service"]));
        let call = |method: &str, path: &str| Call::new(running.address(), method, path);
        let create = async || -> Value {
            let reply = call("POST", "/api-keys")
                .bearer(&acme)
                .json(json!({"name": "key"}))
                .await;
            assert_eq!(reply.status, 201, "{reply}");
            reply.json()
        };
        let (cached, patched) = (create().await, [create().await, create().await]);
        let verify = async || {
            let reply = call("POST", "/verify")
                .bearer(&service)
                .json(json!({"key": cached["api_key"]}))
                .await;
            assert_eq!(reply.status, 200, "{reply}");
            assert_eq!(reply.json()["valid"], true, "{reply}");
        };
        verify().await;
        let has_ended = Cell::new(false);
        let changes = join_all(patched.iter().map(|key| async {
            let path = format!("/api-keys/{}", key["key_id"].as_str().expect("an ID"));
            let mut number = 0;
            while !has_ended.get() {
                let body = json!({"name": format!("name {number}")});
                let reply = call("PATCH", &path).bearer(&acme).json(body).await;
                assert!(matches!(reply.status, 200 | 503), "{reply}");
                number += 1;
            }
        }));
        let lists = join_all((0..40).map(|_| async {
            while !has_ended.get() {
                let reply = call("GET", "/api-keys?scope=commerce").bearer(&acme).await;
                assert!(matches!(reply.status, 200 | 503), "{reply}");
            }
        }));
        let verifications = async {
            // The loop takes longer than a lease.
            for _ in 0..25 {
                verify().await;
                assert!(
                    !running
                        .state()
                        .service
                        .verifier
                        .stats()
                        .lease_left
                        .is_zero(),
                    "the lease is renewed"
                );
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            has_ended.set(true);
        };
        join(join(changes, lists), verifications).await;
        running.stop().await;
    }
}
