//! The applications of an account.

use std::collections::BTreeSet;

use diesel::prelude::*;
use tollkey_core::{Application, ApplicationId, Timestamp, change::Changed};

use super::{AccountReader, AccountWriter, Page, offset};
use crate::{
    Error,
    connection::AnyConnection,
    rows::{self, ApplicationRow},
    schema::applications,
};

impl AccountReader<'_> {
    /// Returns the application with this ID, or `None` if it does not exist or was deleted.
    pub fn application(&mut self, id: &ApplicationId) -> Result<Option<Application>, Error> {
        let row: Option<ApplicationRow> = applications::table
            .find(id.as_bytes().as_slice())
            .filter(applications::account_id.eq(self.account.as_str()))
            .filter(applications::deleted_at.is_null())
            .select(ApplicationRow::as_select())
            .first(self.conn)
            .optional()?;
        row.map(TryInto::try_into).transpose()
    }

    /// Returns the applications with these IDs, unordered. Leaves out unknown and deleted ones.
    pub fn applications_among(
        &mut self,
        ids: &BTreeSet<ApplicationId>,
    ) -> Result<Vec<Application>, Error> {
        let ids: Vec<Vec<u8>> = ids.iter().map(|id| id.as_bytes().to_vec()).collect();
        let rows: Vec<ApplicationRow> = applications::table
            .filter(applications::id.eq_any(ids))
            .filter(applications::account_id.eq(self.account.as_str()))
            .filter(applications::deleted_at.is_null())
            .select(ApplicationRow::as_select())
            .load(self.conn)?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Returns a page of the account's applications, newest first. Pages count from 1.
    pub fn applications(&mut self, page: u32, limit: u32) -> Result<Page<Application>, Error> {
        let own = applications::table
            .filter(applications::account_id.eq(self.account.as_str()))
            .filter(applications::deleted_at.is_null());
        let total: i64 = own.count().get_result(self.conn)?;
        let rows: Vec<ApplicationRow> = own
            .order((applications::created_at.desc(), applications::id.desc()))
            .limit(limit.into())
            .offset(offset(page, limit))
            .select(ApplicationRow::as_select())
            .load(self.conn)?;
        let items = rows
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, _>>()?;
        Ok(Page {
            items,
            total: rows::unsigned(total)?,
        })
    }
}

impl AccountWriter<'_> {
    /// Returns the application and locks it until the end of the transaction, for a caller that changes it, or counts
    /// its keys before adding one.
    pub fn lock_application(&mut self, id: &ApplicationId) -> Result<Option<Application>, Error> {
        if let AnyConnection::Postgres(conn) = &mut *self.reader.conn {
            applications::table
                .find(id.as_bytes().as_slice())
                .filter(applications::account_id.eq(self.reader.account.as_str()))
                .select(applications::is_enabled)
                .for_update()
                .first::<bool>(conn)
                .optional()?;
        }
        self.application(id)
    }

    /// Fails with [`Error::Unique`] if its name is taken, [`Error::NotFound`] if it belongs to another account.
    pub fn insert_application(&mut self, application: &Application) -> Result<(), Error> {
        if application.account_id != *self.account {
            return Err(Error::NotFound);
        }
        diesel::insert_into(applications::table)
            .values(ApplicationRow::from(application))
            .execute(self.conn)?;
        Ok(())
    }

    /// Updates the name, description and `is_enabled`. Fails with [`Error::Unique`] if the name is taken.
    pub fn update_application(&mut self, application: &Application) -> Result<(), Error> {
        let written = diesel::update(
            applications::table
                .find(application.id.as_bytes().as_slice())
                .filter(applications::account_id.eq(self.account.as_str()))
                .filter(applications::deleted_at.is_null()),
        )
        .set((
            applications::name.eq(&application.name),
            applications::description.eq(&application.description),
            applications::is_enabled.eq(application.is_enabled),
        ))
        .execute(self.conn)?;
        if written == 0 {
            return Err(Error::NotFound);
        }
        self.changed(Changed::Application(application.id));
        Ok(())
    }

    /// Marks an application as deleted and frees its name. The caller has to revoke its keys in the same transaction;
    /// until then they count as keys of a disabled application.
    pub fn delete_application(&mut self, id: &ApplicationId, at: Timestamp) -> Result<(), Error> {
        let written = diesel::update(
            applications::table
                .find(id.as_bytes().as_slice())
                .filter(applications::account_id.eq(self.account.as_str()))
                .filter(applications::deleted_at.is_null()),
        )
        .set(applications::deleted_at.eq(rows::micros(at)))
        .execute(self.conn)?;
        if written == 0 {
            return Err(Error::NotFound);
        }
        self.changed(Changed::Application(*id));
        Ok(())
    }
}
