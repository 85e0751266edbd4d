use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection as _, RunQueryDsl as _, connection::SimpleConnection as _};
use tollkey_core::{Family, Seq};
use tollkey_store::{
    Backend, BadUrl, Error, OpenError, OpenOptions, SchemaError, Store,
    testing::{Database, Postgres, RealClock, backends, hold},
};

use crate::{Actions as _, acme, changes, each, id, key, on, position};

/// Longer than a server takes to restart on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

fn open(url: &str) -> Result<Store, OpenError> {
    Store::open(OpenOptions::new(url), Arc::new(RealClock::default()))
}

#[test]
fn reopened_database_has_its_data() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        drop(store);
        let store = open(database.url()).unwrap();
        assert_eq!(store.check_schema(), Ok(()));
        assert_eq!(store.backend(), database.backend());
        assert_eq!(store.key(&acme(), id(1)).await, Some(key(1, &acme())));
        store.ping().await.unwrap();
    });
}

/// `.cargo/config.toml` sets the option. Without it SQLite compiles a statement again at each execution whose
/// parameters could change its plan.
#[test]
fn sqlite_is_built_with_stable_query_plans() {
    let mut conn = diesel::SqliteConnection::establish(":memory:").unwrap();
    let option = "sqlite_compileoption_used('ENABLE_QPSG')";
    let is_set: bool = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(option))
        .get_result(&mut conn)
        .unwrap();
    assert!(is_set);
}

#[test]
fn two_stores_see_each_others_changes() {
    each(async |database| {
        let (one, two) = (database.store(), database.store());
        let tasks = (0..40).map(|number| {
            let store = if number % 2 == 0 {
                one.clone()
            } else {
                two.clone()
            };
            tokio::spawn(async move {
                let mut created = key(number, &acme());
                store.add_key(&created).await?;
                let _ = created.revoke(crate::at(99), None);
                store.save_key(&created).await.map(drop)
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap().unwrap();
        }
        for store in [one, two] {
            assert_eq!(changes(&store).await.len(), 40);
        }
    });
}

#[test]
fn older_and_newer_schemas_are_detected() {
    for database in backends() {
        let store = open(database.url()).unwrap();
        assert_eq!(store.check_schema(), Err(SchemaError::Older { missing: 8 }));
        assert_eq!(
            store.check_schema(),
            Err(SchemaError::Older { missing: 8 }),
            "the check changed the schema"
        );
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let url = database.url();
                scope.spawn(move || open(url).unwrap().migrate().unwrap());
            }
        });
        assert_eq!(store.migrate(), Ok(()));
        assert_eq!(store.check_schema(), Ok(()));
        database.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231235959')");
        assert_eq!(store.check_schema(), Err(SchemaError::Newer));
        assert_eq!(store.migrate(), Err(SchemaError::Newer));
    }
}

/// A process that crashes while it migrates leaves no lock and no part of the schema. A process that keeps the lock,
/// like earlier releases did while their connection was open, is named after the timeout.
#[test]
fn migration_names_the_lock_holder_and_continues_after_it() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let url = database.url().to_owned();
    let (begun, has_begun) = mpsc::channel();
    let (release, is_released) = mpsc::channel::<()>();
    // "tollkey" in ASCII: the migration lock.
    let half =
        "SELECT pg_advisory_lock(x'746f6c6c6b6579'::bigint); CREATE TABLE accounts (half INTEGER)";
    let crashing = thread::spawn(move || {
        hold(&url, half, || {
            begun.send(()).unwrap();
            let _ = is_released.recv_timeout(Duration::from_secs(20));
        });
    });
    has_begun.recv().unwrap();

    let patience = Duration::from_millis(250);
    let options = OpenOptions {
        migration_timeout: patience,
        ..OpenOptions::new(database.url())
    };
    let blocked = Store::open(options, Arc::new(RealClock::default())).unwrap();
    let error = blocked.migrate().unwrap_err();
    let SchemaError::Locked { waited, holder } = &error else {
        panic!("{error}")
    };
    assert_eq!(*waited, patience);
    let end = format!(
        "SELECT pg_terminate_backend({})",
        holder.pid.expect("the process ID of the lock's holder")
    );
    for part in [
        end.as_str(),
        "role postgres",
        "application_name tollkey",
        "idle in transaction",
        "connected since 2",
    ] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }

    let waiting = thread::spawn({
        let url = database.url().to_owned();
        move || open(&url).unwrap().migrate()
    });
    database.sql(
        "DO $$ BEGIN FOR i IN 1..2000 LOOP IF EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
         AND datname = current_database() AND (query = 'COMMIT' OR query LIKE '%pg_try_advisory_xact_lock%')) \
         THEN RETURN; END IF; PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01); END LOOP; RAISE 'no process waits'; END $$",
    );
    assert!(!waiting.is_finished());
    database.sql(&end);
    assert_eq!(waiting.join().unwrap(), Ok(()));
    release.send(()).unwrap();
    assert!(
        crashing.join().is_err(),
        "its connection was not terminated"
    );
    let store = open(database.url()).unwrap();
    assert_eq!(store.check_schema(), Ok(()));
    on(&database, async |_| {
        store.add_key(&key(1, &acme())).await.unwrap()
    });
}

#[test]
fn both_backends_have_the_same_tables_and_columns() {
    let described: Vec<String> = backends()
        .iter()
        .map(|database| {
            let _migrated = database.store();
            database.columns().join("\n")
        })
        .collect();
    assert!(described[0].contains("api_keys.digest"), "{}", described[0]);
    for other in &described[1..] {
        assert_eq!(&described[0], other);
    }
}

#[test]
fn sqlite_files_are_accessible_only_to_their_owner() {
    let database = Database::sqlite();
    let store = database.store();
    on(&database, async |_| {
        store.add_key(&key(1, &acme())).await.unwrap()
    });
    let mut files = 0;
    for file in std::fs::read_dir(database.directory().unwrap()).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            file.path()
        );
        files += 1;
    }
    assert_eq!(files, 3, "the database, the log and the index of the log");
    assert_eq!(
        store.file(),
        Some(database.directory().unwrap().join("tollkey.db").as_path())
    );
}

#[test]
fn memory_database_lives_as_long_as_its_store() {
    let database = Database::sqlite(); // only needed by `on`
    on(&database, async |_| {
        let store = open("sqlite://:memory:").unwrap();
        assert!(store.is_in_memory());
        assert_eq!(store.file(), None);
        store.migrate().unwrap();
        assert_eq!(store.check_schema(), Ok(()));
        store.add_key(&key(1, &acme())).await.unwrap();
        let panicking = store.clone();
        let panicked = tokio::spawn(async move {
            let _ = panicking
                .write(|_| -> Result<(), Error> { panic!("expected by this test") })
                .await;
        });
        assert!(panicked.await.is_err());
        let tasks: Vec<_> = (2..30)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move { store.add_key(&key(number, &acme())).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(store.key(&acme(), id(1)).await, Some(key(1, &acme())));
        assert!(
            store
                .renew(
                    tollkey_core::VerifierId::from_bytes([1; 16]),
                    Seq(0),
                    position(&store).await
                )
                .await
                .unwrap()
        );
    });
}

fn failure(url: &str) -> String {
    open(url)
        .err()
        .unwrap_or_else(|| panic!("{url} was opened"))
        .to_string()
}

#[test]
fn unusable_urls_are_reported_without_their_password() {
    assert!(matches!(
        open("mysql://x"),
        Err(OpenError::Url(BadUrl::Scheme))
    ));
    let options = OpenOptions::new("postgres://user:s3cret@127.0.0.1:1/tollkey");
    assert!(!format!("{options:?}").contains("s3cret"));
    for (url, words) in [
        #[cfg(not(feature = "pg-tls"))]
        ("postgres://user:s3cret@db.example/tollkey", "pg-tls"),
        #[cfg(not(feature = "pg-tls"))]
        (
            "postgres://user:s3cret@127.0.0.1/tollkey?sslmode=require",
            "pg-tls",
        ),
        ("postgres://user:s3@cret@127.0.0.1:1/tollkey", "%40"),
        ("postgres://user:s3/cret@127.0.0.1:1/tollkey", "%2F"),
        ("postgres://user:s3%zzcret@127.0.0.1:1/tollkey", "%25"),
    ] {
        let error = failure(url);
        assert!(
            error.starts_with("DATABASE_URL: ") && error.contains(words),
            "{error}"
        );
        assert!(!error.contains("s3") && !error.contains("cret"), "{error}");
        assert!(
            error.contains("TLS") == words.contains("tls"),
            "the diagnosis of {url}: {error}"
        );
    }
}

#[test]
fn unreachable_server_is_a_transient_error() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!(
        "postgres:///tollkey?host={}&user=u&password=s3cret",
        directory.path().display()
    );
    for (url, target, words) in [
        (
            "postgres://user:s3cret@127.0.0.1:1/tollkey",
            "tollkey at 127.0.0.1:1",
            "refuses connections",
        ),
        (
            "postgres://user:s3cret@no-such-host.invalid/t?sslmode=disable",
            "t at no-such-host.invalid:5432",
            "resolved",
        ),
        (&socket, ".s.PGSQL.5432", "no socket"),
    ] {
        let error = open(url).err().unwrap();
        assert!(error.is_transient(), "{error}");
        let error = error.to_string();
        assert!(
            error.starts_with("cannot connect to the PostgreSQL database "),
            "{error}"
        );
        assert!(
            error.contains(target) && error.contains(words) && !error.contains("s3cret"),
            "{error}"
        );
    }
}

#[test]
fn errors_from_the_server_are_shown_and_permanent() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let (base, query) = database.url().split_once('?').unwrap();
    let name = base.strip_prefix("postgres:///").unwrap();
    for (url, words) in [
        (
            database.url().replace(name, "nowhere"),
            "database \"nowhere\" does not exist; create it",
        ),
        (
            format!("{base}?{query}").replace("user=postgres", "user=nobody"),
            "role \"nobody\" does not exist",
        ),
        // libpq's own messages about a value are not shown.
        (
            format!("{}&password=s3cret&channel_binding=s3cret", database.url()),
            "may quote the URL",
        ),
        (
            format!("{}&password=s3cret&requirepeer=s3cret", database.url()),
            "may quote the URL",
        ),
    ] {
        let error = open(&url)
            .err()
            .unwrap_or_else(|| panic!("{words}: the store was opened"));
        assert!(!error.is_transient(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(words) && error.contains(" at /") && !error.contains("s3cret"),
            "{error}"
        );
    }
}

#[test]
fn server_that_is_shutting_down_is_a_transient_error() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    let database = postgres.database();
    // A smart shutdown waits until this connection is closed.
    let url = database.url().to_owned();
    hold(&url, "SELECT 1", || {
        postgres.control("-m smart -W stop");
        let since = Instant::now();
        let error = loop {
            match open(&url) {
                Err(error) => break error,
                Ok(_) => assert!(since.elapsed() < TIMEOUT, "the server did not stop"),
            }
        };
        assert!(
            error.is_transient()
                && error
                    .to_string()
                    .contains("the database system is shutting down"),
            "{error}"
        );
    });
    // `start` would fail while the old server is still stopping.
    postgres.control("-m fast restart");
    open(&url).unwrap();
}

#[test]
fn sqlite_errors_name_the_absolute_path_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::create_dir(path("directory")).unwrap();
    std::fs::write(path("text"), "not a database, though long enough for one").unwrap();
    std::fs::write(path("short"), "x").unwrap();
    for (name, words) in [
        ("directory", "Is a directory (os error 21)"),
        (
            "missing/tollkey.db",
            "No such file or directory (os error 2); create the directory",
        ),
        ("text/tollkey.db", "Not a directory (os error 20)"),
        (&"n".repeat(300), "File name too long (os error 36)"),
        ("text", "is not a SQLite database"),
        ("short", "is not a SQLite database"),
    ] {
        let error = failure(&format!("sqlite://{}", path(name)));
        assert!(
            error.contains(&path(name)) && error.contains(words),
            "{name}: {error}"
        );
    }
    let relative = failure("sqlite://no-such-directory/tollkey.db");
    let absolute = std::env::current_dir()
        .unwrap()
        .join("no-such-directory/tollkey.db");
    assert!(
        relative.contains(&absolute.display().to_string()),
        "{relative}"
    );
}

#[test]
fn file_of_another_application_is_rejected_and_not_changed() {
    let ours = Database::sqlite();
    for foreign in [
        "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('x')",
        "CREATE VIEW one AS SELECT 1",
        // Another application that uses diesel.
        "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL)",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.db");
        let mut conn = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        conn.batch_execute(foreign).unwrap();
        drop(conn);
        let content = std::fs::read(&path).unwrap();
        for create in [false, true] {
            let options = OpenOptions {
                create,
                ..OpenOptions::new(format!("sqlite://{}", path.display()))
            };
            let error = Store::open(options, Arc::new(RealClock::default())).expect_err(foreign);
            assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
            let error = error.to_string();
            assert!(
                error.contains("another application") && error.contains(path.to_str().unwrap()),
                "{error}"
            );
            assert!(!error.contains("tollkey migrate"), "{error}");
        }
        assert!(
            std::fs::read(&path).unwrap() == content,
            "{foreign}: the file was changed"
        );
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            1,
            "{foreign}: files were left next to it"
        );
    }
    drop(ours.store());
    open(ours.url()).unwrap();
}

#[test]
fn opening_waits_for_a_lock_on_a_new_file() {
    for lock in ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"] {
        let database = Database::sqlite();
        let path = database.directory().unwrap().join("tollkey.db");
        std::fs::write(&path, "").unwrap();
        let mut other = diesel::SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        other.batch_execute(lock).unwrap();
        let begun = Instant::now();
        let error = failure(database.url());
        assert!(
            error.contains("another process holds a lock on the file"),
            "{lock}: {error}"
        );
        assert!(
            begun.elapsed() > Duration::from_secs(4),
            "{lock}: {:?}",
            begun.elapsed()
        );
        let waiting = thread::spawn({
            let url = database.url().to_owned();
            move || open(&url).map(|store| store.migrate())
        });
        other.batch_execute("COMMIT").unwrap();
        waiting.join().unwrap().unwrap().unwrap();
    }
}

#[test]
fn link_to_a_missing_file_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollkey.db");
    std::os::unix::fs::symlink(directory.path().join("elsewhere.db"), &path).unwrap();
    let error = failure(&format!("sqlite://{}", path.display()));
    assert!(
        error.contains("is a symbolic link to a file that does not exist"),
        "{error}"
    );
    assert!(
        error.contains(path.to_str().unwrap()) && !error.contains("create the directory"),
        "{error}"
    );
}

#[test]
fn sqlite_file_is_not_created_without_the_create_option() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollkey.db");
    let url = format!("sqlite://{}", path.display());
    let existing = || {
        let options = OpenOptions {
            create: false,
            ..OpenOptions::new(url.as_str())
        };
        Store::open(options, Arc::new(RealClock::default()))
    };
    let error = existing().err().unwrap();
    assert!(
        matches!(&error, OpenError::Missing { path: named } if *named == path.display().to_string()),
        "{error}"
    );
    std::fs::write(&path, "").unwrap();
    let error = existing().err().unwrap();
    assert!(
        matches!(&error, OpenError::NotADatabase { .. }) && error.to_string().contains("is empty"),
        "{error}"
    );
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        0,
        "the file was changed"
    );
    std::fs::remove_file(&path).unwrap();
    assert!(existing().is_err() && !path.exists());
    open(&url).unwrap().migrate().unwrap();
    assert_eq!(existing().unwrap().check_schema(), Ok(()));
}

#[test]
fn migrating_returns_the_names_of_applied_migrations() {
    for database in backends() {
        let store = open(database.url()).unwrap();
        let applied = store.apply_migrations().unwrap();
        assert_eq!(applied.len(), 8, "{applied:?}");
        assert!(
            applied.is_sorted()
                && applied
                    .iter()
                    .all(|name| name.starts_with("2026") && name.contains('_'))
        );
        assert_eq!(store.apply_migrations(), Ok(Vec::new()));
    }
}

#[test]
fn lost_connections_are_replaced() {
    for database in backends()
        .into_iter()
        .filter(|database| database.backend() == Backend::Postgres)
    {
        on(&database, async |database| {
            let store = database.store();
            store.add_key(&key(1, &acme())).await.unwrap();
            let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                          WHERE datname = current_database() AND pid <> pg_backend_pid()";
            // Several connections, all lost at the same time: at most one use fails.
            let reads: Vec<_> = (0..8)
                .map(|_| {
                    tokio::spawn({
                        let store = store.clone();
                        async move {
                            store
                                .read(|_| {
                                    std::thread::sleep(Duration::from_millis(50));
                                    Ok(())
                                })
                                .await
                        }
                    })
                })
                .collect();
            for read in reads {
                read.await.unwrap().unwrap();
            }
            database.sql(others);
            let failures = async |times: usize| {
                let mut failed = 0;
                for _ in 0..times {
                    match store
                        .read(|db| db.account(&acme()).key(&Family::ALL, &id(1)))
                        .await
                    {
                        Ok(found) => assert!(found.is_some()),
                        Err(error) => {
                            assert_eq!(error, Error::Unavailable);
                            failed += 1;
                        }
                    }
                }
                failed
            };
            assert!(failures(20).await <= 1);
            // Connections that were idle are checked first, so no use fails.
            database.sql(others);
            tokio::time::sleep(Duration::from_millis(1_100)).await;
            assert_eq!(failures(20).await, 0);
            let _ = store.save_key(&key(1, &acme())).await.unwrap();
        });
    }
}

/// The server sends a message before it closes its connections, and libpq then reports them as open.
#[test]
fn server_restart_costs_at_most_one_failure() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    on(&postgres.database(), async |database| {
        let store = database.store();
        for mode in ["fast", "immediate", "immediate"] {
            store.ping().await.unwrap();
            postgres.control(&format!("-m {mode} restart"));
            let _ = store.ping().await;
            store.ping().await.unwrap();
        }
    });
}

/// Requests during a restart of the server may fail with [`Error::Unavailable`] or [`Error::Busy`]. Acknowledged
/// changes are kept, and each connection costs at most one failure afterwards.
#[test]
fn server_restart_under_load_loses_no_committed_changes() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    on(&postgres.database(), async |database| {
        let _migrated = database.store();
        let store = Store::open(
            OpenOptions::new(database.url()),
            Arc::new(RealClock::default()),
        )
        .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..12)
            .map(|caller| {
                let (store, stop) = (store.clone(), stop.clone());
                tokio::spawn(async move {
                    let (mut created, mut failed) = (Vec::new(), 0);
                    for number in caller * 1_000_000.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let read = store
                            .read(|db| db.account(&acme()).key(&Family::ALL, &id(1)))
                            .await
                            .map(drop);
                        let written = store.add_key(&key(number, &acme())).await;
                        for result in [&read, &written] {
                            match result {
                                Ok(()) => {}
                                Err(Error::Unavailable | Error::Busy) => failed += 1,
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                        if written.is_ok() {
                            created.push(number);
                        }
                    }
                    (created, failed)
                })
            })
            .collect();
        for mode in ["fast", "immediate"] {
            let count = async |store: &Store| {
                let read = store
                    .read(|db| {
                        db.account(&acme())
                            .count_usable_of(&Family::ALL, crate::at(0))
                    })
                    .await;
                read.unwrap_or(0)
            };
            let before = count(&store).await;
            let since = Instant::now();
            while count(&store).await <= before {
                assert!(since.elapsed() < TIMEOUT, "no load");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mode = format!("-m {mode} restart");
            tokio::task::spawn_blocking(move || postgres.control(&mode))
                .await
                .unwrap();
            // Recovered: as many successes in a row as there are connections.
            let mut successes = 0;
            let since = Instant::now();
            while successes < 20 {
                assert!(since.elapsed() < TIMEOUT, "the server did not come back");
                successes = if store.ping().await.is_ok() {
                    successes + 1
                } else {
                    0
                };
            }
        }
        stop.store(true, Ordering::Relaxed);
        let (mut all_created, mut all_failed) = (0, 0);
        for caller in callers {
            let (created, failed) = caller.await.unwrap();
            for &number in &created {
                assert!(
                    store.key(&acme(), id(number)).await.is_some(),
                    "key {number} was acknowledged and does not exist"
                );
            }
            (all_created, all_failed) = (all_created + created.len(), all_failed + failed);
        }
        eprintln!("{all_created} keys created, {all_failed} requests failed");
        assert!(all_created > 0);
    });
}

#[test]
fn read_only_database_is_not_ready_and_rejected_when_opening() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    on(&postgres.database(), async |database| {
        let _migrated = database.store();
        let store = Store::open(
            OpenOptions::new(database.url()),
            Arc::new(RealClock::default()),
        )
        .unwrap();
        let wait_until = async |ready: bool| {
            let since = Instant::now();
            while store.ping().await
                != if ready {
                    Ok(())
                } else {
                    Err(Error::Unavailable)
                }
            {
                assert!(since.elapsed() < TIMEOUT, "it did not become {ready}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let add = async |number| store.add_key(&key(number, &acme())).await;
        wait_until(true).await;

        // Open connections detect it, and new ones are rejected.
        postgres.configure("default_transaction_read_only = on");
        wait_until(false).await;
        assert_eq!(add(1).await, Err(Error::Unavailable));
        assert!(matches!(
            open(database.url()),
            Err(OpenError::Connect { .. })
        ));
        postgres.configure("default_transaction_read_only = off");
        wait_until(true).await;
        add(1).await.unwrap();

        postgres.demote();
        wait_until(false).await;
        assert_eq!(add(2).await, Err(Error::Unavailable));
        assert!(
            matches!(open(database.url()), Err(OpenError::Connect { .. })),
            "a standby"
        );
        postgres.control("promote");
        wait_until(true).await;
        assert!(store.key(&acme(), id(1)).await.is_some());
        add(2).await.unwrap();
    });
}

#[test]
fn disconnected_server_is_unavailable() {
    for database in backends()
        .into_iter()
        .filter(|database| database.backend() == Backend::Postgres)
    {
        on(&database, async |database| {
            let _migrated = database.store();
            let options = OpenOptions {
                acquire_timeout: Duration::from_millis(300),
                ..OpenOptions::new(database.url())
            };
            let store = Store::open(options, Arc::new(RealClock::default())).unwrap();
            store.ping().await.unwrap();
            database.refuse_connections(true);
            // The pooled connection is found broken, and no new one can be opened.
            for _ in 0..2 {
                assert_eq!(store.ping().await, Err(Error::Unavailable));
            }
            database.refuse_connections(false);
            store.ping().await.unwrap();
        });
    }
}
