//! Expressions of scopes: the grammar and its limits row by row, and the decision about a key.

use proptest::prelude::*;
use tollkey_core::{
    AccessRequest, Catalogue, Denial, Family, Mode, Scope, ScopeExpression, ScopeSet, decide,
};

use crate::support::{key, needed, now, one_of, record};

fn parse(text: &str) -> Result<ScopeExpression, String> {
    ScopeExpression::parse(text, &Catalogue::default()).map_err(|rule| rule.to_string())
}

fn is_satisfied(text: &str, held: &[&str]) -> bool {
    parse(text)
        .unwrap_or_else(|rule| panic!("{text}: {rule}"))
        .is_satisfied_by(needed(held))
}

#[test]
fn and_binds_more_strongly_than_or() {
    let (links, events, sessions) = ("links:read", "events:read", "sessions:read");
    for (text, held, expected) in [
        (links, vec![links], true),
        (links, vec![events], false),
        (links, vec![], false),
        ("links:read AND events:read", vec![links, events], true),
        ("links:read AND events:read", vec![links], false),
        ("links:read OR events:read", vec![events], true),
        ("links:read OR events:read", vec![sessions], false),
        // links OR (events AND sessions)
        (
            "links:read OR events:read AND sessions:read",
            vec![links],
            true,
        ),
        (
            "links:read OR events:read AND sessions:read",
            vec![events],
            false,
        ),
        (
            "events:read AND sessions:read OR links:read",
            vec![links],
            true,
        ),
        (
            "events:read AND sessions:read OR links:read",
            vec![events],
            false,
        ),
        (
            "(links:read OR events:read) AND sessions:read",
            vec![links],
            false,
        ),
        (
            "(links:read OR events:read) AND sessions:read",
            vec![events, sessions],
            true,
        ),
        (
            "sessions:read AND (links:read OR events:read)",
            vec![sessions],
            false,
        ),
        (
            "links:read AND events:read AND sessions:read",
            vec![links, events],
            false,
        ),
        (
            "links:read OR events:read OR sessions:read",
            vec![sessions],
            true,
        ),
        ("((links:read))", vec![links], true),
    ] {
        assert_eq!(is_satisfied(text, &held), expected, "{text} with {held:?}");
    }
}

#[test]
fn keywords_are_case_insensitive_whole_words() {
    let held = ["links:read", "events:read"];
    for text in [
        "links:read and events:read",
        "links:read And events:read",
        "links:read aNd(events:read)",
        "(links:read)AND(events:read)",
        " links:read\tAND\r\nevents:read ",
        "android OR links:read",
        "oracle OR links:read",
        "and.or OR links:read",
    ] {
        assert!(is_satisfied(text, &held), "{text}");
    }
    for text in ["android", "oracle", "LINKS:READ", "links:read AND or:x"] {
        assert!(!is_satisfied(text, &held), "{text}");
    }
}

#[test]
fn no_key_has_a_scope_outside_the_catalogue() {
    let all = Catalogue::default().expand(Family::Secret, &[]);
    for text in ["refunds:read", "*", "links:*", "links/read", "A-Z_0.9"] {
        let alone = parse(text).unwrap();
        assert!(!alone.is_satisfied_by(all), "{text}");
        let either = parse(&format!("{text} OR links:read")).unwrap();
        assert!(either.is_satisfied_by(all), "{text}");
        let both = parse(&format!("{text} AND links:read")).unwrap();
        assert!(!both.is_satisfied_by(all), "{text}");
    }
}

#[test]
fn malformed_expression_is_rejected_with_its_position() {
    let operand = "a scope or an opening parenthesis";
    let inside = "AND, OR or a closing parenthesis";
    let after = "AND, OR or the end";
    for (text, expected, position) in [
        (" ", operand, 2),
        ("AND", operand, 1),
        ("or links:read", operand, 1),
        ("links:read AND", operand, 15),
        ("links:read OR ", operand, 15),
        ("links:read AND AND events:read", operand, 16),
        ("links:read AND OR events:read", operand, 16),
        ("()", operand, 2),
        ("links:read AND ()", operand, 17),
        (")", operand, 1),
        ("links:read events:read", after, 12),
        ("links:read)", after, 11),
        ("links:read (events:read)", after, 12),
        ("(links:read", inside, 12),
        ("(links:read events:read)", inside, 13),
        ("((links:read)", inside, 14),
        ("(links:read OR events:read", inside, 27),
    ] {
        let rule = format!("must have {expected} at position {position}");
        assert_eq!(parse(text), Err(rule), "{text:?}");
    }
    for (text, position) in [
        ("links:read & events:read", 12),
        ("links:read AND s3cret!", 22),
        ("\"links:read\"", 1),
        ("links:read, events:read", 11),
        ("links:read AND é", 16),
        ("links:read\u{a0}AND events:read", 11),
        ("links:read\0", 11),
    ] {
        let rule = format!(
            "has an invalid character at position {position}; use scopes, AND, OR and parentheses"
        );
        assert_eq!(parse(text), Err(rule), "{text:?}");
    }
}

#[test]
fn length_and_depth_of_an_expression_are_limited() {
    let length = Err("must have 1 to 1000 characters".to_owned());
    assert_eq!(parse(""), length);
    assert!(parse(&"a".repeat(1000)).is_ok());
    assert_eq!(parse(&"a".repeat(1001)), length);
    let nested = |depth| format!("{}links:read{}", "(".repeat(depth), ")".repeat(depth));
    assert!(is_satisfied(&nested(32), &["links:read"]));
    let depth = Err("must nest at most 32 parentheses".to_owned());
    assert_eq!(parse(&nested(33)), depth);
    assert_eq!(parse(&"(".repeat(1000)), depth);
    // Only nested parentheses count.
    let beside = vec!["(links:read)"; 60].join(" OR ");
    assert!(is_satisfied(&beside, &["links:read"]));
}

#[test]
fn key_that_does_not_satisfy_the_expression_is_denied() {
    let decision = |family, scopes: &[Scope], text: &str| {
        let mut key = key(family, Mode::Live);
        key.restrictions.scopes = scopes.to_vec();
        let record = record(key);
        let expression = parse(text).unwrap();
        let access = AccessRequest {
            scope_expression: Some(&expression),
            ..AccessRequest::default()
        };
        decide(&record, &access, now()).map(drop)
    };
    let lacks = Err(Denial::InsufficientScope);
    for (family, scopes, text, expected) in [
        (
            Family::Commerce,
            vec![Scope::LINKS_READ],
            "links:read OR links:write",
            Ok(()),
        ),
        (
            Family::Commerce,
            vec![Scope::LINKS_READ],
            "links:read AND links:write",
            lacks,
        ),
        (
            Family::Commerce,
            vec![Scope::COMMERCE],
            "links:read AND links:write",
            Ok(()),
        ),
        (
            Family::Application,
            vec![Scope::LINKS_WRITE],
            "links:read",
            lacks,
        ),
        (Family::Secret, vec![], "links:read AND commerce", Ok(())),
        (Family::Secret, vec![], "refunds:read", lacks),
    ] {
        assert_eq!(
            decision(family, &scopes, text),
            expected,
            "{family} {scopes:?} {text}"
        );
    }
}

#[test]
fn required_scopes_and_the_expression_must_both_be_satisfied() {
    let mut key = key(Family::Commerce, Mode::Live);
    key.restrictions.scopes = vec![Scope::LINKS_READ, Scope::EVENTS_READ];
    let record = record(key);
    for (scopes, text, expected) in [
        (needed(&["links:read"]), "events:read", Ok(())),
        (
            needed(&["links:write"]),
            "events:read",
            Err(Denial::InsufficientScope),
        ),
        (
            needed(&["links:read"]),
            "links:write",
            Err(Denial::InsufficientScope),
        ),
    ] {
        let expression = parse(text).unwrap();
        let access = AccessRequest {
            scopes,
            scope_expression: Some(&expression),
            ..AccessRequest::default()
        };
        assert_eq!(
            decide(&record, &access, now()).map(drop),
            expected,
            "{text}"
        );
    }
}

/// An expression with the function that it means.
#[derive(Debug, Clone)]
enum Model {
    Scope(&'static str),
    All(Vec<Model>),
    Any(Vec<Model>),
}

impl Model {
    fn text(&self) -> String {
        let join = |parts: &[Self], operator: &str| {
            let parts: Vec<String> = parts.iter().map(Self::text).collect();
            format!("({})", parts.join(operator))
        };
        match self {
            Self::Scope(name) => (*name).to_owned(),
            Self::All(parts) => join(parts, " AND "),
            Self::Any(parts) => join(parts, " OR "),
        }
    }

    fn holds(&self, scopes: ScopeSet) -> bool {
        match self {
            Self::Scope(name) => scopes.contains_all(needed(&[name])),
            Self::All(parts) => parts.iter().all(|part| part.holds(scopes)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(scopes)),
        }
    }
}

const NAMES: [&str; 4] = ["links:read", "links:write", "events:read", "commerce"];

fn model() -> impl Strategy<Value = Model> {
    one_of(NAMES)
        .prop_map(Model::Scope)
        .prop_recursive(3, 24, 3, |part| {
            let parts = prop::collection::vec(part, 1..3);
            (parts, any::<bool>()).prop_map(|(parts, all)| {
                if all {
                    Model::All(parts)
                } else {
                    Model::Any(parts)
                }
            })
        })
}

proptest! {
    #[test]
    fn every_well_formed_expression_has_its_meaning(
        model in model(), held in prop::sample::subsequence(NAMES.to_vec(), 0..=4),
    ) {
        let text = model.text();
        prop_assume!(text.len() <= ScopeExpression::MAX_LENGTH);
        let held = needed(&held);
        prop_assert_eq!(parse(&text).unwrap().is_satisfied_by(held), model.holds(held), "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-z:() \tANDOR*é]{0,80}") {
        if let Ok(expression) = parse(&text) {
            let _ = expression.is_satisfied_by(ScopeSet::EMPTY);
        }
    }
}
