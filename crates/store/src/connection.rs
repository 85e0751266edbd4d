//! One connection over two backends: how a fresh connection is set up, and how the pool notices that one was lost.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use diesel::{
    Connection as _, RunQueryDsl as _,
    connection::SimpleConnection as _,
    define_sql_function,
    r2d2::{ManageConnection, R2D2Connection as _},
    sql_types::{Bool, Text},
};

pub(crate) use multi::AnyConnection;

#[cfg(any(test, feature = "test-util"))]
use crate::{DatabaseUrl, url::BadUrl};
use crate::{
    connect_failure::ConnectFailure,
    error::is_damage,
    postgres_session,
    postgres_session::Unsuitable,
    sqlite_file::{LogFiles, SqliteFile},
    watch::{CONNECTIONS, Watch},
};

/// Over both backends, one text for most queries. In a module of its own because the derive makes public types
/// without documentation.
#[allow(missing_docs, unreachable_pub, reason = "made by the derive")]
pub(crate) mod multi {
    use diesel::{PgConnection, SqliteConnection};

    #[derive(diesel::MultiConnection)]
    pub(crate) enum AnyConnection {
        Postgres(PgConnection),
        Sqlite(SqliteConnection),
    }
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A file, or memory.
    Sqlite,
    /// A server.
    Postgres,
}

impl Backend {
    /// Its name, as in the scheme of its URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// Where the data is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A database that lives as long as its one connection.
    Memory,
    /// The path of a SQLite file, never beginning with `file:`, which SQLite would read as a URI.
    File(String),
    /// libpq's keywords and values, completed.
    Postgres(String),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "Memory",
            Self::File(_) => "File",
            Self::Postgres(_) => "Postgres",
        })
    }
}

impl Target {
    /// Reads a URL. `env` returns the variables that libpq reads by itself.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn parse(
        url: &str,
        tls: bool,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, BadUrl> {
        DatabaseUrl::parse(url)?.resolve(tls, env)
    }

    pub(crate) fn backend(&self) -> Backend {
        match self {
            Self::Memory | Self::File(_) => Backend::Sqlite,
            Self::Postgres(_) => Backend::Postgres,
        }
    }
}

/// How long libpq tries to reach the server, and after how long without an answer a connection counts as dead.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// On SQLite only reads are possible.
    Read,
    /// Everything.
    Write,
    /// Everything, taking its time.
    Migrate,
}

/// After so long the answer to a statement is late: the server's own limit has ended it before, and the way back takes
/// no longer than connecting does.
const STATEMENT: Duration = Duration::from_secs(8);
/// After so long a sign of life is late.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// After so long a connection is late that is being made. libpq itself ends all but the last step, for each address of
/// the server after [`CONNECT_TIMEOUT`].
const OPENING: Duration = Duration::from_secs(20);
/// How long a statement waits for another process that holds a lock on the SQLite file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long switching to the write-ahead log waits before it is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// The busy timeout comes first, [`BUSY_TIMEOUT`]: the statements after it can meet another process.
const SQLITE_SETUP: &str = "PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; \
                            PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = 67108864;";

/// Opens a connection and sets it up.
pub(crate) fn establish(target: &Target, purpose: Use) -> Result<AnyConnection, ConnectError> {
    Ok(establish_watched(target, purpose)?.0)
}

/// [`establish`], with the watch over a connection to a server.
pub(crate) fn establish_watched(
    target: &Target,
    purpose: Use,
) -> Result<(AnyConnection, Option<Watch>), ConnectError> {
    match target {
        Target::Memory => Ok((sqlite(":memory:", purpose, false)?, None)),
        Target::File(path) => Ok((sqlite(path, purpose, true)?, None)),
        Target::Postgres(url) => {
            let watch = CONNECTIONS.watch(url).map_err(ConnectError::Watch)?;
            watch.begin(OPENING);
            let mut conn =
                diesel::PgConnection::establish(&format!("{url} {}", watch.parameters()))
                    .map_err(ConnectError::from_connecting)?;
            if watch.end() {
                return Err(ConnectError::Lost); // late, and shut
            }
            watch.limit(Some(STATEMENT));
            conn.set_instrumentation(watch.statements());
            conn.batch_execute(postgres_session::NO_STATEMENT_TIMEOUT)?;
            if let Err(error) = conn.batch_execute(postgres_session::ENGLISH) {
                tracing::debug!(%error, "the language of the server's messages cannot be set"); // no PL/pgSQL, say
            }
            postgres_session::prepare(&mut conn, purpose)??;
            watch.limit((purpose != Use::Migrate).then_some(STATEMENT));
            Ok((AnyConnection::Postgres(conn), Some(watch)))
        }
    }
}

/// A setting of the connection; `None` on SQLite.
pub(crate) fn postgres_setting(
    conn: &mut AnyConnection,
    name: &str,
) -> diesel::QueryResult<Option<String>> {
    define_sql_function! { fn current_setting(name: Text) -> Text; }
    match conn {
        AnyConnection::Postgres(conn) => diesel::select(current_setting(name))
            .get_result(conn)
            .map(Some),
        AnyConnection::Sqlite(_) => Ok(None),
    }
}

/// Whether messages in that locale are in the language that errors are told apart in.
pub(crate) fn is_english(locale: &str) -> bool {
    ["C", "POSIX", "en"].iter().any(|english| {
        locale
            .strip_prefix(english)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_', '@', '-']))
    })
}

fn sqlite(path: &str, purpose: Use, in_file: bool) -> Result<AnyConnection, ConnectError> {
    let mut conn =
        diesel::SqliteConnection::establish(path).map_err(ConnectError::from_connecting)?;
    conn.batch_execute(SQLITE_SETUP)
        .map_err(ConnectError::from_sqlite)?;
    if in_file {
        match purpose {
            // Kept in the file; set by the writer, which is opened first.
            Use::Write | Use::Migrate => {
                check_application(&mut conn).map_err(ConnectError::from_sqlite)??;
                use_write_ahead_log(&mut conn).map_err(ConnectError::from_sqlite)?;
            }
            Use::Read => conn.batch_execute("PRAGMA query_only = ON")?,
        }
    }
    Ok(AnyConnection::Sqlite(conn))
}

/// Fails when the file has tables of another application: nothing in it may be changed, and switching to the
/// write-ahead log would.
fn check_application(
    conn: &mut diesel::SqliteConnection,
) -> diesel::QueryResult<Result<(), ConnectError>> {
    let is_ours = "NOT EXISTS (SELECT 1 FROM sqlite_master) OR 2 = (SELECT count(*) FROM sqlite_master \
                   WHERE type = 'table' AND name IN ('__diesel_schema_migrations', 'change_counter'))";
    let is_ours: bool = diesel::select(diesel::dsl::sql::<Bool>(is_ours)).get_result(conn)?;
    Ok(if is_ours {
        Ok(())
    } else {
        Err(ConnectError::OtherApplication)
    })
}

/// Switches the file to the write-ahead log. SQLite does not wait by itself for a process that is in the way: it cannot
/// while it holds a lock.
fn use_write_ahead_log(conn: &mut diesel::SqliteConnection) -> diesel::QueryResult<()> {
    let since = Instant::now();
    loop {
        match conn.batch_execute("PRAGMA journal_mode = WAL") {
            Err(error) if is_locked(&error) && since.elapsed() < BUSY_TIMEOUT => {
                std::thread::sleep(BUSY_PAUSE)
            }
            result => return result,
        }
    }
}

/// Whether another process holds a lock on the SQLite file.
fn is_locked(error: &diesel::result::Error) -> bool {
    matches!(error, diesel::result::Error::DatabaseError(_, info) if info.message() == "database is locked")
}

/// A connection could not be opened. For the log and for the operator; holds nothing that libpq quotes of the URL.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Connect(ConnectFailure),
    #[error(transparent)]
    Query(#[from] diesel::result::Error),
    #[error("the connection was lost")]
    Lost,
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error("the database file was deleted, replaced, overwritten or damaged")]
    FileLost,
    #[error(
        "another process holds a lock on the file, and did not release it within {BUSY_TIMEOUT:?}; end its transaction, \
         or stop it, and try again"
    )]
    Locked,
    #[error("it belongs to another application")]
    OtherApplication,
    #[error("nobody can watch over the connection: {0}")]
    Watch(std::io::Error),
}

impl ConnectError {
    /// The one place where errors of connecting become ours.
    fn from_connecting(error: diesel::ConnectionError) -> Self {
        Self::Connect(ConnectFailure::from(&error))
    }

    fn from_sqlite(error: diesel::result::Error) -> Self {
        if is_locked(&error) {
            Self::Locked
        } else {
            Self::Query(error)
        }
    }

    /// Whether the next attempt may succeed without any change to settings or database.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect(failure) => failure.is_transient,
            Self::Lost => true,
            Self::Query(_)
            | Self::Unsuitable(_)
            | Self::FileLost
            | Self::Locked
            | Self::OtherApplication
            | Self::Watch(_) => false,
        }
    }
}

/// Makes connections for a pool.
#[derive(Debug)]
pub(crate) struct Manager {
    target: Target,
    purpose: Use,
    /// The SQLite file that every connection has to be to.
    file: Option<Arc<SqliteFile>>,
    /// Raised when a connection is found broken: the others of that time are most likely broken too, and are
    /// looked at before they are used again.
    epoch: AtomicU64,
    /// Connections of epochs before this one are not even looked at: one of them did not answer, and to ask one after
    /// the other would take as long with each.
    silent_before: AtomicU64,
}

impl Manager {
    pub(crate) fn new(target: Target, purpose: Use, file: Option<Arc<SqliteFile>>) -> Self {
        Self {
            target,
            purpose,
            file,
            epoch: AtomicU64::new(0),
            silent_before: AtomicU64::new(0),
        }
    }

    /// Notes that a connection is broken, for the others of its time.
    fn found_broken(&self, pooled: &Pooled) {
        let next = pooled.epoch + 1;
        // If somebody else has raised it since, so much the better.
        self.epoch.fetch_max(next, Ordering::Relaxed);
        if pooled.watch.as_ref().is_some_and(Watch::end) {
            self.silent_before.fetch_max(next, Ordering::Relaxed);
        }
    }
}

/// A pooled connection.
pub(crate) struct Pooled {
    pub(crate) conn: AnyConnection,
    /// Set by who had an error with it. diesel cannot tell a connection that the server has closed from a good one when
    /// libpq could not write to it but still read what the server had said before.
    pub(crate) is_suspect: bool,
    epoch: u64,
    checked_in: Instant,
    /// Over a connection to a server.
    watch: Option<Watch>,
    /// The write-ahead log that this connection writes to, on a SQLite file.
    pub(crate) log: Option<LogFiles>,
}

/// Asks for a sign of life, and does not wait long for it.
fn ping(conn: &mut diesel::PgConnection, watch: Option<&Watch>) -> diesel::QueryResult<()> {
    let Some(watch) = watch else {
        return conn.ping();
    };
    watch.limit(Some(SIGN_OF_LIFE));
    let result = conn.ping();
    watch.limit(Some(STATEMENT));
    result
}

/// A connection that rested longer than this is asked for a sign of life before it is used. A busy one is not:
/// a round trip per use would cost a third of a look-up.
const RESTED: Duration = Duration::from_secs(1);

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = ConnectError;

    fn connect(&self) -> Result<Pooled, ConnectError> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let is_lost = || self.file.as_ref().is_some_and(|file| file.check().is_err());
        if is_lost() {
            return Err(ConnectError::FileLost); // SQLite would create another one
        }
        let note_damage = |error: &ConnectError| {
            if let (ConnectError::Query(error), Some(file)) = (error, &self.file)
                && is_damage(error)
            {
                file.note_damage();
            }
        };
        let (mut conn, watch) =
            establish_watched(&self.target, self.purpose).inspect_err(note_damage)?;
        let mut log = None;
        if let Some(file) = &self.file {
            let mut is_lost = is_lost();
            if self.purpose == Use::Write {
                // Opens the log.
                conn.batch_execute("SELECT 1 FROM sqlite_master")
                    .map_err(ConnectError::from)
                    .inspect_err(note_damage)?;
                log = file.note_log_files();
                is_lost |= file.check_content().is_err();
            }
            if is_lost {
                return Err(ConnectError::FileLost);
            }
        }
        Ok(Pooled {
            conn,
            is_suspect: false,
            epoch,
            checked_in: Instant::now(),
            watch,
            log,
        })
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), ConnectError> {
        if let AnyConnection::Postgres(conn) = &mut pooled.conn {
            if pooled.epoch < self.silent_before.load(Ordering::Relaxed) {
                return Err(ConnectError::Lost);
            }
            let epoch = self.epoch.load(Ordering::Relaxed);
            if pooled.epoch != epoch || pooled.checked_in.elapsed() > RESTED {
                if ping(conn, pooled.watch.as_ref()).is_err() {
                    self.found_broken(pooled);
                    return Err(ConnectError::Lost);
                }
                pooled.epoch = epoch;
            }
        }
        Ok(())
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.checked_in = Instant::now();
        let is_suspect = std::mem::take(&mut pooled.is_suspect);
        match &mut pooled.conn {
            // A lost connection leaves its transaction manager in an error state, mostly.
            AnyConnection::Postgres(conn) => {
                let broken = pooled.watch.as_ref().is_some_and(Watch::end)
                    || conn.is_broken()
                    || (is_suspect && ping(conn, pooled.watch.as_ref()).is_err());
                if broken {
                    self.found_broken(pooled);
                }
                broken
            }
            // Dropping the connection of a memory database would drop the data.
            AnyConnection::Sqlite(conn) => self.target != Target::Memory && conn.is_broken(),
        }
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::*;
    use crate::testing::Postgres;

    #[test]
    fn english_is_recognized() {
        for english in ["C", "C.UTF-8", "POSIX", "en_US.UTF-8", "en-GB", "en"] {
            assert!(is_english(english), "{english}");
        }
        for other in ["", "de_DE.UTF-8", "Czech_Czech", "eng", "ca_ES"] {
            assert!(!is_english(other), "{other}");
        }
    }

    fn settings<const N: usize>(conn: &mut AnyConnection, names: [&str; N]) -> [String; N] {
        names.map(|name| postgres_setting(conn, name).unwrap().unwrap())
    }

    #[test]
    fn every_connection_has_limits_speaks_english_and_commits_to_disk() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let database = postgres.database();
        for setting in [
            "synchronous_commit = off",
            "lc_messages = 'C.UTF-8'",
            "lock_timeout = 0",
        ] {
            let sql =
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ', current_database()) || $s$";
            database.sql(&format!("{sql}{setting}$s$; END $$"));
        }
        let target = Target::parse(database.url(), false, |_| None).unwrap();
        let names = [
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
        ];
        for (purpose, limits) in [
            (Use::Read, ["5s", "1500ms", "2s"]),
            (Use::Write, ["5s", "1500ms", "2s"]),
            (Use::Migrate, ["0", "0", "0"]),
        ] {
            let mut conn = establish(&target, purpose).unwrap();
            assert_eq!(settings(&mut conn, names), limits, "{purpose:?}");
            assert_eq!(
                settings(&mut conn, ["synchronous_commit", "lc_messages"]),
                ["on", "C"]
            );
        }

        // Who may not set the language has the rest.
        let Target::Postgres(url) = target else {
            panic!("it is PostgreSQL")
        };
        database.sql("CREATE ROLE plain LOGIN");
        let plain = Target::Postgres(url.replace("user='postgres'", "user='plain'"));
        let mut conn = establish(&plain, Use::Write).unwrap();
        assert_eq!(settings(&mut conn, names), ["5s", "1500ms", "2s"]);
        assert_eq!(
            settings(&mut conn, ["synchronous_commit", "lc_messages"]),
            ["on", "C.UTF-8"]
        );

        // A stricter default stays.
        database.sql("ALTER ROLE plain SET synchronous_commit = remote_apply");
        let mut conn = establish(&plain, Use::Write).unwrap();
        assert_eq!(
            settings(&mut conn, ["synchronous_commit"]),
            ["remote_apply"]
        );
    }

    #[test]
    fn a_setting_the_server_reads_anew_takes_no_durability_away() {
        let Some(postgres) = Postgres::private("") else {
            return;
        };
        let database = postgres.database();
        let target = Target::parse(database.url(), false, |_| None).unwrap();
        let mut conn = establish(&target, Use::Write).unwrap();
        postgres.configure("synchronous_commit = off");
        postgres.configure("work_mem = 12345kB");
        let since = Instant::now();
        while settings(&mut conn, ["work_mem"]) != ["12345kB"] {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "the server does not read its settings"
            );
        }
        assert_eq!(settings(&mut conn, ["synchronous_commit"]), ["on"]);
    }

    #[test]
    fn a_password_is_in_no_debug_text() {
        let target = Target::parse("postgres://user:s3cret@localhost/t", false, |_| None).unwrap();
        assert_eq!(format!("{target:?}"), "Postgres");
    }
}
