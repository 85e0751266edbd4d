use tollkey_core::{Timestamp, session::Session};

use crate::{acme, at, digest, each, other};

fn session(ends_at: Timestamp) -> Session {
    Session { ends_at, ..Session::begin(Some(acme()), "ada".to_owned(), false, at(1), None) }
}

#[test]
fn a_session_is_begun_found_seen_and_ended() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2] {
            let written = store.write(move |tx| tx.insert_session(&digest(number), &session(at(9)))).await.unwrap();
            assert_eq!(written.change, None);
        }
        let find = async |number| store.read(move |db| db.session(&digest(number))).await.unwrap();
        assert_eq!(find(1).await, Some(session(at(9))));
        assert_eq!(find(3).await, None);

        for now in [5, 4] {
            let _ = store.write(move |tx| tx.see_session(&digest(1), at(now))).await.unwrap();
        }
        assert_eq!(find(1).await, Some(Session { last_seen_at: at(5), ..session(at(9)) }), "never taken back");
        assert_eq!(find(2).await, Some(session(at(9))), "the other is as it was");

        let _ = store.write(move |tx| tx.delete_session(&digest(1))).await.unwrap();
        assert_eq!(find(1).await, None);
        assert_eq!(find(2).await, Some(session(at(9))));
    });
}

#[test]
fn only_an_operator_chooses_an_account() {
    each(async |database| {
        let store = database.store();
        let operator = Session { account_id: None, is_operator: true, ..session(at(9)) };
        let (theirs, merchant) = (operator.clone(), session(at(9)));
        let begun = store.write(move |tx| {
            tx.insert_session(&digest(1), &theirs)?;
            tx.insert_session(&digest(2), &merchant)
        });
        let _ = begun.await.unwrap();
        for number in [1, 2] {
            let _ = store.write(move |tx| tx.set_session_account(&digest(number), Some(&other()))).await.unwrap();
        }
        let find = async |number| store.read(move |db| db.session(&digest(number))).await.unwrap().unwrap();
        assert_eq!(find(1).await, Session { account_id: Some(other()), ..operator });
        assert_eq!(find(2).await, session(at(9)));
    });
}

#[test]
fn sessions_whose_time_has_come_are_forgotten() {
    each(async |database| {
        let store = database.store();
        for number in [1, 2, 3] {
            let ends_at = at(i64::try_from(number).unwrap());
            let _ = store.write(move |tx| tx.insert_session(&digest(number), &session(ends_at))).await.unwrap();
        }
        assert_eq!(store.prune_sessions(at(2)).await.unwrap(), 2);
        assert_eq!(store.read(|db| db.session(&digest(2))).await.unwrap(), None);
        assert!(store.read(|db| db.session(&digest(3))).await.unwrap().is_some());
    });
}
