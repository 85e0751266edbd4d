//! Strings from the caller that become part of a URL: IDs, accounts, cursors and filters.
//!
//! Proxies and servers log URLs. A credential that is passed by mistake for an ID is rejected before anything
//! is sent, and neither an error nor `Debug` repeats it.

use std::fmt;

use tollkey_core::{Family, Mode};

use crate::Error;

/// The maximum length of an ID in bytes.
const MAX_SEGMENT: usize = 256;
/// A string counts as a key if at least this many characters follow its prefix: half as many as in a full key. A masked
/// key (`ck_live_a1B2c3`) has fewer.
const KEY_CHARACTERS: usize = 16;
/// The minimum length of a JWT's header: `{"alg":"RS1"}` in base64url.
const JWT_HEADER: usize = 18;

/// A string for a URL. `Debug` redacts it if it looks like a credential.
#[derive(Clone)]
pub(crate) struct UrlText(String);

impl UrlText {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match credential_in(&self.0) {
            Some(_) => f.write_str("redacted"),
            None => self.0.fmt(f),
        }
    }
}

/// Checks an ID as a path segment.
pub(crate) fn segment<'a>(name: &'static str, text: &'a str) -> Result<&'a str, Error> {
    query_value(name, text)?;
    let rule = if text.is_empty() {
        "must not be empty"
    } else if text.len() > MAX_SEGMENT || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        "must be at most 256 printable ASCII characters"
    } else if matches!(text, "." | "..") {
        "must not be `.` or `..`"
    } else {
        return Ok(text);
    };
    Err(Error::argument(name, rule))
}

/// Rejects a value of a query parameter that contains a credential.
pub(crate) fn query_value(name: &'static str, text: &str) -> Result<(), Error> {
    let Some(credential) = credential_in(text) else {
        return Ok(());
    };
    Err(Error::argument(
        name,
        format!(
            "looks like {credential}, and a URL must not contain a credential; nothing was sent"
        ),
    ))
}

/// Returns the kind of credential that the string contains, detected by its format.
fn credential_in(text: &str) -> Option<&'static str> {
    let words =
        || text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    let keys = Family::ALL
        .into_iter()
        .flat_map(|family| Mode::ALL.map(|mode| (family.prefix(), mode.as_str())));
    if keys
        .into_iter()
        .any(|(family, mode)| words().any(|word| contains_key(word, &format!("{family}_{mode}_"))))
    {
        return Some("an API key");
    }
    if words().any(|word| contains_key(word, "tks_")) {
        return Some("a service key");
    }
    let mut tokens = text
        .split(|character: char| !(character.is_ascii_alphanumeric() || "_-.".contains(character)));
    tokens.any(is_jwt).then_some("a token (JWT)")
}

/// Returns whether the word contains a key with this prefix at its start or after an underscore.
fn contains_key(word: &str, prefix: &str) -> bool {
    word.match_indices(prefix).any(|(at, _)| {
        let before = word[..at].chars().next_back();
        let random = &word[at + prefix.len()..];
        before.is_none_or(|character| character == '_')
            && random.bytes().take_while(u8::is_ascii_alphanumeric).count() >= KEY_CHARACTERS
    })
}

/// Returns whether this is a JWS or JWE in compact form (RFC 7515, RFC 7516): at least three parts, the first
/// a JSON object.
fn is_jwt(token: &str) -> bool {
    // `{"`, `{ `, and `{` followed by a tab or a line break, in base64url.
    const OBJECTS: [&str; 5] = ["eyJ", "eyA", "ewk", "ewo", "ew0"];
    let mut parts = token.trim_start_matches('.').split('.');
    let header = parts.next().unwrap_or_default();
    header.len() >= JWT_HEADER
        && OBJECTS.iter().any(|object| header.starts_with(object))
        && parts.next().is_some_and(|part| !part.is_empty())
        && parts.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a fake key with this prefix.
    fn key(prefix: &str) -> String {
        format!("{prefix}{}", "EXAMPLE1".repeat(4))
    }

    #[test]
    fn credential_is_detected_by_its_shape() {
        let jwt = ["eyJhbGciOiJFUzI1NiJ9", "eyJzdWIiOiJFWEFNUExFIn0", "EXAMPLE"].join(".");
        let jwe = [
            "eyJhbGciOiJSU0EtT0FFUCJ9",
            "EXAMPLE",
            "EXAMPLE",
            "EXAMPLE",
            "EXAMPLE",
        ]
        .join(".");
        for family in ["ck", "ks", "sk", "pk"] {
            for mode in ["live", "test"] {
                assert_eq!(
                    credential_in(&key(&format!("{family}_{mode}_"))),
                    Some("an API key")
                );
            }
        }
        assert_eq!(credential_in(&key("tks_")), Some("a service key"));
        assert_eq!(credential_in(&jwt), Some("a token (JWT)"));
        assert_eq!(credential_in(&jwe), Some("a token (JWT)"));
        assert_eq!(
            credential_in("ewogICJhbGciOiAibm9uZSIKfQ.e30."),
            Some("a token (JWT)")
        );
        for secret in [key("sk_live_"), key("tks_"), jwt] {
            for text in [
                format!(" {secret}\n"),
                format!("\"{secret}\""),
                format!("Bearer {secret}"),
                format!("secret-token:{secret}"),
                format!("key/{secret}"),
                format!("{secret}/revoke"),
                secret[..30].to_owned() + if secret.starts_with("eyJ") { ".x" } else { "" },
            ] {
                assert!(credential_in(&text).is_some(), "{text}");
                assert_eq!(format!("{:?}", UrlText::new(&text)), "redacted");
            }
        }
    }

    #[test]
    fn id_is_not_detected_as_a_credential() {
        let texts = [
            "",
            "0198c0de-0000-7000-8000-000000000001",
            "key_01K30DW000E008000000000002",
            "acme",
            "acme:eu@x.y-z_1",
            "tks_holding.eu",
            "pk_live_music",
            "ck_live_a1B2c3",
            &key("disk_live_"),
            &key("mytks_"),
            &key("ck_"),
            "eyJhbGciOiJFUzI1NiJ9",
            "eyJh.b.c",
            "keys.example.com",
            "api_key.revoked",
            "auth0|0123456789abcdef01234567",
            "https://issuer.example.com/users/0123456789abcdef",
        ];
        for text in texts {
            assert_eq!(credential_in(text), None, "{text}");
            assert_eq!(format!("{:?}", UrlText::new(text)), format!("{text:?}"));
        }
        let longest = "a".repeat(128);
        assert_eq!(segment("id", &longest).unwrap(), longest);
    }
}
