//! What a key can do about itself.

use actix_web::{HttpResponse, delete, get, web};
use tollkey_api::verification as api;
use tollkey_core::{Family, Problem};
use tollkey_service::api_keys;

use super::present;
use crate::{auth::PresentedKey, rejection::HandlerResult, state::State};

/// Who am I?
///
/// What the presented key is. A publishable key learns only its id, family, mode and status.
#[utoipa::path(
    tag = "verification",
    operation_id = "whoami",
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
    responses((status = 200, description = "The key.", body = api::WhoAmI))
)]
#[get("/whoami")]
pub async fn whoami(state: web::Data<State>, key: PresentedKey) -> HandlerResult {
    Ok(HttpResponse::Ok().json(present::whoami(
        &key.record,
        &state.service.catalogue,
        state.service.clock.now(),
    )))
}

/// Revoke the presented key.
///
/// For whoever finds a key where it should not be: it is dead everywhere once this is answered, and so is every key it
/// made. Publishable keys, which are meant to be seen, cannot.
#[utoipa::path(
    tag = "verification",
    operation_id = "revokeWhoami",
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
    responses((status = 204, description = "It is revoked."))
)]
#[delete("/whoami")]
pub async fn revoke_whoami(state: web::Data<State>, key: PresentedKey) -> HandlerResult {
    if key.record.key.family == Family::Publishable {
        return Err(Problem::forbidden("A publishable key cannot revoke itself.").into());
    }
    let reason = Some("self_revoked".to_owned());
    api_keys::revoke(
        &state.service,
        &key.manager,
        &Family::ALL,
        key.record.key.id,
        reason,
    )
    .await?;
    Ok(HttpResponse::NoContent().finish())
}
