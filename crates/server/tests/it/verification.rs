//! Verification asked for by resource servers: `POST /verify`, `/verify/batch`, `/introspect`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tollkey_core::{
    Family, Grants, IpList, KeyText, Mode, RateLimit, Scope, feature::Feature, key_text::Kind,
    metadata::Metadata,
};

use crate::{
    assert_answer,
    support::{App, Key, each_backend, each_backend_with},
};

/// The grants of a scoped key.
fn scoped(merchants: Option<&[&str]>, features: Option<&[Feature]>) -> Grants {
    Grants {
        scopes: vec![Scope::COMMERCE],
        merchants: merchants.map(|all| all.iter().map(ToString::to_string).collect()),
        features: features.map(<[Feature]>::to_vec),
        ..Grants::default()
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
async fn verify_a_key() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
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
        assert_answer!(verify(json!({"key": plain.text})).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00NV74KXA9TJP4XGY2

        {"valid":true,"code":"valid","key":{"id":"019b76da-a800-7a88-a527-a819b062c680","account_id":"acme","application_id":"019b76da-a800-7474-bdc5-e24d2a413b15","name":"Checkout","family":"application","mode":"live","scopes":["commerce","links:read","links:write","sessions:read","sessions:write","webhooks:read","webhooks:write","events:read","customers:read","customers:write"],"merchants":null,"features":null,"expires_at":null,"metadata":null},"rate_limit":null}
        "#);
        let need = json!({
            "key": full.text, "method": "POST", "path": "/api/v1/sessions?draft=1", "scopes": ["sessions:write"],
            "mode": "test", "merchant": "merchant_42", "client_ip": "203.0.113.7"
        });
        assert_answer!(verify(need).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00KBT51SJGTPW3GV2C

        {"valid":true,"code":"valid","key":{"id":"019b76da-a800-785a-95eb-050352795d0b","account_id":"acme","application_id":"019b76da-a800-7474-bdc5-e24d2a413b15","name":"Checkout","family":"application","mode":"test","scopes":["links:read","sessions:write"],"merchants":null,"features":null,"expires_at":4102444800,"metadata":{"owner":"checkout","n":1.5}},"rate_limit":{"limit":5,"remaining":4,"reset_seconds":12,"window_seconds":60}}
        "#);
        assert_answer!(verify(json!({"key": full.text})).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00X10FT5EH97NQV0VD

        {"valid":false,"code":"ip_not_allowed"}
        "#);
        assert_answer!(verify(json!({"key": "nonsense"})).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA009GA2HK19PGS0Z41Q

        {"valid":false,"code":"unknown_key"}
        "#);
    })
    .await;
}

#[actix_web::test]
async fn a_scoped_key_shows_what_it_is_bound_to() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let grants = scoped(Some(&["m_1", "m_2"]), Some(&[Feature::TokensList, Feature::CardholderDataForward]));
        let text = app.mint(Family::Commerce, Mode::Live);
        let key = app
            .insert("acme", &text, |key| {
                key.grants = grants;
                key.metadata = Some(Metadata::new(serde_json::Map::from_iter([("a".to_owned(), json!([1]))])).unwrap());
            })
            .await;
        let need = json!({"key": key.text, "method": "GET", "path": "/tokens", "merchant": "m_2"});
        assert_answer!(app.post("/verify", need).bearer(&app.service()).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA000QT6EFQNM6ZM32RB

        {"valid":true,"code":"valid","key":{"id":"019b76da-a800-73ae-8c3e-f99b8df24e81","account_id":"acme","application_id":null,"name":"Example","family":"commerce","mode":"live","scopes":["commerce","links:read","links:write","sessions:read","sessions:write","webhooks:read","webhooks:write","events:read","customers:read","customers:write"],"merchants":["m_1","m_2"],"features":["tokens.list","cardholder_data.forward"],"expires_at":null,"metadata":{"a":[1]}},"rate_limit":null}
        "#);
    })
    .await;
}

/// A key that breaks every rule is mended one rule at a time: each answer is the first that still applies, whatever
/// else is wrong.
#[actix_web::test]
async fn the_first_denial_that_applies_is_the_answer_in_the_order_of_the_contract() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let token = app.merchant("acme");
        let application = app.application(&token, "Web Store").await;
        let status = format!("/applications/{application}/status");
        assert_eq!(app.patch(&status, json!({"isEnabled": false})).bearer(&token).await.status, 200);
        let now = tollkey_core::Clock::now(&app.clock);
        let key = app
            .insert("acme", &app.mint(Family::Application, Mode::Test), |key| {
                key.application_id = application.parse().ok();
                key.grants = Grants {
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

        // 1: somebody else's secret key must not even learn that it is there.
        let stranger = app.insert_key("globex", Family::Secret, Mode::Live).await;
        let mut body = need.clone();
        body["key"] = json!(key.text);
        let reply = app.post("/verify", body).bearer(&stranger).await;
        assert_eq!(reply.body, r#"{"valid":false,"code":"unknown_key"}"#);
        // 2 to 5: the state of the key.
        assert_eq!(code(app, &key.text, need.clone()).await, "revoked");
        app.edit_key("acme", &key.id, |key| key.revoked_at = None).await;
        assert_eq!(code(app, &key.text, need.clone()).await, "expired");
        app.edit_key("acme", &key.id, |key| key.grants.expires_at = None).await;
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
        for (expected, member, right) in &steps {
            assert_eq!(code(app, &key.text, need.clone()).await, *expected);
            wrong.insert(*member, std::mem::replace(&mut need[*member], right.clone()));
        }
        // 11: none of all that has cost of the allowance, which is one.
        let mut codes = Vec::new();
        for _ in 0..2 {
            codes.push(code(app, &key.text, need.clone()).await);
        }
        assert_eq!(codes, ["valid", "rate_limited"]);
        // Whatever else is wrong comes before an allowance that is used up.
        for (expected, member, _) in &steps {
            let mut need = need.clone();
            need[*member] = wrong[member].clone();
            assert_eq!(code(app, &key.text, need).await, *expected);
        }
        // And a denial says nothing but its code.
        let denied = app.verify(&key.text, need).await;
        assert_eq!(denied, json!({"valid": false, "code": "rate_limited"}));
    })
    .await;
}

#[actix_web::test]
async fn what_a_restriction_needs_and_the_request_lacks_denies() {
    each_backend(async |app: &App| {
        set_model(app, "acme", "ecosystem").await;
        let insert = async |grants| {
            app.insert_key_with("acme", Family::Commerce, Mode::Live, grants)
                .await
        };
        let routes = insert(scoped(None, Some(&[Feature::TokensList]))).await;
        let merchants = insert(scoped(Some(&["m_1"]), None)).await;
        let allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
        let addresses = insert(Grants {
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
async fn a_scoped_key_reaches_its_features_and_nothing_else() {
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
            // The route base is cut once.
            (&list, "GET", "/api/tokens", true),
            (&list, "GET", "/api/api/tokens", false),
            (&list, "GET", "/apitokens", false),
            (&list, "GET", "/v1/tokens", false),
            (&retrieve, "GET", "/tokens/t_1", true),
            (&retrieve, "GET", "/tokens/t%201", true),
            (&retrieve, "GET", "/tokens", false),
            (&retrieve, "GET", "/tokens/t_1/payment-data", false),
            // What two readers may read differently matches nothing.
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
async fn the_operating_model_bounds_features_and_a_change_of_it_applies_to_keys_already_made() {
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
            (None, false, false), // primary_merchant, nobody has said otherwise
            (Some("ecosystem"), true, true),
            (Some("managed_ecosystem"), false, true),
            (Some("platform"), false, false),
            (Some("ecosystem"), true, true),
            (Some("primary_merchant"), false, false),
        ] {
            if let Some(model) = model {
                set_model(app, "acme", model).await;
                set_model(app, "globex", "ecosystem").await; // another account's model is no help
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
async fn a_publishable_key_may_call_storlaunchs_publishable_routes_only() {
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
        // It satisfies no scope at all.
        let need =
            json!({"method": "GET", "path": "/v1/storefront/products", "scopes": ["links:read"]});
        assert_eq!(code(app, &key, need).await, "insufficient_scope");
        let need = json!({"method": "GET", "path": "/v1/storefront/products", "scopes": []});
        assert_eq!(app.verify(&key, need).await["key"]["scopes"], json!([]));
    })
    .await;
}

#[actix_web::test]
async fn an_ip_list_is_of_networks_and_a_mapped_address_is_its_ipv4_one() {
    each_backend(async |app: &App| {
        let allowed_ips = IpList::parse(["203.0.113.0/24", "2001:db8::/32", "192.0.2.7/32"]).ok();
        let grants = Grants {
            allowed_ips,
            ..scoped(None, None)
        };
        let key = app
            .insert_key_with("acme", Family::Commerce, Mode::Live, grants)
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
async fn scopes_are_all_needed_and_printed_expanded() {
    let settings = [
        ("TOLLKEY_SCOPES", "orders:read,orders:write"),
        ("TOLLKEY_COMMERCE_SCOPES", "orders:read"),
    ];
    each_backend_with(&settings, async |app: &App| {
        let insert = async |family, scopes: &[Scope]| {
            let grants = Grants {
                scopes: scopes.to_vec(),
                ..Grants::default()
            };
            app.insert_key_with("acme", family, Mode::Live, grants)
                .await
        };
        let commerce = insert(Family::Commerce, &[Scope::COMMERCE]).await;
        let nine = insert(Family::Commerce, &Scope::BUILT_IN[1..]).await;
        let one = insert(Family::Commerce, &[Scope::SESSIONS_WRITE]).await;
        let secret = insert(Family::Secret, &[]).await;
        let built_in = Scope::BUILT_IN.map(|scope| scope.to_string());
        let with = |more: &[&str]| {
            let more = more.iter().map(ToString::to_string);
            built_in.iter().cloned().chain(more).collect::<Vec<_>>()
        };
        let printed = async |key| app.verify(key, json!({})).await["key"]["scopes"].clone();
        assert_eq!(printed(&commerce).await, json!(with(&["orders:read"])));
        assert_eq!(printed(&nine).await, json!(built_in[1..]));
        assert_eq!(printed(&one).await, json!(["sessions:write"]));
        assert_eq!(
            printed(&secret).await,
            json!(with(&["orders:read", "orders:write"]))
        );
        for (key, scopes, allowed) in [
            (&commerce, json!(with(&["orders:read"])), true),
            (&commerce, json!(["links:read", "orders:write"]), false),
            (&nine, json!(["links:read", "customers:write"]), true),
            (&nine, json!(["commerce"]), false),
            (&one, json!(["sessions:write"]), true),
            (&one, json!(["sessions:read"]), false), // write does not imply read
            (&one, json!(["sessions:write", "links:read"]), false),
            (&one, json!([]), true),
            (&one, Value::Null, true),
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
async fn a_rate_limit_is_exact_under_parallel_use_and_comes_back_evenly() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let application = app.application(&token, "Web Store").await;
        let limited =
            json!({"scopes": ["links:read"], "rateLimit": {"limit": 50, "windowSeconds": 100}});
        let key = app.key(&token, &application, limited).await;
        // What is denied for another reason costs nothing.
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
        // A change to the key is no new allowance.
        app.edit_key("acme", &key.id, |key| key.name = "Renamed".to_owned())
            .await;
        assert_eq!(app.code(&key.text).await, "rate_limited");
        app.clock.advance(Duration::from_secs(100));
        let whole = app.verify(&key.text, json!({})).await;
        assert_eq!(
            whole["rate_limit"],
            json!({"limit": 50, "remaining": 49, "reset_seconds": 2, "window_seconds": 100})
        );
        assert_eq!(whole["key"]["name"], "Renamed");
    })
    .await;
}

#[actix_web::test]
async fn what_is_no_api_key_is_unknown() {
    each_backend(async |app: &App| {
        let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let service_key = app.service_key().await.text;
        let random = &key["ck_live_".len()..];
        for text in [
            service_key.clone(),
            app.merchant("acme"),
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
            app.mint(Family::Commerce, Mode::Live).expose().to_owned(),
        ] {
            assert_eq!(
                app.verify(&text, json!({})).await,
                json!({"valid": false, "code": "unknown_key"})
            );
        }
        assert_eq!(app.code(&key).await, "valid");
        assert_eq!(app.code(&format!("secret-token:{key}")).await, "valid"); // RFC 8959
        // A service key presented with that prefix is as good as without.
        let with_prefix = app
            .post("/verify", json!({"key": key}))
            .bearer(&format!("secret-token:{service_key}"))
            .await;
        assert_eq!(with_prefix.json()["code"], "valid");
    })
    .await;
}

#[actix_web::test]
async fn a_secret_key_sees_the_keys_of_its_own_account_and_a_test_one_only_test_keys() {
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
        for (viewer, sees) in [
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
                if sees.contains(&name.as_str()) {
                    assert_eq!(reply.json()["valid"], true, "{viewer} asks about {name}");
                    assert_eq!(
                        introspected.json()["active"],
                        true,
                        "{viewer} asks about {name}"
                    );
                } else {
                    assert_eq!(
                        reply.body, r#"{"valid":false,"code":"unknown_key"}"#,
                        "{viewer} asks about {name}"
                    );
                    assert_eq!(
                        introspected.body, r#"{"active":false}"#,
                        "{viewer} asks about {name}"
                    );
                }
            }
        }
        // Nor does it tell a revoked key it may not see from an unknown one, in a batch neither.
        let revoked = app
            .insert("globex", &app.mint(Family::Commerce, Mode::Test), |key| {
                key.revoked_at = Some(key.created_at)
            })
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
async fn verify_a_batch_in_the_order_of_its_requests() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
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
        // The same words as for one.
        assert_eq!(
            reply["results"][5],
            app.verify(&key.text, json!({"scopes": ["links:read"]}))
                .await
        );

        let hundred = vec![json!({"key": key.text}); 100];
        let reply = batch(json!(hundred)).await;
        assert_eq!(reply.json()["results"].as_array().map(Vec::len), Some(100));
        for count in [0, 101] {
            let refused = batch(json!(vec![json!({"key": key.text}); count])).await;
            assert_eq!(
                (refused.status, refused.errors()),
                (400, vec!["/requests must have 1 to 100 items".to_owned()])
            );
        }
        // One that breaks a rule refuses all, each named, and none is judged: the allowance is as it was.
        app.clock.advance(Duration::from_secs(60));
        let refused = batch(json!([
            {"key": limited.text},
            {"key": limited.text, "scopes": ["links:delete"]},
            {"key": limited.text},
            {"key": limited.text, "client_ip": "10.0.0.0/8", "merchant": "a b"},
        ]))
        .await;
        assert_eq!(refused.status, 400);
        let pointers: Vec<String> = refused
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
async fn a_verification_that_breaks_a_rule_is_told_by_member_and_rule() {
    each_backend(async |app: &App| {
        let service = app.service();
        for (body, expected) in [
            (json!({}), "/key is required"),
            (json!({"key": null}), "/key must be a string"),
            (json!({"key": "x", "client_ip": "localhost"}), "/client_ip must be an IPv4 or IPv6 address"),
            (json!({"key": "x", "client_ip": "203.0.113.7:80"}), "/client_ip must be an IPv4 or IPv6 address"),
            (json!({"key": "x", "merchant": ""}), "/merchant must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -"),
            (json!({"key": "x", "method": "M".repeat(33)}), "/method must have at most 32 bytes"),
            (json!({"key": "x", "path": format!("/{}", "p".repeat(8192))}), "/path must have at most 8192 bytes"),
            (json!({"key": "x", "mode": "Live"}), "/mode must be one of live, test"),
            (json!({"key": "x", "scopes": "links:read"}), "/scopes must be an array"),
            (
                json!({"key": "x", "scopes": ["links:read", "link"]}),
                "/scopes unknown scope `link`; valid scopes are commerce, links:read, links:write, sessions:read, \
                 sessions:write, webhooks:read, webhooks:write, events:read, customers:read, customers:write",
            ),
            (json!({"key": "x", "account_id": "acme"}), "/account_id is unknown"),
        ] {
            let reply = app.post("/verify", body.clone()).bearer(&service).await;
            assert_eq!((reply.status, reply.errors()), (400, vec![expected.to_owned()]), "{body}");
        }
    })
    .await;
}

#[actix_web::test]
async fn introspect_a_key() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let application = app.application(&token, "Web Store").await;
        let wanted =
            json!({"mode": "test", "scopes": ["sessions:read", "sessions:write"], "expiresAt": "2100-01-01T00:00:00Z"});
        let key: Key = app.key(&token, &application, wanted).await;
        let plain = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let service = app.service_key().await.text;
        let introspect = |form: &str| app.call("POST", "/introspect").form(form).bearer(&service);
        assert_answer!(introspect(&format!("token={}&token_type_hint=access_token", key.text)).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00MHSCK1QQEGAR82JJ

        {"active":true,"scope":"sessions:read sessions:write","client_id":"019b76da-a800-7474-bdc5-e24d2a413b15","sub":"acme","token_type":"Bearer","exp":4102444800,"iat":1767225600,"jti":"019b76da-a800-7a88-a527-a819b062c680","mode":"test"}
        "#);
        assert_answer!(introspect(&format!("token={plain}")).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00JTGZBR614A5HCB9C

        {"active":true,"scope":"commerce links:read links:write sessions:read sessions:write webhooks:read webhooks:write events:read customers:read customers:write","sub":"acme","token_type":"Bearer","iat":1767225600,"jti":"019b76da-a800-78b6-8bfd-08ae601f6497","mode":"live"}
        "#);
        assert_answer!(introspect("token=nonsense").await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00NV74KXA9TJP4XGY2

        {"active":false}
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
        // Whatever the reason, inactive reads the same.
        app.edit_key("acme", &key.id, |key| key.suspended_at = Some(key.created_at)).await;
        assert_eq!(introspect(&format!("token={}", key.text)).await.body, r#"{"active":false}"#);
        assert_eq!(introspect(&format!("token={service}")).await.body, r#"{"active":false}"#);
        assert_eq!(introspect(&format!("token={token}")).await.body, r#"{"active":false}"#);
    })
    .await;
}

#[actix_web::test]
async fn an_introspection_that_breaks_a_rule_is_told_by_member_and_rule() {
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
async fn a_key_made_a_moment_after_it_was_asked_for_is_found() {
    each_backend(async |app: &App| {
        let text = app.mint(Family::Commerce, Mode::Live);
        for _ in 0..3 {
            assert_eq!(app.code(text.expose()).await, "unknown_key");
        }
        app.insert("acme", &text, |_| ()).await;
        assert_eq!(app.code(text.expose()).await, "valid");
        // A service key neither.
        let state = app.running().state();
        let text = state
            .service
            .random
            .with(|rng| KeyText::mint(Kind::ServiceKey, rng));
        let ask = || {
            app.post("/verify", json!({"key": "x"}))
                .bearer(text.expose())
        };
        assert_eq!(ask().await.status, 401);
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
        assert_eq!(ask().await.status, 200);
    })
    .await;
}

#[actix_web::test]
async fn a_remembered_key_expires_by_the_clock() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
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
            "answered from memory"
        );
    })
    .await;
}

#[actix_web::test]
async fn a_change_holds_for_the_next_verification_of_a_remembered_key() {
    each_backend(async |app: &App| {
        let key = app
            .insert("acme", &app.mint(Family::Commerce, Mode::Live), |_| ())
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
            key.grants.expires_at = Some(now)
        })
        .await;
        assert_eq!(app.code(&key.text).await, "expired");
        app.edit_key("acme", &key.id, |key| key.grants.expires_at = None)
            .await;
        app.edit_key("acme", &key.id, |key| {
            key.grants.scopes = vec![Scope::LINKS_READ]
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
