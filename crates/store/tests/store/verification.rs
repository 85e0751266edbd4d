use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tollkey_core::{Application, OperatingModel, Seq};
use tollkey_store::FoundKey;

use crate::{Actions as _, acme, application, application_key, at, digest, each, id, key};

#[test]
fn a_key_is_found_by_its_digest_with_all_it_depends_on() {
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
        let made = application_key(3, &acme(), id(2));
        store.add_key(&made).await.unwrap();
        let _ = store
            .write(|tx| {
                tx.account(&acme())
                    .set_operating_model(OperatingModel::Ecosystem, at(1))
            })
            .await
            .unwrap();
        let found = store.find_by_digest(digest(3)).await.unwrap();
        let expected = FoundKey {
            key: made.clone(),
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
            "deleted is as good as disabled"
        );
    });
}

/// A counter value that covers a change comes with a row that has it: while one task changes a key's name to the
/// number of the change, others read both.
#[test]
fn the_counter_and_the_key_are_of_one_moment() {
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
