//! A semaphore that shares its permits fairly among owners.
//!
//! An ordinary semaphore has one queue, so one owner with many requests delays or excludes all others. A
//! [`FairSemaphore`] limits how many permits one owner holds, has a queue for each owner, and serves the queues in
//! turn. The store shares its connections among accounts with it, and the verifier its look-ups among callers.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The bounds of a [`FairSemaphore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many permits there are; at least 1.
    pub permits: usize,
    /// How many permits one owner can hold with [`Priority::Normal`]; at least 1.
    pub permits_per_owner: usize,
    /// How many requests can wait with [`Priority::Normal`], all owners together. When so many wait, a request of an
    /// owner with a shorter queue replaces the newest request of the owner with the longest one.
    pub waiting: usize,
}

impl Limits {
    /// As many permits, of which one owner can hold half, but at least one.
    #[must_use]
    pub fn half_per_owner(permits: usize, waiting: usize) -> Self {
        let permits = permits.max(1);
        Self {
            permits,
            permits_per_owner: (permits / 2).max(1),
            waiting,
        }
    }
}

/// In which order requests that wait are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Before all others, and not counted against the limits for one owner and for the queue. For few requests of this
    /// process itself: too many would starve the others.
    Urgent,
    /// In turn with the other owners.
    Normal,
}

/// Too many requests wait, and this owner has at least as many among them as any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests of this owner wait")]
pub struct QueueFull;

/// A semaphore that shares its permits fairly among owners. Cheap to clone; clones are the same semaphore.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use tollkey_fair::{FairSemaphore, Limits, Priority};
/// let semaphore = FairSemaphore::new(Limits::half_per_owner(2, 10));
/// let _first = semaphore.acquire("acme", Priority::Normal).await?;
/// // A second permit for `acme` waits for the first; `globex` gets one immediately.
/// let _second = semaphore.acquire("globex", Priority::Normal).await?;
/// # Ok::<_, tollkey_fair::QueueFull>(())
/// # }).unwrap();
/// ```
pub struct FairSemaphore<K>(Arc<Shared<K>>);

impl<K> Clone for FairSemaphore<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> fmt::Debug for FairSemaphore<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FairSemaphore")
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}

struct Shared<K> {
    limits: Limits,
    state: Mutex<State<K>>,
}

struct State<K> {
    free: usize,
    /// Permits held with [`Priority::Normal`], without owners that hold none.
    held: HashMap<K, usize>,
    next_ticket: u64,
    urgent: BTreeMap<u64, oneshot::Sender<()>>,
    /// The queue of each owner that waits, oldest ticket first; none is empty.
    queues: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
    /// The owners of `queues`, in the order in which they are served.
    turns: VecDeque<K>,
    /// How many requests are in `queues`.
    waiting: usize,
}

impl<K: Hash + Eq + Clone> FairSemaphore<K> {
    /// A semaphore with these bounds; all permits are free.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            permits: limits.permits.max(1),
            permits_per_owner: limits.permits_per_owner.max(1),
            ..limits
        };
        let state = State {
            free: limits.permits,
            held: HashMap::new(),
            next_ticket: 0,
            urgent: BTreeMap::new(),
            queues: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
        };
        Self(Arc::new(Shared {
            limits,
            state: Mutex::new(state),
        }))
    }

    /// Waits for a permit. A caller that stops waiting leaves the queue. There is no time limit: the caller sets one.
    ///
    /// # Errors
    /// [`QueueFull`], also after some time, when requests of owners with shorter queues need the place. Never with
    /// [`Priority::Urgent`].
    pub async fn acquire(&self, owner: K, priority: Priority) -> Result<Permit<K>, QueueFull> {
        let mut waiter = {
            let mut state = self.0.lock();
            let limits = &self.0.limits;
            if state.free > 0 && (priority == Priority::Urgent || state.has_share(&owner, limits)) {
                // Owners that wait while a permit is free hold their full share.
                state.take(&owner, priority);
                return Ok(Permit {
                    semaphore: self.clone(),
                    owner,
                    priority,
                });
            }
            let (sender, granted) = oneshot::channel();
            let ticket = state.enqueue(&owner, priority, sender, limits)?;
            Waiter {
                semaphore: self,
                owner: &owner,
                priority,
                ticket,
                granted,
            }
        };
        // An error means that a request of another owner has taken the place in the queue.
        let granted = (&mut waiter.granted).await;
        drop(waiter);
        match granted {
            Ok(()) => Ok(Permit {
                semaphore: self.clone(),
                owner,
                priority,
            }),
            Err(_) => Err(QueueFull),
        }
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let state = self.0.lock();
        state.waiting + state.urgent.len()
    }

    fn release(&self, owner: &K, priority: Priority) {
        let mut state = self.0.lock();
        state.free += 1;
        if priority == Priority::Normal
            && let Some(held) = state.held.get_mut(owner)
        {
            *held -= 1;
            if *held == 0 {
                state.held.remove(owner);
            }
        }
        state.grant(&self.0.limits);
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// Whether an owner holds less than one owner can hold.
    fn has_share(&self, owner: &K, limits: &Limits) -> bool {
        self.held.get(owner).copied().unwrap_or_default() < limits.permits_per_owner
    }

    fn take(&mut self, owner: &K, priority: Priority) {
        self.free -= 1;
        if priority == Priority::Normal {
            *self.held.entry(owner.clone()).or_default() += 1;
        }
    }

    fn enqueue(
        &mut self,
        owner: &K,
        priority: Priority,
        sender: oneshot::Sender<()>,
        limits: &Limits,
    ) -> Result<u64, QueueFull> {
        let ticket = self.next_ticket;
        if priority == Priority::Urgent {
            self.urgent.insert(ticket, sender);
        } else {
            if self.waiting >= limits.waiting {
                self.replace_longest(owner)?;
            }
            self.waiting += 1;
            match self.queues.get_mut(owner) {
                Some(queue) => {
                    queue.insert(ticket, sender);
                }
                None => {
                    self.queues
                        .insert(owner.clone(), BTreeMap::from([(ticket, sender)]));
                    self.turns.push_back(owner.clone());
                }
            }
        }
        self.next_ticket += 1;
        Ok(ticket)
    }

    /// Makes room for a request of `owner`: the newest request of the owner with the longest queue is rejected.
    fn replace_longest(&mut self, owner: &K) -> Result<(), QueueFull> {
        let own = self.queues.get(owner).map_or(0, BTreeMap::len);
        let (longest, length) = self
            .queues
            .iter()
            .map(|(owner, queue)| (owner, queue.len()))
            .max_by_key(|(_, length)| *length)
            .ok_or(QueueFull)?;
        // With one more of ours and one less of theirs, theirs must not be the shorter one.
        if length < own + 2 {
            return Err(QueueFull);
        }
        let longest = longest.clone();
        let newest = self
            .queues
            .get(&longest)
            .and_then(|queue| queue.keys().next_back().copied());
        // Dropping its sender tells it.
        newest
            .and_then(|ticket| self.remove(&longest, ticket))
            .map(drop)
            .ok_or(QueueFull)
    }

    /// Takes a request out of the queue of its owner.
    fn remove(&mut self, owner: &K, ticket: u64) -> Option<oneshot::Sender<()>> {
        let queue = self.queues.get_mut(owner)?;
        let sender = queue.remove(&ticket)?;
        let is_last = queue.is_empty();
        self.waiting -= 1;
        if is_last {
            self.queues.remove(owner);
            self.turns.retain(|other| other != owner);
        }
        Some(sender)
    }

    /// Gives free permits to requests that wait.
    fn grant(&mut self, limits: &Limits) {
        while self.free > 0 {
            if let Some((_, sender)) = self.urgent.pop_first() {
                self.free -= 1;
                let _ = sender.send(());
                continue;
            }
            // Owners that are passed over hold permits, so there are no more of them than permits.
            let Some(turn) = self
                .turns
                .iter()
                .position(|owner| self.has_share(owner, limits))
            else {
                return;
            };
            let Some(owner) = self.turns.remove(turn) else {
                return;
            };
            let Some(queue) = self.queues.get_mut(&owner) else {
                continue;
            };
            let next = queue.pop_first();
            if queue.is_empty() {
                self.queues.remove(&owner);
            } else {
                self.turns.push_back(owner.clone());
            }
            if let Some((_, sender)) = next {
                self.waiting -= 1;
                self.take(&owner, Priority::Normal);
                let _ = sender.send(());
            }
        }
    }
}

/// A request that waits. Dropping it leaves the queue, and releases a permit that was granted but not taken over.
struct Waiter<'a, K: Hash + Eq + Clone> {
    semaphore: &'a FairSemaphore<K>,
    owner: &'a K,
    priority: Priority,
    ticket: u64,
    granted: oneshot::Receiver<()>,
}

impl<K: Hash + Eq + Clone> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        {
            let mut state = self.semaphore.0.lock();
            match self.priority {
                Priority::Urgent => drop(state.urgent.remove(&self.ticket)),
                Priority::Normal => drop(state.remove(self.owner, self.ticket)),
            }
        }
        // Nothing is sent to a request that has left the queue.
        if self.granted.try_recv().is_ok() {
            self.semaphore.release(self.owner, self.priority);
        }
    }
}

/// A permit of a [`FairSemaphore`]; dropping it releases it.
pub struct Permit<K: Hash + Eq + Clone> {
    semaphore: FairSemaphore<K>,
    owner: K,
    priority: Priority,
}

impl<K: Hash + Eq + Clone> fmt::Debug for Permit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone> Drop for Permit<K> {
    fn drop(&mut self) {
        self.semaphore.release(&self.owner, self.priority);
    }
}
