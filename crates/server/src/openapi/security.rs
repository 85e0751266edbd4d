//! The credentials of operations.
//!
//! A handler lists every kind of credential that it accepts. The document has only the alternatives from which a client
//! has to choose: Swagger UI and generated clients send each credential that they have for one of the alternatives, and
//! the server rejects a request with several. The text of the operation names the others.

use serde_json::Value;
use utoipa::openapi::{
    extensions::Extensions,
    path::Operation,
    security::{Http, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use crate::surface::Surface;

pub(super) const MANAGEMENT_TOKEN: &str = "management_token";
pub(super) const SERVICE_KEY: &str = "service_key";
pub(super) const SECRET_KEY: &str = "secret_key";
pub(super) const API_KEY: &str = "api_key";
pub(super) const CLIENT_SECRET_BASIC: &str = "client_secret_basic";

/// The names of the security schemes of the credentials that an operation accepts.
pub(super) struct Callers(Vec<String>);

impl Callers {
    pub(super) fn of(operation: &Operation) -> Self {
        let requirements = operation.security.iter().flatten();
        Self(requirements.flat_map(scheme_names).collect())
    }

    pub(super) fn has(&self, scheme: &str) -> bool {
        self.0.iter().any(|name| name == scheme)
    }

    /// Whether the operation requires no credential.
    pub(super) fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the credential can be an API key, whose rate limit then applies.
    pub(super) fn have_api_keys(&self) -> bool {
        self.has(API_KEY) || self.has(SECRET_KEY)
    }

    fn documented(&self) -> impl Iterator<Item = &str> {
        let for_services = self.has(SERVICE_KEY);
        let is_documented =
            move |name: &&str| !(for_services && [MANAGEMENT_TOKEN, SECRET_KEY].contains(name));
        self.0.iter().map(String::as_str).filter(is_documented)
    }

    /// Describes the accepted credentials that [`Self::documented`] leaves out.
    fn note(&self) -> Option<&'static str> {
        let has = |scheme| self.has(scheme);
        if has(API_KEY) {
            Some(
                "Send the key in exactly one of the headers `Authorization: Bearer`, `x-api-key` and \
                 `x-commerce-api-key`.",
            )
        } else if has(SERVICE_KEY) && has(SECRET_KEY) {
            Some(
                "The credential is a service key. A management token with the role `service`, or a secret key, also \
                 works.",
            )
        } else if has(SERVICE_KEY) {
            Some(
                "The credential is a service key. A management token with the role `service` also works.",
            )
        } else {
            None
        }
    }
}

fn scheme_names(requirement: &SecurityRequirement) -> Vec<String> {
    match serde_json::to_value(requirement) {
        Ok(Value::Object(schemes)) => schemes.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn schemes() -> [(&'static str, SecurityScheme); 5] {
    [
        (
            MANAGEMENT_TOKEN,
            bearer(
                "JWT",
                "A management token: a JWT with `sub`, `exp`, and the account claim or a role.",
            ),
        ),
        (
            SERVICE_KEY,
            bearer(
                "tks_…",
                "A service key, which an operator creates for a resource server or gateway.",
            ),
        ),
        (SECRET_KEY, bearer("sk_…", "A secret key of an account.")),
        (
            API_KEY,
            bearer(
                "ck_… ks_… sk_… pk_…",
                "An API key of any family. It can also be in the header `x-api-key` or `x-commerce-api-key` instead.",
            ),
        ),
        (CLIENT_SECRET_BASIC, basic()),
    ]
}

fn basic() -> SecurityScheme {
    let description =
        "HTTP Basic with a service key or secret key as the password. The user name is ignored.";
    let http = HttpBuilder::new()
        .scheme(HttpAuthScheme::Basic)
        .description(Some(description))
        .build();
    SecurityScheme::Http(http)
}

fn bearer(format: &str, description: &str) -> SecurityScheme {
    let http: Http = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format(format)
        .description(Some(description))
        .build();
    SecurityScheme::Http(http)
}

/// Documents the credentials. An operation without one has an empty list, which generators do not confuse with an
/// absent one. Marks operations for gateways, so that generators leave them out of clients.
pub(super) fn complete(surface: &Surface, callers: &Callers, operation: &mut Operation) {
    let requirement = |name: &str| SecurityRequirement::new(name, [""; 0]);
    operation.security = Some(callers.documented().map(requirement).collect());
    if let Some(note) = callers.note() {
        let description = operation.description.get_or_insert_default();
        if !description.is_empty() {
            description.push_str("\n\n");
        }
        description.push_str(note);
    }
    if surface.is_for_gateways {
        let mark = Extensions::from_iter([("x-internal", true)]);
        operation.extensions.get_or_insert_default().merge(mark);
    }
}
