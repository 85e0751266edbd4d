//! Why the store could not be opened.

use crate::{postgres_session::UnsupportedServer, url::BadUrl};

/// The store could not be opened. The message names the database without user name and password, and says what to do
/// next. It is complete: `source` is always `None`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("DATABASE_URL: {0}")]
    Url(BadUrl),
    /// The SQLite file does not exist and [`OpenOptions::create`](crate::OpenOptions::create) is `false`.
    #[error(
        "SQLite database {path} does not exist; run the command in the directory of the server, set DATABASE_URL or \
         --database-url, or create the database with `tollkey migrate`"
    )]
    Missing {
        /// The absolute path of the file.
        path: String,
    },
    /// The SQLite file is empty or is not a database of Tollkey.
    #[error("{path} {what}")]
    NotADatabase { path: String, what: &'static str },
    /// The operating system does not allow the SQLite file to be used.
    #[error("cannot open the SQLite database {path}: {error}{hint}")]
    File {
        path: String,
        error: std::io::Error,
        /// What to do, beginning with a semicolon; empty if `error` already says it.
        hint: String,
    },
    #[error("cannot connect to the {target}: {reason}")]
    Connect {
        /// The database, as in [`DatabaseUrl::target`](crate::DatabaseUrl::target).
        target: String,
        /// The cause and what to do. Does not quote the URL.
        reason: String,
        is_transient: bool,
    },
    /// The database server, or a pooler in front of it, is not supported. Waiting does not help.
    #[error(transparent)]
    UnsupportedServer(#[from] UnsupportedServer),
}

impl From<BadUrl> for OpenError {
    fn from(error: BadUrl) -> Self {
        Self::Url(error)
    }
}

impl OpenError {
    /// Returns whether a later attempt may succeed without a change to settings or database: the server is starting, or
    /// cannot be reached or resolved yet.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Connect {
                is_transient: true,
                ..
            }
        )
    }
}
