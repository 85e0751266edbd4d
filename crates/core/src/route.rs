//! Routes: the requests that a restricted key allows.
//!
//! Routes are compared with the path as it was sent. Two parsers can read dot segments, doubled slashes, encoded
//! slashes or path parameters in different ways, so a path with any of these matches no route.

use crate::Invalid;

/// The prefix of the paths of a protected API, which is removed once before a path is compared with routes: literal
/// segments such as `/api`, and `{name}` for any one segment, as in `/merchants/{merchant}`. The default is `/api`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteBase {
    /// The literal segments before the first placeholder, as one text, each with its slash.
    literal: Box<str>,
    /// The segments from the first placeholder on; `None` is a placeholder.
    segments: Box<[Option<Box<str>>]>,
}

impl RouteBase {
    /// Creates an empty base, which removes nothing.
    #[must_use]
    pub fn none() -> Self {
        Self {
            literal: Box::default(),
            segments: Box::default(),
        }
    }

    /// Reads a base. `/` and the empty text remove nothing. A slash at the end is ignored.
    ///
    /// # Errors
    /// [`Invalid`] unless it begins with `/` and each segment is literal, unambiguous and without escapes, or `{name}`.
    ///
    /// ```
    /// use tollkey_core::{RequestPath, RouteBase};
    /// let base = RouteBase::parse("/merchants/{merchant}").unwrap();
    /// assert_eq!(RequestPath::new("/merchants/m1/tokens", &base).as_str(), "/tokens");
    /// assert!(RouteBase::parse("api").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.is_empty() {
            return Ok(Self::none());
        }
        let placeholder = |segment: &str| {
            let name = segment
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'));
            name.is_some_and(|name| !name.contains(['{', '}']))
        };
        let literal = |segment: &str| {
            !segment.contains(['?', '%', '{', '}', '*'])
                && RequestPath(&format!("/{segment}")).is_unambiguous()
        };
        let Some(segments) = text
            .strip_prefix('/')
            .map(|text| text.split('/').collect::<Vec<_>>())
        else {
            return Err(Invalid::new(
                "must begin with a slash, such as /api or /merchants/{merchant}",
            ));
        };
        if !segments
            .iter()
            .all(|segment| !segment.is_empty() && (placeholder(segment) || literal(segment)))
        {
            return Err(Invalid::new(
                "must be a path such as /api or /merchants/{merchant}, without escapes, dot segments and empty segments",
            ));
        }
        let first = segments
            .iter()
            .position(|segment| placeholder(segment))
            .unwrap_or(segments.len());
        let (literals, rest) = segments.split_at(first);
        Ok(Self {
            literal: literals
                .iter()
                .flat_map(|segment| ["/", segment])
                .collect::<String>()
                .into(),
            segments: rest
                .iter()
                .map(|segment| (!placeholder(segment)).then(|| (*segment).into()))
                .collect(),
        })
    }

    /// Returns the rest of a path that begins with this base as whole segments.
    fn cut<'a>(&self, path: &'a str) -> Option<&'a str> {
        let mut rest = path.strip_prefix(&*self.literal)?;
        for expected in &self.segments {
            let (segment, behind) = rest.strip_prefix('/')?.split_once('/')?;
            if expected
                .as_deref()
                .is_some_and(|literal| literal != segment)
            {
                return None;
            }
            rest = &rest[rest.len() - behind.len() - 1..];
        }
        // An ambiguous segment must not be removed with the base, because a router may read it as another one.
        let base = &path[..path.len() - rest.len()];
        (rest.starts_with('/') && (self.segments.is_empty() || RequestPath(base).is_unambiguous()))
            .then_some(rest)
    }
}

impl Default for RouteBase {
    fn default() -> Self {
        Self {
            literal: "/api".into(),
            segments: Box::default(),
        }
    }
}

/// The path of a request as it was sent, without the query and the route base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPath<'a>(&'a str);

impl<'a> RequestPath<'a> {
    /// Removes the query, and the base if the path begins with it as whole segments.
    ///
    /// ```
    /// use tollkey_core::{RequestPath, RouteBase};
    /// let base = RouteBase::default();
    /// assert_eq!(RequestPath::new("/api/tokens?page=2", &base).as_str(), "/tokens");
    /// assert_eq!(RequestPath::new("/api/api/tokens", &base).as_str(), "/api/tokens");
    /// assert_eq!(RequestPath::new("/apis/tokens", &base).as_str(), "/apis/tokens");
    /// ```
    #[must_use]
    pub fn new(raw: &'a str, base: &RouteBase) -> Self {
        let path = raw.split_once('?').map_or(raw, |(path, _)| path);
        Self(base.cut(path).unwrap_or(path))
    }

    /// The path without the query and the base.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether all parsers read this path in the same way (contract, section 4). That is not the case if it
    ///
    /// - does not begin with `/`, or has an empty or dot segment; a trailing slash leaves an empty last segment,
    /// - has `;`, `\`, `#` or anything but printable ASCII,
    /// - has an incomplete escape, or one of `/ \ . % ; ? #` or of a control character,
    /// - is invalid UTF-8 when it is decoded, which includes overlong forms,
    /// - has a segment that begins or ends with white space when it is decoded.
    ///
    /// Other escapes, such as `%20` inside a segment, `%40` and `%3A`, are part of their segment.
    #[must_use]
    pub fn is_unambiguous(self) -> bool {
        let mut bytes = self.0.bytes();
        if bytes.next() != Some(b'/') {
            return false;
        }
        // One pass, because each verification with a route runs it. `dots` is the length of the segment so far while it is
        // empty, `.` or `..`, and otherwise `NOT_DOTS`.
        const NOT_DOTS: u8 = 3;
        let (mut dots, mut escapes) = (0, false);
        for byte in bytes {
            match PATH_BYTES[usize::from(byte)] {
                PathByte::Plain => dots = NOT_DOTS,
                PathByte::Slash if dots == NOT_DOTS => dots = 0,
                PathByte::Dot => dots = NOT_DOTS.min(dots + 1),
                PathByte::Escape => (escapes, dots) = (true, NOT_DOTS),
                PathByte::Slash | PathByte::Ambiguous => return false,
            }
        }
        (self.0.len() == 1 || dots == NOT_DOTS)
            && (!escapes || self.0.split('/').all(has_plain_escapes))
    }
}

#[derive(Clone, Copy)]
enum PathByte {
    Plain,
    Slash,
    Dot,
    Escape,
    Ambiguous,
}

const PATH_BYTES: [PathByte; 256] = {
    let mut bytes = [PathByte::Ambiguous; 256];
    let mut byte = 0;
    while byte < 256 {
        bytes[byte] = match byte as u8 {
            b'/' => PathByte::Slash,
            b'.' => PathByte::Dot,
            b'%' => PathByte::Escape,
            b';' | b'\\' | b'#' => PathByte::Ambiguous,
            graphic if graphic.is_ascii_graphic() => PathByte::Plain,
            _ => PathByte::Ambiguous,
        };
        byte += 1;
    }
    bytes
};

/// Whether the escapes of a segment are complete, and encode no character that a parser could read as the end of a
/// segment, of the path or of a line, or could trim from the segment.
fn has_plain_escapes(segment: &str) -> bool {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (Some(high), Some(low)) = (hex(bytes.next()), hex(bytes.next())) else {
            return false;
        };
        match u8::try_from(high << 4 | low) {
            Ok(b'/' | b'\\' | b'.' | b'%' | b';' | b'?' | b'#') | Err(_) => return false,
            Ok(byte) => decoded.push(byte),
        }
    }
    // Rejects overlong forms.
    let Ok(text) = std::str::from_utf8(&decoded) else {
        return false;
    };
    // ECMAScript's `trim` also removes U+FEFF.
    let trimmed = |character: char| character.is_whitespace() || character == '\u{feff}';
    !text.contains(char::is_control) && !text.starts_with(trimmed) && !text.ends_with(trimmed)
}

/// Whether the `..` segments of a path lead above its root for any parser: one that decodes `%2e`, `%2f` and `%5c`, reads
/// `\` as `/`, or merges slashes. A query is not part of the path.
///
/// ```
/// use tollkey_core::leads_above_root;
/// assert!(leads_above_root("/links/..%2f../account"));
/// assert!(!leads_above_root("/links/../account"));
/// ```
#[must_use]
pub fn leads_above_root(raw: &str) -> bool {
    let path = raw.split_once('?').map_or(raw, |(path, _)| path);
    // Almost all paths. Each verification for Envoy runs this.
    if !path.contains("..") && !path.contains('%') {
        return false;
    }
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    let path = path.replace("%2f", "/").replace("%5c", "/");
    let mut depth = 0_usize;
    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." if depth == 0 => return true,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

/// A method and a path template: literal segments, `{name}` for one non-empty segment, and a final `*` for one
/// or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    method: &'static str,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(&'static str),
    One,
    Rest,
}

impl Template {
    /// Creates a template from constants of the program, which are not validated.
    #[must_use]
    pub fn new(method: &'static str, path: &'static str) -> Self {
        let segments = path.split('/').skip(1).map(|segment| match segment {
            "*" => Segment::Rest,
            name if name.starts_with('{') => Segment::One,
            literal => Segment::Literal(literal),
        });
        Self {
            method,
            segments: segments.collect(),
        }
    }

    /// Whether a request matches. Methods are case-sensitive, and HEAD counts as GET.
    ///
    /// ```
    /// use tollkey_core::{RequestPath, RouteBase, route::Template};
    /// let (template, base) = (Template::new("GET", "/tokens/{id}"), RouteBase::default());
    /// assert!(template.matches("HEAD", RequestPath::new("/tokens/tok_1?expand=1", &base)));
    /// assert!(!template.matches("GET", RequestPath::new("/tokens/..", &base)));
    /// assert!(!template.matches("get", RequestPath::new("/tokens/tok_1", &base)));
    /// ```
    #[must_use]
    pub fn matches(&self, method: &str, path: RequestPath<'_>) -> bool {
        let method = if method == "HEAD" { "GET" } else { method };
        // The ambiguity check comes last, because most templates do not match anyway.
        method == self.method && self.matches_segments(path) && path.is_unambiguous()
    }

    fn matches_segments(&self, path: RequestPath<'_>) -> bool {
        let mut rest = path.0;
        for segment in &self.segments {
            let Some(behind_slash) = rest.strip_prefix('/') else {
                return false;
            };
            if behind_slash.is_empty() || behind_slash.starts_with('/') {
                return false; // an empty segment
            }
            rest = match segment {
                Segment::Literal(literal) => match behind_slash.strip_prefix(literal) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
                    _ => return false,
                },
                Segment::One => behind_slash
                    .find('/')
                    .map_or("", |slash| &behind_slash[slash..]),
                Segment::Rest => return true,
            };
        }
        rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(template: &'static str, path: &str) -> bool {
        Template::new("GET", template).matches("GET", RequestPath::new(path, &RouteBase::default()))
    }

    #[test]
    fn name_matches_one_segment_and_star_one_or_more() {
        assert!(matches("/tokens/{id}", "/tokens/a"));
        assert!(matches("/tokens/{id}", "/api/tokens/a%20b"));
        assert!(!matches("/tokens/{id}", "/tokens"));
        assert!(!matches("/tokens/{id}", "/tokens/a/b"));
        assert!(matches("/public/*", "/public/a"));
        assert!(matches("/public/*", "/public/a/b/c?x=//;"));
        assert!(!matches("/public/*", "/public"));
        assert!(!matches("/public/*", "/public/"));
        assert!(!matches("/{a}", "/"));
        assert!(!matches("/*", "/"));
    }

    #[test]
    fn dot_segments_lead_above_the_root_for_any_parser() {
        for path in [
            "/..",
            "/../a",
            "..",
            "/a/../../b",
            "/a//../../b",
            "/a/./../../b",
            "/a/..\\..\\b",
            "/a/%2e%2E/.%2e/b",
            "/a/..%2f..%2Fb",
            "/a/..%5c..%5Cb",
            "/a/../../b?c",
        ] {
            assert!(leads_above_root(path), "{path}");
        }
        for path in [
            "/",
            "",
            "/a/..",
            "/a/b/../../c",
            "/...",
            "/a..b/..c",
            "/a%20b/%2e",
            "/a?/../../b",
            "/%c0%ae%c0%ae/x",
        ] {
            assert!(!leads_above_root(path), "{path}");
        }
    }

    #[test]
    fn ambiguous_path_matches_nothing() {
        for path in [
            "/public/.",
            "/public/..",
            "/public/../x",
            "/public/./x",
            "/public//x",
            "//public/x",
            "/public/x/",
            "/public/%2e",
            "/public/%2E%2e/x",
            "/public/a%2fb",
            "/public/a%2Fb",
            "/public/a%5cb",
            "/public/a%5Cb",
            "/public/a%00",
            "/public/a%25",
            "/public/a%252e",
            "/public/a%3bb",
            "/public/a%3Bb",
            "/public/a%3fb",
            "/public/a%23b",
            // Control characters: line ends, tab, DEL, and U+0085 of C1.
            "/public/a%0ab",
            "/public/a%0Db",
            "/public/a%09b",
            "/public/a%1fb",
            "/public/a%7fb",
            "/public/a%c2%85b",
            "/public/%0a",
            "/public/x%0a",
            // White space at either end of a segment: U+0020, U+00A0, U+2003, U+3000, U+FEFF.
            "/public/%20a",
            "/public/a%20",
            "/public/%20",
            "/public/a%20/b",
            "/public/%20a/b",
            "/public/a%c2%a0",
            "/public/%C2%A0a",
            "/public/a%e2%80%83/b",
            "/public/%e3%80%80a",
            "/public/a%ef%bb%bf",
            // Not UTF-8: a lone byte, a cut sequence, a surrogate, overlong forms of `/`, `.` and NUL.
            "/public/a%ff",
            "/public/a%c3",
            "/public/a%c3/%a9",
            "/public/a%ed%a0%80",
            "/public/a%c0%afb",
            "/public/a%e0%80%afb",
            "/public/%c0%ae%c0%ae/x",
            "/public/a%c0%80",
            "/public/a;b",
            "/public/a\\b",
            "/public/a%",
            "/public/a%2",
            "/public/a%zz",
            "/public/a%+1",
            "/public/a#b",
            "/public/a b",
            "/public/é",
            "public/x",
            "",
            "/public/a\u{0}",
        ] {
            assert!(!matches("/public/*", path), "{path:?}");
        }
    }

    #[test]
    fn other_escapes_are_part_of_their_segment() {
        for path in [
            "/public/a%20b",
            "/public/a%20%20b",
            "/public/user%40example.com",
            "/public/a%3Ab",
            "/public/%3A",
            "/public/%c3%a9",
            "/public/%F0%9F%94%91",
            "/public/a%c2%a0b",
            "/public/%41",
            "/public/a%2Cb",
            "/public/%2B",
            "/public/a%e2%80%8db",
        ] {
            assert!(matches("/public/*", path), "{path}");
            assert!(matches("/public/{id}", path), "{path}");
        }
        // Paths are compared as sent: an escaped letter is not the letter.
        assert!(!matches("/tokens", "/%74okens"));
    }

    #[test]
    fn base_with_placeholders_is_removed_as_whole_segments() {
        let assert_rest = |base: &str, path: &str, expected: &str| {
            let base = RouteBase::parse(base).unwrap();
            let rest = RequestPath::new(path, &base);
            assert_eq!(rest.as_str(), expected, "{base:?} {path}");
        };
        let merchants = "/merchants/{merchant}";
        for (base, path, expected) in [
            (merchants, "/merchants/m1/tokens", "/tokens"),
            (merchants, "/merchants/m%201/tokens", "/tokens"),
            (
                "/merchants/{}",
                "/merchants/m1/merchants/m2/tokens",
                "/merchants/m2/tokens",
            ),
            ("/v1/{a}/x/{b}", "/v1/1/x/2/tokens?q", "/tokens"),
            ("/v1/{a}/x/{b}", "/v1/1/y/2/tokens", "/v1/1/y/2/tokens"),
            ("/{tenant}/api/", "/acme/api/tokens", "/tokens"),
            ("/", "/tokens", "/tokens"),
            ("", "/tokens", "/tokens"),
        ] {
            assert_rest(base, path, expected);
        }
        for path in [
            // Nothing is left, or a segment is missing.
            "/merchants/m1",
            "/merchants",
            // An ambiguous path keeps the base, so it matches nothing.
            "/merchants//tokens",
            "/merchants/../tokens",
            "/merchants/m1;x/tokens",
            "/merchants/a%2fb/tokens",
            "/merchants/a%3fb/tokens",
            "/merchants/m1%20/tokens",
            "/%6derchants/m1/tokens",
        ] {
            assert_rest(merchants, path, path);
        }
    }

    #[test]
    fn base_that_can_never_match_is_rejected() {
        for text in [
            "api", "api/", "//", "/api//v1", "/a/../b", "/a?b", "/a%20b", "/{a", "/a}", "/{a}b",
            "/{a}{b}", "/{a{b}", "/*", "/a b",
        ] {
            assert!(RouteBase::parse(text).is_err(), "{text}");
        }
        assert_eq!(RouteBase::parse("/api"), Ok(RouteBase::default()));
        assert_eq!(
            RouteBase::parse("api").unwrap_err().to_string(),
            "must begin with a slash, such as /api or /merchants/{merchant}"
        );
    }

    #[test]
    fn methods_are_case_sensitive_and_head_counts_as_get() {
        let get = Template::new("GET", "/tokens");
        let base = RouteBase::default();
        let path = RequestPath::new("/tokens", &base);
        assert!(get.matches("GET", path) && get.matches("HEAD", path));
        assert!(!get.matches("get", path) && !get.matches("POST", path) && !get.matches("", path));
        assert!(!Template::new("POST", "/tokens").matches("HEAD", path));
    }
}
