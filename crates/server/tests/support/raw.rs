//! Requests that are written to a socket, for tests where the bytes or their timing matter, and requests that an HTTP
//! client would change or reject.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::http::{Call, Reply};

/// The longest any step may take on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(20);

pub const LIVEZ: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

pub async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

pub async fn send(stream: &mut TcpStream, text: impl AsRef<[u8]>) {
    timeout(TIMEOUT, stream.write_all(text.as_ref()))
        .await
        .expect("a write within the time limit")
        .expect("an open connection");
}

/// Reads up to the end of the next head.
async fn read_lines(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(TIMEOUT, stream.read_u8()).await {
            Ok(Ok(byte)) => head.push(byte),
            Ok(Err(error)) => return Err(error),
            Err(_) => panic!("no head in time: {}", String::from_utf8_lossy(&head)),
        }
    }
    Ok(String::from_utf8(head).expect("a UTF-8 head"))
}

/// Reads the next head, in lower case.
pub async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    Ok(read_lines(stream).await?.to_ascii_lowercase())
}

/// Reads a body with this `Content-Length`.
async fn read_body(stream: &mut TcpStream, length: Option<&str>) -> io::Result<String> {
    let length = length.map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    timeout(TIMEOUT, stream.read_exact(&mut body))
        .await
        .expect("a body in time")?;
    Ok(String::from_utf8(body).expect("a UTF-8 body"))
}

/// Reads the next response. Returns its head in lower case, and its body.
pub async fn read_response(stream: &mut TcpStream) -> io::Result<(String, String)> {
    let head = read_head(stream).await?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let body = read_body(stream, length).await?;
    Ok((head, body))
}

/// Whether the server closes this connection within 20 seconds.
pub async fn is_closed(stream: &mut TcpStream) -> bool {
    timeout(TIMEOUT, stream.read(&mut [0]))
        .await
        .is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
}

impl Call {
    /// A body in chunks of 4 KiB, without a `Content-Length`.
    pub fn chunked(self, body: &[u8]) -> Self {
        let mut chunks = Vec::new();
        for chunk in body.chunks(4096) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        self.header("transfer-encoding", "chunked").body(chunks)
    }

    /// Sends only the head: the server authenticates the request and waits for the body.
    pub async fn hold_body(self) -> HeldBack {
        let mut stream = connect(self.address).await;
        send(&mut stream, self.head()).await;
        HeldBack { stream, call: self }
    }

    fn head(&self) -> Vec<u8> {
        let Self {
            method,
            path,
            address,
            ..
        } = self;
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n")
                .into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        let has_length =
            |(name, _): &(String, _)| name == "content-length" || name == "transfer-encoding";
        if !self.body.is_empty() && !self.headers.iter().any(has_length) {
            head.extend_from_slice(format!("content-length: {}\r\n", self.body.len()).as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// A request of which only the head was sent.
pub struct HeldBack {
    stream: TcpStream,
    call: Call,
}

impl HeldBack {
    /// Sends the body. Dropping the value then closes the connection before the response.
    pub async fn write_body(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.call.body).await
    }

    /// Sends the body and reads the response, which must not be chunked.
    pub async fn send_body(mut self) -> Reply {
        // A server that rejects a body early may close the connection during the write; its response still counts.
        let _ = self.write_body().await;
        let head = read_lines(&mut self.stream).await.expect("a response");
        let (status, headers) = head.split_once("\r\n").expect("a status line");
        let status = status.split(' ').nth(1).expect("a status");
        let headers = headers
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let status = status.parse().expect("a status");
        let mut reply = Reply::new(status, headers, String::new());
        assert_eq!(reply.header("transfer-encoding"), None, "{reply}");
        if self.call.method != "HEAD" {
            let length = reply.header("content-length");
            reply.body = read_body(&mut self.stream, length)
                .await
                .expect("a whole body");
        }
        reply
    }
}
