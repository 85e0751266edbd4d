//! The data, in memory: one shop for each account and mode. A handler gets the shop of its key only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tollkey_actix::{Mode, VerifiedKey};

use crate::envelope::Failure;

/// The maximum number of shops.
const MAX_SHOPS: usize = 500;
/// The maximum number of products in a shop.
const MAX_PRODUCTS: usize = 100;

/// All shops. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Shops(Arc<Mutex<HashMap<(String, Mode), Shop>>>);

/// The shop of an account in one mode.
#[derive(Debug, Default)]
pub struct Shop {
    /// The name.
    pub name: Option<String>,
    /// The products, oldest first.
    pub products: Vec<Product>,
}

/// A product, as its account sees it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// The part that the catalog shows.
    #[serde(flatten)]
    pub listed: Listed,
    /// Whether the catalog shows it.
    pub published: bool,
    /// The number of items in stock.
    pub stock: u32,
    /// When it was created.
    pub created_at: String,
}

/// A product, as the catalog shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// The ID.
    pub id: String,
    /// The name.
    pub name: String,
    /// The price.
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
    /// Reads the shop of a key, or an empty shop if the account has none.
    pub fn read<A>(&self, key: &VerifiedKey, read: impl FnOnce(&Shop) -> A) -> A {
        match self.all().get(&owner(key)) {
            Some(shop) => read(shop),
            None => read(&Shop::default()),
        }
    }

    /// Changes the shop of a key.
    ///
    /// # Errors
    /// Those of `change`, and 503 if the maximum number of shops is reached.
    pub fn change<A>(
        &self,
        key: &VerifiedKey,
        change: impl FnOnce(&mut Shop) -> Result<A, Failure>,
    ) -> Result<A, Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_SHOPS && !all.contains_key(&owner) {
            return Err(Failure::full("The maximum number of shops is reached."));
        }
        change(all.entry(owner).or_default())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(String, Mode), Shop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the account and mode of a key.
fn owner(key: &VerifiedKey) -> (String, Mode) {
    (key.account_id().to_owned(), key.mode())
}

impl Shop {
    /// Returns the published products, as the catalog shows them.
    pub fn listed(&self) -> impl Iterator<Item = &Listed> {
        self.products
            .iter()
            .filter(|product| product.published)
            .map(|product| &product.listed)
    }

    /// Adds a product.
    ///
    /// # Errors
    /// 503 if the maximum number of products is reached.
    pub fn add(&mut self, product: Product) -> Result<(), Failure> {
        if self.products.len() == MAX_PRODUCTS {
            return Err(Failure::full("The shop has too many products."));
        }
        self.products.push(product);
        Ok(())
    }

    /// Removes a product.
    ///
    /// # Errors
    /// 404 if it does not exist.
    pub fn remove(&mut self, id: &str) -> Result<Product, Failure> {
        let at = self
            .products
            .iter()
            .position(|product| product.listed.id == id);
        at.map(|at| self.products.remove(at))
            .ok_or_else(Failure::not_found)
    }
}
