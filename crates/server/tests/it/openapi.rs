//! The OpenAPI document and the Swagger UI.

use std::collections::BTreeSet;

use serde_json::Value;
use tollkey_server::routes::SURFACES;

use crate::support::{App, each_backend};

fn document() -> Value {
    serde_json::from_str(tollkey_server::openapi::json()).expect("the document is JSON")
}

/// Collects the values of all fields with this name, at any depth.
fn all<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(name));
            fields.values().for_each(|field| all(field, name, found));
        }
        Value::Array(items) => items.iter().for_each(|item| all(item, name, found)),
        _ => {}
    }
}

fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let methods = ["get", "post", "put", "patch", "delete"];
    paths
        .iter()
        .flat_map(|(path, item)| {
            methods
                .iter()
                .map(move |method| (format!("{method} {path}"), &item[*method]))
        })
        .filter(|(_, operation)| operation.is_object())
        .collect()
}

#[test]
fn every_reference_resolves() {
    let document = document();
    let mut references = Vec::new();
    all(&document, "$ref", &mut references);
    assert!(references.len() > 50);
    for reference in references {
        let pointer = reference
            .as_str()
            .and_then(|text| text.strip_prefix('#'))
            .expect("a reference within the document");
        assert!(
            document.pointer(pointer).is_some(),
            "{pointer} does not exist"
        );
    }
}

#[test]
fn every_operation_is_documented() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let schemes: BTreeSet<&String> = document["components"]["securitySchemes"]
        .as_object()
        .expect("security schemes")
        .keys()
        .collect();
    let mut ids = BTreeSet::new();
    for (name, operation) in operations(&document) {
        assert!(
            operation["summary"]
                .as_str()
                .is_some_and(|text| text.len() > 8),
            "{name} has no summary"
        );
        assert!(
            operation["description"]
                .as_str()
                .is_some_and(|text| text.ends_with(['.', ':'])),
            "{name} has no description"
        );
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{name} {parameter}");
        }
        assert!(
            ids.insert(operation["operationId"].as_str().expect("an operation ID")),
            "{name} has the ID of another operation"
        );
        assert!(operation["tags"][0].is_string(), "{name} has no tag");
        let responses = operation["responses"].as_object().expect("responses");
        for (status, response) in responses {
            assert!(
                response["description"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{name} {status}"
            );
            if !status.starts_with('2') {
                let (schema, media_type) = if name.contains("/account/") {
                    ("ErrorEnvelope", "application/json")
                } else if name.contains("/v2/") && status != "429" {
                    ("UnkeyErrorResponse", "application/json")
                } else if name.contains("/v2/") {
                    ("UnkeyErrorResponse", "application/problem+json")
                } else {
                    ("Problem", "application/problem+json")
                };
                let reference = format!("#/components/schemas/{schema}");
                assert_eq!(
                    response["content"][media_type]["schema"]["$ref"],
                    reference.as_str(),
                    "{name} {status}"
                );
            }
        }
        let path = name.split_once(' ').expect("a path").1;
        for parameter in path
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split('}').next())
        {
            let described = operation["parameters"].as_array().into_iter().flatten();
            let mut of_this_name =
                described.filter(|own| own["name"] == parameter && own["in"] == "path");
            assert!(
                of_this_name.any(|own| own["required"] == true && own["description"].is_string()),
                "{name} {parameter}"
            );
        }
        if operation["tags"][0] == "health" {
            continue;
        }
        for status in ["400", "401", "403", "503"] {
            assert!(responses.contains_key(status), "{name} {status}");
        }
        for requirement in operation["security"]
            .as_array()
            .expect("security requirements")
        {
            for scheme in requirement.as_object().expect("a scheme").keys() {
                assert!(schemes.contains(scheme), "{name} {scheme}");
            }
        }
    }
}

#[test]
fn every_field_of_a_body_has_a_description() {
    let document = document();
    for (name, schema) in document["components"]["schemas"]
        .as_object()
        .expect("schemas")
    {
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            let mut descriptions = Vec::new();
            all(schema, "description", &mut descriptions);
            assert!(
                !descriptions.is_empty() || schema["$ref"].is_string(),
                "{name}.{field} has no description"
            );
        }
    }
}

#[test]
fn committed_document_matches_the_server() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/tollkey.json");
    let committed = std::fs::read_to_string(path).expect("openapi/tollkey.json");
    assert!(
        committed == tollkey_server::openapi::json(),
        "run `cargo xtask openapi` and commit the result"
    );
}

#[actix_web::test]
async fn document_and_swagger_ui_load_nothing_from_other_hosts() {
    each_backend(async |app: &App| {
        let reply = app.get("/openapi.json").await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("application/json"))
        );
        assert_eq!(reply.body, tollkey_server::openapi::json());
        let redirect = app.get("/docs").await;
        assert_eq!(
            (redirect.status, redirect.header("location")),
            (308, Some("/docs/"))
        );
        let page = app.get("/docs/").await;
        assert_eq!(page.status, 200);
        assert!(!page.body.contains("://"), "{}", page.body);
        for asset in [
            "swagger-ui.css",
            "swagger-ui-bundle.js",
            "swagger-ui-standalone-preset.js",
            "swagger-initializer.js",
        ] {
            assert_eq!(
                app.get(&format!("/docs/{asset}")).await.status,
                200,
                "{asset}"
            );
        }
        let setup = app.get("/docs/swagger-initializer.js").await.body;
        assert!(
            setup.contains("/openapi.json") && setup.contains("\"validatorUrl\": \"none\""),
            "{setup}"
        );
        assert_eq!(app.get("/docs/nothing").await.status, 404);
    })
    .await;
}

/// Otherwise a route would have the error format and headers of another API.
#[test]
fn every_operation_has_a_prefix_of_its_api() {
    let document = tollkey_server::openapi::document();
    for (path, item) in &document.paths.paths {
        let operations = [&item.get, &item.post, &item.put, &item.patch, &item.delete];
        for operation in operations.into_iter().flatten() {
            let (tag, _) = SURFACES.of(path).document.tag.expect("a tag");
            assert_eq!(operation.tags, Some(vec![tag.to_owned()]), "{path}");
        }
    }
    for (path, prefix) in [
        ("/api/v1/authz/forward-auth", "/api/v1/authz/"),
        ("/api/v1/authz", "/api"),
        ("/api/v1/accounts/acme", "/api/v1/accounts"),
        ("/api/v1/nothing", "/api"),
        ("/v1/account/api-keys", "/v1"),
        ("/v1x", ""),
        ("/v2/keys.verifyKey", "/v2"),
        ("/api/v2/keys.verifyKey", "/api/v2"),
        ("/v2x", ""),
        ("/dashboard", "/dashboard"),
        ("/dashboards", ""),
        ("/", ""),
    ] {
        assert!(SURFACES.of(path).prefixes.contains(&prefix), "{path}");
    }
}
