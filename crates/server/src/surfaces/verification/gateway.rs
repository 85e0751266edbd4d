//! Verification asked for by gateways in their own dialects: Traefik and Caddy, nginx, Envoy.
//!
//! The key is the credential; the gateway needs none of its own. What is required comes only from what the
//! operator writes into the gateway's configuration. Each dialect reads its own headers only. No body is read. An
//! allowing answer is exactly 200 and always has all `X-Auth-*` headers, so that a gateway that copies them
//! replaces whatever the client sent under those names.

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
    Denial, Invalid, Mode, Need, Problem, ProblemCode, RequestPath, Scope, ScopeSet,
    text::reference_in,
};
use utoipa_actix_web::OpenApiFactory;

pub use self::direct::DirectGateway;
use crate::{
    auth::{RequestParts, authorize_presented, forwarded_ip, look_at_presented},
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

/// What the operator requires of every key on a route.
#[derive(Debug, Default)]
struct Requirement {
    scopes: ScopeSet,
    names: Vec<Scope>,
    mode: Option<Mode>,
}

impl Requirement {
    /// Reads `scope` (repeatable) and `mode` (once).
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
                            .map_err(|_| Invalid::new("mode must be live or test"))?,
                    );
                }
                "mode" => return Err(Invalid::new("mode must not be repeated")),
                _ => return Err(Invalid::new("only scope and mode can be required")),
            }
        }
        Ok(requirement)
    }

    /// From the query of the URL that the operator configured.
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
                    "path_prefix must end in the requirements, or in -",
                ));
            }
        };
        let pairs: Option<Vec<_>> = segment
            .split(';')
            .map(|pair| pair.split_once('='))
            .collect();
        Self::read(
            state,
            pairs.ok_or_else(|| Invalid::new("must be -, or name=value pairs joined by ;"))?,
        )
    }
}

/// The longest word of a scope that the log names. Scopes are made of short words; keys and tokens are not.
const LONGEST_WORD: usize = 24;

/// The rule that an unknown scope breaks. It names the scope only where that can be nothing else: an operator may have passed
/// on what a client sent.
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
        Invalid::new("it names an unknown scope")
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
    /// Returns the pattern of its route, as logs and metrics have it.
    fn pattern(self) -> &'static str {
        match self {
            Self::ForwardAuth => "/api/v1/authz/forward-auth",
            Self::AuthRequest => "/api/v1/authz/auth-request",
            Self::ExtAuthz => "/api/v1/authz/ext-authz{tail:(/.*)?}",
        }
    }

    /// Returns the request that a gateway authorizes, with these requirements.
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

/// The path of external authorization, before the requirements.
const EXT_AUTHZ: &str = "/api/v1/authz/ext-authz/";

/// Returns the requirements and the path of the request that Envoy authorizes.
fn ext_authz_parts(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix(EXT_AUTHZ)?;
    Some(rest.split_at(rest.find('/')?))
}

/// The request that a gateway authorizes.
struct Authorization<'a> {
    method: Option<&'a str>,
    uri: Option<&'a str>,
    requirement: Result<Rc<Requirement>, Invalid>,
}

/// Authorizes a request, in every dialect.
async fn authorize(
    request: &impl RequestParts,
    state: &State,
    asked: Authorization<'_>,
) -> HandlerResult {
    let merchant = merchant(request.headers(), &state.policy.merchant_header);
    let client_ip = forwarded_ip(request, state);
    let is_client_ip_unreadable = client_ip.is_err();
    let client_ip = client_ip.unwrap_or_default();
    let requirement = match asked.requirement {
        Ok(requirement) => requirement,
        Err(rule) => {
            // Credentials are judged first, so that a mistake in the configuration tells a stranger nothing.
            let identity = Need {
                identity_only: true,
                client_ip,
                is_client_ip_unreadable,
                ..Need::default()
            };
            look_at_presented(request, state, &identity).await?;
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
            let detail = "The gateway requires something unknown; its operator's log says what.";
            return Err(Problem::new(ProblemCode::InvalidRequirement, detail).into());
        }
    };
    let need = Need {
        viewer: None,
        identity_only: false,
        scopes: requirement.scopes,
        mode: requirement.mode,
        method: asked.method,
        path: asked
            .uri
            .map(|uri| RequestPath::new(uri, &state.policy.route_base)),
        merchant: merchant.as_deref(),
        client_ip,
        is_client_ip_unreadable,
    };
    let record = authorize_presented(request, state, &need)
        .await
        .map_err(|mut problem| {
            if problem.code == ProblemCode::Denied(Denial::InsufficientScope) {
                problem.needed_scopes = requirement.names.as_slice().into();
            }
            problem
        })?;
    let key = &record.key;
    let application = key
        .application_id
        .map(|id| id.to_string())
        .unwrap_or_default();
    let mut response = HttpResponse::new(StatusCode::OK);
    for (name, value) in [
        (X_AUTH_KEY_ID, key.id.to_string()),
        (X_AUTH_ACCOUNT_ID, key.account_id.as_str().to_owned()),
        (X_AUTH_APPLICATION_ID, application),
        (X_AUTH_MODE, key.mode.as_str().to_owned()),
        (X_AUTH_SCOPES, state.service.catalogue.joined(record.scopes)),
        (X_AUTH_MERCHANT_ID, merchant.unwrap_or_default()),
    ] {
        response.headers_mut().insert(name, field_value(value)?);
    }
    Ok(response)
}

/// A text as the value of a header, without a copy of it.
fn field_value(text: String) -> Result<HeaderValue, Problem> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).map_err(|_| Problem::internal())
}

/// The merchant a request is about.
fn merchant(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    reference_in(headers.get_all(name).map(HeaderValue::as_bytes))
}

/// A header that is there exactly once.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    match headers.get_all(name).as_slice() {
        [value] => value.to_str().ok(),
        _ => None,
    }
}

/// Forward authentication (Traefik, Caddy).
///
/// Any method. The request judged is the one in `X-Forwarded-Method` and `X-Forwarded-Uri`.
#[utoipa::path(
    get,
    path = "/authz/forward-auth",
    tag = "gateways",
    operation_id = "forwardAuth",
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
    params(
        ("scope" = Option<Vec<String>>, Query, description = "A scope every key needs; repeatable."),
        ("mode" = Option<Mode>, Query, description = "The mode every key needs."),
        ("X-Forwarded-Method" = Option<String>, Header, description = "The method of the request."),
        ("X-Forwarded-Uri" = Option<String>, Header, description = "Its path and query, as sent."),
        ("X-Forwarded-For" = Option<String>, Header, description = "Where it came from."),
    ),
    responses((status = 200, description = "Allowed; who it is stands in the `X-Auth-*` headers, all of them present, empty when there is none.", headers(
        ("X-Auth-Key-Id" = String), ("X-Auth-Account-Id" = String), ("X-Auth-Application-Id" = String),
        ("X-Auth-Mode" = String), ("X-Auth-Scopes" = String), ("X-Auth-Merchant-Id" = String),
    )))
)]
pub async fn forward_auth(request: HttpRequest, state: web::Data<State>) -> HandlerResult {
    let requirement = Requirement::from_query(&state, request.query_string()).map(Rc::new);
    let asked = Dialect::ForwardAuth.authorization(request.head(), request.path(), requirement);
    authorize(&request, &state, asked).await
}

/// Authentication by subrequest (nginx).
///
/// Any method. The request judged is the one in `X-Original-Method` and `X-Original-URI`.
#[utoipa::path(
    get,
    path = "/authz/auth-request",
    tag = "gateways",
    operation_id = "authRequest",
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
    params(
        ("scope" = Option<Vec<String>>, Query, description = "A scope every key needs; repeatable."),
        ("mode" = Option<Mode>, Query, description = "The mode every key needs."),
        ("X-Original-Method" = Option<String>, Header, description = "The method of the request."),
        ("X-Original-URI" = Option<String>, Header, description = "Its path and query, as sent."),
        ("X-Forwarded-For" = Option<String>, Header, description = "Where it came from."),
    ),
    responses((status = 200, description = "Allowed; who it is stands in the `X-Auth-*` headers, all of them present, empty when there is none.", headers(
        ("X-Auth-Key-Id" = String), ("X-Auth-Account-Id" = String), ("X-Auth-Application-Id" = String),
        ("X-Auth-Mode" = String), ("X-Auth-Scopes" = String), ("X-Auth-Merchant-Id" = String),
    )))
)]
pub async fn auth_request(request: HttpRequest, state: web::Data<State>) -> HandlerResult {
    let requirement = Requirement::from_query(&state, request.query_string()).map(Rc::new);
    let asked = Dialect::AuthRequest.authorization(request.head(), request.path(), requirement);
    authorize(&request, &state, asked).await
}

/// External authorization over HTTP (Envoy).
///
/// Any method. `path_prefix` of the filter ends in the requirements, then follow the real path and query of the
/// request, which has its real method.
#[utoipa::path(
    get,
    path = "/authz/ext-authz/{requirements}/{tail}",
    tag = "gateways",
    operation_id = "extAuthz",
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
    params(
        ("requirements" = String, Path, description = "`-`, or pairs such as `scope=links:read;mode=live`.", example = "scope=links:read;mode=live"),
        ("tail" = String, Path, description = "The path of the request, as sent."),
        ("X-Forwarded-For" = Option<String>, Header, description = "Where it came from."),
    ),
    responses((status = 200, description = "Allowed; who it is stands in the `X-Auth-*` headers, all of them present, empty when there is none.", headers(
        ("X-Auth-Key-Id" = String), ("X-Auth-Account-Id" = String), ("X-Auth-Application-Id" = String),
        ("X-Auth-Mode" = String), ("X-Auth-Scopes" = String), ("X-Auth-Merchant-Id" = String),
    )))
)]
pub async fn ext_authz(request: HttpRequest, state: web::Data<State>) -> HandlerResult {
    // On the raw path: the router has already decoded what it matched.
    let path = request.uri().path();
    let segment = ext_authz_parts(path).map(|(segment, _)| segment);
    let requirement = Requirement::from_segment(&state, segment).map(Rc::new);
    let asked = Dialect::ExtAuthz.authorization(request.head(), path, requirement);
    authorize(&request, &state, asked).await
}

/// Mounts a handler for every method under one path, with its description. Actix's route macros need the methods
/// listed, and a gateway may pass on any.
macro_rules! any_method {
    ($(#[$doc:meta])* $name:ident, $dialect:expr, $handler:ident, $described:ident) => {
        $(#[$doc])*
        pub struct $name;

        impl HttpServiceFactory for $name {
            fn register(self, config: &mut AppService) {
                web::resource(&$dialect.pattern()["/api/v1".len()..]).to($handler).register(config);
            }
        }
        impl OpenApiFactory for $name {
            fn paths(&self) -> utoipa::openapi::path::Paths {
                OpenApiFactory::paths(&$described)
            }

            fn schemas(&self, schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
                OpenApiFactory::schemas(&$described, schemas);
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
