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
fn failed_transaction_is_rolled_back() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let rejection = Problem::field("/name", "is not allowed");
        let problem = rejection.clone();
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
        assert_eq!(failed.await, Err(rejection));
        nothing_happened(&store).await;
    });
}

#[test]
fn panicking_transaction_is_rolled_back() {
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
                        panic!("expected by this test");
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

/// PostgreSQL would respond to the commit with a silent rollback.
#[test]
fn ignored_failure_does_not_turn_into_a_silent_rollback() {
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
        // SQLite has only undone the failed statement and can commit the rest.
        let is_committed = written.await.is_ok();
        assert_eq!(is_committed, database.backend() == Backend::Sqlite);
        assert_eq!(store.key(&acme(), id(2)).await.is_some(), is_committed);
        store.ping().await.unwrap();
    });
}

#[test]
fn reader_sees_one_snapshot() {
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
fn transaction_reads_its_own_writes() {
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

/// Each reading differs, so that the test can tell when it was taken.
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
fn clock_is_read_within_the_transaction_of_a_change() {
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
fn waiting_too_long_for_a_connection_returns_busy() {
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
        // A full pool does not prevent renewals on PostgreSQL. SQLite has only one writer.
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
fn waiting_too_long_for_a_lock_returns_busy() {
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
        // SQLite waits for its busy timeout of 5 s, PostgreSQL for its lock timeout, which is shorter than a lease.
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
            "readers must not wait"
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

/// It may hold the lock of the change counter, without which no verifier can renew its lease.
#[test]
fn idle_transaction_is_ended_by_the_server() {
    each(async |database| {
        if database.backend() == Backend::Sqlite {
            return; // SQLite has no such timeout
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
