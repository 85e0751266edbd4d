//! The declaration of every setting.
//!
//! A field with an `arg` attribute is a setting: its doc comment is the help, and its type and
//! `value_parser` validate the value. A test checks that the flag, the variable and the field of the
//! configuration file have the same name.
//!
//! `hide_env_values` marks a secret. The setting of the same name with `_FILE` names a file that
//! holds it. clap keeps copies of values that are not wiped, so it neither reads the variable of a
//! secret, which is the `id` of the argument, nor parses its value:
//! [`Settings::resolve`](super::Settings::resolve) sets the field. Every user of the machine can read
//! a command line, so of the secrets only the database URL has a flag.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr as _,
    thread,
    time::Duration,
};

use clap::{ArgAction, Args};
use tollkey_api::Secret;
use tollkey_core::{IpList, RouteBase, ceiling::AncestorLimit, credential::CredentialHeaders};
use tollkey_store::{Backend, DatabaseUrl};

use super::rules::{self, LogFormat, PublicUrl};
use crate::{
    issuer_url::JwksUrl,
    listen_address::{ListenAddresses, SocketAccess, SocketGroup},
};

/// The entries of a list. It is an alias, because clap would parse a field declared as `Vec` entry by entry.
pub(super) type List = Vec<String>;

/// The trusted proxies; `None` for the value `none`. It is an alias, because clap would treat a field
/// declared as `Option` as a setting without a default.
pub type TrustedProxies = Option<IpList>;

pub(super) const DATABASE_URL: &str = "DATABASE_URL";
pub(super) const JWT_HS256_SECRET: &str = "TOLLKEY_JWT_HS256_SECRET";
pub(super) const SEALING_SECRET: &str = "TOLLKEY_SEALING_SECRET";
pub(super) const OIDC_CLIENT_SECRET: &str = "TOLLKEY_OIDC_CLIENT_SECRET";

/// All settings, in the order of the documentation.
#[derive(Debug, Clone, Args)]
pub(super) struct Values {
    #[command(flatten)]
    pub(super) server: ServerSettings,
    #[command(flatten)]
    pub(super) database: DatabaseSettings,
    #[command(flatten)]
    pub(super) tokens: TokenValues,
    #[command(flatten)]
    pub(super) dashboard: DashboardValues,
    #[command(flatten)]
    pub(super) keys: KeyValues,
    #[command(flatten)]
    pub(super) cache: CacheSettings,
    #[command(flatten)]
    pub(super) log: LogSettings,
}

/// The settings of the listeners and of requests.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerSettings {
    /// Where to listen, at most 8 entries: addresses with a port, such as `[::]:8080`, and Unix sockets,
    /// such as `unix:/run/tollkey/tollkey.sock`. Port 0 picks a free port. The peer of a Unix socket
    /// counts as a trusted proxy
    #[arg(long, env = "TOLLKEY_LISTEN", value_name = "LISTENER,...",
        default_value = "127.0.0.1:8080", value_parser = ListenAddresses::parse)]
    pub listen: ListenAddresses,
    /// Permissions of the Unix sockets of `TOLLKEY_LISTEN`, in octal. A process needs write permission to
    /// connect
    #[arg(long, env = "TOLLKEY_SOCKET_MODE", value_name = "MODE", default_value = "0660",
        value_parser = rules::socket_mode)]
    pub socket_mode: u32,
    /// Group of the Unix sockets of `TOLLKEY_LISTEN`, by name or number; by default the group of the
    /// process
    #[arg(long, env = "TOLLKEY_SOCKET_GROUP", value_name = "GROUP",
        value_parser = rules::socket_group)]
    pub socket_group: Option<SocketGroup>,
    /// Threads that handle requests, 1 to 1024; by default the number of cores
    #[arg(long, env = "TOLLKEY_WORKERS", value_name = "NUMBER",
        value_parser = rules::number::<usize>(1, 1024))]
    pub workers: Option<usize>,
    /// Maximum number of open connections. Above it, the server closes an idle connection before it
    /// serves a new one. By default the limit of open files minus 256, at most 10,000
    #[arg(long, env = "TOLLKEY_MAX_CONNECTIONS", value_name = "NUMBER",
        value_parser = rules::number::<usize>(1, 1_000_000))]
    pub max_connections: Option<usize>,
    /// Seconds for which the server still accepts connections after SIGTERM or SIGINT while
    /// `/readyz` returns 503, so that load balancers stop sending requests; 0 to 300. A second
    /// signal ends the wait
    #[arg(long = "drain-seconds", env = "TOLLKEY_DRAIN_SECONDS", value_name = "NUMBER",
        default_value = "0", value_parser = rules::seconds(0, 300))]
    pub drain: Duration,
    /// TCP address and port that serve `/metrics` for Prometheus, `/livez` and `/readyz`; off by
    /// default
    #[arg(long, env = "TOLLKEY_METRICS_LISTEN", value_name = "ADDRESS:PORT",
        value_parser = rules::socket_address)]
    pub metrics_listen: Option<SocketAddr>,
    /// TCP address and port that serve Envoy's `ext_authz` over gRPC, without TLS; off by default. Needs
    /// a build with the feature `grpc`
    #[arg(long, env = "TOLLKEY_GRPC_LISTEN", value_name = "ADDRESS:PORT",
        value_parser = rules::socket_address)]
    pub grpc_listen: Option<SocketAddr>,
    /// CIDRs of the proxies whose entry in `X-Forwarded-For` is trusted; `none` trusts no address. The
    /// peer of a Unix socket is always trusted
    #[arg(long, env = "TOLLKEY_TRUSTED_PROXIES", value_name = "CIDR,...",
        default_value = "127.0.0.0/8,::1/128", value_parser = rules::trusted_proxies)]
    pub trusted_proxies: TrustedProxies,
    /// Request header from which the gateway routes read the merchant of a request
    #[arg(long, env = "TOLLKEY_MERCHANT_HEADER", value_name = "NAME",
        default_value = "x-merchant-id", value_parser = rules::header_name)]
    pub merchant_header: String,
    /// Request headers from which the gateway routes read a key, one or more of these three; other
    /// routes read all of them. Without `authorization`, a client can send the API's own
    /// `Authorization` header together with the key
    #[arg(long, env = "TOLLKEY_CREDENTIAL_HEADERS", value_name = "NAME,...",
        default_value = "authorization,x-api-key,x-commerce-api-key",
        value_parser = rules::credential_headers)]
    pub credential_headers: CredentialHeaders,
    /// Path prefix that is removed once from the path of a verified request before the path is
    /// compared with the routes of a key: segments such as `/api`, and `{name}` for any segment, as in
    /// `/merchants/{merchant}`; `/` removes nothing
    #[arg(long, env = "TOLLKEY_ROUTE_BASE", value_name = "PATH", default_value = "/api",
        value_parser = RouteBase::parse)]
    pub route_base: RouteBase,
}

impl ServerSettings {
    /// Returns which users may connect to the Unix sockets.
    #[must_use]
    pub fn socket_access(&self) -> SocketAccess {
        SocketAccess {
            mode: self.socket_mode,
            group: self.socket_group.clone(),
        }
    }

    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    }
}

/// The settings of the database.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseSettings {
    /// URL of the database: `sqlite://PATH`, `sqlite://:memory:` or
    /// `postgres://USER:PASSWORD@HOST/NAME`. A URL in the flag must not have a password
    #[arg(long = "database-url", id = DATABASE_URL, value_name = "URL", hide_env_values = true,
        default_value = "sqlite://tollkey.db", value_parser = DatabaseUrl::parse)]
    pub url: DatabaseUrl,
    /// Secret of at least 32 bytes, the same for all replicas, that encrypts idempotency records. By
    /// default it is derived from `TOLLKEY_JWT_HS256_SECRET`; without that, only the process that
    /// wrote a record can replay it
    #[arg(id = SEALING_SECRET, value_name = "SECRET", hide_env_values = true)]
    pub sealing_secret: Option<Secret>,
    /// Database connections for management requests, at most 1000; verification, leases and
    /// sessions use separate connections
    #[arg(long = "database-pool", env = "TOLLKEY_DATABASE_POOL", value_name = "NUMBER",
        default_value = "8", value_parser = rules::number::<u32>(1, 1000))]
    pub pool: u32,
    /// Seconds for which a starting server or command waits until PostgreSQL can be reached, 0 to
    /// 3600; 0 does not wait
    #[arg(long = "database-wait-seconds", env = "TOLLKEY_DATABASE_WAIT_SECONDS",
        value_name = "NUMBER", default_value = "30", value_parser = rules::seconds(0, 3600))]
    pub wait: Duration,
    /// Migrate PostgreSQL when the server starts; SQLite is always migrated
    #[arg(long, env = "TOLLKEY_MIGRATE", value_name = "BOOL", default_value = "false",
        action = ArgAction::Set, value_parser = rules::switch)]
    pub migrate: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseKind<'a> {
    Postgres,
    SqliteFile(&'a Path),
    /// A SQLite database in memory, which ends with the process.
    SqliteMemory,
}

impl DatabaseSettings {
    #[must_use]
    pub fn kind(&self) -> DatabaseKind<'_> {
        match (self.url.backend(), self.url.file()) {
            (Backend::Postgres, _) => DatabaseKind::Postgres,
            (Backend::Sqlite, Some(path)) => DatabaseKind::SqliteFile(path),
            (Backend::Sqlite, None) => DatabaseKind::SqliteMemory,
        }
    }
}

/// The settings of management tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Management tokens")]
pub(super) struct TokenValues {
    /// Secret of at least 32 bytes that signs and verifies management tokens (HS256)
    #[arg(id = JWT_HS256_SECRET, value_name = "SECRET", hide_env_values = true)]
    pub(super) hs256_secret: Option<Secret>,
    /// PEM file of the public key that verifies management tokens: RSA, P-256, P-384 or Ed25519
    #[arg(
        long = "jwt-public-key-file",
        env = "TOLLKEY_JWT_PUBLIC_KEY_FILE",
        value_name = "PATH"
    )]
    pub(super) public_key_file: Option<PathBuf>,
    /// `https` URL of the JWKS whose keys verify management tokens
    #[arg(long = "jwt-jwks-url", env = "TOLLKEY_JWT_JWKS_URL", value_name = "URL",
        value_parser = JwksUrl::from_str)]
    pub(super) jwks_url: Option<JwksUrl>,
    #[command(flatten)]
    pub(super) claims: ClaimRules,
}

/// The claims that a token must have, and the names of the claims that hold the account and the
/// roles. `auth::jwt` checks them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Management tokens")]
pub struct ClaimRules {
    /// Issuer of management tokens (`iss`); required with a public key file or a JWKS URL
    // `None` accepts any issuer or none.
    #[arg(long = "jwt-issuer", env = "TOLLKEY_JWT_ISSUER", value_name = "ISSUER",
        value_parser = rules::text)]
    pub issuer: Option<String>,
    /// Audience of management tokens (`aud`); required with a public key file or a JWKS URL. When
    /// it is not set, a token with an audience is rejected
    // RFC 7519, section 4.1.3.
    #[arg(long = "jwt-audience", env = "TOLLKEY_JWT_AUDIENCE", value_name = "AUDIENCE",
        value_parser = rules::text)]
    pub audience: Option<String>,
    /// Claim that names the account of a management token: its name, or the path of a nested claim,
    /// such as `/shop/id` or `shop.id`
    #[arg(long = "jwt-account-claim", env = "TOLLKEY_JWT_ACCOUNT_CLAIM", value_name = "CLAIM",
        default_value = "account_id", value_parser = rules::claim)]
    pub account_claim: String,
    /// Claim that holds the roles of a management token (`operator`, `service`): its name, or the
    /// path of a nested claim, such as `/realm_access/roles` or `realm_access.roles`. By default
    /// `roles` with an HS256 secret; with a public key file or a JWKS URL no token has a role until
    /// it is set
    #[arg(long = "jwt-roles-claim", env = "TOLLKEY_JWT_ROLES_CLAIM", value_name = "CLAIM",
        value_parser = rules::claim)]
    pub roles_claim: Option<String>,
}

/// Sign-in to the dashboard.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Dashboard")]
pub(super) struct DashboardValues {
    /// Client secret of this server at the provider; omit it for a public client
    #[arg(id = OIDC_CLIENT_SECRET, value_name = "SECRET", hide_env_values = true)]
    pub(super) oidc_client_secret: Option<Secret>,
    /// Whether users can sign in to the dashboard with a management token; by default only in
    /// development mode
    #[arg(long = "dashboard-token-sign-in", env = "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN",
        value_name = "BOOL", action = ArgAction::Set, value_parser = rules::switch)]
    pub(super) token_sign_in: Option<bool>,
    /// URL of this server for its clients, such as `https://keys.example.com` or, behind a path
    /// prefix, `https://example.com/keys`. A proxy may strip the prefix or pass it on. Required
    /// with `TOLLKEY_OIDC_ISSUER`
    #[arg(long, env = "TOLLKEY_PUBLIC_URL", value_name = "URL", value_parser = rules::public_url)]
    pub(super) public_url: Option<PublicUrl>,
    /// Issuer of the OpenID Connect provider that signs people in to the dashboard, an `https` URL.
    /// The provider redirects to `TOLLKEY_PUBLIC_URL` followed by `/dashboard/sign-in/callback`
    #[arg(long, env = "TOLLKEY_OIDC_ISSUER", value_name = "URL", value_parser = rules::issuer)]
    pub(super) oidc_issuer: Option<String>,
    /// Client ID of this server at the provider; required with `TOLLKEY_OIDC_ISSUER`
    #[arg(long, env = "TOLLKEY_OIDC_CLIENT_ID", value_name = "ID", value_parser = rules::text)]
    pub(super) oidc_client_id: Option<String>,
    /// Scopes to request from the provider in addition to `openid`, so that ID tokens have the
    /// account and roles claims
    #[arg(long, env = "TOLLKEY_OIDC_SCOPES", value_name = "SCOPE,...",
        value_parser = rules::oidc_scopes)]
    pub(super) oidc_scopes: Option<List>,
    /// Claim that names the account of an ID token: its name, or the path of a nested claim
    #[arg(long, env = "TOLLKEY_OIDC_ACCOUNT_CLAIM", value_name = "CLAIM",
        default_value = "account_id", value_parser = rules::claim)]
    pub(super) oidc_account_claim: String,
    /// Claim of an ID token that holds roles (`operator`): its name, or the path of a nested claim;
    /// no ID token has a role until it is set
    #[arg(long, env = "TOLLKEY_OIDC_ROLES_CLAIM", value_name = "CLAIM",
        value_parser = rules::claim)]
    pub(super) oidc_roles_claim: Option<String>,
}

/// The limits and scopes of keys.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Keys")]
pub(super) struct KeyValues {
    #[command(flatten)]
    pub(super) limits: KeyLimits,
    /// Scopes in addition to the built-in ones
    #[arg(long, env = "TOLLKEY_SCOPES", value_name = "SCOPE,...", value_parser = rules::list)]
    pub(super) scopes: Option<List>,
    /// Scopes of `TOLLKEY_SCOPES` that the scope `commerce` implies
    #[arg(long, env = "TOLLKEY_COMMERCE_SCOPES", value_name = "SCOPE,...",
        value_parser = rules::list)]
    pub(super) commerce_scopes: Option<List>,
}

/// The limits on the number of keys.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Keys")]
pub struct KeyLimits {
    /// Maximum number of keys of one application that are neither revoked nor expired
    #[arg(long, env = "TOLLKEY_APPLICATION_KEY_LIMIT", value_name = "NUMBER", default_value = "20",
        value_parser = rules::number::<u32>(1, 10_000))]
    pub application_key_limit: u32,
    /// Maximum number of commerce keys, and of account keys, of one account that are neither
    /// revoked nor expired; unlimited by default
    #[arg(long, env = "TOLLKEY_ACCOUNT_KEY_LIMIT", value_name = "NUMBER",
        value_parser = rules::number::<u32>(1, 1_000_000))]
    pub account_key_limit: Option<u32>,
    /// Maximum number of ancestors of a key, 0 to 8. A key at the limit cannot create keys; with 0,
    /// no key can
    #[arg(long, env = "TOLLKEY_KEY_DEPTH_LIMIT", value_name = "NUMBER", default_value = "3",
        value_parser = rules::key_depth_limit)]
    pub key_depth_limit: AncestorLimit,
}

/// The limits of the cache.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Maximum bytes of memory for cached keys, their rate limits and the usage counts that are not
    /// written yet; above it, keys of the account with the most cached bytes are evicted first
    #[arg(long = "cache-bytes", env = "TOLLKEY_CACHE_BYTES", value_name = "NUMBER",
        default_value = "268435456",
        value_parser = rules::number::<usize>(tollkey_verifier::Settings::MIN_BYTES, 1 << 40))]
    pub bytes: usize,
    /// Maximum number of cached keys; `TOLLKEY_CACHE_BYTES` is usually reached first
    #[arg(long = "cached-keys", alias = "remembered-keys", env = "TOLLKEY_CACHED_KEYS",
        value_name = "NUMBER", default_value = "1000000",
        value_parser = rules::number::<usize>(1, 100_000_000))]
    pub keys: usize,
}

/// The level and format of logs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// Log filter: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or directives
    /// such as `info,tollkey_server=debug`
    #[arg(long = "log", env = "TOLLKEY_LOG", value_name = "FILTER", default_value = "info",
        value_parser = rules::log_filter)]
    pub filter: String,
    /// How logs are written to stderr: `pretty` or `json`
    #[arg(long = "log-format", env = "TOLLKEY_LOG_FORMAT", value_name = "FORMAT",
        default_value = "pretty", value_parser = rules::log_format)]
    pub format: LogFormat,
}
