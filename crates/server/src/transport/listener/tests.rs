use std::{
    os::unix::{fs::symlink, net::UnixDatagram},
    sync::Barrier,
};

use super::*;

const ACCESS: SocketAccess = SocketAccess {
    mode: 0o660,
    group: None,
};

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("tollkey.sock")
    }

    fn bind(&self) -> Result<Listener, ListenError> {
        Listener::bind(&ListenAddress::Unix(self.socket()), &ACCESS)
    }

    /// Leaves a file behind as a crashed server does.
    fn leave_stale(&self) -> u64 {
        drop(UnixListener::bind(self.socket()).unwrap());
        fs::symlink_metadata(self.socket()).unwrap().ino()
    }
}

#[test]
fn unix_socket_is_created_and_removed() {
    let directory = Directory::new();
    let listener = directory.bind().unwrap();
    let path = directory.socket();
    assert_eq!(
        listener.address().unwrap(),
        ListenAddress::Unix(path.clone())
    );
    StdUnixStream::connect(&path).unwrap();
    assert!(matches!(listener.accept().unwrap(), ClientSocket::Unix(_)));
    drop(listener);
    assert!(!path.exists());
}

/// Returns another group than that of the process, to which the process may give its files, if there is one.
fn other_group() -> Option<u32> {
    const DAEMON: u32 = 1;
    let own = rustix::process::getegid();
    if rustix::process::geteuid().is_root() {
        return Some(DAEMON);
    }
    let groups = rustix::process::getgroups().unwrap();
    groups
        .into_iter()
        .find(|group| *group != own)
        .map(|group| group.as_raw())
}

#[test]
fn mode_and_group_of_a_unix_socket_are_set() {
    let directory = Directory::new();
    let own = rustix::process::getegid().as_raw();
    let name = |id| {
        let group = Group::from_gid(nix::unistd::Gid::from_raw(id)).unwrap();
        group.expect("a group with a name").name
    };
    let mut cases = vec![
        (0o600, None, own),
        (0o660, Some(SocketGroup::Id(own)), own),
        (0o666, Some(SocketGroup::Name(name(own))), own),
    ];
    if let Some(other) = other_group() {
        cases.push((0o660, Some(SocketGroup::Id(other)), other));
        cases.push((0o600, Some(SocketGroup::Name(name(other))), other));
    }
    for (mode, group, expected) in cases {
        let access = SocketAccess { mode, group };
        let listener = Listener::bind(&ListenAddress::Unix(directory.socket()), &access).unwrap();
        let metadata = fs::symlink_metadata(directory.socket()).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{access:?}");
        assert_eq!(metadata.gid(), expected, "{access:?}");
        drop(listener);
    }
}

/// Returns the umask. The operating system returns it only when it sets another one.
fn current_umask() -> Mode {
    let _only = UMASK.lock().unwrap();
    let mode = umask(OWNER_ONLY);
    umask(mode);
    mode
}

#[test]
fn unix_socket_is_created_for_its_owner_only() {
    let directory = Directory::new();
    let before = current_umask();
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None).unwrap();
    bind_for_owner(&socket, &directory.socket()).unwrap();
    let mode = fs::symlink_metadata(directory.socket()).unwrap().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    assert_eq!(current_umask(), before, "the umask is restored");
}

#[test]
fn unknown_group_is_an_error_and_leaves_no_file() {
    let directory = Directory::new();
    let group = Some(SocketGroup::Name("no-such-group-of-tollkey".to_owned()));
    let access = SocketAccess { group, ..ACCESS };
    let error = Listener::bind(&ListenAddress::Unix(directory.socket()), &access).unwrap_err();
    assert!(matches!(error, ListenError::NoGroup), "{error}");
    assert!(!directory.socket().exists());
}

#[test]
fn stale_unix_socket_is_replaced() {
    let directory = Directory::new();
    directory.leave_stale();
    let listener = directory.bind().unwrap();
    StdUnixStream::connect(directory.socket()).unwrap();
    listener.accept().unwrap();
}

#[test]
fn unix_socket_of_a_listening_process_is_kept() {
    let directory = Directory::new();
    let other = UnixListener::bind(directory.socket()).unwrap();
    let error = directory.bind().unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    let path = directory.socket();
    assert!(error.to_string().contains(path.to_str().unwrap()));
    other.accept().unwrap();
    StdUnixStream::connect(path).unwrap();
}

#[test]
fn unix_socket_with_a_full_queue_is_kept() {
    let directory = Directory::new();
    let other = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags(), None).unwrap();
    net::bind(&other, &SocketAddrUnix::new(directory.socket()).unwrap()).unwrap();
    net::listen(&other, 0).unwrap();
    let queued = StdUnixStream::connect(directory.socket()).unwrap();
    assert_eq!(connect_at_once(&directory.socket()), Err(Errno::AGAIN));
    let error = directory.bind().unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    drop(queued);
}

#[test]
fn file_that_is_not_a_listener_is_kept() {
    let directory = Directory::new();
    let path = directory.socket();
    let text = |error: ListenError| error.to_string();
    fs::write(&path, "a file").unwrap();
    let error = text(directory.bind().unwrap_err());
    assert!(error.contains("is not a socket"), "{error}");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"a file");

    fs::remove_file(&path).unwrap();
    let target = directory.0.path().join("target");
    symlink(&target, &path).unwrap();
    assert!(text(directory.bind().unwrap_err()).contains("is not a socket"));

    fs::remove_file(&path).unwrap();
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    let error = text(directory.bind().unwrap_err());
    assert!(error.contains("cannot check whether"), "{error}");
    assert!(path.exists());
}

#[test]
fn missing_directory_is_an_error_that_names_it() {
    let directory = Directory::new();
    let path = directory.0.path().join("missing/tollkey.sock");
    let error = Listener::bind(&ListenAddress::Unix(path), &ACCESS).unwrap_err();
    assert!(matches!(error, ListenError::Directory { .. }), "{error}");
    assert!(error.to_string().contains("/missing: "), "{error}");
}

#[test]
fn file_of_another_server_is_not_removed() {
    let directory = Directory::new();
    let listener = directory.bind().unwrap();
    fs::remove_file(directory.socket()).unwrap();
    let other = directory.leave_stale();
    drop(listener);
    let left = fs::symlink_metadata(directory.socket()).unwrap();
    assert_eq!(left.ino(), other);
}

#[test]
fn one_of_several_starting_servers_replaces_a_stale_socket() {
    const SERVERS: usize = 8;
    let directory = Directory::new();
    for _ in 0..20 {
        directory.leave_stale();
        let start = Barrier::new(SERVERS);
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..SERVERS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        directory.bind()
                    })
                })
                .collect();
            threads.into_iter().map(|it| it.join().unwrap()).collect()
        });
        let listeners: Vec<_> = results.iter().flatten().collect();
        assert_eq!(listeners.len(), 1);
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, ListenError::InUse(_)), "{error}");
        }
        StdUnixStream::connect(directory.socket()).unwrap();
        listeners[0].accept().unwrap();
    }
}
