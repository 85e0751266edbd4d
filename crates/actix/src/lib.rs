//! Protects actix-web routes with Tollkey.
//!
//! ```no_run
//! use actix_web::{App, HttpServer, Responder, web};
//! use tollkey_actix::{Guard, Tollkey, VerifiedKey, require};
//!
//! async fn list_links(key: VerifiedKey) -> impl Responder {
//!     format!("the links of {}, {} data", key.account_id(), key.mode())
//! }
//!
//! async fn create_link(key: VerifiedKey) -> impl Responder {
//!     "created"
//! }
//!
//! # async fn example(service_key: String) -> Result<(), Box<dyn std::error::Error>> {
//! let guard = Guard::connect("https://keys.example.com", service_key).await?;
//! HttpServer::new(move || {
//!     App::new().wrap(Tollkey::new(guard.clone())).service(
//!         web::resource("/api/v1/links")
//!             .route(web::get().to(list_links).wrap(require("links:read")))
//!             .route(web::post().to(create_link).wrap(require("links:write"))),
//!     )
//! })
//! .bind("127.0.0.1:8081")?
//! .run()
//! .await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Tollkey`] guards everything that it wraps: a request that presents no key, or one that may not make this request, gets its
//! response there (RFC 6750, RFC 9457). [`require`] asks for more at a scope, resource or route inside of it; a route without one
//! accepts any key. [`VerifiedKey`] is the key of the request, `Option<VerifiedKey>` where the key is
//! [optional](Requirement::optional). A handler asks for more with [`VerifiedKey::require`] and returns the [`Rejection`] as its
//! error. Without a [`Tollkey`] around it `VerifiedKey` is a 500, but `Option<VerifiedKey>` is `None`: actix-web makes that of every
//! extractor that fails.
//!
//! # What the middleware sees
//!
//! - The method and path on the wire. The features of a scoped key and the routes of a publishable key are compared with these.
//! - The peer's address. Behind a proxy, see [`GuardBuilder::trusted_proxies`].
//! - No body.
//!
//! # What belongs outside and inside
//!
//! actix-web runs the middleware that was wrapped last first. From the outside in: logging, CORS, Tollkey, then limits and timeouts.
//!
//! - **CORS outside**: a browser's preflight request (`OPTIONS`) presents no key, and scripts can read a rejection only if CORS headers
//!   are added to it. The example below exposes the headers of a rejection to them as well.
//! - **Limits inside**: so that only requests with a valid key count against them. A limit outside is shared with strangers.
//! - **Timeouts**: a key that is not cached is looked up within two seconds; a timeout outside of the middleware includes that.
//!
//! ```no_run
//! use actix_cors::Cors;
//! use actix_web::{App, http::header::AUTHORIZATION, web};
//! use tollkey_actix::{Guard, Tollkey, VerifiedKey};
//!
//! async fn list_links(key: VerifiedKey) -> String {
//!     format!("the links of {}", key.account_id())
//! }
//!
//! # fn example(guard: Guard) {
//! // Routes that the scripts of a web page may call.
//! let cors = Cors::default()
//!     .allowed_origin("https://shop.example.com")
//!     .allowed_methods(["GET", "POST"])
//!     .allowed_header(AUTHORIZATION)
//!     .expose_headers(["www-authenticate", "retry-after", "ratelimit", "ratelimit-policy"]);
//! let app = App::new()
//!     .wrap(Tollkey::new(guard))
//!     .wrap(cors)
//!     .route("/api/v1/links", web::get().to(list_links));
//! # }
//! ```
//!
//! # Long responses
//!
//! A request is authorized once, when it begins. A WebSocket or an event stream goes on when its key is revoked, unless the
//! handler ends it: [`VerifiedKey::revoked`] resolves at that moment.
#![forbid(unsafe_code)]

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

/// Guards what it wraps.
#[derive(Debug, Clone)]
pub struct Tollkey {
    guard: Guard,
    /// Shared by the requests that wait for the server.
    requirement: Arc<Requirement>,
}

impl Tollkey {
    /// Admits any key that may make the request.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self {
            guard,
            requirement: Arc::new(Requirement::any()),
        }
    }

    /// Requires this of every key.
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

/// A future in a box.
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
            outer.give_way_to(guard);
        }
        // Almost always the key is cached. Then no future is boxed.
        let checked = guard.check_cached(&Seen::of(request.request()).head(), requirement);
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
        let asked = async move {
            let checked = guard
                .check(&Seen::of(request.request()).head(), &requirement)
                .await;
            let admission = match checked {
                Ok(admission) => admission,
                Err(rejection) => return Ok(reject(request, &rejection)),
            };
            admit(&mut request, &admission);
            Ok(concluded(inner.call(request).await?, &admission))
        };
        ResponseFuture {
            stage: Stage::Asked {
                future: Box::pin(asked),
            },
        }
    }
}

/// Passes the admission on with the request, and marks the header with the key as sensitive, so that nothing inside logs it.
fn admit(request: &mut ServiceRequest, admission: &Admission) {
    if let Some(key) = admission.key() {
        // A constant needs no parsing.
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
        /// Decided from the cache,
        Rejected { response: Option<ServiceResponse<EitherBody<B>>> },
        Running { #[pin] future: F, admission: Admission },
        /// or by the server.
        Asked { future: Boxed<B> },
    }
}

impl<F, B> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
{
    type Output = Result<ServiceResponse<EitherBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().stage.project() {
            // A future that is polled after its end stays pending.
            StageProjection::Rejected { response } => response
                .take()
                .map_or(Poll::Pending, |one| Poll::Ready(Ok(one))),
            StageProjection::Running { future, admission } => Poll::Ready(
                ready!(future.poll(context)).map(|response| concluded(response, admission)),
            ),
            StageProjection::Asked { future } => future.as_mut().poll(context),
        }
    }
}

impl<F, B> std::fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Ends the request, and adds to the response what remains of the key's rate limit.
fn concluded<B>(
    mut response: ServiceResponse<B>,
    admission: &Admission,
) -> ServiceResponse<EitherBody<B>> {
    for (name, value) in admission.conclude() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response.map_into_left_body()
}

/// Requires more of the key that a [`Tollkey`] outside of it has admitted: scopes by name (`require("links:read")`,
/// `require(["links:read", "events:read"])`), or a [`Requirement`].
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
            admission.require(&Seen::of(request.request()).head(), &self.requirement)
        });
        if let Err(rejection) = allowed {
            return Box::pin(ready(Ok(reject(request, &rejection))));
        }
        let response = self.inner.call(request);
        Box::pin(async move { response.await.map(ServiceResponse::map_into_left_body) })
    }
}

/// A request as the guard reads it.
struct Seen<'a> {
    request: &'a HttpRequest,
    headers: HttpHeaders<'a>,
}

impl<'a> Seen<'a> {
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
    fn each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
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
