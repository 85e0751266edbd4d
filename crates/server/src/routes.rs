//! All surfaces, and where their routes are mounted.

use actix_web::web;
use utoipa_actix_web::{scope, service_config::ServiceConfig};

use crate::{
    dashboard,
    surface::{Document, Surface, Surfaces},
    surfaces::{
        account, applications, audit, commerce, docs, health, operator, unkey, verification,
    },
};

/// API paths of no other surface: no cache may store their responses.
const OTHER_API_PATHS: Surface = Surface::api(&["/api"], Document::NONE);

/// The surfaces. The OpenAPI document has their tags in this order; the last one has all remaining paths.
pub const SURFACES: Surfaces = Surfaces(&[
    &applications::SURFACE,
    &commerce::SURFACE,
    &account::SURFACE,
    &verification::SURFACE,
    &verification::GATEWAYS,
    &unkey::SURFACE,
    &audit::SURFACE,
    &operator::SURFACE,
    &dashboard::SURFACE,
    &docs::SURFACE,
    &OTHER_API_PATHS,
    &health::SURFACE,
]);

pub fn documented_routes(config: &mut ServiceConfig<'_>) {
    config
        .configure(health::configure)
        .service(
            scope("/api/v1")
                // First, because routes are tried in order, and most requests come from resource servers and gateways.
                .configure(verification::configure)
                .configure(verification::configure_gateways)
                .configure(applications::configure)
                .configure(commerce::configure)
                .configure(account::configure)
                .configure(audit::configure)
                .configure(operator::configure),
        )
        .service(scope("/v2").configure(unkey::configure));
}

/// Mounts the routes of probes, for a listener that has no others.
pub fn probes(config: &mut web::ServiceConfig) {
    config.service(health::live).service(health::ready);
}

pub fn other_routes(config: &mut web::ServiceConfig) {
    config
        .configure(account::under_v1)
        .configure(unkey::under_api)
        .configure(dashboard::configure)
        .configure(docs::configure);
}
