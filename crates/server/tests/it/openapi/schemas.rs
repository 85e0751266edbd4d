//! The schemas of the document, in the forms that client generators read correctly. Each test covers all schemas.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};
use tollkey_api::{
    Open, Secret, account, applications, audit, commerce, operator, problem, sync, unkey,
    verification,
};
use tollkey_core::{
    Catalogue, Denial, Family, IpList, Mode, OperatingModel, RateLimit, ScopeExpression, Status,
    Timestamp,
    api_key::Overlap,
    audit::{ActorKind, TargetKind},
    feature::Feature,
    text::MAX_EXTERNAL_IDS,
};
use tollkey_verifier::{Poll, PollIds};

use super::{all, document, operations};

fn schemas(document: &Value) -> &Map<String, Value> {
    document["components"]["schemas"]
        .as_object()
        .expect("schemas")
}

/// Calls `check` for each object of a value with its JSON pointer.
fn each_object(pointer: &str, value: &Value, check: &mut impl FnMut(&str, &Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            check(pointer, fields);
            for (name, field) in fields {
                // Examples are not schemas.
                if name != "example" && name != "examples" {
                    each_object(&format!("{pointer}/{name}"), field, check);
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                each_object(&format!("{pointer}/{i}"), item, check);
            }
        }
        _ => {}
    }
}

/// Returns the pointers of the objects that break a rule.
fn broken(value: &Value, rule: impl Fn(&Map<String, Value>) -> bool) -> Vec<String> {
    let mut pointers = Vec::new();
    each_object("", value, &mut |pointer, object| {
        if !rule(object) {
            pointers.push(pointer.to_owned());
        }
    });
    pointers
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn is_nullable(schema: &Value) -> bool {
    let forms = [&schema["oneOf"], &schema["anyOf"]];
    let mut forms = forms.into_iter().filter_map(Value::as_array).flatten();
    types(schema).contains(&"null") || forms.any(|form| form["type"] == "null")
}

/// Returns the names of the schemas that a value references, directly or through other schemas.
fn referenced(document: &Value, value: &Value, names: &mut BTreeSet<String>) {
    let mut references = Vec::new();
    all(value, "$ref", &mut references);
    // Other references are to headers, which have no schema in the components.
    let schema = |reference: &Value| -> Option<String> {
        let name = reference.as_str()?.strip_prefix("#/components/schemas/")?;
        Some(name.to_owned())
    };
    for name in references.into_iter().filter_map(schema) {
        if names.insert(name.clone()) {
            referenced(document, &schemas(document)[&name], names);
        }
    }
}

/// With it, generated clients send asterisks.
#[test]
fn no_field_has_the_format_password() {
    let document = document();
    let is_plain = |schema: &Map<String, Value>| schema.get("format") != Some(&json!("password"));
    assert_eq!(broken(&document, is_plain), Vec::<String>::new());
    for (schema, field) in [("VerifyRequest", "key"), ("IntrospectRequest", "token")] {
        let key = &schemas(&document)[schema]["properties"][field];
        assert_eq!(key["type"], "string", "{schema}.{field}");
    }
}

#[test]
fn free_form_objects_allow_additional_properties() {
    let document = document();
    let says_more = |schema: &Map<String, Value>| {
        let is_object = types(&Value::Object(schema.clone())).contains(&"object");
        !is_object
            || schema.contains_key("properties")
            || schema.contains_key("additionalProperties")
    };
    assert_eq!(broken(&document, says_more), Vec::<String>::new());
    for (schema, field) in [("CommerceKey", "metadata"), ("AuditEntry", "changes")] {
        let object = &schemas(&document)[schema]["properties"][field];
        assert_eq!(object["additionalProperties"], true, "{schema}.{field}");
    }
}

#[test]
fn descriptions_have_no_rust_links() {
    let document = document();
    let mut descriptions = Vec::new();
    for name in ["description", "summary"] {
        all(&document, name, &mut descriptions);
    }
    let texts: Vec<&str> = descriptions.into_iter().filter_map(Value::as_str).collect();
    assert!(texts.len() > 300);
    for text in texts {
        for link in ["[`", "`]", "::", "crate"] {
            assert!(!text.contains(link), "{text}");
        }
    }
}

#[test]
fn no_reference_in_a_one_of_has_siblings() {
    let document = document();
    let is_alone = |schema: &Map<String, Value>| {
        let forms = ["oneOf", "anyOf", "allOf"];
        let mut forms = forms
            .iter()
            .filter_map(|form| schema.get(*form)?.as_array())
            .flatten();
        forms.all(|form| form.get("$ref").is_none() || form.as_object().map(Map::len) == Some(1))
    };
    assert_eq!(broken(&document, is_alone), Vec::<String>::new());
}

#[test]
fn no_schema_is_merged_from_several() {
    let document = document();
    let is_flat = |schema: &Map<String, Value>| !schema.contains_key("allOf");
    assert_eq!(broken(&document, is_flat), Vec::<String>::new());
}

/// Generators create a wrapper class for an alias.
#[test]
fn no_schema_is_an_alias() {
    let document = document();
    for (name, schema) in schemas(&document) {
        let is_own = schema["type"] == "object"
            || schema["enum"].is_array()
            || schema["discriminator"].is_object();
        assert!(is_own, "{name}: {schema}");
    }
}

#[test]
fn names_of_schemas_are_plain_words() {
    let document = document();
    for name in schemas(&document).keys() {
        let is_plain = name.starts_with(|first: char| first.is_ascii_uppercase())
            && name.chars().all(|letter| letter.is_ascii_alphanumeric());
        assert!(is_plain, "{name}");
        assert!(!name.ends_with("Schema"), "{name}");
    }
}

#[test]
fn lists_and_envelopes_reference_their_items() {
    let document = document();
    for (pointer, item) in [
        ("ApplicationPage/properties/items/items", "Application"),
        (
            "ApplicationKeyPage/properties/items/items",
            "ApplicationKey",
        ),
        ("AccountKeyEnvelope/properties/data", "AccountKey"),
        (
            "CreatedAccountKeyEnvelope/properties/data",
            "CreatedAccountKey",
        ),
        ("AccountKeyListEnvelope/properties/data/items", "AccountKey"),
        (
            "AccountAuditListEnvelope/properties/data/items",
            "AccountAuditEntry",
        ),
        (
            "VerifyBatchRequest/properties/requests/items",
            "VerifyRequest",
        ),
        (
            "VerifyBatchResponse/properties/results/items",
            "VerifyResponse",
        ),
    ] {
        let schema = document.pointer(&format!("/components/schemas/{pointer}"));
        let reference = format!("#/components/schemas/{item}");
        assert_eq!(
            schema.map(|schema| &schema["$ref"]),
            Some(&json!(reference)),
            "{pointer}"
        );
    }
    // An inline object has no name in generated clients.
    let components = &document["components"]["schemas"];
    let has_simple_fields = |schema: &Map<String, Value>| {
        let fields = schema.get("properties").and_then(Value::as_object);
        let is_inline = |field: &Value| {
            field.get("properties").is_some() || field["items"].get("properties").is_some()
        };
        !fields.into_iter().flat_map(Map::values).any(is_inline)
    };
    assert_eq!(broken(components, has_simple_fields), Vec::<String>::new());
}

#[test]
fn unknown_code_of_a_verification_is_a_denial() {
    let document = document();
    let schemas = schemas(&document);
    let response = &schemas["VerifyResponse"];
    let (valid, invalid) = (
        "#/components/schemas/VerifyValid",
        "#/components/schemas/VerifyInvalid",
    );
    assert_eq!(
        response["oneOf"],
        json!([{"$ref": valid}, {"$ref": invalid}])
    );
    let mut mapping = Map::from_iter([("valid".to_owned(), json!(valid))]);
    mapping.extend(Denial::ALL.map(|denial| (denial.code().to_owned(), json!(invalid))));
    assert_eq!(
        response["discriminator"],
        json!({"propertyName": "code", "mapping": mapping})
    );
    let code = |schema: &str| schemas[schema]["properties"]["code"].clone();
    assert_eq!(code("VerifyValid")["enum"], json!(["valid"]));
    // Every string that is longer than `valid`. A response is an instance of exactly one schema.
    let denial = code("VerifyInvalid");
    assert_eq!(
        (&denial["type"], &denial["enum"], &denial["minLength"]),
        (&json!("string"), &json!(null), &json!(6))
    );
    for schema in ["VerifyValid", "VerifyInvalid"] {
        let required = schemas[schema]["required"].as_array().expect("required");
        assert!(required.contains(&json!("code")), "{schema}");
    }
}

#[test]
fn fields_of_a_merge_patch_are_nullable_if_null_is_accepted() {
    let document = document();
    let nullable = |schema: &str| -> BTreeMap<String, bool> {
        let fields = schemas(&document)[schema]["properties"].as_object();
        let fields = fields.into_iter().flatten();
        fields
            .map(|(name, field)| (name.clone(), is_nullable(field)))
            .collect()
    };
    let expected = |fields: &[(&str, bool)]| -> BTreeMap<String, bool> {
        let fields = fields.iter();
        fields
            .map(|(name, is_nullable)| ((*name).to_owned(), *is_nullable))
            .collect()
    };
    for (schema, fields) in [
        (
            "UpdateApplication",
            expected(&[("name", false), ("description", true)]),
        ),
        (
            "UpdateCommerceKey",
            expected(&[
                ("name", false),
                ("mode", false),
                ("scopes", true),
                ("expires_at", true),
                ("merchants", true),
                ("features", true),
                ("allowed_ips", true),
                ("rate_limit", true),
                ("metadata", true),
            ]),
        ),
        (
            "UpdateCommerceKeyRateLimit",
            expected(&[("limit", false), ("window_seconds", false)]),
        ),
    ] {
        assert_eq!(nullable(schema), fields, "{schema}");
        assert_eq!(
            schemas(&document)[schema]["required"],
            json!(null),
            "{schema}"
        );
    }
}

#[test]
fn times_in_requests_are_unix_seconds_or_rfc_3339() {
    let document = document();
    for (schema, field) in [
        ("CreateCommerceKey", "expires_at"),
        ("UpdateCommerceKey", "expires_at"),
        ("CreateApplicationKey", "expiresAt"),
        ("CreateAccountKey", "expiresAt"),
    ] {
        let time = &schemas(&document)[schema]["properties"][field];
        assert_eq!(
            time["anyOf"],
            json!([
                {"type": "integer", "format": "int64", "maximum": 253_402_300_799_i64},
                {"type": "string", "format": "date-time"},
                {"type": "null"},
            ]),
            "{schema}.{field}"
        );
    }
}

#[test]
fn bounds_are_those_of_the_server() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let limit = json!(RateLimit::MAX_LIMIT);
    let window = json!(RateLimit::MAX_WINDOW_SECONDS);
    let scopes = json!(Catalogue::MAX);
    let features = json!(Feature::ALL.len());
    let ranges = json!(IpList::MAX);
    let merchants = json!(MAX_EXTERNAL_IDS);
    for (pointer, bound) in [
        (
            "CreateCommerceKeyRateLimit/properties/limit/maximum",
            &limit,
        ),
        (
            "CreateCommerceKeyRateLimit/properties/window_seconds/maximum",
            &window,
        ),
        ("KeyRateLimit/properties/limit/maximum", &limit),
        ("KeyRateLimit/properties/windowSeconds/maximum", &window),
        (
            "UpdateCommerceKeyRateLimit/properties/limit/maximum",
            &limit,
        ),
        (
            "UpdateCommerceKeyRateLimit/properties/window_seconds/maximum",
            &window,
        ),
        ("CreateCommerceKey/properties/scopes/maxItems", &scopes),
        ("CreateCommerceKey/properties/scopes/minItems", &json!(1)),
        (
            "CreateCommerceKey/properties/merchants/maxItems",
            &merchants,
        ),
        ("CreateCommerceKey/properties/merchants/minItems", &json!(1)),
        (
            "CreateCommerceKey/properties/merchants/items/maxLength",
            &json!(128),
        ),
        ("CreateCommerceKey/properties/features/maxItems", &features),
        ("CreateCommerceKey/properties/features/minItems", &json!(1)),
        ("CreateCommerceKey/properties/allowed_ips/maxItems", &ranges),
        (
            "CreateCommerceKey/properties/allowed_ips/minItems",
            &json!(1),
        ),
        ("CreateCommerceKey/properties/name/maxLength", &json!(255)),
        ("UpdateCommerceKey/properties/scopes/maxItems", &scopes),
        (
            "UpdateCommerceKey/properties/merchants/maxItems",
            &merchants,
        ),
        ("UpdateCommerceKey/properties/features/maxItems", &features),
        ("UpdateCommerceKey/properties/allowed_ips/maxItems", &ranges),
        ("UpdateCommerceKey/properties/name/minLength", &json!(1)),
        ("UpdateCommerceKey/properties/name/maxLength", &json!(255)),
        (
            "RotateCommerceKey/properties/overlap_seconds/maximum",
            &json!(Overlap::MAX_SECONDS),
        ),
        (
            "RotateCommerceKey/properties/overlap_seconds/minimum",
            &json!(0),
        ),
        ("RevokeCommerceKey/properties/reason/maxLength", &json!(255)),
        ("CreateApplication/properties/name/maxLength", &json!(100)),
        (
            "CreateApplication/properties/description/maxLength",
            &json!(500),
        ),
        ("UpdateApplication/properties/name/minLength", &json!(1)),
        (
            "CreateApplicationKey/properties/description/maxLength",
            &json!(255),
        ),
        ("CreateApplicationKey/properties/scopes/maxItems", &scopes),
        (
            "CreateApplicationKey/properties/allowedIps/maxItems",
            &ranges,
        ),
        ("CreateAccountKey/properties/name/maxLength", &json!(100)),
        ("CreateAccountKey/properties/allowedIps/maxItems", &ranges),
        ("CreateServiceKey/properties/name/maxLength", &json!(100)),
        ("VerifyRequest/properties/scopes/maxItems", &scopes),
        ("VerifyRequest/properties/merchant/maxLength", &json!(128)),
        (
            "VerifyBatchRequest/properties/requests/maxItems",
            &json!(100),
        ),
        (
            "SyncRequest/properties/previous_poll_ids/maxItems",
            &json!(PollIds::PREVIOUS),
        ),
        ("SyncRequest/properties/usage/maxItems", &json!(Poll::USAGE)),
        ("SyncUsage/properties/count/maximum", &json!(u32::MAX)),
        ("UnkeyVerifyKeyRequest/properties/tags/maxItems", &json!(20)),
        (
            "UnkeyVerifyKeyRequest/properties/tags/items/minLength",
            &json!(1),
        ),
        (
            "UnkeyVerifyKeyRequest/properties/tags/items/maxLength",
            &json!(256),
        ),
        (
            "UnkeyVerifyKeyRequest/properties/tags/items/pattern",
            &json!("^[A-Za-z0-9_=/.:-]+$"),
        ),
        (
            "UnkeyVerifyKeyRequest/properties/permissions/minLength",
            &json!(1),
        ),
        (
            "UnkeyVerifyKeyRequest/properties/permissions/maxLength",
            &json!(ScopeExpression::MAX_LENGTH),
        ),
    ] {
        assert_eq!(
            schemas.pointer(&format!("/{pointer}")),
            Some(bound),
            "{pointer}"
        );
    }
}

#[test]
fn every_example_matches_the_bounds_of_its_schema() {
    let document = document();
    let components = &document["components"]["schemas"];
    let mut checked = 0;
    each_object("", components, &mut |pointer, schema| {
        let Some(example) = schema.get("example") else {
            return;
        };
        let (array, items) = match example.as_array() {
            Some(items) => (Some(items), items.as_slice()),
            None => (None, std::slice::from_ref(example)),
        };
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
        if let Some(array) = array {
            let len = array.len() as u64;
            assert!(
                bound("minItems").is_none_or(|least| least <= len),
                "{pointer}"
            );
            assert!(
                bound("maxItems").is_none_or(|most| len <= most),
                "{pointer}"
            );
        }
        let own = Value::Object(schema.clone());
        let rules = if array.is_some() { &own["items"] } else { &own };
        for text in items.iter().filter_map(Value::as_str) {
            checked += 1;
            let len = text.chars().count() as u64;
            let bound = |name: &str| rules[name].as_u64();
            assert!(
                bound("minLength").is_none_or(|least| least <= len),
                "{pointer}"
            );
            assert!(
                bound("maxLength").is_none_or(|most| len <= most),
                "{pointer}"
            );
        }
        for number in items.iter().filter_map(Value::as_i64) {
            let bound = |name: &str| rules[name].as_i64();
            assert!(
                bound("minimum").is_none_or(|least| least <= number),
                "{pointer}"
            );
            assert!(
                bound("maximum").is_none_or(|most| number <= most),
                "{pointer}"
            );
        }
    });
    assert!(checked > 50, "{checked}");
}

fn text() -> String {
    "text".to_owned()
}

/// The values of all types of responses, in which each field that can be null or absent is.
fn least_responses() -> Vec<(&'static str, Value)> {
    fn row(name: &'static str, value: impl Serialize) -> (&'static str, Value) {
        (name, serde_json::to_value(value).expect("a response"))
    }
    let at = Timestamp::UNIX_EPOCH;
    let commerce_limit = commerce::RateLimit::new(100, 60);
    let application_limit = applications::RateLimit::new(100, 60);
    let application = applications::Application {
        id: text(),
        name: text(),
        description: None,
        is_enabled: true,
        created_at: at.into(),
        api_keys: None,
    };
    let application_key = applications::Key {
        id: text(),
        key_prefix: text(),
        description: text(),
        status: Status::Active.into(),
        application_id: text(),
        last4: text(),
        mode: Mode::Live.into(),
        scopes: Vec::new(),
        allowed_ips: None,
        rate_limit: None,
        metadata: None,
        created_at: at.into(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
        revoked_reason: None,
    };
    let account_key = account::Key {
        id: text(),
        name: text(),
        prefix: text(),
        last4: text(),
        environment: Mode::Live.into(),
        access: account::Access::Secret.into(),
        created_at: at.into(),
        last_used_at: None,
        revoked_at: None,
        extras: account::Extras::default(),
    };
    let created_account_key = account::CreatedKey {
        id: text(),
        name: text(),
        environment: Mode::Live.into(),
        access: account::Access::Secret.into(),
        value: Secret::new("sk_test_EXAMPLE"),
        created_at: at.into(),
        extras: account::Extras::default(),
    };
    let account_actor = account::Actor {
        r#type: ActorKind::Cli.into(),
        id: text(),
    };
    let account_target = account::Target {
        r#type: TargetKind::Account.into(),
        id: text(),
    };
    let account_entry = account::AuditEntry {
        id: text(),
        occurred_at: at.into(),
        action: text(),
        actor: account_actor.clone(),
        target: account_target.clone(),
        request_id: None,
        ip: None,
        changes: json!({}),
        hash: text(),
    };
    let actor = audit::AuditActor {
        r#type: ActorKind::Cli.into(),
        id: text(),
    };
    let target = audit::AuditTarget {
        r#type: TargetKind::Account.into(),
        id: text(),
    };
    let meta = account::Meta {
        request_id: text(),
        timestamp: at.into(),
    };
    let list_meta = account::ListMeta {
        request_id: text(),
        timestamp: at.into(),
        next_cursor: None,
    };
    let details = account::ErrorDetails {
        code: text(),
        errors: Vec::new(),
    };
    let error = account::ErrorBody {
        code: text(),
        message: text(),
        details: None,
    };
    let verified_key = verification::VerifiedKey {
        id: text(),
        account_id: text(),
        application_id: None,
        name: text(),
        family: Family::Commerce.into(),
        mode: Mode::Live.into(),
        scopes: Vec::new(),
        merchants: None,
        features: None,
        expires_at: None,
        metadata: None,
    };
    let key_record = sync::KeyRecord {
        id: text(),
        account_id: text(),
        application_id: None,
        name: text(),
        family: Family::Commerce,
        mode: Mode::Live,
        prefix: text(),
        last4: text(),
        scopes: Vec::new(),
        merchants: None,
        features: None,
        allowed_ips: None,
        rate_limit: None,
        expires_at: None,
        metadata: None,
        created_at: at.into(),
        suspended_at: None,
        revoked_at: None,
        rotated_at: None,
        application_enabled: true,
        operating_model: OperatingModel::Platform,
        ancestor_rate_limits: Vec::new(),
    };
    let unkey_meta = unkey::Meta { request_id: text() };
    let unkey_error = unkey::ErrorBody {
        title: text(),
        detail: text(),
        status: 400,
        r#type: text(),
        errors: None,
    };
    vec![
        row(
            "CommerceKey",
            commerce::Key {
                key_id: text(),
                name: text(),
                scope: commerce::KeyScope::Commerce.into(),
                status: Status::Active.into(),
                expires_at: None,
                last_used_at: None,
                created_at: at.into(),
                revoked_at: None,
                revoked_reason: None,
                mode: Mode::Live.into(),
                scopes: Vec::new(),
                prefix: text(),
                last4: text(),
                merchants: None,
                features: None,
                allowed_ips: None,
                rate_limit: None,
                metadata: None,
                rotated_from: None,
                rotated_to: None,
            },
        ),
        row(
            "CreatedCommerceKey",
            commerce::CreatedKey {
                key_id: text(),
                name: text(),
                scope: commerce::KeyScope::Commerce.into(),
                api_key: Secret::new("ck_test_EXAMPLE"),
                expires_at: None,
                mode: Mode::Live.into(),
                scopes: Vec::new(),
                prefix: text(),
                merchants: None,
                features: None,
                created_at: at.into(),
            },
        ),
        row("CommerceKeyRateLimit", commerce_limit),
        row("RevocationMessage", commerce::Message { message: text() }),
        row("Application", &application),
        row(
            "IncludedApplicationKey",
            applications::IncludedKey {
                id: text(),
                key_prefix: text(),
                description: text(),
                status: Status::Active.into(),
            },
        ),
        row("ApplicationKey", &application_key),
        row(
            "CreatedApplicationKey",
            applications::CreatedKey {
                id: text(),
                application_id: text(),
                full_key: Secret::new("ks_test_EXAMPLE"),
                key_prefix: text(),
                description: text(),
                created_at: at.into(),
            },
        ),
        row("ApplicationKeyRateLimit", application_limit),
        row(
            "ApplicationPage",
            applications::Page::new(vec![application], 1, 10, 1),
        ),
        row(
            "ApplicationKeyPage",
            applications::Page::new(vec![application_key], 1, 10, 1),
        ),
        row("AccountKey", &account_key),
        row("CreatedAccountKey", &created_account_key),
        row(
            "AccountKeyEnvelope",
            account::Envelope {
                data: account_key.clone(),
                error: (),
                meta: meta.clone(),
            },
        ),
        row(
            "CreatedAccountKeyEnvelope",
            account::Envelope {
                data: created_account_key,
                error: (),
                meta: meta.clone(),
            },
        ),
        row(
            "AccountKeyListEnvelope",
            account::ListEnvelope {
                data: vec![account_key],
                error: (),
                meta: list_meta.clone(),
            },
        ),
        row(
            "AccountAuditListEnvelope",
            account::ListEnvelope {
                data: vec![account_entry.clone()],
                error: (),
                meta: list_meta.clone(),
            },
        ),
        row("AccountAuditEntry", account_entry),
        row("AccountAuditActor", account_actor),
        row("AccountAuditTarget", account_target),
        row("ListEnvelopeMeta", list_meta),
        row(
            "ErrorEnvelope",
            account::ErrorEnvelope {
                data: (),
                error: error.clone(),
                meta: meta.clone(),
            },
        ),
        row("EnvelopeMeta", meta),
        row("ErrorEnvelopeBody", error),
        row("ErrorEnvelopeDetails", details),
        row(
            "AuditEntry",
            audit::AuditEntry {
                id: text(),
                occurred_at: at.into(),
                action: text(),
                actor: actor.clone(),
                target: target.clone(),
                request_id: None,
                ip: None,
                changes: json!({}),
                hash: text(),
            },
        ),
        row("AuditActor", actor),
        row("AuditTarget", target),
        row(
            "Account",
            operator::Account {
                id: text(),
                operating_model: OperatingModel::Platform.into(),
            },
        ),
        row(
            "CreatedServiceKey",
            operator::CreatedServiceKey {
                id: text(),
                name: text(),
                key: Secret::new("tks_EXAMPLE"),
                created_at: at.into(),
            },
        ),
        row(
            "ServiceKey",
            operator::ServiceKey {
                id: text(),
                name: text(),
                last4: text(),
                created_at: at.into(),
                revoked_at: None,
            },
        ),
        row(
            "Problem",
            problem::Problem {
                r#type: text(),
                title: text(),
                status: 400,
                detail: text(),
                code: text(),
                request_id: text(),
                errors: Vec::new(),
                missing_scopes: Vec::new(),
            },
        ),
        row(
            "FieldError",
            problem::FieldError {
                pointer: text(),
                detail: text(),
            },
        ),
        row("VerifiedKey", &verified_key),
        row(
            "VerifyValid",
            verification::Valid {
                valid: true,
                code: "valid".to_owned(),
                key: verified_key,
                rate_limit: None,
            },
        ),
        row(
            "VerifyInvalid",
            verification::Invalid {
                valid: false,
                code: Open::Known(Denial::Revoked),
                missing_scopes: None,
            },
        ),
        row(
            "RateLimitState",
            verification::RateLimitState {
                limit: 100,
                remaining: 42,
                reset_seconds: 17,
                window_seconds: 60,
            },
        ),
        row(
            "VerifyBatchResponse",
            verification::VerifyBatchResponse {
                results: Vec::new(),
            },
        ),
        row(
            "IntrospectResponse",
            verification::IntrospectResponse::inactive(),
        ),
        row(
            "WhoAmI",
            verification::WhoAmI {
                id: text(),
                family: Family::Publishable.into(),
                mode: Mode::Live.into(),
                status: Status::Active.into(),
                rest: None,
            },
        ),
        row(
            "SyncResponse",
            sync::SyncResponse {
                seq: 0,
                cursor: text(),
                changes: None,
                lease_ms: 0,
            },
        ),
        row(
            "SyncChange",
            sync::Change {
                kind: text(),
                id: text(),
            },
        ),
        row(
            "SyncLookupResponse",
            sync::LookupResponse { seq: 0, key: None },
        ),
        row("SyncKeyRecord", key_record),
        row(
            "UnkeyVerifyKeyResponse",
            unkey::VerifyKeyResponse {
                meta: unkey_meta.clone(),
                data: unkey::Verification::not_found(),
            },
        ),
        row("UnkeyVerification", unkey::Verification::not_found()),
        row(
            "UnkeyIdentity",
            unkey::Identity {
                id: text(),
                external_id: text(),
            },
        ),
        row(
            "UnkeyRateLimitState",
            unkey::RateLimitState {
                exceeded: false,
                id: text(),
                name: text(),
                limit: 100,
                duration: 60_000,
                reset: 0,
                remaining: 42,
                auto_apply: true,
            },
        ),
        row(
            "UnkeyErrorResponse",
            unkey::ErrorResponse {
                meta: unkey_meta.clone(),
                error: unkey_error.clone(),
            },
        ),
        row("UnkeyMeta", unkey_meta),
        row("UnkeyErrorBody", unkey_error),
        row(
            "UnkeyValidationError",
            unkey::ValidationError {
                location: text(),
                message: text(),
            },
        ),
        row(
            "SyncAncestorRateLimit",
            sync::AncestorRateLimit {
                key_id: text(),
                rate_limit: commerce_limit,
            },
        ),
    ]
}

#[test]
fn responses_require_what_is_always_present() {
    let document = document();
    let mut in_responses = BTreeSet::new();
    for (_, operation) in operations(&document) {
        referenced(&document, &operation["responses"], &mut in_responses);
    }
    in_responses.retain(|name| schemas(&document)[name]["type"] == "object");
    let responses = least_responses();
    let names: BTreeSet<String> = responses
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(
        names, in_responses,
        "the rows are not the types of responses"
    );

    for (name, least) in responses {
        let schema = &schemas(&document)[name];
        let least = least.as_object().expect("an object");
        let required: BTreeSet<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let present: BTreeSet<&str> = least.keys().map(String::as_str).collect();
        assert_eq!(required, present, "{name}");
        for (field, value) in least {
            let field_schema = &schema["properties"][field];
            assert_eq!(is_nullable(field_schema), value.is_null(), "{name}.{field}");
        }
    }
}

/// A response can get more fields in a later release.
#[test]
fn responses_allow_additional_properties() {
    let document = document();
    for (name, _) in least_responses() {
        let additional = &schemas(&document)[name]["additionalProperties"];
        assert_eq!(additional, &json!(null), "{name}");
    }
}
