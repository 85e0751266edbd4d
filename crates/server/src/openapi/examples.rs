//! The examples of requests and errors, which Swagger UI shows. A request example is the smallest one that works, and
//! Swagger UI sends it unless it is edited.

use std::iter;

use actix_web::{HttpResponse, body::MessageBody as _, http::StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tollkey_core::{
    Denial, Problem, ProblemCode, Scope,
    api_key::TransitionError,
    credential::{CredentialHeaders, Expected, client},
};
use utoipa::openapi::{
    RefOr,
    path::{Operation, Parameter},
};

use super::security::{
    API_KEY, CLIENT_SECRET_BASIC, Callers, MANAGEMENT_TOKEN, SECRET_KEY, SERVICE_KEY,
};
use crate::{
    body::MAX_BODY,
    public_path::PublicPath,
    surface::{Rendered, Surface},
};

/// The ID of the request in all examples.
pub(super) const REQUEST_ID: &str = "req_01K30DW000E008000000000001";
/// 2026-02-23T12:00:00Z, the time of all examples.
const NOW: i64 = 1_771_848_000;
/// The SHA-256 of `ck_test_EXAMPLE1`.
const DIGEST: &str = "e5c0bf22f8bffac840ab1f163b24ebab98a6a7a60951e51802de34aabde89925";
const PLACEHOLDER: &str = "ck_test_YOUR_KEY_HERE";

/// A body, and a field of it that could be invalid, with the rule that it would break.
struct RequestExample {
    body: Value,
    error: (&'static str, &'static str),
}

fn request(operation_id: &str) -> Option<RequestExample> {
    let is_required = "is required";
    let (body, error) = match operation_id {
        "createApplication" => (
            json!({"name": "Web store"}),
            ("/name", "must have 1 to 100 characters"),
        ),
        "updateApplication" => (
            json!({"description": "The production store"}),
            ("/name", "cannot be cleared"),
        ),
        "setApplicationStatus" => (json!({"isEnabled": true}), ("/isEnabled", is_required)),
        "createApplicationKey" => (
            json!({"description": "Checkout server"}),
            ("/description", "must have 1 to 255 characters"),
        ),
        "createCommerceKey" => (
            json!({"name": "Checkout server"}),
            ("/name", "must have 1 to 255 characters"),
        ),
        "updateCommerceKey" => (
            json!({"name": "Checkout server EU"}),
            ("/name", "cannot be cleared"),
        ),
        "revokeCommerceKey" => (
            json!({"reason": "No longer used"}),
            ("/reason", "must have at most 255 characters"),
        ),
        "suspendCommerceKey" | "resumeCommerceKey" | "revokeAccountKey" => {
            (json!({}), ("/reason", "is unknown"))
        }
        "rotateCommerceKey" => (
            json!({"overlap_seconds": 3600}),
            ("/overlap_seconds", "must be between 0 and 604800"),
        ),
        "createAccountKey" => (
            json!({"name": "Webhook handler", "environment": "test", "access": "secret"}),
            ("/name", "must have 1 to 100 characters"),
        ),
        "verify" => (json!({"key": PLACEHOLDER}), ("/key", is_required)),
        "verifyBatch" => (
            json!({"requests": [{"key": PLACEHOLDER}]}),
            ("/requests", "must have 1 to 100 items"),
        ),
        "unkeyVerifyKey" => (json!({"key": PLACEHOLDER}), ("/key", is_required)),
        "introspect" => (json!({"token": PLACEHOLDER}), ("/token", is_required)),
        "sync" => (
            json!({"subscriber": "0f1e2d3c4b5a69788796a5b4c3d2e1f0"}),
            ("/subscriber", is_required),
        ),
        "syncLookup" => (json!({"digest": DIGEST}), ("/digest", is_required)),
        "putAccount" => (
            json!({"operating_model": "ecosystem"}),
            ("/operating_model", is_required),
        ),
        "createServiceKey" => (
            json!({"name": "Checkout gateway"}),
            ("/name", "must have 1 to 100 characters"),
        ),
        _ => return None,
    };
    Some(RequestExample { body, error })
}

/// What the details of errors depend on.
struct Context<'a> {
    request: Option<&'a RequestExample>,
    media_types: Vec<String>,
    has_account_parameter: bool,
    has_preconditions: bool,
    is_for_operators: bool,
    is_for_gateways: bool,
    callers: &'a Callers,
}

impl Context<'_> {
    /// Returns the problem with this code.
    fn problem(&self, code: &str) -> Option<Problem> {
        use ProblemCode as Code;
        let problem = match code {
            "validation_failed" => {
                let (pointer, rule) = match self.request {
                    Some(request) => request.error,
                    None if self.has_account_parameter => (
                        "account",
                        "is required when an operator calls this operation",
                    ),
                    None if self.has_preconditions => (
                        "If-Match",
                        "must be * or a list of ETag values with their quotation marks",
                    ),
                    None => return None,
                };
                Problem::field(pointer, rule)
            }
            "multiple_credentials" => Problem::new(
                Code::MultipleCredentials,
                "The request has more than one credential. Send exactly one, in one header.",
            ),
            "key_already_revoked" => Problem::new(
                Code::KeyAlreadyRevoked,
                "The key is already revoked. Nothing was changed.",
            ),
            "missing_credentials" if self.callers.has(CLIENT_SECRET_BASIC) => client::missing(),
            "missing_credentials" => {
                let expected = if self.is_for_gateways {
                    Expected::ApiKey
                } else {
                    Expected::Any
                };
                CredentialHeaders::default().missing(expected)
            }
            "forbidden" => Problem::forbidden(self.required_credential()),
            "insufficient_scope" => Problem {
                missing_scopes: iter::once(Scope::LINKS_WRITE).collect(),
                ..Problem::denied(Denial::InsufficientScope)
            },
            "not_found" => Problem::not_found(),
            "request_timeout" => Problem::request_timeout(),
            "application_name_taken" => Problem::new(
                Code::ApplicationNameTaken,
                "The account already has an application with this name. Choose another name.",
            ),
            "key_revoked" => TransitionError::Revoked.into(),
            "idempotency_in_progress" => Problem::idempotency_in_progress(),
            "subscriber_id_shared" => Problem::new(
                Code::SubscriberIdShared,
                "Another process polls with this subscriber ID. Evict every cached key and continue with a new random ID.",
            ),
            "idempotency_mismatch" => Problem::new(
                Code::IdempotencyMismatch,
                "This Idempotency-Key was already used with a different body. Send the same body, or another Idempotency-Key.",
            ),
            "precondition_failed" => Problem::precondition_failed(),
            "payload_too_large" => Problem::new(
                Code::PayloadTooLarge,
                format!("The body must have at most {MAX_BODY} bytes."),
            ),
            "unsupported_media_type" => Problem::new(
                Code::UnsupportedMediaType,
                format!(
                    "The Content-Type header must be {}.",
                    self.media_types.join(" or ")
                ),
            ),
            "rate_limited" => Problem::denied(Denial::RateLimited),
            "internal_error" => Problem::internal(),
            "unavailable" => Problem::unavailable(),
            _ => return None,
        };
        Some(problem)
    }

    fn required_credential(&self) -> &'static str {
        if self.is_for_operators {
            "This operation requires a management token with the role `operator`."
        } else if self.callers.has(API_KEY) {
            "This operation requires an API key. Send an API key instead of a management token."
        } else if self.callers.has(SERVICE_KEY) && self.callers.has(SECRET_KEY) {
            "This operation requires a service key, a management token with the role `service`, or a secret key."
        } else if self.callers.has(SERVICE_KEY) {
            "This operation requires a service key, or a management token with the role `service`."
        } else if self.callers.has(MANAGEMENT_TOKEN) && self.callers.has(SECRET_KEY) {
            "This operation requires a secret key or a management token."
        } else {
            "This operation requires a management token. Send a management token instead of a key."
        }
    }
}

pub(super) fn complete(surface: &Surface, callers: &Callers, operation: &mut Operation) {
    let request = request(operation.operation_id.as_deref().unwrap_or_default());
    let mut media_types = Vec::new();
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        for (media_type, content) in &mut body.content {
            media_types.push(media_type.clone());
            if let (RefOr::T(content), Some(request)) = (content, &request) {
                content.example.get_or_insert_with(|| request.body.clone());
            }
        }
    }
    let has_parameter = |name: &str| {
        let is_named = |own: &RefOr<Parameter>| matches!(own, RefOr::T(own) if own.name == name);
        operation.parameters.iter().flatten().any(is_named)
    };
    let mut tags = operation.tags.iter().flatten();
    let context = Context {
        request: request.as_ref(),
        media_types,
        has_account_parameter: has_parameter("account"),
        has_preconditions: has_parameter("If-Match"),
        is_for_operators: tags.any(|tag| tag == "operator"),
        is_for_gateways: surface.is_for_gateways,
        callers,
    };
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else {
            continue;
        };
        let is_success = status.starts_with('2');
        let problem = first_code(&response.description).and_then(|code| context.problem(code));
        let (false, Some(problem)) = (is_success, problem) else {
            continue;
        };
        for content in response.content.values_mut() {
            if let RefOr::T(content) = content
                && content.example.is_none()
            {
                content.example = render(surface, &problem);
            }
        }
    }
}

/// Returns the first code in a description such as "`not_found`: the resource does not exist".
fn first_code(description: &str) -> Option<&str> {
    description.split('`').nth(1)
}

/// Renders an error as the surface does.
fn render(surface: &Surface, problem: &Problem) -> Option<Value> {
    let status = StatusCode::from_u16(problem.code.status()).ok()?;
    let public_path = PublicPath::default();
    let rendered = Rendered {
        problem,
        request_id: REQUEST_ID,
        now: Timestamp::from_second(NOW).ok()?,
        public_path: &public_path,
    };
    let response = (surface.render)(HttpResponse::build(status), &rendered);
    let body = response.into_body().try_into_bytes().ok()?;
    serde_json::from_slice(&body).ok()
}
