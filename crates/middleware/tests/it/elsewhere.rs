//! The layer of `tollkey-axum` without axum: around a hyper service, and around a tonic gRPC service.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::net::TcpListener;
use tollkey_axum::{Family, Mode, Scope, TollkeyLayer, VerifiedKey};
use tollkey_client::reqwest::{self, Client};
use tollkey_middleware::testing::TestKeys;
use tonic::{Code, Status, metadata::MetadataValue, transport};
use tonic_health::pb::{
    HealthCheckRequest, health_client::HealthClient, health_server::HealthServer,
};
use tower_layer::Layer as _;

struct Keys {
    keys: TestKeys,
    /// A key with the required scope.
    good: String,
    /// A key without it.
    other: String,
}

fn keys() -> Keys {
    let keys = TestKeys::new();
    let with = |scope| {
        keys.add(Family::Commerce, Mode::Live, |key| {
            key.restrictions.scopes = vec![scope]
        })
    };
    let (good, other) = (with(Scope::LINKS_READ), with(Scope::LINKS_WRITE));
    Keys { keys, good, other }
}

async fn layer(keys: &TestKeys) -> TollkeyLayer {
    TollkeyLayer::new(keys.guard().await.expect("a guard")).require(Scope::LINKS_READ)
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

#[tokio::test]
async fn hyper_service_is_guarded() {
    let Keys { keys, good, other } = keys();
    let service =
        layer(&keys)
            .await
            .layer(tower::service_fn(async |request: Request<Incoming>| {
                let key = VerifiedKey::from_extensions(request.extensions()).expect("a key");
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(
                    key.account_id().to_owned(),
                )))
            }));
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let send = async |key: Option<&str>| {
        let request = Client::new().get(format!("http://{address}/api/v1/links"));
        let request = key
            .into_iter()
            .fold(request, reqwest::RequestBuilder::bearer_auth);
        let response = request.send().await.expect("a response");
        (
            response.status().as_u16(),
            response.text().await.expect("a text"),
        )
    };
    assert_eq!(send(Some(&good)).await, (200, "acme".to_owned()));
    assert_eq!(send(None).await.0, 401);
    let (status, body) = send(Some(&other)).await;
    assert_eq!(status, 403);
    assert!(body.contains("\"code\":\"insufficient_scope\""), "{body}");
    keys.revoke(&good);
    assert_eq!(send(Some(&good)).await.0, 401);
}

#[tokio::test]
async fn tonic_service_is_guarded() {
    let Keys { keys, good, other } = keys();
    let (reporter, _) = tonic_health::server::health_reporter();
    let callers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&callers);
    let health = tonic_health::server::HealthService::from_health_reporter(reporter);
    let health = HealthServer::with_interceptor(health, move |request: tonic::Request<()>| {
        let key = VerifiedKey::from_extensions(request.extensions())
            .ok_or_else(|| Status::internal("no key"))?;
        seen.lock()
            .expect("no panic")
            .push(key.account_id().to_owned());
        Ok(request)
    });
    let (listener, address) = listener().await;
    let incoming = transport::server::TcpIncoming::from(listener);
    let server = transport::Server::builder()
        .layer(layer(&keys).await.grpc())
        .add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));

    let channel = transport::Endpoint::from_shared(format!("http://{address}"))
        .expect("a URL")
        .connect_lazy();
    let send = async |key: Option<&str>| {
        let bearer: Option<MetadataValue<_>> =
            key.map(|key| format!("Bearer {key}").parse().expect("a header"));
        let mut client = HealthClient::with_interceptor(
            channel.clone(),
            move |mut request: tonic::Request<()>| {
                if let Some(bearer) = &bearer {
                    request
                        .metadata_mut()
                        .insert("authorization", bearer.clone());
                }
                Ok(request)
            },
        );
        client
            .check(HealthCheckRequest::default())
            .await
            .map(drop)
            .map_err(|status| {
                let code = status
                    .metadata()
                    .get("tollkey-code")
                    .expect("our code")
                    .to_str()
                    .expect("a text")
                    .to_owned();
                (status.code(), status.message().to_owned(), code)
            })
    };
    let error = |grpc_code, message: &str, code: &str| {
        Err((grpc_code, message.to_owned(), code.to_owned()))
    };
    assert_eq!(send(Some(&good)).await, Ok(()));
    let missing = error(
        Code::Unauthenticated,
        "Send an API key in the Authorization header with the scheme Bearer.",
        "missing_credentials",
    );
    assert_eq!(send(None).await, missing);
    let scope = error(
        Code::PermissionDenied,
        "The key lacks a required scope. Use a key with all required scopes.",
        "insufficient_scope",
    );
    assert_eq!(send(Some(&other)).await, scope);
    keys.revoke(&good);
    let revoked = error(
        Code::Unauthenticated,
        "The API key is unknown or revoked. Check the key, or use another one.",
        "invalid_api_key",
    );
    assert_eq!(send(Some(&good)).await, revoked);
    keys.set_unreachable(true);
    let unavailable = error(
        Code::Unavailable,
        "The service is temporarily unavailable. Try again later.",
        "unavailable",
    );
    assert_eq!(send(Some(&other)).await, unavailable);
    assert_eq!(*callers.lock().expect("no panic"), ["acme"]);
}
