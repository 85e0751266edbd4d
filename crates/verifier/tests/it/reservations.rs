//! Reserving a use of a key, and every way in which a reservation ends.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;
use tollkey_core::{AccessRequest, Denial, Mode, RateLimit};
use tollkey_verifier::{Reservation, Unavailable, Verdict, testing::record};

use crate::world::{LEASE, World, text};

fn counted(world: &World) -> BTreeMap<Option<&'static str>, u64> {
    let rows = world.one.verifier.take_usage();
    rows.into_iter()
        .map(|row| (row.outcome.map(Denial::code), row.count))
        .collect()
}

async fn reserve(world: &World, n: usize) -> Result<Reservation, Verdict> {
    let verifier = &world.one.verifier;
    verifier
        .reserve(&text(n), &AccessRequest::default())
        .await
        .expect("the source responds")
}

async fn reserved(world: &World, n: usize) -> Reservation {
    reserve(world, n).await.expect("the key is allowed")
}

async fn denied(world: &World, n: usize) -> Verdict {
    reserve(world, n).await.expect_err("the key is denied")
}

/// Two keys, of which the first has a rate limit per minute.
async fn limited(limit: i64) -> World {
    let world = World::new(2).await;
    let mut it = record(&text(0));
    it.key.restrictions.rate_limit = RateLimit::new(limit, 60).ok();
    world.source.put(&text(0), it);
    world
}

#[tokio::test(start_paused = true)]
async fn reserved_use_is_counted_when_it_is_committed() {
    let world = World::new(1).await;
    let reservation = reserved(&world, 0).await;
    assert!(counted(&world).is_empty());
    assert!(reservation.commit());
    assert_eq!(counted(&world), BTreeMap::from([(None, 1)]));
}

#[tokio::test(start_paused = true)]
async fn dropped_reservation_commits_the_use() {
    let world = limited(1).await;
    drop(reserved(&world, 0).await);
    assert_eq!(counted(&world), BTreeMap::from([(None, 1)]));
    assert_eq!(
        denied(&world, 0).await.outcome,
        Err(Denial::RateLimited),
        "a client that disconnects does not get its use back"
    );
}

#[tokio::test(start_paused = true)]
async fn aborted_request_commits_its_use() {
    let world = limited(1).await;
    let reservation = reserved(&world, 0).await;
    let request = tokio::spawn(async move {
        let _reservation = reservation;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    assert_eq!(counted(&world), BTreeMap::from([(None, 1)]));
    assert_eq!(world.one.outcome(0).await, Err(Denial::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn later_denial_is_counted_and_gives_the_use_back() {
    let world = limited(1).await;
    let live_only = AccessRequest {
        mode: Some(Mode::Live),
        ..AccessRequest::default()
    };
    for _ in 0..5 {
        let reservation = reserved(&world, 0).await;
        assert_eq!(
            reservation.decide_requirements(&live_only),
            Err(Denial::WrongMode)
        );
        assert!(reservation.reject(Denial::WrongMode));
    }
    assert_eq!(counted(&world), BTreeMap::from([(Some("wrong_mode"), 5)]));
    assert_eq!(
        world.one.outcome(0).await,
        Ok(()),
        "the use is still available"
    );
}

#[tokio::test(start_paused = true)]
async fn further_decision_does_not_end_the_reservation() {
    let world = limited(1).await;
    let reservation = reserved(&world, 0).await;
    let live_only = AccessRequest {
        mode: Some(Mode::Live),
        ..AccessRequest::default()
    };
    assert_eq!(
        reservation.decide_requirements(&live_only),
        Err(Denial::WrongMode)
    );
    assert!(counted(&world).is_empty());
    assert!(reservation.commit());
    assert_eq!(counted(&world), BTreeMap::from([(None, 1)]));
}

#[tokio::test(start_paused = true)]
async fn rejection_as_unknown_key_is_not_counted() {
    let world = limited(1).await;
    for _ in 0..5 {
        assert!(reserved(&world, 0).await.reject(Denial::UnknownKey));
    }
    assert_eq!(counted(&world), BTreeMap::new());
    assert_eq!(world.one.verifier.usage_waiting(), 0);
    assert_eq!(world.one.outcome(0).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_are_limited_by_reserved_uses() {
    let world = limited(2).await;
    let (first, second) = (reserved(&world, 0).await, reserved(&world, 0).await);
    let third = denied(&world, 0).await;
    assert_eq!(
        (third.outcome, third.retry_after_seconds),
        (Err(Denial::RateLimited), Some(30))
    );
    assert_eq!(counted(&world), BTreeMap::from([(Some("rate_limited"), 1)]));
    assert!(first.reject(Denial::InsufficientScope));
    // Only the use that was given back is available again.
    let fourth = reserved(&world, 0).await;
    assert_eq!(denied(&world, 0).await.outcome, Err(Denial::RateLimited));
    drop((second, fourth));
}

#[tokio::test(start_paused = true)]
async fn unknown_key_is_denied_and_not_counted() {
    let world = World::new(1).await;
    let verdict = denied(&world, 7).await;
    assert_eq!(verdict.outcome, Err(Denial::UnknownKey));
    assert!(verdict.record.is_none());
    assert!(counted(&world).is_empty());
}

#[tokio::test(start_paused = true)]
async fn reservation_reports_what_remains_of_the_limit() {
    let world = limited(2).await;
    let reservation = reserved(&world, 0).await;
    let rate = reservation.rate().expect("the key has a limit");
    assert_eq!((rate.limit, rate.remaining), (2, 1));
    assert_eq!(reservation.key().key.id, record(&text(0)).key.id);
    assert!(reserved(&world, 1).await.rate().is_none());
}

#[tokio::test(start_paused = true)]
async fn cached_key_is_used_without_the_source_only_within_grace() {
    let world = World::new(2).await;
    let grace = Duration::from_secs(60);
    drop(reserved(&world, 0).await);
    world.source.set_down(true);
    sleep(LEASE).await;
    let verifier = &world.one.verifier;
    let (text, access) = (text(0), AccessRequest::default());
    let within_grace = async |text, access| {
        let reserved = verifier
            .reserve_without_immediate_revocation(text, access, grace)
            .await?;
        Ok::<_, Unavailable>(reserved.map(drop).map_err(|verdict| verdict.outcome))
    };
    assert!(matches!(
        verifier.reserve(&text, &access).await,
        Err(Unavailable)
    ));
    assert_eq!(within_grace(&text, &access).await, Ok(Ok(())));
    // The cached restrictions still apply.
    let live = AccessRequest {
        mode: Some(Mode::Live),
        ..access
    };
    assert_eq!(
        within_grace(&text, &live).await,
        Ok(Err(Err(Denial::WrongMode)))
    );
    // The grace period covers neither a key that was never cached nor one whose lease ended longer ago.
    let other = crate::world::text(1);
    assert_eq!(within_grace(&other, &access).await, Err(Unavailable));
    sleep(grace).await;
    assert_eq!(within_grace(&text, &access).await, Err(Unavailable));
    // When the source responds again, the changes since then apply.
    world.source.set_down(false);
    world.revoke(0);
    sleep(LEASE).await;
    assert_eq!(
        within_grace(&text, &access).await,
        Ok(Err(Err(Denial::Revoked)))
    );
}

#[tokio::test(start_paused = true)]
async fn canceled_reservation_counts_nothing_and_gives_the_use_back() {
    let world = limited(1).await;
    for _ in 0..5 {
        assert!(reserved(&world, 0).await.cancel());
    }
    assert!(counted(&world).is_empty());
    // A denied request takes nothing.
    let reservation = reserved(&world, 0).await;
    assert_eq!(denied(&world, 0).await.outcome, Err(Denial::RateLimited));
    assert_eq!(denied(&world, 0).await.outcome, Err(Denial::RateLimited));
    drop(reservation);
}

#[tokio::test(start_paused = true)]
async fn use_available_again_by_time_is_not_given_back() {
    let world = limited(1).await;
    let slow = reserved(&world, 0).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert!(slow.reject(Denial::InsufficientScope));
    assert_eq!(world.one.outcome(0).await, Err(Denial::RateLimited));
}

/// A way to end a reservation, and what it counts.
type End = (
    &'static str,
    fn(&Reservation) -> bool,
    Option<Option<&'static str>>,
);

#[tokio::test(start_paused = true)]
async fn reservation_ends_only_once() {
    let ends: [End; 3] = [
        ("commit", Reservation::commit, Some(None)),
        (
            "reject",
            |reservation| reservation.reject(Denial::InsufficientScope),
            Some(Some("insufficient_scope")),
        ),
        ("cancel", Reservation::cancel, None),
    ];
    for (first, end, counts) in ends {
        let world = limited(2).await;
        let (reservation, other) = (reserved(&world, 0).await, reserved(&world, 0).await);
        assert!(end(&reservation), "{first}");
        for (second, end, _) in ends {
            assert!(!end(&reservation), "{first}, then {second}");
        }
        drop(reservation);
        let expected: BTreeMap<_, _> = counts.map(|outcome| (outcome, 1)).into_iter().collect();
        assert_eq!(counted(&world), expected, "{first}, then all and drop");
        // At most one use was given back, and the other request's is still taken.
        let available = usize::from(first != "commit");
        let again: Vec<_> = [
            reserve(&world, 0).await.is_ok(),
            reserve(&world, 0).await.is_ok(),
        ]
        .into_iter()
        .filter(|is_ok| *is_ok)
        .collect();
        assert_eq!(again.len(), available, "{first}");
        drop(other);
    }
}

#[test]
fn parallel_ends_of_a_reservation_count_one() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    // Every thread reads the paused clock.
    let _context = runtime.enter();
    let world = runtime.block_on(limited(1));
    for _ in 0..200 {
        let reservation = runtime.block_on(reserved(&world, 0));
        let ended = std::thread::scope(|scope| {
            let threads = [0, 1, 2, 3].map(|n| {
                let (reservation, runtime) = (&reservation, &runtime);
                scope.spawn(move || {
                    let _context = runtime.enter();
                    if n % 2 == 0 {
                        reservation.cancel()
                    } else {
                        reservation.reject(Denial::InsufficientScope)
                    }
                })
            });
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum::<usize>()
        });
        assert_eq!(ended, 1);
        drop(reservation);
        let counts: u64 = counted(&world).values().sum();
        assert!(counts <= 1, "{counts}");
    }
    // Nothing was given back twice: exactly one use is available.
    let first = runtime.block_on(reserved(&world, 0));
    assert!(runtime.block_on(reserve(&world, 0)).is_err());
    drop(first);
}
