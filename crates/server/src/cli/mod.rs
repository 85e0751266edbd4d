//! The command line: one file per subcommand.
#![expect(clippy::print_stdout, reason = "what a command finds is said on stdout; logs go to stderr")]

mod account;
mod audit;
mod config;
mod dashboard_link;
mod healthcheck;
mod migrate;
mod openapi;
mod serve;
mod service_key;
mod session;
mod token;

use std::{process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};
use tollkey_core::audit::{Actor, ActorKind};
use tollkey_verifier::SystemClock;

use crate::{
    caller::{
        Manager,
        jwt::{ClaimRules, TokenVerifier},
    },
    config::{DatabaseKind, Options, Settings, Warning},
    dev_mode,
    random::Random,
    server,
    state::State,
    telemetry,
};

/// Issues, scopes, verifies and revokes API keys for commerce and payment APIs.
#[derive(Debug, Parser)]
#[command(name = "tollkey", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve,
    /// Bring the database's schema to this build's.
    Migrate,
    /// Make a management token, where Tollkey holds the secret that signs them.
    Token(token::Arguments),
    /// Make, list and revoke the keys of resource servers and gateways.
    #[command(subcommand)]
    ServiceKey(service_key::Command),
    /// Print the OpenAPI document.
    Openapi,
    /// Check the audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show an account, or set its operating model.
    #[command(subcommand)]
    Account(account::Command),
    /// End sessions of the dashboard.
    #[command(subcommand)]
    Session(session::Command),
    /// Ask a running server whether it is ready; exits 0 when it is.
    Healthcheck,
    /// Check the settings.
    #[command(subcommand)]
    Config(config::Command),
    /// Print a new link that signs in to the dashboard of a server in development mode.
    DashboardLink,
}

/// Runs what the command line asks for.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            // Every error of ours is a sentence that names no secret.
            eprintln!("tollkey: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    if matches!(cli.command, Some(Command::Openapi)) {
        return openapi::run();
    }
    let settings = Settings::load(&cli.options).inspect_err(|_| {
        // A variable that is missing may be there under a misspelled name.
        for unknown in Settings::unknown_variables() {
            eprintln!("tollkey: {}", Warning::Unknown(unknown));
        }
    })?;
    telemetry::init_logs(&settings.log)?;
    if !matches!(cli.command, Some(Command::Config(_))) {
        settings.warnings().for_each(|warning| warning.log());
    }
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(&settings),
        Command::Migrate => migrate::run(&settings),
        Command::Token(arguments) => token::run(&settings, arguments),
        Command::ServiceKey(command) => block_on(service_key::run(&settings, command)),
        Command::Openapi => openapi::run(),
        Command::Audit(command) => audit::run(&settings, command),
        Command::Account(command) => block_on(account::run(&settings, command)),
        Command::Session(command) => block_on(session::run(&settings, command)),
        Command::Healthcheck => healthcheck::run(&settings),
        Command::Config(command) => Ok(config::run(&settings, &command)),
        Command::DashboardLink => dashboard_link::run(&settings),
    }
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// What the server works with, without the server. Changes made with it hold on running servers once they return.
async fn open(settings: &Settings) -> anyhow::Result<State> {
    anyhow::ensure!(
        settings.database.kind != DatabaseKind::SqliteMemory,
        "a database in memory is its server's alone; set DATABASE_URL to the one that the server uses"
    );
    // No request comes in here, so nobody's token needs to be trusted: a secret that nobody has.
    let random = Random::system();
    let nobody = TokenVerifier::hs256(&dev_mode::new_secret(&random), ClaimRules::from(&settings.tokens))?;
    server::assemble(settings, Arc::new(SystemClock), random, nobody, None).await
}

/// Somebody at the command line, managing an account.
fn manager(account_id: tollkey_core::AccountId) -> Manager {
    Manager { account_id, actor: Actor { kind: ActorKind::Cli, id: user() }, request_id: None, ip: None, key: None }
}

/// Who is at the command line, by the operating system's word.
fn user() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}
