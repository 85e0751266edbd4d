//! Converts audit entries and filters.

use jiff::Timestamp;
use tollkey_api::{audit as api, time::Moment};
use tollkey_core::{FieldErrors, Invalid, KeyId, Problem, audit::Entry, text};
use tollkey_service::audit::Filter;

use crate::surfaces::parameters::within;

pub(crate) fn entry(entry: &Entry) -> api::AuditEntry {
    let draft = &entry.draft;
    api::AuditEntry {
        id: draft.id.to_string(),
        occurred_at: draft.occurred_at.into(),
        action: draft.action.as_str().to_owned(),
        actor: api::AuditActor {
            r#type: draft.actor.kind.into(),
            id: draft.actor.id.clone(),
        },
        target: api::AuditTarget {
            r#type: draft.target.kind.into(),
            id: draft.target.id.clone(),
        },
        request_id: draft.request_id.clone(),
        ip: draft.ip.map(|ip| ip.to_string()),
        changes: draft.changes.clone(),
        hash: entry.hash.to_string(),
    }
}

/// Checks an ID to filter by. It is compared exactly, so white space counts.
fn filter_id(id: Option<&str>) -> Result<(), Invalid> {
    match id {
        // No ID contains them, and PostgreSQL does not accept a NUL character.
        Some(id) if id.chars().any(char::is_control) => {
            Err(Invalid::new("must not contain control characters"))
        }
        id => text::search(id).map(drop),
    }
}

/// A cursor is the number of an entry, without leading zeros and without a sign.
fn cursor(text: &str) -> Result<u64, Invalid> {
    text.parse()
        .ok()
        .filter(|seq: &u64| seq.to_string() == text)
        .ok_or_else(|| Invalid::new("must be a cursor from an earlier response"))
}

pub(crate) fn filter(query: &api::ListAuditLog) -> Result<Filter, Problem> {
    filter_named(query, ["since", "until"])
}

/// Like [`filter`], for a surface where the parameters `since` and `until` have these names.
pub(crate) fn filter_named(
    query: &api::ListAuditLog,
    [since_name, until_name]: [&str; 2],
) -> Result<Filter, Problem> {
    let mut checks = FieldErrors::default();
    let time = |text: &Option<String>| {
        let moment = text.as_deref().map(str::parse::<Moment>).transpose();
        moment.map(|moment| moment.map(Timestamp::from))
    };
    let limit = checks.check("limit", within(query.limit, 100, 1..=100));
    let before = checks.check("cursor", query.cursor.as_deref().map(cursor).transpose());
    let action = checks.check(
        "action",
        query.action.as_deref().map(str::parse).transpose(),
    );
    let since = checks.check(since_name, time(&query.since));
    let until = checks.check(until_name, time(&query.until));
    checks.check("target_id", filter_id(query.target_id.as_deref()));
    checks.check("actor_id", filter_id(query.actor_id.as_deref()));
    // The ID of a key can have two forms; every other ID is compared unchanged.
    let canonical = |id: &String| {
        id.parse::<KeyId>()
            .map_or_else(|_| id.clone(), |id| id.to_string())
    };
    let filter = || {
        Some(Filter {
            limit: limit?,
            before: before?,
            action: action?,
            target_kind: None,
            target_id: query.target_id.as_ref().map(canonical),
            actor_id: query.actor_id.as_ref().map(canonical),
            since: since?,
            until: until?,
        })
    };
    checks.finish(filter())
}
