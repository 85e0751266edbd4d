//! No statement waits for ever.
//!
//! libpq waits for an answer without a limit. What stands between, a proxy whose far side has died for instance, may go
//! on acknowledging whatever it is sent, and then neither the kernel's keep-alives nor `tcp_user_timeout` end a
//! connection; and `statement_timeout` is a clock of the server. So a thread here looks at how long each statement
//! takes, and shuts the socket of one that is late. libpq then sees the end of the stream, the call returns an error, and
//! the pool drops the connection.
//!
//! diesel keeps its socket to itself, and so each connection is made with a `tcp_user_timeout` of its own, a few
//! milliseconds longer than asked for: what it is can be read from a socket, and so tells whose it is. Without that, the
//! sockets from before and after connecting had to be compared, one connection at a time. Only Linux has it, and only for
//! TCP: a proxy behind a Unix socket that falls silent is not noticed.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use diesel::connection::{Instrumentation, InstrumentationEvent};

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a socket is known by its number alone")]
mod sockets;

#[cfg(not(target_os = "linux"))]
mod sockets {
    //! Elsewhere nothing tells whose a socket is.

    pub(super) fn shut(_mark: u32) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// How often the thread looks.
const EACH: Duration = Duration::from_millis(500);

/// What the HTTP client gives its sockets, in milliseconds.
const NOT_OURS: u32 = 30_000;

/// The connections of this process.
pub(crate) static CONNECTIONS: Connections = Connections::new();

/// Connections that are watched over.
#[derive(Debug)]
pub(crate) struct Connections {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// By their mark.
    all: BTreeMap<u32, Entry>,
    /// Whether there is a thread. It ends when there is nothing to watch over.
    is_looked_at: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// How long a statement may take.
    limit: Option<Duration>,
    /// When what it does now is late.
    late_at: Option<Instant>,
    is_shut: bool,
}

impl Connections {
    const fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                all: BTreeMap::new(),
                is_looked_at: false,
            }),
        }
    }

    /// Watches over one more, which has yet to be made with the mark as its `tcp_user_timeout`: the next free number
    /// after this one.
    pub(crate) fn watch(&'static self, after: u32) -> io::Result<Watch> {
        let mut inner = self.lock();
        let mark = (after.saturating_add(1)..)
            .find(|mark| *mark != NOT_OURS && !inner.all.contains_key(mark))
            .ok_or_else(|| io::Error::other("too many connections"))?;
        if !inner.is_looked_at {
            thread::Builder::new()
                .name("tollkey-watch".into())
                .spawn(|| self.look_again_and_again())?;
            inner.is_looked_at = true;
        }
        inner.all.insert(mark, Entry::default());
        Ok(Watch(Arc::new(Watched {
            connections: self,
            mark,
        })))
    }

    fn look_again_and_again(&self) {
        loop {
            thread::sleep(EACH);
            let mut inner = self.lock();
            if inner.all.is_empty() {
                inner.is_looked_at = false;
                return;
            }
            let given_up = inner.look(Instant::now());
            drop(inner); // nobody's statement waits for a log
            for shut in given_up {
                match shut {
                    Ok(true) => {
                        tracing::warn!("the database does not answer; the connection is given up")
                    }
                    Ok(false) => tracing::warn!(
                        "the database does not answer, and the connection cannot be given up"
                    ),
                    Err(error) => {
                        tracing::warn!(%error, "the database does not answer, and the connection cannot be given up");
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Shuts what is late. Under the lock: nobody's statement ends, and nobody's mark is given to another, meanwhile.
    /// Gives what became of those that were late for the first time.
    fn look(&mut self, now: Instant) -> Vec<io::Result<bool>> {
        let mut given_up = Vec::new();
        for (&mark, entry) in &mut self.all {
            if entry.late_at.is_none_or(|late_at| now < late_at) {
                continue;
            }
            let shut = sockets::shut(mark);
            // Again and again if it is still busy: while it connects, libpq goes on to the next address.
            if !std::mem::replace(&mut entry.is_shut, true) {
                given_up.push(shut);
            }
        }
        given_up
    }
}

/// Watches over one connection until the last of its clones is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    connections: &'static Connections,
    mark: u32,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connections.lock().all.remove(&self.mark);
    }
}

impl Watch {
    /// What its `tcp_user_timeout` has to be, in milliseconds.
    pub(crate) fn mark(&self) -> u32 {
        self.0.mark
    }

    /// From now on a statement may take that long.
    pub(crate) fn limit(&self, limit: Option<Duration>) {
        self.entry(|entry| entry.limit = limit);
    }

    /// Something begins that may take that long.
    pub(crate) fn begin(&self, limit: Duration) {
        self.entry(|entry| entry.late_at = Instant::now().checked_add(limit));
    }

    /// What began has ended. Whether that was by force.
    pub(crate) fn end(&self) -> bool {
        self.entry(|entry| {
            entry.late_at = None;
            entry.is_shut
        })
    }

    /// To be told by the connection what begins and ends.
    pub(crate) fn statements(&self) -> impl Instrumentation {
        Statements(self.clone())
    }

    fn entry<T>(&self, work: impl FnOnce(&mut Entry) -> T) -> T {
        work(
            self.0
                .connections
                .lock()
                .all
                .entry(self.0.mark)
                .or_default(),
        )
    }
}

/// Hears of each statement. diesel does not say when one that gives rows has ended; the next one's beginning does, or the
/// return to the pool.
struct Statements(Watch);

impl Instrumentation for Statements {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => self.0.entry(|entry| {
                entry.late_at = entry
                    .limit
                    .and_then(|limit| Instant::now().checked_add(limit));
            }),
            InstrumentationEvent::FinishQuery { .. } => {
                self.0.end();
            }
            _ => {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        io::Read as _,
        net::{SocketAddr, TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use diesel::{Connection as _, PgConnection, connection::SimpleConnection as _};
    use rustix::net::sockopt::set_tcp_user_timeout;

    use super::*;
    use crate::{
        connection::{AnyConnection, Target, Use, establish_watched},
        testing::Postgres,
    };

    const LIMIT: Duration = Duration::from_secs(8);

    /// Apart from those of the other tests, whose marks are sockets of this process, too.
    fn connections() -> &'static Connections {
        Box::leak(Box::new(Connections::new()))
    }

    /// Both ends of a connection whose own end has that mark.
    fn connected(mark: u32) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_tcp_user_timeout(&own, mark).unwrap();
        (own, listener.accept().unwrap().0)
    }

    fn is_shut(socket: &mut TcpStream) -> bool {
        socket.set_nonblocking(true).unwrap();
        matches!(socket.read(&mut [0]), Ok(0))
    }

    #[test]
    fn what_is_late_is_shut_and_nothing_else() {
        let connections = connections();
        let (late, in_time, resting) = (
            connections.watch(500_000).unwrap(),
            connections.watch(500_000).unwrap(),
            connections.watch(500_000).unwrap(),
        );
        assert_eq!(
            [late.mark(), in_time.mark(), resting.mark()],
            [500_001, 500_002, 500_003]
        );
        let mut sockets = [late.mark(), in_time.mark(), resting.mark(), 500_000].map(connected);
        let (local, _other_end) = UnixStream::pair().unwrap();
        late.begin(LIMIT);
        in_time.begin(LIMIT * 2);
        resting.begin(LIMIT);
        assert!(!resting.end());

        connections.lock().look(Instant::now());
        assert_eq!(sockets.each_mut().map(|(own, _)| is_shut(own)), [false; 4]);
        connections.lock().look(Instant::now() + LIMIT);
        assert_eq!(
            sockets.each_mut().map(|(own, _)| is_shut(own)),
            [true, false, false, false]
        );
        assert_eq!(
            sockets.each_mut().map(|(_, far)| is_shut(far)),
            [true, false, false, false]
        );
        assert_eq!(
            [late.end(), in_time.end(), resting.end()],
            [true, false, false]
        );
        local.set_nonblocking(true).unwrap();
        assert_eq!(
            (&local).read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_socket_that_is_not_there_is_not_shut() {
        assert!(!sockets::shut(510_001).unwrap());
        let (_own, _far) = connected(510_001);
        assert!(sockets::shut(510_001).unwrap());
    }

    #[test]
    fn a_mark_is_free_again_when_nobody_watches() {
        let connections = connections();
        let first = connections.watch(520_000).unwrap();
        let clone = first.clone();
        drop(first);
        assert_eq!(connections.watch(520_000).unwrap().mark(), 520_002);
        drop(clone);
        assert_eq!(connections.watch(520_000).unwrap().mark(), 520_001);
    }

    #[test]
    fn the_thread_ends_with_the_last_connection_and_comes_with_the_next() {
        let connections = connections();
        for _ in 0..2 {
            drop(connections.watch(530_000).unwrap());
            assert!(connections.lock().is_looked_at);
            let since = Instant::now();
            while connections.lock().is_looked_at {
                assert!(since.elapsed() < Duration::from_secs(20), "it does not end");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn statements_are_told_of() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let connections = connections();
        let watch = connections.watch(540_000).unwrap();
        let late_at = || connections.lock().all[&watch.mark()].late_at;
        let database = postgres.database();
        let mut conn = PgConnection::establish(database.url()).unwrap();
        conn.set_instrumentation(watch.statements());
        conn.batch_execute("SELECT 1").unwrap();
        assert_eq!(late_at(), None);

        watch.limit(Some(LIMIT));
        thread::scope(|scope| {
            let before = Instant::now();
            let slow = scope.spawn(|| conn.batch_execute("SELECT pg_sleep(0.5)").unwrap());
            let begun = loop {
                if let Some(late_at) = late_at() {
                    break late_at - LIMIT;
                }
                assert!(!slow.is_finished(), "nobody is told that it has begun");
            };
            assert!(begun >= before && begun <= Instant::now());
        });
        assert_eq!(late_at(), None);
        assert!(conn.batch_execute("no SQL").is_err());
        assert_eq!(late_at(), None);
    }

    /// A TCP address behind which the PostgreSQL is.
    fn over_tcp(postgres: &Postgres) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = postgres.socket();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, mut server) =
                    (client.unwrap(), UnixStream::connect(&socket).unwrap());
                let (mut to_client, mut to_server) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut client, &mut to_server));
                thread::spawn(move || io::copy(&mut server, &mut to_client));
            }
        });
        address
    }

    fn establish(url: &str, purpose: Use) -> (AnyConnection, Watch) {
        let target = Target::parse(url, false, |_| None).unwrap();
        let (conn, watch) = establish_watched(&target, purpose).unwrap();
        (conn, watch.expect("it is a server"))
    }

    #[test]
    fn each_connection_has_its_socket() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let database = postgres.database();
        let url = database.url_at(over_tcp(postgres));
        for asked_for in ["", "?tcp_user_timeout=2000", "?tcp_user_timeout=0"] {
            let url = format!("{url}{asked_for}");
            let [mut one, mut two, mut three] = [(); 3].map(|()| establish(&url, Use::Write));
            two.1.begin(Duration::ZERO);
            CONNECTIONS.lock().look(Instant::now());
            assert!(two.0.batch_execute("SELECT 1").is_err(), "{asked_for}");
            assert!(two.1.end());
            for (conn, watch) in [&mut one, &mut three] {
                conn.batch_execute("SELECT 1").unwrap();
                assert!(!watch.end());
            }
        }
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let database = postgres.database();
        let (mut conn, watch) = establish(&database.url_at(over_tcp(postgres)), Use::Write);
        conn.batch_execute("SET statement_timeout = 0").unwrap();
        watch.limit(Some(Duration::from_millis(100)));
        let since = Instant::now();
        assert!(conn.batch_execute("SELECT pg_sleep(60)").is_err());
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "it took {:?}",
            since.elapsed()
        );
        assert!(watch.end());
    }

    #[test]
    fn a_migration_and_a_local_connection_take_their_time() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let database = postgres.database();
        let (mut conn, watch) = establish(&database.url_at(over_tcp(postgres)), Use::Migrate);
        conn.batch_execute("SELECT 1").unwrap();
        assert_eq!(
            watch.entry(|entry| (entry.limit, entry.late_at)),
            (None, None)
        );

        let (mut conn, watch) = establish(database.url(), Use::Write);
        watch.begin(Duration::ZERO);
        CONNECTIONS.lock().look(Instant::now());
        conn.batch_execute("SELECT 1").unwrap();
    }
}
