//! Finds and verifies the credential of a request.

use tollkey_core::{
    AccessRequest, Denial, Family, Problem, ServiceKeyId,
    credential::{Credential, CredentialHeaders, Expected, Presented},
    key_format::ParsedKey,
};
use tollkey_verifier::{CachedKey, RateStatus, Requester, Verdict};

use super::{client_ip::client_ip, credential::credential, jwt, request_parts::RequestParts};
use crate::state::State;

pub(super) const NEEDS_KEY: &str =
    "This operation requires an API key. Send an API key instead of a management token.";

pub(super) enum Caller {
    Token(jwt::Claims),
    ServiceKey(ServiceKeyId),
    Key(CachedKey),
}

/// The rate limit of the presented key, for the headers of the response. Stored in the extensions of the request.
#[derive(Debug, Clone, Copy)]
pub struct KeyRateLimit {
    pub rate: RateStatus,
    /// The whole seconds until the key can be used again, if no use remains.
    pub retry_after_seconds: Option<u32>,
}

/// Verifies an API key, and stores its rate limit for the response.
async fn authorize(
    request: &impl RequestParts,
    state: &State,
    key: ParsedKey<'_>,
    access: &AccessRequest<'_>,
) -> Result<CachedKey, Problem> {
    let verdict = state
        .service
        .verify(|| requester(request, state), key, access)
        .await?;
    if let Some(rate) = verdict.rate {
        let retry_after_seconds = verdict.retry_after_seconds;
        request.set_rate_limit(KeyRateLimit {
            rate,
            retry_after_seconds,
        });
    }
    verified_key(verdict, state, access)
}

/// Verifies an API key without counting a use: the request is rejected in any case.
async fn peek(
    request: &impl RequestParts,
    state: &State,
    key: ParsedKey<'_>,
    access: &AccessRequest<'_>,
) -> Result<CachedKey, Problem> {
    verified_key(
        state
            .service
            .peek(|| requester(request, state), key, access)
            .await?,
        state,
        access,
    )
}

/// Returns the requester of a lookup before the credential is verified: the client, by its IP address if that is known.
fn requester(request: &impl RequestParts, state: &State) -> Requester {
    Requester::client(client_ip(request, state))
}

fn verified_key(
    verdict: Verdict,
    state: &State,
    access: &AccessRequest<'_>,
) -> Result<CachedKey, Problem> {
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
                    .names(access.scopes.without(key.scopes))
                    .cloned()
                    .collect();
            }
            Err(problem)
        }
    }
}

/// Verifies the API key that a request presents, with the requirements of a gateway.
pub async fn authorize_presented(
    request: &impl RequestParts,
    state: &State,
    access: &AccessRequest<'_>,
) -> Result<CachedKey, Problem> {
    match presented_key(request, state) {
        Ok(key) => authorize(request, state, key, access).await,
        Err(credential) => Err(no_key(request, state, credential).await),
    }
}

/// Verifies the presented key of a request that is rejected because of an invalid requirement. A client without a key
/// thus learns nothing about the requirement. Does not count a use of the key.
pub async fn peek_presented(
    request: &impl RequestParts,
    state: &State,
    access: &AccessRequest<'_>,
) -> Result<CachedKey, Problem> {
    match presented_key(request, state) {
        Ok(key) => peek(request, state, key, access).await,
        Err(credential) => Err(no_key(request, state, credential).await),
    }
}

/// Returns the API key in the headers that gateway routes read.
/// The error is the credential that the request presents instead, also parsed if it is a single one.
fn presented_key<'a>(
    request: &'a impl RequestParts,
    state: &State,
) -> Result<ParsedKey<'a>, (Credential<'a>, Option<Presented<'a>>)> {
    match credential(request, state.request_settings.credential_headers) {
        Credential::One(text) => match Presented::from(text) {
            Presented::ApiKey(_, key) => Ok(key),
            presented => Err((Credential::One(text), Some(presented))),
        },
        other => Err((other, None)),
    }
}

async fn no_key(
    request: &impl RequestParts,
    state: &State,
    (credential, presented): (Credential<'_>, Option<Presented<'_>>),
) -> Problem {
    let expected = Expected::ApiKey;
    match (
        credential.one(state.request_settings.credential_headers, expected),
        presented,
    ) {
        (Err(problem), _) => problem,
        (Ok(_), Some(Presented::Token(token))) => match verify_token(request, state, token).await {
            Ok(_) => Problem::forbidden(NEEDS_KEY),
            Err(problem) => Problem {
                detail: format!("{} {NEEDS_KEY}", problem.detail),
                ..problem
            },
        },
        // On gateway routes, a service key is an invalid API key like any other text.
        (Ok(text), _) => expected.problem(text),
    }
}

/// Verifies the credential of a request. The caller rejects a key of a family that is not in `accepted`, so that key
/// is not counted as used.
pub(super) async fn authenticate(
    request: &impl RequestParts,
    state: &State,
    accepted: &[Family],
) -> Result<Caller, Problem> {
    let headers = CredentialHeaders::default();
    let text = credential(request, headers).one(headers, Expected::Any)?;
    authenticate_as(request, state, Presented::from(text), accepted).await
}

/// Like [`authenticate`], with a credential that was found elsewhere in the request.
pub(super) async fn authenticate_as(
    request: &impl RequestParts,
    state: &State,
    presented: Presented<'_>,
    accepted: &[Family],
) -> Result<Caller, Problem> {
    match presented {
        Presented::ApiKey(family, key) => {
            let access = AccessRequest {
                identity_only: true,
                client_ip: client_ip(request, state),
                ..AccessRequest::default()
            };
            let key = if accepted.contains(&family) {
                authorize(request, state, key, &access).await
            } else {
                peek(request, state, key, &access).await
            };
            key.map(Caller::Key)
        }
        Presented::ServiceKey(key) => {
            let verifier = &state.service.verifier;
            let id = verifier
                .verify_service_key(key, client_ip(request, state))
                .await;
            id.map_err(|_| Problem::unavailable())?
                .map(Caller::ServiceKey)
                .ok_or_else(Problem::invalid_api_key)
        }
        Presented::Token(token) => verify_token(request, state, token).await.map(Caller::Token),
        Presented::Other(text) => Err(Expected::Any.problem(text)),
    }
}

async fn verify_token(
    request: &impl RequestParts,
    state: &State,
    text: &str,
) -> Result<jwt::Claims, Problem> {
    let verified = state.tokens.verify(text, state.service.clock.now()).await;
    let claims =
        verified.inspect_err(|error| tracing::debug!(%error, "management token rejected"))?;
    not_forwarded(request, state)?;
    Ok(claims)
}

/// Rejects a management request through a proxy in development mode, because other machines may reach the proxy.
pub fn not_forwarded(request: &impl RequestParts, state: &State) -> Result<(), Problem> {
    if state.request_settings.development && request.is_forwarded() {
        return Err(Problem::forbidden(
            "In development mode, the server rejects management requests with Forwarded or X-Forwarded-* headers. Connect to it directly, or configure management tokens.",
        ));
    }
    Ok(())
}
