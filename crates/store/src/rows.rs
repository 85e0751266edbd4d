//! Rows, and their conversion to and from the core's types. Values that cannot be converted are [`Error::Corrupt`]; the
//! log names the kind of data, never the value.

use std::str::FromStr;

use diesel::prelude::*;
use serde::Serialize;
use serde_json::json;
use tollkey_core::{
    AccountId, ApiKey, Application, Digest, Id, IpList, OperatingModel, RateLimit, Restrictions,
    Scope, ServiceKey, Timestamp,
    audit::{self, Actor, Draft, Entry, Head, Target},
    feature::Feature,
    metadata::Metadata,
    time::from_micros,
};

use crate::{
    Error,
    schema::{api_keys, applications, audit_log, service_keys},
};

pub(crate) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

pub(crate) fn timestamp(micros: i64) -> Result<Timestamp, Error> {
    from_micros(micros).ok_or_else(|| Error::corrupt("time"))
}

fn optional_timestamp(micros: Option<i64>) -> Result<Option<Timestamp>, Error> {
    micros.map(timestamp).transpose()
}

pub(crate) fn id<Of>(bytes: &[u8]) -> Result<Id<Of>, Error> {
    bytes
        .try_into()
        .map(Id::from_bytes)
        .map_err(|_| Error::corrupt("ID"))
}

fn optional_id<Of>(bytes: Option<&[u8]>) -> Result<Option<Id<Of>>, Error> {
    bytes.map(id).transpose()
}

pub(crate) fn account_id(text: &str) -> Result<AccountId, Error> {
    AccountId::stored(text).map_err(|_| Error::corrupt("account ID"))
}

/// Reads a stored text.
pub(crate) fn parse<T: FromStr>(text: &str, what: &'static str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::corrupt(what))
}

pub(crate) fn optional<T: FromStr>(
    text: Option<String>,
    what: &'static str,
) -> Result<Option<T>, Error> {
    text.map(|text| parse(&text, what)).transpose()
}

/// Returns the operating model of an account, which is the default without a stored row.
pub(crate) fn operating_model(text: Option<&str>) -> Result<OperatingModel, Error> {
    text.map_or(Ok(OperatingModel::default()), |text| {
        parse(text, "operating model")
    })
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, Error> {
    bytes
        .try_into()
        .map(Digest::from_bytes)
        .map_err(|_| Error::corrupt("digest"))
}

pub(crate) fn hash(bytes: &[u8]) -> Result<audit::Hash, Error> {
    bytes
        .try_into()
        .map(audit::Hash::from_bytes)
        .map_err(|_| Error::corrupt("hash"))
}

pub(crate) fn head(seq: i64, hash_bytes: &[u8]) -> Result<Head, Error> {
    Ok(Head {
        seq: unsigned(seq)?,
        hash: hash(hash_bytes)?,
    })
}

/// Converts a number that is never negative.
pub(crate) fn unsigned(number: i64) -> Result<u64, Error> {
    number.try_into().map_err(|_| Error::corrupt("number"))
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = applications, treat_none_as_default_value = false)]
pub(crate) struct ApplicationRow {
    id: Vec<u8>,
    account_id: String,
    name: String,
    description: Option<String>,
    is_enabled: bool,
    created_at: i64,
    deleted_at: Option<i64>,
}

impl ApplicationRow {
    pub(crate) fn deleted_at(&self) -> Result<Option<Timestamp>, Error> {
        optional_timestamp(self.deleted_at)
    }
}

impl From<&Application> for ApplicationRow {
    fn from(application: &Application) -> Self {
        Self {
            id: application.id.as_bytes().to_vec(),
            account_id: application.account_id.as_str().to_owned(),
            name: application.name.clone(),
            description: application.description.clone(),
            is_enabled: application.is_enabled,
            created_at: micros(application.created_at),
            deleted_at: None,
        }
    }
}

impl TryFrom<ApplicationRow> for Application {
    type Error = Error;

    fn try_from(row: ApplicationRow) -> Result<Self, Error> {
        Ok(Self {
            id: id(&row.id)?,
            account_id: account_id(&row.account_id)?,
            name: row.name,
            description: row.description,
            // Only verification reads deleted applications, and treats them as disabled.
            is_enabled: row.is_enabled && row.deleted_at.is_none(),
            created_at: timestamp(row.created_at)?,
        })
    }
}

/// A row of `api_keys` without the hash. The only list of its columns apart from `schema.rs`.
///
/// Reads select it, inserts write all of it, and [`AccountWriter::save_key`] updates the columns without `skip_update`:
/// those that use cases change. `last_used_at` is not one of them, because verification writes it concurrently.
///
/// With the hash the table has 26 columns, and diesel is built for at most 32 (`32-column-tables`). So a column that
/// few keys use, or that is written more often than the rest, belongs in a separate table keyed by `key_id`, like
/// `key_last_used`.
///
/// [`AccountWriter::save_key`]: crate::AccountWriter::save_key
#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = api_keys, treat_none_as_default_value = false, treat_none_as_null = true)]
pub(crate) struct KeyRow {
    id: Vec<u8>,
    #[diesel(skip_update)]
    account_id: String,
    #[diesel(skip_update)]
    application_id: Option<Vec<u8>>,
    name: String,
    #[diesel(skip_update)]
    family: String,
    #[diesel(skip_update)]
    mode: String,
    #[diesel(skip_update)]
    prefix: String,
    #[diesel(skip_update)]
    last4: String,
    scopes: String,
    merchants: Option<String>,
    features: Option<String>,
    allowed_ips: Option<String>,
    rate_limit_limit: Option<i32>,
    rate_limit_window_seconds: Option<i32>,
    expires_at: Option<i64>,
    metadata: Option<String>,
    #[diesel(skip_update)]
    created_at: i64,
    #[diesel(skip_update)]
    created_by: Option<Vec<u8>>,
    #[diesel(skip_update)]
    last_used_at: Option<i64>,
    suspended_at: Option<i64>,
    revoked_at: Option<i64>,
    revoked_reason: Option<String>,
    #[diesel(skip_update)]
    rotated_from: Option<Vec<u8>>,
    rotated_to: Option<Vec<u8>>,
    rotated_at: Option<i64>,
}

impl From<&ApiKey> for KeyRow {
    fn from(key: &ApiKey) -> Self {
        let restrictions = &key.restrictions;
        // Both numbers are far below i32::MAX; see RateLimit.
        let number = |number: std::num::NonZeroU32| i32::try_from(number.get()).unwrap_or(i32::MAX);
        let scopes: Vec<&str> = restrictions.scopes.iter().map(Scope::as_str).collect();
        Self {
            id: bytes(key.id),
            account_id: key.account_id.as_str().to_owned(),
            application_id: key.application_id.map(bytes),
            name: key.name.clone(),
            family: key.family.as_str().to_owned(),
            mode: key.mode.as_str().to_owned(),
            prefix: key.prefix.clone(),
            last4: key.last4.clone(),
            scopes: scopes.join(" "),
            merchants: restrictions.merchants.as_ref().map(json),
            features: restrictions.features.as_ref().map(json),
            allowed_ips: restrictions.allowed_ips.as_ref().map(json),
            rate_limit_limit: restrictions.rate_limit.map(|limit| number(limit.limit())),
            rate_limit_window_seconds: restrictions
                .rate_limit
                .map(|limit| number(limit.window_seconds())),
            expires_at: restrictions.expires_at.map(micros),
            metadata: key
                .metadata
                .as_ref()
                .map(|metadata| metadata.as_json().to_owned()),
            created_at: micros(key.created_at),
            created_by: key.created_by.map(bytes),
            last_used_at: key.last_used_at.map(micros),
            suspended_at: key.suspended_at.map(micros),
            revoked_at: key.revoked_at.map(micros),
            revoked_reason: key.revoked_reason.clone(),
            rotated_from: key.rotated_from.map(bytes),
            rotated_to: key.rotated_to.map(bytes),
            rotated_at: key.rotated_at.map(micros),
        }
    }
}

impl TryFrom<KeyRow> for ApiKey {
    type Error = Error;

    fn try_from(row: KeyRow) -> Result<Self, Error> {
        let rate_limit = match (row.rate_limit_limit, row.rate_limit_window_seconds) {
            (None, None) => None,
            (Some(limit), Some(window)) => Some(
                RateLimit::new(limit.into(), window.into())
                    .map_err(|_| Error::corrupt("rate limit"))?,
            ),
            _ => return Err(Error::corrupt("rate limit")),
        };
        let features = strings(row.features, "features")?.map(|names| {
            let features = names.iter().map(|name| parse::<Feature>(name, "features"));
            features.collect()
        });
        let networks = strings(row.allowed_ips, "IP allowlist")?;
        let allowed_ips = networks.map(|list| {
            IpList::parse(list.iter().map(String::as_str))
                .map_err(|_| Error::corrupt("IP allowlist"))
        });
        let metadata = row
            .metadata
            .map(|json| Metadata::parse(&json).map_err(|_| Error::corrupt("metadata")));
        let restrictions = Restrictions {
            scopes: row
                .scopes
                .split_ascii_whitespace()
                .map(|name| Scope::named(name.to_owned()))
                .collect(),
            merchants: strings(row.merchants, "merchants")?,
            features: features.transpose()?,
            allowed_ips: allowed_ips.transpose()?,
            rate_limit,
            expires_at: optional_timestamp(row.expires_at)?,
        };
        // Tollkey never writes an empty list. Such a row is rejected: an empty restriction would deny
        // everything, and a missing one would allow everything.
        if restrictions.merchants.as_ref().is_some_and(Vec::is_empty)
            || restrictions.features.as_ref().is_some_and(Vec::is_empty)
        {
            return Err(Error::corrupt("restriction"));
        }
        Ok(Self {
            id: id(&row.id)?,
            account_id: account_id(&row.account_id)?,
            application_id: optional_id(row.application_id.as_deref())?,
            name: row.name,
            family: parse(&row.family, "family")?,
            mode: parse(&row.mode, "mode")?,
            prefix: row.prefix,
            last4: row.last4,
            restrictions,
            metadata: metadata.transpose()?,
            created_at: timestamp(row.created_at)?,
            created_by: optional_id(row.created_by.as_deref())?,
            last_used_at: optional_timestamp(row.last_used_at)?,
            suspended_at: optional_timestamp(row.suspended_at)?,
            revoked_at: optional_timestamp(row.revoked_at)?,
            revoked_reason: row.revoked_reason,
            rotated_from: optional_id(row.rotated_from.as_deref())?,
            rotated_to: optional_id(row.rotated_to.as_deref())?,
            rotated_at: optional_timestamp(row.rotated_at)?,
            inherited: None,
        })
    }
}

fn bytes<Of>(id: Id<Of>) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// Returns a list as a JSON array of strings.
fn json(list: &impl Serialize) -> String {
    json!(list).to_string()
}

fn strings(json: Option<String>, what: &'static str) -> Result<Option<Vec<String>>, Error> {
    json.map(|json| serde_json::from_str(&json).map_err(|_| Error::corrupt(what)))
        .transpose()
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_log, treat_none_as_default_value = false)]
pub(crate) struct EntryRow {
    pub(crate) account_id: String,
    pub(crate) seq: i64,
    id: Vec<u8>,
    occurred_at: i64,
    action: String,
    actor_kind: String,
    actor_id: String,
    target_kind: String,
    target_id: String,
    target_mode: Option<String>,
    request_id: Option<String>,
    ip: Option<String>,
    changes: String,
    hash: Vec<u8>,
}

impl TryFrom<&Entry> for EntryRow {
    type Error = Error;

    fn try_from(Entry { draft, seq, hash }: &Entry) -> Result<Self, Error> {
        Ok(Self {
            account_id: draft.account_id.as_str().to_owned(),
            seq: i64::try_from(*seq).map_err(|_| Error::corrupt("audit head"))?,
            id: bytes(draft.id),
            occurred_at: micros(draft.occurred_at),
            action: draft.action.as_str().to_owned(),
            actor_kind: draft.actor.kind.as_str().to_owned(),
            actor_id: draft.actor.id.clone(),
            target_kind: draft.target.kind.as_str().to_owned(),
            target_id: draft.target.id.clone(),
            target_mode: draft.target.mode.map(|mode| mode.as_str().to_owned()),
            request_id: draft.request_id.clone(),
            ip: draft.ip.map(|ip| ip.to_string()),
            changes: draft.changes.to_string(),
            hash: hash.as_bytes().to_vec(),
        })
    }
}

impl TryFrom<EntryRow> for Entry {
    type Error = Error;

    fn try_from(row: EntryRow) -> Result<Self, Error> {
        const WHAT: &str = "audit entry";
        let draft = Draft {
            id: id(&row.id)?,
            account_id: account_id(&row.account_id)?,
            occurred_at: timestamp(row.occurred_at)?,
            action: parse(&row.action, WHAT)?,
            actor: Actor {
                kind: parse(&row.actor_kind, WHAT)?,
                id: row.actor_id,
            },
            target: Target {
                kind: parse(&row.target_kind, WHAT)?,
                id: row.target_id,
                mode: optional(row.target_mode, "mode")?,
            },
            request_id: row.request_id,
            ip: optional(row.ip, WHAT)?,
            changes: parse(&row.changes, WHAT)?,
        };
        // The chain's hash covers the parsed value. Other text with the same value, such as a repeated field or white
        // space, was not written by Tollkey and could be read differently.
        let written = draft.changes.to_string();
        if written != row.changes {
            return Err(Error::corrupt(WHAT));
        }
        Ok(Self {
            draft,
            seq: unsigned(row.seq)?,
            hash: hash(&row.hash)?,
        })
    }
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = service_keys, treat_none_as_default_value = false)]
pub(crate) struct ServiceKeyRow {
    id: Vec<u8>,
    name: String,
    last4: String,
    created_at: i64,
    revoked_at: Option<i64>,
}

impl From<&ServiceKey> for ServiceKeyRow {
    fn from(key: &ServiceKey) -> Self {
        Self {
            id: bytes(key.id),
            name: key.name.clone(),
            last4: key.last4.clone(),
            created_at: micros(key.created_at),
            revoked_at: key.revoked_at.map(micros),
        }
    }
}

impl TryFrom<ServiceKeyRow> for ServiceKey {
    type Error = Error;

    fn try_from(row: ServiceKeyRow) -> Result<Self, Error> {
        Ok(Self {
            id: id(&row.id)?,
            name: row.name,
            last4: row.last4,
            created_at: timestamp(row.created_at)?,
            revoked_at: optional_timestamp(row.revoked_at)?,
        })
    }
}
