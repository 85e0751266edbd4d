//! The ceiling: nobody makes a key beyond what they hold.
//!
//! A management token holds everything of its account. A key that creates keys passes on its own limits: a limit that
//! the request omits is taken from the parent key, and a request beyond the parent key is rejected. Nor does a key
//! outlive its ancestors: it expires with them or sooner, and is revoked with them ([`lineage`](crate::lineage)). How
//! deep a tree of keys can grow is bounded ([`DepthLimit`]).

use crate::{ApiKey, Grants, Invalid, Mode, Problem, ProblemCode};

/// What a key asked for lies beyond the key that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Beyond {
    /// A test key makes only test keys.
    #[error("A test key cannot create live keys. Create a test key, or use a live key.")]
    Mode,
    /// Networks the maker may not be used from.
    #[error(
        "A key cannot create a key with a wider IP allowlist than its own. Use IP ranges within its own."
    )]
    Networks,
    /// A later end than the maker's.
    #[error(
        "A key cannot create a key that expires later than itself. Choose an earlier expiration."
    )]
    End,
    /// More uses than the maker has.
    #[error(
        "A key cannot create a key with a higher rate limit than its own. Choose a lower rate limit."
    )]
    RateLimit,
    /// The parent key has as many ancestors as a key can have.
    #[error(
        "A key with {0} ancestors cannot create keys. Create the key with a management token, or with an ancestor of this key."
    )]
    Depth(u8),
}

impl From<Beyond> for Problem {
    fn from(beyond: Beyond) -> Self {
        match beyond {
            Beyond::Depth(_) => Self::new(ProblemCode::KeyDepthLimitReached, beyond.to_string()),
            _ => Self::forbidden(beyond.to_string()),
        }
    }
}

/// How many ancestors a key can have. A key that a token creates has none and stands at depth 0; a key at the limit
/// cannot create keys. Keys that are deeper already stay valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepthLimit(u8);

impl DepthLimit {
    /// The highest limit: each verification of a key that is not cached reads all of its ancestors.
    pub const MAX: u8 = 8;

    /// Reads a limit.
    ///
    /// # Errors
    /// [`Invalid`] unless 0 to [`DepthLimit::MAX`]. With 0 no key creates keys.
    pub fn new(limit: u8) -> Result<Self, Invalid> {
        if limit <= Self::MAX {
            Ok(Self(limit))
        } else {
            Err(Invalid::new(format!("must be between 0 and {}", Self::MAX)))
        }
    }

    /// Whether a key with so many ancestors can create keys.
    ///
    /// # Errors
    /// [`Beyond::Depth`] when it stands at the limit or deeper.
    pub fn check(self, ancestors: usize) -> Result<(), Beyond> {
        if ancestors < usize::from(self.0) {
            Ok(())
        } else {
            Err(Beyond::Depth(self.0))
        }
    }
}

impl Default for DepthLimit {
    /// Three: a tenant, its services, their instances.
    fn default() -> Self {
        Self(3)
    }
}

/// The grants of a key of that mode made by `maker`: those asked for, and the maker's limits where nothing was.
///
/// # Errors
/// [`Beyond`] for the first thing that lies beyond the maker.
pub fn beneath(maker: &ApiKey, mode: Mode, asked: Grants) -> Result<Grants, Beyond> {
    let own = &maker.grants;
    if maker.mode == Mode::Test && mode == Mode::Live {
        return Err(Beyond::Mode);
    }
    let allowed_ips = inherit(&own.allowed_ips, asked.allowed_ips, |own, asked| {
        own.covers(asked)
    });
    let expires_at = inherit(&own.expires_at, asked.expires_at, |own, asked| asked <= own);
    let rate_limit = inherit(&own.rate_limit, asked.rate_limit, |own, asked| {
        asked.is_within(*own)
    });
    Ok(Grants {
        allowed_ips: allowed_ips.ok_or(Beyond::Networks)?,
        expires_at: expires_at.ok_or(Beyond::End)?,
        rate_limit: rate_limit.ok_or(Beyond::RateLimit)?,
        ..asked
    })
}

/// The limit asked for if it is within the maker's, the maker's where none was; `None` when it is not within.
fn inherit<T: Clone>(
    own: &Option<T>,
    asked: Option<T>,
    within: impl FnOnce(&T, &T) -> bool,
) -> Option<Option<T>> {
    match (own, asked) {
        (None, asked) => Some(asked),
        (Some(own), None) => Some(Some(own.clone())),
        (Some(own), Some(asked)) => within(own, &asked).then_some(Some(asked)),
    }
}
