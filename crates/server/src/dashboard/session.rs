//! The cookies of sessions and sign-ins, and the person who is signed in.

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

struct Names {
    /// Browsers accept a cookie with this prefix only over TLS, and only from and for this host.
    host: &'static str,
    /// For browsers that accept no `Secure` cookie from `http://127.0.0.1`. Only in development mode, which only the
    /// same machine can reach.
    plain: &'static str,
    same_site: SameSite,
}

const SESSION: Names = Names {
    host: "__Host-tollkey_session",
    plain: "tollkey_session",
    same_site: SameSite::Strict,
};
/// A sign-in in progress at an OpenID Connect provider. `Lax`, so that it is sent when the provider redirects back.
const ATTEMPT: Names = Names {
    host: "__Host-tollkey_sign_in",
    plain: "tollkey_sign_in",
    same_site: SameSite::Lax,
};
/// A test whether the browser accepts `Secure` cookies.
const PROBE: &str = "__Host-tollkey_probe";

impl Names {
    fn cookie_value<'a>(&self, state: &State, request: &'a HttpRequest) -> Option<&'a str> {
        let plain =
            || cookie_value(request, self.plain).filter(|_| state.request_settings.development);
        cookie_value(request, self.host).or_else(plain)
    }

    fn cookie<'a>(&self, value: &'a Secret, secure: bool) -> Cookie<'a> {
        cookie(
            if secure { self.host } else { self.plain },
            value,
            secure,
            self.same_site,
        )
    }

    fn delete(&self, response: &mut HttpResponse) {
        let empty = Secret::new("");
        for secure in [true, false] {
            let mut removal = self.cookie(&empty, secure);
            removal.make_removal();
            add(response, &removal);
        }
    }
}

/// The person whose session a request has.
#[derive(Debug, Clone)]
pub struct Visitor {
    pub active: ActiveSession,
    pub root: PublicPath,
}

/// A person who is signed in and manages an account.
#[derive(Debug, Clone)]
pub struct SignedIn {
    pub by: RequestActor,
    pub session: Session,
    pub root: PublicPath,
}

pub(super) async fn find(state: &State, request: &HttpRequest) -> Result<Option<Visitor>, Problem> {
    let Some(token) = SESSION.cookie_value(state, request) else {
        return Ok(None);
    };
    let (ip, methods) = (client_ip(request, state), state.sign_in.settings());
    let active = sessions::find(&state.service, ip, token, &methods).await?;
    let root = state.public_path.clone();
    Ok(active.map(|active| Visitor { active, root }))
}

/// Returns the value of a cookie with exactly this name. The framework's parser also decodes names: `%5F%5FHost-…`,
/// which a browser accepts from any subdomain, would count as `__Host-…`. Values of this server need no decoding.
fn cookie_value<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
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

pub(super) fn began_with(
    state: &State,
    request: &HttpRequest,
    visitor: &Visitor,
    settings: &SignInSettingsHash,
) -> bool {
    SESSION
        .cookie_value(state, request)
        .is_some_and(|token| visitor.active.session.began_with(settings, token))
}

/// Returns the hash by which the session in a request's cookie is looked up.
pub(super) fn presented(state: &State, request: &HttpRequest) -> Option<Digest> {
    SESSION.cookie_value(state, request).map(Digest::of_key)
}

/// Ends the browser's previous sessions. `previous` is one whose cookie the browser does not send now.
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

/// A redirect from a provider does not contain the probe, but the cookie of the sign-in.
fn is_secure(state: &State, request: &HttpRequest) -> bool {
    !state.request_settings.development
        || [PROBE, ATTEMPT.host]
            .iter()
            .any(|name| cookie_value(request, name).is_some())
}

pub(super) fn store_attempt(
    state: &State,
    request: &HttpRequest,
    attempt: &Attempt,
    mut response: HttpResponse,
) -> HttpResponse {
    let text = attempt.to_text();
    let mut attempt_cookie = ATTEMPT.cookie(&text, is_secure(state, request));
    attempt_cookie.set_max_age(Duration::seconds(Attempt::LIFETIME.as_secs()));
    add(&mut response, &attempt_cookie);
    response
}

pub(super) fn attempt(state: &State, request: &HttpRequest) -> Option<Attempt> {
    ATTEMPT.cookie_value(state, request).and_then(Attempt::read)
}

pub(super) fn delete_attempt(mut response: HttpResponse) -> HttpResponse {
    ATTEMPT.delete(&mut response);
    response
}

pub(super) fn delete_cookie(mut response: HttpResponse) -> HttpResponse {
    SESSION.delete(&mut response);
    response
}

/// [`begin`] looks for this cookie in the next request.
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
    // Adding fails only for an invalid name or value, and these are valid.
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

    pub fn operator(&self) -> Result<&Actor, Problem> {
        if self.session.is_operator {
            Ok(&self.by.actor)
        } else {
            Err(not_an_operator())
        }
    }
}

impl Visitor {
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

/// Returns the problem of a page outside of the session middleware, which is a programming error.
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
