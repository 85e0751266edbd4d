//! Operations of operators on accounts and service keys.

use actix_web::{HttpResponse, delete, get, http::StatusCode, post, put, web};
use tollkey_api::{Secret, operator as api};
use tollkey_core::{Account, AccountId, Problem, ServiceKey};
use tollkey_service::{
    accounts,
    service_keys::{self, CreatedServiceKey},
};
use utoipa_actix_web::service_config::ServiceConfig;

use super::{
    conditional::{self, IfMatch},
    parameters::path_id,
    retry::{IdempotencyHeader, Representation, plain},
};
use crate::{
    auth::Operator,
    body::Body,
    rejection::HandlerResult,
    state::State,
    surface::{Document, Surface},
};

pub const SURFACE: Surface = Surface::api(
    &["/api/v1/accounts", "/api/v1/service-keys"],
    Document::new(
        "operator",
        "Accounts and service keys, for management tokens with the role `operator`.",
    ),
);

pub fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(get_account)
        .service(put_account)
        .service(create_service_key)
        .service(list_service_keys)
        .service(revoke_service_key);
}

/// Get an account.
///
/// Returns the account. Accounts do not have to be created: an account without settings has the
/// default operating model.
#[utoipa::path(
    tag = "operator",
    operation_id = "getAccount",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the account, as in the account claim of management tokens.")),
    responses((status = 200, description = "The account.", body = api::Account))
)]
#[get("/accounts/{id}")]
pub async fn get_account(
    state: web::Data<State>,
    _operator: Operator,
    id: web::Path<String>,
) -> HandlerResult {
    let account = accounts::get(&state.service, account_id(&id)?).await?;
    Ok(conditional::ok(account.entity_tag()).json(shown_account(&account)))
}

/// Set the operating model of an account.
///
/// Returns the account. The new model applies immediately to existing scoped keys, on every
/// replica: they cannot use features that it does not include.
#[utoipa::path(
    tag = "operator",
    operation_id = "putAccount",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the account, as in the account claim of management tokens.")),
    request_body(content = api::PutAccount),
    responses((status = 200, description = "The account.", body = api::Account))
)]
#[put("/accounts/{id}")]
pub async fn put_account(
    state: web::Data<State>,
    operator: Operator,
    id: web::Path<String>,
    if_match: IfMatch,
    body: Body,
) -> HandlerResult {
    let body: api::PutAccount = body.json()?;
    let actor = operator.manage(account_id(&id)?);
    let (model, preconditions) = (body.operating_model, if_match.preconditions()?);
    let account =
        accounts::set_operating_model(&state.service, &actor, model, preconditions).await?;
    Ok(conditional::ok(account.entity_tag()).json(shown_account(&account)))
}

/// Create a service key.
///
/// Returns the service key, including the full key in `key`. No other response contains it. A
/// resource server or gateway presents it to verify keys of all accounts.
#[utoipa::path(
    tag = "operator",
    operation_id = "createServiceKey",
    security(("management_token" = [])),
    request_body(content = api::CreateServiceKey),
    responses((status = 201, description = "The new service key, including the full key.", body = api::CreatedServiceKey))
)]
#[post("/service-keys")]
pub async fn create_service_key(
    state: web::Data<State>,
    operator: Operator,
    retry: IdempotencyHeader,
    body: Body,
) -> HandlerResult {
    let run = async |creating| {
        let name = body
            .read_json()?
            .check(|body: api::CreateServiceKey, checks| {
                checks.check("/name", ServiceKey::parse_name(&body.name))
            })?;
        service_keys::create_once(&state.service, &operator.actor.id, name, creating).await
    };
    let outcome = retry
        .once_without_account(&state, &operator.actor, &body, run)
        .await?;
    plain(outcome, |CreatedServiceKey { key, text }| Representation {
        location: None,
        tag: key.entity_tag(),
        body: api::CreatedServiceKey {
            id: key.id.to_string(),
            name: key.name.clone(),
            key: Secret::new(text.expose()),
            created_at: key.created_at.into(),
        },
    })
}

/// List service keys.
///
/// Returns an array of the newest 1,000 service keys, newest first, including revoked ones.
#[utoipa::path(
    tag = "operator",
    operation_id = "listServiceKeys",
    security(("management_token" = [])),
    responses((status = 200, description = "The service keys.", body = Vec<api::ServiceKey>))
)]
#[get("/service-keys")]
pub async fn list_service_keys(state: web::Data<State>, _operator: Operator) -> HandlerResult {
    let keys = service_keys::list(&state.service).await?;
    let shown = keys.into_iter().map(|key| api::ServiceKey {
        id: key.id.to_string(),
        name: key.name,
        last4: key.last4,
        created_at: key.created_at.into(),
        revoked_at: key.revoked_at.map(Into::into),
    });
    Ok(HttpResponse::Ok().json(shown.collect::<Vec<_>>()))
}

/// Revoke a service key.
///
/// Revocation is final and applies immediately on every replica. Repeating the request has no
/// further effect.
#[utoipa::path(
    tag = "operator",
    operation_id = "revokeServiceKey",
    security(("management_token" = [])),
    params(("id" = String, Path, description = "The ID of the service key.")),
    responses((status = 204, description = "The service key is revoked."))
)]
#[delete("/service-keys/{id}")]
pub async fn revoke_service_key(
    state: web::Data<State>,
    operator: Operator,
    id: web::Path<String>,
    if_match: IfMatch,
) -> HandlerResult {
    let (id, preconditions) = (path_id(&id)?, if_match.preconditions()?);
    let by = &operator.actor.id;
    let revoked = service_keys::revoke(&state.service, by, id, preconditions).await?;
    Ok(conditional::tagged(StatusCode::NO_CONTENT, revoked.entity_tag()).finish())
}

/// A malformed ID gets the same response as an unknown one.
fn account_id(text: &str) -> Result<AccountId, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

fn shown_account(account: &Account) -> api::Account {
    api::Account {
        id: account.id.to_string(),
        operating_model: account.operating_model.into(),
    }
}
