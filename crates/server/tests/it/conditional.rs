//! `ETag` and `If-Match` on keys, applications, accounts and service keys.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tollkey_core::{Family, Mode};

use crate::{
    assert_response,
    support::{
        App, Call, Reply,
        account_keys::{create_key, key_request},
        each_backend,
    },
};

/// A tag of no state.
const OTHER: &str = "\"00000000000000000000000000000000\"";

/// Returns the strong tag of a response: 32 hex digits in quotation marks.
fn tag(reply: &Reply) -> String {
    let tags = reply.all("etag");
    let [tag] = tags.as_slice() else {
        panic!("{tags:?}: {reply}")
    };
    let digits = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    assert!(
        digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(is_hex)),
        "{tag}"
    );
    (*tag).to_owned()
}

async fn tag_of(call: Call) -> String {
    let reply = call.await;
    assert!(reply.status < 300, "{reply}");
    tag(&reply)
}

fn assert_failed(reply: &Reply) {
    let found = (reply.status, reply.code());
    assert_eq!(found, (412, "precondition_failed".to_owned()), "{reply}");
    assert_eq!(reply.header("etag"), None, "{reply}");
}

#[actix_web::test]
async fn change_of_another_state_is_412() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        let put = app.put("/accounts/acme", json!({"operating_model": "platform"}));
        let reply = put.bearer(&operator).header("if-match", OTHER).await;
        assert_response!(reply, @r#"
        412
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:precondition_failed",
          "title": "The resource was changed",
          "status": 412,
          "detail": "The current ETag of the resource is not in If-Match, so nothing was changed. Get the resource again, and repeat the change with its ETag.",
          "code": "precondition_failed",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC"
        }
        "#);
        let account = app.get("/accounts/acme").bearer(&operator).await;
        assert_eq!(account.json()["operating_model"], "primary_merchant");
    })
    .await;
}

#[actix_web::test]
async fn commerce_key_has_the_tag_of_its_state() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let created = app
            .post("/api-keys", json!({"name": "Till"}))
            .bearer(&token)
            .await;
        let path = format!("/api-keys/{}", created.json()["key_id"].as_str().unwrap());
        let get = || tag_of(app.get(&path).bearer(&token));
        let first = tag(&created);
        assert_eq!(get().await, first);
        let mut seen = vec![first.clone()];
        for (method, part, body) in [
            ("PATCH", "", json!({"name": "Till 2"})),
            ("PATCH", "", json!({"metadata": {"a": 1}})),
            (
                "PATCH",
                "",
                json!({"scopes": ["links:read", "links:write"]}),
            ),
            ("PATCH", "", json!({"allowed_ips": ["203.0.113.0/24"]})),
            (
                "PATCH",
                "",
                json!({"rate_limit": {"limit": 10, "window_seconds": 60}}),
            ),
            ("PATCH", "", json!({"expires_at": "2100-01-01T00:00:00Z"})),
            ("POST", "/suspend", json!({})),
            ("POST", "/revoke", json!({"reason": "lost"})),
        ] {
            let call = app
                .call(method, &format!("{path}{part}"))
                .json(body.clone());
            let changed = tag_of(call.bearer(&token)).await;
            assert_eq!(get().await, changed, "{body}");
            assert!(!seen.contains(&changed), "{part} {body}");
            seen.push(changed);
        }
        // What changes nothing has the same tag.
        let key = app
            .commerce_key(&token, json!({"metadata": {"a": 1, "b": 2}}))
            .await;
        let path = format!("/api-keys/{}", key.id);
        let get = || tag_of(app.get(&path).bearer(&token));
        let before = get().await;
        for body in [json!({}), json!({"metadata": {"b": 2, "a": 1}})] {
            let patched = tag_of(app.patch(&path, body).bearer(&token)).await;
            assert_eq!(patched, before);
        }
        let suspend = app
            .post(&format!("{path}/suspend"), json!({}))
            .bearer(&token);
        let resume = app
            .post(&format!("{path}/resume"), json!({}))
            .bearer(&token);
        assert_ne!(tag_of(suspend).await, before);
        assert_eq!(tag_of(resume).await, before);
    })
    .await;
}

#[actix_web::test]
async fn usage_and_time_do_not_change_the_tag() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let expires_at = app.in_seconds(60);
        let key = app
            .commerce_key(&token, json!({"expires_at": expires_at}))
            .await;
        let path = format!("/api-keys/{}", key.id);
        let row = || app.get(&path).bearer(&token);
        let before = row().await;
        assert_eq!(before.json()["last_used_at"], Value::Null);
        app.clock.advance(Duration::from_secs(5));
        assert_eq!(app.code(&key.text).await, "valid");
        app.running().state().service.flush_usage().await;
        let used = row().await;
        assert_ne!(used.json()["last_used_at"], Value::Null);
        assert_eq!(tag(&used), tag(&before));
        app.clock.advance(Duration::from_secs(60));
        let expired = row().await;
        assert_eq!(expired.json()["status"], "expired");
        assert_eq!(tag(&expired), tag(&before));
    })
    .await;
}

#[actix_web::test]
async fn rotation_compares_the_predecessor() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let path = format!("/api-keys/{}", key.id);
        let before = tag_of(app.get(&path).bearer(&token)).await;
        let rotate = |if_match: &str| {
            app.post(&format!("{path}/rotate"), json!({"overlap_seconds": 60}))
                .bearer(&token)
                .header("if-match", if_match)
        };
        assert_failed(&rotate(OTHER).await);
        assert_eq!(tag_of(app.get(&path).bearer(&token)).await, before);
        let rotated = rotate(&before).await;
        assert_eq!(rotated.status, 201, "{rotated}");
        let successor = format!("/api-keys/{}", rotated.json()["key_id"].as_str().unwrap());
        assert_eq!(
            tag_of(app.get(&successor).bearer(&token)).await,
            tag(&rotated)
        );
        assert_ne!(tag_of(app.get(&path).bearer(&token)).await, before);
        // The status of the key has precedence (RFC 9110, section 13.2.1).
        let again = rotate(&before).await;
        assert_eq!(
            (again.status, again.code().as_str()),
            (409, "key_already_rotated")
        );
    })
    .await;
}

#[actix_web::test]
async fn application_and_its_keys_have_tags() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let created = app
            .post("/applications", json!({"name": "Web Store"}))
            .bearer(&token)
            .await;
        let path = format!("/applications/{}", created.json()["id"].as_str().unwrap());
        let get = || tag_of(app.get(&path).bearer(&token));
        let first = tag(&created);
        assert_eq!(get().await, first);
        let status = |enabled| app.patch(&format!("{path}/status"), json!({"isEnabled": enabled}));
        for call in [
            app.patch(&path, json!({"name": "Shop"})),
            app.patch(&path, json!({"description": "Main"})),
            status(false),
            app.delete(&path),
        ] {
            assert_failed(&call.bearer(&token).header("if-match", OTHER).await);
        }
        assert_eq!(get().await, first);
        let renamed = app.patch(&path, json!({"name": "Shop"})).bearer(&token);
        let second = tag_of(renamed.header("if-match", &first)).await;
        assert_eq!(get().await, second);
        let disabled = tag_of(status(false).bearer(&token).header("if-match", &second)).await;
        let enabled = tag_of(status(true).bearer(&token).header("if-match", &disabled)).await;
        assert_eq!(enabled, second);
        assert!(first != second && second != disabled);

        let key = app
            .post(&format!("{path}/api-keys"), json!({"description": "Till"}))
            .bearer(&token)
            .await;
        let key_path = format!("{path}/api-keys/{}", key.json()["id"].as_str().unwrap());
        let revoke = |if_match: &str| {
            app.delete(&key_path)
                .bearer(&token)
                .header("if-match", if_match)
        };
        assert_failed(&revoke(OTHER).await);
        let revoked = revoke(&tag(&key)).await;
        assert_eq!(revoked.status, 204);
        assert_ne!(tag(&revoked), tag(&key));
        // A repeat gets the documented response, whatever tag it has.
        let again = revoke(&tag(&key)).await;
        assert_eq!(
            (again.status, again.code().as_str()),
            (400, "key_already_revoked")
        );
        // The keys are not part of the state of the application.
        assert_eq!(get().await, second);
        let deleted = app
            .delete(&path)
            .bearer(&token)
            .header("if-match", &second)
            .await;
        assert_eq!((deleted.status, deleted.header("etag")), (204, None));
    })
    .await;
}

#[actix_web::test]
async fn account_keys_have_tags_and_their_own_error() {
    each_backend(async |app: &App| {
        let owner = app.insert_key("acme", Family::Secret, Mode::Live).await;
        for (method, part) in [("DELETE", ""), ("POST", "/revoke")] {
            let key = create_key(app, &owner, key_request("live", "secret")).await;
            let call = |if_match: &str| {
                app.call(method, &format!("/account/api-keys/{}{part}", key.id))
                    .bearer(&owner)
                    .header("if-match", if_match)
            };
            let failed = call(OTHER).await;
            let json = failed.json();
            assert_eq!((failed.status, &json["data"]), (412, &Value::Null), "{failed}");
            assert_eq!(
                json["error"],
                json!({
                    "code": "PRECONDITION_FAILED",
                    "message": "The current ETag of the resource is not in If-Match, so nothing was changed. Get the resource again, and repeat the change with its ETag.",
                })
            );
            assert_eq!(app.code(&key.text).await, "valid");
            // The tag is the same on every surface.
            let own = app.get("/whoami").bearer(&key.text).await;
            let revoked = call(&tag(&own)).await;
            assert_eq!(revoked.status, 200, "{revoked}");
            assert_ne!(tag(&revoked), tag(&own));
            let again = call(&tag(&own)).await;
            assert_eq!((again.status, tag(&again)), (200, tag(&revoked)), "{again}");
        }
    })
    .await;
}

#[actix_web::test]
async fn repeated_revocation_ignores_if_match() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let path = format!("/api-keys/{}/revoke", key.id);
        let revoke = |if_match: &str| {
            app.post(&path, json!({}))
                .bearer(&token)
                .header("if-match", if_match)
        };
        assert_failed(&revoke(OTHER).await);
        assert_eq!(app.code(&key.text).await, "valid");
        let before = tag_of(app.get(&format!("/api-keys/{}", key.id)).bearer(&token)).await;
        let revoked = tag_of(revoke(&before)).await;
        for stale in [&before, OTHER] {
            assert_eq!(tag_of(revoke(stale)).await, revoked);
        }
        // Other repeats are compared.
        let suspended = app.commerce_key(&token, json!({})).await;
        let path = format!("/api-keys/{}/suspend", suspended.id);
        let suspend = || app.post(&path, json!({})).bearer(&token);
        let tag = tag_of(suspend()).await;
        assert_failed(&suspend().header("if-match", OTHER).await);
        assert_eq!(tag_of(suspend().header("if-match", &tag)).await, tag);

        let operator = app.operator();
        let created = app
            .post("/service-keys", json!({"name": "gateway"}))
            .bearer(&operator)
            .await;
        let path = format!("/service-keys/{}", created.json()["id"].as_str().unwrap());
        let revoke = |if_match: &str| {
            app.delete(&path)
                .bearer(&operator)
                .header("if-match", if_match)
        };
        assert_failed(&revoke(OTHER).await);
        let revoked = tag_of(revoke(&self::tag(&created))).await;
        assert_eq!(tag_of(revoke(OTHER)).await, revoked);
    })
    .await;
}

#[actix_web::test]
async fn key_compares_if_match_when_it_revokes_itself() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let commerce = app.commerce_key(&token, json!({})).await;
        let get = app.get(&format!("/api-keys/{}", commerce.id));
        let commerce_tag = tag_of(get.bearer(&token)).await;
        let secret = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let secret_tag = tag_of(app.get("/whoami").bearer(&secret)).await;
        for (key, before) in [(&commerce.text, commerce_tag), (&secret, secret_tag)] {
            let revoke = |if_match: &str| {
                app.delete("/whoami")
                    .bearer(key)
                    .header("if-match", if_match)
            };
            assert_failed(&revoke(OTHER).await);
            assert_eq!(app.code(key).await, "valid");
            let revoked = revoke(&before).await;
            assert_eq!(revoked.status, 204, "{revoked}");
            assert_eq!(app.code(key).await, "revoked");
            if key == &secret {
                assert_ne!(tag(&revoked), before);
            } else {
                assert_eq!(revoked.header("etag"), None);
            }
        }
    })
    .await;
}

/// The holder of another key could compare it with the tags of guesses about fields that it cannot see.
#[actix_web::test]
async fn only_a_secret_key_gets_its_own_tag() {
    each_backend(async |app: &App| {
        for family in Family::ALL {
            let key = if family == Family::Application {
                let token = app.management_token("acme");
                let application = app.application(&token, "Web store").await;
                app.key(&token, &application, json!({})).await.text
            } else {
                app.insert_key("acme", family, Mode::Live).await
            };
            let is_secret = family == Family::Secret;
            let own = app.get("/whoami").bearer(&key).await;
            let found = (own.status, own.header("etag").is_some());
            assert_eq!(found, (200, is_secret), "{family:?}: {own}");
            let status = if family == Family::Publishable {
                403
            } else {
                204
            };
            let revoked = app.delete("/whoami").bearer(&key).await;
            let found = (revoked.status, revoked.header("etag").is_some());
            assert_eq!(found, (status, is_secret), "{family:?}: {revoked}");
        }
    })
    .await;
}

#[actix_web::test]
async fn if_match_is_any_state_or_a_list_of_strong_tags() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        let get = || tag_of(app.get("/accounts/acme").bearer(&operator));
        let put = |model: &str| {
            app.put("/accounts/acme", json!({"operating_model": model}))
                .bearer(&operator)
        };
        let current = get().await;
        let upper = current.to_ascii_uppercase();
        for failing in [
            OTHER.to_owned(),
            format!("W/{current}"),
            format!("{OTHER}, W/{current}, \"a,b\", \"\""),
            upper,
        ] {
            assert_failed(&put("platform").header("if-match", failing).await);
        }
        let two_headers = put("platform")
            .header("if-match", OTHER)
            .header("if-match", OTHER)
            .await;
        assert_failed(&two_headers);
        assert_eq!(get().await, current);
        for malformed in [
            "",
            "abc",
            "\"abc",
            "*, *",
            "\"a\" \"b\"",
            "\"a\",*",
            ",",
            "\"a b\"",
        ] {
            let reply = put("platform").header("if-match", malformed).await;
            let rule = "If-Match must be * or a list of ETag values with their quotation marks";
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![rule.to_owned()]),
                "{malformed}"
            );
        }
        // A caller without a valid credential learns nothing about the header.
        let unauthenticated = app
            .put("/accounts/acme", json!({}))
            .header("if-match", "abc")
            .await;
        assert_eq!(unauthenticated.status, 401);
        let forms: [fn(&str) -> String; 3] = [
            |_| "*".to_owned(),
            |tag| tag.to_owned(),
            |tag| format!("W/\"x\", {OTHER} ,\t{tag},"),
        ];
        for (form, model) in forms
            .into_iter()
            .zip(["platform", "ecosystem", "primary_merchant"])
        {
            let matching = form(&get().await);
            let reply = put(model).header("if-match", &matching).await;
            assert_eq!(reply.status, 200, "{matching}: {reply}");
            assert_eq!(reply.json()["operating_model"], model);
        }
        // Other accounts have other tags, and an unknown resource is 404 for every value.
        let globex = tag_of(app.get("/accounts/globex").bearer(&operator)).await;
        assert_failed(&put("platform").header("if-match", globex).await);
        let unknown = app
            .patch("/api-keys/0198c0de-0000-7000-8000-000000000001", json!({}))
            .bearer(&app.management_token("acme"));
        assert_eq!(unknown.header("if-match", "*").await.status, 404);
    })
    .await;
}

#[actix_web::test]
async fn replayed_creation_has_the_tag_of_the_first_response() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let body = json!({"name": "Till", "metadata": {"a": 1}, "allowed_ips": ["203.0.113.0/24"]});
        for (path, body) in [
            ("/api-keys".to_owned(), body),
            ("/applications".to_owned(), json!({"name": "Shop"})),
            (
                format!("/applications/{application}/api-keys"),
                json!({"description": "Till"}),
            ),
            (
                "/account/api-keys".to_owned(),
                key_request("live", "secret"),
            ),
        ] {
            let create = || {
                app.post(&path, body.clone())
                    .bearer(&token)
                    .header("idempotency-key", format!("EXAMPLE for {path}"))
            };
            let first = create().await;
            assert_eq!(first.status, 201, "{first}");
            if path == "/api-keys" {
                let key = format!("/api-keys/{}", first.json()["key_id"].as_str().unwrap());
                let renamed = app.patch(&key, json!({"name": "Other"})).bearer(&token);
                assert_ne!(tag_of(renamed).await, tag(&first));
            }
            let replayed = create().await;
            assert_eq!(replayed.header("idempotent-replayed"), Some("true"));
            assert_eq!(tag(&replayed), tag(&first), "{path}");
        }
        // A replay is not a second change, so it is not compared with the state after the first.
        let key = app.commerce_key(&token, json!({})).await;
        let path = format!("/api-keys/{}", key.id);
        let before = tag_of(app.get(&path).bearer(&token)).await;
        let rotate = || {
            app.post(&format!("{path}/rotate"), json!({}))
                .bearer(&token)
                .header("if-match", &before)
                .header("idempotency-key", "EXAMPLE for a rotation")
        };
        let first = rotate().await;
        let replayed = rotate().await;
        assert_eq!((first.status, replayed.status), (201, 201), "{replayed}");
        assert_eq!(tag(&replayed), tag(&first));
    })
    .await;
}

#[actix_web::test]
async fn one_of_several_changes_of_the_same_state_succeeds() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let path = format!("/api-keys/{}", key.id);
        let before = tag_of(app.get(&path).bearer(&token)).await;
        let changes = (0..8).map(|number| {
            app.patch(&path, json!({"name": format!("Till {number}")}))
                .bearer(&token)
                .header("if-match", &before)
                .into_future()
        });
        let replies = join_all(changes).await;
        let (changed, failed): (Vec<_>, Vec<_>) =
            replies.iter().partition(|reply| reply.status == 200);
        assert_eq!((changed.len(), failed.len()), (1, 7));
        failed.into_iter().for_each(assert_failed);
        assert_eq!(tag_of(app.get(&path).bearer(&token)).await, tag(changed[0]));
    })
    .await;
}

#[actix_web::test]
async fn lists_and_verifications_have_no_tag() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        for call in [
            app.get("/api-keys").bearer(&token),
            app.get("/applications").bearer(&token),
            app.get("/account/api-keys").bearer(&token),
            app.get("/audit-log").bearer(&token),
            app.get("/service-keys").bearer(&app.operator()),
            app.post("/verify", json!({"key": key.text}))
                .bearer(&app.service()),
            app.get("/authz/forward-auth").bearer(&key.text),
        ] {
            let reply = call.await;
            assert_eq!((reply.status, reply.header("etag")), (200, None), "{reply}");
        }
    })
    .await;
}
