//! The lease: when it is renewed, when it ends, and that cached keys are used only while it is valid.

use std::time::Duration;

use tokio::time::sleep;
use tollkey_core::{AccessRequest, Clock, Denial, Seq};
use tollkey_verifier::{
    Settings, Unavailable, margin,
    testing::{ManualClock, MemorySource, record},
};

use crate::world::{LEASE, World, leaseless, text};

#[tokio::test(start_paused = true)]
async fn lease_is_renewed_before_it_ends() {
    let world = World::new(1).await;
    assert!(world.one.looks_up(0).await);
    for _ in 0..100 {
        sleep(Duration::from_millis(333)).await;
        assert!(!world.one.looks_up(0).await);
        let left = world.one.verifier.stats().lease_left;
        assert!(
            left >= LEASE / 2 && left <= LEASE - margin(LEASE),
            "{left:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_every_verification_looks_up() {
    let (source, clock) = (MemorySource::default(), ManualClock::default());
    source.put(&text(0), record(&text(0)));
    let verifier = leaseless(&source, &clock).await;
    for n in 1..=3 {
        assert_eq!(
            verifier
                .verify(&text(0), &AccessRequest::default())
                .await
                .unwrap()
                .outcome,
            Ok(())
        );
        assert_eq!(source.finds(), n);
    }
    source.change(&text(0), |it| it.key.suspended_at = Some(clock.now()));
    assert_eq!(
        verifier
            .verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Err(Denial::Suspended)
    );
}

#[tokio::test(start_paused = true)]
async fn cached_keys_are_used_until_the_lease_ends() {
    let world = World::new(2).await;
    let one = &world.one.verifier;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    world.source.set_down(true);
    let down_at = world.clock.elapsed();
    assert_eq!(
        one.verify(&text(1), &AccessRequest::default())
            .await
            .unwrap_err(),
        Unavailable,
        "not cached"
    );
    while !one.stats().lease_left.is_zero() {
        assert_eq!(world.one.outcome(0).await, Ok(()));
        sleep(Duration::from_millis(1)).await;
    }
    assert!(world.clock.elapsed() - down_at <= LEASE - margin(LEASE) + Duration::from_millis(1));
    assert_eq!(
        one.verify(&text(0), &AccessRequest::default())
            .await
            .unwrap_err(),
        Unavailable
    );
    assert_eq!(one.stats().unavailable, 2);

    // When the source is up again, the lease is renewed and the cached keys are used again.
    world.source.set_down(false);
    sleep(LEASE).await;
    assert!(!world.one.looks_up(0).await);
}

#[tokio::test(start_paused = true)]
async fn changes_of_an_outage_are_applied_before_a_new_lease() {
    let world = World::new(2).await;
    assert_eq!(
        (world.one.outcome(0).await, world.one.outcome(1).await),
        (Ok(()), Ok(()))
    );
    world.source.set_down(true);
    sleep(LEASE * 2).await;
    world.revoke(0);
    world.source.set_down(false);
    sleep(LEASE).await;
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
    assert!(!world.one.looks_up(1).await);
}

#[tokio::test(start_paused = true)]
async fn lease_is_renewed_under_constant_changes() {
    let world = World::new(1).await;
    let busy = tokio::spawn({
        let source = world.source.clone();
        async move {
            loop {
                source.change(&text(0), |_| ());
                sleep(Duration::from_micros(700)).await;
            }
        }
    });
    for _ in 0..30 {
        sleep(LEASE / 10).await;
        assert!(world.one.verifier.stats().lease_left > LEASE / 2);
    }
    busy.abort();
}

#[tokio::test(start_paused = true)]
async fn notification_applies_and_reports_changes_immediately() {
    let world = World::new(1).await;
    sleep(Duration::from_millis(10)).await;
    let (seq, _) = world.revoke(0);
    let before = world.clock.elapsed();
    world.one.verifier.notify();
    while world.source.verifiers()[&world.one.verifier.id()].0 < seq {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.clock.elapsed(), before, "no time passed");
    let renewals = world.source.verifiers()[&world.one.verifier.id()].1;
    assert_eq!(renewals, 1, "a report does not renew the lease");
}

#[tokio::test(start_paused = true)]
async fn renewal_sent_before_a_reset_grants_no_lease() {
    let world = World::new(1).await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    let held = world.source.hold().await;
    sleep(LEASE / 3 + Duration::from_millis(1)).await;
    assert_eq!(
        world.source.verifiers()[&world.one.verifier.id()].1,
        2,
        "renewed, but the response is delayed"
    );
    // On the restored database, a revocation finds no row of this verifier to wait for.
    world.source.restore(Seq(0));
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert!(world.one.verifier.stats().lease_left.is_zero());
    world.source.set_down(true);
    drop(held);
    sleep(Duration::from_millis(1)).await;
    assert!(world.one.verifier.stats().lease_left.is_zero());
    world.source.set_down(false);
    sleep(LEASE / 3).await;
    assert!(!world.one.verifier.stats().lease_left.is_zero());
}

#[tokio::test(start_paused = true)]
async fn lease_is_renewed_immediately_after_a_reset() {
    let world = World::new(1).await;
    let (seq, since) = world.revoke(0);
    world.source.prune(seq);
    let before = world.clock.elapsed();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert!(world.one.verifier.stats().lease_left.is_zero());
    while world.one.verifier.stats().lease_left.is_zero() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.clock.elapsed(), before);
}

#[tokio::test(start_paused = true)]
async fn stopping_a_verifier_ends_its_task() {
    let world = World::new(1).await;
    world.one.verifier.stop().await;
    world.one.ended().await;
    sleep(LEASE).await;
    assert!(world.source.verifiers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn verifier_stops_while_the_source_does_not_respond() {
    // The lease is longer than a server may take to stop.
    let lease = Duration::from_secs(60);
    let world = World::on(MemorySource::with_lease(lease), 1, Settings::default()).await;
    let _held = world.source.hold_reports().await;
    let (seq, before) = world.revoke(0);
    world.one.verifier.notify();
    while world.source.verifiers()[&world.one.verifier.id()].0 < seq {
        tokio::task::yield_now().await;
    }
    world.one.stop().await;
    assert!(world.source.verifiers().is_empty());
    assert_eq!(world.clock.elapsed(), before);
}

#[tokio::test(start_paused = true)]
async fn stopped_verifier_uses_no_cached_key_and_has_no_row() {
    let world = World::new(1).await;
    assert!(world.one.looks_up(0).await);
    let source = world.source.clone();
    let one = world.one.stop().await;
    assert!(source.verifiers().is_empty());
    let before = source.finds();
    assert_eq!(
        one.verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Ok(())
    );
    assert_eq!(
        one.verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Ok(())
    );
    assert_eq!(source.finds(), before + 2);
    assert!(one.stats().lease_left.is_zero());
}

#[tokio::test(start_paused = true)]
async fn look_ups_over_the_limit_are_unavailable() {
    let settings = Settings {
        max_look_ups: 2,
        look_up_limit: Duration::from_millis(100),
        ..Settings::default()
    };
    let world = World::with(4, settings).await;
    assert_eq!(world.one.outcome(3).await, Ok(()));
    let held = world.source.hold().await;
    let verify = |n| {
        let verifier = world.one.verifier.clone();
        tokio::spawn(async move {
            verifier
                .verify(&text(n), &AccessRequest::default())
                .await
                .map(|verdict| verdict.outcome)
        })
    };
    let (first, second, third) = (verify(0), verify(1), verify(2));
    let before = world.clock.elapsed();
    assert_eq!(third.await.unwrap(), Err(Unavailable));
    assert!(world.clock.elapsed() - before >= Duration::from_millis(100));
    assert_eq!(
        world.one.outcome(3).await,
        Ok(()),
        "a cached key does not wait for a look-up"
    );
    // The look-ups that were sent fail too when the source takes longer than the limit.
    assert_eq!(
        (first.await.unwrap(), second.await.unwrap()),
        (Err(Unavailable), Err(Unavailable))
    );
    let waiting = verify(2);
    sleep(Duration::from_millis(50)).await;
    drop(held);
    assert_eq!(waiting.await.unwrap(), Ok(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn verifier_cannot_start_without_its_source() {
    let source = MemorySource::default();
    source.set_down(true);
    let clock = std::sync::Arc::new(ManualClock::default());
    let id = tollkey_core::VerifierId::from_bytes([1; 16]);
    let verifier = tollkey_verifier::Verifier::new(id, source, clock, Settings::default()).await;
    assert_eq!(verifier.err(), Some(Unavailable));
}
