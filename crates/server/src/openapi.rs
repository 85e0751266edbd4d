//! The OpenAPI document, generated from the mounted routes.
//!
//! A handler describes what is specific to its operation. The modules here add what follows from the operation itself
//! to all of them: common parameters and their bounds, errors, headers and examples.

mod bodies;
mod conditional;
mod examples;
mod parameters;
mod responses;
mod security;

use std::sync::LazyLock;

use actix_web::{App, http::Method, web::Bytes};
use utoipa::openapi::{
    InfoBuilder, LicenseBuilder, OpenApi, Server, ServerBuilder,
    path::{Operation, PathItem},
    tag::TagBuilder,
};
use utoipa_actix_web::AppExt as _;

use crate::{
    public_path::PublicPath,
    routes::{self, SURFACES},
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
    api.servers = Some(vec![server("/")]);
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
    for (name, scheme) in security::schemes() {
        components.add_security_scheme(name, scheme);
    }
    for (name, header) in responses::headers() {
        components.headers.insert(name.to_owned(), header.into());
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
    tollkey_api::openapi::complete(components);
    for (path, item) in &mut api.paths.paths {
        for operation in operations_mut(item) {
            complete(path, operation);
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

/// Like [`json`], for clients under a path prefix, which becomes the document's only server.
#[must_use]
pub fn json_under(prefix: &PublicPath) -> Bytes {
    if prefix.is_empty() {
        return Bytes::from_static(json().as_bytes());
    }
    let mut document = document();
    document.servers = Some(vec![server(&prefix.to_string())]);
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

/// Returns a server with a relative URL, so that Swagger UI calls the server that it was loaded from.
fn server(url: &str) -> Server {
    ServerBuilder::new().url(url).build()
}

/// Adds what operations have in common. Each step keeps what the handler describes itself.
fn complete(path: &str, operation: &mut Operation) {
    let surface = SURFACES.of(path);
    let callers = security::Callers::of(operation);
    bodies::complete(operation);
    conditional::complete(surface, operation);
    parameters::complete(path, surface, operation);
    responses::complete(path, surface, &callers, operation);
    security::complete(surface, &callers, operation);
    examples::complete(surface, &callers, operation);
}
