//! What logs, spans, errors and `Debug` never show.

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
    verification::Question,
};
use tracing_subscriber::{
    Layer as _, filter::dynamic_filter_fn, fmt::format::FmtSpan, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use wiremock::{Request, ResponseTemplate};

use crate::{
    said,
    support::{
        Does, REQUEST_ID, Server, Wire, answer, builder, header, json_answer, on_the_wire, problem,
        target,
    },
};

/// In everything that must not be seen.
const CANARY: &str = "CANARY";
/// Secrets of these tests; each holds the canary.
const TOKEN: &str = "tokenCANARY1";
const SERVICE_KEY: &str = "tks_CANARY2";
const SECRET_KEY: &str = "sk_test_CANARY3";
const PRESENTED: &str = "ck_test_CANARY4";
const NEW_KEY: &str = "ck_test_CANARY5";
const IDEMPOTENCY_KEY: &str = "order 4711 CANARY6";
const HEADER: &str = "headerCANARY7";
const ASKED_FOR: &str = "asked forCANARY8";

/// Everything that is logged on a thread, whoever logs it and however finely.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

thread_local! {
    /// What collects on this thread.
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

/// Until it is dropped, everything is collected.
struct Collecting;

impl Drop for Collecting {
    fn drop(&mut self) {
        COLLECTOR.set(None);
    }
}

impl Logs {
    fn collect(&self) -> Collecting {
        // One for the whole process, with what comes through the crate `log`. With one for each thread, what a place in
        // the code is asked first on another thread would decide for all whether it logs.
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

/// Everything that is shown of values.
#[derive(Default)]
struct Shown(String);

impl Shown {
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

    /// What a call answered, whatever that is; and that call.
    fn outcome<T: Debug>(&mut self, outcome: &Result<T, Error>) {
        match outcome {
            Ok(answer) => self.value(answer),
            Err(error) => self.error(error),
        }
    }
}

/// A server with the texts of new keys.
fn generous(request: &Request) -> ResponseTemplate {
    let created = |mut body: serde_json::Value, member: &str| {
        body[member] = json!(NEW_KEY);
        body
    };
    let target = target(request);
    let path = target.split('?').next().unwrap();
    let (status, body) = match (request.method.as_str(), path) {
        ("POST", "/api/v1/applications") => (201, said::application()),
        ("POST", "/api/v1/applications/app/api-keys") => {
            (201, created(said::created_application_key(), "fullKey"))
        }
        ("POST", "/api/v1/api-keys" | "/api/v1/api-keys/key/rotate") => {
            (201, created(said::created_commerce_key(), "api_key"))
        }
        ("POST", "/api/v1/account/api-keys") => (
            201,
            said::envelope(&created(said::created_account_key(), "value")),
        ),
        ("POST", "/api/v1/service-keys") => (201, created(said::created_service_key(), "key")),
        ("POST", "/api/v1/verify") => (200, said::valid()),
        ("POST", "/api/v1/verify/batch") => (
            200,
            json!({"results": [said::valid(), said::invalid("revoked")]}),
        ),
        ("POST", "/api/v1/introspect") => (200, said::introspected()),
        ("GET", "/api/v1/whoami") => (200, said::whoami()),
        ("POST", "/api/v1/sync/lookup") => (200, said::found()),
        ("POST", "/api/v1/sync") => (200, said::news()),
        _ => return problem(404, "not_found", "there is no such thing"),
    };
    json_answer(status, &body)
}

/// Every call that has a secret in it or in its answer, well or badly.
async fn story(client: &Client, shown: &mut Shown) {
    macro_rules! tell {
        ($call:expr) => {{
            let call = $call;
            shown.value(&call);
            shown.outcome(&call.await);
        }};
    }
    shown.value(client);
    tell!(
        client
            .applications()
            .create("Shop")
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    tell!(
        client
            .applications()
            .api_keys("app")
            .create("Key")
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    tell!(
        client
            .commerce()
            .api_keys()
            .create("Key")
            .scopes([Scope::LINKS_READ])
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    tell!(client.commerce().api_keys().create("Key"));
    tell!(
        client
            .commerce()
            .api_keys()
            .rotate("key")
            .idempotency_key(IDEMPOTENCY_KEY)
    );
    let service_keys = client.service_keys();
    tell!(
        service_keys
            .create("gateway")
            .idempotency_key(IDEMPOTENCY_KEY)
    );

    let account = client.with_auth(Auth::key(SECRET_KEY));
    shown.value(&account);
    tell!(
        account
            .account()
            .api_keys()
            .create("CI", Mode::Test, Access::Secret)
            .idempotency_key(IDEMPOTENCY_KEY)
    );

    let service = client.with_auth(Auth::service(SERVICE_KEY));
    tell!(
        service
            .verify(PRESENTED)
            .method("GET")
            .path("/tokens")
            .client_ip([203, 0, 113, 7])
    );
    tell!(service.introspect(PRESENTED).scopes([Scope::LINKS_READ]));
    let question = Question::new(PRESENTED).merchant("merchant_42");
    shown.value(&question);
    tell!(service.verify_batch([question, Question::new(PRESENTED)]));
    tell!(service.subscription().lookup(Digest::of(PRESENTED)));
    tell!(
        service
            .subscription()
            .poll(VerifierId::from_bytes([7; 16]))
            .cursor("a-6")
    );

    tell!(client.with_auth(Auth::key(PRESENTED)).whoami());
    tell!(client.with_auth(Auth::key(PRESENTED)).revoke_self());
    let asked = Auth::from_fn(|| async { Ok::<_, io::Error>(Secret::new(ASKED_FOR)) });
    shown.value(&asked);
    tell!(client.with_auth(asked).whoami());

    // What is refused before it is sent.
    tell!(
        client
            .applications()
            .create("Shop")
            .idempotency_key("CANARY")
    );
    tell!(
        client
            .applications()
            .create("Shop")
            .idempotency_key("CANARY with a \"quote\"")
    );
    tell!(client.with_auth(Auth::bearer("CANARY\n")).whoami());
    for value in [
        client.applications().api_keys("app").list().items(),
        client.applications().api_keys("app").list().items(),
    ] {
        shown.value(&value);
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

/// The story with that HTTP client, all of whose parties are told on.
async fn told(http: reqwest::Client, expected: &[&str]) {
    let logs = Logs::default();
    let mut shown = Shown::default();
    let server = Server::responding(generous).await;
    let guard = logs.collect();
    let builder = server
        .builder()
        .auth(Auth::bearer(TOKEN))
        .header("x-team", HEADER)
        .http_client(http);
    shown.value(&builder);
    story(&builder.build().unwrap(), &mut shown).await;
    drop(guard);

    let (logs, shown) = (logs.text(), shown.0);
    // All of them were heard.
    for target in expected {
        assert!(logs.contains(target), "nothing was heard of {target}");
    }
    let asked = server.asked().await;
    // And all secrets were there to be seen.
    let sent: String = asked
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
        ASKED_FOR,
    ] {
        assert!(sent.contains(secret), "{secret} was not sent");
    }
    for text in [&logs, &shown] {
        assert_unseen(text, CANARY);
        assert_unseen(text, &Digest::of(PRESENTED).hex().to_string());
        let random = asked
            .iter()
            .flat_map(|request| header(request, "idempotency-key"));
        random.for_each(|key| assert_unseen(text, key));
    }
    assert!(shown.contains("redacted"), "{shown}");
}

#[tokio::test]
async fn nobody_logs_a_secret() {
    let http = reqwest::Client::builder().build().unwrap();
    told(
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
async fn nobody_logs_a_secret_over_http_2() {
    let http = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    told(
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
async fn nobody_logs_a_secret_of_a_call_that_fails() {
    let logs = Logs::default();
    let mut shown = Shown::default();
    let guard = logs.collect();
    // An answer that holds a new key and cannot be read, one that breaks off behind the key, none at all, and silence.
    let mut created = said::created_commerce_key();
    created["api_key"] = json!(NEW_KEY);
    let whole = on_the_wire("201 Created", "application/json", &created);
    created["expires_at"] = json!(NEW_KEY);
    let broken = on_the_wire("201 Created", "application/json", &created);
    let cut = whole[..whole.find(NEW_KEY).unwrap() + NEW_KEY.len()].to_owned();
    let redirect =
        format!("HTTP/1.1 307 Elsewhere\r\nlocation: /{NEW_KEY}\r\ncontent-length: 0\r\n\r\n");
    let page =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 8\r\n\r\n{NEW_KEY}");
    let all = [
        Does::Says(broken),
        Does::Says(cut),
        Does::HangsUp,
        Does::Stalls(String::new()),
        Does::Says(redirect),
        Does::Says(page),
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
        shown.outcome(&outcome);
        shown.outcome(&client.verify(PRESENTED).await);
        assert!(wire.heard().iter().all(|request| request.contains(TOKEN)));
    }
    // Nobody there.
    let client = builder("http://127.0.0.1:1")
        .auth(Auth::bearer(TOKEN))
        .max_retries(2)
        .build()
        .unwrap();
    shown.outcome(&client.verify(PRESENTED).await);
    drop(guard);

    let (logs, shown) = (logs.text(), shown.0);
    assert!(logs.contains("sending a call again"), "{logs}");
    assert_unseen(&logs, CANARY);
    assert_unseen(&shown, CANARY);
}

#[tokio::test]
async fn what_cannot_be_a_client_shows_nothing_either() {
    let mut shown = Shown::default();
    let good = || builder("http://127.0.0.1:1").auth(Auth::bearer(TOKEN));
    let wrong = [
        good().base_url("http://somebody:CANARY@127.0.0.1:1"),
        good().base_url("http://127.0.0.1:1/?token=CANARY"),
        good().header("authorization", "CANARY"),
        good().header("x-team", "CANARY\n"),
        good().user_agent("CANARY\n"),
    ];
    for builder in wrong {
        shown.value(&builder);
        shown.error(&builder.build().unwrap_err());
    }
    assert_unseen(&shown.0, CANARY);
}

#[tokio::test]
async fn clients_and_credentials_show_that_there_is_one() {
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

/// The first request on a connection of HTTP/2, as far as its headers go: how each is written (RFC 7541, section 6), as
/// the index of its name in the static table and whether no table may ever hold it.
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

/// An integer with so many bits in its first byte.
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
async fn credentials_are_written_so_that_no_table_of_http_2_may_hold_them() {
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
    // `authorization` is 23 in the static table. The Idempotency-Key and the header of one's own have no place there.
    assert_eq!(never.len(), 3, "{headers:?}");
    assert!(
        never.contains(&23) && never.iter().filter(|name| **name == 0).count() == 2,
        "{headers:?}"
    );
    // Others may be held: user-agent, content-type and so on.
    assert!(headers.len() > 6, "{headers:?}");
}

#[tokio::test]
async fn each_attempt_is_a_span_with_what_it_was() {
    let server = Server::answering([
        problem(503, "unavailable", "temporarily unavailable"),
        json_answer(201, &said::created_application_key()),
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
async fn an_answer_with_a_secret_shows_only_that_there_is_one() {
    let server = Server::responding(generous).await;
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
    // One whose body is not even JSON.
    let server = Server::responding(answer(
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
    let mut shown = Shown::default();
    shown.error(&error);
    assert_unseen(&shown.0, CANARY);
}
