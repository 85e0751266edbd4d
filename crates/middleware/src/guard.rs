//! The connection to the server, and what a guard is set to.

use std::{fmt, sync::Arc, time::Duration};

use ipnet::IpNet;
use rand::{TryRng as _, rngs::SysRng};
use tokio::{
    sync::{Mutex, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tollkey_client::{Auth, Client, Error, ErrorKind, Secret};
use tollkey_core::{Catalogue, Digest, VerifierId, credential, network::parse_network};
use tollkey_verifier::{Settings, Stats, SystemClock, Verifier, http::HttpSource};

use crate::{Merchant, judge::Verifiers};

/// How long [`GuardBuilder::connect`] tries.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long one answer may take meanwhile,
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// and the pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Judges requests. Cheap to clone; clones share one subscription and one memory, which end with the last clone or with
/// [`Guard::shutdown`].
#[derive(Clone)]
pub struct Guard(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) verifiers: Verifiers,
    pub(crate) policy: Policy,
    subscription: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

/// How requests are read.
pub(crate) struct Policy {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) headers: Vec<&'static str>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) merchant: Merchant,
    pub(crate) route_base: String,
    pub(crate) realm: Arc<str>,
}

/// A guard cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The HTTP client cannot be built.
    #[error("the client cannot be built")]
    Client(#[source] Error),
    /// The server refuses the service key.
    #[error("the server refuses the service key")]
    Refused(#[source] Error),
    /// What answers is no Tollkey, or one without subscriptions.
    #[error("the answer is not that of a Tollkey with subscriptions")]
    Incompatible(#[source] Error),
    /// The server did not answer, for as long as was waited.
    #[error("the server does not answer")]
    Unreachable(#[source] Error),
}

impl Guard {
    /// Subscribes to the server at this address with a service key (`tks_…`), and returns once keys are answered from memory.
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
    pub async fn connect(url: impl Into<String>, service_key: impl Into<Secret>) -> Result<Self, ConnectError> {
        Self::builder().url(url).service_key(service_key).connect().await
    }

    /// A guard with settings of one's own.
    pub fn builder() -> GuardBuilder {
        GuardBuilder::default()
    }

    /// Ends the subscription: nothing is answered from memory any more, what was counted is told, and revocations do not
    /// wait for this process. To be called when the last request is done. Without it the same begins when the last
    /// clone is dropped, and nobody waits for it.
    pub async fn shutdown(&self) {
        let Some((stop, task)) = self.0.subscription.lock().await.take() else { return };
        drop(stop);
        if let Err(error) = task.await {
            tracing::error!(%error, "the subscription ended badly");
        }
    }

    /// The state of the verifier: hits, misses, what is left of the lease.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.verifiers().stats()
    }

    pub(crate) fn verifiers(&self) -> &Verifiers {
        &self.0.verifiers
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.0.policy
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("realm", &self.0.policy.realm).finish_non_exhaustive()
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
    trusted_proxies: Option<Vec<String>>,
    merchant: Option<Merchant>,
    route_base: Option<String>,
    realm: Option<String>,
    max_remembered: Option<usize>,
    connect_limit: Option<Duration>,
}

impl fmt::Debug for GuardBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL, which is read later: a password may stand in it.
        f.debug_struct("GuardBuilder").field("realm", &self.realm).finish_non_exhaustive()
    }
}

impl GuardBuilder {
    /// Where the server is.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// The service key (`tks_…`) to ask with.
    pub fn service_key(mut self, key: impl Into<Secret>) -> Self {
        self.service_key = Some(key.into());
        self
    }

    /// A client of one's own to ask with, in the place of URL and service key.
    pub fn client(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// Scopes besides the built-in ones that routes require: those the server is set to (`TOLLKEY_SCOPES`).
    pub fn scopes(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.scopes = names.into_iter().map(Into::into).collect();
        self
    }

    /// The headers a key is read from, out of `authorization` (Bearer), `x-api-key` and `x-commerce-api-key`; all three when
    /// not set. Others are not looked at.
    pub fn credential_headers(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.headers = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// The proxies whose entry in `X-Forwarded-For` is believed, as networks; loopback when not set.
    pub fn trusted_proxies(mut self, networks: impl IntoIterator<Item = impl ToString>) -> Self {
        self.trusted_proxies = Some(networks.into_iter().map(|network| network.to_string()).collect());
        self
    }

    /// Where the merchant stands that a request is about; the header `x-merchant-id` when not set.
    pub fn merchant(mut self, merchant: Merchant) -> Self {
        self.merchant = Some(merchant);
        self
    }

    /// What is cut once from the front of a path before it is compared with the routes of scoped and publishable keys;
    /// `/api` when not set, nothing when empty.
    pub fn route_base(mut self, base: impl Into<String>) -> Self {
        self.route_base = Some(base.into());
        self
    }

    /// What the challenge of a 401 calls what is protected; `tollkey` when not set.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// How many keys are remembered; a million when not set.
    pub fn max_remembered(mut self, keys: usize) -> Self {
        self.max_remembered = Some(keys);
        self
    }

    /// How long [`connect`](Self::connect) tries; ten seconds when not set.
    pub fn connect_limit(mut self, limit: Duration) -> Self {
        self.connect_limit = Some(limit);
        self
    }

    /// The guard, once the server has answered and keys are answered from memory.
    ///
    /// # Errors
    /// [`ConnectError`], at once when the server refuses the service key or is none of ours, and after the limit when it does not
    /// answer.
    pub async fn connect(self) -> Result<Guard, ConnectError> {
        let deadline = Instant::now() + self.connect_limit.unwrap_or(CONNECT_LIMIT);
        let prepared = self.prepare()?;
        let probe = || {
            let left = deadline.saturating_duration_since(Instant::now());
            prepared.client.with_timeout(ANSWER_LIMIT.min(left)).subscription().lookup(Digest::of(""))
        };
        while let Err(error) = probe().await {
            match error.kind() {
                ErrorKind::Connect | ErrorKind::Interrupted | ErrorKind::Timeout => {}
                ErrorKind::Refused if matches!(error.status(), Some(408 | 429 | 500..)) => {}
                ErrorKind::Refused if error.is_unauthorized() || error.is_forbidden() => {
                    return Err(ConnectError::Refused(error));
                }
                ErrorKind::Argument | ErrorKind::Auth => return Err(ConnectError::Client(error)),
                _ => return Err(ConnectError::Incompatible(error)),
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(ConnectError::Unreachable(error));
            }
            sleep(PAUSE).await;
        }
        let guard = prepared.start()?;
        // Without a lease every request asks the server, which works as well.
        let _ = timeout_at(deadline, async {
            while guard.stats().lease_left.is_zero() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Ok(guard)
    }

    /// The guard at once, whether or not the server is there: until it is, requests are refused with 503.
    ///
    /// # Errors
    /// [`ConnectError::Settings`] and [`ConnectError::Client`].
    ///
    /// # Panics
    /// Outside of a tokio runtime, which the subscription runs on.
    pub fn start(self) -> Result<Guard, ConnectError> {
        self.prepare()?.start()
    }

    /// What is needed of the settings, all of them looked at.
    fn prepare(self) -> Result<Prepared, ConnectError> {
        let client = self.built_client()?;
        let max_entries = self.max_remembered.unwrap_or(Settings::default().max_entries);
        Ok(Prepared { client, max_entries, policy: self.policy()? })
    }

    fn built_client(&self) -> Result<Client, ConnectError> {
        match (&self.client, &self.url, &self.service_key) {
            (Some(client), None, None) => Ok(client.clone()),
            (None, Some(url), Some(key)) => {
                let client = Client::new(url).map_err(ConnectError::Client)?;
                Ok(client.with_auth(Auth::service(key)))
            }
            _ => Err(ConnectError::Settings("set either url and service_key, or client".to_owned())),
        }
    }

    /// A guard whose keys are in memory. With `remembering` it keeps a lease, as against a server.
    #[cfg(feature = "test-util")]
    pub(crate) fn over(
        self,
        verifier: Verifier<tollkey_verifier::testing::MemorySource>,
        remembering: bool,
    ) -> Result<Guard, ConnectError> {
        let policy = self.policy()?;
        let subscription = remembering.then(|| {
            let (stop, stopped) = oneshot::channel();
            let run = verifier.clone().run(async {
                let _ = stopped.await;
            });
            (stop, tokio::spawn(run))
        });
        let (verifiers, subscription) = (Verifiers::Memory(verifier), Mutex::new(subscription));
        Ok(Guard(Arc::new(Inner { verifiers, policy, subscription })))
    }

    /// The scopes that routes can require.
    pub(crate) fn catalogue(&self) -> Result<Catalogue, ConnectError> {
        let mut catalogue = Catalogue::default();
        for name in &self.scopes {
            catalogue.add(name, false).map_err(|rule| ConnectError::Settings(format!("scopes: {rule}")))?;
        }
        Ok(catalogue)
    }

    fn policy(self) -> Result<Policy, ConnectError> {
        let setting = |name: &str, rule: &dyn fmt::Display| ConnectError::Settings(format!("{name}: {rule}"));
        let catalogue = self.catalogue()?;
        let named = |name: &String| credential::HEADERS.into_iter().find(|header| header.eq_ignore_ascii_case(name));
        let headers = match &self.headers {
            None => Some(credential::HEADERS.to_vec()),
            Some(names) => names.iter().map(named).collect(),
        };
        let headers = headers.filter(|headers: &Vec<&str>| !headers.is_empty()).ok_or_else(|| {
            setting("credential_headers", &format!("must be some of {}", credential::HEADERS.join(", ")))
        })?;
        let loopback = || vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()];
        let trusted = self.trusted_proxies.unwrap_or_else(loopback);
        let trusted_proxies = trusted.iter().map(|network| parse_network(network)).collect::<Result<_, _>>();
        let realm = self.realm.unwrap_or_else(|| "tollkey".to_owned());
        if !realm.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
            return Err(setting("realm", &"must be printable ASCII without quote and backslash"));
        }
        let route_base = self.route_base.unwrap_or_else(|| "/api".to_owned());
        Ok(Policy {
            catalogue: Arc::new(catalogue),
            headers,
            trusted_proxies: trusted_proxies.map_err(|rule| setting("trusted_proxies", &rule))?,
            merchant: self.merchant.unwrap_or_else(|| Merchant::header("x-merchant-id")),
            route_base: route_base.trim_end_matches('/').to_owned(),
            realm: realm.into(),
        })
    }
}

/// A guard that nothing is wrong with so far.
struct Prepared {
    client: Client,
    max_entries: usize,
    policy: Policy,
}

impl Prepared {
    fn start(self) -> Result<Guard, ConnectError> {
        let Self { client, max_entries, policy } = self;
        let mut id = [0; 16];
        SysRng.try_fill_bytes(&mut id).map_err(|error| ConnectError::Settings(format!("no randomness: {error}")))?;
        let source = HttpSource::new(&client, policy.catalogue.clone());
        let settings = Settings { max_entries, ..Settings::default() };
        let verifier = Verifier::subscriber(VerifierId::from_bytes(id), source, Arc::new(SystemClock), settings);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(verifier.clone().subscribe(async {
            // Ends when the sender does.
            let _ = stopped.await;
        }));
        let subscription = Mutex::new(Some((stop, task)));
        Ok(Guard(Arc::new(Inner { verifiers: Verifiers::Server(verifier), policy, subscription })))
    }
}
