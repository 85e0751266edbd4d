//! `cargo xtask bench http`: forward authentication with a required scope, compared to nginx with
//! static maps of the same keys, and to Tollkey's `/livez`.
//!
//! Each server has one worker. The servers are measured in turn, several times, so that other load
//! affects them alike. The command prints medians over the rounds, and ratios within a round.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::Context as _;

use super::{
    load::{CONNECTIONS, Round, load},
    median,
    servers::{self, Key, Process, Processors, ROUTE, SCOPE, Server, Tollkey},
};

/// The number of measurements of each server.
const ROUNDS: usize = 7;
/// The duration of each measurement.
const TIME: Duration = Duration::from_secs(2);
/// A scope that no key has.
const OTHER_SCOPE: &str = "links:write";

struct Subject<'a> {
    name: &'static str,
    address: SocketAddr,
    process: &'a Process,
    requests: Vec<Vec<u8>>,
    status: u16,
}

struct Measured {
    round: Round,
    /// CPU time of the server for a request, in microseconds.
    cpu_time: Option<f64>,
}

impl<'a> Subject<'a> {
    fn new(
        name: &'static str,
        server: &'a Server,
        keys: &[Key],
        target: &str,
        status: u16,
    ) -> Self {
        let requests = keys.iter().map(|key| request(target, key)).collect();
        Self {
            name,
            address: server.address,
            process: &server.process,
            requests,
            status,
        }
    }

    fn measure(&self, time: Duration) -> anyhow::Result<Measured> {
        let before = self.process.cpu_time();
        let round = load(self.address, &self.requests, self.status, time)
            .with_context(|| format!("measuring {}", self.name))?;
        let cpu_time = before.zip(self.process.cpu_time()).map(|(before, after)| {
            after.saturating_sub(before).as_secs_f64() * 1_000_000.0
                / round.requests().max(1) as f64
        });
        Ok(Measured { round, cpu_time })
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
    let directory = tempfile::tempdir()?;
    let processors = Processors::divide()?;
    eprintln!("starting the servers and creating keys ...");
    let tollkey = Tollkey::start(&program, directory.path(), &processors)?;
    let nginx = nginx
        .map(|program| {
            describe(&program)?;
            servers::start_nginx(&program, directory.path(), &tollkey.keys, &processors)
        })
        .transpose()?;

    let (ours, keys) = (&tollkey.server, &tollkey.keys);
    let (allowing, denying) = (
        format!("{ROUTE}?scope={SCOPE}"),
        format!("{ROUTE}?scope={OTHER_SCOPE}"),
    );
    let mut subjects = Vec::new();
    if let Some(nginx) = &nginx {
        subjects.push(Subject::new("nginx, map", nginx, keys, &allowing, 200));
    }
    subjects.push(Subject::new("forward-auth", ours, keys, &allowing, 200));
    subjects.push(Subject::new("forward-auth, 403", ours, keys, &denying, 403));
    subjects.push(Subject::new("livez", ours, keys, "/livez", 200));

    eprintln!(
        "{} keys, {CONNECTIONS} connections, {ROUNDS} rounds of {} s each; {}",
        keys.len(),
        TIME.as_secs(),
        if processors.are_divided() {
            "one processor for the generator, another for the servers"
        } else {
            "generator and servers share one processor"
        }
    );
    for subject in &subjects {
        subject.measure(TIME / 4)?; // caches every key and warms up every path
    }
    let mut measured: Vec<Vec<Measured>> = subjects
        .iter()
        .map(|_| Vec::with_capacity(ROUNDS))
        .collect();
    for _ in 0..ROUNDS {
        for (subject, measured) in subjects.iter().zip(&mut measured) {
            measured.push(subject.measure(TIME)?);
        }
    }
    let compared = nginx.is_some().then_some(0);
    print(&subjects, &measured, compared);
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

/// A request as Traefik sends it. Both servers get the same bytes.
fn request(target: &str, key: &Key) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: auth.internal\r\nUser-Agent: curl/8.11.0\r\nAccept: */*\r\n\
         Authorization: Bearer {}\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Host: api.example.com\r\n\
         X-Forwarded-Method: GET\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Uri: /api/links?limit=10\r\n\
         Accept-Encoding: gzip\r\n\r\n",
        key.text
    )
    .into_bytes()
}

/// Prints the table. `compared` is the index of the subject that the others are compared to.
#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(subjects: &[Subject<'_>], measured: &[Vec<Measured>], compared: Option<usize>) {
    println!(
        "{:<18} {:>11} {:>6}  {:>8} {:>6}  {:>8} {:>6}  {:>10} {:>6}  {:>9}",
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
    for (subject, own) in subjects.iter().zip(measured) {
        // Ratios are computed within a round, because consecutive measurements have similar load.
        let of = |value: &dyn Fn(&Measured) -> f64| -> (f64, f64) {
            let ratios = compared.map(|index| {
                measured[index]
                    .iter()
                    .zip(own)
                    .map(|(base, own)| value(own) / value(base))
            });
            (
                median(own.iter().map(value)),
                ratios.map_or(f64::NAN, median),
            )
        };
        let (rate, rate_ratio) = of(&|it| it.round.rate());
        let (p50, p50_ratio) = of(&|it| it.round.latency(0.50));
        let (p99, p99_ratio) = of(&|it| it.round.latency(0.99));
        let (cpu_time, cpu_time_ratio) = of(&|it| it.cpu_time.unwrap_or(f64::NAN));
        let (busy, _) = of(&|it| it.round.busy());
        let [rate_ratio, p50_ratio, p99_ratio, cpu_time, cpu_time_ratio] =
            [rate_ratio, p50_ratio, p99_ratio, cpu_time, cpu_time_ratio].map(decimals);
        println!(
            "{:<18} {rate:>11.0} {rate_ratio:>6}  {p50:>8.0} {p50_ratio:>6}  {p99:>8.0} {p99_ratio:>6}  {cpu_time:>10} {cpu_time_ratio:>6}  {:>7.0} %",
            subject.name,
            busy * 100.0
        );
    }
    println!(
        "\nMedians over the rounds; ratios are to nginx. \"cpu µs/req\" is the server's CPU time for a request, the most\n\
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
