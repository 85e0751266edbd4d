//! The forms in which callers send credentials, and the response to each. The tests of the server and of the middleware
//! include this file, so that both respond in the same way.

/// The headers of a request, and the response.
pub struct Form {
    pub name: &'static str,
    pub headers: Vec<(&'static str, String)>,
    /// The response where an API key is required: gateway routes, `/whoami`, the middleware.
    pub for_key: Outcome,
    /// The response where other credentials are accepted too, if it differs.
    pub for_any: Option<Outcome>,
}

/// A response to a credential: status, code and detail of the problem. The status is 200 if the credential is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    pub code: &'static str,
    pub detail: &'static str,
}

impl Outcome {
    /// The value of `WWW-Authenticate`.
    pub fn challenge(&self) -> Option<String> {
        let error = match self.code {
            "missing_credentials" => return Some("Bearer realm=\"tollkey\"".to_owned()),
            "multiple_credentials" => "invalid_request",
            "invalid_api_key" => "invalid_token",
            _ => return None,
        };
        Some(format!(
            "Bearer realm=\"tollkey\", error=\"{error}\", error_description=\"{}\"",
            self.detail
        ))
    }
}

const ACCEPTED: Outcome = Outcome {
    status: 200,
    code: "",
    detail: "",
};
const ABSENT: Outcome =
    missing("Send an API key in the Authorization header with the scheme Bearer.");
const ABSENT_ANY: Outcome =
    missing("Send a credential in the Authorization header with the scheme Bearer.");
const SEVERAL: Outcome = Outcome {
    status: 400,
    code: "multiple_credentials",
    detail: "The request has more than one credential. Send exactly one, in one header.",
};
const UNKNOWN: Outcome =
    invalid("The API key is unknown or revoked. Check the key, or use another one.");
const TWICE: Outcome = invalid(
    "The credential itself begins with the word Bearer. Write this word once, in the Authorization header only.",
);
const QUOTED: Outcome = invalid("The credential has quotation marks around it. Remove them.");
const PLACEHOLDER: Outcome =
    invalid("A placeholder was sent. Replace a variable such as $TOKEN with the credential.");
const INVISIBLE: Outcome = invalid(
    "The credential contains characters other than printable ASCII. Copy it again without invisible characters, such as a no-break space.",
);
const BEFORE: Outcome = missing(
    "In the Authorization header, write the word Bearer and a space before the credential.",
);
const AFTER: Outcome = missing(
    "In the Authorization header, write the word Bearer, one space and the credential, and nothing else.",
);
const SHORT: Outcome = invalid(
    "The key is too short: 32 letters and digits must follow its prefix. Check that it was copied completely.",
);
const LONG: Outcome = invalid(
    "The key is too long: exactly 32 letters and digits must follow its prefix. Check that nothing else was copied.",
);
const NO_KEY: Outcome = invalid(
    "The credential is not an API key, which has a prefix such as ck_live_ and 32 letters and digits. Check that it was copied completely.",
);
const NOTHING: Outcome = invalid(
    "The credential is neither a key nor a management token (JWT). Check that it was copied completely.",
);

/// A text with the form of a management token.
const TOKEN: &str = "eyEXAMPLE.eyEXAMPLE.EXAMPLE";

const fn missing(detail: &'static str) -> Outcome {
    Outcome {
        status: 401,
        code: "missing_credentials",
        detail,
    }
}

const fn invalid(detail: &'static str) -> Outcome {
    Outcome {
        status: 401,
        code: "invalid_api_key",
        detail,
    }
}

/// Returns all forms, for an active key, a revoked key and an existing service key.
pub fn forms(key: &str, revoked: &str, service_key: &str) -> Vec<Form> {
    let bearer = |text: &str| vec![("authorization", format!("Bearer {text}"))];
    let plain = |text: &str| vec![("x-api-key", text.to_owned())];
    let authorization = |text: &str| vec![("authorization", text.to_owned())];
    let (prefix, body) = key.split_at(key.len() - 32);
    let last = if key.ends_with('0') { "1" } else { "0" };
    let unknown = format!("{}{last}", &key[..key.len() - 1]);
    let row = |name, headers, for_key| Form {
        name,
        headers,
        for_key,
        for_any: None,
    };
    let differs = |name, headers, for_key, for_any| Form {
        name,
        headers,
        for_key,
        for_any: Some(for_any),
    };
    vec![
        row("Bearer", bearer(key), ACCEPTED),
        row(
            "bearer in lower case",
            authorization(&format!("bearer  {key} ")),
            ACCEPTED,
        ),
        row("x-api-key", plain(key), ACCEPTED),
        row(
            "x-commerce-api-key",
            vec![("x-commerce-api-key", key.to_owned())],
            ACCEPTED,
        ),
        row(
            "secret-token:",
            bearer(&format!("secret-token:{key}")),
            ACCEPTED,
        ),
        row(
            "a key and an empty header",
            [plain(key), authorization("")].concat(),
            ACCEPTED,
        ),
        row(
            "a key and Bearer without a token",
            [plain(key), authorization("Bearer ")].concat(),
            ACCEPTED,
        ),
        differs("no credential", vec![], ABSENT, ABSENT_ANY),
        differs("an empty header", plain(""), ABSENT, ABSENT_ANY),
        differs("white space", plain(" \t "), ABSENT, ABSENT_ANY),
        differs(
            "Bearer without a token",
            authorization("Bearer"),
            ABSENT,
            ABSENT_ANY,
        ),
        differs(
            "Bearer and a space",
            authorization("Bearer "),
            ABSENT,
            ABSENT_ANY,
        ),
        row("two headers", [bearer(key), plain(key)].concat(), SEVERAL),
        row(
            "a repeated header",
            [plain(key), plain(key)].concat(),
            SEVERAL,
        ),
        row(
            "two keys in one header",
            plain(&format!("{key}, {key}")),
            SEVERAL,
        ),
        row(
            "Basic",
            authorization("Basic YTpi"),
            missing("The Authorization header has the scheme Basic. Use the scheme Bearer."),
        ),
        row(
            "Digest",
            authorization("Digest username=\"a\", realm=\"b\""),
            missing("The Authorization header has the scheme Digest. Use the scheme Bearer."),
        ),
        row(
            "Token",
            authorization(&format!("Token {key}")),
            missing("The Authorization header has the scheme Token. Use the scheme Bearer."),
        ),
        row(
            "ApiKey",
            authorization(&format!("apikey {key}")),
            missing("The Authorization header has the scheme ApiKey. Use the scheme Bearer."),
        ),
        row(
            "a scheme that could be a secret",
            authorization("hunter2 x"),
            missing("The Authorization header must use the scheme Bearer."),
        ),
        row("a key without Bearer", authorization(key), BEFORE),
        row(
            "Bearer with a colon",
            authorization(&format!("Bearer: {key}")),
            AFTER,
        ),
        row("Bearer twice", bearer(&format!("Bearer {key}")), TWICE),
        row(
            "Bearer in x-api-key",
            plain(&format!("Bearer {key}")),
            TWICE,
        ),
        row("quotation marks", plain(&format!("\"{key}\"")), QUOTED),
        row("apostrophes", bearer(&format!("'{key}'")), QUOTED),
        row(
            "quotation marks around the whole value",
            authorization(&format!("\"Bearer {key}\"")),
            missing(QUOTED.detail),
        ),
        row(
            "a no-break space at the end",
            plain(&format!("{key}\u{a0}")),
            INVISIBLE,
        ),
        row(
            "a byte order mark at the beginning",
            bearer(&format!("\u{feff}{key}")),
            INVISIBLE,
        ),
        row(
            "white space inside",
            plain(&format!("{prefix} {body}")),
            invalid("The credential contains white space. Remove it."),
        ),
        row(
            "an escaped line break",
            plain(&format!("{key}\\n")),
            invalid("The credential ends in an escaped line break or space. Remove it."),
        ),
        row("$TOKEN", bearer("$TOKEN"), PLACEHOLDER),
        row("${TOKEN}", bearer("${TOKEN}"), PLACEHOLDER),
        row("{{token}}", plain("{{token}}"), PLACEHOLDER),
        row("<token>", bearer("<token>"), PLACEHOLDER),
        // Mistakes in a text with two dots, as in a token, are reported like any other.
        row(
            "a placeholder with dots",
            bearer("{{ .Values.token }}"),
            PLACEHOLDER,
        ),
        row(
            "a variable with dots",
            bearer("${env.x.TOKEN}"),
            PLACEHOLDER,
        ),
        row(
            "a token with Bearer twice",
            bearer(&format!("Bearer {TOKEN}")),
            TWICE,
        ),
        row(
            "a token in quotation marks",
            bearer(&format!("\"{TOKEN}\"")),
            QUOTED,
        ),
        row(
            "a token in x-api-key with Bearer",
            plain(&format!("Bearer {TOKEN}")),
            TWICE,
        ),
        row(
            "a token with an encoded line break",
            bearer(&format!("{TOKEN}%0A")),
            invalid("The credential ends in an escaped line break or space. Remove it."),
        ),
        differs(
            "the name of a variable",
            bearer("process.env.TOKEN"),
            NO_KEY,
            NOTHING,
        ),
        row(
            "Basic with other characters",
            authorization("Basic caf\u{e9}"),
            missing("The Authorization header has the scheme Basic. Use the scheme Bearer."),
        ),
        row("an unknown key", bearer(&unknown), UNKNOWN),
        row("a revoked key", bearer(revoked), UNKNOWN),
        row("a truncated key", bearer(&key[..key.len() - 1]), SHORT),
        row("a prefix alone", plain(prefix), SHORT),
        row("a key that is too long", plain(&format!("{key}0")), LONG),
        row(
            "a shortened key",
            plain(&format!("{prefix}{}...", &body[..4])),
            invalid(
                "The credential is a shortened key. Use the full key, which is shown once, when the key is created.",
            ),
        ),
        row(
            "other characters",
            plain(&format!("{prefix}{}-", &body[..31])),
            invalid(
                "The key contains characters other than letters and digits after its prefix. Check that it was copied correctly.",
            ),
        ),
        row(
            "a prefix in upper case",
            plain(&format!("{}{body}", prefix.to_uppercase())),
            invalid(
                "The prefix of the key must be in lower case. Check that it was copied correctly.",
            ),
        ),
        differs(
            "a service key",
            bearer(service_key),
            invalid(
                "The credential is a service key, which only verifies API keys. Send an API key instead.",
            ),
            ACCEPTED,
        ),
        differs("a password", bearer("hunter2"), NO_KEY, NOTHING),
        differs(
            "a UUID",
            plain("0198c0de-0000-7000-8000-000000000001"),
            NO_KEY,
            NOTHING,
        ),
    ]
}
