//! The audit log.

use std::{ops::ControlFlow, time::Duration};

use serde_json::{Value, json};
use tollkey_core::audit::{Entry, Head, verify};
use tollkey_store::Owner;

use crate::{
    assert_response,
    support::{App, Reply, each_backend},
};

fn actions(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{reply}");
    let entries = reply.json();
    entries
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].as_str().unwrap().to_owned())
        .collect()
}

async fn log(app: &App, token: &str, query: &str) -> Reply {
    app.get(&format!("/audit-log{query}")).bearer(token).await
}

/// Returns the entries of an account, oldest first. Panics if the chain is broken.
async fn chain(app: &App, account: &str) -> Vec<Entry> {
    let account = account.parse().unwrap();
    let read = app
        .running()
        .state()
        .service
        .read(Owner::Background, move |db| {
            let mut entries = Vec::new();
            let _ = db.for_each_audit_entry(Some(&account), |entry| {
                entries.push(entry.expect("a readable entry"));
                ControlFlow::<()>::Continue(())
            })?;
            Ok((entries, db.account(&account).audit_head()?))
        });
    let (entries, end) = read.await.unwrap();
    let head = entries.iter().fold(Head::GENESIS, |head, entry| {
        verify(head, entry).expect("an unbroken chain")
    });
    assert_eq!(head, end);
    entries
}

/// Makes changes that create the entries of [`EXPECTED_ACTIONS`]. Returns the ID of the application.
async fn make_changes(app: &App, token: &str) -> String {
    let id = app.application(token, "Web Store").await;
    let path = format!("/applications/{id}");
    let key = app.key(token, &id, json!({})).await;
    app.key(token, &id, json!({"mode": "test"})).await;
    app.clock.advance(Duration::from_secs(10));
    assert_eq!(
        app.patch(&path, json!({"description": "New"}))
            .bearer(token)
            .await
            .status,
        200
    );
    for enabled in [false, true] {
        assert_eq!(
            app.patch(&format!("{path}/status"), json!({"isEnabled": enabled}))
                .bearer(token)
                .await
                .status,
            200
        );
    }
    app.clock.advance(Duration::from_secs(10));
    assert_eq!(
        app.delete(&format!("{path}/api-keys/{}", key.id))
            .bearer(token)
            .await
            .status,
        204
    );
    assert_eq!(app.delete(&path).bearer(token).await.status, 204);
    app.revocations_recorded().await;
    id
}

/// The actions of [`make_changes`], newest first.
const EXPECTED_ACTIONS: [&str; 9] = [
    "api_key.revoked",
    "application.deleted",
    "api_key.revoked",
    "application.enabled",
    "application.disabled",
    "application.updated",
    "api_key.created",
    "api_key.created",
    "application.created",
];

#[actix_web::test]
async fn audit_entry_has_actor_target_and_origin_of_a_change() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        assert_response!(log(app, &token, "").await, @"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        []
        ");
        let create = app
            .post(
                "/applications",
                json!({"name": "Web Store", "description": "Shop"}),
            )
            .bearer(&token)
            .header("x-request-id", "the-first")
            .header("x-forwarded-for", "6.6.6.6, 203.0.113.7");
        let id = create.await.json()["id"].as_str().unwrap().to_owned();
        app.key(
            &token,
            &id,
            json!({"scopes": ["links:read"], "metadata": {"owner": "checkout"}}),
        )
        .await;
        assert_response!(log(app, &token, "").await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00PAEQWST1E1DC3WJS

        [
          {
            "id": "019b76da-a800-7e53-b543-22cf3e84b656",
            "occurred_at": 1767225600,
            "action": "api_key.created",
            "actor": {
              "type": "merchant",
              "id": "user_1"
            },
            "target": {
              "type": "api_key",
              "id": "019b76da-a800-7a88-a527-a819b062c680"
            },
            "request_id": "req_01KDVDNA00C2TTDCXK3GE3YDC5",
            "ip": null,
            "changes": {
              "name": "Checkout",
              "family": "application",
              "mode": "live",
              "prefix": "ks_live_MaDz",
              "last4": "oCHX",
              "application_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
              "scopes": [
                "links:read"
              ],
              "merchants": null,
              "features": null,
              "allowed_ips": null,
              "rate_limit": null,
              "expires_at": null
            },
            "hash": "bfafa3c34a8d43109318f2f0265f0379963d427d8bfb2019a85b8cda8a5cbfd2"
          },
          {
            "id": "019b76da-a800-7122-adf6-eccfc4caa8cd",
            "occurred_at": 1767225600,
            "action": "application.created",
            "actor": {
              "type": "merchant",
              "id": "user_1"
            },
            "target": {
              "type": "application",
              "id": "019b76da-a800-7474-bdc5-e24d2a413b15"
            },
            "request_id": "the-first",
            "ip": "203.0.113.7",
            "changes": {
              "name": "Web Store",
              "description": "Shop"
            },
            "hash": "0e20763512e96a3931b406996a66188f4383ab5aece2a8e27872698e7dd8369f"
          }
        ]
        "#);
    })
    .await;
}

#[actix_web::test]
async fn entries_are_newest_first_in_an_intact_chain() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        make_changes(app, &token).await;
        assert_eq!(actions(&log(app, &token, "").await), EXPECTED_ACTIONS);
        let mut entries = chain(app, "acme").await;
        entries.reverse();
        let shown = log(app, &token, "").await.json();
        assert_eq!(entries.len(), EXPECTED_ACTIONS.len());
        for (entry, shown) in entries.iter().zip(shown.as_array().unwrap()) {
            assert_eq!(shown["id"], entry.draft.id.to_string());
            assert_eq!(shown["hash"], entry.hash.to_string());
            assert_eq!(shown["changes"], entry.draft.changes);
            assert_eq!(shown["occurred_at"], entry.draft.occurred_at.as_second());
            assert_eq!(shown["actor"], json!({"type": "merchant", "id": "user_1"}));
            assert_eq!(
                shown["ip"],
                Value::Null,
                "loopback is a trusted proxy, without a forwarded client IP"
            );
        }
        // Concurrent changes keep the chain intact.
        let calls = (0..20).map(|n| {
            app.post("/applications", json!({"name": n.to_string()}))
                .bearer(&token)
                .into_future()
        });
        assert!(
            futures_util::future::join_all(calls)
                .await
                .iter()
                .all(|reply| reply.status == 201)
        );
        assert_eq!(chain(app, "acme").await.len(), EXPECTED_ACTIONS.len() + 20);
        // A change made directly in the database is detected.
        app.database
            .sql("UPDATE audit_log SET actor_id = 'somebody' WHERE seq = 3");
        let account = "acme".parse().unwrap();
        let mut head = Head::GENESIS;
        let found = app
            .running()
            .state()
            .service
            .read(Owner::Background, move |db| {
                db.for_each_audit_entry(Some(&account), |entry| {
                    let entry = entry.expect("a readable entry");
                    match verify(head, &entry) {
                        Ok(next) => {
                            head = next;
                            ControlFlow::Continue(())
                        }
                        Err(_) => ControlFlow::Break(entry.seq),
                    }
                })
            });
        assert_eq!(found.await.unwrap(), ControlFlow::Break(3));
    })
    .await;
}

#[actix_web::test]
async fn rejected_and_empty_changes_have_no_entry() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        let key = app.key(&token, &id, json!({})).await;
        let path = format!("/applications/{id}");
        let key_path = format!("{path}/api-keys/{}", key.id);
        let operator = app.operator();
        assert_eq!(app.delete(&key_path).bearer(&token).await.status, 204);
        let before = log(app, &token, "").await.json();
        for (call, status) in [
            (app.delete(&key_path).bearer(&token), 400),
            (app.patch(&path, json!({})).bearer(&token), 200),
            (
                app.patch(&path, json!({"name": "Web Store", "description": null}))
                    .bearer(&token),
                200,
            ),
            (app.patch(&path, json!({"name": ""})).bearer(&token), 400),
            (
                app.patch(&format!("{path}/status"), json!({"isEnabled": true}))
                    .bearer(&token),
                200,
            ),
            (
                app.post("/applications", json!({"name": "Web Store"}))
                    .bearer(&token),
                409,
            ),
            (
                app.post(&format!("{path}/api-keys"), json!({}))
                    .bearer(&token),
                400,
            ),
            (
                app.delete(&path).bearer(&app.management_token("globex")),
                404,
            ),
            (app.delete(&path).bearer(&key.text), 401),
            (
                app.put(
                    "/accounts/acme",
                    json!({"operating_model": "primary_merchant"}),
                )
                .bearer(&operator),
                200,
            ),
            (
                app.put("/accounts/acme", json!({"operating_model": "monopoly"}))
                    .bearer(&operator),
                400,
            ),
            (app.get(&path).bearer(&token), 200),
        ] {
            let reply = call.await;
            assert_eq!(reply.status, status, "{reply}");
        }
        assert_eq!(log(app, &token, "").await.json(), before);
        assert_eq!(
            log(app, &app.management_token("globex"), "").await.body,
            "[]"
        );
    })
    .await;
}

#[actix_web::test]
async fn filters_select_entries() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let start = tollkey_core::Clock::now(&app.clock).as_second();
        let id = make_changes(app, &token).await;
        let by = async |query: &str| actions(&log(app, &token, query).await);
        assert_eq!(by("?action=api_key.revoked").await, ["api_key.revoked"; 2]);
        assert_eq!(by("?action=account.updated").await, [""; 0]);
        let about: Vec<&str> = EXPECTED_ACTIONS
            .into_iter()
            .filter(|action| action.starts_with("application"))
            .collect();
        assert_eq!(by(&format!("?target_id={id}")).await, about);
        assert_eq!(
            by(&format!("?target_id={id}&action=application.enabled")).await,
            ["application.enabled"]
        );
        assert_eq!(by("?target_id=nobody").await, [""; 0]);
        assert_eq!(by(&format!("?target_id={id}&actor_id=user_1")).await, about);
        assert_eq!(by("?actor_id=nobody").await, [""; 0]);
        // `since` is inclusive, `until` exclusive; both forms of time work.
        let at = |seconds: i64| start + seconds;
        let text = |seconds: i64| {
            jiff::Timestamp::from_second(at(seconds))
                .unwrap()
                .to_string()
        };
        for (since, until, expected) in [
            (Some(0), None, &EXPECTED_ACTIONS[..]),
            (Some(1), None, &EXPECTED_ACTIONS[..6]),
            (Some(10), None, &EXPECTED_ACTIONS[..6]),
            (Some(11), None, &EXPECTED_ACTIONS[..3]),
            (Some(21), None, &EXPECTED_ACTIONS[..0]),
            (None, Some(0), &EXPECTED_ACTIONS[..0]),
            (None, Some(10), &EXPECTED_ACTIONS[6..]),
            (None, Some(11), &EXPECTED_ACTIONS[3..]),
            (Some(10), Some(20), &EXPECTED_ACTIONS[3..6]),
            (Some(10), Some(10), &EXPECTED_ACTIONS[..0]),
        ] {
            for form in [
                &(|seconds| at(seconds).to_string()) as &dyn Fn(i64) -> String,
                &text,
            ] {
                let since = since
                    .map(|seconds| format!("since={}&", form(seconds)))
                    .unwrap_or_default();
                let until = until
                    .map(|seconds| format!("until={}&", form(seconds)))
                    .unwrap_or_default();
                let query = format!("?{since}{until}limit=100");
                assert_eq!(by(&query).await, expected, "{query}");
            }
        }
        let offset = "?since=2026-01-01T01:00:10%2B01:00&until=2026-01-01T00:00:20.5Z";
        assert_eq!(by(offset).await, EXPECTED_ACTIONS[..6]);
    })
    .await;
}

#[actix_web::test]
async fn invalid_log_parameters_are_rejected() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let time = "must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z";
        for (query, error) in [
            ("limit=0", "limit must be between 1 and 100".to_owned()),
            ("limit=101", "limit must be between 1 and 100".to_owned()),
            (
                "limit=ten",
                "limit must be a whole number within its range".to_owned(),
            ),
            ("limit=1&limit=2", "limit must not be repeated".to_owned()),
            (
                "cursor=x",
                "cursor must be a cursor from an earlier response".to_owned(),
            ),
            (
                "cursor=",
                "cursor must be a cursor from an earlier response".to_owned(),
            ),
            (
                "cursor=-1",
                "cursor must be a cursor from an earlier response".to_owned(),
            ),
            ("since=yesterday", format!("since {time}")),
            ("until=", format!("until {time}")),
            ("until=2026-01-01", format!("until {time}")),
            ("page=1", "page is unknown".to_owned()),
        ] {
            let reply = log(app, &token, &format!("?{query}")).await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error]),
                "{query}"
            );
        }
        let reply = log(app, &token, "?action=key.revoked&limit=0").await;
        assert_eq!(reply.errors().len(), 2, "{reply}");
        assert!(
            reply.errors()[1]
                .starts_with("action must be one of api_key.created, api_key.updated,"),
            "{reply}"
        );
    })
    .await;
}

#[actix_web::test]
async fn next_links_lead_through_all_pages() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        make_changes(app, &token).await;
        let all = log(app, &token, "").await;
        assert_eq!(all.header("link"), None);
        let mut path = "/api/v1/audit-log?limit=4&since=0".to_owned();
        let (mut found, mut sizes) = (Vec::new(), Vec::new());
        loop {
            let page = app.get(&path).bearer(&token).await;
            let entries = page.json().as_array().unwrap().clone();
            sizes.push(entries.len());
            found.extend(entries);
            // New entries do not shift the pages.
            app.application(&token, &format!("Meanwhile {}", sizes.len()))
                .await;
            let Some(link) = page.header("link") else {
                break;
            };
            path = link
                .strip_prefix('<')
                .and_then(|rest| rest.strip_suffix(">; rel=\"next\""))
                .unwrap()
                .to_owned();
            assert!(
                path.starts_with("/api/v1/audit-log?")
                    && path.contains("limit=4")
                    && path.contains("since=0"),
                "{path}"
            );
        }
        assert_eq!(sizes, [4, 4, 1]);
        assert_eq!(Value::Array(found), all.json());
        // The last page has no link, even if it is full.
        let nine = log(app, &token, "?limit=9&until=2026-01-01T00:00:20Z").await;
        assert_eq!(
            (nine.json().as_array().map(Vec::len), nine.header("link")),
            (Some(6), None)
        );
        let exact = log(app, &token, "?limit=12").await;
        assert_eq!(
            (exact.json().as_array().map(Vec::len), exact.header("link")),
            (Some(12), None)
        );
        // The default page size is the maximum.
        let calls = (0..100).map(|n| {
            app.post("/applications", json!({"name": n.to_string()}))
                .bearer(&token)
                .into_future()
        });
        futures_util::future::join_all(calls).await;
        let most = log(app, &token, "").await;
        assert_eq!(most.json().as_array().map(Vec::len), Some(100));
        assert!(most.header("link").is_some());
    })
    .await;
}

#[actix_web::test]
async fn each_account_has_its_own_log_and_chain() {
    each_backend(async |app: &App| {
        let (acme, globex) = (app.management_token("acme"), app.management_token("globex"));
        let id = app.application(&acme, "Web Store").await;
        app.application(&globex, "Web Store").await;
        app.application(&acme, "Staging").await;
        assert_eq!(actions(&log(app, &acme, "").await).len(), 2);
        assert_eq!(actions(&log(app, &globex, "").await).len(), 1);
        assert_eq!(
            log(app, &globex, &format!("?target_id={id}")).await.body,
            "[]"
        );
        // A cursor of another account does not select entries of that account.
        assert_eq!(actions(&log(app, &globex, "?cursor=9").await).len(), 1);
        assert_eq!(
            chain(app, "acme")
                .await
                .iter()
                .map(|entry| entry.seq)
                .collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(
            chain(app, "globex")
                .await
                .iter()
                .map(|entry| entry.seq)
                .collect::<Vec<_>>(),
            [1]
        );
    })
    .await;
}

#[actix_web::test]
async fn operator_changes_are_attributed_to_the_operator() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        let model = app
            .put("/accounts/acme", json!({"operating_model": "ecosystem"}))
            .bearer(&operator);
        assert_eq!(model.header("x-request-id", "the-model").await.status, 200);
        let create = app
            .post(
                "/applications?account=acme",
                json!({"name": "Created by an operator"}),
            )
            .bearer(&operator);
        assert_eq!(create.await.status, 201);
        let entries = log(app, &app.management_token("acme"), "").await.json();
        assert_eq!(entries.as_array().map(Vec::len), Some(2));
        for entry in entries.as_array().unwrap() {
            assert_eq!(entry["actor"], json!({"type": "operator", "id": "user_1"}));
        }
        assert_eq!(entries[1]["action"], "account.updated");
        assert_eq!(
            entries[1]["target"],
            json!({"type": "account", "id": "acme"})
        );
        assert_eq!(
            entries[1]["changes"],
            json!({"operating_model": ["primary_merchant", "ecosystem"]})
        );
        assert_eq!(entries[1]["request_id"], "the-model");
        chain(app, "acme").await;
        // Operators read the log of the account that they name.
        assert_eq!(log(app, &operator, "?account=acme").await.json(), entries);
        let page = log(app, &operator, "?account=acme&limit=1").await;
        assert_eq!(
            page.header("link"),
            Some("</api/v1/audit-log?limit=1&cursor=2&account=acme>; rel=\"next\"")
        );
    })
    .await;
}
