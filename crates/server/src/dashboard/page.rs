//! What all pages share: frame, headers, redirects, and the format of errors and times.

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
use crate::{
    public_path::PublicPath,
    rejection::HandlerResult,
    surface::{Rendered, secure_html, set_default, uncached_errors},
};

/// Allows only this server's files (and `data:` images in style sheets), no frames, and no forms to other sites.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

pub(super) fn set_headers(headers: &mut HeaderMap, status: StatusCode) {
    uncached_errors(headers, status);
    secure_html(headers, POLICY);
    headers.insert(
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("clipboard-write=(self)"),
    );
    set_default(headers, header::CACHE_CONTROL, "no-store");
}

/// The query of a page that shows a notice ([`Frame::done`]).
#[derive(Debug, Deserialize)]
pub struct Done {
    pub done: Option<String>,
}

#[derive(Debug, Default)]
pub struct Frame {
    pub title: String,
    /// The entry of the navigation it belongs to.
    pub section: &'static str,
    /// `None` on pages without a session.
    pub user: Option<SignedInUser>,
    /// The notice about the last action.
    pub done: Option<&'static str>,
    /// The prefix of each of the server's own paths on the page.
    pub root: PublicPath,
}

#[derive(Debug)]
pub struct SignedInUser {
    /// The subject from the identity provider or the token.
    pub subject: String,
    pub account: Option<String>,
    pub is_operator: bool,
}

impl Frame {
    #[must_use]
    pub fn of(visitor: &SignedIn, section: &'static str, title: impl Into<String>) -> Self {
        Self::of_session(&visitor.session, &visitor.root, section, title)
    }

    /// For a session that may have no account yet.
    #[must_use]
    pub fn of_session(
        session: &Session,
        root: &PublicPath,
        section: &'static str,
        title: impl Into<String>,
    ) -> Self {
        let user = SignedInUser {
            subject: session.subject.clone(),
            account: session.account_id.as_ref().map(ToString::to_string),
            is_operator: session.is_operator,
        };
        Self {
            title: title.into(),
            section,
            user: Some(user),
            done: None,
            root: root.clone(),
        }
    }

    /// Returns the frame of a page without a session.
    #[must_use]
    pub fn outside(title: &str, root: &PublicPath) -> Self {
        Self {
            title: title.to_owned(),
            root: root.clone(),
            ..Self::default()
        }
    }

    /// The URL contains only the name, so that a link cannot show arbitrary text as a notice.
    #[must_use]
    pub fn done(self, name: Option<&str>, allowed: &[&str]) -> Self {
        let done = match name.filter(|name| allowed.contains(name)) {
            Some("revoked") => "Key revoked. It is rejected everywhere.",
            Some("suspended") => "Key suspended. It is rejected until you resume it.",
            Some("resumed") => "Key resumed.",
            Some("pasted") => {
                "Do not search for a full key. Search by name, last four characters or ID."
            }
            Some("once") => {
                "This form was sent twice. One key was created. If you did not copy it, revoke the key and create another one."
            }
            Some("created") => "Application created. It has no keys yet.",
            Some("updated") => "Changes saved.",
            Some("disabled") => "Application disabled. Its keys are rejected until you enable it.",
            Some("enabled") => "Application enabled. Its keys are valid again.",
            Some("deleted") => "Application deleted. Its keys are revoked.",
            Some("model") => "Operating model set. It applies to existing keys, too.",
            Some("service-key-revoked") => "Service key revoked. It is rejected everywhere.",
            Some("account") => "You manage this account now.",
            _ => return self,
        };
        Self {
            done: Some(done),
            ..self
        }
    }

    #[must_use]
    pub fn asset(&self, name: &str) -> String {
        self.root.path(&assets::url(name))
    }
}

pub fn page(page: &impl Template) -> HandlerResult {
    page_with(HttpResponse::Ok(), page)
}

/// Renders a rejected form with the submitted values and their errors.
pub fn rejected(problem: &Problem, page: &impl Template) -> HandlerResult {
    page_with(HttpResponse::build(status(problem)), page)
}

fn page_with(mut response: HttpResponseBuilder, page: &impl Template) -> HandlerResult {
    let html = page.render().map_err(|error| {
        tracing::error!(%error, "cannot render a page");
        Problem::internal()
    })?;
    Ok(response.content_type("text/html; charset=utf-8").body(html))
}

fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Returns whether the form can be corrected and sent again. Other problems have their own page.
#[must_use]
pub fn can_be_corrected(problem: &Problem) -> bool {
    !matches!(
        problem.code,
        ProblemCode::NotFound | ProblemCode::InternalError | ProblemCode::Unavailable
    )
}

#[must_use]
pub fn see_other(to: &str) -> HttpResponse {
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, to))
        .finish()
}

pub const HOME: &str = "/dashboard/keys";
/// Longest page to return to, in bytes.
const NEXT_MAX: usize = 2048;
/// The sections to whose pages a sign-in can return.
const SECTIONS: [&str; 5] = ["keys", "applications", "audit", "settings", "account"];

/// Returns `next` if it is `/dashboard`, or `/dashboard/` with a section and segments of letters, digits, `-` and `_`,
/// with an optional query; otherwise [`HOME`].
///
/// The path has no dots, escapes, colons, empty segments, backslashes or control characters. So neither a browser nor
/// a proxy that normalizes the path of a redirect can turn it into another host.
#[must_use]
pub fn safe_next_page(next: &str) -> &str {
    let (path, query) = next.split_once('?').unwrap_or((next, ""));
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_page = match path.strip_prefix("/dashboard") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(is_segment)
                && rest
                    .split('/')
                    .next()
                    .is_some_and(|first| SECTIONS.contains(&first))
        }),
        None => false,
    };
    let is_query = query
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#'));
    if is_page && is_query && next.len() <= NEXT_MAX {
        next
    } else {
        HOME
    }
}

#[must_use]
pub fn sign_in_url(next: &str, failed: Option<&str>) -> String {
    let pairs = [
        Some(("next", safe_next_page(next))),
        failed.map(|code| ("failed", code)),
    ];
    let query = serde_urlencoded::to_string(pairs.into_iter().flatten().collect::<Vec<_>>())
        .unwrap_or_default();
    format!("/dashboard/sign-in?{query}")
}

/// After a 303, htmx would replace only a part of the page, so a request of htmx gets `HX-Redirect`.
#[must_use]
pub fn redirect_whole_page(headers: &HeaderMap, to: &str) -> HttpResponse {
    if headers.contains_key("hx-request") {
        HttpResponse::Ok()
            .insert_header(("hx-redirect", to))
            .finish()
    } else {
        see_other(to)
    }
}

/// Renders a page that immediately loads another one: a URL of the identity provider, or a path of this server,
/// including the path prefix. The browser sends that request from this site, and therefore with the session cookie.
#[must_use]
pub fn continue_page(to: &str) -> HttpResponse {
    let page = ContinuePage { to };
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .body(page.render().unwrap_or_default())
}

#[derive(Template)]
#[template(path = "continue.html")]
struct ContinuePage<'a> {
    to: &'a str,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    frame: Frame,
    problem: &'a Problem,
    request_id: &'a str,
}

pub(super) fn render_problem(
    mut response: HttpResponseBuilder,
    rendered: &Rendered<'_>,
) -> HttpResponse {
    let title = match rendered.problem.code {
        ProblemCode::NotFound => "Page not found",
        ProblemCode::Forbidden => "Not allowed",
        ProblemCode::Unavailable => "Temporarily unavailable",
        _ => "Request failed",
    };
    let page = ProblemPage {
        frame: Frame::outside(title, rendered.public_path),
        problem: rendered.problem,
        request_id: rendered.request_id,
    };
    response
        .content_type("text/html; charset=utf-8")
        .body(page.render().unwrap_or_default())
}

/// A time on a page: in UTC, and with script in the reader's time zone.
#[derive(Debug, Clone, Copy)]
pub struct Time(pub Timestamp);

/// Formats a number with a comma between groups of three digits.
#[must_use]
pub fn separated(number: impl ToString) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Time {
    #[must_use]
    pub fn iso(&self) -> String {
        let whole = Timestamp::from_second(self.0.as_second()).unwrap_or(self.0);
        whole.to_string()
    }

    /// Returns the time for people: `2026-11-21 14:05 UTC`.
    #[must_use]
    pub fn utc(&self) -> String {
        self.0
            .to_zoned(TimeZone::UTC)
            .strftime("%Y-%m-%d %H:%M UTC")
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_have_separators() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(separated(number), text);
        }
    }

    #[test]
    fn sign_in_returns_only_to_pages_of_the_dashboard() {
        for page in [
            "/dashboard",
            "/dashboard?done=account",
            "/dashboard/keys",
            "/dashboard/keys?mode=test&q=a%2e%2e%2f/..//b",
            "/dashboard/keys/01a1fdf4-8ded-771c-a1fe-14ac36e62ac1/rotate",
            "/dashboard/keys/key_01KDVDNA00HXPX69B46WBKBWSC",
            "/dashboard/settings/service-keys/01a1fdf4-8ded-771c-a1fe-14ac36e62ac1/revoke",
            "/dashboard/audit/export?format=csv&",
            "/dashboard/account",
        ] {
            assert_eq!(safe_next_page(page), page);
        }
        let longest = format!("/dashboard/keys?q={}", "a".repeat(NEXT_MAX - 18));
        assert_eq!(safe_next_page(&longest), longest);
        for rejected in [
            "",
            "/",
            "//",
            "/dashboard/..//x",
            "/dashboard/../x",
            "/dashboard/..",
            "/dashboard/.",
            "/dashboard/keys/..//evil.example",
            "/dashboard/%2e%2e//x",
            "/dashboard/%2E%2E/%2Fx",
            "/dashboard/.%2e/x",
            "/dashboard/keys/%2e%2e/%2e%2e//x",
            "/dashboard/%252e%252e//x",
            "/dashboard%2f..%2f%2fx",
            "/dashboard//x",
            "/dashboard//evil.example/keys",
            "/dashboard/",
            "/dashboard/keys/",
            "/dashboard/keys//x",
            "/dashboard\\..\\\\x",
            "/dashboard/keys\\@evil.example",
            "/dashboard/keys?a=\\",
            "/dashboard/keys?a#b",
            "/dashboard#x",
            "/dashboard@evil.example",
            "/dashboard/keys@evil.example",
            "/dashboard:80/keys",
            "/dashboard;/keys",
            "/dashboard.evil.example",
            "/dashboards",
            "/DASHBOARD/keys",
            "/dashboard/nothing",
            "/dashboard/sign-in?next=/dashboard",
            "/dashboard/sign-in/callback",
            "/dashboard/sign-out",
            "/dashboard/assets/0/style.css",
            "//evil.example/dashboard",
            "//evil.example/dashboard/keys",
            "/\\evil.example",
            "\\\\evil.example",
            "https://evil.example/dashboard/keys",
            "https:/dashboard/keys",
            "http:dashboard/keys",
            "javascript:alert(1)",
            "dashboard/keys",
            " /dashboard/keys",
            "/dashboard/keys ",
            "/dashboard/keys\t",
            "/\t/evil.example",
            "/dashboard/keys\r\nset-cookie: a=b",
            "/dashboard/keys?a=\u{0}",
            "/dashboard/keys?a=\u{7f}",
            "/dashboard/keys?a=ä",
            "/dashboard/k\u{202e}eys",
            "/keys/dashboard/keys",
            &format!("{longest}a"),
        ] {
            assert_eq!(safe_next_page(rejected), HOME, "{rejected:?}");
        }
    }
}
