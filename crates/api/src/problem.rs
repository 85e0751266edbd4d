//! Errors (RFC 9457) of all surfaces except the account surface.

use std::fmt;

use serde::{Deserialize, Serialize};
use tollkey_core as core;

/// The media type of [`Problem`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Problem {
    /// The URI of the type of the problem. It does not change between releases.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "urn:tollkey:problem:validation_failed")
    )]
    pub r#type: String,
    /// The title of the type of the problem.
    #[cfg_attr(feature = "openapi", schema(example = "The request is not valid"))]
    pub title: String,
    /// The HTTP status.
    #[cfg_attr(feature = "openapi", schema(example = 400))]
    pub status: u16,
    /// What is wrong with this request, and what to do next. Names fields as JSON pointers.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "/name: must have 1 to 100 characters")
    )]
    pub detail: String,
    /// The code of the problem, in snake_case. It does not change between releases.
    #[cfg_attr(feature = "openapi", schema(example = "validation_failed"))]
    pub code: String,
    /// The ID of the request, as in the header `X-Request-Id`.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::request_id))]
    pub request_id: String,
    /// With `validation_failed`: each invalid field, and the rule that it breaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// With `insufficient_scope`: the required scopes that the key lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["links:write"])))]
    pub missing_scopes: Vec<core::Scope>,
}

/// An invalid field, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct FieldError {
    /// A JSON pointer into the body, or the name of a query parameter or header.
    #[cfg_attr(feature = "openapi", schema(example = "/name"))]
    pub pointer: String,
    /// The rule that the field breaks.
    #[cfg_attr(feature = "openapi", schema(example = "must have 1 to 100 characters"))]
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => f.write_str(&self.detail),
            pointer => write!(f, "{pointer}: {}", self.detail),
        }
    }
}

impl From<&core::FieldError> for FieldError {
    fn from(error: &core::FieldError) -> Self {
        Self {
            pointer: error.pointer.clone(),
            detail: error.detail.clone(),
        }
    }
}

impl Problem {
    /// Creates the response body for a problem with the request that has this ID.
    #[must_use]
    pub fn new(problem: &core::Problem, request_id: &str) -> Self {
        let (code, status, title) = problem.code.row();
        Self {
            r#type: problem.code.type_uri(),
            title: title.to_owned(),
            status,
            detail: problem.detail.clone(),
            code: code.to_owned(),
            request_id: request_id.to_owned(),
            errors: problem.errors.iter().map(FieldError::from).collect(),
            missing_scopes: problem.missing_scopes.to_vec(),
        }
    }
}
