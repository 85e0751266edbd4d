//! `tollkey migrate`

use std::process::ExitCode;

use crate::{config::Settings, server};

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let store = server::open_store(settings, std::sync::Arc::new(tollkey_verifier::SystemClock))?;
    store.migrate()?;
    println!("the schema is up to date");
    Ok(ExitCode::SUCCESS)
}
