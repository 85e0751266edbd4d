//! The client, and the methods that return the resources that it manages.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{Url, header::HeaderMap};

use crate::{
    Auth, ClientBuilder, Error,
    account::Account,
    applications::Applications,
    audit::AuditLog,
    commerce::Commerce,
    connections::Connections,
    operator::{Accounts, ServiceKeys},
    retry::Retries,
    subscription::Subscription,
    url_text::UrlText,
};

/// A client of one server. Clones are cheap and share connections.
///
/// ```no_run
/// use tollkey_client::{Auth, Client, Mode, Scope};
///
/// # async fn example(jwt: String) -> Result<(), tollkey_client::Error> {
/// let tollkey = Client::new("https://keys.example.com")?;
/// let management = tollkey.with_auth(Auth::bearer(jwt));
/// let created = management
///     .commerce()
///     .api_keys()
///     .create("Commerce Server Key")
///     .mode(Mode::Test)
///     .scopes([Scope::LINKS_READ])
///     .await?;
/// println!("{}", created.api_key.expose());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) auth: Option<Auth>,
    /// Presented instead of `auth` by calls that verify keys.
    pub(crate) service: Option<Auth>,
    pub(crate) account: Option<Arc<UrlText>>,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) retries: Retries,
}

/// The state that all clones of a client share.
pub(crate) struct Shared {
    pub(crate) base_url: Url,
    pub(crate) connections: Arc<Connections>,
    pub(crate) headers: HeaderMap,
    #[cfg(feature = "blocking")]
    pub(crate) blocking: std::sync::OnceLock<crate::blocking::Blocking>,
}

impl Shared {
    pub(crate) fn new(base_url: Url, connections: Connections, headers: HeaderMap) -> Self {
        Self {
            base_url,
            connections: Arc::new(connections),
            headers,
            #[cfg(feature = "blocking")]
            blocking: std::sync::OnceLock::new(),
        }
    }
}

impl Client {
    /// Returns a client of the server at this URL with the default settings and no credential: see
    /// [`with_auth`](Self::with_auth).
    ///
    /// ```
    /// # fn main() -> Result<(), tollkey_client::Error> {
    /// let tollkey = tollkey_client::Client::new("https://keys.example.com")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`ClientBuilder::build`]. Nothing is sent yet.
    pub fn new(base_url: impl Into<String>) -> Result<Self, Error> {
        Self::builder().base_url(base_url).build()
    }

    /// Returns a builder for a client with other settings.
    ///
    /// ```
    /// # fn main() -> Result<(), tollkey_client::Error> {
    /// let tollkey = tollkey_client::Client::builder().base_url("https://keys.example.com").max_retries(5).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Returns a client configured by environment variables: the server's URL `TOLLKEY_URL`, the management
    /// token `TOLLKEY_TOKEN` and the service key `TOLLKEY_SERVICE_KEY`. With both credentials, `verify`,
    /// `verify_batch`, `introspect` and `subscription` present the service key and all other calls the token.
    /// With one of them, all calls present that one.
    ///
    /// # Errors
    /// [`ErrorKind::Settings`](crate::ErrorKind::Settings), which names the variable and never repeats its
    /// value: `TOLLKEY_URL` is not set, a variable is empty or not UTF-8, a credential cannot be presented
    /// (it ends with a line break, for instance); and those of [`ClientBuilder::build`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), tollkey_client::Error> {
    /// let tollkey = tollkey_client::Client::from_env()?;
    /// for key in tollkey.commerce().api_keys().list().await? {
    ///     println!("{} {}", key.prefix, key.name);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_env() -> Result<Self, Error> {
        ClientBuilder::from_env(|name| std::env::var_os(name))?.build()
    }

    /// Returns this client with only this credential. Both share connections.
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let management = tollkey.with_auth(tollkey_client::Auth::bearer("a management token"));
    /// let own = management.commerce().api_keys().list().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_auth(&self, auth: Auth) -> Self {
        Self {
            auth: Some(auth),
            service: None,
            ..self.clone()
        }
    }

    /// Returns this client for that account (`?account=`), so that an operator can manage it. It affects
    /// applications, commerce keys, account keys and audit logs; other calls ignore it.
    ///
    /// ```no_run
    /// # use tollkey_client::Client;
    /// # async fn example(operator: Client) -> Result<(), tollkey_client::Error> {
    /// let keys = operator.for_account("acme").commerce().api_keys().list().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn for_account(&self, account: impl Into<String>) -> Self {
        Self {
            account: Some(Arc::new(UrlText::new(account))),
            ..self.clone()
        }
    }

    /// Returns this client with another time limit for each attempt; see [`ClientBuilder::timeout`].
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let client = tollkey.with_timeout(std::time::Duration::from_secs(30));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Returns this client with a time limit for a whole call; see [`ClientBuilder::deadline`].
    ///
    /// ```no_run
    /// # async fn example(service: tollkey_client::Client, presented: &str) -> Result<(), tollkey_client::Error> {
    /// let client = service.with_deadline(std::time::Duration::from_millis(800));
    /// let verdict = client.verify(presented).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self.clone()
        }
    }

    /// Returns this client with another maximum number of retries; see [`ClientBuilder::max_retries`].
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client, presented: &str) -> Result<(), tollkey_client::Error> {
    /// let verdict = tollkey.with_max_retries(0).verify(presented).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_max_retries(&self, retries: u32) -> Self {
        Self {
            retries: Retries {
                max: retries,
                ..self.retries
            },
            ..self.clone()
        }
    }

    /// Returns a client with the same settings and a separate, empty connection pool, also for blocking
    /// calls. For a caller that suspects that the connections of this client are dead, or that needs
    /// connections on another runtime.
    ///
    /// Calls recover without it: a client replaces silent connections itself. The pool of the caller's own HTTP client
    /// ([`ClientBuilder::http_client`]) cannot be replaced: then this returns a clone, which shares all connections.
    ///
    /// ```
    /// # fn main() -> Result<(), tollkey_client::Error> {
    /// let tollkey = tollkey_client::Client::new("https://keys.example.com")?;
    /// let separate = tollkey.with_new_connections()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Settings`](crate::ErrorKind::Settings) when the HTTP client cannot be built, as in
    /// [`ClientBuilder::build`]: the system's CA certificates are read again.
    pub fn with_new_connections(&self) -> Result<Self, Error> {
        let Some(connections) = self.shared.connections.separate() else {
            return Ok(self.clone());
        };
        let shared = Shared::new(
            self.shared.base_url.clone(),
            connections?,
            self.shared.headers.clone(),
        );
        Ok(Self {
            shared: Arc::new(shared),
            ..self.clone()
        })
    }

    /// The applications and their keys (`ks_…`).
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let applications = tollkey.applications(); // owned: keep it or move it into a task
    /// let shop = applications.create("Production Web Store").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn applications(&self) -> Applications {
        Applications(self.clone())
    }

    /// Commerce keys (`ck_…`).
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let keys = tollkey.commerce().api_keys().list().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn commerce(&self) -> Commerce {
        Commerce(self.clone())
    }

    /// The account surface: secret and publishable keys (`sk_…`, `pk_…`), and its audit log.
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let keys = tollkey.account().api_keys().list().await?;
    /// let entries = tollkey.account().audit_log().list().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn account(&self) -> Account {
        Account(self.clone())
    }

    /// The audit log of the account.
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let entries = tollkey.audit_log().list().limit(10).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn audit_log(&self) -> AuditLog {
        AuditLog(self.clone())
    }

    /// Accounts, for operators.
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let acme = tollkey.accounts().get("acme").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        Accounts(self.clone())
    }

    /// Service keys (`tks_…`), for operators.
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let gateway = tollkey.service_keys().create("checkout gateway").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn service_keys(&self) -> ServiceKeys {
        ServiceKeys(self.clone())
    }

    /// The subscription of processes that cache keys and verify them locally.
    ///
    /// ```no_run
    /// # async fn example(tollkey: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let me = "0f1e2d3c4b5a69788796a5b4c3d2e1f0".parse().expect("random hexadecimal digits");
    /// let response = tollkey.subscription().poll(me).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn subscription(&self) -> Subscription {
        Subscription(self.clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.shared.base_url.as_str())
            .field("auth", &self.auth)
            .field("account", &self.account)
            .field("timeout", &self.timeout)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
