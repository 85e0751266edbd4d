//! Closes connections to PostgreSQL whose statement does not end.
//!
//! libpq waits for a response without a limit. With a paused server process or a dead proxy, one thread of the pool
//! after the other would wait forever. So a thread here checks how long each statement takes and shuts down the socket
//! of a late one: libpq sees the end of the stream, the call fails, and the pool drops the connection.
//!
//! Simpler ways do not end that wait: the kernel of such a host still acknowledges, so keep-alives and
//! `tcp_user_timeout` do not fire; `statement_timeout` runs in the server; a cancel request needs the server; diesel
//! has no deadlines. [`sockets`] finds the socket, on Linux and over TCP only, so a proxy behind a Unix socket is not
//! detected.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use diesel::connection::{Instrumentation, InstrumentationEvent};

use self::sockets::Mark;

#[cfg_attr(
    target_os = "linux",
    expect(
        unsafe_code,
        reason = "descriptors of other connections are known by number only"
    )
)]
mod sockets;

/// How often the thread checks.
const INTERVAL: Duration = Duration::from_millis(500);

/// The watched connections of this process.
pub(crate) static CONNECTIONS: Connections = Connections::new();

#[derive(Debug)]
pub(crate) struct Connections {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    all: BTreeMap<Mark, Entry>,
    /// Whether the thread runs. It ends when no connection is left.
    is_watched: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// How long a statement may take; `None` for no limit.
    limit: Option<Duration>,
    late_at: Option<Instant>,
    is_shut: bool,
}

impl Connections {
    const fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                all: BTreeMap::new(),
                is_watched: false,
            }),
        }
    }

    /// Watches a connection that is about to be opened with this connection string, followed by [`Watch::parameters`].
    pub(crate) fn watch(&'static self, keywords: &str) -> io::Result<Watch> {
        let mut inner = self.lock();
        let mark = Mark::unused(keywords, |mark| inner.all.contains_key(&mark))
            .ok_or_else(|| io::Error::other("too many connections"))?;
        if !inner.is_watched {
            thread::Builder::new()
                .name("tollkey-watch".into())
                .spawn(|| self.poll())?;
            inner.is_watched = true;
        }
        inner.all.insert(mark, Entry::default());
        Ok(Watch(Arc::new(Watched {
            connections: self,
            mark,
        })))
    }

    /// Checks all connections at intervals, until none is left.
    fn poll(&self) {
        loop {
            thread::sleep(INTERVAL);
            let mut inner = self.lock();
            if inner.all.is_empty() {
                inner.is_watched = false;
                return;
            }
            let results = inner.shut_down_late(Instant::now());
            drop(inner); // so that no statement waits for the log
            for result in results {
                match result {
                    Ok(true) => {
                        tracing::warn!(
                            "the database did not respond in time; its connection was shut down"
                        )
                    }
                    Ok(false) => tracing::warn!(
                        "the database did not respond in time, and its connection could not be shut down"
                    ),
                    Err(error) => {
                        tracing::warn!(%error, "the database did not respond in time, and its connection could not be shut down");
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
    /// Shuts down the late connections. The lock is held, so that no statement ends and no mark is reused meanwhile.
    /// Returns one result for each connection that was not late before.
    fn shut_down_late(&mut self, now: Instant) -> Vec<io::Result<bool>> {
        let mut results = Vec::new();
        for (mark, entry) in &mut self.all {
            if entry.late_at.is_none_or(|late_at| now < late_at) {
                continue;
            }
            // Repeated while it is late: while connecting, libpq then tries the server's next address.
            let result = mark.shut_down();
            if !std::mem::replace(&mut entry.is_shut, true) {
                results.push(result);
            }
        }
        results
    }
}

/// The watch over one connection, which ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    connections: &'static Connections,
    mark: Mark,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connections.lock().all.remove(&self.mark);
    }
}

impl Watch {
    /// Returns the parameters by which the socket is found. They must be the last ones of the connection string.
    pub(crate) fn parameters(&self) -> String {
        self.0.mark.parameters()
    }

    /// Sets how long each further statement may take.
    pub(crate) fn limit(&self, limit: Option<Duration>) {
        self.entry(|entry| entry.limit = limit);
    }

    pub(crate) fn begin(&self, limit: Duration) {
        self.entry(|entry| entry.late_at = Instant::now().checked_add(limit));
    }

    /// Clears the deadline. Returns whether the connection was shut down.
    pub(crate) fn end(&self) -> bool {
        self.entry(|entry| {
            entry.late_at = None;
            entry.is_shut
        })
    }

    /// Returns the instrumentation that sets and clears the deadline of each statement.
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

/// Sets and clears deadlines. diesel does not report the end of a statement that returns rows; its deadline is cleared
/// by the next statement or the return to the pool.
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

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{SocketAddr, TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::{
        connection::{AnyConnection, establish_watched},
        target::Use,
        testing::{Postgres, target},
    };
    use diesel::{Connection as _, PgConnection, connection::SimpleConnection as _};

    const LIMIT: Duration = Duration::from_secs(8);

    /// A separate set, because the sockets of other tests belong to this process too.
    fn connections() -> &'static Connections {
        Box::leak(Box::new(Connections::new()))
    }

    fn watch(connections: &'static Connections, user_timeout: u32) -> Watch {
        let keywords = format!("tcp_user_timeout='{user_timeout}'");
        connections.watch(&keywords).unwrap()
    }

    /// Returns both ends of a connection. The own end has the mark of the watch, if there is one.
    fn connected(watch: Option<&Watch>) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        if let Some(watch) = watch {
            watch.0.mark.set(&own);
        }
        (own, listener.accept().unwrap().0)
    }

    fn is_shut(socket: &mut TcpStream) -> bool {
        socket.set_nonblocking(true).unwrap();
        matches!(socket.read(&mut [0]), Ok(0))
    }

    #[test]
    fn only_late_connections_are_shut_down() {
        let connections = connections();
        let (late, in_time, resting) = (
            watch(connections, 500_000),
            watch(connections, 500_000),
            watch(connections, 500_000),
        );
        let mut sockets = [Some(&late), Some(&in_time), Some(&resting), None].map(connected);
        let (local, _other_end) = UnixStream::pair().unwrap();
        late.begin(LIMIT);
        in_time.begin(LIMIT * 2);
        resting.begin(LIMIT);
        assert!(!resting.end());

        connections.lock().shut_down_late(Instant::now());
        assert_eq!(sockets.each_mut().map(|(own, _)| is_shut(own)), [false; 4]);
        connections.lock().shut_down_late(Instant::now() + LIMIT);
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
    fn mark_is_free_again_when_the_last_clone_is_dropped() {
        let connections = connections();
        let first = watch(connections, 520_000);
        let (clone, mark) = (first.clone(), first.0.mark);
        drop(first);
        assert_ne!(watch(connections, 520_000).0.mark, mark);
        drop(clone);
        assert_eq!(watch(connections, 520_000).0.mark, mark);
    }

    #[test]
    fn watch_thread_runs_only_while_connections_exist() {
        let connections = connections();
        for _ in 0..2 {
            drop(watch(connections, 530_000));
            assert!(connections.lock().is_watched);
            let since = Instant::now();
            while connections.lock().is_watched {
                assert!(
                    since.elapsed() < Duration::from_secs(20),
                    "the thread did not end"
                );
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    #[test]
    fn statements_set_and_clear_the_deadline() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let connections = connections();
        let watch = watch(connections, 540_000);
        let late_at = || connections.lock().all[&watch.0.mark].late_at;
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
                assert!(!slow.is_finished(), "no deadline was set");
            };
            assert!(begun >= before && begun <= Instant::now());
        });
        assert_eq!(late_at(), None);
        assert!(conn.batch_execute("no SQL").is_err());
        assert_eq!(late_at(), None);
    }

    /// Returns a TCP address that forwards to the PostgreSQL server.
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
        let (conn, watch) = establish_watched(&target(url), purpose).unwrap();
        (conn, watch.expect("a watch on a server connection"))
    }

    #[test]
    fn only_the_late_connections_socket_is_shut_down() {
        let Some(postgres) = Postgres::shared() else {
            return;
        };
        let database = postgres.database();
        let url = database.url_at(over_tcp(postgres));
        for parameter in ["", "?tcp_user_timeout=2000", "?tcp_user_timeout=0"] {
            let url = format!("{url}{parameter}");
            let [mut one, mut two, mut three] = [(); 3].map(|()| establish(&url, Use::Write));
            two.1.begin(Duration::ZERO);
            CONNECTIONS.lock().shut_down_late(Instant::now());
            assert!(two.0.batch_execute("SELECT 1").is_err(), "{parameter}");
            assert!(two.1.end());
            for (conn, watch) in [&mut one, &mut three] {
                conn.batch_execute("SELECT 1").unwrap();
                assert!(!watch.end());
            }
        }
    }

    #[test]
    fn statement_without_a_response_fails_after_the_limit() {
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
    fn migrations_and_local_connections_have_no_deadline() {
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
        CONNECTIONS.lock().shut_down_late(Instant::now());
        conn.batch_execute("SELECT 1").unwrap();
    }
}
