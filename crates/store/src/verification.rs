//! Look-ups of presented keys by their hash.
//!
//! The look-ups are not limited to one account, because the account is known only from the key. Afterwards,
//! [`tollkey_core::decide`] hides the key from callers that may not see it.

use diesel::prelude::*;
use tollkey_core::{ApiKey, Application, Digest, OperatingModel, ServiceKey, change::Seq};

use crate::{
    Error, Store, lineage, rows,
    rows::{ApplicationRow, KeyRow, ServiceKeyRow},
    schema::{accounts, api_keys, applications, change_counter, service_keys},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<T> {
    /// The change counter. `found` includes every change up to it. For a key that another key created, `found` can also
    /// include later changes of its ancestors, which a second statement reads.
    pub seq: Seq,
    /// The result, or `None` if nothing has that hash.
    pub found: Option<T>,
}

/// A key with what its verification depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundKey {
    /// The key, in any status. Its `last_used_at` can be outdated, because no verification depends on it.
    pub key: ApiKey,
    /// Its application, if any. A deleted application is returned as disabled.
    pub application: Option<Application>,
    pub operating_model: OperatingModel,
}

impl Store {
    /// Looks up the key with this hash. The change counter is read before or together with everything else.
    pub async fn find_by_digest(&self, digest: Digest) -> Result<Snapshot<FoundKey>, Error> {
        self.verification_read(move |conn| {
            let (seq, key, application, model): (
                i64,
                Option<KeyRow>,
                Option<ApplicationRow>,
                Option<String>,
            ) = change_counter::table
                .left_join(api_keys::table.on(api_keys::digest.eq(digest.as_bytes().to_vec())))
                .left_join(
                    applications::table
                        .on(api_keys::application_id.eq(applications::id.nullable())),
                )
                .left_join(accounts::table.on(accounts::id.eq(api_keys::account_id)))
                .select((
                    change_counter::seq,
                    Option::<KeyRow>::as_select(),
                    Option::<ApplicationRow>::as_select(),
                    accounts::operating_model.nullable(),
                ))
                .first(conn)?;
            let Some(key) = key else {
                return Ok(Snapshot {
                    seq: Seq(seq),
                    found: None,
                });
            };
            let mut key = ApiKey::try_from(key)?;
            if let Some(deleted_at) = application
                .as_ref()
                .map(ApplicationRow::deleted_at)
                .transpose()?
                .flatten()
            {
                key = key.with_deleted_application(deleted_at);
            }
            let found = FoundKey {
                // Runs a second statement for descendants only. Its data is as new as the counter, or newer.
                key: lineage::with_ancestors(conn, vec![key])?
                    .pop()
                    .ok_or(Error::Other)?,
                application: application.map(TryInto::try_into).transpose()?,
                operating_model: rows::operating_model(model.as_deref())?,
            };
            Ok(Snapshot {
                seq: Seq(seq),
                found: Some(found),
            })
        })
        .await
    }

    /// Looks up the service key with this hash, unless it is revoked.
    pub async fn find_service_key(&self, digest: Digest) -> Result<Snapshot<ServiceKey>, Error> {
        self.verification_read(move |conn| {
            let (seq, key): (i64, Option<ServiceKeyRow>) = change_counter::table
                .left_join(
                    service_keys::table.on(service_keys::digest
                        .eq(digest.as_bytes().to_vec())
                        .and(service_keys::revoked_at.is_null())),
                )
                .select((change_counter::seq, Option::<ServiceKeyRow>::as_select()))
                .first(conn)?;
            Ok(Snapshot {
                seq: Seq(seq),
                found: key.map(TryInto::try_into).transpose()?,
            })
        })
        .await
    }
}
