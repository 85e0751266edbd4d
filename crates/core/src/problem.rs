//! Everything that can go wrong, in words first and then as a status (RFC 9457).
//!
//! A [`Problem`] is what happened; how it is said is a surface's business.

use std::fmt;

use crate::{Denial, Scope, api_key::Unchangeable};

/// One sort of problem. Its code is stable and snake_case; title and status follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProblemCode {
    /// Members, parameters or headers break a rule; [`Problem::errors`] names them.
    ValidationFailed,
    /// The body is no JSON.
    MalformedJson,
    /// More than one credential, or one twice.
    MultipleCredentials,
    /// An application holds as many usable keys as it can.
    ApplicationKeyLimitReached,
    /// A key that can be revoked once was revoked before (kadosei).
    KeyAlreadyRevoked,
    /// No credential.
    MissingCredentials,
    /// A management token that does not verify.
    InvalidToken,
    /// A key that is unknown or revoked; which of the two is not told.
    InvalidApiKey,
    /// A valid credential of the wrong kind, or without the right.
    Forbidden,
    /// The account's operating model has no scoped keys (hellgate).
    ScopedKeysUnavailable,
    /// The account's operating model does not have that feature (hellgate).
    FeatureUnavailable,
    /// The account holds as many usable keys as it can.
    KeyLimitReached,
    /// A key that has as many ancestors as a key can have cannot create keys.
    KeyDepthLimitReached,
    /// A gateway requirement that nobody can read. The operator's mistake; it denies.
    InvalidRequirement,
    /// A key is denied; see [`Denial`]. Never holds the first two or `RateLimited`.
    Denied(Denial),
    /// The key's allowance is used up.
    RateLimited,
    /// No such thing, or somebody else's.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// An application of that name is there already.
    ApplicationNameTaken,
    /// The key does not stand where this change needs it to.
    KeyUnchangeable(Unchangeable),
    /// A request with the same Idempotency-Key is still being worked on.
    IdempotencyInProgress,
    /// The first answer to this Idempotency-Key was kept, and can be opened no more.
    IdempotencyReplayUnavailable,
    /// Another process polls with the same subscriber ID, so neither gets a lease under it.
    SubscriberIdShared,
    /// The same Idempotency-Key came with another body before.
    IdempotencyMismatch,
    /// The body is larger than accepted.
    PayloadTooLarge,
    /// The body is not `application/json`, or not `application/x-www-form-urlencoded` where that is needed.
    UnsupportedMediaType,
    /// A mistake of ours.
    InternalError,
    /// The store cannot be reached, or too much is waiting for it.
    Unavailable,
}

impl ProblemCode {
    /// The code, its HTTP status and its title: the one table of problems.
    #[must_use]
    pub fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::ValidationFailed => ("validation_failed", 400, "The request is not valid"),
            Self::MalformedJson => ("malformed_json", 400, "The body is not valid JSON"),
            Self::MultipleCredentials => ("multiple_credentials", 400, "More than one credential"),
            Self::ApplicationKeyLimitReached => (
                "application_key_limit_reached",
                400,
                "Maximum number of API keys reached",
            ),
            Self::KeyAlreadyRevoked => ("key_already_revoked", 400, "The key is already revoked"),
            Self::MissingCredentials => ("missing_credentials", 401, "A credential is needed"),
            Self::InvalidToken => ("invalid_token", 401, "The management token is not valid"),
            Self::InvalidApiKey => ("invalid_api_key", 401, "The API key is not valid"),
            Self::Forbidden => ("forbidden", 403, "Not allowed"),
            Self::ScopedKeysUnavailable => (
                "scoped_keys_unavailable",
                403,
                "Scoped keys are not available",
            ),
            Self::FeatureUnavailable => {
                ("feature_unavailable", 403, "The feature is not available")
            }
            Self::KeyLimitReached => (
                "key_limit_reached",
                403,
                "Maximum number of API keys reached",
            ),
            Self::KeyDepthLimitReached => (
                "key_depth_limit_reached",
                403,
                "Maximum depth of keys reached",
            ),
            Self::InvalidRequirement => (
                "invalid_requirement",
                403,
                "The gateway's requirement cannot be read",
            ),
            Self::Denied(denial) => (denial.code(), 403, denial.title()),
            Self::RateLimited => ("rate_limited", 429, "Too many requests"),
            Self::NotFound => ("not_found", 404, "Not found"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "Method not allowed"),
            Self::RequestTimeout => ("request_timeout", 408, "The request took too long"),
            Self::ApplicationNameTaken => (
                "application_name_taken",
                409,
                "The application name is taken",
            ),
            Self::KeyUnchangeable(why) => match why {
                Unchangeable::Revoked => ("key_revoked", 409, "The key is revoked"),
                Unchangeable::Expired => ("key_expired", 409, "The key has expired"),
                Unchangeable::Suspended => ("key_suspended", 409, "The key is suspended"),
                Unchangeable::AlreadyRotated => {
                    ("key_already_rotated", 409, "The key was rotated before")
                }
            },
            Self::IdempotencyInProgress => (
                "idempotency_in_progress",
                409,
                "The first request is still running",
            ),
            Self::IdempotencyReplayUnavailable => (
                "idempotency_replay_unavailable",
                409,
                "The first answer cannot be given again",
            ),
            Self::SubscriberIdShared => (
                "subscriber_id_shared",
                409,
                "Another process uses this subscriber ID",
            ),
            Self::IdempotencyMismatch => (
                "idempotency_mismatch",
                422,
                "The Idempotency-Key was used before",
            ),
            Self::PayloadTooLarge => ("payload_too_large", 413, "The body is too large"),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415, "Unsupported media type"),
            Self::InternalError => ("internal_error", 500, "Something went wrong on our side"),
            Self::Unavailable => ("unavailable", 503, "Temporarily unavailable"),
        }
    }

    /// The stable code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        self.row().1
    }

    /// The title, the same for every occurrence.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// A stable URI for this sort of problem. Rate limiting has a registered one.
    #[must_use]
    pub fn type_uri(self) -> String {
        match self {
            Self::RateLimited => {
                "https://iana.org/assignments/http-problem-types#quota-exceeded".to_owned()
            }
            _ => format!("urn:tollkey:problem:{}", self.as_str()),
        }
    }
}

/// Something went wrong, for the caller to read. Never holds a secret, nor a name of a table, file or type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What sort.
    pub code: ProblemCode,
    /// This occurrence, in a sentence.
    pub detail: String,
    /// For validation: each member and the rule it breaks.
    pub errors: Vec<FieldError>,
    /// Whole seconds after which trying again makes sense.
    pub retry_after: Option<u64>,
    /// The scopes that would have been needed, for the challenge of RFC 6750.
    pub needed_scopes: Box<[Scope]>,
    /// Those of the needed scopes that the key lacks.
    pub missing_scopes: Box<[Scope]>,
    /// The methods that exist here, for `Allow`.
    pub allowed_methods: Box<[String]>,
}

impl Problem {
    /// A problem of that sort.
    #[must_use]
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            needed_scopes: Box::default(),
            missing_scopes: Box::default(),
            allowed_methods: Box::default(),
        }
    }

    /// A validation problem about one member.
    #[must_use]
    pub fn field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::validation(vec![FieldError {
            pointer: pointer.into(),
            detail: detail.into(),
        }])
    }

    /// A validation problem about these members.
    #[must_use]
    pub fn validation(errors: Vec<FieldError>) -> Self {
        /// How many fields the detail names; `errors` has all of them.
        const NAMED: usize = 10;
        let detail = match errors.as_slice() {
            [one] => one.to_string(),
            several => {
                let names: Vec<&str> = several
                    .iter()
                    .take(NAMED)
                    .map(|error| error.pointer.as_str())
                    .collect();
                let more = if several.len() > NAMED {
                    ", \u{2026}"
                } else {
                    ""
                };
                format!(
                    "{} fields are invalid: {}{more}",
                    several.len(),
                    names.join(", ")
                )
            }
        };
        Self {
            errors,
            ..Self::new(ProblemCode::ValidationFailed, detail)
        }
    }

    /// No such thing, or somebody else's: one answer for both, so that ids cannot be probed.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            ProblemCode::NotFound,
            "There is no such resource in this account.",
        )
    }

    /// A valid credential of the wrong kind.
    #[must_use]
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Forbidden, detail)
    }

    /// The key is not accepted; unknown and revoked read the same.
    #[must_use]
    pub fn invalid_api_key() -> Self {
        Self::new(
            ProblemCode::InvalidApiKey,
            "The API key is unknown or was revoked.",
        )
    }

    /// A mistake of our own, of which the caller learns no more; the log does.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            ProblemCode::InternalError,
            "Something went wrong on our side.",
        )
    }

    /// The store cannot be reached, or too much is waiting for it.
    #[must_use]
    pub fn unavailable() -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(
                ProblemCode::Unavailable,
                "The service cannot answer right now; try again.",
            )
        }
    }

    /// The challenge for `WWW-Authenticate` (RFC 6750, section 3), where one belongs to it. `realm` says what is
    /// protected.
    ///
    /// ```
    /// use tollkey_core::{Problem, ProblemCode};
    /// let problem = Problem::new(ProblemCode::MissingCredentials, "A credential is needed.");
    /// assert_eq!(problem.challenge("links").unwrap(), "Bearer realm=\"links\"");
    /// ```
    #[must_use]
    pub fn challenge(&self, realm: &str) -> Option<String> {
        let error = match self.code {
            ProblemCode::MissingCredentials => return Some(format!("Bearer realm=\"{realm}\"")),
            ProblemCode::MultipleCredentials => "invalid_request",
            ProblemCode::InvalidToken | ProblemCode::InvalidApiKey => "invalid_token",
            ProblemCode::Denied(Denial::InsufficientScope) => "insufficient_scope",
            _ => return None,
        };
        let mut challenge = format!(
            "Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{}\"",
            self.detail
        );
        if !self.needed_scopes.is_empty() {
            let scopes = self
                .needed_scopes
                .iter()
                .map(Scope::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            challenge.push_str(&format!(", scope=\"{scopes}\""));
        }
        Some(challenge)
    }

    /// How a denial is said over HTTP (contract, section 5): unknown and revoked are one 401, an exhausted
    /// allowance is 429, everything else 403 with its own code.
    #[must_use]
    pub fn denied(denial: Denial) -> Self {
        match denial {
            Denial::UnknownKey | Denial::Revoked => Self::invalid_api_key(),
            Denial::RateLimited => {
                Self::new(ProblemCode::RateLimited, "The key's allowance is used up.")
            }
            other => Self::new(ProblemCode::Denied(other), other.detail()),
        }
    }
}

impl From<Unchangeable> for Problem {
    fn from(why: Unchangeable) -> Self {
        Self::new(ProblemCode::KeyUnchangeable(why), why.to_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}
impl std::error::Error for Problem {}

/// A member and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Where: a JSON pointer into the body (`/name`), or the name of a query parameter or header.
    pub pointer: String,
    /// The rule.
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => write!(f, "{}", self.detail),
            pointer => write!(f, "{pointer} {}", self.detail),
        }
    }
}

/// A value breaks a rule; the text says which. Who knows the member's name adds it: see [`Checks`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// Breaks this rule.
    pub fn new(rule: impl Into<String>) -> Self {
        Self(rule.into())
    }
}

/// Collects what is wrong with a request, so that a caller learns of all of it at once.
///
/// ```
/// use tollkey_core::{Application, Checks};
/// let mut checks = Checks::default();
/// let name = checks.member("/name", Application::parse_name(""));
/// let description = checks.member("/description", Application::parse_description(None));
/// let (Some(name), Some(description)) = (name, description) else {
///     assert_eq!(checks.into_problem().errors[0].to_string(), "/name must have 1 to 100 characters");
///     return;
/// };
/// # unreachable!("{name} {description:?}");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Checks(Vec<FieldError>);

impl Checks {
    /// The value, or `None` with its error kept under that pointer.
    pub fn member<T>(&mut self, pointer: &str, value: Result<T, Invalid>) -> Option<T> {
        value.map_err(|rule| self.add(pointer, rule.0)).ok()
    }

    /// Keeps an error. A field has one: whatever follows from it, in the field itself, in what contains it or in what it
    /// contains, is not kept.
    pub fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        let pointer = pointer.into();
        let within = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if !self
            .0
            .iter()
            .any(|error| within(&error.pointer, &pointer) || within(&pointer, &error.pointer))
        {
            self.0.push(FieldError {
                pointer,
                detail: detail.into(),
            });
        }
    }

    /// Keeps the errors of a part of the request, whose pointers begin at `prefix`.
    pub fn append(&mut self, prefix: &str, part: Self) {
        for error in part.0 {
            self.add(format!("{prefix}{}", error.pointer), error.detail);
        }
    }

    /// How many errors are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was wrong so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, when nothing was wrong.
    ///
    /// # Errors
    /// The validation problem of everything collected.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problem> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self.into_problem()),
        }
    }

    /// The validation problem of everything collected.
    #[must_use]
    pub fn into_problem(self) -> Problem {
        Problem::validation(self.0)
    }
}
