//! Causes of failed connections, described for the operator.

use std::{error::Error as StdError, fmt, io, iter};

use rustls::CertificateError;

/// The reason why no connection could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    TimedOut,
    UnknownHost,
    Rejected,
    Unreachable,
    /// The server closed the connection during the handshake.
    Ended,
    UnknownIssuer,
    WrongHost,
    Expired,
    NotValidYet,
    Revoked,
    InvalidCertificate,
    /// The server sent a TLS alert.
    TlsRejected,
    /// The server sent data that is not TLS.
    NotTls,
    Tls,
    Other,
}

impl ConnectFailure {
    /// Finds the cause of a failed connection in the chain of its sources.
    pub(crate) fn of(error: &reqwest::Error) -> Self {
        if error.is_dns() {
            return Self::UnknownHost;
        }
        let found = causes(error).find_map(|cause| {
            let of_tls = cause.downcast_ref::<rustls::Error>().map(Self::of_tls);
            of_tls.or_else(|| {
                cause
                    .downcast_ref::<io::Error>()
                    .and_then(|error| Self::of_io(error.kind()))
            })
        });
        found.unwrap_or(if error.is_timeout() {
            Self::TimedOut
        } else {
            Self::Other
        })
    }

    fn of_io(kind: io::ErrorKind) -> Option<Self> {
        Some(match kind {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::ConnectionRefused => Self::Rejected,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Ended,
            _ => return None,
        })
    }

    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongHost,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotValidYet
                }
                CertificateError::Revoked => Self::Revoked,
                _ => Self::InvalidCertificate,
            },
            rustls::Error::AlertReceived(_) => Self::TlsRejected,
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            _ => Self::Tls,
        }
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "connecting timed out",
            Self::UnknownHost => "the host name cannot be resolved (DNS)",
            Self::Rejected => "connection refused: no server listens on this host and port",
            Self::Unreachable => "the host is unreachable",
            Self::Ended => "the server closed the connection during the handshake",
            Self::UnknownIssuer => {
                "the server's certificate is not trusted: its issuer is not among the certificate authorities of this machine"
            }
            Self::WrongHost => "the server's certificate is for another host name",
            Self::Expired => "the server's certificate has expired",
            Self::NotValidYet => "the server's certificate is not valid yet; is the clock of this machine correct?",
            Self::Revoked => "the server's certificate is revoked",
            Self::InvalidCertificate => "the server's certificate is not valid",
            Self::TlsRejected => "the server rejected the TLS handshake",
            Self::NotTls => "the server does not use TLS on this port; should the URL begin with http://?",
            Self::Tls => "the TLS handshake failed",
            Self::Other => "the connection could not be opened",
        })
    }
}

/// Returns the error and its sources, including the error that an [`io::Error`] wraps, which
/// [`StdError::source`] skips.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(Some(error), |&error: &&'a (dyn StdError + 'static)| {
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        wrapped
            .map(|wrapped| wrapped as &(dyn StdError + 'static))
            .or_else(|| error.source())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_in_a_wrapped_io_error_is_found() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::Revoked);
        let outer = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        let found: Vec<_> = causes(&outer)
            .filter_map(|cause| cause.downcast_ref::<rustls::Error>())
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!(ConnectFailure::of_tls(found[0]), ConnectFailure::Revoked);
    }

    #[test]
    fn rare_causes_are_classified() {
        use io::ErrorKind::{
            BrokenPipe, ConnectionReset, HostUnreachable, NetworkUnreachable, Other,
        };
        let rows = [
            (HostUnreachable, Some(ConnectFailure::Unreachable)),
            (NetworkUnreachable, Some(ConnectFailure::Unreachable)),
            (ConnectionReset, Some(ConnectFailure::Ended)),
            (BrokenPipe, Some(ConnectFailure::Ended)),
            (Other, None),
        ];
        for (kind, expected) in rows {
            assert_eq!(ConnectFailure::of_io(kind), expected, "{kind}");
        }
        let bad = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        assert_eq!(
            ConnectFailure::of_tls(&bad),
            ConnectFailure::InvalidCertificate
        );
        assert_eq!(
            ConnectFailure::of_tls(&rustls::Error::DecryptError),
            ConnectFailure::Tls
        );
    }
}
