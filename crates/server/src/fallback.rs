//! The root, paths that no route matches, and methods that no path supports.

use std::sync::LazyLock;

use actix_web::{
    Error, HttpRequest, HttpResponse,
    body::{EitherBody, MessageBody},
    dev::{ResourceDef, ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, Header as _},
    },
    middleware::Next,
};
use tollkey_core::{Problem, ProblemCode};

use crate::{
    dashboard, openapi,
    rejection::{HandlerResult, Rejection},
    routes::SURFACES,
    surfaces::docs,
};

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

/// Returns the methods of a path of the OpenAPI document; empty for other paths.
fn documented_methods(path: &str) -> Vec<String> {
    static PATHS: LazyLock<Vec<(ResourceDef, Method)>> = LazyLock::new(|| {
        openapi::operations()
            .map(|(path, method)| (ResourceDef::new(path), method))
            .collect()
    });
    let path = SURFACES.documented(path);
    let mut allowed: Vec<String> = PATHS
        .iter()
        .filter(|(template, _)| template.is_match(&path))
        .map(|(_, method)| method.to_string())
        .collect();
    if allowed.iter().any(|method| method == "GET") {
        allowed.push("HEAD".to_owned());
    }
    allowed
}

/// Returns the methods of any path; empty for a path that no route has.
fn methods(path: &str) -> Vec<String> {
    let documented = documented_methods(path);
    if !documented.is_empty() {
        return documented;
    }
    let others: &[&str] = if path == "/" || docs::SURFACE.has(path) {
        &["GET", "HEAD"]
    } else if dashboard::SURFACE.has(path) {
        &["GET", "HEAD", "POST"]
    } else {
        &[]
    };
    others.iter().map(|method| (*method).to_owned()).collect()
}

fn method_not_allowed(allowed: &[String]) -> Rejection {
    let allowed = allowed.join(", ");
    let mut detail = "This path does not support the method of the request.".to_owned();
    if !allowed.is_empty() {
        detail = format!("{detail} Use one of {allowed}.");
    }
    Rejection(Problem {
        headers: [("allow", allowed)].into(),
        ..Problem::new(ProblemCode::MethodNotAllowed, detail)
    })
}

/// Handles requests that no route matches: 405 if the path exists with another method, otherwise 404.
pub async fn unmatched(request: HttpRequest) -> HandlerResult {
    let allowed = documented_methods(request.match_info().as_str());
    if allowed.is_empty() {
        return not_found().await;
    }
    Err(method_not_allowed(&allowed))
}

/// Middleware that responds to TRACE and CONNECT with 405 on every path, before any page redirects them. Gateways send
/// the method of the request that they authorize, so their routes take every method.
pub async fn reject_trace_and_connect<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let path = request.match_info().as_str();
    let is_rejected = matches!(*request.method(), Method::TRACE | Method::CONNECT)
        && !SURFACES.of(path).is_for_gateways;
    if !is_rejected {
        let response = next.call(request).await?;
        return Ok(response.map_into_left_body());
    }
    let rejection = method_not_allowed(&methods(path));
    let response = request.error_response(rejection);
    Ok(response.map_into_right_body())
}
