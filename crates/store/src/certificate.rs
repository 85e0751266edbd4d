//! Why the certificate of a PostgreSQL server is rejected.
//!
//! libpq reports an unknown CA, an expired certificate and most other reasons with the same words. When a store is opened
//! and its TLS handshake fails, [`explain`] repeats the handshake with the same OpenSSL to learn the reason. It sends no credentials,
//! and nothing after the handshake.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use openssl::{
    ssl::{Ssl, SslContext, SslMethod, SslVerifyMode},
    x509::{X509StoreContextRef, X509VerifyResult},
};
use openssl_sys::{
    X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_SIGNATURE_FAILURE,
    X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
    X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
};

use crate::{
    connect_failure::TlsServer,
    url::{CONNECT_TIMEOUT, Handshake},
};

/// The message with which a client of PostgreSQL requests TLS: its length and a code.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const ACCEPTED: u8 = b'S';
/// The protocol's name in ALPN, after its length.
const ALPN: &[u8] = b"\x0apostgresql";

/// The first certificate that OpenSSL rejected.
struct Rejection {
    result: X509VerifyResult,
    /// Whether it is a certificate of a CA.
    is_ca: bool,
    not_before: String,
    not_after: String,
}

impl Rejection {
    fn of(context: &X509StoreContextRef) -> Self {
        let certificate = context.current_cert();
        let validity =
            certificate.map(|it| [it.not_before(), it.not_after()].map(ToString::to_string));
        let [not_before, not_after] = validity.unwrap_or_default();
        Self {
            result: context.error(),
            is_ca: context.error_depth() > 0,
            not_before,
            not_after,
        }
    }

    fn text(&self, handshake: &Handshake) -> String {
        let cas = handshake.cas.display();
        let subject = if self.is_ca {
            "the certificate of a CA of the server"
        } else {
            "the server's certificate"
        };
        match self.result.as_raw() {
            X509_V_ERR_CERT_HAS_EXPIRED => {
                let place = if self.is_ca {
                    format!("at the server, and in {cas} (sslrootcert)")
                } else {
                    "at the server".to_owned()
                };
                format!(
                    "{subject} expired at {}; replace it {place}",
                    self.not_after
                )
            }
            X509_V_ERR_CERT_NOT_YET_VALID => format!(
                "{subject} is not valid before {}; check the clock of this machine",
                self.not_before
            ),
            X509_V_ERR_CERT_SIGNATURE_FAILURE
            | X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
            | X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
            | X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
            | X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
            | X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE => format!(
                "the server's certificate is not signed by a CA of {cas}; set sslrootcert to the file with the CA \
                 certificate of the server"
            ),
            _ => format!(
                "{subject} is not accepted ({}); replace it at the server, or correct {cas} (sslrootcert)",
                self.result.error_string()
            ),
        }
    }
}

/// Returns why the server's certificate is rejected, and what to do. `None` if the server does not respond, or if the
/// reason is none that this handshake has, such as a revocation list.
pub(crate) fn explain(server: &TlsServer, handshake: &Handshake) -> Option<String> {
    let rejection = reject(server, handshake).ok()??;
    Some(rejection.text(handshake))
}

fn reject(server: &TlsServer, handshake: &Handshake) -> io::Result<Option<Rejection>> {
    let stream = TcpStream::connect_timeout(&server.address, CONNECT_TIMEOUT)?;
    let mut stream = Limited {
        stream,
        until: Instant::now() + CONNECT_TIMEOUT,
    };
    if !handshake.is_direct {
        stream.write_all(&TLS_REQUEST)?;
        let mut reply = [0];
        stream.read_exact(&mut reply)?;
        if reply != [ACCEPTED] {
            return Ok(None);
        }
    }
    let rejection = Arc::new(Mutex::new(None));
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_ca_file(&handshake.cas)?;
    context.set_alpn_protos(ALPN)?;
    context.set_verify_callback(SslVerifyMode::PEER, {
        let rejection = Arc::clone(&rejection);
        move |is_accepted, context| {
            if !is_accepted {
                let mut rejection = rejection.lock().unwrap_or_else(PoisonError::into_inner);
                rejection.get_or_insert_with(|| Rejection::of(context));
            }
            is_accepted
        }
    });
    let mut tls = Ssl::new(&context.build())?;
    let host = handshake.host.as_deref().unwrap_or(&server.host);
    if host.parse::<IpAddr>().is_err() {
        tls.set_hostname(host)?;
    }
    // The callback has the result.
    let _ = tls.connect(stream);
    let mut rejection = rejection.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(rejection.take())
}

/// A stream that fails at a fixed time.
#[derive(Debug)]
struct Limited {
    stream: TcpStream,
    until: Instant,
}

impl Limited {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
