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

/// The time that many microseconds after 1970-01-01, if there is such a time: the reverse of
/// [`Timestamp::as_microsecond`] for every time. [`Timestamp::from_microsecond`] is not: it refuses all but the first
/// microsecond of the last second.
#[must_use]
pub fn from_micros(micros: i64) -> Option<Timestamp> {
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).ok()?;
    Timestamp::new(micros / 1_000_000, nanos).ok()
}

/// Cuts a timestamp to whole microseconds, the precision in which everything is stored.
#[must_use]
pub fn to_micros(at: Timestamp) -> Timestamp {
    from_micros(at.as_microsecond()).unwrap_or(at)
}

/// Cuts a timestamp to whole seconds, the precision in which times are printed and keys end. Towards the past: a time
/// never reads later than it was.
#[must_use]
pub fn to_seconds(at: Timestamp) -> Timestamp {
    let second = at.as_second() - i64::from(at.subsec_nanosecond() < 0);
    Timestamp::from_second(second).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_stored_as_microseconds_and_read_again() {
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
    fn whole_seconds_are_never_later() {
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
