//! Settings of a verifier.

use std::time::Duration;

use crate::{cache, usage};

/// The bounds of a verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The maximum number of cached keys. Beyond it, keys that were not used lately are evicted.
    pub max_entries: usize,
    /// The maximum bytes of cached keys (nine sixteenths), usage counts that wait to be taken (five
    /// sixteenths) and rate limits (two sixteenths).
    ///
    /// Above the limit, keys that were not used lately are evicted: keys of the account that holds the most,
    /// if that is more than its fair share, and otherwise of any account. A key that takes more than a
    /// sixteenth of the bytes for keys is not cached. The state of a rate limit is kept when its key is
    /// evicted. Above the limit for these states, one that is fully available again is dropped first, and
    /// otherwise one of the account that has the most: its key then starts with a full rate limit.
    ///
    /// Below [`Settings::MIN_BYTES`], rate limits and usage counts are bounded as with that many bytes, so
    /// that keys are limited and counted even if none is cached.
    pub max_bytes: usize,
    /// The maximum number of look-ups at the same time: half of them for clients and half for authenticated
    /// callers. One [`Requester`](crate::Requester) gets at most half of its half.
    pub max_look_ups: usize,
    /// The maximum number of waiting look-ups, for clients and for authenticated callers each. Requesters are
    /// served in turn. Above the limit, a look-up of the requester with the most of them fails immediately
    /// with [`Unavailable`](crate::Unavailable).
    pub max_waiting: usize,
    /// The time limit for a look-up, including the wait. After it, the look-up fails with
    /// [`Unavailable`](crate::Unavailable).
    pub look_up_limit: Duration,
}

impl Default for Settings {
    /// 256 MiB, and at most a million keys; 64 look-ups at the same time and 1024 waiting ones per half; a limit of two seconds.
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            max_bytes: 256 * 1024 * 1024,
            max_look_ups: 64,
            max_waiting: 1024,
            look_up_limit: Duration::from_secs(2),
        }
    }
}

impl Settings {
    /// 4 MiB. Below it, fewer keys are cached, but rate limits and usage counts have the same bounds.
    pub const MIN_BYTES: usize = 4 * 1024 * 1024;

    /// A sixteenth of the bytes. Shares of rate limits and usage counts are multiples of it.
    fn sixteenth(&self) -> usize {
        self.max_bytes.max(Self::MIN_BYTES) / 16
    }

    pub(crate) fn cache(&self) -> cache::Bounds {
        let entry_bytes = self.max_bytes / 16 * 9;
        cache::Bounds {
            entries: self.max_entries,
            entry_bytes,
            limiter_bytes: 2 * self.sixteenth(),
        }
    }

    /// The bounds of the usage counts. They allow the counts of as many keys as can be cached.
    pub(crate) fn ledger(&self) -> usage::Bounds {
        usage::Bounds {
            tally_bytes: 3 * self.sixteenth(),
            row_bytes: 2 * self.sixteenth(),
        }
    }
}
