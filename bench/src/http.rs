//! `cargo xtask bench http`: verifications over HTTP.
//!
//! Four tables: forward authentication compared to nginx with static maps of the same keys; `POST /verify` compared to
//! forward authentication; a Unix socket compared to TCP; and a hundred thousand and a million keys in turn compared to a
//! thousand.
//!
//! Each server has one worker. The rows of the first three tables are measured in turn, several times, so that other load
//! affects them alike. The command prints medians over the rounds, and ratios within a round. Each row of the fourth table
//! is measured once, on a server of its own and for longer than the interval in which usage is written.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::Context as _;

use super::{
    load::{CONNECTIONS, Requests, Target, Until},
    median,
    servers::{self, Measured, Processors, ROUTE, SCOPE, Server, Tollkey},
};
use crate::generate::{self, Population};

/// The number of measurements of each row.
pub(super) const ROUNDS: usize = 7;
/// The duration of each measurement.
pub(super) const TIME: Duration = Duration::from_secs(2);
/// A scope that no key has.
const OTHER_SCOPE: &str = "links:write";
/// The keys of the fourth table.
const MANY: Population = Population {
    keys: 1_150_000,
    accounts: 10_000,
};
/// The duration of the measurement of each row of the fourth table. Usage is written once a minute.
const TIME_WITH_WRITES: Duration = Duration::from_secs(70);
/// The numbers of keys that are presented in turn.
const IN_TURN: [usize; 3] = [1_000, 100_000, 1_000_000];

struct Subject<'a> {
    name: String,
    server: &'a Server,
    listener: Target,
    requests: Requests,
    status: u16,
}

impl<'a> Subject<'a> {
    fn new(name: impl Into<String>, server: &'a Server, requests: Requests, status: u16) -> Self {
        Self {
            name: name.into(),
            server,
            listener: Target::Tcp(server.address),
            requests,
            status,
        }
    }

    /// The same subject at another listener of its server.
    fn at(mut self, listener: Target) -> Self {
        self.listener = listener;
        self
    }

    fn measure(&self, until: Until) -> anyhow::Result<Measured> {
        self.server
            .measure_at(&self.listener, &self.requests, self.status, until)
            .with_context(|| format!("measuring {}", self.name))
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    let program = servers::build()?;
    let nginx = servers::nginx();
    if nginx.is_none() {
        eprintln!(
            "\n*** nginx is missing: nothing to compare with. Debian: apt-get install nginx ***\n"
        );
    }
    let processors = Processors::divide()?;
    eprintln!(
        "{CONNECTIONS} connections, {ROUNDS} rounds of {} s for each row; {}",
        TIME.as_secs(),
        if processors.are_divided() {
            "one processor for the generator, another for the servers"
        } else {
            "generator and servers share one processor"
        }
    );
    compare_routes(&program, nginx.as_deref(), &processors)?;
    compare_numbers_of_keys(&program, &processors)
}

/// Measures forward authentication over TCP and a Unix socket, nginx and `POST /verify` with the same keys.
fn compare_routes(
    program: &Path,
    nginx: Option<&Path>,
    processors: &Processors,
) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    eprintln!("starting the servers and creating keys ...");
    let tollkey = Tollkey::start(program, directory.path(), processors, None)?;
    let nginx = nginx
        .map(|program| {
            describe(program)?;
            servers::start_nginx(program, directory.path(), &tollkey.keys, processors)
        })
        .transpose()?;
    let service_key = servers::service_key(program, directory.path())?;

    let texts: Vec<String> = tollkey.keys.iter().map(|key| key.text.clone()).collect();
    let get = |target: &str| Requests::new(texts.clone(), |key| forwarded(target, key));
    let (allowing, denying) = (
        format!("{ROUTE}?scope={SCOPE}"),
        format!("{ROUTE}?scope={OTHER_SCOPE}"),
    );
    let server = &tollkey.server;
    let mut subjects = Vec::new();
    if let Some(nginx) = &nginx {
        subjects.push(Subject::new("nginx, map", nginx, get(&allowing)?, 200));
    }
    subjects.push(Subject::new("forward-auth", server, get(&allowing)?, 200));
    subjects.push(Subject::new(
        "forward-auth, 403",
        server,
        get(&denying)?,
        403,
    ));
    subjects.push(Subject::new("livez", server, get("/livez")?, 200));
    compare(&subjects)?;

    let verify = Requests::new(texts.clone(), |key| verification(&service_key, key))?;
    compare(&[
        Subject::new("forward-auth", server, get(&allowing)?, 200),
        Subject::new("verify", server, verify, 200),
    ])?;

    let unix = || Target::Unix(tollkey.socket.clone());
    compare(&[
        Subject::new("TCP", server, get(&allowing)?, 200),
        Subject::new("Unix socket", server, get(&allowing)?, 200).at(unix()),
        Subject::new("TCP, livez", server, get("/livez")?, 200),
        Subject::new("Unix, livez", server, get("/livez")?, 200).at(unix()),
    ])
}

/// Measures forward authentication with more and more keys in turn.
fn compare_numbers_of_keys(program: &Path, processors: &Processors) -> anyhow::Result<()> {
    let generated = tempfile::tempdir()?;
    eprintln!("generating {} keys ...", MANY.keys);
    servers::migrate(program, generated.path())?;
    generate::fill(&servers::database_url(generated.path()), MANY)?;
    let mut texts = Vec::with_capacity(IN_TURN[2]);
    for number in 0..MANY.keys {
        let restrictions = MANY.key(number)?.0.restrictions;
        if MANY.is_usable(number) && restrictions.allowed_ips.is_none() {
            texts.push(MANY.text(number));
        }
    }
    let (mut names, mut measured) = (Vec::new(), Vec::new());
    for count in IN_TURN {
        let directory = tempfile::tempdir()?;
        fs::copy(
            servers::database_file(generated.path()),
            servers::database_file(directory.path()),
        )?;
        // Enough for all keys.
        let cache_bytes = Some(4 << 30);
        let tollkey = Tollkey::start(program, directory.path(), processors, cache_bytes)?;
        let texts = texts.get(..count).context("too few usable keys")?.to_vec();
        let requests = Requests::new(texts, |key| forwarded(ROUTE, key))?;
        let subject = Subject::new(format!("{count} keys"), &tollkey.server, requests, 200);
        eprintln!("caching {count} keys and measuring ...");
        subject.measure(Until::AllSent)?;
        measured.push(vec![subject.measure(Until::Elapsed(TIME_WITH_WRITES))?]);
        names.push(subject.name);
    }
    print(&names, &measured);
    Ok(())
}

/// Measures the subjects in turn and prints them, compared to the first one.
fn compare(subjects: &[Subject<'_>]) -> anyhow::Result<()> {
    for subject in subjects {
        subject.measure(Until::AllSent)?; // caches every key and warms up every path
    }
    let mut measured: Vec<Vec<Measured>> = subjects
        .iter()
        .map(|_| Vec::with_capacity(ROUNDS))
        .collect();
    for _ in 0..ROUNDS {
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            measured.push(subject.measure(Until::Elapsed(TIME))?);
        }
    }
    let names: Vec<String> = subjects
        .iter()
        .map(|subject| subject.name.clone())
        .collect();
    print(&names, &measured);
    Ok(())
}

fn describe(nginx: &Path) -> anyhow::Result<()> {
    let version = Command::new(nginx)
        .arg("-v")
        .output()
        .context("cannot run nginx")?;
    eprintln!("{}", String::from_utf8_lossy(&version.stderr).trim());
    Ok(())
}

/// A request as Traefik sends it. All servers get the same bytes.
fn forwarded(target: &str, key: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: auth.internal\r\nUser-Agent: curl/8.11.0\r\nAccept: */*\r\n\
         Authorization: Bearer {key}\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Host: api.example.com\r\n\
         X-Forwarded-Method: GET\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Uri: /api/links?limit=10\r\n\
         Accept-Encoding: gzip\r\n\r\n"
    )
}

/// A request of a resource server that requires the same scope.
fn verification(service_key: &str, key: &str) -> String {
    let body = format!(r#"{{"key":"{key}","scopes":["{SCOPE}"]}}"#);
    format!(
        "POST /api/v1/verify HTTP/1.1\r\nHost: auth.internal\r\nUser-Agent: curl/8.11.0\r\nAccept: */*\r\n\
         Authorization: Bearer {service_key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Prints a table, with ratios to the first row.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(super) fn print(names: &[String], measured: &[Vec<Measured>]) {
    println!(
        "\n{:<18} {:>11} {:>6}  {:>8} {:>6}  {:>8} {:>6}  {:>10} {:>6}  {:>9}",
        "server",
        "requests/s",
        "ratio",
        "p50 µs",
        "ratio",
        "p99 µs",
        "ratio",
        "cpu µs/req",
        "ratio",
        "generator"
    );
    for (name, own) in names.iter().zip(measured) {
        // Ratios are computed within a round, because consecutive measurements have similar load.
        let of = |value: &dyn Fn(&Measured) -> f64| -> (f64, f64) {
            let ratios = measured[0]
                .iter()
                .zip(own)
                .map(|(base, own)| value(own) / value(base));
            (median(own.iter().map(value)), median(ratios))
        };
        let (rate, rate_ratio) = of(&|it| it.round.rate());
        let (p50, p50_ratio) = of(&|it| it.round.latency(0.50));
        let (p99, p99_ratio) = of(&|it| it.round.latency(0.99));
        let (cpu_time, cpu_time_ratio) = of(&|it| it.cpu_micros);
        let (busy, _) = of(&|it| it.round.busy());
        let [rate_ratio, p50_ratio, p99_ratio, cpu_time, cpu_time_ratio] =
            [rate_ratio, p50_ratio, p99_ratio, cpu_time, cpu_time_ratio].map(decimals);
        println!(
            "{:<18} {rate:>11.0} {rate_ratio:>6}  {p50:>8.0} {p50_ratio:>6}  {p99:>8.0} {p99_ratio:>6}  {cpu_time:>10} {cpu_time_ratio:>6}  {:>7.0} %",
            name,
            busy * 100.0
        );
    }
    println!(
        "\nMedians over the rounds; ratios are to the first row. \"cpu µs/req\" is the server's CPU time for a request, the most\n\
         reliable number on a busy machine. \"generator\" is the load of the generator: near 100 % it is the bottleneck,\n\
         and the servers differ by more than the rates show."
    );
}

/// Two decimals, or a dash if there is no value.
fn decimals(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.2}")
    }
}
