//! Commerce keys (pepay, crypto-checkout, hellgate), for management tokens of an account and
//! operators.

mod present;

use actix_web::{HttpResponse, get, http::header, patch, post, web};
use tollkey_api::commerce as api;
use tollkey_core::{Family, api_key::Overlap, text};
use tollkey_service::api_keys::{self, CreatedKey};
use utoipa_actix_web::service_config::ServiceConfig;

use self::present::{created_key, edit, key, new_key};
use super::{
    conditional::{self, IfMatch},
    members,
    parameters::path_id,
    retry::{IdempotencyHeader, Representation, plain},
};
use crate::{
    auth::ManagementCaller,
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surface::{Document, Surface},
};

pub const SURFACE: Surface = Surface::api(
    &["/api/v1/api-keys"],
    Document {
        has_account_parameter: true,
        ..Document::new(
            "commerce keys",
            "Keys for commerce operations (`ck_`), including scoped keys.",
        )
    },
);

pub fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(create)
        .service(list)
        .service(get)
        .service(update)
        .service(revoke)
        .service(suspend)
        .service(resume)
        .service(rotate);
}

/// The response to a revocation, as the document defines it.
const REVOKED: &str = "API key revoked successfully";

fn shown(created: &CreatedKey) -> Representation<api::CreatedKey> {
    let location = format!("/api/v1/api-keys/{}", created.key.id);
    Representation {
        location: Some(location),
        tag: created.key.entity_tag(),
        body: created_key(&created.key, &created.text),
    }
}

/// Create a commerce key.
///
/// Returns the key, including the full key in `api_key`. No other response contains it. A key with
/// `merchants` or `features` is a scoped key, which requires the operating model `ecosystem` or
/// `managed_ecosystem`.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "createCommerceKey",
    security(("management_token" = [])),
    request_body(content = api::CreateKey),
    responses(
        (status = 201, description = "The new key, including the full key.", body = api::CreatedKey, headers(("Location" = String, description = "The path of the new key."))),
        (status = 403, description = "`forbidden`; `scoped_keys_unavailable` or `feature_unavailable`: not included in the account's operating model; `key_limit_reached`: the account has the maximum number of keys.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys")]
pub async fn create(
    state: web::Data<State>,
    caller: ManagementCaller,
    retry: IdempotencyHeader,
    body: Body,
) -> HandlerResult {
    let by = &caller.0;
    let run = async |creating| {
        let now = state.service.clock.now();
        let fields = body
            .read_json_or_nothing()?
            .check(|body, checks| new_key(body, &state.service.catalogue, now, checks))?;
        api_keys::create(&state.service, by, Family::Commerce, fields, creating).await
    };
    plain(retry.once(&state, by, &body, run).await?, shown)
}

/// List commerce keys.
///
/// Returns an array of keys, newest first, including revoked ones. If more keys follow, the
/// response has a `Link` header with `rel="next"`. A page can have fewer keys than `limit` although
/// more pages follow.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "listCommerceKeys",
    security(("management_token" = [])),
    params(api::ListKeys),
    responses((status = 200, description = "A page of keys.", body = Vec<api::Key>, headers(("Link" = String, description = "The URL of the next page, with `rel=\"next\"`. Absent on the last page."))))
)]
#[get("/api-keys")]
pub async fn list(
    state: web::Data<State>,
    caller: ManagementCaller,
    query: Query,
) -> HandlerResult {
    let query: api::ListKeys = query.read()?;
    let (limit, after) = members::listing(query.limit, query.cursor.as_deref())?;
    let found = api_keys::list(
        &state.service,
        &caller.0,
        api_keys::KeyQuery::of(api_keys::COMMERCE),
        after,
        limit,
    )
    .await?;
    let mut response = HttpResponse::Ok();
    if let Some(next) = found.next {
        let next = api::ListKeys {
            cursor: Some(members::shown_cursor(next)),
            ..query
        };
        let query = serde_urlencoded::to_string(next).unwrap_or_default();
        response.insert_header((
            header::LINK,
            format!("</api/v1/api-keys?{query}>; rel=\"next\""),
        ));
    }
    let now = state.service.clock.now();
    Ok(response.json(
        found
            .keys
            .iter()
            .map(|found| key(found, now))
            .collect::<Vec<_>>(),
    ))
}

/// Get a commerce key.
///
/// Returns the key without the full key.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "getCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: a UUID, or `key_` and 26 characters.")),
    responses((status = 200, description = "The key.", body = api::Key))
)]
#[get("/api-keys/{id}")]
pub async fn get(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
) -> HandlerResult {
    let found = api_keys::get(&state.service, &caller.0, api_keys::COMMERCE, path_id(&id)?).await?;
    Ok(conditional::ok(found.entity_tag()).json(key(&found, state.service.clock.now())))
}

/// Update a commerce key.
///
/// Applies a JSON merge patch (RFC 7396): absent fields keep their values, and null clears a field.
/// Returns the updated key. The mode cannot be changed. Merchants and features cannot be cleared
/// once they are set. The change applies immediately on every replica.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "updateCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: a UUID, or `key_` and 26 characters.")),
    request_body(content = api::UpdateKey),
    responses(
        (status = 200, description = "The key.", body = api::Key),
        (status = 403, description = "`forbidden`; `scoped_keys_unavailable` or `feature_unavailable`: not included in the account's operating model.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
        (status = 409, description = "`key_revoked` or `key_expired`: the status of the key does not allow the change.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[patch("/api-keys/{id}")]
pub async fn update(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let now = state.service.clock.now();
    let edit = body
        .read_merge_patch_or_nothing()?
        .check(|body, checks| edit(body, &state.service.catalogue, now, checks))?;
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let changed = api_keys::update(&state.service, &caller.0, id, preconditions, edit).await?;
    Ok(conditional::ok(changed.entity_tag()).json(key(&changed, now)))
}

/// Revoke a commerce key.
///
/// Returns a fixed message. Revocation is final and applies immediately on every replica. Repeating
/// the request has no further effect; the first reason remains.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "revokeCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: a UUID, or `key_` and 26 characters.")),
    request_body(content = Option<api::RevokeKey>),
    responses((status = 200, description = "The key is revoked.", body = api::Message))
)]
#[post("/api-keys/{id}/revoke")]
pub async fn revoke(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let reason = body
        .read_json_or_nothing()?
        .check(|body: api::RevokeKey, checks| {
            checks.check("/reason", text::optional(body.reason.as_deref(), 255))
        })?;
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let revoke = api_keys::revoke(
        &state.service,
        &caller.0,
        api_keys::COMMERCE,
        id,
        reason,
        preconditions,
    );
    Ok(
        conditional::ok(revoke.await?.entity_tag()).json(api::Message {
            message: REVOKED.to_owned(),
        }),
    )
}

/// Suspend a commerce key.
///
/// Returns the key. It is denied with `suspended` on every replica until it is resumed. Repeating
/// the request has no further effect.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "suspendCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: a UUID, or `key_` and 26 characters.")),
    request_body(content = Option<api::Nothing>),
    responses(
        (status = 200, description = "The key.", body = api::Key),
        (status = 409, description = "`key_revoked`: the status of the key does not allow the change.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys/{id}/suspend")]
pub async fn suspend(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let api::Nothing {} = body.json_or_nothing()?;
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let changed = api_keys::suspend(&state.service, &caller.0, id, preconditions).await?;
    Ok(conditional::ok(changed.entity_tag()).json(key(&changed, state.service.clock.now())))
}

/// Resume a commerce key.
///
/// Returns the key, which is no longer suspended. Repeating the request has no further effect.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "resumeCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: a UUID, or `key_` and 26 characters.")),
    request_body(content = Option<api::Nothing>),
    responses(
        (status = 200, description = "The key.", body = api::Key),
        (status = 409, description = "`key_revoked`: the status of the key does not allow the change.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys/{id}/resume")]
pub async fn resume(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let api::Nothing {} = body.json_or_nothing()?;
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let changed = api_keys::resume(&state.service, &caller.0, id, preconditions).await?;
    Ok(conditional::ok(changed.entity_tag()).json(key(&changed, state.service.clock.now())))
}

/// Rotate a commerce key.
///
/// Creates a successor with the same scopes, restrictions and expiration, and returns it, including
/// the full key in `api_key`. No other response contains it. The predecessor expires after
/// `overlap_seconds`, or at its own expiration if that is earlier. Its `last_used_at` shows whether
/// it is still in use; revoking it ends the overlap early. `rotated_from` and `rotated_to` refer to
/// the predecessor and the successor. Only an active key that is not yet rotated can be rotated.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "rotateCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the key: a UUID, or `key_` and 26 characters.")),
    request_body(content = Option<api::RotateKey>),
    responses(
        (status = 201, description = "The successor, including the full key.", body = api::CreatedKey, headers(("Location" = String, description = "The path of the new key."))),
        (status = 403, description = "`forbidden`; `scoped_keys_unavailable` or `feature_unavailable`: not included in the account's operating model; `key_limit_reached`: the account has the maximum number of keys.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
        (status = 409, description = "`key_revoked`, `key_expired`, `key_suspended` or `key_already_rotated`: the status of the key does not allow the rotation; `idempotency_in_progress`; `idempotency_replay_unavailable`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys/{id}/rotate")]
pub async fn rotate(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    retry: IdempotencyHeader,
    body: Body,
) -> HandlerResult {
    let by = &caller.0;
    let run = async |creating| {
        let overlap = body
            .read_json_or_nothing()?
            .check(|body: api::RotateKey, checks| {
                checks.check(
                    "/overlap_seconds",
                    Overlap::parse(body.overlap_seconds.unwrap_or_default()),
                )
            })?;
        let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
        api_keys::rotate(&state.service, by, id, overlap, preconditions, creating).await
    };
    plain(retry.once(&state, by, &body, run).await?, shown)
}
