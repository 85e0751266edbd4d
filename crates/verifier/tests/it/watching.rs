//! Requests that continue after they were authorized are notified when their key can no longer be used.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tollkey_core::{AccessRequest, Clock as _, Denial};
use tollkey_verifier::{Settings, testing::record};

use crate::world::{LEASE, World, text};

/// Authorizes a request with key `n` and spawns a task that waits until the key can no longer be used.
async fn watch(world: &World, n: usize) -> JoinHandle<Denial> {
    let reserved = world
        .one
        .verifier
        .reserve(&text(n), &AccessRequest::default())
        .await
        .unwrap();
    let key = reserved.expect("the key is allowed").key().clone();
    let verifier = world.one.verifier.clone();
    let watching = tokio::spawn(async move { verifier.until_unusable(&key).await });
    // By now the task has read the key and waits.
    sleep(Duration::from_millis(1)).await;
    assert!(!watching.is_finished());
    watching
}

#[tokio::test(start_paused = true)]
async fn watchers_are_notified_of_the_revocation_of_their_key() {
    let world = World::new(2).await;
    let (first, second, other) = (
        watch(&world, 0).await,
        watch(&world, 0).await,
        watch(&world, 1).await,
    );
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    let notified = timeout(Duration::from_millis(1), async {
        (first.await.unwrap(), second.await.unwrap())
    });
    assert_eq!(notified.await, Ok((Denial::Revoked, Denial::Revoked)));
    sleep(Duration::from_secs(3600)).await;
    assert!(!other.is_finished(), "the other key is still valid");
}

#[tokio::test(start_paused = true)]
async fn evicted_key_is_still_watched() {
    let world = World::with(
        5,
        Settings {
            max_entries: 2,
            ..Settings::default()
        },
    )
    .await;
    let watching = watch(&world, 0).await;
    for n in 1..5 {
        world.one.verify(n).await;
    }
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(
        timeout(Duration::from_millis(1), watching)
            .await
            .unwrap()
            .unwrap(),
        Denial::Revoked
    );
}

#[tokio::test(start_paused = true)]
async fn change_that_leaves_the_key_usable_ends_no_request() {
    let world = World::new(1).await;
    let watching = watch(&world, 0).await;
    world.source.change(&text(0), |record| {
        record.key.name = "another name".to_owned()
    });
    sleep(LEASE).await;
    assert!(!watching.is_finished());
    world.source.change(&text(0), |record| {
        record.key.suspended_at = Some(world.clock.now())
    });
    sleep(LEASE).await;
    assert_eq!(watching.await.unwrap(), Denial::Suspended);
}

#[tokio::test(start_paused = true)]
async fn watched_key_expires_on_time() {
    let world = World::new(0).await;
    let mut expiring = record(&text(0));
    let (began_at, lifetime) = (world.clock.elapsed(), Duration::from_secs(3000));
    expiring.key.restrictions.expires_at = Some(world.clock.now() + lifetime);
    world.source.put(&text(0), expiring);
    let denial = watch(&world, 0).await.await.unwrap();
    assert_eq!(denial, Denial::Expired);
    let late = world.clock.elapsed() - began_at - lifetime;
    assert!(late < Duration::from_millis(10), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn watchers_keep_waiting_while_the_source_does_not_respond() {
    let world = World::new(1).await;
    let watching = watch(&world, 0).await;
    world.source.set_down(true);
    sleep(10 * LEASE).await;
    assert!(!watching.is_finished());
    world.revoke(0);
    world.source.set_down(false);
    sleep(LEASE).await;
    assert_eq!(watching.await.unwrap(), Denial::Revoked);
}
