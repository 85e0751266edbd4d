//! Verification for gateways in their own protocols: Traefik and Caddy, nginx, Envoy.
//!
//! The presented key is the only credential; the gateway needs none. The requirements come only
//! from the configuration of the gateway. Each operation reads only the headers of its gateway, and
//! no body. A response that allows a request is exactly 200 with all `X-Auth-*` headers, so that a
//! gateway that copies them replaces headers of the client with the same names.

pub(crate) mod decision;
mod direct;

use std::borrow::Cow;

use actix_web::{
    HttpRequest, HttpResponse,
    dev::{AppService, HttpServiceFactory, RequestHead},
    http::{
        StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
    web::{self, Bytes},
};
use tollkey_core::{Invalid, Mode, Problem, leads_above_root};
use utoipa_actix_web::OpenApiFactory;

use self::decision::{Authorization, Identity, Requirement, decide};
pub use self::direct::DirectGateway;
use crate::{auth::RequestParts, rejection::HandlerResult, state::State};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const X_ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const X_ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
/// The names of [`Identity::into_values`].
const IDENTITY: [HeaderName; 6] = [
    HeaderName::from_static("x-auth-key-id"),
    HeaderName::from_static("x-auth-account-id"),
    HeaderName::from_static("x-auth-application-id"),
    HeaderName::from_static("x-auth-mode"),
    HeaderName::from_static("x-auth-scopes"),
    HeaderName::from_static("x-auth-merchant-id"),
];

impl Requirement {
    fn from_query(state: &State, query: &str) -> Result<Self, Invalid> {
        Self::read(state, form_urlencoded::parse(query.as_bytes()))
    }

    /// Reads a raw path segment such as `scope=links:read;mode=live`, or `-` for none.
    fn from_segment(state: &State, segment: Option<&str>) -> Result<Self, Invalid> {
        let segment = match segment {
            Some("-") => return Ok(Self::default()),
            Some(segment) => segment,
            None => {
                return Err(Invalid::new(
                    "`path_prefix` must end in the requirements, or in `-`",
                ));
            }
        };
        let pairs: Option<Vec<_>> = segment
            .split(';')
            .map(|pair| pair.split_once('='))
            .collect();
        Self::read(
            state,
            pairs.ok_or_else(|| Invalid::new("the requirements must be `-`, or pairs such as `scope=links:read` separated by `;`"))?,
        )
    }
}

/// How a gateway describes the request that it authorizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Traefik, Caddy.
    ForwardAuth,
    /// nginx.
    AuthRequest,
    /// Envoy.
    ExtAuthz,
}

impl Dialect {
    fn pattern(self) -> &'static str {
        match self {
            Self::ForwardAuth => "/api/v1/authz/forward-auth",
            Self::AuthRequest => "/api/v1/authz/auth-request",
            Self::ExtAuthz => "/api/v1/authz/ext-authz{tail:(/.*)?}",
        }
    }

    fn authorization<'a>(
        self,
        head: &'a RequestHead,
        path: &'a str,
        requirement: Result<&'a Requirement, &'a Invalid>,
    ) -> Authorization<'a> {
        let headers = head.headers();
        let (method, uri) = match self {
            Self::ForwardAuth => (
                single(headers, X_FORWARDED_METHOD),
                single(headers, X_FORWARDED_URI),
            ),
            Self::AuthRequest => (
                single(headers, X_ORIGINAL_METHOD),
                single(headers, X_ORIGINAL_URI),
            ),
            Self::ExtAuthz => {
                let parts = ext_authz_parts(path);
                (
                    parts.map(|_| head.method.as_str()),
                    parts.map(|(_, uri)| uri),
                )
            }
        };
        // A proxy in front of the gateway that resolves `..` reads such a path as one of another part of the API.
        let leads_out = self == Self::ExtAuthz && uri.is_some_and(leads_above_root);
        Authorization {
            method,
            uri,
            leads_out,
            requirement,
        }
    }
}

const EXT_AUTHZ: &str = "/api/v1/authz/ext-authz/";

/// Returns the requirements and the path of the request that Envoy authorizes.
fn ext_authz_parts(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix(EXT_AUTHZ)?;
    Some(rest.split_at(rest.find('/')?))
}

async fn authorize(
    request: &impl RequestParts,
    state: &State,
    authorization: Authorization<'_>,
) -> HandlerResult {
    let identity = decide(request, state, authorization).await?;
    Ok(allowed(identity, state)?)
}

/// Returns the response that allows a request.
pub(crate) fn allowed(identity: Identity, state: &State) -> Result<HttpResponse, Problem> {
    let mut response = HttpResponse::new(StatusCode::OK);
    let values = identity.into_values(&state.service.catalogue);
    for (name, value) in IDENTITY.into_iter().zip(values) {
        let value = match value {
            Cow::Borrowed(text) => HeaderValue::from_static(text),
            // Without copying the text.
            Cow::Owned(text) => HeaderValue::from_maybe_shared(Bytes::from(text))
                .map_err(|_| Problem::internal())?,
        };
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Returns the value of a header, unless it is absent or repeated.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    match headers.get_all(name).as_slice() {
        [value] => value.to_str().ok(),
        _ => None,
    }
}

/// Authorize a request for Traefik or Caddy.
///
/// Verifies the presented key for the request in `X-Forwarded-Method` and `X-Forwarded-Uri`. Allows
/// it with 200, and denies it with 400, 401, 403, 429 or 503. Accepts every method and reads no
/// body. Each allowed request counts as one use of the key.
#[utoipa::path(
    get,
    path = "/authz/forward-auth",
    tag = "gateways",
    operation_id = "forwardAuth",
    security(("api_key" = [])),
    params(
        ("scope" = Option<Vec<String>>, Query, description = "A required scope. Can be repeated."),
        ("mode" = Option<Mode>, Query, description = "The required mode."),
        ("X-Forwarded-Method" = Option<String>, Header, description = "The method of the client's request."),
        ("X-Forwarded-Uri" = Option<String>, Header, description = "The path and query of the client's request, as they were sent."),
        ("X-Forwarded-For" = Option<String>, Header, description = "The IP addresses of the client and of proxies. The client is the rightmost one that is not a trusted proxy."),
    ),
    responses((status = 200, description = "The request is allowed. All `X-Auth-*` headers are present; a header without a value is empty.", headers(
        ("X-Auth-Key-Id" = String, description = "The ID of the key."),
        ("X-Auth-Account-Id" = String, description = "The ID of the account."),
        ("X-Auth-Application-Id" = String, description = "The ID of the application of an application key."),
        ("X-Auth-Mode" = String, description = "The mode of the key."),
        ("X-Auth-Scopes" = String, description = "All scopes that the key has, separated by spaces."),
        ("X-Auth-Merchant-Id" = String, description = "The merchant of the request."),
    )))
)]
pub async fn forward_auth(request: HttpRequest, state: web::Data<State>) -> HandlerResult {
    let requirement = Requirement::from_query(&state, request.query_string());
    let authorization =
        Dialect::ForwardAuth.authorization(request.head(), request.path(), requirement.as_ref());
    authorize(&request, &state, authorization).await
}

/// Authorize a request for nginx.
///
/// Verifies the presented key for the request in `X-Original-Method` and `X-Original-URI`. Allows
/// it with 200, and denies it with 400, 401, 403, 429 or 503. Accepts every method and reads no
/// body. Each allowed request counts as one use of the key.
#[utoipa::path(
    get,
    path = "/authz/auth-request",
    tag = "gateways",
    operation_id = "authRequest",
    security(("api_key" = [])),
    params(
        ("scope" = Option<Vec<String>>, Query, description = "A required scope. Can be repeated."),
        ("mode" = Option<Mode>, Query, description = "The required mode."),
        ("X-Original-Method" = Option<String>, Header, description = "The method of the client's request."),
        ("X-Original-URI" = Option<String>, Header, description = "The path and query of the client's request, as they were sent."),
        ("X-Forwarded-For" = Option<String>, Header, description = "The IP addresses of the client and of proxies. The client is the rightmost one that is not a trusted proxy."),
    ),
    responses((status = 200, description = "The request is allowed. All `X-Auth-*` headers are present; a header without a value is empty.", headers(
        ("X-Auth-Key-Id" = String, description = "The ID of the key."),
        ("X-Auth-Account-Id" = String, description = "The ID of the account."),
        ("X-Auth-Application-Id" = String, description = "The ID of the application of an application key."),
        ("X-Auth-Mode" = String, description = "The mode of the key."),
        ("X-Auth-Scopes" = String, description = "All scopes that the key has, separated by spaces."),
        ("X-Auth-Merchant-Id" = String, description = "The merchant of the request."),
    )))
)]
pub async fn auth_request(request: HttpRequest, state: web::Data<State>) -> HandlerResult {
    let requirement = Requirement::from_query(&state, request.query_string());
    let authorization =
        Dialect::AuthRequest.authorization(request.head(), request.path(), requirement.as_ref());
    authorize(&request, &state, authorization).await
}

/// Authorize a request for Envoy.
///
/// Verifies the presented key for the request whose method, path and query follow the requirements
/// in the URL. In the configuration of Envoy, `path_prefix` ends in the requirements. Allows the
/// request with 200, and denies it with 400, 401, 403, 429 or 503. Accepts every method and reads
/// no body. Each allowed request counts as one use of the key.
#[utoipa::path(
    get,
    path = "/authz/ext-authz/{requirements}/{tail}",
    tag = "gateways",
    operation_id = "extAuthz",
    security(("api_key" = [])),
    params(
        ("requirements" = String, Path, description = "The requirements: `scope` (repeatable) and `mode` as pairs separated by `;`, or `-` for none.", example = "scope=links:read;mode=live"),
        ("tail" = String, Path, description = "The path of the client's request, as it was sent."),
        ("X-Forwarded-For" = Option<String>, Header, description = "The IP addresses of the client and of proxies. The client is the rightmost one that is not a trusted proxy."),
    ),
    responses((status = 200, description = "The request is allowed. All `X-Auth-*` headers are present; a header without a value is empty.", headers(
        ("X-Auth-Key-Id" = String, description = "The ID of the key."),
        ("X-Auth-Account-Id" = String, description = "The ID of the account."),
        ("X-Auth-Application-Id" = String, description = "The ID of the application of an application key."),
        ("X-Auth-Mode" = String, description = "The mode of the key."),
        ("X-Auth-Scopes" = String, description = "All scopes that the key has, separated by spaces."),
        ("X-Auth-Merchant-Id" = String, description = "The merchant of the request."),
    )))
)]
pub async fn ext_authz(request: HttpRequest, state: web::Data<State>) -> HandlerResult {
    // From the raw path, because the router has already decoded the matched parts.
    let path = request.uri().path();
    let segment = ext_authz_parts(path).map(|(segment, _)| segment);
    let requirement = Requirement::from_segment(&state, segment);
    let authorization = Dialect::ExtAuthz.authorization(request.head(), path, requirement.as_ref());
    authorize(&request, &state, authorization).await
}

/// actix's route macros need a list of methods, but a gateway can send any method.
macro_rules! any_method {
    ($(#[$doc:meta])* $name:ident, $dialect:expr, $handler:ident, $description:ident) => {
        $(#[$doc])*
        pub struct $name;

        impl HttpServiceFactory for $name {
            fn register(self, config: &mut AppService) {
                web::resource(&$dialect.pattern()["/api/v1".len()..]).to($handler).register(config);
            }
        }
        impl OpenApiFactory for $name {
            fn paths(&self) -> utoipa::openapi::path::Paths {
                OpenApiFactory::paths(&$description)
            }

            fn schemas(&self, schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
                OpenApiFactory::schemas(&$description, schemas);
            }
        }
    };
}
any_method!(
    /// `ANY /authz/forward-auth`
    ForwardAuth, Dialect::ForwardAuth, forward_auth, __path_forward_auth
);
any_method!(
    /// `ANY /authz/auth-request`
    AuthRequest, Dialect::AuthRequest, auth_request, __path_auth_request
);
any_method!(
    /// `ANY /authz/ext-authz/{requirements}/{tail}`
    ExtAuthz, Dialect::ExtAuthz, ext_authz, __path_ext_authz
);
