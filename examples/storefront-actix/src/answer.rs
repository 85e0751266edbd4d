//! The envelope that every answer comes in: `{"data": …, "error": …, "meta": {"requestId": …, "timestamp": …}}`.

use std::fmt;

use actix_web::{
    Error, HttpResponse, ResponseError,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    error::JsonPayloadError,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, HeaderValue},
    },
    middleware::Next,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// The time, in whole seconds.
#[must_use]
pub fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second())
        .unwrap_or_default()
        .to_string()
}

fn meta() -> Value {
    json!({"requestId": format!("req_{}", Uuid::now_v7().simple()), "timestamp": now()})
}

/// A success.
#[must_use]
pub fn data(status: StatusCode, data: impl Serialize) -> HttpResponse {
    HttpResponse::build(status).json(json!({"data": data, "error": null, "meta": meta()}))
}

/// The body of a failure; its code follows from the status.
fn fault(status: StatusCode, message: &str) -> String {
    let code = match status.as_u16() {
        401 => "INVALID_API_KEY",
        403 => "FORBIDDEN",
        404 => "NOT_FOUND",
        405 => "METHOD_NOT_ALLOWED",
        413 => "PAYLOAD_TOO_LARGE",
        415 => "UNSUPPORTED_MEDIA_TYPE",
        429 => "RATE_LIMITED",
        503 => "UNAVAILABLE",
        _ if status.is_client_error() => "VALIDATION_ERROR",
        _ => "INTERNAL_ERROR",
    };
    json!({"data": null, "error": {"code": code, "message": message}, "meta": meta()}).to_string()
}

/// Something is wrong.
#[derive(Debug, Clone)]
pub struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, message: &str) -> Self {
        Self {
            status,
            message: message.to_owned(),
        }
    }

    /// The key may not do this.
    #[must_use]
    pub fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// There is no such thing; somebody else's is none.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "There is no such thing in this account and environment.",
        )
    }

    /// No room.
    #[must_use]
    pub fn full(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// A body that does not say what it should.
    #[must_use]
    pub fn unreadable(error: &JsonPayloadError) -> Self {
        Self::new(error.status_code(), &error.to_string())
    }

    /// Holds a body to a rule.
    ///
    /// # Errors
    /// The failure, where it does not keep it.
    pub fn unless(kept: bool, rule: &str) -> Result<(), Self> {
        if kept {
            Ok(())
        } else {
            Err(Self::new(StatusCode::BAD_REQUEST, rule))
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::build(self.status)
            .content_type("application/json")
            .body(fault(self.status, &self.message))
    }
}

/// A layer that puts into the envelope what others have said outside of it: Tollkey's layer, when it refuses a key
/// (RFC 9457; its headers stay), and actix, when there is no such route.
///
/// # Errors
/// Those of the service.
pub async fn in_the_envelope(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let response = next.call(request).await?;
    let status = response.status();
    let is_failure = status.is_client_error() || status.is_server_error();
    let is_ours = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json");
    if !is_failure || is_ours {
        return Ok(response.map_into_boxed_body());
    }
    Ok(response.map_body(|head, body| {
        head.headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let said = detail(body).or_else(|| status.canonical_reason().map(str::to_owned));
        BoxBody::new(fault(status, &said.unwrap_or_default()))
    }))
}

/// What an RFC 9457 problem says in words.
fn detail(body: impl MessageBody) -> Option<String> {
    let bytes = body.try_into_bytes().ok()?;
    let problem: Value = serde_json::from_slice(&bytes).ok()?;
    problem["detail"].as_str().map(str::to_owned)
}
