use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tollkey_core::{ChangeLog, Changed, Position, Seq, VerifierId};
use tollkey_store::{Backend, Error, LaggingVerifier, Store, testing::hold};

use crate::{Actions as _, acme, changes, digest, each, id, key, position};

fn verifier(number: u8) -> VerifierId {
    VerifierId::from_bytes([number; 16])
}

async fn change(store: &Store, what: Changed) -> Seq {
    let written = store.write(move |tx| {
        tx.changed(what);
        Ok::<_, Error>(())
    });
    written.await.unwrap().change.unwrap().seq
}

#[test]
fn change_counter_numbers_changes_without_gaps() {
    each(async |database| {
        let store = database.store();
        assert_eq!(
            (position(&store).await, changes(&store).await),
            (Position::default(), vec![])
        );
        let all = [
            Changed::Key(id(1)),
            Changed::Application(id(2)),
            Changed::Account(acme()),
            Changed::ServiceKey(id(3)),
        ];
        let several = all.clone();
        let written = store.write(move |tx| {
            // Duplicates are recorded once.
            several
                .iter()
                .chain(&several)
                .for_each(|what| tx.changed(what.clone()));
            Ok::<_, Error>(())
        });
        assert_eq!(written.await.unwrap().change.unwrap().seq, Seq(4));
        assert_eq!(change(&store, Changed::Key(id(9))).await, Seq(5));

        let expected: Vec<_> = (1..)
            .map(Seq)
            .zip(all.into_iter().chain([Changed::Key(id(9))]))
            .collect();
        assert_eq!(changes(&store).await, expected);
        let log = store.changes_after(Position::default(), 4).await.unwrap();
        assert_eq!(
            (log.current.seq, log.changes.as_ref().map(Vec::len)),
            (Seq(5), Some(4))
        );
        let fourth = log.changes.unwrap()[3].0;
        let rest = vec![(log.current, Changed::Key(id(9)))];
        assert_eq!(
            store.changes_after(fourth, 4).await,
            Ok(ChangeLog {
                current: log.current,
                changes: Some(rest)
            })
        );
        let nothing = ChangeLog {
            current: log.current,
            changes: Some(vec![]),
        };
        assert_eq!(store.changes_after(log.current, 4).await, Ok(nothing));
    });
}

#[test]
fn concurrent_changes_get_distinct_consecutive_numbers() {
    each(async |database| {
        let store = Arc::new(database.store());
        let tasks: Vec<_> = (0..16)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move { change(&store, Changed::Key(id(number))).await })
            })
            .collect();
        let mut numbers = Vec::new();
        for task in tasks {
            numbers.push(task.await.unwrap().0);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=16).collect::<Vec<_>>());
        assert_eq!(
            changes(&store)
                .await
                .iter()
                .map(|(seq, _)| seq.0)
                .collect::<Vec<_>>(),
            numbers
        );
    });
}

#[test]
fn position_of_another_history_is_not_in_the_log() {
    each(async |database| {
        let store = database.store();
        for number in 1..=3 {
            change(&store, Changed::Key(id(number))).await;
        }
        let current = position(&store).await;
        let log = store.changes_after(Position::default(), 10).await.unwrap();
        let (second, _) = log.changes.unwrap()[1];
        for (other, what) in [
            (
                Position {
                    seq: Seq(50),
                    ..current
                },
                "the counter is lower",
            ),
            (
                Position {
                    at: current.at - 1,
                    ..current
                },
                "the counter was reset and has the same value again",
            ),
            (
                Position {
                    at: second.at - 1,
                    ..second
                },
                "the counter was reset and has a higher value",
            ),
        ] {
            assert_eq!(
                store.changes_after(other, 10).await,
                Ok(ChangeLog {
                    current,
                    changes: None
                }),
                "{what}"
            );
            assert_eq!(
                store.renew(verifier(1), Seq(0), other).await,
                Ok(false),
                "{what}"
            );
        }
    });
}

#[test]
fn log_reports_a_gap_after_deleting_old_changes() {
    each(async |database| {
        let store = database.store();
        change(&store, Changed::Key(id(1))).await;
        database.sql("UPDATE change_counter SET seq = 10001");
        assert_eq!(change(&store, Changed::Key(id(2))).await, Seq(10_002));
        let log = store.changes_after(Position::default(), 10).await.unwrap();
        assert_eq!((log.current.seq, log.changes), (Seq(10_002), None));
    });
}

#[test]
fn only_up_to_date_verifiers_can_renew_leases() {
    each(async |database| {
        let store = database.store();
        assert_eq!(store.lease_length().await, Ok(Duration::from_secs(3)));
        let before = position(&store).await;
        assert!(store.renew(verifier(1), Seq(0), before).await.unwrap());
        change(&store, Changed::Key(id(1))).await;
        let now = position(&store).await;
        assert!(
            !store.renew(verifier(1), Seq(0), before).await.unwrap(),
            "lagging"
        );
        assert!(
            !store.renew(verifier(2), Seq(0), before).await.unwrap(),
            "lagging and new"
        );
        let ahead = Position { seq: Seq(2), ..now };
        assert!(
            !store.renew(verifier(2), Seq(2), ahead).await.unwrap(),
            "ahead of a restored database"
        );
        let [
            LaggingVerifier {
                renewals: first, ..
            },
        ] = store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap()[..]
        else {
            panic!()
        };
        assert!(
            !store.renew(verifier(1), Seq(0), before).await.unwrap(),
            "lagging"
        );
        let behind = |more| {
            vec![LaggingVerifier {
                verifier: verifier(1),
                renewals: first + more,
            }]
        };
        assert_eq!(
            store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap(),
            behind(0),
            "a rejected renewal does not count"
        );

        // Renews with the position up to which it has evicted, and reports less for a slow subscriber.
        assert!(store.renew(verifier(1), Seq(0), now).await.unwrap());
        assert_eq!(
            store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap(),
            behind(1)
        );
        assert_eq!(
            store.lagging_verifiers(Seq(1), verifier(1)).await.unwrap(),
            [],
            "a verifier does not wait for itself"
        );
        store.report(verifier(1), Seq(1)).await.unwrap();
        assert_eq!(
            store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap(),
            []
        );
        assert_eq!(
            store.lagging_verifiers(Seq(2), verifier(9)).await.unwrap(),
            behind(1),
            "a report is not a renewal"
        );
    });
}

#[test]
fn verifiers_are_removed_by_unregistering_or_without_renewal() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2, 3] {
            assert!(
                store
                    .renew(verifier(number), Seq(0), position(&store).await)
                    .await
                    .unwrap()
            );
        }
        change(&store, Changed::Key(id(1))).await;
        let seen = store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap();
        let [_, second, third] = seen[..] else {
            panic!("{seen:?}")
        };
        store.unregister(verifier(1)).await.unwrap();
        assert!(
            store
                .renew(verifier(2), Seq(0), position(&store).await)
                .await
                .unwrap()
        );
        assert!(
            !store
                .remove_if_not_renewed(verifier(2), second.renewals)
                .await
                .unwrap(),
            "it has renewed"
        );
        assert!(
            store
                .remove_if_not_renewed(verifier(3), third.renewals)
                .await
                .unwrap(),
            "it has not renewed"
        );
        let left = store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap();
        assert_eq!(
            left,
            [LaggingVerifier {
                renewals: second.renewals + 1,
                ..second
            }]
        );

        // A removed verifier that still runs: a report finds no row, a renewal inserts one.
        store.report(verifier(3), Seq(1)).await.unwrap();
        assert!(
            store
                .renew(verifier(3), Seq(1), position(&store).await)
                .await
                .unwrap()
        );
        let behind = store.lagging_verifiers(Seq(2), verifier(2)).await.unwrap();
        assert_eq!(
            behind.iter().map(|row| row.verifier).collect::<Vec<_>>(),
            [verifier(3)]
        );
    });
}

/// Two replicas find the same verifier without a renewal. The first removes its row, and the verifier registers again.
/// The second must not remove that row: the next change would not wait for the verifier's lease.
#[test]
fn re_registered_verifier_is_not_removed_by_an_old_check() {
    each(async |database| {
        let store = database.store();
        assert!(
            store
                .renew(verifier(1), Seq(0), Position::default())
                .await
                .unwrap()
        );
        change(&store, Changed::Key(id(1))).await;
        let [LaggingVerifier { renewals, .. }] =
            store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap()[..]
        else {
            panic!()
        };
        assert!(
            store
                .remove_if_not_renewed(verifier(1), renewals)
                .await
                .unwrap()
        );
        assert!(
            store
                .renew(verifier(1), Seq(1), position(&store).await)
                .await
                .unwrap()
        );
        assert!(
            !store
                .remove_if_not_renewed(verifier(1), renewals)
                .await
                .unwrap(),
            "it has registered again"
        );
        assert_eq!(
            store
                .lagging_verifiers(Seq(2), verifier(9))
                .await
                .unwrap()
                .len(),
            1,
            "the next change waits for it"
        );
    });
}

/// The share lock: a verifier without a row must not register between a revoking transaction's UPDATE and its commit.
#[test]
fn first_renewal_waits_for_a_change_being_committed() {
    each(async |database| {
        let store = database.store();
        let url = database.url().to_owned();
        let (raised, is_raised) = std::sync::mpsc::channel();
        let revoker = std::thread::spawn(move || {
            // Like another process: a transaction that has raised the counter and commits late.
            hold(&url, "UPDATE change_counter SET seq = seq + 1", || {
                raised.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(400));
            });
        });
        is_raised.recv().unwrap();
        let begun = Instant::now();
        let renewed = store
            .renew(verifier(1), Seq(0), Position::default())
            .await
            .unwrap();
        assert!(
            begun.elapsed() > Duration::from_millis(200),
            "the renewal did not wait"
        );
        assert!(!renewed, "the renewal did not see the change");
        assert_eq!(
            store.lagging_verifiers(Seq(9), verifier(9)).await.unwrap(),
            []
        );
        revoker.join().unwrap();
    });
}

/// With a short lease: renewals end in bounded time, and the reads of verifications do not wait.
#[test]
fn process_paused_in_a_change_delays_only_renewals() {
    each(async |database| {
        if database.backend() == Backend::Sqlite {
            return; // there is only one writer, for which others wait up to 5 s
        }
        let store = database.store();
        database.sql("UPDATE settings SET value = '100' WHERE name = 'lease_ms'");
        store.add_key(&key(1, &acme())).await.unwrap();
        let url = database.url().to_owned();
        let (raised, is_raised) = std::sync::mpsc::channel();
        let (resume, resumed) = std::sync::mpsc::channel::<()>();
        let paused = std::thread::spawn(move || {
            hold(&url, "UPDATE change_counter SET seq = seq + 1", || {
                raised.send(()).unwrap();
                let _ = resumed.recv_timeout(Duration::from_secs(20));
            });
        });
        is_raised.recv().unwrap();
        let renewal = tokio::spawn({
            let store = store.clone();
            async move { store.renew(verifier(1), Seq(0), Position::default()).await }
        });
        for _ in 0..3 {
            let found = store.find_by_digest(digest(1)).await.unwrap();
            assert!(found.found.is_some() && found.seq == Seq(0));
            assert_eq!(position(&store).await, Position::default());
            assert_eq!(
                store.lagging_verifiers(Seq(1), verifier(9)).await.unwrap(),
                []
            );
        }
        assert!(!renewal.is_finished());
        assert_eq!(renewal.await.unwrap(), Err(Error::Busy), "the lock timeout");
        resume.send(()).unwrap();
        paused.join().unwrap();
        assert_eq!(
            store.renew(verifier(1), Seq(0), Position::default()).await,
            Ok(false),
            "lagging"
        );
        assert_eq!(
            store
                .renew(verifier(1), Seq(1), position(&store).await)
                .await,
            Ok(true)
        );
    });
}

#[test]
fn invalid_lease_lengths_are_reported_as_corrupt() {
    each(async |database| {
        let store = database.store();
        for value in ["", "0", "99", "60001", "3s", "-1"] {
            database.sql(&format!(
                "UPDATE settings SET value = '{value}' WHERE name = 'lease_ms'"
            ));
            assert!(
                matches!(store.lease_length().await, Err(Error::Corrupt(_))),
                "{value}"
            );
        }
        database.sql("UPDATE settings SET value = '500' WHERE name = 'lease_ms'");
        assert_eq!(store.lease_length().await, Ok(Duration::from_millis(500)));
        database.sql("DELETE FROM settings");
        assert!(store.lease_length().await.is_err());
    });
}
