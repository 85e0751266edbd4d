//! The keys of an account and their usage.

use diesel::{
    define_sql_function,
    dsl::{exists, not},
    prelude::*,
    sql_types::Text,
};
use tollkey_core::{
    ApiKey, ApplicationId, Denial, Digest, Family, KeyId, Mode, Status, Timestamp, change::Changed,
    usage::parse_outcome,
};

use super::{AccountReader, AccountWriter, Page, bound_search, offset};
use crate::{
    Error,
    connection::{AnyConnection, multi::MultiBackend},
    lineage::{
        self, application_disabled, expired_from_above, revoked_from_above, suspended_from_above,
    },
    rows::{self, KeyRow},
    schema::{api_keys, key_ancestors, key_usage},
};

/// The position of a key in a list, greater for newer keys. The next page begins after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyCursor {
    pub created_at: Timestamp,
    pub id: KeyId,
}

impl From<&ApiKey> for KeyCursor {
    fn from(key: &ApiKey) -> Self {
        Self {
            created_at: key.created_at,
            id: key.id,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct KeyFilter<'a> {
    pub families: &'a [Family],
    pub mode: Option<Mode>,
    pub application: Option<ApplicationId>,
    /// Only keys that have this status at this time, as defined by [`ApiKey::status`].
    pub status: Option<(Status, Timestamp)>,
    /// `false` for only the keys of disabled applications, `true` for all other keys.
    pub application_enabled: Option<bool>,
    /// Only keys with this text in their name (ignoring case; on SQLite only that of ASCII letters), or with these last
    /// four characters or this ID.
    pub text: Option<&'a str>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// Newest first. Can be fewer than the limit, or none, even if the list continues: see [`AccountReader::keys`].
    pub keys: Vec<ApiKey>,
    pub next: Option<KeyCursor>,
}

/// Maximum number of rows that one page examines, so that no filter reads all keys of a large account: SQLite cannot
/// interrupt a query, and its connection serves nothing else meanwhile.
pub const EXAMINED_KEYS: u32 = 5_000;

/// How many verifications of a key had one outcome on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayUsage {
    /// The day, in days since 1970-01-01 (UTC).
    pub day: i32,
    /// Why the key was denied; `None` if it was valid.
    pub outcome: Option<Denial>,
    pub count: u64,
}

define_sql_function! {
    /// SQLite converts only ASCII letters.
    fn lower(text: Text) -> Text;
}

/// Escapes the wildcards of `LIKE`.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('%', "\\%")
        .replace('_', "\\_")
}

type KeyQuery<'a> = api_keys::BoxedQuery<'a, MultiBackend>;

/// The states that keys of an account can inherit without having them in their own rows. If no state can be
/// inherited, lists use the indexes on the rows' own states.
#[derive(Debug, Clone, Copy, Default)]
struct InheritedStates {
    /// The account has a revocation that is not recorded on all descendants yet.
    revoked: bool,
    /// The account has a suspended key with descendants.
    suspended: bool,
}

/// Restricts a query to keys in a status, as defined by [`ApiKey::status`].
fn of_status(
    query: KeyQuery<'_>,
    status: Status,
    now: Timestamp,
    inherited: InheritedStates,
) -> KeyQuery<'_> {
    use api_keys::{created_by, expires_at, revoked_at, rotated_at, suspended_at};
    if status == Status::Revoked {
        let own = revoked_at.is_not_null();
        return if inherited.revoked {
            query.filter(own.or(revoked_from_above()))
        } else {
            query.filter(own)
        };
    }
    let mut query = query.filter(revoked_at.is_null());
    if inherited.revoked {
        query = query.filter(not(revoked_from_above()));
    }
    let expired_by_ancestor = created_by.is_not_null().and(expired_from_above(now));
    let now = rows::micros(now);
    if status == Status::Expired {
        return query.filter(
            expires_at
                .le(now)
                .or(expires_at.le(rotated_at))
                .or(expired_by_ancestor),
        );
    }
    let unexpired = expires_at
        .gt(now)
        .and(rotated_at.is_null().or(expires_at.gt(rotated_at)));
    let query = query
        .filter(expires_at.is_null().or(unexpired))
        .filter(not(expired_by_ancestor));
    match (status == Status::Suspended, inherited.suspended) {
        (true, false) => query.filter(suspended_at.is_not_null()),
        (true, true) => query.filter(suspended_at.is_not_null().or(suspended_from_above())),
        (false, false) => query.filter(suspended_at.is_null()),
        (false, true) => query
            .filter(suspended_at.is_null())
            .filter(not(suspended_from_above())),
    }
}

/// An index that a list reads, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IndexScan {
    Application(ApplicationId),
    Revoked,
    Suspended,
    Family(Family),
    Account,
}

impl IndexScan {
    /// Returns the scans for a filter: one, or one for each of several families.
    fn for_filter(filter: &KeyFilter<'_>, inherited: InheritedStates) -> Vec<Self> {
        if let Some(application) = filter.application {
            return vec![Self::Application(application)];
        }
        match filter.status {
            // These indexes contain only the rows' own states.
            Some((Status::Revoked, _)) if !inherited.revoked => vec![Self::Revoked],
            Some((Status::Suspended, _)) if !inherited.suspended => vec![Self::Suspended],
            _ if filter.families.len() < Family::ALL.len() => {
                filter.families.iter().copied().map(Self::Family).collect()
            }
            _ => vec![Self::Account],
        }
    }

    fn restrict(self, query: KeyQuery<'_>) -> KeyQuery<'_> {
        match self {
            Self::Application(application) => {
                query.filter(api_keys::application_id.eq(application.as_bytes().to_vec()))
            }
            Self::Revoked => query.filter(api_keys::revoked_at.is_not_null()),
            Self::Suspended => query.filter(api_keys::suspended_at.is_not_null()),
            Self::Family(family) => query.filter(api_keys::family.eq(family.as_str())),
            Self::Account => query,
        }
    }

    /// Returns whether the filter excludes keys of this index.
    fn has_residual(self, filter: &KeyFilter<'_>) -> bool {
        // All keys of an application have the same family.
        let families = !matches!(self, Self::Application(_) | Self::Family(_))
            && filter.families.len() < Family::ALL.len();
        let status = filter.status.is_some() && self != Self::Revoked;
        families
            || status
            || filter.application_enabled.is_some()
            || filter.mode.is_some()
            || filter.text.is_some()
    }
}

fn in_families<'a>(query: KeyQuery<'a>, families: &[Family]) -> KeyQuery<'a> {
    // Without this condition, listing all families can use a better index.
    if families.len() < Family::ALL.len() {
        query.filter(api_keys::family.eq_any(names(families)))
    } else {
        query
    }
}

/// Applies the conditions of a filter that the scan does not already guarantee.
fn filtered<'a>(
    mut query: KeyQuery<'a>,
    filter: &KeyFilter<'_>,
    scan: Option<IndexScan>,
    inherited: InheritedStates,
) -> KeyQuery<'a> {
    if !matches!(scan, Some(IndexScan::Family(_))) {
        query = in_families(query, filter.families);
    }
    if let Some(mode) = filter.mode {
        query = query.filter(api_keys::mode.eq(mode.as_str()));
    }
    if let Some(application) = filter.application {
        query = query.filter(api_keys::application_id.eq(application.as_bytes().to_vec()));
    }
    if let Some((status, now)) = filter.status {
        query = of_status(query, status, now, inherited);
    }
    query = match filter.application_enabled {
        None => query,
        Some(false) => query.filter(application_disabled()),
        Some(true) => query.filter(not(application_disabled())),
    };
    if let Some(text) = filter.text {
        let pattern = lower(format!("%{}%", escaped(text)));
        let named = lower(api_keys::name).like(pattern).escape('\\');
        query = query.filter(named.or(api_keys::last4.eq(text.to_owned())));
    }
    query
}

/// The condition that a key's own row has no expiration before this time.
#[diesel::dsl::auto_type]
fn is_unexpired(now: Timestamp) -> _ {
    let now: i64 = rows::micros(now);
    let own = api_keys::expires_at.gt(now);
    api_keys::expires_at.is_null().or(own)
}

fn names(families: &[Family]) -> Vec<&'static str> {
    families.iter().map(|family| family.as_str()).collect()
}

impl AccountReader<'_> {
    /// Returns the key with this ID, or `None` if it does not exist or has none of these families.
    pub fn key(&mut self, families: &[Family], id: &KeyId) -> Result<Option<ApiKey>, Error> {
        let row: Option<KeyRow> = api_keys::table
            .find(id.as_bytes().as_slice())
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::family.eq_any(names(families)))
            .select(KeyRow::as_select())
            .first(self.conn)
            .optional()?;
        Ok(lineage::keys(self.conn, row.into_iter().collect())?.pop())
    }

    fn inherited_states(&mut self) -> Result<InheritedStates, Error> {
        let suspended = api_keys::table
            .inner_join(key_ancestors::table.on(key_ancestors::ancestor_id.eq(api_keys::id)))
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::suspended_at.is_not_null())
            .filter(api_keys::family.eq(Family::Secret.as_str())); // no other family creates keys
        Ok(InheritedStates {
            revoked: self.has_pending_revocations()?,
            suspended: diesel::select(exists(suspended)).get_result(self.conn)?,
        })
    }

    /// Returns a page of the keys that match a filter, newest first, after a cursor: `limit` keys or, if no index
    /// serves the filter, the matches among [`EXAMINED_KEYS`] rows. Following [`KeyPage::next`] visits each key once.
    /// If the filter's text is the ID of a matching key, the page has only that key.
    ///
    /// # Errors
    /// [`Error::Busy`] on PostgreSQL if a search takes over 2 s.
    pub fn keys(
        &mut self,
        filter: &KeyFilter<'_>,
        after: Option<KeyCursor>,
        limit: u32,
    ) -> Result<KeyPage, Error> {
        let inherited = if filter.status.is_some() {
            self.inherited_states()?
        } else {
            InheritedStates::default()
        };
        if let Some(id) = filter.text.and_then(|text| text.parse::<KeyId>().ok()) {
            let others = KeyFilter {
                text: None,
                ..filter.clone()
            };
            let rows = filtered(self.keys_after(None), &others, None, inherited)
                .filter(api_keys::id.eq(id.as_bytes().to_vec()))
                .select(KeyRow::as_select())
                .load(self.conn)?;
            let keys = lineage::keys(self.conn, rows)?;
            if !keys.is_empty() {
                let keys = if after.is_none() { keys } else { Vec::new() };
                return Ok(KeyPage { keys, next: None });
            }
        }
        let scans = IndexScan::for_filter(filter, inherited);
        let examined = EXAMINED_KEYS / u32::try_from(scans.len().max(1)).unwrap_or(1);
        let mut keys: Vec<ApiKey> = Vec::new();
        let mut end: Option<KeyCursor> = None;
        for scan in scans {
            let mut query = filtered(
                scan.restrict(self.keys_after(after)),
                filter,
                Some(scan),
                inherited,
            );
            if scan.has_residual(filter) {
                bound_search(self.conn)?;
                let last: Option<(i64, Vec<u8>)> = scan
                    .restrict(self.keys_after(after))
                    .order((api_keys::created_at.desc(), api_keys::id.desc()))
                    .offset(i64::from(examined) - 1)
                    .limit(1)
                    .select((api_keys::created_at, api_keys::id))
                    .first(self.conn)
                    .optional()?;
                if let Some((created_at, id)) = last {
                    let last = KeyCursor {
                        created_at: rows::timestamp(created_at)?,
                        id: rows::id(&id)?,
                    };
                    query = query
                        .filter(api_keys::created_at.ge(created_at))
                        .filter(api_keys::created_at.gt(created_at).or(api_keys::id.ge(id)));
                    end = end.max(Some(last));
                }
            }
            let query = query
                .order((api_keys::created_at.desc(), api_keys::id.desc()))
                .limit(i64::from(limit) + 1)
                .select(KeyRow::as_select());
            let rows = query.load(self.conn)?;
            keys.append(&mut lineage::keys(self.conn, rows)?);
        }
        keys.sort_by_key(|key| std::cmp::Reverse(KeyCursor::from(key)));
        // Each scan has read nothing older than its end. Keys older than the newest of these ends are left to
        // the next page, because this page may lack keys of other scans that belong between them.
        if let Some(end) = end {
            keys.retain(|key| KeyCursor::from(key) >= end);
        }
        let limit = limit as usize;
        let next = match keys.len() > limit {
            true => limit
                .checked_sub(1)
                .map(|last| KeyCursor::from(&keys[last])),
            false => end,
        };
        keys.truncate(limit);
        Ok(KeyPage { keys, next })
    }

    /// Returns a query of the account's keys after a cursor, unordered.
    fn keys_after<'q>(&self, after: Option<KeyCursor>) -> KeyQuery<'q> {
        let query = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str().to_owned()))
            .into_boxed::<MultiBackend>();
        let Some(KeyCursor { created_at, id }) = after else {
            return query;
        };
        let at = rows::micros(created_at);
        // With this form, the database begins to read the index at the cursor. With `created_at < at OR ...`,
        // each page would read all previous pages again.
        query.filter(api_keys::created_at.le(at)).filter(
            api_keys::created_at
                .lt(at)
                .or(api_keys::id.lt(id.as_bytes().to_vec())),
        )
    }

    /// Returns a page of the keys of an application, newest first, including revoked ones. Pages count from 1.
    pub fn application_keys(
        &mut self,
        application: &ApplicationId,
        page: u32,
        limit: u32,
    ) -> Result<Page<ApiKey>, Error> {
        let own = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::application_id.eq(application.as_bytes().as_slice()));
        let total: i64 = own.count().get_result(self.conn)?;
        let rows: Vec<KeyRow> = own
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(limit.into())
            .offset(offset(page, limit))
            .select(KeyRow::as_select())
            .load(self.conn)?;
        Ok(Page {
            items: lineage::keys(self.conn, rows)?,
            total: rows::unsigned(total)?,
        })
    }

    /// Returns the newest keys of each application, at most `most_each` per application, in the order of the
    /// applications.
    pub fn keys_of_applications(
        &mut self,
        applications: &[ApplicationId],
        most_each: u32,
    ) -> Result<Vec<ApiKey>, Error> {
        let mut all = Vec::new();
        // One query for each application, along the index: a single one would read every revoked key of the
        // applications.
        for application in applications {
            let rows: Vec<KeyRow> = api_keys::table
                .filter(api_keys::account_id.eq(self.account.as_str()))
                .filter(api_keys::application_id.eq(application.as_bytes().as_slice()))
                .order((api_keys::created_at.desc(), api_keys::id.desc()))
                .limit(most_each.into())
                .select(KeyRow::as_select())
                .load(self.conn)?;
            all.extend(rows);
        }
        lineage::keys(self.conn, all)
    }

    /// Returns how many keys of an application are neither revoked nor expired. Exact only if the transaction has
    /// called [`AccountWriter::lock_application`].
    pub fn count_usable(
        &mut self,
        application: &ApplicationId,
        now: Timestamp,
    ) -> Result<u64, Error> {
        let count: i64 = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::application_id.eq(application.as_bytes().as_slice()))
            .filter(api_keys::revoked_at.is_null())
            .filter(is_unexpired(now))
            .count()
            .get_result(self.conn)?;
        rows::unsigned(count)
    }

    /// Returns how many keys of these families are neither revoked nor expired, inherited states included. Exact only
    /// if the transaction has called [`AccountWriter::lock`].
    pub fn count_usable_of(&mut self, families: &[Family], now: Timestamp) -> Result<u64, Error> {
        let ended_by_ancestor = api_keys::created_by
            .is_not_null()
            .and(revoked_from_above().or(expired_from_above(now)));
        let count: i64 = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::family.eq_any(names(families)))
            .filter(api_keys::revoked_at.is_null())
            .filter(not(ended_by_ancestor))
            .filter(is_unexpired(now))
            .count()
            .get_result(self.conn)?;
        rows::unsigned(count)
    }

    /// Returns the daily counts of a key's verifications by outcome since a day, newest day first.
    pub fn usage(&mut self, key: &KeyId, since_day: i32) -> Result<Vec<DayUsage>, Error> {
        let rows: Vec<(i32, String, i64)> = key_usage::table
            .inner_join(api_keys::table.on(api_keys::id.eq(key_usage::key_id)))
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(key_usage::key_id.eq(key.as_bytes().as_slice()))
            .filter(key_usage::day.ge(since_day))
            .order((key_usage::day.desc(), key_usage::outcome))
            .select((key_usage::day, key_usage::outcome, key_usage::count))
            .load(self.conn)?;
        rows.into_iter()
            .map(|(day, outcome, count)| {
                Ok(DayUsage {
                    day,
                    outcome: parse_outcome(&outcome).map_err(|_| Error::corrupt("outcome"))?,
                    count: rows::unsigned(count)?,
                })
            })
            .collect()
    }
}

impl AccountWriter<'_> {
    /// Returns the key and locks it until the end of the transaction, for a caller that changes it.
    pub fn lock_key(&mut self, families: &[Family], id: &KeyId) -> Result<Option<ApiKey>, Error> {
        if let AnyConnection::Postgres(conn) = &mut *self.reader.conn {
            api_keys::table
                .find(id.as_bytes().as_slice())
                .filter(api_keys::account_id.eq(self.reader.account.as_str()))
                .select(api_keys::created_at)
                .for_update()
                .first::<i64>(conn)
                .optional()?;
        }
        self.key(families, id)
    }

    /// Verifiers need no eviction: they do not cache unknown keys. Fails with [`Error::NotFound`] if the key belongs to
    /// another account, [`Error::Other`] if its application does.
    pub fn insert_key(&mut self, key: &ApiKey, digest: &Digest) -> Result<(), Error> {
        if key.account_id != *self.account {
            return Err(Error::NotFound);
        }
        diesel::insert_into(api_keys::table)
            .values((
                KeyRow::from(key),
                api_keys::digest.eq(digest.as_bytes().as_slice()),
            ))
            .execute(self.conn)?;
        Ok(())
    }

    /// Updates the fields of a key that use cases change: its name, restrictions, metadata, suspension,
    /// revocation and successor. Does not write `last_used_at`, which usage may have updated meanwhile, nor
    /// fields that never change. Verifiers evict the key and its descendants.
    pub fn save_key(&mut self, key: &ApiKey) -> Result<(), Error> {
        let written = diesel::update(
            api_keys::table
                .find(key.id.as_bytes().as_slice())
                .filter(api_keys::account_id.eq(self.account.as_str())),
        )
        .set(KeyRow::from(key))
        .execute(self.conn)?;
        if written == 0 {
            return Err(Error::NotFound);
        }
        if self.has_descendants(&key.id)? {
            self.descendants_changed();
        } else {
            self.changed(Changed::Key(key.id));
        }
        Ok(())
    }

    /// Returns the key after locking it and its ancestors until the end of the transaction, for a caller that creates a
    /// child key: no revocation of them can happen in between. `within` gets the number of ancestors before they are
    /// locked and can return an error to stop.
    pub fn lock_lineage<E: From<Error>>(
        &mut self,
        families: &[Family],
        id: &KeyId,
        within: impl FnOnce(usize) -> Result<(), E>,
    ) -> Result<Option<ApiKey>, E> {
        // Ancestors never change, so they can be read before they are locked.
        let mut ids: Vec<Vec<u8>> = key_ancestors::table
            .filter(key_ancestors::key_id.eq(id.as_bytes().as_slice()))
            .select(key_ancestors::ancestor_id)
            .load(self.conn)
            .map_err(Error::from)?;
        within(ids.len())?;
        ids.push(id.as_bytes().to_vec());
        if let AnyConnection::Postgres(conn) = &mut *self.reader.conn {
            api_keys::table
                .filter(api_keys::account_id.eq(self.reader.account.as_str()))
                .filter(api_keys::id.eq_any(ids))
                .order(api_keys::id) // the same order in every transaction, to avoid deadlocks
                .select(api_keys::created_at)
                .for_update()
                .load::<i64>(conn)
                .map_err(Error::from)?;
        }
        Ok(self.key(families, id)?)
    }
}
