//! The command line: one file per subcommand.
#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic on a closed pipe: see `output`

mod account;
mod audit;
mod completions;
mod config;
mod dashboard_link;
mod healthcheck;
mod local_request;
mod migrate;
mod openapi;
mod output;
mod serve;
mod service_key;
mod session;
mod token;

use std::{process::ExitCode, sync::Arc, thread};

pub use self::completions::completions;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tollkey_core::{
    audit::{Actor, ActorKind},
    key_format::CredentialKind,
};
use tollkey_service::{Random, RequestActor, Service};
use tollkey_verifier::SystemClock;

use crate::{
    assembly,
    config::{Options, Settings, Warning},
    database,
    signals::Signals,
    telemetry,
};

/// Issues, scopes, verifies and revokes API keys for commerce and payment APIs.
#[derive(Debug, Parser)]
#[command(name = "tollkey", version, propagate_version = true)]
#[command(override_usage = "tollkey [SETTINGS] [COMMAND]")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve,
    /// Migrate the database's schema to this version.
    Migrate,
    /// Create a management token, if management tokens are signed with a secret.
    Token(token::Arguments),
    /// Create, list and revoke service keys, which resource servers and gateways use.
    #[command(subcommand)]
    ServiceKey(service_key::Command),
    /// Print the OpenAPI document.
    Openapi,
    /// Verify the audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show an account, or set its operating model.
    #[command(subcommand)]
    Account(account::Command),
    /// End sessions of the dashboard.
    #[command(subcommand)]
    Session(session::Command),
    /// Check whether a running server is ready; exits with 0 if it is.
    Healthcheck,
    /// Check the settings.
    #[command(subcommand)]
    Config(config::Command),
    /// Print a new sign-in link to the dashboard of a server in development mode.
    DashboardLink,
    /// Print the completions of commands and flags for a shell.
    Completions(completions::Arguments),
}

/// Returns the command line of this program. The flags of settings are hidden, because the help lists them once.
#[must_use]
pub fn command() -> clap::Command {
    Options::add_to(Cli::command()).mut_subcommands(with_settings_hint)
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|matches| {
        Ok((
            Cli::from_arg_matches(&matches)?,
            Options::from_matches(&matches),
        ))
    });
    let (cli, options) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage_error(&error),
    };
    match dispatch(cli, &options) {
        Ok(code) => code,
        Err(error) => {
            // No error of this crate contains a secret.
            output::note(format_args!("tollkey: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn with_settings_hint(command: clap::Command) -> clap::Command {
    command
        .mut_subcommands(with_settings_hint)
        .after_help("Settings are listed by 'tollkey --help' and accepted here, too.")
}

/// Prints clap's help, version or error, unless the error quotes a credential.
fn usage_error(error: &clap::Error) -> ExitCode {
    let arguments = std::env::args_os().skip(1);
    if shows_credential(
        &error.to_string(),
        arguments.map(|argument| argument.to_string_lossy().into_owned()),
    ) {
        output::note(
            "error: invalid argument; it is not shown, because it may be a credential. Set the database URL with the \
             variable DATABASE_URL. Write variables before the command: NAME=VALUE tollkey\n\nFor more information, \
             try '--help'.",
        );
    } else {
        // Fails only if the pipe is closed.
        let _ = error.print();
    }
    // clap uses 0 and 2.
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Returns whether a message repeats an argument, or the value after its equals sign, that may be a credential.
fn shows_credential(message: &str, mut arguments: impl Iterator<Item = String>) -> bool {
    arguments.any(|argument| {
        let (name, value) = argument.split_once('=').unwrap_or_default();
        // A variable or a field of the configuration file, passed as an argument by mistake.
        let is_setting =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        (is_setting || is_like_a_credential(&argument)) && message.contains(&argument)
            || is_like_a_credential(value) && message.contains(value)
    })
}

/// Returns whether a text may be a credential: a key, a token, or a URL with a password, even a malformed one.
fn is_like_a_credential(text: &str) -> bool {
    let is_url = text.contains(":/") || text.contains('@') || text.contains("password=");
    is_url || text.starts_with("eyJ") || text.len() > 64 || CredentialKind::parse(text).is_some()
}

fn dispatch(cli: Cli, options: &Options) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Some(Command::Openapi) => return openapi::run(),
        Some(Command::Completions(arguments)) => return completions::run(arguments),
        _ => {}
    }
    let settings = Settings::load(options).inspect_err(|_| {
        // The name of a required variable may be misspelled.
        for unknown in Settings::unknown_variables() {
            output::note(format_args!("tollkey: {unknown}"));
        }
    })?;
    telemetry::init_logs(&settings.log)?;
    if !matches!(cli.command, Some(Command::Config(_))) {
        for warning in settings.warnings() {
            let Warning { setting, text } = warning;
            tracing::warn!(setting, warning = %text, "a setting is valid, but probably a mistake");
        }
    }
    let command = cli.command.unwrap_or(Command::Serve);
    if !matches!(command, Command::Serve) {
        exit_on_signals()?;
    }
    match command {
        Command::Serve => serve::run(&settings),
        Command::Migrate => migrate::run(&settings),
        Command::Token(arguments) => token::run(&settings, arguments),
        Command::ServiceKey(command) => block_on(service_key::run(&settings, command)),
        Command::Openapi => openapi::run(),
        Command::Audit(command) => audit::run(&settings, command),
        Command::Account(command) => block_on(account::run(&settings, command)),
        Command::Session(command) => block_on(session::run(&settings, command)),
        Command::Healthcheck => healthcheck::run(&settings),
        Command::Config(command) => config::run(&settings, &command),
        Command::DashboardLink => dashboard_link::run(&settings),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

/// Ends the process on SIGTERM and SIGINT, with the exit code of a shell. By default, the first process of a container
/// ignores these signals, so it could not be stopped while it waits for the database.
fn exit_on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals::catch()?
    };
    thread::Builder::new()
        .name("tollkey-signals".into())
        .spawn(move || {
            let signal = runtime.block_on(signals.next());
            output::note(format_args!("tollkey: ended by {signal}"));
            std::process::exit(if signal == "SIGINT" {
                128 + 2
            } else {
                128 + 15
            })
        })?;
    Ok(())
}

/// Prints the URL of the database to stderr.
fn name_database(settings: &Settings) {
    output::note(format_args!("database: {}", settings.database.url));
}

/// Opens a database that exists and has the schema of this version. When an operation of the returned service returns,
/// its change has been propagated to all running servers.
async fn open(settings: &Settings) -> anyhow::Result<Service> {
    name_database(settings);
    let clock = Arc::new(SystemClock);
    let store = database::open_existing_store(settings, clock.clone())?;
    assembly::service(settings, store, clock, Random::system(), None).await
}

fn actor(account_id: tollkey_core::AccountId) -> RequestActor {
    RequestActor {
        account_id,
        actor: Actor {
            kind: ActorKind::Cli,
            id: user(),
        },
        request_id: None,
        ip: None,
        parent: None,
    }
}

fn user() -> String {
    std::env::var("USER")
        .ok()
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tollkey_store::{OpenOptions, Store};

    use super::*;

    #[test]
    fn argument_that_may_be_a_credential_is_not_repeated() {
        let key = format!("ks_live_{}", "a".repeat(32));
        for (arguments, is_hidden) in [
            (vec!["serve", "TOLLKEY_JWT_HS256_SECRET=EXAMPLE"], true),
            (vec!["TOLLKEY_JWT_HS256_SECRET=EXAMPLE", "serve"], true),
            (vec!["serve", "jwt_hs256_secret=EXAMPLE"], true),
            (vec!["serve", "PGPASSWORD="], true),
            (vec!["token", "--ttl", "SECRET=EXAMPLE"], true),
            (vec!["serve", "postgres://u:EXAMPLE@h/db"], true),
            (vec!["serve", key.as_str()], true),
            (vec!["service-key", "revoke", "a", key.as_str()], true),
            (vec!["sevre"], false),
            (vec!["serve", "--unknown"], false),
            (vec!["serve", "--unknown=x"], false),
            (vec!["token", "--ttl", "soon"], false),
        ] {
            let error =
                Cli::try_parse_from([&["tollkey"], arguments.as_slice()].concat()).unwrap_err();
            let is_shown = !shows_credential(
                &error.to_string(),
                arguments.iter().map(ToString::to_string),
            );
            assert_eq!(is_shown, !is_hidden, "{arguments:?}: {error}");
        }
    }

    #[test]
    fn database_error_states_its_cause_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| format!("sqlite://{}/{name}", directory.path().display());
        fs::create_dir(directory.path().join("a directory")).unwrap();
        fs::write(directory.path().join("text"), "not a database").unwrap();
        for url in [
            "mysql://EXAMPLE".to_owned(),
            "postgres://EXAMPLE.invalid/db?sslmode=require".to_owned(),
            path("a directory"),
            path("missing/tollkey.db"),
            path("text"),
            path("text/tollkey.db"),
        ] {
            let opened = Store::open(OpenOptions::new(&url), Arc::new(SystemClock));
            let error = anyhow::Error::from(opened.err().unwrap());
            let (printed, text) = (format!("{error:#}"), error.to_string());
            assert_eq!(
                printed, text,
                "the message includes the cause, and the chain does not repeat it"
            );
            let hint = text.find("; ");
            assert!(
                hint.is_none_or(|at| !text[at..].contains("(os error")),
                "the hint is last: {text}"
            );
        }
    }
}
