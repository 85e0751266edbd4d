//! Finds accounts with pending revocations.
//!
//! Not bound to a tenant: any replica can finish the revocations of all accounts.

use diesel::prelude::*;
use tollkey_core::AccountId;

use crate::{Error, Reader, rows, schema::pending_revocations};

impl Reader<'_> {
    /// Returns at most `limit` accounts with a pending revocation, after an account, ordered by ID.
    pub fn accounts_with_pending_revocations(
        &mut self,
        after: Option<&AccountId>,
        limit: u32,
    ) -> Result<Vec<AccountId>, Error> {
        let ids: Vec<String> = pending_revocations::table
            .filter(pending_revocations::account_id.gt(after.map_or("", AccountId::as_str)))
            .order(pending_revocations::account_id)
            .select(pending_revocations::account_id)
            .distinct()
            .limit(limit.into())
            .load(self.conn)?;
        ids.iter().map(|id| rows::account_id(id)).collect()
    }
}
