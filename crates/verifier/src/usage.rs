//! What is counted of verifications: per key, day and outcome, in memory, fetched in batches.
//!
//! Nothing is written per request. Each remembered key carries its own counts; the first use after a fetch puts it
//! into a queue, and the queue keeps it alive when the key is forgotten in between, so no count is lost.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use tollkey_core::{Denial, KeyId, Timestamp, Usage, time};

use crate::memory::Entry;

/// How many keys one fetch takes: as many as can be written down in one small transaction. There may be more: fetch until
/// nothing comes.
pub const BATCH: usize = 500;

/// The counts of one remembered key since the last fetch.
#[derive(Debug)]
pub(crate) struct Tally {
    queued: AtomicBool,
    /// Microseconds since 1970 of the last success.
    last_used: AtomicI64,
    /// By outcome: a success in place 0, a denial in its own place. Place 0 is free for that, because it would be
    /// `UnknownKey`, which is never counted for a key.
    counts: [AtomicU64; Denial::ALL.len()],
}

const NEVER: i64 = i64::MIN;

impl Default for Tally {
    fn default() -> Self {
        Self { queued: AtomicBool::new(false), last_used: AtomicI64::new(NEVER), counts: Default::default() }
    }
}

fn place(outcome: Result<(), Denial>) -> usize {
    outcome.err().map_or(0, |denial| denial as usize)
}

fn outcome(place: usize) -> Option<Denial> {
    (place > 0).then(|| Denial::ALL[place])
}

/// The keys that have been used since the last fetch, and counts that could not be written down.
#[derive(Debug)]
pub(crate) struct Ledger {
    max: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    entries: VecDeque<Arc<Entry>>,
    restored: VecDeque<Usage>,
    dropped: u64,
}

impl Ledger {
    /// A ledger for at most `max` used keys between two fetches.
    pub(crate) fn new(max: usize) -> Self {
        // Allocated whole, so that no verification pays for growing it; memory nobody touches costs nothing.
        let waiting = Waiting { entries: VecDeque::with_capacity(max), restored: VecDeque::new(), dropped: 0 };
        Self { max, waiting: Mutex::new(waiting) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change to it is complete at each point that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one verification of a key.
    pub(crate) fn count(&self, entry: &Arc<Entry>, outcome: Result<(), Denial>, now: Timestamp) {
        let tally = &entry.tally;
        if outcome.is_ok() {
            tally.last_used.store(now.as_microsecond(), Ordering::Relaxed);
        }
        // First the count, then the look at the flag, both in the one order that all threads agree on: whoever fetches
        // clears the flag first and reads the counts then, so either it sees this count or this sees the cleared flag.
        tally.counts[place(outcome)].fetch_add(1, Ordering::SeqCst);
        if !tally.queued.load(Ordering::SeqCst) && !tally.queued.swap(true, Ordering::SeqCst) {
            let mut waiting = self.waiting();
            if waiting.entries.len() < self.max {
                waiting.entries.push_back(Arc::clone(entry));
            } else {
                // The counts stay with the key; a later use tries again.
                waiting.dropped += 1;
                tally.queued.store(false, Ordering::SeqCst);
            }
        }
    }

    /// How many keys and rows there are to fetch.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.waiting();
        waiting.entries.len().max(waiting.restored.len())
    }

    /// Fetches the counts of at most `max` keys, and as many that were put back.
    pub(crate) fn take(&self, now: Timestamp, max: usize) -> Vec<Usage> {
        let (entries, restored): (Vec<_>, Vec<_>) = {
            let mut waiting = self.waiting();
            let entries = waiting.entries.len().min(max);
            let restored = waiting.restored.len().min(max);
            (waiting.entries.drain(..entries).collect(), waiting.restored.drain(..restored).collect())
        };
        let day = time::day(now);
        let mut rows = Merged::default();
        for usage in restored {
            rows.add(usage);
        }
        for entry in entries {
            let tally = &entry.tally;
            tally.queued.store(false, Ordering::SeqCst);
            for (place, count) in tally.counts.iter().enumerate() {
                let count = count.swap(0, Ordering::SeqCst);
                if count > 0 {
                    let last_used_at = (place == 0).then(|| tally.last_used.load(Ordering::Relaxed));
                    rows.add(Usage {
                        key_id: entry.record.key.id,
                        day,
                        outcome: outcome(place),
                        count,
                        last_used_at: last_used_at.and_then(|at| Timestamp::from_microsecond(at).ok()),
                    });
                }
            }
        }
        rows.rows
    }

    /// Puts counts back that could not be written down.
    pub(crate) fn restore(&self, rows: Vec<Usage>) {
        let mut waiting = self.waiting();
        for usage in rows {
            if waiting.restored.len() < self.max {
                waiting.restored.push_back(usage);
            } else {
                waiting.dropped += usage.count;
            }
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.waiting().dropped
    }
}

/// Rows of which no two are about the same key, day and outcome: a key that was forgotten and seen again has several
/// tallies, and a store may refuse to write one row twice in one statement.
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
