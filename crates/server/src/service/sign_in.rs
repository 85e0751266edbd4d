//! Signing in to the dashboard: which ways in there are, and who comes in by them.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use tollkey_api::Secret;
use tollkey_core::{AccountId, Digest, Problem, ProblemCode, session::Session};

use crate::{caller::jwt::Claims, state::State};

/// For how long a link signs in.
pub const LINK_LASTS: SignedDuration = SignedDuration::from_mins(5);

/// The ways into the dashboard.
#[derive(Debug, Default)]
pub struct Ways {
    /// With a management token.
    pub token: bool,
    /// With the link that development mode prints.
    pub link: Option<Link>,
}

/// A link that signs in once.
pub struct Link {
    /// What its code must be; taken by the first who has it.
    code: Mutex<Option<Digest>>,
    ends_at: Timestamp,
    account_id: AccountId,
    subject: String,
}

impl Link {
    /// A link with that code for an operator who manages that account.
    #[must_use]
    pub fn new(code: &Secret, account_id: AccountId, subject: &str, now: Timestamp) -> Self {
        let ends_at = now.saturating_add(LINK_LASTS).unwrap_or(Timestamp::MAX);
        Self { code: Mutex::new(Some(Digest::of(code.expose()))), ends_at, account_id, subject: subject.to_owned() }
    }

    /// The session of who follows the link; `None` when it was used before, is too old, or is another one.
    pub fn follow(&self, code: &str, now: Timestamp) -> Option<Session> {
        let mut wanted = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= self.ends_at || *wanted != Some(Digest::of(code)) {
            return None;
        }
        *wanted = None;
        Some(Session::begin(Some(self.account_id.clone()), self.subject.clone(), true, now, None))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("ends_at", &self.ends_at).finish_non_exhaustive()
    }
}

/// The session of who has these claims: an operator, or somebody of an account.
///
/// # Errors
/// `forbidden` for who is neither.
pub fn session_of(claims: Claims, now: Timestamp) -> Result<Session, Problem> {
    let is_operator = claims.has_role("operator");
    if claims.account.is_none() && !is_operator {
        return Err(Problem::forbidden("You are known, but for no account."));
    }
    Ok(Session::begin(claims.account, claims.subject, is_operator, now, Some(claims.expires_at)))
}

/// The session of who has a management token.
///
/// # Errors
/// `invalid_token`, `forbidden`; `unavailable` when the issuer's keys cannot be fetched.
pub async fn by_token(state: &State, token: &str) -> Result<Session, Problem> {
    let now = state.clock.now();
    let claims = state.tokens.verify(token, now).await.map_err(|error| {
        tracing::debug!(%error, "a management token was refused at the dashboard");
        if error.is_unavailable() {
            return Problem::unavailable();
        }
        Problem::new(ProblemCode::InvalidToken, "The management token is not valid, or has expired.")
    })?;
    session_of(claims, now)
}
