//! Is the server there, can it work, what can it do.

use actix_web::{HttpResponse, get, http::header, web};
use tollkey_core::Problem;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::{
    openapi,
    rejection::HandlerResult,
    state::State,
    surface::{Document, Surface, uncached_errors},
    transport::SharedBody,
};

/// Health, the document, and every path that no other surface has.
pub const SURFACE: Surface = Surface {
    set_headers: uncached_errors,
    quiet_routes: &["/livez", "/readyz", "/metrics"],
    ..Surface::api(
        &[""],
        Document {
            has_common_responses: false,
            ..Document::new("health", "For orchestrators and tools.")
        },
    )
};

/// The routes.
pub fn configure(config: &mut ServiceConfig<'_>) {
    config.service(live).service(ready).service(document);
}

/// Whether the process runs.
///
/// Depends on nothing: use it to decide on a restart.
#[utoipa::path(tag = "health", operation_id = "livez", responses((status = 200, description = "It runs.", body = String, content_type = "text/plain", example = "ok")))]
#[get("/livez")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("ok")
}

/// Whether the server can work.
///
/// The store answers and accepts changes, its schema fits this build, and the server is not stopping: use it to decide on
/// traffic. It becomes ready again by itself.
#[utoipa::path(
    tag = "health",
    operation_id = "readyz",
    responses(
        (status = 200, description = "It can work.", body = String, content_type = "text/plain", example = "ok"),
        (status = 503, description = "The store cannot be reached or accepts no changes, its schema does not fit this build, or the server is stopping.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[get("/readyz")]
pub async fn ready(state: web::Data<State>) -> HandlerResult {
    if state.is_draining() {
        return Err(Problem {
            detail: "The server is stopping.".to_owned(),
            ..Problem::unavailable()
        }
        .into());
    }
    if state.is_ready().await {
        Ok(HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .body("ok"))
    } else {
        Err(Problem::unavailable().into())
    }
}

/// This document.
#[utoipa::path(tag = "health", operation_id = "openapi", responses((status = 200, description = "The OpenAPI 3.1 document.", body = Object, content_type = "application/json")))]
#[get("/openapi.json")]
pub async fn document(state: web::Data<State>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .content_type("application/json");
    SharedBody::of(
        response,
        state
            .document
            .get_or_init(|| openapi::json_under(&state.public_path))
            .clone(),
    )
}
