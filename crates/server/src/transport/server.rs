//! The threads of a listener: one accepts connections, and the workers respond to their requests.
//!
//! actix-server drops the connections that its workers have not taken yet when it stops, and closes the listener at an
//! unknown time after its last `accept`. Both reset connections whose clients have sent a request. [`Server`] accepts what the
//! kernel has queued, closes the listener directly after that, and responds to the first request of each connection.

use std::{
    fmt, io,
    net::{TcpListener, TcpStream as StdTcpStream},
    os::unix::net::UnixStream,
    rc::Rc,
    sync::{Arc, mpsc as blocking},
    thread,
    time::Duration,
};

use actix_http::{Protocol, Request, error::DispatchError};
use actix_service::{
    IntoServiceFactory, Service as _, ServiceFactory,
    boxed::{BoxService, BoxServiceFactory},
};
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
    net::TcpStream,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinSet,
};

use super::{Accepted, Connections, Options, http, stream::Stream};

/// How many accepted connections wait for each worker. Beyond that the kernel queues them.
const QUEUE: usize = 256;
/// How long nothing is accepted after an error that is not of one connection, such as too many open files.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// A listener that is served.
#[derive(Debug)]
pub struct Server {
    /// Ends the acceptor when it is dropped.
    stop: Option<UnixStream>,
    /// Ends the workers, whatever they do.
    abort: watch::Sender<bool>,
    /// Resolves when the acceptor has ended.
    acceptor: oneshot::Receiver<()>,
    /// Each resolves when a worker has ended.
    workers: Vec<oneshot::Receiver<()>>,
}

impl Server {
    /// Serves an application on a listener.
    ///
    /// # Errors
    /// When the listener cannot be used, no thread can be started, or a worker cannot make its application.
    pub fn start<F, I, S, B>(
        listener: TcpListener,
        connections: &Arc<Connections>,
        options: &Options,
        application: F,
    ) -> io::Result<Self>
    where
        F: Fn() -> I + Send + Clone + 'static,
        I: IntoServiceFactory<S, Request>,
        S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = actix_web::Error>
            + 'static,
        S::InitError: fmt::Debug,
        B: MessageBody + Unpin + 'static,
    {
        listener.set_nonblocking(true)?;
        let (abort, aborted) = watch::channel(false);
        let (started, starts) = blocking::channel();
        let (mut workers, mut queues) = (Vec::new(), Vec::new());
        for number in 0..options.workers {
            let (sender, queue) = mpsc::channel(QUEUE);
            let (ended, end) = oneshot::channel();
            let (application, connections, started) = (application.clone(), Arc::clone(connections), started.clone());
            let (write_timeout, aborted) = (options.write_timeout, aborted.clone());
            thread::Builder::new().name(format!("tollkey worker {number}")).spawn(move || {
                let runtime = match Runtime::new() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                runtime.block_on(async {
                    let mut aborted = aborted;
                    // Made here, because parts of it start tasks of this runtime.
                    let factory = http(application());
                    tokio::select! {
                        () = work(factory, queue, connections, write_timeout, started) => {}
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
            starts.recv().unwrap_or_else(|_| Err(io::Error::other("a worker ended while it started")))?;
        }
        let (stop, stopped) = UnixStream::pair()?;
        let (ended, acceptor) = oneshot::channel();
        thread::Builder::new().name("tollkey acceptor".to_owned()).spawn(move || {
            if let Err(error) = accept(listener, &queues, &stopped) {
                tracing::error!(%error, "connections cannot be accepted any more");
            }
            let _ = ended.send(());
        })?;
        Ok(Self { stop: Some(stop), abort, acceptor, workers })
    }

    /// Waits until the server ends by itself, which is an error of this process.
    pub async fn ended(&mut self) {
        // An error says the same: the thread panicked.
        let _ = select_all(self.workers.iter_mut().chain([&mut self.acceptor])).await;
    }

    /// Accepts the connections that the kernel has queued, and closes the listener. Once this returns, new connections are
    /// refused; the accepted ones are served.
    pub async fn stop_accepting(&mut self) {
        if self.stop.take().is_some() {
            // An error means that the thread has ended.
            let _ = (&mut self.acceptor).await;
        }
    }

    /// Waits until all connections have ended, at most this long, and ends the workers. False when connections were cut off.
    pub async fn finish(mut self, limit: Duration) -> bool {
        self.stop_accepting().await;
        let finished = tokio::time::timeout(limit, self.workers_ended()).await.is_ok();
        if !finished {
            // Without a receiver, every worker has ended.
            let _ = self.abort.send(true);
            self.workers_ended().await;
        }
        finished
    }

    async fn workers_ended(&mut self) {
        while let Some(worker) = self.workers.last_mut() {
            // An error means that the thread has ended.
            let _ = worker.await;
            self.workers.pop();
        }
    }
}

/// Accepts connections until the other end of `stopped` is closed, and then those that the kernel has queued.
fn accept(listener: TcpListener, queues: &[mpsc::Sender<StdTcpStream>], stopped: &UnixStream) -> io::Result<()> {
    let mut workers = queues.iter().cycle();
    let (mut stops, mut is_failing) = (false, false);
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                is_failing = false;
                let mut waiting = Some(socket);
                for worker in workers.by_ref().take(queues.len()) {
                    match waiting.take().map(|socket| worker.try_send(socket)) {
                        Some(Err(TrySendError::Full(socket) | TrySendError::Closed(socket))) => waiting = Some(socket),
                        _ => break,
                    }
                }
                // All are busy. One that has ended takes no connection; `Server::ended` tells.
                if let (Some(socket), Some(worker)) = (waiting, workers.next()) {
                    drop(worker.blocking_send(socket));
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            // Nothing is done between this and the end of the listener, which resets what is in its queue.
            Err(_) if stops => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut both = [PollFd::new(&listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
                retry_on_intr(|| poll(&mut both, None))?;
                // What is queued is accepted before the listener is closed.
                stops = !both[1].revents().is_empty();
            }
            Err(error) => {
                // Once until a connection is accepted again.
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(%error, "connections cannot be accepted; trying again every half second");
                }
                let mut stop = [PollFd::new(stopped, PollFlags::IN)];
                stops = retry_on_intr(|| poll(&mut stop, Some(&PAUSE)))? > 0;
            }
        }
    }
}

/// Whether the error of an `accept` is about a connection that has ended already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves the connections of one worker until the acceptor has ended and all of them have.
async fn work(
    factory: BoxServiceFactory<(), Accepted<TcpStream>, (), DispatchError, ()>,
    mut queue: mpsc::Receiver<StdTcpStream>,
    connections: Arc<Connections>,
    write_timeout: Duration,
    started: blocking::Sender<io::Result<()>>,
) {
    let Ok(service) = factory.new_service(()).await else {
        return drop(started.send(Err(io::Error::other("a worker cannot make its application"))));
    };
    let service = Rc::new(service);
    // Without a receiver, another worker could not start.
    if started.send(Ok(())).is_err() {
        return;
    }
    drop(started);
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            socket = queue.recv() => match socket {
                Some(socket) => {
                    let (service, connections) = (Rc::clone(&service), Arc::clone(&connections));
                    open.spawn_local(serve(service, connections, write_timeout, socket));
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
        // Without the message of the panic, which could have anything in it.
        tracing::error!(is_panic = error.is_panic(), "a connection ended in an error of the server");
    }
}

/// Serves one connection.
async fn serve(
    service: Rc<BoxService<Accepted<TcpStream>, (), DispatchError>>,
    connections: Arc<Connections>,
    write_timeout: Duration,
    socket: StdTcpStream,
) {
    // A socket that cannot be used has ended already.
    let Ok(()) = socket.set_nonblocking(true) else { return };
    let Ok(socket) = TcpStream::from_std(socket) else { return };
    let address = socket.peer_addr().ok();
    // Otherwise the last part of a response of more than one segment waits for an acknowledgment that the client delays:
    // 40 ms or more.
    let _ = socket.set_nodelay(true);
    let Some(peer) = connections.admit().await else { return };
    let connection = (Stream::new(socket, peer, write_timeout), Protocol::Http1, address);
    let served = match poll_fn(|cx| service.poll_ready(cx)).await {
        Ok(()) => service.call(connection).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        // Any client can cause this, as often as it likes.
        tracing::debug!(%error, "a connection ended early");
    }
}
