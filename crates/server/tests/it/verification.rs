//! Verification by resource servers: `POST /verify`, `/verify/batch`, `/introspect`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tollkey_core::{
    Family, IpList, Mode, PlainKey, RateLimit, Restrictions, Scope, feature::Feature,
    key_format::CredentialKind, metadata::Metadata,
};

use crate::{
    app::valid_scopes,
    assert_response,
    support::{App, Key, each_backend, each_backend_with},
};

/// The grants of a scoped key.
fn scoped(merchants: Option<&[&str]>, features: Option<&[Feature]>) -> Restrictions {
    Restrictions {
        scopes: vec![Scope::COMMERCE],
        merchants: merchants.map(|all| all.iter().map(ToString::to_string).collect()),
        features: features.map(<[Feature]>::to_vec),
        ..Restrictions::default()
    }
}

async fn set_model(app: &App, account: &str, model: &str) {
    let body = json!({"operating_model": model});
    let reply = app
        .put(&format!("/accounts/{account}"), body)
        .bearer(&app.operator())
        .await;
    assert_eq!(reply.status, 200, "{reply}");
}

/// The code of one verification.
async fn code(app: &App, key: &str, need: Value) -> String {
    app.verify(key, need).await["code"]
        .as_str()
        .expect("a code")
        .to_owned()
}

#[actix_web::test]
async fn verification_returns_the_key_and_its_rate_limit() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let plain = app.key(&token, &application, json!({})).await;
        let full = json!({
            "mode": "test", "scopes": ["sessions:write", "links:read"], "expiresAt": "2100-01-01T00:00:00Z",
            "allowedIps": ["203.0.113.0/24"], "rateLimit": {"limit": 5, "windowSeconds": 60},
            "metadata": {"owner": "checkout", "n": 1.5}
        });
        let full = app.key(&token, &application, full).await;
        let service = app.service_key().await.text;
        let verify = |body: Value| app.post("/verify", body).bearer(&service);
        assert_response!(verify(json!({"key": plain.text})).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00NV74KXA9TJP4XGY2

        {
          "valid": true,
          "code": "valid",
          "key": {
            "id": "019b76da-a800-7a88-a527-a819b062c680",
            "account_id": "acme",
            "application_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
            "name": "Checkout",
            "family": "application",
            "mode": "live",
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
            "expires_at": null,
            "metadata": null
          },
          "rate_limit": null
        }
        "#);
        let need = json!({
            "key": full.text, "method": "POST", "path": "/api/v1/sessions?draft=1", "scopes": ["sessions:write"],
            "mode": "test", "merchant": "merchant_42", "client_ip": "203.0.113.7"
        });
        assert_response!(verify(need).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00KBT51SJGTPW3GV2C

        {
          "valid": true,
          "code": "valid",
          "key": {
            "id": "019b76da-a800-785a-95eb-050352795d0b",
            "account_id": "acme",
            "application_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
            "name": "Checkout",
            "family": "application",
            "mode": "test",
            "scopes": [
              "links:read",
              "sessions:write"
            ],
            "merchants": null,
            "features": null,
            "expires_at": 4102444800,
            "metadata": {
              "owner": "checkout",
              "n": 1.5
            }
          },
          "rate_limit": {
            "limit": 5,
            "remaining": 4,
            "reset_seconds": 12,
            "window_seconds": 60
          }
        }
        "#);
        assert_response!(verify(json!({"key": full.text})).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00X10FT5EH97NQV0VD

        {
          "valid": false,
          "code": "ip_not_allowed"
        }
        "#);
        assert_response!(verify(json!({"key": "nonsense"})).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA009GA2HK19PGS0Z41Q

        {
          "valid": false,
          "code": "unknown_key"
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn scoped_key_has_its_merchants_and_features_in_the_response() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let restrictions = scoped(
            Some(&["m_1", "m_2"]),
            Some(&[Feature::TokensList, Feature::CardholderDataForward]),
        );
        let text = app.generate_key(Family::Commerce, Mode::Live);
        let key = app
            .insert("acme", &text, |key| {
                key.restrictions = restrictions;
                key.metadata = Some(
                    Metadata::new(serde_json::Map::from_iter([("a".to_owned(), json!([1]))]))
                        .unwrap(),
                );
            })
            .await;
        let need = json!({"key": key.text, "method": "GET", "path": "/tokens", "merchant": "m_2"});
        assert_response!(app.post("/verify", need).bearer(&app.service()).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA000QT6EFQNM6ZM32RB

        {
          "valid": true,
          "code": "valid",
          "key": {
            "id": "019b76da-a800-73ae-8c3e-f99b8df24e81",
            "account_id": "acme",
            "application_id": null,
            "name": "Example",
            "family": "commerce",
            "mode": "live",
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
            "merchants": [
              "m_1",
              "m_2"
            ],
            "features": [
              "tokens.list",
              "cardholder_data.forward"
            ],
            "expires_at": null,
            "metadata": {
              "a": [
                1
              ]
            }
          },
          "rate_limit": null
        }
        "#);
    })
    .await;
}

/// A key that violates every rule is fixed one rule at a time. Each response has the first denial
/// that still applies.
#[actix_web::test]
async fn denial_has_the_first_code_in_the_documented_order() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let status = format!("/applications/{application}/status");
        assert_eq!(app.patch(&status, json!({"isEnabled": false})).bearer(&token).await.status, 200);
        let now = tollkey_core::Clock::now(&app.clock);
        let key = app
            .insert("acme", &app.generate_key(Family::Application, Mode::Test), |key| {
                key.application_id = application.parse().ok();
                key.restrictions = Restrictions {
                    scopes: vec![Scope::LINKS_READ],
                    allowed_ips: IpList::parse(["203.0.113.0/24"]).ok(),
                    rate_limit: RateLimit::new(1, 60).ok(),
                    expires_at: Some(now),
                    ..scoped(Some(&["m_1"]), Some(&[Feature::TokensList]))
                };
                key.suspended_at = Some(now);
                key.revoked_at = Some(now);
            })
            .await;
        let mut need = json!({
            "mode": "live", "client_ip": "198.51.100.1", "method": "GET", "path": "/links", "merchant": "m_2",
            "scopes": ["links:write"]
        });

        // 1: another account's secret key must not learn that the key exists.
        let stranger = app.insert_key("globex", Family::Secret, Mode::Live).await;
        let mut body = need.clone();
        body["key"] = json!(key.text);
        let reply = app.post("/verify", body).bearer(&stranger).await;
        assert_eq!(reply.body, r#"{"valid":false,"code":"unknown_key"}"#);
        // 2 to 5: the state of the key.
        assert_eq!(code(app, &key.text, need.clone()).await, "revoked");
        app.edit_key("acme", &key.id, |key| key.revoked_at = None).await;
        assert_eq!(code(app, &key.text, need.clone()).await, "expired");
        app.edit_key("acme", &key.id, |key| key.restrictions.expires_at = None).await;
        assert_eq!(code(app, &key.text, need.clone()).await, "suspended");
        app.edit_key("acme", &key.id, |key| key.suspended_at = None).await;
        assert_eq!(code(app, &key.text, need.clone()).await, "application_disabled");
        assert_eq!(app.patch(&status, json!({"isEnabled": true})).bearer(&token).await.status, 200);
        // 6 to 10: the request.
        let steps = [
            ("wrong_mode", "mode", json!("test")),
            ("ip_not_allowed", "client_ip", json!("203.0.113.9")),
            ("route_not_allowed", "path", json!("/tokens")),
            ("merchant_not_allowed", "merchant", json!("m_1")),
            ("insufficient_scope", "scopes", json!(["links:read"])),
        ];
        let mut wrong = BTreeMap::new();
        for (expected, member, allowed_value) in &steps {
            assert_eq!(code(app, &key.text, need.clone()).await, *expected);
            wrong.insert(*member, std::mem::replace(&mut need[*member], allowed_value.clone()));
        }
        // 11: no denial so far used the rate limit of one.
        let mut codes = Vec::new();
        for _ in 0..2 {
            codes.push(code(app, &key.text, need.clone()).await);
        }
        assert_eq!(codes, ["valid", "rate_limited"]);
        // Every other denial comes before an exceeded rate limit.
        for (expected, member, _) in &steps {
            let mut need = need.clone();
            need[*member] = wrong[member].clone();
            assert_eq!(code(app, &key.text, need).await, *expected);
        }
        // A denial contains only its code.
        let denied = app.verify(&key.text, need).await;
        assert_eq!(denied, json!({"valid": false, "code": "rate_limited"}));
    })
    .await;
}

#[actix_web::test]
async fn restricted_key_is_denied_without_the_field_it_needs() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let insert = async |restrictions| {
            app.insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
                .await
        };
        let routes = insert(scoped(None, Some(&[Feature::TokensList]))).await;
        let merchants = insert(scoped(Some(&["m_1"]), None)).await;
        let allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
        let addresses = insert(Restrictions {
            allowed_ips,
            ..scoped(None, None)
        })
        .await;
        let free = insert(scoped(None, None)).await;
        for (key, need, expected) in [
            (&routes, json!({"path": "/tokens"}), "route_not_allowed"),
            (&routes, json!({"method": "GET"}), "route_not_allowed"),
            (
                &routes,
                json!({"method": null, "path": null}),
                "route_not_allowed",
            ),
            (
                &routes,
                json!({"method": "GET", "path": "/tokens"}),
                "valid",
            ),
            (&merchants, json!({"merchant": "m_1"}), "route_not_allowed"),
            (
                &merchants,
                json!({"method": "GET", "path": "/tokens"}),
                "merchant_not_allowed",
            ),
            (
                &merchants,
                json!({"method": "GET", "path": "/tokens", "merchant": "m_1"}),
                "valid",
            ),
            (
                &merchants,
                json!({"method": "GET", "path": "/tokens", "merchant": "M_1"}),
                "merchant_not_allowed",
            ),
            (&addresses, json!({}), "ip_not_allowed"),
            (&addresses, json!({"client_ip": "203.0.113.1"}), "valid"),
            (&free, json!({}), "valid"),
            (
                &free,
                json!({"method": "BREW", "path": "/../x", "merchant": "m_9", "client_ip": "::1"}),
                "valid",
            ),
        ] {
            assert_eq!(code(app, key, need.clone()).await, expected, "{need}");
        }
    })
    .await;
}

#[actix_web::test]
async fn scoped_key_is_valid_only_for_routes_of_its_features() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let insert = async |features| {
            app.insert_key_with(
                "acme",
                Family::Commerce,
                Mode::Live,
                scoped(None, Some(features)),
            )
            .await
        };
        let list = insert(&[Feature::TokensList]).await;
        let retrieve = insert(&[Feature::TokensRetrieve]).await;
        let forward = insert(&[Feature::PaymentDataForward, Feature::CardholderDataForward]).await;
        let bundles = insert(&[Feature::PaymentDataList]).await;
        for (key, method, path, allowed) in [
            (&list, "GET", "/tokens", true),
            (&list, "HEAD", "/tokens", true),
            (&list, "GET", "/tokens?limit=2&path=/../forward", true),
            (&list, "get", "/tokens", false),
            (&list, "POST", "/tokens", false),
            (&list, "GET", "/tokens/", false),
            (&list, "GET", "//tokens", false),
            (&list, "GET", "/Tokens", false),
            (&list, "GET", "/tokens/t_1", false),
            (&list, "GET", "tokens", false),
            (&list, "GET", "", false),
            // The route base is removed once.
            (&list, "GET", "/api/tokens", true),
            (&list, "GET", "/api/api/tokens", false),
            (&list, "GET", "/apitokens", false),
            (&list, "GET", "/v1/tokens", false),
            (&retrieve, "GET", "/tokens/t_1", true),
            (&retrieve, "GET", "/tokens/t%201", true),
            (&retrieve, "GET", "/tokens", false),
            (&retrieve, "GET", "/tokens/t_1/payment-data", false),
            // Ambiguous paths, which two parsers could read differently, match nothing.
            (&retrieve, "GET", "/tokens/..", false),
            (&retrieve, "GET", "/tokens/.", false),
            (&retrieve, "GET", "/tokens//t_1", false),
            (&retrieve, "GET", "/tokens/%2e%2E", false),
            (&retrieve, "GET", "/tokens/a%2fb", false),
            (&retrieve, "GET", "/tokens/a%2Fb", false),
            (&retrieve, "GET", "/tokens/a%5cb", false),
            (&retrieve, "GET", "/tokens/a%00", false),
            (&retrieve, "GET", "/tokens/a%252f", false),
            (&retrieve, "GET", "/tokens/a;x=1", false),
            (&retrieve, "GET", "/tokens/a\\b", false),
            (&retrieve, "GET", "/tokens/a#b", false),
            (&retrieve, "GET", "/tokens/é", false),
            (&bundles, "GET", "/tokens/t_1/payment-data", true),
            (&bundles, "GET", "/tokens//payment-data", false),
            (&forward, "POST", "/payment-data/p_1/forward", true),
            (&forward, "POST", "/forward", true),
            (&forward, "GET", "/forward", false),
            (&forward, "POST", "/payment-data/p_1/forward/x", false),
        ] {
            let expected = if allowed {
                "valid"
            } else {
                "route_not_allowed"
            };
            assert_eq!(
                code(app, key, json!({"method": method, "path": path})).await,
                expected,
                "{method} {path}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn operating_model_limits_features_of_existing_keys() {
    each_backend(async |app: &App| {
        let all = app
            .insert_key_with(
                "acme",
                Family::Commerce,
                Mode::Live,
                scoped(Some(&["m_1"]), None),
            )
            .await;
        let features = scoped(
            None,
            Some(&[Feature::TokensList, Feature::CardholderDataForward]),
        );
        let two = app
            .insert_key_with("acme", Family::Commerce, Mode::Live, features)
            .await;
        let list = json!({"method": "GET", "path": "/tokens", "merchant": "m_1"});
        let forward = json!({"method": "POST", "path": "/forward", "merchant": "m_1"});
        for (model, lists, forwards) in [
            (None, false, false), // the default, primary_merchant
            (Some("ecosystem"), true, true),
            (Some("managed_ecosystem"), false, true),
            (Some("platform"), false, false),
            (Some("ecosystem"), true, true),
            (Some("primary_merchant"), false, false),
        ] {
            if let Some(model) = model {
                set_model(app, "acme", model).await;
                set_model(app, "globex", "ecosystem").await; // another account's model does not matter
            }
            for key in [&all, &two] {
                for (need, allowed) in [(&list, lists), (&forward, forwards)] {
                    let expected = if allowed {
                        "valid"
                    } else {
                        "route_not_allowed"
                    };
                    assert_eq!(
                        code(app, key, need.clone()).await,
                        expected,
                        "{model:?} {need}"
                    );
                }
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn publishable_key_is_valid_only_for_publishable_routes() {
    each_backend_with(&[("TOLLKEY_ROUTE_BASE", "/shop")], async |app: &App| {
        let key = app
            .insert_key("acme", Family::Publishable, Mode::Live)
            .await;
        for (method, path, allowed) in [
            ("GET", "/v1/storefront/public/config", true),
            ("GET", "/v1/storefront/public/a/b/c", true),
            ("HEAD", "/v1/storefront/products", true),
            ("GET", "/v1/storefront/products/p_1?fields=name", true),
            ("GET", "/shop/v1/storefront/products", true),
            ("GET", "/shop/shop/v1/storefront/products", false),
            ("GET", "/api/v1/storefront/products", false),
            ("GET", "/v1/storefront/public", false),
            ("GET", "/v1/storefront/public/", false),
            ("GET", "/v1/storefront/public/../orders", false),
            ("GET", "/v1/storefront/products/p_1/reviews", false),
            ("POST", "/v1/storefront/products", false),
            ("GET", "/v1/account/api-keys", false),
        ] {
            let expected = if allowed {
                "valid"
            } else {
                "route_not_allowed"
            };
            assert_eq!(
                code(app, &key, json!({"method": method, "path": path})).await,
                expected,
                "{method} {path}"
            );
        }
        assert_eq!(code(app, &key, json!({})).await, "route_not_allowed");
        // It has no scopes.
        let need =
            json!({"method": "GET", "path": "/v1/storefront/products", "scopes": ["links:read"]});
        assert_eq!(code(app, &key, need).await, "insufficient_scope");
        let need = json!({"method": "GET", "path": "/v1/storefront/products", "scopes": []});
        assert_eq!(app.verify(&key, need).await["key"]["scopes"], json!([]));
    })
    .await;
}

#[actix_web::test]
async fn ip_allowlist_matches_cidrs_and_ipv4_mapped_addresses() {
    each_backend(async |app: &App| {
        let allowed_ips = IpList::parse(["203.0.113.0/24", "2001:db8::/32", "192.0.2.7/32"]).ok();
        let restrictions = Restrictions {
            allowed_ips,
            ..scoped(None, None)
        };
        let key = app
            .insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
            .await;
        for (address, allowed) in [
            ("203.0.113.0", true),
            ("203.0.113.255", true),
            ("203.0.114.0", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:203.0.113.9", true),
            ("::ffff:198.51.100.9", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("::1", false),
        ] {
            let expected = if allowed { "valid" } else { "ip_not_allowed" };
            assert_eq!(
                code(app, &key, json!({"client_ip": address})).await,
                expected,
                "{address}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn all_scopes_are_required_and_aliases_are_expanded() {
    let settings = [
        ("TOLLKEY_SCOPES", "orders:read,orders:write"),
        ("TOLLKEY_COMMERCE_SCOPES", "orders:read"),
    ];
    each_backend_with(&settings, async |app: &App| {
        let insert = async |family, scopes: &[Scope]| {
            let restrictions = Restrictions {
                scopes: scopes.to_vec(),
                ..Restrictions::default()
            };
            app.insert_key_with("acme", family, Mode::Live, restrictions)
                .await
        };
        let commerce = insert(Family::Commerce, &[Scope::COMMERCE]).await;
        let nine = insert(Family::Commerce, &Scope::BUILT_IN[1..]).await;
        let write_only = insert(Family::Commerce, &[Scope::SESSIONS_WRITE]).await;
        let secret = insert(Family::Secret, &[]).await;
        let built_in = Scope::BUILT_IN.map(|scope| scope.to_string());
        let with = |more: &[&str]| {
            let more = more.iter().map(ToString::to_string);
            built_in.iter().cloned().chain(more).collect::<Vec<_>>()
        };
        let printed = async |key| app.verify(key, json!({})).await["key"]["scopes"].clone();
        assert_eq!(printed(&commerce).await, json!(with(&["orders:read"])));
        assert_eq!(printed(&nine).await, json!(built_in[1..]));
        assert_eq!(printed(&write_only).await, json!(["sessions:write"]));
        assert_eq!(
            printed(&secret).await,
            json!(with(&["orders:read", "orders:write"]))
        );
        for (key, scopes, allowed) in [
            (&commerce, json!(with(&["orders:read"])), true),
            (&commerce, json!(["links:read", "orders:write"]), false),
            (&nine, json!(["links:read", "customers:write"]), true),
            (&nine, json!(["commerce"]), false),
            (&write_only, json!(["sessions:write"]), true),
            (&write_only, json!(["sessions:read"]), false), // write does not imply read
            (&write_only, json!(["sessions:write", "links:read"]), false),
            (&write_only, json!([]), true),
            (&write_only, Value::Null, true),
            (&secret, json!(["commerce", "orders:write"]), true),
        ] {
            let expected = if allowed {
                "valid"
            } else {
                "insufficient_scope"
            };
            assert_eq!(
                code(app, key, json!({"scopes": scopes})).await,
                expected,
                "{scopes}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn rate_limit_is_exact_in_parallel_and_restored_evenly() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let limited =
            json!({"scopes": ["links:read"], "rateLimit": {"limit": 50, "windowSeconds": 100}});
        let key = app.key(&token, &application, limited).await;
        // A denial for another reason does not use the limit.
        for _ in 0..60 {
            assert_eq!(
                code(app, &key.text, json!({"scopes": ["links:write"]})).await,
                "insufficient_scope"
            );
        }
        let service = app.service();
        let calls = (0..200).map(|_| {
            app.post("/verify", json!({"key": key.text}))
                .bearer(&service)
                .into_future()
        });
        let replies = futures_util::future::join_all(calls).await;
        let mut remaining: Vec<i64> = Vec::new();
        for reply in &replies {
            assert_eq!(reply.status, 200, "{reply}");
            let json = reply.json();
            if json["valid"] == true {
                assert_eq!(json["rate_limit"]["limit"], 50);
                let left = json["rate_limit"]["remaining"].as_i64().unwrap();
                assert_eq!(json["rate_limit"]["reset_seconds"], (50 - left) * 2);
                remaining.push(left);
            } else {
                assert_eq!(reply.body, r#"{"valid":false,"code":"rate_limited"}"#);
            }
        }
        remaining.sort_unstable();
        assert_eq!(remaining, (0..50).collect::<Vec<_>>());
        app.clock.advance(Duration::from_secs(2));
        let codes = [app.code(&key.text).await, app.code(&key.text).await];
        assert_eq!(codes, ["valid", "rate_limited"]);
        // A change to the key does not reset the rate limit.
        app.edit_key("acme", &key.id, |key| key.name = "Renamed".to_owned())
            .await;
        assert_eq!(app.code(&key.text).await, "rate_limited");
        app.clock.advance(Duration::from_secs(100));
        let verdict = app.verify(&key.text, json!({})).await;
        assert_eq!(
            verdict["rate_limit"],
            json!({"limit": 50, "remaining": 49, "reset_seconds": 2, "window_seconds": 100})
        );
        assert_eq!(verdict["key"]["name"], "Renamed");
    })
    .await;
}

#[actix_web::test]
async fn anything_but_an_api_key_is_unknown() {
    each_backend(async |app: &App| {
        let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let service_key = app.service_key().await.text;
        let random = &key["ck_live_".len()..];
        for text in [
            service_key.clone(),
            app.management_token("acme"),
            String::new(),
            "nonsense".to_owned(),
            format!("ck_test_{random}"),
            format!("ks_live_{random}"),
            format!("CK_live_{random}"),
            format!("tks_{random}"),
            random.to_owned(),
            format!("{key}x"),
            key[..key.len() - 1].to_owned(),
            format!(" {key}"),
            format!("Bearer {key}"),
            format!("secret-token:secret-token:{key}"),
            format!("SECRET-TOKEN:{key}"),
            format!("{}{key}", "x".repeat(20_000)),
            app.generate_key(Family::Commerce, Mode::Live)
                .expose()
                .to_owned(),
        ] {
            assert_eq!(
                app.verify(&text, json!({})).await,
                json!({"valid": false, "code": "unknown_key"})
            );
        }
        assert_eq!(app.code(&key).await, "valid");
        assert_eq!(app.code(&format!("secret-token:{key}")).await, "valid"); // RFC 8959
        // A service key with that prefix authenticates, too.
        let with_prefix = app
            .post("/verify", json!({"key": key}))
            .bearer(&format!("secret-token:{service_key}"))
            .await;
        assert_eq!(with_prefix.json()["code"], "valid");
    })
    .await;
}

#[actix_web::test]
async fn secret_key_verifies_only_keys_of_its_account_and_mode() {
    each_backend(async |app: &App| {
        let mut keys = BTreeMap::new();
        for account in ["acme", "globex"] {
            for (family, mode, name) in [
                (Family::Commerce, Mode::Live, "ck_live"),
                (Family::Commerce, Mode::Test, "ck_test"),
                (Family::Secret, Mode::Live, "sk_live"),
                (Family::Secret, Mode::Test, "sk_test"),
            ] {
                keys.insert(
                    format!("{account} {name}"),
                    app.insert_key(account, family, mode).await,
                );
            }
        }
        for (viewer, visible) in [
            (
                "acme sk_live",
                &[
                    "acme ck_live",
                    "acme ck_test",
                    "acme sk_live",
                    "acme sk_test",
                ][..],
            ),
            ("acme sk_test", &["acme ck_test", "acme sk_test"]),
            ("globex sk_test", &["globex ck_test", "globex sk_test"]),
        ] {
            for (name, key) in &keys {
                let reply = app
                    .post("/verify", json!({"key": key}))
                    .bearer(&keys[viewer])
                    .await;
                let introspected = app
                    .call("POST", "/introspect")
                    .form(&format!("token={key}"))
                    .bearer(&keys[viewer])
                    .await;
                if visible.contains(&name.as_str()) {
                    assert_eq!(reply.json()["valid"], true, "{viewer} verifies {name}");
                    assert_eq!(
                        introspected.json()["active"],
                        true,
                        "{viewer} verifies {name}"
                    );
                } else {
                    assert_eq!(
                        reply.body, r#"{"valid":false,"code":"unknown_key"}"#,
                        "{viewer} verifies {name}"
                    );
                    assert_eq!(
                        introspected.body, r#"{"active":false}"#,
                        "{viewer} verifies {name}"
                    );
                }
            }
        }
        // A revoked key of another account looks like an unknown key in a batch, too.
        let revoked = app
            .insert(
                "globex",
                &app.generate_key(Family::Commerce, Mode::Test),
                |key| key.revoked_at = Some(key.created_at),
            )
            .await;
        let batch = json!({"requests": [{"key": revoked.text}]});
        let reply = app
            .post("/verify/batch", batch)
            .bearer(&keys["acme sk_live"])
            .await;
        assert_eq!(
            reply.body,
            r#"{"results":[{"valid":false,"code":"unknown_key"}]}"#
        );
    })
    .await;
}

#[actix_web::test]
async fn batch_has_its_results_in_the_order_of_requests() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let key = app
            .key(&token, &application, json!({"scopes": ["links:read"]}))
            .await;
        let limited = app
            .key(
                &token,
                &application,
                json!({"rateLimit": {"limit": 2, "windowSeconds": 60}}),
            )
            .await;
        let service = app.service();
        let batch = async |requests: Value| {
            app.post("/verify/batch", json!({"requests": requests}))
                .bearer(&service)
                .await
        };
        let requests = json!([
            {"key": limited.text},
            {"key": key.text, "scopes": ["links:write"]},
            {"key": "nonsense"},
            {"key": limited.text},
            {"key": limited.text},
            {"key": key.text, "scopes": ["links:read"]},
        ]);
        let reply = batch(requests).await.json();
        let codes: Vec<&Value> = reply["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| &result["code"])
            .collect();
        assert_eq!(
            codes,
            [
                "valid",
                "insufficient_scope",
                "unknown_key",
                "valid",
                "rate_limited",
                "valid"
            ]
        );
        assert_eq!(
            reply["results"][0]["rate_limit"],
            json!({"limit": 2, "remaining": 1, "reset_seconds": 30, "window_seconds": 60})
        );
        assert_eq!(
            reply["results"][1],
            json!({"valid": false, "code": "insufficient_scope", "missing_scopes": ["links:write"]})
        );
        assert_eq!(
            reply["results"][2],
            json!({"valid": false, "code": "unknown_key"})
        );
        let verdict = app
            .verify(
                &key.text,
                json!({"scopes": ["commerce", "links:read", "events:read"]}),
            )
            .await;
        assert_eq!(
            verdict["missing_scopes"],
            json!(["commerce", "events:read"])
        );
        // The same result as from `/verify`.
        assert_eq!(
            reply["results"][5],
            app.verify(&key.text, json!({"scopes": ["links:read"]}))
                .await
        );

        let hundred = vec![json!({"key": key.text}); 100];
        let reply = batch(json!(hundred)).await;
        assert_eq!(reply.json()["results"].as_array().map(Vec::len), Some(100));
        for count in [0, 101] {
            let rejected = batch(json!(vec![json!({"key": key.text}); count])).await;
            assert_eq!(
                (rejected.status, rejected.errors()),
                (400, vec!["/requests must have 1 to 100 items".to_owned()])
            );
        }
        // One invalid request rejects the batch before any verification, so the rate limit is unchanged.
        app.clock.advance(Duration::from_secs(60));
        let rejected = batch(json!([
            {"key": limited.text},
            {"key": limited.text, "scopes": ["links:delete"]},
            {"key": limited.text},
            {"key": limited.text, "client_ip": "10.0.0.0/8", "merchant": "a b"},
        ]))
        .await;
        assert_eq!(rejected.status, 400);
        let pointers: Vec<String> = rejected
            .errors()
            .iter()
            .map(|error| error.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            pointers,
            [
                "/requests/1/scopes",
                "/requests/3/merchant",
                "/requests/3/client_ip"
            ]
        );
        assert_eq!(
            app.verify(&limited.text, json!({})).await["rate_limit"]["remaining"],
            1
        );
        for (body, expected) in [
            (
                json!([{"key": "x"}, {"key": "x", "pathh": "/"}]),
                "/requests/1/pathh is unknown; did you mean `path`?",
            ),
            (json!([{"method": "GET"}]), "/requests/0/key is required"),
            (json!([{"key": 7}]), "/requests/0/key must be a string"),
            (
                json!([{"key": "x", "mode": "prod"}]),
                "/requests/0/mode must be one of live, test",
            ),
            (json!({"key": "x"}), "/requests must be an array"),
        ] {
            assert_eq!(batch(body.clone()).await.errors(), [expected], "{body}");
        }
    })
    .await;
}

#[actix_web::test]
async fn invalid_verification_requests_are_400_with_the_field() {
    each_backend(async |app: &App| {
        let service = app.service();
        for (body, expected) in [
            (json!({}), "/key is required"),
            (json!({"key": null}), "/key must be a string"),
            (
                json!({"key": "x", "client_ip": "localhost"}),
                "/client_ip must be an IPv4 or IPv6 address",
            ),
            (
                json!({"key": "x", "client_ip": "203.0.113.7:80"}),
                "/client_ip must be an IPv4 or IPv6 address",
            ),
            (
                json!({"key": "x", "merchant": ""}),
                "/merchant must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -",
            ),
            (
                json!({"key": "x", "method": "M".repeat(33)}),
                "/method must have at most 32 bytes",
            ),
            (
                json!({"key": "x", "path": format!("/{}", "p".repeat(8192))}),
                "/path must have at most 8192 bytes",
            ),
            (
                json!({"key": "x", "mode": "Live"}),
                "/mode must be one of live, test",
            ),
            (
                json!({"key": "x", "scopes": "links:read"}),
                "/scopes must be an array",
            ),
            (
                json!({"key": "x", "scopes": ["links:read", "link"]}),
                &format!(
                    "/scopes unknown scope `link`; valid scopes are {}",
                    valid_scopes()
                ),
            ),
            (
                json!({"key": "x", "account_id": "acme"}),
                "/account_id is unknown",
            ),
        ] {
            let reply = app.post("/verify", body.clone()).bearer(&service).await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![expected.to_owned()]),
                "{body}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn introspection_returns_the_rfc_7662_fields_of_a_key() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let body =
            json!({"mode": "test", "scopes": ["sessions:read", "sessions:write"], "expiresAt": "2100-01-01T00:00:00Z"});
        let key: Key = app.key(&token, &application, body).await;
        let plain = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let service = app.service_key().await.text;
        let introspect = |form: &str| app.call("POST", "/introspect").form(form).bearer(&service);
        assert_response!(introspect(&format!("token={}&token_type_hint=access_token", key.text)).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00MHSCK1QQEGAR82JJ

        {
          "active": true,
          "scope": "sessions:read sessions:write",
          "client_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "sub": "acme",
          "token_type": "Bearer",
          "exp": 4102444800,
          "iat": 1767225600,
          "jti": "019b76da-a800-7a88-a527-a819b062c680",
          "mode": "test"
        }
        "#);
        assert_response!(introspect(&format!("token={plain}")).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00JTGZBR614A5HCB9C

        {
          "active": true,
          "scope": "commerce links:read links:write sessions:read sessions:write webhooks:read webhooks:write events:read customers:read customers:write",
          "sub": "acme",
          "token_type": "Bearer",
          "iat": 1767225600,
          "jti": "019b76da-a800-78b6-8bfd-08ae601f6497",
          "mode": "live"
        }
        "#);
        assert_response!(introspect("token=nonsense").await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00NV74KXA9TJP4XGY2

        {
          "active": false
        }
        "#);
        // The optional fields of verification, as extensions.
        for (extension, active) in [
            ("scopes=sessions%3Aread+sessions%3Awrite", true),
            ("scopes=sessions:read%20links:read", false),
            ("scopes=", true),
            ("mode=test", true),
            ("mode=live", false),
            ("method=GET&path=/tokens&merchant=m_1&client_ip=203.0.113.7", true),
        ] {
            let reply = introspect(&format!("token={}&{extension}", key.text)).await;
            assert_eq!(reply.json()["active"], active, "{extension}");
            assert!(active || reply.body == r#"{"active":false}"#, "{extension}");
        }
        // All inactive keys have the same response.
        app.edit_key("acme", &key.id, |key| key.suspended_at = Some(key.created_at)).await;
        assert_eq!(introspect(&format!("token={}", key.text)).await.body, r#"{"active":false}"#);
        assert_eq!(introspect(&format!("token={service}")).await.body, r#"{"active":false}"#);
        assert_eq!(introspect(&format!("token={token}")).await.body, r#"{"active":false}"#);
    })
    .await;
}

#[actix_web::test]
async fn invalid_introspection_requests_are_400_with_the_field() {
    each_backend(async |app: &App| {
        let service = app.service();
        for (form, expected) in [
            ("", "/token is required"),
            ("token=a&token=b", "/token must not be repeated"),
            (
                "token=a&tokens=b",
                "/tokens is unknown; did you mean `token`?",
            ),
            ("token=a&mode=prod", "/mode must be one of live, test"),
            (
                "token=a&client_ip=x",
                "/client_ip must be an IPv4 or IPv6 address",
            ),
        ] {
            let reply = app
                .call("POST", "/introspect")
                .form(form)
                .bearer(&service)
                .await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![expected.to_owned()]),
                "{form}"
            );
        }
        let json = app
            .post("/introspect", json!({"token": "a"}))
            .bearer(&service)
            .await;
        assert_eq!(
            (json.status, json.code().as_str()),
            (415, "unsupported_media_type")
        );
        let form = app
            .call("POST", "/verify")
            .form("key=a")
            .bearer(&service)
            .await;
        assert_eq!(
            (form.status, form.code().as_str()),
            (415, "unsupported_media_type")
        );
    })
    .await;
}

#[actix_web::test]
async fn key_created_after_a_failed_lookup_is_found() {
    each_backend(async |app: &App| {
        let text = app.generate_key(Family::Commerce, Mode::Live);
        for _ in 0..3 {
            assert_eq!(app.code(text.expose()).await, "unknown_key");
        }
        app.insert("acme", &text, |_| ()).await;
        assert_eq!(app.code(text.expose()).await, "valid");
        // The same for a service key.
        let state = app.running().state();
        let text = state
            .service
            .random
            .with(|rng| PlainKey::generate(CredentialKind::ServiceKey, rng));
        let verify = || {
            app.post("/verify", json!({"key": "x"}))
                .bearer(text.expose())
        };
        assert_eq!(verify().await.status, 401);
        let id = state
            .service
            .random
            .with(|rng| tollkey_core::ServiceKeyId::new(tollkey_core::Clock::now(&app.clock), rng));
        let key = tollkey_core::ServiceKey {
            id,
            name: "late".to_owned(),
            last4: text.last4(),
            created_at: tollkey_core::Clock::now(&app.clock),
            revoked_at: None,
        };
        let digest = text.digest();
        let written = state
            .service
            .store
            .write(move |tx| tx.insert_service_key(&key, &digest))
            .await;
        let _ = written.expect("a service key in the store");
        assert_eq!(verify().await.status, 200);
    })
    .await;
}

#[actix_web::test]
async fn cached_key_expires_on_time() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let key = app
            .key(
                &token,
                &application,
                json!({"expiresAt": app.in_seconds(2)}),
            )
            .await;
        assert_eq!(app.code(&key.text).await, "valid");
        app.clock.advance(Duration::from_millis(1999));
        assert_eq!(app.code(&key.text).await, "valid");
        let hits = app.running().state().service.verifier.stats().hits;
        app.clock.advance(Duration::from_millis(1));
        assert_eq!(app.code(&key.text).await, "expired");
        assert_eq!(
            app.running().state().service.verifier.stats().hits,
            hits + 1,
            "a cache hit"
        );
    })
    .await;
}

#[actix_web::test]
async fn change_applies_to_the_next_use_of_a_cached_key() {
    each_backend(async |app: &App| {
        let key = app
            .insert(
                "acme",
                &app.generate_key(Family::Commerce, Mode::Live),
                |_| (),
            )
            .await;
        for _ in 0..3 {
            assert_eq!(app.code(&key.text).await, "valid");
            app.edit_key("acme", &key.id, |key| {
                key.suspended_at = Some(key.created_at)
            })
            .await;
            assert_eq!(app.code(&key.text).await, "suspended");
            app.edit_key("acme", &key.id, |key| key.suspended_at = None)
                .await;
        }
        let now = tollkey_core::Clock::now(&app.clock);
        app.edit_key("acme", &key.id, move |key| {
            key.restrictions.expires_at = Some(now)
        })
        .await;
        assert_eq!(app.code(&key.text).await, "expired");
        app.edit_key("acme", &key.id, |key| key.restrictions.expires_at = None)
            .await;
        app.edit_key("acme", &key.id, |key| {
            key.restrictions.scopes = vec![Scope::LINKS_READ]
        })
        .await;
        assert_eq!(
            code(app, &key.text, json!({"scopes": ["links:write"]})).await,
            "insufficient_scope"
        );
        app.edit_key("acme", &key.id, move |key| key.revoked_at = Some(now))
            .await;
        assert_eq!(app.code(&key.text).await, "revoked");
    })
    .await;
}
