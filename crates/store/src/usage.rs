//! Stores the counts of verifications and the times of last use.
//!
//! Not bound to a tenant: verifiers write the counts of all accounts in one batch. Reading them is bound to one: see
//! [`crate::AccountReader::usage`].

use std::collections::BTreeMap;

use diesel::{
    prelude::*,
    sql_query,
    sql_types::{Array, BigInt, Binary, Integer, Text},
};
use serde_json::json;
use tollkey_core::{KeyId, Usage, hex, usage::outcome_code};

use crate::{
    Error, Store,
    connection::AnyConnection,
    rows,
    store::{STEP, Writer},
};

/// The rows of a batch as one array for each column, for PostgreSQL. Skips keys that do not exist, for instance after a
/// restore. Keeps the order of the arrays, so that two replicas lock rows in the same order and do not deadlock.
const COUNTS_OF_ARRAYS: &str = "SELECT key_id, day, outcome, count \
    FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS batch (key_id, day, outcome, count, place) \
    WHERE EXISTS (SELECT 1 FROM api_keys WHERE id = batch.key_id) ORDER BY place";
const USES_OF_ARRAYS: &str = "SELECT key_id, last_used_at \
    FROM unnest($1, $2) WITH ORDINALITY AS batch (key_id, last_used_at, place) \
    WHERE EXISTS (SELECT 1 FROM api_keys WHERE id = batch.key_id) ORDER BY place";

/// The rows of a batch as one JSON array of arrays, for SQLite. IDs are in hexadecimal.
const COUNTS_OF_JSON: &str = "SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3 FROM json_each($1) \
    WHERE EXISTS (SELECT 1 FROM api_keys WHERE id = unhex(value ->> 0))";
const USES_OF_JSON: &str = "SELECT unhex(value ->> 0), value ->> 1 FROM json_each($1) \
    WHERE EXISTS (SELECT 1 FROM api_keys WHERE id = unhex(value ->> 0))";

/// Returns the statement that adds counts. A sum that would overflow stays at the maximum: an error would block the
/// counts of all other keys.
fn add_counts(rows: &str) -> String {
    format!(
        "INSERT INTO key_usage (key_id, day, outcome, count) {rows} \
         ON CONFLICT (key_id, day, outcome) DO UPDATE SET count = CASE \
         WHEN key_usage.count > 9223372036854775807 - excluded.count THEN 9223372036854775807 \
         ELSE key_usage.count + excluded.count END"
    )
}

/// Returns the statement that sets times of last use. It never moves one back: replicas write in any order.
fn add_uses(rows: &str) -> String {
    format!(
        "INSERT INTO key_last_used (key_id, last_used_at) {rows} \
         ON CONFLICT (key_id) DO UPDATE SET last_used_at = excluded.last_used_at \
         WHERE key_last_used.last_used_at < excluded.last_used_at"
    )
}

/// One step of deleting old counts; the same SQL on both backends.
const PRUNE: &str = "DELETE FROM key_usage WHERE (key_id, day, outcome) IN \
    (SELECT key_id, day, outcome FROM key_usage WHERE day < $1 LIMIT $2)";

impl Store {
    /// Adds a batch of counts in one transaction, so that a failed batch can be retried.
    pub async fn add_usage(&self, batch: Vec<Usage>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let batch = UsageBatch::from(batch);
        // Verifiers cache nothing of this, so there is no change to propagate.
        let _ = self.write(move |tx| tx.add_usage(&batch)).await?;
        Ok(())
    }

    /// Deletes the counts of days before `day`; returns the number of rows.
    /// Rows deleted before an error stay deleted.
    pub async fn prune_usage(&self, day: i32) -> Result<usize, Error> {
        self.delete_in_batches(move |tx| {
            Ok(sql_query(PRUNE)
                .bind::<Integer, _>(day)
                .bind::<BigInt, _>(i64::from(STEP))
                .execute(tx.conn)?)
        })
        .await
    }
}

/// The rows of a batch. Maps, because no statement may write a row twice, and because all replicas, including those of
/// the previous release, must lock rows in the same order to avoid deadlocks.
#[derive(Debug, Clone, Default)]
struct UsageBatch {
    counts: BTreeMap<(KeyId, i32, &'static str), i64>,
    uses: BTreeMap<KeyId, i64>,
}

impl From<Vec<Usage>> for UsageBatch {
    fn from(usages: Vec<Usage>) -> Self {
        let mut batch = Self::default();
        for usage in usages {
            let row = (usage.key_id, usage.day, outcome_code(usage.outcome));
            let count = batch.counts.entry(row).or_default();
            *count = count.saturating_add(i64::try_from(usage.count).unwrap_or(i64::MAX));
            if let Some(at) = usage.last_used_at.map(rows::micros) {
                let last = batch.uses.entry(usage.key_id).or_insert(at);
                *last = at.max(*last);
            }
        }
        batch
    }
}

impl Writer<'_> {
    fn add_usage(&mut self, batch: &UsageBatch) -> Result<(), Error> {
        match &mut *self.conn {
            AnyConnection::Postgres(conn) => {
                let keys = batch.counts.keys();
                let ids: Vec<&[u8]> = keys
                    .clone()
                    .map(|(id, ..)| id.as_bytes().as_slice())
                    .collect();
                let days: Vec<i32> = keys.clone().map(|(_, day, _)| *day).collect();
                let outcomes: Vec<&str> = keys.map(|(.., outcome)| *outcome).collect();
                let counts: Vec<i64> = batch.counts.values().copied().collect();
                sql_query(add_counts(COUNTS_OF_ARRAYS))
                    .bind::<Array<Binary>, _>(ids)
                    .bind::<Array<Integer>, _>(days)
                    .bind::<Array<Text>, _>(outcomes)
                    .bind::<Array<BigInt>, _>(counts)
                    .execute(conn)?;
                let ids: Vec<&[u8]> = batch
                    .uses
                    .keys()
                    .map(|id| id.as_bytes().as_slice())
                    .collect();
                let times: Vec<i64> = batch.uses.values().copied().collect();
                sql_query(add_uses(USES_OF_ARRAYS))
                    .bind::<Array<Binary>, _>(ids)
                    .bind::<Array<BigInt>, _>(times)
                    .execute(conn)?;
            }
            AnyConnection::Sqlite(conn) => {
                let counts = batch.counts.iter();
                let counts: Vec<_> = counts
                    .map(|((id, day, outcome), count)| {
                        json!([hex::encode(id.as_bytes()), day, outcome, count])
                    })
                    .collect();
                sql_query(add_counts(COUNTS_OF_JSON))
                    .bind::<Text, _>(json!(counts).to_string())
                    .execute(conn)?;
                let uses = batch.uses.iter();
                let uses: Vec<_> = uses
                    .map(|(id, at)| json!([hex::encode(id.as_bytes()), at]))
                    .collect();
                sql_query(add_uses(USES_OF_JSON))
                    .bind::<Text, _>(json!(uses).to_string())
                    .execute(conn)?;
            }
        }
        Ok(())
    }
}
