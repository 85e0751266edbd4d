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

use actix_web::web;
use tollkey_core::{Checks, Id, Invalid, Problem, id::Entity};
use utoipa_actix_web::{scope, service_config::ServiceConfig};

use crate::surface::Surfaces;

/// The surfaces. The OpenAPI document has their tags in this order; the last one has every path that no other has.
pub const SURFACES: Surfaces = Surfaces(&[
    &applications::SURFACE,
    &commerce::SURFACE,
    &account::SURFACE,
    &verification::SURFACE,
    &verification::GATEWAYS,
    &audit::SURFACE,
    &operator::SURFACE,
    &dashboard::SURFACE,
    &docs::SURFACE,
    &health::SURFACE,
]);

/// The routes that the OpenAPI document describes.
pub fn documented_routes(config: &mut ServiceConfig<'_>) {
    config.configure(health::configure).service(
        scope("/api/v1")
            // First, because routes are tried in turn, and gateways send more requests than all other callers.
            .configure(verification::configure_gateways)
            .configure(applications::configure)
            .configure(commerce::configure)
            .configure(account::configure)
            .configure(verification::configure)
            .configure(audit::configure)
            .configure(operator::configure),
    );
}

/// All other routes.
pub fn other_routes(config: &mut web::ServiceConfig) {
    config
        .configure(account::under_v1)
        .configure(dashboard::configure)
        .configure(docs::configure);
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
