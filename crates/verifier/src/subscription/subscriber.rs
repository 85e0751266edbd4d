//! Keeping a subscription, and with it a lease that nests in another verifier's.
//!
//! The rules, which must not be loosened:
//!
//! - A lease is taken only after all changes that came with it have been applied, and counts from before the poll was sent.
//! - A change is acknowledged only after the keys that it is about have been evicted.
//! - A subscriber that has missed too many changes, or that gets another history, clears its cache.
//! - A poll has a new random ID, from the operating system and not from a generator that a snapshot of the machine would
//!   copy. A poll without a response is repeated with the same ID and the same usage.
//! - A poll names every poll of which a replica may still hold the lease to be valid. A replica that the subscriber
//!   comes back to would take it for another process otherwise.
//! - A subscriber whose ID another process uses ends its lease and clears its cache before it takes a new ID.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{rand_core::UnwrapErr, rngs::SysRng};
use tokio::time::{Instant, sleep, timeout_at};
use tollkey_core::{Clock, Position, Usage, VerifierId};

use crate::{
    clock::{margin, nanos},
    settings::Settings,
    source::{Leave, News, Poll, PollError, Upstream},
    subscription::{poll_sequence::PollSequence, poll_watch::PollWatch},
    verifier::Verifier,
};

/// How long a response may take beyond the time that the poll asks the upstream to wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause after a poll that brought no lease. It doubles each time,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// up to this one.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// How long a subscriber that stops waits for the response to a poll that takes usage along. With leases of the default
/// length a poll waits for a second at most.
const LAST_POLL: Duration = Duration::from_millis(1500);
/// For how long a subscriber that stops tries to end its subscription, since the last response. With [`LAST_POLL`] less
/// than the three seconds that a guard allows for both.
const LEAVE: Duration = Duration::from_millis(1400);
/// The longest pause between two attempts.
const LONGEST_LEAVE_PAUSE: Duration = Duration::from_millis(200);

impl<S: Upstream> Verifier<S> {
    /// A verifier with an empty cache. It looks every key up at `source` until [`Verifier::subscribe`] runs and has a lease.
    /// `id` must be new for each start of a process, and secret. If another process uses it as well, as after the machine
    /// was cloned, the subscriber takes a new one: [`Verifier::id`].
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
    /// When `shutdown` resolves, keys are not verified from the cache any more, and the subscription ends: it waits up to
    /// 1.5 s for the response to a poll that takes usage along, sends the remaining usage, and gives up after another 1.4 s
    /// without a response.
    pub async fn subscribe(self, shutdown: impl Future<Output = ()>) {
        let inner = &*self.0;
        let mut shutdown = pin!(shutdown);
        let mut polls = tokio::select! {
            polls = inner.polls.lock() => polls,
            () = &mut shutdown => return,
        };
        let mut connected = true;
        let mut wait = Duration::ZERO; // without a lease, a poll does not wait for changes
        let mut pause = FIRST_PAUSE;
        while !inner.cache.is_stopped() {
            tokio::select! {
                () = &mut shutdown => break,
                () = sleep(polls.pause(inner.clock.elapsed())) => {}
            }
            let poll = self.next_poll(&mut polls, wait);
            let has_usage = !poll.usage.is_empty();
            let mut polling = pin!(self.send(&mut polls, poll));
            let polled = tokio::select! {
                () = &mut shutdown => {
                    inner.cache.stop();
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
                    tracing::info!("subscribed again; keys are verified from the cache");
                } else {
                    tracing::warn!(
                        "the subscription gets no response; when the lease ends, every verification needs the server"
                    );
                }
            }
            wait = match polled {
                Ok(News { lease, .. }) if !lease.is_zero() => {
                    pause = FIRST_PAUSE;
                    lease / 3
                }
                // There are more changes to fetch.
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

    /// The poll to send, which waits for changes no longer than `wait`.
    fn next_poll(&self, polls: &mut PollSequence, wait: Duration) -> Poll {
        let inner = &*self.0;
        let (position, _) = inner.cache.applied();
        let ids = polls.begin(inner.clock.elapsed(), || self.some_usage());
        let usage = polls.usage().to_vec();
        // With more usage than one poll takes along, the next poll must not wait.
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

    /// Sends a poll, applies the changes of the response and takes its lease.
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
        inner
            .cache
            .apply_news(news.position, news.changes.as_deref());
        if !news.lease.is_zero() {
            // Only now that the changed keys are evicted. Clearing the cache has begun a new generation.
            let (_, generation) = inner.cache.applied();
            let end = (asked + news.lease).saturating_sub(margin(news.lease));
            inner.cache.grant(generation, nanos(end));
        }
        Ok(news)
    }

    /// As much usage as one poll takes along.
    fn some_usage(&self) -> Vec<Usage> {
        let inner = &*self.0;
        let mut usage = inner.ledger.take(inner.clock.now(), Poll::USAGE / 2);
        self.restore_usage(usage.split_off(usage.len().min(Poll::USAGE)));
        usage
    }

    /// Continues as another subscriber: another process uses this ID, and may have acknowledged changes for keys that are
    /// cached here.
    fn start_over(&self, polls: &mut PollSequence) {
        let inner = &*self.0;
        tracing::warn!(
            "another process uses the ID of this subscription, as a clone of this machine does; this one evicts its \
             cached keys and takes a new ID"
        );
        inner.cache.apply_news(Position::default(), None);
        inner.set_id(VerifierId::new(&mut UnwrapErr(SysRng)));
        polls.restart();
    }

    /// Ends the lease for good and the subscription with it, and sends the remaining usage. After a failure it tries again:
    /// another replica may respond when one is restarted.
    async fn unsubscribe(&self, polls: &mut PollSequence) {
        let inner = &*self.0;
        inner.cache.stop();
        let mut has_started_over = false;
        let mut give_up_at = Instant::now() + LEAVE;
        let mut pause = FIRST_PAUSE;
        loop {
            // More usage may have been counted since a poll that is repeated.
            let is_repeated = polls.is_repeated();
            let ids = polls.begin(inner.clock.elapsed(), || self.some_usage());
            let usage = polls.usage().to_vec();
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
