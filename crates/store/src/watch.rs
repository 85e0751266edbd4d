//! Ends connections to PostgreSQL whose statement does not end.
//!
//! libpq waits for a response without a limit. A thread here checks how long each statement takes and shuts down the
//! socket of a late one. libpq then sees the end of the stream, the call returns an error, and the pool drops the
//! connection.
//!
//! What this is worth: a frozen server process, or a proxy whose far side has died, keeps a thread of the pool waiting
//! forever otherwise, and soon all of them. Simpler ways do not end that wait. The kernel of such a host goes on
//! acknowledging, so neither keep-alives nor `tcp_user_timeout` notice; `statement_timeout` is a clock of the server; a
//! cancel request needs the server to respond; and diesel has no call with a deadline. How the socket of a connection
//! is found is the business of [`sockets`]: on Linux and over TCP only, so a proxy behind a Unix socket is not noticed.

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
    expect(unsafe_code, reason = "a socket is known by its number alone")
)]
mod sockets;

/// How often the thread checks.
const INTERVAL: Duration = Duration::from_millis(500);

/// The connections of this process.
pub(crate) static CONNECTIONS: Connections = Connections::new();

/// Connections with their deadlines.
#[derive(Debug)]
pub(crate) struct Connections {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    all: BTreeMap<Mark, Entry>,
    /// Whether the thread runs. It ends when there are no connections.
    is_watched: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// How long a statement may take.
    limit: Option<Duration>,
    /// When the current statement is late.
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

    /// Watches a connection that is about to be established with these completed keywords, followed by
    /// [`Watch::parameters`].
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

    /// Checks all connections at intervals, until there are none.
    fn poll(&self) {
        loop {
            thread::sleep(INTERVAL);
            let mut inner = self.lock();
            if inner.all.is_empty() {
                inner.is_watched = false;
                return;
            }
            let results = inner.shut_down_late(Instant::now());
            drop(inner); // no statement waits for the log
            for result in results {
                match result {
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
    /// Shuts down the late connections. The lock is held, so that no statement ends meanwhile and no mark changes
    /// hands. Returns the result for each that was not late before.
    fn shut_down_late(&mut self, now: Instant) -> Vec<io::Result<bool>> {
        let mut results = Vec::new();
        for (mark, entry) in &mut self.all {
            if entry.late_at.is_none_or(|late_at| now < late_at) {
                continue;
            }
            // Repeated while it is late: during connecting, libpq goes on to the server's next address.
            let result = mark.shut_down();
            if !std::mem::replace(&mut entry.is_shut, true) {
                results.push(result);
            }
        }
        results
    }
}

/// The watch over one connection, until its last clone is dropped.
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
    /// The last parameters of the connection, by which its socket is found.
    pub(crate) fn parameters(&self) -> String {
        self.0.mark.parameters()
    }

    /// Sets how long a statement may take from now on.
    pub(crate) fn limit(&self, limit: Option<Duration>) {
        self.entry(|entry| entry.limit = limit);
    }

    /// Begins something that may take that long.
    pub(crate) fn begin(&self, limit: Duration) {
        self.entry(|entry| entry.late_at = Instant::now().checked_add(limit));
    }

    /// Ends what began. Returns whether the connection was shut down.
    pub(crate) fn end(&self) -> bool {
        self.entry(|entry| {
            entry.late_at = None;
            entry.is_shut
        })
    }

    /// The instrumentation of the connection, which reports when statements begin and end.
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

/// Notes each statement. diesel does not report the end of a statement that returns rows; the beginning of the next one
/// ends it, or the return to the pool.
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

    use super::*;
    use crate::{
        connection::{AnyConnection, Target, Use, establish_watched},
        testing::Postgres,
    };
    use diesel::{Connection as _, PgConnection, connection::SimpleConnection as _};

    const LIMIT: Duration = Duration::from_secs(8);

    /// Apart from those of the other tests, whose sockets belong to this process as well.
    fn connections() -> &'static Connections {
        Box::leak(Box::new(Connections::new()))
    }

    fn watch(connections: &'static Connections, user_timeout: u32) -> Watch {
        let keywords = format!("tcp_user_timeout='{user_timeout}'");
        connections.watch(&keywords).unwrap()
    }

    /// Both ends of a connection. The own end has the mark of the watch, if there is one.
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
    fn what_is_late_is_shut_and_nothing_else() {
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
    fn the_thread_ends_with_the_last_connection_and_comes_with_the_next() {
        let connections = connections();
        for _ in 0..2 {
            drop(watch(connections, 530_000));
            assert!(connections.lock().is_watched);
            let since = Instant::now();
            while connections.lock().is_watched {
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
            CONNECTIONS.lock().shut_down_late(Instant::now());
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
        CONNECTIONS.lock().shut_down_late(Instant::now());
        conn.batch_execute("SELECT 1").unwrap();
    }
}
