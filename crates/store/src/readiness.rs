//! Readiness: whether the database responds, has the right schema, and accepts changes.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{connection::SimpleConnection as _, prelude::*, sql_query, sql_types::Binary};
use tokio::{sync::Mutex, time::timeout};

use crate::{Error, SchemaError, Store, connection::AnyConnection, rights, target::Target};

/// How long the result of a check is reused.
const FRESH: Duration = Duration::from_secs(1);
/// How long a check may take: longer than a change that holds a lock for a moment, shorter than the timeout of probes.
const LIMIT: Duration = Duration::from_secs(2);

/// A change that is undone in the same transaction. The row is never visible to others, and would be that of a verifier
/// that is up to date.
const INSERT: &str =
    "INSERT INTO verifiers (id, applied_seq, renewals) VALUES ($1, 9223372036854775807, 0)";
const DELETE: &str = "DELETE FROM verifiers WHERE id = $1";

/// A change of 64 KiB, more than the pages that a request changes, for which a SQLite file must have space. One page
/// could fit into the space that a larger failed change has left allocated at the end of the write-ahead log.
const LARGE: &str = "INSERT INTO settings (name, value) VALUES ('readiness', hex(zeroblob(32768)))";
/// With a cache of one page, SQLite writes pages to the log before the end of the transaction.
const SMALL_CACHE: &str = "PRAGMA cache_size = 1";
/// SQLite's default.
const USUAL_CACHE: &str = "PRAGMA cache_size = -2000";

/// How long the probe waits for each lock on PostgreSQL, in milliseconds. Shorter than [`LIMIT`].
const LOCK_TIMEOUT: u32 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the database file was deleted, replaced, overwritten or damaged")]
    FileLost,
    /// The schema has another version, or the role lacks rights.
    #[error(transparent)]
    Schema(SchemaError),
    /// The database does not respond, or accepts no changes.
    #[error("the database accepts no changes: {0}")]
    Changes(Error),
    /// The check takes too long: the database does not respond, or another process holds a lock.
    #[error("the database did not accept a change within {LIMIT:?}")]
    Late,
}

#[derive(Debug)]
struct Checked {
    at: Instant,
    result: Result<(), NotReady>,
}

#[derive(Debug)]
pub(crate) struct Readiness {
    /// The last check. Locked during a check, so that only one runs.
    last: Arc<Mutex<Option<Checked>>>,
    /// The state that was logged last, so that each change is logged once.
    logged: std::sync::Mutex<Option<NotReady>>,
    /// The ID of the row that the probe inserts and deletes.
    row: [u8; 16],
}

impl Default for Readiness {
    fn default() -> Self {
        let mut row = [0; 16];
        for half in row.chunks_exact_mut(8) {
            half.copy_from_slice(&RandomState::new().build_hasher().finish().to_be_bytes());
        }
        Self {
            last: Arc::default(),
            logged: std::sync::Mutex::default(),
            row,
        }
    }
}

impl Readiness {
    /// Logs a result that differs from the previous one.
    fn log(&self, result: &Result<(), NotReady>) {
        let now = result.as_ref().err();
        let mut logged = self
            .logged
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if logged.as_ref() == now {
            return;
        }
        match now {
            Some(reason) => tracing::warn!(%reason, "the store is not ready"),
            None => tracing::info!("the store is ready again"),
        }
        *logged = now.cloned();
    }
}

impl Store {
    /// Checks that the database responds, that its schema is this version's or a newer one, that the role has its
    /// rights, and that changes are accepted.
    ///
    /// Returns within two seconds. However many callers there are, it runs at most one check at a time and one per
    /// second; only a deleted or overwritten SQLite file is detected in every call. Leaves nothing in the database.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let result = timeout(LIMIT, self.checked())
            .await
            .unwrap_or(Err(NotReady::Late));
        self.inner.readiness.log(&result);
        result
    }

    async fn checked(&self) -> Result<(), NotReady> {
        if let Some(file) = &self.inner.file {
            file.check_content().map_err(|_| NotReady::FileLost)?;
        }
        let mut last = Arc::clone(&self.inner.readiness.last).lock_owned().await;
        if let Some(checked) = &*last
            && checked.at.elapsed() < FRESH
        {
            return checked.result.clone();
        }
        // In a task, so that the check continues for other callers if this one times out or goes away.
        let store = self.clone();
        let check = tokio::spawn(async move {
            let result = store.check_ready().await;
            *last = Some(Checked {
                at: Instant::now(),
                result: result.clone(),
            });
            result
        });
        check
            .await
            .unwrap_or(Err(NotReady::Changes(Error::Unavailable)))
    }

    async fn check_ready(&self) -> Result<(), NotReady> {
        self.ping().await.map_err(NotReady::Changes)?;
        match self.schema().await {
            Ok(()) | Err(SchemaError::Newer) => {}
            Err(error) => return Err(NotReady::Schema(error)),
        }
        self.probe().await.map_err(NotReady::Changes)
    }

    /// Does what changes do. A committed change would not prove as much: it writes only some of the tables, and a lease
    /// renewal writes a single page.
    async fn probe(&self) -> Result<(), Error> {
        match self.target() {
            Target::Memory => {}
            Target::File(_) => self.lease_rolled_back(probe_space).await?,
            Target::Postgres(_) => self.lease_one(probe_locks).await?,
        }
        let row = self.inner.readiness.row;
        self.lease_transaction(move |conn| {
            for sql in [INSERT, DELETE] {
                sql_query(sql)
                    .bind::<Binary, _>(row.as_slice())
                    .execute(conn)?;
            }
            Ok(())
        })
        .await
    }
}

/// Writes a change to the file system, to be rolled back.
fn probe_space(conn: &mut AnyConnection) -> Result<(), Error> {
    conn.batch_execute(SMALL_CACHE)?;
    let written = conn.batch_execute(LARGE);
    conn.batch_execute(USUAL_CACHE)?;
    Ok(written?)
}

/// Takes every lock that changes take on PostgreSQL, and releases each immediately.
///
/// Each lock has a separate transaction, so the probe holds none while it waits for another and cannot be part of a
/// deadlock. All transactions are sent in one message, so a process that is paused meanwhile holds no lock. The locks
/// do not block reads.
fn probe_locks(conn: &mut AnyConnection) -> Result<(), Error> {
    let tables =
        rights::written_tables().map(|table| format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE"));
    // The lock of an UPDATE.
    let counter = "SELECT FROM change_counter FOR NO KEY UPDATE".to_owned();
    let transaction =
        |lock| format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT}; {lock}; ROLLBACK;");
    let batch: String = tables.chain([counter]).map(transaction).collect();
    let result = conn.batch_execute(&batch);
    if result.is_err()
        && let Err(error) = conn.batch_execute("ROLLBACK")
    {
        tracing::warn!(%error, "a transaction could not be rolled back"); // the pool will discard the connection
    }
    result.map_err(Error::from)
}
