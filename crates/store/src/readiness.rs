//! Whether the store can be used: it answers, its schema fits, and it takes changes.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use diesel::{prelude::*, sql_query, sql_types::Binary};
use tokio::{sync::Mutex, time::timeout};

use crate::{Error, SchemaError, Store};

/// For how long the result of a check is returned again.
const FRESH: Duration = Duration::from_secs(1);
/// A change that was committed within this time shows that the store takes changes. A renewal of a lease counts, and a
/// verifier renews each third of a lease: by default, once a second.
const RECENT: Duration = Duration::from_millis(1_500);
/// How long a check may take. Longer than a change that is in the way for a moment, shorter than probes wait.
const LIMIT: Duration = Duration::from_secs(2);

/// A change that is written and not kept. The row is never visible to others, and would be that of a verifier that has
/// applied everything.
const INSERT: &str = "INSERT INTO verifiers (id, applied_seq, renewals) VALUES ($1, 9223372036854775807, 0)";
const DELETE: &str = "DELETE FROM verifiers WHERE id = $1";

/// Why the store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The SQLite file is no longer at its path.
    #[error("the database file was deleted or replaced")]
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

/// The last check, and what shows that none is needed.
#[derive(Debug)]
pub(crate) struct Readiness {
    opened: Instant,
    /// Milliseconds from `opened` to the last committed change, plus one; 0 is none.
    last_write: AtomicU64,
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
            opened: Instant::now(),
            last_write: AtomicU64::default(),
            last: Arc::default(),
            logged: std::sync::Mutex::default(),
            row,
        }
    }
}

impl Readiness {
    /// Notes that a change was committed just now.
    pub(crate) fn note_write(&self) {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last_write.fetch_max(millis + 1, Ordering::Relaxed);
    }

    fn has_written_recently(&self) -> bool {
        match self.last_write.load(Ordering::Relaxed) {
            0 => false,
            after => self.opened.elapsed().saturating_sub(Duration::from_millis(after - 1)) < RECENT,
        }
    }

    /// Logs what is different from before.
    fn log(&self, result: &Result<(), NotReady>) {
        let now = result.as_ref().err();
        let mut logged = self.logged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
    /// Returns within two seconds. Checks at most once a second, one at a time, however many callers there are; a SQLite
    /// file that is gone is noticed in every call. Leaves nothing in the database.
    ///
    /// # Errors
    /// [`NotReady`] says why not.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let result = timeout(LIMIT, self.checked()).await.unwrap_or(Err(NotReady::Late));
        self.inner.readiness.log(&result);
        result
    }

    async fn checked(&self) -> Result<(), NotReady> {
        if let Some(file) = &self.inner.file {
            file.check().map_err(|_| NotReady::FileLost)?;
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
            *last = Some(Checked { at: Instant::now(), result: result.clone() });
            result
        });
        check.await.unwrap_or(Err(NotReady::Changes(Error::Unavailable)))
    }

    async fn check_ready(&self) -> Result<(), NotReady> {
        self.ping().await.map_err(NotReady::Changes)?;
        match self.schema().await {
            Ok(()) | Err(SchemaError::Newer) => {}
            Err(error) => return Err(NotReady::Schema(error)),
        }
        if self.inner.readiness.has_written_recently() {
            return Ok(());
        }
        self.probe().await.map_err(NotReady::Changes)
    }

    /// Writes, to see whether that is possible.
    async fn probe(&self) -> Result<(), Error> {
        let row = self.inner.readiness.row;
        self.lease_transaction(move |conn| {
            for sql in [INSERT, DELETE] {
                sql_query(sql).bind::<Binary, _>(row.as_slice()).execute(conn)?;
            }
            Ok(())
        })
        .await
    }
}
