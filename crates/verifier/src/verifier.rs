//! Verifying a key: finding it in the cache or at the source, and deciding.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Mutex, Notify, Semaphore, watch},
};
use tollkey_core::{
    AccessRequest, Clock, Denial, Digest, KeyId, Position, ServiceKeyId, Timestamp, Usage,
    VerifierId, credential::Presented, decide,
};

use crate::{
    cache::{Cache, Entry},
    clock::{margin, nanos},
    rate::{RateStatus, take_all},
    requester::{LookUps, Requester},
    reservation::{Accounting, Reservation},
    settings::Settings,
    source::{Primary, Source, SourceError, Unavailable},
    stats::{Counters, Stats},
    subscription::{poll_sequence::PollSequence, poll_watch::PollWatch},
    usage::{BATCH, Ledger},
    verdict::{CachedKey, Verdict},
};

/// Verifies keys. Cheap to clone; all clones share one cache.
///
/// It uses cached keys only while it holds a lease. [`Verifier::run`] keeps the lease if the source is a
/// [`Primary`], [`Verifier::subscribe`] if it is an [`crate::Upstream`]. Without a lease, every verification
/// looks the key up at the source.
pub struct Verifier<S>(pub(crate) Arc<Inner<S>>);

impl<S> Clone for Verifier<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> std::fmt::Debug for Verifier<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Verifier")
            .field(&self.0.id())
            .finish_non_exhaustive()
    }
}

pub(crate) struct Inner<S> {
    /// A subscriber takes a new ID when another process uses the same one.
    id: RwLock<VerifierId>,
    pub(crate) source: S,
    pub(crate) clock: Arc<dyn Clock>,
    /// The length of leases. With an upstream, which chooses the length of each lease, this is only the
    /// longest time for a response.
    pub(crate) lease: Duration,
    pub(crate) margin: Duration,
    pub(crate) cache: Cache,
    /// Held while changes are read and applied, so that a log is applied at the position from which it was read.
    pub(crate) applying: Mutex<()>,
    /// The position up to which all changes are applied, for subscribers that wait for changes.
    pub(crate) applied: watch::Sender<Position>,
    /// Whether the polls of subscribers return without waiting.
    pub(crate) releases_polls: watch::Sender<bool>,
    /// Notified when there may be a change to apply or to report.
    pub(crate) notification: Notify,
    pub(crate) counters: Counters,
    pub(crate) ledger: Ledger,
    /// The polls of a subscriber. Locked while [`Verifier::subscribe`] runs, so that only one subscription
    /// runs at a time.
    pub(crate) polls: Mutex<PollSequence>,
    pub(crate) poll_watch: PollWatch,
    pub(crate) look_ups: LookUps,
    /// The number of consecutive look-ups without a response from the source.
    pub(crate) failures: AtomicU64,
    /// Whether the source rejected the last look-up that was sent.
    pub(crate) rejects: AtomicBool,
    /// One permit: while the source does not respond, one look-up at a time probes it.
    pub(crate) probe: Semaphore,
    pub(crate) look_up_limit: Duration,
    /// The runtime on which keys are fetched; the runtime of the request if not set.
    pub(crate) runtime: OnceLock<Handle>,
}

impl<S: Primary> Verifier<S> {
    /// Creates a verifier with an empty cache. `id` must be new for each start of a process. The `since` of
    /// [`Verifier::wait_until_propagated`] must be read from `clock`.
    ///
    /// # Errors
    /// [`Unavailable`] if the source does not respond with the length of leases and the position of the change counter.
    pub async fn new(
        id: VerifierId,
        source: S,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<Self, Unavailable> {
        let lease = source.lease_length().await?;
        // The cache is empty, so no earlier change has to be applied.
        let applied = source.changes_after(Position::default(), 1).await?.current;
        Ok(Self::with(
            id,
            source,
            clock,
            settings,
            PollWatch::off(),
            lease,
            applied,
        ))
    }

    /// Returns the ID of a presented service key, or `None` if it is unknown. `client_ip` is the address of the client.
    ///
    /// # Errors
    /// [`Unavailable`], as for [`Verifier::verify`].
    pub async fn verify_service_key<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        client_ip: Option<IpAddr>,
    ) -> Result<Option<ServiceKeyId>, Unavailable> {
        let Presented::ServiceKey(key) = presented.into() else {
            return Ok(None);
        };
        let digest = key.digest();
        match self
            .0
            .cache
            .get_service_key(&digest, nanos(self.0.clock.elapsed()))
        {
            Some(id) => {
                self.0.counters.hits.count();
                Ok(Some(id))
            }
            None => {
                self.0
                    .fetch_service_key(&digest, Requester::client(client_ip))
                    .await
            }
        }
    }
}

impl<S: Source> Verifier<S> {
    pub(crate) fn with(
        id: VerifierId,
        source: S,
        clock: Arc<dyn Clock>,
        settings: Settings,
        poll_watch: PollWatch,
        lease: Duration,
        applied: Position,
    ) -> Self {
        let margin = margin(lease);
        Self(Arc::new(Inner {
            id: RwLock::new(id),
            source,
            clock,
            lease,
            margin,
            cache: Cache::new(&settings.cache(), applied, nanos(margin)),
            applying: Mutex::new(()),
            applied: watch::Sender::new(applied),
            releases_polls: watch::Sender::new(false),
            notification: Notify::new(),
            counters: Counters::default(),
            ledger: Ledger::new(&settings.ledger()),
            polls: Mutex::default(),
            poll_watch,
            look_ups: LookUps::new(&settings),
            failures: AtomicU64::new(0),
            rejects: AtomicBool::new(false),
            probe: Semaphore::new(1),
            look_up_limit: settings.look_up_limit,
            runtime: OnceLock::new(),
        }))
    }

    /// Returns the ID of this verifier. A subscriber takes a new ID when another process uses the same one.
    #[must_use]
    pub fn id(&self) -> VerifierId {
        self.0.id()
    }

    /// Fetches keys on this runtime from now on, instead of on the runtimes of the requests. A blocked worker
    /// there then holds no connection and no permit that other requests need. A second call changes nothing.
    pub fn fetch_on(&self, runtime: Handle) {
        let _ = self.0.runtime.set(runtime);
    }

    /// Returns the source of this verifier's keys.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.0.source
    }

    /// Verifies a presented key and counts the outcome: an allowed request is a use of the key and takes from
    /// its rate limit. If the key is not cached, the look-up counts for the client at
    /// [`AccessRequest::client_ip`].
    ///
    /// # Errors
    /// [`Unavailable`] if the key is not cached and the source does not respond, or if too many look-ups wait.
    pub async fn verify<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Verdict, Unavailable> {
        let client = || Requester::client(access.client_ip);
        self.on_behalf_of(client).verify(presented, access).await
    }

    /// Verifies a presented key without using it: takes nothing from its rate limit and counts nothing. For a
    /// request that is rejected for another reason.
    ///
    /// # Errors
    /// As for [`Verifier::verify`].
    pub async fn peek<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Verdict, Unavailable> {
        let client = || Requester::client(access.client_ip);
        self.on_behalf_of(client).peek(presented, access).await
    }

    /// Verifies keys on behalf of an authenticated caller that presents the keys of others. Look-ups count
    /// for that requester instead of the client at [`AccessRequest::client_ip`]. `requester` is called only
    /// if the key is not cached.
    pub fn on_behalf_of<R: FnOnce() -> Requester>(&self, requester: R) -> OnBehalfOf<'_, S, R> {
        OnBehalfOf {
            verifier: self,
            requester,
        }
    }

    /// Verifies a presented key for a request that can still be denied later, for example by a handler. If
    /// the key is allowed, takes one use from its rate limit immediately and returns a [`Reservation`], which
    /// ends with the request. If the key is denied, counts the denial and returns the [`Verdict`] as the
    /// inner error.
    ///
    /// # Errors
    /// As for [`Verifier::verify`].
    pub async fn reserve<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Result<Reservation, Verdict>, Unavailable> {
        let client = || Requester::client(access.client_ip);
        let found = self.find(client, presented.into()).await?;
        Ok(self.0.reserve(found, access))
    }

    /// [Reserves](Verifier::reserve) a use of a cached key. Returns `None`, and counts nothing, if the key is
    /// not cached.
    #[must_use]
    pub fn reserve_cached<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Option<Result<Reservation, Verdict>> {
        let found = self.find_cached(presented.into()).ok()?;
        Some(self.0.reserve(found, access))
    }

    /// [Reserves](Verifier::reserve) a use. If the source does not respond, decides by the cached key for up
    /// to `grace` after the lease has ended. **This gives up immediate revocation**: a key that is revoked
    /// meanwhile is still allowed for that long.
    ///
    /// # Errors
    /// [`Unavailable`] if the source does not respond and the key is not cached or the lease ended more than
    /// `grace` ago, if the source rejects the look-up ([`SourceError::Rejected`]), or if the key cannot be
    /// read ([`SourceError::Unreadable`]).
    pub async fn reserve_without_immediate_revocation<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
        grace: Duration,
    ) -> Result<Result<Reservation, Verdict>, Unavailable> {
        let presented = presented.into();
        let client = || Requester::client(access.client_ip);
        let found = match self.find(client, presented).await {
            Err(SourceError::Unavailable) => self.find_within_grace(presented, grace)?,
            found => found?,
        };
        Ok(self.0.reserve(found, access))
    }

    /// Returns the key from the cache, or else from the source; `None` if it is unknown.
    async fn find(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: Presented<'_>,
    ) -> Result<Option<LookUpResult>, SourceError> {
        match self.find_cached(presented) {
            Ok(found) => Ok(found),
            Err(digest) => self.0.look_up(digest, requester()).await,
        }
    }

    /// Returns the cached key, or `None` if the credential does not have the form of a key. The error is the
    /// hash of a key that is not cached.
    fn find_cached(&self, presented: Presented<'_>) -> Result<Option<LookUpResult>, Digest> {
        let Presented::ApiKey(_, key) = presented else {
            return Ok(None);
        };
        let digest = key.digest();
        let elapsed = nanos(self.0.clock.elapsed());
        let entry = self.0.cache.get(&digest, elapsed).ok_or(digest)?;
        self.0.counters.hits.count();
        Ok(Some(LookUpResult { entry, elapsed }))
    }

    /// Returns the cached key if the lease ended at most `grace` ago.
    fn find_within_grace(
        &self,
        presented: Presented<'_>,
        grace: Duration,
    ) -> Result<Option<LookUpResult>, Unavailable> {
        let Presented::ApiKey(_, key) = presented else {
            return Ok(None);
        };
        let elapsed = nanos(self.0.clock.elapsed());
        let entry = self
            .0
            .cache
            .get_within_grace(&key.digest(), elapsed, nanos(grace))
            .ok_or(Unavailable)?;
        Ok(Some(LookUpResult { entry, elapsed }))
    }

    /// Takes the usage counted since the last call, of at most [`crate::usage::BATCH`] keys: first rows that
    /// were put back, then counts of all accounts in turn. Call it until it returns nothing. No two rows have
    /// the same key, day and outcome.
    #[must_use]
    pub fn take_usage(&self) -> Vec<Usage> {
        self.0.ledger.take(self.0.clock.now(), BATCH)
    }

    /// Moves the counts of at most [`crate::usage::BATCH`] keys to the rows that [`Verifier::take_usage`]
    /// returns first, where they are merged until they are taken. [`Verifier::waiting_usage`] returns those
    /// of one key.
    ///
    /// Returns the number of keys: 0 if no key waits, `None` if the rows are full and should be taken.
    pub fn collect_usage(&self) -> Option<usize> {
        self.0.ledger.collect(self.0.clock.now(), BATCH)
    }

    /// Returns the number of verifications of known keys by outcome since the last call, those of subscribers
    /// included. A verification is counted here once [`Verifier::collect_usage`] or [`Verifier::take_usage`]
    /// has reached its key.
    #[must_use]
    pub fn take_outcomes(&self) -> BTreeMap<Option<Denial>, u64> {
        self.0.ledger.take_outcomes()
    }

    /// Returns the counts of a key that wait as rows, in ascending order of days.
    #[must_use]
    pub fn waiting_usage(&self, key: &KeyId) -> Vec<Usage> {
        self.0.ledger.rows_of(*key)
    }

    /// Returns the number of keys with usage for [`Verifier::take_usage`], plus the number of rows that were put back.
    #[must_use]
    pub fn usage_waiting(&self) -> usize {
        self.0.ledger.len()
    }

    /// Puts back usage that could not be stored; the next [`Verifier::take_usage`] returns it again.
    pub fn restore_usage(&self, rows: Vec<Usage>) {
        self.0.ledger.restore(rows);
    }

    /// Returns the state and the counters of this verifier.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Inner {
            cache,
            counters,
            clock,
            ledger,
            lease,
            ..
        } = &*self.0;
        let [evictions, changed, resets] = cache.evicted();
        let elapsed = nanos(clock.elapsed());
        let left = cache.lease_end().saturating_sub(elapsed);
        Stats {
            hits: counters.hits.sum(),
            misses: counters.misses.load(Ordering::Relaxed),
            unavailable: counters.unavailable.load(Ordering::Relaxed),
            entries: cache.len(),
            bytes: cache.bytes() + ledger.bytes(),
            evictions,
            changed,
            resets,
            seq: cache.applied().0.seq,
            lease_length: *lease,
            lease_left: Duration::from_nanos(left),
            propagations: counters.propagations.load(Ordering::Relaxed),
            propagation_wait: Duration::from_nanos(
                counters.propagation_nanos.load(Ordering::Relaxed),
            ),
            propagations_over_a_lease: counters.propagations_over_a_lease.load(Ordering::Relaxed),
            propagations_for_verifiers: counters.propagations_for_verifiers.load(Ordering::Relaxed),
            propagations_for_subscribers: counters
                .propagations_for_subscribers
                .load(Ordering::Relaxed),
            subscribers: cache.subscribers(elapsed),
            usage_dropped: ledger.dropped(),
        }
    }
}

/// Verifies keys on behalf of an authenticated caller. Returned by [`Verifier::on_behalf_of`].
#[must_use = "nothing is verified until a method is called"]
pub struct OnBehalfOf<'v, S, R> {
    verifier: &'v Verifier<S>,
    requester: R,
}

impl<S: Source, R: FnOnce() -> Requester> OnBehalfOf<'_, S, R> {
    /// Verifies and counts, as [`Verifier::verify`] does.
    ///
    /// # Errors
    /// As for [`Verifier::verify`].
    pub async fn verify<'a>(
        self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Verdict, Unavailable> {
        let found = self.verifier.find(self.requester, presented.into()).await?;
        Ok(self.verifier.0.verify(found, access))
    }

    /// Verifies without using the key, as [`Verifier::peek`] does.
    ///
    /// # Errors
    /// As for [`Verifier::verify`].
    pub async fn peek<'a>(
        self,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Verdict, Unavailable> {
        let found = self.verifier.find(self.requester, presented.into()).await?;
        Ok(self.verifier.0.peek(found, access))
    }
}

impl<S, R> std::fmt::Debug for OnBehalfOf<'_, S, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OnBehalfOf")
            .field(self.verifier)
            .finish_non_exhaustive()
    }
}

/// A key, and the time of the clock when it was found.
pub(crate) struct LookUpResult {
    pub(crate) entry: Arc<Entry>,
    pub(crate) elapsed: u64,
}

/// The decision on a request, and the state of the key's rate limits.
struct Decision {
    outcome: Result<(), Denial>,
    rate: Option<RateStatus>,
    retry_after_seconds: Option<u32>,
}

impl Decision {
    fn without_rate(entry: &Entry, access: &AccessRequest<'_>, now: Timestamp) -> Self {
        Self {
            outcome: decide(&entry.record, access, now).map(|_| ()),
            rate: None,
            retry_after_seconds: None,
        }
    }

    /// Decides, and then takes one use from the rate limits. They come last, so that a request that is denied
    /// for another reason takes no use.
    fn with_rate(found: &LookUpResult, access: &AccessRequest<'_>, now: Timestamp) -> Self {
        let mut decision = Self::without_rate(&found.entry, access, now);
        if decision.outcome.is_ok()
            && !found.entry.limiters.is_empty()
            && let Some((status, taken)) = take_all(&found.entry.limiters, found.elapsed)
        {
            decision.rate = Some(status);
            decision.outcome = taken.map_err(|seconds| {
                decision.retry_after_seconds = Some(seconds);
                Denial::RateLimited
            });
        }
        decision
    }

    fn verdict(self, entry: Arc<Entry>) -> Verdict {
        // A verdict must not contain a key that the viewer cannot see.
        let is_known = self.outcome != Err(Denial::UnknownKey);
        Verdict {
            outcome: self.outcome,
            record: is_known.then_some(CachedKey(entry)),
            rate: self.rate,
            retry_after_seconds: self.retry_after_seconds,
        }
    }
}

impl<S> Inner<S> {
    pub(crate) fn id(&self) -> VerifierId {
        *self.id.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_id(&self, id: VerifierId) {
        *self.id.write().unwrap_or_else(PoisonError::into_inner) = id;
    }
}

impl<S: Source> Inner<S> {
    /// Returns the time of a decision. It matters only for a key with an expiration; reading the precise time takes
    /// longer.
    fn time_for(&self, entry: &Entry) -> Timestamp {
        if entry.record.key.expiration().is_some() {
            self.clock.now()
        } else {
            self.clock.coarse_now()
        }
    }

    fn verify(&self, found: Option<LookUpResult>, access: &AccessRequest<'_>) -> Verdict {
        let Some(found) = found else {
            return Verdict::unknown();
        };
        let now = self.time_for(&found.entry);
        let decision = Decision::with_rate(&found, access, now);
        self.ledger.count(&found.entry.tally, decision.outcome, now);
        decision.verdict(found.entry)
    }

    fn peek(&self, found: Option<LookUpResult>, access: &AccessRequest<'_>) -> Verdict {
        let Some(LookUpResult { entry, .. }) = found else {
            return Verdict::unknown();
        };
        Decision::without_rate(&entry, access, self.time_for(&entry)).verdict(entry)
    }

    fn reserve(
        self: &Arc<Self>,
        found: Option<LookUpResult>,
        access: &AccessRequest<'_>,
    ) -> Result<Reservation, Verdict> {
        let Some(found) = found else {
            return Err(Verdict::unknown());
        };
        let now = self.time_for(&found.entry);
        let decision = Decision::with_rate(&found, access, now);
        if decision.outcome.is_ok() {
            let verifier = Arc::clone(self);
            return Ok(Reservation::new(
                found.entry,
                decision.rate,
                found.elapsed,
                verifier,
            ));
        }
        self.ledger.count(&found.entry.tally, decision.outcome, now);
        Err(decision.verdict(found.entry))
    }
}

impl<S: Source> Accounting for Inner<S> {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}
