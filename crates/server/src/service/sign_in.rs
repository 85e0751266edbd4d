//! Signing in to the dashboard: which ways in there are, and who comes in by them.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use tollkey_api::Secret;
use tollkey_core::{
    AccountId, Digest, Problem, ProblemCode,
    session::{self, Session},
};

use crate::{
    caller::{
        jwt::Claims,
        oidc::{Attempt, OidcError, Provider},
    },
    state::State,
};

/// For how long a link signs in.
pub const LINK_LASTS: SignedDuration = SignedDuration::from_mins(5);

/// The ways into the dashboard.
#[derive(Debug, Default)]
pub struct Ways {
    /// With a management token; what sessions rest on that begin so.
    pub token: Option<Digest>,
    /// With the link that development mode prints.
    pub link: Option<Link>,
    /// By an OpenID Connect provider.
    pub oidc: Option<Provider>,
}

impl Ways {
    /// Whether they still lead in as they led whoever has that session, with that token in its cookie: the way is open, and its
    /// settings are the same. A database that was one of development mode signs nobody in elsewhere.
    #[must_use]
    pub fn stand_by(&self, session: &Session, token: &str) -> bool {
        let open = [self.token, self.link.as_ref().map(|_| Link::grounds()), self.oidc.as_ref().map(Provider::grounds)];
        open.iter().flatten().any(|grounds| session::bound(grounds, token) == session.grounds)
    }
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

    /// What sessions rest on that begin with a link: development mode.
    fn grounds() -> Digest {
        session::grounds("link", &[])
    }

    /// The session of who follows the link; `None` when it was used before, is too old, or is another one.
    pub fn follow(&self, code: &str, now: Timestamp) -> Option<Session> {
        let mut wanted = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= self.ends_at || *wanted != Some(Digest::of(code)) {
            return None;
        }
        *wanted = None;
        Some(Session::begin(Some(self.account_id.clone()), self.subject.clone(), true, Self::grounds(), now, None))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("ends_at", &self.ends_at).finish_non_exhaustive()
    }
}

/// The session of who has these claims, an operator or somebody of an account, for as long as what proved them is valid.
///
/// # Errors
/// `forbidden` for who is neither.
pub fn session_of(
    claims: Claims,
    grounds: Digest,
    now: Timestamp,
    proof_ends: Option<Timestamp>,
) -> Result<Session, Problem> {
    let is_operator = claims.has_role("operator");
    if claims.account.is_none() && !is_operator {
        return Err(Problem::forbidden("You are known, but for no account."));
    }
    Ok(Session::begin(claims.account, claims.subject, is_operator, grounds, now, proof_ends))
}

/// The session of who has a management token.
///
/// # Errors
/// `not_found` where tokens sign nobody in; `invalid_token`, `forbidden`; `unavailable` when the issuer's keys cannot be fetched.
pub async fn by_token(state: &State, token: &str) -> Result<Session, Problem> {
    let grounds = state.ways.token.ok_or_else(Problem::not_found)?;
    let now = state.clock.now();
    let claims = state.tokens.verify(token, now).await.map_err(|error| {
        tracing::debug!(%error, "a management token was refused at the dashboard");
        if error.is_unavailable() {
            return Problem::unavailable();
        }
        Problem::new(ProblemCode::InvalidToken, "The management token is not valid, or has expired.")
    })?;
    let proof_ends = Some(claims.expires_at);
    session_of(claims, grounds, now, proof_ends)
}

/// Why nobody is signed in by an OpenID Connect provider. Told by its word across a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no such sign-in under way in this browser.
    Unknown,
    /// The provider did not sign them in.
    Declined,
    /// The provider's answer is not valid.
    Invalid,
    /// They are who they are, and manage no account.
    NoAccount,
    /// The provider, or our own store, cannot be asked.
    Unavailable,
}

impl Failure {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Declined, Self::Invalid, Self::NoAccount, Self::Unavailable];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Declined => "declined",
            Self::Invalid => "invalid",
            Self::NoAccount => "no-account",
            Self::Unavailable => "unavailable",
        }
    }

    /// What they are told.
    #[must_use]
    pub fn problem(self) -> Problem {
        match self {
            Self::Unknown => Problem::forbidden(
                "This sign-in was not begun in this browser, was used before, or took longer than ten minutes. Begin again.",
            ),
            Self::Declined => Problem::forbidden("The identity provider did not sign you in."),
            Self::Invalid => {
                Problem::new(ProblemCode::InvalidToken, "What the identity provider answered is not valid.")
            }
            Self::NoAccount => {
                Problem::forbidden("The identity provider knows you, but names no account that you may manage.")
            }
            Self::Unavailable => Problem {
                detail: "Signing in is not possible right now. Try again in a moment.".into(),
                ..Problem::unavailable()
            },
        }
    }
}

impl From<OidcError> for Failure {
    fn from(error: OidcError) -> Self {
        tracing::warn!(%error, "nobody was signed in to the dashboard");
        match error {
            OidcError::Unavailable(_) => Self::Unavailable,
            OidcError::Refused(_) => Self::Invalid,
        }
    }
}

/// What a provider sends somebody back with.
#[derive(Debug, Default)]
pub struct Returned {
    /// `state`.
    pub state: Option<Secret>,
    /// `code`.
    pub code: Option<Secret>,
    /// `error`.
    pub error: Option<String>,
    /// `iss` (RFC 9207).
    pub issuer: Option<String>,
}

/// The session of who comes back from the provider, in the browser that keeps this attempt.
///
/// # Errors
/// [`Failure`].
pub async fn by_oidc(
    state: &State,
    provider: &Provider,
    attempt: Option<&Attempt>,
    returned: &Returned,
) -> Result<Session, Failure> {
    let now = state.clock.now();
    let returned_state = returned.state.as_ref().map_or("", Secret::expose);
    let attempt = attempt.filter(|attempt| attempt.is_of(returned_state, now)).ok_or(Failure::Unknown)?;
    if returned.issuer.as_ref().is_some_and(|issuer| !provider.is_issuer(issuer)) {
        return Err(OidcError::Refused("the answer names another issuer").into());
    }
    match (&returned.error, &returned.code) {
        (None, Some(code)) => {
            let claims = provider.finish(&*state.clock, attempt, code.expose()).await?;
            // An ID token says who it is now, and is valid for minutes: it does not bound the session.
            session_of(claims, provider.grounds(), state.clock.now(), None).map_err(|_| Failure::NoAccount)
        }
        (None, None) => Err(OidcError::Refused("there is neither a code nor an error").into()),
        (Some(error), _) if matches!(error.as_str(), "temporarily_unavailable" | "server_error") => {
            Err(OidcError::Unavailable(format!("answered {error}")).into())
        }
        (Some(_), _) => Err(Failure::Declined),
    }
}
