//! Entity tags and preconditions.

use rand::{SeedableRng as _, rngs::StdRng};
use tollkey_core::{
    Account, ApiKey, Application, ApplicationId, EntityTag, Family, IpList, KeyId, Mode,
    OperatingModel, PlainKey, Preconditions, ProblemCode, RateLimit, Scope, ServiceKey,
    ServiceKeyId, Timestamp, feature::Feature, key_format::CredentialKind, metadata::Metadata,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn key() -> ApiKey {
    let mut rng = StdRng::seed_from_u64(7);
    let kind = (Family::Commerce, Mode::Test);
    let text = PlainKey::generate(CredentialKind::Key(kind.0, kind.1), &mut rng);
    let id = KeyId::new(at(1), &mut rng);
    ApiKey::new(id, "acme".parse().unwrap(), &text, kind, at(1))
}

type Edit<'a> = (&'a str, &'a dyn Fn(&mut ApiKey));

#[test]
fn each_managed_field_changes_the_tag_of_a_key() {
    let id: KeyId = "0198c0de-0000-7000-8000-000000000001".parse().unwrap();
    let edits: [Edit; 13] = [
        ("id", &|key| key.id = id),
        ("name", &|key| key.name = "Till".to_owned()),
        ("scopes", &|key| {
            key.restrictions.scopes = vec![Scope::LINKS_READ]
        }),
        ("merchants", &|key| {
            key.restrictions.merchants = Some(vec!["m_1".to_owned()])
        }),
        ("features", &|key| {
            key.restrictions.features = Some(Feature::ALL.to_vec())
        }),
        ("allowed_ips", &|key| {
            key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok()
        }),
        ("rate_limit", &|key| {
            key.restrictions.rate_limit = RateLimit::new(10, 60).ok()
        }),
        ("expires_at", &|key| {
            key.restrictions.expires_at = Some(at(9))
        }),
        ("metadata", &|key| {
            key.metadata = Metadata::parse(r#"{"a":1}"#).ok()
        }),
        ("suspended_at", &|key| key.suspended_at = Some(at(5))),
        ("revoked_at", &|key| key.revoked_at = Some(at(5))),
        ("reason", &|key| {
            key.revoked_at = Some(at(5));
            key.revoked_reason = Some("lost".to_owned());
        }),
        ("rotated_to", &|key| key.rotated_to = Some(id)),
    ];
    let mut seen = vec![("nothing", key().entity_tag())];
    for (name, edit) in edits {
        let mut edited = key();
        edit(&mut edited);
        let tag = edited.entity_tag();
        let same = seen.iter().find(|(_, other)| *other == tag);
        assert_eq!(same, None, "{name}");
        assert_eq!(edited.clone().entity_tag(), tag, "{name}");
        seen.push((name, tag));
    }
}

#[test]
fn usage_does_not_change_the_tag_of_a_key() {
    let used = ApiKey {
        last_used_at: Some(at(5)),
        ..key()
    };
    assert_eq!(used.entity_tag(), key().entity_tag());
    // The store keeps microseconds.
    let precise = |nanosecond| ApiKey {
        suspended_at: Timestamp::new(5, nanosecond).ok(),
        ..key()
    };
    assert_eq!(precise(1_999).entity_tag(), precise(1_000).entity_tag());
    assert_ne!(precise(1_000).entity_tag(), precise(2_000).entity_tag());
}

#[test]
fn recording_an_inherited_revocation_keeps_the_tag() {
    let parent = ApiKey {
        revoked_at: Some(at(5)),
        ..key()
    };
    let mut child = key().with_ancestors([&parent]);
    let inherited = child.entity_tag();
    assert_ne!(inherited, key().entity_tag());
    let _ = child.record_inherited_revocation();
    assert_eq!(child.revoked_at, Some(at(5)));
    assert_eq!(child.entity_tag(), inherited);
}

#[test]
fn tags_of_other_resources_change_with_their_fields() {
    let mut rng = StdRng::seed_from_u64(7);
    let application = Application {
        id: ApplicationId::new(at(1), &mut rng),
        account_id: "acme".parse().unwrap(),
        name: "Shop".to_owned(),
        description: None,
        is_enabled: true,
        created_at: at(1),
    };
    let service_key = ServiceKey {
        id: ServiceKeyId::new(at(1), &mut rng),
        name: "gateway".to_owned(),
        last4: "aaaa".to_owned(),
        created_at: at(1),
        revoked_at: None,
    };
    let account = Account::new("acme".parse().unwrap());
    let tags = [
        application.entity_tag(),
        Application {
            name: "Store".to_owned(),
            ..application.clone()
        }
        .entity_tag(),
        Application {
            description: Some(String::new()),
            ..application.clone()
        }
        .entity_tag(),
        Application {
            is_enabled: false,
            ..application
        }
        .entity_tag(),
        service_key.entity_tag(),
        ServiceKey {
            revoked_at: Some(at(2)),
            ..service_key
        }
        .entity_tag(),
        account.entity_tag(),
        Account::new("globex".parse().unwrap()).entity_tag(),
        Account {
            operating_model: OperatingModel::Platform,
            ..account
        }
        .entity_tag(),
    ];
    let distinct: std::collections::HashSet<EntityTag> = tags.into_iter().collect();
    assert_eq!(distinct.len(), tags.len());
}

#[test]
fn preconditions_compare_strong_tags_character_by_character() {
    let current = key().entity_tag();
    let text = current.to_string();
    assert_eq!(text.len(), 34, "{text}");
    let other = format!("\"{}\"", "0".repeat(32));
    let holds = |values: &[&str]| {
        let values = values.iter().map(|value| value.as_bytes());
        match Preconditions::parse(values).unwrap().check(current) {
            Ok(()) => true,
            Err(problem) => {
                assert_eq!(problem.code, ProblemCode::PreconditionFailed);
                false
            }
        }
    };
    let list = format!("{other},{text}");
    let spaced = format!(" ,, W/\"x\" ,\t\"a,b\" , {text} ,");
    let (text, other) = (text.as_str(), other.as_str());
    for values in [
        &[][..],
        &["*"],
        &[" *\t"],
        &[text],
        &[list.as_str()],
        &[spaced.as_str()],
        &[other, text],
        &["\"\u{e9}\"", text],
    ] {
        assert!(holds(values), "{values:?}");
    }
    let (upper, weak) = (text.to_ascii_uppercase(), format!("W/{text}"));
    for values in [
        &[other][..],
        &[weak.as_str()],
        &[upper.as_str()],
        &["\"\""],
        &["\"*\""],
        &[other, "\"x\""],
    ] {
        assert!(!holds(values), "{values:?}");
    }
    assert_eq!(Preconditions::NONE.check(current), Ok(()));
}

#[test]
fn malformed_preconditions_are_rejected() {
    for values in [
        &[""][..],
        &[","],
        &["x"],
        &["\"x"],
        &["x\""],
        &["w/\"x\""],
        &["\"x\" \"y\""],
        &["\"x\"y"],
        &["\"a b\""],
        &["*,*"],
        &["*", "*"],
        &["*", "\"x\""],
        &["\"x\"", ""],
    ] {
        let parsed = Preconditions::parse(values.iter().map(|value| value.as_bytes()));
        let is_empty_line = values == ["\"x\"", ""];
        assert_eq!(parsed.is_err(), !is_empty_line, "{values:?}");
    }
}
