//! Limits how many audit chains are verified at the same time.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tollkey_core::AccountId;

/// Limits the audit checks that run at the same time, because each check holds a connection for a while. An
/// account can run one check, so that it cannot block all other accounts. In total two can run, or one if
/// there are few connections.
#[derive(Debug, Clone)]
pub struct AuditCheckLimiter {
    accounts: Arc<Mutex<HashSet<AccountId>>>,
    limit: usize,
}

/// The right to run one check; released when dropped.
pub(super) struct CheckPermit {
    checks: AuditCheckLimiter,
    account_id: AccountId,
}

impl AuditCheckLimiter {
    #[must_use]
    pub fn new(connections: u32) -> Self {
        Self {
            accounts: Arc::default(),
            limit: if connections > 2 { 2 } else { 1 },
        }
    }

    fn accounts(&self) -> MutexGuard<'_, HashSet<AccountId>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, account_id: &AccountId) -> Option<CheckPermit> {
        let mut accounts = self.accounts();
        let free = accounts.len() < self.limit && accounts.insert(account_id.clone());
        free.then(|| CheckPermit {
            checks: self.clone(),
            account_id: account_id.clone(),
        })
    }
}

impl Drop for CheckPermit {
    fn drop(&mut self) {
        self.checks.accounts().remove(&self.account_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_limited_to_one_per_account_and_two_in_total() {
        let account = |id: &str| id.parse::<AccountId>().unwrap();
        let checks = AuditCheckLimiter::new(3);
        let acme = checks.take(&account("acme"));
        assert!(acme.is_some() && checks.take(&account("acme")).is_none());
        let globex = checks.take(&account("globex"));
        assert!(globex.is_some() && checks.take(&account("umbrella")).is_none());
        drop(acme);
        assert!(checks.take(&account("globex")).is_none());
        assert!(checks.take(&account("acme")).is_some());
        let narrow = AuditCheckLimiter::new(2);
        let _acme = narrow.take(&account("acme"));
        assert!(narrow.take(&account("globex")).is_none());
    }
}
