//! The links that sign in to the dashboard in development mode.
//!
//! The server prints one when it starts, and `tollkey dashboard-link` prints more. A link contains a code that is
//! signed with the secret of development mode, which is in a file next to the database.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use tollkey_api::Secret;
use tollkey_core::{
    AccountId, Digest,
    session::{SignIn, SignInSettingsHash},
};
use tollkey_service::Random;

pub const LINK_LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// Verifies sign-in links. Each signs in once.
pub struct SignInLinks {
    secret: Secret,
    /// Links from before this server started are rejected: an earlier server may have accepted them.
    began_at: i64,
    /// The hashes of the used codes, with the second in which each expires.
    used: Mutex<HashMap<Digest, i64>>,
    account_id: AccountId,
    subject: String,
}

/// The maximum number of links that one server accepts within [`LINK_LIFETIME`].
const LINKS_MAX: usize = 1000;

impl SignInLinks {
    /// Creates the verifier of a server that starts now. The links sign in an operator who manages this account.
    #[must_use]
    pub fn new(secret: Secret, account_id: AccountId, subject: &str, now: Timestamp) -> Self {
        Self {
            secret,
            began_at: now.as_second(),
            used: Mutex::default(),
            account_id,
            subject: subject.to_owned(),
        }
    }

    #[must_use]
    pub fn code(secret: &Secret, random: &Random, now: Timestamp) -> Secret {
        let signed = format!("{}.{}", now.as_second(), random.secret().as_str());
        let signature = hmac::sign(&Self::key(secret), &Self::message(&signed));
        Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn key(secret: &Secret) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())
    }

    /// Returns the signed text. The same secret signs management tokens, whose signed text has no space.
    fn message(signed: &str) -> Vec<u8> {
        format!("tollkey dashboard link {signed}").into_bytes()
    }

    /// Returns the hash of the settings that a sign-in with a link depends on: only development mode.
    #[must_use]
    pub fn settings() -> SignInSettingsHash {
        SignInSettingsHash::new("link", &[])
    }

    /// Returns when a valid code expires, in seconds; `None` if it is invalid.
    fn expiration(&self, code: &str, now: Timestamp) -> Option<i64> {
        let (signed, signature) = code.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&Self::key(&self.secret), &Self::message(signed), &signature).ok()?;
        let created_at: i64 = signed.split_once('.')?.0.parse().ok()?;
        let expires_at = created_at.checked_add(LINK_LIFETIME.as_secs())?;
        (created_at >= self.began_at && now.as_second() < expires_at).then_some(expires_at)
    }

    #[must_use]
    pub fn is_valid(&self, code: &str, now: Timestamp) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.expiration(code, now).is_some() && !used.contains_key(&Digest::of_key(code))
    }

    /// Uses up the code. `None` if it is invalid or used, or too many were used within [`LINK_LIFETIME`].
    pub fn follow(&self, code: &str, now: Timestamp) -> Option<SignIn> {
        let expires_at = self.expiration(code, now)?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, expires_at| now.as_second() < *expires_at);
        if used.len() >= LINKS_MAX || used.insert(Digest::of_key(code), expires_at).is_some() {
            return None;
        }
        Some(SignIn {
            account_id: Some(self.account_id.clone()),
            subject: self.subject.clone(),
            is_operator: true,
            settings: Self::settings(),
            proof_expires_at: None,
        })
    }
}

impl fmt::Debug for SignInLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignInLinks")
            .field("began_at", &self.began_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn secret() -> Secret {
        Secret::new("s".repeat(32))
    }

    fn links() -> SignInLinks {
        let account = "acme".parse().unwrap();
        SignInLinks::new(secret(), account, "developer", at(1000))
    }

    fn random() -> Random {
        Random::new(StdRng::seed_from_u64(7))
    }

    #[test]
    fn link_signs_in_once_within_five_minutes() {
        let (links, random) = (links(), random());
        let code = |second| SignInLinks::code(&secret(), &random, at(second));
        let follows = |code: &Secret, second| links.follow(code.expose(), at(second)).is_some();
        let is_valid = |code: &Secret, second| links.is_valid(code.expose(), at(second));
        let (first, second, early) = (code(1000), code(1100), code(999));
        assert!(follows(&first, 1299));
        assert!(!follows(&first, 1299), "used before");
        assert!(!is_valid(&first, 1299) && is_valid(&second, 1299));
        assert!(!follows(&second, 1400), "expired");
        assert!(!follows(&early, 1000), "from before the server started");
        let again = code(1100);
        assert!(is_valid(&again, 1399) && is_valid(&again, 1399));
        assert!(follows(&again, 1399));
    }

    #[test]
    fn forged_link_is_rejected() {
        let (links, random) = (links(), random());
        let good = SignInLinks::code(&secret(), &random, at(1000));
        let (signed, signature) = good.expose().rsplit_once('.').unwrap();
        let later = signed.replacen("1000", "1200", 1);
        let other_secret = SignInLinks::code(&Secret::new("t".repeat(32)), &random, at(1000));
        for code in [
            "",
            ".",
            "1000..",
            signed,
            &format!("{later}.{signature}"),
            &format!("{signed}."),
            other_secret.expose(),
        ] {
            assert!(!links.is_valid(code, at(1000)), "{code}");
            assert!(links.follow(code, at(1000)).is_none(), "{code}");
        }
        assert!(links.follow(good.expose(), at(1000)).is_some());
    }

    #[test]
    fn used_links_are_stored_until_they_expire_and_limited() {
        let (links, random) = (links(), random());
        let follows_new = |created, now| {
            let code = SignInLinks::code(&secret(), &random, at(created));
            links.follow(code.expose(), at(now)).is_some()
        };
        for _ in 0..LINKS_MAX {
            assert!(follows_new(1000, 1000));
        }
        assert!(!follows_new(1001, 1299));
        assert!(follows_new(1299, 1300));
        assert_eq!(links.used.lock().unwrap().len(), 1);
    }
}
