//! A TCP proxy between a server and PostgreSQL, or a client and a server. It can delay, block or close its
//! connections.

use std::{
    cell::Cell,
    future::pending,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{
    RngExt as _, SeedableRng as _,
    rngs::{StdRng, SysRng},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    runtime::Builder,
    sync::watch,
    task::{LocalSet, spawn_local},
    time::sleep,
};

/// How the proxy transfers bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Immediately.
    Clear,
    /// With a random delay of up to this time, in both directions. Bytes of different connections can
    /// arrive in another order than they were sent.
    Slow(Duration),
    /// Blocked in one or both directions until the condition changes.
    Mute { requests: bool, answers: bool },
    /// Blocked to clients that wait for notifications, until the condition changes. Other connections work.
    Unheard,
    /// Not at all: existing and new connections are closed.
    Cut,
}

/// The statement with which a PostgreSQL client subscribes to notifications.
const LISTEN: &[u8] = b"LISTEN ";

/// The direction of bytes.
#[derive(Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}

impl LinkState {
    fn blocks(self, direction: Direction, listens: bool) -> bool {
        match (self, direction) {
            (Self::Mute { requests, .. }, Direction::ToServer) => requests,
            (Self::Mute { answers, .. }, Direction::ToClient) => answers,
            (Self::Unheard, Direction::ToClient) => listens,
            _ => false,
        }
    }
}

/// The destination of the proxy.
#[derive(Debug, Clone)]
enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A TCP address that forwards to a Unix socket or another TCP address until it is dropped. It runs
/// on its own thread, so that a busy test does not slow it down.
pub struct Wire {
    pub address: SocketAddr,
    target: Arc<Mutex<Target>>,
    weather: watch::Sender<LinkState>,
    silences: Arc<AtomicU64>,
}

impl Wire {
    pub fn to(socket: PathBuf) -> Self {
        Self::new(Target::Unix(socket))
    }

    pub fn to_address(address: SocketAddr) -> Self {
        Self::new(Target::Tcp(address))
    }

    /// Forwards new connections to this server instead.
    pub fn lead_to(&self, address: SocketAddr) {
        *self.target.lock().expect("no panic") = Target::Tcp(address);
    }

    fn new(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener
            .set_nonblocking(true)
            .expect("a non-blocking listener");
        let address = listener.local_addr().expect("the address");
        let (weather, weather_changes) = watch::channel(LinkState::Clear);
        let silences = Arc::new(AtomicU64::new(0));
        let shared_silences = Arc::clone(&silences);
        let target = Arc::new(Mutex::new(target));
        let shared_target = Arc::clone(&target);
        thread::spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            LocalSet::new().block_on(
                &runtime,
                accept(listener, shared_target, weather_changes, shared_silences),
            );
        });
        Self {
            address,
            target,
            weather,
            silences,
        }
    }

    pub fn set(&self, weather: LinkState) {
        self.weather.send_replace(weather);
    }

    /// Makes all existing connections silent: they accept every byte, but deliver nothing, not even the end of the
    /// stream. New connections work. A proxy whose backend has crashed behaves like this.
    pub fn silence_existing(&self) {
        self.silences.fetch_add(1, Ordering::Relaxed);
    }
}

/// Accepts connections until the wire is dropped.
async fn accept(
    listener: TcpListener,
    target: Arc<Mutex<Target>>,
    mut weather: watch::Receiver<LinkState>,
    silences: Arc<AtomicU64>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking listener");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("a connection");
                let target = target.lock().expect("no panic").clone();
                spawn_local(forward(client, target, weather.clone(), Arc::clone(&silences)));
            }
            changed = weather.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn forward(
    client: TcpStream,
    target: Target,
    weather: watch::Receiver<LinkState>,
    silences: Arc<AtomicU64>,
) {
    if *weather.borrow() == LinkState::Cut {
        return;
    }
    match target {
        Target::Unix(socket) => {
            let Ok(server) = UnixStream::connect(socket).await else {
                return;
            };
            let (from, to) = server.into_split();
            forward_between(client, from, to, weather, silences).await;
        }
        Target::Tcp(address) => {
            let Ok(server) = TcpStream::connect(address).await else {
                return;
            };
            let _ = server.set_nodelay(true);
            let (from, to) = server.into_split();
            forward_between(client, from, to, weather, silences).await;
        }
    }
}

async fn forward_between(
    client: TcpStream,
    from_server: impl AsyncRead + Unpin,
    to_server: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<LinkState>,
    silences: Arc<AtomicU64>,
) {
    let _ = client.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    // Whether the client waits for notifications on this connection.
    let listens = Cell::new(false);
    let before = silences.load(Ordering::Relaxed);
    let is_silent = || silences.load(Ordering::Relaxed) != before;
    let to_server_pump = pump(
        from_client,
        to_server,
        Direction::ToServer,
        &listens,
        weather.clone(),
        is_silent,
    );
    let to_client_pump = pump(
        from_server,
        to_client,
        Direction::ToClient,
        &listens,
        weather.clone(),
        is_silent,
    );
    tokio::select! {
        _ = to_server_pump => {}
        _ = to_client_pump => {}
        _ = weather.wait_for(|weather| *weather == LinkState::Cut) => {}
    }
}

/// Copies bytes until either side closes. Always returns `None`: the return type only permits `?`.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    listens: &Cell<bool>,
    mut weather: watch::Receiver<LinkState>,
    is_silent: impl Fn() -> bool,
) -> Option<()> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).ok()?;
    let mut piece = [0; 16 * 1024];
    loop {
        let count = from.read(&mut piece).await.ok().filter(|count| *count > 0);
        if is_silent() {
            match (count, direction) {
                (Some(_), _) => continue,
                (None, Direction::ToServer) => return None,
                (None, Direction::ToClient) => pending().await,
            }
        }
        let count = count?;
        if matches!(direction, Direction::ToServer)
            && piece[..count]
                .windows(LISTEN.len())
                .any(|bytes| bytes == LISTEN)
        {
            listens.set(true);
        }
        let weather = *weather
            .wait_for(|weather| !weather.blocks(direction, listens.get()))
            .await
            .ok()?;
        if let LinkState::Slow(later) = weather {
            sleep(later.mul_f64(rng.random())).await;
        }
        to.write_all(&piece[..count]).await.ok()?;
    }
}
