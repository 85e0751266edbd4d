//! Verification: for resource servers (`/verify`, `/introspect`, and `/sync` for those that verify
//! keys themselves), for gateways (`/authz/*`) and for the presented key itself (`/whoami`).

mod gateway;
mod handlers;
mod own;
mod present;
mod subscription;

pub use gateway::DirectGateway;
use gateway::{AuthRequest, ExtAuthz, ForwardAuth};
#[cfg(feature = "grpc")]
pub(crate) use gateway::{allowed, decision};
use handlers::{introspect, verify, verify_batch};
use own::{revoke_whoami, whoami};
use subscription::{sync, sync_lookup};

use utoipa_actix_web::service_config::ServiceConfig;

use crate::surface::{Document, Surface};

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
            "Verification of keys for resource servers, and information about the presented key.",
        ),
    )
};

/// The surface of verification for gateways. A gateway can copy every header of a response into the request or
/// response that it forwards, so the responses have only the documented headers.
pub const GATEWAYS: Surface = Surface {
    set_headers: |_, _| {},
    is_for_gateways: true,
    ..Surface::api(
        &["/api/v1/authz/"],
        Document {
            forbidden: "`insufficient_scope` or the code of another denial; `invalid_requirement`: the requirement in the gateway's configuration is not valid.",
            has_ids: false,
            ..Document::new(
                "gateways",
                "Verification of keys for nginx, Traefik, Caddy and Envoy.",
            )
        },
    )
};

pub fn configure_gateways(config: &mut ServiceConfig<'_>) {
    config
        .service(ForwardAuth)
        .service(AuthRequest)
        .service(ExtAuthz);
}

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
