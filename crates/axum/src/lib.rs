//! Protects axum routes, and any tower service over HTTP (tonic, hyper), with Tollkey.
//!
//! ```no_run
//! use axum::{Json, Router, handler::Handler, routing::get};
//! use tollkey_axum::{Guard, Scope, TollkeyLayer, VerifiedKey, require};
//!
//! async fn list_links(key: VerifiedKey) -> Json<Vec<String>> {
//!     Json(vec![format!("the links of {}, {} data", key.account_id(), key.mode())])
//! }
//!
//! async fn create_link(key: VerifiedKey) -> &'static str {
//!     "made"
//! }
//!
//! # async fn example(service_key: String) -> Result<(), tollkey_axum::ConnectError> {
//! let guard = Guard::connect("https://keys.example.com", service_key).await?;
//! let app: Router = Router::new()
//!     .route(
//!         "/api/v1/links",
//!         get(list_links.layer(require(Scope::LINKS_READ))).post(create_link.layer(require(Scope::LINKS_WRITE))),
//!     )
//!     .layer(TollkeyLayer::new(guard));
//! # Ok(())
//! # }
//! ```
//!
//! [`TollkeyLayer`] guards whatever is inside of it: a request without a key that may make it is answered there (RFC 6750,
//! RFC 9457). [`require`] asks for more at a route inside of it; a route without one takes any key. [`VerifiedKey`] is who
//! calls, and `Option<VerifiedKey>` where a layer makes the key [optional](Requirement::optional).
//!
//! Outside of axum [`VerifiedKey::of`] finds the key in a request's extensions, in tonic as in hyper. A gRPC request is refused as gRPC does
//! it: a status (`UNAUTHENTICATED`, `PERMISSION_DENIED`, …) in trailers.
//!
//! Serve the app with `into_make_service_with_connect_info::<SocketAddr>()`: a key that is bound to addresses is refused where the
//! address of the other end is not known.
#![forbid(unsafe_code)]

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts, OriginalUri},
    http::{
        Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header::CONTENT_TYPE,
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use pin_project_lite::pin_project;
use tollkey_middleware::{Admission, Answer, Headers, RequestHead};
pub use tollkey_middleware::{ConnectError, Family, Guard, GuardBuilder, Merchant, Mode, Refusal, Requirement, Scope};
use tower_layer::Layer;
use tower_service::Service;

#[cfg(feature = "test-util")]
pub use tollkey_middleware::testing;

/// Guards what is inside of it.
#[derive(Debug, Clone)]
pub struct TollkeyLayer {
    guard: Guard,
    /// Shared: each request takes one along.
    requirement: Arc<Requirement>,
}

impl TollkeyLayer {
    /// Lets in any key that may make the request.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self { guard, requirement: Arc::new(Requirement::any()) }
    }

    /// Requires this of every key.
    #[must_use]
    pub fn require(self, requirement: impl Into<Requirement>) -> Self {
        Self { requirement: Arc::new(requirement.into()), ..self }
    }
}

impl<S> Layer<S> for TollkeyLayer {
    type Service = Tollkey<S>;

    fn layer(&self, inner: S) -> Tollkey<S> {
        Tollkey { inner, layer: self.clone() }
    }
}

/// The service of [`TollkeyLayer`].
#[derive(Debug, Clone)]
pub struct Tollkey<S> {
    inner: S,
    layer: TollkeyLayer,
}

/// An answer in a box.
type Boxed<E> = Pin<Box<dyn Future<Output = Result<Response, E>> + Send>>;

impl<S, B> Service<Request<B>> for Tollkey<S>
where
    S: Service<Request<B>, Response: IntoResponse, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Answering<S::Future, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let TollkeyLayer { guard, requirement } = &self.layer;
        if let Some(outer) = request.extensions().get::<Admission>() {
            outer.give_way_to(guard);
        }
        // Almost always the key is remembered. Then no future is put into a box, and the service is not cloned.
        if let Some(checked) = guard.check_remembered(&Seen::of_request(&request).head(), requirement) {
            let stage = match checked {
                Ok(admission) => {
                    request.extensions_mut().insert(admission.clone());
                    Stage::Admitted { answer: self.inner.call(request), admission }
                }
                Err(refusal) => {
                    // What is ready and not called may hold a place that others wait for.
                    self.inner = self.inner.clone();
                    Stage::Refused { response: Some(refused(&refusal, request.headers())) }
                }
            };
            return Answering { stage };
        }
        // The one that is ready, and a clone in its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let TollkeyLayer { guard, requirement } = self.layer.clone();
        let asked = async move {
            let (mut parts, body) = request.into_parts();
            let admission = match guard.check(&Seen::of(&parts).head(), &requirement).await {
                Ok(admission) => admission,
                Err(refusal) => return Ok(refused(&refusal, &parts.headers)),
            };
            parts.extensions.insert(admission.clone());
            let answer = inner.call(Request::from_parts(parts, body)).await?;
            Ok(concluded(answer.into_response(), &admission))
        };
        Answering { stage: Stage::Asked { answer: Box::pin(asked) } }
    }
}

pin_project! {
    /// The answer of [`Tollkey`].
    pub struct Answering<F, E> {
        #[pin]
        stage: Stage<F, E>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F, E> {
        /// Decided from memory; nothing is left once it is given,
        Refused { response: Option<Response> },
        Admitted { #[pin] answer: F, admission: Admission },
        /// or by the server.
        Asked { answer: Boxed<E> },
    }
}

impl<F, E, R> Future for Answering<F, E>
where
    F: Future<Output = Result<R, E>>,
    R: IntoResponse,
{
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().stage.project() {
            StageProjection::Refused { response } => match response.take() {
                Some(response) => Ok(response),
                // There is nothing to say about a future that is asked after its end.
                None => return Poll::Pending,
            },
            StageProjection::Admitted { answer, admission } => {
                ready!(answer.poll(context)).map(|answer| concluded(answer.into_response(), admission))
            }
            StageProjection::Asked { answer } => ready!(answer.as_mut().poll(context)),
        })
    }
}

impl<F, E> std::fmt::Debug for Answering<F, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

/// Ends the request, and says in the answer what is left of the key's rate limit.
fn concluded(mut response: Response, admission: &Admission) -> Response {
    for (name, value) in admission.conclude() {
        insert(&mut response, name, &value);
    }
    response
}

/// Requires more of the key that a [`TollkeyLayer`] outside of it has let in.
pub fn require(requirement: impl Into<Requirement>) -> RequireLayer {
    RequireLayer(requirement.into())
}

/// The layer of [`require`].
#[derive(Debug, Clone)]
pub struct RequireLayer(Requirement);

impl<S> Layer<S> for RequireLayer {
    type Service = Require<S>;

    fn layer(&self, inner: S) -> Require<S> {
        Require { inner, requirement: self.0.clone() }
    }
}

/// The service of [`require`].
#[derive(Debug, Clone)]
pub struct Require<S> {
    inner: S,
    requirement: Requirement,
}

impl<S, B> Service<Request<B>> for Require<S>
where
    S: Service<Request<B>, Response: IntoResponse, Future: Send + 'static> + Send + 'static,
    B: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Boxed<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let admission = parts.extensions.get::<Admission>().ok_or_else(Refusal::unguarded);
        let allowed = admission.and_then(|admission| admission.require(&Seen::of(&parts).head(), &self.requirement));
        if let Err(refusal) = allowed {
            let response = refused(&refusal, &parts.headers);
            return Box::pin(async move { Ok(response) });
        }
        let answer = self.inner.call(Request::from_parts(parts, body));
        Box::pin(async move { answer.await.map(IntoResponse::into_response) })
    }
}

/// The key a request was let in with: an extractor. Reads as [`tollkey_middleware::VerifiedKey`].
#[derive(Debug, Clone)]
pub struct VerifiedKey(tollkey_middleware::VerifiedKey);

impl VerifiedKey {
    /// The key that a request was let in with, by the request's extensions: where there are no extractors, as in tonic and hyper.
    /// `None` where there is no [`TollkeyLayer`] around, or where it makes the key [optional](Requirement::optional) and none was
    /// presented.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Admission>()?.key().cloned().map(Self)
    }
}

impl std::ops::Deref for VerifiedKey {
    type Target = tollkey_middleware::VerifiedKey;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Why there is no [`VerifiedKey`].
#[derive(Debug, Clone)]
pub struct NoKey(Refusal);

impl IntoResponse for NoKey {
    fn into_response(self) -> Response {
        said(self.0.answer())
    }
}

impl<S: Sync> FromRequestParts<S> for VerifiedKey {
    type Rejection = NoKey;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoKey> {
        let admission = parts.extensions.get::<Admission>().ok_or_else(Refusal::unguarded);
        admission.and_then(Admission::needed_key).map(|key| Self(key.clone())).map_err(NoKey)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for VerifiedKey {
    type Rejection = NoKey;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, NoKey> {
        let admission = parts.extensions.get::<Admission>().ok_or_else(|| NoKey(Refusal::unguarded()))?;
        Ok(admission.key().map(|key| Self(key.clone())))
    }
}

/// A request as the guard reads it.
struct Seen<'a> {
    method: &'a Method,
    uri: &'a Uri,
    extensions: &'a Extensions,
    headers: HttpHeaders<'a>,
}

impl<'a> Seen<'a> {
    fn of(parts: &'a Parts) -> Self {
        let Parts { method, uri, extensions, headers, .. } = parts;
        Self { method, uri, extensions, headers: HttpHeaders(headers) }
    }

    fn of_request<B>(request: &'a Request<B>) -> Self {
        let headers = HttpHeaders(request.headers());
        Self { method: request.method(), uri: request.uri(), extensions: request.extensions(), headers }
    }

    fn head(&self) -> RequestHead<'_> {
        // What a router has cut off is part of what was asked for.
        let uri = self.extensions.get::<OriginalUri>().map_or(self.uri, |original| &original.0);
        let peer = self.extensions.get::<ConnectInfo<SocketAddr>>();
        RequestHead {
            method: self.method.as_str(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()),
            peer: peer.map(|ConnectInfo(address)| address.ip()),
            headers: &self.headers,
        }
    }
}

struct HttpHeaders<'a>(&'a HeaderMap);

impl Headers for HttpHeaders<'_> {
    fn each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, value) in self.0 {
            show(name.as_str(), value.as_bytes());
        }
    }
}

/// A refusal in the language of the request: HTTP, or gRPC over it.
fn refused(refusal: &Refusal, headers: &HeaderMap) -> Response {
    let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    said(if headers.get(CONTENT_TYPE).is_some_and(is_grpc) { refusal.grpc_answer() } else { refusal.answer() })
}

fn said(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        insert(&mut response, name, &value);
    }
    response
}

fn insert(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
