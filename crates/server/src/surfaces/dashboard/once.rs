//! Forms that make something, once however often they are sent.

use std::sync::{Arc, Mutex, PoisonError};

use tollkey_api::Secret;
use tollkey_core::{Problem, audit::Actor};

use super::fields::Fields;
use crate::{
    body::Body,
    dev_mode::new_secret,
    service::idempotency::{self, Answered, Begun, Creating, IdempotencyKey, Place, Said},
    state::State,
};

/// What became of a form that makes something.
pub(super) enum Once<T> {
    /// It was made; if it has a secret, this is the one time to show it.
    Made(T),
    /// The form was sent before; there is what it made.
    Before(String),
}

/// Says what was made, in the transaction that makes it.
pub(super) type Say<T> = Box<dyn FnOnce(T) -> Answered + Send>;

/// The fields of such a form before anybody has filled it in.
pub(super) fn untouched(state: &State) -> Fields {
    Fields::default().with("once", new_secret(&state.random).expose())
}

/// Makes something once: a page that is loaded again, or a button that is pressed twice, makes no other one. Nor does it
/// show a secret again: what is kept for a repeat is only where the thing is.
///
/// # Errors
/// Those of [`idempotency::begin`], and of `make`.
pub(super) async fn once<T: Send + 'static>(
    state: &State,
    (account, actor): (&str, &Actor),
    path: &str,
    (fields, body): (&Fields, &Body),
    place_of: fn(&T) -> String,
    make: impl AsyncFnOnce(Creating, Say<T>) -> Result<Said, Problem>,
) -> Result<Once<T>, Problem> {
    let key = IdempotencyKey::parse(fields.get("once"))
        .map_err(|_| Problem::field("once", "This form is not one of ours; load the page again."))?;
    let place = Place { account, actor, mode: None, method: "POST", path };
    let creating = match idempotency::begin(state, place, Some(key), body.bytes()?).await? {
        Begun::Fresh(creating) => creating,
        Begun::Replay(said) => return Ok(Once::before(said)),
    };
    // From the transaction to the page, and nowhere else.
    let handover: Arc<Mutex<Option<T>>> = Arc::default();
    let giver = Arc::clone(&handover);
    let say = move |made: T| {
        let location = Some(place_of(&made));
        *giver.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Answered { status: 303, location, body: Secret::new("") }
    };
    let said = make(creating, Box::new(say)).await?;
    let made = handover.lock().unwrap_or_else(PoisonError::into_inner).take();
    // None where the same form was sent twice at a time, and the other one came first.
    Ok(made.map_or_else(|| Once::before(said), Once::Made))
}

impl<T> Once<T> {
    fn before(said: Said) -> Self {
        Self::Before(said.answered.location.unwrap_or_else(|| "/dashboard".to_owned()))
    }
}
