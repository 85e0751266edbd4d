//! Between the sockets and the application: what a client can cost that reads or writes slowly, or not at all.
//!
//! | module | what it bounds |
//! |---|---|
//! | `stream` | how long a client may take nothing of a response, over TCP and Unix sockets alike |
//! | [`Connections`] | how many connections are open, and how many bytes of responses wait for clients |
//! | `exchange` | a body that no handler reads; `Expect: 100-continue`; how much of a response is copied at a time |
//! | [`open_files`] | the limit of open files |
//!
//! actix-web's own `HttpServer` has a place for none of these, so [`serve`] builds the server from the same parts. The limits
//! and their reasons are in `docs/operations.md` and `docs/security.md`.

mod connections;
mod exchange;
pub mod open_files;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    cell::OnceCell,
    fmt, io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{HttpService, Protocol, Request, Response, body::BodySize, error::DispatchError};
use actix_server::Server;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt as _, fn_factory, fn_service};
use actix_web::{
    HttpRequest,
    body::MessageBody,
    dev::{AppConfig, ServiceResponse},
};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::net::TcpStream;

pub use self::{connections::Connections, exchange::SharedBody};
use self::{connections::Peer, stream::Stream};

/// How many connections the kernel keeps that the server has not accepted yet.
const BACKLOG: i32 = 1024;
/// How much of a response the kernel takes for a client. Without this it is megabytes, which no deadline of the server's
/// would free.
const SEND_BUFFER: usize = 128 * 1024;
/// How long an idle connection is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may take to send the head of a connection's first request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server is made of, besides its application.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many threads answer requests.
    pub workers: usize,
    /// How long a client may take nothing of a response before its connection is closed.
    pub write_timeout: Duration,
    /// How many seconds requests in flight have once the server stops.
    pub drain_seconds: u64,
}

/// Binds a socket and listens on it.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit it.
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Serves an application on a listener. To stop it in good order, drain the connections first.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve<F, I, S, B>(
    listener: TcpListener,
    connections: &Arc<Connections>,
    options: &Options,
    application: F,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    B: MessageBody + Unpin + 'static,
{
    let (connections, write_timeout) = (Arc::clone(connections), options.write_timeout);
    let builder = Server::build()
        .workers(options.workers)
        // The limit is kept here, over all workers and with regard to who is idle.
        .max_concurrent_connections(usize::MAX)
        .shutdown_timeout(options.drain_seconds)
        .disable_signals()
        .listen("tollkey", listener, move || {
            let connections = Arc::clone(&connections);
            let admit = fn_service(move |io: TcpStream| {
                let connections = Arc::clone(&connections);
                async move {
                    let address = io.peer_addr().ok();
                    // Otherwise the last part of a response of more than one segment waits for an acknowledgment that the
                    // client delays: 40 ms or more.
                    let _ = io.set_nodelay(true);
                    let refused = || DispatchError::Io(io::ErrorKind::ConnectionRefused.into());
                    let peer = connections.admit().await.ok_or_else(refused)?;
                    Ok((Stream::new(io, peer, write_timeout), Protocol::Http1, address))
                }
            });
            admit.and_then(http(application()))
        })?;
    Ok(builder.run())
}

/// HTTP/1.1 over streams of any kind.
fn http<I, S, B, T>(
    application: I,
) -> impl ServiceFactory<
    (Stream<T>, Protocol, Option<SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
>
where
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    B: MessageBody + Unpin + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + AsFd + Unpin + 'static,
{
    let application = Rc::new(application.into_factory());
    // The two services of actix-http share one application: a request goes from the first to the second.
    let shared: Rc<OnceCell<Rc<S::Service>>> = Rc::default();
    let expectations = Rc::clone(&shared);
    HttpService::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        // Zero: `Stream` lingers by itself, and bounds the bytes as well.
        .client_disconnect_timeout(Duration::ZERO)
        .h1_write_buffer_size(exchange::PIECE)
        .on_connect_ext(|stream: &Stream<T>, data| {
            data.insert::<Rc<Peer>>(Rc::clone(stream.peer()));
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
            let (started, shared) = (application.new_service(AppConfig::default()), Rc::clone(&shared));
            async move {
                let app =
                    started.await.map(Rc::new).map_err(|error| tracing::error!(?error, "a worker cannot start"))?;
                let _ = shared.set(Rc::clone(&app));
                Ok::<_, ()>(fn_service::<_, _, _, _, _, ()>(move |request| exchange::answer(Rc::clone(&app), request)))
            }
        }))
}

/// Whether a response of this size may be kept for its client, so that what slow clients hold has an end.
#[must_use]
pub fn has_room(request: &HttpRequest, size: BodySize, is_shared: bool) -> bool {
    match (exchange::counted(size, is_shared), request.conn_data::<Rc<Peer>>()) {
        (Some(bytes), Some(peer)) => peer.connections().has_room(bytes),
        _ => true,
    }
}
