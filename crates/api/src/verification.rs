//! Verification: snake_case, Unix seconds.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, IntoDeserializer},
};
use serde_json::{Map, Value};
use tollkey_core::{Denial, Family, Mode, Scope, Status, feature::Feature};

use crate::{
    Open, Patch, Secret,
    object::{self, from_objects},
    time::UnixSeconds,
};

/// The body of `POST /verify`: a presented key and what the request it came with needs. What a restriction of
/// the key needs and this body lacks, denies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyRequest {
    /// The key, as it was presented.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(example = "ck_test_YOUR_KEY_HERE"))]
    pub key: Secret,
    /// The method of the request, as sent. HEAD counts as GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "POST", max_length = 32))]
    pub method: Option<String>,
    /// The path of the request, as sent; a query is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "/api/v1/sessions", max_length = 8192)
    )]
    pub path: Option<String>,
    /// All of these scopes are needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"]), max_items = 128))]
    pub scopes: Option<Vec<String>>,
    /// This mode is needed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::word::option"
    )]
    pub mode: Option<Mode>,
    /// The merchant the request is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "merchant_42", max_length = 128))]
    pub merchant: Option<String>,
    /// The address the request came from, as the resource server saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "203.0.113.7"))]
    pub client_ip: Option<String>,
}

/// The answer of `POST /verify`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[expect(clippy::large_enum_variant, reason = "lives for one response")]
pub enum VerifyResponse {
    /// The key may.
    Valid(Valid),
    /// The key may not.
    Invalid(Invalid),
}

impl VerifyResponse {
    /// Whether the key may.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        matches!(self, Self::Valid(_))
    }

    /// The key, if it may.
    #[must_use]
    pub fn key(&self) -> Option<&VerifiedKey> {
        match self {
            Self::Valid(valid) => Some(&valid.key),
            Self::Invalid(_) => None,
        }
    }

    /// `valid`, or why the key may not.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Valid(valid) => &valid.code,
            Self::Invalid(invalid) => invalid.code.as_str(),
        }
    }

    /// For `?`: what is known of a key that may, or why it may not.
    ///
    /// ```
    /// use tollkey_api::verification::VerifyResponse;
    ///
    /// fn account_of(verdict: VerifyResponse) -> Result<String, Box<dyn std::error::Error>> {
    ///     let valid = verdict.into_result()?;
    ///     Ok(valid.key.account_id)
    /// }
    ///
    /// let verdict = serde_json::from_str(r#"{"valid": false, "code": "revoked"}"#)?;
    /// assert_eq!(account_of(verdict).unwrap_err().to_string(), "the key is denied: revoked");
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    ///
    /// # Errors
    /// The denial.
    pub fn into_result(self) -> Result<Valid, Invalid> {
        match self {
            Self::Valid(valid) => Ok(valid),
            Self::Invalid(invalid) => Err(invalid),
        }
    }
}

/// As an answer is read: by its member `valid`. What else a denial says does not matter.
#[derive(Deserialize)]
struct ReadResponse {
    valid: bool,
    code: String,
    key: Option<Value>,
    #[serde(default)]
    rate_limit: Patch<Value>,
    missing_scopes: Option<Value>,
}

impl<'de> Deserialize<'de> for VerifyResponse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read: ReadResponse = object::required(deserializer)?;
        if !read.valid {
            let code = Open::deserialize(read.code.into_deserializer())?;
            // A hint: one that cannot be read leaves the denial as it is.
            let missing_scopes = read
                .missing_scopes
                .and_then(|scopes| serde_json::from_value(scopes).ok());
            return Ok(Self::Invalid(Invalid {
                valid: false,
                code,
                missing_scopes,
            }));
        }
        if read.code != "valid" {
            return Err(D::Error::custom(
                "`valid` is true, and `code` says something else",
            ));
        }
        let key = read.key.ok_or_else(|| D::Error::missing_field("key"))?;
        let rate_limit = match read.rate_limit {
            Patch::Absent => return Err(D::Error::missing_field("rate_limit")),
            Patch::Null => None,
            Patch::Value(limit) => Some(object::required(limit).map_err(D::Error::custom)?),
        };
        Ok(Self::Valid(Valid {
            valid: true,
            code: read.code,
            key: object::required(key).map_err(D::Error::custom)?,
            rate_limit,
        }))
    }
}

/// The key may do what was asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = VerifyValid))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Valid {
    /// Always true.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub valid: bool,
    /// Always `valid`.
    #[cfg_attr(feature = "openapi", schema(example = "valid"))]
    pub code: String,
    /// The key.
    pub key: VerifiedKey,
    /// What is left of its allowance, at this verifier; null when it is unlimited.
    pub rate_limit: Option<RateLimitState>,
}

/// The key may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = VerifyInvalid))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Invalid {
    /// Always false.
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub valid: bool,
    /// Why: the first that applies.
    #[cfg_attr(feature = "openapi", schema(value_type = Denial))]
    pub code: Open<Denial>,
    /// With `insufficient_scope`: those of the requested scopes that the key does not satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>, nullable = false, example = json!(["links:write"])))]
    pub missing_scopes: Option<Vec<Scope>>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key is denied: {}", self.code)
    }
}

impl std::error::Error for Invalid {}

/// What a verification tells of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct VerifiedKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
    /// Whose it is.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub account_id: String,
    /// Its application, for keys of applications.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000001")
    )]
    pub application_id: Option<String>,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub name: String,
    /// Which key system it belongs to.
    #[cfg_attr(feature = "openapi", schema(value_type = Family))]
    pub family: Open<Family>,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// All scopes it satisfies: `commerce` is printed with those it implies.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["sessions:write"])))]
    pub scopes: Vec<Scope>,
    /// The merchants it is bound to; null is any.
    #[serde(deserialize_with = "crate::object::present")]
    pub merchants: Option<Vec<String>>,
    /// The features it is bound to; null is any.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// When it ends; null is never.
    #[serde(deserialize_with = "crate::object::present")]
    pub expires_at: Option<UnixSeconds>,
    /// What was attached to it.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
}

/// What is left of a key's allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct RateLimitState {
    /// How many uses there are in a window.
    #[cfg_attr(feature = "openapi", schema(example = 100))]
    pub limit: u32,
    /// How many are left now.
    #[cfg_attr(feature = "openapi", schema(example = 42))]
    pub remaining: u32,
    /// In how many seconds all are back.
    #[cfg_attr(feature = "openapi", schema(example = 17))]
    pub reset_seconds: u64,
    /// The window, in seconds; 0 in the response of a server of release 0.1, which does not say.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required = true, example = 60))]
    pub window_seconds: u32,
}

/// The body of `POST /verify/batch`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyBatchRequest {
    /// 1 to 100 verifications, each judged for itself.
    #[serde(deserialize_with = "crate::object::list")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 100))]
    pub requests: Vec<VerifyRequest>,
}

/// The answer of `POST /verify/batch`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct VerifyBatchResponse {
    /// The answers, in the order of the requests.
    pub results: Vec<VerifyResponse>,
}

/// As an answer is read.
#[derive(Deserialize)]
#[serde(remote = "VerifyBatchResponse")]
struct ReadVerifyBatchResponse {
    results: Vec<VerifyResponse>,
}

/// The form of `POST /introspect` (RFC 7662, section 2.1) with the optional fields of `POST /verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IntrospectRequest {
    /// The key, as it was presented.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(example = "ck_test_YOUR_KEY_HERE"))]
    pub token: Secret,
    /// Accepted and not needed: a key's text tells what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type_hint: Option<String>,
    /// The method of the request, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path of the request, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// All of these scopes are needed, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "sessions:read sessions:write"))]
    pub scopes: Option<String>,
    /// This mode is needed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::word::option"
    )]
    pub mode: Option<Mode>,
    /// The merchant the request is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merchant: Option<String>,
    /// The address the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<String>,
}

/// The answer of `POST /introspect` (RFC 7662, section 2.2). An inactive key is exactly `{"active":false}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct IntrospectResponse {
    /// Whether the key may.
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub active: bool,
    /// All scopes it satisfies, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "sessions:read sessions:write"))]
    pub scope: Option<String>,
    /// Its application, for keys of applications.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Its account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub sub: Option<String>,
    /// `Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<UnixSeconds>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<UnixSeconds>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// Live or test (an extension).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Mode>))]
    pub mode: Option<Open<Mode>>,
}

/// As an answer is read.
#[derive(Deserialize)]
#[serde(remote = "IntrospectResponse")]
struct ReadIntrospectResponse {
    active: bool,
    scope: Option<String>,
    client_id: Option<String>,
    sub: Option<String>,
    token_type: Option<String>,
    exp: Option<UnixSeconds>,
    iat: Option<UnixSeconds>,
    jti: Option<String>,
    mode: Option<Open<Mode>>,
}

from_objects! {
    VerifyBatchResponse: "ReadVerifyBatchResponse",
    IntrospectResponse: "ReadIntrospectResponse",
}

impl IntrospectResponse {
    /// `{"active":false}`.
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

/// The answer of `GET /whoami`: the key that asks. A publishable key learns only the first four members.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct WhoAmI {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
    /// Which key system it belongs to.
    #[cfg_attr(feature = "openapi", schema(value_type = Family))]
    pub family: Open<Family>,
    /// Live or test.
    #[cfg_attr(feature = "openapi", schema(value_type = Mode))]
    pub mode: Open<Mode>,
    /// Where it stands: always `active`, any other key is denied.
    #[cfg_attr(feature = "openapi", schema(value_type = Status))]
    pub status: Open<Status>,
    /// Everything else, not for publishable keys.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub rest: Option<WhoAmIRest>,
}

/// As an answer is read. Serde's own way to read an optional rest takes one that it cannot read for none.
#[derive(Deserialize)]
struct ReadWhoAmI {
    id: String,
    family: Open<Family>,
    mode: Open<Mode>,
    status: Open<Status>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl<'de> Deserialize<'de> for WhoAmI {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ReadWhoAmI {
            id,
            family,
            mode,
            status,
            rest,
        } = ReadWhoAmI::deserialize(deserializer)?;
        let rest = rest
            .contains_key("account_id")
            .then_some(Value::Object(rest));
        let rest = rest
            .map(serde_json::from_value)
            .transpose()
            .map_err(D::Error::custom)?;
        Ok(Self {
            id,
            family,
            mode,
            status,
            rest,
        })
    }
}

/// What a key that is not publishable learns of itself besides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct WhoAmIRest {
    /// Whose it is.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub account_id: String,
    /// Its application, for keys of applications.
    pub application_id: Option<String>,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub name: String,
    /// All scopes it satisfies.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["sessions:write"])))]
    pub scopes: Vec<Scope>,
    /// The merchants it is bound to; null is any.
    pub merchants: Option<Vec<String>>,
    /// The features it is bound to; null is any.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Feature>>))]
    pub features: Option<Vec<Open<Feature>>>,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// When it ends; null is never.
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

    /// The values of an object's members, in their order.
    fn values(object: &Value) -> Value {
        object.as_object().unwrap().values().cloned().collect()
    }

    #[test]
    fn valid_is_what_says_so() {
        let answer: VerifyResponse = serde_json::from_value(valid()).unwrap();
        assert!(answer.is_valid());
        assert_eq!(
            (
                answer.code(),
                answer.key().map(|key| key.account_id.as_str())
            ),
            ("valid", Some("acme"))
        );
        assert!(answer.into_result().is_ok());

        // A newer server may say more of a key that it denies.
        let mut denied = valid();
        denied["valid"] = json!(false);
        denied["code"] = json!("suspended");
        let answer: VerifyResponse = serde_json::from_value(denied).unwrap();
        assert!(!answer.is_valid());
        assert_eq!((answer.code(), answer.key()), ("suspended", None));
        assert!(
            answer
                .into_result()
                .is_err_and(|invalid| invalid.code == Denial::Suspended)
        );
    }

    #[test]
    fn a_denial_is_read_whatever_else_it_says() {
        let text = r#"{"valid": false, "code": "wrong_moon_phase", "key": 7, "rate_limit": "none", "hint": []}"#;
        let answer: VerifyResponse = serde_json::from_str(text).unwrap();
        assert_eq!(
            (answer.is_valid(), answer.code()),
            (false, "wrong_moon_phase")
        );
    }

    #[test]
    fn what_does_not_say_whether_the_key_may_is_no_answer() {
        for (member, value) in [
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
            let mut answer = valid();
            let members = answer.as_object_mut().unwrap();
            match &value {
                Some(value) => members.insert(member.to_owned(), value.clone()),
                None => members.remove(member),
            };
            assert!(
                serde_json::from_value::<VerifyResponse>(answer).is_err(),
                "{member}: {value:?}"
            );
        }
        let twice = valid().to_string().replacen('{', r#"{"valid": false, "#, 1);
        assert!(serde_json::from_str::<VerifyResponse>(&twice).is_err());
        assert!(serde_json::from_str::<VerifyResponse>(r#"{"valid": false}"#).is_err());
    }

    #[test]
    fn what_is_absent_of_a_key_is_not_taken_for_no_restriction() {
        assert!(serde_json::from_value::<VerifyResponse>(valid()).is_ok());
        for member in valid()["key"].as_object().unwrap().keys() {
            let mut answer = valid();
            answer["key"].as_object_mut().unwrap().remove(member);
            assert!(
                serde_json::from_value::<VerifyResponse>(answer).is_err(),
                "{member}"
            );
        }
    }

    #[test]
    fn an_array_is_no_answer() {
        let mut as_array = valid();
        as_array["key"] = values(&valid()["key"]);
        for answer in [valid(), as_array] {
            let array = json!([
                answer["valid"],
                answer["code"],
                answer["key"],
                answer["rate_limit"]
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
            r#"{"active":true,"scope":null,"a_new_member":[]}"#,
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
    fn a_publishable_key_learns_four_members_and_what_a_newer_server_adds() {
        let text = r#"{"id": "1", "family": "publishable", "mode": "live", "status": "active", "origins": []}"#;
        let answer: WhoAmI = serde_json::from_str(text).unwrap();
        assert_eq!(
            (answer.family, answer.rest),
            (Family::Publishable.into(), None)
        );
    }

    #[test]
    fn the_rest_is_read_or_refused_and_never_left_out() {
        let answer: WhoAmI = serde_json::from_value(whoami()).unwrap();
        assert_eq!(
            answer.rest.as_ref().map(|rest| rest.account_id.as_str()),
            Some("acme")
        );
        assert_eq!(serde_json::to_value(&answer).unwrap(), whoami());
        for (member, value) in [
            ("name", json!(7)),
            ("scopes", json!(null)),
            ("created_at", json!("yesterday")),
        ] {
            let mut answer = whoami();
            answer[member] = value;
            assert!(
                serde_json::from_value::<WhoAmI>(answer).is_err(),
                "{member}"
            );
        }
    }
}
