//! A sign-in under way: what is kept between sending somebody to the provider and their coming back.
//!
//! It stays in the browser that began it, and nowhere else: who has its cookie is who was sent. Nothing in it is to be hidden
//! from that browser, and a change of it only spoils its owner's own sign-in; so it is not sealed.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use tollkey_api::Secret;
use tollkey_core::Digest;
use tollkey_service::Random;

use super::super::published::distance;

/// The longest page to go on to, in bytes: a cookie has 4096.
const NEXT_MAX: usize = 2048;

/// A sign-in under way.
pub struct Attempt {
    /// Comes back from the provider with whoever was sent there.
    pub(super) state: Secret,
    /// Comes back inside the ID token.
    pub(super) nonce: Secret,
    /// Shows the provider that who exchanges the code is who began (RFC 7636).
    pub(super) verifier: Secret,
    begun_at: Timestamp,
    /// Where to go on afterwards.
    pub next: String,
    /// The session that the browser had, which ends with this sign-in: its cookie does not come back from another site.
    pub before: Option<Digest>,
}

impl Attempt {
    /// How long it takes at most.
    pub const LASTS: SignedDuration = SignedDuration::from_mins(10);

    /// One that begins now. A page too long to be kept is forgotten.
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

    /// As the browser keeps it.
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

    /// What a browser has kept; `None` for what is no attempt.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('.').collect();
        let [state, nonce, verifier, begun_at, before, next] = parts.as_slice() else {
            return None;
        };
        // As long as they were made: nobody signs in with an empty state.
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

    /// Whether it is the one that somebody comes back from, in time.
    #[must_use]
    pub fn is_of(&self, state: &str, now: Timestamp) -> bool {
        // By digest: how long the comparison takes tells nothing.
        Digest::of(self.state.expose()) == Digest::of(state)
            && distance(now, self.begun_at) < Self::LASTS
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
    fn it_is_read_as_it_was_written() {
        let cases = [
            ("/dashboard/keys?text=a.b;c%20d&e", None),
            ("/dashboard", Some(Digest::of(""))),
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
            // RFC 6265, section 4.1.1, and nothing that a reader of cookies would decode.
            assert!(
                text.expose()
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            );
        }
        assert_eq!(attempt(&"n".repeat(2049)).next, "");
        let longest = Attempt {
            before: Some(Digest::of("")),
            ..attempt(&"n".repeat(2048))
        };
        assert!(longest.to_text().expose().len() < 3500);
        let three = attempt("");
        let [state, nonce, verifier] =
            [&three.state, &three.nonce, &three.verifier].map(Secret::expose);
        assert!(state != nonce && nonce != verifier && state != verifier);
    }

    #[test]
    fn what_is_no_attempt_is_none() {
        let good = attempt("/dashboard").to_text();
        let good = good.expose();
        let odd = [
            good.replace(".1000.", ".x."),
            good.replace(".1000..", ".1000.x."),
            format!("{good}.x"),
        ];
        for text in [
            "",
            ".....",
            "a.b.c.1000..",
            &good[1..],
            &odd[0],
            &odd[1],
            &odd[2],
        ] {
            assert!(Attempt::read(text).is_none(), "{text}");
        }
        let not_base64 = good.rsplit_once('.').unwrap().0;
        assert!(Attempt::read(&format!("{not_base64}.=")).is_none());
        assert!(
            Attempt::read(&format!("{not_base64}._w")).is_none(),
            "no UTF-8"
        );
    }

    #[test]
    fn it_is_of_one_state_and_lasts_ten_minutes() {
        let attempt = attempt("");
        let state = attempt.state.expose();
        for (state, now, is_so) in [
            (state, 1000, true),
            (state, 1599, true),
            (state, 1600, false),
            (state, 401, true),
            (state, 400, false),
            ("", 1000, false),
            (&state[1..], 1000, false),
            (attempt.nonce.expose(), 1000, false),
        ] {
            assert_eq!(attempt.is_of(state, at(now)), is_so, "at {now}");
        }
        assert_eq!(
            format!("{attempt:?}"),
            "Attempt { begun_at: 1970-01-01T00:16:40Z, .. }"
        );
    }
}
