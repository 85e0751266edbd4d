//! The OpenAPI document, collected from the mounted routes.
//!
//! A handler says what is its own; what every operation shares (the errors that follow from its caller, its body
//! and its path) is added here from the operation itself, so that it cannot be forgotten.

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

/// The document.
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
        tags.map(|(name, words)| {
            TagBuilder::new()
                .name(name)
                .description(Some(words))
                .build()
        })
        .collect(),
    );
    let components = api.components.get_or_insert_default();
    for (name, scheme) in security_schemes() {
        components.add_security_scheme(name, scheme);
    }
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
        }
    }
    api
}

/// The document as JSON, made once.
#[must_use]
pub fn json() -> &'static str {
    static JSON: LazyLock<String> = LazyLock::new(|| {
        let mut json = document().to_pretty_json().unwrap_or_default();
        json.push('\n');
        json
    });
    &JSON
}

/// [`json`] for clients under a path prefix: it is the one server of the document. Its URL is relative to the origin that the
/// document comes from, so that Swagger UI calls the server it was loaded from.
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

/// Every operation: its path template and its method.
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
            .filter(|(_, there)| *there)
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
        "An API key.",
    )))
}

fn security_schemes() -> [(&'static str, SecurityScheme); 6] {
    [
        (
            "management_token",
            bearer(
                "JWT",
                "A management token: `sub`, the account claim, `exp`; or one with a role.",
            ),
        ),
        (
            "service_key",
            bearer(
                "tks_…",
                "The key of a resource server or gateway, made by an operator.",
            ),
        ),
        ("secret_key", bearer("sk_…", "A secret account key.")),
        (
            "api_key",
            bearer("ck_… ks_… sk_… pk_…", "An API key of any family."),
        ),
        ("x_api_key", header("x-api-key")),
        ("x_commerce_api_key", header("x-commerce-api-key")),
    ]
}

/// Adds what an operation shares with the others of its kind.
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
            "For operators only: whose.",
        );
    }
    let creates = operation.responses.responses.contains_key("201");
    if creates {
        let words = "16 to 255 characters, the same for each attempt at one logical request: a second one gets the first \
                     answer again, with `Idempotent-Replayed: true`. Kept for 24 hours.";
        add_parameter(operation, "Idempotency-Key", ParameterIn::Header, words);
    }
    let ProblemSchema {
        name, media_type, ..
    } = (document.problem)();
    let mut add = |status: &str, words: &str, headers: &[(&str, &str)]| {
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert_with(|| problem(&name, media_type, words, headers));
    };
    if operation.request_body.is_some() {
        add(
            "408",
            "`request_timeout`: the body did not arrive in time.",
            &[],
        );
        add("413", "`payload_too_large`: the body is over 64 KiB.", &[]);
        add("415", "`unsupported_media_type`.", &[]);
    }
    if creates {
        add(
            "409",
            "`idempotency_in_progress`: the first request with this Idempotency-Key is still running.",
            &[],
        );
        add(
            "422",
            "`idempotency_mismatch`: this Idempotency-Key came with another body before.",
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
            "`missing_credentials`, `invalid_api_key` (unknown and revoked read the same) or `invalid_token`."
        },
        &[("WWW-Authenticate", "The challenge of RFC 6750.")],
    );
    add("403", document.forbidden, &[]);
    if has("api_key") || has("secret_key") {
        add(
            "429",
            "`rate_limited`.",
            &[
                ("Retry-After", "Seconds after which one use is possible."),
                (
                    "RateLimit",
                    "What is left, as in draft-ietf-httpapi-ratelimit-headers-11.",
                ),
                ("RateLimit-Policy", "The limit, likewise."),
            ],
        );
    }
    if path.contains('{') && document.has_ids {
        add(
            "404",
            "`not_found`: there is no such thing in this account.",
            &[],
        );
    }
    add(
        "503",
        "`unavailable`: the store cannot be reached.",
        &[("Retry-After", "Seconds.")],
    );
}

fn requirement_names(requirement: &utoipa::openapi::SecurityRequirement) -> Vec<String> {
    let value = serde_json::to_value(requirement).unwrap_or_default();
    value
        .as_object()
        .map(|names| names.keys().cloned().collect())
        .unwrap_or_default()
}

/// Adds a parameter that several operations share, unless the operation describes it itself.
fn add_parameter(operation: &mut Operation, name: &str, place: ParameterIn, words: &str) {
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
            .parameter_in(place)
            .description(Some(words))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .build()
            .into(),
    );
}

fn problem(
    schema: &str,
    media_type: &str,
    words: &str,
    headers: &[(&str, &str)],
) -> RefOr<utoipa::openapi::Response> {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .build();
    let mut response = ResponseBuilder::new()
        .description(words)
        .content(media_type, content);
    for (name, words) in headers {
        let schema = ObjectBuilder::new().schema_type(Type::String).build();
        response = response.header(
            *name,
            HeaderBuilder::new()
                .schema(Some(schema))
                .description(Some(*words))
                .build(),
        );
    }
    response.build().into()
}
