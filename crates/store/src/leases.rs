//! The change counter, the log of changes and the leases of verifiers.
//!
//! Not bound to a tenant: a verifier caches keys of all accounts. The statements implement the protocol in
//! `docs/leases.md` and are checked by `crates/model`. Do not change one without showing in the model that the change
//! is safe.

use std::time::Duration;

use diesel::{
    connection::SimpleConnection as _,
    prelude::*,
    sql_query,
    sql_types::{BigInt, Binary},
};
use tollkey_core::{
    Timestamp,
    change::{ChangeLog, Changed, Position, Seq, VerifierId},
};

use crate::{
    Error, Store,
    connection::AnyConnection,
    rows,
    schema::{change_counter, changes, settings, verifiers},
    wake,
};

/// How many changes the log keeps. A verifier that lags further behind finds a gap and clears its cache.
pub const RETAINED_CHANGES: i64 = 10_000;

/// How many changes one statement inserts; PostgreSQL allows at most 65,535 parameters.
const CHANGES_PER_STATEMENT: usize = 1000;

/// A verifier that has not applied a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaggingVerifier {
    pub verifier: VerifierId,
    /// Changes with each renewal of its lease, so that a crashed verifier can be told from a slow one.
    pub renewals: i64,
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = changes)]
struct ChangeRow {
    seq: i64,
    kind: String,
    what: String,
    at: i64,
}

/// Raises the counter by the number of changes, made at `at`, and inserts them into the log. Returns `None` if there
/// are no changes. The lock of the counter's row is held until the commit, so the counter has the order of commits,
/// without gaps.
pub(crate) fn raise_counter(
    conn: &mut AnyConnection,
    changed: impl ExactSizeIterator<Item = Changed>,
    at: Timestamp,
) -> Result<Option<Seq>, Error> {
    let count = i64::try_from(changed.len()).map_err(|_| Error::Other)?;
    if count == 0 {
        return Ok(None);
    }
    let at = rows::micros(at);
    let last: i64 = diesel::update(change_counter::table)
        .set((
            change_counter::seq.eq(change_counter::seq + count),
            change_counter::at.eq(at),
        ))
        .returning(change_counter::seq)
        .get_result(conn)?;
    let noted: Vec<ChangeRow> = (last - count + 1..)
        .zip(changed)
        .map(|(seq, change)| {
            let (kind, what) = change.to_parts();
            ChangeRow {
                seq,
                kind: kind.to_owned(),
                what,
                at,
            }
        })
        .collect();
    for rows in noted.chunks(CHANGES_PER_STATEMENT) {
        let insert = diesel::insert_into(changes::table).values(rows);
        match conn {
            AnyConnection::Postgres(conn) => insert.execute(conn)?,
            AnyConnection::Sqlite(conn) => insert.execute(conn)?,
        };
    }
    diesel::delete(changes::table.filter(changes::seq.le(last - RETAINED_CHANGES)))
        .execute(conn)?;
    if let AnyConnection::Postgres(conn) = conn {
        conn.batch_execute(&format!("NOTIFY {}", wake::CHANNEL))?; // sent by the commit
    }
    Ok(Some(Seq(last)))
}

/// PostgreSQL: one statement. The share lock waits for a revoking transaction between its UPDATE and its commit and
/// then sees the new counter. Without it, a new verifier could register without noticing that transaction.
///
/// `renewals` starts at a random number: a row that was deleted and inserted again must not look unchanged to a replica
/// that is about to remove the verifier.
const RENEW_POSTGRES: &str = "WITH c AS (SELECT seq, at FROM change_counter FOR SHARE) \
    INSERT INTO verifiers (id, applied_seq, renewals) \
    SELECT $1, $2, (random() * 4611686018427387904)::bigint FROM c WHERE seq = $3 AND at = $4 \
    ON CONFLICT (id) DO UPDATE SET applied_seq = excluded.applied_seq, renewals = verifiers.renewals + 1";
/// SQLite: the same under the write lock. SQLite treats `$1` as a named parameter and numbers it by first occurrence.
const RENEW_SQLITE: &str = "INSERT INTO verifiers (id, applied_seq, renewals) \
    SELECT $1, $2, random() & 4611686018427387903 FROM change_counter WHERE seq = $3 AND at = $4 \
    ON CONFLICT (id) DO UPDATE SET applied_seq = excluded.applied_seq, renewals = verifiers.renewals + 1";

impl Store {
    /// Returns the changes after `after`, at most `limit`, and the counter, from one snapshot.
    pub async fn changes_after(&self, after: Position, limit: u32) -> Result<ChangeLog, Error> {
        self.lease_read(move |conn| {
            // One statement is one snapshot. The first row is the change at `after` itself, which tells whether the log
            // still reaches back to it. If there is no change from there on, the query returns one row without a
            // change.
            let rows: Vec<(i64, i64, Option<ChangeRow>)> = change_counter::table
                .left_join(changes::table.on(changes::seq.ge(after.seq.0)))
                .order(changes::seq.asc())
                .limit(i64::from(limit.max(1)) + 1)
                .select((
                    change_counter::seq,
                    change_counter::at,
                    Option::<ChangeRow>::as_select(),
                ))
                .load(conn)?;
            let position = |seq, at| Position { seq: Seq(seq), at };
            let current = rows.first().map(|(seq, at, _)| position(*seq, *at));
            let current = current.ok_or_else(|| Error::corrupt("change counter"))?;
            let log = |changes| Ok(ChangeLog { current, changes });
            if after == current {
                return log(Some(Vec::new()));
            }
            let mut rows = rows.into_iter().filter_map(|(_, _, row)| row).peekable();
            // Position 0 is before the first change.
            let joins = after == Position::default()
                || rows
                    .next()
                    .is_some_and(|row| position(row.seq, row.at) == after);
            if !joins || rows.peek().is_none_or(|row| row.seq != after.seq.0 + 1) {
                return log(None);
            }
            let changes = rows.take(limit as usize).map(|row| {
                let change = Changed::from_parts(&row.kind, &row.what);
                let change = change.map_err(|_| Error::corrupt("change"))?;
                Ok((position(row.seq, row.at), change))
            });
            log(Some(changes.collect::<Result<_, Error>>()?))
        })
        .await
    }

    /// Acquires or renews a verifier's lease. `evicted` is the position up to which it has evicted changed keys,
    /// `reported` the one up to which its subscribers have too, never more than `evicted`. Returns `false` if the
    /// counter is not at `evicted`: the verifier has to apply the missing changes first. The lease begins before the
    /// call.
    /// After an error it is unknown whether the lease was renewed, so the verifier must assume that it was not.
    pub async fn renew(
        &self,
        verifier: VerifierId,
        reported: Seq,
        evicted: Position,
    ) -> Result<bool, Error> {
        self.renew_one(move |conn| {
            let sql = match conn {
                AnyConnection::Postgres(_) => RENEW_POSTGRES,
                AnyConnection::Sqlite(_) => RENEW_SQLITE,
            };
            let written = sql_query(sql)
                .bind::<Binary, _>(verifier.as_bytes().as_slice())
                .bind::<BigInt, _>(reported.0)
                .bind::<BigInt, _>(evicted.seq.0)
                .bind::<BigInt, _>(evicted.at)
                .execute(conn)?;
            Ok(written == 1)
        })
        .await
    }

    /// Stores up to which change a verifier is up to date, without extending its lease. Does nothing if its row has
    /// been removed: its next renewal inserts it again.
    pub async fn report(&self, verifier: VerifierId, applied: Seq) -> Result<(), Error> {
        self.lease_one(move |conn| {
            diesel::update(verifiers::table.find(verifier.as_bytes().as_slice()))
                .set(verifiers::applied_seq.eq(applied.0))
                .execute(conn)?;
            Ok(())
        })
        .await
    }

    /// Removes a verifier that no longer uses its cache.
    pub async fn unregister(&self, verifier: VerifierId) -> Result<(), Error> {
        self.lease_one(move |conn| {
            diesel::delete(verifiers::table.find(verifier.as_bytes().as_slice())).execute(conn)?;
            Ok(())
        })
        .await
    }

    /// Returns the other verifiers that have not applied all changes up to `seq`.
    pub async fn lagging_verifiers(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> Result<Vec<LaggingVerifier>, Error> {
        self.lease_read(move |conn| {
            let rows: Vec<(Vec<u8>, i64)> = verifiers::table
                .filter(verifiers::applied_seq.lt(seq.0))
                .filter(verifiers::id.ne(except.as_bytes().as_slice()))
                .order(verifiers::id)
                .select((verifiers::id, verifiers::renewals))
                .load(conn)?;
            rows.into_iter()
                .map(|(id, renewals)| {
                    let id: [u8; 16] = id.try_into().map_err(|_| Error::corrupt("verifier"))?;
                    Ok(LaggingVerifier {
                        verifier: VerifierId::from_bytes(id),
                        renewals,
                    })
                })
                .collect()
        })
        .await
    }

    /// Removes the row of a verifier that has not renewed its lease since `renewals` was read: it has crashed or is
    /// partitioned, and its lease has ended. A verifier that has renewed keeps its row, or the next revocation would
    /// not wait for it. Returns whether the row was removed.
    pub async fn remove_if_not_renewed(
        &self,
        verifier: VerifierId,
        renewals: i64,
    ) -> Result<bool, Error> {
        self.lease_one(move |conn| {
            let removed = diesel::delete(
                verifiers::table
                    .filter(verifiers::id.eq(verifier.as_bytes().as_slice()))
                    .filter(verifiers::renewals.eq(renewals)),
            )
            .execute(conn)?;
            Ok(removed == 1)
        })
        .await
    }

    /// Returns the length of a lease. Stored in the database, so that all replicas use the same.
    ///
    /// # Errors
    /// [`Error::Corrupt`] unless it is between 100 ms and 60 s.
    pub async fn lease_length(&self) -> Result<Duration, Error> {
        self.lease_read(|conn| {
            let value: String = settings::table
                .find("lease_ms")
                .select(settings::value)
                .first(conn)
                .optional()?
                .unwrap_or_default();
            match value.parse() {
                Ok(millis @ 100..=60_000) => Ok(Duration::from_millis(millis)),
                _ => Err(Error::corrupt("lease length")),
            }
        })
        .await
    }
}
