//! The clock, and the precision of times.

use std::time::Duration;

use jiff::Timestamp;

/// The clock of a server. It is passed as an argument, so that tests can control the time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall-clock time in whole microseconds, the precision of the store. Leases do not use it,
    /// because the clocks of two machines can differ.
    fn now(&self) -> Timestamp;

    /// Like [`Clock::now`], but may be some milliseconds behind it if that is faster to read. For the times of uses and
    /// of request IDs. Whether a key has expired is decided by [`Clock::now`].
    fn coarse_now(&self) -> Timestamp {
        self.now()
    }

    /// Returns the time since a fixed point, on a clock that never goes back and that continues while the machine
    /// sleeps. Leases are measured with it.
    fn elapsed(&self) -> Duration;
}

/// Returns the UTC day of a time, in days since 1970-01-01.
#[must_use]
pub fn day(at: Timestamp) -> i32 {
    i32::try_from(at.as_second().div_euclid(86_400)).unwrap_or(i32::MAX)
}

/// Returns the time that is this many microseconds after 1970-01-01, or `None` if it is out of range. It accepts all
/// results of [`Timestamp::as_microsecond`], while [`Timestamp::from_microsecond`] rejects all but the first
/// microsecond of the last second.
#[must_use]
pub fn from_micros(micros: i64) -> Option<Timestamp> {
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).ok()?;
    Timestamp::new(micros / 1_000_000, nanos).ok()
}

/// Truncates a time to whole microseconds, the precision of the store.
#[must_use]
pub fn to_micros(at: Timestamp) -> Timestamp {
    from_micros(at.as_microsecond()).unwrap_or(at)
}

/// Rounds a time down to whole seconds, the precision of times in responses and of expirations.
#[must_use]
pub fn to_seconds(at: Timestamp) -> Timestamp {
    let second = at.as_second() - i64::from(at.subsec_nanosecond() < 0);
    Timestamp::from_second(second).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_stored_in_microseconds_and_read_again() {
        let last = "9999-12-30T22:00:00.999999Z".parse().unwrap();
        assert_eq!(to_micros(Timestamp::MAX), last);
        let before_1970 = Timestamp::new(-1, -500_000_000).unwrap();
        for at in [last, Timestamp::MIN, Timestamp::UNIX_EPOCH, before_1970] {
            assert_eq!(
                (from_micros(at.as_microsecond()), to_micros(at)),
                (Some(at), at)
            );
        }
        for micros in [
            last.as_microsecond() + 1,
            Timestamp::MIN.as_microsecond() - 1,
            i64::MAX,
            i64::MIN,
        ] {
            assert_eq!(from_micros(micros), None);
        }
    }

    #[test]
    fn times_are_rounded_down_to_whole_seconds() {
        for (at, second) in [
            (Timestamp::MAX, Timestamp::MAX.as_second()),
            (Timestamp::MIN, Timestamp::MIN.as_second()),
            (Timestamp::new(1, 999_999_999).unwrap(), 1),
            (Timestamp::new(-1, 0).unwrap(), -1),
            (Timestamp::new(-1, -1).unwrap(), -2),
        ] {
            assert_eq!(to_seconds(at), Timestamp::from_second(second).unwrap());
        }
    }
}
