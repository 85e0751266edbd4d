//! The page of routes: every surface, and where its routes are mounted.

use actix_web::web;
use utoipa_actix_web::{scope, service_config::ServiceConfig};

use crate::{
    dashboard,
    surface::{Document, Surface, Surfaces},
    surfaces::{account, applications, audit, commerce, docs, health, operator, verification},
};

/// Paths of the API that no surface has: no cache may store a response there.
const OTHER_API_PATHS: Surface = Surface::api(&["/api"], Document::NONE);

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
    &OTHER_API_PATHS,
    &health::SURFACE,
]);

/// The routes that the OpenAPI document describes.
pub fn documented_routes(config: &mut ServiceConfig<'_>) {
    config.configure(health::configure).service(
        scope("/api/v1")
            // First, because routes are tried in turn, and resource servers send more requests than all other callers.
            .configure(verification::configure)
            .configure(verification::configure_gateways)
            .configure(applications::configure)
            .configure(commerce::configure)
            .configure(account::configure)
            .configure(audit::configure)
            .configure(operator::configure),
    );
}

/// The routes of probes, for a listener that has no others.
pub fn probes(config: &mut web::ServiceConfig) {
    config.service(health::live).service(health::ready);
}

/// All other routes.
pub fn other_routes(config: &mut web::ServiceConfig) {
    config
        .configure(account::under_v1)
        .configure(dashboard::configure)
        .configure(docs::configure);
}
