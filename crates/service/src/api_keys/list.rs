//! Reads keys and their usage.

use std::cmp::Reverse;

use tollkey_core::{
    ApiKey, ApplicationId, Family, KeyId, Mode, Problem, Status, Usage, usage::outcome_code,
};
use tollkey_store::{DayUsage, KeyCursor, KeyFilter, KeyPage};

use tollkey_store::Page;

use crate::{actor::RequestActor, service::Service};

/// Fails with `not_found` if the key is of none of these families.
pub async fn get(
    service: &Service,
    by: &RequestActor,
    families: &'static [Family],
    id: KeyId,
) -> Result<ApiKey, Problem> {
    let (account_id, visible_mode) = (by.account_id.clone(), by.visible_mode());
    let key = service
        .read(by, move |db| db.account(&account_id).key(families, &id))
        .await?;
    key.filter(|key| visible_mode.is_none_or(|mode| mode == key.mode))
        .map(|key| service.with_waiting_usage(key))
        .ok_or_else(Problem::not_found)
}

/// Returns the usage of a key since a day, by day and outcome, newest day first. Usage is written in batches,
/// so the counts of the last seconds can be missing, and those of the last minute from other replicas.
/// Takes a key that [`get`] returned, because the counts that wait to be written do not contain the account.
pub async fn usage(
    service: &Service,
    by: &RequestActor,
    key: &ApiKey,
    since_day: i32,
) -> Result<Vec<DayUsage>, Problem> {
    let (account_id, id) = (by.account_id.clone(), key.id);
    let mut days = service
        .read(by, move |db| db.account(&account_id).usage(&id, since_day))
        .await?;
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

#[derive(Debug)]
pub struct KeyList {
    /// The keys, newest first. There may be fewer than the limit, or none, even if there is a `next`: a search
    /// examines a bounded number of keys.
    pub keys: Vec<ApiKey>,
    pub next: Option<KeyCursor>,
}

#[derive(Debug, Clone)]
pub struct KeyQuery {
    pub families: &'static [Family],
    pub mode: Option<Mode>,
    pub status: Option<Status>,
    /// `false` for only the keys of disabled applications, `true` for all other keys.
    pub application_enabled: Option<bool>,
    pub application: Option<ApplicationId>,
    /// Only keys with this text in their name, or with these last four characters or this ID.
    pub text: Option<String>,
}

impl KeyQuery {
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

/// The maximum size of the names, restrictions and metadata on a page of keys. A page that would be larger
/// has fewer keys than its limit. A thousand ordinary keys are far smaller.
const PAGE_BYTES: usize = 256 * 1024;

/// Removes keys from the end of a list, so that the names, restrictions and metadata of the others do not
/// exceed this many bytes. The first key always stays. Returns whether keys were removed.
fn truncate_to_bytes(keys: &mut Vec<ApiKey>, bytes: usize) -> bool {
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

/// Lists the account's keys, newest first, including revoked ones. A page of large keys can have fewer than
/// `limit`.
pub async fn list(
    service: &Service,
    by: &RequestActor,
    query: KeyQuery,
    after: Option<KeyCursor>,
    limit: u32,
) -> Result<KeyList, Problem> {
    let (account_id, visible_mode, now) = (
        by.account_id.clone(),
        by.visible_mode(),
        service.clock.now(),
    );
    if visible_mode.is_some() && query.mode.is_some() && visible_mode != query.mode {
        return Ok(KeyList {
            keys: Vec::new(),
            next: None,
        });
    }
    let read = service.read(by, move |db| {
        let filter = KeyFilter {
            families: query.families,
            mode: visible_mode.or(query.mode),
            application: query.application,
            status: query.status.map(|status| (status, now)),
            application_enabled: query.application_enabled,
            text: query.text.as_deref(),
        };
        db.account(&account_id).keys(&filter, after, limit)
    });
    let KeyPage { mut keys, mut next } = read.await?;
    if truncate_to_bytes(&mut keys, PAGE_BYTES) {
        next = keys.last().map(KeyCursor::from);
    }
    let keys = keys.into_iter().map(|key| service.with_waiting_usage(key));
    Ok(KeyList {
        keys: keys.collect(),
        next,
    })
}

/// Returns a page of an application's keys, newest first, including revoked ones. Fails with `not_found`.
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
