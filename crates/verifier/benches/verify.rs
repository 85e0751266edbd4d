//! Measures a verification from the cache against a floor from the same run: the SHA-256 of the key and one look-up in a
//! `std::collections::HashMap` of the same size. At the end it prints the ratios and the number of allocations.
//!
//! Run it with `cargo bench -p tollkey-verifier`. The keys are verified in a random order, so that with a million keys most
//! memory accesses miss the processor's caches, as in production.
#![allow(clippy::print_stdout)] // a benchmark prints its results

use std::{
    collections::HashMap,
    hint::black_box,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Barrier, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion};
use tokio::runtime::{Builder, Runtime};
use tollkey_core::{
    AccessRequest, Catalogue, Digest, IpList, KeyContext, OperatingModel, RequestPath, RouteBase,
    VerifierId, feature::Feature,
};
use tollkey_verifier::{
    Settings, SystemClock, Verifier,
    testing::{MemorySource, record},
};

const SIZES: [usize; 2] = [10_000, 1_000_000];
const THREADS: [usize; 2] = [1, 2];

/// A splitmix64 generator: the same keys in the same order in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A key with features and an IP allowlist, in an ecosystem.
fn scoped(text: &str) -> KeyContext {
    let mut key = record(text).key;
    key.restrictions.features = Some(vec![Feature::TokensList, Feature::TokensRetrieve]);
    key.restrictions.allowed_ips = IpList::parse(["198.51.100.0/24", "203.0.113.0/24"]).ok();
    KeyContext::new(key, None, OperatingModel::Ecosystem, &Catalogue::default())
}

/// Polls a future that must be ready immediately.
fn poll_ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a cached key was looked up"),
    }
}

struct World {
    runtime: Runtime,
    verifier: Verifier<MemorySource>,
    floor: HashMap<[u8; 32], Arc<KeyContext>>,
    /// The keys, in the order in which they are verified.
    keys: Vec<String>,
}

impl World {
    fn new(size: usize) -> Self {
        let mut random = Random(size as u64);
        let mut keys: Vec<String> = (0..size)
            .map(|_| format!("ck_live_{:016x}{:016x}", random.next(), random.next()))
            .collect();
        let source = MemorySource::default();
        let mut floor = HashMap::with_capacity(size);
        for text in &keys {
            let record = scoped(text);
            floor.insert(*Digest::of_key(text).as_bytes(), Arc::new(record.clone()));
            source.put(text, record);
        }
        for i in (1..size).rev() {
            keys.swap(i, random.below(i + 1));
        }

        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let settings = Settings {
            max_entries: size,
            max_bytes: size * 8192,
            ..Settings::default()
        };
        let id = VerifierId::from_bytes([1; 16]);
        let verifier = runtime
            .block_on(Verifier::new(id, source, Arc::new(SystemClock), settings))
            .unwrap();
        runtime.spawn(verifier.clone().run(std::future::pending()));
        runtime.block_on(async {
            for text in &keys {
                verifier
                    .verify(text, &AccessRequest::default())
                    .await
                    .unwrap();
            }
            while verifier.stats().lease_left.is_zero() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        while !verifier.take_usage().is_empty() {}
        Self {
            runtime,
            verifier,
            floor,
            keys,
        }
    }

    fn access(&self) -> AccessRequest<'static> {
        AccessRequest {
            scopes: Catalogue::default().needed(["links:read"]).unwrap(),
            method: Some("GET"),
            path: Some(RequestPath::new(
                "/api/tokens/tok_0123456789",
                &RouteBase::default(),
            )),
            client_ip: Some(IpAddr::from([203, 0, 113, 7])),
            ..AccessRequest::default()
        }
    }

    fn verify(&self, text: &str, access: &AccessRequest<'_>) {
        let verdict = poll_ready(self.verifier.verify(text, access)).unwrap();
        assert!(verdict.outcome.is_ok());
        black_box(verdict);
    }

    fn floor(&self, text: &str) {
        black_box(
            self.floor
                .get(Digest::of_key(black_box(text)).as_bytes())
                .unwrap(),
        );
    }

    /// How long `threads` threads take for `iterations` calls each, starting at different keys.
    fn time(&self, threads: usize, iterations: u64, call: &(impl Fn(&str) + Sync)) -> Duration {
        let barrier = Barrier::new(threads);
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..threads)
                .map(|thread| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let from = self.keys.len() / threads * thread;
                        let calls = self
                            .keys
                            .iter()
                            .cycle()
                            .skip(from)
                            .take(iterations as usize);
                        barrier.wait();
                        let start = Instant::now();
                        calls.for_each(|text| call(text));
                        start.elapsed()
                    })
                })
                .collect();
            runs.into_iter()
                .map(|run| run.join().unwrap())
                .max()
                .unwrap_or_default()
        })
    }
}

/// Nanoseconds per call of each sample.
type Samples = Mutex<Vec<f64>>;

fn median(samples: &Samples) -> f64 {
    let mut samples = samples.lock().unwrap().clone();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .without_plots()
        .configure_from_args();
    let mut table = Vec::new();
    for size in SIZES {
        let world = World::new(size);
        let access = world.access();
        // Verify every key once, so that each has usage that waits to be taken: the steady state.
        world.time(1, size as u64, &|text| world.verify(text, &access));
        let allocations = allocation_counter::measure(|| {
            world
                .keys
                .iter()
                .take(10_000)
                .for_each(|text| world.verify(text, &access));
        });
        for threads in THREADS {
            let (floor, verify) = (Samples::default(), Samples::default());
            let mut group = criterion.benchmark_group(format!("{size} keys, {threads} threads"));
            let mut bench = |name: &str, samples: &Samples, call: &(dyn Fn(&str) + Sync)| {
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    bencher.iter_custom(|iterations| {
                        let took = world.time(threads, iterations, &|text: &str| call(text));
                        samples
                            .lock()
                            .unwrap()
                            .push(took.as_nanos() as f64 / iterations as f64);
                        took
                    });
                });
            };
            bench("floor", &floor, &|text| world.floor(text));
            bench("verify", &verify, &|text| world.verify(text, &access));
            group.finish();
            table.push((
                size,
                threads,
                median(&floor),
                median(&verify),
                allocations.count_total,
            ));
        }
        drop(world.verifier);
        world.runtime.shutdown_background();
    }

    println!(
        "\n| keys | threads | floor ns | verify ns | verify / floor | allocations in 10 000 hits |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    for (size, threads, floor, verify, allocations) in table {
        println!(
            "| {size} | {threads} | {floor:.0} | {verify:.0} | {:.2} | {allocations} |",
            verify / floor
        );
    }
    criterion.final_summary();
}
