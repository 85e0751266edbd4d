//! What the model remembers: everything that a database, some verifiers, those who make changes and a subscriber know
//! at one moment. Times are what is left of them, in ticks, so that the same situation is the same state whenever it
//! happens.

/// At most so many verifiers,
pub const VERIFIERS: usize = 3;
/// and so many callers who change something.
pub const CALLERS: usize = 4;

/// The whole state at one moment. One key is verified, see [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// The change counter, as committed.
    pub counter: u8,
    /// The number that was given to a change last, committed or not.
    pub numbered: u8,
    /// The key that is verified.
    pub verified: Key,
    /// The committed changes that evict the verified key from a cache, one bit each.
    pub changes: u8,
    /// Whether the row of the key that callers revoke ([`Key::Parent`]) says that it is revoked.
    pub revoked: bool,
    /// Whether the verified key's own row says that it is revoked, if it is a descendant of the revoked key.
    pub marked: bool,
    /// How far the creation of the verified key is, if it is created during the run.
    pub creation: Creation,
    /// How far the marking of descendants is.
    pub marking: Marking,
    /// Whether the process that revoked the key has crashed.
    pub crashed: bool,
    /// Who is between the UPDATE of the counter and the commit.
    pub locked_by: Option<u8>,
    /// Whether a caller has been told that our key is revoked.
    pub answered: bool,
    /// Whether a verification that began after that was answered yes. Never!
    pub accepted: bool,
    /// The rows of verifiers.
    pub rows: [Option<Row>; VERIFIERS],
    /// Servers, each with its verifier.
    pub verifiers: [Verifier; VERIFIERS],
    /// Requests that change something.
    pub callers: [Caller; CALLERS],
    /// A resource server that follows verifiers.
    pub subscriber: Subscriber,
}

/// The key that is verified in a run.
///
/// What a verifier caches of one key has no effect on another key. So a run verifies one key only, and a world with
/// several keys begins once with each.
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
    /// Whether this key is created during the run.
    #[must_use]
    pub fn is_created(self) -> bool {
        matches!(self, Self::Grandchild | Self::OnlyChild)
    }
}

/// How far the creation of a key by a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Creation {
    /// Not begun.
    #[default]
    None,
    /// Its transaction has checked the ancestors.
    Checked,
    /// Committed.
    Committed,
}

/// How far the marking of the descendants' own rows is, which follows a revocation.
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

/// What the database knows of a verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    /// What it has reported as applied.
    pub applied: u8,
    /// Which of its renewals was the last one. Kept only if rows are removed.
    pub renewals: u8,
}

/// What may answer: the memory of a verifier or of a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Memory {
    /// For how many ticks it may be answered from here.
    pub lease: u8,
    /// Up to which change everything has begun to be applied.
    pub applying: u8,
    /// Up to which change everything has been evicted.
    pub evicted: u8,
    /// Whether our key is remembered, as valid.
    pub remembered: bool,
    /// Changes on their way into this memory.
    pub log: Log,
    /// A record on its way into this memory.
    pub fetch: Fetch,
    /// A verification that began after the revocation was answered.
    pub request: Request,
}

/// Changes on their way into a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Log {
    /// None.
    #[default]
    None,
    /// All up to `upto` have been read, and `steps` of the three steps of applying them are done.
    Read {
        /// Up to which change.
        upto: u8,
        /// Whether the one that concerns our key is among them.
        ours: bool,
        /// How far.
        steps: u8,
    },
}

/// A record on its way into a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fetch {
    /// None.
    #[default]
    None,
    /// Read, but not yet the counter.
    WithoutCounter,
    /// The ancestors are read, but neither the key's own row nor the counter.
    AncestorsRead,
    /// Read, with this value of the counter.
    Read(u8),
    /// Found fit to be remembered, but not yet inserted.
    Fit,
    /// Inserted, to be looked at again.
    Inserted(u8),
}

/// A verification that began after the revocation was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Request {
    /// None.
    #[default]
    None,
    /// It has seen that the lease lasts.
    LeaseSeen,
    /// It has found the key.
    EntrySeen,
}

/// A verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Verifier {
    /// What it answers from.
    pub memory: Memory,
    /// The renewal under way.
    pub renewal: Renewal,
    /// The report under way.
    pub report: Option<u8>,
    /// How often it has asked for a lease. Counted only if rows are removed.
    pub asked: u8,
    /// Whether it has stopped answering.
    pub stopped: bool,
    /// Whether it has deleted its row.
    pub unregistered: bool,
}

/// A renewal under way. `age` is how long ago the clock was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs, reason = "named as in the statement")]
pub enum Renewal {
    /// None.
    #[default]
    None,
    /// Sent.
    Asked { age: u8, evicted: u8, reported: u8 },
    /// The counter was compared, the row is not yet written. There is no such moment in the protocol.
    Compared { age: u8, reported: u8 },
    /// The row is written.
    Written { age: u8 },
}

/// A request that changes something, and waits until it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Caller {
    /// How far it is.
    pub stage: Stage,
    /// The change it waits for.
    pub seq: u8,
    /// For how many ticks a lease that does not cover it can live.
    pub wait: u8,
    /// Whether the revoked key has descendants, if the caller has read that before it locked the key's row.
    pub descendants: Option<bool>,
    /// Whether a look found nobody behind.
    pub clear: bool,
    /// Whether rows behind have been looked at, to remove them should they stay silent.
    pub looked: bool,
    /// The renewals seen at that look, 0 for a row that was not behind.
    pub seen: [u8; VERIFIERS],
    /// For how many ticks those may still hold a lease.
    pub silence: u8,
    /// Whether rows that stayed silent have been looked for.
    pub searched: bool,
    /// Those that were found, one bit each.
    pub silent: u8,
}

impl Caller {
    /// Nothing that it still does matters.
    pub(crate) fn finish(&mut self) {
        *self = Self {
            stage: Stage::Answered,
            ..Self::default()
        };
    }
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stage {
    /// Not begun.
    #[default]
    Idle,
    /// It has read the clock. In the protocol it has done the UPDATE then.
    ClockRead,
    /// It has done the UPDATE and read the clock.
    Updated,
    /// Its counter is committed, but not its change. There is no such moment in the protocol.
    CounterCommitted,
    /// Committed; it waits.
    Waiting,
    /// Its caller has been told.
    Answered,
}

/// A resource server that follows verifiers, its replicas; at any time any of them, as behind a load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Subscriber {
    /// What it answers from.
    pub memory: Memory,
    /// The poll under way.
    pub poll: Poll,
    /// What each replica knows of it.
    pub known: [Known; VERIFIERS],
}

/// What a replica knows of a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Known {
    /// What it has acknowledged.
    pub acknowledged: u8,
    /// For how many ticks it may hold a lease of this replica.
    pub lives: u8,
}

/// A poll under way. `age` is how long ago the subscriber read its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs, reason = "named as in the message")]
pub enum Poll {
    /// None.
    #[default]
    None,
    /// On its way to a replica.
    Sent { age: u8, acknowledges: u8 },
    /// Part of the reply is computed. There is no such moment in the protocol.
    Begun {
        at: u8,
        age: u8,
        acknowledges: u8,
        upto: u8,
        ours: bool,
        left: u8,
    },
    /// On its way back.
    Replied {
        age: u8,
        upto: u8,
        ours: bool,
        left: u8,
    },
    /// Its changes are being applied.
    Applying { age: u8, left: u8 },
}
