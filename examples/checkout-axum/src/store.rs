//! Where data is kept: in memory, each account's live and test data apart. A handler sees the data of its key and no other.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tollkey_axum::{Mode, VerifiedKey};
use uuid::Uuid;

use crate::{customers::Customer, events::Event, failure::Failure, links::Link, sessions::Session, webhooks::Webhook};

/// The most accounts, counted once for each mode,
const MAX_ACCOUNTS: usize = 500;
/// and the most that one of them has of each kind.
const MAX_EACH: usize = 100;

/// All data. Clones are the same data.
#[derive(Debug, Clone, Default)]
pub struct Store(Arc<Mutex<HashMap<(String, Mode), Data>>>);

/// What an account has in one mode, by id. A later id is a greater one.
#[derive(Debug, Default)]
pub struct Data {
    /// Payment links.
    pub links: BTreeMap<String, Link>,
    /// Checkout sessions.
    pub sessions: BTreeMap<String, Session>,
    /// Webhook endpoints.
    pub webhooks: BTreeMap<String, Webhook>,
    /// Customers.
    pub customers: BTreeMap<String, Customer>,
    /// What happened to all of these.
    pub events: BTreeMap<String, Event>,
}

impl Store {
    /// Looks at the data of the account of a key, in the mode of the key. Who has none sees none, and nothing is kept of it.
    pub fn read<A>(&self, key: &VerifiedKey, look: impl FnOnce(&Data) -> A) -> A {
        match self.all().get(&owner(key)) {
            Some(data) => look(data),
            None => look(&Data::default()),
        }
    }

    /// Works on the data of the account of a key, in the mode of the key.
    ///
    /// # Errors
    /// Those of the work, and a failure when there are too many accounts for another one.
    pub fn of<A>(&self, key: &VerifiedKey, work: impl FnOnce(&mut Data) -> Result<A, Failure>) -> Result<A, Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_ACCOUNTS && !all.contains_key(&owner) {
            return Err(Failure::Full);
        }
        work(all.entry(owner).or_default())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(String, Mode), Data>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose data a key opens.
fn owner(key: &VerifiedKey) -> (String, Mode) {
    (key.account_id().to_owned(), key.mode())
}

impl Data {
    /// Adds an event; where there is no room, the oldest one goes.
    pub fn record(&mut self, event: Event) {
        if self.events.len() == MAX_EACH {
            self.events.pop_first();
        }
        self.events.insert(event.id.clone(), event);
    }
}

/// Adds one, if there is room.
///
/// # Errors
/// A failure when there is none.
pub fn add<T>(all: &mut BTreeMap<String, T>, id: &str, one: T) -> Result<(), Failure> {
    if all.len() == MAX_EACH {
        return Err(Failure::Full);
    }
    all.insert(id.to_owned(), one);
    Ok(())
}

/// An id for something new.
#[must_use]
pub fn new_id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::now_v7().simple())
}
