//! Rate limits and IP allowlists of keys.
//!
//! Rate limits are exact, and responses report them in the headers of draft-ietf-httpapi-ratelimit-headers-11.
//! Allowlists apply to the IP address of the client.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::{
    Clock as _, Family, IpList, Mode, RateLimit, Restrictions, Scope, feature::Feature,
};

use crate::{
    assert_response,
    storlaunch::error_code,
    support::{
        App, Call, Key, Reply,
        account_keys::{create_key, key_request},
        each_backend, each_backend_with,
    },
};

/// Creates a key of this family with this rate limit.
async fn limited(app: &App, family: Family, limit: i64, window_seconds: i64) -> Key {
    let rate_limit = RateLimit::new(limit, window_seconds).ok();
    let restrictions = Restrictions {
        scopes: vec![Scope::COMMERCE],
        rate_limit,
        ..Restrictions::default()
    };
    app.insert("acme", &app.generate_key(family, Mode::Live), |key| {
        key.restrictions = restrictions
    })
    .await
}

/// Returns the rate limit headers of a response: `RateLimit-Policy`, `RateLimit` and `Retry-After`.
fn fields(reply: &Reply) -> [Option<&str>; 3] {
    ["ratelimit-policy", "ratelimit", "retry-after"].map(|name| reply.header(name))
}

const NONE: [Option<&str>; 3] = [None; 3];

#[actix_web::test]
async fn rate_limit_is_exact_for_200_parallel_requests() {
    each_backend(async |app: &App| {
        for limit in [1, 7, 199, 200] {
            let key = limited(app, Family::Commerce, limit, 1000).await.text;
            let replies =
                join_all((0..200).map(|_| app.get("/whoami").bearer(&key).into_future())).await;
            let passed = replies.iter().filter(|reply| reply.status == 200).count();
            assert_eq!(
                passed,
                usize::try_from(limit).unwrap(),
                "whoami with {limit}"
            );
            assert!(
                replies
                    .iter()
                    .all(|reply| matches!(reply.status, 200 | 429)),
                "whoami with {limit}"
            );

            let key = limited(app, Family::Commerce, limit, 1000).await.text;
            let service = app.service();
            let calls = (0..200).map(|_| {
                app.post("/verify", json!({"key": key}))
                    .bearer(&service)
                    .into_future()
            });
            let verdicts: Vec<Value> = join_all(calls).await.iter().map(Reply::json).collect();
            let mut remaining: Vec<i64> = verdicts
                .iter()
                .filter_map(|verdict| verdict["rate_limit"]["remaining"].as_i64())
                .collect();
            remaining.sort_unstable();
            // Each use has a different `remaining`.
            assert_eq!(
                remaining,
                (0..limit).collect::<Vec<_>>(),
                "verify with {limit}"
            );
            let denied = verdicts
                .iter()
                .filter(|verdict| verdict["code"] == "rate_limited")
                .count();
            assert_eq!(denied, 200 - remaining.len(), "verify with {limit}");

            let key = limited(app, Family::Commerce, limit, 1000).await.text;
            let calls = (0..200).map(|_| {
                app.get("/authz/forward-auth")
                    .header("x-api-key", &key)
                    .into_future()
            });
            let statuses: Vec<u16> = join_all(calls)
                .await
                .iter()
                .map(|reply| reply.status)
                .collect();
            let passed = statuses.iter().filter(|status| **status == 200).count();
            assert_eq!(
                passed,
                usize::try_from(limit).unwrap(),
                "forward-auth with {limit}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn denial_for_another_reason_does_not_use_the_limit() {
    each_backend(async |app: &App| {
        assert_eq!(
            app.put("/accounts/acme", json!({"operating_model": "ecosystem"})).bearer(&app.operator()).await.status,
            200
        );
        let restrictions = Restrictions {
            scopes: vec![Scope::COMMERCE],
            merchants: Some(vec!["m_1".to_owned()]),
            features: Some(vec![Feature::TokensList]),
            allowed_ips: IpList::parse(["203.0.113.0/24"]).ok(),
            rate_limit: RateLimit::new(3, 300).ok(),
            ..Restrictions::default()
        };
        let key = app.insert("acme", &app.generate_key(Family::Commerce, Mode::Live), |key| key.restrictions = restrictions).await;
        let request = json!({"method": "GET", "path": "/tokens", "merchant": "m_1", "client_ip": "203.0.113.7"});
        let with = |field: &str, value: Value| {
            let mut request = request.clone();
            request[field] = value;
            request
        };
        let without = |field: &str| {
            let mut request = request.clone();
            request.as_object_mut().unwrap().remove(field);
            request
        };
        let remaining = async || app.verify(&key.text, request.clone()).await["rate_limit"]["remaining"].clone();
        assert_eq!(remaining().await, 2);
        for (request, code) in [
            (with("mode", json!("test")), "wrong_mode"),
            (with("client_ip", json!("198.51.100.7")), "ip_not_allowed"),
            (without("client_ip"), "ip_not_allowed"),
            (with("path", json!("/forward")), "route_not_allowed"),
            (with("path", json!("/tokens/../forward")), "route_not_allowed"),
            (without("path"), "route_not_allowed"),
            (without("method"), "route_not_allowed"),
            (with("merchant", json!("m_2")), "merchant_not_allowed"),
            (without("merchant"), "merchant_not_allowed"),
        ] {
            for _ in 0..4 {
                let verdict = app.verify(&key.text, request.clone()).await;
                assert_eq!(verdict, json!({"valid": false, "code": code}), "{request}");
            }
        }
        // Other denials that do not use the limit: of another account's secret key, and of a suspended key.
        let stranger = app.insert_key("globex", Family::Secret, Mode::Live).await;
        let id = key.id.clone();
        for _ in 0..4 {
            let verdict = app.post("/verify", json!({"key": key.text})).bearer(&stranger).await.json();
            assert_eq!(verdict["code"], "unknown_key");
        }
        assert_eq!(
            app.post(&format!("/api-keys/{id}/suspend"), json!({})).bearer(&app.management_token("acme")).await.status,
            200
        );
        for _ in 0..4 {
            assert_eq!(app.verify(&key.text, request.clone()).await["code"], "suspended");
        }
        assert_eq!(
            app.post(&format!("/api-keys/{id}/resume"), json!({})).bearer(&app.management_token("acme")).await.status,
            200
        );
        assert_eq!(remaining().await, 1);
        assert_eq!(remaining().await, 0);
        // Other denials take precedence over an exceeded limit.
        assert_eq!(app.verify(&key.text, request.clone()).await["code"], "rate_limited");
        assert_eq!(app.verify(&key.text, with("mode", json!("test"))).await["code"], "wrong_mode");
    })
    .await;
}

#[actix_web::test]
async fn gateway_denial_for_another_reason_does_not_use_the_limit() {
    each_backend(async |app: &App| {
        let restrictions = Restrictions {
            scopes: vec![Scope::LINKS_READ],
            rate_limit: RateLimit::new(2, 300).ok(),
            ..Restrictions::default()
        };
        let key = app
            .insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
            .await;
        let forward_auth = |query: &str| {
            app.get(&format!("/authz/forward-auth{query}"))
                .header("x-api-key", &key)
        };
        for (query, code) in [
            ("?scope=links:write", "insufficient_scope"),
            ("?mode=test", "wrong_mode"),
            ("?scope=nope", "invalid_requirement"),
            ("?nope=1", "invalid_requirement"),
        ] {
            for _ in 0..3 {
                let reply = forward_auth(query).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, code),
                    "{query}: {reply}"
                );
                assert_eq!(fields(&reply), NONE, "{query}");
            }
        }
        let statuses = [
            forward_auth("").await.status,
            forward_auth("?scope=links:read").await.status,
            forward_auth("").await.status,
        ];
        assert_eq!(statuses, [200, 200, 429]);
    })
    .await;
}

/// Such a request also does not set the last use of the key.
#[actix_web::test]
async fn request_with_the_wrong_key_family_does_not_use_the_limit() {
    each_backend(async |app: &App| {
        for family in [Family::Commerce, Family::Secret, Family::Publishable] {
            let key = limited(app, family, 1, 300).await;
            let mut calls = vec![
                app.get("/applications"),
                app.post("/applications", json!({"name": "x"})),
                app.get("/api-keys"),
                app.get("/audit-log"),
                app.get("/service-keys"),
            ];
            if family != Family::Secret {
                calls.push(app.get("/v1/account/api-keys"));
                calls.push(app.post("/verify", json!({"key": key.text})));
            }
            for call in calls {
                let reply = call.bearer(&key.text).await;
                assert_eq!(
                    (reply.status, fields(&reply)),
                    (403, NONE),
                    "{family:?}: {reply}"
                );
            }
            app.running().state().service.flush_usage().await;
            assert!(
                !app.database.dump().contains("key_last_used.last_used_at: "),
                "{family:?}"
            );
            let statuses = [
                app.get("/whoami").bearer(&key.text).await.status,
                app.get("/whoami").bearer(&key.text).await.status,
            ];
            assert_eq!(statuses, [200, 429], "{family:?}");
            app.running().state().service.flush_usage().await;
            assert!(
                app.database.dump().contains("key_last_used.last_used_at: "),
                "{family:?}"
            );
            app.database.sql("DELETE FROM key_last_used");
        }
    })
    .await;
}

#[actix_web::test]
async fn responses_report_the_rate_limit_of_the_calling_key() {
    each_backend(async |app: &App| {
        let key = limited(app, Family::Secret, 3, 30).await;
        let other = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        assert_response!(app.get("/whoami").bearer(&key.text).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        ratelimit: "key";r=2;t=10
        ratelimit-policy: "key";q=3;w=30
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA003CSWMY1D5544XTEQ

        {
          "id": "019b76da-a800-7878-88e1-d9d87054ed4c",
          "family": "secret",
          "mode": "live",
          "status": "active",
          "account_id": "acme",
          "application_id": null,
          "name": "Example",
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
        // The headers describe the calling key, not the verified one. The account API also has them.
        let verified = app
            .post("/verify", json!({"key": other}))
            .bearer(&key.text)
            .await;
        assert_eq!(
            fields(&verified),
            [Some("\"key\";q=3;w=30"), Some("\"key\";r=1;t=20"), None]
        );
        assert_eq!(verified.json()["rate_limit"], Value::Null);
        let listed = app.get("/v1/account/api-keys").bearer(&key.text).await;
        assert_eq!(
            fields(&listed),
            [Some("\"key\";q=3;w=30"), Some("\"key\";r=0;t=30"), None]
        );
        // If no use remains, `t` and `Retry-After` are the seconds until the next use.
        assert_response!(app.get("/whoami").bearer(&key.text).await, @r#"
        429
        cache-control: no-store
        content-type: application/problem+json
        ratelimit: "key";r=0;t=10
        ratelimit-policy: "key";q=3;w=30
        retry-after: 10
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00SFYGHBK03XJ9FD31

        {
          "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
          "title": "Too many requests",
          "status": 429,
          "detail": "The key's rate limit is exceeded. Try again after the time in Retry-After.",
          "code": "rate_limited",
          "request_id": "req_01KDVDNA00SFYGHBK03XJ9FD31"
        }
        "#);
        app.clock.advance(Duration::from_millis(2500));
        let account = app.get("/v1/account/api-keys").bearer(&key.text).await;
        assert_eq!(error_code(app, &account), (429, "RATE_LIMITED".to_owned()));
        assert_eq!(
            fields(&account),
            [Some("\"key\";q=3;w=30"), Some("\"key\";r=0;t=8"), Some("8")]
        );
        for call in [
            app.post("/verify", json!({"key": other})),
            app.call("POST", "/introspect").form("token=x"),
            app.call("HEAD", "/whoami"),
            app.delete("/whoami"),
            app.post("/v1/account/api-keys", key_request("live", "secret")),
        ] {
            let reply = call.bearer(&key.text).await;
            assert_eq!(
                (reply.status, fields(&reply)),
                (429, fields(&account)),
                "{reply}"
            );
        }
        assert_eq!(
            app.code(&key.text).await,
            "rate_limited",
            "the denied DELETE did not revoke it"
        );
        // Responses to a key without a limit, a management token and a service key have no rate limit headers.
        let service_key = app.service_key().await.text;
        for call in [
            app.get("/whoami").bearer(&other),
            app.get("/v1/account/api-keys")
                .bearer(&app.management_token("acme")),
            app.post("/verify", json!({"key": other}))
                .bearer(&service_key),
            // The limit of the verified key is only in the body.
            app.post("/verify", json!({"key": key.text}))
                .bearer(&service_key),
        ] {
            let reply = call.await;
            assert_eq!((reply.status, fields(&reply)), (200, NONE), "{reply}");
        }
    })
    .await;
}

#[actix_web::test]
async fn gateway_responses_report_the_rate_limit_only_when_exceeded() {
    each_backend(async |app: &App| {
        let key = limited(app, Family::Commerce, 6, 60).await.text;
        let calls = || {
            [
                app.get("/authz/forward-auth")
                    .header("x-forwarded-method", "GET")
                    .header("x-forwarded-uri", "/x"),
                app.get("/authz/auth-request")
                    .header("x-original-method", "GET")
                    .header("x-original-uri", "/x"),
                app.get("/authz/ext-authz/-/x"),
            ]
            .map(|call| call.bearer(&key))
        };
        for call in calls().into_iter().chain(calls()) {
            let reply = call.await;
            assert_eq!((reply.status, fields(&reply)), (200, NONE), "{reply}");
        }
        let mut denied = Vec::new();
        for call in calls() {
            let reply = call.await;
            let expected = [
                Some("\"key\";q=6;w=60"),
                Some("\"key\";r=0;t=10"),
                Some("10"),
            ];
            assert_eq!((reply.status, fields(&reply)), (429, expected), "{reply}");
            denied.push(reply);
        }
        assert_response!(denied[0], @r#"
        429
        content-type: application/problem+json
        ratelimit: "key";r=0;t=10
        ratelimit-policy: "key";q=6;w=60
        retry-after: 10
        x-request-id: req_01KDVDNA00RKT71WK8SCKGNFA3

        {
          "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
          "title": "Too many requests",
          "status": 429,
          "detail": "The key's rate limit is exceeded. Try again after the time in Retry-After.",
          "code": "rate_limited",
          "request_id": "req_01KDVDNA00RKT71WK8SCKGNFA3"
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn remaining_uses_are_restored_evenly_over_time() {
    each_backend(async |app: &App| {
        let key = limited(app, Family::Commerce, 3, 30).await.text;
        let usage = async || {
            let verdict = app.verify(&key, json!({})).await;
            let state = &verdict["rate_limit"];
            (verdict["valid"] == true).then(|| {
                (
                    state["remaining"].as_i64().unwrap(),
                    state["reset_seconds"].as_i64().unwrap(),
                )
            })
        };
        // A burst of three.
        assert_eq!(
            [usage().await, usage().await, usage().await, usage().await],
            [Some((2, 10)), Some((1, 20)), Some((0, 30)), None]
        );
        // One more use every ten seconds.
        app.clock.advance(Duration::from_millis(9_999));
        assert_eq!(usage().await, None);
        app.clock.advance(Duration::from_millis(1));
        assert_eq!([usage().await, usage().await], [Some((0, 30)), None]);
        app.clock.advance(Duration::from_secs(25));
        assert_eq!(
            [usage().await, usage().await, usage().await],
            [Some((1, 15)), Some((0, 25)), None]
        );
        // Never more than the limit.
        app.clock.advance(Duration::from_secs(86_400));
        assert_eq!(
            [usage().await, usage().await, usage().await, usage().await],
            [Some((2, 10)), Some((1, 20)), Some((0, 30)), None]
        );
        // The limit uses the monotonic clock, not the wall clock.
        app.clock
            .set(app.clock.now() + jiff::SignedDuration::from_hours(1));
        assert_eq!(usage().await, None);
    })
    .await;
}

#[actix_web::test]
async fn each_replica_counts_uses_on_its_own() {
    each_backend(async |app: &App| {
        let replica = app.replica().await;
        let key = limited(app, Family::Commerce, 2, 60).await.text;
        let on_replica = || {
            Call::new(replica.address(), "GET", "/whoami")
                .bearer(&key)
                .into_future()
        };
        let on_server = || app.get("/whoami").bearer(&key).into_future();
        let statuses = [
            on_server().await.status,
            on_server().await.status,
            on_server().await.status,
        ];
        assert_eq!(statuses, [200, 200, 429]);
        let statuses = [
            on_replica().await.status,
            on_replica().await.status,
            on_replica().await.status,
        ];
        assert_eq!(statuses, [200, 200, 429]);
        replica.stop().await;
    })
    .await;
}

/// A change to a key does not reset its rate limit, unless it changes the limit.
#[actix_web::test]
async fn change_to_a_key_does_not_reset_its_rate_limit() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "Checkout", "rate_limit": {"limit": 2, "window_seconds": 60}});
        let created = app.post("/api-keys", body).bearer(&token).await.json();
        let (id, text) = (
            created["key_id"].as_str().unwrap(),
            created["api_key"].as_str().unwrap(),
        );
        let path = format!("/api-keys/{id}");
        assert_eq!(
            [
                app.code(text).await,
                app.code(text).await,
                app.code(text).await
            ],
            ["valid", "valid", "rate_limited"]
        );
        assert_eq!(
            app.patch(&path, json!({"name": "checkout"}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(
            app.post(&format!("{path}/suspend"), json!({}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(
            app.post(&format!("{path}/resume"), json!({}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(app.code(text).await, "rate_limited");
        let raised = json!({"rate_limit": {"limit": 3, "window_seconds": 60}});
        assert_eq!(app.patch(&path, raised).bearer(&token).await.status, 200);
        let verdict = app.verify(text, json!({})).await;
        assert_eq!(
            verdict["rate_limit"],
            json!({"limit": 3, "remaining": 2, "reset_seconds": 20, "window_seconds": 60})
        );
        assert_eq!(
            app.patch(&path, json!({"rate_limit": null}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(app.verify(text, json!({})).await["rate_limit"], Value::Null);
    })
    .await;
}

#[actix_web::test]
async fn cidrs_with_host_bits_or_without_a_length_are_rejected() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let keys = format!("/applications/{application}/api-keys");
        for (cidr, rule) in [
            (
                "203.0.113.9/24",
                "`203.0.113.9/24` has host bits set; did you mean `203.0.113.0/24`?",
            ),
            (
                "0.0.0.1/0",
                "`0.0.0.1/0` has host bits set; did you mean `0.0.0.0/0`?",
            ),
            (
                "2001:db8::1/32",
                "`2001:db8::1/32` has host bits set; did you mean `2001:db8::/32`?",
            ),
            (
                "::ffff:10.0.0.1/104",
                "`::ffff:10.0.0.1/104` has host bits set; did you mean `::ffff:10.0.0.0/104`?",
            ),
            (
                "203.0.113.9",
                "`203.0.113.9` is not in CIDR notation; did you mean `203.0.113.9/32`?",
            ),
            (
                "::1",
                "`::1` is not in CIDR notation; did you mean `::1/128`?",
            ),
            (
                "010.0.0.0/8",
                "`010.0.0.0/8` is not in CIDR notation, such as 203.0.113.0/24",
            ),
            (
                "10.0.0.0/33",
                "`10.0.0.0/33` is not in CIDR notation, such as 203.0.113.0/24",
            ),
            (
                "example.com",
                "`example.com` is not in CIDR notation, such as 203.0.113.0/24",
            ),
        ] {
            let list = json!(["198.51.100.0/24", cidr]);
            for (path, body, pointer) in [
                (
                    "/api-keys",
                    json!({"name": "x", "allowed_ips": list}),
                    "/allowed_ips",
                ),
                (
                    keys.as_str(),
                    json!({"description": "x", "allowedIps": list}),
                    "/allowedIps",
                ),
            ] {
                let reply = app.post(path, body).bearer(&token).await;
                assert_eq!(
                    (reply.status, reply.errors()),
                    (400, vec![format!("{pointer} {rule}")]),
                    "{cidr}"
                );
            }
            let mut body = key_request("live", "secret");
            body["allowedIps"] = list;
            let reply = app.post("/v1/account/api-keys", body).bearer(&token).await;
            assert_eq!(
                error_code(app, &reply),
                (400, "VALIDATION_ERROR".to_owned())
            );
            assert_eq!(
                reply.json()["error"]["message"],
                format!("/allowedIps: {rule}")
            );
        }
    })
    .await;
}

/// The allowlist of the key that [`key_with_allowlist`] creates.
const ALLOWLIST: [&str; 4] = [
    "203.0.113.0/24",
    "198.51.100.7/32",
    "2001:db8::/32",
    "::ffff:192.0.2.0/120",
];

/// IP addresses, and whether [`ALLOWLIST`] contains them.
const ADDRESSES: [(&str, bool); 16] = [
    ("203.0.113.0", true),
    ("203.0.113.255", true),
    ("203.0.112.255", false),
    ("203.0.114.0", false),
    ("198.51.100.7", true),
    ("198.51.100.8", false),
    ("::ffff:203.0.113.9", true),
    ("::ffff:cb00:7109", true),
    ("::ffff:203.0.114.9", false),
    ("192.0.2.1", true),
    ("::ffff:192.0.2.1", true),
    ("2001:db8::1", true),
    ("2001:0DB8:ffff:ffff:ffff:ffff:ffff:ffff", true),
    ("2001:db9::", false),
    ("::203.0.113.9", false),
    ("127.0.0.1", false),
];

async fn key_with_allowlist(app: &App) -> String {
    let body = json!({"name": "Checkout", "allowed_ips": ALLOWLIST});
    let reply = app
        .post("/api-keys", body)
        .bearer(&app.management_token("acme"))
        .await;
    assert_eq!(reply.status, 201, "{reply}");
    reply.json()["api_key"].as_str().unwrap().to_owned()
}

#[actix_web::test]
async fn verify_checks_only_the_client_ip_of_the_request() {
    each_backend(async |app: &App| {
        let key = key_with_allowlist(app).await;
        for (address, allowed) in ADDRESSES {
            let verdict = app.verify(&key, json!({"client_ip": address})).await;
            assert_eq!(
                verdict["code"],
                if allowed { "valid" } else { "ip_not_allowed" },
                "{address}"
            );
        }
        // The IP address of the resource server itself does not matter.
        let verify = |body: Value| {
            app.post("/verify", body)
                .bearer(&app.service())
                .header("x-forwarded-for", "203.0.113.9")
        };
        assert_eq!(
            verify(json!({"key": key})).await.json()["code"],
            "ip_not_allowed"
        );
        assert_eq!(
            verify(json!({"key": key, "client_ip": null})).await.json()["code"],
            "ip_not_allowed"
        );
        assert_eq!(
            verify(json!({"key": key, "client_ip": "127.0.0.1"}))
                .await
                .json()["code"],
            "ip_not_allowed"
        );
        let outside = app
            .post("/verify", json!({"key": key, "client_ip": "203.0.113.9"}))
            .bearer(&app.service());
        assert_eq!(
            outside
                .header("x-forwarded-for", "198.51.100.99")
                .await
                .json()["code"],
            "valid"
        );
        let batch = json!({"requests": [{"key": key}, {"key": key, "client_ip": "203.0.113.9"}]});
        let batch = app
            .post("/verify/batch", batch)
            .bearer(&app.service())
            .header("x-forwarded-for", "203.0.113.9")
            .await;
        assert_eq!(
            (
                &batch.json()["results"][0]["code"],
                &batch.json()["results"][1]["code"]
            ),
            (&json!("ip_not_allowed"), &json!("valid"))
        );
        let introspected = app
            .call("POST", "/introspect")
            .form(&format!("token={key}"))
            .bearer(&app.service());
        assert_eq!(
            introspected
                .header("x-forwarded-for", "203.0.113.9")
                .await
                .body,
            r#"{"active":false}"#
        );
        for invalid in [
            "",
            "203.0.113",
            "203.0.113.9/32",
            "203.0.113.9:443",
            "[2001:db8::1]",
            "0313.0.113.9",
            "localhost",
        ] {
            let reply = verify(json!({"key": key, "client_ip": invalid})).await;
            assert_eq!(
                reply.errors(),
                ["/client_ip must be an IPv4 or IPv6 address"],
                "{invalid}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn rightmost_untrusted_hop_is_the_client() {
    each_backend_with(
        &[(
            "TOLLKEY_TRUSTED_PROXIES",
            "127.0.0.0/8, 10.0.0.0/8, 2001:dba::/48",
        )],
        async |app: &App| {
            let key = key_with_allowlist(app).await;
            let paths = [
                "/authz/forward-auth",
                "/authz/auth-request",
                "/authz/ext-authz/-/x",
            ];
            let authorize = async |hops: &[&str]| {
                let mut outcomes = Vec::new();
                for path in paths {
                    let call = app.get(path).header("x-api-key", &key);
                    let reply = hops
                        .iter()
                        .fold(call, |call, hops| call.header("x-forwarded-for", hops))
                        .await;
                    let code = if reply.status == 200 {
                        String::new()
                    } else {
                        reply.code()
                    };
                    outcomes.push((reply.status, code));
                }
                outcomes.dedup();
                assert_eq!(outcomes.len(), 1, "{hops:?}: {outcomes:?}");
                outcomes.remove(0)
            };
            for (address, allowed) in ADDRESSES
                .into_iter()
                .filter(|(address, _)| *address != "127.0.0.1")
            {
                let expected = if allowed {
                    (200, String::new())
                } else {
                    (403, "ip_not_allowed".to_owned())
                };
                assert_eq!(authorize(&[address]).await, expected, "{address}");
            }
            for (hops, allowed) in [
                // A client can write anything to the left of the rightmost untrusted hop.
                (&["203.0.113.9, 198.51.100.99"][..], false),
                (&["198.51.100.99, 203.0.113.9"], true),
                (&["x, 203.0.113.9"], true),
                (&["203.0.113.9,10.1.2.3 , 127.0.0.1"], true),
                (&["198.51.100.99, 203.0.113.9, ::ffff:10.1.2.3"], true),
                (&["203.0.113.9, 2001:dba::1"], true),
                (&["203.0.113.9, 198.51.100.99, 10.1.2.3"], false),
                // Several headers form one list, in their order.
                (&["203.0.113.9", "198.51.100.99"], false),
                (&["198.51.100.99", "203.0.113.9"], true),
                (&["203.0.113.9", "10.1.2.3"], true),
                // Without a client: the list is absent, empty or invalid, or has only trusted proxies.
                (&[], false),
                (&[""], false),
                (&["203.0.113.9, "], false),
                (&["203.0.113.9, unknown"], false),
                (&["10.1.2.3, 127.0.0.1"], false),
                // A port is ignored.
                (&["203.0.113.9, 10.1.2.3:443"], true),
                (&["203.0.113.9:443"], true),
            ] {
                let expected = if allowed {
                    (200, String::new())
                } else {
                    (403, "ip_not_allowed".to_owned())
                };
                assert_eq!(authorize(hops).await, expected, "{hops:?}");
            }
            // No other header can set the IP address of the client.
            for (name, value) in [
                ("x-real-ip", "203.0.113.9"),
                ("forwarded", "for=203.0.113.9"),
                ("x-client-ip", "203.0.113.9"),
            ] {
                let reply = app
                    .get(paths[0])
                    .header("x-api-key", &key)
                    .header(name, value)
                    .await;
                assert_eq!(reply.code(), "ip_not_allowed", "{name}");
            }
        },
    )
    .await;
}

/// A peer that is not a trusted proxy is the client, regardless of its headers.
#[actix_web::test]
async fn untrusted_peer_is_the_client() {
    each_backend_with(
        &[("TOLLKEY_TRUSTED_PROXIES", "10.0.0.0/8")],
        async |app: &App| {
            let key = key_with_allowlist(app).await;
            let mut body = key_request("live", "secret");
            body["allowedIps"] = json!(["127.0.0.0/8"]);
            let local_key = create_key(app, &app.management_token("acme"), body)
                .await
                .text;
            for hops in ["203.0.113.9", "10.1.2.3", ""] {
                let forward_auth = |key: &str| {
                    app.get("/authz/forward-auth")
                        .header("x-api-key", key)
                        .header("x-forwarded-for", hops)
                };
                assert_eq!(forward_auth(&key).await.code(), "ip_not_allowed", "{hops}");
                assert_eq!(forward_auth(&local_key).await.status, 200, "{hops}");
                assert_eq!(
                    app.get("/whoami")
                        .bearer(&local_key)
                        .header("x-forwarded-for", hops)
                        .await
                        .status,
                    200,
                    "{hops}"
                );
            }
        },
    )
    .await;
}
