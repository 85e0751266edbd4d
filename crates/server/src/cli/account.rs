//! `tollkey account`

use std::process::ExitCode;

use tollkey_core::{Account, AccountId, OperatingModel, Preconditions};
use tollkey_service::accounts;

use super::{actor, open, output};
use crate::config::Settings;

/// Commands for an account.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show an account.
    Show {
        /// The account's ID, as in management tokens.
        id: AccountId,
    },
    /// Set the operating model of an account. It applies to existing keys, too.
    Set {
        /// The account's ID, as in management tokens.
        id: AccountId,
        /// The operating model: `primary_merchant`, `platform`, `ecosystem` or `managed_ecosystem`.
        #[arg(long, value_name = "MODEL")]
        operating_model: OperatingModel,
    },
}

pub(super) async fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    let service = open(settings).await?;
    let account: Account = match command {
        Command::Show { id } => accounts::get(&service, id).await?,
        Command::Set {
            id,
            operating_model,
        } => {
            let actor = actor(id);
            accounts::set_operating_model(&service, &actor, operating_model, Preconditions::NONE)
                .await?
        }
    };
    output::line(format_args!(
        "{}  operating_model={}",
        account.id, account.operating_model
    ))?;
    Ok(ExitCode::SUCCESS)
}
