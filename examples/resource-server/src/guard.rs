//! Asks Tollkey whether the key of a request may do what the request is about, and says a refusal as HTTP does.
//!
//! Whatever goes wrong on the way, nobody is let in: without an answer of Tollkey's the request ends with 503.

use std::{fmt, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use anyhow::Context as _;
use reqwest::{Client, Url, redirect};
use serde::Serialize;
use tollkey_api::{
    Secret,
    problem::MEDIA_TYPE,
    verification::{VerifiedKey, VerifyRequest, VerifyResponse},
};
use tollkey_core::{Denial, Problem, ProblemCode};

/// How long Tollkey may take to answer: from memory it takes far below a millisecond, from its database a few.
const TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The headers a key can stand in.
const KEY_HEADERS: [&str; 3] = ["authorization", "x-api-key", "x-commerce-api-key"];
/// The header in which a request names the merchant it is about.
const MERCHANT_HEADER: &str = "x-merchant-id";

/// Who decides about keys: a running Tollkey, asked with a service key.
#[derive(Debug)]
pub(crate) struct Guard {
    client: Client,
    verify: Url,
    service_key: Secret,
}

impl Guard {
    /// A guard that asks the Tollkey at `url`.
    pub(crate) fn new(url: &str, service_key: String) -> anyhow::Result<Self> {
        let verify = Url::parse(url).and_then(|url| url.join("/api/v1/verify")).context("TOLLKEY_URL is no URL")?;
        let client = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none()) // the service key goes nowhere else
            .build()?;
        Ok(Self { client, verify, service_key: Secret::new(service_key) })
    }

    /// The key of this request, if it may do what needs `scope`.
    pub(crate) async fn allow(&self, request: &HttpRequest, scope: &str) -> Result<VerifiedKey, Refused> {
        let refused = |problem| Refused { problem, scope: scope.to_owned() };
        let question = VerifyRequest {
            key: presented_key(request).map_err(refused)?,
            method: Some(request.method().to_string()),
            path: Some(request.uri().path().to_owned()),
            scopes: Some(vec![scope.to_owned()]),
            mode: None,
            merchant: merchant(request).map_err(refused)?,
            // Nothing stands in front of this example. Behind a proxy, this is the address the proxy tells of.
            client_ip: request.peer_addr().map(|peer| peer.ip().to_string()),
        };
        match self.ask(&question).await.map_err(refused)? {
            VerifyResponse::Valid(valid) => Ok(valid.key),
            VerifyResponse::Invalid(invalid) => {
                // How long it takes is not told here; a second is polite.
                let retry_after = (invalid.code == Denial::RateLimited).then_some(1);
                // A newer Tollkey may deny for a reason that this release has no word for.
                let forbidden = || Problem::new(ProblemCode::Forbidden, "The key may not do this.");
                Err(refused(Problem { retry_after, ..invalid.code.known().map_or_else(forbidden, Problem::denied) }))
            }
        }
    }

    async fn ask(&self, question: &VerifyRequest) -> Result<VerifyResponse, Problem> {
        let sent = self.client.post(self.verify.clone()).bearer_auth(self.service_key.expose()).json(question).send();
        let response = sent.await.map_err(|error| {
            eprintln!("Tollkey did not answer: {error}");
            Problem::unavailable()
        })?;
        match response.status().as_u16() {
            200 => response.json().await.map_err(|error| {
                eprintln!("Tollkey's answer cannot be read: {error}");
                Problem::unavailable()
            }),
            // Something the caller sent, such as a merchant no merchant can be called.
            400 => Err(Problem::new(ProblemCode::ValidationFailed, "The request cannot be judged.")),
            status => {
                eprintln!("Tollkey answered {status}; 401 and 403 mean that TOLLKEY_SERVICE_KEY is not accepted");
                Err(Problem::unavailable())
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
    scope: String,
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
