//! The layer of `tollkey-axum` as a tower service: readiness of inner services, gRPC responses, and request bodies.

use std::{convert::Infallible, future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, Version, header},
    response::{IntoResponse as _, Response},
    routing::{any, post},
};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tollkey_axum::{
    Denial, Family, Guard, Mode, Rejection, Requirement, TollkeyLayer, VerifiedKey, require,
};
use tollkey_core::RateLimit;
use tollkey_middleware::testing::TestKeys;
use tower::{ServiceExt as _, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer as _;
use tower_service::Service as _;

fn request(key: Option<&str>) -> Request<Body> {
    let mut request = Request::get("/api/v1/links");
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    request.body(Body::empty()).expect("a request")
}

/// Responds 200 with the account of the key, if the request has one.
async fn inner(request: Request<Body>) -> Result<Response, Infallible> {
    let key = VerifiedKey::from_extensions(request.extensions());
    Ok(key
        .map_or_else(String::new, |key| key.account_id().to_owned())
        .into_response())
}

#[tokio::test]
async fn grpc_content_type_does_not_change_a_plain_rejection() {
    let keys = TestKeys::new();
    let denied = keys.add(Family::Commerce, Mode::Test, |key| {
        key.suspended_at = Some(tollkey_axum::Timestamp::UNIX_EPOCH)
    });
    let guard = keys.guard().await.expect("a guard");
    let plain = TollkeyLayer::new(guard.clone());
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND",
    ] {
        for version in [
            Version::HTTP_10,
            Version::HTTP_11,
            Version::HTTP_2,
            Version::HTTP_3,
        ] {
            for content_type in [
                "application/grpc",
                "application/grpc+proto",
                "application/grpc-web",
                "application/grpc;x",
            ] {
                for (key, status) in [(None, 401), (Some(&*denied), 403)] {
                    let mut request = request(key);
                    *request.method_mut() = method.parse().expect("a method");
                    *request.version_mut() = version;
                    request.headers_mut().insert(
                        header::CONTENT_TYPE,
                        content_type.parse().expect("a header"),
                    );
                    let response = plain
                        .layer(service_fn(inner))
                        .oneshot(request)
                        .await
                        .expect("a response");
                    let sent = (
                        response.status().as_u16(),
                        response.headers().get("grpc-status").is_some(),
                    );
                    assert_eq!(sent, (status, false), "{method} {version:?} {content_type}");
                    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
                    assert_eq!(
                        response.headers()[header::CONTENT_TYPE],
                        "application/problem+json"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn grpc_rejection_needs_the_setting_and_a_grpc_request() {
    let keys = TestKeys::new();
    let layer = TollkeyLayer::new(keys.guard().await.expect("a guard")).grpc();
    for (method, version, content_type, is_grpc) in [
        ("POST", Version::HTTP_2, "application/grpc", true),
        ("POST", Version::HTTP_2, "application/grpc+proto", true),
        ("POST", Version::HTTP_2, "application/grpc-web", false),
        ("POST", Version::HTTP_2, "application/grpc-web+proto", false),
        (
            "POST",
            Version::HTTP_2,
            "application/grpc; charset=utf-8",
            false,
        ),
        ("POST", Version::HTTP_2, "application/json", false),
        ("POST", Version::HTTP_11, "application/grpc", false),
        ("GET", Version::HTTP_2, "application/grpc", false),
        ("HEAD", Version::HTTP_2, "application/grpc", false),
    ] {
        let mut request = request(None);
        *request.method_mut() = method.parse().expect("a method");
        *request.version_mut() = version;
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            content_type.parse().expect("a header"),
        );
        let response = layer
            .layer(service_fn(inner))
            .oneshot(request)
            .await
            .expect("a response");
        let sent = (
            response.status().as_u16(),
            response
                .headers()
                .get("grpc-status")
                .map(|status| status.as_bytes()),
        );
        let expected = if is_grpc {
            (200, Some(b"16".as_slice()))
        } else {
            (401, None)
        };
        assert_eq!(sent, expected, "{method} {version:?} {content_type}");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    }
}

/// For each kind of rejection, and for an admitted request: a name, the key and the status.
struct Kinds {
    keys: TestKeys,
    guard: Guard,
    rows: Vec<(&'static str, Option<String>, u16)>,
}

impl Kinds {
    /// With `cached` keys, the layer decides immediately; otherwise it looks keys up at the server.
    async fn new(cached: bool) -> Self {
        let keys = TestKeys::new();
        let with = |edit: fn(&mut tollkey_core::ApiKey)| {
            Some(keys.add(Family::Commerce, Mode::Test, edit))
        };
        let rows = vec![
            ("without a key", None, 401),
            ("malformed", Some("not a key".to_owned()), 401),
            (
                "unknown",
                Some("ck_test_EXAMPLE9EXAMPLE9EXAMPLE9EXAMPLE9".to_owned()),
                401,
            ),
            (
                "suspended",
                with(|key| key.suspended_at = Some(tollkey_axum::Timestamp::UNIX_EPOCH)),
                403,
            ),
            (
                "scope",
                with(|key| key.restrictions.scopes = vec!["events:read".into()]),
                403,
            ),
            (
                "rate",
                with(|key| key.restrictions.rate_limit = RateLimit::new(1, 3600).ok()),
                429,
            ),
            ("admitted", with(|_| ()), 200),
        ];
        let guard = if cached {
            keys.caching_guard().await
        } else {
            keys.guard().await
        }
        .expect("a guard");
        while cached && guard.stats().lease_left.is_zero() {
            tokio::task::yield_now().await;
        }
        // Takes the only use of the limited key, and caches all known keys if `cached`.
        let warm = TollkeyLayer::new(guard.clone()).layer(service_fn(inner));
        for (kind, key, _) in &rows {
            if cached || *kind == "rate" {
                drop(warm.clone().oneshot(request(key.as_deref())).await);
            }
        }
        Self { keys, guard, rows }
    }
}

#[tokio::test]
async fn rejected_request_takes_no_permit_of_a_limit_inside() {
    for cached in [true, false] {
        let Kinds { guard, rows, .. } = Kinds::new(cached).await;
        let permits = Arc::new(Semaphore::new(1));
        let limit = || ConcurrencyLimit::with_semaphore(service_fn(inner), Arc::clone(&permits));
        let layer = TollkeyLayer::new(guard.clone());
        let mut services = [
            (
                "the layer",
                tower::util::BoxCloneSyncService::new(
                    layer.clone().require("links:read").layer(limit()),
                ),
            ),
            (
                "require",
                tower::util::BoxCloneSyncService::new(
                    layer.layer(require("links:read").layer(limit())),
                ),
            ),
        ];
        for (place, service) in &mut services {
            for (kind, key, status) in &rows {
                let context = format!("{place}, {kind}, cached: {cached}");
                // A server checks the readiness before it has a request.
                poll_fn(|context| service.poll_ready(context))
                    .await
                    .expect("ready");
                assert_eq!(
                    permits.available_permits(),
                    1,
                    "{context}: before the request"
                );
                let response = service.call(request(key.as_deref()));
                let response = response.await.expect("a response");
                assert_eq!(response.status().as_u16(), *status, "{context}");
                // The service still exists, as in a connection that is kept open.
                assert_eq!(
                    permits.available_permits(),
                    1,
                    "{context}: after the response"
                );
            }
        }
    }
}

#[tokio::test]
async fn rejections_do_not_wait_for_a_limit_inside() {
    for cached in [true, false] {
        let Kinds { guard, rows, keys } = Kinds::new(cached).await;
        let permits = Arc::new(Semaphore::new(1));
        let limited = ConcurrencyLimit::with_semaphore(service_fn(inner), Arc::clone(&permits));
        let service = TollkeyLayer::new(guard).layer(require("links:read").layer(limited));
        let all_taken = permits.clone().acquire_owned().await.expect("a permit");
        for (kind, key, status) in &rows {
            let mut waiting = tokio::spawn(service.clone().oneshot(request(key.as_deref())));
            if *status == 200 {
                let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
                assert!(early.is_err(), "{kind}: admitted, but there is no permit");
                waiting.abort();
            } else {
                let response = waiting.await.expect("no panic").expect("a response");
                assert_eq!(
                    response.status().as_u16(),
                    *status,
                    "{kind}, cached: {cached}"
                );
            }
        }
        // A request that waits for a permit gets one, and releases it.
        let waiting = tokio::spawn(
            service
                .clone()
                .oneshot(request(rows.last().expect("a row").1.as_deref())),
        );
        tokio::task::yield_now().await;
        drop(all_taken);
        assert_eq!(
            waiting
                .await
                .expect("no panic")
                .expect("a response")
                .status(),
            StatusCode::OK
        );
        assert_eq!(permits.available_permits(), 1);
        drop(keys);
    }
}

#[tokio::test]
async fn look_up_holds_no_permit_of_a_limit_inside() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |_| {});
    let guard = keys.guard().await.expect("a guard");
    let permits = Arc::new(Semaphore::new(1));
    let limited = ConcurrencyLimit::with_semaphore(service_fn(inner), Arc::clone(&permits));
    let service = TollkeyLayer::new(guard).layer(limited);
    let paused = keys.pause().await;
    let waiting: Vec<_> = (0..4)
        .map(|_| tokio::spawn(service.clone().oneshot(request(Some(&key)))))
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        permits.available_permits(),
        1,
        "all requests wait for the server"
    );
    drop(paused);
    for waiting in waiting {
        assert_eq!(
            waiting
                .await
                .expect("no panic")
                .expect("a response")
                .status(),
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn request_dropped_after_admission_counts_as_a_use() {
    for cached in [true, false] {
        let keys = TestKeys::new();
        let key = keys.add(Family::Commerce, Mode::Test, |key| {
            key.restrictions.rate_limit = RateLimit::new(2, 3600).ok()
        });
        let guard = if cached {
            keys.caching_guard().await
        } else {
            keys.guard().await
        }
        .expect("a guard");
        while cached && guard.stats().lease_left.is_zero() {
            tokio::task::yield_now().await;
        }
        let layer = TollkeyLayer::new(guard);
        let status = async || {
            let service = layer.layer(service_fn(inner));
            let response = service.oneshot(request(Some(&key))).await;
            response.expect("a response").status().as_u16()
        };
        assert_eq!(status().await, 200, "the first use caches the key");
        let admitted = Arc::new(Semaphore::new(0));
        let is_admitted = Arc::clone(&admitted);
        let endless = layer.layer(service_fn(move |_| {
            is_admitted.add_permits(1);
            std::future::pending::<Result<Response, Infallible>>()
        }));
        tokio::select! {
            _ = endless.oneshot(request(Some(&key))) => panic!("the handler never responds"),
            permit = admitted.acquire() => drop(permit.expect("the semaphore is open")),
        }
        assert_eq!(status().await, 429, "cached: {cached}");
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Reads one response with a `content-length` and returns its head.
async fn read_response(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    let head_end = loop {
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk).await.expect("a response");
        assert!(
            read > 0,
            "the connection ended: {:?}",
            String::from_utf8_lossy(&received)
        );
        received.extend_from_slice(&chunk[..read]);
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&received[..head_end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .expect("a length");
    let mut left = length.parse::<usize>().expect("a number") - (received.len() - head_end);
    while left > 0 {
        let mut chunk = vec![0; left];
        left -= stream.read(&mut chunk).await.expect("the body");
    }
    head
}

#[tokio::test]
async fn client_that_sends_after_a_rejection_keeps_its_connection() {
    let keys = TestKeys::new();
    let layer = TollkeyLayer::new(keys.guard().await.expect("a guard"));
    let guarded = Router::new()
        .route("/upload", post(async || "stored"))
        .layer(layer.clone());
    let inside = Router::new()
        .route(
            "/required",
            post(async || "stored").layer::<_, Infallible>(require("links:write")),
        )
        .layer(layer.require(Requirement::any().optional()));
    let address = serve(guarded.merge(inside)).await;
    for path in ["/upload", "/required"] {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let body = vec![b'x'; 64 * 1024];
        for _ in 0..2 {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: api\r\ncontent-length: {}\r\n\r\n",
                15 * body.len()
            );
            stream
                .write_all(head.as_bytes())
                .await
                .expect("the head is sent");
            let response = read_response(&mut stream).await;
            assert!(response.starts_with("HTTP/1.1 401"), "{path}: {response}");
            // The body is sent after the response, as by a proxy that has already read it.
            for _ in 0..15 {
                stream.write_all(&body).await.expect("the body is sent");
            }
        }
    }
}

#[tokio::test]
async fn endless_upload_is_not_read_forever() {
    let keys = TestKeys::new();
    let layer = TollkeyLayer::new(keys.guard().await.expect("a guard"));
    let address = serve(
        Router::new()
            .route("/upload", post(async || "stored"))
            .layer(layer),
    )
    .await;
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = "POST /upload HTTP/1.1\r\nhost: api\r\ncontent-length: 1000000000\r\n\r\n";
    stream
        .write_all(head.as_bytes())
        .await
        .expect("the head is sent");
    let response = read_response(&mut stream).await;
    assert!(response.starts_with("HTTP/1.1 401"), "{response}");
    let mut sent = 0;
    while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {
        sent += 64;
        assert!(
            sent < 64 * 1024,
            "{sent} KiB sent, and the server is still reading"
        );
    }
}

#[tokio::test]
async fn client_that_expects_100_gets_only_the_rejection() {
    let keys = TestKeys::new();
    let layer = TollkeyLayer::new(keys.guard().await.expect("a guard"));
    let address = serve(
        Router::new()
            .route("/upload", post(async || "stored"))
            .layer(layer),
    )
    .await;
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = "POST /upload HTTP/1.1\r\nhost: api\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    stream
        .write_all(head.as_bytes())
        .await
        .expect("the head is sent");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.expect("a response");
    let received = String::from_utf8_lossy(&received);
    assert!(
        received.starts_with("HTTP/1.1 401") && !received.contains("100 Continue"),
        "{received}"
    );
}

#[tokio::test]
async fn header_with_the_key_is_sensitive_inside_of_the_layer() {
    async fn sensitive(headers: HeaderMap) -> String {
        let names = headers
            .iter()
            .filter(|(_, value)| value.is_sensitive())
            .map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(",")
    }
    for cached in [true, false] {
        let Kinds { guard, rows, .. } = Kinds::new(cached).await;
        let app = Router::new()
            .route("/api/v1/links", any(sensitive))
            .layer(TollkeyLayer::new(guard));
        let key = rows.last().expect("a row").1.as_deref().expect("a key");
        for (name, value) in [
            ("x-api-key", key.to_owned()),
            ("authorization", format!("Bearer {key}")),
        ] {
            let mut request = request(None);
            request
                .headers_mut()
                .insert(name, value.parse().expect("a header"));
            let response = app.clone().oneshot(request).await.expect("a response");
            let body = response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            assert_eq!(body, name.as_bytes(), "cached: {cached}");
        }
    }
}

#[tokio::test]
async fn rejection_is_in_the_extensions_of_its_response() {
    let keys = TestKeys::new();
    let layer = TollkeyLayer::new(keys.guard().await.expect("a guard"));
    let expired = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.expires_at = Some(tollkey_axum::Timestamp::UNIX_EPOCH);
    });
    let response = layer
        .layer(service_fn(inner))
        .oneshot(request(Some(&expired)))
        .await
        .expect("a response");
    let rejection = response
        .extensions()
        .get::<Rejection>()
        .expect("the rejection");
    assert_eq!(
        (rejection.status(), rejection.denial()),
        (403, Some(Denial::Expired))
    );
    assert!(!format!("{rejection:?}").contains(&expired));
}

#[actix_web::test]
async fn rejected_request_takes_no_permit_of_an_actix_limit_inside() {
    use actix_web::{App, dev::Service as _, test, web};
    for cached in [true, false] {
        let Kinds { guard, rows, .. } = Kinds::new(cached).await;
        let permits = Arc::new(Semaphore::new(1));
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let limited = || {
            let (permits, taken) = (Arc::clone(&permits), Arc::clone(&taken));
            web::resource("/api/v1/links")
                .to(async || "links")
                .wrap_fn(move |request, service| {
                    let (permits, taken, response) = (
                        Arc::clone(&permits),
                        Arc::clone(&taken),
                        service.call(request),
                    );
                    async move {
                        let _permit = permits.acquire_owned().await.expect("a permit");
                        taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        response.await
                    }
                })
        };
        let layer = tollkey_actix::Tollkey::new(guard);
        let at_the_layer = test::init_service(
            App::new().service(limited().wrap(layer.clone().require("links:read"))),
        );
        let at_require = test::init_service(
            App::new().service(
                limited()
                    .wrap(tollkey_actix::require("links:read"))
                    .wrap(layer),
            ),
        );
        let (at_the_layer, at_require) = (at_the_layer.await, at_require.await);
        for (kind, key, status) in &rows {
            for requires_inside in [false, true] {
                let mut request = test::TestRequest::get().uri("/api/v1/links");
                if let Some(key) = key {
                    request = request.insert_header(("x-api-key", key.as_str()));
                }
                let before = taken.load(std::sync::atomic::Ordering::Relaxed);
                let request = request.to_request();
                let sent = if requires_inside {
                    test::call_service(&at_require, request).await.status()
                } else {
                    test::call_service(&at_the_layer, request).await.status()
                };
                let context =
                    format!("{kind}, require inside: {requires_inside}, cached: {cached}");
                assert_eq!(sent.as_u16(), *status, "{context}");
                let taken = taken.load(std::sync::atomic::Ordering::Relaxed) - before;
                assert_eq!(taken, usize::from(*status == 200), "{context}");
                assert_eq!(permits.available_permits(), 1, "{context}");
            }
        }
    }
}
