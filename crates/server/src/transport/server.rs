//! The threads of one or more listeners: one accepts connections, and the workers respond to their requests.
//!
//! When actix-server stops, it drops the connections that its workers have not taken yet and closes the listener some
//! time after its last `accept`. Both reset connections whose clients have sent a request. [`Server`] accepts all
//! queued connections, closes the listener directly after that, and serves the first request of each connection.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::net::UnixStream,
    rc::Rc,
    sync::{Arc, mpsc as blocking},
    thread,
    time::Duration,
};

use actix_http::{Protocol, Request, error::DispatchError};
use actix_service::{IntoServiceFactory, Service as _, ServiceFactory, boxed::BoxService};
use actix_web::{
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
    rt::Runtime,
};
use futures_util::future::{poll_fn, select_all};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinSet,
};

use super::{
    Accepted, BACKLOG, Connections, EarlyHandler, Options, http,
    listener::{ClientSocket, ClientStream, Listener},
    stream::Stream,
};

/// How long connections without a request are kept during shutdown, because a request may be on its way.
const LAST_REQUEST: Duration = Duration::from_millis(500);
/// How many accepted connections wait for each worker. Beyond that the kernel queues them.
const QUEUE: usize = 256;
/// How many connections are accepted before the acceptor checks whether it has to stop.
const BATCH: usize = 64;
/// How long the acceptor pauses after an error that does not concern one connection, such as too many open files.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

#[derive(Debug)]
pub struct Server {
    /// Ends the acceptor when dropped.
    stop: Option<UnixStream>,
    abort: watch::Sender<bool>,
    /// Resolves when the acceptor has ended.
    acceptor: Option<oneshot::Receiver<()>>,
    workers: Vec<oneshot::Receiver<()>>,
}

impl Server {
    /// Serves HTTP/1.1. Fails if a listener cannot be used, no thread can be started, or a worker cannot start its
    /// application.
    pub fn start<R, G, F, I, S, B>(
        listeners: Vec<Listener>,
        connections: &Arc<Connections>,
        options: &Options,
        front: G,
        application: F,
    ) -> io::Result<Self>
    where
        R: EarlyHandler,
        G: Fn() -> R + Send + Clone + 'static,
        F: Fn() -> I + Send + Clone + 'static,
        I: IntoServiceFactory<S, Request>,
        S: ServiceFactory<
                Request,
                Config = AppConfig,
                Response = ServiceResponse<B>,
                Error = actix_web::Error,
            > + 'static,
        S::InitError: fmt::Debug,
        B: MessageBody + Unpin + 'static,
    {
        Self::start_workers(listeners, connections, options, move || {
            // Created here, because parts of it start tasks of this runtime.
            let factory = http(Rc::new(front()), application());
            async move {
                let service = factory
                    .new_service(())
                    .await
                    .map_err(|()| io::Error::other("a worker cannot start its application"))?;
                let service = Rc::new(service);
                Ok(move |stream, address| serve(Rc::clone(&service), stream, address))
            }
        })
    }

    /// Starts the threads. Each worker calls `worker` for the handler of its connections.
    pub(super) fn start_workers<W, C, H, F>(
        listeners: Vec<Listener>,
        connections: &Arc<Connections>,
        options: &Options,
        worker: W,
    ) -> io::Result<Self>
    where
        W: Fn() -> C + Send + Clone + 'static,
        C: Future<Output = io::Result<H>>,
        H: Fn(Stream<ClientStream>, Option<SocketAddr>) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        for listener in &listeners {
            listener.set_nonblocking()?;
        }
        let (abort, aborted) = watch::channel(false);
        let (started, starts) = blocking::channel();
        let (mut workers, mut queues) = (Vec::new(), Vec::new());
        for number in 0..options.workers {
            let (sender, queue) = mpsc::channel(QUEUE);
            let (ended, end) = oneshot::channel();
            let (worker, connections, started) =
                (worker.clone(), Arc::clone(connections), started.clone());
            let (write_timeout, aborted) = (options.write_timeout, aborted.clone());
            thread::Builder::new()
                .name(format!("tollkey worker {number}"))
                .spawn(move || {
                    let runtime = match Runtime::new() {
                        Ok(runtime) => runtime,
                        Err(error) => return drop(started.send(Err(error))),
                    };
                    runtime.block_on(async {
                        let mut aborted = aborted;
                        tokio::select! {
                            () = work(worker(), queue, connections, write_timeout, started) => {}
                            _ = aborted.wait_for(|aborted| *aborted) => {}
                        }
                    });
                    drop(runtime);
                    let _ = ended.send(());
                })?;
            workers.push(end);
            queues.push(sender);
        }
        drop(started);
        for _ in 0..options.workers {
            starts
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("a worker ended while it started")))?;
        }
        let (stop, stopped) = UnixStream::pair()?;
        let (ended, acceptor_ended) = oneshot::channel();
        let acceptor = Acceptor::new(queues, Arc::clone(connections.sockets()))?;
        thread::Builder::new()
            .name("tollkey acceptor".to_owned())
            .spawn(move || {
                if let Err(error) = acceptor.run(listeners, &stopped) {
                    tracing::error!(%error, "cannot accept connections any more");
                }
                let _ = ended.send(());
            })?;
        Ok(Self {
            stop: Some(stop),
            abort,
            acceptor: Some(acceptor_ended),
            workers,
        })
    }

    /// Waits until the server ends unexpectedly, which is an error of this process.
    pub async fn ended(&mut self) {
        // A closed channel also means that the thread has ended: it panicked.
        let _ = select_all(self.workers.iter_mut().chain(&mut self.acceptor)).await;
    }

    /// Accepts and serves the queued connections, and closes the listeners. Can be cancelled and called again.
    pub async fn stop_accepting(&mut self) {
        self.stop = None;
        if let Some(acceptor) = &mut self.acceptor {
            // An error means that the thread has ended.
            let _ = acceptor.await;
            self.acceptor = None;
        }
    }

    /// Closes the listeners, and waits until all connections have ended. Can be cancelled and called again.
    pub async fn finish(&mut self) {
        self.stop_accepting().await;
        while let Some(worker) = self.workers.last_mut() {
            let _ = worker.await;
            self.workers.pop();
        }
    }

    pub async fn abort(mut self) {
        // Without a receiver, every worker has ended.
        let _ = self.abort.send(true);
        self.finish().await;
    }

    /// Closes the listeners and lets each connection finish with a response that has `Connection: close`. After
    /// `limit`, or when `cut` resolves, closes the remaining connections.
    pub async fn finish_within(
        mut self,
        connections: &Connections,
        limit: Duration,
        cut: impl Future<Output = ()>,
    ) {
        let finished = async {
            let last_requests = async {
                self.stop_accepting().await;
                connections.all_closed().await;
            };
            // A timeout is fine: the remaining connections are closed next.
            let _ = tokio::time::timeout(LAST_REQUEST, last_requests).await;
            connections.close_all();
            self.finish().await;
        };
        let is_finished = tokio::select! {
            () = finished => true,
            () = tokio::time::sleep(limit) => false,
            () = cut => false,
        };
        if !is_finished {
            self.abort().await;
            tracing::warn!("closed connections with requests in flight");
        }
    }
}

struct Socket {
    stream: ClientSocket,
    permit: OwnedSemaphorePermit,
}

struct Acceptor {
    queues: Vec<mpsc::Sender<Socket>>,
    /// The queue that was used last.
    next: usize,
    /// See [`Connections::sockets`].
    permits: Arc<Semaphore>,
    runtime: tokio::runtime::Runtime,
    backlog: usize,
    /// Whether the last `accept` failed with an error that does not concern one connection.
    is_failing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Pause {
    /// The kernel has no further connection, or the requested number was accepted.
    None,
    /// The system cannot accept connections.
    Failed,
    /// All workers have ended.
    Closed,
}

impl Acceptor {
    fn new(queues: Vec<mpsc::Sender<Socket>>, permits: Arc<Semaphore>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        // Linux queues one more than the backlog.
        let backlog = BACKLOG as usize + 1;
        Ok(Self {
            queues,
            next: 0,
            permits,
            runtime,
            backlog,
            is_failing: false,
        })
    }

    /// Accepts connections until the other end of `stopped` is closed, and then those that the kernel has queued.
    fn run(mut self, listeners: Vec<Listener>, stopped: &UnixStream) -> io::Result<()> {
        loop {
            let mut polled: Vec<_> = listeners
                .iter()
                .map(|listener| PollFd::new(listener, PollFlags::IN))
                .chain([PollFd::new(stopped, PollFlags::IN)])
                .collect();
            retry_on_intr(|| poll(&mut polled, None))?;
            let mut ready: Vec<_> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            let is_stopped = ready.pop().unwrap_or_default();
            if is_stopped {
                for mut listener in listeners {
                    // A client that does not find the file of a Unix socket knows that it is not connected.
                    listener.remove_file();
                    // Nothing may happen between this and closing the listener, which resets the connections in its
                    // queue. The number is limited, because clients that keep connecting would otherwise keep the
                    // listener open.
                    self.accept(&listener, self.backlog);
                }
                return Ok(());
            }
            for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
                match self.accept(listener, BATCH) {
                    Pause::None => {}
                    Pause::Failed => {
                        let mut stop = [PollFd::new(stopped, PollFlags::IN)];
                        retry_on_intr(|| poll(&mut stop, Some(&PAUSE)))?;
                    }
                    Pause::Closed => return Ok(()),
                }
            }
        }
    }

    fn accept(&mut self, listener: &Listener, most: usize) -> Pause {
        for _ in 0..most {
            let Some(permit) = self.permit() else {
                return Pause::Closed;
            };
            match listener.accept() {
                Ok(stream) => {
                    self.is_failing = false;
                    if !self.pass_on(Socket { stream, permit }) {
                        return Pause::Closed;
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Pause::None,
                Err(error) => {
                    // Logged once until a connection is accepted again.
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::error!(%error, "cannot accept connections; retrying every 500 ms");
                    }
                    return Pause::Failed;
                }
            }
        }
        Pause::None
    }

    /// While all sockets are in use, the kernel queues connections.
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permits = || Arc::clone(&self.permits);
        permits()
            .try_acquire_owned()
            .or_else(|_| self.runtime.block_on(permits().acquire_owned()))
            .ok()
    }

    /// Waits if all queues are full. Returns `false` when all workers have ended.
    fn pass_on(&mut self, mut socket: Socket) -> bool {
        for _ in 0..self.queues.len() {
            self.next = (self.next + 1) % self.queues.len();
            match self.queues[self.next].try_send(socket) {
                Ok(()) => return true,
                Err(TrySendError::Full(back) | TrySendError::Closed(back)) => socket = back,
            }
        }
        // A worker that has ended takes no connection; `Server::ended` reports it.
        self.queues[self.next].blocking_send(socket).is_ok()
            || self.queues.iter().any(|queue| !queue.is_closed())
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Serves the connections of one worker until the acceptor and all connections have ended.
async fn work<H, F>(
    handler: impl Future<Output = io::Result<H>>,
    mut queue: mpsc::Receiver<Socket>,
    connections: Arc<Connections>,
    write_timeout: Duration,
    started: blocking::Sender<io::Result<()>>,
) where
    H: Fn(Stream<ClientStream>, Option<SocketAddr>) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let handler = match handler.await {
        Ok(handler) => Rc::new(handler),
        Err(error) => return drop(started.send(Err(error))),
    };
    // An error means that another worker could not start.
    if started.send(Ok(())).is_err() {
        return;
    }
    drop(started);
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            socket = queue.recv() => match socket {
                Some(socket) => {
                    let (handler, connections) = (Rc::clone(&handler), Arc::clone(&connections));
                    open.spawn_local(handle(handler, connections, write_timeout, socket));
                }
                None => break,
            },
            Some(ended) = open.join_next(), if !open.is_empty() => log_panic(ended),
        }
    }
    while let Some(ended) = open.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        // Without the panic message, which could contain secrets.
        tracing::error!(
            is_panic = error.is_panic(),
            "connection failed because of a server error"
        );
    }
}

/// Admits a connection, and handles it until it ends.
async fn handle<H, F>(
    handler: Rc<H>,
    connections: Arc<Connections>,
    write_timeout: Duration,
    socket: Socket,
) where
    H: Fn(Stream<ClientStream>, Option<SocketAddr>) -> F,
    F: Future<Output = ()>,
{
    // The permit is released when the socket is closed.
    let Socket {
        stream: socket,
        permit: _permit,
    } = socket;
    let Ok((socket, address)) = socket.register() else {
        return;
    };
    let Some(peer) = connections.admit().await else {
        return;
    };
    handler(Stream::new(socket, peer, write_timeout), address).await;
}

async fn serve(
    service: Rc<BoxService<Accepted, (), DispatchError>>,
    stream: Stream<ClientStream>,
    address: Option<SocketAddr>,
) {
    let connection = (stream, Protocol::Http1, address);
    let served = match poll_fn(|cx| service.poll_ready(cx)).await {
        Ok(()) => service.call(connection).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        // Logged as debug, because any client can cause this as often as it likes.
        tracing::debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Instant};

    use tempfile::TempDir;

    use super::{super::listen, *};
    use crate::listen_address::{ListenAddress, SocketAccess};

    /// An acceptor, its only queue, its listeners, and clients whose connections the kernel has queued.
    struct Accepting {
        acceptor: Acceptor,
        queue: mpsc::Receiver<Socket>,
        listeners: Vec<Listener>,
        clients: Vec<TcpStream>,
    }

    fn accepting(permits: usize, connections: usize) -> Accepting {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, queue) = mpsc::channel(100);
        let acceptor = Acceptor::new(vec![sender], Arc::new(Semaphore::new(permits))).unwrap();
        let clients = (0..connections)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        Accepting {
            acceptor,
            queue,
            listeners: vec![listener.into()],
            clients,
        }
    }

    fn unix_listener() -> (Listener, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let address = ListenAddress::Unix(directory.path().join("tollkey.sock"));
        let access = SocketAccess {
            mode: 0o600,
            group: None,
        };
        (Listener::bind(&address, &access).unwrap(), directory)
    }

    #[test]
    fn acceptor_waits_for_a_socket_permit() {
        let Accepting {
            acceptor,
            mut queue,
            listeners,
            clients,
        } = accepting(10, 30);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let accepting = thread::spawn(move || acceptor.run(listeners, &stopped));
        let mut held = Vec::new();
        let wait_for = |queue: &mpsc::Receiver<Socket>, sockets: usize| {
            let began = Instant::now();
            while queue.len() < sockets && began.elapsed() < Duration::from_secs(20) {
                thread::yield_now();
            }
            // Time to accept another one.
            thread::sleep(Duration::from_millis(50));
            assert_eq!(queue.len(), sockets);
        };
        wait_for(&queue, 10);
        // Sockets of a worker count like those in its queue.
        held.extend((0..10).map(|_| queue.try_recv().unwrap()));
        wait_for(&queue, 0);
        held.truncate(3);
        wait_for(&queue, 7);
        held.clear();
        wait_for(&queue, 10);
        // A stopping acceptor also accepts the queued connections.
        drop(stop);
        let rest = std::iter::from_fn(|| queue.blocking_recv()).count();
        assert_eq!(10 + rest, clients.len());
        accepting.join().unwrap().unwrap();
    }

    #[test]
    fn stopping_acceptor_accepts_at_most_the_backlog() {
        let mut it = accepting(100, 8);
        it.acceptor.backlog = 5;
        let (stop, stopped) = UnixStream::pair().unwrap();
        drop(stop);
        it.acceptor.run(it.listeners, &stopped).unwrap();
        assert_eq!(
            it.queue.len(),
            5,
            "connecting clients do not prevent the acceptor from stopping"
        );
    }

    #[test]
    fn acceptor_without_workers_ends() {
        let it = accepting(100, 1);
        drop(it.queue);
        let (_stop, stopped) = UnixStream::pair().unwrap();
        it.acceptor.run(it.listeners, &stopped).unwrap();
    }

    #[test]
    fn acceptor_accepts_from_all_listeners() {
        let mut it = accepting(100, 3);
        let (unix, directory) = unix_listener();
        let path = directory.path().join("tollkey.sock");
        it.listeners.push(unix);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (acceptor, listeners) = (it.acceptor, it.listeners);
        let accepting = thread::spawn(move || acceptor.run(listeners, &stopped));
        let _clients: Vec<_> = (0..2)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        let streams: Vec<_> = (0..5)
            .map(|_| it.queue.blocking_recv().unwrap().stream)
            .collect();
        let is_unix = |stream: &&ClientSocket| matches!(stream, ClientSocket::Unix(_));
        assert_eq!(streams.iter().filter(is_unix).count(), 2);
        drop(stop);
        accepting.join().unwrap().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn stopping_acceptor_accepts_queued_connections_of_all_listeners() {
        let mut it = accepting(100, 3);
        let (unix, directory) = unix_listener();
        let path = directory.path().join("tollkey.sock");
        it.listeners.insert(0, unix);
        let _clients: Vec<_> = (0..2)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        let (stop, stopped) = UnixStream::pair().unwrap();
        drop(stop);
        it.acceptor.run(it.listeners, &stopped).unwrap();
        assert_eq!(it.queue.len(), 5);
        assert!(!path.exists());
    }
}
