//! Verification: for resource servers (`/verify`, `/introspect`, and `/sync` for those that verify themselves), for gateways (`/authz/*`) and for the key itself
//! (`/whoami`).

mod ask;
mod gateway;
mod own;
mod present;
mod subscription;

use ask::{introspect, verify, verify_batch};
pub use gateway::DirectGateway;
use gateway::{AuthRequest, ExtAuthz, ForwardAuth};
use own::{revoke_whoami, whoami};
use subscription::{sync, sync_lookup};

use utoipa_actix_web::service_config::ServiceConfig;

use crate::surface::{Document, Surface};

/// Verification for resource servers, and for keys about themselves.
pub const SURFACE: Surface = Surface {
    quiet_routes: &["/api/v1/sync"],
    ..Surface::api(
        &[
            "/api/v1/verify",
            "/api/v1/introspect",
            "/api/v1/sync",
            "/api/v1/whoami",
        ],
        Document::new(
            "verification",
            "May this key do that? For resource servers, and for keys about themselves.",
        ),
    )
};

/// Verification for gateways. A gateway may copy every header of a response into the request or the response that it passes on, so
/// there are none but those of the contract.
pub const GATEWAYS: Surface = Surface {
    set_headers: |_, _| {},
    is_for_gateways: true,
    ..Surface::api(
        &["/api/v1/authz/"],
        Document {
            forbidden: "The denial's code, or `invalid_requirement`.",
            has_ids: false,
            ..Document::new(
                "gateways",
                "The same question in the dialects of nginx, Traefik, Caddy and Envoy.",
            )
        },
    )
};

/// The routes of gateways, under `/api/v1`.
pub fn configure_gateways(config: &mut ServiceConfig<'_>) {
    config
        .service(ForwardAuth)
        .service(AuthRequest)
        .service(ExtAuthz);
}

/// The other routes, under `/api/v1`.
pub fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(verify)
        .service(verify_batch)
        .service(introspect)
        .service(sync)
        .service(sync_lookup)
        .service(whoami)
        .service(revoke_whoami);
}
