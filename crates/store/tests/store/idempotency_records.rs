use tollkey_core::Timestamp;
use tollkey_store::{Backend, Error, IdempotencyRecord, Store, testing::hold};

use crate::{at, each};

fn record(id: u8, created_at: Timestamp) -> IdempotencyRecord {
    IdempotencyRecord {
        id: [id; 32],
        fingerprint: [id + 1; 32],
        sealed: vec![0, 255, id],
        created_at,
    }
}

async fn insert(store: &Store, record: IdempotencyRecord) {
    let written = store
        .write(move |tx| tx.insert_idempotency_record(&record))
        .await
        .unwrap();
    assert_eq!(written.change, None, "no verifier has to be notified");
}

async fn found(store: &Store, id: u8, since: Timestamp) -> Option<IdempotencyRecord> {
    store
        .read(move |db| db.idempotency_record(&[id; 32], since))
        .await
        .unwrap()
}

#[test]
fn idempotency_record_is_stored_replaced_and_deleted() {
    each(async |database| {
        let store = database.store();
        insert(&store, record(1, at(10))).await;
        insert(&store, record(2, at(20))).await;
        assert_eq!(found(&store, 1, at(9)).await, Some(record(1, at(10))));
        assert_eq!(found(&store, 1, at(10)).await, None, "created too early");
        assert_eq!(found(&store, 3, at(0)).await, None);

        let newer = IdempotencyRecord {
            sealed: vec![7; 100_000],
            ..record(1, at(30))
        };
        insert(&store, newer.clone()).await;
        assert_eq!(found(&store, 1, at(10)).await, Some(newer.clone()));

        assert_eq!(store.prune_idempotency_records(at(20)).await, Ok(1));
        assert_eq!(found(&store, 2, at(0)).await, None);
        assert_eq!(found(&store, 1, at(0)).await, Some(newer));
    });
}

#[test]
fn idempotency_record_is_rolled_back_with_its_transaction() {
    each(async |database| {
        let store = database.store();
        let failed = store.write(|tx| {
            tx.insert_idempotency_record(&record(1, at(1)))?;
            Err::<(), _>(Error::NotFound)
        });
        assert_eq!(failed.await, Err(Error::NotFound));
        assert_eq!(found(&store, 1, at(0)).await, None);
    });
}

#[test]
fn id_is_reserved_by_one_transaction_without_waiting() {
    each(async |database| {
        let store = database.store();
        assert!(
            store
                .write(|tx| tx.reserve_idempotency_record(&[1; 32]))
                .await
                .unwrap()
                .value
        );
        // SQLite has only one writer.
        if database.backend() == Backend::Postgres {
            let number = i64::from_be_bytes([1; 8]);
            let (url, other) = (database.url().to_owned(), store.clone());
            let busy = tokio::task::spawn_blocking(move || {
                let mut taken = None;
                hold(
                    &url,
                    &format!("SELECT pg_advisory_xact_lock({number})"),
                    || {
                        let reserve = |id: u8| {
                            other
                                .write_blocking(move |tx| tx.reserve_idempotency_record(&[id; 32]))
                                .unwrap()
                                .value
                        };
                        taken = Some((reserve(1), reserve(2)));
                    },
                );
                taken
            });
            assert_eq!(busy.await.unwrap(), Some((false, true)));
        }
        assert!(
            store
                .write(|tx| tx.reserve_idempotency_record(&[1; 32]))
                .await
                .unwrap()
                .value
        );
    });
}
