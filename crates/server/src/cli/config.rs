//! `tollkey config check`
//!
//! Prints the settings in effect, each with its source and without secrets, and checks what they name: the database,
//! the keys of management tokens, the OpenID Connect provider. Changes nothing, creates nothing, and takes at most
//! [`TIMEOUT`].

use std::{
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tollkey_service::Random;
use tollkey_verifier::SystemClock;

use super::{block_on, output};
use crate::{
    auth::{jwt::TokenVerifier, oidc::Provider},
    config::{DatabaseKind, Secret, Settings, TokenSource},
    database,
    dev_mode::DevMode,
};

/// How long each check may take. They run at the same time.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What to do with the settings.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the settings in effect, and check that the database, the keys of management tokens and the OpenID Connect
    /// provider respond. Exits with 0 if all of them do.
    Check {
        /// How to print them.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// The result of a check, as text for the operator; `Err` if the check failed.
type Outcome = Result<String, String>;

pub(super) fn run(settings: &Settings, command: &Command) -> anyhow::Result<ExitCode> {
    let Command::Check { format } = command;
    let warnings: Vec<String> = settings.warnings().map(|warning| warning.text).collect();
    let checks = check_all(settings);
    match format {
        Format::Text => print_text(settings, &warnings, &checks)?,
        Format::Json => print_json(settings, &warnings, &checks)?,
    }
    let all_ok = checks.iter().all(|(_, outcome)| outcome.is_ok());
    Ok(if all_ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check_all(settings: &Settings) -> Vec<(&'static str, Outcome)> {
    type Check = fn(&Settings) -> Outcome;
    let mut checks: Vec<(&'static str, Check)> =
        vec![("database", database), ("management tokens", tokens)];
    if settings.oidc.is_some() {
        checks.push(("OpenID Connect", oidc));
    }
    // Threads, because the database library blocks. A thread that misses the deadline ends with the process.
    let running: Vec<_> = checks
        .into_iter()
        .map(|(name, check)| {
            let (sender, receiver) = mpsc::channel();
            let settings = settings.clone();
            thread::spawn(move || sender.send(check(&settings)));
            (name, receiver)
        })
        .collect();
    let deadline = Instant::now() + TIMEOUT;
    running
        .into_iter()
        .map(|(name, receiver)| {
            let left = deadline.saturating_duration_since(Instant::now());
            let outcome = receiver.recv_timeout(left);
            (
                name,
                outcome.unwrap_or_else(|_| {
                    Err(format!("no response within {} seconds", TIMEOUT.as_secs()))
                }),
            )
        })
        .collect()
}

/// Checks that the database responds and has the schema of this version.
fn database(settings: &Settings) -> Outcome {
    let target = settings.database.url.target();
    // Opening it would create a database.
    if settings.database.kind() == DatabaseKind::SqliteMemory {
        return Ok(format!("{target} is created when the server starts"));
    }
    // A check reports the current state without waiting.
    let mut settings = settings.clone();
    settings.database.wait = Duration::ZERO;
    database::open_existing_store(&settings, Arc::new(SystemClock))
        .map_err(|error| format!("{error:#}"))?;
    Ok(format!(
        "{target} responds and has the schema of this version"
    ))
}

fn tokens(settings: &Settings) -> Outcome {
    let secret = Secret::new(Random::system().secret().as_str());
    match &settings.tokens.source {
        TokenSource::Development => {
            DevMode::check(settings).map_err(|error| error.to_string())?;
            Ok("development mode: no key source is set".to_owned())
        }
        TokenSource::Hs256(_) => Ok("HS256 with TOLLKEY_JWT_HS256_SECRET".to_owned()),
        TokenSource::PublicKeyFile(file) => {
            TokenVerifier::open(&settings.tokens, Some(&secret))
                .map_err(|error| error.to_string())?;
            Ok(format!("public key in {}", file.path().display()))
        }
        TokenSource::Jwks(url) => {
            let verifier = TokenVerifier::open(&settings.tokens, Some(&secret))
                .map_err(|error| error.to_string())?;
            match within_runtime(verifier.fetch_key_count())? {
                Ok(Some(0)) => Err(format!(
                    "{url} has no usable key (RSA from 2048 bits, P-256, P-384, Ed25519)"
                )),
                Ok(keys) => Ok(format!(
                    "{url} has {} usable keys",
                    keys.unwrap_or_default()
                )),
                Err(error) => Err(format!("{url}: {error}")),
            }
        }
    }
}

fn oidc(settings: &Settings) -> Outcome {
    let Some(oidc) = &settings.oidc else {
        return Ok("off".to_owned());
    };
    let provider = Provider::new(oidc).map_err(|error| error.to_string())?;
    match within_runtime(provider.fetch_key_count())? {
        Ok(0) => Err(format!("{} has no usable key", oidc.issuer)),
        Ok(keys) => Ok(format!(
            "{} responds and has {keys} usable keys",
            oidc.issuer
        )),
        Err(error) => Err(format!("{}: {error}", oidc.issuer)),
    }
}

fn within_runtime<T>(work: impl Future<Output = T>) -> Result<T, String> {
    block_on(async { Ok(work.await) }).map_err(|error| error.to_string())
}

fn print_text(
    settings: &Settings,
    warnings: &[String],
    checks: &[(&str, Outcome)],
) -> anyhow::Result<()> {
    output::line("Settings")?;
    let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or_default();
    let names = widest(&mut settings.effective.iter().map(|it| it.name.len()));
    for setting in &settings.effective {
        let value = setting.value.as_deref().unwrap_or("(not set)");
        output::line(format_args!(
            "  {:names$}  {value}  ({})",
            setting.name, setting.from
        ))?;
    }
    if !warnings.is_empty() {
        output::line("\nWarnings")?;
        for warning in warnings {
            output::line(format_args!("  {warning}"))?;
        }
    }
    output::line("\nChecks")?;
    for (name, outcome) in checks {
        match outcome {
            Ok(found) => output::line(format_args!("  {name}: ok: {found}"))?,
            Err(error) => output::line(format_args!("  {name}: FAILED: {error}"))?,
        }
    }
    Ok(())
}

fn print_json(
    settings: &Settings,
    warnings: &[String],
    checks: &[(&str, Outcome)],
) -> anyhow::Result<()> {
    let settings: Vec<_> = settings
        .effective
        .iter()
        .map(|it| json!({"name": it.name, "value": it.value, "source": it.from.to_string()}))
        .collect();
    let checks: Vec<_> = checks
        .iter()
        .map(|(name, outcome)| {
            let (Ok(detail) | Err(detail)) = outcome;
            json!({"name": name, "ok": outcome.is_ok(), "detail": detail})
        })
        .collect();
    output::line(format_args!(
        "{:#}",
        json!({"settings": settings, "warnings": warnings, "checks": checks})
    ))
}
