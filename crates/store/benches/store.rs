//! Costs of verification in the database: looking up a key that is not cached, and writing usage for each key that was
//! used since the previous flush.
//!
//! Run `cargo bench -p tollkey-store`. The database has 100,000 keys and up-to-date statistics. PostgreSQL is included
//! if it is installed. The time of a flush divided by the number of its keys should not grow with that number.

use std::{cell::Cell, hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use tokio::runtime::{Builder, Runtime};
use tollkey_core::{
    AccountId, ApiKey, Digest, Family, Id, KeyId, Mode, Restrictions, Scope, Timestamp, Usage,
};
use tollkey_store::{Store, testing::backends};

const KEYS: u64 = 100_000;
/// How many keys were used since the previous flush.
const ACTIVE: [u64; 2] = [1_000, KEYS];
/// How many counts one call writes: `tollkey_verifier::usage::BATCH`.
const BATCH: usize = 500;

/// Returns IDs that are spread like random ones but the same in every run.
fn id(number: u64) -> KeyId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(
        &number
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes(),
    );
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

fn digest(number: u64) -> Digest {
    Digest::of_key(&format!("ck_live_EXAMPLE{number}"))
}

fn key(number: u64, account_id: &AccountId) -> ApiKey {
    ApiKey {
        id: id(number),
        account_id: account_id.clone(),
        application_id: None,
        name: format!("key {number}"),
        family: Family::Commerce,
        mode: Mode::Live,
        prefix: "ck_live_abcdef".into(),
        last4: "wxyz".into(),
        restrictions: Restrictions {
            scopes: vec![Scope::COMMERCE],
            ..Restrictions::default()
        },
        metadata: None,
        created_at: Timestamp::UNIX_EPOCH,
        created_by: None,
        last_used_at: None,
        suspended_at: None,
        revoked_at: None,
        revoked_reason: None,
        rotated_from: None,
        rotated_to: None,
        rotated_at: None,
        inherited: None,
    }
}

fn look_up(c: &mut Criterion, runtime: &Runtime, store: &Store) {
    let number = Cell::new(0);
    c.bench_function(&format!("{}/look-up", store.backend().as_str()), |b| {
        b.iter(|| {
            number.set((number.get() + 7919) % KEYS);
            let found = runtime
                .block_on(store.find_by_digest(digest(number.get())))
                .unwrap();
            assert!(black_box(found).found.is_some());
        });
    });
}

fn flush(c: &mut Criterion, runtime: &Runtime, store: &Store) {
    let mut group = c.benchmark_group(format!("{}/flush", store.backend().as_str()));
    let second = Cell::new(0);
    for active in ACTIVE {
        group.throughput(Throughput::Elements(active));
        group.sample_size(10);
        group.bench_function(BenchmarkId::from_parameter(active), |b| {
            b.iter(|| {
                second.set(second.get() + 5);
                let at = Timestamp::from_second(1_800_000_000 + second.get()).unwrap();
                let counts: Vec<Usage> = (0..active)
                    .map(|number| Usage {
                        key_id: id(number),
                        day: 20_000,
                        outcome: None,
                        count: 3,
                        last_used_at: Some(at),
                    })
                    .collect();
                runtime.block_on(async {
                    for batch in counts.chunks(BATCH) {
                        store.add_usage(batch.to_vec()).await.unwrap();
                    }
                });
            });
        });
    }
}

fn main() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let account: AccountId = "acme".parse().unwrap();
    let mut c = Criterion::default()
        .configure_from_args()
        .measurement_time(Duration::from_secs(10));
    for database in backends() {
        let store = database.store();
        let keys = (0..KEYS).map(|number| (key(number, &account), digest(number)));
        store.fill(std::iter::empty(), keys, |_| {}).unwrap();
        look_up(&mut c, &runtime, &store);
        flush(&mut c, &runtime, &store);
    }
    c.final_summary();
}
