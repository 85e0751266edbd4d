//! Forms that create something only once, even if they are sent again.

use actix_web::HttpResponse;
use tollkey_core::{Problem, ProblemCode, audit::Actor};
use tollkey_service::{
    Outcome,
    idempotency::{
        self, BeginOutcome, CreationPermit, IdempotencyKey, Recorded, RequestTarget, StoredResponse,
    },
};

use super::{
    fields::Fields,
    page::{HOME, see_other},
};
use crate::{body::Body, state::State};

/// For this account only: in another tab an operator may choose another one, or another person may sign in.
pub(super) fn untouched(state: &State, account: &str) -> Fields {
    Fields::default().with("once", fresh(state, account))
}

fn fresh(state: &State, account: &str) -> String {
    format!("{}.{account}", state.service.random.secret().as_str())
}

fn is_for(fields: &Fields, account: &str) -> bool {
    fields
        .get("once")
        .split_once('.')
        .is_some_and(|(_, own)| own == account)
}

pub(super) fn for_another_account(account: &str) -> Problem {
    Problem::forbidden(format!(
        "This form was opened for another account, and you now manage {account}. Check the form and send it again."
    ))
}

/// Replaces the field `once` if the form cannot be sent again with it.
pub(super) fn with_errors(
    state: &State,
    account: &str,
    fields: Fields,
    problem: &Problem,
) -> Fields {
    let is_spent = problem.code == ProblemCode::IdempotencyMismatch || !is_for(&fields, account);
    let fields = fields.with_errors(problem);
    if is_spent {
        fields.replaced("once", fresh(state, account))
    } else {
        fields
    }
}

/// Creates something once: a reload of the page or a second click creates nothing more. It does not show a secret again
/// either: the record `R` must not contain one, because the field `once` stays in the history of the browser.
pub(super) async fn once<T, R: Recorded<T>>(
    state: &State,
    (account, actor): (&str, &Actor),
    (path, fields, body): (&str, &Fields, &Body),
    create: impl AsyncFnOnce(CreationPermit<R>) -> Result<Outcome<T, R>, Problem>,
) -> Result<Outcome<T, R>, Problem> {
    let key = IdempotencyKey::parse(fields.get("once"))
        .map_err(|_| Problem::field("once", "The form is invalid. Reload the page."))?;
    if !is_for(fields, account) {
        return Err(for_another_account(account));
    }
    let target = RequestTarget {
        account,
        actor,
        mode: None,
        method: "POST",
        path,
    };
    let begun = idempotency::begin(&state.service, target, Some(key), body.bytes()?).await.map_err(|problem| match problem.code {
        // The default detail is for API clients.
        ProblemCode::IdempotencyMismatch => Problem {
            detail: "This form was sent before with other values and created something. Send it again to create another one."
                .to_owned(),
            ..problem
        },
        _ => problem,
    })?;
    match begun {
        BeginOutcome::Fresh(creating) => create(creating).await,
        BeginOutcome::Replay(outcome) => Ok(outcome),
    }
}

/// Redirects to the resource that release 0.1.0 created with the same form.
pub(super) fn redirect(stored: &StoredResponse) -> HttpResponse {
    see_other(stored.location.as_deref().unwrap_or(HOME))
}
