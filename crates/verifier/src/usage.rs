//! What is counted of verifications: per key, day and outcome, in memory, fetched in batches.
//!
//! Nothing is written per request. Each cached key has counts of its own (`Tally`); the first use after a fetch puts
//! them into the queue of the key's account, which keeps them when the key is evicted in between, so no count is lost. What
//! waits is bounded in bytes, with a fair share for each account: when there is no room, the account with the most waiting
//! counts loses some.
//!
//! Counts can wait as rows, too: those of subscribers, those that could not be written, and those that
//! [`crate::Verifier::collect_usage`] moved there, so that they are merged until they are written and can be read by key.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map, hash_map},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use tollkey_core::{AccountId, Denial, KeyId, Timestamp, Usage, heap::allocation, time};

use crate::share::Shares;

/// How many keys one fetch takes: as many as can be written down in one small transaction. There may be more: fetch until
/// nothing comes.
pub const BATCH: usize = 500;

/// The counts of one cached key since the last fetch.
#[derive(Debug)]
#[repr(C)] // what a successful verification touches stands together, for the processor's caches
pub(crate) struct Tally {
    queued: AtomicBool,
    /// Microseconds since 1970 of the last success.
    last_used: AtomicI64,
    /// By outcome, at its [`place`].
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

/// Where an outcome is counted: a success at 0, a denial at its own place. That of `UnknownKey` would be 0; it is not
/// counted, because the store keeps no counts of keys that are unknown.
fn place(outcome: Result<(), Denial>) -> Option<usize> {
    match outcome {
        Ok(()) => Some(0),
        Err(Denial::UnknownKey) => None,
        Err(denial) => Some(denial as usize),
    }
}

fn outcome(place: usize) -> Option<Denial> {
    (place > 0).then(|| Denial::ALL[place])
}

/// How many bytes a waiting tally takes: itself, with two reference counts, for its key may have been evicted, and its place
/// in a queue that is half empty on average.
const TALLY: usize = allocation(16 + size_of::<Tally>()) + 2 * size_of::<Arc<Tally>>();

/// How many bytes a row takes that was put back: its place in a tree whose nodes are two thirds full.
const ROW: usize = (size_of::<RowKey>() + size_of::<Sum>()) * 3 / 2;

/// The most bytes that wait to be fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Of tallies.
    pub(crate) tally_bytes: usize,
    /// Of rows that were put back.
    pub(crate) row_bytes: usize,
}

/// The tallies of keys that have been used since the last fetch, and rows that could not be written down.
#[derive(Debug)]
pub(crate) struct Ledger {
    max_rows: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    queues: Shares<VecDeque<Arc<Tally>>>,
    /// The accounts with a queue, the one to be fetched from next in front.
    turns: VecDeque<AccountId>,
    tallies: usize,
    rows: BTreeMap<RowKey, Sum>,
    dropped: u64,
    /// What was counted by outcome since [`Ledger::take_outcomes`]: what left the tallies, and what subscribers sent.
    outcomes: BTreeMap<Option<Denial>, u64>,
}

type RowKey = (KeyId, i32, Option<Denial>);

/// How often, and when last.
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
            outcomes: BTreeMap::new(),
        };
        Self {
            max_rows: bounds.row_bytes / ROW,
            waiting: Mutex::new(waiting),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change to it is complete at each point that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one verification of a key. [`Denial::UnknownKey`] is not counted.
    pub(crate) fn count(&self, tally: &Arc<Tally>, outcome: Result<(), Denial>, now: Timestamp) {
        let Some(place) = place(outcome) else { return };
        if outcome.is_ok() {
            tally
                .last_used
                .store(now.as_microsecond(), Ordering::Relaxed);
        }
        // First the count, then the look at the flag, both in the one order that all threads agree on: whoever fetches
        // clears the flag first and reads the counts then, so either it sees this count or this sees the cleared flag.
        tally.counts[place].fetch_add(1, Ordering::SeqCst);
        if !tally.queued.load(Ordering::SeqCst) && !tally.queued.swap(true, Ordering::SeqCst) {
            self.waiting().push(tally);
        }
    }

    /// How many keys and rows there are to fetch.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.waiting();
        waiting.tallies + waiting.rows.len()
    }

    /// How many bytes wait to be fetched, as estimated.
    pub(crate) fn bytes(&self) -> usize {
        let waiting = self.waiting();
        waiting.queues.held() + waiting.rows.len() * ROW
    }

    /// Fetches at most `max` rows that were put back and then the counts of keys, so that it is about `max` keys in all.
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

    /// Moves the counts of at most `max` keys to the rows, and returns how many keys that were: none when no key waits,
    /// `None` when the rows fill half of their bytes. The other half is for rows of subscribers, and for those that could not
    /// be written.
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

    /// Puts counts back that could not be written down.
    pub(crate) fn restore(&self, rows: Vec<Usage>) {
        self.waiting().put_back(rows, self.max_rows);
    }

    /// How often each outcome was counted since the last call, by tallies that were fetched since and by subscribers.
    pub(crate) fn take_outcomes(&self) -> BTreeMap<Option<Denial>, u64> {
        std::mem::take(&mut self.waiting().outcomes)
    }

    /// The rows of a key that wait, by day.
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
            let there_is_room = self.rows.len() < max_rows;
            match self.rows.entry((key_id, day, outcome)) {
                btree_map::Entry::Occupied(mut row) => {
                    let sum = row.get_mut();
                    sum.count = sum.count.saturating_add(count);
                    sum.last_used_at = sum.last_used_at.max(last_used_at);
                }
                btree_map::Entry::Vacant(row) if there_is_room => {
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

    /// At most `max` tallies, of all accounts in turn.
    fn pop_some(&mut self, max: usize) -> Vec<Arc<Tally>> {
        (0..max).map_while(|_| self.pop()).collect()
    }

    /// Puts a tally into the queue of its account. Where there is no room, the last tally of the account with the most of
    /// them leaves its queue; its counts stay with its key, and a later use tries again.
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

    /// The next tally of the account whose turn it is.
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

/// Takes the counts out of tallies.
fn counts(tallies: &[Arc<Tally>], now: Timestamp) -> Vec<Usage> {
    let day = time::day(now);
    let mut counts = Vec::with_capacity(tallies.len());
    for tally in tallies {
        tally.queued.store(false, Ordering::SeqCst);
        for (place, count) in tally.counts.iter().enumerate() {
            // Most outcomes never occur. What is counted after this load puts the tally into the queue again.
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
                row.count = row.count.saturating_add(usage.count);
                row.last_used_at = row.last_used_at.max(usage.last_used_at);
            }
        }
    }
}
