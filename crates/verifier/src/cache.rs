//! The cached keys, the lease under which they may be used, and their eviction.
//!
//! Three rules make cached keys safe to use. Change them only with a model in `crates/model` that shows that the change
//! is safe.
//!
//! - The lease is checked before the entry is read. Otherwise, an entry could be read, evicted while its
//!   reader is paused, and then accepted under a lease that was granted because of that eviction.
//! - Insertions and evictions hold the same lock, and a fetched key is inserted only if no change after the
//!   counter value of its response has been applied. Otherwise, a slow response could insert a key again that
//!   was just evicted.
//! - If the log of changes does not continue from the applied position (too many changes were missed, or the
//!   database was restored or failed over), all entries are evicted, the lease ends, and responses and
//!   renewals in flight are not used.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hash, Hasher},
    ops::Bound,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;
use tollkey_core::{
    AccountId, ApiKey, ApplicationId, ChangeLog, Changed, Digest, KeyContext, KeyId, Position, Seq,
    ServiceKeyId, VerifierId, heap::allocation,
};

use crate::{
    locks::{AtomicBool, AtomicU64, Map, Mutex, MutexGuard, Set},
    rate::{Limiter, Limiters},
    share::{FIRST, LAST, Shares},
    source::{PollIds, PollResponse},
    stats::count,
    subscription::subscribers::{Arrival, NoLease, SharedId, Subscribers},
    usage::Tally,
    watches::Watches,
};

/// The maximum number of cached service keys. A deployment has few: each belongs to a resource server or gateway.
const MAX_SERVICE_KEYS: usize = 1024;

/// The number of recent changes that are kept for subscribers. A subscriber that lags by more changes clears its cache.
const RECENT_CHANGES: usize = 10_000;

/// The maximum number of entries that are checked to evict one. Evictions use the CLOCK algorithm: the clock
/// hand skips the entries that were used since it last passed them. After this number of entries it evicts
/// the last one even if that was used, so that the work of one cache miss is bounded.
const SECOND_CHANCES: usize = 64;

/// The estimated bytes of an entry without the heap of its record: the entry and its counts, each with two
/// reference counts; a node and a slot of the map that readers use; and a slot in the list of all entries and
/// in the indexes of keys, accounts and applications. The slots are counted twice, because maps and lists are
/// half empty on average.
const ENTRY: usize = allocation(16 + size_of::<Entry>())
    + allocation(16 + size_of::<Tally>())
    + allocation(size_of::<Cached>())
    + 2 * (9 + size_of::<usize>())
    + 2 * (size_of::<KeyId>() + 8)
    + 2 * (size_of::<AccountId>() + size_of::<KeyId>())
    + 2 * (size_of::<ApplicationId>() + size_of::<KeyId>());

/// A cached key, with its rate limits and usage counts.
#[repr(C)] // the fields that every verification reads come first, for the processor's caches
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    /// Whether the entry was used since a clock hand last passed.
    touched: AtomicBool,
    /// In a separate `Arc`, so that counts that are not flushed yet do not keep the record of an evicted entry in RAM.
    pub(crate) tally: Arc<Tally>,
    /// The rate limits of the key's ancestors, the root first, and of the key itself: every use takes from all of them.
    pub(crate) limiters: Box<[Arc<Limiter>]>,
    pub(crate) record: KeyContext,
    /// The estimated bytes of the entry in the cache, with its rate limits and counts.
    weight: usize,
}

/// An entry in the set that readers use, which is found by its hash. A map would allocate a node with a second hash.
#[derive(Clone)]
struct Cached(Arc<Entry>);

impl Borrow<Digest> for Cached {
    fn borrow(&self) -> &Digest {
        &self.0.digest
    }
}

impl PartialEq for Cached {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for Cached {}

impl Hash for Cached {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.digest.hash(state);
    }
}

impl Entry {
    pub(crate) fn new(digest: Digest, record: KeyContext, limiters: Box<[Arc<Limiter>]>) -> Self {
        let tally = Arc::new(Tally::new(record.key.id, record.key.account_id.clone()));
        let weight = ENTRY
            + record.heap_bytes()
            + limiters.len() * (size_of::<Arc<Limiter>>() + Limiters::EACH);
        Self {
            digest,
            record,
            limiters,
            tally,
            weight,
            touched: AtomicBool::new(false),
        }
    }

    /// Returns whether the entry was used since a clock hand last passed, and resets that.
    fn was_used(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The maximum number of cached keys.
    pub(crate) entries: usize,
    /// The maximum bytes of cached keys, including their rate limits.
    pub(crate) entry_bytes: usize,
    /// The maximum bytes of rate limits, including those of cached keys, which count towards both bounds.
    pub(crate) limiter_bytes: usize,
}

/// The number of times that the lease was ended. A response or renewal requested in an earlier generation is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// The effect of the acknowledgement in a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// The change that this verifier can report as applied, by itself and by all subscribers, has advanced.
    More,
    /// That change has not advanced.
    NoMore,
    /// The subscriber has sent a newer poll since, and does not wait for the response.
    Late,
}

/// The cached keys and service keys, and the lease.
pub(crate) struct Cache {
    keys: Set<Cached, DigestHash>,
    service_keys: Map<Digest, ServiceKeyId, DigestHash>,
    /// The end of the lease, in nanoseconds of the clock, with the margin subtracted; 0 without a lease.
    /// Written only under the lock of `state`.
    lease_end: AtomicU64,
    state: Mutex<CacheState>,
    max_entries: usize,
    evictions: AtomicU64,
    changed: AtomicU64,
    resets: AtomicU64,
}

/// The state behind the lock: up to where changes are applied, and the indexes by which a change finds its entries.
struct CacheState {
    /// All changes up to this position are applied: their keys are evicted. This happens in one critical
    /// section, so this position is both the model's `applying` and its `evicted`.
    applied: Position,
    /// The newest changes up to `applied`, for subscribers.
    recent: VecDeque<(Position, Changed)>,
    /// The position before the first change in `recent`.
    before_recent: Position,
    subscribers: Subscribers,
    generation: u64,
    stopped: bool,
    /// All entries, in the order of the clock hand.
    entries: Vec<Arc<Entry>>,
    hand: usize,
    /// The index of each key in `entries`.
    by_key: HashMap<KeyId, u32>,
    by_application: BTreeSet<(ApplicationId, KeyId)>,
    by_account: BTreeSet<(AccountId, KeyId)>,
    /// The bytes of the entries of each account, and the key at which the account's own clock hand is.
    shares: Shares<Option<KeyId>>,
    service_keys: VecDeque<Digest>,
    limiters: Limiters,
    watches: Watches,
}

impl Cache {
    /// Creates an empty cache at position `applied`. `margin`, in nanoseconds, is added to the leases of subscribers.
    pub(crate) fn new(bounds: &Bounds, applied: Position, margin: u64) -> Self {
        let hash = DigestHash::random();
        Self {
            keys: Set::builder().hasher(hash).build(),
            service_keys: Map::builder().hasher(hash).build(),
            lease_end: AtomicU64::new(0),
            state: Mutex::new(CacheState {
                applied,
                recent: VecDeque::new(),
                before_recent: applied,
                subscribers: Subscribers::new(margin),
                generation: 0,
                stopped: false,
                entries: Vec::new(),
                hand: 0,
                by_key: HashMap::new(),
                by_application: BTreeSet::new(),
                by_account: BTreeSet::new(),
                service_keys: VecDeque::new(),
                shares: Shares::new(bounds.entry_bytes),
                limiters: Limiters::new(bounds.limiter_bytes),
                watches: Watches::new(),
            }),
            max_entries: bounds.entries.min(u32::MAX as usize),
            evictions: AtomicU64::new(0),
            changed: AtomicU64::new(0),
            resets: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, CacheState> {
        // After a panic during an eviction, `applied` has not moved yet, so the same change is applied again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the key with that hash if it is cached and the lease is valid at `elapsed`.
    pub(crate) fn get(&self, digest: &Digest, elapsed: u64) -> Option<Arc<Entry>> {
        if !self.has_lease(elapsed) {
            return None;
        }
        let Cached(entry) = self.keys.pin().get(digest)?.clone();
        // The flag is written only if it changes, so that readers of one key can share its cache line.
        if !entry.touched.load(Ordering::Relaxed) {
            entry.touched.store(true, Ordering::Relaxed);
        }
        Some(entry)
    }

    /// Returns the key with that hash if it is cached and the lease is valid at `elapsed`, or expired at most
    /// `grace` before. After that expiration, the key may have been revoked.
    pub(crate) fn get_within_grace(
        &self,
        digest: &Digest,
        elapsed: u64,
        grace: u64,
    ) -> Option<Arc<Entry>> {
        if !self.has_lease(elapsed.saturating_sub(grace)) {
            return None;
        }
        self.keys
            .pin()
            .get(digest)
            .map(|Cached(entry)| Arc::clone(entry))
    }

    /// Returns the service key with that hash if it is cached and the lease is valid at `elapsed`.
    pub(crate) fn get_service_key(&self, digest: &Digest, elapsed: u64) -> Option<ServiceKeyId> {
        if self.has_lease(elapsed) {
            self.service_keys.pin().get(digest).copied()
        } else {
            None
        }
    }

    /// Whether the lease is valid at `elapsed`. Must be called before an entry is read.
    pub(crate) fn has_lease(&self, elapsed: u64) -> bool {
        elapsed < self.lease_end.load(Ordering::SeqCst)
    }

    /// Returns the current generation. Call this before a request to the source, and pass the result on with
    /// the response.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.state().generation)
    }

    /// Inserts a fetched key if the response is fresh. Returns the entry in any case, for the request that fetched it.
    pub(crate) fn insert_fetched(
        &self,
        digest: &Digest,
        seq: Seq,
        requested: Generation,
        record: KeyContext,
        elapsed: u64,
    ) -> Arc<Entry> {
        let mut record = record.compacted();
        let mut state = self.state();
        let fresh = state.is_fresh(seq, requested);
        if let Some(id) = state.shares.id(&record.key.account_id) {
            record.key.account_id = id; // shared by all keys of the account
        }
        let (account, limits) = (&record.key.account_id, record.key.rate_limits());
        let limiters = limits
            .map(|(key, limit)| {
                state
                    .limiters
                    .get_or_insert(account, key, limit, fresh, elapsed)
            })
            .collect();
        let entry = Arc::new(Entry::new(*digest, record, limiters));
        // A large entry is not cached, because it would evict too many others.
        if fresh && self.max_entries > 0 && entry.weight <= state.shares.largest() {
            self.insert(&mut state, &entry);
        }
        entry
    }

    /// Inserts a fetched service key if the response is fresh.
    pub(crate) fn insert_fetched_service_key(
        &self,
        digest: &Digest,
        seq: Seq,
        requested: Generation,
        id: ServiceKeyId,
    ) {
        let mut state = self.state();
        if !state.is_fresh(seq, requested) || self.service_keys.pin().insert(*digest, id).is_some()
        {
            return;
        }
        state.service_keys.push_back(*digest);
        if state.service_keys.len() > MAX_SERVICE_KEYS
            && let Some(oldest) = state.service_keys.pop_front()
        {
            self.service_keys.pin().remove(&oldest);
        }
    }

    fn insert(&self, state: &mut CacheState, entry: &Arc<Entry>) {
        let key = &entry.record.key;
        self.remove(state, key.id); // another request may have fetched the same key at the same time
        while state.by_key.len() >= self.max_entries
            || !state.shares.fits(&key.account_id, entry.weight)
        {
            let Some(next) = state.next_to_evict(&key.account_id, entry.weight) else {
                return;
            };
            self.remove(state, next);
            count(&self.evictions);
        }
        state.add(entry);
        self.keys.pin().insert(Cached(Arc::clone(entry)));
    }

    /// Evicts a key. Returns whether it was cached.
    fn remove(&self, state: &mut CacheState, key: KeyId) -> bool {
        let Some(at) = state.by_key.get(&key).copied() else {
            return false;
        };
        // Readers use this set, so the key is removed from it first: a panic below cannot leave an evicted key there.
        self.keys.pin().remove(&state.entries[at as usize].digest);
        state.remove(key, at);
        true
    }

    /// Applies a log of the changes after the applied position. Returns whether all changes up to the log's
    /// current position are applied.
    pub(crate) fn apply(&self, log: &ChangeLog) -> bool {
        let mut state = self.state();
        let before = state.applied;
        let continues = |changes: &[(Position, Changed)]| {
            let gapless = changes
                .iter()
                .zip(before.seq.0 + 1..)
                .all(|((at, _), expected)| at.seq.0 == expected);
            let last = changes.last().map_or(before, |(at, _)| *at);
            // If the counter has moved, a log without changes is a gap too.
            gapless && (last == log.current || (last.seq < log.current.seq && !changes.is_empty()))
        };
        let Some(changes) = log.changes.as_deref().filter(|changes| continues(changes)) else {
            self.clear(&mut state, log.current);
            return true;
        };
        for (at, changed) in changes {
            self.evict(&mut state, changed);
            state.applied = *at; // only after the eviction
            state.keep(*at, changed);
        }
        state.applied == log.current
    }

    /// Applies the changes up to `position` that an upstream sent, or clears the cache if they are unknown (`None`).
    pub(crate) fn apply_news(&self, position: Position, changes: Option<&[Changed]>) {
        let mut state = self.state();
        match changes {
            Some(changes) => {
                changes
                    .iter()
                    .for_each(|changed| self.evict(&mut state, changed));
                state.applied = position; // only after all evictions
            }
            None => self.clear(&mut state, position),
        }
    }

    /// Watches a key: the receiver is notified of every change to the key after the returned change.
    pub(crate) fn watch(&self, key: &ApiKey) -> (watch::Receiver<()>, Seq) {
        let mut state = self.state();
        let applied = state.applied.seq;
        (state.watches.watch(key), applied)
    }

    fn evict(&self, state: &mut CacheState, changed: &Changed) {
        state.watches.notify(changed);
        let keys: Vec<KeyId> = match changed {
            Changed::Key(id) => vec![*id],
            Changed::Application(id) => state
                .by_application
                .range((*id, FIRST)..=(*id, LAST))
                .map(|(_, key)| *key)
                .collect(),
            Changed::Account(id) => state
                .by_account
                .range((id.clone(), FIRST)..=(id.clone(), LAST))
                .map(|(_, key)| *key)
                .collect(),
            Changed::ServiceKey(id) => {
                let cached = self.service_keys.pin();
                cached.retain(|_, cached| cached != id);
                state
                    .service_keys
                    .retain(|digest| cached.contains_key(digest));
                return;
            }
        };
        let evicted = keys
            .into_iter()
            .filter(|key| self.remove(state, *key))
            .count();
        self.changed.fetch_add(evicted as u64, Ordering::Relaxed);
    }

    fn clear(&self, state: &mut CacheState, applied: Position) {
        // No warning when the verifier starts with an empty cache.
        if self.len() > 0 || self.lease_end() > 0 {
            tracing::warn!(
                from = state.applied.seq.0,
                to = applied.seq.0,
                "the log of changes does not continue from the applied position; the cache is cleared"
            );
            count(&self.resets);
        }
        self.end_lease(state);
        self.keys.pin().clear();
        self.service_keys.pin().clear();
        state.entries.clear();
        state.hand = 0;
        state.by_key.clear();
        state.by_application.clear();
        state.by_account.clear();
        state.shares.clear();
        state.service_keys.clear();
        state.recent.clear();
        state.before_recent = applied;
        state.subscribers.clear_acknowledgements();
        state.watches.notify_all();
        state.applied = applied;
    }

    /// Ends the lease before it expires. Only a renewal that is sent afterwards can grant the next one.
    fn end_lease(&self, state: &mut CacheState) {
        state.generation += 1;
        self.lease_end.store(0, Ordering::SeqCst);
    }

    /// Ends the lease. The next renewal can grant a new one.
    pub(crate) fn drop_lease(&self) {
        self.end_lease(&mut self.state());
    }

    /// Ends the lease. No other lease is granted.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        self.end_lease(&mut state);
    }

    /// Grants a lease until `end`, unless the lease was ended since the renewal was sent, or the verifier has
    /// stopped. `sent` is the generation in which the renewal was sent. Returns whether the lease was
    /// granted.
    pub(crate) fn grant(&self, sent: Generation, end: u64) -> bool {
        let state = self.state();
        let valid = state.generation == sent.0 && !state.stopped;
        if valid {
            self.lease_end.fetch_max(end, Ordering::SeqCst);
        }
        valid
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Returns whether the last lease was ended before it expired, and none has been granted since. Also
    /// `true` before the first lease.
    pub(crate) fn has_lost_lease(&self) -> bool {
        self.lease_end() == 0
    }

    /// Returns the position up to which everything is applied, and the current generation.
    pub(crate) fn applied(&self) -> (Position, Generation) {
        let state = self.state();
        (state.applied, Generation(state.generation))
    }

    /// Returns [`Cache::applied`], and the change up to which everything is applied by this verifier and by
    /// every subscriber whose lease may be valid at `elapsed`.
    pub(crate) fn applied_everywhere(&self, elapsed: u64) -> (Position, Generation, Seq) {
        let mut state = self.state();
        let reported = state.reported(elapsed);
        (state.applied, Generation(state.generation), reported)
    }

    /// Records that a poll has arrived, and the position that its subscriber has applied.
    pub(crate) fn acknowledge(
        &self,
        subscriber: VerifierId,
        ids: Option<&PollIds>,
        position: Position,
        elapsed: u64,
    ) -> Result<Acknowledged, SharedId> {
        let mut state = self.state();
        let before = state.reported(elapsed);
        if state.subscribers.arrive(subscriber, ids, false, elapsed)? == Arrival::Late {
            return Ok(Acknowledged::Late);
        }
        // A position that is too old, or from the history of another database, acknowledges nothing.
        if state.changes_after(position).is_some() {
            state.subscribers.acknowledge(subscriber, position.seq);
        }
        Ok(if state.reported(elapsed) > before {
            Acknowledged::More
        } else {
            Acknowledged::NoMore
        })
    }

    /// Returns the response to a poll of a subscriber at `position`: at most `limit` changes, and the lease
    /// that it may take after applying them. Also returns whether the usage in the poll has to be counted,
    /// which is true once per poll.
    pub(crate) fn serve(
        &self,
        subscriber: VerifierId,
        ids: Option<&PollIds>,
        position: Position,
        limit: usize,
        elapsed: u64,
    ) -> Result<(PollResponse, bool), NoLease> {
        let mut state = self.state();
        if state.subscribers.arrival_now(subscriber, ids)? == Arrival::Late {
            return Ok((PollResponse::unchanged(position), false));
        }
        let missing = state.changes_after(position);
        let is_complete = missing
            .as_ref()
            .is_none_or(|changes| changes.len() <= limit);
        let changes: Option<Vec<_>> = missing.map(|changes| changes.take(limit).cloned().collect());
        let position = match changes.as_deref() {
            Some([.., (last, _)]) if !is_complete => *last,
            _ => state.applied,
        };
        // A lease is granted only together with all missing changes.
        let mut left = if is_complete {
            self.lease_end().saturating_sub(elapsed)
        } else {
            0
        };
        if left > 0
            && !state.subscribers.grant(
                subscriber,
                position.seq,
                elapsed.saturating_add(left),
                elapsed,
            )?
        {
            left = 0;
        }
        let changes =
            changes.map(|changes| changes.into_iter().map(|(_, changed)| changed).collect());
        let counts = state.subscribers.counts(subscriber, ids);
        Ok((
            PollResponse {
                position,
                changes,
                lease: Duration::from_nanos(left),
            },
            counts,
        ))
    }

    /// Ends the subscription of a subscriber that no longer uses its cache. Returns whether the usage that it
    /// sent has to be counted.
    pub(crate) fn end_subscription(
        &self,
        subscriber: VerifierId,
        ids: Option<&PollIds>,
        elapsed: u64,
    ) -> Result<bool, SharedId> {
        let mut state = self.state();
        if state.subscribers.arrive(subscriber, ids, true, elapsed)? == Arrival::Late {
            return Ok(false);
        }
        state.subscribers.end_subscription(subscriber);
        Ok(state.subscribers.counts(subscriber, ids))
    }

    /// Returns when the last lease of a subscriber ends, or `None` if no subscriber holds one.
    pub(crate) fn subscribed_until(&self) -> Option<u64> {
        self.state().subscribers.end()
    }

    pub(crate) fn subscribers(&self, elapsed: u64) -> usize {
        self.state().subscribers.len(elapsed)
    }

    pub(crate) fn lease_end(&self) -> u64 {
        self.lease_end.load(Ordering::SeqCst)
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        let state = self.state();
        state.shares.held() + state.limiters.bytes()
    }

    /// Returns the number of keys evicted to free space, the number evicted by changes, and how often the
    /// cache was cleared.
    pub(crate) fn evicted(&self) -> [u64; 3] {
        [&self.evictions, &self.changed, &self.resets]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl CacheState {
    /// Returns whether a response may be cached: whether it was read at a `seq` that includes every change
    /// that is applied here, and the lease was not ended since the request.
    fn is_fresh(&self, seq: Seq, requested: Generation) -> bool {
        !self.stopped && self.generation == requested.0 && seq >= self.applied.seq
    }

    /// Returns the change up to which everything is applied by this verifier and by every subscriber with a lease.
    fn reported(&mut self, elapsed: u64) -> Seq {
        let applied = self.applied.seq;
        self.subscribers
            .acknowledged(elapsed)
            .map_or(applied, |acknowledged| acknowledged.min(applied))
    }

    /// Stores an applied change for subscribers.
    fn keep(&mut self, at: Position, changed: &Changed) {
        if self.recent.len() >= RECENT_CHANGES
            && let Some((oldest, _)) = self.recent.pop_front()
        {
            self.before_recent = oldest;
        }
        self.recent.push_back((at, changed.clone()));
    }

    /// Returns the changes after `position`, or `None` if the position is not in the stored log.
    fn changes_after(
        &self,
        position: Position,
    ) -> Option<impl ExactSizeIterator<Item = &(Position, Changed)>> {
        let first = if position == self.before_recent {
            0
        } else {
            self.recent
                .binary_search_by_key(&position.seq, |(at, _)| at.seq)
                .ok()
                .filter(|i| self.recent[*i].0 == position)?
                + 1
        };
        Some(self.recent.range(first..))
    }

    fn add(&mut self, entry: &Arc<Entry>) {
        let key = &entry.record.key;
        self.by_key.insert(key.id, self.entries.len() as u32); // at most `max_entries`, which fits
        self.by_account.insert((key.account_id.clone(), key.id));
        if let Some(application) = key.application_id {
            self.by_application.insert((application, key.id));
        }
        self.shares.add(&key.account_id, entry.weight);
        self.entries.push(Arc::clone(entry));
    }

    /// Removes the entry of a key at index `at`.
    fn remove(&mut self, key: KeyId, at: u32) {
        let entry = self.entries.swap_remove(at as usize);
        self.by_key.remove(&key);
        if let Some(moved) = self.entries.get(at as usize) {
            self.by_key.insert(moved.record.key.id, at);
        }
        let key = &entry.record.key;
        self.by_account.remove(&(key.account_id.clone(), key.id));
        if let Some(application) = key.application_id {
            self.by_application.remove(&(application, key.id));
        }
        self.shares.remove(&key.account_id, entry.weight);
    }

    /// Returns the key to evict so that `account` can hold `bytes` more. If the account with the most bytes
    /// exceeds its fair share, it is a key of that account, and otherwise of any account. `None` if no key is
    /// cached.
    fn next_to_evict(&mut self, account: &AccountId, bytes: usize) -> Option<KeyId> {
        let payer = self.shares.payer(account, bytes);
        payer
            .and_then(|payer| self.next_of(&payer))
            .or_else(|| self.next_of_all())
    }

    /// Returns the next key of an account to evict, by the account's clock hand: it skips keys that were used
    /// since it last passed them.
    fn next_of(&mut self, account: &AccountId) -> Option<KeyId> {
        let hand = self.shares.get_mut(account)?;
        let all = |range: (Bound<KeyId>, KeyId)| {
            let of = |key| (account.clone(), key);
            self.by_account
                .range((range.0.map(of), Bound::Included(of(range.1))))
        };
        let after = hand.map_or(Bound::Included(FIRST), Bound::Excluded);
        let keys = all((after, LAST))
            .chain(all((Bound::Included(FIRST), LAST)))
            .map(|(_, key)| *key);
        for key in keys.take(SECOND_CHANCES) {
            *hand = Some(key);
            let at = self.by_key.get(&key).copied();
            if !at.is_some_and(|at| self.entries[at as usize].was_used()) {
                break;
            }
        }
        *hand
    }

    /// Returns the next key of any account to evict, by the clock hand over all entries.
    fn next_of_all(&mut self) -> Option<KeyId> {
        let mut next = None;
        for _ in 0..SECOND_CHANCES {
            let at = self.hand.checked_rem(self.entries.len())?;
            self.hand = at + 1;
            next = Some(self.entries[at].record.key.id);
            if !self.entries[at].was_used() {
                break;
            }
        }
        next
    }
}

/// A hash function for SHA-256 hashes. They are evenly distributed, so eight of their bytes are enough. These
/// are mixed with secret random numbers, so that clients cannot choose keys that collide.
#[derive(Clone, Copy)]
struct DigestHash {
    add: u64,
    multiply: u64,
}

impl DigestHash {
    fn random() -> Self {
        let random = RandomState::new();
        Self {
            add: random.hash_one(0),
            multiply: random.hash_one(1) | 1,
        }
    }
}

impl BuildHasher for DigestHash {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher {
            keys: *self,
            hash: 0,
        }
    }
}

struct DigestHasher {
    keys: DigestHash,
    hash: u64,
}

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let start = bytes
            .first_chunk()
            .map_or(0, |eight| u64::from_le_bytes(*eight));
        let product = u128::from(start ^ self.keys.add) * u128::from(self.keys.multiply);
        self.hash ^= (product as u64) ^ ((product >> 64) as u64);
    }

    /// Ignores the length, because all hashes have the same one.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}
