//! `tollkey migrate`

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use tollkey_verifier::SystemClock;

use super::{name_database, output};
use crate::{config::Settings, database};

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    name_database(settings);
    let store = database::open_store(settings, Arc::new(SystemClock))?;
    let applied = store
        .apply_migrations()
        .with_context(|| settings.database.url.target())?;
    for name in &applied {
        output::line(format_args!("applied {name}"))?;
    }
    output::line(match applied.as_slice() {
        [] => "the schema was already up to date",
        _ => "the schema is up to date",
    })?;
    Ok(ExitCode::SUCCESS)
}
