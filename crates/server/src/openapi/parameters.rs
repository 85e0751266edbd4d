//! The common parameters of operations, and the bounds of all parameters.
//!
//! The bounds are those that the server enforces, or narrower ones where the server sets no bound for one parameter.

use serde_json::Value;
use tollkey_core::{Catalogue, audit::Action, text::MAX_SEARCH_TEXT};
use utoipa::openapi::{
    Object, ObjectBuilder, RefOr, Schema, Type,
    path::{Operation, Parameter, ParameterBuilder, ParameterIn},
    schema::{ArrayItems, SchemaType},
};

use crate::{body::MAX_PARAMETER, surface::Surface};

/// Every ID of an account: 1 to 128 of these characters, except `.` and `..`.
const ACCOUNT_ID: &str = r"^(\.{0,2}[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*|\.{3}[A-Za-z0-9._:@-]*)$";
const UUID: &str = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$";
/// A UUID, or `key_` and 26 Crockford base-32 characters.
const KEY_ID: &str = "^([0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}|\
                      key_[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25})$";
/// Printable ASCII characters, except the quotation mark and the backslash.
const IDEMPOTENCY_KEY: &str = r"^[ !#-\[\]-~]+$";
/// Unix seconds or RFC 3339.
const TIME: &str = r"^(-?[0-9]{1,12}|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2}))$";
const NO_CONTROL_CHARACTERS: &str = r"^[^\x00-\x1F\x7F-\x9F]*$";
const SCOPE: &str = "^[a-z][a-z0-9._:-]*$";

/// The longest path or header that a gateway is documented to send, in characters.
const MAX_FORWARDED: usize = 8192;
/// The maximum number of required scopes: that of a catalogue.
const MAX_SCOPES: usize = Catalogue::MAX;

/// The bounds of a text.
struct Text {
    min: usize,
    max: usize,
    pattern: Option<&'static str>,
}

impl Text {
    const fn new(min: usize, max: usize) -> Self {
        Self {
            min,
            max,
            pattern: None,
        }
    }

    const fn matching(self, pattern: &'static str) -> Self {
        Self {
            pattern: Some(pattern),
            ..self
        }
    }
}

pub(super) fn complete(path: &str, surface: &Surface, operation: &mut Operation) {
    if surface.document.has_common_responses {
        add_common(surface, operation);
    }
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            bound(path, parameter);
        }
    }
}

fn add_common(surface: &Surface, operation: &mut Operation) {
    if surface.document.has_account_parameter {
        add(
            operation,
            "account",
            ParameterIn::Query,
            "The ID of the account. Required for operators, and only operators can use it.",
        );
    }
    if operation.responses.responses.contains_key("201") {
        add(
            operation,
            "Idempotency-Key",
            ParameterIn::Header,
            "A unique value for this request: 16 to 255 printable ASCII characters without quotation marks and \
             backslashes. If the request is repeated with the same value and body within 24 hours, the server returns \
             the first response again, with the header `Idempotent-Replayed: true`.",
        );
    }
}

/// Adds a parameter, unless the operation already describes it.
pub(super) fn add(operation: &mut Operation, name: &str, location: ParameterIn, description: &str) {
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

fn bound(path: &str, parameter: &mut Parameter) {
    let text = text(path, parameter);
    let is_action = parameter.name == "action";
    let is_page = parameter.name == "page";
    match &mut parameter.schema {
        Some(RefOr::T(Schema::Object(schema))) => {
            not_null(&mut schema.schema_type);
            if is_action {
                let actions = Action::ALL.map(|action| Value::from(action.as_str()));
                schema.enum_values = Some(actions.into());
            } else if is_page {
                // The server accepts larger numbers, which not every generated client can represent.
                schema.minimum = Some(1.into());
                schema.maximum = Some(i32::MAX.into());
            } else {
                bound_text(schema, &text);
            }
        }
        Some(RefOr::T(Schema::Array(schema))) => {
            not_null(&mut schema.schema_type);
            schema.max_items = schema.max_items.or(Some(MAX_SCOPES));
            if let ArrayItems::RefOrSchema(items) = &mut schema.items
                && let RefOr::T(Schema::Object(item)) = items.as_mut()
            {
                bound_text(item, &text);
            }
        }
        _ => {}
    }
}

/// A parameter can be absent, but a URL or a header cannot express null.
fn not_null(schema_type: &mut SchemaType) {
    if let SchemaType::Array(types) = schema_type {
        types.retain(|own| *own != Type::Null);
        if let [only] = types.as_slice() {
            *schema_type = SchemaType::Type(only.clone());
        }
    }
}

fn bound_text(schema: &mut Object, text: &Text) {
    if schema.schema_type != SchemaType::Type(Type::String) || schema.enum_values.is_some() {
        return;
    }
    schema.min_length = (text.min > 0).then_some(text.min);
    schema.max_length = Some(text.max);
    schema.pattern = text.pattern.map(str::to_owned);
}

fn text(path: &str, parameter: &Parameter) -> Text {
    use ParameterIn::{Header, Path, Query};
    match (&parameter.parameter_in, parameter.name.as_str()) {
        (Path, "id") if path.starts_with("/api/v1/accounts/") => {
            Text::new(1, 128).matching(ACCOUNT_ID)
        }
        (Path, "id")
            if path.starts_with("/api/v1/applications/")
                || path.starts_with("/api/v1/service-keys/") =>
        {
            Text::new(36, 36).matching(UUID)
        }
        (Path, "id" | "keyId") => Text::new(30, 36).matching(KEY_ID),
        (Path, _) => Text::new(1, MAX_FORWARDED),
        (Query, "account") => Text::new(1, 128).matching(ACCOUNT_ID),
        // The number of an entry.
        (Query, "cursor") if path.ends_with("/audit-log") => Text::new(1, 20),
        // A time and the ID of a key.
        (Query, "cursor") => Text::new(1, 57),
        (Query, "since" | "until" | "from" | "to") => Text::new(1, 35).matching(TIME),
        (Query, "target_id" | "actor_id") => {
            Text::new(0, MAX_SEARCH_TEXT).matching(NO_CONTROL_CHARACTERS)
        }
        (Query, "scope") => Text::new(1, 64).matching(SCOPE),
        (Query, _) => Text::new(0, MAX_PARAMETER),
        (Header, "Idempotency-Key") => Text::new(16, 255).matching(IDEMPOTENCY_KEY),
        (Header, "X-Forwarded-Method" | "X-Original-Method") => Text::new(1, 32),
        _ => Text::new(0, MAX_FORWARDED),
    }
}
