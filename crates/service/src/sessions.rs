//! Sessions of the dashboard.
//!
//! A session is looked up by the SHA-256 of the token in its cookie. It is read from the store with every request, so
//! every replica rejects a session that was ended.

use std::net::IpAddr;

use tollkey_core::{
    AccountId, Digest, Problem,
    network::client_network,
    session::{Session, SignIn, SignInSettingsHash},
};
use tollkey_store::Owner;
use zeroize::Zeroizing;

use crate::service::Service;

#[derive(Debug, Clone)]
pub struct ActiveSession {
    pub digest: Digest,
    pub session: Session,
}

impl ActiveSession {
    fn owner(&self) -> Owner {
        let account = self.session.account_id.as_ref();
        account.map_or(Owner::Operator, Owner::from)
    }
}

/// Returns the client as the owner of a connection, because the account is known only after the session is
/// found.
fn client(ip: Option<IpAddr>) -> Owner {
    Owner::Client(ip.map(client_network))
}

/// Creates a session and ends the browser's previous ones. Returns the token for the cookie.
pub async fn begin(
    service: &Service,
    ip: Option<IpAddr>,
    sign_in: SignIn,
    previous: Vec<Digest>,
) -> Result<Zeroizing<String>, Problem> {
    let token = service.random.secret();
    let digest = Digest::of_key(&token);
    let session = Session::begin(sign_in, &token, service.clock.now());
    let stored = session.clone();
    service
        .change(client(ip), move |tx| {
            for previous in previous {
                tx.delete_session(&previous)?;
            }
            Ok(tx.insert_session(&digest, &stored)?)
        })
        .await?;
    tracing::info!(
        subject = session.subject,
        account = session.account_id.as_ref().map(tracing::field::display),
        operator = session.is_operator,
        ends_at = %session.ends_at,
        "signed in to the dashboard"
    );
    Ok(token)
}

/// Returns the session with this token if it has not expired and began with one of these sign-in settings. Stores the
/// time of the request at most once a minute.
pub async fn find(
    service: &Service,
    ip: Option<IpAddr>,
    token: &str,
    valid: &[SignInSettingsHash],
) -> Result<Option<ActiveSession>, Problem> {
    let (digest, now) = (Digest::of_key(token), service.clock.now());
    let found = service.store.session(client(ip), digest).await?;
    let is_valid = |session: &Session| {
        !session.is_expired(now)
            && valid
                .iter()
                .any(|settings| session.began_with(settings, token))
    };
    let Some(session) = found.filter(is_valid) else {
        return Ok(None);
    };
    if session.needs_last_seen_update(now) {
        service
            .change(client(ip), move |tx| Ok(tx.touch_session(&digest, now)?))
            .await?;
    }
    Ok(Some(ActiveSession { digest, session }))
}

pub async fn end(service: &Service, active: &ActiveSession) -> Result<(), Problem> {
    let digest = active.digest;
    service
        .change(active.owner(), move |tx| Ok(tx.delete_session(&digest)?))
        .await?;
    tracing::info!(
        subject = active.session.subject,
        "signed out of the dashboard"
    );
    Ok(())
}

/// Ends the sessions of an account, of a subject, of a subject in an account, or all. Returns their number.
pub async fn end_all(
    service: &Service,
    account: Option<AccountId>,
    subject: Option<String>,
) -> Result<usize, Problem> {
    Ok(service.store.end_sessions(account, subject).await?)
}

/// Sets the account that an operator's session manages. Does nothing for any other session.
pub async fn choose_account(
    service: &Service,
    active: &ActiveSession,
    account: AccountId,
) -> Result<(), Problem> {
    let digest = active.digest;
    service
        .change(active.owner(), move |tx| {
            Ok(tx.set_session_account(&digest, Some(&account))?)
        })
        .await
}
