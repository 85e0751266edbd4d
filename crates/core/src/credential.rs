//! The one credential of a request, and the headers it can stand in (contract, section 2; RFC 6750).

/// The header with a scheme in front of the credential: `Authorization: Bearer`.
pub const AUTHORIZATION: &str = "authorization";
/// The scheme there, with what ends it.
const BEARER: &str = "bearer ";
/// The headers a credential can stand in.
pub const HEADERS: [&str; 3] = [AUTHORIZATION, "x-api-key", "x-commerce-api-key"];

/// What a request presents.
#[derive(Clone, Copy, PartialEq, Eq)]
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

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::One(_) => "One(redacted)",
            Self::Unreadable => "Unreadable",
            Self::Several => "Several",
        })
    }
}

impl<'a> Credential<'a> {
    /// The credential among the headers found under [`HEADERS`], each with its lower-case name. The query is never read.
    ///
    /// ```
    /// use tollkey_core::credential::Credential;
    /// let found = [("authorization", b"Bearer key".as_slice())];
    /// assert!(Credential::read(found) == Credential::One("key"));
    /// ```
    pub fn read(found: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut found = found.into_iter();
        let Some((name, value)) = found.next() else { return Self::None };
        if found.next().is_some() {
            return Self::Several;
        }
        // All bytes, without a way out: so several are looked at at once.
        let visible = value.iter().fold(true, |all, byte| all & matches!(byte, b'\t' | b' '..=b'~'));
        let Some(text) = std::str::from_utf8(value).ok().filter(|_| visible) else { return Self::Unreadable };
        let text = text.trim_ascii();
        let text = if name == AUTHORIZATION {
            match text.split_at_checked(BEARER.len()) {
                Some((scheme, text)) if scheme.eq_ignore_ascii_case(BEARER) => text.trim_ascii(),
                _ => return Self::Unreadable,
            }
        } else {
            text
        };
        // Two credentials in one header: a proxy joined what was sent twice.
        match text {
            "" => Self::Unreadable,
            joined if joined.as_bytes().contains(&b',') => Self::Several,
            one => Self::One(one),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Credential<'static> {
        Credential::read(pairs.iter().map(|(name, value)| (*name, value.as_bytes())))
    }

    #[test]
    fn one_credential_in_one_of_three_headers() {
        for pair in [
            ("authorization", "Bearer key"),
            ("authorization", "bearer  key "),
            ("x-api-key", "key"),
            ("x-commerce-api-key", "key"),
        ] {
            assert!(read(&[pair]) == Credential::One("key"), "{pair:?}");
        }
        assert_eq!(read(&[]), Credential::None);
        for value in ["key", "Basic a2V5", "Bearer", "Bearer ", "", "Bearer k\u{e9}y"] {
            assert_eq!(read(&[("authorization", value)]), Credential::Unreadable, "{value:?}");
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
            assert_eq!(read(&pairs), Credential::Several, "{pairs:?}");
        }
        assert_eq!(read(&[("x-api-key", "key, key")]), Credential::Several);
    }

    #[test]
    fn a_credential_is_not_shown() {
        assert_eq!(format!("{:?}", read(&[("x-api-key", "canary")])), "One(redacted)");
    }
}
