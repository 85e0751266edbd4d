//! Applications.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tollkey_core::{
    ApiKey, Application, ApplicationId, Problem, ProblemCode,
    api_key::APPLICATION_DELETED,
    audit::{Action, Target},
};

use tollkey_store::Reader;

use super::{
    Page, api_keys,
    idempotency::{self, Answered, Creating, Said},
};
use crate::{caller::Manager, state::State};

/// How many keys of each application `include=apiKeys` shows; the rest has a list of its own.
const INCLUDED_KEYS: u32 = 100;

/// Makes an application.
///
/// # Errors
/// `application_name_taken`.
pub async fn create(
    state: &State,
    by: &Manager,
    name: String,
    description: Option<String>,
    creating: Creating,
    say: impl FnOnce(Application) -> Answered + Send + 'static,
) -> Result<Said, Problem> {
    let now = state.clock.now();
    let application = Application {
        id: state.random.with(|rng| ApplicationId::new(now, rng)),
        account_id: by.account_id.clone(),
        name,
        description,
        is_enabled: true,
        created_at: now,
    };
    let changes = json!({"name": application.name, "description": application.description});
    let draft = by.draft(state, Action::ApplicationCreated, Target::application(application.id), changes);
    idempotency::create(state, by, creating, say, move |tx| {
        let mut account = tx.account(&application.account_id);
        account.insert_application(&application)?;
        account.append(draft)?;
        Ok(application)
    })
    .await
}

/// A page of the account's applications, newest first, each with its keys when asked for.
///
/// # Errors
/// `unavailable`.
pub async fn page(
    state: &State,
    by: &Manager,
    page: u32,
    limit: u32,
    with_keys: bool,
) -> Result<Page<(Application, Vec<ApiKey>)>, Problem> {
    let account_id = by.account_id.clone();
    state
        .read(by, move |db| {
            let mut account = db.account(&account_id);
            let found = account.applications(page, limit)?;
            let mut keys = Vec::new();
            if with_keys {
                let ids: Vec<ApplicationId> = found.items.iter().map(|application| application.id).collect();
                keys = account.keys_of_applications(&ids, INCLUDED_KEYS)?;
            }
            let mut items: Vec<(Application, Vec<ApiKey>)> =
                found.items.into_iter().map(|application| (application, Vec::new())).collect();
            for key in keys {
                if let Some((_, keys)) =
                    items.iter_mut().find(|(application, _)| key.application_id == Some(application.id))
                {
                    keys.push(key);
                }
            }
            Ok(Page { items, total: found.total })
        })
        .await
}

/// One application.
///
/// # Errors
/// `not_found`.
pub async fn get(state: &State, by: &Manager, id: ApplicationId) -> Result<Application, Problem> {
    let account_id = by.account_id.clone();
    state.read(by, move |db| db.account(&account_id).application(&id)).await?.ok_or_else(Problem::not_found)
}

/// The newest applications, and those of these that there are.
///
/// # Errors
/// `unavailable`.
pub async fn newest_and(
    state: &State,
    by: &Manager,
    newest: u32,
    mut these: BTreeSet<ApplicationId>,
) -> Result<Vec<Application>, Problem> {
    let account_id = by.account_id.clone();
    let work = move |db: &mut Reader<'_>| {
        let mut account = db.account(&account_id);
        let mut found = account.applications(1, newest)?.items;
        for one in &found {
            these.remove(&one.id);
        }
        if !these.is_empty() {
            found.extend(account.applications_among(&these)?);
        }
        Ok(found)
    };
    state.read(by, work).await
}

/// Changes the name or the description; `None` leaves it as it is.
///
/// # Errors
/// `not_found`, `application_name_taken`.
pub async fn update(
    state: &State,
    by: &Manager,
    id: ApplicationId,
    name: Option<String>,
    description: Option<Option<String>>,
) -> Result<Application, Problem> {
    modify(state, by, id, Action::ApplicationUpdated, move |application| {
        let mut changes = Map::new();
        if let Some(name) = name.filter(|name| *name != application.name) {
            changes.insert("name".to_owned(), json!([application.name, name]));
            application.name = name;
        }
        if let Some(description) = description.filter(|description| *description != application.description) {
            changes.insert("description".to_owned(), json!([application.description, description]));
            application.description = description;
        }
        changes
    })
    .await
}

/// Enables or disables an application; once answered, it holds for all of its keys.
///
/// # Errors
/// `not_found`.
pub async fn set_enabled(
    state: &State,
    by: &Manager,
    id: ApplicationId,
    enabled: bool,
) -> Result<Application, Problem> {
    let action = if enabled { Action::ApplicationEnabled } else { Action::ApplicationDisabled };
    modify(state, by, id, action, move |application| {
        let mut changes = Map::new();
        if application.is_enabled != enabled {
            changes.insert("is_enabled".to_owned(), json!([application.is_enabled, enabled]));
            application.is_enabled = enabled;
        }
        changes
    })
    .await
}

/// Changes an application in one transaction with its audit entry and its invalidation. `edit` says what is
/// different, as `[before, after]`; nothing different writes nothing.
async fn modify(
    state: &State,
    by: &Manager,
    id: ApplicationId,
    action: Action,
    edit: impl FnOnce(&mut Application) -> Map<String, Value> + Send + 'static,
) -> Result<Application, Problem> {
    let mut draft = by.draft(state, action, Target::application(id), Value::Null);
    let account_id = by.account_id.clone();
    state
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            let mut application = account.lock_application(&id)?.ok_or_else(Problem::not_found)?;
            let changes = edit(&mut application);
            if !changes.is_empty() {
                draft.changes = Value::Object(changes);
                account.update_application(&application)?;
                account.append(draft)?;
            }
            Ok(application)
        })
        .await
}

/// Deletes an application and revokes its keys.
///
/// # Errors
/// `not_found`.
pub async fn delete(state: &State, by: &Manager, id: ApplicationId) -> Result<(), Problem> {
    let now = state.clock.now();
    let drafts = by.drafts(state);
    let draft = by.draft(state, Action::ApplicationDeleted, Target::application(id), json!({}));
    let account_id = by.account_id.clone();
    let deleted = state
        .change(by, move |tx| {
            let mut account = tx.account(&account_id);
            account.lock_application(&id)?.ok_or_else(Problem::not_found)?;
            // Entries are appended last: from then on this holds the account's chain, and who holds a key wants that.
            let mut entries = Vec::new();
            loop {
                let keys = account.lock_unrevoked(&id, api_keys::REVOKED_AT_ONCE)?;
                if keys.is_empty() {
                    break;
                }
                let keys = api_keys::revoke_each(&mut account, keys, APPLICATION_DELETED, now)?;
                entries.extend(keys.iter().map(|key| api_keys::revocation(&drafts, key, now)));
            }
            account.delete_application(&id, now)?;
            for entry in entries {
                account.append(entry)?;
            }
            account.append(draft)?;
            Ok(())
        })
        .await;
    if matches!(&deleted, Err(problem) if problem.code == ProblemCode::NotFound) {
        // It may be gone because somebody deletes it right now: 404 says that it is.
        state.settle_current().await?;
    }
    deleted
}
