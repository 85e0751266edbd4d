//! Several listeners, among them Unix sockets. `../system/unix_sockets.rs` has the tests of their files.

use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use tollkey_core::{Family, IpList, Mode, Restrictions, Scope};
use tollkey_server::listen_address::ListenAddress;

use crate::support::{
    self, App, Call, Reply, eventually,
    http::unix_client,
    raw::{LIVEZ, TIMEOUT, connect, is_closed, read_response, send},
};

struct Socket {
    _directory: TempDir,
    path: PathBuf,
}

impl Socket {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("tollkey.sock");
        Self {
            _directory: directory,
            path,
        }
    }

    /// A request over the socket.
    fn call(&self, app: &App, method: &str, path: &str) -> Call {
        Call {
            client: unix_client(&self.path),
            ..app.call(method, path)
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.expect("a connection")
    }
}

/// Runs a test on each backend with a TCP listener, a Unix socket and these settings.
async fn each_backend_with(settings: &[(&str, &str)], test: impl AsyncFn(&App, &Socket)) {
    let socket = Socket::new();
    let listen = format!("127.0.0.1:0,unix:{}", socket.path.display());
    let mut all = vec![("TOLLKEY_LISTEN", listen.as_str())];
    all.extend(settings);
    support::each_backend_with(&all, async |app: &App| test(app, &socket).await).await;
    assert!(!socket.path.exists(), "the socket is removed on shutdown");
}

async fn bound_key(app: &App, network: &str) -> String {
    let restrictions = Restrictions {
        scopes: vec![Scope::COMMERCE],
        allowed_ips: IpList::parse([network]).ok(),
        ..Restrictions::default()
    };
    app.insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
        .await
}

fn outcome(reply: &Reply) -> (u16, String) {
    let code = if reply.status == 200 {
        String::new()
    } else {
        reply.code()
    };
    (reply.status, code)
}

/// The gateway routes. The last one has an escape, so it takes the way through the router.
const ROUTES: [&str; 4] = [
    "/authz/forward-auth",
    "/authz/auth-request",
    "/authz/ext-authz/-/x",
    "/authz/forward%2Dauth",
];

async fn from(socket: &Socket, app: &App, route: &str, key: &str, hops: &[&str]) -> (u16, String) {
    let call = socket
        .call(app, "GET", route)
        .bearer(key)
        .header("x-forwarded-method", "GET")
        .header("x-forwarded-uri", "/x")
        .header("x-original-method", "GET")
        .header("x-original-uri", "/x");
    let reply = hops
        .iter()
        .fold(call, |call, hop| call.header("x-forwarded-for", hop))
        .await;
    outcome(&reply)
}

#[actix_web::test]
async fn client_ip_over_a_unix_socket_is_the_forwarded_one() {
    let allowed = (200, String::new());
    let denied = (403, "ip_not_allowed".to_owned());
    for trusted in ["127.0.0.0/8,10.0.0.0/8", "none"] {
        let settings = [("TOLLKEY_TRUSTED_PROXIES", trusted)];
        each_backend_with(&settings, async |app: &App, socket: &Socket| {
            let key = bound_key(app, "203.0.113.0/24").await;
            for route in ROUTES {
                for (hops, expected) in [
                    (&["203.0.113.9"][..], &allowed),
                    (&["198.51.100.1, 203.0.113.9"], &allowed),
                    (&["198.51.100.1", "203.0.113.9"], &allowed),
                    (&["203.0.113.9, 198.51.100.1"], &denied),
                    // The client IP is unknown.
                    (&[], &denied),
                    (&[""], &denied),
                    (&["unknown"], &denied),
                    (&["203.0.113.9, unknown"], &denied),
                ] {
                    let outcome = from(socket, app, route, &key, hops).await;
                    assert_eq!(outcome, *expected, "{trusted} {route} {hops:?}");
                }
                // A hop that is itself a trusted proxy is skipped.
                let expected = if trusted == "none" { &denied } else { &allowed };
                let hops = ["203.0.113.9, 10.0.0.7"];
                let outcome = from(socket, app, route, &key, &hops).await;
                assert_eq!(outcome, *expected, "{trusted} {route}");
            }
        })
        .await;
    }
}

#[actix_web::test]
async fn key_without_an_ip_allowlist_works_over_a_unix_socket() {
    each_backend_with(&[], async |app: &App, socket: &Socket| {
        let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        for route in ROUTES {
            let outcome = from(socket, app, route, &key, &[]).await;
            assert_eq!(outcome, (200, String::new()), "{route}");
        }
        // No peer of a Unix socket is in a range, not even that of this machine.
        let here = bound_key(app, "127.0.0.0/8").await;
        for route in ROUTES {
            let (status, code) = from(socket, app, route, &here, &[]).await;
            assert_eq!((status, code.as_str()), (403, "ip_not_allowed"), "{route}");
        }
    })
    .await;
}

#[actix_web::test]
async fn audit_log_has_the_forwarded_ip_of_a_unix_socket() {
    each_backend_with(&[], async |app: &App, socket: &Socket| {
        let token = app.management_token("acme");
        for (name, hop, expected) in [
            ("Forwarded", Some("203.0.113.9"), json!("203.0.113.9")),
            ("Unknown", None, json!(null)),
        ] {
            let call = socket
                .call(app, "POST", "/applications")
                .bearer(&token)
                .json(json!({"name": name}));
            let call = match hop {
                Some(hop) => call.header("x-forwarded-for", hop),
                None => call,
            };
            let created = call.await;
            assert_eq!(created.status, 201, "{created}");
            let log = app.get("/audit-log?limit=1").bearer(&token).await;
            assert_eq!(log.status, 200, "{log}");
            assert_eq!(log.json()[0]["ip"], expected, "{log}");
        }
    })
    .await;
}

#[actix_web::test]
async fn addresses_of_all_listeners_are_known() {
    each_backend_with(&[], async |app: &App, socket: &Socket| {
        let addresses = app.running().addresses();
        let [ListenAddress::Tcp(tcp), ListenAddress::Unix(path)] = addresses else {
            panic!("a TCP address and a path: {addresses:?}");
        };
        assert_ne!(tcp.port(), 0);
        assert_eq!(*path, socket.path);
        assert_eq!(app.running().address(), *tcp);
        assert_eq!(app.get("/livez").await.status, 200);
        assert_eq!(socket.call(app, "GET", "/livez").await.status, 200);
    })
    .await;
}

#[actix_web::test]
async fn connection_limit_counts_all_listeners_together() {
    let settings = [("TOLLKEY_MAX_CONNECTIONS", "2")];
    each_backend_with(&settings, async |app: &App, socket: &Socket| {
        let mut oldest = connect(app.running().address()).await;
        send(&mut oldest, LIVEZ).await;
        read_response(&mut oldest).await.expect("a response");
        let mut unix = Vec::new();
        for _ in 0..2 {
            let mut stream = socket.connect().await;
            stream.write_all(LIVEZ.as_bytes()).await.unwrap();
            let mut head = [0; 12];
            timeout(TIMEOUT, stream.read_exact(&mut head))
                .await
                .expect("a response in time")
                .expect("a response");
            assert_eq!(&head, b"HTTP/1.1 200");
            unix.push(stream);
        }
        assert_eq!(app.running().open_connections(), 2);
        // One of the two earlier ones was idle and was closed for the third.
        let closed = async |stream: &mut UnixStream| {
            let mut rest = Vec::new();
            timeout(TIMEOUT, stream.read_to_end(&mut rest))
                .await
                .is_ok()
        };
        let one_closed = tokio::select! {
            closed = is_closed(&mut oldest) => closed,
            closed = closed(&mut unix[0]) => closed,
        };
        assert!(one_closed);
        drop(unix);
        drop(oldest);
        eventually("all connections are closed", async || {
            app.running().open_connections() == 0
        })
        .await;
    })
    .await;
}
