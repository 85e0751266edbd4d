//! Transactions that PostgreSQL aborts because of other transactions.

use std::sync::{
    Arc, Barrier, Mutex,
    atomic::{AtomicU32, Ordering},
};

use tollkey_core::Problem;
use tollkey_store::{
    Committed, Error, Store,
    testing::{Database, Postgres},
};

use crate::{Actions as _, acme, application, id, on, position};

fn postgres() -> Option<Database> {
    Postgres::shared().map(Postgres::database)
}

async fn store_with_applications(database: &Database) -> Store {
    let store = database.store();
    for number in [1, 2] {
        store
            .add_application(&application(number, &acme()))
            .await
            .unwrap();
    }
    store
}

/// Locks two applications in that order. In the first attempts, both transactions have their first lock before either
/// requests the second.
async fn lock_both(
    store: Store,
    order: [u64; 2],
    both: Arc<Barrier>,
    attempts: Arc<AtomicU32>,
) -> Result<(), Problem> {
    let attempt = Arc::new(AtomicU32::new(0));
    let written: Result<Committed<()>, Problem> = store
        .write(move |tx| {
            attempts.fetch_add(1, Ordering::SeqCst);
            let account = acme();
            let mut mine = tx.account(&account);
            mine.lock_application(&id(order[0]))?;
            if attempt.fetch_add(1, Ordering::SeqCst) == 0 {
                both.wait();
            }
            let mut locked = mine
                .lock_application(&id(order[1]))?
                .ok_or_else(Problem::not_found)?;
            locked.is_enabled = !locked.is_enabled;
            mine.update_application(&locked)?;
            Ok(())
        })
        .await;
    written.map(drop)
}

#[test]
fn deadlock_is_retried_and_both_changes_succeed() {
    let Some(database) = postgres() else { return };
    on(&database, async |database| {
        let store = store_with_applications(database).await;
        let before = position(&store).await.seq.0;
        let (both, attempts) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU32::new(0)));
        let lock = |order| {
            tokio::spawn(lock_both(
                store.clone(),
                order,
                both.clone(),
                attempts.clone(),
            ))
        };
        let (first, second) = (lock([1, 2]), lock([2, 1]));
        assert_eq!(
            (first.await.unwrap(), second.await.unwrap()),
            (Ok(()), Ok(()))
        );
        assert!(
            attempts.load(Ordering::SeqCst) > 2,
            "no transaction was run again"
        );
        assert_eq!(
            position(&store).await.seq.0,
            before + 2,
            "each change must be committed once"
        );
    });
}

/// Creates a trigger that raises an error with a code for the first `times` inserts.
fn raise_errors(database: &Database, when: &str, code: &str, times: u32) {
    database.sql(&format!(
        "DROP TABLE IF EXISTS counted; CREATE SEQUENCE IF NOT EXISTS errors; SELECT setval('errors', 1, false); \
         CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF nextval('errors') <= {times} THEN \
         RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$; \
         DROP TRIGGER IF EXISTS fail ON applications; \
         CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON applications DEFERRABLE {when} \
         FOR EACH ROW EXECUTE FUNCTION fail()"
    ));
}

/// Inserts an application; returns the result and how often the closure ran.
async fn insert(store: &Store, number: u64) -> (Result<(), Error>, usize) {
    let runs = Arc::new(Mutex::new(0));
    let counted = runs.clone();
    let written = store.write(move |tx| {
        *counted.lock().unwrap() += 1;
        tx.account(&acme())
            .insert_application(&application(number, &acme()))
    });
    let result = written.await.map(drop);
    let runs = *runs.lock().unwrap();
    (result, runs)
}

#[test]
fn conflicts_are_retried_twice_and_other_errors_never() {
    let Some(database) = postgres() else { return };
    on(&database, async |database| {
        let store = database.store();
        let immediate = "INITIALLY IMMEDIATE";
        for (number, (code, times, expected)) in [
            ("40001", 1, (Ok(()), 2)),
            ("40001", 2, (Ok(()), 3)),
            ("40001", 3, (Err(Error::Busy), 3)),
            ("40P01", 2, (Ok(()), 3)),
            ("40P01", 9, (Err(Error::Busy), 3)),
            ("23514", 1, (Err(Error::Other), 1)),
        ]
        .into_iter()
        .enumerate()
        {
            raise_errors(database, immediate, code, times);
            assert_eq!(
                insert(&store, number as u64).await,
                expected,
                "{code}, {times} times"
            );
        }
    });
}

/// The outcome of a failed commit can be unknown, so the transaction must not be run again.
#[test]
fn conflict_during_the_commit_is_not_retried() {
    let Some(database) = postgres() else { return };
    on(&database, async |database| {
        let store = database.store();
        for (number, code) in [(1, "40001"), (2, "40P01")] {
            raise_errors(database, "INITIALLY DEFERRED", code, 1);
            assert_eq!(
                insert(&store, number).await,
                (Err(Error::Busy), 1),
                "{code}"
            );
            assert_eq!(
                insert(&store, number).await,
                (Ok(()), 1),
                "the failed commit left data"
            );
        }
    });
}
