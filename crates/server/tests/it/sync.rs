//! The subscription of verifiers (`POST /sync`, `POST /sync/lookup`): its format, and resource
//! servers that use it.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::sleep;
use tollkey_core::{
    AccessRequest, Catalogue, Denial, Digest, Family, Mode, Position, Restrictions, Scope,
    VerifierId,
};
use tollkey_middleware::source::HttpSource;
use tollkey_verifier::{
    Poll, PollError, PollIds, Source as _, SourceError, Unavailable, Upstream as _,
};
use tracing_subscriber::prelude::*;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::{
    App, Call, each_backend, each_backend_with,
    resource_server::{outcome, subscriber},
    source,
};

const SUBSCRIBER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

fn sync(app: &App, body: Value) -> Call {
    app.post("/sync", body).bearer(&app.service())
}

async fn poll_json(app: &App, mut body: Value) -> Value {
    body["subscriber"] = json!(SUBSCRIBER);
    let reply = sync(app, body).await;
    assert_eq!(reply.status, 200, "{reply}");
    reply.json()
}

/// Waits until the replica has a lease, which it requests at its start.
async fn leased(app: &App) {
    while app
        .running()
        .state()
        .service
        .verifier
        .stats()
        .lease_left
        .is_zero()
    {
        sleep(Duration::from_millis(5)).await;
    }
}

#[actix_web::test]
async fn poll_returns_a_lease_and_the_changes_since_its_cursor() {
    each_backend(async |app| {
        leased(app).await;
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let application = app.application(&token, "Web Store").await;
        let gateway = app.service_key().await;
        let reply = sync(app, json!({"subscriber": SUBSCRIBER})).await;
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        // The clock does not advance, so the lease is three seconds minus its margin.
        assert_eq!(
            reply.body,
            r#"{"seq":0,"cursor":"0-0","changes":[],"lease_ms":2996}"#
        );

        let changes = [
            app.post(&format!("/api-keys/{}/suspend", key.id), json!({}))
                .bearer(&token),
            app.patch(
                &format!("/applications/{application}/status"),
                json!({"isEnabled": false}),
            )
            .bearer(&token),
            app.put("/accounts/acme", json!({"operating_model": "ecosystem"}))
                .bearer(&app.operator()),
        ];
        let hanging = sync(
            app,
            json!({"subscriber": SUBSCRIBER, "cursor": "0-0", "wait_ms": 60000}),
        );
        let start = Instant::now();
        let (news, _) = tokio::join!(hanging, async {
            let [first, second, third] = changes;
            // The suspension waits for the subscriber's acknowledgment, which this test never sends.
            let suspended = actix_web::rt::spawn(async move { first.await });
            sleep(Duration::from_millis(20)).await;
            assert!(!suspended.is_finished());
            let left = async {
                sleep(Duration::from_millis(300)).await;
                poll_json(app, json!({"leave": true})).await
            };
            let (left, ..) = tokio::join!(left, second, third);
            assert_eq!(
                left,
                json!({"seq": 0, "cursor": "0-0", "changes": [], "lease_ms": 0})
            );
            assert_eq!(suspended.await.expect("a response").status, 200);
        });
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(
            news.json()["changes"][0],
            json!({"type": "key", "id": key.id}),
            "{news}"
        );

        let revoked = app
            .delete(&format!("/service-keys/{}", gateway.id))
            .bearer(&app.operator())
            .await;
        assert_eq!(revoked.status, 204, "{revoked}");
        let body = json!({"subscriber": "ff".repeat(16), "cursor": "0-0"});
        let all = sync(app, body).await.json();
        let types: Vec<_> = all["changes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|change| &change["type"])
            .collect();
        assert_eq!(types[0], "key");
        assert_eq!(types[3], "service_key");
        assert_eq!(all["changes"][3]["id"], gateway.id);
        let mut middle = [types[1], types[2]].map(|kind| kind.as_str().expect("a string"));
        middle.sort_unstable();
        assert_eq!(middle, ["account", "application"]);
        assert_eq!(all["cursor"], "4-1767225600000000");

        // The current cursor has no changes; `changes` is null for an unknown cursor.
        for (cursor, changes) in [
            (json!("4-1767225600000000"), json!([])),
            (json!("4-1767225600000001"), Value::Null),
            (json!("9-1767225600000000"), Value::Null),
            (Value::Null, all["changes"].clone()),
        ] {
            let body = json!({"subscriber": "ff".repeat(16), "cursor": cursor});
            let reply = sync(app, body).await.json();
            assert_eq!(
                (&reply["changes"], &reply["cursor"]),
                (&changes, &all["cursor"]),
                "{cursor}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn poll_waits_at_most_a_third_of_a_lease() {
    each_backend(async |app| {
        leased(app).await;
        let start = Instant::now();
        let reply = poll_json(app, json!({"cursor": "0-0", "wait_ms": 60000})).await;
        assert_eq!(reply["changes"], json!([]));
        let waited = start.elapsed();
        assert!(
            waited >= Duration::from_secs(1) && waited < Duration::from_secs(30),
            "{waited:?}"
        );
    })
    .await;
}

#[actix_web::test]
async fn lookup_returns_everything_needed_for_a_decision() {
    each_backend(async |app| {
        let token = app.management_token("acme");
        app.set_model("acme", "ecosystem").await;
        let lookup = async |text: &str| {
            let body = json!({"digest": Digest::of_key(text).hex().to_string()});
            let reply = app.post("/sync/lookup", body).bearer(&app.service()).await;
            assert_eq!(reply.status, 200, "{reply}");
            assert_eq!(reply.header("cache-control"), Some("no-store"));
            reply.body
        };
        assert_eq!(lookup("unknown").await, r#"{"seq":1,"key":null}"#);
        let body = json!({
            "mode": "test", "scopes": ["links:read", "links:write"], "merchants": ["m_1"], "features": ["tokens.list"],
            "allowed_ips": ["203.0.113.0/24"], "rate_limit": {"limit": 100, "window_seconds": 60},
            "expires_at": 1_800_000_000, "metadata": {"owner": "till"},
        });
        let key = app.commerce_key(&token, body).await;
        let shown = format!(
            r#"{{"seq":1,"key":{{"id":"{}","account_id":"acme","application_id":null,"name":"Commerce Server Key","family":"commerce","mode":"test","prefix":"{}","last4":"{}","scopes":["links:read","links:write"],"merchants":["m_1"],"features":["tokens.list"],"allowed_ips":["203.0.113.0/24"],"rate_limit":{{"limit":100,"window_seconds":60}},"expires_at":1800000000,"metadata":{{"owner":"till"}},"created_at":1767225600,"suspended_at":null,"revoked_at":null,"rotated_at":null,"application_enabled":true,"operating_model":"ecosystem"}}}}"#,
            key.id,
            &key.text[..14],
            &key.text[36..],
        );
        assert_eq!(lookup(&key.text).await, shown);
        app.post(&format!("/api-keys/{}/suspend", key.id), json!({})).bearer(&token).await;
        let suspended: Value = serde_json::from_str(&lookup(&key.text).await).expect("JSON");
        assert_eq!((&suspended["seq"], &suspended["key"]["suspended_at"]), (&json!(2), &json!(1_767_225_600)));
        let application = app.application(&token, "Web Store").await;
        let key = app.key(&token, &application, json!({})).await;
        app.patch(&format!("/applications/{application}/status"), json!({"isEnabled": false})).bearer(&token).await;
        let disabled: Value = serde_json::from_str(&lookup(&key.text).await).expect("JSON");
        assert_eq!(
            (&disabled["key"]["application_enabled"], &disabled["key"]["application_id"]),
            (&json!(false), &json!(application))
        );
        // Lookups find API keys, but no service keys.
        let gateway = app.service_key().await;
        assert!(lookup(&gateway.text).await.ends_with(r#""key":null}"#));
    })
    .await;
}

#[actix_web::test]
async fn invalid_polls_are_400_and_add_no_subscriber() {
    each_backend(async |app| {
        leased(app).await;
        let usage = |row: Value| json!({"subscriber": SUBSCRIBER, "usage": [row]});
        let key = "0198c0de-0000-7000-8000-000000000002";
        for (body, pointer, rule) in [
            (json!({}), "/subscriber", "is required"),
            (json!({"subscriber": "x"}), "/subscriber", "must be 32 hex digits"),
            (json!({"subscriber": SUBSCRIBER, "cursor": "4"}), "/cursor", "must be a cursor from an earlier response"),
            (json!({"subscriber": SUBSCRIBER, "wait_ms": 60001}), "/wait_ms", "must be between 0 and 60000"),
            (json!({"subscriber": SUBSCRIBER, "lease": 1}), "/lease", "is unknown; did you mean `leave`?"),
            (
                json!({"subscriber": SUBSCRIBER, "poll_id": "9F86D081884C7D65"}),
                "/poll_id",
                "must be 16 lower-case hex digits",
            ),
            (
                json!({"subscriber": SUBSCRIBER, "previous_poll_ids": ["9f86d081884c7d65"]}),
                "/previous_poll_ids",
                "requires `/poll_id`",
            ),
            (
                json!({
                    "subscriber": SUBSCRIBER, "poll_id": "9f86d081884c7d65",
                    "previous_poll_ids": vec!["9f86d081884c7d65"; 513],
                }),
                "/previous_poll_ids",
                "must have at most 512 items",
            ),
            (
                json!({"subscriber": SUBSCRIBER, "poll_id": "9f86d081884c7d65", "previous_poll_ids": ["1"]}),
                "/previous_poll_ids/0",
                "must be 16 lower-case hex digits",
            ),
            (usage(json!({"key_id": "x", "outcome": "valid", "count": 1})), "/usage/0/key_id", "must be a valid ID"),
            (
                usage(json!({"key_id": key, "outcome": "unknown_key", "count": 1})),
                "/usage/0/outcome",
                "must be `valid`, or a denial code other than `unknown_key`",
            ),
            (usage(json!({"key_id": key, "outcome": "valid", "count": 0})), "/usage/0/count", "must be at least 1"),
            (
                usage(json!({"key_id": key, "outcome": "valid", "count": 4_294_967_296_u64})),
                "/usage/0/count",
                "must be at most 4294967295",
            ),
            (
                json!({"subscriber": SUBSCRIBER, "usage": vec![json!({"key_id": key, "outcome": "valid", "count": 1}); 401]}),
                "/usage",
                "must have at most 400 items",
            ),
        ] {
            let reply = sync(app, body).await;
            let error = &reply.json()["errors"][0];
            assert_eq!((reply.status, error["pointer"].as_str()), (400, Some(pointer)), "{reply}");
            assert_eq!(error["detail"].as_str(), Some(rule), "{pointer}");
        }
        let reply = app.post("/sync/lookup", json!({"digest": "00"})).bearer(&app.service()).await;
        assert_eq!((reply.status, reply.json()["errors"][0]["detail"].as_str()), (400, Some("must be 64 hex digits")));
        assert_eq!(app.running().state().service.verifier.stats().subscribers, 0);
    })
    .await;
}

#[actix_web::test]
async fn usage_reported_by_a_subscriber_is_written() {
    each_backend(async |app| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let row = |outcome: &str, count: u32, at: Value| json!({"key_id": key.id, "outcome": outcome, "count": count, "last_used_at": at});
        poll_json(app, json!({"usage": [row("valid", 5, json!(1_767_225_500)), row("wrong_mode", 2, Value::Null)]})).await;
        // The last use is at most the server's time, even if the subscriber's clock is fast.
        poll_json(app, json!({"usage": [row("valid", 1, json!(1_999_999_999))], "leave": true})).await;
        let state = app.running().state();
        // Many more rows than one batch: a single flush writes all of them. The largest poll fits
        // into a request body.
        let id = |n: u32| format!("{n:016x}");
        for n in 1..4 {
            let usage = vec![row("valid", 1, json!(1_767_225_500)); Poll::USAGE];
            let previous = vec![id(n - 1); PollIds::PREVIOUS];
            let body = json!({
                "subscriber": "ff".repeat(16), "poll_id": id(n), "previous_poll_ids": previous, "usage": usage,
            });
            let reply = sync(app, body).await;
            assert_eq!(reply.status, 200, "{reply}");
        }
        state.service.flush_usage().await;
        let shown = app.get(&format!("/api-keys/{}", key.id)).bearer(&token).await.json();
        assert_eq!(shown["last_used_at"], 1_767_225_600);
        let (account, id) = ("acme".parse().expect("an account ID"), key.id.parse().expect("a key ID"));
        let rows = state.service.store.read(move |db| db.account(&account).usage(&id, 0)).await.expect("usage");
        let mut counts: Vec<_> = rows.iter().map(|row| (row.outcome, row.count)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [(None, 1206), (Some(Denial::WrongMode), 2)]);
        assert_eq!(state.service.verifier.usage_waiting(), 0);
    })
    .await;
}

#[actix_web::test]
async fn repeated_poll_is_counted_once_and_a_clone_gets_409() {
    each_backend(async |app| {
        leased(app).await;
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let poll = |id: &str, previous: &[&str], count: u32| {
            json!({
                "subscriber": SUBSCRIBER, "poll_id": id, "previous_poll_ids": previous,
                "usage": [{"key_id": key.id, "outcome": "valid", "count": count}],
            })
        };
        let (first, second) = (
            poll("00000000000000a1", &[], 3),
            poll("00000000000000a2", &["00000000000000a1"], 4),
        );
        for body in [&first, &first, &second, &second, &first] {
            let reply = sync(app, body.clone()).await;
            assert_eq!(reply.status, 200, "{reply}");
        }
        assert_eq!(
            sync(app, first).await.json()["lease_ms"],
            0,
            "a late poll gets no lease"
        );
        let clone = poll("00000000000000b1", &["00000000000000a1"], 5);
        for body in [clone, second, json!({"subscriber": SUBSCRIBER})] {
            let reply = sync(app, body).await;
            assert_eq!(
                (reply.status, reply.json()["code"].as_str()),
                (409, Some("subscriber_id_shared")),
                "{reply}"
            );
        }
        // The clone reports its usage under a new ID; its last poll is repeated.
        let mut farewell = poll("00000000000000b2", &[], 5);
        farewell["subscriber"] = json!("ff".repeat(16));
        farewell["leave"] = json!(true);
        for _ in 0..3 {
            assert_eq!(sync(app, farewell.clone()).await.status, 200);
        }
        let state = app.running().state();
        state.service.flush_usage().await;
        let (account, id) = (
            "acme".parse().expect("an account ID"),
            key.id.parse().expect("a key ID"),
        );
        let rows = state
            .service
            .store
            .read(move |db| db.account(&account).usage(&id, 0))
            .await
            .expect("usage");
        assert_eq!(rows.iter().map(|row| row.count).sum::<u64>(), 3 + 4 + 5);
    })
    .await;
}

/// A server that returns these responses to polls and lookups, in this order.
async fn mock_server(
    responses: impl IntoIterator<Item = ResponseTemplate>,
) -> (MockServer, HttpSource) {
    let server = MockServer::start().await;
    for response in responses {
        Mock::given(wiremock::matchers::any())
            .respond_with(response)
            .up_to_n_times(1)
            .mount(&server)
            .await;
    }
    let source = source(&server.uri(), &format!("tks_{}", "EXAMPLE1".repeat(4)));
    (server, source)
}

fn problem(status: u16, code: &str, pointer: Option<&str>) -> ResponseTemplate {
    let errors: Vec<_> = pointer
        .iter()
        .map(|pointer| json!({"pointer": pointer, "detail": "is unknown"}))
        .collect();
    let body = json!({
        "type": format!("urn:tollkey:problem:{code}"), "title": code, "status": status, "detail": "A detail.",
        "code": code, "request_id": "r", "errors": errors,
    });
    ResponseTemplate::new(status).set_body_raw(body.to_string(), "application/problem+json")
}

fn news(lease: u64) -> ResponseTemplate {
    ResponseTemplate::new(200)
        .set_body_json(json!({"seq": 1, "cursor": "1-1", "changes": [], "lease_ms": lease}))
}

/// Accounts with such IDs, which are no longer accepted, still have keys.
#[actix_web::test]
async fn keys_of_accounts_named_by_dots_are_found() {
    for account in [".", ".."] {
        let key = json!({
            "id": "0198c0de-0000-7000-8000-000000000002", "account_id": account, "application_id": null, "name": "n",
            "family": "commerce", "mode": "test", "prefix": "ck_test_EXAMPL", "last4": "MPLE", "scopes": ["commerce"],
            "merchants": null, "features": null, "allowed_ips": null, "rate_limit": null, "expires_at": null,
            "metadata": null, "created_at": 1_767_225_600, "suspended_at": null, "revoked_at": null, "rotated_at": null,
            "application_enabled": true, "operating_model": "ecosystem",
        });
        let (_server, source) =
            mock_server([ResponseTemplate::new(200).set_body_json(json!({"seq": 1, "key": key}))])
                .await;
        let found = source
            .find(&Digest::of_key("EXAMPLE"))
            .await
            .expect("a response");
        assert_eq!(
            found.record.expect("a key").key.account_id.as_str(),
            account
        );
    }
}

fn a_poll() -> Poll {
    let ids = PollIds {
        id: "00000000000000a2".parse().expect("a poll ID"),
        previous: Vec::new(),
    };
    Poll {
        subscriber: VerifierId::from_bytes([7; 16]),
        ids: Some(ids),
        position: Position::default(),
        wait: Duration::ZERO,
        usage: Vec::new(),
    }
}

#[actix_web::test]
async fn server_of_the_previous_release_gets_polls_without_ids() {
    let unknown = || problem(400, "validation_failed", Some("/poll_id"));
    let responses = [
        unknown(),
        news(10),
        news(11),
        problem(503, "unavailable", None),
        unknown(),
        news(12),
    ];
    let (server, source) = mock_server(responses).await;
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(
            source
                .poll(a_poll())
                .await
                .map(|news| news.lease.as_millis()),
        );
    }
    assert_eq!(leases, [Ok(10), Ok(11), Err(PollError::Rejected), Ok(12)]);
    let requests = server.received_requests().await.expect("recorded requests");
    let with_ids: Vec<_> = requests
        .iter()
        .map(|request| request.body_json::<Value>().expect("JSON"))
        .collect();
    let with_ids: Vec<_> = with_ids
        .iter()
        .map(|body| body["poll_id"].is_string())
        .collect();
    assert_eq!(
        with_ids,
        [true, false, false, false, true, false],
        "after a failure, the server may run another release"
    );
}

#[actix_web::test]
async fn upgraded_server_gets_poll_ids_again_without_a_failure() {
    let unknown = problem(400, "validation_failed", Some("/poll_id"));
    let responses = std::iter::once(unknown).chain((0..63).map(news));
    let (server, source) = mock_server(responses).await;
    for lease in 0..63 {
        assert_eq!(
            source
                .poll(a_poll())
                .await
                .map(|news| news.lease.as_millis()),
            Ok(lease)
        );
    }
    let requests = server.received_requests().await.expect("recorded requests");
    let bodies = requests
        .iter()
        .map(|request| request.body_json::<Value>().expect("JSON"));
    let with_ids: Vec<_> = bodies.map(|body| body["poll_id"].is_string()).collect();
    let expected = [&[true][..], &[false; 61], &[true; 2]].concat();
    assert_eq!(with_ids, expected);
}

#[actix_web::test]
async fn server_failures_have_distinct_errors() {
    let redirect =
        ResponseTemplate::new(302).insert_header("location", "https://elsewhere.example.com/");
    let rows = [
        (
            problem(409, "subscriber_id_shared", None),
            PollError::SharedId,
            SourceError::Rejected,
        ),
        (
            problem(401, "invalid_api_key", None),
            PollError::Rejected,
            SourceError::Rejected,
        ),
        (
            problem(403, "insufficient_permissions", None),
            PollError::Rejected,
            SourceError::Rejected,
        ),
        (
            problem(404, "not_found", None),
            PollError::Rejected,
            SourceError::Rejected,
        ),
        (redirect, PollError::Rejected, SourceError::Rejected),
        (
            problem(503, "unavailable", None),
            PollError::Rejected,
            SourceError::Unavailable,
        ),
        (
            ResponseTemplate::new(502),
            PollError::Rejected,
            SourceError::Unavailable,
        ),
        (
            ResponseTemplate::new(500),
            PollError::Rejected,
            SourceError::Unavailable,
        ),
        (
            problem(500, "internal_error", None),
            PollError::Rejected,
            SourceError::Unreadable,
        ),
        (
            ResponseTemplate::new(200).set_body_string("{}"),
            PollError::Rejected,
            SourceError::Unreadable,
        ),
    ];
    for (response, poll, look_up) in rows {
        let (_server, source) = mock_server([response.clone(), response]).await;
        assert_eq!(source.poll(a_poll()).await.expect_err("no news"), poll);
        assert_eq!(
            source
                .find(&Digest::of_key("a key"))
                .await
                .expect_err("no key"),
            look_up
        );
    }
    let unreachable = source(
        "http://127.0.0.1:1",
        &format!("tks_{}", "EXAMPLE1".repeat(4)),
    );
    assert_eq!(
        unreachable.poll(a_poll()).await.expect_err("no news"),
        PollError::Unavailable
    );
    assert_eq!(
        unreachable
            .find(&Digest::of_key("a key"))
            .await
            .expect_err("no key"),
        SourceError::Unavailable
    );
}

#[actix_web::test]
async fn unreadable_key_does_not_affect_others() {
    each_backend(async |app| {
        let [broken, intact] =
            [(); 2].map(|()| app.insert_key("acme", Family::Commerce, Mode::Test));
        let (broken, intact) = (broken.await, intact.await);
        let last4 = &broken[broken.len() - 4..];
        app.database.sql(&format!(
            "UPDATE api_keys SET metadata = '[]' WHERE last4 = '{last4}'"
        ));
        let gateway = app.service_key().await;
        let source = source(
            &format!("http://{}", app.running().address()),
            &gateway.text,
        );
        for _ in 0..4 {
            assert_eq!(
                source
                    .find(&Digest::of_key(&broken))
                    .await
                    .expect_err("no key"),
                SourceError::Unreadable
            );
        }
        assert!(
            source
                .find(&Digest::of_key(&intact))
                .await
                .expect("a key")
                .record
                .is_some()
        );
    })
    .await;
}

/// Records the middleware's errors.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Errors {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() == tracing::Level::ERROR
            && metadata.target().starts_with("tollkey_middleware")
        {
            let mut text = String::new();
            event.record(
                &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                    text += &format!("{field}={value:?} ");
                },
            );
            self.0.lock().expect("no panic").push(text);
        }
    }
}

#[actix_web::test]
async fn rejected_service_key_is_logged_once_without_the_key() {
    let errors = Errors::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(errors.clone()));
    each_backend_with(&[], async |app| {
        errors.0.lock().expect("no panic").clear();
        let gateway = app.service_key().await;
        let revoked = app
            .delete(&format!("/service-keys/{}", gateway.id))
            .bearer(&app.operator())
            .await;
        assert_eq!(revoked.status, 204);
        let guard = subscriber(
            &format!("http://{}", app.running().address()),
            &gateway.text,
        );
        let running = tokio::spawn(guard.clone().subscribe(std::future::pending()));
        let key = app.insert_key("acme", Family::Commerce, Mode::Test).await;
        for _ in 0..50 {
            assert_eq!(outcome(&guard, &key).await, Err(Unavailable));
        }
        sleep(Duration::from_millis(500)).await; // several polls
        running.abort();
        let errors = errors.0.lock().expect("no panic").clone();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].contains("rejects the service key of this process"),
            "{errors:?}"
        );
        assert!(
            !errors[0].contains(&gateway.text[4..]),
            "the service key is not logged"
        );
    })
    .await;
}

#[actix_web::test]
async fn resource_server_enforces_every_restriction() {
    each_backend(async |app| {
        let restrictions = Restrictions {
            scopes: vec![Scope::LINKS_READ],
            allowed_ips: Some(tollkey_core::IpList::parse(["203.0.113.0/24"]).expect("CIDRs")),
            rate_limit: Some(tollkey_core::RateLimit::new(2, 60).expect("a limit")),
            ..Restrictions::default()
        };
        let key = app
            .insert_key_with("acme", Family::Commerce, Mode::Test, restrictions)
            .await;
        let gateway = app.service_key().await;
        let guard = subscriber(
            &format!("http://{}", app.running().address()),
            &gateway.text,
        );
        let catalogue = Catalogue::default();
        let inside = AccessRequest {
            client_ip: Some([203, 0, 113, 7].into()),
            ..AccessRequest::default()
        };
        for (need, expected) in [
            (AccessRequest::default(), Err(Denial::IpNotAllowed)),
            (
                AccessRequest {
                    mode: Some(Mode::Live),
                    ..inside
                },
                Err(Denial::WrongMode),
            ),
            (
                AccessRequest {
                    scopes: catalogue.needed(["links:write"]).expect("scopes"),
                    ..inside
                },
                Err(Denial::InsufficientScope),
            ),
            (
                AccessRequest {
                    scopes: catalogue.needed(["links:read"]).expect("scopes"),
                    ..inside
                },
                Ok(()),
            ),
            (inside, Ok(())),
            (inside, Err(Denial::RateLimited)),
        ] {
            assert_eq!(
                guard.verify(&key, &need).await.expect("a verdict").outcome,
                expected,
                "{need:?}"
            );
        }
        assert_eq!(
            outcome(
                &guard,
                app.generate_key(Family::Secret, Mode::Live).expose()
            )
            .await,
            Ok(Err(Denial::UnknownKey))
        );
    })
    .await;
}

#[actix_web::test]
async fn resource_server_with_a_rejected_service_key_is_unavailable() {
    each_backend_with(&[], async |app| {
        leased(app).await;
        let gateway = app.service_key().await;
        let guard = subscriber(
            &format!("http://{}", app.running().address()),
            &gateway.text,
        );
        let key = app.insert_key("acme", Family::Commerce, Mode::Test).await;
        assert_eq!(outcome(&guard, &key).await, Ok(Ok(())));
        let revoked = app
            .delete(&format!("/service-keys/{}", gateway.id))
            .bearer(&app.operator())
            .await;
        assert_eq!(revoked.status, 204);
        assert_eq!(
            outcome(&guard, &key).await,
            Err(Unavailable),
            "nothing is cached without a lease"
        );
    })
    .await;
}
