//! Every setting, documented where it is declared, and the checked whole of them: [`Settings`].
//!
//! A setting is an environment variable, a field of an optional `tollkey.toml` (its name in lower case, without
//! `TOLLKEY_`) and, unless it is a secret, a flag. Flag wins over environment over file over default. An empty
//! value is an error, not "unset"; so is an unknown field of the file. A secret can be in a file of its own,
//! named by the same setting + `_FILE`. An error names the variable and the rule, and never the value. An unknown
//! variable, and what is probably a mistake, is a [`Warning`].

mod declared;
mod effective;
mod public_key;
mod rules;
mod setting;
mod sources;
mod unknown;
mod warning;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

pub use tollkey_api::Secret;
use tollkey_core::{
    Catalogue, Invalid, IpList, RouteBase, ceiling::DepthLimit, credential::CredentialHeaders,
};
use tollkey_store::{Backend, DatabaseUrl};

use self::declared::*;
pub(crate) use self::public_key::has_escaped_line_breaks;
use self::sources::{Sources, invalid};
pub use self::{
    declared::{CONFIG, SETTINGS},
    effective::EffectiveSetting,
    public_key::PublicKeyFile,
    rules::LogFormat,
    setting::{Form, Setting},
    sources::{ConfigError, Options, Source},
    unknown::UnknownVariable,
    warning::Warning,
};
use crate::{issuer_url::JwksUrl, public_path::PublicPath, transport::open_files};

/// The fewest bytes of a secret that signs tokens: the output of SHA-256 (RFC 7518, section 3.2).
pub const HS256_SECRET_MIN: usize = 32;

/// How long a client may take nothing of a response before its connection is closed. Each byte it takes begins the time
/// anew, so that a slow client gets all of its response.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The file that is read when nobody names one, if it is there.
pub const DEFAULT_FILE: &str = "tollkey.toml";

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `TOLLKEY_LISTEN`.
    pub listen: SocketAddr,
    /// `TOLLKEY_WORKERS`, at least 1.
    pub workers: usize,
    /// `TOLLKEY_MAX_CONNECTIONS`, at least 1; `None` follows from the limit of open files.
    pub max_connections: Option<usize>,
    /// How long a client may take nothing of a response before its connection is closed: [`WRITE_TIMEOUT`].
    pub write_timeout: Duration,
    /// `TOLLKEY_DRAIN_SECONDS`.
    pub drain: Duration,
    /// `TOLLKEY_METRICS_LISTEN`; `None` when metrics are off.
    pub metrics_listen: Option<SocketAddr>,
    /// `TOLLKEY_TRUSTED_PROXIES`; `None` when nobody is trusted.
    pub trusted_proxies: Option<IpList>,
    /// `TOLLKEY_MERCHANT_HEADER`, in lower case.
    pub merchant_header: String,
    /// `TOLLKEY_CREDENTIAL_HEADERS`.
    pub credential_headers: CredentialHeaders,
    /// `TOLLKEY_ROUTE_BASE`, without a slash at its end; empty when nothing is cut.
    pub route_base: RouteBase,
    /// What is logged, and how.
    pub log: LogSettings,
    /// `DATABASE_URL`.
    pub database: Database,
    /// `TOLLKEY_DATABASE_POOL`, at least 1.
    pub database_pool: u32,
    /// `TOLLKEY_DATABASE_WAIT_SECONDS`.
    pub database_wait: Duration,
    /// `TOLLKEY_MIGRATE`.
    pub migrate: bool,
    /// What is known of management tokens.
    pub tokens: TokenSettings,
    /// `TOLLKEY_SEALING_SECRET`, at least [`HS256_SECRET_MIN`] bytes.
    pub sealing_secret: Option<Secret>,
    /// `TOLLKEY_DASHBOARD_TOKEN_SIGN_IN`; `None` is yes in development mode, and no otherwise.
    pub dashboard_token_sign_in: Option<bool>,
    /// The path of `TOLLKEY_PUBLIC_URL`; empty when there is none.
    pub public_path: PublicPath,
    /// Who signs people in to the dashboard; `None` when `TOLLKEY_OIDC_ISSUER` is not set.
    pub oidc: Option<OidcSettings>,
    /// `TOLLKEY_APPLICATION_KEY_LIMIT`, at least 1.
    pub application_key_limit: u32,
    /// `TOLLKEY_ACCOUNT_KEY_LIMIT`, at least 1; `None` is unlimited.
    pub account_key_limit: Option<u32>,
    /// `TOLLKEY_KEY_DEPTH_LIMIT`.
    pub key_depth_limit: DepthLimit,
    /// The built-in scopes, `TOLLKEY_SCOPES` and `TOLLKEY_COMMERCE_SCOPES`.
    pub catalogue: Catalogue,
    /// `TOLLKEY_CACHE_BYTES`, at least [`tollkey_verifier::Settings::MIN_BYTES`].
    pub cache_bytes: usize,
    /// `TOLLKEY_CACHED_KEYS`, at least 1.
    pub cached_keys: usize,
    /// Former names of settings that are in use, each with the name to use instead.
    pub renamed: Vec<(&'static str, &'static str)>,
    /// Environment variables that look like settings and have no effect. Development mode does not start with one.
    pub unknown_variables: Vec<UnknownVariable>,
    /// All settings in effect, without secrets.
    pub effective: Vec<EffectiveSetting>,
    /// Secrets and files that can be used and are probably a mistake. [`Settings::warnings`] returns these and the rest.
    pub suspicious: Vec<Warning>,
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// `TOLLKEY_LOG`: directives that `EnvFilter` reads.
    pub filter: String,
    /// `TOLLKEY_LOG_FORMAT`.
    pub format: LogFormat,
}

/// Where everything is kept.
#[derive(Debug, Clone)]
pub struct Database {
    /// The URL, which shows no password.
    pub url: DatabaseUrl,
    /// What it leads to.
    pub kind: DatabaseKind,
}

impl Database {
    /// Reads a URL. The error repeats nothing of it: it may hold a password.
    fn parse(url: &str) -> Result<Self, Invalid> {
        let url = DatabaseUrl::parse(url).map_err(|error| Invalid::new(error.to_string()))?;
        let kind = match (url.backend(), url.file()) {
            (Backend::Postgres, _) => DatabaseKind::Postgres,
            (Backend::Sqlite, Some(path)) => DatabaseKind::SqliteFile(path.to_owned()),
            (Backend::Sqlite, None) => DatabaseKind::SqliteMemory,
        };
        Ok(Self { url, kind })
    }
}

/// What a database URL leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseKind {
    /// A PostgreSQL server.
    Postgres,
    /// An SQLite file.
    SqliteFile(PathBuf),
    /// An SQLite database that ends with the process.
    SqliteMemory,
}

/// What is known of management tokens.
#[derive(Debug, Clone)]
pub struct TokenSettings {
    /// Whose signature counts.
    pub source: TokenSource,
    /// `TOLLKEY_JWT_ISSUER`. Always there with a public key file or a JWKS URL.
    pub issuer: Option<String>,
    /// `TOLLKEY_JWT_AUDIENCE`. Always there with a public key file or a JWKS URL.
    pub audience: Option<String>,
    /// `TOLLKEY_JWT_ACCOUNT_CLAIM`.
    pub account_claim: String,
    /// `TOLLKEY_JWT_ROLES_CLAIM`; `None` when tokens carry no roles.
    pub roles_claim: Option<String>,
}

/// Whose signature on a management token counts.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// `TOLLKEY_JWT_HS256_SECRET`: everybody's who holds this secret of at least [`HS256_SECRET_MIN`] bytes.
    Hs256(Secret),
    /// `TOLLKEY_JWT_PUBLIC_KEY_FILE`: that of the key whose public half is in this PEM file.
    PublicKeyFile(PublicKeyFile),
    /// `TOLLKEY_JWT_JWKS_URL`: that of a key in the set found there.
    Jwks(JwksUrl),
    /// None is set: development mode, see [`crate::dev_mode`].
    Development,
}

impl TokenSource {
    /// Returns its name for the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "hs256_secret",
            Self::PublicKeyFile(_) => "public_key_file",
            Self::Jwks(_) => "jwks_url",
            Self::Development => "development",
        }
    }
}

/// The OpenID Connect provider that signs people in to the dashboard.
#[derive(Debug, Clone)]
pub struct OidcSettings {
    /// `TOLLKEY_OIDC_ISSUER`, as it is written.
    pub issuer: String,
    /// `TOLLKEY_OIDC_CLIENT_ID`.
    pub client_id: String,
    /// `TOLLKEY_OIDC_CLIENT_SECRET`; `None` for a public client.
    pub client_secret: Option<Secret>,
    /// `TOLLKEY_PUBLIC_URL`: scheme, host, port and path, without a slash at its end.
    pub public_url: String,
    /// `TOLLKEY_OIDC_SCOPES`, without `openid`.
    pub scopes: Vec<String>,
    /// `TOLLKEY_OIDC_ACCOUNT_CLAIM`.
    pub account_claim: String,
    /// `TOLLKEY_OIDC_ROLES_CLAIM`; `None` when ID tokens carry no roles.
    pub roles_claim: Option<String>,
}

impl Settings {
    /// The settings of this process: these flags, its environment, its configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that cannot be used.
    pub fn load(options: &Options) -> Result<Self, ConfigError> {
        let settings = Self::resolve(
            options,
            &|name| std::env::var_os(name),
            Path::new(DEFAULT_FILE),
        )?;
        Ok(Self {
            unknown_variables: Self::unknown_variables(),
            ..settings
        })
    }

    /// The environment variables of this process that look like settings and have no effect.
    #[must_use]
    pub fn unknown_variables() -> Vec<UnknownVariable> {
        unknown::unknown_variables(std::env::vars_os())
    }

    /// What can be used and is probably a mistake.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let renamed = self
            .renamed
            .iter()
            .map(|&(former, setting)| Warning::Renamed { former, setting });
        let unknown = self.unknown_variables.iter().cloned().map(Warning::Unknown);
        renamed
            .chain(unknown)
            .chain(self.suspicious.iter().cloned())
    }

    /// The settings of these flags, this environment and this configuration file; the file may be absent unless
    /// flag or environment name another one.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that cannot be used.
    pub fn resolve(
        options: &Options,
        env: &dyn Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Self, ConfigError> {
        let sources = Sources::open(options, env, default_file)?;
        let mut renamed = Vec::new();
        let database = database(&sources)?;
        let migrate = required(&sources, &MIGRATE, rules::switch)?;
        let database_pool = required(&sources, &DATABASE_POOL, |text| {
            rules::number(text, 1, 1000)
        })?;
        let database_wait = required(&sources, &DATABASE_WAIT_SECONDS, |text| {
            rules::number(text, 0, 3600)
        })?;
        if database.kind != DatabaseKind::Postgres {
            let rule =
                "must be true or left out with SQLite, which the server migrates on every start";
            check_fixed(&sources, &MIGRATE, migrate, rule)?;
            let rule = "must be 0 or left out with SQLite: no server has to start before the file can be opened";
            check_fixed(&sources, &DATABASE_WAIT_SECONDS, database_wait == 0, rule)?;
        }
        if database.kind == DatabaseKind::SqliteMemory {
            let rule = "must be 1 or left out with a database in memory, which is one connection";
            check_fixed(&sources, &DATABASE_POOL, database_pool == 1, rule)?;
        }
        let mut settings = Self {
            listen: required(&sources, &LISTEN, rules::socket_address)?,
            workers: match sources.parse(&WORKERS, |text| rules::number(text, 1, 1024))? {
                Some(workers) => workers,
                None => thread::available_parallelism().map_or(1, usize::from),
            },
            max_connections: sources
                .parse(&MAX_CONNECTIONS, |text| rules::number(text, 1, 1_000_000))?,
            write_timeout: WRITE_TIMEOUT,
            drain: Duration::from_secs(required(&sources, &DRAIN_SECONDS, |text| {
                rules::number(text, 0, 300)
            })?),
            metrics_listen: sources.parse(&METRICS_LISTEN, rules::socket_address)?,
            trusted_proxies: required(&sources, &TRUSTED_PROXIES, rules::trusted_proxies)?,
            merchant_header: required(&sources, &MERCHANT_HEADER, rules::header_name)?,
            credential_headers: required(&sources, &CREDENTIAL_HEADERS, |text| {
                CredentialHeaders::parse(rules::list(text)?)
            })?,
            route_base: required(&sources, &ROUTE_BASE, RouteBase::parse)?,
            log: LogSettings {
                filter: required(&sources, &LOG, rules::log_filter)?,
                format: required(&sources, &LOG_FORMAT, rules::log_format)?,
            },
            migrate,
            database,
            database_pool,
            database_wait: Duration::from_secs(database_wait),
            tokens: tokens(&sources)?,
            sealing_secret: sealing_secret(&sources)?,
            dashboard_token_sign_in: sources.parse(&DASHBOARD_TOKEN_SIGN_IN, rules::switch)?,
            public_path: sources
                .parse(&PUBLIC_URL, rules::public_url)?
                .map(|(_, path)| path)
                .unwrap_or_default(),
            oidc: oidc(&sources)?,
            application_key_limit: required(&sources, &APPLICATION_KEY_LIMIT, |text| {
                rules::number(text, 1, 10_000)
            })?,
            account_key_limit: sources
                .parse(&ACCOUNT_KEY_LIMIT, |text| rules::number(text, 1, 1_000_000))?,
            key_depth_limit: required(&sources, &KEY_DEPTH_LIMIT, rules::key_depth_limit)?,
            catalogue: catalogue(&sources)?,
            cache_bytes: required(&sources, &CACHE_BYTES, |text| {
                rules::number(text, tollkey_verifier::Settings::MIN_BYTES, 1 << 40)
            })?,
            cached_keys: {
                let setting =
                    under_either_name(&sources, &CACHED_KEYS, &REMEMBERED_KEYS, &mut renamed)?;
                required(&sources, setting, |text| {
                    rules::number(text, 1, 100_000_000)
                })?
            },
            renamed,
            unknown_variables: Vec::new(),
            effective: Vec::new(),
            suspicious: Vec::new(),
        };
        let roles_claim = settings.tokens.roles_claim.clone();
        let is_development = matches!(settings.tokens.source, TokenSource::Development);
        let mut derived = vec![
            (&WORKERS, settings.workers.to_string()),
            (
                &MAX_CONNECTIONS,
                open_files::default_max_connections().to_string(),
            ),
            (&DASHBOARD_TOKEN_SIGN_IN, is_development.to_string()),
        ];
        derived.extend(roles_claim.map(|claim| (&JWT_ROLES_CLAIM, claim)));
        settings.effective =
            effective::effective(&sources, &settings.database, &derived, &settings.renamed)?;
        let mut secrets: Vec<_> = SECRETS.iter().map(|(secret, _)| secret.env).collect();
        if !settings.database.url.has_password() {
            secrets.retain(|secret| *secret != DATABASE_URL.env);
        }
        settings.suspicious = sources.into_warnings(&secrets);
        Ok(settings)
    }
}

/// Rejects a setting that this database fixes to one value, unless it is left out or set to that value: no setting is accepted
/// and then ignored.
fn check_fixed(
    sources: &Sources<'_>,
    setting: &Setting,
    has_fixed_value: bool,
    rule: &'static str,
) -> Result<(), ConfigError> {
    match sources.set(setting)? {
        Some(from) if !has_fixed_value => Err(invalid(setting, from, Invalid::new(rule))),
        _ => Ok(()),
    }
}

/// The setting that is set: itself, or under its former name, which is then added to `renamed`.
fn under_either_name<'a>(
    sources: &Sources<'_>,
    setting: &'a Setting,
    former: &'a Setting,
    renamed: &mut Vec<(&'static str, &'static str)>,
) -> Result<&'a Setting, ConfigError> {
    let Some(given) = sources.get(former)? else {
        return Ok(setting);
    };
    renamed.push((former.env, setting.env));
    match sources.get(setting)? {
        Some(own) if own.from != Source::Default => Err(ConfigError::Exclusive {
            first: setting.env,
            first_from: own.from,
            second: former.env,
            second_from: given.from,
        }),
        _ => Ok(former),
    }
}

/// A setting that has a default.
fn required<T>(
    sources: &Sources<'_>,
    setting: &Setting,
    rule: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Result<T, ConfigError> {
    let value = sources.parse(setting, rule)?;
    value.ok_or_else(|| invalid(setting, Source::Default, Invalid::new("must be set")))
}

fn database(sources: &Sources<'_>) -> Result<Database, ConfigError> {
    let Some((url, from)) = sources.secret(&DATABASE_URL, &DATABASE_URL_FILE)? else {
        return Err(invalid(
            &DATABASE_URL,
            Source::Default,
            Invalid::new("must be set"),
        ));
    };
    let database =
        Database::parse(url.expose()).map_err(|rule| invalid(&DATABASE_URL, from.clone(), rule))?;
    // Every user of the machine can read a command line.
    if matches!(from, Source::Flag(_)) && database.url.has_password() {
        let rule =
            "must not have a password on the command line; put it into the environment or a file";
        return Err(invalid(&DATABASE_URL, from, Invalid::new(rule)));
    }
    Ok(database)
}

fn sealing_secret(sources: &Sources<'_>) -> Result<Option<Secret>, ConfigError> {
    let secret = sources.secret(&SEALING_SECRET, &SEALING_SECRET_FILE)?;
    secret
        .map(|(secret, from)| long_enough(sources, &SEALING_SECRET, secret, from))
        .transpose()
}

/// A secret of [`HS256_SECRET_MIN`] bytes or more.
fn long_enough(
    sources: &Sources<'_>,
    setting: &Setting,
    secret: Secret,
    from: Source,
) -> Result<Secret, ConfigError> {
    if secret.expose().len() < HS256_SECRET_MIN {
        let rule = format!(
            "must have at least {HS256_SECRET_MIN} bytes; create one with `openssl rand -hex 32`"
        );
        return Err(invalid(setting, from, Invalid::new(rule)));
    }
    if let Some(reason) = warning::weakness(secret.expose()) {
        sources.warn(Warning::WeakSecret {
            setting: setting.env,
            reason,
        });
    }
    Ok(secret)
}

fn catalogue(sources: &Sources<'_>) -> Result<Catalogue, ConfigError> {
    let names = |text: &str| {
        rules::list(text).map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let added = sources.parse(&SCOPES, names)?.unwrap_or_default();
    let implied = sources.parse(&COMMERCE_SCOPES, |text| {
        let implied = names(text)?;
        match implied.iter().position(|name| !added.contains(name)) {
            Some(at) => Err(Invalid::new(format!(
                "entry {} must also be in TOLLKEY_SCOPES",
                at + 1
            ))),
            None => Ok(implied),
        }
    })?;
    let implied = implied.unwrap_or_default();
    let mut catalogue = Catalogue::default();
    sources.parse(&SCOPES, |_| {
        for (at, name) in (1..).zip(&added) {
            let is_repeated = catalogue.needed([name.as_str()]).is_ok();
            // The catalogue's own error quotes the entry.
            catalogue.add(name, implied.contains(name)).map_err(|_| {
                Invalid::new(if is_repeated {
                    format!("entry {at} is a built-in scope or repeated; remove it")
                } else if at > Catalogue::MAX {
                    format!("must have at most {} scopes, with the built-in ones", Catalogue::MAX)
                } else {
                    format!("entry {at} must be 1 to 64 characters out of a-z 0-9 . _ - : and begin with a letter")
                })
            })?;
        }
        Ok(())
    })?;
    Ok(catalogue)
}

fn tokens(sources: &Sources<'_>) -> Result<TokenSettings, ConfigError> {
    let secret = sources.secret(&JWT_HS256_SECRET, &JWT_HS256_SECRET_FILE)?;
    let key_file = sources.get(&JWT_PUBLIC_KEY_FILE)?;
    let jwks = sources.get(&JWT_JWKS_URL)?;
    let mut set: Vec<(&'static str, Source)> = Vec::new();
    set.extend(
        secret
            .as_ref()
            .map(|(_, from)| (JWT_HS256_SECRET.env, from.clone())),
    );
    set.extend(
        key_file
            .as_ref()
            .map(|given| (JWT_PUBLIC_KEY_FILE.env, given.from.clone())),
    );
    set.extend(jwks.map(|given| (JWT_JWKS_URL.env, given.from)));
    if let [(first, first_from), (second, second_from), ..] = set.as_slice() {
        return Err(ConfigError::Exclusive {
            first,
            first_from: first_from.clone(),
            second,
            second_from: second_from.clone(),
        });
    }

    let issuer = sources.parse(&JWT_ISSUER, rules::text)?;
    let audience = sources.parse(&JWT_AUDIENCE, rules::text)?;
    let checked_only = secret.is_none() && !set.is_empty();
    if let Some((because, from)) = set.into_iter().next()
        && checked_only
    {
        for (needed, value) in [(JWT_ISSUER.env, &issuer), (JWT_AUDIENCE.env, &audience)] {
            if value.is_none() {
                return Err(ConfigError::Missing {
                    needed,
                    because,
                    from,
                });
            }
        }
    }

    let source = match (secret, key_file) {
        (Some((secret, from)), _) => {
            TokenSource::Hs256(long_enough(sources, &JWT_HS256_SECRET, secret, from)?)
        }
        (None, Some(path)) => {
            // Whether the file can be used is checked when it is used.
            let file = PublicKeyFile::read(path.text.as_str().into());
            if file.has_escaped_line_breaks() {
                sources.warn(Warning::EscapedLineBreaks {
                    setting: JWT_PUBLIC_KEY_FILE.env,
                });
            }
            TokenSource::PublicKeyFile(file)
        }
        (None, None) => match sources.parse(&JWT_JWKS_URL, str::parse)? {
            Some(url) => TokenSource::Jwks(url),
            None => TokenSource::Development,
        },
    };
    Ok(TokenSettings {
        source,
        issuer,
        audience,
        account_claim: required(sources, &JWT_ACCOUNT_CLAIM, rules::claim)?,
        roles_claim: match sources.parse(&JWT_ROLES_CLAIM, rules::claim)? {
            None if !checked_only => Some("roles".to_owned()),
            claim => claim,
        },
    })
}

fn oidc(sources: &Sources<'_>) -> Result<Option<OidcSettings>, ConfigError> {
    let issuer = sources.parse(&OIDC_ISSUER, rules::issuer)?;
    let client_id = sources.parse(&OIDC_CLIENT_ID, rules::text)?;
    let client_secret = sources.secret(&OIDC_CLIENT_SECRET, &OIDC_CLIENT_SECRET_FILE)?;
    let public_url = sources
        .parse(&PUBLIC_URL, rules::public_url)?
        .map(|(origin, path)| format!("{origin}{path}"));
    let scopes = sources.parse(&OIDC_SCOPES, rules::oidc_scopes)?;
    let account_claim = required(sources, &OIDC_ACCOUNT_CLAIM, rules::claim)?;
    let roles_claim = sources.parse(&OIDC_ROLES_CLAIM, rules::claim)?;
    if let Some((secret, _)) = &client_secret
        && let Some(reason) = warning::weakness(secret.expose())
    {
        sources.warn(Warning::WeakSecret {
            setting: OIDC_CLIENT_SECRET.env,
            reason,
        });
    }

    let Some(issuer) = issuer else {
        // The public URL says something by itself; the others mean nothing without a provider.
        let of_a_provider = [
            &OIDC_CLIENT_ID,
            &OIDC_SCOPES,
            &OIDC_ACCOUNT_CLAIM,
            &OIDC_ROLES_CLAIM,
        ];
        let secret = client_secret.map(|(_, from)| (OIDC_CLIENT_SECRET.env, from));
        let mut set: Vec<(&'static str, Source)> = secret.into_iter().collect();
        for setting in of_a_provider {
            set.extend(sources.get(setting)?.map(|given| (setting.env, given.from)));
        }
        return match set.into_iter().find(|(_, from)| *from != Source::Default) {
            Some((because, from)) => Err(ConfigError::Missing {
                needed: OIDC_ISSUER.env,
                because,
                from,
            }),
            None => Ok(None),
        };
    };
    let missing = |needed: &Setting| {
        let from = sources
            .get(&OIDC_ISSUER)
            .ok()
            .flatten()
            .map_or(Source::Default, |given| given.from);
        ConfigError::Missing {
            needed: needed.env,
            because: OIDC_ISSUER.env,
            from,
        }
    };
    Ok(Some(OidcSettings {
        issuer,
        client_id: client_id.ok_or_else(|| missing(&OIDC_CLIENT_ID))?,
        client_secret: client_secret.map(|(secret, _)| secret),
        public_url: public_url.ok_or_else(|| missing(&PUBLIC_URL))?,
        scopes: scopes.unwrap_or_default(),
        account_claim,
        roles_claim,
    }))
}

#[cfg(test)]
mod tests;
