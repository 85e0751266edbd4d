//! Look-ups of keys that are not cached are bounded and shared fairly; they do not delay cached keys.

use std::time::Duration;

use tokio::{task::JoinHandle, time::sleep};
use tollkey_core::{AccessRequest, Clock, Denial};
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

type LookUp = JoinHandle<Result<Result<(), Denial>, Unavailable>>;

fn look_up(verifier: &Verifier<MemorySource>, key: String) -> LookUp {
    let verifier = verifier.clone();
    tokio::spawn(async move {
        verifier
            .verify(&key, &AccessRequest::default())
            .await
            .map(|verdict| verdict.outcome)
    })
}

fn look_up_for(verifier: &Verifier<MemorySource>, requester: Requester, key: String) -> LookUp {
    let verifier = verifier.clone();
    tokio::spawn(async move {
        let verdict = verifier
            .on_behalf_of(|| requester)
            .verify(&key, &AccessRequest::default())
            .await;
        verdict.map(|verdict| verdict.outcome)
    })
}

fn client(address: &str) -> Requester {
    Requester::client(Some(address.parse().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn unknown_keys_of_one_network_do_not_delay_other_clients() {
    let world = World::with(3, Settings::default()).await;
    let verifier = &world.one.verifier;
    let held = world.source.hold().await;
    // More look-ups than may run and wait, from addresses in the network of one IPv6 client.
    let flood: Vec<LookUp> = (100..1400)
        .map(|n| look_up_for(verifier, client(&format!("2001:db8:1:1::{n:x}")), text(n)))
        .collect();
    sleep(Duration::from_millis(1)).await;
    let finds = world.source.finds();
    let others: Vec<LookUp> = [
        client("2001:db8:1:2::1"),
        client("192.0.2.1"),
        Requester::client(None),
    ]
    .into_iter()
    .zip(0..)
    .map(|(requester, n)| look_up_for(verifier, requester, text(n)))
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
    for look_up in flood {
        assert!(matches!(
            look_up.await.unwrap(),
            Ok(Err(Denial::UnknownKey)) | Err(Unavailable)
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_clients_do_not_delay_authenticated_callers() {
    let world = World::with(2, Settings::default()).await;
    let verifier = &world.one.verifier;
    let held = world.source.hold().await;
    let unknown_clients: Vec<LookUp> = (0..1300)
        .map(|n| {
            look_up_for(
                verifier,
                client(&format!("10.0.{}.{}", n / 256, n % 256)),
                text(100 + n),
            )
        })
        .collect();
    let keys_of_one: Vec<LookUp> = (0..1300)
        .map(|n| {
            look_up_for(
                verifier,
                Requester::Account(account("flood")),
                text(2000 + n),
            )
        })
        .collect();
    sleep(Duration::from_millis(1)).await;
    let finds = world.source.finds();
    let service = look_up_for(verifier, Requester::Service("gateway".into()), text(0));
    let other = look_up_for(verifier, Requester::Account(account("acme")), text(1));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(world.source.finds() - finds, 2);
    drop(held);
    for look_up in [service, other] {
        assert_eq!(look_up.await.unwrap(), Ok(Ok(())));
    }
    for look_up in unknown_clients.into_iter().chain(keys_of_one) {
        assert!(matches!(
            look_up.await.unwrap(),
            Ok(Err(Denial::UnknownKey)) | Err(Unavailable)
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_look_ups_of_two_clients_are_served_in_turn() {
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
    let mut flood: Vec<LookUp> = (100..1400)
        .map(|n| look_up_for(verifier, client("192.0.2.1"), text(n)))
        .collect();
    sleep(Duration::from_millis(1)).await;
    let late = tokio::spawn({
        let (verifier, source) = (verifier.clone(), world.source.clone());
        async move {
            (
                look_up_for(&verifier, client("192.0.2.2"), text(0))
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
    assert_eq!(
        outcome,
        Ok(Ok(())),
        "the queue drops a look-up of the client with the most of them"
    );
    assert!(
        finds_until - finds <= 6,
        "it waits for {} of 20 look-ups",
        finds_until - finds
    );
    for look_up in flood.drain(..) {
        let _ = look_up.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn look_ups_and_queue_are_bounded_during_a_flood() {
    let world = World::with(2, SETTINGS).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let finds = world.source.finds();
    let held = world.source.hold().await; // the source does not respond
    let flood: Vec<LookUp> = (100..1100)
        .map(|n| look_up(&world.one.verifier, text(n)))
        .collect();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.source.finds() - finds,
        4,
        "one requester gets half of the look-ups for clients, which get half of all"
    );
    let rejected = flood.iter().filter(|look_up| look_up.is_finished()).count();
    assert_eq!(rejected, 1000 - 4 - 20, "all others fail immediately");

    // A cached key is verified immediately. A look-up of another key fails, because the queue is full.
    let before = world.clock.elapsed();
    assert!(!world.one.looks_up(0).await);
    assert_eq!(world.clock.elapsed(), before);
    let began_at = world.clock.elapsed();
    assert_eq!(
        look_up(&world.one.verifier, text(1)).await.unwrap(),
        Err(Unavailable)
    );
    assert_eq!(
        world.clock.elapsed(),
        began_at,
        "the queue is full, so it fails immediately"
    );

    // Look-ups without a response fail after the limit, and leave the queue.
    sleep(SETTINGS.look_up_limit).await;
    for look_up in flood {
        assert!(look_up.is_finished());
        assert_eq!(look_up.await.unwrap(), Err(Unavailable));
    }

    // From then on, one look-up at a time probes whether the source responds again.
    let finds = world.source.finds();
    let probe = look_up(&world.one.verifier, text(1));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        look_up(&world.one.verifier, text(200)).await.unwrap(),
        Err(Unavailable)
    );
    assert_eq!(world.source.finds(), finds + 1);
    drop(held);
    assert_eq!(probe.await.unwrap(), Ok(Ok(())));
    let again: Vec<LookUp> = (100..110)
        .map(|n| look_up(&world.one.verifier, text(n)))
        .collect();
    for look_up in again {
        assert_eq!(
            look_up.await.unwrap(),
            Ok(Err(Denial::UnknownKey)),
            "all look-ups get a response again"
        );
    }
    let stats = world.one.verifier.stats();
    assert_eq!(
        (stats.entries, stats.unavailable),
        (2, 1002),
        "unknown keys are not cached"
    );
}

#[tokio::test(start_paused = true)]
async fn canceled_look_up_frees_its_permit_and_place_in_the_queue() {
    let world = World::with(1, SETTINGS).await;
    let held = world.source.hold().await;
    for round in 0..50 {
        let flood: Vec<LookUp> = (0..24)
            .map(|n| look_up(&world.one.verifier, text(100 + 24 * round + n)))
            .collect();
        sleep(Duration::from_millis(1)).await;
        assert!(
            flood.iter().all(|look_up| !look_up.is_finished()),
            "round {round}"
        );
        flood.iter().for_each(JoinHandle::abort);
        sleep(Duration::from_millis(1)).await;
    }
    drop(held);
    assert_eq!(world.one.outcome(0).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn unreadable_key_does_not_fail_look_ups_of_other_keys() {
    let world = World::with(4, SETTINGS).await;
    world.source.make_unreadable(&text(0));
    assert_eq!(world.one.outcome(3).await, Ok(()));
    for _ in 0..5 {
        assert_eq!(
            look_up(&world.one.verifier, text(0)).await.unwrap(),
            Err(Unavailable)
        );
    }
    // Both succeed only if the source still counts as responding. Otherwise, one look-up at a time would be
    // sent.
    let held = world.source.hold().await;
    let look_ups = [1, 2].map(|n| look_up(&world.one.verifier, text(n)));
    sleep(Duration::from_millis(1)).await;
    drop(held);
    for look_up in look_ups {
        assert_eq!(look_up.await.unwrap(), Ok(Ok(())));
    }
    // A record that cannot be read may be a revocation, so the grace period does not apply to it.
    world.source.make_unreadable(&text(3));
    let verifier = world.one.freeze().await;
    sleep(2 * crate::world::LEASE).await;
    let grace = Duration::from_secs(60);
    let late = verifier
        .reserve_without_immediate_revocation(&text(3), &AccessRequest::default(), grace)
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
        let (access, grace) = (AccessRequest::default(), Duration::from_secs(60));
        let reserved = verifier
            .reserve_without_immediate_revocation(&text(0), &access, grace)
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
        "look-ups are sent as usual to a source that responds"
    );
    // There is no grace period either when so many look-ups wait that this one is not sent.
    let held = source.hold().await;
    let flood: Vec<LookUp> = (1..100).map(|n| look_up(&verifier, text(n))).collect();
    sleep(Duration::from_millis(1)).await;
    let finds = source.finds();
    assert_eq!(
        (late().await, source.finds() - finds),
        (Err(Unavailable), 0)
    );
    drop(held);
    for look_up in flood {
        assert_eq!(look_up.await.unwrap(), Err(Unavailable));
    }
    // The grace period applies when the source cannot be reached.
    source.set_down(true);
    assert_eq!(late().await, Ok(Ok(())));
}
