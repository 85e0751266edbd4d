//! Servers with TLS, and processes that trust their certificates.

use std::{
    env,
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::fixtures;

/// A self-signed certificate and its private key.
pub struct Certificate {
    der: Vec<u8>,
    private_key: Vec<u8>,
}

impl Certificate {
    /// Creates one for this host name, valid from and to the start of these years.
    pub fn new(host: &str, from: u16, to: u16) -> Self {
        let private_key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        // RFC 5280, section 4.1.
        let ecdsa_with_sha256 =
            sequence(&[object_id(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02])]);
        let common_name = sequence(&[
            object_id(&[0x55, 0x04, 0x03]),
            der(0x0c, format!("EXAMPLE {from}").as_bytes()),
        ]);
        let name = sequence(&[der(0x31, &common_name)]);
        let time = |year: u16| der(0x17, format!("{:02}0101000000Z", year % 100).as_bytes());
        let ec_public_key = object_id(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]);
        let prime256v1 = object_id(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]);
        let public_key = bit_string(private_key.public_key().as_ref());
        let alt_names = der(0x04, &sequence(&[der(0x82, host.as_bytes())]));
        let extension = sequence(&[object_id(&[0x55, 0x1d, 0x11]), alt_names]);
        let to_be_signed = sequence(&[
            der(0xa0, &der(0x02, &[2])), // version 3
            der(0x02, &[1]),
            ecdsa_with_sha256.clone(),
            name.clone(),
            sequence(&[time(from), time(to)]),
            name,
            sequence(&[sequence(&[ec_public_key, prime256v1]), public_key]),
            der(0xa3, &sequence(&[extension])),
        ]);
        let signature = private_key
            .sign(&SystemRandom::new(), &to_be_signed)
            .unwrap();
        let der = sequence(&[
            to_be_signed,
            ecdsa_with_sha256,
            bit_string(signature.as_ref()),
        ]);
        Self {
            der,
            private_key: private_key.to_pkcs8v1().unwrap().as_ref().to_vec(),
        }
    }

    /// Creates one for `localhost` that is valid while these tests are in use.
    pub fn valid() -> Self {
        Self::new("localhost", 2020, 2049)
    }

    /// Writes the certificate to a `.pem` file, as a CA certificate, and the private key to a `.key` file beside it.
    pub fn write(&self, file: &Path) {
        fs::write(file.with_extension("pem"), self.pem()).unwrap();
        fs::write(file.with_extension("key"), &self.private_key).unwrap();
    }

    /// Reads the certificate that this process trusts, which its parent wrote.
    pub fn read() -> Self {
        Self::read_from(Path::new(
            &env::var_os("SSL_CERT_FILE").expect("SSL_CERT_FILE is set by the parent"),
        ))
    }

    /// Reads what [`write`](Self::write) wrote.
    pub fn read_from(file: &Path) -> Self {
        let pem = fs::read_to_string(file.with_extension("pem")).unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let private_key = fs::read(file.with_extension("key")).unwrap();
        Self {
            der: BASE64_STANDARD.decode(base64).unwrap(),
            private_key,
        }
    }

    pub fn pem(&self) -> String {
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            BASE64_STANDARD.encode(&self.der)
        )
    }

    fn acceptor(&self, protocols: &[&str]) -> TlsAcceptor {
        let private_key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.private_key.clone()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let certificates = vec![CertificateDer::from(self.der.clone())];
        let mut config = builder
            .with_no_client_auth()
            .with_single_cert(certificates, private_key)
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let mut bytes = match length {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    bytes.extend_from_slice(content);
    bytes
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    der(0x30, &parts.concat())
}

fn object_id(bytes: &[u8]) -> Vec<u8> {
    der(0x06, bytes)
}

fn bit_string(bytes: &[u8]) -> Vec<u8> {
    der(0x03, &[&[0], bytes].concat())
}

/// An HTTP/2 server with TLS that responds to every request with [`fixtures::whoami`].
pub struct Http2Server {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Http2Server {
    pub async fn start(certificate: &Certificate) -> Self {
        Self::with_protocols(certificate, &["h2"]).await
    }

    /// Starts a server with these ALPN protocols.
    pub async fn with_protocols(certificate: &Certificate, protocols: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (acceptor, count) = (certificate.acceptor(protocols), requests.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), connection, count.clone()));
            }
        });
        Self { address, requests }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(acceptor: TlsAcceptor, connection: TcpStream, requests: Arc<AtomicUsize>) {
    // A client that does not trust the certificate ends the connection. The test checks the client's error.
    let Ok(connection) = acceptor.accept(connection).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(connection).await else {
        return;
    };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        requests.fetch_add(1, Ordering::SeqCst);
        let response = http::Response::builder()
            .header("content-type", "application/json")
            .body(())
            .unwrap();
        let Ok(mut body) = respond.send_response(response, false) else {
            return;
        };
        drop(body.send_data(Bytes::from(fixtures::whoami().to_string()), true));
    }
}

/// Runs an ignored test of this binary in a separate process with these CA certificates only. Environment variables of
/// this process cannot be set while other tests run.
#[track_caller]
pub fn run_with_ca_certificates(test: &str, file: Option<&OsStr>, directory: Option<&OsStr>) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    for (name, value) in [("SSL_CERT_FILE", file), ("SSL_CERT_DIR", directory)] {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().unwrap();
    let text = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{test}: {text}"
    );
}
