//! Sources of keys, changes and leases.
//!
//! A server has a [`Primary`], the store: its lease is kept there, and after a change it waits there for
//! other verifiers. A resource server has an [`Upstream`], a verifier in another process: its lease nests in
//! the upstream's lease. Both are a [`Source`], which is all that verifying a key needs.

use std::{fmt, str::FromStr, time::Duration};

use rand::Rng;
use tollkey_core::{
    ChangeLog, Changed, Digest, Invalid, KeyContext, Position, Seq, ServiceKeyId, Usage, VerifierId,
};

/// The source did not respond in time or cannot be reached. The source has logged the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of keys is unavailable")]
pub struct Unavailable;

/// The reason why a look-up failed. The source has logged the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The source did not respond in time, or cannot look anything up. After several consecutive errors of
    /// this kind, the verifier sends one look-up at a time.
    #[error("the source of keys is unavailable")]
    Unavailable,
    /// The source rejects the look-up, for example because the service key of this process was revoked. Such
    /// a response is fast, so look-ups are sent as usual. A grace period does not apply: it is for a source
    /// that cannot be reached.
    #[error("the source rejects the look-up")]
    Rejected,
    /// The source responded, but the key cannot be read, for example because a newer release wrote it.
    /// Look-ups of other keys are sent as usual. A grace period does not apply, because the record that
    /// cannot be read may be revoked.
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

/// The reason why a poll failed. The source has logged the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    /// The upstream did not respond in time.
    #[error("the upstream does not respond")]
    Unavailable,
    /// The upstream rejects the poll, it is stopping, or its response cannot be read.
    #[error("the upstream rejects the poll")]
    Rejected,
    /// Another process uses the same subscriber ID. No lease is granted under this ID any more: the
    /// subscriber must end its lease, clear its cache and continue under a new random ID.
    #[error("another process uses this subscriber ID")]
    SharedId,
}

impl From<Unavailable> for PollError {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

/// The response to a look-up of a key.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The change counter, read no later than the record: in the same statement, or in a transaction with one snapshot.
    pub seq: Seq,
    /// The key with that hash, if it exists.
    pub record: Option<KeyContext>,
}

/// The response to a look-up of a service key.
#[derive(Debug, Clone, Copy)]
pub struct ServiceSnapshot {
    /// The change counter, read no later than the key.
    pub seq: Seq,
    /// The ID of the service key with that hash, if it exists and is not revoked.
    pub id: Option<ServiceKeyId>,
}

/// Looks up keys for a [`crate::Verifier`]. Every call must end in bounded time.
pub trait Source: Send + Sync + 'static {
    /// Looks up the key with that hash.
    fn find(&self, digest: &Digest) -> impl Future<Output = Result<Snapshot, SourceError>> + Send;
}

/// The database that has the keys, the change counter and the leases. Every call must use the primary, never a standby.
pub trait Primary: Source {
    /// Looks up the service key with that hash.
    fn find_service_key(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<ServiceSnapshot, SourceError>> + Send;

    /// Returns at most `limit` changes after `position`, and the current position of the counter.
    fn changes_after(
        &self,
        position: Position,
        limit: usize,
    ) -> impl Future<Output = Result<ChangeLog, Unavailable>> + Send;

    /// Returns the length of leases, for all verifiers of this source. It may be changed only while no
    /// verifier is running.
    fn lease_length(&self) -> impl Future<Output = Result<Duration, Unavailable>> + Send;

    /// If the change counter is exactly at `evicted`, renews the lease of verifier `id` and stores that the
    /// verifier and its subscribers have applied everything up to `reported`. Must be atomic. Returns whether
    /// the lease was renewed.
    fn renew(
        &self,
        id: VerifierId,
        reported: Seq,
        evicted: Position,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Stores that verifier `id` has applied everything up to `applied`, if it is registered. Does not renew the lease.
    fn report(
        &self,
        id: VerifierId,
        applied: Seq,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Removes verifier `id`, which has ended its lease and will not renew it.
    fn unregister(&self, id: VerifierId) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Returns the verifiers, without `except`, that have reported less than `seq`. Each comes with a number
    /// that changes with every renewal and never repeats, not even after the verifier was removed.
    fn lagging_verifiers(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> impl Future<Output = Result<Vec<(VerifierId, u64)>, Unavailable>> + Send;

    /// Removes verifier `id` if its number from [`Primary::lagging_verifiers`] is still `renewals`.
    fn remove_if_not_renewed(
        &self,
        id: VerifierId,
        renewals: u64,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
}

/// A verifier that grants leases to subscribers, which have no database. A verifier of a [`Primary`] is an
/// upstream; over HTTP it is `POST /sync`.
pub trait Upstream: Source {
    /// Acknowledges the applied changes, and waits for new ones.
    fn poll(&self, poll: Poll) -> impl Future<Output = Result<PollResponse, PollError>> + Send;

    /// Ends the subscription of a subscriber that has ended its lease, and sends its remaining usage.
    fn end_subscription(
        &self,
        leave: EndSubscription,
    ) -> impl Future<Output = Result<(), PollError>> + Send;
}

/// The random ID of a poll. A poll that is repeated because it had no response has the same ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollId(u64);

impl PollId {
    /// Creates an ID from `rng`, which must not be a generator whose state a snapshot of the machine copies.
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

/// The IDs of a poll and of the polls before it. By them, the upstream recognizes a repeated poll, a poll
/// that arrives late, and a poll of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollIds {
    /// The ID of this poll.
    pub id: PollId,
    /// The IDs of previous polls, the newest first: those that had a response within the last two leases and
    /// at least the last 16, at most [`PollIds::PREVIOUS`]. They may have been sent to other replicas.
    pub previous: Vec<PollId>,
}

impl PollIds {
    /// The maximum number of previous IDs. If a load balancer sends a subscriber back to a replica after more
    /// polls than this, while its lease from that replica is valid, the replica takes it for another process.
    /// [`crate::Verifier::subscribe`] polls so slowly that this does not happen.
    pub const PREVIOUS: usize = 512;
}

/// A poll of a subscriber.
#[derive(Debug, Clone)]
pub struct Poll {
    /// The ID of the subscriber.
    pub subscriber: VerifierId,
    /// The ID of this poll and of previous ones. `None` for a subscriber of a release without poll IDs: the
    /// usage of its repeated polls counts twice.
    pub ids: Option<PollIds>,
    /// The position up to which the subscriber has applied all changes; the default if its cache was always empty.
    pub position: Position,
    /// How long the response may wait for changes. The upstream waits for a third of a lease at most.
    pub wait: Duration,
    /// The usage since the last poll that had a response, at most [`Poll::USAGE`] rows. A repeated poll has
    /// the same rows.
    pub usage: Vec<Usage>,
}

impl Poll {
    /// The maximum number of rows of usage in a poll.
    pub const USAGE: usize = 400;
}

/// The end of a subscription.
#[derive(Debug, Clone)]
pub struct EndSubscription {
    /// The ID of the subscriber.
    pub subscriber: VerifierId,
    /// As in [`Poll::ids`]. If the last poll had no response, this has the ID and `usage` the rows of that poll.
    pub ids: Option<PollIds>,
    /// The remaining usage, at most [`Poll::USAGE`] rows.
    pub usage: Vec<Usage>,
}

/// The response to a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollResponse {
    /// The subscriber's position once it has applied the changes.
    pub position: Position,
    /// The changes after the subscriber's position. `None` if the log does not continue from there: the
    /// subscriber must clear its cache.
    pub changes: Option<Vec<Changed>>,
    /// The lease that the subscriber may take once it has applied the changes, counted from when it sent the
    /// poll. Zero if the upstream holds no lease, or if more changes are missing.
    pub lease: Duration,
}

impl PollResponse {
    /// Returns a response without changes and without a lease for a subscriber at `position`.
    #[must_use]
    pub fn unchanged(position: Position) -> Self {
        Self {
            position,
            changes: Some(Vec::new()),
            lease: Duration::ZERO,
        }
    }
}
