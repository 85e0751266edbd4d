use std::sync::Arc;

use tollkey_core::Usage;
use tollkey_core::{
    ApiKey, Application, Changed, Family, IpList, KeyId, Mode, OperatingModel, RateLimit,
    Restrictions, Scope, Status, Timestamp, api_key::Transition, feature::Feature,
    metadata::Metadata, time::to_micros,
};
use tollkey_store::{Error, KeyCursor, KeyFilter, UniqueViolation};

use crate::{
    Actions as _, acme, application, application_key, at, changes, digest, each, id, key, other,
};

fn key_with_every_field(number: u64) -> ApiKey {
    let Ok(serde_json::Value::Object(object)) =
        serde_json::from_str(r#"{"z":1,"a":{"ü":[0.1,1e300,12345678901234567890]},"n":null}"#)
    else {
        panic!("an object")
    };
    ApiKey {
        restrictions: Restrictions {
            scopes: vec![Scope::LINKS_WRITE, Scope::named("orders:read")],
            merchants: Some(vec!["m-1".into(), "m-2".into()]),
            features: Some(vec![Feature::TokensList, Feature::CardholderDataForward]),
            allowed_ips: Some(IpList::parse(["10.0.0.0/8", "2001:db8::/32"]).unwrap()),
            rate_limit: Some(RateLimit::new(1_000_000, 86_400).unwrap()),
            expires_at: Some(at(1_000)),
        },
        metadata: Some(Metadata::new(object).unwrap()),
        created_by: Some(id(77)),
        last_used_at: Some(at(20)),
        suspended_at: Some(at(30)),
        revoked_at: Some(at(40)),
        revoked_reason: Some("leaked, \"really\"".into()),
        rotated_from: Some(id(78)),
        rotated_to: Some(id(79)),
        rotated_at: Some(at(50)),
        ..key(number, &acme())
    }
}

#[test]
fn keys_are_read_back_unchanged() {
    each(async |database| {
        let store = database.store();
        let plain = ApiKey {
            restrictions: Restrictions::default(),
            family: Family::Secret,
            ..key(2, &acme())
        };
        for created in [key_with_every_field(1), plain] {
            store.add_key(&created).await.unwrap();
            assert_eq!(store.key(&acme(), created.id).await, Some(created));
        }
    });
}

#[test]
fn save_key_writes_only_fields_that_use_cases_change() {
    each(async |database| {
        let store = database.store();
        let created = key(1, &acme());
        store.add_key(&created).await.unwrap();
        store.add_key(&key(2, &acme())).await.unwrap();
        // The key is verified while a caller holds an older copy of it.
        let used = Usage {
            key_id: id(1),
            day: 1,
            outcome: None,
            count: 1,
            last_used_at: Some(at(50)),
        };
        store.add_usage(vec![used]).await.unwrap();

        let saved = ApiKey {
            id: id(1),
            last_used_at: None,
            ..key_with_every_field(9)
        };
        let written = store.save_key(&saved).await.unwrap();
        assert_eq!(
            changes(&store).await,
            [(written.change.unwrap().seq, Changed::Key(id(1)))]
        );
        let expected = ApiKey {
            created_at: created.created_at,
            created_by: None,
            rotated_from: None,
            last_used_at: Some(at(50)),
            ..saved
        };
        assert_eq!(store.key(&acme(), id(1)).await, Some(expected.clone()));

        // Every restriction can be removed again.
        let lifted = ApiKey {
            last_used_at: Some(at(50)),
            ..created
        };
        let _ = store.save_key(&lifted).await.unwrap();
        assert_eq!(store.key(&acme(), id(1)).await, Some(lifted));
        assert_eq!(
            store.key(&acme(), id(2)).await,
            Some(key(2, &acme())),
            "the other key is unchanged"
        );
    });
}

#[test]
fn hashes_and_ids_are_unique_across_accounts() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let same_digest = store
            .write(|tx| {
                tx.account(&other())
                    .insert_key(&key(2, &other()), &digest(1))
            })
            .await;
        assert_eq!(same_digest, Err(Error::Unique(UniqueViolation::KeyDigest)));
        let same_id = store
            .write(|tx| {
                tx.account(&other())
                    .insert_key(&key(1, &other()), &digest(2))
            })
            .await;
        assert_eq!(same_id, Err(Error::Unique(UniqueViolation::Other)));
        assert_eq!(store.key(&other(), id(1)).await, None);
    });
}

#[test]
fn keys_are_filtered_by_status_application_and_text() {
    each(async |database| {
        let store = database.store();
        store
            .add_application(&application(1, &acme()))
            .await
            .unwrap();
        let mut all = Vec::new();
        // All combinations of times before, at and after the time of the queries, `at(10)`.
        for revoked_at in [None, Some(at(5))] {
            for expires_at in [None, Some(at(9)), Some(at(10)), Some(at(11))] {
                for rotated_at in [None, Some(at(8)), Some(at(11)), Some(at(12))] {
                    for suspended_at in [None, Some(at(7))] {
                        let number = u64::try_from(all.len()).unwrap() + 10;
                        let restrictions = Restrictions {
                            expires_at,
                            ..Restrictions::default()
                        };
                        let created = key(number, &acme());
                        let name = format!("Till {number}%_\\ ÄÖ");
                        all.push(ApiKey {
                            name,
                            restrictions,
                            revoked_at,
                            rotated_at,
                            suspended_at,
                            ..created
                        });
                    }
                }
            }
        }
        all.push(ApiKey {
            name: "of an application".to_owned(),
            ..application_key(1, &acme(), id(1))
        });
        for created in &all {
            store.add_key(created).await.unwrap();
        }
        store
            .add_key(&ApiKey {
                name: "Till".to_owned(),
                ..key(2, &other())
            })
            .await
            .unwrap();
        all.sort_by_key(|key| std::cmp::Reverse(KeyCursor::from(key).id.as_bytes().to_vec()));
        all.sort_by_key(|key| std::cmp::Reverse(key.created_at));

        let list = async |filter: fn(&mut KeyFilter<'_>)| {
            let read = store.read(move |db| {
                let mut conditions = KeyFilter {
                    families: &Family::ALL,
                    ..KeyFilter::default()
                };
                filter(&mut conditions);
                Ok(db.account(&acme()).keys(&conditions, None, 1000)?.keys)
            });
            read.await.unwrap()
        };
        let of = |those: &dyn Fn(&ApiKey) -> bool| {
            all.iter()
                .filter(|key| those(key))
                .cloned()
                .collect::<Vec<_>>()
        };
        let status = |expected| of(&move |key| key.status(at(10)) == expected);
        assert_eq!(list(|_| ()).await, all);
        assert_eq!(
            list(|conditions| conditions.status = Some((Status::Revoked, at(10)))).await,
            status(Status::Revoked)
        );
        assert_eq!(
            list(|conditions| conditions.status = Some((Status::Expired, at(10)))).await,
            status(Status::Expired)
        );
        assert_eq!(
            list(|conditions| conditions.status = Some((Status::Suspended, at(10)))).await,
            status(Status::Suspended)
        );
        assert_eq!(
            list(|conditions| conditions.status = Some((Status::Active, at(10)))).await,
            status(Status::Active)
        );
        assert_eq!(
            list(|conditions| conditions.application = Some(id(1))).await,
            of(&|key| key.application_id.is_some())
        );
        assert_eq!(
            list(|conditions| conditions.text = Some("tILL 1")).await,
            of(&|key| key.name.starts_with("Till 1"))
        );
        assert_eq!(
            list(|conditions| conditions.text = Some("12%_\\")).await,
            of(&|key| key.id == id(12))
        );
        assert_eq!(
            list(|conditions| conditions.text = Some("1%2")).await,
            [],
            "wildcards are escaped"
        );
        assert_eq!(list(|conditions| conditions.text = Some("1_%")).await, []);
        assert_eq!(
            list(|conditions| conditions.text = Some("ÄÖ")).await,
            of(&|key| key.name.ends_with("ÄÖ"))
        );
        let by_id = store.read(move |db| {
            let (twelve, account): (KeyId, _) = (id(12), acme());
            let (hyphenated, crockford) = (twelve.to_string(), twelve.crockford());
            let mut account = db.account(&account);
            let mut found = Vec::new();
            for text in [hyphenated.as_str(), &crockford] {
                let conditions = KeyFilter {
                    families: &Family::ALL,
                    text: Some(text),
                    ..KeyFilter::default()
                };
                found.push(account.keys(&conditions, None, 10)?.keys);
            }
            Ok(found)
        });
        let expected = of(&|key| key.id == id(12));
        assert_eq!(by_id.await.unwrap(), [expected.clone(), expected]);
    });
}

#[test]
fn keys_are_filtered_by_whether_their_application_is_enabled() {
    each(async |database| {
        let store = database.store();
        for (number, is_enabled) in [(1, true), (2, false), (3, false)] {
            store
                .add_application(&Application {
                    is_enabled,
                    ..application(number, &acme())
                })
                .await
                .unwrap();
        }
        store
            .add_application(&Application {
                is_enabled: false,
                ..application(4, &other())
            })
            .await
            .unwrap();
        for (number, of) in [(11, 1), (12, 2), (13, 2), (14, 3)] {
            store
                .add_key(&application_key(number, &acme(), id(of)))
                .await
                .unwrap();
        }
        let revoked = ApiKey {
            revoked_at: Some(at(5)),
            ..application_key(15, &acme(), id(2))
        };
        store.add_key(&revoked).await.unwrap();
        store.add_key(&key(16, &acme())).await.unwrap();
        store
            .add_key(&application_key(17, &other(), id(4)))
            .await
            .unwrap();

        let list = async |filter: KeyFilter<'static>| {
            let read = store.read(move |db| {
                let (mut ids, mut after) = (Vec::new(), None);
                loop {
                    let page = db.account(&acme()).keys(&filter, after, 2)?;
                    ids.extend(page.keys.iter().map(|key| key.id));
                    after = page.next;
                    if after.is_none() {
                        return Ok(ids);
                    }
                }
            });
            read.await.unwrap()
        };
        let ids = |numbers: &[u64]| numbers.iter().copied().map(id).collect::<Vec<KeyId>>();
        let of = |application_enabled| KeyFilter {
            families: &Family::ALL,
            application_enabled,
            ..KeyFilter::default()
        };
        let active = |enabled| KeyFilter {
            status: Some((Status::Active, at(10))),
            ..of(enabled)
        };
        assert_eq!(list(of(None)).await, ids(&[16, 15, 14, 13, 12, 11]));
        assert_eq!(list(of(Some(true))).await, ids(&[16, 11]));
        assert_eq!(list(of(Some(false))).await, ids(&[15, 14, 13, 12]));
        assert_eq!(list(active(None)).await, ids(&[16, 14, 13, 12, 11]));
        assert_eq!(list(active(Some(true))).await, ids(&[16, 11]));
        assert_eq!(list(active(Some(false))).await, ids(&[14, 13, 12]));
        let in_second = KeyFilter {
            application: Some(id(2)),
            ..active(Some(false))
        };
        assert_eq!(list(in_second).await, ids(&[13, 12]));
        let by_id = KeyFilter {
            text: Some("00000000-0000-0000-0000-00000000000d"),
            ..active(Some(true))
        };
        assert_eq!(list(by_id).await, ids(&[]));
    });
}

#[test]
fn keys_are_listed_newest_first_and_paged_by_cursor() {
    each(async |database| {
        let store = database.store();
        for number in 1..=6 {
            let mode = if number % 2 == 0 {
                Mode::Test
            } else {
                Mode::Live
            };
            // Two keys with the same time are ordered by ID.
            let created_at = at(i64::try_from(number / 2).unwrap());
            store
                .add_key(&ApiKey {
                    mode,
                    created_at,
                    ..key(number, &acme())
                })
                .await
                .unwrap();
        }
        store
            .add_key(&ApiKey {
                family: Family::Secret,
                ..key(7, &acme())
            })
            .await
            .unwrap();
        store.add_key(&key(8, &other())).await.unwrap();

        let list = async |families: &'static [Family], mode, after, limit| {
            let keys = store
                .read(move |db| {
                    let filter = KeyFilter {
                        families,
                        mode,
                        ..KeyFilter::default()
                    };
                    Ok(db.account(&acme()).keys(&filter, after, limit)?.keys)
                })
                .await
                .unwrap();
            keys.iter()
                .map(|key| u64::from_be_bytes(key.id.as_bytes()[8..].try_into().unwrap()))
                .collect::<Vec<_>>()
        };
        let commerce: &[Family] = &[Family::Commerce];
        assert_eq!(list(commerce, None, None, 10).await, [6, 5, 4, 3, 2, 1]);
        assert_eq!(list(commerce, Some(Mode::Test), None, 10).await, [6, 4, 2]);
        assert_eq!(
            list(&[Family::Secret, Family::Publishable], None, None, 10).await,
            [7]
        );
        assert_eq!(list(&[], None, None, 10).await, [0; 0]);

        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = store
                .read(move |db| {
                    let filter = KeyFilter {
                        families: commerce,
                        ..KeyFilter::default()
                    };
                    db.account(&acme()).keys(&filter, after, 2)
                })
                .await
                .unwrap();
            seen.extend(page.keys.iter().map(|key| key.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, [6, 5, 4, 3, 2, 1].map(id));
    });
}

#[test]
fn keys_of_applications_are_paged_listed_and_counted() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2] {
            store
                .add_application(&application(number, &acme()))
                .await
                .unwrap();
        }
        for number in 11..=15 {
            store
                .add_key(&application_key(number, &acme(), id(1)))
                .await
                .unwrap();
        }
        store
            .add_key(&application_key(21, &acme(), id(2)))
            .await
            .unwrap();
        let mut revoked = application_key(11, &acme(), id(1));
        assert_eq!(revoked.revoke(at(50), None), Transition::Changed);
        let _ = store.save_key(&revoked).await.unwrap();
        let mut ending = application_key(12, &acme(), id(1));
        ending.restrictions.expires_at = Some(at(60));
        let _ = store.save_key(&ending).await.unwrap();
        let mut suspended = application_key(13, &acme(), id(1));
        assert_eq!(suspended.suspend(at(50)), Ok(Transition::Changed));
        let _ = store.save_key(&suspended).await.unwrap();

        let page = store
            .read(|db| db.account(&acme()).application_keys(&id(1), 2, 2))
            .await
            .unwrap();
        assert_eq!(
            (page.total, page.items.iter().map(|key| key.id).collect()),
            (5, vec![id(13), id(12)])
        );
        let each = store
            .read(|db| db.account(&acme()).keys_of_applications(&[id(2), id(1)], 2))
            .await
            .unwrap();
        assert_eq!(
            each.iter().map(|key| key.id).collect::<Vec<_>>(),
            [21, 15, 14].map(id)
        );
        for (now, usable) in [(at(59), 4), (at(60), 3)] {
            let count = store
                .read(move |db| db.account(&acme()).count_usable(&id(1), now))
                .await
                .unwrap();
            assert_eq!(count, usable);
            let of_family = store.read(move |db| {
                db.account(&acme())
                    .count_usable_of(&[Family::Application], now)
            });
            assert_eq!(of_family.await, Ok(usable + 1));
        }
    });
}

#[test]
fn application_key_needs_an_application_of_its_account() {
    each(async |database| {
        let store = database.store();
        store
            .add_application(&application(1, &other()))
            .await
            .unwrap();
        assert!(
            store
                .add_key(&application_key(11, &acme(), id(1)))
                .await
                .is_err()
        );
        let without = ApiKey {
            application_id: None,
            ..application_key(12, &acme(), id(1))
        };
        assert!(store.add_key(&without).await.is_err());
        assert_eq!(store.key(&acme(), id(11)).await, None);
    });
}

#[test]
fn keys_of_another_account_cannot_be_read_or_changed() {
    each(async |database| {
        let store = database.store();
        store
            .add_application(&application(1, &acme()))
            .await
            .unwrap();
        let created = application_key(11, &acme(), id(1));
        store.add_key(&created).await.unwrap();
        store.add_key(&key(12, &acme())).await.unwrap();
        let used = Usage {
            key_id: id(11),
            day: 1,
            outcome: None,
            count: 1,
            last_used_at: None,
        };
        store.add_usage(vec![used]).await.unwrap();
        let seen = store.read(|db| {
            let account = other();
            let mut theirs = db.account(&account);
            Ok([
                theirs.key(&Family::ALL, &id(11))?.is_some(),
                !theirs
                    .keys(
                        &KeyFilter {
                            families: &Family::ALL,
                            ..KeyFilter::default()
                        },
                        None,
                        10,
                    )?
                    .keys
                    .is_empty(),
                theirs.application_keys(&id(1), 1, 10)?.total > 0,
                !theirs.application_keys(&id(1), 1, 10)?.items.is_empty(),
                !theirs.keys_of_applications(&[id(1)], 10)?.is_empty(),
                theirs.count_usable(&id(1), at(0))? > 0,
                theirs.count_usable_of(&Family::ALL, at(0))? > 0,
                !theirs.usage(&id(11), 0)?.is_empty(),
            ])
        });
        assert_eq!(seen.await.unwrap(), [false; 8]);
        let locked = store.write(|tx| {
            let account = other();
            let mut theirs = tx.account(&account);
            let lineage = theirs.lock_lineage(&Family::ALL, &id(11), |_| Ok::<_, Error>(()))?;
            Ok::<_, Error>((theirs.lock_key(&Family::ALL, &id(11))?, lineage))
        });
        assert_eq!(locked.await.unwrap().value, (None, None));

        let mut theirs = created.clone();
        assert_eq!(theirs.revoke(at(99), None), Transition::Changed);
        let saved = theirs.clone();
        assert_eq!(
            store
                .write(move |tx| tx.account(&other()).save_key(&saved))
                .await,
            Err(Error::NotFound)
        );
        theirs.id = id(13);
        let inserted = store
            .write(move |tx| tx.account(&other()).insert_key(&theirs, &digest(13)))
            .await;
        assert_eq!(inserted, Err(Error::NotFound));
        let written = store
            .write(|tx| {
                tx.account(&other())
                    .set_operating_model(OperatingModel::Ecosystem, at(1))
            })
            .await
            .unwrap();
        assert!(written.change.is_some());

        assert_eq!(store.key(&acme(), id(11)).await, Some(created));
        assert_eq!(store.key(&acme(), id(12)).await, Some(key(12, &acme())));
        let model = store
            .read(|db| db.account(&acme()).get())
            .await
            .unwrap()
            .operating_model;
        assert_eq!(model, OperatingModel::default());
    });
}

#[test]
fn key_of_another_family_is_not_found() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key(1, &acme())).await.unwrap();
        let found = store.read(|db| {
            db.account(&acme())
                .key(&[Family::Secret, Family::Publishable], &id(1))
        });
        assert_eq!(found.await.unwrap(), None);
        let locked = store
            .write(|tx| tx.account(&acme()).lock_key(&[Family::Secret], &id(1)))
            .await
            .unwrap();
        assert_eq!(locked.value, None);
    });
}

#[test]
fn account_has_the_default_operating_model_until_one_is_set() {
    each(async |database| {
        let store = database.store();
        let model = async || {
            store
                .read(|db| db.account(&acme()).get())
                .await
                .unwrap()
                .operating_model
        };
        let set = async |model| {
            store
                .write(move |tx| tx.account(&acme()).set_operating_model(model, at(1)))
                .await
                .unwrap()
                .change
        };
        assert_eq!(model().await, OperatingModel::PrimaryMerchant);
        assert_eq!(
            set(OperatingModel::PrimaryMerchant).await,
            None,
            "setting the default is no change"
        );
        let change = set(OperatingModel::Ecosystem).await.unwrap();
        assert_eq!(
            changes(&store).await,
            [(change.seq, Changed::Account(acme()))]
        );
        assert_eq!(model().await, OperatingModel::Ecosystem);
        assert_eq!(
            set(OperatingModel::Ecosystem).await,
            None,
            "setting the same model is no change"
        );
        assert!(set(OperatingModel::PrimaryMerchant).await.is_some());
        assert_eq!(model().await, OperatingModel::PrimaryMerchant);
    });
}

#[test]
fn application_key_limit_holds_with_concurrent_creation() {
    each(async |database| {
        let store = Arc::new(database.store());
        store
            .add_application(&application(1, &acme()))
            .await
            .unwrap();
        let tasks: Vec<_> = (0..16)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move {
                    let created = store.write(move |tx| {
                        let account = acme();
                        let mut mine = tx.account(&account);
                        mine.lock_application(&id(1))?.ok_or(Error::NotFound)?;
                        if mine.count_usable(&id(1), at(0))? >= 5 {
                            return Err(Error::NotFound);
                        }
                        mine.insert_key(
                            &application_key(100 + number, &account, id(1)),
                            &digest(100 + number),
                        )
                    });
                    created.await.is_ok()
                })
            })
            .collect();
        let mut created = 0;
        for task in tasks {
            created += u32::from(task.await.unwrap());
        }
        assert_eq!(created, 5);
        assert_eq!(
            store
                .read(|db| db.account(&acme()).count_usable(&id(1), at(0)))
                .await
                .unwrap(),
            5
        );
    });
}

#[test]
fn account_key_limit_holds_with_concurrent_creation() {
    each(async |database| {
        let store = Arc::new(database.store());
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move {
                    let created = store.write(move |tx| {
                        let account = acme();
                        let mut mine = tx.account(&account);
                        mine.lock()?;
                        if mine.count_usable_of(&[Family::Commerce], at(0))? >= 3 {
                            return Err(Error::NotFound);
                        }
                        mine.insert_key(&key(100 + number, &account), &digest(100 + number))
                    });
                    created.await.is_ok()
                })
            })
            .collect();
        let mut created = 0;
        for task in tasks {
            created += u32::from(task.await.unwrap());
        }
        assert_eq!(created, 3);
    });
}

#[test]
fn minimum_and_maximum_times_are_read_back_unchanged() {
    each(async |database| {
        let store = database.store();
        for (number, time) in [(1, Timestamp::MAX), (2, Timestamp::MIN)] {
            let mut written = key(number, &acme());
            (written.created_at, written.restrictions.expires_at) =
                (to_micros(time), Some(to_micros(time)));
            store
                .add_key(&ApiKey {
                    created_at: time,
                    ..written.clone()
                })
                .await
                .unwrap();
            assert_eq!(
                store.key(&acme(), id(number)).await.as_ref(),
                Some(&written)
            );
            written.revoked_at = Some(to_micros(time));
            let _ = store
                .save_key(&ApiKey {
                    revoked_at: Some(time),
                    ..written.clone()
                })
                .await
                .unwrap();
            assert_eq!(store.key(&acme(), id(number)).await, Some(written));
        }
    });
}

#[test]
fn invalid_stored_values_are_reported_as_corrupt() {
    each(async |database| {
        let store = database.store();
        store.add_key(&key_with_every_field(1)).await.unwrap();
        for column in [
            "features = '[\"everything\"]'",
            "features = '[]'",
            "merchants = '{}'",
            "merchants = '[]'",
            "allowed_ips = '[\"10.0.0.1/8\"]'",
            "metadata = '[]'",
            "rate_limit_limit = 2000000",
        ] {
            database.sql(&format!("UPDATE api_keys SET {column}"));
            let found = store
                .read(|db| db.account(&acme()).key(&Family::ALL, &id(1)))
                .await;
            assert!(
                matches!(found, Err(Error::Corrupt(_))),
                "{column}: {found:?}"
            );
            assert!(
                matches!(
                    store.find_by_digest(digest(1)).await,
                    Err(Error::Corrupt(_))
                ),
                "{column}"
            );
            let _ = store.save_key(&key_with_every_field(1)).await.unwrap();
        }
    });
}
