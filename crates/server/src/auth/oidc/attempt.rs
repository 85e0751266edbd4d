//! Sign-in attempts: the state of a sign-in between the redirect to the provider and the redirect back.
//!
//! An attempt is stored only in a cookie of the browser that began it, so only that browser can complete it. The cookie
//! is not encrypted: it hides nothing from that browser, and changing it only makes that browser's own sign-in fail.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use tollkey_api::Secret;
use tollkey_core::Digest;
use tollkey_service::Random;

use super::super::published::distance;

/// The maximum length of [`Attempt::next`], in bytes. A whole cookie can have 4096 bytes.
const NEXT_MAX: usize = 2048;

pub struct Attempt {
    /// Returned by the provider in its redirect.
    pub(super) state: Secret,
    /// Returned by the provider in the ID token.
    pub(super) nonce: Secret,
    /// Proves to the provider that the client that exchanges the code also began the sign-in (RFC 7636).
    pub(super) verifier: Secret,
    begun_at: Timestamp,
    /// The page to open after the sign-in; may be empty.
    pub next: String,
    /// The browser's current session, which this sign-in ends. It is stored here, because the browser does not send
    /// the `SameSite=Strict` session cookie with the redirect from the provider.
    pub before: Option<Digest>,
}

impl Attempt {
    pub const LIFETIME: SignedDuration = SignedDuration::from_mins(10);

    /// Drops a `next` that is too long for the cookie.
    pub(super) fn begin(
        next: &str,
        before: Option<Digest>,
        random: &Random,
        now: Timestamp,
    ) -> Self {
        Self {
            state: Secret::new(random.secret().as_str()),
            nonce: Secret::new(random.secret().as_str()),
            verifier: Secret::new(random.secret().as_str()),
            begun_at: now,
            next: if next.len() <= NEXT_MAX {
                next.to_owned()
            } else {
                String::new()
            },
            before,
        }
    }

    /// Returns the value of the cookie.
    #[must_use]
    pub fn to_text(&self) -> Secret {
        let [state, nonce, verifier] =
            [&self.state, &self.nonce, &self.verifier].map(Secret::expose);
        let next = URL_SAFE_NO_PAD.encode(&self.next);
        let before = self
            .before
            .map_or_else(String::new, |before| before.hex().to_string());
        Secret::new(format!(
            "{state}.{nonce}.{verifier}.{}.{before}.{next}",
            self.begun_at.as_second()
        ))
    }

    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('.').collect();
        let [state, nonce, verifier, begun_at, before, next] = parts.as_slice() else {
            return None;
        };
        // Exactly the length that `begin` creates: an empty `state` must not match an empty parameter.
        let secret = |text: &&str| (text.len() == 64).then(|| Secret::new(*text));
        Some(Self {
            state: secret(state)?,
            nonce: secret(nonce)?,
            verifier: secret(verifier)?,
            begun_at: begun_at
                .parse()
                .ok()
                .and_then(|seconds| Timestamp::from_second(seconds).ok())?,
            next: String::from_utf8(URL_SAFE_NO_PAD.decode(next).ok()?).ok()?,
            before: (!before.is_empty())
                .then(|| before.parse())
                .transpose()
                .ok()?,
        })
    }

    #[must_use]
    pub fn is_of(&self, state: &str, now: Timestamp) -> bool {
        // Compares hashes, so that the duration of the comparison reveals nothing about the state.
        Digest::of_key(self.state.expose()) == Digest::of_key(state)
            && distance(now, self.begun_at) < Self::LIFETIME
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("begun_at", &self.begun_at)
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

    fn attempt(next: &str) -> Attempt {
        Attempt::begin(next, None, &Random::new(StdRng::seed_from_u64(7)), at(1000))
    }

    #[test]
    fn parsed_attempt_equals_the_original() {
        let cases = [
            ("/dashboard/keys?text=a.b;c%20d&e", None),
            ("/dashboard", Some(Digest::of_key(""))),
            ("", None),
        ];
        for (next, session) in cases {
            let attempt = || Attempt {
                before: session,
                ..attempt(next)
            };
            let (before, text) = (attempt(), attempt().to_text());
            let after = Attempt::read(text.expose()).unwrap();
            assert_eq!(after.to_text().expose(), before.to_text().expose());
            assert_eq!((after.next.as_str(), after.before), (next, session));
            // Characters that RFC 6265, section 4.1.1 allows and that cookie parsers do not decode.
            assert!(
                text.expose()
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            );
        }
        assert_eq!(attempt(&"n".repeat(2049)).next, "");
        let longest = Attempt {
            before: Some(Digest::of_key("")),
            ..attempt(&"n".repeat(2048))
        };
        assert!(longest.to_text().expose().len() < 3500);
        let three = attempt("");
        let [state, nonce, verifier] =
            [&three.state, &three.nonce, &three.verifier].map(Secret::expose);
        assert!(state != nonce && nonce != verifier && state != verifier);
    }

    #[test]
    fn malformed_attempt_is_rejected() {
        let good = attempt("/dashboard").to_text();
        let good = good.expose();
        let malformed = [
            good.replace(".1000.", ".x."),
            good.replace(".1000..", ".1000.x."),
            format!("{good}.x"),
        ];
        for text in [
            "",
            ".....",
            "a.b.c.1000..",
            &good[1..],
            &malformed[0],
            &malformed[1],
            &malformed[2],
        ] {
            assert!(Attempt::read(text).is_none(), "{text}");
        }
        let not_base64 = good.rsplit_once('.').unwrap().0;
        assert!(Attempt::read(&format!("{not_base64}.=")).is_none());
        assert!(
            Attempt::read(&format!("{not_base64}._w")).is_none(),
            "not UTF-8"
        );
    }

    #[test]
    fn attempt_matches_only_its_state_for_ten_minutes() {
        let attempt = attempt("");
        let state = attempt.state.expose();
        for (state, now, matches) in [
            (state, 1000, true),
            (state, 1599, true),
            (state, 1600, false),
            (state, 401, true),
            (state, 400, false),
            ("", 1000, false),
            (&state[1..], 1000, false),
            (attempt.nonce.expose(), 1000, false),
        ] {
            assert_eq!(attempt.is_of(state, at(now)), matches, "at {now}");
        }
        assert_eq!(
            format!("{attempt:?}"),
            "Attempt { begun_at: 1970-01-01T00:16:40Z, .. }"
        );
    }
}
