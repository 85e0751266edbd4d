//! Connections without an HTTP client, for tests where the bytes matter.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// The longest any step may take on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(20);

pub const LIVEZ: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

pub async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

pub async fn send(stream: &mut TcpStream, text: impl AsRef<[u8]>) {
    timeout(TIMEOUT, stream.write_all(text.as_ref()))
        .await
        .expect("a read within the time limit")
        .expect("an open connection");
}

/// Reads up to the end of the next head.
pub async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(TIMEOUT, stream.read_u8()).await {
            Ok(Ok(byte)) => head.push(byte),
            Ok(Err(error)) => return Err(error),
            Err(_) => panic!("no head in time: {}", String::from_utf8_lossy(&head)),
        }
    }
    Ok(String::from_utf8(head)
        .expect("a UTF-8 head")
        .to_ascii_lowercase())
}

/// Reads the next response. Returns its head and its body.
pub async fn read_response(stream: &mut TcpStream) -> io::Result<(String, String)> {
    let head = read_head(stream).await?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    timeout(TIMEOUT, stream.read_exact(&mut body))
        .await
        .expect("a body in time")?;
    Ok((head, String::from_utf8(body).expect("a UTF-8 body")))
}

/// Whether the server closes this connection within 20 seconds.
pub async fn is_closed(stream: &mut TcpStream) -> bool {
    timeout(TIMEOUT, stream.read(&mut [0]))
        .await
        .is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
}
