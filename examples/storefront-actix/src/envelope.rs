//! The envelope of every response: `{"data": …, "error": …, "meta": {"requestId": …, "timestamp": …}}`.

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

/// Returns the current time, in whole seconds.
#[must_use]
pub fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second())
        .unwrap_or_default()
        .to_string()
}

fn meta() -> Value {
    json!({"requestId": format!("req_{}", Uuid::now_v7().simple()), "timestamp": now()})
}

/// Returns a successful response.
#[must_use]
pub fn data(status: StatusCode, data: impl Serialize) -> HttpResponse {
    HttpResponse::build(status).json(json!({"data": data, "error": null, "meta": meta()}))
}

/// Returns the body of an error response; the status determines its code.
fn error_body(status: StatusCode, message: &str) -> String {
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

/// An error response.
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

    /// 403: the key does not allow this.
    #[must_use]
    pub fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: the object does not exist, or belongs to another account.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "The object does not exist in this account and environment.",
        )
    }

    /// 503: the maximum number of objects is reached.
    #[must_use]
    pub fn full(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The error for a body that cannot be parsed.
    #[must_use]
    pub fn unreadable(error: &JsonPayloadError) -> Self {
        Self::new(error.status_code(), &error.to_string())
    }

    /// Returns an error with this rule unless it is kept.
    ///
    /// # Errors
    /// 400 if `is_kept` is `false`.
    pub fn unless(is_kept: bool, rule: &str) -> Result<(), Self> {
        if is_kept {
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
            .body(error_body(self.status, &self.message))
    }
}

/// Middleware that puts errors of others into the envelope: rejections of Tollkey's layer (RFC 9457; the headers stay),
/// and actix's error for an unknown route.
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
        let message = detail(body).or_else(|| status.canonical_reason().map(str::to_owned));
        BoxBody::new(error_body(status, &message.unwrap_or_default()))
    }))
}

/// Returns the detail of a problem (RFC 9457).
fn detail(body: impl MessageBody) -> Option<String> {
    let bytes = body.try_into_bytes().ok()?;
    let problem: Value = serde_json::from_slice(&bytes).ok()?;
    problem["detail"].as_str().map(str::to_owned)
}
