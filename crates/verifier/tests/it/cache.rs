//! Tests which keys are cached, and which changes evict them.

use tollkey_core::{
    AccessRequest, ApplicationId, Changed, Denial, Family, KeyId, Position, Seq, ServiceKeyId,
};
use tollkey_verifier::{
    Primary, Settings,
    testing::{account, record},
};

use crate::world::{World, text};

#[tokio::test(start_paused = true)]
async fn cached_key_is_not_looked_up_again() {
    let world = World::new(2).await;
    assert!(world.one.looks_up(0).await);
    assert!(!world.one.looks_up(0).await);
    assert!(world.one.looks_up(1).await);
    let stats = world.one.verifier.stats();
    assert_eq!((stats.hits, stats.misses, stats.entries), (1, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn unknown_key_is_not_cached() {
    let world = World::new(0).await;
    assert_eq!(world.one.outcome(0).await, Err(Denial::UnknownKey));
    assert_eq!(world.one.outcome(0).await, Err(Denial::UnknownKey));
    assert_eq!(world.source.finds(), 2);
    world.source.put(&text(0), record(&text(0))); // creating a key is not in the log of changes
    assert_eq!(world.one.outcome(0).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn revocation_evicts_only_its_key() {
    let world = World::new(2).await;
    assert_eq!(
        (world.one.outcome(0).await, world.one.outcome(1).await),
        (Ok(()), Ok(()))
    );
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
    assert!(!world.one.looks_up(1).await);
    assert_eq!(world.one.verifier.stats().changed, 1);
}

#[tokio::test(start_paused = true)]
async fn change_of_an_application_or_account_evicts_only_its_keys() {
    let world = World::new(0).await;
    let [a, b] = [1, 2].map(|n| ApplicationId::from_bytes([n; 16]));
    for (n, application, owner) in [
        (0, Some(a), "acme"),
        (1, Some(a), "acme"),
        (2, Some(b), "acme"),
        (3, None, "b"),
    ] {
        let mut it = record(&text(n));
        it.key.application_id = application;
        it.key.account_id = account(owner);
        it.key.family = Family::Application;
        world.source.put(&text(n), it);
    }
    let cache_all = async || {
        for n in 0..4 {
            assert_eq!(world.one.outcome(n).await, Ok(()));
        }
    };
    let looks_up = async || {
        let mut looks_up = [false; 4];
        for (n, looks_up) in looks_up.iter_mut().enumerate() {
            *looks_up = world.one.looks_up(n).await;
        }
        looks_up
    };

    cache_all().await;
    let disable = |it: &mut tollkey_core::KeyContext| {
        it.application_enabled = it.key.application_id != Some(a)
    };
    world.source.change_all(Changed::Application(a), disable);
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(world.one.outcome(1).await, Err(Denial::ApplicationDisabled));
    assert_eq!(looks_up().await, [true, false, false, false]);

    world
        .source
        .change_all(Changed::Account(account("acme")), |it| {
            it.application_enabled = true
        });
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(looks_up().await, [true, true, true, false]);
    cache_all().await;

    world
        .source
        .change_all(Changed::Account(account("acm")), |_| ());
    world
        .source
        .change_all(Changed::Key(KeyId::from_bytes([7; 16])), |_| ());
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(looks_up().await, [false; 4]);
}

#[tokio::test(start_paused = true)]
async fn response_older_than_a_change_is_not_cached() {
    let world = World::new(1).await;
    let held = world.source.hold().await;
    let slow = tokio::spawn({
        let verifier = world.one.verifier.clone();
        async move {
            verifier
                .verify(&text(0), &AccessRequest::default())
                .await
                .unwrap()
                .outcome
        }
    });
    while world.source.finds() == 0 {
        tokio::task::yield_now().await; // until the state before the revocation has been read, but not returned
    }
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    drop(held);
    assert_eq!(
        slow.await.unwrap(),
        Ok(()),
        "the request began before the revocation"
    );
    assert_eq!(world.one.verifier.stats().entries, 0);
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn response_older_than_a_reset_is_not_cached() {
    let world = World::new(1).await;
    for _ in 0..5 {
        world
            .source
            .change_all(Changed::Key(KeyId::from_bytes([7; 16])), |_| ());
    }
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    let held = world.source.hold().await;
    let slow = tokio::spawn({
        let verifier = world.one.verifier.clone();
        async move {
            verifier
                .verify(&text(0), &AccessRequest::default())
                .await
                .unwrap()
                .outcome
        }
    });
    while world.source.finds() == 0 {
        tokio::task::yield_now().await;
    }
    // The database is restored from a backup. The response in flight has a higher counter than any later change.
    world.source.restore(Seq(2));
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    drop(held);
    assert_eq!(slow.await.unwrap(), Ok(()));
    assert_eq!(world.one.verifier.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn gap_in_the_log_clears_the_cache() {
    let world = World::new(3).await;
    for n in 0..3 {
        assert_eq!(world.one.outcome(n).await, Ok(()));
    }
    world.revoke(0);
    let (seq, since) = world.revoke(1);
    world.source.prune(Seq(seq.0 - 1)); // the log no longer has the change to key 0
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.one.verifier.stats().entries, 0);
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
    assert_eq!(world.one.verifier.stats().resets, 1);
    assert_eq!(world.one.verifier.stats().seq, seq);
}

#[tokio::test(start_paused = true)]
async fn empty_log_clears_the_cache() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let (seq, since) = world.revoke(0);
    world.source.prune(seq);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.one.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn counter_that_goes_back_clears_the_cache() {
    let world = World::new(2).await;
    let (seq, since) = world.revoke(1);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    world.source.restore(Seq(0));
    world.source.put(&text(0), {
        let mut it = record(&text(0));
        it.key.suspended_at = Some(it.key.created_at);
        it
    });
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    let stats = world.one.verifier.stats();
    assert_eq!((stats.entries, stats.seq, stats.resets), (0, Seq(0), 1));
    assert_eq!(world.one.outcome(0).await, Err(Denial::Suspended));
}

#[tokio::test(start_paused = true)]
async fn long_log_is_read_in_batches() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    for n in 0..2500u16 {
        let [high, low] = n.to_be_bytes();
        let mut id = [low; 16];
        id[0] = high;
        world
            .source
            .change_all(Changed::Key(KeyId::from_bytes(id)), |_| ());
    }
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(world.one.verifier.stats().seq, Seq(2500));
    assert_eq!(world.one.verifier.stats().resets, 0);
    assert!(!world.one.looks_up(0).await);
}

#[tokio::test(start_paused = true)]
async fn cache_keeps_used_keys_within_its_bound() {
    let world = World::with(
        300,
        Settings {
            max_entries: 10,
            ..Settings::default()
        },
    )
    .await;
    for n in 0..300 {
        assert_eq!(world.one.outcome(n).await, Ok(()));
        assert!(!world.one.looks_up(0).await, "key 0 is used all the time");
        assert!(world.one.verifier.stats().entries <= 10);
    }
    assert_eq!(world.one.verifier.stats().evictions, 290);
    // Keys that were evicted for space are no longer in the indexes.
    world
        .source
        .change_all(Changed::Account(account("acme")), |_| ());
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(world.one.verifier.stats().entries, 0);
    for n in 0..20 {
        assert_eq!(world.one.outcome(n).await, Ok(()));
    }
    assert_eq!(world.one.verifier.stats().entries, 10);
}

#[tokio::test(start_paused = true)]
async fn cache_of_size_zero_caches_nothing() {
    let world = World::with(
        1,
        Settings {
            max_entries: 0,
            ..Settings::default()
        },
    )
    .await;
    assert!(world.one.looks_up(0).await && world.one.looks_up(0).await);
}

#[tokio::test(start_paused = true)]
async fn concurrent_look_ups_of_a_key_cache_it_once() {
    let world = World::new(1).await;
    let held = world.source.hold().await;
    let look_ups: Vec<_> = (0..5)
        .map(|_| {
            let verifier = world.one.verifier.clone();
            tokio::spawn(async move {
                verifier
                    .verify(&text(0), &AccessRequest::default())
                    .await
                    .unwrap()
                    .outcome
            })
        })
        .collect();
    while world.source.finds() < 5 {
        tokio::task::yield_now().await;
    }
    drop(held);
    for look_up in look_ups {
        assert_eq!(look_up.await.unwrap(), Ok(()));
    }
    assert_eq!(world.one.verifier.stats().entries, 1);
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.one.verifier.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn service_keys_are_cached_and_evicted() {
    let world = World::new(1).await;
    let one = &world.one.verifier;
    let (key, other) = (
        format!("tks_{}", "a".repeat(32)),
        format!("tks_{}", "b".repeat(32)),
    );
    let (id, other_id) = (
        ServiceKeyId::from_bytes([1; 16]),
        ServiceKeyId::from_bytes([2; 16]),
    );
    world.source.put_service_key(&key, id);
    world.source.put_service_key(&other, other_id);
    assert_eq!(one.verify_service_key(&text(0), None).await, Ok(None));
    assert_eq!(one.verify_service_key("tks_short", None).await, Ok(None));
    assert_eq!(world.source.finds(), 0);
    for _ in 0..3 {
        assert_eq!(one.verify_service_key(&key, None).await, Ok(Some(id)));
        assert_eq!(
            one.verify_service_key(&other, None).await,
            Ok(Some(other_id))
        );
    }
    assert_eq!(world.source.finds(), 2);
    let unknown = format!("tks_{}", "c".repeat(32));
    assert_eq!(one.verify_service_key(&unknown, None).await, Ok(None));
    assert_eq!(one.verify_service_key(&unknown, None).await, Ok(None));
    assert_eq!(
        world.source.finds(),
        4,
        "an unknown service key is not cached"
    );

    world.source.revoke_service_key(id);
    one.wait_until_all_propagated().await.unwrap();
    assert_eq!(one.verify_service_key(&key, None).await, Ok(None));
    assert_eq!(
        one.verify_service_key(&other, None).await,
        Ok(Some(other_id))
    );
    assert_eq!(world.source.finds(), 5);
}

#[tokio::test(start_paused = true)]
async fn service_key_response_older_than_a_change_is_not_cached() {
    let world = World::new(0).await;
    let (key, id) = (
        format!("tks_{}", "a".repeat(32)),
        ServiceKeyId::from_bytes([1; 16]),
    );
    world.source.put_service_key(&key, id);
    let held = world.source.hold().await;
    let slow = tokio::spawn({
        let (verifier, key) = (world.one.verifier.clone(), key.clone());
        async move { verifier.verify_service_key(&key, None).await }
    });
    while world.source.finds() == 0 {
        tokio::task::yield_now().await;
    }
    world.source.revoke_service_key(id);
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    drop(held);
    assert_eq!(slow.await.unwrap(), Ok(Some(id)));
    assert_eq!(
        world.one.verifier.verify_service_key(&key, None).await,
        Ok(None)
    );
}

#[tokio::test(start_paused = true)]
async fn number_of_cached_service_keys_is_bounded() {
    let world = World::new(0).await;
    for n in 0..1100u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        world
            .source
            .put_service_key(&format!("tks_{n:032}"), ServiceKeyId::from_bytes(id));
        assert!(
            world
                .one
                .verifier
                .verify_service_key(&format!("tks_{n:032}"), None)
                .await
                .unwrap()
                .is_some()
        );
    }
    let before = world.source.finds();
    for n in 0..1100 {
        let _ = world
            .one
            .verifier
            .verify_service_key(&format!("tks_{n:032}"), None)
            .await;
    }
    assert!(
        world.source.finds() > before,
        "the first service keys were evicted"
    );
    assert!(
        world
            .source
            .changes_after(Position::default(), 1)
            .await
            .is_ok()
    );
}
