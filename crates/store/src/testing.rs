//! Databases for tests: a fresh SQLite file, and a fresh database in a private PostgreSQL.
//!
//! ```no_run
//! for database in tollkey_store::testing::backends() {
//!     let store = database.store();
//!     assert!(store.check_schema().is_ok());
//! }
//! ```
//!
//! The PostgreSQL is one cluster per test binary, on a socket in a temporary directory, without TCP and without fsync.
//! A shell watches over it: when this process ends, even by being killed, the pipe between them closes and the shell
//! stops the cluster and removes its directory. Where no PostgreSQL is installed its half of the tests is left out,
//! loudly; with `TOLLKEY_TEST_REQUIRE_POSTGRES=1` that is a panic.

use std::{
    io::{BufRead as _, BufReader, Write as _},
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
    Backend, OpenOptions, Store,
    connection::{AnyConnection, Target, Use, establish},
};

/// A private PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    directory: String,
    bin: PathBuf,
    next: AtomicU32,
    /// Its standard input is the pipe whose end stops the cluster.
    _watchdog: Child,
}

/// Starts the cluster, says where it is, and stops it when the pipe closes. ICU sorts unlike bytes do, so a missing
/// COLLATE "C" is found; where the build lacks ICU, C has to do.
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
    /// The cluster of this process, started when first asked for. `None` where no PostgreSQL is installed.
    ///
    /// # Panics
    /// When it cannot be started, or is not installed and `TOLLKEY_TEST_REQUIRE_POSTGRES` is 1.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        SHARED
            .get_or_init(|| {
                let Some(bin) = find_binaries() else {
                    let required = std::env::var("TOLLKEY_TEST_REQUIRE_POSTGRES").is_ok_and(|value| value == "1");
                    assert!(!required, "no initdb found, but TOLLKEY_TEST_REQUIRE_POSTGRES=1");
                    // Past the test harness, which would swallow it.
                    let _ = writeln!(
                        std::io::stderr(),
                        "\nWARNING: PostgreSQL is not installed (no initdb): its half of these tests does NOT run\n"
                    );
                    return None;
                };
                Some(Self::start(bin, ""))
            })
            .as_ref()
    }

    /// A cluster for the caller alone, who may stop it, with these lines behind the usual ones in its
    /// `postgresql.conf`. It lives as long as the process. `None` where [`Postgres::shared`] is `None`.
    ///
    /// # Panics
    /// As there.
    pub fn private(settings: &str) -> Option<&'static Self> {
        let shared = Self::shared()?; // says so where there is none
        Some(Box::leak(Box::new(Self::start(
            shared.bin.clone(),
            settings,
        ))))
    }

    fn start(bin: PathBuf, settings: &str) -> Self {
        let mut watchdog = shell(WATCHDOG, &bin)
            .env("TOLLKEY_TEST_PG_SETTINGS", settings)
            .process_group(0) // an interrupt of the tests must not kill it before it has cleaned up
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shell that watches over PostgreSQL starts");
        let mut line = String::new();
        let out = watchdog.stdout.take().expect("it was piped");
        BufReader::new(out)
            .read_line(&mut line)
            .expect("the shell can be read");
        assert!(
            line.starts_with('/'),
            "PostgreSQL did not start; its log is above"
        );
        Self {
            directory: line.trim().to_owned(),
            bin,
            next: AtomicU32::new(0),
            _watchdog: watchdog,
        }
    }

    /// Runs `pg_ctl` with these arguments, `-m fast restart` for instance, and waits until it is done.
    ///
    /// # Panics
    /// When that fails.
    pub fn control(&self, arguments: &str) {
        let Self { directory, bin, .. } = self;
        // Not through pipes, which the server would inherit.
        let script = format!(
            "exec \"$TOLLKEY_TEST_PG_BIN/pg_ctl\" -D {directory}/data -l {directory}/log -w -t 120 {arguments} \
             </dev/null >/dev/null 2>&1"
        );
        let done = shell(&script, bin).process_group(0).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "pg_ctl {arguments} failed"
        );
    }

    /// Adds a line to its `postgresql.conf` and has that read again, which connections do before their next statement,
    /// a moment later.
    ///
    /// # Panics
    /// When that fails.
    pub fn configure(&self, line: &str) {
        let script = format!("echo \"{line}\" >>{}/data/postgresql.conf", self.directory);
        let done = shell(&script, &self.bin).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "{line} cannot be written"
        );
        self.control("reload");
    }

    /// Makes it a standby: it can be read and not written, until `pg_ctl promote`.
    ///
    /// # Panics
    /// When that fails.
    pub fn demote(&self) {
        let done = shell(
            &format!("touch {}/data/standby.signal", self.directory),
            &self.bin,
        )
        .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "the file cannot be made"
        );
        self.control("-m fast restart");
    }

    /// What `pg_dump` prints about a database, without what only `psql` or this version of PostgreSQL understands.
    fn script(&self, database: &str) -> String {
        let Self { directory, bin, .. } = self;
        let script = format!(
            "exec \"$TOLLKEY_TEST_PG_BIN/pg_dump\" --host={directory} --username=postgres --rows-per-insert=50 \
             --no-owner --no-privileges --no-comments {database}"
        );
        let done = shell(&script, bin).output().expect("pg_dump runs");
        assert!(
            done.status.success(),
            "pg_dump failed: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let printed = String::from_utf8(done.stdout).expect("pg_dump prints UTF-8");
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

    /// The Unix socket it listens on.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        Path::new(&self.directory).join(".s.PGSQL.5432")
    }

    fn url(&self, database: &str) -> String {
        format!(
            "postgres:///{database}?host={}&user=postgres",
            self.directory
        )
    }

    fn run(&self, sql: &str) {
        connect(&self.url("postgres"))
            .batch_execute(sql)
            .expect(sql);
    }

    /// A fresh, empty database, dropped with what is returned.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn database(&'static self) -> Database {
        self.database_with("")
    }

    /// [`Postgres::database`] with these options of `CREATE DATABASE`, `ENCODING 'LATIN1' TEMPLATE template0` for
    /// instance.
    ///
    /// # Panics
    /// When it cannot be created.
    pub fn database_with(&'static self, options: &str) -> Database {
        let name = format!("t{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE DATABASE {name} {options}"));
        Database {
            url: self.url(&name),
            place: Place::Postgres { server: self, name },
        }
    }
}

/// A PgBouncer in front of one database, until it is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    url: String,
    watchdog: Child,
}

/// Starts a PgBouncer that listens on a socket in a directory of its own, says where, and stops it when the pipe
/// closes.
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
    /// Starts one with these lines in the section `[pgbouncer]` of its configuration, `pool_mode = transaction` for
    /// instance. `None` where PgBouncer is not installed.
    ///
    /// # Panics
    /// When it does not start, or is not installed and `TOLLKEY_TEST_REQUIRE_GATEWAYS` is 1; and on SQLite.
    #[must_use]
    pub fn before(database: &Database, settings: &str) -> Option<Self> {
        let Place::Postgres { server, name } = &database.place else {
            panic!("a SQLite file has no server")
        };
        let Some(pooler) = on_path("pgbouncer")
            .or_else(|| Some("/usr/sbin/pgbouncer".into()).filter(|path: &PathBuf| path.is_file()))
        else {
            let required =
                std::env::var("TOLLKEY_TEST_REQUIRE_GATEWAYS").is_ok_and(|value| value == "1");
            assert!(
                !required,
                "no pgbouncer found, but TOLLKEY_TEST_REQUIRE_GATEWAYS=1"
            );
            let warning = "\nWARNING: PgBouncer is not installed: the tests of connection poolers do NOT run\n";
            let _ = writeln!(std::io::stderr(), "{warning}");
            return None;
        };
        let mut watchdog = shell(POOLER, &server.bin)
            .env("TOLLKEY_TEST_POOLER", pooler)
            .env("TOLLKEY_TEST_PG_SOCKET", &server.directory)
            .env("TOLLKEY_TEST_POOLER_SETTINGS", settings)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the shell that watches over PgBouncer starts");
        let mut line = String::new();
        let out = watchdog.stdout.take().expect("it was piped");
        BufReader::new(out)
            .read_line(&mut line)
            .expect("the shell can be read");
        assert!(
            line.starts_with('/'),
            "PgBouncer did not start; its log is above"
        );
        let url = format!(
            "postgres:///{name}?host={}&port=6432&user=postgres",
            line.trim()
        );
        Some(Self { url, watchdog })
    }

    /// The URL of the database behind it.
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

/// A fresh, empty database for one test.
#[derive(Debug)]
pub struct Database {
    url: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Sqlite {
        directory: tempfile::TempDir,
    },
    Postgres {
        server: &'static Postgres,
        name: String,
    },
}

impl Database {
    /// A fresh SQLite file.
    ///
    /// # Panics
    /// When there is no place for it.
    #[must_use]
    pub fn sqlite() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let url = format!("sqlite://{}/tollkey.db", directory.path().display());
        Self {
            url,
            place: Place::Sqlite { directory },
        }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its URL when its PostgreSQL is reached at that address, for instance through a proxy.
    ///
    /// # Panics
    /// On SQLite.
    #[must_use]
    pub fn url_at(&self, address: std::net::SocketAddr) -> String {
        let Place::Postgres { name, .. } = &self.place else {
            panic!("a SQLite file has no server")
        };
        format!("postgres://postgres@{address}/{name}")
    }

    /// Its URL for this role, which need not have a password.
    ///
    /// # Panics
    /// On SQLite.
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        assert_eq!(
            self.backend(),
            Backend::Postgres,
            "a SQLite file has no roles"
        );
        self.url.replace("user=postgres", &format!("user={role}"))
    }

    /// Which database it is.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.place {
            Place::Sqlite { .. } => Backend::Sqlite,
            Place::Postgres { .. } => Backend::Postgres,
        }
    }

    /// The directory of a SQLite file.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Sqlite { directory } => Some(directory.path()),
            Place::Postgres { .. } => None,
        }
    }

    /// Opens and migrates it, on the real clock.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store_with(Arc::new(RealClock::default()))
    }

    /// Opens and migrates it, on that clock.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn store_with(&self, clock: Arc<dyn Clock>) -> Store {
        let options = OpenOptions {
            acquire_timeout: Duration::from_secs(20),
            ..OpenOptions::new(&self.url)
        };
        let store = Store::open(options, clock).expect("the store opens");
        store.migrate().expect("the store is migrated");
        store
    }

    /// Runs SQL past the store, on a connection of its own: what an operator, an accident or an attacker does.
    ///
    /// # Panics
    /// When that fails.
    pub fn sql(&self, sql: &str) {
        connect(&self.url).batch_execute(sql).expect(sql);
    }
}

impl Database {
    /// Every table and column of it, sorted, as `table.column`.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        #[derive(diesel::QueryableByName)]
        struct Name {
            #[diesel(sql_type = diesel::sql_types::Text)]
            name: String,
        }
        let sql = match self.backend() {
            Backend::Sqlite => {
                "SELECT tables.name || '.' || columns.name AS name \
                 FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
            }
            Backend::Postgres => {
                "SELECT table_name || '.' || column_name AS name FROM information_schema.columns \
                 WHERE table_schema = 'public'"
            }
        };
        let names: Vec<Name> = diesel::sql_query(sql)
            .load(&mut connect(&self.url))
            .expect("the columns");
        let mut names: Vec<String> = names.into_iter().map(|row| row.name).collect();
        names.sort();
        names
    }

    /// Every value of every column, one a line as `table.column: value`, bytes as hexadecimal digits: what somebody has
    /// who gets hold of a dump.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn dump(&self) -> String {
        #[derive(diesel::QueryableByName)]
        struct Cell {
            #[diesel(sql_type = diesel::sql_types::Text)]
            value: String,
        }
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
            let cells: Vec<Cell> = diesel::sql_query(sql)
                .load(&mut conn)
                .expect("the values of a column");
            for Cell { value } in cells {
                dump.push_str(&format!("{name}: {value}\n"));
            }
        }
        dump
    }

    /// Returns SQL that recreates this database in an empty one: the schema, the rows and diesel's table of migrations.
    /// One statement after the other, without commands of `psql` or `sqlite3`, so that [`Database::sql`] runs it.
    ///
    /// # Panics
    /// When the database cannot be read, and on PostgreSQL when `pg_dump` is not installed beside its other programs.
    #[must_use]
    pub fn script(&self) -> String {
        match &self.place {
            Place::Sqlite { .. } => sqlite_script(&mut connect(&self.url)),
            Place::Postgres { server, name } => server.script(name),
        }
    }

    /// On PostgreSQL: ends all connections to it and refuses new ones, or lets them in again.
    ///
    /// # Panics
    /// When that fails, and on SQLite.
    pub fn refuse_connections(&self, refuse: bool) {
        let Place::Postgres { server, name } = &self.place else {
            panic!("a SQLite file has no server")
        };
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

/// One column of text of every row that a query returns.
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
    // Last, with the triggers: the rows were written under them once.
    for sql in texts(conn, &of_kind("type <> 'table'", "sql")) {
        script.push_str(&format!("{sql};\n"));
    }
    script
}

fn connect(url: &str) -> AnyConnection {
    let target = Target::parse(url, false, |_| None).expect("the URL is good");
    establish(&target, Use::Migrate).expect("a connection")
}

/// Runs SQL in a transaction of its own and holds that open while `during` runs: another process, slow to commit.
///
/// # Panics
/// When that fails.
pub fn hold(url: &str, sql: &str, during: impl FnOnce()) {
    let mut conn = connect(url);
    conn.batch_execute(&format!("BEGIN; {sql};")).expect(sql);
    during();
    conn.batch_execute("COMMIT").expect("the commit");
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Place::Postgres { server, name } = &self.place
            && !std::thread::panicking()
        {
            server.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

/// A fresh database of each backend that is there; SQLite always is.
#[must_use]
pub fn backends() -> Vec<Database> {
    let postgres = Postgres::shared().map(Postgres::database);
    [Some(Database::sqlite()), postgres]
        .into_iter()
        .flatten()
        .collect()
}

/// The machine's clocks.
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

/// A shell for PostgreSQL's programs, which refuse to run as root.
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
    let beside = |initdb: PathBuf| Some(initdb.canonicalize().ok()?.parent()?.to_owned());
    if let Some(found) = on_path("initdb").and_then(beside) {
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
