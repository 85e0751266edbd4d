//! One request and its response: discards the body that the handler does not read, decides when to send
//! `100 Continue`, and writes the response in pieces.

use std::{
    cell::{Cell, RefCell},
    future::{pending, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix_http::{
    BoxedPayloadStream, ConnectionType, HttpMessage as _, Payload, Request, Response,
    body::{BodySize, BoxBody, EitherBody, MessageBody},
    error::PayloadError,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};
use actix_web::{
    HttpResponse, HttpResponseBuilder,
    dev::{Service, ServiceResponse},
    web::Bytes,
};
use futures_util::{Stream, StreamExt as _};

use super::connections::{InFlight, Peer, Pending};
use crate::body::MAX_BODY;

/// How long the server waits for the rest of a body that the handler does not read.
const DISCARD_TIME: Duration = Duration::from_secs(1);
/// Size of the pieces in which a response is passed to the connection, which copies them, one after the other.
pub(super) const PIECE: usize = 8 * 1024;
/// A longer response counts as pending until all of it was passed on.
const COUNTED: u64 = 16 * 1024;

/// Marks a response whose body is shared by all such responses, so that it is in memory once.
#[derive(Debug)]
pub struct SharedBody(());

impl SharedBody {
    #[must_use]
    pub fn of(mut response: HttpResponseBuilder, bytes: Bytes) -> HttpResponse {
        let mut response = response.body(bytes);
        response.extensions_mut().insert(Self(()));
        response
    }
}

pub trait EarlyHandler: 'static {
    /// Returns the response, or the request if the application has to handle it.
    fn respond(&self, request: Request)
    -> impl Future<Output = Result<Response<BoxBody>, Request>>;
}

#[derive(Debug, Clone, Copy)]
pub struct NoEarlyHandler;

impl EarlyHandler for NoEarlyHandler {
    async fn respond(&self, request: Request) -> Result<Response<BoxBody>, Request> {
        Err(request)
    }
}

/// Responds to requests: the front and, behind it, the application.
pub(super) struct Responder<F, S> {
    pub(super) front: Rc<F>,
    pub(super) app: S,
}

type ErrorResponse = Response<BoxBody>;

type Exchanged<B> = Result<Response<Outgoing<EitherBody<B>>>, ErrorResponse>;

/// The body of a request. The handler reads it through [`Reader`].
struct Incoming {
    peer: Option<Rc<Peer>>,
    payload: RefCell<Payload>,
    taken: Cell<usize>,
    ended: Cell<bool>,
    /// The handler has begun to read it, or the client does not wait for `100 Continue`.
    is_requested: Cell<bool>,
    /// It is announced as longer than [`MAX_BODY`], or it lasts until the connection ends.
    too_long: bool,
}

impl Incoming {
    fn take(request: &mut Request) -> Option<Rc<Self>> {
        let payload = match request.take_payload() {
            Payload::None => return None,
            payload => payload,
        };
        let headers = request.headers();
        let length = headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.trim().parse::<usize>().ok());
        let too_long = match length {
            Some(length) => length > MAX_BODY,
            // CONNECT and WebSocket: the body lasts until the connection ends.
            None => !headers.contains_key(TRANSFER_ENCODING),
        };
        let incoming = Rc::new(Self {
            peer: request.conn_data::<Rc<Peer>>().cloned(),
            payload: RefCell::new(payload),
            taken: Cell::new(0),
            ended: Cell::new(false),
            is_requested: Cell::new(!request.head().expect()),
            too_long,
        });
        let reader: BoxedPayloadStream = Box::pin(Reader(Rc::clone(&incoming)));
        *request.payload() = reader.into();
        Some(incoming)
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, PayloadError>>> {
        let next = self.payload.borrow_mut().poll_next_unpin(cx);
        match &next {
            Poll::Ready(Some(Ok(bytes))) => {
                self.taken.set(self.taken.get().saturating_add(bytes.len()))
            }
            Poll::Ready(None) => self.ended.set(true),
            _ => {}
        }
        if let Some(peer) = &self.peer {
            peer.await_body(next.is_pending());
        }
        next
    }

    /// Discards what the handler has not read, up to [`MAX_BODY`] and for a second. Returns whether all of it arrived.
    async fn discard(&self) -> bool {
        if self.ended.get() {
            return true;
        }
        // A client that waits for `100 Continue` may send its body or not, so the connection cannot be reused.
        if self.too_long || !self.is_requested.get() {
            return false;
        }
        let rest = async {
            while self.taken.get() <= MAX_BODY {
                match poll_fn(|cx| self.poll_next(cx)).await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return false,
                    None => return true,
                }
            }
            false
        };
        tokio::time::timeout(DISCARD_TIME, rest)
            .await
            .unwrap_or(false)
    }
}

struct Reader(Rc<Incoming>);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.is_requested.set(true);
        self.0.poll_next(cx)
    }
}

/// The body of a response, in pieces.
pub(super) struct Outgoing<B> {
    body: B,
    /// The rest of the body's last chunk.
    chunk: Bytes,
    _pending: Option<Pending>,
    _in_flight: Option<InFlight>,
}

impl<B> Outgoing<B> {
    pub(super) fn new(body: B, pending: Option<Pending>, in_flight: Option<InFlight>) -> Self {
        Self {
            body,
            chunk: Bytes::new(),
            _pending: pending,
            _in_flight: in_flight,
        }
    }
}

impl<B: MessageBody + Unpin> MessageBody for Outgoing<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let Self { body, chunk, .. } = &mut *self;
        if chunk.is_empty() {
            match Pin::new(body).poll_next(cx) {
                Poll::Ready(Some(Ok(next))) => *chunk = next,
                other => return other,
            }
        }
        Poll::Ready(Some(Ok(chunk.split_to(chunk.len().min(PIECE)))))
    }
}

/// A request whose handler already runs, and whose client was sent `100 Continue`.
struct Continued<B>(Pin<Box<dyn Future<Output = Exchanged<B>>>>);

pub(super) async fn answer<F, S, B>(
    responder: Rc<Responder<F, S>>,
    mut request: Request,
) -> Exchanged<B>
where
    F: EarlyHandler,
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody + Unpin + 'static,
{
    let continued = request.extensions_mut().remove::<Continued<B>>();
    if let Some(Continued(response)) = continued {
        return response.await;
    }
    reject_after_final(&request).await;
    let incoming = Incoming::take(&mut request);
    exchange(responder, request, incoming).await
}

/// Starts a request with `Expect: 100-continue`. If the application responds without reading the body, the client gets
/// no `100 Continue`. If it begins to read, actix-http sends `100 Continue` and passes the request to [`answer`].
pub(super) async fn expect<F, S, B>(
    responder: Rc<Responder<F, S>>,
    mut request: Request,
) -> Result<Request, ErrorResponse>
where
    F: EarlyHandler,
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + Unpin + 'static,
{
    reject_after_final(&request).await;
    let incoming = Incoming::take(&mut request);
    let body = incoming.clone();
    let mut response = Box::pin(exchange(responder, request, incoming));
    let early = poll_fn(|cx| match response.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending if body.as_ref().is_some_and(|body| body.is_requested.get()) => {
            Poll::Ready(None)
        }
        Poll::Pending => Poll::Pending,
    });
    match early.await {
        Some(response) => Err(response?.map_into_boxed_body()),
        None => {
            let continued = Request::new();
            continued.extensions_mut().insert(Continued::<B>(response));
            Ok(continued)
        }
    }
}

/// If the final response has begun, waits until the connection ends: no later request is processed.
async fn reject_after_final(request: &Request) {
    if let Some(peer) = request
        .conn_data::<Rc<Peer>>()
        .filter(|peer| peer.is_final())
    {
        peer.reject_further_requests();
        pending::<()>().await;
    }
}

async fn exchange<F, S, B>(
    responder: Rc<Responder<F, S>>,
    request: Request,
    incoming: Option<Rc<Incoming>>,
) -> Exchanged<B>
where
    F: EarlyHandler,
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody + Unpin + 'static,
{
    let in_flight = request
        .conn_data::<Rc<Peer>>()
        .map(|peer| InFlight::new(Rc::clone(peer)));
    let peer = in_flight.as_ref().map(InFlight::peer);
    // Set explicitly, because actix-http uses the connection type of the last pipelined request.
    let mut closes = request.head().connection_type() == ConnectionType::Close;
    let result =
        match responder.front.respond(request).await {
            Ok(response) => Ok(response.map_body(|_, body| EitherBody::right(body))),
            Err(request) => responder.app.call(request).await.map(|response| {
                Response::from(response).map_body(|_, body| EitherBody::left(body))
            }),
        };
    if let Some(incoming) = incoming
        && !incoming.discard().await
    {
        closes = true;
        if let Some(peer) = peer {
            peer.leave_body_unread();
        }
    }
    closes |= peer.is_some_and(|peer| peer.is_last_response());
    let mut response: Response<EitherBody<B>> = match result {
        Ok(response) => response,
        Err(error) => {
            let mut response = error.error_response().into();
            set_connection(&mut response, closes, peer);
            return Err(response);
        }
    };
    set_connection(&mut response, closes, peer);
    let pending = peer.and_then(|peer| {
        counted(
            response.body().size(),
            response.extensions().get::<SharedBody>().is_some(),
        )
        .map(|bytes| Pending::new(Rc::clone(peer), bytes))
    });
    Ok(response.map_body(|_, body| Outgoing::new(body, pending, in_flight)))
}

/// Sets `Connection: close` on a response after which the connection ends, and marks the response as final.
fn set_connection<B>(response: &mut Response<B>, closes: bool, peer: Option<&Rc<Peer>>) {
    if closes {
        response
            .head_mut()
            .set_connection_type(ConnectionType::Close);
    }
    if let Some(peer) = peer
        && response.head().connection_type() == ConnectionType::Close
    {
        peer.begin_final_response();
    }
}

pub(super) fn counted(size: BodySize, is_shared: bool) -> Option<usize> {
    match size {
        BodySize::Sized(bytes) if bytes > COUNTED && !is_shared => usize::try_from(bytes).ok(),
        _ => None,
    }
}
