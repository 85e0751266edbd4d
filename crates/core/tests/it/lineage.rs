//! What a key inherits from its ancestors, row by row.

use std::net::IpAddr;

use tollkey_core::{
    ApiKey, Denial, Family, IpList, KeyId, Mode, Problem, RateLimit, Restrictions, Status,
    Timestamp,
    api_key::{Transition, TransitionError},
    ceiling::AncestorLimit,
    lineage::{APPLICATION_DELETED, PARENT_REVOKED},
};

use crate::support::{Request, key, now, record};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

fn secret(number: u8) -> ApiKey {
    ApiKey {
        id: KeyId::from_bytes([number; 16]),
        ..key(Family::Secret, Mode::Live)
    }
}

fn ips(list: &[&str]) -> IpList {
    IpList::parse(list.iter().copied()).unwrap()
}

fn from(address: &str) -> Request {
    Request {
        client_ip: Some(address.parse::<IpAddr>().unwrap()),
        ..Request::default()
    }
}

/// A descendant of these ancestors, the root first.
fn descendant(ancestors: &[ApiKey]) -> ApiKey {
    secret(9).with_ancestors(ancestors)
}

#[test]
fn restriction_of_any_ancestor_denies_the_key() {
    let revoked = ApiKey {
        revoked_at: Some(at(-1)),
        ..secret(1)
    };
    let restrictions = |expires_at| Restrictions {
        expires_at,
        ..Restrictions::default()
    };
    let expired = ApiKey {
        restrictions: restrictions(Some(at(0))),
        ..secret(1)
    };
    let rotated = ApiKey {
        restrictions: restrictions(Some(at(50))),
        rotated_at: Some(at(50)),
        ..secret(1)
    };
    let expiring_later = ApiKey {
        restrictions: restrictions(Some(at(1))),
        ..secret(1)
    };
    let suspended = ApiKey {
        suspended_at: Some(at(-1)),
        ..secret(1)
    };
    let ip_limited = ApiKey {
        restrictions: Restrictions {
            allowed_ips: Some(ips(&["203.0.113.0/24"])),
            ..Restrictions::default()
        },
        ..secret(1)
    };
    let rows: [(&[&ApiKey], Result<(), Denial>); 12] = [
        (&[], Ok(())),
        (&[&expiring_later], Ok(())),
        (&[&revoked], Err(Denial::Revoked)),
        (&[&expired], Err(Denial::Expired)),
        (&[&rotated], Err(Denial::Expired)),
        (&[&suspended], Err(Denial::Suspended)),
        (&[&ip_limited], Err(Denial::IpNotAllowed)),
        // The first code that applies to any ancestor, whatever the order of the ancestors.
        (&[&suspended, &expired, &revoked], Err(Denial::Revoked)),
        (&[&revoked, &expired, &suspended], Err(Denial::Revoked)),
        (&[&suspended, &expired], Err(Denial::Expired)),
        (&[&ip_limited, &suspended], Err(Denial::Suspended)),
        (&[&expiring_later, &expiring_later], Ok(())),
    ];
    for (ancestors, expected) in rows {
        let key = secret(9).with_ancestors(ancestors.iter().copied());
        let decision = from("198.51.100.7").decide(&record(key)).map(drop);
        assert_eq!(decision, expected, "{ancestors:?}");
    }
}

#[test]
fn client_must_be_in_the_allowlist_of_every_ancestor() {
    let with = |number, list: &[&str]| ApiKey {
        restrictions: Restrictions {
            allowed_ips: Some(ips(list)),
            ..Restrictions::default()
        },
        ..secret(number)
    };
    let own = with(9, &["203.0.113.128/25", "2001:db8::/32"]);
    let key = own.with_ancestors(&[
        with(1, &["203.0.113.0/24", "198.51.100.0/24"]),
        with(2, &["203.0.113.192/26"]),
    ]);
    let record = record(key.clone());
    for (address, allowed) in [
        ("203.0.113.200", true),
        ("203.0.113.130", false),
        ("203.0.113.5", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(from(address).decide(&record).is_ok(), allowed, "{address}");
    }
    assert_eq!(
        Request::default().decide(&record),
        Err(Denial::IpNotAllowed),
        "a client with an unknown address"
    );
    assert_eq!(key.effective_allowlist(), Some(ips(&["203.0.113.192/26"])));
    assert_eq!(secret(1).effective_allowlist(), None);
}

#[test]
fn disjoint_allowlists_allow_no_client() {
    let none = ips(&["203.0.113.0/24"]).intersection(&ips(&["198.51.100.0/24", "2001:db8::/32"]));
    assert_eq!(none, ips(&["255.255.255.255/32"]));
    let both = ips(&["10.0.0.0/8", "2001:db8::/32"]).intersection(&ips(&[
        "10.1.0.0/16",
        "10.2.0.0/16",
        "::/0",
    ]));
    assert_eq!(both, ips(&["10.1.0.0/16", "10.2.0.0/16", "2001:db8::/32"]));
}

/// Otherwise a subscriber of an earlier release, which reads at most 100 IP ranges, could not read the key.
#[test]
fn intersection_of_nested_lists_is_not_longer_than_the_inner() {
    let list = |second: u8| {
        let narrow = (0..98).map(|third| format!("10.{second}.{third}.0/24"));
        let all: Vec<String> = ["127.0.0.0/8".to_owned(), "10.0.0.0/8".to_owned()]
            .into_iter()
            .chain(narrow)
            .collect();
        IpList::parse(all.iter().map(String::as_str)).unwrap()
    };
    let (parent, child) = (list(0), list(1));
    assert!(parent.covers(&child));
    assert_eq!(
        parent.intersection(&child),
        ips(&["127.0.0.0/8", "10.0.0.0/8"])
    );
}

#[test]
fn use_counts_against_the_limits_of_all_ancestors_root_first() {
    let limit = |uses| RateLimit::new(uses, 60).unwrap();
    let with = |number, uses| ApiKey {
        restrictions: Restrictions {
            rate_limit: Some(limit(uses)),
            ..Restrictions::default()
        },
        ..secret(number)
    };
    let key = with(9, 1).with_ancestors(&[with(1, 3), secret(2), with(3, 2)]);
    let id = |number| KeyId::from_bytes([number; 16]);
    assert_eq!(
        key.rate_limits().collect::<Vec<_>>(),
        [(id(1), limit(3)), (id(3), limit(2)), (id(9), limit(1))]
    );
}

#[test]
fn key_inherits_the_earliest_revocation_and_records_it_once() {
    let revoked = |number, seconds| ApiKey {
        revoked_at: Some(at(seconds)),
        ..secret(number)
    };
    let mut key = descendant(&[revoked(1, -5), revoked(2, -9)]);
    let revocation = key.revocation().unwrap();
    assert_eq!(
        (revocation.at, revocation.reason),
        (at(-9), Some(PARENT_REVOKED))
    );
    // A repeated revocation changes nothing, and the key can be neither changed nor suspended.
    assert_eq!(
        key.revoke(now(), Some("leaked".to_owned())),
        Transition::Unchanged
    );
    assert_eq!(
        (key.suspend(now()), key.resume()),
        (Err(TransitionError::Revoked), Err(TransitionError::Revoked))
    );
    assert_eq!(key.check_changeable(now()), Err(TransitionError::Revoked));
    assert_eq!(key.revoked_at, None);

    assert_eq!(key.record_inherited_revocation(), Transition::Changed);
    assert_eq!(
        (key.revoked_at, key.revoked_reason.as_deref()),
        (Some(at(-9)), Some(PARENT_REVOKED))
    );
    assert_eq!(key.record_inherited_revocation(), Transition::Unchanged);
    assert_eq!(
        descendant(&[secret(1)]).record_inherited_revocation(),
        Transition::Unchanged
    );
}

#[test]
fn own_revocation_takes_precedence_over_inherited_ones() {
    let own = ApiKey {
        revoked_at: Some(at(-1)),
        revoked_reason: Some("leaked".to_owned()),
        ..secret(9)
    };
    let key = own.with_ancestors(&[ApiKey {
        revoked_at: Some(at(-5)),
        ..secret(1)
    }]);
    let revocation = key.revocation().unwrap();
    assert_eq!((revocation.at, revocation.reason), (at(-1), Some("leaked")));
}

#[test]
fn deleted_application_revokes_keys_that_had_not_expired() {
    let expiring = |end| ApiKey {
        restrictions: Restrictions {
            expires_at: end,
            ..Restrictions::default()
        },
        ..secret(9)
    };
    for (end, status) in [
        (None, Status::Revoked),
        (Some(at(5)), Status::Revoked),
        (Some(at(-4)), Status::Revoked), // it expired after the deletion
        (Some(at(-5)), Status::Expired),
        (Some(at(-6)), Status::Expired),
    ] {
        let key = expiring(end).with_deleted_application(at(-5));
        assert_eq!(key.status(now()), status, "{end:?}");
        assert_eq!(
            key.revocation().and_then(|it| it.reason),
            (status == Status::Revoked).then_some(APPLICATION_DELETED)
        );
    }
}

#[test]
fn ancestors_without_restrictions_do_not_change_a_key() {
    assert_eq!(descendant(&[secret(1), secret(2)]), secret(9));
}

#[test]
fn key_at_the_depth_limit_creates_no_keys() {
    for (limit, ancestors, allowed) in [
        (0, 0, false),
        (1, 0, true),
        (1, 1, false),
        (3, 2, true),
        (3, 3, false),
        (3, 6_000, false),
        (8, 7, true),
        (8, 8, false),
    ] {
        let checked = AncestorLimit::new(limit).unwrap().check(ancestors);
        assert_eq!(
            checked.is_ok(),
            allowed,
            "{ancestors} ancestors with a limit of {limit}"
        );
        if let Err(beyond) = checked {
            assert_eq!(
                Problem::from(beyond).code.as_str(),
                "key_depth_limit_reached"
            );
        }
    }
    assert!(AncestorLimit::new(9).is_err());
    assert_eq!(AncestorLimit::default(), AncestorLimit::new(3).unwrap());
}
