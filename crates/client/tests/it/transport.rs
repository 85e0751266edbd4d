//! Causes of failed connections, on real sockets, and machines without CA certificates.

use std::{env, ffi::OsStr, fs, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tollkey_client::{Client, Error, ErrorKind};

use crate::{
    fixtures,
    support::{Server, builder, expect_error, json_response},
    tls::{Certificate, Http2Server, run_with_ca_certificates},
};

/// The time limit of a test.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the cause of a failed connection to this URL.
async fn cause(url: &str) -> String {
    let error = expect_error(builder(url).build().unwrap().whoami().await);
    assert_eq!(
        (error.kind(), error.is_connect()),
        (ErrorKind::Connect, true),
        "{error:?}"
    );
    assert!(!error.may_have_taken_effect());
    let text = error.to_string();
    assert!(
        !text.contains("localhost") && !text.contains("127.0.0.1"),
        "{text}"
    );
    text.strip_prefix("GET /api/v1/whoami: no connection: ")
        .expect("an error that names the call")
        .to_owned()
}

#[tokio::test]
async fn unknown_host_is_named_as_cause() {
    // Longer than the maximum length of a label (RFC 1035, section 2.3.4), so that the test needs no resolver.
    let host = "x".repeat(64);
    assert_eq!(
        cause(&format!("http://{host}.example.com")).await,
        "the host name cannot be resolved (DNS)"
    );
}

#[tokio::test]
async fn refused_connection_is_named_as_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for scheme in ["http", "https"] {
        let expected = "connection refused: no server listens on this host and port";
        assert_eq!(cause(&format!("{scheme}://{address}")).await, expected);
    }
}

/// Starts a listener that reads once from each connection, writes `text`, and closes the connection.
async fn listener_that_writes(text: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
            let _ = connection.write_all(text.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn server_without_tls_is_named_as_cause() {
    let port = listener_that_writes("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let expected = "the server does not use TLS on this port; should the URL begin with http://?";
    assert_eq!(cause(&format!("https://localhost:{port}")).await, expected);
}

#[tokio::test]
async fn connection_closed_in_the_handshake_is_named_as_cause() {
    let port = listener_that_writes("").await;
    let expected = "the server closed the connection during the handshake";
    assert_eq!(cause(&format!("https://localhost:{port}")).await, expected);
}

#[tokio::test]
async fn handshake_without_a_response_times_out() {
    // The system completes the TCP handshake, but no task accepts the connection.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let client = builder(&url)
        .connect_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = timeout(LIMIT, async { expect_error(client.whoami().await) })
        .await
        .unwrap();
    assert!(error.is_connect() && error.is_timeout());
    assert_eq!(
        error.to_string(),
        "GET /api/v1/whoami: no connection: connecting timed out"
    );
}

#[tokio::test]
async fn untrusted_certificate_is_named_as_cause() {
    let server = Http2Server::start(&Certificate::valid()).await;
    let expected = "the server's certificate is not trusted: its issuer is not among the certificate authorities of this \
                    machine";
    assert_eq!(
        cause(&format!("https://localhost:{}", server.address.port())).await,
        expected
    );
    assert_eq!(server.requests(), 0);
}

#[test]
fn fault_of_a_trusted_certificate_is_named_as_cause() {
    let directory = tempfile::tempdir().unwrap();
    for (name, host, from, to) in FAULTS.map(|(name, host, from, to, _)| (name, host, from, to)) {
        Certificate::new(host, from, to).write(&directory.path().join(name).with_extension("pem"));
    }
    let all = FAULTS.map(|(name, ..)| {
        fs::read_to_string(directory.path().join(name).with_extension("pem")).unwrap()
    });
    let file = directory.path().join("ca.crt");
    fs::write(&file, all.concat()).unwrap();
    run_with_ca_certificates(
        "transport::faults_of_trusted_certificates",
        Some(file.as_os_str()),
        None,
    );
}

/// Certificates, and the expected cause when a server at `localhost` has them.
const FAULTS: [(&str, &str, u16, u16, &str); 3] = [
    (
        "other-host",
        "keys.example.com",
        2020,
        2049,
        "the server's certificate is for another host name",
    ),
    (
        "expired",
        "localhost",
        2020,
        2021,
        "the server's certificate has expired",
    ),
    (
        "early",
        "localhost",
        2048,
        2049,
        "the server's certificate is not valid yet; is the clock of this machine correct?",
    ),
];

#[tokio::test]
#[ignore = "needs a process that trusts the certificates of its servers"]
async fn faults_of_trusted_certificates() {
    let directory = PathBuf::from(env::var_os("SSL_CERT_FILE").unwrap());
    for (name, .., expected) in FAULTS {
        let server =
            Http2Server::start(&Certificate::read_from(&directory.with_file_name(name))).await;
        assert_eq!(
            cause(&format!("https://localhost:{}", server.address.port())).await,
            expected
        );
    }
    // The server rejects the handshake because it supports none of the client's protocols.
    let certificate = Certificate::read_from(&directory.with_file_name("other-host"));
    let server = Http2Server::with_protocols(&certificate, &["another protocol"]).await;
    let url = format!("https://localhost:{}", server.address.port());
    assert_eq!(cause(&url).await, "the server rejected the TLS handshake");
}

#[test]
fn client_works_without_ca_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("ca.pem");
    fs::write(&empty, "").unwrap();
    let missing = directory.path().join("missing");
    let no_certificates = directory.path().join("certs");
    fs::create_dir(&no_certificates).unwrap();
    let (file, missing, certs): (&OsStr, &OsStr, &OsStr) = (
        empty.as_os_str(),
        missing.as_os_str(),
        no_certificates.as_os_str(),
    );
    for (file, certs) in [
        (Some(file), Some(certs)),
        (Some(file), None),
        (None, Some(certs)),
        (Some(missing), None),
    ] {
        run_with_ca_certificates("transport::without_ca_certificates", file, certs);
    }
}

#[tokio::test]
#[ignore = "needs a process without CA certificates"]
async fn without_ca_certificates() {
    let server = Server::responding(json_response(200, &fixtures::whoami())).await;
    let client = server.client();
    client.whoami().await.unwrap();
    client
        .with_new_connections()
        .unwrap()
        .whoami()
        .await
        .unwrap();
    tokio::task::spawn_blocking(move || client.whoami().send_blocking().unwrap())
        .await
        .unwrap();

    let set = |name| env::var_os(name).is_some();
    let expected = match (set("SSL_CERT_FILE"), set("SSL_CERT_DIR")) {
        (true, true) => {
            "found where SSL_CERT_FILE and SSL_CERT_DIR point to: correct or unset SSL_CERT_FILE and SSL_CERT_DIR"
        }
        (true, false) => {
            "found in the file that SSL_CERT_FILE names: correct or unset SSL_CERT_FILE"
        }
        (false, true) => {
            "found in the directories that SSL_CERT_DIR names: correct or unset SSL_CERT_DIR"
        }
        (false, false) => unreachable!("the parent sets one of them"),
    };
    let error: Error = expect_error(Client::new("https://keys.example.com"));
    assert_eq!(error.kind(), ErrorKind::Settings);
    let text = error.to_string();
    assert!(
        text.starts_with("base_url is https://, and no CA certificates") && text.contains(expected),
        "{text}"
    );
    assert!(text.ends_with("(ClientBuilder::http_client)"), "{text}");
    // An HTTP client of the caller needs no CA certificates.
    let own = tollkey_client::reqwest::Client::builder()
        .tls_certs_only([])
        .build()
        .unwrap();
    Client::builder()
        .base_url("https://keys.example.com")
        .http_client(own)
        .build()
        .unwrap();
}
