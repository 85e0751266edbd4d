//! The SQLite file: whether it can be opened, and whether it is still the file at its path.
//!
//! SQLite itself says "unable to open database file" whatever the reason; the operating system's error says more, so
//! [`prepare`] looks at the file first.
//!
//! A server whose file is deleted or replaced would go on writing into a file that nothing can open any more, and
//! another process on the new file would not wait for its leases. So every use of a connection compares device and
//! inode of the path with those of the file that was opened. A store stays with one file for its whole life: when that
//! file is restored, the store goes on; when another file has taken its place, the server has to be restarted.
//!
//! A copy over the file (`cp backup.db tollkey.db`) keeps the inode. So each change also compares the header in the
//! file with the last one that was read: see [`Header`]. What SQLite has of the file in its caches and in the
//! write-ahead log does not fit the copy, so nothing makes such a file good again but a restart.
//!
//! The connections to a lost file are never closed. When the last one is, SQLite writes the log into the database file
//! and deletes the log: the copy would be damaged, and what another process has appended to the log would be lost.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::{Access, access};

use crate::{Error, OpenError, url::absolute};

/// How every SQLite file begins that is not empty.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Checks that the file can be opened, read and written. With `create`, creates it if it does not exist, for its owner
/// alone: it holds the hashes of all keys. SQLite gives the files beside it the same mode.
pub(crate) fn prepare(path: &Path, create: bool) -> Result<(), OpenError> {
    let path = &absolute(path);
    let shown = || path.display().to_string();
    let fail = |source: io::Error| failure(path, source);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            return match fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
            {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_symlink() => {
                    Err(OpenError::NotADatabase {
                        path: shown(),
                        what: "is a symbolic link to a file that does not exist; correct the link or DATABASE_URL",
                    })
                }
                // Another process has created it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(fail(error)),
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path: shown() });
        }
        Err(error) => return Err(fail(error)),
    };
    if metadata.is_dir() {
        return Err(fail(rustix::io::Errno::ISDIR.into()));
    }
    access(path, Access::READ_OK | Access::WRITE_OK).map_err(|errno| fail(errno.into()))?;
    // For the files that SQLite keeps beside it.
    if let Some(directory) = path.parent() {
        access(directory, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|errno| fail(errno.into()))?;
    }
    match opened(path).and_then(Header::read).map_err(&fail)? {
        Content::Database(_) => Ok(()),
        // What a process that crashed between creating and migrating it leaves.
        Content::Empty if create => Ok(()),
        Content::Empty => Err(OpenError::NotADatabase {
            path: shown(),
            what: "is empty, so it is no database of Tollkey; correct DATABASE_URL, or make it one with `tollkey migrate`",
        }),
        Content::Other => Err(OpenError::NotADatabase {
            path: shown(),
            what: "is not a SQLite database; correct DATABASE_URL, or move the file away",
        }),
    }
}

/// The error for a file that the operating system does not let be used.
pub(crate) fn failure(path: &Path, source: io::Error) -> OpenError {
    OpenError::File {
        path: path.display().to_string(),
        hint: hint(path, &source),
        error: source,
    }
}

/// What the operating system's error does not say.
fn hint(path: &Path, error: &io::Error) -> String {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match error.kind() {
        io::ErrorKind::NotFound if !directory.exists() => {
            format!("; create the directory {} first", directory.display())
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!(
                "; Tollkey writes the file, and others beside it in {}",
                directory.display()
            )
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
        fs::metadata(path).map(|found| Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// Opens a file for reading, once in the life of the process.
///
/// Closing any descriptor of a file releases all locks that the process has on it, SQLite's among them. Another process
/// would then take itself for the only one and delete the write-ahead log. So none is ever closed, and there is one for
/// each file.
fn opened(path: &Path) -> io::Result<&'static File> {
    static OPENED: Mutex<Vec<(FileId, &'static File)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let id = FileId::of(path)?;
    if let Some((_, file)) = opened.iter().find(|(known, _)| *known == id) {
        return Ok(file);
    }
    let file: &'static File = Box::leak(Box::new(File::open(path)?));
    let metadata = file.metadata()?;
    opened.push((
        FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        },
        file,
    ));
    Ok(file)
}

/// What the header of a SQLite file says about which database it is, and how new its content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// A random number that the migration gave the database; 0 before.
    application_id: u32,
    /// Raised by changes, and never lowered. On a write-ahead log it lags behind: a checkpoint copies it into the file.
    change_counter: u32,
}

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Empty,
    Database(Header),
    Other,
}

impl Header {
    /// <https://www.sqlite.org/fileformat.html#the_database_header>
    fn read(file: &File) -> io::Result<Content> {
        let mut bytes = [0; 100];
        let mut length = 0;
        while length < bytes.len() {
            match file.read_at(&mut bytes[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let number = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Ok(match length {
            0 => Content::Empty,
            100 if bytes.starts_with(MAGIC) => Content::Database(Self {
                application_id: number(68),
                change_counter: number(24),
            }),
            _ => Content::Other,
        })
    }

    /// Whether a file with this header can have `later` after more changes.
    fn can_become(self, later: Self) -> bool {
        let is_same = self.application_id == 0 || self.application_id == later.application_id;
        // It wraps around.
        is_same && later.change_counter.wrapping_sub(self.change_counter) <= u32::MAX / 2
    }
}

/// The files that SQLite keeps beside the database, as an open connection has them. `None` where the database is not
/// in that mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogFiles {
    log: FileId,
    index: FileId,
}

/// The file that a store was opened with.
#[derive(Debug)]
pub(crate) struct SqliteFile {
    path: PathBuf,
    id: FileId,
    file: &'static File,
    /// The last header that was read; `None` until there is one.
    header: Mutex<Option<Header>>,
    /// Why the content can no longer be used. Stays until a restart.
    spoiled: Mutex<Option<String>>,
    /// Whether `spoiled` is set.
    is_spoiled: AtomicBool,
    /// The files beside it that the connection for changes has.
    log_files: Mutex<Option<LogFiles>>,
    /// So that each loss is logged once.
    is_lost: AtomicBool,
    /// The same for the files beside it, which only changes look at.
    is_log_lost: AtomicBool,
}

impl SqliteFile {
    /// The file that is at this path now.
    pub(crate) fn at(path: &str) -> io::Result<Self> {
        let path = PathBuf::from(path);
        Ok(Self {
            id: FileId::of(&path)?,
            file: opened(&path)?,
            path,
            header: Mutex::default(),
            spoiled: Mutex::default(),
            is_spoiled: AtomicBool::new(false),
            log_files: Mutex::default(),
            is_lost: AtomicBool::new(false),
            is_log_lost: AtomicBool::new(false),
        })
    }

    /// Notes the files that belong to the open connections, and returns them.
    pub(crate) fn note_log_files(&self) -> Option<LogFiles> {
        let id = |suffix| FileId::of(&self.beside(suffix)).ok();
        let found = id("-wal")
            .zip(id("-shm"))
            .map(|(log, index)| LogFiles { log, index });
        *self
            .log_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = found;
        found
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Fails unless the path names this file.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.report(&self.is_lost, self.is_there())
    }

    /// Fails unless the path names this file, and the file still has the content that was written into it.
    pub(crate) fn check_content(&self) -> Result<(), Error> {
        self.report(&self.is_lost, self.is_there().and_then(|()| self.is_ours()))
    }

    /// [`SqliteFile::check_content`], also for the files of a connection.
    ///
    /// Without its index the log would be read through one that another process creates, and neither of the two would
    /// see what the other writes.
    pub(crate) fn check_with_log(&self, files: LogFiles) -> Result<(), Error> {
        self.check_content()?;
        let log = self.is(&self.beside("-wal"), files.log);
        self.report(
            &self.is_log_lost,
            log.and_then(|()| self.is(&self.beside("-shm"), files.index)),
        )
    }

    /// Whether the connections must not be closed: the files at the paths are not theirs.
    pub(crate) fn is_lost(&self) -> bool {
        let files = *self
            .log_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match files {
            Some(files) => self.check_with_log(files).is_err(),
            None => self.check_content().is_err(),
        }
    }

    /// Notes that SQLite has found the file damaged.
    pub(crate) fn note_damage(&self) {
        let _ = self.spoil(format!(
            "{} is damaged; restore it from a backup while the server is stopped",
            self.path.display()
        ));
        let _ = self.check();
    }

    fn is_there(&self) -> Result<(), String> {
        if self.is_spoiled.load(Ordering::Relaxed) {
            let spoiled = self.spoiled.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(spoiled.clone().unwrap_or_default());
        }
        self.is(&self.path, self.id)
    }

    fn is_ours(&self) -> Result<(), String> {
        let mut last = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        // A checkpoint may be writing it: only what is found twice counts.
        let mut found = Header::read(self.file);
        for _ in 0..2 {
            match (*last, &found) {
                (None, Ok(Content::Empty)) => return Ok(()),
                (Some(header), Ok(Content::Database(later))) if !header.can_become(*later) => {}
                (_, Ok(Content::Database(header))) => {
                    *last = Some(*header);
                    return Ok(());
                }
                (_, Ok(Content::Empty | Content::Other) | Err(_)) => {}
            }
            found = Header::read(self.file);
        }
        match found {
            Err(error) => Err(format!("{} cannot be read: {error}", self.path.display())),
            Ok(_) => self.spoil(format!(
                "{path} was overwritten while it was open; stop the server, delete {path}-wal and {path}-shm, and copy \
                 the file there again",
                path = self.path.display()
            )),
        }
    }

    /// The first reason stays.
    fn spoil(&self, reason: String) -> Result<(), String> {
        let mut spoiled = self.spoiled.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = spoiled.get_or_insert(reason).clone();
        self.is_spoiled.store(true, Ordering::Relaxed);
        Err(reason)
    }

    fn is(&self, path: &Path, expected: FileId) -> Result<(), String> {
        let name = path.display();
        match FileId::of(path) {
            Ok(found) if found == expected => Ok(()),
            Ok(_) => Err(format!(
                "{name} was replaced by another file; restart the server to use that one"
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("{name} was deleted"))
            }
            Err(error) => Err(format!("{name} cannot be found: {error}")),
        }
    }

    fn report(&self, is_lost: &AtomicBool, state: Result<(), String>) -> Result<(), Error> {
        let was_lost = is_lost.swap(state.is_err(), Ordering::Relaxed);
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
