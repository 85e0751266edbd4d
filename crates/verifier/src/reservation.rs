//! Reserving a use of a key while its request runs.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tollkey_core::{AccessRequest, Clock, Denial, decide_requirements};

use crate::{
    cache::Entry,
    clock::nanos,
    rate::{RateStatus, give_back_all},
    usage::Ledger,
    verdict::CachedKey,
};

/// The parts of a verifier that a reservation uses, without the type of the source.
pub(crate) trait Accounting: Send + Sync {
    fn ledger(&self) -> &Ledger;

    fn clock(&self) -> &dyn Clock;
}

/// A reserved use of an allowed key, for a request that can still be denied later. The use is already taken from the key's
/// rate limit.
///
/// The first of these calls ends the reservation; later calls do nothing and return `false`.
///
/// | call | counts | use of the rate limit |
/// |---|---|---|
/// | [`commit`](Self::commit), or drop | a use | stays taken |
/// | [`reject`](Self::reject) | the denial | is given back |
/// | [`cancel`](Self::cancel) | nothing | is given back |
///
/// Dropping it commits the use. Otherwise, a client could exceed the rate limit of a key by disconnecting before the
/// response.
#[must_use = "a reservation that is dropped counts as a use of the key"]
pub struct Reservation {
    key: CachedKey,
    rate: Option<RateStatus>,
    /// When the use was taken from the rate limits, in nanoseconds of the clock.
    taken_at: u64,
    verifier: Arc<dyn Accounting>,
    has_ended: AtomicBool,
}

impl Reservation {
    pub(crate) fn new(
        entry: Arc<Entry>,
        rate: Option<RateStatus>,
        taken_at: u64,
        verifier: Arc<dyn Accounting>,
    ) -> Self {
        Self {
            key: CachedKey(entry),
            rate,
            taken_at,
            verifier,
            has_ended: AtomicBool::new(false),
        }
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &CachedKey {
        &self.key
    }

    /// Returns the state of the key's rate limit, if it has one.
    #[must_use]
    pub fn rate(&self) -> Option<&RateStatus> {
        self.rate.as_ref()
    }

    /// Decides further requirements of the same request, by [`tollkey_core::decide_requirements`]. Counts nothing and does not
    /// end the reservation: if the request is rejected, pass the denial to [`reject`](Self::reject).
    ///
    /// # Errors
    /// The first [`Denial`] that applies.
    pub fn decide_requirements(&self, access: &AccessRequest<'_>) -> Result<(), Denial> {
        decide_requirements(&self.key, access, self.verifier.clock().now())
    }

    /// Ends the reservation and counts a use of the key. Returns whether this call ended it.
    pub fn commit(&self) -> bool {
        let ends = self.end();
        if ends {
            self.count(Ok(()));
        }
        ends
    }

    /// Ends the reservation because the request was denied later. Counts the denial, except [`Denial::UnknownKey`], and
    /// gives the use back to the rate limit. Returns whether this call ended it.
    pub fn reject(&self, denial: Denial) -> bool {
        let ends = self.end();
        if ends {
            self.give_back();
            self.count(Err(denial));
        }
        ends
    }

    /// Ends the reservation without counting anything, and gives the use back to the rate limit. For a request that is
    /// verified again, or that is rejected because of a mistake of the caller. Returns whether this call ended it.
    pub fn cancel(&self) -> bool {
        let ends = self.end();
        if ends {
            self.give_back();
        }
        ends
    }

    /// Returns `true` only for the first call.
    fn end(&self) -> bool {
        !self.has_ended.swap(true, Ordering::AcqRel)
    }

    fn count(&self, outcome: Result<(), Denial>) {
        let now = self.verifier.clock().coarse_now();
        let CachedKey(entry) = &self.key;
        self.verifier.ledger().count(&entry.tally, outcome, now);
    }

    fn give_back(&self) {
        let now = nanos(self.verifier.clock().elapsed());
        let CachedKey(entry) = &self.key;
        give_back_all(&entry.limiters, self.taken_at, now);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.commit();
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("key", &self.key)
            .field("rate", &self.rate)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}
