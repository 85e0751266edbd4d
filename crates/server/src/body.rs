//! The body and the query of a request, read into the types of `tollkey-api`.
//!
//! Both are received first and parsed by the handler once the caller is authenticated, so that a 400 never reveals
//! what a 401 should hide. Errors name the field and the rule, and never repeat a value. `json` parses a body: one
//! response names all invalid fields, including those that a handler finds with [`Read::check`].

mod fault;
mod json;

use std::time::Duration;

use actix_web::{
    FromRequest, HttpMessage as _, HttpRequest,
    dev::Payload,
    http::{
        Method,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
    web::{Bytes, BytesMut},
};
use futures_util::{StreamExt as _, future::LocalBoxFuture};
use serde::de::DeserializeOwned;
use tollkey_core::{FieldError, FieldErrors, Problem, ProblemCode};

use crate::{auth::CallerAuthenticated, rejection::Rejection};

/// Largest body, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// In bytes. The longest parameter is the code of an identity provider; most have stricter rules.
pub const MAX_PARAMETER: usize = 4096;
/// How long a caller may take to send the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

const JSON: &str = "application/json";
/// RFC 7396, section 4.
const MERGE_PATCH: &str = "application/merge-patch+json";
const FORM: &str = "application/x-www-form-urlencoded";

#[derive(Debug)]
pub struct Body {
    bytes: Result<Bytes, Problem>,
    content_type: String,
    /// Whether the `Content-Type` names a charset other than UTF-8.
    has_other_charset: bool,
    is_patch: bool,
}

impl FromRequest for Body {
    type Error = Rejection;
    type Future = LocalBoxFuture<'static, Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let content_type = request.content_type().to_ascii_lowercase();
        let has_other_charset = request
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(has_other_charset);
        let is_patch = request.method() == Method::PATCH;
        let length = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let mut encodings = request.headers().get_all(CONTENT_ENCODING);
        let encoded = encodings.any(|value| !is_identity(value.as_bytes()));
        let payload = payload.take();
        let identified = request.extensions().get::<CallerAuthenticated>().cloned();
        Box::pin(async move {
            if let Some(CallerAuthenticated(identified)) = identified {
                // Limited in case the caller is identified by the body itself.
                let _ = tokio::time::timeout(BODY_TIMEOUT, identified.notified()).await;
            }
            let bytes = if encoded {
                Err(unsupported(
                    "The body must not be compressed. Send it without Content-Encoding.",
                    [("accept-encoding", "identity".to_owned())],
                ))
            } else if length.is_some_and(|length: usize| length > MAX_BODY) {
                Err(too_large())
            } else {
                tokio::time::timeout(BODY_TIMEOUT, collect(payload))
                    .await
                    .unwrap_or_else(|_| Err(Problem::request_timeout()))
            };
            Ok(Self {
                bytes,
                content_type,
                has_other_charset,
                is_patch,
            })
        })
    }
}

async fn collect(mut payload: Payload) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| {
            Problem::new(
                ProblemCode::MalformedJson,
                "The connection closed before the whole body arrived. Send the request again.",
            )
        })?;
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// `accepted` are header fields that say what the operation accepts.
fn unsupported(
    detail: impl Into<String>,
    accepted: impl IntoIterator<Item = (&'static str, String)>,
) -> Problem {
    Problem {
        headers: accepted.into_iter().collect(),
        ..Problem::new(ProblemCode::UnsupportedMediaType, detail)
    }
}

/// Whether a `Content-Encoding` names no coding that changes the body.
fn is_identity(codings: &[u8]) -> bool {
    let mut codings = codings.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

/// Whether a `Content-Type` has the parameter `charset` with another value than UTF-8.
fn has_other_charset(content_type: &str) -> bool {
    let mut is_quoted = false;
    let parts = content_type.split(move |character| {
        is_quoted ^= character == '"';
        character == ';' && !is_quoted
    });
    parts.skip(1).any(|parameter| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            let value = value.trim().trim_matches('"');
            let is_utf8 = ["utf-8", "utf8"]
                .iter()
                .any(|utf8| value.eq_ignore_ascii_case(utf8));
            name.trim().eq_ignore_ascii_case("charset") && !is_utf8
        })
    })
}

fn too_large() -> Problem {
    Problem::new(
        ProblemCode::PayloadTooLarge,
        format!("The body must have at most {MAX_BODY} bytes."),
    )
}

impl Body {
    /// Fails with 413, 415, or 400 that names each invalid field and its rule, or line and column.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        self.read_json()?.value()
    }

    /// For a handler that checks further rules: errors of fields may be returned by [`Read::check`].
    pub fn read_json<T: DeserializeOwned>(&self) -> Result<Read<T>, Problem> {
        json::read(self.typed(&[JSON])?)
    }

    /// Parses the body of a POST whose fields are all optional: an empty body and `null` count as `{}`.
    pub fn json_or_nothing<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        self.read_json_or_nothing()?.value()
    }

    /// Like [`Body::json_or_nothing`], for a handler that checks further rules.
    pub fn read_json_or_nothing<T: DeserializeOwned>(&self) -> Result<Read<T>, Problem> {
        match json::without_mark(self.bytes()?).trim_ascii() {
            b"" => json::read(b"{}"),
            b"null" => self.typed(&[JSON]).and_then(|_| json::read(b"{}")),
            _ => self.read_json(),
        }
    }

    /// Fails with 408, 413 or 415.
    pub fn bytes(&self) -> Result<&Bytes, Problem> {
        self.bytes.as_ref().map_err(Clone::clone)
    }

    /// The media type may also be that of JSON.
    pub fn read_merge_patch<T: DeserializeOwned>(&self) -> Result<Read<T>, Problem> {
        json::read(self.typed(&[JSON, MERGE_PATCH])?)
    }

    /// An empty body counts as `{}`.
    pub fn read_merge_patch_or_nothing<T: DeserializeOwned>(&self) -> Result<Read<T>, Problem> {
        if self.bytes()?.is_empty() {
            json::read(b"{}")
        } else {
            self.read_merge_patch()
        }
    }

    /// The fields are strings and must not be repeated.
    pub fn read_form<T: DeserializeOwned>(&self) -> Result<Read<T>, Problem> {
        json::read_form(self.typed(&[FORM])?)
    }

    /// Returns the fields of a form in their order, including repeated ones; none if the body is empty or has another
    /// media type. Fails with 400, 408, 413 or 415 if the media type is that of a form and the body cannot be read.
    pub fn form_fields(&self) -> Result<form_urlencoded::Parse<'_>, Problem> {
        let is_empty = self.bytes.as_ref().is_ok_and(Bytes::is_empty);
        let form: &[u8] = if self.content_type == FORM && !is_empty {
            self.typed(&[FORM])?
        } else {
            b""
        };
        Ok(form_urlencoded::parse(form))
    }

    /// Returns the fields of a form in their order, including repeated ones.
    pub fn pairs(&self) -> Result<Vec<(String, String)>, Problem> {
        Ok(form_urlencoded::parse(self.typed(&[FORM])?)
            .into_owned()
            .collect())
    }

    fn typed(&self, expected: &[&str]) -> Result<&Bytes, Problem> {
        let bytes = self.bytes()?;
        let detail = if !expected.contains(&self.content_type.as_str()) {
            format!("The Content-Type header must be {}.", expected.join(" or "))
        } else if self.has_other_charset {
            "The charset in the Content-Type header must be UTF-8. Encode the body as UTF-8."
                .to_owned()
        } else {
            return Ok(bytes);
        };
        // `Accept` by RFC 9110, section 15.5.16, and `Accept-Patch` by RFC 5789, section 2.2.
        let names = if self.is_patch {
            &["accept", "accept-patch"][..]
        } else {
            &["accept"]
        };
        let accepted = names.iter().map(|name| (*name, expected.join(", ")));
        Err(unsupported(detail, accepted))
    }
}

/// A parsed body. Its value is only available if no field is invalid; otherwise it may contain placeholders.
#[derive(Debug)]
pub struct Read<T> {
    value: T,
    errors: FieldErrors,
}

impl<T> Read<T> {
    pub fn value(self) -> Result<T, Problem> {
        self.errors.finish(Some(self.value))
    }

    /// Converts the value with further rules, whose errors are added to those of parsing.
    pub fn check<U>(
        mut self,
        check: impl FnOnce(T, &mut FieldErrors) -> Option<U>,
    ) -> Result<U, Problem> {
        let checked = check(self.value, &mut self.errors);
        self.errors.finish(checked)
    }

    /// Like [`Read::check`], where the result borrows from the value.
    pub fn check_ref<'a, U>(
        &'a self,
        check: impl FnOnce(&'a T, &mut FieldErrors) -> Option<U>,
    ) -> Result<U, Problem> {
        let mut errors = self.errors.clone();
        let checked = check(&self.value, &mut errors);
        errors.finish(checked)
    }

    /// The fields of both types have the same names.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Read<U> {
        Read {
            value: map(self.value),
            errors: self.errors,
        }
    }
}

#[derive(Debug)]
pub struct Query(String);

impl FromRequest for Query {
    type Error = Rejection;
    type Future = std::future::Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        std::future::ready(Ok(Self(request.query_string().to_owned())))
    }
}

impl Query {
    /// Parameters must not be repeated.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        self.check_lengths()?;
        json::read_query(self.0.as_bytes())
    }

    /// Returns the query's parameters in their order, including repeated ones.
    pub fn pairs(&self) -> Result<Vec<(String, String)>, Problem> {
        self.check_lengths()?;
        Ok(form_urlencoded::parse(self.0.as_bytes())
            .into_owned()
            .collect())
    }

    fn check_lengths(&self) -> Result<(), Problem> {
        let too_long: Vec<FieldError> = form_urlencoded::parse(self.0.as_bytes())
            .filter(|(_, value)| value.len() > MAX_PARAMETER)
            .map(|(name, _)| FieldError {
                pointer: escape(&name),
                detail: format!("must have at most {MAX_PARAMETER} bytes"),
            })
            .collect();
        if too_long.is_empty() {
            Ok(())
        } else {
            Err(Problem::validation(too_long))
        }
    }
}

fn escape(name: &str) -> String {
    name.chars()
        .take(64)
        .collect::<String>()
        .replace('~', "~0")
        .replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use tollkey_api::{
        Patch, account,
        applications::CreateKey,
        commerce::{Nothing, RotateKey, UpdateKey},
        sync::SyncRequest,
        verification::{IntrospectRequest, VerifyBatchRequest},
    };

    use super::*;

    fn body(bytes: impl AsRef<[u8]>, content_type: &str) -> Body {
        Body {
            bytes: Ok(Bytes::copy_from_slice(bytes.as_ref())),
            content_type: content_type.to_owned(),
            has_other_charset: false,
            is_patch: false,
        }
    }

    fn json<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
        body(text, JSON).json()
    }

    #[test]
    fn form_that_cannot_be_read_is_not_an_empty_form() {
        let fields = |body: &Body| body.form_fields().map(Iterator::count);
        assert_eq!(fields(&body("a=1&b=2&a=3", FORM)), Ok(3));
        for empty in [body("", FORM), body("a=1", JSON), body("a=1", "")] {
            assert_eq!(fields(&empty), Ok(0), "{empty:?}");
        }
        let unread = |problem: Problem, content_type: &str| Body {
            bytes: Err(problem),
            ..body("", content_type)
        };
        for problem in [
            Problem::request_timeout(),
            too_large(),
            unsupported("", [("accept-encoding", "identity".to_owned())]),
        ] {
            assert_eq!(fields(&unread(problem.clone(), FORM)), Err(problem.clone()));
            assert_eq!(fields(&unread(problem, JSON)), Ok(0));
        }
        let latin = |text: &str| Body {
            has_other_charset: true,
            ..body(text, FORM)
        };
        assert_eq!(fields(&latin("")), Ok(0));
        let problem = fields(&latin("a=1")).unwrap_err();
        assert_eq!(problem.code, ProblemCode::UnsupportedMediaType);
    }

    #[test]
    fn pairs_of_a_query_can_be_repeated() {
        let query = |text: &str| Query(text.to_owned());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = vec![pair("state", "a b"), pair("code", "c"), pair("state", "")];
        assert_eq!(query("state=a+b&code=c&state").pairs().unwrap(), expected);
        assert_eq!(query("").pairs().unwrap(), []);
        let long = format!("code={}", "x".repeat(MAX_PARAMETER + 1));
        let error = query(&long).pairs().unwrap_err();
        let rule = format!("code must have at most {MAX_PARAMETER} bytes");
        assert_eq!(error_text(error), rule);
    }

    fn error_text(problem: Problem) -> String {
        match problem.errors.as_slice() {
            [] => format!("{}: {}", problem.code.as_str(), problem.detail),
            errors => {
                let shown = |error: &FieldError| format!("{} {}", error.pointer, error.detail);
                let errors: Vec<String> = errors.iter().map(shown).collect();
                errors.join("; ").trim_start().to_owned()
            }
        }
    }

    /// Asserts the errors of bodies. Each line is a body, ` -> ` and its errors.
    #[track_caller]
    fn assert_errors<T: DeserializeOwned + std::fmt::Debug>(rows: &str) {
        for row in rows.trim().lines() {
            let (body, expected) = row.trim().split_once(" -> ").unwrap();
            let problem = json::<T>(body).unwrap_err();
            assert_eq!(error_text(problem), expected, "{body}");
        }
    }

    #[test]
    fn invalid_body_error_names_field_and_rule_without_the_value() {
        assert_errors::<CreateKey>(
            r#"
            {} -> /description is required
            {"description":5} -> /description must be a string
            {"description":"d","description":"e"} -> /description must not be repeated
            {"description":"d","owner":"x"} -> /owner is unknown
            {"description":"d","mode":"s3cret"} -> /mode must be one of live, test
            {"description":"d","mode":7} -> /mode must be a string
            {"description":"d","mode":{"live":null}} -> /mode must be a string
            {"description":"d","mode":oops} -> malformed_json: The body is not valid JSON at line 1, column 27: expected value.
            {"description":"d","scopes":"s3cret"} -> /scopes must be an array
            {"description":"d","scopes":["a",7]} -> /scopes/1 must be a string
            {"description":"d","metadata":[1]} -> /metadata must be an object
            {"description":"d","metadata":{"a":1,"a":2}} -> /metadata/a must not be repeated
            {"description":"d","metadata":{"x":[{"a":1,"a":2}]}} -> /metadata/x/0/a must not be repeated
            {"description":"d","rateLimit":{"limit":1}} -> /rateLimit/windowSeconds is required
            {"description":"d","rateLimit":[1,60]} -> /rateLimit must be an object
            {"description":"d","rateLimit":{"limit":"s3cret","windowSeconds":1}} -> /rateLimit/limit must be a whole number within its range
            {"description":"d","expiresAt":"s3cret"} -> /expiresAt must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z
            ["d"] -> The body must be a JSON object.
            "s3cret" -> The body must be a JSON object.
            {"description": -> malformed_json: The body is not valid JSON at line 1, column 15: EOF while parsing a value.
            {"description":"d"} x -> malformed_json: The body is not valid JSON at line 1, column 21: trailing characters.
            "#,
        );
        for (body, expected) in [
            ("", "line 1, column 0: EOF while parsing a value."),
            (
                "{\"description\":\n  nope}",
                "line 2, column 4: expected ident.",
            ),
        ] {
            let expected = format!("malformed_json: The body is not valid JSON at {expected}");
            assert_eq!(error_text(json::<CreateKey>(body).unwrap_err()), expected);
        }
        // Values that look like parts of serde's messages change nothing.
        assert_errors::<CreateKey>(
            r#"
            {"description":"d","scopes":"s3cret at line 2"} -> /scopes must be an array
            {"description":"d","x at line 5":1} -> /x at line 5 is unknown
            {"mode":"x at line 3, expected `s3cret`","x`, expected `y":7} -> /mode must be one of live, test; /x`, expected `y is unknown; /description is required
            {"description":"d","expiresAt":"s3cret at line 2","metadata":"missing field `a`"} -> /expiresAt must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z; /metadata must be an object
            "#,
        );
        // Every invalid field is reported once.
        assert_errors::<CreateKey>(
            r#"
            {"description":7,"mode":"x","scopes":["a",7,8],"rateLimit":{"limit":"x","burst":1},"owner":1} -> /description must be a string; /mode must be one of live, test; /scopes/1 must be a string; /scopes/2 must be a string; /rateLimit/limit must be a whole number within its range; /rateLimit/burst is unknown; /rateLimit/windowSeconds is required; /owner is unknown
            {"descripton":"d","expires_at":1,"allowedIPs":[],"Metadata":{},"rate-limit":null} -> /descripton is unknown; did you mean `description`?; /expires_at is unknown; use `expiresAt`; /allowedIPs is unknown; use `allowedIps`; /Metadata is unknown; use `metadata`; /rate-limit is unknown; use `rateLimit`; /description is required
            {"description":"d","description":"e","mode":1,"metadata":{"a":1,"a":2,"b":{"c":1,"c":2}}} -> /description must not be repeated; /metadata/a must not be repeated; /metadata/b/c must not be repeated; /mode must be a string
            {"expiresAt":[],"metadata":7} -> /expiresAt must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z; /metadata must be an object; /description is required
            "#,
        );
        assert_errors::<VerifyBatchRequest>(
            r#"
            {"requests":[{"key":7,"mode":"x"},["k"],{"path":1},{"key":"k","x":1}]} -> /requests/0/key must be a string; /requests/0/mode must be one of live, test; /requests/1 must be an object; /requests/2/path must be a string; /requests/2/key is required; /requests/3/x is unknown
            {"requests":[{"key":"k"},["k"]]} -> /requests/1 must be an object
            "#,
        );
        assert_errors::<account::CreateKey>(
            r#"
            {"environment":7,"access":"s3cret"} -> /environment must be a string; /access must be one of secret, publishable; /name is required
            {} -> /name is required; /environment is required
            "#,
        );
        assert_errors::<Nothing>(r#"{"a":1,"b":2} -> /a is unknown; /b is unknown"#);
        let none = json::<account::CreateKey>("{}").unwrap_err();
        let detail = "2 fields are invalid: /name, /environment";
        assert_eq!(none.detail, detail);
        let not_utf8 = body(b"{\"description\":\"\xff\"}", JSON);
        let problem = not_utf8.json::<CreateKey>().unwrap_err();
        assert_eq!(
            error_text(problem),
            "malformed_json: The body is not valid JSON at line 1, column 17: invalid unicode code point."
        );
    }

    #[test]
    fn number_of_reported_invalid_fields_is_limited() {
        let fields: Vec<String> = (0..3000).map(|number| format!("\"x{number}\":1")).collect();
        let problem = json::<CreateKey>(&format!("{{{}}}", fields.join(","))).unwrap_err();
        assert_eq!(problem.errors.len(), 32);
        assert_eq!(problem.detail.matches("/x").count(), 10);
        let requests = vec!["7"; 3000].join(",");
        let batch = json::<VerifyBatchRequest>(&format!("{{\"requests\":[{requests}]}}"));
        assert!(batch.unwrap_err().errors.len() <= 32);
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
        for (text, expected) in [
            ("5.0", 5),
            ("1e3", 1000),
            ("-0.0", 0),
            ("9007199254740992.0", 1 << 53),
            ("5", 5),
        ] {
            let body = json::<RotateKey>(&format!("{{\"overlap_seconds\":{text}}}")).unwrap();
            assert_eq!(body.overlap_seconds, Some(expected), "{text}");
        }
        for text in [
            "5.5",
            "9007199254740994.0",
            "1e16",
            "-1e300",
            "99999999999999999999",
        ] {
            let body = json::<RotateKey>(&format!("{{\"overlap_seconds\":{text}}}"));
            let rule = "/overlap_seconds must be a whole number within its range";
            assert_eq!(error_text(body.unwrap_err()), rule, "{text}");
        }
        // Also in a merge patch, inside an object, for an unsigned number, and for a time; metadata is unchanged.
        let patch = r#"{"rate_limit":{"limit":10.0},"expires_at":1e9,"metadata":{"n":5.0}}"#;
        let UpdateKey {
            rate_limit: Patch::Value(limit),
            metadata: Patch::Value(metadata),
            ..
        } = json(patch).unwrap()
        else {
            panic!("a rate limit and metadata")
        };
        assert_eq!(limit.limit, Patch::Value(10));
        let metadata = serde_json::Value::Object(metadata);
        assert_eq!(metadata.to_string(), r#"{"n":5.0}"#);
        let sync: SyncRequest = json(r#"{"subscriber":"s","wait_ms":5.0}"#).unwrap();
        assert_eq!(sync.wait_ms, 5);
    }

    #[test]
    fn byte_order_mark_is_skipped_and_null_counts_as_empty() {
        let key: CreateKey = json("\u{feff} {\"description\":\"d\"}").unwrap();
        assert_eq!(key.description, "d");
        assert_errors::<CreateKey>("\u{feff}{} -> /description is required");
        for text in [
            "",
            " \n",
            "\u{feff}",
            "null",
            " null ",
            "\u{feff}null",
            "{}",
        ] {
            let result = body(text, JSON).json_or_nothing::<RotateKey>();
            assert!(result.is_ok(), "{text:?}");
        }
        assert!(body("", "").json_or_nothing::<Nothing>().is_ok());
        for (text, content_type) in [
            ("null", "text/plain"),
            ("[]", JSON),
            ("0", JSON),
            ("nul", JSON),
            ("{", JSON),
        ] {
            let result = body(text, content_type).json_or_nothing::<Nothing>();
            assert!(result.is_err(), "{text}");
        }
        // `null` as a merge patch would replace the whole resource.
        let patch = body("null", JSON).read_merge_patch_or_nothing::<UpdateKey>();
        assert!(patch.is_err());
        assert_errors::<CreateKey>("null -> The body must be a JSON object.");
    }

    #[test]
    fn charset_other_than_utf_8_is_recognized() {
        for (content_type, expected) in [
            ("application/json", false),
            ("application/json;", false),
            ("application/json; charset", false),
            ("application/json; charset=utf-8", false),
            ("application/json;CHARSET=\"UTF-8\"", false),
            ("application/json ; charset = Utf8 ; x=y", false),
            ("application/json; x=\"a;charset=latin1\"", false),
            ("application/json; xcharset=latin1", false),
            ("application/json; charset=iso-8859-1", true),
            ("application/json; charset=\"us-ascii\"", true),
            ("application/json; charset=", true),
            ("application/json; charset=utf-8; charset=utf-16", true),
            ("application/json; x=\"a;b\"; charset=utf-16", true),
        ] {
            assert_eq!(has_other_charset(content_type), expected, "{content_type}");
        }
        for (codings, expected) in [
            ("", true),
            ("identity", true),
            ("Identity, identity", true),
            ("gzip", false),
            ("identity, gzip", false),
        ] {
            assert_eq!(is_identity(codings.as_bytes()), expected, "{codings}");
        }
    }

    #[test]
    fn form_error_reports_all_invalid_fields() {
        let form = body("token=a&token=b&mode=x&scope=c&tokens=d", FORM);
        let read = form.read_form::<IntrospectRequest>().and_then(Read::value);
        assert_eq!(
            error_text(read.unwrap_err()),
            "/token must not be repeated; /mode must be one of live, test; /scope is unknown; did you mean `scopes`?; \
             /tokens is unknown; did you mean `token`?"
        );
    }

    #[test]
    fn invalid_query_error_names_parameter_and_rule() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Paging {
            #[expect(dead_code, reason = "read, not used")]
            page: Option<u32>,
        }
        let number = "page must be a whole number within its range";
        let misspelled = "pages is unknown; did you mean `page`?";
        for (query, expected) in [
            ("page=x", number),
            ("page=-1", number),
            ("page=99999999999", number),
            ("page=", number),
            ("pages=1", misspelled),
            ("x-page=1", "x-page is unknown"),
            ("cursor=1", "cursor is unknown"),
            ("page=1&page=2", "page must not be repeated"),
            ("page=x&pages=1", &format!("{number}; {misspelled}")),
            ("cursor+at+line+1=1", "cursor at line 1 is unknown"),
        ] {
            let error = Query(query.to_owned()).read::<Paging>().unwrap_err();
            assert_eq!(error_text(error), expected, "{query}");
        }
    }
}
