//! The middleware of the dashboard.

use actix_web::{
    Error, HttpMessage as _, HttpResponse,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{HOST, HeaderName, ORIGIN, REFERER},
    middleware::Next,
    web,
};
use tollkey_core::Problem;

use super::{SURFACE, page, session};
use crate::{auth::not_forwarded, rejection::Rejection, state::State};

/// <https://www.w3.org/TR/fetch-metadata/>. Browsers set it; pages cannot.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

fn reject<B>(request: ServiceRequest, problem: Problem) -> ServiceResponse<EitherBody<B>> {
    request
        .error_response(Rejection(problem))
        .map_into_right_body()
}

/// Rejects writes that were not sent by a page of this server. The session's cookie is also `SameSite=Strict`; this
/// check additionally protects against other hosts of the same site. Development mode also rejects requests through a
/// proxy, as the management API does.
pub(super) async fn same_site<B: MessageBody + 'static>(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    if let Err(problem) = not_forwarded(request.request(), &state) {
        return Ok(reject(request, problem));
    }
    if !request.method().is_safe() && !is_from_own_page(&request) {
        return Ok(reject(
            request,
            Problem::forbidden(
                "The request was not sent by a page of this dashboard. Open the dashboard and send the form there.",
            ),
        ));
    }
    Ok(next.call(request).await?.map_into_left_body())
}

fn header<'a>(request: &'a ServiceRequest, name: &HeaderName) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}

fn is_from_own_page(request: &ServiceRequest) -> bool {
    if let Some(site) = header(request, &FETCH_SITE) {
        return site == "same-origin";
    }
    // Browsers before 2023. All of them send `Origin` with a write; a request without it does not come from a browser.
    after_own_host(request, &ORIGIN) == Some("")
}

/// Returns the rest of the URL in a header after the host, if the host is this server's.
fn after_own_host<'a>(request: &'a ServiceRequest, name: &HeaderName) -> Option<&'a str> {
    let (_, rest) = header(request, name)?.split_once("://")?;
    rest.strip_prefix(header(request, &HOST)?)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) async fn signed_in<B: MessageBody + 'static>(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    match session::find(&state, request.request()).await {
        // An operator has to choose an account first.
        Ok(Some(visitor))
            if visitor.active.session.account_id.is_none() && !needs_no_account(request.path()) =>
        {
            Ok(request.into_response(page::see_other("/dashboard/account").map_into_right_body()))
        }
        Ok(Some(visitor)) => {
            request.extensions_mut().insert(visitor);
            Ok(next.call(request).await?.map_into_left_body())
        }
        Ok(None) => {
            let response = redirect_to_sign_in(&request, &state);
            Ok(request.into_response(response.map_into_right_body()))
        }
        Err(problem) => Ok(reject(request, problem)),
    }
}

fn needs_no_account(path: &str) -> bool {
    matches!(path, "/dashboard/account" | "/dashboard/sign-out")
}

/// Returns the page that a form was sent from, to return to after the sign-in; the entered values are lost. Browsers
/// send its URL with the path prefix.
fn page_of_form<'a>(request: &'a ServiceRequest, state: &State) -> &'a str {
    let is_page = |page: &&str| SURFACE.has(page.split('?').next().unwrap_or_default());
    let page =
        after_own_host(request, &REFERER).map(|page| state.public_path.strip(page).unwrap_or(page));
    page.filter(is_page).unwrap_or("/dashboard")
}

fn redirect_to_sign_in(request: &ServiceRequest, state: &State) -> HttpResponse {
    let here = page::safe_next_page(
        request
            .uri()
            .path_and_query()
            .map_or("/dashboard", |here| here.as_str()),
    );
    // A browser that follows a link from another site does not send a `SameSite=Strict` cookie. So the first response
    // is a page that loads the same URL again, from this site and with the cookie. The second request is not
    // `cross-site`.
    if request.method().is_safe() && header(request, &FETCH_SITE) == Some("cross-site") {
        return page::continue_page(&state.public_path.path(here));
    }
    let next = if request.method().is_safe() {
        here
    } else {
        page_of_form(request, state)
    };
    page::redirect_whole_page(request.headers(), &page::sign_in_url(next, None))
}
