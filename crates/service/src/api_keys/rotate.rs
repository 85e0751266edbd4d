//! Rotates a key: creates a successor, with an overlap in which both are valid.

use serde_json::json;
use tollkey_core::{
    KeyId, PlainKey, Preconditions, Problem, Status,
    api_key::Overlap,
    audit::{Action, Target},
    key_format::CredentialKind,
};

use super::{
    created::CreatedKey,
    entry::{audit_fields, differences},
    families::COMMERCE,
    limit::check_limit,
};
use crate::{
    actor::RequestActor,
    idempotency::{self, CreationPermit, Outcome, Recorded},
    service::Service,
};

/// Creates a successor of a commerce key with the same restrictions. The key itself expires when the overlap ends.
///
/// # Errors
/// `not_found`; `key_revoked`, `key_expired`, `key_suspended`, `key_already_rotated`; `precondition_failed`, which is
/// about the predecessor; `key_limit_reached` when the overlap would exceed the limit; `scoped_keys_unavailable`,
/// `feature_unavailable` when the account's model no longer allows the successor's restrictions; and the errors of
/// [`idempotency::create`].
pub async fn rotate<R: Recorded<CreatedKey> + Send + 'static>(
    service: &Service,
    by: &RequestActor,
    id: KeyId,
    overlap: Overlap,
    preconditions: Preconditions,
    creating: CreationPermit<R>,
) -> Result<Outcome<CreatedKey, R>, Problem> {
    let now = service.clock.now();
    let account_id = by.account_id.clone();
    let (drafts, random) = (by.drafts(service), service.random.clone());
    let limit = service.limits.account_keys;
    idempotency::create(service, by, creating, move |tx| {
        let mut account = tx.account(&account_id);
        let before = account
            .lock_key(COMMERCE, &id)?
            .ok_or_else(Problem::not_found)?;
        let mut key = before.clone();
        let (new_id, text) = random.with(|rng| {
            (
                KeyId::new(now, rng),
                PlainKey::generate(CredentialKind::Key(key.family, key.mode), rng),
            )
        });
        let successor = key.rotate(new_id, &text, overlap, now)?;
        preconditions.check(before.entity_tag())?;
        account
            .get()?
            .operating_model
            .check(&successor.restrictions)?;
        // Without an overlap, the number of usable keys does not change.
        if key.status(now) == Status::Active {
            check_limit(&mut account, &successor, limit, 1)?;
        }
        account.insert_key(&successor, &text.digest())?;
        account.save_key(&key)?;
        let mut changes = differences(&before, &key);
        changes.insert("rotated_to".to_owned(), json!(new_id.to_string()));
        changes.insert("successor".to_owned(), audit_fields(&successor).into());
        account.append(drafts(
            Action::ApiKeyRotated,
            Target::key(id, key.mode),
            changes.into(),
        ))?;
        Ok(CreatedKey {
            key: successor,
            text,
        })
    })
    .await
}
