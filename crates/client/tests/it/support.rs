//! Servers that send prepared responses and record their requests.

use std::{
    collections::VecDeque,
    fmt::Debug,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tollkey_client::{Auth, Client, ClientBuilder, Error};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

/// The credential of every client in these tests.
pub const TOKEN: &str = "a management token";
/// The request ID of the responses, unless a test sets another.
pub const REQUEST_ID: &str = "req_01K30DW000E008000000000001";

/// A server with prepared responses.
pub struct Server(MockServer);

impl Server {
    /// Starts a server that sends these responses in turn, and 418 after the last.
    pub async fn answering(responses: impl IntoIterator<Item = ResponseTemplate>) -> Self {
        let responses = Mutex::new(responses.into_iter().collect::<VecDeque<_>>());
        Self::responding(move |_: &Request| {
            let next = responses.lock().unwrap().pop_front();
            next.unwrap_or_else(|| problem(418, "unexpected_request", "no response is left"))
        })
        .await
    }

    pub async fn responding(respond: impl Respond + 'static) -> Self {
        // Not from wiremock's pool: an abandoned call must not reach the server of another test.
        let server = MockServer::builder().start().await;
        Mock::given(any())
            .respond_with(respond)
            .mount(&server)
            .await;
        Self(server)
    }

    pub fn url(&self) -> String {
        self.0.uri()
    }

    pub fn address(&self) -> SocketAddr {
        *self.0.address()
    }

    /// Settings for a client of this server, with a credential, no retries and short pauses.
    pub fn builder(&self) -> ClientBuilder {
        builder(&self.url())
    }

    pub fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    /// A client with up to two retries.
    pub fn persistent(&self) -> Client {
        self.builder().max_retries(2).build().unwrap()
    }

    /// Returns the received requests, in order.
    pub async fn requests(&self) -> Vec<Request> {
        self.0.received_requests().await.unwrap()
    }

    /// Returns the only received request.
    pub async fn only_request(&self) -> Request {
        let mut requests = self.requests().await;
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }
}

pub fn builder(url: &str) -> ClientBuilder {
    Client::builder()
        .base_url(url)
        .auth(Auth::bearer(TOKEN))
        .max_retries(0)
        .backoff(Duration::from_millis(1), Duration::from_millis(1))
}

/// A response with a body of this media type.
pub fn response_with(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> ResponseTemplate {
    ResponseTemplate::new(status)
        .set_body_raw(body, media_type)
        .insert_header("x-request-id", REQUEST_ID)
}

/// A JSON response.
pub fn json_response(status: u16, body: &Value) -> ResponseTemplate {
    response_with(status, "application/json", body.to_string())
}

/// A 204 response.
pub fn nothing() -> ResponseTemplate {
    ResponseTemplate::new(204).insert_header("x-request-id", REQUEST_ID)
}

/// A problem (RFC 9457), the error of every surface but the account surface.
pub fn problem(status: u16, code: &str, detail: &str) -> ResponseTemplate {
    response_with(
        status,
        "application/problem+json",
        problem_body(status, code, detail).to_string(),
    )
}

pub fn problem_body(status: u16, code: &str, detail: &str) -> Value {
    json!({
        "type": format!("urn:tollkey:problem:{code}"),
        "title": "A title",
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": REQUEST_ID,
    })
}

/// Returns the values of a header, in order.
pub fn header<'a>(request: &'a Request, name: &str) -> Vec<&'a str> {
    request
        .headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

/// Returns the only value of a header.
pub fn only_header(request: &Request, name: &str) -> String {
    let values = header(request, name);
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values[0].to_owned()
}

/// Returns the path and query as they were sent.
pub fn target(request: &Request) -> String {
    let query = request
        .url
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    format!("{}{query}", request.url.path())
}

/// Returns the error of a call that must fail.
#[track_caller]
pub fn expect_error<T: Debug>(outcome: Result<T, Error>) -> Error {
    match outcome {
        Ok(response) => panic!("the call succeeded: {response:?}"),
        Err(error) => error,
    }
}

/// The behavior of a [`Wire`] on one connection.
#[derive(Debug, Clone)]
pub enum RawBehavior {
    /// Reads a request, writes this, and closes the connection.
    Says(String),
    /// Reads a request and closes the connection.
    HangsUp,
    /// Reads a request, writes this, and then goes silent.
    Stalls(String),
    /// Reads requests and writes this for each, on the same connection.
    Serves(String),
    /// Reads a request and writes a chunked response of this many spaces and `{}`.
    Pours(usize),
}

/// A raw TCP server: each connection has the next of its behaviors, and all further ones the last.
pub struct Wire {
    url: String,
    raw_requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Wire {
    pub async fn that(behaviors: impl IntoIterator<Item = RawBehavior>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let raw_requests = Arc::new(Mutex::new(Vec::new()));
        let mut behaviors: VecDeque<_> = behaviors.into_iter().collect();
        let connections = Arc::new(AtomicUsize::new(0));
        let (keep, count) = (raw_requests.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let behavior = if behaviors.len() > 1 {
                    behaviors.pop_front()
                } else {
                    behaviors.front().cloned()
                };
                tokio::spawn(converse(
                    connection,
                    behavior.expect("at least one behavior"),
                    keep.clone(),
                ));
            }
        });
        Self {
            url,
            raw_requests,
            connections,
        }
    }

    pub fn builder(&self) -> ClientBuilder {
        builder(&self.url)
    }

    /// Returns the received requests, byte for byte.
    pub fn raw_requests(&self) -> Vec<String> {
        self.raw_requests.lock().unwrap().clone()
    }

    /// Returns the number of accepted connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Returns a raw HTTP response.
pub fn on_the_wire(status: &str, media_type: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

async fn converse(
    mut connection: TcpStream,
    behavior: RawBehavior,
    raw_requests: Arc<Mutex<Vec<String>>>,
) {
    let request = read_request(&mut connection).await;
    raw_requests.lock().unwrap().push(request);
    // Write errors are ignored: the client may have closed the connection.
    match behavior {
        RawBehavior::Says(text) => drop(connection.write_all(text.as_bytes()).await),
        RawBehavior::HangsUp => {}
        RawBehavior::Serves(text) => loop {
            if connection.write_all(text.as_bytes()).await.is_err() {
                return;
            }
            let request = read_request(&mut connection).await;
            if request.is_empty() {
                return;
            }
            raw_requests.lock().unwrap().push(request);
        },
        RawBehavior::Stalls(text) => {
            drop(connection.write_all(text.as_bytes()).await);
            // Until the client closes the connection.
            drop(connection.read(&mut [0]).await);
        }
        RawBehavior::Pours(bytes) => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            drop(connection.write_all(head.as_bytes()).await);
            let blanks = " ".repeat(0x10000);
            let mut left = bytes;
            while left > 0 {
                let length = left.min(blanks.len());
                let chunk = format!("{length:x}\r\n{}\r\n", &blanks[..length]);
                if connection.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
                left -= length;
            }
            drop(connection.write_all(b"2\r\n{}\r\n0\r\n\r\n").await);
        }
    }
}

/// Reads one request with its body.
async fn read_request(connection: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = connection.read(&mut buffer).await.unwrap_or_default();
        text.extend_from_slice(&buffer[..read]);
        let so_far = String::from_utf8_lossy(&text);
        if read == 0
            || so_far
                .split_once("\r\n\r\n")
                .is_some_and(|(head, body)| body.len() >= content_length(head))
        {
            return so_far.into_owned();
        }
    }
}

fn content_length(head: &str) -> usize {
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length:")?
            .trim()
            .parse()
            .ok()
    });
    length.unwrap_or_default()
}
