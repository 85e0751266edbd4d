//! The TLS parameters of a PostgreSQL connection, in builds with TLS.
//!
//! The defaults of libpq suit a person at a terminal: without `sslmode` it accepts a connection without TLS, it ignores a
//! missing client certificate or revocation list, and it asks on the terminal for the password of a private key. Its
//! OpenSSL, which is built with Tollkey, looks for the CA certificates of the system in a directory that does not exist.
//! [`complete`] replaces these defaults and checks the files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{BadUrl, Parameters, absolute, effective, is_on_this_machine};

/// The parameters that are paths, and the environment variables that libpq reads in their place.
pub(super) const FILES: [(&str, &str); 5] = [
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
];

/// The value of `sslrootcert` that stands for the CA certificates of the system.
const SYSTEM: &str = "system";

/// With a password, libpq does not ask for one on the terminal. Only used for private keys that are not encrypted, and
/// not the password of others.
const NO_PASSWORD: &str = "none";

/// Returns the parameters with Tollkey's defaults, and checks the files that they name.
///
/// - `sslmode` is `verify-full` for a server that is not on this machine.
/// - `sslrootcert` is the file of the system's CA certificates instead of `system`, and also if it is not set, unless
///   libpq's own default, `~/.postgresql/root.crt`, exists.
///
/// A service file of libpq can set all of this, and URLs with one get no default that replaces its values.
pub(super) fn complete(
    parameters: &Parameters,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<Parameters, BadUrl> {
    let mut completed = parameters.clone();
    let get = |name, variable| effective(parameters, env, name, variable);
    let has_service = get("service", "PGSERVICE").is_some();
    let cas = get("sslrootcert", "PGSSLROOTCERT");
    let needs_system = cas.as_deref() == Some(SYSTEM);

    let mode = match get("sslmode", "PGSSLMODE") {
        Some(mode) => mode,
        None if needs_system || !(has_service || is_on_this_machine(parameters, env)) => {
            "verify-full".to_owned()
        }
        // That of libpq, or of the service file.
        None => String::new(),
    };
    if needs_system && mode != "verify-full" {
        return Err(BadUrl::WeakSystemCas);
    }
    if mode == "disable" {
        return Ok(completed);
    }
    if !mode.is_empty() {
        completed.insert("sslmode", mode.clone());
    }

    if needs_system {
        completed.insert("sslrootcert", system_cas(env)?);
    } else if cas.is_none() && mode.starts_with("verify") && !has_service {
        let file = match default_cas(env) {
            Some(file) => file,
            None if mode == "verify-full" => system_cas(env)?,
            None => return Err(BadUrl::NoCa),
        };
        completed.insert("sslrootcert", file);
    }

    let has = |name, variable| get(name, variable).is_some();
    if has("sslkey", "PGSSLKEY") && !has("sslcert", "PGSSLCERT") && !has_service {
        return Err(BadUrl::NoClientCertificate);
    }
    if !has_service {
        completed
            .entry("sslpassword")
            .or_insert_with(|| NO_PASSWORD.to_owned());
    }
    for (name, variable) in FILES {
        if let Some(path) = effective(&completed, env, name, variable) {
            let is_in_environment = !parameters.contains_key(name) && get(name, variable).is_some();
            let setting = if is_in_environment { variable } else { name };
            check(setting, Path::new(&path), name == "sslcrldir")?;
        }
    }
    Ok(completed)
}

/// Returns the file from which libpq reads CA certificates by default, if it exists.
fn default_cas(env: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let home = env("HOME").filter(|home| !home.is_empty());
    let home = home.map(PathBuf::from).or_else(std::env::home_dir)?;
    let file = home.join(".postgresql/root.crt");
    file.exists()
        .then(|| file.into_os_string().into_string().ok())
        .flatten()
}

/// Returns the file with the CA certificates of the system: that of `SSL_CERT_FILE`, which OpenSSL reads, or that of the
/// distribution.
fn system_cas(env: &impl Fn(&str) -> Option<String>) -> Result<String, BadUrl> {
    const VARIABLE: &str = "SSL_CERT_FILE";
    if let Some(file) = env(VARIABLE).filter(|file| !file.is_empty()) {
        check(VARIABLE, Path::new(&file), false)?;
        return Ok(file);
    }
    let file = openssl_probe::probe().cert_file;
    let file = file.and_then(|file| file.into_os_string().into_string().ok());
    file.ok_or(BadUrl::NoSystemCas)
}

/// Checks that a file, or a directory, can be read.
fn check(setting: &'static str, path: &Path, is_directory: bool) -> Result<(), BadUrl> {
    let fail = |reason: String| BadUrl::File {
        setting,
        path: absolute(path).display().to_string(),
        reason,
    };
    // Opening something else, such as a pipe, could block.
    let read = match fs::metadata(path) {
        Ok(found) if is_directory && found.is_dir() => fs::read_dir(path).map(drop),
        Ok(_) if is_directory => {
            return Err(fail("it is not a directory; correct the path".into()));
        }
        Ok(found) if found.is_file() => fs::File::open(path).map(drop),
        Ok(_) => return Err(fail("it is not a file; correct the path".into())),
        Err(error) => Err(error),
    };
    read.map_err(|error| {
        let next = match error.kind() {
            io::ErrorKind::PermissionDenied => "let the user of this process read it",
            _ => "correct the path",
        };
        fail(format!("{error}; {next}"))
    })
}
