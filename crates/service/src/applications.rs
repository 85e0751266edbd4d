//! Applications.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tollkey_core::{
    AccountId, ApiKey, Application, ApplicationId, Preconditions, Problem, ProblemCode, Timestamp,
    audit::{Action, Target},
    lineage::Root,
};

use tollkey_store::{Page, Reader};

use crate::{
    actor::RequestActor,
    idempotency::{self, CreationPermit, Outcome, Recorded},
    service::Service,
};

/// The maximum number of keys that `include=apiKeys` returns for each application. The list of an
/// application's keys has all of them.
const INCLUDED_KEYS: u32 = 100;

/// Fails with `application_name_taken`.
pub async fn create<R: Recorded<Application> + Send + 'static>(
    service: &Service,
    by: &RequestActor,
    name: String,
    description: Option<String>,
    creating: CreationPermit<R>,
) -> Result<Outcome<Application, R>, Problem> {
    let now = service.clock.now();
    let application = Application {
        id: service.random.with(|rng| ApplicationId::new(now, rng)),
        account_id: by.account_id.clone(),
        name,
        description,
        is_enabled: true,
        created_at: now,
    };
    let changes = json!({"name": application.name, "description": application.description});
    let draft = by.draft(
        service,
        Action::ApplicationCreated,
        Target::application(application.id),
        changes,
    );
    idempotency::create(service, by, creating, move |tx| {
        let mut account = tx.account(&application.account_id);
        account.insert_application(&application)?;
        account.append(draft)?;
        Ok(application)
    })
    .await
}

/// Returns a page of the account's applications, newest first. With `with_keys`, each application has its
/// newest keys, without their metadata.
pub async fn page(
    service: &Service,
    by: &RequestActor,
    page: u32,
    limit: u32,
    with_keys: bool,
) -> Result<Page<(Application, Vec<ApiKey>)>, Problem> {
    let account_id = by.account_id.clone();
    service
        .read(by, move |db| {
            let mut account = db.account(&account_id);
            let found = account.applications(page, limit)?;
            let mut items = Vec::new();
            for application in found.items {
                let mut keys = Vec::new();
                if with_keys {
                    keys = account.keys_of_applications(&[application.id], INCLUDED_KEYS)?;
                    // At most 10,000 keys. Without metadata, which this list does not show, that is a few megabytes.
                    keys.iter_mut().for_each(|key| key.metadata = None);
                }
                items.push((application, keys));
            }
            Ok(Page {
                items,
                total: found.total,
            })
        })
        .await
}

pub async fn get(
    service: &Service,
    by: &RequestActor,
    id: ApplicationId,
) -> Result<Application, Problem> {
    let account_id = by.account_id.clone();
    service
        .read(by, move |db| db.account(&account_id).application(&id))
        .await?
        .ok_or_else(Problem::not_found)
}

/// Returns the newest applications, and those of `these` that exist.
pub async fn newest_and(
    service: &Service,
    by: &RequestActor,
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
    service.read(by, work).await
}

/// `None` leaves a field unchanged. Fails with `not_found`, `application_name_taken` or `precondition_failed`.
pub async fn update(
    service: &Service,
    by: &RequestActor,
    id: ApplicationId,
    name: Option<String>,
    description: Option<Option<String>>,
    preconditions: Preconditions,
) -> Result<Application, Problem> {
    modify(
        service,
        by,
        id,
        Action::ApplicationUpdated,
        preconditions,
        move |application| {
            let mut changes = Map::new();
            if let Some(name) = name.filter(|name| *name != application.name) {
                changes.insert("name".to_owned(), json!([application.name, name]));
                application.name = name;
            }
            if let Some(description) =
                description.filter(|description| *description != application.description)
            {
                changes.insert(
                    "description".to_owned(),
                    json!([application.description, description]),
                );
                application.description = description;
            }
            changes
        },
    )
    .await
}

/// When this returns, the change applies to all of its keys on every replica. Fails with `not_found` or
/// `precondition_failed`.
pub async fn set_enabled(
    service: &Service,
    by: &RequestActor,
    id: ApplicationId,
    enabled: bool,
    preconditions: Preconditions,
) -> Result<Application, Problem> {
    let action = if enabled {
        Action::ApplicationEnabled
    } else {
        Action::ApplicationDisabled
    };
    modify(service, by, id, action, preconditions, move |application| {
        let mut changes = Map::new();
        if application.is_enabled != enabled {
            changes.insert(
                "is_enabled".to_owned(),
                json!([application.is_enabled, enabled]),
            );
            application.is_enabled = enabled;
        }
        changes
    })
    .await
}

/// Changes an application and appends its audit entry in one transaction. `edit` returns the fields that differ, as
/// `[before, after]`; if none does, nothing is written.
async fn modify(
    service: &Service,
    by: &RequestActor,
    id: ApplicationId,
    action: Action,
    preconditions: Preconditions,
    edit: impl FnOnce(&mut Application) -> Map<String, Value> + Clone + Send + 'static,
) -> Result<Application, Problem> {
    let mut draft = by.draft(service, action, Target::application(id), Value::Null);
    let account_id = by.account_id.clone();
    service
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            let mut application = account
                .lock_application(&id)?
                .ok_or_else(Problem::not_found)?;
            preconditions.check(application.entity_tag())?;
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

/// Also revokes its unexpired keys. When this returns, every replica rejects them. Fails with `not_found` or
/// `precondition_failed`.
pub async fn delete(
    service: &Service,
    by: &RequestActor,
    id: ApplicationId,
    preconditions: Preconditions,
) -> Result<(), Problem> {
    let now = service.clock.now();
    let draft = by.draft(
        service,
        Action::ApplicationDeleted,
        Target::application(id),
        json!({}),
    );
    let pending = by.pending_revocation(Root::Application(id), now);
    let account_id = by.account_id.clone();
    let deleted = service
        .change(by, move |tx| {
            let mut account = tx.account(&account_id);
            let application = account
                .lock_application(&id)?
                .ok_or_else(Problem::not_found)?;
            preconditions.check(application.entity_tag())?;
            account.delete_application(&id, now)?;
            account.add_pending_revocation(&pending)?;
            account.append(draft)?;
            Ok(())
        })
        .await;
    if matches!(&deleted, Err(problem) if problem.code == ProblemCode::NotFound) {
        // Another request may be deleting it right now, and a 404 must mean that its keys are rejected everywhere.
        service.wait_until_all_propagated().await?;
    }
    service.revocations.notify();
    deleted
}

#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    id: String,
    account_id: String,
    name: String,
    description: Option<String>,
    created_at: Timestamp,
}

/// A replay returns the application as it was created.
impl Recorded<Self> for Application {
    type Snapshot = Snapshot;

    fn snapshot(created: &Self) -> Snapshot {
        Snapshot {
            id: created.id.to_string(),
            account_id: created.account_id.to_string(),
            name: created.name.clone(),
            description: created.description.clone(),
            created_at: created.created_at,
        }
    }

    fn restore(snapshot: Snapshot) -> Option<Self> {
        Some(Self {
            id: snapshot.id.parse().ok()?,
            account_id: AccountId::stored(&snapshot.account_id).ok()?,
            name: snapshot.name,
            description: snapshot.description,
            is_enabled: true,
            created_at: snapshot.created_at,
        })
    }
}

/// A replay returns the ID only.
impl Recorded<Application> for ApplicationId {
    type Snapshot = String;

    fn snapshot(created: &Application) -> String {
        created.id.to_string()
    }

    fn restore(snapshot: String) -> Option<Self> {
        snapshot.parse().ok()
    }
}
