//! The target and the purpose of a connection.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    /// Returns the name, which is also the scheme of the URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A SQLite database that exists only in its one connection.
    Memory,
    /// The path of a SQLite file. Never begins with `file:`, which SQLite would read as a URI.
    File(String),
    /// A connection string of libpq, complete with defaults.
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
    pub(crate) fn backend(&self) -> Backend {
        match self {
            Self::Memory | Self::File(_) => Backend::Sqlite,
            Self::Postgres(_) => Backend::Postgres,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads. On SQLite, writes fail.
    Read,
    Write,
    /// Migrations: no timeouts.
    Migrate,
}
