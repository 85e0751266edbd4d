//! Creates keys.

use tollkey_core::{
    ApiKey, ApplicationId, Family, KeyId, PlainKey, Problem, ProblemCode, Status,
    api_key::NewKey,
    audit::{Action, Target},
    ceiling,
    key_format::CredentialKind,
};
use tollkey_store::AccountWriter;

use super::{created::CreatedKey, entry::audit_fields, families::ACCOUNT, limit::check_limit};
use crate::{
    actor::RequestActor,
    idempotency::{self, CreationPermit, Outcome, Recorded},
    service::Service,
};

/// Generates a key, restricted to what its parent key allows. Writes nothing to the store.
fn generate(
    service: &Service,
    by: &RequestActor,
    (family, application_id): (Family, Option<ApplicationId>),
    mut new_key: NewKey,
) -> Result<CreatedKey, Problem> {
    if let Some(parent) = &by.parent {
        new_key.restrictions =
            ceiling::restrict_to_parent(&parent.key, new_key.mode, new_key.restrictions)?;
    }
    let now = service.clock.now();
    let (id, text) = service.random.with(|rng| {
        (
            KeyId::new(now, rng),
            PlainKey::generate(CredentialKind::Key(family, new_key.mode), rng),
        )
    });
    let key = ApiKey {
        application_id,
        created_by: by.parent.as_ref().map(|parent| parent.key.id),
        ..new_key.into_key(id, by.account_id.clone(), &text, family, now)
    };
    Ok(CreatedKey { key, text })
}

/// Creates a commerce or account key.
///
/// # Errors
/// `forbidden` if the key would exceed its parent key, `key_depth_limit_reached`, `scoped_keys_unavailable`,
/// `feature_unavailable`, `key_limit_reached`, and the errors of [`idempotency::create`].
pub async fn create<R: Recorded<CreatedKey> + Send + 'static>(
    service: &Service,
    by: &RequestActor,
    family: Family,
    new_key: NewKey,
    creating: CreationPermit<R>,
) -> Result<Outcome<CreatedKey, R>, Problem> {
    let limit = service.limits.account_keys;
    let depth_limit = service.limits.key_depth;
    insert(
        service,
        by,
        (family, None),
        new_key,
        creating,
        move |account, key| {
            if let Some(parent) = key.created_by {
                // The parent key must create no key if it, or an ancestor, was revoked, suspended or has
                // expired during this request.
                let within = |ancestors| depth_limit.check(ancestors).map_err(Problem::from);
                let parent = account.lock_lineage(ACCOUNT, &parent, within)?;
                if parent.is_none_or(|parent| parent.status(key.created_at) != Status::Active) {
                    return Err(Problem::invalid_api_key());
                }
            }
            account.get()?.operating_model.check(&key.restrictions)?;
            check_limit(account, key, limit, 1)
        },
    )
    .await
}

/// # Errors
/// `not_found`, `application_key_limit_reached`, and the errors of [`idempotency::create`].
pub async fn create_for_application<R: Recorded<CreatedKey> + Send + 'static>(
    service: &Service,
    by: &RequestActor,
    application_id: ApplicationId,
    new_key: NewKey,
    creating: CreationPermit<R>,
) -> Result<Outcome<CreatedKey, R>, Problem> {
    let limit = service.limits.application_keys;
    let family_and_application = (Family::Application, Some(application_id));
    insert(service, by, family_and_application, new_key, creating, move |account, key| {
        // The lock keeps other requests from inserting a key of this application between counting and inserting.
        account.lock_application(&application_id)?.ok_or_else(Problem::not_found)?;
        if account.count_usable(&application_id, key.created_at)? >= u64::from(limit) {
            return Err(Problem::new(
                ProblemCode::ApplicationKeyLimitReached,
                format!("The application already has its maximum number of keys that are neither revoked nor expired ({limit}). Revoke a key first."),
            ));
        }
        Ok(())
    })
    .await
}

/// Inserts a key with its audit entry in one transaction, unless `allow` rejects it.
async fn insert<R: Recorded<CreatedKey> + Send + 'static>(
    service: &Service,
    by: &RequestActor,
    family_and_application: (Family, Option<ApplicationId>),
    new_key: NewKey,
    creating: CreationPermit<R>,
    allow: impl FnOnce(&mut AccountWriter<'_>, &ApiKey) -> Result<(), Problem> + Clone + Send + 'static,
) -> Result<Outcome<CreatedKey, R>, Problem> {
    let CreatedKey { key, text } = generate(service, by, family_and_application, new_key)?;
    let draft = by.draft(
        service,
        Action::ApiKeyCreated,
        Target::key(key.id, key.mode),
        audit_fields(&key).into(),
    );
    let digest = text.digest();
    idempotency::create(service, by, creating, move |tx| {
        let mut account = tx.account(&key.account_id);
        allow(&mut account, &key)?;
        account.insert_key(&key, &digest)?;
        account.append(draft)?;
        Ok(CreatedKey { key, text })
    })
    .await
}
