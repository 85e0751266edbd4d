//! HTTP/2 without TLS (prior knowledge), for gRPC.
//!
//! [`Server::start_http2`] uses the same threads, connections and streams as HTTP/1.1, and so the same limit of
//! connections and the same write deadline. A connection ends with GOAWAY, which loses no request (RFC 9113,
//! section 6.8).

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    error::Error,
    future::{poll_fn, ready},
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::spawn_local,
    time::{Duration, Instant, sleep_until},
};

use super::{
    Connections, HEAD_TIMEOUT, KEEP_ALIVE, Options, Server,
    connections::{InFlight, Peer},
    stream::Stream,
};

/// How many requests of one connection are in flight at the same time. Further ones wait at the client.
const MAX_STREAMS: u32 = 256;
/// How many bytes of one request, and of all requests of a connection, the server takes before it has read them.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Maximum size of the headers of a request. Those of gRPC are small.
const MAX_HEADERS: u32 = 16 * 1024;
/// How long the client may take to acknowledge GOAWAY when no request is in flight.
const GOODBYE: Duration = Duration::from_millis(500);

/// Runs the tasks of a connection on the thread of its worker.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

impl Server {
    /// Serves HTTP/2. Each worker calls `service` for the function that responds to its requests; that gets a request
    /// and the address of the peer. Fails if the listener cannot be used or no thread can be started.
    pub fn start_http2<G, S, F, B>(
        listener: TcpListener,
        connections: &Arc<Connections>,
        options: &Options,
        service: G,
    ) -> io::Result<Self>
    where
        G: Fn() -> S + Send + Clone + 'static,
        S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + 'static,
        F: Future<Output = Response<B>> + 'static,
        B: Body + 'static,
        B::Data: 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Self::start_workers(listener, connections, options, move || {
            let service = Rc::new(service());
            ready(Ok(move |stream, address| {
                serve(Rc::clone(&service), stream, address)
            }))
        })
    }
}

/// The requests of one connection.
struct Activity {
    peer: Rc<Peer>,
    /// How many requests are in flight, and what keeps the connection busy meanwhile.
    in_flight: RefCell<(usize, Option<InFlight>)>,
    has_request: Cell<bool>,
    idle_since: Cell<Instant>,
}

impl Activity {
    fn begin(self: &Rc<Self>) -> ActiveRequest {
        self.has_request.set(true);
        let (count, busy) = &mut *self.in_flight.borrow_mut();
        *count += 1;
        if busy.is_none() {
            *busy = Some(InFlight::new(Rc::clone(&self.peer)));
            // Other requests arrive on the same connection.
            self.peer.await_body(true);
        }
        ActiveRequest(Rc::clone(self))
    }

    /// Whether the connection ends once its requests in flight are finished. One that has had no request yet may be
    /// about to send one, which its client would not repeat.
    fn is_ending(&self) -> bool {
        self.peer.is_closing() || self.peer.is_last_response() && self.has_request.get()
    }

    fn is_busy(&self) -> bool {
        self.in_flight.borrow().0 > 0
    }

    /// Returns when the connection ends if no request arrives.
    fn due(&self) -> Instant {
        if self.is_busy() {
            Instant::now() + KEEP_ALIVE
        } else if self.has_request.get() {
            self.idle_since.get() + KEEP_ALIVE
        } else {
            self.idle_since.get() + HEAD_TIMEOUT
        }
    }
}

/// A request in flight, until it is dropped.
struct ActiveRequest(Rc<Activity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.idle_since.set(Instant::now());
        let (count, busy) = &mut *self.0.in_flight.borrow_mut();
        *count -= 1;
        if *count == 0 {
            *busy = None;
        }
    }
}

/// Serves one connection.
async fn serve<S, F, B>(service: Rc<S>, stream: Stream<TcpStream>, address: Option<SocketAddr>)
where
    S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: Body + 'static,
    B::Data: 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let peer = Rc::clone(stream.peer());
    peer.close_with_goaway();
    let activity = Rc::new(Activity {
        peer,
        in_flight: RefCell::default(),
        has_request: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
    });
    let requests = Rc::clone(&activity);
    let respond = service_fn(move |request| {
        let active = requests.begin();
        let response = service(request, address);
        async move {
            let response = response.await;
            drop(active);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), respond));
    let mut timer = pin!(sleep_until(activity.due()));
    let mut is_ending = false;
    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                return Poll::Ready(served);
            }
            let is_due = timer.as_mut().poll(cx).is_ready();
            let now = Instant::now();
            if is_ending {
                match (is_due, activity.is_busy()) {
                    (false, _) => return Poll::Pending,
                    // The deadline of each request limits this.
                    (true, true) => timer.as_mut().reset(now + GOODBYE),
                    (true, false) => return Poll::Ready(Ok(())),
                }
            } else if activity.is_ending() || is_due && activity.due() <= now {
                is_ending = true;
                timer.as_mut().reset(now + GOODBYE);
                connection.as_mut().graceful_shutdown();
            } else if is_due {
                timer.as_mut().reset(activity.due());
            } else {
                return Poll::Pending;
            }
        }
    })
    .await;
    if let Err(error) = served {
        // Logged as debug, because any client can cause this as often as it likes.
        tracing::debug!(%error, "connection ended early");
    }
}
