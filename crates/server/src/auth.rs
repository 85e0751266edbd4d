//! Who is calling: the signature of a handler says who may call it.
//!
//! | extractor | who |
//! |---|---|
//! | [`Merchant`] | a management token of an account, or an operator's with `?account=` |
//! | [`AccountHolder`] | a Merchant, or an `sk_` key for its own account |
//! | [`Operator`] | a management token with the role `operator` |
//! | [`Verifying`] | a service key, a token with the role `service`, or an `sk_` key for its own account |
//! | [`PresentedKey`] | an API key of any family, about itself |
//!
//! A valid credential of the wrong kind is 403, an invalid one 401, none 401, several 400.

mod credential;
pub mod jwks;
pub mod jwt;
pub mod oidc;
pub(crate) mod published;

use std::{net::IpAddr, rc::Rc, sync::Arc};

use actix_web::{
    FromRequest, HttpMessage as _, HttpRequest,
    dev::Payload,
    http::header::{HeaderName, HeaderValue},
    web,
};
use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;
use tollkey_core::{
    AccountId, Denial, Family, Invalid, Mode, Need, Problem, ProblemCode, ServiceKeyId, Viewer,
    audit::{Actor, ActorKind},
    credential::is_jwt,
    key_text::{Kind, without_scheme},
    network::{UnreadableHop, client_address},
};
use tollkey_service::RequestActor;
use tollkey_verifier::{Known, RateStatus, Requester, Verdict};

pub use credential::{Credential, CredentialHeaders, Expected, credential};

use crate::{rejection::Rejection, state::State};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The id of a request, `X-Request-Id`; put beside the request by the edge.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Says when the caller of a request is known. Put beside a request whose client waits with the body until it is asked for
/// it (`Expect: 100-continue`): actix runs all extractors at the same time, and a caller who is rejected must not be asked.
#[derive(Debug, Clone)]
pub struct Identified(pub Rc<Notify>);

impl Identified {
    fn awaited(request: &HttpRequest) -> Option<Self> {
        request.head().expect().then(|| {
            let identified = Self(Rc::default());
            request.extensions_mut().insert(identified.clone());
            identified
        })
    }
}

/// The id of this request.
pub fn request_id(request: &HttpRequest) -> Arc<str> {
    request
        .extensions()
        .get::<RequestId>()
        .map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0))
}

/// The state every handler has.
fn state(request: &HttpRequest) -> Result<web::Data<State>, Rejection> {
    request
        .app_data::<web::Data<State>>()
        .cloned()
        .ok_or_else(|| Problem::new(ProblemCode::InternalError, "The server is not set up.").into())
}

/// Returns the address that a request comes from: the last hop of `X-Forwarded-For`, or the peer behind it, that is not a
/// trusted proxy. `None` when a trusted proxy does not tell.
///
/// # Errors
/// [`UnreadableHop`] when a trusted proxy tells something that is not an IP address; it is logged.
pub fn forwarded_ip(request: &HttpRequest, state: &State) -> Result<Option<IpAddr>, UnreadableHop> {
    let peer = request.peer_addr().map(|peer| peer.ip());
    let hops = || {
        request
            .headers()
            .get_all(FORWARDED_FOR)
            .map(HeaderValue::as_bytes)
            .collect()
    };
    client_address(peer, hops, &state.policy.trusted_proxies).inspect_err(|UnreadableHop| {
        if state.log_limits.unreadable_hop.allows(state.service.clock.elapsed()) {
            tracing::warn!(
                request_id = %request_id(request), peer = peer.map(tracing::field::display),
                "a trusted proxy sends X-Forwarded-For with a hop that is not an IP address; the client address is unknown \
                 and gateway routes deny the request"
            );
        }
    })
}

/// Returns the address that a request to the server's own surfaces comes from, as [`forwarded_ip`] does; `None` also where
/// that is an error.
pub fn client_ip(request: &HttpRequest, state: &State) -> Option<IpAddr> {
    forwarded_ip(request, state).unwrap_or_default()
}

/// A credential that was found valid, and whose it is.
enum Caller {
    Token(jwt::Claims),
    ServiceKey(ServiceKeyId),
    Key(Known),
}

/// What is left of the rate limit of the key that called, for the fields of the answer; put beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// As after this call.
    pub rate: RateStatus,
    /// In how many whole seconds a use is possible again, when none is left.
    pub retry_after_seconds: Option<u32>,
}

/// Judges an API key, and says a denial as HTTP does.
async fn judge(
    request: &HttpRequest,
    state: &State,
    text: &str,
    need: &Need<'_>,
) -> Result<Known, Problem> {
    let verdict = state
        .service
        .verify(|| requester(request, state), text, need)
        .await?;
    if let Some(rate) = verdict.rate {
        let retry_after_seconds = verdict.retry_after_seconds;
        request.extensions_mut().insert(Allowance {
            rate,
            retry_after_seconds,
        });
    }
    known(verdict, state, need)
}

/// Judges an API key that will be refused all the same: in the order of all denials, but as no use of it.
async fn look(
    request: &HttpRequest,
    state: &State,
    text: &str,
    need: &Need<'_>,
) -> Result<Known, Problem> {
    known(
        state
            .service
            .look(|| requester(request, state), text, need)
            .await?,
        state,
        need,
    )
}

/// The client that presents the credential of a request, for look-ups before the credential is known: by its address, where
/// that is known.
fn requester(request: &HttpRequest, state: &State) -> Requester {
    Requester::client(client_ip(request, state))
}

fn known(verdict: Verdict, state: &State, need: &Need<'_>) -> Result<Known, Problem> {
    match (verdict.outcome, verdict.record) {
        (Ok(()), Some(key)) => Ok(key),
        (Ok(()), None) => Err(Problem::invalid_api_key()),
        (Err(denial), record) => {
            let mut problem = Problem::denied(denial);
            problem.retry_after = verdict.retry_after_seconds.map(u64::from);
            if let (Denial::InsufficientScope, Some(key)) = (denial, record) {
                problem.missing_scopes = state
                    .service
                    .catalogue
                    .names(need.scopes.without(key.scopes))
                    .cloned()
                    .collect();
            }
            Err(problem)
        }
    }
}

/// Judges the API key that a request presents by what a gateway needs.
///
/// # Errors
/// As for every caller: none 401, several 400, invalid 401, of the wrong kind 403; and the denial.
pub async fn judge_presented(
    request: &HttpRequest,
    state: &State,
    need: &Need<'_>,
) -> Result<Known, Problem> {
    match presented_key(request, state) {
        Ok(text) => judge(request, state, text, need).await,
        Err(credential) => Err(no_key(request, state, credential).await),
    }
}

/// What to say of a presented key before the request is refused for a mistake of the gateway's: a stranger learns
/// nothing of that, and the key's rate limit does not pay for it.
///
/// # Errors
/// As [`judge_presented`], but for `rate_limited`.
pub async fn look_at_presented(
    request: &HttpRequest,
    state: &State,
    need: &Need<'_>,
) -> Result<Known, Problem> {
    match presented_key(request, state) {
        Ok(text) => look(request, state, text, need).await,
        Err(credential) => Err(no_key(request, state, credential).await),
    }
}

/// The one credential in the headers that gateway routes read, if it has the form of an API key.
///
/// # Errors
/// What the request presents instead.
fn presented_key<'a>(request: &'a HttpRequest, state: &State) -> Result<&'a str, Credential<'a>> {
    match credential(request.headers(), state.policy.credential_headers) {
        Credential::One(text) if matches!(Kind::of(without_scheme(text)), Some(Kind::Key(..))) => {
            Ok(text)
        }
        other => Err(other),
    }
}

/// The problem of a request to a gateway route that presents no API key: no credential, several, an invalid one, or one of
/// the wrong kind.
async fn no_key(request: &HttpRequest, state: &State, credential: Credential<'_>) -> Problem {
    let expected = Expected::ApiKey;
    match credential.one(state.policy.credential_headers, expected) {
        Err(problem) => problem,
        Ok(text) if is_jwt(text) => match identify_token(request, state, text).await {
            Ok(_) => Problem::forbidden(NEEDS_KEY),
            Err(problem) => Problem {
                detail: format!("{} {NEEDS_KEY}", problem.detail),
                ..problem
            },
        },
        // Verification knows service keys no more than any other text that is no API key.
        Ok(text) => expected.problem(text),
    }
}

/// Finds out who presents the request's one credential. A key of a family that is not `wanted` here will be refused, and
/// is not used by that.
async fn identify(
    request: &HttpRequest,
    state: &State,
    wanted: &[Family],
) -> Result<Caller, Problem> {
    let headers = CredentialHeaders::default();
    let text = credential(request.headers(), headers).one(headers, Expected::Any)?;
    match Kind::of(without_scheme(text)) {
        Some(Kind::Key(family, _)) => {
            let need = Need {
                identity_only: true,
                client_ip: client_ip(request, state),
                ..Need::default()
            };
            let key = if wanted.contains(&family) {
                judge(request, state, text, &need).await
            } else {
                look(request, state, text, &need).await
            };
            key.map(Caller::Key)
        }
        Some(Kind::ServiceKey) => {
            let id = state
                .service
                .verifier
                .verify_service_key(text, client_ip(request, state))
                .await
                .map_err(|_| Problem::unavailable())?;
            id.map(Caller::ServiceKey)
                .ok_or_else(Problem::invalid_api_key)
        }
        None if is_jwt(text) => identify_token(request, state, text)
            .await
            .map(Caller::Token),
        None => Err(Expected::Any.problem(text)),
    }
}

async fn identify_token(
    request: &HttpRequest,
    state: &State,
    text: &str,
) -> Result<jwt::Claims, Problem> {
    let claims = state
        .tokens
        .verify(text, state.service.clock.now())
        .await
        .map_err(|error| {
            tracing::debug!(%error, "a management token was refused");
            if error.is_unavailable() {
                return Problem::unavailable();
            }
            Problem::new(
                ProblemCode::InvalidToken,
                "The management token is not valid, or has expired.",
            )
        })?;
    not_forwarded(request, state)?;
    Ok(claims)
}

/// Development mode is for the machine it runs on: whoever manages must not have come through a proxy, which others reach.
///
/// # Errors
/// `forbidden`.
pub fn not_forwarded(request: &HttpRequest, state: &State) -> Result<(), Problem> {
    let mut names = request.headers().keys();
    let is_forwarded =
        names.any(|name| name == "forwarded" || name.as_str().starts_with("x-forwarded-"));
    if state.policy.development && is_forwarded {
        return Err(Problem::forbidden(
            "Development mode takes no management requests that came through a proxy; configure a token source.",
        ));
    }
    Ok(())
}

/// The `account` parameter of the query, when there is one.
fn account_parameter(request: &HttpRequest) -> Result<Option<AccountId>, Problem> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(request.query_string()).unwrap_or_default();
    let mut accounts = pairs.into_iter().filter(|(name, _)| name == "account");
    match (accounts.next(), accounts.next()) {
        (None, _) => Ok(None),
        (Some((_, account)), None) => account
            .parse()
            .map(Some)
            .map_err(|rule: Invalid| Problem::field("account", rule.to_string())),
        (Some(_), Some(_)) => Err(Problem::field("account", "must not be repeated")),
    }
}

/// Returns the actor of this request in an account.
fn actor(
    request: &HttpRequest,
    state: &State,
    account_id: AccountId,
    kind: ActorKind,
    id: &str,
) -> RequestActor {
    RequestActor {
        account_id,
        actor: Actor {
            kind,
            id: id.to_owned(),
        },
        request_id: Some(request_id(request)),
        ip: client_ip(request, state),
        parent: None,
    }
}

/// Returns the actor of a request that presents this API key.
fn key_actor(request: &HttpRequest, state: &State, key: Known) -> RequestActor {
    let id = key.key.id.to_string();
    let account_id = key.key.account_id.clone();
    RequestActor {
        parent: Some(key),
        ..actor(request, state, account_id, ActorKind::ApiKey, &id)
    }
}

/// A management token of an account, or an operator's with `?account=`.
#[derive(Debug)]
pub struct Merchant(pub RequestActor);

/// A Merchant, or an `sk_` key for its own account.
#[derive(Debug)]
pub struct AccountHolder(pub RequestActor);

/// A management token with the role `operator`.
#[derive(Debug)]
pub struct Operator {
    /// The operator; the id is the token's `sub`.
    pub actor: Actor,
    /// The request.
    pub request_id: Arc<str>,
    /// Where it came from.
    pub ip: Option<IpAddr>,
}

impl Operator {
    /// The operator as manager of an account.
    #[must_use]
    pub fn manage(self, account_id: AccountId) -> RequestActor {
        RequestActor {
            account_id,
            actor: self.actor,
            request_id: Some(self.request_id),
            ip: self.ip,
            parent: None,
        }
    }
}

/// Somebody who may verify keys.
#[derive(Debug)]
pub enum Verifying {
    /// A resource server: keys of all accounts.
    Service(Service),
    /// An `sk_` key: keys of its own account.
    SecretKey(Known),
}

impl Verifying {
    /// Whom its look-ups are made for: an authenticated caller presents the keys of others.
    #[must_use]
    pub fn requester(&self) -> Requester {
        match self {
            Self::Service(service) => service.requester(),
            Self::SecretKey(record) => Requester::Account(record.key.account_id.clone()),
        }
    }

    /// What it may see.
    #[must_use]
    pub fn viewer(&self) -> Option<Viewer<'_>> {
        match self {
            Self::Service(_) => None,
            Self::SecretKey(record) => Some(Viewer {
                account_id: &record.key.account_id,
                mode: (record.key.mode == Mode::Test).then_some(Mode::Test),
            }),
        }
    }
}

/// A resource server: a service key, by its ID, or a management token with the role `service`, by its subject.
#[derive(Debug)]
pub struct Service(Arc<str>);

impl Service {
    /// Whom its look-ups are made for.
    #[must_use]
    pub fn requester(&self) -> Requester {
        Requester::Service(Arc::clone(&self.0))
    }
}

/// An API key of any family, about itself.
#[derive(Debug)]
pub struct PresentedKey {
    /// What is known of it.
    pub record: Known,
    /// The key as manager of itself.
    pub manager: RequestActor,
}

const NEEDS_KEY: &str = "This needs an API key, not a management token.";
const NEEDS_TOKEN: &str = "This needs a management token, not a key.";
const ONLY_OPERATORS: &str = "Only an operator may name an account.";

/// Whose account a management token manages in this request.
fn manager(
    request: &HttpRequest,
    state: &State,
    claims: jwt::Claims,
) -> Result<RequestActor, Problem> {
    let operator = claims.has_role("operator");
    let named = account_parameter(request);
    if !operator && !matches!(named, Ok(None)) {
        return Err(Problem::forbidden(ONLY_OPERATORS));
    }
    let account = match (named?, claims.account) {
        (Some(account), _) if operator => account,
        (None, _) if operator => {
            return Err(Problem::field(
                "account",
                "is required: an operator says whose account",
            ));
        }
        (_, Ok(account)) => account,
        (_, Err(fault)) => {
            let claim = state.tokens.account_claim();
            let detail =
                format!("The management token names no account: its claim `{claim}` {fault}.");
            return Err(Problem::forbidden(detail));
        }
    };
    let kind = if operator {
        ActorKind::Operator
    } else {
        ActorKind::Merchant
    };
    Ok(actor(request, state, account, kind, &claims.subject))
}

impl Merchant {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match identify(request, &state, &[]).await? {
            Caller::Token(claims) => Ok(Self(manager(request, &state, claims)?)),
            _ => Err(Problem::forbidden(NEEDS_TOKEN).into()),
        }
    }
}

impl AccountHolder {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match identify(request, &state, &[Family::Secret]).await? {
            Caller::Token(claims) => Ok(Self(manager(request, &state, claims)?)),
            Caller::Key(key) if key.key.family == Family::Secret => {
                match account_parameter(request) {
                    Ok(None) => {
                        not_forwarded(request, &state)?;
                        Ok(Self(key_actor(request, &state, key)))
                    }
                    _ => Err(Problem::forbidden(ONLY_OPERATORS).into()),
                }
            }
            _ => Err(Problem::forbidden("This needs a secret key or a management token.").into()),
        }
    }
}

impl Operator {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match identify(request, &state, &[]).await? {
            Caller::Token(claims) if claims.has_role("operator") => {
                let actor = Actor {
                    kind: ActorKind::Operator,
                    id: claims.subject,
                };
                Ok(Self {
                    actor,
                    request_id: request_id(request),
                    ip: client_ip(request, &state),
                })
            }
            _ => Err(
                Problem::forbidden("This needs a management token with the role operator.").into(),
            ),
        }
    }
}

impl Verifying {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match identify(request, &state, &[Family::Secret]).await? {
            Caller::ServiceKey(id) => {
                tracing::trace!(service_key = %id, "a resource server asks");
                Ok(Self::Service(Service(id.to_string().into())))
            }
            Caller::Token(claims) if claims.has_role("service") => {
                Ok(Self::Service(Service(claims.subject.into())))
            }
            Caller::Key(record) if record.key.family == Family::Secret => {
                Ok(Self::SecretKey(record))
            }
            _ => Err(Problem::forbidden(
                "This needs a service key, a token with the role service, or a secret key.",
            )
            .into()),
        }
    }
}

impl Service {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match identify(request, &state, &[]).await? {
            Caller::ServiceKey(id) => Ok(Self(id.to_string().into())),
            Caller::Token(claims) if claims.has_role("service") => Ok(Self(claims.subject.into())),
            _ => Err(Problem::forbidden(
                "This needs a service key, or a token with the role service.",
            )
            .into()),
        }
    }
}

impl PresentedKey {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        let record = match identify(request, &state, &Family::ALL).await? {
            Caller::Key(record) => record,
            Caller::Token(_) => return Err(Problem::forbidden(NEEDS_KEY).into()),
            Caller::ServiceKey(_) => {
                return Err(Problem::forbidden("This needs an API key, not a service key.").into());
            }
        };
        let manager = key_actor(request, &state, record.clone());
        Ok(Self { record, manager })
    }
}

/// Actix asks for the same few lines for each extractor.
macro_rules! from_request {
    ($($extractor:ty),*) => {$(
        impl FromRequest for $extractor {
            type Error = Rejection;
            type Future = LocalBoxFuture<'static, Result<Self, Rejection>>;

            fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
                let request = request.clone();
                let identified = Identified::awaited(&request);
                Box::pin(async move {
                    let caller = Self::extract(&request).await?;
                    if let Some(Identified(identified)) = identified {
                        identified.notify_one();
                    }
                    Ok(caller)
                })
            }
        }
    )*};
}
from_request!(
    Merchant,
    AccountHolder,
    Operator,
    Verifying,
    Service,
    PresentedKey
);
