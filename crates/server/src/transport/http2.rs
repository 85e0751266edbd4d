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
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    task::spawn_local,
    time::{Duration, Instant, sleep_until},
};

use super::{
    Connections, HEAD_TIMEOUT, KEEP_ALIVE, Options, Server,
    connections::{InFlight, Peer},
    listener::{ClientStream, Listener},
    stream::Stream,
};

/// How long a request may take, from its headers to its response. Services enforce it.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How many requests of one connection are in flight at the same time. Further ones wait at the client.
const MAX_STREAMS: u32 = 100;
/// How many bytes of one request, and of all requests of a connection, the server takes before it has read them.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Maximum size of the headers of a request. Those of gRPC are small.
const MAX_HEADERS: u32 = 16 * 1024;
/// How long the client may take to acknowledge the end of the connection when no request is in flight.
const CLOSE_GRACE: Duration = Duration::from_millis(500);

/// Runs the tasks of a connection on the thread of its worker.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        spawn_local(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                log_panic();
            }
        });
    }
}

/// Logs that the server panicked. Without the panic message, which could contain secrets.
pub fn log_panic() {
    tracing::error!(is_panic = true, "request failed because of a server error");
}

impl Server {
    /// Serves HTTP/2. Each worker calls `service` for the function that responds to its requests; that gets a request
    /// and the address of the peer. Fails if the listener cannot be used or no thread can be started.
    pub fn start_http2<G, S, F, B>(
        listener: Listener,
        connections: &Arc<Connections>,
        options: &Options,
        service: G,
    ) -> io::Result<Self>
    where
        G: Fn() -> S + Send + Clone + 'static,
        S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + 'static,
        F: Future<Output = Response<B>> + 'static,
        B: Body + Unpin + 'static,
        B::Data: 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Self::start_workers(vec![listener], connections, options, move || {
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
    /// When the connection was opened, or the last request began or ended.
    changed: Cell<Instant>,
}

impl Activity {
    fn begin(self: &Rc<Self>) -> ActiveRequest {
        self.has_request.set(true);
        self.changed.set(Instant::now());
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

    /// Returns when the connection ends if no request begins or ends until then. This also applies to requests in flight:
    /// their deadline is shorter, so their client does not read the responses.
    fn due(&self) -> Instant {
        let limit = if self.has_request.get() {
            KEEP_ALIVE
        } else {
            HEAD_TIMEOUT
        };
        self.changed.get() + limit
    }

    /// Returns when a connection is closed that has been ending since this time, whatever its client does.
    fn closes(&self, ending_since: Instant) -> Instant {
        let limit = ending_since + REQUEST_DEADLINE;
        if self.is_busy() {
            limit
        } else {
            limit.min(self.changed.get().max(ending_since) + CLOSE_GRACE)
        }
    }
}

/// A request in flight, until it is dropped.
struct ActiveRequest(Rc<Activity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.changed.set(Instant::now());
        let (count, busy) = &mut *self.0.in_flight.borrow_mut();
        *count -= 1;
        if *count == 0 {
            *busy = None;
        }
    }
}

/// The body of a response. Its request is in flight until the body has been passed to the connection.
struct ActiveBody<B> {
    body: B,
    _active: ActiveRequest,
}

impl<B: Body + Unpin> Body for ActiveBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves one connection.
async fn serve<S, F, B>(service: Rc<S>, stream: Stream<ClientStream>, address: Option<SocketAddr>)
where
    S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: Body + Unpin + 'static,
    B::Data: 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let peer = Rc::clone(stream.peer());
    peer.close_with_goaway();
    let activity = Rc::new(Activity {
        peer,
        in_flight: RefCell::default(),
        has_request: Cell::new(false),
        changed: Cell::new(Instant::now()),
    });
    let requests = Rc::clone(&activity);
    let respond = service_fn(move |request| {
        let active = requests.begin();
        let response = service(request, address);
        async move {
            let response = response.await.map(|body| ActiveBody {
                body,
                _active: active,
            });
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
    let mut ending_since = None;
    let served = poll_fn(|cx| {
        loop {
            if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                return Poll::Ready(served);
            }
            let is_due = timer.as_mut().poll(cx).is_ready();
            let now = Instant::now();
            if let Some(since) = ending_since {
                let closes = activity.closes(since);
                if !is_due {
                    return Poll::Pending;
                } else if closes <= now {
                    return Poll::Ready(Ok(()));
                }
                timer.as_mut().reset(closes.min(now + CLOSE_GRACE));
            } else if activity.is_ending() || is_due && activity.due() <= now {
                ending_since = Some(now);
                timer.as_mut().reset(now + CLOSE_GRACE);
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
