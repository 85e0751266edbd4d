//! What a refusal can be asked, in both forms that the server has for it, and in those that only others have.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_client::{Error, ErrorKind};
use wiremock::ResponseTemplate;

use crate::{
    operations::rows,
    said,
    support::{REQUEST_ID, Server, answer, json_answer, nothing, problem, problem_body, refused},
};

/// A refusal of the server.
struct Refusal {
    status: u16,
    code: &'static str,
    /// What the envelope calls it.
    coarse: &'static str,
    /// Whether the envelope tells the code apart, because its own does not.
    told_apart: bool,
    detail: &'static str,
    errors: &'static [(&'static str, &'static str)],
    retry_after: Option<u64>,
}

const fn refusal(
    status: u16,
    code: &'static str,
    coarse: &'static str,
    detail: &'static str,
) -> Refusal {
    Refusal {
        status,
        code,
        coarse,
        told_apart: false,
        detail,
        errors: &[],
        retry_after: None,
    }
}

const REFUSALS: [Refusal; 13] = [
    Refusal {
        told_apart: true,
        errors: &[
            ("/name", "must have 1 to 100 characters"),
            ("/mode", "must be live or test"),
        ],
        ..refusal(
            400,
            "validation_failed",
            "VALIDATION_ERROR",
            "/name must have 1 to 100 characters (and 1 more)",
        )
    },
    Refusal {
        told_apart: true,
        ..refusal(
            400,
            "malformed_json",
            "VALIDATION_ERROR",
            "the body is not valid JSON (line 1 column 2)",
        )
    },
    refusal(
        401,
        "invalid_api_key",
        "INVALID_API_KEY",
        "the API key is not valid",
    ),
    refusal(
        403,
        "forbidden",
        "FORBIDDEN",
        "this takes a management token",
    ),
    Refusal {
        told_apart: true,
        ..refusal(
            403,
            "insufficient_scope",
            "FORBIDDEN",
            "the key lacks a scope that is needed",
        )
    },
    refusal(404, "not_found", "NOT_FOUND", "there is no such thing"),
    refusal(
        409,
        "conflict",
        "CONFLICT",
        "it does not stand where this needs it to",
    ),
    Refusal {
        told_apart: true,
        ..refusal(
            409,
            "application_name_taken",
            "CONFLICT",
            "there is an application of this name",
        )
    },
    refusal(
        413,
        "payload_too_large",
        "PAYLOAD_TOO_LARGE",
        "the body is larger than 65536 bytes",
    ),
    refusal(
        422,
        "idempotency_mismatch",
        "IDEMPOTENCY_MISMATCH",
        "this Idempotency-Key came with another body",
    ),
    Refusal {
        retry_after: Some(17),
        ..refusal(429, "rate_limited", "RATE_LIMITED", "too many requests")
    },
    refusal(
        500,
        "internal_error",
        "INTERNAL_ERROR",
        "something went wrong on our side",
    ),
    Refusal {
        retry_after: Some(2),
        ..refusal(503, "unavailable", "UNAVAILABLE", "temporarily unavailable")
    },
];

impl Refusal {
    fn errors(&self) -> Value {
        self.errors
            .iter()
            .map(|(pointer, detail)| json!({"pointer": pointer, "detail": detail}))
            .collect()
    }

    /// As RFC 9457 has it.
    fn as_problem(&self) -> ResponseTemplate {
        let mut body = problem_body(self.status, self.code, self.detail);
        if !self.errors.is_empty() {
            body["errors"] = self.errors();
        }
        self.paced(answer(
            self.status,
            "application/problem+json",
            body.to_string(),
        ))
    }

    /// As the account surface has it.
    fn in_envelope(&self) -> ResponseTemplate {
        let mut error = json!({"code": self.coarse, "message": self.detail});
        if self.told_apart {
            error["details"] = json!({"code": self.code});
        }
        if !self.errors.is_empty() {
            error["details"]["errors"] = self.errors();
        }
        self.paced(json_answer(self.status, &error_envelope(&error)))
    }

    fn paced(&self, answer: ResponseTemplate) -> ResponseTemplate {
        match self.retry_after {
            Some(seconds) => answer.insert_header("retry-after", seconds.to_string()),
            None => answer,
        }
    }
}

fn error_envelope(error: &Value) -> Value {
    let mut envelope = said::envelope(&Value::Null);
    envelope["error"] = error.clone();
    envelope
}

/// The refusal of `GET /whoami` that this answer leads to.
async fn refusal_by(answer: ResponseTemplate) -> Error {
    let server = Server::answering([answer]).await;
    let error = refused(server.client().whoami().await);
    assert_eq!(
        (error.kind(), error.attempts()),
        (ErrorKind::Refused, 1),
        "{error}"
    );
    error
}

#[tokio::test]
async fn every_refusal_of_every_operation_can_be_asked() {
    for row in rows() {
        let answers = REFUSALS.iter().map(|refusal| match row.is_in_envelope() {
            true => refusal.in_envelope(),
            false => refusal.as_problem(),
        });
        let server = Server::answering(answers).await;
        let client = server.client();
        let (method, template) = row.route();
        for refusal in &REFUSALS {
            let error = refused((row.call)(client.clone()).await);
            let of = format!("{}: {} {}", row.operation, refusal.status, refusal.code);
            assert_eq!(error.kind(), ErrorKind::Refused, "{of}");
            assert_eq!(error.status(), Some(refusal.status), "{of}");
            assert_eq!(error.code(), Some(refusal.code), "{of}");
            assert_eq!(error.detail(), Some(refusal.detail), "{of}");
            assert_eq!(error.request_id(), Some(REQUEST_ID), "{of}");
            assert_eq!(
                error.retry_after(),
                refusal.retry_after.map(Duration::from_secs),
                "{of}"
            );
            let errors: Vec<_> = error
                .errors()
                .iter()
                .map(|error| (error.pointer.as_str(), error.detail.as_str()))
                .collect();
            assert_eq!(errors, refusal.errors, "{of}");
            assert_eq!(error.attempts(), 1, "{of}");

            assert_eq!(
                error.is_validation(),
                refusal.code == "validation_failed",
                "{of}"
            );
            assert_eq!(error.is_unauthorized(), refusal.status == 401, "{of}");
            assert_eq!(error.is_forbidden(), refusal.status == 403, "{of}");
            assert_eq!(error.is_not_found(), refusal.status == 404, "{of}");
            assert_eq!(error.is_conflict(), refusal.status == 409, "{of}");
            assert_eq!(error.is_rate_limited(), refusal.status == 429, "{of}");
            assert!(!error.is_timeout() && !error.is_connect(), "{of}");
            assert!(std::error::Error::source(&error).is_none(), "{of}");

            let Refusal {
                status,
                code,
                detail,
                ..
            } = refusal;
            let method = method.to_uppercase();
            assert_eq!(
                error.to_string(),
                format!("{method} {template}: {status} {code}: {detail} ({REQUEST_ID})")
            );
        }
    }
}

#[tokio::test]
async fn the_request_id_is_the_header_s_or_else_the_body_s() {
    let without_header = |body: &Value| {
        ResponseTemplate::new(404).set_body_raw(body.to_string(), "application/problem+json")
    };
    let mut problem = problem_body(404, "not_found", "there is no such thing");
    problem["request_id"] = json!("req_of_the_body");
    let mut envelope =
        error_envelope(&json!({"code": "NOT_FOUND", "message": "there is no such thing"}));
    envelope["meta"]["requestId"] = json!("req_of_the_body");
    for body in [problem, envelope] {
        let error = refusal_by(without_header(&body)).await;
        assert_eq!(error.request_id(), Some("req_of_the_body"));
        let error =
            refusal_by(without_header(&body).insert_header("x-request-id", "req_of_the_header"))
                .await;
        assert_eq!(error.request_id(), Some("req_of_the_header"));
        assert_eq!(error.code(), Some("not_found"));
    }
}

/// Status, media type and body of answers that are not the server's.
#[tokio::test]
async fn what_somebody_else_says_has_a_status_and_no_code() {
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
        // What is not said to be JSON is not read as JSON.
        ("text/plain", ours.clone()),
        ("application/jsonp", ours.clone()),
        ("text/json+html", ours),
    ];
    for (media_type, body) in rows {
        let answer = answer(502, media_type, body.clone()).insert_header("retry-after", "3");
        let error = refusal_by(answer).await;
        let of = format!("{media_type}: {body}");
        assert_eq!(
            (error.status(), error.code(), error.detail()),
            (Some(502), None, None),
            "{of}"
        );
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)), "{of}");
        assert!(error.errors().is_empty(), "{of}");
        assert_eq!(
            error.to_string(),
            format!("GET /api/v1/whoami: 502 ({REQUEST_ID})"),
            "{of}"
        );
    }
}

#[tokio::test]
async fn each_member_of_a_refusal_is_read_for_itself() {
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
        let error = refusal_by(answer(400, "application/problem+json", body.to_string())).await;
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
async fn an_answer_without_a_body_has_a_status() {
    for status in [400, 401, 403, 404, 409, 418, 429, 500, 503, 599] {
        let error = refusal_by(ResponseTemplate::new(status)).await;
        assert_eq!(
            (error.status(), error.code(), error.request_id()),
            (Some(status), None, None)
        );
        assert_eq!(error.to_string(), format!("GET /api/v1/whoami: {status}"));
    }
}

#[tokio::test]
async fn json_is_known_by_any_of_its_names() {
    let body = problem_body(404, "not_found", "there is no such thing").to_string();
    for media_type in [
        "application/json",
        "application/problem+json",
        "Application/Problem+JSON; charset=utf-8",
        "application/json;charset=utf-8",
        "application/vnd.somebody+json",
    ] {
        let error = refusal_by(answer(404, media_type, body.clone())).await;
        assert_eq!(error.code(), Some("not_found"), "{media_type}");
    }
}

#[tokio::test]
async fn a_newer_server_s_refusal_may_have_more_members() {
    let mut problem = problem_body(400, "something_new", "in a way that is not known here");
    problem["balance"] = json!({"left": [1, 2]});
    problem["errors"] = json!([{"pointer": "/name", "detail": "must be new", "rule": "new"}]);
    let mut envelope = error_envelope(&json!({
        "code": "VALIDATION_ERROR",
        "message": "in a way that is not known here",
        "details": {"code": "something_new", "errors": problem["errors"], "more": true},
        "more": 1,
    }));
    envelope["meta"]["region"] = json!("eu");
    for body in [problem, envelope] {
        let error = refusal_by(json_answer(400, &body)).await;
        assert_eq!(error.code(), Some("something_new"));
        assert_eq!(error.detail(), Some("in a way that is not known here"));
        assert_eq!(error.errors().len(), 1);
    }
}

#[tokio::test]
async fn a_call_that_expects_nothing_is_refused_alike() {
    let server = Server::answering([
        problem(404, "not_found", "there is no such thing"),
        nothing(),
    ])
    .await;
    let call = server.client().service_keys().revoke("key");
    let error = refused(call.clone().await);
    assert!(error.is_not_found() && error.code() == Some("not_found"));
    call.await.unwrap();
}
