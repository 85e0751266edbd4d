//! Errors of the store, and the classification of the database's errors.

use std::cell::Cell;

use diesel::result::{DatabaseErrorKind, Error as Diesel};
use tollkey_core::{Problem, ProblemCode};

use crate::postgres_session::UnsupportedServer;

/// An operation of the store failed. The message contains no tables, hosts or values; the log has the details.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("already exists")]
    Unique(UniqueViolation),
    /// The row to change does not exist in this account.
    #[error("not found")]
    NotFound,
    /// Too many calls wait for a connection, or another transaction holds a lock for too long. Can be retried.
    #[error("the store is busy")]
    Busy,
    /// The database cannot be reached or cannot write. If a commit fails with this, its outcome is unknown.
    #[error("the store is unavailable")]
    Unavailable,
    /// Stored data does not have the format of this version. The text names the kind of data.
    #[error("the stored {0} cannot be read")]
    Corrupt(&'static str),
    /// A bug in Tollkey.
    #[error("the store failed")]
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniqueViolation {
    /// The name of an application in the account.
    ApplicationName,
    KeyDigest,
    ServiceKeyDigest,
    /// Another value, for instance an ID.
    Other,
}

impl Error {
    /// Logs that stored data cannot be read, without its value, and returns the error.
    pub(crate) fn corrupt(what: &'static str) -> Self {
        tracing::error!(what, "stored data cannot be read");
        Self::Corrupt(what)
    }
}

thread_local! {
static CONFLICT: Cell<bool> = const { Cell::new(false) };
static DAMAGE: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the database aborted a statement of this thread since the last call because of a conflict: a
/// deadlock or a serialization failure. The transaction can then succeed when it is run again.
///
/// A thread local, because the closure of a transaction may convert the error to a type without this
/// information. Work on a connection stays on one thread.
pub(crate) fn take_conflict() -> bool {
    CONFLICT.replace(false)
}

/// Returns whether SQLite reported a damaged file on this thread since the last call.
pub(crate) fn take_corruption() -> bool {
    DAMAGE.replace(false)
}

/// Classifies and logs the error.
impl From<Diesel> for Error {
    fn from(error: Diesel) -> Self {
        let classified = classify(&error);
        if is_conflict(&error) {
            CONFLICT.set(true);
        }
        if is_corruption(&error) {
            DAMAGE.set(true);
        }
        if is_pooled(&error) {
            tracing::error!(error = %Redacted(&error), "{}", UnsupportedServer::Pooler);
            return Self::Unavailable;
        }
        match &classified {
            Self::Unique(_) => {
                tracing::debug!(error = %Redacted(&error), "unique value already exists")
            }
            Self::Busy => tracing::warn!(error = %Redacted(&error), "the database is busy"),
            _ => tracing::error!(error = %Redacted(&error), "the database failed"),
        }
        classified
    }
}

fn classify(error: &Diesel) -> Error {
    match error {
        // Queries for rows that may not exist use `.optional()`: this row must exist.
        Diesel::NotFound => Error::Corrupt("row"),
        Diesel::DatabaseError(kind, info) => match kind {
            DatabaseErrorKind::UniqueViolation => {
                // PostgreSQL names the constraint, SQLite the columns in its message.
                Error::Unique(violated(
                    info.constraint_name().unwrap_or_else(|| info.message()),
                ))
            }
            DatabaseErrorKind::SerializationFailure => Error::Busy,
            DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::UnableToSendCommand
            | DatabaseErrorKind::ReadOnlyTransaction => Error::Unavailable,
            DatabaseErrorKind::Unknown => by_message(info.message()),
            _ => Error::Other,
        },
        Diesel::BrokenTransactionManager => Error::Unavailable,
        Diesel::RollbackErrorOnCommit { commit_error, .. } => classify(commit_error),
        Diesel::DeserializationError(_) => Error::Corrupt("row"),
        _ => Error::Other,
    }
}

/// Returns whether the error has SQLSTATE 40001 (serialization failure) or 40P01 (deadlock).
fn is_conflict(error: &Diesel) -> bool {
    match error {
        Diesel::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => true,
        Diesel::DatabaseError(DatabaseErrorKind::Unknown, info) => {
            info.message().contains("deadlock detected")
        }
        _ => false,
    }
}

/// Messages of `SQLITE_NOTADB` and `SQLITE_CORRUPT`.
const DAMAGE_MESSAGES: [&str; 3] = [
    "database disk image is malformed",
    "file is not a database",
    "malformed database schema",
];

pub(crate) fn is_corruption(error: &Diesel) -> bool {
    let Diesel::DatabaseError(DatabaseErrorKind::Unknown, info) = error else {
        return false;
    };
    DAMAGE_MESSAGES
        .iter()
        .any(|text| info.message().contains(text))
}

/// Returns whether a prepared statement of this connection is missing on the server or comes from another connection:
/// a connection pooler shares server sessions.
fn is_pooled(error: &Diesel) -> bool {
    let Diesel::DatabaseError(_, info) = error else {
        return false;
    };
    let message = info.message();
    message.starts_with("prepared statement")
        && (message.ends_with("already exists") || message.ends_with("does not exist"))
}

fn violated(name: &str) -> UniqueViolation {
    let names = |table: &str, column: &str| name.contains(table) && name.contains(column);
    if names("applications", "name") {
        UniqueViolation::ApplicationName
    } else if names("api_keys", "digest") {
        UniqueViolation::KeyDigest
    } else if names("service_keys", "digest") {
        UniqueViolation::ServiceKeyDigest
    } else {
        UniqueViolation::Other
    }
}

/// Classifies by message, because diesel has no error code for these. PostgreSQL's messages are in the language of
/// `lc_messages`, which a connection sets to English if its role may. In another language they become [`Error::Other`],
/// which is safe but less precise. A lost connection is recognized without its message.
fn by_message(message: &str) -> Error {
    const BUSY: [&str; 6] = [
        "is locked", // SQLite: database, database table, database schema
        "lock timeout",
        "statement timeout",
        "deadlock detected",
        "too many clients",
        "remaining connection slots",
    ];
    const UNAVAILABLE: [&str; 13] = [
        "disk I/O error",
        "is full",
        "No space left",
        "readonly database",
        "unable to open database",
        "terminating connection",
        "the database system is",
        // libpq's own messages, always in English
        "server closed the connection",
        "no connection to the server",
        "could not receive data from server",
        "could not send data to server",
        "SSL SYSCALL error",
        "SSL connection has been closed",
    ];
    let has = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if has(&BUSY) {
        Error::Busy
    } else if has(&UNAVAILABLE) || has(&DAMAGE_MESSAGES) {
        Error::Unavailable
    } else {
        Error::Other
    }
}

/// Formats an error for the log, without the `DETAIL` in which PostgreSQL repeats values.
struct Redacted<'a>(&'a Diesel);

impl std::fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Diesel::DatabaseError(kind, info) => write!(f, "{kind:?}: {}", info.message()),
            Diesel::DeserializationError(_) => {
                f.write_str("a column has an unexpected type or value")
            }
            other => write!(f, "{other}"),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Busy | Error::Unavailable => Self::unavailable(),
            Error::NotFound => Self::not_found(),
            Error::Unique(UniqueViolation::ApplicationName) => Self::new(
                ProblemCode::ApplicationNameTaken,
                "The account already has an application with this name. Choose another name.",
            ),
            Error::Unique(_) | Error::Corrupt(_) | Error::Other => Self::internal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_errors_are_classified() {
        use DatabaseErrorKind::{ClosedConnection, UniqueViolation as Unique, Unknown};
        use UniqueViolation::{ApplicationName, KeyDigest, Other, ServiceKeyDigest};
        let duplicate_name = "UNIQUE constraint failed: applications.account_id, applications.name";
        let duplicate_key = "UNIQUE constraint failed: api_keys.digest";
        for (kind, message, expected) in [
            (Unknown, "database is locked", Error::Busy),
            (
                Unknown,
                "canceling statement due to lock timeout",
                Error::Busy,
            ),
            (Unknown, "database or disk is full", Error::Unavailable),
            (
                Unknown,
                "database disk image is malformed",
                Error::Unavailable,
            ),
            (Unknown, "file is not a database", Error::Unavailable),
            (
                Unknown,
                "the database system is shutting down",
                Error::Unavailable,
            ),
            (Unknown, "syntax error", Error::Other),
            (
                Unknown,
                "prepared statement \"__diesel_stmt_0\" already exists",
                Error::Unavailable,
            ),
            (
                Unknown,
                "prepared statement \"s\" does not exist",
                Error::Unavailable,
            ),
            (ClosedConnection, "", Error::Unavailable),
            (Unique, duplicate_name, Error::Unique(ApplicationName)),
            (
                Unique,
                "applications_account_id_name_key",
                Error::Unique(ApplicationName),
            ),
            (Unique, duplicate_key, Error::Unique(KeyDigest)),
            (
                Unique,
                "service_keys_digest_key",
                Error::Unique(ServiceKeyDigest),
            ),
            (Unique, "api_keys_pkey", Error::Unique(Other)),
        ] {
            let error = Diesel::DatabaseError(kind, Box::new(message.to_owned()));
            assert_eq!(Error::from(error), expected, "{message}");
        }
    }

    #[test]
    fn errors_do_not_show_tables_hosts_or_values() {
        for error in [
            Error::Unique(UniqueViolation::KeyDigest),
            Error::NotFound,
            Error::Busy,
            Error::Unavailable,
            Error::Corrupt("audit entry"),
            Error::Other,
        ] {
            let shown = format!("{error} {}", Problem::from(error.clone()));
            for word in ["api_keys", "SELECT", "digest", "postgres", "sqlite"] {
                assert!(!shown.contains(word), "{shown}");
            }
        }
    }
}
