//! Suspends and resumes a key.

use tollkey_core::{ApiKey, KeyId, Preconditions, Problem, audit::Action};
use tollkey_store::AccountWriter;

use super::{
    families::COMMERCE,
    transition::{KeySelector, transition},
};
use crate::{actor::RequestActor, service::Service};

/// Suspends a commerce key until it is resumed. Idempotent. Fails with `not_found`, `key_revoked` or
/// `precondition_failed`.
pub async fn suspend(
    service: &Service,
    by: &RequestActor,
    id: KeyId,
    preconditions: Preconditions,
) -> Result<ApiKey, Problem> {
    let now = service.clock.now();
    let selector = KeySelector::of(COMMERCE, id, preconditions);
    let suspend = move |_: &mut AccountWriter<'_>, key: &mut ApiKey| Ok(key.suspend(now)?);
    let suspended = transition(service, by, selector, Action::ApiKeySuspended, suspend).await?;
    Ok(suspended.0)
}

/// Resumes a suspended commerce key. Idempotent. Fails with `not_found`, `key_revoked` or `precondition_failed`.
pub async fn resume(
    service: &Service,
    by: &RequestActor,
    id: KeyId,
    preconditions: Preconditions,
) -> Result<ApiKey, Problem> {
    let selector = KeySelector::of(COMMERCE, id, preconditions);
    let resume = |_: &mut AccountWriter<'_>, key: &mut ApiKey| Ok(key.resume()?);
    let resumed = transition(service, by, selector, Action::ApiKeyResumed, resume).await?;
    Ok(resumed.0)
}
