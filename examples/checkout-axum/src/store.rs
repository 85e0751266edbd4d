//! The data, in memory, separated by account and mode. A handler sees the data of its key only.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::broadcast;
use tollkey_axum::{Mode, VerifiedKey};
use uuid::Uuid;

use crate::{
    customers::Customer, events::Event, failure::Failure, links::Link, sessions::Session,
    webhooks::Webhook,
};

/// The maximum number of accounts, counted once for each mode.
const MAX_ACCOUNTS: usize = 500;
/// The maximum number of objects of each kind in one account and mode.
const MAX_EACH: usize = 100;
/// The maximum number of open event streams of an account in one mode.
const MAX_STREAMS: usize = 10;
/// The maximum number of events that wait for a slow client. Beyond it, the client's stream ends.
const MAX_WAITING: usize = 64;

/// All data. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Store(Arc<Mutex<HashMap<(String, Mode), Data>>>);

/// The data of an account in one mode, by ID. Newer IDs are greater.
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
    /// Changes of the other objects.
    pub events: BTreeMap<String, Event>,
    /// The open event streams; `None` until the first one is opened.
    streams: Option<broadcast::Sender<Event>>,
}

impl Store {
    /// Reads the data of the key's account and mode, or empty data if the account has none. Stores nothing.
    pub fn read<A>(&self, key: &VerifiedKey, read: impl FnOnce(&Data) -> A) -> A {
        match self.all().get(&owner(key)) {
            Some(data) => read(data),
            None => read(&Data::default()),
        }
    }

    /// Changes the data of the key's account and mode.
    ///
    /// # Errors
    /// Those of `change`, and [`Failure::Full`] if the maximum number of accounts is reached.
    pub fn of<A>(
        &self,
        key: &VerifiedKey,
        change: impl FnOnce(&mut Data) -> Result<A, Failure>,
    ) -> Result<A, Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_ACCOUNTS && !all.contains_key(&owner) {
            return Err(Failure::Full);
        }
        change(all.entry(owner).or_default())
    }

    /// Ends all event streams.
    pub fn end_streams(&self) {
        self.all().values_mut().for_each(|data| data.streams = None);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(String, Mode), Data>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the account and mode of a key.
fn owner(key: &VerifiedKey) -> (String, Mode) {
    (key.account_id().to_owned(), key.mode())
}

impl Data {
    /// Records an event. Beyond 100 events, the oldest one is removed.
    pub fn record(&mut self, event: Event) {
        if self.events.len() == MAX_EACH {
            self.events.pop_first();
        }
        if let Some(streams) = &self.streams {
            // An error means that no stream is open.
            let _ = streams.send(event.clone());
        }
        self.events.insert(event.id.clone(), event);
    }

    /// Opens a stream of the events that are recorded from now on.
    ///
    /// # Errors
    /// [`Failure::TooManyStreams`].
    pub fn stream(&mut self) -> Result<broadcast::Receiver<Event>, Failure> {
        let streams = self
            .streams
            .get_or_insert_with(|| broadcast::Sender::new(MAX_WAITING));
        if streams.receiver_count() >= MAX_STREAMS {
            return Err(Failure::TooManyStreams);
        }
        Ok(streams.subscribe())
    }
}

/// Adds an object.
///
/// # Errors
/// [`Failure::Full`] if the maximum number of objects is reached.
pub fn add<T>(all: &mut BTreeMap<String, T>, id: &str, object: T) -> Result<(), Failure> {
    if all.len() == MAX_EACH {
        return Err(Failure::Full);
    }
    all.insert(id.to_owned(), object);
    Ok(())
}

/// Returns a new ID.
#[must_use]
pub fn new_id(kind: &str) -> String {
    format!("{kind}_{}", Uuid::now_v7().simple())
}
