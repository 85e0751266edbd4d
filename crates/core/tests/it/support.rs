//! Keys and requests for the tests of authorization decisions.

use std::{fmt::Debug, net::IpAddr};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use tollkey_core::{
    AccessRequest, AccountId, ApiKey, Catalogue, Denial, Family, KeyContext, KeyId, Mode,
    OperatingModel, PlainKey, RequestPath, RouteBase, ScopeSet, Timestamp, Viewer, decide,
};

/// Reproducible randomness.
pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub(crate) fn account(id: &str) -> AccountId {
    id.parse().unwrap()
}

/// The time of all decisions.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A key of `acme` without restrictions.
pub(crate) fn key(family: Family, mode: Mode) -> ApiKey {
    let text = format!(
        "{}_{mode}_EXAMPLEEXAMPLEEXAMPLEEXAMPLEwxyz",
        family.prefix()
    );
    ApiKey {
        name: "A key".into(),
        ..ApiKey::new(
            KeyId::from_bytes([7; 16]),
            account("acme"),
            &PlainKey::parse(&text).unwrap(),
            (family, mode),
            Timestamp::from_second(1_700_000_000).unwrap(),
        )
    }
}

/// The record of a key whose account is an ecosystem, with the built-in scopes.
pub(crate) fn record(key: ApiKey) -> KeyContext {
    KeyContext::new(key, None, OperatingModel::Ecosystem, &Catalogue::default())
}

/// The set of required scopes with these names.
pub(crate) fn needed(names: &[&str]) -> ScopeSet {
    Catalogue::default().needed(names.iter().copied()).unwrap()
}

/// An [`AccessRequest`] that owns its values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) viewer: Option<(AccountId, Option<Mode>)>,
    pub(crate) identity_only: bool,
    pub(crate) scopes: ScopeSet,
    pub(crate) mode: Option<Mode>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) merchant: Option<String>,
    pub(crate) client_ip: Option<IpAddr>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self {
            method: Some(method.into()),
            path: Some(path.into()),
            ..Self::default()
        }
    }

    pub(crate) fn merchant(self, merchant: &str) -> Self {
        Self {
            merchant: Some(merchant.into()),
            ..self
        }
    }

    pub(crate) fn scopes(self, names: &[&str]) -> Self {
        Self {
            scopes: needed(names),
            ..self
        }
    }

    /// Authorizes the request. `Ok` contains the merchant that it is allowed for.
    pub(crate) fn decide(&self, record: &KeyContext) -> Result<Option<String>, Denial> {
        let access = AccessRequest {
            viewer: self.viewer.as_ref().map(|(account_id, mode)| Viewer {
                account_id,
                mode: *mode,
            }),
            identity_only: self.identity_only,
            scopes: self.scopes,
            scope_expression: None,
            mode: self.mode,
            method: self.method.as_deref(),
            path: self
                .path
                .as_deref()
                .map(|path| RequestPath::new(path, &RouteBase::default())),
            merchant: self.merchant.as_deref(),
            client_ip: self.client_ip,
            is_client_ip_unreadable: false,
        };
        decide(record, &access, now()).map(|authorized| {
            assert_eq!(authorized.record, record);
            authorized.merchant.map(str::to_owned)
        })
    }

    pub(crate) fn is_allowed(&self, record: &KeyContext) -> bool {
        self.decide(record).is_ok()
    }
}

/// Generates one of these values.
pub(crate) fn one_of<T: Clone + Debug + 'static>(
    items: impl Into<Vec<T>>,
) -> impl Strategy<Value = T> {
    prop::sample::select(items.into())
}
