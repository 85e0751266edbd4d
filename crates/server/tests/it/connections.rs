//! Clients that read or write slowly, or not at all; on raw sockets.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tollkey_core::{Family, Mode};
use tollkey_server::{
    assembly,
    config::Settings,
    server::{self, RunningServer},
};
use tollkey_service::Random;
use tollkey_store::testing::Database;
use tollkey_verifier::testing::ManualClock;

use crate::support::{
    App, Call, each_backend,
    raw::{LIVEZ, TIMEOUT, connect, is_closed, read_head, read_response, send},
    settings,
};

const BUNDLE: &str = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n";

async fn start(settings: &Settings) -> RunningServer {
    let random = Random::new(StdRng::seed_from_u64(1));
    let opened = assembly::open(settings, Arc::new(ManualClock::default()), random)
        .await
        .expect("the server opens");
    server::start(settings, opened.state, None).expect("the server starts")
}

async fn connect_narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address).await.expect("a connection")
}

/// Whether the server responds to a request on this connection.
async fn is_served(stream: &mut TcpStream) -> bool {
    stream.write_all(LIVEZ.as_bytes()).await.is_ok()
        && read_response(stream)
            .await
            .is_ok_and(|(head, body)| head.starts_with("http/1.1 200") && body == "ok")
}

#[actix_web::test]
async fn unread_response_is_closed_after_the_write_deadline() {
    let database = Database::sqlite();
    let settings = Settings {
        write_timeout: Duration::from_millis(400),
        ..settings(database.url(), &[])
    };
    let running = start(&settings).await;
    let mut unread = connect_narrow(running.address()).await;
    send(&mut unread, BUNDLE).await;
    let deadline = Instant::now() + TIMEOUT;
    // The server has closed the connection when writing to it fails.
    while unread.write_all(b"x").await.is_ok() {
        assert!(Instant::now() < deadline, "the connection is still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut idle = connect(running.address()).await;
    assert!(is_served(&mut idle).await);
    tokio::time::sleep(Duration::from_millis(800)).await; // no response is pending, so no deadline runs
    assert!(
        is_served(&mut idle).await,
        "an idle connection has no write deadline"
    );
    running.stop().await;
}

#[actix_web::test]
async fn slow_reader_gets_its_whole_response() {
    let database = Database::sqlite();
    let timeout_of_writes = Duration::from_millis(800);
    let settings = Settings {
        write_timeout: timeout_of_writes,
        ..settings(database.url(), &[])
    };
    let running = start(&settings).await;
    let mut slow = connect_narrow(running.address()).await;
    send(&mut slow, BUNDLE).await;
    let head = read_head(&mut slow).await.unwrap();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap();
    let (began, mut read, mut piece) = (Instant::now(), 0, vec![0; length / 40]);
    while read < length {
        // The time per piece is well below the deadline, that of the response well above it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let missing = piece.len().min(length - read);
        slow.read_exact(&mut piece[..missing])
            .await
            .expect("the rest of the response");
        read += missing;
    }
    assert!(began.elapsed() > 3 * timeout_of_writes);
    assert!(is_served(&mut slow).await);
    running.stop().await;
}

#[actix_web::test]
async fn idle_connection_is_closed_first_over_the_limit() {
    let database = Database::sqlite();
    let running = start(&settings(
        database.url(),
        &[("TOLLKEY_MAX_CONNECTIONS", "3")],
    ))
    .await;
    let mut busy = [
        connect_narrow(running.address()).await,
        connect_narrow(running.address()).await,
    ];
    let mut heads = Vec::new();
    for stream in &mut busy {
        send(stream, BUNDLE).await;
        heads.push(read_head(stream).await.unwrap());
    }
    let mut idle = connect(running.address()).await;
    assert!(is_served(&mut idle).await);
    let mut new = connect(running.address()).await;
    assert!(is_served(&mut new).await, "the new connection is served");
    assert!(is_closed(&mut idle).await, "the idle connection is closed");
    for (stream, head) in busy.iter_mut().zip(&heads) {
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap();
        let read = timeout(TIMEOUT, stream.read_exact(&mut vec![0; length]))
            .await
            .expect("a body in time");
        assert_eq!(read.expect("a response in flight is not cut off"), length);
    }
    running.stop().await;
}

#[actix_web::test]
async fn connection_over_the_limit_waits() {
    let database = Database::sqlite();
    let running = start(&settings(
        database.url(),
        &[("TOLLKEY_MAX_CONNECTIONS", "1")],
    ))
    .await;
    let mut busy = connect_narrow(running.address()).await;
    send(&mut busy, BUNDLE).await;
    read_head(&mut busy).await.unwrap();
    let mut rejected = connect(running.address()).await;
    assert!(
        is_closed(&mut rejected).await,
        "no other connection is idle"
    );
    let mut waiting = connect(running.address()).await;
    send(&mut waiting, LIVEZ).await;
    drop(busy);
    let (head, _) = read_response(&mut waiting).await.unwrap();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    running.stop().await;
}

#[actix_web::test]
async fn metrics_listener_serves_probes_at_the_limit() {
    let database = Database::sqlite();
    let limits = [
        ("TOLLKEY_MAX_CONNECTIONS", "1"),
        ("TOLLKEY_METRICS_LISTEN", "127.0.0.1:0"),
    ];
    let running = start(&settings(database.url(), &limits)).await;
    let mut busy = connect_narrow(running.address()).await;
    send(&mut busy, BUNDLE).await;
    read_head(&mut busy).await.unwrap();
    let mut rejected = connect(running.address()).await;
    assert!(
        is_closed(&mut rejected).await,
        "the listener is at its limit"
    );
    let metrics = running.metrics_address().unwrap();
    let call = |path: &str| Call::new(metrics, "GET", path);
    for path in ["/livez", "/readyz"] {
        let reply = call(path).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "ok"), "{path}");
    }
    running
        .state()
        .draining
        .store(true, std::sync::atomic::Ordering::Release);
    let draining = call("/readyz").await;
    assert_eq!(
        (draining.status, draining.code().as_str()),
        (503, "unavailable")
    );
    assert_eq!(
        call("/api/v1/whoami").await.status,
        404,
        "nothing else is served there"
    );
    running.stop().await;
}

#[actix_web::test]
async fn stopping_server_closes_idle_connections() {
    let database = Database::sqlite();
    let running = start(&settings(database.url(), &[])).await;
    let mut idle = connect(running.address()).await;
    assert!(is_served(&mut idle).await);
    let mut fresh = connect(running.address()).await;
    let began = Instant::now();
    running.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "idle connections do not hold up the stop"
    );
    assert!(is_closed(&mut idle).await && is_closed(&mut fresh).await);
}

/// Routes that read no body: of a gateway, unknown, of another method, and one whose caller is rejected.
const BODYLESS_ROUTES: [&str; 4] = [
    "/api/v1/authz/forward-auth",
    "/nothing",
    "/livez",
    "/api/v1/applications",
];

#[actix_web::test]
async fn small_unread_body_keeps_the_connection() {
    each_backend(async |app: &App| {
        for path in BODYLESS_ROUTES {
            let mut stream = connect(app.running().address()).await;
            for framing in ["content-length: 60000", "transfer-encoding: chunked"] {
                let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
                send(&mut stream, head).await;
                let body = "x".repeat(60_000);
                let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                send(
                    &mut stream,
                    if framing.starts_with("content") {
                        &body
                    } else {
                        &chunked
                    },
                )
                .await;
                let (head, _) = read_response(&mut stream).await.unwrap();
                assert!(
                    head.starts_with("http/1.1 4") && !head.contains("connection: close"),
                    "{path}: {head}"
                );
            }
            assert!(is_served(&mut stream).await, "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn large_unread_body_closes_the_connection() {
    each_backend(async |app: &App| {
        for path in BODYLESS_ROUTES {
            let mut stream = connect(app.running().address()).await;
            send(
                &mut stream,
                format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"),
            )
            .await;
            let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
            let (mut reader, mut writer) = stream.into_split();
            let flood = async {
                let mut sent = 0;
                while writer.write_all(chunk.as_bytes()).await.is_ok() {
                    sent += chunk.len();
                }
                sent
            };
            let mut reply = Vec::new();
            let (sent, _) = tokio::join!(timeout(TIMEOUT, flood), reader.read_to_end(&mut reply));
            let sent = sent.unwrap_or_else(|_| panic!("{path} reads an endless body"));
            // The kernels' socket buffers add to what the server reads.
            assert!(sent < 32 * 1024 * 1024, "{path} read {sent} bytes");
            let reply = String::from_utf8_lossy(&reply).to_ascii_lowercase();
            assert!(
                reply.starts_with("http/1.1 4") && reply.contains("connection: close"),
                "{path}: {reply}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn slow_unread_body_closes_the_connection() {
    each_backend(async |app: &App| {
        for framing in ["content-length: 10", "transfer-encoding: chunked"] {
            let mut stream = connect(app.running().address()).await;
            send(
                &mut stream,
                format!("POST /nothing HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n"),
            )
            .await;
            let (head, _) = read_response(&mut stream).await.unwrap();
            assert!(
                head.starts_with("http/1.1 404") && head.contains("connection: close"),
                "{head}"
            );
            assert!(is_closed(&mut stream).await, "{framing}");
        }
    })
    .await;
}

#[actix_web::test]
async fn body_over_the_limit_of_a_handler_closes_the_connection() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let mut stream = connect(app.running().address()).await;
        let body = "x".repeat(70_000);
        let head = format!(
            "POST /api/v1/applications HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n",
            body.len()
        );
        send(&mut stream, head).await;
        let (head, _) = read_response(&mut stream).await.unwrap();
        assert!(head.starts_with("http/1.1 413") && head.contains("connection: close"), "{head}");
        assert!(is_closed(&mut stream).await);
    })
    .await;
}

/// The head of a request with `Expect: 100-continue`.
fn expecting(path: &str, credential: Option<&str>, length: usize) -> String {
    let credential = credential
        .map(|text| format!("authorization: Bearer {text}\r\n"))
        .unwrap_or_default();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\n{credential}content-type: application/json\r\ncontent-length: {length}\r\n\
         expect: 100-continue\r\n\r\n"
    )
}

#[actix_web::test]
async fn rejected_request_is_not_told_to_continue() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let unknown = app.generate_key(Family::Secret, Mode::Live);
        let unknown = unknown.expose();
        let verify = "/api/v1/verify";
        for (path, credential, length, status) in [
            ("/nothing", None, 10, 404),
            ("/livez", None, 10, 405),
            (verify, None, 10, 401),
            (verify, Some("a.b.c"), 10, 401),
            // A well-formed key, which only the database can reject.
            (verify, Some(unknown), 10, 401),
            (verify, Some(token.as_str()), 10, 403),
            ("/api/v1/applications", Some(token.as_str()), 70_000, 413),
        ] {
            let mut stream = connect(app.running().address()).await;
            send(&mut stream, expecting(path, credential, length)).await;
            let (head, _) = read_response(&mut stream).await.unwrap();
            assert!(
                head.starts_with(&format!("http/1.1 {status}")),
                "{path}: {head}"
            );
            assert!(
                head.contains("connection: close"),
                "the client may still send the body: {head}"
            );
            assert!(is_closed(&mut stream).await, "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn request_whose_body_is_read_is_told_to_continue() {
    each_backend(async |app: &App| {
        let key = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let mut stream = connect(app.running().address()).await;
        for (credential, path, body, status) in [
            (key.clone(), "/api/v1/verify", json!({"key": key}), 200),
            (
                app.management_token("acme"),
                "/api/v1/applications",
                json!({"name": "Web Store"}),
                201,
            ),
            (
                app.management_token("acme"),
                "/api/v1/applications",
                json!({"name": 5}),
                400,
            ),
        ] {
            let body = body.to_string();
            send(&mut stream, expecting(path, Some(&credential), body.len())).await;
            assert_eq!(
                read_head(&mut stream).await.unwrap(),
                "http/1.1 100 continue\r\n\r\n",
                "{path}"
            );
            send(&mut stream, &body).await;
            let (head, _) = read_response(&mut stream).await.unwrap();
            assert!(
                head.starts_with(&format!("http/1.1 {status}"))
                    && !head.contains("connection: close"),
                "{head}"
            );
        }
        // A client that does not wait gets its response as well.
        let body = json!({"key": key}).to_string();
        send(
            &mut stream,
            expecting("/api/v1/verify", Some(&key), body.len()) + body.as_str(),
        )
        .await;
        let mut head = read_head(&mut stream).await.unwrap();
        if head.starts_with("http/1.1 100") {
            head = read_head(&mut stream).await.unwrap();
        }
        assert!(head.starts_with("http/1.1 200"), "{head}");
    })
    .await;
}

#[actix_web::test]
async fn request_after_connection_close_is_not_processed() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let body = json!({"name": "Web Store"}).to_string();
        let create = format!(
            "POST /api/v1/applications HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let closing = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned();
        // The server closes the connection, because it cannot know whether the client will send this body.
        let unread = expecting("/api/v1/applications", None, 2) + "{}";
        for first in [closing, unread] {
            let mut stream = connect(app.running().address()).await;
            send(&mut stream, format!("{first}{create}{create}")).await;
            let mut reply = Vec::new();
            timeout(TIMEOUT, stream.read_to_end(&mut reply)).await.expect("the server closes").expect("no reset");
            let reply = String::from_utf8_lossy(&reply).to_ascii_lowercase();
            assert_eq!(reply.matches("http/1.1 ").count(), 1, "{reply}");
            assert!(reply.contains("connection: close"), "{reply}");
        }
        let list = app.get("/api/v1/applications").bearer(&token).await;
        assert!(!list.body.contains("Web Store"), "{}", list.body);
    })
    .await;
}

#[actix_web::test]
async fn many_pipelined_requests_get_their_responses() {
    each_backend(async |app: &App| {
        let (count, token) = (5000, app.management_token("acme"));
        let slow = format!(
            "GET /api/v1/applications HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        let (mut reader, mut writer) = connect(app.running().address()).await.into_split();
        let row = format!("{slow}{}", LIVEZ.repeat(499));
        let write = async {
            for _ in 0..count / 500 {
                writer
                    .write_all(row.as_bytes())
                    .await
                    .expect("an open connection");
            }
        };
        let read = async {
            let (mut seen, mut rest, mut piece) = (0, Vec::new(), vec![0; 64 * 1024]);
            while seen < count {
                let read = reader.read(&mut piece).await.expect("an open connection");
                assert!(read > 0, "closed after {seen} responses");
                rest.extend_from_slice(&piece[..read]);
                let text = String::from_utf8_lossy(&rest).into_owned();
                seen += text.matches("HTTP/1.1 200").count();
                // A status line may be cut off at the end.
                rest.drain(..rest.len().saturating_sub("HTTP/1.1 20".len()));
            }
            seen
        };
        let (seen, ()) = timeout(TIMEOUT, async { tokio::join!(read, write) })
            .await
            .expect("all responses");
        assert_eq!(seen, count);
    })
    .await;
}

#[actix_web::test]
async fn list_with_large_metadata_is_paged_by_bytes() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let metadata = json!({"text": "m".repeat(4000)});
        let mut created = BTreeSet::new();
        for _ in 0..150 {
            created.insert(
                app.commerce_key(&token, json!({"metadata": metadata.clone()}))
                    .await
                    .id,
            );
        }
        let (mut seen, mut pages) = (BTreeSet::new(), 0);
        let mut next = Some("/api/v1/api-keys".to_owned());
        while let Some(path) = next {
            let reply = app.get(&path).bearer(&token).await;
            assert!(
                reply.status == 200 && reply.body.len() < 512 * 1024,
                "{} bytes",
                reply.body.len()
            );
            for key in reply.json().as_array().unwrap() {
                assert!(
                    seen.insert(key["key_id"].as_str().unwrap().to_owned()),
                    "a key is listed twice"
                );
            }
            pages += 1;
            let link = reply.header("link").map(str::to_owned);
            next = link.map(|link| link.split(['<', '>']).nth(1).expect("a URL").to_owned());
        }
        assert_eq!(seen, created);
        assert!(pages > 1, "all keys are on one page");
    })
    .await;
}
