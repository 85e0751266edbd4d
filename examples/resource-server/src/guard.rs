//! Asks Tollkey whether the key of a request may do what the request is about, and says a refusal as HTTP does.
//!
//! Whatever goes wrong on the way, nobody is let in: without an answer of Tollkey's the request ends with 503.

use std::{fmt, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use serde::Serialize;
use tollkey_api::problem::MEDIA_TYPE;
use tollkey_client::{
    Auth, Client, Denial, Scope, Secret,
    verification::{VerifiedKey, VerifyResponse},
};
use tollkey_core::{Problem, ProblemCode};

/// How long Tollkey may take to answer: from memory it takes far below a millisecond, from its database a few.
const TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The headers a key can stand in.
const KEY_HEADERS: [&str; 3] = ["authorization", "x-api-key", "x-commerce-api-key"];
/// The header in which a request names the merchant it is about.
const MERCHANT_HEADER: &str = "x-merchant-id";

/// Who decides about keys: a running Tollkey, asked with a service key.
#[derive(Debug)]
pub(crate) struct Guard(Client);

impl Guard {
    /// A guard that asks the Tollkey at `url`. It asks once: who waits for an answer asks again.
    pub(crate) fn new(url: &str, service_key: String) -> Result<Self, tollkey_client::Error> {
        let client = Client::builder().base_url(url).auth(Auth::service(service_key));
        client.timeout(TIMEOUT).connect_timeout(CONNECT_TIMEOUT).max_retries(0).build().map(Self)
    }

    /// The key of this request, if it may do what needs `scope`.
    pub(crate) async fn allow(&self, request: &HttpRequest, scope: Scope) -> Result<VerifiedKey, Refused> {
        let refused = |problem| Refused { problem, scope: scope.clone() };
        let key = presented_key(request).map_err(refused)?;
        let mut question = self.0.verify(key).scopes([scope.clone()]);
        question = question.method(request.method().as_str()).path(request.uri().path());
        if let Some(merchant) = merchant(request).map_err(refused)? {
            question = question.merchant(merchant);
        }
        // Nothing stands in front of this example. Behind a proxy, this is the address the proxy tells of.
        if let Some(peer) = request.peer_addr() {
            question = question.client_ip(peer.ip());
        }
        match question.await {
            Ok(VerifyResponse::Valid(valid)) => Ok(valid.key),
            Ok(VerifyResponse::Invalid(invalid)) => {
                // A denial of a newer Tollkey's, whatever it is for, lets nobody in.
                let denial =
                    invalid.code.known().ok_or_else(|| refused(Problem::forbidden("The key may not do this.")))?;
                // How long it takes is not told here; a second is polite.
                let retry_after = (denial == Denial::RateLimited).then_some(1);
                Err(refused(Problem { retry_after, ..Problem::denied(denial) }))
            }
            // Something the caller sent, such as a merchant no merchant can be called.
            Err(error) if error.is_validation() => {
                Err(refused(Problem::new(ProblemCode::ValidationFailed, "The request cannot be judged.")))
            }
            Err(error) => {
                eprintln!("Tollkey cannot be asked: {error}");
                Err(refused(Problem::unavailable()))
            }
        }
    }
}

/// The one key of the request.
fn presented_key(request: &HttpRequest) -> Result<Secret, Problem> {
    let headers = request.headers();
    let mut found = KEY_HEADERS.into_iter().flat_map(|name| headers.get_all(name).map(move |value| (name, value)));
    let (name, value) = match (found.next(), found.next()) {
        (Some(one), None) => one,
        (None, _) => return Err(Problem::new(ProblemCode::MissingCredentials, "Present an API key as Bearer.")),
        (Some(_), Some(_)) => {
            return Err(Problem::new(ProblemCode::MultipleCredentials, "Present exactly one credential, once."));
        }
    };
    let text = value.to_str().map_err(|_| Problem::invalid_api_key())?;
    if name != "authorization" {
        return Ok(Secret::new(text.trim()));
    }
    match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Secret::new(key.trim())),
        _ => Err(Problem::invalid_api_key()),
    }
}

/// The merchant the request names, if it names one; several could not be told apart.
fn merchant(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let mut values = request.headers().get_all(MERCHANT_HEADER);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) if value.to_str().is_ok() => Ok(value.to_str().ok().map(str::to_owned)),
        _ => Err(Problem::denied(Denial::MerchantNotAllowed)),
    }
}

/// A problem as RFC 9457 writes it.
#[derive(Debug, Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
}

/// The request ends here.
#[derive(Debug)]
pub(crate) struct Refused {
    problem: Problem,
    /// What the request needed, for the challenge.
    scope: Scope,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl ResponseError for Refused {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        // RFC 6750, section 3.
        let challenge = match self.problem.code {
            ProblemCode::MissingCredentials => Some("Bearer realm=\"links\"".to_owned()),
            ProblemCode::InvalidApiKey => Some("Bearer realm=\"links\", error=\"invalid_token\"".to_owned()),
            ProblemCode::Denied(Denial::InsufficientScope) => {
                Some(format!("Bearer realm=\"links\", error=\"insufficient_scope\", scope=\"{}\"", self.scope))
            }
            _ => None,
        };
        if let Some(challenge) = challenge {
            response.insert_header((header::WWW_AUTHENTICATE, challenge));
        }
        if let Some(seconds) = self.problem.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        let (code, status, title) = self.problem.code.row();
        let r#type = self.problem.code.type_uri();
        let body = Body { r#type, title, status, detail: &self.problem.detail, code };
        // In this order: `json` keeps a content type that is there.
        response.content_type(MEDIA_TYPE).json(body)
    }
}
