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
            usage(99, 20_000, None, 1), // no such key: skipped
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
fn what_is_old_is_forgotten_in_steps() {
    each(async |database| {
        let store = database.store();
        let ids = match database.backend() {
            Backend::Sqlite => "SELECT randomblob(16), value, 'valid', 1 FROM generate",
            Backend::Postgres => {
                "SELECT decode(md5(value::text), 'hex'), value, 'valid', 1 FROM generate"
            }
        };
        database.sql(&format!(
            "WITH RECURSIVE generate(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM generate WHERE value < 12001) \
             INSERT INTO key_usage (key_id, day, outcome, count) {ids}"
        ));
        assert_eq!(store.prune_usage(12_001).await, Ok(12_000));
        assert_eq!(store.prune_usage(12_002).await, Ok(1));
    });
}

#[test]
fn a_count_that_would_not_fit_holds_up_no_other() {
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
fn every_outcome_is_kept() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        // No key is unknown.
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
fn last_used_only_moves_forward_and_is_nothing_to_forget() {
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
            "nothing else of it has changed"
        );
    });
}
