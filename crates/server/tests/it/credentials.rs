//! The response of each API to each form of a credential.

use serde_json::json;
use tollkey_core::{Family, Mode};

use crate::{
    credential_forms::{Form, Outcome, forms},
    support::{App, Call, Reply, each_backend, each_backend_with},
};

/// The table for the keys of this server.
async fn table(app: &App) -> Vec<Form> {
    let key = app
        .commerce_key(&app.management_token("acme"), json!({}))
        .await;
    let revoked = app
        .commerce_key(&app.management_token("acme"), json!({}))
        .await;
    let reply = app
        .post(&format!("/api-keys/{}/revoke", revoked.id), json!({}))
        .bearer(&app.management_token("acme"))
        .await;
    assert_eq!(reply.status, 200, "{reply}");
    forms(&key.text, &revoked.text, &app.service_key().await.text)
}

fn with_headers(call: Call, headers: &[(&'static str, String)]) -> Call {
    headers
        .iter()
        .fold(call, |call, (name, value)| call.header(name, value))
}

/// Asserts the status, code, detail and challenge of the table.
fn assert_outcome(reply: &Reply, expected: &Outcome, context: &str) {
    assert_eq!(reply.status, expected.status, "{context}: {reply}");
    assert_eq!(
        reply.header("www-authenticate"),
        expected.challenge().as_deref(),
        "{context}: {reply}"
    );
    if expected.status != 200 {
        let json = reply.json();
        let found = (json["code"].as_str(), json["detail"].as_str());
        assert_eq!(
            found,
            (Some(expected.code), Some(expected.detail)),
            "{context}"
        );
    }
}

#[actix_web::test]
async fn each_form_of_a_credential_has_its_response() {
    each_backend(async |app: &App| {
        for form in table(app).await {
            for path in [
                "/authz/forward-auth",
                "/authz/auth-request",
                "/authz/ext-authz/-/links",
            ] {
                let reply = with_headers(app.get(path), &form.headers).await;
                assert_outcome(&reply, &form.for_key, &format!("{path} {}", form.name));
            }
            // Routes that also accept other credentials.
            let expected = form.for_any.as_ref().unwrap_or(&form.for_key);
            for path in [
                "/whoami",
                "/applications",
                "/account/audit-log",
                "/service-keys",
            ] {
                let reply = with_headers(app.get(path), &form.headers).await;
                let context = format!("{path} {}", form.name);
                if path == "/account/audit-log" && expected.status != 200 {
                    let error = &reply.json()["error"];
                    assert_eq!(
                        (reply.status, error["message"].as_str()),
                        (expected.status, Some(expected.detail))
                    );
                    assert_eq!(
                        reply.header("www-authenticate"),
                        expected.challenge().as_deref(),
                        "{context}"
                    );
                } else if expected.status == 200 {
                    let is_key = form.for_key.status == 200;
                    assert_eq!(
                        reply.status,
                        if path == "/whoami" && is_key {
                            200
                        } else {
                            403
                        },
                        "{context}: {reply}"
                    );
                } else {
                    assert_outcome(&reply, expected, &context);
                }
            }
            let reply = with_headers(app.post("/verify", json!({"key": "x"})), &form.headers).await;
            match (expected.status, form.name) {
                (200, "a service key") => assert_eq!(reply.status, 200, "{reply}"),
                (200, name) => assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "forbidden"),
                    "{name}"
                ),
                (_, name) => assert_outcome(&reply, expected, name),
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn unknown_and_revoked_keys_get_the_same_response() {
    each_backend(async |app: &App| {
        let table = table(app).await;
        let headers = |name| {
            &table
                .iter()
                .find(|form| form.name == name)
                .expect("a form with this name")
                .headers
        };
        let (unknown, revoked) = (headers("an unknown key"), headers("a revoked key"));
        for path in [
            "/authz/forward-auth",
            "/authz/auth-request",
            "/authz/ext-authz/-/x",
            "/whoami",
            "/applications",
        ] {
            let response = async |headers: &[(&'static str, String)]| {
                let call = app.get(path).header("x-request-id", "the-same");
                let mut reply = with_headers(call, headers).await;
                reply.headers.retain(|(name, _)| name != "date");
                reply.to_string()
            };
            assert_eq!(response(unknown).await, response(revoked).await, "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn wrong_kind_of_credential_is_named_in_the_detail() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let service_key = app.service_key().await.text;
        let expired = "eyEXAMPLE.eyEXAMPLE.EXAMPLE";
        let needs_key = "This operation requires an API key. Send an API key instead of a management token.";
        let invalid = "The management token is invalid or has expired. Get a new token.";
        let both = format!("{invalid} {needs_key}");
        for (path, header, credential, status, code, detail) in [
            (
                "/authz/forward-auth",
                "x-api-key",
                token.as_str(),
                403,
                "forbidden",
                needs_key,
            ),
            (
                "/authz/auth-request",
                "authorization",
                &token,
                403,
                "forbidden",
                needs_key,
            ),
            (
                "/authz/auth-request",
                "x-api-key",
                expired,
                401,
                "invalid_token",
                &both,
            ),
            ("/whoami", "x-api-key", &token, 403, "forbidden", needs_key),
            (
                "/whoami",
                "authorization",
                &service_key,
                403,
                "forbidden",
                "This operation requires an API key. Send an API key instead of a service key.",
            ),
            (
                "/applications",
                "authorization",
                &key,
                403,
                "forbidden",
                "This operation requires a management token. Send a management token instead of a key.",
            ),
            (
                "/applications",
                "x-api-key",
                &service_key,
                403,
                "forbidden",
                "This operation requires a management token. Send a management token instead of a key.",
            ),
            (
                "/applications",
                "authorization",
                expired,
                401,
                "invalid_token",
                invalid,
            ),
        ] {
            let value = if header == "authorization" {
                format!("Bearer {credential}")
            } else {
                credential.to_owned()
            };
            let json = app.get(path).header(header, value).await.json();
            let found = (
                json["status"].as_u64(),
                json["code"].as_str(),
                json["detail"].as_str(),
            );
            assert_eq!(
                found,
                (Some(status), Some(code), Some(detail)),
                "{path} {header}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn gateway_routes_read_only_the_configured_headers() {
    each_backend_with(
        &[("TOLLKEY_CREDENTIAL_HEADERS", "X-API-Key")],
        async |app: &App| {
            let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
            for path in [
                "/authz/forward-auth",
                "/authz/auth-request",
                "/authz/ext-authz/-/links",
            ] {
                // A credential for the API behind the gateway may be present next to the key.
                for own in [
                    "Basic YTpi",
                    "Bearer of-the-api",
                    "Bearer ",
                    &format!("Bearer {key}"),
                ] {
                    let reply = app
                        .get(path)
                        .header("authorization", own)
                        .header("x-api-key", &key)
                        .await;
                    assert_eq!(reply.status, 200, "{path} {own}: {reply}");
                    let alone = app.get(path).header("authorization", own).await;
                    assert_eq!(
                        (alone.status, alone.code().as_str()),
                        (401, "missing_credentials"),
                        "{path} {own}"
                    );
                    assert_eq!(
                        alone.json()["detail"],
                        "Send an API key in the header x-api-key."
                    );
                    assert_eq!(
                        alone.header("www-authenticate"),
                        Some("Bearer realm=\"tollkey\"")
                    );
                }
                let other = app.get(path).header("x-commerce-api-key", &key).await;
                assert_eq!(
                    (other.status, other.code().as_str()),
                    (401, "missing_credentials"),
                    "{path}"
                );
                let twice = app
                    .get(path)
                    .header("x-api-key", &key)
                    .header("x-api-key", &key)
                    .await;
                assert_eq!(
                    (twice.status, twice.code().as_str()),
                    (400, "multiple_credentials"),
                    "{path}"
                );
                // The error about an unreadable requirement is shown only with a key.
                let broken = format!("{}?scope=nope", path.replace("/-/", "/scope=nope/"));
                let reply = app.get(&broken).bearer(&key).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (401, "missing_credentials"),
                    "{broken}"
                );
            }
            // Other routes read all three.
            for header in ["x-api-key", "x-commerce-api-key"] {
                assert_eq!(app.get("/whoami").header(header, &key).await.status, 200);
            }
            assert_eq!(app.get("/whoami").bearer(&key).await.status, 200);
            assert_eq!(
                app.get("/applications")
                    .bearer(&app.management_token("acme"))
                    .await
                    .status,
                200
            );
        },
    )
    .await;
}
