//! The end of a key, at the edge of what a time can be: what is taken is read again, and the key can be ended.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_core::{Family, Mode, Timestamp};
use tollkey_verifier::testing::START;

use crate::{
    storlaunch,
    support::{App, Key, each_backend},
};

/// A surface with a key on it: where it is listed, where it is read, and how it is revoked.
struct Made {
    key: Key,
    list: String,
    row: Option<String>,
    revoke: (&'static str, String, u16),
}

async fn commerce(app: &App, token: &str, end: &Value) -> Made {
    let key = app.commerce_key(token, json!({"expires_at": end})).await;
    let path = format!("/api-keys/{}", key.id);
    Made {
        key,
        list: "/api-keys".to_owned(),
        revoke: ("POST", format!("{path}/revoke"), 200),
        row: Some(path),
    }
}

async fn application(app: &App, token: &str, end: &Value) -> Made {
    let application = app.application(token, &format!("Web Store {end}")).await;
    let key = app
        .key(token, &application, json!({"expiresAt": end}))
        .await;
    let list = format!("/applications/{application}/api-keys");
    Made {
        revoke: ("DELETE", format!("{list}/{}", key.id), 204),
        key,
        list,
        row: None,
    }
}

async fn account(app: &App, token: &str, end: &Value) -> Made {
    let mut body = storlaunch::wanted("live", "secret");
    body["expiresAt"] = end.clone();
    let key = storlaunch::make(app, token, body).await;
    let list = "/v1/account/api-keys";
    Made {
        revoke: ("POST", format!("{list}/{}/revoke", key.id), 200),
        key,
        list: list.to_owned(),
        row: None,
    }
}

impl Made {
    /// Reads the key wherever it can be read, revokes it and reads it again.
    async fn lives_and_dies(self, app: &App, token: &str, context: &str) {
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

/// The last second there is, in every form.
fn last() -> [Value; 4] {
    [
        json!(Timestamp::MAX.as_second()),
        json!("9999-12-30T22:00:00Z"),
        json!("9999-12-30T22:00:00.000001Z"),
        json!("9999-12-30T22:00:00.999999999Z"),
    ]
}

#[actix_web::test]
async fn a_key_that_ends_at_the_last_time_there_is_can_be_read_used_and_revoked() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        for end in &last() {
            commerce(app, &token, end)
                .await
                .lives_and_dies(app, &token, &format!("commerce {end}"))
                .await;
            application(app, &token, end)
                .await
                .lives_and_dies(app, &token, &format!("application {end}"))
                .await;
            account(app, &token, end)
                .await
                .lives_and_dies(app, &token, &format!("account {end}"))
                .await;

            let made = commerce(app, &token, &json!(START + 60)).await;
            let reply = app
                .patch(
                    &format!("/api-keys/{}", made.key.id),
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
            made.lives_and_dies(app, &token, &format!("changed to {end}"))
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

/// Written by an earlier build, which did not cut.
#[actix_web::test]
async fn a_key_that_was_stored_with_a_later_end_is_read_too() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let text = app.mint(Family::Commerce, Mode::Live);
        let key = app
            .insert("acme", &text, |key| {
                key.grants.expires_at = Some(Timestamp::MAX)
            })
            .await;
        let path = format!("/api-keys/{}", key.id);
        let revoke = ("POST", format!("{path}/revoke"), 200);
        let made = Made {
            key,
            list: "/api-keys".to_owned(),
            row: Some(path),
            revoke,
        };
        made.lives_and_dies(app, &token, "stored").await;
    })
    .await;
}

/// The clock stands in the middle of a second, which is over once it is cut.
#[actix_web::test]
async fn an_end_that_is_not_in_the_future_once_it_is_cut_is_refused() {
    each_backend(async |app: &App| {
        let token = app.merchant("acme");
        let application = app.application(&token, "Web Store").await;
        let key = app.commerce_key(&token, json!({})).await;
        for passed in [0, 500] {
            app.clock.advance(Duration::from_millis(passed));
            let end = "2026-01-01T00:00:00.999999999Z";
            let mut account_key = storlaunch::wanted("live", "secret");
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
                let said =
                    reply.body.contains(pointer) && reply.body.contains("must be in the future");
                assert!(said, "{reply}");
            }
        }
    })
    .await;
}
