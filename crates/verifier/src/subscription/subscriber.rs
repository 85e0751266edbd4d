//! Subscribing: keeping a lease that nests in another verifier's.
//!
//! The rules that must not be loosened:
//!
//! - A lease is taken only after everything that came with it has been applied, and counts from before it was asked
//!   for.
//! - What is acknowledged has been forgotten already.
//! - A subscriber that has missed too much, or is told of another history, forgets everything.
//! - A poll has a new random ID, from the operating system and not from a generator that a snapshot of the machine would
//!   copy. A poll without a response is repeated with the same ID and the same usage.
//! - A poll names every poll of which a replica may still hold the lease to be valid. A replica that the subscriber
//!   comes back to would take it for another process otherwise.
//! - A subscriber whose ID another process uses ends its lease and forgets everything before it takes a new ID.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{rand_core::UnwrapErr, rngs::SysRng};
use tokio::time::{Instant, sleep, timeout_at};
use tollkey_core::{Clock, Position, Usage, VerifierId};

use crate::{
    clock::nanos,
    lease::margin,
    source::{Leave, News, Poll, PollError, PollId, PollIds, Upstream},
    subscription::poll_watch::PollWatch,
    verifier::{Settings, Verifier},
};

/// How long an answer may take beyond what it was asked to wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a poll that brought no lease: at first this long, then twice as long each time,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// but no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// How long a subscriber that stops waits for the response to a poll that takes usage along. With leases of the default
/// length a poll waits for a second at most.
const LAST_POLL: Duration = Duration::from_millis(1500);
/// For how long a subscriber that stops tries to end its subscription, since the last response. With [`LAST_POLL`] less
/// than the three seconds that a guard allows for both.
const LEAVE: Duration = Duration::from_millis(1400);
/// The longest pause between two attempts.
const LONGEST_LEAVE_PAUSE: Duration = Duration::from_millis(200);

/// How many previous polls are named however long ago they ended.
const LEAST_PREVIOUS: usize = 16;

/// The polls that a subscriber sends under one ID. Times are those of the verifier's clock.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct PollSequence {
    /// The polls that had a response, the newest first, and when it came.
    previous: VecDeque<(PollId, Duration)>,
    /// When the last poll was sent.
    begun_at: Option<Duration>,
    /// The longest lease that was ever granted.
    longest_lease: Duration,
    /// The poll that has none so far.
    current: Option<PollId>,
    /// What that poll, or else the next one, takes along.
    usage: Vec<Usage>,
}

impl PollSequence {
    /// How long to wait at `now` before the next poll is sent, so that [`PollIds::PREVIOUS`] polls take at least a lease
    /// and an eighth: 6.6 ms between two of them with a lease of 3 s. Zero after a longer time without a poll.
    fn pause(&self, now: Duration) -> Duration {
        let interval = (self.longest_lease + self.longest_lease / 8) / PollIds::PREVIOUS as u32;
        self.begun_at.map_or(Duration::ZERO, |begun_at| {
            (begun_at + interval).saturating_sub(now)
        })
    }

    /// The poll to send at `now`: the current one again, or else a new one that takes along what `usage` returns.
    fn begin(&mut self, now: Duration, usage: impl FnOnce() -> Vec<Usage>) -> PollIds {
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

    /// The current poll had a response at `now`, which granted this lease: its usage is counted. Polls that had theirs more
    /// than two leases ago are named no more, because no lease that came with them can be valid.
    fn end(&mut self, now: Duration, lease: Duration) {
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

    /// The next poll is the first one under another ID. It takes along what the current one was to: if that one was
    /// repeated, its usage may have been counted already, and then it counts twice. Dropping it could lose usage.
    fn restart(&mut self) {
        self.previous.clear();
        self.current = None;
    }
}

impl<S: Upstream> Verifier<S> {
    /// A verifier that remembers nothing yet and asks `source` for everything, until [`Verifier::subscribe`] runs and
    /// has got it a lease. `id` must be new for each start of a process, and known to nobody else. If another process
    /// uses it as well, as after the machine was cloned, the subscriber takes a new one: [`Verifier::id`].
    #[must_use]
    pub fn subscriber(
        id: VerifierId,
        source: S,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Self {
        let watch = PollWatch::subscriber(clock.elapsed());
        Self::with(
            id,
            source,
            clock,
            settings,
            watch,
            PATIENCE,
            Position::default(),
        )
    }

    /// Keeps the subscription. While the upstream does not respond it keeps trying; the lease then ends by itself. While
    /// this runs, another call on a clone waits.
    ///
    /// When `shutdown` ends, keys are not answered from the cache any more, and the subscription ends: it waits up to 1.5 s
    /// for the response to a poll that takes usage along, sends the remaining usage, and gives up when it has had no
    /// response for another 1.4 s.
    pub async fn subscribe(self, shutdown: impl Future<Output = ()>) {
        let inner = &*self.0;
        let mut shutdown = pin!(shutdown);
        let mut polls = tokio::select! {
            polls = inner.polls.lock() => polls,
            () = &mut shutdown => return,
        };
        let mut connected = true;
        let mut wait = Duration::ZERO; // nobody waits for news without a lease
        let mut pause = FIRST_PAUSE;
        while !inner.memory.is_stopped() {
            tokio::select! {
                () = &mut shutdown => break,
                () = sleep(polls.pause(inner.clock.elapsed())) => {}
            }
            let poll = self.next_poll(&mut polls, wait);
            let has_usage = !poll.usage.is_empty();
            let mut polling = pin!(self.send(&mut polls, poll));
            let polled = tokio::select! {
                () = &mut shutdown => {
                    inner.memory.stop();
                    // A replica counts this usage. If another one ended the subscription, it would count it again.
                    if has_usage {
                        let _ = inner.within(LAST_POLL, polling).await;
                    }
                    break;
                }
                polled = &mut polling => polled,
            };
            if polled.is_ok() != connected {
                connected = polled.is_ok();
                if connected {
                    tracing::info!("subscribed again; keys are answered from memory");
                } else {
                    tracing::warn!(
                        "the subscription does not answer; when the lease ends, every verification asks"
                    );
                }
            }
            wait = match polled {
                Ok(News { lease, .. }) if !lease.is_zero() => {
                    pause = FIRST_PAUSE;
                    lease / 3
                }
                // More of the log is waiting.
                Ok(News {
                    changes: Some(changes),
                    ..
                }) if !changes.is_empty() => Duration::ZERO,
                Ok(_) | Err(_) => {
                    tokio::select! {
                        () = &mut shutdown => break,
                        () = sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    Duration::ZERO
                }
            };
        }
        self.unsubscribe(&mut polls).await;
    }

    /// The poll to send, which waits for news no longer than `wait`.
    fn next_poll(&self, polls: &mut PollSequence, wait: Duration) -> Poll {
        let inner = &*self.0;
        let (position, _) = inner.memory.applied();
        let ids = polls.begin(inner.clock.elapsed(), || self.some_usage());
        let usage = polls.usage.clone();
        // With more to tell than fits, nobody waits.
        let wait = if usage.len() < Poll::USAGE / 2 {
            wait
        } else {
            Duration::ZERO
        };
        Poll {
            subscriber: inner.id(),
            ids: Some(ids),
            position,
            wait,
            usage,
        }
    }

    /// Sends a poll, applies what it brings and takes the lease that comes with it.
    async fn send(&self, polls: &mut PollSequence, poll: Poll) -> Result<News, PollError> {
        let inner = &*self.0;
        let asked = inner.clock.elapsed();
        let (wait, limit) = (poll.wait, poll.wait + PATIENCE);
        let in_flight = inner.poll_watch.begin(asked, wait, limit);
        let polled = inner.within(limit, inner.source.poll(poll)).await;
        in_flight.end(
            inner.clock.elapsed(),
            !matches!(polled, Err(PollError::Unavailable)),
        );
        if let Err(PollError::SharedId) = polled {
            self.start_over(polls);
        }
        let news = polled?;
        polls.end(inner.clock.elapsed(), news.lease);
        inner.failures.store(0, Ordering::Relaxed);
        inner.memory.follow(news.position, news.changes.as_deref());
        if !news.lease.is_zero() {
            // Only now that nothing is left of what was changed. Forgetting everything began a new generation.
            let (_, generation) = inner.memory.applied();
            let end = (asked + news.lease).saturating_sub(margin(news.lease));
            inner.memory.grant(generation, nanos(end));
        }
        Ok(news)
    }

    /// As much of what was counted as one poll takes along.
    fn some_usage(&self) -> Vec<Usage> {
        let inner = &*self.0;
        let mut usage = inner.ledger.take(inner.clock.now(), Poll::USAGE / 2);
        self.restore_usage(usage.split_off(usage.len().min(Poll::USAGE)));
        usage
    }

    /// Continues as another subscriber: another process uses this ID, and may have acknowledged what is remembered here.
    fn start_over(&self, polls: &mut PollSequence) {
        let inner = &*self.0;
        tracing::warn!(
            "another process uses the ID of this subscription, as a clone of this machine does; this one evicts its \
             cached keys and takes a new ID"
        );
        inner.memory.follow(Position::default(), None);
        inner.set_id(VerifierId::new(&mut UnwrapErr(SysRng)));
        polls.restart();
    }

    /// Stops answering from memory, for good, and says so to who would wait for it, with what is left of the counts. After
    /// a failure it tries again: another replica may respond when one is restarted.
    async fn unsubscribe(&self, polls: &mut PollSequence) {
        let inner = &*self.0;
        inner.memory.stop();
        let mut has_started_over = false;
        let mut give_up_at = Instant::now() + LEAVE;
        let mut pause = FIRST_PAUSE;
        loop {
            // More may have been counted since a poll that is repeated.
            let is_repeated = polls.current.is_some();
            let ids = polls.begin(inner.clock.elapsed(), || self.some_usage());
            let usage = polls.usage.clone();
            let is_last = usage.is_empty() && !is_repeated;
            let leave = Leave {
                subscriber: inner.id(),
                ids: Some(ids),
                usage,
            };
            let left = timeout_at(give_up_at, inner.source.leave(leave)).await;
            match left.unwrap_or(Err(PollError::Unavailable)) {
                Ok(()) if is_last => return,
                Ok(()) => {
                    polls.end(inner.clock.elapsed(), Duration::ZERO);
                    (give_up_at, pause) = (Instant::now() + LEAVE, FIRST_PAUSE);
                }
                Err(PollError::SharedId) if !has_started_over => {
                    has_started_over = true;
                    self.start_over(polls);
                }
                Err(_) if Instant::now() + pause < give_up_at => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_LEAVE_PAUSE);
                }
                Err(_) => {
                    tracing::warn!(
                        "could not end the subscription; the next change waits for this verifier's lease"
                    );
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tollkey_core::Seq;

    use super::*;
    use crate::subscription::subscribers::{Arrival, SharedId, Subscribers};

    const LEASE: Duration = Duration::from_secs(3);
    const ID: VerifierId = VerifierId::from_bytes([7; 16]);

    #[test]
    fn poll_without_a_response_is_repeated_as_it_was() {
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

    /// The IDs of `count` polls that begin at this interval and have a response immediately, the newest first.
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
        // How many polls a second, and how many of them are named.
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

    /// Replicas behind a balancer that picks one at random for each request.
    struct Balanced {
        replicas: Vec<Subscribers>,
        /// One in so many requests goes to the first replica, and the others are spread evenly.
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

        /// A number below `end` from a linear congruential generator.
        fn random(&mut self, end: usize) -> usize {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.state >> 33) as usize % end
        }

        /// One poll. Its response may be lost.
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
    fn subscriber_behind_a_balancer_is_no_clone() {
        // Evenly, and with one replica that gets a request now and then: the longer ago the last one is, the more polls
        // have to be named.
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
    fn clone_behind_a_balancer_is_found_within_a_lease() {
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
