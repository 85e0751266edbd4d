//! The methods to sign in to the dashboard.

use jiff::Timestamp;
use tollkey_api::Secret;
use tollkey_core::{
    Problem, ProblemCode,
    credential::{Expected, is_jwt},
    session::{SignIn, SignInSettingsHash},
};

use crate::{
    auth::{
        jwt::{ClaimFault, Claims},
        oidc::{Attempt, OidcError, Provider, Rejection},
        sign_in_links::SignInLinks,
    },
    state::State,
};

/// The enabled sign-in methods.
#[derive(Debug, Default)]
pub struct SignInMethods {
    pub token: Option<SignInSettingsHash>,
    pub links: Option<SignInLinks>,
    pub oidc: Option<Provider>,
}

impl SignInMethods {
    /// A session with other settings is invalid: its method was turned off or reconfigured.
    #[must_use]
    pub fn settings(&self) -> Vec<SignInSettingsHash> {
        let links = self.links.as_ref().map(|_| SignInLinks::settings());
        let oidc = self.oidc.as_ref().map(Provider::sign_in_settings);
        [self.token, links, oidc].into_iter().flatten().collect()
    }
}

fn sign_in(
    claims: Claims,
    settings: SignInSettingsHash,
    proof_expires_at: Option<Timestamp>,
) -> Result<SignIn, ClaimFault> {
    let is_operator = claims.has_role("operator");
    let account_id = match claims.account {
        Ok(account) => Some(account),
        // An operator chooses an account later.
        Err(_) if is_operator => None,
        Err(fault) => return Err(fault),
    };
    Ok(SignIn {
        account_id,
        subject: claims.subject,
        is_operator,
        settings,
        proof_expires_at,
    })
}

fn no_account(source: &str, claim: &str, fault: ClaimFault) -> Problem {
    Problem::forbidden(format!(
        "You are signed in, but {source} names no account for you: its claim `{claim}` {fault}. \
         Ask your administrator to set the claim."
    ))
}

/// `not_found` if tokens are not a sign-in method, `unavailable` if the issuer's keys cannot be fetched.
pub async fn by_token(state: &State, token: &str) -> Result<SignIn, Problem> {
    let settings = state.sign_in.token.ok_or_else(Problem::not_found)?;
    if !is_jwt(token) {
        return Err(Expected::Token.problem(token));
    }
    let verified = state.tokens.verify(token, state.service.clock.now()).await;
    let claims = verified.inspect_err(
        |error| tracing::debug!(%error, "management token rejected at the dashboard"),
    )?;
    let proof_expires_at = Some(claims.expires_at);
    sign_in(claims, settings, proof_expires_at)
        .map_err(|fault| no_account("the management token", state.tokens.account_claim(), fault))
}

/// Why a sign-in with an OpenID Connect provider fails. The redirect to the sign-in page contains [`Failure::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// This browser has no such sign-in in progress.
    Unknown,
    /// The provider did not sign the person in.
    Declined,
    Rejected(Rejection),
    /// The ID token is valid and names no account.
    NoAccount(ClaimFault),
    /// The provider or the database does not respond.
    Unavailable,
}

impl Failure {
    #[must_use]
    pub fn from_code(word: &str) -> Option<Self> {
        let faults = [ClaimFault::Missing, ClaimFault::Type, ClaimFault::Form].map(Self::NoAccount);
        let all = [Self::Unknown, Self::Declined, Self::Unavailable]
            .into_iter()
            .chain(faults);
        all.chain(Rejection::ALL.map(Self::Rejected))
            .find(|failure| failure.code() == word)
    }

    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Declined => "declined",
            Self::Rejected(rejection) => rejection.code(),
            Self::NoAccount(ClaimFault::Missing) => "no-account",
            Self::NoAccount(ClaimFault::Type) => "account-type",
            Self::NoAccount(ClaimFault::Form) => "account-form",
            Self::Unavailable => "unavailable",
        }
    }

    #[must_use]
    pub fn problem(self, account_claim: &str) -> Problem {
        match self {
            Self::Unknown => Problem::forbidden(
                "This sign-in was not begun in this browser, was used before, or took longer than ten minutes. Begin again.",
            ),
            Self::Declined => Problem::forbidden("The identity provider did not sign you in."),
            Self::Rejected(rejection) => Problem::new(
                ProblemCode::InvalidToken,
                format!(
                    "The identity provider's response is not valid: {rejection}. \
                     Sign in again, and tell your administrator if it happens again."
                ),
            ),
            Self::NoAccount(fault) => no_account("the identity provider", account_claim, fault),
            Self::Unavailable => Problem {
                detail: "Signing in is not possible right now. Try again in a moment.".into(),
                ..Problem::unavailable()
            },
        }
    }
}

/// A failed sign-in with its reason for the log, whose only part of a request or response is an error code.
#[derive(Debug)]
struct FailedSignIn {
    failure: Failure,
    reason: String,
    claim: Option<String>,
}

impl FailedSignIn {
    fn new(failure: Failure, reason: impl Into<String>) -> Self {
        Self {
            failure,
            reason: reason.into(),
            claim: None,
        }
    }

    fn log(self) -> Failure {
        let Self {
            failure,
            reason,
            claim,
        } = self;
        tracing::warn!(
            code = failure.code(),
            claim,
            reason,
            "sign-in with OpenID Connect failed"
        );
        failure
    }
}

impl From<OidcError> for FailedSignIn {
    fn from(error: OidcError) -> Self {
        let reason = error.to_string();
        match error {
            OidcError::Unavailable(_) => Self::new(Failure::Unavailable, reason),
            OidcError::Rejected(rejection) => Self {
                claim: rejection.claim().map(str::to_owned),
                ..Self::new(Failure::Rejected(rejection), reason)
            },
        }
    }
}

impl From<OidcError> for Failure {
    /// Also writes the failure to the log.
    fn from(error: OidcError) -> Self {
        FailedSignIn::from(error).log()
    }
}

/// Also writes the failure to the log.
#[must_use]
pub fn session_not_stored() -> Failure {
    FailedSignIn::new(Failure::Unavailable, "the session cannot be stored").log()
}

/// The query parameters with which a provider redirects to this server.
#[derive(Debug, Default)]
pub struct CallbackParameters {
    pub state: Option<Secret>,
    pub code: Option<Secret>,
    pub error: Option<String>,
    /// `iss` (RFC 9207).
    pub issuer: Option<String>,
}

/// `attempt` is from the cookie of the browser. The failure was written to the log.
pub async fn by_oidc(
    state: &State,
    provider: &Provider,
    attempt: Option<&Attempt>,
    returned: &CallbackParameters,
) -> Result<SignIn, Failure> {
    verify_return(state, provider, attempt, returned)
        .await
        .map_err(FailedSignIn::log)
}

async fn verify_return(
    state: &State,
    provider: &Provider,
    attempt: Option<&Attempt>,
    returned: &CallbackParameters,
) -> Result<SignIn, FailedSignIn> {
    let now = state.service.clock.now();
    let returned_state = returned.state.as_ref().map_or("", Secret::expose);
    let attempt = attempt
        .filter(|attempt| attempt.is_of(returned_state, now))
        .ok_or_else(|| {
            FailedSignIn::new(
                Failure::Unknown,
                "this browser began no sign-in with this state within the last ten minutes",
            )
        })?;
    if returned
        .issuer
        .as_ref()
        .is_some_and(|issuer| !provider.is_issuer(issuer))
    {
        return Err(OidcError::Rejected(Rejection::ResponseIssuer).into());
    }
    match (&returned.error, &returned.code) {
        (None, Some(code)) => {
            let claims = provider
                .finish(&*state.service.clock, attempt, code.expose())
                .await?;
            // An ID token expires after minutes, so the session does not expire with it.
            sign_in(claims, provider.sign_in_settings(), None).map_err(|fault| FailedSignIn {
                claim: Some(provider.account_claim().to_owned()),
                ..FailedSignIn::new(
                    Failure::NoAccount(fault),
                    format!("the account claim {fault}"),
                )
            })
        }
        (None, None) => Err(OidcError::Rejected(Rejection::NoCode).into()),
        (Some(error), _)
            if matches!(error.as_str(), "temporarily_unavailable" | "server_error") =>
        {
            Err(OidcError::Unavailable(format!("responded with {error}")).into())
        }
        (Some(error), _) => {
            // Only a code as in RFC 6749 or OpenID Connect is logged: anyone can put a text into the URL.
            let is_code =
                error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let code = if is_code {
                error.as_str()
            } else {
                "an unknown error"
            };
            Err(FailedSignIn::new(
                Failure::Declined,
                format!("the provider responded with {code}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_own_code() {
        let faults =
            [ClaimFault::Missing, ClaimFault::Type, ClaimFault::Form].map(Failure::NoAccount);
        let all: Vec<_> = [Failure::Unknown, Failure::Declined, Failure::Unavailable]
            .into_iter()
            .chain(faults)
            .chain(Rejection::ALL.map(Failure::Rejected))
            .collect();
        for failure in &all {
            assert_eq!(Failure::from_code(failure.code()), Some(*failure));
            assert!(
                failure
                    .code()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'-')
            );
        }
        assert_eq!(Failure::from_code("<script>"), None);
        let problem = Failure::NoAccount(ClaimFault::Type).problem("realm_access.account");
        assert!(
            problem
                .detail
                .contains("its claim `realm_access.account` must be a string or an integer"),
            "{problem:?}"
        );
    }
}
