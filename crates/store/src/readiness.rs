//! Whether the store can be used: it answers, its schema fits, and it takes changes.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{connection::SimpleConnection as _, prelude::*, sql_query, sql_types::Binary};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    Error, SchemaError, Store,
    connection::{AnyConnection, Target},
    rights,
};

/// For how long the result of a check is returned again.
const FRESH: Duration = Duration::from_secs(1);
/// How long a check may take. Longer than a change that is in the way for a moment, shorter than probes wait.
const LIMIT: Duration = Duration::from_secs(2);

/// A change that is written and not kept. The row is never visible to others, and would be that of a verifier that has
/// applied everything.
const INSERT: &str =
    "INSERT INTO verifiers (id, applied_seq, renewals) VALUES ($1, 9223372036854775807, 0)";
const DELETE: &str = "DELETE FROM verifiers WHERE id = $1";

/// A change of this size has to fit into a SQLite file: 64 KiB, more pages than a request changes. One page would fit
/// into what a larger change that failed has left allocated behind the end of the write-ahead log.
const LARGE: &str = "INSERT INTO settings (name, value) VALUES ('readiness', hex(zeroblob(32768)))";
/// With a cache of one page SQLite writes the pages of a transaction into the log before its end.
const SMALL_CACHE: &str = "PRAGMA cache_size = 1";
/// SQLite's default.
const USUAL_CACHE: &str = "PRAGMA cache_size = -2000";

/// How long the probe waits for each lock on PostgreSQL, in milliseconds. Shorter than [`LIMIT`].
const LOCK_TIMEOUT: u32 = 1_000;

/// Why the store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The SQLite file is no longer at its path, or has other content than the store has written.
    #[error("the database file was deleted, replaced, overwritten or damaged")]
    FileLost,
    /// The schema does not fit, or the role lacks rights.
    #[error(transparent)]
    Schema(SchemaError),
    /// The store does not answer, or it takes no changes.
    #[error("the database accepts no changes: {0}")]
    Changes(Error),
    /// The check takes too long: the store does not answer, or something holds its write lock.
    #[error("the database did not accept a change within {LIMIT:?}")]
    Late,
}

/// A check that was made.
#[derive(Debug)]
struct Checked {
    at: Instant,
    result: Result<(), NotReady>,
}

/// The last check.
#[derive(Debug)]
pub(crate) struct Readiness {
    /// Locked during a check, so that there is one at a time.
    last: Arc<Mutex<Option<Checked>>>,
    /// What was logged last, so that each change is logged once.
    logged: std::sync::Mutex<Option<NotReady>>,
    /// The row that this store writes to see whether it can.
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
    /// Logs what is different from before.
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
    /// Whether the store can be used: it answers, its schema is this version's or a newer one, the role has its rights,
    /// and changes are accepted.
    ///
    /// Returns within two seconds. Checks at most once a second, one at a time, however many callers there are; a
    /// SQLite file that is gone or overwritten is noticed in every call. Leaves nothing in the database.
    ///
    /// # Errors
    /// [`NotReady`] says why not.
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
        // On its own: a caller that goes away, or has waited long enough, leaves the check to the others.
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

    /// Tries what changes do. No change that was committed before proves as much: it wrote some of the tables, and a
    /// renewal of a lease writes a single page.
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

/// Writes a change that is rolled back, up to the file system.
fn probe_space(conn: &mut AnyConnection) -> Result<(), Error> {
    conn.batch_execute(SMALL_CACHE)?;
    let written = conn.batch_execute(LARGE);
    conn.batch_execute(USUAL_CACHE)?;
    Ok(written?)
}

/// Takes every lock that changes take on PostgreSQL, and releases each one immediately.
///
/// Each lock is taken in a transaction of its own, so the probe holds none while it waits for another: it can be part
/// of no deadlock. All are sent in one message, so a process that is paused meanwhile holds none either. A lock that
/// waits here delays no read: it is compatible with those of reads.
fn probe_locks(conn: &mut AnyConnection) -> Result<(), Error> {
    let tables =
        rights::written_tables().map(|table| format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE"));
    // The mode of an UPDATE.
    let counter = "SELECT FROM change_counter FOR NO KEY UPDATE".to_owned();
    let transaction =
        |lock| format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT}; {lock}; ROLLBACK;");
    let batch: String = tables.chain([counter]).map(transaction).collect();
    let result = conn.batch_execute(&batch);
    if result.is_err()
        && let Err(error) = conn.batch_execute("ROLLBACK")
    {
        tracing::warn!(%error, "a transaction could not be rolled back"); // the pool finds the connection broken
    }
    result.map_err(Error::from)
}
