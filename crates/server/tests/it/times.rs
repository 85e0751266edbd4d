//! Expirations near the largest time: every accepted value can be read again, and the key can be revoked.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_core::{Family, Mode, Timestamp};
use tollkey_verifier::testing::START;

use crate::support::{App, Key, account_keys, each_backend};

/// A key, and how an API lists, returns and revokes it.
struct CreatedKey {
    key: Key,
    list: String,
    row: Option<String>,
    revoke: (&'static str, String, u16),
}

async fn commerce(app: &App, token: &str, end: &Value) -> CreatedKey {
    let key = app.commerce_key(token, json!({"expires_at": end})).await;
    let path = format!("/api-keys/{}", key.id);
    CreatedKey {
        key,
        list: "/api-keys".to_owned(),
        revoke: ("POST", format!("{path}/revoke"), 200),
        row: Some(path),
    }
}

async fn application(app: &App, token: &str, end: &Value) -> CreatedKey {
    let application = app.application(token, &format!("Web Store {end}")).await;
    let key = app
        .key(token, &application, json!({"expiresAt": end}))
        .await;
    let list = format!("/applications/{application}/api-keys");
    CreatedKey {
        revoke: ("DELETE", format!("{list}/{}", key.id), 204),
        key,
        list,
        row: None,
    }
}

async fn account(app: &App, token: &str, end: &Value) -> CreatedKey {
    let mut body = account_keys::key_request("live", "secret");
    body["expiresAt"] = end.clone();
    let key = account_keys::create_key(app, token, body).await;
    let list = "/v1/account/api-keys";
    CreatedKey {
        revoke: ("POST", format!("{list}/{}/revoke", key.id), 200),
        key,
        list: list.to_owned(),
        row: None,
    }
}

impl CreatedKey {
    /// Reads the key from its list and by its ID, verifies it and revokes it.
    async fn assert_usable_until_revoked(self, app: &App, token: &str, context: &str) {
        let end = Timestamp::MAX.as_second();
        for path in [Some(&self.list), self.row.as_ref()].into_iter().flatten() {
            let reply = app.get(path).bearer(token).await;
            assert_eq!(reply.status, 200, "{context}: {reply}");
            let shown = reply.body.contains(&end.to_string())
                || reply.body.contains("\"9999-12-30T22:00:00Z\"");
            assert!(
                shown && reply.body.contains(&self.key.id),
                "{context}: {reply}"
            );
        }
        let verdict = app.verify(&self.key.text, json!({})).await;
        assert_eq!(
            (&verdict["code"], &verdict["key"]["expires_at"]),
            (&json!("valid"), &json!(end)),
            "{context}"
        );
        let (method, path, status) = &self.revoke;
        let reply = app.call(method, path).bearer(token).await;
        assert_eq!(reply.status, *status, "{context}: {reply}");
        assert_eq!(app.code(&self.key.text).await, "revoked", "{context}");
        assert_eq!(
            app.get(&self.list).bearer(token).await.status,
            200,
            "{context}"
        );
    }
}

/// The largest expiration, in every accepted format.
fn last() -> [Value; 4] {
    [
        json!(Timestamp::MAX.as_second()),
        json!("9999-12-30T22:00:00Z"),
        json!("9999-12-30T22:00:00.000001Z"),
        json!("9999-12-30T22:00:00.999999999Z"),
    ]
}

#[actix_web::test]
async fn key_with_the_largest_expiration_can_be_used_and_revoked() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for end in &last() {
            commerce(app, &token, end)
                .await
                .assert_usable_until_revoked(app, &token, &format!("commerce {end}"))
                .await;
            application(app, &token, end)
                .await
                .assert_usable_until_revoked(app, &token, &format!("application {end}"))
                .await;
            account(app, &token, end)
                .await
                .assert_usable_until_revoked(app, &token, &format!("account {end}"))
                .await;

            let created = commerce(app, &token, &json!(START + 60)).await;
            let reply = app
                .patch(
                    &format!("/api-keys/{}", created.key.id),
                    json!({"expires_at": end}),
                )
                .bearer(&token)
                .await;
            let shown = (reply.status, &reply.json()["expires_at"]);
            assert_eq!(
                shown,
                (200, &json!(Timestamp::MAX.as_second())),
                "{end}: {reply}"
            );
            created
                .assert_usable_until_revoked(app, &token, &format!("changed to {end}"))
                .await;

            let query = format!(
                "/audit-log?since={START}&until={}",
                end.to_string().trim_matches('"')
            );
            let reply = app.get(&query).bearer(&token).await;
            assert!(
                reply.status == 200 && reply.json() != json!([]),
                "{query}: {reply}"
            );
        }
    })
    .await;
}

/// Earlier builds stored the expiration without truncating it.
#[actix_web::test]
async fn stored_expiration_beyond_the_largest_is_read() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let text = app.generate_key(Family::Commerce, Mode::Live);
        let key = app
            .insert("acme", &text, |key| {
                key.restrictions.expires_at = Some(Timestamp::MAX)
            })
            .await;
        let path = format!("/api-keys/{}", key.id);
        let revoke = ("POST", format!("{path}/revoke"), 200);
        let created = CreatedKey {
            key,
            list: "/api-keys".to_owned(),
            row: Some(path),
            revoke,
        };
        created
            .assert_usable_until_revoked(app, &token, "stored")
            .await;
    })
    .await;
}

/// Whole seconds are stored, so an expiration within the current second is already past.
#[actix_web::test]
async fn expiration_within_the_current_second_is_rejected() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let key = app.commerce_key(&token, json!({})).await;
        for passed in [0, 500] {
            app.clock.advance(Duration::from_millis(passed));
            let end = "2026-01-01T00:00:00.999999999Z";
            let mut account_key = account_keys::key_request("live", "secret");
            account_key["expiresAt"] = json!(end);
            for (call, pointer) in [
                (
                    app.post("/api-keys", json!({"name": "n", "expires_at": end})),
                    "/expires_at",
                ),
                (
                    app.patch(&format!("/api-keys/{}", key.id), json!({"expires_at": end})),
                    "/expires_at",
                ),
                (
                    app.post(
                        &format!("/applications/{application}/api-keys"),
                        json!({"description": "n", "expiresAt": end}),
                    ),
                    "/expiresAt",
                ),
                (app.post("/v1/account/api-keys", account_key), "/expiresAt"),
            ] {
                let reply = call.bearer(&token).await;
                assert_eq!(reply.status, 400, "{reply}");
                let has_error =
                    reply.body.contains(pointer) && reply.body.contains("must be in the future");
                assert!(has_error, "{reply}");
            }
        }
    })
    .await;
}
