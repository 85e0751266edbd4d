//! Protects actix-web routes with Tollkey.
//!
//! ```no_run
//! use actix_web::{App, HttpServer, Responder, web};
//! use tollkey_actix::{Guard, Scope, Tollkey, VerifiedKey, require};
//!
//! async fn list_links(key: VerifiedKey) -> impl Responder {
//!     format!("the links of {}, {} data", key.account_id(), key.mode())
//! }
//!
//! async fn create_link(key: VerifiedKey) -> impl Responder {
//!     "made"
//! }
//!
//! # async fn example(service_key: String) -> Result<(), Box<dyn std::error::Error>> {
//! let guard = Guard::connect("https://keys.example.com", service_key).await?;
//! HttpServer::new(move || {
//!     App::new().wrap(Tollkey::new(guard.clone())).service(
//!         web::resource("/api/v1/links")
//!             .route(web::get().to(list_links).wrap(require(Scope::LINKS_READ)))
//!             .route(web::post().to(create_link).wrap(require(Scope::LINKS_WRITE))),
//!     )
//! })
//! .bind("127.0.0.1:8081")?
//! .run()
//! .await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Tollkey`] guards whatever it wraps: a request without a key that may make it is answered there (RFC 6750, RFC 9457).
//! [`require`] asks for more at a scope, resource or route inside of it; a route without one takes any key. [`VerifiedKey`] is who
//! calls, and `Option<VerifiedKey>` where the key is [optional](Requirement::optional). Without a [`Tollkey`] around it
//! `VerifiedKey` is a 500, but `Option<VerifiedKey>` is `None`: actix-web makes that of every extractor that fails.
#![forbid(unsafe_code)]

use std::{
    future::{Future, Ready, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, FromRequest, HttpMessage as _, HttpRequest, HttpResponse, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{Payload, Service, ServiceRequest, ServiceResponse, Transform, forward_ready},
    http::{
        StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
};
use pin_project_lite::pin_project;
use tollkey_middleware::{Admission, Answer, Headers, RequestHead};
pub use tollkey_middleware::{ConnectError, Family, Guard, GuardBuilder, Merchant, Mode, Refusal, Requirement, Scope};

#[cfg(feature = "test-util")]
pub use tollkey_middleware::testing;

/// Guards what it wraps.
#[derive(Debug, Clone)]
pub struct Tollkey {
    guard: Guard,
    /// Shared: each request takes one along.
    requirement: Arc<Requirement>,
}

impl Tollkey {
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
        ready(Ok(TollkeyService { inner: Rc::new(inner), layer: self.clone() }))
    }
}

/// The service of [`Tollkey`].
#[derive(Debug)]
pub struct TollkeyService<S> {
    inner: Rc<S>,
    layer: Tollkey,
}

/// An answer in a box.
type Answered<B> = Pin<Box<dyn Future<Output = Result<ServiceResponse<EitherBody<B>>, Error>>>>;

impl<S, B> Service<ServiceRequest> for TollkeyService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = Error;
    type Future = Answering<S::Future, B>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let Tollkey { guard, requirement } = &self.layer;
        if let Some(outer) = request.extensions().get::<Admission>() {
            outer.give_way_to(guard);
        }
        // Almost always the key is remembered. Then no future is put into a box.
        let checked = guard.check_remembered(&Seen::of(request.request()).head(), requirement);
        if let Some(checked) = checked {
            let stage = match checked {
                Ok(admission) => {
                    request.extensions_mut().insert(admission.clone());
                    Stage::Admitted { answer: self.inner.call(request), admission }
                }
                Err(refusal) => Stage::Refused { response: Some(refuse(request, &refusal)) },
            };
            return Answering { stage };
        }
        let inner = Rc::clone(&self.inner);
        let Tollkey { guard, requirement } = self.layer.clone();
        let asked = async move {
            let checked = guard.check(&Seen::of(request.request()).head(), &requirement).await;
            let admission = match checked {
                Ok(admission) => admission,
                Err(refusal) => return Ok(refuse(request, &refusal)),
            };
            request.extensions_mut().insert(admission.clone());
            Ok(concluded(inner.call(request).await?, &admission))
        };
        Answering { stage: Stage::Asked { answer: Box::pin(asked) } }
    }
}

pin_project! {
    /// The answer of [`TollkeyService`].
    pub struct Answering<F, B> {
        #[pin]
        stage: Stage<F, B>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F, B> {
        /// Decided from memory; nothing is left once it is given,
        Refused { response: Option<ServiceResponse<EitherBody<B>>> },
        Admitted { #[pin] answer: F, admission: Admission },
        /// or by the server.
        Asked { answer: Answered<B> },
    }
}

impl<F, B> Future for Answering<F, B>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
{
    type Output = Result<ServiceResponse<EitherBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().stage.project() {
            // There is nothing to say about a future that is asked after its end.
            StageProjection::Refused { response } => response.take().map_or(Poll::Pending, |one| Poll::Ready(Ok(one))),
            StageProjection::Admitted { answer, admission } => {
                Poll::Ready(ready!(answer.poll(context)).map(|response| concluded(response, admission)))
            }
            StageProjection::Asked { answer } => answer.as_mut().poll(context),
        }
    }
}

impl<F, B> std::fmt::Debug for Answering<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

/// Ends the request, and says in the answer what is left of the key's rate limit.
fn concluded<B>(mut response: ServiceResponse<B>, admission: &Admission) -> ServiceResponse<EitherBody<B>> {
    for (name, value) in admission.conclude() {
        insert(response.headers_mut(), name, &value);
    }
    response.map_into_left_body()
}

/// Requires more of the key that a [`Tollkey`] outside of it has let in.
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
        ready(Ok(RequireService { inner, requirement: self.0.clone() }))
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
    type Future = Answered<B>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let admission = request.extensions().get::<Admission>().cloned().ok_or_else(Refusal::unguarded);
        let allowed =
            admission.and_then(|admission| admission.require(&Seen::of(request.request()).head(), &self.requirement));
        if let Err(refusal) = allowed {
            return Box::pin(ready(Ok(refuse(request, &refusal))));
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map(ServiceResponse::map_into_left_body) })
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

impl std::fmt::Display for NoKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl ResponseError for NoKey {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        refused(&self.0)
    }
}

impl FromRequest for VerifiedKey {
    type Error = NoKey;
    type Future = Ready<Result<Self, NoKey>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let extensions = request.extensions();
        let admission = extensions.get::<Admission>().ok_or_else(Refusal::unguarded);
        ready(admission.and_then(Admission::needed_key).map(|key| Self(key.clone())).map_err(NoKey))
    }
}

/// A request as the guard reads it.
struct Seen<'a> {
    request: &'a HttpRequest,
    headers: HttpHeaders<'a>,
}

impl<'a> Seen<'a> {
    fn of(request: &'a HttpRequest) -> Self {
        Self { request, headers: HttpHeaders(request.headers()) }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.request.method().as_str(),
            target: self.request.uri().path_and_query().map_or("/", |target| target.as_str()),
            peer: self.request.peer_addr().map(|address| address.ip()),
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

fn refuse<B>(request: ServiceRequest, refusal: &Refusal) -> ServiceResponse<EitherBody<B>> {
    request.into_response(refused(refusal)).map_into_right_body()
}

fn refused(refusal: &Refusal) -> HttpResponse {
    let Answer { status, headers, body, .. } = refusal.answer();
    let mut response = HttpResponse::new(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    for (name, value) in headers {
        insert(response.headers_mut(), name, &value);
    }
    response.set_body(body).map_into_boxed_body()
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
