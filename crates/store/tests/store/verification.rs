use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tollkey_core::{Application, OperatingModel, Seq};
use tollkey_store::FoundKey;

use crate::{Actions as _, acme, application, application_key, at, digest, each, id, key};

#[test]
fn key_is_found_by_its_hash_with_its_dependencies() {
    each(async |database| {
        let store = database.store();
        let nothing = store.find_by_digest(digest(1)).await.unwrap();
        assert_eq!((nothing.seq, nothing.found), (Seq(0), None));

        store.add_key(&key(1, &acme())).await.unwrap();
        let found = store.find_by_digest(digest(1)).await.unwrap();
        let plain = FoundKey {
            key: key(1, &acme()),
            application: None,
            operating_model: OperatingModel::default(),
        };
        assert_eq!((found.seq, found.found), (Seq(0), Some(plain)));

        store
            .add_application(&application(2, &acme()))
            .await
            .unwrap();
        let created = application_key(3, &acme(), id(2));
        store.add_key(&created).await.unwrap();
        let _ = store
            .write(|tx| {
                tx.account(&acme())
                    .set_operating_model(OperatingModel::Ecosystem, at(1))
            })
            .await
            .unwrap();
        let found = store.find_by_digest(digest(3)).await.unwrap();
        let expected = FoundKey {
            key: created.clone(),
            application: Some(application(2, &acme())),
            operating_model: OperatingModel::Ecosystem,
        };
        assert_eq!((found.seq, found.found), (Seq(1), Some(expected)));

        let _ = store
            .write(|tx| tx.account(&acme()).delete_application(&id(2), at(9)))
            .await
            .unwrap();
        let found = store
            .find_by_digest(digest(3))
            .await
            .unwrap()
            .found
            .unwrap();
        let disabled = Application {
            is_enabled: false,
            ..application(2, &acme())
        };
        assert_eq!(
            found.application,
            Some(disabled),
            "a deleted application is returned as disabled"
        );
    });
}

/// A snapshot must not have the counter of a change without its row, or the reverse. One task renames a key to the
/// number of each change while others read both.
#[test]
fn counter_and_key_are_from_the_same_snapshot() {
    each(async |database| {
        let store = Arc::new(database.store());
        let mut changing = key(1, &acme());
        changing.name = "0".into();
        store.add_key(&changing).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (store, done) = (store.clone(), done.clone());
                tokio::spawn(async move {
                    let mut reads = 0;
                    while !done.load(Ordering::Relaxed) {
                        let snapshot = store.find_by_digest(digest(1)).await.unwrap();
                        assert_eq!(snapshot.found.unwrap().key.name, snapshot.seq.to_string());
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for number in 1..=60 {
            changing.name = number.to_string();
            let written = store.save_key(&changing).await.unwrap();
            assert_eq!(written.change.unwrap().seq, Seq(number));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.await.unwrap() > 0);
        }
    });
}
