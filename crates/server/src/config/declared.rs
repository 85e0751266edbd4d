//! The settings there are.

use super::setting::{Form, Setting};

/// The configuration file. The one setting that is no member of it.
pub const CONFIG: Setting = Setting {
    env: "TOLLKEY_CONFIG",
    flag: Some("config"),
    form: Form::Text("PATH"),
    default: None,
    help: "Configuration file; without it ./tollkey.toml when that exists",
};

pub(super) const LISTEN: Setting = Setting {
    env: "TOLLKEY_LISTEN",
    flag: Some("listen"),
    form: Form::Text("ADDRESS:PORT"),
    default: Some("127.0.0.1:8080"),
    help: "Where to listen; port 0 picks a free one",
};
pub(super) const WORKERS: Setting = Setting {
    env: "TOLLKEY_WORKERS",
    flag: Some("workers"),
    form: Form::Number,
    default: None,
    help: "Threads that answer requests; as many as there are cores when not set",
};
pub(super) const MAX_CONNECTIONS: Setting = Setting {
    env: "TOLLKEY_MAX_CONNECTIONS",
    flag: Some("max-connections"),
    form: Form::Number,
    default: None,
    help: "How many connections may be open; over it an idle one is closed first. When not set, the limit of open files \
           less 256, at most 10000",
};
pub(super) const DRAIN_SECONDS: Setting = Setting {
    env: "TOLLKEY_DRAIN_SECONDS",
    flag: Some("drain-seconds"),
    form: Form::Number,
    default: Some("0"),
    help: "For how many seconds the server still accepts connections after SIGTERM or SIGINT while /readyz returns 503, so \
           that load balancers stop sending requests; 0 to 300. A second signal ends the wait",
};
pub(super) const METRICS_LISTEN: Setting = Setting {
    env: "TOLLKEY_METRICS_LISTEN",
    flag: Some("metrics-listen"),
    form: Form::Text("ADDRESS:PORT"),
    default: None,
    help: "Where to serve /metrics for Prometheus, and /livez and /readyz; off when not set",
};
pub(super) const ROUTE_BASE: Setting = Setting {
    env: "TOLLKEY_ROUTE_BASE",
    flag: Some("route-base"),
    form: Form::Text("PATH"),
    default: Some("/api"),
    help: "Cut once from the path of a verified request before it is compared with the routes of a key: segments such as \
           /api, and {name} for any segment, as in /merchants/{merchant}; / cuts nothing",
};
pub(super) const MERCHANT_HEADER: Setting = Setting {
    env: "TOLLKEY_MERCHANT_HEADER",
    flag: Some("merchant-header"),
    form: Form::Text("NAME"),
    default: Some("x-merchant-id"),
    help: "Request header in which a gateway's request names its merchant",
};
pub(super) const CREDENTIAL_HEADERS: Setting = Setting {
    env: "TOLLKEY_CREDENTIAL_HEADERS",
    flag: Some("credential-headers"),
    form: Form::List("NAME,..."),
    default: Some("authorization,x-api-key,x-commerce-api-key"),
    help: "Request headers that the gateway routes read a key from, some of these three; without authorization, an API's own \
           Authorization header passes beside the key",
};
pub(super) const TRUSTED_PROXIES: Setting = Setting {
    env: "TOLLKEY_TRUSTED_PROXIES",
    flag: Some("trusted-proxies"),
    form: Form::List("CIDR,..."),
    default: Some("127.0.0.0/8,::1/128"),
    help: "Networks whose entry in X-Forwarded-For is believed; none trusts nobody",
};
pub(super) const LOG: Setting = Setting {
    env: "TOLLKEY_LOG",
    flag: Some("log"),
    form: Form::Text("FILTER"),
    default: Some("info"),
    help: "What is logged: a level (off, error, warn, info, debug, trace), or directives such as \
           info,tollkey_server=debug",
};
pub(super) const LOG_FORMAT: Setting = Setting {
    env: "TOLLKEY_LOG_FORMAT",
    flag: Some("log-format"),
    form: Form::Text("FORMAT"),
    default: Some("pretty"),
    help: "How logs are written to stderr: pretty or json",
};

pub(super) const DATABASE_URL: Setting = Setting {
    env: "DATABASE_URL",
    flag: Some("database-url"),
    form: Form::Text("URL"),
    default: Some("sqlite://tollkey.db"),
    help: "Where everything is kept: sqlite://PATH, sqlite://:memory: or postgres://USER:PASSWORD@HOST/NAME",
};
pub(super) const DATABASE_URL_FILE: Setting = Setting {
    env: "DATABASE_URL_FILE",
    flag: Some("database-url-file"),
    form: Form::Text("PATH"),
    default: None,
    help: "File that holds DATABASE_URL",
};
pub(super) const DATABASE_POOL: Setting = Setting {
    env: "TOLLKEY_DATABASE_POOL",
    flag: Some("database-pool"),
    form: Form::Number,
    default: Some("8"),
    help: "Most database connections for management requests; others have their own",
};
pub(super) const DATABASE_WAIT_SECONDS: Setting = Setting {
    env: "TOLLKEY_DATABASE_WAIT_SECONDS",
    flag: Some("database-wait-seconds"),
    form: Form::Number,
    default: Some("30"),
    help: "For how many seconds a starting server or command waits for a PostgreSQL server that cannot be reached yet, \
           0 to 3600; 0 does not wait",
};
pub(super) const MIGRATE: Setting = Setting {
    env: "TOLLKEY_MIGRATE",
    flag: Some("migrate"),
    form: Form::Switch,
    default: Some("false"),
    help: "Migrate PostgreSQL when the server starts; SQLite always is",
};

pub(super) const JWT_HS256_SECRET: Setting = Setting {
    env: "TOLLKEY_JWT_HS256_SECRET",
    flag: None,
    form: Form::Text("SECRET"),
    default: None,
    help: "Management tokens are signed with this secret of at least 32 bytes (HS256)",
};
pub(super) const JWT_HS256_SECRET_FILE: Setting = Setting {
    env: "TOLLKEY_JWT_HS256_SECRET_FILE",
    flag: Some("jwt-hs256-secret-file"),
    form: Form::Text("PATH"),
    default: None,
    help: "File that holds TOLLKEY_JWT_HS256_SECRET",
};
pub(super) const JWT_PUBLIC_KEY_FILE: Setting = Setting {
    env: "TOLLKEY_JWT_PUBLIC_KEY_FILE",
    flag: Some("jwt-public-key-file"),
    form: Form::Text("PATH"),
    default: None,
    help: "Management tokens are signed with the key whose public half this PEM file holds (RSA, P-256, P-384, Ed25519)",
};
pub(super) const JWT_JWKS_URL: Setting = Setting {
    env: "TOLLKEY_JWT_JWKS_URL",
    flag: Some("jwt-jwks-url"),
    form: Form::Text("URL"),
    default: None,
    help: "Management tokens are signed with a key of the set at this https URL",
};
pub(super) const JWT_ISSUER: Setting = Setting {
    env: "TOLLKEY_JWT_ISSUER",
    flag: Some("jwt-issuer"),
    form: Form::Text("ISSUER"),
    default: None,
    help: "Who issues management tokens (iss); must be set with a public key file or a JWKS URL",
};
pub(super) const JWT_AUDIENCE: Setting = Setting {
    env: "TOLLKEY_JWT_AUDIENCE",
    flag: Some("jwt-audience"),
    form: Form::Text("AUDIENCE"),
    default: None,
    help: "Whom management tokens are for (aud); must be set with a public key file or a JWKS URL. \
           A token with an audience is refused where none is set",
};
pub(super) const JWT_ACCOUNT_CLAIM: Setting = Setting {
    env: "TOLLKEY_JWT_ACCOUNT_CLAIM",
    flag: Some("jwt-account-claim"),
    form: Form::Text("CLAIM"),
    default: Some("account_id"),
    help: "Claim that names the account of a management token: its name, or the path of a nested claim, such as \
           /shop/id or shop.id",
};
pub(super) const JWT_ROLES_CLAIM: Setting = Setting {
    env: "TOLLKEY_JWT_ROLES_CLAIM",
    flag: Some("jwt-roles-claim"),
    form: Form::Text("CLAIM"),
    default: None,
    help: "Claim that holds roles (operator, service): its name, or the path of a nested claim, such as \
           /realm_access/roles or realm_access.roles; roles with HS256 secrets, with the other two sources no token \
           has a role until it is set",
};

pub(super) const SEALING_SECRET: Setting = Setting {
    env: "TOLLKEY_SEALING_SECRET",
    flag: None,
    form: Form::Text("SECRET"),
    default: None,
    help: "Secret of at least 32 bytes, the same for all replicas, that seals the answers kept for Idempotency-Key; \
           made from TOLLKEY_JWT_HS256_SECRET when not set, and new at each start when there is none either",
};
pub(super) const SEALING_SECRET_FILE: Setting = Setting {
    env: "TOLLKEY_SEALING_SECRET_FILE",
    flag: Some("sealing-secret-file"),
    form: Form::Text("PATH"),
    default: None,
    help: "File that holds TOLLKEY_SEALING_SECRET",
};

pub(super) const DASHBOARD_TOKEN_SIGN_IN: Setting = Setting {
    env: "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN",
    flag: Some("dashboard-token-sign-in"),
    form: Form::Switch,
    default: None,
    help: "Whether a management token signs in to the dashboard; when not set, only in development mode",
};

pub(super) const PUBLIC_URL: Setting = Setting {
    env: "TOLLKEY_PUBLIC_URL",
    flag: Some("public-url"),
    form: Form::Text("URL"),
    default: None,
    help: "URL of this server for its clients, such as https://keys.example.com or, behind a path prefix, \
           https://example.com/keys. A proxy may strip the prefix or pass it on. Required with TOLLKEY_OIDC_ISSUER",
};
pub(super) const OIDC_ISSUER: Setting = Setting {
    env: "TOLLKEY_OIDC_ISSUER",
    flag: Some("oidc-issuer"),
    form: Form::Text("URL"),
    default: None,
    help: "OpenID Connect provider that signs people in to the dashboard: its issuer, an https URL. \
           It sends them back to TOLLKEY_PUBLIC_URL with /dashboard/sign-in/callback behind it",
};
pub(super) const OIDC_CLIENT_ID: Setting = Setting {
    env: "TOLLKEY_OIDC_CLIENT_ID",
    flag: Some("oidc-client-id"),
    form: Form::Text("ID"),
    default: None,
    help: "What this server is called at the provider; must be set with TOLLKEY_OIDC_ISSUER",
};
pub(super) const OIDC_CLIENT_SECRET: Setting = Setting {
    env: "TOLLKEY_OIDC_CLIENT_SECRET",
    flag: None,
    form: Form::Text("SECRET"),
    default: None,
    help: "The client's secret at the provider; none for a public client",
};
pub(super) const OIDC_CLIENT_SECRET_FILE: Setting = Setting {
    env: "TOLLKEY_OIDC_CLIENT_SECRET_FILE",
    flag: Some("oidc-client-secret-file"),
    form: Form::Text("PATH"),
    default: None,
    help: "File that holds TOLLKEY_OIDC_CLIENT_SECRET",
};
pub(super) const OIDC_SCOPES: Setting = Setting {
    env: "TOLLKEY_OIDC_SCOPES",
    flag: Some("oidc-scopes"),
    form: Form::List("SCOPE,..."),
    default: None,
    help: "Scopes asked for at the provider besides openid: those that put the claims below into ID tokens",
};
pub(super) const OIDC_ACCOUNT_CLAIM: Setting = Setting {
    env: "TOLLKEY_OIDC_ACCOUNT_CLAIM",
    flag: Some("oidc-account-claim"),
    form: Form::Text("CLAIM"),
    default: Some("account_id"),
    help: "Claim that names the account of an ID token: its name, or the path of a nested claim",
};
pub(super) const OIDC_ROLES_CLAIM: Setting = Setting {
    env: "TOLLKEY_OIDC_ROLES_CLAIM",
    flag: Some("oidc-roles-claim"),
    form: Form::Text("CLAIM"),
    default: None,
    help: "Claim of an ID token that holds roles (operator): its name, or the path of a nested claim; no ID token has a \
           role until it is set",
};

pub(super) const APPLICATION_KEY_LIMIT: Setting = Setting {
    env: "TOLLKEY_APPLICATION_KEY_LIMIT",
    flag: Some("application-key-limit"),
    form: Form::Number,
    default: Some("20"),
    help: "Most keys of one application that are neither revoked nor expired",
};
pub(super) const ACCOUNT_KEY_LIMIT: Setting = Setting {
    env: "TOLLKEY_ACCOUNT_KEY_LIMIT",
    flag: Some("account-key-limit"),
    form: Form::Number,
    default: None,
    help: "Most commerce keys, and most account keys, of one account that are neither revoked nor expired; \
           unlimited when not set",
};
pub(super) const KEY_DEPTH_LIMIT: Setting = Setting {
    env: "TOLLKEY_KEY_DEPTH_LIMIT",
    flag: Some("key-depth-limit"),
    form: Form::Number,
    default: Some("3"),
    help: "How many ancestors a key can have, 0 to 8: a key at the limit cannot create keys; with 0 no key can",
};
pub(super) const SCOPES: Setting = Setting {
    env: "TOLLKEY_SCOPES",
    flag: Some("scopes"),
    form: Form::List("SCOPE,..."),
    default: None,
    help: "Scopes there are besides the built-in ones",
};
pub(super) const COMMERCE_SCOPES: Setting = Setting {
    env: "TOLLKEY_COMMERCE_SCOPES",
    flag: Some("commerce-scopes"),
    form: Form::List("SCOPE,..."),
    default: None,
    help: "Those of TOLLKEY_SCOPES that the scope commerce implies",
};
pub(super) const CACHE_BYTES: Setting = Setting {
    env: "TOLLKEY_CACHE_BYTES",
    flag: Some("cache-bytes"),
    form: Form::Number,
    default: Some("268435456"),
    help: "Most bytes of memory that cached keys take, their rate limits and the usage counts that are not written yet; \
           beyond it the account with the most cached bytes loses keys first",
};
pub(super) const CACHED_KEYS: Setting = Setting {
    env: "TOLLKEY_CACHED_KEYS",
    flag: Some("cached-keys"),
    form: Form::Number,
    default: Some("1000000"),
    help: "Most keys that are cached; TOLLKEY_CACHE_BYTES is usually reached first",
};
/// The name that [`CACHED_KEYS`] had up to release 0.1.
pub(super) const REMEMBERED_KEYS: Setting = Setting {
    env: "TOLLKEY_REMEMBERED_KEYS",
    flag: Some("remembered-keys"),
    default: None,
    ..CACHED_KEYS
};

/// Former names of settings. They are accepted with a warning for one release, and not shown.
pub(super) const FORMER: &[Setting] = &[REMEMBERED_KEYS];

/// The secrets, each with the setting that names its file.
pub(super) const SECRETS: [(Setting, Setting); 4] = [
    (DATABASE_URL, DATABASE_URL_FILE),
    (JWT_HS256_SECRET, JWT_HS256_SECRET_FILE),
    (SEALING_SECRET, SEALING_SECRET_FILE),
    (OIDC_CLIENT_SECRET, OIDC_CLIENT_SECRET_FILE),
];

/// All fields of the configuration file, in the order in which `--help` shows them.
pub const SETTINGS: &[Setting] = &[
    LISTEN,
    DATABASE_URL,
    DATABASE_URL_FILE,
    DATABASE_POOL,
    DATABASE_WAIT_SECONDS,
    MIGRATE,
    WORKERS,
    MAX_CONNECTIONS,
    DRAIN_SECONDS,
    METRICS_LISTEN,
    TRUSTED_PROXIES,
    MERCHANT_HEADER,
    CREDENTIAL_HEADERS,
    ROUTE_BASE,
    LOG,
    LOG_FORMAT,
    JWT_HS256_SECRET,
    JWT_HS256_SECRET_FILE,
    JWT_PUBLIC_KEY_FILE,
    JWT_JWKS_URL,
    JWT_ISSUER,
    JWT_AUDIENCE,
    JWT_ACCOUNT_CLAIM,
    JWT_ROLES_CLAIM,
    SEALING_SECRET,
    SEALING_SECRET_FILE,
    DASHBOARD_TOKEN_SIGN_IN,
    PUBLIC_URL,
    OIDC_ISSUER,
    OIDC_CLIENT_ID,
    OIDC_CLIENT_SECRET,
    OIDC_CLIENT_SECRET_FILE,
    OIDC_SCOPES,
    OIDC_ACCOUNT_CLAIM,
    OIDC_ROLES_CLAIM,
    APPLICATION_KEY_LIMIT,
    ACCOUNT_KEY_LIMIT,
    KEY_DEPTH_LIMIT,
    SCOPES,
    COMMERCE_SCOPES,
    CACHE_BYTES,
    CACHED_KEYS,
];
