//! The root, and paths that no route matches.

use std::sync::LazyLock;

use actix_web::{
    HttpRequest, HttpResponse,
    dev::ResourceDef,
    http::{
        Method,
        header::{self, Header as _},
    },
};
use tollkey_core::{Problem, ProblemCode};

use crate::{openapi, rejection::HandlerResult, routes::SURFACES};

/// Redirects browsers to the dashboard. Other clients get 404.
pub async fn home(request: HttpRequest) -> HandlerResult {
    let accepted = header::Accept::parse(&request).map_or_else(|_| Vec::new(), |accept| accept.0);
    let is_browser = accepted
        .iter()
        .any(|it| it.item.essence_str() == "text/html" && it.quality > header::Quality::ZERO);
    if !is_browser {
        return not_found().await;
    }
    let mut response = HttpResponse::SeeOther();
    Ok(response
        .insert_header((header::LOCATION, "/dashboard"))
        .insert_header((header::VARY, "Accept"))
        .finish())
}

pub async fn not_found() -> HandlerResult {
    Err(Problem::new(
        ProblemCode::NotFound,
        "No resource exists at this path. Check the URL.",
    )
    .into())
}

/// Handles requests that no route matches: 405 if the path exists with another method, otherwise 404.
pub async fn unmatched(request: HttpRequest) -> HandlerResult {
    static PATHS: LazyLock<Vec<(ResourceDef, Method)>> = LazyLock::new(|| {
        openapi::operations()
            .map(|(path, method)| (ResourceDef::new(path), method))
            .collect()
    });
    let path = SURFACES.documented(request.match_info().as_str());
    let mut allowed: Vec<String> = PATHS
        .iter()
        .filter(|(template, _)| template.is_match(&path))
        .map(|(_, method)| method.to_string())
        .collect();
    if allowed.is_empty() {
        return not_found().await;
    }
    if allowed.iter().any(|method| method == "GET") {
        allowed.push("HEAD".to_owned());
    }
    let detail = format!(
        "This path does not support the method of the request. Use one of {}.",
        allowed.join(", ")
    );
    let mut problem = Problem::new(ProblemCode::MethodNotAllowed, detail);
    problem.allowed_methods = allowed.into();
    Err(problem.into())
}
