//! Requests with an Idempotency-Key, and their records.

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
use tollkey_core::{AccountId, Invalid, Mode, Problem, ProblemCode, audit::Actor};
use tollkey_store::{IdempotencyRecord, Owner};
use zeroize::Zeroizing;

use super::record::{Outcome, Recorded};
use crate::random::Random;

const RETENTION: SignedDuration = SignedDuration::from_hours(24);
/// The purpose in the derivation of encryption keys. Changing it invalidates all stored records.
const PURPOSE: &[u8] = b"tollkey kept answers 1";

/// The first byte of a decrypted record whose rest is a snapshot.
const SNAPSHOT: u8 = 1;

/// The first byte of a decrypted record of release 0.1.0, which is a JSON object.
const STORED_RESPONSE: u8 = b'{';

/// The Idempotency-Key of a request. Hidden by `Debug` and wiped on drop, because it is needed to decrypt the record.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Zeroizing<String>);

impl IdempotencyKey {
    /// Parses the header's value, quoted (a string of RFC 9651) or not.
    /// Valid are 16 to 255 printable ASCII characters, none of them a quote or a backslash.
    pub fn parse(value: &str) -> Result<Self, Invalid> {
        let text = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .unwrap_or(value);
        let printable = |b: u8| (b.is_ascii_graphic() || b == b' ') && !matches!(b, b'"' | b'\\');
        if !(16..=255).contains(&text.len()) || !text.bytes().all(printable) {
            return Err(Invalid::new(
                "must have 16 to 255 printable ASCII characters without quotation marks and backslashes",
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

/// The caller and the target of a request. Two requests with the same Idempotency-Key but another caller or
/// target do not share a record.
#[derive(Debug, Clone, Copy)]
pub struct RequestTarget<'a> {
    /// Empty if the request has none.
    pub account: &'a str,
    pub actor: &'a Actor,
    /// The mode of the presented key, if any.
    pub mode: Option<Mode>,
    pub method: &'a str,
    pub path: &'a str,
}

impl RequestTarget<'_> {
    pub(super) fn owner(&self) -> Owner {
        self.account
            .parse::<AccountId>()
            .map_or(Owner::Operator, Owner::Account)
    }
}

/// Encrypts and decrypts records, and tracks which requests are in progress in this process.
#[derive(Clone)]
pub struct Sealer {
    secret: Arc<Prk>,
    running: InProgress,
}

type InProgress = Arc<Mutex<HashSet<[u8; 32]>>>;

impl Sealer {
    /// The encryption key of each record is derived from this secret and from the Idempotency-Key.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        let secret = Arc::new(Salt::new(HKDF_SHA256, PURPOSE).extract(secret));
        Self {
            secret,
            running: InProgress::default(),
        }
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// A request with an Idempotency-Key: the ID of its record, and the key that decrypts it.
pub(super) struct IdempotentRequest {
    pub(super) id: [u8; 32],
    fingerprint: [u8; 32],
    key: LessSafeKey,
    nonce: [u8; NONCE_LEN],
    /// The number of records sealed so far. A transaction that is retried seals another one.
    seals: AtomicU32,
    now: Timestamp,
}

/// The exclusive right of this process to work on a request, until dropped.
pub(super) struct Reservation {
    pub(super) request: IdempotentRequest,
    running: InProgress,
}

/// Returns the SHA-256 over the parts, each with its length, so that their boundaries matter.
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

impl IdempotentRequest {
    pub(super) fn new(
        sealer: &Sealer,
        random: &Random,
        now: Timestamp,
        target: RequestTarget<'_>,
        key: &IdempotencyKey,
        body: &[u8],
    ) -> Result<Self, Problem> {
        let key = key.0.as_bytes();
        let id = hash(&[
            PURPOSE,
            target.account.as_bytes(),
            target.actor.kind.as_str().as_bytes(),
            target.actor.id.as_bytes(),
            target.mode.map_or("", Mode::as_str).as_bytes(),
            target.method.as_bytes(),
            target.path.as_bytes(),
            key,
        ]);
        let mut sealing_key = Zeroizing::new([0; 32]);
        let info = hash(&[b"seal", &id, key]);
        let derived = sealer
            .secret
            .expand(&[&info], HKDF_SHA256)
            .and_then(|key| key.fill(&mut *sealing_key));
        let sealing_key = derived
            .and_then(|()| UnboundKey::new(&AES_256_GCM, &*sealing_key))
            .map_err(|_| Problem::internal())?;
        let mut nonce = [0; NONCE_LEN];
        random.with(|rng| rng.fill_bytes(&mut nonce));
        let fingerprint = hash(&[b"body", &id, body]);
        let key = LessSafeKey::new(sealing_key);
        Ok(Self {
            id,
            fingerprint,
            key,
            nonce,
            seals: AtomicU32::new(0),
            now,
        })
    }

    pub(super) fn reserve(self, sealer: &Sealer) -> Result<Reservation, Problem> {
        let running = Arc::clone(&sealer.running);
        if !running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.id)
        {
            return Err(Problem::idempotency_in_progress());
        }
        Ok(Reservation {
            request: self,
            running,
        })
    }

    pub(super) fn since(&self) -> Timestamp {
        oldest_valid_record(self.now)
    }

    fn aad(&self) -> Aad<Vec<u8>> {
        Aad::from([self.id, self.fingerprint].concat())
    }

    pub(super) fn seal<T, R: Recorded<T>>(
        &self,
        created: &T,
    ) -> Result<IdempotencyRecord, Problem> {
        let mut sealed = Zeroizing::new(vec![SNAPSHOT]);
        serde_json::to_writer(&mut *sealed, &R::snapshot(created))
            .map_err(|_| Problem::internal())?;
        // A new nonce each time, because one nonce must not encrypt two different texts.
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
        Ok(IdempotencyRecord {
            id: self.id,
            fingerprint: self.fingerprint,
            sealed,
            created_at: self.now,
        })
    }

    pub(super) fn open<T, R: Recorded<T>>(
        &self,
        record: &IdempotencyRecord,
    ) -> Result<Outcome<T, R>, Problem> {
        if record.fingerprint != self.fingerprint {
            let detail = "This Idempotency-Key was already used with a different body. Send the same body, or another Idempotency-Key.";
            return Err(Problem::new(ProblemCode::IdempotencyMismatch, detail));
        }
        let opened = || {
            let (nonce, sealed) = record.sealed.split_first_chunk::<NONCE_LEN>()?;
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
            let detail = "The first request succeeded, but its response cannot be decrypted: the sealing secret of the server \
                          was changed, or a newer release stored the response. Look up what the request created before \
                          you send another Idempotency-Key.";
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

pub(crate) fn oldest_valid_record(now: Timestamp) -> Timestamp {
    now.saturating_sub(RETENTION).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests;
