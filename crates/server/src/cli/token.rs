//! `tollkey token`

use std::process::ExitCode;

use anyhow::ensure;
use jiff::SignedDuration;
use tollkey_core::{AccountId, Clock as _};
use tollkey_verifier::SystemClock;

use super::output;
use crate::{
    auth::jwt::{self, NewToken},
    config::Settings,
    dev_mode,
};

/// The claims of the token.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The account that the token manages.
    #[arg(long, value_name = "ID")]
    account: Option<AccountId>,
    /// A role of the token: operator or service. Repeatable.
    #[arg(long = "role", value_name = "ROLE", value_parser = ["operator", "service"])]
    roles: Vec<String>,
    /// The subject of the token (`sub`).
    #[arg(long, value_name = "SUBJECT", default_value = dev_mode::DEFAULT_SUBJECT)]
    subject: String,
    /// How many seconds the token is valid.
    #[arg(long, value_name = "SECONDS", default_value_t = jwt::DEFAULT_LIFETIME.as_secs())]
    ttl: i64,
}

pub(super) fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<ExitCode> {
    ensure!(
        arguments.account.is_some() || !arguments.roles.is_empty(),
        "set --account, --role, or both"
    );
    let (secret, origin) = dev_mode::signing_secret(settings)?;
    output::note(format_args!("signed with {origin}"));
    let token = NewToken {
        subject: arguments.subject,
        account: arguments.account,
        roles: arguments.roles,
        lifetime: SignedDuration::from_secs(arguments.ttl),
    };
    output::line(jwt::create_token(
        &secret,
        &settings.tokens.claims,
        &token,
        SystemClock.now(),
    )?)?;
    Ok(ExitCode::SUCCESS)
}
