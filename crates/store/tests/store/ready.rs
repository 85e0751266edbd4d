//! Readiness, and SQLite files that are deleted or replaced while they are open.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tollkey_core::{Digest, Family, Position, Seq, VerifierId};
use tollkey_store::{
    Backend, Error, NotReady, OpenOptions, SchemaError, Store,
    testing::{Database, Postgres, RealClock, hold},
};

use crate::{Actions as _, acme, each, id, key, on};

/// Longer than any operation takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

async fn becomes(store: &Store, ready: bool) -> Result<(), NotReady> {
    let since = Instant::now();
    loop {
        let result = store.ready().await;
        if result.is_ok() == ready {
            return result;
        }
        assert!(since.elapsed() < TIMEOUT, "the result is still {result:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn readiness_check_writes_but_leaves_no_data() {
    each(async |database| {
        let store = database.store();
        let before = database.dump();
        store.ready().await.unwrap();
        assert_eq!(database.dump(), before);
        // The check must have tried to write: it detects a trigger that forbids that.
        let other = open(database.url());
        let forbid = match database.backend() {
            Backend::Sqlite => {
                "CREATE TRIGGER no_space BEFORE INSERT ON verifiers BEGIN SELECT RAISE(ABORT, 'full'); END"
            }
            Backend::Postgres => {
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE 'No space left on device' USING ERRCODE = '53100'; END $$; \
                 CREATE TRIGGER no_space BEFORE INSERT ON verifiers FOR EACH ROW EXECUTE FUNCTION full_disk()"
            }
        };
        database.sql(forbid);
        assert!(matches!(other.ready().await, Err(NotReady::Changes(_))));
        database.sql(match database.backend() {
            Backend::Sqlite => "DROP TRIGGER no_space",
            Backend::Postgres => "DROP TRIGGER no_space ON verifiers",
        });
        becomes(&other, true).await.unwrap();
    });
}

/// A change of several pages needs more space than one page. The space that a probe has used stays allocated, and the
/// next probe uses it again.
#[test]
fn probe_writes_more_than_a_page_into_the_file_system() {
    let database = Database::sqlite();
    on(&database, async |database| {
        drop(database.store());
        let store = open(database.url());
        let log = paths(database).0.with_file_name("tollkey.db-wal");
        let length = || fs::metadata(&log).unwrap().len();
        let (before, contents) = (length(), database.dump());
        store.ready().await.unwrap();
        let after = length();
        assert!(
            (48 * 1024..96 * 1024).contains(&(after - before)),
            "{before} {after}"
        );
        assert_eq!(database.dump(), contents);
        tokio::time::sleep(Duration::from_millis(1_100)).await; // the last result is no longer fresh
        store.ready().await.unwrap();
        assert!(length() - after < 16 * 1024, "{after} {}", length());
        store.add_key(&key(1, &acme())).await.unwrap();
    });
}

fn open(url: &str) -> Store {
    Store::open(OpenOptions::new(url), Arc::new(RealClock::default())).unwrap()
}

/// A transaction of another process that has run these statements and stays open until it is released.
struct Held {
    release: mpsc::Sender<()>,
    holder: std::thread::JoinHandle<()>,
}

impl Held {
    fn by(database: &Database, sql: &str) -> Self {
        let (url, sql) = (database.url().to_owned(), sql.to_owned());
        let (held, is_held) = mpsc::channel();
        let (release, is_released) = mpsc::channel::<()>();
        let holder = std::thread::spawn(move || {
            hold(&url, &sql, || {
                held.send(()).unwrap();
                let _ = is_released.recv_timeout(TIMEOUT);
            });
        });
        is_held.recv().unwrap();
        Self { release, holder }
    }

    fn release(self) {
        self.release.send(()).unwrap();
        self.holder.join().unwrap();
    }
}

/// Each lock that makes some change fail, although a verifier can renew its lease.
#[test]
fn lock_on_any_written_table_ends_readiness() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    on(&postgres.database(), async |database| {
        drop(database.store());
        let tables = database
            .columns()
            .into_iter()
            .filter_map(|name| Some(name.split_once('.')?.0.to_owned()));
        let tables: std::collections::BTreeSet<String> = tables
            .filter(|table| !["__diesel_schema_migrations", "settings"].contains(&table.as_str()))
            .collect();
        assert_eq!(tables.len(), 15, "{tables:?}");
        let locks = tables
            .iter()
            .map(|table| format!("LOCK TABLE {table} IN SHARE MODE"));
        let others = [
            "SELECT * FROM change_counter FOR UPDATE",
            "LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE",
            "CREATE INDEX held ON audit_log (occurred_at)",
        ];
        let verifier = VerifierId::from_bytes([1; 16]);
        for lock in locks.chain(others.map(str::to_owned)) {
            let store = open(database.url());
            assert_eq!(
                store.renew(verifier, Seq(0), Position::default()).await,
                Ok(true)
            );
            let held = Held::by(database, &lock);
            assert_eq!(
                store.ready().await,
                Err(NotReady::Changes(Error::Busy)),
                "{lock}"
            );
            held.release();
        }
        let store = open(database.url());
        store.ready().await.unwrap();
        store.add_key(&key(1, &acme())).await.unwrap();
    });
}

/// A probe that waits for a lock must not delay look-ups, or changes that do not need that lock.
#[test]
fn waiting_probe_holds_no_other_lock() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    on(&postgres.database(), async |database| {
        let store = database.store();
        let held = Held::by(database, "LOCK TABLE verifiers IN EXCLUSIVE MODE");
        let checking = tokio::spawn({
            let store = store.clone();
            async move { store.ready().await }
        });
        database.sql(
            "DO $$ BEGIN FOR i IN 1..2000 LOOP IF EXISTS (SELECT 1 FROM pg_locks JOIN pg_class ON pg_class.oid = relation \
             WHERE relname = 'verifiers' AND NOT granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) THEN \
             IF EXISTS (SELECT 1 FROM pg_locks JOIN pg_class ON pg_class.oid = relation WHERE granted \
             AND relname = 'api_keys' AND mode <> 'AccessShareLock' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) THEN RAISE 'it holds another lock'; END IF; RETURN; \
             END IF; PERFORM pg_sleep(0.001); END LOOP; RAISE 'nothing waits'; END $$",
        );
        held.release();
        checking.await.unwrap().unwrap();
        database.sql("BEGIN; LOCK TABLE verifiers IN ACCESS EXCLUSIVE MODE NOWAIT; ROLLBACK");
    });
}

#[test]
fn lock_of_another_process_ends_readiness_until_released() {
    each(async |database| {
        let store = database.store();
        store.ready().await.unwrap();
        let held = Held::by(
            database,
            match database.backend() {
                Backend::Sqlite => "UPDATE settings SET name = name",
                Backend::Postgres => "LOCK TABLE verifiers IN EXCLUSIVE MODE",
            },
        );
        becomes(&store, false).await.unwrap_err();
        // However many callers there are, each gets a result in bounded time, and only one check runs at a time.
        let begun = Instant::now();
        let results: Vec<_> = (0..50)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.ready().await })
            })
            .collect();
        if database.backend() == Backend::Postgres {
            tokio::time::sleep(Duration::from_millis(1_200)).await; // the last result is no longer fresh
            database.sql(
                "DO $$ BEGIN IF (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%LOCK TABLE verifiers%') > 1 \
                 THEN RAISE 'more than one probe'; END IF; END $$",
            );
        }
        for result in results {
            assert!(result.await.unwrap().is_err());
        }
        assert!(begun.elapsed() < TIMEOUT / 2, "{:?}", begun.elapsed());
        held.release();
        becomes(&store, true).await.unwrap();
    });
}

#[test]
fn short_writes_of_other_processes_do_not_end_readiness() {
    each(async |database| {
        let store = database.store();
        let other = database.store();
        let busy = tokio::spawn(async move {
            for number in 0..200 {
                other.add_key(&key(number, &acme())).await.unwrap();
            }
        });
        while !busy.is_finished() {
            store.ready().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        busy.await.unwrap();
    });
}

#[test]
fn older_schema_is_not_ready_but_a_newer_one_is() {
    each(async |database| {
        let store = open(database.url());
        assert_eq!(
            store.ready().await,
            Err(NotReady::Schema(SchemaError::Older { missing: 8 }))
        );
        store.migrate().unwrap();
        becomes(&store, true).await.unwrap();
        database.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231235959')");
        tokio::time::sleep(Duration::from_millis(1_100)).await; // the last result is no longer fresh
        store.ready().await.unwrap();
    });
}

#[test]
fn database_is_not_ready_while_it_is_read_only() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    on(&postgres.database(), async |database| {
        let store = database.store();
        store.ready().await.unwrap();
        postgres.configure("default_transaction_read_only = on");
        becomes(&store, false).await.unwrap_err();
        postgres.configure("default_transaction_read_only = off");
        becomes(&store, true).await.unwrap();
        postgres.demote();
        becomes(&store, false).await.unwrap_err();
        postgres.control("promote");
        becomes(&store, true).await.unwrap();
    });
}

/// Returns the path of the database file, and one next to it.
fn paths(database: &Database) -> (PathBuf, PathBuf) {
    let directory = database.directory().unwrap();
    (directory.join("tollkey.db"), directory.join("aside.db"))
}

/// Checks that every operation of the store fails immediately.
async fn assert_unavailable(store: &Store) {
    let begun = Instant::now();
    assert_eq!(
        store.add_key(&key(2, &acme())).await,
        Err(Error::Unavailable)
    );
    assert_eq!(
        store
            .read(|db| db.account(&acme()).key(&Family::ALL, &id(1)))
            .await,
        Err(Error::Unavailable)
    );
    assert_eq!(
        store.find_by_digest(Digest::of_key("1")).await.map(drop),
        Err(Error::Unavailable)
    );
    let verifier = VerifierId::from_bytes([1; 16]);
    assert_eq!(
        store.renew(verifier, Seq(0), Position::default()).await,
        Err(Error::Unavailable)
    );
    assert_eq!(store.ready().await, Err(NotReady::FileLost));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn all_operations_fail_while_the_file_is_deleted() {
    let database = Database::sqlite();
    on(&database, async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        store.ready().await.unwrap();
        let (path, aside) = paths(database);
        for _ in 0..2 {
            fs::rename(&path, &aside).unwrap();
            assert_unavailable(&store).await;
            assert!(!path.exists(), "an empty file was created");
            fs::rename(&aside, &path).unwrap();
            store.ready().await.unwrap();
            assert_eq!(
                store.key(&acme(), id(2)).await,
                None,
                "a key was written meanwhile"
            );
        }
        store.add_key(&key(2, &acme())).await.unwrap();
        assert!(open(database.url()).key(&acme(), id(2)).await.is_some());

        fs::remove_file(&path).unwrap();
        assert_unavailable(&store).await;
    });
}

/// The store stays with the file that it has opened, because leases and caches belong to that database.
#[test]
fn all_operations_fail_after_the_file_was_replaced() {
    let database = Database::sqlite();
    let other = Database::sqlite();
    on(&database, async |database| {
        drop(other.store());
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let (path, aside) = paths(database);
        fs::rename(&path, &aside).unwrap();
        for name in ["tollkey.db-wal", "tollkey.db-shm"] {
            fs::rename(
                path.with_file_name(name),
                path.with_file_name(format!("aside-{name}")),
            )
            .unwrap();
        }
        fs::copy(other.directory().unwrap().join("tollkey.db"), &path).unwrap();
        assert_unavailable(&store).await;
        let restarted = open(database.url());
        restarted.ready().await.unwrap();
        restarted.add_key(&key(7, &acme())).await.unwrap();
        assert_unavailable(&store).await;
    });
}

/// Without the log, changes that are not in the database file yet would be lost when the process ends.
#[test]
fn changes_fail_while_the_write_ahead_log_is_deleted() {
    let database = Database::sqlite();
    on(&database, async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let (log, aside) = (
            paths(database).0.with_file_name("tollkey.db-wal"),
            paths(database).1,
        );
        fs::rename(&log, &aside).unwrap();
        assert_eq!(
            store.add_key(&key(2, &acme())).await,
            Err(Error::Unavailable)
        );
        becomes(&store, false).await.unwrap_err();
        fs::rename(&aside, &log).unwrap();
        becomes(&store, true).await.unwrap();
        assert_eq!(store.key(&acme(), id(2)).await, None);
        store.add_key(&key(2, &acme())).await.unwrap();
    });
}

/// Another process would create a new index, and neither process would see what the other writes.
#[test]
fn changes_fail_while_the_index_of_the_log_is_deleted() {
    let database = Database::sqlite();
    on(&database, async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let (index, aside) = (
            paths(database).0.with_file_name("tollkey.db-shm"),
            paths(database).1,
        );
        fs::rename(&index, &aside).unwrap();
        assert_eq!(
            store.add_key(&key(2, &acme())).await,
            Err(Error::Unavailable)
        );
        becomes(&store, false).await.unwrap_err();
        // The same with an index that another process has created.
        fs::write(&index, "").unwrap();
        assert_eq!(
            store.add_key(&key(2, &acme())).await,
            Err(Error::Unavailable)
        );
        fs::rename(&aside, &index).unwrap();
        becomes(&store, true).await.unwrap();
        store.add_key(&key(2, &acme())).await.unwrap();
    });
}

/// `cp` writes to the open file.
#[test]
fn all_operations_fail_after_a_copy_over_the_file() {
    // A backup of the same database, and another database with more changes.
    for is_backup in [true, false] {
        let (database, other) = (Database::sqlite(), Database::sqlite());
        on(&database, async |database| {
            let (path, backup) = paths(database);
            let add = async |store: &Store, numbers: std::ops::Range<u64>| {
                for number in numbers {
                    store.add_key(&key(number, &acme())).await.unwrap();
                }
            };
            add(&database.store(), 10..20).await; // written to the file when the last connection is closed
            if is_backup {
                fs::copy(&path, &backup).unwrap();
            } else {
                add(&other.store(), 10..20).await;
                // Each statement raises the change counter in the file's header.
                let changes: String = (0..1000)
                    .map(|number| format!("PRAGMA user_version = {number};"))
                    .collect();
                other.sql(&changes);
                fs::copy(other.directory().unwrap().join("tollkey.db"), &backup).unwrap();
            }
            add(&open(database.url()), 100..150).await;
            let store = open(database.url());
            store.add_key(&key(1, &acme())).await.unwrap();
            store.ready().await.unwrap();

            fs::copy(&backup, &path).unwrap();
            assert_unavailable(&store).await;
            drop(store);
            assert!(
                fs::read(&path).unwrap() == fs::read(&backup).unwrap(),
                "closing the store changed the copy"
            );
            assert!(
                path.with_file_name("tollkey.db-wal").exists(),
                "closing the store deleted the log"
            );
            // SQLite shares the state of a file within a process, so another file stands for a restarted process.
            let elsewhere = path.with_file_name("restarted.db");
            fs::copy(&path, &elsewhere).unwrap();
            let restarted = open(&format!("sqlite://{}", elsewhere.display()));
            restarted.ready().await.unwrap();
            assert!(restarted.key(&acme(), id(10)).await.is_some());
            restarted.add_key(&key(1, &acme())).await.unwrap();
        });
    }
}

#[test]
fn all_operations_fail_after_truncating_the_file() {
    let database = Database::sqlite();
    on(&database, async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        fs::File::create(paths(database).0).unwrap();
        assert_unavailable(&store).await;
    });
}

#[test]
fn all_operations_fail_after_damage_until_a_restart() {
    let database = Database::sqlite();
    on(&database, async |database| {
        drop(database.store());
        let path = paths(database).0;
        let store = open(database.url());
        // All pages except the first.
        let (intact, mut damaged) = (fs::read(&path).unwrap(), fs::read(&path).unwrap());
        damaged[4096..].fill(0xff);
        let write = |bytes: &[u8]| {
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(bytes)
        };
        write(&damaged).unwrap();
        assert_eq!(
            store.add_key(&key(1, &acme())).await,
            Err(Error::Unavailable)
        );
        assert_eq!(store.ready().await, Err(NotReady::FileLost));
        write(&intact).unwrap();
        assert_unavailable(&store).await;
        drop(store);
        let restarted = open(database.url());
        restarted.ready().await.unwrap();
        restarted.add_key(&key(1, &acme())).await.unwrap();
    });
}

/// A backup or cleanup by another process is not a change of the content.
#[test]
fn maintenance_by_other_processes_does_not_end_readiness() {
    let database = Database::sqlite();
    on(&database, async |database| {
        let store = database.store();
        let backup = format!("VACUUM INTO '{}'", paths(database).1.display());
        for (round, sql) in [
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "VACUUM",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            &backup,
        ]
        .into_iter()
        .enumerate()
        {
            for number in 0..60 {
                store
                    .add_key(&key(round as u64 * 100 + number, &acme()))
                    .await
                    .unwrap();
            }
            database.sql(sql);
            store.ready().await.unwrap();
        }
        drop(store);
        open(database.url()).ready().await.unwrap();
    });
}

#[test]
fn change_is_rolled_back_if_the_file_is_deleted_meanwhile() {
    let database = Database::sqlite();
    on(&database, async |database| {
        let store = database.store();
        store.ready().await.unwrap();
        let (path, aside) = paths(database);
        let (from, to) = (path.clone(), aside.clone());
        let written = store.write(move |tx| {
            tx.account(&acme())
                .insert_key(&key(1, &acme()), &crate::digest(1))?;
            fs::rename(&from, &to).unwrap();
            Ok::<_, Error>(())
        });
        assert_eq!(written.await.map(drop), Err(Error::Unavailable));
        fs::rename(&aside, &path).unwrap();
        assert_eq!(store.key(&acme(), id(1)).await, None);
        store.add_key(&key(1, &acme())).await.unwrap();
    });
}
