//! A surface: routes that share the format of their errors and headers.
//!
//! The middleware ([`edge`](crate::edge)) and the OpenAPI document look up the surface of a path in [`Surfaces`]. A
//! new surface is a module with a [`Surface`] and its routes, and an entry in [`routes`](crate::routes).

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{
        StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};
use jiff::Timestamp;
use tollkey_api::problem as wire;
use tollkey_core::Problem;
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use crate::public_path::PublicPath;

#[derive(Debug)]
pub struct Surface {
    /// The path prefixes, as whole segments. One that ends in `/` matches only longer paths; `""` matches every path.
    pub prefixes: &'static [&'static str],
    /// `(second, first)`: a second prefix for the routes of the first. The OpenAPI document has only the first.
    pub alias: Option<(&'static str, &'static str)>,
    pub render: fn(HttpResponseBuilder, &Rendered<'_>) -> HttpResponse,
    pub set_headers: fn(&mut HeaderMap, StatusCode),
    /// Whether this ID of a client is accepted from `X-Request-Id`. Otherwise the server assigns one.
    pub keeps_request_id: fn(&str) -> bool,
    /// A header that counts as `Idempotency-Key` if it is sent alone, and must equal it otherwise.
    pub idempotency_alias: Option<&'static str>,
    /// Whether gateways pass on the responses. HEAD is then not treated as GET, and only a 429 has rate limit fields.
    pub is_for_gateways: bool,
    /// Routes that are requested all the time: a success is logged at `debug`.
    pub quiet_routes: &'static [&'static str],
    pub document: Document,
}

/// A problem with the values that its format needs.
#[derive(Debug)]
pub struct Rendered<'a> {
    pub problem: &'a Problem,
    pub request_id: &'a str,
    pub now: Timestamp,
    pub public_path: &'a PublicPath,
}

#[derive(Debug, Clone, Copy)]
pub struct Document {
    /// The tag and its description; `None` for a surface that is not in the document.
    pub tag: Option<(&'static str, &'static str)>,
    /// Whether operators name an account in the query.
    pub has_account_parameter: bool,
    pub problem: fn() -> ProblemSchema,
    pub forbidden: &'static str,
    /// Whether operations have the responses that follow from authentication, a body and a path.
    pub has_common_responses: bool,
    /// Whether an ID in the path can be unknown.
    pub has_ids: bool,
}

pub struct ProblemSchema {
    pub name: String,
    pub media_type: &'static str,
    /// The schema and those that it references, by name.
    pub schemas: Vec<(String, RefOr<Schema>)>,
}

impl ProblemSchema {
    #[must_use]
    pub fn of<T: ToSchema>(media_type: &'static str) -> Self {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        Self {
            name: T::name().into_owned(),
            media_type,
            schemas,
        }
    }
}

impl Document {
    pub const NONE: Self = Self {
        tag: None,
        ..Self::new("", "")
    };

    #[must_use]
    pub const fn new(tag: &'static str, description: &'static str) -> Self {
        Self {
            tag: Some((tag, description)),
            has_account_parameter: false,
            problem: || ProblemSchema::of::<wire::Problem>(wire::MEDIA_TYPE),
            forbidden: "`forbidden`: the credential does not allow this operation; or the code of a denial.",
            has_common_responses: true,
            has_ids: true,
        }
    }
}

impl Surface {
    /// Returns a surface of the API with problem details (RFC 9457), under these prefixes.
    #[must_use]
    pub const fn api(prefixes: &'static [&'static str], document: Document) -> Self {
        Self {
            prefixes,
            alias: None,
            render: problem_details,
            set_headers: uncached,
            keeps_request_id: is_request_id,
            idempotency_alias: None,
            is_for_gateways: false,
            quiet_routes: &[],
            document,
        }
    }

    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.prefixes.iter().any(|prefix| {
            path.strip_prefix(prefix).is_some_and(|rest| {
                prefix.is_empty()
                    || prefix.ends_with('/')
                    || rest.is_empty()
                    || rest.starts_with('/')
            })
        })
    }

    fn documented(&self, path: &str) -> Option<String> {
        let (second, first) = self.alias?;
        let rest = path.strip_prefix(second)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{first}{rest}"))
    }
}

/// The surfaces, in the order in which a path is looked up. The last one matches every path.
#[derive(Debug, Clone, Copy)]
pub struct Surfaces(pub &'static [&'static Surface]);

impl Surfaces {
    #[must_use]
    pub fn of(self, path: &str) -> &'static Surface {
        static NONE: Surface = Surface::api(&[""], Document::NONE);
        self.0
            .iter()
            .find(|surface| surface.has(path))
            .copied()
            .unwrap_or(&NONE)
    }

    /// Returns the path under which the OpenAPI document has this one.
    #[must_use]
    pub fn documented(self, path: &str) -> String {
        self.0
            .iter()
            .find_map(|surface| surface.documented(path))
            .unwrap_or_else(|| path.to_owned())
    }
}

pub fn problem_details(mut response: HttpResponseBuilder, rendered: &Rendered<'_>) -> HttpResponse {
    let problem = wire::Problem::new(rendered.problem, rendered.request_id);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    response.content_type(wire::MEDIA_TYPE).body(body)
}

pub fn uncached(headers: &mut HeaderMap, _: StatusCode) {
    no_sniff(headers);
    no_store(headers);
}

/// Sets the headers of responses that a cache may store unless they are errors.
pub fn uncached_errors(headers: &mut HeaderMap, status: StatusCode) {
    no_sniff(headers);
    if status.is_client_error() || status.is_server_error() {
        no_store(headers);
    }
}

fn no_sniff(headers: &mut HeaderMap) {
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
}

fn no_store(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

pub fn secure_html(headers: &mut HeaderMap, policy: &'static str) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // With `no-referrer` browsers would send `Origin: null` with a form, even to this server.
    set_default(headers, header::REFERRER_POLICY, "same-origin");
}

pub fn set_default(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    if !headers.contains_key(&name) {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// A request ID has 1 to 128 characters of `A-Z a-z 0-9 . _ : -`, and is not similar to a credential.
#[must_use]
pub fn is_request_id(text: &str) -> bool {
    let well_formed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    (1..=128).contains(&text.len())
        && text.as_bytes().iter().all(well_formed)
        && !is_like_credential(text)
}

/// Such a text is not logged, because a client may have put a credential in the wrong field.
#[must_use]
pub fn is_like_credential(text: &str) -> bool {
    ["_live_", "_test_", "tks_", "eyJ"]
        .iter()
        .any(|part| text.contains(part))
}
