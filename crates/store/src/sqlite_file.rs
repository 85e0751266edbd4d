//! Checks that the SQLite file can be opened, and that its path still names the opened file.
//!
//! SQLite only reports "unable to open database file", so [`prepare`] checks the file first and reports the
//! operating system's error. Every use of a connection compares device and inode of the path with those of
//! the opened file, because a server would otherwise keep writing to a deleted or replaced file. After a
//! replacement the server has to be restarted, unless the original file is put back. Copying another database
//! over the file keeps the inode, so each change also compares the [`Header`]. The caches and the write-ahead
//! log do not match the copy, so the server has to be restarted.
//!
//! Connections to a lost file are never closed. Closing the last one would write the log into the database file and
//! delete the log. That would damage the copy, and lose the changes that another process has appended to the log.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::{Access, access};

use crate::{error::Error, open_error::OpenError, url::absolute};

/// The beginning of every SQLite file that is not empty.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Checks that the file can be opened, read and written. With `create`, creates a missing file, readable by its owner
/// only because it contains the hashes of all keys. SQLite gives the files next to it the same mode.
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
    // SQLite creates files in the same directory.
    if let Some(directory) = path.parent() {
        access(directory, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|errno| fail(errno.into()))?;
    }
    match open_once(path).and_then(Header::read).map_err(&fail)? {
        Content::Database(_) => Ok(()),
        // A process may have crashed between creating and migrating it.
        Content::Empty if create => Ok(()),
        Content::Empty => Err(OpenError::NotADatabase {
            path: shown(),
            what: "is empty; correct DATABASE_URL, or create the database in it with `tollkey migrate`",
        }),
        Content::Other => Err(OpenError::NotADatabase {
            path: shown(),
            what: "is not a SQLite database; correct DATABASE_URL, or move the file away",
        }),
    }
}

/// Returns the error for a file that the operating system does not allow to be used.
pub(crate) fn failure(path: &Path, source: io::Error) -> OpenError {
    OpenError::File {
        path: path.display().to_string(),
        hint: hint(path, &source),
        error: source,
    }
}

/// Returns an instruction that follows the operating system's error in [`OpenError::File`]; empty if the
/// error is enough.
fn hint(path: &Path, error: &io::Error) -> String {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match error.kind() {
        io::ErrorKind::NotFound if !directory.exists() => {
            format!("; create the directory {} first", directory.display())
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!(
                "; Tollkey needs read and write access to the file and to its directory {}",
                directory.display()
            )
        }
        _ => String::new(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(Self::from)
    }
}

impl From<Metadata> for FileId {
    fn from(found: Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
        }
    }
}

/// Opens a file for reading, once per process.
///
/// Closing any descriptor of a file releases all POSIX locks of the process on it, including SQLite's. Another process
/// would then assume that it is the only one and delete the write-ahead log. So descriptors are shared and never
/// closed.
fn open_once(path: &Path) -> io::Result<&'static File> {
    static OPENED: Mutex<Vec<(FileId, &'static File)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let id = FileId::of(path)?;
    if let Some((_, file)) = opened.iter().find(|(known, _)| *known == id) {
        return Ok(file);
    }
    let file: &'static File = Box::leak(Box::new(File::open(path)?));
    opened.push((file.metadata()?.into(), file));
    Ok(file)
}

/// The fields of a SQLite file's header that identify the database and the age of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// A random number that the migration sets; 0 before.
    application_id: u32,
    /// Only grows. With a write-ahead log it lags, because only checkpoints write it to the file.
    change_counter: u32,
}

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

    /// Returns whether a file with this header can later have the header `later`.
    fn can_become(self, later: Self) -> bool {
        let is_same = self.application_id == 0 || self.application_id == later.application_id;
        // The counter wraps around.
        is_same && later.change_counter.wrapping_sub(self.change_counter) <= u32::MAX / 2
    }
}

/// The files of an open connection next to the database: the write-ahead log and its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogFiles {
    log: FileId,
    index: FileId,
}

#[derive(Debug)]
pub(crate) struct SqliteFile {
    path: PathBuf,
    id: FileId,
    file: &'static File,
    /// The last header that was read; `None` before the first.
    header: Mutex<Option<Header>>,
    /// Why the content can no longer be used. Never cleared.
    content_error: OnceLock<String>,
    /// The files of the write connection; `None` without a write-ahead log.
    log_files: Mutex<Option<LogFiles>>,
    /// Whether the loss of the database file has been logged.
    is_lost: AtomicBool,
    /// Whether the loss of the log or its index has been logged. Only changes check these.
    is_log_lost: AtomicBool,
}

impl SqliteFile {
    pub(crate) fn at(path: &str) -> io::Result<Self> {
        let path = PathBuf::from(path);
        Ok(Self {
            id: FileId::of(&path)?,
            file: open_once(&path)?,
            path,
            header: Mutex::default(),
            content_error: OnceLock::new(),
            log_files: Mutex::default(),
            is_lost: AtomicBool::new(false),
            is_log_lost: AtomicBool::new(false),
        })
    }

    /// Stores the identities of the files that are now at the paths of the log and its index, and returns them.
    pub(crate) fn record_log_files(&self) -> Option<LogFiles> {
        let id = |suffix| FileId::of(&self.beside(suffix)).ok();
        let found = id("-wal")
            .zip(id("-shm"))
            .map(|(log, index)| LogFiles { log, index });
        *self.log_files() = found;
        found
    }

    fn log_files(&self) -> MutexGuard<'_, Option<LogFiles>> {
        let files = self.log_files.lock();
        files.unwrap_or_else(PoisonError::into_inner)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Returns an error unless the path names this file.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.report(&self.is_lost, self.check_path())
    }

    /// Returns an error unless the path names this file and its content was not changed by others.
    pub(crate) fn check_content(&self) -> Result<(), Error> {
        self.report(
            &self.is_lost,
            self.check_path().and_then(|()| self.check_header()),
        )
    }

    /// [`SqliteFile::check_content`], also for the log files of a connection.
    ///
    /// If the index is deleted, another process creates a new one, and neither process sees what the other writes.
    pub(crate) fn check_with_log(&self, files: LogFiles) -> Result<(), Error> {
        self.check_content()?;
        let log = self.check_id(&self.beside("-wal"), files.log);
        self.report(
            &self.is_log_lost,
            log.and_then(|()| self.check_id(&self.beside("-shm"), files.index)),
        )
    }

    /// Returns whether the connections must not be closed because their files are no longer at their paths.
    pub(crate) fn is_lost(&self) -> bool {
        let files = *self.log_files();
        match files {
            Some(files) => self.check_with_log(files).is_err(),
            None => self.check_content().is_err(),
        }
    }

    pub(crate) fn record_corruption(&self) {
        let _ = self.set_content_error(format!(
            "{} is damaged; restore it from a backup while the server is stopped",
            self.path.display()
        ));
        let _ = self.check();
    }

    fn check_path(&self) -> Result<(), String> {
        match self.content_error.get() {
            Some(error) => Err(error.clone()),
            None => self.check_id(&self.path, self.id),
        }
    }

    fn check_header(&self) -> Result<(), String> {
        let mut last = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        // A checkpoint may be writing the header at this moment, so an unexpected header is read again before it is
        // reported.
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
            Ok(_) => self.set_content_error(format!(
                "{path} was overwritten while it was open; stop the server, delete {path}-wal and {path}-shm, and copy \
                 the file there again",
                path = self.path.display()
            )),
        }
    }

    /// Stores the error, unless an earlier one is stored, and returns the stored one.
    fn set_content_error(&self, reason: String) -> Result<(), String> {
        Err(self.content_error.get_or_init(|| reason).clone())
    }

    fn check_id(&self, path: &Path, expected: FileId) -> Result<(), String> {
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
                    tracing::info!(path = %self.path.display(), "the database files are at their paths again");
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
