//! `tollkey audit verify`

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{bail, ensure};
use tollkey_core::{
    AccountId,
    audit::{self, ChainError, Hash, Head},
};
use tollkey_verifier::SystemClock;

use crate::{
    config::{DatabaseKind, Settings},
    server,
};

/// How many accounts are read at a time.
const PAGE: u32 = 500;

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

    let mut missing: HashSet<Hash> = heads.into_iter().collect();
    let mut ends: BTreeMap<AccountId, Head> = BTreeMap::new();
    let mut broken: Vec<ChainError> = Vec::new();
    let kept_ends = store.read_blocking(|db| {
        let _never_broken = db.for_each_audit_entry(account.as_ref(), |entry| {
            let account = entry.as_ref().map_or_else(ChainError::account, |entry| &entry.draft.account_id).clone();
            if broken.last().is_some_and(|error| *error.account() == account) {
                return ControlFlow::<()>::Continue(()); // everything behind the first break is broken too
            }
            let head = ends.entry(account).or_insert(Head::GENESIS);
            match entry.and_then(|entry| audit::verify(*head, &entry)) {
                Ok(next) => {
                    *head = next;
                    missing.remove(&next.hash);
                }
                Err(error) => broken.push(error),
            }
            ControlFlow::Continue(())
        })?;
        let mut kept: Vec<(AccountId, Head)> = Vec::new();
        if let Some(account) = &account {
            kept.push((account.clone(), db.account(account).audit_head()?));
            return Ok(kept);
        }
        loop {
            let page = db.audit_heads(kept.last().map(|(account, _)| account), PAGE)?;
            if page.is_empty() {
                return Ok(kept);
            }
            kept.extend(page);
        }
    })?;

    let kept_ends: BTreeMap<AccountId, Head> = kept_ends.into_iter().collect();
    if let Some(account) = &account {
        let nothing = kept_ends.get(account) == Some(&Head::GENESIS) && !ends.contains_key(account);
        ensure!(!nothing, "account {account} has no audit log");
    }
    let mut faults: Vec<String> = broken.iter().map(ToString::to_string).collect();
    let accounts: BTreeSet<&AccountId> = kept_ends.keys().chain(ends.keys()).collect();
    for account in accounts {
        let end = |heads: &BTreeMap<AccountId, Head>| heads.get(account).copied().unwrap_or(Head::GENESIS);
        let (found, kept) = (end(&ends), end(&kept_ends));
        if found != kept && !broken.iter().any(|error| error.account() == account) {
            faults.push(format!("the log of account {account} ends at entry {}, not at {}", found.seq, kept.seq));
        }
    }
    faults.extend(missing.iter().map(|hash| format!("no entry has the hash {hash}: a log was cut off or rewritten")));
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
