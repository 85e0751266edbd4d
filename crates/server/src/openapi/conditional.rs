//! Describes the headers `ETag` and `If-Match`, and the response 412.

use utoipa::openapi::{
    HeaderBuilder, ObjectBuilder, RefOr, Type,
    path::{Operation, ParameterIn},
};

use super::{parameters, responses};
use crate::surface::Surface;

/// The operations on one key, application or account: the status of the response that has an `ETag`, and whether the
/// operation compares `If-Match`.
const OPERATIONS: [(&str, Option<&str>, bool); 23] = [
    ("createApplication", Some("201"), false),
    ("getApplication", Some("200"), false),
    ("updateApplication", Some("200"), true),
    // Afterwards there is no state to have a tag.
    ("deleteApplication", None, true),
    ("setApplicationStatus", Some("200"), true),
    ("createApplicationKey", Some("201"), false),
    ("revokeApplicationKey", Some("204"), true),
    ("createCommerceKey", Some("201"), false),
    ("getCommerceKey", Some("200"), false),
    ("updateCommerceKey", Some("200"), true),
    ("revokeCommerceKey", Some("200"), true),
    ("suspendCommerceKey", Some("200"), true),
    ("resumeCommerceKey", Some("200"), true),
    ("rotateCommerceKey", Some("201"), true),
    ("createAccountKey", Some("201"), false),
    ("deleteAccountKey", Some("200"), true),
    ("revokeAccountKey", Some("200"), true),
    ("whoami", Some("200"), false),
    ("revokeWhoami", Some("204"), true),
    ("getAccount", Some("200"), false),
    ("putAccount", Some("200"), true),
    ("createServiceKey", Some("201"), false),
    ("revokeServiceKey", Some("204"), true),
];

/// Adds the headers and the response to an operation that has them.
pub(super) fn complete(surface: &Surface, operation: &mut Operation) {
    let id = operation.operation_id.as_deref();
    let Some((_, tagged, compares)) = OPERATIONS.into_iter().find(|(own, ..)| Some(*own) == id)
    else {
        return;
    };
    let described = &mut operation.responses.responses;
    if let Some(status) = tagged
        && let Some(RefOr::T(response)) = described.get_mut(status)
    {
        let description = match id {
            Some("rotateCommerceKey") => "The tag of the state of the successor.",
            Some("whoami" | "revokeWhoami") => {
                "The tag of the state of the key. Only for a secret key."
            }
            _ => "The tag of the state of the resource, which usage does not change.",
        };
        let header = HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .description(Some(description))
            .build();
        response.headers.insert("ETag".to_owned(), header.into());
    }
    if !compares {
        return;
    }
    described.entry("412".to_owned()).or_insert_with(|| {
        responses::problem(
            surface,
            "`precondition_failed`: the current `ETag` of the resource is not in `If-Match`.",
        )
    });
    parameters::add(
        operation,
        "If-Match",
        ParameterIn::Header,
        "The `ETag` values of the states in which the resource is changed, or `*` for any state. In another \
         state, the response is 412. A revocation that is already done can be repeated with any value.",
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_listed_operation_exists_and_is_described() {
        let mut document = crate::openapi::document();
        let mut described = BTreeSet::new();
        for item in document.paths.paths.values_mut() {
            for operation in super::super::operations_mut(item) {
                let id = operation.operation_id.clone().unwrap_or_default();
                let Some((_, tagged, compares)) =
                    OPERATIONS.into_iter().find(|(own, ..)| *own == id)
                else {
                    continue;
                };
                let responses = &operation.responses.responses;
                for (status, response) in responses {
                    let RefOr::T(response) = response else {
                        panic!("{id} {status} is a reference")
                    };
                    let has_tag = response.headers.contains_key("ETag");
                    assert_eq!(has_tag, tagged == Some(status.as_str()), "{id} {status}");
                }
                assert_eq!(responses.contains_key("412"), compares, "{id}");
                described.insert(id);
            }
        }
        let listed: BTreeSet<String> = OPERATIONS.map(|(id, ..)| id.to_owned()).into();
        assert_eq!(described, listed);
    }
}
