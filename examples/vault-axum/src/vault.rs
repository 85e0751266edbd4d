//! What is kept, in memory: the tokens of each account and mode. Of a card number only the last four digits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tollkey_axum::{Mode, VerifiedKey};
use uuid::Uuid;

use crate::failure::Failure;

/// The most vaults,
const MAX_VAULTS: usize = 500;
/// and the most tokens in one of them.
const MAX_TOKENS: usize = 1000;

/// Whose a vault is: an account, in one mode.
type Owner = (String, Mode);

/// All vaults. Clones are the same vaults.
#[derive(Debug, Clone, Default)]
pub struct Vaults(Arc<Mutex<HashMap<Owner, Vec<Token>>>>);

/// What stands for a card.
#[derive(Debug, Clone, Serialize)]
pub struct Token {
    /// Its id, which says nothing of the card.
    pub id: String,
    /// The merchant it was made for.
    pub merchant: String,
    /// Whose card it is.
    pub holder: String,
    /// The end of the card's number.
    pub last4: Last4,
    /// What it can be charged with.
    #[serde(skip)]
    pub payment_data: PaymentData,
}

/// What a receiver needs to charge a card.
#[derive(Debug, Clone, Serialize)]
pub struct PaymentData {
    /// Its id.
    pub id: String,
    /// The token it belongs to.
    pub token: String,
    /// The end of the card's number.
    pub last4: Last4,
    /// When the card expires, `MM/YY`.
    pub expiry: String,
}

/// The last four digits of a card's number. The others are checked and dropped where they are read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Last4(String);

impl TryFrom<String> for Last4 {
    type Error = &'static str;

    fn try_from(number: String) -> Result<Self, Self::Error> {
        if !is_card_number(&number) {
            return Err("not the number of a card");
        }
        Ok(Self(number[number.len() - 4..].to_owned()))
    }
}

/// Whether these are 12 to 19 digits whose last one fits the others (Luhn).
fn is_card_number(number: &str) -> bool {
    let weigh = |(at, digit): (usize, char)| {
        let digit = digit.to_digit(10)?;
        Some(if at % 2 == 1 {
            digit * 2 / 10 + digit * 2 % 10
        } else {
            digit
        })
    };
    let sum: Option<u32> = number.chars().rev().enumerate().map(weigh).sum();
    (12..=19).contains(&number.len()) && sum.is_some_and(|sum| sum % 10 == 0)
}

impl Token {
    /// A new one.
    #[must_use]
    pub fn new(merchant: &str, holder: String, last4: Last4, expiry: String) -> Self {
        let [id, data] = ["tok", "pd"].map(|name| format!("{name}_{}", Uuid::new_v4().simple()));
        let payment_data = PaymentData {
            id: data,
            token: id.clone(),
            last4: last4.clone(),
            expiry,
        };
        Self {
            id,
            merchant: merchant.to_owned(),
            holder,
            last4,
            payment_data,
        }
    }
}

impl Vaults {
    /// What a key sees: the tokens of its account and mode, and when the request names a merchant, of that one. A key that is
    /// bound to merchants does not come here without naming one of them.
    #[must_use]
    pub fn seen_by(&self, key: &VerifiedKey) -> Vec<Token> {
        let all = self.all();
        let tokens = all.get(&owner(key)).into_iter().flatten();
        tokens
            .filter(|token| {
                key.merchant()
                    .is_none_or(|merchant| merchant == token.merchant)
            })
            .cloned()
            .collect()
    }

    /// The one among them.
    ///
    /// # Errors
    /// A failure when there is none.
    pub fn find(
        &self,
        key: &VerifiedKey,
        is_it: impl Fn(&Token) -> bool,
    ) -> Result<Token, Failure> {
        self.seen_by(key)
            .into_iter()
            .find(is_it)
            .ok_or_else(Failure::not_found)
    }

    /// Keeps a token.
    ///
    /// # Errors
    /// A failure when there is no room.
    pub fn keep(&self, key: &VerifiedKey, token: Token) -> Result<(), Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_VAULTS && !all.contains_key(&owner) {
            return Err(Failure::full("There is no room for another vault."));
        }
        let tokens = all.entry(owner).or_default();
        if tokens.len() == MAX_TOKENS {
            return Err(Failure::full("The vault has too many tokens."));
        }
        tokens.push(token);
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Owner, Vec<Token>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose vault a key opens.
fn owner(key: &VerifiedKey) -> Owner {
    (key.account_id().to_owned(), key.mode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_card_is_digits_whose_last_one_fits() {
        let read = |number: &str| Last4::try_from(number.to_owned()).map(|Last4(last4)| last4);
        assert_eq!(read("4242424242424242").as_deref(), Ok("4242"));
        assert_eq!(read("378282246310005").as_deref(), Ok("0005"));
        for number in [
            "",
            "4242",
            "4242424242424241",
            "4242 4242 4242 4242",
            "42424242424242424242",
            "４２４２４２",
        ] {
            assert!(read(number).is_err(), "{number}");
        }
    }
}
