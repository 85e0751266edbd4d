//! The gateway examples against real processes: Tollkey, a gateway with its shipped configuration (only the
//! addresses differ), and an API that records the requests it receives. A gateway that is not installed is skipped
//! with a message; with `TOLLKEY_TEST_REQUIRE_GATEWAYS=1` that is a failure.

use std::{
    collections::HashSet,
    env, fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, rt, web};
#[cfg(feature = "grpc")]
use envoy_types::pb::envoy::service::auth::v3::{
    CheckRequest, CheckResponse,
    authorization_server::{Authorization, AuthorizationServer},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};

use crate::{
    binary::{Server, Tollkey, member, merchant, operator},
    support::{Call, Key, Reply, SECRET, eventually, http::client},
};

/// The longest a gateway may take to start on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest a client may wait when Tollkey does not respond: the examples' timeout, plus time for a busy machine.
const MAX_AGE: Duration = Duration::from_secs(12);

/// The addresses of Tollkey and of the API in the examples.
const TOLLKEY: &str = "127.0.0.1:8080";
const TOLLKEY_GRPC: &str = "127.0.0.1:8082";
const API: &str = "127.0.0.1:8081";

/// The gateways listen on the first address, Tollkey on the second one. No other process uses ports of these addresses,
/// so a port stays free after a restart.
const GATEWAY_HOST: &str = "127.0.0.2";
const TOLLKEY_HOST: &str = "127.0.0.3";

/// A client in the IP allowlist of a key, and one that is not.
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 7));

const IDENTITY: [&str; 6] = [
    "x-auth-key-id",
    "x-auth-account-id",
    "x-auth-application-id",
    "x-auth-mode",
    "x-auth-scopes",
    "x-auth-merchant-id",
];
/// A well-formed key ID.
const SOME_ID: &str = "01a1fdf4-8ded-771c-a1fe-14ac36e62ac1";
const CREDENTIALS: [&str; 3] = ["authorization", "x-api-key", "x-commerce-api-key"];

/// The path of Tollkey's Unix socket in the examples.
const SOCKET: &str = "/run/tollkey/tollkey.sock";

/// Where a gateway reaches Tollkey.
#[derive(Debug, Clone)]
enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateway {
    Nginx,
    Haproxy,
    Caddy,
    Envoy,
    /// Envoy with the configuration over gRPC.
    EnvoyGrpc,
}

use Gateway::{Caddy, Envoy, EnvoyGrpc, Haproxy, Nginx};

impl Gateway {
    fn name(self) -> &'static str {
        match self {
            Nginx => "nginx",
            Haproxy => "haproxy",
            Caddy => "caddy",
            Envoy | EnvoyGrpc => "envoy",
        }
    }

    fn is_envoy(self) -> bool {
        [Envoy, EnvoyGrpc].contains(&self)
    }

    /// Finds the program in `PATH` or in Debian's `/usr/sbin`, which is only in root's path. `TOLLKEY_TEST_ENVOY` names
    /// that of Envoy, which Debian does not have.
    pub fn program(self) -> Option<PathBuf> {
        if self.is_envoy()
            && let Some(program) = env::var_os("TOLLKEY_TEST_ENVOY")
        {
            return Some(program.into());
        }
        let directories = env::var_os("PATH").unwrap_or_default();
        let directories = env::split_paths(&directories).chain([PathBuf::from("/usr/sbin")]);
        directories
            .map(|directory| directory.join(self.name()))
            .find(|program| program.is_file())
    }

    /// The file and the line that remove `Authorization`. An API that uses the header itself drops this line.
    fn removes_authorization(self) -> (&'static str, &'static str) {
        match self {
            Nginx => (
                "nginx.conf",
                "    proxy_set_header Authorization         \"\";\n",
            ),
            Haproxy => ("haproxy.cfg", "    http-request del-header Authorization\n"),
            Caddy => ("Caddyfile", "\t\theader_up -Authorization\n"),
            Envoy => ("envoy.yaml", "authorization, "),
            EnvoyGrpc => ("envoy-grpc.yaml", "authorization, "),
        }
    }

    /// The file, the line with Tollkey's TCP address, and the comment whose text replaces it for a Unix socket.
    fn unix_socket(self) -> [&'static str; 3] {
        match self {
            Nginx => [
                "nginx.conf",
                "    server 127.0.0.1:8080;\n",
                "# server unix:/run/tollkey/tollkey.sock;\n",
            ],
            Haproxy => [
                "haproxy.cfg",
                "    server tollkey 127.0.0.1:8080\n",
                "# server tollkey unix@/run/tollkey/tollkey.sock\n",
            ],
            Envoy => [
                "envoy.yaml",
                "              - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8080 } } }\n",
                "# - endpoint: { address: { pipe: { path: /run/tollkey/tollkey.sock } } }\n",
            ],
            Caddy | EnvoyGrpc => panic!("the example of {self:?} has no Unix socket"),
        }
    }

    /// Changes a written configuration to a Unix socket, as its comment says.
    fn use_unix_socket(self, directory: &Path, path: &Path) {
        let [file, tcp, comment] = self.unix_socket();
        let written = directory.join(self.written(file));
        let text = fs::read_to_string(&written).expect("the written file");
        for line in [tcp, comment] {
            assert_eq!(text.matches(line).count(), 1, "{file}: {line:?}");
        }
        let unix = comment
            .trim_start_matches("# ")
            .replace(SOCKET, path.to_str().expect("a UTF-8 path"));
        let text = text.replace(tcp, "").replace(comment, &unix);
        fs::write(&written, text).expect("a file");
    }

    /// The name under which a shipped file is written.
    fn written(self, file: &str) -> &str {
        match self {
            Nginx => "gateway.conf",
            _ => file,
        }
    }

    /// The address of Tollkey in the configuration.
    fn tollkey(self) -> &'static str {
        match self {
            EnvoyGrpc => TOLLKEY_GRPC,
            _ => TOLLKEY,
        }
    }

    /// Adds the listener that the gateway connects to, if that is not the HTTP listener. Returns its address.
    fn listener(self, tollkey: Tollkey) -> (Tollkey, Option<SocketAddr>) {
        if self != EnvoyGrpc {
            return (tollkey, None);
        }
        let address = free(TOLLKEY_HOST);
        let tollkey = tollkey.with("TOLLKEY_GRPC_LISTEN", &address.to_string());
        (tollkey, Some(address))
    }

    fn shipped(self, file: &str) -> String {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/gateways");
        let path = examples.join(self.name()).join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Writes the configuration into a directory. Returns the arguments of the program.
    fn configure(
        self,
        directory: &Path,
        listen: SocketAddr,
        addresses: &[(&str, String)],
        mode: &str,
    ) -> Vec<String> {
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("a file");
        let path = |name: &str| {
            directory
                .join(name)
                .to_str()
                .expect("a UTF-8 path")
                .to_owned()
        };
        let edit = |file: &str, own: &[(&str, String)]| {
            own.iter()
                .chain(addresses)
                .fold(self.shipped(file), |text, (from, to)| {
                    assert!(text.contains(from), "{file} has no {from:?}");
                    text.replace(from, to)
                })
        };
        match self {
            Nginx => {
                let own = [
                    ("listen 80;", format!("listen {listen};")),
                    ("$accepted_mode live;", format!("$accepted_mode {mode};")),
                ];
                write("gateway.conf", &edit("nginx.conf", &own));
                // The surroundings of an installed nginx, with options that it may have. A single process, so that
                // killing it leaves none behind.
                let around = "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr warn;\nevents {}\nhttp {\n\
                    underscores_in_headers on;\nignore_invalid_headers off;\naccess_log off;\nclient_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
                    uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\ninclude gateway.conf;\n}\n";
                write("nginx.conf", around);
                ["-e", "stderr", "-p", &path(""), "-c", &path("nginx.conf")]
                    .map(str::to_owned)
                    .to_vec()
            }
            Haproxy => {
                let own = [
                    ("bind :80", format!("bind {listen}")),
                    ("str(live)", format!("str({mode})")),
                    // Abstract sockets are shared by the whole machine.
                    (
                        "abns@tollkey",
                        format!("abns@tollkey-{}-{listen}", std::process::id()),
                    ),
                ];
                write("haproxy.cfg", &edit("haproxy.cfg", &own));
                write("tollkey.lua", &self.shipped("tollkey.lua"));
                ["-db", "-f", &path("haproxy.cfg")]
                    .map(str::to_owned)
                    .to_vec()
            }
            Caddy => {
                let own = [
                    (
                        "http://:80 {",
                        format!("http://:{} {{\n\tbind {}", listen.port(), listen.ip()),
                    ),
                    ("{$KEY_MODE:live}", format!("{{$KEY_MODE:{mode}}}")),
                ];
                write(
                    "Caddyfile",
                    &format!("{{\n\tadmin off\n}}\n{}", edit("Caddyfile", &own)),
                );
                [
                    "run",
                    "--adapter",
                    "caddyfile",
                    "--config",
                    &path("Caddyfile"),
                ]
                .map(str::to_owned)
                .to_vec()
            }
            Envoy | EnvoyGrpc => {
                let (file, (accepted, as_configured)) = match self {
                    Envoy => ("envoy.yaml", ("mode=live", format!("mode={mode}"))),
                    _ => ("envoy-grpc.yaml", ("mode: live", format!("mode: {mode}"))),
                };
                let yaml = |address: &str| {
                    let (host, port) = address.rsplit_once(':').expect("an address and a port");
                    format!("address: {host}, port_value: {port} }}")
                };
                let own = [("0.0.0.0:80", listen.to_string())];
                let text =
                    own.iter()
                        .chain(addresses)
                        .fold(self.shipped(file), |text, (from, to)| {
                            let from = yaml(from);
                            assert!(text.contains(&from), "{file} has no {from:?}");
                            text.replace(&from, &yaml(to))
                        });
                assert!(text.contains(accepted), "{file} has no {accepted:?}");
                write(file, &text.replace(accepted, &as_configured));
                // One worker, which uses one connection. Without hot restart, several processes can run.
                let arguments = [
                    "--concurrency",
                    "1",
                    "--disable-hot-restart",
                    "-l",
                    "warn",
                    "-c",
                ];
                arguments
                    .into_iter()
                    .chain([path(file).as_str()])
                    .map(str::to_owned)
                    .collect()
            }
        }
    }

    /// Whether the client receives Tollkey's own problem. nginx replaces it.
    fn passes_problems(self) -> bool {
        self != Nginx
    }

    /// The status when the API is down.
    fn bad_gateway(self) -> u16 {
        if self == Haproxy || self.is_envoy() {
            503
        } else {
            502
        }
    }
}

/// A running gateway. Killed when dropped.
pub struct RunningGateway {
    pub address: SocketAddr,
    process: Child,
    directory: TempDir,
}

impl RunningGateway {
    /// Starts a gateway that accepts keys of this mode.
    async fn start(
        gateway: Gateway,
        program: &Path,
        tollkey: impl Into<Target>,
        api: SocketAddr,
        mode: &str,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let address = free(GATEWAY_HOST);
        let mut addresses = vec![(API, api.to_string())];
        let tollkey = tollkey.into();
        if let Target::Tcp(tollkey) = tollkey {
            addresses.push((gateway.tollkey(), tollkey.to_string()));
        }
        let arguments = gateway.configure(directory.path(), address, &addresses, mode);
        if let Target::Unix(path) = &tollkey {
            gateway.use_unix_socket(directory.path(), path);
        }
        Self::launch(gateway, program, address, directory, &arguments).await
    }

    /// Starts a gateway with a configuration that has been written.
    pub async fn launch(
        gateway: Gateway,
        program: &Path,
        address: SocketAddr,
        directory: TempDir,
        arguments: &[String],
    ) -> Self {
        let log = fs::File::create_new(directory.path().join("log")).expect("a file");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory.path());
        command
            .env_clear()
            .env("HOME", directory.path())
            .env("PATH", env::var_os("PATH").unwrap_or_default());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true);
        let process = command.spawn().expect("the gateway starts");
        let mut running = Self {
            address,
            process,
            directory,
        };
        let begun = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            let ended = running
                .process
                .try_wait()
                .expect("the status of the process");
            assert!(ended.is_none(), "{gateway:?} ended: {}", running.log());
            assert!(
                begun.elapsed() < TIMEOUT,
                "{gateway:?} does not listen: {}",
                running.log()
            );
            sleep(Duration::from_millis(5)).await;
        }
        running
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(self.directory.path().join("log")).expect("the log file");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

pub fn free(host: &str) -> SocketAddr {
    TcpListener::bind((host, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port")
}

#[derive(Debug)]
struct ReceivedRequest {
    peer: Option<SocketAddr>,
    method: String,
    uri: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl ReceivedRequest {
    fn header(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(own, _)| own == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The identity headers. A missing header is the same as an empty one.
    fn identity(&self) -> [&str; 6] {
        IDENTITY.map(|name| match self.header(name).as_slice() {
            [] => "",
            [value] => value,
            _ => panic!("{name} is repeated: {self:?}"),
        })
    }

    /// Asserts what holds for each request that a gateway forwards.
    fn assert_clean(&self, gateway: Gateway) {
        for (name, value) in &self.headers {
            assert!(
                !CREDENTIALS.contains(&name.as_str()),
                "{gateway:?} forwards the credential: {name}"
            );
            // CGI and similar interfaces map all spellings to the same variable.
            let folded = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
            assert!(
                *name == folded || !IDENTITY.contains(&folded.as_str()),
                "{gateway:?} forwards {name}"
            );
            let own = IDENTITY.contains(&name.as_str())
                || name == "x-forwarded-for"
                || name == "connection";
            assert!(
                !own || !value.contains("forged"),
                "{gateway:?} forwards {name}: {value}"
            );
        }
    }
}

/// An API behind the gateway that records the requests it receives.
struct Api {
    address: SocketAddr,
    received: Arc<Mutex<Vec<ReceivedRequest>>>,
    handle: ServerHandle,
}

impl Api {
    fn start() -> Self {
        Self::responding(|| HttpResponse::Ok().body("the API"))
    }

    fn responding(answer: fn() -> HttpResponse) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let recorded = web::Data::from(Arc::clone(&received));
        let listener = TcpListener::bind((GATEWAY_HOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let app = move || {
            let record =
                move |request: HttpRequest,
                      body: web::Bytes,
                      recorded: web::Data<Mutex<Vec<ReceivedRequest>>>| async move {
                    Self::record(&request, &body, &recorded);
                    answer()
                };
            App::new()
                .app_data(recorded.clone())
                .default_service(web::to(record))
        };
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .shutdown_timeout(0)
            .listen(listener);
        let server = server.expect("a listening server").run();
        let handle = server.handle();
        rt::spawn(server);
        Self {
            address,
            received,
            handle,
        }
    }

    fn record(request: &HttpRequest, body: &web::Bytes, recorded: &Mutex<Vec<ReceivedRequest>>) {
        let text = |value: &actix_web::http::header::HeaderValue| {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        };
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), text(value)));
        recorded
            .lock()
            .expect("no poisoned lock")
            .push(ReceivedRequest {
                peer: request.peer_addr(),
                method: request.method().to_string(),
                uri: request.uri().to_string(),
                headers: headers.collect(),
                body: body.to_vec(),
            });
    }

    /// Returns the requests received since the last call.
    fn take(&self) -> Vec<ReceivedRequest> {
        std::mem::take(&mut self.received.lock().expect("no poisoned lock"))
    }
}

struct World {
    gateway: Gateway,
    program: PathBuf,
    tollkey: Tollkey,
    server: Option<Server>,
    /// The listener that the gateway connects to.
    target: Target,
    api: Api,
    running: RunningGateway,
}

impl World {
    /// `None` when the gateway is not installed.
    async fn start(gateway: Gateway) -> Option<Self> {
        Self::start_over(gateway, false).await
    }

    /// [`Self::start`], with a gateway that connects to Tollkey over a Unix socket or over TCP.
    async fn start_over(gateway: Gateway, unix: bool) -> Option<Self> {
        let Some(program) = gateway.program() else {
            let required =
                env::var("TOLLKEY_TEST_REQUIRE_GATEWAYS").is_ok_and(|value| value == "1");
            assert!(
                !required,
                "no {} found, but TOLLKEY_TEST_REQUIRE_GATEWAYS=1",
                gateway.name()
            );
            let hint = if gateway.is_envoy() {
                "CONTRIBUTING.md says how to install it".to_owned()
            } else {
                format!("Debian: apt-get install {}", gateway.name())
            };
            eprintln!(
                "\n*** {} is not installed: its example is NOT tested. {hint} ***\n",
                gateway.name()
            );
            return None;
        };
        let tollkey = Tollkey::development()
            .with("TOLLKEY_LISTEN", &format!("{TOLLKEY_HOST}:0"))
            .with("TOLLKEY_JWT_HS256_SECRET", SECRET)
            // The gateway is a trusted proxy. The clients, which are on this machine too, are not.
            .with("TOLLKEY_TRUSTED_PROXIES", "127.0.0.1/32");
        let (tollkey, listener) = gateway.listener(tollkey);
        let socket = tollkey.directory().join("tollkey.sock");
        let (listen_too, mut tollkey) = if unix {
            let listen_too = format!(",unix:{}", socket.display());
            let listen = format!("{TOLLKEY_HOST}:0{listen_too}");
            (listen_too, tollkey.with("TOLLKEY_LISTEN", &listen))
        } else {
            (String::new(), tollkey)
        };
        let server = tollkey.serve().await;
        let listen = format!("{}{listen_too}", server.address);
        tollkey = tollkey.with("TOLLKEY_LISTEN", &listen);
        let target = if unix {
            Target::Unix(socket)
        } else {
            Target::Tcp(listener.unwrap_or(server.address))
        };
        let model = server
            .put("/accounts/acme", json!({"operating_model": "ecosystem"}))
            .bearer(&operator())
            .await;
        assert_eq!(model.status, 200, "{model}");
        let api = Api::start();
        let running =
            RunningGateway::start(gateway, &program, target.clone(), api.address, "live").await;
        Some(Self {
            gateway,
            program,
            tollkey,
            server: Some(server),
            target,
            api,
            running,
        })
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("a running server")
    }

    /// Creates a commerce key with these fields.
    async fn key(&self, mut body: Value) -> Key {
        body["name"] = json!("Checkout");
        let reply = self
            .server()
            .post("/api-keys", body)
            .bearer(&merchant("acme"))
            .await;
        assert_eq!(reply.status, 201, "{reply}\n{}", self.server().stderr());
        Key {
            id: member(&reply, "key_id"),
            text: member(&reply, "api_key"),
        }
    }

    fn call(&self, method: &str, path: &str) -> Call {
        // A full path, so that the call puts no prefix before it.
        assert!(
            ["/api/", "/nothing", "/_tollkey"]
                .iter()
                .any(|own| path.starts_with(own)),
            "{path}"
        );
        Call::new(self.running.address, method, path)
    }

    fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    /// Asserts that a request is forwarded. Returns what the API received.
    async fn allowed(&self, what: &str, call: Call) -> ReceivedRequest {
        let reply = call.await;
        assert_eq!(
            reply.status,
            200,
            "{:?}, {what}: {reply}\n{}",
            self.gateway,
            self.running.log()
        );
        let mut received = self.api.take();
        assert_eq!(
            received.len(),
            1,
            "{:?}, {what}: {received:?}",
            self.gateway
        );
        let received = received.remove(0);
        received.assert_clean(self.gateway);
        received
    }

    /// Asserts that a request gets this status and does not reach the API.
    async fn rejected(&self, what: &str, call: Call, status: u16) -> Reply {
        let begun = Instant::now();
        let reply = call.await;
        assert_eq!(
            reply.status,
            status,
            "{:?}, {what}: {reply}\n{:?} {}",
            self.gateway,
            self.api.take(),
            self.running.log()
        );
        assert!(
            begun.elapsed() < MAX_AGE,
            "{:?}, {what}: {:?}",
            self.gateway,
            begun.elapsed()
        );
        let received = self.api.take();
        assert!(
            received.is_empty(),
            "{:?}, {what}: {received:?}",
            self.gateway
        );
        for name in IDENTITY {
            assert_eq!(reply.header(name), None, "{:?}, {what}", self.gateway);
        }
        reply
    }

    /// Asserts [`Self::rejected`] for a denial of Tollkey, with its problem where the gateway can forward that.
    async fn denied(&self, what: &str, call: Call, status: u16, code: &str) -> Reply {
        let reply = self.rejected(what, call, status).await;
        let (gateway, problem) = (self.gateway, "application/problem+json");
        assert_eq!(
            reply.header("content-type"),
            Some(problem),
            "{gateway:?}, {what}: {reply}"
        );
        assert_eq!(
            reply.json()["status"],
            status,
            "{gateway:?}, {what}: {reply}"
        );
        if gateway.passes_problems() {
            assert_eq!(reply.code(), code, "{gateway:?}, {what}: {reply}");
        }
        assert!(
            reply.header("x-request-id").is_some(),
            "{gateway:?}, {what}: {reply}"
        );
        let challenges = reply
            .headers
            .iter()
            .filter(|(name, _)| name == "www-authenticate")
            .count();
        let challenged = [400, 401].contains(&status) || code == "insufficient_scope";
        assert_eq!(
            challenges,
            usize::from(challenged),
            "{gateway:?}, {what}: {reply}"
        );
        reply
    }
}

async fn example_works(gateway: Gateway) {
    let Some(world) = World::start(gateway).await else {
        return;
    };
    routes_require_their_scopes(&world).await;
    identity_headers_name_the_key(&world).await;
    concurrent_requests_keep_their_identity(&world).await;
    restrictions_of_a_key_apply(&world).await;
    ambiguous_paths_are_rejected(&world).await;
    bodies_are_forwarded(&world).await;
    rate_limits_apply(&world).await;
    revoked_key_is_denied(&world).await;
    accepted_mode_is_configurable(&world).await;
    authorization_header_is_left_to_the_api(&world).await;
    if gateway.is_envoy() {
        path_with_a_byte_outside_ascii_is_rejected(&world).await;
    }
    #[cfg(feature = "grpc")]
    if gateway == EnvoyGrpc {
        only_tollkey_allows_requests_over_grpc(&world).await;
    }
    // Their servers in Tollkey's place do not speak gRPC, so Envoy would reject any response.
    if gateway != EnvoyGrpc {
        only_tollkey_allows_requests(&world).await;
        connections_are_reused(&world).await;
        closed_connection_loses_no_response(&world).await;
    }
    if gateway == Haproxy {
        failing_script_denies_requests(&world).await;
    }
    requests_fail_with_503_without_tollkey(world).await;
}

/// The same over the Unix socket of the example's comment. How a gateway treats other servers does not depend on it.
async fn example_works_over_a_unix_socket(gateway: Gateway) {
    let Some(world) = World::start_over(gateway, true).await else {
        return;
    };
    routes_require_their_scopes(&world).await;
    concurrent_requests_keep_their_identity(&world).await;
    restrictions_of_a_key_apply(&world).await;
    rate_limits_apply(&world).await;
    revoked_key_is_denied(&world).await;
    accepted_mode_is_configurable(&world).await;
    requests_fail_with_503_without_tollkey(world).await;
}

#[actix_web::test]
async fn nginx_example_works_over_a_unix_socket() {
    example_works_over_a_unix_socket(Nginx).await;
}

#[actix_web::test]
async fn haproxy_example_works_over_a_unix_socket() {
    example_works_over_a_unix_socket(Haproxy).await;
}

#[actix_web::test]
async fn envoy_example_works_over_a_unix_socket() {
    example_works_over_a_unix_socket(Envoy).await;
}

#[actix_web::test]
async fn nginx_example_works() {
    example_works(Nginx).await;
}

#[actix_web::test]
async fn haproxy_example_works() {
    example_works(Haproxy).await;
}

#[actix_web::test]
async fn caddy_example_works() {
    example_works(Caddy).await;
}

#[actix_web::test]
async fn envoy_example_works() {
    example_works(Envoy).await;
}

#[cfg(feature = "grpc")]
#[actix_web::test]
async fn envoy_example_over_grpc_works() {
    example_works(EnvoyGrpc).await;
}

async fn routes_require_their_scopes(world: &World) {
    let read = world.key(json!({"scopes": ["links:read"]})).await.text;
    let write = world.key(json!({"scopes": ["links:write"]})).await.text;
    let test = world.key(json!({"mode": "test"})).await.text;
    let links = "/api/v1/links";
    let get = |key: &str| world.get(links).bearer(key);

    for (what, method, path, key) in [
        ("read", "GET", links, &read),
        (
            "read one",
            "GET",
            "/api/v1/links/l_1?a=b%2Fc&d=/../e",
            &read,
        ),
        ("a space", "GET", "/api/v1/links/a%20b", &read),
        ("other escapes", "GET", "/api/v1/links/a%40b%3Ac%2Cd", &read),
        ("head", "HEAD", links, &read),
        ("write", "POST", links, &write),
        ("write one", "PATCH", "/api/v1/links/l_1", &write),
        ("delete", "DELETE", "/api/v1/links/l_1", &write),
        ("the mode alone", "GET", "/api/tokens", &read),
        ("the mode alone, below", "PUT", "/api/tokens/t_1", &write),
    ] {
        let received = world
            .allowed(what, world.call(method, path).bearer(key))
            .await;
        assert_eq!(
            (received.method.as_str(), received.uri.as_str()),
            (method, path),
            "{:?}",
            world.gateway
        );
    }
    for header in ["x-api-key", "x-commerce-api-key"] {
        world
            .allowed(header, world.get(links).header(header, &read))
            .await;
    }

    let insufficient_scope = "insufficient_scope";
    for (what, call, scope) in [
        (
            "write with read",
            world.call("POST", links).bearer(&read).body("x"),
            "links:write",
        ),
        (
            "delete with read",
            world.call("DELETE", "/api/v1/links/l_1").bearer(&read),
            "links:write",
        ),
        ("read with write", get(&write), "links:read"),
        // A method override of the client, or another gateway's header for the method, has no effect.
        (
            "another method",
            [
                "x-http-method-override",
                "x-forwarded-method",
                "x-original-method",
            ]
            .into_iter()
            .fold(world.call("POST", links).bearer(&read), |call, name| {
                call.header(name, "GET")
            }),
            "links:write",
        ),
        (
            "requirements in the client's query",
            world
                .call("POST", "/api/v1/links?scope=links:read")
                .bearer(&read),
            "links:write",
        ),
    ] {
        let reply = world.denied(what, call, 403, insufficient_scope).await;
        let challenge = reply.header("www-authenticate").unwrap_or_default();
        assert!(
            challenge.contains(&format!("scope=\"{scope}\"")),
            "{:?}, {what}: {reply}",
            world.gateway
        );
    }

    let unknown = world.call("BREW", links).bearer(&read);
    if world.gateway.is_envoy() {
        world.rejected("an unknown method", unknown, 400).await;
    } else {
        world
            .denied("an unknown method", unknown, 403, insufficient_scope)
            .await;
    }

    let reply = world
        .denied("no key", world.get(links), 401, "missing_credentials")
        .await;
    assert_eq!(
        reply.header("www-authenticate"),
        Some(r#"Bearer realm="tollkey""#)
    );
    let unknown = format!("ck_live_{}", "a".repeat(32));
    let reply = world
        .denied("an unknown key", get(&unknown), 401, "invalid_api_key")
        .await;
    assert!(
        reply
            .header("www-authenticate")
            .unwrap_or_default()
            .contains(r#"error="invalid_token""#),
        "{reply}"
    );
    world
        .denied("nonsense", get("nonsense"), 401, "invalid_api_key")
        .await;
    world
        .denied(
            "in the query",
            world.get(&format!("{links}?api_key={read}")),
            401,
            "missing_credentials",
        )
        .await;
    world
        .denied(
            "no key, to write",
            world.call("POST", links).body("x"),
            401,
            "missing_credentials",
        )
        .await;
    world
        .denied("a test key", get(&test), 403, "wrong_mode")
        .await;
    world
        .denied(
            "a test key, another route",
            world.get("/api/tokens").bearer(&test),
            403,
            "wrong_mode",
        )
        .await;
    let two = "multiple_credentials";
    world
        .denied("two keys", get(&read).header("x-api-key", &write), 400, two)
        .await;
    world
        .denied(
            "the same key twice",
            world
                .get(links)
                .header("x-api-key", &read)
                .header("x-api-key", &read),
            400,
            two,
        )
        .await;
    // nginx rejects a repeated `Authorization` itself, as HTTP allows.
    world
        .rejected("a repeated header", get(&read).bearer(&write), 400)
        .await;

    let denied = world.call("HEAD", links).await;
    assert_eq!(
        (denied.status, denied.body.as_str()),
        (401, ""),
        "{:?}",
        world.gateway
    );
    for path in [
        "/nothing",
        "/_tollkey",
        "/api/v1/linksx",
        "/api/v1/authz/forward-auth",
        "/api/v1",
        "/api/v1/api-keys",
    ] {
        world
            .rejected(path, world.get(path).bearer(&read), 404)
            .await;
    }
}

async fn identity_headers_name_the_key(world: &World) {
    let (token, links) = (merchant("acme"), "/api/v1/links");
    let application = world.server().application(&token, "Web Store").await;
    let of_application = world.server().key(&token, &application).await;
    let free = world
        .key(json!({"scopes": ["links:write", "links:read"]}))
        .await;

    let received = world
        .allowed(
            "an application's key",
            world.get(links).bearer(&of_application.text),
        )
        .await;
    let [id, account, of, mode, scopes, merchant_id] = received.identity();
    assert_eq!(
        (id, account, of),
        (of_application.id.as_str(), "acme", application.as_str()),
        "{:?}",
        world.gateway
    );
    assert_eq!((mode, merchant_id), ("live", ""), "{:?}", world.gateway);
    assert!(
        scopes.split(' ').any(|scope| scope == "links:read"),
        "{scopes}"
    );

    let expected = [
        free.id.as_str(),
        "acme",
        "",
        "live",
        "links:read links:write",
        "",
    ];
    let forged = |call: Call| {
        IDENTITY
            .into_iter()
            .fold(call, |call, name| call.header(name, "forged"))
    };
    for (what, call) in [
        ("forged", forged(world.get(links))),
        ("forged twice", forged(forged(world.get(links)))),
        (
            "forged with a body",
            forged(world.call("POST", links)).body("x"),
        ),
        (
            "only the application",
            world.get(links).header("X-AUTH-APPLICATION-ID", "forged"),
        ),
        ("other spellings", {
            let alias = |separator| IDENTITY.map(|name| name.replace('-', separator));
            let aliases = ["_", "."]
                .into_iter()
                .flat_map(alias)
                .chain(["x-auth_key-id".to_owned()]);
            aliases.fold(world.get(links), |call, name| call.header(&name, "forged"))
        }),
        // A hop may drop the headers that the client lists here.
        (
            "dropped on the way",
            world
                .get(links)
                .header("connection", format!("{}, forged", IDENTITY.join(", "))),
        ),
    ] {
        let received = world.allowed(what, call.bearer(&free.text)).await;
        assert_eq!(received.identity(), expected, "{:?}, {what}", world.gateway);
        let dropped = received.header("connection").join(",").contains("x-auth");
        assert!(
            !dropped,
            "{:?}, {what}: the next hop would drop them: {received:?}",
            world.gateway
        );
    }
    world
        .denied(
            "forged without a key",
            forged(world.get(links)),
            401,
            "missing_credentials",
        )
        .await;
}

/// Gateways share connections to Tollkey and store responses in variables, which must not mix up requests.
async fn concurrent_requests_keep_their_identity(world: &World) {
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(world.key(json!({})).await);
    }
    let calls = (0..80).map(|number| {
        let key = &keys[number % keys.len()];
        let call = world
            .get("/api/v1/links")
            .header("x-merchant-id", format!("m_{number}"));
        async move {
            if number % 5 == 4 {
                call.await
            } else {
                call.header("x-sent", &key.id).bearer(&key.text).await
            }
        }
    });
    let statuses: Vec<u16> = join_all(calls)
        .await
        .iter()
        .map(|reply| reply.status)
        .collect();
    let expected: Vec<u16> = (0..80)
        .map(|number| if number % 5 == 4 { 401 } else { 200 })
        .collect();
    assert_eq!(
        statuses,
        expected,
        "{:?}: {}",
        world.gateway,
        world.running.log()
    );
    let received = world.api.take();
    assert_eq!(received.len(), 64, "{:?} {received:#?}", world.gateway);
    for received in received {
        let [id, .., merchant_id] = received.identity();
        let sent = (received.header("x-sent"), received.header("x-merchant-id"));
        assert_eq!((vec![id], vec![merchant_id]), sent, "{:?}", world.gateway);
    }
}

async fn restrictions_of_a_key_apply(world: &World) {
    let bound = world.key(json!({"merchants": ["m_1"]})).await.text;
    let tokens = || world.get("/api/tokens").bearer(&bound);
    let received = world
        .allowed("its merchant", tokens().header("x-merchant-id", "m_1"))
        .await;
    assert_eq!(received.identity()[5], "m_1", "{:?}", world.gateway);
    let rejected = "merchant_not_allowed";
    world.denied("no merchant", tokens(), 403, rejected).await;
    world
        .denied(
            "another merchant",
            tokens().header("x-merchant-id", "m_2"),
            403,
            rejected,
        )
        .await;
    let twice = tokens()
        .header("x-merchant-id", "m_1")
        .header("x-merchant-id", "m_2");
    world.denied("two merchants", twice, 403, rejected).await;
    let elsewhere = || {
        world
            .get("/api/v1/links")
            .bearer(&bound)
            .header("x-merchant-id", "m_1")
    };
    world
        .denied(
            "a route that is not allowed",
            elsewhere(),
            403,
            "route_not_allowed",
        )
        .await;
    let names = [
        "x-forwarded-uri",
        "x-original-uri",
        "x-original-url",
        "x-rewrite-url",
    ];
    let forged = names
        .into_iter()
        .fold(elsewhere(), |call, name| call.header(name, "/api/tokens"));
    world
        .denied("a forged route", forged, 403, "route_not_allowed")
        .await;

    let bound = world
        .key(json!({"allowed_ips": [format!("{CLIENT}/32")]}))
        .await
        .text;
    let links = |source| Call {
        client: client(Some(source)),
        ..world.get("/api/v1/links").bearer(&bound)
    };
    let received = world.allowed("an allowed address", links(CLIENT)).await;
    assert_eq!(
        received.header("x-forwarded-for"),
        [CLIENT.to_string()],
        "{:?}",
        world.gateway
    );
    let received = world
        .allowed(
            "an allowed address and a forged header",
            links(CLIENT).header("x-forwarded-for", "forged"),
        )
        .await;
    assert_eq!(
        received.header("x-forwarded-for"),
        [CLIENT.to_string()],
        "{:?}",
        world.gateway
    );
    world
        .denied("another address", links(STRANGER), 403, "ip_not_allowed")
        .await;
    for name in ["x-forwarded-for", "x-real-ip", "x-client-ip"] {
        let lie = links(STRANGER).header(name, CLIENT.to_string());
        world
            .denied("a forged address", lie, 403, "ip_not_allowed")
            .await;
    }
}

/// Paths that one server reads as `/api/v1/links/…` and another one as something else.
async fn ambiguous_paths_are_rejected(world: &World) {
    let key = world.key(json!({})).await.text;
    for path in [
        "/api/v1/links/../api-keys",
        "/api/v1/links/..",
        "/api/v1/links/./l_1",
        "/api/v1/links/.",
        "/api/v1/links//l_1",
        "/api/v1//links",
        "/api/nothing/../v1/links",
        "/api/v1/links/%2e%2e/api-keys",
        "/api/v1/links/%2E%2E/api-keys",
        "/api/v1/links%2fl_1",
        "/api/v1/links%2F..%2Fapi-keys",
        "/api/v1/links/..%2fapi-keys",
        "/api/v1/links/..%5capi-keys",
        "/api/v1/links/%252e%252e/api-keys",
        "/api/v1/links/l_1%3bv=1",
        "/api/v1/links/l_1%3Fx",
        "/api/v1/links/l_1%23x",
        "/api/v1/links%0a",
        "/api/v1/links/l_1%0D%0Ax",
        "/api/v1/links/l_1%09",
        "/api/v1/links/l_1%7f",
        "/api/v1/links/%20l_1",
        "/api/v1/links/l_1%20",
        "/api/v1/links/l_1%20/x",
        "/api/v1/links/l_1%20?x",
        "/api/v1/links/l_1;v=1",
        "/api/v1/links/..;/api-keys",
        "/api/v1/links/%00",
        "/api/v1/links\\..\\api-keys",
        "/api/v1/links#/../api-keys",
        "/api/v1/links/../links?x",
        "/api/v1/links/..?x",
    ] {
        world
            .rejected(path, world.get(path).bearer(&key), 400)
            .await;
        world.rejected(path, world.get(path), 400).await;
    }
}

/// Sends a GET request with these bytes as its path over HTTP/2. Returns the first byte of the response's header block.
async fn first_byte_over_http2(gateway: SocketAddr, path: &[u8], key: &str) -> u8 {
    const HEADERS: u8 = 1;
    // HPACK (RFC 7541): `:method: GET` and `:scheme: http` of the static table, and three fields with names of it.
    let mut block = vec![0x82, 0x86];
    let credential = format!("Bearer {key}");
    let fields: [(&[u8], &[u8]); 3] = [
        (&[0x04], path),
        (&[0x01], b"api.example.com"),
        (&[0x0f, 0x08], credential.as_bytes()),
    ];
    for (name, value) in fields {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).expect("a short value"));
        block.extend_from_slice(value);
    }
    let length = u8::try_from(block.len()).expect("a short block");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]); // SETTINGS
    bytes.extend_from_slice(&[0, 0, length, HEADERS, 5, 0, 0, 0, 1]); // the end of the headers and of the stream
    bytes.extend_from_slice(&block);
    let mut stream = TcpStream::connect(gateway).await.expect("a connection");
    stream.write_all(&bytes).await.expect("a request");
    let response = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.expect("a payload");
            if head[3] == HEADERS {
                // Updates of the size of the dynamic table come first.
                let mut block = payload.into_iter();
                return block.find(|byte| byte >> 5 != 1).expect("a field");
            }
        }
    };
    tokio::time::timeout(TIMEOUT, response)
        .await
        .expect("a response")
}

/// Envoy forwards such a byte over HTTP/2 as it was sent, but sends `!` to Tollkey over gRPC.
async fn path_with_a_byte_outside_ascii_is_rejected(world: &World) {
    // Fields of the static table.
    const OK: u8 = 0x88;
    const BAD_REQUEST: u8 = 0x8c;
    let key = world.key(json!({})).await.text;
    let gateway = world.running.address;
    for (path, status) in [
        (&b"/api/v1/links/l_1!"[..], OK),
        (b"/api/v1/links/\xff", BAD_REQUEST),
        (b"/api/v1/links/\xc3\xa9", BAD_REQUEST),
        (b"/api/v1/links?\xff", BAD_REQUEST),
        (b"/api/tokens/\xff", BAD_REQUEST),
        (b"/nothing/\xff", BAD_REQUEST),
    ] {
        let received = first_byte_over_http2(gateway, path, &key).await;
        let path = String::from_utf8_lossy(path);
        assert_eq!(received, status, "{:?}, {path}", world.gateway);
        let forwarded = world.api.take().len();
        assert_eq!(
            forwarded,
            usize::from(status == OK),
            "{:?}, {path}",
            world.gateway
        );
    }
}

async fn bodies_are_forwarded(world: &World) {
    let key = world.key(json!({})).await.text;
    let body: Vec<u8> = (0..100_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let post = || world.call("POST", "/api/v1/links").bearer(&key);
    let received = world.allowed("a body", post().body(body.clone())).await;
    assert!(
        received.body == body,
        "{:?}: {} of {} bytes",
        world.gateway,
        received.body.len(),
        body.len()
    );
    let received = world
        .allowed("a body in chunks", post().chunked(&body))
        .await;
    assert!(
        received.body == body,
        "{:?}: {} of {} bytes",
        world.gateway,
        received.body.len(),
        body.len()
    );
    let reply = world.call("POST", "/api/v1/links").body(body).await;
    assert_eq!(reply.status, 401, "{:?}: {reply}", world.gateway);
    assert!(world.api.take().is_empty(), "{:?}", world.gateway);
}

async fn rate_limits_apply(world: &World) {
    let key = world
        .key(json!({"rate_limit": {"limit": 2, "window_seconds": 3600}}))
        .await
        .text;
    let get = || world.get("/api/v1/links").bearer(&key);
    world.allowed("the first", get()).await;
    world.allowed("the second", get()).await;
    let reply = world
        .denied("one too many", get(), 429, "rate_limited")
        .await;
    let seconds: u32 = reply
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("Retry-After in seconds");
    assert!(
        (1..=1800).contains(&seconds),
        "{:?}: {seconds}",
        world.gateway
    );
}

async fn revoked_key_is_denied(world: &World) {
    for _ in 0..5 {
        let key = world.key(json!({})).await;
        let get = || world.get("/api/v1/links").bearer(&key.text);
        world.allowed("before", get()).await;
        let path = format!("/api-keys/{}/revoke", key.id);
        let reply = world
            .server()
            .post(&path, json!({}))
            .bearer(&merchant("acme"))
            .await;
        assert_eq!(reply.status, 200, "{reply}\n{}", world.server().stderr());
        world.denied("after", get(), 401, "invalid_api_key").await;
    }
}

/// Another server in Tollkey's place: because of a wrong address, a misdirected connection or a proxy between them.
async fn only_tollkey_allows_requests(world: &World) {
    const ELSEWHERE: &str = "http://127.0.0.2:1/";
    let key = world.key(json!({})).await.text;
    let answers: [fn() -> HttpResponse; 4] = [
        || HttpResponse::Ok().body("the API"),
        || HttpResponse::NoContent().finish(),
        || {
            HttpResponse::Found()
                .insert_header(("location", ELSEWHERE))
                .insert_header(("x-auth-key-id", SOME_ID))
                .finish()
        },
        || {
            HttpResponse::BadGateway()
                .insert_header(("x-auth-key-id", SOME_ID))
                .body("no upstream")
        },
    ];
    for answer in answers {
        let other = Api::responding(answer);
        let running = RunningGateway::start(
            world.gateway,
            &world.program,
            other.address,
            world.api.address,
            "live",
        )
        .await;
        let mut requests = 0;
        for (path, method) in [
            ("/api/v1/links", "GET"),
            ("/api/v1/links", "POST"),
            ("/api/tokens", "GET"),
        ] {
            let call = || Call::new(running.address, method, path).header("x-auth-key-id", SOME_ID);
            for call in [call(), call().bearer(&key)] {
                let reply = call.await;
                assert!(
                    [502, 503].contains(&reply.status),
                    "{:?}: {reply}",
                    world.gateway
                );
                // Envoy cannot remove this header of a denial. Clients do not follow it after a 503.
                assert!(
                    world.gateway.is_envoy() || reply.header("location").is_none(),
                    "{:?}: {reply}",
                    world.gateway
                );
                requests += 1;
            }
        }
        assert_eq!(
            other.take().len(),
            requests,
            "{:?}: one authorization request for each",
            world.gateway
        );
        assert!(world.api.take().is_empty(), "{:?}", world.gateway);
    }
}

/// A gRPC server in Tollkey's place.
#[cfg(feature = "grpc")]
struct OtherGrpc {
    response: fn() -> Result<CheckResponse, tonic::Status>,
    /// The peer of each request.
    peers: Arc<Mutex<Vec<Option<SocketAddr>>>>,
}

#[cfg(feature = "grpc")]
#[tonic::async_trait]
impl Authorization for OtherGrpc {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let mut peers = self.peers.lock().expect("no poisoned lock");
        peers.push(request.remote_addr());
        (self.response)().map(tonic::Response::new)
    }
}

/// A server that allows requests without an identity is not Tollkey. The requests to it share a connection.
#[cfg(feature = "grpc")]
async fn only_tollkey_allows_requests_over_grpc(world: &World) {
    let key = world.key(json!({})).await.text;
    let responses: [fn() -> Result<CheckResponse, tonic::Status>; 2] = [
        || {
            Ok(CheckResponse {
                status: Some(envoy_types::pb::google::rpc::Status::default()),
                ..CheckResponse::default()
            })
        },
        || Err(tonic::Status::unimplemented("not Tollkey")),
    ];
    for response in responses {
        let address = free(GATEWAY_HOST);
        let peers = Arc::new(Mutex::new(Vec::new()));
        let other = AuthorizationServer::new(OtherGrpc {
            response,
            peers: Arc::clone(&peers),
        });
        let server = tonic::transport::Server::builder();
        let serving = rt::spawn(server.serve(address, other));
        let running = RunningGateway::start(
            world.gateway,
            &world.program,
            address,
            world.api.address,
            "live",
        )
        .await;
        for (path, method) in [
            ("/api/v1/links", "GET"),
            ("/api/v1/links", "POST"),
            ("/api/tokens", "GET"),
        ] {
            let call = Call::new(running.address, method, path)
                .header("x-auth-key-id", SOME_ID)
                .bearer(&key);
            let reply = call.await;
            assert_eq!(reply.status, 503, "{reply}\n{}", running.log());
        }
        assert!(world.api.take().is_empty());
        serving.abort();
        let peers = std::mem::take(&mut *peers.lock().expect("no poisoned lock"));
        assert_eq!(peers.len(), 3, "{peers:?}");
        assert!(peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
    }
}

/// Authorization requests share a connection, except with Caddy.
async fn connections_are_reused(world: &World) {
    const REQUESTS: usize = 5;
    let denies = || {
        HttpResponse::Unauthorized()
            .content_type("application/problem+json")
            .body("{}")
    };
    let other = Api::responding(denies);
    let running = RunningGateway::start(
        world.gateway,
        &world.program,
        other.address,
        world.api.address,
        "live",
    )
    .await;
    for _ in 0..REQUESTS {
        let reply = Call::new(running.address, "GET", "/api/v1/links").await;
        assert_eq!(reply.status, 401, "{:?}: {reply}", world.gateway);
    }
    let peers: HashSet<_> = other
        .take()
        .into_iter()
        .map(|received| received.peer)
        .collect();
    let expected = if world.gateway == Caddy { REQUESTS } else { 1 };
    assert_eq!(peers.len(), expected, "{:?}: {peers:?}", world.gateway);
}

/// Reads one request without a body. Returns `false` when the connection ends first.
async fn read_request(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) if head.len() < 16_384 => head.push(byte),
            _ => return false,
        }
    }
    true
}

/// Tollkey may close an idle connection at the moment when the gateway sends the next authorization request on it.
async fn closed_connection_loses_no_response(world: &World) {
    let identity = IDENTITY.map(|name| {
        format!(
            "{name}: {}\r\n",
            if name == IDENTITY[0] { SOME_ID } else { "x" }
        )
    });
    let identity = identity.concat();
    for status in [200, 401] {
        let response = format!(
            "HTTP/1.1 {status} Done\r\ncontent-type: application/problem+json\r\ncontent-length: 0\r\n{identity}\r\n"
        );
        let listener = tokio::net::TcpListener::bind((GATEWAY_HOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("its address");
        let unanswered_requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unanswered_requests);
        let other = rt::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (response, counter) = (response.clone(), Arc::clone(&counter));
                rt::spawn(async move {
                    if read_request(&mut stream).await
                        && stream.write_all(response.as_bytes()).await.is_ok()
                    {
                        counter.fetch_add(
                            usize::from(read_request(&mut stream).await),
                            Ordering::Relaxed,
                        );
                    }
                });
            }
        });
        let running = RunningGateway::start(
            world.gateway,
            &world.program,
            address,
            world.api.address,
            "live",
        )
        .await;
        for method in ["GET", "POST", "GET", "POST"] {
            let reply = Call::new(running.address, method, "/api/v1/links").await;
            assert_eq!(reply.status, status, "{:?}: {reply}", world.gateway);
        }
        other.abort();
        assert_eq!(
            world.api.take().len(),
            if status == 200 { 4 } else { 0 },
            "{:?}",
            world.gateway
        );
        assert_eq!(
            unanswered_requests.load(Ordering::Relaxed) > 0,
            world.gateway != Caddy,
            "{:?}: requests were sent on closing connections",
            world.gateway
        );
    }
}

/// HAProxy continues with the next rule when a Lua action fails.
async fn failing_script_denies_requests(world: &World) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = free(GATEWAY_HOST);
    let addresses = [
        (TOLLKEY, world.server().address.to_string()),
        (API, world.api.address.to_string()),
    ];
    let arguments = Haproxy.configure(directory.path(), address, &addresses, "live");
    let script = directory.path().join("tollkey.lua");
    let (text, http_call) = (
        fs::read_to_string(&script).expect("the written file"),
        "core.httpclient()",
    );
    assert!(text.contains(http_call), "tollkey.lua has no {http_call}");
    fs::write(&script, text.replace(http_call, "undefined.action()")).expect("a file");
    let running =
        RunningGateway::launch(Haproxy, &world.program, address, directory, &arguments).await;
    let key = world.key(json!({})).await.text;
    for method in ["GET", "POST"] {
        let reply = Call::new(address, method, "/api/v1/links")
            .bearer(&key)
            .await;
        assert_eq!(reply.status, 503, "{reply}");
        assert!(world.api.take().is_empty());
    }
    assert!(
        running.log().contains("tollkey.lua"),
        "the log names the script: {}",
        running.log()
    );
}

async fn accepted_mode_is_configurable(world: &World) {
    let (live, test) = (
        world.key(json!({})).await.text,
        world.key(json!({"mode": "test"})).await.text,
    );
    let running = RunningGateway::start(
        world.gateway,
        &world.program,
        world.target.clone(),
        world.api.address,
        "test",
    )
    .await;
    for (path, method) in [
        ("/api/v1/links", "GET"),
        ("/api/v1/links", "POST"),
        ("/api/tokens", "GET"),
    ] {
        let status = async |key: &str| {
            Call::new(running.address, method, path)
                .bearer(key)
                .await
                .status
        };
        assert_eq!(
            (status(&test).await, status(&live).await),
            (200, 403),
            "{:?} {method} {path}",
            world.gateway
        );
    }
    let modes: Vec<_> = world
        .api
        .take()
        .iter()
        .map(|received| received.identity()[3].to_owned())
        .collect();
    assert_eq!(modes, ["test"; 3], "{:?}", world.gateway);
}

/// The setup for an API with its own `Authorization` header: the gateway forwards the header, and Tollkey reads the key
/// from `X-Api-Key` only.
async fn authorization_header_is_left_to_the_api(world: &World) {
    let gateway = world.gateway;
    let tollkey = Tollkey::development()
        .with("TOLLKEY_LISTEN", &format!("{TOLLKEY_HOST}:0"))
        .with("TOLLKEY_JWT_HS256_SECRET", SECRET)
        .with("TOLLKEY_TRUSTED_PROXIES", "127.0.0.1/32")
        .with("TOLLKEY_CREDENTIAL_HEADERS", "x-api-key");
    let (tollkey, listener) = gateway.listener(tollkey);
    let server = tollkey.serve().await;
    let created = server
        .post("/api-keys", json!({"name": "Checkout"}))
        .bearer(&merchant("acme"))
        .await;
    assert_eq!(created.status, 201, "{created}");
    let key = member(&created, "api_key");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = free(GATEWAY_HOST);
    let (file, line) = gateway.removes_authorization();
    assert!(
        gateway.shipped(file).contains(line),
        "{file} has no {line:?}"
    );
    let addresses = [
        (
            gateway.tollkey(),
            listener.unwrap_or(server.address).to_string(),
        ),
        (API, world.api.address.to_string()),
    ];
    let arguments = gateway.configure(directory.path(), address, &addresses, "live");
    let written = directory.path().join(gateway.written(file));
    let text = fs::read_to_string(&written).expect("the written file");
    fs::write(&written, text.replace(line, "")).expect("a file");
    let running =
        RunningGateway::launch(gateway, &world.program, address, directory, &arguments).await;
    world.api.take();
    for (path, method) in [
        ("/api/v1/links", "GET"),
        ("/api/v1/links", "POST"),
        ("/api/tokens", "GET"),
    ] {
        for own in ["Basic YTpi", "Bearer of-the-api"] {
            let call = || Call::new(address, method, path).header("authorization", own);
            let reply = call().header("x-api-key", &key).await;
            assert_eq!(
                reply.status,
                200,
                "{gateway:?} {method} {path} {own}: {reply}\n{}",
                running.log()
            );
            let received = world.api.take();
            assert_eq!(received.len(), 1, "{gateway:?} {received:?}");
            assert_eq!(received[0].header("authorization"), [own], "{gateway:?}");
            assert!(received[0].header("x-api-key").is_empty(), "{gateway:?}");
            assert_eq!(received[0].identity()[1], "acme", "{gateway:?}");
            let reply = call().await;
            assert_eq!(reply.status, 401, "{gateway:?} {method} {path}: {reply}");
        }
        let reply = Call::new(address, method, path).bearer(&key).await;
        assert_eq!(
            reply.status, 401,
            "{gateway:?}: the key is read from x-api-key only: {reply}"
        );
        assert!(world.api.take().is_empty(), "{gateway:?}");
    }
    server.stop().await;
}

/// Asserts the response of a gateway that cannot reach Tollkey: 503 with a problem.
async fn assert_unavailable(world: &World, what: &str, call: Call) {
    let reply = world.rejected(what, call, 503).await;
    assert_eq!(
        reply.header("www-authenticate"),
        None,
        "{:?}, {what}: {reply}",
        world.gateway
    );
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json"),
        "{:?}, {what}: {reply}",
        world.gateway
    );
    assert_eq!(
        reply.json()["status"],
        503,
        "{:?}, {what}: {reply}",
        world.gateway
    );
}

async fn assert_available_again(world: &World, what: &str, key: &str) {
    let links = |method: &str| world.call(method, "/api/v1/links");
    eventually(what, async || links("GET").bearer(key).await.status == 200).await;
    world.api.take();
    world
        .allowed(what, links("POST").bearer(key).body("x"))
        .await;
    world
        .denied(what, links("GET"), 401, "missing_credentials")
        .await;
}

async fn requests_fail_with_503_without_tollkey(mut world: World) {
    const LINKS: &str = "/api/v1/links";
    let key = world
        .key(json!({"scopes": ["links:read", "links:write"]}))
        .await
        .text;
    let forged = |world: &World| {
        world
            .get(LINKS)
            .bearer(&key)
            .header("x-auth-key-id", SOME_ID)
    };
    world.allowed("before", world.get(LINKS).bearer(&key)).await;

    // Tollkey accepts connections and does not respond.
    world.server().signal("STOP").await;
    eventually("Tollkey is paused", async || {
        world.server().pid().is_stopped()
    })
    .await;
    assert_unavailable(&world, "Tollkey is paused", forged(&world)).await;
    world.server().signal("CONT").await;
    assert_available_again(&world, "Tollkey is resumed", &key).await;

    let server = world.server.take().expect("a running server");
    server.stop().await;
    assert_unavailable(&world, "Tollkey is stopped", forged(&world)).await;
    assert_unavailable(
        &world,
        "Tollkey is stopped, a write",
        world.call("POST", LINKS).bearer(&key).body("x"),
    )
    .await;
    assert_unavailable(&world, "Tollkey is stopped, no key", world.get(LINKS)).await;
    world.server = Some(world.tollkey.serve().await);
    world
        .allowed(
            "Tollkey is back, first request",
            world.get(LINKS).bearer(&key),
        )
        .await;
    assert_available_again(&world, "Tollkey is back", &key).await;

    // A failure of the API is reported as the gateway's own error.
    world.api.handle.stop(true).await;
    let reply = world.get(LINKS).bearer(&key).await;
    assert_eq!(
        reply.status,
        world.gateway.bad_gateway(),
        "{:?}: {reply}",
        world.gateway
    );

    let log = world.running.log();
    assert!(
        !log.contains("ck_live_") && !log.contains("ck_test_"),
        "{:?} logs a key: {log}",
        world.gateway
    );
}
