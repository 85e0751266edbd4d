//! Creating once: requests with an Idempotency-Key can be sent again without making a second thing.
//!
//! The answer is written in the transaction of the change itself, so there is no moment in which one is there
//! without the other. It is sealed with a key that needs both the client's Idempotency-Key, which is not kept, and a
//! secret of the server, which is not in the database: a copy of the database opens nothing.

use std::{
    collections::HashSet,
    fmt,
    marker::PhantomData,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{Context, SHA256},
    hkdf::{HKDF_SHA256, Prk, Salt},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tollkey_core::{AccountId, Invalid, Mode, Problem, ProblemCode, audit::Actor};
use tollkey_store::{KeptAnswer, Owner, Writer};
use zeroize::{Zeroize as _, Zeroizing};

use crate::Service;

/// For how long an answer is kept.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(24);
/// What the keys of this version are made for.
const PURPOSE: &[u8] = b"tollkey kept answers 1";

/// What a client calls one logical request. Hidden by `Debug`, wiped on drop: with a secret of the server it opens the
/// kept answer.
#[derive(Clone)]
pub struct IdempotencyKey(Zeroizing<String>);

impl IdempotencyKey {
    /// Reads the header's value, quoted (a string of RFC 9651) or not.
    ///
    /// # Errors
    /// [`Invalid`] unless it has 16 to 255 printable ASCII characters, none of them a quote or a backslash.
    pub fn parse(value: &str) -> Result<Self, Invalid> {
        let text = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .unwrap_or(value);
        let printable = |b: u8| (b.is_ascii_graphic() || b == b' ') && !matches!(b, b'"' | b'\\');
        if !(16..=255).contains(&text.len()) || !text.bytes().all(printable) {
            return Err(Invalid::new(
                "must have 16 to 255 printable ASCII characters, no quote and no backslash",
            ));
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(redacted)")
    }
}

/// Whose request, and where: the same Idempotency-Key from or to somewhere else is another one.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The account; empty for what belongs to none.
    pub account: &'a str,
    /// Who asks.
    pub actor: &'a Actor,
    /// The mode of the key that asks, if one does.
    pub mode: Option<Mode>,
    /// The request's method.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
}

impl Place<'_> {
    fn owner(&self) -> Owner {
        self.account
            .parse::<AccountId>()
            .map_or(Owner::Operator, Owner::Account)
    }
}

/// The outcome of a request that creates something.
#[derive(Debug)]
pub enum Outcome<T, R = T> {
    /// It was created now.
    Created(T),
    /// An earlier request with the same Idempotency-Key created it. This is its state when it was created.
    Replayed(R),
    /// An earlier request created it, under release 0.1.0, which recorded the response.
    ReplayedResponse(StoredResponse),
}

/// A response that release 0.1.0 recorded. Records expire after 24 hours.
#[derive(Debug, Deserialize)]
pub struct StoredResponse {
    /// The HTTP status.
    pub status: u16,
    /// The value of `Location`.
    pub location: Option<String>,
    /// The JSON of what was created; it can contain a key.
    pub body: Secret,
}

/// What an idempotency record keeps about a created `T`, and a replay returns: `T` itself, or less.
pub trait Record<T>: Sized {
    /// How it is written, as JSON, before it is sealed. A change of its fields must still read the records of 24 hours.
    type Snapshot: Serialize + DeserializeOwned;

    /// Returns what is written about a created value.
    fn snapshot(created: &T) -> Self::Snapshot;

    /// Reads it back. `None` if it cannot be what was written.
    fn restore(snapshot: Self::Snapshot) -> Option<Self>;
}

/// A secret text in a snapshot: hidden by `Debug` and wiped on drop.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The first byte of a record: the form of what follows. Release 0.1.0 wrote a JSON object without such a byte.
const SNAPSHOT: u8 = 1;
const STORED_RESPONSE: u8 = b'{';

/// Seals and opens kept answers, and knows which requests are being worked on in this process.
#[derive(Clone)]
pub struct Sealer {
    secret: Arc<Prk>,
    running: Running,
}

type Running = Arc<Mutex<HashSet<[u8; 32]>>>;

impl Sealer {
    /// Seals with keys derived from this secret of the server.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        let secret = Arc::new(Salt::new(HKDF_SHA256, PURPOSE).extract(secret));
        Self {
            secret,
            running: Running::default(),
        }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

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

/// A request with an Idempotency-Key: where its answer is kept, and what opens it.
struct Repeatable {
    id: [u8; 32],
    fingerprint: [u8; 32],
    key: LessSafeKey,
    nonce: [u8; NONCE_LEN],
    /// How often a response was sealed: a transaction that runs again may seal another one.
    seals: AtomicU32,
    now: Timestamp,
}

/// The only request of its kind that this process is working on, until dropped.
struct Reservation {
    request: Repeatable,
    running: Running,
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
    let request = Repeatable::new(service, place, &key, body)?;
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
    service.settle_current().await?;
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
                    return Err(in_progress());
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
        service.settle_current().await?;
    }
    Ok(outcome)
}

/// Returns since when records have not expired.
pub(crate) fn kept_since(now: Timestamp) -> Timestamp {
    now.saturating_sub(KEPT_FOR).unwrap_or(Timestamp::MIN)
}

fn in_progress() -> Problem {
    Problem {
        retry_after: Some(1),
        ..Problem::new(
            ProblemCode::IdempotencyInProgress,
            "A request with this Idempotency-Key is still running.",
        )
    }
}

/// SHA-256 over parts that cannot run into each other.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl Repeatable {
    fn new(
        service: &Service,
        place: Place<'_>,
        key: &IdempotencyKey,
        body: &[u8],
    ) -> Result<Self, Problem> {
        let key = key.0.as_bytes();
        let id = hash(&[
            PURPOSE,
            place.account.as_bytes(),
            place.actor.kind.as_str().as_bytes(),
            place.actor.id.as_bytes(),
            place.mode.map_or("", Mode::as_str).as_bytes(),
            place.method.as_bytes(),
            place.path.as_bytes(),
            key,
        ]);
        let mut sealing_key = Zeroizing::new([0; 32]);
        let info = hash(&[b"seal", &id, key]);
        let derived = service
            .sealer
            .secret
            .expand(&[&info], HKDF_SHA256)
            .and_then(|key| key.fill(&mut *sealing_key));
        let sealing_key = derived
            .and_then(|()| UnboundKey::new(&AES_256_GCM, &*sealing_key))
            .map_err(|_| Problem::internal())?;
        let mut nonce = [0; NONCE_LEN];
        service.random.with(|rng| rng.fill_bytes(&mut nonce));
        let fingerprint = hash(&[b"body", &id, body]);
        let key = LessSafeKey::new(sealing_key);
        Ok(Self {
            id,
            fingerprint,
            key,
            nonce,
            seals: AtomicU32::new(0),
            now: service.clock.now(),
        })
    }

    fn reserve(self, sealer: &Sealer) -> Result<Reservation, Problem> {
        let running = Arc::clone(&sealer.running);
        if !running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.id)
        {
            return Err(in_progress());
        }
        Ok(Reservation {
            request: self,
            running,
        })
    }

    fn since(&self) -> Timestamp {
        kept_since(self.now)
    }

    fn aad(&self) -> Aad<Vec<u8>> {
        Aad::from([self.id, self.fingerprint].concat())
    }

    fn seal<T, R: Record<T>>(&self, created: &T) -> Result<KeptAnswer, Problem> {
        let mut sealed = Zeroizing::new(vec![SNAPSHOT]);
        serde_json::to_writer(&mut *sealed, &R::snapshot(created))
            .map_err(|_| Problem::internal())?;
        // Another one each time, because one nonce must not seal two texts.
        let mut nonce = self.nonce;
        for (byte, count) in nonce
            .iter_mut()
            .zip(self.seals.fetch_add(1, Ordering::Relaxed).to_be_bytes())
        {
            *byte ^= count;
        }
        let unique = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .seal_in_place_separate_tag(unique, self.aad(), &mut sealed)
            .map_err(|_| Problem::internal())?;
        let sealed = [nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat();
        Ok(KeptAnswer {
            id: self.id,
            fingerprint: self.fingerprint,
            sealed,
            created_at: self.now,
        })
    }

    fn open<T, R: Record<T>>(&self, kept: &KeptAnswer) -> Result<Outcome<T, R>, Problem> {
        if kept.fingerprint != self.fingerprint {
            let detail = "This Idempotency-Key came with another body before.";
            return Err(Problem::new(ProblemCode::IdempotencyMismatch, detail));
        }
        let opened = || {
            let (nonce, sealed) = kept.sealed.split_first_chunk::<NONCE_LEN>()?;
            let mut sealed = Zeroizing::new(sealed.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let opened = self
                .key
                .open_in_place(nonce, self.aad(), &mut sealed)
                .ok()?;
            match opened.split_first()? {
                (&SNAPSHOT, snapshot) => {
                    R::restore(serde_json::from_slice(snapshot).ok()?).map(Outcome::Replayed)
                }
                (&STORED_RESPONSE, _) => serde_json::from_slice(opened)
                    .ok()
                    .map(Outcome::ReplayedResponse),
                _ => None,
            }
        };
        opened().ok_or_else(|| {
            let detail = "It was done, but its record cannot be opened: the server's sealing secret was changed, or a newer \
                          release wrote the record.";
            Problem::new(ProblemCode::IdempotencyReplayUnavailable, detail)
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.request.id);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reservation(..)")
    }
}

#[cfg(test)]
mod tests;
