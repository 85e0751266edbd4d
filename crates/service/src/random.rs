//! Randomness, as an argument: a cheap handle that a test can seed.

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

/// A generator fit for keys and secrets, shared by everything that needs one.
#[derive(Clone)]
pub struct Random {
    secrets: Shared,
    request_ids: Shared,
}

type Shared = Arc<Mutex<dyn CryptoRng + Send>>;

impl Random {
    /// The operating system's generator.
    ///
    /// Its failure is a panic of the request that needed it: a machine that cannot give random bytes must not
    /// hand out keys, and none of the platforms we run on fails once it has booted.
    #[must_use]
    pub fn system() -> Self {
        let mut system = UnwrapErr(SysRng);
        // Each request needs some bytes for its ID; a system call for them costs more than verifying a key.
        let request_ids = Arc::new(Mutex::new(StdRng::from_rng(&mut system)));
        Self {
            secrets: Arc::new(Mutex::new(system)),
            request_ids,
        }
    }

    /// A generator of the caller's choice: tests pass a seeded one, so that what they see is the same each time.
    pub fn new(rng: impl CryptoRng + Send + 'static) -> Self {
        let secrets: Shared = Arc::new(Mutex::new(rng));
        Self {
            request_ids: Arc::clone(&secrets),
            secrets,
        }
    }

    /// Lends the generator for as long as `take` runs.
    pub fn with<T>(&self, take: impl FnOnce(&mut dyn CryptoRng) -> T) -> T {
        lend(&self.secrets, take)
    }

    /// Lends a generator for request IDs, which are no secrets: seeded by the operating system once, and fast.
    pub fn for_request_ids<T>(&self, take: impl FnOnce(&mut dyn CryptoRng) -> T) -> T {
        lend(&self.request_ids, take)
    }

    /// Returns a new secret: 32 random bytes as 64 hexadecimal digits.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0_u8; 32]);
        self.with(|rng| rng.fill_bytes(bytes.as_mut_slice()));
        Zeroizing::new(hex::encode(bytes.as_slice()))
    }
}

fn lend<T>(rng: &Shared, take: impl FnOnce(&mut dyn CryptoRng) -> T) -> T {
    // A panic of an earlier borrower leaves a generator that is as good as before.
    let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
    take(&mut *rng)
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The state of a seeded generator tells every key it will make.
        f.write_str("Random(..)")
    }
}

#[cfg(test)]
mod tests {
    use tollkey_core::{Family, KeyText, Mode, key_text::Kind};

    use super::*;

    #[test]
    fn a_seeded_generator_repeats_itself_and_the_systems_does_not() {
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
    fn a_clone_is_the_same_generator() {
        let random = Random::new(StdRng::seed_from_u64(7));
        assert_ne!(
            random.with(|rng| rng.next_u64()),
            random.clone().with(|rng| rng.next_u64())
        );
    }

    #[test]
    fn it_mints_keys() {
        let key = Random::system()
            .with(|rng| KeyText::mint(Kind::Key(Family::Commerce, Mode::Test), rng));
        assert_eq!(
            Kind::of(key.expose()),
            Some(Kind::Key(Family::Commerce, Mode::Test))
        );
    }

    #[test]
    fn debug_shows_nothing_of_it() {
        assert_eq!(
            format!("{:?}", Random::new(StdRng::seed_from_u64(7))),
            "Random(..)"
        );
    }
}
