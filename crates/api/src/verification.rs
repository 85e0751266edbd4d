//! Verification: snake_case, Unix seconds.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};
use tollkey_core::{Denial, Family, Mode, Scope, Status, feature::Feature};

use crate::{Open, Secret, object::from_objects, time::UnixSeconds};

/// The body of `POST /verify`: a presented key, and the requirements of the request with that key.
/// The key is denied if a restriction of the key needs a field that is absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyRequest {
    /// The key, as the client presented it.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "ck_test_YOUR_KEY_HERE"))]
    pub key: Secret,
    /// The method of the client's request, at most 32 bytes. HEAD counts as GET. Required for keys
    /// that are limited to features, and for publishable keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "POST", max_length = 32))]
    pub method: Option<String>,
    /// The path of the client's request, as it was sent, at most 8,192 bytes. A query is removed.
    /// Required for keys that are limited to features, and for publishable keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "/api/v1/sessions", max_length = 8192)
    )]
    pub path: Option<String>,
    /// The scopes that the request requires. The key must have all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"]), max_items = 128, pattern = "^[a-z][a-z0-9._:-]{0,63}$"))]
    pub scopes: Option<Vec<String>>,
    /// The mode that the request requires. By default both modes are allowed.
    #[serde(default, deserialize_with = "crate::enum_value::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The merchant of the request. Required for keys that are limited to merchants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "merchant_42",
            min_length = 1,
            max_length = 128,
            pattern = "^[A-Za-z0-9._:@-]+$"
        )
    )]
    pub merchant: Option<String>,
    /// The IP address of the client. Required for keys with an IP allowlist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "203.0.113.7",
            min_length = 2,
            max_length = 45,
            pattern = "^[0-9A-Fa-f:.]+$"
        )
    )]
    pub client_ip: Option<String>,
}

/// The `code` of a response for a valid key.
const VALID: &str = "valid";

/// The response of `POST /verify`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "lives for one response")]
pub enum VerifyResponse {
    /// The key is valid for this request.
    Valid(Valid),
    /// The key is denied.
    Invalid(Invalid),
}

impl VerifyResponse {
    /// Whether the key is valid for this request.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        matches!(self, Self::Valid(_))
    }

    /// Returns the key if it is valid.
    #[must_use]
    pub fn key(&self) -> Option<&VerifiedKey> {
        match self {
            Self::Valid(valid) => Some(&valid.key),
            Self::Invalid(_) => None,
        }
    }

    /// Returns `valid`, or the reason for the denial.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Valid(valid) => &valid.code,
            Self::Invalid(invalid) => invalid.code.as_str(),
        }
    }

    /// Returns the verified key, or the denial as an error for `?`.
    ///
    /// ```
    /// use tollkey_api::verification::VerifyResponse;
    ///
    /// fn account_of(response: VerifyResponse) -> Result<String, Box<dyn std::error::Error>> {
    ///     let valid = response.into_result()?;
    ///     Ok(valid.key.account_id)
    /// }
    ///
    /// let response = serde_json::from_str(r#"{"valid": false, "code": "revoked"}"#)?;
    /// assert_eq!(account_of(response).unwrap_err().to_string(), "the key is denied: revoked");
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    ///
    /// # Errors
    /// The denial, if the key is denied.
    pub fn into_result(self) -> Result<Valid, Invalid> {
        match self {
            Self::Valid(valid) => Ok(valid),
            Self::Invalid(invalid) => Err(invalid),
        }
    }
}

impl<'de> Deserialize<'de> for VerifyResponse {
    /// Only a response with `valid` true is read as valid, and only if all of its fields can be read: an absent
    /// restriction is not "no restriction".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(fields) = crate::metadata::object(deserializer)? else {
            return Err(D::Error::custom("must be an object"));
        };
        let is_valid = fields.get("valid") == Some(&Value::Bool(true));
        let fields = Value::Object(fields);
        if is_valid {
            serde_json::from_value(fields).map(Self::Valid)
        } else {
            serde_json::from_value(fields).map(Self::Invalid)
        }
        .map_err(D::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for VerifyResponse {
    /// Generated clients select the schema by `code`. They read an unknown code as a denial, because the code of a
    /// denial is any string except `valid`.
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::{
            ToSchema as _,
            openapi::{
                Ref,
                schema::{Discriminator, OneOfBuilder},
            },
        };

        let valid = Ref::from_schema_name(Valid::name());
        let invalid = Ref::from_schema_name(Invalid::name());
        let denials = Denial::ALL.map(|denial| (denial.code(), invalid.ref_location.clone()));
        let mapping = [(VALID, valid.ref_location.clone())]
            .into_iter()
            .chain(denials);
        OneOfBuilder::new()
            .description(Some(
                "The result: `VerifyValid` if `code` is `valid`, and `VerifyInvalid` with any other `code`.",
            ))
            .discriminator(Some(Discriminator::with_mapping("code", mapping)))
            .item(valid)
            .item(invalid)
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for VerifyResponse {
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
        use utoipa::PartialSchema as _;

        schemas.push((Valid::name().into_owned(), Valid::schema()));
        Valid::schemas(schemas);
        schemas.push((Invalid::name().into_owned(), Invalid::schema()));
        Invalid::schemas(schemas);
    }
}

/// The key is valid for this request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = VerifyValid))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Valid {
    /// Always true.
    #[serde(deserialize_with = "is_true")]
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub valid: bool,
    /// Always `valid`.
    #[serde(deserialize_with = "is_valid_code")]
    #[cfg_attr(feature = "openapi", schema(schema_with = valid_code))]
    pub code: String,
    /// The key.
    #[serde(deserialize_with = "crate::object::required")]
    pub key: VerifiedKey,
    /// The state of the rate limit at this verifier. Null for a key without a limit.
    #[serde(deserialize_with = "crate::object::option")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rate_limit: Option<RateLimitState>,
}

/// The key is denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = VerifyInvalid))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Invalid {
    /// Always false.
    #[serde(deserialize_with = "is_false")]
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub valid: bool,
    /// The reason for the denial: the first that applies.
    #[cfg_attr(feature = "openapi", schema(schema_with = denial_code))]
    pub code: Open<Denial>,
    // The scopes are optional information: the key is denied even if they cannot be read.
    /// With `insufficient_scope`: the required scopes that the key lacks.
    #[serde(default, deserialize_with = "if_readable")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, nullable = false, example = json!(["links:write"])))]
    pub missing_scopes: Option<Vec<Scope>>,
}

fn is_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    only(deserializer, "`valid` must be true", |valid| *valid)
}

fn is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    only(deserializer, "`valid` must be false", |valid| !valid)
}

fn is_valid_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let rule = "`valid` is true, but `code` is not `valid`";
    only(deserializer, rule, |code| code == VALID)
}

fn only<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    rule: &str,
    is_expected: impl FnOnce(&T) -> bool,
) -> Result<T, D::Error> {
    let value = T::deserialize(deserializer)?;
    if is_expected(&value) {
        Ok(value)
    } else {
        Err(D::Error::custom(rule))
    }
}

fn if_readable<'de, T: serde::de::DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Value::deserialize(deserializer).map(|value| serde_json::from_value(value).ok())
}

#[cfg(feature = "openapi")]
fn valid_code() -> utoipa::openapi::Object {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::Type::String)
        .description(Some("Always `valid`."))
        .enum_values(Some([VALID]))
        .build()
}

/// Any string that is longer than `valid`, so that a value is an instance of exactly one of the two schemas. An `enum`
/// would make clients fail on the codes of a newer server. A pattern that excludes `valid` needs look-ahead, which not
/// every regular expression engine has.
#[cfg(feature = "openapi")]
fn denial_code() -> utoipa::openapi::Object {
    let known = Denial::ALL.map(|denial| format!("`{denial}`")).join(", ");
    let min_length = VALID.len() + 1;
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::Type::String)
        .description(Some(format!(
            "The reason for the denial: the first that applies of {known}. A newer server can send other codes, \
             each with at least {min_length} characters. The key is denied with every code."
        )))
        .min_length(Some(min_length))
        .examples([Denial::InsufficientScope.code()])
        .build()
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key is denied: {}", self.code)
    }
}

impl std::error::Error for Invalid {}

/// A verified key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct VerifiedKey {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// The ID of the account.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub account_id: String,
    /// The ID of the application. Null for a key that is not an application key.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required, example = crate::examples::application_id))]
    pub application_id: Option<String>,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub name: String,
    /// The family of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Family))]
    pub family: Open<Family>,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// All scopes that the key has, including those that `commerce` implies.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["sessions:write"])))]
    pub scopes: Vec<Scope>,
    /// The merchants that the key is limited to. Null allows every merchant.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub merchants: Option<Vec<String>>,
    /// The features that the key is limited to. Null means that the key is not limited to features.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// The time when the key expires, or null.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expires_at: Option<UnixSeconds>,
    /// The metadata of the key, or null.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
}

/// The state of a rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct RateLimitState {
    /// The number of uses in one window.
    #[cfg_attr(feature = "openapi", schema(example = 100))]
    pub limit: u32,
    /// The number of uses that remain now.
    #[cfg_attr(feature = "openapi", schema(example = 42))]
    pub remaining: u32,
    /// The number of seconds after which all uses are available again.
    #[cfg_attr(feature = "openapi", schema(example = 17))]
    pub reset_seconds: u64,
    /// The length of the window in seconds. 0 from a server of release 0.1, which does not send it.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required = true, example = 60))]
    pub window_seconds: u32,
}

/// The body of `POST /verify/batch`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyBatchRequest {
    /// 1 to 100 verifications. Each is independent of the others.
    #[serde(deserialize_with = "crate::object::list")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 100))]
    pub requests: Vec<VerifyRequest>,
}

/// The response of `POST /verify/batch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct VerifyBatchResponse {
    /// The results, in the order of the requests.
    pub results: Vec<VerifyResponse>,
}

/// The form of `POST /introspect` (RFC 7662, section 2.1), with the optional fields of `POST
/// /verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IntrospectRequest {
    /// The key, as the client presented it.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "ck_test_YOUR_KEY_HERE"))]
    pub token: Secret,
    /// Accepted and ignored, because the prefix of a key identifies its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "access_token"))]
    pub token_type_hint: Option<String>,
    /// The method of the client's request, at most 32 bytes. HEAD counts as GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "POST", max_length = 32))]
    pub method: Option<String>,
    /// The path of the client's request, as it was sent, at most 8,192 bytes. A query is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = String, example = "/api/v1/sessions", max_length = 8192)
    )]
    pub path: Option<String>,
    /// The scopes that the request requires, separated by spaces. The key must have all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "sessions:read sessions:write"))]
    pub scopes: Option<String>,
    /// The mode that the request requires. By default both modes are allowed.
    #[serde(default, deserialize_with = "crate::enum_value::option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Option<Mode>,
    /// The merchant of the request. Required for keys that are limited to merchants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = String, example = "merchant_42", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:@-]+$")
    )]
    pub merchant: Option<String>,
    /// The IP address of the client. Required for keys with an IP allowlist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = String, example = "203.0.113.7", min_length = 2, max_length = 45, pattern = "^[0-9A-Fa-f:.]+$")
    )]
    pub client_ip: Option<String>,
    /// Accepted and ignored, because the key identifies the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, max_length = 2048))]
    pub client_id: Option<String>,
    /// The service key or secret key of the caller, if no header has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "crate::secret::write_option")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = Option<String>, nullable = false, max_length = 2048)
    )]
    pub client_secret: Option<Secret>,
}

/// The response of `POST /introspect` (RFC 7662, section 2.2). For an inactive key it is exactly
/// `{"active":false}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct IntrospectResponse {
    /// Whether the key is valid for this request.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub active: bool,
    /// All scopes that the key has, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(nullable = false, example = "sessions:read sessions:write")
    )]
    pub scope: Option<String>,
    /// The ID of the application. Absent for a key that is not an application key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, example = crate::examples::application_id))]
    pub client_id: Option<String>,
    /// The ID of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, example = "acme"))]
    pub sub: Option<String>,
    /// Always `Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, example = "Bearer"))]
    pub token_type: Option<String>,
    /// The time when the key expires. Absent for a key that does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub exp: Option<UnixSeconds>,
    /// The time when the key was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub iat: Option<UnixSeconds>,
    /// The ID of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, example = crate::examples::key_id))]
    pub jti: Option<String>,
    /// The mode of the key (an extension of RFC 7662).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Option<Open<Mode>>,
}

from_objects!(
    VerifyBatchResponse: "VerifyBatchResponse::deserialize",
    IntrospectResponse: "IntrospectResponse::deserialize"
);

impl IntrospectResponse {
    /// Returns the response for an inactive key.
    #[must_use]
    pub fn inactive() -> Self {
        Self {
            active: false,
            scope: None,
            client_id: None,
            sub: None,
            token_type: None,
            exp: None,
            iat: None,
            jti: None,
            mode: None,
        }
    }
}

/// The response of `GET /whoami`: the presented key. For a publishable key it has only `id`,
/// `family`, `mode` and `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct WhoAmI {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// The family of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Family))]
    pub family: Open<Family>,
    /// The mode of the key.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// The status of the key. Always `active`, because every other key is denied.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
    /// The other fields. Absent for a publishable key.
    #[serde(flatten, deserialize_with = "whoami_rest")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest: Option<WhoAmIRest>,
}

/// Reads the other fields. Without it, Serde would read them as `None` if one of them is invalid.
fn whoami_rest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WhoAmIRest>, D::Error> {
    let fields: Map<String, Value> = Map::deserialize(deserializer)?;
    if !fields.contains_key("account_id") {
        return Ok(None);
    }
    let rest = serde_json::from_value(Value::Object(fields));
    rest.map(Some).map_err(D::Error::custom)
}

/// The fields that are absent for a publishable key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct WhoAmIRest {
    /// The ID of the account.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub account_id: String,
    /// The ID of the application. Null for a key that is not an application key.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub application_id: Option<String>,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub name: String,
    /// All scopes that the key has, including those that `commerce` implies.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["sessions:write"])))]
    pub scopes: Vec<Scope>,
    /// The merchants that the key is limited to. Null allows every merchant.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub merchants: Option<Vec<String>>,
    /// The features that the key is limited to. Null means that the key is not limited to features.
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// The time when the key was created.
    pub created_at: UnixSeconds,
    /// The time when the key expires, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expires_at: Option<UnixSeconds>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn valid() -> Value {
        json!({
            "valid": true, "code": "valid", "rate_limit": null,
            "key": {
                "id": "0198c0de-0000-7000-8000-000000000002", "account_id": "acme", "application_id": null,
                "name": "Commerce Server Key", "family": "commerce", "mode": "test", "scopes": ["commerce"],
                "merchants": null, "features": null, "expires_at": null, "metadata": null,
            },
        })
    }

    /// Returns the values of the fields of an object as an array.
    fn values(object: &Value) -> Value {
        object.as_object().unwrap().values().cloned().collect()
    }

    #[test]
    fn key_is_valid_only_if_the_response_has_valid_true() {
        let response: VerifyResponse = serde_json::from_value(valid()).unwrap();
        assert!(response.is_valid());
        assert_eq!(
            (
                response.code(),
                response.key().map(|key| key.account_id.as_str())
            ),
            ("valid", Some("acme"))
        );
        assert!(response.into_result().is_ok());

        // A newer server can add fields to a denial.
        let mut denied = valid();
        denied["valid"] = json!(false);
        denied["code"] = json!("suspended");
        let response: VerifyResponse = serde_json::from_value(denied).unwrap();
        assert!(!response.is_valid());
        assert_eq!((response.code(), response.key()), ("suspended", None));
        assert!(
            response
                .into_result()
                .is_err_and(|invalid| invalid.code == Denial::Suspended)
        );
    }

    #[test]
    fn denial_is_read_even_if_its_other_fields_are_invalid() {
        let text = r#"{"valid": false, "code": "wrong_moon_phase", "key": 7, "rate_limit": "none", "hint": []}"#;
        let response: VerifyResponse = serde_json::from_str(text).unwrap();
        assert_eq!(
            (response.is_valid(), response.code()),
            (false, "wrong_moon_phase")
        );
    }

    #[test]
    fn inconsistent_or_incomplete_response_is_an_error() {
        for (field, value) in [
            ("valid", None),
            ("valid", Some(json!(null))),
            ("valid", Some(json!("true"))),
            ("valid", Some(json!(1))),
            ("code", None),
            ("code", Some(json!("revoked"))),
            ("code", Some(json!("Valid"))),
            ("code", Some(json!(""))),
            ("key", None),
            ("key", Some(json!(null))),
            ("key", Some(json!({}))),
            ("key", Some(values(&valid()["key"]))),
            ("rate_limit", None),
            ("rate_limit", Some(json!({"limit": 1}))),
            ("rate_limit", Some(json!([100, 42, 17]))),
        ] {
            let mut response = valid();
            let fields = response.as_object_mut().unwrap();
            match &value {
                Some(value) => fields.insert(field.to_owned(), value.clone()),
                None => fields.remove(field),
            };
            assert!(
                serde_json::from_value::<VerifyResponse>(response).is_err(),
                "{field}: {value:?}"
            );
        }
        let repeated = valid().to_string().replacen('{', r#"{"valid": false, "#, 1);
        assert!(serde_json::from_str::<VerifyResponse>(&repeated).is_err());
        assert!(serde_json::from_str::<VerifyResponse>(r#"{"valid": false}"#).is_err());
    }

    #[test]
    fn absent_field_of_a_key_is_an_error() {
        assert!(serde_json::from_value::<VerifyResponse>(valid()).is_ok());
        for field in valid()["key"].as_object().unwrap().keys() {
            let mut response = valid();
            response["key"].as_object_mut().unwrap().remove(field);
            assert!(
                serde_json::from_value::<VerifyResponse>(response).is_err(),
                "{field}"
            );
        }
    }

    #[test]
    fn array_is_rejected_as_a_response() {
        let mut as_array = valid();
        as_array["key"] = values(&valid()["key"]);
        for response in [valid(), as_array] {
            let array = json!([
                response["valid"],
                response["code"],
                response["key"],
                response["rate_limit"]
            ]);
            assert!(
                serde_json::from_value::<VerifyResponse>(array.clone()).is_err(),
                "{array}"
            );
            for batch in [json!([[valid()]]), json!({"results": [array]})] {
                assert!(
                    serde_json::from_value::<VerifyBatchResponse>(batch.clone()).is_err(),
                    "{batch}"
                );
            }
        }
        assert!(
            serde_json::from_value::<VerifyBatchResponse>(json!({"results": [valid()]})).is_ok()
        );
        for text in [
            "[true]",
            r#"[true,"links:read",null,"acme",null,null,null,null,null]"#,
            "[false]",
            "true",
            "{}",
        ] {
            assert!(
                serde_json::from_str::<IntrospectResponse>(text).is_err(),
                "{text}"
            );
        }
        for text in [
            r#"{"active":true}"#,
            r#"{"active":false}"#,
            r#"{"active":true,"scope":null,"a_new_field":[]}"#,
        ] {
            assert!(
                serde_json::from_str::<IntrospectResponse>(text).is_ok(),
                "{text}"
            );
        }
    }

    fn whoami() -> Value {
        json!({
            "id": "0198c0de-0000-7000-8000-000000000002", "family": "commerce", "mode": "test", "status": "active",
            "account_id": "acme", "application_id": null, "name": "Commerce Server Key", "scopes": ["commerce"],
            "merchants": null, "features": null, "created_at": 1_771_848_000, "expires_at": null,
        })
    }

    #[test]
    fn whoami_of_a_publishable_key_has_four_fields() {
        let text = r#"{"id": "1", "family": "publishable", "mode": "live", "status": "active", "origins": []}"#;
        let response: WhoAmI = serde_json::from_str(text).unwrap();
        assert_eq!(
            (response.family, response.rest),
            (Family::Publishable.into(), None)
        );
    }

    #[test]
    fn other_fields_are_read_or_rejected_but_never_ignored() {
        let response: WhoAmI = serde_json::from_value(whoami()).unwrap();
        assert_eq!(
            response.rest.as_ref().map(|rest| rest.account_id.as_str()),
            Some("acme")
        );
        assert_eq!(serde_json::to_value(&response).unwrap(), whoami());
        for (field, value) in [
            ("name", json!(7)),
            ("scopes", json!(null)),
            ("created_at", json!("yesterday")),
        ] {
            let mut response = whoami();
            response[field] = value;
            assert!(
                serde_json::from_value::<WhoAmI>(response).is_err(),
                "{field}"
            );
        }
    }
}
