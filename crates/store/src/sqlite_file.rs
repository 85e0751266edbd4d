//! The SQLite file: whether it can be opened, and whether it is still the file at its path.
//!
//! SQLite itself says "unable to open database file" whatever the reason; the operating system's error says more, so
//! [`prepare`] looks at the file first.
//!
//! A server whose file is deleted or replaced would go on writing into a file that nothing can open any more, and another
//! process on the new file would not wait for its leases. So every use of a connection compares device and inode of the
//! path with those of the file that was opened. A store stays with one file for its whole life: when that file is
//! restored, the store goes on; when another file has taken its place, the server has to be restarted.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{Access, access};

use crate::{Error, OpenError, url::absolute};

/// How every SQLite file begins that is not empty.
const HEADER: &[u8] = b"SQLite format 3\0";

/// Checks that the file can be opened, read and written. With `create`, creates it if it does not exist, for its owner
/// alone: it holds the hashes of all keys. SQLite gives the files beside it the same mode.
pub(crate) fn prepare(path: &Path, create: bool) -> Result<(), OpenError> {
    let path = &absolute(path);
    let shown = || path.display().to_string();
    let fail = |source: io::Error| failure(path, source);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            return match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
                Ok(_) => Ok(()),
                // Another process has created it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(fail(error)),
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing { path: shown() }),
        Err(error) => return Err(fail(error)),
    };
    if metadata.is_dir() {
        return Err(fail(rustix::io::Errno::ISDIR.into()));
    }
    access(path, Access::READ_OK | Access::WRITE_OK).map_err(|errno| fail(errno.into()))?;
    // For the files that SQLite keeps beside it.
    if let Some(directory) = path.parent() {
        access(directory, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| fail(errno.into()))?;
    }
    let mut header = Vec::with_capacity(HEADER.len());
    File::open(path).and_then(|file| file.take(HEADER.len() as u64).read_to_end(&mut header)).map_err(&fail)?;
    match header.as_slice() {
        HEADER => Ok(()),
        // What a process that crashed between creating and migrating it leaves.
        [] if create => Ok(()),
        [] => Err(OpenError::NotADatabase {
            path: shown(),
            what: "is empty, so it is no database of Tollkey; correct DATABASE_URL, or make it one with `tollkey migrate`",
        }),
        _ => Err(OpenError::NotADatabase {
            path: shown(),
            what: "is not a SQLite database; correct DATABASE_URL, or move the file away",
        }),
    }
}

/// The error for a file that the operating system does not let be used.
pub(crate) fn failure(path: &Path, source: io::Error) -> OpenError {
    OpenError::File { path: path.display().to_string(), hint: hint(path, &source), error: source }
}

/// What the operating system's error does not say.
fn hint(path: &Path, error: &io::Error) -> String {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match error.kind() {
        io::ErrorKind::NotFound => format!("; create the directory {} first", directory.display()),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("; Tollkey writes the file, and others beside it in {}", directory.display())
        }
        _ => String::new(),
    }
}

/// Which file a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|found| Self { device: found.dev(), inode: found.ino() })
    }
}

/// The file that a store was opened with.
#[derive(Debug)]
pub(crate) struct SqliteFile {
    path: PathBuf,
    id: FileId,
    /// So that each loss is logged once.
    is_lost: AtomicBool,
}

impl SqliteFile {
    /// The file that is at this path now.
    pub(crate) fn at(path: &str) -> io::Result<Self> {
        let path = PathBuf::from(path);
        Ok(Self { id: FileId::of(&path)?, path, is_lost: AtomicBool::new(false) })
    }

    /// The write-ahead log that belongs to the open connections; `None` where the file is not in that mode.
    pub(crate) fn log(&self) -> Option<FileId> {
        FileId::of(&self.log_path()).ok()
    }

    fn log_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        path.into()
    }

    /// Fails unless the path names this file.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.report(self.is(&self.path, self.id))
    }

    /// Fails unless the paths name this file and this write-ahead log.
    pub(crate) fn check_with_log(&self, log: Option<FileId>) -> Result<(), Error> {
        let state = self.is(&self.path, self.id);
        self.report(match log {
            Some(log) if state.is_ok() => self.is(&self.log_path(), log),
            _ => state,
        })
    }

    fn is(&self, path: &Path, expected: FileId) -> Result<(), String> {
        let name = path.display();
        match FileId::of(path) {
            Ok(found) if found == expected => Ok(()),
            Ok(_) => Err(format!("{name} was replaced by another file; restart the server to use that one")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{name} was deleted")),
            Err(error) => Err(format!("{name} cannot be found: {error}")),
        }
    }

    fn report(&self, state: Result<(), String>) -> Result<(), Error> {
        let was_lost = self.is_lost.swap(state.is_err(), Ordering::Relaxed);
        match state {
            Ok(()) => {
                if was_lost {
                    tracing::info!(path = %self.path.display(), "the database file is back");
                }
                Ok(())
            }
            Err(reason) => {
                if !was_lost {
                    tracing::error!(%reason, "the database file is lost; changes and look-ups are rejected");
                }
                Err(Error::Unavailable)
            }
        }
    }
}
