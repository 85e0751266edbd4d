//! Retries: which calls are repeated, how often, and with which headers and body.

use std::{
    collections::BTreeSet,
    error::Error as _,
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;
use tokio::net::TcpListener;
use tollkey_client::{Client, Error, ErrorKind, Mode, account::Access};
use wiremock::ResponseTemplate;

use crate::{
    fixtures,
    operations::rows,
    support::{
        RawBehavior, Server, Wire, builder, expect_error, header, json_response, nothing,
        on_the_wire, only_header, problem, response_with, target,
    },
};

fn unavailable() -> ResponseTemplate {
    problem(503, "unavailable", "temporarily unavailable")
}

fn problem_on_the_wire(status: u16, code: &str) -> RawBehavior {
    let body = crate::support::problem_body(status, code, "a detail");
    RawBehavior::Says(on_the_wire(
        &format!("{status} Rejected"),
        "application/problem+json",
        &body,
    ))
}

#[tokio::test]
async fn only_temporary_errors_are_repeated() {
    let rows = [
        (408, "request_timeout", 3),
        (409, "idempotency_in_progress", 6),
        (429, "rate_limited", 3),
        (500, "internal_error", 3),
        (502, "bad_gateway", 3),
        (503, "unavailable", 3),
        (504, "gateway_timeout", 3),
        (599, "unheard_of", 3),
        (400, "validation_failed", 1),
        (401, "invalid_token", 1),
        (403, "forbidden", 1),
        (404, "not_found", 1),
        (405, "method_not_allowed", 1),
        (409, "application_name_taken", 1),
        (409, "idempotency_replay_unavailable", 1),
        (410, "gone", 1),
        (413, "payload_too_large", 1),
        (415, "unsupported_media_type", 1),
        (422, "idempotency_mismatch", 1),
        (425, "too_early", 1),
    ];
    for (status, code, attempts) in rows {
        let envelope = json!({
            "data": null,
            "error": {"code": "SOMETHING", "message": "a detail", "details": {"code": code}},
            "meta": {"requestId": crate::support::REQUEST_ID, "timestamp": fixtures::NOON_TEXT},
        });
        for response in [
            problem(status, code, "a detail"),
            json_response(status, &envelope),
        ] {
            let server = Server::responding(response).await;
            let error = expect_error(server.persistent().applications().create("Shop").await);
            assert_eq!((error.status(), error.code()), (Some(status), Some(code)));
            assert_eq!(server.requests().await.len(), attempts, "{status} {code}");
            assert_eq!(error.attempts() as usize, attempts, "{status} {code}");
            let several = error
                .to_string()
                .ends_with(&format!(" after {attempts} attempts"));
            assert_eq!(several, attempts > 1, "{error}");
            assert_eq!(error.may_have_taken_effect(), status >= 500, "{error}");
        }
        // Without a body, the status decides.
        let server = Server::responding(ResponseTemplate::new(status)).await;
        expect_error(server.persistent().whoami().await);
        let attempts = if status == 409 { 1 } else { attempts };
        assert_eq!(
            server.requests().await.len(),
            attempts,
            "{status} without a body"
        );
    }
}

#[tokio::test]
async fn max_retries_limits_the_attempts() {
    for retries in [0, 1, 2, 5] {
        let server = Server::responding(unavailable()).await;
        let client = server.builder().max_retries(retries).build().unwrap();
        let error = expect_error(client.whoami().await);
        assert_eq!(
            (server.requests().await.len(), error.attempts()),
            (retries as usize + 1, retries + 1)
        );
    }
    let server = Server::responding(unavailable()).await;
    expect_error(server.client().with_max_retries(1).whoami().await);
    assert_eq!(server.requests().await.len(), 2);
}

#[tokio::test]
async fn call_is_repeated_twice_by_default() {
    let server = Server::responding(unavailable()).await;
    let pause = Duration::from_millis(1);
    let client = Client::builder()
        .base_url(server.url())
        .backoff(pause, pause)
        .build()
        .unwrap();
    assert_eq!(expect_error(client.whoami().await).attempts(), 3);
    assert_eq!(server.requests().await.len(), 3);
}

#[tokio::test]
async fn later_attempt_may_succeed() {
    let server = Server::answering([
        unavailable(),
        unavailable(),
        json_response(200, &fixtures::whoami()),
    ])
    .await;
    assert_eq!(
        server.persistent().whoami().await.unwrap().id,
        fixtures::KEY
    );
    assert_eq!(server.requests().await.len(), 3);
}

#[tokio::test]
async fn permanent_error_ends_the_retries() {
    let server = Server::answering([
        unavailable(),
        problem(404, "not_found", "the resource does not exist"),
    ])
    .await;
    let error = expect_error(server.persistent().applications().delete("app").await);
    assert_eq!((error.status(), error.attempts()), (Some(404), 2));
}

#[tokio::test]
async fn repeats_are_identical_except_for_the_subscription() {
    for row in rows() {
        let server = Server::answering([
            unavailable(),
            unavailable(),
            row.response_with(),
            row.response_with(),
        ])
        .await;
        let outcome = (row.call)(server.persistent()).await;
        let sent: Vec<_> = server.requests().await;
        if matches!(row.operation, "sync" | "syncLookup") {
            let error = expect_error(outcome);
            assert_eq!(
                (error.status(), error.attempts(), sent.len()),
                (Some(503), 1, 1),
                "{}",
                row.operation
            );
            continue;
        }
        outcome.unwrap_or_else(|error| panic!("{}: {error}", row.operation));
        assert_eq!(sent.len(), 3, "{}", row.operation);
        for again in &sent[1..] {
            assert_eq!(
                (&again.method, target(again)),
                (&sent[0].method, target(&sent[0])),
                "{}",
                row.operation
            );
            assert_eq!(
                (&again.headers, &again.body),
                (&sent[0].headers, &sent[0].body),
                "{}",
                row.operation
            );
        }
    }
}

#[tokio::test]
async fn each_creation_has_its_own_idempotency_key() {
    type Created<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;
    fn creations(client: &Client) -> [Created<'_>; 5] {
        [
            Box::pin(async { client.applications().create("Shop").await.map(drop) }),
            Box::pin(async {
                client
                    .applications()
                    .api_keys("app")
                    .create("Key")
                    .await
                    .map(drop)
            }),
            Box::pin(async { client.commerce().api_keys().create("Key").await.map(drop) }),
            Box::pin(async { client.commerce().api_keys().rotate("key").await.map(drop) }),
            Box::pin(async {
                client
                    .account()
                    .api_keys()
                    .create("Key", Mode::Test, Access::Secret)
                    .await
                    .map(drop)
            }),
        ]
    }
    let server = Server::responding(unavailable()).await;
    let client = server.persistent();
    for creation in creations(&client).into_iter().chain(creations(&client)) {
        expect_error(creation.await);
    }
    // A cloned call also gets a new key each time it is sent.
    let call = client.service_keys().create("gateway");
    expect_error(call.clone().await);
    expect_error(call.await);

    let keys: Vec<_> = server
        .requests()
        .await
        .iter()
        .map(|request| only_header(request, "idempotency-key"))
        .collect();
    assert_eq!(keys.len(), 12 * 3);
    for attempts in keys.chunks(3) {
        assert!(
            attempts.iter().all(|key| *key == attempts[0]),
            "{attempts:?}"
        );
    }
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 12, "{keys:?}");
}

#[tokio::test]
async fn caller_idempotency_key_is_sent_each_time() {
    let server = Server::responding(unavailable()).await;
    let call = server
        .persistent()
        .applications()
        .create("Shop")
        .idempotency_key("order 4711, first try");
    expect_error(call.clone().await);
    expect_error(call.await);
    let requests = server.requests().await;
    assert_eq!(requests.len(), 6);
    assert!(
        requests
            .iter()
            .all(|request| only_header(request, "idempotency-key") == "order 4711, first try")
    );
}

#[tokio::test]
async fn invalid_idempotency_key_is_not_sent() {
    let server = Server::responding(nothing()).await;
    for key in [
        "",
        "fifteen letters",
        &"x".repeat(256),
        "with a \"quote\" in it",
        "with a back\\slash",
        "with a\ttab …",
    ] {
        let error = expect_error(
            server
                .persistent()
                .applications()
                .create("Shop")
                .idempotency_key(key)
                .await,
        );
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Argument, 0),
            "{key}"
        );
        assert!(
            error
                .to_string()
                .starts_with("POST /api/v1/applications: idempotency_key: must have"),
            "{error}"
        );
        assert!(
            key.is_empty() || !format!("{error} {error:?}").contains(key),
            "{error}"
        );
    }
    assert!(server.requests().await.is_empty());
}

#[tokio::test]
async fn only_creations_have_an_idempotency_key() {
    let server = Server::responding(unavailable()).await;
    expect_error(server.client().verify("ck_test_EXAMPLE1").await);
    expect_error(server.client().commerce().api_keys().revoke("key").await);
    assert!(
        server
            .requests()
            .await
            .iter()
            .all(|request| header(request, "idempotency-key").is_empty())
    );
}

/// Returns the error's `retry_after` for a response with these headers.
async fn retry_after_of(headers: &[(&'static str, &str)]) -> Option<Duration> {
    let response = headers
        .iter()
        .fold(unavailable(), |response, (name, value)| {
            response.insert_header(*name, *value)
        });
    let server = Server::responding(response).await;
    expect_error(server.client().whoami().await).retry_after()
}

#[tokio::test]
async fn retry_after_is_seconds_or_a_date() {
    let date = ("date", "Mon, 23 Feb 2026 12:00:00 GMT");
    let rows = [
        ("0", Some(0)),
        ("7", Some(7)),
        (" 7 ", Some(7)),
        ("99999999999999999999999", Some(u64::MAX)),
        // Relative to the response's own date, because the clock of the client may be wrong.
        ("Mon, 23 Feb 2026 12:00:07 GMT", Some(7)),
        ("Monday, 23-Feb-26 12:01:00 GMT", Some(60)),
        ("Mon Feb 23 12:00:07 2026", Some(7)),
        ("Mon, 23 Feb 2026 11:59:59 GMT", Some(0)),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("soon", None),
        ("", None),
        ("2026-02-23T12:00:07Z", None),
    ];
    for (text, seconds) in rows {
        let waited = retry_after_of(&[date, ("retry-after", text)]).await;
        assert_eq!(waited, seconds.map(Duration::from_secs), "{text:?}");
    }
}

#[tokio::test]
async fn retry_after_date_without_a_date_header_uses_the_clock() {
    let until = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
    let head =
        format!("HTTP/1.1 503 Unavailable\r\nretry-after: {until}\r\ncontent-length: 0\r\n\r\n");
    let wire = Wire::that([RawBehavior::Says(head)]).await;
    let client = wire.builder().max_retries(2).build().unwrap();
    let error = expect_error(client.whoami().await);
    let waited = error.retry_after().expect("a Retry-After").as_secs();
    // A date has whole seconds, and this test may be slow.
    assert!((540..=600).contains(&waited), "{waited}");
    // More than `max_retry_after`.
    assert_eq!((error.attempts(), wire.raw_requests().len()), (1, 1));
}

#[tokio::test]
async fn retry_after_beyond_two_minutes_fails_immediately() {
    for text in ["121", "99999999999999999999999"] {
        let server = Server::responding(unavailable().insert_header("retry-after", text)).await;
        let error = expect_error(server.persistent().whoami().await);
        assert_eq!((error.status(), error.attempts()), (Some(503), 1));
        assert!(error.retry_after() > Some(Duration::from_secs(120)));
        assert_eq!(server.requests().await.len(), 1);
    }
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let date = ("date", "Mon, 23 Feb 2026 12:00:00 GMT");
    let in_seconds = unavailable().insert_header("retry-after", "1");
    let as_date = unavailable().insert_header("retry-after", "Mon, 23 Feb 2026 12:00:01 GMT");
    let as_date = as_date.insert_header(date.0, date.1);
    let still_running = problem(
        409,
        "idempotency_in_progress",
        "the first request is in progress",
    );
    let still_running = still_running.insert_header("retry-after", "1");
    let waits = [in_seconds, as_date, still_running].map(|response| async move {
        let server =
            Server::answering([response, json_response(201, &fixtures::application())]).await;
        let started = Instant::now();
        server
            .persistent()
            .applications()
            .create("Shop")
            .await
            .unwrap();
        // Without `Retry-After` the pause is a millisecond.
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert_eq!(server.requests().await.len(), 2);
    });
    futures_util::future::join_all(waits).await;
}

#[tokio::test]
async fn repeated_revocation_succeeds_after_a_lost_response() {
    let lost = [
        RawBehavior::HangsUp,
        RawBehavior::Says("HTTP/1.1 204 No Cont".to_owned()),
        RawBehavior::Stalls(String::new()),
        problem_on_the_wire(504, "gateway_timeout"),
    ];
    for lost in lost {
        let wire = Wire::that([
            lost.clone(),
            problem_on_the_wire(400, "key_already_revoked"),
        ])
        .await;
        let client = wire
            .builder()
            .max_retries(2)
            .timeout(Duration::from_millis(500))
            .build()
            .unwrap();
        let outcome = client.applications().api_keys("app").revoke("key").await;
        assert!(outcome.is_ok(), "{lost:?}: {outcome:?}");
        assert_eq!(wire.raw_requests().len(), 2, "{lost:?}");

        let wire = Wire::that([lost.clone(), problem_on_the_wire(401, "invalid_api_key")]).await;
        let client = wire
            .builder()
            .max_retries(2)
            .timeout(Duration::from_millis(200))
            .build()
            .unwrap();
        // The rejected key may be revoked or may never have existed: the error says both.
        let error = expect_error(client.revoke_self().await);
        assert_eq!(
            (error.is_unauthorized(), error.may_have_taken_effect()),
            (true, true),
            "{lost:?}"
        );
        assert_eq!(wire.raw_requests().len(), 2, "{lost:?}");
    }
}

#[tokio::test]
async fn error_tells_whether_the_call_may_have_taken_effect() {
    let wire = Wire::that([RawBehavior::HangsUp]).await;
    let client = wire.builder().max_retries(1).build().unwrap();
    let error = expect_error(client.commerce().api_keys().create("Web").await);
    assert!(error.may_have_taken_effect());
    let unreachable = Client::builder()
        .base_url("http://127.0.0.1:1")
        .max_retries(1);
    let error = expect_error(
        unreachable
            .backoff(Duration::ZERO, Duration::ZERO)
            .build()
            .unwrap()
            .whoami()
            .await,
    );
    assert_eq!(
        (
            error.is_connect(),
            error.may_have_taken_effect(),
            error.attempts()
        ),
        (true, false, 2)
    );
}

#[tokio::test]
async fn restored_access_is_repeated_only_after_a_response() {
    type Sent = std::pin::Pin<Box<dyn Future<Output = Option<tollkey_client::Error>>>>;
    type Call = fn(Client) -> Sent;
    let calls: [(&str, Call); 4] = [
        ("resume", |client| {
            Box::pin(async move { client.commerce().api_keys().resume("key").await.err() })
        }),
        ("update", |client| {
            Box::pin(async move {
                client
                    .commerce()
                    .api_keys()
                    .update("key")
                    .name("n")
                    .await
                    .err()
            })
        }),
        ("enable", |client| {
            Box::pin(async move { client.applications().enable("app").await.err() })
        }),
        ("set_operating_model", |client| {
            let model = tollkey_client::OperatingModel::Platform;
            Box::pin(async move {
                client
                    .accounts()
                    .set_operating_model("acme", model)
                    .await
                    .err()
            })
        }),
    ];
    for (name, call) in calls {
        let wire = Wire::that([RawBehavior::HangsUp]).await;
        let error = call(wire.builder().max_retries(2).build().unwrap())
            .await
            .unwrap();
        assert_eq!(
            (error.attempts(), error.may_have_taken_effect()),
            (1, true),
            "{name}"
        );
        // After a response with 503 the call is repeated.
        let server = Server::responding(unavailable()).await;
        assert_eq!(
            call(server.persistent()).await.unwrap().attempts(),
            3,
            "{name}"
        );
    }
}

#[tokio::test]
async fn deadline_limits_the_whole_call() {
    let server = Server::responding(unavailable().insert_header("retry-after", "100")).await;
    let client = server
        .client()
        .with_max_retries(2)
        .with_deadline(Duration::from_millis(300));
    let started = Instant::now();
    let error = expect_error(client.verify("ck_test_EXAMPLE1").await);
    assert!(error.is_timeout() && started.elapsed() < Duration::from_secs(50));
    assert_eq!(error.attempts(), 1);
    // `max_retry_after` limits the wait as well.
    let client = server
        .builder()
        .max_retry_after(Duration::from_secs(99))
        .build()
        .unwrap();
    let error = expect_error(client.verify("ck_test_EXAMPLE1").await);
    assert_eq!(
        (error.status(), error.retry_after()),
        (Some(503), Some(Duration::from_secs(100)))
    );
}

#[tokio::test]
async fn response_cut_by_its_connection_is_interrupted() {
    let cut =
        "HTTP/1.0 201 Created\r\ncontent-type: application/json\r\n\r\n{\"key_id\": \"0198c0de";
    let wire = Wire::that([RawBehavior::Says(cut.to_owned())]).await;
    let error = expect_error(
        wire.builder()
            .max_retries(0)
            .build()
            .unwrap()
            .commerce()
            .api_keys()
            .create("Web")
            .await,
    );
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[tokio::test]
async fn revocation_rejected_at_the_first_attempt_fails() {
    let server =
        Server::responding(problem(400, "key_already_revoked", "the key is revoked")).await;
    let error = expect_error(
        server
            .persistent()
            .applications()
            .api_keys("app")
            .revoke("key")
            .await,
    );
    assert_eq!(
        (error.code(), error.attempts()),
        (Some("key_already_revoked"), 1)
    );

    let server =
        Server::responding(problem(401, "invalid_api_key", "the API key is not valid")).await;
    let error = expect_error(server.persistent().revoke_self().await);
    assert_eq!(
        (error.code(), error.attempts()),
        (Some("invalid_api_key"), 1)
    );
}

#[tokio::test]
async fn revocation_fails_unless_an_attempt_may_have_succeeded() {
    // Otherwise a revocation with a wrong key ID would succeed, while the intended key still works.
    let responses = [
        (408, "request_timeout"),
        (429, "rate_limited"),
        (409, "idempotency_in_progress"),
    ];
    for (status, code) in responses {
        let first = || problem(status, code, "no effect");
        let server = Server::answering([
            first(),
            problem(400, "key_already_revoked", "the key is revoked"),
        ])
        .await;
        let error = expect_error(
            server
                .persistent()
                .applications()
                .api_keys("app")
                .revoke("key")
                .await,
        );
        assert_eq!(
            (error.code(), error.attempts()),
            (Some("key_already_revoked"), 2),
            "{status}"
        );
    }
    // One lost response is enough.
    let limited = problem(429, "rate_limited", "too many requests");
    let responses = [
        unavailable(),
        limited,
        problem(400, "key_already_revoked", "the key is revoked"),
    ];
    let server = Server::answering(responses).await;
    server
        .persistent()
        .applications()
        .api_keys("app")
        .revoke("key")
        .await
        .unwrap();
}

#[tokio::test]
async fn repeated_revocation_succeeds_only_by_its_own_code() {
    for (status, code) in [
        (400, "validation_failed"),
        (401, "invalid_token"),
        (403, "forbidden"),
        (404, "not_found"),
    ] {
        let server = Server::answering([unavailable(), problem(status, code, "a detail")]).await;
        let error = expect_error(
            server
                .persistent()
                .applications()
                .api_keys("app")
                .revoke("key")
                .await,
        );
        assert_eq!((error.code(), error.attempts()), (Some(code), 2));
        let server = Server::answering([unavailable(), problem(status, code, "a detail")]).await;
        let error = expect_error(server.persistent().revoke_self().await);
        assert_eq!((error.code(), error.attempts()), (Some(code), 2));
    }
    // The code of one call does not make the other succeed, nor a call that only reads.
    let server = Server::answering([
        unavailable(),
        problem(401, "invalid_api_key", "the API key is not valid"),
    ])
    .await;
    expect_error(
        server
            .persistent()
            .applications()
            .api_keys("app")
            .revoke("key")
            .await,
    );
    let server = Server::answering([
        unavailable(),
        problem(401, "invalid_api_key", "the API key is not valid"),
    ])
    .await;
    expect_error(server.persistent().whoami().await);
}

#[tokio::test]
async fn repeated_deletion_is_not_found() {
    let wire = Wire::that([RawBehavior::HangsUp, problem_on_the_wire(404, "not_found")]).await;
    let error = expect_error(
        wire.builder()
            .max_retries(2)
            .build()
            .unwrap()
            .applications()
            .delete("app")
            .await,
    );
    assert_eq!((error.is_not_found(), error.attempts()), (true, 2));
}

#[tokio::test]
async fn failed_connection_is_repeated_and_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = builder(&url).max_retries(2).build().unwrap();
    let error = expect_error(client.whoami().await);
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.is_connect() && !error.is_timeout());
    assert_eq!(
        (
            error.status(),
            error.code(),
            error.request_id(),
            error.retry_after()
        ),
        (None, None, None, None)
    );
    let cause = "no connection: connection refused: no server listens on this host and port";
    assert_eq!(
        error.to_string(),
        format!("GET /api/v1/whoami: {cause} after 3 attempts")
    );
    assert!(error.source().is_some());
    assert!(!format!("{error:?}").contains(&url), "{error:?}");
}

#[tokio::test]
async fn cut_response_is_repeated() {
    let text = on_the_wire("200 OK", "application/json", &fixtures::whoami());
    let cuts = [
        0,
        1,
        12,
        text.find("\r\n\r\n").unwrap() + 2,
        text.find("\r\n\r\n").unwrap() + 4,
        text.len() - 1,
    ];
    for cut in cuts {
        let part = RawBehavior::Says(text[..cut].to_owned());
        let wire = Wire::that([part.clone(), part.clone(), RawBehavior::Says(text.clone())]).await;
        let me = wire
            .builder()
            .max_retries(2)
            .build()
            .unwrap()
            .whoami()
            .await;
        assert_eq!(me.unwrap().id, fixtures::KEY, "cut at {cut}");
        assert_eq!(wire.raw_requests().len(), 3, "cut at {cut}");

        let wire = Wire::that([part]).await;
        let error = expect_error(
            wire.builder()
                .max_retries(2)
                .build()
                .unwrap()
                .whoami()
                .await,
        );
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Interrupted, 3),
            "cut at {cut}: {error:?}"
        );
        assert!(!error.is_timeout() && !error.is_connect());
        assert_eq!(error.status(), None);
        assert_eq!(wire.raw_requests().len(), 3, "cut at {cut}");
        assert_eq!(
            error.to_string(),
            "GET /api/v1/whoami: the connection ended before the whole response was received after 3 attempts"
        );
    }
}

#[tokio::test]
async fn creation_is_repeated_after_the_connection_ended() {
    let wire = Wire::that([
        RawBehavior::HangsUp,
        RawBehavior::Says(on_the_wire(
            "201 Created",
            "application/json",
            &fixtures::application(),
        )),
    ])
    .await;
    wire.builder()
        .max_retries(2)
        .build()
        .unwrap()
        .applications()
        .create("Shop")
        .await
        .unwrap();
    let raw_requests = wire.raw_requests();
    let key = |text: &str| {
        let line = text
            .lines()
            .find(|line| line.to_lowercase().starts_with("idempotency-key:"));
        line.expect("an Idempotency-Key").to_owned()
    };
    assert_eq!(raw_requests.len(), 2);
    assert_eq!(key(&raw_requests[0]), key(&raw_requests[1]));
    assert!(
        raw_requests
            .iter()
            .all(|text| text.ends_with("{\"name\":\"Shop\"}")),
        "{raw_requests:?}"
    );
}

#[tokio::test]
async fn slow_response_times_out() {
    let begun =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"id\": ";
    for stall in ["", "HTTP/1.1 200 OK\r\n", begun] {
        let wire = Wire::that([RawBehavior::Stalls(stall.to_owned())]).await;
        let client = wire
            .builder()
            .timeout(Duration::from_millis(250))
            .max_retries(1)
            .build()
            .unwrap();
        let started = Instant::now();
        let error = expect_error(client.whoami().await);
        let took = started.elapsed();
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Timeout, 2),
            "{stall:?}: {error:?}"
        );
        assert!(error.is_timeout() && !error.is_connect());
        assert_eq!(error.status(), None);
        assert_eq!(
            error.to_string(),
            "GET /api/v1/whoami: no response in time after 2 attempts"
        );
        // Each attempt has this timeout, much less than the default of ten seconds.
        assert!(
            (Duration::from_millis(500)..Duration::from_secs(5)).contains(&took),
            "{took:?}"
        );
        assert_eq!(wire.raw_requests().len(), 2, "{stall:?}");
    }
}

#[tokio::test]
async fn call_succeeds_after_a_timed_out_attempt() {
    let wire = Wire::that([
        RawBehavior::Stalls(String::new()),
        RawBehavior::Says(on_the_wire(
            "200 OK",
            "application/json",
            &fixtures::whoami(),
        )),
    ])
    .await;
    let client = wire
        .builder()
        .timeout(Duration::from_millis(500))
        .max_retries(1)
        .build()
        .unwrap();
    assert_eq!(client.whoami().await.unwrap().id, fixtures::KEY);
}

/// Creations with an unreadable response: cut JSON, a proxy's page, an unexpected status.
fn unreadable_creations() -> [ResponseTemplate; 3] {
    let cut = fixtures::application().to_string();
    [
        response_with(201, "application/json", &cut[..cut.len() - 1]),
        response_with(200, "text/html", "<html>Welcome to nginx!</html>"),
        json_response(202, &json!({})),
    ]
}

#[tokio::test]
async fn unreadable_creation_is_repeated_once_with_its_key() {
    for unreadable in unreadable_creations() {
        let replayed = json_response(201, &fixtures::application())
            .insert_header("idempotent-replayed", "true");
        let server = Server::answering([unreadable.clone(), replayed]).await;
        assert_eq!(
            server
                .persistent()
                .applications()
                .create("Shop")
                .await
                .unwrap()
                .name,
            fixtures::application()["name"]
        );
        let requests = server.requests().await;
        assert_eq!(requests.len(), 2);
        assert_eq!(
            only_header(&requests[0], "idempotency-key"),
            only_header(&requests[1], "idempotency-key")
        );
        assert_eq!(requests[0].body, requests[1].body);

        // A second unreadable response is final, and so is the first without retries.
        let server = Server::responding(unreadable.clone()).await;
        let error = expect_error(server.persistent().applications().create("Shop").await);
        assert_eq!(
            (
                error.kind(),
                error.attempts(),
                error.may_have_taken_effect()
            ),
            (ErrorKind::Unreadable, 2, true)
        );
        let error = expect_error(server.client().applications().create("Shop").await);
        assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unreadable, 1));
    }
}

#[tokio::test]
async fn unreadable_response_without_a_random_key_is_final() {
    for unreadable in unreadable_creations() {
        let server = Server::responding(unreadable).await;
        let client = server.persistent();
        let with_own_key = client
            .applications()
            .create("Shop")
            .idempotency_key("order 4711, first try");
        for error in [
            expect_error(with_own_key.await),
            expect_error(client.applications().update("app").name("Shop").await),
        ] {
            assert_eq!((error.kind(), error.attempts()), (ErrorKind::Unreadable, 1));
        }
        assert_eq!(server.requests().await.len(), 2);
    }
}

#[tokio::test]
async fn poll_timeout_is_extended_by_its_wait() {
    let response = json_response(200, &fixtures::news()).set_delay(Duration::from_millis(300));
    let server = Server::responding(response).await;
    let client = server
        .builder()
        .timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let poll = client
        .subscription()
        .poll(tollkey_client::VerifierId::from_bytes([7; 16]));
    let error = expect_error(poll.clone().await);
    assert!(error.is_timeout());
    assert_eq!(poll.wait(Duration::from_secs(5)).await.unwrap().seq, 7);
}

#[tokio::test]
async fn failed_poll_is_sent_once() {
    let wire = Wire::that([RawBehavior::HangsUp]).await;
    let client = wire.builder().max_retries(5).build().unwrap();
    let poll = client
        .subscription()
        .poll(tollkey_client::VerifierId::from_bytes([7; 16]));
    assert_eq!(expect_error(poll.await).kind(), ErrorKind::Interrupted);
    assert_eq!(wire.raw_requests().len(), 1);
}
