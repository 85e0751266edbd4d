//! The audit log of an account.

use diesel::{
    prelude::*,
    sql_query,
    sql_types::{BigInt, Binary, Text},
};
use tollkey_core::{
    Mode, Timestamp,
    audit::{Action, Draft, Entry, Hash, Head, TargetKind},
    time::to_micros,
};

use super::{AccountReader, AccountWriter, bound_search};
use crate::{
    Error,
    connection::multi::MultiBackend,
    rows::{self, EntryRow},
    schema::{audit_heads, audit_log},
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub action: Option<Action>,
    pub target_kind: Option<TargetKind>,
    /// Hyphenated.
    pub target_id: Option<String>,
    pub actor_id: Option<String>,
    /// Inclusive.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
    /// Only entries about keys of this mode.
    pub mode: Option<Mode>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditPage {
    /// The entries, newest first. Can be fewer than the limit, or none, even if the log continues.
    pub entries: Vec<Entry>,
    /// The argument `before` for the next page; `None` at the end.
    pub next: Option<u64>,
}

/// Maximum number of rows that one page examines, for the reason given at [`super::EXAMINED_KEYS`].
pub const EXAMINED_ENTRIES: u32 = 5_000;

type EntryQuery<'a> = audit_log::BoxedQuery<'a, MultiBackend>;

/// An index that a page reads, newest entry first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IndexScan {
    Target,
    Actor,
    Action,
    Mode,
    Account,
}

impl IndexScan {
    /// Returns the index that most likely has the fewest entries for a filter.
    fn for_filter(filter: &AuditFilter) -> Self {
        if filter.target_id.is_some() {
            Self::Target
        } else if filter.action.is_some() {
            Self::Action
        } else if filter.actor_id.is_some() {
            Self::Actor
        } else if filter.mode.is_some() {
            Self::Mode
        } else {
            Self::Account
        }
    }

    /// Splits a filter into the condition that this index serves and the others.
    fn split(self, filter: &AuditFilter) -> (AuditFilter, AuditFilter) {
        let (mut served, mut residual) = (AuditFilter::default(), filter.clone());
        match self {
            Self::Target => served.target_id = residual.target_id.take(),
            Self::Actor => served.actor_id = residual.actor_id.take(),
            Self::Action => served.action = residual.action.take(),
            Self::Mode => served.mode = residual.mode.take(),
            Self::Account => {}
        }
        (served, residual)
    }
}

fn filtered<'a>(mut query: EntryQuery<'a>, filter: &AuditFilter) -> EntryQuery<'a> {
    if let Some(action) = filter.action {
        query = query.filter(audit_log::action.eq(action.as_str()));
    }
    if let Some(kind) = filter.target_kind {
        query = query.filter(audit_log::target_kind.eq(kind.as_str()));
    }
    if let Some(target) = &filter.target_id {
        query = query.filter(audit_log::target_id.eq(target.clone()));
    }
    if let Some(actor) = &filter.actor_id {
        query = query.filter(audit_log::actor_id.eq(actor.clone()));
    }
    if let Some(since) = filter.since {
        query = query.filter(audit_log::occurred_at.ge(rows::micros(since)));
    }
    if let Some(until) = filter.until {
        query = query.filter(audit_log::occurred_at.lt(rows::micros(until)));
    }
    if let Some(mode) = filter.mode {
        query = query.filter(audit_log::target_mode.eq(mode.as_str()));
    }
    query
}

/// Returns the end of the account's chain and locks it until the end of the transaction, in one statement: on
/// PostgreSQL the update, which changes nothing, locks the row.
const LOCK_HEAD: &str = "INSERT INTO audit_heads (account_id, seq, hash) VALUES ($1, 0, $2) \
    ON CONFLICT (account_id) DO UPDATE SET account_id = excluded.account_id RETURNING seq, hash";

#[derive(QueryableByName)]
struct HeadRow {
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Binary)]
    hash: Vec<u8>,
}

impl AccountReader<'_> {
    /// Returns a page of the account's entries, newest first, with numbers below `before`: `limit` entries or, if no
    /// index serves the filter, the matches among [`EXAMINED_ENTRIES`] rows. Following [`AuditPage::next`] visits each
    /// entry once.
    ///
    /// # Errors
    /// [`Error::Busy`] on PostgreSQL if a search takes over 2 s.
    pub fn audit_log(
        &mut self,
        filter: &AuditFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<AuditPage, Error> {
        let (served, residual) = IndexScan::for_filter(filter).split(filter);
        let mut query = filtered(self.entries_before(before), filter);
        let mut end = None;
        if residual != AuditFilter::default() {
            bound_search(self.conn)?;
            end = filtered(self.entries_before(before), &served)
                .order(audit_log::seq.desc())
                .offset(i64::from(EXAMINED_ENTRIES) - 1)
                .limit(1)
                .select(audit_log::seq)
                .first::<i64>(self.conn)
                .optional()?;
            if let Some(end) = end {
                query = query.filter(audit_log::seq.ge(end));
            }
        }
        let rows: Vec<EntryRow> = query
            .order(audit_log::seq.desc())
            .limit(i64::from(limit) + 1)
            .select(EntryRow::as_select())
            .load(self.conn)?;
        let mut entries = rows
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<Vec<Entry>, _>>()?;
        let next = match entries.len() > limit as usize {
            true => limit.checked_sub(1).map(|last| entries[last as usize].seq),
            false => end.map(rows::unsigned).transpose()?,
        };
        entries.truncate(limit as usize);
        Ok(AuditPage { entries, next })
    }

    /// Returns a query of the account's entries with numbers below `before`, unordered.
    fn entries_before<'q>(&self, before: Option<u64>) -> EntryQuery<'q> {
        let query = audit_log::table
            .filter(audit_log::account_id.eq(self.account.as_str().to_owned()))
            .into_boxed::<MultiBackend>();
        match before {
            Some(before) => {
                query.filter(audit_log::seq.lt(i64::try_from(before).unwrap_or(i64::MAX)))
            }
            None => query,
        }
    }

    pub fn audit_head(&mut self) -> Result<Head, Error> {
        let row: Option<(i64, Vec<u8>)> = audit_heads::table
            .find(self.account.as_str())
            .select((audit_heads::seq, audit_heads::hash))
            .first(self.conn)
            .optional()?;
        row.map_or(Ok(Head::GENESIS), |(seq, hash)| rows::head(seq, &hash))
    }
}

impl AccountWriter<'_> {
    /// Locks the account until the end of the transaction, for a caller that counts its keys before adding one. Locks
    /// the end of the audit chain, which every change of the account needs anyway.
    pub fn lock(&mut self) -> Result<(), Error> {
        self.lock_head().map(drop)
    }

    fn lock_head(&mut self) -> Result<Head, Error> {
        let row: HeadRow = sql_query(LOCK_HEAD)
            .bind::<Text, _>(self.account.as_str())
            .bind::<Binary, _>(Hash::GENESIS.as_bytes().as_slice())
            .get_result(self.conn)?;
        rows::head(row.seq, &row.hash)
    }

    /// Appends an entry to the account's chain. Call it last: it blocks all other changes of the account until the end
    /// of the transaction.
    /// Fails with [`Error::NotFound`] if the entry belongs to another account.
    pub fn append(&mut self, draft: Draft) -> Result<Entry, Error> {
        if draft.account_id != *self.account {
            return Err(Error::NotFound);
        }
        // Microseconds, as a later read will return it.
        let draft = Draft {
            occurred_at: to_micros(draft.occurred_at),
            ..draft
        };
        let entry = draft.seal(self.lock_head()?);
        let row = EntryRow::try_from(&entry)?;
        let seq = row.seq;
        diesel::insert_into(audit_log::table)
            .values(row)
            .execute(self.conn)?;
        diesel::update(audit_heads::table.find(self.account.as_str()))
            .set((
                audit_heads::seq.eq(seq),
                audit_heads::hash.eq(entry.hash.as_bytes().as_slice()),
            ))
            .execute(self.conn)?;
        Ok(entry)
    }
}
