#![doc = include_str!("../README.md")]
//!
//! # Main types
//!
//! | type | use |
//! |---|---|
//! | [`TollkeyLayer`], [`require`] | the layer around routes, and further requirements of a route |
//! | [`VerifiedKey`] | the key of a request, as an extractor |
//! | [`Guard`], [`GuardBuilder`] | the connection to the server, and its settings |
//! | [`Requirement`], [`MerchantSource`] | what a route requires |
//! | [`Rejection`] | the reason for rejecting a request, and the response |
//! | `testing::TestKeys` | with the feature `test-util`: a guard without a server |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod body;

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use axum::{
    extract::{ConnectInfo, OriginalUri, connect_info::MockConnectInfo},
    http::{
        Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
        header::CONTENT_TYPE, request::Parts,
    },
    response::{IntoResponse, Response},
};
use http_body::Body as HttpBody;
use pin_project_lite::pin_project;
pub use tollkey_middleware::*;
use tower_layer::Layer;
use tower_service::Service;

/// A layer that authorizes the requests to the services inside of it.
#[derive(Debug, Clone)]
pub struct TollkeyLayer {
    guard: Guard,
    /// Shared by the requests that wait for the server.
    requirement: Arc<Requirement>,
    grpc: bool,
}

impl TollkeyLayer {
    /// Creates a layer without a [requirement](Self::require): it admits every key whose restrictions allow
    /// the request.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self {
            guard,
            requirement: Arc::new(Requirement::any()),
            grpc: false,
        }
    }

    /// Sets a requirement for all requests.
    #[must_use]
    pub fn require(self, requirement: impl Into<Requirement>) -> Self {
        Self {
            requirement: Arc::new(requirement.into()),
            ..self
        }
    }

    /// Sends rejections of gRPC requests as gRPC statuses (`UNAUTHENTICATED`, `PERMISSION_DENIED`, …) with
    /// HTTP status 200, as gRPC clients expect. A gRPC request is a `POST` over HTTP/2 whose content type is
    /// `application/grpc` or begins with `application/grpc+`; any other request gets the usual response.
    ///
    /// Use this only around gRPC services: a proxy that reads the HTTP status would treat the rejection as a success.
    #[must_use]
    pub fn grpc(self) -> Self {
        Self { grpc: true, ..self }
    }

    /// Returns the form of a rejection: always a problem, unless [`grpc`](Self::grpc) was called.
    fn form(&self, method: &Method, version: Version, headers: &HeaderMap) -> RejectionForm {
        let is_grpc = |value: &HeaderValue| {
            let value = value.as_bytes();
            value == b"application/grpc" || value.starts_with(b"application/grpc+")
        };
        let is_grpc = || headers.get(CONTENT_TYPE).is_some_and(is_grpc);
        if self.grpc && *method == Method::POST && version == Version::HTTP_2 && is_grpc() {
            RejectionForm::Grpc
        } else {
            RejectionForm::Problem
        }
    }
}

impl<S> Layer<S> for TollkeyLayer {
    type Service = Tollkey<S>;

    fn layer(&self, inner: S) -> Tollkey<S> {
        Tollkey {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of [`TollkeyLayer`].
///
/// It is always ready. The inner service is polled for readiness only when a request is admitted, so that
/// rejected requests do not take a permit of an inner limit.
#[derive(Debug, Clone)]
pub struct Tollkey<S> {
    inner: S,
    layer: TollkeyLayer,
}

type Boxed<E> = Pin<Box<dyn Future<Output = Result<Response, E>> + Send>>;

impl<S, B> Service<Request<B>> for Tollkey<S>
where
    S: Service<Request<B>, Response: IntoResponse, Future: Send> + Clone + Send + 'static,
    B: HttpBody<Data: Send, Error: Send> + Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let TollkeyLayer {
            guard, requirement, ..
        } = &self.layer;
        if let Some(outer) = request.extensions().get::<Admission>() {
            outer.cancel_if_same_guard(guard);
        }
        let form = self
            .layer
            .form(request.method(), request.version(), request.headers());
        // Usually the key is cached. In this case no future is boxed and the service is not cloned.
        if let Some(checked) =
            guard.check_cached(&RequestParts::of_request(&request).head(form), requirement)
        {
            return match checked {
                Ok(admission) => {
                    hide_credential(request.headers_mut(), &admission);
                    request.extensions_mut().insert(admission.clone());
                    ResponseFuture::run(&mut self.inner, request, Some(admission))
                }
                Err(rejection) => ResponseFuture::reject(rejection, request),
            };
        }
        // The clone is not ready yet, so it holds no permit during the look-up.
        let mut inner = self.inner.clone();
        let TollkeyLayer {
            guard, requirement, ..
        } = self.layer.clone();
        let looking_up = async move {
            let (mut parts, body) = request.into_parts();
            let admission = match guard
                .check(&RequestParts::of(&parts).head(form), &requirement)
                .await
            {
                Ok(admission) => admission,
                Err(rejection) => {
                    body::discard(&parts.headers, body);
                    return Ok(rejection.into_response());
                }
            };
            hide_credential(&mut parts.headers, &admission);
            parts.extensions.insert(admission.clone());
            poll_fn(|context| inner.poll_ready(context)).await?;
            let response = inner.call(Request::from_parts(parts, body)).await?;
            Ok(conclude(response.into_response(), Some(&admission)))
        };
        ResponseFuture {
            stage: Stage::LookingUp {
                future: Box::pin(looking_up),
            },
            admission: None,
        }
    }
}

/// Marks the header with the key as sensitive, so that inner services do not log it.
fn hide_credential(headers: &mut HeaderMap, admission: &Admission) {
    if let Some(credential) = admission
        .key()
        .and_then(|key| headers.get_mut(key.credential_header()))
    {
        credential.set_sensitive(true);
    }
}

pin_project! {
    /// The future of [`Tollkey`] and [`Require`].
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        stage: Stage<S, B, S::Future, S::Error>,
        // Counted when the inner service has responded. `None` for `Require`, because the outer layer counts
        // the request, and for `LookingUp`, whose future counts it.
        admission: Option<Admission>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, B, F, E> {
        /// Rejected, or the inner service failed before the call.
        Done { outcome: Option<Result<Response, E>> },
        /// Admitted, but the inner service is not ready.
        Waiting { inner: S, request: Option<Request<B>> },
        Running { #[pin] future: F },
        /// The look-up at the server, and the inner service after it.
        LookingUp { future: Boxed<E> },
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>> + Clone,
{
    /// Calls the inner service, immediately if it is ready.
    fn run(inner: &mut S, request: Request<B>, admission: Option<Admission>) -> Self {
        // If it is not ready, the poll of `Waiting` registers the waker.
        let stage = match inner.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Stage::Running {
                future: inner.call(request),
            },
            Poll::Ready(Err(error)) => Stage::Done {
                outcome: Some(Err(error)),
            },
            Poll::Pending => {
                // The future keeps the service that was polled; a clone takes its place.
                let clone = inner.clone();
                Stage::Waiting {
                    inner: std::mem::replace(inner, clone),
                    request: Some(request),
                }
            }
        };
        Self { stage, admission }
    }

    fn reject(rejection: Rejection, request: Request<B>) -> Self
    where
        B: HttpBody<Data: Send, Error: Send> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        body::discard(&parts.headers, body);
        Self {
            stage: Stage::Done {
                outcome: Some(Ok(rejection.into_response())),
            },
            admission: None,
        }
    }
}

impl<S, B> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response: IntoResponse>,
{
    type Output = Result<Response, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let StageProjection::Waiting { inner, request } = this.stage.as_mut().project() {
            ready!(inner.poll_ready(context))?;
            // The request is taken only once, because the stage changes below.
            let Some(request) = request.take() else {
                return Poll::Pending;
            };
            let future = inner.call(request);
            this.stage.set(Stage::Running { future });
        }
        match this.stage.project() {
            StageProjection::Running { future } => {
                let response = ready!(future.poll(context))?;
                Poll::Ready(Ok(conclude(
                    response.into_response(),
                    this.admission.as_ref(),
                )))
            }
            StageProjection::LookingUp { future } => future.as_mut().poll(context),
            // A future that is polled after completion stays pending.
            StageProjection::Done { outcome } => outcome.take().map_or(Poll::Pending, Poll::Ready),
            StageProjection::Waiting { .. } => Poll::Pending,
        }
    }
}

impl<S: Service<Request<B>>, B> std::fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Counts the request, and adds the state of the key's rate limit to the response.
fn conclude(mut response: Response, admission: Option<&Admission>) -> Response {
    for (name, value) in admission.map(Admission::commit).unwrap_or_default() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Returns a layer that checks a further requirement of requests that an outer [`TollkeyLayer`] has admitted.
///
/// The requirement is one or more scopes (`require("links:read")`, `require(["links:read", "events:read"])`), or a
/// [`Requirement`].
pub fn require(requirement: impl Into<Requirement>) -> RequireLayer {
    RequireLayer(Arc::new(requirement.into()))
}

/// The layer of [`require`].
#[derive(Debug, Clone)]
pub struct RequireLayer(Arc<Requirement>);

impl<S> Layer<S> for RequireLayer {
    type Service = Require<S>;

    fn layer(&self, inner: S) -> Require<S> {
        Require {
            inner,
            requirement: Arc::clone(&self.0),
        }
    }
}

/// The service of [`require`]. It is always ready, like [`Tollkey`].
#[derive(Debug, Clone)]
pub struct Require<S> {
    inner: S,
    requirement: Arc<Requirement>,
}

impl<S, B> Service<Request<B>> for Require<S>
where
    S: Service<Request<B>, Response: IntoResponse> + Clone,
    B: HttpBody<Data: Send, Error: Send> + Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admission = request
            .extensions()
            .get::<Admission>()
            .ok_or_else(Rejection::unguarded);
        let head = RequestParts::of_request(&request);
        match admission.and_then(|admission| {
            admission.require(&head.head(RejectionForm::default()), &self.requirement)
        }) {
            Ok(()) => ResponseFuture::run(&mut self.inner, request, None),
            Err(rejection) => ResponseFuture::reject(rejection, request),
        }
    }
}

struct RequestParts<'a> {
    method: &'a Method,
    uri: &'a Uri,
    extensions: &'a Extensions,
    headers: HttpHeaders<'a>,
}

impl<'a> RequestParts<'a> {
    fn of(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            extensions: &parts.extensions,
            headers: HttpHeaders(&parts.headers),
        }
    }

    fn of_request<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            extensions: request.extensions(),
            headers: HttpHeaders(request.headers()),
        }
    }

    fn head(&self, form: RejectionForm) -> RequestHead<'_> {
        // The path as sent, with any prefix that a router has removed.
        let uri = self
            .extensions
            .get::<OriginalUri>()
            .map_or(self.uri, |original| &original.0);
        let peer = self.extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map(|ConnectInfo(address)| address);
        let mock = || {
            let mock = self.extensions.get::<MockConnectInfo<SocketAddr>>();
            mock.map(|MockConnectInfo(address)| address)
        };
        RequestHead {
            method: self.method.as_str(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()),
            peer: peer.or_else(mock).map(SocketAddr::ip),
            headers: &self.headers,
            form,
        }
    }
}

struct HttpHeaders<'a>(&'a HeaderMap);

impl Headers for HttpHeaders<'_> {
    fn for_each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, value) in self.0 {
            show(name.as_str(), value.as_bytes());
        }
    }
}
