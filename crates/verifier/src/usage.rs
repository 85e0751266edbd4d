//! Usage counts of verifications per key, day and outcome, which are kept in memory and taken in batches.
//!
//! Nothing is written per request. Each cached key has a `Tally` of counts. The first use after the counts were taken puts
//! the tally into a queue, which keeps it even if the key is evicted, so no count is lost. The bytes that wait to be taken
//! are bounded, with fair shares for accounts: above the bound, the account with the most loses some.
//!
//! Counts also wait as rows: those of subscribers, those that could not be written, and those that
//! [`crate::Verifier::collect_usage`] moved there. Rows are merged until they are written, and can be read by key.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map, hash_map},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use tollkey_core::{AccountId, Denial, KeyId, Timestamp, Usage, heap::allocation, time};

use crate::share::Shares;

/// The maximum number of keys whose counts are taken at a time: as many as one small transaction can store.
pub const BATCH: usize = 500;

/// The counts of a cached key since they were last taken.
#[derive(Debug)]
#[repr(C)] // the fields that a successful verification writes are adjacent, for the processor's caches
pub(crate) struct Tally {
    queued: AtomicBool,
    /// Microseconds since 1970 of the last success.
    last_used: AtomicI64,
    /// The count of each outcome, at its [`index`].
    counts: [AtomicU64; Denial::ALL.len()],
    key: KeyId,
    account: AccountId,
}

const NEVER: i64 = i64::MIN;

impl Tally {
    pub(crate) fn new(key: KeyId, account: AccountId) -> Self {
        let (queued, last_used) = (AtomicBool::new(false), AtomicI64::new(NEVER));
        Self {
            key,
            account,
            queued,
            last_used,
            counts: Default::default(),
        }
    }
}

/// Returns the index of an outcome in [`Tally::counts`]: 0 for a success, and the discriminant of a denial. `UnknownKey`,
/// whose discriminant is 0, is not counted, because the store has no counts of unknown keys.
fn index(outcome: Result<(), Denial>) -> Option<usize> {
    match outcome {
        Ok(()) => Some(0),
        Err(Denial::UnknownKey) => None,
        Err(denial) => Some(denial as usize),
    }
}

fn outcome(index: usize) -> Option<Denial> {
    (index > 0).then(|| Denial::ALL[index])
}

/// The bytes of a waiting tally: the tally with two reference counts, because its key may have been evicted, and its slot in
/// a queue that is half empty on average.
const TALLY: usize = allocation(16 + size_of::<Tally>()) + 2 * size_of::<Arc<Tally>>();

/// The bytes of a row that was put back: its slot in a tree whose nodes are two thirds full.
const ROW: usize = (size_of::<RowKey>() + size_of::<Sum>()) * 3 / 2;

/// The inbox gets tallies until one part in this many of the bytes for tallies is used.
const INBOX_PART: usize = 2;

/// The number of tallies that a push moves from the inbox to the queues of their accounts, once it gets no more.
const SORTED_BY_A_PUSH: usize = 16;

/// The maximum bytes that wait to be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) tally_bytes: usize,
    pub(crate) row_bytes: usize,
}

/// The counts that wait to be taken: tallies of used keys, and rows that could not be stored and were put back.
#[derive(Debug)]
pub(crate) struct Ledger {
    max_rows: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    max_tally_bytes: usize,
    /// Tallies of all accounts while there is plenty of room. Counting the bytes of each account would make the first use
    /// of a key more expensive than the rest of its verification.
    inbox: VecDeque<Arc<Tally>>,
    /// The tallies of each account, into which the inbox is sorted when room becomes scarce.
    queues: Shares<VecDeque<Arc<Tally>>>,
    /// The accounts with a queue, in the order in which their counts are taken.
    turns: VecDeque<AccountId>,
    /// The number of tallies in `queues`.
    sorted: usize,
    rows: BTreeMap<RowKey, Sum>,
    dropped: u64,
    /// Counts by outcome since the last [`Ledger::take_outcomes`], of taken tallies and of subscribers.
    outcomes: BTreeMap<Option<Denial>, u64>,
}

type RowKey = (KeyId, i32, Option<Denial>);

/// A count, and the time of the last use.
#[derive(Debug, Clone, Copy)]
struct Sum {
    count: u64,
    last_used_at: Option<Timestamp>,
}

impl Ledger {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let waiting = Waiting {
            max_tally_bytes: bounds.tally_bytes,
            inbox: VecDeque::new(),
            queues: Shares::new(bounds.tally_bytes),
            turns: VecDeque::new(),
            sorted: 0,
            rows: BTreeMap::new(),
            dropped: 0,
            outcomes: BTreeMap::new(),
        };
        Self {
            max_rows: bounds.row_bytes / ROW,
            waiting: Mutex::new(waiting),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // The state is consistent at each point that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one verification of a key. [`Denial::UnknownKey`] is not counted.
    pub(crate) fn count(&self, tally: &Arc<Tally>, outcome: Result<(), Denial>, now: Timestamp) {
        let Some(index) = index(outcome) else { return };
        if outcome.is_ok() {
            tally
                .last_used
                .store(now.as_microsecond(), Ordering::Relaxed);
        }
        // Count first, then read the flag, both sequentially consistent. `take` clears the flag first and then reads the
        // counts, so either `take` sees this count, or the cleared flag is seen here.
        tally.counts[index].fetch_add(1, Ordering::SeqCst);
        if !tally.queued.load(Ordering::SeqCst) && !tally.queued.swap(true, Ordering::SeqCst) {
            self.waiting().push(tally);
        }
    }

    pub(crate) fn len(&self) -> usize {
        let waiting = self.waiting();
        waiting.inbox.len() + waiting.sorted + waiting.rows.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        let waiting = self.waiting();
        waiting.tally_bytes() + waiting.rows.len() * ROW
    }

    /// Takes rows that were put back and then tallies of keys, at most `max` together.
    pub(crate) fn take(&self, now: Timestamp, max: usize) -> Vec<Usage> {
        let (rows, tallies) = {
            let mut waiting = self.waiting();
            let rows: Vec<_> = (0..max).map_while(|_| waiting.rows.pop_first()).collect();
            let tallies = waiting.pop_some(max - rows.len());
            (rows, tallies)
        };
        let counted = counts(&tallies, now);
        self.waiting().count_outcomes(&counted);
        let mut merged = Merged::default();
        for usage in rows.into_iter().map(usage).chain(counted) {
            merged.add(usage);
        }
        merged.rows
    }

    /// Moves the counts of at most `max` keys to the rows, and returns the number of keys: 0 if no key waits, `None` if the
    /// rows fill half of their bytes. The other half is for rows of subscribers and rows that could not be written.
    pub(crate) fn collect(&self, now: Timestamp, max: usize) -> Option<usize> {
        let tallies = {
            let mut waiting = self.waiting();
            let free = (self.max_rows / 2).saturating_sub(waiting.rows.len());
            let keys = free / Denial::ALL.len(); // each can have a row for each outcome
            if keys == 0 {
                return None;
            }
            waiting.pop_some(max.min(keys))
        };
        self.receive(counts(&tallies, now));
        Some(tallies.len())
    }

    /// Adds rows that have not been counted here before.
    pub(crate) fn receive(&self, rows: Vec<Usage>) {
        let mut waiting = self.waiting();
        waiting.count_outcomes(&rows);
        waiting.put_back(rows, self.max_rows);
    }

    pub(crate) fn restore(&self, rows: Vec<Usage>) {
        self.waiting().put_back(rows, self.max_rows);
    }

    /// Returns the counts by outcome since the last call, those of subscribers included.
    pub(crate) fn take_outcomes(&self) -> BTreeMap<Option<Denial>, u64> {
        std::mem::take(&mut self.waiting().outcomes)
    }

    /// Returns the waiting rows of a key, by day.
    pub(crate) fn rows_of(&self, key: KeyId) -> Vec<Usage> {
        let waiting = self.waiting();
        let from_first = waiting.rows.range((key, i32::MIN, None)..);
        let of_key = from_first.take_while(|((id, ..), _)| *id == key);
        of_key.map(|(row, sum)| usage((*row, *sum))).collect()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.waiting().dropped
    }
}

impl Waiting {
    fn put_back(&mut self, rows: Vec<Usage>, max_rows: usize) {
        for Usage {
            key_id,
            day,
            outcome,
            count,
            last_used_at,
        } in rows
        {
            let fits = self.rows.len() < max_rows;
            match self.rows.entry((key_id, day, outcome)) {
                btree_map::Entry::Occupied(mut row) => {
                    let sum = row.get_mut();
                    sum.count = sum.count.saturating_add(count);
                    sum.last_used_at = sum.last_used_at.max(last_used_at);
                }
                btree_map::Entry::Vacant(row) if fits => {
                    row.insert(Sum {
                        count,
                        last_used_at,
                    });
                }
                btree_map::Entry::Vacant(_) => self.dropped = self.dropped.saturating_add(count),
            }
        }
    }

    fn count_outcomes(&mut self, rows: &[Usage]) {
        for row in rows {
            let count = self.outcomes.entry(row.outcome).or_default();
            *count = count.saturating_add(row.count);
        }
    }

    fn tally_bytes(&self) -> usize {
        self.inbox.len() * TALLY + self.queues.held()
    }

    /// Takes at most `max` tallies: of all accounts in turn, and then the inbox.
    fn pop_some(&mut self, max: usize) -> Vec<Arc<Tally>> {
        let next = |_| self.pop_sorted().or_else(|| self.inbox.pop_front());
        (0..max).map_while(next).collect()
    }

    fn push(&mut self, tally: &Arc<Tally>) {
        if self.tally_bytes() + TALLY <= self.max_tally_bytes / INBOX_PART {
            return self.inbox.push_back(Arc::clone(tally));
        }
        // A few at a time, because other verifications wait for the lock. The inbox is empty long before the bytes are.
        for _ in 0..SORTED_BY_A_PUSH {
            let Some(unsorted) = self.inbox.pop_front() else {
                break;
            };
            self.push_sorted(&unsorted);
        }
        self.push_sorted(tally);
    }

    /// Puts a tally into the queue of its account. Above the bound, the last tally of the account with the most tallies is
    /// removed from its queue. A removed tally keeps its counts, and the next use of its key queues it again.
    fn push_sorted(&mut self, tally: &Arc<Tally>) {
        while !self.queues.fits(&tally.account, TALLY) {
            self.dropped += 1;
            let own = self
                .queues
                .get_mut(&tally.account)
                .map_or(0, |queue| queue.len());
            let heaviest = self.queues.heaviest().map(|(account, _)| account.clone());
            let longer = heaviest.and_then(|account| {
                let queue = self
                    .queues
                    .get_mut(&account)
                    .filter(|queue| queue.len() > own + 1)?;
                Some((account, queue.pop_back()?))
            });
            let Some((account, other)) = longer else {
                tally.queued.store(false, Ordering::SeqCst);
                return;
            };
            other.queued.store(false, Ordering::SeqCst);
            self.queues.remove(&account, TALLY);
            self.sorted -= 1;
        }
        let queue = self.queues.add(&tally.account, TALLY);
        queue.push_back(Arc::clone(tally));
        if queue.len() == 1 {
            self.turns.push_back(tally.account.clone());
        }
        self.sorted += 1;
    }

    /// Removes and returns the next tally of the account whose turn it is.
    fn pop_sorted(&mut self) -> Option<Arc<Tally>> {
        let account = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&account)?;
        let tally = queue.pop_front()?;
        let more = !queue.is_empty();
        self.queues.remove(&account, TALLY);
        if more {
            self.turns.push_back(account);
        }
        self.sorted -= 1;
        Some(tally)
    }
}

/// Takes the counts from tallies.
fn counts(tallies: &[Arc<Tally>], now: Timestamp) -> Vec<Usage> {
    let day = time::day(now);
    let mut counts = Vec::with_capacity(tallies.len());
    for tally in tallies {
        tally.queued.store(false, Ordering::SeqCst);
        for (place, count) in tally.counts.iter().enumerate() {
            // Most outcomes never occur. A use that is counted after this load queues the tally again.
            if count.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let count = count.swap(0, Ordering::SeqCst);
            // Read after the count, so that it is not older than any use that was counted.
            let last_used_at = (place == 0).then(|| tally.last_used.load(Ordering::Relaxed));
            counts.push(Usage {
                key_id: tally.key,
                day,
                outcome: outcome(place),
                count,
                last_used_at: last_used_at.and_then(|at| Timestamp::from_microsecond(at).ok()),
            });
        }
    }
    counts
}

fn usage(
    (
        (key_id, day, outcome),
        Sum {
            count,
            last_used_at,
        },
    ): (RowKey, Sum),
) -> Usage {
    Usage {
        key_id,
        day,
        outcome,
        count,
        last_used_at,
    }
}

/// Rows without duplicates of a key, day and outcome. A key that was evicted and cached again has several tallies, and a
/// store may reject a statement that writes one row twice.
#[derive(Default)]
struct Merged {
    rows: Vec<Usage>,
    at: HashMap<(KeyId, i32, Option<Denial>), usize>,
}

impl Merged {
    fn add(&mut self, usage: Usage) {
        match self.at.entry((usage.key_id, usage.day, usage.outcome)) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(self.rows.len());
                self.rows.push(usage);
            }
            hash_map::Entry::Occupied(at) => {
                let row = &mut self.rows[*at.get()];
                row.count = row.count.saturating_add(usage.count);
                row.last_used_at = row.last_used_at.max(usage.last_used_at);
            }
        }
    }
}
