//! Usage counts: every verification is counted once, and a cache hit does not allocate.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;
use tollkey_core::{AccessRequest, Clock, Denial, IpList};
use tollkey_verifier::{
    Settings, Usage,
    testing::{START, record},
    usage::BATCH,
};

use crate::world::{World, text};

const TODAY: i32 = (START / 86_400) as i32;

fn sums(rows: &[Usage]) -> BTreeMap<(String, i32, Option<&'static str>), u64> {
    let mut sums = BTreeMap::new();
    for row in rows {
        let outcome = row.outcome.map(Denial::code);
        *sums
            .entry((row.key_id.to_string(), row.day, outcome))
            .or_default() += row.count;
    }
    sums
}

fn id(n: usize) -> String {
    record(&text(n)).key.id.to_string()
}

#[tokio::test(start_paused = true)]
async fn outcomes_of_cached_and_looked_up_keys_are_counted() {
    let world = World::new(2).await;
    let mut restricted = record(&text(1));
    restricted.key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
    world.source.put(&text(1), restricted);
    for _ in 0..3 {
        assert_eq!(world.one.outcome(0).await, Ok(()));
        assert_eq!(world.one.outcome(1).await, Err(Denial::IpNotAllowed));
        assert_eq!(world.one.outcome(7).await, Err(Denial::UnknownKey));
    }
    sleep(Duration::from_millis(5)).await;
    let last = world.clock.coarse_now();
    assert_eq!(world.one.outcome(0).await, Ok(()));

    let rows = world.one.verifier.take_usage();
    assert_eq!(
        sums(&rows),
        BTreeMap::from([
            ((id(0), TODAY, None), 4),
            ((id(1), TODAY, Some("ip_not_allowed")), 3)
        ])
    );
    for row in rows {
        assert_eq!(row.last_used_at, row.outcome.is_none().then_some(last));
    }
    assert!(world.one.verifier.take_usage().is_empty());
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(
        sums(&world.one.verifier.take_usage()),
        BTreeMap::from([((id(0), TODAY, None), 1)])
    );
}

#[tokio::test(start_paused = true)]
async fn evicted_key_is_counted_in_one_row() {
    let world = World::new(1).await;
    assert_eq!(
        (world.one.outcome(0).await, world.one.outcome(0).await),
        (Ok(()), Ok(()))
    );
    world.source.change(&text(0), |_| ());
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    assert_eq!(world.one.verifier.stats().entries, 0);
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let rows = world.one.verifier.take_usage();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].count, 3);
}

#[tokio::test(start_paused = true)]
async fn usage_that_is_put_back_is_returned_again() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let rows = world.one.verifier.take_usage();
    let used_at = rows[0].last_used_at;
    world.one.verifier.restore_usage(rows.clone());
    assert_eq!(world.one.verifier.take_usage(), rows);

    world.one.verifier.restore_usage(rows);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let rows = world.one.verifier.take_usage();
    assert_eq!((rows.len(), rows[0].count), (1, 2));
    assert!(rows[0].last_used_at > used_at);
}

#[tokio::test(start_paused = true)]
async fn new_day_starts_a_new_row() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let rows = world.one.verifier.take_usage();
    world.one.verifier.restore_usage(rows);
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let expected = BTreeMap::from([((id(0), TODAY, None), 1), ((id(0), TODAY + 1, None), 1)]);
    assert_eq!(sums(&world.one.verifier.take_usage()), expected);
}

#[tokio::test(start_paused = true)]
async fn usage_is_fetched_in_batches() {
    let world = World::with(
        11_000,
        Settings {
            max_entries: 6000,
            ..Settings::default()
        },
    )
    .await;
    for n in 0..11_000 {
        assert_eq!(world.one.outcome(n).await, Ok(()));
    }
    let batches = std::iter::from_fn(|| {
        Some(world.one.verifier.take_usage()).filter(|rows| !rows.is_empty())
    });
    assert_eq!(
        batches.map(|rows| rows.len()).collect::<Vec<_>>(),
        [BATCH; 22]
    );
    assert_eq!(world.one.verifier.stats().usage_dropped, 0);
}

#[tokio::test(start_paused = true)]
async fn collected_usage_is_merged_and_can_be_read_by_key() {
    let world = World::new(2).await;
    let (verifier, key) = (&world.one.verifier, record(&text(0)).key.id);
    assert_eq!(verifier.collect_usage(), Some(0));
    for round in 1..4 {
        assert_eq!(world.one.outcome(0).await, Ok(()));
        assert_eq!(world.one.outcome(1).await, Ok(()));
        let used_at = world.clock.coarse_now();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(verifier.collect_usage(), Some(2));
        let rows = verifier.waiting_usage(&key);
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (rows[0].key_id, rows[0].count, rows[0].last_used_at),
            (key, round, Some(used_at))
        );
    }
    let expected = BTreeMap::from([((id(0), TODAY, None), 3), ((id(1), TODAY, None), 3)]);
    assert_eq!(sums(&verifier.take_usage()), expected);
    assert_eq!(verifier.waiting_usage(&key), []);
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_counted_once_when_writing_fails() {
    let world = World::new(2).await;
    let mut bound = record(&text(1));
    bound.key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
    world.source.put(&text(1), bound);
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(world.one.outcome(1).await, Err(Denial::IpNotAllowed));
    let verifier = &world.one.verifier;
    verifier.collect_usage();
    let expected = BTreeMap::from([(None, 1), (Some(Denial::IpNotAllowed), 1)]);
    assert_eq!(verifier.take_outcomes(), expected);
    let rows = verifier.take_usage();
    verifier.restore_usage(rows);
    assert_eq!(verifier.take_usage().len(), 2);
    assert_eq!(verifier.take_outcomes(), BTreeMap::new());
    // Usage that is taken without being collected first counts, too.
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(verifier.take_usage().len(), 1);
    assert_eq!(verifier.take_outcomes(), BTreeMap::from([(None, 1)]));
}

#[test]
fn concurrent_uses_and_fetches_count_each_use_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    let total = runtime.block_on(async {
        let world = World::new(3).await;
        let verifying: Vec<_> = (0..3)
            .map(|_| {
                let verifier = world.one.verifier.clone();
                tokio::spawn(async move {
                    for n in 0..10_000 {
                        verifier
                            .verify(&text(n % 3), &AccessRequest::default())
                            .await
                            .unwrap();
                        if n % 64 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        let mut total = 0;
        let mut turn = 0;
        while !verifying.iter().all(tokio::task::JoinHandle::is_finished) {
            total += world
                .one
                .verifier
                .take_usage()
                .iter()
                .map(|row| row.count)
                .sum::<u64>();
            turn += 1;
            if turn % 2 == 0 {
                world.one.verifier.collect_usage();
            }
            tokio::task::yield_now().await;
        }
        total
            + world
                .one
                .verifier
                .take_usage()
                .iter()
                .map(|row| row.count)
                .sum::<u64>()
    });
    assert_eq!(total, 30_000);
}

#[tokio::test(start_paused = true)]
async fn cache_hit_does_not_allocate() {
    let world = World::new(1).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    let key = text(0);
    // The first hit may initialize thread-local state.
    world
        .one
        .verifier
        .verify(&key, &AccessRequest::default())
        .await
        .unwrap();
    let mut hits = std::pin::pin!(async {
        for _ in 0..100 {
            let verdict = world
                .one
                .verifier
                .verify(&key, &AccessRequest::default())
                .await
                .unwrap();
            assert_eq!(verdict.outcome, Ok(()));
        }
    });
    let allocations = allocation_counter::measure(|| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(hits.as_mut().poll(&mut context).is_ready());
    });
    assert_eq!(allocations.count_total, 0);
}
