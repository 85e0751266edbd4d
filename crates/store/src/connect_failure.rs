//! Why a connection could not be opened.
//!
//! diesel passes on libpq's message as one string. The part from the PostgreSQL server is shown; libpq's own messages
//! are replaced, because they quote hosts, values and whole connection strings.

use std::net::{IpAddr, SocketAddr};

use diesel::ConnectionError;

/// The reason for which a connection could not be opened. Quotes nothing of the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct ConnectFailure {
    reason: String,
    /// Whether the tables below contain libpq's message.
    is_known: bool,
    /// Whether a later attempt may succeed without a change to settings or database: the server is starting, or cannot
    /// be reached yet.
    pub(crate) is_transient: bool,
    /// The server, if this side ended the TLS handshake, probably because of the server's certificate. libpq does not
    /// say why; the module `certificate` finds out.
    pub(crate) tls_server: Option<TlsServer>,
}

/// A server with which the TLS handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsServer {
    /// The host name, or the address if the URL has `hostaddr`.
    pub(crate) host: String,
    pub(crate) address: SocketAddr,
}

impl TlsServer {
    /// Parses libpq's text about an address: `connection to server at "db" (192.0.2.1), port 5432`, or the same without
    /// the part in parentheses.
    fn parse(attempt: &str) -> Option<Self> {
        let (host, rest) = attempt
            .strip_prefix(ATTEMPT)?
            .strip_prefix("at \"")?
            .split_once('"')?;
        let (address, port) = rest.split_once(", port ")?;
        let address = address
            .strip_prefix(" (")
            .and_then(|address| address.strip_suffix(')'))
            .unwrap_or(host);
        let address: IpAddr = address.parse().ok()?;
        Some(Self {
            host: host.to_owned(),
            address: (address, port.parse().ok()?).into(),
        })
    }
}

impl From<&ConnectionError> for ConnectFailure {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::BadConnection(message) => Self::from_message(message),
            ConnectionError::CouldntSetupConfiguration(_) => {
                Self::known("the connection cannot be set up", false)
            }
            _ => Self::known("the database URL cannot be used", false),
        }
    }
}

/// The beginning of libpq's message about one address of the server.
const ATTEMPT: &str = "connection to server ";
/// The text between that address and the reason.
const FAILED: &str = " failed: ";

const SLOW: &str = "the server does not respond in time";
const NO_ROUTE: &str = "there is no route to its host";
const NO_ADDRESS: &str =
    "this machine has no address of the server's address family (IPv4 or IPv6)";
const CLOSED: &str = "the connection was closed by the server";

/// libpq's messages about servers that may become available, and their replacements.
const TRANSIENT: [(&str, &str); 16] = [
    (
        "could not translate host name",
        "its host name cannot be resolved",
    ),
    (
        "Connection refused",
        "the server refuses connections; it is not running, or listens on another port",
    ),
    (
        "No such file or directory",
        "there is no socket at that path; the server is not running",
    ),
    ("timeout expired", SLOW),
    ("timed out", SLOW),
    ("No route to host", NO_ROUTE),
    ("Host is unreachable", NO_ROUTE),
    ("Network is unreachable", "its network is unreachable"),
    ("Cannot assign requested address", NO_ADDRESS),
    ("Address family not supported", NO_ADDRESS),
    (
        "Resource temporarily unavailable",
        "the server accepts no more connections for the moment",
    ),
    ("Connection reset by peer", CLOSED),
    ("server closed the connection unexpectedly", CLOSED),
    ("Broken pipe", CLOSED),
    ("SSL SYSCALL error", CLOSED),
    ("SSL connection has been closed unexpectedly", CLOSED),
];

/// The beginning of libpq's message about an error of OpenSSL. If the server sent the error, it contains the word alert.
const TLS_ERROR: &str = "SSL error: ";

/// libpq's messages about TLS, and their replacements. They are checked first, because some contain paths and messages
/// of the operating system.
const TLS: [(&str, &str); 22] = [
    (
        "does not support SSL",
        "the server has no TLS, and sslmode requires it; enable TLS at the server (ssl = on), or set sslmode=disable if \
         the network in between is trusted",
    ),
    (
        "SSL support is not compiled in",
        "this build has no TLS for PostgreSQL; build with `--features pg-tls`",
    ),
    (
        "certificate verify failed",
        "the server's certificate is not signed by a trusted CA, or is not valid now; set sslrootcert to the CA \
         certificate of the server, or replace the certificate at the server",
    ),
    (
        "could not get server's host name",
        "the server's certificate names no host; give the server a certificate with its host name",
    ),
    (
        "host name must be specified",
        "sslmode=verify-full compares the host with the server's certificate, and DATABASE_URL has only hostaddr; add \
         the host",
    ),
    (
        "root certificate file",
        "the file of CA certificates is missing or has no PEM certificate; set sslrootcert to the file with the CA \
         certificate of the server",
    ),
    (
        "has group or world access",
        "other users can read the private key of the client certificate (sslkey); set its mode to 0600, or to 0640 if \
         root owns it",
    ),
    ("key values mismatch", OTHER_KEY),
    ("key type mismatch", OTHER_KEY),
    ("does not match private key file", OTHER_KEY),
    (
        "could not load private key file",
        "the private key of the client certificate (sslkey) cannot be loaded; it must be in PEM or DER, and \
         sslpassword must be its password if it is encrypted",
    ),
    (
        "private key file",
        "the private key of the client certificate is missing or cannot be read; set sslkey to its file",
    ),
    (
        "certificate file",
        "the client certificate cannot be read or is not in PEM; set sslcert to its file",
    ),
    (
        "alert unknown ca",
        "the server rejects the client certificate (sslcert), because its CA is not in the server's ssl_ca_file; use a \
         certificate of that CA",
    ),
    (
        "alert certificate expired",
        "the server rejects the client certificate (sslcert), because it has expired; replace it",
    ),
    (
        "alert certificate revoked",
        "the server rejects the client certificate (sslcert), because it was revoked; replace it",
    ),
    ("alert bad certificate", CLIENT_REJECTED),
    ("alert unsupported certificate", CLIENT_REJECTED),
    ("alert certificate unknown", CLIENT_REJECTED),
    (
        "alert certificate required",
        "the server requires a client certificate; set sslcert and sslkey in DATABASE_URL",
    ),
    ("wrong version number", NO_PROTOCOL),
    ("protocol version", NO_PROTOCOL),
];

const OTHER_KEY: &str = "the private key (sslkey) is not that of the client certificate (sslcert); correct one of the two";
const CLIENT_REJECTED: &str =
    "the server rejects the client certificate (sslcert); its log has the reason";
const NO_PROTOCOL: &str = "TLS failed: the server and Tollkey have no version of TLS in common, or the port is not that of \
                           PostgreSQL; check the port, ssl_min_protocol_version and ssl_max_protocol_version";

/// libpq's other messages about wrong settings, and their replacements.
const PERMANENT: [(&str, &str); 6] = [
    (
        "certificate",
        "TLS failed: a certificate is missing, cannot be read or is not accepted; check sslrootcert, sslcert and sslkey",
    ),
    ("SSL", "TLS failed; the server's log has the reason"),
    (
        "no password supplied",
        "the server requires a password, and DATABASE_URL has none",
    ),
    (
        "session is read-only",
        "the server is read-only or a standby; Tollkey needs the primary",
    ),
    (
        "hot standby",
        "the server is a standby; Tollkey needs the primary",
    ),
    ("Permission denied", "permission denied on its socket"),
];

/// Messages of a server that starts, stops or is full (SQLSTATE 57P01 to 57P03 and 53300). diesel does not expose
/// the SQLSTATE, so only English messages are recognized.
const SERVER_TRANSIENT: [&str; 5] = [
    "the database system is",
    "terminating connection",
    "too many clients",
    "too many connections",
    "remaining connection slots",
];

const NEXT_STEPS: [(&str, &str); 8] = [
    (
        "requires a valid client certificate",
        "set sslcert and sslkey in DATABASE_URL",
    ),
    (
        "certificate authentication failed",
        "the common name of the client certificate (sslcert) must be the user name, or pg_ident.conf must map it to that",
    ),
    ("no encryption", UNENCRYPTED),
    ("SSL off", UNENCRYPTED),
    (
        "authentication failed",
        "correct the user name and the password in DATABASE_URL",
    ),
    ("does not exist", "create it, or correct DATABASE_URL"),
    (
        "no pg_hba.conf entry",
        "allow this connection in the server's pg_hba.conf",
    ),
    (
        "permission denied for database",
        "grant CONNECT on it to this role",
    ),
];

const UNENCRYPTED: &str =
    "set sslmode=verify-full, or allow connections without TLS in the server's pg_hba.conf";

impl ConnectFailure {
    fn known(reason: impl Into<String>, is_transient: bool) -> Self {
        Self {
            reason: reason.into(),
            is_known: true,
            is_transient,
            tls_server: None,
        }
    }

    /// Used for messages that the tables do not have, which may quote the URL.
    fn unknown() -> Self {
        let reason = "the client library of PostgreSQL failed, with a message that may quote the URL and is not shown; \
                      check each part of DATABASE_URL";
        Self {
            is_known: false,
            ..Self::known(reason, false)
        }
    }

    /// Parses libpq's message. It has a line for each address that was tried, and more lines with hints. If one address
    /// fails permanently, waiting does not help, whatever the others report. Unknown messages count only if all
    /// messages are unknown.
    fn from_message(message: &str) -> Self {
        let attempts: Vec<&str> = message
            .lines()
            .filter(|line| line.starts_with(ATTEMPT))
            .collect();
        if attempts.is_empty() {
            return Self::from_line(message.lines().next().unwrap_or_default());
        }
        let failures: Vec<Self> = attempts
            .into_iter()
            .map(|line| {
                let (attempt, reason) = line.split_once(FAILED).unwrap_or((line, ""));
                let is_ours = reason.starts_with(TLS_ERROR) && !reason.contains("alert");
                Self {
                    tls_server: is_ours.then(|| TlsServer::parse(attempt)).flatten(),
                    ..Self::from_line(reason)
                }
            })
            .collect();
        let known = || failures.iter().filter(|failure| failure.is_known);
        let decisive = known()
            .find(|failure| !failure.is_transient)
            .or(known().next());
        decisive.cloned().unwrap_or_else(Self::unknown)
    }

    fn from_line(line: &str) -> Self {
        // "FATAL:  …" comes from the server, even with a translated severity; libpq itself never writes two spaces
        // there.
        if let Some((severity, message)) = line.split_once(":  ")
            && !severity.contains(|c: char| c.is_whitespace() || c == '"')
        {
            return Self::from_server(message.trim_end());
        }
        if let Some(reason) = other_host(line) {
            Self::known(reason, false)
        } else if let Some(reason) = find(&TLS, line) {
            Self::known(reason, false)
        } else if let Some(reason) = find(&TRANSIENT, line) {
            Self::known(reason, true)
        } else if let Some(reason) = find(&PERMANENT, line) {
            Self::known(reason, false)
        } else {
            Self::unknown()
        }
    }

    fn from_server(message: &str) -> Self {
        let is_transient = SERVER_TRANSIENT.iter().any(|text| message.contains(text));
        let next = find(&NEXT_STEPS, message).filter(|_| !is_transient);
        let next = next.map(|step| format!("; {step}")).unwrap_or_default();
        Self::known(format!("the server says: {message}{next}"), is_transient)
    }
}

/// Returns the reason for libpq's message about a certificate for another host, which it quotes.
fn other_host(line: &str) -> Option<String> {
    let (names, _) = line
        .strip_prefix("server certificate for \"")?
        .split_once(" does not match host name")?;
    let (first, _) = names.split_once('"')?;
    // A server could put anything here.
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:*".contains(c);
    let named = if !first.is_empty() && first.len() <= 255 && first.chars().all(is_host) {
        first
    } else {
        "another host"
    };
    Some(format!(
        "the server's certificate is for {named}, not for the host in DATABASE_URL; use the name in the certificate, or \
         give the server a certificate for this host"
    ))
}

/// Returns the second text of the first row whose first text is in the message.
fn find(table: &[(&str, &'static str)], message: &str) -> Option<&'static str> {
    let row = table.iter().find(|(text, _)| message.contains(text));
    row.map(|(_, found)| *found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the failure for libpq's message, in which `@HOST` stands for one address of the server. libpq names the
    /// address only if it knows it.
    fn failure(message: &str) -> ConnectFailure {
        let of = |host| {
            let message = message.replace("@HOST", host);
            ConnectFailure::from(&ConnectionError::BadConnection(message))
        };
        let failure = of("connection to server at \"canary\" (::1), port 5432");
        let without_address = of("connection to server at \"canary\", port 5432");
        assert_eq!(failure, without_address, "{message}");
        failure
    }

    #[test]
    fn unavailable_servers_are_transient_failures() {
        for message in [
            "@HOST failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n\
             @HOST failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n",
            "@HOST failed: Cannot assign requested address\n\tIs the server running on that host and accepting TCP/IP \
             connections?\n@HOST failed: Connection refused\n\tIs the server running on that host?\n",
            "@HOST failed: Address family not supported by protocol\n",
            "@HOST failed: Network is unreachable\n",
            "connection to server on socket \"/canary/.s.PGSQL.5432\" failed: Resource temporarily unavailable\n",
            // An unknown message does not outrank a known one.
            "@HOST failed: canary\n@HOST failed: Connection refused\n",
            "connection to server on socket \"/canary/.s.PGSQL.5432\" failed: No such file or directory\n\tIs the \
             server running locally and accepting connections on that socket?\n",
            "could not translate host name \"canary\" to address: Name or service not known\n",
            "@HOST failed: timeout expired\n",
            "@HOST failed: FATAL:  the database system is starting up\n",
            "@HOST failed: FATAL:  the database system is shutting down\n",
            "@HOST failed: FATAL:  the database system is not yet accepting connections\n\
             DETAIL:  Consistent recovery state has not been yet reached.\n",
            "@HOST failed: FATAL:  sorry, too many clients already\n",
        ] {
            let failure = failure(message);
            assert!(failure.is_transient, "{message}: {failure}");
            assert!(!failure.to_string().contains("canary"), "{failure}");
        }
    }

    #[test]
    fn permanent_failures_show_the_servers_message() {
        const HIDDEN: &str = "may quote the URL";
        for (message, words) in [
            (
                "@HOST failed: Connection refused\n\tIs the server running?\n\
                 @HOST failed: FATAL:  password authentication failed for user \"shop\"\n",
                "the server says: password authentication failed for user \"shop\"; correct the user name and the \
                 password in DATABASE_URL",
            ),
            (
                "@HOST failed: FATAL:  database \"keys\" does not exist\n",
                "the server says: database \"keys\" does not exist; create it, or correct DATABASE_URL",
            ),
            (
                "@HOST failed: SCHWERWIEGEND:  Datenbank »keys« existiert nicht\n",
                "the server says: Datenbank »keys« existiert nicht",
            ),
            (
                "@HOST failed: server does not support SSL, but SSL was required\n",
                "the server has no TLS",
            ),
            (
                "@HOST failed: FATAL:  connection requires a valid client certificate\n",
                "client certificate; set sslcert and sslkey",
            ),
            (
                "@HOST failed: FATAL:  certificate authentication failed for user \"shop\"\n",
                "the common name of the client certificate",
            ),
            (
                "@HOST failed: FATAL:  no pg_hba.conf entry for host \"10.0.0.2\", user \"shop\", database \"keys\", no \
                 encryption\n",
                "no encryption; set sslmode=verify-full",
            ),
            (
                "@HOST failed: fe_sendauth: no password supplied\n",
                "DATABASE_URL has none",
            ),
            (
                "@HOST failed: session is read-only\n",
                "Tollkey needs the primary",
            ),
            (
                "@HOST failed: canary\n@HOST failed: server does not support SSL, but SSL was required\n",
                "the server has no TLS",
            ),
            ("@HOST failed: canary\n", HIDDEN),
            // The URL parser may reject these before libpq does.
            ("invalid percent-encoded token: \"canary%zz\"\n", HIDDEN),
            ("invalid channel_binding value: \"canary\"\n", HIDDEN),
            (
                "missing \"=\" after \"canary\" in connection info string\n",
                HIDDEN,
            ),
            ("definition of service \"canary:  x\" not found\n", HIDDEN),
            ("canary", HIDDEN),
            ("", HIDDEN),
        ] {
            let failure = failure(message);
            let shown = failure.to_string();
            assert!(
                !failure.is_transient && shown.contains(words),
                "{message}: {shown}"
            );
            assert!(!shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn tls_failures_are_permanent_and_name_the_next_step() {
        for (message, words) in [
            (
                "@HOST failed: SSL error: certificate verify failed\n",
                "set sslrootcert",
            ),
            (
                "@HOST failed: server certificate for \"db.example\" does not match host name \"canary\"\n",
                "the server's certificate is for db.example, not for the host in DATABASE_URL",
            ),
            (
                "@HOST failed: server certificate for \"*.db.example\" (and 2 other names) does not match host name \
                 \"canary\"\n",
                "for *.db.example, not",
            ),
            (
                "@HOST failed: server certificate for \"canary canary\" does not match host name \"canary\"\n",
                "for another host, not",
            ),
            // The path and the operating system's message do not decide.
            (
                "@HOST failed: could not read root certificate file \"/canary/timed out\": No such file or directory\n",
                "set sslrootcert",
            ),
            (
                "@HOST failed: root certificate file \"/canary\" does not exist\nEither provide the file, or canary.\n",
                "set sslrootcert",
            ),
            (
                "@HOST failed: could not open certificate file \"/canary\": Permission denied\n",
                "set sslcert",
            ),
            (
                "@HOST failed: certificate present, but not private key file \"/canary\"\n",
                "set sslkey",
            ),
            (
                "@HOST failed: private key file \"/canary\" has group or world access; file must have permissions u=rw\n",
                "set its mode to 0600",
            ),
            (
                "@HOST failed: could not load private key file \"/canary\": bad decrypt\n",
                "sslpassword",
            ),
            (
                "@HOST failed: could not load private key file \"/canary\": key values mismatch\n",
                "not that of the client certificate",
            ),
            (
                "@HOST failed: certificate does not match private key file \"/canary\": key values mismatch\n",
                "not that of the client certificate",
            ),
            (
                "@HOST failed: SSL error: tlsv1 alert unknown ca\n",
                "ssl_ca_file",
            ),
            (
                "@HOST failed: SSL error: ssl/tls alert certificate expired\n",
                "it has expired; replace it",
            ),
            (
                "@HOST failed: SSL error: tlsv13 alert certificate required\n",
                "set sslcert and sslkey",
            ),
            (
                "@HOST failed: SSL error: tlsv1 alert protocol version\n",
                "no version of TLS in common",
            ),
            (
                "@HOST failed: SSL error: canary\n",
                "the server's log has the reason",
            ),
            (
                "@HOST failed: host name must be specified for a verified SSL connection\n",
                "add the host",
            ),
            // One address refuses connections, as when only one of IPv4 and IPv6 is used.
            (
                "@HOST failed: Connection refused\n\tIs the server running?\n\
                 @HOST failed: SSL error: certificate verify failed\n",
                "set sslrootcert",
            ),
        ] {
            let message = message.replace(
                "@HOST",
                "connection to server at \"canary\" (::1), port 5432",
            );
            let failure = ConnectFailure::from_message(&message);
            let shown = failure.to_string();
            assert!(
                !failure.is_transient && shown.contains(words),
                "{message}: {shown}"
            );
            assert!(!shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn connection_lost_during_the_tls_handshake_is_transient() {
        for message in [
            "@HOST failed: SSL SYSCALL error: EOF detected\n",
            "@HOST failed: SSL SYSCALL error: Connection reset by peer\n",
            "@HOST failed: SSL connection has been closed unexpectedly\n",
        ] {
            assert_eq!(
                failure(message),
                ConnectFailure::known(CLOSED, true),
                "{message}"
            );
        }
    }

    #[test]
    fn server_of_a_failed_handshake_is_named() {
        for (server, host, address) in [
            (
                "at \"db.example\" (192.0.2.1), port 5432",
                "db.example",
                "192.0.2.1:5432",
            ),
            (
                "at \"db.example\" (2001:db8::1), port 6432",
                "db.example",
                "[2001:db8::1]:6432",
            ),
            ("at \"192.0.2.1\", port 5432", "192.0.2.1", "192.0.2.1:5432"),
        ] {
            let message = format!(
                "connection to server {server} failed: SSL error: certificate verify failed\n"
            );
            let expected = TlsServer {
                host: host.to_owned(),
                address: address.parse().unwrap(),
            };
            let failure = ConnectFailure::from_message(&message);
            assert_eq!(failure.tls_server, Some(expected), "{message}");
        }
        let refused =
            "connection to server at \"db\" (192.0.2.1), port 5432 failed: Connection refused\n";
        assert_eq!(ConnectFailure::from_message(refused).tls_server, None);
    }
}
