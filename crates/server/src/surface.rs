//! A surface: routes that share the format of their errors and headers, as a value.
//!
//! The outer middleware ([`edge`](crate::edge)) and the OpenAPI document look up the surface of a path in [`Surfaces`], and
//! know none by name. A new surface is a module with a [`Surface`] and its routes, and its lines on the page of routes
//! ([`routes`](crate::routes)).

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

/// Routes that share the format of their errors and headers.
#[derive(Debug)]
pub struct Surface {
    /// The path prefixes, as whole segments. A prefix that ends in `/` matches only longer paths; `""` matches every path.
    pub prefixes: &'static [&'static str],
    /// A second prefix under which the routes of a first one are mounted: `(second, first)`. The OpenAPI document has the first.
    pub alias: Option<(&'static str, &'static str)>,
    /// Renders a problem.
    pub render: fn(HttpResponseBuilder, &Rendered<'_>) -> HttpResponse,
    /// Sets the headers that responses share.
    pub set_headers: fn(&mut HeaderMap, StatusCode),
    /// Whether a request may bring this ID in `X-Request-Id`. Otherwise the request gets an ID of ours.
    pub keeps_request_id: fn(&str) -> bool,
    /// Whether a gateway passes on the responses. It then sees HEAD requests as they are, and quota fields on 429 only.
    pub is_for_gateways: bool,
    /// The routes that programs request all the time: a success is logged at `debug`.
    pub quiet_routes: &'static [&'static str],
    /// What the OpenAPI document says about its operations.
    pub document: Document,
}

/// A problem with what its format needs.
#[derive(Debug)]
pub struct Rendered<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// The ID of the request.
    pub request_id: &'a str,
    /// The time.
    pub now: Timestamp,
    /// The path prefix under which the client reaches the server.
    pub public_path: &'a PublicPath,
}

/// What the OpenAPI document says about the operations of a surface.
#[derive(Debug, Clone, Copy)]
pub struct Document {
    /// The tag and its description; `None` for a surface that the document does not have.
    pub tag: Option<(&'static str, &'static str)>,
    /// Whether operators name an account in the query.
    pub has_account_parameter: bool,
    /// The schema of a problem.
    pub problem: fn() -> ProblemSchema,
    /// The description of 403.
    pub forbidden: &'static str,
    /// Whether operations have the responses that follow from a caller, a body and a path.
    pub has_common_responses: bool,
    /// Whether an ID in the path can be unknown.
    pub has_ids: bool,
}

/// How the OpenAPI document describes the problems of a surface.
pub struct ProblemSchema {
    /// The name of the schema.
    pub name: String,
    /// The media type.
    pub media_type: &'static str,
    /// The schema, and those that it refers to, by name.
    pub schemas: Vec<(String, RefOr<Schema>)>,
}

impl ProblemSchema {
    /// The schema of a wire type.
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
    /// Of a surface that the document does not have.
    pub const NONE: Self = Self {
        tag: None,
        ..Self::new("", "")
    };

    /// The defaults of a surface with problem details (RFC 9457), under this tag.
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
    /// A surface of the API with problem details (RFC 9457), under these prefixes.
    #[must_use]
    pub const fn api(prefixes: &'static [&'static str], document: Document) -> Self {
        Self {
            prefixes,
            alias: None,
            render: problem_details,
            set_headers: uncached,
            keeps_request_id: is_request_id,
            is_for_gateways: false,
            quiet_routes: &[],
            document,
        }
    }

    /// Whether it has this path.
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

    /// The path under which the OpenAPI document has this one.
    fn documented(&self, path: &str) -> Option<String> {
        let (second, first) = self.alias?;
        let rest = path.strip_prefix(second)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{first}{rest}"))
    }
}

/// The surfaces, in the order in which a path is looked up. The last one has every path.
#[derive(Debug, Clone, Copy)]
pub struct Surfaces(pub &'static [&'static Surface]);

impl Surfaces {
    /// The surface of a path.
    #[must_use]
    pub fn of(self, path: &str) -> &'static Surface {
        static NONE: Surface = Surface::api(&[""], Document::NONE);
        self.0
            .iter()
            .find(|surface| surface.has(path))
            .copied()
            .unwrap_or(&NONE)
    }

    /// The path under which the OpenAPI document has this one.
    #[must_use]
    pub fn documented(self, path: &str) -> String {
        self.0
            .iter()
            .find_map(|surface| surface.documented(path))
            .unwrap_or_else(|| path.to_owned())
    }
}

/// Renders problem details (RFC 9457).
pub fn problem_details(mut response: HttpResponseBuilder, rendered: &Rendered<'_>) -> HttpResponse {
    let problem = wire::Problem::new(rendered.problem, rendered.request_id);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    response.content_type(wire::MEDIA_TYPE).body(body)
}

/// Sets the headers of responses that no cache may store.
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

/// Sets the headers of HTML and of what it loads: this content security policy, and no frames.
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
    // With `no-referrer` browsers would hide where a form comes from, even from ourselves.
    set_default(headers, header::REFERRER_POLICY, "same-origin");
}

/// Sets a header unless the response has it.
pub fn set_default(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    if !headers.contains_key(&name) {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether a text is an acceptable request ID: 1 to 128 characters out of `A-Z a-z 0-9 . _ : -`, and not similar to a
/// credential.
#[must_use]
pub fn is_request_id(text: &str) -> bool {
    let well_formed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    (1..=128).contains(&text.len())
        && text.as_bytes().iter().all(well_formed)
        && !is_like_credential(text)
}

/// Whether a text has a part that the credentials of this server have. Such a text is not logged: a client may have put a
/// credential where it does not belong.
#[must_use]
pub fn is_like_credential(text: &str) -> bool {
    ["_live_", "_test_", "tks_", "eyJ"]
        .iter()
        .any(|part| text.contains(part))
}
