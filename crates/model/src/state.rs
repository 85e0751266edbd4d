//! The state of the model: the database, the verifiers, the callers and a subscriber at one moment. Times are
//! stored as remaining ticks, so that situations that differ only in the absolute time are the same state.

/// The maximum number of verifiers.
pub const VERIFIERS: usize = 3;
/// The maximum number of callers that change something.
pub const CALLERS: usize = 4;

/// The whole state at one moment. A run verifies one key, see [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// The committed change counter.
    pub counter: u8,
    /// The number of the latest change, committed or not.
    pub numbered: u8,
    pub verified: Key,
    /// The committed changes that evict the verified key from a cache, one bit each.
    pub changes: u8,
    /// Whether the row of the key that callers revoke ([`Key::Parent`]) is revoked.
    pub revoked: bool,
    /// Whether the verified key's own row is revoked, if it is a descendant of the revoked key.
    pub marked: bool,
    pub creation: Creation,
    pub marking: Marking,
    /// Whether the process that revoked the key has crashed.
    pub crashed: bool,
    /// The caller between its UPDATE of the counter and its commit.
    pub locked_by: Option<u8>,
    /// Whether a caller has received the response to the revocation.
    pub responded: bool,
    /// Whether a verification that began after that response accepted the key. Must never be true.
    pub accepted: bool,
    pub rows: [Option<Row>; VERIFIERS],
    pub verifiers: [Verifier; VERIFIERS],
    pub callers: [Caller; CALLERS],
    pub subscriber: Subscriber,
}

/// The cache entry of one key has no effect on other keys. So a run verifies one key only, and a world with
/// several keys has one initial state for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Key {
    /// The key that callers revoke.
    #[default]
    Parent,
    /// A child of the revoked key. Both exist from the beginning.
    Child,
    /// A key that the child creates at any time.
    Grandchild,
    /// A key that the parent creates at any time. The parent has no other descendant.
    OnlyChild,
}

impl Key {
    #[must_use]
    pub fn is_created(self) -> bool {
        matches!(self, Self::Grandchild | Self::OnlyChild)
    }
}

/// The progress of the creation of a key by a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Creation {
    #[default]
    None,
    /// Its transaction has checked the ancestors.
    Checked,
    Committed,
}

/// The progress of the marking of the descendants' own rows, which follows a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum Marking {
    /// Not necessary, or not yet.
    #[default]
    None,
    /// The database has a pending row for it.
    Pending,
    /// The pending row is deleted.
    Finished,
    /// The change at its end has propagated to every verifier.
    Propagated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    /// The last change that it has reported as applied.
    pub applied: u8,
    /// The number of its last renewal. Kept only if rows are removed.
    pub renewals: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cache {
    /// The remaining ticks of the lease.
    pub lease: u8,
    /// The last change that has been applied or is being applied.
    pub applying: u8,
    /// The last change for which everything has been evicted.
    pub evicted: u8,
    /// Whether the verified key is cached as valid.
    pub cached: bool,
    pub log: Log,
    pub fetch: Fetch,
    pub request: Request,
}

/// Changes that are being applied to a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Log {
    #[default]
    None,
    /// All up to `upto` have been read, and `steps` of the three steps of applying them are done.
    Read {
        upto: u8,
        /// Whether a change that evicts the verified key is among them.
        ours: bool,
        steps: u8,
    },
}

/// A record that is being fetched for a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fetch {
    #[default]
    None,
    /// The record is read, but not yet the counter.
    WithoutCounter,
    /// The ancestors are read, but neither the key's own row nor the counter.
    AncestorsRead,
    /// The record is read, with this value of the counter.
    Read(u8),
    /// Checked, but not yet inserted.
    Fit,
    /// Inserted, but not yet checked.
    Inserted(u8),
}

/// A verification that began after the response to the revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Request {
    #[default]
    None,
    LeaseSeen,
    EntrySeen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Verifier {
    pub cache: Cache,
    pub renewal: Renewal,
    /// The report in flight.
    pub report: Option<u8>,
    /// The number of renewals that it has sent. Counted only if rows are removed.
    pub renewals_sent: u8,
    pub stopped: bool,
    pub unregistered: bool,
}

/// A renewal in flight. `age` is the number of ticks since the clock was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Renewal {
    #[default]
    None,
    /// Sent.
    Sent { age: u8, evicted: u8, reported: u8 },
    /// The counter is compared, but the row is not yet written. The protocol has no such state.
    Compared { age: u8, reported: u8 },
    /// The row is written.
    Written { age: u8 },
}

/// A request that changes something and waits for propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caller {
    pub stage: Stage,
    /// The change that it waits for.
    pub seq: u8,
    /// The remaining ticks until every lease that was granted before this change has expired.
    pub wait: u8,
    /// Whether the revoked key has descendants, if the caller has read that before it locked the key's row.
    pub descendants: Option<bool>,
    /// Whether a check found no lagging row.
    pub clear: bool,
    /// Whether lagging rows have been recorded, to remove them if they stay silent.
    pub has_recorded: bool,
    /// The renewals recorded by that check, 0 for a row that was up to date.
    pub seen: [u8; VERIFIERS],
    /// The remaining ticks in which these rows must not be renewed, to count as silent.
    pub silence: u8,
    /// Whether the search for rows that stayed silent is done.
    pub searched: bool,
    /// The silent rows, one bit each.
    pub silent: u8,
}

impl Caller {
    /// Resets everything that no longer matters.
    pub(crate) fn finish(&mut self) {
        *self = Self {
            stage: Stage::Responded,
            ..Self::default()
        };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stage {
    #[default]
    Idle,
    /// It has read the clock. In the protocol the UPDATE comes before this.
    ClockRead,
    /// It has done the UPDATE and read the clock.
    Updated,
    /// Its counter is committed, but not its change. The protocol has no such state.
    CounterCommitted,
    Waiting,
    Responded,
}

/// A resource server that subscribes to verifiers (its replicas), to any of them at any time, as behind a
/// load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Subscriber {
    pub cache: Cache,
    pub poll: Poll,
    pub known: [SubscriberState; VERIFIERS],
}

/// The state of a subscriber at a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SubscriberState {
    pub acknowledged: u8,
    /// The remaining ticks in which it may hold a lease of this replica.
    pub lives: u8,
}

/// The reply to a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reply {
    /// The number of ticks since the subscriber read its clock.
    pub age: u8,
    /// The last change in the reply.
    pub upto: u8,
    /// Whether a change that evicts the verified key is in the reply.
    pub ours: bool,
    /// The remaining ticks of the replica's lease.
    pub left: u8,
}

/// A poll in flight. `age` is the number of ticks since the subscriber read its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Poll {
    #[default]
    None,
    /// Sent to a replica.
    Sent { age: u8, acknowledges: u8 },
    /// Part of the reply is computed. The protocol has no such state.
    Begun {
        at: u8,
        acknowledges: u8,
        reply: Reply,
    },
    /// The reply is sent.
    Replied(Reply),
    /// Its changes are being applied.
    Applying { age: u8, left: u8 },
}
