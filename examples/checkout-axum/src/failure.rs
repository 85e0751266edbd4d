//! What is answered when something is wrong, in the form in which Tollkey's layer refuses keys (RFC 9457).

use axum::{
    Json,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::json;

/// Something is wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    status: StatusCode,
    detail: String,
}

impl Failure {
    /// There is no such thing; somebody else's is none.
    #[must_use]
    pub fn not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, detail: "There is no such thing in this account and mode.".to_owned() }
    }

    /// No room.
    #[must_use]
    pub fn full(detail: &str) -> Self {
        Self { status: StatusCode::INSUFFICIENT_STORAGE, detail: detail.to_owned() }
    }

    /// Holds a body to a rule.
    ///
    /// # Errors
    /// The failure, where it does not keep it.
    pub fn unless(kept: bool, rule: &str) -> Result<(), Self> {
        if kept { Ok(()) } else { Err(Self { status: StatusCode::BAD_REQUEST, detail: rule.to_owned() }) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason();
        let problem =
            json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail});
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], problem.to_string()).into_response()
    }
}

/// A JSON body; what cannot be read as one is a [`Failure`].
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let read = Json::from_request(request, state).await;
        let Json(body) = read.map_err(|rejection| Failure {
            // One status for every body that does not say what it should.
            status: match rejection.status() {
                StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                other => other,
            },
            detail: rejection.body_text(),
        })?;
        Ok(Self(body))
    }
}
