//! The validated settings of a process: [`Settings`].
//!
//! A setting is an environment variable, a field of the optional file `tollkey.toml` and, unless it is a secret, a
//! flag. The flag takes precedence over the environment, the environment over the file, and the file over the default.
//! `declared.rs` declares every setting, `sources.rs` reads the values, and this file checks the rules that concern
//! more than one setting. An error names the variable, where it is set and the rule, but never the value.

mod declared;
mod files;
mod rules;
mod setting;
mod sources;
mod unknown;

use std::{ffi::OsString, path::Path, time::Duration};

pub use tollkey_api::Secret;
use tollkey_core::Catalogue;
use tollkey_store::DatabaseUrl;

pub(crate) use self::files::has_escaped_line_breaks;
pub use self::{
    declared::{
        CacheSettings, ClaimRules, DatabaseKind, DatabaseSettings, KeyLimits, LogSettings,
        ServerSettings, TrustedProxies,
    },
    files::PublicKeyFile,
    rules::LogFormat,
    setting::{CONFIG, SETTINGS, Setting, ValueType, configuration_file, markdown},
    sources::{ConfigError, EffectiveSetting, Options, Origin, SettingSource, Warning},
    unknown::UnknownVariable,
};
use self::{
    declared::{
        DATABASE_URL, DashboardValues, JWT_HS256_SECRET, KeyValues, OIDC_CLIENT_SECRET,
        SEALING_SECRET, TokenValues,
    },
    sources::{Sources, Value},
};
use crate::{issuer_url::JwksUrl, public_path::PublicPath, transport::open_files};

/// The minimum length of a secret that signs tokens, in bytes: the output of SHA-256 (RFC 7518, section 3.2).
pub const HS256_SECRET_MIN: usize = 32;

/// How long a client may read nothing of a response before its connection is closed. Each byte that it reads restarts
/// the time, so that a slow client receives its whole response.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The configuration files of which the first that exists is read if `TOLLKEY_CONFIG` is not set: in the working
/// directory, and that of the Debian package.
pub const DEFAULT_FILES: [&str; 2] = ["tollkey.toml", "/etc/tollkey/tollkey.toml"];

#[derive(Debug, Clone)]
pub struct Settings {
    pub server: ServerSettings,
    /// [`WRITE_TIMEOUT`].
    pub write_timeout: Duration,
    pub log: LogSettings,
    pub database: DatabaseSettings,
    pub tokens: TokenSettings,
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
pub struct TokenSettings {
    pub source: TokenSource,
    /// The issuer and the audience are always set with a public key file or a JWKS URL.
    pub claims: ClaimRules,
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
        let default_file = default_file(&DEFAULT_FILES.map(Path::new));
        let mut settings = Self::resolve(options, &env, default_file)?;
        settings.unknown_variables = Self::unknown_variables();
        Ok(settings)
    }

    #[must_use]
    pub fn unknown_variables() -> Vec<UnknownVariable> {
        unknown::unknown_variables(std::env::vars_os())
    }

    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let unknown = self
            .unknown_variables
            .iter()
            .map(|variable| Warning::new(&variable.name, variable.to_string()));
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
        let mut values = sources.parse()?;
        check_grpc(&sources, cfg!(feature = "grpc"))?;
        values.database.sealing_secret = strong_secret(&sources, SEALING_SECRET)?;
        values.tokens.hs256_secret = strong_secret(&sources, JWT_HS256_SECRET)?;
        values.dashboard.oidc_client_secret = sources.get(OIDC_CLIENT_SECRET).map(secret);
        let public_url = values.dashboard.public_url.clone();
        let mut settings = Self {
            write_timeout: WRITE_TIMEOUT,
            database: database(&sources, values.database)?,
            tokens: tokens(&mut sources, values.tokens)?,
            dashboard_token_sign_in: values.dashboard.token_sign_in,
            public_path: public_url.map(|url| url.path).unwrap_or_default(),
            oidc: oidc(&sources, values.dashboard)?,
            catalogue: catalogue(&sources, &values.keys)?,
            key_limits: values.keys.limits,
            server: values.server,
            cache: values.cache,
            log: values.log,
            unknown_variables: Vec::new(),
            effective: Vec::new(),
            configuration_warnings: std::mem::take(&mut sources.warnings),
        };
        let warning = socket_warning(&sources, &settings.server);
        settings.configuration_warnings.extend(warning);
        settings.effective = sources.effective(&settings.derived());
        Ok(settings)
    }

    /// Returns the effective values of settings whose default depends on something else, and the database without its
    /// password.
    fn derived(&self) -> [(&'static str, Option<String>); 5] {
        let is_development = matches!(self.tokens.source, TokenSource::Development);
        let max_connections = self.server.max_connections;
        let max_connections = max_connections.unwrap_or_else(open_files::default_max_connections);
        let token_sign_in = self.dashboard_token_sign_in.unwrap_or(is_development);
        [
            (DATABASE_URL, Some(self.database.url.target())),
            ("TOLLKEY_WORKERS", Some(self.server.workers().to_string())),
            ("TOLLKEY_MAX_CONNECTIONS", Some(max_connections.to_string())),
            (
                "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN",
                Some(token_sign_in.to_string()),
            ),
            (
                "TOLLKEY_JWT_ROLES_CLAIM",
                self.tokens.claims.roles_claim.clone(),
            ),
        ]
    }
}

/// Returns the first of these files that exists, or the last one. A link that points nowhere counts as a file, so that
/// it is reported. A file in a working directory that this user cannot search does not exist for it.
fn default_file<'a>(files: &[&'a Path; 2]) -> &'a Path {
    let [first, last] = *files;
    if first.symlink_metadata().is_ok() {
        first
    } else {
        last
    }
}

/// Warns about settings of Unix sockets without effect, and about a socket to which every user can connect.
fn socket_warning(sources: &Sources, server: &ServerSettings) -> Option<Warning> {
    const MODE: &str = "TOLLKEY_SOCKET_MODE";
    const OTHERS_WRITE: u32 = 0o002;
    if server.listen.unix().is_none() {
        // Not an error: the flag `--listen` of a command may name another listener than that of the server.
        let names = [MODE, "TOLLKEY_SOCKET_GROUP"];
        let name = names.into_iter().find(|name| sources.get(name).is_some())?;
        let text = format!("{name} has no effect, because TOLLKEY_LISTEN names no Unix socket");
        return Some(Warning::new(name, text));
    }
    (server.socket_mode & OTHERS_WRITE != 0).then(|| {
        let text = format!(
            "{MODE}: every user of this machine can connect to the Unix socket, as a trusted proxy that names any client \
             address; use 0660 and TOLLKEY_SOCKET_GROUP"
        );
        Warning::new(MODE, text)
    })
}

/// Rejects the address of a listener that this build does not have.
fn check_grpc(sources: &Sources, has_grpc: bool) -> Result<(), ConfigError> {
    const GRPC_LISTEN: &str = "TOLLKEY_GRPC_LISTEN";
    if has_grpc || sources.get(GRPC_LISTEN).is_none() {
        return Ok(());
    }
    let rule = "needs gRPC, which this build does not have; build the server with `--features grpc`, or remove the setting";
    Err(sources.invalid(GRPC_LISTEN, rule))
}

fn secret(value: &Value) -> Secret {
    Secret::new(value.text.as_str())
}

/// Returns a secret of [`HS256_SECRET_MIN`] bytes or more.
fn strong_secret(sources: &Sources, name: &'static str) -> Result<Option<Secret>, ConfigError> {
    let value = sources.get(name);
    if value.is_some_and(|value| value.text.len() < HS256_SECRET_MIN) {
        let rule = format!(
            "must have at least {HS256_SECRET_MIN} bytes; create one with `openssl rand -hex 32`"
        );
        return Err(sources.invalid(name, rule));
    }
    Ok(value.map(secret))
}

fn database(
    sources: &Sources,
    mut settings: DatabaseSettings,
) -> Result<DatabaseSettings, ConfigError> {
    if let Some(value) = sources.get(DATABASE_URL) {
        // The error does not repeat the URL, which may contain a password.
        settings.url = DatabaseUrl::parse(&value.text)
            .map_err(|error| sources.invalid(DATABASE_URL, error.to_string()))?;
        // Every user of the machine can read a command line.
        if settings.url.has_password() && matches!(value.origin.source, SettingSource::Flag(_)) {
            let rule = "must not have a password on the command line; put it into the environment or a file";
            return Err(sources.invalid(DATABASE_URL, rule));
        }
    }

    // A setting without effect is rejected.
    let fixed = |name, has_fixed_value: bool, rule: &str| {
        if sources.get(name).is_none() || has_fixed_value {
            return Ok(());
        }
        Err(sources.invalid(name, rule))
    };
    let kind = settings.kind();
    if kind != DatabaseKind::Postgres {
        let rule = "must be true or left out with SQLite, which the server migrates on every start";
        fixed("TOLLKEY_MIGRATE", settings.migrate, rule)?;
        let rule = "must be 0 or left out with SQLite: no server has to start before the file can be opened";
        fixed(
            "TOLLKEY_DATABASE_WAIT_SECONDS",
            settings.wait.is_zero(),
            rule,
        )?;
    }
    if kind == DatabaseKind::SqliteMemory {
        let rule = "must be 1 or left out with a database in memory, which is one connection";
        fixed("TOLLKEY_DATABASE_POOL", settings.pool == 1, rule)?;
    }
    Ok(settings)
}

fn tokens(sources: &mut Sources, values: TokenValues) -> Result<TokenSettings, ConfigError> {
    const PUBLIC_KEY_FILE: &str = "TOLLKEY_JWT_PUBLIC_KEY_FILE";
    const JWKS_URL: &str = "TOLLKEY_JWT_JWKS_URL";
    const SECRET_FILE: &str = "TOLLKEY_JWT_HS256_SECRET_FILE";
    // The content of the file is also the value of the secret.
    let secret = match sources.get(SECRET_FILE) {
        Some(_) => SECRET_FILE,
        None => JWT_HS256_SECRET,
    };
    sources.at_most_one(&[secret, PUBLIC_KEY_FILE, JWKS_URL])?;
    sources.require(
        &["TOLLKEY_JWT_ISSUER", "TOLLKEY_JWT_AUDIENCE"],
        &[PUBLIC_KEY_FILE, JWKS_URL],
    )?;
    let source = match (values.hs256_secret, values.public_key_file, values.jwks_url) {
        (Some(secret), ..) => TokenSource::Hs256(secret),
        (None, Some(path), _) => {
            // `TokenVerifier::open` checks whether the file can be used.
            let file = PublicKeyFile::read(path);
            if file.pem().is_ok_and(has_escaped_line_breaks) {
                let text = format!(
                    "{PUBLIC_KEY_FILE}: the file has the characters \\n instead of line breaks; write line breaks"
                );
                sources.warnings.push(Warning::new(PUBLIC_KEY_FILE, text));
            }
            TokenSource::PublicKeyFile(file)
        }
        (None, None, Some(url)) => TokenSource::Jwks(url),
        (None, None, None) => TokenSource::Development,
    };
    let mut claims = values.claims;
    if matches!(source, TokenSource::Hs256(_) | TokenSource::Development) {
        claims.roles_claim.get_or_insert_with(|| "roles".to_owned());
    }
    Ok(TokenSettings { source, claims })
}

fn oidc(sources: &Sources, values: DashboardValues) -> Result<Option<OidcSettings>, ConfigError> {
    const ISSUER: &str = "TOLLKEY_OIDC_ISSUER";
    const CLIENT_ID: &str = "TOLLKEY_OIDC_CLIENT_ID";
    // Without a provider, only the public URL has an effect. The other settings are rejected.
    let of_provider = [
        OIDC_CLIENT_SECRET,
        CLIENT_ID,
        "TOLLKEY_OIDC_SCOPES",
        "TOLLKEY_OIDC_ACCOUNT_CLAIM",
        "TOLLKEY_OIDC_ROLES_CLAIM",
    ];
    sources.require(&[ISSUER], &of_provider)?;
    sources.require(&[CLIENT_ID, "TOLLKEY_PUBLIC_URL"], &[ISSUER])?;
    let (Some(issuer), Some(client_id), Some(public_url)) =
        (values.oidc_issuer, values.oidc_client_id, values.public_url)
    else {
        return Ok(None);
    };
    Ok(Some(OidcSettings {
        issuer,
        client_id,
        client_secret: values.oidc_client_secret,
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
        return Err(sources.invalid("TOLLKEY_COMMERCE_SCOPES", rule));
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
            sources.invalid("TOLLKEY_SCOPES", rule)
        })?;
    }
    Ok(catalogue)
}

#[cfg(test)]
mod tests;
