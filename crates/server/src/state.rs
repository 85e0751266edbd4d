//! What a request may use. Passed, never global.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use actix_web::{http::header::HeaderName, web::Bytes};
use ipnet::IpNet;
use tollkey_core::{
    Catalogue, Clock, Denial, Need, Problem, RouteBase, ceiling::DepthLimit,
    credential::CredentialHeaders, time::day, usage::outcome_code,
};
use tollkey_store::{Change, Owner, Reader, Store, Writer};
use tollkey_verifier::{LogLimit, Requester, Unavailable, Verdict, Verifier, usage::BATCH};

use crate::{
    caller::jwt::TokenVerifier,
    public_path::PublicPath,
    random::Random,
    service::{
        audit::UnderWay,
        idempotency::Sealer,
        revocations::{self, Revocations},
        sign_in::Ways,
    },
    source::StoreSource,
    telemetry,
};

/// For how many days usage is kept: a year and a month, so that a month can be compared with the year before.
const USAGE_KEPT_DAYS: i32 = 400;

/// What a request may use.
pub struct State {
    /// Where everything is kept.
    pub store: Store,
    /// Where keys are answered from memory.
    pub verifier: Verifier<StoreSource>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Random,
    /// Who checks management tokens.
    pub tokens: TokenVerifier,
    /// The scopes there are.
    pub catalogue: Arc<Catalogue>,
    /// Seals what is kept for requests that are sent again.
    pub sealer: Sealer,
    /// The ways into the dashboard.
    pub ways: Ways,
    /// The audit chains that are gone through for the dashboard.
    pub audit_checks: UnderWay,
    /// Wakes up the task that records revocations of many keys.
    pub revocations: Revocations,
    /// What the operator decided.
    pub policy: Policy,
    /// The path prefix under which clients reach the server.
    pub public_path: PublicPath,
    /// The OpenAPI document, for clients under that prefix.
    pub document: OnceLock<Bytes>,
    /// Set while the server stops: it is no longer ready.
    pub draining: AtomicBool,
    /// How often is logged what any request can cause.
    pub log_limits: LogLimits,
}

/// Limits of log lines that any request can cause.
#[derive(Debug)]
pub struct LogLimits {
    /// A trusted proxy sends a client address that cannot be read.
    pub unreadable_hop: LogLimit,
    /// A gateway requires something unknown. Several lines, because each can be about another route.
    pub gateway_requirement: LogLimit,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            unreadable_hop: LogLimit::default(),
            gateway_requirement: LogLimit::new(20),
        }
    }
}

/// What the operator decided, as far as requests are judged by it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which gateways pass the merchant a request is about.
    pub merchant_header: HeaderName,
    /// The headers that the gateway routes read a credential from.
    pub credential_headers: CredentialHeaders,
    /// Cut once from the path of a request before routes are matched.
    pub route_base: RouteBase,
    /// How many usable keys an application can hold.
    pub application_key_limit: u32,
    /// How many usable commerce keys, and how many usable account keys, an account can hold; `None` is unlimited.
    pub account_key_limit: Option<u32>,
    /// How many ancestors a key can have.
    pub key_depth_limit: DepthLimit,
    /// Whether this is development mode, which takes no management requests through a proxy.
    pub development: bool,
}

impl State {
    /// Reads from the store, as work of this owner: connections are shared fairly among owners.
    ///
    /// # Errors
    /// `unavailable` when it cannot be reached, or when too much of this owner's work waits.
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

    /// Writes to the store in one transaction, as work of this owner. When the transaction changed something that verifiers cache, this
    /// returns only once none of them, anywhere, can answer from what was.
    ///
    /// `work` may run more than once, each time in a new transaction (see [`Store::write`]).
    ///
    /// # Errors
    /// What `work` returns, with nothing written; `unavailable` when the store cannot be reached, or when too much of
    /// this owner's work waits.
    pub async fn change<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        let written = self.store.write_for(owner, work).await?;
        if let Some(change) = written.change {
            self.settle(change).await;
        }
        Ok(written.value)
    }

    /// [`State::change`] for what may be so already: where the transaction changed nothing, whoever made it so before may
    /// have died before everybody knew, and every change committed so far is waited for.
    ///
    /// # Errors
    /// As for [`State::change`]; `unavailable` too when nothing was changed and the store does not say since when.
    pub async fn ensure<T: Send + 'static>(
        &self,
        owner: impl Into<Owner>,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        let written = self.store.write_for(owner, work).await?;
        match written.change {
            Some(change) => self.settle(change).await,
            None => self.settle_current().await?,
        }
        Ok(written.value)
    }

    async fn settle(&self, change: Change) {
        let started = self.clock.elapsed();
        self.verifier.settle(change.seq, change.at).await;
        telemetry::record_settle(self.clock.elapsed().saturating_sub(started));
    }

    /// Waits until every change committed so far holds everywhere. For answering "it is so already": whoever made it
    /// so may have died before everybody knew.
    ///
    /// # Errors
    /// `unavailable` when the store cannot be asked.
    pub async fn settle_current(&self) -> Result<(), Problem> {
        self.verifier
            .settle_current()
            .await
            .map_err(|_| Problem::unavailable())
    }

    /// Verifies a presented key. Look-ups of keys that are not cached are shared fairly among requesters.
    ///
    /// # Errors
    /// `unavailable` when the key is not cached and the store cannot be asked, or when too many look-ups of this requester
    /// wait.
    pub async fn verify(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: &str,
        need: &Need<'_>,
    ) -> Result<Verdict, Problem> {
        Self::counted(self.verifier.verify_for(requester, presented, need).await)
    }

    /// Judges a presented key whose request is refused whatever the verdict: that is no use of it.
    ///
    /// # Errors
    /// As for [`State::verify`].
    pub async fn look(
        &self,
        requester: impl FnOnce() -> Requester,
        presented: &str,
        need: &Need<'_>,
    ) -> Result<Verdict, Problem> {
        Self::counted(self.verifier.look_for(requester, presented, need).await)
    }

    fn counted(verdict: Result<Verdict, Unavailable>) -> Result<Verdict, Problem> {
        // Outcomes of known keys are counted with their usage, in batches.
        match &verdict {
            Ok(verdict) if verdict.outcome != Err(Denial::UnknownKey) => {}
            Ok(_) => telemetry::record_verifications(Denial::UnknownKey.code(), 1),
            Err(_) => telemetry::record_verifications("unavailable", 1),
        }
        verdict.map_err(|_| Problem::unavailable())
    }

    /// Writes down what was counted while verifying. What cannot be written is kept for the next time.
    pub async fn flush_usage(&self) {
        // What is there now; keys that are used again meanwhile wait for the next time.
        for _ in 0..self.verifier.usage_waiting().div_ceil(BATCH) {
            let counted = self.verifier.take_usage();
            if let Err(error) = self.store.add_usage(counted.clone()).await {
                tracing::warn!(%error, "usage could not be written down; it is kept for the next time");
                self.verifier.restore_usage(counted);
                return;
            }
            for usage in &counted {
                telemetry::record_verifications(outcome_code(usage.outcome), usage.count);
            }
        }
    }

    /// Records revocations that apply to many keys, as far as this replica can.
    pub async fn record_revocations(&self) {
        if let Err(problem) = revocations::record_pending(self).await {
            tracing::warn!(
                code = problem.code.as_str(),
                "a revocation could not be recorded on all of its keys, which are rejected all the same; trying again"
            );
        }
    }

    /// Deletes usage that is older than anybody looks at.
    pub async fn prune_usage(&self) {
        if let Err(error) = self
            .store
            .prune_usage(day(self.clock.now()) - USAGE_KEPT_DAYS)
            .await
        {
            tracing::warn!(%error, "old usage could not be deleted; it is tried again");
        }
    }

    /// Forgets the sessions whose time has come.
    pub async fn prune_sessions(&self) {
        if let Err(error) = self.store.prune_sessions(self.clock.now()).await {
            tracing::warn!(%error, "old sessions could not be deleted; it is tried again");
        }
    }

    /// The server stops soon: it is no longer ready, and polls of subscribers wait no longer, so that they move to another
    /// replica.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.verifier.release_polls();
    }

    /// Whether the server stops soon.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether requests can be answered: the store answers and takes changes, its schema is not older than this build's,
    /// and the server is not stopping. A newer one works for the release before it: while servers are replaced one after
    /// the other, those that are left are ready.
    pub async fn is_ready(&self) -> bool {
        !self.is_draining() && self.store.ready().await.is_ok()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
