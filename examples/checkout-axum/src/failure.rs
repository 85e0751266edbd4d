//! The errors of handlers, in the form of the rejections of Tollkey's layer (RFC 9457).

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// The error of a handler.
#[derive(Debug, Clone, Copy)]
pub enum Failure {
    /// The object does not exist in this mode, or belongs to another account.
    NotFound,
    /// The body breaks this rule.
    Invalid(&'static str),
    /// The maximum number of objects is reached.
    Full,
    /// The account has the maximum number of open event streams.
    TooManyStreams,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::NotFound => (
                StatusCode::NOT_FOUND,
                "The object does not exist in this account and mode.",
            ),
            Self::Invalid(rule) => (StatusCode::UNPROCESSABLE_ENTITY, rule),
            Self::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                "The maximum number of objects is reached.",
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
