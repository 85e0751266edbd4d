//! The credential of a request, and the headers that can contain it (contract, section 2; RFC 6750).
//!
//! [`Credential::read`] returns the credential. [`Expected::problem`] describes what is wrong with a rejected
//! credential. It examines only the form, so it does not reveal whether a key exists.

pub mod client;
mod form;

use crate::{
    Family, Invalid, Problem, ProblemCode,
    key_format::{CredentialKind, ParsedKey},
};

pub use self::form::{Expected, is_jwt};

/// The header that has a scheme in front of the credential: `Authorization: Bearer`.
pub const AUTHORIZATION: &str = "authorization";
/// The scheme in [`AUTHORIZATION`].
const BEARER: &str = "bearer";
/// The headers that can contain a credential.
pub const HEADERS: [&str; 3] = [AUTHORIZATION, "x-api-key", "x-commerce-api-key"];

/// The headers that a credential is read from: some of [`HEADERS`], all of them by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CredentialHeaders([bool; HEADERS.len()]);

impl CredentialHeaders {
    /// Reads a list of header names in upper or lower case.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown name, and for an empty list.
    ///
    /// ```
    /// use tollkey_core::credential::CredentialHeaders;
    /// let headers = CredentialHeaders::parse(["X-API-Key"]).unwrap();
    /// assert!(headers.names().eq(["x-api-key"]));
    /// assert!(CredentialHeaders::parse(["cookie"]).is_err());
    /// ```
    pub fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        let mut headers = Self([false; HEADERS.len()]);
        for name in names {
            let index = HEADERS
                .iter()
                .position(|header| header.eq_ignore_ascii_case(name));
            headers.0[index.ok_or_else(Self::rule)?] = true;
        }
        if headers.0.contains(&true) {
            Ok(headers)
        } else {
            Err(Self::rule())
        }
    }

    fn rule() -> Invalid {
        Invalid::new(format!("must list one or more of {}", HEADERS.join(", ")))
    }

    /// Whether a credential is read from the header at this index of [`HEADERS`].
    #[must_use]
    pub fn has(self, index: usize) -> bool {
        self.0[index]
    }

    /// The names, in lower case and in the order of [`HEADERS`].
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        HEADERS
            .into_iter()
            .zip(self.0)
            .filter_map(|(name, is_read)| is_read.then_some(name))
    }

    /// Returns the problem of a request without a credential.
    #[must_use]
    pub fn missing(self, expected: Expected) -> Problem {
        let credential = expected.noun();
        let detail = if self.has(0) {
            format!("Send {credential} in the Authorization header with the scheme Bearer.")
        } else {
            format!(
                "Send {credential} in the header {}.",
                self.names().collect::<Vec<_>>().join(" or ")
            )
        };
        Problem::new(ProblemCode::MissingCredentials, detail)
    }
}

impl Default for CredentialHeaders {
    fn default() -> Self {
        Self([true; HEADERS.len()])
    }
}

/// The credential of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// No credential.
    None,
    /// One credential.
    One(&'a str),
    /// The value of an `Authorization` header without the scheme Bearer.
    NotBearer(&'a str),
    /// A credential with characters other than printable ASCII.
    Unreadable,
    /// More than one credential, even if they are equal.
    Several,
}

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::One(_) => "One(redacted)",
            Self::NotBearer(_) => "NotBearer(redacted)",
            Self::Unreadable => "Unreadable",
            Self::Several => "Several",
        })
    }
}

/// A presented credential, parsed by its form, once for each request.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// An API key of this family.
    ApiKey(Family, ParsedKey<'a>),
    /// A service key.
    ServiceKey(ParsedKey<'a>),
    /// A management token.
    Token(&'a str),
    /// Anything else.
    Other(&'a str),
}

impl<'a> From<&'a str> for Presented<'a> {
    fn from(text: &'a str) -> Self {
        match ParsedKey::parse(text) {
            Some(key) => Self::from(key),
            None if is_jwt(text) => Self::Token(text),
            None => Self::Other(text),
        }
    }
}

impl<'a> From<&'a String> for Presented<'a> {
    fn from(text: &'a String) -> Self {
        Self::from(text.as_str())
    }
}

impl<'a> From<ParsedKey<'a>> for Presented<'a> {
    fn from(key: ParsedKey<'a>) -> Self {
        match key.kind() {
            CredentialKind::Key(family, _) => Self::ApiKey(family, key),
            CredentialKind::ServiceKey => Self::ServiceKey(key),
        }
    }
}

impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ApiKey(..) => "ApiKey(redacted)",
            Self::ServiceKey(_) => "ServiceKey(redacted)",
            Self::Token(_) => "Token(redacted)",
            Self::Other(_) => "Other(redacted)",
        })
    }
}

/// Whether a header has no credential: it is empty or white space, or `Authorization: Bearer` without a token.
#[must_use]
pub fn is_empty(name: &str, value: &[u8]) -> bool {
    let value = value.trim_ascii();
    value.is_empty() || name == AUTHORIZATION && value.eq_ignore_ascii_case(BEARER.as_bytes())
}

impl<'a> Credential<'a> {
    /// Returns the credential in `headers`, which are the request's headers in [`HEADERS`], each with its lower-case
    /// name. A header that [is empty](is_empty) counts as absent. The query is never read.
    ///
    /// ```
    /// use tollkey_core::credential::Credential;
    /// let headers = [("authorization", b"Bearer key".as_slice()), ("x-api-key", b"")];
    /// assert!(Credential::read(headers) == Credential::One("key"));
    /// ```
    pub fn read(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut headers = headers
            .into_iter()
            .filter(|(name, value)| !is_empty(name, value));
        let Some((name, value)) = headers.next() else {
            return Self::None;
        };
        if headers.next().is_some() {
            return Self::Several;
        }
        // No early exit, so that the compiler can vectorize the loop.
        let visible = value
            .iter()
            .fold(true, |all, byte| all & matches!(byte, b'\t' | b' '..=b'~'));
        let Some(text) = std::str::from_utf8(value).ok().filter(|_| visible) else {
            return Self::unreadable(name, value);
        };
        let text = text.trim_ascii();
        let text = if name == AUTHORIZATION {
            match text.split_once(' ') {
                Some((scheme, text)) if scheme.eq_ignore_ascii_case(BEARER) => text.trim_ascii(),
                _ => return Self::NotBearer(text),
            }
        } else {
            text
        };
        // A proxy joins repeated headers with a comma.
        if text.as_bytes().contains(&b',') {
            Self::Several
        } else {
            Self::One(text)
        }
    }

    /// Returns the credential for a value with characters other than printable ASCII: `NotBearer` if `Authorization`
    /// has another scheme, otherwise `Unreadable`.
    fn unreadable(name: &str, value: &'a [u8]) -> Self {
        let scheme = value
            .trim_ascii()
            .split(|byte| *byte == b' ')
            .next()
            .unwrap_or_default();
        match std::str::from_utf8(scheme) {
            Ok(scheme)
                if name == AUTHORIZATION
                    && scheme.is_ascii()
                    && !scheme.eq_ignore_ascii_case(BEARER) =>
            {
                Self::NotBearer(scheme)
            }
            _ => Self::Unreadable,
        }
    }

    /// Returns the text of [`Credential::One`], otherwise a problem. If the text is rejected later,
    /// [`Expected::problem`] describes what is wrong with it.
    ///
    /// # Errors
    /// `missing_credentials`, `multiple_credentials`, `invalid_api_key`.
    pub fn one(self, headers: CredentialHeaders, expected: Expected) -> Result<&'a str, Problem> {
        match self {
            Self::One(text) => Ok(text),
            Self::None => Err(headers.missing(expected)),
            Self::NotBearer(value) => Err(expected.not_bearer(value)),
            Self::Unreadable => Err(form::unreadable()),
            Self::Several => Err(Problem::new(
                ProblemCode::MultipleCredentials,
                "The request has more than one credential. Send exactly one, in one header.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Mode};

    #[test]
    fn presented_credential_is_parsed_by_its_form() {
        let random = "EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0";
        for family in Family::ALL {
            let text = format!("{}_test_{random}", family.prefix());
            for presented in [text.clone(), format!("secret-token:{text}")] {
                let Presented::ApiKey(parsed, key) = Presented::from(&presented) else {
                    panic!("{presented}");
                };
                assert_eq!(
                    (parsed, key.kind()),
                    (family, CredentialKind::Key(family, Mode::Test))
                );
                assert_eq!(key.digest(), Digest::of_key(&text));
                assert_eq!(format!("{:?}", Presented::from(key)), "ApiKey(redacted)");
                assert!(!format!("{key:?}").contains("EXAMPLE"));
            }
        }
        let form = |text: &str| format!("{:?}", Presented::from(text));
        assert_eq!(form(&format!("tks_{random}")), "ServiceKey(redacted)");
        assert_eq!(form("eyEXAMPLE.eyEXAMPLE.EXAMPLE"), "Token(redacted)");
        for other in [
            "",
            "canary",
            "a.b.c",
            "ck_test_EXAMPLE",
            "secret-token:eyA.ey.x",
        ] {
            assert_eq!(form(other), "Other(redacted)", "{other}");
        }
    }

    fn read(pairs: &[(&'static str, &'static str)]) -> Credential<'static> {
        Credential::read(pairs.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn credential_is_read_from_each_of_the_three_headers() {
        for pair in [
            ("authorization", "Bearer key"),
            ("authorization", "bearer  key "),
            ("authorization", "BEARER\u{20}key"),
            ("x-api-key", "key"),
            ("x-commerce-api-key", "key"),
        ] {
            assert!(read(&[pair]) == Credential::One("key"), "{pair:?}");
        }
        for value in [
            "key",
            "Basic a2V5",
            "Bearer\tkey",
            "Bearerkey",
            "Bearer:key",
            "Bearer: key",
        ] {
            assert!(
                read(&[("authorization", value)]) == Credential::NotBearer(value),
                "{value:?}"
            );
        }
        assert_eq!(
            read(&[("authorization", "Bearer k\u{e9}y")]),
            Credential::Unreadable
        );
        assert_eq!(read(&[("x-api-key", "\u{a0}key")]), Credential::Unreadable);
    }

    #[test]
    fn empty_header_counts_as_absent() {
        assert_eq!(read(&[]), Credential::None);
        for empty in [
            ("authorization", ""),
            ("authorization", "Bearer"),
            ("authorization", "bearer  "),
            ("x-api-key", " \t "),
        ] {
            assert_eq!(read(&[empty]), Credential::None, "{empty:?}");
            assert_eq!(
                read(&[empty, empty, ("x-commerce-api-key", "")]),
                Credential::None,
                "{empty:?}"
            );
            for pairs in [[empty, ("x-api-key", "key")], [("x-api-key", "key"), empty]] {
                assert!(read(&pairs) == Credential::One("key"), "{pairs:?}");
            }
        }
        // In a header without a scheme, `Bearer` is the credential itself.
        assert!(read(&[("x-api-key", "Bearer")]) == Credential::One("Bearer"));
    }

    #[test]
    fn repeated_credential_counts_as_several() {
        for pairs in [
            [
                ("authorization", "Bearer key"),
                ("authorization", "Bearer key"),
            ],
            [("authorization", "Bearer key"), ("x-api-key", "key")],
            [("x-commerce-api-key", "key"), ("x-api-key", "key")],
            [("authorization", "Basic YTpi"), ("x-api-key", "key")],
        ] {
            assert_eq!(read(&pairs), Credential::Several, "{pairs:?}");
        }
        assert_eq!(read(&[("x-api-key", "key, key")]), Credential::Several);
        assert_eq!(
            read(&[
                ("x-api-key", ""),
                ("x-api-key", "a"),
                ("authorization", "Bearer b")
            ]),
            Credential::Several
        );
    }

    #[test]
    fn debug_output_hides_the_credential() {
        assert_eq!(
            format!("{:?}", read(&[("x-api-key", "canary")])),
            "One(redacted)"
        );
        assert_eq!(
            format!("{:?}", read(&[("authorization", "canary")])),
            "NotBearer(redacted)"
        );
    }

    #[test]
    fn credential_headers_accept_only_the_three_names() {
        let names = |list: &[&str]| {
            CredentialHeaders::parse(list.iter().copied())
                .map(|headers| headers.names().collect::<Vec<_>>())
        };
        assert_eq!(names(&HEADERS), Ok(HEADERS.to_vec()));
        assert_eq!(
            CredentialHeaders::parse(HEADERS),
            Ok(CredentialHeaders::default())
        );
        assert_eq!(
            names(&["X-Commerce-API-Key", "Authorization"]),
            Ok(vec!["authorization", "x-commerce-api-key"])
        );
        let rule =
            Invalid::new("must list one or more of authorization, x-api-key, x-commerce-api-key");
        for list in [&[][..], &[""], &["cookie"], &["x-api-key", "x-api-keys"]] {
            assert_eq!(names(list), Err(rule.clone()), "{list:?}");
        }
        let missing = |names: &[&str]| {
            CredentialHeaders::parse(names.iter().copied())
                .unwrap()
                .missing(Expected::ApiKey)
                .detail
        };
        assert_eq!(
            missing(&HEADERS),
            "Send an API key in the Authorization header with the scheme Bearer."
        );
        assert_eq!(
            missing(&HEADERS[1..]),
            "Send an API key in the header x-api-key or x-commerce-api-key."
        );
    }
}
