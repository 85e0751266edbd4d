//! Writing down what verification counted.
//!
//! Not bound to a tenant: verifiers flush the counts of all accounts in one batch. Reading them is, see
//! [`crate::AccountReader::usage`].

use diesel::{
    prelude::*,
    sql_query,
    sql_types::{BigInt, Binary, Integer, Text},
};
use tollkey_core::{Usage, usage::outcome_code};

use crate::{
    Error, Store, rows,
    store::{STEP, Writer},
};

/// The same text on both backends. A key that is not there, after a restore for instance, is skipped. A count that would
/// not fit stays at the most: an error would hold up those of all other keys.
const ADD: &str = "INSERT INTO key_usage (key_id, day, outcome, count) \
    SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT 1 FROM api_keys WHERE id = $1) \
    ON CONFLICT (key_id, day, outcome) DO UPDATE SET count = CASE \
    WHEN key_usage.count > 9223372036854775807 - excluded.count THEN 9223372036854775807 \
    ELSE key_usage.count + excluded.count END";
/// Touches only this column, and never takes it back: replicas flush in any order.
const USED: &str = "UPDATE api_keys SET last_used_at = $1 WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)";
/// A step of forgetting; the same text on both backends.
const PRUNE: &str = "DELETE FROM key_usage WHERE (key_id, day, outcome) IN \
    (SELECT key_id, day, outcome FROM key_usage WHERE day < $1 LIMIT $2)";

impl Store {
    /// Adds a batch of counts, all or nothing, so that one that failed can be tried again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn add_usage(&self, batch: Vec<Usage>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        // Nothing here is remembered by verifiers, so there is no change to wait for.
        let _ = self.write(move |tx| tx.add_usage(batch)).await?;
        Ok(())
    }

    /// Forgets the counts of days before `day`; returns how many rows that were.
    ///
    /// # Errors
    /// [`Error`]; what was forgotten before it stays forgotten.
    pub async fn prune_usage(&self, day: i32) -> Result<usize, Error> {
        self.in_steps(move |tx| {
            Ok(sql_query(PRUNE)
                .bind::<Integer, _>(day)
                .bind::<BigInt, _>(i64::from(STEP))
                .execute(tx.conn)?)
        })
        .await
    }
}

impl Writer<'_> {
    fn add_usage(&mut self, mut batch: Vec<Usage>) -> Result<(), Error> {
        // One order for all replicas, or two flushes could wait for each other's rows.
        batch.sort_by_key(|usage| (usage.key_id, usage.day, outcome_code(usage.outcome)));
        for usage in &batch {
            sql_query(ADD)
                .bind::<Binary, _>(usage.key_id.as_bytes().as_slice())
                .bind::<Integer, _>(usage.day)
                .bind::<Text, _>(outcome_code(usage.outcome))
                .bind::<BigInt, _>(i64::try_from(usage.count).unwrap_or(i64::MAX))
                .execute(self.conn)?;
            if let Some(at) = usage.last_used_at {
                sql_query(USED)
                    .bind::<BigInt, _>(rows::micros(at))
                    .bind::<Binary, _>(usage.key_id.as_bytes().as_slice())
                    .execute(self.conn)?;
            }
        }
        Ok(())
    }
}
