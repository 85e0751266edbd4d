//! `tollkey healthcheck`

use std::process::ExitCode;

use anyhow::Context as _;

use super::{local_request, output};
use crate::{config::Settings, listen_address::ListenAddress};

const PATH: &str = "/readyz";

/// Sends the request to the first listener.
pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let address = local_request::target(settings)?;
    let target = match &address {
        ListenAddress::Tcp(address) => format!("http://{address}{PATH}"),
        ListenAddress::Unix(_) => format!("{PATH} at {address}"),
    };
    let status = local_request::status(&address, PATH).with_context(|| {
        format!(
            "no HTTP response from {target}; start the server, or name its address with --listen or TOLLKEY_LISTEN"
        )
    })?;
    if status == "200" {
        output::line(format_args!("ready: {target}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!(
        "not ready: {target} responds with status {status}; the log of the server says why"
    ))?;
    Ok(ExitCode::FAILURE)
}
