//! `tollkey healthcheck`
//!
//! One plain HTTP request over loopback, without the client library: that one needs CA certificates to start, which
//! a small container image lacks.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

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
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if status == *b"HTTP/1.1 200" {
        println!("ready");
        return Ok(ExitCode::SUCCESS);
    }
    println!("not ready");
    Ok(ExitCode::FAILURE)
}
