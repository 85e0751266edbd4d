//! Access to the data of one account. Every query filters by the account.

mod applications;
mod audit;
mod keys;
mod revocations;

use std::ops::{Deref, DerefMut};

use diesel::{
    connection::SimpleConnection as _,
    prelude::*,
    sql_query,
    sql_types::{BigInt, Text},
};
use tollkey_core::{Account, AccountId, OperatingModel, Timestamp, change::Changed};

pub use audit::{AuditFilter, AuditPage, EXAMINED_ENTRIES};
pub use keys::{DayUsage, EXAMINED_KEYS, KeyCursor, KeyFilter, KeyPage};
pub use revocations::Batch;

use crate::{Error, Reader, Writer, connection::AnyConnection, rows, schema::accounts};

pub struct AccountReader<'a> {
    conn: &'a mut AnyConnection,
    account: &'a AccountId,
}

pub struct AccountWriter<'a> {
    reader: AccountReader<'a>,
    changed: &'a mut Vec<Changed>,
}

impl<'a> Deref for AccountWriter<'a> {
    type Target = AccountReader<'a>;

    fn deref(&self) -> &AccountReader<'a> {
        &self.reader
    }
}
impl DerefMut for AccountWriter<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.reader
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items of the page, newest first. Empty past the end.
    pub items: Vec<T>,
    /// Number of items on all pages.
    pub total: u64,
}

/// Limits each further statement of the transaction to 2 s. SQLite has no such limit, so searches also examine a
/// bounded number of rows.
fn bound_search(conn: &mut AnyConnection) -> Result<(), Error> {
    if let AnyConnection::Postgres(conn) = conn {
        conn.batch_execute("SET LOCAL statement_timeout = '2s'")?;
    }
    Ok(())
}

/// Returns the number of rows before a page; pages count from 1.
fn offset(page: u32, limit: u32) -> i64 {
    i64::from(page.saturating_sub(1)) * i64::from(limit)
}

impl Reader<'_> {
    pub fn account<'a>(&'a mut self, account: &'a AccountId) -> AccountReader<'a> {
        AccountReader {
            conn: self.conn,
            account,
        }
    }
}

impl Writer<'_> {
    pub fn account<'a>(&'a mut self, account: &'a AccountId) -> AccountWriter<'a> {
        let (conn, changed) = self.parts();
        AccountWriter {
            reader: AccountReader { conn, account },
            changed,
        }
    }
}

impl AccountReader<'_> {
    /// Without a stored row, the account has the default operating model.
    pub fn get(&mut self) -> Result<Account, Error> {
        let model: Option<String> = accounts::table
            .find(self.account.as_str())
            .select(accounts::operating_model)
            .first(self.conn)
            .optional()?;
        Ok(Account {
            id: self.account.clone(),
            operating_model: rows::operating_model(model.as_deref())?,
        })
    }
}

const SET_MODEL: &str = "INSERT INTO accounts (id, operating_model, updated_at) VALUES ($1, $2, $3) \
    ON CONFLICT (id) DO UPDATE SET operating_model = excluded.operating_model, updated_at = excluded.updated_at";

impl AccountWriter<'_> {
    /// Records that cached data has changed, once.
    fn changed(&mut self, what: Changed) {
        if !self.changed.contains(&what) {
            self.changed.push(what);
        }
    }

    /// Sets the operating model. Returns whether it differs from the previous one; verifiers then evict the keys of the
    /// account.
    pub fn set_operating_model(
        &mut self,
        model: OperatingModel,
        at: Timestamp,
    ) -> Result<bool, Error> {
        self.lock()?; // so that the model cannot change between reading and writing
        if self.get()?.operating_model == model {
            return Ok(false);
        }
        sql_query(SET_MODEL)
            .bind::<Text, _>(self.account.as_str())
            .bind::<Text, _>(model.as_str())
            .bind::<BigInt, _>(rows::micros(at))
            .execute(self.conn)?;
        let account = self.account.clone();
        self.changed(Changed::Account(account));
        Ok(true)
    }
}
