use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tollkey_core::{Changed, Clock, Position, Problem, Seq, Timestamp};
use tollkey_store::{AuditFilter, Backend, Error, OpenOptions, Store, testing::RealClock};

use crate::{
    Actions as _, acme, application, at, changes, digest, draft, each, id, key, other, position,
};

#[test]
fn what_fails_leaves_nothing() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let refused = Problem::field("/name", "is not to our taste");
        let problem = refused.clone();
        let failed = store.write(move |tx| {
            let account = acme();
            let mut mine = tx.account(&account);
            mine.insert_application(&application(1, &account))?;
            mine.insert_key(&key(2, &account), &digest(2))?;
            let mut changed = key(1, &account);
            let _ = changed.revoke(at(9), None);
            mine.save_key(&changed)?;
            mine.append(draft(1, &account))?;
            Err::<(), Problem>(problem)
        });
        assert_eq!(failed.await, Err(refused));
        nothing_happened(&store).await;
    });
}

#[test]
fn what_panics_leaves_nothing_and_the_store_goes_on() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        for _ in 0..20 {
            let store = store.clone();
            let panicked = tokio::spawn(async move {
                let _ = store
                    .write(|tx| -> Result<(), Error> {
                        tx.account(&acme())
                            .insert_key(&key(2, &acme()), &digest(2))?;
                        panic!("on purpose");
                    })
                    .await;
            });
            assert!(panicked.await.unwrap_err().is_panic());
        }
        nothing_happened(&store).await;
    });
}

async fn nothing_happened(store: &Store) {
    assert_eq!(store.key(&acme(), id(1)).await, Some(key(1, &acme())));
    assert_eq!(store.key(&acme(), id(2)).await, None);
    let rest = store.read(|db| {
        let account = acme();
        let mut mine = db.account(&account);
        Ok((
            mine.application(&id(1))?,
            mine.audit_log(&AuditFilter::default(), None, 10)?.entries,
        ))
    });
    assert_eq!(rest.await.unwrap(), (None, vec![]));
    assert_eq!(
        (position(store).await, changes(store).await),
        (Position::default(), vec![])
    );
}

/// PostgreSQL would answer the commit by a silent rollback.
#[test]
fn a_failure_that_was_ignored_is_no_success() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let written = store.write(|tx| {
            tx.account(&acme())
                .insert_key(&key(2, &acme()), &digest(2))?;
            let ignored = tx.account(&acme()).insert_key(&key(3, &acme()), &digest(1));
            assert!(ignored.is_err());
            Ok::<_, Error>(())
        });
        // SQLite has undone that one statement only and can commit the rest.
        let there = written.await.is_ok();
        assert_eq!(there, database.backend() == Backend::Sqlite);
        assert_eq!(store.key(&acme(), id(2)).await.is_some(), there);
        store.ping().await.unwrap();
    });
}

#[test]
fn a_reader_sees_one_moment() {
    each(async |database| {
        let store = database.store();
        store
            .add_application(&application(1, &acme()))
            .await
            .unwrap();
        let writer = store.clone();
        let seen = store.read(move |db| {
            let account = acme();
            let before = db.account(&account).applications(1, 10)?.total;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = writer
                        .write_blocking(|tx| {
                            tx.account(&acme())
                                .insert_application(&application(2, &acme()))
                        })
                        .unwrap();
                });
            });
            Ok((before, db.account(&account).applications(1, 10)?.total))
        });
        assert_eq!(seen.await.unwrap(), (1, 1));
        assert_eq!(
            store
                .read(|db| db.account(&acme()).applications(1, 10))
                .await
                .unwrap()
                .total,
            2
        );
    });
}

#[test]
fn a_transaction_reads_what_it_wrote() {
    each(async |database| {
        let store = database.store();
        let written = store.write(|tx| {
            tx.account(&acme())
                .insert_key(&key(1, &acme()), &digest(1))?;
            let mine = tx
                .account(&acme())
                .key(&[tollkey_core::Family::Commerce], &id(1))?;
            Ok::<_, Error>((
                mine,
                tx.account(&other())
                    .key(&tollkey_core::Family::ALL, &id(1))?,
            ))
        });
        assert_eq!(written.await.unwrap().value, (Some(key(1, &acme())), None));
    });
}

/// Every reading is a different one, so that the test knows which was taken.
#[derive(Default)]
struct CountingClock(AtomicU64);

impl Clock for CountingClock {
    fn now(&self) -> Timestamp {
        at(0)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

#[test]
fn the_clock_of_a_change_is_read_within_its_transaction() {
    each(async |database| {
        let clock = Arc::new(CountingClock::default());
        let store = database.store_with(clock.clone());
        let read = clock.clone();
        let written = store.write(move |tx| {
            tx.changed(Changed::Key(id(1)));
            Ok::<_, Error>(read.elapsed())
        });
        let written = written.await.unwrap();
        let change = written.change.unwrap();
        assert!(written.value < change.at && change.at < clock.elapsed());
        let unchanged = store.write(|_| Ok::<_, Error>(())).await.unwrap();
        assert_eq!(unchanged.change, None);
    });
}

#[test]
fn who_waits_too_long_for_a_connection_is_told_that_the_store_is_busy() {
    each(async |database| {
        let _migrated = database.store();
        let options = OpenOptions {
            pool_size: 1,
            acquire_timeout: Duration::from_millis(200),
            ..OpenOptions::new(database.url())
        };
        let store = Store::open(options, Arc::new(RealClock::default())).unwrap();
        let (held, mut is_held) = tokio::sync::mpsc::unbounded_channel();
        let holding = tokio::spawn({
            let store = store.clone();
            async move {
                store
                    .write(move |_| {
                        held.send(()).unwrap();
                        std::thread::sleep(Duration::from_millis(1_200));
                        Ok::<_, Error>(())
                    })
                    .await
            }
        });
        is_held.recv().await.unwrap();
        let begun = Instant::now();
        assert_eq!(store.write(|_| Ok::<_, Error>(())).await, Err(Error::Busy));
        assert!(begun.elapsed() < Duration::from_secs(1));
        // A full pool does not cost a lease on PostgreSQL; on SQLite nobody else may write meanwhile.
        let renewed = store
            .renew(
                tollkey_core::VerifierId::from_bytes([1; 16]),
                Seq(0),
                Position::default(),
            )
            .await;
        assert_eq!(renewed.is_ok(), database.backend() == Backend::Postgres);
        assert!(holding.await.unwrap().is_ok());
        assert!(store.write(|_| Ok::<_, Error>(())).await.is_ok());
    });
}

#[test]
fn a_lock_somebody_holds_for_too_long_is_busy_not_for_ever() {
    each(async |database| {
        let store = database.store();
        store
            .add_application(&application(1, &acme()))
            .await
            .unwrap();
        let url = database.url().to_owned();
        let (held, is_held) = std::sync::mpsc::channel();
        let (enough, is_enough) = std::sync::mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            tollkey_store::testing::hold(&url, "UPDATE applications SET name = name", || {
                held.send(()).unwrap();
                let _ = is_enough.recv_timeout(Duration::from_secs(20));
            });
        });
        is_held.recv().unwrap();
        let begun = Instant::now();
        let locked = store
            .write(|tx| tx.account(&acme()).lock_application(&id(1)).map(drop))
            .await;
        assert_eq!(locked, Err(Error::Busy));
        // SQLite waits its busy timeout of 5 s, PostgreSQL its lock timeout of 1 s, below a lease.
        let most = if database.backend() == Backend::Postgres {
            3
        } else {
            9
        };
        assert!(
            begun.elapsed() < Duration::from_secs(most),
            "{:?}",
            begun.elapsed()
        );
        assert!(
            store
                .read(|db| db.account(&acme()).application(&id(1)))
                .await
                .is_ok(),
            "readers do not wait"
        );
        enough.send(()).unwrap();
        holder.join().unwrap();
        assert!(
            store
                .write(|tx| tx.account(&acme()).lock_application(&id(1)).map(drop))
                .await
                .is_ok()
        );
    });
}

/// Because it may hold the change counter, without which nobody renews a lease.
#[test]
fn a_transaction_that_rests_for_too_long_is_thrown_out() {
    each(async |database| {
        if database.backend() == Backend::Sqlite {
            return; // which cannot tell
        }
        let store = database.store();
        let rested = store.write(|tx| {
            tx.account(&acme())
                .insert_key(&key(1, &acme()), &digest(1))?;
            std::thread::sleep(Duration::from_millis(2_500));
            Ok::<_, Error>(())
        });
        assert_eq!(rested.await, Err(Error::Unavailable));
        assert_eq!(store.key(&acme(), id(1)).await, None);
        store.add_key(&key(1, &acme())).await.unwrap();
    });
}
