//! Reads and verifies the audit log.

pub(crate) mod checks;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
};

use jiff::Timestamp;
use tollkey_core::{
    AccountId, Problem, ProblemCode,
    audit::{self, Action, ChainError, Entry, Hash, Head, TargetKind},
};
use tollkey_store::{AuditFilter, AuditPage, Reader};

pub use self::checks::AuditCheckLimiter;
use crate::{actor::RequestActor, service::Service};

#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub limit: u32,
    /// Only entries with a smaller number: the `next` of the previous page.
    pub before: Option<u64>,
    pub action: Option<Action>,
    pub target_kind: Option<TargetKind>,
    pub target_id: Option<String>,
    pub actor_id: Option<String>,
    /// Inclusive.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
}

#[derive(Debug)]
pub struct EntryPage {
    /// Newest first. Can be fewer than the limit, or none, even if there is a `next`: a search is bounded.
    pub entries: Vec<Entry>,
    /// The value of `before` for the next page; `None` on the last one.
    pub next: Option<u64>,
}

pub async fn list(
    service: &Service,
    by: &RequestActor,
    filter: Filter,
) -> Result<EntryPage, Problem> {
    let account_id = by.account_id.clone();
    let (limit, mode) = (filter.limit, by.visible_mode());
    let AuditPage { entries, next } = service
        .read(by, move |db| {
            let conditions = AuditFilter {
                action: filter.action,
                target_kind: filter.target_kind,
                target_id: filter.target_id,
                actor_id: filter.actor_id,
                since: filter.since,
                until: filter.until,
                mode,
            };
            db.account(&account_id)
                .audit_log(&conditions, filter.before, limit)
        })
        .await?;
    Ok(EntryPage { entries, next })
}

const ACCOUNTS: u32 = 500;

#[derive(Debug, Default)]
pub struct ChainCheck {
    /// The last entry of each chain that has entries.
    pub ends: BTreeMap<AccountId, Head>,
    /// What is wrong, one sentence each; empty if all chains are intact.
    pub faults: Vec<String>,
}

/// Verifies the chain of an account, or of all accounts, from its beginning to the end that is stored for it. `heads`
/// are hashes that were noted earlier: without them, a chain that was rewritten from its beginning looks intact.
pub fn check(
    db: &mut Reader<'_>,
    account: Option<&AccountId>,
    heads: &[Hash],
) -> Result<ChainCheck, tollkey_store::Error> {
    let mut missing: HashSet<Hash> = heads.iter().copied().collect();
    let mut ends: BTreeMap<AccountId, Head> = BTreeMap::new();
    let mut broken: Vec<ChainError> = Vec::new();
    let _never_broken = db.for_each_audit_entry(account, |entry| {
        let account = entry
            .as_ref()
            .map_or_else(ChainError::account, |entry| &entry.draft.account_id)
            .clone();
        if broken
            .last()
            .is_some_and(|error| *error.account() == account)
        {
            return ControlFlow::<()>::Continue(()); // entries after the first break cannot be verified
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
    let stored = stored_ends(db, account)?;
    let mut faults: Vec<String> = broken.iter().map(ToString::to_string).collect();
    let accounts: BTreeSet<&AccountId> = stored.keys().chain(ends.keys()).collect();
    for account in accounts {
        let end = |heads: &BTreeMap<AccountId, Head>| {
            heads.get(account).copied().unwrap_or(Head::GENESIS)
        };
        let (found, stored) = (end(&ends), end(&stored));
        if found != stored && !broken.iter().any(|error| error.account() == account) {
            faults.push(format!(
                "the log of account {account} ends at entry {}, not at {}",
                found.seq, stored.seq
            ));
        }
    }
    faults.extend(
        missing
            .iter()
            .map(|hash| format!("no entry has the hash {hash}: a log was cut off or rewritten")),
    );
    Ok(ChainCheck { ends, faults })
}

fn stored_ends(
    db: &mut Reader<'_>,
    account: Option<&AccountId>,
) -> Result<BTreeMap<AccountId, Head>, tollkey_store::Error> {
    if let Some(account) = account {
        let head = db.account(account).audit_head()?;
        return Ok(Some(head)
            .filter(|head| *head != Head::GENESIS)
            .map(|head| (account.clone(), head))
            .into_iter()
            .collect());
    }
    let mut stored: Vec<(AccountId, Head)> = Vec::new();
    loop {
        let page = db.audit_heads(stored.last().map(|(account, _)| account), ACCOUNTS)?;
        if page.is_empty() {
            return Ok(stored.into_iter().collect());
        }
        stored.extend(page);
    }
}

/// Fails with `unavailable` also while this chain, or the maximum number of chains, is being verified.
pub async fn check_account(service: &Service, by: &RequestActor) -> Result<ChainCheck, Problem> {
    let account_id = by.account_id.clone();
    let Some(permit) = service.audit_checks.take(&account_id) else {
        let detail =
            "The server is already checking this audit log, or too many others. Try again later.";
        return Err(Problem {
            retry_after: Some(5),
            ..Problem::new(ProblemCode::Unavailable, detail)
        });
    };
    let work = move |db: &mut Reader<'_>| {
        // Kept until the work ends: a client that stops waiting must not allow another check to start.
        let _permit = permit;
        check(db, Some(&account_id), &[])
    };
    service.read(by, work).await
}
