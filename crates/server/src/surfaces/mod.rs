//! The page of routes. A surface is a room: its case, its times and its words live in its `present` and in
//! `tollkey-api`; what happens is in `service`.

pub mod account;
pub mod applications;
pub mod audit;
pub mod commerce;
pub mod dashboard;
pub mod docs;
pub mod health;
mod members;
pub mod operator;
mod retry;
pub mod verification;

use tollkey_core::{Checks, Id, Invalid, Problem, id::Entity};
use utoipa_actix_web::{scope, service_config::ServiceConfig};

/// Every route of the server but the Swagger UI.
pub fn routes(config: &mut ServiceConfig<'_>) {
    config
        .service(health::live)
        .service(health::ready)
        .service(health::document)
        .service(
            scope("/api/v1")
                // Gateways. First, because routes are tried in turn and nothing is asked as often
                .service(verification::ForwardAuth)
                .service(verification::AuthRequest)
                .service(verification::ExtAuthz)
                // Applications and their keys (kadosei)
                .service(applications::create)
                .service(applications::list)
                .service(applications::get)
                .service(applications::update)
                .service(applications::delete)
                .service(applications::set_status)
                .service(applications::create_key)
                .service(applications::list_keys)
                .service(applications::revoke_key)
                // Commerce keys (pepay, crypto-checkout, hellgate)
                .service(commerce::create)
                .service(commerce::list)
                .service(commerce::get)
                .service(commerce::update)
                .service(commerce::revoke)
                .service(commerce::suspend)
                .service(commerce::resume)
                .service(commerce::rotate)
                // Account keys (storlaunch); also under /v1, see account::under_v1
                .service(account::create)
                .service(account::list)
                .service(account::delete)
                .service(account::revoke)
                .service(account::audit_log)
                // Verification
                .service(verification::verify)
                .service(verification::verify_batch)
                .service(verification::introspect)
                .service(verification::sync)
                .service(verification::sync_lookup)
                .service(verification::whoami)
                .service(verification::revoke_whoami)
                // Audit log
                .service(audit::list)
                // Operator
                .service(operator::get_account)
                .service(operator::put_account)
                .service(operator::create_service_key)
                .service(operator::list_service_keys)
                .service(operator::revoke_service_key),
        );
}

/// The id in a path. A malformed one is answered as an unknown one.
fn path_id<Of: Entity>(text: &str) -> Result<Id<Of>, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

/// A number of a query that must be within a range.
fn within(
    value: Option<u32>,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, Invalid> {
    match value {
        None => Ok(default),
        Some(value) if range.contains(&value) => Ok(value),
        Some(_) if *range.end() == u32::MAX => {
            Err(Invalid::new(format!("must be at least {}", range.start())))
        }
        Some(_) => Err(Invalid::new(format!(
            "must be {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

/// The page and limit of a paged list.
fn paging(page: Option<u32>, limit: Option<u32>) -> Result<(u32, u32), Problem> {
    let mut checks = Checks::default();
    let page = checks.member("page", within(page, 1, 1..=u32::MAX));
    let limit = checks.member("limit", within(limit, 10, 1..=100));
    match (page, limit) {
        (Some(page), Some(limit)) => Ok((page, limit)),
        _ => Err(checks.into_problem()),
    }
}
