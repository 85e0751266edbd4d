//! `cargo xtask bench revoke`: measures how long a revocation takes until it has propagated to every replica,
//! compared to a creation.
//!
//! It runs one, three and five servers on a private PostgreSQL with durable settings, with leases of the
//! default length. Keys are created on a random replica, verified on every replica until they are cached, and
//! revoked on a random one. Creations and revocations alternate, so that other load affects them alike. Then
//! a random replica is paused before each revocation, and resumed after it, because only the first revocation
//! waits for a paused replica and removes its row.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tollkey_store::testing::{Database, Postgres};

use super::servers::{self, Client, Process};

const REPLICAS: [usize; 3] = [1, 3, 5];
/// The number of created and revoked keys.
const KEYS: usize = 300;
/// The number of additional keys that are created and revoked first, to warm up.
const FIRST_KEYS: usize = 20;
/// The number of revocations that wait for a paused replica.
const PAUSES: usize = 7;
/// The length of a lease in a fresh database.
const LEASE: Duration = Duration::from_secs(3);
/// The goal for the ratio of the median revocation to the median creation.
const GOAL: f64 = 5.0;
/// The goal for a revocation that waits for a paused replica.
const PAUSED_GOAL: Duration = LEASE.saturating_add(Duration::from_millis(500));
/// The durability settings that a PostgreSQL for tests turns off.
const DURABLE: &str = "fsync = on\nfull_page_writes = on\nsynchronous_commit = on\nautovacuum = on\n\
                       shared_buffers = 128MB";
const SECRET: &str = "an example secret for benchmarks, 32+ bytes";

/// Servers on one database.
struct Cluster {
    replicas: Vec<Replica>,
    token: String,
    application: String,
    rng: StdRng,
}

struct Replica {
    process: Process,
    client: Client,
}

struct Key {
    id: String,
    text: String,
}

impl Cluster {
    fn start(
        program: &Path,
        directory: &Path,
        database: &Database,
        replicas: usize,
    ) -> anyhow::Result<Self> {
        let tollkey = || {
            let mut command = servers::tollkey(program, directory);
            command
                .env("DATABASE_URL", database.url())
                .env("TOLLKEY_JWT_HS256_SECRET", SECRET);
            command
        };
        let start = |_| {
            let mut serve = tollkey();
            // Not `warn`, which logs each wait for a paused replica.
            serve.args([
                "serve",
                "--migrate",
                "--listen",
                "127.0.0.1:0",
                "--log",
                "error",
            ]);
            let mut process = Process::start(serve.stdout(Stdio::piped()))?;
            let address = process.listening()?;
            Ok(Replica {
                process,
                client: Client::connect(address)?,
            })
        };
        let mut replicas = (0..replicas)
            .map(start)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let token = servers::token(&mut tollkey(), servers::ACCOUNT)?;
        let application =
            replicas[0]
                .client
                .post(&token, "/api/v1/applications", &json!({"name": "bench"}))?;
        let application = servers::text(&application, "id")?;
        Ok(Self {
            replicas,
            token,
            application,
            rng: StdRng::seed_from_u64(1),
        })
    }

    fn random_replica(&mut self) -> usize {
        self.rng.random_range(0..self.replicas.len())
    }

    /// Creates a key on a random replica. Returns the key and the duration.
    fn create(&mut self) -> anyhow::Result<(Key, Duration)> {
        let at = self.random_replica();
        let path = format!("/api/v1/applications/{}/api-keys", self.application);
        let begun = Instant::now();
        let created =
            self.replicas[at]
                .client
                .post(&self.token, &path, &json!({"description": "bench"}))?;
        let took = begun.elapsed();
        Ok((
            Key {
                id: servers::text(&created, "id")?,
                text: servers::text(&created, "fullKey")?,
            },
            took,
        ))
    }

    fn revoke(&mut self, at: usize, key: &Key) -> anyhow::Result<Duration> {
        let path = format!(
            "/api/v1/applications/{}/api-keys/{}",
            self.application, key.id
        );
        let begun = Instant::now();
        let (status, _) = self.replicas[at]
            .client
            .send("DELETE", &path, &self.token, "")?;
        let took = begun.elapsed();
        ensure!(status == 204, "the status of a revocation is {status}");
        Ok(took)
    }

    /// Verifies a key twice on every replica, so that replicas with a lease have cached it.
    fn verify(&mut self, key: &Key, expected: u16) -> anyhow::Result<()> {
        for replica in &mut self.replicas {
            for _ in 0..2 {
                let (status, _) = replica.client.send("GET", servers::ROUTE, &key.text, "")?;
                ensure!(
                    status == expected,
                    "the status of a key is {status}, not {expected}"
                );
            }
        }
        Ok(())
    }

    fn measure(&mut self, keys: usize) -> anyhow::Result<(Times, Times)> {
        let (mut created, mut revoked) = (Times::default(), Times::default());
        for _ in 0..keys {
            let (key, took) = self.create()?;
            created.0.push(took);
            self.verify(&key, 200)?;
            let at = self.random_replica();
            revoked.0.push(self.revoke(at, &key)?);
            self.verify(&key, 401)?;
        }
        Ok((created, revoked))
    }

    fn measure_paused(&mut self, times: usize) -> anyhow::Result<Times> {
        let mut revoked = Times::default();
        for _ in 0..times {
            let (key, _) = self.create()?;
            self.verify(&key, 200)?;
            let paused = self.random_replica();
            let at = (paused + self.rng.random_range(1..self.replicas.len())) % self.replicas.len();
            let sleeping = self.replicas[paused].process.pause()?;
            revoked.0.push(self.revoke(at, &key)?);
            drop(sleeping);
            self.verify(&key, 401)?;
            // The replica has a new lease, so this revocation waits for it again, but only briefly.
            let (key, _) = self.create()?;
            self.verify(&key, 200)?;
            self.revoke(at, &key)?;
        }
        Ok(revoked)
    }
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    /// Returns the duration at this quantile, in milliseconds; NaN without durations.
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    }
}

struct Row {
    replicas: usize,
    created: Times,
    revoked: Times,
    /// Empty if there is no other replica to pause.
    paused: Times,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let program = servers::build()?;
    let postgres = Postgres::private(DURABLE)
        .context("PostgreSQL is missing. Debian: apt-get install postgresql")?;
    let directory = tempfile::tempdir()?;
    eprintln!(
        "PostgreSQL's data is in {}; {KEYS} keys for each number of replicas, {PAUSES} pauses",
        postgres
            .socket()
            .parent()
            .unwrap_or(Path::new("?"))
            .display()
    );
    let mut rows = Vec::new();
    for replicas in REPLICAS {
        eprintln!("replicas: {replicas}; measuring ...");
        let database = postgres.database();
        let mut cluster = Cluster::start(&program, directory.path(), &database, replicas)?;
        cluster.measure(FIRST_KEYS)?;
        let (created, revoked) = cluster.measure(KEYS)?;
        let paused = if replicas > 1 {
            cluster.measure_paused(PAUSES)?
        } else {
            Times::default()
        };
        rows.push(Row {
            replicas,
            created,
            revoked,
            paused,
        });
    }
    print(&rows);
    Ok(())
}

/// Prints the table, in milliseconds.
#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(rows: &[Row]) {
    println!(
        "{:>8}  {:>10} {:>8}  {:>10} {:>8}  {:>6} {:>4}  {:>10} {:>8} {:>8}",
        "replicas",
        "create p50",
        "p99",
        "revoke p50",
        "p99",
        "ratio",
        "goal",
        "paused p50",
        "max",
        "goal"
    );
    for Row {
        replicas,
        created,
        revoked,
        paused,
    } in rows
    {
        let ratio = revoked.at(0.5) / created.at(0.5);
        let [paused_median, paused_max, paused_goal] = [
            paused.at(0.5),
            paused.at(1.0),
            PAUSED_GOAL.as_secs_f64() * 1000.0,
        ]
        .map(|millis| {
            if paused.0.is_empty() {
                "-".to_owned()
            } else {
                format!("{millis:.0}")
            }
        });
        println!(
            "{replicas:>8}  {:>10.2} {:>8.2}  {:>10.2} {:>8.2}  {ratio:>6.2} {GOAL:>4.1}  {paused_median:>10} \
             {paused_max:>8} {paused_goal:>8}",
            created.at(0.5),
            created.at(0.99),
            revoked.at(0.5),
            revoked.at(0.99),
        );
    }
    println!(
        "\nMilliseconds. \"ratio\" is the ratio of the medians in the same run; fsync and synchronous_commit are on. \"paused\" is\n\
         the first revocation after one of the other replicas was paused by SIGSTOP: it waits for a lease of {} s, and the\n\
         goal is half a second more. The next revocation does not wait.",
        LEASE.as_secs()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_the_value_at_its_rank() {
        let times = Times((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(
            [0.5, 0.99, 1.0].map(|share| times.at(share)),
            [100.0, 198.0, 200.0]
        );
        assert!(Times::default().at(0.5).is_nan());
    }
}
