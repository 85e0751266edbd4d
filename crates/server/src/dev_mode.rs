//! Development mode: what a server does if no key source for management tokens is set.
//!
//! The server creates its own HS256 secret, stores it in a file next to the database, and prints a management token.
//! This would be insecure if other machines could reach the server, so it requires SQLite and a loopback address.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    auth::jwt::{self, ClaimRules, CreateTokenError, NewToken},
    auth::sign_in_links::{LINK_LIFETIME, SignInLinks},
    config::{DatabaseKind, HS256_SECRET_MIN, Secret, Settings, TokenSource},
    issuer_url::is_loopback,
    listen_address::ListenAddress,
};
use jiff::Timestamp;
use tollkey_core::AccountId;
use tollkey_service::Random;
use zeroize::Zeroizing;

/// The suffix of the secret's file, whose name begins with that of the database file.
pub const SECRET_SUFFIX: &str = ".jwt-secret";
pub const EXAMPLE_ACCOUNT: &str = "acme";
pub const DEFAULT_SUBJECT: &str = "developer";

/// How long to wait until another process has written the secret into a file that it created.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum DevModeError {
    #[error(
        "PostgreSQL needs a key source for management tokens: set one of TOLLKEY_JWT_HS256_SECRET, \
         TOLLKEY_JWT_PUBLIC_KEY_FILE, TOLLKEY_JWT_JWKS_URL (development mode is for SQLite only)"
    )]
    NotSqlite,
    #[error(
        "listening on {address}, which is not a loopback address, needs a key source for management tokens: set one of \
         TOLLKEY_JWT_HS256_SECRET, TOLLKEY_JWT_PUBLIC_KEY_FILE, TOLLKEY_JWT_JWKS_URL, or set {setting} to a loopback \
         address"
    )]
    NotLoopback {
        setting: &'static str,
        address: SocketAddr,
    },
    #[error(
        "listening on a Unix socket, {0}, needs a key source for management tokens: set one of TOLLKEY_JWT_HS256_SECRET, \
         TOLLKEY_JWT_PUBLIC_KEY_FILE, TOLLKEY_JWT_JWKS_URL, or set TOLLKEY_LISTEN to a loopback address"
    )]
    UnixSocket(PathBuf),
    /// An unknown variable is set. It may be the misspelled key source that would turn development mode off.
    #[error(
        "development mode does not start while the unknown variable {name} is set; did you mean {nearest}? Correct it, \
         or remove it"
    )]
    UnknownVariable { name: String, nearest: &'static str },
    #[error(
        "{path} can be read by other users of this machine (mode {mode:o}); delete it, or use chmod 600 if no other user \
         has read it"
    )]
    Exposed { path: String, mode: u32 },
    #[error(
        "{0} has no secret of at least {HS256_SECRET_MIN} bytes; delete it, and the next start creates a new one"
    )]
    NoSecret(String),
    #[error("cannot store or read the development secret in {path}: {error}")]
    File { path: String, error: io::Error },
    #[error(
        "{missing} does not exist, so no server in development mode uses this directory; start `tollkey serve` \
         first, run the command in its directory, or set DATABASE_URL or --database-url as for the server"
    )]
    NoServer { missing: String },
    #[error(
        "the server keeps its database and its secret in memory, so no other process can sign for it; \
         use the token and the link that it printed, or set TOLLKEY_JWT_HS256_SECRET for both"
    )]
    SecretInMemory,
    #[error(
        "Tollkey does not sign management tokens: with a public key file or a JWKS URL it only verifies them; create the token at their issuer"
    )]
    IssuedElsewhere,
    #[error(transparent)]
    Token(#[from] CreateTokenError),
}

#[derive(Debug)]
pub struct DevMode {
    secret: Secret,
    /// The file of the secret; `None` if it is only in memory.
    path: Option<PathBuf>,
    rules: ClaimRules,
}

impl DevMode {
    /// Creates the secret if it does not exist. Returns `None` if a key source for tokens is set.
    pub fn enter(settings: &Settings, random: &Random) -> Result<Option<Self>, DevModeError> {
        let TokenSource::Development = settings.tokens.source else {
            return Ok(None);
        };
        let path = Self::check(settings)?;
        let secret = match &path {
            None => Secret::new(random.secret().as_str()),
            Some(path) => read_or_create_secret(path, random)?,
        };
        Ok(Some(Self {
            secret,
            path,
            rules: settings.tokens.claims.clone(),
        }))
    }

    /// Returns the path of the secret, or `None` for a database in memory. Creates nothing.
    pub fn check(settings: &Settings) -> Result<Option<PathBuf>, DevModeError> {
        if let Some(unknown) = settings.unknown_variables.first() {
            return Err(DevModeError::UnknownVariable {
                name: unknown.name.clone(),
                nearest: unknown.nearest,
            });
        }
        // Requests over a Unix socket come from a proxy, which may be reachable by other machines.
        if let Some(path) = settings.server.listen.unix() {
            return Err(DevModeError::UnixSocket(path.to_owned()));
        }
        let listen = settings.server.listen.iter().filter_map(ListenAddress::tcp);
        let listen = listen.map(|address| ("TOLLKEY_LISTEN", address));
        let grpc = settings.server.grpc_listen;
        let grpc = grpc.map(|address| ("TOLLKEY_GRPC_LISTEN", address));
        for (setting, address) in listen.chain(grpc) {
            if !is_loopback(address.ip()) {
                return Err(DevModeError::NotLoopback { setting, address });
            }
        }
        match settings.database.kind() {
            DatabaseKind::Postgres => Err(DevModeError::NotSqlite),
            DatabaseKind::SqliteMemory => Ok(None),
            DatabaseKind::SqliteFile(database) => Ok(Some(secret_path(database))),
        }
    }

    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns the links that sign in to the dashboard as an operator who manages [`EXAMPLE_ACCOUNT`].
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

    /// Returns the message to print once the server listens at `base_url`, such as `http://127.0.0.1:8080`: the URLs, a
    /// token, and an example command. It holds credentials, so it belongs on stdout and not in a log.
    pub fn message(
        &self,
        base_url: &str,
        now: Timestamp,
        random: &Random,
    ) -> Result<String, DevModeError> {
        let token = Zeroizing::new(jwt::create_token(
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
        let storage = match &self.path {
            Some(path) => format!(
                "The secret that signs tokens is stored in {}.",
                path.display()
            ),
            None => {
                "The database and the secret that signs tokens are deleted when the server stops."
                    .to_owned()
            }
        };
        let (more, more_links) = match &self.path {
            Some(_) => (
                "; `tollkey token --account acme` creates another",
                "; `tollkey dashboard-link` prints another",
            ),
            None => ("", ""),
        };
        let link = dashboard_link(base_url, &SignInLinks::code(&self.secret, random, now));
        // A random name: names are unique, and the command must work after every start.
        let name = random.with(|rng| format!("Example {:04x}", rng.next_u32() & 0xffff));
        Ok(format!(
            "Development mode: no key source for management tokens is set. {storage}\n\
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

#[must_use]
pub fn dashboard_link(base_url: &str, code: &Secret) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "{base_url}/dashboard/sign-in/link?code={}",
        code.expose()
    ))
}

/// Returns the secret with which `tollkey token` signs, and its origin: the configured secret, or the secret that a
/// server in development mode created. Creates none, because no server would accept its tokens.
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
    let shown = absolute_path(&path);
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

/// Returns a path for an error: absolute, because the reader may not know the working directory of the process.
fn absolute_path(path: &Path) -> String {
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

/// Reads the secret in this file, or creates both. If several processes start at the same time, one creates the file
/// and the others wait for its content.
fn read_or_create_secret(path: &Path, random: &Random) -> Result<Secret, DevModeError> {
    let fail = |error| DevModeError::File {
        path: absolute_path(path),
        error,
    };
    let mut options = OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let secret = Secret::new(random.secret().as_str());
            let line = Zeroizing::new(format!("{}\n", secret.expose()));
            let written = file
                .write_all(line.as_bytes())
                .and_then(|()| file.sync_all());
            if let Err(error) = written {
                // A partial secret would be rejected at every later start.
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
                    None if waited < WRITE_TIMEOUT => {
                        let step = Duration::from_millis(20);
                        thread::sleep(step);
                        waited += step;
                    }
                    None => return Err(DevModeError::NoSecret(absolute_path(path))),
                }
            }
        }
        Err(error) => Err(fail(error)),
    }
}

/// Reads the secret in this file; `None` if it is too short.
fn read_secret(path: &Path) -> Result<Option<Secret>, DevModeError> {
    let fail = |error| DevModeError::File {
        path: absolute_path(path),
        error,
    };
    let file = File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(DevModeError::Exposed {
            path: absolute_path(path),
            mode,
        });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(1024).read_to_string(&mut text).map_err(fail)?;
    let secret = text.trim_end();
    Ok((secret.len() >= HS256_SECRET_MIN).then(|| Secret::new(secret)))
}

#[cfg(test)]
mod tests;
