//! Commerce keys, in the order of the crypto-checkout document: format, modes, scopes, use, revocation, the list.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use tollkey_core::{Digest, Family, Mode, PlainKey};
use tollkey_store::testing::Database;
use tollkey_verifier::testing::START;

use crate::{
    assert_response,
    support::{App, Call, Key, each_backend},
};

/// The scopes in the table "Available scopes", except `commerce`, which implies the others.
const SCOPES: [&str; 9] = [
    "links:read",
    "links:write",
    "sessions:read",
    "sessions:write",
    "webhooks:read",
    "webhooks:write",
    "events:read",
    "customers:read",
    "customers:write",
];

/// Returns the random part of a key that is `prefix` and 32 base-62 characters.
fn random_part<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix)
        .filter(|rest| rest.len() == 32 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Returns the request of a gateway for a route with these requirements.
fn gateway(app: &App, required: &str) -> Call {
    let query = if required.is_empty() {
        String::new()
    } else {
        format!("?{required}")
    };
    app.get(&format!("/authz/forward-auth{query}"))
        .header("x-forwarded-method", "GET")
        .header("x-forwarded-uri", "/api/v1/sessions")
}

async fn revoke(app: &App, token: &str, key: &Key) {
    let reply = app
        .call("POST", &format!("/api-keys/{}/revoke", key.id))
        .bearer(token)
        .await;
    assert_eq!(reply.status, 200, "{reply}");
}

// Key format

#[actix_web::test]
async fn key_has_mode_prefix_and_32_base_62_characters() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let mut seen = HashSet::new();
        for (mode, shown, prefix) in [
            (json!("live"), "live", "ck_live_"),
            (json!("test"), "test", "ck_test_"),
            (Value::Null, "live", "ck_live_"),
        ] {
            for _ in 0..20 {
                let reply = app
                    .post("/api-keys", json!({"name": "Key", "mode": mode}))
                    .bearer(&token)
                    .await
                    .json();
                let text = reply["api_key"].as_str().unwrap();
                let random = random_part(text, prefix)
                    .unwrap_or_else(|| panic!("no {prefix} and 32 characters"));
                assert_eq!(
                    (&reply["mode"], &reply["scope"]),
                    (&json!(shown), &json!("commerce"))
                );
                assert_eq!(reply["prefix"], format!("{prefix}{}", &random[..6]));
                assert!(seen.insert(text.to_owned()), "the same key twice");
            }
        }
        let absent = app
            .post("/api-keys", json!({"name": "Key"}))
            .bearer(&token)
            .await
            .json();
        assert!(random_part(absent["api_key"].as_str().unwrap(), "ck_live_").is_some());
    })
    .await;
}

/// Each of the 62 characters is equally likely at each of the 32 positions.
#[test]
fn random_part_of_keys_is_unbiased() {
    use rand::{SeedableRng as _, rngs::StdRng};
    let mut rng = StdRng::seed_from_u64(3);
    let (keys, mut anywhere, mut first) = (31_000_u32, [0_u32; 128], [0_u32; 128]);
    let kind = tollkey_core::key_format::CredentialKind::Key(Family::Commerce, Mode::Live);
    for _ in 0..keys {
        let key = PlainKey::generate(kind, &mut rng);
        let random = random_part(key.expose(), "ck_live_")
            .expect("32 base-62 characters")
            .as_bytes();
        first[usize::from(random[0])] += 1;
        for byte in random {
            anywhere[usize::from(*byte)] += 1;
        }
    }
    // A random byte modulo 62 would be biased, because 256 is not a multiple of 62: some characters would occur five
    // times for every four of the others. The expected counts are 500 and 16,000. The tolerances are six standard
    // deviations.
    for (counts, expected, tolerance) in [(first, 500, 134), (anywhere, 16_000, 759)] {
        let counts: Vec<u32> = counts.into_iter().filter(|count| *count > 0).collect();
        assert_eq!(counts.len(), 62);
        for count in counts {
            assert!(
                count.abs_diff(expected) <= tolerance,
                "{count} is not close to {expected}"
            );
        }
    }
}

#[actix_web::test]
async fn only_the_sha_256_hash_of_a_key_is_stored() {
    let app = App::start(Database::sqlite(), &[]).await; // SQLite, because its files can be read
    let token = app.management_token("acme");
    let key = app
        .commerce_key(&token, json!({"name": "Production server"}))
        .await;
    let retried = app
        .post("/api-keys", json!({"name": "Retried"}))
        .header("idempotency-key", "an example of a retry");
    let retried = retried.bearer(&token).await.json()["api_key"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        (
            app.code(&key.text).await.as_str(),
            app.code(&retried).await.as_str()
        ),
        ("valid", "valid")
    );
    let files =
        std::fs::read_dir(app.database.directory().expect("a directory")).expect("its files");
    let stored: Vec<u8> = files
        .flat_map(|file| std::fs::read(file.unwrap().path()).expect("a file"))
        .collect();
    let contains = |bytes: &[u8]| stored.windows(bytes.len()).any(|window| window == bytes);
    assert!(
        contains(b"Production server") && contains(b"Retried"),
        "the right files are searched"
    );
    for text in [&key.text, &retried] {
        assert!(
            contains(Digest::of_key(text).as_bytes()),
            "the hash is stored"
        );
        assert!(
            !contains(random_part(text, "ck_live_").unwrap().as_bytes()),
            "the key itself is not stored"
        );
    }
    app.stop().await;
}

// Modes

#[actix_web::test]
async fn key_of_the_other_mode_is_denied() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let live = app.commerce_key(&token, json!({"mode": "live"})).await;
        let test = app.commerce_key(&token, json!({"mode": "test"})).await;
        for (key, own, needed) in [(&live, "live", "test"), (&test, "test", "live")] {
            assert_eq!(
                app.verify(&key.text, json!({"mode": own})).await["key"]["mode"],
                own
            );
            let denied = app.verify(&key.text, json!({"mode": needed})).await;
            assert_eq!(denied, json!({"valid": false, "code": "wrong_mode"}));
            assert_eq!(
                app.verify(&key.text, json!({})).await["valid"],
                true,
                "without a required mode"
            );

            let allowed = gateway(app, &format!("mode={own}")).bearer(&key.text).await;
            assert_eq!(
                (allowed.status, allowed.header("x-auth-mode")),
                (200, Some(own))
            );
            let denied = gateway(app, &format!("mode={needed}"))
                .bearer(&key.text)
                .await;
            assert_eq!((denied.status, denied.code().as_str()), (403, "wrong_mode"));
            assert_eq!(denied.header("x-auth-mode"), None);
            // The mode is checked before the scope, and no scope overrides it.
            let denied = gateway(app, &format!("mode={needed}&scope=commerce"))
                .bearer(&key.text)
                .await;
            assert_eq!(denied.code(), "wrong_mode");
            // The mode is part of the key: the same characters with the other prefix are another key.
            let other = key.text.replacen(own, needed, 1);
            assert_eq!(app.code(&other).await, "unknown_key");
            let patched = app
                .patch(&format!("/api-keys/{}", key.id), json!({"mode": needed}))
                .bearer(&token)
                .await;
            assert_eq!(patched.errors(), ["/mode cannot be changed after creation"]);
        }
        // A successor has the mode of its predecessor.
        let successor = app
            .call("POST", &format!("/api-keys/{}/rotate", test.id))
            .bearer(&token)
            .await
            .json();
        assert_eq!(successor["mode"], "test");
        assert!(random_part(successor["api_key"].as_str().unwrap(), "ck_test_").is_some());
    })
    .await;
}

// Available scopes

#[actix_web::test]
async fn scope_grants_only_itself() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for own in SCOPES {
            let key = app.commerce_key(&token, json!({"scopes": [own]})).await;
            for needed in SCOPES.into_iter().chain(["commerce"]) {
                let granted = own == needed; // write does not imply read, and no resource implies another
                let expected = if granted {
                    "valid"
                } else {
                    "insufficient_scope"
                };
                let verdict = app.verify(&key.text, json!({"scopes": [needed]})).await;
                assert_eq!(verdict["code"], expected, "{own} for {needed}");
                let reply = gateway(app, &format!("scope={needed}"))
                    .bearer(&key.text)
                    .await;
                let expected = if granted { 200 } else { 403 };
                assert_eq!(reply.status, expected, "{own} for {needed} at a gateway");
                if granted {
                    assert_eq!(reply.header("x-auth-scopes"), Some(own));
                } else {
                    assert_eq!(reply.code(), "insufficient_scope");
                    let challenge = reply.header("www-authenticate").expect("a challenge");
                    assert!(
                        challenge.contains("error=\"insufficient_scope\""),
                        "{challenge}"
                    );
                    assert!(
                        challenge.contains(&format!("scope=\"{needed}\"")),
                        "{challenge}"
                    );
                }
            }
            assert_eq!(
                app.verify(&key.text, json!({})).await["key"]["scopes"],
                json!([own])
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn denial_names_the_missing_scopes() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({"scopes": ["sessions:write"]})).await;
        assert_response!(gateway(app, "scope=links:write&scope=sessions:write").bearer(&key.text).await, @r#"
        403
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey", error="insufficient_scope", error_description="The key lacks a required scope. Use a key with all required scopes.", scope="links:write sessions:write"
        x-request-id: req_01KDVDNA000QT6EFQNM6ZM32RB

        {
          "type": "urn:tollkey:problem:insufficient_scope",
          "title": "Insufficient scope",
          "status": 403,
          "detail": "The key lacks a required scope. Use a key with all required scopes.",
          "code": "insufficient_scope",
          "request_id": "req_01KDVDNA000QT6EFQNM6ZM32RB",
          "missing_scopes": [
            "links:write"
          ]
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn every_required_scope_must_be_granted() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"scopes": ["webhooks:write", "events:read"]}))
            .await;
        for (needed, valid) in [
            (vec!["webhooks:write"], true),
            (vec!["events:read"], true),
            (vec!["events:read", "webhooks:write"], true),
            (vec!["events:read", "events:read"], true),
            (vec![], true),
            (vec!["webhooks:read"], false),
            (vec!["events:read", "webhooks:read"], false),
            (SCOPES.to_vec(), false),
        ] {
            let expected = if valid { "valid" } else { "insufficient_scope" };
            assert_eq!(
                app.verify(&key.text, json!({"scopes": needed})).await["code"],
                expected,
                "{needed:?}"
            );
            let query: Vec<String> = needed
                .iter()
                .map(|scope| format!("scope={scope}"))
                .collect();
            let reply = gateway(app, &query.join("&")).bearer(&key.text).await;
            assert_eq!(reply.status, if valid { 200 } else { 403 }, "{needed:?}");
        }
    })
    .await;
}

#[actix_web::test]
async fn commerce_implies_the_nine_scopes_but_not_vice_versa() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let commerce = app
            .commerce_key(&token, json!({"scopes": ["commerce"]}))
            .await;
        let default = app.commerce_key(&token, json!({})).await;
        let nine = app.commerce_key(&token, json!({"scopes": SCOPES})).await;
        for key in [&commerce, &default] {
            for needed in SCOPES.into_iter().chain(["commerce"]) {
                assert_eq!(
                    app.verify(&key.text, json!({"scopes": [needed]})).await["code"],
                    "valid",
                    "{needed}"
                );
                let reply = gateway(app, &format!("scope={needed}"))
                    .bearer(&key.text)
                    .await;
                assert_eq!(reply.status, 200, "{needed}");
            }
        }
        assert_eq!(
            app.verify(&nine.text, json!({"scopes": SCOPES})).await["code"],
            "valid"
        );
        assert_eq!(
            app.verify(&nine.text, json!({"scopes": ["commerce"]}))
                .await["code"],
            "insufficient_scope"
        );
        assert_eq!(
            gateway(app, "scope=commerce")
                .bearer(&nine.text)
                .await
                .status,
            403
        );
        // Management returns scopes as stored, verification returns them expanded.
        let stored = app
            .get(&format!("/api-keys/{}", commerce.id))
            .bearer(&token)
            .await
            .json()["scopes"]
            .clone();
        assert_eq!(stored, json!(["commerce"]));
        let expanded: Vec<&str> = std::iter::once("commerce").chain(SCOPES).collect();
        assert_eq!(
            app.verify(&commerce.text, json!({})).await["key"]["scopes"],
            json!(expanded)
        );
        let header = gateway(app, "").bearer(&commerce.text).await;
        assert_eq!(
            header.header("x-auth-scopes"),
            Some(expanded.join(" ").as_str())
        );
    })
    .await;
}

#[actix_web::test]
async fn unknown_scope_error_lists_the_valid_scopes() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for (scopes, unknown) in [
            (json!(["links"]), "`links`; "),
            (json!(["links:read", "payments:read"]), "`payments:read`; "),
            (json!(["*"]), "`*`; "),
            (
                json!(["link:read"]),
                "`link:read`; did you mean `links:read`? ",
            ),
            (json!(["events:write"]), "`events:write`; "),
            (
                json!(["Links:Read"]),
                "`Links:Read`; did you mean `links:read`? ",
            ),
            (
                json!([" links:read"]),
                "` links:read`; did you mean `links:read`? ",
            ),
            (json!([""]), "``; "),
        ] {
            let reply = app
                .post("/api-keys", json!({"name": "Key", "scopes": scopes}))
                .bearer(&token)
                .await;
            let valid = format!("commerce, {}", SCOPES.join(", "));
            let error = format!("/scopes unknown scope {unknown}valid scopes are {valid}");
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error]),
                "{scopes}"
            );
        }
        assert_eq!(app.get("/api-keys").bearer(&token).await.json(), json!([]));
    })
    .await;
}

// Using a key

#[actix_web::test]
async fn key_is_accepted_as_a_bearer_token() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(
                &token,
                json!({"mode": "test", "scopes": ["sessions:write"]}),
            )
            .await;
        let request = || {
            app.post(
                "/authz/forward-auth?scope=sessions:write&mode=test",
                json!({"amount": {"value": "49.99"}}),
            )
            .header("x-forwarded-method", "POST")
            .header("x-forwarded-uri", "/api/v1/sessions")
        };
        let reply = request().bearer(&key.text).await;
        assert_eq!(
            (reply.status, reply.header("x-auth-key-id")),
            (200, Some(key.id.as_str()))
        );
        assert_eq!(request().await.status, 401);
        assert_eq!(
            request().header("authorization", &key.text).await.status,
            401,
            "the scheme Bearer is required"
        );
        assert_eq!(
            request()
                .header("authorization", format!("Basic {}", key.text))
                .await
                .status,
            401
        );
        for changed in [
            &key.text[..key.text.len() - 1],
            &format!("{}a", key.text),
            &key.text.to_uppercase(),
        ] {
            let reply = request().bearer(changed).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (401, "invalid_api_key")
            );
        }
    })
    .await;
}

// Revoking a key

#[actix_web::test]
async fn revoked_key_is_401_stays_listed_and_cannot_be_restored() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"name": "WooCommerce plugin"}))
            .await;
        assert_eq!(gateway(app, "").bearer(&key.text).await.status, 200);
        app.clock.advance(Duration::from_secs(3600));
        revoke(app, &token, &key).await;
        let assert_revoked = async || {
            let reply = gateway(app, "").bearer(&key.text).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (401, "invalid_api_key")
            );
            assert_eq!(app.get("/whoami").bearer(&key.text).await.status, 401);
            assert_eq!(app.code(&key.text).await, "revoked");
            let list = app.get("/api-keys").bearer(&token).await.json();
            let row = &list
                .as_array()
                .unwrap()
                .iter()
                .find(|row| row["key_id"] == key.id)
                .expect("a visible row");
            assert_eq!(
                (&row["status"], &row["revoked_at"]),
                (&json!("revoked"), &json!(START + 3600))
            );
        };
        assert_revoked().await;
        let at = format!("/api-keys/{}", key.id);
        let changes = [
            app.call("POST", &format!("{at}/resume")),
            app.call("POST", &format!("{at}/suspend")),
            app.call("POST", &format!("{at}/rotate")),
            app.patch(&at, json!({"expires_at": null})),
            app.patch(&at, json!({"name": "WooCommerce plugin"})),
        ];
        for call in changes {
            let reply = call.bearer(&token).await;
            assert_eq!((reply.status, reply.code().as_str()), (409, "key_revoked"));
        }
        for patch in [json!({"revoked_at": null}), json!({"status": "active"})] {
            assert_eq!(app.patch(&at, patch).bearer(&token).await.status, 400);
        }
        for method in ["DELETE", "PUT"] {
            let reply = app.call(method, &at).bearer(&token).await;
            assert_eq!(reply.status, 405, "{method}");
            assert!(
                reply
                    .header("allow")
                    .is_some_and(|allow| allow.contains("GET") && allow.contains("PATCH"))
            );
        }
        app.clock.advance(Duration::from_secs(3600));
        assert_revoked().await;
        // The name can be reused, and the new key is another key.
        let again = app
            .commerce_key(&token, json!({"name": "WooCommerce plugin"}))
            .await;
        assert_ne!((&again.id, &again.text), (&key.id, &key.text));
        assert_revoked().await;
    })
    .await;
}

// Key list details

#[actix_web::test]
async fn key_list_has_every_documented_column() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "Production server", "mode": "live", "scopes": ["sessions:write", "links:read"]});
        let live = app.commerce_key(&token, body).await;
        app.clock.advance(Duration::from_secs(60));
        let body = json!({"name": "Staging", "mode": "test", "scopes": ["webhooks:read"]});
        let test = app.commerce_key(&token, body).await;
        app.clock.advance(Duration::from_secs(60));
        assert_eq!(gateway(app, "scope=sessions:write").bearer(&live.text).await.status, 200);
        assert_eq!(gateway(app, "scope=links:write").bearer(&test.text).await.status, 403);
        app.running().state().service.flush_usage().await;
        revoke(app, &token, &test).await;
        let list = app.get("/api-keys").bearer(&token).await.json();
        let columns: Vec<Value> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let columns = ["name", "prefix", "mode", "scopes", "last_used_at", "created_at", "status"];
                columns.iter().map(|column| row.get(column).expect("a column").clone()).collect()
            })
            .collect();
        assert_eq!(
            columns,
            [
                json!(["Staging", test.text[..14], "test", ["webhooks:read"], null, START + 60, "revoked"]),
                json!([
                    "Production server",
                    live.text[..14],
                    "live",
                    ["sessions:write", "links:read"],
                    START + 120,
                    START,
                    "active"
                ]),
            ]
        );
        assert_eq!("ck_live_abc123".len(), 14, "the prefix in the document");
    })
    .await;
}

// Best practices

#[actix_web::test]
async fn two_keys_are_valid_during_a_cutover() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "WooCommerce plugin", "scopes": ["sessions:write"]});
        let predecessor = app.commerce_key(&token, body.clone()).await;
        let successor = app.commerce_key(&token, body).await;
        let status = async |key: &Key| {
            gateway(app, "scope=sessions:write")
                .bearer(&key.text)
                .await
                .status
        };
        assert_eq!(
            (status(&predecessor).await, status(&successor).await),
            (200, 200)
        );
        revoke(app, &token, &predecessor).await;
        assert_eq!(
            (status(&predecessor).await, status(&successor).await),
            (401, 200)
        );
    })
    .await;
}
