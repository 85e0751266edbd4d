//! A stand-in for Envoy with `ext_authz` over gRPC: it sends each request that it receives to the gRPC listener, and
//! responds with what Envoy would send on, or with the denial. `../system/gateway_examples.rs` has the real Envoy.

use std::{
    net::{SocketAddr, TcpListener},
    sync::LazyLock,
    thread,
};

use actix_web::{
    App as Application, HttpRequest, HttpResponse, HttpServer, http::StatusCode, rt, web,
};
use envoy_types::pb::envoy::{
    config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress, address},
    service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse,
        attribute_context::{HttpRequest as HttpAttributes, Peer, Request},
        authorization_client::AuthorizationClient,
        check_response::HttpResponse as Decision,
    },
};
use tonic::transport::Channel;

use crate::support::{App, Call};

/// The gRPC listener of Tollkey, and the `context_extensions` of the route.
const LISTENER: &str = "x-test-listener";
const EXTENSIONS: &str = "x-test-extensions";

/// Runs in a thread of its own for as long as the process, because each test has its own runtime.
static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(|| {
        rt::System::new().block_on(async {
            let app = || Application::new().default_service(web::to(forward));
            let server = HttpServer::new(app).workers(1).disable_signals();
            server.listen(listener).expect("a server").run().await
        })
    });
    address
});

/// A request through the stand-in, for a route with requirements such as `scope=links:read;mode=live`.
pub fn call(app: &App, required: &str, method: &str, uri: &str) -> Call {
    // Over gRPC, `scope` is required.
    let required = match required {
        "" => "scope=-".to_owned(),
        _ if required.contains("scope") => required.to_owned(),
        _ => format!("scope=-;{required}"),
    };
    let listener = app.running().grpc_address().expect("a gRPC listener");
    Call::to(*ADDRESS, method, uri)
        .header(LISTENER, listener.to_string())
        .header(EXTENSIONS, required)
}

pub async fn client(app: &App) -> AuthorizationClient<Channel> {
    let listener = app.running().grpc_address().expect("a gRPC listener");
    connect(&listener.to_string()).await
}

async fn connect(listener: &str) -> AuthorizationClient<Channel> {
    AuthorizationClient::connect(format!("http://{listener}"))
        .await
        .expect("a connection")
}

/// A request of a client at this address, as Envoy describes it with `encode_raw_headers: true`.
pub fn check(
    source: &str,
    (method, path): (&str, &str),
    headers: impl IntoIterator<Item = (String, Vec<u8>)>,
    extensions: &[(&str, &str)],
) -> CheckRequest {
    let pseudo_headers = [(":method", method), (":path", path)]
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let headers = pseudo_headers.into_iter().chain(headers);
    let headers = headers.map(|(key, raw_value)| HeaderValue {
        key,
        raw_value,
        ..HeaderValue::default()
    });
    let http = HttpAttributes {
        method: method.to_owned(),
        path: path.to_owned(),
        header_map: Some(HeaderMap {
            headers: headers.collect(),
        }),
        ..HttpAttributes::default()
    };
    let address = address::Address::SocketAddress(SocketAddress {
        address: source.to_owned(),
        ..SocketAddress::default()
    });
    let extensions = extensions
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                address: Some(Address {
                    address: Some(address),
                }),
                ..Peer::default()
            }),
            request: Some(Request {
                http: Some(http),
                ..Request::default()
            }),
            context_extensions: extensions.collect(),
            ..AttributeContext::default()
        }),
    }
}

async fn forward(request: HttpRequest) -> HttpResponse {
    let text = |name: &str| {
        let value = request.headers().get(name).expect("a header of the test");
        value.to_str().expect("a text").to_owned()
    };
    let headers = request
        .headers()
        .iter()
        .filter(|(name, _)| ![LISTENER, EXTENSIONS].contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let (listener, required) = (text(LISTENER), text(EXTENSIONS));
    let mut extensions: Vec<(String, String)> = Vec::new();
    for pair in required.split(';') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match extensions.iter_mut().find(|(own, _)| own == name) {
            Some((_, values)) => values.extend([" ", value]),
            None => extensions.push((name.to_owned(), value.to_owned())),
        }
    }
    let extensions: Vec<_> = extensions
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let peer = request.peer_addr().expect("the address of the client");
    let uri = request.uri().to_string();
    let target = (request.method().as_str(), uri.as_str());
    let check = check(&peer.ip().to_string(), target, headers, &extensions);
    let mut client = connect(&listener).await;
    response(client.check(check).await.expect("a decision").into_inner())
}

/// The response that a client or the API sees the effect of.
fn response(decision: CheckResponse) -> HttpResponse {
    let is_allowed = decision.status.expect("a status").code == 0;
    let (status, headers, body) = match decision.http_response.expect("a response") {
        Decision::OkResponse(ok) => (200, ok.headers, String::new()),
        Decision::DeniedResponse(denied) => (
            denied.status.expect("a status").code,
            denied.headers,
            denied.body,
        ),
        Decision::ErrorResponse(_) => panic!("an error response"),
    };
    assert_eq!(is_allowed, status == 200);
    let status = u16::try_from(status).expect("a status");
    let mut response = HttpResponse::build(StatusCode::from_u16(status).expect("a status"));
    for header in headers {
        let header = header.header.expect("a header");
        response.append_header((header.key, header.value));
    }
    if body.is_empty() {
        response.finish()
    } else {
        response.body(body)
    }
}
