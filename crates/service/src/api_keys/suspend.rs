//! Suspends and resumes a key.

use tollkey_core::{ApiKey, KeyId, Problem, audit::Action};

use super::{
    families::COMMERCE,
    transition::{KeySelector, transition},
};
use crate::{actor::RequestActor, service::Service};

/// Suspends a commerce key until it is resumed. Idempotent. Fails with `not_found` or `key_revoked`.
pub async fn suspend(service: &Service, by: &RequestActor, id: KeyId) -> Result<ApiKey, Problem> {
    let now = service.clock.now();
    let selector = KeySelector {
        families: COMMERCE,
        application_id: None,
        id,
    };
    Ok(transition(
        service,
        by,
        selector,
        Action::ApiKeySuspended,
        move |_, key| Ok(key.suspend(now)?),
    )
    .await?
    .0)
}

/// Resumes a suspended commerce key. Idempotent. Fails with `not_found` or `key_revoked`.
pub async fn resume(service: &Service, by: &RequestActor, id: KeyId) -> Result<ApiKey, Problem> {
    let selector = KeySelector {
        families: COMMERCE,
        application_id: None,
        id,
    };
    Ok(
        transition(service, by, selector, Action::ApiKeyResumed, |_, key| {
            Ok(key.resume()?)
        })
        .await?
        .0,
    )
}
