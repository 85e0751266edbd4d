//! Signing in to the dashboard: which ways in there are, and who comes in by them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use tollkey_api::Secret;
use tollkey_core::{
    AccountId, Digest, Problem, ProblemCode,
    credential::{Expected, is_jwt},
    session::{self, Session},
};
use tollkey_service::Random;

use crate::{
    auth::{
        jwt::{ClaimFault, Claims},
        oidc::{Attempt, OidcError, Provider, Rejection},
    },
    dev_mode::new_secret,
    state::State,
};

/// For how long a link signs in.
pub const LINK_LASTS: SignedDuration = SignedDuration::from_mins(5);

/// The ways into the dashboard.
#[derive(Debug, Default)]
pub struct Ways {
    /// With a management token; what sessions rest on that begin so.
    pub token: Option<Digest>,
    /// With a link of development mode.
    pub links: Option<Links>,
    /// By an OpenID Connect provider.
    pub oidc: Option<Provider>,
}

impl Ways {
    /// Whether they still lead in as they led whoever has that session, with that token in its cookie: the way is open, and its
    /// settings are the same. A database that was one of development mode signs nobody in elsewhere.
    #[must_use]
    pub fn stand_by(&self, session: &Session, token: &str) -> bool {
        let open = [
            self.token,
            self.links.as_ref().map(|_| Links::grounds()),
            self.oidc.as_ref().map(Provider::grounds),
        ];
        open.iter()
            .flatten()
            .any(|grounds| session::bound(grounds, token) == session.grounds)
    }
}

/// The links that sign in once, in development mode. The server prints one when it starts, and `tollkey dashboard-link`
/// prints others: a link is signed with the secret of development mode, which is in a file next to the database.
pub struct Links {
    secret: Secret,
    /// Links from before this server started are not followed: a server before it may have followed them.
    began_at: i64,
    /// The codes that were followed, with the second from which they would have expired anyway.
    used: Mutex<HashMap<Digest, i64>>,
    account_id: AccountId,
    subject: String,
}

/// The most links that one server follows within [`LINK_LASTS`].
const LINKS_MAX: usize = 1000;

impl Links {
    /// The links of a server that starts now, for an operator who manages that account.
    #[must_use]
    pub fn new(secret: Secret, account_id: AccountId, subject: &str, now: Timestamp) -> Self {
        Self {
            secret,
            began_at: now.as_second(),
            used: Mutex::default(),
            account_id,
            subject: subject.to_owned(),
        }
    }

    /// Creates the code of a link.
    #[must_use]
    pub fn code(secret: &Secret, random: &Random, now: Timestamp) -> Secret {
        let signed = format!("{}.{}", now.as_second(), new_secret(random).expose());
        let signature = hmac::sign(&Self::key(secret), &Self::message(&signed));
        Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn key(secret: &Secret) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())
    }

    /// What is signed. The same secret signs management tokens, whose signed text has no space.
    fn message(signed: &str) -> Vec<u8> {
        format!("tollkey dashboard link {signed}").into_bytes()
    }

    /// What sessions rest on that begin with a link: development mode.
    fn grounds() -> Digest {
        session::grounds("link", &[])
    }

    /// Returns when a code expires, if it is one of this server and can still be followed.
    fn expiration(&self, code: &str, now: Timestamp) -> Option<i64> {
        let (signed, signature) = code.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&Self::key(&self.secret), &Self::message(signed), &signature).ok()?;
        let created_at: i64 = signed.split_once('.')?.0.parse().ok()?;
        let expires_at = created_at.checked_add(LINK_LASTS.as_secs())?;
        (created_at >= self.began_at && now.as_second() < expires_at).then_some(expires_at)
    }

    /// Whether the link with this code can still be followed.
    #[must_use]
    pub fn is_valid(&self, code: &str, now: Timestamp) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.expiration(code, now).is_some() && !used.contains_key(&Digest::of(code))
    }

    /// Returns the session that begins when the link with this code is followed; `None` when it was followed before, has
    /// expired, or is not of this server.
    pub fn follow(&self, code: &str, now: Timestamp) -> Option<Session> {
        let expires_at = self.expiration(code, now)?;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, expires_at| now.as_second() < *expires_at);
        if used.len() >= LINKS_MAX || used.insert(Digest::of(code), expires_at).is_some() {
            return None;
        }
        Some(Session::begin(
            Some(self.account_id.clone()),
            self.subject.clone(),
            true,
            Self::grounds(),
            now,
            None,
        ))
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("began_at", &self.began_at)
            .finish_non_exhaustive()
    }
}

/// Returns a session for these claims, of an operator or of an account, for as long as what proved them is valid.
///
/// # Errors
/// Why the claims name no account, if they do not have the role `operator` either.
pub fn session_of(
    claims: Claims,
    grounds: Digest,
    now: Timestamp,
    proof_ends: Option<Timestamp>,
) -> Result<Session, ClaimFault> {
    let is_operator = claims.has_role("operator");
    let account = match claims.account {
        Ok(account) => Some(account),
        // An operator chooses an account later.
        Err(_) if is_operator => None,
        Err(fault) => return Err(fault),
    };
    Ok(Session::begin(
        account,
        claims.subject,
        is_operator,
        grounds,
        now,
        proof_ends,
    ))
}

/// What a person without an account is told.
fn no_account(source: &str, claim: &str, fault: ClaimFault) -> Problem {
    Problem::forbidden(format!(
        "You are signed in, but {source} names no account for you: its claim `{claim}` {fault}. \
         Ask your administrator to set the claim."
    ))
}

/// The session of who has a management token.
///
/// # Errors
/// `not_found` where tokens sign nobody in; `invalid_token`, `forbidden`; `unavailable` when the issuer's keys cannot be fetched.
pub async fn by_token(state: &State, token: &str) -> Result<Session, Problem> {
    let grounds = state.ways.token.ok_or_else(Problem::not_found)?;
    let now = state.service.clock.now();
    if !is_jwt(token) {
        return Err(Expected::Token.problem(token));
    }
    let verified = state.tokens.verify(token, now).await;
    let claims = verified.inspect_err(
        |error| tracing::debug!(%error, "a management token was refused at the dashboard"),
    )?;
    let proof_ends = Some(claims.expires_at);
    session_of(claims, grounds, now, proof_ends)
        .map_err(|fault| no_account("the management token", state.tokens.account_claim(), fault))
}

/// Why a sign-in with an OpenID Connect provider fails. The sign-in page is told its word across a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no such sign-in under way in this browser.
    Unknown,
    /// The provider did not sign the person in.
    Declined,
    /// The provider's response is not valid.
    Rejected(Rejection),
    /// The ID token is valid and names no account.
    NoAccount(ClaimFault),
    /// The provider, or our own store, does not respond.
    Unavailable,
}

impl Failure {
    /// Returns the failure with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let faults = [ClaimFault::Missing, ClaimFault::Type, ClaimFault::Form].map(Self::NoAccount);
        let all = [Self::Unknown, Self::Declined, Self::Unavailable]
            .into_iter()
            .chain(faults);
        all.chain(Rejection::ALL.map(Self::Rejected))
            .find(|failure| failure.word() == word)
    }

    /// Returns its word: lower-case letters and hyphens.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Declined => "declined",
            Self::Rejected(rejection) => rejection.word(),
            Self::NoAccount(ClaimFault::Missing) => "no-account",
            Self::NoAccount(ClaimFault::Type) => "account-type",
            Self::NoAccount(ClaimFault::Form) => "account-form",
            Self::Unavailable => "unavailable",
        }
    }

    /// Returns what the person is told, where this claim names the account.
    #[must_use]
    pub fn problem(self, account_claim: &str) -> Problem {
        match self {
            Self::Unknown => Problem::forbidden(
                "This sign-in was not begun in this browser, was used before, or took longer than ten minutes. Begin again.",
            ),
            Self::Declined => Problem::forbidden("The identity provider did not sign you in."),
            Self::Rejected(rejection) => Problem::new(
                ProblemCode::InvalidToken,
                format!(
                    "The identity provider's response is not valid: {rejection}. \
                     Sign in again, and tell your administrator if it happens again."
                ),
            ),
            Self::NoAccount(fault) => no_account("the identity provider", account_claim, fault),
            Self::Unavailable => Problem {
                detail: "Signing in is not possible right now. Try again in a moment.".into(),
                ..Problem::unavailable()
            },
        }
    }
}

/// A failed sign-in with what the log says about it. Holds nothing that was sent or received but the code of an error.
#[derive(Debug)]
struct FailedSignIn {
    failure: Failure,
    reason: String,
    claim: Option<String>,
}

impl FailedSignIn {
    fn new(failure: Failure, reason: impl Into<String>) -> Self {
        Self {
            failure,
            reason: reason.into(),
            claim: None,
        }
    }

    /// Writes it to the log, once.
    fn log(self) -> Failure {
        let Self {
            failure,
            reason,
            claim,
        } = self;
        tracing::warn!(
            code = failure.word(),
            claim,
            reason,
            "sign-in with OpenID Connect failed"
        );
        failure
    }
}

impl From<OidcError> for FailedSignIn {
    fn from(error: OidcError) -> Self {
        let reason = error.to_string();
        match error {
            OidcError::Unavailable(_) => Self::new(Failure::Unavailable, reason),
            OidcError::Rejected(rejection) => Self {
                claim: rejection.claim().map(str::to_owned),
                ..Self::new(Failure::Rejected(rejection), reason)
            },
        }
    }
}

impl From<OidcError> for Failure {
    /// Also writes it to the log.
    fn from(error: OidcError) -> Self {
        FailedSignIn::from(error).log()
    }
}

/// The failure of a sign-in whose session cannot be stored. Also writes it to the log.
#[must_use]
pub fn session_not_stored() -> Failure {
    FailedSignIn::new(Failure::Unavailable, "the session cannot be stored").log()
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

/// Returns the session of the person who comes back from the provider, in the browser that keeps this attempt.
///
/// # Errors
/// [`Failure`], which is in the log.
pub async fn by_oidc(
    state: &State,
    provider: &Provider,
    attempt: Option<&Attempt>,
    returned: &Returned,
) -> Result<Session, Failure> {
    oidc_session(state, provider, attempt, returned)
        .await
        .map_err(FailedSignIn::log)
}

async fn oidc_session(
    state: &State,
    provider: &Provider,
    attempt: Option<&Attempt>,
    returned: &Returned,
) -> Result<Session, FailedSignIn> {
    let now = state.service.clock.now();
    let returned_state = returned.state.as_ref().map_or("", Secret::expose);
    let attempt = attempt
        .filter(|attempt| attempt.is_of(returned_state, now))
        .ok_or_else(|| {
            FailedSignIn::new(
                Failure::Unknown,
                "this browser began no sign-in with that state within the last ten minutes",
            )
        })?;
    if returned
        .issuer
        .as_ref()
        .is_some_and(|issuer| !provider.is_issuer(issuer))
    {
        return Err(OidcError::Rejected(Rejection::ResponseIssuer).into());
    }
    match (&returned.error, &returned.code) {
        (None, Some(code)) => {
            let claims = provider
                .finish(&*state.service.clock, attempt, code.expose())
                .await?;
            // An ID token says who it is now, and is valid for minutes: it does not bound the session.
            session_of(claims, provider.grounds(), state.service.clock.now(), None).map_err(
                |fault| FailedSignIn {
                    claim: Some(provider.account_claim().to_owned()),
                    ..FailedSignIn::new(
                        Failure::NoAccount(fault),
                        format!("the account claim {fault}"),
                    )
                },
            )
        }
        (None, None) => Err(OidcError::Rejected(Rejection::NoCode).into()),
        (Some(error), _)
            if matches!(error.as_str(), "temporarily_unavailable" | "server_error") =>
        {
            Err(OidcError::Unavailable(format!("responded with {error}")).into())
        }
        (Some(error), _) => {
            // A code of RFC 6749 or OpenID Connect, and no text that a stranger put into the address.
            let is_code =
                error.len() <= 64 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let code = if is_code {
                error.as_str()
            } else {
                "an unknown error"
            };
            Err(FailedSignIn::new(
                Failure::Declined,
                format!("the provider responded with {code}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn links(secret: &str) -> Links {
        Links::new(
            Secret::new(secret),
            "acme".parse().unwrap(),
            "developer",
            at(1000),
        )
    }

    #[test]
    fn link_signs_in_once_within_five_minutes() {
        let (secret, random) = (
            Secret::new("s".repeat(32)),
            Random::new(StdRng::seed_from_u64(7)),
        );
        let links = links(secret.expose());
        let code = |second| Links::code(&secret, &random, at(second));
        let (one, other, before) = (code(1000), code(1100), code(999));
        assert!(links.follow(one.expose(), at(1299)).is_some());
        assert!(
            links.follow(one.expose(), at(1299)).is_none(),
            "followed before"
        );
        assert!(
            !links.is_valid(one.expose(), at(1299)) && links.is_valid(other.expose(), at(1299))
        );
        assert!(links.follow(other.expose(), at(1400)).is_none(), "expired");
        assert!(
            links.follow(before.expose(), at(1000)).is_none(),
            "from before the server started"
        );
        let again = code(1100);
        assert!(
            links.is_valid(again.expose(), at(1399)) && links.is_valid(again.expose(), at(1399))
        );
        assert!(links.follow(again.expose(), at(1399)).is_some());
    }

    #[test]
    fn forged_link_is_rejected() {
        let (secret, random) = (
            Secret::new("s".repeat(32)),
            Random::new(StdRng::seed_from_u64(7)),
        );
        let links = links(secret.expose());
        let good = Links::code(&secret, &random, at(1000));
        let (signed, signature) = good.expose().rsplit_once('.').unwrap();
        let later = signed.replacen("1000", "1200", 1);
        let other_secret = Links::code(&Secret::new("t".repeat(32)), &random, at(1000));
        for code in [
            "",
            ".",
            "1000..",
            signed,
            &format!("{later}.{signature}"),
            &format!("{signed}."),
            other_secret.expose(),
        ] {
            assert!(
                !links.is_valid(code, at(1000)) && links.follow(code, at(1000)).is_none(),
                "{code}"
            );
        }
        assert!(links.follow(good.expose(), at(1000)).is_some());
    }

    #[test]
    fn followed_links_are_kept_until_they_expire_and_bounded() {
        let (secret, random) = (
            Secret::new("s".repeat(32)),
            Random::new(StdRng::seed_from_u64(7)),
        );
        let links = links(secret.expose());
        for _ in 0..LINKS_MAX {
            assert!(
                links
                    .follow(Links::code(&secret, &random, at(1000)).expose(), at(1000))
                    .is_some()
            );
        }
        assert!(
            links
                .follow(Links::code(&secret, &random, at(1001)).expose(), at(1299))
                .is_none()
        );
        assert!(
            links
                .follow(Links::code(&secret, &random, at(1299)).expose(), at(1300))
                .is_some()
        );
        assert_eq!(links.used.lock().unwrap().len(), 1);
    }

    #[test]
    fn every_failure_has_a_word_of_its_own() {
        let faults =
            [ClaimFault::Missing, ClaimFault::Type, ClaimFault::Form].map(Failure::NoAccount);
        let all: Vec<_> = [Failure::Unknown, Failure::Declined, Failure::Unavailable]
            .into_iter()
            .chain(faults)
            .chain(Rejection::ALL.map(Failure::Rejected))
            .collect();
        for failure in &all {
            assert_eq!(Failure::from_word(failure.word()), Some(*failure));
            assert!(
                failure
                    .word()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'-')
            );
        }
        assert_eq!(Failure::from_word("<script>"), None);
        let problem = Failure::NoAccount(ClaimFault::Type).problem("realm_access.account");
        assert!(
            problem
                .detail
                .contains("its claim `realm_access.account` must be a string or an integer"),
            "{problem:?}"
        );
    }
}
