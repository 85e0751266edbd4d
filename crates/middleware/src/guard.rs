//! The connection to the server, and the settings of a guard.

use std::{
    fmt,
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rand::{TryRng as _, rngs::SysRng};
use tokio::{runtime::Handle, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use tollkey_client::{Auth, Client, Error, ErrorKind, Secret};
use tollkey_core::{
    Catalogue, Digest, RouteBase, VerifierId, credential::CredentialHeaders, network::parse_network,
};
use tollkey_verifier::{LogLimit, Settings, Stats, SystemClock, Verifier};

use crate::{
    MerchantSource, Rejection, RejectionResponse,
    admission::Verifiers,
    background::Background,
    rejection::{Format, RejectionSettings},
    source::HttpSource,
};

/// The default time limit of [`GuardBuilder::connect`].
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The longest time limit, so that the deadline does not overflow.
const LONGEST_CONNECT_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// The time limit for one response while connecting.
const RESPONSE_LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// Authorizes requests. Cheap to clone; clones share one subscription and one cache, which end with the last
/// clone or with [`Guard::shutdown`].
///
/// The subscription and all requests to the server run on a separate thread. A guard can be connected in one
/// runtime and used in others, and a blocked worker of the application does not delay it.
#[derive(Clone)]
pub struct Guard(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) verifiers: Verifiers,
    pub(crate) policy: GuardPolicy,
    background: Background,
}

/// How requests are read and rejected.
pub(crate) struct GuardPolicy {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) headers: CredentialHeaders,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) merchant: MerchantSource,
    pub(crate) route_base: RouteBase,
    pub(crate) rejections: Arc<RejectionSettings>,
    pub(crate) warnings: Warnings,
}

pub(crate) struct Warnings {
    started: Instant,
    unreadable_hop: LogLimit,
    no_peer: Once,
}

impl Default for Warnings {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            unreadable_hop: LogLimit::default(),
            no_peer: Once::new(),
        }
    }
}

impl Warnings {
    /// Logs, at most once in 30 s, that a trusted proxy sends a value that is not an IP address.
    pub(crate) fn unreadable_hop(&self) {
        if self.unreadable_hop.allows(self.started.elapsed()) {
            tracing::warn!(
                "a trusted proxy sends X-Forwarded-For with a hop that is not an IP address; the request is rejected"
            );
        }
    }

    /// Logs, once per guard, that requests have no peer address.
    pub(crate) fn no_peer(&self) {
        self.no_peer.call_once(|| {
            tracing::warn!(
                "requests have no peer address, so the client address is unknown and keys with an IP allowlist are \
                 rejected; with axum, serve `into_make_service_with_connect_info::<SocketAddr>()`"
            );
        });
    }
}

/// The error of [`Guard::connect`] and [`GuardBuilder`]. Its message includes the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting is invalid.
    #[error("{0}")]
    Settings(String),
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be built: {0}")]
    Client(Error),
    /// The operating system cannot create a thread or random numbers.
    #[error("the guard cannot be started: {0}")]
    System(std::io::Error),
    /// The server rejects the service key.
    #[error("the server rejects the service key: {0}")]
    Rejected(Error),
    /// The response is not from a Tollkey server with subscriptions.
    #[error("this is not a Tollkey server with subscriptions: {0}")]
    Incompatible(Error),
    /// The server did not respond within the limit.
    #[error("the server does not respond: {0}")]
    Unreachable(Error),
}

impl Guard {
    /// Subscribes to the server at this URL with a service key (`tks_…`). Returns once cached keys can be
    /// used, or after ten seconds: without a lease, the guard looks up every key at the server.
    ///
    /// ```no_run
    /// # async fn example(service_key: String) -> Result<(), tollkey_middleware::ConnectError> {
    /// let guard = tollkey_middleware::Guard::connect("https://keys.example.com", service_key).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ConnectError`], after ten seconds at the latest.
    pub async fn connect(
        url: impl Into<String>,
        service_key: impl Into<Secret>,
    ) -> Result<Self, ConnectError> {
        Self::builder()
            .url(url)
            .service_key(service_key)
            .connect()
            .await
    }

    /// Returns a builder for a guard with other settings.
    pub fn builder() -> GuardBuilder {
        GuardBuilder::default()
    }

    /// Ends the subscription and sends the remaining usage. Revocations then no longer wait for this process.
    /// Call it when the last request is done; later requests are rejected with 503. It takes at most a lease
    /// (3 s). Without this call, the subscription ends in the background when the last clone is dropped.
    pub async fn shutdown(&self) {
        self.0.background.stop().await;
    }

    /// Returns the state of the verifier, such as hits, misses and the remaining lease.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.verifiers().stats()
    }

    pub(crate) fn verifiers(&self) -> &Verifiers {
        &self.0.verifiers
    }

    pub(crate) fn runtime(&self) -> &Handle {
        self.0.background.runtime()
    }

    pub(crate) fn policy(&self) -> &GuardPolicy {
        &self.0.policy
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("realm", &self.0.policy.rejections.realm)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`Guard`], from [`Guard::builder`].
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until `connect` or `start` is called"]
pub struct GuardBuilder {
    url: Option<String>,
    service_key: Option<Secret>,
    client: Option<Client>,
    scopes: Vec<String>,
    headers: Option<Vec<String>>,
    trusted_proxies: Option<TrustedProxies>,
    merchant: Option<MerchantSource>,
    route_base: Option<String>,
    realm: Option<String>,
    format: Option<Arc<Format>>,
    cache_bytes: Option<usize>,
    max_cached_keys: Option<usize>,
    connect_limit: Option<Duration>,
}

/// The IP ranges (CIDR) of proxies, from an array of strings, or from a slice or vector of strings or
/// [`IpNet`]s. An empty list trusts no proxy.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Vec<String>);

impl<const N: usize> From<[&str; N]> for TrustedProxies {
    fn from(ranges: [&str; N]) -> Self {
        Self(ranges.map(str::to_owned).into())
    }
}

impl<T: ToString> From<&[T]> for TrustedProxies {
    fn from(ranges: &[T]) -> Self {
        Self(ranges.iter().map(ToString::to_string).collect())
    }
}

impl<T: ToString> From<&Vec<T>> for TrustedProxies {
    fn from(ranges: &Vec<T>) -> Self {
        ranges.as_slice().into()
    }
}

impl<T: ToString> From<Vec<T>> for TrustedProxies {
    fn from(ranges: Vec<T>) -> Self {
        ranges.as_slice().into()
    }
}

impl fmt::Debug for GuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which may contain a password.
        f.debug_struct("GuardBuilder")
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

impl GuardBuilder {
    /// Sets the URL of the server.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets the service key (`tks_…`) for requests to the server.
    pub fn service_key(mut self, key: impl Into<Secret>) -> Self {
        self.service_key = Some(key.into());
        self
    }

    /// Sets a client with a service key, instead of the URL and the service key. The guard opens new
    /// connections, unless the client was built with an
    /// [`http_client`](tollkey_client::ClientBuilder::http_client). Such a client must not be used on another
    /// runtime, and needs HTTP/2 keep-alive to detect a silent connection.
    pub fn client(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// Sets the scopes that routes may require in addition to the built-in ones: those of the server's
    /// `TOLLKEY_SCOPES`.
    pub fn scopes(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scopes = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the headers from which a key is read: `authorization` (Bearer), `x-api-key` and
    /// `x-commerce-api-key`, or some of them. The default is all three. No other header can be used.
    pub fn credential_headers(
        mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.headers = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the IP ranges of the proxies whose entries in `X-Forwarded-For` are trusted. The default is
    /// loopback; an empty list trusts no proxy.
    ///
    /// ```
    /// # use tollkey_middleware::Guard;
    /// let behind_a_proxy = Guard::builder().trusted_proxies(["10.0.0.0/8", "fd00::/8"]);
    /// let without_proxies = Guard::builder().trusted_proxies([]);
    /// ```
    pub fn trusted_proxies(mut self, ranges: impl Into<TrustedProxies>) -> Self {
        self.trusted_proxies = Some(ranges.into());
        self
    }

    /// Sets how the merchant of a request is determined. The default is the header `x-merchant-id`.
    pub fn merchant(mut self, merchant: MerchantSource) -> Self {
        self.merchant = Some(merchant);
        self
    }

    /// Sets the prefix that is removed once from a path before it is compared with the routes of scoped and
    /// publishable keys: literal segments, and `{name}` for any segment, as in `/merchants/{merchant}`. The
    /// default is `/api`; `/` removes nothing.
    pub fn route_base(mut self, base: impl Into<String>) -> Self {
        self.route_base = Some(base.into());
        self
    }

    /// Sets the realm in challenges (`WWW-Authenticate`, RFC 6750). The default is `tollkey`.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// Sets a closure that formats rejections. It gets each response before it is sent, and can change the
    /// body, the headers and the status, but only to another error status. It is called for rejections by
    /// layers, by `require`, by the extractor and by [`VerifiedKey::require`](crate::VerifiedKey::require),
    /// but not for rejections in gRPC form.
    ///
    /// A status outside of 400 to 599 is ignored, and `cache-control` stays `no-store`.
    ///
    /// ```
    /// # use tollkey_middleware::Guard;
    /// let builder = Guard::builder().on_rejection(|rejection, response| {
    ///     response.set_header("content-type", "application/json");
    ///     response.body = format!(r#"{{"error":{{"code":"{}"}}}}"#, rejection.code());
    /// });
    /// ```
    pub fn on_rejection(
        mut self,
        format: impl Fn(&Rejection, &mut RejectionResponse) + Send + Sync + 'static,
    ) -> Self {
        self.format = Some(Arc::new(format));
        self
    }

    /// Sets the maximum estimated bytes of cached keys, rate limits and usage counts, at least 4 MiB. The
    /// default is 256 MiB. Accounts have fair shares; see `docs/middleware.md`.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// Sets the maximum number of cached keys, within [`cache_bytes`](Self::cache_bytes). The default is a million.
    pub fn max_cached_keys(mut self, keys: usize) -> Self {
        self.max_cached_keys = Some(keys);
        self
    }

    /// Sets the time limit of [`connect`](Self::connect), at most a year. The default is ten seconds.
    pub fn connect_limit(mut self, limit: Duration) -> Self {
        self.connect_limit = Some(limit);
        self
    }

    /// Connects to the server. Returns the guard once cached keys can be used, or after the time limit:
    /// without a lease, the guard looks up every key at the server.
    ///
    /// # Errors
    /// [`ConnectError`]: immediately if the server rejects the service key or is not a Tollkey server, and after
    /// the time limit if it does not respond.
    pub async fn connect(self) -> Result<Guard, ConnectError> {
        let limit = self
            .connect_limit
            .unwrap_or(CONNECT_LIMIT)
            .min(LONGEST_CONNECT_LIMIT);
        let deadline = Instant::now() + limit;
        let prepared = self.prepare()?;
        prepared
            .on_background(probe(prepared.client.clone(), deadline))
            .await??;
        let guard = prepared.start()?;
        // Without a lease at the deadline, the guard still works: it looks up every key at the server.
        let subscribed = guard.clone();
        let leased = async move {
            while subscribed.stats().lease_left.is_zero() && Instant::now() < deadline {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = AbortOnDropHandle::new(guard.runtime().spawn(leased)).await;
        Ok(guard)
    }

    /// Returns the guard immediately. Until the server responds, requests are rejected with 503.
    ///
    /// # Errors
    /// [`ConnectError::Settings`], [`ConnectError::Client`] and [`ConnectError::System`].
    pub fn start(self) -> Result<Guard, ConnectError> {
        self.prepare()?.start()
    }

    /// Validates all settings, and creates the parts of the guard.
    fn prepare(self) -> Result<Prepared, ConnectError> {
        let client = self.built_client()?;
        let defaults = Settings::default();
        let settings = Settings {
            max_entries: self.max_cached_keys.unwrap_or(defaults.max_entries),
            max_bytes: self.cache_bytes.unwrap_or(defaults.max_bytes),
            ..defaults
        };
        if settings.max_bytes < Settings::MIN_BYTES {
            return Err(ConnectError::Settings(format!(
                "cache_bytes: must be at least {} (4 MiB)",
                Settings::MIN_BYTES
            )));
        }
        let policy = self.policy()?;
        Ok(Prepared {
            client,
            settings,
            policy,
            background: Background::start().map_err(ConnectError::System)?,
        })
    }

    fn built_client(&self) -> Result<Client, ConnectError> {
        match (&self.client, &self.url, &self.service_key) {
            // Connections cannot be shared with another runtime.
            (Some(client), None, None) => {
                client.with_new_connections().map_err(ConnectError::Client)
            }
            (None, Some(url), Some(key)) => {
                let client = Client::builder()
                    .base_url(url)
                    .auth(Auth::service(key))
                    .build();
                client.map_err(ConnectError::Client)
            }
            _ => {
                let rule = "set either url and service_key, or client";
                Err(ConnectError::Settings(rule.to_owned()))
            }
        }
    }

    /// Returns a guard with keys in memory. With `leased`, it keeps a lease, as with a server.
    #[cfg(feature = "test-util")]
    pub(crate) fn over(
        self,
        verifier: Verifier<tollkey_verifier::testing::MemorySource>,
        leased: bool,
    ) -> Result<Guard, ConnectError> {
        let policy = self.policy()?;
        let background = Background::start().map_err(ConnectError::System)?;
        verifier.fetch_on(background.runtime().clone());
        if leased {
            background.subscribe(|stopped| verifier.clone().run(stopped));
        }
        Ok(Guard(Arc::new(Inner {
            verifiers: Verifiers::Memory(verifier),
            policy,
            background,
        })))
    }

    pub(crate) fn catalogue(&self) -> Result<Catalogue, ConnectError> {
        let mut catalogue = Catalogue::default();
        for name in &self.scopes {
            catalogue
                .add(name, false)
                .map_err(|rule| ConnectError::Settings(format!("scopes: {rule}")))?;
        }
        Ok(catalogue)
    }

    fn policy(self) -> Result<GuardPolicy, ConnectError> {
        let setting =
            |name: &str, rule: &dyn fmt::Display| ConnectError::Settings(format!("{name}: {rule}"));
        let catalogue = self.catalogue()?;
        let headers = match &self.headers {
            Some(names) => CredentialHeaders::parse(names.iter().map(String::as_str))
                .map_err(|rule| setting("credential_headers", &rule))?,
            None => CredentialHeaders::default(),
        };
        let trusted = self
            .trusted_proxies
            .unwrap_or_else(|| ["127.0.0.0/8", "::1/128"].into());
        let trusted_proxies = trusted
            .0
            .iter()
            .map(|range| parse_network(range))
            .collect::<Result<_, _>>();
        let realm = self
            .realm
            .unwrap_or_else(|| RejectionSettings::default().realm);
        if !realm
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
        {
            return Err(setting(
                "realm",
                &"must be printable ASCII without quote and backslash",
            ));
        }
        let route_base = match &self.route_base {
            Some(base) => RouteBase::parse(base).map_err(|rule| setting("route_base", &rule))?,
            None => RouteBase::default(),
        };
        Ok(GuardPolicy {
            catalogue: Arc::new(catalogue),
            headers,
            trusted_proxies: trusted_proxies.map_err(|rule| setting("trusted_proxies", &rule))?,
            merchant: self
                .merchant
                .unwrap_or_else(|| MerchantSource::header("x-merchant-id")),
            route_base,
            rejections: Arc::new(RejectionSettings {
                realm,
                format: self.format,
            }),
            warnings: Warnings::default(),
        })
    }
}

/// Looks up a key that does not exist until the server responds, and checks that it is a Tollkey server.
async fn probe(client: Client, deadline: Instant) -> Result<(), ConnectError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let client = client.with_timeout(RESPONSE_LIMIT.min(left));
        let Err(error) = client.subscription().lookup(Digest::of_key("")).await else {
            return Ok(());
        };
        match error.kind() {
            ErrorKind::Connect | ErrorKind::Interrupted | ErrorKind::Timeout => {}
            ErrorKind::Rejected if matches!(error.status(), Some(408 | 429 | 500..)) => {}
            ErrorKind::Rejected if error.is_unauthorized() || error.is_forbidden() => {
                return Err(ConnectError::Rejected(error));
            }
            ErrorKind::Argument | ErrorKind::Auth => return Err(ConnectError::Client(error)),
            _ => return Err(ConnectError::Incompatible(error)),
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(ConnectError::Unreachable(error));
        }
        sleep(PAUSE).await;
    }
}

struct Prepared {
    client: Client,
    settings: Settings,
    policy: GuardPolicy,
    background: Background,
}

impl Prepared {
    fn start(self) -> Result<Guard, ConnectError> {
        let mut id = [0; 16];
        SysRng
            .try_fill_bytes(&mut id)
            .map_err(|error| ConnectError::System(std::io::Error::other(error)))?;
        let (id, clock) = (VerifierId::from_bytes(id), Arc::new(SystemClock));
        let source = HttpSource::new(&self.client, self.policy.catalogue.clone());
        let verifier = Verifier::subscriber(id, source, clock, self.settings);
        verifier.fetch_on(self.background.runtime().clone());
        self.background
            .subscribe(|stopped| verifier.clone().subscribe(stopped));
        Ok(Guard(Arc::new(Inner {
            verifiers: Verifiers::Server(verifier),
            policy: self.policy,
            background: self.background,
        })))
    }

    /// Runs a future on the thread of the guard, which has the client's connections.
    async fn on_background<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let task = AbortOnDropHandle::new(self.background.runtime().spawn(future));
        task.await
            .map_err(|error| ConnectError::System(std::io::Error::other(error)))
    }
}
