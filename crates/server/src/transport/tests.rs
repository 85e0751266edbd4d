use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use actix_http::body::{BodySize, MessageBody as _};
use actix_web::web::Bytes;
use futures_util::{future::join, poll};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    connections::{Connections, InFlight, Peer, Pending, READ_AHEAD},
    exchange::{Outgoing, PIECE, counted},
    stream::Stream,
};

const TIMEOUT: Duration = Duration::from_secs(20);
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);

/// Waits at most [`TIMEOUT`], which is for a broken test only.
async fn soon<T>(work: impl Future<Output = T>, expected: &str) -> T {
    timeout(TIMEOUT, work).await.expect(expected)
}

async fn admit(connections: &Arc<Connections>) -> Rc<Peer> {
    connections.admit().await.expect("an admitted connection")
}

#[tokio::test]
async fn write_timeout_applies_to_unix_sockets() {
    let connections = Connections::new(1);
    let (server, client) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(server, admit(&connections).await, WRITE_TIMEOUT);
    let write = async {
        loop {
            if let Err(error) = stream.write_all(&[0; 4096]).await {
                return error.kind();
            }
        }
    };
    let error = soon(write, "the deadline ends the write").await;
    assert_eq!(error, ErrorKind::TimedOut);
    drop((stream, client));
    assert_eq!(connections.open(), 0);
}

#[tokio::test]
async fn slow_reader_of_a_unix_socket_stays_connected() {
    let connections = Connections::new(1);
    let (server, mut client) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(server, admit(&connections).await, WRITE_TIMEOUT);
    let (pieces, piece) = (200, 4096);
    let read = async {
        let mut buffer = vec![0; piece];
        for _ in 0..pieces {
            sleep(WRITE_TIMEOUT / 20).await;
            client.read_exact(&mut buffer).await.unwrap();
        }
    };
    let write = async {
        for _ in 0..pieces {
            stream.write_all(&vec![0; piece]).await.unwrap();
        }
    };
    soon(join(read, write), "all bytes are read").await;
}

/// Admits a connection over the limit, and removes the connection from `of` that was closed for it.
async fn admit_instead(connections: &Arc<Connections>, of: &mut Vec<Rc<Peer>>) -> Rc<Peer> {
    let close = async {
        while !of.iter().any(|peer| peer.is_closing()) {
            tokio::task::yield_now().await;
        }
        of.retain(|peer| !peer.is_closing());
    };
    let (admitted, ()) = tokio::join!(connections.admit(), close);
    admitted.expect("an admitted connection")
}

#[tokio::test]
async fn connection_without_a_recent_request_is_closed_first() {
    let connections = Connections::new(3);
    let mut idle = vec![admit(&connections).await, admit(&connections).await];
    let request = InFlight::new(admit(&connections).await);
    // Either of the two may be closed. The other one has lost its `RECENT` flag as well.
    let new = admit_instead(&connections, &mut idle).await;
    drop(InFlight::new(Rc::clone(&new)));
    idle.push(Rc::clone(&new));
    let newest = admit_instead(&connections, &mut idle).await;
    let is_new = idle.len() == 1 && Rc::ptr_eq(&idle[0], &new);
    assert!(is_new, "the connection with a request stays open");
    assert!(!newest.is_closing() && !request.peer().is_closing());
}

#[tokio::test]
async fn connection_over_the_limit_is_closed_when_none_is_idle() {
    let connections = Connections::new(1);
    let request = InFlight::new(admit(&connections).await);
    assert!(connections.admit().await.is_none());
    drop(request);
    assert!(connections.admit().await.is_some());
    assert_eq!((connections.accepted(), connections.limit()), (3, 1));
}

#[tokio::test]
async fn request_on_a_closing_connection_is_its_last_one() {
    let connections = Connections::new(1);
    let peer = admit(&connections).await;
    connections.close_all();
    assert!(peer.is_closing(), "the connection is idle");
    let request = InFlight::new(Rc::clone(&peer));
    assert!(
        !peer.is_closing() && peer.is_last_response(),
        "the request is served"
    );
    drop(request);
    assert!(peer.is_closing());
}

#[tokio::test]
async fn announced_close_leaves_idle_connections_open() {
    let connections = Connections::new(2);
    let before = admit(&connections).await;
    connections.announce_close();
    let after = admit(&connections).await;
    for peer in [&before, &after] {
        assert!(!peer.is_closing() && peer.is_last_response());
        drop(InFlight::new(Rc::clone(peer)));
        assert!(
            !peer.is_closing(),
            "the head of its response may have been written before"
        );
    }
    connections.close_all();
    assert!(before.is_closing() && after.is_closing());
    drop((before, after));
    soon(connections.all_closed(), "no connection is open").await;
}

#[tokio::test]
async fn connection_admitted_during_shutdown_serves_one_request() {
    let connections = Connections::new(1);
    connections.close_all();
    let peer = admit(&connections).await;
    assert!(!peer.is_closing(), "a request may still arrive");
    drop(InFlight::new(Rc::clone(&peer)));
    assert!(peer.is_closing());
}

#[tokio::test]
async fn closing_connection_reads_pending_input_first() {
    let connections = Connections::new(1);
    let (server, mut client) = UnixStream::pair().unwrap();
    let peer = admit(&connections).await;
    let mut stream = Stream::new(server, Rc::clone(&peer), WRITE_TIMEOUT);
    client.write_all(b"head").await.unwrap();
    connections.close_all();
    let mut buffer = [0; 16];
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 4);
    let read = poll!(pin!(stream.read(&mut buffer)));
    assert!(read.is_pending(), "what was read is decoded first");
    let request = InFlight::new(peer);
    client.write_all(b"body").await.unwrap();
    let read = stream.read(&mut buffer).await.unwrap();
    assert_eq!(read, 4, "the request's body is read");
    drop(request);
    assert!(poll!(pin!(stream.read(&mut buffer))).is_pending());
    let end = soon(stream.read(&mut buffer), "the stream ends").await;
    assert_eq!(end.unwrap(), 0);
}

async fn read_available(stream: &mut Stream<UnixStream>) -> usize {
    let (mut total, mut buffer) = (0, vec![0; 10_000]);
    while let Poll::Ready(read) = poll!(pin!(stream.read(&mut buffer))) {
        total += read.unwrap();
    }
    total
}

/// Writes this many bytes. The result keeps the connection open.
fn flood(mut client: UnixStream, bytes: usize) -> JoinHandle<io::Result<UnixStream>> {
    tokio::spawn(async move {
        client.write_all(&vec![0; bytes]).await?;
        Ok(client)
    })
}

#[tokio::test]
async fn read_ahead_during_a_request_is_limited() {
    let connections = Connections::new(1);
    let (server, client) = UnixStream::pair().unwrap();
    let peer = admit(&connections).await;
    let mut stream = Stream::new(server, Rc::clone(&peer), WRITE_TIMEOUT);
    let flood = flood(client, 4 * READ_AHEAD);
    let request = InFlight::new(Rc::clone(&peer));
    let mut total = 0;
    let mut until = async |limit| {
        while total < limit {
            total += read_available(&mut stream).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
            assert_eq!(read_available(&mut stream).await, 0, "reading is paused");
        }
        assert_eq!(total, limit);
    };
    soon(until(READ_AHEAD), "reading up to the limit").await;
    peer.await_body(true);
    let rest = async {
        let mut left = 3 * READ_AHEAD;
        while left > 0 {
            left -= stream.read(&mut vec![0; 10_000]).await.unwrap();
        }
    };
    soon(rest, "a request that waits for its body receives it").await;
    drop((request, flood));
}

#[tokio::test]
async fn end_of_a_request_resumes_reading() {
    let connections = Connections::new(1);
    let (server, client) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(server, admit(&connections).await, WRITE_TIMEOUT);
    let request = InFlight::new(Rc::clone(stream.peer()));
    let flood = flood(client, 2 * READ_AHEAD);
    let mut buffer = vec![0; READ_AHEAD];
    let read = stream.read_exact(&mut buffer);
    soon(read, "reading up to the limit").await.unwrap();
    let end = async {
        tokio::task::yield_now().await;
        drop(request);
    };
    let both = join(stream.read_exact(&mut buffer), end);
    let (read, ()) = soon(both, "reading the rest").await;
    assert_eq!(read.unwrap(), READ_AHEAD);
    flood.await.unwrap().unwrap();
}

#[tokio::test]
async fn reading_pauses_while_the_client_does_not_read() {
    let connections = Connections::new(1);
    let (server, mut client) = UnixStream::pair().unwrap();
    let mut stream = Stream::new(server, admit(&connections).await, TIMEOUT);
    client.write_all(b"next").await.unwrap();
    let mut written = 0;
    while let Poll::Ready(bytes) = poll!(pin!(stream.write(&[0; 4096]))) {
        written += bytes.unwrap();
    }
    assert_eq!(read_available(&mut stream).await, 0);
    client.read_exact(&mut vec![0; written]).await.unwrap();
    let write = stream.write_all(&[0; 4096]);
    let written = soon(write, "a write that the client reads").await;
    written.unwrap();
    assert_eq!(read_available(&mut stream).await, 4);
}

#[tokio::test]
async fn stalled_client_is_closed_when_memory_is_used_up() {
    let connections = Connections::new(2);
    let (reading, stalled) = (admit(&connections).await, admit(&connections).await);
    let pending = Pending::new(Rc::clone(&stalled), 256 * 1024 * 1024);
    assert!(!connections.has_room(1), "no client is stalled");
    stalled.block();
    let made_room = async {
        while !connections.has_room(1) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    soon(made_room, "the stalled connection is closed").await;
    assert!(stalled.is_aborted() && !reading.is_closing());
    drop(pending);
    assert!(connections.has_room(1));
}

#[tokio::test]
async fn static_file_is_written_in_pieces_without_copying() {
    static FILE: [u8; 100_000] = [b'x'; 100_000];
    let mut body = Outgoing::new(Bytes::from_static(&FILE), None, None);
    assert_eq!(body.size(), BodySize::Sized(100_000));
    let mut at = 0;
    while let Some(piece) = poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await {
        let piece = piece.unwrap();
        assert!(!piece.is_empty() && piece.len() <= PIECE);
        assert_eq!(piece.as_ptr(), FILE[at..].as_ptr(), "the piece is a copy");
        at += piece.len();
    }
    assert_eq!(at, FILE.len());
}

#[test]
fn only_long_unshared_responses_count_as_pending() {
    assert_eq!(counted(BodySize::Sized(1_000_000), false), Some(1_000_000));
    let shared = counted(BodySize::Sized(1_000_000), true);
    assert_eq!(shared, None, "a static file is in memory once");
    assert_eq!(counted(BodySize::Sized(1000), false), None);
    assert_eq!(counted(BodySize::Stream, false), None);
}
