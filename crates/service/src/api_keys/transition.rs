//! Changes the status of a key.

use tollkey_core::{
    ApiKey, ApplicationId, Family, KeyId, Preconditions, Problem,
    api_key::Transition,
    audit::{Action, Target},
};
use tollkey_store::AccountWriter;

use super::entry::status_change;
use crate::{actor::RequestActor, service::Service};

/// The key to change.
pub(super) struct KeySelector {
    pub(super) families: &'static [Family],
    /// The application that the key must belong to, and which must exist; `None` for any or no application.
    pub(super) application_id: Option<ApplicationId>,
    pub(super) id: KeyId,
    /// What the caller requires of its current state.
    pub(super) preconditions: Preconditions,
}

impl KeySelector {
    pub(super) fn of(families: &'static [Family], id: KeyId, preconditions: Preconditions) -> Self {
        Self {
            families,
            application_id: None,
            id,
            preconditions,
        }
    }
}

/// Changes the status of a key and appends the audit entry in one transaction, and waits until the status has
/// propagated, even if it was unchanged. Returns the key, and whether its status changed.
pub(super) async fn transition(
    service: &Service,
    by: &RequestActor,
    selector: KeySelector,
    action: Action,
    step: impl FnOnce(&mut AccountWriter<'_>, &mut ApiKey) -> Result<Transition, Problem>
    + Clone
    + Send
    + 'static,
) -> Result<(ApiKey, bool), Problem> {
    let now = service.clock.now();
    let KeySelector {
        families,
        application_id,
        id,
        preconditions,
    } = selector;
    let (account_id, visible_mode) = (by.account_id.clone(), by.visible_mode());
    let drafts = by.drafts(service);
    let (key, changed) = service
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            if let Some(id) = &application_id {
                account
                    .lock_application(id)?
                    .ok_or_else(Problem::not_found)?;
            }
            let key = account.lock_key(families, &id)?;
            let is_selected = |key: &ApiKey| {
                visible_mode.is_none_or(|mode| mode == key.mode)
                    && (application_id.is_none() || key.application_id == application_id)
            };
            let mut key = key.filter(is_selected).ok_or_else(Problem::not_found)?;
            let before = key.entity_tag();
            let changed = step(&mut account, &mut key)? == Transition::Changed;
            // The repeat of a revocation succeeds, whatever state the caller has seen.
            if changed || action != Action::ApiKeyRevoked {
                preconditions.check(before)?;
            }
            if changed {
                account.save_key(&key)?;
                account.append(drafts(
                    action,
                    Target::key(key.id, key.mode),
                    status_change(&key, now),
                ))?;
            }
            Ok((key, changed))
        })
        .await?;
    Ok((service.with_waiting_usage(key), changed))
}
