//! The vectors in `crates/core/vectors`, which every release must reproduce.

use serde_json::Value;
use tollkey_core::{
    Catalogue, Digest, Family, KeyId, RequestPath, RouteBase, Scope,
    audit::{ActorKind, Draft, Entry, Head, Target, TargetKind, verify},
    key_format::CredentialKind,
    route::Template,
};

fn read(file: &str) -> Value {
    serde_json::from_str(file).unwrap()
}

fn rows(file: &Value) -> impl Iterator<Item = &Value> {
    let rows = file["rows"].as_array().unwrap();
    assert!(!rows.is_empty());
    rows.iter()
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is not a string"))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<T: Copy>(all: &[T], name: fn(T) -> &'static str, value: &Value) -> T {
    all.iter()
        .copied()
        .find(|&item| name(item) == text(value))
        .unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn ids_match_the_vectors() {
    for row in rows(&read(include_str!("../../vectors/ids.json"))) {
        let id: KeyId = text(&row["hyphenated"]).parse().unwrap();
        assert_eq!(hex(id.as_bytes()), text(&row["bytes"]));
        assert_eq!(id.crockford(), text(&row["crockford"]));
        assert_eq!(text(&row["crockford"]).parse(), Ok(id));
        assert_eq!(id.to_string(), text(&row["hyphenated"]));
    }
}

#[test]
fn key_hashes_match_the_vectors() {
    for row in rows(&read(include_str!("../../vectors/digests.json"))) {
        let times = usize::try_from(row["times"].as_u64().unwrap()).unwrap();
        let example = format!(
            "{}{}",
            text(&row["prefix"]),
            text(&row["character"]).repeat(times)
        );
        assert!(CredentialKind::parse(&example).is_some(), "{row}");
        assert_eq!(
            hex(Digest::of_key(&example).as_bytes()),
            text(&row["sha256"]),
            "{row}"
        );
    }
}

#[test]
fn route_matches_equal_the_vectors() {
    let file = read(include_str!("../../vectors/routes.json"));
    let base = RouteBase::parse(text(&file["base"])).unwrap();
    for row in rows(&file) {
        // `Template::new` takes static strings.
        let (method, path) = String::leak(text(&row["template"]).to_owned())
            .split_once(' ')
            .unwrap();
        let request = RequestPath::new(text(&row["path"]), &base);
        let matches = Template::new(method, path).matches(text(&row["method"]), request);
        assert_eq!(Value::from(matches), row["matches"], "{row}");
    }
}

#[test]
fn implied_scopes_match_the_vectors() {
    let file = read(include_str!("../../vectors/scopes.json"));
    let mut catalogue = Catalogue::default();
    for added in file["added"].as_array().unwrap() {
        catalogue
            .add(
                text(&added["name"]),
                added["in_commerce"].as_bool().unwrap(),
            )
            .unwrap();
    }
    for row in rows(&file) {
        let family = named(&Family::ALL, Family::as_str, &row["family"]);
        let stored: Vec<Scope> = texts(&row["scopes"])
            .into_iter()
            .map(|name| Scope::named(name.to_owned()))
            .collect();
        let satisfied = catalogue.expand(family, &stored);
        let names: Vec<&str> = catalogue.names(satisfied).map(Scope::as_str).collect();
        assert_eq!(names, texts(&row["satisfies"]), "{row}");
    }
}

/// Otherwise a release could not verify the audit logs of earlier releases.
#[test]
fn audit_chain_matches_the_vectors() {
    let mut head = Head::GENESIS;
    for row in rows(&read(include_str!("../../vectors/audit_chain.json"))) {
        let draft = Draft {
            id: text(&row["id"]).parse().unwrap(),
            account_id: text(&row["account_id"]).parse().unwrap(),
            occurred_at: text(&row["occurred_at"]).parse().unwrap(),
            action: text(&row["action"]).parse().unwrap(),
            actor: tollkey_core::audit::Actor {
                kind: named(&ActorKind::ALL, ActorKind::as_str, &row["actor"]["kind"]),
                id: text(&row["actor"]["id"]).to_owned(),
            },
            target: Target {
                kind: named(&TargetKind::ALL, TargetKind::as_str, &row["target"]["kind"]),
                id: text(&row["target"]["id"]).to_owned(),
                mode: row["target"]["mode"]
                    .as_str()
                    .map(|mode| mode.parse().unwrap()),
            },
            request_id: row["request_id"].as_str().map(str::to_owned),
            ip: row["ip"].as_str().map(|ip| ip.parse().unwrap()),
            changes: row["changes"].clone(),
        };
        let sealed = draft.clone().seal(head);
        assert_eq!(sealed.hash.to_string(), text(&row["hash"]), "{row}");
        let entry = Entry {
            draft,
            seq: row["seq"].as_u64().unwrap(),
            hash: text(&row["hash"]).parse().unwrap(),
        };
        head = verify(head, &entry).unwrap();
    }
    assert_eq!(head.seq, 3);
}
