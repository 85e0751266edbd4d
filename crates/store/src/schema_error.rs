//! Why the schema cannot be used.

use std::{fmt, time::Duration};

use diesel::{
    QueryableByName,
    sql_types::{Integer, Nullable, Text},
};

use crate::error::Error;

/// The database's schema is not that of this version, or could not be migrated to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "the database schema is older than this version of Tollkey ({missing} missing); run `tollkey migrate`, or \
         `tollkey serve --migrate`"
    )]
    Older { missing: usize },
    #[error(
        "the database schema is newer than this version of Tollkey; run the version that migrated it, or a later one"
    )]
    Newer,
    #[error(
        "Tollkey's tables are in the schema {schema}, but search_path is {search_path}; use ALTER ROLE … SET search_path, \
         or put options=-csearch_path%3D{schema} into DATABASE_URL"
    )]
    NotInSearchPath { schema: String, search_path: String },
    #[error(
        "the database role {role} lacks {missing}; the GRANT lines are in docs/deploying.md, \"Database roles\""
    )]
    Rights { role: String, missing: String },
    #[error(
        "the database is being migrated by another process, which did not finish within {waited:?}{holder}"
    )]
    Locked {
        waited: Duration,
        holder: LockHolder,
    },
    /// A migration failed and was rolled back, on PostgreSQL together with those before it in the same run.
    #[error("the database could not be migrated: {0}")]
    Failed(String),
    /// The schema could not be read.
    #[error(transparent)]
    Store(Error),
}

impl From<Error> for SchemaError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// The PostgreSQL session that holds the migration lock, as far as this role can see it.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct LockHolder {
    #[diesel(sql_type = Nullable<Integer>)]
    pub pid: Option<i32>,
    /// The role, the `application_name`, the client, the state and the start of the session, as one text.
    #[diesel(sql_type = Text)]
    pub session: String,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return f.write_str("; the process that held the lock is gone, try again");
        };
        write!(
            f,
            ". The lock is held by the PostgreSQL session with pid {pid} ({}). If it does not migrate any more (a \
             connection pooler may have kept the lock), end it with `SELECT pg_terminate_backend({pid})` and try again",
            self.session
        )
    }
}
