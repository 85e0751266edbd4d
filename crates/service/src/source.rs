//! The store as the verifier's source of keys.

use std::{sync::Arc, time::Duration};

use tollkey_core::{Catalogue, Digest, KeyContext, Position, Seq, VerifierId};
use tollkey_store::Store;
use tollkey_verifier::{
    ChangeLog, Primary, ServiceSnapshot, Snapshot, Source, SourceError, Unavailable,
};

#[derive(Debug, Clone)]
pub struct StoreSource {
    store: Store,
    catalogue: Arc<Catalogue>,
}

impl StoreSource {
    #[must_use]
    pub fn new(store: Store, catalogue: Arc<Catalogue>) -> Self {
        Self { store, catalogue }
    }
}

/// Drops the error, which the store has already logged.
fn unavailable(_: tollkey_store::Error) -> Unavailable {
    Unavailable
}

/// An unreadable row does not mean that the database or other rows are unavailable.
fn failed(error: tollkey_store::Error) -> SourceError {
    match error {
        tollkey_store::Error::Corrupt(_) => SourceError::Unreadable,
        _ => SourceError::Unavailable,
    }
}

impl Source for StoreSource {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, SourceError> {
        let snapshot = self.store.find_by_digest(*digest).await.map_err(failed)?;
        let record = snapshot.found.map(|found| {
            KeyContext::new(
                found.key,
                found.application.as_ref(),
                found.operating_model,
                &self.catalogue,
            )
        });
        Ok(Snapshot {
            seq: snapshot.seq,
            record,
        })
    }
}

impl Primary for StoreSource {
    async fn find_service_key(&self, digest: &Digest) -> Result<ServiceSnapshot, SourceError> {
        let snapshot = self.store.find_service_key(*digest).await.map_err(failed)?;
        let usable = snapshot.found.filter(|key| key.revoked_at.is_none());
        Ok(ServiceSnapshot {
            seq: snapshot.seq,
            id: usable.map(|key| key.id),
        })
    }

    async fn changes_after(
        &self,
        position: Position,
        limit: usize,
    ) -> Result<ChangeLog, Unavailable> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        self.store
            .changes_after(position, limit)
            .await
            .map_err(unavailable)
    }

    async fn lease_length(&self) -> Result<Duration, Unavailable> {
        self.store.lease_length().await.map_err(unavailable)
    }

    async fn renew(
        &self,
        id: VerifierId,
        reported: Seq,
        evicted: Position,
    ) -> Result<bool, Unavailable> {
        self.store
            .renew(id, reported, evicted)
            .await
            .map_err(unavailable)
    }

    async fn report(&self, id: VerifierId, applied: Seq) -> Result<(), Unavailable> {
        self.store.report(id, applied).await.map_err(unavailable)
    }

    async fn unregister(&self, id: VerifierId) -> Result<(), Unavailable> {
        self.store.unregister(id).await.map_err(unavailable)
    }

    async fn lagging_verifiers(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> Result<Vec<(VerifierId, u64)>, Unavailable> {
        let lagging = self
            .store
            .lagging_verifiers(seq, except)
            .await
            .map_err(unavailable)?;
        Ok(lagging
            .into_iter()
            .map(|row| (row.verifier, row.renewals.unsigned_abs()))
            .collect())
    }

    async fn remove_if_not_renewed(
        &self,
        id: VerifierId,
        renewals: u64,
    ) -> Result<(), Unavailable> {
        let renewals = i64::try_from(renewals).unwrap_or(i64::MAX);
        self.store
            .remove_if_not_renewed(id, renewals)
            .await
            .map(|_| ())
            .map_err(unavailable)
    }
}
