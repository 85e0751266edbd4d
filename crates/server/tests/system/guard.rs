//! A resource server and its server on the same address before, during and after outages.

use std::time::Duration;

use tollkey_core::Denial;
use tollkey_middleware::{Guard, Requirement};
use tollkey_store::testing::backends;
use tollkey_verifier::Unavailable;

use crate::{
    binary::{Tollkey, merchant},
    support::{
        eventually,
        resource_server::{outcome, status, subscriber},
    },
};

#[actix_web::test]
async fn guard_recovers_after_a_server_outage() {
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let address = server.address.to_string();
    let service_key = tollkey.output_of(&["service-key", "create", "guard"]).await;
    let token = tollkey.output_of(&["token", "--account", "acme"]).await;
    let keys = tollkey_client::Client::new(format!("http://{address}")).expect("a client");
    let keys = keys
        .with_auth(tollkey_client::Auth::bearer(token))
        .commerce()
        .api_keys();
    let created = keys.create("Web").await.expect("a key");
    let (key, any) = (created.api_key.expose(), Requirement::any());
    let grace = Requirement::any().cached_without_immediate_revocation(Duration::from_secs(600));

    // The guard starts before the server, as after an outage of both.
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
    eventually("the guard reaches the server", async || {
        status(&guard, key, &any).await == 200
    })
    .await;
    eventually("the guard has a lease", async || {
        !guard.stats().lease_left.is_zero()
    })
    .await;
    assert_eq!(status(&guard, key, &any).await, 200);

    // Without the server, cached keys are accepted until the lease expires. After that, they are accepted only if the
    // requirement allows it.
    server.stop().await;
    eventually("the lease has expired", async || {
        status(&guard, key, &any).await == 503
    })
    .await;
    assert_eq!(status(&guard, key, &grace).await, 200);
    let server = again.serve().await;
    eventually("the guard reaches the server again", async || {
        status(&guard, key, &any).await == 200
    })
    .await;
    keys.revoke(&created.key_id).await.expect("revoked");
    assert_eq!(status(&guard, key, &any).await, 401);
    assert_eq!(status(&guard, key, &grace).await, 401);
    guard.shutdown().await;
    server.stop().await;
}

#[actix_web::test]
async fn resource_server_outlives_its_server_by_one_lease() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let server = tollkey.serve().await;
        let application = server.application(&merchant("acme"), "Web Store").await;
        let key = server.key(&merchant("acme"), &application).await;
        let gateway = server.service_key().await;
        let guard = subscriber(&format!("http://{}", server.address), &gateway.text);
        let running = tokio::spawn(guard.clone().subscribe(std::future::pending()));
        eventually("a lease", async || !guard.stats().lease_left.is_zero()).await;
        assert_eq!(outcome(&guard, &key.text).await, Ok(Ok(())));

        // A paused server accepts connections, but does not respond.
        server.signal("STOP").await;
        let hits = guard.stats().hits;
        assert_eq!(outcome(&guard, &key.text).await, Ok(Ok(())));
        assert_eq!(guard.stats().hits, hits + 1, "a cache hit");
        eventually("its lease ends", async || {
            guard.stats().lease_left.is_zero()
        })
        .await;
        assert_eq!(outcome(&guard, &key.text).await, Err(Unavailable));
        server.signal("CONT").await;
        eventually("a lease again", async || {
            !guard.stats().lease_left.is_zero()
        })
        .await;
        assert_eq!(outcome(&guard, &key.text).await, Ok(Ok(())));

        // A revocation during the subscription applies immediately.
        let path = format!("/applications/{application}/api-keys/{}", key.id);
        assert_eq!(
            server.delete(&path).bearer(&merchant("acme")).await.status,
            204
        );
        assert_eq!(outcome(&guard, &key.text).await, Ok(Err(Denial::Revoked)));

        server.kill().await;
        eventually("its lease ends", async || {
            guard.stats().lease_left.is_zero()
        })
        .await;
        assert_eq!(outcome(&guard, &key.text).await, Err(Unavailable));
        running.abort();
    }
}
