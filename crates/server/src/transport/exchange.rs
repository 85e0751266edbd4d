//! One request and its response: what becomes of a body that the handler does not read, when the client is told to send
//! one, and how a response is written in pieces.

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
/// A response is handed to the connection in pieces of this size, each when the one before is written. The connection
/// copies what it gets.
pub(super) const PIECE: usize = 8 * 1024;
/// A response that is longer counts as pending until all of it was handed over.
const COUNTED: u64 = 16 * 1024;

/// Put beside a response whose body all such responses share: however many clients do not read it, it exists once.
#[derive(Debug)]
pub struct SharedBody(());

impl SharedBody {
    /// The response with this body, whose bytes are static or kept by the server.
    #[must_use]
    pub fn of(mut response: HttpResponseBuilder, bytes: Bytes) -> HttpResponse {
        let mut response = response.body(bytes);
        response.extensions_mut().insert(Self(()));
        response
    }
}

/// Responds to some requests before the application.
pub trait Front: 'static {
    /// Responds, or gives the request back.
    fn respond(&self, request: Request)
    -> impl Future<Output = Result<Response<BoxBody>, Request>>;
}

/// Leaves every request to the application.
#[derive(Debug, Clone, Copy)]
pub struct NoFront;

impl Front for NoFront {
    async fn respond(&self, request: Request) -> Result<Response<BoxBody>, Request> {
        Err(request)
    }
}

/// What responds to requests: the front and, behind it, the application.
pub(super) struct Responder<F, S> {
    pub(super) front: Rc<F>,
    pub(super) app: S,
}

/// The error of a service of actix: a response.
type ErrorResponse = Response<BoxBody>;

/// What becomes of a request.
type Exchanged<B> = Result<Response<Outgoing<EitherBody<B>>>, ErrorResponse>;

/// The body of a request. The handler reads it through [`Reader`]; what it leaves is here.
struct Incoming {
    peer: Option<Rc<Peer>>,
    payload: RefCell<Payload>,
    /// Bytes that came.
    taken: Cell<usize>,
    /// All of it came.
    ended: Cell<bool>,
    /// The handler began to read it, or the client does not wait for that.
    asked: Cell<bool>,
    /// The client said beforehand that it is too long to be discarded, or that it never ends.
    too_long: bool,
}

impl Incoming {
    /// Takes the body of a request; `None` when it has none.
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
            // CONNECT and WebSocket: everything to the end of the connection.
            None => !headers.contains_key(TRANSFER_ENCODING),
        };
        let incoming = Rc::new(Self {
            peer: request.conn_data::<Rc<Peer>>().cloned(),
            payload: RefCell::new(payload),
            taken: Cell::new(0),
            ended: Cell::new(false),
            asked: Cell::new(!request.head().expect()),
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

    /// Whether all of the body came. What the handler has not read is discarded, up to [`MAX_BODY`] and for a second.
    async fn discard(&self) -> bool {
        if self.ended.get() {
            return true;
        }
        // A client that waits to be asked for the body may send it now or not: only a new connection tells.
        if self.too_long || !self.asked.get() {
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

/// What the handler reads the body with.
struct Reader(Rc<Incoming>);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.asked.set(true);
        self.0.poll_next(cx)
    }
}

/// The body of a response, in pieces.
pub(super) struct Outgoing<B> {
    body: B,
    /// What is left of the body's last chunk.
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

/// A request that has already begun, for which the client was told to send the body.
struct Begun<B>(Pin<Box<dyn Future<Output = Exchanged<B>>>>);

/// Answers a request.
///
/// # Errors
/// The response to a request that the application failed at.
pub(super) async fn answer<F, S, B>(
    responder: Rc<Responder<F, S>>,
    mut request: Request,
) -> Exchanged<B>
where
    F: Front,
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody + Unpin + 'static,
{
    let begun = request.extensions_mut().remove::<Begun<B>>();
    if let Some(Begun(response)) = begun {
        return response.await;
    }
    refuse_after_final(&request).await;
    let incoming = Incoming::take(&mut request);
    exchange(responder, request, incoming).await
}

/// Decides about a request whose client waits with the body until it is asked for it (`Expect: 100-continue`). The
/// application begins with the request. When it responds without reading the body, this is the response, without
/// `100 Continue`. When it begins to read, actix-http asks for the body and passes the request to [`answer`].
///
/// # Errors
/// The response, when the body is not wanted.
pub(super) async fn expect<F, S, B>(
    responder: Rc<Responder<F, S>>,
    mut request: Request,
) -> Result<Request, ErrorResponse>
where
    F: Front,
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + Unpin + 'static,
{
    refuse_after_final(&request).await;
    let incoming = Incoming::take(&mut request);
    let body = incoming.clone();
    let mut response = Box::pin(exchange(responder, request, incoming));
    let early = poll_fn(|cx| match response.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending if body.as_ref().is_some_and(|body| body.asked.get()) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    match early.await {
        Some(response) => Err(response?.map_into_boxed_body()),
        None => {
            let asked = Request::new();
            asked.extensions_mut().insert(Begun::<B>(response));
            Ok(asked)
        }
    }
}

/// Waits for the end of the connection, if its final response was begun: the client was told that no request after that is
/// processed.
async fn refuse_after_final(request: &Request) {
    if let Some(peer) = request
        .conn_data::<Rc<Peer>>()
        .filter(|peer| peer.is_final())
    {
        peer.refuse();
        pending::<()>().await;
    }
}

async fn exchange<F, S, B>(
    responder: Rc<Responder<F, S>>,
    request: Request,
    incoming: Option<Rc<Incoming>>,
) -> Exchanged<B>
where
    F: Front,
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody + Unpin + 'static,
{
    let in_flight = request
        .conn_data::<Rc<Peer>>()
        .map(|peer| InFlight::new(Rc::clone(peer)));
    let peer = in_flight.as_ref().map(InFlight::peer);
    // Said explicitly: of pipelined requests actix-http follows the last one.
    let mut closes = request.head().connection_type() == ConnectionType::Close;
    let answered =
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
    let mut response: Response<EitherBody<B>> = match answered {
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

/// Tells the client when this response is the final one, and remembers it.
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

/// How many bytes of a response count as pending.
pub(super) fn counted(size: BodySize, is_shared: bool) -> Option<usize> {
    match size {
        BodySize::Sized(bytes) if bytes > COUNTED && !is_shared => usize::try_from(bytes).ok(),
        _ => None,
    }
}
