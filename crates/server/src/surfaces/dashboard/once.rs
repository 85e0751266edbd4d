//! Forms that make something, once however often they are sent.

use std::sync::{Arc, Mutex, PoisonError};

use tollkey_api::Secret;
use tollkey_core::{Problem, ProblemCode, audit::Actor};

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

/// Says what was made, in the transaction that makes it, which may run more than once.
pub(super) type Say<T> = Arc<dyn Fn(T) -> Answered + Send + Sync>;

/// The fields of such a form before anybody has filled it in. It is for this account, and acts on no other: in another tab
/// an operator may choose another one, or somebody else sign in.
pub(super) fn untouched(state: &State, account: &str) -> Fields {
    Fields::default().with("once", fresh(state, account))
}

/// What is in the field `once`: a text that no other form has, and the account.
fn fresh(state: &State, account: &str) -> String {
    format!("{}.{account}", new_secret(&state.random).expose())
}

fn is_for(fields: &Fields, account: &str) -> bool {
    fields
        .get("once")
        .split_once('.')
        .is_some_and(|(_, own)| own == account)
}

/// What a form that was made for another account is refused with.
pub(super) fn for_another_account(account: &str) -> Problem {
    Problem::forbidden(format!(
        "This form was made for another account; now you manage {account}. Look at it again."
    ))
}

/// Such a form with what is wrong with it. One that cannot be sent again as it is becomes another one.
pub(super) fn refused(state: &State, account: &str, fields: Fields, problem: &Problem) -> Fields {
    let is_spent = problem.code == ProblemCode::IdempotencyMismatch || !is_for(&fields, account);
    let fields = fields.refused(problem);
    if is_spent {
        fields.replaced("once", fresh(state, account))
    } else {
        fields
    }
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
    let key = IdempotencyKey::parse(fields.get("once")).map_err(|_| {
        Problem::field("once", "This form is not one of ours; load the page again.")
    })?;
    if !is_for(fields, account) {
        return Err(for_another_account(account));
    }
    let place = Place {
        account,
        actor,
        mode: None,
        method: "POST",
        path,
    };
    let begun = idempotency::begin(state, place, Some(key), body.bytes()?).await.map_err(|problem| match problem.code {
        // Its own words are for programs.
        ProblemCode::IdempotencyMismatch => Problem {
            detail: "This form was sent before, with something else in it, and what it made is there. Send it again to make another."
                .to_owned(),
            ..problem
        },
        _ => problem,
    })?;
    let creating = match begun {
        Begun::Fresh(creating) => creating,
        Begun::Replay(said) => return Ok(Once::before(said)),
    };
    // From the transaction to the page, and nowhere else.
    let handover: Arc<Mutex<Option<T>>> = Arc::default();
    let giver = Arc::clone(&handover);
    let say = move |made: T| {
        let location = Some(place_of(&made));
        *giver.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Answered {
            status: 303,
            location,
            body: Secret::new(""),
        }
    };
    let said = make(creating, Arc::new(say)).await?;
    let made = handover
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    // None where the same form was sent twice at a time, and the other one came first.
    Ok(made.map_or_else(|| Once::before(said), Once::Made))
}

impl<T> Once<T> {
    fn before(said: Said) -> Self {
        Self::Before(
            said.answered
                .location
                .unwrap_or_else(|| "/dashboard".to_owned()),
        )
    }
}
