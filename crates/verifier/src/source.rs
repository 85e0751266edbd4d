//! Where keys, changes and leases come from.
//!
//! There are two kinds of sources. A server has a [`Primary`], the store: it keeps its lease there, and waits there for
//! others when it has changed something. A resource server has an [`Upstream`], a verifier in another process, whose
//! lease its own nests in. What both have in common, a [`Source`], is all that verifying needs.

use std::time::Duration;

use tollkey_core::{ChangeLog, Changed, Digest, Position, Record, Seq, ServiceKeyId, Usage, VerifierId};

/// The source cannot be asked, or did not answer in time. It has logged why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of keys is unavailable")]
pub struct Unavailable;

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

/// Where a [`crate::Verifier`] learns what keys are. Every call must end in bounded time.
pub trait Source: Send + Sync + 'static {
    /// The key with that digest.
    fn find(&self, digest: &Digest) -> impl Future<Output = Result<Snapshot, Unavailable>> + Send;
}

/// The source itself: the database that the change counter and the leases are in. Every call must read and write the
/// primary, never a standby.
pub trait Primary: Source {
    /// The service key with that digest.
    fn find_service_key(&self, digest: &Digest) -> impl Future<Output = Result<ServiceSnapshot, Unavailable>> + Send;

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
    fn report(&self, id: VerifierId, applied: Seq) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Removes verifier `id`, which has stopped answering from memory.
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
    /// Tells what has been applied, and waits a while for news.
    fn poll(&self, poll: Poll) -> impl Future<Output = Result<News, Unavailable>> + Send;

    /// Takes a subscriber off that has stopped answering from memory. `usage` is what it had still counted.
    fn leave(&self, subscriber: VerifierId, usage: Vec<Usage>) -> impl Future<Output = Result<(), Unavailable>> + Send;
}

/// What a subscriber tells.
#[derive(Debug, Clone)]
pub struct Poll {
    /// Who.
    pub subscriber: VerifierId,
    /// Up to where it has forgotten everything that was changed; the default where it remembers nothing.
    pub position: Position,
    /// How long it would wait for news. What it waits is no longer than a third of a lease.
    pub wait: Duration,
    /// What it has counted since its last poll, at most [`Poll::USAGE`] rows.
    pub usage: Vec<Usage>,
}

impl Poll {
    /// How many counts one poll takes along.
    pub const USAGE: usize = 400;
}

/// What a subscriber is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Where the changes lead: its position once it has applied them.
    pub position: Position,
    /// What has changed since its position; `None` when the log does not go on from there and everything is to be
    /// forgotten.
    pub changes: Option<Vec<Changed>>,
    /// For how long it may answer from memory, counted from before its poll, once it has applied the changes. Zero when
    /// who was asked holds no lease, or there are more changes than one answer holds.
    pub lease: Duration,
}
