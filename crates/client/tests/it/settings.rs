//! The settings of a client, the arguments of its calls, and the traits of its types.

use std::{
    fmt::Debug,
    future::IntoFuture,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tollkey_client::{
    Auth, Client, ClientBuilder, Error, ErrorKind, Listing, Page, Request, Secret, VerifierId,
    account, applications, audit, commerce, operator, reqwest, subscription, verification,
};

use crate::{
    fixtures,
    support::{
        RawBehavior, Server, TOKEN, Wire, builder, expect_error, header, json_response, nothing,
        on_the_wire, only_header, target,
    },
};

fn me() -> wiremock::ResponseTemplate {
    json_response(200, &fixtures::whoami())
}

#[track_caller]
fn settings_error(builder: ClientBuilder) -> String {
    let error = expect_error(builder.build());
    assert_eq!(
        (error.kind(), error.attempts(), error.status()),
        (ErrorKind::Settings, 0, None)
    );
    error.to_string()
}

#[tokio::test]
async fn base_url_may_have_a_path() {
    let rows = [
        ("", "/api/v1/whoami"),
        ("/", "/api/v1/whoami"),
        ("/keys", "/keys/api/v1/whoami"),
        ("/keys/", "/keys/api/v1/whoami"),
        ("/keys/of/eu", "/keys/of/eu/api/v1/whoami"),
        ("/with%20blank", "/with%20blank/api/v1/whoami"),
        ("/api", "/api/api/v1/whoami"),
        ("/keys//", "/keys/api/v1/whoami"),
    ];
    for (path, expected) in rows {
        let server = Server::responding(me()).await;
        Client::new(format!("{}{path}", server.url()))
            .unwrap()
            .whoami()
            .await
            .unwrap();
        assert_eq!(target(&server.only_request().await), expected);
    }
}

#[test]
fn base_url_with_the_api_version_is_rejected() {
    for url in ["http://localhost/api/v1", "http://localhost/keys/api/v1/"] {
        assert_eq!(
            settings_error(builder(url)),
            "base_url must be without /api/v1"
        );
    }
}

#[tokio::test]
async fn base_url_is_normalized() {
    let server = Server::responding(me()).await;
    let host = server.url().trim_start_matches("http://").to_owned();
    let urls = [
        format!("HTTP://{host}"),
        format!(" http://{host} "),
        format!("http://{}", host.replace("127.0.0.1", "localhost")),
    ];
    for url in &urls {
        Client::new(url).unwrap().whoami().await.unwrap();
    }
    assert_eq!(server.requests().await.len(), urls.len());
}

#[test]
fn invalid_base_url_is_rejected_and_not_shown() {
    let rows = [
        "",
        "keys.example.com",
        "keys.example.com:8080",
        "//keys.example.com",
        "/api/v1",
        "ftp://keys.example.com",
        "unix:/run/tollkey.sock",
        "mailto:keys@example.com",
        "data:text/plain,x",
        "http://",
        "https://?",
        "http://keys.example.com?account=acme",
        "http://keys.example.com/#top",
        "http://hunter2@keys.example.com",
        "http://user:hunter2@keys.example.com",
        "http://:hunter2@keys.example.com",
        "http://keys.example.com:99999",
        "http://hunter2 .example.com",
    ];
    for url in rows {
        let text = settings_error(Client::builder().base_url(url));
        assert_eq!(
            text,
            "base_url must be http:// or https:// with a host and without credentials, query or fragment",
            "{url}"
        );
        let error = expect_error(Client::new(url));
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    assert_eq!(settings_error(Client::builder()), "base_url is not set");
}

#[tokio::test]
async fn user_agent_is_appended_to_the_name_of_the_crate() {
    let server = Server::responding(me()).await;
    server
        .builder()
        .user_agent("checkout/1.4 (eu)")
        .build()
        .unwrap()
        .whoami()
        .await
        .unwrap();
    let crate_agent = format!("tollkey-rust/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        only_header(&server.only_request().await, "user-agent"),
        format!("{crate_agent} checkout/1.4 (eu)")
    );
    for name in ["check\nout", "check\0out"] {
        let text = settings_error(server.builder().user_agent(name));
        assert_eq!(
            text,
            "user_agent has characters that a header value must not contain"
        );
    }
}

#[tokio::test]
async fn custom_headers_are_sent_with_every_call() {
    let server = Server::responding(me()).await;
    let builder = server
        .builder()
        .header("X-Team", "checkout")
        .header("x-route", "eu")
        .header("X-Route", "us");
    let client = builder
        .header("proxy-authorization", "Basic of the proxy")
        .build()
        .unwrap();
    client.whoami().await.unwrap();
    client
        .with_auth(Auth::bearer("another"))
        .with_timeout(Duration::from_secs(5))
        .whoami()
        .await
        .unwrap();
    let requests = server.requests().await;
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(header(&request, "x-team"), ["checkout"]);
        assert_eq!(header(&request, "x-route"), ["eu", "us"]);
        assert_eq!(
            header(&request, "proxy-authorization"),
            ["Basic of the proxy"]
        );
    }
}

#[test]
fn reserved_or_invalid_header_is_rejected() {
    let own = [
        "Authorization",
        "X-API-Key",
        "x-commerce-api-key",
        "User-Agent",
        "accept",
        "Content-Type",
        "content-length",
        "Host",
        "Idempotency-Key",
        "Connection",
        "Transfer-Encoding",
    ];
    for name in own {
        let text = settings_error(builder("http://localhost").header(name, "hunter2"));
        assert_eq!(text, format!("header {name:?} is set by the client itself"));
    }
    for name in ["", "with blank", "naïve", "a:b", "a\nb"] {
        let text = settings_error(builder("http://localhost").header(name, "hunter2"));
        assert_eq!(text, format!("header {name:?} is not a valid header name"));
    }
    for value in ["hunter2\nx: y", "hunter2\r\n", "hunter2\0"] {
        let error = expect_error(builder("http://localhost").header("x-team", value).build());
        assert_eq!(
            error.to_string(),
            "header \"x-team\" has characters that a header value must not contain"
        );
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    // The first error is reported, even if a later header is valid.
    let builder = builder("http://localhost")
        .header("host", "a")
        .header("a b", "c")
        .header("x-team", "d");
    assert_eq!(
        settings_error(builder),
        "header \"host\" is set by the client itself"
    );
}

#[tokio::test]
async fn client_without_a_credential_presents_none() {
    let server = Server::responding(me()).await;
    Client::new(server.url()).unwrap().whoami().await.unwrap();
    assert!(header(&server.only_request().await, "authorization").is_empty());
}

#[tokio::test]
async fn only_the_last_credential_is_presented() {
    let server = Server::responding(me()).await;
    let client = server
        .builder()
        .auth(Auth::key("ck_test_EXAMPLE1"))
        .build()
        .unwrap();
    let other = client.with_auth(Auth::service("tks_EXAMPLE1"));
    for client in [
        &client,
        &other,
        &other.with_auth(Auth::bearer(Secret::new("the third"))),
        &client.clone(),
    ] {
        client.whoami().await.unwrap();
    }
    let presented: Vec<_> = server
        .requests()
        .await
        .iter()
        .map(|request| only_header(request, "authorization"))
        .collect();
    let expected = [
        "Bearer ck_test_EXAMPLE1",
        "Bearer tks_EXAMPLE1",
        "Bearer the third",
        "Bearer ck_test_EXAMPLE1",
    ];
    assert_eq!(presented, expected);
}

#[tokio::test]
async fn derived_clients_share_connections() {
    let wire = Wire::that([RawBehavior::Serves(on_the_wire(
        "200 OK",
        "application/json",
        &fixtures::whoami(),
    ))])
    .await;
    let client = wire.builder().build().unwrap();
    client.whoami().await.unwrap();
    let derived = client
        .with_auth(Auth::bearer("another"))
        .for_account("acme")
        .with_max_retries(1);
    derived
        .with_timeout(Duration::from_secs(5))
        .whoami()
        .await
        .unwrap();
    client.clone().whoami().await.unwrap();
    assert_eq!((wire.raw_requests().len(), wire.connections()), (3, 1));
    // A client that is built separately has its own connections.
    wire.builder().build().unwrap().whoami().await.unwrap();
    assert_eq!((wire.raw_requests().len(), wire.connections()), (4, 2));
}

#[tokio::test]
async fn token_function_is_called_before_each_attempt() {
    let unavailable = || crate::support::problem(503, "unavailable", "temporarily unavailable");
    let server = Server::answering([unavailable(), unavailable(), me(), me()]).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let auth = Auth::from_fn(move || {
        let count = counter.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, io::Error>(Secret::new(format!("token {count}"))) }
    });
    let client = server.persistent().with_auth(auth);
    let call = client.whoami();
    assert_eq!(
        calls.load(Ordering::SeqCst),
        0,
        "the function is not called before the call is sent"
    );
    call.await.unwrap();
    client.clone().whoami().await.unwrap();
    let presented: Vec<_> = server
        .requests()
        .await
        .iter()
        .map(|request| only_header(request, "authorization"))
        .collect();
    assert_eq!(
        presented,
        [
            "Bearer token 0",
            "Bearer token 1",
            "Bearer token 2",
            "Bearer token 3"
        ]
    );
}

#[tokio::test]
async fn nothing_is_sent_without_a_token() {
    let server = Server::responding(me()).await;
    let auth = Auth::from_fn(|| async { Err::<Secret, _>("the identity provider is down") });
    let error = expect_error(server.persistent().with_auth(auth).whoami().await);
    assert_eq!(
        (error.kind(), error.attempts(), error.status()),
        (ErrorKind::Auth, 0, None)
    );
    assert_eq!(
        error.to_string(),
        "GET /api/v1/whoami: auth: the function returned no token"
    );
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "the identity provider is down"
    );
    assert!(server.requests().await.is_empty());
}

#[tokio::test]
async fn failing_token_function_ends_the_retries() {
    let server = Server::responding(crate::support::problem(
        503,
        "unavailable",
        "temporarily unavailable",
    ))
    .await;
    let calls = AtomicUsize::new(0);
    let auth = Auth::from_fn(move || {
        let count = calls.fetch_add(1, Ordering::SeqCst);
        async move {
            if count < 1 {
                Ok(Secret::new("the first"))
            } else {
                Err(io::Error::other("no more"))
            }
        }
    });
    let error = expect_error(server.persistent().with_auth(auth).whoami().await);
    assert_eq!((error.kind(), error.attempts()), (ErrorKind::Auth, 1));
    assert_eq!(server.requests().await.len(), 1);
}

#[tokio::test]
async fn slow_token_function_times_out() {
    let server = Server::responding(me()).await;
    let auth = Auth::from_fn(std::future::pending::<Result<Secret, io::Error>>);
    let client = server
        .builder()
        .timeout(Duration::from_millis(50))
        .auth(auth)
        .build()
        .unwrap();
    let error = expect_error(client.whoami().await);
    assert_eq!(
        (
            error.kind(),
            error.attempts(),
            error.may_have_taken_effect()
        ),
        (ErrorKind::Auth, 0, false)
    );
    assert!(server.requests().await.is_empty());
}

/// Credentials that cannot be presented, and the reason in the error.
const INVALID_CREDENTIALS: [(&str, &str); 17] = [
    ("", "is empty"),
    (" \n", "contains only white space"),
    (
        "hunter2\n",
        "ends with a line break; was it read from a file? trim it",
    ),
    (
        "hunter2\r\n",
        "ends with a line break; was it read from a file? trim it",
    ),
    (
        "hunter2\r",
        "ends with a line break; was it read from a file? trim it",
    ),
    (
        "\nhunter2",
        "begins with a line break; was it read from a file? trim it",
    ),
    ("hunter2 ", "ends with white space; trim it"),
    ("\thunter2", "begins with white space; trim it"),
    ("hunter2\u{a0}", "ends with white space; trim it"),
    ("\"hunter2\"", "is in quotation marks; remove them"),
    ("'hunter2'", "is in quotation marks; remove them"),
    (
        "hunter2\r\nx: y",
        "contains a line break; is it more than one credential?",
    ),
    ("hunter2\0x", "contains a control character"),
    ("hunter2\x7fx", "contains a control character"),
    ("h\u{fc}nter2", "contains a character that is not ASCII"),
    (
        "Bearer hunter2",
        "begins with \"Bearer\", which the client adds itself; remove it",
    ),
    (
        "bearer hunter2",
        "begins with \"Bearer\", which the client adds itself; remove it",
    ),
];

/// Asserts that an error contains no credential.
#[track_caller]
fn assert_redacted(error: &Error) {
    assert!(
        !format!("{error} {error:?} {error:#?}").contains("hunter2"),
        "{error:?}"
    );
}

#[tokio::test]
async fn invalid_credential_is_not_sent() {
    let server = Server::responding(me()).await;
    let client = server.persistent();
    for (credential, fault) in INVALID_CREDENTIALS {
        let function =
            Auth::from_fn(move || async move { Ok::<_, io::Error>(Secret::new(credential)) });
        for (auth, name) in [
            (Auth::service(credential), "the service key"),
            (Auth::key(credential), "the API key"),
            (Auth::bearer(credential), "the token"),
            (function, "the token"),
        ] {
            let error = expect_error(client.with_auth(auth).whoami().await);
            assert_eq!((error.kind(), error.attempts()), (ErrorKind::Argument, 0));
            assert_eq!(
                error.to_string(),
                format!("GET /api/v1/whoami: auth: {name} {fault}")
            );
            assert_redacted(&error);
        }
    }
    assert!(server.requests().await.is_empty());
}

#[test]
fn client_with_an_invalid_credential_is_not_built() {
    for (credential, fault) in INVALID_CREDENTIALS {
        let error = expect_error(
            builder("http://localhost")
                .auth(Auth::key(credential))
                .build(),
        );
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Settings, format!("auth: the API key {fault}"))
        );
        assert_redacted(&error);
        let error = expect_error(
            builder("http://localhost")
                .service_auth(Auth::service(credential))
                .build(),
        );
        assert_eq!(
            error.to_string(),
            format!("service_auth: the service key {fault}")
        );
        assert_redacted(&error);
    }
    // A function is only called when a call is sent, so its credential is not checked here.
    let function = Auth::from_fn(|| async { Ok::<_, io::Error>(Secret::new("hunter2\n")) });
    builder("http://localhost").auth(function).build().unwrap();
}

#[test]
fn zero_timeout_is_rejected() {
    let zero = Duration::ZERO;
    assert_eq!(
        settings_error(builder("http://localhost").timeout(zero)),
        "timeout must not be zero"
    );
    assert_eq!(
        settings_error(builder("http://localhost").connect_timeout(zero)),
        "connect_timeout must not be zero"
    );
}

#[tokio::test]
async fn each_client_has_its_own_timeout() {
    let server = Server::responding(me().set_delay(Duration::from_millis(300))).await;
    let client = server
        .builder()
        .timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    assert!(expect_error(client.whoami().await).is_timeout());
    client
        .with_timeout(Duration::from_secs(10))
        .whoami()
        .await
        .unwrap();
    assert!(expect_error(client.whoami().await).is_timeout());
}

/// A listener with a full queue: a further connection gets no response.
#[cfg(target_os = "linux")]
async fn full_listener() -> (tokio::net::TcpListener, Vec<std::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..64 {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(connection) => waiting.push(connection),
            Err(_) => return (listener, waiting),
        }
    }
    panic!("the queue is not full after 64 connections");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn connect_timeout_limits_connecting() {
    let (listener, _waiting) = full_listener().await;
    let url = format!("http://{}", listener.local_addr().unwrap());
    let started = Instant::now();
    let client = builder(&url)
        .connect_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let error = expect_error(client.whoami().await);
    assert_eq!(error.kind(), ErrorKind::Connect, "{error:?}");
    assert!(error.is_timeout() && error.is_connect());
    assert_eq!(
        error.to_string(),
        "GET /api/v1/whoami: no connection: connecting timed out"
    );
    // Much less than the default of three seconds.
    assert!(
        started.elapsed() < Duration::from_millis(2500),
        "{:?}",
        started.elapsed()
    );

    // The timeout of an attempt includes connecting.
    let client = builder(&url)
        .timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let started = Instant::now();
    assert!(expect_error(client.whoami().await).is_timeout());
    assert!(
        started.elapsed() < Duration::from_millis(2500),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn http_client_of_the_caller_is_used() {
    let server = Server::responding(me().set_delay(Duration::from_millis(300))).await;
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("x-custom", "yes".parse().unwrap());
    let own = || {
        reqwest::Client::builder()
            .default_headers(headers.clone())
            .user_agent("not this")
    };
    let client = server
        .builder()
        .http_client(own().build().unwrap())
        .build()
        .unwrap();
    client.whoami().await.unwrap();
    let request = server.only_request().await;
    assert_eq!(only_header(&request, "x-custom"), "yes");
    assert_eq!(
        only_header(&request, "authorization"),
        format!("Bearer {TOKEN}")
    );
    assert_eq!(
        only_header(&request, "user-agent"),
        format!("tollkey-rust/{}", env!("CARGO_PKG_VERSION"))
    );
    // Its own timeout applies too.
    let own = own().timeout(Duration::from_millis(50)).build().unwrap();
    let error = expect_error(
        server
            .builder()
            .http_client(own)
            .build()
            .unwrap()
            .whoami()
            .await,
    );
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
}

/// A call and the name of one of its arguments.
type Named = (
    &'static str,
    futures_util::future::BoxFuture<'static, Result<(), Error>>,
);

fn call<T: Send + 'static>(
    name: &'static str,
    call: impl IntoFuture<Output = Result<T, Error>, IntoFuture: Send + 'static>,
) -> Named {
    let call = call.into_future();
    (name, Box::pin(async move { call.await.map(drop) }))
}

/// Every call with `id` in its path, and the name of the path parameter.
fn with_id(client: &Client, id: &str) -> Vec<Named> {
    let (apps, keys, account) = (
        client.applications(),
        client.commerce().api_keys(),
        client.account().api_keys(),
    );
    vec![
        call("id", apps.get(id)),
        call("id", apps.update(id)),
        call("id", apps.enable(id)),
        call("id", apps.disable(id)),
        call("id", apps.delete(id)),
        call("id", apps.api_keys(id).create("Key")),
        call("id", apps.api_keys(id).list()),
        call("id", apps.api_keys(id).revoke("key")),
        call("keyId", apps.api_keys("app").revoke(id)),
        call("id", keys.get(id)),
        call("id", keys.update(id)),
        call("id", keys.revoke(id)),
        call("id", keys.suspend(id)),
        call("id", keys.resume(id)),
        call("id", keys.rotate(id)),
        call("id", account.revoke(id)),
        call("id", account.delete(id)),
        call("id", client.accounts().get(id)),
        call(
            "id",
            client
                .accounts()
                .set_operating_model(id, tollkey_client::OperatingModel::Platform),
        ),
        call("id", client.service_keys().revoke(id)),
    ]
}

#[tokio::test]
async fn invalid_id_is_not_sent() {
    let server = Server::responding(nothing()).await;
    let long = "x".repeat(257);
    let ascii = "must be at most 256 printable ASCII characters";
    let dots = "must not be `.` or `..`";
    let rows = [
        ("", "must not be empty"),
        (".", dots),
        ("..", dots),
        (" ", ascii),
        ("a b", ascii),
        ("a\n", ascii),
        ("a\tb", ascii),
        ("a\0b", ascii),
        ("schlüssel", ascii),
        (long.as_str(), ascii),
    ];
    for (id, rule) in rows {
        for (name, call) in with_id(&server.persistent(), id) {
            let error = expect_error(call.await);
            assert_eq!(
                (error.kind(), error.attempts()),
                (ErrorKind::Argument, 0),
                "{id:?}"
            );
            assert!(
                error.to_string().ends_with(&format!(": {name}: {rule}")),
                "{id:?}: {error}"
            );
        }
    }
    assert!(server.requests().await.is_empty());
}

/// Fake credentials, and the kind that the error names.
fn credentials() -> Vec<(String, &'static str)> {
    let random = "hunter2EXAMPLE".repeat(2) + "1234";
    let mut credentials: Vec<_> = ["ck_live_", "ks_test_", "sk_live_", "pk_test_"]
        .iter()
        .map(|prefix| (format!("{prefix}{random}"), "an API key"))
        .collect();
    credentials.push((format!("tks_{random}"), "a service key"));
    credentials.push((
        ["eyJhbGciOiJFUzI1NiJ9", "eyJzdWIiOiJFWEFNUExFIn0", &random].join("."),
        "a token (JWT)",
    ));
    credentials.push((format!("Bearer sk_test_{random}"), "an API key"));
    credentials.push((format!(" ck_test_{random}\n"), "an API key"));
    credentials
}

/// Every call with `text` as a query parameter, and the name of the parameter.
fn with_query_value(client: &Client, text: &str) -> Vec<Named> {
    let (account, other) = (client.account(), client.for_account(text));
    vec![
        call("account", other.applications().create("Shop")),
        call("account", other.applications().api_keys("app").list()),
        call("account", other.commerce().api_keys().list()),
        call("account", other.account().api_keys().list()),
        call("account", other.account().audit_log().list()),
        call("account", other.audit_log().list()),
        call("cursor", client.commerce().api_keys().list().cursor(text)),
        call("cursor", account.api_keys().list().cursor(text)),
        call("cursor", account.audit_log().list().cursor(text)),
        call("action", account.audit_log().list().action(text)),
        call("cursor", client.audit_log().list().cursor(text)),
        call("action", client.audit_log().list().action(text)),
        call("target_id", client.audit_log().list().target_id(text)),
        call("actor_id", client.audit_log().list().actor_id(text)),
    ]
}

#[tokio::test]
async fn credential_in_place_of_an_id_is_not_sent() {
    let server = Server::responding(nothing()).await;
    let client = server.persistent();
    for (credential, kind) in credentials() {
        for (name, call) in with_id(&client, &credential)
            .into_iter()
            .chain(with_query_value(&client, &credential))
        {
            let error = expect_error(call.await);
            assert_eq!(
                (error.kind(), error.attempts()),
                (ErrorKind::Argument, 0),
                "{credential}"
            );
            let rule = format!(
                "{name}: looks like {kind}, and a URL must not contain a credential; nothing was sent"
            );
            assert!(
                error.to_string().ends_with(&format!(": {rule}")),
                "{credential}: {error}"
            );
            assert_redacted(&error);
        }
        // Builders that contain the credential redact it in `Debug`.
        let keys = client.applications().api_keys(&credential);
        let list = client
            .audit_log()
            .list()
            .target_id(&credential)
            .actor_id(&credential)
            .cursor(&credential);
        let text = format!(
            "{:?} {keys:?} {:?} {list:?}",
            client.for_account(&credential),
            keys.list()
        );
        assert!(
            !text.contains("hunter2") && text.contains("redacted"),
            "{text}"
        );
    }
    assert!(server.requests().await.is_empty());
}

#[tokio::test]
async fn ids_that_resemble_credentials_are_sent() {
    let server = Server::responding(json_response(200, &json!([]))).await;
    let client = server.client();
    let ids = [
        "tks_holding",
        "pk_live",
        "ck_live_a1B2c3",
        "eyJ.a.b",
        "key_01K30DW000E008000000000002",
        fixtures::KEY,
    ];
    for id in ids {
        for (name, call) in with_id(&client, id)
            .into_iter()
            .chain(with_query_value(&client, id))
        {
            // The response has the wrong shape for most calls.
            let argument = call
                .await
                .err()
                .filter(|error| error.kind() == ErrorKind::Argument);
            assert!(argument.is_none(), "{id}: {name}: {argument:?}");
        }
    }
    let calls = with_id(&client, "id").len() + with_query_value(&client, "text").len();
    assert_eq!(server.requests().await.len(), ids.len() * calls);
}

#[tokio::test]
async fn id_is_escaped_to_one_segment() {
    let rows = [
        ("a/b", "a%2Fb"),
        ("../accounts", "..%2Faccounts"),
        ("a?account=other", "a%3Faccount=other"),
        ("a#b", "a%23b"),
        ("a%2Fb", "a%252Fb"),
        ("%2e%2e", "%252e%252e"),
        ("%", "%25"),
        ("a\\b", "a%5Cb"),
        ("...", "..."),
        ("a;b=c", "a;b=c"),
        ("acme:eu@x.y-z_1", "acme:eu@x.y-z_1"),
        (
            "key_01K30DW000E008000000000002",
            "key_01K30DW000E008000000000002",
        ),
    ];
    // On a raw socket, because the mock server parses URLs itself.
    let wire = Wire::that([RawBehavior::HangsUp]).await;
    let client = wire.builder().build().unwrap();
    for (id, segment) in rows {
        expect_error(client.accounts().get(id).await);
        let raw_requests = wire.raw_requests();
        let line = raw_requests.last().unwrap().lines().next().unwrap();
        assert_eq!(line, format!("GET /api/v1/accounts/{segment} HTTP/1.1"));
    }
    let longest = "x".repeat(256);
    expect_error(client.applications().api_keys("a/b").revoke(&longest).await);
    let raw_requests = wire.raw_requests();
    let line = raw_requests.last().unwrap().lines().next().unwrap();
    assert_eq!(
        line,
        format!("DELETE /api/v1/applications/a%2Fb/api-keys/{longest} HTTP/1.1")
    );
    for (_, call) in with_id(&client, "../../whoami") {
        expect_error(call.await);
        let raw_requests = wire.raw_requests();
        let path = raw_requests.last().unwrap().split(' ').nth(1).unwrap();
        assert!(path.contains("/..%2F..%2Fwhoami"), "{path}");
    }
}

#[tokio::test]
async fn call_is_sent_only_when_awaited() {
    let server = Server::responding(me()).await;
    let client = server.client();
    let call = client.whoami();
    drop(client.applications().create("Shop"));
    drop(client.whoami().into_future());
    assert!(server.requests().await.is_empty());
    call.send().await.unwrap();
    assert_eq!(server.requests().await.len(), 1);
}

#[tokio::test]
async fn call_outlives_its_client_and_arguments() {
    let server = Server::responding(json_response(201, &fixtures::created_application_key())).await;
    let call = {
        let (name, app) = ("Primary checkout key".to_owned(), "app".to_owned());
        let client = server.client();
        let keys = client.applications().api_keys(&app);
        drop(client);
        keys.create(&name)
    };
    let created = tokio::spawn(call.into_future()).await.unwrap().unwrap();
    assert_eq!(created.full_key.expose(), "ks_test_EXAMPLE1");
    // `api_keys(id)` can be moved into another task as well.
    let keys = server.client().applications().api_keys("app");
    let created = tokio::spawn(async move { keys.create("Another").await })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(created.id, fixtures::KEY);
}

#[tokio::test]
async fn concurrent_calls_share_one_client() {
    let server = Server::responding(json_response(200, &fixtures::invalid("expired"))).await;
    let client = server.client();
    let calls = (0..50).map(|number| client.verify(format!("ck_test_EXAMPLE{number}")).send());
    for verdict in futures_util::future::join_all(calls).await {
        assert_eq!(verdict.unwrap().code(), "expired");
    }
    assert_eq!(server.requests().await.len(), 50);
}

#[test]
fn types_can_be_sent_between_threads() {
    fn assert_clone<T: Send + Sync + Clone + Debug + 'static>() {}
    fn assert_sync<T: Send + Sync + Debug + 'static>() {}
    fn assert_send<T: Send + Debug + 'static>() {}
    assert_clone::<Client>();
    assert_clone::<ClientBuilder>();
    assert_clone::<Auth>();
    assert_clone::<Secret>();
    assert_clone::<ErrorKind>();
    assert_sync::<Error>();
    assert_clone::<Request<()>>();
    assert_clone::<Request<verification::WhoAmI>>();
    assert_clone::<Page<commerce::Key>>();
    assert_send::<Listing<commerce::Key>>();

    assert_clone::<applications::Applications>();
    assert_clone::<applications::ApiKeys>();
    assert_clone::<applications::CreateApplication>();
    assert_clone::<applications::ListApplications>();
    assert_clone::<applications::UpdateApplication>();
    assert_clone::<applications::CreateKey>();
    assert_clone::<applications::ListKeys>();
    assert_clone::<commerce::Commerce>();
    assert_clone::<commerce::ApiKeys>();
    assert_clone::<commerce::CreateKey>();
    assert_clone::<commerce::ListKeys>();
    assert_clone::<commerce::UpdateKey>();
    assert_clone::<commerce::RevokeKey>();
    assert_clone::<commerce::RotateKey>();
    assert_clone::<account::Account>();
    assert_clone::<account::ApiKeys>();
    assert_clone::<account::CreateKey>();
    assert_clone::<account::ListKeys>();
    assert_clone::<account::AuditLog>();
    assert_clone::<account::ListAuditLog>();
    assert_clone::<audit::AuditLog>();
    assert_clone::<audit::ListAuditLog>();
    assert_clone::<operator::Accounts>();
    assert_clone::<operator::ServiceKeys>();
    assert_clone::<operator::CreateServiceKey>();
    assert_clone::<subscription::Subscription>();
    assert_clone::<subscription::Poll>();
    assert_clone::<verification::VerificationRequest>();
    assert_clone::<verification::Verify>();
    assert_clone::<verification::VerifyBatch>();
    assert_clone::<verification::Introspect>();

    assert_clone::<applications::CreatedKey>();
    assert_clone::<commerce::CreatedKey>();
    assert_clone::<account::CreatedKey>();
    assert_clone::<operator::CreatedServiceKey>();
    assert_clone::<verification::VerifyResponse>();
    assert_clone::<subscription::LookupResponse>();
}

#[test]
fn error_is_small_and_can_be_boxed() {
    assert_eq!(size_of::<Error>(), size_of::<usize>());
    fn boxed() -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Client::new("nowhere")?)
    }
    assert!(boxed().is_err());
}

#[tokio::test]
async fn account_is_sent_only_by_the_derived_client() {
    let server = Server::responding(json_response(200, &json!([]))).await;
    let client = server.client();
    let other = client.for_account("acme").for_account("b&c=d");
    other.commerce().api_keys().list().await.unwrap();
    client.commerce().api_keys().list().await.unwrap();
    let targets: Vec<_> = server.requests().await.iter().map(target).collect();
    assert_eq!(
        targets,
        [
            "/api/v1/api-keys?account=b%26c%3Dd&scope=commerce",
            "/api/v1/api-keys?scope=commerce"
        ]
    );
}

#[tokio::test]
async fn subscriber_is_sent_as_hexadecimal_digits() {
    let server = Server::responding(json_response(200, &fixtures::news())).await;
    server
        .client()
        .subscription()
        .poll(VerifierId::from_bytes([0xab; 16]))
        .await
        .unwrap();
    let body: serde_json::Value = server.only_request().await.body_json().unwrap();
    assert_eq!(body["subscriber"], "ab".repeat(16));
}
