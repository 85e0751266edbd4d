//! What every request to the dashboard goes through.

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

/// <https://www.w3.org/TR/fetch-metadata/>. Browsers set it, pages cannot.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

fn refuse<B>(request: ServiceRequest, problem: Problem) -> ServiceResponse<EitherBody<B>> {
    request
        .error_response(Rejection(problem))
        .map_into_right_body()
}

/// Refuses what would change something unless one of our own pages sends it. The session's cookie is `SameSite=Strict`
/// besides; this also holds against other hosts of the same site, and where the cookie has to do without. Development mode
/// has no dashboard behind a proxy, as it has no management API there.
///
/// # Errors
/// None of ours.
pub(super) async fn same_site<B: MessageBody + 'static>(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    if let Err(problem) = not_forwarded(request.request(), &state) {
        return Ok(refuse(request, problem));
    }
    if !request.method().is_safe() && !is_from_own_page(&request) {
        return Ok(refuse(
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
    // Browsers before 2023. All of them say where a write comes from; who says nothing is no browser.
    behind_own_host(request, &ORIGIN) == Some("")
}

/// What stands behind the host in the URL of a header, if the host is ours.
fn behind_own_host<'a>(request: &'a ServiceRequest, name: &HeaderName) -> Option<&'a str> {
    let (_, rest) = header(request, name)?.split_once("://")?;
    rest.strip_prefix(header(request, &HOST)?)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Lets through who is signed in, and sends everybody else to the door.
///
/// # Errors
/// None of ours.
pub(super) async fn signed_in<B: MessageBody + 'static>(
    state: web::Data<State>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    match session::find(&state, request.request()).await {
        // An operator says whose account first.
        Ok(Some(visitor))
            if visitor.active.session.account_id.is_none() && !is_for_everybody(request.path()) =>
        {
            Ok(request.into_response(page::see_other("/dashboard/account").map_into_right_body()))
        }
        Ok(Some(visitor)) => {
            request.extensions_mut().insert(visitor);
            Ok(next.call(request).await?.map_into_left_body())
        }
        Ok(None) => {
            let response = turn_away(&request, &state);
            Ok(request.into_response(response.map_into_right_body()))
        }
        Err(problem) => Ok(refuse(request, problem)),
    }
}

/// What needs no account.
fn is_for_everybody(path: &str) -> bool {
    matches!(path, "/dashboard/account" | "/dashboard/sign-out")
}

/// The page that a form was sent from, which the sign-in returns to: what was typed is lost, the page is not. A browser names it
/// with the path prefix.
fn page_of_form<'a>(request: &'a ServiceRequest, state: &State) -> &'a str {
    let is_page = |page: &&str| SURFACE.has(page.split('?').next().unwrap_or_default());
    let page = behind_own_host(request, &REFERER)
        .map(|page| state.public_path.strip(page).unwrap_or(page));
    page.filter(is_page).unwrap_or("/dashboard")
}

/// Redirects to the sign-in page, which returns here.
fn turn_away(request: &ServiceRequest, state: &State) -> HttpResponse {
    let here = page::own_page(
        request
            .uri()
            .path_and_query()
            .map_or("/dashboard", |here| here.as_str()),
    );
    // Followed from somewhere else, a `SameSite=Strict` cookie is not sent although it is there. A page of ours that goes on
    // by itself is asked for with it. Once: whoever comes from our own page has none.
    if request.method().is_safe() && header(request, &FETCH_SITE) == Some("cross-site") {
        return page::go_on(&state.public_path.path(here));
    }
    let next = if request.method().is_safe() {
        here
    } else {
        page_of_form(request, state)
    };
    page::whole_window(request.headers(), &page::door(next, None))
}
