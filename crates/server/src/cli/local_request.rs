//! One plain HTTP request over loopback, without the client library: that one needs CA certificates to start, which a small
//! container image lacks.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How long connecting, each write and each read may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Returns the status, three digits, that the server at this address responds with to a GET of this path.
///
/// # Errors
/// When no server responds in time, or what it sends is not HTTP.
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
        _ => Err(io::Error::other("this is not HTTP")),
    }
}
