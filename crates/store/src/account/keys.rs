//! The keys of an account, and how they were used.

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

use super::{AccountReader, AccountWriter, Paged, bound_search, offset};
use crate::{
    Error,
    connection::{AnyConnection, multi::MultiBackend},
    lineage::{
        self, application_disabled, expired_from_above, revoked_from_above, suspended_from_above,
    },
    rows::{self, KeyRow},
    schema::{api_keys, key_ancestors, key_usage},
};

/// Where a list of keys goes on: behind this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyCursor {
    /// When the last key seen was made.
    pub created_at: Timestamp,
    /// Its id.
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

/// Which keys of an account a list is about.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter<'a> {
    /// Of these families.
    pub families: &'a [Family],
    /// Of this mode.
    pub mode: Option<Mode>,
    /// Of this application.
    pub application: Option<ApplicationId>,
    /// In this status at that time, as [`ApiKey::status`] has it.
    pub status: Option<(Status, Timestamp)>,
    /// `false` for the keys of disabled applications, `true` for all other keys.
    pub application_enabled: Option<bool>,
    /// With this in their name, whatever its case (in SQLite that of ASCII letters), or as their last four characters or their id.
    pub text: Option<&'a str>,
}

/// A page of a list of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys, newest first. There may be fewer than asked for, or none, although the list goes on: see
    /// [`AccountReader::keys`].
    pub keys: Vec<ApiKey>,
    /// Where the list goes on; `None` at its end.
    pub next: Option<KeyCursor>,
}

/// How many rows of keys one page examines at most, so that no filter reads all keys of a large account: SQLite cannot
/// interrupt a query, and meanwhile its connection serves nothing else.
pub const EXAMINED_KEYS: u32 = 5_000;

/// How often a key was verified with one outcome on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayUsage {
    /// The day, in days since 1970-01-01 (UTC).
    pub day: i32,
    /// Why it was denied; `None` when it was valid.
    pub outcome: Option<Denial>,
    /// How often.
    pub count: u64,
}

define_sql_function! {
    /// The text in lower case. SQLite knows only ASCII letters.
    fn lower(text: Text) -> Text;
}

/// A text that `LIKE` takes for itself.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('%', "\\%")
        .replace('_', "\\_")
}

type KeyQuery<'a> = api_keys::BoxedQuery<'a, MultiBackend>;

/// What the keys of an account can have from above that is not in their own rows. Where an account has none of it, its
/// lists stay on the indexes of the rows' own states.
#[derive(Debug, Clone, Copy, Default)]
struct FromAbove {
    /// A revocation that is not recorded on all of its keys yet.
    revoked: bool,
    /// A suspended key that has descendants.
    suspended: bool,
}

/// Only keys in a status, by the rule of [`ApiKey::status`].
fn of_status(
    query: KeyQuery<'_>,
    status: Status,
    now: Timestamp,
    above: FromAbove,
) -> KeyQuery<'_> {
    use api_keys::{created_by, expires_at, revoked_at, rotated_at, suspended_at};
    if status == Status::Revoked {
        let own = revoked_at.is_not_null();
        return if above.revoked {
            query.filter(own.or(revoked_from_above()))
        } else {
            query.filter(own)
        };
    }
    let mut query = query.filter(revoked_at.is_null());
    if above.revoked {
        query = query.filter(not(revoked_from_above()));
    }
    let expired_above = created_by.is_not_null().and(expired_from_above(now));
    let now = rows::micros(now);
    if status == Status::Expired {
        return query.filter(
            expires_at
                .le(now)
                .or(expires_at.le(rotated_at))
                .or(expired_above),
        );
    }
    let lasts = expires_at
        .gt(now)
        .and(rotated_at.is_null().or(expires_at.gt(rotated_at)));
    let query = query
        .filter(expires_at.is_null().or(lasts))
        .filter(not(expired_above));
    match (status == Status::Suspended, above.suspended) {
        (true, false) => query.filter(suspended_at.is_not_null()),
        (true, true) => query.filter(suspended_at.is_not_null().or(suspended_from_above())),
        (false, false) => query.filter(suspended_at.is_null()),
        (false, true) => query
            .filter(suspended_at.is_null())
            .filter(not(suspended_from_above())),
    }
}

/// An index that a list goes along, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// The keys of an application.
    Application(ApplicationId),
    /// Revoked keys.
    Revoked,
    /// Suspended keys.
    Suspended,
    /// The keys of a family.
    Family(Family),
    /// All keys of the account.
    Account,
}

impl Walk {
    /// The walks that a list consists of: one, or one for each of several families.
    fn of(filter: &KeyFilter<'_>, above: FromAbove) -> Vec<Self> {
        if let Some(application) = filter.application {
            return vec![Self::Application(application)];
        }
        match filter.status {
            // These indexes have only what the rows themselves say.
            Some((Status::Revoked, _)) if !above.revoked => vec![Self::Revoked],
            Some((Status::Suspended, _)) if !above.suspended => vec![Self::Suspended],
            _ if filter.families.len() < Family::ALL.len() => {
                filter.families.iter().copied().map(Self::Family).collect()
            }
            _ => vec![Self::Account],
        }
    }

    /// Only the keys of this index.
    fn enter(self, query: KeyQuery<'_>) -> KeyQuery<'_> {
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

    /// Whether the filter rejects keys of this index.
    fn has_residual(self, filter: &KeyFilter<'_>) -> bool {
        // The keys of an application are of one family, the keys of a family too.
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
    // All families need no condition, and are served by the better index then.
    if families.len() < Family::ALL.len() {
        query.filter(api_keys::family.eq_any(names(families)))
    } else {
        query
    }
}

/// Only the keys that a filter selects, as far as a walk does not select them already.
fn filtered<'a>(
    mut query: KeyQuery<'a>,
    filter: &KeyFilter<'_>,
    walk: Option<Walk>,
    above: FromAbove,
) -> KeyQuery<'a> {
    if !matches!(walk, Some(Walk::Family(_))) {
        query = in_families(query, filter.families);
    }
    if let Some(mode) = filter.mode {
        query = query.filter(api_keys::mode.eq(mode.as_str()));
    }
    if let Some(application) = filter.application {
        query = query.filter(api_keys::application_id.eq(application.as_bytes().to_vec()));
    }
    if let Some((status, now)) = filter.status {
        query = of_status(query, status, now, above);
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

/// The order of a list; the newest key has the greatest place.
fn place(cursor: &KeyCursor) -> (i64, [u8; 16]) {
    (rows::micros(cursor.created_at), *cursor.id.as_bytes())
}

fn names(families: &[Family]) -> Vec<&'static str> {
    families.iter().map(|family| family.as_str()).collect()
}

impl AccountReader<'_> {
    /// The key with this id, if it is of one of these families: a surface does not see those of the others.
    ///
    /// # Errors
    /// [`Error`].
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

    /// Whether the account has a revocation that is not recorded on all of its keys yet, or a suspended key with
    /// descendants.
    fn states_from_above(&mut self) -> Result<FromAbove, Error> {
        let suspended = api_keys::table
            .inner_join(key_ancestors::table.on(key_ancestors::ancestor_id.eq(api_keys::id)))
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::suspended_at.is_not_null())
            .filter(api_keys::family.eq(Family::Secret.as_str())); // no other family creates keys
        Ok(FromAbove {
            revoked: self.has_pending_revocations()?,
            suspended: diesel::select(exists(suspended)).get_result(self.conn)?,
        })
    }

    /// A page of the keys that a filter selects, newest first, after a cursor: `limit` keys, or those among
    /// [`EXAMINED_KEYS`] rows where no index serves the filter. Following [`KeyPage::next`] finds each key once. A text
    /// that is the ID of one of these keys selects that key alone, without examining others.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Busy`] on PostgreSQL when a search takes over 2 s.
    pub fn keys(
        &mut self,
        filter: &KeyFilter<'_>,
        after: Option<KeyCursor>,
        limit: u32,
    ) -> Result<KeyPage, Error> {
        let above = if filter.status.is_some() {
            self.states_from_above()?
        } else {
            FromAbove::default()
        };
        if let Some(id) = filter.text.and_then(|text| text.parse::<KeyId>().ok()) {
            let query = filtered(
                self.keys_after(None),
                &KeyFilter {
                    text: None,
                    ..filter.clone()
                },
                None,
                above,
            )
            .filter(api_keys::id.eq(id.as_bytes().to_vec()));
            let rows = query.select(KeyRow::as_select()).load(self.conn)?;
            let keys = lineage::keys(self.conn, rows)?;
            if !keys.is_empty() {
                let keys = if after.is_none() { keys } else { Vec::new() };
                return Ok(KeyPage { keys, next: None });
            }
        }
        let walks = Walk::of(filter, above);
        let examined = EXAMINED_KEYS / u32::try_from(walks.len().max(1)).unwrap_or(1);
        let mut keys: Vec<ApiKey> = Vec::new();
        let mut end: Option<KeyCursor> = None;
        for walk in walks {
            let mut query = filtered(
                walk.enter(self.keys_after(after)),
                filter,
                Some(walk),
                above,
            );
            if walk.has_residual(filter) {
                bound_search(self.conn)?;
                let last: Option<(i64, Vec<u8>)> = walk
                    .enter(self.keys_after(after))
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
                    if end.is_none_or(|end| place(&last) > place(&end)) {
                        end = Some(last);
                    }
                }
            }
            let query = query
                .order((api_keys::created_at.desc(), api_keys::id.desc()))
                .limit(i64::from(limit) + 1)
                .select(KeyRow::as_select());
            let rows = query.load(self.conn)?;
            keys.append(&mut lineage::keys(self.conn, rows)?);
        }
        keys.sort_by_key(|key| std::cmp::Reverse(place(&KeyCursor::from(key))));
        // Beyond the newest end of the walks, some keys of the other walks have not been read.
        if let Some(end) = end {
            keys.retain(|key| place(&KeyCursor::from(key)) >= place(&end));
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

    /// The account's keys after a cursor, in no order.
    fn keys_after<'q>(&self, after: Option<KeyCursor>) -> KeyQuery<'q> {
        let query = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str().to_owned()))
            .into_boxed::<MultiBackend>();
        let Some(KeyCursor { created_at, id }) = after else {
            return query;
        };
        let at = rows::micros(created_at);
        // Written in this way the index is entered where the page before ended. With `created_at < at OR ...` each page
        // reads all pages before it again.
        query.filter(api_keys::created_at.le(at)).filter(
            api_keys::created_at
                .lt(at)
                .or(api_keys::id.lt(id.as_bytes().to_vec())),
        )
    }

    /// A page of the keys of an application, newest first, revoked ones included. Pages count from 1.
    ///
    /// # Errors
    /// [`Error`].
    pub fn application_keys(
        &mut self,
        application: &ApplicationId,
        page: u32,
        limit: u32,
    ) -> Result<Paged<ApiKey>, Error> {
        let total: i64 = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::application_id.eq(application.as_bytes().as_slice()))
            .count()
            .get_result(self.conn)?;
        let rows: Vec<KeyRow> = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::application_id.eq(application.as_bytes().as_slice()))
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(limit.into())
            .offset(offset(page, limit))
            .select(KeyRow::as_select())
            .load(self.conn)?;
        Ok(Paged {
            items: lineage::keys(self.conn, rows)?,
            total: rows::unsigned(total)?,
        })
    }

    /// The newest keys of each of these applications, at most `most_each` of each, in the order of the applications.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keys_of_applications(
        &mut self,
        applications: &[ApplicationId],
        most_each: u32,
    ) -> Result<Vec<ApiKey>, Error> {
        let mut all = Vec::new();
        // A query each, along the index: one for all of them would read every revoked key there ever was.
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

    /// How many keys of an application are neither revoked nor expired. Exact for who holds the application by
    /// [`AccountWriter::lock_application`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn count_usable(
        &mut self,
        application: &ApplicationId,
        now: Timestamp,
    ) -> Result<u64, Error> {
        let count: i64 = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::application_id.eq(application.as_bytes().as_slice()))
            .filter(api_keys::revoked_at.is_null())
            .filter(
                api_keys::expires_at
                    .is_null()
                    .or(api_keys::expires_at.gt(rows::micros(now))),
            )
            .count()
            .get_result(self.conn)?;
        rows::unsigned(count)
    }

    /// How many keys of these families are neither revoked nor expired. Exact for who holds the account by
    /// [`AccountWriter::lock`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn count_usable_of(&mut self, families: &[Family], now: Timestamp) -> Result<u64, Error> {
        let ended_above = api_keys::created_by
            .is_not_null()
            .and(revoked_from_above().or(expired_from_above(now)));
        let count: i64 = api_keys::table
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::family.eq_any(names(families)))
            .filter(api_keys::revoked_at.is_null())
            .filter(not(ended_above))
            .filter(
                api_keys::expires_at
                    .is_null()
                    .or(api_keys::expires_at.gt(rows::micros(now))),
            )
            .count()
            .get_result(self.conn)?;
        rows::unsigned(count)
    }

    /// How a key was used since a day, by day and outcome, the newest day first.
    ///
    /// # Errors
    /// [`Error`].
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
    /// The key, held until the end of the transaction, for who changes it by what it is.
    ///
    /// # Errors
    /// [`Error`].
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

    /// Adds a key. Nothing is to be forgotten for it: verifiers do not remember what they do not know.
    ///
    /// # Errors
    /// [`Error::Unique`]; [`Error::NotFound`] when it says it is another account's, [`Error::Other`] when its
    /// application is.
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

    /// Writes what use-cases change of a key: its name, grants, metadata, suspension, revocation and successor. Does not
    /// write `last_used_at`, which usage may have moved meanwhile, and what never changes. Verifiers evict the key, and its
    /// descendants with it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there.
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

    /// The key with the number of its ancestors, all of them and it itself held until the end of the transaction, for a
    /// caller that creates a key beneath it: the revocation of any of them comes before or after, never between.
    /// `within` decides by the number of ancestors whether they are locked at all.
    ///
    /// # Errors
    /// [`Error`], and those of `within`.
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
                .order(api_keys::id) // one order for every transaction that locks several
                .select(api_keys::created_at)
                .for_update()
                .load::<i64>(conn)
                .map_err(Error::from)?;
        }
        Ok(self.key(families, id)?)
    }
}
