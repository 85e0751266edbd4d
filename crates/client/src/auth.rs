//! The credential that calls present.

use std::{error::Error as StdError, fmt, sync::Arc};

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use tollkey_api::Secret;
use zeroize::Zeroizing;

use crate::{Error, error::Kind};

/// An error of a function that returns tokens: [`Auth::from_fn`].
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A credential, presented as `Authorization: Bearer` with every call (RFC 6750).
///
/// `Debug` redacts it, dropping it wipes it, and its header is marked as sensitive.
///
/// A credential must be printable ASCII, without white space or quotation marks at its ends. Any other is never sent:
/// [`ClientBuilder::build`](crate::ClientBuilder::build) and [`Client::from_env`](crate::Client::from_env) report it as
/// [`ErrorKind::Settings`](crate::ErrorKind::Settings); with [`Client::with_auth`](crate::Client::with_auth) and
/// [`from_fn`](Self::from_fn) the call reports it as [`ErrorKind::Argument`](crate::ErrorKind::Argument). A credential from a
/// file often ends with a line break: trim it.
///
/// ```
/// use tollkey_client::Auth;
///
/// let management = Auth::bearer("a management token");
/// assert_eq!(format!("{management:?}"), "Auth(redacted)");
/// ```
#[derive(Clone)]
pub struct Auth {
    /// The name of the credential in errors.
    name: &'static str,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Fixed(Arc<Secret>),
    Function(Arc<dyn Fn() -> BoxFuture<'static, Result<Secret, BoxError>> + Send + Sync>),
}

impl Auth {
    /// A management token: a JWT of an account, an operator or a service.
    ///
    /// ```
    /// let auth = tollkey_client::Auth::bearer("a management token");
    /// ```
    pub fn bearer(token: impl Into<Secret>) -> Self {
        Self::fixed("the token", token)
    }

    /// A service key (`tks_…`), with which resource servers and gateways verify keys.
    ///
    /// ```
    /// let auth = tollkey_client::Auth::service("tks_YOUR_SERVICE_KEY_HERE");
    /// ```
    pub fn service(service_key: impl Into<Secret>) -> Self {
        Self::fixed("the service key", service_key)
    }

    /// An API key: a secret key (`sk_…`) for the account surface, or any key for [`whoami`](crate::Client::whoami).
    ///
    /// ```
    /// let auth = tollkey_client::Auth::key("sk_test_YOUR_KEY_HERE");
    /// ```
    pub fn key(api_key: impl Into<Secret>) -> Self {
        Self::fixed("the API key", api_key)
    }

    fn fixed(name: &'static str, secret: impl Into<Secret>) -> Self {
        Self {
            name,
            source: Source::Fixed(Arc::new(secret.into())),
        }
    }

    /// A token from a function that is called before every attempt, for tokens that expire. The function should cache its
    /// token, and has as long as one attempt may take. An error is reported as [`ErrorKind::Auth`](crate::ErrorKind::Auth)
    /// and not retried.
    ///
    /// ```
    /// use tollkey_client::{Auth, Secret};
    ///
    /// async fn token() -> Result<Secret, std::io::Error> {
    ///     Ok(Secret::new("from your identity provider, cached until it expires"))
    /// }
    /// let auth = Auth::from_fn(token);
    /// ```
    pub fn from_fn<F, Fut, E>(source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Secret, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let function = move || -> BoxFuture<'static, Result<Secret, BoxError>> {
            let token = source();
            Box::pin(async move { token.await.map_err(Into::into) })
        };
        Self {
            name: "the token",
            source: Source::Function(Arc::new(function)),
        }
    }

    /// Returns why a fixed credential cannot be presented, or `None`. That of a function is unknown before the call.
    pub(crate) fn fault(&self) -> Option<String> {
        match &self.source {
            Source::Fixed(secret) => {
                fault(secret.expose()).map(|fault| format!("{} {fault}", self.name))
            }
            Source::Function(_) => None,
        }
    }

    /// Returns the header, marked as sensitive.
    pub(crate) async fn header(&self) -> Result<HeaderValue, Error> {
        match &self.source {
            Source::Fixed(secret) => self.bearer_header(secret),
            Source::Function(function) => {
                let secret = function()
                    .await
                    .map_err(|error| Error::with_source(Kind::Auth, error))?;
                self.bearer_header(&secret)
            }
        }
    }

    fn bearer_header(&self, secret: &Secret) -> Result<HeaderValue, Error> {
        if let Some(fault) = fault(secret.expose()) {
            return Err(Error::argument("auth", format!("{} {fault}", self.name)));
        }
        let text = Zeroizing::new(format!("Bearer {}", secret.expose()));
        let mut header =
            HeaderValue::from_str(&text).map_err(|error| Error::with_source(Kind::Auth, error))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// Returns why a credential cannot be presented, to follow its name in an error. Never repeats any part of it.
pub(crate) fn fault(credential: &str) -> Option<&'static str> {
    let is_break = |character: char| matches!(character, '\r' | '\n');
    let is_quote = |character: char| matches!(character, '"' | '\'' | '`');
    let fault = if credential.is_empty() {
        "is empty"
    } else if credential.trim().is_empty() {
        "contains only white space"
    } else if credential.ends_with(is_break) {
        "ends with a line break; was it read from a file? trim it"
    } else if credential.starts_with(is_break) {
        "begins with a line break; was it read from a file? trim it"
    } else if credential.ends_with(char::is_whitespace) {
        "ends with white space; trim it"
    } else if credential.starts_with(char::is_whitespace) {
        "begins with white space; trim it"
    } else if credential.starts_with(is_quote) || credential.ends_with(is_quote) {
        "is in quotation marks; remove them"
    } else if credential.contains(is_break) {
        "contains a line break; is it more than one credential?"
    } else if credential.contains(|character: char| character.is_ascii_control()) {
        "contains a control character"
    } else if !credential.is_ascii() {
        "contains a character that is not ASCII"
    } else if credential
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("Bearer "))
    {
        "begins with \"Bearer\", which the client adds itself; remove it"
    } else {
        return None;
    };
    Some(fault)
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(redacted)")
    }
}
