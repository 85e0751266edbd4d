//! How keys are used: what verifiers count and the store writes down.

use jiff::Timestamp;

use crate::{Denial, Invalid, KeyId};

/// How often a key was verified with one outcome on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The key.
    pub key_id: KeyId,
    /// The day, counted from 1970-01-01 in UTC: the one on which the counts were fetched.
    pub day: i32,
    /// The denial; none for a verification that succeeded.
    pub outcome: Option<Denial>,
    /// How often since the counts were fetched before.
    pub count: u64,
    /// The last verification that succeeded; none with a denial.
    pub last_used_at: Option<Timestamp>,
}

/// The word for what a verification ended in: `valid`, or the code of the denial.
#[must_use]
pub fn outcome_code(outcome: Option<Denial>) -> &'static str {
    outcome.map_or("valid", Denial::code)
}

/// The reverse of [`outcome_code`], for outcomes that are counted of a key: a key that is not known counts nothing.
///
/// # Errors
/// [`Invalid`] for any other word.
pub fn parse_outcome(code: &str) -> Result<Option<Denial>, Invalid> {
    if code == outcome_code(None) {
        return Ok(None);
    }
    match code.parse() {
        Ok(denial) if denial != Denial::UnknownKey => Ok(Some(denial)),
        _ => Err(Invalid::new(
            "must be `valid`, or a denial code other than `unknown_key`",
        )),
    }
}
