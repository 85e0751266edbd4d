//! The warnings that the layers log about requests: each kind is limited, whatever clients send.

use std::{
    convert::Infallible,
    fmt::Debug,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use actix_web::{HttpResponse, test::TestRequest, web};
use axum::{
    body::Body,
    extract::ConnectInfo,
    http::Request,
    response::{IntoResponse as _, Response},
};
use tollkey_axum::{Family, Guard, Mode, TollkeyLayer};
use tollkey_middleware::testing::TestKeys;
use tower::{ServiceExt as _, service_fn};
use tower_layer::Layer as _;
use tracing::{Event, Level, Metadata, field::Field, span};

/// Collects the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = String::new();
        event
            .record(&mut |field: &Field, value: &dyn Debug| text += &format!("{field}={value:?} "));
        self.0.lock().expect("no panic").push(text);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Sends a request from this peer to the axum layer, and returns the status of the response.
async fn axum(guard: &Guard, peer: Option<SocketAddr>, headers: &[(&str, &str)]) -> u16 {
    let inner = service_fn(async |_: Request<Body>| Ok::<Response, Infallible>(().into_response()));
    let mut request = Request::get("/any");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).expect("a request");
    request.extensions_mut().extend(
        peer.map(|peer| {
            let mut extensions = axum::http::Extensions::new();
            extensions.insert(ConnectInfo(peer));
            extensions
        })
        .unwrap_or_default(),
    );
    let response = TollkeyLayer::new(guard.clone())
        .layer(inner)
        .oneshot(request)
        .await;
    response.expect("a response").status().as_u16()
}

/// Sends a request from this peer to the actix layer, and returns the status of the response.
async fn actix(guard: &Guard, peer: Option<SocketAddr>, headers: &[(&str, &str)]) -> u16 {
    let app = actix_web::App::new()
        .wrap(tollkey_actix::Tollkey::new(guard.clone()))
        .default_service(web::to(async || HttpResponse::Ok()));
    let app = actix_web::test::init_service(app).await;
    let mut request = TestRequest::get().uri("/any");
    for (name, value) in headers {
        request = request.insert_header((*name, *value));
    }
    let request = match peer {
        Some(peer) => request.peer_addr(peer),
        None => request,
    };
    actix_web::test::call_service(&app, request.to_request())
        .await
        .status()
        .as_u16()
}

#[actix_web::test]
async fn missing_peer_address_is_logged_once_per_guard() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let key = [("x-api-key", key.as_str())];
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let peer = "203.0.113.7:4711".parse().ok();
    for is_axum in [true, false] {
        let guard = keys.guard().await.expect("a guard");
        warnings.take();
        for (peer, lines) in [(peer, 0), (None, 1), (None, 0), (peer, 0)] {
            let status = if is_axum {
                axum(&guard, peer, &key).await
            } else {
                actix(&guard, peer, &key).await
            };
            assert_eq!(status, 200);
            let logged = warnings.take();
            assert_eq!(logged.len(), lines, "{logged:?}");
            assert!(
                logged
                    .iter()
                    .all(|line| line.contains("into_make_service_with_connect_info")),
                "{logged:?}"
            );
        }
    }
}

#[actix_web::test]
async fn unreadable_hop_is_logged_once_without_its_value() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let headers = [
        ("x-api-key", key.as_str()),
        ("x-forwarded-for", "hop-of-a-proxy"),
    ];
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    for is_axum in [true, false] {
        let guard = keys.guard().await.expect("a guard");
        warnings.take();
        let proxy = "127.0.0.1:4711".parse().ok();
        for _ in 0..5 {
            let status = if is_axum {
                axum(&guard, proxy, &headers).await
            } else {
                actix(&guard, proxy, &headers).await
            };
            assert_eq!(status, 403);
        }
        let logged = warnings.take();
        assert_eq!(logged.len(), 1, "{logged:?}");
        assert!(
            logged[0].contains("X-Forwarded-For") && !logged[0].contains("hop-of-a-proxy"),
            "{logged:?}"
        );
    }
}
