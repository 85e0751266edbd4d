//! Error responses: problems, the envelope of the account surface, and responses of other servers.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_client::{Error, ErrorKind};
use wiremock::ResponseTemplate;

use crate::{
    fixtures,
    operations::rows,
    support::{
        REQUEST_ID, Server, expect_error, json_response, nothing, problem, problem_body,
        response_with,
    },
};

/// An error response of the server.
struct Rejection {
    status: u16,
    code: &'static str,
    /// Its code in the envelope.
    coarse: &'static str,
    /// Whether the envelope contains `code` in its details, because `coarse` does not determine it.
    has_details: bool,
    detail: &'static str,
    errors: &'static [(&'static str, &'static str)],
    retry_after: Option<u64>,
}

const fn rejection(
    status: u16,
    code: &'static str,
    coarse: &'static str,
    detail: &'static str,
) -> Rejection {
    Rejection {
        status,
        code,
        coarse,
        has_details: false,
        detail,
        errors: &[],
        retry_after: None,
    }
}

const REJECTIONS: [Rejection; 13] = [
    Rejection {
        has_details: true,
        errors: &[
            ("/name", "must have 1 to 100 characters"),
            ("/mode", "must be live or test"),
        ],
        ..rejection(
            400,
            "validation_failed",
            "VALIDATION_ERROR",
            "/name must have 1 to 100 characters (and 1 more)",
        )
    },
    Rejection {
        has_details: true,
        ..rejection(
            400,
            "malformed_json",
            "VALIDATION_ERROR",
            "the body is not valid JSON (line 1 column 2)",
        )
    },
    rejection(
        401,
        "invalid_api_key",
        "INVALID_API_KEY",
        "the API key is not valid",
    ),
    rejection(
        403,
        "forbidden",
        "FORBIDDEN",
        "a management token is required",
    ),
    Rejection {
        has_details: true,
        ..rejection(
            403,
            "insufficient_scope",
            "FORBIDDEN",
            "the key lacks a required scope",
        )
    },
    rejection(404, "not_found", "NOT_FOUND", "the resource does not exist"),
    rejection(
        409,
        "conflict",
        "CONFLICT",
        "the current state does not allow this",
    ),
    Rejection {
        has_details: true,
        ..rejection(
            409,
            "application_name_taken",
            "CONFLICT",
            "an application with this name already exists",
        )
    },
    rejection(
        413,
        "payload_too_large",
        "PAYLOAD_TOO_LARGE",
        "the body is larger than 65536 bytes",
    ),
    rejection(
        422,
        "idempotency_mismatch",
        "IDEMPOTENCY_MISMATCH",
        "this Idempotency-Key was used with another body",
    ),
    Rejection {
        retry_after: Some(17),
        ..rejection(429, "rate_limited", "RATE_LIMITED", "too many requests")
    },
    rejection(500, "internal_error", "INTERNAL_ERROR", "internal error"),
    Rejection {
        retry_after: Some(2),
        ..rejection(503, "unavailable", "UNAVAILABLE", "temporarily unavailable")
    },
];

impl Rejection {
    fn errors(&self) -> Value {
        self.errors
            .iter()
            .map(|(pointer, detail)| json!({"pointer": pointer, "detail": detail}))
            .collect()
    }

    /// As a problem (RFC 9457).
    fn as_problem(&self) -> ResponseTemplate {
        let mut body = problem_body(self.status, self.code, self.detail);
        if !self.errors.is_empty() {
            body["errors"] = self.errors();
        }
        self.with_retry_after(response_with(
            self.status,
            "application/problem+json",
            body.to_string(),
        ))
    }

    /// In the envelope of the account surface.
    fn in_envelope(&self) -> ResponseTemplate {
        let mut error = json!({"code": self.coarse, "message": self.detail});
        if self.has_details {
            error["details"] = json!({"code": self.code});
        }
        if !self.errors.is_empty() {
            error["details"]["errors"] = self.errors();
        }
        self.with_retry_after(json_response(self.status, &error_envelope(&error)))
    }

    fn with_retry_after(&self, answer: ResponseTemplate) -> ResponseTemplate {
        match self.retry_after {
            Some(seconds) => answer.insert_header("retry-after", seconds.to_string()),
            None => answer,
        }
    }
}

fn error_envelope(error: &Value) -> Value {
    let mut envelope = fixtures::envelope(&Value::Null);
    envelope["error"] = error.clone();
    envelope
}

/// Returns the error of `GET /whoami` for this response.
async fn rejection_of(answer: ResponseTemplate) -> Error {
    let server = Server::answering([answer]).await;
    let error = expect_error(server.client().whoami().await);
    assert_eq!(
        (error.kind(), error.attempts()),
        (ErrorKind::Rejected, 1),
        "{error}"
    );
    error
}

#[tokio::test]
async fn errors_of_every_operation_are_parsed() {
    for row in rows() {
        let answers = REJECTIONS
            .iter()
            .map(|rejection| match row.is_in_envelope() {
                true => rejection.in_envelope(),
                false => rejection.as_problem(),
            });
        let server = Server::answering(answers).await;
        let client = server.client();
        let (method, template) = row.route();
        for rejection in &REJECTIONS {
            let error = expect_error((row.call)(client.clone()).await);
            let context = format!("{}: {} {}", row.operation, rejection.status, rejection.code);
            assert_eq!(error.kind(), ErrorKind::Rejected, "{context}");
            assert_eq!(error.status(), Some(rejection.status), "{context}");
            assert_eq!(error.code(), Some(rejection.code), "{context}");
            assert_eq!(error.detail(), Some(rejection.detail), "{context}");
            assert_eq!(error.request_id(), Some(REQUEST_ID), "{context}");
            assert_eq!(
                error.retry_after(),
                rejection.retry_after.map(Duration::from_secs),
                "{context}"
            );
            let errors: Vec<_> = error
                .errors()
                .iter()
                .map(|error| (error.pointer.as_str(), error.detail.as_str()))
                .collect();
            assert_eq!(errors, rejection.errors, "{context}");
            assert_eq!(error.attempts(), 1, "{context}");

            assert_eq!(
                error.is_validation(),
                rejection.code == "validation_failed",
                "{context}"
            );
            assert_eq!(
                error.is_unauthorized(),
                rejection.status == 401,
                "{context}"
            );
            assert_eq!(error.is_forbidden(), rejection.status == 403, "{context}");
            assert_eq!(error.is_not_found(), rejection.status == 404, "{context}");
            assert_eq!(error.is_conflict(), rejection.status == 409, "{context}");
            assert_eq!(
                error.is_rate_limited(),
                rejection.status == 429,
                "{context}"
            );
            assert!(!error.is_timeout() && !error.is_connect(), "{context}");
            assert!(std::error::Error::source(&error).is_none(), "{context}");

            let Rejection {
                status,
                code,
                detail,
                ..
            } = rejection;
            let method = method.to_uppercase();
            assert_eq!(
                error.to_string(),
                format!("{method} {template}: {status} {code}: {detail} ({REQUEST_ID})")
            );
        }
    }
}

#[tokio::test]
async fn request_id_of_the_header_is_preferred() {
    let without_header = |body: &Value| {
        ResponseTemplate::new(404).set_body_raw(body.to_string(), "application/problem+json")
    };
    let mut problem = problem_body(404, "not_found", "the resource does not exist");
    problem["request_id"] = json!("req_of_the_body");
    let mut envelope =
        error_envelope(&json!({"code": "NOT_FOUND", "message": "the resource does not exist"}));
    envelope["meta"]["requestId"] = json!("req_of_the_body");
    for body in [problem, envelope] {
        let error = rejection_of(without_header(&body)).await;
        assert_eq!(error.request_id(), Some("req_of_the_body"));
        let error =
            rejection_of(without_header(&body).insert_header("x-request-id", "req_of_the_header"))
                .await;
        assert_eq!(error.request_id(), Some("req_of_the_header"));
        assert_eq!(error.code(), Some("not_found"));
    }
}

/// Media type and body of responses that do not come from Tollkey.
#[tokio::test]
async fn error_of_another_server_has_a_status_and_no_code() {
    let html = "<html><body><h1>502 Bad Gateway</h1></body></html>";
    let ours = problem_body(502, "unavailable", "not as JSON").to_string();
    let rows = [
        ("text/html", html.to_owned()),
        ("text/plain", "upstream connect error".to_owned()),
        ("application/json", json!({"error": "upstream"}).to_string()),
        ("application/json", "[]".to_owned()),
        ("application/json", "null".to_owned()),
        ("application/json", "{\"code\": \"unavai".to_owned()),
        ("application/json", String::new()),
        ("application/json", "\u{feff}{}".to_owned()),
        // A body with another media type is not parsed as JSON.
        ("text/plain", ours.clone()),
        ("application/jsonp", ours.clone()),
        ("text/json+html", ours),
    ];
    for (media_type, body) in rows {
        let answer = response_with(502, media_type, body.clone()).insert_header("retry-after", "3");
        let error = rejection_of(answer).await;
        let context = format!("{media_type}: {body}");
        assert_eq!(
            (error.status(), error.code(), error.detail()),
            (Some(502), None, None),
            "{context}"
        );
        assert_eq!(
            error.retry_after(),
            Some(Duration::from_secs(3)),
            "{context}"
        );
        assert!(error.errors().is_empty(), "{context}");
        assert_eq!(
            error.to_string(),
            format!("GET /api/v1/whoami: 502 ({REQUEST_ID})"),
            "{context}"
        );
    }
}

#[tokio::test]
async fn each_field_of_an_error_is_optional() {
    let field = ("/name", "is too long");
    let rows = [
        (
            json!({"type": "about:blank", "title": "Bad", "status": 400}),
            None,
            Some("Bad"),
            vec![],
        ),
        (
            json!({"code": "validation_failed", "errors": [7, {"pointer": "/name", "detail": "is too long", "more": 1}]}),
            Some("validation_failed"),
            None,
            vec![field],
        ),
        (
            json!({"error": {"code": "UNAVAILABLE", "message": "no meta"}}),
            Some("unavailable"),
            Some("no meta"),
            vec![],
        ),
        (
            json!({"error": {"code": "CONFLICT", "details": {"code": "key_revoked", "errors": "none"}}}),
            Some("key_revoked"),
            None,
            vec![],
        ),
        (
            json!({"error": {"code": "VALIDATION_ERROR", "details": {"errors": [{"pointer": "/name", "detail": "is too long"}]}}}),
            Some("validation_error"),
            None,
            vec![field],
        ),
    ];
    for (body, code, detail, errors) in rows {
        let error = rejection_of(response_with(
            400,
            "application/problem+json",
            body.to_string(),
        ))
        .await;
        let found: Vec<_> = error
            .errors()
            .iter()
            .map(|error| (&*error.pointer, &*error.detail))
            .collect();
        assert_eq!(
            (error.code(), error.detail(), found),
            (code, detail, errors),
            "{body}"
        );
    }
}

#[tokio::test]
async fn error_without_a_body_has_a_status() {
    for status in [400, 401, 403, 404, 409, 418, 429, 500, 503, 599] {
        let error = rejection_of(ResponseTemplate::new(status)).await;
        assert_eq!(
            (error.status(), error.code(), error.request_id()),
            (Some(status), None, None)
        );
        assert_eq!(error.to_string(), format!("GET /api/v1/whoami: {status}"));
    }
}

#[tokio::test]
async fn every_json_media_type_is_parsed() {
    let body = problem_body(404, "not_found", "the resource does not exist").to_string();
    for media_type in [
        "application/json",
        "application/problem+json",
        "Application/Problem+JSON; charset=utf-8",
        "application/json;charset=utf-8",
        "application/vnd.example+json",
    ] {
        let error = rejection_of(response_with(404, media_type, body.clone())).await;
        assert_eq!(error.code(), Some("not_found"), "{media_type}");
    }
}

#[tokio::test]
async fn unknown_fields_of_an_error_are_ignored() {
    let mut problem = problem_body(400, "something_new", "an unknown error");
    problem["balance"] = json!({"left": [1, 2]});
    problem["errors"] = json!([{"pointer": "/name", "detail": "must be new", "rule": "new"}]);
    let mut envelope = error_envelope(&json!({
        "code": "VALIDATION_ERROR",
        "message": "an unknown error",
        "details": {"code": "something_new", "errors": problem["errors"], "more": true},
        "more": 1,
    }));
    envelope["meta"]["region"] = json!("eu");
    for body in [problem, envelope] {
        let error = rejection_of(json_response(400, &body)).await;
        assert_eq!(error.code(), Some("something_new"));
        assert_eq!(error.detail(), Some("an unknown error"));
        assert_eq!(error.errors().len(), 1);
    }
}

#[tokio::test]
async fn error_of_a_call_without_a_response_body_is_parsed() {
    let server = Server::answering([
        problem(404, "not_found", "the resource does not exist"),
        nothing(),
    ])
    .await;
    let call = server.client().service_keys().revoke("key");
    let error = expect_error(call.clone().await);
    assert!(error.is_not_found() && error.code() == Some("not_found"));
    call.await.unwrap();
}
