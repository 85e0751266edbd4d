//! `tollkey session`

use std::process::ExitCode;

use clap::ArgGroup;
use tollkey_core::AccountId;
use tollkey_service::sessions;

use super::{open, output};
use crate::config::Settings;

/// What to do with sessions of the dashboard.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// End them: whoever had one signs in again, on every server.
    #[command(group(ArgGroup::new("whose").args(["all", "account", "subject"]).required(true).multiple(true)))]
    End {
        /// All of them.
        #[arg(long, conflicts_with_all = ["account", "subject"])]
        all: bool,
        /// Those that manage this account.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
        /// Those of who is called so, by their identity provider or their token.
        #[arg(long, value_name = "NAME")]
        subject: Option<String>,
    },
}

pub(super) async fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    // `all` is what is left when neither of the others is there.
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
