//! The system clock, and the margin for the drift of clocks.

use std::time::Duration;

use tollkey_core::{Clock, Timestamp};

/// The system clock. On Linux, `elapsed` is `CLOCK_BOOTTIME`, which also counts while the machine is suspended; on other
/// platforms it is [`std::time::Instant`].
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[cfg(target_os = "linux")]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        wall_clock(rustix::time::ClockId::Realtime)
    }

    fn coarse_now(&self) -> Timestamp {
        // The time of the kernel's last tick; ticks are one to ten milliseconds apart.
        wall_clock(rustix::time::ClockId::RealtimeCoarse)
    }

    fn elapsed(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Never negative, because it counts from boot.
        Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        )
    }
}

#[cfg(target_os = "linux")]
fn wall_clock(id: rustix::time::ClockId) -> Timestamp {
    let now = rustix::time::clock_gettime(id);
    // `tv_nsec` is less than a second. The store has a resolution of microseconds.
    let micros = i32::try_from(now.tv_nsec / 1000).unwrap_or(0);
    Timestamp::new(now.tv_sec, micros * 1000).unwrap_or(Timestamp::MAX)
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

/// Returns how far two clocks may drift apart over a lease: a thousandth of it (quartz drifts by less than a tenth of that,
/// and NTP slews by at most half of it), plus a millisecond for the resolution of clocks.
#[must_use]
pub fn margin(lease: Duration) -> Duration {
    lease / 1000 + Duration::from_millis(1)
}

/// Converts a duration to nanoseconds. Saturates at 584 years.
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
    fn wall_clock_has_microseconds_and_elapsed_is_monotonic() {
        let clock = SystemClock;
        assert_eq!(clock.now().subsec_nanosecond() % 1000, 0);
        let coarse = clock.coarse_now();
        assert_eq!(coarse.subsec_nanosecond() % 1000, 0);
        assert!(
            coarse <= clock.now()
                && clock.now().duration_since(coarse) < jiff::SignedDuration::from_secs(5)
        );
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
