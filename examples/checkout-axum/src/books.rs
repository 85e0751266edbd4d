//! Where things are kept: in memory, one book for each account and mode. A handler gets the book of its key and no other.

use std::{
    collections::{HashMap, VecDeque, vec_deque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tollkey_axum::{Mode, VerifiedKey};

use crate::{
    failure::Failure,
    things::{Customer, Event, Link, Session, Thing, Webhook},
};

/// The most books,
const MAX_BOOKS: usize = 500;
/// and the most things of one kind in one of them.
const MAX_THINGS: usize = 100;

/// All books. Clones are the same books.
#[derive(Debug, Clone, Default)]
pub struct Books(Arc<Mutex<HashMap<(String, Mode), Book>>>);

/// What one account has in one mode.
#[derive(Debug, Default)]
pub struct Book {
    /// Payment links.
    pub links: Shelf<Link>,
    /// Checkout sessions.
    pub sessions: Shelf<Session>,
    /// Webhook endpoints.
    pub webhooks: Shelf<Webhook>,
    /// Customers.
    pub customers: Shelf<Customer>,
    /// What happened to all of these.
    pub events: Shelf<Event>,
}

impl Books {
    /// Looks into the book of a key.
    pub fn read<A>(&self, key: &VerifiedKey, look: impl FnOnce(&Book) -> A) -> A {
        match self.all().get(&owner(key)) {
            Some(book) => look(book),
            None => look(&Book::default()),
        }
    }

    /// Writes into the book of a key.
    ///
    /// # Errors
    /// Those of the writing, and a failure when there are too many books for another one.
    pub fn write<A>(
        &self,
        key: &VerifiedKey,
        write: impl FnOnce(&mut Book) -> Result<A, Failure>,
    ) -> Result<A, Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_BOOKS && !all.contains_key(&owner) {
            return Err(Failure::full("There is no room for another account."));
        }
        write(all.entry(owner).or_default())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(String, Mode), Book>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose book a key opens.
fn owner(key: &VerifiedKey) -> (String, Mode) {
    (key.account_id().to_owned(), key.mode())
}

/// The things of one kind, oldest first.
#[derive(Debug)]
pub struct Shelf<T>(VecDeque<T>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Thing> Shelf<T> {
    /// All of them.
    pub fn iter(&self) -> vec_deque::Iter<'_, T> {
        self.0.iter()
    }

    /// The one with that id.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.0.iter_mut().find(|thing| thing.head().id == id)
    }

    /// Adds one.
    ///
    /// # Errors
    /// A failure when there is no room.
    pub fn add(&mut self, thing: T) -> Result<(), Failure> {
        if self.0.len() == MAX_THINGS {
            return Err(Failure::full("The account has too many of these."));
        }
        self.0.push_back(thing);
        Ok(())
    }

    /// Adds one in the place of the oldest, where there is no room.
    pub fn push(&mut self, thing: T) {
        if self.0.len() == MAX_THINGS {
            self.0.pop_front();
        }
        self.0.push_back(thing);
    }

    /// Takes out the one with that id.
    pub fn remove(&mut self, id: &str) -> Option<T> {
        let at = self.0.iter().position(|thing| thing.head().id == id)?;
        self.0.remove(at)
    }
}
