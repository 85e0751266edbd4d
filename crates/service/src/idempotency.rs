//! Creating once: requests with an Idempotency-Key can be sent again without making a second thing.
//!
//! The answer is written in the transaction of the change itself, so there is no moment in which one is there
//! without the other. It is sealed with a key that needs both the client's Idempotency-Key, which is not kept, and a
//! secret of the server, which is not in the database: a copy of the database opens nothing.

use std::{
    collections::HashSet,
    fmt,
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
use serde::{Deserialize, Serialize, Serializer};
use tollkey_api::Secret;
use tollkey_core::{AccountId, Invalid, Mode, Problem, ProblemCode, audit::Actor};
use tollkey_store::{KeptAnswer, Owner, Writer};
use zeroize::Zeroizing;

use crate::state::State;

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

/// The answer to a creating request, before its surface wraps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// Where what was made is.
    pub location: Option<String>,
    /// What was made, as JSON. It may hold the text of a key.
    #[serde(serialize_with = "write")]
    pub body: Secret,
}

/// Writes what is sealed at once.
fn write<S: Serializer>(body: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(body.expose())
}

impl Answered {
    /// 201 with this JSON.
    #[must_use]
    pub fn created(made: &impl Serialize) -> Self {
        // Our own types: plain structs of texts and numbers.
        let body = Secret::new(serde_json::to_string(made).unwrap_or_default());
        Self {
            status: 201,
            location: None,
            body,
        }
    }

    /// With the address of what was made.
    #[must_use]
    pub fn at(self, location: String) -> Self {
        Self {
            location: Some(location),
            ..self
        }
    }
}

/// An answer, and whether it was given before.
#[derive(Debug)]
pub struct Said {
    /// The answer.
    pub answered: Answered,
    /// It is the kept one.
    pub replayed: bool,
}

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

/// What a creating request begins with.
#[derive(Debug)]
pub enum Begun {
    /// It is to be done.
    Fresh(Creating),
    /// It was done before; this was the answer.
    Replay(Said),
}

/// The right to answer a creating request once; nothing to keep where it has no Idempotency-Key.
#[derive(Debug)]
pub struct Creating(Option<Reservation>);

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

/// Begins a creating request: gives the kept answer if there is one, else the right to make it.
///
/// # Errors
/// `idempotency_mismatch` when the key came with another body before, `idempotency_in_progress` while the first
/// request is being worked on, `idempotency_replay_unavailable` when the kept answer cannot be opened.
pub async fn begin(
    state: &State,
    place: Place<'_>,
    key: Option<IdempotencyKey>,
    body: &[u8],
) -> Result<Begun, Problem> {
    let Some(key) = key else {
        return Ok(Begun::Fresh(Creating(None)));
    };
    let request = Repeatable::new(state, place, &key, body)?;
    let (id, since) = (request.id, request.since());
    // Looked up before the request is judged: what was valid then (an end in the future) need not be valid now.
    let Some(kept) = state
        .read(place.owner(), move |db| db.kept_answer(&id, since))
        .await?
    else {
        return Ok(Begun::Fresh(Creating(Some(
            request.reserve(&state.sealer)?,
        ))));
    };
    let answered = request.open(&kept)?;
    // The first request may have died while it waited until its change held everywhere.
    state.settle_current().await?;
    Ok(Begun::Replay(Said {
        answered,
        replayed: true,
    }))
}

/// Makes something in one transaction with its audit entry and, where it is to be kept, its answer.
///
/// # Errors
/// What `work` returns, and those of [`begin`] for requests that began at the same time.
pub async fn create<T: 'static>(
    state: &State,
    owner: impl Into<Owner>,
    Creating(reservation): Creating,
    say: impl FnOnce(T) -> Answered + Clone + Send + 'static,
    work: impl FnOnce(&mut Writer<'_>) -> Result<T, Problem> + Clone + Send + 'static,
) -> Result<Said, Problem> {
    let reservation = reservation.map(Arc::new);
    let said = state
        .change(owner, move |tx| {
            let request = reservation.as_ref().map(|reservation| &reservation.request);
            if let Some(request) = request {
                if !tx.reserve_answer(&request.id)? {
                    return Err(in_progress());
                }
                // Somebody may have answered since this request began.
                if let Some(kept) = tx.kept_answer(&request.id, request.since())? {
                    return Ok(Said {
                        answered: request.open(&kept)?,
                        replayed: true,
                    });
                }
            }
            let answered = say(work(tx)?);
            if let Some(request) = request {
                tx.keep_answer(&request.seal(&answered)?)?;
            }
            Ok(Said {
                answered,
                replayed: false,
            })
        })
        .await?;
    if said.replayed {
        state.settle_current().await?;
    }
    Ok(said)
}

impl State {
    /// Forgets answers that are kept no more.
    pub async fn prune_kept_answers(&self) {
        let until = since(self.clock.now());
        if let Err(error) = self.store.prune_kept_answers(until).await {
            tracing::warn!(%error, "old kept answers could not be deleted; it is tried again");
        }
    }
}

fn since(now: Timestamp) -> Timestamp {
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
        state: &State,
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
        let derived = state
            .sealer
            .secret
            .expand(&[&info], HKDF_SHA256)
            .and_then(|key| key.fill(&mut *sealing_key));
        let sealing_key = derived
            .and_then(|()| UnboundKey::new(&AES_256_GCM, &*sealing_key))
            .map_err(|_| Problem::internal())?;
        let mut nonce = [0; NONCE_LEN];
        state.random.with(|rng| rng.fill_bytes(&mut nonce));
        let fingerprint = hash(&[b"body", &id, body]);
        let key = LessSafeKey::new(sealing_key);
        Ok(Self {
            id,
            fingerprint,
            key,
            nonce,
            seals: AtomicU32::new(0),
            now: state.clock.now(),
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
        since(self.now)
    }

    fn aad(&self) -> Aad<Vec<u8>> {
        Aad::from([self.id, self.fingerprint].concat())
    }

    fn seal(&self, answered: &Answered) -> Result<KeptAnswer, Problem> {
        let mut sealed =
            Zeroizing::new(serde_json::to_vec(answered).map_err(|_| Problem::internal())?);
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

    fn open(&self, kept: &KeptAnswer) -> Result<Answered, Problem> {
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
            serde_json::from_slice(opened).ok()
        };
        opened().ok_or_else(|| {
            let detail = "It was done, but its answer can be opened no more: the server's sealing secret was changed.";
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
