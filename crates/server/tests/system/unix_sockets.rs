//! Unix sockets: their files, and how commands reach a server on them.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use tollkey_store::testing::Database;

use crate::{
    binary::{Server, Tollkey},
    support::{Call, eventually, http::unix_client},
};

/// The warning about a mode that lets every user connect.
const OPEN_TO_ALL: &str = "every user of this machine can connect to the Unix socket";

/// A configured server, and the path of its socket.
struct Socket {
    _database: Database,
    tollkey: Tollkey,
    path: PathBuf,
}

impl Socket {
    /// With a TCP listener as the first one.
    fn new() -> Self {
        let database = Database::sqlite();
        let tollkey = Tollkey::on(&database);
        let path = tollkey.directory().join("tollkey.sock");
        let listen = format!("127.0.0.1:0,unix:{}", path.display());
        Self {
            _database: database,
            tollkey: tollkey.with("TOLLKEY_LISTEN", &listen),
            path,
        }
    }

    fn listener(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    fn mode(&self) -> u32 {
        fs::symlink_metadata(&self.path).expect("the socket").mode() & 0o7777
    }

    async fn status(&self, server: &Server, path: &str) -> u16 {
        let client = unix_client(&self.path);
        Call {
            client,
            ..server.get(path)
        }
        .await
        .status
    }
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("a file").ino()
}

#[actix_web::test]
async fn start_line_names_all_listeners() {
    let socket = Socket::new();
    let server = socket.tollkey.serve().await;
    let listener = socket.listener();
    let expected = format!("listening on http://{}, {listener}\n", server.address);
    assert_eq!(server.stdout(), expected);
    assert!(server.stderr().contains(&listener), "{}", server.stderr());
    assert_eq!(socket.status(&server, "/readyz").await, 200);
    let finished = server.stop().await;
    assert!(!socket.path.exists(), "{finished}");
}

#[actix_web::test]
async fn mode_and_group_are_set_whatever_the_umask_is() {
    let socket = Socket::new();
    let own = rustix::process::getegid().as_raw();
    for umask in ["000", "022", "777"] {
        let server = socket.tollkey.serve_after(&format!("umask {umask}")).await;
        assert_eq!(socket.mode(), 0o660, "umask {umask}");
        let metadata = fs::symlink_metadata(&socket.path).expect("the socket");
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.gid(), own);
        server.stop().await;
    }
    let narrow = socket
        .tollkey
        .clone()
        .with("TOLLKEY_SOCKET_MODE", "0600")
        .with("TOLLKEY_SOCKET_GROUP", &own.to_string());
    let server = narrow.serve_after("umask 000").await;
    assert_eq!(socket.mode(), 0o600);
    let stderr = server.stderr();
    assert!(!stderr.contains(OPEN_TO_ALL), "{stderr}");
    server.stop().await;
}

#[actix_web::test]
async fn socket_that_every_user_can_open_is_reported() {
    let socket = Socket::new();
    let open = socket.tollkey.clone().with("TOLLKEY_SOCKET_MODE", "0666");
    let server = open.serve().await;
    assert_eq!(socket.mode(), 0o666);
    let stderr = server.stderr();
    assert!(stderr.contains(OPEN_TO_ALL), "{stderr}");
    server.stop().await;
}

#[actix_web::test]
async fn unknown_group_is_a_start_error() {
    let socket = Socket::new();
    let unknown = "no-such-group-of-tollkey";
    let tollkey = socket.tollkey.clone().with("TOLLKEY_SOCKET_GROUP", unknown);
    let finished = tollkey.run(&["serve"]).await;
    finished.assert_rejected(&["TOLLKEY_SOCKET_GROUP", "no group with this name"]);
    assert!(!socket.path.exists());
}

#[actix_web::test]
async fn socket_of_a_crashed_server_is_replaced() {
    let socket = Socket::new();
    let server = socket.tollkey.serve().await;
    let crashed = inode(&socket.path);
    server.kill().await;
    assert_eq!(inode(&socket.path), crashed, "the file is left behind");
    let server = socket.tollkey.serve().await;
    assert_eq!(socket.status(&server, "/readyz").await, 200);
    server.stop().await;
    assert!(!socket.path.exists());
}

#[actix_web::test]
async fn socket_of_a_running_server_is_kept() {
    let socket = Socket::new();
    let server = socket.tollkey.serve().await;
    let path = socket.path.to_str().expect("a UTF-8 path");
    let finished = socket.tollkey.run(&["serve"]).await;
    finished.assert_rejected(&["cannot listen on unix:", "already listens on", path]);
    assert_eq!(socket.status(&server, "/readyz").await, 200);
    server.stop().await;
}

#[actix_web::test]
async fn file_that_is_not_a_socket_is_kept() {
    let socket = Socket::new();
    fs::write(&socket.path, "a file").expect("a file");
    let path = socket.path.to_str().expect("a UTF-8 path");
    let finished = socket.tollkey.run(&["serve"]).await;
    finished.assert_rejected(&["cannot listen on unix:", "is not a socket", path]);
    assert_eq!(fs::read(&socket.path).expect("the file"), b"a file");
}

#[actix_web::test]
async fn shutdown_keeps_the_socket_of_another_process() {
    let socket = Socket::new();
    let server = socket.tollkey.serve().await;
    fs::remove_file(&socket.path).expect("the socket");
    let other = UnixListener::bind(&socket.path).expect("another socket");
    server.stop().await;
    UnixStream::connect(&socket.path).expect("a connection to the other process");
    drop(other);
}

#[actix_web::test]
async fn socket_accepts_connections_until_the_drain_ends() {
    let socket = Socket::new();
    let tollkey = socket.tollkey.clone().with("TOLLKEY_DRAIN_SECONDS", "60");
    let server = tollkey.serve().await;
    server.signal("TERM").await;
    eventually("the server drains", async || {
        socket.status(&server, "/readyz").await == 503
    })
    .await;
    assert_eq!(socket.status(&server, "/livez").await, 200);
    server.signal("TERM").await;
    let finished = server.ended().await;
    assert_eq!(finished.code, Some(0), "{finished}");
    assert!(!socket.path.exists());
}

#[actix_web::test]
async fn healthcheck_connects_to_a_unix_socket() {
    let socket = Socket::new();
    let listener = socket.listener();
    let server = socket.tollkey.serve().await;
    let ready = format!("ready: /readyz at {listener}");
    let bare = Tollkey::bare();
    let output = bare
        .output_of(&["healthcheck", "--listen", &listener])
        .await;
    assert_eq!(output, ready);
    // The first listener of the setting.
    let first = Tollkey::bare().with("TOLLKEY_LISTEN", &format!("{listener},127.0.0.1:1"));
    assert_eq!(first.output_of(&["healthcheck"]).await, ready);
    server.stop().await;
    bare.run(&["healthcheck", "--listen", &listener])
        .await
        .assert_rejected(&["no HTTP response", &listener, "No such file", "--listen"]);
}

#[actix_web::test]
async fn healthcheck_of_a_silent_unix_socket_ends() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("silent.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let name = format!("unix:{}", path.display());
    let finished = Tollkey::bare()
        .run(&["healthcheck", "--listen", &name])
        .await;
    finished.assert_rejected(&["no HTTP response", &name]);
    drop(listener);
}

#[actix_web::test]
async fn development_mode_rejects_a_unix_socket() {
    let tollkey = Tollkey::bare();
    let path = tollkey.directory().join("tollkey.sock");
    let listener = format!("unix:{}", path.display());
    let both = format!("127.0.0.1:0,{listener}");
    for listen in [&listener, &both] {
        let finished = tollkey.run(&["serve", "--listen", listen]).await;
        finished.assert_rejected(&["Unix socket", "TOLLKEY_JWT_HS256_SECRET"]);
    }
    assert!(!path.exists());
}

#[actix_web::test]
async fn server_can_listen_on_a_unix_socket_only() {
    let socket = Socket::new();
    let listener = socket.listener();
    let only = socket.tollkey.clone().with("TOLLKEY_LISTEN", &listener);
    let mut process = only
        .command(&["serve"])
        .spawn()
        .expect("the program starts");
    let check = ["healthcheck", "--listen", &listener];
    eventually("the server is ready", async || {
        only.run(&check).await.success()
    })
    .await;
    let ended = process.try_wait().expect("the status of the process");
    assert!(ended.is_none(), "{ended:?}");
    process.kill().await.expect("a killed process");
}
