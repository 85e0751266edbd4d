//! A walk through the Rust client against a running Tollkey: README.md beside this says how to start it.
#![forbid(unsafe_code)]

mod tour;

use std::io;

use tollkey_client::Client;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tour::walk(&Client::from_env()?, &mut io::stdout()).await
}
