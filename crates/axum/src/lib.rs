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
//! Serve the app with `into_make_service_with_connect_info::<SocketAddr>()`: a key that is bound to addresses is refused where the
//! address of the other end is not known.
#![forbid(unsafe_code)]

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts, OriginalUri},
    http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use tollkey_middleware::{Admission, Headers, RequestHead};
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

/// What both services answer with.
type Answer<E> = Pin<Box<dyn Future<Output = Result<Response, E>> + Send>>;

impl<S, B> Service<Request<B>> for Tollkey<S>
where
    S: Service<Request<B>, Response: IntoResponse, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready, and a clone in its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let TollkeyLayer { guard, requirement } = self.layer.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            if let Some(outer) = parts.extensions.get::<Admission>() {
                outer.give_way_to(&guard);
            }
            let admission = match guard.check(&Seen::of(&parts).head(), &requirement).await {
                Ok(admission) => admission,
                Err(refusal) => return Ok(refused(&refusal)),
            };
            parts.extensions.insert(admission.clone());
            let mut response = inner.call(Request::from_parts(parts, body)).await?.into_response();
            for (name, value) in admission.conclude() {
                insert(&mut response, name, &value);
            }
            Ok(response)
        })
    }
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
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let admission = parts.extensions.get::<Admission>().ok_or_else(Refusal::unguarded);
        let allowed = admission.and_then(|admission| admission.require(&Seen::of(&parts).head(), &self.requirement));
        if let Err(refusal) = allowed {
            return Box::pin(async move { Ok(refused(&refusal)) });
        }
        let answer = self.inner.call(Request::from_parts(parts, body));
        Box::pin(async move { answer.await.map(IntoResponse::into_response) })
    }
}

/// The key a request was let in with: an extractor. Reads as [`tollkey_middleware::VerifiedKey`].
#[derive(Debug, Clone)]
pub struct VerifiedKey(tollkey_middleware::VerifiedKey);

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
        refused(&self.0)
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
    parts: &'a Parts,
    headers: HttpHeaders<'a>,
}

impl<'a> Seen<'a> {
    fn of(parts: &'a Parts) -> Self {
        Self { parts, headers: HttpHeaders(&parts.headers) }
    }

    fn head(&self) -> RequestHead<'_> {
        // What a router has cut off is part of what was asked for.
        let uri = self.parts.extensions.get::<OriginalUri>().map_or(&self.parts.uri, |original| &original.0);
        let peer = self.parts.extensions.get::<ConnectInfo<SocketAddr>>();
        RequestHead {
            method: self.parts.method.as_str(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()),
            peer: peer.map(|ConnectInfo(address)| address.ip()),
            headers: &self.headers,
        }
    }
}

struct HttpHeaders<'a>(&'a HeaderMap);

impl Headers for HttpHeaders<'_> {
    fn nth(&self, name: &str, n: usize) -> Option<&[u8]> {
        // To look a name up it would have to be parsed and hashed each time: for the few headers of a request, going through
        // them is faster.
        self.0
            .iter()
            .filter(|(own, _)| own.as_str().eq_ignore_ascii_case(name))
            .nth(n)
            .map(|(_, value)| value.as_bytes())
    }
}

fn refused(refusal: &Refusal) -> Response {
    let answer = refusal.answer();
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
