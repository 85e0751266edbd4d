//! The OpenAPI document and the Swagger UI.

mod examples;
mod schemas;

use std::collections::BTreeSet;

use serde_json::{Value, json};
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
            if !status.starts_with(['2', '3']) {
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
        for status in ["400", "401", "403", "503", "default"] {
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
fn document_has_one_relative_server() {
    assert_eq!(document()["servers"], json!([{"url": "/"}]));
}

#[test]
fn open_operations_require_no_credential() {
    let document = document();
    let mut open = Vec::new();
    for (name, operation) in operations(&document) {
        let security = operation["security"].as_array();
        let security = security.unwrap_or_else(|| panic!("{name} has no security"));
        if security.is_empty() {
            open.push(name);
        }
    }
    open.sort();
    assert_eq!(open, ["get /livez", "get /openapi.json", "get /readyz"]);
}

#[test]
fn operations_for_services_use_only_the_service_key() {
    let document = document();
    let schemes = |id: &str| {
        let (_, operation) = operations(&document)
            .into_iter()
            .find(|(_, operation)| operation["operationId"] == id)
            .expect("the operation");
        let text = operation["description"].as_str().expect("a description");
        (operation["security"].clone(), text.to_owned())
    };
    for id in [
        "verify",
        "verifyBatch",
        "introspect",
        "sync",
        "syncLookup",
        "unkeyVerifyKey",
    ] {
        let (security, text) = schemes(id);
        let documented = if id == "introspect" {
            json!([{"service_key": []}, {"client_secret_basic": []}])
        } else {
            json!([{"service_key": []}])
        };
        assert_eq!(security, documented, "{id}");
        assert!(text.contains("with the role `service`"), "{id}: {text}");
    }
    for id in [
        "whoami",
        "revokeWhoami",
        "forwardAuth",
        "authRequest",
        "extAuthz",
    ] {
        let (security, text) = schemes(id);
        assert_eq!(security, json!([{"api_key": []}]), "{id}");
        assert!(text.contains("`x-commerce-api-key`"), "{id}: {text}");
    }
    assert_eq!(
        schemes("createAccountKey").0,
        json!([{"secret_key": []}, {"management_token": []}])
    );
}

#[test]
fn every_operation_has_a_default_problem() {
    let document = document();
    for (name, operation) in operations(&document) {
        let content = operation["responses"]["default"]["content"].as_object();
        let content = content.unwrap_or_else(|| panic!("{name} has no default response"));
        assert_eq!(content.len(), 1, "{name}");
    }
}

#[test]
fn every_response_has_its_headers() {
    let document = document();
    let has = |response: &Value, header: &str| response["headers"][header].is_object();
    for (name, operation) in operations(&document) {
        let is_open = operation["security"] == json!([]);
        let is_gateway = operation["tags"] == json!(["gateways"]);
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let status = status.as_str();
            assert!(has(response, "X-Request-Id"), "{name} {status}");
            let challenge = !is_open && ["400", "401"].contains(&status);
            let challenge = challenge || (is_gateway && status == "403");
            assert_eq!(
                has(response, "WWW-Authenticate"),
                challenge,
                "{name} {status}"
            );
            assert_eq!(
                has(response, "Idempotent-Replayed"),
                status == "201",
                "{name} {status}"
            );
            if ["429", "503"].contains(&status) {
                // A reference to the header that all responses share.
                let header = &response["headers"]["Retry-After"];
                assert!(header["$ref"].is_string(), "{name} {status}: {header}");
            }
            for header in ["RateLimit", "RateLimit-Policy"] {
                assert!(status != "429" || has(response, header), "{name} {status}");
                assert!(
                    !is_gateway || status == "429" || !has(response, header),
                    "{name}"
                );
            }
        }
    }
    let whoami = &document["paths"]["/api/v1/whoami"]["get"]["responses"]["200"];
    assert!(
        has(whoami, "RateLimit") && has(whoami, "RateLimit-Policy"),
        "{whoami}"
    );
}

#[test]
fn openapi_document_is_described_as_revalidated() {
    let document = document();
    let operation = &document["paths"]["/openapi.json"]["get"];
    let parameters = operation["parameters"].as_array().expect("parameters");
    assert_eq!(parameters.len(), 1, "{parameters:?}");
    assert_eq!(parameters[0]["name"], "If-None-Match");
    assert_eq!(parameters[0]["in"], "header");
    assert_eq!(parameters[0]["required"], false);
    let responses = &operation["responses"];
    for status in ["200", "304"] {
        let tag = &responses[status]["headers"]["ETag"];
        assert_eq!(tag["schema"]["type"], "string", "{status}");
    }
    assert_eq!(responses["304"]["content"], json!(null));
    assert_eq!(
        responses["200"]["content"]["application/json"]["schema"],
        json!({"type": "object", "additionalProperties": true})
    );
}

#[test]
fn optional_bodies_refer_to_a_schema() {
    let document = document();
    let mut optional = Vec::new();
    for (name, operation) in operations(&document) {
        let body = &operation["requestBody"];
        if body.is_null() {
            continue;
        }
        for (media_type, content) in body["content"].as_object().expect("media types") {
            let schema = content["schema"].as_object().expect("a schema");
            assert_eq!(
                schema.keys().collect::<Vec<_>>(),
                ["$ref"],
                "{name} {media_type}"
            );
        }
        if body["required"] == false {
            optional.push(name);
        } else {
            assert_eq!(body["required"], true, "{name}");
        }
    }
    optional.sort();
    assert_eq!(
        optional,
        [
            "post /api/v1/account/api-keys/{id}/revoke",
            "post /api/v1/api-keys/{id}/resume",
            "post /api/v1/api-keys/{id}/revoke",
            "post /api/v1/api-keys/{id}/rotate",
            "post /api/v1/api-keys/{id}/suspend",
        ]
    );
}

#[test]
fn merge_patches_have_both_media_types() {
    let document = document();
    for path in ["/api/v1/applications/{id}", "/api/v1/api-keys/{id}"] {
        let content = &document["paths"][path]["patch"]["requestBody"]["content"];
        let media_types: Vec<&String> = content.as_object().expect("media types").keys().collect();
        assert_eq!(
            media_types,
            ["application/json", "application/merge-patch+json"],
            "{path}"
        );
    }
}

#[test]
fn every_parameter_has_bounds() {
    fn assert_bounded(schema: &Value, context: &str) {
        let has = |field: &str| !schema[field].is_null();
        if has("enum") {
            return;
        }
        match schema["type"].as_str() {
            Some("integer") => assert!(has("minimum") && has("maximum"), "{context}: {schema}"),
            Some("string") => assert!(has("maxLength"), "{context}: {schema}"),
            Some("array") => {
                assert!(has("maxItems"), "{context}: {schema}");
                assert_bounded(&schema["items"], context);
            }
            _ => panic!("{context}: {schema}"),
        }
    }
    let document = document();
    let mut names = BTreeSet::new();
    for (name, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let own = parameter["name"].as_str().expect("a name");
            let context = format!("{name} {own}");
            let schema = &parameter["schema"];
            match schema["$ref"].as_str() {
                Some(reference) => {
                    let resolved = document.pointer(reference.trim_start_matches('#'));
                    assert_bounded(resolved.expect("a schema"), &context);
                }
                None => assert_bounded(schema, &context),
            }
            names.insert(own);
        }
    }
    for name in [
        "Idempotency-Key",
        "account",
        "cursor",
        "id",
        "keyId",
        "since",
        "target_id",
    ] {
        assert!(names.contains(name), "{name}");
    }
}

#[actix_web::test]
async fn bounds_of_parameters_are_those_of_the_server() {
    each_backend(async |app: &App| {
        let (token, operator) = (app.management_token("acme"), app.operator());
        let long = "a".repeat(128);
        for (account, status) in [
            (long.as_str(), 200),
            ("...", 200),
            (".a", 200),
            (&format!("{long}a"), 400),
            (".", 400),
            ("..", 400),
        ] {
            let path = format!("/audit-log?account={account}");
            let reply = app.get(&path).bearer(&operator).await;
            assert_eq!(reply.status, status, "{account}");
        }
        for (query, status) in [
            ("since=2026-02-23T12:00:00.123456789%2B01:00", 200),
            ("until=253402300799", 200),
            ("cursor=18446744073709551615", 200),
            ("action=account.updated", 200),
            ("action=none", 400),
            (&format!("target_id={}", "t".repeat(255)), 200),
            (&format!("target_id={}", "t".repeat(256)), 400),
            ("target_id=%00", 400),
        ] {
            let path = format!("/audit-log?{query}");
            let reply = app.get(&path).bearer(&token).await;
            assert_eq!(reply.status, status, "{query} {reply}");
        }
        let pages = app
            .get("/applications?page=2147483647&limit=100")
            .bearer(&token)
            .await;
        assert_eq!(pages.status, 200, "{pages}");
        for (key, status) in [
            ("0123456789abcde~", 201),
            ("#[]! 0123456789a", 201),
            ("short", 400),
            ("0123456789abcde\\", 400),
        ] {
            let reply = app
                .post("/api-keys", json!({"name": "Checkout"}))
                .bearer(&token)
                .header("idempotency-key", key)
                .await;
            assert_eq!(reply.status, status, "{key} {reply}");
        }
    })
    .await;
}

#[test]
fn gateway_operations_are_marked_as_internal() {
    let document = document();
    let mut marked = 0;
    for (name, operation) in operations(&document) {
        let is_gateway = name.contains("/authz/");
        assert_eq!(operation["x-internal"] == true, is_gateway, "{name}");
        assert_eq!(
            operation["tags"] == json!(["gateways"]),
            is_gateway,
            "{name}"
        );
        marked += usize::from(is_gateway);
    }
    assert_eq!(marked, 3);
}

#[test]
fn operation_ids_are_in_camel_case() {
    let document = document();
    for (name, operation) in operations(&document) {
        let id = operation["operationId"].as_str().expect("an operation ID");
        let is_camel_case = id.starts_with(|c: char| c.is_ascii_lowercase())
            && id.bytes().all(|b| b.is_ascii_alphanumeric());
        assert!(is_camel_case, "{name}: {id}");
    }
}

#[test]
fn texts_of_operations_do_not_mention_rust() {
    let document = document();
    let mut texts = Vec::new();
    for field in ["description", "summary"] {
        all(&document["paths"], field, &mut texts);
        all(&document["tags"], field, &mut texts);
    }
    assert!(texts.len() > 200);
    for text in texts.iter().filter_map(|text| text.as_str()) {
        for leak in [
            "[`", "::", "Option<", "Vec<", "tollkey_", "tollkey-", "serde", "crate",
        ] {
            assert!(!text.contains(leak), "{leak}: {text}");
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
