//! One account or client cannot take the connections that others need.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tollkey_core::{ApiKey, Changed, Family, KeyId, Mode, Position, Seq, VerifierId};
use tollkey_store::{
    AuditFilter, Backend, EXAMINED_ENTRIES, EXAMINED_KEYS, Error, KeyCursor, KeyFilter, KeyPage,
    OpenOptions, Owner, PoolStats, Store,
    testing::{Database, RealClock},
};

use crate::{Actions as _, acme, at, digest, each, id, key, other, position};

const FLOOD: usize = 60;

/// Opens a store with a pool of that size on a migrated database.
fn store_with(database: &Database, pool_size: u32) -> Store {
    let _migrated = database.store();
    let options = OpenOptions {
        pool_size,
        ..OpenOptions::new(database.url())
    };
    Store::open(options, Arc::new(RealClock::default())).unwrap()
}

/// Blocks closures that run on connections until they are released.
#[derive(Clone, Default)]
struct Held(Arc<(Mutex<(usize, bool)>, Condvar)>);

impl Held {
    /// Blocks until released; for less time than PostgreSQL's timeout for idle transactions.
    fn wait(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.0 += 1;
        changed.notify_all();
        let _ = changed
            .wait_timeout_while(state, Duration::from_millis(1_800), |(_, released)| {
                !*released
            })
            .unwrap();
    }

    /// Waits until that many closures are running.
    async fn until(&self, running: usize) {
        let held = self.clone();
        let reached = tokio::task::spawn_blocking(move || {
            let (state, changed) = &*held.0;
            let limit = Duration::from_secs(20);
            !changed
                .wait_timeout_while(state.lock().unwrap(), limit, |state| state.0 < running)
                .unwrap()
                .1
                .timed_out()
        });
        assert!(reached.await.unwrap());
    }

    fn release(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().1 = true;
        changed.notify_all();
    }
}

#[test]
fn pools_report_calls_that_use_or_wait_for_connections() {
    each(async |database| {
        let _migrated = database.store();
        let options = OpenOptions {
            pool_size: 2,
            acquire_timeout: Duration::from_secs(1),
            ..OpenOptions::new(database.url())
        };
        let store = Store::open(options, Arc::new(RealClock::default())).unwrap();
        let pool = |name| {
            let pools = store.pools();
            let found = pools.iter().find(|pool| pool.name == name);
            let PoolStats {
                size,
                in_use,
                waiting,
                rejected,
                ..
            } = *found.unwrap_or_else(|| panic!("no {name} in {pools:?}"));
            (size, in_use, waiting, rejected)
        };
        let held = Held::default();
        let call = || {
            let (store, held) = (store.clone(), held.clone());
            tokio::spawn(async move {
                let account = acme();
                let read = store.read_for(&account, move |_| {
                    held.wait();
                    Ok(())
                });
                read.await
            })
        };
        let running = call();
        held.until(1).await;
        let waiting = call();
        let began = Instant::now();
        while pool("management") != (2, 1, 1, 0) {
            assert!(
                began.elapsed() < Duration::from_secs(1),
                "{:?}",
                store.pools()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(waiting.await.unwrap(), Err(Error::Busy));
        held.release();
        running.await.unwrap().unwrap();
        assert_eq!(pool("management"), (2, 0, 0, 1));
        assert_eq!(pool("verification"), (1, 0, 0, 0));
        assert_eq!(pool("lease"), (2, 0, 0, 0));
        assert_eq!(pool("sessions"), (2, 0, 0, 0));
        let writes_alone = store.pools().iter().any(|pool| pool.name == "changes");
        assert_eq!(writes_alone, store.backend() == Backend::Sqlite);
    });
}

#[test]
fn reads_of_one_account_leave_connections_for_others() {
    each(async |database| {
        let store = store_with(database, 4);
        store.add_key(&key(1, &other())).await.unwrap();
        let held = Held::default();
        let flood: Vec<JoinHandle<Result<(), Error>>> = (0..FLOOD)
            .map(|_| {
                let (store, held) = (store.clone(), held.clone());
                tokio::spawn(async move {
                    store
                        .read_for(&acme(), move |_| {
                            held.wait();
                            Ok(())
                        })
                        .await
                })
            })
            .collect();
        held.until(2).await; // the share of one account in four connections
        let began = Instant::now();
        assert!(
            store
                .read_for(&other(), |db| db
                    .account(&other())
                    .key(&Family::ALL, &id(1)))
                .await
                .unwrap()
                .is_some()
        );
        assert!(
            store
                .find_by_digest(digest(1))
                .await
                .unwrap()
                .found
                .is_some()
        );
        assert_eq!(store.find_service_key(digest(1)).await.unwrap().found, None);
        assert_eq!(
            store.session(Owner::Client(None), digest(1)).await,
            Ok(None)
        );
        assert_eq!(
            store
                .renew(VerifierId::from_bytes([1; 16]), Seq(0), Position::default())
                .await,
            Ok(true)
        );
        assert_eq!(position(&store).await, Position::default());
        store.ping().await.unwrap();
        assert!(
            store
                .write_for(&other(), |_| Ok::<_, Error>(()))
                .await
                .is_ok()
        );
        assert!(
            began.elapsed() < Duration::from_millis(1_500),
            "others wait for the flood: {:?}",
            began.elapsed()
        );
        held.release();
        for read in flood {
            read.await.unwrap().unwrap();
        }
    });
}

#[test]
fn changes_of_one_account_do_not_delay_others_or_leases() {
    each(async |database| {
        let store = store_with(database, 2);
        let (held, done) = (Held::default(), Arc::new(AtomicUsize::new(0)));
        let flood: Vec<JoinHandle<()>> = (0..FLOOD)
            .map(|_| {
                let (store, held, done) = (store.clone(), held.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    let written = store.write_for(Owner::from(&acme()), move |_| {
                        held.wait();
                        Ok::<_, Error>(())
                    });
                    let _ = written.await.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        held.until(1).await;
        let change = tokio::spawn({
            let (store, done) = (store.clone(), Arc::clone(&done));
            async move {
                store
                    .write_for(&other(), |_| Ok::<_, Error>(()))
                    .await
                    .map(|_| done.load(Ordering::SeqCst))
            }
        });
        let renewal = tokio::spawn({
            let (store, done) = (store.clone(), Arc::clone(&done));
            async move {
                let renewed = store
                    .renew(VerifierId::from_bytes([1; 16]), Seq(0), Position::default())
                    .await;
                assert_eq!(renewed, Ok(true));
                done.load(Ordering::SeqCst)
            }
        });
        tokio::time::sleep(Duration::from_millis(50)).await; // on SQLite both wait now
        held.release();
        let (change, renewal) = (change.await.unwrap().unwrap(), renewal.await.unwrap());
        assert!(
            renewal <= FLOOD / 4,
            "{renewal} changes came before the renewal"
        );
        assert!(
            change <= FLOOD / 4,
            "{change} changes came before that of the other account"
        );
        for write in flood {
            write.await.unwrap();
        }
    });
}

/// On SQLite: each renewal needs the writer, and a change counter that has not changed since the verifier read it.
#[test]
fn leases_are_renewed_during_constant_changes() {
    each(async |database| {
        if database.backend() == Backend::Postgres {
            return; // which does not reserve the writer for renewals
        }
        let store = store_with(database, 4);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let changes: Vec<JoinHandle<usize>> = (0..4)
            .map(|number| {
                let (store, stop) = (store.clone(), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut count = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let written = store.write_for(Owner::from(&acme()), move |tx| {
                            tx.changed(Changed::Key(id(number)));
                            Ok::<_, Error>(())
                        });
                        let _ = written.await.unwrap();
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let verifier = VerifierId::from_bytes([1; 16]);
        let mut applied = position(&store).await;
        let mut most = 0;
        for _ in 0..30 {
            let mut attempts = 1;
            while !store.renew(verifier, applied.seq, applied).await.unwrap() {
                applied = store.changes_after(applied, 1000).await.unwrap().current;
                attempts += 1;
            }
            most = most.max(attempts);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.store(true, Ordering::SeqCst);
        for count in changes {
            assert!(count.await.unwrap() > 0, "no changes were made");
        }
        assert!(most <= 5, "a renewal took {most} attempts");
    });
}

#[test]
fn full_queue_rejects_the_account_that_fills_it() {
    each(async |database| {
        let store = store_with(database, 2);
        let held = Held::default();
        let flood: Vec<JoinHandle<Result<(), Error>>> = (0..1_200)
            .map(|_| {
                let (store, held) = (store.clone(), held.clone());
                tokio::spawn(async move {
                    store
                        .read_for(&acme(), move |_| {
                            held.wait();
                            Ok(())
                        })
                        .await
                })
            })
            .collect();
        held.until(1).await;
        let finished = async || flood.iter().filter(|read| read.is_finished()).count();
        let began = Instant::now();
        while finished().await < 1_200 - 1 - 1_024 {
            assert!(began.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(store.read_for(&other(), |_| Ok(())).await, Ok(()));
        held.release();
        let mut busy = 0;
        for read in flood {
            busy += usize::from(read.await.unwrap() == Err(Error::Busy));
        }
        assert!(busy >= 1_200 - 1 - 1_024);
    });
}

/// Returns all pages of a list.
async fn pages(store: &Store, limit: u32, filter: fn() -> KeyFilter<'static>) -> Vec<KeyPage> {
    let mut pages: Vec<KeyPage> = Vec::new();
    loop {
        let after = pages.last().and_then(|page| page.next);
        if after.is_none() && !pages.is_empty() {
            return pages;
        }
        let page = store
            .read_for(&acme(), move |db| {
                db.account(&acme()).keys(&filter(), after, limit)
            })
            .await
            .unwrap();
        assert!(page.keys.len() <= limit as usize && pages.len() < 100);
        pages.push(page);
    }
}

fn found(pages: &[KeyPage]) -> Vec<KeyId> {
    pages
        .iter()
        .flat_map(|page| &page.keys)
        .map(|key| key.id)
        .collect()
}

#[test]
fn search_examines_a_bounded_number_of_keys() {
    const KEYS: u64 = 12_000;
    each(async |database| {
        let store = database.store();
        let keys = (1..=KEYS).map(|number| {
            let family = if number % 3 == 0 {
                Family::Secret
            } else {
                Family::Commerce
            };
            let mode = if number % 4_000 == 1 {
                Mode::Test
            } else {
                Mode::Live
            };
            let name = if number % 1_999 == 0 {
                format!("Needle {number}")
            } else {
                format!("key {number}")
            };
            // Several keys per second: the ID decides between them.
            let created_at = at(i64::try_from(number / 7).unwrap());
            (
                ApiKey {
                    family,
                    mode,
                    name,
                    created_at,
                    ..key(number, &acme())
                },
                digest(number),
            )
        });
        let theirs = [(
            ApiKey {
                name: "needle".to_owned(),
                ..key(KEYS + 1, &other())
            },
            digest(KEYS + 1),
        )];
        store
            .fill(std::iter::empty(), keys.chain(theirs), |_| ())
            .unwrap();
        let every = |step: u64, rest: u64, is_of: &dyn Fn(u64) -> bool| -> Vec<KeyId> {
            (1..=KEYS)
                .rev()
                .filter(|number| number % step == rest && is_of(*number))
                .map(id)
                .collect()
        };

        let by_name = || KeyFilter {
            families: &Family::ALL,
            text: Some("needle"),
            ..KeyFilter::default()
        };
        let needles = pages(&store, 50, by_name).await;
        assert_eq!(found(&needles), every(1_999, 0, &|_| true));
        // The first page is not full; it ends after the maximum number of examined keys.
        let expected = KeyCursor::from(&key(KEYS - u64::from(EXAMINED_KEYS) + 1, &acme())).id;
        assert_eq!(needles[0].next.map(|next| next.id), Some(expected));
        assert_eq!(needles.len(), 3);
        // A full page ends with its last key.
        let one_each = pages(&store, 1, by_name).await;
        assert_eq!(found(&one_each), every(1_999, 0, &|_| true));
        assert_eq!(
            one_each[0].next,
            one_each[0].keys.last().map(KeyCursor::from)
        );
        // A search without matches has a bounded number of pages too.
        let none = || KeyFilter {
            families: &Family::ALL,
            text: Some("haystack"),
            ..KeyFilter::default()
        };
        let none = pages(&store, 50, none).await;
        assert_eq!((none.len(), found(&none).len()), (3, 0));

        let test_keys = || KeyFilter {
            families: &[Family::Secret, Family::Commerce],
            mode: Some(Mode::Test),
            ..KeyFilter::default()
        };
        assert_eq!(
            found(&pages(&store, 50, test_keys).await),
            every(4_000, 1, &|_| true)
        );
        // An index serves a family: each page is full.
        let secret = || KeyFilter {
            families: &[Family::Secret],
            ..KeyFilter::default()
        };
        let secret = pages(&store, 1_000, secret).await;
        assert_eq!(found(&secret), every(3, 0, &|_| true));
        assert!(secret[..3].iter().all(|page| page.keys.len() == 1_000));
        // The keys of two families are merged in order.
        let both = || KeyFilter {
            families: &[Family::Secret, Family::Commerce],
            ..KeyFilter::default()
        };
        assert_eq!(
            found(&pages(&store, 1_000, both).await),
            every(1, 0, &|_| true)
        );
        let unique: BTreeSet<KeyId> = found(&pages(&store, 999, both).await).into_iter().collect();
        assert_eq!(unique.len(), usize::try_from(KEYS).unwrap());
    });
}

#[test]
fn search_by_id_examines_no_other_keys() {
    each(async |database| {
        let store = database.store();
        let keys = (1..=11_000).map(|number| (key(number, &acme()), digest(number)));
        store.fill(std::iter::empty(), keys, |_| ()).unwrap();
        let search = async |filter: KeyFilter<'static>| {
            let text = KeyId::from(id(1)).to_string();
            let page = store.read(move |db| {
                let filter = KeyFilter {
                    text: Some(&text),
                    ..filter
                };
                db.account(&acme()).keys(&filter, None, 10)
            });
            found(&[page.await.unwrap()])
        };
        assert_eq!(
            search(KeyFilter {
                families: &Family::ALL,
                ..KeyFilter::default()
            })
            .await,
            [id(1)]
        );
        let secret = KeyFilter {
            families: &[Family::Secret],
            ..KeyFilter::default()
        };
        assert_eq!(search(secret).await, [], "the other filters apply");
    });
}

#[test]
fn audit_search_examines_a_bounded_number_of_entries() {
    const ENTRIES: u64 = 12_000;
    each(async |database| {
        let store = database.store();
        let unique = match database.backend() {
            Backend::Sqlite => "randomblob(16)",
            Backend::Postgres => "decode(md5(n::text), 'hex')",
        };
        let hash = match database.backend() {
            Backend::Sqlite => "zeroblob(32)",
            Backend::Postgres => "decode(repeat('00', 32), 'hex')",
        };
        database.sql(&format!(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {ENTRIES}) \
             INSERT INTO audit_log (account_id, seq, id, occurred_at, action, actor_kind, actor_id, target_kind, \
             target_id, changes, hash) SELECT 'acme', n, {unique}, CAST(n AS BIGINT) * 1000000, \
             CASE WHEN n % 2 = 0 THEN 'api_key.created' ELSE 'api_key.revoked' END, 'merchant', \
             CASE WHEN n % 3000 = 2 THEN 'rare' ELSE 'user_1' END, 'api_key', 'x', '{{}}', {hash} FROM numbers"
        ));
        let pages = async |filter: AuditFilter, limit| {
            let (mut pages, mut before) = (Vec::new(), None);
            loop {
                let filter = filter.clone();
                let page = store
                    .read(move |db| db.account(&acme()).audit_log(&filter, before, limit))
                    .await
                    .unwrap();
                before = page.next;
                pages.push(
                    page.entries
                        .iter()
                        .map(|entry| entry.seq)
                        .collect::<Vec<_>>(),
                );
                assert!(pages.len() < 100);
                if before.is_none() {
                    return pages;
                }
            }
        };
        // No index serves times in the order of the log.
        let until = AuditFilter {
            until: Some(tollkey_core::Timestamp::from_second(4).unwrap()),
            ..Default::default()
        };
        let old = pages(until, 50).await;
        assert_eq!(old, [vec![], vec![], vec![3, 2, 1]]);
        assert_eq!(
            old.len() as u64,
            ENTRIES.div_ceil(u64::from(EXAMINED_ENTRIES))
        );
        // No index serves the kind of the target.
        let accounts = AuditFilter {
            target_kind: Some(tollkey_core::audit::TargetKind::Account),
            ..Default::default()
        };
        assert_eq!(pages(accounts, 50).await, [[0; 0]; 3]);
        // An index serves only one of the two conditions.
        let rare = AuditFilter {
            action: Some(tollkey_core::audit::Action::ApiKeyCreated),
            actor_id: Some("rare".to_owned()),
            ..Default::default()
        };
        assert_eq!(
            pages(rare.clone(), 50).await.concat(),
            [9_002, 6_002, 3_002, 2]
        );
        assert_eq!(pages(rare, 1).await.concat(), [9_002, 6_002, 3_002, 2]);
        let actor = AuditFilter {
            actor_id: Some("rare".to_owned()),
            ..Default::default()
        };
        assert_eq!(pages(actor, 50).await, [[9_002, 6_002, 3_002, 2]]);
    });
}
