//! Verification for gateways in their own protocols: Traefik and Caddy, nginx, Envoy.
//!
//! The presented key is the only credential; the gateway needs none. The requirements come only
//! from the configuration of the gateway. Each operation reads only the headers of its gateway, and
//! no body. A response that allows a request is exactly 200 with all `X-Auth-*` headers, so that a
//! gateway that copies them replaces headers of the client with the same names.

use actix_web::{
    HttpRequest, HttpResponse,
    dev::{AppService, HttpServiceFactory},
    http::{
        StatusCode,
        header::{HeaderName, HeaderValue},
    },
    web::{self, Bytes},
};
use tollkey_core::{
    Denial, Invalid, Mode, Need, Problem, ProblemCode, RequestPath, Scope, ScopeSet,
    text::reference_in,
};
use utoipa_actix_web::OpenApiFactory;

use crate::{
    auth::{authorize_presented, forwarded_ip, look_at_presented},
    rejection::HandlerResult,
    request_id::request_id,
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

    /// Reads the query of the URL that the operator configured.
    fn from_query(state: &State, query: &str) -> Result<Self, Invalid> {
        Self::read(state, form_urlencoded::parse(query.as_bytes()))
    }

    /// Reads a raw path segment such as `scope=links:read;mode=live`. `-` means no requirements.
    fn from_segment(state: &State, segment: &str) -> Result<Self, Invalid> {
        if segment == "-" {
            return Ok(Self::default());
        }
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

/// The longest part of an unknown scope that the log shows. Parts of scopes are short; keys and
/// tokens are not.
const LONGEST_WORD: usize = 24;

/// The rule that an unknown scope breaks. It shows the scope only if that cannot be a credential:
/// the gateway may have passed on text of a client.
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

/// The request that a gateway wants to authorize.
struct Asked<'a> {
    method: Option<&'a str>,
    uri: Option<&'a str>,
    requirement: Result<Requirement, Invalid>,
}

/// Authorizes the request of a gateway.
async fn answer(request: &HttpRequest, state: &State, asked: Asked<'_>) -> HandlerResult {
    let merchant = merchant(request, &state.policy.merchant_header);
    let client_ip = forwarded_ip(request, state);
    let is_client_ip_unreadable = client_ip.is_err();
    let client_ip = client_ip.unwrap_or_default();
    let requirement = match asked.requirement {
        Ok(requirement) => requirement,
        Err(rule) => {
            // The credential is verified first, so that a client without a key learns nothing about the configuration.
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
                    request_id = %request_id(request), %rule,
                    "a gateway requires something that cannot be read; its requests are denied"
                );
            }
            let detail = "The gateway's requirement is not valid. The log of the Tollkey server has the reason.";
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
                problem.needed_scopes = requirement.names.into();
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

/// Converts a text into the value of a header without copying it.
fn field_value(text: String) -> Result<HeaderValue, Problem> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).map_err(|_| Problem::internal())
}

/// The merchant of the request.
fn merchant(request: &HttpRequest, name: &HeaderName) -> Option<String> {
    reference_in(request.headers().get_all(name).map(HeaderValue::as_bytes))
}

/// The value of a header that is present exactly once.
fn single(request: &HttpRequest, name: HeaderName) -> Option<&str> {
    match request.headers().get_all(name).as_slice() {
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
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
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
    let asked = Asked {
        method: single(&request, X_FORWARDED_METHOD),
        uri: single(&request, X_FORWARDED_URI),
        requirement: Requirement::from_query(&state, request.query_string()),
    };
    answer(&request, &state, asked).await
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
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
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
    let asked = Asked {
        method: single(&request, X_ORIGINAL_METHOD),
        uri: single(&request, X_ORIGINAL_URI),
        requirement: Requirement::from_query(&state, request.query_string()),
    };
    answer(&request, &state, asked).await
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
    security(("api_key" = []), ("x_api_key" = []), ("x_commerce_api_key" = [])),
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
    // The raw path, because the router has already decoded the path that it matched.
    let raw = request
        .uri()
        .path()
        .strip_prefix("/api/v1/authz/ext-authz/");
    let (requirement, uri) = match raw.and_then(|rest| Some(rest.split_at(rest.find('/')?))) {
        Some((segment, uri)) => (Requirement::from_segment(&state, segment), Some(uri)),
        None => (
            Err(Invalid::new(
                "`path_prefix` must end in the requirements, or in `-`",
            )),
            None,
        ),
    };
    answer(
        &request,
        &state,
        Asked {
            method: Some(request.method().as_str()),
            uri,
            requirement,
        },
    )
    .await
}

/// Mounts a handler for all methods under one path, with its OpenAPI description. The route macros of Actix need a list of
/// methods, but a gateway can send any method.
macro_rules! any_method {
    ($(#[$doc:meta])* $name:ident, $path:literal, $handler:ident, $described:ident) => {
        $(#[$doc])*
        pub struct $name;

        impl HttpServiceFactory for $name {
            fn register(self, config: &mut AppService) {
                web::resource($path).to($handler).register(config);
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
    ForwardAuth, "/authz/forward-auth", forward_auth, __path_forward_auth
);
any_method!(
    /// `ANY /authz/auth-request`
    AuthRequest, "/authz/auth-request", auth_request, __path_auth_request
);
any_method!(
    /// `ANY /authz/ext-authz/{requirements}/{tail}`
    ExtAuthz, "/authz/ext-authz{tail:(/.*)?}", ext_authz, __path_ext_authz
);
