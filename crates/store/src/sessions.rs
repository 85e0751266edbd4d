//! Dashboard sessions.
//!
//! Not bound to a tenant: the account is not known before the session is found by the hash of its cookie, and an
//! operator's session has none.

use diesel::{
    prelude::*,
    sql_query,
    sql_types::{BigInt, Binary, Nullable, Text},
};
use tollkey_core::{AccountId, Digest, Timestamp, session::Session};

use crate::{
    Error, Owner, Store, Writer,
    rows::{self, micros},
    schema::sessions,
    store::STEP,
};

/// One step of deleting ended sessions; the same SQL on both backends.
const PRUNE: &str = "DELETE FROM sessions WHERE digest IN (SELECT digest FROM sessions WHERE ends_at <= $1 LIMIT $2)";
/// One step of deleting the sessions of an account, of a subject, of both, or all.
const END: &str = "DELETE FROM sessions WHERE digest IN (SELECT digest FROM sessions \
                   WHERE (account_id = $1 OR $1 IS NULL) AND (subject = $2 OR $2 IS NULL) LIMIT $3)";
/// Never moves the time back: a browser's requests run concurrently.
const SEEN: &str = "UPDATE sessions SET last_seen_at = $1 WHERE digest = $2 AND last_seen_at < $1";

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = sessions, treat_none_as_default_value = false)]
struct SessionRow {
    account_id: Option<String>,
    subject: String,
    is_operator: bool,
    grounds: Vec<u8>,
    created_at: i64,
    last_seen_at: i64,
    ends_at: i64,
}

impl From<&Session> for SessionRow {
    fn from(session: &Session) -> Self {
        Self {
            account_id: session.account_id.as_ref().map(ToString::to_string),
            subject: session.subject.clone(),
            is_operator: session.is_operator,
            grounds: session.sign_in_settings.as_bytes().to_vec(),
            created_at: micros(session.created_at),
            last_seen_at: micros(session.last_seen_at),
            ends_at: micros(session.ends_at),
        }
    }
}

impl TryFrom<SessionRow> for Session {
    type Error = Error;

    fn try_from(row: SessionRow) -> Result<Self, Error> {
        Ok(Self {
            account_id: row
                .account_id
                .as_deref()
                .map(rows::account_id)
                .transpose()?,
            subject: row.subject,
            is_operator: row.is_operator,
            sign_in_settings: rows::digest(&row.grounds)?,
            created_at: rows::timestamp(row.created_at)?,
            last_seen_at: rows::timestamp(row.last_seen_at)?,
            ends_at: rows::timestamp(row.ends_at)?,
        })
    }
}

impl Writer<'_> {
    pub fn insert_session(&mut self, digest: &Digest, session: &Session) -> Result<(), Error> {
        diesel::insert_into(sessions::table)
            .values((
                sessions::digest.eq(digest.as_bytes().as_slice()),
                SessionRow::from(session),
            ))
            .execute(self.conn)?;
        Ok(())
    }

    /// Sets the time at which a session was last used.
    pub fn touch_session(&mut self, digest: &Digest, now: Timestamp) -> Result<(), Error> {
        sql_query(SEEN)
            .bind::<BigInt, _>(micros(now))
            .bind::<Binary, _>(digest.as_bytes().as_slice())
            .execute(self.conn)?;
        Ok(())
    }

    /// Sets the account that an operator's session manages.
    pub fn set_session_account(
        &mut self,
        digest: &Digest,
        account: Option<&AccountId>,
    ) -> Result<(), Error> {
        diesel::update(
            sessions::table
                .find(digest.as_bytes().as_slice())
                .filter(sessions::is_operator.eq(true)),
        )
        .set(sessions::account_id.eq(account.map(AccountId::as_str)))
        .execute(self.conn)?;
        Ok(())
    }

    pub fn delete_session(&mut self, digest: &Digest) -> Result<(), Error> {
        diesel::delete(sessions::table.find(digest.as_bytes().as_slice())).execute(self.conn)?;
        Ok(())
    }
}

impl Store {
    /// Returns the session whose cookie has this hash; it may have ended. `owner` is the client that presents the
    /// cookie, because the session's account is not known before.
    pub async fn session(&self, owner: Owner, digest: Digest) -> Result<Option<Session>, Error> {
        self.session_read(owner, move |conn| {
            let row: Option<SessionRow> = sessions::table
                .find(digest.as_bytes().as_slice())
                .select(SessionRow::as_select())
                .first(conn)
                .optional()?;
            row.map(TryInto::try_into).transpose()
        })
        .await
    }

    /// Ends the sessions of an account, of a subject, of a subject in an account, or all. Returns their number.
    pub async fn end_sessions(
        &self,
        account: Option<AccountId>,
        subject: Option<String>,
    ) -> Result<usize, Error> {
        self.delete_in_batches(move |tx| {
            let (conn, _) = tx.parts();
            let end =
                sql_query(END).bind::<Nullable<Text>, _>(account.as_ref().map(AccountId::as_str));
            let end = end
                .bind::<Nullable<Text>, _>(subject.as_deref())
                .bind::<BigInt, _>(i64::from(STEP));
            Ok(end.execute(conn)?)
        })
        .await
    }

    /// Deletes the sessions that have ended; returns their number.
    pub async fn prune_sessions(&self, now: Timestamp) -> Result<usize, Error> {
        self.delete_in_batches(move |tx| {
            let (conn, _) = tx.parts();
            Ok(sql_query(PRUNE)
                .bind::<BigInt, _>(micros(now))
                .bind::<BigInt, _>(i64::from(STEP))
                .execute(conn)?)
        })
        .await
    }
}
