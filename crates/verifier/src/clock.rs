//! The clock of a real machine, and how far clocks drift apart.

use std::time::Duration;

use tollkey_core::{Clock, Timestamp};

/// The machine's clock. `elapsed` is `CLOCK_BOOTTIME` on Linux, which goes on while the machine sleeps; elsewhere
/// it is what the platform has as [`std::time::Instant`].
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[cfg(target_os = "linux")]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        // The kernel keeps nanoseconds below a second; whole microseconds are what the store can keep.
        let micros = i32::try_from(now.tv_nsec / 1000).unwrap_or(0);
        Timestamp::new(now.tv_sec, micros * 1000).unwrap_or(Timestamp::MAX)
    }

    fn elapsed(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Never negative: it counts from boot.
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }
}

#[cfg(not(target_os = "linux"))]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        tollkey_core::time::to_micros(Timestamp::now())
    }

    fn elapsed(&self) -> Duration {
        static START: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        START.elapsed()
    }
}

/// How far two clocks may drift apart over a lease: a thousandth of it (quartz drifts by less than a tenth of that, and NTP
/// slews by at most half of it) and a millisecond for the resolution of clocks.
#[must_use]
pub fn margin(lease: Duration) -> Duration {
    lease / 1000 + Duration::from_millis(1)
}

/// Nanoseconds of a duration, as kept in atomics. Saturates after 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(duration.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_in_whole_microseconds_and_elapsed_does_not_go_back() {
        let clock = SystemClock;
        assert_eq!(clock.now().subsec_nanosecond() % 1000, 0);
        assert!(
            clock.now().duration_since(Timestamp::now()).abs() < jiff::SignedDuration::from_secs(5)
        );
        let (first, second) = (clock.elapsed(), clock.elapsed());
        assert!(first <= second && first > Duration::ZERO);
    }

    #[test]
    fn nanoseconds_saturate() {
        assert_eq!(nanos(Duration::new(2, 5)), 2_000_000_005);
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}
