use tollkey_core::Usage;
use tollkey_core::{Denial, Position};
use tollkey_store::{Backend, DayUsage};

use crate::{Actions as _, acme, at, each, id, key, position};

fn usage(number: u64, day: i32, outcome: Option<Denial>, count: u64) -> Usage {
    Usage {
        key_id: id(number),
        day,
        outcome,
        count,
        last_used_at: None,
    }
}

#[test]
fn counts_add_up_by_key_day_and_outcome() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        store.add_key(&key(2, &acme())).await.unwrap();
        store.add_usage(vec![]).await.unwrap();
        let batch = vec![
            usage(1, 20_000, None, 5),
            usage(1, 20_001, None, 1),
            usage(1, 20_000, Some(Denial::RateLimited), 2),
            usage(2, 20_000, None, 7),
            Usage {
                last_used_at: Some(at(1)),
                ..usage(99, 20_000, None, 1) // skipped because the key does not exist
            },
        ];
        store.add_usage(batch.clone()).await.unwrap();
        store.add_usage(batch).await.unwrap();
        let read = store
            .read(|db| db.account(&acme()).usage(&id(1), 0))
            .await
            .unwrap();
        let rate_limited = Some(Denial::RateLimited);
        assert_eq!(
            read,
            [
                DayUsage {
                    day: 20_001,
                    outcome: None,
                    count: 2
                },
                DayUsage {
                    day: 20_000,
                    outcome: rate_limited,
                    count: 4
                },
                DayUsage {
                    day: 20_000,
                    outcome: None,
                    count: 10
                },
            ]
        );
        let since = store
            .read(|db| db.account(&acme()).usage(&id(1), 20_001))
            .await
            .unwrap();
        assert_eq!(since.len(), 1);
        let unknown = format!("key_id: {:032x}", 99);
        assert!(!database.dump().contains(&unknown));
        assert_eq!(
            store
                .read(|db| db.account(&acme()).usage(&id(99), 0))
                .await
                .unwrap(),
            []
        );
        assert_eq!(store.prune_usage(20_001).await.unwrap(), 3);
        assert_eq!(
            store
                .read(|db| db.account(&acme()).usage(&id(1), 0))
                .await
                .unwrap(),
            since
        );
    });
}

#[test]
fn old_counts_are_deleted_in_steps() {
    each(async |database| {
        let store = database.store();
        let rows = match database.backend() {
            Backend::Sqlite => "SELECT randomblob(16), value, 'valid', 1 FROM generate",
            Backend::Postgres => {
                "SELECT decode(md5(value::text), 'hex'), value, 'valid', 1 FROM generate"
            }
        };
        database.sql(&format!(
            "WITH RECURSIVE generate(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM generate WHERE value < 12001) \
             INSERT INTO key_usage (key_id, day, outcome, count) {rows}"
        ));
        assert_eq!(store.prune_usage(12_001).await, Ok(12_000));
        assert_eq!(store.prune_usage(12_002).await, Ok(1));
    });
}

#[test]
fn overflowing_count_does_not_block_other_counts() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2] {
            store.add_key(&key(number, &acme())).await.unwrap();
        }
        for _ in 0..3 {
            let most = usage(1, 1, None, u64::MAX);
            store
                .add_usage(vec![most, usage(2, 1, None, 1)])
                .await
                .unwrap();
        }
        let read = async |number| {
            store
                .read(move |db| db.account(&acme()).usage(&id(number), 0))
                .await
                .unwrap()
        };
        assert_eq!(
            read(1).await,
            [DayUsage {
                day: 1,
                outcome: None,
                count: i64::MAX as u64
            }]
        );
        assert_eq!(
            read(2).await,
            [DayUsage {
                day: 1,
                outcome: None,
                count: 3
            }]
        );
    });
}

#[test]
fn every_outcome_is_stored() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        // `unknown_key` is never counted, because no key was found.
        let denials = Denial::ALL
            .into_iter()
            .filter(|denial| *denial != Denial::UnknownKey);
        store
            .add_usage(
                denials
                    .clone()
                    .map(|denial| usage(1, 1, Some(denial), 1))
                    .collect(),
            )
            .await
            .unwrap();
        let read = store
            .read(|db| db.account(&acme()).usage(&id(1), 0))
            .await
            .unwrap();
        for denial in denials {
            assert!(
                read.contains(&DayUsage {
                    day: 1,
                    outcome: Some(denial),
                    count: 1
                }),
                "{denial:?}"
            );
        }
    });
}

#[test]
fn batch_can_have_several_rows_of_one_key() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let used = |second, count| Usage {
            last_used_at: Some(at(second)),
            ..usage(1, 1, None, count)
        };
        let batch = vec![used(7, 1), used(9, 2), used(8, 4), usage(1, 1, None, 8)];
        store.add_usage(batch).await.unwrap();
        let read = store.read(|db| db.account(&acme()).usage(&id(1), 0));
        assert_eq!(read.await.unwrap()[0].count, 15);
        let found = store.key(&acme(), id(1)).await.unwrap();
        assert_eq!(found.last_used_at, Some(at(9)));
    });
}

#[test]
fn failed_batch_is_not_written_partially() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let batch = vec![Usage {
            last_used_at: Some(at(1)),
            ..usage(1, 1, None, 1)
        }];
        database.sql("ALTER TABLE key_last_used RENAME TO elsewhere");
        assert!(store.add_usage(batch.clone()).await.is_err());
        database.sql("ALTER TABLE elsewhere RENAME TO key_last_used");
        let counted = async || {
            let read = store.read(|db| db.account(&acme()).usage(&id(1), 0));
            read.await.unwrap().len()
        };
        assert_eq!(counted().await, 0);
        store.add_usage(batch).await.unwrap();
        assert_eq!(counted().await, 1);
    });
}

#[test]
fn concurrent_replicas_lose_no_counts() {
    each(async |database| {
        let (one, two) = (database.store(), database.store());
        for number in 0..50 {
            one.add_key(&key(number, &acme())).await.unwrap();
        }
        let writing = [one.clone(), two].map(|store| {
            tokio::spawn(async move {
                for round in 0..20 {
                    // Each round has another order.
                    let numbers = (0..50).map(|i| (i * 7 + round) % 50);
                    let batch = numbers.map(|number| Usage {
                        last_used_at: Some(at(round as i64)),
                        ..usage(number, 1, None, 1)
                    });
                    store.add_usage(batch.collect()).await.unwrap();
                }
            })
        });
        for task in writing {
            task.await.unwrap();
        }
        for number in 0..50 {
            let read = one.read(move |db| db.account(&acme()).usage(&id(number), 0));
            assert_eq!(read.await.unwrap()[0].count, 40);
            let found = one.key(&acme(), id(number)).await.unwrap();
            assert_eq!(found.last_used_at, Some(at(19)));
        }
    });
}

#[test]
fn last_use_written_by_the_previous_release_is_returned() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let write_as_previous_release = |second| {
            let micros = at(second).as_microsecond();
            database.sql(&format!("UPDATE api_keys SET last_used_at = {micros}"));
        };
        let write = async |second| {
            let used = Usage {
                last_used_at: Some(at(second)),
                ..usage(1, 1, None, 1)
            };
            store.add_usage(vec![used]).await.unwrap();
        };
        let shown = async || {
            let found = store.key(&acme(), id(1)).await.unwrap();
            let listed = store.read(|db| {
                let filter = tollkey_store::KeyFilter {
                    families: &tollkey_core::Family::ALL,
                    ..Default::default()
                };
                db.account(&acme()).keys(&filter, None, 10)
            });
            assert_eq!(
                listed.await.unwrap().keys[0].last_used_at,
                found.last_used_at
            );
            found.last_used_at
        };
        write_as_previous_release(10);
        assert_eq!(shown().await, Some(at(10)));
        write(5).await;
        assert_eq!(shown().await, Some(at(10)));
        write(20).await;
        assert_eq!(shown().await, Some(at(20)));
        write_as_previous_release(15);
        assert_eq!(shown().await, Some(at(20)));
        write_as_previous_release(30);
        assert_eq!(shown().await, Some(at(30)));
    });
}

#[test]
fn last_used_only_moves_forward_and_evicts_nothing() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        for (used, expected) in [(at(10), at(10)), (at(5), at(10)), (at(11), at(11))] {
            let batch = vec![Usage {
                last_used_at: Some(used),
                ..usage(1, 1, None, 1)
            }];
            store.add_usage(batch).await.unwrap();
            let found = store.key(&acme(), id(1)).await.unwrap();
            assert_eq!(found.last_used_at, Some(expected));
        }
        assert_eq!(position(&store).await, Position::default());
        let mut expected = key(1, &acme());
        expected.last_used_at = Some(at(11));
        assert_eq!(
            store.key(&acme(), id(1)).await,
            Some(expected),
            "the other fields are unchanged"
        );
    });
}
