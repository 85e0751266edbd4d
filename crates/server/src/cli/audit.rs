//! `tollkey audit verify`

use std::{process::ExitCode, sync::Arc};

use anyhow::ensure;
use tollkey_core::{AccountId, audit::Hash};
use tollkey_service::audit::{self, ChainCheck};
use tollkey_verifier::SystemClock;

use super::{name_database, output};
use crate::{config::Settings, database};

/// Commands for the audit log.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Verify the hash chain of every account, and print the head of each one. Store the heads outside the database.
    Verify {
        /// Verify this account only.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
        /// A head that an earlier run printed. Without it, a chain that was truncated or rewritten as a whole is not
        /// detected. Repeatable.
        #[arg(long = "head", value_name = "HASH")]
        heads: Vec<Hash>,
    },
}

pub(super) fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    let Command::Verify { account, heads } = command;
    name_database(settings);
    let store = database::open_existing_store(settings, Arc::new(SystemClock))?;
    let ChainCheck { ends, faults } =
        store.read_blocking(|db| audit::check(db, account.as_ref(), &heads))?;
    if let Some(account) = &account {
        ensure!(
            !ends.is_empty() || !faults.is_empty(),
            "account {account} has no audit log"
        );
    }
    for (account, end) in &ends {
        output::line(format_args!(
            "{account}  {} entries  head {}",
            end.seq, end.hash
        ))?;
    }
    let (entries, accounts) = (ends.values().map(|end| end.seq).sum::<u64>(), ends.len());
    if faults.is_empty() {
        output::line(format_args!(
            "the audit log is intact (entries checked: {entries}, accounts: {accounts})"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &faults {
        output::note(format_args!("tollkey: {fault}"));
    }
    let faults = faults.len();
    output::note(format_args!(
        "tollkey: the audit log is not intact (faults: {faults}, intact entries: {entries}, accounts: {accounts})"
    ));
    Ok(ExitCode::FAILURE)
}
