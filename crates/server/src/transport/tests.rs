use std::{future::poll_fn, io::ErrorKind, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use actix_http::body::{BodySize, MessageBody as _};
use actix_web::web::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    connections::{Connections, InFlight, Peer, Pending},
    exchange::{Outgoing, PIECE, counted},
    stream::Stream,
};

const PATIENCE: Duration = Duration::from_secs(20);
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);

async fn admit(connections: &Arc<Connections>) -> Rc<Peer> {
    connections.admit().await.expect("there is a place")
}

#[tokio::test]
async fn write_deadline_holds_on_unix_sockets() {
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
    assert_eq!(timeout(PATIENCE, write).await.expect("the deadline ends it"), ErrorKind::TimedOut);
    drop((stream, client));
    assert_eq!(connections.open(), 0);
}

#[tokio::test]
async fn slow_reader_of_a_unix_socket_is_not_cut_off() {
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
    timeout(PATIENCE, async { tokio::join!(read, write) }).await.expect("all of it is read");
}

/// Admits one more over the limit; returns it when one of these was closed for it, which is removed from them.
async fn admit_instead(connections: &Arc<Connections>, of: &mut Vec<Rc<Peer>>) -> Rc<Peer> {
    let close = async {
        while !of.iter().any(|peer| peer.is_closing()) {
            tokio::task::yield_now().await;
        }
        of.retain(|peer| !peer.is_closing());
    };
    let (admitted, ()) = tokio::join!(connections.admit(), close);
    admitted.expect("a place became free")
}

#[tokio::test]
async fn connection_without_a_recent_request_makes_room() {
    let connections = Connections::new(3);
    let mut idle = vec![admit(&connections).await, admit(&connections).await];
    let request = InFlight::new(admit(&connections).await);
    // Of two new ones either may go. The other one has lost its mark as well.
    let new = admit_instead(&connections, &mut idle).await;
    drop(InFlight::new(Rc::clone(&new)));
    idle.push(Rc::clone(&new));
    let newest = admit_instead(&connections, &mut idle).await;
    assert!(idle.len() == 1 && Rc::ptr_eq(&idle[0], &new), "the one with a request stays");
    assert!(!newest.is_closing() && !request.peer().is_closing());
}

#[tokio::test]
async fn connection_over_the_limit_is_closed_when_none_is_idle() {
    let connections = Connections::new(1);
    let request = InFlight::new(admit(&connections).await);
    assert!(connections.admit().await.is_none());
    drop(request);
    assert!(connections.admit().await.is_some());
}

#[tokio::test]
async fn stalled_client_gives_way_when_memory_is_used_up() {
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
    timeout(PATIENCE, made_room).await.expect("the stalled one gives way");
    assert!(stalled.is_aborted() && !reading.is_closing());
    drop(pending);
    assert!(connections.has_room(1));
}

#[tokio::test]
async fn static_file_is_written_in_pieces_of_one_copy() {
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
fn only_long_responses_of_their_own_count_as_pending() {
    assert_eq!(counted(BodySize::Sized(1_000_000), false), Some(1_000_000));
    assert_eq!(counted(BodySize::Sized(1_000_000), true), None, "a static file exists once");
    assert_eq!(counted(BodySize::Sized(1000), false), None);
    assert_eq!(counted(BodySize::Stream, false), None);
}
