//! Suspending and resuming a key.

use actix_web::{post, web};
use tollkey_core::Preconditions;
use tollkey_service::api_keys;

use super::super::{page::see_other, session::SignedIn};
use crate::{rejection::HandlerResult, state::State, surfaces::parameters::path_id};

#[post("/keys/{id}/suspend")]
pub(in super::super) async fn suspend(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let id = path_id(&id)?;
    api_keys::suspend(&state.service, &visitor.by, id, Preconditions::NONE).await?;
    Ok(see_other(&format!("/dashboard/keys/{id}?done=suspended")))
}

#[post("/keys/{id}/resume")]
pub(in super::super) async fn resume(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let id = path_id(&id)?;
    api_keys::resume(&state.service, &visitor.by, id, Preconditions::NONE).await?;
    Ok(see_other(&format!("/dashboard/keys/{id}?done=resumed")))
}
