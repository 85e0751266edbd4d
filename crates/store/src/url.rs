//! Parsing of the database URL.
//!
//! libpq quotes its input in error messages, which would print passwords, and accepts some malformed URLs in a way that
//! their author did not mean. So [`DatabaseUrl`] parses the URL, rejects ambiguous ones, and passes keywords and quoted
//! values to libpq. [`BadUrl`] names the rule and never quotes the URL.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::target::{Backend, Target};

mod tls;

/// How long libpq tries to reach one address of the server, and how long sent data may stay unacknowledged.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The database URL cannot be used. Never quotes the URL, which may contain a password, except for the paths of TLS files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error(
        "must begin with sqlite:// or postgres://; write sqlite://tollkey.db or \
         postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    )]
    Scheme,
    #[error(
        "must be a URL; write postgres://USER:PASSWORD@HOST:PORT/DATABASE instead of keywords such as host= and password="
    )]
    Keywords,
    #[error(
        "must name a file, without options after it; write sqlite://tollkey.db, sqlite:///absolute/path/tollkey.db or \
         sqlite://:memory:"
    )]
    NoFile,
    #[error("has a % without two hexadecimal digits after it; write the character % as %25")]
    Escape,
    #[error(
        "has percent-encoded bytes that are not UTF-8; percent-encode the UTF-8 bytes of each character"
    )]
    NotUtf8,
    #[error("has white space or a control character; write a space as %20, and remove line breaks")]
    WhiteSpace,
    #[error(
        "has more than one @ before the database name; write an @ in the user name or the password as %40"
    )]
    At,
    #[error(
        "has a ? before an @; in the user name and the password write ? as %3F, and in a parameter write @ as %40"
    )]
    QuestionMark,
    #[error(
        "has a second /, an @ or a # after the host; in the user name, the password and the database name write / as \
         %2F, @ as %40 and # as %23"
    )]
    Path,
    /// A database name that looks like parameters, which could contain a password.
    #[error(
        "has white space or one of & ; = ? in the database name; parameters begin with a single ?, as in \
         postgres://HOST/DATABASE?NAME=VALUE&NAME=VALUE"
    )]
    DatabaseName,
    #[error(
        "has an @ without a user name before it; write postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    )]
    NoUser,
    #[error(
        "has a host with a character that hosts do not have; in the user name and the password write @ as %40, / as \
         %2F, : as %3A, ? as %3F and # as %23; write an IPv6 address in brackets"
    )]
    Host,
    #[error(
        "has a port that is not a number from 1 to 65535; if a password stands there, write \
         postgres://USER:PASSWORD@HOST:PORT/DATABASE with @ as %40, / as %2F, ? as %3F and # as %23 in the password; \
         write an IPv6 address in brackets"
    )]
    Port,
    #[error(
        "has a parameter without = (number {0} after the ?); if the ? belongs to the password, write it as %3F"
    )]
    NoValue(usize),
    #[error(
        "has an unknown parameter (number {0} after the ?); the parameters are those of libpq, such as sslmode and \
         host; if the ? belongs to the password, write it as %3F"
    )]
    UnknownParameter(usize),
    #[error("must not set {0} more than once; remove one of the two")]
    Repeated(&'static str),
    #[error("has an unknown value of {name}; it must be {rule}")]
    Value {
        name: &'static str,
        rule: &'static str,
    },
    #[error(
        "names a host that is not this machine, and this build has no TLS for PostgreSQL; build with \
         `--features pg-tls`, or add sslmode=disable to the URL if the network in between is trusted"
    )]
    NeedsTls,
    #[error(
        "requires TLS by its sslmode, and this build has no TLS for PostgreSQL; build with `--features pg-tls`"
    )]
    TlsDemanded,
    #[error(
        "must not combine sslrootcert=system with another sslmode than verify-full, because every host can have a \
         certificate of these CAs; set sslmode=verify-full, or sslrootcert to the file of one CA"
    )]
    WeakSystemCas,
    #[error(
        "requires by sslmode=verify-ca that sslrootcert names the file with the CA certificate of the server; add it, or \
         set sslmode=verify-full, which uses the CA certificates of the system"
    )]
    NoCa,
    #[error(
        "needs the CA certificates of the system, and none were found; install them (Debian: the package \
         ca-certificates), or set sslrootcert to the file with the CA certificate of the server"
    )]
    NoSystemCas,
    #[error("has sslkey without sslcert; add sslcert with the file of the client certificate")]
    NoClientCertificate,
    /// A file for TLS cannot be read.
    #[error("cannot be used with the file {path} of {setting}: {reason}")]
    File {
        /// The parameter of the URL, or the environment variable that replaces it.
        setting: &'static str,
        /// The absolute path.
        path: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// `target_session_attrs` selects a standby. A standby may lag and accept a revoked key.
    #[error("must not select a standby; remove target_session_attrs, or set it to read-write")]
    Standby,
}

/// A parsed database URL. [`Display`](fmt::Display), `Debug` and [`DatabaseUrl::target`] name the database without user
/// name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    text: String,
    location: Location,
}

#[derive(Clone, PartialEq, Eq)]
enum Location {
    Memory,
    File(String),
    Postgres(Parameters),
}

/// Keywords of libpq with decoded values.
type Parameters = BTreeMap<&'static str, String>;

/// The connection parameters of libpq 18 that a URL can have. Not `replication`, which is another protocol.
const PARAMETERS: [&str; 50] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "options",
    "passfile",
    "password",
    "port",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslkeylogfile",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
    // From JDBC; libpq reads `ssl=true` as `sslmode=require`.
    "ssl",
];

const SECRETS: [&str; 5] = [
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
];

const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

const NUMBERS: [&str; 6] = [
    "connect_timeout",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
];

impl DatabaseUrl {
    /// Parses `sqlite://PATH`, `sqlite://:memory:` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETERS` with the
    /// parameters of libpq.
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let location = match text.strip_prefix("sqlite://") {
            Some(path) => sqlite(path)?,
            None => match text
                .strip_prefix("postgres://")
                .or_else(|| text.strip_prefix("postgresql://"))
            {
                Some(rest) => Location::Postgres(postgres(rest)?),
                None if !text.contains("://") && text.contains('=') => {
                    return Err(BadUrl::Keywords);
                }
                None => return Err(BadUrl::Scheme),
            },
        };
        Ok(Self {
            text: text.to_owned(),
            location,
        })
    }

    /// Returns the URL as it was written. It may contain a password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.location {
            Location::Memory | Location::File(_) => Backend::Sqlite,
            Location::Postgres(_) => Backend::Postgres,
        }
    }

    /// Returns the path of the SQLite file as it was written, or `None` for `:memory:` and PostgreSQL.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.location {
            Location::File(path) => Some(Path::new(path)),
            Location::Memory | Location::Postgres(_) => None,
        }
    }

    /// Returns whether the URL contains a password or another secret of libpq.
    #[must_use]
    pub fn has_password(&self) -> bool {
        match &self.location {
            Location::Memory | Location::File(_) => false,
            Location::Postgres(parameters) => {
                SECRETS.iter().any(|secret| parameters.contains_key(secret))
            }
        }
    }

    /// Names the database for logs and errors: kind, host and database, or kind and absolute path. Missing parts are
    /// taken from the environment like in libpq (`PGHOST`, `PGPORT`, `PGDATABASE`).
    #[must_use]
    pub fn target(&self) -> String {
        match &self.location {
            Location::Memory => "SQLite database in memory".to_owned(),
            Location::File(path) => {
                format!("SQLite database {}", absolute(Path::new(path)).display())
            }
            Location::Postgres(parameters) => {
                let env = |name| std::env::var(name).ok();
                let of = |name, variable| parameters.get(name).cloned().or_else(|| env(variable));
                let service =
                    of("service", "PGSERVICE").map(|service| format!("service {service}"));
                let name = of("dbname", "PGDATABASE").or_else(|| of("user", "PGUSER"));
                let hosts = of("host", "PGHOST").or_else(|| of("hostaddr", "PGHOSTADDR"));
                let address = match (hosts, service) {
                    (Some(hosts), _) => {
                        with_ports(&hosts, &of("port", "PGPORT").unwrap_or_default())
                    }
                    (None, Some(service)) => service,
                    (None, None) => "the default socket".to_owned(),
                };
                match name {
                    Some(name) => format!("PostgreSQL database {name} at {address}"),
                    None => format!("PostgreSQL default database at {address}"),
                }
            }
        }
    }

    /// Returns what to open. `tls` is whether this build has TLS for PostgreSQL, and `env` returns environment variables,
    /// some of which libpq reads by itself.
    pub(crate) fn resolve(
        &self,
        tls: bool,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Target, BadUrl> {
        match &self.location {
            Location::Memory => Ok(Target::Memory),
            // SQLite would read a path that begins with `file:` as a URI.
            Location::File(path) if path.starts_with('/') => Ok(Target::File(path.clone())),
            Location::File(path) => Ok(Target::File(format!("./{path}"))),
            Location::Postgres(parameters) => {
                let parameters = if tls {
                    tls::complete(parameters, &env)?
                } else {
                    check_tls(parameters, &env)?;
                    parameters.clone()
                };
                Ok(Target::Postgres(conninfo(&parameters)))
            }
        }
    }
}

/// What a TLS handshake with a PostgreSQL server needs, apart from its address.
#[cfg(feature = "pg-tls")]
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The file of trusted CA certificates.
    pub(crate) cas: PathBuf,
    /// The host, if the URL has exactly one.
    pub(crate) host: Option<String>,
    /// Whether TLS begins without PostgreSQL's own request for it (`sslnegotiation=direct`).
    pub(crate) is_direct: bool,
}

#[cfg(feature = "pg-tls")]
impl DatabaseUrl {
    /// Returns what libpq uses for the handshake. `None` for SQLite, and if a service file of libpq determines it.
    pub(crate) fn handshake(&self, env: impl Fn(&str) -> Option<String>) -> Option<Handshake> {
        let Location::Postgres(parameters) = &self.location else {
            return None;
        };
        let parameters = tls::complete(parameters, &env).ok()?;
        let get = |name, variable| effective(&parameters, &env, name, variable);
        let negotiation = get("sslnegotiation", "PGSSLNEGOTIATION");
        Some(Handshake {
            cas: get("sslrootcert", "PGSSLROOTCERT")?.into(),
            host: get("host", "PGHOST").filter(|host| !host.contains(',')),
            is_direct: negotiation.as_deref() == Some("direct"),
        })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl").field(&self.target()).finish()
    }
}

/// Returns the absolute path, so that errors show where a relative path points. Returns the path unchanged if the
/// working directory was deleted.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Formats hosts with their ports, for instance `one:5432,two:5433`.
fn with_ports(hosts: &str, ports: &str) -> String {
    let ports: Vec<&str> = ports.split(',').collect();
    let named = hosts.split(',').enumerate().map(|(at, host)| {
        let port = ports
            .get(at)
            .or(ports.first())
            .copied()
            .filter(|port| !port.is_empty())
            .unwrap_or("5432");
        match host {
            "" => "the default socket".to_owned(),
            socket if is_socket(socket) => format!("{socket}/.s.PGSQL.{port}"),
            address if address.contains(':') => format!("[{address}]:{port}"),
            name => format!("{name}:{port}"),
        }
    });
    named.collect::<Vec<_>>().join(",")
}

fn sqlite(path: &str) -> Result<Location, BadUrl> {
    match path {
        ":memory:" => Ok(Location::Memory),
        _ if path.contains(char::is_control) => Err(BadUrl::WhiteSpace),
        _ if path.is_empty() || path.ends_with('/') || path.contains('?') => Err(BadUrl::NoFile),
        _ => Ok(Location::File(path.to_owned())),
    }
}

/// Parses the part after the scheme. Rejects URLs that libpq and RFC 3986 split differently.
fn postgres(rest: &str) -> Result<Parameters, BadUrl> {
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(BadUrl::WhiteSpace);
    }
    let mut parameters = BTreeMap::new();
    let before_path = rest.split('/').next().unwrap_or_default();
    let (user_info, after_user) = match before_path.split_once('@') {
        Some((_, more)) if has_second_at(more) => return Err(BadUrl::At),
        Some((user_info, _)) => (Some(user_info), &rest[user_info.len() + 1..]),
        None => (None, rest),
    };
    if let Some(user_info) = user_info {
        if user_info.contains('?') {
            return Err(BadUrl::QuestionMark);
        }
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user_info, None),
        };
        if user.is_empty() {
            return Err(BadUrl::NoUser);
        }
        parameters.insert("user", name(user)?);
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            parameters.insert("password", decode(password)?);
        }
    }
    let (hosts_and_path, query) = after_user.split_once('?').unwrap_or((after_user, ""));
    let (hosts, path) = hosts_and_path
        .split_once('/')
        .unwrap_or((hosts_and_path, ""));
    authority(hosts, &mut parameters)?;
    if path.contains(['/', '@', '#']) {
        return Err(BadUrl::Path);
    }
    if !path.is_empty() {
        parameters.insert("dbname", name(path)?);
    }
    let in_query = query_parameters(query)?;
    for (name, value) in in_query {
        // libpq prefers host and port of the query. URLs for other libraries name a socket there.
        if parameters.insert(name, value).is_some() && !matches!(name, "host" | "port") {
            return Err(BadUrl::Repeated(name));
        }
    }
    check_values(&parameters)?;
    Ok(parameters)
}

/// Returns whether the part after the first `@` has another one before a `?`.
fn has_second_at(more: &str) -> bool {
    let before = more.split_once('@').map(|(before, _)| before);
    before.is_some_and(|before| !before.contains('?'))
}

/// Parses `HOST:PORT`, or several separated by commas.
fn authority(hosts: &str, parameters: &mut Parameters) -> Result<(), BadUrl> {
    if hosts.is_empty() {
        return Ok(());
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for entry in hosts.split(',') {
        let (host, port) = match entry.strip_prefix('[') {
            Some(bracketed) => {
                let (address, after) = bracketed.split_once(']').ok_or(BadUrl::Host)?;
                let without_zone = address.split('%').next().unwrap_or_default();
                without_zone.parse::<Ipv6Addr>().map_err(|_| BadUrl::Host)?;
                match after.strip_prefix(':') {
                    Some(port) => (decode(address)?, port),
                    None if after.is_empty() => (decode(address)?, ""),
                    None => return Err(BadUrl::Host),
                }
            }
            None => {
                let (host, port) = entry.split_once(':').unwrap_or((entry, ""));
                let host = decode(host)?;
                if host.contains(':') {
                    return Err(BadUrl::Host);
                }
                (host, port)
            }
        };
        if host.contains(',') {
            return Err(BadUrl::Host);
        }
        names.push(host);
        ports.push(port.to_owned());
    }
    if names.iter().any(|host| !host.is_empty()) {
        parameters.insert("host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        parameters.insert("port", ports.join(","));
    }
    Ok(())
}

fn query_parameters(query: &str) -> Result<Parameters, BadUrl> {
    let mut parameters = BTreeMap::new();
    if query.contains('#') {
        return Err(BadUrl::Path);
    }
    for (at, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        let (name, value) = pair.split_once('=').ok_or(BadUrl::NoValue(at + 1))?;
        let (name, value) = (decode(name)?, decode(value)?);
        let known = PARAMETERS
            .into_iter()
            .find(|known| *known == name)
            .ok_or(BadUrl::UnknownParameter(at + 1))?;
        let (known, value) = match (known, value.as_str()) {
            ("ssl", "true") => ("sslmode", "require".to_owned()),
            ("ssl", _) => {
                return Err(BadUrl::Value {
                    name: "ssl",
                    rule: "true; for other modes, use sslmode",
                });
            }
            _ => (known, value),
        };
        if parameters.insert(known, value).is_some() {
            return Err(BadUrl::Repeated(known));
        }
    }
    // libpq treats an empty value as not set.
    parameters.retain(|_, value| !value.is_empty());
    Ok(parameters)
}

fn check_values(parameters: &Parameters) -> Result<(), BadUrl> {
    let get = |name: &str| parameters.get(name).map(String::as_str);
    for host in get("host").into_iter().flat_map(|hosts| hosts.split(',')) {
        // Addresses in parameters have no brackets; those with a zone have a percent sign.
        let is_name =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '%');
        if (!is_socket(host) && !host.chars().all(is_name)) || host.contains(char::is_control) {
            return Err(BadUrl::Host);
        }
    }
    let all = |name: &str, is_valid: fn(&str) -> bool| {
        get(name).is_none_or(|list| {
            list.split(',')
                .all(|item| item.is_empty() || is_valid(item))
        })
    };
    if !all("port", |port| {
        port.parse::<u16>().is_ok_and(|port| port > 0)
    }) {
        return Err(BadUrl::Port);
    }
    let wrong = |name, rule| Err(BadUrl::Value { name, rule });
    if !all("hostaddr", |address| address.parse::<IpAddr>().is_ok()) {
        return wrong("hostaddr", "an IP address");
    }
    for name in NUMBERS {
        if get(name).is_some_and(|value| value.parse::<u32>().is_err()) {
            return wrong(name, "a whole number");
        }
    }
    if get("sslmode").is_some_and(|mode| !SSL_MODES.contains(&mode)) {
        let rule = "disable, allow, prefer, require, verify-ca or verify-full";
        return wrong("sslmode", rule);
    }
    if get("client_encoding").is_some_and(|encoding| !encoding.eq_ignore_ascii_case("utf8")) {
        return wrong("client_encoding", "UTF8, or omitted");
    }
    match get("target_session_attrs") {
        None | Some("read-write" | "primary") => {}
        Some("any" | "read-only" | "standby" | "prefer-standby") => return Err(BadUrl::Standby),
        Some(_) => return wrong("target_session_attrs", "read-write, or omitted"),
    }
    // Error messages name these.
    let files = tls::FILES.into_iter().map(|(name, _)| name);
    for name in ["user", "dbname", "service"].into_iter().chain(files) {
        if get(name).is_some_and(|value| value.contains(char::is_control)) {
            return Err(BadUrl::WhiteSpace);
        }
    }
    // If parameters were written into the path, libpq would take them for the name, and errors would show a password.
    let is_separator = |c: char| c.is_whitespace() || matches!(c, '&' | ';' | '=' | '?');
    if get("dbname").is_some_and(|value| value.contains(is_separator)) {
        return Err(BadUrl::DatabaseName);
    }
    Ok(())
}

fn name(text: &str) -> Result<String, BadUrl> {
    let decoded = decode(text)?;
    if decoded.contains(char::is_control) {
        Err(BadUrl::WhiteSpace)
    } else {
        Ok(decoded)
    }
}

/// Decodes percent escapes. Rejects zero bytes, which would end libpq's input.
fn decode(text: &str) -> Result<String, BadUrl> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or(BadUrl::Escape)
        };
        let (high, low) = (digit()?, digit()?);
        match u8::try_from(high * 16 + low) {
            Ok(0) => return Err(BadUrl::WhiteSpace),
            Ok(byte) => bytes.push(byte),
            Err(_) => return Err(BadUrl::Escape),
        }
    }
    String::from_utf8(bytes).map_err(|_| BadUrl::NotUtf8)
}

/// In a build without TLS: returns an error unless TLS is turned off, or everything libpq could connect to is on this
/// machine.
fn check_tls(parameters: &Parameters, env: &impl Fn(&str) -> Option<String>) -> Result<(), BadUrl> {
    match parameters.get("sslmode").map(String::as_str) {
        Some("require" | "verify-ca" | "verify-full") => Err(BadUrl::TlsDemanded),
        Some("disable") => Ok(()),
        _ if is_on_this_machine(parameters, env) => Ok(()),
        _ => Err(BadUrl::NeedsTls),
    }
}

/// Returns a parameter of the URL, or else the value of the environment variable that libpq reads in its place.
fn effective(
    parameters: &Parameters,
    env: &impl Fn(&str) -> Option<String>,
    name: &str,
    variable: &str,
) -> Option<String> {
    let value = parameters.get(name).cloned().or_else(|| env(variable));
    value.filter(|value| !value.is_empty())
}

/// Returns whether everything libpq could connect to is on this machine. Also considers `hostaddr`, which replaces the
/// host, and the environment variables and service file that replace missing parts.
fn is_on_this_machine(parameters: &Parameters, env: &impl Fn(&str) -> Option<String>) -> bool {
    let addresses = [
        effective(parameters, env, "host", "PGHOST"),
        effective(parameters, env, "hostaddr", "PGHOSTADDR"),
    ];
    addresses
        .iter()
        .flatten()
        .flat_map(|list| list.split(','))
        .all(is_local)
        && effective(parameters, env, "service", "PGSERVICE").is_none()
}

/// Returns whether the host is the directory of a socket, or an abstract socket.
fn is_socket(host: &str) -> bool {
    host.starts_with('/') || host.starts_with('@')
}

fn is_local(host: &str) -> bool {
    host.is_empty()
        || is_socket(host)
        || host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Returns libpq's connection string. The defaults bound the time of a lost connection, and require a primary.
fn conninfo(parameters: &Parameters) -> String {
    let defaults = [
        ("connect_timeout", CONNECT_TIMEOUT.as_secs().to_string()),
        ("tcp_user_timeout", CONNECT_TIMEOUT.as_millis().to_string()),
        ("keepalives_idle", "5".to_owned()),
        ("keepalives_interval", "2".to_owned()),
        ("keepalives_count", "2".to_owned()),
        ("target_session_attrs", "read-write".to_owned()),
        ("application_name", "tollkey".to_owned()),
        ("client_encoding", "UTF8".to_owned()),
    ];
    let mut all = parameters.clone();
    for (name, value) in defaults {
        all.entry(name).or_insert(value);
    }
    let quoted = all.iter().map(|(name, value)| {
        let escaped = value.replace('\\', r"\\").replace('\'', r"\'");
        format!("{name}='{escaped}'")
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
