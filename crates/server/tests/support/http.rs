//! An HTTP client for tests. It sends each request once, on a connection of its own, and follows no redirects.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::LazyLock,
    time::Duration,
};

use reqwest::{
    Client, ClientBuilder, Method, Request, Url,
    header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING},
    redirect, retry,
};
use serde_json::Value;
use tokio::time::timeout;

/// The longest that a response may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The client of all tests. It keeps no connections, because each belongs to the runtime of one test.
static CLIENT: LazyLock<Client> = LazyLock::new(|| client(None));

/// A client that connects from this local address.
pub fn client(source: Option<IpAddr>) -> Client {
    build(Client::builder().local_address(source))
}

/// A client that connects to this Unix socket, whatever the address of a call is.
#[allow(dead_code)] // not every test crate uses it
pub fn unix_client(path: &Path) -> Client {
    build(Client::builder().unix_socket(path))
}

fn build(builder: ClientBuilder) -> Client {
    builder
        .http1_only()
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .pool_max_idle_per_host(0)
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .tls_certs_only([])
        .build()
        .expect("a client")
}

/// A request; `.await` sends it. The server receives path and headers unchanged, and `Accept: */*` unless the request
/// has the header: a request that reqwest would change in another way or reject is written to a socket (see
/// [`super::raw`]).
pub struct Call {
    /// Sends the requests that are not written to a socket.
    pub client: Client,
    pub address: SocketAddr,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
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
            "/v2",
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
            client: CLIENT.clone(),
            address,
            method,
            path,
            headers: Vec::new(),
            body: Vec::new(),
        }
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

    /// The request for reqwest, or `None` if reqwest would change or reject it.
    fn request(&self) -> Option<Request> {
        let url = Url::parse(&format!("http://{}{}", self.address, self.path)).ok()?;
        let query = url.query().map(|query| format!("?{query}"));
        if format!("{}{}", url.path(), query.unwrap_or_default()) != self.path {
            return None;
        }
        let method = Method::from_bytes(self.method.as_bytes()).ok()?;
        let mut request = Request::new(method, url);
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        for (name, value) in &self.headers {
            let parsed = HeaderName::from_bytes(name.as_bytes()).ok()?;
            if parsed.as_str() != name
                || [HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&parsed)
            {
                return None;
            }
            headers.append(parsed, HeaderValue::from_bytes(value).ok()?);
        }
        if !self.body.is_empty() {
            *request.body_mut() = Some(self.body.clone().into());
        }
        Some(request)
    }

    async fn send(self) -> Reply {
        let exchange = async {
            let Some(request) = self.request() else {
                return self.hold_body().await.send_body().await;
            };
            let response = self.client.execute(request).await.expect("a response");
            let status = response.status().as_u16();
            let headers = response
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                .collect();
            let body = response.bytes().await.expect("a whole body");
            Reply::new(status, headers, text(&body))
        };
        timeout(TIMEOUT, exchange)
            .await
            .expect("a response within 30 s")
    }
}

impl IntoFuture for Call {
    type Output = Reply;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Reply>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A response. Its `Display` indents a JSON body, and hides the random part of keys and the value of `ETag`.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn new(status: u16, mut headers: Vec<(String, String)>, body: String) -> Self {
        headers.sort();
        Self {
            status,
            headers,
            body,
        }
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
            // The value of an ETag is a hash. `crates/server/tests/it/conditional.rs` asserts it.
            if !matches!(
                name.as_str(),
                "date" | "content-length" | "connection" | "etag"
            ) {
                writeln!(f, "{name}: {value}")?;
            }
        }
        let body = match serde_json::from_str::<Value>(&self.body) {
            // Not if that would hide something, such as a repeated field.
            Ok(json) if serde_json::to_string(&json).is_ok_and(|text| text == self.body) => {
                format!("{json:#}")
            }
            _ => self.body.clone(),
        };
        write!(f, "\n{}", without_secrets(&body))
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
