//! A server for a test: real HTTP on a loopback port, a real store, a clock set by the test and seeded randomness.

use std::{
    ffi::OsString,
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

pub mod account_keys;
pub mod raw;
pub mod resource_server;
pub mod sign_in;

use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tollkey_client::{Auth, Client};
use tollkey_core::{
    AccountId, ApiKey, Clock as _, Family, KeyId, Mode, PlainKey, Restrictions, Scope,
    key_format::CredentialKind,
};
use tollkey_middleware::source::HttpSource;
use tollkey_server::{
    assembly,
    auth::jwt::{ClaimRules, NewToken, create_token},
    config::{Options, Secret, Settings},
    server::{self, RunningServer},
};
use tollkey_service::Random;
use tollkey_store::testing::{Database, backends};
use tollkey_verifier::testing::ManualClock;

/// Signs the management tokens of tests.
pub const SECRET: &str = "an example secret for tests, 32+ bytes";

pub struct App {
    pub database: Database,
    pub clock: ManualClock,
    pub settings: Settings,
    /// The message of development mode, which the binary prints at start.
    #[allow(dead_code)] // only `it` reads it
    pub message: Option<String>,
    running: RunningServer,
}

/// The setting that allows sign-in with a management token.
pub const TOKEN_SIGN_IN: (&str, &str) = ("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", "true");

/// Runs a test on each backend.
pub async fn each_backend(test: impl AsyncFn(&App)) {
    each_backend_with(&[], test).await;
}

/// Runs a test on each backend, with these settings in addition to the usual ones.
pub async fn each_backend_with(settings: &[(&str, &str)], test: impl AsyncFn(&App)) {
    for database in backends() {
        let app = App::start(database, settings).await;
        test(&app).await;
        app.stop().await;
    }
}

/// The settings of a test server.
pub fn settings(database_url: &str, extra: &[(&str, &str)]) -> Settings {
    let env = |name: &str| -> Option<OsString> {
        if let Some((_, value)) = extra.iter().find(|(key, _)| *key == name) {
            return (!value.is_empty()).then(|| value.into()); // "" removes one of the usual settings
        }
        let value = match name {
            "TOLLKEY_LISTEN" => "127.0.0.1:0",
            "TOLLKEY_WORKERS" => "1",
            "TOLLKEY_DATABASE_POOL" => "2",
            "TOLLKEY_MIGRATE" => "true",
            "TOLLKEY_JWT_HS256_SECRET" => SECRET,
            "DATABASE_URL" => database_url,
            _ => return None,
        };
        Some(value.into())
    };
    Settings::resolve(&Options::default(), &env, Path::new("no such file")).expect("valid settings")
}

impl App {
    /// Starts a server on a fresh database.
    pub async fn start(database: Database, extra: &[(&str, &str)]) -> Self {
        Self::start_with(
            database,
            extra,
            ManualClock::default(),
            Random::new(StdRng::seed_from_u64(1)),
        )
        .await
    }

    /// Starts a server with this clock and this randomness.
    pub async fn start_with(
        database: Database,
        extra: &[(&str, &str)],
        clock: ManualClock,
        random: Random,
    ) -> Self {
        let settings = settings(database.url(), extra);
        let opened = assembly::open(&settings, Arc::new(clock.clone()), random.clone())
            .await
            .expect("the server opens");
        let running = server::start(&settings, opened.state, None).expect("the server starts");
        let base = format!("http://{}", running.address());
        let message = opened.development.map(|mode| {
            mode.message(&base, clock.now(), &random)
                .expect("a message")
        });
        Self {
            database,
            clock,
            settings,
            message,
            running,
        }
    }

    /// A second replica on the same database.
    pub async fn replica(&self) -> RunningServer {
        self.replica_like(&self.settings, &self.clock).await
    }

    /// A replica with its own settings and clock.
    pub async fn replica_like(&self, settings: &Settings, clock: &ManualClock) -> RunningServer {
        let random = Random::new(StdRng::seed_from_u64(2));
        let opened = assembly::open(settings, Arc::new(clock.clone()), random)
            .await
            .expect("the replica opens");
        server::start(settings, opened.state, None).expect("the replica starts")
    }

    /// Stops the server. Returns its database, which is deleted when the value is dropped.
    pub async fn stop(self) -> Database {
        self.running.stop().await;
        self.database
    }

    pub fn running(&self) -> &RunningServer {
        &self.running
    }

    /// A management token of an account.
    pub fn management_token(&self, account: &str) -> String {
        self.token(Some(account), &[])
    }

    /// A management token with the role `operator`.
    pub fn operator(&self) -> String {
        self.token(None, &["operator"])
    }

    /// A management token with the role `service`.
    pub fn service(&self) -> String {
        self.token(None, &["service"])
    }

    pub fn token(&self, account: Option<&str>, roles: &[&str]) -> String {
        let token = NewToken {
            subject: "user_1".to_owned(),
            account: account.map(|account| account.parse().expect("an account ID")),
            roles: roles.iter().map(ToString::to_string).collect(),
            lifetime: jiff::SignedDuration::from_hours(24 * 365),
        };
        let rules = ClaimRules::from(&self.settings.tokens);
        create_token(&Secret::new(SECRET), &rules, &token, self.clock.now()).expect("a token")
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

    /// A request. `/api/v1` is prepended unless the path begins with one of the prefixes listed in [`Call::new`].
    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.running.address(), method, path)
    }

    /// The time that many seconds from now, as RFC 3339.
    pub fn in_seconds(&self, seconds: i64) -> String {
        (self.clock.now() + jiff::SignedDuration::from_secs(seconds)).to_string()
    }

    /// Creates an application. Returns its ID.
    pub async fn application(&self, token: &str, name: &str) -> String {
        let reply = self
            .post("/applications", json!({"name": name}))
            .bearer(token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        reply.json()["id"].as_str().expect("an ID").to_owned()
    }

    /// Creates a key of an application; the `description` is filled in.
    pub async fn key(&self, token: &str, application: &str, mut body: Value) -> Key {
        body["description"] = json!("Checkout");
        let reply = self
            .post(&format!("/applications/{application}/api-keys"), body)
            .bearer(token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        let text = |member: &str| json[member].as_str().expect("a string").to_owned();
        Key {
            id: text("id"),
            text: text("fullKey"),
        }
    }

    /// Creates a commerce key, with a default `name`.
    pub async fn commerce_key(&self, token: &str, mut body: Value) -> Key {
        if body.get("name").is_none() {
            body["name"] = json!("Commerce Server Key");
        }
        let reply = self.post("/api-keys", body).bearer(token).await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        let text = |member: &str| json[member].as_str().expect("a string").to_owned();
        Key {
            id: text("key_id"),
            text: text("api_key"),
        }
    }

    /// Sets the operating model of an account.
    pub async fn set_model(&self, account: &str, model: &str) {
        let path = format!("/accounts/{account}");
        let reply = self
            .put(&path, json!({"operating_model": model}))
            .bearer(&self.operator())
            .await;
        assert_eq!(reply.status, 200, "{reply}");
    }

    /// Creates a service key.
    pub async fn service_key(&self) -> Key {
        let reply = self
            .post("/service-keys", json!({"name": "gateway"}))
            .bearer(&self.operator())
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        let text = |member: &str| json[member].as_str().expect("a string").to_owned();
        Key {
            id: text("id"),
            text: text("key"),
        }
    }

    /// Inserts a key with these grants into the store, including grants that no API can give.
    pub async fn insert_key_with(
        &self,
        account: &str,
        family: Family,
        mode: Mode,
        restrictions: Restrictions,
    ) -> String {
        self.insert(account, &self.generate_key(family, mode), |key| {
            key.restrictions = restrictions
        })
        .await
        .text
    }

    /// Generates a key that is not in the store.
    pub fn generate_key(&self, family: Family, mode: Mode) -> PlainKey {
        self.running
            .state()
            .service
            .random
            .with(|rng| PlainKey::generate(CredentialKind::Key(family, mode), rng))
    }

    /// Inserts that key into the store: with the scope `commerce` and no restriction, unless `edit` changes it.
    pub async fn insert(
        &self,
        account: &str,
        text: &PlainKey,
        edit: impl FnOnce(&mut ApiKey),
    ) -> Key {
        let Some(CredentialKind::Key(family, mode)) = CredentialKind::parse(text.expose()) else {
            panic!("not an API key")
        };
        let now = self.clock.now();
        let state = self.running.state();
        let id = state.service.random.with(|rng| KeyId::new(now, rng));
        let account_id: AccountId = account.parse().expect("an account ID");
        let mut key = ApiKey {
            name: "Example".to_owned(),
            restrictions: Restrictions {
                scopes: vec![Scope::COMMERCE],
                ..Restrictions::default()
            },
            ..ApiKey::new(id, account_id.clone(), text, (family, mode), now)
        };
        edit(&mut key);
        let digest = text.digest();
        let inserted = state
            .service
            .store
            .write(move |tx| tx.account(&account_id).insert_key(&key, &digest))
            .await;
        let _ = inserted.expect("a key in the store");
        Key {
            id: id.to_string(),
            text: text.expose().to_owned(),
        }
    }

    /// Inserts a key without restrictions. See [`Self::insert_key_with`].
    pub async fn insert_key(&self, account: &str, family: Family, mode: Mode) -> String {
        let restrictions = Restrictions {
            scopes: vec![Scope::COMMERCE],
            ..Restrictions::default()
        };
        self.insert_key_with(account, family, mode, restrictions)
            .await
    }

    /// The response of `POST /verify` to the role `service`.
    pub async fn verify(&self, key: &str, mut need: Value) -> Value {
        need["key"] = json!(key);
        let reply = self.post("/verify", need).bearer(&self.service()).await;
        assert_eq!(reply.status, 200, "{reply}");
        reply.json()
    }

    /// The `code` of a verification without requirements.
    pub async fn code(&self, key: &str) -> String {
        self.verify(key, json!({})).await["code"]
            .as_str()
            .expect("a code")
            .to_owned()
    }
}

/// A source that is subscribed to this server with that service key.
pub fn source(base: &str, service_key: &str) -> HttpSource {
    let client = Client::new(base)
        .expect("a client")
        .with_auth(Auth::service(service_key));
    HttpSource::new(&client, Arc::default())
}

/// Waits up to 20 s for a condition that the test cannot trigger, such as a reconnecting pool.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(
            std::time::Instant::now() < deadline,
            "not within 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A created key.
pub struct Key {
    pub id: String,
    pub text: String,
}

impl Key {
    /// The hyphenated form of its ID, which the audit log and the dashboard print.
    pub fn hyphenated_id(&self) -> String {
        self.id.parse::<KeyId>().expect("a key ID").to_string()
    }
}

/// A request; `.await` sends it. Path and headers are written to the socket unchanged.
pub struct Call {
    address: SocketAddr,
    source: Option<IpAddr>,
    method: String,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Call {
    pub fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        let prefixes = [
            "/livez",
            "/readyz",
            "/openapi.json",
            "/docs",
            "/dashboard",
            "/metrics",
            "/api/",
            "/v1",
            "/%761",
            "/nothing",
            "/_tollkey",
        ];
        let is_whole = path == "/api" || prefixes.iter().any(|prefix| path.starts_with(prefix));
        if is_whole {
            Self::to(address, method, path)
        } else {
            Self::to(address, method, &format!("/api/v1{path}"))
        }
    }

    /// A request whose path is used unchanged, also for servers other than Tollkey.
    pub fn to(address: SocketAddr, method: &str, path: &str) -> Self {
        let (method, path) = (method.to_owned(), path.to_owned());
        Self {
            address,
            source: None,
            method,
            path,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Sends from this local address.
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    pub fn bearer(self, credential: &str) -> Self {
        self.header("authorization", format!("Bearer {credential}"))
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers
            .push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn json(self, body: Value) -> Self {
        self.header("content-type", "application/json")
            .body(body.to_string())
    }

    pub fn form(self, body: &str) -> Self {
        self.header("content-type", "application/x-www-form-urlencoded")
            .body(body)
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// A body in chunks of 4 KiB, without a `Content-Length`.
    pub fn chunked(self, body: &[u8]) -> Self {
        let mut chunks = Vec::new();
        for chunk in body.chunks(4096) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        self.header("transfer-encoding", "chunked").body(chunks)
    }

    /// Sends only the head: the server authenticates the request and waits for the body.
    pub async fn hold_body(self) -> HeldBack {
        let mut stream = self.connect().await.expect("a connection");
        stream
            .write_all(&self.head())
            .await
            .expect("the server accepts the head");
        HeldBack {
            stream,
            body: self.body,
        }
    }

    /// Sends the whole request and closes the connection without waiting for the response.
    pub async fn hang_up(self) {
        let mut held = self.hold_body().await;
        held.stream
            .write_all(&held.body)
            .await
            .expect("the server accepts the body");
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let Some(source) = self.source else {
            return TcpStream::connect(self.address).await;
        };
        let socket = if source.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.bind(SocketAddr::new(source, 0))?;
        socket.connect(self.address).await
    }

    fn head(&self) -> Vec<u8> {
        let mut request = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
            self.method, self.path, self.address
        )
        .into_bytes();
        for (name, value) in &self.headers {
            request.extend_from_slice(format!("{name}: ").as_bytes());
            request.extend_from_slice(value);
            request.extend_from_slice(b"\r\n");
        }
        let has_length =
            |(name, _): &(String, _)| name == "content-length" || name == "transfer-encoding";
        if !self.body.is_empty() && !self.headers.iter().any(has_length) {
            request
                .extend_from_slice(format!("content-length: {}\r\n", self.body.len()).as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        request
    }

    async fn send(self) -> Reply {
        let exchange = async {
            let mut stream = self.connect().await?;
            stream.write_all(&self.head()).await?;
            // A server that rejects a body early may close the connection during the write; its response still counts.
            let _ = stream.write_all(&self.body).await;
            io::Result::Ok(read(stream, self.method == "HEAD").await)
        };
        let reply = tokio::time::timeout(Duration::from_secs(30), exchange)
            .await
            .expect("a response within 30 s")
            .expect("a response");
        Reply::parse(&reply)
    }
}

/// Reads the response.
async fn read(mut stream: TcpStream, to_head: bool) -> Vec<u8> {
    // After rejecting an unread body the server lingers before it closes, so do not wait for the end of the stream.
    let (mut reply, mut buffer) = (Vec::new(), [0; 8192]);
    while !is_whole(&reply, to_head) {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => reply.extend_from_slice(&buffer[..read]),
        }
    }
    reply
}

/// A request of which only the head was sent.
pub struct HeldBack {
    stream: TcpStream,
    body: Vec<u8>,
}

impl HeldBack {
    /// Sends the body and reads the response.
    pub async fn send_body(mut self) -> Reply {
        let _ = self.stream.write_all(&self.body).await;
        let reply = tokio::time::timeout(Duration::from_secs(30), read(self.stream, false)).await;
        Reply::parse(&reply.expect("a response within 30 s"))
    }
}

impl IntoFuture for Call {
    type Output = Reply;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Reply>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// Whether these bytes are a complete response, according to its head.
fn is_whole(bytes: &[u8], to_head: bool) -> bool {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| {
        line.strip_prefix("content-length:")?
            .trim()
            .parse::<usize>()
            .ok()
    });
    let expects_none = to_head || head.starts_with("http/1.1 204");
    if expects_none {
        true
    } else {
        length.is_some_and(|length| bytes.len() >= end + 4 + length)
    }
}

/// Decodes a chunked body (RFC 9112, section 7.1), which must be complete.
fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("the size of a chunk");
        let size = usize::from_str_radix(size, 16).expect("a size in hex");
        let Some((chunk, after)) = after.split_at_checked(size) else {
            panic!("the last chunk is incomplete")
        };
        if size == 0 {
            return body;
        }
        body.push_str(chunk);
        rest = after.strip_prefix("\r\n").expect("the end of a chunk");
    }
}

/// A response. Its `Display` hides the random part of keys.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("not an HTTP response: {text:?}"));
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .expect("a status");
        let mut headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        headers.sort();
        let mut reply = Self {
            status,
            headers,
            body: body.to_owned(),
        };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = unchunked(body);
        }
        reply
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// The values of all headers of that name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The problem's code.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, value) in &self.headers {
            if !matches!(name.as_str(), "date" | "content-length" | "connection") {
                writeln!(f, "{name}: {value}")?;
            }
        }
        write!(f, "\n{}", without_secrets(&self.body))
    }
}

/// Replaces the random part of every key in a text.
pub fn without_secrets(text: &str) -> String {
    static FAMILIES: LazyLock<Vec<String>> = LazyLock::new(|| {
        let keys = ["ck", "ks", "sk", "pk"]
            .into_iter()
            .flat_map(|f| ["live", "test"].map(|mode| format!("{f}_{mode}_")));
        keys.chain(["tks_".to_owned()]).collect()
    });
    let mut text = text.to_owned();
    for prefix in FAMILIES.iter() {
        let mut from = 0;
        while let Some(at) = text[from..]
            .find(prefix.as_str())
            .map(|at| from + at + prefix.len())
        {
            let random = text[at..]
                .bytes()
                .take_while(u8::is_ascii_alphanumeric)
                .count();
            if random == 32 {
                text.replace_range(at..at + random, "(32)");
            }
            from = at;
        }
    }
    text
}

/// Asserts a whole response against an inline snapshot, which is the same on each backend.
#[macro_export]
macro_rules! assert_response {
    ($reply:expr, @$snapshot:literal) => {{
        let reply = &$reply; // awaited here, as the snapshot is taken in a closure
        insta::allow_duplicates! { insta::assert_snapshot!(reply, @$snapshot) }
    }};
}
