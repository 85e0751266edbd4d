//! Verification compatible with version 2 of Unkey's API: camelCase, Unix milliseconds, each response with `meta`.

use std::fmt;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value};
use tollkey_core::{self as core, Denial, Scope};

use crate::{Open, Secret};

/// The body of `POST /v2/keys.verifyKey`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyVerifyKeyRequest))]
pub struct VerifyKeyRequest {
    /// The key, as the client presented it.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "ck_test_YOUR_KEY_HERE"))]
    pub key: Secret,
    /// Up to 20 tags, each of 1 to 256 characters from `A-Z a-z 0-9 _ = / . : -`. Accepted and
    /// ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["region=eu"]), max_items = 20, min_length = 1, max_length = 256, pattern = "^[A-Za-z0-9_=/.:-]+$"))]
    pub tags: Option<Vec<String>>,
    /// The scopes that the request requires: names of scopes, `AND`, `OR` and parentheses. `AND`
    /// binds more strongly than `OR`. At most 1,000 characters and 32 nested parentheses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "links:read AND (sessions:read OR sessions:write)",
            min_length = 1,
            max_length = 1000
        )
    )]
    pub permissions: Option<String>,
    /// At most 256 characters. Accepted and ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 256))]
    pub migration_id: Option<String>,
    /// Rejected: keys have no credits.
    #[serde(default, skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub credits: Option<IgnoredAny>,
    /// Rejected: keys are in no keyspace.
    #[serde(default, skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub keyspaces: Option<IgnoredAny>,
    /// Rejected: a request cannot choose the rate limits of a key.
    #[serde(default, skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub ratelimits: Option<IgnoredAny>,
}

/// The response of `POST /v2/keys.verifyKey`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyVerifyKeyResponse))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct VerifyKeyResponse {
    /// Information about the response.
    pub meta: Meta,
    /// The result.
    pub data: Verification,
}

/// Information about a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyMeta))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Meta {
    /// The ID of the request, as in the header `X-Request-Id`.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::request_id))]
    pub request_id: String,
}

/// The result of a verification. With `NOT_FOUND` it has only `valid` and `code`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyVerification))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Verification {
    /// Whether the key is valid for this request.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub valid: bool,
    /// `VALID`, or the reason for the denial: the first that applies.
    #[cfg_attr(feature = "openapi", schema(value_type = Code))]
    pub code: Open<Code>,
    /// The ID of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, example = crate::examples::key_id))]
    pub key_id: Option<String>,
    /// The label of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(nullable = false, example = "Primary checkout key")
    )]
    pub name: Option<String>,
    /// The metadata of the key. Absent for a key without metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>, nullable = false))]
    pub meta: Option<Map<String, Value>>,
    /// The time when the key expires, in Unix milliseconds. Absent for a key that does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(nullable = false, example = 4_102_444_800_000_i64)
    )]
    pub expires: Option<i64>,
    /// False while the key is suspended or its application is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, example = true))]
    pub enabled: Option<bool>,
    /// All scopes that the key has, including those that `commerce` implies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, nullable = false, example = json!(["sessions:write"])))]
    pub permissions: Option<Vec<Scope>>,
    /// The account of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub identity: Option<Identity>,
    /// The state of the key's rate limit at this verifier: one item. Absent for a key without a
    /// limit, and if the key is denied for another reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub ratelimits: Option<Vec<RateLimitState>>,
}

impl Verification {
    /// Returns the result for a key that does not exist, or that counts as deleted.
    #[must_use]
    pub fn not_found() -> Self {
        Self {
            valid: false,
            code: Code::NotFound.into(),
            key_id: None,
            name: None,
            meta: None,
            expires: None,
            enabled: None,
            permissions: None,
            identity: None,
            ratelimits: None,
        }
    }
}

/// The account of a key. Both fields are the ID of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyIdentity))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Identity {
    /// The ID of the account.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub id: String,
    /// The ID of the account.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub external_id: String,
}

/// The state of a rate limit. It counts this verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyRateLimitState))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct RateLimitState {
    /// Whether the key is denied because of this limit.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub exceeded: bool,
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// Always `key`.
    #[cfg_attr(feature = "openapi", schema(example = "key"))]
    pub name: String,
    /// The number of uses in one window.
    #[cfg_attr(feature = "openapi", schema(example = 100))]
    pub limit: u32,
    /// The length of the window in milliseconds.
    #[cfg_attr(feature = "openapi", schema(example = 60_000))]
    pub duration: u64,
    /// The time when all uses are available again, in Unix milliseconds. With `RATE_LIMITED`, the
    /// time when the key can be used again.
    #[cfg_attr(feature = "openapi", schema(example = 1_771_848_017_000_i64))]
    pub reset: i64,
    /// The number of uses that remain now.
    #[cfg_attr(feature = "openapi", schema(example = 42))]
    pub remaining: u32,
    /// Always true: the limit belongs to the key.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub auto_apply: bool,
}

/// The result code of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyCode))]
pub enum Code {
    /// The key is valid for this request.
    Valid,
    /// The key does not exist or is revoked, or the caller cannot see it.
    NotFound,
    /// A restriction of the key does not allow this request, or needs what the request cannot carry.
    Forbidden,
    /// The key does not satisfy `permissions`.
    InsufficientPermissions,
    /// The rate limit of the key is exceeded.
    RateLimited,
    /// The key is suspended, or its application is disabled.
    Disabled,
    /// The key has expired.
    Expired,
}

impl Code {
    /// The value in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::NotFound => "NOT_FOUND",
            Self::Forbidden => "FORBIDDEN",
            Self::InsufficientPermissions => "INSUFFICIENT_PERMISSIONS",
            Self::RateLimited => "RATE_LIMITED",
            Self::Disabled => "DISABLED",
            Self::Expired => "EXPIRED",
        }
    }
}

/// A revoked key counts as deleted.
impl From<Denial> for Code {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::UnknownKey | Denial::Revoked => Self::NotFound,
            Denial::Expired => Self::Expired,
            Denial::Suspended | Denial::ApplicationDisabled => Self::Disabled,
            Denial::WrongMode
            | Denial::IpNotAllowed
            | Denial::RouteNotAllowed
            | Denial::MerchantNotAllowed => Self::Forbidden,
            Denial::InsufficientScope => Self::InsufficientPermissions,
            Denial::RateLimited => Self::RateLimited,
        }
    }
}

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyErrorResponse))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorResponse {
    /// Information about the response.
    pub meta: Meta,
    /// The error.
    pub error: ErrorBody,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyErrorBody))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ErrorBody {
    /// The title of the type of the error.
    #[cfg_attr(feature = "openapi", schema(example = "The request is not valid"))]
    pub title: String,
    /// What is wrong with this request, and what to do next. Names fields as JSON pointers.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "/permissions: must have 1 to 1000 characters")
    )]
    pub detail: String,
    /// The HTTP status.
    #[cfg_attr(feature = "openapi", schema(example = 400))]
    pub status: u16,
    /// The URI of the type of the error. It ends in the code of the error, except for 429, whose
    /// type is the one that IANA registers. It does not change between releases.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "urn:tollkey:problem:validation_failed")
    )]
    pub r#type: String,
    /// The invalid fields, and the rules that they break. Present with status 400, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub errors: Option<Vec<ValidationError>>,
}

/// An invalid field, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = UnkeyValidationError))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ValidationError {
    /// The path of the field.
    #[cfg_attr(feature = "openapi", schema(example = "body.tags[3]"))]
    pub location: String,
    /// The rule that the field breaks.
    #[cfg_attr(feature = "openapi", schema(example = "must have 1 to 256 characters"))]
    pub message: String,
}

impl ErrorResponse {
    /// Creates the response body for a problem with the request that has this ID.
    #[must_use]
    pub fn new(problem: &core::Problem, request_id: &str) -> Self {
        let (_, status, title) = problem.code.row();
        // The SDKs require the array with status 400.
        let errors = (status == 400).then(|| {
            let errors = problem.errors.iter();
            errors.map(ValidationError::from).collect()
        });
        Self {
            meta: Meta {
                request_id: request_id.to_owned(),
            },
            error: ErrorBody {
                title: title.to_owned(),
                detail: problem.detail.clone(),
                status,
                r#type: problem.code.type_uri(),
                errors,
            },
        }
    }
}

impl From<&core::FieldError> for ValidationError {
    fn from(error: &core::FieldError) -> Self {
        Self {
            location: location(&error.pointer),
            message: error.detail.clone(),
        }
    }
}

/// Converts a JSON pointer into the body (RFC 6901): `/tags/3` is `body.tags[3]`.
fn location(pointer: &str) -> String {
    let mut location = "body".to_owned();
    for step in pointer.split('/').skip(1) {
        if !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()) {
            location.push_str(&format!("[{step}]"));
        } else {
            location.push('.');
            location.push_str(&step.replace("~1", "/").replace("~0", "~"));
        }
    }
    location
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tollkey_core::{Problem, ProblemCode};

    use super::*;

    #[test]
    fn location_of_a_field_follows_from_its_pointer() {
        for (pointer, expected) in [
            ("", "body"),
            ("/key", "body.key"),
            ("/tags/3", "body.tags[3]"),
            ("/a~1b~0c", "body.a/b~c"),
        ] {
            assert_eq!(location(pointer), expected);
        }
    }

    #[test]
    fn error_has_an_array_of_fields_only_with_status_400() {
        for (problem, expected) in [
            (
                Problem::field("/tags/0", "must be a string"),
                json!([{"location": "body.tags[0]", "message": "must be a string"}]),
            ),
            (Problem::new(ProblemCode::MalformedJson, "…"), json!([])),
            (Problem::not_found(), Value::Null),
            (Problem::unavailable(), Value::Null),
        ] {
            let error = serde_json::to_value(ErrorResponse::new(&problem, "req_1")).unwrap();
            assert_eq!(error["meta"], json!({"requestId": "req_1"}));
            assert_eq!(error["error"]["errors"], expected, "{problem}");
            assert_eq!(
                error["error"].get("errors").is_some(),
                problem.code.status() == 400,
                "{problem}"
            );
        }
    }

    #[test]
    fn code_is_written_as_it_is_displayed() {
        let codes = Denial::ALL.into_iter().map(Code::from);
        for code in codes.chain([Code::Valid]) {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn result_for_an_unknown_key_has_only_two_fields() {
        let result = json!({"valid": false, "code": "NOT_FOUND"});
        let unknown = Verification::not_found();
        assert_eq!(serde_json::to_value(&unknown).unwrap(), result);
        assert_eq!(
            serde_json::from_value::<Verification>(result).unwrap(),
            unknown
        );
    }
}
