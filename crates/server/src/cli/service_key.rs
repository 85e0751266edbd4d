//! `tollkey service-key`

use std::process::ExitCode;

use anyhow::Context as _;
use tollkey_core::{Preconditions, ServiceKey, ServiceKeyId};
use tollkey_service::service_keys::{self, CreatedServiceKey};

use super::{open, output, user};
use crate::config::Settings;

/// Commands for service keys.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a service key and print it. It is shown only once.
    Create {
        /// A name that says what uses the key.
        name: String,
    },
    /// List the service keys, newest first.
    List,
    /// Revoke a service key. Every server rejects it when the command returns.
    Revoke {
        /// The service key's ID.
        id: String,
    },
}

pub(super) async fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    let service = open(settings).await?;
    match command {
        Command::Create { name } => {
            let name =
                ServiceKey::parse_name(&name).map_err(|rule| anyhow::anyhow!("the name {rule}"))?;
            let CreatedServiceKey { key, text } =
                service_keys::create(&service, &user(), name).await?;
            output::note(format_args!(
                "service key {} ({}); it is not shown again:",
                key.id, key.name
            ));
            output::only_once(text.expose()).with_context(|| {
                format!("service key {} was created but could not be printed; revoke it with `tollkey service-key revoke`", key.id)
            })?;
        }
        Command::List => {
            for key in service_keys::list(&service).await? {
                let revoked = key
                    .revoked_at
                    .map(|at| format!("  revoked {at:.0}"))
                    .unwrap_or_default();
                let (id, last4, name) = (key.id, key.last4, key.name);
                output::line(format_args!(
                    "{id}  …{last4}  {:.0}  {name}{revoked}",
                    key.created_at
                ))?;
            }
        }
        Command::Revoke { id } => {
            let id: ServiceKeyId = id.parse()?;
            service_keys::revoke(&service, &user(), id, Preconditions::NONE).await?;
            output::line(format_args!("revoked {id}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
