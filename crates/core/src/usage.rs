//! The usage of keys, which verifiers count and the store saves.

use jiff::Timestamp;

use crate::{Denial, Invalid, KeyId};

/// How often a key was verified with one outcome on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The key.
    pub key_id: KeyId,
    /// The UTC day on which the counts were fetched from the verifier, in days since 1970-01-01.
    pub day: i32,
    /// The denial; `None` for successful verifications.
    pub outcome: Option<Denial>,
    /// The number of verifications since the counts were fetched before.
    pub count: u64,
    /// The last successful verification; `None` with a denial.
    pub last_used_at: Option<Timestamp>,
}

/// Returns the code of an outcome: `valid`, or the code of the denial.
#[must_use]
pub fn outcome_code(outcome: Option<Denial>) -> &'static str {
    outcome.map_or("valid", Denial::code)
}

/// Reads the code of an outcome. `unknown_key` is rejected, because verifications of unknown keys are not counted.
///
/// # Errors
/// [`Invalid`] for any other code.
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
