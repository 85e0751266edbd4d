//! Applications and their keys (kadosei), for management tokens of an account and operators.

mod present;

use actix_web::{HttpResponse, delete, get, http::StatusCode, patch, post, web};
use tollkey_api::{Patch, applications as api};
use tollkey_core::{Application, Id, Invalid, Problem};
use tollkey_service::{api_keys, applications};
use utoipa_actix_web::service_config::ServiceConfig;

use self::present::{created_key, included_key, key, shown};
use super::{
    conditional::{self, IfMatch},
    parameters::{paging, path_id},
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
    &["/api/v1/applications"],
    Document {
        has_account_parameter: true,
        ..Document::new("applications", "Applications and their keys (`ks_`).")
    },
);

pub fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(create)
        .service(list)
        .service(get)
        .service(update)
        .service(delete)
        .service(set_status)
        .service(create_key)
        .service(list_keys)
        .service(revoke_key);
}

/// Create an application.
///
/// Returns the application. An application groups the keys of one integration, such as the
/// production store or the staging environment. Its name must be unique in the account.
#[utoipa::path(
    tag = "applications",
    operation_id = "createApplication",
    security(("management_token" = [])),
    request_body(content = api::CreateApplication),
    responses(
        (status = 201, description = "The application.", body = api::Application, headers(("Location" = String, description = "The path of the new application."))),
        (status = 409, description = "`application_name_taken`: the account already has an application with this name; `idempotency_in_progress`; `idempotency_replay_unavailable`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/applications")]
pub async fn create(
    state: web::Data<State>,
    caller: ManagementCaller,
    retry: IdempotencyHeader,
    body: Body,
) -> HandlerResult {
    let by = &caller.0;
    let run = async |creating| {
        let (name, description) =
            body.read_json()?
                .check(|body: api::CreateApplication, checks| {
                    let name = checks.check("/name", Application::parse_name(&body.name));
                    let description = checks.check(
                        "/description",
                        Application::parse_description(body.description.as_deref()),
                    );
                    Some((name?, description?))
                })?;
        applications::create(&state.service, by, name, description, creating).await
    };
    plain(retry.once(&state, by, &body, run).await?, |application| {
        Representation {
            location: Some(format!("/api/v1/applications/{}", application.id)),
            tag: application.entity_tag(),
            body: shown(application, None),
        }
    })
}

/// List applications.
///
/// Returns a page of applications, newest first. A page after the last one is empty.
#[utoipa::path(
    tag = "applications",
    operation_id = "listApplications",
    security(("management_token" = [])),
    params(api::ListApplications),
    responses((status = 200, description = "A page of applications.", body = api::Page<api::Application>))
)]
#[get("/applications")]
pub async fn list(
    state: web::Data<State>,
    caller: ManagementCaller,
    query: Query,
) -> HandlerResult {
    let query: api::ListApplications = query.read()?;
    let (page, limit) = paging(query.page, query.limit)?;
    let include = query.include.is_some();
    let found = applications::page(&state.service, &caller.0, page, limit, include).await?;
    let now = state.service.clock.now();
    let items = found.items.iter().map(|(application, keys)| {
        let keys = include.then(|| keys.iter().map(|key| included_key(key, now)).collect());
        shown(application, keys)
    });
    Ok(HttpResponse::Ok().json(api::Page::new(items.collect(), page, limit, found.total)))
}

/// Get an application.
///
/// Returns the application without its keys.
#[utoipa::path(
    tag = "applications",
    operation_id = "getApplication",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application.")),
    responses((status = 200, description = "The application.", body = api::Application))
)]
#[get("/applications/{id}")]
pub async fn get(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
) -> HandlerResult {
    let application = applications::get(&state.service, &caller.0, path_id(&id)?).await?;
    Ok(conditional::ok(application.entity_tag()).json(shown(&application, None)))
}

/// Update an application.
///
/// Applies a JSON merge patch (RFC 7396) to the name and the description: absent fields keep their
/// values. Returns the updated application.
#[utoipa::path(
    tag = "applications",
    operation_id = "updateApplication",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application.")),
    request_body(content = api::UpdateApplication),
    responses(
        (status = 200, description = "The application.", body = api::Application),
        (status = 409, description = "`application_name_taken`: the account already has an application with this name.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[patch("/applications/{id}")]
pub async fn update(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let (name, description) =
        body.read_merge_patch()?
            .check(|body: api::UpdateApplication, checks| {
                let name = match &body.name {
                    Patch::Absent => Ok(None),
                    Patch::Null => Err(Invalid::new("cannot be cleared")),
                    Patch::Value(name) => Application::parse_name(name).map(Some),
                };
                let description = match &body.description {
                    Patch::Absent => Ok(None),
                    Patch::Null => Ok(Some(None)),
                    Patch::Value(description) => {
                        Application::parse_description(Some(description)).map(Some)
                    }
                };
                let (name, description) = (
                    checks.check("/name", name),
                    checks.check("/description", description),
                );
                Some((name?, description?))
            })?;
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let update = applications::update(
        &state.service,
        &caller.0,
        id,
        name,
        description,
        preconditions,
    );
    let application = update.await?;
    Ok(conditional::ok(application.entity_tag()).json(shown(&application, None)))
}

/// Delete an application.
///
/// Revokes all keys of the application with the reason `application_deleted`, immediately on every
/// replica. Its name can be used again.
#[utoipa::path(
    tag = "applications",
    operation_id = "deleteApplication",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application.")),
    responses((status = 204, description = "The application is deleted, and its keys are revoked."))
)]
#[delete("/applications/{id}")]
pub async fn delete(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
) -> HandlerResult {
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    applications::delete(&state.service, &caller.0, id, preconditions).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Enable or disable an application.
///
/// Returns the application. While it is disabled, its keys are denied with `application_disabled`
/// on every replica.
#[utoipa::path(
    tag = "applications",
    operation_id = "setApplicationStatus",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application.")),
    request_body(content = api::SetApplicationStatus),
    responses((status = 200, description = "The application.", body = api::Application))
)]
#[patch("/applications/{id}/status")]
pub async fn set_status(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let body: api::SetApplicationStatus = body.json()?;
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let is_enabled = body.is_enabled;
    let application =
        applications::set_enabled(&state.service, &caller.0, id, is_enabled, preconditions).await?;
    Ok(conditional::ok(application.entity_tag()).json(shown(&application, None)))
}

/// Create an application key.
///
/// Returns the key, including the full key in `fullKey`. No other response contains it. An
/// application can have at most 20 keys (a setting) that are neither revoked nor expired.
#[utoipa::path(
    tag = "applications",
    operation_id = "createApplicationKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application.")),
    request_body(content = api::CreateKey),
    responses(
        (status = 201, description = "The new key, including the full key.", body = api::CreatedKey),
        (status = 400, description = "`validation_failed`, `malformed_json` or `multiple_credentials`; `application_key_limit_reached`: the application has the maximum number of keys.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/applications/{id}/api-keys")]
pub async fn create_key(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    retry: IdempotencyHeader,
    body: Body,
) -> HandlerResult {
    let by = &caller.0;
    let run = async |creating| {
        let now = state.service.clock.now();
        let fields = body
            .read_json()?
            .check(|body, checks| present::new_key(body, &state.service.catalogue, now, checks))?;
        api_keys::create_for_application(&state.service, by, path_id(&id)?, fields, creating).await
    };
    plain(retry.once(&state, by, &body, run).await?, |created| {
        Representation {
            location: None,
            tag: created.key.entity_tag(),
            body: created_key(created),
        }
    })
}

/// List the keys of an application.
///
/// Returns a page of keys, newest first, including revoked ones. A page after the last one is
/// empty.
#[utoipa::path(
    tag = "applications",
    operation_id = "listApplicationKeys",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application."), api::ListKeys),
    responses((status = 200, description = "A page of keys.", body = api::Page<api::Key>))
)]
#[get("/applications/{id}/api-keys")]
pub async fn list_keys(
    state: web::Data<State>,
    caller: ManagementCaller,
    id: web::Path<String>,
    query: Query,
) -> HandlerResult {
    let query: api::ListKeys = query.read()?;
    let id = path_id(&id)?;
    let (page, limit) = paging(query.page, query.limit)?;
    let found = api_keys::page_of_application(&state.service, &caller.0, id, page, limit).await?;
    let now = state.service.clock.now();
    let items = found
        .items
        .iter()
        .map(|found| key(found, id, now))
        .collect();
    Ok(HttpResponse::Ok().json(api::Page::new(items, page, limit, found.total)))
}

/// Revoke an application key.
///
/// Revocation is final and applies immediately on every replica. The other keys of the application
/// are not affected.
#[utoipa::path(
    tag = "applications",
    operation_id = "revokeApplicationKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the application."), ("keyId" = String, Path, description = "The ID of the key.")),
    responses(
        (status = 204, description = "The key is revoked."),
        (status = 400, description = "`key_already_revoked`: the key is already revoked; `multiple_credentials`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[delete("/applications/{id}/api-keys/{keyId}")]
pub async fn revoke_key(
    state: web::Data<State>,
    caller: ManagementCaller,
    path: web::Path<(String, String)>,
    if_match: IfMatch,
) -> HandlerResult {
    let (application, key): (Id<Application>, _) = (path_id(&path.0)?, path_id(&path.1)?);
    let preconditions = if_match.preconditions()?;
    let revoke =
        api_keys::revoke_of_application(&state.service, &caller.0, application, key, preconditions);
    let Some(revoked) = revoke.await? else {
        let code = tollkey_core::ProblemCode::KeyAlreadyRevoked;
        return Err(Problem::new(code, "The key is already revoked. Nothing was changed.").into());
    };
    Ok(conditional::tagged(StatusCode::NO_CONTENT, revoked.entity_tag()).finish())
}
