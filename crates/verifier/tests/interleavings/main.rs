//! Tests of the cache of one verifier under many thread interleavings.
//!
//! `src/cache.rs` is compiled into this test with the locks and atomics of [shuttle](https://docs.rs/shuttle)
//! instead of the real ones. Shuttle runs each test in thousands of thread interleavings: first random ones,
//! then ones from random thread priorities, which find rare orders. A failure prints a schedule, which
//! `shuttle::replay` runs again.
//!
//! The model in `crates/model` covers several verifiers.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "the included files belong to another crate"
)]

#[path = "../../src/cache.rs"]
mod cache;
mod locks;
#[path = "../../src/share.rs"]
mod share;
#[path = "../../src/subscription/subscribers.rs"]
mod subscribers;
#[path = "../../src/watches.rs"]
mod watches;

mod subscription {
    pub(crate) use crate::subscribers;
}

mod testing {
    pub(crate) use tollkey_verifier::testing::record;
}

mod source {
    pub(crate) use tollkey_verifier::{PollId, PollIds, PollResponse};
}

mod stats {
    pub(crate) fn count(counter: &crate::locks::AtomicU64) {
        counter.fetch_add(1, shuttle::sync::atomic::Ordering::Relaxed);
    }
}

/// A stub: usage counts have other tests. `rate` is a stub too, because no key here has a rate limit.
mod usage {
    pub(crate) struct Tally(());

    impl Tally {
        pub(crate) fn new(_: tollkey_core::KeyId, _: tollkey_core::AccountId) -> Self {
            Self(())
        }
    }
}

mod rate {
    use std::sync::Arc;

    use tollkey_core::{AccountId, KeyId, RateLimit};

    pub(crate) struct Limiter;

    pub(crate) struct Limiters;

    impl Limiters {
        pub(crate) const EACH: usize = 1;

        pub(crate) fn bytes(&self) -> usize {
            0
        }

        pub(crate) fn new(_: usize) -> Self {
            Self
        }

        pub(crate) fn get_or_insert(
            &mut self,
            _: &AccountId,
            _: KeyId,
            _: RateLimit,
            _: bool,
            _: u64,
        ) -> Arc<Limiter> {
            Arc::new(Limiter)
        }
    }
}

use std::sync::Arc;

use cache::{Acknowledged, Bounds, Cache};
use shuttle::{sync::Mutex, thread};
use tollkey_core::{ChangeLog, Changed, Digest, KeyId, Position, Seq, ServiceKeyId, VerifierId};
use tollkey_verifier::testing::record;

/// The number of random interleavings of each test, and the number of those from priorities.
const RUNS: usize = 1_000;

/// The end of a lease that does not expire during a test.
const LONG: u64 = u64::MAX;

fn in_many_orders(run: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(run.clone(), RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

fn text(key: u8) -> String {
    format!("ck_test_{key:032}")
}

fn digest(key: u8) -> Digest {
    Digest::of_key(&text(key))
}

fn id(key: u8) -> KeyId {
    record(&text(key)).key.id
}

fn service_key() -> ServiceKeyId {
    ServiceKeyId::from_bytes([7; 16])
}

/// A verifier's cache and its database, in which all keys are valid until they are revoked.
struct World {
    cache: Cache,
    database: Mutex<Database>,
}

#[derive(Default)]
struct Database {
    position: Position,
    changes: Vec<(Position, Changed)>,
    revoked: Vec<Changed>,
}

impl World {
    /// Creates a cache of at most `max` keys with a lease until `lease`.
    fn new(max: usize, lease: u64) -> Arc<Self> {
        let bounds = Bounds {
            entries: max,
            entry_bytes: 1 << 20,
            limiter_bytes: 0,
        };
        let world = Self {
            cache: Cache::new(&bounds, Position::default(), 0),
            database: Mutex::default(),
        };
        assert!(world.cache.grant(world.cache.generation(), lease));
        Arc::new(world)
    }

    fn revoke(&self, changed: Changed) {
        let mut database = self.database.lock().unwrap();
        database.position = Position {
            seq: Seq(database.position.seq.0 + 1),
            at: 1,
        };
        let position = database.position;
        database.changes.push((position, changed.clone()));
        database.revoked.push(changed);
    }

    /// Restores an older database, in which the key was revoked by a change that the cache has not applied.
    fn restore(&self, key: u8) {
        let mut database = self.database.lock().unwrap();
        database.position = Position { seq: Seq(1), at: 2 };
        database.changes = vec![(database.position, Changed::Key(id(key)))];
        database.revoked = vec![Changed::Key(id(key))];
    }

    /// Returns the counter, and whether nothing in `changed` is revoked.
    fn read(&self, changed: &[Changed]) -> (Seq, bool) {
        let database = self.database.lock().unwrap();
        (
            database.position.seq,
            !changed
                .iter()
                .any(|changed| database.revoked.contains(changed)),
        )
    }

    /// Looks a key up, as a verification does after a cache miss.
    fn fill(&self, key: u8) {
        let generation = self.cache.generation();
        let record = record(&text(key));
        let (seq, valid) = self.read(&[
            Changed::Key(record.key.id),
            Changed::Account(record.key.account_id.clone()),
        ]);
        if valid {
            self.cache
                .insert_fetched(&digest(key), seq, generation, record, 0);
        }
    }

    fn fill_service_key(&self) {
        let generation = self.cache.generation();
        let (seq, valid) = self.read(&[Changed::ServiceKey(service_key())]);
        if valid {
            self.cache
                .insert_fetched_service_key(&digest(0), seq, generation, service_key());
        }
    }

    /// Applies all changes. A verifier runs this in one thread at a time.
    fn catch_up(&self) {
        loop {
            let (applied, _) = self.cache.applied();
            let log = {
                let database = self.database.lock().unwrap();
                let after = database
                    .changes
                    .iter()
                    .filter(|(at, _)| at.seq > applied.seq);
                let joins = applied == Position::default()
                    || database.changes.iter().any(|(at, _)| *at == applied);
                ChangeLog {
                    current: database.position,
                    changes: joins.then(|| after.cloned().collect()),
                }
            };
            if self.cache.apply(&log) {
                return;
            }
        }
    }

    /// Renews the lease until `end`, if all changes are applied.
    fn renew(&self, end: u64) {
        let (applied, generation) = self.cache.applied();
        let renewed = self.database.lock().unwrap().position == applied;
        if renewed {
            self.cache.grant(generation, end);
        }
    }

    fn verifies(&self, key: u8, elapsed: u64) -> bool {
        self.cache.get(&digest(key), elapsed).is_some()
    }

    fn spawn(self: &Arc<Self>, run: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let world = Arc::clone(self);
        thread::spawn(move || run(&world))
    }
}

#[test]
fn slow_response_does_not_put_back_an_evicted_key() {
    in_many_orders(|| {
        let world = World::new(8, LONG);
        let fills = world.spawn(|world| world.fill(1));
        world.revoke(Changed::Key(id(1)));
        world.catch_up();
        assert!(!world.verifies(1, 1), "right after it was applied");
        fills.join().unwrap();
        assert!(!world.verifies(1, 1), "after the slow response");
    });
}

#[test]
fn two_slow_responses_do_not_put_back_an_evicted_key() {
    in_many_orders(|| {
        let world = World::new(8, LONG);
        let fills = [
            world.spawn(|world| world.fill(1)),
            world.spawn(|world| world.fill(1)),
        ];
        world.revoke(Changed::Account(record(&text(1)).key.account_id));
        world.catch_up();
        assert!(!world.verifies(1, 1), "right after it was applied");
        fills.into_iter().for_each(|fill| fill.join().unwrap());
        assert!(!world.verifies(1, 1), "after the slow responses");
        assert_eq!(world.cache.len(), 0);
    });
}

#[test]
fn slow_response_does_not_put_back_a_service_key() {
    in_many_orders(|| {
        let world = World::new(8, LONG);
        let fills = [
            world.spawn(World::fill_service_key),
            world.spawn(World::fill_service_key),
        ];
        world.revoke(Changed::ServiceKey(service_key()));
        world.catch_up();
        assert_eq!(
            world.cache.get_service_key(&digest(0), 1),
            None,
            "right after it was applied"
        );
        fills.into_iter().for_each(|fill| fill.join().unwrap());
        assert_eq!(
            world.cache.get_service_key(&digest(0), 1),
            None,
            "after the slow responses"
        );
    });
}

#[test]
fn evicted_key_is_not_accepted_under_the_next_lease() {
    in_many_orders(|| {
        // The lease has expired, so the revocation returns although it is not applied here.
        let world = World::new(8, 5);
        world.fill(1);
        world.revoke(Changed::Key(id(1)));
        let applies = world.spawn(|world| {
            world.catch_up();
            world.renew(20);
        });
        // A request that waits for a change applies it concurrently with the task that renews.
        let renews = world.spawn(|world| world.renew(20));
        assert!(!world.verifies(1, 6));
        applies.join().unwrap();
        renews.join().unwrap();
        assert!(!world.verifies(1, 6));
    });
}

#[test]
fn responses_in_flight_during_a_reset_are_not_used() {
    in_many_orders(|| {
        let world = World::new(8, LONG);
        world.revoke(Changed::Key(id(2)));
        world.revoke(Changed::Key(id(2)));
        world.catch_up();
        world.fill(1);
        let fills = world.spawn(|world| world.fill(1));
        let renews = world.spawn(|world| world.renew(LONG));
        world.restore(1);
        world.catch_up();
        assert!(!world.verifies(1, 1), "right after the cache was cleared");
        fills.join().unwrap();
        renews.join().unwrap();
        assert!(!world.verifies(1, 1), "after the requests in flight");
        world.renew(LONG);
        assert!(!world.verifies(1, 1), "under a new lease");
    });
}

#[test]
fn stopped_verifier_gets_no_lease() {
    in_many_orders(|| {
        let world = World::new(8, 5);
        world.fill(1);
        let renews = world.spawn(|world| world.renew(LONG));
        let fills = world.spawn(|world| world.fill(1));
        world.cache.stop();
        assert!(!world.verifies(1, 1), "right after it was stopped");
        renews.join().unwrap();
        fills.join().unwrap();
        assert!(!world.verifies(1, 1), "after the requests in flight");
    });
}

#[test]
fn renewal_in_flight_does_not_restore_a_dropped_lease() {
    in_many_orders(|| {
        let world = World::new(8, LONG);
        world.fill(1);
        let renews = world.spawn(|world| world.renew(LONG));
        // The change cannot be applied, so no key may be verified from the cache.
        world.revoke(Changed::Key(id(1)));
        world.cache.drop_lease();
        assert!(!world.verifies(1, 1), "right after it was dropped");
        renews.join().unwrap();
        assert!(!world.verifies(1, 1), "after the renewal in flight");
    });
}

#[test]
fn change_finds_every_key_after_evictions_for_space() {
    in_many_orders(|| {
        let world = World::new(1, LONG);
        let fills = [1, 2, 1].map(|key| world.spawn(move |world| world.fill(key)));
        world.revoke(Changed::Key(id(1)));
        world.catch_up();
        assert!(!world.verifies(1, 1), "right after it was applied");
        fills.into_iter().for_each(|fill| fill.join().unwrap());
        assert!(!world.verifies(1, 1), "after the slow responses");
        assert!(world.cache.len() <= 1);
        world.revoke(Changed::Key(id(2)));
        world.catch_up();
        assert!(!world.verifies(2, 1));
        assert_eq!(world.cache.len(), 0);
    });
}

#[test]
fn report_is_never_ahead_of_a_subscribers_position() {
    in_many_orders(|| {
        let world = World::new(8, LONG);
        let subscriber = VerifierId::from_bytes([7; 16]);
        let first_poll = move |world: &World| {
            world
                .cache
                .serve(subscriber, None, Position::default(), 8, 1)
                .unwrap()
                .0
        };
        let response = Arc::new(Mutex::new(None));
        let polls = world.spawn({
            let response = Arc::clone(&response);
            move |world| *response.lock().unwrap() = Some(first_poll(world))
        });
        world.revoke(Changed::Key(id(1)));
        world.catch_up();
        let (.., reported) = world.cache.applied_everywhere(1);
        polls.join().unwrap();
        let news = response.lock().unwrap().take().unwrap();
        assert!(news.position.seq >= reported, "{reported} {news:?}");
        // Now the subscriber holds a lease: changes that it has not acknowledged are not reported.
        world.revoke(Changed::Key(id(2)));
        world.catch_up();
        assert_eq!(world.cache.applied_everywhere(2).2, news.position.seq);
        let acknowledged =
            world
                .cache
                .acknowledge(subscriber, None, Position { seq: Seq(2), at: 1 }, 2);
        assert_eq!(acknowledged, Ok(Acknowledged::More));
        assert_eq!(world.cache.applied_everywhere(2).2, Seq(2));
    });
}
