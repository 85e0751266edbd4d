//! The clock, as an argument.

use std::time::Duration;

use jiff::Timestamp;

/// Where a server reads the time. Passed to whoever needs it, so that tests can stop it.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock, in whole microseconds (what the store keeps). Never compared with another machine's.
    fn now(&self) -> Timestamp;

    /// Time since some fixed point, on a clock that never goes back and that goes on while the machine
    /// sleeps. Leases are counted on it.
    fn elapsed(&self) -> Duration;
}

/// The day of a time in UTC, counted from 1970-01-01.
#[must_use]
pub fn day(at: Timestamp) -> i32 {
    i32::try_from(at.as_second().div_euclid(86_400)).unwrap_or(i32::MAX)
}

/// Cuts a timestamp to whole microseconds, the precision in which everything is stored.
#[must_use]
pub fn to_micros(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}
