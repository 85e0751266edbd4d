//! Where keys, changes and leases come from.
//!
//! There are two kinds of sources. A server has a [`Primary`], the store: it keeps its lease there, and waits there for
//! others when it has changed something. A resource server has an [`Upstream`], a verifier in another process, whose
//! lease its own nests in. What both have in common, a [`Source`], is all that verifying needs.

use std::{fmt, str::FromStr, time::Duration};

use rand::Rng;
use tollkey_core::{
    ChangeLog, Changed, Digest, Invalid, Position, Record, Seq, ServiceKeyId, Usage, VerifierId,
};

/// The source did not respond in time, or cannot be reached. It has logged why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of keys is unavailable")]
pub struct Unavailable;

/// A look-up that failed. The source has logged why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The source did not respond in time, or cannot look anything up. After several of these in a row the verifier
    /// sends one look-up at a time.
    #[error("the source of keys is unavailable")]
    Unavailable,
    /// The source responded and rejects the look-up: the service key of this process was revoked, for example. Such a
    /// response is fast, so look-ups are sent as usual. Cached keys are not authorized after the end of the lease, not even
    /// within a grace period: that is for a source that cannot be reached.
    #[error("the source rejects the look-up")]
    Rejected,
    /// The source responded, but the key cannot be read: a newer release wrote it, for example. This fails this look-up
    /// only; look-ups of other keys go on as usual. The key is not authorized within a grace period, because what cannot be
    /// read may be a revocation.
    #[error("the source's response cannot be read")]
    Unreadable,
}

impl From<Unavailable> for SourceError {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

impl From<SourceError> for Unavailable {
    fn from(_: SourceError) -> Self {
        Self
    }
}

/// A poll that brought nothing. The source has logged why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    /// The upstream did not respond in time.
    #[error("the upstream does not respond")]
    Unavailable,
    /// The upstream responded without changes and without a lease: it rejects the poll, it stops, or its response cannot
    /// be read.
    #[error("the upstream rejects the poll")]
    Rejected,
    /// Another process uses the same subscriber ID. Neither gets a lease under it any more. The subscriber must end its
    /// lease, clear its cache and continue under a new random ID.
    #[error("another process uses this subscriber ID")]
    SharedId,
}

impl From<Unavailable> for PollError {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

/// A key as the source had it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The change counter, read no later than the record: one statement, or one transaction that sees one state.
    pub seq: Seq,
    /// The key with that digest, if there is one.
    pub record: Option<Record>,
}

/// A service key as the source had it.
#[derive(Debug, Clone, Copy)]
pub struct ServiceSnapshot {
    /// The change counter, read no later than the key.
    pub seq: Seq,
    /// The service key with that digest, if there is one that is not revoked.
    pub id: Option<ServiceKeyId>,
}

/// Where a [`crate::Verifier`] looks up keys. Every call must end in bounded time.
pub trait Source: Send + Sync + 'static {
    /// The key with that digest.
    fn find(&self, digest: &Digest) -> impl Future<Output = Result<Snapshot, SourceError>> + Send;
}

/// The source itself: the database that the change counter and the leases are in. Every call must read and write the
/// primary, never a standby.
pub trait Primary: Source {
    /// The service key with that digest.
    fn find_service_key(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<ServiceSnapshot, SourceError>> + Send;

    /// At most `limit` changes after `position`, and where the counter stands.
    fn changes_after(
        &self,
        position: Position,
        limit: usize,
    ) -> impl Future<Output = Result<ChangeLog, Unavailable>> + Send;

    /// How long leases are, for all verifiers of this source. It may be changed only while none is running.
    fn lease_length(&self) -> impl Future<Output = Result<Duration, Unavailable>> + Send;

    /// Writes that verifier `id` is alive and has, with its subscribers, applied everything up to `reported`; but only
    /// if the change counter stands exactly at `evicted`. Whether it was so, all in one atomic step.
    fn renew(
        &self,
        id: VerifierId,
        reported: Seq,
        evicted: Position,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Writes that verifier `id` has applied everything up to `applied`, if it is registered. Extends no lease.
    fn report(
        &self,
        id: VerifierId,
        applied: Seq,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Removes verifier `id`, which has ended its lease for good.
    fn unregister(&self, id: VerifierId) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// The verifiers, but for `except`, that have reported less than `seq`, each with a number that is another one
    /// after each of its renewals, and does not come back when it is removed and renews again.
    fn behind(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> impl Future<Output = Result<Vec<(VerifierId, u64)>, Unavailable>> + Send;

    /// Removes verifier `id` if that number is still `renewals`.
    fn remove_if_not_renewed(
        &self,
        id: VerifierId,
        renewals: u64,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
}

/// Another verifier, which holds a lease and grants shorter ones: what a process without a database subscribes to.
/// A verifier of a [`Primary`] is one itself; over HTTP it is `POST /sync`.
pub trait Upstream: Source {
    /// Acknowledges what has been applied, and waits a while for changes.
    fn poll(&self, poll: Poll) -> impl Future<Output = Result<News, PollError>> + Send;

    /// Ends the subscription of a subscriber that has ended its lease for good, with the last usage that it counted.
    fn leave(&self, leave: Leave) -> impl Future<Output = Result<(), PollError>> + Send;
}

/// The random ID of one poll. A poll that is repeated because no response came has the same ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollId(u64);

impl PollId {
    /// A new ID from `rng`, which must not be a generator whose state a snapshot of the machine would copy.
    pub fn new(rng: &mut (impl Rng + ?Sized)) -> Self {
        Self(rng.next_u64())
    }
}

impl fmt::Display for PollId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for PollId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_hex = text.len() == 16
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let id = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(Self)
            .ok_or_else(|| Invalid::new("must be 16 lower-case hex digits"))
    }
}

/// The ID of a poll and of those before it, by which the upstream recognizes a repeat, a poll that arrives late, and a
/// poll of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollIds {
    /// The ID of this poll.
    pub id: PollId,
    /// The IDs of the polls before it that had a response within the last two leases, and at least the last 16, the newest
    /// first, at most [`PollIds::PREVIOUS`]. They may have gone to other replicas.
    pub previous: Vec<PollId>,
}

impl PollIds {
    /// How many previous IDs a poll carries at most. A subscriber that a load balancer sends back to a replica after more
    /// polls than this, while its lease from there is valid, is taken for another process. [`crate::Verifier::subscribe`]
    /// polls so slowly that this does not happen.
    pub const PREVIOUS: usize = 512;
}

/// What a subscriber sends with a poll.
#[derive(Debug, Clone)]
pub struct Poll {
    /// Who.
    pub subscriber: VerifierId,
    /// Which poll this is. `None` for a subscriber of a release without poll IDs: its repeats count twice.
    pub ids: Option<PollIds>,
    /// The position up to which it has evicted everything that was changed; the default if its cache was always empty.
    pub position: Position,
    /// How long the response may wait for changes. The upstream waits for a third of a lease at most.
    pub wait: Duration,
    /// What it has counted since its last poll that had a response, at most [`Poll::USAGE`] rows. A poll that is
    /// repeated has the same rows.
    pub usage: Vec<Usage>,
}

impl Poll {
    /// How many counts one poll takes along.
    pub const USAGE: usize = 400;
}

/// The end of a subscription.
#[derive(Debug, Clone)]
pub struct Leave {
    /// Who.
    pub subscriber: VerifierId,
    /// As in [`Poll::ids`]. If the last poll had no response, its ID: `usage` then has the rows of that poll.
    pub ids: Option<PollIds>,
    /// What it had still counted, at most [`Poll::USAGE`] rows.
    pub usage: Vec<Usage>,
}

/// The response to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// The subscriber's position once it has applied the changes.
    pub position: Position,
    /// What has changed since its position; `None` if the log does not continue from there, and the cache has to be cleared.
    pub changes: Option<Vec<Changed>>,
    /// For how long it may use its cache, counted from before its poll, once it has applied the changes. Zero if the upstream
    /// holds no lease, or if there are more changes than one response holds.
    pub lease: Duration,
}

impl News {
    /// Nothing new for a subscriber at `position`, and no lease.
    #[must_use]
    pub fn none(position: Position) -> Self {
        Self {
            position,
            changes: Some(Vec::new()),
            lease: Duration::ZERO,
        }
    }
}
