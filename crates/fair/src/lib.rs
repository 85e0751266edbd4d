//! A semaphore that shares its permits fairly among owners.
//!
//! An ordinary semaphore has one queue, so one owner with many requests delays all others. A [`FairSemaphore`] limits
//! how many permits one owner holds, has a queue for each owner, and serves the queues in turn. The store uses it to
//! share its connections among accounts, and the verifier to share its look-ups among clients.
#![warn(missing_docs)]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The limits of a [`FairSemaphore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The number of permits; at least 1.
    pub permits: usize,
    /// The maximum number of permits that one owner holds with [`Priority::Normal`]; at least 1.
    pub permits_per_owner: usize,
    /// The maximum number of waiting requests with [`Priority::Normal`], of all owners together. At the limit, a
    /// request of an owner with a shorter queue replaces the newest request of the owner with the longest queue.
    pub waiting: usize,
}

impl Limits {
    /// Returns limits with this many permits, half of which (at least one) one owner can hold.
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

/// The order in which waiting requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Before all other requests, and without counting against the limits of the owner and of the queue. Use
    /// it only for a few requests of the process itself, because many such requests would starve the others.
    Urgent,
    /// In turn with the other owners.
    Normal,
}

/// The error of a request that is rejected because the queue is full: no other owner has more waiting requests than its
/// owner, counting this request, or a request of an owner with a shorter queue has replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests of this owner are waiting")]
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
    /// The number of permits that each owner holds with [`Priority::Normal`]; never 0.
    held: HashMap<K, usize>,
    next_ticket: u64,
    urgent: BTreeMap<u64, oneshot::Sender<()>>,
    /// The queue of each waiting owner, oldest ticket first; never empty.
    queues: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
    /// The owners of `queues`, in the order in which they are served.
    turns: VecDeque<K>,
    /// The number of requests in `queues`.
    waiting: usize,
}

impl<K: Hash + Eq + Clone> FairSemaphore<K> {
    /// Creates a semaphore with these limits.
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

    /// Waits for a permit, without a time limit. Dropping the future removes the request from the queue.
    ///
    /// # Errors
    /// [`QueueFull`] if the queue is full, or if the request is replaced while it waits. Never with
    /// [`Priority::Urgent`].
    pub async fn acquire(&self, owner: K, priority: Priority) -> Result<Permit<K>, QueueFull> {
        let mut waiter = {
            let mut state = self.0.lock();
            let limits = &self.0.limits;
            if state.free > 0 && (priority == Priority::Urgent || state.has_share(&owner, limits)) {
                // No other request needs this permit: owners that wait while a permit is free hold their full share.
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
        // An error means that a request of another owner has replaced this one.
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

    /// Returns the number of waiting requests.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let state = self.0.lock();
        state.waiting + state.urgent.len()
    }

    /// Returns the number of permits, free and in use.
    #[must_use]
    pub fn permits(&self) -> usize {
        self.0.limits.permits
    }

    /// Returns the number of permits that are held.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.0.limits.permits - self.0.lock().free
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
    /// Returns whether an owner can hold one more permit.
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

    /// Rejects the newest request of the owner with the longest queue, in favor of a request of `owner`.
    fn replace_longest(&mut self, owner: &K) -> Result<(), QueueFull> {
        let own = self.queues.get(owner).map_or(0, BTreeMap::len);
        let (longest, length) = self
            .queues
            .iter()
            .map(|(owner, queue)| (owner, queue.len()))
            .max_by_key(|(_, length)| *length)
            .ok_or(QueueFull)?;
        // After the replacement, the queue of this owner must not be longer than the other one.
        if length < own + 2 {
            return Err(QueueFull);
        }
        let longest = longest.clone();
        let newest = self
            .queues
            .get(&longest)
            .and_then(|queue| queue.keys().next_back().copied());
        // Dropping the sender wakes up the request with an error.
        newest
            .and_then(|ticket| self.remove(&longest, ticket))
            .map(drop)
            .ok_or(QueueFull)
    }

    /// Removes a request from the queue of its owner.
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

    /// Grants free permits to waiting requests.
    fn grant(&mut self, limits: &Limits) {
        while self.free > 0 {
            if let Some((_, sender)) = self.urgent.pop_first() {
                self.free -= 1;
                let _ = sender.send(());
                continue;
            }
            // The search is short: each owner that it skips holds a permit.
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

/// A waiting request. Dropping it removes it from the queue, and releases a permit that was granted but not received.
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
        // The request is no longer in the queue, so it cannot be granted a permit after this check.
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
