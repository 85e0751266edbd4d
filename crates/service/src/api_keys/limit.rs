//! The maximum number of keys of an account.

use tollkey_core::{ApiKey, Problem, ProblemCode};
use tollkey_store::AccountWriter;

use super::families::families_sharing_limit;

/// Rejects `more` additional keys if the account would then have more than `limit` usable keys of this key's kind.
/// Locks the account, so that no other request inserts a key between counting and inserting.
pub(super) fn check_limit(
    account: &mut AccountWriter<'_>,
    key: &ApiKey,
    limit: Option<u32>,
    more: u64,
) -> Result<(), Problem> {
    let Some(limit) = limit else { return Ok(()) };
    let families = families_sharing_limit(key.family);
    account.lock()?;
    if account.count_usable_of(families, key.created_at)? + more > u64::from(limit) {
        return Err(Problem::new(
            ProblemCode::KeyLimitReached,
            format!(
                "The account already has its maximum number of keys of this kind that are neither revoked nor expired ({limit}). Revoke a key first."
            ),
        ));
    }
    Ok(())
}
