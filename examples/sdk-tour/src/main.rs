//! A tour of the Rust client against a running Tollkey. README.md describes how to start it.
#![forbid(unsafe_code)]

mod tour;

use std::io;

use tollkey_client::Client;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    init_log()?;
    tour::walk(&Client::from_env()?, &mut io::stdout()).await
}

/// Writes the client's logs to stderr; `RUST_LOG` sets the filter.
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
