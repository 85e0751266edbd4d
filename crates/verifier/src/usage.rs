//! Usage counts of verifications per key, day and outcome, which are kept in memory and taken in batches.
//!
//! Nothing is written per request. Each cached key has a `Tally` of counts. The first use after the counts were taken puts
//! the tally into the queue of the key's account, which keeps it even if the key is evicted, so no count is lost. The bytes
//! that wait to be taken are bounded, with fair shares for accounts: above the bound, the account with the most loses some.

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
    queues: Shares<VecDeque<Arc<Tally>>>,
    /// The accounts with a queue, in the order in which their counts are taken.
    turns: VecDeque<AccountId>,
    tallies: usize,
    rows: BTreeMap<RowKey, Sum>,
    dropped: u64,
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
            queues: Shares::new(bounds.tally_bytes),
            turns: VecDeque::new(),
            tallies: 0,
            rows: BTreeMap::new(),
            dropped: 0,
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
        waiting.tallies + waiting.rows.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        let waiting = self.waiting();
        waiting.queues.held() + waiting.rows.len() * ROW
    }

    /// Takes rows that were put back and then tallies of keys, at most `max` together.
    pub(crate) fn take(&self, now: Timestamp, max: usize) -> Vec<Usage> {
        let (rows, tallies) = {
            let mut waiting = self.waiting();
            let rows: Vec<_> = (0..max).map_while(|_| waiting.rows.pop_first()).collect();
            let tallies: Vec<_> = (rows.len()..max).map_while(|_| waiting.pop()).collect();
            (rows, tallies)
        };
        let day = time::day(now);
        let mut merged = Merged::default();
        for (
            (key_id, day, outcome),
            Sum {
                count,
                last_used_at,
            },
        ) in rows
        {
            merged.add(Usage {
                key_id,
                day,
                outcome,
                count,
                last_used_at,
            });
        }
        for tally in tallies {
            tally.queued.store(false, Ordering::SeqCst);
            for (index, count) in tally.counts.iter().enumerate() {
                let count = count.swap(0, Ordering::SeqCst);
                if count > 0 {
                    let last_used_at =
                        (index == 0).then(|| tally.last_used.load(Ordering::Relaxed));
                    merged.add(Usage {
                        key_id: tally.key,
                        day,
                        outcome: outcome(index),
                        count,
                        last_used_at: last_used_at
                            .and_then(|at| Timestamp::from_microsecond(at).ok()),
                    });
                }
            }
        }
        merged.rows
    }

    pub(crate) fn restore(&self, rows: Vec<Usage>) {
        let mut waiting = self.waiting();
        for Usage {
            key_id,
            day,
            outcome,
            count,
            last_used_at,
        } in rows
        {
            let fits = waiting.rows.len() < self.max_rows;
            match waiting.rows.entry((key_id, day, outcome)) {
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
                btree_map::Entry::Vacant(_) => waiting.dropped += count,
            }
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.waiting().dropped
    }
}

impl Waiting {
    /// Puts a tally into the queue of its account. Above the bound, the last tally of the account with the most tallies is
    /// removed from its queue. A removed tally keeps its counts, and the next use of its key queues it again.
    fn push(&mut self, tally: &Arc<Tally>) {
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
            self.tallies -= 1;
        }
        let queue = self.queues.add(&tally.account, TALLY);
        queue.push_back(Arc::clone(tally));
        if queue.len() == 1 {
            self.turns.push_back(tally.account.clone());
        }
        self.tallies += 1;
    }

    /// Removes and returns the next tally of the account whose turn it is.
    fn pop(&mut self) -> Option<Arc<Tally>> {
        let account = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&account)?;
        let tally = queue.pop_front()?;
        let more = !queue.is_empty();
        self.queues.remove(&account, TALLY);
        if more {
            self.turns.push_back(account);
        }
        self.tallies -= 1;
        Some(tally)
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
                row.count += usage.count;
                row.last_used_at = row.last_used_at.max(usage.last_used_at);
            }
        }
    }
}
