//! What a verification answers.

use std::{fmt, ops::Deref, sync::Arc};

use tollkey_core::{Denial, Digest, Record};

use crate::memory::Entry;

/// Whether the key may, and what is known of it.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// That it may, or the first denial that applies. When it may, the merchant the request named is one the key may
    /// be used for.
    pub outcome: Result<(), Denial>,
    /// The key; none for [`Denial::UnknownKey`], which includes a key the viewer may not see.
    pub record: Option<Known>,
    /// What is left of the key's rate limit, if it has one and no other denial came first.
    pub rate: Option<RateStatus>,
    /// With [`Denial::RateLimited`]: in how many whole seconds one use is possible again, at least 1.
    pub retry_after_seconds: Option<u32>,
    /// When it was judged, and a use of the key's allowance taken where it has one.
    pub(crate) judged_at: u64,
}

impl Verdict {
    /// The answer for what is no key of ours.
    pub(crate) fn unknown() -> Self {
        Self {
            outcome: Err(Denial::UnknownKey),
            record: None,
            rate: None,
            retry_after_seconds: None,
            judged_at: 0,
        }
    }

    /// The key, if it may.
    #[must_use]
    pub fn allowed(&self) -> Option<&Record> {
        self.outcome.ok()?;
        self.record.as_deref()
    }
}

/// What is left of a key's rate limit after this verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateStatus {
    /// How many uses the key has in a window.
    pub limit: u32,
    /// The window, in seconds.
    pub window_seconds: u32,
    /// How many uses are left at once.
    pub remaining: u32,
    /// In how many whole seconds all of them are back, if none is used until then.
    pub reset_seconds: u32,
}

impl RateStatus {
    /// The values of the fields `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11). After a
    /// refusal, `t` is when a use is possible again, which is what `Retry-After` says too.
    #[must_use]
    pub fn fields(&self, retry_after_seconds: Option<u32>) -> [String; 2] {
        let reset = retry_after_seconds.unwrap_or(self.reset_seconds);
        [
            format!("\"key\";q={};w={}", self.limit, self.window_seconds),
            format!("\"key\";r={};t={reset}", self.remaining),
        ]
    }
}

/// A key as it was known when it was judged. Cheap to clone; read it as a [`Record`].
#[derive(Clone)]
pub struct Known(pub(crate) Arc<Entry>);

impl Deref for Known {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0.record
    }
}

impl From<Record> for Known {
    /// For tests of what comes after a verification.
    fn from(record: Record) -> Self {
        // It is never cached, so nothing looks for its digest.
        Self(Arc::new(Entry::new(
            Digest::from_bytes([0; 32]),
            record,
            Box::default(),
        )))
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.record.fmt(f)
    }
}
