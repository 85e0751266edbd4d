//! The effective state of keys: their own row, their ancestors, and the deletion of their application.
//!
//! Every query that returns keys goes through [`keys`], so that a status is the effective one wherever it is shown,
//! counted or authorized. Filters use the same rules as SQL conditions.

use std::collections::{BTreeSet, HashMap};

use diesel::{dsl::sql, expression::SqlLiteral, prelude::*, sql_types::Bool};
use tollkey_core::{ApiKey, KeyId, Timestamp};

use crate::{
    Error,
    connection::AnyConnection,
    rows::{self, KeyRow},
    schema::{api_keys, applications, key_ancestors, key_last_used},
};

/// The maximum number of IDs in one statement.
const IDS: usize = 500;

/// Converts rows to keys and adds their last use and the effects of their ancestors and their application. Keys without
/// ancestors or application cost no query for them.
pub(crate) fn keys(conn: &mut AnyConnection, rows: Vec<KeyRow>) -> Result<Vec<ApiKey>, Error> {
    let mut keys: Vec<ApiKey> = rows
        .into_iter()
        .map(TryInto::try_into)
        .collect::<Result<_, _>>()?;
    add_last_use(conn, &mut keys)?;
    let deleted = deleted_applications(conn, &keys)?;
    let keys = keys.into_iter().map(|key| {
        match key.application_id.and_then(|id| deleted.get(id.as_bytes())) {
            Some(at) => key.with_deleted_application(*at),
            None => key,
        }
    });
    with_ancestors(conn, keys.collect())
}

pub(crate) fn with_ancestors(
    conn: &mut AnyConnection,
    keys: Vec<ApiKey>,
) -> Result<Vec<ApiKey>, Error> {
    // The state of a revoked key does not depend on its ancestors.
    let descendants = keys
        .iter()
        .filter(|key| key.created_by.is_some() && key.revoked_at.is_none());
    let ids: Vec<Vec<u8>> = descendants.map(|key| key.id.as_bytes().to_vec()).collect();
    if ids.is_empty() {
        return Ok(keys);
    }
    let mut lineages: HashMap<KeyId, Vec<KeyId>> = HashMap::new();
    let mut ancestor_ids = BTreeSet::new();
    for ids in ids.chunks(IDS) {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = key_ancestors::table
            .filter(key_ancestors::key_id.eq_any(ids))
            .order((key_ancestors::key_id, key_ancestors::distance.desc()))
            .select((key_ancestors::key_id, key_ancestors::ancestor_id))
            .load(conn)?;
        for (key, ancestor) in pairs {
            lineages
                .entry(rows::id(&key)?)
                .or_default()
                .push(rows::id(&ancestor)?);
            ancestor_ids.insert(ancestor);
        }
    }
    let ancestor_ids: Vec<Vec<u8>> = ancestor_ids.into_iter().collect();
    let mut ancestors: HashMap<KeyId, ApiKey> = HashMap::new();
    for ids in ancestor_ids.chunks(IDS) {
        let rows: Vec<KeyRow> = api_keys::table
            .filter(api_keys::id.eq_any(ids))
            .select(KeyRow::as_select())
            .load(conn)?;
        for row in rows {
            let key = ApiKey::try_from(row)?;
            ancestors.insert(key.id, key);
        }
    }
    keys.into_iter()
        .map(|key| {
            let lineage = match lineages.get(&key.id) {
                // Without its ancestors, the key would be authorized as a root key.
                Some(lineage) if lineage.last() == key.created_by.as_ref() => lineage,
                None if key.created_by.is_none() || key.revoked_at.is_some() => return Ok(key),
                _ => return Err(Error::corrupt("lineage")),
            };
            let lineage = lineage
                .iter()
                .map(|id| ancestors.get(id).ok_or_else(|| Error::corrupt("ancestor")));
            Ok(key.with_ancestors(lineage.collect::<Result<Vec<_>, _>>()?))
        })
        .collect()
}

/// Sets when keys were last used. Servers of the previous release write that time to the keys' rows, so the later of
/// the two is used.
fn add_last_use(conn: &mut AnyConnection, keys: &mut [ApiKey]) -> Result<(), Error> {
    for keys in keys.chunks_mut(IDS) {
        let ids: Vec<&[u8]> = keys
            .iter()
            .map(|key| key.id.as_bytes().as_slice())
            .collect();
        let used: Vec<(Vec<u8>, i64)> = key_last_used::table
            .filter(key_last_used::key_id.eq_any(ids))
            .select((key_last_used::key_id, key_last_used::last_used_at))
            .load(conn)?;
        let mut last: HashMap<KeyId, i64> = HashMap::with_capacity(used.len());
        for (key, at) in used {
            last.insert(rows::id(&key)?, at);
        }
        for key in keys {
            if let Some(at) = last.get(&key.id) {
                key.last_used_at = key.last_used_at.max(Some(rows::timestamp(*at)?));
            }
        }
    }
    Ok(())
}

/// Returns the deletion times of the keys' applications that were deleted.
fn deleted_applications(
    conn: &mut AnyConnection,
    keys: &[ApiKey],
) -> Result<HashMap<[u8; 16], Timestamp>, Error> {
    let unrevoked = keys.iter().filter(|key| key.revoked_at.is_none());
    let ids: BTreeSet<Vec<u8>> = unrevoked
        .filter_map(|key| Some(key.application_id?.as_bytes().to_vec()))
        .collect();
    let ids: Vec<Vec<u8>> = ids.into_iter().collect();
    let mut deleted = HashMap::new();
    for ids in ids.chunks(IDS) {
        let rows: Vec<(Vec<u8>, Option<i64>)> = applications::table
            .filter(applications::id.eq_any(ids))
            .filter(applications::deleted_at.is_not_null())
            .select((applications::id, applications::deleted_at))
            .load(conn)?;
        for (id, at) in rows {
            if let (Ok(id), Some(at)) = (id.try_into(), at) {
                deleted.insert(id, rows::timestamp(at)?);
            }
        }
    }
    Ok(deleted)
}

/// SQL: whether an ancestor or the application of the row of `api_keys` revokes it; see [`ApiKey::revocation`].
pub(crate) fn revoked_from_above() -> SqlLiteral<Bool> {
    sql(
        "(EXISTS (SELECT 1 FROM key_ancestors JOIN api_keys AS above ON above.id = key_ancestors.ancestor_id \
         WHERE key_ancestors.key_id = api_keys.id AND above.revoked_at IS NOT NULL) \
         OR EXISTS (SELECT 1 FROM applications WHERE applications.id = api_keys.application_id \
         AND applications.deleted_at IS NOT NULL \
         AND (api_keys.expires_at IS NULL OR api_keys.expires_at > applications.deleted_at)))",
    )
}

/// SQL: whether an ancestor of the row of `api_keys` has expired at `now`; see [`ApiKey::expiration`].
pub(crate) fn expired_from_above(now: Timestamp) -> SqlLiteral<Bool> {
    let now = rows::micros(now);
    sql(&format!(
        "EXISTS (SELECT 1 FROM key_ancestors JOIN api_keys AS above ON above.id = key_ancestors.ancestor_id \
         WHERE key_ancestors.key_id = api_keys.id \
         AND (above.expires_at <= above.rotated_at OR above.expires_at <= {now}))"
    ))
}

/// SQL: whether an ancestor of the row of `api_keys` is suspended; see [`ApiKey::suspension`].
pub(crate) fn suspended_from_above() -> SqlLiteral<Bool> {
    sql(
        "EXISTS (SELECT 1 FROM key_ancestors JOIN api_keys AS above ON above.id = key_ancestors.ancestor_id \
         WHERE key_ancestors.key_id = api_keys.id AND above.suspended_at IS NOT NULL)",
    )
}

/// SQL: whether the application of the row of `api_keys` is disabled.
pub(crate) fn application_disabled() -> SqlLiteral<Bool> {
    sql(
        "EXISTS (SELECT 1 FROM applications WHERE applications.id = api_keys.application_id AND NOT applications.is_enabled)",
    )
}
