//! Rate limits: they are exact, are applied after all other denials, and are not reset by a change or an eviction.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tollkey_core::{
    AccessRequest, Changed, Denial, IpList, KeyContext, KeyId, RateLimit, lineage::Inherited,
};
use tollkey_verifier::{
    Settings,
    testing::{account, record},
};

use crate::world::{World, text};

async fn limited(limit: i64, window: i64, settings: Settings) -> World {
    let world = World::with(0, settings).await;
    for n in 0..10 {
        let mut it = record(&text(n));
        it.key.restrictions.rate_limit = RateLimit::new(limit, window).ok();
        world.source.put(&text(n), it);
    }
    world
}

#[tokio::test(start_paused = true)]
async fn verdict_reports_the_remaining_uses() {
    let world = limited(2, 60, Settings::default()).await;
    let first = world.one.verify(0).await;
    let rate = first.rate.unwrap();
    assert_eq!(
        (
            rate.limit,
            rate.window_seconds,
            rate.remaining,
            rate.reset_seconds
        ),
        (2, 60, 1, 30)
    );
    assert_eq!(first.retry_after_seconds, None);
    assert_eq!(world.one.verify(0).await.rate.unwrap().remaining, 0);

    let limited_verdict = world.one.verify(0).await;
    assert_eq!(
        (limited_verdict.outcome, limited_verdict.retry_after_seconds),
        (Err(Denial::RateLimited), Some(30))
    );
    assert_eq!(
        (
            limited_verdict.rate.unwrap().remaining,
            limited_verdict.rate.unwrap().reset_seconds
        ),
        (0, 60)
    );
    assert!(limited_verdict.record.is_some());
    sleep(Duration::from_millis(29_500)).await;
    assert_eq!(world.one.verify(0).await.retry_after_seconds, Some(1));
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(world.one.outcome(1).await, Ok(()), "each key has its own");
}

#[tokio::test(start_paused = true)]
async fn peek_takes_no_use_and_counts_nothing() {
    let world = limited(1, 60, Settings::default()).await;
    let verifier = &world.one.verifier;
    for _ in 0..3 {
        let seen = verifier
            .peek(text(0).as_str(), &AccessRequest::default())
            .await
            .unwrap();
        assert_eq!(
            (seen.outcome, seen.rate, seen.retry_after_seconds),
            (Ok(()), None, None)
        );
        assert!(seen.record.is_some());
    }
    assert!(verifier.take_usage().is_empty());
    assert_eq!(
        [world.one.outcome(0).await, world.one.outcome(0).await],
        [Ok(()), Err(Denial::RateLimited)]
    );
    // It returns every denial except `rate_limited`.
    assert_eq!(
        verifier
            .peek(text(0).as_str(), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Ok(())
    );
    world.revoke(0);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(
        verifier
            .peek(text(0).as_str(), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Err(Denial::Revoked)
    );
}

#[test]
fn limit_is_exact_under_parallel_requests() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = Arc::new(limited(50, 86_400, Settings::default()).await);
        let requests: Vec<_> = (0..200)
            .map(|_| {
                let world = Arc::clone(&world);
                tokio::spawn(async move { world.one.outcome(0).await })
            })
            .collect();
        let mut allowed = 0;
        for request in requests {
            match request.await.unwrap() {
                Ok(()) => allowed += 1,
                other => assert_eq!(other, Err(Denial::RateLimited)),
            }
        }
        assert_eq!(allowed, 50);
    });
}

#[tokio::test(start_paused = true)]
async fn other_denials_take_nothing_from_the_limit() {
    let world = limited(1, 60, Settings::default()).await;
    let mut it = record(&text(0));
    it.key.restrictions.rate_limit = RateLimit::new(1, 60).ok();
    it.key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
    world.source.put(&text(0), it);
    for _ in 0..5 {
        let verdict = world.one.verify(0).await;
        assert_eq!(
            (verdict.outcome, verdict.rate),
            (Err(Denial::IpNotAllowed), None)
        );
    }
    let access = AccessRequest {
        client_ip: Some([203, 0, 113, 1].into()),
        ..AccessRequest::default()
    };
    assert_eq!(
        world
            .one
            .verifier
            .verify(&text(0), &access)
            .await
            .unwrap()
            .outcome,
        Ok(())
    );
    assert_eq!(
        world
            .one
            .verifier
            .verify(&text(0), &access)
            .await
            .unwrap()
            .outcome,
        Err(Denial::RateLimited)
    );
}

#[tokio::test(start_paused = true)]
async fn only_a_new_limit_resets_the_remaining_uses() {
    let world = limited(1, 60, Settings::default()).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    world
        .source
        .change(&text(0), |it| it.key.name = "renamed".to_owned());
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    let limited_verdict = world.one.verify(0).await;
    assert_eq!(limited_verdict.outcome, Err(Denial::RateLimited));
    assert_eq!(limited_verdict.record.unwrap().key.name, "renamed");

    world.source.change(&text(0), |it| {
        it.key.restrictions.rate_limit = RateLimit::new(3, 60).ok()
    });
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(world.one.verify(0).await.rate.unwrap().remaining, 2);
}

#[tokio::test(start_paused = true)]
async fn evicted_key_keeps_its_rate_limit() {
    let world = limited(
        1,
        600,
        Settings {
            max_entries: 4,
            ..Settings::default()
        },
    )
    .await;
    for n in 0..4 {
        assert_eq!(world.one.outcome(n).await, Ok(()));
    }
    // Key 99 has no rate limit: it evicts a key, but no limiter.
    world.source.put(&text(99), record(&text(99)));
    assert_eq!(world.one.outcome(99).await, Ok(()));
    for n in 0..4 {
        assert_eq!(world.one.outcome(n).await, Err(Denial::RateLimited));
    }
}

#[tokio::test(start_paused = true)]
async fn limits_apply_without_a_lease() {
    let world = limited(1, 600, Settings::default()).await;
    let one = world.one.stop().await;
    let access = AccessRequest::default();
    assert_eq!(one.verify(&text(0), &access).await.unwrap().outcome, Ok(()));
    assert_eq!(
        one.verify(&text(0), &access).await.unwrap().outcome,
        Err(Denial::RateLimited)
    );
}

/// A key of that account with one use a day.
fn once_a_day(n: usize, name: &str) -> KeyContext {
    let mut it = record(&text(n));
    it.key.account_id = account(name);
    it.key.restrictions.rate_limit = RateLimit::new(1, 86_400).ok();
    it
}

#[tokio::test(start_paused = true)]
async fn flood_of_one_account_does_not_reset_limits_of_others() {
    let settings = Settings {
        max_bytes: Settings::MIN_BYTES,
        ..Settings::default()
    };
    let world = World::with(0, settings).await;
    (0..20).for_each(|n| world.source.put(&text(n), once_a_day(n, "small")));
    (20..12_000).for_each(|n| world.source.put(&text(n), once_a_day(n, "flood")));
    for n in 0..12_000 {
        assert_eq!(world.one.outcome(n).await, Ok(()));
    }
    // The account changes, so its keys are looked up again.
    world
        .source
        .change_all(Changed::Account(account("small")), |_| ());
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    for n in 0..20 {
        assert_eq!(world.one.outcome(n).await, Err(Denial::RateLimited), "{n}");
    }
    assert!(world.one.verifier.stats().bytes <= Settings::MIN_BYTES);
}

#[tokio::test(start_paused = true)]
async fn limit_of_a_parent_key_holds_for_all_descendants() {
    let settings = Settings {
        max_bytes: Settings::MIN_BYTES,
        ..Settings::default()
    };
    let world = World::with(0, settings).await;
    let parent = KeyId::from_bytes([7; 16]);
    let mut allowed = 0;
    for n in 0..12_000 {
        let mut it = once_a_day(n, "a");
        let rate_limits = vec![(parent, RateLimit::new(100, 86_400).unwrap())];
        it.key.inherited = Some(Box::new(Inherited {
            rate_limits,
            ..Inherited::default()
        }));
        world.source.put(&text(n), it);
        allowed += usize::from(world.one.outcome(n).await.is_ok());
    }
    assert_eq!(allowed, 100);
}

#[tokio::test(start_paused = true)]
async fn keys_are_limited_and_counted_without_a_cache() {
    for settings in [
        Settings {
            max_bytes: 0,
            ..Settings::default()
        },
        Settings {
            max_entries: 0,
            ..Settings::default()
        },
    ] {
        let world = World::with(0, settings).await;
        world.source.put(&text(0), once_a_day(0, "a"));
        assert_eq!(world.one.outcome(0).await, Ok(()));
        for _ in 0..9 {
            assert_eq!(world.one.outcome(0).await, Err(Denial::RateLimited));
        }
        let stats = world.one.verifier.stats();
        assert_eq!((stats.entries, stats.usage_dropped), (0, 0));
        let counts = world.one.verifier.take_usage();
        let counts: Vec<_> = counts.iter().map(|row| (row.outcome, row.count)).collect();
        assert_eq!(counts, [(None, 1), (Some(Denial::RateLimited), 9)]);
    }
}
