//! How a client of introspection can present its secret in addition to [`Credential`](super::Credential): as the
//! password of HTTP Basic or in the form (contract, section 2; RFC 6749, section 2.3.1; RFC 7617).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::form;
use crate::{Problem, ProblemCode, hex};

/// The challenge of HTTP Basic, for `WWW-Authenticate`.
#[must_use]
pub fn basic_challenge(realm: &str) -> String {
    format!("Basic realm=\"{realm}\", charset=\"UTF-8\"")
}

/// Whether the value of an `Authorization` header has the scheme Basic.
#[must_use]
pub fn is_basic(value: &str) -> bool {
    let scheme = value.split(' ').next().unwrap_or_default();
    scheme.eq_ignore_ascii_case("basic")
}

/// Whether the value of an `Authorization` header has the scheme Basic with an empty password, or with nothing after
/// the scheme. Such a credential counts as absent.
///
/// ```
/// use tollkey_core::credential::client::is_basic_without_password;
/// // me:
/// assert!(is_basic_without_password(b"Basic bWU6"));
/// assert!(is_basic_without_password(b"Basic"));
/// assert!(!is_basic_without_password(b"Basic bWU6YTpi"));
/// ```
#[must_use]
pub fn is_basic_without_password(value: &[u8]) -> bool {
    let value = std::str::from_utf8(value.trim_ascii());
    value.is_ok_and(|value| {
        let is_empty = |problem: Problem| problem.code == ProblemCode::MissingCredentials;
        is_basic(value) && (!value.contains(' ') || basic_password(value).is_err_and(is_empty))
    })
}

/// Returns the password in the value of an `Authorization` header with the scheme Basic. The user name is ignored.
///
/// # Errors
/// `multiple_credentials` if the value has a comma, because a proxy joins repeated headers with one; `invalid_api_key`
/// if the value is malformed; `missing_credentials` if the password is empty.
///
/// ```
/// use tollkey_core::credential::client::basic_password;
/// // me:a:b
/// assert_eq!(basic_password("Basic bWU6YTpi").unwrap().as_str(), "a:b");
/// ```
pub fn basic_password(value: &str) -> Result<Zeroizing<String>, Problem> {
    let encoded = value.split_once(' ').map_or("", |(_, encoded)| encoded);
    // Base64 has no comma.
    if encoded.contains(',') {
        return Err(several());
    }
    let decoded = STANDARD.decode(encoded.trim_ascii()).map(Zeroizing::new);
    let decoded = decoded.map_err(|_| malformed())?;
    let colon = decoded.iter().position(|byte| *byte == b':');
    let password = percent_decoded(&decoded[colon.ok_or_else(malformed)? + 1..]);
    if password.is_empty() {
        return Err(missing());
    }
    let text = std::str::from_utf8(&password).ok();
    let text = text.filter(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    text.map(|text| Zeroizing::new(text.to_owned()))
        .ok_or_else(form::unreadable)
}

/// Decodes once if every `%` begins a valid escape, because only some clients encode the password as RFC 6749 requires.
fn percent_decoded(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut decoded = Zeroizing::new(Vec::with_capacity(bytes.len()));
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let Some(Ok([escaped])) = digits.map(hex::read) else {
            return Zeroizing::new(bytes.to_owned());
        };
        decoded.push(escaped);
        rest = &after[2..];
    }
    decoded
}

fn malformed() -> Problem {
    Problem::new(
        ProblemCode::InvalidApiKey,
        "The Authorization header is not valid HTTP Basic. After the scheme, send the base64 of a user name, a colon and the key.",
    )
}

/// Creates the problem of a request to introspection without a credential.
#[must_use]
pub fn missing() -> Problem {
    Problem::new(
        ProblemCode::MissingCredentials,
        "Send a service key or a secret key: in the Authorization header with the scheme Bearer or Basic, or in the form field client_secret.",
    )
}

/// Creates the problem of more than one credential, in headers or in the form.
#[must_use]
pub fn several() -> Problem {
    Problem::new(
        ProblemCode::MultipleCredentials,
        "The request has more than one credential. Send exactly one, in one header or in client_secret.",
    )
}

/// Creates the problem of a management token in place of a key.
#[must_use]
pub fn token() -> Problem {
    Problem::new(
        ProblemCode::InvalidApiKey,
        "The client secret is a token (JWT). Send a key, or send the token in the Authorization header with the scheme Bearer.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "tks_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0";

    fn password(user_and_password: &str) -> Result<String, Problem> {
        let value = format!("Basic {}", STANDARD.encode(user_and_password));
        basic_password(&value).map(|password| password.to_string())
    }

    #[test]
    fn password_is_what_follows_the_first_colon() {
        for (pair, expected) in [
            (format!("client:{KEY}"), KEY),
            (format!(":{KEY}"), KEY),
            (format!("a%3Ab:{KEY}"), KEY),
            ("client:a:b".to_owned(), "a:b"),
            ("client::".to_owned(), ":"),
        ] {
            assert_eq!(password(&pair).unwrap(), expected, "{pair}");
        }
        let value = format!("bASIC   {} ", STANDARD.encode(format!("client:{KEY}")));
        assert!(is_basic(&value));
        assert_eq!(basic_password(&value).unwrap().as_str(), KEY);
    }

    #[test]
    fn password_is_percent_decoded_once_if_every_escape_is_valid() {
        for (sent, expected) in [
            ("secret-token%3Atks%5FA", "secret-token:tks_A"),
            ("secret-token%3atks%5fA", "secret-token:tks_A"),
            ("%2541", "%41"),
            ("%41%", "%41%"),
            ("%41%4", "%41%4"),
            ("%41%zz", "%41%zz"),
            ("a+b", "a+b"),
        ] {
            assert_eq!(password(&format!("c:{sent}")).unwrap(), expected, "{sent}");
        }
    }

    #[test]
    fn malformed_basic_credentials_are_rejected_without_their_text() {
        let of = |value: &str| basic_password(value).unwrap_err();
        for value in [
            "Basic",
            "Basic ",
            "Basic canary",
            "Basic Y2FuYXJ5", // no colon
        ] {
            assert_eq!(of(value), malformed(), "{value}");
        }
        for text in ["client:canary\u{e9}", "client:canary\n", "client:canary%00"] {
            let problem = password(text).unwrap_err();
            assert_eq!(problem.code, ProblemCode::InvalidApiKey);
            assert!(!problem.detail.contains("canary"), "{problem}");
        }
        for value in ["Bearer YTpi", "Basics YTpi", ""] {
            assert!(!is_basic(value), "{value}");
        }
    }

    #[test]
    fn joined_basic_credentials_count_as_several() {
        for value in [
            "Basic Yzpj, Basic Yzpj",
            "Basic Yzpj,Basic Yzpj",
            "Basic Yzpj, Bearer canary",
            "Basic Yzo=, Basic Yzpj",
            "Basic canary, x",
        ] {
            assert_eq!(basic_password(value).unwrap_err(), several(), "{value}");
            assert!(!is_basic_without_password(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn basic_without_a_password_counts_as_absent() {
        let encoded = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for value in [
            "Basic",
            "basic ",
            " BASIC\t",
            &encoded("client:"),
            &encoded(":"),
        ] {
            assert!(is_basic_without_password(value.as_bytes()), "{value:?}");
        }
        assert_eq!(password("client:"), Err(missing()));
        for value in [
            "",
            "Bearer",
            "Basics",
            "Digest YTo=",
            "Basic canary",
            "Basic caf\u{e9}",
            &encoded("client"),
            &encoded("client: "),
            &encoded("client:a"),
        ] {
            assert!(!is_basic_without_password(value.as_bytes()), "{value:?}");
        }
        assert!(!is_basic_without_password(b"Basic caf\xe9"));
    }

    /// RFC 6750, section 3.
    #[test]
    fn details_are_valid_in_a_challenge() {
        for problem in [malformed(), missing(), several(), token()] {
            assert!(!problem.detail.contains(['"', '\\']), "{problem}");
        }
        let challenge = "Basic realm=\"tollkey\", charset=\"UTF-8\"";
        assert_eq!(basic_challenge("tollkey"), challenge);
    }
}
