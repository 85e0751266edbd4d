//! The applications of an account.

use std::collections::BTreeSet;

use diesel::prelude::*;
use tollkey_core::{Application, ApplicationId, Timestamp, change::Changed};

use super::{AccountReader, AccountWriter, Paged, offset};
use crate::{
    Error,
    connection::AnyConnection,
    rows::{self, ApplicationRow},
    schema::applications,
};

impl AccountReader<'_> {
    /// The application with this id, unless it was deleted.
    ///
    /// # Errors
    /// [`Error`].
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

    /// Those of these applications that there are, in no order.
    ///
    /// # Errors
    /// [`Error`].
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

    /// A page of the account's applications, newest first. Pages count from 1.
    ///
    /// # Errors
    /// [`Error`].
    pub fn applications(&mut self, page: u32, limit: u32) -> Result<Paged<Application>, Error> {
        let total: i64 = applications::table
            .filter(applications::account_id.eq(self.account.as_str()))
            .filter(applications::deleted_at.is_null())
            .count()
            .get_result(self.conn)?;
        let rows: Vec<ApplicationRow> = applications::table
            .filter(applications::account_id.eq(self.account.as_str()))
            .filter(applications::deleted_at.is_null())
            .order((applications::created_at.desc(), applications::id.desc()))
            .limit(limit.into())
            .offset(offset(page, limit))
            .select(ApplicationRow::as_select())
            .load(self.conn)?;
        let items = rows
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, _>>()?;
        Ok(Paged {
            items,
            total: rows::unsigned(total)?,
        })
    }
}

impl AccountWriter<'_> {
    /// The application, held until the end of the transaction: who counts its keys and then adds one, or changes it
    /// by what it is, does so alone.
    ///
    /// # Errors
    /// [`Error`].
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

    /// Adds an application.
    ///
    /// # Errors
    /// [`Error::Unique`] when its name is taken; [`Error::NotFound`] when it says it is another account's.
    pub fn insert_application(&mut self, application: &Application) -> Result<(), Error> {
        if application.account_id != *self.account {
            return Err(Error::NotFound);
        }
        diesel::insert_into(applications::table)
            .values(ApplicationRow::from(application))
            .execute(self.conn)?;
        Ok(())
    }

    /// Writes an application's name, description and whether it is enabled.
    ///
    /// # Errors
    /// [`Error::Unique`] when its name is taken; [`Error::NotFound`] when it is not there.
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

    /// Deletes an application: it is found no more, its name is free again. Its keys are to be revoked in the same
    /// transaction; until then they count as keys of a disabled application.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it is not there.
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
