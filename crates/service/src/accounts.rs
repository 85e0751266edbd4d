//! Accounts.

use serde_json::json;
use tollkey_core::{
    Account, AccountId, OperatingModel, Preconditions, Problem,
    audit::{Action, Target},
};

use tollkey_store::Owner;

use crate::{actor::RequestActor, service::Service};

/// An account without stored settings has the default settings.
pub async fn get(service: &Service, id: AccountId) -> Result<Account, Problem> {
    service
        .read(Owner::from(&id), move |db| db.account(&id).get())
        .await
}

/// Sets the operating model of the managed account, which also applies to existing keys. Fails with
/// `precondition_failed`.
pub async fn set_operating_model(
    service: &Service,
    by: &RequestActor,
    model: OperatingModel,
    preconditions: Preconditions,
) -> Result<Account, Problem> {
    let now = service.clock.now();
    let account_id = by.account_id.clone();
    let mut draft = by.draft(
        service,
        Action::AccountUpdated,
        Target::account(&account_id),
        json!({}),
    );
    service
        .ensure(by, move |tx| {
            let mut account = tx.account(&account_id);
            account.lock()?;
            let before = account.get()?;
            preconditions.check(before.entity_tag())?;
            if account.set_operating_model(model, now)? {
                draft.changes =
                    json!({"operating_model": [before.operating_model.as_str(), model.as_str()]});
                account.append(draft)?;
            }
            Ok(Account {
                id: account_id,
                operating_model: model,
            })
        })
        .await
}
