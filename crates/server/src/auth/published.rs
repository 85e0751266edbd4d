//! Caches what another host publishes and this server needs to verify credentials, and fetches it again.
//!
//! A request that finds what it needs in the current version never waits for the host, however old that version is: a
//! host that hangs must not delay credentials that can be verified without it. [`Published::refresh`] starts a fetch in
//! the background once the version is older than [`MAX_AGE`]. Only a request that needs a newer version, or the first
//! one, waits for a fetch ([`Published::newer`]), for at most [`FETCH_TIMEOUT`]: it joins the running fetch, if any.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, time::timeout};

/// The age at which a version is fetched again. Together with [`UPKEEP_INTERVAL`] and [`FETCH_TIMEOUT`] it limits how
/// long a key that its issuer withdrew is still accepted, if the issuer can be reached.
pub(super) const MAX_AGE: SignedDuration = SignedDuration::from_mins(10);
/// How often the server refreshes outdated versions, so that the first request after an idle hour is not verified with
/// an hour-old version.
pub(crate) const UPKEEP_INTERVAL: Duration = Duration::from_secs(30);
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The current version of what a host publishes.
pub(super) struct Published<T> {
    /// Its name in the log.
    name: &'static str,
    /// The minimum time between the starts of two fetches.
    interval: SignedDuration,
    current: RwLock<Option<Version<T>>>,
    fetches: Mutex<Fetches>,
}

struct Version<T> {
    value: Arc<T>,
    /// When its fetch started.
    fetched_at: Timestamp,
}

#[derive(Default)]
struct Fetches {
    last_started: Option<Timestamp>,
    /// Closed when the last fetch has ended.
    last: Option<watch::Receiver<()>>,
}

/// Returns the absolute difference of two times of the wall clock: when the clock was set back, nothing waits until it
/// has caught up.
pub(super) fn distance(a: Timestamp, b: Timestamp) -> SignedDuration {
    a.duration_since(b).abs()
}

impl<T: Send + Sync + 'static> Published<T> {
    pub(super) fn new(name: &'static str, interval: SignedDuration) -> Arc<Self> {
        Arc::new(Self {
            name,
            interval,
            current: RwLock::new(None),
            fetches: Mutex::default(),
        })
    }

    /// `None` before the first fetch has succeeded. Never waits.
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

    /// Starts a fetch in the background if the current version is older than [`MAX_AGE`]. Never waits.
    pub(super) fn refresh<F, E>(self: &Arc<Self>, now: Timestamp, fetch: impl FnOnce() -> F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        if self.is_outdated(now) {
            let _in_background = self.start(now, fetch);
        }
    }

    /// Waits for the running fetch, or starts one if the interval has passed. Returns the current version, which stays
    /// the same if the fetch fails.
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

    /// Waits until no fetch is running.
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

    /// Returns the running fetch, or starts one; `None` if none is running and the interval has not passed.
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
            .last_started
            .is_some_and(|at| distance(at, now) < self.interval)
        {
            return None;
        }
        let (running, last) = watch::channel(());
        fetches.last_started = Some(now);
        fetches.last = Some(last.clone());
        let (published, fetched) = (Arc::clone(self), timeout(FETCH_TIMEOUT, fetch()));
        // A separate task: a caller that disconnects must not cancel the fetch that others wait for.
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

/// Waits until the fetch has ended, even if its task was cancelled.
async fn ended(mut running: watch::Receiver<()>) {
    // Nothing is sent: `changed` returns an error when the task drops the sender.
    while running.changed().await.is_ok() {}
}
