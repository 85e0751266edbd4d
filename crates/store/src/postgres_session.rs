//! Sets what the server relies on in a PostgreSQL session, and checks what cannot be set.
//!
//! Defaults of the database, the role and `postgresql.conf` would otherwise change how statements behave. [`prepare`]
//! sets and checks in one statement. Left to the operator: `search_path` (the schema check reports hidden tables),
//! `default_transaction_read_only` (readiness reports it), and `timezone`, `datestyle` and `intervalstyle`, which have
//! no effect because times are stored as integers in microseconds.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
};

use diesel::{
    PgConnection, QueryableByName, RunQueryDsl as _, sql_query,
    sql_types::{Bool, Integer, Text},
};

use crate::target::Use;

/// Settings of every connection. Those that a version of PostgreSQL does not have are skipped.
const SETTINGS: [(&str, &str); 8] = [
    // Migrations contain literals with backslashes.
    ("standard_conforming_strings", "on"),
    ("client_encoding", "UTF8"),
    // A statement that waited for a lock must see what the lock's holder committed.
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    // With a row-level security policy a statement fails, instead of not seeing a revoked key.
    ("row_security", "off"),
    ("transform_null_equals", "off"),
    // The pool and the listener keep idle connections.
    ("idle_session_timeout", "0"),
    // Each statement has a timeout, and migrations need none.
    ("transaction_timeout", "0"),
];

/// Timeouts in milliseconds of all connections except those for migrations.
///
/// No statement may wait without a limit, and no transaction may hold the change counter's lock longer than a lease
/// (3 s), because no verifier can renew meanwhile. If leases are shorter, a process that is paused during a change
/// costs other verifiers their leases until the server ends its transaction; until then they query the database.
const LIMITS: [(&str, &str); 2] = [
    ("statement_timeout", "5000"),
    ("idle_in_transaction_session_timeout", "2000"),
];
/// Timeouts of migrations: none, because a migration of a large table can take any time.
const NO_LIMITS: [(&str, &str); 3] = [
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("lock_timeout", "0"),
];
/// Longer than `deadlock_timeout` if possible within 2 s: a deadlock is retried, but not a lock timeout.
/// `deadlock_timeout` itself can only be set by superusers.
const LOCK_TIMEOUT: &str = "SELECT 'lock_timeout', least(2000, greatest(1000, setting::integer + 500))::text \
                            FROM pg_settings WHERE name = 'deadlock_timeout'";
/// A reported change must survive a crash, whatever the server's default is now or becomes while the connection is open
/// (a setting of the session overrides a reloaded one).
const DURABLE: &str = "SELECT 'synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on')";

/// The first statement of each connection, because a default timeout of a few milliseconds would cancel the others.
/// This one is fast enough. The startup parameter `options` would set it earlier, but connection poolers reject that.
pub(crate) const NO_STATEMENT_TIMEOUT: &str = "SET statement_timeout = 0";

/// Sets English messages: errors are classified by their messages, because diesel does not expose most codes. Only
/// superusers, and roles with that right, can set the language. For other roles the error would be in the server's log,
/// so the block catches it.
pub(crate) const ENGLISH: &str =
    "DO $$ BEGIN SET lc_messages = 'C'; EXCEPTION WHEN insufficient_privilege THEN END $$";

/// The oldest version that supports the SQL of the migrations (`CREATE TRIGGER … EXECUTE FUNCTION`).
const OLDEST_VERSION: i32 = 110_000;

/// How many rounds of checks [`share_sessions`] does.
const ROUNDS: usize = 3;

/// The database server works, but Tollkey cannot rely on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedServer {
    #[error("the server is PostgreSQL {0}; Tollkey needs PostgreSQL 11 or later")]
    Version(i32),
    #[error(
        "the database has the encoding {0}, which cannot hold every name; Tollkey needs UTF8. Create one with `CREATE \
         DATABASE tollkey ENCODING 'UTF8' TEMPLATE template0` and name it in DATABASE_URL"
    )]
    Encoding(String),
    #[error("the server is a standby, which accepts no changes; Tollkey needs the primary")]
    Standby,
    #[error(
        "session_replication_role is {0}, which turns off the triggers that Tollkey relies on; remove that setting from \
         the role, the database and postgresql.conf"
    )]
    ReplicationRole(String),
    #[error(
        "the database is reached through a connection pooler in transaction or statement mode. It keeps neither \
         settings nor locks nor LISTEN of a session, and Tollkey relies on all of them. Connect to PostgreSQL directly, \
         or set pool_mode = session for this database"
    )]
    Pooler,
}

#[derive(QueryableByName)]
struct ServerState {
    #[diesel(sql_type = Integer)]
    version: i32,
    #[diesel(sql_type = Text)]
    encoding: String,
    #[diesel(sql_type = Bool)]
    is_standby: bool,
    #[diesel(sql_type = Text)]
    replication_role: String,
}

impl ServerState {
    fn check(self) -> Result<(), UnsupportedServer> {
        if self.version < OLDEST_VERSION {
            return Err(UnsupportedServer::Version(self.version / 10_000));
        }
        if self.encoding != "UTF8" {
            return Err(UnsupportedServer::Encoding(self.encoding));
        }
        if self.is_standby {
            return Err(UnsupportedServer::Standby);
        }
        match self.replication_role.as_str() {
            "origin" | "local" => Ok(()),
            _ => Err(UnsupportedServer::ReplicationRole(self.replication_role)),
        }
    }
}

/// Returns the statement that changes settings and returns one row for the checks.
pub(crate) fn statement(purpose: Use) -> String {
    let limits: &[_] = if purpose == Use::Migrate {
        &NO_LIMITS
    } else {
        &LIMITS
    };
    let values: Vec<String> = SETTINGS
        .iter()
        .chain(limits)
        .map(|(name, value)| format!("('{name}', '{value}')"))
        .collect();
    let lock_timeout = if purpose == Use::Migrate {
        String::new()
    } else {
        format!(" UNION ALL {LOCK_TIMEOUT}")
    };
    format!(
        "WITH wanted (name, value) AS (VALUES {} UNION ALL {DURABLE}{lock_timeout}), \
         done AS (SELECT count(set_config(name, value, false)) AS settings FROM wanted JOIN pg_settings USING (name)) \
         SELECT current_setting('server_version_num')::integer AS version, \
         current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS is_standby, \
         current_setting('session_replication_role') AS replication_role FROM done WHERE settings > 0",
        values.join(", ")
    )
}

pub(crate) fn prepare(
    conn: &mut PgConnection,
    purpose: Use,
) -> diesel::QueryResult<Result<(), UnsupportedServer>> {
    sql_query(statement(purpose))
        .get_result::<ServerState>(conn)
        .map(ServerState::check)
}

/// Returns whether two open connections share server sessions, as behind a pooler in transaction or statement mode.
///
/// Each connection sets a different mark in its session and then reads it back, in turn with the other. Without such a
/// pooler both always find their own mark. Each reads twice in a row, to also detect poolers that rotate their server
/// sessions.
pub(crate) fn share_sessions(
    first: &mut PgConnection,
    second: &mut PgConnection,
) -> diesel::QueryResult<bool> {
    let marks = [(); 2].map(|()| format!("{:016x}", RandomState::new().build_hasher().finish()));
    let [first_mark, second_mark] = &marks;
    for (conn, mark) in [(&mut *first, first_mark), (&mut *second, second_mark)] {
        let set = format!("SELECT set_config('tollkey.connection', '{mark}', false) AS value");
        text(conn, &set)?;
    }
    let get = "SELECT coalesce(current_setting('tollkey.connection', true), '') AS value";
    for _ in 0..ROUNDS {
        for (conn, mark) in [(&mut *first, first_mark), (&mut *second, second_mark)] {
            for _ in 0..2 {
                if text(conn, get)? != *mark {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

fn text(conn: &mut PgConnection, sql: &str) -> diesel::QueryResult<String> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        value: String,
    }
    sql_query(sql).get_result::<Row>(conn).map(|row| row.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsuitable_servers_are_rejected() {
        let good = || ServerState {
            version: 150_018,
            encoding: "UTF8".into(),
            is_standby: false,
            replication_role: "origin".into(),
        };
        let check = |change: fn(&mut ServerState)| {
            let mut state = good();
            change(&mut state);
            state.check()
        };
        assert_eq!(good().check(), Ok(()));
        assert_eq!(check(|state| state.version = 110_000), Ok(()));
        let encoding = |name: &str| UnsupportedServer::Encoding(name.into());
        for (unsupported, error) in [
            (
                check(|state| state.version = 109_999),
                UnsupportedServer::Version(10),
            ),
            (
                check(|state| state.encoding = "LATIN1".into()),
                encoding("LATIN1"),
            ),
            (
                check(|state| state.encoding = "SQL_ASCII".into()),
                encoding("SQL_ASCII"),
            ),
            (
                check(|state| state.is_standby = true),
                UnsupportedServer::Standby,
            ),
            (
                check(|state| state.replication_role = "replica".into()),
                UnsupportedServer::ReplicationRole("replica".into()),
            ),
        ] {
            assert_eq!(unsupported, Err(error));
        }
        let shown = encoding("LATIN1").to_string();
        assert!(
            shown.contains("ENCODING 'UTF8' TEMPLATE template0"),
            "{shown}"
        );
    }
}
