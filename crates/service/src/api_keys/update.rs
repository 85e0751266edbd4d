//! Updates a key.

use tollkey_core::{
    ApiKey, KeyId, Preconditions, Problem,
    audit::{Action, Target},
};

use super::{entry::differences, families::COMMERCE};
use crate::{actor::RequestActor, service::Service};

/// Updates a commerce key, which `edit` changes in place. Writes nothing if nothing differs.
///
/// # Errors
/// `not_found`, `key_revoked`, `key_expired`, `precondition_failed`, the error of `edit`, and `scoped_keys_unavailable` or
/// `feature_unavailable` for restrictions that the account's model does not support.
pub async fn update(
    service: &Service,
    by: &RequestActor,
    id: KeyId,
    preconditions: Preconditions,
    edit: impl FnOnce(&mut ApiKey) -> Result<(), Problem> + Clone + Send + 'static,
) -> Result<ApiKey, Problem> {
    let now = service.clock.now();
    let account_id = by.account_id.clone();
    let drafts = by.drafts(service);
    let key = service
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            let before = account
                .lock_key(COMMERCE, &id)?
                .ok_or_else(Problem::not_found)?;
            before.check_changeable(now)?;
            preconditions.check(before.entity_tag())?;
            let mut key = before.clone();
            edit(&mut key)?;
            if (&key.restrictions.merchants, &key.restrictions.features)
                != (
                    &before.restrictions.merchants,
                    &before.restrictions.features,
                )
            {
                account.get()?.operating_model.check(&key.restrictions)?;
            }
            // Equal metadata can have its fields in another order, which is not written either.
            if key == before {
                return Ok(before);
            }
            account.save_key(&key)?;
            let changes = differences(&before, &key).into();
            account.append(drafts(
                Action::ApiKeyUpdated,
                Target::key(id, key.mode),
                changes,
            ))?;
            Ok(key)
        })
        .await?;
    Ok(service.with_waiting_usage(key))
}
