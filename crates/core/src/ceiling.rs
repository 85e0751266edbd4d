//! The ceiling: nobody makes a key beyond what they hold.
//!
//! A management token holds everything of its account. A key that makes keys passes on its own limits: what a
//! request leaves out is taken from the maker, what it asks for beyond the maker is refused. Nor does a key outlive its
//! maker: it ends with it or sooner, and is revoked with it
//! ([`MAKER_REVOKED`](crate::api_key::MAKER_REVOKED)).

use crate::{ApiKey, Grants, Mode, Problem};

/// What a key asked for lies beyond the key that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Beyond {
    /// A test key makes only test keys.
    #[error("A test key cannot make live keys.")]
    Mode,
    /// Networks the maker may not be used from.
    #[error("A key cannot make one that may be used from networks it may not be used from itself.")]
    Networks,
    /// A later end than the maker's.
    #[error("A key cannot make one that outlives it.")]
    End,
    /// More uses than the maker has.
    #[error("A key cannot make one that may be used more often than itself.")]
    RateLimit,
}

impl From<Beyond> for Problem {
    fn from(beyond: Beyond) -> Self {
        Self::forbidden(beyond.to_string())
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
    let allowed_ips = inherit(&own.allowed_ips, asked.allowed_ips, |own, asked| own.covers(asked));
    let expires_at = inherit(&own.expires_at, asked.expires_at, |own, asked| asked <= own);
    let rate_limit = inherit(&own.rate_limit, asked.rate_limit, |own, asked| asked.is_within(*own));
    Ok(Grants {
        allowed_ips: allowed_ips.ok_or(Beyond::Networks)?,
        expires_at: expires_at.ok_or(Beyond::End)?,
        rate_limit: rate_limit.ok_or(Beyond::RateLimit)?,
        ..asked
    })
}

/// The limit asked for if it is within the maker's, the maker's where none was; `None` when it is not within.
fn inherit<T: Clone>(own: &Option<T>, asked: Option<T>, within: impl FnOnce(&T, &T) -> bool) -> Option<Option<T>> {
    match (own, asked) {
        (None, asked) => Some(asked),
        (Some(own), None) => Some(Some(own.clone())),
        (Some(own), Some(asked)) => within(own, &asked).then_some(Some(asked)),
    }
}
