//! `cargo xtask bench keys`: whether a database of ten million keys is any slower than one of ten thousand.
//!
//! For each database a process of its own, so that what it keeps in memory can be told: the store, a verifier with a
//! lease, and what an account does. The processes take turns, several times, so that whatever else the machine does
//! hits all alike; what is printed are medians over the rounds, with ratios taken within a round.

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
    Catalogue, Clock as _, Digest, Family, Id, Mode, Need, VerifierId,
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

/// How often each database is measured.
const ROUNDS: u64 = 3;
/// How many keys are verified that are not remembered, one at a time and then again at once.
const COLD: usize = 1_200;
/// How many ask at once.
const AT_ONCE: usize = 32;
/// How often each of those that then are remembered is verified.
const REPEATS: usize = 400;
/// How many lists are read, keys made and keys revoked.
const MANAGED: usize = 200;
/// How many keys an account has, in all databases.
const OF_AN_ACCOUNT: u64 = 1_000;

/// A server as one would run it, but for its size.
const POSTGRES: &str = "fsync = on\nfull_page_writes = on\nautovacuum = on\nshared_buffers = 2GB\n\
                        max_wal_size = 2GB\ncheckpoint_timeout = 15min\nmax_connections = 50";

/// An address that every generated list of networks lets through.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// What is measured: a name, how it is shown, and its place in what the measuring process says.
const COLUMNS: [(&str, &str); 8] = [
    ("cold µs", "cold"),
    ("32 at once", "crowd"),
    ("remembered", "remembered"),
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
    /// What the measuring process said, each round.
    said: Vec<Value>,
}

/// Fills the databases, measures and prints. `sizes` are how many keys the large ones have.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let (postgres_keys, sqlite_keys) = match arguments {
        [] => (10_000_000, 1_000_000),
        ["--keys", keys] => {
            let keys = keys.parse().context("--keys needs a number")?;
            (keys, keys / 10)
        }
        ["--measure", url, keys, round] => {
            let said = measure(url, population(keys.parse()?), round.parse()?)?;
            return print_line(&said.to_string());
        }
        _ => anyhow::bail!("bench keys takes --keys N, or nothing"),
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
            said: Vec::new(),
        })
    }

    fn measure(&mut self, program: &PathBuf, round: u64) -> anyhow::Result<()> {
        let (keys, round) = (self.population.keys.to_string(), round.to_string());
        let output = Command::new(program)
            .args([
                "bench",
                "keys",
                "--measure",
                self.database.url(),
                &keys,
                &round,
            ])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(
            output.status.success(),
            "{} could not be measured",
            self.name
        );
        self.said.push(serde_json::from_slice(&output.stdout)?);
        Ok(())
    }

    /// The medians over the rounds of what stands at this place.
    fn value(&self, place: &str) -> f64 {
        median(self.said.iter().map(|said| number(said, place)))
    }
}

fn number(said: &Value, place: &str) -> f64 {
    said.pointer(place)
        .and_then(Value::as_f64)
        .unwrap_or(f64::NAN)
}

/// Measures one database, in this process.
fn measure(url: &str, population: Population, round: u64) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let clock = Arc::new(SystemClock);
        let store = Store::open(OpenOptions::new(url), clock.clone())?;
        let id = Digest::of(&format!("{} {:?}", std::process::id(), clock.elapsed()));
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
        let said = measure_with(&store, &verifier, population, round).await;
        let _ = stop.send(());
        running.await?;
        said
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
                &Need {
                    client_ip: Some(ADDRESS),
                    ..Need::default()
                },
            )
            .await?;
        let took = started.elapsed();
        ensure!(
            verdict.outcome.is_ok(),
            "a key that is good was denied: {:?}",
            verdict.outcome
        );
        Ok(took)
    };
    for text in picked.texts(200) {
        verify(&text).await?; // connections are made, statements prepared
    }

    let alone = picked.texts(COLD);
    let mut cold = Vec::with_capacity(COLD);
    for text in &alone {
        cold.push(verify(text).await?);
    }

    let crowd: Arc<Vec<String>> = Arc::new(picked.texts(COLD));
    let next = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (crowd, next, verifier) = (crowd.clone(), next.clone(), verifier.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                while let Some(text) = crowd.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let need = Need {
                        client_ip: Some(ADDRESS),
                        ..Need::default()
                    };
                    let verdict = verifier.verify(text, &need).await?;
                    took.push(started.elapsed());
                    ensure!(
                        verdict.outcome.is_ok(),
                        "a key that is good was denied: {:?}",
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
    let mut remembered = Vec::with_capacity(2 * COLD * REPEATS);
    for _ in 0..REPEATS {
        for text in alone.iter().chain(&*crowd) {
            remembered.push(verify(text).await?);
        }
    }
    let stats = verifier.stats();
    ensure!(
        stats.hits - before.hits == remembered.len() as u64,
        "what was to be remembered was asked for again"
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
        // One of those that belong to no application: there may be none of that number.
        (key.family, key.application_id) = (Family::Commerce, None);
        let draft = draft(&key, Action::ApiKeyCreated);
        let started = Instant::now();
        let written = store.write(move |tx| {
            tx.account(&key.account_id).insert_key(&key, &digest)?;
            tx.account(&key.account_id).append(draft).map(drop)
        });
        ensure!(
            written.await?.change.is_none(),
            "a new key is nothing to forget"
        );
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
        let change = written
            .await?
            .change
            .context("a revocation is something to forget")?;
        verifier.wait_until_propagated(change.seq, change.at).await;
        revoke.push(started.elapsed());
    }

    Ok(json!({
        "cold": quantiles(cold),
        "crowd": quantiles(together),
        "remembered": quantiles(remembered),
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
    id.copy_from_slice(&Digest::of(&format!("{action:?} {} {now}", key.id)).as_bytes()[..16]);
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

/// Picks usable keys at random, none of them twice, and in each round others.
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
            let random = Digest::of(&format!("{} {}", self.round, self.next));
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

/// Median and the worst of 99 %, in microseconds.
fn quantiles(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let at = |rank: usize| {
        took.get(rank)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
    };
    json!([at(took.len() / 2), at(took.len() * 99 / 100)])
}

/// How much memory this process has, in megabytes.
fn resident() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("the kernel does not say")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

fn short(keys: u64) -> String {
    match keys {
        0..1_000_000 => format!("{} k", keys / 1_000),
        _ => format!("{} M", keys / 1_000_000),
    }
}

#[expect(clippy::print_stdout, reason = "it is what was asked for")]
fn print_line(line: &str) -> anyhow::Result<()> {
    println!("{line}");
    Ok(())
}

/// The table. Each pair of rows is a small and a large database; what is large has its ratio to the small one.
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
                let ratio = |place: &str| {
                    let rounds = small.said.iter().zip(&large.said);
                    format!(
                        "{:.2}",
                        median(
                            rounds
                                .map(|(small, large)| number(large, place) / number(small, place))
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
        "\nMicroseconds, medians of {ROUNDS} rounds. cold: {COLD} keys picked at random that the verifier does not remember, \
         one at a time, then {AT_ONCE} at\nonce over 8 connections. remembered: those {}, again and again, under a \
         lease. list: the first page of an account with {OF_AN_ACCOUNT} keys,\n750 of them of the family. create, revoke: one \
         transaction with its audit entry, synced to disk; revoke until it holds.\nmemory: of the verifying process. The \
         database was filled just now: the system's cache has most of it.",
        2 * COLD
    ))
}

/// Three digits that matter.
fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
