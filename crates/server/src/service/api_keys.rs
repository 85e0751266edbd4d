//! API keys.

use serde_json::json;
use tollkey_core::{
    ApiKey, ApplicationId, AuditId, Family, Grants, KeyId, KeyText, Mode, Problem, ProblemCode,
    api_key::Transition,
    audit::{Action, Draft, Target},
    key_text::Kind,
    metadata::Metadata,
};

use super::Page;
use crate::{caller::Manager, state::State};

/// What somebody wants a new key to be.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its label.
    pub name: String,
    /// Live or test.
    pub mode: Mode,
    /// What it may do.
    pub grants: Grants,
    /// What the caller attaches.
    pub metadata: Option<Metadata>,
}

impl NewKey {
    /// Makes the key and its text. Nothing is written yet.
    fn mint(
        self,
        state: &State,
        by: &Manager,
        family: Family,
        application_id: Option<ApplicationId>,
    ) -> (ApiKey, KeyText) {
        let now = state.clock.now();
        let (id, text) =
            state.random.with(|rng| (KeyId::new(now, rng), KeyText::mint(Kind::Key(family, self.mode), rng)));
        let key = ApiKey {
            application_id,
            name: self.name,
            grants: self.grants,
            metadata: self.metadata,
            ..ApiKey::new(id, by.account_id.clone(), &text, (family, self.mode), now)
        };
        (key, text)
    }
}

/// What the audit log says of a new key: what it is and what it may do, never its text.
fn described(key: &ApiKey) -> serde_json::Value {
    let grants = &key.grants;
    json!({
        "name": key.name,
        "family": key.family.as_str(),
        "mode": key.mode.as_str(),
        "prefix": key.prefix,
        "last4": key.last4,
        "application_id": key.application_id.map(|id| id.to_string()),
        "scopes": grants.scopes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "merchants": grants.merchants,
        "features": grants.features.as_ref().map(|all| all.iter().map(|feature| feature.as_str()).collect::<Vec<_>>()),
        "allowed_ips": grants.allowed_ips.as_ref().map(|list| list.networks().iter().map(ToString::to_string).collect::<Vec<_>>()),
        "rate_limit": grants.rate_limit.map(|limit| json!({"limit": limit.limit(), "window_seconds": limit.window_seconds()})),
        "expires_at": grants.expires_at.map(|end| end.as_second()),
    })
}

/// Makes a key for an application. The text is in the answer and nowhere else.
///
/// # Errors
/// `not_found`, `application_key_limit_reached`.
pub async fn create_for_application(
    state: &State,
    by: &Manager,
    application_id: ApplicationId,
    wanted: NewKey,
) -> Result<(ApiKey, KeyText), Problem> {
    let (key, text) = wanted.mint(state, by, Family::Application, Some(application_id));
    let draft = by.draft(state, Action::ApiKeyCreated, Target::key(key.id, key.mode), described(&key));
    let limit = state.policy.application_key_limit;
    let digest = text.digest();
    let key = state
        .change(move |tx| {
            let mut account = tx.account(&key.account_id);
            // The lock makes counting and inserting one step for this application.
            account.lock_application(&application_id)?.ok_or_else(Problem::not_found)?;
            if account.count_usable(&application_id, key.created_at)? >= u64::from(limit) {
                return Err(Problem::new(
                    ProblemCode::ApplicationKeyLimitReached,
                    format!("The application has {limit} keys that are neither revoked nor expired; revoke one first."),
                ));
            }
            account.insert_key(&key, &digest)?;
            account.append(draft)?;
            Ok(key)
        })
        .await?;
    Ok((key, text))
}

/// A page of an application's keys, newest first, revoked ones included.
///
/// # Errors
/// `not_found`.
pub async fn page_of_application(
    state: &State,
    by: &Manager,
    application_id: ApplicationId,
    page: u32,
    limit: u32,
) -> Result<Page<ApiKey>, Problem> {
    let account_id = by.account_id.clone();
    let found = state
        .read(move |db| {
            let mut account = db.account(&account_id);
            match account.application(&application_id)? {
                Some(_) => account.application_keys(&application_id, page, limit).map(Some),
                None => Ok(None),
            }
        })
        .await?
        .ok_or_else(Problem::not_found)?;
    Ok(Page { items: found.items, total: found.total })
}

/// Revokes a key of an application. False when it was revoked before; either way it is dead everywhere once this
/// returns.
///
/// # Errors
/// `not_found`.
pub async fn revoke_of_application(
    state: &State,
    by: &Manager,
    application_id: ApplicationId,
    id: KeyId,
) -> Result<bool, Problem> {
    revoke_where(state, by, Some(application_id), id, None).await
}

/// Revokes a key of the account, of whatever family. False when it was revoked before.
///
/// # Errors
/// `not_found`.
pub async fn revoke(state: &State, by: &Manager, id: KeyId, reason: Option<String>) -> Result<bool, Problem> {
    revoke_where(state, by, None, id, reason).await
}

/// Of whatever application, unless one is given: then it has to be there, and the key has to be its own.
async fn revoke_where(
    state: &State,
    by: &Manager,
    application_id: Option<ApplicationId>,
    id: KeyId,
    reason: Option<String>,
) -> Result<bool, Problem> {
    let now = state.clock.now();
    let drafts = revocation_drafts(state, by.clone());
    let account_id = by.account_id.clone();
    let revoked = state
        .change(move |tx| {
            let mut account = tx.account(&account_id);
            if let Some(id) = &application_id {
                account.lock_application(id)?.ok_or_else(Problem::not_found)?;
            }
            let key = account.lock_key(&Family::ALL, &id)?;
            let meant = key.filter(|key| application_id.is_none() || key.application_id == application_id);
            let mut key = meant.ok_or_else(Problem::not_found)?;
            let transition = key.revoke(now, reason);
            if transition == Transition::Changed {
                account.save_key(&key)?;
                account.append(drafts(&key))?;
            }
            Ok(transition == Transition::Changed)
        })
        .await?;
    if !revoked {
        // Whoever revoked it may have died before everybody knew.
        state.settle_current().await?;
    }
    Ok(revoked)
}

/// Makes the audit entries of revocations inside a transaction, where clock and randomness are not at hand.
pub(super) fn revocation_drafts(state: &State, by: Manager) -> impl Fn(&ApiKey) -> Draft + Send + 'static {
    let (random, clock) = (state.random.clone(), std::sync::Arc::clone(&state.clock));
    move |key| {
        let occurred_at = clock.now();
        Draft {
            id: random.with(|rng| AuditId::new(occurred_at, rng)),
            account_id: by.account_id.clone(),
            occurred_at,
            action: Action::ApiKeyRevoked,
            actor: by.actor.clone(),
            target: Target::key(key.id, key.mode),
            request_id: by.request_id.as_deref().map(str::to_owned),
            ip: by.ip,
            changes: json!({"status": "revoked", "reason": key.revoked_reason}),
        }
    }
}
