//! The audit chain: verification finds changes of a stored log.

use std::net::IpAddr;

use proptest::{prelude::*, test_runner::Config};
use serde_json::{Value, json};
use tollkey_core::{
    AuditId, KeyId, Mode, Timestamp,
    audit::{
        Action, Actor, ActorKind, ChainError, Draft, Entry, Hash, Head, Target, TargetKind, verify,
    },
};

use crate::{
    metadata::any_object,
    support::{account, one_of},
};

fn check(log: &[Entry]) -> Result<Head, ChainError> {
    log.iter().try_fold(Head::GENESIS, verify)
}

fn seal(drafts: impl IntoIterator<Item = Draft>, mut head: Head) -> Vec<Entry> {
    let seal_next = |draft: Draft| {
        let entry = draft.seal(head);
        head = Head {
            seq: entry.seq,
            hash: entry.hash,
        };
        entry
    };
    drafts.into_iter().map(seal_next).collect()
}

prop_compose! {
    fn draft()(
        id: [u8; 16], micros in 0..4_000_000_000_000_000_i64, action in one_of(Action::ALL),
        (actor_kind, actor) in (one_of(ActorKind::ALL), "[a-z@.]{0,12}"),
        (target_kind, target, mode) in (one_of(TargetKind::ALL), "[a-z0-9-]{0,12}", prop::option::of(one_of(Mode::ALL))),
        request_id in prop::option::of("[a-z0-9_]{0,12}"), ip in prop::option::of(any::<IpAddr>()), changes in any_object(),
    ) -> Draft {
        Draft {
            id: AuditId::from_bytes(id),
            account_id: account("acme"),
            occurred_at: Timestamp::from_microsecond(micros).unwrap(),
            action,
            actor: Actor { kind: actor_kind, id: actor },
            target: Target { kind: target_kind, id: target, mode },
            request_id,
            ip,
            changes: Value::Object(changes),
        }
    }
}

fn log() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec(draft(), 2..6).prop_map(|drafts| seal(drafts, Head::GENESIS))
}

/// Edits of each field of an entry.
const EDITS: [fn(&mut Entry); 22] = [
    |e| e.draft.id = flip(e.draft.id),
    |e| e.draft.account_id = account("acm"),
    |e| e.draft.account_id = account("ACME"),
    |e| {
        e.draft.occurred_at =
            Timestamp::from_microsecond(e.draft.occurred_at.as_microsecond() + 1).unwrap()
    },
    |e| e.draft.action = another(&Action::ALL, e.draft.action),
    |e| e.draft.actor.kind = another(&ActorKind::ALL, e.draft.actor.kind),
    |e| e.draft.actor.id.push('x'),
    |e| e.draft.target.kind = another(&TargetKind::ALL, e.draft.target.kind),
    |e| e.draft.target.id.push('x'),
    |e| {
        e.draft.target.mode = if e.draft.target.mode.is_some() {
            None
        } else {
            Some(Mode::Test)
        }
    },
    |e| e.draft.target.mode = Some(another(&Mode::ALL, e.draft.target.mode.unwrap_or_default())),
    |e| {
        e.draft.request_id = if e.draft.request_id.is_some() {
            None
        } else {
            Some(String::new())
        }
    },
    |e| e.draft.request_id.get_or_insert_default().push('x'),
    |e| {
        e.draft.ip = if e.draft.ip.is_some() {
            None
        } else {
            Some(IpAddr::from([0, 0, 0, 0]))
        }
    },
    |e| e.draft.ip = Some(e.draft.ip.map_or(IpAddr::from([9; 16]), next)),
    |e| {
        insert(&mut e.draft.changes, "added", Value::Null);
    },
    |e| {
        // A character moved from one field to another.
        let moved = e.draft.actor.id.pop().unwrap_or('m');
        e.draft.target.id.insert(0, moved);
    },
    |e| e.draft.changes = json!([e.draft.changes]),
    |e| e.draft.changes = Value::String(e.draft.changes.to_string()),
    |e| e.hash = flip_hash(e.hash),
    |e| e.hash = Hash::GENESIS,
    |e| e.seq += 1,
];

fn flip(id: AuditId) -> AuditId {
    let mut bytes = *id.as_bytes();
    bytes[15] ^= 1;
    AuditId::from_bytes(bytes)
}

fn flip_hash(hash: Hash) -> Hash {
    let mut bytes = *hash.as_bytes();
    bytes[0] ^= 0x80;
    Hash::from_bytes(bytes)
}

fn another<T: Copy + PartialEq>(all: &[T], than: T) -> T {
    all.iter().copied().find(|value| *value != than).unwrap()
}

fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::from(v4.to_bits().wrapping_add(1).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from(v6.to_bits().wrapping_add(1).to_be_bytes()),
    }
}

fn insert(changes: &mut Value, name: &str, value: Value) {
    changes
        .as_object_mut()
        .unwrap()
        .insert(name.to_owned(), value);
}

proptest! {
    // Each case is a whole log, which is slow to generate without optimization.
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn intact_log_is_verified_up_to_its_last_entry(log in log()) {
        let last = log.last().unwrap();
        prop_assert_eq!(check(&log), Ok(Head { seq: log.len() as u64, hash: last.hash }));
        prop_assert_eq!(last.hash.to_string().parse(), Ok(last.hash));
    }

    #[test]
    fn edit_of_any_field_is_found_at_its_entry(log in log(), at: prop::sample::Index) {
        let at = at.index(log.len());
        for (number, edit) in EDITS.iter().enumerate() {
            let mut log = log.clone();
            edit(&mut log[at]);
            let error = check(&log).err();
            let found = match &error {
                Some(ChainError::Broken { seq, .. }) => *seq,
                Some(ChainError::Gap { expected, .. }) => *expected,
                None => 0,
            };
            prop_assert_eq!(found, at as u64 + 1, "edit {}: {:?}", number, error);
        }
    }

    #[test]
    fn reordered_fields_of_the_changes_are_found(log in log(), at: prop::sample::Index) {
        let at = at.index(log.len());
        let mut drafts: Vec<Draft> = log.iter().map(|entry| entry.draft.clone()).collect();
        insert(&mut drafts[at].changes, "first", json!(1));
        insert(&mut drafts[at].changes, "second", json!(2));
        let mut log = seal(drafts, Head::GENESIS);
        prop_assert!(check(&log).is_ok());
        let fields = log[at].draft.changes.as_object_mut().unwrap();
        let first = fields.shift_remove("first").unwrap();
        fields.insert("first".into(), first);
        prop_assert!(check(&log).is_err());
    }

    #[test]
    fn gap_is_found(log in log(), at: prop::sample::Index) {
        let at = at.index(log.len() - 1);
        let mut log = log;
        log.remove(at);
        let expected = at as u64 + 1;
        prop_assert_eq!(check(&log), Err(ChainError::Gap { account: account("acme"), expected, found: expected + 1 }));
        // Renumbering the entries after the gap does not hide it.
        for (seq, entry) in (1..).zip(&mut log) {
            entry.seq = seq;
        }
        prop_assert_eq!(check(&log), Err(ChainError::Broken { account: account("acme"), seq: expected }));
    }

    #[test]
    fn insertion_is_found(log in log(), at: prop::sample::Index, forged in draft()) {
        let at = at.index(log.len());
        let before = if at == 0 { Head::GENESIS } else { Head { seq: at as u64, hash: log[at - 1].hash } };
        let mut log = log;
        log.insert(at, forged.seal(before));
        prop_assert!(check(&log).is_err());
        for (seq, entry) in (1..).zip(&mut log) {
            entry.seq = seq;
        }
        prop_assert!(check(&log).is_err());
    }

    #[test]
    fn repeated_entry_is_found(log in log(), at: prop::sample::Index) {
        let at = at.index(log.len());
        let mut log = log;
        log.insert(at, log[at].clone());
        prop_assert!(check(&log).is_err());
    }

    #[test]
    fn swapped_entries_are_found(log in log(), a: prop::sample::Index, b: prop::sample::Index) {
        let a = a.index(log.len());
        let b = (a + 1 + b.index(log.len() - 1)) % log.len();
        let mut swapped = log.clone();
        swapped.swap(a, b);
        prop_assert!(check(&swapped).is_err());
        // The same with the numbers in their order.
        let mut swapped = log;
        (swapped[a].seq, swapped[b].seq) = (swapped[b].seq, swapped[a].seq);
        swapped.swap(a, b);
        prop_assert!(check(&swapped).is_err());
    }

    /// The chain alone does not reveal truncation or rewriting.
    #[test]
    fn saved_head_reveals_truncation_and_rewriting(log in log(), at: prop::sample::Index, forged in draft()) {
        let saved = check(&log).unwrap();
        let at = at.index(log.len());
        prop_assert_ne!(check(&log[..at]), Ok(saved));
        let mut drafts: Vec<Draft> = log.iter().map(|entry| entry.draft.clone()).collect();
        prop_assume!(drafts[at] != forged);
        drafts[at] = forged;
        let rewritten = seal(drafts, Head::GENESIS);
        prop_assert_ne!(check(&rewritten).unwrap(), saved);
    }

    #[test]
    fn only_64_hex_digits_are_a_hash(text in prop_oneof![any::<String>(), "[0-9a-fA-F+]{62,66}"]) {
        let expected = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        prop_assert_eq!(text.parse::<Hash>().is_ok(), expected);
        if let Ok(hash) = text.parse::<Hash>() {
            prop_assert_eq!(hash.to_string(), text.to_ascii_lowercase());
        }
    }
}

#[test]
fn every_action_has_a_unique_name_that_can_be_parsed() {
    let mut names: Vec<&str> = Action::ALL.map(Action::as_str).to_vec();
    for action in Action::ALL {
        assert_eq!(action.as_str().parse(), Ok(action));
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Action::ALL.len());
}

#[test]
fn entry_of_another_account_breaks_the_chain() {
    let draft = |account_id: &str| Draft {
        id: AuditId::from_bytes([1; 16]),
        account_id: account(account_id),
        occurred_at: crate::support::now(),
        action: Action::ApiKeyCreated,
        actor: Actor {
            kind: ActorKind::Merchant,
            id: "user_7".into(),
        },
        target: Target::key(KeyId::from_bytes([2; 16]), Mode::Live),
        request_id: None,
        ip: None,
        changes: json!({}),
    };
    let (ours, theirs) = (
        seal([draft("acme")], Head::GENESIS),
        seal([draft("other")], Head::GENESIS),
    );
    assert_ne!(ours[0].hash, theirs[0].hash);
    let mut moved = theirs;
    moved[0].draft.account_id = account("acme");
    assert!(check(&moved).is_err());
}
