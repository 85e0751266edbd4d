//! A plain HTTP request to a server on this machine. The client library is not used, because it requires CA
//! certificates, which a small container image does not have.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// The timeout of the connection attempt, and of each write and read.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Sends a GET request for this path to the server at this address. Returns the three digits of the status.
pub(super) fn status(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
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
