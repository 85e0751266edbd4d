//! Keys that have to be asked for are asked for within bounds, whatever comes; keys that are remembered do not notice.

use std::time::Duration;

use tokio::{task::JoinHandle, time::sleep};
use tollkey_core::{Clock, Denial, Need};
use tollkey_verifier::{Settings, Unavailable, Verifier, testing::MemorySource};

use crate::world::{World, text};

const SETTINGS: Settings =
    Settings { max_entries: 100, max_misses: 8, max_waiting: 20, miss_limit: Duration::from_secs(1) };

type Asked = JoinHandle<Result<Result<(), Denial>, Unavailable>>;

fn ask(verifier: &Verifier<MemorySource>, key: String) -> Asked {
    let verifier = verifier.clone();
    tokio::spawn(async move { verifier.verify(&key, &Need::default()).await.map(|verdict| verdict.outcome) })
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_keys_neither_reaches_the_source_nor_queues_beyond_its_bounds() {
    let world = World::with(2, SETTINGS).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let finds = world.source.finds();
    let held = world.source.hold().await; // the source answers nobody
    let flood: Vec<Asked> = (100..1100).map(|n| ask(&world.one.verifier, text(n))).collect();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(world.source.finds() - finds, 8, "as many as may ask at a time");
    let refused = flood.iter().filter(|asked| asked.is_finished()).count();
    assert_eq!(refused, 1000 - 8 - 20, "all but those that ask and those that wait are told at once");

    // A remembered key does not notice; one that is not waits its turn like the others, if there is room.
    let before = world.clock.elapsed();
    assert!(!world.one.asks(0).await);
    assert_eq!(world.clock.elapsed(), before);
    let begun = world.clock.elapsed();
    assert_eq!(ask(&world.one.verifier, text(1)).await.unwrap(), Err(Unavailable));
    assert_eq!(world.clock.elapsed(), begun, "no room: told at once");

    // Whoever gets no answer within the limit is told so, and makes room.
    sleep(SETTINGS.miss_limit).await;
    for asked in flood {
        assert!(asked.is_finished());
        assert_eq!(asked.await.unwrap(), Err(Unavailable));
    }

    // From then on one at a time finds out whether the source answers again.
    let finds = world.source.finds();
    let probe = ask(&world.one.verifier, text(1));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(ask(&world.one.verifier, text(200)).await.unwrap(), Err(Unavailable));
    assert_eq!(world.source.finds(), finds + 1);
    drop(held);
    assert_eq!(probe.await.unwrap(), Ok(Ok(())));
    let again: Vec<Asked> = (100..110).map(|n| ask(&world.one.verifier, text(n))).collect();
    for asked in again {
        assert_eq!(asked.await.unwrap(), Ok(Err(Denial::UnknownKey)), "everybody is answered again");
    }
    let stats = world.one.verifier.stats();
    assert_eq!((stats.entries, stats.unavailable), (2, 1002), "what nobody knows is not remembered");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_its_place_to_the_next() {
    let world = World::with(1, SETTINGS).await;
    let held = world.source.hold().await;
    for round in 0..50 {
        let flood: Vec<Asked> = (0..28).map(|n| ask(&world.one.verifier, text(100 + 28 * round + n))).collect();
        sleep(Duration::from_millis(1)).await;
        assert!(flood.iter().all(|asked| !asked.is_finished()), "round {round}");
        flood.iter().for_each(JoinHandle::abort);
        sleep(Duration::from_millis(1)).await;
    }
    drop(held);
    assert_eq!(world.one.outcome(0).await, Ok(()));
}
