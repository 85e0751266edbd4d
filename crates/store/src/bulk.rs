//! Fills an empty database with many keys, for benchmarks. Not bound to a tenant: the keys belong to many accounts.
//!
//! The tables, indexes and constraints are the real ones, but the audit log gets no entries; so this is behind the
//! feature `bulk`.

use std::{sync::mpsc::sync_channel, thread};

use diesel::{
    Connection as _, connection::SimpleConnection as _, prelude::*, sql_query, sql_types,
};
use tollkey_core::{ApiKey, Application, Digest};

use crate::{
    Backend, Error, Store,
    connection::{AnyConnection, establish},
    rows::{ApplicationRow, KeyRow},
    schema::{api_keys, applications},
    target::Use,
};

const OF_TRANSACTION: usize = 100_000;
/// How many rows one statement writes: SQLite allows 32,766 parameters.
const OF_STATEMENT: usize = 1_000;

#[derive(Insertable)]
#[diesel(table_name = api_keys)]
struct KeyAndDigest {
    #[diesel(embed)]
    key: KeyRow,
    digest: Vec<u8>,
}

impl From<(ApiKey, Digest)> for KeyAndDigest {
    fn from((key, digest): (ApiKey, Digest)) -> Self {
        Self {
            key: KeyRow::from(&key),
            digest: digest.as_bytes().to_vec(),
        }
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = sql_types::BigInt)]
    number: i64,
}

/// Inserts rows in one transaction. A macro, because connections and tables have no common type for batch inserts.
macro_rules! insert {
    ($conn:expr, $table:expr, $rows:expr) => {
        $conn.transaction(|conn| {
            chunks($rows, OF_STATEMENT).try_for_each(|rows| {
                let insert = diesel::insert_into($table).values(rows);
                insert.execute(conn).map(drop)
            })
        })
    };
}

impl Store {
    /// Opens a connection without timeouts. Not for a database in memory, which exists only in its one connection.
    fn unlimited(&self) -> Result<AnyConnection, Error> {
        establish(self.target(), Use::Migrate).map_err(|error| {
            tracing::error!(%error, "cannot connect to the database");
            Error::Unavailable
        })
    }

    fn number(&self, sql: &str) -> Result<u64, Error> {
        let row: Number = sql_query(sql).get_result(&mut self.unlimited()?)?;
        u64::try_from(row.number).map_err(|_| Error::corrupt("number"))
    }

    /// Returns whether the database has no keys. Blocks.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(
            self.number("SELECT count(*) AS number FROM (SELECT 1 FROM api_keys LIMIT 1) AS one")?
                == 0,
        )
    }

    /// Returns the size of the database in bytes. Blocks.
    pub fn size(&self) -> Result<u64, Error> {
        self.number(match self.backend() {
            Backend::Sqlite => "SELECT page_count * page_size AS number FROM pragma_page_count(), pragma_page_size()",
            Backend::Postgres => "SELECT pg_database_size(current_database()) AS number",
        })
    }

    /// Inserts applications, then keys, and updates the database's statistics. Calls `progress` with the number of keys
    /// written so far. Blocks for minutes.
    ///
    /// # Errors
    /// [`Error`]; rows written before it stay.
    pub fn fill(
        &self,
        applications: impl Iterator<Item = Application>,
        keys: impl Iterator<Item = (ApiKey, Digest)> + Send,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Error> {
        let mut conn = self.unlimited()?;
        let rows = applications.map(|application| ApplicationRow::from(&application));
        for transaction in chunks(rows, OF_TRANSACTION) {
            match &mut conn {
                AnyConnection::Postgres(conn) => insert!(conn, applications::table, transaction),
                AnyConnection::Sqlite(conn) => insert!(conn, applications::table, transaction),
            }?;
        }
        // Builds rows while the database writes the previous ones.
        let (sender, transactions) = sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(move || {
                for transaction in chunks(keys.map(KeyAndDigest::from), OF_TRANSACTION) {
                    if sender.send(transaction).is_err() {
                        break; // writing has failed
                    }
                }
            });
            let mut written = 0;
            for transaction in transactions {
                written += transaction.len() as u64;
                match &mut conn {
                    AnyConnection::Postgres(conn) => insert!(conn, api_keys::table, transaction),
                    AnyConnection::Sqlite(conn) => insert!(conn, api_keys::table, transaction),
                }?;
                progress(written);
            }
            Ok::<_, diesel::result::Error>(())
        })?;
        Ok(conn.batch_execute(match self.backend() {
            Backend::Sqlite => "ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)",
            Backend::Postgres => "VACUUM ANALYZE",
        })?)
    }
}

fn chunks<T>(rows: impl IntoIterator<Item = T>, size: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rows = rows.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = rows.by_ref().take(size).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
