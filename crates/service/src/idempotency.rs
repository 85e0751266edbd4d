//! Creating something once: a request with an Idempotency-Key can be repeated and creates nothing more.
//!
//! [`begin`] returns the [`Outcome`] of an earlier request, or the right to create ([`Creating`]). [`create`] writes the record in
//! the transaction of the change, so neither exists without the other. A record contains the created state ([`Record`]),
//! sealed with a key that is derived from the client's Idempotency-Key, which is not stored, and from a secret of the server,
//! which is not in the database. So a copy of the database opens no record.

mod record;
pub(crate) mod request;

use std::{marker::PhantomData, sync::Arc};

use tollkey_core::Problem;
use tollkey_store::{Owner, Writer};

pub(crate) use self::request::kept_since;
use self::request::{Repeatable, Reservation};
pub use self::{
    record::{Outcome, Record, Secret, StoredResponse},
    request::{IdempotencyKey, Place, Sealer},
};
use crate::service::Service;

/// How a request that creates something begins.
#[derive(Debug)]
pub enum Begun<T, R = T> {
    /// It must be carried out.
    Fresh(Creating<R>),
    /// An earlier request with the same Idempotency-Key was carried out.
    Replay(Outcome<T, R>),
}

/// The right to create something once, and to record it as `R`. A request without an Idempotency-Key records nothing.
#[derive(Debug)]
pub struct Creating<R> {
    reservation: Option<Reservation>,
    record: PhantomData<fn() -> R>,
}

impl<R> Creating<R> {
    fn new(reservation: Option<Reservation>) -> Self {
        Self {
            reservation,
            record: PhantomData,
        }
    }

    /// Returns the right to create something whose request cannot be repeated.
    #[must_use]
    pub fn unrecorded() -> Self {
        Self::new(None)
    }
}

/// Begins a request that creates something: returns the outcome of an earlier request with the same Idempotency-Key, or the right
/// to carry out this one.
///
/// # Errors
/// `idempotency_mismatch` if the earlier request had another body, `idempotency_in_progress` while it is being carried out,
/// `idempotency_replay_unavailable` if its record cannot be opened.
pub async fn begin<T, R: Record<T>>(
    service: &Service,
    place: Place<'_>,
    key: Option<IdempotencyKey>,
    body: &[u8],
) -> Result<Begun<T, R>, Problem> {
    let Some(key) = key else {
        return Ok(Begun::Fresh(Creating::unrecorded()));
    };
    let request = Repeatable::new(
        &service.sealer,
        &service.random,
        service.clock.now(),
        place,
        &key,
        body,
    )?;
    let (id, since) = (request.id, request.since());
    // Looked up before the request is validated: what was valid then (an expiration in the future) need not be valid now.
    let Some(kept) = service
        .read(place.owner(), move |db| db.kept_answer(&id, since))
        .await?
    else {
        return Ok(Begun::Fresh(Creating::new(Some(
            request.reserve(&service.sealer)?,
        ))));
    };
    let outcome = request.open(&kept)?;
    // The earlier request may have crashed while it waited for the propagation of its change.
    service.wait_until_all_propagated().await?;
    Ok(Begun::Replay(outcome))
}

/// Creates something in one transaction with its audit entry and, if the request has an Idempotency-Key, its idempotency record.
///
/// # Errors
/// What `work` returns, and those of [`begin`] for requests that began at the same time.
pub async fn create<T: Send + 'static, R: Record<T> + Send + 'static>(
    service: &Service,
    owner: impl Into<Owner>,
    creating: Creating<R>,
    work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
) -> Result<Outcome<T, R>, Problem> {
    let reservation = creating.reservation.map(Arc::new);
    let outcome = service
        .change(owner, move |tx| {
            let request = reservation.as_ref().map(|reservation| &reservation.request);
            if let Some(request) = request {
                if !tx.reserve_answer(&request.id)? {
                    return Err(Problem::idempotency_in_progress());
                }
                // Another request may have been carried out since this one began.
                if let Some(kept) = tx.kept_answer(&request.id, request.since())? {
                    return request.open(&kept);
                }
            }
            let created = work(tx)?;
            if let Some(request) = request {
                tx.keep_answer(&request.seal::<T, R>(&created)?)?;
            }
            Ok(Outcome::Created(created))
        })
        .await?;
    if !matches!(outcome, Outcome::Created(_)) {
        service.wait_until_all_propagated().await?;
    }
    Ok(outcome)
}
