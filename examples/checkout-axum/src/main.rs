//! The payment API as a program. README.md describes how to start it.
#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

/// How long requests in flight may take after the program is told to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// Public for the test that runs it as a process.
#[tokio::main]
pub async fn main() -> anyhow::Result<()> {
    init_log()?;
    let url = env::var("TOLLKEY_URL").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned());
    let service_key = env::var("TOLLKEY_SERVICE_KEY")
        .context("set TOLLKEY_SERVICE_KEY to a service key (tks_…)")?;
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8081".to_owned());

    let guard = checkout_axum::guard()
        .url(url)
        .service_key(service_key)
        .connect()
        .await?;
    let listener = TcpListener::bind(&listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    writeln!(
        io::stdout(),
        "listening on http://{}",
        listener.local_addr()?
    )?;
    tokio::select! {
        served = checkout_axum::serve(listener, guard.clone(), stopped()) => served?,
        () = async { stopped().await; tokio::time::sleep(LAST_REQUESTS).await } => {}
    }
    guard.shutdown().await;
    Ok(())
}

/// Writes the middleware's logs to stderr; `RUST_LOG` sets the filter.
fn init_log() -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env()?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    log.try_init()
        .map_err(|error| anyhow::anyhow!("the log cannot be set up: {error}"))
}

/// Waits for SIGTERM or SIGINT. Returns immediately if signals cannot be received.
async fn stopped() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
