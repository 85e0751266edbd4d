//! The store: its pools, the one hop to the blocking pool, and transactions.

use std::{
    any::Any,
    fmt,
    ops::{Deref, DerefMut},
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use diesel::{
    PgConnection, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _},
    r2d2::{HandleError, Pool},
};
use tokio::sync::Semaphore;
use tollkey_core::{
    Clock,
    change::{Changed, Seq},
};

use crate::{
    Error,
    connection::{
        AnyConnection, Backend, BadUrl, ConnectError, Manager, Target, Use, establish, is_english, postgres_setting,
    },
    leases, migrations,
    migrations::SchemaError,
};

/// How to open a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// `sqlite://path`, `sqlite://:memory:` or `postgres://…`. May hold a password.
    pub url: String,
    /// How many connections answer requests at the same time. SQLite has one more, the only one that writes;
    /// PostgreSQL two more for leases, so that a full pool does not cost a lease.
    pub pool_size: u32,
    /// How long a call waits for a connection before it is [`Error::Busy`].
    pub acquire_timeout: Duration,
}

impl OpenOptions {
    /// Eight connections, and two seconds to get one.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), pool_size: 8, acquire_timeout: Duration::from_secs(2) }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("pool_size", &self.pool_size)
            .field("acquire_timeout", &self.acquire_timeout)
            .finish_non_exhaustive()
    }
}

/// On PostgreSQL: one for the renewal, which may wait for a revoker's lock, and one for what meanwhile asks who is
/// behind.
const LEASE_CONNECTIONS: u32 = 2;

/// How many rows are deleted in one transaction, where many may have grown old.
pub(crate) const STEP: u32 = 5_000;

/// The store could not be opened. Made for whoever starts the server: names files and hosts, no password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// The SQLite file.
    #[error("cannot open the database file {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The database itself.
    #[error("cannot connect to the database: {0}")]
    Connect(String),
}

/// The data of Tollkey. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    target: Target,
    acquire_timeout: Duration,
    clock: Arc<dyn Clock>,
    read: Lane,
    write: Lane,
    lease: Lane,
}

/// Connections, and a gate that lets no more callers through than there are connections for them.
#[derive(Clone)]
struct Lane {
    pool: Pool<Manager>,
    acquire_timeout: Duration,
    gate: Arc<Semaphore>,
}

/// How a closure runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Statement by statement.
    Autocommit,
    /// All reads see one moment.
    Snapshot,
    /// All or nothing. SQLite takes the write lock first: a transaction that upgrades later can only fail.
    Transaction,
}

/// What a transaction did, for whoever has to wait until every verifier knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The change counter after the transaction.
    pub seq: Seq,
    /// The clock's `elapsed`, read while the transaction held the counter: no lease begun later lacks the change.
    pub at: Duration,
}

/// The result of a transaction that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a change is answered only after every verifier knows of it"]
pub struct Written<T> {
    /// What the closure returned.
    pub value: T,
    /// Set when something that verifiers may remember was changed.
    pub change: Option<Change>,
}

/// Reads, on one snapshot.
pub struct Reader<'c> {
    pub(crate) conn: &'c mut AnyConnection,
}

/// Reads and writes, in one transaction.
pub struct Writer<'c> {
    reader: Reader<'c>,
    changed: Vec<Changed>,
}

impl<'c> Deref for Writer<'c> {
    type Target = Reader<'c>;

    fn deref(&self) -> &Reader<'c> {
        &self.reader
    }
}
impl DerefMut for Writer<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.reader
    }
}

impl Writer<'_> {
    pub(crate) fn parts(&mut self) -> (&mut AnyConnection, &mut Vec<Changed>) {
        (self.reader.conn, &mut self.changed)
    }

    /// Notes that something verifiers may remember is different. The functions that change such a thing do this by
    /// themselves; noting it twice is the same as once. The counter is raised at the end of the transaction, so that
    /// its lock, which renewals of leases wait for, is held as shortly as can be.
    pub fn changed(&mut self, what: Changed) {
        if !self.changed.contains(&what) {
            self.changed.push(what);
        }
    }
}

impl Store {
    /// Opens a store and connects once. Creates a SQLite file that is not there, readable by its owner alone.
    /// Blocks; meant for the start of a process. Migrates nothing: see [`Store::migrate`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: OpenOptions, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let target = Target::parse(&options.url, cfg!(feature = "pg-tls"), |name| std::env::var(name).ok())?;
        if let Target::File(path) = &target {
            create_file(path)?;
        }
        let size = options.pool_size.max(1);
        let lane = |purpose, connections, callers: u32| Lane {
            pool: pool(&target, purpose, connections),
            acquire_timeout: options.acquire_timeout,
            gate: Arc::new(Semaphore::new(callers as usize)),
        };
        let (read, write, lease) = match &target {
            Target::Memory => {
                let only = lane(Use::Write, 1, 1);
                (only.clone(), only.clone(), only)
            }
            Target::File(_) => {
                let writer = lane(Use::Write, 1, 1);
                (lane(Use::Read, size, size), writer.clone(), writer)
            }
            Target::Postgres(_) => {
                let all = lane(Use::Write, size + LEASE_CONNECTIONS, size);
                let lease = Lane { gate: Arc::new(Semaphore::new(LEASE_CONNECTIONS as usize)), ..all.clone() };
                (all.clone(), all, lease)
            }
        };
        // The pool would try again until its timeout and hide why; the first connection is made here, for its error.
        // A memory database is its connection: the pool keeps the one it makes.
        if target != Target::Memory {
            let mut first = establish(&target, Use::Write).map_err(|error| OpenError::Connect(error.to_string()))?;
            if let Ok(Some(locale)) = postgres_setting(&mut first, "lc_messages")
                && !is_english(&locale)
            {
                tracing::warn!(
                    %locale,
                    "the database's messages are not in English and this role may not set their language: a lock that \
                     is not had in time is answered 500 instead of 503. ALTER ROLE ... SET lc_messages = 'C', as a \
                     superuser, mends it"
                );
            }
        }
        let inner = Inner { target, acquire_timeout: options.acquire_timeout, clock, read, write, lease };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Which database this is.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.inner.target.backend()
    }

    /// Whether the data ends with this process.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.inner.target == Target::Memory
    }

    /// The SQLite file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&std::path::Path> {
        match &self.inner.target {
            Target::File(path) => Some(path.as_ref()),
            Target::Memory | Target::Postgres(_) => None,
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.inner.target
    }

    /// Brings the schema up to this version. Safe to run from several processes at once. Blocks.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn migrate(&self) -> Result<(), SchemaError> {
        match &self.inner.target {
            Target::Memory => {
                let mut pooled = self.inner.write.connection().map_err(SchemaError::Store)?;
                migrations::run(&mut pooled.conn)
            }
            // PostgreSQL's own limits of time are off on this connection, and its end releases the lock.
            target => {
                let mut conn =
                    establish(target, Use::Migrate).map_err(|error| SchemaError::Failed(error.to_string()))?;
                migrations::run(&mut conn)
            }
        }
    }

    /// Whether the schema is that of this version. Changes nothing. Blocks.
    ///
    /// # Errors
    /// [`SchemaError::Older`] or [`SchemaError::Newer`] when it is not.
    pub fn check_schema(&self) -> Result<(), SchemaError> {
        let mut pooled = self.inner.read.connection().map_err(SchemaError::Store)?;
        migrations::check(&mut pooled.conn)
    }

    /// [`Store::check_schema`] without blocking, in the order of requests.
    ///
    /// # Errors
    /// As there.
    pub async fn schema(&self) -> Result<(), SchemaError> {
        self.hop(|inner| &inner.read, |_, conn| migrations::check(conn)).await
    }

    /// Whether the database answers and, on PostgreSQL, takes changes: one that takes none cannot revoke a key.
    ///
    /// # Errors
    /// [`Error`] when it does not, [`Error::Unavailable`] when it takes none.
    pub async fn ping(&self) -> Result<(), Error> {
        self.read_one(|conn| {
            let read_only = match conn {
                AnyConnection::Sqlite(conn) => conn.batch_execute("SELECT 1").map(|()| None),
                postgres => postgres_setting(postgres, "transaction_read_only"),
            };
            if read_only?.as_deref() == Some("on") {
                tracing::warn!("the database takes no changes");
                return Err(Error::Unavailable);
            }
            Ok(())
        })
        .await
    }

    /// Reads on one snapshot.
    ///
    /// # Errors
    /// What the closure returns, [`Error::Busy`] when no connection becomes free in time, [`Error::Unavailable`]
    /// when the database cannot be reached.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.hop(|inner| &inner.read, |inner, conn| inner.read(conn, work)).await
    }

    /// [`Store::read`] without a runtime, for the command line.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_blocking<T>(&self, work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        self.inner.read.with(|conn| self.inner.read(conn, work))
    }

    /// Writes in one transaction: committed when the closure returns `Ok`, rolled back when it returns `Err` or
    /// panics. Once begun it is finished even if the caller goes away.
    ///
    /// # Errors
    /// What the closure returns; the store's own errors as in [`Store::read`], and those of the commit.
    pub async fn write<T, E>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<Written<T>, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.hop(|inner| &inner.write, |inner, conn| inner.write(conn, work)).await
    }

    /// [`Store::write`] without a runtime, for the command line.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_blocking<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E>,
    ) -> Result<Written<T>, E> {
        self.inner.write.with(|conn| self.inner.write(conn, work))
    }

    /// Deletes in one small transaction after the other until one has nothing to delete: a day of ten
    /// million keys would take longer than a statement may, and on SQLite longer than a lease lasts, which needs the
    /// same lock. `delete` deletes at most [`STEP`] and says how many.
    pub(crate) async fn in_steps(
        &self,
        delete: impl Fn(&mut Writer<'_>) -> Result<usize, Error> + Clone + Send + 'static,
    ) -> Result<usize, Error> {
        let mut all = 0;
        loop {
            // Not until a step is not full: some of what it was about to delete may just have been deleted otherwise.
            match self.write(delete.clone()).await?.value {
                0 => return Ok(all),
                deleted => all += deleted,
            }
        }
    }

    /// One read statement, which is a snapshot by itself, without the round trips of a transaction.
    pub(crate) async fn read_one<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.hop(|inner| &inner.read, |inner, conn| inner.transact(conn, Mode::Autocommit, work)).await
    }

    /// One statement about leases. On PostgreSQL it must be committed by itself: a process frozen inside a
    /// transaction would hold the counter's lock. SQLite takes its write lock first.
    pub(crate) async fn lease_one<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mode = match self.backend() {
            Backend::Sqlite => Mode::Transaction,
            Backend::Postgres => Mode::Autocommit,
        };
        self.hop(|inner| &inner.lease, move |inner, conn| inner.transact(conn, mode, work)).await
    }

    /// A read statement of the lease keeping, which must not wait behind requests.
    pub(crate) async fn lease_read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let lane = |inner: &Inner| match inner.target.backend() {
            Backend::Sqlite => inner.read.clone(),
            Backend::Postgres => inner.lease.clone(),
        };
        self.hop_on(lane(&self.inner), |inner, conn| inner.transact(conn, Mode::Autocommit, work)).await
    }

    async fn hop<T, E>(
        &self,
        lane: impl FnOnce(&Inner) -> &Lane,
        work: impl FnOnce(&Inner, &mut AnyConnection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.hop_on(lane(&self.inner).clone(), work).await
    }

    /// The one place that leaves the async world: waits, within bounds, for its turn and runs on the blocking pool.
    async fn hop_on<T, E>(
        &self,
        lane: Lane,
        work: impl FnOnce(&Inner, &mut AnyConnection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let turn = tokio::time::timeout(self.inner.acquire_timeout, lane.gate.clone().acquire_owned());
        let Ok(Ok(turn)) = turn.await else {
            tracing::warn!("no database connection became free in time");
            return Err(Error::Busy.into());
        };
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            lane.with(|conn| work(&inner, conn))
        });
        match done.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(Error::Unavailable.into()),
            },
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("target", &self.inner.target).finish_non_exhaustive()
    }
}

impl Lane {
    fn connection(&self) -> Result<diesel::r2d2::PooledConnection<Manager>, Error> {
        // The pool's handler has logged why no connection could be made.
        self.pool.get_timeout(self.acquire_timeout).map_err(|_| Error::Unavailable)
    }

    /// Works with a connection, and has it looked at afterwards if that failed.
    fn with<T, E: From<Error>>(&self, work: impl FnOnce(&mut AnyConnection) -> Result<T, E>) -> Result<T, E> {
        let mut pooled = self.connection()?;
        let result = work(&mut pooled.conn);
        pooled.is_suspect = result.is_err();
        result
    }
}

impl Inner {
    fn read<T>(
        &self,
        conn: &mut AnyConnection,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(conn, Mode::Snapshot, |conn| work(&mut Reader { conn }))
    }

    fn write<T, E: From<Error>>(
        &self,
        conn: &mut AnyConnection,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E>,
    ) -> Result<Written<T>, E> {
        self.transact(conn, Mode::Transaction, |conn| {
            let mut writer = Writer { reader: Reader { conn }, changed: Vec::new() };
            let value = work(&mut writer)?;
            let Writer { reader: Reader { conn }, changed } = writer;
            let seq = leases::raise_counter(conn, changed.into_iter(), self.clock.now())?;
            let change = seq.map(|seq| Change { seq, at: self.clock.elapsed() });
            Ok(Written { value, change })
        })
    }

    fn transact<T, E: From<Error>>(
        &self,
        conn: &mut AnyConnection,
        mode: Mode,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        if mode == Mode::Autocommit {
            return work(conn);
        }
        begin(conn, mode).map_err(Error::from)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let value = work(conn)?;
            if mode == Mode::Transaction
                && let AnyConnection::Postgres(conn) = conn
            {
                // PostgreSQL answers the commit of a transaction in which a statement failed by rolling it back,
                // without an error. If the closure ignored such a failure, this statement fails.
                conn.batch_execute("SELECT 1").map_err(Error::from)?;
            }
            Ok(value)
        }));
        match outcome {
            Ok(Ok(value)) => {
                AnyConnection::commit_transaction(conn).map_err(Error::from)?;
                Ok(value)
            }
            Ok(Err(error)) => {
                roll_back(conn);
                Err(error)
            }
            Err(panic) => {
                roll_back(conn);
                let panic: Box<dyn Any + Send> = panic;
                resume_unwind(panic)
            }
        }
    }
}

fn begin(conn: &mut AnyConnection, mode: Mode) -> diesel::QueryResult<()> {
    match conn {
        AnyConnection::Sqlite(conn) => {
            let sql = if mode == Mode::Transaction { "BEGIN IMMEDIATE" } else { "BEGIN" };
            AnsiTransactionManager::begin_transaction_sql::<SqliteConnection>(conn, sql)
        }
        AnyConnection::Postgres(conn) => {
            // Whatever the default of the database is: a transaction that waited for a lock has to see what its holder did.
            let sql = match mode {
                Mode::Transaction => "BEGIN ISOLATION LEVEL READ COMMITTED",
                _ => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            };
            AnsiTransactionManager::begin_transaction_sql::<PgConnection>(conn, sql)
        }
    }
}

/// A rollback that fails means the connection is gone, and with it the transaction; the pool finds it broken.
fn roll_back(conn: &mut AnyConnection) {
    if let Err(error) = AnyConnection::rollback_transaction(conn) {
        tracing::warn!(%error, "a transaction could not be rolled back");
    }
}

/// Creates the file if it is not there, for its owner alone: it holds the digests of all keys. SQLite gives the
/// files beside it the same mode.
fn create_file(path: &str) -> Result<(), OpenError> {
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(OpenError::File { path: path.to_owned(), source }),
    }
}

/// The longest pause between two attempts to connect, and so the longest that verification stays away once the
/// database is back.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

fn pool(target: &Target, purpose: Use, size: u32) -> Pool<Manager> {
    let builder = Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        // Not how long a call waits, which is said with each: r2d2 pauses for up to half of this between attempts.
        .connection_timeout(LONGEST_PAUSE * 2)
        .test_on_check_out(true) // cheap: see Manager::is_valid
        .error_handler(Box::new(Log));
    let builder = match target {
        Target::Postgres(_) => builder,
        Target::Memory | Target::File(_) => builder.idle_timeout(None).max_lifetime(None),
    };
    builder.build_unchecked(Manager::new(target.clone(), purpose))
}

#[derive(Debug)]
struct Log;

impl HandleError<ConnectError> for Log {
    fn handle_error(&self, error: ConnectError) {
        tracing::warn!(%error, "a database connection failed");
    }
}
