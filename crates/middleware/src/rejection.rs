//! The response to a rejected request, the same in every framework: a problem (RFC 9457) in the body and a challenge
//! (RFC 6750) in the header.

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use tollkey_core::{Denial, Problem, ProblemCode, Scope};
use tollkey_verifier::RateStatus;

/// The reason why a request is rejected. It converts into the response of the framework, so that a handler can
/// return it as its error.
///
/// The response to a rejected request has the rejection in its extensions, for outer layers that log or count
/// rejections.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.problem)]
pub struct Rejection(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    problem: Problem,
    /// Separate from the problem, which is the same for an unknown and a revoked key.
    denial: Option<Denial>,
    settings: Arc<RejectionSettings>,
    form: RejectionForm,
    rate: Option<(RateStatus, Option<u32>)>,
}

/// The form in which a rejection is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RejectionForm {
    /// A problem (RFC 9457) with its own HTTP status.
    #[default]
    Problem,
    /// A gRPC status in trailers, with HTTP status 200.
    Grpc,
}

pub(crate) struct RejectionSettings {
    pub(crate) realm: String,
    pub(crate) format: Option<Arc<Format>>,
}

/// The application's own error format: [`GuardBuilder::on_rejection`](crate::GuardBuilder::on_rejection).
pub(crate) type Format = dyn Fn(&Rejection, &mut RejectionResponse) + Send + Sync;

impl Default for RejectionSettings {
    fn default() -> Self {
        Self {
            realm: "tollkey".to_owned(),
            format: None,
        }
    }
}

impl fmt::Debug for RejectionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectionSettings")
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

/// A rejection as an HTTP response.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectionResponse {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl RejectionResponse {
    /// Returns the value of a header. `name` must be in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(own, _)| *own == name)
            .map(|(_, value)| value.as_str())
    }

    /// Sets a header, replacing its previous values. `name` must be in lower case.
    pub fn set_header(&mut self, name: &'static str, value: impl Into<String>) {
        self.headers.retain(|(own, _)| *own != name);
        self.headers.push((name, value.into()));
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    missing_scopes: &'a [Scope],
}

impl Rejection {
    pub(crate) fn new(
        problem: Problem,
        settings: &Arc<RejectionSettings>,
        form: RejectionForm,
    ) -> Self {
        let settings = Arc::clone(settings);
        Self(Arc::new(Inner {
            problem,
            denial: None,
            settings,
            form,
            rate: None,
        }))
    }

    /// Sets the denial of the key that caused this rejection.
    pub(crate) fn because_of(mut self, denial: Denial) -> Self {
        Arc::make_mut(&mut self.0).denial = Some(denial);
        self
    }

    /// Creates the rejection for a route that requires a key, but has no Tollkey layer around it. This is a mistake
    /// of the application: every request is rejected with 500, and an error is logged.
    #[must_use]
    pub fn unguarded() -> Self {
        tracing::error!(
            "a route requires a key, but has no Tollkey layer around it; the request is rejected"
        );
        Self::new(Problem::internal(), &Arc::default(), RejectionForm::Problem)
    }

    /// Sets the state of the key's rate limit, and the seconds until a use is possible again.
    pub(crate) fn with_rate(
        mut self,
        rate: Option<RateStatus>,
        retry_after_seconds: Option<u32>,
    ) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.rate = rate.map(|rate| (rate, retry_after_seconds));
        if inner.problem.code == ProblemCode::RateLimited {
            inner.problem.retry_after = retry_after_seconds
                .map(Into::into)
                .or(inner.problem.retry_after);
        }
        self
    }

    /// Returns the stable code of the problem, such as `insufficient_scope`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.problem.code.as_str()
    }

    /// Returns the HTTP status: 400, 401, 403, 429, 500 or 503.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.0.problem.code.status()
    }

    /// Returns the detail of the problem, which may be shown to the caller.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.0.problem.detail
    }

    /// Returns why the key was denied, or `None` if the request was not rejected because of its key. For logs and metrics
    /// only: callers may only get the [`code`](Self::code), which is the same for an unknown and a revoked key.
    #[must_use]
    pub fn denial(&self) -> Option<Denial> {
        self.0.denial
    }

    /// Returns the scopes that the route requires, if the key lacks one of them.
    #[must_use]
    pub fn needed_scopes(&self) -> &[Scope] {
        &self.0.problem.needed_scopes
    }

    /// Returns the [`needed_scopes`](Self::needed_scopes) that the key does not satisfy.
    #[must_use]
    pub fn missing_scopes(&self) -> &[Scope] {
        &self.0.problem.missing_scopes
    }

    /// Returns the time after which the request can be repeated, for 429 and 503.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.problem.retry_after.map(Duration::from_secs)
    }

    /// Returns the code of the gRPC status, such as 16 for `UNAUTHENTICATED`.
    #[must_use]
    pub fn grpc_code(&self) -> i32 {
        match self.status() {
            400 => 3,  // INVALID_ARGUMENT
            401 => 16, // UNAUTHENTICATED
            403 => 7,  // PERMISSION_DENIED
            429 => 8,  // RESOURCE_EXHAUSTED
            503 => 14, // UNAVAILABLE
            _ => 13,   // INTERNAL
        }
    }

    /// Returns the rejection as an HTTP response, in the application's own format if it is set
    /// ([`GuardBuilder::on_rejection`](crate::GuardBuilder::on_rejection)).
    #[must_use]
    pub fn response(&self) -> RejectionResponse {
        match self.0.form {
            RejectionForm::Problem => self.http_response(),
            RejectionForm::Grpc => self.grpc_response(),
        }
    }

    fn http_response(&self) -> RejectionResponse {
        let (code, status, title) = self.0.problem.code.row();
        let problem = &self.0.problem;
        let body = Body {
            r#type: problem.code.type_uri(),
            title,
            status,
            detail: &problem.detail,
            code,
            missing_scopes: &problem.missing_scopes,
        };
        let mut response = RejectionResponse {
            status,
            headers: self.fields(),
            body: serde_json::to_string(&body).expect("strings and a number serialize as JSON"),
        };
        response.set_header("content-type", tollkey_api::problem::MEDIA_TYPE);
        if let Some(format) = &self.0.settings.format {
            format(self, &mut response);
            if !(400..=599).contains(&response.status) {
                tracing::error!(
                    status = response.status,
                    code,
                    "on_rejection set a status that is not an error; it is not used"
                );
                response.status = status;
            }
        }
        response.set_header("cache-control", "no-store");
        response
    }

    /// Returns a trailers-only response (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). The stable code
    /// is in `tollkey-code`.
    fn grpc_response(&self) -> RejectionResponse {
        let mut response = RejectionResponse {
            status: 200,
            headers: self.fields(),
            body: String::new(),
        };
        response.set_header("content-type", "application/grpc");
        response.set_header("grpc-status", self.grpc_code().to_string());
        response.set_header("grpc-message", percent_encoded(&self.0.problem.detail));
        response.set_header("tollkey-code", self.code());
        response.set_header("cache-control", "no-store");
        response
    }

    /// Returns the headers that both forms have.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        let challenge = self.0.problem.challenge(&self.0.settings.realm);
        headers.extend(challenge.map(|challenge| ("www-authenticate", challenge)));
        headers.extend(
            self.0
                .problem
                .retry_after
                .map(|seconds| ("retry-after", seconds.to_string())),
        );
        if let Some((rate, retry_after_seconds)) = &self.0.rate {
            headers.extend(rate_fields(rate, *retry_after_seconds));
        }
        headers
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

pub(crate) fn rate_fields(
    rate: &RateStatus,
    retry_after_seconds: Option<u32>,
) -> [(&'static str, String); 2] {
    let [policy, left] = rate.fields(retry_after_seconds);
    [("ratelimit-policy", policy), ("ratelimit", left)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(code: ProblemCode, detail: &'static str, form: RejectionForm) -> Rejection {
        Rejection::new(Problem::new(code, detail), &Arc::default(), form)
    }

    #[test]
    fn each_problem_has_a_grpc_status() {
        for (code, expected) in [
            (ProblemCode::MultipleCredentials, "3"),
            (ProblemCode::MissingCredentials, "16"),
            (ProblemCode::InvalidApiKey, "16"),
            (ProblemCode::Denied(Denial::InsufficientScope), "7"),
            (ProblemCode::RateLimited, "8"),
            (ProblemCode::Unavailable, "14"),
            (ProblemCode::InternalError, "13"),
        ] {
            let response = rejection(code, "", RejectionForm::Grpc).response();
            let status = response.header("grpc-status");
            assert_eq!(
                (response.status, status, response.body.as_str()),
                (200, Some(expected), ""),
                "{code:?}"
            );
        }
    }

    #[test]
    fn grpc_form_has_the_headers_of_the_http_form() {
        let [http, grpc] = [RejectionForm::Problem, RejectionForm::Grpc]
            .map(|form| rejection(ProblemCode::InvalidApiKey, "100% sure", form).response());
        let common = (
            "www-authenticate",
            "Bearer realm=\"tollkey\", error=\"invalid_token\", error_description=\"100% sure\""
                .to_owned(),
        );
        assert!(http.headers.contains(&common), "{http:?}");
        assert_eq!(
            grpc.headers,
            [
                common,
                ("content-type", "application/grpc".to_owned()),
                ("grpc-status", "16".to_owned()),
                ("grpc-message", "100%25 sure".to_owned()),
                ("tollkey-code", "invalid_api_key".to_owned()),
                ("cache-control", "no-store".to_owned()),
            ]
        );
        assert_eq!(percent_encoded("\u{fc}\n"), "%C3%BC%0A");
    }

    #[test]
    fn own_format_cannot_make_a_rejection_ok_or_cacheable() {
        let format: Arc<Format> = Arc::new(|rejection, response| {
            response.status = if rejection.status() == 403 { 404 } else { 200 };
            response.body = format!("{{\"error\":\"{}\"}}", rejection.code());
            response.set_header("content-type", "application/json");
            response.set_header("cache-control", "public, max-age=60");
        });
        let settings = Arc::new(RejectionSettings {
            format: Some(format),
            ..RejectionSettings::default()
        });
        for (code, status) in [
            (ProblemCode::InvalidApiKey, 401),
            (ProblemCode::Denied(Denial::WrongMode), 404),
        ] {
            let response =
                Rejection::new(Problem::new(code, ""), &settings, RejectionForm::Problem)
                    .response();
            assert_eq!(response.status, status);
            assert_eq!(response.header("cache-control"), Some("no-store"));
            assert_eq!(response.header("content-type"), Some("application/json"));
            assert_eq!(
                response.body,
                format!("{{\"error\":\"{}\"}}", code.as_str())
            );
        }
    }
}
