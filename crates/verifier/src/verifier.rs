//! One verification: memory, else the source; then the judgement.

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
use tokio_util::task::AbortOnDropHandle;
use tollkey_core::{
    AccountId, Clock, Denial, Digest, KeyId, Need, Position, ServiceKeyId, Usage, VerifierId,
    credential::Presented, decide, decide_further, network::client_network,
};
use tollkey_fair::{FairSemaphore, Limits, Priority};

use crate::{
    clock::nanos,
    follow::margin,
    memory::{Bounds, Entry, Generation, Memory},
    poll_watch::PollWatch,
    rate::{give_back_all, take_all},
    source::{Primary, Snapshot, Source, SourceError, Unavailable},
    stats::{Counters, Stats, count},
    subscribe::PollSequence,
    usage::{self, BATCH, Ledger},
    verdict::{Known, Verdict},
};

/// After so many questions without an answer, one after the other, the source is taken to give none: not after the
/// first, which a connection that was cut costs.
const FAILURES: u64 = 3;

/// The bounds of a verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many keys are cached. Beyond that, keys not used lately are evicted.
    pub max_entries: usize,
    /// How many bytes the cached keys, their rate limits and the counts that wait to be fetched take. Nine sixteenths are for
    /// keys, five for counts, and two for rate limits.
    ///
    /// When there is no room, keys not used lately are evicted: those of the account that holds the most, if that is more
    /// than its fair share, and otherwise those of any account. No key is cached that takes more than a sixteenth of the
    /// bytes for keys. Rate limits outlive the cached keys. When there is no room for them, one that is fully available
    /// again goes first. If there is none, the account that holds the most loses one, which its key can then use anew.
    ///
    /// With less than [`Settings::MIN_BYTES`], rate limits and counts have as much room as with that many bytes: without
    /// room for cached keys, keys are limited and counted all the same.
    pub max_bytes: usize,
    /// How many look-ups the source gets at the same time: half of them for clients, half for authenticated callers, and
    /// in either half no [`Requester`] has more than half of it.
    pub max_misses: usize,
    /// How many more look-ups of clients can wait, and how many of authenticated callers. Requesters are served in turn.
    /// When so many wait, the requester with the most of them gets [`Unavailable`] immediately.
    pub max_waiting: usize,
    /// How long it may take until one has had its turn and its answer, before it is answered [`Unavailable`].
    pub miss_limit: Duration,
}

impl Default for Settings {
    /// A million keys in 256 MiB; 64 look-ups at a time, 1024 of either half waiting; two seconds.
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_bytes: 256 * 1024 * 1024,
            max_misses: 64,
            max_waiting: 1024,
            miss_limit: Duration::from_secs(2),
        }
    }
}

impl Settings {
    /// 4 MiB: with less, fewer keys are cached, but rate limits and counts take no less room.
    pub const MIN_BYTES: usize = 4 * 1024 * 1024;

    /// A sixteenth of the bytes, for rate limits and counts.
    fn sixteenth(&self) -> usize {
        self.max_bytes.max(Self::MIN_BYTES) / 16
    }

    /// The bounds of the cache.
    fn cache(&self) -> Bounds {
        let entry_bytes = self.max_bytes / 16 * 9;
        Bounds {
            entries: self.max_entries,
            entry_bytes,
            allowance_bytes: 2 * self.sixteenth(),
        }
    }

    /// The bounds of what waits to be fetched. The counts of as many keys as can be cached have room.
    fn ledger(&self) -> usage::Bounds {
        usage::Bounds {
            tally_bytes: 3 * self.sixteenth(),
            row_bytes: 2 * self.sixteenth(),
        }
    }
}

/// Who a look-up is made for. Look-ups are shared fairly among requesters, so that random keys of one of them do not
/// exclude the keys of others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Requester {
    /// A client that presents a key or a service key, by the network of its address; `None` where that is not known.
    Client(Option<IpAddr>),
    /// An authenticated resource server or gateway, by the ID of its service key or the subject of its token: the keys
    /// that one of them passes on exclude no other.
    Service(Arc<str>),
    /// A secret key of this account that verifies other keys, authenticated.
    Account(AccountId),
}

impl Requester {
    /// The client at this address, by [`client_network`].
    #[must_use]
    pub fn client(address: Option<IpAddr>) -> Self {
        Self::Client(address.map(client_network))
    }
}

/// The look-ups that the source gets at the same time. Clients and authenticated callers have a semaphore each, so that
/// strangers, who have any number of addresses, exclude no authenticated caller.
struct LookUps {
    clients: FairSemaphore<Requester>,
    authenticated: FairSemaphore<Requester>,
}

impl LookUps {
    fn new(settings: &Settings) -> Self {
        let half =
            |permits| FairSemaphore::new(Limits::half_per_owner(permits, settings.max_waiting));
        let clients = settings.max_misses.div_ceil(2);
        Self {
            clients: half(clients),
            authenticated: half(settings.max_misses.saturating_sub(clients)),
        }
    }

    fn of(&self, requester: &Requester) -> &FairSemaphore<Requester> {
        match requester {
            Requester::Client(_) => &self.clients,
            Requester::Service(_) | Requester::Account(_) => &self.authenticated,
        }
    }
}

/// Verifies keys. Cheap to clone; all clones share one memory.
///
/// It answers from memory only while something keeps its lease: [`Verifier::run`] where the source is a [`Primary`],
/// [`Verifier::subscribe`] where it is an [`crate::Upstream`]. Without, every verification asks the source.
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
    /// A subscriber takes another one when it shares this one with another process.
    id: RwLock<VerifierId>,
    pub(crate) source: S,
    pub(crate) clock: Arc<dyn Clock>,
    /// How long leases are; with an upstream, which grants other ones each time, only how long an answer may take.
    pub(crate) lease: Duration,
    pub(crate) margin: Duration,
    pub(crate) memory: Memory,
    /// Held while changes are read and applied, so that a log is always applied to the state it was asked for.
    pub(crate) applying: Mutex<()>,
    /// Up to where everything is applied, for subscribers that wait for news.
    pub(crate) applied: watch::Sender<Position>,
    /// Whether polls of subscribers wait no longer.
    pub(crate) releases_polls: watch::Sender<bool>,
    pub(crate) poked: Notify,
    pub(crate) counters: Counters,
    pub(crate) ledger: Ledger,
    /// The polls of a subscriber. Locked while [`Verifier::subscribe`] runs, so that one subscription runs at a time.
    pub(crate) polls: Mutex<PollSequence>,
    pub(crate) poll_watch: PollWatch,
    look_ups: LookUps,
    /// How many questions the source has left without an answer since the last one it gave.
    pub(crate) failures: AtomicU64,
    /// Whether the source has rejected the last look-up that was sent.
    rejects: AtomicBool,
    probe: Semaphore,
    miss_limit: Duration,
    /// Where keys are fetched, if not on the runtime of the request.
    runtime: OnceLock<Handle>,
}

impl<S: Primary> Verifier<S> {
    /// A verifier that remembers nothing yet. `id` must be new for each start of a process. `clock` must be the one
    /// by which the `since` of [`Verifier::settle`] is read.
    ///
    /// # Errors
    /// [`Unavailable`] when the source does not tell the length of leases and where the change counter stands.
    pub async fn new(
        id: VerifierId,
        source: S,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<Self, Unavailable> {
        let lease = source.lease_length().await?;
        // With nothing remembered, all that has changed so far is no news.
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

    /// Which service key the presented text is, if it is one. `client_ip` is the address of the client that presents it.
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
            .memory
            .recall_service_key(&digest, nanos(self.0.clock.elapsed()))
        {
            Some(id) => {
                self.0.counters.hits.count();
                Ok(Some(id))
            }
            None => {
                self.0
                    .ask_service_key(&digest, Requester::client(client_ip))
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
            memory: Memory::new(&settings.cache(), applied, nanos(margin)),
            applying: Mutex::new(()),
            applied: watch::Sender::new(applied),
            releases_polls: watch::Sender::new(false),
            poked: Notify::new(),
            counters: Counters::default(),
            ledger: Ledger::new(&settings.ledger()),
            polls: Mutex::default(),
            poll_watch,
            look_ups: LookUps::new(&settings),
            failures: AtomicU64::new(0),
            rejects: AtomicBool::new(false),
            probe: Semaphore::new(1),
            miss_limit: settings.miss_limit,
            runtime: OnceLock::new(),
        }))
    }

    /// Who this verifier is to the others. A subscriber takes another ID when it finds out that another process uses the
    /// same one.
    #[must_use]
    pub fn id(&self) -> VerifierId {
        self.0.id()
    }

    /// Fetches keys on this runtime from now on, in place of the runtimes of the requests: a worker of theirs that is blocked
    /// then holds no connection and no permit that others need. A second call changes nothing.
    pub fn fetch_on(&self, runtime: Handle) {
        let _ = self.0.runtime.set(runtime);
    }

    /// Where this verifier's keys come from.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.0.source
    }

    /// Whether the presented text is a key that may do what is needed, now.
    ///
    /// # Errors
    /// [`Unavailable`] when it has to be asked for and the source does not answer, or too many are asking already.
    pub async fn verify<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
    ) -> Result<Verdict, Unavailable> {
        self.verdict(presented.into(), need, Purpose::Use).await
    }

    /// [`Verifier::verify`] for a request of which more may be required further in, where it may still be refused: what it
    /// allows counts as a use of the key only once it is [concluded](Verifier::conclude). Its allowance is taken at once,
    /// so that no more requests are let in than it has.
    ///
    /// # Errors
    /// As there.
    pub async fn hold<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
    ) -> Result<Verdict, Unavailable> {
        self.verdict(presented.into(), need, Purpose::Hold).await
    }

    /// [`Verifier::verify`] where the look-up is not made for the client at [`Need::client_ip`]: an
    /// authenticated caller presents the keys of others. `requester` is called when there has to be a look-up.
    ///
    /// # Errors
    /// As there.
    pub async fn verify_for<'a>(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
    ) -> Result<Verdict, Unavailable> {
        self.verdict_for(requester, presented.into(), need, Purpose::Use)
            .await
    }

    /// [`Verifier::look`], as [`Verifier::verify_for`] is [`Verifier::verify`].
    ///
    /// # Errors
    /// As there.
    pub async fn look_for<'a>(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
    ) -> Result<Verdict, Unavailable> {
        self.verdict_for(requester, presented.into(), need, Purpose::Look)
            .await
    }

    /// [`Verifier::hold`] where nobody has to be asked for it; `None` where somebody has.
    #[must_use]
    pub fn hold_remembered<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
    ) -> Option<Verdict> {
        self.remembered(presented.into(), need, Purpose::Hold).ok()
    }

    /// [`Verifier::hold`], and when the source does not respond, by what was cached when the lease ended no longer ago than
    /// `grace`. **Gives up immediate revocation**: a key that was revoked meanwhile is let in for that long.
    ///
    /// # Errors
    /// [`Unavailable`] when the key is not cached, the lease ended earlier, or the source responds without the key: it
    /// rejects the look-up ([`SourceError::Rejected`]), or the key cannot be read ([`SourceError::Unreadable`]).
    pub async fn hold_without_immediate_revocation<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
        grace: Duration,
    ) -> Result<Verdict, Unavailable> {
        let presented = presented.into();
        let asked = self
            .verdict_or_why(
                || Requester::client(need.client_ip),
                presented,
                need,
                Purpose::Hold,
            )
            .await;
        asked.or_else(|error| {
            if error != SourceError::Unavailable {
                return Err(Unavailable);
            }
            let elapsed = nanos(self.0.clock.elapsed());
            let Presented::ApiKey(_, key) = presented else {
                return Ok(Verdict::unknown());
            };
            let digest = key.digest();
            let entry = self
                .0
                .memory
                .recall_late(&digest, elapsed, nanos(grace))
                .ok_or(Unavailable)?;
            Ok(self.0.judge(entry, need, elapsed, Purpose::Hold))
        })
    }

    /// Decides what is required besides of a key that this verdict has allowed for the same request, by
    /// [`tollkey_core::decide_further`]. Counts nothing.
    ///
    /// # Errors
    /// The first [`Denial`] that applies.
    pub fn decide_further(&self, held: &Verdict, need: &Need<'_>) -> Result<(), Denial> {
        let record = held.allowed().ok_or(Denial::UnknownKey)?;
        decide_further(record, need, self.0.clock.now())
    }

    /// Ends what [`Verifier::hold`] began and allowed, once: it was a use of the key, or it was refused further in, which
    /// costs no allowance. A rejection with [`Denial::UnknownKey`] is not counted. A verdict that denies was counted when
    /// it was made.
    pub fn conclude(&self, held: &Verdict, outcome: Result<(), Denial>) {
        let (Ok(()), Some(Known(entry))) = (held.outcome, &held.record) else {
            return;
        };
        if outcome.is_err() {
            self.release(held);
        }
        self.0
            .ledger
            .count(&entry.tally, outcome, self.0.clock.now());
    }

    /// Ends what [`Verifier::hold`] began and allowed, once, as if it had not been: it costs no allowance and is not
    /// counted. For a request that is judged anew, or not at all.
    pub fn release(&self, held: &Verdict) {
        if let (Ok(()), Some(Known(entry))) = (held.outcome, &held.record) {
            give_back_all(
                &entry.allowances,
                held.judged_at,
                nanos(self.0.clock.elapsed()),
            );
        }
    }

    /// [`Verifier::verify`] for a request that is refused whatever the verdict: it takes nothing from the key's rate
    /// limit, and is no use of the key.
    ///
    /// # Errors
    /// As there.
    pub async fn look<'a>(
        &self,
        presented: impl Into<Presented<'a>>,
        need: &Need<'_>,
    ) -> Result<Verdict, Unavailable> {
        self.verdict(presented.into(), need, Purpose::Look).await
    }

    async fn verdict(
        &self,
        presented: Presented<'_>,
        need: &Need<'_>,
        purpose: Purpose,
    ) -> Result<Verdict, Unavailable> {
        self.verdict_for(
            || Requester::client(need.client_ip),
            presented,
            need,
            purpose,
        )
        .await
    }

    async fn verdict_for(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: Presented<'_>,
        need: &Need<'_>,
        purpose: Purpose,
    ) -> Result<Verdict, Unavailable> {
        Ok(self
            .verdict_or_why(requester, presented, need, purpose)
            .await?)
    }

    /// [`Self::verdict_for`], and why there is none.
    async fn verdict_or_why(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: Presented<'_>,
        need: &Need<'_>,
        purpose: Purpose,
    ) -> Result<Verdict, SourceError> {
        match self.remembered(presented, need, purpose) {
            Ok(verdict) => Ok(verdict),
            Err(digest) => self.0.ask(digest, need, purpose, requester()).await,
        }
    }

    /// The verdict by what is remembered, or what has to be asked for.
    fn remembered(
        &self,
        presented: Presented<'_>,
        need: &Need<'_>,
        purpose: Purpose,
    ) -> Result<Verdict, Digest> {
        let Presented::ApiKey(_, key) = presented else {
            return Ok(Verdict::unknown());
        };
        let digest = key.digest();
        let elapsed = nanos(self.0.clock.elapsed());
        let entry = self.0.memory.recall(&digest, elapsed).ok_or(digest)?;
        self.0.counters.hits.count();
        Ok(self.0.judge(entry, need, elapsed, purpose))
    }

    /// What has been counted since the last time: for at most [`crate::usage::BATCH`] keys, of all accounts in turn, of which
    /// rows that were put back are the first. Fetch until nothing comes. No two rows are about the same key, day and
    /// outcome.
    #[must_use]
    pub fn take_usage(&self) -> Vec<Usage> {
        self.0.ledger.take(self.0.clock.now(), BATCH)
    }

    /// Moves what was counted of at most [`crate::usage::BATCH`] keys to the rows that [`Verifier::take_usage`] returns first.
    /// There it is merged until it is taken, and [`Verifier::waiting_usage`] returns it.
    ///
    /// Returns how many keys that were: 0 when no key waits, and `None` when the rows have no room and should be taken.
    pub fn collect_usage(&self) -> Option<usize> {
        self.0.ledger.collect(self.0.clock.now(), BATCH)
    }

    /// How often verifications of known keys had each outcome since the last call, with those that subscribers counted. A
    /// verification is among them once [`Verifier::collect_usage`] or [`Verifier::take_usage`] has reached its key.
    #[must_use]
    pub fn take_outcomes(&self) -> BTreeMap<Option<Denial>, u64> {
        self.0.ledger.take_outcomes()
    }

    /// The counts of a key that wait as rows, in ascending order of days.
    #[must_use]
    pub fn waiting_usage(&self, key: &KeyId) -> Vec<Usage> {
        self.0.ledger.rows_of(*key)
    }

    /// For how many keys [`Verifier::take_usage`] has something, and how many rows that were put back.
    #[must_use]
    pub fn usage_waiting(&self) -> usize {
        self.0.ledger.len()
    }

    /// Puts back what could not be written down; the next [`Verifier::take_usage`] gives it again.
    pub fn restore_usage(&self, rows: Vec<Usage>) {
        self.0.ledger.restore(rows);
    }

    /// The state of this verifier and what it has done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Inner {
            memory,
            counters,
            clock,
            ledger,
            ..
        } = &*self.0;
        let [evictions, changed, forgotten] = memory.evicted();
        let elapsed = nanos(clock.elapsed());
        let left = memory.lease_end().saturating_sub(elapsed);
        Stats {
            hits: counters.hits.sum(),
            misses: counters.misses.load(Ordering::Relaxed),
            unavailable: counters.unavailable.load(Ordering::Relaxed),
            entries: memory.len(),
            bytes: memory.bytes() + ledger.bytes(),
            evictions,
            changed,
            forgotten,
            seq: memory.applied().0.seq,
            lease_left: Duration::from_nanos(left),
            settles: counters.settles.load(Ordering::Relaxed),
            settle_wait: Duration::from_nanos(counters.settle_nanos.load(Ordering::Relaxed)),
            settles_over_a_lease: counters.settles_over_a_lease.load(Ordering::Relaxed),
            settles_for_verifiers: counters.settles_for_verifiers.load(Ordering::Relaxed),
            settles_for_subscribers: counters.settles_for_subscribers.load(Ordering::Relaxed),
            subscribers: memory.subscribers(elapsed),
            usage_dropped: ledger.dropped(),
        }
    }
}

/// What a verification is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A use of the key, counted as such.
    Use,
    /// One that may still be refused further in.
    Hold,
    /// None at all: it takes no allowance and is not counted.
    Look,
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
    /// Judges a key and counts the outcome. The allowance comes last, so that no other denial costs any.
    fn judge(&self, entry: Arc<Entry>, need: &Need<'_>, elapsed: u64, purpose: Purpose) -> Verdict {
        let now = self.clock.now();
        let mut outcome = decide(&entry.record, need, now).map(|_| ());
        if outcome == Err(Denial::UnknownKey) {
            return Verdict::unknown(); // a key the viewer may not see
        }
        let (mut rate, mut retry_after_seconds) = (None, None);
        if purpose == Purpose::Look {
            return Verdict {
                outcome,
                record: Some(Known(entry)),
                rate,
                retry_after_seconds,
                judged_at: elapsed,
            };
        }
        if outcome.is_ok()
            && !entry.allowances.is_empty()
            && let Some((status, taken)) = take_all(&entry.allowances, elapsed)
        {
            rate = Some(status);
            outcome = taken.map_err(|seconds| {
                retry_after_seconds = Some(seconds);
                Denial::RateLimited
            });
        }
        // What is held and allowed is counted when it is concluded.
        if purpose == Purpose::Use || outcome.is_err() {
            self.ledger.count(&entry.tally, outcome, now);
        }
        Verdict {
            outcome,
            record: Some(Known(entry)),
            rate,
            retry_after_seconds,
            judged_at: elapsed,
        }
    }

    async fn ask(
        self: &Arc<Self>,
        digest: Digest,
        need: &Need<'_>,
        purpose: Purpose,
        requester: Requester,
    ) -> Result<Verdict, SourceError> {
        let (_, entry) = match self.runtime.get() {
            None => self.fetch(&digest, requester).await?,
            Some(runtime) => {
                let inner = Arc::clone(self);
                let fetched = runtime.spawn(async move { inner.fetch(&digest, requester).await });
                // Canceled with the request; and with the runtime, which then fetches nothing any more.
                AbortOnDropHandle::new(fetched)
                    .await
                    .unwrap_or(Err(SourceError::Unavailable))?
            }
        };
        // An unknown key is not remembered: it could be created a moment later.
        let Some(entry) = entry else {
            return Ok(Verdict::unknown());
        };
        Ok(self.judge(entry, need, nanos(self.clock.elapsed()), purpose))
    }

    /// Asks the source for a key, and remembers it if that is safe.
    pub(crate) async fn fetch(
        &self,
        digest: &Digest,
        requester: Requester,
    ) -> Result<(Snapshot, Option<Arc<Entry>>), SourceError> {
        let (snapshot, generation) = self.miss(self.source.find(digest), requester).await?;
        let Some(record) = snapshot.record.clone() else {
            return Ok((snapshot, None));
        };
        let entry = self.memory.learn(
            digest,
            snapshot.seq,
            generation,
            record,
            nanos(self.clock.elapsed()),
        );
        Ok((snapshot, Some(entry)))
    }

    /// Asks the source when it is the requester's turn, all within the limit, and only where not too many wait already:
    /// a flood of unknown keys slows the look-ups of its own requester, and nothing else. While the source does not
    /// respond, one look-up at a time finds out whether it does again, and all others fail immediately. Of a subscriber
    /// without a lease all fail immediately while its poll has no response: the poll finds out. Returns the response with
    /// the state of the cache at which it was requested.
    async fn miss<T>(
        &self,
        question: impl Future<Output = Result<T, SourceError>>,
        requester: Requester,
    ) -> Result<(T, Generation), SourceError> {
        count(&self.counters.misses);
        let answer = self.answer(question, requester).await;
        answer.inspect_err(|_| count(&self.counters.unavailable))
    }

    /// Fails if this is a subscriber without a lease whose poll has no response.
    fn check_polls(&self, now: Duration) -> Result<(), SourceError> {
        let (is_overdue, is_stalled) = (
            self.poll_watch.is_overdue(now),
            self.poll_watch.is_stalled(now),
        );
        if !(is_overdue || is_stalled)
            || self.memory.lease_end() > nanos(now)
            || self.memory.is_stopped()
        {
            return Ok(());
        }
        if is_stalled {
            self.poll_watch.log_stalled(now);
        }
        if is_overdue {
            Err(SourceError::Unavailable)
        } else {
            Ok(())
        }
    }

    async fn answer<T>(
        &self,
        question: impl Future<Output = Result<T, SourceError>>,
        requester: Requester,
    ) -> Result<(T, Generation), SourceError> {
        let begun = self.clock.elapsed();
        self.check_polls(begun)?;
        let fails = self.failures.load(Ordering::Relaxed) >= FAILURES;
        let _probe = if fails {
            Some(
                self.probe
                    .try_acquire()
                    .map_err(|_| SourceError::Unavailable)?,
            )
        } else {
            None
        };
        let mut asked_at = None;
        let answer = self.within(self.miss_limit, async {
            let look_ups = self.look_ups.of(&requester);
            let _permit = look_ups
                .acquire(requester, Priority::Normal)
                .await
                .map_err(|_| SourceError::Unavailable)?;
            asked_at = Some(self.clock.elapsed());
            let generation = self.memory.generation();
            Ok((question.await?, generation))
        });
        let answer = answer.await;
        if asked_at.is_some() {
            self.rejects.store(
                matches!(answer, Err(SourceError::Rejected)),
                Ordering::Relaxed,
            );
        } else if answer.is_err() && self.rejects.load(Ordering::Relaxed) {
            // It was not sent, because too many wait. The source rejects them, so it can be reached.
            return Err(SourceError::Rejected);
        }
        match &answer {
            Ok(_) | Err(SourceError::Rejected | SourceError::Unreadable) => {
                self.failures.store(0, Ordering::Relaxed)
            }
            Err(SourceError::Unavailable) => {
                // Who waited in the queue for most of the time left the source none to answer in.
                let limit_at = begun + self.miss_limit;
                if asked_at.is_some_and(|at| {
                    self.clock.elapsed() < limit_at || at < begun + self.miss_limit / 2
                }) {
                    count(&self.failures);
                }
            }
        }
        answer
    }
}

impl<S: Primary> Inner<S> {
    async fn ask_service_key(
        &self,
        digest: &Digest,
        requester: Requester,
    ) -> Result<Option<ServiceKeyId>, Unavailable> {
        let (snapshot, generation) = self
            .miss(self.source.find_service_key(digest), requester)
            .await?;
        if let Some(id) = snapshot.id {
            self.memory
                .learn_service_key(digest, snapshot.seq, generation, id);
        }
        Ok(snapshot.id)
    }
}
