//! Servers that answer as they are told and keep what they were asked.

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

/// What every client of these tests presents.
pub const TOKEN: &str = "a management token";
/// The id that answers bear, unless they say otherwise.
pub const REQUEST_ID: &str = "req_01K30DW000E008000000000001";

/// A server with a list of answers, which it gives one after the other.
pub struct Server(MockServer);

impl Server {
    /// With these answers. Whoever asks more often is told so.
    pub async fn answering(answers: impl IntoIterator<Item = ResponseTemplate>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        Self::responding(move |_: &Request| {
            let next = answers.lock().unwrap().pop_front();
            next.unwrap_or_else(|| problem(418, "asked_too_often", "there is no answer left"))
        })
        .await
    }

    pub async fn responding(respond: impl Respond + 'static) -> Self {
        // Not one of wiremock's pool: a call that was given up must not reach the server of another test.
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

    /// Settings for a client of this server, which has a credential, sends nothing twice and wastes no time.
    pub fn builder(&self) -> ClientBuilder {
        builder(&self.url())
    }

    pub fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    /// A client that sends up to two times more.
    pub fn persistent(&self) -> Client {
        self.builder().max_retries(2).build().unwrap()
    }

    /// What came in, in order.
    pub async fn asked(&self) -> Vec<Request> {
        self.0.received_requests().await.unwrap()
    }

    /// The only thing that came in.
    pub async fn asked_once(&self) -> Request {
        let mut asked = self.asked().await;
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }
}

pub fn builder(url: &str) -> ClientBuilder {
    Client::builder()
        .base_url(url)
        .auth(Auth::bearer(TOKEN))
        .max_retries(0)
        .backoff(Duration::from_millis(1), Duration::from_millis(1))
}

/// An answer with a body of that media type.
pub fn answer(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> ResponseTemplate {
    ResponseTemplate::new(status)
        .set_body_raw(body, media_type)
        .insert_header("x-request-id", REQUEST_ID)
}

/// An answer of JSON.
pub fn json_answer(status: u16, body: &Value) -> ResponseTemplate {
    answer(status, "application/json", body.to_string())
}

/// An answer without a body.
pub fn nothing() -> ResponseTemplate {
    ResponseTemplate::new(204).insert_header("x-request-id", REQUEST_ID)
}

/// A refusal, everywhere but on the account surface.
pub fn problem(status: u16, code: &str, detail: &str) -> ResponseTemplate {
    answer(
        status,
        "application/problem+json",
        problem_body(status, code, detail).to_string(),
    )
}

pub fn problem_body(status: u16, code: &str, detail: &str) -> Value {
    json!({
        "type": format!("urn:tollkey:problem:{code}"),
        "title": "What it is in a few words",
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": REQUEST_ID,
    })
}

/// The values of a header, in order.
pub fn header<'a>(request: &'a Request, name: &str) -> Vec<&'a str> {
    request
        .headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

/// The only value of a header.
pub fn only_header(request: &Request, name: &str) -> String {
    let values = header(request, name);
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values[0].to_owned()
}

/// Path and query as they were sent.
pub fn target(request: &Request) -> String {
    let query = request
        .url
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    format!("{}{query}", request.url.path())
}

/// The error of a call that must not go well.
#[track_caller]
pub fn refused<T: Debug>(outcome: Result<T, Error>) -> Error {
    match outcome {
        Ok(answer) => panic!("the call went well: {answer:?}"),
        Err(error) => error,
    }
}

/// What a [`Wire`] does with one connection.
#[derive(Debug, Clone)]
pub enum Does {
    /// Reads a request, writes this, and ends the connection.
    Says(String),
    /// Reads a request and ends the connection.
    HangsUp,
    /// Reads a request, writes this, and is silent.
    Stalls(String),
    /// Reads a request and writes this, again and again on the same connection.
    Serves(String),
    /// Reads a request and writes an answer of so many blanks and `{}`, in chunks.
    Pours(usize),
}

/// A server beneath HTTP: each connection goes as it is told, the last one again and again.
pub struct Wire {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Wire {
    pub async fn that(does: impl IntoIterator<Item = Does>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut does: VecDeque<_> = does.into_iter().collect();
        let connections = Arc::new(AtomicUsize::new(0));
        let (keep, count) = (heard.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let does = if does.len() > 1 {
                    does.pop_front()
                } else {
                    does.front().cloned()
                };
                tokio::spawn(converse(
                    connection,
                    does.expect("it is told what to do"),
                    keep.clone(),
                ));
            }
        });
        Self {
            url,
            heard,
            connections,
        }
    }

    pub fn builder(&self) -> ClientBuilder {
        builder(&self.url)
    }

    /// The requests that were read, as they stood on the wire.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An answer of JSON, as it stands on the wire.
pub fn on_the_wire(status: &str, media_type: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

async fn converse(mut connection: TcpStream, does: Does, heard: Arc<Mutex<Vec<String>>>) {
    let request = read_request(&mut connection).await;
    heard.lock().unwrap().push(request);
    // Who asked may have gone: then there is nobody left to see what follows.
    match does {
        Does::Says(text) => drop(connection.write_all(text.as_bytes()).await),
        Does::HangsUp => {}
        Does::Serves(text) => loop {
            if connection.write_all(text.as_bytes()).await.is_err() {
                return;
            }
            let request = read_request(&mut connection).await;
            if request.is_empty() {
                return;
            }
            heard.lock().unwrap().push(request);
        },
        Does::Stalls(text) => {
            drop(connection.write_all(text.as_bytes()).await);
            // Until the other side ends it.
            drop(connection.read(&mut [0]).await);
        }
        Does::Pours(bytes) => {
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

/// One request with its body.
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
