//! Reads the audit logs of all accounts, for verification by the operator.
//!
//! Not bound to a tenant: `tollkey audit verify` checks the chains of all accounts.

use std::ops::ControlFlow;

use diesel::prelude::*;
use tollkey_core::{
    AccountId,
    audit::{ChainError, Entry, Head},
};

use crate::{
    Error, Reader,
    connection::multi::MultiBackend,
    rows::{self, EntryRow},
    schema::{audit_heads, audit_log},
};

const PAGE: i64 = 500;

impl Reader<'_> {
    /// Calls `each` for each entry of one account or of all, ordered by account and number, until it breaks. For an
    /// entry that cannot be read it passes [`ChainError::Broken`].
    pub fn for_each_audit_entry<B>(
        &mut self,
        account: Option<&AccountId>,
        mut each: impl FnMut(Result<Entry, ChainError>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Error> {
        let mut last: Option<(String, i64)> = None;
        loop {
            let mut query = audit_log::table
                .select(EntryRow::as_select())
                .order((audit_log::account_id, audit_log::seq))
                .limit(PAGE)
                .into_boxed::<MultiBackend>();
            if let Some(account) = account {
                query = query.filter(audit_log::account_id.eq(account.as_str()));
            }
            if let Some((account, seq)) = last.take() {
                query = query.filter(
                    audit_log::account_id
                        .gt(account.clone())
                        .or(audit_log::account_id
                            .eq(account)
                            .and(audit_log::seq.gt(seq))),
                );
            }
            let page: Vec<EntryRow> = query.load(self.conn)?;
            last = page.last().map(|row| (row.account_id.clone(), row.seq));
            if last.is_none() {
                return Ok(ControlFlow::Continue(()));
            }
            for row in page {
                let (account, seq) = (rows::account_id(&row.account_id)?, rows::unsigned(row.seq)?);
                let entry = row
                    .try_into()
                    .map_err(|_: Error| ChainError::Broken { account, seq });
                if let ControlFlow::Break(value) = each(entry) {
                    return Ok(ControlFlow::Break(value));
                }
            }
        }
    }

    /// Returns the ends of at most `limit` chains, ordered by account, after an account.
    pub fn audit_heads(
        &mut self,
        after: Option<&AccountId>,
        limit: u32,
    ) -> Result<Vec<(AccountId, Head)>, Error> {
        let rows: Vec<(String, i64, Vec<u8>)> = audit_heads::table
            .filter(audit_heads::account_id.gt(after.map_or("", AccountId::as_str)))
            .order(audit_heads::account_id)
            .limit(limit.into())
            .load(self.conn)?;
        rows.into_iter()
            .map(|(account, seq, hash)| Ok((rows::account_id(&account)?, rows::head(seq, &hash)?)))
            .collect()
    }
}
