//! Filling an empty database with very many keys, for measurements. Not bound to a tenant: the keys are those of many.
//!
//! A key put in this way is like any other, but for the audit log, which knows nothing of it: that is why this is not part
//! of a build unless asked for. Indexes and constraints are those of the real schema, and are there from the beginning.

use std::{sync::mpsc::sync_channel, thread};

use diesel::{
    Connection as _, connection::SimpleConnection as _, prelude::*, sql_query, sql_types,
};
use tollkey_core::{ApiKey, Application, Digest};

use crate::{
    Backend, Error, Store,
    connection::{AnyConnection, Use, establish},
    rows::{ApplicationRow, KeyRow},
    schema::{api_keys, applications},
};

/// How many rows are written in one transaction.
const AT_ONCE: usize = 100_000;
/// How many rows one statement of SQLite's holds: it takes 32 766 values.
const OF_SQLITE: usize = 1_000;

/// A key with its digest. In one piece, because COPY takes no nested rows.
#[derive(Insertable)]
#[diesel(table_name = api_keys, treat_none_as_default_value = false)]
struct Row {
    id: Vec<u8>,
    digest: Vec<u8>,
    account_id: String,
    application_id: Option<Vec<u8>>,
    name: String,
    family: String,
    mode: String,
    prefix: String,
    last4: String,
    scopes: String,
    merchants: Option<String>,
    features: Option<String>,
    allowed_ips: Option<String>,
    rate_limit_limit: Option<i32>,
    rate_limit_window_seconds: Option<i32>,
    expires_at: Option<i64>,
    metadata: Option<String>,
    created_at: i64,
    created_by: Option<Vec<u8>>,
    last_used_at: Option<i64>,
    suspended_at: Option<i64>,
    revoked_at: Option<i64>,
    revoked_reason: Option<String>,
    rotated_from: Option<Vec<u8>>,
    rotated_to: Option<Vec<u8>>,
    rotated_at: Option<i64>,
}

impl From<(ApiKey, Digest)> for Row {
    fn from((key, digest): (ApiKey, Digest)) -> Self {
        let KeyRow {
            id,
            account_id,
            application_id,
            name,
            family,
            mode,
            prefix,
            last4,
            scopes,
            merchants,
            features,
            allowed_ips,
            rate_limit_limit,
            rate_limit_window_seconds,
            expires_at,
            metadata,
            created_at,
            created_by,
            last_used_at,
            suspended_at,
            revoked_at,
            revoked_reason,
            rotated_from,
            rotated_to,
            rotated_at,
        } = KeyRow::from(&key);
        Self {
            digest: digest.as_bytes().to_vec(),
            id,
            account_id,
            application_id,
            name,
            family,
            mode,
            prefix,
            last4,
            scopes,
            merchants,
            features,
            allowed_ips,
            rate_limit_limit,
            rate_limit_window_seconds,
            expires_at,
            metadata,
            created_at,
            created_by,
            last_used_at,
            suspended_at,
            revoked_at,
            revoked_reason,
            rotated_from,
            rotated_to,
            rotated_at,
        }
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = sql_types::BigInt)]
    number: i64,
}

impl Store {
    /// A connection without limits of time. Not for a database in memory, which is its only connection.
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

    /// Whether there are no keys. Blocks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(
            self.number("SELECT count(*) AS number FROM (SELECT 1 FROM api_keys LIMIT 1) AS one")?
                == 0,
        )
    }

    /// How many bytes the database takes. Blocks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn size(&self) -> Result<u64, Error> {
        self.number(match self.backend() {
            Backend::Sqlite => "SELECT page_count * page_size AS number FROM pragma_page_count(), pragma_page_size()",
            Backend::Postgres => "SELECT pg_database_size(current_database()) AS number",
        })
    }

    /// Writes applications, then keys, and lets the database count what it has. `progress` is told how many keys are
    /// written. Blocks, for minutes.
    ///
    /// # Errors
    /// [`Error`]; what was written before stays.
    pub fn fill(
        &self,
        applications: impl Iterator<Item = Application>,
        keys: impl Iterator<Item = (ApiKey, Digest)> + Send,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Error> {
        let mut conn = self.unlimited()?;
        for chunk in chunks(applications.map(|application| ApplicationRow::from(&application))) {
            match &mut conn {
                AnyConnection::Postgres(conn) => {
                    diesel::copy_from(applications::table)
                        .from_insertable(chunk)
                        .execute(conn)?;
                }
                AnyConnection::Sqlite(conn) => conn.transaction(|conn| {
                    for few in chunks_of(chunk, OF_SQLITE) {
                        diesel::insert_into(applications::table)
                            .values(few)
                            .execute(conn)?;
                    }
                    diesel::QueryResult::Ok(())
                })?,
            }
        }
        // Rows are made while the database writes those before.
        let (sender, made) = sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(move || {
                for chunk in chunks(keys.map(Row::from)) {
                    if sender.send(chunk).is_err() {
                        break; // writing has failed
                    }
                }
            });
            let mut written = 0;
            for chunk in made {
                let rows = chunk.len() as u64;
                match &mut conn {
                    AnyConnection::Postgres(conn) => {
                        diesel::copy_from(api_keys::table)
                            .from_insertable(chunk)
                            .execute(conn)?;
                    }
                    AnyConnection::Sqlite(conn) => conn.transaction(|conn| {
                        for few in chunks_of(chunk, OF_SQLITE) {
                            diesel::insert_into(api_keys::table)
                                .values(few)
                                .execute(conn)?;
                        }
                        diesel::QueryResult::Ok(())
                    })?,
                }
                written += rows;
                progress(written);
            }
            Ok::<_, Error>(())
        })?;
        Ok(conn.batch_execute(match self.backend() {
            Backend::Sqlite => "ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)",
            Backend::Postgres => "VACUUM ANALYZE",
        })?)
    }
}

/// The rows, [`AT_ONCE`] at a time.
fn chunks<T>(rows: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    chunks_of(rows, AT_ONCE)
}

fn chunks_of<T>(rows: impl IntoIterator<Item = T>, size: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rows = rows.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = rows.by_ref().take(size).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
