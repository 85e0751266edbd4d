//! Wake-ups by `NOTIFY`. Only the ignored measurement measures times; the other tests have generous timeouts.

use std::{
    fs,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tollkey_core::Changed;
use tollkey_store::{
    Backend, Error, Listener, OpenOptions, Store,
    testing::{Database, Postgres, RealClock},
};

use crate::{each, id, on};

/// Longer than a reconnection takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

async fn change(store: &Store) {
    let written = store.write(|tx| {
        tx.changed(Changed::Key(id(1)));
        Ok::<_, Error>(())
    });
    let _ = written.await.unwrap();
}

/// Starts a listener and waits for its first wake-up. Each further wake-up sends a message; the channel closes when the
/// thread has ended. `None` on SQLite.
fn listen(database: &Database, store: &Store) -> Option<(Listener, Receiver<Instant>)> {
    let (sender, wakes) = mpsc::channel();
    let wake = move || {
        let _ = sender.send(Instant::now()); // fails after the test has dropped the receiver
    };
    let listener = store.listen(wake).unwrap();
    assert_eq!(listener.is_some(), database.backend() == Backend::Postgres);
    let listener = listener?;
    woken(&wakes);
    Some((listener, wakes))
}

fn woken(wakes: &Receiver<Instant>) {
    wakes.recv_timeout(TIMEOUT).expect("a wake-up");
}

fn ended(wakes: &Receiver<Instant>) {
    assert_eq!(
        wakes.recv_timeout(TIMEOUT),
        Err(RecvTimeoutError::Disconnected),
        "the thread did not end"
    );
}

/// Terminates only the connection of the listener.
const CUT: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND query LIKE 'LISTEN%'";

#[test]
fn each_change_wakes_the_listener_once_until_it_is_dropped() {
    each(async |database| {
        let store = database.store();
        let Some((listener, wakes)) = listen(database, &store) else {
            return;
        };
        for _ in 0..3 {
            change(&store).await;
            woken(&wakes);
        }
        assert_eq!(
            wakes.try_recv(),
            Err(TryRecvError::Empty),
            "more than one wake-up for a change"
        );
        drop(listener);
        ended(&wakes);
        change(&store).await;
    });
}

#[test]
fn other_channels_and_databases_do_not_wake_the_listener() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let (one, two) = (postgres.database(), postgres.database());
    let (store, elsewhere) = (one.store(), two.store());
    on(&one, async |one| {
        let Some((_listener, wakes)) = listen(one, &store) else {
            panic!("a listener on PostgreSQL")
        };
        change(&elsewhere).await;
        one.sql("NOTIFY other_changes");
        change(&store).await;
        woken(&wakes);
        assert_eq!(wakes.try_recv(), Err(TryRecvError::Empty));
    });
}

#[test]
fn lost_connection_is_replaced_and_wakes_for_missed_changes() {
    each(async |database| {
        let store = database.store();
        let Some((listener, wakes)) = listen(database, &store) else {
            return;
        };
        database.sql(CUT);
        woken(&wakes);
        assert_eq!(
            wakes.try_recv(),
            Err(TryRecvError::Empty),
            "more than one wake-up"
        );
        change(&store).await;
        woken(&wakes);
        // The thread also ends if it has no connection.
        database.refuse_connections(true);
        drop(listener);
        ended(&wakes);
        database.refuse_connections(false);
    });
}

#[test]
fn listener_reconnects_after_a_server_restart() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    on(&postgres.database(), async |database| {
        let _migrated = database.store();
        // With the default acquire timeout of 2 s instead of 20 s.
        let store = Store::open(
            OpenOptions::new(database.url()),
            Arc::new(RealClock::default()),
        )
        .unwrap();
        let Some((_listener, wakes)) = listen(database, &store) else {
            panic!("a listener on PostgreSQL")
        };
        for mode in ["fast", "immediate"] {
            postgres.control(&format!("-m {mode} stop"));
            assert_eq!(store.ping().await, Err(Error::Unavailable));
            postgres.control("start");
            woken(&wakes);
            change(&store).await;
            woken(&wakes);
        }
    });
}

#[test]
#[ignore = "a measurement: cargo test -p tollkey-store --test store wake::wake_up_latency_is_measured -- --ignored --nocapture"]
fn wake_up_latency_is_measured() {
    each(async |database| {
        let store = database.store();
        let Some((listener, wakes)) = listen(database, &store) else {
            return;
        };
        let mut micros = Vec::new();
        for round in 0..500 {
            change(&store).await;
            let committed = Instant::now();
            let woken = wakes.recv_timeout(TIMEOUT).unwrap();
            micros.push(woken.saturating_duration_since(committed).as_micros());
            // Not synchronized with any timer.
            tokio::time::sleep(Duration::from_micros(5_000 + round * 37 % 10_000)).await;
        }
        micros.sort_unstable();
        let rest = Duration::from_secs(10);
        let before = cpu_time();
        tokio::time::sleep(rest).await;
        let busy = (cpu_time() - before).as_secs_f64() / rest.as_secs_f64();
        let (median, p99) = (micros[micros.len() / 2], micros[micros.len() * 99 / 100]);
        eprintln!(
            "from commit to wake-up: median {median} µs, p99 {p99} µs; idle {:.3} % of a core",
            busy * 100.0
        );
        drop(listener);
    });
}

/// Returns the CPU time that the listening thread has used.
fn cpu_time() -> Duration {
    let threads = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|thread| thread.unwrap().path());
    let listening = |thread: &std::path::PathBuf| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "tollkey-listen")
    };
    let nanos = threads.filter(listening).map(|thread| {
        let text = fs::read_to_string(thread.join("schedstat")).unwrap();
        text.split_ascii_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    });
    Duration::from_nanos(nanos.sum())
}
