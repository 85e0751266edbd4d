//! Problems with the form of a rejected credential.
//!
//! A problem depends only on the presented text, so a well-formed key gets the same problem whether it is unknown or
//! revoked. A detail never repeats the text. It is also the `error_description` of a challenge (RFC 6750, section 3),
//! which must not contain `"` or `\`.

use crate::{
    Family, Mode, Problem, ProblemCode,
    key_format::{CredentialKind, RANDOM_LEN, without_scheme},
};

/// The credentials that a route accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// An API key only: gateway routes, resource servers.
    ApiKey,
    /// A management token only: the sign-in page of the dashboard.
    Token,
    /// A management token, a service key or an API key; the route decides which.
    Any,
}

/// The schemes that a detail names when they are sent in place of Bearer. Any other word could be part of a secret.
const SCHEMES: [&str; 16] = [
    "ApiKey",
    "Api-Key",
    "AWS4-HMAC-SHA256",
    "Basic",
    "Digest",
    "DPoP",
    "GNAP",
    "HMAC",
    "HOBA",
    "JWT",
    "Key",
    "Negotiate",
    "NTLM",
    "OAuth",
    "Signature",
    "Token",
];

impl Expected {
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::ApiKey => "an API key",
            Self::Token => "a management token",
            Self::Any => "a credential",
        }
    }

    /// Returns the problem with a rejected credential, which depends only on its form.
    ///
    /// ```
    /// use tollkey_core::credential::Expected;
    /// let problem = Expected::ApiKey.problem("$TOKEN");
    /// assert!(problem.detail.starts_with("A placeholder was sent"));
    /// ```
    #[must_use]
    pub fn problem(self, presented: &str) -> Problem {
        match self.fault(presented) {
            Some(detail) if self == Self::Token => Problem::new(ProblemCode::InvalidToken, detail),
            Some(detail) => Problem::new(ProblemCode::InvalidApiKey, detail),
            None => Problem::invalid_api_key(),
        }
    }

    /// Returns what is wrong with the form of a credential, or `None` if it has the form of an expected key.
    fn fault(self, presented: &str) -> Option<&'static str> {
        let text = without_scheme(presented);
        match CredentialKind::parse(text) {
            Some(_) if self == Self::Token => {
                return Some("The credential is a key. Send a management token (JWT) instead.");
            }
            Some(CredentialKind::Key(..)) => return None,
            Some(CredentialKind::ServiceKey) if self == Self::Any => return None,
            Some(CredentialKind::ServiceKey) => {
                return Some(
                    "The credential is a service key, which only verifies API keys. Send an API key instead.",
                );
            }
            None => {}
        }
        if let Some(detail) = mistake(text) {
            return Some(detail);
        }
        if is_jwt(text) && self == Self::ApiKey {
            return Some("The credential is a token (JWT). Send an API key instead.");
        }
        Some(match (body_of_key(text), self) {
            (_, Self::Token) => {
                "The text is not a management token (JWT). Check that it was copied completely."
            }
            (Some(body), _) => wrong_body(body),
            (None, Self::ApiKey) => {
                "The credential is not an API key, which has a prefix such as ck_live_ and 32 letters and digits. Check that it was copied completely."
            }
            (None, Self::Any) => {
                "The credential is neither a key nor a management token (JWT). Check that it was copied completely."
            }
        })
    }

    /// Returns the problem with an `Authorization` header without a Bearer credential. RFC 6750, section 3.1, treats
    /// such a request as one without a credential, so its challenge has no error.
    pub(super) fn not_bearer(self, value: &str) -> Problem {
        let scheme = value
            .split_once([' ', '\t'])
            .map_or(value, |(scheme, _)| scheme);
        let detail = if let Some(known) = SCHEMES
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(scheme))
        {
            format!("The Authorization header has the scheme {known}. Use the scheme Bearer.")
        } else if let Some(detail) = wrapped(value) {
            detail.to_owned()
        } else if value
            .get(..6)
            .is_some_and(|start| start.eq_ignore_ascii_case("bearer"))
        {
            "In the Authorization header, write the word Bearer, one space and the credential, and nothing else."
                .to_owned()
        } else if is_jwt(value)
            || CredentialKind::parse(without_scheme(value)).is_some()
            || body_of_key(value).is_some()
        {
            "In the Authorization header, write the word Bearer and a space before the credential."
                .to_owned()
        } else {
            "The Authorization header must use the scheme Bearer.".to_owned()
        };
        Problem::new(ProblemCode::MissingCredentials, detail)
    }
}

pub(super) fn unreadable() -> Problem {
    let detail = "The credential contains characters other than printable ASCII. Copy it again without invisible \
                  characters, such as a no-break space.";
    Problem::new(ProblemCode::InvalidApiKey, detail)
}

/// Returns a mistake that is possible with every kind of credential.
fn mistake(text: &str) -> Option<&'static str> {
    let first_word = text.split_ascii_whitespace().next().unwrap_or_default();
    if let Some(detail) = wrapped(text) {
        Some(detail)
    } else if first_word.eq_ignore_ascii_case("bearer") && first_word.len() < text.len() {
        Some(
            "The credential itself begins with the word Bearer. Write this word once, in the Authorization header only.",
        )
    } else if text.contains([' ', '\t']) {
        Some("The credential contains white space. Remove it.")
    } else if ["\\n", "\\r", "%0a", "%0d", "%20"]
        .iter()
        .any(|end| text.to_ascii_lowercase().ends_with(end))
    {
        Some("The credential ends in an escaped line break or space. Remove it.")
    } else if text.contains("..") || text.contains('*') {
        Some(
            "The credential is a shortened key. Use the full key, which is shown once, when the key is created.",
        )
    } else {
        None
    }
}

/// Returns a mistake that is visible at the ends of a text.
fn wrapped(text: &str) -> Option<&'static str> {
    let quotes = ['"', '\'', '`'];
    if is_placeholder(text) {
        Some("A placeholder was sent. Replace a variable such as $TOKEN with the credential.")
    } else if text.starts_with(quotes) || text.ends_with(quotes) {
        Some("The credential has quotation marks around it. Remove them.")
    } else {
        None
    }
}

/// Whether a text is a variable or template that was sent without being replaced: `$NAME`, `${NAME}`, `$(NAME)`,
/// `%NAME%`, `{{name}}`, `{name}`, `<name>`, `[name]`.
fn is_placeholder(text: &str) -> bool {
    let within = |open, close| {
        text.len() > 2
            && text
                .strip_prefix(open)
                .is_some_and(|rest: &str| rest.ends_with::<char>(close))
    };
    text.starts_with('$')
        || within('%', '%')
        || within('{', '}')
        || within('<', '>')
        || within('[', ']')
}

/// Whether a credential has the form of a management token, which is a JWT (RFC 7519, section 3): three parts in
/// base64url, the first of which is a JSON object.
///
/// ```
/// use tollkey_core::credential::is_jwt;
/// assert!(is_jwt("eyEXAMPLE.eyEXAMPLE.EXAMPLE"));
/// assert!(!is_jwt("{{ .Values.token }}") && !is_jwt("process.env.TOKEN"));
/// ```
#[must_use]
pub fn is_jwt(text: &str) -> bool {
    let is_base64url = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let mut parts = text.split('.');
    // The base64 of `{` followed by a quotation mark, white space or `}`.
    let is_object = |part: &str| {
        ["ey", "ew", "e3"]
            .iter()
            .any(|start| part.starts_with(start))
            && is_base64url(part)
    };
    let is_object = parts.next().is_some_and(is_object);
    is_object && parts.clone().count() == 2 && parts.all(is_base64url)
}

/// Returns the rest of a text that begins with the prefix of a key, in upper or lower case.
fn body_of_key(text: &str) -> Option<&str> {
    let families = Family::ALL
        .into_iter()
        .flat_map(|family| Mode::ALL.map(|mode| CredentialKind::Key(family, mode)));
    let mut prefixes = families
        .chain([CredentialKind::ServiceKey])
        .map(CredentialKind::prefix);
    prefixes.find_map(|prefix| {
        let (start, body) = text.split_at_checked(prefix.len())?;
        start.eq_ignore_ascii_case(&prefix).then_some(body)
    })
}

fn wrong_body(body: &str) -> &'static str {
    if !body.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        "The key contains characters other than letters and digits after its prefix. Check that it was copied correctly."
    } else if body.len() < RANDOM_LEN {
        "The key is too short: 32 letters and digits must follow its prefix. Check that it was copied completely."
    } else if body.len() > RANDOM_LEN {
        "The key is too long: exactly 32 letters and digits must follow its prefix. Check that nothing else was copied."
    } else {
        "The prefix of the key must be in lower case. Check that it was copied correctly."
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{Credential, CredentialHeaders};

    const RANDOM: &str = "EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0";

    fn rejected(expected: Expected, name: &str, value: &str) -> Problem {
        let credential = Credential::read([(name, value.as_bytes())]);
        match credential.one(CredentialHeaders::default(), expected) {
            Ok(text) => expected.problem(text),
            Err(problem) => problem,
        }
    }

    #[test]
    fn problem_names_the_mistake_and_never_the_credential() {
        let key = format!("ck_live_{RANDOM}");
        let jwt = "eyEXAMPLE.eyEXAMPLE.EXAMPLE";
        let missing = ProblemCode::MissingCredentials;
        let invalid = ProblemCode::InvalidApiKey;
        for (name, value, code, part) in [
            (
                "authorization",
                format!("Basic {RANDOM}"),
                missing,
                "has the scheme Basic.",
            ),
            (
                "authorization",
                format!("token {key}"),
                missing,
                "has the scheme Token.",
            ),
            (
                "authorization",
                "Negotiate".to_owned(),
                missing,
                "has the scheme Negotiate.",
            ),
            (
                "authorization",
                format!("canary {key}"),
                missing,
                "must use the scheme Bearer",
            ),
            (
                "authorization",
                "canary".to_owned(),
                missing,
                "must use the scheme Bearer",
            ),
            (
                "authorization",
                key.clone(),
                missing,
                "write the word Bearer and a space before the credential",
            ),
            (
                "authorization",
                jwt.to_owned(),
                missing,
                "write the word Bearer and a space before the credential",
            ),
            (
                "authorization",
                format!("Bearer:{key}"),
                missing,
                "write the word Bearer, one space and the credential",
            ),
            (
                "authorization",
                format!("Bearer{key}"),
                missing,
                "write the word Bearer, one space and the credential",
            ),
            (
                "authorization",
                format!("\"Bearer {key}\""),
                missing,
                "quotation marks",
            ),
            (
                "authorization",
                "$AUTHORIZATION".to_owned(),
                missing,
                "A placeholder was sent",
            ),
            (
                "authorization",
                format!("Bearer Bearer {key}"),
                invalid,
                "begins with the word Bearer",
            ),
            (
                "x-api-key",
                format!("Bearer {key}"),
                invalid,
                "begins with the word Bearer",
            ),
            (
                "x-api-key",
                format!("\"{key}\""),
                invalid,
                "quotation marks",
            ),
            ("x-api-key", format!("'{key}'"), invalid, "quotation marks"),
            ("x-api-key", format!("{key}`"), invalid, "quotation marks"),
            (
                "x-api-key",
                format!("{key}\u{a0}"),
                invalid,
                "other than printable ASCII",
            ),
            (
                "x-api-key",
                format!("\u{feff}{key}"),
                invalid,
                "other than printable ASCII",
            ),
            ("x-api-key", format!("{key} x"), invalid, "white space"),
            (
                "x-api-key",
                format!("{key}\\n"),
                invalid,
                "an escaped line break",
            ),
            (
                "x-api-key",
                format!("{key}%0A"),
                invalid,
                "an escaped line break",
            ),
            // The mistake in a malformed token is reported, not that it is a token.
            (
                "authorization",
                format!("Bearer Bearer {jwt}"),
                invalid,
                "begins with the word Bearer",
            ),
            (
                "authorization",
                format!("Bearer \"{jwt}\""),
                invalid,
                "quotation marks",
            ),
            (
                "authorization",
                format!("Bearer {jwt}\\n"),
                invalid,
                "an escaped line break",
            ),
            (
                "authorization",
                format!("Bearer {jwt}%0A"),
                invalid,
                "an escaped line break",
            ),
            (
                "authorization",
                "Bearer eyEXAMPLE.ey EXAMPLE.EXAMPLE".to_owned(),
                invalid,
                "white space",
            ),
            (
                "x-api-key",
                format!("Bearer {jwt}"),
                invalid,
                "begins with the word Bearer",
            ),
            (
                "authorization",
                "Bearer {{ .Values.token }}".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer ${env.x.TOKEN}".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer <your.api.key>".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer process.env.TOKEN".to_owned(),
                invalid,
                "is not an API key",
            ),
            (
                "x-api-key",
                "ck_live_EXAMPL..MPLE0".to_owned(),
                invalid,
                "a shortened key",
            ),
            (
                "authorization",
                "Basic caf\u{e9}".to_owned(),
                missing,
                "has the scheme Basic.",
            ),
            (
                "authorization",
                "Digest username=\"\u{e9}\"".to_owned(),
                missing,
                "has the scheme Digest.",
            ),
            (
                "authorization",
                format!("\u{a0}Bearer {key}"),
                invalid,
                "other than printable ASCII",
            ),
            (
                "authorization",
                "Bearer $TOKEN".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer ${TOKEN}".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer {{ token }}".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer <token>".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "authorization",
                "Bearer %TOKEN%".to_owned(),
                invalid,
                "A placeholder was sent",
            ),
            (
                "x-api-key",
                format!("ck_live_{}", &RANDOM[1..]),
                invalid,
                "too short",
            ),
            ("x-api-key", "ck_live_".to_owned(), invalid, "too short"),
            ("x-api-key", format!("{key}0"), invalid, "too long"),
            ("x-api-key", format!("tks_{RANDOM}0"), invalid, "too long"),
            (
                "x-api-key",
                format!("ck_live_{}-", &RANDOM[1..]),
                invalid,
                "letters and digits after its prefix",
            ),
            (
                "x-api-key",
                format!("CK_LIVE_{RANDOM}"),
                invalid,
                "lower case",
            ),
            (
                "x-api-key",
                "ck_live_EXAMPL...".to_owned(),
                invalid,
                "a shortened key",
            ),
            (
                "x-api-key",
                "sk_test_****".to_owned(),
                invalid,
                "a shortened key",
            ),
            (
                "x-api-key",
                jwt.to_owned(),
                invalid,
                "The credential is a token (JWT)",
            ),
            (
                "x-api-key",
                format!("tks_{RANDOM}"),
                invalid,
                "The credential is a service key",
            ),
            (
                "x-api-key",
                "canary".to_owned(),
                invalid,
                "is not an API key",
            ),
        ] {
            let problem = rejected(Expected::ApiKey, name, &value);
            assert_eq!(problem.code, code, "{value}");
            assert!(problem.detail.contains(part), "{value}: {}", problem.detail);
            let challenge = problem.challenge("tollkey").expect("a 401 has a challenge");
            assert_eq!(
                challenge.contains("error="),
                code == invalid,
                "{value}: {challenge}"
            );
            for secret in [RANDOM, &RANDOM[1..], "canary", "eyEXAMPLE", "AUTHORIZATION"] {
                assert!(
                    !problem.detail.contains(secret),
                    "{value}: {}",
                    problem.detail
                );
            }
            // RFC 6750, section 3: the characters of an error_description.
            let is_allowed =
                |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
            assert!(problem.detail.bytes().all(is_allowed), "{}", problem.detail);
        }
    }

    #[test]
    fn mistake_in_a_management_token_is_named() {
        let jwt = "eyEXAMPLE.eyEXAMPLE.EXAMPLE";
        for (text, part) in [
            (format!("ck_live_{RANDOM}"), "The credential is a key"),
            (format!("tks_{RANDOM}"), "The credential is a key"),
            (format!("Bearer {jwt}"), "begins with the word Bearer"),
            (format!("\"{jwt}\""), "quotation marks"),
            ("$TOKEN".to_owned(), "A placeholder was sent"),
            ("ck_live_".to_owned(), "is not a management token"),
            (String::new(), "is not a management token"),
        ] {
            let problem = Expected::Token.problem(&text);
            assert_eq!(problem.code, ProblemCode::InvalidToken, "{text}");
            assert!(problem.detail.contains(part), "{text}: {}", problem.detail);
        }
    }

    #[test]
    fn well_formed_key_gets_the_problem_of_an_unknown_key() {
        for family in Family::ALL {
            for mode in Mode::ALL {
                let key = format!("{}{RANDOM}", CredentialKind::Key(family, mode).prefix());
                for text in [key.clone(), format!("secret-token:{key}")] {
                    for expected in [Expected::ApiKey, Expected::Any] {
                        assert_eq!(expected.problem(&text), Problem::invalid_api_key());
                    }
                }
            }
        }
        let service_key = format!("tks_{RANDOM}");
        assert_eq!(
            Expected::Any.problem(&service_key),
            Problem::invalid_api_key()
        );
        assert_eq!(
            Expected::Any.problem("canary").detail,
            "The credential is neither a key nor a management token (JWT). Check that it was copied completely."
        );
    }
}
