//! The one decision: may this key do that, now?
//!
//! [`decide`] is pure and is the only place where access is judged; the server, both adapters and the dashboard
//! call it. Denials have a fixed order, that of [`Denial`]: the first that applies is the answer. What a
//! restriction needs and the request lacks denies.

use std::{net::IpAddr, sync::LazyLock};

use jiff::Timestamp;
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    AccountId, ApiKey, Application, Catalogue, Family, Invalid, Mode, OperatingModel, RequestPath,
    ScopeSet, Status,
    feature::Feature,
    route::Template,
    spelling::{array, unknown_value},
    text::is_reference,
};

/// The reason why a key is denied, in the order in which the server checks them. The first that applies is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Denial {
    /// The key does not exist, or the caller cannot see it.
    UnknownKey,
    /// Revoked.
    Revoked,
    /// Past its `expires_at`.
    Expired,
    /// Suspended.
    Suspended,
    /// Its application is disabled.
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

    /// Its stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.into()
    }

    /// The title of its problem.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.texts().0
    }

    /// The detail of its problem.
    #[must_use]
    pub fn detail(self) -> &'static str {
        self.texts().1
    }

    /// The title and the detail.
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

/// Everything [`decide`] judges of one key: the key, and what it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: ApiKey,
    /// False while the key's application is disabled.
    pub application_enabled: bool,
    /// How the key's account does business.
    pub operating_model: OperatingModel,
    /// The scopes the key satisfies, expanded.
    pub scopes: ScopeSet,
}

impl Record {
    /// The record of a key.
    #[must_use]
    pub fn new(
        key: ApiKey,
        application: Option<&Application>,
        model: OperatingModel,
        catalogue: &Catalogue,
    ) -> Self {
        Self {
            scopes: catalogue.expand(key.family, &key.grants.scopes),
            application_enabled: application.is_none_or(|application| application.is_enabled),
            operating_model: model,
            key,
        }
    }

    /// Makes it take as little memory as it can, to be kept: without spare capacity, and without what no decision needs
    /// (the reason of a revocation).
    #[must_use]
    pub fn compacted(mut self) -> Self {
        self.key.compact();
        self
    }

    /// Estimates the heap it takes, in bytes, without the account ID, which many keys can share.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.key.heap_bytes()
    }
}

/// Who asks about keys, when it may not see all of them: an `sk_` key sees those of its own account, an
/// `sk_test_` key only the test keys among them.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// The only account it sees.
    pub account_id: &'a AccountId,
    /// The only mode it sees, when it does not see both.
    pub mode: Option<Mode>,
}

/// What a request needs from the key it carries. Each `None` is something the request does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Need<'a> {
    /// Who asks; `None` sees every key.
    pub viewer: Option<Viewer<'a>>,
    /// The key is only asked who it is (`/whoami`, our own surfaces): routes, merchants and scopes, which are
    /// about the protected API, do not matter.
    pub identity_only: bool,
    /// All of these scopes.
    pub scopes: ScopeSet,
    /// Exactly this mode.
    pub mode: Option<Mode>,
    /// The method of the request, as sent.
    pub method: Option<&'a str>,
    /// The path of the request.
    pub path: Option<RequestPath<'a>>,
    /// The merchant it is about.
    pub merchant: Option<&'a str>,
    /// The address it comes from.
    pub client_ip: Option<IpAddr>,
    /// A trusted proxy tells an address that cannot be read. That denies the use of every key.
    pub is_client_ip_unreadable: bool,
}

/// The key may.
#[derive(Debug, Clone, Copy)]
pub struct Grant<'a> {
    /// What is known of the key.
    pub record: &'a Record,
    /// The merchant the request is about, when it names one that the key may be used for.
    pub merchant: Option<&'a str>,
}

/// What a publishable key can call (storlaunch, "Key types recap").
static PUBLISHABLE: LazyLock<[Template; 3]> = LazyLock::new(|| {
    [
        Template::new("GET", "/v1/storefront/public/*"),
        Template::new("GET", "/v1/storefront/products"),
        Template::new("GET", "/v1/storefront/products/{id}"),
    ]
});

/// Whether the key may do what is needed at `now`.
///
/// # Errors
/// The first [`Denial`] that applies, in their order. `UnknownKey` only where the viewer may not see the key;
/// never `RateLimited`: the verifier counts.
pub fn decide<'a>(
    record: &'a Record,
    need: &Need<'a>,
    now: Timestamp,
) -> Result<Grant<'a>, Denial> {
    let key = &record.key;
    if let Some(viewer) = need.viewer
        && (*viewer.account_id != key.account_id
            || viewer.mode.is_some_and(|mode| mode != key.mode))
    {
        return Err(Denial::UnknownKey);
    }
    decide_usable(record, now)?;
    if need.mode.is_some_and(|mode| mode != key.mode) {
        return Err(Denial::WrongMode);
    }
    if need.is_client_ip_unreadable || !key.allows_client(need.client_ip) {
        return Err(Denial::IpNotAllowed);
    }
    if need.identity_only {
        return Ok(Grant {
            record,
            merchant: None,
        });
    }
    if !route_allowed(record, need) {
        return Err(Denial::RouteNotAllowed);
    }
    decide_merchant_and_scopes(record, need)?;
    Ok(Grant {
        record,
        merchant: need.merchant,
    })
}

/// Decides whether the key can be used at all at `now`, whatever for.
///
/// # Errors
/// `Revoked`, `Expired`, `Suspended` or `ApplicationDisabled`, the first that applies.
#[inline]
pub fn decide_usable(record: &Record, now: Timestamp) -> Result<(), Denial> {
    match record.key.status(now) {
        Status::Revoked => Err(Denial::Revoked),
        Status::Expired => Err(Denial::Expired),
        Status::Suspended => Err(Denial::Suspended),
        Status::Active if !record.application_enabled => Err(Denial::ApplicationDisabled),
        Status::Active => Ok(()),
    }
}

/// Decides what a handler requires besides, of a key that [`decide`] has allowed for the same request: the mode, merchant
/// and scopes of `need`. The client's address and the route were decided there.
///
/// # Errors
/// The first [`Denial`] that applies, in their order.
pub fn decide_further(record: &Record, need: &Need<'_>, now: Timestamp) -> Result<(), Denial> {
    decide_usable(record, now)?;
    if need.mode.is_some_and(|mode| mode != record.key.mode) {
        return Err(Denial::WrongMode);
    }
    decide_merchant_and_scopes(record, need)
}

#[inline]
fn decide_merchant_and_scopes(record: &Record, need: &Need<'_>) -> Result<(), Denial> {
    if !merchant_allowed(record, need) {
        return Err(Denial::MerchantNotAllowed);
    }
    if !record.scopes.contains_all(need.scopes) {
        return Err(Denial::InsufficientScope);
    }
    Ok(())
}

/// Publishable keys have their own list of routes, scoped keys those of their features as far as the account's
/// operating model has them today; any other key may call every route.
fn route_allowed(record: &Record, need: &Need<'_>) -> bool {
    let key = &record.key;
    let publishable = key.family == Family::Publishable;
    if !publishable && !key.grants.is_scoped() {
        return true;
    }
    let (Some(method), Some(path)) = (need.method, need.path) else {
        return false;
    };
    if publishable {
        return PUBLISHABLE.iter().any(|route| route.matches(method, path));
    }
    let model = record.operating_model.features();
    let mut features: &[Feature] = model;
    if let Some(own) = &key.grants.features {
        features = own;
    }
    features
        .iter()
        .any(|feature| model.contains(feature) && feature.allows(method, path))
}

/// A key bound to merchants needs one of them; for any other key a merchant only has to be well-formed.
fn merchant_allowed(record: &Record, need: &Need<'_>) -> bool {
    match &record.key.grants.merchants {
        Some(merchants) => need
            .merchant
            .is_some_and(|merchant| merchants.iter().any(|m| m == merchant)),
        None => need.merchant.is_none_or(is_reference),
    }
}
