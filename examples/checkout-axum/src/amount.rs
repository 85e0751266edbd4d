//! Amounts of money.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// `{"value": "49.99", "currency": "USD"}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    value: String,
    currency: String,
}

impl Amount {
    /// Checks the amount.
    ///
    /// # Errors
    /// [`Failure::Invalid`] with the rule that it breaks.
    pub fn check(&self) -> Result<(), Failure> {
        let (whole, cents) = self.value.split_once('.').unwrap_or((&self.value, "00"));
        let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole)
            || !is_number(cents)
            || !(1..=12).contains(&whole.len())
            || cents.len() != 2
        {
            return Err(Failure::Invalid(
                "amount.value must be a decimal number such as \"49.99\"",
            ));
        }
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase())
        {
            return Err(Failure::Invalid(
                "amount.currency must be three capital letters such as \"USD\"",
            ));
        }
        Ok(())
    }
}
