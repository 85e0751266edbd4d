//! Routes: an ambiguous path matches no template, and templates match other paths by their segments.

use proptest::prelude::*;
use tollkey_core::{RequestPath, RouteBase, route::Template};

use crate::support::one_of;

/// Templates without literal segments: if these do not match a path, no other template does.
const TEMPLATES: [(&str, usize); 5] = [
    ("/*", 1),
    ("/{a}", 1),
    ("/{a}/{b}", 2),
    ("/{a}/*", 2),
    ("/{a}/{b}/{c}", 3),
];

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[A-Za-z0-9_~!$&'()*+,=:@-]{1,8}",
        1 => "[a-z.]{0,3}[a-z][a-z.]{0,3}",
        1 => "%[2-7][0-9A-F]".prop_filter("an ambiguous escape", |s| {
            !matches!(&s[1..], "20" | "23" | "25" | "2E" | "2F" | "3B" | "3F" | "5C" | "7F")
        }),
        1 => Just("...".to_owned()),
    ]
}

fn segments() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(segment(), 1..5)
}

/// Segments that parsers can read in different ways.
const HAZARDOUS_SEGMENTS: [&str; 3] = ["", ".", ".."];

/// Strings that make a segment ambiguous if it contains them.
const HAZARDS: [&str; 34] = [
    "%2e",
    "%2E",
    "%2f",
    "%2F",
    "%5c",
    "%5C",
    "%00",
    "%25",
    "%252e",
    "%",
    "%2",
    "%g0",
    "%0g",
    "%+1",
    ";",
    ";v=1",
    "\\",
    "#",
    " ",
    "é",
    "%3b",
    "%3F",
    "%23",
    "%0a",
    "%0D",
    "%09",
    "%7f",
    "%c2%85",
    "%ff",
    "%c0%af",
    "%e0%80%af",
    "%20",
    "%c2%a0",
    "%e2%80%83",
];

fn path_of(segments: &[String]) -> String {
    format!("/{}", segments.join("/"))
}

fn matches(template: &'static str, method: &str, path: RequestPath<'_>) -> bool {
    Template::new("GET", template).matches(method, path)
}

proptest! {
    #[test]
    fn name_matches_one_segment_and_star_the_rest(segments in segments(), query in prop::option::of("\\PC{0,12}")) {
        let mut raw = path_of(&segments);
        if let Some(query) = query {
            raw = format!("{raw}?{query}");
        }
        for (template, length) in TEMPLATES {
            let expected = if template.ends_with('*') { segments.len() >= length } else { segments.len() == length };
            for method in ["GET", "HEAD"] {
                prop_assert_eq!(matches(template, method, RequestPath::new(&raw, &RouteBase::none())), expected, "{} {}", template, raw);
            }
            prop_assert!(!matches(template, "POST", RequestPath::new(&raw, &RouteBase::none())));
        }
    }

    #[test]
    fn literal_segments_are_compared_as_sent(segments in segments()) {
        let own: &'static str = path_of(&segments).leak();
        prop_assume!(segments.iter().all(|s| s != "*" && !s.starts_with('{')));
        prop_assert!(matches(own, "GET", RequestPath::new(own, &RouteBase::none())));
        let other = format!("{own}x");
        prop_assert!(!matches(own, "GET", RequestPath::new(&other, &RouteBase::none())));
    }

    #[test]
    fn ambiguous_path_matches_no_template(
        mut segments in segments(), at: prop::sample::Index, base in one_of(["", "/api"]),
        (segment, hazard, is_inserted) in (one_of(HAZARDOUS_SEGMENTS), one_of(HAZARDS), any::<bool>()),
    ) {
        if is_inserted {
            segments.insert(at.index(segments.len() + 1), segment.to_owned());
        } else {
            at.get_mut(&mut segments).push_str(hazard);
        }
        let raw = format!("{base}{}", path_of(&segments));
        let path = RequestPath::new(&raw, &RouteBase::default());
        prop_assert!(!path.is_unambiguous(), "{raw}");
        for (template, _) in TEMPLATES {
            prop_assert!(!matches(template, "GET", path), "{template} {raw}");
        }
    }

    /// Decoding the escapes once does not change the number of segments, and leaves no escapes.
    #[test]
    fn unambiguous_path_has_the_same_segments_when_decoded(raw in prop_oneof![
        any::<String>(), "/[a-c./%;2eEfF05cC]{0,12}", "(/(%(20|c2%a0|c0%af|3[abf]|c3%a9|0a)|[a-c]){0,4}){0,4}", "(/([a-z.]{0,3}|%[0-9a-f]{2}|%[0-9A-F]{2})){0,5}",
    ]) {
        let path = RequestPath::new(&raw, &RouteBase::default());
        if path.is_unambiguous() {
            let decoded = decode(path.as_str());
            let segments = |bytes: &[u8]| bytes.split(|&b| b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
            prop_assert_eq!(segments(&decoded).len(), segments(path.as_str().as_bytes()).len());
            prop_assert!(!decoded.iter().any(|byte| b"%\\;?#".contains(byte)));
            let text = std::str::from_utf8(&decoded).expect("valid UTF-8");
            prop_assert!(!text.contains(char::is_control));
            prop_assert!(text.split('/').all(|segment| segment.trim() == segment));
            prop_assert!(!segments(&decoded).iter().any(|s| s == b"." || s == b".."));
            prop_assert!(path.as_str() == "/" || !segments(&decoded)[1..].iter().any(Vec::is_empty));
        }
    }

    #[test]
    fn arbitrary_requests_never_panic(method: String, raw: String, base in "(/([a-z]{1,4}|\\{[a-z]\\})){0,3}") {
        let base = RouteBase::parse(&base).unwrap();
        let path = RequestPath::new(&raw, &base);
        prop_assert!(raw.contains(path.as_str()));
        for (template, _) in TEMPLATES {
            if matches(template, &method, path) {
                prop_assert!(path.is_unambiguous() && (method == "GET" || method == "HEAD"));
            }
        }
    }

    #[test]
    fn base_is_removed_once_and_as_whole_segments(segments in segments(), base in "/[a-z]{1,4}(/[a-z]{1,4})?") {
        let path = path_of(&segments);
        let with_base = format!("{base}{path}");
        let twice = format!("{base}{base}{path}");
        let longer = format!("{base}x{path}");
        let route_base = RouteBase::parse(&base).unwrap();
        prop_assert_eq!(RequestPath::new(&with_base, &route_base).as_str(), path);
        prop_assert_eq!(RequestPath::new(&twice, &route_base).as_str(), with_base);
        prop_assert_eq!(RequestPath::new(&longer, &route_base).as_str(), longer.as_str());
        prop_assert_eq!(RequestPath::new(&base, &route_base).as_str(), base.as_str());
    }
}

fn decode(path: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let hex = std::str::from_utf8(&after[..2]).unwrap();
            decoded.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &after[2..];
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    decoded
}
