//! Databases for tests: a new SQLite file, or a new database in a private PostgreSQL.
//!
//! ```no_run
//! for database in tollkey_store::testing::backends() {
//!     let store = database.store();
//!     assert!(store.check_schema().is_ok());
//! }
//! ```
//!
//! There is one PostgreSQL cluster per test binary, on a socket in a temporary directory, without TCP and fsync. A
//! shell stops it and removes its directory when this process ends, even if it is killed, because the pipe between them
//! closes. Without an installed PostgreSQL its tests are skipped with a warning; with `TOLLKEY_TEST_REQUIRE_POSTGRES=1`
//! they panic.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use diesel::{RunQueryDsl as _, connection::SimpleConnection as _};
use jiff::Timestamp;
use tollkey_core::{Clock, time::to_micros};

use crate::{
    Backend, DatabaseUrl, OpenOptions, Store,
    connection::{AnyConnection, establish},
    target::{Target, Use},
};

/// A private PostgreSQL cluster.
#[derive(Debug)]
pub struct Postgres {
    directory: String,
    bin: PathBuf,
    /// `None` if it listens on its socket only.
    tcp_port: Option<u16>,
    next: AtomicU32,
    /// The shell. It stops the cluster when its standard input, a pipe, closes.
    _watchdog: Child,
}

/// Starts the cluster, prints its directory, and stops it when the pipe closes. Uses an ICU locale, which does not sort
/// by bytes, so that a missing COLLATE "C" fails a test; a build without ICU gets the locale C.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
directory=$(mktemp -d /tmp/tkpg.XXXXXX) || exit 1
stop() {
    "$TOLLKEY_TEST_PG_BIN/pg_ctl" -D "$directory/data" -m immediate stop >/dev/null 2>&1
    rm -rf "$directory"
}
init() { "$TOLLKEY_TEST_PG_BIN/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --no-sync "$@" >>"$directory/log" 2>&1; }
init --locale=C --locale-provider=icu --icu-locale=en || { rm -rf "$directory/data"; init --locale=C; } ||
    { cat "$directory/log" >&2; stop; exit 1; }
cat >>"$directory/data/postgresql.conf" <<END
unix_socket_directories = '$directory'
listen_addresses = ''
fsync = off
full_page_writes = off
max_connections = 300
shared_buffers = 32MB
autovacuum = off
$TOLLKEY_TEST_PG_SETTINGS
END
"$TOLLKEY_TEST_PG_BIN/pg_ctl" -D "$directory/data" -l "$directory/log" -w -t 120 start </dev/null >/dev/null 2>&1 ||
    { cat "$directory/log" >&2; stop; exit 1; }
echo "$directory"
cat >/dev/null
stop
"#;

impl Postgres {
    /// Starts the cluster of this process in the first call. If PostgreSQL is not installed, returns `None`, or panics
    /// if `TOLLKEY_TEST_REQUIRE_POSTGRES` is 1.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        SHARED
            .get_or_init(|| {
                let bin = find_binaries();
                if bin.is_none() {
                    warn_unless_required(
                        "TOLLKEY_TEST_REQUIRE_POSTGRES",
                        "PostgreSQL is not installed (no initdb): its half of these tests does NOT run",
                    );
                }
                bin.map(|bin| Self::start(bin, "", None))
            })
            .as_ref()
    }

    /// Starts a cluster that no other test uses, so that the caller may stop it. `settings` are added to its
    /// `postgresql.conf`. It runs until the process ends. `None` if [`Postgres::shared`] is `None`.
    pub fn private(settings: &str) -> Option<&'static Self> {
        let shared = Self::shared()?; // warns if PostgreSQL is not installed
        let server = Self::start(shared.bin.clone(), settings, None);
        Some(Box::leak(Box::new(server)))
    }

    /// Like [`Postgres::private`], and also listens on a port of 127.0.0.1: see [`Database::url_on_tcp`].
    pub fn private_on_tcp(settings: &str) -> Option<&'static Self> {
        let shared = Self::shared()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
        let port = port.expect("a free port").port();
        let settings = format!("listen_addresses = '127.0.0.1'\nport = {port}\n{settings}");
        let server = Self::start(shared.bin.clone(), &settings, Some(port));
        Some(Box::leak(Box::new(server)))
    }

    fn start(bin: PathBuf, settings: &str, tcp_port: Option<u16>) -> Self {
        let mut script = shell(WATCHDOG, &bin);
        let (watchdog, directory) = watch(script.env("TOLLKEY_TEST_PG_SETTINGS", settings));
        Self {
            directory,
            bin,
            tcp_port,
            next: AtomicU32::new(0),
            _watchdog: watchdog,
        }
    }

    /// Runs `pg_ctl` with these arguments, for instance `-m fast restart`, and waits until it has finished.
    pub fn control(&self, arguments: &str) {
        let Self { directory, bin, .. } = self;
        // Without pipes, which the server would inherit.
        let script = format!(
            "exec \"$TOLLKEY_TEST_PG_BIN/pg_ctl\" -D {directory}/data -l {directory}/log -w -t 120 {arguments} \
             </dev/null >/dev/null 2>&1"
        );
        run(shell(&script, bin).process_group(0));
    }

    /// Adds a line to `postgresql.conf` and reloads it. Connections apply it a moment later, before their next
    /// statement.
    pub fn configure(&self, line: &str) {
        let script = format!("echo \"{line}\" >>{}/data/postgresql.conf", self.directory);
        run(&mut shell(&script, &self.bin));
        self.control("reload");
    }

    /// Writes a file into the data directory, which only PostgreSQL can read.
    pub fn write(&self, name: &str, content: &str) {
        let script = format!(
            "umask 077; printf %s \"$TOLLKEY_TEST_PG_FILE\" >{}/data/{name}",
            self.directory
        );
        run(shell(&script, &self.bin).env("TOLLKEY_TEST_PG_FILE", content));
    }

    /// Restarts the cluster as a standby, which is read-only until `pg_ctl promote`.
    pub fn demote(&self) {
        let script = format!("touch {}/data/standby.signal", self.directory);
        run(&mut shell(&script, &self.bin));
        self.control("-m fast restart");
    }

    /// Returns the output of `pg_dump` for a database, without what only `psql` or this version of PostgreSQL
    /// understands.
    fn script(&self, database: &str) -> String {
        let Self { directory, bin, .. } = self;
        let script = format!(
            "exec \"$TOLLKEY_TEST_PG_BIN/pg_dump\" --host={directory} --username=postgres --rows-per-insert=50 \
             --no-owner --no-privileges --no-comments {database}"
        );
        let printed = run(&mut shell(&script, bin));
        let is_kept = |line: &&str| {
            let is_session =
                line.starts_with("SET ") || line.starts_with("SELECT pg_catalog.set_config");
            !(line.is_empty() || line.starts_with("--") || line.starts_with('\\') || is_session)
        };
        printed
            .lines()
            .filter(is_kept)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let port = self.tcp_port.unwrap_or(5432);
        Path::new(&self.directory).join(format!(".s.PGSQL.{port}"))
    }

    fn url(&self, database: &str) -> String {
        let port = self.tcp_port.map(|port| format!("&port={port}"));
        format!(
            "postgres:///{database}?host={}&user=postgres{}",
            self.directory,
            port.unwrap_or_default()
        )
    }

    fn run(&self, sql: &str) {
        connect(&self.url("postgres"))
            .batch_execute(sql)
            .expect(sql);
    }

    /// Creates an empty database, which is dropped with the returned value.
    pub fn database(&'static self) -> Database {
        self.database_with("")
    }

    /// [`Postgres::database`] with options of `CREATE DATABASE`, for instance `ENCODING 'LATIN1' TEMPLATE template0`.
    pub fn database_with(&'static self, options: &str) -> Database {
        let name = format!("t{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE DATABASE {name} {options}"));
        Database {
            url: self.url(&name),
            location: Location::Postgres { server: self, name },
        }
    }
}

/// A PgBouncer in front of one database, until it is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    url: String,
    watchdog: Child,
}

/// Starts a PgBouncer that listens on a socket in a new directory, prints that, and stops it when the pipe closes.
const POOLER: &str = r#"
trap '' INT TERM HUP
directory=$(mktemp -d /tmp/tkpb.XXXXXX) || exit 1
echo '"postgres" ""' >"$directory/users"
cat >"$directory/ini" <<END
[databases]
* = host=$TOLLKEY_TEST_PG_SOCKET port=5432
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = $directory
auth_type = trust
auth_file = $directory/users
$TOLLKEY_TEST_POOLER_SETTINGS
END
"$TOLLKEY_TEST_POOLER" "$directory/ini" </dev/null >"$directory/log" 2>&1 &
for _ in $(seq 200); do [ -S "$directory/.s.PGSQL.6432" ] && break; sleep 0.05; done
[ -S "$directory/.s.PGSQL.6432" ] && echo "$directory" || cat "$directory/log" >&2
cat >/dev/null
kill $!
rm -rf "$directory"
"#;

impl PgBouncer {
    /// Starts a PgBouncer with these lines in the section `[pgbouncer]` of its configuration, for instance
    /// `pool_mode = transaction`. `None` if PgBouncer is not installed.
    /// Panics on SQLite, and if PgBouncer is not installed and `TOLLKEY_TEST_REQUIRE_GATEWAYS` is 1.
    #[must_use]
    pub fn before(database: &Database, settings: &str) -> Option<Self> {
        let (server, name) = database.on_server();
        let Some(pooler) = on_path("pgbouncer")
            .or_else(|| Some("/usr/sbin/pgbouncer".into()).filter(|path: &PathBuf| path.is_file()))
        else {
            warn_unless_required(
                "TOLLKEY_TEST_REQUIRE_GATEWAYS",
                "PgBouncer is not installed: the tests of connection poolers do NOT run",
            );
            return None;
        };
        let mut script = shell(POOLER, &server.bin);
        let (watchdog, directory) = watch(
            script
                .env("TOLLKEY_TEST_POOLER", pooler)
                .env("TOLLKEY_TEST_PG_SOCKET", &server.directory)
                .env("TOLLKEY_TEST_POOLER_SETTINGS", settings),
        );
        let url = format!("postgres:///{name}?host={directory}&port=6432&user=postgres");
        Some(Self { url, watchdog })
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// A new, empty database for one test.
#[derive(Debug)]
pub struct Database {
    url: String,
    location: Location,
}

#[derive(Debug)]
enum Location {
    Sqlite {
        directory: tempfile::TempDir,
    },
    Postgres {
        server: &'static Postgres,
        name: String,
    },
}

impl Database {
    #[must_use]
    pub fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let url = format!("sqlite://{}/tollkey.db", directory.path().display());
        Self {
            url,
            location: Location::Sqlite { directory },
        }
    }

    /// Returns the server and the name of this database there.
    fn on_server(&self) -> (&'static Postgres, &str) {
        match &self.location {
            Location::Postgres { server, name } => (server, name),
            Location::Sqlite { .. } => panic!("SQLite has no server"),
        }
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL with another address of the PostgreSQL server, for instance that of a proxy.
    #[must_use]
    pub fn url_at(&self, address: std::net::SocketAddr) -> String {
        let (_, name) = self.on_server();
        format!("postgres://postgres@{address}/{name}")
    }

    /// Returns the URL of a database of [`Postgres::private_on_tcp`] with this role, host and parameters. Whatever the
    /// host is, the address is that of the server.
    #[must_use]
    pub fn url_on_tcp(&self, role: &str, host: &str, parameters: &str) -> String {
        let (server, name) = self.on_server();
        let port = server.tcp_port.expect("a server that listens on TCP");
        format!("postgres://{role}@{host}:{port}/{name}?hostaddr=127.0.0.1&{parameters}")
    }

    /// Returns the URL for this role, without a password.
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        assert_eq!(self.backend(), Backend::Postgres, "SQLite has no roles");
        self.url.replace("user=postgres", &format!("user={role}"))
    }

    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.location {
            Location::Sqlite { .. } => Backend::Sqlite,
            Location::Postgres { .. } => Backend::Postgres,
        }
    }

    /// Returns the directory of a SQLite file, or `None` on PostgreSQL.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.location {
            Location::Sqlite { directory } => Some(directory.path()),
            Location::Postgres { .. } => None,
        }
    }

    /// Opens and migrates the database with the real clock.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store_with(Arc::new(RealClock::default()))
    }

    #[must_use]
    pub fn store_with(&self, clock: Arc<dyn Clock>) -> Store {
        let options = OpenOptions {
            acquire_timeout: Duration::from_secs(20),
            ..OpenOptions::new(&self.url)
        };
        let store = Store::open(options, clock).expect("an open store");
        store.migrate().expect("a migrated store");
        store
    }

    /// Runs SQL on a separate connection, without the store, as an operator or an attacker could.
    pub fn sql(&self, sql: &str) {
        connect(&self.url).batch_execute(sql).expect(sql);
    }
}

impl Database {
    /// Returns all columns of all tables as `table.column`, sorted.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        let sql = match self.backend() {
            Backend::Sqlite => {
                "SELECT tables.name || '.' || columns.name AS value \
                 FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
            }
            Backend::Postgres => {
                "SELECT table_name || '.' || column_name AS value FROM information_schema.columns \
                 WHERE table_schema = 'public'"
            }
        };
        let mut names = texts(&mut connect(&self.url), sql);
        names.sort();
        names
    }

    /// Returns every value in the database, one per line, as `table.column: value` with bytes in hexadecimal: what a
    /// leaked dump contains.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut conn = connect(&self.url);
        let mut dump = String::new();
        for name in self.columns() {
            let (table, column) = name.split_once('.').expect("a table and a column");
            let shown = match self.backend() {
                Backend::Sqlite => format!(
                    "CASE typeof(\"{column}\") WHEN 'blob' THEN lower(hex(\"{column}\")) ELSE CAST(\"{column}\" AS TEXT) END"
                ),
                Backend::Postgres => format!("\"{column}\"::text"),
            };
            let sql =
                format!("SELECT {shown} AS value FROM \"{table}\" WHERE \"{column}\" IS NOT NULL");
            for value in texts(&mut conn, &sql) {
                dump.push_str(&format!("{name}: {value}\n"));
            }
        }
        dump
    }

    /// Returns SQL that recreates this database in an empty one: the schema, the rows and diesel's table of migrations.
    /// Contains no commands of `psql` or `sqlite3`, so [`Database::sql`] can run it.
    /// Panics if `pg_dump` is not installed next to the other programs of PostgreSQL.
    #[must_use]
    pub fn script(&self) -> String {
        match &self.location {
            Location::Sqlite { .. } => sqlite_script(&mut connect(&self.url)),
            Location::Postgres { server, name } => server.script(name),
        }
    }

    /// On PostgreSQL: ends all connections to the database and rejects new ones, or allows them again.
    pub fn refuse_connections(&self, refuse: bool) {
        let (server, name) = self.on_server();
        server.run(&format!(
            "ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {}",
            !refuse
        ));
        if refuse {
            server.run(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            ));
        }
    }
}

/// Returns the column `value` of all rows of a query.
fn texts(conn: &mut AnyConnection, sql: &str) -> Vec<String> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Text)]
        value: String,
    }
    let rows: Vec<Row> = diesel::sql_query(sql).load(conn).expect(sql);
    rows.into_iter().map(|row| row.value).collect()
}

fn sqlite_script(conn: &mut AnyConnection) -> String {
    let of_kind = |kind: &str, column: &str| {
        format!(
            "SELECT {column} AS value FROM sqlite_master WHERE {kind} AND name NOT LIKE 'sqlite%' AND sql IS NOT NULL \
             ORDER BY rowid"
        )
    };
    let mut script = String::new();
    for table in texts(conn, &of_kind("type = 'table'", "sql")) {
        script.push_str(&format!("{table};\n"));
    }
    for table in texts(conn, &of_kind("type = 'table'", "name")) {
        let columns = texts(
            conn,
            &format!("SELECT name AS value FROM pragma_table_info('{table}') ORDER BY cid"),
        );
        let values: Vec<String> = columns
            .iter()
            .map(|column| format!("quote(\"{column}\")"))
            .collect();
        let sql = format!(
            "SELECT '(' || {} || ')' AS value FROM \"{table}\" ORDER BY 1",
            values.join(" || ', ' || ")
        );
        for rows in texts(conn, &sql).chunks(50) {
            script.push_str(&format!(
                "INSERT INTO {table} VALUES\n{};\n",
                rows.join(",\n")
            ));
        }
    }
    // Indexes and triggers last, so that the triggers do not run for these inserts.
    for sql in texts(conn, &of_kind("type <> 'table'", "sql")) {
        script.push_str(&format!("{sql};\n"));
    }
    script
}

pub(crate) fn target(url: &str) -> Target {
    let parsed = DatabaseUrl::parse(url).expect("a valid URL");
    parsed.resolve(false, |_| None).expect("a local database")
}

fn connect(url: &str) -> AnyConnection {
    establish(&target(url), Use::Migrate).expect("a connection")
}

/// Runs SQL in a transaction that stays open while `during` runs, like another process that commits slowly.
pub fn hold(url: &str, sql: &str, during: impl FnOnce()) {
    let mut conn = connect(url);
    conn.batch_execute(&format!("BEGIN; {sql};")).expect(sql);
    during();
    conn.batch_execute("COMMIT").expect("the commit");
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Location::Postgres { server, name } = &self.location
            && !std::thread::panicking()
        {
            server.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

/// Creates a database of each installed backend. SQLite is always installed.
#[must_use]
pub fn backends() -> Vec<Database> {
    let postgres = Postgres::shared().map(Postgres::database);
    [Some(Database::sqlite()), postgres]
        .into_iter()
        .flatten()
        .collect()
}

#[derive(Debug)]
pub struct RealClock(Instant);

impl Default for RealClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        to_micros(Timestamp::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Prints a warning, or panics if this variable is 1.
fn warn_unless_required(variable: &str, warning: &str) {
    let required = std::env::var(variable).is_ok_and(|value| value == "1");
    assert!(!required, "{variable}=1, but {warning}");
    // To stderr itself: the test harness captures `eprintln!`.
    let _ = writeln!(std::io::stderr(), "\nWARNING: {warning}\n");
}

/// Starts a script that prints its directory and runs until its standard input closes. Returns it and the directory.
fn watch(script: &mut Command) -> (Child, String) {
    let mut watchdog = script
        .process_group(0) // an interrupt of the tests must not kill it before it has cleaned up
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the watchdog to start");
    let mut line = String::new();
    let out = watchdog.stdout.take().expect("a piped stdout");
    BufReader::new(out)
        .read_line(&mut line)
        .expect("readable output of the watchdog");
    assert!(
        line.starts_with('/'),
        "the server did not start; its log is above"
    );
    (watchdog, line.trim().to_owned())
}

/// Runs a script and returns its output.
fn run(script: &mut Command) -> String {
    let done = script.output().expect("the shell to run");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script:?} failed: {errors}");
    String::from_utf8(done.stdout).expect("UTF-8 output")
}

/// Returns a command that runs a script with PostgreSQL's programs, as another user if this is root, which they reject.
fn shell(script: &str, bin: &Path) -> Command {
    let mut command = if is_root() {
        let program = if on_path("runuser").is_some() {
            "runuser"
        } else {
            "su"
        };
        let mut command = Command::new(program);
        command.args(["-s", "/bin/sh", "postgres", "-c", script]);
        command
    } else {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    };
    command
        .env("TOLLKEY_TEST_PG_BIN", bin)
        .env("LC_ALL", "C")
        .current_dir("/");
    command
}

fn find_binaries() -> Option<PathBuf> {
    let next_to = |initdb: PathBuf| Some(initdb.canonicalize().ok()?.parent()?.to_owned());
    if let Some(found) = on_path("initdb").and_then(next_to) {
        return Some(found);
    }
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    versions.sort_by_key(version);
    versions
        .into_iter()
        .rev()
        .map(|path| path.join("bin"))
        .find(|bin| bin.join("initdb").is_file())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
