//! `cargo xtask bench guard`: measures an app with and without our middleware layer, under load.
//!
//! It runs a Tollkey server with keys and, for each framework, a subscribed process with one worker, which serves the
//! same handler on a path without the layer and on one with it. The paths are measured in turn, several times. It
//! prints medians over the rounds. The ratios are computed within each round.

use std::{
    env,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;

use super::{
    load::{CONNECTIONS, Requests, Until},
    median,
    servers::{self, Key, Measured, Processors, SCOPE, Server, Tollkey},
};

const OPEN: &str = "/open/links";
const GUARDED: &str = "/api/v1/links";
/// The response of both paths.
const RESPONSE: &str = r#"{"links":[]}"#;
const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_secs(2);
/// The environment variable with the service key. Unlike an argument, it cannot be read by other users.
const SERVICE_KEY: &str = "TOLLKEY_BENCH_SERVICE_KEY";

/// Measures and prints the results, or runs one of the measured processes.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        [] => measure(),
        ["--serve", "axum", url] => serve_axum(url),
        ["--serve", "actix", url] => serve_actix(url),
        _ => anyhow::bail!("bench guard takes no arguments"),
    }
}

fn service_key() -> anyhow::Result<String> {
    env::var(SERVICE_KEY).with_context(|| format!("{SERVICE_KEY} is required"))
}

#[expect(clippy::print_stdout, reason = "the other process reads the address")]
fn print_address(address: SocketAddr) -> anyhow::Result<()> {
    println!("listening on http://{address}");
    Ok(std::io::stdout().flush()?)
}

fn serve_axum(url: &str) -> anyhow::Result<()> {
    use axum::{Router, routing::get};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let guard = tollkey_axum::Guard::connect(url, service_key()?).await?;
        let layer = tollkey_axum::TollkeyLayer::new(guard).require(tollkey_axum::Scope::LINKS_READ);
        let guarded = Router::new()
            .route(GUARDED, get(async || RESPONSE))
            .layer(layer);
        let app = Router::new()
            .route(OPEN, get(async || RESPONSE))
            .merge(guarded);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        print_address(listener.local_addr()?)?;
        Ok(axum::serve(
            listener,
            app.into_make_service_with_connect_info::<SocketAddr>(),
        )
        .await?)
    })
}

fn serve_actix(url: &str) -> anyhow::Result<()> {
    use actix_web::{App, HttpServer, rt, web};
    rt::System::new().block_on(async {
        let guard = tollkey_actix::Guard::connect(url, service_key()?).await?;
        let server = HttpServer::new(move || {
            let layer = tollkey_actix::Tollkey::new(guard.clone())
                .require(tollkey_actix::Scope::LINKS_READ);
            let resource = |path| web::resource(path).get(async || RESPONSE);
            App::new()
                .service(resource(OPEN))
                .service(resource(GUARDED).wrap(layer))
        })
        .workers(1)
        .bind("127.0.0.1:0")?;
        print_address(server.addrs().first().copied().context("no socket")?)?;
        Ok(server.run().await?)
    })
}

/// A framework's process, and the measurements of its two paths.
struct Subject {
    name: &'static str,
    server: Server,
    rounds: Vec<[Measured; 2]>,
}

impl Subject {
    fn start(
        name: &'static str,
        program: &Path,
        tollkey: SocketAddr,
        service_key: &str,
        processors: &Processors,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(["guard", "--serve", name, &format!("http://{tollkey}")]);
        command.env(SERVICE_KEY, service_key).stdout(Stdio::piped());
        let mut process = processors.start(&mut command)?;
        let address = process.listening()?;
        Ok(Self {
            name,
            server: Server { address, process },
            rounds: Vec::new(),
        })
    }

    fn measure_path(&self, path: &str, keys: &[Key], time: Duration) -> anyhow::Result<Measured> {
        let keys = keys.iter().map(|key| key.text.clone()).collect();
        let requests = Requests::new(keys, |key| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: api.internal\r\nAccept: */*\r\nAuthorization: Bearer {key}\r\n\r\n"
            )
        })?;
        self.server
            .measure(&requests, 200, Until::Elapsed(time))
            .with_context(|| format!("{} {path}", self.name))
    }
}

fn measure() -> anyhow::Result<()> {
    let binary = servers::build()?;
    let program = servers::build_self()?;
    let directory = tempfile::tempdir()?;
    let processors = Processors::divide()?;
    eprintln!("starting the servers and creating keys ...");
    let tollkey = Tollkey::start(&binary, directory.path(), &processors, None)?;
    let service_key = servers::service_key(&binary, directory.path())?;
    let mut subjects = ["axum", "actix"]
        .into_iter()
        .map(|name| {
            Subject::start(
                name,
                &program,
                tollkey.server.address,
                &service_key,
                &processors,
            )
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    eprintln!(
        "{} keys with the scope {SCOPE}, {CONNECTIONS} connections, {ROUNDS} rounds of {} s each",
        tollkey.keys.len(),
        TIME.as_secs()
    );
    for subject in &subjects {
        subject.measure_path(GUARDED, &tollkey.keys, TIME / 4)?; // caches every key
    }
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            let both = [
                subject.measure_path(OPEN, &tollkey.keys, TIME)?,
                subject.measure_path(GUARDED, &tollkey.keys, TIME)?,
            ];
            subject.rounds.push(both);
        }
    }
    print(&subjects);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(subjects: &[Subject]) {
    println!(
        "{:<8} {:>12} {:>12} {:>6}  {:>8} {:>8} {:>6}  {:>11} {:>11} {:>6}",
        "",
        "without /s",
        "with /s",
        "ratio",
        "p50 µs",
        "p50 µs",
        "ratio",
        "cpu µs/req",
        "cpu µs/req",
        "ratio"
    );
    for subject in subjects {
        let of = |value: &dyn Fn(&Measured) -> f64| {
            let side = |index: usize| median(subject.rounds.iter().map(|both| value(&both[index])));
            let ratio = median(
                subject
                    .rounds
                    .iter()
                    .map(|[without, with]| value(with) / value(without)),
            );
            (side(0), side(1), ratio)
        };
        let (rate, with_rate, rate_ratio) = of(&|it| it.round.rate());
        let (p50, with_p50, p50_ratio) = of(&|it| it.round.latency(0.50));
        let (cpu, with_cpu, cpu_ratio) = of(&|it| it.cpu_micros);
        println!(
            "{:<8} {rate:>12.0} {with_rate:>12.0} {rate_ratio:>6.2}  {p50:>8.0} {with_p50:>8.0} {p50_ratio:>6.2}  {cpu:>11.2} {with_cpu:>11.2} {cpu_ratio:>6.2}",
            subject.name
        );
    }
}
