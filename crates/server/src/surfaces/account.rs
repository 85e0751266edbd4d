//! Account keys (storlaunch). A secret key manages the keys of its account; a management token
//! creates the first one.
//!
//! The routes are mounted under `/api/v1`, and under `/v1` as in the document. Each response is an
//! envelope, including the errors that the [`edge`](crate::edge) renders.

mod present;

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use tollkey_api::account as api;
use tollkey_service::{
    self as service,
    api_keys::{self, CreatedKey},
};
use ulid::Ulid;
use utoipa_actix_web::service_config::ServiceConfig;

use self::present::{audit_filter, created_key, enveloped, enveloped_list, key, new_key};
use super::{
    conditional::{self, IfMatch},
    members,
    parameters::path_id,
    retry::{IdempotencyHeader, Representation, respond},
};
use crate::{
    auth::AccountHolder,
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surface::{Document, ProblemSchema, Surface},
};

/// The OpenAPI document has only the routes under `/api/v1`.
pub fn under_v1(config: &mut web::ServiceConfig) {
    let scope = web::scope("/v1")
        .service(create)
        .service(list)
        .service(delete)
        .service(revoke)
        .service(audit_log);
    config.service(scope);
}

pub const SURFACE: Surface = Surface {
    alias: Some(("/v1/account", "/api/v1/account")),
    render: present::enveloped_problem,
    keeps_request_id: is_ulid,
    // The vendor's client libraries send both headers.
    idempotency_alias: Some("X-Idempotency-Key"),
    ..Surface::api(
        &["/v1", "/api/v1/account"],
        Document {
            has_account_parameter: true,
            problem: || ProblemSchema::of::<api::ErrorEnvelope>("application/json"),
            ..Document::new(
                "account keys",
                "Secret keys (`sk_`) and publishable keys (`pk_`) of an account. Each response is an envelope. The paths \
                 also exist without `/api`.",
            )
        },
    )
};

/// Returns whether a text is a request ID of this surface: `req_` and a ULID.
fn is_ulid(text: &str) -> bool {
    text.strip_prefix("req_")
        .filter(|ulid| matches!(ulid.as_bytes().first(), Some(b'0'..=b'7')))
        .is_some_and(|ulid| Ulid::from_string(ulid).is_ok())
}

pub fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(create)
        .service(list)
        .service(delete)
        .service(revoke)
        .service(audit_log);
}

/// Create an account key.
///
/// Returns the key, including the full key in `value`. No other response contains it.
///
/// With a secret key as the caller, the new key is a child of that key. It cannot exceed its parent
/// key: a test key creates only test keys, and the expiration, the IP allowlist and the rate limit
/// must be within those of the parent key. Limits that the request omits are taken from the parent
/// key. A key at the maximum depth (a setting, default 3) cannot create keys.
///
/// The header `X-Idempotency-Key` counts as `Idempotency-Key` if it is sent alone. If both are sent,
/// they must be equal.
#[utoipa::path(
    tag = "account keys",
    operation_id = "createAccountKey",
    security(("secret_key" = []), ("management_token" = [])),
    request_body(content = api::CreateKey),
    responses(
        (status = 201, description = "The new key, including the full key.", body = tollkey_api::openapi::CreatedAccountKeyEnvelope),
        (status = 403, description = "`forbidden`: the credential does not allow this operation, or the new key exceeds its parent key; `key_limit_reached`: the account has the maximum number of keys; `key_depth_limit_reached`: the parent key has the maximum depth.", body = api::ErrorEnvelope),
    )
)]
#[post("/account/api-keys")]
pub async fn create(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    retry: IdempotencyHeader,
    body: Body,
) -> HandlerResult {
    let by = &holder.0;
    let run = async |creating| {
        let now = state.service.clock.now();
        let (family, fields) = body
            .read_json()?
            .check(|body, checks| new_key(body, now, checks))?;
        api_keys::create(&state.service, by, family, fields, creating).await
    };
    let outcome = retry.once(&state, by, &body, run).await?;
    let show = |created: &CreatedKey| Representation {
        location: None,
        tag: created.key.entity_tag(),
        body: created_key(&created.key, &created.text),
    };
    respond(outcome, show, |json| {
        present::enveloped_text(&request, &state, json)
    })
}

/// List account keys.
///
/// Returns secret and publishable keys, newest first, including revoked ones. A test key sees only
/// test keys. To get the next page, send `meta.nextCursor` as `cursor`, until it is null. A page
/// can have fewer keys than `limit`, or none, although more pages follow.
#[utoipa::path(
    tag = "account keys",
    operation_id = "listAccountKeys",
    security(("secret_key" = []), ("management_token" = [])),
    params(api::ListKeys),
    responses((status = 200, description = "A page of keys.", body = tollkey_api::openapi::AccountKeyListEnvelope))
)]
#[get("/account/api-keys")]
pub async fn list(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    query: Query,
) -> HandlerResult {
    let query: api::ListKeys = query.read()?;
    let (limit, after) = members::listing(query.limit, query.cursor.as_deref())?;
    let found = api_keys::list(
        &state.service,
        &holder.0,
        api_keys::KeyQuery::of(api_keys::ACCOUNT),
        after,
        limit,
    )
    .await?;
    let keys = found.keys.iter().map(key).collect();
    let next = found.next.map(members::shown_cursor);
    Ok(HttpResponse::Ok().json(enveloped_list(&request, &state, keys, next)))
}

/// Revoke an account key.
///
/// Returns the revoked key. Revocation is final, applies immediately on every replica, and also
/// revokes all descendants of the key. Repeating the request has no further effect.
#[utoipa::path(
    tag = "account keys",
    operation_id = "deleteAccountKey",
    security(("secret_key" = []), ("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: `key_` and 26 characters, or a UUID.")),
    responses((status = 200, description = "The revoked key.", body = tollkey_api::openapi::AccountKeyEnvelope))
)]
#[delete("/account/api-keys/{id}")]
pub async fn delete(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    id: web::Path<String>,
    if_match: IfMatch,
) -> HandlerResult {
    revoke_key(&request, &state, &holder, &id, if_match).await
}

/// Revoke an account key with POST.
///
/// Does the same as `DELETE /account/api-keys/{id}`, for clients that cannot send DELETE.
#[utoipa::path(
    tag = "account keys",
    operation_id = "revokeAccountKey",
    security(("secret_key" = []), ("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: `key_` and 26 characters, or a UUID.")),
    request_body(content = Option<tollkey_api::commerce::Nothing>),
    responses((status = 200, description = "The revoked key.", body = tollkey_api::openapi::AccountKeyEnvelope))
)]
#[post("/account/api-keys/{id}/revoke")]
pub async fn revoke(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let tollkey_api::commerce::Nothing {} = body.json_or_nothing()?;
    revoke_key(&request, &state, &holder, &id, if_match).await
}

async fn revoke_key(
    request: &HttpRequest,
    state: &State,
    holder: &AccountHolder,
    id: &str,
    if_match: IfMatch,
) -> HandlerResult {
    let revoked = api_keys::revoke(
        &state.service,
        &holder.0,
        api_keys::ACCOUNT,
        path_id(id)?,
        None,
        if_match.preconditions()?,
    )
    .await?;
    Ok(conditional::ok(revoked.entity_tag()).json(enveloped(request, state, key(&revoked))))
}

/// List the audit log of the account.
///
/// Returns one entry for each change, newest first. A test key sees only the entries of test keys.
/// To get the next page, send `meta.nextCursor` as `cursor`, until it is null. A page can have
/// fewer entries than `limit`, or none, although more pages follow.
#[utoipa::path(
    tag = "account keys",
    operation_id = "listAccountAuditLog",
    security(("secret_key" = []), ("management_token" = [])),
    params(api::ListAuditLog),
    responses((status = 200, description = "A page of entries.", body = tollkey_api::openapi::AccountAuditListEnvelope))
)]
#[get("/account/audit-log")]
pub async fn audit_log(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    query: Query,
) -> HandlerResult {
    let (entries, next) = match audit_filter(query.read()?)? {
        Some(filter) => {
            let found = service::audit::list(&state.service, &holder.0, filter).await?;
            let entries = found.entries.iter().map(present::entry).collect();
            (entries, found.next.map(|next| next.to_string()))
        }
        None => (Vec::new(), None),
    };
    Ok(HttpResponse::Ok().json(enveloped_list(&request, &state, entries, next)))
}
