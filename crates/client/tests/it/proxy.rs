//! A proxy between a client and servers, whose connections can be silenced. The server's tests use it too.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Forwards bytes until [`silence`](Self::silence).
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
    closed: watch::Receiver<usize>,
}

struct State {
    opened: AtomicUsize,
    /// Connections with a lower number are silent.
    silent_below: AtomicUsize,
    /// How many connections the client has closed.
    closed: watch::Sender<usize>,
    /// How many more responses to creations to damage.
    damaged: AtomicUsize,
}

impl Proxy {
    /// Starts a proxy in front of these servers, which get the connections in turn.
    pub async fn to(servers: &[SocketAddr]) -> Self {
        let servers = servers.to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, closed) = watch::channel(0);
        let state = Arc::new(State {
            opened: 0.into(),
            silent_below: 0.into(),
            closed: sender,
            damaged: 0.into(),
        });
        let passing = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = passing.opened.fetch_add(1, Ordering::SeqCst);
                let (from_client, to_client) = client.into_split();
                let server = TcpStream::connect(servers[number % servers.len()])
                    .await
                    .unwrap();
                let (from_server, to_server) = server.into_split();
                let (state, counting) = (passing.clone(), passing.clone());
                tokio::spawn(pass(from_server, to_client, number, state.clone(), || ()));
                let count = move || counting.closed.send_modify(|closed| *closed += 1);
                tokio::spawn(pass(from_client, to_server, number, state, count));
            }
        });
        Self {
            address,
            state,
            closed,
        }
    }

    /// Stops forwarding on the open connections without closing them. New connections work.
    pub fn silence(&self) {
        self.state
            .silent_below
            .store(self.opened(), Ordering::SeqCst);
    }

    /// Makes the next response to a creation invalid JSON.
    pub fn damage(&self) {
        self.state.damaged.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how many connections the client has opened.
    pub fn opened(&self) -> usize {
        self.state.opened.load(Ordering::SeqCst)
    }

    /// Waits until the client has closed this many connections.
    pub async fn closed(&self, connections: usize) {
        self.closed
            .clone()
            .wait_for(|closed| *closed >= connections)
            .await
            .unwrap();
    }
}

impl State {
    fn is_silent(&self, number: usize) -> bool {
        number < self.silent_below.load(Ordering::SeqCst)
    }

    /// Returns whether to damage this response, and if so, decrements `damaged`.
    fn takes_damage(&self, bytes: &[u8]) -> bool {
        let less = |damaged: usize| damaged.checked_sub(1);
        bytes.starts_with(b"HTTP/1.1 201 ")
            && self
                .damaged
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                .is_ok()
    }
}

/// Forwards bytes from one side until it ends. The end of a silent connection is not forwarded.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    state: Arc<State>,
    ended: impl FnOnce() + Send,
) {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or_default();
        if state.takes_damage(&buffer[..read]) {
            // These responses are short, so this is the last byte of the body.
            buffer[read - 1] = b' ';
        }
        let passed = state.is_silent(number) || to.write_all(&buffer[..read]).await.is_ok();
        if read == 0 || !passed {
            break;
        }
    }
    ended();
    if state.is_silent(number) {
        pending::<()>().await;
    }
}
