//! Swagger UI at `/docs/`. Its files are part of the binary, and all responses share them. The handler of
//! utoipa-swagger-ui would copy a file for each request, and keep the copy until the client has read the response.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use tollkey_core::{Problem, ProblemCode};
use utoipa_swagger_ui::Config;

use crate::{
    rejection::HandlerResult,
    state::State,
    static_file::{REVALIDATED, StaticFile},
    surface::{Document, Surface, secure_html, uncached_errors},
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

/// The files that were requested, by URL path. Only paths of existing files are added.
static FILES: LazyLock<Mutex<HashMap<String, Arc<StaticFile>>>> = LazyLock::new(Mutex::default);

async fn file(
    request: HttpRequest,
    state: web::Data<State>,
    path: web::Path<String>,
) -> HandlerResult {
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
    // One of the files depends on the path prefix of the server.
    let url = state.public_path.path(&format!("/docs/{path}"));
    let shared = {
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = files.entry(url).or_insert_with(|| {
            let bytes = match file.bytes {
                Cow::Borrowed(bytes) => web::Bytes::from_static(bytes),
                Cow::Owned(bytes) => bytes.into(),
            };
            Arc::new(StaticFile::new(file.content_type, bytes))
        });
        Arc::clone(shared)
    };
    Ok(shared.respond(&request, REVALIDATED).await)
}
