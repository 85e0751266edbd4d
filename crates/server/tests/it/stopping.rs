//! The shutdown of a server, from the perspective of clients and subscribers.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tollkey_core::VerifierId;
use tollkey_middleware::source::HttpSource;
use tollkey_store::testing::backends;
use tollkey_verifier::{Settings, SystemClock, Verifier};

use crate::support::{
    App, Call, each_backend_with, eventually,
    raw::{LIVEZ, TIMEOUT, connect, is_closed, read_response, send},
    source,
};

const METRICS: &[(&str, &str)] = &[("TOLLKEY_METRICS_LISTEN", "127.0.0.1:0")];

/// Sends a request without a body, and asserts that the server closes the connection after the response. Returns the
/// status of the response.
async fn last_response(stream: &mut TcpStream, request: &str) -> u16 {
    send(stream, request).await;
    let (head, body) = read_response(stream).await.expect("a response");
    assert!(head.contains("connection: close"), "{head}{body}");
    assert!(is_closed(stream).await);
    head.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status")
}

#[actix_web::test]
async fn draining_server_responds_and_closes_each_connection() {
    each_backend_with(METRICS, async |app: &App| {
        let running = app.running();
        let listeners = [
            running.address(),
            running.metrics_address().expect("a metrics listener"),
        ];
        let mut kept = Vec::new();
        for address in listeners {
            let mut stream = connect(address).await;
            send(&mut stream, LIVEZ).await;
            let (head, _) = read_response(&mut stream).await.expect("a response");
            assert!(!head.contains("connection: close"), "{head}");
            kept.push(stream);
        }
        running.begin_drain();
        for (address, mut stream) in listeners.into_iter().zip(kept) {
            assert_eq!(
                last_response(&mut stream, LIVEZ).await,
                200,
                "an open connection may send one more request"
            );
            for (path, status) in [("/readyz", 503), ("/livez", 200), ("/nothing", 404)] {
                let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
                assert_eq!(
                    last_response(&mut connect(address).await, &request).await,
                    status,
                    "{path}"
                );
            }
            let reply = Call::new(address, "GET", "/readyz").await;
            assert_eq!((reply.code().as_str(), reply.status), ("unavailable", 503));
            assert_eq!(
                reply.json()["detail"],
                "The server is shutting down. Send the request to another replica."
            );
        }
        let token = app.management_token("acme");
        let created = app
            .post("/applications", json!({"name": "During the drain"}))
            .bearer(&token)
            .await;
        assert_eq!(created.status, 201, "{created}");
    })
    .await;
}

#[actix_web::test]
async fn draining_server_keeps_its_lease() {
    each_backend_with(&[], async |app: &App| {
        let stats = || app.running().state().service.verifier.stats();
        eventually("a lease", async || !stats().lease_left.is_zero()).await;
        app.running().begin_drain();
        let key = app
            .insert_key(
                "acme",
                tollkey_core::Family::Commerce,
                tollkey_core::Mode::Live,
            )
            .await;
        assert_eq!(app.code(&key).await, "valid");
        let hits = stats().hits;
        assert_eq!(app.code(&key).await, "valid");
        assert!(stats().hits > hits, "keys are verified from the cache");
    })
    .await;
}

/// Starts a server on each backend, with leases so long that a poll waits for 20 s.
async fn each_backend_with_long_leases(test: impl AsyncFn(&App)) {
    for database in backends() {
        let _migrated = database.store();
        database.sql("UPDATE settings SET value = '60000' WHERE name = 'lease_ms'");
        let app = App::start(database, &[]).await;
        eventually("a lease", async || {
            !app.running()
                .state()
                .service
                .verifier
                .stats()
                .lease_left
                .is_zero()
        })
        .await;
        test(&app).await;
        app.stop().await;
    }
}

#[actix_web::test]
async fn polls_return_when_the_drain_begins() {
    each_backend_with_long_leases(async |app: &App| {
        let subscriber = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
        let poll = |wait_ms: u32| {
            let body = json!({"subscriber": subscriber, "cursor": "0-0", "wait_ms": wait_ms});
            app.post("/sync", body).bearer(&app.service())
        };
        let lease =
            |reply: &crate::support::Reply| reply.json()["lease_ms"].as_u64().expect("a lease");
        let waiting = actix_web::rt::spawn(poll(60_000).into_future());
        // The test cannot observe that the poll has arrived, so it waits for a fixed time.
        sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        app.running().begin_drain();
        for poll in [waiting, actix_web::rt::spawn(poll(60_000).into_future())] {
            let reply = timeout(Duration::from_secs(15), poll)
                .await
                .expect("a response before the wait of the poll ends")
                .expect("no panic");
            assert_eq!((reply.status, lease(&reply) > 0), (200, true), "{reply}");
        }
        assert_eq!(
            app.post("/sync", json!({"subscriber": subscriber, "leave": true}))
                .bearer(&app.service())
                .await
                .status,
            200
        );
    })
    .await;
}

/// A TCP load balancer that counts connections.
struct Balancer {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    connections: Arc<AtomicUsize>,
}

impl Balancer {
    async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (target, connections) = (Arc::new(Mutex::new(target)), Arc::new(AtomicUsize::new(0)));
        let balancer = Self {
            address,
            target: Arc::clone(&target),
            connections: Arc::clone(&connections),
        };
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let target = *target.lock().expect("no panic");
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Ok(balancer)
    }
}

fn subscriber(source: HttpSource) -> Verifier<HttpSource> {
    Verifier::subscriber(
        VerifierId::from_bytes([9; 16]),
        source,
        Arc::new(SystemClock),
        Settings::default(),
    )
}

#[actix_web::test]
async fn subscriber_of_a_draining_replica_moves_to_another() {
    each_backend_with(&[], async |app: &App| {
        let (first, second) = (app.running(), app.replica().await);
        let subscribers = |running: &tollkey_server::server::RunningServer| {
            running.state().service.verifier.stats().subscribers
        };
        let balancer = Balancer::start(first.address()).await.expect("a balancer");
        let service_key = app.service_key().await;
        let verifier = subscriber(source(
            &format!("http://{}", balancer.address),
            &service_key.text,
        ));
        let polling = tokio::spawn(verifier.clone().subscribe(std::future::pending()));
        eventually("a lease from the first replica", async || {
            !verifier.stats().lease_left.is_zero() && subscribers(first) == 1
        })
        .await;
        first.begin_drain();
        let before = balancer.connections.load(Ordering::Relaxed);
        sleep(Duration::from_secs(1)).await;
        let polls = balancer.connections.load(Ordering::Relaxed) - before;
        assert!(
            (1..=15).contains(&polls),
            "{polls} polls in a second of the drain, each on its own connection"
        );
        assert!(
            !verifier.stats().lease_left.is_zero(),
            "the subscriber keeps its lease without another replica"
        );
        *balancer.target.lock().expect("no panic") = second.address();
        timeout(TIMEOUT, async {
            while subscribers(&second) == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the subscriber moves to the second replica");
        assert!(!verifier.stats().lease_left.is_zero());
        polling.abort();
        second.stop().await;
    })
    .await;
}
