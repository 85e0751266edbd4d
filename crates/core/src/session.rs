//! Sessions of the dashboard.

use jiff::{SignedDuration, Timestamp};

use crate::{AccountId, Digest};

/// A session of the dashboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The account that is managed. Only an operator's session can have none, until the operator chooses one.
    pub account_id: Option<AccountId>,
    /// The name of the person at the identity provider or in the management token (`sub`).
    pub subject: String,
    /// Whether the person can manage every account.
    pub is_operator: bool,
    /// The method and the settings of the sign-in, hashed with the session's token: [`SignInSettingsHash::with_token`].
    pub sign_in_settings: Digest,
    /// When the session began.
    pub created_at: Timestamp,
    /// When the last request was made, to within [`Session::LAST_SEEN_INTERVAL`].
    pub last_seen_at: Timestamp,
    /// When the session expires at the latest.
    pub ends_at: Timestamp,
}

/// A sign-in: a person whose identity was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// The account that the person manages; `None` for an operator who has not chosen one.
    pub account_id: Option<AccountId>,
    /// The name of the person at the identity provider or in the management token (`sub`).
    pub subject: String,
    /// Whether the person can manage every account.
    pub is_operator: bool,
    /// The method that verified the identity.
    pub settings: SignInSettingsHash,
    /// When the proof of the identity expires, if the session must not outlive it.
    pub proof_expires_at: Option<Timestamp>,
}

/// The SHA-256 of a sign-in method and of each setting that must not change while its sessions are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignInSettingsHash(Digest);

impl SignInSettingsHash {
    /// Hashes a method and its settings.
    #[must_use]
    pub fn new(method: &str, settings: &[Option<&str>]) -> Self {
        let mut all = method.to_owned();
        for setting in settings {
            // The length makes the text of each list unique.
            match setting {
                Some(setting) => all.push_str(&format!(" {}:{setting}", setting.len())),
                None => all.push_str(" -"),
            }
        }
        Self(Digest::of_key(&all))
    }

    /// Returns the hash that is stored with a session. It includes the token in the session's cookie, which is random
    /// and not stored, because the settings contain secrets: without the token, a reader of the database could test
    /// guesses.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Digest {
        Digest::of_key(&format!("{token} {}", self.0.hex()))
    }
}

impl Session {
    /// The maximum length of a session.
    pub const MAX_AGE: SignedDuration = SignedDuration::from_hours(12);
    /// The time without a request after which a session expires.
    pub const IDLE: SignedDuration = SignedDuration::from_hours(1);
    /// The interval at which the time of the last request is stored.
    pub const LAST_SEEN_INTERVAL: SignedDuration = SignedDuration::from_mins(1);

    /// Begins a session with this token in its cookie.
    #[must_use]
    pub fn begin(sign_in: SignIn, token: &str, now: Timestamp) -> Self {
        let longest = now.saturating_add(Self::MAX_AGE).unwrap_or(Timestamp::MAX);
        Self {
            account_id: sign_in.account_id,
            subject: sign_in.subject,
            is_operator: sign_in.is_operator,
            sign_in_settings: sign_in.settings.with_token(token),
            created_at: now,
            last_seen_at: now,
            ends_at: sign_in
                .proof_expires_at
                .map_or(longest, |end| end.min(longest)),
        }
    }

    /// Whether the session, which has this token, began with a sign-in with these settings.
    #[must_use]
    pub fn began_with(&self, settings: &SignInSettingsHash, token: &str) -> bool {
        settings.with_token(token) == self.sign_in_settings
    }

    /// Whether the session has expired, by its end or because it had no request for [`Session::IDLE`].
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.ends_at || now.duration_since(self.last_seen_at) >= Self::IDLE
    }

    /// Whether the time of the last request must be stored again.
    #[must_use]
    pub fn needs_last_seen_update(&self, now: Timestamp) -> bool {
        now.duration_since(self.last_seen_at) >= Self::LAST_SEEN_INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn operator(proof_expires_at: Option<Timestamp>) -> SignIn {
        SignIn {
            account_id: None,
            subject: "ada".to_owned(),
            is_operator: true,
            settings: SignInSettingsHash::new("test", &[]),
            proof_expires_at,
        }
    }

    #[test]
    fn session_expires_at_its_end_with_its_proof_or_when_idle() {
        let session = |proof_expires_at| Session::begin(operator(proof_expires_at), "", at(0));
        let seen = |minutes, session: Session| Session {
            last_seen_at: at(minutes),
            ..session
        };
        for (session, now, expired) in [
            (session(None), 0, false),
            (session(None), 59, false),
            (session(None), 60, true),
            (seen(30, session(None)), 89, false),
            (seen(30, session(None)), 90, true),
            (seen(719, session(None)), 719, false),
            (seen(719, session(None)), 720, true),
            (session(Some(at(10))), 9, false),
            (session(Some(at(10))), 10, true),
            (seen(719, session(Some(at(10_000)))), 720, true),
        ] {
            assert_eq!(session.is_expired(at(now)), expired, "{session:?} at {now}");
        }
    }

    #[test]
    fn settings_hash_depends_on_method_settings_and_token() {
        let all = [
            SignInSettingsHash::new("link", &[]),
            SignInSettingsHash::new("token", &[]),
            SignInSettingsHash::new("token", &[None]),
            SignInSettingsHash::new("token", &[Some("")]),
            SignInSettingsHash::new("token", &[Some("a"), None]),
            SignInSettingsHash::new("token", &[None, Some("a")]),
            SignInSettingsHash::new("token", &[Some("a"), Some("b")]),
            SignInSettingsHash::new("token", &[Some("a 1:b")]),
        ];
        for (i, hash) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != hash), "{i}");
        }
        assert_eq!(SignInSettingsHash::new("token", &[Some("a"), None]), all[4]);
        assert!(
            all[0].with_token("one") != all[0].with_token("two")
                && all[0].with_token("one") != all[1].with_token("one")
        );
    }

    #[test]
    fn last_request_is_stored_once_a_minute() {
        let session = Session::begin(operator(None), "", at(0));
        assert!(!session.needs_last_seen_update(Timestamp::from_second(59).unwrap()));
        assert!(session.needs_last_seen_update(at(1)));
        assert!(
            !session.needs_last_seen_update(at(-5)),
            "a clock that was set back does not cause a write"
        );
    }
}
