//! The requirements of a route.

use std::time::Duration;

use tollkey_core::{Mode, Scope};

use crate::MerchantSource;

/// The requirements of a route for the key of a request. By default, it admits any key whose own restrictions allow the
/// request.
///
/// Publishable keys can call only the public routes of the storefront, and only if no scope is required.
///
/// Scopes convert into a requirement: a name or a [`Scope`], or an array, slice or vector of these (also by
/// reference), which requires all of them.
///
/// ```
/// use tollkey_middleware::{Mode, Requirement, Scope};
/// let requirement = Requirement::scopes([Scope::LINKS_WRITE]).mode(Mode::Live);
/// let by_name: Requirement = "links:write".into();
/// let both: Requirement = vec!["links:read", "links:write"].into();
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Requirement {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) mode: Option<Mode>,
    pub(crate) merchant: Option<MerchantSource>,
    pub(crate) optional: bool,
    pub(crate) grace: Duration,
}

impl Requirement {
    /// Admits any key whose own restrictions allow the request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requires all of these scopes. If the guard does not know a scope
    /// ([`GuardBuilder::scopes`](crate::GuardBuilder::scopes)), every request is rejected, and an error is logged.
    pub fn scopes(scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
        Self {
            scopes: scopes.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Requires this mode.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Reads the merchant of the request from this source instead of the guard's. At a layer, this is also
    /// the merchant that handlers get from [`VerifiedKey::merchant`](crate::VerifiedKey::merchant). A
    /// `require` inside the layer authorizes its own merchant, but handlers still get the merchant of the
    /// layer.
    pub fn merchant(mut self, merchant: MerchantSource) -> Self {
        self.merchant = Some(merchant);
        self
    }

    /// Also admits requests without a credential. A request with an invalid credential is still rejected.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// If the server does not respond, authorizes cached keys for this long after the lease has expired.
    ///
    /// **A key that is revoked meanwhile is still accepted for that long.** Without this setting, requests are
    /// rejected with 503 once the lease has expired, after at most three seconds with the default lease.
    pub fn cached_without_immediate_revocation(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }
}

impl From<Scope> for Requirement {
    fn from(scope: Scope) -> Self {
        Self::scopes([scope])
    }
}

impl From<&str> for Requirement {
    fn from(scope: &str) -> Self {
        Self::scopes([scope.to_owned()])
    }
}

impl From<String> for Requirement {
    fn from(scope: String) -> Self {
        Self::scopes([scope])
    }
}

impl<S: Into<Scope>, const N: usize> From<[S; N]> for Requirement {
    fn from(scopes: [S; N]) -> Self {
        Self::scopes(scopes)
    }
}

impl<S: Into<Scope>> From<Vec<S>> for Requirement {
    fn from(scopes: Vec<S>) -> Self {
        Self::scopes(scopes)
    }
}

impl<S: Into<Scope> + Clone> From<&[S]> for Requirement {
    fn from(scopes: &[S]) -> Self {
        Self::scopes(scopes.iter().cloned())
    }
}

impl<S: Into<Scope> + Clone, const N: usize> From<&[S; N]> for Requirement {
    fn from(scopes: &[S; N]) -> Self {
        scopes.as_slice().into()
    }
}

impl<S: Into<Scope> + Clone> From<&Vec<S>> for Requirement {
    fn from(scopes: &Vec<S>) -> Self {
        scopes.as_slice().into()
    }
}
