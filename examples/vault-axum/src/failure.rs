//! Errors, in the form of the rejections of Tollkey's layer (RFC 9457).

use axum::{
    Json,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::json;

/// An error response.
#[derive(Debug, Clone)]
pub struct Failure {
    status: StatusCode,
    detail: &'static str,
}

impl Failure {
    /// 404: the object does not exist, or the key does not permit access to it.
    #[must_use]
    pub fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            detail: "The object does not exist.",
        }
    }

    /// 507: the maximum number of objects is reached.
    #[must_use]
    pub fn full(detail: &'static str) -> Self {
        Self {
            status: StatusCode::INSUFFICIENT_STORAGE,
            detail,
        }
    }

    /// 502: the receiver cannot be reached, or its response cannot be used.
    #[must_use]
    pub fn upstream(detail: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            detail,
        }
    }

    /// 504: the receiver does not respond in time.
    #[must_use]
    pub fn too_slow() -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            detail: "The receiver did not respond in time.",
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
            // Every invalid body gets the same status.
            status: match rejection.status() {
                StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                other => other,
            },
            // Not the text of the rejection, which quotes the body and could contain a card number.
            detail: "The body is invalid for this route.",
        })?;
        Ok(Self(body))
    }
}
