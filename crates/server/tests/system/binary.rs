//! The built binary as a separate process, in an empty working directory, with only the environment that a test sets
//! and with its output recorded. `examples.rs` starts the examples in the same way.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tollkey_server::{
    auth::jwt::{NewToken, create_token},
    config::Secret,
};
use tollkey_store::testing::Database;

use crate::support::{Call, Key, Reply, SECRET, settings, without_secrets};

/// The default length of a lease.
pub const LEASE: Duration = Duration::from_secs(3);
/// The longest any step may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Tollkey {
    directory: Arc<TempDir>,
    outputs: Arc<TempDir>,
    environment: Vec<(String, String)>,
    started: Arc<AtomicU32>,
}

impl Tollkey {
    /// Without any setting, in an empty directory.
    pub fn bare() -> Self {
        let new = || Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self {
            directory: new(),
            outputs: new(),
            environment: Vec::new(),
            started: Arc::default(),
        }
    }

    /// In development mode, on a free port.
    pub fn development() -> Self {
        Self::bare().with("TOLLKEY_LISTEN", "127.0.0.1:0")
    }

    /// On this database, migrated on start, with tokens signed by the tests' secret.
    pub fn on(database: &Database) -> Self {
        Self::development()
            .with("DATABASE_URL", database.url())
            .with("TOLLKEY_MIGRATE", "true")
            .with("TOLLKEY_DATABASE_POOL", "4")
            .with("TOLLKEY_JWT_HS256_SECRET", SECRET)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(set, _)| set != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(set, _)| set != name);
        self
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn environment(&self) -> impl Iterator<Item = (String, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        let base = [
            ("PATH".to_owned(), path),
            ("RUST_BACKTRACE".to_owned(), "0".to_owned()),
        ];
        base.into_iter().chain(self.environment.clone())
    }

    /// The command, without input. Its process is killed when dropped.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollkey"));
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment())
            .current_dir(self.directory());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn spawn(&self, arguments: &[&str]) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        Process::spawn(self.command(arguments), &self.outputs, number)
    }

    pub async fn run(&self, arguments: &[&str]) -> Finished {
        self.spawn(arguments).finished().await
    }

    /// [`Self::run`] for a command that must succeed. Returns its standard output without the final line break.
    pub async fn output_of(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments).await;
        assert!(finished.success(), "{arguments:?}: {finished}");
        finished.stdout.trim_end().to_owned()
    }

    pub async fn serve(&self) -> Server {
        self.serve_with(&[]).await
    }

    pub async fn serve_with(&self, arguments: &[&str]) -> Server {
        self.start(arguments)
            .await
            .unwrap_or_else(|finished| panic!("the server did not start: {finished}"))
    }

    /// [`Self::serve`], in a shell that first runs this script.
    pub async fn serve_after(&self, script: &str) -> Server {
        let binary = self.command(&[]);
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{script}; exec \"$0\"")])
            .arg(binary.as_std().get_program());
        command
            .env_clear()
            .envs(self.environment())
            .current_dir(self.directory());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let listening = Process::spawn(command, &self.outputs, number)
            .listens()
            .await;
        listening.unwrap_or_else(|finished| panic!("the server did not start: {finished}"))
    }

    /// Runs a server until it listens. Returns `Err` if it ends first.
    pub async fn start(&self, arguments: &[&str]) -> Result<Server, Finished> {
        self.spawn(arguments).listens().await
    }
}

pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    _outputs: Arc<TempDir>,
}

impl Process {
    /// Starts a program. Its output goes to files in that directory, named by the number.
    pub fn spawn(mut command: Command, outputs: &Arc<TempDir>, number: u32) -> Self {
        // Files instead of pipes: a pipe that is not read would block the process.
        let file = |name: &str| outputs.path().join(format!("{number}.{name}"));
        let (stdout, stderr) = (file("out"), file("err"));
        let create = |path: &PathBuf| fs::File::create_new(path).expect("a file for the output");
        let child = command
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .expect("the program starts");
        Self {
            child,
            stdout,
            stderr,
            _outputs: Arc::clone(outputs),
        }
    }

    /// Waits until it listens. Returns `Err` if it ends first.
    pub async fn listens(mut self) -> Result<Server, Finished> {
        let begun = Instant::now();
        loop {
            if let Some(address) = self.listening() {
                return Ok(Server {
                    address,
                    process: self,
                });
            }
            if self
                .child
                .try_wait()
                .expect("the status of the process")
                .is_some()
            {
                return Err(self.finished().await);
            }
            assert!(
                begun.elapsed() < TIMEOUT,
                "the process neither listens nor ends: {}",
                self.so_far()
            );
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// The first address in the startup line.
    fn listening(&self) -> Option<SocketAddr> {
        let stdout = read(&self.stdout);
        let (_, rest) = stdout.split_once("listening on http://")?;
        let (line, _) = rest.split_once('\n')?;
        let (first, _) = line.split_once(", ").unwrap_or((line, ""));
        Some(first.parse().expect("an address"))
    }

    fn so_far(&self) -> Finished {
        Finished {
            code: None,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
        }
    }

    async fn finished(mut self) -> Finished {
        let ended = timeout(TIMEOUT, self.child.wait()).await;
        let status: ExitStatus = match ended {
            Ok(status) => status.expect("the status of the process"),
            Err(_) => panic!("the process does not end: {}", self.so_far()),
        };
        Finished {
            code: status.code(),
            ..self.so_far()
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).expect("the output")).into_owned()
}

/// A process that has ended. Its `Display` has the whole output without keys.
pub struct Finished {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Asserts that it failed with an error that contains these words. Returns standard error.
    pub fn assert_rejected(&self, words: &[&str]) -> &str {
        assert!(self.code.is_some_and(|code| code != 0), "{self}");
        assert!(!self.stderr.contains("panicked"), "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?}: {self}");
        }
        &self.stderr
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!(
            "exit {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.code, self.stdout, self.stderr
        );
        f.write_str(&without_secrets(&text))
    }
}

#[derive(Clone, Copy)]
pub struct Pid(u32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Pid {
    #[cfg(target_os = "linux")]
    pub fn rustix(self) -> rustix::process::Pid {
        i32::try_from(self.0)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .expect("a process")
    }

    /// Sends a signal, such as `TERM`. Returns `false` when the process no longer exists.
    pub async fn signal(self, name: &str) -> bool {
        let kill = format!("kill -{name} {} 2>/dev/null", self.0);
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .await
            .expect("a shell")
            .success()
    }

    /// Whether every thread has stopped, which is a moment after the signal.
    #[cfg(target_os = "linux")]
    pub fn is_stopped(self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).expect("its threads");
        let state = |stat: String| {
            stat.rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next())
        };
        let mut states = threads.map(|thread| {
            fs::read_to_string(thread.ok()?.path().join("stat"))
                .ok()
                .and_then(state)
        });
        states.all(|state| state == Some('T'))
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    pub address: SocketAddr,
    process: Process,
}

impl Server {
    pub fn stdout(&self) -> String {
        read(&self.process.stdout)
    }

    pub fn stderr(&self) -> String {
        read(&self.process.stderr)
    }

    pub async fn signal(&self, name: &str) {
        assert!(self.pid().signal(name).await, "signal {name}");
    }

    /// Its process, to send signals from another task.
    pub fn pid(&self) -> Pid {
        Pid(self.process.child.id().expect("a running process"))
    }

    /// Kills it without a shutdown.
    pub async fn kill(mut self) {
        self.process.child.kill().await.expect("a killed process");
    }

    pub async fn ended(self) -> Finished {
        self.process.finished().await
    }

    /// Shuts it down gracefully.
    pub async fn stop(self) -> Finished {
        self.signal("TERM").await;
        let finished = self.ended().await;
        assert_eq!(finished.code, Some(0), "{finished}");
        finished
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.address, method, path)
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str, body: Value) -> Call {
        self.call("POST", path).json(body)
    }

    pub fn patch(&self, path: &str, body: Value) -> Call {
        self.call("PATCH", path).json(body)
    }

    pub fn put(&self, path: &str, body: Value) -> Call {
        self.call("PUT", path).json(body)
    }

    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    pub async fn application(&self, token: &str, name: &str) -> String {
        let reply = self
            .post("/applications", json!({"name": name}))
            .bearer(token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        member(&reply, "id")
    }

    pub async fn key(&self, token: &str, application: &str) -> Key {
        let body = json!({"description": "Checkout"});
        let reply = self
            .post(&format!("/applications/{application}/api-keys"), body)
            .bearer(token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        Key {
            id: member(&reply, "id"),
            text: member(&reply, "fullKey"),
        }
    }

    pub async fn service_key(&self) -> Key {
        let reply = self
            .post("/service-keys", json!({"name": "gateway"}))
            .bearer(&operator())
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        Key {
            id: member(&reply, "id"),
            text: member(&reply, "key"),
        }
    }

    /// The `code` of a verification without requirements, requested with the role `service`.
    pub async fn code(&self, key: &str) -> String {
        let reply = self
            .post("/verify", json!({"key": key}))
            .bearer(&service())
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        member(&reply, "code")
    }

    pub async fn codes(&self, keys: &[&str]) -> Vec<String> {
        let mut codes = Vec::new();
        for keys in keys.chunks(100) {
            let requests: Vec<Value> = keys.iter().map(|key| json!({"key": key})).collect();
            let reply = self
                .post("/verify/batch", json!({"requests": requests}))
                .bearer(&service())
                .await;
            assert_eq!(reply.status, 200, "{reply}");
            let json = reply.json();
            let results = json["results"].as_array().expect("results");
            codes.extend(
                results
                    .iter()
                    .map(|result| result["code"].as_str().expect("a code").to_owned()),
            );
        }
        codes
    }
}

/// The string with this name in a response.
pub fn member(reply: &Reply, name: &str) -> String {
    reply.json()[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name}: {reply}"))
        .to_owned()
}

/// A management token of an account, on the machine's clock.
pub fn merchant(account: &str) -> String {
    token(Some(account), &[])
}

/// A management token with the role `operator`.
pub fn operator() -> String {
    token(None, &["operator"])
}

/// A management token with the role `service`.
pub fn service() -> String {
    token(None, &["service"])
}

fn token(account: Option<&str>, roles: &[&str]) -> String {
    token_of("user_1", account, roles)
}

pub fn token_of(subject: &str, account: Option<&str>, roles: &[&str]) -> String {
    let token = NewToken {
        subject: subject.to_owned(),
        account: account.map(|account| account.parse().expect("an account ID")),
        roles: roles.iter().map(ToString::to_string).collect(),
        lifetime: jiff::SignedDuration::from_hours(1),
    };
    let rules = settings("sqlite://tollkey.db", &[]).tokens.claims;
    create_token(&Secret::new(SECRET), &rules, &token, Timestamp::now()).expect("a token")
}

/// A connection for requests that are sent in pieces, repeatedly, or to a server that crashes.
pub struct Connection {
    address: SocketAddr,
    stream: TcpStream,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Option<Self> {
        Some(Self {
            address,
            stream: TcpStream::connect(address).await.ok()?,
        })
    }

    /// Sends a complete request and keeps the connection open.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        body: &str,
    ) -> io::Result<()> {
        let head = self.head(method, path, token, body, "");
        self.stream
            .write_all(format!("{head}{body}").as_bytes())
            .await
    }

    pub async fn get(&mut self, path: &str, header: &str, value: &str) -> io::Result<()> {
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\n{header}: {value}\r\n\r\n",
            self.address
        );
        self.stream.write_all(head.as_bytes()).await
    }

    /// Sends a request without its body, and waits for `100 Continue`.
    pub async fn begin(&mut self, method: &str, path: &str, token: &str, body: &str) {
        let head = self.head(method, path, token, body, "expect: 100-continue\r\n");
        self.stream.write_all(head.as_bytes()).await.expect("sent");
        const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
        let mut answer = [0; CONTINUE.len()];
        let read = timeout(TIMEOUT, self.stream.read_exact(&mut answer))
            .await
            .expect("a response in time");
        read.expect("a response");
        assert_eq!(str::from_utf8(&answer), Ok(CONTINUE));
    }

    pub async fn finish(&mut self, body: &str) {
        self.stream.write_all(body.as_bytes()).await.expect("sent");
    }

    fn head(&self, method: &str, path: &str, token: &str, body: &str, more: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n{more}\r\n",
            self.address,
            body.len()
        )
    }

    /// Status and body of the next response; `None` when the connection ends first.
    pub async fn answer(&mut self) -> Option<(u16, String)> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some(response) = parse_response(&bytes) {
                return Some(response);
            }
            let read = timeout(TIMEOUT, self.stream.read(&mut buffer))
                .await
                .expect("a response or the end in time");
            match read {
                Ok(0) | Err(_) => return None,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

fn parse_response(bytes: &[u8]) -> Option<(u16, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    (body.len() == length.unwrap_or(0)).then(|| (status, body.to_owned()))
}
