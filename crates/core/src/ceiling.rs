//! The ceiling: a key cannot create a key with fewer restrictions than its own.
//!
//! A management token is not limited. A key that creates keys passes on its own limits: a limit that the request omits
//! is taken from the parent key, and a request that exceeds the parent key is rejected. A key does not outlive its
//! ancestors: it expires with them or sooner, and is revoked with them ([`lineage`](crate::lineage)). [`AncestorLimit`]
//! limits the number of ancestors.

use crate::{ApiKey, Invalid, Mode, Problem, ProblemCode, Restrictions};

/// The reason why a requested key exceeds its parent key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CeilingError {
    /// A test key can create only test keys.
    #[error("A test key cannot create live keys. Create a test key, or use a live key.")]
    Mode,
    /// The IP allowlist contains addresses that the parent key does not allow.
    #[error(
        "A key cannot create a key with a wider IP allowlist than its own. Use IP ranges within its own."
    )]
    AllowedIps,
    /// The expiration is later than that of the parent key.
    #[error(
        "A key cannot create a key that expires later than itself. Choose an earlier expiration."
    )]
    Expiration,
    /// The rate limit is higher than that of the parent key.
    #[error(
        "A key cannot create a key with a higher rate limit than its own. Choose a lower rate limit."
    )]
    RateLimit,
    /// The parent key has the maximum number of ancestors.
    #[error(
        "A key with {0} ancestors cannot create keys. Create the key with a management token, or with an ancestor of this key."
    )]
    Depth(u8),
}

impl From<CeilingError> for Problem {
    fn from(error: CeilingError) -> Self {
        match error {
            CeilingError::Depth(_) => {
                Self::new(ProblemCode::KeyDepthLimitReached, error.to_string())
            }
            _ => Self::forbidden(error.to_string()),
        }
    }
}

/// The maximum number of ancestors of a key. A key that a management token creates has no ancestors. A key at the limit
/// cannot create keys; keys that exceed the limit stay valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AncestorLimit(u8);

impl AncestorLimit {
    /// The highest limit. Higher ones would slow down cache misses, each of which reads all ancestors of the key.
    pub const MAX: u8 = 8;

    /// Creates a limit. With 0, no key can create keys.
    ///
    /// # Errors
    /// [`Invalid`] if it is above [`AncestorLimit::MAX`].
    pub fn new(limit: u8) -> Result<Self, Invalid> {
        if limit <= Self::MAX {
            Ok(Self(limit))
        } else {
            Err(Invalid::new(format!("must be between 0 and {}", Self::MAX)))
        }
    }

    /// Checks that a key with this many ancestors can create keys.
    ///
    /// # Errors
    /// [`CeilingError::Depth`] if it is at the limit or exceeds it.
    pub fn check(self, ancestors: usize) -> Result<(), CeilingError> {
        if ancestors < usize::from(self.0) {
            Ok(())
        } else {
            Err(CeilingError::Depth(self.0))
        }
    }
}

impl Default for AncestorLimit {
    /// Three, for the keys of a tenant, of its services and of their instances.
    fn default() -> Self {
        Self(3)
    }
}

/// Returns the permissions and restrictions of a key with this mode that `parent` creates: the requested ones, and the
/// limits of `parent` where the request omits them.
///
/// # Errors
/// The first [`CeilingError`] that applies.
pub fn restrict_to_parent(
    parent: &ApiKey,
    mode: Mode,
    requested: Restrictions,
) -> Result<Restrictions, CeilingError> {
    let own = &parent.restrictions;
    if parent.mode == Mode::Test && mode == Mode::Live {
        return Err(CeilingError::Mode);
    }
    let allowed_ips = inherit(&own.allowed_ips, requested.allowed_ips, |own, requested| {
        own.covers(requested)
    });
    let expires_at = inherit(&own.expires_at, requested.expires_at, |own, requested| {
        requested <= own
    });
    let rate_limit = inherit(&own.rate_limit, requested.rate_limit, |own, requested| {
        requested.is_within(*own)
    });
    Ok(Restrictions {
        allowed_ips: allowed_ips.ok_or(CeilingError::AllowedIps)?,
        expires_at: expires_at.ok_or(CeilingError::Expiration)?,
        rate_limit: rate_limit.ok_or(CeilingError::RateLimit)?,
        ..requested
    })
}

/// Returns the requested limit, or the limit of the parent key if the request omits it. `None` if the requested limit
/// exceeds that of the parent key.
fn inherit<T: Clone>(
    own: &Option<T>,
    requested: Option<T>,
    within: impl FnOnce(&T, &T) -> bool,
) -> Option<Option<T>> {
    match (own, requested) {
        (None, requested) => Some(requested),
        (Some(own), None) => Some(Some(own.clone())),
        (Some(own), Some(requested)) => within(own, &requested).then_some(Some(requested)),
    }
}
