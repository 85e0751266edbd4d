//! The store: its pools, the one hop to the blocking pool, and transactions.

use std::{
    any::Any,
    fmt,
    net::IpAddr,
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

use crate::{
    Error,
    connection::{
        AnyConnection, Backend, ConnectError, Manager, Target, Use, establish, is_english,
        postgres_setting,
    },
    error::{take_conflict, take_damage},
    leases, migrations,
    migrations::SchemaError,
    postgres_session::{Unsuitable, share_sessions},
    readiness::Readiness,
    sqlite_file::{self, LogFiles, SqliteFile},
    url::{BadUrl, DatabaseUrl, absolute},
};

/// How to open a store.
#[derive(Clone)]
pub struct OpenOptions {
    /// `sqlite://path`, `sqlite://:memory:` or `postgres://…`. May hold a password.
    pub url: String,
    /// How many connections serve management requests at the same time. Verification has half as many more, at least
    /// one; sessions of the dashboard two; leases two; and SQLite the only one that writes.
    pub pool_size: u32,
    /// How long a call waits for a connection before it is [`Error::Busy`].
    pub acquire_timeout: Duration,
    /// Whether a SQLite file that does not exist is created. Without it, such a file and an empty one are errors.
    pub create: bool,
    /// How long [`Store::migrate`] waits for another process that migrates the same PostgreSQL database.
    pub migration_timeout: Duration,
}

impl OpenOptions {
    /// Eight connections, two seconds to get one, a SQLite file that is created if it does not exist, and a minute for
    /// another process that migrates.
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

/// One for the renewal, which on PostgreSQL may wait for the lock of a change, and one for the reads that follow the
/// changes of other replicas.
const LEASE_CONNECTIONS: u32 = 2;

/// For looking up sessions of the dashboard.
const SESSION_CONNECTIONS: u32 = 2;

/// How many calls can wait for a connection of one role. When more come, the owner with the most waiting calls is told
/// that the store is busy.
const WAITING: usize = 1024;

/// How long the writer of a SQLite file is kept for the renewal that follows a rejected one.
const KEPT_FOR_RENEWAL: Duration = Duration::from_millis(50);

/// How often a transaction is run when others are in its way.
const ATTEMPTS: u32 = 3;

/// How long a transaction waits before it runs again, times its attempts. Without a pause it takes its first lock again
/// before the transaction that waits for that lock has woken up, and both are in a deadlock again.
const CONFLICT_PAUSE: Duration = Duration::from_millis(25);

/// How many rows are deleted in one transaction, where many may have grown old.
pub(crate) const STEP: u32 = 5_000;

/// The store could not be opened. Names the database without user name and password, and what to do next. The text is
/// complete: an error has no source whose text it contains.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL cannot be used.
    #[error("DATABASE_URL: {0}")]
    Url(BadUrl),
    /// The SQLite file does not exist, and was not to be created.
    #[error(
        "SQLite database {path} does not exist; run the command in the directory of the server, set DATABASE_URL or \
         --database-url, or create the database with `tollkey migrate`"
    )]
    Missing {
        /// Its absolute path.
        path: String,
    },
    /// The SQLite file exists and holds nothing, or something else.
    #[error("{path} {what}")]
    NotADatabase {
        /// Its absolute path.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The operating system does not let the SQLite file be used.
    #[error("cannot open the SQLite database {path}: {error}{hint}")]
    File {
        /// Its absolute path.
        path: String,
        /// The operating system's error.
        error: std::io::Error,
        /// What to do about it, beginning with a semicolon; empty where the error says it.
        hint: String,
    },
    /// No connection could be made.
    #[error("cannot connect to the {target}: {reason}")]
    Connect {
        /// The database, as of [`DatabaseUrl::target`].
        target: String,
        /// Why, with what to do about it; nothing that a library quotes of the URL.
        reason: String,
        /// See [`OpenError::is_transient`].
        is_transient: bool,
    },
    /// The database server, or what is between, is not what Tollkey can rely on. Waiting does not help.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
}

impl From<BadUrl> for OpenError {
    fn from(error: BadUrl) -> Self {
        Self::Url(error)
    }
}

impl OpenError {
    fn connecting(error: ConnectError, url: &DatabaseUrl) -> Self {
        match error {
            ConnectError::Unsuitable(unsuitable) => Self::Unsuitable(unsuitable),
            ConnectError::OtherApplication => Self::NotADatabase {
                path: url
                    .file()
                    .map(|path| absolute(path).display().to_string())
                    .unwrap_or_default(),
                what: "is the SQLite database of another application: it has tables, and not those of Tollkey; correct \
                       DATABASE_URL, or move the file away",
            },
            other => Self::Connect {
                target: url.target(),
                is_transient: other.is_transient(),
                reason: other.to_string(),
            },
        }
    }

    /// Whether the next attempt may succeed without any change to settings or database: the server is starting, or
    /// cannot be reached or resolved yet.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Connect {
                is_transient: true,
                ..
            }
        )
    }
}

/// The data of Tollkey. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    target: Target,
    acquire_timeout: Duration,
    migration_timeout: Duration,
    /// The file of a SQLite database that is not in memory.
    pub(crate) file: Option<Arc<SqliteFile>>,
    pub(crate) readiness: Readiness,
    clock: Arc<dyn Clock>,
    connections: Connections,
    kept_for_renewal: Mutex<KeptForRenewal>,
}

/// What a connection is used for. Each role has connections that the others cannot take, except that on SQLite one
/// connection does all writes, and that a database in memory is one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionRole {
    /// Reads of management requests.
    Read,
    /// Changes.
    Write,
    /// Writes about leases. On SQLite they go before changes that wait for the same connection.
    Lease,
    /// Reads about leases.
    LeaseRead,
    /// Looking up keys for verification.
    Verification,
    /// Looking up sessions of the dashboard.
    Session,
}

/// The connections of each role.
struct Connections {
    read: ConnectionGroup,
    write: ConnectionGroup,
    lease: ConnectionGroup,
    lease_read: ConnectionGroup,
    verification: ConnectionGroup,
    session: ConnectionGroup,
}

/// Connections, and a semaphore that lets no more callers through than there are connections for them. Clones share
/// both.
#[derive(Clone)]
struct ConnectionGroup {
    pool: Pool<Manager>,
    acquire_timeout: Duration,
    semaphore: FairSemaphore<Owner>,
    priority: Priority,
    /// The SQLite file that every connection is to.
    file: Option<Arc<SqliteFile>>,
}

/// Whose work a connection is used for. Connections are shared fairly among owners: no owner holds more than half of
/// those of a role, and owners that wait are served in turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An account: all management requests for it, also those of an operator.
    Account(AccountId),
    /// A client of the dashboard that is not known yet, by [`tollkey_core::network::client_network`].
    Client(Option<IpAddr>),
    /// What belongs to no account: service keys.
    Operator,
    /// This process itself.
    Background,
}

impl From<&AccountId> for Owner {
    fn from(account: &AccountId) -> Self {
        Self::Account(account.clone())
    }
}

/// The permit for the writer, kept after a rejected renewal.
#[derive(Default)]
struct KeptForRenewal {
    /// Another number each time one is kept.
    number: u64,
    permit: Option<Permit<Owner>>,
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
    /// Opens a store and connects once. Creates a SQLite file that does not exist, readable by its owner alone, unless
    /// the options forbid it.
    /// Blocks; meant for the start of a process. Migrates nothing: see [`Store::migrate`].
    ///
    /// # Errors
    /// [`OpenError`].
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
        // The pool would try again until its timeout and hide why; the first connection is made here, for its error.
        // A memory database is its connection: the pool keeps the one it makes.
        if target != Target::Memory {
            let mut first = establish(&target, Use::Write)
                .map_err(|error| OpenError::connecting(error, &url))?;
            if let AnyConnection::Postgres(first) = &mut first {
                check_pooling(&target, first)?;
            }
            if let Ok(Some(locale)) = postgres_setting(&mut first, "lc_messages")
                && !is_english(&locale)
            {
                tracing::warn!(
                    %locale,
                    "the database's messages are not in English and this role may not set their language: a lock that \
                     is not had in time is answered 500 instead of 503, and a deadlock is not retried. ALTER ROLE ... \
                     SET lc_messages = 'C', as a superuser, mends it"
                );
            }
            if file.is_some() {
                // From here on the pool keeps the file open, so that its inode stays its own.
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
        let OpenOptions {
            acquire_timeout,
            migration_timeout,
            ..
        } = options;
        let inner = Inner {
            target,
            acquire_timeout,
            migration_timeout,
            file,
            readiness: Readiness::default(),
            clock,
            connections,
            kept_for_renewal: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
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

    /// Brings the schema up to this version. Safe to run from several processes at the same time. Blocks, on PostgreSQL at
    /// most for [`OpenOptions::migration_timeout`] while another process migrates.
    ///
    /// # Errors
    /// [`SchemaError`]; [`SchemaError::Locked`] after that time.
    pub fn migrate(&self) -> Result<(), SchemaError> {
        self.apply_migrations().map(drop)
    }

    /// As [`Store::migrate`]; returns the names of the migrations that this call has applied, in their order.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn apply_migrations(&self) -> Result<Vec<String>, SchemaError> {
        match &self.inner.target {
            Target::Memory => {
                let mut pooled = self
                    .inner
                    .connections
                    .write
                    .connection()
                    .map_err(SchemaError::Store)?;
                migrations::run(&mut pooled.conn, self.inner.migration_timeout)
            }
            // PostgreSQL's own limits of time are off on this connection.
            target => {
                let mut conn = establish(target, Use::Migrate)
                    .map_err(|error| SchemaError::Failed(error.to_string()))?;
                migrations::run(&mut conn, self.inner.migration_timeout)
            }
        }
    }

    /// Whether the schema is that of this version and, on PostgreSQL, the role has the rights that the server needs.
    /// Changes nothing. Blocks.
    ///
    /// # Errors
    /// [`SchemaError::Older`] or [`SchemaError::Newer`] when it is not, [`SchemaError::Rights`] for a missing right,
    /// [`SchemaError::NotInSearchPath`] when the tables are in another schema.
    pub fn check_schema(&self) -> Result<(), SchemaError> {
        let mut pooled = self
            .inner
            .connections
            .read
            .connection()
            .map_err(SchemaError::Store)?;
        migrations::check(&mut pooled.conn)
    }

    /// [`Store::check_schema`] without blocking. Requests that wait for connections do not delay it.
    ///
    /// # Errors
    /// As there.
    pub async fn schema(&self) -> Result<(), SchemaError> {
        self.hop(ConnectionRole::LeaseRead, Owner::Background, |_, conn| {
            migrations::check(conn)
        })
        .await
    }

    /// Whether the database answers and, on PostgreSQL, is not read-only. [`Store::ready`] checks more.
    ///
    /// # Errors
    /// [`Error`] when it does not answer, [`Error::Unavailable`] when it is read-only.
    pub async fn ping(&self) -> Result<(), Error> {
        self.read_one(ConnectionRole::LeaseRead, Owner::Background, |conn| {
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

    /// Reads on one snapshot, as [`Owner::Background`].
    ///
    /// # Errors
    /// What the closure returns, [`Error::Busy`] when no connection becomes free in time, [`Error::Unavailable`]
    /// when the database cannot be reached.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_for(Owner::Background, work).await
    }

    /// Reads on one snapshot.
    ///
    /// # Errors
    /// As [`Store::read`]; [`Error::Busy`] also immediately, when too many calls wait and this owner has the most.
    pub async fn read_for<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.hop(ConnectionRole::Read, owner.into(), |inner, conn| {
            inner.read(conn, work)
        })
        .await
    }

    /// [`Store::read`] without a runtime, for the command line.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_blocking<T>(
        &self,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.inner
            .connections
            .read
            .with(|conn| self.inner.read(conn, work))
    }

    /// Writes in one transaction, as [`Owner::Background`]: committed when the closure returns `Ok`, rolled back when
    /// it returns `Err` or panics. Once begun it is finished even if the caller goes away.
    ///
    /// When PostgreSQL ends the transaction because of a deadlock or a serialization failure, a clone of the closure runs
    /// again in a new transaction, three times in all. A commit that was sent is never repeated.
    ///
    /// # Errors
    /// What the closure returns; the store's own errors as in [`Store::read`], and those of the commit.
    pub async fn write<T, E>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone + Send + 'static,
    ) -> Result<Written<T>, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.write_for(Owner::Background, work).await
    }

    /// [`Store::write`] for this owner.
    ///
    /// # Errors
    /// As [`Store::write`] and [`Store::read_for`].
    pub async fn write_for<T, E>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone + Send + 'static,
    ) -> Result<Written<T>, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.hop(ConnectionRole::Write, owner.into(), |inner, conn| {
            inner.write(conn, work)
        })
        .await
    }

    /// [`Store::write`] without a runtime, for the command line.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_blocking<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, E> + Clone,
    ) -> Result<Written<T>, E> {
        self.inner
            .connections
            .write
            .with(|conn| self.inner.write(conn, work))
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
    async fn read_one<T: Send + 'static>(
        &self,
        role: ConnectionRole,
        owner: Owner,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.hop(role, owner, |_, conn| work(conn)).await
    }

    /// One read statement of a verification.
    pub(crate) async fn verification_read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_one(ConnectionRole::Verification, Owner::Background, work)
            .await
    }

    /// One read statement about a session of the dashboard.
    pub(crate) async fn session_read<T: Send + 'static>(
        &self,
        owner: Owner,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_one(ConnectionRole::Session, owner, work).await
    }

    /// How a write about leases runs. On PostgreSQL it must be committed by itself: a process frozen inside a
    /// transaction would hold the counter's lock. SQLite takes its write lock first.
    fn lease_mode(&self) -> Mode {
        match self.backend() {
            Backend::Sqlite => Mode::Transaction,
            Backend::Postgres => Mode::Autocommit,
        }
    }

    /// One statement about leases.
    pub(crate) async fn lease_one<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let mode = self.lease_mode();
        self.hop(
            ConnectionRole::Lease,
            Owner::Background,
            move |inner, conn| inner.transact_repeatedly(conn, mode, work),
        )
        .await
    }

    /// The statement that renews a lease. It is rejected, with `false`, when a change has been committed that the
    /// verifier has not applied yet. On a SQLite file the writer is then kept for the next renewal: if this process
    /// committed another change in between each time, it would lose its lease.
    pub(crate) async fn renew_one(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<bool, Error> + Clone + Send + 'static,
    ) -> Result<bool, Error> {
        let mode = self.lease_mode();
        let group = self.inner.connections.of(ConnectionRole::Lease);
        let kept = self.inner.kept_for_renewal().permit.take();
        let permit = match kept {
            Some(permit) => permit,
            None => self.acquire(group, Owner::Background).await?,
        };
        let run = self.run(group, permit, move |inner, conn| {
            inner.transact_repeatedly(conn, mode, work)
        });
        let (renewed, permit) = run.await;
        if matches!(renewed, Ok(false)) && matches!(self.inner.target, Target::File(_)) {
            let number = {
                let mut kept = self.inner.kept_for_renewal();
                kept.number = kept.number.wrapping_add(1);
                kept.permit = permit;
                kept.number
            };
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                tokio::time::sleep(KEPT_FOR_RENEWAL).await;
                let mut kept = inner.kept_for_renewal();
                if kept.number == number {
                    kept.permit = None;
                }
            });
        }
        renewed
    }

    /// A small transaction about leases.
    pub(crate) async fn lease_transaction(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<(), Error> + Clone + Send + 'static,
    ) -> Result<(), Error> {
        self.hop(ConnectionRole::Lease, Owner::Background, |inner, conn| {
            inner.transact_repeatedly(conn, Mode::Transaction, work)
        })
        .await
    }

    /// A transaction in the place of one about leases that is rolled back, also when the work succeeds.
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
        let rolled_back = self.hop(ConnectionRole::Lease, Owner::Background, |inner, conn| {
            inner.transact_repeatedly(conn, Mode::Transaction, |conn| {
                Err::<(), _>(RolledBack(work(conn)))
            })
        });
        rolled_back
            .await
            .err()
            .map_or(Ok(()), |RolledBack(result)| result)
    }

    /// A read statement about leases.
    pub(crate) async fn lease_read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_one(ConnectionRole::LeaseRead, Owner::Background, work)
            .await
    }

    /// Waits, within bounds, for a connection of that role and runs on the blocking pool.
    async fn hop<T, E>(
        &self,
        role: ConnectionRole,
        owner: Owner,
        work: impl FnOnce(&Inner, &mut AnyConnection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let group = self.inner.connections.of(role);
        let permit = self.acquire(group, owner).await?;
        self.run(group, permit, work).await.0
    }

    async fn acquire(&self, group: &ConnectionGroup, owner: Owner) -> Result<Permit<Owner>, Error> {
        let permit = group.semaphore.acquire(owner, group.priority);
        match tokio::time::timeout(self.inner.acquire_timeout, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(full)) => {
                tracing::warn!(%full, "a request for a database connection was rejected");
                Err(Error::Busy)
            }
            Err(_) => {
                tracing::warn!("no database connection became free in time");
                Err(Error::Busy)
            }
        }
    }

    /// The one place that leaves the async world. Gives the permit back unless the work panicked or the runtime shuts
    /// down.
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
            let permit = permit; // released when the work ends, even if the caller is gone
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
            semaphore: FairSemaphore::new(Limits::half_per_owner(connections as usize, WAITING)),
            priority: Priority::Normal,
            file: file.cloned(),
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
                Self {
                    read: readers(size),
                    lease: urgent(&write),
                    write,
                    lease_read: urgent(&readers(LEASE_CONNECTIONS)),
                    verification: urgent(&readers(verification)),
                    session: readers(SESSION_CONNECTIONS),
                }
            }
            // One pool for all roles, so that a connection which is not needed by one serves another; the semaphores
            // keep the shares apart.
            Target::Postgres(_) => {
                let all = size + LEASE_CONNECTIONS + verification + SESSION_CONNECTIONS;
                let all = pool(Use::Write, all);
                let requests = group(&all, size);
                let lease = urgent(&group(&all, LEASE_CONNECTIONS));
                Self {
                    read: requests.clone(),
                    write: requests,
                    lease: lease.clone(),
                    lease_read: lease,
                    verification: urgent(&group(&all, verification)),
                    session: group(&all, SESSION_CONNECTIONS),
                }
            }
        }
    }

    fn of(&self, role: ConnectionRole) -> &ConnectionGroup {
        match role {
            ConnectionRole::Read => &self.read,
            ConnectionRole::Write => &self.write,
            ConnectionRole::Lease => &self.lease,
            ConnectionRole::LeaseRead => &self.lease_read,
            ConnectionRole::Verification => &self.verification,
            ConnectionRole::Session => &self.session,
        }
    }
}

impl ConnectionGroup {
    fn connection(&self) -> Result<diesel::r2d2::PooledConnection<Manager>, Error> {
        // The pool's handler has logged why no connection could be made.
        self.pool
            .get_timeout(self.acquire_timeout)
            .map_err(|_| Error::Unavailable)
    }

    /// Works with a connection, and has it looked at afterwards if that failed.
    ///
    /// Fails when the SQLite file is no longer at its path, also when that is so only afterwards: what was written may be
    /// in a file that nothing can open any more.
    fn with<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(file) = &self.file {
            file.check()?; // first, because the pool waits for a connection that it cannot make
        }
        let mut pooled = self.connection()?;
        let check_log = |log: Option<LogFiles>| match (&self.file, log) {
            (Some(file), Some(log)) => file.check_with_log(log),
            _ => Ok(()),
        };
        check_log(pooled.log)?;
        let _earlier = take_damage();
        let mut result = work(&mut pooled.conn);
        if take_damage()
            && let Some(file) = &self.file
        {
            file.note_damage();
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
    /// Keeps the connections to a SQLite file that is lost: closing them would write into files that are not theirs.
    fn drop(&mut self) {
        if self.file.as_ref().is_some_and(|file| file.is_lost()) {
            let Connections {
                read,
                write,
                lease,
                lease_read,
                verification,
                session,
            } = &self.connections;
            std::mem::forget(
                [read, write, lease, lease_read, verification, session].map(Clone::clone),
            );
        }
    }
}

impl Inner {
    fn kept_for_renewal(&self) -> MutexGuard<'_, KeptForRenewal> {
        self.kept_for_renewal
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
    ) -> Result<Written<T>, E> {
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
            Ok(Written { value, change })
        })
    }

    /// [`Inner::transact`], again in a new transaction when another one was in the way.
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
                        "a transaction conflicted with another one; it is run again"
                    );
                    std::thread::sleep(CONFLICT_PAUSE * attempt);
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        self.transact(conn, mode, work).map_err(Failure::into_error)
    }

    /// Runs the work in one transaction, once.
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
                // PostgreSQL answers the commit of a transaction in which a statement failed by rolling it back,
                // without an error. If the closure ignored such a failure, this statement fails.
                conn.batch_execute("SELECT 1").map_err(Error::from)?;
            }
            if mode == Mode::Transaction
                && let Some(file) = &self.file
            {
                file.check_content()?; // nothing is committed into a file that was deleted or overwritten meanwhile
            }
            Ok(value)
        }));
        match outcome {
            Ok(Ok(value)) => {
                // Not repeated, whatever it says: it may have happened.
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

/// Why a transaction was rolled back.
enum Failure<E> {
    /// Another transaction was in the way; this one can be run again.
    Conflict(E),
    /// Anything else.
    Other(E),
}

impl<E> Failure<E> {
    fn into_error(self) -> E {
        match self {
            Self::Conflict(error) | Self::Other(error) => error,
        }
    }
}

/// Fails when a connection pooler shares server sessions among clients.
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
        Ok(true) => Err(Unsuitable::Pooler.into()),
        Err(error) => {
            tracing::warn!(%error, "whether a connection pooler shares sessions is not known: no second connection");
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

/// The longest pause between two attempts to connect, and so the longest that verification stays away once the
/// database is back.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

fn pool(target: &Target, purpose: Use, size: u32, file: Option<&Arc<SqliteFile>>) -> Pool<Manager> {
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
    builder.build_unchecked(Manager::new(target.clone(), purpose, file.cloned()))
}

#[derive(Debug)]
struct Log;

impl HandleError<ConnectError> for Log {
    fn handle_error(&self, error: ConnectError) {
        tracing::warn!(%error, "a database connection failed");
    }
}
