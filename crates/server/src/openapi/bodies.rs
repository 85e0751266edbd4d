//! Request bodies.

use utoipa::openapi::{Ref, RefOr, Required, Schema, path::Operation};

/// Describes a body that can be omitted as optional, with the schema of a present body. utoipa describes it as a body
/// that can be null, from which client generators create a type for the union.
pub(super) fn complete(operation: &mut Operation) {
    let Some(RefOr::T(body)) = &mut operation.request_body else {
        return;
    };
    for content in body.content.values_mut() {
        let RefOr::T(content) = content else {
            continue;
        };
        if let Some(present) = content.schema.as_ref().and_then(nullable) {
            content.schema = Some(present.into());
            body.required = Some(Required::False);
        }
    }
}

/// Returns the schema that a union with null refers to.
fn nullable(schema: &RefOr<Schema>) -> Option<Ref> {
    let RefOr::T(Schema::OneOf(union)) = schema else {
        return None;
    };
    match union.items.as_slice() {
        [RefOr::Ref(present), RefOr::T(_)] | [RefOr::T(_), RefOr::Ref(present)] => {
            Some(Ref::new(&present.ref_location))
        }
        _ => None,
    }
}
