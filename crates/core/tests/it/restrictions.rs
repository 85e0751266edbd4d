//! An additional restriction never allows a request that was denied without it.

use std::net::IpAddr;

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use tollkey_core::{
    Family, IpList, KeyContext, Mode, OperatingModel, Scope, ScopeSet, feature::Feature,
};

use crate::support::{Request, account, key, needed, now, one_of, record};

const MERCHANTS: [&str; 3] = ["m-1", "m-2", "m-3"];
const NETWORKS: [&str; 4] = [
    "203.0.113.0/24",
    "203.0.113.128/25",
    "2001:db8::/32",
    "0.0.0.0/0",
];
const PATHS: [&str; 12] = [
    "/tokens",
    "/api/tokens",
    "/tokens/tok_1",
    "/tokens/tok_1/payment-data",
    "/payment-data/pd_1/forward",
    "/forward",
    "/v1/storefront/products",
    "/v1/storefront/products/p_1",
    "/v1/storefront/public/a/b",
    "/orders",
    "/tokens/..",
    "",
];

fn some_of<T: Clone + std::fmt::Debug + 'static>(
    items: &'static [T],
) -> impl Strategy<Value = Vec<T>> {
    prop::sample::subsequence(items, 1..=items.len())
}

fn networks() -> impl Strategy<Value = IpList> {
    some_of(&NETWORKS).prop_map(|cidrs| IpList::parse(cidrs).unwrap())
}

fn merchants() -> impl Strategy<Value = Vec<String>> {
    some_of(&MERCHANTS).prop_map(|all| all.into_iter().map(str::to_owned).collect())
}

fn scopes() -> impl Strategy<Value = Vec<Scope>> {
    prop::sample::subsequence(Scope::BUILT_IN.to_vec(), 0..3)
}

fn needed_scopes() -> impl Strategy<Value = ScopeSet> {
    scopes().prop_map(|scopes| needed(&scopes.iter().map(Scope::as_str).collect::<Vec<_>>()))
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.05)
}

prop_compose! {
    fn any_record()(
        family in one_of(Family::ALL), mode in one_of(Mode::ALL), model in one_of(OperatingModel::ALL),
        scopes in prop_oneof![2 => Just(vec![Scope::COMMERCE]), 1 => scopes()],
        merchants in prop::option::of(merchants()), features in prop::option::of(some_of(&Feature::ALL)),
        allowed_ips in prop::option::of(networks()),
        (revoked, expired, suspended, disabled) in (rarely(), rarely(), rarely(), rarely()),
    ) -> KeyContext {
        let mut key = key(family, mode);
        key.restrictions.scopes = scopes;
        if family == Family::Commerce {
            (key.restrictions.merchants, key.restrictions.features) = (merchants, features);
        }
        key.restrictions.allowed_ips = allowed_ips;
        key.restrictions.expires_at = expired.then(now);
        key.revoked_at = revoked.then(now);
        key.suspended_at = suspended.then(now);
        KeyContext { application_enabled: !disabled, operating_model: model, ..record(key) }
    }
}

prop_compose! {
    fn any_request()(
        viewer in prop::option::weighted(0.2, (one_of(["acme", "acme", "other"]), prop::option::of(one_of(Mode::ALL)))),
        identity_only in rarely(), scopes in needed_scopes(), mode in prop::option::weighted(0.3, one_of(Mode::ALL)),
        method in prop::option::weighted(0.9, one_of(["GET", "POST", "HEAD"])),
        path in prop::option::weighted(0.9, one_of(PATHS)),
        merchant in prop::option::weighted(0.8, one_of(["m-1", "m-2", "m-3", "m-4", "a b"])),
        client_ip in prop::option::weighted(
            0.8, one_of(["203.0.113.1", "203.0.113.200", "::ffff:203.0.113.1", "192.0.2.1", "2001:db8::1", "2001:db9::1"])
        ),
    ) -> Request {
        Request {
            viewer: viewer.map(|(id, mode)| (account(id), mode)),
            identity_only,
            scopes,
            mode,
            method: method.map(str::to_owned),
            path: path.map(str::to_owned),
            merchant: merchant.map(str::to_owned),
            client_ip: client_ip.map(|ip| ip.parse::<IpAddr>().unwrap()),
        }
    }
}

/// A restriction of a key or requirement of a request, which must never allow more.
#[derive(Debug, Clone)]
enum Restriction {
    Networks(IpList),
    Merchants(Vec<String>),
    Features(Vec<Feature>),
    ManagedEcosystem,
    NoEcosystem,
    Expire,
    Suspend,
    Revoke,
    DisableApplication,
    TakeScope(usize),
    NeedMode(Mode),
    NeedScopes(ScopeSet),
    View(&'static str, Option<Mode>),
}

fn restriction() -> impl Strategy<Value = Restriction> {
    use Restriction::*;
    prop_oneof![
        networks().prop_map(Networks),
        merchants().prop_map(Merchants),
        some_of(&Feature::ALL).prop_map(Features),
        Just(ManagedEcosystem),
        Just(NoEcosystem),
        Just(Expire),
        Just(Suspend),
        Just(Revoke),
        Just(DisableApplication),
        (0..3_usize).prop_map(TakeScope),
        one_of(Mode::ALL).prop_map(NeedMode),
        needed_scopes().prop_map(NeedScopes),
        (
            one_of(["acme", "other"]),
            prop::option::of(one_of(Mode::ALL))
        )
            .prop_map(|(id, mode)| View(id, mode)),
    ]
}

impl Restriction {
    /// Adds the restriction to those of the key and the request.
    fn apply(&self, record: &mut KeyContext, request: &mut Request) {
        let key = &mut record.key;
        let restrictions = &mut key.restrictions;
        match self {
            Self::Networks(networks) => {
                if restrictions
                    .allowed_ips
                    .as_ref()
                    .is_none_or(|own| own.covers(networks))
                {
                    restrictions.allowed_ips = Some(networks.clone());
                }
            }
            Self::Merchants(merchants) => narrow(&mut restrictions.merchants, merchants),
            Self::Features(features) => narrow(&mut restrictions.features, features),
            Self::ManagedEcosystem => {
                if record.operating_model == OperatingModel::Ecosystem {
                    record.operating_model = OperatingModel::ManagedEcosystem;
                }
            }
            Self::NoEcosystem => record.operating_model = OperatingModel::PrimaryMerchant,
            Self::Expire => restrictions.expires_at = Some(now()),
            Self::Suspend => key.suspended_at = Some(now()),
            Self::Revoke => key.revoked_at = Some(now()),
            Self::DisableApplication => record.application_enabled = false,
            Self::TakeScope(index) => {
                if *index < restrictions.scopes.len() {
                    restrictions.scopes.remove(*index);
                    let (application_enabled, operating_model) =
                        (record.application_enabled, record.operating_model);
                    *record = KeyContext {
                        application_enabled,
                        operating_model,
                        ..crate::support::record(record.key.clone())
                    };
                }
            }
            Self::NeedMode(mode) => {
                request.mode.get_or_insert(*mode);
            }
            Self::NeedScopes(scopes) => request.scopes = request.scopes.union(*scopes),
            Self::View(id, mode) => {
                request.viewer.get_or_insert((account(id), *mode));
            }
        }
    }
}

/// Intersects a list with `to`. A list that would become empty is not changed.
fn narrow<T: Clone + PartialEq>(list: &mut Option<Vec<T>>, to: &[T]) {
    let narrowed = match list {
        Some(own) => own
            .iter()
            .filter(|item| to.contains(item))
            .cloned()
            .collect(),
        None => to.to_vec(),
    };
    if !narrowed.is_empty() {
        *list = Some(narrowed);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(1024))]

    #[test]
    fn additional_restriction_never_allows_a_denied_request(
        (mut record, mut request) in (any_record(), any_request()),
        restrictions in prop::collection::vec(restriction(), 1..4),
    ) {
        let before = request.decide(&record).map(drop);
        for restriction in &restrictions {
            restriction.apply(&mut record, &mut request);
        }
        let after = request.decide(&record).map(drop);
        prop_assert!(before.is_ok() || after.is_err(), "{before:?}, then allowed with {restrictions:?}");
    }

    #[test]
    fn request_with_fewer_values_is_never_allowed_more(
        (record, request) in (any_record(), any_request()), (method, path, ip, merchant) in any::<(bool, bool, bool, bool)>(),
    ) {
        // A malformed merchant is always denied, so removing it can allow the request.
        prop_assume!(request.merchant.as_deref() != Some("a b"));
        let mut less = request.clone();
        less.method = less.method.filter(|_| method);
        less.path = less.path.filter(|_| path);
        less.client_ip = less.client_ip.filter(|_| ip);
        less.merchant = less.merchant.filter(|_| merchant);
        prop_assert!(request.is_allowed(&record) || !less.is_allowed(&record));
    }
}

/// The properties above would also hold for a `decide` that always denies or always allows.
#[test]
fn random_requests_are_often_allowed_and_often_denied() {
    let mut runner = TestRunner::deterministic();
    let allowed = (0..4000)
        .filter(|_| {
            let (record, request) = (any_record(), any_request())
                .new_tree(&mut runner)
                .unwrap()
                .current();
            request.is_allowed(&record)
        })
        .count();
    assert!((200..3800).contains(&allowed), "{allowed} of 4000 allowed");
}
