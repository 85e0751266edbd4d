//! Finding keys, and their usage.

use std::cmp::Reverse;

use tollkey_core::{
    ApiKey, ApplicationId, Family, KeyId, Mode, Problem, Status, Usage, usage::outcome_code,
};
use tollkey_store::{DayUsage, KeyCursor, KeyFilter, KeyPage};

use tollkey_store::Paged as Page;

use crate::{actor::RequestActor, service::Service};

/// Returns the key with this ID, if it is of one of these families.
///
/// # Errors
/// `not_found`.
pub async fn get(
    service: &Service,
    by: &RequestActor,
    families: &'static [Family],
    id: KeyId,
) -> Result<ApiKey, Problem> {
    let (account_id, sees) = (by.account_id.clone(), by.visible_mode());
    let key = service
        .read(by, move |db| db.account(&account_id).key(families, &id))
        .await?;
    key.filter(|key| sees.is_none_or(|mode| mode == key.mode))
        .map(|key| service.with_waiting_usage(key))
        .ok_or_else(Problem::not_found)
}

/// Returns the usage of a key since a day, by day and outcome, the newest day first. The usage of the last seconds can be
/// missing, and that of the last minute on other replicas: it is written in batches.
///
/// # Errors
/// `unavailable`.
pub async fn usage(
    service: &Service,
    by: &RequestActor,
    id: KeyId,
    since_day: i32,
) -> Result<Vec<DayUsage>, Problem> {
    let account_id = by.account_id.clone();
    let read = service.read(by, move |db| {
        let mut account = db.account(&account_id);
        match account.key(&Family::ALL, &id)? {
            Some(_) => account.usage(&id, since_day).map(Some),
            None => Ok(None),
        }
    });
    // Counts that wait do not say whose key it is.
    let Some(mut days) = read.await? else {
        return Ok(Vec::new());
    };
    for waiting in service.verifier.waiting_usage(&id) {
        let Usage {
            day,
            outcome,
            count,
            ..
        } = waiting;
        if day < since_day {
            continue;
        }
        match days
            .iter_mut()
            .find(|one| (one.day, one.outcome) == (day, outcome))
        {
            Some(one) => one.count = one.count.saturating_add(count),
            None => days.push(DayUsage {
                day,
                outcome,
                count,
            }),
        }
    }
    days.sort_by_key(|one| (Reverse(one.day), outcome_code(one.outcome)));
    Ok(days)
}

/// A page of a list of keys.
#[derive(Debug)]
pub struct KeyList {
    /// The keys, newest first. There may be fewer than asked for, or none, although there is a `next`: a search examines
    /// a bounded number of keys.
    pub keys: Vec<ApiKey>,
    /// Where the next ones begin; `None` at the end.
    pub next: Option<KeyCursor>,
}

/// A filter of keys. The default is all keys.
#[derive(Debug, Clone)]
pub struct KeyQuery {
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

impl KeyQuery {
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
        sum += key.listed_bytes();
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
    service: &Service,
    by: &RequestActor,
    wanted: KeyQuery,
    after: Option<KeyCursor>,
    limit: u32,
) -> Result<KeyList, Problem> {
    let (account_id, sees, now) = (
        by.account_id.clone(),
        by.visible_mode(),
        service.clock.now(),
    );
    if sees.is_some() && wanted.mode.is_some() && sees != wanted.mode {
        return Ok(KeyList {
            keys: Vec::new(),
            next: None,
        });
    }
    let read = service.read(by, move |db| {
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
    let keys = keys.into_iter().map(|key| service.with_waiting_usage(key));
    Ok(KeyList {
        keys: keys.collect(),
        next,
    })
}

/// A page of an application's keys, newest first, revoked ones included.
///
/// # Errors
/// `not_found`.
pub async fn page_of_application(
    service: &Service,
    by: &RequestActor,
    application_id: ApplicationId,
    page: u32,
    limit: u32,
) -> Result<Page<ApiKey>, Problem> {
    let account_id = by.account_id.clone();
    let found = service.read(by, move |db| {
        let mut account = db.account(&account_id);
        match account.application(&application_id)? {
            Some(_) => account
                .application_keys(&application_id, page, limit)
                .map(Some),
            None => Ok(None),
        }
    });
    let Page { items, total } = found.await?.ok_or_else(Problem::not_found)?;
    let items = items.into_iter().map(|key| service.with_waiting_usage(key));
    Ok(Page {
        items: items.collect(),
        total,
    })
}
