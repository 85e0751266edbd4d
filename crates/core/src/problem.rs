//! The errors that callers of the API see (RFC 9457).
//!
//! A [`Problem`] has a [`ProblemCode`], from which its status and title follow, and a detail about this occurrence. A
//! surface of the server renders it in its own error format. [`FieldErrors`] collects the errors of the fields of a request.

use std::fmt;

use crate::{Denial, Scope, api_key::TransitionError};

/// A type of problem. Its code is stable and in snake_case; the status and the title follow from it.
// The codes follow from the names of the variants; `crates/server/tests/it/problems.rs` fixes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ProblemCode {
    /// Fields, parameters or headers break a rule; [`Problem::errors`] names them.
    ValidationFailed,
    /// The body is not valid JSON.
    MalformedJson,
    /// The request has more than one credential, or repeats one.
    MultipleCredentials,
    /// The application has the maximum number of keys that are neither revoked nor expired.
    ApplicationKeyLimitReached,
    /// The key is already revoked; in the applications API that is an error (kadosei).
    KeyAlreadyRevoked,
    /// The request has no credential.
    MissingCredentials,
    /// The management token is invalid or has expired.
    InvalidToken,
    /// The key is unknown or revoked; the response does not reveal which.
    InvalidApiKey,
    /// The credential is valid, but is of the wrong kind or lacks the permission.
    Forbidden,
    /// The account's operating model does not include scoped keys (hellgate).
    ScopedKeysUnavailable,
    /// The account's operating model does not include the feature (hellgate).
    FeatureUnavailable,
    /// The account has the maximum number of keys that are neither revoked nor expired.
    KeyLimitReached,
    /// The key has the maximum number of ancestors and cannot create keys.
    KeyDepthLimitReached,
    /// The operator configured a requirement that is not valid; the request is denied.
    InvalidRequirement,
    /// The key is denied; see [`Denial`]. Never `UnknownKey`, `Revoked` or `RateLimited`.
    #[strum(transparent)]
    Denied(Denial),
    /// The key's rate limit is exceeded.
    RateLimited,
    /// The resource does not exist or belongs to another account.
    NotFound,
    /// The path exists, but does not support the method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The account already has an application with this name.
    ApplicationNameTaken,
    /// The status of the key does not allow the change.
    #[strum(transparent)]
    KeyUnchangeable(TransitionError),
    /// The first request with the same Idempotency-Key is still running.
    IdempotencyInProgress,
    /// The idempotency record of the first response cannot be decrypted.
    IdempotencyReplayUnavailable,
    /// Another process polls with the same subscriber ID; neither of them gets a lease.
    SubscriberIdShared,
    /// The resource is not in a state that `If-Match` requires.
    PreconditionFailed,
    /// The Idempotency-Key was already used with a different body.
    IdempotencyMismatch,
    /// The body is larger than the limit.
    PayloadTooLarge,
    /// The `Content-Type` is not one that the operation accepts.
    UnsupportedMediaType,
    /// An error of the server.
    InternalError,
    /// The store cannot be reached, or too many requests are waiting for it.
    Unavailable,
}

impl ProblemCode {
    /// The code, the HTTP status and the title.
    #[must_use]
    pub fn row(self) -> (&'static str, u16, &'static str) {
        (self.as_str(), self.status(), self.title())
    }

    fn status_and_title(self) -> (u16, &'static str) {
        match self {
            Self::ValidationFailed => (400, "The request is not valid"),
            Self::MalformedJson => (400, "The body is not valid JSON"),
            Self::MultipleCredentials => (400, "More than one credential"),
            Self::ApplicationKeyLimitReached => (400, "Maximum number of API keys reached"),
            Self::KeyAlreadyRevoked => (400, "The key is already revoked"),
            Self::MissingCredentials => (401, "A credential is required"),
            Self::InvalidToken => (401, "The management token is not valid"),
            Self::InvalidApiKey => (401, "The API key is not valid"),
            Self::Forbidden => (403, "Access denied"),
            Self::ScopedKeysUnavailable => (403, "Scoped keys are not available"),
            Self::FeatureUnavailable => (403, "The feature is not available"),
            Self::KeyLimitReached => (403, "Maximum number of API keys reached"),
            Self::KeyDepthLimitReached => (403, "Maximum key depth reached"),
            Self::InvalidRequirement => (403, "The access requirement is not valid"),
            Self::Denied(denial) => (403, denial.title()),
            Self::RateLimited => (429, "Too many requests"),
            Self::NotFound => (404, "Not found"),
            Self::MethodNotAllowed => (405, "Method not allowed"),
            Self::RequestTimeout => (408, "The request timed out"),
            Self::ApplicationNameTaken => (409, "The application name is already used"),
            Self::KeyUnchangeable(TransitionError::Revoked) => (409, "The key is revoked"),
            Self::KeyUnchangeable(TransitionError::Expired) => (409, "The key has expired"),
            Self::KeyUnchangeable(TransitionError::Suspended) => (409, "The key is suspended"),
            Self::KeyUnchangeable(TransitionError::AlreadyRotated) => {
                (409, "The key is already rotated")
            }
            Self::IdempotencyInProgress => (409, "The first request is still running"),
            Self::IdempotencyReplayUnavailable => (409, "The first response cannot be replayed"),
            Self::SubscriberIdShared => (409, "Another process uses this subscriber ID"),
            Self::PreconditionFailed => (412, "The resource was changed"),
            Self::IdempotencyMismatch => (422, "The Idempotency-Key was already used"),
            Self::PayloadTooLarge => (413, "The body is too large"),
            Self::UnsupportedMediaType => (415, "Unsupported media type"),
            Self::InternalError => (500, "Internal server error"),
            Self::Unavailable => (503, "Temporarily unavailable"),
        }
    }

    /// The stable code, such as `not_found`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        self.status_and_title().0
    }

    /// The title, which is the same in every occurrence.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.status_and_title().1
    }

    /// The stable URI of this type of problem. For rate limiting it is the one that IANA registered.
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

/// An error for the caller. Never contains a secret or the name of a table, file or type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct Problem {
    /// The type of the problem.
    pub code: ProblemCode,
    /// What is wrong with this request, and what to do next, in one or two sentences.
    pub detail: String,
    /// For validation: each invalid field and the rule that it breaks.
    pub errors: Vec<FieldError>,
    /// The value of `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// The scopes that the request requires, for the challenge of RFC 6750.
    pub needed_scopes: Box<[Scope]>,
    /// Those of the required scopes that the key lacks.
    pub missing_scopes: Box<[Scope]>,
    /// What the path accepts instead: fields of the response, such as `Allow`, `Accept` and further challenges.
    pub headers: Box<[(&'static str, String)]>,
}

impl Problem {
    /// Creates a problem of this type.
    #[must_use]
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            needed_scopes: Box::default(),
            missing_scopes: Box::default(),
            headers: Box::default(),
        }
    }

    /// Creates a validation problem about one field.
    #[must_use]
    pub fn field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::validation(vec![FieldError {
            pointer: pointer.into(),
            detail: detail.into(),
        }])
    }

    /// Creates a validation problem about these fields. The detail names the first 10 of them.
    #[must_use]
    pub fn validation(errors: Vec<FieldError>) -> Self {
        const NAMED: usize = 10;
        let detail = match errors.as_slice() {
            [one] => one.to_string(),
            several => {
                let named = several.iter().take(NAMED);
                let names: Vec<&str> = named.map(|error| error.pointer.as_str()).collect();
                let (count, names) = (several.len(), names.join(", "));
                let more = if count > NAMED { ", \u{2026}" } else { "" };
                format!("{count} fields are invalid: {names}{more}")
            }
        };
        Self {
            errors,
            ..Self::new(ProblemCode::ValidationFailed, detail)
        }
    }

    /// Creates the problem of an unknown ID and of an ID of another account. They are the same, so that a caller cannot
    /// find out which IDs exist.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            ProblemCode::NotFound,
            "The resource does not exist or belongs to another account. Check the ID.",
        )
    }

    /// Creates the problem of a valid credential that is of the wrong kind or lacks the permission.
    #[must_use]
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Forbidden, detail)
    }

    /// Creates the problem of a key that is unknown or revoked. Both are the same, so that a caller cannot find out
    /// which keys existed.
    #[must_use]
    pub fn invalid_api_key() -> Self {
        Self::new(
            ProblemCode::InvalidApiKey,
            "The API key is unknown or revoked. Check the key, or use another one.",
        )
    }

    /// Creates the problem of an error of the server. The cause is only in the log.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            ProblemCode::InternalError,
            "The server could not process the request. Try again; report the error to the operator if it persists.",
        )
    }

    /// Creates the problem of a store that cannot be reached or has too many requests waiting.
    #[must_use]
    pub fn unavailable() -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(
                ProblemCode::Unavailable,
                "The service is temporarily unavailable. Try again later.",
            )
        }
    }

    /// Creates the problem of a body that did not arrive in time.
    #[must_use]
    pub fn request_timeout() -> Self {
        Self::new(
            ProblemCode::RequestTimeout,
            "The body did not arrive in time. Send the request again.",
        )
    }

    /// Creates the problem of a change for which the resource is not in the state that the caller requires.
    #[must_use]
    pub fn precondition_failed() -> Self {
        Self::new(
            ProblemCode::PreconditionFailed,
            "The current ETag of the resource is not in If-Match, so nothing was changed. Get the resource again, and repeat the change with its ETag.",
        )
    }

    /// Creates the problem of a request whose Idempotency-Key belongs to a request that is still running.
    #[must_use]
    pub fn idempotency_in_progress() -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(
                ProblemCode::IdempotencyInProgress,
                "The first request with this Idempotency-Key is still running. Try again later.",
            )
        }
    }

    /// Returns the challenge for `WWW-Authenticate` (RFC 6750, section 3), or `None` for a problem without one. `realm`
    /// names the protected API.
    ///
    /// ```
    /// use tollkey_core::{Problem, ProblemCode};
    /// let problem = Problem::new(ProblemCode::MissingCredentials, "Send an API key.");
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
            let scopes: Vec<&str> = self.needed_scopes.iter().map(Scope::as_str).collect();
            challenge.push_str(&format!(", scope=\"{}\"", scopes.join(" ")));
        }
        Some(challenge)
    }

    /// Creates the problem of a denial: 401 for an unknown or revoked key, 429 for an exceeded rate limit, and 403 with
    /// the code of the denial for each other one.
    #[must_use]
    pub fn denied(denial: Denial) -> Self {
        match denial {
            Denial::UnknownKey | Denial::Revoked => Self::invalid_api_key(),
            Denial::RateLimited => Self::new(ProblemCode::RateLimited, denial.detail()),
            other => Self::new(ProblemCode::Denied(other), other.detail()),
        }
    }
}

impl From<TransitionError> for Problem {
    fn from(why: TransitionError) -> Self {
        Self::new(ProblemCode::KeyUnchangeable(why), why.to_string())
    }
}

/// An invalid field and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// A JSON pointer into the body (`/name`), or the name of a query parameter or header.
    pub pointer: String,
    /// The rule, without the pointer: `must have 1 to 100 characters`.
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => write!(f, "{}", self.detail),
            pointer => write!(f, "{pointer}: {}", self.detail),
        }
    }
}

/// The rule that a value breaks. [`FieldErrors::check`] adds the pointer of the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// Creates the error of a value that breaks this rule, such as `must have 1 to 100 characters`.
    pub fn new(rule: impl Into<String>) -> Self {
        Self(rule.into())
    }
}

/// Collects the errors of the fields of a request, so that one response reports all of them.
///
/// ```
/// use tollkey_core::{Application, FieldErrors};
/// let mut checks = FieldErrors::default();
/// let name = checks.check("/name", Application::parse_name(""));
/// let description = checks.check("/description", Application::parse_description(None));
/// let (Some(name), Some(description)) = (name, description) else {
///     assert_eq!(checks.into_problem().errors[0].to_string(), "/name: must have 1 to 100 characters");
///     return;
/// };
/// # unreachable!("{name} {description:?}");
/// ```
#[derive(Debug, Clone, Default)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// Returns the value, or adds its error under this pointer and returns `None`.
    pub fn check<T>(&mut self, pointer: &str, value: Result<T, Invalid>) -> Option<T> {
        value.map_err(|rule| self.add(pointer, rule.0)).ok()
    }

    /// Adds an error, unless the field, a field that contains it, or a field inside it has one already.
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

    /// Adds the errors of a part of the request, with `prefix` before their pointers.
    pub fn append(&mut self, prefix: &str, part: Self) {
        for error in part.0 {
            self.add(format!("{prefix}{}", error.pointer), error.detail);
        }
    }

    /// Whether the field with this pointer has an error.
    #[must_use]
    pub fn contains(&self, pointer: &str) -> bool {
        self.0.iter().any(|error| error.pointer == pointer)
    }

    /// The number of errors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no error.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the value if there is no error.
    ///
    /// # Errors
    /// The validation problem of all errors.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problem> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self.into_problem()),
        }
    }

    /// Returns the validation problem of all errors.
    #[must_use]
    pub fn into_problem(self) -> Problem {
        Problem::validation(self.0)
    }
}
