//! `cargo xtask bench dashboard`: compares the pages of an account with 10,000 keys to those of an account with 100.
//!
//! It runs one server for each database and account, and sends requests to them in turn, one at a time. It
//! prints the medians, the ratios to the account with 100 keys on the same database, and the size of each
//! page, because larger pages take longer.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tollkey_store::testing::{Database, Postgres};

use super::{
    median,
    servers::{self, Client, Process, tollkey},
};

/// The number of keys of the two accounts.
const SIZES: [u64; 2] = [100, 10_000];
/// The number of additional applications of each account: as many as a form lists at most.
const APPLICATIONS: usize = 100;
/// The number of requests for each page.
const ROUNDS: usize = 200;
/// The account of the keys, the only one that `cargo xtask generate` creates here.
const ACCOUNT: &str = "account-0000000";
const SECRET: &str = "example-secret-of-a-measurement-0";
const OLDEST_REVOKED: &str = "UPDATE api_keys SET revoked_at = created_at, revoked_reason = 'generated as revoked' \
     WHERE id IN (SELECT id FROM api_keys ORDER BY created_at, id LIMIT 60)";

const PAGES: [(&str, &str); 6] = [
    ("keys", "/dashboard/keys"),
    ("keys, by name", "/dashboard/keys?q=key"),
    ("keys, revoked", "/dashboard/keys?status=revoked"),
    // Searches all keys.
    ("keys, none found", "/dashboard/keys?q=no+key+is+called+so"),
    ("new key", "/dashboard/keys/new"),
    ("audit log", "/dashboard/audit"),
];

struct Subject {
    backend: &'static str,
    /// Dropped before its database.
    _server: Process,
    _database: Database,
    browser: Browser,
    /// Milliseconds of each request, for each page.
    took: Vec<Vec<f64>>,
    /// The size in bytes, for each page.
    size: Vec<usize>,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let program = servers::build()?;
    let directory = tempfile::tempdir()?;
    let mut subjects = Vec::new();
    for keys in SIZES {
        subjects.push(Subject::start(
            &program,
            directory.path(),
            "SQLite",
            Database::sqlite(),
            keys,
        )?);
    }
    match Postgres::shared() {
        Some(postgres) => {
            for keys in SIZES {
                subjects.push(Subject::start(
                    &program,
                    directory.path(),
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
    for round in 0..ROUNDS + 5 {
        for subject in &mut subjects {
            for (page, (_, path)) in PAGES.iter().enumerate() {
                let (took, size) = subject.browser.page(path)?;
                subject.size[page] = size;
                if round >= 5 {
                    subject.took[page].push(took.as_secs_f64() * 1000.0);
                }
            }
        }
    }
    print(&subjects);
    Ok(())
}

impl Subject {
    fn start(
        program: &Path,
        directory: &Path,
        backend: &'static str,
        database: Database,
        keys: u64,
    ) -> anyhow::Result<Self> {
        drop(database.store()); // migrated
        let own = std::env::current_exe()?;
        let filled = Command::new(own)
            .args([
                "generate",
                "--keys",
                &keys.to_string(),
                "--accounts",
                "1",
                database.url(),
            ])
            .status()?;
        ensure!(filled.success(), "the database could not be filled");
        // Pages show the newest keys first, so a search for revoked keys finds these last. `generate` also
        // revokes one key in fifty, so the larger account has more revoked keys.
        database.sql(OLDEST_REVOKED);
        let set = |command: &mut Command| {
            command
                .env("DATABASE_URL", database.url())
                .env("TOLLKEY_JWT_HS256_SECRET", SECRET);
            command.env("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", "true");
        };
        let mut serve = tollkey(program, directory);
        set(&mut serve);
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
        let mut token = tollkey(program, directory);
        set(&mut token);
        let token = servers::token(&mut token, ACCOUNT)?;
        let mut browser = Browser::sign_in(address, &token)?;
        // Both accounts have the same number of applications in the form.
        for number in 0..APPLICATIONS {
            browser.client.post(
                &token,
                "/api/v1/applications",
                &json!({"name": format!("shop {number}")}),
            )?;
        }
        let took = vec![Vec::new(); PAGES.len()];
        let size = vec![0; PAGES.len()];
        Ok(Self {
            backend,
            _server: server,
            _database: database,
            browser,
            took,
            size,
        })
    }
}

struct Browser {
    client: Client,
    host: SocketAddr,
    cookie: String,
}

impl Browser {
    fn sign_in(to: SocketAddr, token: &str) -> anyhow::Result<Self> {
        let mut client = Client::connect(to)?;
        let body = format!("token={token}");
        let (response, received) = client.send_raw(&format!(
            "POST /dashboard/sign-in/token HTTP/1.1\r\nHost: {to}\r\nSec-Fetch-Site: same-origin\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        ensure!(response.status == 303, "sign-in: {}", response.status);
        let received = String::from_utf8_lossy(&received);
        let cookie = received
            .lines()
            .find_map(|line| line.strip_prefix("set-cookie: "));
        let cookie = cookie
            .and_then(|cookie| cookie.split(';').next())
            .context("no cookie")?
            .to_owned();
        Ok(Self {
            client,
            host: to,
            cookie,
        })
    }

    /// Requests a page. Returns the duration and the size in bytes.
    fn page(&mut self, path: &str) -> anyhow::Result<(Duration, usize)> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nSec-Fetch-Site: same-origin\r\nCookie: {}\r\n\r\n",
            self.host, self.cookie
        );
        let since = Instant::now();
        let (response, received) = self.client.send_raw(&request)?;
        let took = since.elapsed();
        ensure!(response.status == 200, "{path}: {}", response.status);
        Ok((took, received.len()))
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(subjects: &[Subject]) {
    let kb = |size: usize| size.div_ceil(1000);
    println!(
        "{:<16} {:<12} {:>12} {:>6} {:>12} {:>6} {:>7}",
        "page", "database", "100 keys ms", "kB", "10,000 ms", "kB", "ratio"
    );
    for (page, (name, _)) in PAGES.iter().enumerate() {
        for pair in subjects.chunks(SIZES.len()) {
            let medians: Vec<f64> = pair
                .iter()
                .map(|subject| median(subject.took[page].iter().copied()))
                .collect();
            let [small, large] = medians.as_slice() else {
                continue;
            };
            println!(
                "{name:<16} {:<12} {small:>12.2} {:>6} {large:>12.2} {:>6} {:>7.2}",
                pair[0].backend,
                kb(pair[0].size[page]),
                kb(pair[1].size[page]),
                large / small
            );
        }
    }
    println!("\nMedians of {ROUNDS} requests, one at a time. A page of keys shows 50.");
}
