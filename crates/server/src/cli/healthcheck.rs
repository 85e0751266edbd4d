//! `tollkey healthcheck`

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::Context as _;

use super::{local_request, output};
use crate::config::Settings;

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut address = settings.server.listen;
    anyhow::ensure!(
        address.port() != 0,
        "port 0 is not the port of a running server; set --listen to its address"
    );
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let url = format!("http://{address}/readyz");
    let status = local_request::status(address, "/readyz").with_context(|| {
        format!("no HTTP response from {url}; start the server, or name its address with --listen or TOLLKEY_LISTEN")
    })?;
    if status == "200" {
        output::line(format_args!("ready: {url}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!(
        "not ready: {url} responds with status {status}; the log of the server says why"
    ))?;
    Ok(ExitCode::FAILURE)
}
