//! Revocations of many keys: stored as one row, and recorded on the keys in batches.

use diesel::{dsl::exists, prelude::*};
use tollkey_core::{
    ApiKey, Id, KeyId,
    audit::Actor,
    change::Changed,
    id::Entity,
    lineage::{PendingRevocation, Root},
};

use super::{AccountReader, AccountWriter};
use crate::{
    Error,
    connection::AnyConnection,
    lineage,
    rows::{self, KeyRow},
    schema::{api_keys, key_ancestors, pending_revocations},
};

const KEY: &str = "api_key";
const APPLICATION: &str = "application";

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = pending_revocations, treat_none_as_default_value = false)]
struct PendingRow {
    root_id: Vec<u8>,
    root_kind: String,
    account_id: String,
    revoked_at: i64,
    actor_kind: String,
    actor_id: String,
    request_id: Option<String>,
    ip: Option<String>,
    done_through: Option<Vec<u8>>,
}

impl From<&PendingRevocation> for PendingRow {
    fn from(pending: &PendingRevocation) -> Self {
        let (kind, root) = parts(&pending.root);
        Self {
            root_id: root.to_vec(),
            root_kind: kind.to_owned(),
            account_id: pending.account_id.to_string(),
            revoked_at: rows::micros(pending.revoked_at),
            actor_kind: pending.actor.kind.as_str().to_owned(),
            actor_id: pending.actor.id.clone(),
            request_id: pending.request_id.clone(),
            ip: pending.ip.map(|ip| ip.to_string()),
            done_through: None,
        }
    }
}

impl TryFrom<PendingRow> for (PendingRevocation, Option<KeyId>) {
    type Error = Error;

    fn try_from(row: PendingRow) -> Result<Self, Error> {
        const WHAT: &str = "pending revocation";
        let root = match row.root_kind.as_str() {
            KEY => Root::Key(rows::id(&row.root_id)?),
            APPLICATION => Root::Application(rows::id(&row.root_id)?),
            _ => return Err(Error::corrupt(WHAT)),
        };
        let pending = PendingRevocation {
            account_id: rows::account_id(&row.account_id)?,
            root,
            revoked_at: rows::timestamp(row.revoked_at)?,
            actor: Actor {
                kind: rows::parse(&row.actor_kind, WHAT)?,
                id: row.actor_id,
            },
            request_id: row.request_id,
            ip: rows::optional(row.ip, WHAT)?,
        };
        let done_through = row.done_through.as_deref().map(rows::id);
        Ok((pending, done_through.transpose()?))
    }
}

fn parts(root: &Root) -> (&'static str, &[u8; 16]) {
    fn bytes<Of: Entity>(id: &Id<Of>) -> &[u8; 16] {
        id.as_bytes()
    }
    match root {
        Root::Key(id) => (KEY, bytes(id)),
        Root::Application(id) => (APPLICATION, bytes(id)),
    }
}

/// A batch of the keys that a pending revocation applies to.
#[derive(Debug)]
pub struct Batch {
    pub pending: PendingRevocation,
    /// The keys of the batch that are not recorded as revoked, locked until the end of the transaction.
    pub keys: Vec<ApiKey>,
    /// `None` for the last batch.
    through: Option<KeyId>,
}

impl AccountReader<'_> {
    /// Returns whether the account has a revocation that is not recorded on all keys yet.
    pub fn has_pending_revocations(&mut self) -> Result<bool, Error> {
        let pending = pending_revocations::table
            .filter(pending_revocations::account_id.eq(self.account.as_str()));
        Ok(diesel::select(exists(pending)).get_result(self.conn)?)
    }

    pub fn has_descendants(&mut self, key: &KeyId) -> Result<bool, Error> {
        let below =
            key_ancestors::table.filter(key_ancestors::ancestor_id.eq(key.as_bytes().as_slice()));
        Ok(diesel::select(exists(below)).get_result(self.conn)?)
    }

    /// Returns whether a descendant of a key is not recorded as revoked.
    pub fn has_unrevoked_descendants(&mut self, key: &KeyId) -> Result<bool, Error> {
        let below = key_ancestors::table
            .inner_join(api_keys::table.on(api_keys::id.eq(key_ancestors::key_id)))
            .filter(key_ancestors::ancestor_id.eq(key.as_bytes().as_slice()))
            .filter(api_keys::account_id.eq(self.account.as_str()))
            .filter(api_keys::revoked_at.is_null());
        Ok(diesel::select(exists(below)).get_result(self.conn)?)
    }
}

impl AccountWriter<'_> {
    /// Inserts a revocation that has to be recorded on many keys. Does nothing if one with the same root is pending.
    /// Fails with [`Error::NotFound`] if it belongs to another account.
    pub fn add_pending_revocation(&mut self, pending: &PendingRevocation) -> Result<(), Error> {
        if pending.account_id != *self.account {
            return Err(Error::NotFound);
        }
        let row = PendingRow::from(pending);
        let known = pending_revocations::table.find(row.root_id.clone());
        if !diesel::select(exists(known)).get_result::<bool>(self.conn)? {
            diesel::insert_into(pending_revocations::table)
                .values(row)
                .execute(self.conn)?;
        }
        Ok(())
    }

    /// Records that cached descendants of a key are outdated. Verifiers evict all keys of the account, because
    /// subscribers and servers of the previous release do not know which keys are descendants.
    pub fn descendants_changed(&mut self) {
        let account = self.account.clone();
        self.changed(Changed::Account(account));
    }

    /// Returns the next batch of the account's oldest pending revocation: the keys without a recorded revocation among
    /// the next `limit` descendants. `None` if nothing is pending or another replica is working on it.
    pub fn next_batch(&mut self, limit: u32) -> Result<Option<Batch>, Error> {
        let Some((pending, done_through)) = self.lock_oldest_pending()? else {
            return Ok(None);
        };
        let ids = self.keys_below(&pending.root, done_through, limit)?;
        let through = ids
            .last()
            .filter(|_| ids.len() == limit as usize)
            .map(|id| rows::id(id))
            .transpose()?;
        Ok(Some(Batch {
            pending,
            keys: self.lock_unrevoked(ids)?,
            through,
        }))
    }

    /// Locks the account's oldest pending revocation. Only the oldest is worked on, so that a key to which two apply
    /// gets the earlier one.
    fn lock_oldest_pending(&mut self) -> Result<Option<(PendingRevocation, Option<KeyId>)>, Error> {
        use pending_revocations::{account_id, revoked_at, root_id};
        let oldest = pending_revocations::table
            .filter(account_id.eq(self.reader.account.as_str()))
            .order((revoked_at, root_id))
            .select(root_id)
            .first::<Vec<u8>>(self.conn)
            .optional()?;
        let Some(oldest) = oldest else {
            return Ok(None);
        };
        let row = pending_revocations::table.find(oldest);
        let row: Option<PendingRow> = match &mut *self.reader.conn {
            AnyConnection::Postgres(conn) => row
                .select(PendingRow::as_select())
                .for_update()
                .skip_locked()
                .first(conn)
                .optional()?,
            AnyConnection::Sqlite(conn) => {
                row.select(PendingRow::as_select()).first(conn).optional()?
            }
        };
        row.map(TryInto::try_into).transpose()
    }

    /// Returns the IDs of at most `limit` keys below a root, after a key, ordered by ID.
    fn keys_below(
        &mut self,
        root: &Root,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<Vec<u8>>, Error> {
        // An empty ID sorts before every key.
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        Ok(match root {
            Root::Key(id) => key_ancestors::table
                .filter(key_ancestors::ancestor_id.eq(id.as_bytes().as_slice()))
                .filter(key_ancestors::key_id.gt(after))
                .order(key_ancestors::key_id)
                .limit(limit.into())
                .select(key_ancestors::key_id)
                .load(self.conn)?,
            Root::Application(id) => api_keys::table
                .filter(api_keys::account_id.eq(self.account.as_str()))
                .filter(api_keys::application_id.eq(id.as_bytes().as_slice()))
                .filter(api_keys::revoked_at.is_null())
                .filter(api_keys::id.gt(after))
                .order(api_keys::id)
                .limit(limit.into())
                .select(api_keys::id)
                .load(self.conn)?,
        })
    }

    /// Returns the keys that are not recorded as revoked and locks them until the end of the transaction.
    fn lock_unrevoked(&mut self, ids: Vec<Vec<u8>>) -> Result<Vec<ApiKey>, Error> {
        let unrevoked = || {
            api_keys::table
                .filter(api_keys::account_id.eq(self.reader.account.as_str()))
                .filter(api_keys::id.eq_any(ids.clone()))
                .filter(api_keys::revoked_at.is_null())
                .order(api_keys::id) // the same order in every transaction, to avoid deadlocks
        };
        if let AnyConnection::Postgres(conn) = &mut *self.reader.conn {
            unrevoked()
                .select(api_keys::id)
                .for_update()
                .load::<Vec<u8>>(conn)?;
        }
        let rows: Vec<KeyRow> = unrevoked()
            .select(KeyRow::as_select())
            .load(self.reader.conn)?;
        lineage::keys(self.reader.conn, rows)
    }

    /// Records the revocation that a key inherits. Verifiers already apply it and evict nothing.
    pub fn record_revocation(&mut self, key: &ApiKey) -> Result<(), Error> {
        diesel::update(
            api_keys::table
                .find(key.id.as_bytes().as_slice())
                .filter(api_keys::account_id.eq(self.account.as_str())),
        )
        .set((
            api_keys::revoked_at.eq(key.revoked_at.map(rows::micros)),
            api_keys::revoked_reason.eq(key.revoked_reason.clone()),
        ))
        .execute(self.conn)?;
        Ok(())
    }

    /// Stores the progress of a revocation. Returns whether it is now recorded on all keys.
    pub fn end_batch(&mut self, batch: &Batch) -> Result<bool, Error> {
        let (_, root) = parts(&batch.pending.root);
        let row = pending_revocations::table.find(root.as_slice());
        let Some(through) = batch.through else {
            diesel::delete(row).execute(self.conn)?;
            // A server of the previous release decides by the keys' own rows and may have cached them again meanwhile.
            if let Root::Key(_) = batch.pending.root {
                self.descendants_changed();
            }
            return Ok(true);
        };
        diesel::update(row)
            .set(pending_revocations::done_through.eq(through.as_bytes().as_slice()))
            .execute(self.conn)?;
        Ok(false)
    }
}
