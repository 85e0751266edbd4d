//! Verification compatible with version 2 of Unkey's API, for the SDKs `@unkey/api` and `unkey.py`.
//!
//! The route is at the root, where the SDKs expect it, and under `/api`, for a server of which a
//! proxy exposes only `/api`. Each response, including the errors that the [`edge`](crate::edge)
//! renders, has the form that the SDKs parse.

mod present;

use actix_web::{HttpRequest, HttpResponse, post, web};
use tollkey_api::unkey as api;
use tollkey_core::{AccessRequest, Catalogue, FieldErrors, Invalid, ScopeExpression};
use utoipa_actix_web::service_config::ServiceConfig;

use crate::{
    auth::VerificationCaller,
    body::Body,
    rejection::HandlerResult,
    request_id::request_id,
    state::State,
    surface::{Document, ProblemSchema, Surface},
};

const MAX_TAGS: usize = 20;
const MAX_TAG: usize = 256;
const MAX_MIGRATION_ID: usize = 256;

pub const SURFACE: Surface = Surface {
    alias: Some(("/api/v2", "/v2")),
    render: present::problem,
    ..Surface::api(
        &["/v2", "/api/v2"],
        Document {
            problem: || ProblemSchema::of::<api::ErrorResponse>("application/json"),
            ..Document::new(
                "unkey",
                "Verification compatible with the SDKs of Unkey's API, version 2: `@unkey/api` 2.5 and `unkey.py` 3.2. The \
                 code of an error is at the end of its `type`, except for 429, whose type is the one that IANA \
                 registers. The path also exists under `/api`.",
            )
        },
    )
};

pub fn configure(config: &mut ServiceConfig<'_>) {
    config.service(verify_key);
}

/// The OpenAPI document has only the route at the root.
pub fn under_api(config: &mut web::ServiceConfig) {
    config.service(web::scope("/api/v2").service(verify_key));
}

/// Verify a key (Unkey).
///
/// Returns whether a presented key is valid, in the format of Unkey's API. A denied key is not an
/// error: the response is 200 with `"valid": false` and the code of the first reason that applies.
///
/// `permissions` is an expression of scopes. A key lacks every scope that the server does not know.
/// A key with an IP allowlist, merchants or features, and a publishable key, is always `FORBIDDEN`,
/// because the request cannot have the client's IP address, merchant, method and path.
///
/// The same callers as of `POST /verify` see the same keys. Each valid result counts as one use of
/// the key's rate limit. `credits`, `keyspaces` and `ratelimits` are rejected.
#[utoipa::path(
    tag = "unkey",
    operation_id = "unkeyVerifyKey",
    security(("service_key" = []), ("secret_key" = []), ("management_token" = [])),
    request_body(content = api::VerifyKeyRequest),
    responses(
        (status = 200, description = "The result: the key is valid or denied.", body = api::VerifyKeyResponse),
        (status = 429, description = "`rate_limited`: the rate limit of the presented secret key is exceeded.", body = api::ErrorResponse, content_type = "application/problem+json"),
    )
)]
#[post("/keys.verifyKey")]
pub async fn verify_key(
    request: HttpRequest,
    state: web::Data<State>,
    caller: VerificationCaller,
    body: Body,
) -> HandlerResult {
    let body = body.read_json()?;
    let catalogue = &state.service.catalogue;
    let (key, permissions) =
        body.check_ref(|body, checks| read_request(body, catalogue, checks))?;
    let access = AccessRequest {
        viewer: caller.viewer(),
        scope_expression: permissions.as_ref(),
        ..AccessRequest::default()
    };
    let verdict = state
        .service
        .verify(|| caller.requester(), key, &access)
        .await?;
    let now = state.service.clock.now();
    Ok(HttpResponse::Ok().json(api::VerifyKeyResponse {
        meta: api::Meta {
            request_id: request_id(&request).to_string(),
        },
        data: present::verification(&verdict, catalogue, now),
    }))
}

fn read_request<'a>(
    body: &'a api::VerifyKeyRequest,
    catalogue: &Catalogue,
    checks: &mut FieldErrors,
) -> Option<(&'a str, Option<ScopeExpression>)> {
    for (pointer, is_present, rule) in [
        (
            "/credits",
            body.credits.is_some(),
            "is not supported, because keys have no credits; omit it",
        ),
        (
            "/keyspaces",
            body.keyspaces.is_some(),
            "is not supported, because keys are in no keyspace; omit it",
        ),
        (
            "/ratelimits",
            body.ratelimits.is_some(),
            "is not supported; omit it, and set the rate limit of the key instead",
        ),
    ] {
        if is_present {
            checks.add(pointer, rule);
        }
    }
    check_tags(body.tags.as_deref().unwrap_or_default(), checks);
    let migration_id = body.migration_id.as_deref().unwrap_or_default();
    if migration_id.chars().count() > MAX_MIGRATION_ID {
        checks.add(
            "/migrationId",
            format!("must have at most {MAX_MIGRATION_ID} characters"),
        );
    }
    let permissions = body.permissions.as_deref();
    let permissions = permissions.map(|text| ScopeExpression::parse(text, catalogue));
    let permissions = checks.check("/permissions", permissions.transpose())?;
    Some((body.key.expose(), permissions))
}

fn check_tags(tags: &[String], checks: &mut FieldErrors) {
    if tags.len() > MAX_TAGS {
        checks.add("/tags", format!("must have at most {MAX_TAGS} items"));
    }
    for (index, tag) in tags.iter().take(MAX_TAGS).enumerate() {
        checks.check(&format!("/tags/{index}"), check_tag(tag));
    }
}

fn check_tag(tag: &str) -> Result<(), Invalid> {
    let is_allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'=' | b'/' | b'.' | b':' | b'-');
    if (1..=MAX_TAG).contains(&tag.len()) && tag.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err(Invalid::new(format!(
            "must have 1 to {MAX_TAG} characters from A-Z a-z 0-9 _ = / . : -"
        )))
    }
}
