//! Scopes: expansion with a catalogue that has random additional scopes.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tollkey_core::{Catalogue, Family, Scope, ScopeSet};

use crate::support::one_of;

/// A catalogue with up to twenty additional scopes, and the names of all scopes that `commerce` implies.
fn catalogue() -> impl Strategy<Value = (Catalogue, BTreeSet<String>)> {
    prop::collection::btree_map("x[a-z0-9._:-]{0,10}", any::<bool>(), 0..20).prop_map(|added| {
        let mut catalogue = Catalogue::default();
        let mut implied: BTreeSet<String> =
            Scope::BUILT_IN.iter().map(ToString::to_string).collect();
        for (name, in_commerce) in added {
            catalogue.add(&name, in_commerce).unwrap();
            if in_commerce {
                implied.insert(name);
            }
        }
        (catalogue, implied)
    })
}

fn names(catalogue: &Catalogue, set: ScopeSet) -> BTreeSet<String> {
    catalogue.names(set).map(ToString::to_string).collect()
}

proptest! {
    #[test]
    fn key_has_its_scopes_and_those_that_commerce_implies(
        (catalogue, implied) in catalogue(), family in one_of(Family::ALL), held: prop::sample::Selector, count in 0..6_usize,
    ) {
        let mut held: Vec<Scope> = (0..count).map(|_| held.select(catalogue.scopes()).clone()).collect();
        held.push(Scope::named("removed:scope"));
        let own: BTreeSet<String> = held.iter().take(count).map(ToString::to_string).collect();
        let all: BTreeSet<String> = catalogue.scopes().iter().map(ToString::to_string).collect();
        let expected = match family {
            Family::Secret => all,
            Family::Publishable => BTreeSet::new(),
            _ if own.contains("commerce") => &own | &implied,
            _ => own,
        };
        prop_assert_eq!(names(&catalogue, catalogue.expand(family, &held)), expected);
    }

    #[test]
    fn additional_scope_never_removes_a_scope(
        (catalogue, _) in catalogue(), family in one_of(Family::ALL), held in any::<prop::sample::Index>(), more in any::<prop::sample::Index>(),
    ) {
        let held = held.get(catalogue.scopes()).clone();
        let more = more.get(catalogue.scopes()).clone();
        let less = catalogue.expand(family, std::slice::from_ref(&held));
        prop_assert!(catalogue.expand(family, &[held, more]).contains_all(less));
    }

    #[test]
    fn list_is_read_in_its_order_without_duplicates((catalogue, _) in catalogue(), picks: Vec<prop::sample::Index>) {
        let listed: Vec<&str> = picks.iter().map(|pick| pick.get(catalogue.scopes()).as_str()).collect();
        let mut expected: Vec<&str> = Vec::new();
        for name in &listed {
            if !expected.contains(name) {
                expected.push(name);
            }
        }
        match catalogue.parse_list(listed.iter().copied()) {
            Ok(scopes) => prop_assert_eq!(scopes.iter().map(Scope::as_str).collect::<Vec<_>>(), expected),
            Err(_) => prop_assert!(listed.is_empty()),
        }
        let needed = catalogue.needed(listed.iter().copied()).unwrap();
        prop_assert_eq!(names(&catalogue, needed), listed.iter().map(|&name| name.to_owned()).collect());
        prop_assert_eq!(needed.is_empty(), listed.is_empty());
    }

    #[test]
    fn only_known_scope_names_are_parsed(name in prop_oneof![any::<String>(), "[a-z:.]{0,70}"]) {
        let mut catalogue = Catalogue::default();
        let known = Scope::BUILT_IN.iter().any(|scope| scope.as_str() == name);
        prop_assert_eq!(catalogue.parse(&name).is_ok(), known);
        prop_assert_eq!(catalogue.needed([name.as_str()]).is_ok(), known);
        let well_formed = (1..=64).contains(&name.len())
            && name.as_bytes()[0].is_ascii_lowercase()
            && name.bytes().all(|b| b"abcdefghijklmnopqrstuvwxyz0123456789._-:".contains(&b));
        prop_assert_eq!(catalogue.add(&name, true).is_ok(), well_formed && !known);
        prop_assert_eq!(catalogue.parse(&name).is_ok(), known || well_formed);
    }
}
