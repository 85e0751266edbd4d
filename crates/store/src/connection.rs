//! One connection over two backends: which URL means which database, how a fresh connection is set up, and how
//! the pool notices that one was lost.

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
    sql_types::Text,
};

pub(crate) use multi::AnyConnection;

use crate::{
    postgres_session,
    postgres_session::Unsuitable,
    sqlite_file::{FileId, SqliteFile},
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

/// The database URL cannot be used. Never repeats the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme, or none.
    #[error("the database URL must begin with sqlite:// or postgres://")]
    Scheme,
    /// `sqlite://` and nothing behind it.
    #[error("the database URL names no file; write sqlite://tollkey.db, sqlite:///absolute/path or sqlite://:memory:")]
    NoFile,
    /// A PostgreSQL URL that breaks off, repeats itself or has a broken percent escape.
    #[error("the PostgreSQL URL is not well-formed")]
    Malformed,
    /// The server is elsewhere, and this build has no TLS.
    #[error(
        "this build has no TLS for PostgreSQL, and the database is not on this machine. Build with \
         `--features pg-tls`, or put sslmode=disable into the URL if the network between is trusted"
    )]
    NeedsTls,
    /// `sslmode=require` and the like, and this build has no TLS.
    #[error("this build has no TLS for PostgreSQL, and the URL demands it. Build with `--features pg-tls`")]
    TlsDemanded,
    /// A standby may lag behind: it could say yes to a revoked key.
    #[error("Tollkey needs the primary: leave target_session_attrs out of the URL, or make it read-write")]
    Standby,
}

/// Where the data is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A database that lives as long as its one connection.
    Memory,
    /// The path of a SQLite file, never beginning with `file:`, which SQLite would read as a URI.
    File(String),
    /// A libpq URL, completed.
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
    /// Reads a URL. `env` looks up the variables that libpq reads by itself.
    pub(crate) fn parse(url: &str, tls: bool, env: impl Fn(&str) -> Option<String>) -> Result<Self, BadUrl> {
        if let Some(path) = url.strip_prefix("sqlite://") {
            return match path {
                "" | "/" => Err(BadUrl::NoFile),
                ":memory:" => Ok(Self::Memory),
                absolute if absolute.starts_with('/') => Ok(Self::File(absolute.to_owned())),
                relative => Ok(Self::File(format!("./{relative}"))),
            };
        }
        let rest =
            url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or(BadUrl::Scheme)?;
        parse_postgres(url, rest, tls, env)
    }

    pub(crate) fn backend(&self) -> Backend {
        match self {
            Self::Memory | Self::File(_) => Backend::Sqlite,
            Self::Postgres(_) => Backend::Postgres,
        }
    }
}

/// How long libpq tries to reach the server, and after how long without an answer a connection counts as dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

fn parse_postgres(url: &str, rest: &str, tls: bool, env: impl Fn(&str) -> Option<String>) -> Result<Target, BadUrl> {
    // In libpq's order, so that both mean the same host: credentials end at the first '@' before any '/', even
    // behind a '?'.
    let hosts_on = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => &rest[at + 1..],
        _ => rest,
    };
    let hosts = hosts_on.split(['/', '?']).next().unwrap_or_default();
    let query = hosts_on.split_once('?').map_or("", |(_, query)| query);
    let mut parameters = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(BadUrl::Malformed)?;
        parameters.push((decode(name)?, decode(value)?));
    }
    let parameter = |name: &str| parameters.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str());

    // Where libpq would really connect to: `host` of the query overrides the authority, `hostaddr` both, and
    // environment and service file fill what is left open.
    let mut places = Vec::new();
    match parameter("host") {
        Some(list) => places.extend(list.split(',').map(str::to_owned)),
        None => {
            for host in hosts.split(',') {
                places.extend(decode(without_port(host))?.split(',').map(str::to_owned));
            }
        }
    }
    if places.iter().all(String::is_empty) {
        places = env("PGHOST").iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    }
    let addresses = parameter("hostaddr").map(str::to_owned).or_else(|| env("PGHOSTADDR"));
    places.extend(addresses.iter().flat_map(|list| list.split(',')).map(str::to_owned));
    let service = parameter("service").is_some() || env("PGSERVICE").is_some_and(|service| !service.is_empty());
    let local = !service && places.iter().all(|place| is_local(place));

    if !tls {
        match parameter("sslmode") {
            Some("require" | "verify-ca" | "verify-full") => return Err(BadUrl::TlsDemanded),
            Some("disable") => {}
            _ if local => {}
            _ => return Err(BadUrl::NeedsTls),
        }
    }
    if !matches!(parameter("target_session_attrs"), None | Some("read-write" | "primary")) {
        return Err(BadUrl::Standby);
    }

    // A connection must not hang for ever, and a server that was made a standby must not be connected to.
    let millis = CONNECT_TIMEOUT.as_millis();
    let mut completed = url.to_owned();
    for (name, value) in [
        ("connect_timeout", CONNECT_TIMEOUT.as_secs().to_string()),
        ("tcp_user_timeout", millis.to_string()),
        ("keepalives_idle", "5".to_owned()),
        ("keepalives_interval", "2".to_owned()),
        ("keepalives_count", "2".to_owned()),
        ("target_session_attrs", "read-write".to_owned()),
        ("application_name", "tollkey".to_owned()),
        ("client_encoding", "UTF8".to_owned()),
    ] {
        if parameter(name).is_none() {
            completed.push(if completed.contains('?') { '&' } else { '?' });
            completed.push_str(&format!("{name}={value}"));
        }
    }
    Ok(Target::Postgres(completed))
}

/// A host of the authority without its port; an IPv6 address is in brackets.
fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_local(host: &str) -> bool {
    host.is_empty()
        || host.starts_with('/') // a directory with a socket
        || host.starts_with('@') // an abstract socket
        || host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Resolves percent escapes, as libpq does.
fn decode(text: &str) -> Result<String, BadUrl> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or(BadUrl::Malformed);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| BadUrl::Malformed)?);
    }
    String::from_utf8(bytes).map_err(|_| BadUrl::Malformed)
}

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

/// After so long the answer to a statement is late: the server's own limit has ended it before, and the way back takes no
/// longer than connecting does.
const STATEMENT: Duration = Duration::from_secs(8);
/// After so long a sign of life is late.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// After so long a connection is late that is being made. libpq itself ends all but the last step, for each address of
/// the server after [`CONNECT_TIMEOUT`].
const OPENING: Duration = Duration::from_secs(20);
/// The busy timeout comes first: switching to WAL can meet another process doing the same.
const SQLITE_SETUP: &str = "PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; \
                            PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = 67108864;";

/// Opens a connection and sets it up.
pub(crate) fn establish(target: &Target, purpose: Use) -> Result<AnyConnection, ConnectError> {
    Ok(establish_watched(target, purpose)?.0)
}

/// [`establish`], with the watch over a connection to a server.
pub(crate) fn establish_watched(target: &Target, purpose: Use) -> Result<(AnyConnection, Option<Watch>), ConnectError> {
    match target {
        Target::Memory => Ok((sqlite(":memory:", purpose, false)?, None)),
        Target::File(path) => Ok((sqlite(path, purpose, true)?, None)),
        Target::Postgres(url) => {
            let watch = CONNECTIONS.watch(user_timeout(url)).map_err(ConnectError::Watch)?;
            watch.begin(OPENING);
            // The last ones count. Without keep-alives libpq would not set the other.
            let mut conn =
                diesel::PgConnection::establish(&format!("{url}&keepalives=1&tcp_user_timeout={}", watch.mark()))?;
            if watch.end() {
                return Err(ConnectError::Lost); // late, and shut
            }
            watch.limit(Some(STATEMENT));
            conn.set_instrumentation(watch.statements());
            if let Err(error) = conn.batch_execute(postgres_session::ENGLISH) {
                tracing::debug!(%error, "the language of the server's messages cannot be set"); // no PL/pgSQL, say
            }
            postgres_session::prepare(&mut conn, purpose)??;
            watch.limit((purpose != Use::Migrate).then_some(STATEMENT));
            Ok((AnyConnection::Postgres(conn), Some(watch)))
        }
    }
}

/// The `tcp_user_timeout` of a completed URL, in milliseconds. Zero means what the kernel does by itself, which is to give
/// up after a quarter of an hour.
fn user_timeout(url: &str) -> u32 {
    let last = url.rsplit_once("tcp_user_timeout=").map_or("", |(_, rest)| rest);
    match last.split('&').next().and_then(|millis| millis.parse().ok()) {
        None | Some(0) => 15 * 60 * 1000,
        Some(millis) => millis,
    }
}

/// A setting of the connection; `None` on SQLite.
pub(crate) fn postgres_setting(conn: &mut AnyConnection, name: &str) -> diesel::QueryResult<Option<String>> {
    define_sql_function! { fn current_setting(name: Text) -> Text; }
    match conn {
        AnyConnection::Postgres(conn) => diesel::select(current_setting(name)).get_result(conn).map(Some),
        AnyConnection::Sqlite(_) => Ok(None),
    }
}

/// Whether messages in that locale are in the language that errors are told apart in.
pub(crate) fn is_english(locale: &str) -> bool {
    ["C", "POSIX", "en"].iter().any(|english| {
        locale.strip_prefix(english).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_', '@', '-']))
    })
}

fn sqlite(path: &str, purpose: Use, in_file: bool) -> Result<AnyConnection, ConnectError> {
    let mut conn = diesel::SqliteConnection::establish(path)?;
    conn.batch_execute(SQLITE_SETUP)?;
    if in_file {
        match purpose {
            // Kept in the file; set by the writer, which is opened first.
            Use::Write | Use::Migrate => conn.batch_execute("PRAGMA journal_mode = WAL")?,
            Use::Read => conn.batch_execute("PRAGMA query_only = ON")?,
        }
    }
    Ok(AnyConnection::Sqlite(conn))
}

/// A connection could not be opened. For the log and for whoever starts the server; holds no password.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Connect(#[from] diesel::ConnectionError),
    #[error(transparent)]
    Query(#[from] diesel::result::Error),
    #[error("the connection was lost")]
    Lost,
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    #[error("the database file was deleted or replaced")]
    FileLost,
    #[error("nobody can watch over the connection: {0}")]
    Watch(std::io::Error),
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
    /// Connections of epochs before this one are not even looked at: one of them did not answer, and to ask one after the
    /// other would take as long with each.
    silent_before: AtomicU64,
}

impl Manager {
    pub(crate) fn new(target: Target, purpose: Use, file: Option<Arc<SqliteFile>>) -> Self {
        Self { target, purpose, file, epoch: AtomicU64::new(0), silent_before: AtomicU64::new(0) }
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
    pub(crate) log: Option<FileId>,
}

/// Asks for a sign of life, and does not wait long for it.
fn ping(conn: &mut diesel::PgConnection, watch: Option<&Watch>) -> diesel::QueryResult<()> {
    let Some(watch) = watch else { return conn.ping() };
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
        let (mut conn, watch) = establish_watched(&self.target, self.purpose)?;
        let mut log = None;
        if let Some(file) = &self.file {
            if self.purpose == Use::Write {
                conn.batch_execute("SELECT 1 FROM sqlite_master")?; // opens the log
                log = file.log();
            }
            if is_lost() {
                return Err(ConnectError::FileLost);
            }
        }
        Ok(Pooled { conn, is_suspect: false, epoch, checked_in: Instant::now(), watch, log })
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

    fn parse(url: &str) -> Result<Target, BadUrl> {
        Target::parse(url, false, |_| None)
    }

    #[test]
    fn sqlite_urls_name_a_file_or_memory() {
        assert_eq!(parse("sqlite://tollkey.db"), Ok(Target::File("./tollkey.db".into())));
        assert_eq!(parse("sqlite://data/a b.db"), Ok(Target::File("./data/a b.db".into())));
        assert_eq!(parse("sqlite:///var/lib/t.db"), Ok(Target::File("/var/lib/t.db".into())));
        assert_eq!(parse("sqlite://file:x?mode=memory"), Ok(Target::File("./file:x?mode=memory".into())));
        assert_eq!(parse("sqlite://:memory:"), Ok(Target::Memory));
        assert_eq!(parse("sqlite://"), Err(BadUrl::NoFile));
        for url in ["", "tollkey.db", "mysql://x", "sqlite:x", "postgres:x"] {
            assert_eq!(parse(url), Err(BadUrl::Scheme), "{url}");
        }
    }

    #[test]
    fn without_tls_only_this_machine_is_connected_to() {
        for url in [
            "postgres:///tollkey",
            "postgres://localhost/tollkey",
            "postgres://user:p%40ss@127.0.0.1:5432/tollkey",
            "postgresql://user@[::1]:5432/tollkey",
            "postgres://%2Fvar%2Frun%2Fpostgresql/tollkey",
            "postgres:///tollkey?host=/var/run/postgresql",
            "postgres://db.example/tollkey?sslmode=disable",
            "postgres://db.example/tollkey?host=localhost",
        ] {
            assert!(parse(url).is_ok(), "{url}");
        }
        for url in [
            "postgres://db.example/tollkey",
            "postgres://db.example/tollkey?sslmode=prefer",
            "postgres://localhost,db.example/tollkey",
            "postgres://localhost/tollkey?host=db.example",
            "postgres://localhost/tollkey?hostaddr=192.0.2.1",
            "postgres://localhost@db.example/tollkey",
            "postgres://10.0.0.1",
            "postgres:///tollkey?service=remote",
            "postgres://localhost?x=a@db.example",
            "postgres://%2Ftmp%2Cdb.example/tollkey",
        ] {
            assert_eq!(parse(url), Err(BadUrl::NeedsTls), "{url}");
        }
        let elsewhere = |name: &str| (name == "PGHOST").then(|| "db.example".to_owned());
        assert_eq!(Target::parse("postgres:///tollkey", false, elsewhere), Err(BadUrl::NeedsTls));
        assert!(Target::parse("postgres://db.example/tollkey", true, |_| None).is_ok());
        assert_eq!(parse("postgres://localhost/t?sslmode=verify-full"), Err(BadUrl::TlsDemanded));
    }

    #[test]
    fn a_standby_is_never_asked_for() {
        assert_eq!(parse("postgres:///t?target_session_attrs=any"), Err(BadUrl::Standby));
        let Ok(Target::Postgres(url)) = parse("postgres:///t?connect_timeout=9") else { panic!("no URL") };
        assert!(url.starts_with("postgres:///t?connect_timeout=9&tcp_user_timeout="), "{url}");
        assert!(url.contains("&target_session_attrs=read-write"), "{url}");
        assert_eq!(url.matches("connect_timeout").count(), 1);
    }

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
        let Some(postgres) = Postgres::shared() else { return };
        let database = postgres.database();
        for setting in ["synchronous_commit = off", "lc_messages = 'C.UTF-8'", "lock_timeout = 0"] {
            let sql = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ', current_database()) || $s$";
            database.sql(&format!("{sql}{setting}$s$; END $$"));
        }
        let target = Target::parse(database.url(), false, |_| None).unwrap();
        let names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
        for (purpose, limits) in
            [(Use::Read, ["5s", "1500ms", "2s"]), (Use::Write, ["5s", "1500ms", "2s"]), (Use::Migrate, ["0", "0", "0"])]
        {
            let mut conn = establish(&target, purpose).unwrap();
            assert_eq!(settings(&mut conn, names), limits, "{purpose:?}");
            assert_eq!(settings(&mut conn, ["synchronous_commit", "lc_messages"]), ["on", "C"]);
        }

        // Who may not set the language has the rest.
        let Target::Postgres(url) = target else { panic!("it is PostgreSQL") };
        database.sql("CREATE ROLE plain LOGIN");
        let plain = Target::Postgres(url.replace("user=postgres", "user=plain"));
        let mut conn = establish(&plain, Use::Write).unwrap();
        assert_eq!(settings(&mut conn, names), ["5s", "1500ms", "2s"]);
        assert_eq!(settings(&mut conn, ["synchronous_commit", "lc_messages"]), ["on", "C.UTF-8"]);

        // A stricter default stays.
        database.sql("ALTER ROLE plain SET synchronous_commit = remote_apply");
        let mut conn = establish(&plain, Use::Write).unwrap();
        assert_eq!(settings(&mut conn, ["synchronous_commit"]), ["remote_apply"]);
    }

    #[test]
    fn a_setting_the_server_reads_anew_takes_no_durability_away() {
        let Some(postgres) = Postgres::private("") else { return };
        let database = postgres.database();
        let target = Target::parse(database.url(), false, |_| None).unwrap();
        let mut conn = establish(&target, Use::Write).unwrap();
        postgres.configure("synchronous_commit = off");
        postgres.configure("work_mem = 12345kB");
        let since = Instant::now();
        while settings(&mut conn, ["work_mem"]) != ["12345kB"] {
            assert!(since.elapsed() < Duration::from_secs(20), "the server does not read its settings");
        }
        assert_eq!(settings(&mut conn, ["synchronous_commit"]), ["on"]);
    }

    #[test]
    fn a_password_is_in_no_debug_text() {
        let target = parse("postgres://user:s3cret@localhost/t").unwrap();
        assert_eq!(format!("{target:?}"), "Postgres");
    }
}
