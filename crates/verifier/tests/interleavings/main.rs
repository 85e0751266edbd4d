//! The cache of a verifier under threads that a scheduler runs in many orders.
//!
//! `src/cache.rs` is compiled into this test once more, with the locks and atomics of
//! [shuttle](https://docs.rs/shuttle) in the place of the real ones: it runs the same few threads thousands of times and
//! each time lets others go first, at random and by priorities that find rare orders. A failure prints a schedule;
//! `shuttle::replay` runs it again.
//!
//! What runs here is one verifier. What several do together is for the model, `crates/model`.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "the file is made for another crate"
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
    pub(crate) use tollkey_verifier::{News, PollId, PollIds};
}

mod stats {
    pub(crate) fn count(counter: &crate::locks::AtomicU64) {
        counter.fetch_add(1, shuttle::sync::atomic::Ordering::Relaxed);
    }
}

/// Usage counts have tests of their own, and no key here has a rate limit.
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

/// How often each is run, at random and again by priorities.
const RUNS: usize = 1_000;

/// As long as nothing else ends a lease.
const LONG: u64 = u64::MAX;

fn in_every_order(run: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(run.clone(), RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

fn text(key: u8) -> String {
    format!("ck_test_{key:032}")
}

fn digest(key: u8) -> Digest {
    Digest::of(&text(key))
}

fn id(key: u8) -> KeyId {
    record(&text(key)).key.id
}

fn service_key() -> ServiceKeyId {
    ServiceKeyId::from_bytes([7; 16])
}

/// A verifier's cache and the database behind it, in which all keys are valid until something has changed.
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
    /// With room for so many keys, and a lease until then.
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

    /// A change, committed.
    fn revoke(&self, what: Changed) {
        let mut database = self.database.lock().unwrap();
        database.position = Position {
            seq: Seq(database.position.seq.0 + 1),
            at: 1,
        };
        let position = database.position;
        database.changes.push((position, what.clone()));
        database.revoked.push(what);
    }

    /// The database is an older one again, in which the key was revoked by a change that nobody has seen.
    fn restore(&self, key: u8) {
        let mut database = self.database.lock().unwrap();
        database.position = Position { seq: Seq(1), at: 2 };
        database.changes = vec![(database.position, Changed::Key(id(key)))];
        database.revoked = vec![Changed::Key(id(key))];
    }

    /// The counter, and whether nothing of this has been revoked.
    fn read(&self, what: &[Changed]) -> (Seq, bool) {
        let database = self.database.lock().unwrap();
        (
            database.position.seq,
            !what.iter().any(|what| database.revoked.contains(what)),
        )
    }

    /// A verification that does not find the key in the cache.
    fn fill(&self, key: u8) {
        let asked = self.cache.generation();
        let record = record(&text(key));
        let (seq, valid) = self.read(&[
            Changed::Key(record.key.id),
            Changed::Account(record.key.account_id.clone()),
        ]);
        if valid {
            self.cache
                .insert_fetched(&digest(key), seq, asked, record, 0);
        }
    }

    fn fill_service_key(&self) {
        let asked = self.cache.generation();
        let (seq, valid) = self.read(&[Changed::ServiceKey(service_key())]);
        if valid {
            self.cache
                .insert_fetched_service_key(&digest(0), seq, asked, service_key());
        }
    }

    /// Applies all changes. A verifier has one of these at a time.
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

    /// A renewal, which gives a lease until `end` if it succeeds.
    fn renew(&self, end: u64) {
        let (applied, generation) = self.cache.applied();
        let renewed = self.database.lock().unwrap().position == applied;
        if renewed {
            self.cache.grant(generation, end);
        }
    }

    /// Whether the key is verified from the cache, at a time.
    fn answers(&self, key: u8, elapsed: u64) -> bool {
        self.cache.get(&digest(key), elapsed).is_some()
    }

    fn spawn(self: &Arc<Self>, run: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let world = Arc::clone(self);
        thread::spawn(move || run(&world))
    }
}

#[test]
fn a_slow_answer_never_puts_back_what_was_evicted() {
    in_every_order(|| {
        let world = World::new(8, LONG);
        let fills = world.spawn(|world| world.fill(1));
        world.revoke(Changed::Key(id(1)));
        world.catch_up();
        assert!(!world.answers(1, 1), "right after it was applied");
        fills.join().unwrap();
        assert!(!world.answers(1, 1), "after the slow answer");
    });
}

#[test]
fn two_slow_answers_do_not_either() {
    in_every_order(|| {
        let world = World::new(8, LONG);
        let fills = [
            world.spawn(|world| world.fill(1)),
            world.spawn(|world| world.fill(1)),
        ];
        world.revoke(Changed::Account(record(&text(1)).key.account_id));
        world.catch_up();
        assert!(!world.answers(1, 1), "right after it was applied");
        fills.into_iter().for_each(|fill| fill.join().unwrap());
        assert!(!world.answers(1, 1), "after the slow answers");
        assert_eq!(world.cache.len(), 0);
    });
}

#[test]
fn nor_of_a_service_key() {
    in_every_order(|| {
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
            "after the slow answers"
        );
    });
}

#[test]
fn an_entry_is_not_accepted_under_the_lease_that_its_eviction_earned() {
    in_every_order(|| {
        // The lease has ended, so the revocation returns although it is not applied here.
        let world = World::new(8, 5);
        world.fill(1);
        world.revoke(Changed::Key(id(1)));
        let applies = world.spawn(|world| {
            world.catch_up();
            world.renew(20);
        });
        // A request that waits for a change applies it beside the task that renews.
        let renews = world.spawn(|world| world.renew(20));
        assert!(!world.answers(1, 6));
        applies.join().unwrap();
        renews.join().unwrap();
        assert!(!world.answers(1, 6));
    });
}

#[test]
fn what_is_under_way_when_everything_is_forgotten_is_forgotten_too() {
    in_every_order(|| {
        let world = World::new(8, LONG);
        world.revoke(Changed::Key(id(2)));
        world.revoke(Changed::Key(id(2)));
        world.catch_up();
        world.fill(1);
        let fills = world.spawn(|world| world.fill(1));
        let renews = world.spawn(|world| world.renew(LONG));
        world.restore(1);
        world.catch_up();
        assert!(!world.answers(1, 1), "right after it was seen");
        fills.join().unwrap();
        renews.join().unwrap();
        assert!(!world.answers(1, 1), "after what was under way");
        world.renew(LONG);
        assert!(!world.answers(1, 1), "under a new lease");
    });
}

#[test]
fn no_lease_comes_after_the_end() {
    in_every_order(|| {
        let world = World::new(8, 5);
        world.fill(1);
        let renews = world.spawn(|world| world.renew(LONG));
        let fills = world.spawn(|world| world.fill(1));
        world.cache.stop();
        assert!(!world.answers(1, 1), "right after the end");
        renews.join().unwrap();
        fills.join().unwrap();
        assert!(!world.answers(1, 1), "after what was under way");
    });
}

#[test]
fn a_dropped_lease_comes_back_only_by_a_renewal_that_began_afterwards() {
    in_every_order(|| {
        let world = World::new(8, LONG);
        world.fill(1);
        let renews = world.spawn(|world| world.renew(LONG));
        // The change cannot be applied, so no key may be verified from the cache.
        world.revoke(Changed::Key(id(1)));
        world.cache.drop_lease();
        assert!(!world.answers(1, 1), "right after it was dropped");
        renews.join().unwrap();
        assert!(!world.answers(1, 1), "after the renewal that was under way");
    });
}

#[test]
fn making_room_loses_nothing_that_a_change_could_be_about() {
    in_every_order(|| {
        let world = World::new(1, LONG);
        let fills = [1, 2, 1].map(|key| world.spawn(move |world| world.fill(key)));
        world.revoke(Changed::Key(id(1)));
        world.catch_up();
        assert!(!world.answers(1, 1), "right after it was applied");
        fills.into_iter().for_each(|fill| fill.join().unwrap());
        assert!(!world.answers(1, 1), "after the slow answers");
        assert!(world.cache.len() <= 1);
        world.revoke(Changed::Key(id(2)));
        world.catch_up();
        assert!(!world.answers(2, 1));
        assert_eq!(world.cache.len(), 0);
    });
}

#[test]
fn what_is_reported_is_never_ahead_of_what_a_subscriber_was_told() {
    in_every_order(|| {
        let world = World::new(8, LONG);
        let subscriber = VerifierId::from_bytes([7; 16]);
        let begin = move |world: &World| {
            world
                .cache
                .serve(subscriber, None, Position::default(), 8, 1)
                .unwrap()
                .0
        };
        let told = Arc::new(Mutex::new(None));
        let polls = world.spawn({
            let told = Arc::clone(&told);
            move |world| *told.lock().unwrap() = Some(begin(world))
        });
        world.revoke(Changed::Key(id(1)));
        world.catch_up();
        let (.., reported) = world.cache.applied_everywhere(1);
        polls.join().unwrap();
        let news = told.lock().unwrap().take().unwrap();
        assert!(news.position.seq >= reported, "{reported} {news:?}");
        // From here on it holds a lease: what it has not acknowledged is not reported.
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
