//! `tollkey_middleware::Guard` against the real server: connecting, losing the server, and revocation.

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
use tollkey_middleware::{ConnectError, Guard, Headers, RejectionForm, RequestHead, Requirement};

use crate::{
    binary::Tollkey,
    support::{App, each_backend, eventually},
};

/// The headers of a request that presents a key.
struct Presenting<'a>(&'a str);

impl Headers for Presenting<'_> {
    fn each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
        show("x-api-key", self.0.as_bytes());
    }
}

/// What a guard says to `GET /api/v1/links` with that key: 200, or the status of the refusal.
async fn status(guard: &Guard, key: &str, requirement: &Requirement) -> u16 {
    let headers = Presenting(key);
    let request = RequestHead {
        method: "GET",
        target: "/api/v1/links",
        peer: None,
        headers: &headers,
        form: RejectionForm::Problem,
    };
    match guard.check(&request, requirement).await {
        Ok(admission) => {
            admission.conclude();
            200
        }
        Err(refusal) => refusal.status(),
    }
}

impl App {
    async fn guard(&self) -> Guard {
        let key = self.service_key().await;
        Guard::connect(format!("http://{}", self.running().address()), key.text)
            .await
            .expect("a guard")
    }
}

#[actix_web::test]
async fn a_guard_answers_from_memory_and_a_revoked_key_is_refused_at_once() {
    each_backend(async |app| {
        let token = app.merchant("acme");
        let key = app
            .commerce_key(&token, json!({"scopes": ["links:read"]}))
            .await;
        let guard = app.guard().await;
        let (reads, writes) = (Scope::LINKS_READ.into(), Scope::LINKS_WRITE.into());
        assert_eq!(status(&guard, &key.text, &reads).await, 200);
        assert_eq!(status(&guard, &key.text, &writes).await, 403);
        let asked = guard.stats().misses;
        for _ in 0..100 {
            assert_eq!(status(&guard, &key.text, &reads).await, 200);
        }
        assert_eq!(guard.stats().misses, asked, "a remembered key asks nobody");
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
async fn uses_of_a_key_are_told_to_the_server() {
    each_backend(async |app| {
        let token = app.merchant("acme");
        let key = app
            .commerce_key(&token, json!({"scopes": ["links:read"]}))
            .await;
        let guard = app.guard().await;
        assert_eq!(
            status(&guard, &key.text, &Scope::LINKS_READ.into()).await,
            200
        );
        guard.shutdown().await;
        // Told with the last poll, and written down by the server with its next batch.
        eventually("its last use", async || {
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
async fn who_is_refused_by_the_server_is_told_so_at_once() {
    each_backend(async |app| {
        let url = format!("http://{}", app.running().address());
        let key = app.commerce_key(&app.merchant("acme"), json!({})).await;
        for credential in [
            "tks_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0",
            &key.text,
            &app.merchant("acme"),
        ] {
            let begun = Instant::now();
            let refused = Guard::connect(&url, credential).await;
            assert!(
                matches!(refused, Err(ConnectError::Rejected(_))),
                "{refused:?}"
            );
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    })
    .await;
}

#[actix_web::test]
async fn what_is_no_server_of_ours_is_told_apart_from_one_that_does_not_answer() {
    let connect = async |url: String| {
        let limit = Duration::from_millis(500);
        Guard::builder()
            .url(url)
            .service_key("tks_EXAMPLE")
            .connect_limit(limit)
            .connect()
            .await
    };
    // Another one's web server.
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
    let refused = connect(url).await;
    assert!(
        matches!(refused, Err(ConnectError::Incompatible(_))),
        "{refused:?}"
    );
    other.abort();
    // Nobody.
    let refused = connect("http://127.0.0.1:1".to_owned()).await;
    assert!(
        matches!(refused, Err(ConnectError::Unreachable(_))),
        "{refused:?}"
    );
    // Somebody who says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let begun = Instant::now();
    let refused = connect(format!(
        "http://{}",
        silent.local_addr().expect("an address")
    ))
    .await;
    assert!(
        matches!(refused, Err(ConnectError::Unreachable(_))),
        "{refused:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "no longer than it was given"
    );
    // What cannot be at all.
    for url in ["keys.example.com", "ftp://keys.example.com"] {
        assert!(
            matches!(connect(url.to_owned()).await, Err(ConnectError::Client(_))),
            "{url}"
        );
    }
}

/// Runs a future on a runtime of its own in a thread of its own, which is then blocked until `released`.
async fn elsewhere<T: Send + 'static>(
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
        // The runtime is there, and nothing on it goes on.
        let _ = released.recv();
    });
    result.await.expect("no panic")
}

#[actix_web::test]
async fn guard_lives_on_no_runtime_of_the_application() {
    each_backend(async |app| {
        let token = app.merchant("acme");
        let [first, second] = [
            app.commerce_key(&token, json!({})).await,
            app.commerce_key(&token, json!({})).await,
        ];
        let (url, service) = (
            format!("http://{}", app.running().address()),
            app.service_key().await,
        );
        // Connected in a runtime that ends.
        let (release, released) = mpsc::channel();
        drop(release);
        let guard = elsewhere(Guard::connect(url, service.text), released)
            .await
            .expect("a guard");
        // A worker looks a key up and is blocked, with the connection it has opened.
        let (_blocked, released) = mpsc::channel();
        let (on_the_worker, key) = (guard.clone(), first.text.clone());
        let found = elsewhere(
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
async fn shutdown_does_not_wait_for_a_server_that_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let guard = Guard::builder()
        .url(url)
        .service_key("tks_EXAMPLE")
        .start()
        .expect("a guard");
    let shutdown = tokio::time::timeout(Duration::from_secs(30), guard.shutdown());
    assert!(shutdown.await.is_ok(), "it ends by itself");
}

#[actix_web::test]
async fn long_response_learns_of_the_revocation_of_its_key() {
    each_backend(async |app| {
        let token = app.merchant("acme");
        let key = app.commerce_key(&token, json!({})).await;
        let guard = app.guard().await;
        let headers = Presenting(&key.text);
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

#[actix_web::test]
async fn a_guard_survives_its_server() {
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let address = server.address.to_string();
    let service_key = tollkey.answer(&["service-key", "create", "guard"]).await;
    let token = tollkey.answer(&["token", "--account", "acme"]).await;
    let keys = tollkey_client::Client::new(format!("http://{address}")).expect("a client");
    let keys = keys
        .with_auth(tollkey_client::Auth::bearer(token))
        .commerce()
        .api_keys();
    let made = keys.create("Web").await.expect("a key");
    let (key, any) = (made.api_key.expose(), Requirement::any());
    let grace = Requirement::any().cached_without_immediate_revocation(Duration::from_secs(600));

    // Started before there is a server, as after an outage of both.
    server.stop().await;
    let guard = Guard::builder()
        .url(format!("http://{address}"))
        .service_key(service_key)
        .start()
        .expect("a guard");
    assert_eq!(status(&guard, key, &any).await, 503);
    assert_eq!(status(&guard, key, &grace).await, 503, "nothing is cached");
    let again = tollkey.clone().with("TOLLKEY_LISTEN", &address);
    let server = again.serve().await;
    eventually("the server is found", async || {
        status(&guard, key, &any).await == 200
    })
    .await;
    eventually("it is subscribed to", async || {
        !guard.stats().lease_left.is_zero()
    })
    .await;
    assert_eq!(status(&guard, key, &any).await, 200);

    // It goes: what is remembered is answered for a lease, and then for those that said so.
    server.stop().await;
    eventually("the lease is over", async || {
        status(&guard, key, &any).await == 503
    })
    .await;
    assert_eq!(status(&guard, key, &grace).await, 200);
    let server = again.serve().await;
    eventually("it is back", async || {
        status(&guard, key, &any).await == 200
    })
    .await;
    keys.revoke(&made.key_id).await.expect("revoked");
    assert_eq!(status(&guard, key, &any).await, 401);
    assert_eq!(status(&guard, key, &grace).await, 401);
    guard.shutdown().await;
    server.stop().await;
}
