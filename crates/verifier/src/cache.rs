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
//!
//! Entries are weighed in bytes, and accounts have fair shares of all bytes ([`Shares`]). When there is no room, the
//! account that holds the most evicts an entry that it has not used lately, by a clock hand of its own.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    ops::Bound,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;
use tollkey_core::{
    AccountId, ApiKey, ApplicationId, ChangeLog, Changed, Digest, KeyId, Position, Record, Seq,
    ServiceKeyId, VerifierId, heap::allocation,
};

use crate::{
    locks::{AtomicBool, AtomicU64, Map, Mutex, MutexGuard},
    rate::{Allowance, Allowances},
    share::Shares,
    source::{News, PollIds},
    stats::count,
    subscription::subscribers::{Arrival, NoLease, SharedId, Subscribers},
    usage::Tally,
    watches::Watches,
};

/// How many service keys are remembered. Each stands for a resource server or gateway: there are few.
const MAX_SERVICE_KEYS: usize = 1024;

/// How many changes are kept for subscribers. One further behind forgets everything.
const RECENT_CHANGES: usize = 10_000;

/// The least and the greatest ID of a key.
pub(crate) const FIRST: KeyId = KeyId::from_bytes([0; 16]);
pub(crate) const LAST: KeyId = KeyId::from_bytes([u8::MAX; 16]);

/// How many entries are given a second chance before one goes without, so that no single miss pays for all.
const SECOND_CHANCES: usize = 64;

/// How many bytes an entry takes besides what its record owns: itself and its counts, each with two reference counts, and
/// its places in the maps and lists, which are half empty on average: a node and a slot of the map that readers use, a
/// place in the list of all entries, and one in the index of keys, in that of accounts and in that of applications.
const ENTRY: usize = allocation(16 + size_of::<Entry>())
    + allocation(16 + size_of::<Tally>())
    + allocation(size_of::<Digest>() + 16)
    + 2 * (9 + size_of::<usize>())
    + 2 * (size_of::<KeyId>() + 8)
    + 2 * (size_of::<AccountId>() + size_of::<KeyId>())
    + 2 * (size_of::<ApplicationId>() + size_of::<KeyId>());

/// A cached key, and what belongs to it alone.
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) record: Record,
    /// The rate limits of its ancestors, the root's first, and its own: every use takes from all of them.
    pub(crate) allowances: Box<[Arc<Allowance>]>,
    /// Separate, so that counts that wait to be fetched do not keep the record.
    pub(crate) tally: Arc<Tally>,
    /// How many bytes it takes in the cache, with its allowances and its counts, as estimated.
    weight: usize,
    /// Whether it was used since the eviction hand passed.
    touched: AtomicBool,
}

impl Entry {
    pub(crate) fn new(digest: Digest, record: Record, allowances: Box<[Arc<Allowance>]>) -> Self {
        let tally = Arc::new(Tally::new(record.key.id, record.key.account_id.clone()));
        let weight = ENTRY
            + record.heap_bytes()
            + allowances.len() * (size_of::<Arc<Allowance>>() + Allowances::EACH);
        Self {
            digest,
            record,
            allowances,
            tally,
            weight,
            touched: AtomicBool::new(false),
        }
    }

    /// Whether it was used since an eviction hand last passed. Now one has.
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

/// The most that is cached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How many keys.
    pub(crate) entries: usize,
    /// How many bytes of them.
    pub(crate) entry_bytes: usize,
    /// How many bytes of allowances. Those of cached keys are counted with the keys as well.
    pub(crate) allowance_bytes: usize,
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
    max_entries: usize,
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
    /// All entries, in the order of the eviction hand.
    entries: Vec<Arc<Entry>>,
    hand: usize,
    /// Where each key is in `entries`.
    by_key: HashMap<KeyId, u32>,
    by_application: BTreeSet<(ApplicationId, KeyId)>,
    by_account: BTreeSet<(AccountId, KeyId)>,
    /// The bytes of the entries of each account, and the key that the account's own hand has passed.
    shares: Shares<Option<KeyId>>,
    service_keys: VecDeque<Digest>,
    allowances: Allowances,
    watches: Watches,
}

impl Memory {
    /// An empty cache of at most so many keys and bytes, and of so many allowances, for which every change up to `applied`
    /// is no news. `margin`, in nanoseconds, is added to the leases of subscribers.
    pub(crate) fn new(bounds: &Bounds, applied: Position, margin: u64) -> Self {
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
                entries: Vec::new(),
                hand: 0,
                by_key: HashMap::new(),
                by_application: BTreeSet::new(),
                by_account: BTreeSet::new(),
                service_keys: VecDeque::new(),
                shares: Shares::new(bounds.entry_bytes),
                allowances: Allowances::new(bounds.allowance_bytes),
                watches: Watches::new(),
            }),
            max_entries: bounds.entries.min(u32::MAX as usize),
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
    pub(crate) fn recall_late(
        &self,
        digest: &Digest,
        elapsed: u64,
        grace: u64,
    ) -> Option<Arc<Entry>> {
        if !self.may_answer(elapsed.saturating_sub(grace)) {
            return None;
        }
        self.keys.pin().get(digest).map(Arc::clone)
    }

    /// The service key with that digest, under the same conditions.
    pub(crate) fn recall_service_key(&self, digest: &Digest, elapsed: u64) -> Option<ServiceKeyId> {
        if self.may_answer(elapsed) {
            self.service_keys.pin().get(digest).copied()
        } else {
            None
        }
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
        let mut record = record.compacted();
        let mut books = self.books();
        let fresh = books.is_fresh(seq, asked);
        if let Some(id) = books.shares.id(&record.key.account_id) {
            record.key.account_id = id; // one for all keys of the account
        }
        let (account, limits) = (&record.key.account_id, record.key.rate_limits());
        let allowances = limits
            .map(|(key, limit)| books.allowances.of(account, key, limit, fresh, elapsed))
            .collect();
        let entry = Arc::new(Entry::new(*digest, record, allowances));
        // An entry that takes much of the whole cache is used once: it would evict too many others.
        if fresh && self.max_entries > 0 && entry.weight <= books.shares.largest() {
            self.insert(&mut books, &entry);
        }
        entry
    }

    /// Takes in a service key: remembers it if that is safe.
    pub(crate) fn learn_service_key(
        &self,
        digest: &Digest,
        seq: Seq,
        asked: Generation,
        id: ServiceKeyId,
    ) {
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

    fn insert(&self, books: &mut Books, entry: &Arc<Entry>) {
        let key = &entry.record.key;
        self.remove(books, key.id); // another request asked for the same key at the same time
        while books.by_key.len() >= self.max_entries
            || !books.shares.fits(&key.account_id, entry.weight)
        {
            let Some(next) = books.next_to_go(&key.account_id, entry.weight) else {
                return;
            };
            self.remove(books, next);
            count(&self.evictions);
        }
        books.enter(entry);
        self.keys.pin().insert(entry.digest, Arc::clone(entry));
    }

    /// Evicts a key. Returns whether it was cached.
    fn remove(&self, books: &mut Books, key: KeyId) -> bool {
        let Some(at) = books.by_key.get(&key).copied() else {
            return false;
        };
        // First from the map that readers use, so that no panic below leaves an evicted key there.
        self.keys.pin().remove(&books.entries[at as usize].digest);
        books.leave(key, at);
        true
    }

    /// Applies what has changed after the position up to which everything is applied. True when nothing is missing up
    /// to the log's current position, false when the rest has to be asked for.
    pub(crate) fn apply(&self, log: &ChangeLog) -> bool {
        let mut books = self.books();
        let before = books.applied;
        let goes_on = |changes: &[(Position, Changed)]| {
            let gapless = changes
                .iter()
                .zip(before.seq.0 + 1..)
                .all(|((at, _), expected)| at.seq.0 == expected);
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
                changes
                    .iter()
                    .for_each(|changed| self.evict(&mut books, changed));
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
        let keys: Vec<KeyId> = match changed {
            Changed::Key(id) => vec![*id],
            Changed::Application(id) => books
                .by_application
                .range((*id, FIRST)..=(*id, LAST))
                .map(|(_, key)| *key)
                .collect(),
            Changed::Account(id) => books
                .by_account
                .range((id.clone(), FIRST)..=(id.clone(), LAST))
                .map(|(_, key)| *key)
                .collect(),
            Changed::ServiceKey(id) => {
                let known = self.service_keys.pin();
                known.retain(|_, remembered| remembered != id);
                books
                    .service_keys
                    .retain(|digest| known.contains_key(digest));
                return;
            }
        };
        let evicted = keys
            .into_iter()
            .filter(|key| self.remove(books, *key))
            .count();
        self.changed.fetch_add(evicted as u64, Ordering::Relaxed);
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
        books.entries.clear();
        books.hand = 0;
        books.by_key.clear();
        books.by_application.clear();
        books.by_account.clear();
        books.shares.clear();
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
        Ok(if books.reported(elapsed) > before {
            Acknowledged::More
        } else {
            Acknowledged::NoMore
        })
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
        let whole = missing
            .as_ref()
            .is_none_or(|changes| changes.len() <= limit);
        let changes: Option<Vec<_>> = missing.map(|changes| changes.take(limit).cloned().collect());
        let position = match changes.as_deref() {
            Some([.., (last, _)]) if !whole => *last,
            _ => books.applied,
        };
        // A lease comes only with all there is.
        let mut left = if whole {
            self.lease_end().saturating_sub(elapsed)
        } else {
            0
        };
        if left > 0
            && !books.subscribers.grant(
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
        let counts = books.subscribers.counts(subscriber, ids);
        Ok((
            News {
                position,
                changes,
                lease: Duration::from_nanos(left),
            },
            counts,
        ))
    }

    /// Takes a subscriber off that has stopped answering from memory. Whether the usage that came with it has to be
    /// counted.
    pub(crate) fn leave(
        &self,
        subscriber: VerifierId,
        ids: Option<&PollIds>,
        elapsed: u64,
    ) -> Result<bool, SharedId> {
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

    /// How many bytes the entries and the allowances take, as estimated.
    pub(crate) fn bytes(&self) -> usize {
        let books = self.books();
        books.shares.held() + books.allowances.bytes()
    }

    /// Keys evicted for room, keys evicted by changes, and how often all were forgotten.
    pub(crate) fn evicted(&self) -> [u64; 3] {
        [&self.evictions, &self.changed, &self.forgotten]
            .map(|counter| counter.load(Ordering::Relaxed))
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
        self.subscribers
            .acknowledged(elapsed)
            .map_or(applied, |acknowledged| acknowledged.min(applied))
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

    fn enter(&mut self, entry: &Arc<Entry>) {
        let key = &entry.record.key;
        self.by_key.insert(key.id, self.entries.len() as u32); // at most `max_entries`, which fits
        self.by_account.insert((key.account_id.clone(), key.id));
        if let Some(application) = key.application_id {
            self.by_application.insert((application, key.id));
        }
        self.shares.add(&key.account_id, entry.weight);
        self.entries.push(Arc::clone(entry));
    }

    /// Takes out the entry of a key, which is at that place.
    fn leave(&mut self, key: KeyId, at: u32) {
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

    /// The key that makes room for so many bytes of an account: one of the account that holds more than its fair share, or
    /// any when none does. `None` when no key is cached.
    fn next_to_go(&mut self, account: &AccountId, bytes: usize) -> Option<KeyId> {
        let payer = self.shares.payer(account, bytes);
        payer
            .and_then(|payer| self.next_of(&payer))
            .or_else(|| self.next_of_all())
    }

    /// The next key of an account to go: in turn, but one that was used since the account's hand last passed stays.
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

    /// The next key to go, of whichever account, by the hand that passes all of them.
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

    /// The length of a digest tells nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}
