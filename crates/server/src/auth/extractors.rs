//! Extractors that authenticate the caller of a handler.

use std::{net::IpAddr, rc::Rc, sync::Arc};

use actix_web::{FromRequest, HttpMessage as _, HttpRequest, dev::Payload, web};
use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;
use tollkey_core::{
    AccountId, Family, Invalid, Mode, Problem, Viewer,
    audit::{Actor, ActorKind},
};
use tollkey_service::RequestActor;
use tollkey_verifier::{CachedKey, Requester};

use super::{
    authenticate::{Caller, NEEDS_KEY, authenticate, not_forwarded},
    client_ip::client_ip,
    introspection::IntrospectionCaller,
    jwt,
};
use crate::{rejection::Rejection, request_id::request_id, state::State};

/// Notifies when the caller of a request is authenticated. Stored in the extensions of a request with
/// `Expect: 100-continue`: actix runs all extractors at the same time, and a client must not send the body of a request
/// that is rejected.
#[derive(Debug, Clone)]
pub struct CallerAuthenticated(pub Rc<Notify>);

impl CallerAuthenticated {
    fn for_request(request: &HttpRequest) -> Option<Self> {
        request.head().expect().then(|| {
            let identified = Self(Rc::default());
            request.extensions_mut().insert(identified.clone());
            identified
        })
    }
}

pub(super) fn state(request: &HttpRequest) -> Result<web::Data<State>, Rejection> {
    request
        .app_data::<web::Data<State>>()
        .cloned()
        .ok_or_else(|| Problem::internal().into())
}

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

fn key_actor(request: &HttpRequest, state: &State, key: CachedKey) -> RequestActor {
    let id = key.key.id.to_string();
    let account_id = key.key.account_id.clone();
    RequestActor {
        parent: Some(key),
        ..actor(request, state, account_id, ActorKind::ApiKey, &id)
    }
}

#[derive(Debug)]
pub struct ManagementCaller(pub RequestActor);

#[derive(Debug)]
pub struct AccountHolder(pub RequestActor);

#[derive(Debug)]
pub struct Operator {
    /// The operator. The ID is the `sub` of the token.
    pub actor: Actor,
    pub request_id: Arc<str>,
    pub ip: Option<IpAddr>,
}

impl Operator {
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

#[derive(Debug)]
pub enum VerificationCaller {
    /// A resource server. It can verify keys of all accounts.
    Service(Service),
    /// An `sk_` key. It can verify keys of its account.
    SecretKey(CachedKey),
}

impl VerificationCaller {
    /// Returns the requester of its lookups: the caller, not the client that presented the verified key.
    #[must_use]
    pub fn requester(&self) -> Requester {
        match self {
            Self::Service(service) => service.requester(),
            Self::SecretKey(record) => Requester::Account(record.key.account_id.clone()),
        }
    }

    /// Returns which keys it can see; `None` is all keys.
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
    #[must_use]
    pub fn requester(&self) -> Requester {
        Requester::Service(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
pub struct PresentedKey {
    pub record: CachedKey,
    pub manager: RequestActor,
}

const NEEDS_TOKEN: &str =
    "This operation requires a management token. Send a management token instead of a key.";
const ONLY_OPERATORS: &str = "Only operators can use the query parameter `account`. Remove it.";

/// Returns the actor of a management token, in the account that this request manages.
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
                "is required when an operator calls this operation",
            ));
        }
        (_, Ok(account)) => account,
        (_, Err(fault)) => {
            let claim = state.tokens.account_claim();
            let detail = format!(
                "The management token does not identify an account: its claim `{claim}` {fault}. Get a token with this claim."
            );
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

impl ManagementCaller {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match authenticate(request, &state, &[]).await? {
            Caller::Token(claims) => Ok(Self(manager(request, &state, claims)?)),
            _ => Err(Problem::forbidden(NEEDS_TOKEN).into()),
        }
    }
}

impl AccountHolder {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match authenticate(request, &state, &[Family::Secret]).await? {
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
            _ => Err(Problem::forbidden(
                "This operation requires a secret key or a management token.",
            )
            .into()),
        }
    }
}

impl Operator {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match authenticate(request, &state, &[]).await? {
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
            _ => Err(Problem::forbidden(
                "This operation requires a management token with the role `operator`.",
            )
            .into()),
        }
    }
}

impl VerificationCaller {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        let caller = authenticate(request, &state, &[Family::Secret]).await?;
        Ok(Self::of(caller)?)
    }

    /// Fails with `forbidden` for a caller of another kind.
    pub(super) fn of(caller: Caller) -> Result<Self, Problem> {
        match caller {
            Caller::ServiceKey(id) => {
                tracing::trace!(service_key = %id, "service key authenticated");
                Ok(Self::Service(Service(id.to_string().into())))
            }
            Caller::Token(claims) if claims.has_role("service") => {
                Ok(Self::Service(Service(claims.subject.into())))
            }
            Caller::Key(record) if record.key.family == Family::Secret => {
                Ok(Self::SecretKey(record))
            }
            _ => Err(Problem::forbidden(
                "This operation requires a service key, a management token with the role `service`, or a secret key.",
            )),
        }
    }
}

impl Service {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        match authenticate(request, &state, &[]).await? {
            Caller::ServiceKey(id) => Ok(Self(id.to_string().into())),
            Caller::Token(claims) if claims.has_role("service") => Ok(Self(claims.subject.into())),
            _ => Err(Problem::forbidden(
                "This operation requires a service key, or a management token with the role `service`.",
            )
            .into()),
        }
    }
}

impl PresentedKey {
    async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        let record = match authenticate(request, &state, &Family::ALL).await? {
            Caller::Key(record) => record,
            Caller::Token(_) => return Err(Problem::forbidden(NEEDS_KEY).into()),
            Caller::ServiceKey(_) => {
                return Err(Problem::forbidden(
                    "This operation requires an API key. Send an API key instead of a service key.",
                )
                .into());
            }
        };
        let manager = key_actor(request, &state, record.clone());
        Ok(Self { record, manager })
    }
}

/// Implements `FromRequest` with `extract`: a blanket implementation of a foreign trait is not possible.
macro_rules! from_request {
    ($($extractor:ty),*) => {$(
        impl FromRequest for $extractor {
            type Error = Rejection;
            type Future = LocalBoxFuture<'static, Result<Self, Rejection>>;

            fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
                let request = request.clone();
                let identified = CallerAuthenticated::for_request(&request);
                Box::pin(async move {
                    let caller = Self::extract(&request).await?;
                    if let Some(CallerAuthenticated(identified)) = identified {
                        identified.notify_one();
                    }
                    Ok(caller)
                })
            }
        }
    )*};
}
from_request!(
    ManagementCaller,
    AccountHolder,
    Operator,
    VerificationCaller,
    IntrospectionCaller,
    Service,
    PresentedKey
);
