//! The examples of the document: requests that work, and errors of the documented form.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};
use tollkey_core::{Family, Mode};

use super::{document, operations};
use crate::support::{App, Call, each_backend};

/// The media type of forms.
const FORM: &str = "application/x-www-form-urlencoded";

/// Asserts that a value has the type and the required fields of a schema, and no unknown field.
fn assert_matches(document: &Value, schema: &Value, value: &Value, context: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let resolved = document.pointer(reference.trim_start_matches('#'));
        let resolved = resolved.unwrap_or_else(|| panic!("{context}: {reference}"));
        return assert_matches(document, resolved, value, context);
    }
    for union in ["oneOf", "anyOf"] {
        if let Some(alternatives) = schema[union].as_array() {
            let is_one = alternatives
                .iter()
                .any(|one| has_type(document, one, value));
            assert!(is_one, "{context}: {value} is none of {alternatives:?}");
            return;
        }
    }
    assert!(
        has_type(document, schema, value),
        "{context}: {value} is not {schema}"
    );
    if let Some(values) = schema["enum"].as_array() {
        assert!(
            values.contains(value),
            "{context}: {value} is not in {values:?}"
        );
    }
    for item in value.as_array().into_iter().flatten() {
        assert_matches(document, &schema["items"], item, context);
    }
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let fields = value.as_object().into_iter().flatten();
    for (name, field) in fields {
        let property = properties.get(name);
        let property = property.unwrap_or_else(|| panic!("{context}: {name} is not documented"));
        assert_matches(document, property, field, &format!("{context} {name}"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        let is_present = value
            .as_object()
            .is_some_and(|fields| fields.contains_key(name));
        assert!(is_present || value.is_null(), "{context}: {name} is absent");
    }
}

/// Whether a value has the JSON type of a schema.
fn has_type(document: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        return document
            .pointer(reference.trim_start_matches('#'))
            .is_some_and(|resolved| has_type(document, resolved, value));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(only) => vec![only],
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        _ => return true,
    };
    let own = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    types.contains(&own) || (own == "integer" && types.contains(&"number"))
}

#[test]
fn every_operation_with_a_body_has_an_example() {
    let document = document();
    let mut examples = 0;
    for (name, operation) in operations(&document) {
        let content = operation["requestBody"]["content"].as_object();
        for (media_type, content) in content.into_iter().flatten() {
            let context = format!("{name} {media_type}");
            let example = &content["example"];
            assert!(example.is_object(), "{context} has no example");
            assert_matches(&document, &content["schema"], example, &context);
            examples += 1;
        }
    }
    assert!(examples > 15, "{examples}");
}

#[test]
fn every_error_has_an_example_of_its_schema() {
    let document = document();
    let mut examples = 0;
    for (name, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().expect("responses") {
            if status.starts_with(['2', '3']) {
                continue;
            }
            for content in response["content"].as_object().expect("a body").values() {
                let context = format!("{name} {status}");
                let example = &content["example"];
                assert!(example.is_object(), "{context} has no example");
                assert_matches(&document, &content["schema"], example, &context);
                if content["schema"]["$ref"] == "#/components/schemas/Problem" {
                    let expected = status.parse().unwrap_or(500);
                    assert_eq!(example["status"], json!(expected), "{context}");
                    let code = example["code"].as_str().expect("a code");
                    let text = response["description"].as_str().expect("a description");
                    assert!(text.starts_with(&format!("`{code}`")), "{context}: {text}");
                }
                examples += 1;
            }
        }
    }
    assert!(examples > 200, "{examples}");
}

/// The credentials of the callers, and a fresh resource for each request.
struct Callers {
    management_token: String,
    operator: String,
    service_key: String,
    secret_key: String,
    /// The number of created applications, whose names must be unique.
    applications: AtomicU32,
}

impl Callers {
    async fn of(app: &App) -> Self {
        Self {
            management_token: app.management_token("acme"),
            operator: app.operator(),
            service_key: app.service_key().await.text,
            secret_key: app.insert_key("acme", Family::Secret, Mode::Live).await,
            applications: AtomicU32::new(0),
        }
    }

    /// The credential for the first documented scheme of an operation.
    fn credential(&self, operation: &Value) -> &str {
        let scheme = operation["security"][0]
            .as_object()
            .and_then(|schemes| schemes.keys().next())
            .map(String::as_str);
        match (scheme, operation["tags"][0].as_str()) {
            (Some("management_token"), Some("operator")) => &self.operator,
            (Some("management_token"), _) => &self.management_token,
            (Some("service_key"), _) => &self.service_key,
            (Some("secret_key"), _) => &self.secret_key,
            (scheme, _) => panic!("{scheme:?}"),
        }
    }

    /// Replaces the IDs in a path template with those of new resources.
    async fn path(&self, app: &App, template: &str) -> String {
        if !template.contains('{') {
            return template.to_owned();
        }
        let token = &self.management_token;
        let id = if template.starts_with("/api/v1/accounts/") {
            "acme".to_owned()
        } else if template.starts_with("/api/v1/account/") {
            let key = app.generate_key(Family::Secret, Mode::Live);
            app.insert("acme", &key, |_| ()).await.id
        } else if template.starts_with("/api/v1/api-keys/") {
            app.commerce_key(token, json!({})).await.id
        } else {
            let number = self.applications.fetch_add(1, Ordering::Relaxed);
            app.application(token, &format!("Application {number}"))
                .await
        };
        template.replace("{id}", &id)
    }
}

fn send(call: Call, media_type: &str, example: &Value) -> Call {
    let body = if media_type == FORM {
        let fields: Map<String, Value> = example.as_object().expect("a form").clone();
        serde_urlencoded::to_string(&fields).expect("a form")
    } else {
        example.to_string()
    };
    call.header("content-type", media_type).body(body)
}

#[actix_web::test]
async fn every_request_example_works() {
    each_backend(async |app: &App| {
        let document = document();
        let callers = Callers::of(app).await;
        let mut operations = operations(&document);
        // Last, because it adds a subscriber, for which changes would wait.
        operations.sort_by_key(|(_, operation)| operation["operationId"] == "sync");
        for (name, operation) in operations {
            let (method, template) = name.split_once(' ').expect("a method and a path");
            let content = operation["requestBody"]["content"].as_object();
            for (media_type, content) in content.into_iter().flatten() {
                let path = callers.path(app, template).await;
                let call = app
                    .call(&method.to_uppercase(), &path)
                    .bearer(callers.credential(operation));
                let reply = send(call, media_type, &content["example"]).await;
                assert!(
                    (200..300).contains(&reply.status),
                    "{name} {media_type}: {reply}"
                );
                let status = reply.status.to_string();
                assert!(
                    operation["responses"][status.as_str()].is_object(),
                    "{name}: {status} is not documented"
                );
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn optional_body_can_be_omitted() {
    each_backend(async |app: &App| {
        let document = document();
        let callers = Callers::of(app).await;
        let mut omitted = 0;
        for (name, operation) in operations(&document) {
            if operation["requestBody"]["required"] != false {
                continue;
            }
            let (method, template) = name.split_once(' ').expect("a method and a path");
            let path = callers.path(app, template).await;
            let reply = app
                .call(&method.to_uppercase(), &path)
                .bearer(callers.credential(operation))
                .await;
            assert!((200..300).contains(&reply.status), "{name}: {reply}");
            omitted += 1;
        }
        assert_eq!(omitted, 5);
    })
    .await;
}

#[actix_web::test]
async fn response_without_credential_is_the_documented_example() {
    each_backend(async |app: &App| {
        let document = document();
        let request_id = "req_01K30DW000E008000000000001";
        for (name, operation) in operations(&document) {
            if operation["security"] == json!([]) {
                continue;
            }
            let (method, template) = name.split_once(' ').expect("a method and a path");
            let path = template
                .replace("{requirements}", "-")
                .replace(['{', '}'], "");
            let reply = app
                .call(&method.to_uppercase(), &path)
                .header("x-request-id", request_id)
                .await;
            let content = operation["responses"]["401"]["content"].as_object();
            let (media_type, content) = content.and_then(|own| own.iter().next()).expect("a body");
            assert_eq!(
                reply.header("content-type"),
                Some(media_type.as_str()),
                "{name}"
            );
            let mut example = content["example"].clone();
            let mut body = reply.json();
            for value in [&mut example, &mut body] {
                // The clock of the test differs from the time of the examples.
                if let Some(meta) = value["meta"].as_object_mut() {
                    meta.remove("timestamp");
                }
            }
            assert_eq!(body, example, "{name}");
        }
    })
    .await;
}
