//! The measured servers: Tollkey with keys, and nginx with the same keys in a map.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde_json::{Value, json};

use super::load::{Requests, ResponseHead, Round, Target, Until, load};

/// An application has at most 20 keys by default.
const APPLICATIONS: usize = 50;
const KEYS_OF_EACH: usize = 20;
/// The only scope of every key.
pub(super) const SCOPE: &str = "links:read";
/// The measured route, on both servers.
pub(super) const ROUTE: &str = "/api/v1/authz/forward-auth";
pub(super) const ACCOUNT: &str = "bench";

/// Linux reports CPU times to programs in hundredths of a second (`USER_HZ`).
const MILLIS_OF_A_TICK: u64 = 10;

/// The longest time for a server to start or to stop.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Separate processors for the load generator and for the servers, so that they do not compete.
pub(super) struct Processors(Option<(CpuSet, CpuSet)>);

impl Processors {
    /// Pins this thread to one processor and reserves another for servers, unless there is only one.
    pub(super) fn divide() -> anyhow::Result<Self> {
        let ours = sched_getaffinity(None)?;
        let mut each = (0..CpuSet::MAX_CPU)
            .filter(|number| ours.is_set(*number))
            .map(|number| {
                let mut one = CpuSet::new();
                one.set(number);
                one
            });
        let (Some(generator), Some(servers)) = (each.next(), each.next()) else {
            return Ok(Self(None));
        };
        sched_setaffinity(None, &generator)?;
        Ok(Self(Some((generator, servers))))
    }

    pub(super) fn are_divided(&self) -> bool {
        self.0.is_some()
    }

    /// Starts a server on its processors. A process inherits them from the thread that starts it.
    pub(super) fn start(&self, command: &mut Command) -> anyhow::Result<Process> {
        if let Some((_, servers)) = &self.0 {
            sched_setaffinity(None, servers)?;
        }
        let process = Process::start(command);
        if let Some((generator, _)) = &self.0 {
            sched_setaffinity(None, generator)?;
        }
        process
    }
}

/// A process that is stopped when the value is dropped.
pub(super) struct Process(Child);

impl Process {
    /// Starts the process on any processor.
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn();
        Ok(Self(child.with_context(|| {
            format!("cannot start {}", command.get_program().display())
        })?))
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(self.0.id().cast_signed()).context("no process")
    }

    pub(super) fn pause(&self) -> anyhow::Result<Paused> {
        let pid = self.pid()?;
        kill_process(pid, Signal::STOP).context("cannot pause a process")?;
        Ok(Paused(pid))
    }

    /// Waits for the line with the addresses on which Tollkey listens. Returns the first one.
    pub(super) fn listening(&mut self) -> anyhow::Result<SocketAddr> {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let listening = line
            .trim()
            .strip_prefix("listening on http://")
            .context("the server did not start")?;
        let (first, _) = listening.split_once(", ").unwrap_or((listening, ""));
        Ok(first.parse()?)
    }

    /// The CPU time of the process and its children, or `None` if the kernel does not report it.
    fn cpu_time(&self) -> Option<Duration> {
        let pid = self.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let children = children.split_ascii_whitespace().map(str::to_owned);
        let mut ticks = 0;
        for pid in std::iter::once(pid.to_string()).chain(children) {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // proc(5): the name, which can contain spaces, is in parentheses. `utime` and `stime` are the 14th and 15th
            // fields, and include threads that have ended.
            let (_, fields) = text.rsplit_once(')')?;
            for field in fields.split_ascii_whitespace().skip(11).take(2) {
                ticks += field.parse::<u64>().ok()?;
            }
        }
        Some(Duration::from_millis(ticks * MILLIS_OF_A_TICK))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL would leave nginx's worker behind.
        if let Ok(pid) = self.pid() {
            let _ = kill_process(pid, Signal::TERM);
        }
        let since = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if since.elapsed() > TIMEOUT {
                let _ = self.0.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A paused process, which continues when the value is dropped.
pub(super) struct Paused(Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) process: Process,
}

pub(super) struct Measured {
    pub(super) round: Round,
    /// The server's CPU time for a request, in microseconds; NaN if the kernel does not report it.
    pub(super) cpu_micros: f64,
}

impl Server {
    /// Sends requests as [`load`] does, and measures the CPU time.
    pub(super) fn measure(
        &self,
        requests: &Requests,
        expected: u16,
        until: Until,
    ) -> anyhow::Result<Measured> {
        self.measure_at(&Target::Tcp(self.address), requests, expected, until)
    }

    /// [`Self::measure`] at another listener of the server.
    pub(super) fn measure_at(
        &self,
        listener: &Target,
        requests: &Requests,
        expected: u16,
        until: Until,
    ) -> anyhow::Result<Measured> {
        self.measure_load(|| load(listener, requests, expected, until))
    }

    /// Measures the CPU time while `load` sends requests.
    pub(super) fn measure_load(
        &self,
        load: impl FnOnce() -> anyhow::Result<Round>,
    ) -> anyhow::Result<Measured> {
        let before = self.process.cpu_time();
        let round = load()?;
        let after = self.process.cpu_time();
        let cpu_micros = before.zip(after).map_or(f64::NAN, |(before, after)| {
            let micros = after.saturating_sub(before).as_secs_f64() * 1_000_000.0;
            micros / round.requests().max(1) as f64
        });
        Ok(Measured { round, cpu_micros })
    }
}

pub(super) struct Key {
    pub(super) text: String,
    id: String,
    application_id: String,
}

/// Builds Tollkey in release mode. Returns the path of the binary.
pub(super) fn build() -> anyhow::Result<PathBuf> {
    build_with(&[])
}

/// Builds Tollkey as [`build`] does, with these features.
pub(super) fn build_with(features: &[&str]) -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--package", "tollkey-server"])
        .args(features.iter().flat_map(|name| ["--features", *name]))
        .current_dir(crate::root());
    ensure!(
        command.status().context("cannot run cargo")?.success(),
        "the server does not build"
    );
    // The binary is in the same target directory as this program, wherever that is.
    let target = env::current_exe()?
        .ancestors()
        .nth(2)
        .context("this program has no directory")?
        .to_owned();
    Ok(target.join("release").join("tollkey"))
}

/// Builds this program in release mode, because it contains code that is measured.
pub(super) fn build_self() -> anyhow::Result<PathBuf> {
    let own = env::current_exe()?;
    if !cfg!(debug_assertions) {
        return Ok(own);
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--package", "tollkey-bench"])
        .current_dir(crate::root());
    ensure!(
        command.status().context("cannot run cargo")?.success(),
        "tollkey-bench does not build"
    );
    let target = own
        .ancestors()
        .nth(2)
        .context("this program has no directory")?;
    Ok(target.join("release").join("tollkey-bench"))
}

/// The secret that signs the management tokens of [`Tollkey`], because development mode listens on no Unix socket.
const TOKEN_SECRET: (&str, &str) = (
    "TOLLKEY_JWT_HS256_SECRET",
    "an example secret for benchmarks, 32+ bytes",
);

/// Tollkey on an empty database and two listeners, with one worker, metrics, and logs at `warn`.
pub(super) struct Tollkey {
    pub(super) server: Server,
    /// Its Unix socket.
    pub(super) socket: PathBuf,
    pub(super) keys: Vec<Key>,
}

impl Tollkey {
    pub(super) fn start(
        program: &Path,
        directory: &Path,
        processors: &Processors,
        cache_bytes: Option<u64>,
    ) -> anyhow::Result<Self> {
        let setting = cache_bytes.map(|bytes| ("TOLLKEY_CACHE_BYTES", bytes.to_string()));
        Self::start_with(program, directory, processors, setting)
    }

    /// Starts a server with another setting.
    pub(super) fn start_with(
        program: &Path,
        directory: &Path,
        processors: &Processors,
        setting: Option<(&str, String)>,
    ) -> anyhow::Result<Self> {
        let mut serve = tollkey(program, directory);
        serve.envs(setting).envs([TOKEN_SECRET]);
        let socket = directory.join("tollkey.sock");
        let listen = format!("127.0.0.1:0,unix:{}", socket.display());
        serve.args(["serve", "--listen", &listen, "--workers", "1"]);
        serve.args(["--metrics-listen", "127.0.0.1:0", "--log", "warn"]);
        let mut process = processors.start(serve.stdout(Stdio::piped()))?;
        let address = process.listening()?;
        let mut signer = tollkey(program, directory);
        let token = token(signer.envs([TOKEN_SECRET]), ACCOUNT)?;
        let mut manager = Client::connect(address)?;
        let mut keys = Vec::with_capacity(APPLICATIONS * KEYS_OF_EACH);
        for number in 0..APPLICATIONS {
            let application = manager.post(
                &token,
                "/api/v1/applications",
                &json!({ "name": format!("bench {number}") }),
            )?;
            let path = format!(
                "/api/v1/applications/{}/api-keys",
                text(&application, "id")?
            );
            for number in 0..KEYS_OF_EACH {
                let key = manager.post(
                    &token,
                    &path,
                    &json!({ "description": format!("{number}"), "scopes": [SCOPE] }),
                )?;
                keys.push(Key {
                    text: text(&key, "fullKey")?,
                    id: text(&key, "id")?,
                    application_id: text(&key, "applicationId")?,
                });
            }
        }
        Ok(Self {
            server: Server { address, process },
            socket,
            keys,
        })
    }
}

/// A Tollkey command without the settings of the caller's environment.
pub(super) fn tollkey(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    let names = env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| {
        ["TOLLKEY_", "DATABASE_URL"]
            .iter()
            .any(|ours| starts_with(name, ours))
    }) {
        command.env_remove(name);
    }
    command
        .current_dir(directory)
        .env("DATABASE_URL", database_url(directory));
    command
}

/// The URL of the database of the commands that run in this directory.
pub(super) fn database_url(directory: &Path) -> String {
    format!("sqlite://{}", database_file(directory).display())
}

pub(super) fn database_file(directory: &Path) -> PathBuf {
    directory.join("bench.db")
}

pub(super) fn migrate(program: &Path, directory: &Path) -> anyhow::Result<()> {
    let status = tollkey(program, directory).arg("migrate").status()?;
    ensure!(status.success(), "the database cannot be migrated");
    Ok(())
}

/// Creates a service key.
pub(super) fn service_key(program: &Path, directory: &Path) -> anyhow::Result<String> {
    let mut command = tollkey(program, directory);
    let output = command.args(["service-key", "create", "bench"]).output()?;
    ensure!(
        output.status.success(),
        "cannot create a service key: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn starts_with(name: &std::ffi::OsStr, with: &str) -> bool {
    name.as_encoded_bytes().starts_with(with.as_bytes())
}

pub(super) fn token(tollkey: &mut Command, account: &str) -> anyhow::Result<String> {
    let token = tollkey.args(["token", "--account", account]).output()?;
    ensure!(
        token.status.success(),
        "no token: {}",
        String::from_utf8_lossy(&token.stderr)
    );
    Ok(String::from_utf8(token.stdout)?.trim().to_owned())
}

pub(super) fn text(response: &Value, field: &str) -> anyhow::Result<String> {
    Ok(response[field]
        .as_str()
        .with_context(|| format!("a response without {field}"))?
        .to_owned())
}

/// The longest response; a page of the dashboard has about 60 kB.
const LARGEST: usize = 1 << 20;

/// A client with a persistent connection, one request at a time.
pub(super) struct Client {
    stream: TcpStream,
    host: SocketAddr,
}

impl Client {
    pub(super) fn connect(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream, host: to })
    }

    /// Sends a request. Returns the status and the body.
    pub(super) fn send(
        &mut self,
        method: &str,
        path: &str,
        credential: &str,
        body: &str,
    ) -> anyhow::Result<(u16, Vec<u8>)> {
        let (host, length) = (self.host, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {credential}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let (response, received) = self.send_raw(&request)?;
        Ok((
            response.status,
            received[response.body..response.end].to_vec(),
        ))
    }

    /// Sends a request as it is. Returns the response and all received bytes.
    pub(super) fn send_raw(&mut self, request: &str) -> anyhow::Result<(ResponseHead, Vec<u8>)> {
        self.stream.write_all(request.as_bytes())?;
        let mut received = Vec::new();
        loop {
            let mut more = [0; 64 * 1024];
            let count = self.stream.read(&mut more)?;
            ensure!(
                count > 0 && received.len() < LARGEST,
                "the server closed the connection, or its response is too long"
            );
            received.extend_from_slice(&more[..count]);
            if let Some(response) = ResponseHead::read(&received)? {
                return Ok((response, received));
            }
        }
    }

    /// Sends a POST request and expects status 201. Returns the body of the response.
    pub(super) fn post(&mut self, token: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, body) = self.send("POST", path, token, &body.to_string())?;
        ensure!(
            status == 201,
            "{path}: {status} {}",
            String::from_utf8_lossy(&body)
        );
        Ok(serde_json::from_slice(&body)?)
    }
}

/// nginx in the PATH or in Debian's /usr/sbin, which is only in root's PATH.
pub(super) fn nginx() -> Option<PathBuf> {
    let directories = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&directories).chain([PathBuf::from("/usr/sbin")]);
    directories
        .map(|directory| directory.join("nginx"))
        .find(|program| program.is_file())
}

/// Starts nginx with one worker and the keys in static maps. It responds with the same headers as Tollkey.
pub(super) fn start_nginx(
    program: &Path,
    directory: &Path,
    keys: &[Key],
    processors: &Processors,
) -> anyhow::Result<Server> {
    // The port was free. If another process takes it in the meantime, nginx logs that and exits.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let configuration = directory.join("nginx.conf");
    fs::write(&configuration, nginx_configuration(address, keys)?)?;
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(&configuration)
        .args(["-e", "stderr"]);
    let mut process = processors.start(&mut command)?;
    let since = Instant::now();
    while TcpStream::connect(address).is_err() {
        if let Some(status) = process.0.try_wait()? {
            bail!("nginx exited: {status}");
        }
        ensure!(since.elapsed() < TIMEOUT, "nginx does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Server { address, process })
}

fn nginx_configuration(address: SocketAddr, keys: &[Key]) -> anyhow::Result<String> {
    let (mut ids, mut applications) = (String::new(), String::new());
    for Key {
        text,
        id,
        application_id,
    } in keys
    {
        writeln!(ids, "    \"Bearer {text}\" {id};")?;
        writeln!(applications, "    \"Bearer {text}\" {application_id};")?;
    }
    Ok(format!(
        r#"daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  map_hash_max_size 65536;
  map_hash_bucket_size 256;
  map $http_authorization $key_id {{
    default "";
{ids}  }}
  map $http_authorization $application_id {{
    default "";
{applications}  }}
  server {{
    listen {address};
    location = {ROUTE} {{
      if ($key_id = "") {{ return 401; }}
      add_header X-Auth-Key-Id $key_id;
      add_header X-Auth-Account-Id {ACCOUNT};
      add_header X-Auth-Application-Id $application_id;
      add_header X-Auth-Mode live;
      add_header X-Auth-Scopes {SCOPE};
      add_header X-Request-Id $request_id;
      return 200;
    }}
  }}
}}
"#
    ))
}
