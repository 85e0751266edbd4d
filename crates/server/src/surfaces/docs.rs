//! Swagger UI at `/docs/`. Its files are part of the binary, and all responses share them: the handler of utoipa-swagger-ui
//! copies a file for each request, and a client that does not read its response keeps the copy.

use std::{borrow::Cow, sync::Arc};

use actix_web::{HttpResponse, http::header, web};
use tollkey_core::{Problem, ProblemCode};
use utoipa_swagger_ui::Config;

use crate::{edge::Answer, state::State, transport::SharedBody};

/// Whether a path is that of Swagger UI, or under it.
#[must_use]
pub fn is_docs_path(path: &str) -> bool {
    path.strip_prefix("/docs")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The routes.
pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/docs", web::get().to(redirect))
        .route("/docs/{file:.*}", web::get().to(file));
}

async fn redirect() -> HttpResponse {
    HttpResponse::PermanentRedirect()
        .insert_header((header::LOCATION, "/docs/"))
        .finish()
}

async fn file(state: web::Data<State>, path: web::Path<String>) -> Answer {
    let config = Config::from(state.public_path.path("/openapi.json")).validator_url("none");
    let found = utoipa_swagger_ui::serve(&path, Arc::new(config)).map_err(|error| {
        tracing::error!(%error, "a file of Swagger UI cannot be served");
        Problem::internal()
    })?;
    let file = found
        .ok_or_else(|| Problem::new(ProblemCode::NotFound, "There is nothing at this path."))?;
    let mut response = HttpResponse::Ok();
    response.content_type(file.content_type);
    if file.gzpipped {
        response.insert_header((header::CONTENT_ENCODING, "gzip"));
    }
    match file.bytes {
        Cow::Borrowed(bytes) => Ok(SharedBody::of(response, web::Bytes::from_static(bytes))),
        // Only the settings are put together for each request: a kilobyte.
        Cow::Owned(bytes) => Ok(response.body(bytes)),
    }
}
