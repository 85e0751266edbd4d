//! The schemas of the OpenAPI document, beyond those that are derived.
//!
//! [`complete`] rewrites what utoipa derives in a form that client generators misread. The types name the schemas of
//! generic responses.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Components, Object, ObjectBuilder, Ref, RefOr, Schema, Type,
        schema::{AdditionalProperties, ArrayItems, SchemaType},
    },
};

use crate::{
    account, applications,
    time::{Moment, Rfc3339, UnixSeconds},
};

type Schemas = std::collections::BTreeMap<String, RefOr<Schema>>;

/// Declares the schema of a generic response with one type of item, which it references.
macro_rules! named {
    ($($(#[$doc:meta])* $name:ident = $response:ty, of $item:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                <$response>::schema()
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                schemas.push((<$item>::name().into_owned(), <$item>::schema()));
                <$response>::schemas(schemas);
            }
        }
    )*};
}

named! {
    /// A page of applications.
    ApplicationPage = applications::Page<applications::Application>, of applications::Application;
    /// A page of the keys of an application.
    ApplicationKeyPage = applications::Page<applications::Key>, of applications::Key;
    /// A response with an account key.
    AccountKeyEnvelope = account::Envelope<account::Key>, of account::Key;
    /// A response with a new account key.
    CreatedAccountKeyEnvelope = account::Envelope<account::CreatedKey>, of account::CreatedKey;
    /// A response with a list of account keys.
    AccountKeyListEnvelope = account::ListEnvelope<account::Key>, of account::Key;
    /// A response with a list of audit entries.
    AccountAuditListEnvelope = account::ListEnvelope<account::AuditEntry>, of account::AuditEntry;
}

/// Rewrites the schemas in the components of a document, because client generators misread them:
///
/// - A flattened struct becomes fields of its object. In an `allOf`, generators lose the fields of an optional struct.
/// - A time is not referenced but inlined. Generators create a wrapper class for it otherwise.
/// - A reference in a `oneOf` has no description beside it, with which the generated code does not compile.
/// - A free-form object allows additional properties. Generators drop its fields otherwise.
pub fn complete(components: &mut Components) {
    let schemas = &mut components.schemas;
    flatten(schemas);
    schemas.values_mut().for_each(rewrite);
    for (name, _) in inlined() {
        schemas.remove(&*name);
    }
}

/// Rewrites a schema outside of the components in the same way.
pub fn complete_inline(schema: &mut RefOr<Schema>) {
    rewrite(schema);
}

/// The schemas that are inlined.
fn inlined() -> [(Cow<'static, str>, RefOr<Schema>); 3] {
    [
        (UnixSeconds::name(), UnixSeconds::schema()),
        (Rfc3339::name(), Rfc3339::schema()),
        (Moment::name(), Moment::schema()),
    ]
}

fn name(reference: &Ref) -> &str {
    let location = &reference.ref_location;
    location.rsplit_once('/').map_or(location, |(_, name)| name)
}

/// Merges the objects of each `allOf`, and removes the merged schemas.
fn flatten(schemas: &mut Schemas) {
    let derived = schemas.clone();
    for schema in schemas.values_mut() {
        let RefOr::T(Schema::AllOf(all_of)) = schema else {
            continue;
        };
        // The struct's own fields are the last item.
        let items = all_of.items.iter().rev();
        let Some(parts) = items
            .map(|item| part(item, &derived))
            .collect::<Option<Vec<_>>>()
        else {
            continue;
        };
        let mut flat = ObjectBuilder::new()
            .description(all_of.description.take())
            .build();
        for (object, is_optional) in parts {
            flat.properties.extend(object.properties.clone());
            if !is_optional {
                flat.required.extend(object.required.iter().cloned());
            }
        }
        *schema = RefOr::T(Schema::Object(flat));
    }
    for schema in derived.values() {
        if let RefOr::T(Schema::AllOf(all_of)) = schema {
            for item in &all_of.items {
                if let Some(reference) = reference(item) {
                    schemas.remove(name(reference));
                }
            }
        }
    }
}

/// Returns the object of an item of an `allOf`, and whether its fields are optional.
fn part<'a>(item: &'a RefOr<Schema>, schemas: &'a Schemas) -> Option<(&'a Object, bool)> {
    let (schema, is_optional) = match (item, reference(item)) {
        (RefOr::T(Schema::OneOf(_)), Some(reference)) => (schemas.get(name(reference))?, true),
        (_, Some(reference)) => (schemas.get(name(reference))?, false),
        (own, None) => (own, false),
    };
    match schema {
        RefOr::T(Schema::Object(object)) => Some((object, is_optional)),
        _ => None,
    }
}

/// Returns the reference if this is one, or a `oneOf` of one and null.
fn reference(schema: &RefOr<Schema>) -> Option<&Ref> {
    match schema {
        RefOr::Ref(reference) => Some(reference),
        RefOr::T(Schema::OneOf(one_of)) => match one_of.items.as_slice() {
            [RefOr::Ref(reference), null] if *null == RefOr::T(null_schema()) => Some(reference),
            _ => None,
        },
        RefOr::T(_) => None,
    }
}

fn null_schema() -> Schema {
    Schema::Object(ObjectBuilder::new().schema_type(Type::Null).build())
}

fn rewrite(schema: &mut RefOr<Schema>) {
    let is_nullable = matches!(schema, RefOr::T(_));
    let simple = reference(schema).and_then(|reference| inline(reference, is_nullable));
    if let Some(simple) = simple {
        *schema = simple;
        return;
    }
    match schema {
        RefOr::T(Schema::Object(object)) => {
            object.properties.values_mut().for_each(rewrite);
            if is_free_form(object) {
                object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(true)));
            }
        }
        RefOr::T(Schema::Array(array)) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                rewrite(items);
            }
        }
        RefOr::T(Schema::OneOf(one_of)) => {
            for item in &mut one_of.items {
                if let RefOr::Ref(reference) = item
                    && !reference.description.is_empty()
                {
                    one_of.description = Some(std::mem::take(&mut reference.description));
                }
            }
        }
        RefOr::Ref(_) | RefOr::T(_) => {}
    }
}

/// Returns the schema in place of a reference to it, or `None` if the schema is not inlined.
fn inline(reference: &Ref, is_nullable: bool) -> Option<RefOr<Schema>> {
    let (_, mut schema) = inlined()
        .into_iter()
        .find(|(inlined, _)| inlined == name(reference))?;
    let description = Some(reference.description.clone()).filter(|text| !text.is_empty());
    match &mut schema {
        RefOr::T(Schema::Object(object)) => {
            object.description = description.or(object.description.take());
            if let (true, SchemaType::Type(own)) = (is_nullable, &object.schema_type) {
                object.schema_type = SchemaType::from_iter([own.clone(), Type::Null]);
            }
        }
        RefOr::T(Schema::AnyOf(any_of)) => {
            any_of.description = description.or(any_of.description.take());
            if is_nullable {
                any_of.items.push(RefOr::T(null_schema()));
            }
        }
        RefOr::Ref(_) | RefOr::T(_) => {}
    }
    Some(schema)
}

fn is_free_form(object: &Object) -> bool {
    let is_object = match &object.schema_type {
        SchemaType::Type(own) => *own == Type::Object,
        SchemaType::Array(types) => types.contains(&Type::Object),
        SchemaType::AnyValue => false,
    };
    is_object && object.properties.is_empty() && object.additional_properties.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Returns the schemas of a type and of those that it references, as the document has them.
    fn completed<T: ToSchema>() -> Value {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        let mut components = Components::default();
        components.schemas.extend(schemas);
        complete(&mut components);
        serde_json::to_value(components.schemas).unwrap()
    }

    #[test]
    fn flattened_struct_becomes_fields_of_its_object() {
        let schemas = completed::<account::Key>();
        let key = &schemas["AccountKey"];
        let fields: Vec<&String> = key["properties"].as_object().unwrap().keys().collect();
        assert!(fields.iter().any(|name| *name == "expiresAt"), "{fields:?}");
        let required = json!([
            "id",
            "name",
            "prefix",
            "last4",
            "environment",
            "access",
            "createdAt",
            "lastUsedAt",
            "revokedAt",
        ]);
        assert_eq!(key["required"], required);
        assert_eq!(schemas["AccountKeyExtras"], json!(null));
    }

    #[test]
    fn fields_of_an_optional_flattened_struct_are_optional() {
        let schemas = completed::<crate::verification::WhoAmI>();
        let key = &schemas["WhoAmI"];
        assert_eq!(key["required"], json!(["id", "family", "mode", "status"]));
        let field = |name: &str| &key["properties"][name]["type"];
        assert_eq!(field("account_id"), "string");
        assert_eq!(field("application_id"), &json!(["string", "null"]));
        assert_eq!(schemas["WhoAmIRest"], json!(null));
    }

    #[test]
    fn times_are_inlined() {
        let created = &completed::<crate::commerce::CreatedKey>()["CreatedCommerceKey"];
        let created = &created["properties"];
        assert_eq!(
            created["expires_at"],
            json!({
                "type": ["integer", "null"], "format": "int64", "example": 1_771_848_000,
                "description": "The time when the key expires, or null.",
            })
        );
        assert_eq!(
            created["api_key"],
            json!({
                "type": "string", "example": "ck_live_abc123xyz...",
                "description": "The full key. Store it now: it is not returned again.",
            })
        );
        let create = &completed::<crate::commerce::CreateKey>()["CreateCommerceKey"];
        let expires_at = &create["properties"]["expires_at"];
        assert_eq!(
            expires_at["anyOf"],
            json!([
                {"type": "integer", "format": "int64", "maximum": 253_402_300_799_i64},
                {"type": "string", "format": "date-time"},
                {"type": "null"},
            ])
        );
    }

    #[test]
    fn nullable_reference_has_its_description_outside() {
        let key = &completed::<crate::commerce::Key>()["CommerceKey"];
        assert_eq!(
            key["properties"]["rate_limit"],
            json!({
                "oneOf": [{"$ref": "#/components/schemas/CommerceKeyRateLimit"}, {"type": "null"}],
                "description": "The rate limit of the key, or null.",
            })
        );
    }

    #[test]
    fn free_form_object_allows_additional_properties() {
        let key = &completed::<crate::commerce::Key>()["CommerceKey"];
        let metadata = &key["properties"]["metadata"];
        assert_eq!(metadata["additionalProperties"], json!(true));
        assert_eq!(metadata["type"], json!(["object", "null"]));
    }

    #[test]
    fn inline_free_form_object_allows_additional_properties() {
        let object = ObjectBuilder::new().schema_type(Type::Object).build();
        let mut schema = RefOr::T(Schema::Object(object));
        complete_inline(&mut schema);
        let expected = json!({"type": "object", "additionalProperties": true});
        assert_eq!(serde_json::to_value(schema).unwrap(), expected);
    }

    #[test]
    fn page_references_its_items() {
        let schemas = completed::<ApplicationPage>();
        let items = &schemas["ApplicationPage"]["properties"]["items"]["items"];
        assert_eq!(items, &json!({"$ref": "#/components/schemas/Application"}));
        assert!(schemas["Application"].is_object());
        assert!(schemas["IncludedApplicationKey"].is_object());
    }

    #[test]
    fn code_selects_the_result_of_a_verification() {
        let schemas = completed::<crate::verification::VerifyResponse>();
        let valid = "#/components/schemas/VerifyValid";
        let invalid = "#/components/schemas/VerifyInvalid";
        let mut response = schemas["VerifyResponse"].clone();
        response.as_object_mut().unwrap().remove("description");
        assert_eq!(
            response,
            json!({
                "oneOf": [{"$ref": valid}, {"$ref": invalid}],
                "discriminator": {
                    "propertyName": "code",
                    "mapping": {
                        "valid": valid, "unknown_key": invalid, "revoked": invalid, "expired": invalid,
                        "suspended": invalid, "application_disabled": invalid, "wrong_mode": invalid,
                        "ip_not_allowed": invalid, "route_not_allowed": invalid, "merchant_not_allowed": invalid,
                        "insufficient_scope": invalid, "rate_limited": invalid,
                    },
                },
            })
        );
        let code = |schema: &str| schemas[schema]["properties"]["code"].clone();
        assert_eq!(code("VerifyValid")["enum"], json!(["valid"]));
        // Any longer string is a denial, also a code of a newer server.
        let denial = code("VerifyInvalid");
        assert_eq!(
            (&denial["type"], &denial["enum"], &denial["minLength"]),
            (&json!("string"), &json!(null), &json!(6))
        );
    }
}
