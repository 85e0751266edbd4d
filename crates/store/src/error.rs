//! What can go wrong with the store, and how the database's own errors become that.

use std::cell::Cell;

use diesel::result::{DatabaseErrorKind, Error as Diesel};
use tollkey_core::{Problem, ProblemCode};

use crate::postgres_session::Unsuitable;

/// The store could not do it. Says nothing about tables, hosts or values; the log has the details.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Something of that name, or with that digest, is there already.
    #[error("there already")]
    Unique(UniqueViolation),
    /// What was to be changed is not there, or not in this account.
    #[error("not found")]
    NotFound,
    /// Too much is waiting, or somebody holds a lock for too long. Worth trying again.
    #[error("the store is busy")]
    Busy,
    /// The database cannot be reached or cannot write. Whether a commit that ended so has happened is not known.
    #[error("the store is unavailable")]
    Unavailable,
    /// What is stored is not what this version writes; the text names the thing.
    #[error("the stored {0} cannot be read")]
    Corrupt(&'static str),
    /// A mistake of ours.
    #[error("the store failed")]
    Other,
}

/// What is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniqueViolation {
    /// An application of that name in the account.
    ApplicationName,
    /// A key with that digest.
    KeyDigest,
    /// A service key with that digest.
    ServiceKeyDigest,
    /// Something else, an id for instance.
    Other,
}

impl Error {
    /// A stored thing that cannot be read. Logged here, without its value.
    pub(crate) fn corrupt(what: &'static str) -> Self {
        tracing::error!(what, "stored data cannot be read");
        Self::Corrupt(what)
    }
}

thread_local! {
    /// Whether the database has undone a statement on this thread because of a conflict with another transaction.
    static CONFLICT: Cell<bool> = const { Cell::new(false) };
    /// Whether SQLite has found the file damaged in a statement on this thread.
    static DAMAGE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the database has undone a statement of this thread since the last call because of a conflict with another
/// transaction: a deadlock or a serialization failure. The same transaction can then succeed when it is run again.
///
/// Work on a connection stays on one thread, and what it returns may be an error of a caller's type, which no longer
/// tells.
pub(crate) fn take_conflict() -> bool {
    CONFLICT.replace(false)
}

/// Whether SQLite has found the file damaged in a statement of this thread since the last call.
pub(crate) fn take_damage() -> bool {
    DAMAGE.replace(false)
}

/// The one place where errors of the database are classified and logged.
impl From<Diesel> for Error {
    fn from(error: Diesel) -> Self {
        let classified = classify(&error);
        if is_conflict(&error) {
            CONFLICT.set(true);
        }
        if is_damage(&error) {
            DAMAGE.set(true);
        }
        if is_pooled(&error) {
            tracing::error!(error = %Redacted(&error), "{}", Unsuitable::Pooler);
            return Self::Unavailable;
        }
        match &classified {
            Self::Unique(_) => {
                tracing::debug!(error = %Redacted(&error), "refused by the database")
            }
            Self::Busy => tracing::warn!(error = %Redacted(&error), "the database is busy"),
            _ => tracing::error!(error = %Redacted(&error), "the database failed"),
        }
        classified
    }
}

fn classify(error: &Diesel) -> Error {
    match error {
        // What may be missing is asked for with `.optional()`: this is a row that has to be there.
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

/// Codes 40001 and 40P01.
fn is_conflict(error: &Diesel) -> bool {
    match error {
        Diesel::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => true,
        Diesel::DatabaseError(DatabaseErrorKind::Unknown, info) => {
            info.message().contains("deadlock detected")
        }
        _ => false,
    }
}

/// What SQLite says about a file that is no database, or no longer a good one (`SQLITE_NOTADB`, `SQLITE_CORRUPT`).
const DAMAGE_MESSAGES: [&str; 3] = [
    "database disk image is malformed",
    "file is not a database",
    "malformed database schema",
];

/// Whether SQLite has found the file damaged.
pub(crate) fn is_damage(error: &Diesel) -> bool {
    let Diesel::DatabaseError(DatabaseErrorKind::Unknown, info) = error else {
        return false;
    };
    DAMAGE_MESSAGES
        .iter()
        .any(|text| info.message().contains(text))
}

/// A prepared statement of this connection that the server does not have, or has from another connection, tells of a
/// connection pooler that shares server sessions.
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

/// diesel hands out no error code for these, only the text. PostgreSQL's are in the language of its `lc_messages`, which
/// a connection sets to English where it may; in another they count as [`Error::Other`], which is as safe and only reads
/// worse. A lost connection is not told by its text.
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
        // libpq's own, in English everywhere
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

/// An error as it may be logged: what the database says, without the `DETAIL` in which PostgreSQL repeats values.
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

/// The problem that a caller gets when the store fails.
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
        let database = |kind, message: &str| {
            classify(&Diesel::DatabaseError(kind, Box::new(message.to_owned())))
        };
        let unknown = |message| database(DatabaseErrorKind::Unknown, message);
        assert_eq!(unknown("database is locked"), Error::Busy);
        assert_eq!(
            unknown("canceling statement due to lock timeout"),
            Error::Busy
        );
        assert_eq!(unknown("database or disk is full"), Error::Unavailable);
        assert_eq!(
            unknown("database disk image is malformed"),
            Error::Unavailable
        );
        assert_eq!(unknown("file is not a database"), Error::Unavailable);
        assert_eq!(
            unknown("the database system is shutting down"),
            Error::Unavailable
        );
        assert_eq!(unknown("syntax error"), Error::Other);
        for pooled in [
            "prepared statement \"__diesel_stmt_0\" already exists",
            "prepared statement \"s\" does not exist",
        ] {
            let error =
                Diesel::DatabaseError(DatabaseErrorKind::Unknown, Box::new(pooled.to_owned()));
            assert_eq!(Error::from(error), Error::Unavailable, "{pooled}");
        }
        assert_eq!(
            database(DatabaseErrorKind::ClosedConnection, ""),
            Error::Unavailable
        );
        let unique = |message| database(DatabaseErrorKind::UniqueViolation, message);
        for (message, violation) in [
            (
                "UNIQUE constraint failed: applications.account_id, applications.name",
                UniqueViolation::ApplicationName,
            ),
            (
                "applications_account_id_name_key",
                UniqueViolation::ApplicationName,
            ),
            (
                "UNIQUE constraint failed: api_keys.digest",
                UniqueViolation::KeyDigest,
            ),
            ("service_keys_digest_key", UniqueViolation::ServiceKeyDigest),
            ("api_keys_pkey", UniqueViolation::Other),
        ] {
            assert_eq!(unique(message), Error::Unique(violation), "{message}");
        }
    }

    #[test]
    fn what_is_shown_names_no_table_host_or_value() {
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
