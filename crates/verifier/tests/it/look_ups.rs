//! Keys that have to be asked for are asked for within bounds, whatever comes; keys that are remembered do not notice.

use std::time::Duration;

use tokio::{task::JoinHandle, time::sleep};
use tollkey_core::{Clock, Denial, Need};
use tollkey_verifier::{
    Requester, Settings, Unavailable, Verifier,
    testing::{MemorySource, account},
};

use crate::world::{World, text};

const SETTINGS: Settings = Settings {
    max_entries: 100,
    max_bytes: 1 << 20,
    max_look_ups: 16,
    max_waiting: 20,
    look_up_limit: Duration::from_secs(1),
};

type Asked = JoinHandle<Result<Result<(), Denial>, Unavailable>>;

fn ask(verifier: &Verifier<MemorySource>, key: String) -> Asked {
    let verifier = verifier.clone();
    tokio::spawn(async move {
        verifier
            .verify(&key, &Need::default())
            .await
            .map(|verdict| verdict.outcome)
    })
}

/// A look-up of a key for a requester.
fn ask_for(verifier: &Verifier<MemorySource>, requester: Requester, key: String) -> Asked {
    let verifier = verifier.clone();
    tokio::spawn(async move {
        let verdict = verifier
            .on_behalf_of(|| requester)
            .verify(&key, &Need::default())
            .await;
        verdict.map(|verdict| verdict.outcome)
    })
}

fn client(address: &str) -> Requester {
    Requester::client(Some(address.parse().unwrap()))
}

/// With the default bounds, and a source that answers when the test lets it.
#[tokio::test(start_paused = true)]
async fn unknown_keys_of_one_address_do_not_exclude_another() {
    let world = World::with(3, Settings::default()).await;
    let verifier = &world.one.verifier;
    let held = world.source.hold().await;
    // More than may ask and wait, from the addresses that one IPv6 client has.
    let flood: Vec<Asked> = (100..1400)
        .map(|n| ask_for(verifier, client(&format!("2001:db8:1:1::{n:x}")), text(n)))
        .collect();
    sleep(Duration::from_millis(1)).await;
    let finds = world.source.finds();
    let others: Vec<Asked> = [
        client("2001:db8:1:2::1"),
        client("192.0.2.1"),
        Requester::client(None),
    ]
    .into_iter()
    .zip(0..)
    .map(|(requester, n)| ask_for(verifier, requester, text(n)))
    .collect();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.source.finds() - finds,
        3,
        "the others do not wait for the flood"
    );
    drop(held);
    for other in others {
        assert_eq!(other.await.unwrap(), Ok(Ok(())));
    }
    for asked in flood {
        assert!(matches!(
            asked.await.unwrap(),
            Ok(Err(Denial::UnknownKey)) | Err(Unavailable)
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_do_not_exclude_authenticated_callers() {
    let world = World::with(2, Settings::default()).await;
    let verifier = &world.one.verifier;
    let held = world.source.hold().await;
    let strangers: Vec<Asked> = (0..1300)
        .map(|n| {
            ask_for(
                verifier,
                client(&format!("10.0.{}.{}", n / 256, n % 256)),
                text(100 + n),
            )
        })
        .collect();
    let keys_of_one: Vec<Asked> = (0..1300)
        .map(|n| {
            ask_for(
                verifier,
                Requester::Account(account("flood")),
                text(2000 + n),
            )
        })
        .collect();
    sleep(Duration::from_millis(1)).await;
    let finds = world.source.finds();
    let service = ask_for(verifier, Requester::Service("gateway".into()), text(0));
    let other = ask_for(verifier, Requester::Account(account("acme")), text(1));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(world.source.finds() - finds, 2);
    drop(held);
    for asked in [service, other] {
        assert_eq!(asked.await.unwrap(), Ok(Ok(())));
    }
    for asked in strangers.into_iter().chain(keys_of_one) {
        assert!(matches!(
            asked.await.unwrap(),
            Ok(Err(Denial::UnknownKey)) | Err(Unavailable)
        ));
    }
}

/// A source that answers slowly serves a stranger's queue and another client's in turn.
#[tokio::test(start_paused = true)]
async fn waiting_look_ups_are_served_by_address_in_turn() {
    let world = World::with(
        2,
        Settings {
            max_look_ups: 2,
            ..SETTINGS
        },
    )
    .await;
    let verifier = &world.one.verifier;
    let held = world.source.hold().await;
    let mut flood: Vec<Asked> = (100..1400)
        .map(|n| ask_for(verifier, client("192.0.2.1"), text(n)))
        .collect();
    sleep(Duration::from_millis(1)).await;
    let late = tokio::spawn({
        let (verifier, source) = (verifier.clone(), world.source.clone());
        async move {
            (
                ask_for(&verifier, client("192.0.2.2"), text(0))
                    .await
                    .unwrap(),
                source.finds(),
            )
        }
    });
    sleep(Duration::from_millis(1)).await;
    let finds = world.source.finds();
    drop(held);
    let (outcome, finds_until) = late.await.unwrap();
    assert_eq!(outcome, Ok(Ok(())), "a place in the queue is made for it");
    assert!(
        finds_until - finds <= 6,
        "it waits for {} of 20 look-ups",
        finds_until - finds
    );
    for asked in flood.drain(..) {
        let _ = asked.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_keys_neither_reaches_the_source_nor_queues_beyond_its_bounds() {
    let world = World::with(2, SETTINGS).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let finds = world.source.finds();
    let held = world.source.hold().await; // the source answers nobody
    let flood: Vec<Asked> = (100..1100)
        .map(|n| ask(&world.one.verifier, text(n)))
        .collect();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.source.finds() - finds,
        4,
        "half of the look-ups of clients, which are half of all"
    );
    let refused = flood.iter().filter(|asked| asked.is_finished()).count();
    assert_eq!(
        refused,
        1000 - 4 - 20,
        "all but those that ask and those that wait are told at once"
    );

    // A remembered key does not notice; one that is not waits its turn like the others, if there is room.
    let before = world.clock.elapsed();
    assert!(!world.one.asks(0).await);
    assert_eq!(world.clock.elapsed(), before);
    let begun = world.clock.elapsed();
    assert_eq!(
        ask(&world.one.verifier, text(1)).await.unwrap(),
        Err(Unavailable)
    );
    assert_eq!(world.clock.elapsed(), begun, "no room: told at once");

    // Whoever gets no answer within the limit is told so, and makes room.
    sleep(SETTINGS.look_up_limit).await;
    for asked in flood {
        assert!(asked.is_finished());
        assert_eq!(asked.await.unwrap(), Err(Unavailable));
    }

    // From then on one at a time finds out whether the source answers again.
    let finds = world.source.finds();
    let probe = ask(&world.one.verifier, text(1));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        ask(&world.one.verifier, text(200)).await.unwrap(),
        Err(Unavailable)
    );
    assert_eq!(world.source.finds(), finds + 1);
    drop(held);
    assert_eq!(probe.await.unwrap(), Ok(Ok(())));
    let again: Vec<Asked> = (100..110)
        .map(|n| ask(&world.one.verifier, text(n)))
        .collect();
    for asked in again {
        assert_eq!(
            asked.await.unwrap(),
            Ok(Err(Denial::UnknownKey)),
            "everybody is answered again"
        );
    }
    let stats = world.one.verifier.stats();
    assert_eq!(
        (stats.entries, stats.unavailable),
        (2, 1002),
        "what nobody knows is not remembered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_its_place_to_the_next() {
    let world = World::with(1, SETTINGS).await;
    let held = world.source.hold().await;
    for round in 0..50 {
        let flood: Vec<Asked> = (0..24)
            .map(|n| ask(&world.one.verifier, text(100 + 24 * round + n)))
            .collect();
        sleep(Duration::from_millis(1)).await;
        assert!(
            flood.iter().all(|asked| !asked.is_finished()),
            "round {round}"
        );
        flood.iter().for_each(JoinHandle::abort);
        sleep(Duration::from_millis(1)).await;
    }
    drop(held);
    assert_eq!(world.one.outcome(0).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn key_that_cannot_be_read_fails_alone() {
    let world = World::with(4, SETTINGS).await;
    world.source.make_unreadable(&text(0));
    assert_eq!(world.one.outcome(3).await, Ok(()));
    for _ in 0..5 {
        assert_eq!(
            ask(&world.one.verifier, text(0)).await.unwrap(),
            Err(Unavailable)
        );
    }
    // Two at the same time: the source does not count as silent.
    let held = world.source.hold().await;
    let asked = [1, 2].map(|n| ask(&world.one.verifier, text(n)));
    sleep(Duration::from_millis(1)).await;
    drop(held);
    for asked in asked {
        assert_eq!(asked.await.unwrap(), Ok(Ok(())));
    }
    // What cannot be read may be a revocation, so a grace period does not apply to it.
    world.source.make_unreadable(&text(3));
    let verifier = world.one.freeze().await;
    sleep(2 * crate::world::LEASE).await;
    let grace = Duration::from_secs(60);
    let late = verifier
        .reserve_without_immediate_revocation(&text(3), &Need::default(), grace)
        .await;
    assert_eq!(late.unwrap_err(), Unavailable);
}

#[tokio::test(start_paused = true)]
async fn source_that_rejects_look_ups_gets_no_grace_period() {
    let world = World::with(1, SETTINGS).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    world.source.reject_look_ups(true);
    let (source, verifier) = (world.source, world.one.freeze().await);
    sleep(2 * crate::world::LEASE).await;
    let late = async || {
        let (need, grace) = (Need::default(), Duration::from_secs(60));
        let reserved = verifier
            .reserve_without_immediate_revocation(&text(0), &need, grace)
            .await;
        reserved.map(|reserved| reserved.map(drop).map_err(|verdict| verdict.outcome))
    };
    let finds = source.finds();
    for _ in 0..20 {
        assert_eq!(late().await, Err(Unavailable));
    }
    assert_eq!(
        source.finds() - finds,
        20,
        "a source that responds is asked as usual"
    );
    // Nor when so many look-ups wait that this one is not sent.
    let held = source.hold().await;
    let flood: Vec<Asked> = (1..100).map(|n| ask(&verifier, text(n))).collect();
    sleep(Duration::from_millis(1)).await;
    let finds = source.finds();
    assert_eq!(
        (late().await, source.finds() - finds),
        (Err(Unavailable), 0)
    );
    drop(held);
    for asked in flood {
        assert_eq!(asked.await.unwrap(), Err(Unavailable));
    }
    // A source that cannot be reached is what the grace period is for.
    source.set_down(true);
    assert_eq!(late().await, Ok(Ok(())));
}
