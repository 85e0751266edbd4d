//! The data, in memory: the tokens of each account and mode. Of a card number, only the last four digits are stored.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tollkey_axum::{Mode, VerifiedKey};
use uuid::Uuid;

use crate::failure::Failure;

/// The maximum number of vaults.
const MAX_VAULTS: usize = 500;
/// The maximum number of tokens in a vault.
const MAX_TOKENS: usize = 1000;

/// The account and mode of a vault.
type Owner = (String, Mode);

/// All vaults. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Vaults(Arc<Mutex<HashMap<Owner, Vec<Token>>>>);

/// A token, which represents a card.
#[derive(Debug, Clone, Serialize)]
pub struct Token {
    /// The ID. It is random and reveals nothing about the card.
    pub id: String,
    /// The merchant that it was created for.
    pub merchant: String,
    /// The cardholder.
    pub holder: String,
    /// The last four digits of the card number.
    pub last4: Last4,
    /// The data to charge the card with.
    #[serde(skip)]
    pub payment_data: PaymentData,
}

/// The data that a receiver needs to charge a card.
#[derive(Debug, Clone, Serialize)]
pub struct PaymentData {
    /// The ID.
    pub id: String,
    /// The token that it belongs to.
    pub token: String,
    /// The last four digits of the card number.
    pub last4: Last4,
    /// When the card expires, `MM/YY`.
    pub expiry: String,
}

/// The last four digits of a card number. The others are checked and dropped when the body is parsed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Last4(String);

impl TryFrom<String> for Last4 {
    type Error = &'static str;

    fn try_from(number: String) -> Result<Self, Self::Error> {
        if !is_card_number(&number) {
            return Err("not a card number");
        }
        Ok(Self(number[number.len() - 4..].to_owned()))
    }
}

/// Returns whether these are 12 to 19 digits with a valid check digit (Luhn).
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
    /// Creates a token.
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
    /// Returns the tokens of the key's account and mode. If the request names a merchant, returns only the tokens of
    /// this merchant. Requests with a key that is limited to merchants always name one of them.
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

    /// Returns a token that the key sees.
    ///
    /// # Errors
    /// 404 if no token matches.
    pub fn find(
        &self,
        key: &VerifiedKey,
        matches: impl Fn(&Token) -> bool,
    ) -> Result<Token, Failure> {
        self.seen_by(key)
            .into_iter()
            .find(matches)
            .ok_or_else(Failure::not_found)
    }

    /// Stores a token.
    ///
    /// # Errors
    /// 507 if the maximum number of vaults or tokens is reached.
    pub fn keep(&self, key: &VerifiedKey, token: Token) -> Result<(), Failure> {
        let (mut all, owner) = (self.all(), owner(key));
        if all.len() == MAX_VAULTS && !all.contains_key(&owner) {
            return Err(Failure::full("The maximum number of vaults is reached."));
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

/// Returns the account and mode of a key.
fn owner(key: &VerifiedKey) -> Owner {
    (key.account_id().to_owned(), key.mode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_number_needs_a_valid_check_digit() {
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
