//! The cookie of a session, and who it is.

use actix_web::{
    FromRequest, HttpMessage as _, HttpRequest, HttpResponse,
    cookie::{Cookie, SameSite, time::Duration},
    dev::Payload,
    http::header,
};
use std::future::{Ready, ready};
use tollkey_api::Secret;
use tollkey_core::{
    Digest, Problem,
    audit::{Actor, ActorKind},
    session::{Session, SignIn, SignInSettingsHash},
};
use tollkey_service::{
    RequestActor,
    sessions::{self, ActiveSession},
};

use crate::{
    auth::{client_ip, oidc::Attempt},
    public_path::PublicPath,
    rejection::Rejection,
    request_id::request_id,
    state::State,
};

/// The two names of a cookie of ours.
struct Names {
    /// A browser takes a cookie of such a name only for this host, over TLS, from this host itself.
    host: &'static str,
    /// For browsers that take no `Secure` cookie from `http://127.0.0.1`: in development mode, which only that machine
    /// reaches.
    plain: &'static str,
    same_site: SameSite,
}

/// A session.
const SESSION: Names = Names {
    host: "__Host-tollkey_session",
    plain: "tollkey_session",
    same_site: SameSite::Strict,
};
/// A sign-in under way at an OpenID Connect provider. `Lax`: it is to be sent when the provider sends somebody back.
const ATTEMPT: Names = Names {
    host: "__Host-tollkey_sign_in",
    plain: "tollkey_sign_in",
    same_site: SameSite::Lax,
};
/// Asks a browser whether it takes such cookies.
const PROBE: &str = "__Host-tollkey_probe";

impl Names {
    /// The value that a request brings.
    fn brought<'a>(&self, state: &State, request: &'a HttpRequest) -> Option<&'a str> {
        let plain = || brought(request, self.plain).filter(|_| state.policy.development);
        brought(request, self.host).or_else(plain)
    }

    fn cookie<'a>(&self, value: &'a Secret, secure: bool) -> Cookie<'a> {
        cookie(
            if secure { self.host } else { self.plain },
            value,
            secure,
            self.same_site,
        )
    }

    /// Has the browser forget it.
    fn forget(&self, response: &mut HttpResponse) {
        let nothing = Secret::new("");
        for secure in [true, false] {
            let mut gone = self.cookie(&nothing, secure);
            gone.make_removal();
            add(response, &gone);
        }
    }
}

/// The person whose session a request has.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The session.
    pub active: ActiveSession,
    /// The path prefix of the links on the person's pages.
    pub root: PublicPath,
}

/// Somebody who is signed in and manages an account.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// As every service knows them.
    pub by: RequestActor,
    /// Their session.
    pub session: Session,
    /// The path prefix of the links on their pages.
    pub root: PublicPath,
}

/// Returns the person whose session a request has.
///
/// # Errors
/// `unavailable`.
pub(super) async fn find(state: &State, request: &HttpRequest) -> Result<Option<Visitor>, Problem> {
    let Some(token) = SESSION.brought(state, request) else {
        return Ok(None);
    };
    let (ip, methods) = (client_ip(request, state), state.sign_in.settings());
    let active = sessions::find(&state.service, ip, token, &methods).await?;
    let root = state.public_path.clone();
    Ok(active.map(|active| Visitor { active, root }))
}

/// The value of a cookie of exactly this name. The framework's own reader also decodes names: `%5F%5FHost-…`, which a browser
/// takes from any sub-domain, would count as `__Host-…`. Our values need no decoding.
fn brought<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let pairs = request
        .headers()
        .get_all(header::COOKIE)
        .flat_map(|all| all.as_bytes().split(|byte| *byte == b';'));
    let value = |pair: &'a [u8]| {
        pair.trim_ascii()
            .strip_prefix(name.as_bytes())?
            .strip_prefix(b"=")
    };
    pairs
        .filter_map(value)
        .find_map(|value| std::str::from_utf8(value).ok())
}

/// Whether the session of a request began by a sign-in with these settings.
pub(super) fn began_with(
    state: &State,
    request: &HttpRequest,
    visitor: &Visitor,
    settings: &SignInSettingsHash,
) -> bool {
    SESSION
        .brought(state, request)
        .is_some_and(|token| visitor.active.session.began_with(settings, token))
}

/// What the session in a request's cookie would be found by.
pub(super) fn presented(state: &State, request: &HttpRequest) -> Option<Digest> {
    SESSION.brought(state, request).map(Digest::of)
}

/// Begins a session, and ends the one that this browser had: a new one gets a new cookie. `previous` is a session whose
/// cookie the browser does not send with this request.
///
/// # Errors
/// `unavailable`.
pub(super) async fn begin(
    state: &State,
    request: &HttpRequest,
    sign_in: SignIn,
    previous: Option<Digest>,
    mut response: HttpResponse,
) -> Result<HttpResponse, Problem> {
    let previous = presented(state, request).into_iter().chain(previous);
    let ip = client_ip(request, state);
    let token = sessions::begin(&state.service, ip, sign_in, previous.collect()).await?;
    let token = Secret::new(token.as_str());
    add(
        &mut response,
        &SESSION.cookie(&token, is_secure(state, request)),
    );
    Ok(response)
}

/// Whether the browser takes a `Secure` cookie from here. On the way back from a provider the probe is not sent, and the
/// cookie of the sign-in says it.
fn is_secure(state: &State, request: &HttpRequest) -> bool {
    !state.policy.development
        || [PROBE, ATTEMPT.host]
            .iter()
            .any(|name| brought(request, name).is_some())
}

/// Has the browser keep a sign-in under way.
pub(super) fn keep_attempt(
    state: &State,
    request: &HttpRequest,
    attempt: &Attempt,
    mut response: HttpResponse,
) -> HttpResponse {
    let text = attempt.to_text();
    let mut kept = ATTEMPT.cookie(&text, is_secure(state, request));
    kept.set_max_age(Duration::seconds(Attempt::LASTS.as_secs()));
    add(&mut response, &kept);
    response
}

/// The sign-in under way in this browser.
pub(super) fn attempt(state: &State, request: &HttpRequest) -> Option<Attempt> {
    ATTEMPT.brought(state, request).and_then(Attempt::read)
}

/// Has the browser forget a sign-in: it was used.
pub(super) fn forget_attempt(mut response: HttpResponse) -> HttpResponse {
    ATTEMPT.forget(&mut response);
    response
}

/// Has the browser delete the cookie of its session.
pub(super) fn forget(mut response: HttpResponse) -> HttpResponse {
    SESSION.forget(&mut response);
    response
}

/// Finds out whether the browser takes a `Secure` cookie from here; [`begin`] sees it in the next request.
pub(super) fn probe(mut response: HttpResponse) -> HttpResponse {
    add(
        &mut response,
        &cookie(PROBE, &Secret::new("1"), true, SameSite::Strict),
    );
    response
}

fn cookie<'a>(
    name: &'static str,
    value: &'a Secret,
    secure: bool,
    same_site: SameSite,
) -> Cookie<'a> {
    Cookie::build(name, value.expose())
        .path("/")
        .http_only(true)
        .secure(secure)
        .same_site(same_site)
        .finish()
}

fn add(response: &mut HttpResponse, cookie: &Cookie<'_>) {
    // Our own names and values are well-formed.
    let _ = response.add_cookie(cookie);
}

impl SignedIn {
    fn of(request: &HttpRequest) -> Option<Self> {
        let Visitor { active, root } = request.extensions().get::<Visitor>().cloned()?;
        let session = active.session;
        let state = request.app_data::<actix_web::web::Data<State>>()?;
        let kind = if session.is_operator {
            ActorKind::Operator
        } else {
            ActorKind::Merchant
        };
        let by = RequestActor {
            account_id: session.account_id.clone()?,
            actor: Actor {
                kind,
                id: session.subject.clone(),
            },
            request_id: Some(request_id(request)),
            ip: client_ip(request, state),
            parent: None,
        };
        Some(Self { by, session, root })
    }

    /// Who it is, if it is an operator.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn operator(&self) -> Result<&Actor, Problem> {
        if self.session.is_operator {
            Ok(&self.by.actor)
        } else {
            Err(not_an_operator())
        }
    }
}

impl Visitor {
    /// Lets operators pass.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn operator(&self) -> Result<(), Problem> {
        if self.active.session.is_operator {
            Ok(())
        } else {
            Err(not_an_operator())
        }
    }
}

fn not_an_operator() -> Problem {
    Problem::forbidden("This action requires an operator.")
}

/// A page inside the gate has them; one outside of it would be our mistake.
fn missing() -> Rejection {
    Problem::internal().into()
}

impl FromRequest for SignedIn {
    type Error = Rejection;
    type Future = Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request).ok_or_else(missing))
    }
}

impl FromRequest for Visitor {
    type Error = Rejection;
    type Future = Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(
            request
                .extensions()
                .get::<Self>()
                .cloned()
                .ok_or_else(missing),
        )
    }
}
