//! A connection pooler in front of PostgreSQL.

use std::{
    sync::{Arc, Barrier},
    time::Duration,
};

use tollkey_core::Family;
use tollkey_store::{
    OpenError, OpenOptions, Store, UnsupportedServer,
    testing::{Database, PgBouncer, Postgres, RealClock, hold},
};

use crate::{Actions as _, acme, id, key, on};

fn open(url: &str) -> Result<Store, OpenError> {
    let options = OpenOptions {
        migration_timeout: Duration::from_millis(300),
        ..OpenOptions::new(url)
    };
    Store::open(options, Arc::new(RealClock::default()))
}

/// Fails if a session holds an advisory lock in this database.
fn assert_no_lock(database: &Database) {
    database.sql(
        "DO $$ BEGIN IF EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND database = \
         (SELECT oid FROM pg_database WHERE datname = current_database())) THEN RAISE 'a lock was left'; END IF; END $$",
    );
}

#[test]
fn pooler_that_shares_sessions_is_rejected_and_leaves_no_lock() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    for settings in [
        "pool_mode = transaction",
        "pool_mode = statement",
        "pool_mode = transaction\nserver_round_robin = 1",
        "pool_mode = transaction\nserver_reset_query_always = 1",
        "pool_mode = transaction\ndefault_pool_size = 1",
    ] {
        let database = postgres.database();
        let Some(pooler) = PgBouncer::before(&database, settings) else {
            return;
        };
        for _ in 0..3 {
            match open(pooler.url()) {
                Err(OpenError::UnsupportedServer(error)) => {
                    assert_eq!(error, UnsupportedServer::Pooler, "{settings}")
                }
                other => panic!("{settings}: {other:?}"),
            }
        }
        assert_no_lock(&database);
        // Without the pooler the database can be used.
        open(database.url()).unwrap().migrate().unwrap();
    }
}

/// Other clients are inside transactions, so the pooler uses several server sessions in turn.
#[test]
fn busy_pooler_that_shares_sessions_is_rejected() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let Some(pooler) =
        PgBouncer::before(&database, "pool_mode = transaction\nserver_round_robin = 1")
    else {
        return;
    };
    let (begun, end) = (Barrier::new(4), Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                hold(pooler.url(), "SELECT 1", || {
                    begun.wait();
                    end.wait();
                });
            });
        }
        begun.wait();
        let opened = [(); 3].map(|()| open(pooler.url()));
        end.wait();
        for opened in opened {
            assert!(
                matches!(
                    opened,
                    Err(OpenError::UnsupportedServer(UnsupportedServer::Pooler))
                ),
                "{opened:?}"
            );
        }
    });
}

#[test]
fn pooler_in_session_mode_works() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let Some(pooler) = PgBouncer::before(&database, "pool_mode = session\ndefault_pool_size = 30")
    else {
        return;
    };
    on(&database, async |database| {
        for number in 0..5 {
            let store = open(pooler.url()).unwrap();
            store.migrate().unwrap();
            store.add_key(&key(number, &acme())).await.unwrap();
            let found = store
                .read(move |db| db.account(&acme()).key(&Family::ALL, &id(number)))
                .await;
            assert_eq!(found.unwrap(), Some(key(number, &acme())));
            store.ready().await.unwrap();
        }
        assert_no_lock(database);
    });
}

#[test]
fn direct_connections_are_not_mistaken_for_a_pooler() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    open(database.url()).unwrap().migrate().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    open(database.url()).unwrap();
                }
            });
        }
    });
}
