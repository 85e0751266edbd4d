//! What a route requires of a key.

use std::time::Duration;

use tollkey_core::{Mode, Scope};

use crate::Merchant;

/// What a route requires of the key that a request presents. The default is any key that may make the request, as its own
/// restrictions say.
///
/// Publishable keys can call the routes that the storefront publishes, and only where no scope is required.
///
/// Scopes convert into a requirement: a name, one [`Scope`], or an array, slice or vector of either (also by reference), of which all are required.
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
    pub(crate) merchant: Option<Merchant>,
    pub(crate) optional: bool,
    pub(crate) grace: Duration,
}

impl Requirement {
    /// Any key.
    pub fn any() -> Self {
        Self::default()
    }

    /// All of these scopes. A scope that the guard does not know ([`GuardBuilder::scopes`](crate::GuardBuilder::scopes)) rejects
    /// every request, with an error in the log.
    pub fn scopes(scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
        Self {
            scopes: scopes.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// This mode.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Where the request names its merchant, instead of where the guard reads it. At a layer it is also the merchant that a
    /// handler is given ([`VerifiedKey::merchant`](crate::VerifiedKey::merchant)); a `require` inside of it authorizes that
    /// merchant, and the handler is still given the layer's.
    pub fn merchant(mut self, merchant: Merchant) -> Self {
        self.merchant = Some(merchant);
        self
    }

    /// Admits requests without any credential, without a key. A request whose credential is rejected is rejected.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// When the server cannot be reached, authorizes cached keys for this long after the lease has ended.
    ///
    /// **A key that was revoked meanwhile is accepted for that long.** Without this, requests are rejected with 503 once the
    /// lease has ended, which takes three seconds at most.
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
