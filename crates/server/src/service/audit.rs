//! The audit log.

use jiff::Timestamp;
use tollkey_core::{
    Problem,
    audit::{Action, Entry},
};
use tollkey_store::AuditFilter;

use crate::{caller::Manager, state::State};

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
    /// The entries.
    pub entries: Vec<Entry>,
    /// What to give as `before` for the next ones; `None` at the end.
    pub next: Option<u64>,
}

/// Entries of the account's log.
///
/// # Errors
/// `unavailable`.
pub async fn list(state: &State, by: &Manager, filter: Filter) -> Result<Found, Problem> {
    let account_id = by.account_id.clone();
    let (limit, mode) = (filter.limit, by.sees());
    let mut entries = state
        .read(move |db| {
            let wanted = AuditFilter {
                action: filter.action,
                target_id: filter.target_id,
                actor_id: filter.actor_id,
                since: filter.since,
                until: filter.until,
                mode,
            };
            db.account(&account_id).audit_log(&wanted, filter.before, limit + 1)
        })
        .await?;
    let more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    let next = entries.last().filter(|_| more).map(|entry| entry.seq);
    Ok(Found { entries, next })
}
