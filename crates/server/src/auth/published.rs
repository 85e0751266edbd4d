//! What another host publishes and this process needs in order to check credentials: kept in memory, and fetched again by one task at a
//! time.
//!
//! A request that finds what it needs in the current version never waits for the host, however old that version is: a host that hangs
//! must not delay credentials that can be checked without it. [`Published::refresh`] starts a fetch in the background once the version is
//! older than [`MAX_AGE`]. Only a request that cannot continue without a newer version, or without a first one, waits for the fetch
//! ([`Published::newer`]): at most [`FETCH_TIMEOUT`], because a fetch that is on its way is joined and never repeated.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, time::timeout};

/// The age at which a version is fetched again. Together with [`UPKEEP_INTERVAL`] and [`FETCH_TIMEOUT`] it bounds how long a key that its
/// issuer withdrew is still accepted, as long as the issuer can be reached.
pub(super) const MAX_AGE: SignedDuration = SignedDuration::from_mins(10);
/// How often the server looks for versions that are older than that, so that the first request after an idle hour is not checked with a
/// version of an hour ago.
pub(crate) const UPKEEP_INTERVAL: Duration = Duration::from_secs(30);
/// The longest a fetch may take, from its first to its last byte.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The current version of what a host publishes.
pub(super) struct Published<T> {
    /// What it is, for the log.
    name: &'static str,
    /// The least time between the beginnings of two fetches, whatever requests them.
    interval: SignedDuration,
    current: RwLock<Option<Version<T>>>,
    fetches: Mutex<Fetches>,
}

struct Version<T> {
    value: Arc<T>,
    /// When its fetch began.
    fetched_at: Timestamp,
}

#[derive(Default)]
struct Fetches {
    last_began: Option<Timestamp>,
    /// Closed when the last fetch has ended.
    last: Option<watch::Receiver<()>>,
}

/// How far two readings of the wall clock are apart. A clock that was set back counts like one that was set forward, so that nothing waits
/// for it to catch up.
pub(super) fn distance(one: Timestamp, other: Timestamp) -> SignedDuration {
    one.duration_since(other).abs()
}

impl<T: Send + Sync + 'static> Published<T> {
    /// Creates it without a version. `interval` is the least time between the beginnings of two fetches.
    pub(super) fn new(name: &'static str, interval: SignedDuration) -> Arc<Self> {
        Arc::new(Self {
            name,
            interval,
            current: RwLock::new(None),
            fetches: Mutex::default(),
        })
    }

    /// Returns the current version, or `None` before the first fetch has succeeded. Never waits.
    pub(super) fn current(&self) -> Option<Arc<T>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|version| Arc::clone(&version.value))
    }

    fn is_outdated(&self, now: Timestamp) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .is_some_and(|version| distance(version.fetched_at, now) >= MAX_AGE)
    }

    /// Starts a fetch in the background if the current version is older than [`MAX_AGE`]. Never waits. `fetch` is called only if a fetch
    /// starts.
    pub(super) fn refresh<F, E>(self: &Arc<Self>, now: Timestamp, fetch: impl FnOnce() -> F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        if self.is_outdated(now) {
            let _in_background = self.start(now, fetch);
        }
    }

    /// Waits for the fetch that is on its way, or for one that this call starts, and returns the current version. Within the interval
    /// after the last beginning none starts and nothing waits. After a failed fetch the version before stays.
    pub(super) async fn newer<F, E>(
        self: &Arc<Self>,
        now: Timestamp,
        fetch: impl FnOnce() -> F,
    ) -> Option<Arc<T>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        if let Some(running) = self.start(now, fetch) {
            ended(running).await;
        }
        self.current()
    }

    /// Waits until no fetch is on its way.
    pub(super) async fn settled(&self) {
        let running = self
            .fetches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last
            .clone();
        if let Some(running) = running {
            ended(running).await;
        }
    }

    /// Returns the fetch that is on its way, which may have started here; `None` if there is none and it is too early for another.
    fn start<F, E>(
        self: &Arc<Self>,
        now: Timestamp,
        fetch: impl FnOnce() -> F,
    ) -> Option<watch::Receiver<()>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = fetches
            .last
            .as_ref()
            .filter(|last| last.has_changed().is_ok())
        {
            return Some(running.clone());
        }
        if fetches
            .last_began
            .is_some_and(|at| distance(at, now) < self.interval)
        {
            return None;
        }
        let (running, last) = watch::channel(());
        fetches.last_began = Some(now);
        fetches.last = Some(last.clone());
        let (published, fetched) = (Arc::clone(self), timeout(FETCH_TIMEOUT, fetch()));
        // A task of its own: a caller that disconnects must not cancel the fetch that others wait for.
        tokio::spawn(async move {
            match fetched.await {
                Ok(Ok(value)) => {
                    let version = Version {
                        value: Arc::new(value),
                        fetched_at: now,
                    };
                    *published
                        .current
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) = Some(version);
                }
                Ok(Err(error)) => tracing::warn!(what = published.name, %error, "fetch failed"),
                Err(_) => tracing::warn!(
                    what = published.name,
                    error = "no response in time",
                    "fetch failed"
                ),
            }
            drop(running);
        });
        Some(last)
    }
}

/// Waits until the fetch has ended, also if its task was cancelled.
async fn ended(mut running: watch::Receiver<()>) {
    // Nothing is ever sent: the only event is the end of the sender.
    while running.changed().await.is_ok() {}
}
