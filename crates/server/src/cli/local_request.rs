//! A plain HTTP request to a server on this machine. The client library is not used, because it requires CA
//! certificates, which a small container image does not have.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use rustix::net::{
    self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::{config::Settings, listen_address::ListenAddress};

/// The timeout of the connection attempt, and of each write and read.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Returns where this machine reaches the first listener of a server with these settings.
pub(super) fn target(settings: &Settings) -> anyhow::Result<ListenAddress> {
    let address = settings.server.listen.first();
    let Some(mut tcp) = address.tcp() else {
        return Ok(address.clone());
    };
    anyhow::ensure!(
        tcp.port() != 0,
        "port 0 is not the port of a running server; set --listen to its address"
    );
    if tcp.ip().is_unspecified() {
        tcp.set_ip(match tcp {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    Ok(ListenAddress::Tcp(tcp))
}

/// Sends a GET request for this path to the server at this address. Returns the three digits of the status.
pub(super) fn status(address: &ListenAddress, path: &str) -> io::Result<String> {
    match address {
        ListenAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            exchange(stream, &address.to_string(), path)
        }
        ListenAddress::Unix(socket) => exchange(connect(socket)?, "localhost", path),
    }
}

/// Connects to a Unix socket. The standard library has no timeout for this.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The first one also limits how long the connection attempt waits while the queue of the server is full.
    set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn exchange(mut stream: impl Read + Write, host: &str, path: &str) -> io::Result<String> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut line = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut line)?;
    match line.split_at("HTTP/1.1 ".len()) {
        (b"HTTP/1.1 ", status) if status.iter().all(u8::is_ascii_digit) => {
            Ok(status.iter().map(|byte| char::from(*byte)).collect())
        }
        _ => Err(io::Error::other("the response is not HTTP")),
    }
}
