//! `tollkey session`

use std::process::ExitCode;

use clap::ArgGroup;
use tollkey_core::AccountId;
use tollkey_service::sessions;

use super::{open, output};
use crate::config::Settings;

/// Commands for sessions of the dashboard.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// End sessions on every server. The people have to sign in again.
    #[command(group(ArgGroup::new("whose").args(["all", "account", "subject"]).required(true).multiple(true)))]
    End {
        /// End all sessions.
        #[arg(long, conflicts_with_all = ["account", "subject"])]
        all: bool,
        /// End the sessions that manage this account.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
        /// End the sessions of this subject (`sub` of the ID token or management token).
        #[arg(long, value_name = "NAME")]
        subject: Option<String>,
    },
}

pub(super) async fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    // Without an account and a subject, all sessions are ended.
    let Command::End {
        all: _,
        account,
        subject,
    } = command;
    let service = open(settings).await?;
    let ended = sessions::end_all(&service, account, subject).await?;
    output::line(format_args!("sessions ended: {ended}"))?;
    Ok(ExitCode::SUCCESS)
}
