//! Runs the embedded migrations under a lock, and checks the version of the schema.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    time::{Duration, Instant},
};

use diesel::{
    Connection as _, OptionalExtension as _, PgConnection, QueryDsl as _, QueryableByName,
    RunQueryDsl as _, SqliteConnection,
    connection::SimpleConnection as _,
    migration::{Migration, MigrationSource},
    sql_query,
    sql_types::{Bool, Integer},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use crate::{
    connection::AnyConnection,
    rights,
    schema_error::{LockHolder, SchemaError},
};

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The key of the migration lock: "tollkey" in ASCII.
const ADVISORY_LOCK: i64 = 0x0074_6f6c_6c6b_6579;

diesel::table! {
    /// diesel's table of applied migrations.
    __diesel_schema_migrations (version) {
        version -> Text,
    }
}

/// The interval between attempts to get the migration lock.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// The interval between log messages about waiting for it.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Applies the missing migrations and returns their names. Several processes can call it at the same time: on
/// PostgreSQL others wait for the first, at most for `patience`, and then find nothing to do.
pub(crate) fn run(
    conn: &mut AnyConnection,
    patience: Duration,
) -> Result<Vec<String>, SchemaError> {
    match check(conn) {
        Ok(()) => {
            identify(conn)?;
            return Ok(Vec::new());
        }
        Err(SchemaError::Older { .. }) => {}
        Err(SchemaError::NotInSearchPath {
            schema,
            search_path,
        }) => tracing::warn!(
            %schema,
            %search_path,
            "another schema of the database has tables of Tollkey; new ones are created where search_path points"
        ),
        Err(error) => return Err(error),
    }
    let applied = match conn {
        AnyConnection::Sqlite(conn) => conn
            .immediate_transaction(|conn| {
                let applied = conn
                    .run_pending_migrations(SQLITE)
                    .map_err(|error| Failed(error.to_string()))?;
                Ok(applied.iter().map(ToString::to_string).collect::<Vec<_>>())
            })
            .map_err(|Failed(error)| SchemaError::Failed(error))?,
        AnyConnection::Postgres(conn) => {
            let since = Instant::now();
            let mut log_at = Duration::ZERO;
            loop {
                if let Some(applied) = run_locked(conn)? {
                    break applied;
                }
                let waited = since.elapsed();
                if waited >= log_at || waited >= patience {
                    let holder = lock_holder(conn)?;
                    if waited >= patience {
                        return Err(SchemaError::Locked {
                            waited: patience,
                            holder,
                        });
                    }
                    let (pid, session) = (holder.pid, holder.session);
                    tracing::warn!(
                        pid,
                        session,
                        "waiting for another process that migrates the database"
                    );
                    log_at = waited + LOG_EVERY;
                }
                std::thread::sleep(TRY_EVERY.min(patience));
            }
        }
    };
    identify(conn)?;
    names(conn, &applied)
}

/// Sets a random `application_id` in a SQLite database that has none, so that another database copied over the file is
/// detected. No version of Tollkey uses it for anything else.
fn identify(conn: &mut AnyConnection) -> Result<(), SchemaError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        application_id: i32,
    }
    let AnyConnection::Sqlite(conn) = conn else {
        return Ok(());
    };
    let read = |conn: &mut SqliteConnection| {
        sql_query("SELECT application_id FROM pragma_application_id").get_result::<Row>(conn)
    };
    let identify = |conn: &mut SqliteConnection| {
        if read(conn)?.application_id == 0 {
            let random = RandomState::new().build_hasher().finish() as u32;
            conn.batch_execute(&format!(
                "PRAGMA application_id = {}",
                random.max(1).cast_signed()
            ))?;
        }
        Ok::<_, diesel::result::Error>(())
    };
    match read(conn) {
        Ok(Row { application_id: 0 }) => conn.immediate_transaction(identify),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| SchemaError::Store(error.into()))
}

/// Returns the names of these versions, in the order of the migrations.
fn names(conn: &AnyConnection, applied: &[String]) -> Result<Vec<String>, SchemaError> {
    let known = known(conn)?.into_iter();
    Ok(known
        .filter(|(version, _)| applied.contains(version))
        .map(|(_, name)| name)
        .collect())
}

/// Applies the missing migrations in one transaction and returns their versions; `None` if another process holds the
/// migration lock.
///
/// The lock belongs to the transaction. A session lock could outlive this process if a connection pooler keeps the
/// session.
fn run_locked(conn: &mut PgConnection) -> Result<Option<Vec<String>>, SchemaError> {
    conn.transaction(|conn| {
        let locked = diesel::select(diesel::dsl::sql::<Bool>(&format!(
            "pg_try_advisory_xact_lock({ADVISORY_LOCK})"
        )));
        if !locked.get_result::<bool>(conn)? {
            return Ok(None);
        }
        // While a migration waits for a table lock, later statements queue behind it, including lease renewals. So it
        // gives up soon, and can be run again when, for instance, a dump no longer holds the table.
        conn.batch_execute("SET LOCAL lock_timeout = 2000")?;
        let applied = conn
            .run_pending_migrations(POSTGRES)
            .map_err(|error| Failed(error.to_string()))?;
        Ok(Some(applied.iter().map(ToString::to_string).collect()))
    })
    .map_err(|Failed(error)| {
        let hint = match error.contains("permission denied") || error.contains("must be owner") {
            true => "; migrate as the owner of the tables, who needs CREATE on the schema",
            false => "",
        };
        SchemaError::Failed(format!("{error}{hint}"))
    })
}

/// Returns the session that holds the lock. Roles without `pg_read_all_stats` see only part of another role's session.
fn lock_holder(conn: &mut PgConnection) -> Result<LockHolder, SchemaError> {
    let sql = format!(
        "SELECT pg_locks.pid, concat_ws(', ', 'role ' || coalesce(usename::text, '?'), \
         'application_name ' || nullif(application_name, ''), 'client ' || host(client_addr), state, \
         'connected since ' || to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')) AS session \
         FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) \
         WHERE locktype = 'advisory' AND granted AND objsubid = 1 \
         AND ((classid::bigint << 32) | objid::bigint) = {ADVISORY_LOCK} \
         AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    let found = sql_query(sql)
        .get_result(conn)
        .optional()
        .map_err(|error| SchemaError::Store(error.into()))?;
    Ok(found.unwrap_or(LockHolder {
        pid: None,
        session: String::new(),
    }))
}

/// Rolls back a transaction with the error of a migration, which can have any type.
struct Failed(String);

impl From<diesel::result::Error> for Failed {
    fn from(error: diesel::result::Error) -> Self {
        Self(error.to_string())
    }
}

/// Compares the applied migrations with those of this version and, on PostgreSQL, the rights of the role with those
/// that the server needs. Changes nothing.
pub(crate) fn check(conn: &mut AnyConnection) -> Result<(), SchemaError> {
    if let AnyConnection::Postgres(conn) = conn {
        rights::check(conn)?;
    }
    let applied = applied(conn).map_err(|error| SchemaError::Store(error.into()))?;
    if let AnyConnection::Postgres(conn) = conn
        && applied.is_empty()
        && let Some(error) = rights::find_hidden_tables(conn)?
    {
        return Err(error);
    }
    let known = known(conn)?;
    if applied
        .iter()
        .any(|version| !known.iter().any(|(known, _)| known == version))
    {
        return Err(SchemaError::Newer);
    }
    match known.len() - applied.len() {
        0 => Ok(()),
        missing => Err(SchemaError::Older { missing }),
    }
}

fn known(conn: &AnyConnection) -> Result<Vec<(String, String)>, SchemaError> {
    type Named = Vec<(String, String)>;
    fn named<DB: diesel::backend::Backend>(
        source: EmbeddedMigrations,
    ) -> diesel::migration::Result<Named> {
        let migrations: Vec<Box<dyn Migration<DB>>> = source.migrations()?;
        let names = migrations.iter().map(|migration| migration.name());
        let mut named: Named = names
            .map(|name| (name.version().to_string(), name.to_string()))
            .collect();
        named.sort();
        Ok(named)
    }
    match conn {
        AnyConnection::Sqlite(_) => named::<diesel::sqlite::Sqlite>(SQLITE),
        AnyConnection::Postgres(_) => named::<diesel::pg::Pg>(POSTGRES),
    }
    .map_err(|error| SchemaError::Failed(error.to_string()))
}

fn applied(conn: &mut AnyConnection) -> diesel::QueryResult<Vec<String>> {
    let exists = match conn {
        AnyConnection::Sqlite(_) => {
            "EXISTS (SELECT 1 FROM sqlite_master WHERE name = '__diesel_schema_migrations')"
        }
        AnyConnection::Postgres(_) => "to_regclass('__diesel_schema_migrations') IS NOT NULL",
    };
    let exists: Option<bool> = diesel::select(diesel::dsl::sql::<Bool>(exists))
        .get_result(conn)
        .optional()?;
    if exists != Some(true) {
        return Ok(Vec::new());
    }
    __diesel_schema_migrations::table
        .select(__diesel_schema_migrations::version)
        .load(conn)
}
