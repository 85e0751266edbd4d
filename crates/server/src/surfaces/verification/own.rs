//! Operations of a key on itself.

use actix_web::{HttpResponse, HttpResponseBuilder, delete, get, http::StatusCode, web};
use tollkey_api::verification as api;
use tollkey_core::{ApiKey, Family, Problem};
use tollkey_service::api_keys;

use super::present;
use crate::{
    auth::PresentedKey,
    rejection::HandlerResult,
    state::State,
    surfaces::conditional::{self, IfMatch},
};

/// Get the presented key.
///
/// Returns information about the key that the request presents. For a publishable key it has only
/// `id`, `family`, `mode` and `status`. The request counts as one use of the key.
#[utoipa::path(
    tag = "verification",
    operation_id = "whoami",
    security(("api_key" = [])),
    responses((status = 200, description = "The key.", body = api::WhoAmI))
)]
#[get("/whoami")]
pub async fn whoami(state: web::Data<State>, key: PresentedKey) -> HandlerResult {
    let own = present::whoami(
        &key.record,
        &state.service.catalogue,
        state.service.clock.now(),
    );
    Ok(response(StatusCode::OK, &key.record.key).json(own))
}

/// Revoke the presented key.
///
/// Revokes the key that the request presents, for example after it was found in a public
/// repository. Revocation is final, applies immediately on every replica, and also revokes all
/// descendants of the key. Publishable keys cannot revoke themselves.
#[utoipa::path(
    tag = "verification",
    operation_id = "revokeWhoami",
    security(("api_key" = [])),
    responses((status = 204, description = "The key is revoked."))
)]
#[delete("/whoami")]
pub async fn revoke_whoami(
    state: web::Data<State>,
    key: PresentedKey,
    if_match: IfMatch,
) -> HandlerResult {
    if key.record.key.family == Family::Publishable {
        return Err(Problem::forbidden("A publishable key cannot revoke itself. Revoke it with a secret key or a management token.").into());
    }
    let reason = Some("self_revoked".to_owned());
    let revoked = api_keys::revoke(
        &state.service,
        &key.manager,
        &Family::ALL,
        key.record.key.id,
        reason,
        if_match.preconditions()?,
    )
    .await?;
    Ok(response(StatusCode::NO_CONTENT, &revoked).finish())
}

/// Begins a response to the holder of a key. It has the tag of the key only for a secret key, which
/// can read every field of account keys. The holder of another key cannot see some fields, and could
/// compare the tag with tags that it computes for guesses of their values.
fn response(status: StatusCode, key: &ApiKey) -> HttpResponseBuilder {
    if key.family == Family::Secret {
        conditional::tagged(status, key.entity_tag())
    } else {
        HttpResponse::build(status)
    }
}
