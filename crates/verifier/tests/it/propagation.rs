//! Tests that no verifier decides by the old state after a change is propagated, and how long propagation takes.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tollkey_core::{AccessRequest, Clock, Denial};
use tollkey_verifier::{Primary, Unavailable, Verifier, margin};

use crate::world::{LEASE, World, text};

const SOON: Duration = Duration::from_millis(30);

#[tokio::test(start_paused = true)]
async fn single_verifier_does_not_wait() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.clock.elapsed(), since);
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn change_waits_for_a_running_verifier() {
    let world = World::new(1).await;
    let two = world.another(2).await;
    assert_eq!(
        (world.one.outcome(0).await, two.outcome(0).await),
        (Ok(()), Ok(()))
    );
    sleep(Duration::from_millis(10)).await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(two.outcome(0).await, Err(Denial::Revoked));
    let took = world.clock.elapsed() - since;
    assert!(
        took > Duration::ZERO && took <= LEASE / 3 + SOON,
        "{took:?}: the other verifier finds the change at its next renewal"
    );
    let stats = world.one.verifier.stats();
    assert_eq!(
        (
            stats.propagations,
            stats.propagations_over_a_lease,
            stats.propagation_wait
        ),
        (1, 0, took)
    );
}

#[tokio::test(start_paused = true)]
async fn change_waits_only_briefly_for_a_notified_verifier() {
    let world = World::new(1).await;
    let two = world.another(2).await;
    assert_eq!(two.outcome(0).await, Ok(()));
    let (seq, since) = world.revoke(0);
    two.verifier.notify(); // as a NOTIFY would
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert!(world.clock.elapsed() - since <= Duration::from_millis(2));
    assert_eq!(two.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn change_waits_a_lease_for_a_crashed_verifier_once() {
    let world = World::new(2).await;
    let two = world.another(2).await;
    assert_eq!(
        (two.outcome(0).await, two.outcome(1).await),
        (Ok(()), Ok(()))
    );
    let two = two.freeze().await;

    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    let took = world.clock.elapsed() - since;
    assert!(
        took >= LEASE && took <= LEASE + margin(LEASE) + SOON,
        "{took:?}"
    );
    assert_eq!(world.source.verifiers().len(), 1, "its row was removed");
    // When it runs again, its lease has expired, so it looks up the key.
    assert_eq!(
        two.verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Err(Denial::Revoked)
    );

    let (seq, since) = world.revoke(1);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(
        world.clock.elapsed(),
        since,
        "the next change does not wait for it"
    );
    assert_eq!(
        two.verify(&text(1), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Err(Denial::Revoked)
    );
    assert_eq!(world.one.verifier.stats().propagations_over_a_lease, 1);
}

#[tokio::test(start_paused = true)]
async fn paused_verifier_decides_by_its_cache_only_until_propagation() {
    let world = World::new(1).await;
    let two = world.another(2).await;
    assert_eq!(two.outcome(0).await, Ok(()));
    let two = two.freeze().await;
    let (seq, since) = world.revoke(0);
    let propagating = tokio::spawn({
        let one = world.one.verifier.clone();
        async move { one.wait_until_propagated(seq, since).await }
    });
    let mut allowed_until = since;
    while !propagating.is_finished() {
        if two
            .verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome
            .is_ok()
        {
            allowed_until = world.clock.elapsed();
        }
        sleep(Duration::from_micros(500)).await;
    }
    let propagated_at = world.clock.elapsed();
    assert!(allowed_until > since, "its lease was valid");
    assert!(
        propagated_at - allowed_until >= margin(LEASE),
        "{allowed_until:?} {propagated_at:?}"
    );
    assert_eq!(
        two.verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Err(Denial::Revoked)
    );
}

#[tokio::test(start_paused = true)]
async fn lagging_verifier_that_renews_keeps_its_row() {
    let world = World::new(1).await;
    let (seq, since) = world.revoke(0);
    // A replica that has applied the change itself but waits for a slow subscriber.
    let slow = tollkey_core::VerifierId::from_bytes([2; 16]);
    let renewing = tokio::spawn({
        let source = world.source.clone();
        async move {
            loop {
                assert!(
                    source
                        .renew(slow, tollkey_core::Seq(0), source.position())
                        .await
                        .unwrap()
                );
                sleep(LEASE / 3).await;
            }
        }
    });
    sleep(Duration::from_millis(1)).await;
    world.one.verifier.wait_until_propagated(seq, since).await;
    let took = world.clock.elapsed() - since;
    assert!(
        took >= LEASE + margin(LEASE) && took <= LEASE + margin(LEASE) + SOON,
        "{took:?}"
    );
    assert!(world.source.verifiers().contains_key(&slow));
    renewing.abort();
}

#[tokio::test(start_paused = true)]
async fn row_is_not_removed_until_a_lease_after_it_was_read() {
    let world = World::new(1).await;
    let (seq, since) = world.revoke(0);
    // The other verifier renews once, after the change and just before the revoking verifier reads the rows: its lease
    // ends later than the wait, and covers this change but not the next.
    sleep(LEASE / 2).await;
    let late = tollkey_core::VerifierId::from_bytes([2; 16]);
    assert!(
        world
            .source
            .renew(late, tollkey_core::Seq(0), world.source.position())
            .await
            .unwrap()
    );
    let lease_of_late = world.clock.elapsed() + LEASE;
    world.one.verifier.wait_until_propagated(seq, since).await;
    let now = world.clock.elapsed();
    assert!(now - since <= LEASE + margin(LEASE) + SOON);
    assert!(now < lease_of_late && world.source.verifiers().contains_key(&late));
}

#[tokio::test(start_paused = true)]
async fn source_failure_drops_the_lease_and_waits_for_others() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let (seq, since) = world.revoke(0);
    world.source.set_down(true);
    let propagating = tokio::spawn({
        let one = world.one.verifier.clone();
        async move { one.wait_until_propagated(seq, since).await }
    });
    sleep(Duration::from_millis(1)).await;
    let verified = world
        .one
        .verifier
        .verify(&text(0), &AccessRequest::default())
        .await;
    assert_eq!(verified.unwrap_err(), Unavailable);
    propagating.await.unwrap();
    let took = world.clock.elapsed() - since;
    assert!(
        took >= LEASE + margin(LEASE) && took <= LEASE + margin(LEASE) + SOON,
        "{took:?}"
    );
    world.source.set_down(false);
    sleep(LEASE).await;
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn repeated_change_waits_for_propagation_of_the_first() {
    let world = World::new(1).await;
    let two = world.another(2).await;
    assert_eq!(two.outcome(0).await, Ok(()));
    world.revoke(0); // by a replica that crashed before it waited for propagation
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(two.outcome(0).await, Err(Denial::Revoked));

    let before = world.clock.elapsed();
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(world.clock.elapsed(), before, "there is no new change");

    world.source.set_down(true);
    assert_eq!(
        world.one.verifier.wait_until_all_propagated().await,
        Err(Unavailable)
    );
}

#[tokio::test(start_paused = true)]
async fn concurrent_revocations_do_not_wait_for_each_other() {
    let world = World::new(2).await;
    let two = world.another(2).await;
    for n in 0..2 {
        assert_eq!(
            (world.one.outcome(n).await, two.outcome(n).await),
            (Ok(()), Ok(()))
        );
    }
    let (a, since_a) = world.revoke(0);
    let (b, since_b) = world.revoke(1);
    let both = async {
        tokio::join!(
            world.one.verifier.wait_until_propagated(a, since_a),
            two.verifier.wait_until_propagated(b, since_b)
        )
    };
    timeout(SOON, both).await.unwrap();
    for n in 0..2 {
        assert_eq!(world.one.outcome(n).await, Err(Denial::Revoked));
        assert_eq!(two.outcome(n).await, Err(Denial::Revoked));
    }
}

/// Runs on several threads with a real clock.
#[test]
fn under_load_no_verifier_accepts_a_revoked_key() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(50).await;
        let others = [world.another(2).await, world.another(3).await];
        let verifiers: Vec<_> = others
            .iter()
            .map(|it| it.verifier.clone())
            .chain([world.one.verifier.clone()])
            .collect();
        let noise: Vec<_> = verifiers
            .iter()
            .cloned()
            .map(|verifier| {
                tokio::spawn(async move {
                    for n in (0..50).cycle() {
                        let _ = verifier.verify(&text(n), &AccessRequest::default()).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for n in 0..50 {
            let (seq, since) = world.revoke(n);
            verifiers.iter().for_each(Verifier::notify); // as a NOTIFY would
            verifiers[n % 3].wait_until_propagated(seq, since).await;
            for verifier in &verifiers {
                let verdict = verifier
                    .verify(&text(n), &AccessRequest::default())
                    .await
                    .unwrap();
                assert_eq!(verdict.outcome, Err(Denial::Revoked));
            }
        }
        noise.iter().for_each(tokio::task::JoinHandle::abort);
    });
}
