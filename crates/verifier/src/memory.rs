//! What is remembered, under which lease, and how it is forgotten.
//!
//! Three rules make it safe to answer from here. They come from a model; none may be loosened without one.
//!
//! - The lease is looked at first, the entry afterwards. The other way round, an entry could be found, evicted while
//!   its reader is paused, and then accepted under a lease that was granted because of that eviction.
//! - Entries are evicted under the same lock under which they are inserted, and an answer of the source is inserted
//!   only if no change beyond the counter value it came with has begun to be applied. So a slow answer never puts
//!   back what a change has just removed.
//! - A log that does not go on from where we are (too much was missed, or the database was restored or failed over)
//!   ends everything at once: all entries, the lease, and whatever answer or renewal is still under way.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;
use tollkey_core::{
    AccountId, ApiKey, ApplicationId, ChangeLog, Changed, Digest, KeyId, Position, Record, Seq, ServiceKeyId,
    VerifierId, ceiling::DepthLimit,
};

use crate::{
    locks::{AtomicBool, AtomicU64, Map, Mutex, MutexGuard},
    rate::{Allowance, Allowances},
    source::{News, PollIds},
    stats::count,
    subscribers::{Arrival, NoLease, SharedId, Subscribers},
    usage::Tally,
    watches::Watches,
};

/// How many service keys are remembered. Each stands for a resource server or gateway: there are few.
const MAX_SERVICE_KEYS: usize = 1024;

/// How many changes are kept for subscribers. One further behind forgets everything.
const RECENT_CHANGES: usize = 10_000;

/// How many entries are given a second chance before one goes without, so that no single miss pays for all.
const SECOND_CHANCES: usize = 64;

/// A remembered key, and what belongs to it alone.
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) record: Record,
    /// The rate limits of its ancestors, the root's first, and its own: every use takes from all of them.
    pub(crate) allowances: Box<[Arc<Allowance>]>,
    pub(crate) tally: Tally,
    /// Whether it was used since the eviction hand passed.
    touched: AtomicBool,
}

impl Entry {
    pub(crate) fn new(digest: Digest, record: Record, allowances: Box<[Arc<Allowance>]>) -> Self {
        Self { digest, record, allowances, tally: Tally::default(), touched: AtomicBool::new(false) }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("record", &self.record).finish_non_exhaustive()
    }
}

/// The state of the memory at which an answer of the source was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// What the arrival of a poll has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// More is applied everywhere because of it.
    More,
    /// No more is applied everywhere than before.
    NoMore,
    /// The subscriber has sent a newer poll since, so nobody waits for the response.
    Late,
}

/// Everything remembered.
pub(crate) struct Memory {
    keys: Map<Digest, Arc<Entry>, DigestHash>,
    service_keys: Map<Digest, ServiceKeyId, DigestHash>,
    /// Until when it may be answered from here, in nanoseconds of the clock, margin subtracted. Written only under
    /// the lock of `books`.
    lease_end: AtomicU64,
    books: Mutex<Books>,
    max: usize,
    evictions: AtomicU64,
    changed: AtomicU64,
    forgotten: AtomicU64,
}

/// What is behind the lock: how far changes are applied, and where everything is that a change could be about.
struct Books {
    /// Everything up to this change has been evicted. Applying and evicting happen in one critical section, so this
    /// one number is both the model's `applying` and its `evicted`.
    applied: Position,
    /// The changes that led to `applied`, for subscribers, and the position before the first of them.
    recent: VecDeque<(Position, Changed)>,
    before_recent: Position,
    subscribers: Subscribers,
    generation: u64,
    stopped: bool,
    slots: Vec<Option<(Digest, Arc<Entry>)>>,
    free: Vec<u32>,
    hand: usize,
    by_key: HashMap<KeyId, u32>,
    by_application: BTreeSet<(ApplicationId, u32)>,
    by_account: BTreeSet<(AccountId, u32)>,
    service_keys: VecDeque<Digest>,
    allowances: Allowances,
    watches: Watches,
}

impl Memory {
    /// An empty memory of at most `max` keys, for which every change up to `applied` is no news. `margin`, in
    /// nanoseconds, is added to the leases of subscribers.
    pub(crate) fn new(max: usize, applied: Position, margin: u64) -> Self {
        let max = max.min(u32::MAX as usize);
        let hash = DigestHash::random();
        Self {
            keys: Map::builder().hasher(hash).build(),
            service_keys: Map::builder().hasher(hash).build(),
            lease_end: AtomicU64::new(0),
            books: Mutex::new(Books {
                applied,
                recent: VecDeque::new(),
                before_recent: applied,
                subscribers: Subscribers::new(margin),
                generation: 0,
                stopped: false,
                slots: Vec::new(),
                free: Vec::new(),
                hand: 0,
                by_key: HashMap::new(),
                by_application: BTreeSet::new(),
                by_account: BTreeSet::new(),
                service_keys: VecDeque::new(),
                // Of every key and of its ancestors.
                allowances: Allowances::new(max.saturating_mul(1 + usize::from(DepthLimit::MAX))),
                watches: Watches::new(),
            }),
            max,
            evictions: AtomicU64::new(0),
            changed: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // After a panic in the middle of an eviction `applied` has not moved yet: the same change is applied again.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key with that digest, if it is remembered and may be answered from memory at `elapsed`.
    pub(crate) fn recall(&self, digest: &Digest, elapsed: u64) -> Option<Arc<Entry>> {
        if !self.may_answer(elapsed) {
            return None;
        }
        let entry = Arc::clone(self.keys.pin().get(digest)?);
        // Looked at before it is written, so that readers of one key leave its cache line to each other.
        if !entry.touched.load(Ordering::Relaxed) {
            entry.touched.store(true, Ordering::Relaxed);
        }
        Some(entry)
    }

    /// The key with that digest, if it is remembered and could be answered from memory no longer ago than `grace` before
    /// `elapsed`. It may have been revoked since.
    pub(crate) fn recall_late(&self, digest: &Digest, elapsed: u64, grace: u64) -> Option<Arc<Entry>> {
        if !self.may_answer(elapsed.saturating_sub(grace)) {
            return None;
        }
        self.keys.pin().get(digest).map(Arc::clone)
    }

    /// The service key with that digest, under the same conditions.
    pub(crate) fn recall_service_key(&self, digest: &Digest, elapsed: u64) -> Option<ServiceKeyId> {
        if self.may_answer(elapsed) { self.service_keys.pin().get(digest).copied() } else { None }
    }

    /// Whether the lease lasts at `elapsed`. To be asked before an entry is looked up.
    pub(crate) fn may_answer(&self, elapsed: u64) -> bool {
        elapsed < self.lease_end.load(Ordering::SeqCst)
    }

    /// To be taken before the source is asked, and given back with its answer.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.books().generation)
    }

    /// Takes in an answer of the source: remembers it if that is safe, and in any case prepares it to be judged once.
    pub(crate) fn learn(
        &self,
        digest: &Digest,
        seq: Seq,
        asked: Generation,
        record: Record,
        elapsed: u64,
    ) -> Arc<Entry> {
        let mut books = self.books();
        let fresh = books.is_fresh(seq, asked);
        let limits = record.key.rate_limits();
        let allowances = limits.map(|(key, limit)| books.allowances.of(key, limit, fresh, elapsed)).collect();
        let entry = Arc::new(Entry::new(*digest, record, allowances));
        if fresh && self.max > 0 {
            self.insert(&mut books, digest, &entry);
        }
        entry
    }

    /// Takes in a service key: remembers it if that is safe.
    pub(crate) fn learn_service_key(&self, digest: &Digest, seq: Seq, asked: Generation, id: ServiceKeyId) {
        let mut books = self.books();
        if !books.is_fresh(seq, asked) || self.service_keys.pin().insert(*digest, id).is_some() {
            return;
        }
        books.service_keys.push_back(*digest);
        if books.service_keys.len() > MAX_SERVICE_KEYS
            && let Some(oldest) = books.service_keys.pop_front()
        {
            self.service_keys.pin().remove(&oldest);
        }
    }

    fn insert(&self, books: &mut Books, digest: &Digest, entry: &Arc<Entry>) {
        if let Some(&slot) = books.by_key.get(&entry.record.key.id) {
            self.remove(books, slot); // another request asked for the same key at the same time
        }
        if books.free.is_empty() && books.slots.len() >= self.max {
            let slot = books.next_to_go();
            self.remove(books, slot);
            count(&self.evictions);
        }
        books.enter(*digest, entry);
        self.keys.pin().insert(*digest, Arc::clone(entry));
    }

    fn remove(&self, books: &mut Books, slot: u32) {
        if let Some(digest) = books.leave(slot) {
            self.keys.pin().remove(&digest);
        }
    }

    /// Applies what has changed after the position up to which everything is applied. True when nothing is missing up
    /// to the log's current position, false when the rest has to be asked for.
    pub(crate) fn apply(&self, log: &ChangeLog) -> bool {
        let mut books = self.books();
        let before = books.applied;
        let goes_on = |changes: &[(Position, Changed)]| {
            let gapless = changes.iter().zip(before.seq.0 + 1..).all(|((at, _), expected)| at.seq.0 == expected);
            let last = changes.last().map_or(before, |(at, _)| *at);
            // No news while the counter has moved is a gap too.
            gapless && (last == log.current || (last.seq < log.current.seq && !changes.is_empty()))
        };
        let Some(changes) = log.changes.as_deref().filter(|changes| goes_on(changes)) else {
            self.forget(&mut books, log.current);
            return true;
        };
        for (at, changed) in changes {
            self.evict(&mut books, changed);
            books.applied = *at; // only now that nothing of it is left
            books.keep(*at, changed);
        }
        books.applied == log.current
    }

    /// Applies what an upstream told: everything that has changed up to `position`, or that nobody knows what has.
    pub(crate) fn follow(&self, position: Position, changes: Option<&[Changed]>) {
        let mut books = self.books();
        match changes {
            Some(changes) => {
                changes.iter().for_each(|changed| self.evict(&mut books, changed));
                books.applied = position; // only now that nothing of it is left
            }
            None => self.forget(&mut books, position),
        }
    }

    /// Watches a key: the receiver is notified of every change to it that is applied after the returned one.
    pub(crate) fn watch(&self, key: &ApiKey) -> (watch::Receiver<()>, Seq) {
        let mut books = self.books();
        let applied = books.applied.seq;
        (books.watches.watch(key), applied)
    }

    fn evict(&self, books: &mut Books, changed: &Changed) {
        books.watches.notify(changed);
        let slots: Vec<u32> = match changed {
            Changed::Key(id) => books.by_key.get(id).copied().into_iter().collect(),
            Changed::Application(id) => {
                books.by_application.range((*id, 0)..=(*id, u32::MAX)).map(|(_, slot)| *slot).collect()
            }
            Changed::Account(id) => {
                books.by_account.range((id.clone(), 0)..=(id.clone(), u32::MAX)).map(|(_, slot)| *slot).collect()
            }
            Changed::ServiceKey(id) => {
                let known = self.service_keys.pin();
                known.retain(|_, remembered| remembered != id);
                books.service_keys.retain(|digest| known.contains_key(digest));
                return;
            }
        };
        self.changed.fetch_add(slots.len() as u64, Ordering::Relaxed);
        for slot in slots {
            self.remove(books, slot);
        }
    }

    fn forget(&self, books: &mut Books, applied: Position) {
        // Who begins has nothing to forget.
        if self.len() > 0 || self.lease_end() > 0 {
            tracing::warn!(
                from = books.applied.seq.0,
                to = applied.seq.0,
                "the log of changes does not go on from where it was left; everything remembered is forgotten"
            );
            count(&self.forgotten);
        }
        self.end_lease(books);
        self.keys.pin().clear();
        self.service_keys.pin().clear();
        books.slots.clear();
        books.free.clear();
        books.hand = 0;
        books.by_key.clear();
        books.by_application.clear();
        books.by_account.clear();
        books.service_keys.clear();
        books.recent.clear();
        books.before_recent = applied;
        books.subscribers.disown();
        books.watches.notify_all();
        books.applied = applied;
    }

    /// From here on nothing is answered from memory until a lease is granted that was asked for afterwards.
    fn end_lease(&self, books: &mut Books) {
        books.generation += 1;
        self.lease_end.store(0, Ordering::SeqCst);
    }

    /// Stops answering from memory until the next renewal.
    pub(crate) fn drop_lease(&self) {
        self.end_lease(&mut self.books());
    }

    /// Stops answering from memory for good.
    pub(crate) fn stop(&self) {
        let mut books = self.books();
        books.stopped = true;
        self.end_lease(&mut books);
    }

    /// A lease until `end`, unless leases have been ended since it was `asked` for. Whether it was granted.
    pub(crate) fn grant(&self, asked: Generation, end: u64) -> bool {
        let books = self.books();
        let valid = books.generation == asked.0 && !books.stopped;
        if valid {
            self.lease_end.fetch_max(end, Ordering::SeqCst);
        }
        valid
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.books().stopped
    }

    /// Whether the last lease was ended before its time, and none has been granted since.
    pub(crate) fn has_lost_lease(&self) -> bool {
        self.lease_end() == 0
    }

    /// Up to which position everything is applied, and the state in which that is so.
    pub(crate) fn applied(&self) -> (Position, Generation) {
        let books = self.books();
        (books.applied, Generation(books.generation))
    }

    /// [`Memory::applied`], and up to which change everything is applied here and by every subscriber that may still
    /// answer at `elapsed`.
    pub(crate) fn applied_everywhere(&self, elapsed: u64) -> (Position, Generation, Seq) {
        let mut books = self.books();
        let reported = books.reported(elapsed);
        (books.applied, Generation(books.generation), reported)
    }

    /// Takes down that a poll has arrived, and what its subscriber has applied.
    pub(crate) fn acknowledge(
        &self,
        subscriber: VerifierId,
        ids: Option<&PollIds>,
        position: Position,
        elapsed: u64,
    ) -> Result<Acknowledged, SharedId> {
        let mut books = self.books();
        let before = books.reported(elapsed);
        if books.subscribers.arrive(subscriber, ids, false, elapsed)? == Arrival::Late {
            return Ok(Acknowledged::Late);
        }
        // What was applied of another history says nothing about this one.
        if books.changes_after(position).is_some() {
            books.subscribers.acknowledge(subscriber, position.seq);
        }
        Ok(if books.reported(elapsed) > before { Acknowledged::More } else { Acknowledged::NoMore })
    }

    /// What a subscriber at `position` has to apply, at most `limit` changes, and the lease it may take afterwards. Also
    /// whether the usage that came with the poll has to be counted, which is so once for each poll.
    pub(crate) fn serve(
        &self,
        subscriber: VerifierId,
        ids: Option<&PollIds>,
        position: Position,
        limit: usize,
        elapsed: u64,
    ) -> Result<(News, bool), NoLease> {
        let mut books = self.books();
        if books.subscribers.still(subscriber, ids)? == Arrival::Late {
            return Ok((News::none(position), false));
        }
        let missing = books.changes_after(position);
        let whole = missing.as_ref().is_none_or(|changes| changes.len() <= limit);
        let changes: Option<Vec<_>> = missing.map(|changes| changes.take(limit).cloned().collect());
        let position = match changes.as_deref() {
            Some([.., (last, _)]) if !whole => *last,
            _ => books.applied,
        };
        // A lease comes only with all there is.
        let mut left = if whole { self.lease_end().saturating_sub(elapsed) } else { 0 };
        if left > 0 && !books.subscribers.grant(subscriber, position.seq, elapsed.saturating_add(left), elapsed)? {
            left = 0;
        }
        let changes = changes.map(|changes| changes.into_iter().map(|(_, changed)| changed).collect());
        let counts = books.subscribers.counts(subscriber, ids);
        Ok((News { position, changes, lease: Duration::from_nanos(left) }, counts))
    }

    /// Takes a subscriber off that has stopped answering from memory. Whether the usage that came with it has to be
    /// counted.
    pub(crate) fn leave(&self, subscriber: VerifierId, ids: Option<&PollIds>, elapsed: u64) -> Result<bool, SharedId> {
        let mut books = self.books();
        if books.subscribers.arrive(subscriber, ids, true, elapsed)? == Arrival::Late {
            return Ok(false);
        }
        books.subscribers.leave(subscriber);
        Ok(books.subscribers.counts(subscriber, ids))
    }

    /// When no subscriber will hold a lease any more; `None` when none does.
    pub(crate) fn subscribed_until(&self) -> Option<u64> {
        self.books().subscribers.end()
    }

    /// How many subscribers hold a lease at `elapsed`.
    pub(crate) fn subscribers(&self, elapsed: u64) -> usize {
        self.books().subscribers.len(elapsed)
    }

    pub(crate) fn lease_end(&self) -> u64 {
        self.lease_end.load(Ordering::SeqCst)
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Keys evicted for room, keys evicted by changes, and how often all were forgotten.
    pub(crate) fn evicted(&self) -> [u64; 3] {
        [&self.evictions, &self.changed, &self.forgotten].map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl Books {
    /// Whether an answer that came with `seq` shows every change that has begun to be applied.
    fn is_fresh(&self, seq: Seq, asked: Generation) -> bool {
        !self.stopped && self.generation == asked.0 && seq >= self.applied.seq
    }

    /// Up to which change everything is applied here and by every subscriber.
    fn reported(&mut self, elapsed: u64) -> Seq {
        let applied = self.applied.seq;
        self.subscribers.acknowledged(elapsed).map_or(applied, |acknowledged| acknowledged.min(applied))
    }

    /// Keeps a change that was applied, for subscribers.
    fn keep(&mut self, at: Position, changed: &Changed) {
        if self.recent.len() >= RECENT_CHANGES
            && let Some((oldest, _)) = self.recent.pop_front()
        {
            self.before_recent = oldest;
        }
        self.recent.push_back((at, changed.clone()));
    }

    /// The changes after `position`; `None` when that is no position of this log, or one from too long ago.
    fn changes_after(&self, position: Position) -> Option<impl ExactSizeIterator<Item = &(Position, Changed)>> {
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

    fn enter(&mut self, digest: Digest, entry: &Arc<Entry>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32 // at most `max`, which fits
        });
        let key = &entry.record.key;
        self.by_key.insert(key.id, slot);
        self.by_account.insert((key.account_id.clone(), slot));
        if let Some(application) = key.application_id {
            self.by_application.insert((application, slot));
        }
        self.slots[slot as usize] = Some((digest, Arc::clone(entry)));
    }

    fn leave(&mut self, slot: u32) -> Option<Digest> {
        let (digest, entry) = self.slots.get_mut(slot as usize)?.take()?;
        let key = &entry.record.key;
        self.by_key.remove(&key.id);
        self.by_account.remove(&(key.account_id.clone(), slot));
        if let Some(application) = key.application_id {
            self.by_application.remove(&(application, slot));
        }
        self.free.push(slot);
        Some(digest)
    }

    /// The entry to make room: first in, first out, but one that was used since the hand last passed stays a turn.
    fn next_to_go(&mut self) -> u32 {
        for _ in 0..SECOND_CHANCES {
            let slot = self.advance();
            let used = self.slots[slot as usize]
                .as_ref()
                .is_some_and(|(_, entry)| entry.touched.swap(false, Ordering::Relaxed));
            if !used {
                return slot;
            }
        }
        self.advance()
    }

    fn advance(&mut self) -> u32 {
        let slot = self.hand % self.slots.len();
        self.hand = slot + 1;
        slot as u32
    }
}

/// Hashes digests. They are evenly spread already, so eight of their bytes are enough; mixed with numbers nobody
/// outside knows, so that nobody can choose keys that fall together.
#[derive(Clone, Copy)]
struct DigestHash {
    add: u64,
    multiply: u64,
}

impl DigestHash {
    fn random() -> Self {
        let random = RandomState::new();
        Self { add: random.hash_one(0), multiply: random.hash_one(1) | 1 }
    }
}

impl BuildHasher for DigestHash {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        DigestHasher { keys: *self, hash: 0 }
    }
}

struct DigestHasher {
    keys: DigestHash,
    hash: u64,
}

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let start = bytes.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
        let product = u128::from(start ^ self.keys.add) * u128::from(self.keys.multiply);
        self.hash ^= (product as u64) ^ ((product >> 64) as u64);
    }

    /// The length of a digest tells nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}
