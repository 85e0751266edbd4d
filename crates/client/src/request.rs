//! Builds and sends calls, and reads their responses.

use std::{fmt, future::IntoFuture, pin::Pin, sync::Arc, time::SystemTime};

use bytes::Bytes;
use reqwest::{
    Method, Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::timeout;
use tollkey_api::problem::FieldError;
use tracing::{Instrument as _, Span, field::Empty};
use zeroize::Zeroizing;

use crate::{
    Client, Error, Secret,
    connections::{Connections, Pending},
    error::{Kind, Rejection},
    retry::{Progress, Repeat, retry_after},
    url_text::{query_value, segment},
};

/// The maximum length of a response. The longest list (1000 keys with fields of maximum length) is shorter.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// The initial capacity of a request body. Most bodies fit, so the buffer does not grow, which would leave copies of
/// secrets in memory.
const USUAL_BODY: usize = 4096;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One operation with its arguments.
#[derive(Clone)]
pub(crate) struct Call {
    client: Client,
    /// The connections of the client, or those of its blocking calls.
    connections: Arc<Connections>,
    method: Method,
    /// The path template of the OpenAPI document.
    route: &'static str,
    segments: Vec<String>,
    query: Vec<(&'static str, String)>,
    /// Shared by all attempts and wiped after the last one, because it can contain a presented key.
    body: Option<(&'static str, Bytes)>,
    as_service: bool,
    /// Whether every attempt has an Idempotency-Key: the caller's or, for each sending of the call, a random one.
    creates: bool,
    /// The caller's Idempotency-Key. A secret, because the server encrypts its idempotency record, which contains a new
    /// key, with it.
    idempotency_key: Option<Secret>,
    /// The error code with which the server rejects a repeat if an earlier attempt took effect.
    done_before: Option<&'static str>,
    repeat: Repeat,
    /// Whether the expected response is 204, without a body.
    expects_no_content: bool,
}

impl Call {
    /// Creates a call of this route. The segments replace the placeholders of the route, in order.
    pub(crate) fn new(
        client: &Client,
        method: Method,
        route: &'static str,
        segments: &[&str],
    ) -> Self {
        Self {
            client: client.clone(),
            connections: client.shared.connections.clone(),
            method,
            route,
            segments: segments.iter().map(|&segment| segment.to_owned()).collect(),
            query: Vec::new(),
            body: None,
            as_service: false,
            creates: false,
            idempotency_key: None,
            done_before: None,
            repeat: Repeat::Always,
            expects_no_content: false,
        }
    }

    /// Adds the account of [`Client::for_account`].
    pub(crate) fn in_account(mut self) -> Self {
        if let Some(account) = self.client.account.as_deref() {
            self.query.push(("account", account.as_str().to_owned()));
        }
        self
    }

    /// Makes the call present the service key, if the client has one.
    pub(crate) fn for_service(mut self) -> Self {
        self.as_service = true;
        self
    }

    /// Marks the call as a creation: every attempt sends the same Idempotency-Key.
    pub(crate) fn creating(mut self) -> Self {
        self.creates = true;
        self
    }

    /// Sets the caller's Idempotency-Key.
    pub(crate) fn with_idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(Secret::new(key));
        self
    }

    /// Makes the call succeed if it is rejected with this code after an attempt that may have taken effect.
    pub(crate) fn done_before(mut self, code: &'static str) -> Self {
        self.done_before = Some(code);
        self
    }

    /// Sets which failures the client retries.
    pub(crate) fn repeated(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }

    /// Extends the timeout of each attempt.
    pub(crate) fn waiting(mut self, longer: std::time::Duration) -> Self {
        self.client.timeout = self.client.timeout.saturating_add(longer);
        self
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query
            .extend(value.map(|value| (name, value.to_string())));
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(USUAL_BODY));
        serde_json::to_writer(&mut *bytes, body).expect("a body that serializes to JSON");
        self.body = Some(("application/json", Bytes::from_owner(bytes)));
        self
    }

    pub(crate) fn form(mut self, body: &impl Serialize) -> Self {
        let text = serde_urlencoded::to_string(body).expect("a form of strings");
        self.body = Some((
            "application/x-www-form-urlencoded",
            Bytes::from_owner(Zeroizing::new(text.into_bytes())),
        ));
        self
    }

    /// Creates a request whose response is JSON.
    pub(crate) fn reading<T: DeserializeOwned + 'static>(self) -> Request<T> {
        self.reading_with(|reply| reply.json())
    }

    /// Creates a request whose response is 204.
    pub(crate) fn reading_nothing(mut self) -> Request<()> {
        self.expects_no_content = true;
        self.reading_with(|_| Ok(()))
    }

    pub(crate) fn reading_with<T>(
        self,
        read: impl Fn(Reply) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Request<T> {
        Request {
            call: self,
            read: Arc::new(read),
        }
    }

    /// Sends the call, and repeats it after the failures of `self.repeat`.
    async fn send<T>(mut self, read: Read<T>) -> Result<T, Error> {
        // A caller with its own Idempotency-Key can repeat the call itself after an unreadable response.
        if self.creates && self.idempotency_key.is_none() {
            self.idempotency_key = Some(Secret::new(uuid::Uuid::new_v4().to_string()));
            self.repeat = Repeat::AlsoUnreadable;
        }
        let name = method_name(&self.method);
        let progress = Progress::default();
        let url = self
            .url()
            .map_err(|error| error.of(name, self.route, &progress))?;
        let (call, url, read, so_far) = (&self, &url, &*read, &progress);
        let sent = self
            .client
            .retries
            .run(self.repeat, so_far, |attempt| async move {
                let span = tracing::info_span!(
                    "tollkey_call",
                    method = name,
                    route = call.route,
                    attempt,
                    status = Empty,
                    request_id = Empty
                );
                let was_uncertain = so_far.is_uncertain();
                match call.attempt(url, so_far).instrument(span).await {
                    Err(error)
                        if was_uncertain
                            && call.done_before.is_some()
                            && error.code() == call.done_before =>
                    {
                        read(Reply::nothing())
                    }
                    reply => reply.and_then(read),
                }
            });
        let outcome = match self.client.deadline {
            Some(deadline) => timeout(deadline, sent)
                .await
                .unwrap_or_else(|_| Err(Error::new(Kind::Timeout))),
            None => sent.await,
        };
        outcome.map_err(|error| error.of(name, self.route, &progress))
    }

    async fn attempt(&self, url: &Url, progress: &Progress) -> Result<Reply, Error> {
        let headers = self.headers().await?;
        let pool = self.connections.pool();
        let mut request = pool
            .client
            .request(self.method.clone(), url.clone())
            .headers(headers);
        if let Some((_, bytes)) = &self.body {
            request = request.body(bytes.clone());
        }
        progress.begin();
        let limit = self.client.deadline.map_or(self.client.timeout, |whole| {
            self.client.timeout.min(whole / 2)
        });
        let pending = Pending::new(&self.connections, pool, limit);
        let attempt = async {
            let reply = match request.send().await {
                Ok(response) => Reply::receive(response, url, self.expects_no_content).await,
                Err(error) => Err(Error::transport(error)),
            };
            pending.finish();
            reply
        };
        timeout(self.client.timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::Timeout)))
    }

    async fn headers(&self) -> Result<HeaderMap, Error> {
        let client = &self.client;
        let mut headers = client.shared.headers.clone();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let service = client.service.as_ref().filter(|_| self.as_service);
        if let Some(auth) = service.or(client.auth.as_ref()) {
            let header = timeout(client.timeout, auth.header()).await;
            headers.insert(
                AUTHORIZATION,
                header.unwrap_or_else(|slow| Err(Error::with_source(Kind::Auth, slow)))?,
            );
        }
        if let Some(key) = &self.idempotency_key {
            headers.insert(IDEMPOTENCY_KEY, idempotency_key(key.expose())?);
        }
        if let Some((media_type, _)) = &self.body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        Ok(headers)
    }

    /// Returns the error of a call whose response is valid JSON but contradicts the request.
    pub(crate) fn unreadable(&self, why: &str) -> Error {
        let kind = Kind::Unreadable {
            status: 200,
            request_id: None,
            why: why.to_owned(),
        };
        let progress = Progress::default();
        progress.begin();
        Error::new(kind).of(method_name(&self.method), self.route, &progress)
    }

    /// Returns the shared state with the runtime of blocking calls.
    #[cfg(feature = "blocking")]
    pub(crate) fn shared(&self) -> std::sync::Arc<crate::client::Shared> {
        self.client.shared.clone()
    }

    /// Makes the call use these connections.
    #[cfg(feature = "blocking")]
    pub(crate) fn send_with(&mut self, connections: Arc<Connections>) {
        self.connections = connections;
    }

    fn url(&self) -> Result<Url, Error> {
        let mut url = self.client.shared.base_url.clone();
        let mut segments = self.segments.iter();
        {
            let mut path = url
                .path_segments_mut()
                .map_err(|()| Error::settings("base_url has no path"))?;
            for part in self.route.trim_start_matches('/').split('/') {
                match part
                    .strip_prefix('{')
                    .and_then(|part| part.strip_suffix('}'))
                {
                    None => path.push(part),
                    Some(name) => {
                        path.push(segment(name, segments.next().map_or("", String::as_str))?)
                    }
                };
            }
        }
        for (name, value) in &self.query {
            query_value(name, value)?;
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

/// Checks that the server will accept an Idempotency-Key (contract, section 7).
fn idempotency_key(key: &str) -> Result<HeaderValue, Error> {
    let well_formed = (16..=255).contains(&key.len())
        && key
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    let mut value = HeaderValue::from_str(key)
        .ok()
        .filter(|_| well_formed)
        .ok_or_else(|| {
            Error::argument(
                "idempotency_key",
                "must have 16 to 255 printable ASCII characters without quote and backslash",
            )
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns a method of this API as a `'static` string; `Method::as_str` returns a borrowed one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        _ => "DELETE",
    }
}

/// A received response.
#[derive(Default)]
pub(crate) struct Reply {
    status: u16,
    request_id: Option<String>,
    pub(crate) headers: HeaderMap,
    /// Whether the response has a known length.
    has_known_length: bool,
    /// Wiped, because it can contain a new key.
    body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// Returns a replacement for the lost response of an earlier attempt.
    fn nothing() -> Self {
        Self {
            status: 204,
            has_known_length: true,
            ..Self::default()
        }
    }

    /// Receives a response to a request of this URL.
    async fn receive(
        mut response: Response,
        requested: &Url,
        expects_no_content: bool,
    ) -> Result<Self, Error> {
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let text = |name: &HeaderName| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let request_id = text(&X_REQUEST_ID);
        let span = Span::current();
        span.record("status", status.as_u16());
        span.record("request_id", request_id.as_deref());
        if status.is_redirection() || response.url() != requested {
            return Err(Error::new(Kind::Redirect {
                status: Some(status.as_u16()),
            }));
        }
        let is_json = text(&CONTENT_TYPE).is_some_and(|text| is_json(&text));
        let content_length = response.content_length();
        let status = status.as_u16();
        let mut reply = Self {
            status,
            request_id,
            headers,
            has_known_length: content_length.is_some(),
            ..Self::default()
        };
        if status != 204 && is_json {
            reply.body = read_body(&mut response, &reply, content_length.unwrap_or(0)).await?;
        }
        match status {
            204 if expects_no_content => Ok(reply),
            200 | 201 if !expects_no_content && is_json => Ok(reply),
            200 | 201 if !expects_no_content => Err(reply
                .unreadable("the response is not JSON: is base_url the URL of a Tollkey server?")),
            200..=299 => Err(reply.unreadable("the status is unexpected for this call")),
            _ => Err(Error::new(Kind::Rejected(Box::new(reply.rejection())))),
        }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        // Reports only position and category: the parser's message could quote the response, which may contain a key.
        serde_json::from_slice(&self.body).map_err(|error| {
            if error.is_eof() && !self.has_known_length {
                return Error::new(Kind::Interrupted); // the connection ended in the middle of the response
            }
            let (line, column) = (error.line(), error.column());
            self.unreadable(&format!(
                "the response cannot be read ({:?}, line {line} column {column})",
                error.classify()
            ))
        })
    }

    /// Returns the error of an unreadable response.
    pub(crate) fn unreadable(&self, why: &str) -> Error {
        let request_id = self.request_id.clone();
        Error::new(Kind::Unreadable {
            status: self.status,
            request_id,
            why: why.to_owned(),
        })
    }

    /// Parses an error response: a problem (RFC 9457), the envelope of the account surface, or the response of a
    /// proxy. All fields are optional.
    fn rejection(self) -> Rejection {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |at: &str| body.pointer(at).and_then(Value::as_str).map(str::to_owned);
        let fields = |at: &str| -> Vec<FieldError> {
            let items = body
                .pointer(at)
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            items
                .filter_map(|item| FieldError::deserialize(item).ok())
                .collect()
        };
        let rejection = Rejection {
            status: self.status,
            request_id: self.request_id,
            retry_after: retry_after(&self.headers, SystemTime::now()),
            ..Rejection::default()
        };
        if body.get("error").is_some_and(Value::is_object) {
            return Rejection {
                code: text("/error/details/code")
                    .or(text("/error/code").map(|code| code.to_ascii_lowercase())),
                detail: text("/error/message"),
                errors: fields("/error/details/errors"),
                request_id: rejection.request_id.or(text("/meta/requestId")),
                ..rejection
            };
        }
        Rejection {
            code: text("/code"),
            detail: text("/detail").or(text("/title")),
            errors: fields("/errors"),
            request_id: rejection.request_id.or(text("/request_id")),
            ..rejection
        }
    }
}

/// Reads a body of at most [`MAX_RESPONSE`] bytes.
async fn read_body(
    response: &mut Response,
    reply: &Reply,
    content_length: u64,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let too_long = || reply.unreadable("the response is too long");
    if content_length > MAX_RESPONSE as u64 {
        return Err(too_long());
    }
    // Allocated once: a growing buffer would leave copies of secrets in memory.
    let mut body = Zeroizing::new(Vec::with_capacity(content_length as usize));
    while let Some(chunk) = response.chunk().await.map_err(Error::transport)? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns whether a content type is JSON, including `application/problem+json`.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// Reads a response.
type Read<T> = Arc<dyn Fn(Reply) -> Result<T, Error> + Send + Sync>;

/// A call that is not sent yet: `.await` sends it.
///
/// ```no_run
/// # async fn example(key: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
/// let call = key.whoami();
/// let me = call.await?; // or call.send().await?
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is sent until it is awaited"]
pub struct Request<T> {
    call: Call,
    read: Read<T>,
}

impl<T: Send + 'static> Request<T> {
    /// Sends the call, as `.await` does.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn send(self) -> Result<T, Error> {
        self.call.send(self.read).await
    }

    /// Sends the call and waits for the response, without an async runtime. Needs the feature `blocking`.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Panics
    /// Inside an async runtime, because it would block a worker.
    #[cfg(feature = "blocking")]
    pub fn send_blocking(mut self) -> Result<T, Error> {
        let shared = self.call.shared();
        let blocking = shared.blocking()?;
        self.call.send_with(blocking.connections.clone());
        blocking.runtime().block_on(self.send())
    }
}

impl<T: Send + 'static> IntoFuture for Request<T> {
    type Output = Result<T, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// Adds `send`, `send_blocking` and `.await` to a builder that has a method `request`.
macro_rules! sends {
    ($builder:ty => $output:ty) => {
        impl $builder {
            /// Sends the call, as `.await` does.
            ///
            /// # Errors
            /// [`Error`](crate::Error).
            pub async fn send(self) -> Result<$output, $crate::Error> {
                self.request().send().await
            }

            /// Sends the call and waits for the response, without an async runtime. Needs the feature `blocking`.
            ///
            /// # Errors
            /// [`Error`](crate::Error).
            ///
            /// # Panics
            /// Inside an async runtime, because it would block a worker.
            #[cfg(feature = "blocking")]
            pub fn send_blocking(self) -> Result<$output, $crate::Error> {
                self.request().send_blocking()
            }
        }

        impl std::future::IntoFuture for $builder {
            type Output = Result<$output, $crate::Error>;
            type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Self::Output> + Send>>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}
pub(crate) use sends;

impl<T> Clone for Request<T> {
    fn clone(&self) -> Self {
        Self {
            call: self.call.clone(),
            read: self.read.clone(),
        }
    }
}

impl<T> fmt::Debug for Request<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Request").field(&self.call).finish()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.route)
    }
}
