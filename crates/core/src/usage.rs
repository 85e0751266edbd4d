//! How keys are used: what verifiers count and the store writes down.

use jiff::Timestamp;

use crate::{Denial, KeyId};

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
