//! Swagger UI at `/docs/`. Its files are part of the binary, and all responses share them. The handler of
//! utoipa-swagger-ui would copy a file for each request, and keep the copy until the client has read the response.

use std::{borrow::Cow, sync::Arc};

use actix_web::{HttpResponse, http::header, web};
use tollkey_core::{Problem, ProblemCode};
use utoipa_swagger_ui::Config;

use crate::{
    rejection::HandlerResult,
    state::State,
    surface::{Document, Surface, secure_html, uncached_errors},
    transport::SharedBody,
};

/// The hash is that of the only inline style sheet of Swagger UI. Without it, the logo is black on black.
const POLICY: &str = "default-src 'self'; \
                           style-src 'self' 'sha256-RL3ie0nH+Lzz2YNqQN83mnU0J1ot4QL7b99vMdIX99w='; \
                           img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

pub const SURFACE: Surface = Surface {
    set_headers: |headers, status| {
        uncached_errors(headers, status);
        secure_html(headers, POLICY);
    },
    ..Surface::api(&["/docs"], Document::NONE)
};

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

async fn file(state: web::Data<State>, path: web::Path<String>) -> HandlerResult {
    let config = Config::from(state.public_path.path("/openapi.json")).validator_url("none");
    let found = utoipa_swagger_ui::serve(&path, Arc::new(config)).map_err(|error| {
        tracing::error!(%error, "cannot serve a file of Swagger UI");
        Problem::internal()
    })?;
    let file = found.ok_or_else(|| {
        Problem::new(
            ProblemCode::NotFound,
            "No resource exists at this path. Check the URL.",
        )
    })?;
    let mut response = HttpResponse::Ok();
    response.content_type(file.content_type);
    if file.gzpipped {
        response.insert_header((header::CONTENT_ENCODING, "gzip"));
    }
    match file.bytes {
        Cow::Borrowed(bytes) => Ok(SharedBody::of(response, web::Bytes::from_static(bytes))),
        // Only the configuration, about a kilobyte, is generated for each request.
        Cow::Owned(bytes) => Ok(response.body(bytes)),
    }
}
