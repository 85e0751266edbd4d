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

/// Cuts a timestamp to whole microseconds, the precision in which everything is stored.
#[must_use]
pub fn to_micros(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}
