//! Logs, spans, errors and `Debug` contain no secrets.

use std::{
    cell::RefCell,
    error::Error as _,
    fmt::{Debug, Write as _},
    future::IntoFuture as _,
    io,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use tollkey_client::{
    Auth, Client, Digest, Error, Mode, Scope, Secret, VerifierId, account::Access, reqwest,
    verification::VerificationRequest,
};
use tracing_subscriber::{
    Layer as _, filter::dynamic_filter_fn, fmt::format::FmtSpan, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use wiremock::{Request, ResponseTemplate};

use crate::{
    fixtures,
    support::{
        REQUEST_ID, RawBehavior, Server, Wire, builder, header, json_response, on_the_wire,
        problem, response_with, target,
    },
};

/// Part of every secret in these tests.
const CANARY: &str = "CANARY";
/// The secrets of these tests, each with the canary.
const TOKEN: &str = "tokenCANARY1";
const SERVICE_KEY: &str = "tks_CANARY2";
const SECRET_KEY: &str = "sk_test_CANARY3";
const PRESENTED: &str = "ck_test_CANARY4";
const NEW_KEY: &str = "ck_test_CANARY5";
const IDEMPOTENCY_KEY: &str = "order 4711 CANARY6";
const HEADER: &str = "headerCANARY7";
const FUNCTION_TOKEN: &str = "function tokenCANARY8";

/// Everything that is logged on a thread, by any crate and at any level.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

thread_local! {
    /// The collector of this thread.
    static COLLECTOR: RefCell<Option<Logs>> = const { RefCell::new(None) };
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Collects logs until it is dropped.
struct Collecting;

impl Drop for Collecting {
    fn drop(&mut self) {
        COLLECTOR.set(None);
    }
}

impl Logs {
    fn collect(&self) -> Collecting {
        // One subscriber for the whole process, also for the crate `log`: `tracing` caches per callsite
        // whether it is enabled, so with one for each thread the first thread would decide for all.
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            let writer = || COLLECTOR.with_borrow(|logs| logs.clone().unwrap_or_default());
            let lines = tracing_subscriber::fmt::layer()
                .with_span_events(FmtSpan::FULL)
                .with_ansi(false)
                .with_writer(writer)
                .with_filter(dynamic_filter_fn(|_, _| {
                    COLLECTOR.with_borrow(Option::is_some)
                }));
            tracing_subscriber::registry().with(lines).init();
        });
        COLLECTOR.set(Some(self.clone()));
        Collecting
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// Collected `Debug` and `Display` output.
#[derive(Default)]
struct Output(String);

impl Output {
    fn value(&mut self, value: &impl Debug) {
        write!(self.0, "{value:?}\n{value:#?}\n").unwrap();
    }

    fn error(&mut self, error: &Error) {
        writeln!(self.0, "{error}").unwrap();
        self.value(error);
        let mut source = error.source();
        while let Some(error) = source {
            write!(self.0, "{error}\n{error:?}\n").unwrap();
            source = error.source();
        }
    }

    /// Adds the result of a call.
    fn outcome<T: Debug>(&mut self, outcome: &Result<T, Error>) {
        match outcome {
            Ok(answer) => self.value(answer),
            Err(error) => self.error(error),
        }
    }
}

/// Responds to every creation with [`NEW_KEY`].
fn respond_with_new_keys(request: &Request) -> ResponseTemplate {
    let created = |mut body: serde_json::Value, field: &str| {
        body[field] = json!(NEW_KEY);
        body
    };
    let target = target(request);
    let path = target.split('?').next().unwrap();
    let (status, body) = match (request.method.as_str(), path) {
        ("POST", "/api/v1/applications") => (201, fixtures::application()),
        ("POST", "/api/v1/applications/app/api-keys") => {
            (201, created(fixtures::created_application_key(), "fullKey"))
        }
        ("POST", "/api/v1/api-keys" | "/api/v1/api-keys/key/rotate") => {
            (201, created(fixtures::created_commerce_key(), "api_key"))
        }
        ("POST", "/api/v1/account/api-keys") => (
            201,
            fixtures::envelope(&created(fixtures::created_account_key(), "value")),
        ),
        ("POST", "/api/v1/service-keys") => (201, created(fixtures::created_service_key(), "key")),
        ("POST", "/api/v1/verify") => (200, fixtures::valid()),
        ("POST", "/api/v1/verify/batch") => (
            200,
            json!({"results": [fixtures::valid(), fixtures::invalid("revoked")]}),
        ),
        ("POST", "/api/v1/introspect") => (200, fixtures::introspected()),
        ("GET", "/api/v1/whoami") => (200, fixtures::whoami()),
        ("POST", "/api/v1/sync/lookup") => (200, fixtures::found()),
        ("POST", "/api/v1/sync") => (200, fixtures::news()),
        _ => return problem(404, "not_found", "the resource does not exist"),
    };
    json_response(status, &body)
}

/// Makes every call with a secret in its request or response.
async fn make_all_calls(client: &Client, output: &mut Output) {
    macro_rules! show {
        ($call:expr) => {{
            let call = $call;
            output.value(&call);
            output.outcome(&call.await);
        }};
    }
    output.value(client);
    show!(
        client
            .applications()
            .create("Shop")
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    show!(
        client
            .applications()
            .api_keys("app")
            .create("Key")
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    show!(
        client
            .commerce()
            .api_keys()
            .create("Key")
            .scopes([Scope::LINKS_READ])
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    show!(client.commerce().api_keys().create("Key"));
    show!(
        client
            .commerce()
            .api_keys()
            .rotate("key")
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    let service_keys = client.service_keys();
    show!(
        service_keys
            .create("gateway")
            .idempotency_key(IDEMPOTENCY_KEY)
    );

    let account = client.with_auth(Auth::key(SECRET_KEY));
    output.value(&account);
    show!(
        account
            .account()
            .api_keys()
            .create("CI", Mode::Test, Access::Secret)
            .idempotency_key(IDEMPOTENCY_KEY)
    );

    let service = client.with_auth(Auth::service(SERVICE_KEY));
    show!(
        service
            .verify(PRESENTED)
            .method("GET")
            .path("/tokens")
            .client_ip([203, 0, 113, 7])
    );
    show!(service.introspect(PRESENTED).scopes([Scope::LINKS_READ]));
    let request = VerificationRequest::new(PRESENTED).merchant("merchant_42");
    output.value(&request);
    show!(service.verify_batch([request, VerificationRequest::new(PRESENTED)]));
    show!(service.subscription().lookup(Digest::of_key(PRESENTED)));
    show!(
        service
            .subscription()
            .poll(VerifierId::from_bytes([7; 16]))
            .cursor("a-6")
    );

    show!(client.with_auth(Auth::key(PRESENTED)).whoami());
    show!(client.with_auth(Auth::key(PRESENTED)).revoke_self());
    let function = Auth::from_fn(|| async { Ok::<_, io::Error>(Secret::new(FUNCTION_TOKEN)) });
    output.value(&function);
    show!(client.with_auth(function).whoami());

    // Arguments that are rejected before anything is sent.
    show!(
        client
            .applications()
            .create("Shop")
            .idempotency_key("CANARY")
    );
    show!(
        client
            .applications()
            .create("Shop")
            .idempotency_key("CANARY with a \"quote\"")
    );
    show!(client.with_auth(Auth::bearer("CANARY\n")).whoami());
    for value in [
        client.applications().api_keys("app").list().items(),
        client.applications().api_keys("app").list().items(),
    ] {
        output.value(&value);
    }
}

#[track_caller]
fn assert_unseen(text: &str, secret: &str) {
    if let Some(at) = text.find(secret) {
        let line = text[..at].lines().count().saturating_sub(1);
        panic!(
            "{secret} is seen: {}",
            text.lines().nth(line).unwrap_or_default()
        );
    }
}

/// Makes all calls with this HTTP client, and checks that the expected crates write logs and that no log has a secret.
async fn check_logs(http: reqwest::Client, expected: &[&str]) {
    let logs = Logs::default();
    let mut output = Output::default();
    let server = Server::responding(respond_with_new_keys).await;
    let guard = logs.collect();
    let builder = server
        .builder()
        .auth(Auth::bearer(TOKEN))
        .header("x-team", HEADER)
        .http_client(http);
    output.value(&builder);
    make_all_calls(&builder.build().unwrap(), &mut output).await;
    drop(guard);

    let (logs, output) = (logs.text(), output.0);
    // The crates logged.
    for target in expected {
        assert!(logs.contains(target), "no log of {target}");
    }
    let requests = server.requests().await;
    // The secrets were sent.
    let sent: String = requests
        .iter()
        .map(|request| {
            format!(
                "{:?}{}",
                request.headers,
                String::from_utf8_lossy(&request.body)
            )
        })
        .collect();
    for secret in [
        TOKEN,
        SERVICE_KEY,
        SECRET_KEY,
        PRESENTED,
        IDEMPOTENCY_KEY,
        HEADER,
        FUNCTION_TOKEN,
    ] {
        assert!(sent.contains(secret), "{secret} was not sent");
    }
    for text in [&logs, &output] {
        assert_unseen(text, CANARY);
        assert_unseen(text, &Digest::of_key(PRESENTED).hex().to_string());
        let random = requests
            .iter()
            .flat_map(|request| header(request, "idempotency-key"));
        random.for_each(|key| assert_unseen(text, key));
    }
    assert!(output.contains("redacted"), "{output}");
}

#[tokio::test]
async fn no_secret_is_logged() {
    let http = reqwest::Client::builder().build().unwrap();
    check_logs(
        http,
        &[
            "tollkey_call",
            " hyper_util::client",
            " reqwest::connect: ",
            " reqwest::retry: ",
        ],
    )
    .await;
}

#[tokio::test]
async fn no_secret_is_logged_over_http2() {
    let http = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    check_logs(
        http,
        &[
            "tollkey_call",
            " h2::codec::framed_write: ",
            " h2::proto::",
            " reqwest::connect: ",
        ],
    )
    .await;
}

#[tokio::test]
async fn no_secret_of_a_failed_call_is_logged() {
    let logs = Logs::default();
    let mut output = Output::default();
    let guard = logs.collect();
    // A response with a new key that cannot be parsed, one that is cut off after the key, a closed connection, no
    // response, a redirect and a web page.
    let mut created = fixtures::created_commerce_key();
    created["api_key"] = json!(NEW_KEY);
    let complete = on_the_wire("201 Created", "application/json", &created);
    created["expires_at"] = json!(NEW_KEY);
    let broken = on_the_wire("201 Created", "application/json", &created);
    let cut = complete[..complete.find(NEW_KEY).unwrap() + NEW_KEY.len()].to_owned();
    let redirect =
        format!("HTTP/1.1 307 Elsewhere\r\nlocation: /{NEW_KEY}\r\ncontent-length: 0\r\n\r\n");
    let page =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 8\r\n\r\n{NEW_KEY}");
    let all = [
        RawBehavior::Says(broken),
        RawBehavior::Says(cut),
        RawBehavior::HangsUp,
        RawBehavior::Stalls(String::new()),
        RawBehavior::Says(redirect),
        RawBehavior::Says(page),
    ];
    for does in all {
        let wire = Wire::that([does]).await;
        let builder = wire
            .builder()
            .auth(Auth::bearer(TOKEN))
            .header("x-team", HEADER)
            .max_retries(2);
        let client = builder.timeout(Duration::from_millis(100)).build().unwrap();
        let keys = client.commerce().api_keys();
        let outcome = keys.create("Key").idempotency_key(IDEMPOTENCY_KEY).await;
        assert!(outcome.is_err());
        output.outcome(&outcome);
        output.outcome(&client.verify(PRESENTED).await);
        assert!(
            wire.raw_requests()
                .iter()
                .all(|request| request.contains(TOKEN))
        );
    }
    // No server listens here.
    let client = builder("http://127.0.0.1:1")
        .auth(Auth::bearer(TOKEN))
        .max_retries(2)
        .build()
        .unwrap();
    output.outcome(&client.verify(PRESENTED).await);
    drop(guard);

    let (logs, output) = (logs.text(), output.0);
    assert!(logs.contains("sending a call again"), "{logs}");
    assert_unseen(&logs, CANARY);
    assert_unseen(&output, CANARY);
}

#[tokio::test]
async fn invalid_settings_are_not_shown() {
    let mut output = Output::default();
    let good = || builder("http://127.0.0.1:1").auth(Auth::bearer(TOKEN));
    let wrong = [
        good().base_url("http://user:CANARY@127.0.0.1:1"),
        good().base_url("http://127.0.0.1:1/?token=CANARY"),
        good().header("authorization", "CANARY"),
        good().header("x-team", "CANARY\n"),
        good().user_agent("CANARY\n"),
    ];
    for builder in wrong {
        output.value(&builder);
        output.error(&builder.build().unwrap_err());
    }
    assert_unseen(&output.0, CANARY);
}

#[tokio::test]
async fn debug_redacts_credentials() {
    let client = builder("http://127.0.0.1:1")
        .auth(Auth::bearer(TOKEN))
        .build()
        .unwrap();
    let text = format!("{client:?}");
    assert!(
        text.contains("auth: Some(Auth(redacted))") && text.contains("http://127.0.0.1:1/"),
        "{text}"
    );
    let text = format!("{:?}", Client::new("http://127.0.0.1:1").unwrap());
    assert!(text.contains("auth: None"), "{text}");
    let text = format!("{:?}", client.for_account("acme"));
    assert!(text.contains("account: Some(\"acme\")"), "{text}");
    for auth in [Auth::bearer(TOKEN), Auth::key(TOKEN), Auth::service(TOKEN)] {
        assert_eq!(format!("{auth:?}"), "Auth(redacted)");
    }
    assert_eq!(format!("{:?}", Secret::new(TOKEN)), "Secret(redacted)");
    let text = format!("{:?}", client.verify(PRESENTED));
    assert!(
        text.contains("POST /api/v1/verify") && text.contains("Secret(redacted)"),
        "{text}"
    );
}

/// Reads the headers of the first request on an HTTP/2 connection: for each (RFC 7541, section 6) the index
/// of its name in the static table, and whether it is marked as never indexed.
async fn written_headers(connection: &mut TcpStream) -> Vec<(usize, bool)> {
    let mut preface = [0; 24];
    connection.read_exact(&mut preface).await.unwrap();
    assert!(preface.starts_with(b"PRI * HTTP/2.0"));
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await.unwrap();
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        connection.read_exact(&mut payload).await.unwrap();
        if head[3] != 1 {
            continue;
        }
        assert_eq!(
            head[4] & 0b0010_1100,
            0b100,
            "all headers in one frame and nothing else"
        );
        let (mut block, mut headers) = (&payload[..], Vec::new());
        while let Some(&first) = block.first() {
            let prefix = match first {
                0b1000_0000.. => 7,
                0b0100_0000.. => 6,
                0b0010_0000.. => 5,
                _ => 4,
            };
            let name = integer(&mut block, prefix);
            if prefix == 5 {
                continue;
            }
            if prefix != 7 {
                let strings = if name == 0 { 2 } else { 1 };
                for _ in 0..strings {
                    let length = integer(&mut block, 7);
                    block = &block[length..];
                }
            }
            headers.push((name, first >> 4 == 1));
        }
        return headers;
    }
}

/// Reads an integer whose prefix has this many bits (RFC 7541, section 5.1).
fn integer(block: &mut &[u8], prefix: u32) -> usize {
    let mut next = || {
        let byte = block[0];
        *block = &block[1..];
        usize::from(byte)
    };
    let most = (1 << prefix) - 1;
    let mut value = next() & most;
    let mut shift = 0;
    while value >= most {
        let byte = next();
        value += (byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

#[tokio::test]
async fn credentials_are_never_indexed_by_hpack() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let http = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let client = builder(&url)
        .auth(Auth::bearer(TOKEN))
        .header("x-team", HEADER)
        .http_client(http)
        .build()
        .unwrap();
    let call = tokio::spawn(client.service_keys().create("gateway").into_future());
    let (mut connection, _) = listener.accept().await.unwrap();
    let headers = written_headers(&mut connection).await;
    call.abort();
    let never: Vec<_> = headers
        .iter()
        .filter(|(_, never)| *never)
        .map(|(name, _)| *name)
        .collect();
    // `authorization` is 23 in the static table. The Idempotency-Key and the caller's header are not in it (0).
    assert_eq!(never.len(), 3, "{headers:?}");
    assert!(
        never.contains(&23) && never.iter().filter(|name| **name == 0).count() == 2,
        "{headers:?}"
    );
    // Other headers, such as user-agent and content-type, may be indexed.
    assert!(headers.len() > 6, "{headers:?}");
}

#[tokio::test]
async fn each_attempt_has_a_span_with_its_status() {
    let server = Server::answering([
        problem(503, "unavailable", "temporarily unavailable"),
        json_response(201, &fixtures::created_application_key()),
    ])
    .await;
    let logs = Logs::default();
    let guard = logs.collect();
    server
        .persistent()
        .applications()
        .api_keys("app_of_mine")
        .create("Key")
        .await
        .unwrap();
    drop(guard);
    let logs = logs.text();
    let span = "tollkey_call{method=\"POST\" route=\"/api/v1/applications/{id}/api-keys\"";
    for (attempt, status) in [(1, 503), (2, 201)] {
        let closed = format!(
            "{span} attempt={attempt} status={status} request_id=\"{REQUEST_ID}\"}}: tollkey_client"
        );
        assert!(logs.contains(&closed), "{closed}: {logs}");
    }
    assert!(
        logs.contains(
            "sending a call again attempt=1 error=503 unavailable: temporarily unavailable"
        ),
        "{logs}"
    );
    let ours: Vec<_> = logs
        .lines()
        .filter(|line| line.contains("tollkey_client::"))
        .collect();
    assert!(
        !ours.is_empty() && ours.iter().all(|line| !line.contains("app_of_mine")),
        "{ours:?}"
    );
}

#[tokio::test]
async fn debug_redacts_secrets_of_a_response() {
    let server = Server::responding(respond_with_new_keys).await;
    let created = server
        .client()
        .commerce()
        .api_keys()
        .create("Key")
        .await
        .unwrap();
    let text = format!("{created:?}");
    assert!(
        text.contains("api_key: Secret(redacted)") && text.contains("ck_test_EXAMPL"),
        "{text}"
    );
    assert_eq!(created.api_key.expose(), NEW_KEY);
    // A body that is not JSON.
    let server = Server::responding(response_with(
        201,
        "application/json",
        format!("{{\"api_key\": \"{NEW_KEY}\""),
    ))
    .await;
    let error = server
        .client()
        .commerce()
        .api_keys()
        .create("Key")
        .await
        .unwrap_err();
    let mut output = Output::default();
    output.error(&error);
    assert_unseen(&output.0, CANARY);
}
