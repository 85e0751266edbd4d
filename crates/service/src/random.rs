//! The random number generator, passed as an argument so that a test can seed it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rand::{
    CryptoRng, SeedableRng as _,
    rand_core::UnwrapErr,
    rngs::{StdRng, SysRng},
};
use tollkey_core::hex;
use zeroize::Zeroizing;

/// A shared, cryptographically secure generator for keys and secrets.
#[derive(Clone)]
pub struct Random {
    secrets: Shared,
    request_ids: Shared,
}

type Shared = Arc<Mutex<dyn CryptoRng + Send>>;

impl Random {
    /// Every use panics if the operating system returns no random bytes, because the server must not create keys without
    /// them. No supported platform fails after boot.
    #[must_use]
    pub fn system() -> Self {
        let mut system = UnwrapErr(SysRng);
        // Every request needs bytes for its ID, and a system call for them costs more than verifying a key.
        let request_ids = Arc::new(Mutex::new(StdRng::from_rng(&mut system)));
        Self {
            secrets: Arc::new(Mutex::new(system)),
            request_ids,
        }
    }

    /// Tests pass a seeded generator, so that their results are reproducible.
    pub fn new(rng: impl CryptoRng + Send + 'static) -> Self {
        let secrets: Shared = Arc::new(Mutex::new(rng));
        Self {
            request_ids: Arc::clone(&secrets),
            secrets,
        }
    }

    pub fn with<T>(&self, take: impl FnOnce(&mut dyn CryptoRng) -> T) -> T {
        with_locked(&self.secrets, take)
    }

    /// Like [`Self::with`], with a fast generator for request IDs, which are not secret. It is seeded once.
    pub fn for_request_ids<T>(&self, take: impl FnOnce(&mut dyn CryptoRng) -> T) -> T {
        with_locked(&self.request_ids, take)
    }

    /// Returns a new secret: 32 random bytes as 64 hexadecimal digits.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        self.with(|rng| rng.fill_bytes(bytes.as_mut_slice()));
        Zeroizing::new(hex::encode(bytes.as_slice()))
    }
}

fn with_locked<T>(rng: &Shared, take: impl FnOnce(&mut dyn CryptoRng) -> T) -> T {
    // The generator remains valid after an earlier caller panicked.
    let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
    take(&mut *rng)
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The state of a seeded generator reveals every key that it generates.
        f.write_str("Random(..)")
    }
}

#[cfg(test)]
mod tests {
    use tollkey_core::{Family, Mode, PlainKey, key_format::CredentialKind};

    use super::*;

    #[test]
    fn only_a_seeded_generator_is_deterministic() {
        let seeded = || Random::new(StdRng::seed_from_u64(7)).with(|rng| rng.next_u64());
        assert_eq!(seeded(), seeded());
        let system = Random::system();
        assert_ne!(
            system.with(|rng| rng.next_u64()),
            system.with(|rng| rng.next_u64())
        );
        let other = Random::system();
        assert_ne!(
            system.for_request_ids(|rng| rng.next_u64()),
            system.for_request_ids(|rng| rng.next_u64())
        );
        assert_ne!(
            system.for_request_ids(|rng| rng.next_u64()),
            other.for_request_ids(|rng| rng.next_u64())
        );
    }

    #[test]
    fn clone_shares_the_generator_state() {
        let random = Random::new(StdRng::seed_from_u64(7));
        assert_ne!(
            random.with(|rng| rng.next_u64()),
            random.clone().with(|rng| rng.next_u64())
        );
    }

    #[test]
    fn system_generator_generates_keys() {
        let key = Random::system()
            .with(|rng| PlainKey::generate(CredentialKind::Key(Family::Commerce, Mode::Test), rng));
        assert_eq!(
            CredentialKind::parse(key.expose()),
            Some(CredentialKind::Key(Family::Commerce, Mode::Test))
        );
    }

    #[test]
    fn debug_output_hides_the_generator_state() {
        assert_eq!(
            format!("{:?}", Random::new(StdRng::seed_from_u64(7))),
            "Random(..)"
        );
    }
}
