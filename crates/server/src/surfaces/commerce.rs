//! Commerce keys (pepay, crypto-checkout, hellgate). A management token of the account calls it, or an operator with
//! `?account=`.

mod present;

use actix_web::{HttpResponse, get, http::header, patch, post, web};
use tollkey_api::commerce as api;
use tollkey_core::{Family, api_key::Overlap, text};
use tollkey_service::api_keys::{self, CreatedKey};
use utoipa_actix_web::service_config::ServiceConfig;

use self::present::{created_key, edit, key, new_key};
use super::{
    members,
    parameters::path_id,
    retry::{Retry, Shown, plain},
};
use crate::{
    auth::Merchant,
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surface::{Document, Surface},
};

/// Commerce keys.
pub const SURFACE: Surface = Surface::api(
    &["/api/v1/api-keys"],
    Document {
        has_account_parameter: true,
        ..Document::new(
            "commerce keys",
            "Keys for commerce operations, scoped keys among them: made, changed, suspended, rotated, revoked.",
        )
    },
);

/// The routes, under `/api/v1`.
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

/// The words of a revocation, by the document.
const REVOKED: &str = "API key revoked successfully";

fn shown(created: &CreatedKey) -> Shown<api::CreatedKey> {
    let location = format!("/api/v1/api-keys/{}", created.key.id);
    Shown {
        location: Some(location),
        body: created_key(&created.key, &created.text),
    }
}

/// Create a commerce key.
///
/// `api_key` is in this answer and in no other. With `merchants` or `features` it is a scoped key, which only accounts
/// with the operating models `ecosystem` and `managed_ecosystem` have.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "createCommerceKey",
    security(("management_token" = [])),
    request_body(content = api::CreateKey),
    responses(
        (status = 201, description = "The key, with its text.", body = api::CreatedKey, headers(("Location" = String, description = "Where it is."))),
        (status = 403, description = "`forbidden`; `scoped_keys_unavailable` or `feature_unavailable`: not with the account's operating model; `key_limit_reached`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys")]
pub async fn create(
    state: web::Data<State>,
    merchant: Merchant,
    retry: Retry,
    body: Body,
) -> HandlerResult {
    let by = &merchant.0;
    let run = async |creating| {
        let now = state.service.clock.now();
        let wanted = body
            .read_json_or_nothing()?
            .check(|body, checks| new_key(body, &state.service.catalogue, now, checks))?;
        api_keys::create(&state.service, by, Family::Commerce, wanted, creating).await
    };
    plain(retry.once(&state, by, &body, run).await?, shown)
}

/// List commerce keys.
///
/// Newest first, revoked ones included. A page of keys with much metadata has fewer than `limit`: a `Link` header with
/// `rel="next"` leads on until it is absent.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "listCommerceKeys",
    security(("management_token" = [])),
    params(api::ListKeys),
    responses((status = 200, description = "The keys.", body = Vec<api::Key>, headers(("Link" = String, description = "Where the next keys are, with `rel=\"next\"`; absent at the end."))))
)]
#[get("/api-keys")]
pub async fn list(state: web::Data<State>, merchant: Merchant, query: Query) -> HandlerResult {
    let query: api::ListKeys = query.read()?;
    let (limit, after) = members::listing(query.limit, query.cursor.as_deref())?;
    let found = api_keys::list(
        &state.service,
        &merchant.0,
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

/// Retrieve a commerce key.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "getCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    responses((status = 200, description = "The key.", body = api::Key))
)]
#[get("/api-keys/{id}")]
pub async fn get(
    state: web::Data<State>,
    merchant: Merchant,
    id: web::Path<String>,
) -> HandlerResult {
    let found = api_keys::get(
        &state.service,
        &merchant.0,
        api_keys::COMMERCE,
        path_id(&id)?,
    )
    .await?;
    Ok(HttpResponse::Ok().json(key(&found, state.service.clock.now())))
}

/// Change a commerce key.
///
/// A JSON merge patch (RFC 7396): what is absent stays, null clears. The mode cannot be changed; merchants and features,
/// once set, cannot be cleared. The change holds everywhere once this is answered.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "updateCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    request_body(content = api::UpdateKey),
    responses(
        (status = 200, description = "The key.", body = api::Key),
        (status = 403, description = "`forbidden`; `scoped_keys_unavailable` or `feature_unavailable`: not with the account's operating model.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
        (status = 409, description = "`key_revoked` or `key_expired`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[patch("/api-keys/{id}")]
pub async fn update(
    state: web::Data<State>,
    merchant: Merchant,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let now = state.service.clock.now();
    let edit = body
        .read_merge_patch_or_nothing()?
        .check(|body, checks| edit(body, &state.service.catalogue, now, checks))?;
    let id = path_id(&id)?;
    let changed = api_keys::update(&state.service, &merchant.0, id, edit).await?;
    Ok(HttpResponse::Ok().json(key(&changed, now)))
}

/// Revoke a commerce key.
///
/// For good; it is dead everywhere once this is answered. A repeat changes nothing, not even the reason.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "revokeCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    request_body(content = Option<api::RevokeKey>),
    responses((status = 200, description = "It is revoked.", body = api::Message))
)]
#[post("/api-keys/{id}/revoke")]
pub async fn revoke(
    state: web::Data<State>,
    merchant: Merchant,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let reason = body
        .read_json_or_nothing()?
        .check(|body: api::RevokeKey, checks| {
            checks.member("/reason", text::optional(body.reason.as_deref(), 255))
        })?;
    let id = path_id(&id)?;
    api_keys::revoke(&state.service, &merchant.0, api_keys::COMMERCE, id, reason).await?;
    Ok(HttpResponse::Ok().json(api::Message {
        message: REVOKED.to_owned(),
    }))
}

/// Suspend a commerce key.
///
/// It is denied as `suspended` until it is resumed. A repeat changes nothing.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "suspendCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    request_body(content = Option<api::Nothing>),
    responses(
        (status = 200, description = "The key.", body = api::Key),
        (status = 409, description = "`key_revoked`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys/{id}/suspend")]
pub async fn suspend(
    state: web::Data<State>,
    merchant: Merchant,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let api::Nothing {} = body.json_or_nothing()?;
    let changed = api_keys::suspend(&state.service, &merchant.0, path_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(key(&changed, state.service.clock.now())))
}

/// Resume a commerce key.
///
/// A suspended key works again. A repeat changes nothing.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "resumeCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    request_body(content = Option<api::Nothing>),
    responses(
        (status = 200, description = "The key.", body = api::Key),
        (status = 409, description = "`key_revoked`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys/{id}/resume")]
pub async fn resume(
    state: web::Data<State>,
    merchant: Merchant,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let api::Nothing {} = body.json_or_nothing()?;
    let changed = api_keys::resume(&state.service, &merchant.0, path_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(key(&changed, state.service.clock.now())))
}

/// Rotate a commerce key.
///
/// Makes a successor with the same grants and the same end; `api_key` is in this answer and in no other. The old key goes
/// on for `overlap_seconds`, unless it ends sooner anyway; `last_used_at` tells whether it is still needed, and revoking
/// it ends the overlap early. `rotated_from` and `rotated_to` of the two name each other.
#[utoipa::path(
    tag = "commerce keys",
    operation_id = "rotateCommerceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    request_body(content = Option<api::RotateKey>),
    responses(
        (status = 201, description = "The successor, with its text.", body = api::CreatedKey, headers(("Location" = String, description = "Where it is."))),
        (status = 403, description = "`forbidden`; `scoped_keys_unavailable` or `feature_unavailable`: not with the account's operating model; `key_limit_reached`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
        (status = 409, description = "`key_revoked`, `key_expired`, `key_suspended` or `key_already_rotated`; `idempotency_in_progress`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/api-keys/{id}/rotate")]
pub async fn rotate(
    state: web::Data<State>,
    merchant: Merchant,
    id: web::Path<String>,
    retry: Retry,
    body: Body,
) -> HandlerResult {
    let by = &merchant.0;
    let run = async |creating| {
        let overlap = body
            .read_json_or_nothing()?
            .check(|body: api::RotateKey, checks| {
                checks.member(
                    "/overlap_seconds",
                    Overlap::parse(body.overlap_seconds.unwrap_or_default()),
                )
            })?;
        let id = path_id(&id)?;
        api_keys::rotate(&state.service, by, id, overlap, creating).await
    };
    plain(retry.once(&state, by, &body, run).await?, shown)
}
