//! The signals that stop a server, from the perspective of its clients.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{
    net::{TcpStream, UnixDatagram},
    time::timeout,
};
use tollkey_store::testing::backends;

use crate::{
    binary::{Server, Tollkey, merchant},
    support::{
        eventually,
        raw::{LIVEZ, connect, is_closed, read_response, send},
    },
};

/// Waits until a server refuses connections.
async fn wait_until_refused(address: SocketAddr) {
    eventually("connections are refused", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
}

/// The first and second half of a request that creates an application.
fn request_halves(name: &str) -> (String, String) {
    let (token, body) = (merchant("acme"), json!({"name": name}).to_string());
    let head = format!(
        "POST /api/v1/applications HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    (format!("{head}{}", &body[..2]), body[2..].to_owned())
}

#[actix_web::test]
async fn request_in_flight_at_shutdown_gets_a_response() {
    for database in backends() {
        for drain in ["0", "1"] {
            let server = Tollkey::on(&database)
                .with("TOLLKEY_DRAIN_SECONDS", drain)
                .serve()
                .await;
            let mut busy = connect(server.address).await;
            send(&mut busy, LIVEZ).await;
            read_response(&mut busy).await.expect("a response");
            let (first, rest) = request_halves(&format!("In flight, drain {drain}"));
            send(&mut busy, first).await;
            server.signal("TERM").await;
            wait_until_refused(server.address).await;
            send(&mut busy, rest).await;
            let (head, body) = read_response(&mut busy).await.expect("a response");
            assert!(
                head.starts_with("http/1.1 201") && head.contains("connection: close"),
                "{head}{body}"
            );
            assert!(is_closed(&mut busy).await);
            let finished = server.ended().await;
            assert_eq!(finished.code, Some(0), "{finished}");
        }
    }
}

/// Waits for the next message to the service manager.
async fn notification(socket: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let received = timeout(Duration::from_secs(30), socket.recv(&mut message)).await;
    let length = received.expect("a message").expect("a message");
    String::from_utf8_lossy(&message[..length]).into_owned()
}

#[actix_web::test]
async fn service_manager_is_notified_of_start_and_drain() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let server = Tollkey::development()
        .with("NOTIFY_SOCKET", path.to_str().expect("UTF-8"))
        .with("TOLLKEY_DRAIN_SECONDS", "300")
        .serve()
        .await;
    assert_eq!(notification(&socket).await, "READY=1\n");
    server.signal("TERM").await;
    // The drain and the time for requests: the limit of the unit alone would kill the server.
    let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=325000000\n";
    assert_eq!(notification(&socket).await, stopping);
    server.signal("TERM").await;
    let finished = server.ended().await;
    assert_eq!(finished.code, Some(0), "{finished}");
}

#[actix_web::test]
async fn server_runs_without_its_service_manager() {
    let server = Tollkey::development()
        .with("NOTIFY_SOCKET", "/no/such/socket")
        .serve()
        .await;
    server.signal("TERM").await;
    let finished = server.ended().await;
    assert_eq!(finished.code, Some(0), "{finished}");
    assert!(
        finished
            .stderr
            .contains("cannot notify the service manager"),
        "{finished}"
    );
}

/// Pauses a server while `during` runs.
#[cfg(target_os = "linux")]
async fn while_paused(server: &Server, during: impl Future<Output = ()>) {
    server.signal("STOP").await;
    eventually("each thread has stopped", async || {
        server.pid().is_stopped()
    })
    .await;
    during.await;
    server.signal("CONT").await;
}

#[cfg(target_os = "linux")]
#[actix_web::test]
async fn connections_queued_at_shutdown_get_a_response() {
    for database in backends() {
        let server = Tollkey::on(&database).serve().await;
        let mut queued = Vec::new();
        // The kernel accepts connections and requests for a paused server.
        while_paused(&server, async {
            for _ in 0..100 {
                let mut stream = connect(server.address).await;
                send(&mut stream, LIVEZ).await;
                queued.push(stream);
            }
            server.signal("TERM").await;
        })
        .await;
        for stream in &mut queued {
            let (head, body) = read_response(stream).await.expect("a response");
            assert!(head.starts_with("http/1.1 200"), "{head}{body}");
            // `connection: close` is not asserted: the server may write the response before it handles the signal.
            assert!(is_closed(stream).await);
        }
        let finished = server.ended().await;
        assert_eq!(finished.code, Some(0), "{finished}");
    }
}

#[actix_web::test]
async fn second_signal_ends_the_drain() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM")] {
        let server = Tollkey::development()
            .with("TOLLKEY_DRAIN_SECONDS", "300")
            .serve()
            .await;
        server.signal(first).await;
        eventually("the server drains", async || {
            server.get("/readyz").await.status == 503
        })
        .await;
        assert_eq!(server.get("/livez").await.status, 200);
        server.signal(second).await;
        let finished = server.ended().await;
        assert_eq!(finished.code, Some(0), "{finished}");
        assert!(
            finished.stderr.contains("second signal: ending the drain"),
            "{finished}"
        );
    }
}

#[actix_web::test]
async fn further_signal_closes_connections_with_requests() {
    for drain in ["0", "300"] {
        let database = backends().into_iter().next().expect("a backend");
        let server = Tollkey::on(&database)
            .with("TOLLKEY_DRAIN_SECONDS", drain)
            .serve()
            .await;
        let mut busy = connect(server.address).await;
        send(&mut busy, LIVEZ).await;
        read_response(&mut busy).await.expect("a response");
        let (first, _rest) = request_halves("Cut off");
        send(&mut busy, first).await;
        server.signal("TERM").await;
        if drain != "0" {
            eventually("the server drains", async || {
                server.get("/readyz").await.status == 503
            })
            .await;
            server.signal("TERM").await;
        }
        wait_until_refused(server.address).await;
        server.signal("INT").await;
        assert!(is_closed(&mut busy).await);
        let finished = server.ended().await;
        assert_eq!(finished.code, Some(0), "{finished}");
        assert!(
            finished
                .stderr
                .contains("further signal: closing connections with requests in flight"),
            "{finished}"
        );
        assert!(
            finished
                .stderr
                .contains("closed connections with requests in flight"),
            "{finished}"
        );
    }
}
