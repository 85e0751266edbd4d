//! Leases that nest: a verifier without a store subscribes to one that has one.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle, time::sleep};
use tollkey_core::{Clock, Denial, Digest, Need, Seq, Usage, VerifierId};
use tollkey_verifier::{
    Leave, News, Poll, PollError, PollId, PollIds, Settings, Snapshot, Source, SourceError,
    Unavailable, Upstream, Verifier,
    testing::{MemorySource, TokioClock},
};

use crate::world::{LEASE, World, leaseless, text};

const SOON: Duration = Duration::from_millis(30);

/// The way to one of several replicas, which can be cut.
#[derive(Clone)]
struct Link(Arc<Shared>);

struct Shared {
    replicas: Vec<Verifier<MemorySource>>,
    to: AtomicUsize,
    /// Each request goes to another replica than the one before.
    balances: AtomicBool,
    /// Where keys are looked up, when that is elsewhere.
    look_up_at: AtomicUsize,
    cut: AtomicBool,
    /// Answers are made but not delivered.
    loses_answers: AtomicBool,
    /// Nothing is answered, and nothing fails.
    hangs: AtomicBool,
    finds: AtomicUsize,
    /// The last poll that was sent.
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
            loses_answers: AtomicBool::new(false),
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

    fn delivered<T>(&self, answer: T) -> Result<T, Unavailable> {
        if self.0.cut.load(Ordering::SeqCst) || self.0.loses_answers.load(Ordering::SeqCst) {
            return Err(Unavailable);
        }
        Ok(answer)
    }
}

impl Source for Link {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, SourceError> {
        self.0.finds.fetch_add(1, Ordering::SeqCst);
        let elsewhere = self
            .0
            .replicas
            .get(self.0.look_up_at.load(Ordering::SeqCst));
        let replica = match elsewhere {
            Some(elsewhere) => elsewhere,
            None => self.replica().await?,
        };
        let answer = replica.find(digest).await?;
        Ok(self.delivered(answer)?)
    }
}

impl Upstream for Link {
    async fn poll(&self, poll: Poll) -> Result<News, PollError> {
        *self.0.last_poll.lock().unwrap() = Some(poll.clone());
        // A request that has arrived is worked on, whether or not its sender goes on waiting.
        let replica = self.replica().await?.clone();
        let answer = tokio::spawn(async move { replica.poll(poll).await })
            .await
            .unwrap()?;
        if self.0.hangs.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        Ok(self.delivered(answer)?)
    }

    async fn leave(&self, leave: Leave) -> Result<(), PollError> {
        self.replica().await?.leave(leave).await
    }
}

/// A subscriber and the task that keeps its subscription.
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
            .verify(&text(n), &Need::default())
            .await
            .unwrap()
            .outcome
    }

    async fn looks_up(&self, n: usize) -> bool {
        let before = self.link.0.finds.load(Ordering::SeqCst);
        let _ = self.verifier.verify(&text(n), &Need::default()).await;
        self.link.0.finds.load(Ordering::SeqCst) > before
    }

    /// Waits until a poll that takes usage along is on its way.
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

    /// What it holds it keeps, nothing is polled any more.
    async fn freeze(self) -> (Verifier<Link>, Link) {
        self.task.abort();
        let _ = self.task.await;
        (self.verifier, self.link)
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_answers_from_its_own_memory() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert!(far.looks_up(0).await);
    for _ in 0..10 {
        sleep(LEASE / 2).await;
        assert!(!far.looks_up(0).await, "a lease follows upon the other");
        assert_eq!(far.outcome(0).await, Ok(()));
    }
    assert_eq!(world.source.finds(), 1, "the replica asked its source once");
    assert_eq!(world.one.verifier.stats().subscribers, 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_remembers_is_not_asked_of_its_source_for_a_subscriber() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(far.outcome(0).await, Ok(()));
    assert!(!far.looks_up(0).await);
    assert_eq!(world.source.finds(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_settled_only_once_the_subscriber_has_applied_it_and_that_is_quick() {
    let world = World::new(2).await;
    let other = world.another(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    for (n, revoker) in [&world.one, &other].into_iter().enumerate() {
        assert_eq!((far.outcome(n).await, far.looks_up(n).await), (Ok(()), false));
        sleep(Duration::from_millis(10)).await;
        let (seq, since) = world.revoke(n);
        world.one.verifier.notify(); // as a NOTIFY would
        other.verifier.notify();
        revoker.verifier.wait_until_propagated(seq, since).await;
        let took = world.clock.elapsed() - since;
        assert!(
            took < SOON,
            "the poll that hangs is answered at once, yet it took {took:?}"
        );
        assert_eq!(
            far.outcome(n).await,
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
        "it is the other's subscriber"
    );
}

#[tokio::test(start_paused = true)]
async fn a_frozen_subscriber_is_waited_for_until_its_lease_is_over() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    for revoker in [&world.one, &other] {
        let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
        world
            .source
            .change(&text(0), |record| record.key.revoked_at = None);
        revoker.verifier.wait_until_all_propagated().await.unwrap();
        assert_eq!(far.outcome(0).await, Ok(()));
        let (frozen, link) = far.freeze().await;
        let (seq, since) = world.revoke(0);
        world.one.verifier.notify();
        other.verifier.notify();
        let settled = revoker.verifier.wait_until_propagated(seq, since);
        let mut settled = std::pin::pin!(settled);
        let mut said_yes = 0;
        loop {
            tokio::select! {
                () = &mut settled => break,
                () = sleep(Duration::from_millis(50)) => {
                    let finds = link.0.finds.load(Ordering::SeqCst);
                    let outcome = frozen.verify(&text(0), &Need::default()).await.unwrap().outcome;
                    said_yes += usize::from(outcome.is_ok());
                    assert_eq!(outcome.is_ok(), link.0.finds.load(Ordering::SeqCst) == finds);
                }
            }
        }
        assert!(said_yes > 0, "it answered from its lease meanwhile");
        assert_eq!(
            frozen
                .verify(&text(0), &Need::default())
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
async fn the_lease_of_a_subscriber_ends_no_later_than_its_replicas() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    let replica = world.one.freeze().await;
    loop {
        let (upper, lower) = (replica.stats().lease_left, far.verifier.stats().lease_left);
        assert!(lower <= upper, "{lower:?} of {upper:?}");
        if lower.is_zero() {
            break;
        }
        assert!(!far.looks_up(0).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(far.looks_up(0).await);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_cut_off_answers_until_its_lease_ends_and_then_not_at_all() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.link.set_cut(true);
    let cut_at = world.clock.elapsed();
    while let Ok(verdict) = far.verifier.verify(&text(0), &Need::default()).await {
        assert_eq!(verdict.outcome, Ok(()));
        sleep(Duration::from_millis(20)).await;
    }
    assert!(world.clock.elapsed() - cut_at <= LEASE);
    // The change meanwhile finds nobody to wait for any more.
    sleep(LEASE).await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.clock.elapsed(), since);
    far.link.set_cut(false);
    let back_at = world.clock.elapsed();
    while far.verifier.stats().lease_left.is_zero() {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(world.clock.elapsed() - back_at < Duration::from_secs(1));
    assert_eq!(far.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_never_arrived_is_waited_for_like_one_that_did() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.link.0.loses_answers.store(true, Ordering::SeqCst);
    sleep(LEASE / 2).await; // polls go on arriving, and acknowledge nothing new
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert!(
        far.verifier.stats().lease_left.is_zero(),
        "nothing is answered from before"
    );
    assert!(world.clock.elapsed() > since, "it was waited for");
}

#[tokio::test(start_paused = true)]
async fn who_has_left_is_not_waited_for() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.shutdown.send(()).unwrap();
    far.task.await.unwrap();
    assert!(far.verifier.stats().lease_left.is_zero());
    let (seq, since) = world.revoke(0);
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(world.clock.elapsed(), since);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_stays_listed_until_its_subscribers_leases_are_over() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    let id = world.one.verifier.id();
    let stopping = tokio::spawn(world.one.stop());
    while !far.verifier.stats().lease_left.is_zero() {
        assert!(world.source.verifiers().contains_key(&id));
        sleep(Duration::from_millis(20)).await;
    }
    stopping.await.unwrap();
    assert!(!world.source.verifiers().contains_key(&id));
    assert_eq!(
        far.verifier
            .verify(&text(0), &Need::default())
            .await
            .unwrap()
            .outcome,
        Ok(()),
        "by asking"
    );
}

#[tokio::test(start_paused = true)]
async fn stopping_replica_does_not_wait_for_a_long_lease() {
    let lease = Duration::from_secs(60);
    let world = World::on(MemorySource::with_lease(lease), 1, Settings::default()).await;
    let other = world.another(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    let id = world.one.verifier.id();
    let began = world.clock.elapsed();
    world.one.stop().await;
    assert_eq!(world.clock.elapsed() - began, Duration::from_secs(5));
    assert!(
        !far.verifier.stats().lease_left.is_zero() && world.source.verifiers().contains_key(&id)
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
        far.verifier.stats().lease_left.is_zero() && !world.source.verifiers().contains_key(&id)
    );
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_a_lease_grants_none() {
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
    let news = replica.poll(poll).await.unwrap();
    assert_eq!(
        (news.lease, news.changes),
        (Duration::ZERO, Some(Vec::new()))
    );
    assert_eq!(replica.stats().subscribers, 0);
}

#[tokio::test(start_paused = true)]
async fn between_replicas_nothing_has_to_be_forgotten() {
    let world = World::new(2).await;
    let other = world.another(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier, &other.verifier], &world.clock).await;
    assert_eq!(
        (far.outcome(0).await, far.outcome(1).await),
        (Ok(()), Ok(()))
    );
    for to in [1, 0, 1] {
        far.link.0.to.store(to, Ordering::SeqCst);
        sleep(LEASE).await;
        assert!(!far.looks_up(0).await);
    }
    assert_eq!(far.verifier.stats().resets, 0);
    // The one it left goes by the lease it granted last; the other one is answered at once.
    sleep(LEASE).await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    other.verifier.notify();
    other.verifier.wait_until_propagated(seq, since).await;
    assert!(world.clock.elapsed() - since < SOON);
    assert_eq!(
        (far.outcome(0).await, far.looks_up(1).await),
        (Err(Denial::Revoked), false)
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_that_is_behind_says_is_not_remembered() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier, &other.verifier], &world.clock).await;
    assert_eq!(other.outcome(0).await, Ok(()));
    far.link.0.look_up_at.store(1, Ordering::SeqCst);
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify(); // and not the other
    sleep(Duration::from_millis(10)).await;
    assert_eq!(far.verifier.stats().seq, seq);
    assert_eq!(
        far.outcome(0).await,
        Ok(()),
        "the change is not settled yet"
    );
    assert!(far.looks_up(0).await, "it was not remembered");
    other.verifier.notify();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(far.outcome(0).await, Err(Denial::Revoked));
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_refused_tells_nothing() {
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
            "there is no room"
        );
    }
    let told = std::iter::from_fn(|| {
        Some(world.one.verifier.take_usage()).filter(|rows| !rows.is_empty())
    });
    assert_eq!(told.flatten().map(|row| row.count).sum::<u64>(), 1024);
}

#[tokio::test(start_paused = true)]
async fn another_history_makes_replica_and_subscriber_forget_even_when_it_counted_as_far() {
    let world = World::new(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    world.revoke(0);
    world.one.verifier.notify();
    sleep(SOON).await;
    assert_eq!(
        (far.outcome(0).await, far.outcome(1).await),
        (Err(Denial::Revoked), Ok(()))
    );
    // Restored to before the revocation, and changed as often again before anybody looked.
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
    assert_eq!(far.outcome(1).await, Err(Denial::Revoked));
    assert_eq!(
        (
            world.one.verifier.stats().resets,
            far.verifier.stats().resets
        ),
        (1, 1),
    );
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_one_answer_holds_are_applied_before_there_is_a_lease() {
    let world = World::new(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.link.set_cut(true);
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
    far.link.set_cut(false);
    sleep(LEASE).await;
    assert_eq!(far.outcome(0).await, Err(Denial::Revoked));
    let stats = far.verifier.stats();
    assert_eq!(
        (stats.seq, stats.resets),
        (Seq(1201), 0),
        "all of them one by one"
    );
}

#[tokio::test(start_paused = true)]
async fn usage_is_told_upstream_and_comes_back_when_nobody_hears_it() {
    let world = World::new(3).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    far.link.set_cut(true);
    for _ in 0..5 {
        far.verifier
            .verify(&text(0), &Need::default())
            .await
            .unwrap_err();
    }
    far.link.set_cut(false);
    for _ in 0..5 {
        assert_eq!(far.outcome(0).await, Ok(()));
    }
    let wrong_mode = Need {
        mode: Some(tollkey_core::Mode::Live),
        ..Need::default()
    };
    far.verifier.verify(&text(0), &wrong_mode).await.unwrap();
    far.link.set_cut(true);
    sleep(Duration::from_secs(2)).await; // these polls fail, with the counts in them
    far.link.set_cut(false);
    sleep(Duration::from_secs(2)).await;
    let mut told: Vec<_> = world
        .one
        .verifier
        .take_usage()
        .iter()
        .map(|row| (row.outcome, row.count))
        .collect();
    told.sort_unstable();
    assert_eq!(told, [(None, 5), (Some(Denial::WrongMode), 1)]);
    // What is left at the end goes with the farewell.
    assert_eq!(far.outcome(1).await, Ok(()));
    far.shutdown.send(()).unwrap();
    far.task.await.unwrap();
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

/// What a replica was told, added up.
fn told(replica: &Verifier<MemorySource>) -> u64 {
    let batches = std::iter::from_fn(|| Some(replica.take_usage()).filter(|rows| !rows.is_empty()));
    batches.flatten().map(|row| row.count).sum()
}

#[tokio::test(start_paused = true)]
async fn usage_in_flight_at_a_graceful_end_counts_once() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    let replicas = [&world.one.verifier, &other.verifier];
    let mut used = 0;
    for id in 7..27 {
        let far = Subscriber::start(id, &replicas, &world.clock).await;
        for _ in 0..id {
            assert_eq!(far.outcome(0).await, Ok(()));
            used += 1;
        }
        // The next poll takes these along and hangs; a few more come after it.
        far.until_poll_has_usage().await;
        assert_eq!(far.outcome(0).await, Ok(()));
        used += 1;
        // The end of every second one goes to another replica than its last poll.
        far.link.0.to.store(usize::from(id % 2), Ordering::SeqCst);
        far.shutdown.send(()).unwrap();
        let stopped_at = world.clock.elapsed();
        far.task.await.unwrap();
        let took = world.clock.elapsed() - stopped_at;
        assert!(took <= LEASE / 3, "{took:?}");
    }
    sleep(LEASE).await;
    assert_eq!(replicas.map(told).iter().sum::<u64>(), used);
}

#[tokio::test(start_paused = true)]
async fn subscriber_that_stops_answers_nothing_from_memory() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.until_poll_has_usage().await;
    far.shutdown.send(()).unwrap();
    sleep(Duration::from_millis(1)).await;
    assert!(
        !far.task.is_finished(),
        "it waits for the response to its poll"
    );
    let before = far.link.0.finds.load(Ordering::SeqCst);
    let _ = far.verifier.verify(&text(0), &Need::default()).await;
    assert_eq!(far.link.0.finds.load(Ordering::SeqCst), before + 1);
    // A revocation does not wait for it.
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert!(world.clock.elapsed() - since < SOON);
    far.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn end_of_a_subscription_is_repeated_within_a_limit() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    // No usage is in flight, so nothing is waited for but the end itself.
    far.link.set_cut(true);
    far.shutdown.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    far.link.set_cut(false);
    far.task.await.unwrap();
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
        let far = Subscriber::start(id, &[&world.one.verifier], &world.clock).await;
        let _ = far.outcome(0).await;
        far.until_poll_has_usage().await;
        fail(&far.link, true);
        far.shutdown.send(()).unwrap();
        let stopped_at = world.clock.elapsed();
        far.task.await.unwrap();
        let took = world.clock.elapsed() - stopped_at;
        assert!(took < LEASE, "{took:?}");
        assert!(took > Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn usage_counts_once_however_often_its_responses_are_lost() {
    let world = World::new(1).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    for round in 1..6_u64 {
        for _ in 0..round {
            assert_eq!(far.outcome(0).await, Ok(()));
        }
        far.until_poll_has_usage().await;
        far.link.0.loses_answers.store(true, Ordering::SeqCst);
        // Longer than a lease: the replica remembers the poll although it has forgotten the lease.
        sleep(2 * LEASE).await;
        far.link.0.loses_answers.store(false, Ordering::SeqCst);
        sleep(LEASE).await;
        assert_eq!(told(&world.one.verifier), round);
    }
    assert_eq!(
        far.verifier.id(),
        VerifierId::from_bytes([7; 16]),
        "a repeated poll is no clone"
    );
    assert!(!far.verifier.stats().lease_left.is_zero());
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
    let far = Subscriber::start(7, &replicas, &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.link.0.balances.store(true, Ordering::SeqCst);
    for n in 0..2000_u64 {
        world.source.change(&text(1), |_| {});
        replicas.iter().for_each(|replica| replica.notify());
        // Now and then one replica gets several polls in a row, and the others none for longer than 16 polls.
        far.link.0.balances.store(n % 40 < 15, Ordering::SeqCst);
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(far.verifier.id(), VerifierId::from_bytes([7; 16]));
    assert_eq!((far.verifier.stats().resets, far.looks_up(0).await), (0, false));
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_an_id_take_new_ones_and_acknowledge_for_themselves() {
    let world = World::new(1).await;
    let shared = VerifierId::from_bytes([7; 16]);
    let one = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    let other = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    sleep(2 * LEASE).await;
    let ids = [one.verifier.id(), other.verifier.id()];
    assert!(ids[0] != ids[1] && !ids.contains(&shared), "{ids:?}");
    for far in [&one, &other] {
        assert_eq!((far.outcome(0).await, far.looks_up(0).await), (Ok(()), false));
    }
    assert_eq!(world.one.verifier.stats().subscribers, 2);

    // One of them acknowledges a revocation, the other one is frozen with its lease.
    let (frozen, link) = other.freeze().await;
    let (seq, since) = world.revoke(0);
    world.one.verifier.notify();
    world.one.verifier.wait_until_propagated(seq, since).await;
    assert_eq!(one.outcome(0).await, Err(Denial::Revoked));
    let finds = link.0.finds.load(Ordering::SeqCst);
    let outcome = frozen
        .verify(&text(0), &Need::default())
        .await
        .unwrap()
        .outcome;
    assert_eq!(
        (outcome, link.0.finds.load(Ordering::SeqCst)),
        (Err(Denial::Revoked), finds + 1)
    );
}

#[tokio::test(start_paused = true)]
async fn clone_acknowledges_nothing_for_the_process_it_was_cloned_from() {
    let world = World::new(1).await;
    let other = world.another(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    sleep(LEASE / 2).await;
    // A snapshot while a poll waits: the clone has the ID, the polls that had a response, and the lease.
    let copied = far.link.0.last_poll.lock().unwrap().clone().unwrap();
    let previous = copied.ids.as_ref().unwrap().previous.clone();
    sleep(LEASE / 2).await;
    let (frozen, link) = far.freeze().await;

    // The clone goes on where it was. It applies the revocation of whatever key, and acknowledges it.
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
    let outcome = frozen
        .verify(&text(0), &Need::default())
        .await
        .unwrap()
        .outcome;
    assert_eq!(
        (outcome, link.0.finds.load(Ordering::SeqCst)),
        (Err(Denial::Revoked), finds + 1)
    );
    // It continues as another subscriber, with nothing in its memory and nothing counted twice.
    let back = tokio::spawn(frozen.clone().subscribe(pending()));
    sleep(LEASE).await;
    assert_ne!(frozen.id(), VerifierId::from_bytes([7; 16]));
    assert!(!frozen.stats().lease_left.is_zero());
    back.abort();
}

#[tokio::test(start_paused = true)]
async fn look_ups_fail_immediately_while_the_poll_has_no_response() {
    let world = World::new(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    for hang in [Link::set_hanging, Link::set_cut] {
        hang(&far.link, true);
        while !far.verifier.stats().lease_left.is_zero() {
            sleep(Duration::from_millis(1)).await;
        }
        let ended_at = world.clock.elapsed();
        let finds = far.link.0.finds.load(Ordering::SeqCst);
        let grace = Duration::from_secs(60);
        for n in 0..2000 {
            let before = world.clock.elapsed();
            assert_eq!(
                far.verifier
                    .verify(&text(n % 2), &Need::default())
                    .await
                    .unwrap_err(),
                Unavailable
            );
            let late = far
                .verifier
                .reserve_without_immediate_revocation(&text(0), &Need::default(), grace)
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
            far.link.0.finds.load(Ordering::SeqCst),
            finds,
            "the poll is the probe"
        );
        hang(&far.link, false);
        let back_at = world.clock.elapsed();
        while far
            .verifier
            .verify(&text(0), &Need::default())
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
async fn look_ups_go_on_when_the_poll_is_rejected_or_nothing_polls() {
    let world = World::new(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.link.set_hanging(true);
    sleep(2 * LEASE).await;
    // The subscription ends badly while a response is overdue.
    let (frozen, link) = far.freeze().await;
    link.set_hanging(false);
    assert_eq!(
        frozen
            .verify(&text(1), &Need::default())
            .await
            .unwrap()
            .outcome,
        Ok(())
    );

    let far = Subscriber::start(8, &[&world.one.verifier], &world.clock).await;
    world.one.verifier.stop().await;
    sleep(2 * LEASE).await;
    assert!(far.verifier.stats().lease_left.is_zero());
    for n in 0..2 {
        assert_eq!(
            far.outcome(n).await,
            Ok(()),
            "a replica without a lease looks keys up"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn subscription_that_is_not_polled_is_logged_once_in_a_while() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let world = World::new(2).await;
    let far = Subscriber::start(7, &[&world.one.verifier], &world.clock).await;
    assert_eq!(far.outcome(0).await, Ok(()));
    far.link.set_hanging(true);
    sleep(2 * LEASE).await;
    let _ = far.verifier.verify(&text(0), &Need::default()).await;
    assert_eq!(
        log.errors(),
        0,
        "it is polled, and the server does not respond"
    );
    far.link.set_hanging(false);
    let (frozen, _link) = far.freeze().await;
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
        let _ = frozen.verify(&text(0), &Need::default()).await;
        sleep(Duration::from_secs(1)).await;
    }
}

/// Counts errors.
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
fn under_load_no_subscriber_says_yes_after_a_revocation_was_answered() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(60).await;
        let other = world.another(2).await;
        let replicas = [world.one.verifier.clone(), other.verifier.clone()];
        let mut far = Vec::new();
        for id in 7..11 {
            far.push(Subscriber::start(id, &[&replicas[usize::from(id) % 2]], &world.clock).await);
        }
        let noise: Vec<_> = far
            .iter()
            .map(|far| {
                let verifier = far.verifier.clone();
                tokio::spawn(async move {
                    for n in (0..60).cycle() {
                        let _ = verifier.verify(&text(n), &Need::default()).await;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for n in 0..60 {
            let (seq, since) = world.revoke(n);
            replicas.iter().for_each(Verifier::notify);
            replicas[n % 2].wait_until_propagated(seq, since).await;
            for far in &far {
                assert_eq!(far.outcome(n).await, Err(Denial::Revoked));
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
