//! Commerce keys in the order of hellgate's document: labels, scoped keys, operating models.

use serde_json::{Value, json};
use tollkey_core::OperatingModel;

use crate::{
    assert_response,
    support::{App, Call, Key, Reply, each_backend},
};

/// The rows of the table "Ecosystems": a feature, a request it covers, and whether "Managed Ecosystems" has it too.
const ROWS: [(&str, &str, &str, bool); 5] = [
    ("tokens.list", "GET", "/tokens", false),
    ("tokens.retrieve", "GET", "/tokens/tok_1", false),
    (
        "payment_data.list",
        "GET",
        "/tokens/tok_1/payment-data",
        false,
    ),
    (
        "payment_data.forward",
        "POST",
        "/payment-data/pd_1/forward",
        true,
    ),
    ("cardholder_data.forward", "POST", "/forward", true),
];

/// Requests that no feature covers.
const OTHERS: [(&str, &str); 14] = [
    ("POST", "/tokens"),
    ("DELETE", "/tokens/tok_1"),
    ("PATCH", "/tokens/tok_1"),
    ("GET", "/tokens/"),
    ("GET", "/tokens/tok_1/payment-data/pd_1"),
    ("GET", "/payment-data/pd_1/forward"),
    ("POST", "/payment-data/pd_1"),
    ("POST", "/payment-data//forward"),
    ("GET", "/forward"),
    ("POST", "/forward/x"),
    ("POST", "/forwards"),
    ("GET", "/merchants"),
    ("GET", "/"),
    ("GET", "/v1/tokens"),
];

const MODELS: [OperatingModel; 4] = OperatingModel::ALL;

/// Whether scoped keys of an account with this model may use a feature, which is `managed` in [`ROWS`].
fn allows(model: OperatingModel, managed: bool) -> bool {
    match model {
        OperatingModel::PrimaryMerchant | OperatingModel::Platform => false,
        OperatingModel::Ecosystem => true,
        OperatingModel::ManagedEcosystem => managed,
    }
}

async fn set_model(app: &App, model: OperatingModel) {
    app.set_model("acme", model.as_str()).await;
}

/// The code of a verification with this route and merchant.
async fn verified(
    app: &App,
    key: &str,
    method: &str,
    path: &str,
    merchant: Option<&str>,
) -> String {
    let need = json!({"method": method, "path": path, "merchant": merchant});
    app.verify(key, need).await["code"]
        .as_str()
        .expect("a code")
        .to_owned()
}

/// A gateway's authorization request, with the key in hellgate's header.
fn gateway(app: &App, key: &str, method: &str, uri: &str) -> Call {
    app.get("/authz/forward-auth")
        .header("x-forwarded-method", method)
        .header("x-forwarded-uri", uri)
        .header("x-api-key", key)
}

fn outcome(reply: &Reply) -> String {
    if reply.status == 200 {
        "valid".to_owned()
    } else {
        reply.code()
    }
}

/// Asserts the result of `/verify` and of a gateway for a request, with and without the base path of the API.
async fn assert_both(
    app: &App,
    key: &str,
    (method, path): (&str, &str),
    expected: &str,
    why: &str,
) {
    for base in ["", "/api"] {
        let path = format!("{base}{path}");
        let verdict = verified(app, key, method, &path, Some("m_1")).await;
        assert_eq!(verdict, expected, "{why}: {method} {path}");
        let reply = gateway(app, key, method, &format!("{path}?limit=2"))
            .header("x-merchant-id", "m_1")
            .await;
        assert_eq!(
            outcome(&reply),
            expected,
            "{why}: {method} {path} at a gateway"
        );
        assert_eq!(
            reply.status,
            if expected == "valid" { 200 } else { 403 },
            "{why}: {method} {path}"
        );
    }
}

async fn patch(app: &App, token: &str, key: &Key, patch: Value) -> Reply {
    app.patch(&format!("/api-keys/{}", key.id), patch)
        .bearer(token)
        .await
}

// Multiple API keys, and using them

#[actix_web::test]
async fn labels_of_keys_may_repeat() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let labels = [
            "development",
            "staging",
            "production",
            "production",
            "Zahlungen – Köln",
            "<b>&\"'",
        ];
        for round in 0..20 {
            for label in labels {
                let key = app.commerce_key(&token, json!({"name": label})).await;
                if round == 0 {
                    let reply = app.get("/whoami").header("x-api-key", &key.text).await;
                    assert_eq!((reply.status, &reply.json()["name"]), (200, &json!(label)));
                }
            }
        }
        let list = app.get("/api-keys").bearer(&token).await.json();
        let names: Vec<&str> = list
            .as_array()
            .unwrap()
            .iter()
            .rev()
            .map(|row| row["name"].as_str().unwrap())
            .collect();
        let count = |label: &str| names.iter().filter(|name| **name == label).count();
        assert_eq!(
            (names.len(), count("production"), count("Zahlungen – Köln")),
            (120, 40, 20)
        );
    })
    .await;
}

#[actix_web::test]
async fn each_key_remains_valid_until_manually_revoked() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"name": "production"}))
            .await;
        let other = app
            .commerce_key(&token, json!({"name": "production"}))
            .await;
        app.clock
            .advance(std::time::Duration::from_secs(50 * 365 * 86_400));
        let whoami = |key: &Key| app.get("/whoami").header("x-api-key", &key.text);
        assert_eq!(
            (whoami(&key).await.status, whoami(&other).await.status),
            (200, 200)
        );
        let token = app.management_token("acme"); // the first token has expired
        let reply = app
            .call("POST", &format!("/api-keys/{}/revoke", key.id))
            .bearer(&token)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        assert_eq!(
            (whoami(&key).await.status, whoami(&other).await.status),
            (401, 200)
        );
    })
    .await;
}

// Scoped API keys: which accounts have them

#[actix_web::test]
async fn scoped_keys_require_an_ecosystem_model() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let create = |body: Value| app.post("/api-keys", body).bearer(&token);
        // The default model is primary merchant.
        assert_response!(create(json!({"name": "n", "merchants": ["m_1"]})).await, @r#"
        403
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:scoped_keys_unavailable",
          "title": "Scoped keys are not available",
          "status": 403,
          "detail": "Scoped keys are not available with the operating model `primary_merchant`. Remove the merchants and features of the key.",
          "code": "scoped_keys_unavailable",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC"
        }
        "#);
        set_model(app, OperatingModel::ManagedEcosystem).await;
        let body = json!({"name": "n", "features": ["cardholder_data.forward", "tokens.list"]});
        assert_response!(create(body).await, @r#"
        403
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00NCR9TXZM51K51CMX

        {
          "type": "urn:tollkey:problem:feature_unavailable",
          "title": "The feature is not available",
          "status": 403,
          "detail": "The feature `tokens.list` is not available with the operating model `managed_ecosystem`. Remove it from the key.",
          "code": "feature_unavailable",
          "request_id": "req_01KDVDNA00NCR9TXZM51K51CMX"
        }
        "#);
        let (all, managed): (Vec<&str>, Vec<&str>) = (
            ROWS.iter().map(|row| row.0).collect(),
            ROWS.iter().filter(|row| row.3).map(|row| row.0).collect(),
        );
        for model in MODELS {
            set_model(app, model).await;
            let scoped = model.as_str().ends_with("ecosystem");
            let expected_code = if scoped { "feature_unavailable" } else { "scoped_keys_unavailable" };
            let mut cases = vec![
                (json!({}), true),
                (json!({"merchants": null, "features": null}), true),
                (json!({"merchants": ["m_1", "m_2"]}), scoped),
                (json!({"features": managed}), scoped),
                (json!({"merchants": ["m_1"], "features": managed}), scoped),
                (json!({"features": all}), model == OperatingModel::Ecosystem),
                (json!({"merchants": ["m_1"], "features": all}), model == OperatingModel::Ecosystem),
            ];
            for (feature, _, _, managed) in ROWS {
                cases.push((json!({"features": [feature]}), allows(model, managed)));
                cases.push((json!({"merchants": ["m_1"], "features": [feature]}), allows(model, managed)));
            }
            for (mut body, is_allowed) in cases {
                body["name"] = json!("Partner");
                let reply = create(body.clone()).await;
                assert_eq!(reply.status, if is_allowed { 201 } else { 403 }, "{model} {body}");
                if is_allowed {
                    for member in ["merchants", "features"] {
                        let expected = body.get(member).unwrap_or(&Value::Null);
                        assert_eq!(&reply.json()[member], expected, "{model} {body}");
                    }
                } else {
                    assert_eq!(reply.code(), expected_code, "{model} {body}");
                }
            }
            // An unknown feature is an invalid request with every model.
            let reply = create(json!({"name": "Partner", "features": ["tokens.delete"]})).await;
            assert_eq!(reply.status, 400, "{model}");
        }
        // Rejected keys do not exist.
        let list = app.get("/api-keys").bearer(&token).await.json();
        let (neither, ecosystem, managed) = (2, 17, 9);
        assert_eq!(list.as_array().unwrap().len(), 2 * neither + ecosystem + managed);
    })
    .await;
}

#[actix_web::test]
async fn unscoped_key_may_call_every_route_in_every_model() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        for model in MODELS {
            set_model(app, model).await;
            for (_, method, path, _) in ROWS {
                assert_both(app, &key.text, (method, path), "valid", model.as_str()).await;
            }
            for (method, path) in OTHERS {
                assert_both(app, &key.text, (method, path), "valid", model.as_str()).await;
            }
            assert_eq!(app.code(&key.text).await, "valid");
        }
    })
    .await;
}

// Ecosystems, managed ecosystems: the tables

#[actix_web::test]
async fn scoped_key_has_exactly_the_features_of_its_model() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        set_model(app, OperatingModel::Ecosystem).await;
        let by_merchants = app
            .commerce_key(&token, json!({"merchants": ["m_1"]}))
            .await;
        let all: Vec<&str> = ROWS.iter().map(|row| row.0).collect();
        let by_features = app.commerce_key(&token, json!({"features": all})).await;
        let mut of_one = Vec::new();
        for (feature, ..) in ROWS {
            of_one.push((
                feature,
                app.commerce_key(&token, json!({"features": [feature]}))
                    .await,
            ));
        }
        // The order covers transitions between the models, with cached keys.
        for model in [
            MODELS[3], MODELS[0], MODELS[2], MODELS[1], MODELS[3], MODELS[2],
        ] {
            set_model(app, model).await;
            for (feature, method, path, managed) in ROWS {
                let expected = if allows(model, managed) {
                    "valid"
                } else {
                    "route_not_allowed"
                };
                // A key with merchants only has all features of the model.
                assert_both(
                    app,
                    &by_merchants.text,
                    (method, path),
                    expected,
                    model.as_str(),
                )
                .await;
                assert_both(
                    app,
                    &by_features.text,
                    (method, path),
                    expected,
                    model.as_str(),
                )
                .await;
                for (own, key) in &of_one {
                    let expected = if *own == feature {
                        expected
                    } else {
                        "route_not_allowed"
                    };
                    assert_both(
                        app,
                        &key.text,
                        (method, path),
                        expected,
                        &format!("{model}, {own}"),
                    )
                    .await;
                }
            }
            for (method, path) in OTHERS {
                for key in [&by_merchants, &by_features] {
                    assert_both(
                        app,
                        &key.text,
                        (method, path),
                        "route_not_allowed",
                        model.as_str(),
                    )
                    .await;
                }
            }
            for path in ["/api/api/tokens", "/apitokens", "/api"] {
                let verdict = verified(app, &by_features.text, "GET", path, None).await;
                assert_eq!(verdict, "route_not_allowed", "{model} {path}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn scoped_key_follows_changes_of_the_operating_model() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        set_model(app, OperatingModel::ManagedEcosystem).await;
        let by_merchants = app
            .commerce_key(&token, json!({"merchants": ["m_1"]}))
            .await;
        let by_feature = app
            .commerce_key(&token, json!({"features": ["cardholder_data.forward"]}))
            .await;
        for (model, lists, forwards) in [
            (OperatingModel::ManagedEcosystem, false, true),
            (OperatingModel::Ecosystem, true, true),
            (OperatingModel::PrimaryMerchant, false, false),
            (OperatingModel::ManagedEcosystem, false, true),
            (OperatingModel::Platform, false, false),
        ] {
            set_model(app, model).await;
            let expected = |allowed| {
                if allowed {
                    "valid"
                } else {
                    "route_not_allowed"
                }
            };
            let why = model.as_str();
            assert_both(
                app,
                &by_merchants.text,
                ("GET", "/tokens"),
                expected(lists),
                why,
            )
            .await;
            assert_both(
                app,
                &by_merchants.text,
                ("POST", "/forward"),
                expected(forwards),
                why,
            )
            .await;
            assert_both(
                app,
                &by_feature.text,
                ("GET", "/tokens"),
                "route_not_allowed",
                why,
            )
            .await;
            assert_both(
                app,
                &by_feature.text,
                ("POST", "/forward"),
                expected(forwards),
                why,
            )
            .await;
            // The key itself does not change: it still has its restrictions, and `/whoami` accepts it.
            let row = app
                .get(&format!("/api-keys/{}", by_merchants.id))
                .bearer(&token)
                .await
                .json();
            assert_eq!(
                [&row["status"], &row["merchants"], &row["features"]],
                [&json!("active"), &json!(["m_1"]), &Value::Null]
            );
            assert_eq!(
                app.get("/whoami")
                    .header("x-api-key", &by_merchants.text)
                    .await
                    .status,
                200
            );
        }
        // The model of another account has no effect.
        app.set_model("globex", "ecosystem").await;
        assert_both(
            app,
            &by_merchants.text,
            ("POST", "/forward"),
            "route_not_allowed",
            "platform",
        )
        .await;
    })
    .await;
}

#[actix_web::test]
async fn request_without_method_or_path_matches_no_feature() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        set_model(app, OperatingModel::Ecosystem).await;
        let key = app
            .commerce_key(&token, json!({"features": ["tokens.list"]}))
            .await;
        for need in [
            json!({}),
            json!({"method": "GET"}),
            json!({"path": "/tokens"}),
        ] {
            assert_eq!(
                app.verify(&key.text, need.clone()).await["code"],
                "route_not_allowed",
                "{need}"
            );
        }
        let request = || {
            app.get("/authz/forward-auth")
                .header("x-api-key", &key.text)
        };
        for call in [
            request(),
            request().header("x-forwarded-method", "GET"),
            request().header("x-forwarded-uri", "/tokens"),
            request()
                .header("x-original-method", "GET")
                .header("x-original-uri", "/tokens"),
            request()
                .header("x-forwarded-method", "GET")
                .header("x-forwarded-uri", "/tokens")
                .header("x-forwarded-uri", "/tokens"),
        ] {
            let reply = call.await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (403, "route_not_allowed")
            );
        }
        assert_eq!(gateway(app, &key.text, "GET", "/tokens").await.status, 200);
        assert_eq!(gateway(app, &key.text, "HEAD", "/tokens").await.status, 200);
        assert_eq!(gateway(app, &key.text, "get", "/tokens").await.status, 403);
    })
    .await;
}

// Restricted access to specific merchants

#[actix_web::test]
async fn x_merchant_id_must_name_a_merchant_of_the_key() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        set_model(app, OperatingModel::Ecosystem).await;
        let key = app
            .commerce_key(&token, json!({"merchants": ["m_1", "m_2"]}))
            .await;
        let unrestricted = app
            .commerce_key(&token, json!({"features": ["tokens.list"]}))
            .await;
        for (merchant, allowed) in [
            (Some("m_1"), true),
            (Some("m_2"), true),
            (Some("m_3"), false),
            (Some("M_1"), false),
            (Some("m_1,m_2"), false),
            (Some("m_"), false),
            (Some("*"), false),
            (None, false),
        ] {
            let expected = if allowed {
                "valid"
            } else {
                "merchant_not_allowed"
            };
            let need =
                json!({"key": key.text, "method": "GET", "path": "/tokens", "merchant": merchant});
            let reply = app.post("/verify", need).bearer(&app.service()).await;
            if merchant.is_some_and(|merchant| merchant.contains([',', '*'])) {
                // An invalid merchant is an error of the resource server.
                assert_eq!(
                    (reply.status, reply.json()["errors"][0]["pointer"].as_str()),
                    (400, Some("/merchant"))
                );
            } else {
                assert_eq!(reply.json()["code"], expected, "{merchant:?}");
            }
            let call = gateway(app, &key.text, "GET", "/tokens");
            let call = if let Some(merchant) = merchant {
                call.header("x-merchant-id", merchant)
            } else {
                call
            };
            let reply = call.await;
            assert_eq!(outcome(&reply), expected, "{merchant:?}");
            if allowed {
                assert_eq!(reply.header("x-auth-merchant-id"), merchant);
            }
        }
        let twice = gateway(app, &key.text, "GET", "/tokens")
            .header("x-merchant-id", "m_1")
            .header("x-merchant-id", "m_1");
        assert_eq!(outcome(&twice.await), "merchant_not_allowed");
        // Neither another header nor the query names the merchant.
        let other =
            gateway(app, &key.text, "GET", "/tokens?merchant=m_1").header("x-merchant", "m_1");
        assert_eq!(outcome(&other.await), "merchant_not_allowed");
        // The route is checked before the merchant, so that a denied route does not disclose the merchants of a key.
        assert_eq!(
            verified(app, &key.text, "GET", "/merchants", Some("m_3")).await,
            "route_not_allowed"
        );
        // A key with features only has no merchant restriction.
        for merchant in [None, Some("m_1"), Some("m_9")] {
            assert_eq!(
                verified(app, &unrestricted.text, "GET", "/tokens", merchant).await,
                "valid",
                "{merchant:?}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn scoped_key_also_requires_scopes() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        set_model(app, OperatingModel::Ecosystem).await;
        let body =
            json!({"merchants": ["m_1"], "features": ["tokens.list"], "scopes": ["links:read"]});
        let key = app.commerce_key(&token, body).await;
        for (scopes, expected) in [
            (json!(["links:read"]), "valid"),
            (json!(["commerce"]), "insufficient_scope"),
        ] {
            let need =
                json!({"method": "GET", "path": "/tokens", "merchant": "m_1", "scopes": scopes});
            assert_eq!(app.verify(&key.text, need).await["code"], expected);
        }
    })
    .await;
}

// Changing what a key is bound to

#[actix_web::test]
async fn restrictions_change_within_the_current_model() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for model in MODELS {
            for (change, allowed) in [
                (json!({"merchants": ["m_2"]}), allows(model, true)),
                (json!({"features": ["cardholder_data.forward"]}), allows(model, true)),
                (json!({"features": ["tokens.list"]}), allows(model, false)),
                (json!({"merchants": ["m_2"], "features": ["tokens.list", "payment_data.forward"]}), allows(model, false)),
            ] {
                set_model(app, OperatingModel::Ecosystem).await;
                let plain = app.commerce_key(&token, json!({})).await;
                let bound = app.commerce_key(&token, json!({"merchants": ["m_1"]})).await;
                set_model(app, model).await;
                for key in [&plain, &bound] {
                    let before = app.get(&format!("/api-keys/{}", key.id)).bearer(&token).await.json();
                    let reply = patch(app, &token, key, change.clone()).await;
                    if allowed {
                        assert_eq!(reply.status, 200, "{model} {change} {reply}");
                        for (member, value) in change.as_object().unwrap() {
                            assert_eq!(&reply.json()[member], value, "{model} {change}");
                        }
                    } else {
                        let scoped = model == OperatingModel::ManagedEcosystem;
                        let code = if scoped { "feature_unavailable" } else { "scoped_keys_unavailable" };
                        assert_eq!((reply.status, reply.code().as_str()), (403, code), "{model} {change}");
                        let after = app.get(&format!("/api-keys/{}", key.id)).bearer(&token).await.json();
                        assert_eq!(after, before, "{model} {change}");
                    }
                }
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn restrictions_cannot_be_cleared_in_any_model() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        set_model(app, OperatingModel::Ecosystem).await;
        let key = app.commerce_key(&token, json!({"merchants": ["m_1"], "features": ["tokens.list"]})).await;
        for model in MODELS {
            set_model(app, model).await;
            for (change, error) in [
                (json!({"merchants": null}), "/merchants cannot be cleared"),
                (json!({"features": null}), "/features cannot be cleared"),
            ] {
                let reply = patch(app, &token, &key, change.clone()).await;
                assert_eq!((reply.status, reply.errors()), (400, vec![error.to_owned()]), "{model} {change}");
            }
            for member in ["merchants", "features"] {
                let reply = patch(app, &token, &key, json!({member: []})).await;
                assert_eq!(reply.status, 400, "{model} {member}");
            }
            let name = format!("under {model}");
            // Sending the current restrictions again is no change, so the model does not matter.
            let same = json!({"name": name, "merchants": ["m_1"], "features": ["tokens.list"], "scopes": null});
            let reply = patch(app, &token, &key, same).await;
            assert_eq!((reply.status, &reply.json()["name"]), (200, &json!(name)), "{reply}");
        }
        set_model(app, OperatingModel::Ecosystem).await;
        assert_both(app, &key.text, ("GET", "/tokens"), "valid", "still bound").await;
        assert_both(app, &key.text, ("POST", "/forward"), "route_not_allowed", "still bound").await;
        // A key without restrictions can be restricted, immediately and permanently.
        let plain = app.commerce_key(&token, json!({})).await;
        assert_both(app, &plain.text, ("GET", "/merchants"), "valid", "not scoped").await;
        assert_eq!(patch(app, &token, &plain, json!({"merchants": ["m_1"]})).await.status, 200);
        assert_both(app, &plain.text, ("GET", "/merchants"), "route_not_allowed", "scoped").await;
        assert_both(app, &plain.text, ("GET", "/tokens"), "valid", "scoped").await;
        assert_eq!(patch(app, &token, &plain, json!({"merchants": null})).await.status, 400);
        // Features in addition to merchants restrict the key further.
        assert_eq!(patch(app, &token, &plain, json!({"features": ["tokens.retrieve"]})).await.status, 200);
        assert_both(app, &plain.text, ("GET", "/tokens"), "route_not_allowed", "narrowed").await;
        assert_both(app, &plain.text, ("GET", "/tokens/tok_1"), "valid", "narrowed").await;
    })
    .await;
}
