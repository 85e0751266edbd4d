//! The caller of a use case.

use std::{net::IpAddr, sync::Arc};

use serde_json::Value;
use tollkey_core::{
    AccountId, AuditId, Mode, Timestamp,
    audit::{Action, Actor, Draft, Target},
    lineage::{PendingRevocation, Root},
};
use tollkey_store::Owner;
use tollkey_verifier::CachedKey;

use crate::service::Service;

/// The caller of a use case that works on an account, with everything that an audit entry needs.
#[derive(Debug, Clone)]
pub struct RequestActor {
    pub account_id: AccountId,
    pub actor: Actor,
    /// `None` for the command line.
    pub request_id: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
    /// The API key that the request presents, if any: it is the parent of the keys that the request creates.
    pub parent: Option<CachedKey>,
}

/// The owner of a request's database work is the account that it reads or changes, even if an operator sends it.
impl From<&RequestActor> for Owner {
    fn from(actor: &RequestActor) -> Self {
        Self::from(&actor.account_id)
    }
}

impl RequestActor {
    /// Returns the mode that the caller is limited to: a test key can access only test keys.
    #[must_use]
    pub fn visible_mode(&self) -> Option<Mode> {
        self.parent
            .as_ref()
            .map(|key| key.key.mode)
            .filter(|mode| *mode == Mode::Test)
    }

    pub(crate) fn draft(
        &self,
        service: &Service,
        action: Action,
        target: Target,
        changes: Value,
    ) -> Draft {
        self.drafts(service)(action, target, changes)
    }

    /// Returns a function that creates audit entries inside a transaction, where the service is not available.
    pub(crate) fn drafts(
        &self,
        service: &Service,
    ) -> impl Fn(Action, Target, Value) -> Draft + Clone + Send + Sync + use<> + 'static {
        let (caller, random, clock) = (
            self.clone(),
            service.random.clone(),
            Arc::clone(&service.clock),
        );
        move |action, target, changes| {
            let occurred_at = clock.now();
            Draft {
                id: random.with(|rng| AuditId::new(occurred_at, rng)),
                account_id: caller.account_id.clone(),
                occurred_at,
                action,
                actor: caller.actor.clone(),
                target,
                request_id: caller.request_id.as_deref().map(str::to_owned),
                ip: caller.ip,
                changes,
            }
        }
    }

    pub(crate) fn pending_revocation(
        &self,
        root: Root,
        revoked_at: Timestamp,
    ) -> PendingRevocation {
        PendingRevocation {
            account_id: self.account_id.clone(),
            root,
            revoked_at,
            actor: self.actor.clone(),
            request_id: self.request_id.as_deref().map(str::to_owned),
            ip: self.ip,
        }
    }
}
