use tollkey_core::{Changed, Seq, ServiceKey, api_key::Transition};
use tollkey_store::{Error, UniqueViolation};

use crate::{at, changes, digest, each, id};

fn service_key(number: u64) -> ServiceKey {
    ServiceKey {
        id: id(number),
        name: format!("gateway {number}"),
        last4: "wxyz".into(),
        created_at: at(i64::try_from(number).unwrap()),
        revoked_at: None,
    }
}

#[test]
fn service_key_can_be_created_found_listed_and_revoked() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2] {
            let written = store
                .write(move |tx| tx.insert_service_key(&service_key(number), &digest(number)))
                .await;
            assert_eq!(written.unwrap().change, None);
        }
        let twice = store
            .write(|tx| tx.insert_service_key(&service_key(3), &digest(1)))
            .await;
        assert_eq!(twice, Err(Error::Unique(UniqueViolation::ServiceKeyDigest)));
        assert_eq!(
            store.read(|db| db.service_keys(10)).await.unwrap(),
            [service_key(2), service_key(1)]
        );
        assert_eq!(
            store.read(|db| db.service_keys(1)).await.unwrap(),
            [service_key(2)]
        );
        let found = store.find_service_key(digest(1)).await.unwrap();
        assert_eq!((found.seq, found.found), (Seq(0), Some(service_key(1))));
        assert_eq!(store.find_service_key(digest(9)).await.unwrap().found, None);

        let revoke = async |number| {
            let written = store
                .write(move |tx| tx.revoke_service_key(&id(number), at(9)))
                .await
                .unwrap();
            (written.value, written.change.map(|change| change.seq))
        };
        assert_eq!(revoke(1).await, (Some(Transition::Changed), Some(Seq(1))));
        assert_eq!(revoke(1).await, (Some(Transition::Unchanged), None));
        assert_eq!(revoke(9).await, (None, None));
        assert_eq!(
            changes(&store).await,
            [(Seq(1), Changed::ServiceKey(id(1)))]
        );
        let found = store.find_service_key(digest(1)).await.unwrap();
        assert_eq!(
            (found.seq, found.found),
            (Seq(1), None),
            "a revoked service key is not found"
        );
        let revoked = store
            .read(|db| db.service_key(&id(1)))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            revoked,
            ServiceKey {
                revoked_at: Some(at(9)),
                ..service_key(1)
            }
        );
        assert!(
            store
                .find_service_key(digest(2))
                .await
                .unwrap()
                .found
                .is_some(),
            "the other service key is unchanged"
        );
    });
}

#[test]
fn look_ups_do_not_confuse_service_keys_with_api_keys() {
    use crate::{Actions as _, acme, key};
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let _ = store
            .write(|tx| tx.insert_service_key(&service_key(2), &digest(2)))
            .await
            .unwrap();
        assert_eq!(store.find_service_key(digest(1)).await.unwrap().found, None);
        assert_eq!(store.find_by_digest(digest(2)).await.unwrap().found, None);
    });
}
