//! Whether a SQLite file that was opened is still the file at its path.
//!
//! A server whose file is deleted or replaced would go on writing into a file that nothing can open any more, and another
//! process on the new file would not wait for its leases. So every use of a connection compares device and inode of the
//! path with those of the file that was opened. A store stays with one file for its whole life: when that file is
//! restored, the store goes on; when another file has taken its place, the server has to be restarted.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::Error;

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
