use tollkey_core::{AccountId, Application, Changed, Position};
use tollkey_store::{Error, UniqueViolation};

use crate::{Actions as _, acme, application, at, changes, each, id, other, position};

#[test]
fn application_can_be_read_updated_and_deleted() {
    each(async |database| {
        let store = database.store();
        let created = Application {
            description: Some("Über-shop".into()),
            ..application(1, &acme())
        };
        store.add_application(&created).await.unwrap();
        let found = store
            .read(|db| db.account(&acme()).application(&id(1)))
            .await
            .unwrap();
        assert_eq!(found, Some(created.clone()));

        let changed = Application {
            name: "new name".into(),
            description: None,
            is_enabled: false,
            ..created
        };
        let update = changed.clone();
        let written = store
            .write(move |tx| tx.account(&acme()).update_application(&update))
            .await
            .unwrap();
        let seq = written.change.unwrap().seq;
        assert_eq!(changes(&store).await, [(seq, Changed::Application(id(1)))]);
        let found = store
            .read(|db| db.account(&acme()).application(&id(1)))
            .await
            .unwrap();
        assert_eq!(found, Some(changed));

        let written = store
            .write(|tx| tx.account(&acme()).delete_application(&id(1), at(9)))
            .await
            .unwrap();
        assert!(written.change.is_some());
        assert_eq!(
            store
                .read(|db| db.account(&acme()).application(&id(1)))
                .await
                .unwrap(),
            None
        );
        assert_eq!(
            store
                .read(|db| db.account(&acme()).applications(1, 10))
                .await
                .unwrap()
                .total,
            0
        );
        let again = store
            .write(|tx| tx.account(&acme()).delete_application(&id(1), at(10)))
            .await;
        assert_eq!(again, Err(Error::NotFound));
    });
}

#[test]
fn application_names_are_unique_within_an_account() {
    each(async |database| {
        let store = database.store();
        let named = |number, name: &str, account: &AccountId| Application {
            name: name.into(),
            ..application(number, account)
        };
        store
            .add_application(&named(1, "shop", &acme()))
            .await
            .unwrap();
        let taken = Err(Error::Unique(UniqueViolation::ApplicationName));
        assert_eq!(
            store.add_application(&named(2, "shop", &acme())).await,
            taken
        );
        store
            .add_application(&named(3, "Shop", &acme()))
            .await
            .unwrap();
        store
            .add_application(&named(4, "shop", &other()))
            .await
            .unwrap();
        let rename = named(3, "shop", &acme());
        let renamed = store
            .write(move |tx| tx.account(&acme()).update_application(&rename))
            .await;
        assert_eq!(renamed.map(drop), taken);
        let _ = store
            .write(|tx| tx.account(&acme()).delete_application(&id(1), at(9)))
            .await
            .unwrap();
        store
            .add_application(&named(5, "shop", &acme()))
            .await
            .unwrap();
        // A repeated ID is not reported as a taken name.
        let twice = store
            .add_application(&named(5, "yet another", &acme()))
            .await;
        assert_eq!(twice, Err(Error::Unique(UniqueViolation::Other)));
    });
}

#[test]
fn pages_are_newest_first_and_empty_past_the_end() {
    each(async |database| {
        let store = database.store();
        for number in 1..=5 {
            store
                .add_application(&application(number, &acme()))
                .await
                .unwrap();
        }
        // The same creation time: the ID decides.
        store
            .add_application(&Application {
                created_at: at(5),
                ..application(6, &acme())
            })
            .await
            .unwrap();
        store
            .add_application(&application(7, &other()))
            .await
            .unwrap();
        for (page, limit, expected) in [
            (1, 4, vec![6, 5, 4, 3]),
            (2, 4, vec![2, 1]),
            (3, 4, vec![]),
            (u32::MAX, 100, vec![]),
        ] {
            let paged = store
                .read(move |db| db.account(&acme()).applications(page, limit))
                .await
                .unwrap();
            assert_eq!(paged.total, 6);
            let ids: Vec<_> = paged
                .items
                .iter()
                .map(|application| application.id)
                .collect();
            assert_eq!(
                ids,
                expected.into_iter().map(id).collect::<Vec<_>>(),
                "page {page}"
            );
        }
    });
}

#[test]
fn applications_of_another_account_cannot_be_read_or_changed() {
    each(async |database| {
        let store = database.store();
        let created = application(1, &acme());
        store.add_application(&created).await.unwrap();
        let found = store.read(|db| {
            let account = other();
            let mut theirs = db.account(&account);
            Ok((
                theirs.application(&id(1))?,
                theirs.applications(1, 10)?.total,
            ))
        });
        assert_eq!(found.await.unwrap(), (None, 0));

        let theirs = Application {
            name: "stolen".into(),
            account_id: other(),
            ..created.clone()
        };
        let update = theirs.clone();
        let updated = store
            .write(move |tx| tx.account(&other()).update_application(&update))
            .await;
        assert_eq!(updated, Err(Error::NotFound));
        let deleted = store
            .write(|tx| tx.account(&other()).delete_application(&id(1), at(2)))
            .await;
        assert_eq!(deleted, Err(Error::NotFound));
        let locked = store
            .write(|tx| tx.account(&other()).lock_application(&id(1)))
            .await
            .unwrap();
        assert_eq!((locked.value, locked.change), (None, None));
        // Nor by passing an application of another account.
        let inserted = store
            .write(move |tx| tx.account(&acme()).insert_application(&theirs))
            .await;
        assert_eq!(inserted, Err(Error::NotFound));

        let found = store
            .read(|db| db.account(&acme()).application(&id(1)))
            .await
            .unwrap();
        assert_eq!(found, Some(created));
        assert_eq!(position(&store).await, Position::default());
    });
}
