//! [`Store`]: its connection pools, transactions, and the move to the blocking pool.

use std::{
    any::Any,
    fmt,
    net::IpAddr,
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use diesel::{
    PgConnection, SqliteConnection,
    connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _},
    r2d2::{HandleError, Pool},
};
use tollkey_core::{
    AccountId, Clock,
    change::{Changed, Seq},
};
use tollkey_fair::{FairSemaphore, Limits, Permit, Priority};

#[cfg(feature = "pg-tls")]
use crate::certificate;
use crate::{
    Error,
    connection::{AnyConnection, ConnectError, Manager, establish, is_english, postgres_setting},
    error::{take_conflict, take_corruption},
    leases, migrations,
    open_error::OpenError,
    postgres_session::{UnsupportedServer, share_sessions},
    readiness::Readiness,
    schema_error::SchemaError,
    sqlite_file::{self, LogFiles, SqliteFile},
    target::{Backend, Target, Use},
    url::{DatabaseUrl, absolute},
};

#[derive(Clone)]
pub struct OpenOptions {
    /// `sqlite://path`, `sqlite://:memory:` or `postgres://…`. May contain a password.
    pub url: String,
    /// Number of connections for management requests. Further connections are opened for verification (half as many,
    /// at least one), dashboard sessions (two), leases (two) and, on SQLite, the only writer.
    pub pool_size: u32,
    /// How long a call waits for a connection before it fails with [`Error::Busy`].
    pub acquire_timeout: Duration,
    /// Whether to create a SQLite file that does not exist. If `false`, a missing or empty file is an error.
    pub create: bool,
    /// How long [`Store::migrate`] waits for another process that migrates the same PostgreSQL database.
    pub migration_timeout: Duration,
}

impl OpenOptions {
    /// Returns the defaults: 8 connections, an acquire timeout of 2 s, `create` set, a migration timeout of 60 s.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            pool_size: 8,
            acquire_timeout: Duration::from_secs(2),
            create: true,
            migration_timeout: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("pool_size", &self.pool_size)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("create", &self.create)
            .field("migration_timeout", &self.migration_timeout)
            .finish_non_exhaustive()
    }
}

/// One connection is for renewals, which on PostgreSQL may wait for the lock of a change, and one for reading the
/// changes of other replicas.
const LEASE_CONNECTIONS: u32 = 2;

const SESSION_CONNECTIONS: u32 = 2;

/// The maximum number of calls that wait for connections of one role. When the queue is full, a call of the owner with
/// the most waiting calls fails with [`Error::Busy`].
const MAX_WAITING: usize = 1024;

/// How long the writer of a SQLite file is reserved for the next renewal after a rejected one.
const WRITER_RESERVATION: Duration = Duration::from_millis(50);

/// The maximum number of attempts of a transaction that conflicts with others.
const ATTEMPTS: u32 = 3;

/// The pause before a transaction is retried, multiplied by the number of attempts so far. Without a pause, the retry
/// takes its first lock again before the transaction that waits for that lock has woken up, and the two deadlock again.
const CONFLICT_PAUSE: Duration = Duration::from_millis(25);

/// The maximum number of rows that one transaction of [`Store::delete_in_batches`] deletes.
pub(crate) const STEP: u32 = 5_000;

/// The database of Tollkey. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    target: Target,
    migration_timeout: Duration,
    /// `None` for PostgreSQL and `:memory:`.
    pub(crate) file: Option<Arc<SqliteFile>>,
    pub(crate) readiness: Readiness,
    clock: Arc<dyn Clock>,
    connections: Connections,
    reserved_writer: Mutex<ReservedWriter>,
}

/// The connections of each role, which other roles cannot use, with two exceptions: a SQLite file has one connection for
/// all writes, and a database in memory has one connection.
#[derive(Clone)]
struct Connections {
    /// Reads of management requests.
    read: ConnectionGroup,
    write: ConnectionGroup,
    /// Lease writes. On SQLite they go before changes that wait for the same connection.
    lease: ConnectionGroup,
    lease_read: ConnectionGroup,
    verification: ConnectionGroup,
    /// Look-ups of dashboard sessions.
    session: ConnectionGroup,
    /// The groups that do not share a semaphore, by the name in [`PoolStats`].
    pools: Vec<(&'static str, ConnectionGroup)>,
}

/// A pool with a semaphore that limits its concurrent users to the number of its connections. Clones share both.
#[derive(Clone)]
struct ConnectionGroup {
    pool: Pool<Manager>,
    acquire_timeout: Duration,
    semaphore: FairSemaphore<Owner>,
    priority: Priority,
    file: Option<Arc<SqliteFile>>,
    /// The number of calls that failed with [`Error::Busy`].
    rejected: Arc<AtomicU64>,
}

/// The use of the connections of one role, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// `management` (on SQLite only its reads), `changes` (only on SQLite), `lease`, `verification` or `sessions`. A
    /// database in memory has only `management`, which all roles use.
    pub name: &'static str,
    /// The maximum number of connections in use at the same time.
    pub size: usize,
    /// Connections in use.
    pub in_use: usize,
    /// Calls that wait for a connection.
    pub waiting: usize,
    /// Calls since the start that failed with [`Error::Busy`].
    pub rejected: u64,
}

/// The party on whose behalf a connection is used. Connections are shared fairly among owners: an owner can use at most
/// half of the connections of a role, and waiting owners are served in turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An account: all management requests for it, including those of operators.
    Account(AccountId),
    /// An unauthenticated client of the dashboard, by [`tollkey_core::network::client_network`].
    Client(Option<IpAddr>),
    /// Requests without an account, for instance for service keys.
    Operator,
    /// Work of this process itself.
    Background,
}

impl From<&AccountId> for Owner {
    fn from(account: &AccountId) -> Self {
        Self::Account(account.clone())
    }
}

/// The permit for the writer of a SQLite file, reserved after a rejected renewal.
#[derive(Default)]
struct ReservedWriter {
    /// Changes with each reservation, so that the timeout of an earlier one does not end a later one.
    number: u64,
    permit: Option<Permit<Owner>>,
}

/// How a closure runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Each statement is its own transaction.
    Autocommit,
    /// A read transaction on one snapshot.
    Snapshot,
    /// A write transaction. SQLite takes the write lock at the beginning: upgrading from a read lock can fail.
    Transaction,
}

/// The position of a transaction among the changes that every verifier has to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The change counter after the transaction.
    pub seq: Seq,
    /// [`Clock::elapsed`] while the transaction held the counter's lock. A lease that begins later includes the change.
    pub at: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the response to a change must wait until every verifier has applied it"]
pub struct Committed<T> {
    pub value: T,
    /// Set if the transaction changed something that verifiers may have cached.
    pub change: Option<Change>,
}

pub struct Reader<'c> {
    pub(crate) conn: &'c mut AnyConnection,
}

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

    /// Records a change of data that verifiers may have cached. Functions that change such data call this themselves;
    /// duplicates are ignored. The counter is raised at the end of the transaction, so that its lock, which
    /// lease renewals wait for, is held only briefly.
    pub fn changed(&mut self, what: Changed) {
        if !self.changed.contains(&what) {
            self.changed.push(what);
        }
    }
}

impl Store {
    /// Opens a store and its first connection. Creates a SQLite file that does not exist, readable by its owner only,
    /// if [`OpenOptions::create`] is set. Does not migrate: see [`Store::migrate`]. Blocks; meant for the start of a
    /// process.
    pub fn open(options: OpenOptions, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let url = DatabaseUrl::parse(&options.url)?;
        let target = url.resolve(cfg!(feature = "pg-tls"), |name| std::env::var(name).ok())?;
        if let Some(path) = url.file() {
            sqlite_file::prepare(path, options.create)?;
        }
        let file = match &target {
            Target::File(path) => {
                let found = SqliteFile::at(path)
                    .map_err(|source| sqlite_file::failure(&absolute(path.as_ref()), source))?;
                Some(Arc::new(found))
            }
            Target::Memory | Target::Postgres(_) => None,
        };
        let connections = Connections::new(
            &target,
            options.pool_size.max(1),
            options.acquire_timeout,
            file.as_ref(),
        );
        // A pool retries until its timeout and hides the cause, so the first connection is made here for its error.
        // A database in memory exists only in its connection, so its pool opens that one.
        if target != Target::Memory {
            let mut first =
                establish(&target, Use::Write).map_err(|error| open_error(error, &url))?;
            if let AnyConnection::Postgres(first) = &mut first {
                check_pooling(&target, first)?;
            }
            if let Ok(Some(locale)) = postgres_setting(&mut first, "lc_messages")
                && !is_english(&locale)
            {
                tracing::warn!(
                    %locale,
                    "the database's messages are not in English and this role may not change their language: a lock \
                     timeout is reported with 500 instead of 503, and a deadlock is not retried. To fix it, run \
                     ALTER ROLE ... SET lc_messages = 'C' as a superuser"
                );
            }
            if file.is_some() {
                // The pool keeps the file open from here on, so that its inode number cannot be reused.
                connections
                    .write
                    .connection()
                    .map_err(|error| OpenError::Connect {
                        target: url.target(),
                        reason: error.to_string(),
                        is_transient: false,
                    })?;
            }
        }
        let inner = Inner {
            target,
            migration_timeout: options.migration_timeout,
            file,
            readiness: Readiness::default(),
            clock,
            connections,
            reserved_writer: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    #[must_use]
    pub fn backend(&self) -> Backend {
        self.inner.target.backend()
    }

    /// Returns whether the database is `:memory:` and is lost when the process exits.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.inner.target == Target::Memory
    }

    /// Returns the path of the SQLite file, or `None` for `:memory:` and PostgreSQL.
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

    /// Returns how many connections of each role are in use.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolStats> {
        let pools = self.inner.connections.pools.iter();
        pools
            .map(|(name, group)| PoolStats {
                name,
                size: group.semaphore.permits(),
                in_use: group.semaphore.in_use(),
                waiting: group.semaphore.waiting(),
                rejected: group.rejected.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// Migrates the schema to this version. Several processes can call it at the same time. Blocks; on PostgreSQL it
    /// waits up to [`OpenOptions::migration_timeout`] for another process that migrates, and then fails.
    pub fn migrate(&self) -> Result<(), SchemaError> {
        self.apply_migrations().map(drop)
    }

    /// Like [`Store::migrate`]; returns the names of the migrations that it applied, in order.
    pub fn apply_migrations(&self) -> Result<Vec<String>, SchemaError> {
        let patience = self.inner.migration_timeout;
        if self.is_in_memory() {
            let mut pooled = self.inner.connections.write.connection()?;
            return migrations::run(&mut pooled.conn, patience);
        }
        // This connection has no statement or lock timeouts.
        let mut conn = establish(self.target(), Use::Migrate)
            .map_err(|error| SchemaError::Failed(error.to_string()))?;
        migrations::run(&mut conn, patience)
    }

    /// Checks that the schema is that of this version and, on PostgreSQL, that the role has the rights the server
    /// needs. Changes nothing. Blocks.
    ///
    /// # Errors
    /// [`SchemaError::Older`] or [`SchemaError::Newer`] for another version, [`SchemaError::Rights`] for a missing
    /// right, [`SchemaError::NotInSearchPath`] if the tables are in another schema.
    pub fn check_schema(&self) -> Result<(), SchemaError> {
        let mut pooled = self.inner.connections.read.connection()?;
        migrations::check(&mut pooled.conn)
    }

    /// Like [`Store::check_schema`], without blocking. Requests that wait for connections do not delay it.
    pub async fn schema(&self) -> Result<(), SchemaError> {
        let group = &self.inner.connections.lease_read;
        self.with_connection(group, Owner::Background, |_, conn| migrations::check(conn))
            .await
    }

    /// Checks that the database responds and, on PostgreSQL, is not read-only. [`Store::ready`] checks more.
    pub async fn ping(&self) -> Result<(), Error> {
        self.lease_read(|conn| {
            let read_only = match conn {
                AnyConnection::Sqlite(conn) => conn.batch_execute("SELECT 1").map(|()| None),
                postgres => postgres_setting(postgres, "transaction_read_only"),
            };
            if read_only?.as_deref() == Some("on") {
                return Err(Error::Unavailable);
            }
            Ok(())
        })
        .await
    }

    /// Runs the closure on one snapshot, as [`Owner::Background`].
    ///
    /// # Errors
    /// The error of the closure, [`Error::Busy`] if no connection becomes free in time, [`Error::Unavailable`] if the
    /// database cannot be reached.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_for(Owner::Background, work).await
    }

    /// [`Store::read`] for this owner.
    /// Fails with [`Error::Busy`] also immediately if too many calls wait and this owner has the most.
    pub async fn read_for<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let group = &self.inner.connections.read;
        self.with_connection(group, owner.into(), |inner, conn| inner.read(conn, work))
            .await
    }

    /// [`Store::read`] without an async runtime, for the command line.
    pub fn read_blocking<T>(
        &self,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let group = &self.inner.connections.read;
        group.with(|conn| self.inner.read(conn, work))
    }

    /// Runs the closure in one transaction, as [`Owner::Background`]. Commits if it returns `Ok`, rolls back if it
    /// returns `Err` or panics. A transaction that has begun is finished even if the caller drops the future.
    ///
    /// If PostgreSQL aborts the transaction because of a deadlock or a serialization failure, a clone of the closure
    /// runs in a new transaction, at most three times in all. A commit is never repeated.
    pub async fn write<T, E>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone + Send + 'static,
    ) -> Result<Committed<T>, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.write_for(Owner::Background, work).await
    }

    /// [`Store::write`] for this owner.
    pub async fn write_for<T, E>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone + Send + 'static,
    ) -> Result<Committed<T>, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let group = &self.inner.connections.write;
        self.with_connection(group, owner.into(), |inner, conn| inner.write(conn, work))
            .await
    }

    /// [`Store::write`] without an async runtime, for the command line.
    pub fn write_blocking<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone,
    ) -> Result<Committed<T>, E> {
        let group = &self.inner.connections.write;
        group.with(|conn| self.inner.write(conn, work))
    }

    /// Calls `delete` in a new transaction each time until it returns 0, and returns the total. `delete`
    /// deletes at most [`STEP`] rows and returns their number. Deleting a day's rows of ten million keys in
    /// one transaction would exceed the statement timeout. On SQLite it would also exceed the length of a
    /// lease, whose renewal needs the same lock.
    pub(crate) async fn delete_in_batches(
        &self,
        delete: impl Fn(&mut Writer<'_>) -> Result<usize, Error> + Clone + Send + 'static,
    ) -> Result<usize, Error> {
        let mut all = 0;
        loop {
            // A call that deletes fewer than `STEP` rows is not the last: other processes may have deleted
            // some of its rows.
            match self.write(delete.clone()).await?.value {
                0 => return Ok(all),
                deleted => all += deleted,
            }
        }
    }

    /// Runs a read without a transaction, which saves round trips. Each statement reads its own snapshot.
    pub(crate) async fn verification_read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let group = &self.inner.connections.verification;
        self.with_connection(group, Owner::Background, |_, conn| work(conn))
            .await
    }

    /// Like [`Store::verification_read`], for dashboard sessions.
    pub(crate) async fn session_read<T: Send + 'static>(
        &self,
        owner: Owner,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let group = &self.inner.connections.session;
        self.with_connection(group, owner, |_, conn| work(conn))
            .await
    }

    /// Like [`Store::verification_read`], for leases.
    pub(crate) async fn lease_read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let group = &self.inner.connections.lease_read;
        self.with_connection(group, Owner::Background, |_, conn| work(conn))
            .await
    }

    /// Returns the mode of a lease write. On PostgreSQL it must commit by itself: a process paused inside a transaction
    /// would hold the counter's lock. SQLite takes its write lock first.
    fn lease_mode(&self) -> Mode {
        match self.backend() {
            Backend::Sqlite => Mode::Transaction,
            Backend::Postgres => Mode::Autocommit,
        }
    }

    pub(crate) async fn lease_one<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        self.lease_write(self.lease_mode(), work).await
    }

    pub(crate) async fn lease_transaction(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<(), Error> + Clone + Send + 'static,
    ) -> Result<(), Error> {
        self.lease_write(Mode::Transaction, work).await
    }

    async fn lease_write<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        mode: Mode,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E> + Clone + Send + 'static,
    ) -> Result<T, E> {
        let group = &self.inner.connections.lease;
        self.with_connection(group, Owner::Background, move |inner, conn| {
            inner.transact_repeatedly(conn, mode, work)
        })
        .await
    }

    /// Runs `work`, which renews a lease, or returns `false` if a change was committed that the verifier has
    /// not applied. In that case, the writer of a SQLite file is reserved for the next renewal. Otherwise
    /// this process could commit another change before each attempt, and its lease would expire.
    pub(crate) async fn renew_one(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<bool, Error> + Clone + Send + 'static,
    ) -> Result<bool, Error> {
        let mode = self.lease_mode();
        let group = &self.inner.connections.lease;
        let reserved = self.inner.reserved_writer().permit.take();
        let permit = match reserved {
            Some(permit) => permit,
            None => self.acquire(group, Owner::Background).await?,
        };
        let run = self.run(group, permit, move |inner, conn| {
            inner.transact_repeatedly(conn, mode, work)
        });
        let (renewed, permit) = run.await;
        if matches!(renewed, Ok(false)) && matches!(self.inner.target, Target::File(_)) {
            let number = {
                let mut reserved = self.inner.reserved_writer();
                reserved.number = reserved.number.wrapping_add(1);
                reserved.permit = permit;
                reserved.number
            };
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                tokio::time::sleep(WRITER_RESERVATION).await;
                let mut reserved = inner.reserved_writer();
                if reserved.number == number {
                    reserved.permit = None;
                }
            });
        }
        renewed
    }

    /// Runs a transaction with a lease connection and rolls it back, even if the work succeeds.
    pub(crate) async fn lease_rolled_back(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<(), Error> + Clone + Send + 'static,
    ) -> Result<(), Error> {
        struct RolledBack(Result<(), Error>);
        impl From<Error> for RolledBack {
            fn from(error: Error) -> Self {
                Self(Err(error))
            }
        }
        let rolled_back = |conn: &mut AnyConnection| Err::<(), _>(RolledBack(work(conn)));
        match self.lease_write(Mode::Transaction, rolled_back).await {
            Ok(()) => Ok(()),
            Err(RolledBack(result)) => result,
        }
    }

    /// Waits for a connection of the group, but no longer than the acquire timeout, and runs the work on the
    /// blocking pool.
    async fn with_connection<T, E>(
        &self,
        group: &ConnectionGroup,
        owner: Owner,
        work: impl FnOnce(&Inner, &mut AnyConnection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let permit = self.acquire(group, owner).await?;
        self.run(group, permit, work).await.0
    }

    async fn acquire(&self, group: &ConnectionGroup, owner: Owner) -> Result<Permit<Owner>, Error> {
        let permit = group.semaphore.acquire(owner, group.priority);
        match tokio::time::timeout(group.acquire_timeout, permit).await {
            Ok(Ok(permit)) => return Ok(permit),
            Ok(Err(full)) => {
                tracing::warn!(%full, "a request for a database connection was rejected")
            }
            Err(_) => tracing::warn!("no database connection became free in time"),
        }
        group.rejected.fetch_add(1, Ordering::Relaxed);
        Err(Error::Busy)
    }

    /// Runs the work on the blocking pool. Only this function uses that pool. Returns the permit too, unless
    /// the runtime shuts down.
    async fn run<T, E>(
        &self,
        group: &ConnectionGroup,
        permit: Permit<Owner>,
        work: impl FnOnce(&Inner, &mut AnyConnection) -> Result<T, E> + Send + 'static,
    ) -> (Result<T, E>, Option<Permit<Owner>>)
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (inner, group) = (Arc::clone(&self.inner), group.clone());
        let done = tokio::task::spawn_blocking(move || {
            let permit = permit; // released when the work ends, even if the caller drops the future
            (group.with(|conn| work(&inner, conn)), permit)
        });
        match done.await {
            Ok((result, permit)) => (result, Some(permit)),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => (Err(Error::Unavailable.into()), None),
            },
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("target", &self.inner.target)
            .finish_non_exhaustive()
    }
}

impl Connections {
    fn new(
        target: &Target,
        size: u32,
        acquire_timeout: Duration,
        file: Option<&Arc<SqliteFile>>,
    ) -> Self {
        let group = |pool: &Pool<Manager>, connections: u32| ConnectionGroup {
            pool: pool.clone(),
            acquire_timeout,
            semaphore: FairSemaphore::new(Limits::half_per_owner(
                connections as usize,
                MAX_WAITING,
            )),
            priority: Priority::Normal,
            file: file.cloned(),
            rejected: Arc::default(),
        };
        let pool = |purpose: Use, connections: u32| pool(target, purpose, connections, file);
        // For roles that have one owner.
        let urgent = |group: &ConnectionGroup| ConnectionGroup {
            priority: Priority::Urgent,
            ..group.clone()
        };
        let verification = size.div_ceil(2);
        match target {
            Target::Memory => {
                let only = group(&pool(Use::Write, 1), 1);
                let first = urgent(&only);
                Self {
                    pools: vec![("management", only.clone())],
                    read: only.clone(),
                    write: only,
                    lease: first.clone(),
                    lease_read: first.clone(),
                    verification: first.clone(),
                    session: first,
                }
            }
            Target::File(_) => {
                let readers = |connections| group(&pool(Use::Read, connections), connections);
                let write = group(&pool(Use::Write, 1), 1);
                let read = readers(size);
                let lease_read = urgent(&readers(LEASE_CONNECTIONS));
                let verification = urgent(&readers(verification));
                let session = readers(SESSION_CONNECTIONS);
                Self {
                    pools: vec![
                        ("management", read.clone()),
                        ("changes", write.clone()),
                        ("lease", lease_read.clone()),
                        ("verification", verification.clone()),
                        ("sessions", session.clone()),
                    ],
                    read,
                    lease: urgent(&write),
                    write,
                    lease_read,
                    verification,
                    session,
                }
            }
            // One shared pool, so that an idle connection can serve any role; the semaphores limit each role's share.
            Target::Postgres(_) => {
                let all = size + LEASE_CONNECTIONS + verification + SESSION_CONNECTIONS;
                let all = pool(Use::Write, all);
                let requests = group(&all, size);
                let lease = urgent(&group(&all, LEASE_CONNECTIONS));
                let verification = urgent(&group(&all, verification));
                let session = group(&all, SESSION_CONNECTIONS);
                Self {
                    pools: vec![
                        ("management", requests.clone()),
                        ("lease", lease.clone()),
                        ("verification", verification.clone()),
                        ("sessions", session.clone()),
                    ],
                    read: requests.clone(),
                    write: requests,
                    lease: lease.clone(),
                    lease_read: lease,
                    verification,
                    session,
                }
            }
        }
    }
}

impl ConnectionGroup {
    fn connection(&self) -> Result<diesel::r2d2::PooledConnection<Manager>, Error> {
        // The pool's error handler has logged the cause.
        self.pool
            .get_timeout(self.acquire_timeout)
            .map_err(|_| Error::Unavailable)
    }

    /// Runs the work with a connection, which the pool checks afterwards if the work failed.
    ///
    /// Fails if the SQLite file is not at its path before or after the work: the written data may be in a file that was
    /// deleted or replaced.
    fn with<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(file) = &self.file {
            file.check()?; // before the pool waits for a connection that cannot be opened
        }
        let mut pooled = self.connection()?;
        let check_log = |log: Option<LogFiles>| match (&self.file, log) {
            (Some(file), Some(log)) => file.check_with_log(log),
            _ => Ok(()),
        };
        check_log(pooled.log)?;
        let _earlier = take_corruption();
        let mut result = work(&mut pooled.conn);
        if take_corruption()
            && let Some(file) = &self.file
        {
            file.record_corruption();
        }
        if result.is_ok()
            && let Err(error) = check_log(pooled.log)
        {
            result = Err(error.into());
        }
        pooled.is_suspect = result.is_err();
        result
    }
}

impl Drop for Inner {
    /// Leaks the connections to a lost SQLite file: closing them would write to files that belong to another database.
    fn drop(&mut self) {
        if self.file.as_ref().is_some_and(|file| file.is_lost()) {
            std::mem::forget(self.connections.clone());
        }
    }
}

impl Inner {
    fn reserved_writer(&self) -> MutexGuard<'_, ReservedWriter> {
        self.reserved_writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        conn: &mut AnyConnection,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(conn, Mode::Snapshot, |conn| work(&mut Reader { conn }))
            .map_err(Failure::into_error)
    }

    fn write<T, E: From<Error>>(
        &self,
        conn: &mut AnyConnection,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone,
    ) -> Result<Committed<T>, E> {
        self.transact_repeatedly(conn, Mode::Transaction, |conn| {
            let mut writer = Writer {
                reader: Reader { conn },
                changed: Vec::new(),
            };
            let value = work(&mut writer)?;
            let Writer {
                reader: Reader { conn },
                changed,
            } = writer;
            let seq = leases::raise_counter(conn, changed.into_iter(), self.clock.now())?;
            let change = seq.map(|seq| Change {
                seq,
                at: self.clock.elapsed(),
            });
            Ok(Committed { value, change })
        })
    }

    /// Runs [`Inner::transact`], and runs it again after a conflict, at most [`ATTEMPTS`] times in all.
    fn transact_repeatedly<T, E: From<Error>>(
        &self,
        conn: &mut AnyConnection,
        mode: Mode,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E> + Clone,
    ) -> Result<T, E> {
        for attempt in 1..ATTEMPTS {
            match self.transact(conn, mode, work.clone()) {
                Ok(value) => return Ok(value),
                Err(Failure::Conflict(_)) => {
                    tracing::info!(
                        attempt,
                        "a transaction conflicted with another one and is retried"
                    );
                    std::thread::sleep(CONFLICT_PAUSE * attempt);
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        self.transact(conn, mode, work).map_err(Failure::into_error)
    }

    /// Runs the work in one transaction, without retries.
    fn transact<T, E: From<Error>>(
        &self,
        conn: &mut AnyConnection,
        mode: Mode,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E>,
    ) -> Result<T, Failure<E>> {
        let failed = |error: E| match take_conflict() {
            true => Failure::Conflict(error),
            false => Failure::Other(error),
        };
        let _earlier = take_conflict();
        if mode == Mode::Autocommit {
            return work(conn).map_err(failed);
        }
        begin(conn, mode).map_err(|error| Failure::Other(Error::from(error).into()))?;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let value = work(conn)?;
            if mode == Mode::Transaction
                && let AnyConnection::Postgres(conn) = conn
            {
                // PostgreSQL responds to the commit of a failed transaction with a rollback and no error. If the
                // closure ignored a failed statement, this statement fails.
                conn.batch_execute("SELECT 1").map_err(Error::from)?;
            }
            if mode == Mode::Transaction
                && let Some(file) = &self.file
            {
                file.check_content()?; // do not commit to a file that was deleted or overwritten meanwhile
            }
            Ok(value)
        }));
        match outcome {
            Ok(Ok(value)) => {
                // Not retried on any error: the commit may have succeeded.
                AnyConnection::commit_transaction(conn)
                    .map_err(|error| Failure::Other(Error::from(error).into()))?;
                Ok(value)
            }
            Ok(Err(error)) => {
                let error = failed(error);
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

enum Failure<E> {
    /// The transaction conflicted with another one and can be retried.
    Conflict(E),
    Other(E),
}

impl<E> Failure<E> {
    fn into_error(self) -> E {
        match self {
            Self::Conflict(error) | Self::Other(error) => error,
        }
    }
}

/// Converts the error of the first connection.
fn open_error(error: ConnectError, url: &DatabaseUrl) -> OpenError {
    match error {
        ConnectError::UnsupportedServer(unsuitable) => OpenError::UnsupportedServer(unsuitable),
        ConnectError::OtherApplication => OpenError::NotADatabase {
            path: url
                .file()
                .map(|path| absolute(path).display().to_string())
                .unwrap_or_default(),
            what: "is the SQLite database of another application: it has tables, and not those of Tollkey; correct \
                   DATABASE_URL, or move the file away",
        },
        other => OpenError::Connect {
            target: url.target(),
            is_transient: other.is_transient(),
            reason: untrusted_reason(&other, url).unwrap_or_else(|| other.to_string()),
        },
    }
}

/// Returns why the server's certificate was rejected, if that is the error.
#[cfg(feature = "pg-tls")]
fn untrusted_reason(error: &ConnectError, url: &DatabaseUrl) -> Option<String> {
    let ConnectError::Connect(failure) = error else {
        return None;
    };
    let server = failure.tls_server.as_ref()?;
    certificate::explain(server, &url.handshake(|name| std::env::var(name).ok())?)
}

#[cfg(not(feature = "pg-tls"))]
fn untrusted_reason(_: &ConnectError, _: &DatabaseUrl) -> Option<String> {
    None
}

/// Returns an error if a connection pooler shares server sessions among clients.
fn check_pooling(target: &Target, first: &mut PgConnection) -> Result<(), OpenError> {
    let shared = match establish(target, Use::Write) {
        Ok(AnyConnection::Postgres(mut second)) => {
            share_sessions(first, &mut second).map_err(ConnectError::from)
        }
        Ok(AnyConnection::Sqlite(_)) => Ok(false),
        Err(error) => Err(error),
    };
    match shared {
        Ok(false) => Ok(()),
        Ok(true) => Err(UnsupportedServer::Pooler.into()),
        Err(error) => {
            tracing::warn!(%error, "could not check for a connection pooler: no second connection");
            Ok(())
        }
    }
}

fn begin(conn: &mut AnyConnection, mode: Mode) -> diesel::QueryResult<()> {
    match conn {
        AnyConnection::Sqlite(conn) => {
            let sql = if mode == Mode::Transaction {
                "BEGIN IMMEDIATE"
            } else {
                "BEGIN"
            };
            AnsiTransactionManager::begin_transaction_sql::<SqliteConnection>(conn, sql)
        }
        AnyConnection::Postgres(conn) => {
            // Does not rely on the database's default: a transaction that waited for a lock must see the rows that
            // the holder of the lock wrote.
            let sql = match mode {
                Mode::Transaction => "BEGIN ISOLATION LEVEL READ COMMITTED",
                _ => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            };
            AnsiTransactionManager::begin_transaction_sql::<PgConnection>(conn, sql)
        }
    }
}

/// Rolls back. If that fails, the pool discards the connection, which ends the transaction.
fn roll_back(conn: &mut AnyConnection) {
    if let Err(error) = AnyConnection::rollback_transaction(conn) {
        tracing::warn!(%error, "a transaction could not be rolled back");
    }
}

/// The longest pause between two attempts to connect. Verification can fail for as long after the database is available
/// again.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

fn pool(target: &Target, purpose: Use, size: u32, file: Option<&Arc<SqliteFile>>) -> Pool<Manager> {
    let builder = Pool::builder()
        .max_size(size)
        .min_idle(Some(0))
        // r2d2 pauses for up to half of this timeout between two attempts to connect. It does not limit how long a call
        // waits, because each call passes its own timeout.
        .connection_timeout(LONGEST_PAUSE * 2)
        .test_on_check_out(true) // cheap: see Manager::is_valid
        .error_handler(Box::new(Log));
    let builder = match target {
        Target::Postgres(_) => builder,
        Target::Memory | Target::File(_) => builder.idle_timeout(None).max_lifetime(None),
    };
    builder.build_unchecked(Manager::new(target.clone(), purpose, file.cloned()))
}

#[derive(Debug)]
struct Log;

impl HandleError<ConnectError> for Log {
    fn handle_error(&self, error: ConnectError) {
        tracing::warn!(%error, "a database connection failed");
    }
}
