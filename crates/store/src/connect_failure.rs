//! Why a connection could not be opened.
//!
//! diesel passes on libpq's message as one string. The part from the PostgreSQL server is shown; libpq's own messages
//! are replaced, because they quote hosts, values and whole connection strings.

use std::fmt;

use diesel::ConnectionError;

/// The reason for which a connection could not be opened. Quotes nothing of the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectFailure {
    reason: String,
    /// Whether the tables below contain libpq's message.
    is_known: bool,
    /// Whether a later attempt may succeed without a change to settings or database: the server is starting, or cannot
    /// be reached yet.
    pub(crate) is_transient: bool,
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<&ConnectionError> for ConnectFailure {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::BadConnection(message) => Self::from_message(message),
            ConnectionError::CouldntSetupConfiguration(_) => {
                Self::permanent("the connection cannot be set up")
            }
            _ => Self::permanent("the database URL cannot be used"),
        }
    }
}

/// The beginning of libpq's message about one address of the server.
const ATTEMPT: &str = "connection to server ";
/// The text between that address and the reason.
const FAILED: &str = " failed: ";

/// libpq's messages about servers that may become available, and their replacements.
const TRANSIENT: [(&str, &str); 14] = [
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
    ("timeout expired", "the server does not respond in time"),
    ("timed out", "the server does not respond in time"),
    ("No route to host", "there is no route to its host"),
    ("Host is unreachable", "there is no route to its host"),
    ("Network is unreachable", "its network is unreachable"),
    (
        "Cannot assign requested address",
        "this machine has no address of the server's address family (IPv4 or IPv6)",
    ),
    (
        "Address family not supported",
        "this machine has no address of the server's address family (IPv4 or IPv6)",
    ),
    (
        "Resource temporarily unavailable",
        "the server accepts no more connections for the moment",
    ),
    (
        "Connection reset by peer",
        "the connection was closed by the server",
    ),
    (
        "server closed the connection unexpectedly",
        "the connection was closed by the server",
    ),
    ("Broken pipe", "the connection was closed by the server"),
];

/// libpq's messages about wrong settings, and their replacements.
const PERMANENT: [(&str, &str); 11] = [
    (
        "does not support SSL",
        "the server has no TLS, and sslmode requires it; enable TLS at the server",
    ),
    (
        "SSL support is not compiled in",
        "this build has no TLS for PostgreSQL; build with `--features pg-tls`",
    ),
    (
        "root certificate",
        "the file of root certificates (sslrootcert) is missing or cannot be read",
    ),
    (
        "certificate verify failed",
        "the server's certificate is not signed by a trusted authority (sslrootcert)",
    ),
    (
        "does not match host name",
        "the server's certificate is for another host",
    ),
    (
        "certificate",
        "TLS failed: a certificate is missing, cannot be read or is not accepted",
    ),
    ("SSL", "TLS failed"),
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

const NEXT_STEPS: [(&str, &str); 4] = [
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

impl ConnectFailure {
    fn permanent(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_known: true,
            is_transient: false,
        }
    }

    /// Used for messages that the tables do not have, which may quote the URL.
    fn unknown() -> Self {
        Self {
            reason: "the client library of PostgreSQL failed, with a message that may quote the URL and is not shown; \
                     check each part of DATABASE_URL"
                .to_owned(),
            is_known: false,
            is_transient: false,
        }
    }

    fn transient(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_known: true,
            is_transient: true,
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
            .map(|line| Self::from_line(line.split_once(FAILED).map_or("", |(_, reason)| reason)))
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
        let among = |table: &[(&str, &str)]| {
            table
                .iter()
                .find(|(libpq, _)| line.contains(libpq))
                .map(|(_, ours)| (*ours).to_owned())
        };
        if let Some(reason) = among(&TRANSIENT) {
            Self::transient(reason)
        } else if let Some(reason) = among(&PERMANENT) {
            Self::permanent(reason)
        } else {
            Self::unknown()
        }
    }

    fn from_server(message: &str) -> Self {
        if SERVER_TRANSIENT.iter().any(|text| message.contains(text)) {
            return Self::transient(format!("the server says: {message}"));
        }
        let next = NEXT_STEPS.iter().find(|(text, _)| message.contains(text));
        let next = next
            .map(|(_, step)| format!("; {step}"))
            .unwrap_or_default();
        Self::permanent(format!("the server says: {message}{next}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(message: &str) -> ConnectFailure {
        ConnectFailure::from(&ConnectionError::BadConnection(message.to_owned()))
    }

    #[test]
    fn unavailable_servers_are_transient_failures() {
        for message in [
            "connection to server at \"canary\" (::1), port 1 failed: Connection refused\n\tIs the server running on \
             that host and accepting TCP/IP connections?\nconnection to server at \"canary\" (127.0.0.1), port 1 \
             failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n",
            "connection to server at \"canary\" (::1), port 1 failed: Cannot assign requested address\n\tIs the server \
             running on that host and accepting TCP/IP connections?\nconnection to server at \"canary\" (127.0.0.1), \
             port 1 failed: Connection refused\n\tIs the server running on that host?\n",
            "connection to server at \"canary\" (::1), port 1 failed: Address family not supported by protocol\n",
            "connection to server at \"canary\" (::1), port 1 failed: Network is unreachable\n",
            "connection to server on socket \"/canary/.s.PGSQL.5432\" failed: Resource temporarily unavailable\n",
            // An unknown message does not outrank a known one.
            "connection to server at \"canary\" (::1), port 1 failed: canary\nconnection to server at \"canary\" \
             (127.0.0.1), port 1 failed: Connection refused\n",
            "connection to server on socket \"/canary/.s.PGSQL.5432\" failed: No such file or directory\n\tIs the \
             server running locally and accepting connections on that socket?\n",
            "could not translate host name \"canary\" to address: Name or service not known\n",
            "connection to server at \"canary\" (192.0.2.1), port 5432 failed: timeout expired\n",
            "connection to server at \"canary\" (192.0.2.1), port 5432 failed: FATAL:  the database system is starting up\n",
            "connection to server at \"canary\" (192.0.2.1), port 5432 failed: FATAL:  the database system is shutting down\n",
            "connection to server at \"canary\" (192.0.2.1), port 5432 failed: FATAL:  the database system is not yet \
             accepting connections\nDETAIL:  Consistent recovery state has not been yet reached.\n",
            "connection to server at \"canary\" (192.0.2.1), port 5432 failed: FATAL:  sorry, too many clients already\n",
        ] {
            let failure = failure(message);
            assert!(failure.is_transient, "{message}: {failure}");
            assert!(!failure.to_string().contains("canary"), "{failure}");
        }
    }

    #[test]
    fn permanent_failures_show_the_servers_message() {
        for (message, words) in [
            (
                "connection to server at \"canary\" (::1), port 5432 failed: Connection refused\n\tIs the server \
                 running?\nconnection to server at \"canary\" (127.0.0.1), port 5432 failed: FATAL:  password \
                 authentication failed for user \"shop\"\n",
                "the server says: password authentication failed for user \"shop\"; correct the user name and the \
                 password in DATABASE_URL",
            ),
            (
                "connection to server at \"canary\", port 5432 failed: FATAL:  database \"keys\" does not exist\n",
                "the server says: database \"keys\" does not exist; create it, or correct DATABASE_URL",
            ),
            (
                "connection to server at \"canary\", port 5432 failed: SCHWERWIEGEND:  Datenbank »keys« existiert nicht\n",
                "the server says: Datenbank »keys« existiert nicht",
            ),
            (
                "connection to server at \"canary\", port 5432 failed: server does not support SSL, but SSL was required\n",
                "the server has no TLS",
            ),
            (
                "connection to server at \"canary\", port 5432 failed: fe_sendauth: no password supplied\n",
                "DATABASE_URL has none",
            ),
            (
                "connection to server at \"canary\", port 5432 failed: session is read-only\n",
                "Tollkey needs the primary",
            ),
            (
                "connection to server at \"canary\" (::1), port 5432 failed: canary\nconnection to server at \
                 \"canary\" (127.0.0.1), port 5432 failed: server does not support SSL, but SSL was required\n",
                "the server has no TLS",
            ),
            (
                "connection to server at \"canary\", port 5432 failed: canary\n",
                "may quote the URL",
            ),
            // The URL parser may reject these before libpq does.
            (
                "invalid percent-encoded token: \"canary%zz\"\n",
                "may quote the URL",
            ),
            (
                "invalid channel_binding value: \"canary\"\n",
                "may quote the URL",
            ),
            (
                "missing \"=\" after \"canary\" in connection info string\n",
                "may quote the URL",
            ),
            (
                "definition of service \"canary:  x\" not found\n",
                "may quote the URL",
            ),
            ("canary", "may quote the URL"),
            ("", "may quote the URL"),
        ] {
            let failure = failure(message);
            assert!(
                !failure.is_transient && failure.to_string().contains(words),
                "{message}: {failure}"
            );
            assert!(!failure.to_string().contains("canary"), "{failure}");
        }
    }
}
