//! The schema: embedded migrations, run under a lock, and the question whether they have been run.

use diesel::{
    OptionalExtension as _, QueryDsl as _, RunQueryDsl as _, connection::SimpleConnection as _, migration::Migration,
    migration::MigrationSource, sql_types::Bool,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};

use crate::{Error, connection::AnyConnection};

const SQLITE: EmbeddedMigrations = embed_migrations!("../../migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("../../migrations/postgres");

/// The database's schema is not that of this version, or could not be made so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The database has not seen all migrations.
    #[error(
        "the database schema is older than this version of Tollkey ({missing} missing); run `tollkey migrate`, or \
         `tollkey serve --migrate`"
    )]
    Older {
        /// How many migrations it lacks.
        missing: usize,
    },
    /// A later version of Tollkey has migrated the database.
    #[error(
        "the database schema is newer than this version of Tollkey; run the version that migrated it, or a later one"
    )]
    Newer,
    /// A migration failed. Nothing of it has been kept.
    #[error("the database could not be migrated: {0}")]
    Failed(String),
    /// The schema could not be asked for.
    #[error(transparent)]
    Store(Error),
}

impl From<Error> for SchemaError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// An arbitrary number of ours: "tollkey" as bytes.
const ADVISORY_LOCK: i64 = 0x0074_6f6c_6c6b_6579;

diesel::table! {
    /// Where diesel notes which migrations were run.
    __diesel_schema_migrations (version) {
        version -> Text,
    }
}

/// Runs what is missing, and returns the names of that. Several processes may do so at once: the second waits for the
/// first and finds nothing to do.
pub(crate) fn run(conn: &mut AnyConnection) -> Result<Vec<String>, SchemaError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| SchemaError::Failed(error.to_string());
    match check(conn) {
        Ok(()) => return Ok(Vec::new()),
        Err(SchemaError::Older { .. }) => {}
        Err(error) => return Err(error),
    }
    let applied = match conn {
        AnyConnection::Sqlite(conn) => conn
            .immediate_transaction(|conn| {
                let applied = conn.run_pending_migrations(SQLITE).map_err(|error| Failed(error.to_string()))?;
                Ok(applied.iter().map(ToString::to_string).collect::<Vec<_>>())
            })
            .map_err(|Failed(error)| SchemaError::Failed(error))?,
        AnyConnection::Postgres(conn) => {
            // Held until the connection is closed; diesel itself takes no lock.
            conn.batch_execute(&format!("SELECT pg_advisory_lock({ADVISORY_LOCK})"))
                .map_err(|error| failed(error.into()))?;
            // Whoever waits for a table makes all others wait behind it, renewals of leases among them. Better to give
            // up: nothing is lost, and it can be tried again when the dump is over that holds the table.
            conn.batch_execute("SET lock_timeout = 2000").map_err(|error| failed(error.into()))?;
            let applied = conn.run_pending_migrations(POSTGRES).map_err(failed)?;
            applied.iter().map(ToString::to_string).collect()
        }
    };
    names(conn, &applied)
}

/// The names of these versions, in the order of the migrations.
fn names(conn: &AnyConnection, applied: &[String]) -> Result<Vec<String>, SchemaError> {
    let known = known(conn)?.into_iter();
    Ok(known.filter(|(version, _)| applied.contains(version)).map(|(_, name)| name).collect())
}

/// Lets SQLite's transaction roll back with a migration's error, whatever type that has.
struct Failed(String);

impl From<diesel::result::Error> for Failed {
    fn from(error: diesel::result::Error) -> Self {
        Self(error.to_string())
    }
}

/// Compares the migrations that were run with those of this version, without changing anything.
pub(crate) fn check(conn: &mut AnyConnection) -> Result<(), SchemaError> {
    let applied = applied(conn).map_err(|error| SchemaError::Store(error.into()))?;
    let known = known(conn)?;
    if applied.iter().any(|version| !known.iter().any(|(known, _)| known == version)) {
        return Err(SchemaError::Newer);
    }
    match known.len() - applied.len() {
        0 => Ok(()),
        missing => Err(SchemaError::Older { missing }),
    }
}

/// The versions and names of the migrations of this build.
fn known(conn: &AnyConnection) -> Result<Vec<(String, String)>, SchemaError> {
    type Named = Vec<(String, String)>;
    fn named<DB: diesel::backend::Backend>(source: EmbeddedMigrations) -> diesel::migration::Result<Named> {
        let migrations: Vec<Box<dyn Migration<DB>>> = source.migrations()?;
        let names = migrations.iter().map(|migration| migration.name());
        let mut named: Named = names.map(|name| (name.version().to_string(), name.to_string())).collect();
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
    let there = match conn {
        AnyConnection::Sqlite(_) => "EXISTS (SELECT 1 FROM sqlite_master WHERE name = '__diesel_schema_migrations')",
        AnyConnection::Postgres(_) => "to_regclass('__diesel_schema_migrations') IS NOT NULL",
    };
    let there: Option<bool> = diesel::select(diesel::dsl::sql::<Bool>(there)).get_result(conn).optional()?;
    if there != Some(true) {
        return Ok(Vec::new());
    }
    __diesel_schema_migrations::table.select(__diesel_schema_migrations::version).load(conn)
}
