//! The result of a verification.

use std::{fmt, ops::Deref, sync::Arc};

use tollkey_core::{Denial, Digest, KeyContext};

use crate::{cache::Entry, rate::RateStatus};

/// The result of a verification: the decision and the key.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// `Ok` if the request is allowed, otherwise the first denial that applies.
    pub outcome: Result<(), Denial>,
    /// The key; `None` for [`Denial::UnknownKey`], which includes a key that the caller may not see.
    pub record: Option<CachedKey>,
    /// The state of the key's rate limit, if it has one and no other denial applies.
    pub rate: Option<RateStatus>,
    /// With [`Denial::RateLimited`]: the whole seconds until another use is possible, at least 1.
    pub retry_after_seconds: Option<u32>,
}

impl Verdict {
    pub(crate) fn unknown() -> Self {
        Self {
            outcome: Err(Denial::UnknownKey),
            record: None,
            rate: None,
            retry_after_seconds: None,
        }
    }

    /// Returns the key if the request is allowed.
    #[must_use]
    pub fn allowed(&self) -> Option<&KeyContext> {
        self.outcome.ok()?;
        self.record.as_deref()
    }
}

/// The key by which a request was decided. Cheap to clone; dereferences to a [`KeyContext`].
#[derive(Clone)]
pub struct CachedKey(pub(crate) Arc<Entry>);

impl Deref for CachedKey {
    type Target = KeyContext;

    fn deref(&self) -> &KeyContext {
        &self.0.record
    }
}

impl From<KeyContext> for CachedKey {
    /// For tests of code that runs after a verification.
    fn from(record: KeyContext) -> Self {
        // It is never cached, so its hash is not used.
        Self(Arc::new(Entry::new(
            Digest::from_bytes([0; 32]),
            record,
            Box::default(),
        )))
    }
}

impl fmt::Debug for CachedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.record.fmt(f)
    }
}
