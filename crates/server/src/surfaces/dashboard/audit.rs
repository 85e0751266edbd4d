//! The audit log.

use tollkey_core::audit::Entry;

use super::page::Time;

/// An entry on a page.
#[derive(Debug)]
pub(super) struct EntryView {
    pub(super) seq: u64,
    pub(super) at: Time,
    pub(super) action: &'static str,
    pub(super) actor: String,
    pub(super) actor_kind: &'static str,
    pub(super) target: String,
    pub(super) target_kind: &'static str,
    pub(super) ip: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) changes: String,
}

impl From<&Entry> for EntryView {
    fn from(entry: &Entry) -> Self {
        let draft = &entry.draft;
        Self {
            seq: entry.seq,
            at: Time(draft.occurred_at),
            action: draft.action.as_str(),
            actor: draft.actor.id.clone(),
            actor_kind: draft.actor.kind.as_str(),
            target: draft.target.id.clone(),
            target_kind: draft.target.kind.as_str(),
            ip: draft.ip.map(|ip| ip.to_string()),
            request_id: draft.request_id.clone(),
            changes: format!("{:#}", draft.changes),
        }
    }
}
