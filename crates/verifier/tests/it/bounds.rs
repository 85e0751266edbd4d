//! The bounds of the cache and the usage counts in bytes, and the fair shares of accounts.

use std::{collections::BTreeMap, pin::pin, task::Context, time::Duration};

use allocation_counter::measure;
use tollkey_core::{
    AccessRequest, ApplicationId, Changed, IpList, KeyContext, KeyId, RateLimit,
    lineage::Inherited, metadata::Metadata,
};
use tollkey_verifier::{
    Settings,
    testing::{account, record},
};

use crate::world::{World, text};

const MIB: usize = 1024 * 1024;

/// Metadata that takes 35 times as many bytes when it is parsed.
fn largest_metadata() -> Option<Metadata> {
    Metadata::parse(&format!("{{\"a\":[0{}]}}", ",0".repeat(2039))).ok()
}

fn largest_allowlist(n: usize) -> IpList {
    let ranges: Vec<String> = (0..100)
        .map(|i| format!("10.{}.{i}.0/24", n % 200))
        .collect();
    IpList::parse(ranges.iter().map(String::as_str)).unwrap()
}

fn ordinary(n: usize) -> KeyContext {
    record(&text(n))
}

/// A key with the largest metadata and IP allowlist, and the most and longest merchants.
fn large(n: usize) -> KeyContext {
    let mut it = ordinary(n);
    it.key.metadata = largest_metadata();
    it.key.restrictions.merchants = Some((0..100).map(|i| format!("{n:064}{i:064}")).collect());
    it.key.restrictions.allowed_ips = Some(largest_allowlist(n));
    it
}

fn of_account(name: &str, mut it: KeyContext) -> KeyContext {
    it.key.account_id = account(name);
    it
}

/// A key with eight ancestors, each with an IP allowlist and a rate limit.
fn descendant(n: usize) -> KeyContext {
    let mut it = ordinary(n);
    let id = |i: usize| {
        let mut bytes = [i as u8; 16];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        KeyId::from_bytes(bytes)
    };
    it.key.inherited = Some(Box::new(Inherited {
        allowed_ips: (0..8).map(largest_allowlist).collect(),
        rate_limits: (0..8)
            .map(|i| (id(i), RateLimit::new(10, 60).unwrap()))
            .collect(),
        ..Inherited::default()
    }));
    it
}

async fn world(max_bytes: usize, keys: impl IntoIterator<Item = (usize, KeyContext)>) -> World {
    let world = World::with(
        0,
        Settings {
            max_bytes,
            ..Settings::default()
        },
    )
    .await;
    for (n, record) in keys {
        world.source.put(&text(n), record);
    }
    world
}

impl World {
    /// Verifies these keys, and checks that the cache stays within its bound.
    async fn verify_all(&self, keys: impl IntoIterator<Item = usize>, max_bytes: usize) {
        for n in keys {
            self.one.verify(n).await;
            let bytes = self.one.verifier.stats().bytes;
            assert!(bytes <= max_bytes, "{bytes}");
        }
    }

    /// Returns how many of these keys are cached. Marks each as recently used, without counting a use.
    fn cached(&self, keys: impl IntoIterator<Item = usize>) -> usize {
        keys.into_iter()
            .filter(|n| {
                let verifier = &self.one.verifier;
                let reserved = verifier.reserve_cached(&text(*n), &AccessRequest::default());
                reserved
                    .map(|reserved| reserved.map(|reservation| reservation.cancel()))
                    .is_some()
            })
            .count()
    }

    async fn change(&self, name: &str) {
        self.source
            .change_all(Changed::Account(account(name)), |_| ());
        self.one.verifier.wait_until_all_propagated().await.unwrap();
    }
}

type Shape = fn(usize) -> KeyContext;

#[tokio::test(start_paused = true)]
async fn estimated_bytes_are_close_to_those_allocated() {
    let shapes: [(&str, Shape); 6] = [
        ("ordinary", ordinary),
        ("with an account each", |n| {
            of_account(&format!("{n:0128}"), ordinary(n))
        }),
        ("with metadata", |n| {
            let mut it = ordinary(n);
            it.key.metadata = largest_metadata();
            it
        }),
        ("large", large),
        ("with a rate limit and an application", |n| {
            let mut it = ordinary(n);
            it.key.restrictions.rate_limit = RateLimit::new(10, 60).ok();
            it.key.application_id = Some(ApplicationId::from_bytes([(n % 100) as u8; 16]));
            it
        }),
        ("descendants", descendant),
    ];
    for (shape, create) in shapes {
        let keys = 3000;
        let world = World::with(0, Settings::default()).await;
        for n in 0..keys {
            world.source.put(&text(n), create(n));
        }
        let mut fill = pin!(tokio::task::unconstrained(async {
            for n in 0..keys {
                let _ = world
                    .one
                    .verifier
                    .verify(&text(n), &AccessRequest::default())
                    .await;
            }
            while !world.one.verifier.take_usage().is_empty() {}
        }));
        let allocated = measure(|| {
            assert!(
                fill.as_mut()
                    .poll(&mut Context::from_waker(std::task::Waker::noop()))
                    .is_ready()
            );
        });
        let stats = world.one.verifier.stats();
        assert_eq!(stats.entries, keys);
        let (estimated, real) = (stats.bytes as f64, allocated.bytes_current as f64);
        let ratio = estimated / real;
        assert!(
            (1.0..1.6).contains(&ratio),
            "{shape}: {estimated} bytes estimated, {real} allocated"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn cache_takes_no_more_bytes_than_allowed() {
    let world = world(8 * MIB, (0..1000).map(|n| (n, large(n)))).await;
    world.verify_all(0..1000, 8 * MIB).await;
    let stats = world.one.verifier.stats();
    assert!((100..250).contains(&stats.entries), "{stats:?}");
    assert_eq!(stats.evictions, 1000 - stats.entries as u64);
    // More of the smaller keys fit, and nothing is left of the larger ones.
    world.change("acme").await;
    assert_eq!(world.one.verifier.stats().entries, 0);
    for n in 0..10_000 {
        world.source.put(&text(n), ordinary(n));
    }
    world.verify_all(0..10_000, 8 * MIB).await;
    let stats = world.one.verifier.stats();
    assert!((3000..6000).contains(&stats.entries), "{stats:?}");
    while !world.one.verifier.take_usage().is_empty() {}
    world.change("acme").await;
    assert_eq!(
        (
            world.one.verifier.stats().entries,
            world.one.verifier.stats().bytes
        ),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn key_that_needs_too_much_of_the_cache_is_not_cached() {
    let world = world(MIB / 2, [(0, large(0)), (1, ordinary(1))]).await;
    assert!(
        world.one.looks_up(0).await && world.one.looks_up(0).await,
        "it takes more than a sixteenth of the bytes for keys"
    );
    assert!(world.one.looks_up(1).await && !world.one.looks_up(1).await);
    // Its usage is counted nevertheless.
    let counted: u64 = world
        .one
        .verifier
        .take_usage()
        .iter()
        .map(|usage| usage.count)
        .sum();
    assert_eq!(counted, 4);
}

#[tokio::test(start_paused = true)]
async fn one_account_alone_uses_the_whole_cache() {
    let world = world(4 * MIB, (0..5000).map(|n| (n, ordinary(n)))).await;
    world.verify_all(0..1500, 4 * MIB).await;
    assert_eq!(
        (world.cached(0..1500), world.one.verifier.stats().evictions),
        (1500, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn flood_of_one_account_evicts_only_its_own_keys() {
    // Ten accounts with twenty keys each, and one that has a thousand of the largest.
    let small = (0..200).map(|n| (n, of_account(&format!("small-{}", n % 10), ordinary(n))));
    let flood = (1000..2000).map(|n| (n, of_account("flood", large(n))));
    let world = world(4 * MIB, small.chain(flood)).await;
    world.verify_all(0..200, 4 * MIB).await;
    world.verify_all(1000..2000, 4 * MIB).await;
    assert_eq!(
        world.cached(0..200),
        200,
        "not used since, and still cached"
    );
    assert!(
        world.cached(1000..2000) > 30,
        "the account uses all bytes that others do not need"
    );
    assert_eq!(world.cached(1999..2000), 1, "its newest key is cached");
}

#[tokio::test(start_paused = true)]
async fn accounts_that_come_after_a_flood_get_their_share() {
    let flood = (1000..2000).map(|n| (n, of_account("flood", large(n))));
    let small = (0..200).map(|n| (n, of_account(&format!("small-{}", n % 10), ordinary(n))));
    let world = world(4 * MIB, flood.chain(small)).await;
    world.verify_all(1000..2000, 4 * MIB).await;
    // The flood continues, and uses its cached keys again and again.
    for n in 0..200 {
        world.one.verify(n).await;
        world.verify_all(1000 + n * 5..1005 + n * 5, 4 * MIB).await;
        if n.is_multiple_of(10) {
            world.cached(1000..2000);
        }
    }
    assert_eq!(world.cached(0..200), 200);
}

#[tokio::test(start_paused = true)]
async fn keys_in_use_stay_within_the_share_of_their_account() {
    let keys = (0..4000).map(|n| (n, of_account(if n < 2000 { "a" } else { "b" }, ordinary(n))));
    let world = world(2 * MIB, keys).await;
    for n in 0..2000 {
        world.verify_all([n, 2000 + n], 2 * MIB).await;
        // One key of each account is used all the time.
        assert!(
            !world.one.looks_up(0).await && !world.one.looks_up(2000).await,
            "{n}"
        );
    }
    let (a, b) = (world.cached(0..2000), world.cached(2000..4000));
    assert!(a + b > 900 && a.abs_diff(b) <= 2, "{a} and {b}");
}

#[tokio::test(start_paused = true)]
async fn accounts_of_one_key_each_replace_each_other_in_turn() {
    let world = world(
        MIB,
        (0..3000).map(|n| (n, of_account(&format!("account-{n}"), ordinary(n)))),
    )
    .await;
    for n in 0..3000 {
        world.one.verify(n).await;
        assert!(!world.one.looks_up(0).await, "key 0 is used all the time");
    }
    let entries = world.one.verifier.stats().entries;
    let newest = world.cached(3000 - entries..3000);
    assert!(
        newest > entries * 9 / 10,
        "{newest} of {entries} are the newest"
    );
}

#[tokio::test(start_paused = true)]
async fn number_of_cached_keys_is_bounded_even_if_the_limit_is_small() {
    for max_entries in [1, 2, 4] {
        let world = World::with(
            0,
            Settings {
                max_entries,
                ..Settings::default()
            },
        )
        .await;
        for n in 0..200 {
            // Each key has another account, and is larger than the previous keys.
            let mut it = of_account(&format!("account-{n}"), ordinary(n));
            it.key.restrictions.merchants =
                Some((0..5 * n).map(|i| format!("{n:064}{i:064}")).collect());
            world.source.put(&text(n), it);
            world.one.verify(n).await;
            assert_eq!(world.one.verifier.stats().entries, max_entries.min(n + 1));
            assert_eq!(world.cached([n]), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bound_holds_under_any_mix_of_changes() {
    let name = |n: usize| format!("account-{}", n % 7);
    let create = |n: usize, version: usize| {
        let mut it = match (n + version) % 4 {
            0 => large(n),
            1 => descendant(n),
            _ => ordinary(n),
        };
        it.key.application_id = n
            .is_multiple_of(3)
            .then(|| ApplicationId::from_bytes([(n % 5) as u8; 16]));
        of_account(&name(n), it)
    };
    let world = world(3 * MIB, (0..400).map(|n| (n, create(n, 0)))).await;
    let mut random = 1u64;
    for step in 0..4000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let n = (random >> 33) as usize % 400;
        match (random >> 60) as usize {
            0 => {
                world.source.change(&text(n), |it| *it = create(n, step));
                world
                    .one
                    .verifier
                    .wait_until_all_propagated()
                    .await
                    .unwrap();
            }
            1 if step.is_multiple_of(16) => world.change(&name(n)).await,
            2 if step.is_multiple_of(8) => {
                let application = ApplicationId::from_bytes([(n % 5) as u8; 16]);
                world
                    .source
                    .change_all(Changed::Application(application), |_| ());
                world
                    .one
                    .verifier
                    .wait_until_all_propagated()
                    .await
                    .unwrap();
            }
            3 => drop(world.one.verifier.take_usage()),
            _ => world.verify_all([n], 3 * MIB).await,
        }
    }
    assert!(world.one.verifier.stats().evictions > 100);
    while !world.one.verifier.take_usage().is_empty() {}
    for n in 0..7 {
        world.change(&name(n)).await;
    }
    let stats = world.one.verifier.stats();
    // Limiters outlive their cached keys, so only they are left.
    assert!(
        stats.entries == 0 && stats.bytes < 3 * MIB / 16,
        "{stats:?}"
    );
}

/// Takes all usage and returns the count of the keys that match `of`.
fn counted(world: &World, of: impl Fn(usize) -> bool, keys: usize) -> u64 {
    let names: BTreeMap<KeyId, usize> = (0..keys).map(|n| (record(&text(n)).key.id, n)).collect();
    std::iter::from_fn(|| Some(world.one.verifier.take_usage()).filter(|rows| !rows.is_empty()))
        .flatten()
        .filter(|row| of(names[&row.key_id]))
        .map(|row| row.count)
        .sum()
}

#[tokio::test(start_paused = true)]
async fn waiting_counts_are_bounded_by_fair_shares() {
    let name = |n: usize| {
        if n < 100 {
            format!("small-{}", n % 10)
        } else {
            "flood".to_owned()
        }
    };
    let world = world(
        4 * MIB,
        (0..6000).map(|n| (n, of_account(&name(n), ordinary(n)))),
    )
    .await;
    world.verify_all(0..50, 4 * MIB).await;
    world.verify_all(100..5000, 4 * MIB).await;
    world.verify_all(50..100, 4 * MIB).await; // all bytes for counts are used
    world.verify_all(5000..6000, 4 * MIB).await;
    let dropped = world.one.verifier.stats().usage_dropped;
    assert!(dropped > 1500, "{dropped}");
    assert!(world.one.verifier.usage_waiting() < 4100);
    // Only counts of the flood are lost.
    assert_eq!(counted(&world, |n| n < 100, 6000), 100);
}

#[tokio::test(start_paused = true)]
async fn dropped_counts_of_a_cached_key_return_with_its_next_use() {
    let world = world(4 * MIB, (0..5000).map(|n| (n, ordinary(n)))).await;
    // The cache is small, so nearly all counts wait in the queue.
    world.verify_all(0..5000, 4 * MIB).await;
    let last = 4999;
    assert_eq!(world.cached([last]), 1);
    let dropped = world.one.verifier.stats().usage_dropped;
    assert!(dropped > 0);
    let all = counted(&world, |_| true, 5000);
    world.one.verify(last).await;
    assert_eq!(
        counted(&world, |n| n == last, 5000),
        2,
        "the earlier use was dropped from the queue, but is still counted at the key"
    );
    assert!(all < 5000);
}

#[tokio::test(start_paused = true)]
async fn usage_is_collected_only_while_rows_have_room() {
    let world = world(4 * MIB, (0..4000).map(|n| (n, ordinary(n)))).await;
    let verifier = &world.one.verifier;
    for keys in [0..2000, 2000..4000] {
        world.verify_all(keys, 4 * MIB).await;
        while verifier.collect_usage().is_some_and(|keys| keys > 0) {}
    }
    assert_eq!(verifier.collect_usage(), None);
    assert_eq!(verifier.stats().usage_dropped, 0);
    assert!(verifier.stats().bytes <= 4 * MIB);
    assert_eq!(counted(&world, |_| true, 4000), 4000);
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_put_back_are_merged_and_bounded() {
    let world = world(4 * MIB, (0..1).map(|n| (n, ordinary(n)))).await;
    for _ in 0..50 {
        world.one.verify(0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let rows = world.one.verifier.take_usage();
        assert_eq!(rows.len(), 1);
        world.one.verifier.restore_usage(rows);
    }
    assert_eq!(world.one.verifier.usage_waiting(), 1);
    let rows = world.one.verifier.take_usage();
    assert_eq!((rows.len(), rows[0].count), (1, 50));
    for n in 0..10_000u32 {
        let mut row = rows[0];
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        (row.key_id, row.count) = (KeyId::from_bytes(id), 1);
        world.one.verifier.restore_usage(vec![row]);
    }
    let stats = world.one.verifier.stats();
    let waiting = world.one.verifier.usage_waiting() as u64;
    assert!(
        (5000..9000).contains(&waiting) && stats.usage_dropped == 10_000 - waiting,
        "{waiting}: {stats:?}"
    );
    assert!(stats.bytes <= 4 * MIB);
    assert_eq!(
        world.one.verifier.take_usage().len(),
        tollkey_verifier::usage::BATCH
    );
}

#[tokio::test(start_paused = true)]
async fn counts_of_all_accounts_survive_when_room_becomes_scarce() {
    let keys = 3600;
    let name = |n: usize| format!("account-{}", n % 7);
    let of = |n: usize| (n, of_account(&name(n), ordinary(n)));
    let world = world(4 * MIB, (0..keys).map(of)).await;
    let verifier = &world.one.verifier;
    // Twice, so that the counts wait in a queue for all accounts, then in those of the accounts, and then in the first.
    for _ in 0..2 {
        let mut waiting = 0;
        for begin in (0..keys).step_by(100) {
            world.verify_all(begin..begin + 100, 4 * MIB).await;
            assert_eq!(verifier.usage_waiting(), waiting + 100);
            waiting += 100;
        }
        assert_eq!(verifier.stats().usage_dropped, 0);
        assert_eq!(counted(&world, |_| true, keys), keys as u64);
        assert_eq!(verifier.usage_waiting(), 0);
    }
}
