//! What Envoy's gRPC protocol adds to the other gateway protocols. `gateways.rs` has what all of them have in common.

use std::time::{Duration, Instant};

use actix_web::rt;
use envoy_types::pb::envoy::{
    config::core::v3::{HeaderValue, Pipe, address::Address},
    service::auth::v3::{
        CheckRequest, CheckResponse, attribute_context::HttpRequest,
        check_response::HttpResponse as Decision,
    },
};
use futures_util::stream;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use tollkey_core::{Family, IpList, Mode, Restrictions, Scope};
use tollkey_store::testing::Database;
use tonic::{Code, codegen::http::uri::PathAndQuery, transport::Endpoint};

use crate::{
    envoy::{check, client},
    support::{App, each_backend_with, eventually},
};

const GRPC: (&str, &str) = ("TOLLKEY_GRPC_LISTEN", "127.0.0.1:0");
const NONE: &[(&str, &str)] = &[("scope", "-")];

async fn key(app: &App, allowed_ips: Option<&str>) -> String {
    let restrictions = Restrictions {
        scopes: vec![Scope::LINKS_READ],
        allowed_ips: allowed_ips.and_then(|range| IpList::parse([range]).ok()),
        ..Restrictions::default()
    };
    app.insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
        .await
}

fn with_key(key: &str) -> Vec<(String, Vec<u8>)> {
    vec![("x-api-key".to_owned(), key.as_bytes().to_vec())]
}

fn request(key: &str, extensions: &[(&str, &str)]) -> CheckRequest {
    check("127.0.0.1", ("GET", "/x"), with_key(key), extensions)
}

/// The status, and the code of a problem.
fn outcome(response: CheckResponse) -> (i32, String) {
    match response.http_response.expect("a response") {
        Decision::OkResponse(_) => (200, String::new()),
        Decision::DeniedResponse(denied) => {
            let problem: Value = serde_json::from_str(&denied.body).expect("a problem");
            let code = problem["code"].as_str().expect("a code").to_owned();
            (denied.status.expect("a status").code, code)
        }
        Decision::ErrorResponse(_) => panic!("an error response"),
    }
}

async fn decide(app: &App, request: CheckRequest) -> (i32, String) {
    let mut client = client(app).await;
    outcome(
        client
            .check(request)
            .await
            .expect("a decision")
            .into_inner(),
    )
}

fn denied(status: i32, code: &str) -> (i32, String) {
    (status, code.to_owned())
}

fn allowed() -> (i32, String) {
    (200, String::new())
}

#[actix_web::test]
async fn identity_headers_replace_those_of_the_client() {
    each_backend_with(&[GRPC], async |app: &App| {
        let key = key(app, None).await;
        let headers = with_key(&key).into_iter().chain([
            ("x-auth-merchant-id".to_owned(), b"forged".to_vec()),
            ("x-request-id".to_owned(), b"from-envoy".to_vec()),
        ]);
        let check = check("127.0.0.1", ("GET", "/x"), headers, NONE);
        let response = client(app).await.check(check).await.expect("a decision");
        let response = response.into_inner();
        assert_eq!(response.status.expect("a status").code, Code::Ok as i32);
        let Some(Decision::OkResponse(ok)) = response.http_response else {
            panic!("not allowed")
        };
        let mut own = Vec::new();
        for option in &ok.headers {
            let header = option.header.as_ref().expect("a header");
            // Overwrites, also with an empty value.
            assert_eq!(
                (option.append_action, option.keep_empty_value),
                (2, true),
                "{header:?}"
            );
            if header.key != "x-auth-key-id" {
                own.push(format!("{}: {}", header.key, header.value));
            }
        }
        own.sort();
        assert_eq!(
            own,
            [
                "x-auth-account-id: acme",
                "x-auth-application-id: ",
                "x-auth-merchant-id: ",
                "x-auth-mode: live",
                "x-auth-scopes: links:read",
                "x-request-id: from-envoy",
            ]
        );
        assert!(ok.headers_to_remove.is_empty() && ok.response_headers_to_add.is_empty());
    })
    .await;
}

#[actix_web::test]
async fn route_without_requirements_denies_every_key() {
    each_backend_with(&[GRPC], async |app: &App| {
        let key = key(app, None).await;
        let invalid = denied(403, "invalid_requirement");
        for (extensions, expected) in [
            (&[][..], &invalid),
            (&[("scope", "")], &invalid),
            (&[("scope", "- links:read")], &invalid),
            (&[("scope", "links:read  links:read")], &invalid),
            (&[("scope", "-"), ("mode", "")], &invalid),
            (&[("Scope", "links:read")], &invalid),
            (&[("scope", "-"), ("other", "x")], &invalid),
            (
                &[("scope", "links:read links:write")],
                &denied(403, "insufficient_scope"),
            ),
            (
                &[("scope", "-"), ("mode", "test")],
                &denied(403, "wrong_mode"),
            ),
            (&[("scope", "-")], &allowed()),
            (&[("scope", "-"), ("mode", "live")], &allowed()),
            // Envoy merges the mode of the virtual host into a route whose scope was forgotten.
            (&[("mode", "live")], &invalid),
            (
                &[("scope", "links:read links:read"), ("mode", "live")],
                &allowed(),
            ),
        ] {
            let decision = decide(app, request(&key, extensions)).await;
            assert_eq!(decision, *expected, "{extensions:?}");
            let decision = decide(app, request("", extensions)).await;
            let missing = denied(401, "missing_credentials");
            assert_eq!(decision, missing, "{extensions:?}");
        }
    })
    .await;
}

/// The request that a check describes.
fn http_of(check: &mut CheckRequest) -> &mut HttpRequest {
    let attributes = check.attributes.as_mut().expect("attributes");
    let request = attributes.request.as_mut().expect("a request");
    request.http.as_mut().expect("an HTTP request")
}

#[actix_web::test]
async fn request_without_raw_headers_is_denied() {
    each_backend_with(&[GRPC], async |app: &App| {
        let key = key(app, None).await;
        let mut check = request(&key, NONE);
        let http = http_of(&mut check);
        http.header_map = None;
        http.headers.insert("x-api-key".to_owned(), key);
        assert_eq!(decide(app, check).await, denied(403, "invalid_requirement"));
    })
    .await;
}

/// The values of `:path`, the described path, and whether the request is allowed.
type PathCase<'a> = (&'a [&'a [u8]], &'a str, bool);

/// Envoy describes a byte that is not visible ASCII as `!`, and forwards it as it was sent.
#[actix_web::test]
async fn path_other_than_the_forwarded_one_is_rejected() {
    each_backend_with(&[GRPC], async |app: &App| {
        let key = key(app, None).await;
        let cases: [PathCase<'_>; 10] = [
            (&[b"/x!%C3%A9?y"], "/x!%C3%A9?y", true),
            (&[b"/x\xff"], "/x!", false),
            (&[b"/x"], "/y", false),
            (&[b"/x", b"/x"], "/x", false),
            (&[], "/x", false),
            (&[], "", false),
            (&[b""], "", false),
            (&["/\u{e9}".as_bytes()], "/\u{e9}", false),
            (&[b"/x y"], "/x y", false),
            (&[b"/x\x7f"], "/x\x7f", false),
        ];
        for (raw, described, is_allowed) in cases {
            let mut check = request(&key, NONE);
            let http = http_of(&mut check);
            http.path = described.to_owned();
            let headers = &mut http.header_map.as_mut().expect("raw headers").headers;
            headers.retain(|header| header.key != ":path");
            headers.extend(raw.iter().map(|path| HeaderValue {
                key: ":path".to_owned(),
                raw_value: path.to_vec(),
                ..HeaderValue::default()
            }));
            let expected = if is_allowed {
                allowed()
            } else {
                denied(400, "validation_failed")
            };
            let decision = decide(app, check).await;
            assert_eq!(decision, expected, "{raw:?} {described:?}");
        }
    })
    .await;
}

#[actix_web::test]
async fn header_names_are_read_in_any_case() {
    each_backend_with(&[GRPC], async |app: &App| {
        let key = key(app, None).await;
        let one = || ("X-API-Key".to_owned(), key.as_bytes().to_vec());
        let check = |headers: Vec<_>| check("127.0.0.1", ("GET", "/x"), headers, NONE);
        assert_eq!(decide(app, check(vec![one()])).await, allowed());
        let two = vec![one(), with_key(&key).remove(0)];
        let expected = denied(400, "multiple_credentials");
        assert_eq!(decide(app, check(two)).await, expected);
    })
    .await;
}

/// The last hop is the address that connected to Envoy. It counts only if Envoy is a trusted proxy.
#[actix_web::test]
async fn client_ip_is_relative_to_the_peer_of_envoy() {
    let proxies = |list| ("TOLLKEY_TRUSTED_PROXIES", list);
    for (trusted, source, forwarded, is_allowed) in [
        ("127.0.0.1/32", "203.0.113.9", None, true),
        ("127.0.0.1/32", "203.0.113.9", Some("198.51.100.1"), true),
        ("127.0.0.1/32", "::ffff:203.0.113.9", None, true),
        ("127.0.0.1/32", "198.51.100.1", Some("203.0.113.9"), false),
        (
            "127.0.0.1/32,10.0.0.0/8",
            "10.0.0.7",
            Some("203.0.113.9"),
            true,
        ),
        (
            "127.0.0.1/32,10.0.0.0/8",
            "10.0.0.7",
            Some("203.0.113.9, 10.0.0.7"),
            true,
        ),
        (
            "127.0.0.1/32,10.0.0.0/8",
            "10.0.0.7",
            Some("203.0.113.9, 198.51.100.1"),
            false,
        ),
        ("127.0.0.1/32,10.0.0.0/8", "10.0.0.7", None, false),
        ("127.0.0.1/32,10.0.0.0/8", "", Some("203.0.113.9"), false),
        ("none", "203.0.113.9", Some("203.0.113.9"), false),
    ] {
        each_backend_with(&[GRPC, proxies(trusted)], async |app: &App| {
            let key = key(app, Some("203.0.113.0/24")).await;
            let forwarded = forwarded.map(|hops| ("x-forwarded-for".to_owned(), hops.into()));
            let headers = with_key(&key).into_iter().chain(forwarded);
            let check = check(source, ("GET", "/x"), headers, NONE);
            let (status, code) = decide(app, check).await;
            assert_eq!(status == 200, is_allowed, "{trusted} {source}: {code}");
            assert!(is_allowed || code == "ip_not_allowed", "{code}");
        })
        .await;
    }
}

#[actix_web::test]
async fn client_ip_is_unknown_without_an_ip_connection() {
    each_backend_with(&[GRPC], async |app: &App| {
        let listed = key(app, Some("203.0.113.0/24")).await;
        let free = key(app, None).await;
        for (key, expected) in [(&listed, denied(403, "ip_not_allowed")), (&free, allowed())] {
            let forwarded = ("x-forwarded-for".to_owned(), b"203.0.113.9".to_vec());
            let headers = with_key(key).into_iter().chain([forwarded]);
            let mut check = check("", ("GET", "/x"), headers, NONE);
            let attributes = check.attributes.as_mut().expect("attributes");
            let source = attributes.source.as_mut().expect("a source");
            let address = source.address.as_mut().expect("an address");
            address.address = Some(Address::Pipe(Pipe::default()));
            assert_eq!(decide(app, check).await, expected);
        }
    })
    .await;
}

#[actix_web::test]
async fn malformed_grpc_request_gets_a_status() {
    each_backend_with(&[GRPC], async |app: &App| {
        let mut client = client(app).await;
        let status = client
            .check(CheckRequest::default())
            .await
            .expect_err("no decision");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "attributes.request.http is required; use the HTTP filter ext_authz"
        );
        let long = [("x-long".to_owned(), vec![b'a'; 200_000])];
        let long = check("127.0.0.1", ("GET", "/x"), long, NONE);
        let status = client.check(long).await.expect_err("no decision");
        assert_eq!(status.code(), Code::OutOfRange, "{status}");

        let address = app.running().grpc_address().expect("a listener");
        let channel = Endpoint::new(format!("http://{address}")).expect("a URL");
        let mut other = tonic::client::Grpc::new(channel.connect().await.expect("a connection"));
        other.ready().await.expect("a connection");
        let path = PathAndQuery::from_static("/envoy.service.auth.v3.Authorization/Other");
        let codec = tonic_prost::ProstCodec::<CheckRequest, CheckResponse>::default();
        let request = tonic::Request::new(CheckRequest::default());
        let status = other
            .unary(request, path, codec)
            .await
            .expect_err("no such operation");
        assert_eq!(status.code(), Code::Unimplemented);
    })
    .await;
}

/// Six connections have 512 requests whose bodies do not arrive.
#[actix_web::test]
async fn requests_beyond_the_limit_of_the_listener_are_rejected() {
    let app = App::start(Database::sqlite(), &[GRPC]).await;
    let address = app.running().grpc_address().expect("a listener");
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let channel = Endpoint::new(format!("http://{address}")).expect("a URL");
        let channel = channel.connect().await.expect("a connection");
        for _ in 0..100 {
            let mut client = tonic::client::Grpc::new(channel.clone());
            waiting.push(rt::spawn(async move {
                client.ready().await.expect("a connection");
                let path = PathAndQuery::from_static("/envoy.service.auth.v3.Authorization/Check");
                let codec = tonic_prost::ProstCodec::<CheckRequest, CheckResponse>::default();
                let endless = tonic::Request::new(stream::pending::<CheckRequest>());
                let _ = client.client_streaming(endless, path, codec).await;
            }));
        }
    }
    let client = client(&app).await;
    let code = async || match client.clone().check(request("", NONE)).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    };
    eventually("the limit is reached", async || {
        code().await == Code::ResourceExhausted
    })
    .await;
    for request in waiting {
        request.abort();
    }
    eventually("the requests have ended", async || code().await == Code::Ok).await;
    app.stop().await;
}

#[actix_web::test]
async fn idle_grpc_connection_is_closed_for_a_new_one() {
    each_backend_with(
        &[GRPC, ("TOLLKEY_MAX_CONNECTIONS", "1")],
        async |app: &App| {
            let mut client = client(app).await;
            // The calls of the test use connections of their own, which close after each response.
            for _ in 0..3 {
                let response = client.check(request("", NONE)).await.expect("a decision");
                assert_eq!(
                    outcome(response.into_inner()),
                    denied(401, "missing_credentials")
                );
                assert_eq!(app.get("/livez").await.status, 200);
            }
        },
    )
    .await;
}

#[actix_web::test]
async fn draining_server_responds_over_grpc_and_closes() {
    each_backend_with(&[GRPC], async |app: &App| {
        let key = key(app, None).await;
        let mut client = client(app).await;
        let mut check = async || {
            let response = client.check(request(&key, NONE)).await.expect("a decision");
            outcome(response.into_inner())
        };
        assert_eq!(check().await, allowed());
        app.running().begin_drain();
        for _ in 0..5 {
            assert_eq!(check().await, allowed());
        }
        eventually("the connections have ended", async || {
            app.running().open_connections() == 0
        })
        .await;
        assert_eq!(check().await, allowed());
    })
    .await;
}

/// Reads an HTTP/2 frame. Returns its type and its payload.
async fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("a frame");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.expect("a payload");
    (head[3], payload)
}

async fn read_frame_of(stream: &mut TcpStream, kind: u8) -> Vec<u8> {
    let frame = async {
        loop {
            let (received, payload) = read_frame(stream).await;
            if received == kind {
                return payload;
            }
        }
    };
    let frame = timeout(Duration::from_secs(20), frame).await;
    frame.expect("a frame of this type")
}

/// The client reads the body 1.5 s after the connection has begun to end, and acknowledges neither GOAWAY nor PING.
#[actix_web::test]
async fn closing_grpc_connection_waits_for_the_body_of_a_response() {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    let app = App::start(Database::sqlite(), &[GRPC]).await;
    let address = app.running().grpc_address().expect("a listener");
    // HPACK (RFC 7541): two fields of the static table, three with names of it, and one with a name of its own.
    let mut block = vec![0x83, 0x86];
    let fields: [(&[u8], &str); 4] = [
        (&[0x04], "/envoy.service.auth.v3.Authorization/Check"),
        (&[0x01], "tollkey"),
        (&[0x0f, 0x10], "application/grpc"),
        (&[0x00, 2, b't', b'e'], "trailers"),
    ];
    for (name, value) in fields {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).expect("a short value"));
        block.extend_from_slice(value.as_bytes());
    }
    // An empty `attributes.request.http`.
    let message = [0, 0, 0, 0, 6, 0x0a, 4, 0x22, 2, 0x12, 0];
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS: the client accepts no byte of a body.
    bytes.extend_from_slice(&[0, 0, 6, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 4, 0, 0, 0, 0]);
    let length = u8::try_from(block.len()).expect("a short block");
    bytes.extend_from_slice(&[0, 0, length, HEADERS, 4, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes.extend_from_slice(&[0, 0, 11, DATA, 1, 0, 0, 0, 1]);
    bytes.extend_from_slice(&message);
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(&bytes).await.expect("a request");
    read_frame_of(&mut stream, HEADERS).await;

    app.running().begin_drain();
    sleep(Duration::from_millis(1500)).await;
    let window_update = [0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0xff, 0xff];
    stream.write_all(&window_update).await.expect("an update");
    let body = read_frame_of(&mut stream, DATA).await;
    let body = String::from_utf8_lossy(&body);
    assert!(body.contains("invalid_requirement"), "{body}");
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    ended.expect("the end of the connection").expect("no reset");
    app.stop().await;
}

#[actix_web::test]
async fn silent_grpc_connection_is_closed_after_ten_seconds() {
    let app = App::start(Database::sqlite(), &[GRPC]).await;
    let address = app.running().grpc_address().expect("a listener");
    let mut silent = TcpStream::connect(address).await.expect("a connection");
    let begun = Instant::now();
    let mut received = Vec::new();
    let ended = timeout(Duration::from_secs(30), silent.read_to_end(&mut received)).await;
    ended.expect("an end").expect("no reset");
    assert!(
        begun.elapsed() > Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    app.stop().await;
}
