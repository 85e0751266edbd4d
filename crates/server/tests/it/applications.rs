//! Applications and their keys, in the order of the API document.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_core::{Family, Mode};
use tollkey_verifier::testing::START;

use crate::{
    app::valid_scopes,
    assert_response,
    support::{App, each_backend, each_backend_with},
};

#[actix_web::test]
async fn creation_returns_the_application() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "  Production Web Store ", "description": "Primary e-commerce backend"});
        assert_response!(app.post("/applications", body).bearer(&token).await, @r#"
        201
        cache-control: no-store
        content-type: application/json
        location: /api/v1/applications/019b76da-a800-7474-bdc5-e24d2a413b15
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "name": "Production Web Store",
          "description": "Primary e-commerce backend",
          "isEnabled": true,
          "createdAt": "2026-01-01T00:00:00Z"
        }
        "#);
        assert_response!(app.post("/applications", json!({"name": "Staging"})).bearer(&token).await, @r#"
        201
        cache-control: no-store
        content-type: application/json
        location: /api/v1/applications/019b76da-a800-7a88-a527-a819b062c680
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00C2TTDCXK3GE3YDC5

        {
          "id": "019b76da-a800-7a88-a527-a819b062c680",
          "name": "Staging",
          "description": null,
          "isEnabled": true,
          "createdAt": "2026-01-01T00:00:00Z"
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn application_name_is_unique_per_account() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let first = app.application(&token, "Web Store").await;
        assert_response!(app.post("/applications", json!({"name": "Web Store"})).bearer(&token).await, @r#"
        409
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00C2TTDCXK3GE3YDC5

        {
          "type": "urn:tollkey:problem:application_name_taken",
          "title": "The application name is already used",
          "status": 409,
          "detail": "The account already has an application with this name. Choose another name.",
          "code": "application_name_taken",
          "request_id": "req_01KDVDNA00C2TTDCXK3GE3YDC5"
        }
        "#);
        app.application(&token, "web store").await;
        app.application(&app.management_token("globex"), "Web Store").await;
        let other = app.application(&token, "Other").await;
        let rename = app.patch(&format!("/applications/{other}"), json!({"name": "Web Store"})).bearer(&token).await;
        assert_eq!((rename.status, rename.code().as_str()), (409, "application_name_taken"));
        assert_eq!(app.delete(&format!("/applications/{first}")).bearer(&token).await.status, 204);
        app.application(&token, "Web Store").await;
    })
    .await;
}

#[actix_web::test]
async fn invalid_application_names_each_field() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "x".repeat(101), "description": "é".repeat(501)});
        assert_response!(app.post("/applications", body).bearer(&token).await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:validation_failed",
          "title": "The request is not valid",
          "status": 400,
          "detail": "2 fields are invalid: /name, /description",
          "code": "validation_failed",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC",
          "errors": [
            {
              "pointer": "/name",
              "detail": "must have 1 to 100 characters"
            },
            {
              "pointer": "/description",
              "detail": "must have at most 500 characters"
            }
          ]
        }
        "#);
        for (body, error) in [
            (json!({}), "/name is required"),
            (json!({"name": null}), "/name must be a string"),
            (json!({"name": 1}), "/name must be a string"),
            (json!({"name": ""}), "/name must have 1 to 100 characters"),
            (
                json!({"name": " \u{a0}"}),
                "/name must have 1 to 100 characters",
            ),
            (
                json!({"name": "a\u{0}b"}),
                "/name must not contain control characters",
            ),
            (
                json!({"name": "a", "isEnabled": false}),
                "/isEnabled is unknown",
            ),
            (json!({"name": "a", "id": "x"}), "/id is unknown"),
        ] {
            let reply = app.post("/applications", body.clone()).bearer(&token).await;
            assert_eq!(reply.status, 400, "{body}");
            let errors = reply.json()["errors"].clone();
            let error_text = format!(
                "{} {}",
                errors[0]["pointer"].as_str().unwrap(),
                errors[0]["detail"].as_str().unwrap()
            );
            assert_eq!(error_text, error, "{body}");
        }
        for body in [
            json!({"name": "x".repeat(100), "description": "é".repeat(500)}),
            json!({"name": "y", "description": null}),
        ] {
            assert_eq!(
                app.post("/applications", body).bearer(&token).await.status,
                201
            );
        }
        assert_eq!(
            app.get("/applications").bearer(&token).await.json()["totalItems"],
            2
        );
        assert_eq!(
            app.get("/audit-log")
                .bearer(&token)
                .await
                .json()
                .as_array()
                .map(Vec::len),
            Some(2)
        );
    })
    .await;
}

#[actix_web::test]
async fn application_key_is_shown_once() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Production Web Store").await;
        let path = format!("/applications/{id}/api-keys");
        let reply = app.post(&path, json!({"description": "Primary checkout key"})).bearer(&token).await;
        assert_response!(reply, @r#"
        201
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00C2TTDCXK3GE3YDC5

        {
          "id": "019b76da-a800-7a88-a527-a819b062c680",
          "applicationId": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "fullKey": "ks_live_(32)",
          "keyPrefix": "ks_live_MaDz",
          "description": "Primary checkout key",
          "createdAt": "2026-01-01T00:00:00Z"
        }
        "#);
        let text = reply.json()["fullKey"].as_str().unwrap().to_owned();
        assert_eq!((text.len(), &text[..8]), (40, "ks_live_"));
        assert_eq!(reply.json()["keyPrefix"], text[..12]);
        // No later response shows it.
        for path in [&path, "/applications?include=apiKeys", "/audit-log"] {
            let shown = app.get(path).bearer(&token).await;
            assert_eq!(shown.status, 200);
            assert!(!shown.body.contains(&text), "{path}");
        }
        let full = json!({
            "description": "Everything", "mode": "test", "scopes": ["links:read", "sessions:write", "links:read"],
            "expiresAt": "2100-01-01T00:00:00Z", "allowedIps": ["203.0.113.0/24", "2001:db8::/32"],
            "rateLimit": {"limit": 5, "windowSeconds": 60}, "metadata": {"owner": "checkout", "n": 1.5}
        });
        let reply = app.post(&path, full).bearer(&token).await;
        assert_eq!(reply.status, 201, "{reply}");
        assert!(reply.json()["fullKey"].as_str().unwrap().starts_with("ks_test_"));
        assert_response!(app.get(&path).bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00GEJED19TSNX25VZT

        {
          "items": [
            {
              "id": "019b76da-a800-7a88-a527-a819b062c680",
              "keyPrefix": "ks_live_MaDz",
              "description": "Primary checkout key",
              "status": "active",
              "applicationId": "019b76da-a800-7474-bdc5-e24d2a413b15",
              "last4": "oCHX",
              "mode": "live",
              "scopes": [
                "commerce"
              ],
              "allowedIps": null,
              "rateLimit": null,
              "metadata": null,
              "createdAt": "2026-01-01T00:00:00Z",
              "expiresAt": null,
              "lastUsedAt": null,
              "revokedAt": null,
              "revokedReason": null
            },
            {
              "id": "019b76da-a800-7296-934c-42b9e830a96b",
              "keyPrefix": "ks_test_cMK1",
              "description": "Everything",
              "status": "active",
              "applicationId": "019b76da-a800-7474-bdc5-e24d2a413b15",
              "last4": "FQp0",
              "mode": "test",
              "scopes": [
                "links:read",
                "sessions:write"
              ],
              "allowedIps": [
                "203.0.113.0/24",
                "2001:db8::/32"
              ],
              "rateLimit": {
                "limit": 5,
                "windowSeconds": 60
              },
              "metadata": {
                "owner": "checkout",
                "n": 1.5
              },
              "createdAt": "2026-01-01T00:00:00Z",
              "expiresAt": "2100-01-01T00:00:00Z",
              "lastUsedAt": null,
              "revokedAt": null,
              "revokedReason": null
            }
          ],
          "page": 1,
          "limit": 10,
          "totalItems": 2,
          "totalPages": 1,
          "hasPreviousPage": false,
          "hasNextPage": false
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn invalid_key_names_the_field_and_creates_nothing() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let path = format!("/applications/{id}/api-keys");
        let now = "2026-01-01T00:00:00Z";
        for (body, error) in [
            (json!({}), "/description is required"),
            (json!({"description": ""}), "/description must have 1 to 255 characters"),
            (json!({"description": "x".repeat(256)}), "/description must have 1 to 255 characters"),
            (json!({"description": "d", "mode": "LIVE"}), "/mode must be one of live, test"),
            (json!({"description": "d", "scopes": []}), "/scopes must not be empty; on creation, omit the field for the default, [\"commerce\"]"),
            (
                json!({"description": "d", "scopes": ["links:delete"]}),
                &format!("/scopes unknown scope `links:delete`; valid scopes are {}", valid_scopes()),
            ),
            (json!({"description": "d", "expiresAt": now}), "/expiresAt must be in the future"),
            (json!({"description": "d", "allowedIps": []}), "/allowedIps must not be empty; on creation, omit the field to set no restriction"),
            (
                json!({"description": "d", "allowedIps": ["10.0.0.1/8"]}),
                "/allowedIps `10.0.0.1/8` has host bits set; did you mean `10.0.0.0/8`?",
            ),
            (json!({"description": "d", "rateLimit": {"limit": 0, "windowSeconds": 1}}), "/rateLimit/limit must be between 1 and 1000000"),
            (json!({"description": "d", "metadata": {"x": "y".repeat(5000)}}), "/metadata must be at most 4096 bytes of JSON"),
            (json!({"description": "d", "merchants": ["m"]}), "/merchants is unknown"),
        ] {
            let reply = app.post(&path, body.clone()).bearer(&token).await;
            assert_eq!(reply.status, 400, "{body}");
            let errors = reply.json()["errors"].clone();
            let error_text = format!("{} {}", errors[0]["pointer"].as_str().unwrap(), errors[0]["detail"].as_str().unwrap());
            assert_eq!(error_text, error, "{body}");
        }
        assert_eq!(app.get(&path).bearer(&token).await.json()["totalItems"], 0);
    })
    .await;
}

#[actix_web::test]
async fn application_key_limit_counts_usable_keys() {
    each_backend_with(&[("TOLLKEY_APPLICATION_KEY_LIMIT", "3")], async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let path = format!("/applications/{id}/api-keys");
        // Concurrent requests: counting and inserting is one step.
        let body = json!({"description": "d"});
        let calls = (0..12).map(|_| app.post(&path, body.clone()).bearer(&token).into_future());
        let statuses: Vec<u16> = futures_util::future::join_all(calls).await.iter().map(|reply| reply.status).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 3, "{statuses:?}");
        assert_response!(app.post(&path, body.clone()).bearer(&token).await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00PEY1B1FDHKH0P32S

        {
          "type": "urn:tollkey:problem:application_key_limit_reached",
          "title": "Maximum number of API keys reached",
          "status": 400,
          "detail": "The application already has its maximum number of keys that are neither revoked nor expired (3). Revoke a key first.",
          "code": "application_key_limit_reached",
          "request_id": "req_01KDVDNA00PEY1B1FDHKH0P32S"
        }
        "#);

        let keys = app.get(&path).bearer(&token).await.json();
        let first = keys["items"][0]["id"].as_str().unwrap().to_owned();
        assert_eq!(app.delete(&format!("{path}/{first}")).bearer(&token).await.status, 204);
        let expiring = json!({"description": "d", "expiresAt": app.in_seconds(60)});
        assert_eq!(app.post(&path, expiring).bearer(&token).await.status, 201);
        assert_eq!(app.post(&path, body.clone()).bearer(&token).await.code(), "application_key_limit_reached");
        app.clock.advance(Duration::from_secs(61));
        assert_eq!(app.post(&path, body).bearer(&token).await.status, 201);
    })
    .await;
}

#[actix_web::test]
async fn applications_are_listed_newest_first() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        assert_response!(app.get("/applications").bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "items": [],
          "page": 1,
          "limit": 10,
          "totalItems": 0,
          "totalPages": 0,
          "hasPreviousPage": false,
          "hasNextPage": false
        }
        "#);
        for name in ["First", "Second", "Third"] {
            let id = app.application(&token, name).await;
            app.key(&token, &id, json!({})).await;
            app.clock.advance(Duration::from_secs(1));
        }
        assert_response!(app.get("/applications?include=apiKeys&page=1&limit=2").bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNCXRQ1YQ9W9FN9PXHFKH

        {
          "items": [
            {
              "id": "019b76da-afd0-7823-8b2a-e000550e0be5",
              "name": "Third",
              "description": null,
              "isEnabled": true,
              "createdAt": "2026-01-01T00:00:02Z",
              "apiKeys": [
                {
                  "id": "019b76da-afd0-79f5-9ba4-56ebeb0acac2",
                  "keyPrefix": "ks_live_UEcd",
                  "description": "Checkout",
                  "status": "active"
                }
              ]
            },
            {
              "id": "019b76da-abe8-7305-8c06-f5c9c4f470f2",
              "name": "Second",
              "description": null,
              "isEnabled": true,
              "createdAt": "2026-01-01T00:00:01Z",
              "apiKeys": [
                {
                  "id": "019b76da-abe8-796b-8b14-7149c5729dac",
                  "keyPrefix": "ks_live_K1y3",
                  "description": "Checkout",
                  "status": "active"
                }
              ]
            }
          ],
          "page": 1,
          "limit": 2,
          "totalItems": 3,
          "totalPages": 2,
          "hasPreviousPage": false,
          "hasNextPage": true
        }
        "#);
        assert_response!(app.get("/applications?page=2&limit=2").bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNCXRQ340Z7PASX79EXQC

        {
          "items": [
            {
              "id": "019b76da-a800-7ccf-84ca-a8cd7b63c7cb",
              "name": "First",
              "description": null,
              "isEnabled": true,
              "createdAt": "2026-01-01T00:00:00Z"
            }
          ],
          "page": 2,
          "limit": 2,
          "totalItems": 3,
          "totalPages": 2,
          "hasPreviousPage": true,
          "hasNextPage": false
        }
        "#);
        let past = app.get("/applications?page=4294967295&limit=100").bearer(&token).await.json();
        assert_eq!((past["items"].clone(), past["totalPages"].clone()), (json!([]), json!(1)));
        assert_eq!(past["hasPreviousPage"], true);
    })
    .await;
}

#[actix_web::test]
async fn invalid_list_parameters_are_rejected() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        for path in [
            "/applications".to_owned(),
            format!("/applications/{id}/api-keys"),
        ] {
            for (query, pointer) in [
                ("page=0", "page"),
                ("page=-1", "page"),
                ("page=x", "page"),
                ("page=", "page"),
                ("page=1&page=2", "page"),
                ("limit=0", "limit"),
                ("limit=101", "limit"),
                ("offset=1", "offset"),
                ("include=keys", "include"),
            ] {
                let reply = app.get(&format!("{path}?{query}")).bearer(&token).await;
                assert_eq!(reply.status, 400, "{path}?{query}");
                assert_eq!(
                    reply.json()["errors"][0]["pointer"],
                    pointer,
                    "{path}?{query}"
                );
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn merge_patch_updates_an_application() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let path = format!("/applications/{id}");
        let patched = app
            .patch(&path, json!({"name": "Shop", "description": "New"}))
            .bearer(&token)
            .await;
        assert_response!(patched, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00C2TTDCXK3GE3YDC5

        {
          "id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "name": "Shop",
          "description": "New",
          "isEnabled": true,
          "createdAt": "2026-01-01T00:00:00Z"
        }
        "#);
        let cleared = app
            .patch(&path, json!({"description": null}))
            .bearer(&token)
            .await
            .json();
        assert_eq!(
            (cleared["name"].clone(), cleared["description"].clone()),
            (json!("Shop"), Value::Null)
        );
        assert_eq!(
            app.patch(&path, json!({})).bearer(&token).await.json(),
            cleared
        );
        let rejected = app.patch(&path, json!({"name": null})).bearer(&token).await;
        assert_eq!(
            rejected.json()["errors"],
            json!([{"pointer": "/name", "detail": "cannot be cleared"}])
        );
        assert_eq!(app.get(&path).bearer(&token).await.json(), cleared);
        // An update without changes has no audit entry.
        let log = app
            .get("/audit-log?action=application.updated")
            .bearer(&token)
            .await
            .json();
        let changes: Vec<&Value> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| &entry["changes"])
            .collect();
        assert_eq!(
            changes,
            [
                &json!({"description": ["New", null]}),
                &json!({"name": ["Web Store", "Shop"], "description": [null, "New"]})
            ]
        );
    })
    .await;
}

#[actix_web::test]
async fn deleting_a_key_revokes_it_once() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let (first, second) = (
            app.key(&token, &id, json!({})).await,
            app.key(&token, &id, json!({})).await,
        );
        assert_eq!(
            (
                app.code(&first.text).await.as_str(),
                app.code(&second.text).await.as_str()
            ),
            ("valid", "valid")
        );
        let path = format!("/applications/{id}/api-keys/{}", first.id);
        assert_response!(app.delete(&path).bearer(&token).await, @"
        204
        cache-control: no-store
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA009K9ZREF2YE8PHR6X
        ");
        assert_eq!(
            (
                app.code(&first.text).await.as_str(),
                app.code(&second.text).await.as_str()
            ),
            ("revoked", "valid")
        );
        assert_response!(app.delete(&path).bearer(&token).await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00C6478JG2TGZMM2Y8

        {
          "type": "urn:tollkey:problem:key_already_revoked",
          "title": "The key is already revoked",
          "status": 400,
          "detail": "The key is already revoked. Nothing was changed.",
          "code": "key_already_revoked",
          "request_id": "req_01KDVDNA00C6478JG2TGZMM2Y8"
        }
        "#);
        // The key of another application is not found, by either form of its ID.
        let other = app.application(&token, "Other").await;
        let crockford = second
            .id
            .parse::<tollkey_core::KeyId>()
            .unwrap()
            .crockford();
        for key in [&second.id, &crockford] {
            let reply = app
                .delete(&format!("/applications/{other}/api-keys/{key}"))
                .bearer(&token)
                .await;
            assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"));
        }
        assert_eq!(
            app.delete(&format!("/applications/{id}/api-keys/{crockford}"))
                .bearer(&token)
                .await
                .status,
            204
        );
        let keys = app
            .get(&format!("/applications/{id}/api-keys"))
            .bearer(&token)
            .await
            .json();
        assert_eq!(keys["totalItems"], 2, "revoked keys stay visible");
        assert_eq!(keys["items"][0]["revokedAt"], "2026-01-01T00:00:00Z");
    })
    .await;
}

#[actix_web::test]
async fn disabled_application_denies_its_keys_until_enabled() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Production Web Store").await;
        let key = app.key(&token, &id, json!({})).await;
        assert_eq!(app.code(&key.text).await, "valid");
        let path = format!("/applications/{id}/status");
        assert_response!(app.patch(&path, json!({"isEnabled": false})).bearer(&token).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00A9WNT2SZ1G0AM99W

        {
          "id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "name": "Production Web Store",
          "description": null,
          "isEnabled": false,
          "createdAt": "2026-01-01T00:00:00Z"
        }
        "#);
        assert_eq!(app.code(&key.text).await, "application_disabled");
        assert_eq!(
            app.patch(&path, json!({"isEnabled": false}))
                .bearer(&token)
                .await
                .status,
            200
        );
        assert_eq!(
            app.patch(&path, json!({"isEnabled": true}))
                .bearer(&token)
                .await
                .json()["isEnabled"],
            true
        );
        assert_eq!(app.code(&key.text).await, "valid");
        let rejected = app
            .patch(&path, json!({"isEnabled": "no"}))
            .bearer(&token)
            .await;
        assert_eq!(
            rejected.json()["errors"],
            json!([{"pointer": "/isEnabled", "detail": "must be a boolean"}])
        );
    })
    .await;
}

#[actix_web::test]
async fn deleting_an_application_revokes_its_keys() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let kept = app.application(&token, "Kept").await;
        let (first, second) = (
            app.key(&token, &id, json!({})).await,
            app.key(&token, &id, json!({})).await,
        );
        let other = app.key(&token, &kept, json!({})).await;
        for key in [&first, &second, &other] {
            assert_eq!(app.code(&key.text).await, "valid");
        }
        let path = format!("/applications/{id}");
        assert_eq!(app.delete(&path).bearer(&token).await.status, 204);
        assert_eq!(
            (
                app.code(&first.text).await.as_str(),
                app.code(&second.text).await.as_str()
            ),
            ("revoked", "revoked")
        );
        assert_eq!(app.code(&other.text).await, "valid");
        for path in [path.clone(), format!("{path}/api-keys")] {
            assert_eq!(app.get(&path).bearer(&token).await.status, 404);
        }
        assert_eq!(app.delete(&path).bearer(&token).await.status, 404);
        assert_eq!(
            app.delete(&format!("{path}/api-keys/{}", first.id))
                .bearer(&token)
                .await
                .status,
            404
        );
        app.revocations_recorded().await;
        let log = app.get("/audit-log").bearer(&token).await.json();
        let actions: Vec<&str> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["action"].as_str().unwrap())
            .collect();
        assert_eq!(
            actions[..3],
            ["api_key.revoked", "api_key.revoked", "application.deleted"]
        );
        assert_eq!(
            log[1]["changes"],
            json!({"status": "revoked", "reason": "application_deleted"})
        );
        assert_eq!(
            [&log[0]["occurred_at"], &log[0]["actor"]],
            [&log[2]["occurred_at"], &log[2]["actor"]]
        );
    })
    .await;
}

#[actix_web::test]
async fn replica_shows_last_use_that_is_not_written_yet() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let of_application = app.key(&token, &application, json!({})).await;
        let commerce = app.commerce_key(&token, json!({})).await;
        let account_key = app.insert_key("acme", Family::Secret, Mode::Live).await;
        for text in [&of_application.text, &commerce.text, &account_key] {
            assert_eq!(app.get("/whoami").bearer(text).await.status, 200);
        }
        let _ = app.running().state().service.verifier.collect_usage();
        let shown = async |path: &str, pointer: &str| {
            let reply = app.get(path).bearer(&token).await;
            let time = reply.json().pointer(pointer).cloned();
            time.unwrap_or_else(|| panic!("{path}: {reply}"))
        };
        let commerce = format!("/api-keys/{}", commerce.id);
        for (path, pointer) in [
            (
                format!("/applications/{application}/api-keys"),
                "/items/0/lastUsedAt",
            ),
            ("/v1/account/api-keys".to_owned(), "/data/0/lastUsedAt"),
        ] {
            assert_eq!(
                shown(&path, pointer).await,
                "2026-01-01T00:00:00Z",
                "{path}"
            );
        }
        for (path, pointer) in [
            ("/api-keys", "/0/last_used_at"),
            (commerce.as_str(), "/last_used_at"),
        ] {
            assert_eq!(shown(path, pointer).await, START, "{path}");
        }
        for change in [
            app.patch(&commerce, json!({"name": "New"})),
            app.post(&format!("{commerce}/suspend"), json!({})),
        ] {
            let changed = change.bearer(&token).await;
            assert_eq!(changed.json()["last_used_at"], START, "{changed}");
        }
    })
    .await;
}

#[actix_web::test]
async fn last_used_is_the_last_successful_verification() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let key = app
            .key(&token, &id, json!({"scopes": ["links:read"]}))
            .await;
        let path = format!("/applications/{id}/api-keys");
        let last_used = async || {
            app.running().state().service.flush_usage().await;
            app.get(&path).bearer(&token).await.json()["items"][0]["lastUsedAt"].clone()
        };
        assert_eq!(last_used().await, Value::Null);
        app.code(&key.text).await;
        assert_eq!(last_used().await, "2026-01-01T00:00:00Z");
        app.clock.advance(Duration::from_secs(60));
        assert_eq!(
            app.verify(&key.text, json!({"scopes": ["links:write"]}))
                .await["code"],
            "insufficient_scope"
        );
        assert_eq!(last_used().await, "2026-01-01T00:00:00Z");
        app.code(&key.text).await;
        assert_eq!(last_used().await, "2026-01-01T00:01:00Z");
    })
    .await;
}
