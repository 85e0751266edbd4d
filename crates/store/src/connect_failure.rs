//! Why a connection could not be opened.
//!
//! diesel passes on libpq's message as one string. The part from the PostgreSQL server is shown; libpq's own messages
//! are replaced, because they quote hosts, values and whole connection strings.

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
    fn known(reason: impl Into<String>, is_transient: bool) -> Self {
        Self {
            reason: reason.into(),
            is_known: true,
            is_transient,
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
        if let Some(reason) = find(&TRANSIENT, line) {
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
}
