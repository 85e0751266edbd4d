//! Tests of keys that other keys created: the status and limits that they inherit, and how revocations are recorded on
//! them.

use std::collections::BTreeSet;

use tollkey_core::{
    ApiKey, Family, KeyId, RateLimit, Status,
    api_key::Transition,
    audit::{Actor, ActorKind},
    change::Changed,
    lineage::{APPLICATION_DELETED, Inherited, PARENT_REVOKED, PendingRevocation, Root},
};
use tollkey_store::{Error, KeyFilter, Store};

use crate::{Actions as _, acme, application, application_key, at, digest, each, id, key, other};

/// Returns a secret key. If `parent` is set, that key created it.
fn secret(number: u64, parent: Option<u64>) -> ApiKey {
    ApiKey {
        family: Family::Secret,
        created_by: parent.map(id),
        ..key(number, &acme())
    }
}

/// Inserts the keys 1 → 2 → 3 → 4, 1 → 5, and 9 without a parent.
async fn tree(store: &Store) {
    for (number, parent) in [
        (1, None),
        (2, Some(1)),
        (3, Some(2)),
        (4, Some(3)),
        (5, Some(1)),
        (9, None),
    ] {
        store.add_key(&secret(number, parent)).await.unwrap();
    }
}

async fn edit(
    store: &Store,
    number: u64,
    edit: impl FnOnce(&mut ApiKey),
) -> Option<tollkey_store::Change> {
    let mut key = store.key(&acme(), id(number)).await.unwrap();
    edit(&mut key);
    store.save_key(&key).await.unwrap().change
}

fn pending(root: Root) -> PendingRevocation {
    PendingRevocation {
        account_id: acme(),
        root,
        revoked_at: at(50),
        actor: Actor {
            kind: ActorKind::Merchant,
            id: "user-1".into(),
        },
        request_id: Some("req_1".into()),
        ip: Some("2001:db8::1".parse().unwrap()),
    }
}

/// Returns the numbers of the keys in a status.
async fn in_status(store: &Store, status: Status) -> BTreeSet<u64> {
    let found = store.read(move |db| {
        let filter = KeyFilter {
            families: &Family::ALL,
            status: Some((status, at(60))),
            ..KeyFilter::default()
        };
        Ok(db.account(&acme()).keys(&filter, None, 100)?.keys)
    });
    let found = found.await.unwrap();
    assert!(
        found.iter().all(|key| key.status(at(60)) == status),
        "{found:?}"
    );
    found.iter().map(|key| number(&key.id)).collect()
}

fn number(id: &KeyId) -> u64 {
    u64::from_be_bytes(id.as_bytes()[8..].try_into().unwrap())
}

#[test]
fn every_read_returns_the_inherited_status() {
    each(async |database| {
        let store = database.store();
        tree(&store).await;
        type Row = (fn(&mut ApiKey), Status, fn(&Inherited) -> bool);
        let rows: [Row; 3] = [
            (
                |key| assert_eq!(key.revoke(at(50), None), Transition::Changed),
                Status::Revoked,
                |inherited| inherited.revoked == Some((at(50), PARENT_REVOKED)),
            ),
            (
                |key| key.restrictions.expires_at = Some(at(55)),
                Status::Expired,
                |it| it.expires_at == Some(at(55)),
            ),
            (
                |key| key.suspended_at = Some(at(40)),
                Status::Suspended,
                |it| it.suspended_at == Some(at(40)),
            ),
        ];
        for (change, status, inherits) in rows {
            edit(&store, 2, change).await;
            if status == Status::Revoked {
                let added = store.write(|tx| {
                    tx.account(&acme())
                        .add_pending_revocation(&pending(Root::Key(id(2))))
                });
                let _ = added.await.unwrap();
            }
            for descendant in [3, 4] {
                let key = store.key(&acme(), id(descendant)).await.unwrap();
                assert_eq!((key.status(at(60)), key.revoked_at), (status, None));
                assert!(inherits(key.inherited.as_ref().unwrap()), "{key:?}");
                let found = store
                    .find_by_digest(digest(descendant))
                    .await
                    .unwrap()
                    .found
                    .unwrap();
                assert_eq!(found.key, key);
            }
            assert_eq!(in_status(&store, status).await, BTreeSet::from([2, 3, 4]));
            assert_eq!(
                in_status(&store, Status::Active).await,
                BTreeSet::from([1, 5, 9])
            );
            let usable = store.read(|db| {
                db.account(&acme())
                    .count_usable_of(&[Family::Secret], at(60))
            });
            let usable = usable.await.unwrap();
            assert_eq!(
                usable,
                if status == Status::Suspended { 6 } else { 3 },
                "{status:?}"
            );
            database.sql(
                "UPDATE api_keys SET revoked_at = NULL, expires_at = NULL, suspended_at = NULL",
            );
            database.sql("DELETE FROM pending_revocations");
        }
        assert_eq!(
            in_status(&store, Status::Active).await,
            BTreeSet::from([1, 2, 3, 4, 5, 9])
        );
    });
}

#[test]
fn rate_limits_of_all_ancestors_are_read_with_the_root_first() {
    each(async |database| {
        let store = database.store();
        tree(&store).await;
        let limit = |uses| RateLimit::new(uses, 60).unwrap();
        for (number, uses) in [(1, 9), (2, 8), (4, 7)] {
            edit(&store, number, |key| {
                key.restrictions.rate_limit = Some(limit(uses))
            })
            .await;
        }
        let key = store.key(&acme(), id(4)).await.unwrap();
        assert_eq!(
            key.rate_limits().collect::<Vec<_>>(),
            [(id(1), limit(9)), (id(2), limit(8)), (id(4), limit(7))]
        );
    });
}

#[test]
fn change_of_a_parent_key_is_one_change_of_its_account() {
    each(async |database| {
        let store = database.store();
        tree(&store).await;
        for (number, expected) in [
            (4, Changed::Key(id(4))),
            (9, Changed::Key(id(9))),
            (2, Changed::Account(acme())),
        ] {
            let before = store
                .changes_after(tollkey_core::Position::default(), 100)
                .await
                .unwrap();
            edit(&store, number, |key| {
                assert_eq!(key.revoke(at(50), None), Transition::Changed)
            })
            .await
            .unwrap();
            let after = store.changes_after(before.current, 100).await.unwrap();
            let changes: Vec<Changed> = after
                .changes
                .unwrap()
                .into_iter()
                .map(|(_, changed)| changed)
                .collect();
            assert_eq!(changes, [expected]);
        }
    });
}

#[test]
fn lineage_is_locked_only_within_the_allowed_depth() {
    each(async |database| {
        let store = database.store();
        tree(&store).await;
        for (number, ancestors) in [(1, 0), (2, 1), (4, 3), (5, 1)] {
            let locked = store.write(move |tx| {
                let within = |found| {
                    if found == ancestors {
                        Ok(())
                    } else {
                        Err(Error::Other)
                    }
                };
                tx.account(&acme())
                    .lock_lineage(&[Family::Secret], &id(number), within)
            });
            assert_eq!(
                locked.await.unwrap().value,
                Some(secret_as_read(&store, number).await)
            );
        }
        let rejected = store.write(|tx| {
            tx.account(&acme())
                .lock_lineage(&[Family::Secret], &id(4), |_| Err::<(), _>(Error::Other))
        });
        assert_eq!(rejected.await, Err(Error::Other));
    });
}

async fn secret_as_read(store: &Store, number: u64) -> ApiKey {
    store.key(&acme(), id(number)).await.unwrap()
}

/// Records the next batch of a pending revocation. Returns the numbers of its keys, and whether it was the last batch;
/// `None` if nothing is pending.
async fn batch(store: &Store, limit: u32) -> Option<(Vec<u64>, bool)> {
    let written = store.write(move |tx| {
        let account = acme();
        let mut account = tx.account(&account);
        let Some(mut batch) = account.next_batch(limit)? else {
            return Ok::<_, Error>(None);
        };
        let mut recorded = Vec::new();
        for mut key in std::mem::take(&mut batch.keys) {
            if key.record_inherited_revocation() == Transition::Changed {
                account.record_revocation(&key)?;
                recorded.push(number(&key.id));
            }
        }
        Ok(Some((recorded, account.end_batch(&batch)?)))
    });
    let written = written.await.unwrap();
    let done = written.value.as_ref().is_some_and(|(_, done)| *done);
    assert!(
        written.change.is_none() || done,
        "only the last batch raises the change counter"
    );
    written.value
}

#[test]
fn revocation_is_recorded_in_batches_that_resume() {
    each(async |database| {
        let store = database.store();
        tree(&store).await;
        for number in 10..15 {
            store.add_key(&secret(number, Some(5))).await.unwrap();
        }
        // This key was revoked earlier and keeps that time.
        edit(&store, 11, |key| {
            assert_eq!(key.revoke(at(20), None), Transition::Changed)
        })
        .await;
        let revoked = store.write(|tx| {
            let account = acme();
            let mut account = tx.account(&account);
            let mut root = account.lock_key(&Family::ALL, &id(1))?.unwrap();
            assert_eq!(
                root.revoke(at(50), Some("leaked".to_owned())),
                Transition::Changed
            );
            account.save_key(&root)?;
            account.add_pending_revocation(&pending(Root::Key(id(1))))?;
            account.add_pending_revocation(&pending(Root::Key(id(1)))) // stored once
        });
        let _ = revoked.await.unwrap();
        assert_eq!(
            store
                .read(|db| db.accounts_with_pending_revocations(None, 10))
                .await
                .unwrap(),
            [acme()]
        );
        assert_eq!(
            store
                .read(|db| db.accounts_with_pending_revocations(Some(&acme()), 10))
                .await
                .unwrap(),
            []
        );

        let all = BTreeSet::from([1, 2, 3, 4, 5, 10, 11, 12, 13, 14]);
        let mut batches = Vec::new();
        loop {
            assert_eq!(
                in_status(&store, Status::Revoked).await,
                all,
                "all keys count as revoked from the beginning"
            );
            let Some((recorded, done)) = batch(&store, 4).await else {
                break;
            };
            batches.push((recorded, done));
        }
        assert_eq!(
            batches,
            [
                (vec![2, 3, 4, 5], false),
                (vec![10, 12, 13], false),
                (vec![14], true)
            ]
        );
        for number in [2, 4, 14] {
            let key = store.key(&acme(), id(number)).await.unwrap();
            assert_eq!(
                (key.revoked_at, key.revoked_reason.as_deref()),
                (Some(at(50)), Some(PARENT_REVOKED))
            );
        }
        assert_eq!(
            store.key(&acme(), id(11)).await.unwrap().revoked_at,
            Some(at(20))
        );
        assert_eq!(in_status(&store, Status::Active).await, BTreeSet::from([9]));
        let foreign = store.write(|tx| {
            tx.account(&other())
                .add_pending_revocation(&pending(Root::Key(id(9))))
        });
        assert_eq!(foreign.await, Err(Error::NotFound));
    });
}

#[test]
fn keys_of_a_deleted_application_are_revoked_unless_expired() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2] {
            store
                .add_application(&application(number, &acme()))
                .await
                .unwrap();
        }
        for (number, end) in [(11, None), (12, Some(at(40))), (13, Some(at(90)))] {
            let mut key = application_key(number, &acme(), id(1));
            key.restrictions.expires_at = end;
            store.add_key(&key).await.unwrap();
        }
        store
            .add_key(&application_key(21, &acme(), id(2)))
            .await
            .unwrap();
        let deleted = store.write(|tx| {
            let account = acme();
            let mut account = tx.account(&account);
            account.delete_application(&id(1), at(50))?;
            account.add_pending_revocation(&pending(Root::Application(id(1))))
        });
        let _ = deleted.await.unwrap();
        for recorded in [false, true] {
            if recorded {
                assert_eq!(batch(&store, 2).await, Some((vec![11], false)));
                assert_eq!(batch(&store, 2).await, Some((vec![13], true)));
                assert_eq!(batch(&store, 2).await, None);
            }
            assert_eq!(
                in_status(&store, Status::Revoked).await,
                BTreeSet::from([11, 13])
            );
            assert_eq!(
                in_status(&store, Status::Expired).await,
                BTreeSet::from([12])
            );
            assert_eq!(
                in_status(&store, Status::Active).await,
                BTreeSet::from([21])
            );
            let found = store
                .find_by_digest(digest(13))
                .await
                .unwrap()
                .found
                .unwrap()
                .key;
            let revocation = found.revocation().unwrap();
            assert_eq!(
                (revocation.at, revocation.reason),
                (at(50), Some(APPLICATION_DELETED))
            );
        }
    });
}
