//! HTTP/1.1, and HTTP/2 for gRPC, between the sockets and the application, with limits on what slow and stalled clients cost.
//!
//! | module | purpose |
//! |---|---|
//! | [`Server`] | accepts connections and passes them to workers; stops without a reset where the kernel allows that |
//! | [`Listener`] | TCP and Unix sockets that accept connections |
//! | `stream` | how long a client may leave a response unread, over TCP and Unix sockets |
//! | [`Connections`] | how many connections are open, and how many bytes of responses wait for clients |
//! | `http2` | HTTP/2 without TLS for gRPC, with the same limits (feature `grpc`) |
//! | `exchange` | unread request bodies; `Expect: 100-continue`; how much of a response is copied at a time |
//!
//! actix-web's `HttpServer` supports none of these. Limits and reasons: `docs/operating.md`, `docs/security.md`.

mod connections;
mod exchange;
#[cfg(feature = "grpc")]
mod http2;
mod listener;
pub mod open_files;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use std::{cell::OnceCell, fmt, net::SocketAddr, rc::Rc, time::Duration};

use actix_http::{HttpService, Protocol, Request, Response, body::BodySize, error::DispatchError};
use actix_service::{
    IntoServiceFactory, ServiceFactory,
    boxed::{self, BoxServiceFactory},
    fn_factory, fn_service,
};
use actix_web::{
    HttpRequest,
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};

#[cfg(feature = "grpc")]
pub(crate) use self::http2::{REQUEST_DEADLINE, log_panic};
pub use self::{
    connections::Connections,
    exchange::{EarlyHandler, NoEarlyHandler, SharedBody},
    listener::{ListenError, Listener, listen},
    server::Server,
};
use self::{connections::Peer, exchange::Responder, listener::ClientStream, stream::Stream};
use crate::listen_address::UnixSocketPeer;

/// Length of the kernel's queue of connections that the server has not accepted yet.
const BACKLOG: i32 = 1024;
/// Size of the kernel's send buffer. The default is megabytes, which no deadline of the server would free.
const SEND_BUFFER: usize = 128 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may take to send the head of a connection's first request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Options {
    pub workers: usize,
    /// How long a client may read nothing of a response before its connection is closed.
    pub write_timeout: Duration,
}

type Accepted = (Stream<ClientStream>, Protocol, Option<SocketAddr>);

/// The responder, once the application has started.
type Shared<F, S> = Rc<OnceCell<Rc<Responder<F, S>>>>;

/// Boxed, because the type cannot be named.
fn http<I, S, B, F>(
    front: Rc<F>,
    application: I,
) -> BoxServiceFactory<(), Accepted, (), DispatchError, ()>
where
    F: EarlyHandler,
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
    let application = Rc::new(application.into_factory());
    // The two services of actix-http share one application: the first passes a request to the second.
    let shared: Shared<F, S::Service> = Rc::default();
    let expectations = Rc::clone(&shared);
    let service = HttpService::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        // Zero, because `Stream` itself lingers and also limits the bytes.
        .client_disconnect_timeout(Duration::ZERO)
        .h1_write_buffer_size(exchange::PIECE)
        .on_connect_ext(|stream: &Stream<ClientStream>, data| {
            data.insert::<Rc<Peer>>(Rc::clone(stream.peer()));
            if stream.io().is_unix() {
                data.insert(UnixSocketPeer);
            }
        })
        .expect(fn_factory(move || {
            let shared = Rc::clone(&expectations);
            let service = fn_service::<_, _, _, _, _, ()>(move |request| {
                let app = shared.get().cloned();
                async move {
                    match app {
                        Some(app) => exchange::expect(app, request).await,
                        None => Err(Response::internal_server_error()),
                    }
                }
            });
            async move { Ok::<_, ()>(service) }
        }))
        .finish(fn_factory(move || {
            let (started, shared) = (
                application.new_service(AppConfig::default()),
                Rc::clone(&shared),
            );
            let front = Rc::clone(&front);
            async move {
                let app = started
                    .await
                    .map_err(|error| tracing::error!(?error, "cannot start a worker"))?;
                let app = Rc::new(Responder { front, app });
                let _ = shared.set(Rc::clone(&app));
                Ok::<_, ()>(fn_service::<_, _, _, _, _, ()>(move |request| {
                    exchange::answer(Rc::clone(&app), request)
                }))
            }
        }));
    boxed::factory(service)
}

/// Whether a response of this size may be buffered, which limits the memory that slow clients use.
#[must_use]
pub fn has_room(request: &HttpRequest, size: BodySize, is_shared: bool) -> bool {
    match (
        exchange::counted(size, is_shared),
        request.conn_data::<Rc<Peer>>(),
    ) {
        (Some(bytes), Some(peer)) => peer.connections().has_room(bytes),
        _ => true,
    }
}
