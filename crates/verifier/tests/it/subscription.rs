//! Nested leases: a verifier without a store subscribes to a verifier with a store.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tollkey_core::{AccessRequest, Clock, Denial, Digest, Seq, Usage, VerifierId};
use tollkey_verifier::{
    EndSubscription, Poll, PollError, PollId, PollIds, PollResponse, Settings, Snapshot, Source,
    SourceError, Unavailable, Upstream, Verifier,
    testing::{MemorySource, TokioClock},
};

use crate::world::{LEASE, World, leaseless, text};

const SOON: Duration = Duration::from_millis(30);

/// A connection to one of several replicas, with faults that a test can turn on.
#[derive(Clone)]
struct Link(Arc<Shared>);

struct Shared {
    replicas: Vec<Verifier<MemorySource>>,
    to: AtomicUsize,
    /// Each request goes to the next replica.
    balances: AtomicBool,
    /// The index of the replica for look-ups; if it is out of range, look-ups go to the same replica as polls.
    look_up_at: AtomicUsize,
    cut: AtomicBool,
    /// Requests are processed, but their responses are lost.
    loses_responses: AtomicBool,
    /// Requests get neither a response nor an error.
    hangs: AtomicBool,
    finds: AtomicUsize,
    last_poll: Mutex<Option<Poll>>,
}

impl Link {
    fn to(replicas: &[&Verifier<MemorySource>]) -> Self {
        Self(Arc::new(Shared {
            replicas: replicas.iter().map(|replica| (*replica).clone()).collect(),
            to: AtomicUsize::new(0),
            balances: AtomicBool::new(false),
            look_up_at: AtomicUsize::new(usize::MAX),
            cut: AtomicBool::new(false),
            loses_responses: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            finds: AtomicUsize::new(0),
            last_poll: Mutex::new(None),
        }))
    }

    fn set_cut(&self, cut: bool) {
        self.0.cut.store(cut, Ordering::SeqCst);
    }

    fn set_hanging(&self, hangs: bool) {
        self.0.hangs.store(hangs, Ordering::SeqCst);
    }

    async fn replica(&self) -> Result<&Verifier<MemorySource>, Unavailable> {
        if self.0.hangs.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        if self.0.cut.load(Ordering::SeqCst) {
            return Err(Unavailable);
        }
        if self.0.balances.load(Ordering::SeqCst) {
            self.0.to.fetch_add(1, Ordering::SeqCst);
        }
        Ok(&self.0.replicas[self.0.to.load(Ordering::SeqCst) % self.0.replicas.len()])
    }

    fn delivered<T>(&self, response: T) -> Result<T, Unavailable> {
        if self.0.cut.load(Ordering::SeqCst) || self.0.loses_responses.load(Ordering::SeqCst) {
            return Err(Unavailable);
        }
        Ok(response)
    }
}

impl Source for Link {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, SourceError> {
        self.0.finds.fetch_add(1, Ordering::SeqCst);
        let look_up_at = self.0.look_up_at.load(Ordering::SeqCst);
        let replica = match self.0.replicas.get(look_up_at) {
            Some(replica) => replica,
            None => self.replica().await?,
        };
        let response = replica.find(digest).await?;
        Ok(self.delivered(response)?)
    }
}

impl Upstream for Link {
    async fn poll(&self, poll: Poll) -> Result<PollResponse, PollError> {
        *self.0.last_poll.lock().unwrap() = Some(poll.clone());
        // A request that has arrived is processed even if the sender stops waiting.
        let replica = self.replica().await?.clone();
        let response = tokio::spawn(async move { replica.poll(poll).await })
            .await
            .unwrap()?;
        if self.0.hangs.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        Ok(self.delivered(response)?)
    }

    async fn end_subscription(&self, leave: EndSubscription) -> Result<(), PollError> {
        self.replica().await?.end_subscription(leave).await
    }
}

struct Subscriber {
    verifier: Verifier<Link>,
    link: Link,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Subscriber {
    async fn start(id: u8, replicas: &[&Verifier<MemorySource>], clock: &Arc<TokioClock>) -> Self {
        let link = Link::to(replicas);
        let id = VerifierId::from_bytes([id; 16]);
        let verifier = Verifier::subscriber(id, link.clone(), clock.clone(), Settings::default());
        let (shutdown, stop) = oneshot::channel();
        let task = tokio::spawn(verifier.clone().subscribe(async {
            let _ = stop.await;
        }));
        while verifier.stats().lease_left.is_zero() {
            sleep(Duration::from_millis(1)).await;
        }
        Self {
            verifier,
            link,
            shutdown,
            task,
        }
    }

    async fn outcome(&self, n: usize) -> Result<(), Denial> {
        self.verifier
            .verify(&text(n), &AccessRequest::default())
            .await
            .unwrap()
            .outcome
    }

    async fn looks_up(&self, n: usize) -> bool {
        let before = self.link.0.finds.load(Ordering::SeqCst);
        let _ = self
            .verifier
            .verify(&text(n), &AccessRequest::default())
            .await;
        self.link.0.finds.load(Ordering::SeqCst) > before
    }

    async fn until_poll_has_usage(&self) {
        while self
            .link
            .0
            .last_poll
            .lock()
            .unwrap()
            .as_ref()
            .is_none_or(|poll| poll.usage.is_empty())
        {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Stops polling, but keeps the lease and the cache.
    async fn freeze(self) -> (Verifier<Link>, Link) {
        self.task.abort();
        let _ = self.task.await;
        (self.verifier, self.link)
    }
}

#[tokio::test(start_paused = true)]
async fn subscriber_verifies_from_its_own_cache() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert!(subscriber.looks_up(0).await);
    for _ in 0..10 {
        sleep(LEASE / 2).await;
        assert!(
            !subscriber.looks_up(0).await,
            "leases follow each other without a gap"
        );
        assert_eq!(subscriber.outcome(0).await, Ok(()));
    }
    assert_eq!(
        world.source.finds(),
        1,
        "the replica looked the key up at its source once"
    );
    assert_eq!(world.one.verifier.stats().subscribers, 1);
}

#[tokio::test(start_paused = true)]
async fn subscriber_look_up_uses_the_replicas_cache() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    assert!(!subscriber.looks_up(0).await);
    assert_eq!(world.source.finds(), 1);
}

#[tokio::test(start_paused = true)]
async fn change_waits_briefly_until_the_subscriber_applies_it() {
    let world = World::new(2).await;
    let other = world.another(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    for (n, revoker) in [&world.one, &other].into_iter().enumerate() {
        assert_eq!(
            (subscriber.outcome(n).await, subscriber.looks_up(n).await),
            (Ok(()), false)
        );
        sleep(Duration::from_millis(10)).await;
        let (seq, since) = world.revoke(n);
        world.one.verifier.notify(); // as a NOTIFY would
        other.verifier.notify();
        revoker.verifier.wait_until_propagated(seq, since).await;
        let took = world.clock.elapsed() - since;
        assert!(
            took < SOON,
            "the waiting poll returns immediately, but it took {took:?}"
        );
        assert_eq!(
            subscriber.outcome(n).await,
            Err(Denial::Revoked),
            "revoked at {:?}",
            revoker.verifier.id()
        );
    }
    let stats = world.one.verifier.stats();
    assert_eq!(
        (
            stats.propagations_for_subscribers,
            stats.propagations_over_a_lease
        ),
        (1, 0)
    );
    assert_eq!(
        other.verifier.stats().propagations_for_subscribers,
        0,
        "the subscriber polls the other replica"
    );
}

#[tokio::test(start_paused = true)]
async fn change_waits_for_the_lease_of_a_paused_subscriber() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    for revoker in [&world.one, &other] {
        let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
        world
            .source
            .change(&text(0), |record| record.key.revoked_at = None);
        revoker.verifier.wait_until_all_propagated().await.unwrap();
        assert_eq!(subscriber.outcome(0).await, Ok(()));
        let (paused, link) = subscriber.freeze().await;
        let (seq, since) = world.revoke(0);
        world.one.verifier.notify();
        other.verifier.notify();
        let propagated = revoker.verifier.wait_until_propagated(seq, since);
        let mut propagated = std::pin::pin!(propagated);
        let mut allowed = 0;
        loop {
            tokio::select! {
                () = &mut propagated => break,
                () = sleep(Duration::from_millis(50)) => {
                    let finds = link.0.finds.load(Ordering::SeqCst);
                    let outcome = paused.verify(&text(0), &AccessRequest::default()).await.unwrap().outcome;
                    allowed += usize::from(outcome.is_ok());
                    assert_eq!(outcome.is_ok(), link.0.finds.load(Ordering::SeqCst) == finds);
                }
            }
        }
        assert!(
            allowed > 0,
            "it verified from the cache until its lease ended"
        );
        assert_eq!(
            paused
                .verify(&text(0), &AccessRequest::default())
                .await
                .unwrap()
                .outcome,
            Err(Denial::Revoked)
        );
        let took = world.clock.elapsed() - since;
        assert!(
            took <= LEASE + tollkey_verifier::margin(LEASE) + SOON,
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn lease_of_a_subscriber_ends_no_later_than_its_replicas() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    let replica = world.one.freeze().await;
    loop {
        let (upper, lower) = (
            replica.stats().lease_left,
            subscriber.verifier.stats().lease_left,
        );
        assert!(lower <= upper, "{lower:?} of {upper:?}");
        if lower.is_zero() {
            break;
        }
        assert!(!subscriber.looks_up(0).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(subscriber.looks_up(0).await);
}

#[tokio::test(start_paused = true)]
async fn partitioned_subscriber_uses_its_cache_until_its_lease_ends() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.link.set_cut(true);
    let cut_at = world.clock.elapsed();
    while let Ok(verdict) = subscriber
        .verifier
        .verify(&text(0), &AccessRequest::default())
        .await
    {
        assert_eq!(verdict.outcome, Ok(()));
        sleep(Duration::from_millis(20)).await;
    }
    assert!(world.clock.elapsed() - cut_at <= LEASE);
    // The next change does not wait for it.
    sleep(LEASE).await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.clock.elapsed(), since);
    subscriber.link.set_cut(false);
    let back_at = world.clock.elapsed();
    while subscriber.verifier.stats().lease_left.is_zero() {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(world.clock.elapsed() - back_at < Duration::from_secs(1));
    assert_eq!(subscriber.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn change_waits_for_a_lease_whose_response_was_lost() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber
        .link
        .0
        .loses_responses
        .store(true, Ordering::SeqCst);
    sleep(LEASE / 2).await; // polls still arrive, but acknowledge nothing new
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert!(
        subscriber.verifier.stats().lease_left.is_zero(),
        "no key is verified from the cache"
    );
    assert!(world.clock.elapsed() > since, "the change waited");
}

#[tokio::test(start_paused = true)]
async fn change_does_not_wait_for_an_ended_subscription() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.shutdown.send(()).unwrap();
    subscriber.task.await.unwrap();
    assert!(subscriber.verifier.stats().lease_left.is_zero());
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.clock.elapsed(), since);
}

#[tokio::test(start_paused = true)]
async fn stopping_replica_keeps_its_row_until_subscriber_leases_end() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    let id = world.one.verifier.id();
    let stopping = tokio::spawn(world.one.stop());
    while !subscriber.verifier.stats().lease_left.is_zero() {
        assert!(world.source.verifiers().contains_key(&id));
        sleep(Duration::from_millis(20)).await;
    }
    stopping.await.unwrap();
    assert!(!world.source.verifiers().contains_key(&id));
    assert_eq!(
        subscriber
            .verifier
            .verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Ok(()),
        "the key is looked up"
    );
}

#[tokio::test(start_paused = true)]
async fn stopping_replica_does_not_wait_for_a_long_lease() {
    let lease = Duration::from_secs(60);
    let world = World::on(MemorySource::with_lease(lease), 1, Settings::default()).await;
    let other = world.another(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    let id = world.one.verifier.id();
    let began = world.clock.elapsed();
    world.one.stop().await;
    assert_eq!(world.clock.elapsed() - began, Duration::from_secs(5));
    assert!(
        !subscriber.verifier.stats().lease_left.is_zero()
            && world.source.verifiers().contains_key(&id)
    );
    // Another replica waits for the row that was left, and then removes it.
    let seq = world.source.change(&text(0), |record| {
        record.key.revoked_at = Some(world.clock.now())
    });
    other
        .verifier
        .wait_until_propagated(seq, world.clock.elapsed())
        .await;
    assert!(
        subscriber.verifier.stats().lease_left.is_zero()
            && !world.source.verifiers().contains_key(&id)
    );
}

#[tokio::test(start_paused = true)]
async fn replica_without_a_lease_grants_none() {
    let world = World::new(1).await;
    let clock = tollkey_verifier::testing::ManualClock::default();
    let replica = leaseless(&world.source, &clock).await;
    let poll = Poll {
        subscriber: VerifierId::from_bytes([7; 16]),
        ids: None,
        position: world.source.position(),
        wait: Duration::ZERO,
        usage: Vec::new(),
    };
    let response = replica.poll(poll).await.unwrap();
    assert_eq!(
        (response.lease, response.changes),
        (Duration::ZERO, Some(Vec::new()))
    );
    assert_eq!(replica.stats().subscribers, 0);
}

#[tokio::test(start_paused = true)]
async fn subscriber_keeps_its_cache_between_replicas() {
    let world = World::new(2).await;
    let other = world.another(2).await;
    let subscriber =
        Subscriber::start(7, &[&world.one.verifier, &other.verifier], &world.clock).await;
    assert_eq!(
        (subscriber.outcome(0).await, subscriber.outcome(1).await),
        (Ok(()), Ok(()))
    );
    for to in [1, 0, 1] {
        subscriber.link.0.to.store(to, Ordering::SeqCst);
        sleep(LEASE).await;
        assert!(!subscriber.looks_up(0).await);
    }
    assert_eq!(subscriber.verifier.stats().resets, 0);
    // The lease from the first replica has ended, and the poll that waits at the other one returns immediately.
    sleep(LEASE).await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    other.verifier.notify();
    other.verifier.wait_until_propagated(seq, since).await;
    assert!(world.clock.elapsed() - since < SOON);
    assert_eq!(
        (subscriber.outcome(0).await, subscriber.looks_up(1).await),
        (Err(Denial::Revoked), false)
    );
}

#[tokio::test(start_paused = true)]
async fn response_of_a_lagging_replica_is_not_cached() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    let subscriber =
        Subscriber::start(7, &[&world.one.verifier, &other.verifier], &world.clock).await;
    assert_eq!(other.outcome(0).await, Ok(()));
    subscriber.link.0.look_up_at.store(1, Ordering::SeqCst);
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify(); // but not the other replica
    sleep(Duration::from_millis(10)).await;
    assert_eq!(subscriber.verifier.stats().seq, seq);
    assert_eq!(
        subscriber.outcome(0).await,
        Ok(()),
        "the change is not propagated yet"
    );
    assert!(subscriber.looks_up(0).await, "the key was not cached");
    other.verifier.notify();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(subscriber.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn usage_of_a_rejected_poll_is_not_counted() {
    let world = World::new(1).await;
    let poll = |n: u16| Poll {
        subscriber: VerifierId::from_bytes(u128::from(n).to_be_bytes()),
        ids: None,
        position: world.source.position(),
        wait: Duration::ZERO,
        usage: vec![Usage {
            key_id: tollkey_core::KeyId::from_bytes([1; 16]),
            day: 1,
            outcome: None,
            count: 1,
            last_used_at: None,
        }],
    };
    for n in 0..1024 {
        world.one.verifier.poll(poll(n)).await.unwrap();
    }
    for n in 1024..1100 {
        assert_eq!(
            world.one.verifier.poll(poll(n)).await,
            Err(PollError::Rejected),
            "there are too many subscribers"
        );
    }
    let counted = std::iter::from_fn(|| {
        Some(world.one.verifier.take_usage()).filter(|rows| !rows.is_empty())
    });
    assert_eq!(counted.flatten().map(|row| row.count).sum::<u64>(), 1024);
}

#[tokio::test(start_paused = true)]
async fn restored_database_with_the_same_counter_clears_caches() {
    let world = World::new(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    world.revoke(0);
    world.one.verifier.notify();
    sleep(SOON).await;
    assert_eq!(
        (subscriber.outcome(0).await, subscriber.outcome(1).await),
        (Err(Denial::Revoked), Ok(()))
    );
    // The database is restored to before the revocation, and has the same counter again before the log is read.
    world.source.restore(Seq(0));
    world.revoke(1);
    assert_eq!(world.source.position().seq, Seq(1));
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    sleep(LEASE).await;
    assert_eq!(subscriber.outcome(1).await, Err(Denial::Revoked));
    assert_eq!(
        (
            world.one.verifier.stats().resets,
            subscriber.verifier.stats().resets
        ),
        (1, 1),
    );
}

#[tokio::test(start_paused = true)]
async fn lease_is_granted_only_after_all_batches_of_changes() {
    let world = World::new(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.link.set_cut(true);
    for _ in 0..1200 {
        world.source.change(&text(1), |_| {});
    }
    world.revoke(0);
    world
        .one
        .verifier
        .wait_until_all_propagated()
        .await
        .unwrap();
    subscriber.link.set_cut(false);
    sleep(LEASE).await;
    assert_eq!(subscriber.outcome(0).await, Err(Denial::Revoked));
    let stats = subscriber.verifier.stats();
    assert_eq!(
        (stats.seq, stats.resets),
        (Seq(1201), 0),
        "all changes were applied"
    );
}

#[tokio::test(start_paused = true)]
async fn usage_of_a_failed_poll_is_sent_again() {
    let world = World::new(3).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    subscriber.link.set_cut(true);
    for _ in 0..5 {
        subscriber
            .verifier
            .verify(&text(0), &AccessRequest::default())
            .await
            .unwrap_err();
    }
    subscriber.link.set_cut(false);
    for _ in 0..5 {
        assert_eq!(subscriber.outcome(0).await, Ok(()));
    }
    let wrong_mode = AccessRequest {
        mode: Some(tollkey_core::Mode::Live),
        ..AccessRequest::default()
    };
    subscriber
        .verifier
        .verify(&text(0), &wrong_mode)
        .await
        .unwrap();
    subscriber.link.set_cut(true);
    sleep(Duration::from_secs(2)).await; // these polls fail, with the counts in them
    subscriber.link.set_cut(false);
    sleep(Duration::from_secs(2)).await;
    let mut counted: Vec<_> = world
        .one
        .verifier
        .take_usage()
        .iter()
        .map(|row| (row.outcome, row.count))
        .collect();
    counted.sort_unstable();
    assert_eq!(counted, [(None, 5), (Some(Denial::WrongMode), 1)]);
    let outcomes: Vec<_> = world.one.verifier.take_outcomes().into_iter().collect();
    assert_eq!(outcomes, counted);
    // The remaining usage is sent with the end of the subscription.
    assert_eq!(subscriber.outcome(1).await, Ok(()));
    subscriber.shutdown.send(()).unwrap();
    subscriber.task.await.unwrap();
    assert_eq!(
        world
            .one
            .verifier
            .take_usage()
            .iter()
            .map(|row| row.count)
            .sum::<u64>(),
        1
    );
}

/// Takes all usage of a replica and returns the sum of its counts.
fn total_usage(replica: &Verifier<MemorySource>) -> u64 {
    let batches = std::iter::from_fn(|| Some(replica.take_usage()).filter(|rows| !rows.is_empty()));
    batches.flatten().map(|row| row.count).sum()
}

#[tokio::test(start_paused = true)]
async fn usage_in_flight_at_a_graceful_stop_counts_once() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    let replicas = [&world.one.verifier, &other.verifier];
    let mut used = 0;
    for id in 7..27 {
        let subscriber = Subscriber::start(id, &replicas, &world.clock).await;
        for _ in 0..id {
            assert_eq!(subscriber.outcome(0).await, Ok(()));
            used += 1;
        }
        // The next poll carries this usage and waits; one more use comes after it.
        subscriber.until_poll_has_usage().await;
        assert_eq!(subscriber.outcome(0).await, Ok(()));
        used += 1;
        // Every second subscriber ends its subscription at another replica than its last poll.
        subscriber
            .link
            .0
            .to
            .store(usize::from(id % 2), Ordering::SeqCst);
        subscriber.shutdown.send(()).unwrap();
        let stopped_at = world.clock.elapsed();
        subscriber.task.await.unwrap();
        let took = world.clock.elapsed() - stopped_at;
        assert!(took <= LEASE / 3, "{took:?}");
    }
    sleep(LEASE).await;
    assert_eq!(replicas.map(total_usage).iter().sum::<u64>(), used);
}

#[tokio::test(start_paused = true)]
async fn stopping_subscriber_uses_no_cached_key() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.until_poll_has_usage().await;
    subscriber.shutdown.send(()).unwrap();
    sleep(Duration::from_millis(1)).await;
    assert!(
        !subscriber.task.is_finished(),
        "it waits for the response to its poll"
    );
    let before = subscriber.link.0.finds.load(Ordering::SeqCst);
    let _ = subscriber
        .verifier
        .verify(&text(0), &AccessRequest::default())
        .await;
    assert_eq!(subscriber.link.0.finds.load(Ordering::SeqCst), before + 1);
    // A revocation does not wait for the subscriber.
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert!(world.clock.elapsed() - since < SOON);
    subscriber.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn end_of_a_subscription_is_retried_within_a_limit() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    // No usage is in flight, so the subscriber waits only for the end itself.
    subscriber.link.set_cut(true);
    subscriber.shutdown.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    subscriber.link.set_cut(false);
    subscriber.task.await.unwrap();
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(
        world.clock.elapsed(),
        since,
        "it has ended its subscription"
    );

    for (id, fail) in [
        (8, Link::set_cut as fn(&Link, bool)),
        (9, Link::set_hanging),
    ] {
        let subscriber = Subscriber::start(id, &[&world.one.verifier], &world.clock).await;
        let _ = subscriber.outcome(0).await;
        subscriber.until_poll_has_usage().await;
        fail(&subscriber.link, true);
        subscriber.shutdown.send(()).unwrap();
        let stopped_at = world.clock.elapsed();
        subscriber.task.await.unwrap();
        let took = world.clock.elapsed() - stopped_at;
        assert!(took < LEASE, "{took:?}");
        assert!(took > Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn usage_counts_once_when_responses_are_lost() {
    let world = World::new(1).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    for round in 1..6_u64 {
        for _ in 0..round {
            assert_eq!(subscriber.outcome(0).await, Ok(()));
        }
        subscriber.until_poll_has_usage().await;
        subscriber
            .link
            .0
            .loses_responses
            .store(true, Ordering::SeqCst);
        // Longer than a lease: the replica still knows the poll although the lease has ended.
        sleep(2 * LEASE).await;
        subscriber
            .link
            .0
            .loses_responses
            .store(false, Ordering::SeqCst);
        sleep(LEASE).await;
        assert_eq!(total_usage(&world.one.verifier), round);
    }
    assert_eq!(
        subscriber.verifier.id(),
        VerifierId::from_bytes([7; 16]),
        "a repeated poll is no clone"
    );
    assert!(!subscriber.verifier.stats().lease_left.is_zero());
}

#[tokio::test(start_paused = true)]
async fn subscriber_behind_a_balancer_keeps_its_id_under_changes() {
    let world = World::new(2).await;
    let others = [world.another(2).await, world.another(3).await];
    let replicas = [
        &world.one.verifier,
        &others[0].verifier,
        &others[1].verifier,
    ];
    let subscriber = Subscriber::start(7, &replicas, &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.link.0.balances.store(true, Ordering::SeqCst);
    for n in 0..2000_u64 {
        world.source.change(&text(1), |_| {});
        replicas.iter().for_each(|replica| replica.notify());
        // At times one replica gets more than 16 polls in a row, and the others none.
        subscriber
            .link
            .0
            .balances
            .store(n % 40 < 15, Ordering::SeqCst);
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(subscriber.verifier.id(), VerifierId::from_bytes([7; 16]));
    assert_eq!(
        (
            subscriber.verifier.stats().resets,
            subscriber.looks_up(0).await
        ),
        (0, false)
    );
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_an_id_take_new_ids() {
    let world = World::new(1).await;
    let shared = VerifierId::from_bytes([7; 16]);
    let one = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    let other = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    sleep(2 * LEASE).await;
    let ids = [one.verifier.id(), other.verifier.id()];
    assert!(ids[0] != ids[1] && !ids.contains(&shared), "{ids:?}");
    for subscriber in [&one, &other] {
        assert_eq!(
            (subscriber.outcome(0).await, subscriber.looks_up(0).await),
            (Ok(()), false)
        );
    }
    assert_eq!(world.one.verifier.stats().subscribers, 2);

    // One subscriber acknowledges a revocation; the other is paused with its lease.
    let (paused, link) = other.freeze().await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(one.outcome(0).await, Err(Denial::Revoked));
    let finds = link.0.finds.load(Ordering::SeqCst);
    let outcome = paused
        .verify(&text(0), &AccessRequest::default())
        .await
        .unwrap()
        .outcome;
    assert_eq!(
        (outcome, link.0.finds.load(Ordering::SeqCst)),
        (Err(Denial::Revoked), finds + 1)
    );
}

#[tokio::test(start_paused = true)]
async fn clone_cannot_acknowledge_for_the_original_process() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    sleep(LEASE / 2).await;
    // A snapshot is taken while a poll waits: the clone has the ID, the previous polls and the lease.
    let copied = subscriber.link.0.last_poll.lock().unwrap().clone().unwrap();
    let previous = copied.ids.as_ref().unwrap().previous.clone();
    sleep(LEASE / 2).await;
    let (paused, link) = subscriber.freeze().await;

    // The clone continues from there. It applies the revocation, and acknowledges it.
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    other.verifier.notify();
    let clone = tokio::spawn({
        let replica = world.one.verifier.clone();
        let source = world.source.clone();
        async move {
            let mut rejected = 0;
            for n in 0..20_u64 {
                let id: PollId = format!("{n:016x}").parse().unwrap();
                let ids = Some(PollIds {
                    id,
                    previous: previous.clone(),
                });
                let poll = Poll {
                    ids,
                    position: source.position(),
                    wait: Duration::ZERO,
                    ..copied.clone()
                };
                rejected += u32::from(replica.poll(poll).await == Err(PollError::SharedId));
                sleep(Duration::from_millis(5)).await;
            }
            rejected
        }
    });
    let (here, there) = tokio::join!(
        async {
            world.one.verifier.wait_until_propagated(seq, since).await;
            world.clock.elapsed()
        },
        async {
            other.verifier.wait_until_propagated(seq, since).await;
            world.clock.elapsed()
        }
    );
    assert_eq!(
        clone.await.unwrap(),
        20,
        "no lease and no acknowledgement under this ID"
    );
    assert!(
        here - since > LEASE / 3 && there - since > LEASE / 3,
        "the lease of the first process is waited for"
    );
    let finds = link.0.finds.load(Ordering::SeqCst);
    let outcome = paused
        .verify(&text(0), &AccessRequest::default())
        .await
        .unwrap()
        .outcome;
    assert_eq!(
        (outcome, link.0.finds.load(Ordering::SeqCst)),
        (Err(Denial::Revoked), finds + 1)
    );
    // The first process continues as another subscriber.
    let back = tokio::spawn(paused.clone().subscribe(pending()));
    sleep(LEASE).await;
    assert_ne!(paused.id(), VerifierId::from_bytes([7; 16]));
    assert!(!paused.stats().lease_left.is_zero());
    back.abort();
}

#[tokio::test(start_paused = true)]
async fn look_ups_fail_immediately_while_the_poll_has_no_response() {
    let world = World::new(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    for hang in [Link::set_hanging, Link::set_cut] {
        hang(&subscriber.link, true);
        while !subscriber.verifier.stats().lease_left.is_zero() {
            sleep(Duration::from_millis(1)).await;
        }
        let ended_at = world.clock.elapsed();
        let finds = subscriber.link.0.finds.load(Ordering::SeqCst);
        let grace = Duration::from_secs(60);
        for n in 0..2000 {
            let before = world.clock.elapsed();
            assert_eq!(
                subscriber
                    .verifier
                    .verify(&text(n % 2), &AccessRequest::default())
                    .await
                    .unwrap_err(),
                Unavailable
            );
            let late = subscriber
                .verifier
                .reserve_without_immediate_revocation(&text(0), &AccessRequest::default(), grace)
                .await;
            assert!(late.unwrap().is_ok(), "by the cached key");
            assert_eq!(
                world.clock.elapsed(),
                before,
                "after {:?}",
                before - ended_at
            );
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(
            subscriber.link.0.finds.load(Ordering::SeqCst),
            finds,
            "the poll is the probe"
        );
        hang(&subscriber.link, false);
        let back_at = world.clock.elapsed();
        while subscriber
            .verifier
            .verify(&text(0), &AccessRequest::default())
            .await
            .is_err()
        {
            sleep(Duration::from_millis(1)).await;
        }
        let took = world.clock.elapsed() - back_at;
        assert!(took <= Duration::from_secs(3), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn look_ups_are_sent_when_polls_are_rejected_or_stopped() {
    let world = World::new(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.link.set_hanging(true);
    sleep(2 * LEASE).await;
    // The subscription is aborted while a response is overdue.
    let (paused, link) = subscriber.freeze().await;
    link.set_hanging(false);
    assert_eq!(
        paused
            .verify(&text(1), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Ok(())
    );

    let subscriber = Subscriber::start(8, &[&world.one.verifier], &world.clock).await;
    world.one.verifier.stop().await;
    sleep(2 * LEASE).await;
    assert!(subscriber.verifier.stats().lease_left.is_zero());
    for n in 0..2 {
        assert_eq!(
            subscriber.outcome(n).await,
            Ok(()),
            "a replica without a lease looks keys up"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_subscription_is_logged_every_30_seconds() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let world = World::new(2).await;
    let subscriber = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(subscriber.outcome(0).await, Ok(()));
    subscriber.link.set_hanging(true);
    sleep(2 * LEASE).await;
    let _ = subscriber
        .verifier
        .verify(&text(0), &AccessRequest::default())
        .await;
    assert_eq!(
        log.errors(),
        0,
        "the subscription is polled, but the server does not respond"
    );
    subscriber.link.set_hanging(false);
    let (paused, _link) = subscriber.freeze().await;
    for seconds in 0..100 {
        let errors = log.errors();
        assert_eq!(
            errors,
            if seconds < 13 {
                0
            } else {
                1 + (seconds - 13) / 30
            },
            "after {seconds} s"
        );
        let _ = paused.verify(&text(0), &AccessRequest::default()).await;
        sleep(Duration::from_secs(1)).await;
    }
}

#[derive(Clone, Default)]
struct Log(Arc<AtomicUsize>);

impl Log {
    fn errors(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn under_load_no_subscriber_accepts_a_revoked_key() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(60).await;
        let other = world.another(2).await;
        let replicas = [world.one.verifier.clone(), other.verifier.clone()];
        let mut subscribers = Vec::new();
        for id in 7..11 {
            subscribers
                .push(Subscriber::start(id, &[&replicas[usize::from(id) % 2]], &world.clock).await);
        }
        let noise: Vec<_> = subscribers
            .iter()
            .map(|subscriber| {
                let verifier = subscriber.verifier.clone();
                tokio::spawn(async move {
                    for n in (0..60).cycle() {
                        let _ = verifier.verify(&text(n), &AccessRequest::default()).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for n in 0..60 {
            let (seq, since) = world.revoke(n);
            replicas.iter().for_each(Verifier::notify);
            replicas[n % 2].wait_until_propagated(seq, since).await;
            for subscriber in &subscribers {
                assert_eq!(subscriber.outcome(n).await, Err(Denial::Revoked));
            }
        }
        assert!(
            replicas
                .iter()
                .all(|replica| replica.stats().propagations_over_a_lease == 0)
        );
        noise.iter().for_each(JoinHandle::abort);
    });
}
