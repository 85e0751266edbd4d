//! Listeners on TCP and on Unix sockets, and the connections that they accept.
//!
//! A Unix socket is created with access for its owner only. It gets its group and its mode before it accepts
//! connections, so it is never open wider than configured. A file that a crashed server left behind is replaced; a
//! socket on which a process listens is not.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, TcpStream as StdTcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown},
            net::{UnixListener, UnixStream as StdUnixStream},
        },
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use nix::unistd::Group;
use rustix::{
    fs::{FlockOperation, Mode, flock},
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt},
    process::umask,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::{BACKLOG, SEND_BUFFER};
use crate::listen_address::{ListenAddress, SocketAccess, SocketGroup};

/// How often, and how many times, a starting server tries to lock the directory of a socket.
const LOCK_TRIES: (Duration, u32) = (Duration::from_millis(50), 100);
/// No access for the group and for others.
const OWNER_ONLY: Mode = Mode::from_raw_mode(0o077);
/// The umask belongs to the process. Two threads that set and restore it at the same time could exchange their values.
static UMASK: Mutex<()> = Mutex::new(());

/// Why the server cannot listen on an address. Names what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{0} exists and is not a socket; remove it, or name another path in TOLLKEY_LISTEN")]
    NotASocket(PathBuf),
    #[error(
        "a process already listens on {0}; stop that process, or name another path in TOLLKEY_LISTEN"
    )]
    InUse(PathBuf),
    #[error(
        "cannot check whether a process listens on {path}: {error}; remove the file if no process does, or name another \
         path in TOLLKEY_LISTEN"
    )]
    Unknown { path: PathBuf, error: io::Error },
    #[error(
        "cannot open the directory {path}: {error}; create it for the user of the server, or name another path in \
         TOLLKEY_LISTEN"
    )]
    Directory { path: PathBuf, error: io::Error },
    #[error("another process keeps the directory {0} locked; stop that process, or try again")]
    Locked(PathBuf),
    #[error("TOLLKEY_SOCKET_GROUP: this machine has no group with this name; create it")]
    NoGroup,
    #[error("TOLLKEY_SOCKET_GROUP: cannot look up the group: {0}; set its number instead")]
    GroupLookUp(io::Error),
    #[error(
        "TOLLKEY_SOCKET_GROUP: cannot give {path} to the group: {error}; make the user of the server a member of it"
    )]
    Group { path: PathBuf, error: io::Error },
    #[error("cannot create {path}: {error}")]
    Create { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Tcp(#[from] io::Error),
}

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A Unix socket that accepts connections, and its file.
#[derive(Debug)]
pub struct UnixSocket {
    /// `None` once the file is removed. Declared first, so that it is dropped while the socket still listens. After that,
    /// a starting server could replace the file, and the file system could give the new file the same inode.
    file: Option<SocketFile>,
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens on an address. `access` is for Unix sockets.
    ///
    /// # Errors
    /// [`ListenError`] if the address is in use or cannot be used.
    pub fn bind(address: &ListenAddress, access: &SocketAccess) -> Result<Self, ListenError> {
        match address {
            ListenAddress::Tcp(address) => Ok(Self::Tcp(listen(*address)?)),
            ListenAddress::Unix(path) => UnixSocket::bind(path, access).map(Self::Unix),
        }
    }

    /// Returns the address, with the port that the operating system chose for port 0.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(socket) => Ok(ListenAddress::Unix(socket.path.clone())),
        }
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(socket) => socket.listener.set_nonblocking(true),
        }
    }

    pub(super) fn accept(&self) -> io::Result<ClientSocket> {
        match self {
            Self::Tcp(listener) => Ok(ClientSocket::Tcp(listener.accept()?.0)),
            Self::Unix(socket) => Ok(ClientSocket::Unix(socket.listener.accept()?.0)),
        }
    }

    /// Removes the file of a Unix socket, so that no further client finds it. Queued connections stay.
    pub(super) fn remove_file(&mut self) {
        if let Self::Unix(socket) = self {
            socket.file = None;
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(socket) => socket.listener.as_fd(),
        }
    }
}

/// Listens on a TCP address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = net::socket_with(family, SocketType::STREAM, flags(), Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit the size.
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn flags() -> SocketFlags {
    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
}

impl UnixSocket {
    fn bind(path: &Path, access: &SocketAccess) -> Result<Self, ListenError> {
        let group = access.group.as_ref().map(group_id).transpose()?;
        // Held until the socket listens. Otherwise two servers that start at the same time could both find a stale file,
        // and the slower one would remove the socket of the other.
        let _locked = lock_directory(path)?;
        remove_stale(path)?;
        let create = |error: io::Error| ListenError::Create {
            path: path.to_owned(),
            error,
        };
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None)
            .map_err(|error| create(error.into()))?;
        bind_for_owner(&socket, path).map_err(create)?;
        let file = SocketFile::created(path).map_err(create)?;
        if let Some(group) = group {
            lchown(path, None, Some(group)).map_err(|error| ListenError::Group {
                path: path.to_owned(),
                error,
            })?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(access.mode)).map_err(create)?;
        net::listen(&socket, BACKLOG).map_err(|error| create(error.into()))?;
        Ok(Self {
            file: Some(file),
            listener: socket.into(),
            path: path.to_owned(),
        })
    }
}

fn group_id(group: &SocketGroup) -> Result<u32, ListenError> {
    match group {
        SocketGroup::Id(id) => Ok(*id),
        SocketGroup::Name(name) => Group::from_name(name)
            .map_err(|error| ListenError::GroupLookUp(error.into()))?
            .map(|group| group.gid.as_raw())
            .ok_or(ListenError::NoGroup),
    }
}

/// Locks the directory of a socket against other starting servers, until the value is dropped.
fn lock_directory(path: &Path) -> Result<File, ListenError> {
    let directory = path.parent().unwrap_or(path);
    let fail = |error| ListenError::Directory {
        path: directory.to_owned(),
        error,
    };
    let file = File::open(directory).map_err(fail)?;
    let (pause, tries) = LOCK_TRIES;
    for _ in 0..tries {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(pause),
            Err(error) => return Err(fail(error.into())),
        }
    }
    Err(ListenError::Locked(directory.to_owned()))
}

/// Removes the file of a socket on which no process listens.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let unknown = |error| ListenError::Unknown {
        path: path.to_owned(),
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unknown(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match connect_at_once(path) {
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ListenError::Create {
                path: path.to_owned(),
                error,
            }),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // EAGAIN: the queue of the listening process is full (connect(2)).
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(error) => Err(unknown(error.into())),
    }
}

/// Connects without waiting.
fn connect_at_once(path: &Path) -> Result<(), Errno> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)
}

/// Creates the file of a socket with access for its owner only.
fn bind_for_owner(socket: impl AsFd, path: &Path) -> io::Result<()> {
    let address = SocketAddrUnix::new(path)?;
    let _only = UMASK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = umask(OWNER_ONLY);
    let bound = net::bind(socket, &address);
    umask(before);
    Ok(bound?)
}

/// The file of a socket. Dropping the value removes the file, unless another one has its path by now.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn created(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (self.device, self.inode));
        if is_own && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the file of the socket");
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum ClientSocket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl ClientSocket {
    /// Registers the connection with the runtime of a worker. Returns the address of the peer too, which a Unix socket
    /// does not have. An error means that the connection has already ended.
    pub(super) fn register(self) -> io::Result<(ClientStream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                let socket = TcpStream::from_std(socket)?;
                let address = socket.peer_addr().ok();
                // Otherwise the last segment of a response waits for an acknowledgment, which the client delays by 40 ms
                // or more.
                let _ = socket.set_nodelay(true);
                Ok((ClientStream::Tcp(socket), address))
            }
            Self::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Ok((ClientStream::Unix(UnixStream::from_std(socket)?), None))
            }
        }
    }
}

/// A connection of a worker.
#[derive(Debug)]
pub(super) enum ClientStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientStream {
    pub(super) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

impl AsFd for ClientStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
