//! What is answered when a handler cannot do what it should, in the form in which Tollkey's layer refuses keys (RFC 9457).

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Why it cannot.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    /// The account has no such thing in this mode. That somebody else has it, nobody is told.
    NotFound,
    /// The body does not keep this rule.
    Invalid(&'static str),
    /// There is no room.
    Full,
    /// The account has as many open event streams as it can have.
    TooManyStreams,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "There is no such thing in this account and mode.",
            ),
            Self::Invalid(rule) => (StatusCode::UNPROCESSABLE_ENTITY, rule),
            Self::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                "There are too many of these.",
            ),
            Self::TooManyStreams => (
                StatusCode::TOO_MANY_REQUESTS,
                "Close an event stream before you open another one.",
            ),
        };
        let problem = json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": detail,
        });
        (
            status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            problem.to_string(),
        )
            .into_response()
    }
}
