//! The caller of introspection: a client of RFC 7662, which can also authenticate with HTTP Basic or in the form.

use actix_web::HttpRequest;
use form_urlencoded::Parse;
use tollkey_core::{
    Family, Problem,
    credential::{Credential, CredentialHeaders, Expected, Presented, client},
};
use zeroize::Zeroizing;

use super::{
    REALM,
    authenticate::authenticate_as,
    credential::client_credential,
    extractors::{VerificationCaller, state},
};
use crate::{rejection::Rejection, state::State};

const CLIENT_SECRET: &str = "client_secret";
/// Methods of authentication that need keys of the client, which Tollkey does not have.
const ASSERTIONS: [&str; 2] = ["client_assertion", "client_assertion_type"];

/// The caller that the headers identify. [`IntrospectionCaller::authenticate`] also examines the form.
pub struct IntrospectionCaller {
    request: HttpRequest,
    /// `None` if no header has a credential.
    by_header: Option<Result<VerificationCaller, Problem>>,
}

impl IntrospectionCaller {
    pub(super) async fn extract(request: &HttpRequest) -> Result<Self, Rejection> {
        let state = state(request)?;
        let by_header = match client_credential(request) {
            Credential::None => None,
            Credential::NotBearer(value) if client::is_basic(value) => {
                Some(by_basic(request, &state, value).await)
            }
            credential => Some(by_bearer(request, &state, credential).await),
        };
        match by_header {
            // Rejected here, because the client has not sent the form yet.
            Some(Err(problem)) if request.head().expect() => Err(challenged(problem).into()),
            by_header => Ok(Self {
                request: request.clone(),
                by_header,
            }),
        }
    }

    /// Returns the caller, by its one credential: in a header or in the fields of the form.
    pub async fn authenticate(
        self,
        state: &State,
        form: Result<Parse<'_>, Problem>,
    ) -> Result<VerificationCaller, Problem> {
        self.one(state, form).await.map_err(challenged)
    }

    async fn one(
        self,
        state: &State,
        form: Result<Parse<'_>, Problem>,
    ) -> Result<VerificationCaller, Problem> {
        // The form that cannot be read may have a secret, in which a client would look for the mistake after a 401.
        if let (None, Err(problem)) = (&self.by_header, &form) {
            return Err(problem.clone());
        }
        let mut secrets = Vec::new();
        let mut unsupported = Ok(());
        for (name, value) in form.into_iter().flatten() {
            if name == CLIENT_SECRET && !value.is_empty() {
                secrets.push(Zeroizing::new(value.into_owned()));
            } else if ASSERTIONS.contains(&&*name) && unsupported.is_ok() {
                unsupported = Err(Problem::field(
                    format!("/{name}"),
                    "is not supported; authenticate with HTTP Basic or `client_secret`",
                ));
            }
        }
        let caller = match (self.by_header, secrets.as_slice()) {
            (Some(_), [_, ..]) | (None, [_, _, ..]) => return Err(client::several()),
            (Some(caller), []) => caller?,
            (None, [secret]) => by_secret(&self.request, state, secret).await?,
            (None, []) => return Err(unsupported.err().unwrap_or_else(client::missing)),
        };
        unsupported.map(|()| caller)
    }
}

/// Authenticates with a credential in a header, as other routes do.
async fn by_bearer(
    request: &HttpRequest,
    state: &State,
    credential: Credential<'_>,
) -> Result<VerificationCaller, Problem> {
    let text = credential.one(CredentialHeaders::default(), Expected::Any)?;
    by_presented(request, state, Presented::from(text)).await
}

async fn by_basic(
    request: &HttpRequest,
    state: &State,
    value: &str,
) -> Result<VerificationCaller, Problem> {
    by_secret(request, state, &client::basic_password(value)?).await
}

async fn by_secret(
    request: &HttpRequest,
    state: &State,
    secret: &str,
) -> Result<VerificationCaller, Problem> {
    match Presented::from(secret) {
        Presented::Token(_) => Err(client::token()),
        presented => by_presented(request, state, presented).await,
    }
}

async fn by_presented(
    request: &HttpRequest,
    state: &State,
    presented: Presented<'_>,
) -> Result<VerificationCaller, Problem> {
    authenticate_as(request, state, presented, &[Family::Secret])
        .await
        .and_then(VerificationCaller::of)
}

/// Adds the challenge of HTTP Basic to a 401.
fn challenged(problem: Problem) -> Problem {
    if problem.code.status() != 401 {
        return problem;
    }
    let challenge = ("www-authenticate", client::basic_challenge(REALM));
    Problem {
        headers: [challenge].into(),
        ..problem
    }
}
