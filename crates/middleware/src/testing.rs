//! A guard with keys that are declared in code, for tests of the API that it protects. It needs no server and
//! no network.
//!
//! ```
//! # async fn example() -> Result<(), tollkey_middleware::ConnectError> {
//! use tollkey_middleware::{Family, Mode, Scope, testing::TestKeys};
//!
//! let keys = TestKeys::new();
//! let key = keys.add(Family::Commerce, Mode::Test, |key| key.restrictions.scopes = vec![Scope::LINKS_READ]);
//! let guard = keys.guard().await?;
//! // … requests with `Authorization: Bearer {key}` may now call routes that require `links:read`
//! keys.revoke(&key);
//! # Ok(())
//! # }
//! ```

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::OwnedRwLockWriteGuard;
use tollkey_core::{
    ApiKey, Catalogue, Changed, Clock, Family, KeyContext, Mode, OperatingModel, VerifierId,
};
use tollkey_verifier::{
    Settings, SystemClock, Verifier,
    testing::{MemorySource, record},
};

use crate::{ConnectError, Guard, GuardBuilder};

/// Keys declared in code. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct TestKeys {
    source: MemorySource,
    count: Arc<AtomicU64>,
    /// The scopes of the last guard.
    catalogue: Arc<Mutex<Catalogue>>,
}

/// A paused server: see [`TestKeys::pause`].
#[derive(Debug)]
pub struct Paused {
    _held: OwnedRwLockWriteGuard<()>,
}

impl TestKeys {
    /// Creates an empty set of keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a key of account `acme` without restrictions and with the scope `commerce`, which `edit` can
    /// change. Returns the full key.
    pub fn add(&self, family: Family, mode: Mode, edit: impl FnOnce(&mut ApiKey)) -> String {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let text = format!("{}_{}_EXAMPLE{number:0>25}", family.prefix(), mode.as_str());
        let mut key = record(&text).key;
        edit(&mut key);
        self.source.put(&text, self.record(key));
        text
    }

    fn record(&self, key: ApiKey) -> KeyContext {
        KeyContext::new(key, None, OperatingModel::Ecosystem, &self.catalogue())
    }

    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        let catalogue = self.catalogue.lock();
        catalogue.unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a key. Applies to every request that starts afterwards.
    pub fn change(&self, text: &str, edit: impl FnOnce(&mut ApiKey)) {
        self.source.change(text, |record| {
            edit(&mut record.key);
            *record = self.record(record.key.clone());
        });
    }

    /// Revokes a key. Applies to every request that starts afterwards.
    pub fn revoke(&self, text: &str) {
        self.change(text, |key| {
            let _ = key.revoke(SystemClock.now(), None);
        });
    }

    /// Makes the server unreachable, or reachable again.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.source.set_down(unreachable);
    }

    /// Pauses the responses of the server until the returned value is dropped. Look-ups wait for it, for at
    /// most two seconds.
    pub async fn pause(&self) -> Paused {
        Paused {
            _held: self.source.hold().await,
        }
    }

    /// Returns a guard with these keys and the default settings.
    ///
    /// # Errors
    /// As [`TestKeys::guard_with`].
    pub async fn guard(&self) -> Result<Guard, ConnectError> {
        self.guard_with(Guard::builder()).await
    }

    /// Returns a guard with these keys. It uses the builder's settings for reading and rejecting requests.
    /// All guards with the same keys must have the same [scopes](GuardBuilder::scopes).
    ///
    /// # Errors
    /// [`ConnectError::Settings`].
    pub async fn guard_with(&self, builder: GuardBuilder) -> Result<Guard, ConnectError> {
        *self.catalogue() = builder.catalogue()?;
        if let Ok(account) = "acme".parse() {
            self.source.change_all(Changed::Account(account), |record| {
                *record = self.record(record.key.clone())
            });
        }
        // It has no lease, so it looks up every key, and a change applies immediately.
        builder.over(self.verifier().await?, false)
    }

    /// Returns a guard that caches these keys, as with a server, for benchmarks. A change applies within a second.
    ///
    /// # Errors
    /// As [`TestKeys::guard_with`].
    pub async fn caching_guard(&self) -> Result<Guard, ConnectError> {
        Guard::builder().over(self.verifier().await?, true)
    }

    /// Returns a verifier with these keys, for this workspace's benchmarks.
    ///
    /// # Errors
    /// [`ConnectError::Settings`] while they are [unreachable](Self::set_unreachable).
    #[doc(hidden)]
    pub async fn verifier(&self) -> Result<Verifier<MemorySource>, ConnectError> {
        let id = VerifierId::from_bytes([0; 16]);
        let verifier = Verifier::new(
            id,
            self.source.clone(),
            Arc::new(SystemClock),
            Settings::default(),
        );
        verifier
            .await
            .map_err(|_| ConnectError::Settings("the keys are unreachable".to_owned()))
    }
}
