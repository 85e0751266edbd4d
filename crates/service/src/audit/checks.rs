//! How many audit chains are verified at the same time.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tollkey_core::AccountId;

/// The accounts whose chains are gone through right now. Each check takes a connection for a while: there is one for an account,
/// so that no account keeps all others waiting, and two in all, or one where there are few connections.
#[derive(Debug, Clone)]
pub struct Checks {
    accounts: Arc<Mutex<HashSet<AccountId>>>,
    most: usize,
}

/// A place among those; free when dropped.
pub(super) struct Place {
    checks: Checks,
    account_id: AccountId,
}

impl Checks {
    /// None yet, beside so many connections for requests.
    #[must_use]
    pub fn new(connections: u32) -> Self {
        Self {
            accounts: Arc::default(),
            most: if connections > 2 { 2 } else { 1 },
        }
    }

    fn accounts(&self) -> MutexGuard<'_, HashSet<AccountId>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, account_id: &AccountId) -> Option<Place> {
        let mut accounts = self.accounts();
        let free = accounts.len() < self.most && accounts.insert(account_id.clone());
        free.then(|| Place {
            checks: self.clone(),
            account_id: account_id.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.checks.accounts().remove(&self.account_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_check_for_an_account_and_two_in_all() {
        let account = |id: &str| id.parse::<AccountId>().unwrap();
        let checks = Checks::new(3);
        let acme = checks.take(&account("acme"));
        assert!(acme.is_some() && checks.take(&account("acme")).is_none());
        let globex = checks.take(&account("globex"));
        assert!(globex.is_some() && checks.take(&account("umbrella")).is_none());
        drop(acme);
        assert!(checks.take(&account("globex")).is_none());
        assert!(checks.take(&account("acme")).is_some());
        let narrow = Checks::new(2);
        let _acme = narrow.take(&account("acme"));
        assert!(narrow.take(&account("globex")).is_none());
    }
}
