//! Revokes a key and all of its descendants.

use tollkey_core::{
    ApiKey, ApplicationId, Family, KeyId, Preconditions, Problem, api_key::Transition,
    audit::Action, lineage::Root,
};

use super::{
    families::APPLICATION,
    transition::{KeySelector, transition},
};
use crate::{actor::RequestActor, service::Service};

/// Revokes the key and its descendants on every replica. Idempotent: preconditions apply only while it is not revoked.
/// Fails with `not_found` or `precondition_failed`.
pub async fn revoke(
    service: &Service,
    by: &RequestActor,
    families: &'static [Family],
    id: KeyId,
    reason: Option<String>,
    preconditions: Preconditions,
) -> Result<ApiKey, Problem> {
    let selector = KeySelector::of(families, id, preconditions);
    Ok(revoke_selected(service, by, selector, reason).await?.0)
}

/// Revokes the key on every replica, and returns it; `None` if it was already revoked. Preconditions apply only while it
/// is not revoked. Fails with `not_found` or `precondition_failed`.
pub async fn revoke_of_application(
    service: &Service,
    by: &RequestActor,
    application_id: ApplicationId,
    id: KeyId,
    preconditions: Preconditions,
) -> Result<Option<ApiKey>, Problem> {
    let selector = KeySelector {
        application_id: Some(application_id),
        ..KeySelector::of(APPLICATION, id, preconditions)
    };
    let (key, is_revoked_now) = revoke_selected(service, by, selector, None).await?;
    Ok(is_revoked_now.then_some(key))
}

async fn revoke_selected(
    service: &Service,
    by: &RequestActor,
    selector: KeySelector,
    reason: Option<String>,
) -> Result<(ApiKey, bool), Problem> {
    let now = service.clock.now();
    let pending = by.pending_revocation(Root::Key(selector.id), now);
    let revoked = transition(
        service,
        by,
        selector,
        Action::ApiKeyRevoked,
        move |account, key| {
            let transition = key.revoke(now, reason);
            match transition {
                Transition::Changed if account.has_descendants(&key.id)? => {
                    account.add_pending_revocation(&pending)?
                }
                // A server of the previous release revokes the descendants one after the other instead. It may have
                // stopped before the last one, and its change makes verifiers evict only the root.
                Transition::Unchanged
                    if key.revoked_at.is_some()
                        && account.has_unrevoked_descendants(&key.id)? =>
                {
                    account.add_pending_revocation(&pending)?;
                    account.descendants_changed();
                }
                _ => {}
            }
            Ok(transition)
        },
    );
    let revoked = revoked.await?;
    service.revocations.notify();
    Ok(revoked)
}
