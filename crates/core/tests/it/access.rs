//! `decide` as the tables of the documents define it: each of their rows is a row here.

use tollkey_core::{
    Application, ApplicationId, Catalogue, Denial, Family, IpList, KeyContext, Mode,
    OperatingModel, Scope, Timestamp, feature::Feature,
};

use crate::support::{Request, account, key, now, record};

/// hellgate, "Scoped API Keys": the endpoint of each feature, with an example ID.
const FEATURES: [(Feature, &str, &str); 5] = [
    (Feature::TokensList, "GET", "/tokens"),
    (Feature::TokensRetrieve, "GET", "/tokens/tok_1"),
    (
        Feature::PaymentDataList,
        "GET",
        "/tokens/tok_1/payment-data",
    ),
    (
        Feature::PaymentDataForward,
        "POST",
        "/payment-data/pd_1/forward",
    ),
    (Feature::CardholderDataForward, "POST", "/forward"),
];

/// hellgate, "Ecosystems" and "Managed Ecosystems": which of these five features each operating model has.
const MODELS: [(OperatingModel, [bool; 5]); 4] = [
    (OperatingModel::PrimaryMerchant, [false; 5]),
    (OperatingModel::Platform, [false; 5]),
    (OperatingModel::Ecosystem, [true; 5]),
    (
        OperatingModel::ManagedEcosystem,
        [false, false, false, true, true],
    ),
];

fn scoped(
    model: OperatingModel,
    merchants: Option<&[&str]>,
    features: Option<&[Feature]>,
) -> KeyContext {
    let mut key = key(Family::Commerce, Mode::Live);
    key.restrictions.scopes = vec![Scope::COMMERCE];
    key.restrictions.merchants = merchants.map(|all| all.iter().map(|&m| m.to_owned()).collect());
    key.restrictions.features = features.map(<[Feature]>::to_vec);
    KeyContext::new(key, None, model, &Catalogue::default())
}

fn denied_route_unless(allowed: bool) -> Result<(), Denial> {
    if allowed {
        Ok(())
    } else {
        Err(Denial::RouteNotAllowed)
    }
}

#[test]
fn feature_allows_its_endpoint_if_the_operating_model_has_it() {
    for (model, available) in MODELS {
        for (i, (feature, ..)) in FEATURES.into_iter().enumerate() {
            let record = scoped(model, None, Some(&[feature]));
            for (j, (_, method, path)) in FEATURES.into_iter().enumerate() {
                let expected = denied_route_unless(i == j && available[i]);
                for path in [
                    path.to_owned(),
                    format!("/api{path}"),
                    format!("{path}?page=2"),
                ] {
                    let decision = Request::new(method, &path).decide(&record).map(drop);
                    assert_eq!(
                        decision, expected,
                        "{model}: {feature:?} for {method} {path}"
                    );
                }
            }
        }
        assert_eq!(
            available.map(|a| a as usize).iter().sum::<usize>(),
            model.features().len(),
            "{model}"
        );
    }
}

#[test]
fn merchants_alone_allow_all_features_of_the_operating_model() {
    for (model, available) in MODELS {
        let record = scoped(model, Some(&["m-1", "m-2"]), None);
        for (i, (_, method, path)) in FEATURES.into_iter().enumerate() {
            for merchant in ["m-1", "m-2"] {
                let decision = Request::new(method, path)
                    .merchant(merchant)
                    .decide(&record)
                    .map(|m| m.is_some());
                assert_eq!(
                    decision,
                    denied_route_unless(available[i]).map(|()| true),
                    "{model}: {method} {path}"
                );
            }
        }
    }
}

#[test]
fn several_features_allow_exactly_their_endpoints() {
    let record = scoped(
        OperatingModel::Ecosystem,
        None,
        Some(&[Feature::TokensList, Feature::CardholderDataForward]),
    );
    let allowed = FEATURES.map(|(_, method, path)| Request::new(method, path).is_allowed(&record));
    assert_eq!(allowed, [true, false, false, false, true]);
}

#[test]
fn scoped_key_cannot_call_other_endpoints() {
    let record = scoped(OperatingModel::Ecosystem, None, Some(&Feature::ALL));
    for (method, path) in [
        ("POST", "/tokens"),
        ("DELETE", "/tokens/tok_1"),
        ("POST", "/tokens/tok_1/payment-data"),
        ("GET", "/tokens/tok_1/payment-data/pd_1"),
        ("GET", "/payment-data/pd_1/forward"),
        ("HEAD", "/forward"),
        ("POST", "/payment-data/forward"),
        ("POST", "/payment-data/pd_1"),
        ("POST", "/forward/pd_1"),
        ("POST", "/payment-data/../forward"),
        ("get", "/tokens"),
        ("GET", "/tokens/"),
        ("GET", "/"),
        ("GET", "/api/v1/api-keys"),
    ] {
        assert_eq!(
            Request::new(method, path).decide(&record),
            Err(Denial::RouteNotAllowed),
            "{method} {path}"
        );
    }
}

/// storlaunch, "Key types recap".
#[test]
fn publishable_key_allows_only_the_public_catalogue() {
    let rows = [
        ("GET", "/v1/storefront/public/categories", true),
        ("HEAD", "/v1/storefront/public/categories", true),
        ("GET", "/v1/storefront/public/categories/c_1/products", true),
        ("GET", "/api/v1/storefront/public/categories", true),
        ("GET", "/v1/storefront/products", true),
        ("GET", "/v1/storefront/products?limit=2", true),
        ("GET", "/v1/storefront/products/p_1", true),
        ("HEAD", "/v1/storefront/products/p_1", true),
        ("GET", "/v1/storefront/public", false),
        ("GET", "/v1/storefront/public/", false),
        ("POST", "/v1/storefront/public/categories", false),
        ("POST", "/v1/storefront/products", false),
        ("PATCH", "/v1/storefront/products/p_1", false),
        ("DELETE", "/v1/storefront/products/p_1", false),
        ("OPTIONS", "/v1/storefront/products", false),
        ("GET", "/v1/storefront/products/p_1/reviews", false),
        ("GET", "/v1/storefront/public/../orders", false),
        ("GET", "/v1/storefront/public/%2e%2e/orders", false),
        ("GET", "/v1/storefront/public//orders", false),
        ("GET", "/v1/storefront/orders", false),
        ("GET", "/v1/account/api-keys", false),
        ("POST", "/v1/account/api-keys", false),
        ("GET", "/tokens", false),
        ("GET", "/", false),
    ];
    for mode in Mode::ALL {
        let record = record(key(Family::Publishable, mode));
        for (method, path, allowed) in rows {
            let decision = Request::new(method, path).decide(&record).map(drop);
            assert_eq!(decision, denied_route_unless(allowed), "{method} {path}");
        }
        let scoped = Request::new("GET", "/v1/storefront/products").scopes(&["events:read"]);
        assert_eq!(
            scoped.decide(&record),
            Err(Denial::InsufficientScope),
            "a publishable key has no scopes"
        );
    }
}

/// crypto-checkout, "Available scopes": nine scopes; `write` does not imply `read`.
const NINE: [&str; 9] = [
    "links:read",
    "links:write",
    "sessions:read",
    "sessions:write",
    "webhooks:read",
    "webhooks:write",
    "events:read",
    "customers:read",
    "customers:write",
];

fn with_scopes(family: Family, names: &[&str]) -> KeyContext {
    let mut key = key(family, Mode::Live);
    key.restrictions.scopes = Catalogue::default()
        .parse_list(names.iter().copied())
        .unwrap();
    record(key)
}

#[test]
fn each_of_the_nine_scopes_allows_only_itself() {
    for family in [Family::Commerce, Family::Application] {
        for held in NINE {
            let record = with_scopes(family, &[held]);
            for required in NINE.into_iter().chain(["commerce"]) {
                let expected = if held == required {
                    Ok(None)
                } else {
                    Err(Denial::InsufficientScope)
                };
                let request = Request::default().scopes(&[required]);
                assert_eq!(request.decide(&record), expected, "{held} for {required}");
            }
        }
        let all_nine = with_scopes(family, &NINE);
        assert!(Request::default().scopes(&NINE).is_allowed(&all_nine));
        assert!(
            !Request::default()
                .scopes(&["commerce"])
                .is_allowed(&all_nine),
            "the nine scopes do not imply commerce"
        );
        let commerce = with_scopes(family, &["commerce"]);
        for required in NINE.into_iter().chain(["commerce"]) {
            assert!(
                Request::default().scopes(&[required]).is_allowed(&commerce),
                "commerce for {required}"
            );
        }
    }
}

#[test]
fn key_without_one_of_the_required_scopes_is_denied() {
    let record = with_scopes(Family::Commerce, &["links:read", "events:read"]);
    let decision = |names: &[&str]| Request::default().scopes(names).decide(&record).map(drop);
    assert_eq!(decision(&[]), Ok(()));
    assert_eq!(decision(&["links:read", "events:read"]), Ok(()));
    assert_eq!(
        decision(&["links:read", "links:write"]),
        Err(Denial::InsufficientScope)
    );
}

#[test]
fn secret_key_has_every_scope() {
    let record = record(key(Family::Secret, Mode::Live));
    assert!(
        Request::new("DELETE", "/anything")
            .scopes(&NINE)
            .is_allowed(&record)
    );
    assert!(Request::default().scopes(&["commerce"]).is_allowed(&record));
}

#[test]
fn key_of_the_other_mode_is_denied() {
    for family in [Family::Commerce, Family::Application, Family::Secret] {
        for own in Mode::ALL {
            let record = record(key(family, own));
            for required in Mode::ALL {
                let request = Request {
                    mode: Some(required),
                    ..Request::default()
                };
                let expected = if own == required {
                    Ok(None)
                } else {
                    Err(Denial::WrongMode)
                };
                assert_eq!(
                    request.decide(&record),
                    expected,
                    "{own:?} where {required:?} is required"
                );
            }
            assert!(
                Request::default().is_allowed(&record),
                "both modes are allowed if no mode is required"
            );
        }
    }
}

/// A denial, and the edits of a request or key each of which causes it.
type Breakage = (Denial, &'static [fn(&mut KeyContext, &mut Request)]);

/// Every denial that `decide` returns, with all of its causes.
const BREAKAGES: [Breakage; 10] = [
    (
        Denial::UnknownKey,
        &[
            |_, request| request.viewer = Some((account("other"), None)),
            |_, request| request.viewer = Some((account("acme"), Some(Mode::Test))),
        ],
    ),
    (
        Denial::Revoked,
        &[|record, _| record.key.revoked_at = Some(now())],
    ),
    (
        Denial::Expired,
        &[|record, _| record.key.restrictions.expires_at = Some(now())],
    ),
    (
        Denial::Suspended,
        &[|record, _| record.key.suspended_at = Some(now())],
    ),
    (
        Denial::ApplicationDisabled,
        &[|record, _| record.application_enabled = false],
    ),
    (
        Denial::WrongMode,
        &[|_, request| request.mode = Some(Mode::Test)],
    ),
    (
        Denial::IpNotAllowed,
        &[
            |_, request| request.client_ip = None,
            |_, request| request.client_ip = Some("198.51.100.1".parse().unwrap()),
        ],
    ),
    (
        Denial::RouteNotAllowed,
        &[
            |_, request| request.method = None,
            |_, request| request.path = None,
            |_, request| request.path = Some("/tokens/..".into()),
            |record, _| record.operating_model = OperatingModel::Platform,
        ],
    ),
    (
        Denial::MerchantNotAllowed,
        &[
            |_, request| request.merchant = None,
            |_, request| request.merchant = Some("m-2".into()),
        ],
    ),
    (
        Denial::InsufficientScope,
        &[|record, _| record.scopes = Default::default()],
    ),
];

/// A key with every restriction, and a request that satisfies all of them.
fn restricted() -> (KeyContext, Request) {
    let mut record = scoped(
        OperatingModel::Ecosystem,
        Some(&["m-1"]),
        Some(&[Feature::TokensList]),
    );
    record.key.restrictions.allowed_ips = Some(IpList::parse(["203.0.113.0/24"]).unwrap());
    record.key.restrictions.expires_at = Some(now() + std::time::Duration::from_micros(1));
    let request = Request {
        viewer: Some((account("acme"), Some(Mode::Live))),
        mode: Some(Mode::Live),
        client_ip: Some("203.0.113.9".parse().unwrap()),
        ..Request::new("GET", "/tokens")
            .merchant("m-1")
            .scopes(&["commerce"])
    };
    (record, request)
}

#[test]
fn first_denial_in_order_is_reported() {
    assert_first_denial(false, |_| true);
}

/// The denials up to `IpNotAllowed` still apply.
#[test]
fn identity_request_ignores_routes_merchants_and_scopes() {
    assert_first_denial(true, |denial| denial <= Denial::IpNotAllowed);
}

/// The OpenAPI document describes the code of a denial as a string of at least 6 characters, which `valid` is not.
#[test]
fn code_of_a_denial_is_longer_than_valid() {
    for denial in Denial::ALL {
        assert!(denial.code().len() >= 6, "{denial}");
    }
}

fn assert_first_denial(identity_only: bool, matters: fn(Denial) -> bool) {
    assert_eq!(BREAKAGES.map(|(denial, _)| denial)[..], Denial::ALL[..10]);
    // Every combination of edits: digit d of `combination` is 0 for no edit, otherwise the number of the edit.
    let combinations: usize = BREAKAGES.iter().map(|(_, edits)| edits.len() + 1).product();
    for combination in 0..combinations {
        let (mut record, mut request) = restricted();
        request.identity_only = identity_only;
        let mut rest = combination;
        let mut expected = Ok(());
        for (denial, edits) in BREAKAGES {
            let edit = rest % (edits.len() + 1);
            rest /= edits.len() + 1;
            if edit > 0 {
                edits[edit - 1](&mut record, &mut request);
                expected = expected.and(if matters(denial) { Err(denial) } else { Ok(()) });
            }
        }
        assert_eq!(
            request.decide(&record).map(drop),
            expected,
            "{record:?} {request:?}"
        );
    }
}

#[test]
fn request_without_a_value_that_a_restriction_needs_is_denied() {
    let empty = Request::default();
    let granted = Ok(None);

    let features = scoped(OperatingModel::Ecosystem, None, Some(&Feature::ALL));
    let only_method = Request {
        method: Some("GET".into()),
        ..Request::default()
    };
    let only_path = Request {
        path: Some("/tokens".into()),
        ..Request::default()
    };
    for request in [&empty, &only_method, &only_path] {
        assert_eq!(
            request.decide(&features),
            Err(Denial::RouteNotAllowed),
            "{request:?}"
        );
        assert_eq!(
            request.decide(&record(key(Family::Publishable, Mode::Live))),
            Err(Denial::RouteNotAllowed)
        );
        assert_eq!(
            request.decide(&record(key(Family::Commerce, Mode::Live))),
            granted
        );
    }

    let merchants = scoped(OperatingModel::Ecosystem, Some(&["m-1"]), None);
    assert_eq!(empty.decide(&merchants), Err(Denial::RouteNotAllowed));
    assert_eq!(
        Request::new("GET", "/tokens").decide(&merchants),
        Err(Denial::MerchantNotAllowed)
    );

    let mut ip_limited = record(key(Family::Secret, Mode::Live));
    ip_limited.key.restrictions.allowed_ips = Some(IpList::parse(["0.0.0.0/0", "::/0"]).unwrap());
    assert_eq!(empty.decide(&ip_limited), Err(Denial::IpNotAllowed));
    let from = |ip: &str| Request {
        client_ip: Some(ip.parse().unwrap()),
        ..Request::default()
    };
    assert_eq!(from("203.0.113.9").decide(&ip_limited), granted);
    assert_eq!(from("2001:db8::1").decide(&ip_limited), granted);
}

#[test]
fn merchants_are_compared_exactly() {
    let record = scoped(OperatingModel::Ecosystem, Some(&["m-1", "Shop"]), None);
    for (merchant, allowed) in [
        ("m-1", true),
        ("Shop", true),
        ("shop", false),
        ("m-1 ", false),
        ("m-1,Shop", false),
        ("m-11", false),
        ("", false),
    ] {
        let decision = Request::new("GET", "/tokens")
            .merchant(merchant)
            .decide(&record)
            .map(drop);
        assert_eq!(
            decision,
            if allowed {
                Ok(())
            } else {
                Err(Denial::MerchantNotAllowed)
            },
            "{merchant:?}"
        );
    }
}

#[test]
fn key_without_merchants_allows_any_well_formed_merchant() {
    let record = record(key(Family::Commerce, Mode::Live));
    let decision = |merchant: &str| Request::default().merchant(merchant).decide(&record);
    assert_eq!(decision("m-1"), Ok(Some("m-1".to_owned())));
    for malformed in ["", "a b", "a\r\nx: y", "é", &"m".repeat(129)] {
        assert_eq!(
            decision(malformed),
            Err(Denial::MerchantNotAllowed),
            "{malformed:?}"
        );
    }
}

#[test]
fn viewer_sees_only_its_account_and_its_mode() {
    let rows = [
        (None, Mode::Live, true),
        (None, Mode::Test, true),
        (Some(("acme", None)), Mode::Live, true),
        (Some(("acme", None)), Mode::Test, true),
        (Some(("acme", Some(Mode::Test))), Mode::Test, true),
        (Some(("acme", Some(Mode::Test))), Mode::Live, false),
        (Some(("Acme", None)), Mode::Live, false),
        (Some(("other", None)), Mode::Live, false),
        (Some(("other", Some(Mode::Test))), Mode::Test, false),
    ];
    for (viewer, mode, visible) in rows {
        let request = Request {
            viewer: viewer.map(|(id, mode)| (account(id), mode)),
            ..Request::default()
        };
        let expected = if visible {
            Ok(None)
        } else {
            Err(Denial::UnknownKey)
        };
        assert_eq!(
            request.decide(&record(key(Family::Commerce, mode))),
            expected,
            "{viewer:?} {mode:?}"
        );
    }
}

#[test]
fn key_is_denied_from_its_expiration_on() {
    let expires_in = |micros: i64| {
        let mut key = key(Family::Commerce, Mode::Live);
        key.restrictions.expires_at =
            Some(Timestamp::from_microsecond(now().as_microsecond() + micros).unwrap());
        Request::default().decide(&record(key)).map(drop)
    };
    assert_eq!(expires_in(1), Ok(()));
    assert_eq!(expires_in(0), Err(Denial::Expired));
    assert_eq!(expires_in(-1), Err(Denial::Expired));
}

#[test]
fn keys_of_a_disabled_application_are_denied() {
    let id = ApplicationId::from_bytes([1; 16]);
    let mut application = Application {
        id,
        account_id: account("acme"),
        name: "Web store".into(),
        description: None,
        is_enabled: false,
        created_at: now(),
    };
    let mut key = key(Family::Application, Mode::Live);
    key.application_id = Some(id);
    let decision = |application: &Application| {
        let record = KeyContext::new(
            key.clone(),
            Some(application),
            OperatingModel::default(),
            &Catalogue::default(),
        );
        Request::default().decide(&record).map(drop)
    };
    assert_eq!(decision(&application), Err(Denial::ApplicationDisabled));
    application.is_enabled = true;
    assert_eq!(decision(&application), Ok(()));
}

#[test]
fn operating_model_limits_only_scoped_keys() {
    for (model, _) in MODELS {
        let record = KeyContext::new(
            key(Family::Commerce, Mode::Live),
            None,
            model,
            &Catalogue::default(),
        );
        assert!(
            Request::new("DELETE", "/anything/at/all").is_allowed(&record),
            "{model}"
        );
    }
}
