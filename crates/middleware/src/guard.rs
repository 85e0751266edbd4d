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
    Merchant, Rejection, RejectionResponse,
    admission::Verifiers,
    background::Background,
    rejection::{Format, RejectionSettings},
    source::HttpSource,
};

/// How long [`GuardBuilder::connect`] tries.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The longest that it can be told to try, so that a deadline can be computed from it.
const LONGEST_CONNECT_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long one response may take meanwhile,
const RESPONSE_LIMIT: Duration = Duration::from_secs(2);
/// and the pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Authorizes requests. Cheap to clone; clones share one subscription and one cache, which end with the last clone or with
/// [`Guard::shutdown`].
///
/// The subscription and all requests to the server run on a thread of the guard's own, so a guard can be connected in one
/// runtime and used in others, and no blocked worker of the application holds them up.
#[derive(Clone)]
pub struct Guard(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) verifiers: Verifiers,
    pub(crate) policy: Policy,
    background: Background,
}

/// How requests are read and rejected.
pub(crate) struct Policy {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) headers: CredentialHeaders,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) merchant: Merchant,
    pub(crate) route_base: RouteBase,
    pub(crate) rejections: Arc<RejectionSettings>,
    pub(crate) warnings: Warnings,
}

/// What is logged about requests, and how often.
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
    /// Logs, once in 30 s, that a trusted proxy sends something that is not an IP address.
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

/// Why there is no guard. Its text includes the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be built: {0}")]
    Client(Error),
    /// The operating system gives no thread or no random numbers.
    #[error("the guard cannot be started: {0}")]
    System(std::io::Error),
    /// The server rejects the service key.
    #[error("the server rejects the service key: {0}")]
    Rejected(Error),
    /// The response is not that of a Tollkey server that has subscriptions.
    #[error("this is not a Tollkey server with subscriptions: {0}")]
    Incompatible(Error),
    /// The server did not respond within the limit.
    #[error("the server does not respond: {0}")]
    Unreachable(Error),
}

impl Guard {
    /// Subscribes to the server at this URL with a service key (`tks_…`), and returns once keys are authorized from the cache.
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

    /// A guard with other settings.
    pub fn builder() -> GuardBuilder {
        GuardBuilder::default()
    }

    /// Ends the subscription: the last counts of usage are sent, and revocations no longer wait for this process. Call it
    /// when the last request is done; requests that come later are rejected with 503. It takes a lease (3 s) at most.
    /// Without it the same begins when the last clone is dropped, in the background.
    pub async fn shutdown(&self) {
        self.0.background.stop().await;
    }

    /// The state of the verifier: hits, misses, what is left of the lease.
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

    pub(crate) fn policy(&self) -> &Policy {
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
    merchant: Option<Merchant>,
    route_base: Option<String>,
    realm: Option<String>,
    format: Option<Arc<Format>>,
    cache_bytes: Option<usize>,
    max_cached_keys: Option<usize>,
    connect_limit: Option<Duration>,
}

/// IP ranges (CIDR) of proxies, from an array of texts, or a slice or vector of texts or of [`IpNet`]s. An empty list trusts
/// no proxy.
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
        // Not the URL, which is parsed later: a password may be in it.
        f.debug_struct("GuardBuilder")
            .field("realm", &self.realm)
            .finish_non_exhaustive()
    }
}

impl GuardBuilder {
    /// The URL of the server.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// The service key (`tks_…`) to present to the server.
    pub fn service_key(mut self, key: impl Into<Secret>) -> Self {
        self.service_key = Some(key.into());
        self
    }

    /// A client of the server to use in place of URL and service key. It presents the service key. The guard opens connections
    /// of its own, unless the client was built with its own [`http_client`](tollkey_client::ClientBuilder::http_client): that
    /// one must not be used on another runtime, and needs HTTP/2 keep-alive of its own to notice a silent connection.
    pub fn client(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// Scopes besides the built-in ones that routes require: those of the server's `TOLLKEY_SCOPES`.
    pub fn scopes(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scopes = names.into_iter().map(Into::into).collect();
        self
    }

    /// The headers that a key is read from, out of `authorization` (Bearer), `x-api-key` and `x-commerce-api-key`; all three when
    /// not set. No other header is read.
    pub fn credential_headers(
        mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.headers = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The proxies whose entry in `X-Forwarded-For` is trusted, as IP ranges; loopback when not set, none when empty.
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

    /// Where a request names the merchant that it is about; the header `x-merchant-id` when not set.
    pub fn merchant(mut self, merchant: Merchant) -> Self {
        self.merchant = Some(merchant);
        self
    }

    /// What is cut once from the front of a path before it is compared with the routes of scoped and publishable keys:
    /// literal segments, and `{name}` for any one segment, as in `/merchants/{merchant}`. `/api` when not set, nothing for `/`.
    pub fn route_base(mut self, base: impl Into<String>) -> Self {
        self.route_base = Some(base.into());
        self
    }

    /// The realm in the challenge of a 401 (RFC 6750); `tollkey` when not set.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// Formats rejections in the application's own way. The closure gets each response as it would be sent, and changes what it
    /// likes: body, headers, and the status to another error's. Rejections by layers, by `require`, by the extractor and by
    /// [`VerifiedKey::require`](crate::VerifiedKey::require) all go through it; those in gRPC form do not.
    ///
    /// A status below 400 is not used, and `cache-control` stays `no-store`.
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

    /// How many bytes the cached keys, their rate limits and the counts of their usage take at most, as estimated; 256 MiB when
    /// not set, 4 MiB at least. Accounts have fair shares of it; `docs/middleware.md` says how.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// How many keys are cached, within [`cache_bytes`](Self::cache_bytes); a million when not set.
    pub fn max_cached_keys(mut self, keys: usize) -> Self {
        self.max_cached_keys = Some(keys);
        self
    }

    /// How long [`connect`](Self::connect) tries; ten seconds when not set, a year at most.
    pub fn connect_limit(mut self, limit: Duration) -> Self {
        self.connect_limit = Some(limit);
        self
    }

    /// The guard, once the server has responded and keys are authorized from the cache.
    ///
    /// # Errors
    /// [`ConnectError`]: immediately when the server rejects the service key or is not a Tollkey server, and after the limit when
    /// it does not respond.
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
        // Without a lease every request asks the server, which works as well.
        let subscribed = guard.clone();
        let leased = async move {
            while subscribed.stats().lease_left.is_zero() && Instant::now() < deadline {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = AbortOnDropHandle::new(guard.runtime().spawn(leased)).await;
        Ok(guard)
    }

    /// The guard immediately, whether or not the server responds: until it does, requests are rejected with 503.
    ///
    /// # Errors
    /// [`ConnectError::Settings`], [`ConnectError::Client`] and [`ConnectError::System`].
    pub fn start(self) -> Result<Guard, ConnectError> {
        self.prepare()?.start()
    }

    /// Everything a guard is made of, with all settings checked.
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
            // Connections belong to the runtime that opened them.
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
            _ => Err(ConnectError::Settings(
                "set either url and service_key, or client".to_owned(),
            )),
        }
    }

    /// A guard over keys in memory. With `leased` it keeps a lease, as against a server.
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

    /// The scopes that routes can require.
    pub(crate) fn catalogue(&self) -> Result<Catalogue, ConnectError> {
        let mut catalogue = Catalogue::default();
        for name in &self.scopes {
            catalogue
                .add(name, false)
                .map_err(|rule| ConnectError::Settings(format!("scopes: {rule}")))?;
        }
        Ok(catalogue)
    }

    fn policy(self) -> Result<Policy, ConnectError> {
        let setting =
            |name: &str, rule: &dyn fmt::Display| ConnectError::Settings(format!("{name}: {rule}"));
        let catalogue = self.catalogue()?;
        let headers = self
            .headers
            .as_ref()
            .map(|names| CredentialHeaders::parse(names.iter().map(String::as_str)));
        let headers = headers
            .transpose()
            .map_err(|rule| setting("credential_headers", &rule))?
            .unwrap_or_default();
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
        let route_base = self
            .route_base
            .map_or_else(|| Ok(RouteBase::default()), |base| RouteBase::parse(&base));
        Ok(Policy {
            catalogue: Arc::new(catalogue),
            headers,
            trusted_proxies: trusted_proxies.map_err(|rule| setting("trusted_proxies", &rule))?,
            merchant: self
                .merchant
                .unwrap_or_else(|| Merchant::header("x-merchant-id")),
            route_base: route_base.map_err(|rule| setting("route_base", &rule))?,
            rejections: Arc::new(RejectionSettings {
                realm,
                format: self.format,
            }),
            warnings: Warnings::default(),
        })
    }
}

/// Asks the server for a key that does not exist until it responds, and whether it is the right one.
async fn probe(client: Client, deadline: Instant) -> Result<(), ConnectError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let client = client.with_timeout(RESPONSE_LIMIT.min(left));
        let Err(error) = client.subscription().lookup(Digest::of("")).await else {
            return Ok(());
        };
        match error.kind() {
            ErrorKind::Connect | ErrorKind::Interrupted | ErrorKind::Timeout => {}
            ErrorKind::Refused if matches!(error.status(), Some(408 | 429 | 500..)) => {}
            ErrorKind::Refused if error.is_unauthorized() || error.is_forbidden() => {
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

/// A guard that has not begun yet.
struct Prepared {
    client: Client,
    settings: Settings,
    policy: Policy,
    background: Background,
}

impl Prepared {
    fn start(self) -> Result<Guard, ConnectError> {
        let Self {
            client,
            settings,
            policy,
            background,
        } = self;
        let mut id = [0; 16];
        SysRng
            .try_fill_bytes(&mut id)
            .map_err(|error| ConnectError::System(std::io::Error::other(error)))?;
        let source = HttpSource::new(&client, policy.catalogue.clone());
        let verifier = Verifier::subscriber(
            VerifierId::from_bytes(id),
            source,
            Arc::new(SystemClock),
            settings,
        );
        verifier.fetch_on(background.runtime().clone());
        background.subscribe(|stopped| verifier.clone().subscribe(stopped));
        Ok(Guard(Arc::new(Inner {
            verifiers: Verifiers::Server(verifier),
            policy,
            background,
        })))
    }

    /// Runs something on the thread of the guard: the client's connections live there.
    async fn on_background<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let task = AbortOnDropHandle::new(self.background.runtime().spawn(future));
        task.await
            .map_err(|error| ConnectError::System(std::io::Error::other(error)))
    }
}
