//! What all pages share: their frame, their headers, how errors and times read.

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};
use askama::Template;
use jiff::{Timestamp, tz::TimeZone};
use serde::Deserialize;
use tollkey_core::{Problem, ProblemCode, session::Session};

use super::{assets, session::SignedIn};
use crate::edge::Answer;

/// Only our own style and script, no frames, no forms to elsewhere. Images in style sheets are `data:`.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Puts the headers of a page on an answer.
pub fn secure(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "clipboard-write=(self)"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        // With `no-referrer` browsers would hide where a form comes from, even from ourselves.
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
}

/// The query of a page that tells what was just done ([`Frame::done`]).
#[derive(Debug, Deserialize)]
pub struct Done {
    /// The word for it.
    pub done: Option<String>,
}

/// The frame of a page.
#[derive(Debug, Default)]
pub struct Frame {
    /// What the page is called.
    pub title: String,
    /// The entry of the navigation it belongs to.
    pub section: &'static str,
    /// Who is signed in; nobody on the pages before that.
    pub who: Option<Who>,
    /// What was just done, to be told once.
    pub done: Option<&'static str>,
}

/// Who is signed in.
#[derive(Debug)]
pub struct Who {
    /// As their identity provider or token calls them.
    pub subject: String,
    /// The account they manage.
    pub account: Option<String>,
    /// Whether they may manage every account.
    pub is_operator: bool,
}

impl Frame {
    /// The frame of a page for somebody who is signed in.
    #[must_use]
    pub fn of(visitor: &SignedIn, section: &'static str, title: impl Into<String>) -> Self {
        Self::of_session(&visitor.session, section, title)
    }

    /// [`Frame::of`] somebody who may not have chosen an account yet.
    #[must_use]
    pub fn of_session(session: &Session, section: &'static str, title: impl Into<String>) -> Self {
        let who = Who {
            subject: session.subject.clone(),
            account: session.account_id.as_ref().map(ToString::to_string),
            is_operator: session.is_operator,
        };
        Self { title: title.into(), section, who: Some(who), done: None }
    }

    /// The frame of a page before anybody is signed in.
    #[must_use]
    pub fn outside(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    /// With what was just done, as the query of a redirect says it: one of the words of this page, never a text of its own.
    #[must_use]
    pub fn done(self, word: Option<&str>, own: &[&str]) -> Self {
        let done = match word.filter(|word| own.contains(word)) {
            Some("revoked") => "The key is revoked. It is refused everywhere from now on.",
            Some("suspended") => "The key is suspended. It is refused until you resume it.",
            Some("resumed") => "The key works again.",
            Some("pasted") => {
                "A key's secret does not belong into a search. Keys are found by name, last four characters or id."
            }
            Some("once") => {
                "This form was sent twice. One key was made, and its secret was shown the first time. If you did not get it, revoke the key and make another one."
            }
            Some("created") => "The application is there. It has no keys yet.",
            Some("updated") => "The changes are saved.",
            Some("disabled") => "The application is disabled. Its keys are refused until you enable it.",
            Some("enabled") => "The application is enabled. Its keys work again.",
            Some("deleted") => "The application is deleted, and its keys are revoked.",
            Some("model") => "The operating model is set. It holds for keys already made, too.",
            Some("service-key-revoked") => "The service key is revoked. It verifies nothing from now on.",
            Some("account") => "You manage this account now.",
            _ => return self,
        };
        Self { done: Some(done), ..self }
    }

    /// Where an asset is.
    #[must_use]
    pub fn asset(&self, name: &str) -> String {
        assets::url(name)
    }
}

/// A page.
///
/// # Errors
/// `internal_error` when the template cannot be rendered.
pub fn page(page: &impl Template) -> Answer {
    page_with(HttpResponse::Ok(), page)
}

/// A form that was not taken, with what was typed and what is wrong with it.
///
/// # Errors
/// As [`page`].
pub fn refused(problem: &Problem, page: &impl Template) -> Answer {
    page_with(HttpResponse::build(status(problem)), page)
}

fn page_with(mut response: HttpResponseBuilder, page: &impl Template) -> Answer {
    let html = page.render().map_err(|error| {
        tracing::error!(%error, "a page cannot be rendered");
        Problem::internal()
    })?;
    Ok(response.content_type("text/html; charset=utf-8").body(html))
}

fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Whether the form itself can be mended and sent again; everything else is a page of its own.
#[must_use]
pub fn can_be_mended(problem: &Problem) -> bool {
    !matches!(problem.code, ProblemCode::NotFound | ProblemCode::InternalError | ProblemCode::Unavailable)
}

/// To another page, with GET.
#[must_use]
pub fn see_other(to: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, to)).finish()
}

/// The address of the door; with the word of why somebody is sent back there.
#[must_use]
pub fn door(next: &str, failed: Option<&str>) -> String {
    let pairs = [Some(("next", next)), failed.map(|word| ("failed", word))];
    let query = serde_urlencoded::to_string(pairs.into_iter().flatten().collect::<Vec<_>>()).unwrap_or_default();
    format!("/dashboard/sign-in?{query}")
}

/// To another page. A request of a script, which shows a part of an answer, is told to take the whole window there.
#[must_use]
pub fn whole_window(asked: &HeaderMap, to: &str) -> HttpResponse {
    if asked.contains_key("hx-request") {
        HttpResponse::Ok().insert_header(("hx-redirect", to)).finish()
    } else {
        see_other(to)
    }
}

/// A page that goes on by itself: what it asks for comes from our own site, and brings the session's cookie.
#[must_use]
pub fn go_on(to: &str) -> HttpResponse {
    let page = GoOn { to: to.to_owned() };
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page.render().unwrap_or_default())
}

#[derive(Template)]
#[template(path = "go_on.html")]
struct GoOn {
    to: String,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    frame: Frame,
    problem: &'a Problem,
    request_id: &'a str,
}

/// What somebody sees where a page would be.
#[must_use]
pub fn problem(problem: &Problem, request_id: &str) -> String {
    let title = match problem.code {
        ProblemCode::NotFound => "There is no such page",
        ProblemCode::Forbidden => "This is not allowed",
        ProblemCode::Unavailable => "Not available right now",
        _ => "This did not work",
    };
    ProblemPage { frame: Frame::outside(title), problem, request_id }.render().unwrap_or_default()
}

/// A time on a page: in UTC, and in the reader's zone where there is script.
#[derive(Debug, Clone, Copy)]
pub struct Time(pub Timestamp);

impl Time {
    /// For machines: RFC 3339.
    #[must_use]
    pub fn iso(&self) -> String {
        let whole = Timestamp::from_second(self.0.as_second()).unwrap_or(self.0);
        whole.to_string()
    }

    /// For people: `2026-11-21 14:05 UTC`.
    #[must_use]
    pub fn utc(&self) -> String {
        self.0.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M UTC").to_string()
    }
}
