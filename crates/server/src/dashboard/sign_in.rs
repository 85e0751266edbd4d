//! Sign-in methods of the dashboard, and sign-out.

use actix_web::{
    HttpRequest, get,
    http::header::{self, HeaderValue},
    post, web,
};
use askama::Template;
use serde::Deserialize;
use tollkey_api::Secret;
use tollkey_core::Problem;
use tollkey_service::sessions;

use super::{
    fields::Fields,
    page::{self, Frame, HOME, safe_next_page, see_other},
    session::{self, Visitor},
};
use crate::{
    auth::oidc::{Provider, SIGNED_OUT_PATH},
    body::{Body, Query},
    rejection::HandlerResult,
    sign_in::{self, CallbackParameters, Failure},
    state::State,
};

#[derive(Deserialize)]
struct Next {
    next: Option<String>,
    failed: Option<String>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    frame: Frame,
    next: String,
    takes_oidc: bool,
    takes_tokens: bool,
    is_development: bool,
    fields: Fields,
}

impl SignInPage {
    fn new(state: &State, next: &str, fields: Fields) -> Self {
        Self {
            frame: Frame::outside("Sign in", &state.public_path),
            next: safe_next_page(next).to_owned(),
            takes_oidc: state.sign_in.oidc.is_some(),
            takes_tokens: state.sign_in.token.is_some(),
            is_development: state.request_settings.development,
            fields,
        }
    }
}

#[derive(Template)]
#[template(path = "sign_in_link.html")]
struct LinkPage {
    frame: Frame,
    code: String,
}

#[get("/sign-in")]
pub(super) async fn show(state: web::Data<State>, query: Query) -> HandlerResult {
    let Next { next, failed } = query.read()?;
    let next = next.as_deref().unwrap_or(HOME);
    match failed.as_deref().and_then(Failure::from_code) {
        Some(failure) => sign_in_failed(&state, next, failure),
        None => page::page(&SignInPage::new(&state, next, Fields::default())),
    }
    .map(session::probe)
}

fn sign_in_failed(state: &State, next: &str, failure: Failure) -> HandlerResult {
    let claim = state
        .sign_in
        .oidc
        .as_ref()
        .map_or("", Provider::account_claim);
    let problem = failure.problem(claim);
    page::rejected(
        &problem,
        &SignInPage::new(state, next, Fields::default().with_errors(&problem)),
    )
}

/// The provider redirects back to [`come_back`].
#[get("/sign-in/oidc")]
pub(super) async fn by_oidc(
    state: web::Data<State>,
    request: HttpRequest,
    query: Query,
) -> HandlerResult {
    let provider = state.sign_in.oidc.as_ref().ok_or_else(Problem::not_found)?;
    let Next { next, .. } = query.read()?;
    let next = safe_next_page(next.as_deref().unwrap_or(HOME));
    let before = session::presented(&state, &request);
    match provider
        .begin(&*state.service.clock, &state.service.random, next, before)
        .await
    {
        Ok((attempt, url)) => Ok(session::store_attempt(
            &state,
            &request,
            &attempt,
            see_other(url.as_str()),
        )),
        Err(error) => sign_in_failed(&state, next, error.into()),
    }
}

/// The URL contains a code, so the browser does not stay at it: it continues to another page.
#[get("/sign-in/callback")]
pub(super) async fn come_back(
    state: web::Data<State>,
    request: HttpRequest,
    query: Query,
) -> HandlerResult {
    let provider = state.sign_in.oidc.as_ref().ok_or_else(Problem::not_found)?;
    let returned = returned(&query)?;
    let attempt = session::attempt(&state, &request);
    let next = safe_next_page(attempt.as_ref().map_or(HOME, |attempt| &attempt.next)).to_owned();
    let signed_in = match sign_in::by_oidc(&state, provider, attempt.as_ref(), &returned).await {
        Ok(sign_in) => {
            let mut response = page::continue_page(&state.public_path.path(&next));
            // The URL contains a code, which the next page does not need.
            response.headers_mut().insert(
                header::REFERRER_POLICY,
                HeaderValue::from_static("no-referrer"),
            );
            let before = attempt.and_then(|attempt| attempt.before);
            session::begin(&state, &request, sign_in, before, response)
                .await
                .map_err(|_| sign_in::session_not_stored())
        }
        Err(failure) => Err(failure),
    };
    Ok(match signed_in {
        Ok(response) => session::delete_attempt(response),
        // Another site that redirects the browser here must not end the sign-in in progress.
        Err(Failure::Unknown) => {
            see_other(&page::sign_in_url(&next, Some(Failure::Unknown.code())))
        }
        Err(failure) => {
            session::delete_attempt(see_other(&page::sign_in_url(&next, Some(failure.code()))))
        }
    })
}

/// Returns the parameters of a provider's redirect; none if one is repeated (RFC 6749, section 3.1).
fn returned(query: &Query) -> Result<CallbackParameters, Problem> {
    let pairs = query.pairs()?;
    let all = |name: &str| {
        pairs
            .iter()
            .filter(|(own, _)| own == name)
            .map(|(_, value)| value)
            .collect::<Vec<_>>()
    };
    let [state, code, error, issuer] = ["state", "code", "error", "iss"].map(all);
    if [&state, &code, &error, &issuer]
        .iter()
        .any(|values| values.len() > 1)
    {
        return Ok(CallbackParameters::default());
    }
    let only = |values: Vec<&String>| values.first().map(|value| (*value).clone());
    Ok(CallbackParameters {
        state: only(state).map(Secret::from),
        code: only(code).map(Secret::from),
        error: only(error),
        issuer: only(issuer),
    })
}

/// Only sending the form uses up the link, so a program that previews or prefetches links does not.
#[get("/sign-in/link")]
pub(super) async fn link_page(state: web::Data<State>, query: Query) -> HandlerResult {
    let links = state
        .sign_in
        .links
        .as_ref()
        .ok_or_else(Problem::not_found)?;
    let Code { code } = query.read()?;
    if !links.is_valid(&code, state.service.clock.now()) {
        return link_rejected(&state);
    }
    page::page(&LinkPage {
        frame: Frame::outside("Sign in", &state.public_path),
        code,
    })
    .map(session::probe)
}

#[post("/sign-in/link")]
pub(super) async fn by_link(
    state: web::Data<State>,
    request: HttpRequest,
    body: Body,
) -> HandlerResult {
    let fields = Fields::read(&body)?;
    let links = state
        .sign_in
        .links
        .as_ref()
        .ok_or_else(Problem::not_found)?;
    match links.follow(fields.get("code"), state.service.clock.now()) {
        Some(sign_in) => {
            Ok(session::begin(&state, &request, sign_in, None, see_other(HOME)).await?)
        }
        None => link_rejected(&state),
    }
}

fn link_rejected(state: &State) -> HandlerResult {
    let problem = Problem::forbidden(
        "This link was used before, is older than five minutes, or is from before the server started. \
         `tollkey dashboard-link` prints another.",
    );
    page::rejected(
        &problem,
        &SignInPage::new(state, HOME, Fields::default().with_errors(&problem)),
    )
}

#[post("/sign-in/token")]
pub(super) async fn by_token(
    state: web::Data<State>,
    request: HttpRequest,
    body: Body,
) -> HandlerResult {
    if state.sign_in.token.is_none() {
        return Err(Problem::not_found().into());
    }
    let fields = Fields::read(&body)?;
    let next = safe_next_page(fields.get("next")).to_owned();
    match sign_in::by_token(&state, fields.get("token")).await {
        Ok(sign_in) => Ok(session::begin(&state, &request, sign_in, None, see_other(&next)).await?),
        // The submitted token is a secret, so the page does not contain it.
        Err(problem) => page::rejected(
            &problem,
            &SignInPage::new(&state, &next, Fields::default().with_errors(&problem)),
        ),
    }
}

/// Also ends the session at the OpenID Connect provider that began it, by a redirect.
#[post("/sign-out")]
pub(super) async fn sign_out(
    state: web::Data<State>,
    request: HttpRequest,
    visitor: Visitor,
) -> HandlerResult {
    // First, because the wait for a slow provider ends with the connection, and the session must not outlive either.
    sessions::end(&state.service, &visitor.active).await?;
    let provider = state
        .sign_in
        .oidc
        .as_ref()
        .filter(|it| session::began_with(&state, &request, &visitor, &it.sign_in_settings()));
    let at_provider = match provider {
        Some(provider) => provider.end_session_url(&*state.service.clock).await,
        None => None,
    };
    Ok(session::delete_cookie(match at_provider {
        // A page instead of a redirect, because the content security policy lets forms lead only to this site.
        Some(url) => page::continue_page(url.as_str()),
        None => see_other(SIGNED_OUT_PATH),
    }))
}

/// Providers also redirect here, so it accepts any query, such as `state`.
#[get("/signed-out")]
pub(super) async fn signed_out(state: web::Data<State>, request: HttpRequest) -> HandlerResult {
    if session::find(&state, &request).await?.is_some() {
        return Ok(see_other(HOME));
    }
    let mut page = SignInPage::new(&state, HOME, Fields::default());
    page.frame.done = Some("You are signed out.");
    page::page(&page).map(session::probe)
}
