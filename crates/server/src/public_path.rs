//! The path prefix under which clients reach the server: the path of `TOLLKEY_PUBLIC_URL`.
//!
//! Routes, handlers, `next=` parameters and idempotency records use the server's own paths, without the prefix. The
//! edge removes the prefix before a request is routed ([`PublicPath::strip`]), and adds it to the paths in response
//! headers. Pages add it to their links. Both use [`PublicPath::path`].

use std::{fmt, sync::Arc};

use actix_web::http::{
    Uri,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    uri::PathAndQuery,
};
use tollkey_core::Invalid;

/// Maximum length of the prefix, in bytes.
const MAX: usize = 255;
/// The server's own paths. A prefix equal to or under one of them would be ambiguous.
const OWN: [&str; 9] = [
    "/api/v1",
    "/api/v2",
    "/v1",
    "/v2",
    "/dashboard",
    "/docs",
    "/livez",
    "/readyz",
    "/openapi.json",
];
/// The response header that makes htmx load another page. Its value is a path, as in `Location`.
const HX_REDIRECT: HeaderName = HeaderName::from_static("hx-redirect");

/// A path prefix such as `/keys`, without a trailing slash. An empty prefix changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicPath(Arc<str>);

impl Default for PublicPath {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

impl fmt::Display for PublicPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PublicPath {
    /// Ignores a trailing slash. Segments must match `[A-Za-z0-9._~-]+` and must not be dot segments.
    pub fn parse(path: &str) -> Result<Self, Invalid> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Ok(Self::default());
        }
        let is_segment = |segment: &str| {
            let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
            !segment.is_empty()
                && segment.bytes().all(is_unreserved)
                && !matches!(segment, "." | "..")
        };
        let is_well_formed = path
            .strip_prefix('/')
            .is_some_and(|path| path.split('/').all(is_segment));
        if !is_well_formed || path.len() > MAX {
            return Err(Invalid::new(format!(
                "must have a path of at most {MAX} bytes, of letters, digits, - . _ ~ and single slashes, such as \
                 https://example.com/keys"
            )));
        }
        if path == "/api" || OWN.iter().any(|own| is_at_or_under(path, own)) {
            return Err(Invalid::new(
                "must not have a path that the server uses itself, such as /api or /dashboard",
            ));
        }
        Ok(Self(path.into()))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path by which clients reach one of the server's own paths: `/docs/` becomes `/keys/docs/`.
    #[must_use]
    pub fn path(&self, own: &str) -> String {
        format!("{}{own}", self.0)
    }

    /// Removes the prefix from a path and query once, or returns `None` if it does not have the prefix.
    #[must_use]
    pub fn strip<'a>(&self, path_and_query: &'a str) -> Option<&'a str> {
        if self.is_empty() {
            return None;
        }
        let rest = path_and_query.strip_prefix(&*self.0)?;
        (rest.is_empty() || rest.starts_with(['/', '?'])).then_some(rest)
    }

    #[must_use]
    pub fn strip_uri(&self, uri: &Uri) -> Option<Uri> {
        let rest = self.strip(uri.path_and_query()?.as_str())?;
        let own = if rest.starts_with('/') {
            PathAndQuery::try_from(rest)
        } else {
            format!("/{rest}").try_into()
        };
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(own.ok()?);
        Uri::from_parts(parts).ok()
    }

    /// Adds the prefix to paths in a response's `Location`, `Link` and htmx redirect, but not to URLs of other servers.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        if self.is_empty() {
            return;
        }
        for (name, before) in [
            (header::LOCATION, ""),
            (header::LINK, "<"),
            (HX_REDIRECT, ""),
        ] {
            let own = headers
                .get(&name)
                .and_then(|value| value.to_str().ok()?.strip_prefix(before));
            if let Some(own) = own.filter(|own| own.starts_with('/'))
                && let Ok(value) = HeaderValue::try_from(format!("{before}{}", self.path(own)))
            {
                headers.insert(name, value);
            }
        }
    }
}

fn is_at_or_under(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_that_conflicts_with_own_paths_is_rejected() {
        for (path, expected) in [
            ("", Some("")),
            ("/", Some("")),
            ("/keys", Some("/keys")),
            ("/keys/", Some("/keys")),
            ("/a/b-c_d.e~f/", Some("/a/b-c_d.e~f")),
            ("/api/keys", Some("/api/keys")),
            ("/v1beta", Some("/v1beta")),
            ("/docs-internal", Some("/docs-internal")),
            ("/api", None),
            ("/api/", None),
            ("/api/v1", None),
            ("/api/v1/keys", None),
            ("/v1", None),
            ("/v1/keys", None),
            ("/v2/keys", None),
            ("/api/v2/keys", None),
            ("/dashboard", None),
            ("/dashboard/keys", None),
            ("/docs", None),
            ("/livez", None),
            ("/readyz", None),
            ("/openapi.json", None),
            ("keys", None),
            ("//keys", None),
            ("/keys//", None),
            ("/a//b", None),
            ("/.", None),
            ("/a/../b", None),
            ("/a%2fb", None),
            ("/a b", None),
            ("/ä", None),
            ("/a?b", None),
            ("/a;b", None),
            ("/a\\b", None),
        ] {
            assert_eq!(
                PublicPath::parse(path)
                    .ok()
                    .map(|path| path.to_string())
                    .as_deref(),
                expected,
                "{path:?}"
            );
        }
        assert!(PublicPath::parse(&format!("/{}", "a".repeat(MAX - 1))).is_ok());
        assert!(PublicPath::parse(&format!("/{}", "a".repeat(MAX))).is_err());
    }

    #[test]
    fn prefix_is_removed_once_and_as_whole_segments() {
        let keys = PublicPath::parse("/keys").unwrap();
        for (uri, expected) in [
            ("/keys", Some("/")),
            ("/keys/", Some("/")),
            ("/keys?a=/b", Some("/?a=/b")),
            ("/keys/docs/?a", Some("/docs/?a")),
            ("/keys/keys/docs/", Some("/keys/docs/")),
            ("/keys//docs", Some("//docs")),
            ("/keys/%2e%2e/x", Some("/%2e%2e/x")),
            ("http://host/keys/livez", Some("http://host/livez")),
            ("/keysdocs", None),
            ("/%6Beys/docs", None),
            ("/docs/", None),
            ("/", None),
            ("*", None),
        ] {
            let own = keys
                .strip_uri(&uri.parse().unwrap())
                .map(|uri| uri.to_string());
            assert_eq!(own.as_deref(), expected, "{uri}");
            assert_eq!(
                PublicPath::default().strip_uri(&uri.parse().unwrap()),
                None,
                "{uri}"
            );
        }
    }

    #[test]
    fn prefix_is_added_to_own_paths_in_headers() {
        let keys = PublicPath::parse("/keys").unwrap();
        for (name, value, expected) in [
            ("location", "/docs/", "/keys/docs/"),
            (
                "location",
                "https://id.example/authorize",
                "https://id.example/authorize",
            ),
            (
                "link",
                "</api/v1/api-keys?cursor=1>; rel=\"next\"",
                "</keys/api/v1/api-keys?cursor=1>; rel=\"next\"",
            ),
            (
                "hx-redirect",
                "/dashboard/sign-in?next=%2Fdashboard",
                "/keys/dashboard/sign-in?next=%2Fdashboard",
            ),
            ("x-original-uri", "/docs/", "/docs/"),
        ] {
            let name = HeaderName::from_static(name);
            let mut headers = HeaderMap::new();
            headers.insert(name.clone(), HeaderValue::from_static(value));
            PublicPath::default().add_to(&mut headers);
            assert_eq!(headers.get(&name).unwrap(), value);
            keys.add_to(&mut headers);
            assert_eq!(headers.get(&name).unwrap(), expected);
        }
    }
}
