//! `tollkey audit verify`

use std::{process::ExitCode, sync::Arc};

use anyhow::{bail, ensure};
use tollkey_core::{AccountId, audit::Hash};
use tollkey_verifier::SystemClock;

use crate::{
    config::{DatabaseKind, Settings},
    server,
    service::audit::{self, Checked},
};

/// What to do with the audit log.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check the chain of every account; prints where each one ends, to be kept elsewhere.
    Verify {
        /// Only this account.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
        /// A hash an earlier run printed: without it a chain that was cut off or rewritten goes unnoticed. Repeatable.
        #[arg(long = "head", value_name = "HASH")]
        heads: Vec<Hash>,
    },
}

pub(super) fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    let Command::Verify { account, heads } = command;
    // Where there is no log, one that was cut off to nothing looks whole.
    match &settings.database.kind {
        DatabaseKind::Postgres => {}
        DatabaseKind::SqliteFile(path) => ensure!(path.exists(), "there is no database at {}", path.display()),
        DatabaseKind::SqliteMemory => bail!("a database in memory has no audit log that could be checked"),
    }
    let store = server::open_store(settings, Arc::new(SystemClock))?;
    store.check_schema()?; // and no migration: who checks a database leaves it as it is

    let Checked { ends, faults } = store.read_blocking(|db| audit::check(db, account.as_ref(), &heads))?;
    if let Some(account) = &account {
        ensure!(!ends.is_empty() || !faults.is_empty(), "account {account} has no audit log");
    }
    for (account, end) in &ends {
        println!("{account}  {} entries  head {}", end.seq, end.hash);
    }
    if faults.is_empty() {
        println!("the audit log is whole");
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &faults {
        eprintln!("tollkey: {fault}");
    }
    Ok(ExitCode::FAILURE)
}
