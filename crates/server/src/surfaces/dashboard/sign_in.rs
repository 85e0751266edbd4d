//! The ways into the dashboard, and out.

use actix_web::{HttpRequest, get, post, web};
use askama::Template;
use serde::Deserialize;
use tollkey_core::Problem;

use super::{
    fields::Fields,
    page::{self, Frame, see_other},
    session::{self, Visitor},
};
use crate::{
    body::{Body, Query},
    edge::Answer,
    service::sign_in,
    state::State,
};

const HOME: &str = "/dashboard/keys";

#[derive(Deserialize)]
struct Next {
    next: Option<String>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Door {
    frame: Frame,
    next: String,
    takes_oidc: bool,
    takes_tokens: bool,
    is_development: bool,
    fields: Fields,
}

impl Door {
    fn new(state: &State, next: &str, fields: Fields) -> Self {
        Self {
            frame: Frame::outside("Sign in"),
            next: own_page(next).to_owned(),
            takes_oidc: false,
            takes_tokens: state.ways.token,
            is_development: state.policy.development,
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

/// Where to go on: one of our own pages, whatever the URL says.
fn own_page(next: &str) -> &str {
    // `//host` and `/\host` are other hosts to a browser; control characters in a header are nobody's page.
    let is_ours = super::is_dashboard_path(next.split(['?', '#']).next().unwrap_or_default())
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && !next.starts_with("/dashboard/sign-in");
    if is_ours { next } else { HOME }
}

#[get("/sign-in")]
pub(super) async fn show(state: web::Data<State>, query: Query) -> Answer {
    let Next { next } = query.read()?;
    let door = Door::new(&state, next.as_deref().unwrap_or(HOME), Fields::default());
    page::page(&door).map(session::probe)
}

/// The link that development mode prints. Looking at it is no use of it: only sending its form is, so whatever previews
/// or prefetches links does not use it up.
#[get("/sign-in/link")]
pub(super) async fn link_page(query: Query) -> Answer {
    let Code { code } = query.read()?;
    page::page(&LinkPage { frame: Frame::outside("Sign in"), code }).map(session::probe)
}

#[post("/sign-in/link")]
pub(super) async fn by_link(state: web::Data<State>, request: HttpRequest, body: Body) -> Answer {
    let fields = Fields::read(&body)?;
    let link = state.ways.link.as_ref().ok_or_else(Problem::not_found)?;
    match link.follow(fields.get("code"), state.clock.now()) {
        Some(session) => Ok(session::begin(&state, &request, session, see_other(HOME)).await?),
        None => {
            let problem = Problem::forbidden("This link was used before, or is older than five minutes.");
            page::refused(&problem, &Door::new(&state, HOME, Fields::default().refused(&problem)))
        }
    }
}

#[post("/sign-in/token")]
pub(super) async fn by_token(state: web::Data<State>, request: HttpRequest, body: Body) -> Answer {
    if !state.ways.token {
        return Err(Problem::not_found().into());
    }
    let fields = Fields::read(&body)?;
    let next = own_page(fields.get("next")).to_owned();
    match sign_in::by_token(&state, fields.get("token")).await {
        Ok(session) => Ok(session::begin(&state, &request, session, see_other(&next)).await?),
        // What was typed is a secret: it does not come back.
        Err(problem) => page::refused(&problem, &Door::new(&state, &next, Fields::default().refused(&problem))),
    }
}

#[post("/sign-out")]
pub(super) async fn sign_out(state: web::Data<State>, visitor: Visitor) -> Answer {
    Ok(session::end(&state, &visitor, see_other("/dashboard/sign-in")).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_on_only_to_pages_of_the_dashboard() {
        for (next, expected) in [
            ("/dashboard/keys?mode=test", "/dashboard/keys?mode=test"),
            ("/dashboard", "/dashboard"),
            ("", HOME),
            ("https://evil.example/dashboard", HOME),
            ("//evil.example/dashboard", HOME),
            ("/\\evil.example", HOME),
            ("/dashboard\\@evil.example", HOME),
            ("/dashboard.evil.example", HOME),
            ("/dashboards", HOME),
            ("/dashboard/keys\r\nset-cookie: a=b", HOME),
            ("/dashboard/sign-in?next=/dashboard", HOME),
            ("javascript:alert(1)", HOME),
        ] {
            assert_eq!(own_page(next), expected, "{next}");
        }
    }
}
