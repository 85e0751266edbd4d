//! Where keys, changes and leases come from: the store for a server, something else for whoever has no store.

use std::time::Duration;

use tollkey_core::{ChangeLog, Digest, Record, Seq, ServiceKeyId, VerifierId};

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

/// Where a [`crate::Verifier`] learns what it knows. Every call must end in bounded time, and must read and write
/// the primary, never a standby.
pub trait Source: Send + Sync + 'static {
    /// The key with that digest.
    fn find(&self, digest: &Digest) -> impl Future<Output = Result<Snapshot, Unavailable>> + Send;

    /// The service key with that digest.
    fn find_service_key(&self, digest: &Digest) -> impl Future<Output = Result<ServiceSnapshot, Unavailable>> + Send;

    /// At most `limit` changes after `seq`, and the current value of the counter.
    fn changes_after(&self, seq: Seq, limit: usize) -> impl Future<Output = Result<ChangeLog, Unavailable>> + Send;

    /// How long leases are, for all verifiers of this source. It may be changed only while none is running.
    fn lease_length(&self) -> impl Future<Output = Result<Duration, Unavailable>> + Send;

    /// Writes that verifier `id` is alive and has applied everything up to `reported`; but only if the change counter
    /// is exactly `evicted`. Whether it was so, all in one atomic step.
    fn renew(
        &self,
        id: VerifierId,
        reported: Seq,
        evicted: Seq,
    ) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Writes that verifier `id` has applied everything up to `applied`, if it is registered. Extends no lease.
    fn report(&self, id: VerifierId, applied: Seq) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Removes verifier `id`, which has stopped answering from memory.
    fn unregister(&self, id: VerifierId) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// The verifiers, but for `except`, that have reported less than `seq`, each with how often it has renewed.
    fn behind(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> impl Future<Output = Result<Vec<(VerifierId, u64)>, Unavailable>> + Send;

    /// Removes verifier `id` if it has renewed exactly `renewals` times.
    fn remove_if_not_renewed(
        &self,
        id: VerifierId,
        renewals: u64,
    ) -> impl Future<Output = Result<(), Unavailable>> + Send;
}
