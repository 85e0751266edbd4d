//! The one credential of a request, and the headers it can stand in.

use actix_web::http::header::{self, HeaderMap, HeaderName};

/// The headers a credential can stand in.
static HEADERS: [HeaderName; 3] =
    [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("x-commerce-api-key")];

/// What a request presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// Nothing.
    None,
    /// One text.
    One(&'a str),
    /// One that is no Bearer credential or no text.
    Unreadable,
    /// More than one, be it the same one twice.
    Several,
}

/// Finds the credential in `Authorization: Bearer`, `x-api-key` and `x-commerce-api-key`. The query is never read.
pub fn credential(headers: &HeaderMap) -> Credential<'_> {
    let mut found = HEADERS.iter().flat_map(|name| headers.get_all(name).map(move |value| (name, value)));
    let Some((name, value)) = found.next() else { return Credential::None };
    if found.next().is_some() {
        return Credential::Several;
    }
    let Ok(text) = value.to_str() else { return Credential::Unreadable };
    let text = if *name == header::AUTHORIZATION {
        match text.trim().split_once(' ') {
            Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") => text.trim(),
            _ => return Credential::Unreadable,
        }
    } else {
        text.trim()
    };
    // Two credentials in one header: a proxy joined what was sent twice.
    match text {
        "" => Credential::Unreadable,
        joined if joined.contains(',') => Credential::Several,
        one => Credential::One(one),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn one_credential_in_one_of_three_headers() {
        for pair in [
            ("authorization", "Bearer key"),
            ("authorization", "bearer  key "),
            ("x-api-key", "key"),
            ("x-commerce-api-key", "key"),
        ] {
            assert_eq!(credential(&headers(&[pair])), Credential::One("key"), "{pair:?}");
        }
        assert_eq!(credential(&headers(&[])), Credential::None);
        for value in ["key", "Basic a2V5", "Bearer", "Bearer ", ""] {
            assert_eq!(credential(&headers(&[("authorization", value)])), Credential::Unreadable, "{value:?}");
        }
    }

    #[test]
    fn more_than_one_credential_is_several_even_the_same_twice() {
        for pairs in [
            [("authorization", "Bearer key"), ("authorization", "Bearer key")],
            [("authorization", "Bearer key"), ("x-api-key", "key")],
            [("x-commerce-api-key", "key"), ("x-api-key", "key")],
            [("x-api-key", ""), ("x-api-key", "key")],
        ] {
            assert_eq!(credential(&headers(&pairs)), Credential::Several, "{pairs:?}");
        }
        assert_eq!(credential(&headers(&[("x-api-key", "key, key")])), Credential::Several);
    }
}
