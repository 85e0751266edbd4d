//! The error of a failed call.

use std::{error::Error as StdError, fmt, time::Duration};

use tollkey_api::problem::FieldError;

use crate::{auth::BoxError, retry::Progress, transport::ConnectFailure};

/// A failed call.
///
/// Contains no credential and no body. [`Display`](fmt::Display) names the call, then the status, code and
/// detail of the response or, without a response, the cause (the host name cannot be resolved, the
/// certificate is not trusted, timed out, …), and the request ID, which the server's logs also contain.
///
/// ```no_run
/// # use tollkey_client::{Client, Mode};
/// # async fn example(management: Client) -> Result<(), tollkey_client::Error> {
/// match management.applications().create("Production Web Store").await {
///     Ok(application) => println!("{}", application.id),
///     Err(error) if error.code() == Some("application_name_taken") => println!("it already exists"),
///     Err(error) if error.is_unauthorized() => println!("the token has expired"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    call: Option<Operation>,
    attempts: u32,
    uncertain: bool,
    source: Option<BoxError>,
}

/// The called operation, for `Display` and `Debug`.
#[derive(Debug, Clone, Copy)]
struct Operation {
    method: &'static str,
    route: &'static str,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Settings(String),
    Argument {
        name: &'static str,
        rule: String,
    },
    Auth,
    Connect(ConnectFailure),
    Interrupted,
    Timeout,
    /// Without a status if the caller's own HTTP client reports the redirect.
    Redirect {
        status: Option<u16>,
    },
    Unreadable {
        status: u16,
        request_id: Option<String>,
        why: String,
    },
    Rejected(Box<Rejection>),
}

impl Kind {
    fn is_uncertain(&self) -> bool {
        match self {
            Self::Interrupted | Self::Timeout | Self::Unreadable { .. } => true,
            Self::Rejected(rejection) => rejection.status >= 500,
            _ => false,
        }
    }
}

/// A response with an error status.
#[derive(Debug, Default)]
pub(crate) struct Rejection {
    pub(crate) status: u16,
    pub(crate) code: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) errors: Vec<FieldError>,
    pub(crate) request_id: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

/// The kind of an [`Error`]. It describes the last attempt; [`Error::may_have_taken_effect`] also covers earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The client cannot be built with these settings.
    Settings,
    /// An argument is invalid, such as an empty ID, a key in place of an ID, or a credential that ends with a line
    /// break. Nothing was sent.
    Argument,
    /// The function of an [`Auth::from_fn`](crate::Auth::from_fn) returned no token, or not in time.
    Auth,
    /// No connection could be opened; `Display` names the cause.
    Connect,
    /// The connection ended before the whole response was received.
    Interrupted,
    /// No response arrived in time, or the connection went silent.
    Timeout,
    /// The response is a redirect. The client does not follow it, because the credential could go to another server.
    Redirect,
    /// The response is not a valid Tollkey response: not JSON, too long, or without a required field.
    Unreadable,
    /// The server rejected the request: see [`Error::status`] and [`Error::code`].
    Rejected,
}

impl Error {
    pub(crate) fn new(kind: Kind) -> Self {
        let uncertain = kind.is_uncertain();
        Self(Box::new(Inner {
            kind,
            call: None,
            attempts: 0,
            uncertain,
            source: None,
        }))
    }

    pub(crate) fn with_source(kind: Kind, source: impl Into<BoxError>) -> Self {
        let mut error = Self::new(kind);
        error.0.source = Some(source.into());
        error
    }

    pub(crate) fn settings(rule: impl Into<String>) -> Self {
        Self::new(Kind::Settings(rule.into()))
    }

    pub(crate) fn argument(name: &'static str, rule: impl Into<String>) -> Self {
        Self::new(Kind::Argument {
            name,
            rule: rule.into(),
        })
    }

    /// Wraps an error of the HTTP client, without its URL, which contains arguments of the caller.
    pub(crate) fn transport(error: reqwest::Error) -> Self {
        let kind = if error.is_connect() {
            Kind::Connect(ConnectFailure::of(&error))
        } else if error.is_timeout() {
            Kind::Timeout
        } else if error.is_redirect() {
            Kind::Redirect { status: None }
        } else if error.is_builder() {
            Kind::Argument {
                name: "request",
                rule: "cannot be sent".to_owned(),
            }
        } else {
            Kind::Interrupted
        };
        Self::with_source(kind, error.without_url())
    }

    /// Adds the operation and the progress of its call.
    pub(crate) fn of(
        mut self,
        method: &'static str,
        route: &'static str,
        progress: &Progress,
    ) -> Self {
        self.0.call = Some(Operation { method, route });
        self.0.attempts = progress.attempts();
        self.0.uncertain |= progress.is_uncertain();
        self
    }

    /// Returns whether the call may have taken effect.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.0.uncertain
    }

    /// The kind of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.0.kind {
            Kind::Settings(_) => ErrorKind::Settings,
            Kind::Argument { .. } => ErrorKind::Argument,
            Kind::Auth => ErrorKind::Auth,
            Kind::Connect(_) => ErrorKind::Connect,
            Kind::Interrupted => ErrorKind::Interrupted,
            Kind::Timeout => ErrorKind::Timeout,
            Kind::Redirect { .. } => ErrorKind::Redirect,
            Kind::Unreadable { .. } => ErrorKind::Unreadable,
            Kind::Rejected(_) => ErrorKind::Rejected,
        }
    }

    pub(crate) fn rejection(&self) -> Option<&Rejection> {
        match &self.0.kind {
            Kind::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// The HTTP status, if there was a response.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match &self.0.kind {
            Kind::Redirect { status } => *status,
            Kind::Unreadable { status, .. } => Some(*status),
            Kind::Rejected(rejection) => Some(rejection.status),
            _ => None,
        }
    }

    /// The stable code of the problem (RFC 9457), such as `validation_failed`. On the account surface, this is the
    /// code in `error.details`, because the uppercase code in `error` is less specific.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.rejection()?.code.as_deref()
    }

    /// The detail of the problem.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.rejection()?.detail.as_deref()
    }

    /// The request ID (`X-Request-Id`), which the server's logs and audit log also contain.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match &self.0.kind {
            Kind::Unreadable { request_id, .. } => request_id.as_deref(),
            _ => self.rejection()?.request_id.as_deref(),
        }
    }

    /// How long the server wants the client to wait before the next attempt.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.rejection()?.retry_after
    }

    /// The invalid fields, each with the rule that it breaks.
    #[must_use]
    pub fn errors(&self) -> &[FieldError] {
        self.rejection().map_or(&[], |rejection| &rejection.errors)
    }

    /// Returns whether the call may have taken effect: at least one attempt, not necessarily the last, ended without a
    /// response, with an unreadable response or with a 5xx status. Check the state, or repeat the call. Repeat a
    /// creation only with the same [`idempotency_key`](crate::commerce::CreateKey::idempotency_key).
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client) {
    /// let keys = management.commerce().api_keys();
    /// match keys.create("Web").idempotency_key("order 4711, web key").await {
    ///     Err(error) if error.may_have_taken_effect() => { /* later: the same call with the same key */ }
    ///     other => drop(other),
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn may_have_taken_effect(&self) -> bool {
        self.0.uncertain
    }

    /// The number of times that the request was sent. After more than one attempt, the error can be the result of an
    /// earlier attempt: 404 can mean that an earlier attempt deleted the application.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// 400: fields, parameters or headers break a rule; [`errors`](Self::errors) names them.
    #[must_use]
    pub fn is_validation(&self) -> bool {
        self.code() == Some("validation_failed")
    }

    /// 401: no credential, or one that is not accepted.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        self.status() == Some(401)
    }

    /// 403: the credential is valid but does not allow this.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.status() == Some(403)
    }

    /// 404: the resource does not exist, or belongs to another account.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// 409: the state of the resource does not allow this change.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// 429: too many requests.
    #[must_use]
    pub fn is_rate_limited(&self) -> bool {
        self.status() == Some(429)
    }

    /// No connection or no response in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.0.kind,
            Kind::Timeout | Kind::Connect(ConnectFailure::TimedOut)
        )
    }

    /// The last attempt could not open a connection.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self.0.kind, Kind::Connect(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(call) = self.0.call {
            write!(f, "{} {}: ", call.method, call.route)?;
        }
        match &self.0.kind {
            Kind::Settings(rule) => f.write_str(rule)?,
            Kind::Argument { name, rule } => write!(f, "{name}: {rule}")?,
            Kind::Auth => f.write_str("auth: the function returned no token")?,
            Kind::Connect(failure) => write!(f, "no connection: {failure}")?,
            Kind::Interrupted => {
                f.write_str("the connection ended before the whole response was received")?
            }
            Kind::Timeout => f.write_str("no response in time")?,
            Kind::Redirect { status } => {
                if let Some(status) = status {
                    write!(f, "{status}: ")?;
                }
                f.write_str("redirects are not followed")?;
            }
            Kind::Unreadable { status, why, .. } => write!(f, "{status}: {why}")?,
            Kind::Rejected(rejection) => {
                write!(f, "{}", rejection.status)?;
                if let Some(code) = &rejection.code {
                    write!(f, " {code}")?;
                }
                if let Some(detail) = &rejection.detail {
                    write!(f, ": {detail}")?;
                }
            }
        }
        if let Some(id) = self.request_id() {
            write!(f, " ({id})")?;
        }
        if self.0.attempts > 1 {
            write!(f, " after {} attempts", self.0.attempts)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        if let Some(call) = self.0.call {
            debug.field("call", &format_args!("{} {}", call.method, call.route));
        }
        debug
            .field("kind", &self.0.kind)
            .field("attempts", &self.0.attempts)
            .field("uncertain", &self.0.uncertain);
        debug.field("source", &self.0.source).finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_ref()
            .map(|source| &**source as &(dyn StdError + 'static))
    }
}
