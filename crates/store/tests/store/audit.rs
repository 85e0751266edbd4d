use std::{ops::ControlFlow, sync::Arc};

use tollkey_core::{
    AccountId, Mode,
    audit::{self, Action, ChainError, Draft, Entry, Head, Target, TargetKind},
};
use tollkey_store::{AuditFilter, Error, Reader, Store};

use crate::{account, acme, at, draft, each, id, other};

async fn append(store: &Store, draft: Draft) -> Result<Entry, Error> {
    let written = store
        .write(move |tx| tx.account(&draft.account_id.clone()).append(draft))
        .await?;
    assert_eq!(written.change, None);
    Ok(written.value)
}

/// Verifies every chain and returns the ends of the chains.
fn verify(
    db: &mut Reader<'_>,
    only: Option<&AccountId>,
) -> Result<Result<Vec<(AccountId, Head)>, ChainError>, Error> {
    let mut heads: Vec<(AccountId, Head)> = Vec::new();
    let outcome = db.for_each_audit_entry(only, |entry| {
        let entry = entry.unwrap();
        let account = &entry.draft.account_id;
        if heads.last().is_none_or(|(last, _)| last != account) {
            heads.push((account.clone(), Head::GENESIS));
        }
        let (_, head) = heads.last_mut().unwrap();
        match audit::verify(*head, &entry) {
            Ok(next) => {
                *head = next;
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    })?;
    Ok(match outcome {
        ControlFlow::Continue(()) => Ok(heads),
        ControlFlow::Break(error) => Err(error),
    })
}

#[test]
fn entries_are_read_back_unchanged() {
    each(async |database| {
        let store = database.store();
        let sealed = append(&store, draft(1, &acme())).await.unwrap();
        let plain = Draft {
            target: Target::account(&acme()),
            action: Action::AccountUpdated,
            request_id: None,
            ip: None,
            ..draft(2, &acme())
        };
        let second = append(&store, plain).await.unwrap();
        let read = store
            .read(|db| {
                db.account(&acme())
                    .audit_log(&AuditFilter::default(), None, 10)
            })
            .await
            .unwrap()
            .entries;
        assert_eq!(read, [second.clone(), sealed]);
        let head = store
            .read(|db| db.account(&acme()).audit_head())
            .await
            .unwrap();
        assert_eq!(
            head,
            Head {
                seq: 2,
                hash: second.hash
            }
        );
        assert_eq!(
            store
                .read(|db| db.account(&other()).audit_head())
                .await
                .unwrap(),
            Head::GENESIS
        );
        assert!(store.read(|db| verify(db, None)).await.unwrap().is_ok());
    });
}

#[test]
fn entries_are_filtered_and_paged_within_the_account() {
    each(async |database| {
        let store = database.store();
        for number in 1..=6 {
            let mode = if number % 2 == 0 {
                Mode::Test
            } else {
                Mode::Live
            };
            let action = if number < 3 {
                Action::ApiKeyCreated
            } else {
                Action::ApiKeyRevoked
            };
            let target = Target::key(id(number % 3), mode);
            append(
                &store,
                Draft {
                    action,
                    target,
                    ..draft(number, &acme())
                },
            )
            .await
            .unwrap();
        }
        append(&store, draft(7, &other())).await.unwrap();
        let list = async |filter: AuditFilter, before, limit| {
            let entries = store
                .read(move |db| db.account(&acme()).audit_log(&filter, before, limit))
                .await
                .unwrap()
                .entries;
            entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
        };
        let all = AuditFilter::default;
        assert_eq!(list(all(), None, 4).await, [6, 5, 4, 3]);
        assert_eq!(list(all(), Some(3), 4).await, [2, 1]);
        assert_eq!(list(all(), Some(u64::MAX), 1).await, [6]);
        assert_eq!(
            list(
                AuditFilter {
                    action: Some(Action::ApiKeyCreated),
                    ..all()
                },
                None,
                9
            )
            .await,
            [2, 1]
        );
        assert_eq!(
            list(
                AuditFilter {
                    mode: Some(Mode::Test),
                    ..all()
                },
                None,
                9
            )
            .await,
            [6, 4, 2]
        );
        let target_id = Some(id::<tollkey_core::ApiKey>(1).to_string());
        assert_eq!(
            list(AuditFilter { target_id, ..all() }, None, 9).await,
            [4, 1]
        );
        let of_kind = |kind| AuditFilter {
            target_kind: Some(kind),
            ..all()
        };
        assert_eq!(
            list(of_kind(TargetKind::ApiKey), None, 9).await,
            [6, 5, 4, 3, 2, 1]
        );
        assert_eq!(list(of_kind(TargetKind::Account), None, 9).await, [0; 0]);
        let by = |actor: &str| AuditFilter {
            actor_id: Some(actor.to_owned()),
            ..all()
        };
        assert_eq!(
            list(by("user-1"), None, 9).await,
            list(all(), None, 9).await
        );
        assert_eq!(list(by("user-2"), None, 9).await, [0; 0]);
        let times = AuditFilter {
            since: Some(at(2)),
            until: Some(at(4)),
            ..all()
        };
        assert_eq!(list(times, None, 9).await, [3, 2]);
        let everything = AuditFilter {
            action: Some(Action::ApiKeyRevoked),
            target_kind: Some(TargetKind::ApiKey),
            mode: Some(Mode::Live),
            since: Some(at(4)),
            until: Some(at(100)),
            target_id: Some(id::<tollkey_core::ApiKey>(2).to_string()),
            actor_id: Some("user-1".to_owned()),
        };
        assert_eq!(list(everything, Some(6), 9).await, [5]);
    });
}

#[test]
fn chains_have_no_gaps_with_concurrent_writers() {
    each(async |database| {
        let store = Arc::new(database.store());
        let tasks: Vec<_> = (0..24)
            .map(|number| {
                let store = store.clone();
                let account = if number % 2 == 0 { acme() } else { other() };
                tokio::spawn(async move { append(&store, draft(number, &account)).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let heads = store.read(|db| verify(db, None)).await.unwrap().unwrap();
        assert_eq!(
            heads
                .iter()
                .map(|(account, head)| (account.as_str(), head.seq))
                .collect::<Vec<_>>(),
            [("acme", 12), ("other", 12)]
        );
        assert_eq!(
            store.read(|db| db.audit_heads(None, 10)).await.unwrap(),
            heads
        );
        assert_eq!(
            store
                .read(|db| db.audit_heads(Some(&acme()), 10))
                .await
                .unwrap(),
            heads[1..]
        );
    });
}

#[test]
fn export_pages_through_accounts_in_byte_order() {
    each(async |database| {
        let store = database.store();
        // Locales sort "_" and capitals differently than by bytes; paging must not skip accounts because of that.
        let accounts = ["B", "_", "a", "a-b", "aB"];
        for (i, name) in (0u64..).zip(accounts) {
            let _ = store
                .write(move |tx| {
                    let account = account(name);
                    let mut mine = tx.account(&account);
                    (0..301).try_for_each(|n| mine.append(draft(i * 1_000 + n, &account)).map(drop))
                })
                .await
                .unwrap();
        }
        let heads = store.read(|db| verify(db, None)).await.unwrap().unwrap();
        assert_eq!(
            heads
                .iter()
                .map(|(account, _)| account.as_str())
                .collect::<Vec<_>>(),
            accounts
        );
        assert!(heads.iter().all(|(_, head)| head.seq == 301), "{heads:?}");
        let one = store
            .read(|db| verify(db, Some(&account("a-b"))))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(one, heads[3..4]);
    });
}

#[test]
fn verification_detects_edited_and_deleted_entries() {
    each(async |database| {
        let store = database.store();
        for number in 1..=3 {
            append(&store, draft(number, &acme())).await.unwrap();
        }
        database.sql("UPDATE audit_log SET actor_id = 'another user' WHERE seq = 2");
        let broken = store
            .read(|db| verify(db, None))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(
            broken,
            ChainError::Broken {
                account: acme(),
                seq: 2
            }
        );
        database.sql("DELETE FROM audit_log WHERE seq = 2");
        let gap = store
            .read(|db| verify(db, None))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(
            gap,
            ChainError::Gap {
                account: acme(),
                expected: 2,
                found: 3
            }
        );
    });
}

#[test]
fn entry_cannot_be_appended_to_another_account() {
    each(async |database| {
        let store = database.store();
        let appended = store
            .write(|tx| tx.account(&other()).append(draft(1, &acme())))
            .await;
        assert_eq!(appended, Err(Error::NotFound));
        append(&store, draft(1, &acme())).await.unwrap();
        let read = store
            .read(|db| {
                db.account(&other())
                    .audit_log(&AuditFilter::default(), None, 10)
            })
            .await
            .unwrap()
            .entries;
        assert_eq!(read, []);
    });
}
