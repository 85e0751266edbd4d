//! Routes: which requests a restricted key may make.
//!
//! A request is judged on its path as it was sent. Two readers of one path may disagree about dot segments,
//! doubled slashes, encoded slashes or path parameters; a path that has any of these matches nothing.

/// The path of a request as it stood on the wire: the query is cut, and so is the route base, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPath<'a>(&'a str);

impl<'a> RequestPath<'a> {
    /// Cuts the query, then `base` (such as `/api`, or nothing) where the path begins with it as whole segments.
    ///
    /// ```
    /// use tollkey_core::RequestPath;
    /// assert_eq!(RequestPath::new("/api/tokens?page=2", "/api").as_str(), "/tokens");
    /// assert_eq!(RequestPath::new("/api/api/tokens", "/api").as_str(), "/api/tokens");
    /// assert_eq!(RequestPath::new("/apis/tokens", "/api").as_str(), "/apis/tokens");
    /// ```
    #[must_use]
    pub fn new(raw: &'a str, base: &str) -> Self {
        let path = raw.split_once('?').map_or(raw, |(path, _)| path);
        match path.strip_prefix(base) {
            Some(rest) if rest.starts_with('/') => Self(rest),
            _ => Self(path),
        }
    }

    /// What is left.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether every reader takes this path for the same one. Not so when it does not begin with `/`, or has an
    /// empty or dot segment, `%2e`, `%2f`, `%5c`, `%00`, `%25` (in either case), an incomplete escape, `;`,
    /// `\`, `#` or anything but printable ASCII. A trailing slash leaves an empty last segment.
    #[must_use]
    pub fn is_unambiguous(self) -> bool {
        let mut bytes = self.0.bytes();
        if bytes.next() != Some(b'/') {
            return false;
        }
        // One walk, because every verification that is about a route comes along here. Of the current segment it
        // keeps how long it is and whether it has been nothing but dots.
        let (mut length, mut dots) = (0usize, true);
        while let Some(byte) = bytes.next() {
            match byte {
                b'/' => {
                    if dots && length <= 2 {
                        return false;
                    }
                    (length, dots) = (0, true);
                    continue;
                }
                b';' | b'\\' | b'#' => return false,
                b'%' => {
                    let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
                    let (Some(high), Some(low)) = (hex(bytes.next()), hex(bytes.next())) else { return false };
                    if matches!(u8::try_from(high << 4 | low), Ok(b'.' | b'/' | b'\\' | 0 | b'%') | Err(_)) {
                        return false;
                    }
                    dots = false;
                }
                b'.' => {}
                _ if byte.is_ascii_graphic() => dots = false,
                _ => return false,
            }
            length += 1;
        }
        self.0.len() == 1 || !(dots && length <= 2)
    }
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
    /// The template of that method and path. Templates are part of the program, not input.
    #[must_use]
    pub fn new(method: &'static str, path: &'static str) -> Self {
        let segments = path.split('/').skip(1).map(|segment| match segment {
            "*" => Segment::Rest,
            name if name.starts_with('{') => Segment::One,
            literal => Segment::Literal(literal),
        });
        Self { method, segments: segments.collect() }
    }

    /// Whether a request is covered. Methods compare exactly, but HEAD counts as GET.
    ///
    /// ```
    /// use tollkey_core::{RequestPath, route::Template};
    /// let template = Template::new("GET", "/tokens/{id}");
    /// assert!(template.matches("HEAD", RequestPath::new("/tokens/tok_1?expand=1", "/api")));
    /// assert!(!template.matches("GET", RequestPath::new("/tokens/..", "/api")));
    /// assert!(!template.matches("get", RequestPath::new("/tokens/tok_1", "/api")));
    /// ```
    #[must_use]
    pub fn matches(&self, method: &str, path: RequestPath<'_>) -> bool {
        let method = if method == "HEAD" { "GET" } else { method };
        // Whether the path can be read in two ways is looked at last: most templates do not match anyway.
        method == self.method && self.matches_segments(path) && path.is_unambiguous()
    }

    fn matches_segments(&self, path: RequestPath<'_>) -> bool {
        let mut given = path.0.as_bytes().split(|byte| *byte == b'/').skip(1).filter(|segment| !segment.is_empty());
        for segment in &self.segments {
            match (segment, given.next()) {
                (Segment::Literal(literal), Some(given)) if literal.as_bytes() == given => {}
                (Segment::One, Some(_)) => {}
                (Segment::Rest, Some(_)) => return true,
                _ => return false,
            }
        }
        given.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(template: &'static str, path: &str) -> bool {
        Template::new("GET", template).matches("GET", RequestPath::new(path, "/api"))
    }

    #[test]
    fn a_name_is_one_segment_and_a_star_one_or_more() {
        assert!(matches("/tokens/{id}", "/tokens/a"));
        assert!(matches("/tokens/{id}", "/api/tokens/a%20b"));
        assert!(!matches("/tokens/{id}", "/tokens"));
        assert!(!matches("/tokens/{id}", "/tokens/a/b"));
        assert!(matches("/public/*", "/public/a"));
        assert!(matches("/public/*", "/public/a/b/c?x=//;"));
        assert!(!matches("/public/*", "/public"));
        assert!(!matches("/public/*", "/public/"));
    }

    #[test]
    fn a_path_that_can_be_read_in_two_ways_matches_nothing() {
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
    fn methods_compare_exactly_and_head_counts_as_get() {
        let get = Template::new("GET", "/tokens");
        let path = RequestPath::new("/tokens", "/api");
        assert!(get.matches("GET", path) && get.matches("HEAD", path));
        assert!(!get.matches("get", path) && !get.matches("POST", path) && !get.matches("", path));
        assert!(!Template::new("POST", "/tokens").matches("HEAD", path));
    }
}
