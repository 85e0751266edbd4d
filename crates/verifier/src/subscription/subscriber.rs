//! Keeping a subscription, and with it a lease that nests in the lease of another verifier.
//!
//! The rules, which must not be loosened:
//!
//! - A lease starts when the poll is sent, not when the response arrives. It is taken only after all changes
//!   in the response have been applied.
//! - A change is acknowledged only after the keys that it affects have been evicted.
//! - A subscriber that has missed too many changes, or whose upstream has another history, clears its cache.
//! - A poll has a new random ID from the operating system, because a snapshot of the machine copies the state
//!   of any other generator. A poll without a response is repeated with the same ID and the same usage.
//! - A poll names every previous poll whose lease a replica may consider valid. Otherwise, that replica would take the
//!   subscriber for another process.
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
    source::{EndSubscription, Poll, PollError, PollResponse, Upstream},
    subscription::{poll_sequence::PollSequence, poll_watch::PollWatch},
    verifier::Verifier,
};

/// How long a response may take in addition to the wait of the poll.
const RESPONSE_LIMIT: Duration = Duration::from_secs(2);
/// The first pause after a poll without a lease. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// How long a stopping subscriber waits for the response to a poll with usage. With leases of the default
/// length, a poll waits for at most a second.
const LAST_POLL: Duration = Duration::from_millis(1500);
/// How long after the last response a stopping subscriber retries to end its subscription. Together with
/// [`LAST_POLL`], it is less than the three seconds that a guard allows.
const LEAVE: Duration = Duration::from_millis(1400);
/// The longest pause between two attempts.
const LONGEST_LEAVE_PAUSE: Duration = Duration::from_millis(200);

impl<S: Upstream> Verifier<S> {
    /// Creates a verifier with an empty cache. It looks up every key at `source` until
    /// [`Verifier::subscribe`] runs and has a lease. `id` must be new for each start of a process, and
    /// secret. If another process uses the same ID, for example a clone of the machine, the subscriber takes
    /// a new one ([`Verifier::id`]).
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
            RESPONSE_LIMIT,
            Position::default(),
        )
    }

    /// Keeps the subscription. While the upstream does not respond, it keeps trying, and the lease expires.
    /// While this runs, a second call waits, also on a clone.
    ///
    /// When `shutdown` resolves, stops verifying from the cache and ends the subscription: waits up to 1.5 s
    /// for the response to a poll with usage, sends the remaining usage, and gives up after another 1.4 s
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
                    // A replica may count this usage. If it were sent again to another replica, it would count twice.
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
                Ok(PollResponse { lease, .. }) if !lease.is_zero() => {
                    pause = FIRST_PAUSE;
                    lease / 3
                }
                // More changes have to be fetched.
                Ok(PollResponse {
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

    /// Returns the poll to send, which waits for changes for at most `wait`.
    fn next_poll(&self, polls: &mut PollSequence, wait: Duration) -> Poll {
        let inner = &*self.0;
        let (position, _) = inner.cache.applied();
        let ids = polls.begin(inner.clock.elapsed(), || self.some_usage());
        let usage = polls.usage().to_vec();
        // With much usage, more may be left for the next poll, so this one does not wait.
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
    async fn send(&self, polls: &mut PollSequence, poll: Poll) -> Result<PollResponse, PollError> {
        let inner = &*self.0;
        let sent_at = inner.clock.elapsed();
        let (wait, limit) = (poll.wait, poll.wait + RESPONSE_LIMIT);
        let in_flight = inner.poll_watch.begin(sent_at, wait, limit);
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
            // The lease is granted only after the changed keys are evicted. If the cache was cleared, this is
            // a new generation.
            let (_, generation) = inner.cache.applied();
            let end = (sent_at + news.lease).saturating_sub(margin(news.lease));
            inner.cache.grant(generation, nanos(end));
        }
        Ok(news)
    }

    /// Takes as much usage as fits into one poll.
    fn some_usage(&self) -> Vec<Usage> {
        let inner = &*self.0;
        let mut usage = inner.ledger.take(inner.clock.now(), Poll::USAGE / 2);
        self.restore_usage(usage.split_off(usage.len().min(Poll::USAGE)));
        usage
    }

    /// Continues as a new subscriber, because another process uses this ID and may have acknowledged changes
    /// for keys that are cached here.
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

    /// Permanently ends the lease and the subscription, and sends the remaining usage. Retries after a
    /// failure: while one replica restarts, another may respond.
    async fn unsubscribe(&self, polls: &mut PollSequence) {
        let inner = &*self.0;
        inner.cache.stop();
        let mut has_started_over = false;
        let mut give_up_at = Instant::now() + LEAVE;
        let mut pause = FIRST_PAUSE;
        loop {
            // A repeated poll does not have the usage that was counted after it.
            let is_repeated = polls.is_repeated();
            let ids = polls.begin(inner.clock.elapsed(), || self.some_usage());
            let usage = polls.usage().to_vec();
            let is_last = usage.is_empty() && !is_repeated;
            let leave = EndSubscription {
                subscriber: inner.id(),
                ids: Some(ids),
                usage,
            };
            let left = timeout_at(give_up_at, inner.source.end_subscription(leave)).await;
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
