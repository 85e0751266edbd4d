//! The settings of a client.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};

use crate::{
    Auth, Client, Error, Secret, auth,
    client::Shared,
    connections::{Connections, HttpSettings},
    retry::Retries,
};

/// The client's name and version in `User-Agent`.
const NAME: &str = concat!("tollkey-rust/", env!("CARGO_PKG_VERSION"));
/// How long one attempt may take, from before it connects until the whole response is received.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Headers that the client sets itself.
const RESERVED: [&str; 12] = [
    "authorization",
    "x-api-key",
    "x-commerce-api-key",
    "user-agent",
    "accept",
    "content-type",
    "content-encoding",
    "content-length",
    "connection",
    "transfer-encoding",
    "host",
    "idempotency-key",
];

/// Settings of a [`Client`], from [`Client::builder`].
///
/// ```
/// use std::time::Duration;
/// use tollkey_client::{Auth, Client};
///
/// # fn main() -> Result<(), tollkey_client::Error> {
/// let tollkey = Client::builder()
///     .base_url("https://keys.example.com")
///     .auth(Auth::bearer("a management token"))
///     .timeout(Duration::from_secs(5))
///     .max_retries(3)
///     .user_agent("checkout/1.4")
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ClientBuilder {
    base_url: Option<String>,
    auth: Option<Auth>,
    service: Option<Auth>,
    timeout: Duration,
    deadline: Option<Duration>,
    connect_timeout: Duration,
    retries: Retries,
    user_agent: Option<String>,
    headers: Result<HeaderMap, String>,
    http_client: Option<reqwest::Client>,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        Self {
            base_url: None,
            auth: None,
            service: None,
            timeout: TIMEOUT,
            deadline: None,
            connect_timeout: CONNECT_TIMEOUT,
            retries: Retries::default(),
            user_agent: None,
            headers: Ok(HeaderMap::new()),
            http_client: None,
        }
    }

    /// Reads `TOLLKEY_URL`, `TOLLKEY_TOKEN` and `TOLLKEY_SERVICE_KEY`; see [`Client::from_env`].
    pub(crate) fn from_env(
        read: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Self, Error> {
        let variable = |name: &str| match read(name).map(std::ffi::OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) if value.is_empty() => Err(Error::settings(format!("{name} is empty"))),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::settings(format!("{name} is not UTF-8"))),
        };
        let url =
            variable("TOLLKEY_URL")?.ok_or_else(|| Error::settings("TOLLKEY_URL is not set"))?;
        let credential = |name: &str| match variable(name)? {
            Some(value) => match auth::fault(&value) {
                Some(fault) => Err(Error::settings(format!("{name} {fault}"))),
                None => Ok(Some(Secret::new(value))),
            },
            None => Ok(None),
        };
        let service = credential("TOLLKEY_SERVICE_KEY")?.map(Auth::service);
        // Without a token, every call presents the service key. For a call that does not accept service keys, the
        // server's error then explains this, instead of reporting that the credential is missing.
        let auth = credential("TOLLKEY_TOKEN")?
            .map(Auth::bearer)
            .or_else(|| service.clone());
        Ok(Self {
            auth,
            service,
            ..Self::new().base_url(url)
        })
    }

    /// The URL of the server, such as `https://keys.example.com`, with the path that a proxy adds, if any. Required.
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = Some(url.into());
        self
    }

    /// The credential that calls present; none when not set. [`Client::with_auth`] replaces it.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = Some(auth);
        self
    }

    /// The credential that `verify`, `verify_batch`, `introspect` and `subscription` present instead of
    /// [`auth`](Self::auth), for a process that manages keys with a management token and verifies keys with a
    /// service key.
    pub fn service_auth(mut self, auth: Auth) -> Self {
        self.service = Some(auth);
        self
    }

    /// The time limit of one attempt, from before it connects until the whole response is received; 10 s when
    /// not set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The time limit of a whole call, including retries and pauses. Beyond it, the call fails with
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout). Without a deadline, a call can take minutes if the
    /// server sends `Retry-After`.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The time limit for connecting; 3 s when not set. Has no effect with [`http_client`](Self::http_client).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The maximum number of retries of a call; 2 when not set, 0 for none.
    ///
    /// - The client retries if it cannot connect, if the connection ends, if no response arrives in time, and if
    ///   the response is 408, 429, 5xx or 409 `idempotency_in_progress`. After this 409, it retries at least five
    ///   times, unless this maximum is 0.
    /// - If the response to a creation cannot be read, the client retries once, and the server sends its first
    ///   response again. The client does not do this if the caller has set an `idempotency_key`.
    /// - If a call that restores access (`resume`, `enable`, `update`, `set_operating_model`) gets no response on
    ///   an open connection, the client does not retry, because another caller may have ended that access since.
    /// - The client never retries the calls of [`Client::subscription`].
    /// - The client waits for the server's `Retry-After`, up to [`max_retry_after`](Self::max_retry_after).
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.retries.max = retries;
        self
    }

    /// The pause before the first retry, which doubles with each retry, and the longest pause; 0.5 s and 8 s
    /// when not set. Up to half of each pause is random.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.retries.first_pause, self.retries.longest_pause) = (first, longest);
        self
    }

    /// The longest `Retry-After` that the client waits for; 120 s when not set. If the server sends more, the
    /// call fails immediately.
    pub fn max_retry_after(mut self, most: Duration) -> Self {
        self.retries.max_retry_after = most;
        self
    }

    /// The caller's product in `User-Agent`, after the name of this crate: `checkout/1.4`.
    pub fn user_agent(mut self, product: impl Into<String>) -> Self {
        self.user_agent = Some(product.into());
        self
    }

    /// Adds a header to every call, for example for a proxy in front of the server. Credentials for Tollkey belong
    /// in an [`Auth`]. The value is marked as sensitive, so that it is not logged.
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.headers = self.headers.and_then(|mut headers| {
            let name = name.as_ref();
            let parsed = HeaderName::try_from(name)
                .map_err(|_| format!("header {name:?} is not a valid header name"))?;
            if RESERVED.contains(&parsed.as_str()) {
                return Err(format!("header {name:?} is set by the client itself"));
            }
            let mut value = HeaderValue::from_str(value.as_ref()).map_err(|_| {
                format!("header {name:?} has characters that a header value must not contain")
            })?;
            value.set_sensitive(true);
            headers.append(parsed, value);
            Ok(headers)
        });
        self
    }

    /// Uses the caller's own HTTP client, for its proxies, certificates or connection pool.
    ///
    /// - It should not follow redirects, which would send keys to another server. A response from another URL is
    ///   never used.
    /// - Its own settings apply. Enable HTTP/2 keep-alive
    ///   ([`http2_keep_alive_interval`](reqwest::ClientBuilder::http2_keep_alive_interval), also
    ///   [while idle](reqwest::ClientBuilder::http2_keep_alive_while_idle)). Without it, if the peer of a
    ///   connection disappears, each further call on this connection fails, and
    ///   [`Client::with_new_connections`] cannot replace it.
    /// - Blocking calls use it too, instead of separate connections: use it on one runtime only.
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http_client = Some(client);
        self
    }

    /// Builds the client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorKind::Settings`](crate::ErrorKind::Settings):
    /// - a setting is missing or invalid;
    /// - a credential cannot be presented, for instance because it ends with a line break ([`Auth`] has the rules);
    /// - `base_url` is `https://` and this machine has no CA certificates. An `http://` URL needs none.
    pub fn build(self) -> Result<Client, Error> {
        let base_url = self
            .base_url
            .as_deref()
            .ok_or_else(|| Error::settings("base_url is not set"))?;
        let base_url = parse_base_url(base_url).ok_or_else(|| {
            Error::settings(
                "base_url must be http:// or https:// with a host and without credentials, query or fragment",
            )
        })?;
        if base_url.path().ends_with("/api/v1") {
            return Err(Error::settings("base_url must be without /api/v1"));
        }
        if self.timeout.is_zero() {
            return Err(Error::settings("timeout must not be zero"));
        }
        if self.connect_timeout.is_zero() {
            return Err(Error::settings("connect_timeout must not be zero"));
        }
        for (name, auth) in [("auth", &self.auth), ("service_auth", &self.service)] {
            if let Some(fault) = auth.as_ref().and_then(Auth::fault) {
                return Err(Error::settings(format!("{name}: {fault}")));
            }
        }
        let mut headers = self.headers.map_err(Error::settings)?;
        let user_agent = self
            .user_agent
            .map_or_else(|| NAME.to_owned(), |product| format!("{NAME} {product}"));
        let user_agent = HeaderValue::from_str(&user_agent).map_err(|_| {
            Error::settings("user_agent has characters that a header value must not contain")
        })?;
        headers.insert(USER_AGENT, user_agent);
        let connections = match self.http_client {
            Some(client) => Connections::of(client),
            None => {
                let needs_tls = base_url.scheme() == "https";
                Connections::open(HttpSettings {
                    connect_timeout: self.connect_timeout,
                    needs_tls,
                })?
            }
        };
        let shared = Shared::new(base_url, connections, headers);
        Ok(Client {
            shared: Arc::new(shared),
            auth: self.auth,
            service: self.service,
            account: None,
            timeout: self.timeout,
            deadline: self.deadline,
            retries: self.retries,
        })
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("auth", &self.auth)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// Returns the base URL without a trailing slash. Errors never repeat it, because it may contain a password.
fn parse_base_url(text: &str) -> Option<Url> {
    let url = Url::parse(text.trim_end_matches('/')).ok()?;
    let whole = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    whole.then_some(url)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, ffi::OsString};

    use tollkey_core::{Digest, VerifierId};

    use super::*;
    use crate::verification::VerificationRequest;

    /// Settings from these variables.
    fn from_variables(variables: &[(&str, &str)]) -> Result<ClientBuilder, Error> {
        let variables: HashMap<_, _> = variables
            .iter()
            .map(|(name, value)| (*name, OsString::from(value)))
            .collect();
        ClientBuilder::from_env(|name| variables.get(name).cloned())
    }

    /// Returns the credentials that calls and verifications present.
    async fn presented(builder: ClientBuilder) -> (Option<String>, Option<String>) {
        async fn header(auth: Option<&Auth>) -> Option<String> {
            let header = auth?.header().await.unwrap();
            assert!(header.is_sensitive());
            Some(header.to_str().unwrap().to_owned())
        }
        let client = builder.build().unwrap();
        (
            header(client.auth.as_ref()).await,
            header(client.service.as_ref()).await,
        )
    }

    const URL: (&str, &str) = ("TOLLKEY_URL", "https://keys.example.com/eu");
    const TOKEN: (&str, &str) = ("TOLLKEY_TOKEN", "a token");
    const SERVICE_KEY: (&str, &str) = ("TOLLKEY_SERVICE_KEY", "tks_EXAMPLE1");

    #[tokio::test]
    async fn environment_sets_the_url_and_the_credentials() {
        let from = |variables: &[_]| from_variables(variables).unwrap();
        let both = ClientBuilder::new()
            .base_url("http://localhost")
            .service_auth(Auth::service("tks_EXAMPLE1"))
            .auth(Auth::bearer("a token"));
        let (token, key) = (Some("Bearer a token"), Some("Bearer tks_EXAMPLE1"));
        for (builder, expected) in [
            (from(&[URL]), (None, None)),
            (from(&[URL, TOKEN]), (token, None)),
            (from(&[URL, SERVICE_KEY]), (key, key)),
            (from(&[URL, TOKEN, SERVICE_KEY]), (token, key)),
            (both, (token, key)),
        ] {
            let (auth, service) = presented(builder).await;
            assert_eq!((auth.as_deref(), service.as_deref()), expected);
        }
        // `with_auth` replaces both credentials.
        let client = from(&[URL, TOKEN, SERVICE_KEY]).build().unwrap();
        let client = client.with_auth(Auth::bearer("another"));
        assert!(client.service.is_none());
        assert_eq!(client.shared.base_url.as_str(), URL.1);
    }

    #[tokio::test]
    async fn verifications_present_the_service_key() {
        let unavailable = wiremock::ResponseTemplate::new(503);
        let server = wiremock::MockServer::start().await;
        wiremock::Mock::given(wiremock::matchers::any())
            .respond_with(unavailable)
            .mount(&server)
            .await;
        let client = from_variables(&[("TOLLKEY_URL", &server.uri()), TOKEN, SERVICE_KEY])
            .unwrap()
            .max_retries(0)
            .build()
            .unwrap();
        // The responses do not matter here.
        let (key, verifier) = ("ck_test_EXAMPLE1", VerifierId::from_bytes([7; 16]));
        drop(client.verify(key).await);
        drop(client.verify_batch([VerificationRequest::new(key)]).await);
        drop(client.introspect(key).await);
        drop(client.subscription().poll(verifier).await);
        let lookup = client.subscription().lookup(Digest::of_key(key));
        drop(lookup.await);
        drop(client.whoami().await);
        drop(client.applications().list().await);
        drop(client.commerce().api_keys().list().await);
        drop(client.account().api_keys().list().await);
        drop(client.audit_log().list().await);
        drop(client.accounts().get("acme").await);
        drop(client.service_keys().list().await);
        let requests = server.received_requests().await.unwrap();
        let presented: Vec<_> = requests
            .iter()
            .map(|request| request.headers["authorization"].to_str().unwrap())
            .collect();
        assert_eq!(
            presented,
            [&["Bearer tks_EXAMPLE1"; 5][..], &["Bearer a token"; 7]].concat()
        );
    }

    #[test]
    fn missing_or_empty_variable_is_named_in_the_error() {
        let rows: [(&[(&str, &str)], &str); 5] = [
            (&[], "TOLLKEY_URL is not set"),
            (&[TOKEN, SERVICE_KEY], "TOLLKEY_URL is not set"),
            (&[("TOLLKEY_URL", ""), TOKEN], "TOLLKEY_URL is empty"),
            (&[URL, ("TOLLKEY_TOKEN", "")], "TOLLKEY_TOKEN is empty"),
            (
                &[URL, TOKEN, ("TOLLKEY_SERVICE_KEY", "")],
                "TOLLKEY_SERVICE_KEY is empty",
            ),
        ];
        for (variables, expected) in rows {
            assert_eq!(from_variables(variables).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn invalid_credential_in_a_variable_is_rejected_by_name() {
        for (value, fault) in [
            (
                "hunter2\n",
                "ends with a line break; was it read from a file? trim it",
            ),
            (" hunter2", "begins with white space; trim it"),
            ("\"hunter2\"", "is in quotation marks; remove them"),
            ("hunter2\u{7}!", "contains a control character"),
        ] {
            for name in ["TOLLKEY_TOKEN", "TOLLKEY_SERVICE_KEY"] {
                let error = from_variables(&[URL, (name, value)]).unwrap_err();
                assert_eq!(
                    (error.kind(), error.to_string()),
                    (crate::ErrorKind::Settings, format!("{name} {fault}"))
                );
                assert!(!format!("{error:?}").contains("hunter2"));
            }
        }
        // White space around a URL is trimmed.
        assert!(
            from_variables(&[("TOLLKEY_URL", "https://keys.example.com\n"), TOKEN])
                .unwrap()
                .build()
                .is_ok()
        );
    }

    #[cfg(unix)]
    #[test]
    fn variable_that_is_not_utf_8_is_rejected() {
        use std::os::unix::ffi::OsStringExt as _;

        for wrong in ["TOLLKEY_URL", "TOLLKEY_TOKEN", "TOLLKEY_SERVICE_KEY"] {
            let read = |name: &str| {
                Some(if name == wrong {
                    OsString::from_vec(b"hunter2\xff".to_vec())
                } else {
                    "http://localhost".into()
                })
            };
            let error = ClientBuilder::from_env(read).unwrap_err();
            assert_eq!(error.to_string(), format!("{wrong} is not UTF-8"));
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn trailing_slash_of_the_base_url_is_removed() {
        let rows = [
            ("https://keys.example.com", "https://keys.example.com/"),
            ("https://keys.example.com/", "https://keys.example.com/"),
            (
                "https://keys.example.com/eu/",
                "https://keys.example.com/eu",
            ),
            (
                "HTTPS://Keys.Example.COM:443/eu",
                "https://keys.example.com/eu",
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(
                parse_base_url(text).map(String::from).as_deref(),
                Some(expected)
            );
        }
    }
}
