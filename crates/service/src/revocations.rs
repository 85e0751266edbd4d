//! Records revocations that apply to many keys, in the background.
//!
//! Revoking a key with descendants, or deleting an application, is one transaction: it changes one row and inserts one
//! change and one [pending revocation](PendingRevocation). From then on all of the keys are rejected. This module later
//! writes `revoked_at` and an audit entry for each key, with the actor and the time of the revocation. Any replica can
//! do this. Each transaction handles one batch of one account, and the accounts take turns, so that no account delays
//! another one.

pub(crate) mod wake;

use tollkey_core::{
    AccountId, AuditId, Problem,
    api_key::Transition,
    audit::{Action, Draft, Target},
    lineage::PendingRevocation,
};

use tollkey_store::Owner;

pub use self::wake::Revocations;
use crate::{api_keys::status_change, service::Service};

/// The maximum number of keys in a batch, which is one transaction.
const BATCH: u32 = 200;
/// The maximum number of accounts that are read together.
const ACCOUNTS: u32 = 100;

/// Records the pending revocations of all accounts, one batch of each account in turn. Skips a pending revocation that
/// another replica is recording.
/// If this fails, what was recorded is kept, and the next call continues from there.
pub(crate) async fn record_pending(service: &Service) -> Result<(), Problem> {
    loop {
        let (mut progress, mut failure) = (false, None);
        let mut after = None;
        loop {
            let start = after.clone();
            let accounts = service
                .read(Owner::Background, move |db| {
                    db.accounts_with_pending_revocations(start.as_ref(), ACCOUNTS)
                })
                .await?;
            for account in &accounts {
                match record_batch(service, account.clone()).await {
                    Ok(recorded) => progress |= recorded,
                    Err(problem) => failure = Some(problem), // continue with the other accounts
                }
            }
            match accounts.into_iter().last() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        match failure {
            Some(problem) if !progress => return Err(problem),
            None if !progress => return Ok(()),
            _ => {}
        }
    }
}

/// Records a batch of an account's oldest pending revocation. Returns `false` if nothing is pending or
/// another replica is recording it.
async fn record_batch(service: &Service, account_id: AccountId) -> Result<bool, Problem> {
    let (random, clock) = (service.random.clone(), service.clock.clone());
    service
        .change(Owner::Background, move |tx| {
            let mut account = tx.account(&account_id);
            let Some(mut batch) = account.next_batch(BATCH)? else {
                return Ok(false);
            };
            let keys = std::mem::take(&mut batch.keys);
            let mut recorded = Vec::with_capacity(keys.len());
            for mut key in keys {
                if key.record_inherited_revocation() == Transition::Changed {
                    account.record_revocation(&key)?;
                    recorded.push(key);
                }
            }
            let done = account.end_batch(&batch)?;
            // The entries are appended last, because the first one locks the account's audit chain, for which every
            // other change of the account waits.
            let PendingRevocation {
                revoked_at,
                actor,
                request_id,
                ip,
                ..
            } = batch.pending;
            for key in &recorded {
                account.append(Draft {
                    id: random.with(|rng| AuditId::new(clock.now(), rng)),
                    account_id: account_id.clone(),
                    occurred_at: revoked_at,
                    action: Action::ApiKeyRevoked,
                    actor: actor.clone(),
                    target: Target::key(key.id, key.mode),
                    request_id: request_id.clone(),
                    ip,
                    changes: status_change(key, revoked_at),
                })?;
            }
            if done {
                tracing::info!(account = %account_id, "a revocation has been recorded on all affected keys");
            }
            Ok(true)
        })
        .await
}
