//! The restrictions that a key passes on to the keys that it creates, the restrictions of the account's
//! operating model, and the transitions of a key.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tollkey_core::{
    ApiKey, Family, IpList, KeyId, Mode, OperatingModel, PlainKey, Problem, RateLimit,
    Restrictions, Scope, Status, Timestamp,
    api_key::{Overlap, TransitionError},
    ceiling::{CeilingError, restrict_to_parent},
    feature::Feature,
    key_format::CredentialKind,
    metadata::Metadata,
    text,
};

use crate::support::{key, now, one_of, rng};

fn ips(cidrs: &[&str]) -> Option<IpList> {
    Some(IpList::parse(cidrs.iter().copied()).unwrap())
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

fn rate(limit: i64, window: i64) -> RateLimit {
    RateLimit::new(limit, window).unwrap()
}

fn parent_key(mode: Mode, restrictions: Restrictions) -> ApiKey {
    ApiKey {
        restrictions,
        ..key(Family::Secret, mode)
    }
}

#[test]
fn test_key_creates_only_test_keys() {
    for (own, requested, expected) in [
        (Mode::Test, Mode::Test, Ok(())),
        (Mode::Test, Mode::Live, Err(CeilingError::Mode)),
        (Mode::Live, Mode::Test, Ok(())),
        (Mode::Live, Mode::Live, Ok(())),
    ] {
        let parent = parent_key(own, Restrictions::default());
        let granted = restrict_to_parent(&parent, requested, Restrictions::default());
        assert_eq!(
            granted.map(|restrictions| assert_eq!(restrictions, Restrictions::default())),
            expected,
            "{own:?} {requested:?}"
        );
    }
}

#[test]
fn each_limit_is_inherited_narrowed_or_rejected() {
    let own_ips = ips(&["203.0.113.0/24", "2001:db8::/32"]);
    for (own, requested, expected) in [
        (None, None, Ok(None)),
        (None, ips(&["0.0.0.0/0"]), Ok(ips(&["0.0.0.0/0"]))),
        (own_ips.clone(), None, Ok(own_ips.clone())),
        (own_ips.clone(), own_ips.clone(), Ok(own_ips.clone())),
        (
            own_ips.clone(),
            ips(&["203.0.113.128/25"]),
            Ok(ips(&["203.0.113.128/25"])),
        ),
        (
            own_ips.clone(),
            ips(&["203.0.113.0/24", "203.0.114.0/24"]),
            Err(CeilingError::AllowedIps),
        ),
        (
            own_ips.clone(),
            ips(&["203.0.112.0/23"]),
            Err(CeilingError::AllowedIps),
        ),
        (
            own_ips.clone(),
            ips(&["0.0.0.0/0"]),
            Err(CeilingError::AllowedIps),
        ),
        (
            own_ips.clone(),
            ips(&["::/0"]),
            Err(CeilingError::AllowedIps),
        ),
        (
            ips(&["0.0.0.0/0"]),
            ips(&["::/0"]),
            Err(CeilingError::AllowedIps),
        ),
        (
            ips(&["::/0"]),
            ips(&["10.0.0.0/8"]),
            Err(CeilingError::AllowedIps),
        ),
    ] {
        let parent = parent_key(
            Mode::Live,
            Restrictions {
                allowed_ips: own,
                ..Restrictions::default()
            },
        );
        let requested = Restrictions {
            allowed_ips: requested,
            ..Restrictions::default()
        };
        assert_eq!(
            restrict_to_parent(&parent, Mode::Live, requested.clone())
                .map(|restrictions| restrictions.allowed_ips),
            expected,
            "{requested:?}"
        );
    }
    for (own, requested, expected) in [
        (None, None, Ok(None)),
        (None, Some(at(9)), Ok(Some(at(9)))),
        (Some(at(5)), None, Ok(Some(at(5)))),
        (Some(at(5)), Some(at(5)), Ok(Some(at(5)))),
        (Some(at(5)), Some(at(4)), Ok(Some(at(4)))),
        (Some(at(5)), Some(at(6)), Err(CeilingError::Expiration)),
        (
            Some(at(5)),
            Some(Timestamp::MAX),
            Err(CeilingError::Expiration),
        ),
    ] {
        let parent = parent_key(
            Mode::Live,
            Restrictions {
                expires_at: own,
                ..Restrictions::default()
            },
        );
        let requested = Restrictions {
            expires_at: requested,
            ..Restrictions::default()
        };
        assert_eq!(
            restrict_to_parent(&parent, Mode::Live, requested.clone())
                .map(|restrictions| restrictions.expires_at),
            expected,
            "{requested:?}"
        );
    }
    for (own, requested, expected) in [
        (None, None, Ok(None)),
        (None, Some(rate(9, 1)), Ok(Some(rate(9, 1)))),
        (Some(rate(5, 10)), None, Ok(Some(rate(5, 10)))),
        (Some(rate(5, 10)), Some(rate(5, 10)), Ok(Some(rate(5, 10)))),
        (Some(rate(5, 10)), Some(rate(1, 2)), Ok(Some(rate(1, 2)))),
        (
            Some(rate(5, 10)),
            Some(rate(6, 10)),
            Err(CeilingError::RateLimit),
        ),
        (
            Some(rate(5, 10)),
            Some(rate(10, 20)),
            Err(CeilingError::RateLimit),
        ),
        (
            Some(rate(5, 10)),
            Some(rate(1, 1)),
            Err(CeilingError::RateLimit),
        ),
    ] {
        let parent = parent_key(
            Mode::Live,
            Restrictions {
                rate_limit: own,
                ..Restrictions::default()
            },
        );
        let requested = Restrictions {
            rate_limit: requested,
            ..Restrictions::default()
        };
        assert_eq!(
            restrict_to_parent(&parent, Mode::Live, requested.clone())
                .map(|restrictions| restrictions.rate_limit),
            expected,
            "{requested:?}"
        );
    }
    // Other restrictions are not inherited.
    let requested = Restrictions {
        scopes: vec![Scope::COMMERCE],
        merchants: Some(vec!["m".to_owned()]),
        ..Restrictions::default()
    };
    assert_eq!(
        restrict_to_parent(
            &parent_key(Mode::Live, Restrictions::default()),
            Mode::Live,
            requested.clone()
        ),
        Ok(requested)
    );
}

#[test]
fn exceeding_the_parent_key_is_forbidden_with_a_detail() {
    for error in [
        CeilingError::Mode,
        CeilingError::AllowedIps,
        CeilingError::Expiration,
        CeilingError::RateLimit,
    ] {
        let problem = Problem::from(error);
        assert_eq!(
            (problem.code.as_str(), problem.code.status(), problem.detail),
            ("forbidden", 403, error.to_string())
        );
    }
}

fn any_restrictions() -> impl Strategy<Value = Restrictions> {
    let cidr = one_of([
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "192.0.2.0/24",
        "2001:db8::/32",
        "0.0.0.0/0",
        "::/0",
    ]);
    let networks = prop::collection::vec(cidr, 1..3).prop_map(|all| IpList::parse(all).unwrap());
    let limit = (1..40_i64, 1..40_i64).prop_map(|(limit, window)| rate(limit, window));
    (
        prop::option::of(networks),
        prop::option::of(-3..50_i64),
        prop::option::of(limit),
    )
        .prop_map(|(allowed_ips, end, rate_limit)| Restrictions {
            allowed_ips,
            expires_at: end.map(at),
            rate_limit,
            ..Restrictions::default()
        })
}

/// How many uses GCRA allows within `seconds`, both ends included, if the limit was unused before.
fn uses(limit: RateLimit, seconds: u64) -> u64 {
    let (limit, window) = (
        u64::from(limit.limit().get()),
        u64::from(limit.window_seconds().get()),
    );
    limit + seconds * limit / window
}

proptest! {
    #[test]
    fn descendant_never_allows_more_than_its_ancestor(first in any_restrictions(), requests in prop::collection::vec(any_restrictions(), 1..4)) {
        let mut last = parent_key(Mode::Live, first.clone());
        for requested in requests {
            if let Ok(restrictions) = restrict_to_parent(&last, Mode::Live, requested) {
                last.restrictions = restrictions;
            }
        }
        let granted = last.restrictions;
        if let Some(own) = &first.allowed_ips {
            prop_assert!(own.covers(granted.allowed_ips.as_ref().unwrap()));
        }
        if let Some(end) = first.expires_at {
            prop_assert!(granted.expires_at.unwrap() <= end);
        }
        if let Some(own) = first.rate_limit {
            let limit = granted.rate_limit.unwrap();
            prop_assert!((0..2000).all(|seconds| uses(limit, seconds) <= uses(own, seconds)));
        }
    }

    #[test]
    fn rate_limit_is_within_another_if_it_never_allows_more(a in (1..30_i64, 1..30_i64), b in (1..30_i64, 1..30_i64)) {
        let (a, b) = (rate(a.0, a.1), rate(b.0, b.1));
        // These rates differ by at least a thousandth and the bursts by at most 29, so 60,000 seconds show a
        // difference.
        let never_more = (0..60_000).all(|seconds| uses(a, seconds) <= uses(b, seconds));
        prop_assert_eq!(a.is_within(b), never_more, "{:?} {:?}", a, b);
        prop_assert!(a.is_within(a));
    }
}

#[test]
fn largest_rate_limits_are_compared_without_overflow() {
    let (most, least) = (rate(1_000_000, 1), rate(1, 86_400));
    assert!(least.is_within(most) && !most.is_within(least));
    assert!(rate(1_000_000, 86_400).is_within(most) && !most.is_within(rate(1_000_000, 86_400)));
}

/// The tables of the hellgate document.
#[test]
fn operating_model_allows_only_its_documented_features() {
    let forwards = [Feature::PaymentDataForward, Feature::CardholderDataForward];
    let check = |model: OperatingModel, merchants: Option<&str>, features: Option<Vec<Feature>>| {
        let merchants = merchants.map(|merchant| vec![merchant.to_owned()]);
        let restrictions = Restrictions {
            merchants,
            features,
            ..Restrictions::default()
        };
        model
            .check(&restrictions)
            .map_err(|problem| (problem.code.as_str(), problem.code.status()))
    };
    for model in OperatingModel::ALL {
        assert_eq!(check(model, None, None), Ok(()), "{model}: no scoped key");
        let scoped = matches!(
            model,
            OperatingModel::Ecosystem | OperatingModel::ManagedEcosystem
        );
        let expected = if scoped {
            Ok(())
        } else {
            Err(("scoped_keys_unavailable", 403))
        };
        assert_eq!(
            check(model, Some("m_1"), None),
            expected,
            "{model}: merchants alone"
        );
        for feature in Feature::ALL {
            let expected = match model {
                OperatingModel::PrimaryMerchant | OperatingModel::Platform => {
                    Err(("scoped_keys_unavailable", 403))
                }
                OperatingModel::ManagedEcosystem if !forwards.contains(&feature) => {
                    Err(("feature_unavailable", 403))
                }
                OperatingModel::Ecosystem | OperatingModel::ManagedEcosystem => Ok(()),
            };
            for merchants in [None, Some("m_1")] {
                assert_eq!(
                    check(model, merchants, Some(vec![feature])),
                    expected,
                    "{model}: {feature:?}"
                );
                // One unavailable feature is enough to reject a list.
                let several = [&forwards[..], &[feature]].concat();
                assert_eq!(
                    check(model, merchants, Some(several)),
                    expected,
                    "{model}: {feature:?} among others"
                );
            }
        }
        assert_eq!(model.as_str().parse(), Ok(model));
    }
    assert!("Ecosystem".parse::<OperatingModel>().is_err());
    assert_eq!(OperatingModel::default(), OperatingModel::PrimaryMerchant);
}

#[test]
fn features_are_read_in_order_without_duplicates() {
    use Feature::{CardholderDataForward, TokensList};
    let read = |names: &[&str]| {
        Feature::parse_list(names.iter().copied()).map_err(|rule| rule.to_string())
    };
    assert_eq!(
        read(&[
            "cardholder_data.forward",
            "tokens.list",
            "cardholder_data.forward"
        ]),
        Ok(vec![CardholderDataForward, TokensList])
    );
    assert_eq!(
        read(&Feature::ALL.map(Feature::as_str)),
        Ok(Feature::ALL.to_vec())
    );
    assert_eq!(
        read(&[]),
        Err("must not be empty; on creation, omit the field to set no restriction".to_owned())
    );
    let all = Feature::ALL.map(Feature::as_str).join(", ");
    for name in [
        "",
        "*",
        "tokens",
        "tokens.*",
        "Tokens.list",
        " tokens.list",
        "tokens.list ",
    ] {
        assert_eq!(
            read(&["tokens.list", name]),
            Err(format!("must be one of {all}")),
            "{name:?}"
        );
    }
}

#[test]
fn external_ids_are_read_in_order_without_duplicates() {
    let read =
        |texts: &[&str]| text::external_ids(texts.iter().copied()).map_err(|rule| rule.to_string());
    assert_eq!(
        read(&["m_2", "m_1", "m_2"]),
        Ok(vec!["m_2".to_owned(), "m_1".to_owned()])
    );
    // Upper and lower case are different.
    assert_eq!(read(&["m", "M"]).map(|all| all.len()), Ok(2));
    assert_eq!(
        read(&[]),
        Err("must not be empty; on creation, omit the field to set no restriction".to_owned())
    );
    let longest = "a".repeat(128);
    assert!(read(&[&longest]).is_ok());
    for wrong in [
        "",
        " ",
        "*",
        "a b",
        "a,b",
        "é",
        "a/b",
        "a\0",
        &"a".repeat(129),
    ] {
        let rule = "each item must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -";
        assert_eq!(read(&["m_1", wrong]), Err(rule.to_owned()), "{wrong:?}");
    }
    let many: Vec<String> = (0..=text::MAX_EXTERNAL_IDS)
        .map(|i| format!("m_{i}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(read(&many[1..]).is_ok());
    assert_eq!(read(&many), Err("must have at most 100 items".to_owned()));
    assert!(
        read(&[&many[1..], &many[1..]].concat()).is_ok(),
        "duplicates do not count"
    );
}

#[test]
fn overlap_is_at_most_a_week() {
    for seconds in [0, 1, 604_800] {
        assert!(Overlap::parse(seconds).is_ok(), "{seconds}");
    }
    for seconds in [-1, 604_801, i64::MIN, i64::MAX] {
        assert_eq!(
            Overlap::parse(seconds).unwrap_err().to_string(),
            "must be between 0 and 604800",
            "{seconds}"
        );
    }
    assert_eq!(Overlap::default(), Overlap::parse(0).unwrap());
}

#[test]
fn status_is_the_first_that_applies() {
    for (revoked, end, suspended, rotated_at, status) in [
        (false, None, false, None, Status::Active),
        (false, Some(at(1)), false, None, Status::Active),
        (false, Some(at(0)), false, None, Status::Expired),
        (false, Some(at(-1)), true, None, Status::Expired),
        (false, None, true, None, Status::Suspended),
        (false, Some(at(1)), true, None, Status::Suspended),
        (true, None, false, None, Status::Revoked),
        (true, Some(at(-1)), true, Some(at(-1)), Status::Revoked),
        // Rotated, with an overlap that has not ended or has ended.
        (false, Some(at(1)), false, Some(at(-5)), Status::Active),
        (false, Some(at(-1)), false, Some(at(-5)), Status::Expired),
        // Rotated without an overlap, at a time that this clock has not reached: expired anyway.
        (false, Some(at(5)), false, Some(at(5)), Status::Expired),
        (false, Some(at(5)), true, Some(at(5)), Status::Expired),
        (false, Some(at(6)), false, Some(at(5)), Status::Active),
    ] {
        let mut it = key(Family::Commerce, Mode::Live);
        it.revoked_at = revoked.then(now);
        it.suspended_at = suspended.then(now);
        it.restrictions.expires_at = end;
        it.rotated_at = rotated_at;
        assert_eq!(
            it.status(now()),
            status,
            "{revoked} {end:?} {suspended} {rotated_at:?}"
        );
        let check_changeable = match status {
            Status::Revoked => Err(TransitionError::Revoked),
            Status::Expired => Err(TransitionError::Expired),
            Status::Suspended | Status::Active => Ok(()),
        };
        assert_eq!(it.check_changeable(now()), check_changeable);
    }
}

fn generate_key(seed: u64, it: &ApiKey) -> PlainKey {
    PlainKey::generate(CredentialKind::Key(it.family, it.mode), &mut rng(seed))
}

#[test]
fn rotated_key_and_its_successor_refer_to_each_other() {
    let (old, new) = (KeyId::from_bytes([7; 16]), KeyId::from_bytes([8; 16]));
    let week = Overlap::parse(Overlap::MAX_SECONDS).unwrap();
    // The expiration before, the overlap, and the expiration and status after the rotation.
    for (own, overlap, end, status) in [
        (None, Overlap::default(), at(0), Status::Expired),
        (None, Overlap::parse(60).unwrap(), at(60), Status::Active),
        (None, week, at(604_800), Status::Active),
        (
            Some(at(30)),
            Overlap::parse(60).unwrap(),
            at(30),
            Status::Active,
        ),
        (
            Some(at(60)),
            Overlap::parse(60).unwrap(),
            at(60),
            Status::Active,
        ),
        (
            Some(at(90)),
            Overlap::parse(60).unwrap(),
            at(60),
            Status::Active,
        ),
        (Some(at(90)), Overlap::default(), at(0), Status::Expired),
    ] {
        let mut it = key(Family::Commerce, Mode::Test);
        it.name = "Checkout".to_owned();
        it.restrictions = Restrictions {
            scopes: vec![Scope::COMMERCE],
            merchants: Some(vec!["m_1".to_owned()]),
            features: Some(vec![Feature::TokensList]),
            allowed_ips: ips(&["10.0.0.0/8"]),
            rate_limit: Some(rate(5, 60)),
            expires_at: own,
        };
        it.metadata = Some(Metadata::default());
        it.created_by = Some(KeyId::from_bytes([6; 16]));
        it.last_used_at = Some(at(-9));
        let before = it.clone();
        let text = generate_key(1, &it);
        let successor = it.rotate(new, &text, overlap, now()).unwrap();
        assert_eq!(
            (successor.restrictions.clone(), successor.metadata.clone()),
            (before.restrictions.clone(), before.metadata.clone())
        );
        assert_eq!(
            (
                successor.id,
                successor.family,
                successor.mode,
                successor.name.as_str(),
                successor.created_by
            ),
            (
                new,
                Family::Commerce,
                Mode::Test,
                "Checkout",
                before.created_by
            )
        );
        assert_eq!(
            (
                successor.created_at,
                successor.last_used_at,
                successor.revoked_at
            ),
            (now(), None, None)
        );
        assert_eq!(
            (successor.prefix.clone(), successor.last4.clone()),
            (text.shown_prefix(), text.last4())
        );
        assert_eq!(
            (
                successor.rotated_from,
                successor.rotated_to,
                successor.rotated_at
            ),
            (Some(old), None, None)
        );
        assert_eq!(successor.status(now()), Status::Active);
        assert_eq!(
            (it.rotated_from, it.rotated_to, it.rotated_at),
            (None, Some(new), Some(now()))
        );
        assert_eq!(
            (it.restrictions.expires_at, it.status(now())),
            (Some(end), status)
        );
        assert_eq!(it.status(end), Status::Expired);
        // Nothing else was changed.
        let rest = ApiKey {
            rotated_to: None,
            rotated_at: None,
            restrictions: before.restrictions.clone(),
            ..it.clone()
        };
        assert_eq!(rest, before);
        // It cannot be rotated again, but its successor can.
        let again = it.rotate(KeyId::from_bytes([9; 16]), &text, week, now());
        let expected = if status == Status::Expired {
            TransitionError::Expired
        } else {
            TransitionError::AlreadyRotated
        };
        assert_eq!(again.unwrap_err(), expected);
        let mut successor = successor;
        assert!(
            successor
                .rotate(KeyId::from_bytes([9; 16]), &text, week, now())
                .is_ok()
        );
    }
}

#[test]
fn rejected_rotation_does_not_change_the_key() {
    type Edit = fn(&mut ApiKey);
    let edits: [(Edit, TransitionError); 5] = [
        (|it| it.revoked_at = Some(now()), TransitionError::Revoked),
        (
            |it| it.restrictions.expires_at = Some(now()),
            TransitionError::Expired,
        ),
        (
            |it| it.suspended_at = Some(now()),
            TransitionError::Suspended,
        ),
        (
            |it| it.rotated_to = Some(KeyId::from_bytes([9; 16])),
            TransitionError::AlreadyRotated,
        ),
        (
            |it| (it.suspended_at, it.rotated_to) = (Some(now()), Some(KeyId::from_bytes([9; 16]))),
            TransitionError::Suspended,
        ),
    ];
    for (edit, expected) in edits {
        let mut it = key(Family::Commerce, Mode::Live);
        edit(&mut it);
        let before = it.clone();
        let text = generate_key(1, &it);
        let rejected = it.rotate(KeyId::from_bytes([8; 16]), &text, Overlap::default(), now());
        assert_eq!((rejected.unwrap_err(), it), (expected, before));
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is not an object"),
    }
}

/// RFC 7396, appendix A: the test cases whose original and patch are objects.
#[test]
fn metadata_is_merged_as_rfc_7396_specifies() {
    for (original, patch, result) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (
            json!({"a": "b"}),
            json!({"b": "c"}),
            json!({"a": "b", "b": "c"}),
        ),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (
            json!({"a": "b", "b": "c"}),
            json!({"a": null}),
            json!({"b": "c"}),
        ),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        ),
        (
            json!({"a": [{"b": "c"}]}),
            json!({"a": [1]}),
            json!({"a": [1]}),
        ),
        (
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        ),
        (
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        ),
        // The example of section 3, without its unchanged field.
        (
            json!({"title": "Goodbye!", "author": {"givenName": "John", "familyName": "Doe"}, "tags": ["example", "sample"]}),
            json!({"title": "Hello!", "phoneNumber": "+01-123-456-7890", "author": {"familyName": null}, "tags": ["example"]}),
            json!({"title": "Hello!", "author": {"givenName": "John"}, "tags": ["example"], "phoneNumber": "+01-123-456-7890"}),
        ),
        (json!({"a": 1}), json!({}), json!({"a": 1})),
    ] {
        let merged = Metadata::new(object(original.clone()))
            .unwrap()
            .merged(object(patch.clone()))
            .unwrap();
        assert_eq!(merged.object(), object(result), "{original} {patch}");
    }
    // The result must fit, not only the patch.
    let full = Metadata::new(object(json!({"a": "x".repeat(4000)}))).unwrap();
    let rejected = full.merged(object(json!({"b": "y".repeat(200)})));
    assert_eq!(
        rejected.unwrap_err().to_string(),
        "must be at most 4096 bytes of JSON"
    );
    assert!(
        full.merged(object(json!({"a": null, "b": "y".repeat(4000)})))
            .is_ok()
    );
    assert!(full.merged(object(json!({"b": "\0"}))).is_err());
}
