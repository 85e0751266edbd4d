//! Verification for gateways in their own protocols: Traefik and Caddy, nginx, Envoy.
//!
//! The presented key is the only credential; the gateway needs none. The requirements come only
//! from the configuration of the gateway. Each operation reads only the headers of its gateway, and
//! no body. A response that allows a request is exactly 200 with all `X-Auth-*` headers, so that a
//! gateway that copies them replaces headers of the client with the same names.

mod direct;

use std::rc::Rc;

use actix_web::{
    HttpRequest, HttpResponse,
    dev::{AppService, HttpServiceFactory, RequestHead},
    http::{
        StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
    web::{self, Bytes},
};
use tollkey_core::{
    AccessRequest, Denial, Invalid, Mode, Problem, ProblemCode, RequestPath, Scope, ScopeSet,
    text::external_id_in,
};
use utoipa_actix_web::OpenApiFactory;

pub use self::direct::DirectGateway;
use crate::{
    auth::{RequestParts, authorize_presented, forwarded_ip, peek_presented},
    rejection::HandlerResult,
    state::State,
    surface::is_like_credential,
};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const X_ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const X_ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
const X_AUTH_KEY_ID: HeaderName = HeaderName::from_static("x-auth-key-id");
const X_AUTH_ACCOUNT_ID: HeaderName = HeaderName::from_static("x-auth-account-id");
const X_AUTH_APPLICATION_ID: HeaderName = HeaderName::from_static("x-auth-application-id");
const X_AUTH_MODE: HeaderName = HeaderName::from_static("x-auth-mode");
const X_AUTH_SCOPES: HeaderName = HeaderName::from_static("x-auth-scopes");
const X_AUTH_MERCHANT_ID: HeaderName = HeaderName::from_static("x-auth-merchant-id");

/// The requirements that the operator configured for a route.
#[derive(Debug, Default)]
struct Requirement {
    scopes: ScopeSet,
    names: Vec<Scope>,
    mode: Option<Mode>,
}

impl Requirement {
    /// Reads `scope` (repeatable) and `mode` (at most once).
    fn read<T: AsRef<str>>(
        state: &State,
        pairs: impl IntoIterator<Item = (T, T)>,
    ) -> Result<Self, Invalid> {
        let mut requirement = Self::default();
        for (name, value) in pairs {
            let value = value.as_ref();
            match name.as_ref() {
                "scope" => {
                    let scope = state
                        .service
                        .catalogue
                        .parse(value)
                        .map_err(|_| unknown_scope(value))?;
                    requirement.scopes = requirement
                        .scopes
                        .union(state.service.catalogue.needed([scope.as_str()])?);
                    requirement.names.push(scope);
                }
                "mode" if requirement.mode.is_none() => {
                    requirement.mode = Some(
                        value
                            .parse()
                            .map_err(|_| Invalid::new("mode must be `live` or `test`"))?,
                    );
                }
                "mode" => return Err(Invalid::new("mode must not be repeated")),
                _ => {
                    return Err(Invalid::new(
                        "the requirements can only have `scope` and `mode`",
                    ));
                }
            }
        }
        Ok(requirement)
    }

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

/// Longest part of an unknown scope that is logged. Parts of scopes are short; keys and tokens are not.
const LONGEST_WORD: usize = 24;

/// The error contains the scope only if that cannot be a credential: the gateway may pass on a client's text.
fn unknown_scope(scope: &str) -> Invalid {
    let is_scope = (1..=64).contains(&scope.len())
        && scope.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b':' | b'-')
        });
    let is_short = scope
        .split(['_', '.', ':', '-'])
        .all(|word| word.len() <= LONGEST_WORD);
    if is_scope && is_short && !is_like_credential(scope) {
        Invalid::new(format!("scope {scope:?} is unknown"))
    } else {
        Invalid::new("the requirements have an unknown scope")
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
        requirement: Result<Rc<Requirement>, Invalid>,
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
        Authorization {
            method,
            uri,
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

struct Authorization<'a> {
    method: Option<&'a str>,
    uri: Option<&'a str>,
    requirement: Result<Rc<Requirement>, Invalid>,
}

async fn authorize(
    request: &impl RequestParts,
    state: &State,
    authorization: Authorization<'_>,
) -> HandlerResult {
    let merchant = merchant(request.headers(), &state.request_settings.merchant_header);
    let client_ip = forwarded_ip(request, state);
    let is_client_ip_unreadable = client_ip.is_err();
    let client_ip = client_ip.unwrap_or_default();
    let requirement = match authorization.requirement {
        Ok(requirement) => requirement,
        Err(rule) => {
            // The credential is verified first, so that a client without a key learns nothing about the configuration.
            let identity = AccessRequest {
                identity_only: true,
                client_ip,
                is_client_ip_unreadable,
                ..AccessRequest::default()
            };
            peek_presented(request, state, &identity).await?;
            if state
                .log_limits
                .gateway_requirement
                .allows(state.service.clock.elapsed())
            {
                tracing::warn!(
                    request_id = %request.request_id(), %rule,
                    "gateway route has invalid requirements; its requests are denied"
                );
            }
            let detail = "The gateway's requirement is not valid. The log of the Tollkey server has the reason.";
            return Err(Problem::new(ProblemCode::InvalidRequirement, detail).into());
        }
    };
    let access = AccessRequest {
        viewer: None,
        identity_only: false,
        scopes: requirement.scopes,
        scope_expression: None,
        mode: requirement.mode,
        method: authorization.method,
        path: authorization
            .uri
            .map(|uri| RequestPath::new(uri, &state.request_settings.route_base)),
        merchant: merchant.as_deref(),
        client_ip,
        is_client_ip_unreadable,
    };
    let record = authorize_presented(request, state, &access)
        .await
        .map_err(|mut problem| {
            if problem.code == ProblemCode::Denied(Denial::InsufficientScope) {
                problem.needed_scopes = requirement.names.as_slice().into();
            }
            problem
        })?;
    let key = &record.key;
    let application = key.application_id.map(|id| id.to_string());
    let mut response = HttpResponse::new(StatusCode::OK);
    for (name, value) in [
        (X_AUTH_KEY_ID, field_value(key.id.to_string())?),
        (X_AUTH_ACCOUNT_ID, field_value(key.account_id.to_string())?),
        (X_AUTH_APPLICATION_ID, optional_field_value(application)?),
        (X_AUTH_MODE, HeaderValue::from_static(key.mode.as_str())),
        (
            X_AUTH_SCOPES,
            field_value(state.service.catalogue.joined(record.scopes))?,
        ),
        (X_AUTH_MERCHANT_ID, optional_field_value(merchant)?),
    ] {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Converts a text into the value of a header without copying it.
fn field_value(text: String) -> Result<HeaderValue, Problem> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).map_err(|_| Problem::internal())
}

/// Returns an empty value for an absent text.
fn optional_field_value(text: Option<String>) -> Result<HeaderValue, Problem> {
    text.map_or(Ok(HeaderValue::from_static("")), field_value)
}

fn merchant(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    external_id_in(headers.get_all(name).map(HeaderValue::as_bytes))
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
    let requirement = Requirement::from_query(&state, request.query_string()).map(Rc::new);
    let authorization =
        Dialect::ForwardAuth.authorization(request.head(), request.path(), requirement);
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
    let requirement = Requirement::from_query(&state, request.query_string()).map(Rc::new);
    let authorization =
        Dialect::AuthRequest.authorization(request.head(), request.path(), requirement);
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
    let requirement = Requirement::from_segment(&state, segment).map(Rc::new);
    let authorization = Dialect::ExtAuthz.authorization(request.head(), path, requirement);
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
