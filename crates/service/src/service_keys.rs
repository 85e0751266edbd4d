//! Service keys: what resource servers present. They belong to the operator, not to an account, so they have no
//! place in an account's audit log; the server's log says who (`by`) made and revoked them.

use tollkey_core::{
    KeyText, Problem, ServiceKey, ServiceKeyId, api_key::Transition, key_text::Kind,
};

use tollkey_store::Owner;

use super::idempotency::{self, Answered, Creating, Said};
use crate::state::State;

/// How many are listed.
const LISTED: u32 = 1000;

fn mint(state: &State, name: String) -> (ServiceKey, KeyText) {
    let now = state.clock.now();
    let (id, text) = state.random.with(|rng| {
        (
            ServiceKeyId::new(now, rng),
            KeyText::mint(Kind::ServiceKey, rng),
        )
    });
    (
        ServiceKey {
            id,
            name,
            last4: text.last4(),
            created_at: now,
            revoked_at: None,
        },
        text,
    )
}

fn log_creation(id: ServiceKeyId, by: &str) {
    tracing::info!(service_key = %id, by, "a service key was created");
}

/// Makes a service key. The text is in the answer and nowhere else.
///
/// # Errors
/// `unavailable`.
pub async fn create(
    state: &State,
    by: &str,
    name: String,
) -> Result<(ServiceKey, KeyText), Problem> {
    let (key, text) = mint(state, name);
    let digest = text.digest();
    let key = state
        .change(Owner::Operator, move |tx| {
            tx.insert_service_key(&key, &digest)?;
            Ok(key)
        })
        .await?;
    log_creation(key.id, by);
    Ok((key, text))
}

/// [`create`] for a request that may be sent again.
///
/// # Errors
/// `unavailable`, and those of [`idempotency::create`].
pub async fn create_once(
    state: &State,
    by: &str,
    name: String,
    creating: Creating,
    say: impl FnOnce((ServiceKey, KeyText)) -> Answered + Clone + Send + 'static,
) -> Result<Said, Problem> {
    let (key, text) = mint(state, name);
    let (id, digest) = (key.id, text.digest());
    let said = idempotency::create(state, Owner::Operator, creating, say, move |tx| {
        tx.insert_service_key(&key, &digest)?;
        Ok((key, text))
    })
    .await?;
    if !said.replayed {
        log_creation(id, by);
    }
    Ok(said)
}

/// Service keys, newest first.
///
/// # Errors
/// `unavailable`.
pub async fn list(state: &State) -> Result<Vec<ServiceKey>, Problem> {
    state
        .read(Owner::Operator, |db| db.service_keys(LISTED))
        .await
}

/// Revokes a service key; a repeat changes nothing. Either way it is dead everywhere once this returns.
///
/// # Errors
/// `not_found`.
pub async fn revoke(state: &State, by: &str, id: ServiceKeyId) -> Result<(), Problem> {
    let now = state.clock.now();
    let transition = state
        .ensure(Owner::Operator, move |tx| {
            tx.revoke_service_key(&id, now)?
                .ok_or_else(Problem::not_found)
        })
        .await?;
    if transition == Transition::Changed {
        tracing::info!(service_key = %id, by, "a service key was revoked");
    }
    Ok(())
}
