//! Idempotent creation: a request with an Idempotency-Key can be repeated and creates nothing more.
//!
//! [`begin`] returns the [`Outcome`] of an earlier request, or the right to create ([`CreationPermit`]). [`create`] writes
//! the record in the transaction of the change, so neither exists without the other. A record contains the created
//! state ([`Recorded`]). It is encrypted with a key derived from the client's Idempotency-Key, which is not stored, and
//! from a secret of the server. So a copy of the database is not enough to decrypt a record.

mod record;
pub(crate) mod request;

use std::{marker::PhantomData, sync::Arc};

use tollkey_core::Problem;
use tollkey_store::{Owner, Writer};

pub(crate) use self::request::oldest_valid_record;
use self::request::{IdempotentRequest, Reservation};
pub use self::{
    record::{Outcome, Recorded, Secret, StoredResponse},
    request::{IdempotencyKey, RequestTarget, Sealer},
};
use crate::service::Service;

#[derive(Debug)]
pub enum BeginOutcome<T, R = T> {
    Fresh(CreationPermit<R>),
    /// An earlier request with the same Idempotency-Key succeeded.
    Replay(Outcome<T, R>),
}

/// The right to create something once, and to record it as `R`. A request without an Idempotency-Key records nothing.
#[derive(Debug)]
pub struct CreationPermit<R> {
    reservation: Option<Reservation>,
    record: PhantomData<fn() -> R>,
}

impl<R> CreationPermit<R> {
    fn new(reservation: Option<Reservation>) -> Self {
        Self {
            reservation,
            record: PhantomData,
        }
    }

    #[must_use]
    pub fn unrecorded() -> Self {
        Self::new(None)
    }
}

/// Begins a request that creates something: returns the outcome of an earlier request with the same Idempotency-Key,
/// or the right to process this one.
///
/// # Errors
/// `idempotency_mismatch` if the earlier request had another body, `idempotency_in_progress` while it is being
/// processed, `idempotency_replay_unavailable` if its record cannot be decrypted.
pub async fn begin<T, R: Recorded<T>>(
    service: &Service,
    target: RequestTarget<'_>,
    key: Option<IdempotencyKey>,
    body: &[u8],
) -> Result<BeginOutcome<T, R>, Problem> {
    let Some(key) = key else {
        return Ok(BeginOutcome::Fresh(CreationPermit::unrecorded()));
    };
    let request = IdempotentRequest::new(
        &service.sealer,
        &service.random,
        service.clock.now(),
        target,
        &key,
        body,
    )?;
    let (id, since) = (request.id, request.since());
    // Looked up before the request is validated: what was valid then, such as an expiration, may be invalid now.
    let Some(record) = service
        .read(target.owner(), move |db| db.idempotency_record(&id, since))
        .await?
    else {
        return Ok(BeginOutcome::Fresh(CreationPermit::new(Some(
            request.reserve(&service.sealer)?,
        ))));
    };
    let outcome = request.open(&record)?;
    // The earlier request may have crashed while it waited for the propagation of its change.
    service.wait_until_all_propagated().await?;
    Ok(BeginOutcome::Replay(outcome))
}

/// Creates something in one transaction with its audit entry and, with an Idempotency-Key, its idempotency record.
///
/// # Errors
/// The error of `work`, and the errors of [`begin`] for concurrent requests.
pub async fn create<T: Send + 'static, R: Recorded<T> + Send + 'static>(
    service: &Service,
    owner: impl Into<Owner>,
    creating: CreationPermit<R>,
    work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
) -> Result<Outcome<T, R>, Problem> {
    let reservation = creating.reservation.map(Arc::new);
    let outcome = service
        .change(owner, move |tx| {
            let request = reservation.as_ref().map(|reservation| &reservation.request);
            if let Some(request) = request {
                if !tx.reserve_idempotency_record(&request.id)? {
                    return Err(Problem::idempotency_in_progress());
                }
                // Another request may have succeeded since this one began.
                if let Some(record) = tx.idempotency_record(&request.id, request.since())? {
                    return request.open(&record);
                }
            }
            let created = work(tx)?;
            if let Some(request) = request {
                tx.insert_idempotency_record(&request.seal::<T, R>(&created)?)?;
            }
            Ok(Outcome::Created(created))
        })
        .await?;
    if !matches!(outcome, Outcome::Created(_)) {
        service.wait_until_all_propagated().await?;
    }
    Ok(outcome)
}
