//! API keys: made, changed, stopped, succeeded and ended, whatever their family.

use serde_json::{Map, Value, json};
use tollkey_core::{
    ApiKey, ApplicationId, Family, Grants, KeyId, KeyText, Mode, Problem, ProblemCode, Status,
    Timestamp,
    api_key::{Overlap, Transition},
    audit::{Action, Target},
    ceiling,
    key_text::Kind,
    lineage::Root,
    metadata::Metadata,
};
use tollkey_store::{AccountWriter, DayUsage, KeyCursor, KeyFilter, KeyPage};

use super::{
    Page,
    idempotency::{self, Answered, Creating, Said},
};
use crate::{caller::Manager, state::State};

/// The keys of the commerce surface.
pub const COMMERCE: &[Family] = &[Family::Commerce];
/// The keys of the account surface.
pub const ACCOUNT: &[Family] = &[Family::Secret, Family::Publishable];

/// A new key, and its text for the one answer that holds it.
pub type Made = (ApiKey, KeyText);

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
    /// Makes the key and its text, beneath the key that makes it. Nothing is written yet.
    fn mint(
        self,
        state: &State,
        by: &Manager,
        family: Family,
        application_id: Option<ApplicationId>,
    ) -> Result<Made, Problem> {
        let grants = match &by.key {
            Some(maker) => ceiling::beneath(&maker.key, self.mode, self.grants)?,
            None => self.grants,
        };
        let now = state.clock.now();
        let (id, text) = state.random.with(|rng| {
            (
                KeyId::new(now, rng),
                KeyText::mint(Kind::Key(family, self.mode), rng),
            )
        });
        let key = ApiKey {
            application_id,
            name: self.name,
            grants,
            metadata: self.metadata,
            created_by: by.key.as_ref().map(|maker| maker.key.id),
            ..ApiKey::new(id, by.account_id.clone(), &text, (family, self.mode), now)
        };
        Ok((key, text))
    }
}

/// What the audit log says of a new key: what it is and what it may do, never its text. Nor its metadata: the log is
/// for ever, and metadata may be about people.
fn described(key: &ApiKey) -> Map<String, Value> {
    let grants = &key.grants;
    let mut members = Map::new();
    let mut member = |name: &str, value: Value| members.insert(name.to_owned(), value);
    member("name", json!(key.name));
    member("family", json!(key.family.as_str()));
    member("mode", json!(key.mode.as_str()));
    member("prefix", json!(key.prefix));
    member("last4", json!(key.last4));
    member(
        "application_id",
        json!(key.application_id.map(|id| id.to_string())),
    );
    member(
        "scopes",
        grants.scopes.iter().map(ToString::to_string).collect(),
    );
    member("merchants", json!(grants.merchants));
    let features = grants.features.as_ref();
    member(
        "features",
        json!(features.map(|all| {
            all.iter()
                .map(|feature| feature.as_str())
                .collect::<Vec<_>>()
        })),
    );
    let networks = grants.allowed_ips.as_ref();
    member(
        "allowed_ips",
        json!(networks.map(|list| {
            list.networks()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })),
    );
    let limit = grants.rate_limit;
    member(
        "rate_limit",
        json!(limit.map(
            |limit| json!({"limit": limit.limit(), "window_seconds": limit.window_seconds()})
        )),
    );
    member(
        "expires_at",
        json!(grants.expires_at.map(|end| end.as_second())),
    );
    if let Some(maker) = key.created_by {
        member("created_by", json!(maker.to_string()));
    }
    members
}

/// What is different, as `[before, after]`.
fn differences(before: &ApiKey, after: &ApiKey) -> Map<String, Value> {
    let mut changes = Map::new();
    for ((name, was), (_, is)) in described(before).into_iter().zip(described(after)) {
        if was != is {
            changes.insert(name, json!([was, is]));
        }
    }
    if before.metadata != after.metadata {
        changes.insert("metadata".to_owned(), json!("changed"));
    }
    changes
}

/// Makes a commerce or account key. The text is in the answer and nowhere else.
///
/// # Errors
/// `forbidden` for what lies beyond the key that makes it, `key_depth_limit_reached`, `scoped_keys_unavailable`,
/// `feature_unavailable`, `key_limit_reached`.
pub async fn create(
    state: &State,
    by: &Manager,
    family: Family,
    wanted: NewKey,
    creating: Creating,
    say: impl FnOnce(Made) -> Answered + Clone + Send + 'static,
) -> Result<Said, Problem> {
    let limit = state.policy.account_key_limit;
    let depth_limit = state.policy.key_depth_limit;
    insert(
        state,
        by,
        (family, None),
        wanted,
        creating,
        say,
        move |account, key| {
            if let Some(parent) = key.created_by {
                // A key that was revoked while its request was under way, or whose ancestor was, creates no key.
                let within = |ancestors| depth_limit.check(ancestors).map_err(Problem::from);
                let parent = account.lock_lineage(ACCOUNT, &parent, within)?;
                if parent.is_none_or(|parent| parent.status(key.created_at) != Status::Active) {
                    return Err(Problem::invalid_api_key());
                }
            }
            account.get()?.operating_model.check(&key.grants)?;
            check_limit(account, key, limit, 1)
        },
    )
    .await
}

/// Mints a key and writes it with its audit entry in one transaction, once `allow` has found that it may be there.
async fn insert(
    state: &State,
    by: &Manager,
    (family, application_id): (Family, Option<ApplicationId>),
    wanted: NewKey,
    creating: Creating,
    say: impl FnOnce(Made) -> Answered + Clone + Send + 'static,
    allow: impl FnOnce(&mut AccountWriter<'_>, &ApiKey) -> Result<(), Problem> + Clone + Send + 'static,
) -> Result<Said, Problem> {
    let (key, text) = wanted.mint(state, by, family, application_id)?;
    let draft = by.draft(
        state,
        Action::ApiKeyCreated,
        Target::key(key.id, key.mode),
        described(&key).into(),
    );
    let digest = text.digest();
    idempotency::create(state, by, creating, say, move |tx| {
        let mut account = tx.account(&key.account_id);
        allow(&mut account, &key)?;
        account.insert_key(&key, &digest)?;
        account.append(draft)?;
        Ok((key, text))
    })
    .await
}

/// Whether the account has room for so many more keys of that key's surface. Holds the account, so that counting and
/// inserting are one step.
fn check_limit(
    account: &mut AccountWriter<'_>,
    key: &ApiKey,
    limit: Option<u32>,
    more: u64,
) -> Result<(), Problem> {
    let Some(limit) = limit else { return Ok(()) };
    let families = if key.family == Family::Commerce {
        COMMERCE
    } else {
        ACCOUNT
    };
    account.lock()?;
    if account.count_usable_of(families, key.created_at)? + more > u64::from(limit) {
        return Err(Problem::new(
            ProblemCode::KeyLimitReached,
            format!(
                "The account can have {limit} such keys that are neither revoked nor expired; revoke one first."
            ),
        ));
    }
    Ok(())
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
    creating: Creating,
    say: impl FnOnce(Made) -> Answered + Clone + Send + 'static,
) -> Result<Said, Problem> {
    let limit = state.policy.application_key_limit;
    let home = (Family::Application, Some(application_id));
    insert(state, by, home, wanted, creating, say, move |account, key| {
        // The lock makes counting and inserting one step for this application.
        account.lock_application(&application_id)?.ok_or_else(Problem::not_found)?;
        if account.count_usable(&application_id, key.created_at)? >= u64::from(limit) {
            return Err(Problem::new(
                ProblemCode::ApplicationKeyLimitReached,
                format!("The application has {limit} keys that are neither revoked nor expired; revoke one first."),
            ));
        }
        Ok(())
    })
    .await
}

/// Gives a commerce key a successor with the same grants, and lets the key itself end after the overlap.
///
/// # Errors
/// `not_found`; `key_revoked`, `key_expired`, `key_suspended`, `key_already_rotated`; `key_limit_reached` when both
/// would be one too many; `scoped_keys_unavailable`, `feature_unavailable` when the successor could not be made today.
pub async fn rotate(
    state: &State,
    by: &Manager,
    id: KeyId,
    overlap: Overlap,
    creating: Creating,
    say: impl FnOnce(Made) -> Answered + Clone + Send + 'static,
) -> Result<Said, Problem> {
    let now = state.clock.now();
    let account_id = by.account_id.clone();
    let (drafts, random) = (by.drafts(state), state.random.clone());
    let limit = state.policy.account_key_limit;
    idempotency::create(state, by, creating, say, move |tx| {
        let mut account = tx.account(&account_id);
        let before = account
            .lock_key(COMMERCE, &id)?
            .ok_or_else(Problem::not_found)?;
        let mut key = before.clone();
        let (new_id, text) = random.with(|rng| {
            (
                KeyId::new(now, rng),
                KeyText::mint(Kind::Key(key.family, key.mode), rng),
            )
        });
        let successor = key.rotate(new_id, &text, overlap, now)?;
        account.get()?.operating_model.check(&successor.grants)?;
        // Only when the old key goes on for a while are there more keys than before.
        if key.status(now) == Status::Active {
            check_limit(&mut account, &successor, limit, 1)?;
        }
        account.insert_key(&successor, &text.digest())?;
        account.save_key(&key)?;
        let mut changes = differences(&before, &key);
        changes.insert("rotated_to".to_owned(), json!(new_id.to_string()));
        changes.insert("successor".to_owned(), described(&successor).into());
        account.append(drafts(
            Action::ApiKeyRotated,
            Target::key(id, key.mode),
            changes.into(),
        ))?;
        Ok((successor, text))
    })
    .await
}

/// The key with this id, of one of these families.
///
/// # Errors
/// `not_found`.
pub async fn get(
    state: &State,
    by: &Manager,
    families: &'static [Family],
    id: KeyId,
) -> Result<ApiKey, Problem> {
    let (account_id, sees) = (by.account_id.clone(), by.sees());
    let key = state
        .read(by, move |db| db.account(&account_id).key(families, &id))
        .await?;
    key.filter(|key| sees.is_none_or(|mode| mode == key.mode))
        .ok_or_else(Problem::not_found)
}

/// How a key of the account was used since a day, by day and outcome, the newest day first. Of some seconds ago at most:
/// usage is written down in batches.
///
/// # Errors
/// `unavailable`.
pub async fn usage(
    state: &State,
    by: &Manager,
    id: KeyId,
    since_day: i32,
) -> Result<Vec<DayUsage>, Problem> {
    let account_id = by.account_id.clone();
    state
        .read(by, move |db| db.account(&account_id).usage(&id, since_day))
        .await
}

/// Keys, and where to go on.
#[derive(Debug)]
pub struct Found {
    /// The keys, newest first. There may be fewer than asked for, or none, although there is a `next`: a search examines
    /// a bounded number of keys.
    pub keys: Vec<ApiKey>,
    /// Where the next ones begin; `None` at the end.
    pub next: Option<KeyCursor>,
}

/// Which keys somebody wants to see. Nothing said is all of them.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of these families.
    pub families: &'static [Family],
    /// Of this mode.
    pub mode: Option<Mode>,
    /// In this status.
    pub status: Option<Status>,
    /// `false` for the keys of disabled applications, `true` for all other keys.
    pub application_enabled: Option<bool>,
    /// Of this application.
    pub application: Option<ApplicationId>,
    /// With this in their name, or as their last four characters or their id.
    pub text: Option<String>,
}

impl Wanted {
    /// All keys of these families.
    #[must_use]
    pub fn of(families: &'static [Family]) -> Self {
        Self {
            families,
            mode: None,
            status: None,
            application_enabled: None,
            application: None,
            text: None,
        }
    }
}

/// How many bytes of names, restrictions and metadata a page of keys has. The page ends earlier than its limit rather than
/// exceed it; a thousand ordinary keys stay well below.
const PAGE_BYTES: usize = 256 * 1024;

/// Ends a list of keys, newest first, where their names, restrictions and metadata exceed this many bytes, but not before
/// the first key. Returns whether keys were left out.
fn end_at(keys: &mut Vec<ApiKey>, bytes: usize) -> bool {
    let mut sum = 0;
    let beyond = keys.iter().skip(1).position(|key| {
        let Grants {
            scopes,
            merchants,
            allowed_ips,
            ..
        } = &key.grants;
        sum += key.name.len() + 16 * scopes.len();
        sum += merchants.iter().flatten().map(String::len).sum::<usize>();
        sum += allowed_ips
            .as_ref()
            .map_or(0, |list| 20 * list.networks().len());
        sum += key
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.as_json().len());
        sum > bytes
    });
    if let Some(beyond) = beyond {
        keys.truncate(beyond + 1);
    }
    beyond.is_some()
}

/// The account's keys, newest first, revoked ones included. A page of keys with much metadata has fewer than `limit`.
///
/// # Errors
/// `unavailable`.
pub async fn list(
    state: &State,
    by: &Manager,
    wanted: Wanted,
    after: Option<KeyCursor>,
    limit: u32,
) -> Result<Found, Problem> {
    let (account_id, sees, now) = (by.account_id.clone(), by.sees(), state.clock.now());
    if sees.is_some() && wanted.mode.is_some() && sees != wanted.mode {
        return Ok(Found {
            keys: Vec::new(),
            next: None,
        });
    }
    let read = state.read(by, move |db| {
        let filter = KeyFilter {
            families: wanted.families,
            mode: sees.or(wanted.mode),
            application: wanted.application,
            status: wanted.status.map(|status| (status, now)),
            application_enabled: wanted.application_enabled,
            text: wanted.text.as_deref(),
        };
        db.account(&account_id).keys(&filter, after, limit)
    });
    let KeyPage { mut keys, mut next } = read.await?;
    if end_at(&mut keys, PAGE_BYTES) {
        next = keys.last().map(KeyCursor::from);
    }
    Ok(Found { keys, next })
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
    let found = state.read(by, move |db| {
        let mut account = db.account(&account_id);
        match account.application(&application_id)? {
            Some(_) => account
                .application_keys(&application_id, page, limit)
                .map(Some),
            None => Ok(None),
        }
    });
    found.await?.ok_or_else(Problem::not_found)
}

/// Changes a commerce key. `edit` changes it in place; nothing different writes nothing.
///
/// # Errors
/// `not_found`, `key_revoked`, `key_expired`, what `edit` returns, and `scoped_keys_unavailable` or
/// `feature_unavailable` for restrictions the account's model does not have.
pub async fn update(
    state: &State,
    by: &Manager,
    id: KeyId,
    edit: impl FnOnce(&mut ApiKey) -> Result<(), Problem> + Clone + Send + 'static,
) -> Result<ApiKey, Problem> {
    let now = state.clock.now();
    let account_id = by.account_id.clone();
    let drafts = by.drafts(state);
    state
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            let before = account
                .lock_key(COMMERCE, &id)?
                .ok_or_else(Problem::not_found)?;
            before.changeable(now)?;
            let mut key = before.clone();
            edit(&mut key)?;
            if (&key.grants.merchants, &key.grants.features)
                != (&before.grants.merchants, &before.grants.features)
            {
                account.get()?.operating_model.check(&key.grants)?;
            }
            if key != before {
                account.save_key(&key)?;
                let changes = differences(&before, &key).into();
                account.append(drafts(
                    Action::ApiKeyUpdated,
                    Target::key(id, key.mode),
                    changes,
                ))?;
            }
            Ok(key)
        })
        .await
}

/// Stops a commerce key until it is resumed; a repeat changes nothing.
///
/// # Errors
/// `not_found`, `key_revoked`.
pub async fn suspend(state: &State, by: &Manager, id: KeyId) -> Result<ApiKey, Problem> {
    let now = state.clock.now();
    let which = Which {
        families: COMMERCE,
        application_id: None,
        id,
    };
    Ok(
        transition(state, by, which, Action::ApiKeySuspended, move |_, key| {
            Ok(key.suspend(now)?)
        })
        .await?
        .0,
    )
}

/// Lets a suspended commerce key work again; a repeat changes nothing.
///
/// # Errors
/// `not_found`, `key_revoked`.
pub async fn resume(state: &State, by: &Manager, id: KeyId) -> Result<ApiKey, Problem> {
    let which = Which {
        families: COMMERCE,
        application_id: None,
        id,
    };
    Ok(
        transition(state, by, which, Action::ApiKeyResumed, |_, key| {
            Ok(key.resume()?)
        })
        .await?
        .0,
    )
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
    let which = Which {
        families: &[Family::Application],
        application_id: Some(application_id),
        id,
    };
    Ok(revoke_which(state, by, which, None).await?.1)
}

/// Revokes a key of the account that is of one of these families, and with it all of its descendants: once this returns,
/// all of them are rejected everywhere. A repeat changes nothing.
///
/// # Errors
/// `not_found`.
pub async fn revoke(
    state: &State,
    by: &Manager,
    families: &'static [Family],
    id: KeyId,
    reason: Option<String>,
) -> Result<ApiKey, Problem> {
    Ok(revoke_which(
        state,
        by,
        Which {
            families,
            application_id: None,
            id,
        },
        reason,
    )
    .await?
    .0)
}

async fn revoke_which(
    state: &State,
    by: &Manager,
    which: Which,
    reason: Option<String>,
) -> Result<(ApiKey, bool), Problem> {
    let now = state.clock.now();
    let pending = by.pending_revocation(Root::Key(which.id), now);
    let revoked = transition(
        state,
        by,
        which,
        Action::ApiKeyRevoked,
        move |account, key| {
            let transition = key.revoke(now, reason);
            match transition {
                Transition::Changed if account.has_descendants(&key.id)? => {
                    account.add_pending_revocation(&pending)?
                }
                // A server of the release before walks the tree instead, told verifiers of the root alone, and may have stopped
                // before the end of the tree.
                Transition::AlreadySo
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
    state.revocations.notify();
    Ok(revoked)
}

/// One key, as a surface names it.
struct Which {
    families: &'static [Family],
    /// It has to be this application's, and that has to be there.
    application_id: Option<ApplicationId>,
    id: KeyId,
}

/// Takes a key from one status to another in one transaction with its audit entry and its invalidation. Also returns
/// whether that changed anything; either way it holds everywhere.
async fn transition(
    state: &State,
    by: &Manager,
    which: Which,
    action: Action,
    step: impl FnOnce(&mut AccountWriter<'_>, &mut ApiKey) -> Result<Transition, Problem>
    + Clone
    + Send
    + 'static,
) -> Result<(ApiKey, bool), Problem> {
    let now = state.clock.now();
    let Which {
        families,
        application_id,
        id,
    } = which;
    let (account_id, sees) = (by.account_id.clone(), by.sees());
    let drafts = by.drafts(state);
    state
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            if let Some(id) = &application_id {
                account
                    .lock_application(id)?
                    .ok_or_else(Problem::not_found)?;
            }
            let key = account.lock_key(families, &id)?;
            let is_meant = |key: &ApiKey| {
                sees.is_none_or(|mode| mode == key.mode)
                    && (application_id.is_none() || key.application_id == application_id)
            };
            let mut key = key.filter(is_meant).ok_or_else(Problem::not_found)?;
            let changed = step(&mut account, &mut key)? == Transition::Changed;
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
        .await
}

/// What the audit log says of a key whose status was changed.
pub(super) fn status_change(key: &ApiKey, now: Timestamp) -> Value {
    match key.status(now) {
        Status::Revoked => json!({"status": "revoked", "reason": key.revoked_reason}),
        status => json!({"status": status.as_str()}),
    }
}
