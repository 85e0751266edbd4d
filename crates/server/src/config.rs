//! The validated settings of a process: [`Settings`].
//!
//! A setting is an environment variable, a field of the optional file `tollkey.toml` and, unless it is a secret, a
//! flag. The flag takes precedence over the environment, the environment over the file, and the file over the default.
//! `declared.rs` declares every setting, `sources.rs` reads the values, and this file checks the rules that concern
//! more than one setting. An error names the variable, where it is set and the rule, but never the value.

mod declared;
mod files;
mod public_key;
mod rules;
mod setting;
mod sources;
mod unknown;
mod warning;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

pub use tollkey_api::Secret;
use tollkey_core::{Catalogue, Invalid};
use tollkey_store::{Backend, DatabaseUrl};

pub(crate) use self::public_key::has_escaped_line_breaks;
pub use self::{
    declared::{CacheSettings, KeyLimits, LogSettings, ServerSettings, TrustedProxies},
    public_key::PublicKeyFile,
    rules::LogFormat,
    setting::{CONFIG, SETTINGS, Setting, ValueType, markdown},
    sources::{ConfigError, EffectiveSetting, Options, SettingSource},
    unknown::UnknownVariable,
    warning::Warning,
};
use self::{
    declared::{
        DATABASE_URL, DashboardValues, DatabaseValues, JWT_HS256_SECRET, KeyValues,
        OIDC_CLIENT_SECRET, SEALING_SECRET, SECRETS, TokenValues,
    },
    sources::Sources,
};
use crate::{issuer_url::JwksUrl, public_path::PublicPath, transport::open_files};

/// The minimum length of a secret that signs tokens, in bytes: the output of SHA-256 (RFC 7518, section 3.2).
pub const HS256_SECRET_MIN: usize = 32;

/// How long a client may read nothing of a response before its connection is closed. Each byte that it reads restarts
/// the time, so that a slow client receives its whole response.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The configuration file that is read if it exists and `TOLLKEY_CONFIG` is not set.
pub const DEFAULT_FILE: &str = "tollkey.toml";

#[derive(Debug, Clone)]
pub struct Settings {
    pub server: ServerSettings,
    /// [`WRITE_TIMEOUT`].
    pub write_timeout: Duration,
    pub log: LogSettings,
    pub database: DatabaseSettings,
    pub tokens: TokenSettings,
    /// `TOLLKEY_SEALING_SECRET`, at least [`HS256_SECRET_MIN`] bytes.
    pub sealing_secret: Option<Secret>,
    /// `TOLLKEY_DASHBOARD_TOKEN_SIGN_IN`; `None` means `true` in development mode, and `false` otherwise.
    pub dashboard_token_sign_in: Option<bool>,
    /// The path of `TOLLKEY_PUBLIC_URL`; empty if that has no path or is not set.
    pub public_path: PublicPath,
    /// `None` if `TOLLKEY_OIDC_ISSUER` is not set.
    pub oidc: Option<OidcSettings>,
    pub key_limits: KeyLimits,
    /// The built-in scopes, `TOLLKEY_SCOPES` and `TOLLKEY_COMMERCE_SCOPES`.
    pub catalogue: Catalogue,
    pub cache: CacheSettings,
    /// Development mode does not start with one.
    pub unknown_variables: Vec<UnknownVariable>,
    /// All settings in effect, without secrets.
    pub effective: Vec<EffectiveSetting>,
    /// [`Settings::warnings`] also returns those about unknown variables.
    pub configuration_warnings: Vec<Warning>,
}

#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// `DATABASE_URL`. Shows no password.
    pub url: DatabaseUrl,
    pub kind: DatabaseKind,
    pub pool: u32,
    pub wait: Duration,
    pub migrate: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseKind {
    Postgres,
    SqliteFile(PathBuf),
    /// A SQLite database in memory, which ends with the process.
    SqliteMemory,
}

#[derive(Debug, Clone)]
pub struct TokenSettings {
    pub source: TokenSource,
    /// `TOLLKEY_JWT_ISSUER`. Always set with a public key file or a JWKS URL.
    pub issuer: Option<String>,
    /// `TOLLKEY_JWT_AUDIENCE`. Always set with a public key file or a JWKS URL.
    pub audience: Option<String>,
    pub account_claim: String,
    /// `TOLLKEY_JWT_ROLES_CLAIM`; `None` if tokens carry no roles.
    pub roles_claim: Option<String>,
}

#[derive(Debug, Clone)]
pub enum TokenSource {
    /// `TOLLKEY_JWT_HS256_SECRET`: a secret of at least [`HS256_SECRET_MIN`] bytes.
    Hs256(Secret),
    PublicKeyFile(PublicKeyFile),
    Jwks(JwksUrl),
    /// No key source is set: development mode ([`crate::dev_mode`]).
    Development,
}

impl TokenSource {
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
    /// `TOLLKEY_OIDC_ISSUER`, unchanged.
    pub issuer: String,
    pub client_id: String,
    /// `TOLLKEY_OIDC_CLIENT_SECRET`; `None` for a public client.
    pub client_secret: Option<Secret>,
    /// `TOLLKEY_PUBLIC_URL`: scheme, host, port and path, without a slash at its end.
    pub public_url: String,
    /// `TOLLKEY_OIDC_SCOPES`, without `openid`.
    pub scopes: Vec<String>,
    pub account_claim: String,
    /// `TOLLKEY_OIDC_ROLES_CLAIM`; `None` if ID tokens carry no roles.
    pub roles_claim: Option<String>,
}

impl Settings {
    /// Reads the settings of this process: these flags, its environment and its configuration file.
    pub fn load(options: &Options) -> Result<Self, ConfigError> {
        let env = |name: &str| std::env::var_os(name);
        let mut settings = Self::resolve(options, &env, Path::new(DEFAULT_FILE))?;
        settings.unknown_variables = Self::unknown_variables();
        Ok(settings)
    }

    #[must_use]
    pub fn unknown_variables() -> Vec<UnknownVariable> {
        unknown::unknown_variables(std::env::vars_os())
    }

    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let unknown = self.unknown_variables.iter().cloned().map(Warning::Unknown);
        unknown.chain(self.configuration_warnings.iter().cloned())
    }

    /// Reads the settings from these flags, this environment and the configuration file. `default_file` need not
    /// exist. A file that a flag or the environment names replaces it, and must exist.
    pub fn resolve(
        options: &Options,
        env: &dyn Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Self, ConfigError> {
        let mut sources = Sources::read(options, env, default_file)?;
        let values = sources.parse()?;
        let public_url = values.dashboard.public_url.clone();
        let mut settings = Self {
            write_timeout: WRITE_TIMEOUT,
            database: database(&mut sources, values.database)?,
            tokens: tokens(&mut sources, values.tokens)?,
            sealing_secret: strong_secret(&mut sources, SEALING_SECRET)?,
            dashboard_token_sign_in: values.dashboard.token_sign_in,
            public_path: public_url.map(|url| url.path).unwrap_or_default(),
            oidc: oidc(&mut sources, values.dashboard)?,
            catalogue: catalogue(&sources, &values.keys)?,
            key_limits: values.keys.limits,
            server: values.server,
            cache: values.cache,
            log: values.log,
            unknown_variables: Vec::new(),
            effective: Vec::new(),
            configuration_warnings: Vec::new(),
        };
        settings.effective = sources.effective(&settings.derived());
        let has_password = settings.database.url.has_password();
        let secrets = SECRETS.iter().map(|secret| secret.env);
        let secrets: Vec<_> = secrets
            .filter(|name| *name != DATABASE_URL || has_password)
            .collect();
        sources.warn_of_readable_file(&secrets);
        settings.configuration_warnings = sources.warnings;
        Ok(settings)
    }

    /// Returns the effective values of settings whose default depends on something else, and the database without its
    /// password.
    fn derived(&self) -> Vec<(&'static str, String)> {
        let is_development = matches!(self.tokens.source, TokenSource::Development);
        let max_connections = self
            .server
            .max_connections
            .unwrap_or_else(open_files::default_max_connections);
        let mut derived = vec![
            (DATABASE_URL, self.database.url.target()),
            ("TOLLKEY_WORKERS", self.server.workers().to_string()),
            ("TOLLKEY_MAX_CONNECTIONS", max_connections.to_string()),
            (
                "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN",
                self.dashboard_token_sign_in
                    .unwrap_or(is_development)
                    .to_string(),
            ),
        ];
        derived.extend(
            self.tokens
                .roles_claim
                .clone()
                .map(|claim| ("TOLLKEY_JWT_ROLES_CLAIM", claim)),
        );
        derived
    }
}

fn database(
    sources: &mut Sources,
    values: DatabaseValues,
) -> Result<DatabaseSettings, ConfigError> {
    let (url, from) = match sources.secret(DATABASE_URL)? {
        Some((url, from)) => (url, from),
        None => (
            Secret::new(declared::DEFAULT_DATABASE_URL),
            SettingSource::Default,
        ),
    };
    let is_flag = matches!(from, SettingSource::Flag(_));
    let invalid = |rule: String| {
        let rule = Invalid::new(rule);
        ConfigError::Invalid {
            setting: DATABASE_URL,
            from,
            rule,
        }
    };
    // The error does not repeat the URL, which may contain a password.
    let url = match DatabaseUrl::parse(url.expose()) {
        // Every user of the machine can read a command line.
        Ok(url) if is_flag && url.has_password() => {
            let rule = "must not have a password on the command line; put it into the environment or a file";
            return Err(invalid(rule.to_owned()));
        }
        Ok(url) => url,
        Err(error) => return Err(invalid(error.to_string())),
    };
    let kind = match (url.backend(), url.file()) {
        (Backend::Postgres, _) => DatabaseKind::Postgres,
        (Backend::Sqlite, Some(path)) => DatabaseKind::SqliteFile(path.to_owned()),
        (Backend::Sqlite, None) => DatabaseKind::SqliteMemory,
    };

    // A setting without effect is rejected.
    let fixed = |name, has_fixed_value: bool, rule: &'static str| {
        if sources.set(name).is_none() || has_fixed_value {
            return Ok(());
        }
        Err(sources.invalid(name, Invalid::new(rule)))
    };
    if kind != DatabaseKind::Postgres {
        let rule = "must be true or left out with SQLite, which the server migrates on every start";
        fixed("TOLLKEY_MIGRATE", values.migrate, rule)?;
        let rule = "must be 0 or left out with SQLite: no server has to start before the file can be opened";
        fixed("TOLLKEY_DATABASE_WAIT_SECONDS", values.wait.is_zero(), rule)?;
    }
    if kind == DatabaseKind::SqliteMemory {
        let rule = "must be 1 or left out with a database in memory, which is one connection";
        fixed("TOLLKEY_DATABASE_POOL", values.pool == 1, rule)?;
    }
    let DatabaseValues {
        pool,
        wait,
        migrate,
    } = values;
    Ok(DatabaseSettings {
        url,
        kind,
        pool,
        wait,
        migrate,
    })
}

/// Reads a secret of [`HS256_SECRET_MIN`] bytes or more.
fn strong_secret(sources: &mut Sources, name: &'static str) -> Result<Option<Secret>, ConfigError> {
    let Some((secret, from)) = sources.secret(name)? else {
        return Ok(None);
    };
    if secret.expose().len() < HS256_SECRET_MIN {
        let rule = format!(
            "must have at least {HS256_SECRET_MIN} bytes; create one with `openssl rand -hex 32`"
        );
        return Err(ConfigError::Invalid {
            setting: name,
            from,
            rule: Invalid::new(rule),
        });
    }
    sources.warn_if_weak(name, &secret);
    Ok(Some(secret))
}

fn tokens(sources: &mut Sources, values: TokenValues) -> Result<TokenSettings, ConfigError> {
    const PUBLIC_KEY_FILE: &str = "TOLLKEY_JWT_PUBLIC_KEY_FILE";
    const JWKS_URL: &str = "TOLLKEY_JWT_JWKS_URL";
    const SECRET_FILE: &str = "TOLLKEY_JWT_HS256_SECRET_FILE";
    let secret = strong_secret(sources, JWT_HS256_SECRET)?;
    sources.at_most_one(&[JWT_HS256_SECRET, SECRET_FILE, PUBLIC_KEY_FILE, JWKS_URL])?;
    for because in [PUBLIC_KEY_FILE, JWKS_URL] {
        sources.require("TOLLKEY_JWT_ISSUER", because)?;
        sources.require("TOLLKEY_JWT_AUDIENCE", because)?;
    }
    let has_public_key = values.public_key_file.is_some() || values.jwks_url.is_some();
    let source = match (secret, values.public_key_file, values.jwks_url) {
        (Some(secret), ..) => TokenSource::Hs256(secret),
        (None, Some(path), _) => {
            // `TokenVerifier::open` checks whether the file can be used.
            let file = PublicKeyFile::read(path);
            if file.has_escaped_line_breaks() {
                sources.warnings.push(Warning::EscapedLineBreaks {
                    setting: PUBLIC_KEY_FILE,
                });
            }
            TokenSource::PublicKeyFile(file)
        }
        (None, None, Some(url)) => TokenSource::Jwks(url),
        (None, None, None) => TokenSource::Development,
    };
    let default_roles = (!has_public_key).then(|| "roles".to_owned());
    Ok(TokenSettings {
        source,
        issuer: values.issuer,
        audience: values.audience,
        account_claim: values.account_claim,
        roles_claim: values.roles_claim.or(default_roles),
    })
}

fn oidc(
    sources: &mut Sources,
    values: DashboardValues,
) -> Result<Option<OidcSettings>, ConfigError> {
    const ISSUER: &str = "TOLLKEY_OIDC_ISSUER";
    let client_secret = sources.secret(OIDC_CLIENT_SECRET)?;
    if let Some((secret, _)) = &client_secret {
        sources.warn_if_weak(OIDC_CLIENT_SECRET, secret);
    }
    // Without a provider, only the public URL has an effect. The other settings are rejected.
    if let (None, Some((_, from))) = (sources.set(ISSUER), &client_secret) {
        let from = from.clone();
        return Err(ConfigError::Missing {
            needed: ISSUER,
            because: OIDC_CLIENT_SECRET,
            from,
        });
    }
    for setting in [
        "TOLLKEY_OIDC_CLIENT_ID",
        "TOLLKEY_OIDC_SCOPES",
        "TOLLKEY_OIDC_ACCOUNT_CLAIM",
        "TOLLKEY_OIDC_ROLES_CLAIM",
    ] {
        sources.require(ISSUER, setting)?;
    }
    sources.require("TOLLKEY_OIDC_CLIENT_ID", ISSUER)?;
    sources.require("TOLLKEY_PUBLIC_URL", ISSUER)?;
    let (Some(issuer), Some(client_id), Some(public_url)) =
        (values.oidc_issuer, values.oidc_client_id, values.public_url)
    else {
        return Ok(None);
    };
    Ok(Some(OidcSettings {
        issuer,
        client_id,
        client_secret: client_secret.map(|(secret, _)| secret),
        public_url: public_url.url,
        scopes: values.oidc_scopes.unwrap_or_default(),
        account_claim: values.oidc_account_claim,
        roles_claim: values.oidc_roles_claim,
    }))
}

fn catalogue(sources: &Sources, values: &KeyValues) -> Result<Catalogue, ConfigError> {
    let added = values.scopes.as_deref().unwrap_or_default();
    let implied = values.commerce_scopes.as_deref().unwrap_or_default();
    if let Some(at) = implied.iter().position(|name| !added.contains(name)) {
        let rule = format!("entry {} must also be in TOLLKEY_SCOPES", at + 1);
        return Err(sources.invalid("TOLLKEY_COMMERCE_SCOPES", Invalid::new(rule)));
    }
    let mut catalogue = Catalogue::default();
    for (at, name) in (1..).zip(added) {
        let is_repeated = catalogue.needed([name.as_str()]).is_ok();
        // The catalogue's own error quotes the entry.
        catalogue.add(name, implied.contains(name)).map_err(|_| {
            let rule = if is_repeated {
                format!("entry {at} is a built-in scope or repeated; remove it")
            } else if at > Catalogue::MAX {
                format!("must have at most {} scopes, with the built-in ones", Catalogue::MAX)
            } else {
                format!("entry {at} must have 1 to 64 characters from a-z 0-9 . _ - : and begin with a letter")
            };
            sources.invalid("TOLLKEY_SCOPES", Invalid::new(rule))
        })?;
    }
    Ok(catalogue)
}

#[cfg(test)]
mod tests;
