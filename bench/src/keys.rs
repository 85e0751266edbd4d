//! `cargo xtask bench keys`: compares a database of ten million keys to one of ten thousand.
//!
//! A separate process measures each database: the store, a verifier with a lease, and the operations
//! of an account. So the memory of each verifier is known. The processes run in turn, several times,
//! so that other load affects all of them alike. The command prints medians over the rounds, and
//! ratios within a round.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tollkey_core::{
    AccessRequest, Catalogue, Clock as _, Digest, Family, Id, Mode, VerifierId,
    audit::{Action, Actor, ActorKind, Draft, Target},
};
use tollkey_service::StoreSource;
use tollkey_store::{
    Error, KeyFilter, OpenOptions, Store,
    testing::{Database, Postgres},
};
use tollkey_verifier::{Settings, SystemClock, Verifier};

use super::{median, servers};
use crate::generate::Population;

/// The number of measurements of each database.
const ROUNDS: u64 = 3;
/// The number of uncached keys to verify sequentially, and again concurrently.
const COLD: usize = 1_200;
const CONCURRENCY: usize = 32;
/// The number of verifications of each cached key.
const REPEATS: usize = 400;
/// The number of lists, creations and revocations.
const MANAGED: usize = 200;
/// The number of keys of an account, in all databases.
const OF_AN_ACCOUNT: u64 = 1_000;

/// The settings of a production server, except for its size.
const POSTGRES: &str = "fsync = on\nfull_page_writes = on\nautovacuum = on\nshared_buffers = 2GB\n\
                        max_wal_size = 2GB\ncheckpoint_timeout = 15min\nmax_connections = 50";

/// A client IP that every generated IP allowlist has.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// The columns: the title, and the name in the output of the measuring process.
const COLUMNS: [(&str, &str); 8] = [
    ("cold µs", "cold"),
    ("concurrent", "crowd"),
    ("cached", "cached"),
    ("list", "list"),
    ("create", "create"),
    ("revoke", "revoke"),
    ("memory MB", "memory"),
    ("database MB", "size"),
];

struct Subject {
    name: String,
    database: Database,
    population: Population,
    /// The output of the measuring process, for each round.
    results: Vec<Value>,
}

/// Fills the databases, measures and prints the results. `--keys` is the size of the large databases.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let (postgres_keys, sqlite_keys) = match arguments {
        [] => (10_000_000, 1_000_000),
        ["--keys", keys] => {
            let keys = keys.parse().context("--keys needs a number")?;
            (keys, keys / 10)
        }
        ["--measure", url, keys, round] => {
            let results = measure(url, population(keys.parse()?), round.parse()?)?;
            return print_line(&results.to_string());
        }
        _ => anyhow::bail!("bench keys takes only --keys N"),
    };
    let program = servers::build_self()?;
    let mut subjects = Vec::new();
    match Postgres::private(POSTGRES) {
        Some(postgres) => {
            for keys in [10_000, postgres_keys] {
                subjects.push(Subject::fill(
                    &program,
                    "PostgreSQL",
                    postgres.database(),
                    keys,
                )?);
            }
        }
        None => eprintln!(
            "\n*** PostgreSQL is missing (no initdb). Debian: apt-get install postgresql ***\n"
        ),
    }
    for keys in [10_000, sqlite_keys] {
        subjects.push(Subject::fill(&program, "SQLite", Database::sqlite(), keys)?);
    }
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            eprintln!("round {} of {ROUNDS}: {}", round + 1, subject.name);
            subject.measure(&program, round)?;
        }
    }
    print(&subjects)
}

fn population(keys: u64) -> Population {
    Population {
        keys,
        accounts: (keys / OF_AN_ACCOUNT).max(1),
    }
}

impl Subject {
    fn fill(
        program: &PathBuf,
        backend: &str,
        database: Database,
        keys: u64,
    ) -> anyhow::Result<Self> {
        let population = population(keys);
        drop(database.store()); // migrated
        eprintln!("{backend}, {keys} keys ...");
        let accounts = population.accounts.to_string();
        let filled = Command::new(program)
            .args([
                "generate",
                "--keys",
                &keys.to_string(),
                "--accounts",
                &accounts,
                database.url(),
            ])
            .status()?;
        ensure!(filled.success(), "the database could not be filled");
        Ok(Self {
            name: format!("{backend}, {}", short(keys)),
            database,
            population,
            results: Vec::new(),
        })
    }

    fn measure(&mut self, program: &PathBuf, round: u64) -> anyhow::Result<()> {
        let (keys, round) = (self.population.keys.to_string(), round.to_string());
        let output = Command::new(program)
            .args(["keys", "--measure", self.database.url(), &keys, &round])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(
            output.status.success(),
            "{} could not be measured",
            self.name
        );
        self.results.push(serde_json::from_slice(&output.stdout)?);
        Ok(())
    }

    /// The median over the rounds of the value at this JSON pointer.
    fn value(&self, pointer: &str) -> f64 {
        median(self.results.iter().map(|results| number(results, pointer)))
    }
}

fn number(results: &Value, pointer: &str) -> f64 {
    results
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or(f64::NAN)
}

/// Measures one database in this process.
fn measure(url: &str, population: Population, round: u64) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let clock = Arc::new(SystemClock);
        let store = Store::open(OpenOptions::new(url), clock.clone())?;
        let id = Digest::of_key(&format!("{} {:?}", std::process::id(), clock.elapsed()));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&id.as_bytes()[..16]);
        let source = StoreSource::new(store.clone(), Arc::new(Catalogue::default()));
        let verifier = Verifier::new(
            VerifierId::from_bytes(bytes),
            source,
            clock,
            Settings::default(),
        )
        .await?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(verifier.clone().run(async move {
            let _ = stopped.await;
        }));
        let since = Instant::now();
        while verifier.stats().lease_left.is_zero() {
            ensure!(since.elapsed() < Duration::from_secs(10), "no lease");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let results = measure_with(&store, &verifier, population, round).await;
        let _ = stop.send(());
        running.await?;
        results
    })
}

async fn measure_with(
    store: &Store,
    verifier: &Verifier<StoreSource>,
    population: Population,
    round: u64,
) -> anyhow::Result<Value> {
    let mut picked = Picker {
        population,
        round,
        seen: HashSet::new(),
        next: 0,
    };
    let verify = async |text: &str| {
        let started = Instant::now();
        let verdict = verifier
            .verify(
                text,
                &AccessRequest {
                    client_ip: Some(ADDRESS),
                    ..AccessRequest::default()
                },
            )
            .await?;
        let took = started.elapsed();
        ensure!(
            verdict.outcome.is_ok(),
            "a valid key was denied: {:?}",
            verdict.outcome
        );
        Ok(took)
    };
    for text in picked.texts(200) {
        verify(&text).await?; // opens connections and prepares statements
    }

    let sequential = picked.texts(COLD);
    let mut cold = Vec::with_capacity(COLD);
    for text in &sequential {
        cold.push(verify(text).await?);
    }

    let concurrent: Arc<Vec<String>> = Arc::new(picked.texts(COLD));
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..CONCURRENCY)
        .map(|_| {
            let (concurrent, next, verifier) = (concurrent.clone(), next.clone(), verifier.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                while let Some(text) = concurrent.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let access = AccessRequest {
                        client_ip: Some(ADDRESS),
                        ..AccessRequest::default()
                    };
                    let verdict = verifier.verify(text, &access).await?;
                    took.push(started.elapsed());
                    ensure!(
                        verdict.outcome.is_ok(),
                        "a valid key was denied: {:?}",
                        verdict.outcome
                    );
                }
                Ok(took)
            })
        })
        .collect();
    let mut together = Vec::with_capacity(COLD);
    for task in tasks {
        together.extend(task.await??);
    }

    let before = verifier.stats();
    let mut cached = Vec::with_capacity(2 * COLD * REPEATS);
    for _ in 0..REPEATS {
        for text in sequential.iter().chain(&*concurrent) {
            cached.push(verify(text).await?);
        }
    }
    let stats = verifier.stats();
    ensure!(
        stats.hits - before.hits == cached.len() as u64,
        "a cached key was fetched again"
    );
    let memory = resident()?;

    let mut list = Vec::with_capacity(MANAGED);
    for key in picked.numbers(MANAGED) {
        let account = population.account(key)?;
        let started = Instant::now();
        let keys = store
            .read(move |db| {
                let filter = KeyFilter {
                    families: &[Family::Commerce],
                    ..KeyFilter::default()
                };
                Ok(db.account(&account).keys(&filter, None, 1_000)?.keys)
            })
            .await?;
        list.push(started.elapsed());
        ensure!(keys.len() > 500, "an account has {} keys", keys.len());
    }

    let mut create = Vec::with_capacity(MANAGED);
    for number in (population.keys + round * MANAGED as u64..).take(MANAGED) {
        let (mut key, digest) = population.key(number)?;
        // Without an application, as the application of this number may not exist.
        (key.family, key.application_id) = (Family::Commerce, None);
        let draft = draft(&key, Action::ApiKeyCreated);
        let started = Instant::now();
        let written = store.write(move |tx| {
            tx.account(&key.account_id).insert_key(&key, &digest)?;
            tx.account(&key.account_id).append(draft).map(drop)
        });
        ensure!(written.await?.change.is_none(), "a new key evicts nothing");
        create.push(started.elapsed());
    }

    let mut revoke = Vec::with_capacity(MANAGED);
    for number in picked.numbers(MANAGED) {
        let (key, _) = population.key(number)?;
        let draft = draft(&key, Action::ApiKeyRevoked);
        let started = Instant::now();
        let written = store.write(move |tx| {
            let mut account = tx.account(&key.account_id);
            let mut key = account
                .lock_key(&Family::ALL, &key.id)?
                .ok_or(Error::NotFound)?;
            let _ = key.revoke(draft.occurred_at, None);
            account.save_key(&key)?;
            account.append(draft).map(drop)
        });
        let change = written.await?.change.context("a revocation is a change")?;
        verifier.wait_until_propagated(change.seq, change.at).await;
        revoke.push(started.elapsed());
    }

    Ok(json!({
        "cold": quantiles(cold),
        "crowd": quantiles(together),
        "cached": quantiles(cached),
        "list": quantiles(list),
        "create": quantiles(create),
        "revoke": quantiles(revoke),
        "memory": memory,
        "size": store.size()? as f64 / 1e6,
    }))
}

fn draft(key: &tollkey_core::ApiKey, action: Action) -> Draft {
    let now = SystemClock.now();
    let mut id = [0; 16];
    id.copy_from_slice(&Digest::of_key(&format!("{action:?} {} {now}", key.id)).as_bytes()[..16]);
    Draft {
        id: Id::from_bytes(id),
        account_id: key.account_id.clone(),
        occurred_at: now,
        action,
        actor: Actor {
            kind: ActorKind::Merchant,
            id: "bench".into(),
        },
        target: Target::key(key.id, Mode::Live),
        request_id: None,
        ip: None,
        changes: json!({ "name": key.name }),
    }
}

/// Picks usable keys at random, without repetition, and different ones in each round.
struct Picker {
    population: Population,
    round: u64,
    seen: HashSet<u64>,
    next: u64,
}

impl Picker {
    fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut picked = Vec::with_capacity(count);
        while picked.len() < count {
            self.next += 1;
            let random = Digest::of_key(&format!("{} {}", self.round, self.next));
            let random = random
                .as_bytes()
                .iter()
                .take(8)
                .fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
            let number = random % self.population.keys / ROUNDS * ROUNDS + self.round;
            if number < self.population.keys
                && self.population.is_usable(number)
                && self.seen.insert(number)
            {
                picked.push(number);
            }
        }
        picked
    }

    fn texts(&mut self, count: usize) -> Vec<String> {
        self.numbers(count)
            .into_iter()
            .map(|number| self.population.text(number))
            .collect()
    }
}

/// The median and the 99th percentile, in microseconds.
fn quantiles(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let at = |rank: usize| {
        took.get(rank)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
    };
    json!([at(took.len() / 2), at(took.len() * 99 / 100)])
}

/// The memory of this process, in megabytes.
fn resident() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("the kernel does not report the memory")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

fn short(keys: u64) -> String {
    match keys {
        0..1_000_000 => format!("{} k", keys / 1_000),
        _ => format!("{} M", keys / 1_000_000),
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print_line(line: &str) -> anyhow::Result<()> {
    println!("{line}");
    Ok(())
}

/// Prints the table. Each pair of rows is a small and a large database; the large one has its ratio to the small one.
fn print(subjects: &[Subject]) -> anyhow::Result<()> {
    let mut line = format!("{:<18}", "median / p99");
    for (title, _) in COLUMNS {
        line.push_str(&format!(" {title:>15}"));
    }
    print_line(&line)?;
    for pair in subjects.chunks(2) {
        for subject in pair {
            let mut line = format!("{:<18}", subject.name);
            for (_, name) in COLUMNS {
                let shown = match name {
                    "memory" | "size" => format!("{:.0}", subject.value(&format!("/{name}"))),
                    _ => [0, 1]
                        .map(|it| digits(subject.value(&format!("/{name}/{it}"))))
                        .join(" / "),
                };
                line.push_str(&format!(" {shown:>15}"));
            }
            print_line(&line)?;
        }
        if let [small, large] = pair {
            let mut line = format!("{:<18}", "  ratio");
            for (_, name) in COLUMNS {
                let ratio = |pointer: &str| {
                    let rounds = small.results.iter().zip(&large.results);
                    format!(
                        "{:.2}",
                        median(
                            rounds
                                .map(|(small, large)| number(large, pointer)
                                    / number(small, pointer))
                        )
                    )
                };
                let shown = match name {
                    "memory" | "size" => ratio(&format!("/{name}")),
                    _ => [0, 1].map(|it| ratio(&format!("/{name}/{it}"))).join(" / "),
                };
                line.push_str(&format!(" {shown:>15}"));
            }
            print_line(&line)?;
        }
    }
    print_line(&format!(
        "\nMicroseconds, medians of {ROUNDS} rounds. cold: {COLD} random uncached keys, \
         one at a time.\nconcurrent: {COLD} other uncached keys, {CONCURRENCY} at a time, over 4 connections. cached: all {} keys, \
         repeatedly, under a lease.\nlist: the first page of the commerce keys of an account, which has {OF_AN_ACCOUNT} keys, 750 of \
         them commerce keys.\ncreate, revoke: one transaction with its audit entry, synced to disk; revoke also waits until \
         the change has propagated.\nmemory: of the verifying process. The database was just filled, so most of it is in the \
         system's cache.",
        2 * COLD
    ))
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
