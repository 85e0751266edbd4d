//! The security scheme of HTTP Basic, which only introspection accepts.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

pub(super) const NAME: &str = "client_secret_basic";

pub(super) fn scheme() -> SecurityScheme {
    let description =
        "HTTP Basic with a service key or secret key as the password. The user name is ignored.";
    let http = HttpBuilder::new()
        .scheme(HttpAuthScheme::Basic)
        .description(Some(description))
        .build();
    SecurityScheme::Http(http)
}
