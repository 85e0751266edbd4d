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
    detail: &'static str,
}

impl Failure {
    /// There is no such thing; what the key may not see is none.
    #[must_use]
    pub fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            detail: "There is no such thing.",
        }
    }

    /// No room.
    #[must_use]
    pub fn full(detail: &'static str) -> Self {
        Self {
            status: StatusCode::INSUFFICIENT_STORAGE,
            detail,
        }
    }

    /// Where data is forwarded to does not answer as it should.
    #[must_use]
    pub fn upstream(detail: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            detail,
        }
    }

    /// Where data is forwarded to does not answer in time.
    #[must_use]
    pub fn too_slow() -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            detail: "The receiver did not answer in time.",
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason();
        let problem = json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail});
        (
            self.status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            problem.to_string(),
        )
            .into_response()
    }
}

/// A JSON body.
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
            // Not the text of the rejection: it quotes what it does not understand, and that may be a card number.
            detail: "The body is not what this route takes.",
        })?;
        Ok(Self(body))
    }
}
