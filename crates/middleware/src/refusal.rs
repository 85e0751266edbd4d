//! The answer to who is not let in: RFC 9457 in the body, RFC 6750 in the header, the same in every framework.

use std::fmt;

use serde::Serialize;
use tollkey_core::{Denial, Problem, ProblemCode};
use tollkey_verifier::RateStatus;

/// The request ends here.
#[derive(Debug, Clone)]
pub struct Refusal(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    problem: Problem,
    realm: std::sync::Arc<str>,
    rate: Option<(RateStatus, Option<u32>)>,
}

/// A refusal as HTTP says it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
}

impl Refusal {
    pub(crate) fn new(problem: Problem, realm: &std::sync::Arc<str>) -> Self {
        Self(Box::new(Inner { problem, realm: realm.clone(), rate: None }))
    }

    /// For a route that asks for a key where no layer has looked for one: a mistake of the application, which lets nobody in.
    #[must_use]
    pub fn unguarded() -> Self {
        tracing::error!("a route asks for a key, and no layer of tollkey's is around it; it is refused");
        Self::new(Problem::internal(), &"tollkey".into())
    }

    /// What is left of the key's rate limit, and in how many seconds a use is possible again.
    pub(crate) fn with_rate(mut self, rate: Option<RateStatus>, retry_after_seconds: Option<u32>) -> Self {
        self.0.rate = rate.map(|rate| (rate, retry_after_seconds));
        if self.0.problem.code == ProblemCode::RateLimited {
            self.0.problem.retry_after = retry_after_seconds.map(Into::into);
        }
        self
    }

    /// The stable code of the problem, such as `insufficient_scope`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.0.problem.code.as_str()
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.0.problem.code.status()
    }

    /// Why the key was denied, where it was the key.
    #[must_use]
    pub fn denial(&self) -> Option<Denial> {
        match self.0.problem.code {
            ProblemCode::Denied(denial) => Some(denial),
            ProblemCode::RateLimited => Some(Denial::RateLimited),
            _ => None,
        }
    }

    /// The refusal as HTTP says it.
    #[must_use]
    pub fn answer(&self) -> Answer {
        let (code, status, title) = self.0.problem.code.row();
        let body = Body { r#type: self.0.problem.code.type_uri(), title, status, detail: &self.0.problem.detail, code };
        let mut headers = vec![
            ("content-type", tollkey_api::problem::MEDIA_TYPE.to_owned()),
            ("cache-control", "no-store".to_owned()),
        ];
        headers.extend(self.fields());
        // A struct of texts and a number.
        let body = serde_json::to_string(&body).expect("a problem is JSON");
        Answer { status, headers, body }
    }

    /// The refusal as gRPC says it: an answer that is nothing but trailers
    /// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). The stable code is in `tollkey-code`.
    #[must_use]
    pub fn grpc_answer(&self) -> Answer {
        let code = match self.status() {
            400 => 3,  // INVALID_ARGUMENT
            401 => 16, // UNAUTHENTICATED
            403 => 7,  // PERMISSION_DENIED
            429 => 8,  // RESOURCE_EXHAUSTED
            503 => 14, // UNAVAILABLE
            _ => 13,   // INTERNAL
        };
        let mut headers = vec![
            ("content-type", "application/grpc".to_owned()),
            ("grpc-status", code.to_string()),
            ("grpc-message", percent_encoded(&self.0.problem.detail)),
            ("tollkey-code", self.code().to_owned()),
        ];
        headers.extend(self.fields());
        Answer { status: 200, headers, body: String::new() }
    }

    /// What both say in headers.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        headers.extend(self.0.problem.challenge(&self.0.realm).map(|challenge| ("www-authenticate", challenge)));
        headers.extend(self.0.problem.retry_after.map(|seconds| ("retry-after", seconds.to_string())));
        if let Some((rate, retry_after_seconds)) = &self.0.rate {
            headers.extend(rate_fields(rate, *retry_after_seconds));
        }
        headers
    }
}

/// As the gRPC protocol has `grpc-message`.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

/// The fields `RateLimit-Policy` and `RateLimit`.
pub(crate) fn rate_fields(rate: &RateStatus, retry_after_seconds: Option<u32>) -> [(&'static str, String); 2] {
    let [policy, left] = rate.fields(retry_after_seconds);
    [("ratelimit-policy", policy), ("ratelimit", left)]
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.problem.fmt(f)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: ProblemCode, detail: &'static str) -> Refusal {
        Refusal::new(Problem::new(code, detail), &"tollkey".into())
    }

    #[test]
    fn grpc_has_a_status_for_each() {
        for (code, expected) in [
            (ProblemCode::MultipleCredentials, "3"),
            (ProblemCode::MissingCredentials, "16"),
            (ProblemCode::InvalidApiKey, "16"),
            (ProblemCode::Denied(Denial::InsufficientScope), "7"),
            (ProblemCode::RateLimited, "8"),
            (ProblemCode::Unavailable, "14"),
            (ProblemCode::InternalError, "13"),
        ] {
            let answer = refusal(code, "").grpc_answer();
            let status =
                answer.headers.iter().find(|(name, _)| *name == "grpc-status").map(|(_, value)| value.as_str());
            assert_eq!((answer.status, status, answer.body.as_str()), (200, Some(expected), ""), "{code:?}");
        }
    }

    #[test]
    fn grpc_is_told_what_http_is_told() {
        let refusal = refusal(ProblemCode::InvalidApiKey, "100% sure");
        let common = (
            "www-authenticate",
            "Bearer realm=\"tollkey\", error=\"invalid_token\", error_description=\"100% sure\"".to_owned(),
        );
        assert!(refusal.answer().headers.contains(&common), "{:?}", refusal.answer());
        assert_eq!(
            refusal.grpc_answer().headers,
            [
                ("content-type", "application/grpc".to_owned()),
                ("grpc-status", "16".to_owned()),
                ("grpc-message", "100%25 sure".to_owned()),
                ("tollkey-code", "invalid_api_key".to_owned()),
                common,
            ]
        );
        assert_eq!(percent_encoded("\u{fc}\n"), "%C3%BC%0A");
    }
}
