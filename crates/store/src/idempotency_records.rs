//! Idempotency records: the responses to requests with an Idempotency-Key, for replay.
//!
//! The ID of a record is a hash that covers account and caller, so a caller cannot find another caller's record.
//! Responses are encrypted before they are stored.

use diesel::{define_sql_function, prelude::*, sql_query, sql_types::BigInt};
use tollkey_core::Timestamp;

use crate::{
    Error, Reader, Store, Writer,
    connection::AnyConnection,
    rows::{self, micros},
    schema::kept_answers,
    store::STEP,
};

/// One step of deleting old records; the same SQL on both backends.
const PRUNE: &str = "DELETE FROM kept_answers WHERE id IN \
    (SELECT id FROM kept_answers WHERE created_at <= $1 LIMIT $2)";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// A hash of the account, caller, mode, method, path and Idempotency-Key.
    pub id: [u8; 32],
    /// A hash of the request's body.
    pub fingerprint: [u8; 32],
    /// The encrypted response.
    pub sealed: Vec<u8>,
    pub created_at: Timestamp,
}

define_sql_function! {
    fn pg_try_advisory_xact_lock(key: BigInt) -> Bool;
}

impl Reader<'_> {
    /// Returns the record with this ID if it was created after `since`.
    pub fn idempotency_record(
        &mut self,
        id: &[u8; 32],
        since: Timestamp,
    ) -> Result<Option<IdempotencyRecord>, Error> {
        let row: Option<(Vec<u8>, Vec<u8>, i64)> = kept_answers::table
            .find(id.as_slice())
            .filter(kept_answers::created_at.gt(micros(since)))
            .select((
                kept_answers::fingerprint,
                kept_answers::sealed,
                kept_answers::created_at,
            ))
            .first(self.conn)
            .optional()?;
        row.map(|(fingerprint, sealed, created_at)| {
            Ok(IdempotencyRecord {
                id: *id,
                fingerprint: fingerprint
                    .try_into()
                    .map_err(|_| Error::corrupt("fingerprint"))?,
                sealed,
                created_at: rows::timestamp(created_at)?,
            })
        })
        .transpose()
    }
}

impl Writer<'_> {
    /// Reserves an ID until the end of the transaction, without waiting. Returns `false` if another transaction has
    /// reserved it. SQLite has only one writer, so this always succeeds there.
    pub fn reserve_idempotency_record(&mut self, id: &[u8; 32]) -> Result<bool, Error> {
        let (conn, _) = self.parts();
        let AnyConnection::Postgres(conn) = conn else {
            return Ok(true);
        };
        // The first 64 bits: if two IDs share them, one request gets an error and can be retried.
        let [a, b, c, d, e, f, g, h, ..] = *id;
        let number = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Ok(diesel::select(pg_try_advisory_xact_lock(number)).get_result(conn)?)
    }

    /// Stores a record and replaces an older one with the same ID. The caller must have reserved the ID.
    pub fn insert_idempotency_record(&mut self, answer: &IdempotencyRecord) -> Result<(), Error> {
        let (conn, _) = self.parts();
        diesel::delete(kept_answers::table.find(answer.id.as_slice())).execute(conn)?;
        diesel::insert_into(kept_answers::table)
            .values((
                kept_answers::id.eq(answer.id.as_slice()),
                kept_answers::fingerprint.eq(answer.fingerprint.as_slice()),
                kept_answers::sealed.eq(&answer.sealed),
                kept_answers::created_at.eq(micros(answer.created_at)),
            ))
            .execute(conn)?;
        Ok(())
    }
}

impl Store {
    /// Deletes the records created up to `until`; returns their number.
    pub async fn prune_idempotency_records(&self, until: Timestamp) -> Result<usize, Error> {
        self.delete_in_batches(move |tx| {
            let (conn, _) = tx.parts();
            let until = micros(until);
            Ok(sql_query(PRUNE)
                .bind::<BigInt, _>(until)
                .bind::<BigInt, _>(i64::from(STEP))
                .execute(conn)?)
        })
        .await
    }
}
