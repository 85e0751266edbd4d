//! The dependencies and limits of the use cases.

use std::{fmt, sync::Arc};

use tollkey_core::credential::Presented;
use tollkey_core::{AccessRequest, Catalogue, Clock, Denial, Problem, ceiling::AncestorLimit};
use tollkey_store::{Change, Owner, Reader, Store, Writer};
use tollkey_verifier::{Requester, Unavailable, Verdict, Verifier};

use crate::{
    audit::checks::AuditCheckLimiter, idempotency::request::Sealer, measures, random::Random,
    revocations::wake::Revocations, source::StoreSource,
};

pub struct Service {
    pub store: Store,
    pub verifier: Verifier<StoreSource>,
    pub clock: Arc<dyn Clock>,
    pub random: Random,
    pub catalogue: Arc<Catalogue>,
    pub sealer: Sealer,
    pub audit_checks: AuditCheckLimiter,
    pub revocations: Revocations,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of usable keys of an application.
    pub application_keys: u32,
    /// Maximum number of usable commerce keys, and of usable account keys, of an account; `None` is unlimited.
    pub account_keys: Option<u32>,
    pub key_depth: AncestorLimit,
}

impl Service {
    /// Reads from the store, on behalf of this owner: connections are shared fairly among owners.
    ///
    /// # Errors
    /// `unavailable` when the store does not respond, or when too much work of this owner is waiting.
    pub async fn read<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Reader<'_>) -> Result<T, tollkey_store::Error> + Send + 'static,
    ) -> Result<T, Problem> {
        self.store
            .read_for(owner, work)
            .await
            .map_err(Problem::from)
    }

    /// Writes to the store in one transaction, on behalf of this owner. If the transaction changed something that
    /// verifiers cache, this returns after the change has been propagated to all of them.
    ///
    /// `work` may run more than once, each time in a new transaction (see [`Store::write`]).
    ///
    /// # Errors
    /// The error of `work`, with nothing written; `unavailable` like [`Service::read`].
    pub async fn change<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        let written = self.store.write_for(owner, work).await?;
        if let Some(change) = written.change {
            self.wait_until_propagated(change).await;
        }
        Ok(written.value)
    }

    /// Like [`Service::change`], for a state that may already exist. If the transaction changed nothing, waits for the
    /// propagation of every committed change: a replica may have crashed before its change was propagated.
    pub async fn ensure<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        let written = self.store.write_for(owner, work).await?;
        match written.change {
            Some(change) => self.wait_until_propagated(change).await,
            None => self.wait_until_all_propagated().await?,
        }
        Ok(written.value)
    }

    async fn wait_until_propagated(&self, change: Change) {
        let started = self.clock.elapsed();
        self.verifier
            .wait_until_propagated(change.seq, change.at)
            .await;
        measures::record_propagation_wait(self.clock.elapsed().saturating_sub(started));
    }

    pub(crate) async fn wait_until_all_propagated(&self) -> Result<(), Problem> {
        self.verifier
            .wait_until_all_propagated()
            .await
            .map_err(|_| Problem::unavailable())
    }

    /// Verifies a presented key. Lookups of keys that are not cached are shared fairly among requesters.
    ///
    /// # Errors
    /// `unavailable` when the key is not cached and the store does not respond or too many lookups are waiting.
    pub async fn verify<'a>(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Verdict, Problem> {
        let verifier = self.verifier.on_behalf_of(requester);
        counted(verifier.verify(presented, access).await)
    }

    /// Verifies a presented key without counting a use of it, for a request that is rejected whatever the result.
    pub async fn peek<'a>(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: impl Into<Presented<'a>>,
        access: &AccessRequest<'_>,
    ) -> Result<Verdict, Problem> {
        let verifier = self.verifier.on_behalf_of(requester);
        counted(verifier.peek(presented, access).await)
    }
}

fn counted(verdict: Result<Verdict, Unavailable>) -> Result<Verdict, Problem> {
    // Outcomes of known keys are counted with their usage, in batches.
    match &verdict {
        Ok(verdict) if verdict.outcome != Err(Denial::UnknownKey) => {}
        Ok(_) => measures::record_verifications(Denial::UnknownKey.code(), 1),
        Err(_) => measures::record_verifications(measures::UNAVAILABLE, 1),
    }
    verdict.map_err(|_| Problem::unavailable())
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
