//! A network between a server and PostgreSQL, or between a client and a server, that a test can make slow, mute or gone.

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

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// They arrive.
    Clear,
    /// Each piece arrives later, by up to so much, in both directions: what is sent on two connections does not arrive
    /// in the order in which it was sent.
    Slow(Duration),
    /// They do not arrive until the weather changes, on the way there or on the way back or on both.
    Mute { requests: bool, answers: bool },
    /// Notifications do not arrive until the weather changes, and everything else does.
    Unheard,
    /// Connections break and new ones are refused.
    Cut,
}

/// What a client says that waits for notifications.
const LISTEN: &[u8] = b"LISTEN ";

/// Which way bytes go.
#[derive(Clone, Copy)]
enum Way {
    There,
    Back,
}

impl Weather {
    fn holds_up(self, way: Way, listens: bool) -> bool {
        match (self, way) {
            (Self::Mute { requests, .. }, Way::There) => requests,
            (Self::Mute { answers, .. }, Way::Back) => answers,
            (Self::Unheard, Way::Back) => listens,
            _ => false,
        }
    }
}

/// Where a wire leads.
#[derive(Debug, Clone)]
enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A TCP address behind which a Unix socket or another TCP address is. Gone when dropped. On a thread of its own, so that
/// a busy test is no slow network.
pub struct Wire {
    pub address: SocketAddr,
    target: Arc<Mutex<Target>>,
    weather: watch::Sender<Weather>,
    silences: Arc<AtomicU64>,
}

impl Wire {
    pub fn to(socket: PathBuf) -> Self {
        Self::new(Target::Unix(socket))
    }

    /// To a server.
    pub fn to_address(address: SocketAddr) -> Self {
        Self::new(Target::Tcp(address))
    }

    /// Leads new connections to this server instead.
    pub fn lead_to(&self, address: SocketAddr) {
        *self.target.lock().expect("no panic") = Target::Tcp(address);
    }

    fn new(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it can be awaited");
        let address = listener.local_addr().expect("its address");
        let (weather, seen) = watch::channel(Weather::Clear);
        let silences = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&silences);
        let target = Arc::new(Mutex::new(target));
        let led_to = Arc::clone(&target);
        thread::spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            LocalSet::new().block_on(&runtime, accept(listener, led_to, seen, heard));
        });
        Self {
            address,
            target,
            weather,
            silences,
        }
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// From now on nothing arrives on the connections of until now, not even their end, though each byte is acknowledged;
    /// new ones are as ever. So it is with a proxy whose far side has died.
    pub fn silence_existing(&self) {
        self.silences.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends when the wire is dropped; what it has spawned ends with it.
async fn accept(
    listener: TcpListener,
    target: Arc<Mutex<Target>>,
    mut weather: watch::Receiver<Weather>,
    silences: Arc<AtomicU64>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("a connection");
                let target = target.lock().expect("no panic").clone();
                spawn_local(carry(client, target, weather.clone(), Arc::clone(&silences)));
            }
            changed = weather.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn carry(
    client: TcpStream,
    target: Target,
    weather: watch::Receiver<Weather>,
    silences: Arc<AtomicU64>,
) {
    if *weather.borrow() == Weather::Cut {
        return;
    }
    match target {
        Target::Unix(socket) => {
            let Ok(server) = UnixStream::connect(socket).await else {
                return;
            };
            let (from, to) = server.into_split();
            carry_between(client, from, to, weather, silences).await;
        }
        Target::Tcp(address) => {
            let Ok(server) = TcpStream::connect(address).await else {
                return;
            };
            let _ = server.set_nodelay(true);
            let (from, to) = server.into_split();
            carry_between(client, from, to, weather, silences).await;
        }
    }
}

async fn carry_between(
    client: TcpStream,
    from_server: impl AsyncRead + Unpin,
    to_server: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    silences: Arc<AtomicU64>,
) {
    let _ = client.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    // Whether the client waits for notifications on this connection.
    let listens = Cell::new(false);
    let before = silences.load(Ordering::Relaxed);
    let is_silent = || silences.load(Ordering::Relaxed) != before;
    let there = pump(
        from_client,
        to_server,
        Way::There,
        &listens,
        weather.clone(),
        is_silent,
    );
    let back = pump(
        from_server,
        to_client,
        Way::Back,
        &listens,
        weather.clone(),
        is_silent,
    );
    tokio::select! {
        _ = there => {}
        _ = back => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

/// Ends with either side; `None` always.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    listens: &Cell<bool>,
    mut weather: watch::Receiver<Weather>,
    is_silent: impl Fn() -> bool,
) -> Option<()> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).ok()?;
    let mut piece = [0; 16 * 1024];
    loop {
        let count = from.read(&mut piece).await.ok().filter(|count| *count > 0);
        if is_silent() {
            match (count, way) {
                (Some(_), _) => continue,
                (None, Way::There) => return None,
                (None, Way::Back) => pending().await,
            }
        }
        let count = count?;
        if matches!(way, Way::There)
            && piece[..count]
                .windows(LISTEN.len())
                .any(|bytes| bytes == LISTEN)
        {
            listens.set(true);
        }
        let weather = *weather
            .wait_for(|weather| !weather.holds_up(way, listens.get()))
            .await
            .ok()?;
        if let Weather::Slow(later) = weather {
            sleep(later.mul_f64(rng.random())).await;
        }
        to.write_all(&piece[..count]).await.ok()?;
    }
}
