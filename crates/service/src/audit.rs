//! The audit log: read, and checked.

pub(crate) mod checks;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
};

use jiff::Timestamp;
use tollkey_core::{
    AccountId, Problem, ProblemCode,
    audit::{self, Action, ChainError, Entry, Hash, Head},
};
use tollkey_store::{AuditFilter, AuditPage, Reader};

pub use self::checks::Checks;
use crate::{actor::RequestActor, service::Service};

/// What is asked of the log.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// At most this many entries.
    pub limit: u32,
    /// Only entries with a smaller number: where the page before ended.
    pub before: Option<u64>,
    /// Only this action.
    pub action: Option<Action>,
    /// Only about the thing with this id.
    pub target_id: Option<String>,
    /// Only what the caller with this id did.
    pub actor_id: Option<String>,
    /// Only at or after this time.
    pub since: Option<Timestamp>,
    /// Only before this time.
    pub until: Option<Timestamp>,
}

/// Entries, newest first, and where to go on.
#[derive(Debug)]
pub struct Found {
    /// The entries. There may be fewer than asked for, or none, although there is a `next`: a search examines a bounded
    /// number of entries.
    pub entries: Vec<Entry>,
    /// What to give as `before` for the next ones; `None` at the end.
    pub next: Option<u64>,
}

/// Entries of the account's log.
///
/// # Errors
/// `unavailable`.
pub async fn list(service: &Service, by: &RequestActor, filter: Filter) -> Result<Found, Problem> {
    let account_id = by.account_id.clone();
    let (limit, mode) = (filter.limit, by.visible_mode());
    let AuditPage { entries, next } = service
        .read(by, move |db| {
            let wanted = AuditFilter {
                action: filter.action,
                target_id: filter.target_id,
                actor_id: filter.actor_id,
                since: filter.since,
                until: filter.until,
                mode,
            };
            db.account(&account_id)
                .audit_log(&wanted, filter.before, limit)
        })
        .await?;
    Ok(Found { entries, next })
}

/// How many accounts are read at a time.
const ACCOUNTS: u32 = 500;

/// What was found when chains were gone through.
#[derive(Debug, Default)]
pub struct Checked {
    /// Where each chain ends that has any entry.
    pub ends: BTreeMap<AccountId, Head>,
    /// What is wrong, a sentence each. Empty: all of it is whole.
    pub faults: Vec<String>,
}

/// Goes through the chain of an account, or of all of them, from its beginning to the end that is kept for it. `heads` are
/// hashes that were told earlier: without any, a chain that was rewritten from its beginning looks whole.
///
/// # Errors
/// [`tollkey_store::Error`].
pub fn check(
    db: &mut Reader<'_>,
    account: Option<&AccountId>,
    heads: &[Hash],
) -> Result<Checked, tollkey_store::Error> {
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
    let kept = kept_ends(db, account)?;
    let mut faults: Vec<String> = broken.iter().map(ToString::to_string).collect();
    let accounts: BTreeSet<&AccountId> = kept.keys().chain(ends.keys()).collect();
    for account in accounts {
        let end = |heads: &BTreeMap<AccountId, Head>| {
            heads.get(account).copied().unwrap_or(Head::GENESIS)
        };
        let (found, kept) = (end(&ends), end(&kept));
        if found != kept && !broken.iter().any(|error| error.account() == account) {
            faults.push(format!(
                "the log of account {account} ends at entry {}, not at {}",
                found.seq, kept.seq
            ));
        }
    }
    faults.extend(
        missing
            .iter()
            .map(|hash| format!("no entry has the hash {hash}: a log was cut off or rewritten")),
    );
    Ok(Checked { ends, faults })
}

/// Where chains end by what is kept beside them.
fn kept_ends(
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
    let mut kept: Vec<(AccountId, Head)> = Vec::new();
    loop {
        let page = db.audit_heads(kept.last().map(|(account, _)| account), ACCOUNTS)?;
        if page.is_empty() {
            return Ok(kept.into_iter().collect());
        }
        kept.extend(page);
    }
}

/// Goes through the chain of the managed account.
///
/// # Errors
/// `unavailable`, and when it is gone through already, or as many others are as may be.
pub async fn check_account(service: &Service, by: &RequestActor) -> Result<Checked, Problem> {
    let account_id = by.account_id.clone();
    let Some(place) = service.audit_checks.take(&account_id) else {
        let detail =
            "The server is already checking this audit log, or too many others. Try again later.";
        return Err(Problem {
            retry_after: Some(5),
            ..Problem::new(ProblemCode::Unavailable, detail)
        });
    };
    let work = move |db: &mut Reader<'_>| {
        // Until the work is done: who no longer waits for it does not make room for another.
        let _place = place;
        check(db, Some(&account_id), &[])
    };
    service.read(by, work).await
}
