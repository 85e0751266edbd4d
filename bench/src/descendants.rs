//! `cargo xtask bench descendants`: measures whether the duration of a revocation depends on the number of descendants.
//!
//! It runs a server on SQLite and one on PostgreSQL, each with trees of three sizes: a root and its children,
//! one in nine of which has a child itself. The roots are revoked over HTTP, one of each size in turn. It
//! prints the time until the response, and until the revocation was recorded on every descendant, which
//! happens in the background. Some descendants are verified before the revocation, so that they are cached,
//! and must be rejected after it.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rand::{SeedableRng as _, rngs::StdRng};
use tollkey_core::{
    AccountId, ApiKey, Clock as _, Digest, Family, KeyId, Mode, PlainKey, Timestamp,
    key_format::CredentialKind,
};
use tollkey_store::testing::{Database, Postgres};
use tollkey_verifier::SystemClock;

use super::{
    median,
    servers::{self, Client, Process, tollkey},
};

/// The numbers of descendants of a root.
const SIZES: [usize; 3] = [10, 1_000, 100_000];
/// The number of revoked roots of each size.
const ROUNDS: usize = 3;
/// The number of descendants of each root that are verified.
const VERIFIED: usize = 100;
const RECORDING_TIMEOUT: Duration = Duration::from_secs(600);
const SECRET: &str = "example-secret-of-a-measurement-0";
const ACCOUNT: &str = "trees";

/// A root and some of its descendants.
struct Tree {
    root: KeyId,
    descendants: Vec<PlainKey>,
}

/// Creates a tree. Returns its keys with their hashes, parents first.
fn tree(
    descendants: usize,
    account: &AccountId,
    now: Timestamp,
    rng: &mut StdRng,
) -> (Tree, Vec<(ApiKey, Digest)>) {
    let kind = (Family::Secret, Mode::Live);
    let children = descendants - descendants / 10;
    let mut keys: Vec<(ApiKey, Digest)> = Vec::with_capacity(descendants + 1);
    let mut texts = Vec::new();
    for node in 0..=descendants {
        let parent = match node {
            0 => None,
            child if child <= children => Some(0),
            grandchild => Some(grandchild - children),
        };
        let text = PlainKey::generate(CredentialKind::Key(kind.0, kind.1), rng);
        let key = ApiKey {
            name: format!("node {node}"),
            created_by: parent.map(|parent: usize| keys[parent].0.id),
            ..ApiKey::new(KeyId::new(now, rng), account.clone(), &text, kind, now)
        };
        keys.push((key, text.digest()));
        // The last descendants, which are grandchildren of the root, except in the smallest tree.
        if node > 0 && node + VERIFIED > descendants {
            texts.push(text);
        }
    }
    (
        Tree {
            root: keys[0].0.id,
            descendants: texts,
        },
        keys,
    )
}

struct Subject {
    backend: &'static str,
    /// Dropped before its database.
    _server: Process,
    database: Database,
    address: SocketAddr,
    token: String,
    /// For each size, the roots that are not revoked yet.
    trees: [Vec<Tree>; SIZES.len()],
    /// For each size, the milliseconds until the response and until the revocation was recorded.
    responded: [Vec<f64>; SIZES.len()],
    recorded: [Vec<f64>; SIZES.len()],
}

impl Subject {
    fn start(
        program: &Path,
        directory: &Path,
        backend: &'static str,
        database: Database,
    ) -> anyhow::Result<Self> {
        let (account, now, mut rng) = (
            ACCOUNT.parse::<AccountId>()?,
            SystemClock.now(),
            StdRng::seed_from_u64(1),
        );
        let mut all = Vec::new();
        let trees = SIZES.map(|descendants| {
            let new = (0..ROUNDS).map(|_| {
                let (tree, keys) = tree(descendants, &account, now, &mut rng);
                all.extend(keys);
                tree
            });
            new.collect()
        });
        database
            .store()
            .fill(std::iter::empty(), all.into_iter(), |_| {})?;
        let tollkey = || {
            let mut command = tollkey(program, directory);
            command
                .env("DATABASE_URL", database.url())
                .env("TOLLKEY_JWT_HS256_SECRET", SECRET);
            command
        };
        let mut serve = tollkey();
        serve
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--workers",
                "1",
                "--log",
                "warn",
            ])
            .stdout(Stdio::piped());
        let mut server = Process::start(&mut serve)?;
        let address = server.listening()?;
        let token = servers::token(&mut tollkey(), ACCOUNT)?;
        let none = || std::array::from_fn(|_| Vec::new());
        Ok(Self {
            backend,
            _server: server,
            database,
            address,
            token,
            trees,
            responded: none(),
            recorded: none(),
        })
    }

    /// Verifies descendants with their own credentials.
    fn verify(client: &mut Client, descendants: &[PlainKey], expected: u16) -> anyhow::Result<()> {
        for text in descendants {
            let (status, _) = client.send("GET", servers::ROUTE, text.expose(), "")?;
            ensure!(
                status == expected,
                "the status of a descendant is {status}, not {expected}"
            );
        }
        Ok(())
    }

    fn revoke(&mut self, size: usize, tree: &Tree) -> anyhow::Result<()> {
        let mut client = Client::connect(self.address)?;
        Self::verify(&mut client, &tree.descendants, 200)?;
        let path = format!("/api/v1/account/api-keys/{}", tree.root);
        let begun = Instant::now();
        let (status, _) = client.send("DELETE", &path, &self.token, "")?;
        self.responded[size].push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(status == 200, "the status of a revocation is {status}");
        Self::verify(&mut client, &tree.descendants, 401)?;
        while !self.is_recorded()? {
            ensure!(
                begun.elapsed() < RECORDING_TIMEOUT,
                "the revocation was not recorded in time"
            );
            sleep(Duration::from_millis(5));
        }
        self.recorded[size].push(begun.elapsed().as_secs_f64() * 1000.0);
        Self::verify(&mut Client::connect(self.address)?, &tree.descendants, 401)
    }

    fn is_recorded(&self) -> anyhow::Result<bool> {
        let store = self.database.store();
        Ok(store
            .read_blocking(|db| db.accounts_with_pending_revocations(None, 1))?
            .is_empty())
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    let program = servers::build()?;
    let directory = tempfile::tempdir()?;
    let mut subjects = vec![Subject::start(
        &program,
        directory.path(),
        "SQLite",
        Database::sqlite(),
    )?];
    match Postgres::shared() {
        Some(postgres) => {
            subjects.push(Subject::start(
                &program,
                directory.path(),
                "PostgreSQL",
                postgres.database(),
            )?);
        }
        None => eprintln!(
            "\n*** PostgreSQL is missing (no initdb). Debian: apt-get install postgresql ***\n"
        ),
    }
    for _ in 0..ROUNDS {
        for size in 0..SIZES.len() {
            for subject in &mut subjects {
                if let Some(tree) = subject.trees[size].pop() {
                    subject.revoke(size, &tree)?;
                }
            }
        }
    }
    print(&subjects);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(subjects: &[Subject]) {
    println!(
        "{:<12} {:>12} {:>12} {:>7} {:>13}",
        "database", "descendants", "revoked ms", "ratio", "recorded ms"
    );
    for subject in subjects {
        let smallest = median(subject.responded[0].iter().copied());
        for (size, descendants) in SIZES.iter().enumerate() {
            let responded = median(subject.responded[size].iter().copied());
            println!(
                "{:<12} {descendants:>12} {responded:>12.2} {:>7.2} {:>13.0}",
                subject.backend,
                responded / smallest,
                median(subject.recorded[size].iter().copied())
            );
        }
    }
    println!(
        "\nMedians of {ROUNDS} revocations. \"revoked\" is the time until the response, after which every descendant is \
         rejected.\n\"ratio\" compares it with the smallest tree. \"recorded\" is the time until each descendant has its own \
         revocation and\naudit entry."
    );
}
