use tollkey_core::{
    Digest, Timestamp,
    session::{Session, SignIn, SignInSettingsHash},
};
use tollkey_store::{Owner, Writer};

use crate::{acme, at, digest, each, other};

fn session(ends_at: Timestamp) -> Session {
    let sign_in = SignIn {
        account_id: Some(acme()),
        subject: "ada".to_owned(),
        is_operator: false,
        settings: SignInSettingsHash::new("test", &[]),
        proof_expires_at: Some(ends_at),
    };
    Session::begin(sign_in, "token", at(1))
}

#[test]
fn session_can_be_created_found_updated_and_deleted() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2] {
            let written = store
                .write(move |tx| tx.insert_session(&digest(number), &session(at(9))))
                .await
                .unwrap();
            assert_eq!(written.change, None);
        }
        let find = async |number| {
            store
                .session(Owner::Client(None), digest(number))
                .await
                .unwrap()
        };
        assert_eq!(find(1).await, Some(session(at(9))));
        assert_eq!(find(3).await, None);

        for now in [5, 4] {
            let _ = store
                .write(move |tx| tx.touch_session(&digest(1), at(now)))
                .await
                .unwrap();
        }
        assert_eq!(
            find(1).await,
            Some(Session {
                last_seen_at: at(5),
                ..session(at(9))
            }),
            "the time never moves back"
        );
        assert_eq!(
            find(2).await,
            Some(session(at(9))),
            "the other session is unchanged"
        );

        let _ = store
            .write(move |tx| tx.delete_session(&digest(1)))
            .await
            .unwrap();
        assert_eq!(find(1).await, None);
        assert_eq!(find(2).await, Some(session(at(9))));
    });
}

#[test]
fn only_operator_sessions_can_change_their_account() {
    each(async |database| {
        let store = database.store();
        let operator = Session {
            account_id: None,
            is_operator: true,
            ..session(at(9))
        };
        let (of_operator, of_merchant) = (operator.clone(), session(at(9)));
        let inserted = store.write(move |tx| {
            tx.insert_session(&digest(1), &of_operator)?;
            tx.insert_session(&digest(2), &of_merchant)
        });
        let _ = inserted.await.unwrap();
        for number in [1, 2] {
            let _ = store
                .write(move |tx| tx.set_session_account(&digest(number), Some(&other())))
                .await
                .unwrap();
        }
        let find = async |number| {
            store
                .session(Owner::Client(None), digest(number))
                .await
                .unwrap()
                .unwrap()
        };
        assert_eq!(
            find(1).await,
            Session {
                account_id: Some(other()),
                ..operator
            }
        );
        assert_eq!(find(2).await, session(at(9)));
    });
}

#[test]
fn ended_sessions_are_deleted() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2, 3] {
            let ends_at = at(i64::try_from(number).unwrap());
            let _ = store
                .write(move |tx| tx.insert_session(&digest(number), &session(ends_at)))
                .await
                .unwrap();
        }
        assert_eq!(store.prune_sessions(at(2)).await.unwrap(), 2);
        assert_eq!(
            store.session(Owner::Client(None), digest(2)).await.unwrap(),
            None
        );
        assert!(
            store
                .session(Owner::Client(None), digest(3))
                .await
                .unwrap()
                .is_some()
        );
    });
}

#[test]
fn sessions_are_ended_by_account_or_subject_or_all() {
    each(async |database| {
        let store = database.store();
        let of = |account, subject: &str| Session {
            account_id: Some(account),
            subject: subject.to_owned(),
            ..session(at(9))
        };
        let sessions = [
            of(acme(), "ada"),
            of(acme(), "bob"),
            of(other(), "ada"),
            of(other(), "cy"),
        ];
        let begin = move |tx: &mut Writer<'_>| {
            for (number, session) in sessions.iter().enumerate() {
                tx.insert_session(&numbered(number), session)?;
            }
            // More than one step deletes.
            (4..5010).try_for_each(|number| tx.insert_session(&numbered(number), &sessions[3]))
        };
        let _ = store.write(begin).await.unwrap();
        let end = async |account, subject: Option<&str>| {
            store
                .end_sessions(account, subject.map(str::to_owned))
                .await
                .unwrap()
        };
        assert_eq!(end(Some(acme()), Some("cy")).await, 0);
        assert_eq!(end(Some(acme()), Some("bob")).await, 1);
        assert_eq!(end(None, Some("ada")).await, 2);
        assert_eq!(end(Some(acme()), None).await, 0);
        assert_eq!(end(None, None).await, 5007);
        assert_eq!(
            store
                .session(Owner::Client(None), numbered(5009))
                .await
                .unwrap(),
            None
        );
    });
}

#[test]
fn sessions_of_the_previous_release_have_a_zero_settings_hash() {
    each(async |database| {
        let store = database.store();
        let blob = |hex: String| {
            if database.url().starts_with("sqlite") {
                format!("x'{hex}'")
            } else {
                format!("'\\x{hex}'")
            }
        };
        database.sql(&format!(
            "INSERT INTO sessions (digest, account_id, subject, is_operator, created_at, last_seen_at, ends_at) \
             VALUES ({}, 'acme', 'ada', {}, 1000000, 1000000, 9000000)",
            blob(digest(1).hex().to_string()),
            if database.url().starts_with("sqlite") { "0" } else { "false" },
        ));
        let found = store.session(Owner::Client(None), digest(1)).await.unwrap();
        assert_eq!(
            found.map(|session| session.sign_in_settings),
            Some(Digest::from_bytes([0; 32]))
        );
    });
}

fn numbered(number: usize) -> Digest {
    Digest::of_key(&number.to_string())
}
