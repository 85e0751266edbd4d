//! The log lines, and their levels, of requests by clients and gateways.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    binary::{Finished, Server, Tollkey, merchant, service},
    support::SECRET,
};

/// A server with a JSON log. Its database is deleted with the value.
fn logging(filter: &str) -> Tollkey {
    Tollkey::development()
        .with("TOLLKEY_JWT_HS256_SECRET", SECRET)
        .with("TOLLKEY_LOG_FORMAT", "json")
        .with("TOLLKEY_LOG", filter)
}

/// The parsed lines of the log.
fn lines(finished: &Finished) -> Vec<Value> {
    let json = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    finished.stderr.lines().map(json).collect()
}

/// Sends bytes, then waits up to 3 s for the server to close the connection.
async fn send(server: &Server, bytes: &[u8]) {
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("a connection");
    // The server may close the connection before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = timeout(Duration::from_secs(3), stream.read_to_end(&mut Vec::new())).await;
}

#[actix_web::test]
async fn malformed_requests_are_logged_below_warn() {
    let oversized = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n",
        "x".repeat(400_000)
    );
    let unread = format!(
        "POST /api/v1/verify HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n{}",
        "x".repeat(300_000)
    );
    // The first bytes of a TLS client.
    let client_hello =
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03EXAMPLEEXAMPLE\x00\x02\x13\x01\r\n\r\n";
    let malformed: [&[u8]; 16] = [
        b"\x00\xff\xfe garbage \x80\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x",
        b"GET /livez",
        client_hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nbad\x00name: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /api/v1/verify HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        b"POST /api/v1/verify HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /api/v1/verify HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx",
        b"POST /api/v1/verify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/v1/verify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        oversized.as_bytes(),
        unread.as_bytes(),
    ];
    for filter in ["error", "info", "debug", "debug,hyper=warn"] {
        let tollkey = logging(filter);
        let server = tollkey.serve().await;
        for bytes in malformed {
            send(&server, bytes).await;
        }
        assert_eq!(server.get("/livez").await.status, 200);
        let finished = server.stop().await;
        for line in lines(&finished) {
            let level = line["level"].as_str().expect("a level");
            assert!(
                !matches!(level, "ERROR" | "WARN")
                    || line["message"]
                        .as_str()
                        .is_some_and(|text| text.contains("SEALING")),
                "{filter}: {line}"
            );
        }
        assert_eq!(
            finished.stderr.contains("connection ended early"),
            filter.starts_with("debug"),
            "{filter}"
        );
    }
    // An explicit filter for the HTTP library enables its lines.
    let tollkey = logging("info,actix_http=error");
    let server = tollkey.serve().await;
    send(&server, malformed[0]).await;
    let finished = server.stop().await;
    assert!(
        finished.stderr.contains("actix_http::h1::dispatcher"),
        "{finished}"
    );
}

#[actix_web::test]
async fn successful_probes_and_polls_are_logged_at_debug() {
    for filter in ["info", "debug"] {
        let tollkey = logging(filter);
        let server = tollkey.serve().await;
        for path in ["/livez", "/readyz", "/nothing"] {
            server.get(path).await;
        }
        let poll = |body| server.post("/sync", body).bearer(&service());
        assert_eq!(
            poll(json!({"subscriber": "0f".repeat(16)})).await.status,
            200
        );
        assert_eq!(poll(json!({})).await.status, 400);
        let tollkey = tollkey.with("TOLLKEY_LISTEN", &server.address.to_string());
        assert!(tollkey.run(&["healthcheck"]).await.success());
        let finished = server.stop().await;
        let requests = lines(&finished)
            .into_iter()
            .filter(|line| line["message"] == "request completed");
        let requests: Vec<_> = requests
            .map(|line| {
                (
                    line["route"].clone(),
                    line["status"].clone(),
                    line["level"].clone(),
                )
            })
            .collect();
        let quiet = |route: &str| {
            requests
                .iter()
                .filter(|(own, status, _)| own == route && *status == 200)
                .count()
        };
        let counts = ["/livez", "/readyz", "/api/v1/sync"].map(quiet);
        assert_eq!(
            counts,
            if filter == "info" {
                [0, 0, 0]
            } else {
                [1, 2, 1]
            },
            "{finished}"
        );
        for failed in [(json!("-"), 404), (json!("/api/v1/sync"), 400)] {
            assert!(
                requests.contains(&(failed.0.clone(), json!(failed.1), json!("INFO"))),
                "{failed:?}: {finished}"
            );
        }
    }
}

/// The second path has to be decoded, so the application routes it instead of the fast path for gateways.
#[actix_web::test]
async fn direct_and_routed_gateway_requests_have_the_same_log_lines() {
    let tollkey = logging("info").with("TOLLKEY_METRICS_LISTEN", "127.0.0.1:0");
    let server = tollkey.serve().await;
    let token = merchant("acme");
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await.text;
    for path in ["/authz/forward-auth", "/authz/forward%2Dauth"] {
        for (query, key) in [
            ("", key.as_str()),
            ("?mode=live", "nothing"),
            ("?mode=x", &key),
        ] {
            let request = server.get(&format!("{path}{query}")).bearer(key);
            request.header("x-request-id", "of-the-gateway").await;
        }
    }
    let finished = server.stop().await;
    let requests = lines(&finished).into_iter().filter_map(|mut line| {
        let is_of_gateway = line["request_id"] == "of-the-gateway";
        for field in ["timestamp", "duration_us"] {
            line.as_object_mut()?.remove(field);
        }
        (is_of_gateway && line["message"] == "request completed").then_some(line)
    });
    let requests: Vec<_> = requests.collect();
    assert_eq!(requests.len(), 6, "{finished}");
    assert_eq!(requests[..3], requests[3..]);
    assert_eq!(requests[0]["route"], "/api/v1/authz/forward-auth");
}

#[actix_web::test]
async fn gateway_warnings_have_the_request_id_and_plain_scopes() {
    let tollkey = logging("warn");
    let server = tollkey.serve().await;
    let token = merchant("acme");
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await.text;
    let hidden = format!("ck_live_{}", "example0".repeat(4));
    let long = "x".repeat(65);
    let random = "0123456789abcdef".repeat(3);
    for (number, scope) in [
        "nothing:read",
        "Nothing",
        "a%20b",
        hidden.as_str(),
        long.as_str(),
        random.as_str(),
        "a.b_c-d:9",
    ]
    .into_iter()
    .enumerate()
    {
        let reply = server
            .get(&format!("/authz/forward-auth?scope={scope}"))
            .bearer(&key);
        let reply = reply
            .header("x-request-id", format!("request-{number}"))
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "invalid_requirement")
        );
    }
    for _ in 0..50 {
        server
            .get("/authz/forward-auth?scope=again")
            .bearer(&key)
            .await;
    }
    let finished = server.stop().await;
    let warnings: Vec<Value> = lines(&finished)
        .into_iter()
        .filter(|line| line["rule"].is_string())
        .collect();
    let rules: Vec<_> = warnings[..7]
        .iter()
        .map(|line| line["rule"].as_str().expect("a rule"))
        .collect();
    let unnamed = "the requirements have an unknown scope";
    assert_eq!(
        rules,
        [
            "scope \"nothing:read\" is unknown",
            unnamed,
            unnamed,
            unnamed,
            unnamed,
            unnamed,
            "scope \"a.b_c-d:9\" is unknown"
        ]
    );
    for (number, line) in warnings[..7].iter().enumerate() {
        assert_eq!(line["request_id"], format!("request-{number}"));
    }
    assert!(warnings.len() <= 40, "{} lines", warnings.len());
    assert!(!finished.stderr.contains(&hidden[8..]));
}

#[actix_web::test]
async fn invalid_forwarded_address_is_logged_once_without_its_value() {
    let tollkey = logging("warn");
    let server = tollkey.serve().await;
    let token = merchant("acme");
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await.text;
    for _ in 0..20 {
        let reply = server
            .get("/authz/forward-auth")
            .bearer(&key)
            .header("x-forwarded-for", "hop-of-a-proxy")
            .await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "ip_not_allowed")
        );
    }
    let finished = server.stop().await;
    let about = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("X-Forwarded-For"))
    };
    let warnings: Vec<Value> = lines(&finished).into_iter().filter(about).collect();
    assert_eq!(warnings.len(), 1, "{finished}");
    assert!(
        warnings[0]["request_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("req_")),
        "{finished}"
    );
    assert!(!finished.stderr.contains("hop-of-a-proxy"));
}

/// Sends a request whose body does not arrive. Returns the status of the response.
#[cfg(feature = "grpc")]
async fn request_without_an_end(listen: std::net::SocketAddr) -> tonic::Status {
    use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
    use tonic::codegen::http::uri::PathAndQuery;

    let channel = tonic::transport::Endpoint::new(format!("http://{listen}")).expect("a URL");
    let mut client = tonic::client::Grpc::new(channel.connect().await.expect("a connection"));
    client.ready().await.expect("a connection");
    let path = PathAndQuery::from_static("/envoy.service.auth.v3.Authorization/Check");
    let codec = tonic_prost::ProstCodec::<CheckRequest, CheckResponse>::default();
    let endless = tonic::Request::new(futures_util::stream::pending::<CheckRequest>());
    client
        .client_streaming(endless, path, codec)
        .await
        .expect_err("no decision")
}

/// No level of any library shows a header that Envoy sends, and no bytes cause a warning or an error.
#[cfg(feature = "grpc")]
#[actix_web::test]
async fn grpc_requests_are_logged_without_their_headers() {
    use envoy_types::pb::envoy::{
        config::core::v3::{HeaderMap, HeaderValue},
        service::auth::v3::{
            AttributeContext, CheckRequest,
            attribute_context::{HttpRequest, Request},
            authorization_client::AuthorizationClient,
        },
    };

    let listen = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    let tollkey = logging("trace").with("TOLLKEY_GRPC_LISTEN", &listen.to_string());
    let server = tollkey.serve().await;
    for bytes in [
        &b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03EXAMPLEEXAMPLE\x00\x02\x13\x01\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x01\x63\x00",
    ] {
        let mut stream = TcpStream::connect(listen).await.expect("a connection");
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = timeout(Duration::from_secs(3), stream.read_to_end(&mut Vec::new())).await;
    }
    let canary = format!("ck_live_{}", "Canary00".repeat(4));
    let header = HeaderValue {
        key: "x-api-key".to_owned(),
        raw_value: canary.clone().into_bytes(),
        ..HeaderValue::default()
    };
    let path = format!("/x?key={canary}");
    let raw_path = HeaderValue {
        key: ":path".to_owned(),
        raw_value: path.clone().into_bytes(),
        ..HeaderValue::default()
    };
    let http = HttpRequest {
        method: "GET".to_owned(),
        path,
        header_map: Some(HeaderMap {
            headers: vec![raw_path, header],
        }),
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        request: Some(Request {
            http: Some(http),
            ..Request::default()
        }),
        context_extensions: [("scope".to_owned(), "-".to_owned())].into(),
        ..AttributeContext::default()
    };
    let mut client = AuthorizationClient::connect(format!("http://{listen}"))
        .await
        .expect("a connection");
    let check = CheckRequest {
        attributes: Some(attributes),
    };
    client.check(check).await.expect("a decision");
    drop(client);
    let status = request_without_an_end(listen).await;
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    let finished = server.stop().await;
    assert!(!finished.stderr.contains("Canary00"), "{finished}");
    let failed = lines(&finished).into_iter().find(|line| {
        line["message"] == "gRPC request failed"
            && line["route"] == "/envoy.service.auth.v3.Authorization/Check"
            && line["status"] == 503
            && line["reason"] == "the request took too long"
    });
    assert!(failed.is_some(), "{finished}");
    let completed = lines(&finished).into_iter().find(|line| {
        line["route"] == "/envoy.service.auth.v3.Authorization/Check" && line["status"] == 401
    });
    assert!(completed.is_some(), "{finished}");
    for line in lines(&finished) {
        let is_ours = line["message"]
            .as_str()
            .is_some_and(|text| text.contains("SEALING"));
        let level = line["level"].as_str().expect("a level");
        assert!(is_ours || !matches!(level, "ERROR" | "WARN"), "{line}");
    }
}
