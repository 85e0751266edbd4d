//! Where data is kept: in memory, each account's live and test data apart. A handler sees the data of its key and no other.

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

/// The most accounts, counted once for each mode,
const MAX_ACCOUNTS: usize = 500;
/// and the most that one of them has of each kind.
const MAX_EACH: usize = 100;
/// The most event streams that an account has open in one mode,
const MAX_STREAMS: usize = 10;
/// and the most events that wait until a client has read them. The stream of a client that is slower ends.
const MAX_WAITING: usize = 64;

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
    /// The open event streams; `None` until the first one is opened.
    streams: Option<broadcast::Sender<Event>>,
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
    pub fn of<A>(
        &self,
        key: &VerifiedKey,
        work: impl FnOnce(&mut Data) -> Result<A, Failure>,
    ) -> Result<A, Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_ACCOUNTS && !all.contains_key(&owner) {
            return Err(Failure::Full);
        }
        work(all.entry(owner).or_default())
    }

    /// Ends all event streams.
    pub fn end_streams(&self) {
        self.all().values_mut().for_each(|data| data.streams = None);
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
        if let Some(streams) = &self.streams {
            // An error says that no stream is open.
            let _ = streams.send(event.clone());
        }
        self.events.insert(event.id.clone(), event);
    }

    /// Opens a stream of the events that are recorded from here on.
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
