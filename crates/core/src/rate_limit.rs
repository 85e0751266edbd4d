//! Rate limits: how often a key can be used.

use std::{num::NonZeroU32, time::Duration};

use crate::Invalid;

fn within(value: i64, max: u32) -> Result<NonZeroU32, Invalid> {
    let value = u32::try_from(value)
        .ok()
        .filter(|value| *value <= max)
        .and_then(NonZeroU32::new);
    value.ok_or_else(|| Invalid::new(format!("must be between 1 and {max}")))
}

/// At most `limit` uses in `window_seconds`, counted by each verifier for itself. The algorithm is GCRA: a client can
/// use the whole limit in one burst, and uses become available again at an even rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    limit: NonZeroU32,
    window_seconds: NonZeroU32,
}

impl RateLimit {
    /// The largest limit.
    pub const MAX_LIMIT: u32 = 1_000_000;
    /// The longest window: a day.
    pub const MAX_WINDOW_SECONDS: u32 = 86_400;

    /// Creates a rate limit.
    ///
    /// # Errors
    /// [`Invalid`] unless 1 ≤ `limit` ≤ 1,000,000 and 1 ≤ `window_seconds` ≤ 86,400.
    pub fn new(limit: i64, window_seconds: i64) -> Result<Self, Invalid> {
        Ok(Self {
            limit: Self::parse_limit(limit)?,
            window_seconds: Self::parse_window_seconds(window_seconds)?,
        })
    }

    /// Reads the limit alone, for a form that reports the errors of each field.
    ///
    /// # Errors
    /// [`Invalid`] unless it is 1 to [`RateLimit::MAX_LIMIT`].
    pub fn parse_limit(limit: i64) -> Result<NonZeroU32, Invalid> {
        within(limit, Self::MAX_LIMIT)
    }

    /// Reads the window alone, in seconds.
    ///
    /// # Errors
    /// [`Invalid`] unless it is 1 to [`RateLimit::MAX_WINDOW_SECONDS`].
    pub fn parse_window_seconds(window_seconds: i64) -> Result<NonZeroU32, Invalid> {
        within(window_seconds, Self::MAX_WINDOW_SECONDS)
    }

    /// The number of uses in one window.
    #[must_use]
    pub fn limit(self) -> NonZeroU32 {
        self.limit
    }

    /// The length of the window in seconds.
    #[must_use]
    pub fn window_seconds(self) -> NonZeroU32 {
        self.window_seconds
    }

    /// The length of the window.
    #[must_use]
    pub fn window(self) -> Duration {
        Duration::from_secs(self.window_seconds.get().into())
    }

    /// Whether this limit never allows more uses than the other, neither in one burst nor in the long run.
    #[must_use]
    pub fn is_within(self, other: Self) -> bool {
        let rate = |limit: Self, window: Self| {
            u64::from(limit.limit.get()) * u64::from(window.window_seconds.get())
        };
        self.limit <= other.limit && rate(self, other) <= rate(other, self)
    }
}
