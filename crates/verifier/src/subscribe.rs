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
//! - A subscriber whose ID another process uses ends its lease and forgets everything before it takes a new ID.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{rand_core::UnwrapErr, rngs::SysRng};
use tokio::time::sleep;
use tollkey_core::{Clock, Position, Usage, VerifierId};

use crate::{
    clock::nanos,
    follow::margin,
    poll_watch::PollWatch,
    source::{Leave, News, Poll, PollError, PollId, PollIds, Upstream},
    verifier::{Settings, Verifier},
};

/// How long an answer may take beyond what it was asked to wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a poll that brought no lease: at first this long, then twice as long each time,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// but no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// The polls that a subscriber sends under one ID.
#[derive(Debug, Default)]
pub(crate) struct PollSequence {
    /// The polls that had a response, the newest first.
    previous: VecDeque<PollId>,
    /// The poll that has none so far.
    current: Option<PollId>,
    /// What that poll, or else the next one, takes along.
    usage: Vec<Usage>,
}

impl PollSequence {
    /// The poll to send: the current one again, or else a new one that takes along what `usage` returns.
    fn begin(&mut self, usage: impl FnOnce() -> Vec<Usage>) -> PollIds {
        if self.usage.is_empty() && self.current.is_none() {
            self.usage = usage();
        }
        let id = *self.current.get_or_insert_with(|| PollId::new(&mut UnwrapErr(SysRng)));
        PollIds { id, previous: self.previous.iter().copied().collect() }
    }

    /// The current poll had a response: its usage is counted.
    fn end(&mut self) {
        self.usage.clear();
        if let Some(id) = self.current.take() {
            self.previous.truncate(PollIds::PREVIOUS - 1);
            self.previous.push_front(id);
        }
    }

    /// The next poll is the first one under another ID. It takes along what the current one was to.
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
    pub fn subscriber(id: VerifierId, source: S, clock: Arc<dyn Clock>, settings: Settings) -> Self {
        let watch = PollWatch::subscriber(clock.elapsed());
        Self::with(id, source, clock, settings, watch, PATIENCE, Position::default())
    }

    /// Keeps the subscription. Ends when `shutdown` does; nothing is answered from memory any more then. While nobody
    /// answers it keeps trying; the lease then ends by itself. While this runs, another call on a clone waits.
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
            let polled = tokio::select! {
                () = &mut shutdown => break,
                polled = self.poll_once(&mut polls, wait) => polled,
            };
            if polled.is_ok() != connected {
                connected = polled.is_ok();
                if connected {
                    tracing::info!("subscribed again; keys are answered from memory");
                } else {
                    tracing::warn!("the subscription does not answer; when the lease ends, every verification asks");
                }
            }
            wait = match polled {
                Ok(News { lease, .. }) if !lease.is_zero() => {
                    pause = FIRST_PAUSE;
                    lease / 3
                }
                // More of the log is waiting.
                Ok(News { changes: Some(changes), .. }) if !changes.is_empty() => Duration::ZERO,
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

    /// One poll: applies what it brings and takes the lease that comes with it.
    async fn poll_once(&self, polls: &mut PollSequence, wait: Duration) -> Result<News, PollError> {
        let inner = &*self.0;
        let (position, _) = inner.memory.applied();
        let ids = polls.begin(|| self.some_usage());
        let usage = polls.usage.clone();
        // With more to tell than fits, nobody waits.
        let wait = if usage.len() < Poll::USAGE / 2 { wait } else { Duration::ZERO };
        let poll = Poll { subscriber: inner.id(), ids: Some(ids), position, wait, usage };
        let asked = inner.clock.elapsed();
        let limit = wait + PATIENCE;
        let in_flight = inner.poll_watch.begin(asked, wait, limit);
        let polled = inner.within(limit, inner.source.poll(poll)).await;
        in_flight.end(inner.clock.elapsed(), !matches!(polled, Err(PollError::Unavailable)));
        if let Err(PollError::SharedId) = polled {
            self.start_over(polls);
        }
        let news = polled?;
        polls.end();
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
            "another process uses the ID of this subscription, as a clone of this machine does; this one forgets its \
             keys and takes a new ID"
        );
        inner.memory.follow(Position::default(), None);
        inner.set_id(VerifierId::new(&mut UnwrapErr(SysRng)));
        polls.restart();
    }

    /// Stops answering from memory, for good, and says so to who would wait for it, with what is left of the counts.
    async fn unsubscribe(&self, polls: &mut PollSequence) {
        let inner = &*self.0;
        inner.memory.stop();
        let mut has_started_over = false;
        loop {
            // More may have been counted since a poll that is repeated.
            let is_repeated = polls.current.is_some();
            let ids = polls.begin(|| self.some_usage());
            let usage = polls.usage.clone();
            let is_last = usage.is_empty() && !is_repeated;
            let leave = Leave { subscriber: inner.id(), ids: Some(ids), usage };
            match inner.within(PATIENCE, inner.source.leave(leave)).await {
                Ok(()) if is_last => return,
                Ok(()) => polls.end(),
                Err(PollError::SharedId) if !has_started_over => {
                    has_started_over = true;
                    self.start_over(polls);
                }
                Err(_) => {
                    tracing::warn!("could not end the subscription; the next change waits for this verifier's lease");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_without_a_response_is_repeated_as_it_was() {
        let usage = |count| {
            let key_id = tollkey_core::KeyId::from_bytes([1; 16]);
            vec![Usage { key_id, day: 1, outcome: None, count, last_used_at: None }]
        };
        let mut polls = PollSequence::default();
        let first = polls.begin(|| usage(1));
        assert_eq!((polls.begin(|| usage(2)), polls.usage[0].count), (first.clone(), 1));
        polls.end();
        let second = polls.begin(|| usage(3));
        assert_eq!((second.previous.as_slice(), polls.usage[0].count), ([first.id].as_slice(), 3));
        polls.restart();
        let under_another_id = polls.begin(|| usage(4));
        assert!(under_another_id.id != second.id && under_another_id.previous.is_empty());
        assert_eq!(polls.usage[0].count, 3, "not counted yet");
        // A poll without usage is repeated without usage as well.
        polls.end();
        let empty = polls.begin(Vec::new);
        assert_eq!((polls.begin(|| usage(5)), polls.usage.len()), (empty, 0));
    }

    #[test]
    fn polls_name_a_bounded_number_of_previous_ones() {
        let mut polls = PollSequence::default();
        let sent: Vec<_> = (0..PollIds::PREVIOUS + 3)
            .map(|_| {
                let id = polls.begin(Vec::new).id;
                polls.end();
                id
            })
            .collect();
        let newest: Vec<_> = sent.into_iter().rev().take(PollIds::PREVIOUS).collect();
        assert_eq!(polls.begin(Vec::new).previous, newest);
    }
}
