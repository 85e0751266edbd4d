//! The OpenAPI document, generated from the mounted routes.
//!
//! A handler describes what is specific to its operation. This module adds what follows from the
//! operation itself to all of them: the common errors, the parameter `account` and the header
//! `Idempotency-Key`.

mod basic;
mod conditional;

use std::sync::LazyLock;

use actix_web::{App, http::Method, web::Bytes};
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi, Ref, RefOr,
    ResponseBuilder, ServerBuilder, Type,
    path::{Operation, ParameterBuilder, ParameterIn, PathItem},
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, HttpBuilder, SecurityScheme},
    tag::TagBuilder,
};
use utoipa_actix_web::AppExt as _;

use crate::{
    public_path::PublicPath,
    routes::{self, SURFACES},
    surface::ProblemSchema,
};

#[must_use]
pub fn document() -> OpenApi {
    let (_, mut api) = App::new()
        .into_utoipa_app()
        .configure(routes::documented_routes)
        .split_for_parts();
    api.info = InfoBuilder::new()
        .title("Tollkey")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("openapi.md")))
        .license(Some(
            LicenseBuilder::new()
                .name("MIT OR Apache-2.0")
                .identifier(Some("MIT OR Apache-2.0"))
                .build(),
        ))
        .contact(None::<utoipa::openapi::Contact>)
        .build();
    let tags = SURFACES.0.iter().filter_map(|surface| surface.document.tag);
    api.tags = Some(
        tags.map(|(name, description)| {
            TagBuilder::new()
                .name(name)
                .description(Some(description))
                .build()
        })
        .collect(),
    );
    let components = api.components.get_or_insert_default();
    for (name, scheme) in security_schemes() {
        components.add_security_scheme(name, scheme);
    }
    components.add_security_scheme(basic::NAME, basic::scheme());
    for surface in SURFACES
        .0
        .iter()
        .filter(|surface| surface.document.tag.is_some())
    {
        components
            .schemas
            .extend((surface.document.problem)().schemas);
    }
    for (path, item) in &mut api.paths.paths {
        for operation in operations_mut(item) {
            complete(path, operation);
            conditional::describe(path, operation);
        }
    }
    api
}

#[must_use]
pub fn json() -> &'static str {
    static JSON: LazyLock<String> = LazyLock::new(|| {
        let mut json = document().to_pretty_json().unwrap_or_default();
        json.push('\n');
        json
    });
    &JSON
}

/// Like [`json`], for clients under a path prefix, which becomes the document's only server. Its URL is relative, so
/// that Swagger UI calls the server that it was loaded from.
#[must_use]
pub fn json_under(prefix: &PublicPath) -> Bytes {
    if prefix.is_empty() {
        return Bytes::from_static(json().as_bytes());
    }
    let mut document = document();
    document.servers = Some(vec![ServerBuilder::new().url(prefix.to_string()).build()]);
    let mut json = document.to_pretty_json().unwrap_or_default();
    json.push('\n');
    json.into()
}

pub fn operations() -> impl Iterator<Item = (String, Method)> {
    document().paths.paths.into_iter().flat_map(|(path, item)| {
        let methods = [
            (Method::GET, item.get.is_some()),
            (Method::POST, item.post.is_some()),
            (Method::PUT, item.put.is_some()),
            (Method::PATCH, item.patch.is_some()),
            (Method::DELETE, item.delete.is_some()),
        ];
        methods
            .into_iter()
            .filter(|(_, exists)| *exists)
            .map(move |(method, _)| (path.clone(), method))
    })
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.post,
        &mut item.put,
        &mut item.patch,
        &mut item.delete,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}

fn bearer(format: &str, description: &str) -> SecurityScheme {
    let http: Http = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format(format)
        .description(Some(description))
        .build();
    SecurityScheme::Http(http)
}

fn header(name: &str) -> SecurityScheme {
    SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
        name,
        "An API key of any family.",
    )))
}

fn security_schemes() -> [(&'static str, SecurityScheme); 6] {
    [
        (
            "management_token",
            bearer(
                "JWT",
                "A management token: a JWT with `sub`, `exp`, and the account claim or a role.",
            ),
        ),
        (
            "service_key",
            bearer(
                "tks_…",
                "A service key, which an operator creates for a resource server or gateway.",
            ),
        ),
        ("secret_key", bearer("sk_…", "A secret key of an account.")),
        (
            "api_key",
            bearer("ck_… ks_… sk_… pk_…", "An API key of any family."),
        ),
        ("x_api_key", header("x-api-key")),
        ("x_commerce_api_key", header("x-commerce-api-key")),
    ]
}

/// Adds the parameters and responses that operations have in common.
fn complete(path: &str, operation: &mut Operation) {
    let schemes: Vec<String> = operation
        .security
        .iter()
        .flatten()
        .flat_map(requirement_names)
        .collect();
    let has = |scheme: &str| schemes.iter().any(|name| name == scheme);
    let document = SURFACES.of(path).document;
    if !document.has_common_responses {
        return;
    }
    if document.has_account_parameter {
        add_parameter(
            operation,
            "account",
            ParameterIn::Query,
            "The ID of the account. Required for operators, and only operators can use it.",
        );
    }
    let creates = operation.responses.responses.contains_key("201");
    if creates {
        let description = "A unique value for this request: 16 to 255 printable ASCII characters. If the request is repeated \
                     with the same value and body within 24 hours, the server returns the first response again, with \
                     the header `Idempotent-Replayed: true`.";
        add_parameter(
            operation,
            "Idempotency-Key",
            ParameterIn::Header,
            description,
        );
    }
    let ProblemSchema {
        name, media_type, ..
    } = (document.problem)();
    let mut add = |status: &str, description: &str, headers: &[(&str, &str)]| {
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert_with(|| problem(&name, media_type, description, headers));
    };
    if operation.request_body.is_some() {
        add(
            "408",
            "`request_timeout`: the body did not arrive within 15 seconds.",
            &[],
        );
        add(
            "413",
            "`payload_too_large`: the body is larger than 64 KiB.",
            &[],
        );
        add(
            "415",
            "`unsupported_media_type`: the `Content-Type`, its charset or the `Content-Encoding` is not supported.",
            &[],
        );
    }
    if creates {
        add(
            "409",
            "`idempotency_in_progress`: the first request with this `Idempotency-Key` is still running. `idempotency_replay_unavailable`: its response cannot be replayed.",
            &[],
        );
        add(
            "422",
            "`idempotency_mismatch`: this `Idempotency-Key` was already used with a different body.",
            &[],
        );
    }
    add(
        "400",
        "`validation_failed`, `malformed_json` or `multiple_credentials`.",
        &[],
    );
    add(
        "401",
        if has("management_token") {
            "`missing_credentials`, `invalid_token` or `invalid_api_key`."
        } else {
            "`missing_credentials`, `invalid_api_key` (for unknown and for revoked keys) or `invalid_token`."
        },
        &[("WWW-Authenticate", "The challenge of RFC 6750.")],
    );
    add("403", document.forbidden, &[]);
    if has("api_key") || has("secret_key") {
        add(
            "429",
            "`rate_limited`: the rate limit of the presented key is exceeded.",
            &[
                (
                    "Retry-After",
                    "The number of seconds after which the key can be used again.",
                ),
                (
                    "RateLimit",
                    "The remaining uses (draft-ietf-httpapi-ratelimit-headers-11).",
                ),
                (
                    "RateLimit-Policy",
                    "The rate limit (draft-ietf-httpapi-ratelimit-headers-11).",
                ),
            ],
        );
    }
    if path.contains('{') && document.has_ids {
        add(
            "404",
            "`not_found`: the resource does not exist or belongs to another account.",
            &[],
        );
    }
    add(
        "503",
        "`unavailable`: the server cannot process the request now.",
        &[("Retry-After", "The number of seconds after which to retry.")],
    );
}

fn requirement_names(requirement: &utoipa::openapi::SecurityRequirement) -> Vec<String> {
    let value = serde_json::to_value(requirement).unwrap_or_default();
    value
        .as_object()
        .map(|names| names.keys().cloned().collect())
        .unwrap_or_default()
}

/// Adds a parameter, unless the operation already describes it.
fn add_parameter(operation: &mut Operation, name: &str, location: ParameterIn, description: &str) {
    let parameters = operation.parameters.get_or_insert_default();
    if parameters
        .iter()
        .any(|parameter| matches!(parameter, RefOr::T(parameter) if parameter.name == name))
    {
        return;
    }
    parameters.push(
        ParameterBuilder::new()
            .name(name)
            .parameter_in(location)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .build()
            .into(),
    );
}

fn problem(
    schema: &str,
    media_type: &str,
    description: &str,
    headers: &[(&str, &str)],
) -> RefOr<utoipa::openapi::Response> {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .build();
    let mut response = ResponseBuilder::new()
        .description(description)
        .content(media_type, content);
    for (name, description) in headers {
        let schema = ObjectBuilder::new().schema_type(Type::String).build();
        response = response.header(
            *name,
            HeaderBuilder::new()
                .schema(Some(schema))
                .description(Some(*description))
                .build(),
        );
    }
    response.build().into()
}
