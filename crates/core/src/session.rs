//! Sessions of the dashboard: who is signed in, and until when.

use jiff::{SignedDuration, Timestamp};

use crate::{AccountId, Digest};

/// Somebody who is signed in to the dashboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The account that is managed. Only an operator has none at first: they choose one, and can choose again.
    pub account_id: Option<AccountId>,
    /// Who signed in, as their identity provider or token calls them.
    pub subject: String,
    /// Whether they may manage every account.
    pub is_operator: bool,
    /// What it rests on ([`grounds`], [`bound`] to the token in its cookie). Where that no longer holds, nor does the session.
    pub grounds: Digest,
    /// When they signed in.
    pub created_at: Timestamp,
    /// When they were last seen, to within [`Session::SEEN_EVERY`].
    pub last_seen_at: Timestamp,
    /// When they have to sign in again whatever happens.
    pub ends_at: Timestamp,
}

/// What a session rests on: a digest of the way in, and of each setting that has to stay what it is for the session to hold.
#[must_use]
pub fn grounds(way: &str, settings: &[Option<&str>]) -> Digest {
    let mut all = way.to_owned();
    for setting in settings {
        // Each with its length, so that no two lists read the same.
        match setting {
            Some(setting) => all.push_str(&format!(" {}:{setting}", setting.len())),
            None => all.push_str(" -"),
        }
    }
    Digest::of(&all)
}

/// Grounds as they are kept with a session: together with the token in its cookie, which is random and not kept. By itself
/// the digest of a secret would let whoever reads the database find out whether they guess it.
#[must_use]
pub fn bound(grounds: &Digest, token: &str) -> Digest {
    Digest::of(&format!("{token} {}", grounds.hex()))
}

impl Session {
    /// The longest session.
    pub const LONGEST: SignedDuration = SignedDuration::from_hours(12);
    /// The longest time in which nothing is asked for.
    pub const IDLE: SignedDuration = SignedDuration::from_hours(1);
    /// How exactly it is known when somebody was last seen: a page is no reason to write each time.
    pub const SEEN_EVERY: SignedDuration = SignedDuration::from_mins(1);

    /// A session that begins now, and ends no later than what proved who it is.
    #[must_use]
    pub fn begin(
        account_id: Option<AccountId>,
        subject: String,
        is_operator: bool,
        grounds: Digest,
        now: Timestamp,
        proof_ends: Option<Timestamp>,
    ) -> Self {
        let longest = now.saturating_add(Self::LONGEST).unwrap_or(Timestamp::MAX);
        let ends_at = proof_ends.map_or(longest, |end| end.min(longest));
        Self {
            account_id,
            subject,
            is_operator,
            grounds,
            created_at: now,
            last_seen_at: now,
            ends_at,
        }
    }

    /// Whether it is over: its time has come, or nothing was asked for too long.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.ends_at || now.duration_since(self.last_seen_at) >= Self::IDLE
    }

    /// Whether it is time to write down that they were seen.
    #[must_use]
    pub fn is_seen_again(&self, now: Timestamp) -> bool {
        now.duration_since(self.last_seen_at) >= Self::SEEN_EVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    #[test]
    fn a_session_ends_with_its_time_with_its_proof_and_when_nothing_is_asked_for() {
        let session = |proof_ends| {
            Session::begin(
                None,
                "ada".to_owned(),
                true,
                Digest::of(""),
                at(0),
                proof_ends,
            )
        };
        let seen = |minutes, session: Session| Session {
            last_seen_at: at(minutes),
            ..session
        };
        for (session, now, over) in [
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
            assert_eq!(session.is_over(at(now)), over, "{session:?} at {now}");
        }
    }

    #[test]
    fn grounds_are_others_when_the_way_or_a_setting_is_another() {
        let all = [
            grounds("link", &[]),
            grounds("token", &[]),
            grounds("token", &[None]),
            grounds("token", &[Some("")]),
            grounds("token", &[Some("a"), None]),
            grounds("token", &[None, Some("a")]),
            grounds("token", &[Some("a"), Some("b")]),
            grounds("token", &[Some("a 1:b")]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(grounds("token", &[Some("a"), None]), all[4]);
        assert!(
            bound(&all[0], "one") != bound(&all[0], "two")
                && bound(&all[0], "one") != bound(&all[1], "one")
        );
    }

    #[test]
    fn being_seen_is_written_down_once_a_minute() {
        let session = Session::begin(None, "ada".to_owned(), true, Digest::of(""), at(0), None);
        assert!(!session.is_seen_again(Timestamp::from_second(59).unwrap()));
        assert!(session.is_seen_again(at(1)));
        assert!(
            !session.is_seen_again(at(-5)),
            "a clock that was set back is no reason to write"
        );
    }
}
