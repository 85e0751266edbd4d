//! Verifications that are held until their request ends.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;
use tollkey_core::{Denial, Mode, Need, RateLimit};
use tollkey_verifier::{Unavailable, Verdict, testing::record};

use crate::world::{LEASE, World, text};

/// What was counted, by outcome.
fn counted(world: &World) -> BTreeMap<Option<&'static str>, u64> {
    let rows = world.one.verifier.take_usage();
    rows.into_iter()
        .map(|row| (row.outcome.map(Denial::code), row.count))
        .collect()
}

async fn held(world: &World, n: usize) -> Verdict {
    world
        .one
        .verifier
        .hold(&text(n), &Need::default())
        .await
        .unwrap()
}

async fn limited(limit: i64) -> World {
    let world = World::new(2).await;
    let mut it = record(&text(0));
    it.key.grants.rate_limit = RateLimit::new(limit, 60).ok();
    world.source.put(&text(0), it);
    world
}

#[tokio::test(start_paused = true)]
async fn what_is_let_in_is_a_use_once_it_is_concluded() {
    let world = World::new(1).await;
    let verdict = held(&world, 0).await;
    assert_eq!(verdict.outcome, Ok(()));
    assert!(counted(&world).is_empty());
    world.one.verifier.conclude(&verdict, Ok(()));
    assert_eq!(counted(&world), BTreeMap::from([(None, 1)]));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_further_in_costs_nothing_and_is_counted_as_refused() {
    let world = limited(1).await;
    let test_only = Need {
        mode: Some(Mode::Live),
        ..Need::default()
    };
    for _ in 0..5 {
        let verdict = held(&world, 0).await;
        assert_eq!(verdict.outcome, Ok(()));
        let denied = world.one.verifier.decide_further(&verdict, &test_only);
        assert_eq!(denied, Err(Denial::WrongMode));
        world.one.verifier.conclude(&verdict, denied);
    }
    assert_eq!(counted(&world), BTreeMap::from([(Some("wrong_mode"), 5)]));
    assert_eq!(
        world.one.outcome(0).await,
        Ok(()),
        "the one use is still there"
    );
}

#[tokio::test(start_paused = true)]
async fn rejection_as_unknown_key_is_not_counted_as_a_success() {
    let world = limited(1).await;
    for _ in 0..5 {
        let verdict = held(&world, 0).await;
        assert_eq!(verdict.outcome, Ok(()));
        world
            .one
            .verifier
            .conclude(&verdict, Err(Denial::UnknownKey));
    }
    assert_eq!(counted(&world), BTreeMap::new());
    assert_eq!(world.one.verifier.usage_waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_are_let_in_at_a_time_than_the_limit_has() {
    let world = limited(2).await;
    let (first, second) = (held(&world, 0).await, held(&world, 0).await);
    assert_eq!((first.outcome, second.outcome), (Ok(()), Ok(())));
    let third = held(&world, 0).await;
    assert_eq!(
        (third.outcome, third.retry_after_seconds),
        (Err(Denial::RateLimited), Some(30))
    );
    // A denial is counted when it is made, and concluding it changes nothing.
    world
        .one
        .verifier
        .conclude(&third, Err(Denial::RateLimited));
    assert_eq!(counted(&world), BTreeMap::from([(Some("rate_limited"), 1)]));
    world
        .one
        .verifier
        .conclude(&first, Err(Denial::InsufficientScope));
    assert_eq!(
        held(&world, 0).await.outcome,
        Ok(()),
        "what was given back is there again"
    );
    assert_eq!(held(&world, 0).await.outcome, Err(Denial::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_denied_at_the_door_is_denied_further_in() {
    let world = World::new(1).await;
    let verdict = world
        .one
        .verifier
        .hold(&text(7), &Need::default())
        .await
        .unwrap();
    assert_eq!(verdict.outcome, Err(Denial::UnknownKey));
    assert_eq!(
        world
            .one
            .verifier
            .decide_further(&verdict, &Need::default()),
        Err(Denial::UnknownKey)
    );
}

#[tokio::test(start_paused = true)]
async fn only_who_says_so_goes_on_without_the_source_and_no_longer_than_said() {
    let world = World::new(2).await;
    let grace = Duration::from_secs(60);
    assert_eq!(held(&world, 0).await.outcome, Ok(()));
    world.source.set_down(true);
    sleep(LEASE).await;
    let verifier = &world.one.verifier;
    let (text, need) = (text(0), Need::default());
    assert!(matches!(
        verifier.hold(&text, &need).await,
        Err(Unavailable)
    ));
    let late = verifier
        .hold_without_immediate_revocation(&text, &need, grace)
        .await
        .unwrap();
    assert_eq!(late.outcome, Ok(()));
    // What it was judged by is judged still: time goes on, and so do its other restrictions.
    let live = Need {
        mode: Some(Mode::Live),
        ..need
    };
    let denied = verifier
        .hold_without_immediate_revocation(&text, &live, grace)
        .await
        .unwrap();
    assert_eq!(denied.outcome, Err(Denial::WrongMode));
    // Another that was never asked for is not known, and longer than said is too long.
    let other = crate::world::text(1);
    assert!(matches!(
        verifier
            .hold_without_immediate_revocation(&other, &need, grace)
            .await,
        Err(Unavailable)
    ));
    sleep(grace).await;
    assert!(matches!(
        verifier
            .hold_without_immediate_revocation(&text, &need, grace)
            .await,
        Err(Unavailable)
    ));
    // Back again, what was changed meanwhile holds.
    world.source.set_down(false);
    world.revoke(0);
    sleep(LEASE).await;
    let back = verifier
        .hold_without_immediate_revocation(&text, &need, grace)
        .await
        .unwrap();
    assert_eq!(back.outcome, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn what_is_released_was_never_asked() {
    let world = limited(1).await;
    for _ in 0..5 {
        let verdict = held(&world, 0).await;
        assert_eq!(verdict.outcome, Ok(()));
        world.one.verifier.release(&verdict);
    }
    assert!(counted(&world).is_empty());
    // What is denied has taken nothing that could be given back.
    assert_eq!(held(&world, 0).await.outcome, Ok(()));
    let denied = held(&world, 0).await;
    world.one.verifier.release(&denied);
    assert_eq!(held(&world, 0).await.outcome, Err(Denial::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn who_holds_on_until_a_use_has_come_back_gets_no_second_one() {
    let world = limited(1).await;
    let slow = held(&world, 0).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    world
        .one
        .verifier
        .conclude(&slow, Err(Denial::InsufficientScope));
    assert_eq!(world.one.outcome(0).await, Err(Denial::RateLimited));
}
