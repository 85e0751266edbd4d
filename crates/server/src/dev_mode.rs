//! Development mode: what a server does when no key source for management tokens is set.
//!
//! It makes its own HS256 secret, keeps it beside the database, and tells its owner how to make the first call.
//! That is comfortable and would be a hole anywhere but on the owner's machine, so it exists only on SQLite and a
//! loopback address.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    auth::jwt::{self, ClaimRules, MintError, NewToken},
    auth::sign_in_links::{LINK_LIFETIME, SignInLinks},
    config::{DatabaseKind, HS256_SECRET_MIN, Secret, Settings, TokenSource},
    issuer_url::is_loopback,
};
use jiff::Timestamp;
use tollkey_core::AccountId;
use tollkey_service::Random;
use zeroize::Zeroizing;

/// What stands behind the name of the database file in that of the secret's file.
pub const SECRET_SUFFIX: &str = ".jwt-secret";
/// The account of the example in the start-up message.
pub const EXAMPLE_ACCOUNT: &str = "acme";
/// The subject of tokens nobody named one for.
pub const DEFAULT_SUBJECT: &str = "developer";

/// How long a file that another process has just created may stay without its content.
const OTHER_PROCESS_WRITES: Duration = Duration::from_millis(500);

/// Development mode is not possible, or its secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DevModeError {
    /// Not on SQLite.
    #[error(
        "PostgreSQL needs a key source for management tokens: set one of TOLLKEY_JWT_HS256_SECRET, \
         TOLLKEY_JWT_PUBLIC_KEY_FILE, TOLLKEY_JWT_JWKS_URL (development mode is for SQLite only)"
    )]
    NotSqlite,
    /// Others can reach it.
    #[error(
        "listening on {0}, which is not a loopback address, needs a key source for management tokens: set one of \
         TOLLKEY_JWT_HS256_SECRET, TOLLKEY_JWT_PUBLIC_KEY_FILE, TOLLKEY_JWT_JWKS_URL, or listen on 127.0.0.1"
    )]
    NotLoopback(SocketAddr),
    /// A variable was meant as a setting, perhaps as the one that would end development mode.
    #[error(
        "development mode does not start while the unknown variable {name} is set; did you mean {nearest}? Correct it, \
         or remove it"
    )]
    UnknownVariable {
        /// Its name.
        name: String,
        /// The nearest known name.
        nearest: &'static str,
    },
    /// Others can read the secret.
    #[error(
        "{path} can be read by other users of this machine (mode {mode:o}); delete it, or use chmod 600 if no other user \
         has read it"
    )]
    Exposed {
        /// The file, with its absolute path.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not ours.
    #[error(
        "{0} has no secret of at least {HS256_SECRET_MIN} bytes; delete it, and the next start creates a new one"
    )]
    NoSecret(String),
    /// The file can be neither made nor read.
    #[error("cannot keep the development secret in {path}: {error}")]
    File {
        /// The file, with its absolute path.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// No server has been started there.
    #[error(
        "{missing} does not exist, so no server in development mode uses this directory; start `tollkey serve` \
         first, run the command in its directory, or set DATABASE_URL or --database-url as for the server"
    )]
    NoServer {
        /// What does not exist: the database or the secret, with its absolute path.
        missing: String,
    },
    /// Only the server knows the secret.
    #[error(
        "the server keeps its database and its secret in memory, so no other process can sign for it; \
         use the token and the link that it printed, or set TOLLKEY_JWT_HS256_SECRET for both"
    )]
    SecretInMemory,
    /// Somebody else makes the tokens.
    #[error(
        "Tollkey does not sign management tokens: with a public key file or a JWKS URL it only verifies them; create the token at their issuer"
    )]
    IssuedElsewhere,
    /// The message's token cannot be made.
    #[error(transparent)]
    Token(#[from] MintError),
}

/// A server in development mode.
#[derive(Debug)]
pub struct DevMode {
    secret: Secret,
    /// Where the secret is kept; `None` in memory.
    kept_in: Option<PathBuf>,
    rules: ClaimRules,
}

impl DevMode {
    /// Enters development mode if these settings leave it to us, that is, have no key source for tokens; `None` when
    /// they have one. Creates the secret when it is not there yet.
    ///
    /// # Errors
    /// [`DevModeError`] when the database or the address forbids it, or the secret cannot be kept.
    pub fn enter(settings: &Settings, random: &Random) -> Result<Option<Self>, DevModeError> {
        let TokenSource::Development = settings.tokens.source else {
            return Ok(None);
        };
        let kept_in = Self::check(settings)?;
        let secret = match &kept_in {
            None => Secret::new(random.secret().as_str()),
            Some(path) => kept_secret(path, random)?,
        };
        Ok(Some(Self {
            secret,
            kept_in,
            rules: ClaimRules::from(&settings.tokens),
        }))
    }

    /// Whether these settings allow development mode. Returns the path of the secret, `None` for one in memory. Creates
    /// nothing.
    ///
    /// # Errors
    /// [`DevModeError`] when the database, the address or an unknown variable forbids it.
    pub fn check(settings: &Settings) -> Result<Option<PathBuf>, DevModeError> {
        if let Some(unknown) = settings.unknown_variables.first() {
            return Err(DevModeError::UnknownVariable {
                name: unknown.name.clone(),
                nearest: unknown.nearest,
            });
        }
        if !is_loopback(settings.server.listen.ip()) {
            return Err(DevModeError::NotLoopback(settings.server.listen));
        }
        match &settings.database.kind {
            DatabaseKind::Postgres => Err(DevModeError::NotSqlite),
            DatabaseKind::SqliteMemory => Ok(None),
            DatabaseKind::SqliteFile(database) => Ok(Some(secret_path(database))),
        }
    }

    /// The secret that signs tokens.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The links that sign in to the dashboard, as an operator who manages the example's account.
    #[must_use]
    pub fn links(&self, now: Timestamp) -> Option<SignInLinks> {
        let account = EXAMPLE_ACCOUNT.parse().ok()?;
        Some(SignInLinks::new(
            self.secret.clone(),
            account,
            DEFAULT_SUBJECT,
            now,
        ))
    }

    /// What to print once the server listens at `base_url`, such as `http://127.0.0.1:8080`: where everything is,
    /// a token, and a line to paste. It holds a credential and belongs on stdout, not in a log.
    ///
    /// # Errors
    /// [`DevModeError::Token`] when the settings leave no room for a valid token.
    pub fn message(
        &self,
        base_url: &str,
        now: Timestamp,
        random: &Random,
    ) -> Result<String, DevModeError> {
        let token = Zeroizing::new(jwt::mint(
            &self.secret,
            &self.rules,
            &NewToken {
                subject: if self.rules.account_claim == "sub" {
                    EXAMPLE_ACCOUNT
                } else {
                    DEFAULT_SUBJECT
                }
                .to_owned(),
                account: EXAMPLE_ACCOUNT.parse::<AccountId>().ok(),
                roles: Vec::new(),
                lifetime: jwt::DEFAULT_LIFETIME,
            },
            now,
        )?);
        let kept = match &self.kept_in {
            Some(path) => format!(
                "The secret that signs tokens is kept in {}.",
                path.display()
            ),
            None => "The database and the secret that signs tokens are gone when the server stops."
                .to_owned(),
        };
        let (more, more_links) = match &self.kept_in {
            Some(_) => (
                "; `tollkey token --account acme` makes another",
                "; `tollkey dashboard-link` prints another",
            ),
            None => ("", ""),
        };
        let link = dashboard_link(base_url, &SignInLinks::code(&self.secret, random, now));
        // Names are unique, and the line should work at every start.
        let name = random.with(|rng| format!("Example {:04x}", rng.next_u32() & 0xffff));
        Ok(format!(
            "Development mode: no key source for management tokens is set. {kept}\n\
             \n\
             API:        {base_url}/api/v1\n\
             Swagger UI: {base_url}/docs/\n\
             Dashboard:  {link}\n\
             \x20           (signs in once, within {minutes} minutes{more_links})\n\
             Token for account {EXAMPLE_ACCOUNT}, valid for {hours} hours{more}:\n\
             {token}\n\
             \n\
             Create an application:\n\
             curl -sS -X POST '{base_url}/api/v1/applications' -H 'Authorization: Bearer {token}' \
             -H 'Content-Type: application/json' -d '{{\"name\":\"{name}\"}}'\n",
            hours = jwt::DEFAULT_LIFETIME.as_hours(),
            token = *token,
            link = *link,
            minutes = LINK_LIFETIME.as_mins(),
        ))
    }
}

/// The link that signs in to the dashboard with that code.
#[must_use]
pub fn dashboard_link(base_url: &str, code: &Secret) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "{base_url}/dashboard/sign-in/link?code={}",
        code.expose()
    ))
}

/// The secret with which `tollkey token` signs, and where it comes from: the configured one, or the one that a server in
/// development mode has created. Creates none: it would sign tokens that no server accepts.
///
/// # Errors
/// [`DevModeError`] when there is none that this process could have.
pub fn signing_secret(settings: &Settings) -> Result<(Secret, String), DevModeError> {
    match &settings.tokens.source {
        TokenSource::Hs256(secret) => {
            return Ok((secret.clone(), "TOLLKEY_JWT_HS256_SECRET".to_owned()));
        }
        TokenSource::PublicKeyFile(_) | TokenSource::Jwks(_) => {
            return Err(DevModeError::IssuedElsewhere);
        }
        TokenSource::Development => {}
    }
    let path = DevMode::check(settings)?.ok_or(DevModeError::SecretInMemory)?;
    let shown = shown(&path);
    if settings
        .database
        .url
        .file()
        .is_some_and(|database| !database.exists())
    {
        return Err(DevModeError::NoServer {
            missing: settings.database.url.target(),
        });
    }
    if !path.exists() {
        return Err(DevModeError::NoServer {
            missing: format!("development secret {shown}"),
        });
    }
    let secret = read_secret(&path)?.ok_or_else(|| DevModeError::NoSecret(shown.clone()))?;
    Ok((secret, format!("the development secret {shown}")))
}

/// A path as errors show it: absolute, because the reader may not know the directory of the process.
fn shown(path: &Path) -> String {
    std::path::absolute(path)
        .unwrap_or_else(|_| path.to_owned())
        .display()
        .to_string()
}

fn secret_path(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(SECRET_SUFFIX);
    path.into()
}

/// The secret in that file, made and written if there is no such file. Whoever creates the file writes it; everybody
/// else reads what is there.
fn kept_secret(path: &Path, random: &Random) -> Result<Secret, DevModeError> {
    let fail = |error| DevModeError::File {
        path: shown(path),
        error,
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(mut file) => {
            let secret = Secret::new(random.secret().as_str());
            let line = Zeroizing::new(format!("{}\n", secret.expose()));
            let written = file
                .write_all(line.as_bytes())
                .and_then(|()| file.sync_all());
            if let Err(error) = written {
                // Half a secret would be refused at every later start.
                let _ = fs::remove_file(path);
                return Err(fail(error));
            }
            Ok(secret)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut waited = Duration::ZERO;
            loop {
                match read_secret(path)? {
                    Some(secret) => return Ok(secret),
                    None if waited < OTHER_PROCESS_WRITES => {
                        let step = Duration::from_millis(20);
                        thread::sleep(step);
                        waited += step;
                    }
                    None => return Err(DevModeError::NoSecret(shown(path))),
                }
            }
        }
        Err(error) => Err(fail(error)),
    }
}

/// The secret in that file; `None` when what is in it is too short to be one.
fn read_secret(path: &Path) -> Result<Option<Secret>, DevModeError> {
    let fail = |error| DevModeError::File {
        path: shown(path),
        error,
    };
    let file = File::open(path).map_err(fail)?;
    #[cfg(unix)]
    {
        let metadata = file.metadata().map_err(fail)?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            return Err(DevModeError::Exposed {
                path: shown(path),
                mode,
            });
        }
    }
    let mut text = Zeroizing::new(String::new());
    file.take(1024).read_to_string(&mut text).map_err(fail)?;
    let secret = text.trim_end();
    Ok((secret.len() >= HS256_SECRET_MIN).then(|| Secret::new(secret)))
}

#[cfg(test)]
mod tests;
