//! Account keys (storlaunch). An `sk_` key manages the keys of its own account; a management token makes the first.
//!
//! Mounted under `/api/v1`, and once more under `/v1`, where the document has it. Every answer is an envelope, errors
//! too; those the edge makes.

mod present;

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use tollkey_api::{account as api, audit::ListAuditLog};
use tollkey_service::{
    self as service,
    api_keys::{self, CreatedKey},
};
use ulid::Ulid;
use utoipa_actix_web::service_config::ServiceConfig;

use self::present::{created_key, enveloped, enveloped_list, key, new_key};
use super::{
    audit, members,
    parameters::path_id,
    retry::{Retry, Shown, respond},
};
use crate::{
    auth::AccountHolder,
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surface::{Document, ProblemSchema, Surface},
};

/// Mounts the surface where the document has it; the OpenAPI document describes it under `/api/v1`.
pub fn under_v1(config: &mut web::ServiceConfig) {
    let scope = web::scope("/v1")
        .service(create)
        .service(list)
        .service(delete)
        .service(revoke)
        .service(audit_log);
    config.service(scope);
}

/// The surface: every response is an envelope.
pub const SURFACE: Surface = Surface {
    alias: Some(("/v1/account", "/api/v1/account")),
    render: present::enveloped_problem,
    keeps_request_id: is_ulid,
    ..Surface::api(
        &["/v1", "/api/v1/account"],
        Document {
            has_account_parameter: true,
            problem: || ProblemSchema::of::<api::ErrorEnvelope>("application/json"),
            ..Document::new(
                "account keys",
                "Secret and publishable keys of an account, managed by a secret key. Every answer is an envelope. The same \
             paths are there without `/api` too.",
            )
        },
    )
};

/// Whether a text is a request ID of this surface: `req_` and a ULID.
fn is_ulid(text: &str) -> bool {
    text.strip_prefix("req_")
        .filter(|ulid| matches!(ulid.as_bytes().first(), Some(b'0'..=b'7')))
        .is_some_and(|ulid| Ulid::from_string(ulid).is_ok())
}

/// The routes, under `/api/v1`.
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
/// `value` is in this answer and in no other. A key that makes keys makes none beyond itself: a test key only test keys,
/// and its networks, its end and its rate limit are passed on.
#[utoipa::path(
    tag = "account keys",
    operation_id = "createAccountKey",
    security(("secret_key" = []), ("management_token" = [])),
    request_body(content = api::CreateKey),
    responses((status = 201, description = "The key, with its text.", body = api::Envelope<api::CreatedKey>))
)]
#[post("/account/api-keys")]
pub async fn create(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    retry: Retry,
    body: Body,
) -> HandlerResult {
    let by = &holder.0;
    let run = async |creating| {
        let now = state.service.clock.now();
        let (family, wanted) = body
            .read_json()?
            .check(|body, checks| new_key(body, now, checks))?;
        api_keys::create(&state.service, by, family, wanted, creating).await
    };
    let outcome = retry.once(&state, by, &body, run).await?;
    let show = |created: &CreatedKey| Shown {
        location: None,
        body: created_key(&created.key, &created.text),
    };
    respond(outcome, show, |json| {
        present::enveloped_text(&request, &state, json)
    })
}

/// List account keys.
///
/// Newest first, revoked ones included; a test key sees test keys. `meta.nextCursor` leads on until it is absent. A page may have
/// fewer keys than `limit`, or none, although it is set: keys with much metadata end a page, and a list for a test key examines a
/// bounded number of keys.
#[utoipa::path(
    tag = "account keys",
    operation_id = "listAccountKeys",
    security(("secret_key" = []), ("management_token" = [])),
    params(api::ListKeys),
    responses((status = 200, description = "The keys.", body = api::ListEnvelope<api::Key>))
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
/// For good; it is dead everywhere once this is answered, and so is every key it made. A repeat changes nothing.
#[utoipa::path(
    tag = "account keys",
    operation_id = "deleteAccountKey",
    security(("secret_key" = []), ("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    responses((status = 200, description = "The key, revoked.", body = api::Envelope<api::Key>))
)]
#[delete("/account/api-keys/{id}")]
pub async fn delete(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    id: web::Path<String>,
) -> HandlerResult {
    end(&request, &state, &holder, &id).await
}

/// Revoke an account key, for clients that post.
///
/// The same as `DELETE`.
#[utoipa::path(
    tag = "account keys",
    operation_id = "revokeAccountKey",
    security(("secret_key" = []), ("management_token" = [])),
    params(("id" = String, Path, description = "The key's id.")),
    request_body(content = Option<tollkey_api::commerce::Nothing>),
    responses((status = 200, description = "The key, revoked.", body = api::Envelope<api::Key>))
)]
#[post("/account/api-keys/{id}/revoke")]
pub async fn revoke(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let tollkey_api::commerce::Nothing {} = body.json_or_nothing()?;
    end(&request, &state, &holder, &id).await
}

async fn end(
    request: &HttpRequest,
    state: &State,
    holder: &AccountHolder,
    id: &str,
) -> HandlerResult {
    let revoked = api_keys::revoke(
        &state.service,
        &holder.0,
        api_keys::ACCOUNT,
        path_id(id)?,
        None,
    )
    .await?;
    Ok(HttpResponse::Ok().json(enveloped(request, state, key(&revoked))))
}

/// List the audit log.
///
/// Newest first, one entry per change; a test key sees the entries about test keys. `meta.nextCursor` leads on; it may be
/// set although a page has fewer entries than `limit`, or none, because a search examines a bounded number of entries.
#[utoipa::path(
    tag = "account keys",
    operation_id = "listAccountAuditLog",
    security(("secret_key" = []), ("management_token" = [])),
    params(api::ListAuditLog),
    responses((status = 200, description = "Entries.", body = api::ListEnvelope<api::AuditEntry>))
)]
#[get("/account/audit-log")]
pub async fn audit_log(
    request: HttpRequest,
    state: web::Data<State>,
    holder: AccountHolder,
    query: Query,
) -> HandlerResult {
    let api::ListAuditLog {
        limit,
        cursor,
        action,
        account: _,
    } = query.read()?;
    let filter = audit::filter(&ListAuditLog {
        limit,
        cursor,
        action,
        ..ListAuditLog::default()
    })?;
    let found = service::audit::list(&state.service, &holder.0, filter).await?;
    let entries = found.entries.iter().map(present::entry).collect();
    let next = found.next.map(|next| next.to_string());
    Ok(HttpResponse::Ok().json(enveloped_list(&request, &state, entries, next)))
}
