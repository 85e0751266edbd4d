//! `tollkey_middleware::Guard` against the real server: connecting, server outages and revocation.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Builder,
    sync::oneshot,
};
use tollkey_core::{Denial, Scope};
use tollkey_middleware::{ConnectError, Guard, RejectionForm, RequestHead, Requirement};

use crate::support::{
    App, each_backend, eventually,
    resource_server::{PresentedKey, status},
};

impl App {
    async fn guard(&self) -> Guard {
        let key = self.service_key().await;
        Guard::connect(format!("http://{}", self.running().address()), key.text)
            .await
            .expect("a guard")
    }
}

#[actix_web::test]
async fn guard_uses_its_cache_and_rejects_a_revoked_key() {
    each_backend(async |app| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"scopes": ["links:read"]}))
            .await;
        let guard = app.guard().await;
        let (reads, writes) = (Scope::LINKS_READ.into(), Scope::LINKS_WRITE.into());
        assert_eq!(status(&guard, &key.text, &reads).await, 200);
        assert_eq!(status(&guard, &key.text, &writes).await, 403);
        let misses = guard.stats().misses;
        for _ in 0..100 {
            assert_eq!(status(&guard, &key.text, &reads).await, 200);
        }
        assert_eq!(
            guard.stats().misses,
            misses,
            "a cached key needs no request"
        );
        let revoked = app
            .post(&format!("/api-keys/{}/revoke", key.id), json!({}))
            .bearer(&token)
            .await;
        assert_eq!(revoked.status, 200, "{revoked}");
        assert_eq!(status(&guard, &key.text, &reads).await, 401);
        guard.shutdown().await;
    })
    .await;
}

#[actix_web::test]
async fn guard_reports_key_usage_to_the_server() {
    each_backend(async |app| {
        let token = app.management_token("acme");
        let key = app
            .commerce_key(&token, json!({"scopes": ["links:read"]}))
            .await;
        let guard = app.guard().await;
        assert_eq!(
            status(&guard, &key.text, &Scope::LINKS_READ.into()).await,
            200
        );
        guard.shutdown().await;
        // Reported with the last poll, and stored by the server with its next batch.
        eventually("the server shows the last use of the key", async || {
            let row = app
                .get(&format!("/api-keys/{}", key.id))
                .bearer(&token)
                .await;
            !row.json()["last_used_at"].is_null()
        })
        .await;
    })
    .await;
}

#[actix_web::test]
async fn rejected_service_key_fails_connect_immediately() {
    each_backend(async |app| {
        let url = format!("http://{}", app.running().address());
        let key = app
            .commerce_key(&app.management_token("acme"), json!({}))
            .await;
        for credential in [
            "tks_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0",
            &key.text,
            &app.management_token("acme"),
        ] {
            let begun = Instant::now();
            let result = Guard::connect(&url, credential).await;
            assert!(
                matches!(result, Err(ConnectError::Rejected(_))),
                "{result:?}"
            );
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    })
    .await;
}

#[actix_web::test]
async fn connect_error_names_the_cause() {
    let connect = async |url: String| {
        let limit = Duration::from_millis(500);
        Guard::builder()
            .url(url)
            .service_key("tks_EXAMPLE")
            .connect_limit(limit)
            .connect()
            .await
    };
    // A web server that is not Tollkey.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let other = actix_web::rt::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let page = "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\nnone";
            let _ = stream.write_all(page.as_bytes()).await;
        }
    });
    let result = connect(url).await;
    assert!(
        matches!(result, Err(ConnectError::Incompatible(_))),
        "{result:?}"
    );
    other.abort();
    // No server.
    let result = connect("http://127.0.0.1:1".to_owned()).await;
    assert!(
        matches!(result, Err(ConnectError::Unreachable(_))),
        "{result:?}"
    );
    // A server that does not respond.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let begun = Instant::now();
    let result = connect(format!(
        "http://{}",
        silent.local_addr().expect("an address")
    ))
    .await;
    assert!(
        matches!(result, Err(ConnectError::Unreachable(_))),
        "{result:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "within the connect limit"
    );
    // Invalid URLs.
    for url in ["keys.example.com", "ftp://keys.example.com"] {
        assert!(
            matches!(connect(url.to_owned()).await, Err(ConnectError::Client(_))),
            "{url}"
        );
    }
}

/// Runs a future on a new runtime in a new thread. The thread is then blocked until `released`.
async fn on_blocked_runtime<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
    released: mpsc::Receiver<()>,
) -> T {
    let (done, result) = oneshot::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let _ = done.send(runtime.block_on(future));
        // The runtime still exists, but makes no progress.
        let _ = released.recv();
    });
    result.await.expect("no panic")
}

#[actix_web::test]
async fn guard_is_independent_of_the_application_runtimes() {
    each_backend(async |app| {
        let token = app.management_token("acme");
        let [first, second] = [
            app.commerce_key(&token, json!({})).await,
            app.commerce_key(&token, json!({})).await,
        ];
        let (url, service) = (
            format!("http://{}", app.running().address()),
            app.service_key().await,
        );
        // The runtime on which the guard connects ends.
        let (release, released) = mpsc::channel();
        drop(release);
        let guard = on_blocked_runtime(Guard::connect(url, service.text), released)
            .await
            .expect("a guard");
        // A worker verifies a key. Then its runtime is blocked, with the connection that it opened.
        let (_blocked, released) = mpsc::channel();
        let (on_the_worker, key) = (guard.clone(), first.text.clone());
        let found = on_blocked_runtime(
            async move { status(&on_the_worker, &key, &Requirement::any()).await },
            released,
        )
        .await;
        assert_eq!(found, 200);
        assert_eq!(status(&guard, &second.text, &Requirement::any()).await, 200);
        let revoked = app
            .post(&format!("/api-keys/{}/revoke", first.id), json!({}))
            .bearer(&token)
            .await;
        assert_eq!(revoked.status, 200, "{revoked}");
        assert_eq!(status(&guard, &first.text, &Requirement::any()).await, 401);
        guard.shutdown().await;
        assert!(guard.stats().lease_left.is_zero());
    })
    .await;
}

#[actix_web::test]
async fn shutdown_does_not_wait_for_an_unresponsive_server() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let guard = Guard::builder()
        .url(url)
        .service_key("tks_EXAMPLE")
        .start()
        .expect("a guard");
    let shutdown = tokio::time::timeout(Duration::from_secs(30), guard.shutdown());
    assert!(shutdown.await.is_ok(), "shutdown ends in time");
}

#[actix_web::test]
async fn verified_key_notifies_a_long_response_of_its_revocation() {
    each_backend(async |app| {
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let guard = app.guard().await;
        let headers = PresentedKey(&key.text);
        let request = RequestHead {
            method: "GET",
            target: "/stream",
            peer: None,
            headers: &headers,
            form: RejectionForm::Problem,
        };
        let admission = guard
            .check(&request, &Requirement::any())
            .await
            .expect("admitted");
        let verified = admission.key().expect("a key").clone();
        let stream = tokio::spawn(async move { verified.revoked().await });
        let renamed = app
            .patch(&format!("/api-keys/{}", key.id), json!({"name": "another"}))
            .bearer(&token)
            .await;
        assert_eq!(renamed.status, 200, "{renamed}");
        assert!(!stream.is_finished());
        let revoked = app
            .post(&format!("/api-keys/{}/revoke", key.id), json!({}))
            .bearer(&token)
            .await;
        assert_eq!(revoked.status, 200, "{revoked}");
        assert_eq!(stream.await.expect("no panic"), Denial::Revoked);
        guard.shutdown().await;
    })
    .await;
}
