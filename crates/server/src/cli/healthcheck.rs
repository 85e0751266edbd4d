//! `tollkey healthcheck`
//!
//! One plain HTTP request over loopback, without the client library: that one needs CA certificates to start, which
//! a small container image lacks.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;

use super::output;
use crate::config::Settings;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut address = settings.listen;
    anyhow::ensure!(address.port() != 0, "the server picks its port itself; name it with --listen");
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let url = format!("http://{address}/readyz");
    let status = request(address).with_context(|| {
        format!("no HTTP response from {url}; start the server, or name its address with --listen or TOLLKEY_LISTEN")
    })?;
    if status == "200" {
        output::line(format_args!("ready: {url}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!("not ready: {url} responds with status {status}; the log of the server says why"))?;
    Ok(ExitCode::FAILURE)
}

/// The status of the response.
fn request(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut line = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut line)?;
    match line.split_at("HTTP/1.1 ".len()) {
        (b"HTTP/1.1 ", status) if status.iter().all(u8::is_ascii_digit) => {
            Ok(status.iter().map(|byte| char::from(*byte)).collect())
        }
        _ => Err(io::Error::other("this is not HTTP")),
    }
}
