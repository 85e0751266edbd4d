//! The access decision: whether a key allows a request.
//!
//! [`decide`] is pure and is the only place where access is decided; the server, the middleware and the dashboard call
//! it. Denials are checked in the order of [`Denial`], and the first that applies is reported. If a restriction needs a
//! value that the request does not have, the request is denied.

use std::{net::IpAddr, sync::LazyLock};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    AccountId, ApiKey, Application, Catalogue, Family, Invalid, Mode, OperatingModel, RequestPath,
    ScopeExpression, ScopeSet, Status,
    feature::Feature,
    route::Template,
    spelling::{array, unknown_value},
    text::is_external_id,
};

/// The reason why a key is denied. The values are in the order in which the server checks them, and the first that
/// applies is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Denial {
    /// The key does not exist, or the caller cannot see it.
    UnknownKey,
    /// The key is revoked.
    Revoked,
    /// The key has expired.
    Expired,
    /// The key is suspended.
    Suspended,
    /// The key's application is disabled.
    ApplicationDisabled,
    /// The key is a live key where a test key is required, or the reverse.
    WrongMode,
    /// The client's IP address is not in the key's IP allowlist, or is not known.
    IpNotAllowed,
    /// The key does not cover the method and path of the request, or they are not known.
    RouteNotAllowed,
    /// The merchant is not one of the key's merchants, or is not known.
    MerchantNotAllowed,
    /// The key lacks a required scope.
    InsufficientScope,
    /// The key's rate limit is exceeded. The verifier checks it last, so that other denials do not count as uses.
    RateLimited,
}

impl Denial {
    /// All denials, in order.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// Returns the stable code, such as `wrong_mode`.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.into()
    }

    /// Returns the title of the problem for this denial.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.texts().0
    }

    /// Returns the detail of the problem for this denial.
    #[must_use]
    pub fn detail(self) -> &'static str {
        self.texts().1
    }

    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::UnknownKey => ("Unknown key", "The key is unknown. Check the key."),
            Self::Revoked => ("Key revoked", "The key is revoked. Use another key."),
            Self::Expired => ("Key expired", "The key has expired. Use another key."),
            Self::Suspended => (
                "Key suspended",
                "The key is suspended. Resume it, or use another key.",
            ),
            Self::ApplicationDisabled => (
                "Application disabled",
                "The key's application is disabled. Enable it, or use another key.",
            ),
            Self::WrongMode => (
                "Wrong mode",
                "The key has the wrong mode. Use a live key for live requests and a test key for test requests.",
            ),
            Self::IpNotAllowed => (
                "IP address not allowed",
                "The client's IP address is not in the key's IP allowlist. Send the request from an allowed IP address.",
            ),
            Self::RouteNotAllowed => (
                "Route not allowed",
                "The key does not allow this method and path. Use a key that does.",
            ),
            Self::MerchantNotAllowed => (
                "Merchant not allowed",
                "The key does not allow the merchant of this request. Check the merchant, or use another key.",
            ),
            Self::InsufficientScope => (
                "Insufficient scope",
                "The key lacks a required scope. Use a key with all required scopes.",
            ),
            Self::RateLimited => (
                "Too many requests",
                "The key's rate limit is exceeded. Try again after the time in Retry-After.",
            ),
        }
    }
}

/// A key, with the data of its application and account that [`decide`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C)] // the fields that every verification reads come first, for the processor's caches
pub struct KeyContext {
    /// All scopes that the key has, including those that `commerce` implies.
    pub scopes: ScopeSet,
    /// False while the key's application is disabled.
    pub application_enabled: bool,
    /// The operating model of the key's account.
    pub operating_model: OperatingModel,
    /// The key.
    pub key: ApiKey,
}

impl KeyContext {
    /// Creates the context of a key; `application` is the key's application, if it has one.
    #[must_use]
    pub fn new(
        key: ApiKey,
        application: Option<&Application>,
        model: OperatingModel,
        catalogue: &Catalogue,
    ) -> Self {
        Self {
            scopes: catalogue.expand(key.family, &key.restrictions.scopes),
            application_enabled: application.is_none_or(|application| application.is_enabled),
            operating_model: model,
            key,
        }
    }

    /// Reduces its memory for a cache: drops spare capacity, and the reason of a revocation, which no decision needs.
    #[must_use]
    pub fn compacted(mut self) -> Self {
        self.key.compact();
        self
    }

    /// Estimates its heap memory in bytes, without the account ID, which many keys can share.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.key.heap_bytes()
    }
}

/// A caller that can see only some keys: an `sk_` key sees the keys of its account, and an `sk_test_` key only the test
/// keys among them.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// The account whose keys the caller can see.
    pub account_id: &'a AccountId,
    /// The mode whose keys the caller can see; `None` for both modes.
    pub mode: Option<Mode>,
}

/// What a request requires of its key, and what is known about the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccessRequest<'a> {
    /// The caller, if it can see only some keys; `None` for a caller that sees every key.
    pub viewer: Option<Viewer<'a>>,
    /// Whether only the identity of the key matters (`/whoami`, the management APIs). Routes, merchants and scopes
    /// belong to the protected API and are not checked then.
    pub identity_only: bool,
    /// The required scopes. The key must have all of them.
    pub scopes: ScopeSet,
    /// A condition on the scopes of the key, in addition to `scopes`.
    pub scope_expression: Option<&'a ScopeExpression>,
    /// The required mode; `None` accepts both modes.
    pub mode: Option<Mode>,
    /// The method of the request, as it was sent, if known.
    pub method: Option<&'a str>,
    /// The path of the request, if known.
    pub path: Option<RequestPath<'a>>,
    /// The merchant of the request, if known.
    pub merchant: Option<&'a str>,
    /// The client's IP address, if known.
    pub client_ip: Option<IpAddr>,
    /// Whether a trusted proxy sent a client IP address that cannot be parsed. Every key is denied then.
    pub is_client_ip_unreadable: bool,
}

/// The result of [`decide`] for a request that is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Authorized<'a> {
    /// The record of the key.
    pub record: &'a KeyContext,
    /// The merchant of the request, if it has one. Always `None` with [`AccessRequest::identity_only`].
    pub merchant: Option<&'a str>,
}

/// The routes that a publishable key allows (storlaunch, "Key types recap").
static PUBLISHABLE: LazyLock<[Template; 3]> = LazyLock::new(|| {
    [
        Template::new("GET", "/v1/storefront/public/*"),
        Template::new("GET", "/v1/storefront/products"),
        Template::new("GET", "/v1/storefront/products/{id}"),
    ]
});

/// Decides whether the key allows the request at `now`.
///
/// # Errors
/// The first [`Denial`] that applies. `UnknownKey` means that the viewer cannot see the key. Never `RateLimited`,
/// because the verifier counts the uses.
pub fn decide<'a>(
    record: &'a KeyContext,
    access: &AccessRequest<'a>,
    now: Timestamp,
) -> Result<Authorized<'a>, Denial> {
    let key = &record.key;
    if let Some(viewer) = access.viewer
        && (*viewer.account_id != key.account_id
            || viewer.mode.is_some_and(|mode| mode != key.mode))
    {
        return Err(Denial::UnknownKey);
    }
    decide_usable(record, now)?;
    if access.mode.is_some_and(|mode| mode != key.mode) {
        return Err(Denial::WrongMode);
    }
    if access.is_client_ip_unreadable || !key.allows_client(access.client_ip) {
        return Err(Denial::IpNotAllowed);
    }
    if access.identity_only {
        return Ok(Authorized {
            record,
            merchant: None,
        });
    }
    if !route_allowed(record, access) {
        return Err(Denial::RouteNotAllowed);
    }
    decide_merchant_and_scopes(record, access)?;
    Ok(Authorized {
        record,
        merchant: access.merchant,
    })
}

/// Decides whether the key can be used at all at `now`.
///
/// # Errors
/// `Revoked`, `Expired`, `Suspended` or `ApplicationDisabled`, the first that applies.
#[inline]
pub fn decide_usable(record: &KeyContext, now: Timestamp) -> Result<(), Denial> {
    match record.key.status(now) {
        Status::Revoked => Err(Denial::Revoked),
        Status::Expired => Err(Denial::Expired),
        Status::Suspended => Err(Denial::Suspended),
        Status::Active if !record.application_enabled => Err(Denial::ApplicationDisabled),
        Status::Active => Ok(()),
    }
}

/// Decides the additional requirements of a handler, for a key that [`decide`] has allowed for the same request: the
/// mode, merchant and scopes of `access`. The client's IP address and the route are not checked again.
///
/// # Errors
/// The first [`Denial`] that applies.
pub fn decide_requirements(
    record: &KeyContext,
    access: &AccessRequest<'_>,
    now: Timestamp,
) -> Result<(), Denial> {
    decide_usable(record, now)?;
    if access.mode.is_some_and(|mode| mode != record.key.mode) {
        return Err(Denial::WrongMode);
    }
    decide_merchant_and_scopes(record, access)
}

#[inline]
fn decide_merchant_and_scopes(
    record: &KeyContext,
    access: &AccessRequest<'_>,
) -> Result<(), Denial> {
    if !merchant_allowed(record, access) {
        return Err(Denial::MerchantNotAllowed);
    }
    if !scopes_sufficient(record.scopes, access) {
        return Err(Denial::InsufficientScope);
    }
    Ok(())
}

#[inline]
fn scopes_sufficient(scopes: ScopeSet, access: &AccessRequest<'_>) -> bool {
    scopes.contains_all(access.scopes)
        && access
            .scope_expression
            .is_none_or(|expression| expression.is_satisfied_by(scopes))
}

/// A publishable key allows a fixed list of routes. A scoped key allows the routes of those of its features that the
/// account's operating model has now. Any other key allows every route.
fn route_allowed(record: &KeyContext, access: &AccessRequest<'_>) -> bool {
    let key = &record.key;
    let publishable = key.family == Family::Publishable;
    if !publishable && !key.restrictions.is_scoped() {
        return true;
    }
    let (Some(method), Some(path)) = (access.method, access.path) else {
        return false;
    };
    if publishable {
        return PUBLISHABLE.iter().any(|route| route.matches(method, path));
    }
    let model = record.operating_model.features();
    let features: &[Feature] = key.restrictions.features.as_deref().unwrap_or(model);
    features
        .iter()
        .any(|feature| model.contains(feature) && feature.allows(method, path))
}

/// A key that is limited to merchants allows only these. Any other key allows every well-formed merchant, or none.
fn merchant_allowed(record: &KeyContext, access: &AccessRequest<'_>) -> bool {
    match &record.key.restrictions.merchants {
        Some(merchants) => access
            .merchant
            .is_some_and(|merchant| merchants.iter().any(|m| m == merchant)),
        None => access.merchant.is_none_or(is_external_id),
    }
}
