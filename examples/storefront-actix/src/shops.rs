//! What is kept, in memory: one shop for each account and mode. A handler gets the shop of its key and no other.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tollkey_actix::{Mode, VerifiedKey};

use crate::answer::Failure;

/// The most shops,
const MAX_SHOPS: usize = 500;
/// and the most products in one of them.
const MAX_PRODUCTS: usize = 100;

/// All shops. Clones are the same shops.
#[derive(Debug, Clone, Default)]
pub struct Shops(Arc<Mutex<HashMap<(String, Mode), Shop>>>);

/// What one account has in one mode.
#[derive(Debug, Default)]
pub struct Shop {
    /// What it is called.
    pub name: Option<String>,
    /// What it sells, oldest first.
    pub products: Vec<Product>,
}

/// A product, as its account sees it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// What the catalogue shows of it.
    #[serde(flatten)]
    pub listed: Listed,
    /// Whether the catalogue has it.
    pub published: bool,
    /// How many there are.
    pub stock: u32,
    /// When it was made.
    pub created_at: String,
}

/// A product, as the catalogue shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What it costs.
    pub price: Price,
}

/// An amount of money.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// In the smallest unit of the currency.
    pub amount: u32,
    /// Three capital letters.
    pub currency: String,
}

impl Shops {
    /// Looks into the shop of a key.
    pub fn read<A>(&self, key: &VerifiedKey, look: impl FnOnce(&Shop) -> A) -> A {
        match self.all().get(&owner(key)) {
            Some(shop) => look(shop),
            None => look(&Shop::default()),
        }
    }

    /// Changes the shop of a key.
    ///
    /// # Errors
    /// Those of the change, and a failure when there are too many shops for another one.
    pub fn change<A>(
        &self,
        key: &VerifiedKey,
        change: impl FnOnce(&mut Shop) -> Result<A, Failure>,
    ) -> Result<A, Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_SHOPS && !all.contains_key(&owner) {
            return Err(Failure::full("There is no room for another shop."));
        }
        change(all.entry(owner).or_default())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(String, Mode), Shop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose shop a key opens.
fn owner(key: &VerifiedKey) -> (String, Mode) {
    (key.account_id().to_owned(), key.mode())
}

impl Shop {
    /// What the catalogue shows.
    pub fn listed(&self) -> impl Iterator<Item = &Listed> {
        self.products
            .iter()
            .filter(|product| product.published)
            .map(|product| &product.listed)
    }

    /// Adds a product.
    ///
    /// # Errors
    /// A failure when there is no room.
    pub fn add(&mut self, product: Product) -> Result<(), Failure> {
        if self.products.len() == MAX_PRODUCTS {
            return Err(Failure::full("The shop has too many products."));
        }
        self.products.push(product);
        Ok(())
    }

    /// Takes a product out.
    ///
    /// # Errors
    /// A failure when there is no such product.
    pub fn remove(&mut self, id: &str) -> Result<Product, Failure> {
        let at = self
            .products
            .iter()
            .position(|product| product.listed.id == id);
        at.map(|at| self.products.remove(at))
            .ok_or_else(Failure::not_found)
    }
}
