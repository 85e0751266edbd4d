//! The credential that calls present.

use std::{error::Error as StdError, fmt, sync::Arc};

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use tollkey_api::Secret;
use zeroize::Zeroizing;

use crate::{Error, error::Kind};

/// What a failing source of tokens can say.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A credential, presented as `Authorization: Bearer` with every call (RFC 6750).
///
/// Hidden by `Debug`, wiped on drop, sent as a header that no log shows.
///
/// ```
/// use tollkey_client::Auth;
///
/// let merchant = Auth::bearer("a management token");
/// assert_eq!(format!("{merchant:?}"), "Auth(redacted)");
/// ```
#[derive(Clone)]
pub struct Auth(Source);

#[derive(Clone)]
enum Source {
    Fixed(Arc<Secret>),
    Asked(Arc<dyn Fn() -> BoxFuture<'static, Result<Secret, BoxError>> + Send + Sync>),
}

impl Auth {
    /// A management token: a JWT of a merchant, an operator or a service.
    ///
    /// ```
    /// let auth = tollkey_client::Auth::bearer("a management token");
    /// ```
    pub fn bearer(token: impl Into<Secret>) -> Self {
        Self(Source::Fixed(Arc::new(token.into())))
    }

    /// A service key (`tks_…`), with which resource servers and gateways verify the keys of others.
    ///
    /// ```
    /// let auth = tollkey_client::Auth::service("tks_YOUR_SERVICE_KEY_HERE");
    /// ```
    pub fn service(service_key: impl Into<Secret>) -> Self {
        Self::bearer(service_key)
    }

    /// An API key: a secret key (`sk_…`) for the account surface, or any key to ask what it is.
    ///
    /// ```
    /// let auth = tollkey_client::Auth::key("sk_test_YOUR_KEY_HERE");
    /// ```
    pub fn key(api_key: impl Into<Secret>) -> Self {
        Self::bearer(api_key)
    }

    /// A token that is asked for before every attempt, for tokens that end. Whoever gives it keeps it as long as it
    /// lasts, and has as long as one attempt; an error of its is [`ErrorKind::Auth`](crate::ErrorKind::Auth) and is not tried again.
    ///
    /// ```
    /// use tollkey_client::{Auth, Secret};
    ///
    /// async fn token() -> Result<Secret, std::io::Error> {
    ///     Ok(Secret::new("from your identity provider, kept until it ends"))
    /// }
    /// let auth = Auth::from_fn(token);
    /// ```
    pub fn from_fn<F, Fut, E>(source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Secret, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Source::Asked(Arc::new(move || {
            let token = source();
            Box::pin(async move { token.await.map_err(Into::into) })
        })))
    }

    /// The header, marked as sensitive.
    pub(crate) async fn header(&self) -> Result<HeaderValue, Error> {
        match &self.0 {
            Source::Fixed(secret) => bearer(secret),
            Source::Asked(source) => bearer(&source().await.map_err(|error| Error::with_source(Kind::Auth, error))?),
        }
    }
}

fn bearer(secret: &Secret) -> Result<HeaderValue, Error> {
    if secret.expose().is_empty() || !secret.expose().bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(Error::argument("auth", "the credential must be printable ASCII, and some"));
    }
    let text = Zeroizing::new(format!("Bearer {}", secret.expose()));
    let mut header = HeaderValue::from_str(&text).map_err(|error| Error::with_source(Kind::Auth, error))?;
    header.set_sensitive(true);
    Ok(header)
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(redacted)")
    }
}
