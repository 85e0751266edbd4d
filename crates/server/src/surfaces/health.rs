//! Health checks, and the OpenAPI document.

use actix_web::{HttpRequest, HttpResponse, get, web};
use tollkey_core::Problem;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::{
    openapi,
    rejection::HandlerResult,
    state::State,
    static_file::{REVALIDATED, StaticFile},
    surface::{Document, Surface, uncached_errors},
};

/// The surface of health checks and the OpenAPI document, and of every path that no other surface has.
pub const SURFACE: Surface = Surface {
    set_headers: uncached_errors,
    quiet_routes: &["/livez", "/readyz", "/metrics"],
    ..Surface::api(
        &[""],
        Document {
            has_common_responses: false,
            ..Document::new(
                "health",
                "Health checks and the OpenAPI document. They require no credential.",
            )
        },
    )
};

pub fn configure(config: &mut ServiceConfig<'_>) {
    config.service(live).service(ready).service(document);
}

/// Check whether the process runs.
///
/// Returns 200 as long as the process responds. It does not check the database, so use it to decide
/// whether to restart the process.
#[utoipa::path(tag = "health", operation_id = "livez", responses((status = 200, description = "The process runs.", body = String, content_type = "text/plain", example = "ok")))]
#[get("/livez")]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("ok")
}

/// Check whether the server is ready.
///
/// Returns 200 if the database accepts reads and writes, its schema fits this release, and the
/// server is not shutting down. Use it to decide whether to route requests to this replica. A
/// server that is not ready becomes ready again without a restart.
#[utoipa::path(
    tag = "health",
    operation_id = "readyz",
    responses(
        (status = 200, description = "The server is ready.", body = String, content_type = "text/plain", example = "ok"),
        (status = 503, description = "`unavailable`: the database cannot be reached or accepts no writes, its schema does not fit this release, or the server is shutting down.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[get("/readyz")]
pub async fn ready(state: web::Data<State>) -> HandlerResult {
    if state.is_draining() {
        return Err(Problem {
            detail: "The server is shutting down. Send the request to another replica.".to_owned(),
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

/// Get the OpenAPI document.
///
/// Returns this document as JSON.
#[utoipa::path(
    tag = "health",
    operation_id = "openapi",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` values of the documents that the client has, or `*`. If the current document is one of them, the response is 304.")),
    responses(
        (status = 200, description = "The OpenAPI 3.1 document.", body = Object, content_type = "application/json", headers(("ETag" = String, description = "The tag of the document in this content encoding."))),
        (status = 304, description = "The client has the current document.", headers(("ETag" = String, description = "The tag of the document in this content encoding."))),
    )
)]
#[get("/openapi.json")]
pub async fn document(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let file = state.document.get_or_init(|| {
        let json = openapi::json_under(&state.public_path);
        StaticFile::new("application/json", json)
    });
    file.respond(&request, REVALIDATED).await
}
