//! Connections: shared, kept alive, and replaced when they go silent.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tollkey_client::{Client, ErrorKind, reqwest};

use crate::{
    fixtures,
    proxy::Proxy,
    support::{RawBehavior, Server, Wire, builder, expect_error, json_response, on_the_wire},
    tls::{Certificate, Http2Server, run_with_ca_certificates},
};

/// The time limit for closing a silent connection. It is shorter than the idle timeout of connections (30 s).
const LIMIT: Duration = Duration::from_secs(20);
/// The timeout of an attempt on a silent connection, in tests that do not depend on its exact length.
const ATTEMPT: Duration = Duration::from_millis(400);
/// The number of connections that are idle when they go silent.
const IDLE: usize = 4;

fn me() -> RawBehavior {
    RawBehavior::Serves(on_the_wire(
        "200 OK",
        "application/json",
        &fixtures::whoami(),
    ))
}

#[tokio::test]
async fn new_connections_are_separate() {
    let wire = Wire::that([me()]).await;
    let client = wire
        .builder()
        .header("x-team", "checkout")
        .build()
        .unwrap()
        .for_account("acme");
    for _ in 0..2 {
        client.commerce().api_keys().list().await.unwrap_err();
    }
    assert_eq!(wire.connections(), 1);
    let separate = client.with_new_connections().unwrap();
    for client in [&separate, &client, &separate] {
        client.commerce().api_keys().list().await.unwrap_err();
    }
    assert_eq!(wire.connections(), 2);
    // The other settings stay.
    let requests = wire.raw_requests();
    assert_eq!(requests.len(), 5);
    assert!(
        requests.iter().all(|request| *request == requests[0]),
        "{requests:?}"
    );
    assert!(
        requests[0].contains("account=acme") && requests[0].contains("x-team: checkout"),
        "{}",
        requests[0]
    );
}

#[tokio::test]
async fn pool_of_the_callers_http_client_is_shared() {
    let wire = Wire::that([me()]).await;
    let client: Client = wire
        .builder()
        .http_client(reqwest::Client::new())
        .build()
        .unwrap();
    client.whoami().await.unwrap();
    client
        .with_new_connections()
        .unwrap()
        .whoami()
        .await
        .unwrap();
    assert_eq!(wire.connections(), 1);
}

#[tokio::test]
async fn blocking_calls_get_new_connections_too() {
    let wire = Wire::that([me()]).await;
    let client = wire.builder().build().unwrap();
    let opened = tokio::task::spawn_blocking(move || {
        client.whoami().send_blocking().unwrap();
        let before = wire.connections();
        // A second call of `client` would prove nothing: on a busy machine, its connection may not be back in the
        // pool yet.
        client
            .with_new_connections()
            .unwrap()
            .whoami()
            .send_blocking()
            .unwrap();
        wire.connections() - before
    });
    assert_eq!(opened.await.unwrap(), 1);
}

/// An HTTP/1.1 server behind a proxy. Its responses are delayed, so that concurrent calls need a connection each.
async fn http1() -> (Server, Proxy) {
    let server = Server::responding(
        json_response(200, &fixtures::whoami()).set_delay(Duration::from_millis(50)),
    )
    .await;
    let proxy = Proxy::to(&[server.address()]).await;
    (server, proxy)
}

/// Makes [`IDLE`] concurrent calls, which open as many connections on HTTP/1.1.
async fn call_concurrently(client: &Client) -> Vec<Result<(), ErrorKind>> {
    let calls = (0..IDLE).map(|_| async {
        client
            .whoami()
            .await
            .map(drop)
            .map_err(|error| error.kind())
    });
    join_all(calls).await
}

#[tokio::test]
async fn silent_http1_connections_fail_one_attempt() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(ATTEMPT)
        .build()
        .unwrap();
    assert_eq!(call_concurrently(&client).await, [Ok(()); IDLE]);
    assert_eq!(proxy.opened(), IDLE);
    proxy.silence();
    assert_eq!(
        expect_error(client.whoami().await).kind(),
        ErrorKind::Timeout
    );
    for _ in 0..2 * IDLE {
        client.whoami().await.unwrap();
    }
    assert_eq!(proxy.opened(), IDLE + 1);
    // The silent connections are closed, not only unused.
    timeout(LIMIT, proxy.closed(IDLE)).await.unwrap();
}

#[tokio::test]
async fn concurrent_calls_on_silent_connections_fail_once() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(ATTEMPT)
        .build()
        .unwrap();
    assert_eq!(call_concurrently(&client).await, [Ok(()); IDLE]);
    proxy.silence();
    assert_eq!(
        call_concurrently(&client).await,
        [Err(ErrorKind::Timeout); IDLE]
    );
    assert_eq!(call_concurrently(&client).await, [Ok(()); IDLE]);
    assert_eq!(call_concurrently(&client).await, [Ok(()); IDLE]);
    assert_eq!(proxy.opened(), 2 * IDLE);
}

#[tokio::test]
async fn repeat_after_silence_uses_a_new_connection() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(ATTEMPT)
        .max_retries(1)
        .build()
        .unwrap();
    call_concurrently(&client).await;
    proxy.silence();
    client.whoami().await.unwrap();
}

#[tokio::test]
async fn deadline_on_a_silent_connection_opens_a_new_one() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(LIMIT)
        .deadline(ATTEMPT)
        .build()
        .unwrap();
    call_concurrently(&client).await;
    proxy.silence();
    assert_eq!(
        expect_error(client.whoami().await).kind(),
        ErrorKind::Timeout
    );
    client.whoami().await.unwrap();
}

#[tokio::test]
async fn dropped_call_makes_the_next_open_a_connection() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(LIMIT)
        .build()
        .unwrap();
    call_concurrently(&client).await;
    proxy.silence();
    timeout(Duration::from_millis(1200), client.whoami().send())
        .await
        .unwrap_err();
    client.whoami().await.unwrap();
}

#[tokio::test]
async fn blocking_calls_leave_silent_connections_too() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(ATTEMPT)
        .build()
        .unwrap();
    let calls = tokio::task::spawn_blocking(move || {
        std::thread::scope(|scope| {
            for _ in 0..IDLE {
                scope.spawn(|| client.whoami().send_blocking().unwrap());
            }
        });
        proxy.silence();
        assert_eq!(
            expect_error(client.whoami().send_blocking()).kind(),
            ErrorKind::Timeout
        );
        for _ in 0..2 * IDLE {
            client.whoami().send_blocking().unwrap();
        }
    });
    calls.await.unwrap();
}

#[tokio::test]
async fn new_connections_work_while_others_are_silent() {
    let (_server, proxy) = http1().await;
    let client = builder(&format!("http://{}", proxy.address))
        .timeout(ATTEMPT)
        .build()
        .unwrap();
    client.whoami().await.unwrap();
    proxy.silence();
    client
        .with_new_connections()
        .unwrap()
        .whoami()
        .await
        .unwrap();
}

#[tokio::test]
async fn creation_is_repeated_after_a_damaged_response() {
    let server = Server::responding(json_response(201, &fixtures::created_commerce_key())).await;
    let proxy = Proxy::to(&[server.address()]).await;
    let client = builder(&format!("http://{}", proxy.address))
        .max_retries(2)
        .build()
        .unwrap();
    proxy.damage();
    let created = client.commerce().api_keys().create("Key").await.unwrap();
    assert_eq!(created.api_key.expose(), "ck_test_EXAMPLE1");
    assert_eq!(server.requests().await.len(), 2);
}

/// An HTTP/2 server with TLS behind a proxy, and a client that trusts it. [`with_certificate`] provides the
/// certificate.
async fn http2() -> (Http2Server, Proxy, tollkey_client::ClientBuilder) {
    let server = Http2Server::start(&Certificate::read()).await;
    let proxy = Proxy::to(&[server.address]).await;
    let client =
        builder(&format!("https://localhost:{}", proxy.address.port())).timeout(10 * LIMIT);
    (server, proxy, client)
}

/// Runs an ignored test in a process that trusts the certificate of its servers.
fn with_certificate(test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    Certificate::valid().write(&file);
    run_with_ca_certificates(test, Some(file.as_os_str()), None);
}

#[test]
fn silent_http2_connection_ends_while_idle() {
    with_certificate("connections::http2_while_idle");
}

#[tokio::test]
#[ignore = "needs a process that trusts the certificate of its server"]
async fn http2_while_idle() {
    let (server, proxy, client) = http2().await;
    let client = client.build().unwrap();
    client.whoami().await.unwrap();
    // Concurrent calls share one connection, so this is HTTP/2.
    assert_eq!(call_concurrently(&client).await, [Ok(()); IDLE]);
    assert_eq!((proxy.opened(), server.requests()), (1, IDLE + 1));
    proxy.silence();
    timeout(LIMIT, proxy.closed(1))
        .await
        .expect("no PING is acknowledged");
    client.whoami().await.unwrap();
    assert_eq!(proxy.opened(), 2);
}

#[test]
fn silent_http2_connection_ends_during_a_call() {
    with_certificate("connections::http2_during_a_call");
}

#[tokio::test]
#[ignore = "needs a process that trusts the certificate of its server"]
async fn http2_during_a_call() {
    let (_server, proxy, client) = http2().await;
    let client = client.build().unwrap();
    client.whoami().await.unwrap();
    proxy.silence();
    // Much sooner than the attempt's timeout.
    let error = timeout(LIMIT, client.whoami().send())
        .await
        .expect("no PING is acknowledged")
        .unwrap_err();
    assert!(
        error.is_timeout() && error.may_have_taken_effect(),
        "{error:?}"
    );
    client.whoami().await.unwrap();
    // With a retry, no call fails.
    let client = client.with_max_retries(1);
    proxy.silence();
    timeout(LIMIT, client.whoami().send())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(proxy.opened(), 3);
}

#[test]
fn short_attempts_leave_a_silent_http2_connection() {
    with_certificate("connections::http2_with_short_attempts");
}

#[tokio::test]
#[ignore = "needs a process that trusts the certificate of its server"]
async fn http2_with_short_attempts() {
    let (_server, proxy, client) = http2().await;
    let client = client.timeout(ATTEMPT).build().unwrap();
    client.whoami().await.unwrap();
    proxy.silence();
    assert_eq!(
        expect_error(client.whoami().await).kind(),
        ErrorKind::Timeout
    );
    client.whoami().await.unwrap();
}

#[test]
fn http2_connection_with_acknowledged_pings_is_kept() {
    with_certificate("connections::http2_with_acknowledged_pings");
}

#[tokio::test]
#[ignore = "needs a process that trusts the certificate of its server"]
async fn http2_with_acknowledged_pings() {
    let (_server, proxy, client) = http2().await;
    let client = client.build().unwrap();
    client.whoami().await.unwrap();
    // Longer than a PING and its acknowledgment may take.
    timeout(Duration::from_secs(5), proxy.closed(1))
        .await
        .unwrap_err();
    client.whoami().await.unwrap();
    assert_eq!(proxy.opened(), 1);
}
