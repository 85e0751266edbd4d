//! The errors that operations have in common, and the headers of all responses.

use serde_json::json;
use utoipa::openapi::{
    ContentBuilder, Header, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder,
    Type,
    path::{Operation, Parameter, ParameterIn},
};

use super::security::{Callers, MANAGEMENT_TOKEN};
use crate::surface::{ProblemSchema, Surface};

const IDEMPOTENT_REPLAYED: &str = "Idempotent-Replayed";
const RATE_LIMIT: &str = "RateLimit";
const RATE_LIMIT_POLICY: &str = "RateLimit-Policy";
const RETRY_AFTER: &str = "Retry-After";
const WWW_AUTHENTICATE: &str = "WWW-Authenticate";
const X_REQUEST_ID: &str = "X-Request-Id";

/// Returns the headers that responses refer to.
pub(super) fn headers() -> [(&'static str, Header); 6] {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let header = |schema: ObjectBuilder, description: &str| {
        HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(description))
            .build()
    };
    [
        (
            IDEMPOTENT_REPLAYED,
            header(
                ObjectBuilder::new().schema_type(Type::Boolean),
                "`true` if this is the response to an earlier request with the same `Idempotency-Key`. Absent otherwise.",
            ),
        ),
        (
            RATE_LIMIT,
            header(
                text().examples([json!("\"key\";r=42;t=17")]),
                "The remaining uses of the presented key, and the seconds until all are available again \
                 (draft-ietf-httpapi-ratelimit-headers-11). Absent for a key without a rate limit.",
            ),
        ),
        (
            RATE_LIMIT_POLICY,
            header(
                text().examples([json!("\"key\";q=100;w=60")]),
                "The rate limit of the presented key (draft-ietf-httpapi-ratelimit-headers-11). Absent for a key \
                 without a rate limit.",
            ),
        ),
        (
            RETRY_AFTER,
            header(
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .minimum(Some(0)),
                "The number of seconds after which to send the request again.",
            ),
        ),
        (
            WWW_AUTHENTICATE,
            header(
                text().examples([json!("Bearer realm=\"tollkey\"")]),
                "The challenge of RFC 6750. Absent for an error that does not concern the credential.",
            ),
        ),
        (
            X_REQUEST_ID,
            header(
                text()
                    .max_length(Some(128))
                    .examples([json!(super::examples::REQUEST_ID)]),
                "The ID of the request, which the log of the server also has. The server accepts a well-formed one in \
                 the header of the request, and otherwise generates it.",
            ),
        ),
    ]
}

pub(super) fn complete(
    path: &str,
    surface: &Surface,
    callers: &Callers,
    operation: &mut Operation,
) {
    let is_creation = operation.responses.responses.contains_key("201");
    add_problems(path, surface, callers, is_creation, operation);
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            complete_schemas(response);
            add_headers(status, surface, callers, is_creation, response);
        }
    }
}

/// Rewrites the schemas that are not references to components.
fn complete_schemas(response: &mut Response) {
    for content in response.content.values_mut() {
        if let RefOr::T(content) = content
            && let Some(schema) = &mut content.schema
        {
            tollkey_api::openapi::complete_inline(schema);
        }
    }
}

/// Adds the errors that the operation does not describe itself. A description begins with the code of its example.
fn add_problems(
    path: &str,
    surface: &Surface,
    callers: &Callers,
    is_creation: bool,
    operation: &mut Operation,
) {
    let document = surface.document;
    let invalid = invalid_request(surface, operation);
    let has_body = operation.request_body.is_some();
    let mut add = |status: &str, description: &str| {
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert_with(|| problem(surface, description));
    };
    if document.has_common_responses {
        if has_body {
            add(
                "408",
                "`request_timeout`: the body did not arrive within 15 seconds.",
            );
            add(
                "413",
                "`payload_too_large`: the body is larger than 64 KiB.",
            );
            add(
                "415",
                "`unsupported_media_type`: the `Content-Type`, its charset or the `Content-Encoding` is not supported.",
            );
        }
        if is_creation {
            add(
                "409",
                "`idempotency_in_progress`: the first request with this `Idempotency-Key` is still running. `idempotency_replay_unavailable`: its response cannot be replayed.",
            );
            add(
                "422",
                "`idempotency_mismatch`: this `Idempotency-Key` was already used with a different body.",
            );
        }
        add("400", invalid);
        add(
            "401",
            if callers.has(MANAGEMENT_TOKEN) {
                "`missing_credentials`, `invalid_token` or `invalid_api_key`."
            } else {
                "`missing_credentials`, `invalid_api_key` (for unknown and for revoked keys) or `invalid_token`."
            },
        );
        add("403", document.forbidden);
        if callers.have_api_keys() {
            add(
                "429",
                "`rate_limited`: the rate limit of the presented key is exceeded.",
            );
        }
        if path.contains('{') && document.has_ids {
            add(
                "404",
                "`not_found`: the resource does not exist or belongs to another account.",
            );
        }
        add(
            "503",
            "`unavailable`: the server cannot process the request now.",
        );
    }
    add(
        "default",
        "`internal_error`, or another error that is not listed here.",
    );
}

fn invalid_request(surface: &Surface, operation: &Operation) -> &'static str {
    let is_checked = |parameter: &RefOr<Parameter>| match parameter {
        RefOr::T(own) => own.parameter_in != ParameterIn::Path,
        RefOr::Ref(_) => true,
    };
    if operation.request_body.is_some() {
        "`validation_failed`, `malformed_json` or `multiple_credentials`."
    } else if !surface.is_for_gateways && operation.parameters.iter().flatten().any(is_checked) {
        "`validation_failed` or `multiple_credentials`."
    } else {
        "`multiple_credentials`: the request has more than one credential."
    }
}

/// Describes an error in the format of the surface.
pub(super) fn problem(surface: &Surface, description: &str) -> RefOr<Response> {
    let ProblemSchema {
        name, media_type, ..
    } = (surface.document.problem)();
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(name)))
        .build();
    ResponseBuilder::new()
        .description(description)
        .content(media_type, content)
        .into()
}

fn add_headers(
    status: &str,
    surface: &Surface,
    callers: &Callers,
    is_creation: bool,
    response: &mut Response,
) {
    let mut add = |name: &str| {
        let reference = Ref::new(format!("#/components/headers/{name}"));
        response
            .headers
            .entry(name.to_owned())
            .or_insert(RefOr::Ref(reference));
    };
    add(X_REQUEST_ID);
    match status {
        "201" => add(IDEMPOTENT_REPLAYED),
        "400" | "401" if !callers.is_open() => add(WWW_AUTHENTICATE),
        // Only gateways require scopes.
        "403" if surface.is_for_gateways => add(WWW_AUTHENTICATE),
        "409" if is_creation => add(RETRY_AFTER),
        "429" | "503" => add(RETRY_AFTER),
        _ => {}
    }
    let has_rate_limit = status == "429"
        || (status.starts_with('2') && callers.have_api_keys() && !surface.is_for_gateways);
    if has_rate_limit {
        add(RATE_LIMIT);
        add(RATE_LIMIT_POLICY);
    }
}
