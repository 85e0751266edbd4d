#![doc = include_str!("../README.md")]
//!
//! # Main types
//!
//! | type | use |
//! |---|---|
//! | [`Tollkey`], [`require`] | the middleware around routes, and further requirements of a route |
//! | [`VerifiedKey`] | the key of a request, as an extractor |
//! | [`Guard`], [`GuardBuilder`] | the connection to the server, and its settings |
//! | [`Requirement`], [`MerchantSource`] | what a route requires |
//! | [`Rejection`] | the reason for rejecting a request, and the response |
//! | `testing::TestKeys` | with the feature `test-util`: a guard without a server |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::{
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, HttpMessage as _, HttpRequest, ResponseError as _,
    body::{EitherBody, MessageBody},
    dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready},
    http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};
use pin_project_lite::pin_project;
pub use tollkey_middleware::*;

/// A middleware that authorizes the requests to the services that it wraps.
#[derive(Debug, Clone)]
pub struct Tollkey {
    guard: Guard,
    /// Shared by the requests that wait for the server.
    requirement: Arc<Requirement>,
}

impl Tollkey {
    /// Creates a middleware without a [requirement](Self::require): it admits every key whose restrictions allow the
    /// request.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self {
            guard,
            requirement: Arc::new(Requirement::any()),
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
}

impl<S, B> Transform<S, ServiceRequest> for Tollkey
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type InitError = ();
    type Transform = TollkeyService<S>;
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: S) -> Self::Future {
        ready(Ok(TollkeyService {
            inner: Rc::new(inner),
            layer: self.clone(),
        }))
    }
}

/// The service of [`Tollkey`].
#[derive(Debug)]
pub struct TollkeyService<S> {
    inner: Rc<S>,
    layer: Tollkey,
}

type Boxed<B> = Pin<Box<dyn Future<Output = Result<ServiceResponse<EitherBody<B>>, Error>>>>;

impl<S, B> Service<ServiceRequest> for TollkeyService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = ResponseFuture<S::Future, B>;

    forward_ready!(inner);

    fn call(&self, mut request: ServiceRequest) -> Self::Future {
        let Tollkey { guard, requirement } = &self.layer;
        if let Some(outer) = request.extensions().get::<Admission>() {
            outer.cancel_if_same_guard(guard);
        }
        // Usually the key is cached. In this case no future is boxed.
        let checked = guard.check_cached(&RequestParts::of(request.request()).head(), requirement);
        if let Some(checked) = checked {
            let stage = match checked {
                Ok(admission) => {
                    admit(&mut request, &admission);
                    Stage::Running {
                        future: self.inner.call(request),
                        admission,
                    }
                }
                Err(rejection) => Stage::Rejected {
                    response: Some(reject(request, &rejection)),
                },
            };
            return ResponseFuture { stage };
        }
        let inner = Rc::clone(&self.inner);
        let Tollkey { guard, requirement } = self.layer.clone();
        let looking_up = async move {
            let checked = guard
                .check(&RequestParts::of(request.request()).head(), &requirement)
                .await;
            let admission = match checked {
                Ok(admission) => admission,
                Err(rejection) => return Ok(reject(request, &rejection)),
            };
            admit(&mut request, &admission);
            Ok(conclude(inner.call(request).await?, &admission))
        };
        ResponseFuture {
            stage: Stage::LookingUp {
                future: Box::pin(looking_up),
            },
        }
    }
}

/// Adds the admission to the request, and marks the header with the key as sensitive, so that inner services
/// do not log it.
fn admit(request: &mut ServiceRequest, admission: &Admission) {
    if let Some(key) = admission.key() {
        // The most common header name is a constant, so that it is not parsed for each request.
        let name = match key.credential_header() {
            "authorization" => AUTHORIZATION,
            other => HeaderName::from_static(other),
        };
        if let Some(credential) = request.headers_mut().get_mut(name) {
            credential.set_sensitive(true);
        }
    }
    request.extensions_mut().insert(admission.clone());
}

pin_project! {
    /// The future of [`TollkeyService`].
    pub struct ResponseFuture<F, B> {
        #[pin]
        stage: Stage<F, B>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F, B> {
        Rejected { response: Option<ServiceResponse<EitherBody<B>>> },
        Running { #[pin] future: F, admission: Admission },
        /// The look-up at the server, and the inner service after it.
        LookingUp { future: Boxed<B> },
    }
}

impl<F, B> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
{
    type Output = Result<ServiceResponse<EitherBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().stage.project() {
            // A future that is polled after completion stays pending.
            StageProjection::Rejected { response } => response
                .take()
                .map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            StageProjection::Running { future, admission } => Poll::Ready(
                ready!(future.poll(context)).map(|response| conclude(response, admission)),
            ),
            StageProjection::LookingUp { future } => future.as_mut().poll(context),
        }
    }
}

impl<F, B> std::fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Counts the request, and adds the state of the key's rate limit to the response.
fn conclude<B>(
    mut response: ServiceResponse<B>,
    admission: &Admission,
) -> ServiceResponse<EitherBody<B>> {
    for (name, value) in admission.commit() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response.map_into_left_body()
}

/// Returns a middleware that checks a further requirement of requests that an outer [`Tollkey`] has admitted.
///
/// The requirement is one or more scopes (`require("links:read")`, `require(["links:read", "events:read"])`), or a
/// [`Requirement`].
pub fn require(requirement: impl Into<Requirement>) -> Require {
    Require(requirement.into())
}

/// The middleware of [`require`].
#[derive(Debug, Clone)]
pub struct Require(Requirement);

impl<S, B> Transform<S, ServiceRequest> for Require
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type InitError = ();
    type Transform = RequireService<S>;
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: S) -> Self::Future {
        ready(Ok(RequireService {
            inner,
            requirement: self.0.clone(),
        }))
    }
}

/// The service of [`require`].
#[derive(Debug)]
pub struct RequireService<S> {
    inner: S,
    requirement: Requirement,
}

impl<S, B> Service<ServiceRequest> for RequireService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = Boxed<B>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let admission = request
            .extensions()
            .get::<Admission>()
            .cloned()
            .ok_or_else(Rejection::unguarded);
        let allowed = admission.and_then(|admission| {
            admission.require(
                &RequestParts::of(request.request()).head(),
                &self.requirement,
            )
        });
        if let Err(rejection) = allowed {
            return Box::pin(ready(Ok(reject(request, &rejection))));
        }
        let response = self.inner.call(request);
        Box::pin(async move { response.await.map(ServiceResponse::map_into_left_body) })
    }
}

struct RequestParts<'a> {
    request: &'a HttpRequest,
    headers: HttpHeaders<'a>,
}

impl<'a> RequestParts<'a> {
    fn of(request: &'a HttpRequest) -> Self {
        Self {
            request,
            headers: HttpHeaders(request.headers()),
        }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.request.method().as_str(),
            target: self
                .request
                .uri()
                .path_and_query()
                .map_or("/", |target| target.as_str()),
            peer: self.request.peer_addr().map(|address| address.ip()),
            headers: &self.headers,
            form: RejectionForm::Problem,
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

fn reject<B>(request: ServiceRequest, rejection: &Rejection) -> ServiceResponse<EitherBody<B>> {
    request
        .into_response(rejection.error_response())
        .map_into_right_body()
}
