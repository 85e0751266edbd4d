//! Service keys: the credentials of resource servers and gateways.
//!
//! Not bound to a tenant: service keys belong to the operator and verify the keys of all accounts.

use diesel::prelude::*;
use tollkey_core::{
    Digest, ServiceKey, ServiceKeyId, Timestamp, api_key::Transition, change::Changed,
};

use crate::{
    Error, Reader, Writer,
    rows::{self, ServiceKeyRow},
    schema::service_keys,
};

impl Reader<'_> {
    /// Returns the service key with this ID, revoked or not, or `None` if it does not exist.
    pub fn service_key(&mut self, id: &ServiceKeyId) -> Result<Option<ServiceKey>, Error> {
        let row: Option<ServiceKeyRow> = service_keys::table
            .find(id.as_bytes().as_slice())
            .select(ServiceKeyRow::as_select())
            .first(self.conn)
            .optional()?;
        row.map(TryInto::try_into).transpose()
    }

    /// Returns the newest service keys, including revoked ones.
    pub fn service_keys(&mut self, limit: u32) -> Result<Vec<ServiceKey>, Error> {
        let rows: Vec<ServiceKeyRow> = service_keys::table
            .order((service_keys::created_at.desc(), service_keys::id.desc()))
            .limit(limit.into())
            .select(ServiceKeyRow::as_select())
            .load(self.conn)?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

impl Writer<'_> {
    pub fn insert_service_key(&mut self, key: &ServiceKey, digest: &Digest) -> Result<(), Error> {
        diesel::insert_into(service_keys::table)
            .values((
                ServiceKeyRow::from(key),
                service_keys::digest.eq(digest.as_bytes().as_slice()),
            ))
            .execute(self.conn)?;
        Ok(())
    }

    /// Revokes a service key. Returns `None` if it does not exist.
    pub fn revoke_service_key(
        &mut self,
        id: &ServiceKeyId,
        at: Timestamp,
    ) -> Result<Option<Transition>, Error> {
        let revoked = diesel::update(
            service_keys::table
                .find(id.as_bytes().as_slice())
                .filter(service_keys::revoked_at.is_null()),
        )
        .set(service_keys::revoked_at.eq(rows::micros(at)))
        .execute(self.conn)?;
        if revoked == 1 {
            self.changed(Changed::ServiceKey(*id));
            return Ok(Some(Transition::Changed));
        }
        Ok(self.service_key(id)?.map(|_| Transition::Unchanged))
    }
}
