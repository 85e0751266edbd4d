//! The SQLite file before SQLite opens it. SQLite itself says "unable to open database file" whatever the reason; the
//! operating system's error says more.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::{Access, access};

use crate::{OpenError, url::absolute};

/// How every SQLite file begins that is not empty.
const HEADER: &[u8] = b"SQLite format 3\0";

/// Checks that the file can be opened, read and written. With `create`, creates it if it does not exist, for its owner
/// alone: it holds the hashes of all keys. SQLite gives the files beside it the same mode.
pub(crate) fn prepare(path: &Path, create: bool) -> Result<(), OpenError> {
    let path = &absolute(path);
    let shown = || path.display().to_string();
    let fail = |source: io::Error| OpenError::File { path: shown(), hint: hint(path, &source), source };
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
