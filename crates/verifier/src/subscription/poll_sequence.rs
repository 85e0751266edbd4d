//! The sequence of polls that a subscriber sends, with their IDs and usage.

use std::{collections::VecDeque, time::Duration};

use rand::{rand_core::UnwrapErr, rngs::SysRng};
use tollkey_core::Usage;

use crate::source::{PollId, PollIds};

/// The minimum number of previous polls that are named, even if they ended long ago.
const LEAST_PREVIOUS: usize = 16;

/// The polls that a subscriber sends under one ID. Times are those of the verifier's clock.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct PollSequence {
    /// The polls that had a response and the times of the responses, the newest first.
    previous: VecDeque<(PollId, Duration)>,
    begun_at: Option<Duration>,
    longest_lease: Duration,
    /// The poll that has no response so far.
    current: Option<PollId>,
    /// The usage of the current poll, or else of the next one.
    usage: Vec<Usage>,
}

impl PollSequence {
    pub(crate) fn usage(&self) -> &[Usage] {
        &self.usage
    }

    /// Whether the current poll was sent before and had no response.
    pub(crate) fn is_repeated(&self) -> bool {
        self.current.is_some()
    }

    /// Returns how long to wait at `now` before the next poll, so that [`PollIds::PREVIOUS`] polls take at least a lease and
    /// an eighth: polls start at least 6.6 ms apart with a lease of 3 s.
    pub(crate) fn pause(&self, now: Duration) -> Duration {
        let interval = (self.longest_lease + self.longest_lease / 8) / PollIds::PREVIOUS as u32;
        self.begun_at.map_or(Duration::ZERO, |begun_at| {
            (begun_at + interval).saturating_sub(now)
        })
    }

    /// Returns the IDs of the poll to send at `now`: the current poll again, or else a new one with the usage that `usage`
    /// returns.
    pub(crate) fn begin(&mut self, now: Duration, usage: impl FnOnce() -> Vec<Usage>) -> PollIds {
        if self.usage.is_empty() && self.current.is_none() {
            self.usage = usage();
        }
        self.begun_at = Some(now);
        let id = *self
            .current
            .get_or_insert_with(|| PollId::new(&mut UnwrapErr(SysRng)));
        PollIds {
            id,
            previous: self.previous.iter().map(|(id, _)| *id).collect(),
        }
    }

    /// Records that the current poll had a response at `now` with this lease. Its usage is counted. Polls whose response came
    /// more than two leases ago are not named any more, because no lease from them can be valid.
    pub(crate) fn end(&mut self, now: Duration, lease: Duration) {
        self.usage.clear();
        self.longest_lease = self.longest_lease.max(lease);
        if let Some(id) = self.current.take() {
            self.previous.truncate(PollIds::PREVIOUS - 1);
            self.previous.push_front((id, now));
        }
        let is_old = |ended_at: Duration| now.saturating_sub(ended_at) > 2 * self.longest_lease;
        while self.previous.len() > LEAST_PREVIOUS
            && self.previous.back().is_some_and(|(_, at)| is_old(*at))
        {
            self.previous.pop_back();
        }
    }

    /// Starts a new sequence under another ID. The next poll has the usage of the current one. It counts twice if the upstream
    /// has counted it already, but dropping it could lose usage.
    pub(crate) fn restart(&mut self) {
        self.previous.clear();
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use tollkey_core::{Seq, VerifierId};

    use super::*;
    use crate::{
        clock::{margin, nanos},
        subscription::subscribers::{Arrival, SharedId, Subscribers},
    };

    const LEASE: Duration = Duration::from_secs(3);
    const ID: VerifierId = VerifierId::from_bytes([7; 16]);

    #[test]
    fn poll_without_a_response_is_repeated_unchanged() {
        let usage = |count| {
            let key_id = tollkey_core::KeyId::from_bytes([1; 16]);
            vec![Usage {
                key_id,
                day: 1,
                outcome: None,
                count,
                last_used_at: None,
            }]
        };
        let now = Duration::from_secs(100);
        let mut polls = PollSequence::default();
        let first = polls.begin(now, || usage(1));
        assert_eq!(
            (polls.begin(now, || usage(2)), polls.usage[0].count),
            (first.clone(), 1)
        );
        polls.end(now, LEASE);
        let second = polls.begin(now, || usage(3));
        assert_eq!(
            (second.previous.as_slice(), polls.usage[0].count),
            ([first.id].as_slice(), 3)
        );
        polls.restart();
        let under_another_id = polls.begin(now, || usage(4));
        assert!(under_another_id.id != second.id && under_another_id.previous.is_empty());
        assert_eq!(polls.usage[0].count, 3, "sent again, not dropped");
        // A poll without usage is repeated without usage as well.
        polls.end(now, LEASE);
        let empty = polls.begin(now, Vec::new);
        assert_eq!(
            (polls.begin(now, || usage(5)), polls.usage.len()),
            (empty, 0)
        );
    }

    /// Sends `count` polls at this interval, each with an immediate response. Returns their IDs, the newest first.
    fn poll_every(interval: Duration, count: u32, polls: &mut PollSequence) -> Vec<PollId> {
        let poll = |n| {
            let id = polls.begin(n * interval, Vec::new).id;
            polls.end(n * interval, LEASE);
            id
        };
        let mut sent: Vec<_> = (0..count).map(poll).collect();
        sent.reverse();
        sent
    }

    #[test]
    fn polls_of_two_leases_are_named_within_bounds() {
        // Polls per second, and how many of them are named.
        for (per_second, named) in [
            (1, LEAST_PREVIOUS),
            (20, 121),
            (50, 301),
            (200, PollIds::PREVIOUS),
        ] {
            let mut polls = PollSequence::default();
            let sent = poll_every(Duration::from_secs(1) / per_second, 2000, &mut polls);
            let next = polls.begin(Duration::from_secs(2000), Vec::new);
            assert_eq!(next.previous, sent[..named], "{per_second} polls a second");
        }
    }

    #[test]
    fn polls_pause_so_that_those_of_a_lease_can_be_named() {
        let mut polls = PollSequence::default();
        assert_eq!(polls.pause(Duration::ZERO), Duration::ZERO);
        let mut now = Duration::from_secs(100);
        for _ in 0..2000 {
            now += polls.pause(now);
            assert_eq!(polls.pause(now), Duration::ZERO);
            polls.begin(now, Vec::new);
            polls.end(now, LEASE);
        }
        assert!(polls.previous.len() <= PollIds::PREVIOUS);
        let (_, oldest) = polls.previous[PollIds::PREVIOUS - 1];
        assert!(now - oldest > LEASE + margin(LEASE), "{:?}", now - oldest);
        let pause = polls.pause(now);
        assert!(
            (Duration::from_millis(6)..Duration::from_millis(7)).contains(&pause),
            "{pause:?}"
        );
        assert_eq!(
            polls.pause(now + pause),
            Duration::ZERO,
            "an isolated change is acknowledged immediately"
        );
    }

    /// Replicas behind a load balancer that picks a random replica for each request.
    struct Balanced {
        replicas: Vec<Subscribers>,
        /// One in `to_first` requests goes to the first replica; the others are spread evenly.
        to_first: usize,
        state: u64,
        acknowledged: i64,
    }

    impl Balanced {
        fn new(replicas: usize, to_first: usize, seed: u32) -> Self {
            let replicas = (0..replicas)
                .map(|_| Subscribers::new(nanos(margin(LEASE))))
                .collect();
            Self {
                replicas,
                to_first,
                state: seed.into(),
                acknowledged: 0,
            }
        }

        /// Returns a number below `end` from a linear congruential generator.
        fn random(&mut self, end: usize) -> usize {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.state >> 33) as usize % end
        }

        /// Sends one poll, whose response may be lost.
        fn poll(&mut self, polls: &mut PollSequence, now: Duration) -> Result<(), SharedId> {
            let (now, has_response) = (nanos(now), self.random(20) > 0);
            let is_first = self.random(self.to_first) == 0;
            let at = if is_first {
                0
            } else {
                1 + self.random(self.replicas.len() - 1)
            };
            let replica = &mut self.replicas[at];
            let ids = polls.begin(Duration::from_nanos(now), Vec::new);
            let arrival = replica.arrive(ID, Some(&ids), false, now)?;
            if arrival == Arrival::Newest {
                self.acknowledged += 1;
                replica
                    .grant(ID, Seq(self.acknowledged), now + nanos(LEASE), now)
                    .unwrap();
            }
            if has_response {
                polls.end(Duration::from_nanos(now), LEASE);
            }
            Ok(())
        }
    }

    #[test]
    fn subscriber_behind_a_balancer_is_not_taken_for_a_clone() {
        // Evenly, and with one replica that rarely gets a request: the longer ago its last poll is, the more polls have to
        // be named.
        for (replicas, to_first) in [(2, 2), (3, 3), (5, 5), (10, 10), (2, 200), (3, 600)] {
            // A subscriber that polls as fast as it may sends about 150 polls a second.
            for per_second in [1, 10, 20, 50, 100, 150, 1000] {
                let mut balanced = Balanced::new(replicas, to_first, per_second);
                let (mut polls, mut now) = (PollSequence::default(), Duration::from_secs(100));
                while now < Duration::from_secs(130) {
                    let polled = balanced.poll(&mut polls, now);
                    assert_eq!(
                        polled,
                        Ok(()),
                        "{replicas} replicas, {per_second} polls a second, at {now:?}"
                    );
                    now += (Duration::from_secs(1) / per_second).max(polls.pause(now));
                }
            }
        }
    }

    #[test]
    fn clone_behind_a_balancer_is_detected_within_a_lease() {
        for replicas in [1, 3, 10] {
            for per_second in [20, 50, 150] {
                let mut balanced = Balanced::new(replicas, replicas, per_second);
                let interval = Duration::from_secs(1) / per_second;
                let (mut polls, mut now) = (PollSequence::default(), Duration::from_secs(100));
                for _ in 0..5 * per_second {
                    balanced.poll(&mut polls, now).unwrap();
                    now += interval;
                }
                let (mut clone, cloned_at) = (polls.clone(), now);
                while balanced.poll(&mut polls, now).is_ok()
                    && balanced.poll(&mut clone, now).is_ok()
                {
                    now += interval;
                    assert!(
                        now - cloned_at < LEASE,
                        "{replicas} replicas, {per_second} polls a second"
                    );
                }
            }
        }
    }
}
