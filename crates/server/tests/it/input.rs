//! Invalid requests: each gets a problem that names the error, and changes nothing.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    assert_response,
    support::{
        App, Call, Reply, each_backend,
        raw::{connect, read_response, send},
    },
};

/// Asserts that a problem has every required field and reveals no internals.
fn assert_problem(reply: &Reply, context: &str) {
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json"),
        "{context}: {reply}"
    );
    assert_eq!(
        reply.header("cache-control"),
        Some("no-store"),
        "{context}: {reply}"
    );
    assert_eq!(
        reply.header("x-content-type-options"),
        Some("nosniff"),
        "{context}: {reply}"
    );
    let json = reply.json();
    let fields: Vec<&str> = json
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        fields[..6],
        ["type", "title", "status", "detail", "code", "request_id"],
        "{context}: {reply}"
    );
    assert!(
        fields.len() == 6 || fields[6..] == ["errors"],
        "{context}: {reply}"
    );
    assert_eq!(
        fields.contains(&"errors"),
        reply.code() == "validation_failed",
        "{context}: {reply}"
    );
    assert_eq!(json["status"], reply.status, "{context}: {reply}");
    assert_eq!(
        json["request_id"].as_str(),
        reply.header("x-request-id"),
        "{context}: {reply}"
    );
    for field in ["type", "title", "detail", "code"] {
        assert!(
            json[field].as_str().is_some_and(|text| !text.is_empty()),
            "{context}: {reply}"
        );
    }
    let body = reply.body.to_ascii_lowercase();
    for internal in [
        "serde", "diesel", "sqlite", "postgres", "actix", "struct", "::", ".rs", "tollkey_",
        "api_keys",
    ] {
        assert!(
            !body.contains(internal),
            "{context} names {internal}: {reply}"
        );
    }
}

/// Returns resources of an account and of the operator, to detect changes.
async fn visible_resources(app: &App, token: &str) -> Vec<Value> {
    let operator = app.operator();
    let mut seen = Vec::new();
    for (path, token) in [
        ("/applications?include=apiKeys&limit=100", token),
        ("/audit-log", token),
        ("/service-keys", &operator),
        ("/accounts/acme", &operator),
    ] {
        let reply = app.get(path).bearer(token).await;
        assert_eq!(reply.status, 200, "{reply}");
        seen.push(reply.json());
    }
    seen
}

/// Operations with a required JSON body, each with a token that can call it.
async fn write_operations(app: &App) -> Vec<(&'static str, String, String)> {
    let token = app.management_token("acme");
    let application = app.application(&token, "Web Store").await;
    app.key(&token, &application, json!({})).await;
    let path = format!("/applications/{application}");
    vec![
        ("POST", "/applications".to_owned(), token.clone()),
        ("PATCH", path.clone(), token.clone()),
        ("PATCH", format!("{path}/status"), token.clone()),
        ("POST", format!("{path}/api-keys"), token),
        ("POST", "/verify".to_owned(), app.service()),
        ("POST", "/verify/batch".to_owned(), app.service()),
        ("PUT", "/accounts/acme".to_owned(), app.operator()),
        ("POST", "/service-keys".to_owned(), app.operator()),
    ]
}

#[actix_web::test]
async fn body_that_is_not_a_json_object_is_400() {
    let nested = |open: &str, close: &str| {
        format!(
            "{{\"metadata\":{}{}}}",
            open.repeat(10_000),
            close.repeat(10_000)
        )
    };
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("blank", b" \n ".to_vec()),
        ("truncated", b"{\"name\": \"x\"".to_vec()),
        ("unterminated string", b"{\"name\": \"x".to_vec()),
        ("no quotes", b"{name: \"x\"}".to_vec()),
        ("single quotes", b"{'name': 'x'}".to_vec()),
        ("trailing comma", b"{\"name\": \"x\",}".to_vec()),
        (
            "two objects",
            b"{\"name\": \"x\"}{\"name\": \"y\"}".to_vec(),
        ),
        ("comment", b"{\"name\": \"x\" /* why */}".to_vec()),
        ("form", b"name=x".to_vec()),
        ("markup", b"<name>x</name>".to_vec()),
        ("array", b"[\"x\"]".to_vec()),
        ("array of objects", b" [{\"name\": \"x\"}]".to_vec()),
        ("unterminated array", b"[\"x\"".to_vec()),
        ("text", b"\"x\"".to_vec()),
        ("number", b"1".to_vec()),
        ("true", b"true".to_vec()),
        ("null", b"null".to_vec()),
        ("NUL", b"\0".to_vec()),
        ("raw NUL in a string", b"{\"name\": \"a\0b\"}".to_vec()),
        ("raw newline in a string", b"{\"name\": \"a\nb\"}".to_vec()),
        ("lone surrogate", b"{\"name\": \"\\ud800\"}".to_vec()),
        ("not UTF-8", b"{\"name\": \"\xff\xfe\"}".to_vec()),
        ("overlong UTF-8", b"{\"name\": \"\xc0\xaf\"}".to_vec()),
        (
            "UTF-16",
            "{\"name\": \"x\"}"
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect(),
        ),
        (
            "byte order mark inside",
            b"{\xef\xbb\xbf\"name\": \"x\"}".to_vec(),
        ),
        (
            "two byte order marks",
            b"\xef\xbb\xbf\xef\xbb\xbf{\"name\": \"x\"}".to_vec(),
        ),
        ("unknown field", b"{\"nmae\": \"x\"}".to_vec()),
        (
            "repeated field",
            b"{\"name\": \"x\", \"name\": \"x\"}".to_vec(),
        ),
        ("deep arrays", nested("[", "]").into_bytes()),
        ("deep objects", nested("{\"a\":", "}").into_bytes()),
        ("deep, not an object", "[".repeat(60_000).into_bytes()),
        (
            "endless number",
            format!("{{\"name\": {}}}", "9".repeat(50_000)).into_bytes(),
        ),
        ("number out of range", b"{\"name\": 1e999}".to_vec()),
    ];
    each_backend(async |app: &App| {
        let write_operations = write_operations(app).await;
        let token = app.management_token("acme");
        let before = visible_resources(app, &token).await;
        for (method, path, token) in &write_operations {
            for (name, body) in &bodies {
                let context = format!("{method} {path} {name}");
                let call = app
                    .call(method, path)
                    .bearer(token)
                    .header("content-type", "application/json");
                let reply = call.body(body.clone()).await;
                assert_eq!(reply.status, 400, "{context}: {reply}");
                assert!(
                    ["malformed_json", "validation_failed"].contains(&reply.code().as_str()),
                    "{context}: {reply}"
                );
                if reply.code() == "malformed_json" {
                    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
                    assert!(
                        detail.contains(" at line ") && detail.contains(", column "),
                        "{context}: {reply}"
                    );
                }
                assert!(reply.body.len() < 2000, "{context}: {reply}");
                assert_problem(&reply, &context);
            }
        }
        assert_eq!(visible_resources(app, &token).await, before);
    })
    .await;
}

#[actix_web::test]
async fn malformed_json_is_reported_with_line_and_column() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let send = |body: &str| {
            app.call("POST", "/applications").bearer(&token).header("content-type", "application/json").body(body)
        };
        assert_response!(send("{\n  \"name\": \"Web Store\",\n  \"description\": oops\n}").await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:malformed_json",
          "title": "The body is not valid JSON",
          "status": 400,
          "detail": "The body is not valid JSON at line 3, column 18: expected value.",
          "code": "malformed_json",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC"
        }
        "#);
        assert_response!(send("{\"name\": \"a\", \"name\": \"b\"}").await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00590KP5CNGK0J4VFP

        {
          "type": "urn:tollkey:problem:validation_failed",
          "title": "The request is not valid",
          "status": 400,
          "detail": "/name: must not be repeated",
          "code": "validation_failed",
          "request_id": "req_01KDVDNA00590KP5CNGK0J4VFP",
          "errors": [
            {
              "pointer": "/name",
              "detail": "must not be repeated"
            }
          ]
        }
        "#);
        assert_response!(send("[{\"name\": \"a\"}]").await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00FDHWFJTPZXKCTR5N

        {
          "type": "urn:tollkey:problem:validation_failed",
          "title": "The request is not valid",
          "status": 400,
          "detail": "The body must be a JSON object.",
          "code": "validation_failed",
          "request_id": "req_01KDVDNA00FDHWFJTPZXKCTR5N",
          "errors": [
            {
              "pointer": "",
              "detail": "The body must be a JSON object."
            }
          ]
        }
        "#);
        assert_response!(send("{\"name\": 7}").await, @r#"
        400
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA006P2YN2754YM1KC32

        {
          "type": "urn:tollkey:problem:validation_failed",
          "title": "The request is not valid",
          "status": 400,
          "detail": "/name: must be a string",
          "code": "validation_failed",
          "request_id": "req_01KDVDNA006P2YN2754YM1KC32",
          "errors": [
            {
              "pointer": "/name",
              "detail": "must be a string"
            }
          ]
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn unknown_and_mistyped_fields_are_reported_by_name() {
    each_backend(async |app: &App| {
        let write_operations = write_operations(app).await;
        let token = app.management_token("acme");
        let before = visible_resources(app, &token).await;
        let long = "x".repeat(60_000);
        for (method, path, token) in &write_operations {
            let send = async |body: Value| app.call(method, path).bearer(token).json(body).await;
            // An unknown field may contain a secret: the error has its name, but never its value.
            let reply = send(json!({"surprise": "s3cret-value"})).await;
            assert_eq!(reply.errors()[0], "/surprise is unknown", "{method} {path}");
            // The same response has the errors of missing fields.
            let others = &reply.errors()[1..];
            assert!(others.iter().all(|error| error.ends_with(" is required")), "{method} {path}: {reply}");
            assert!(!reply.body.contains("s3cret"), "{reply}");
            assert_problem(&reply, path);
            let reply = send(json!({"a/b~c": 1})).await;
            assert_eq!(reply.errors()[0], "/a~1b~0c is unknown", "{method} {path}");
            // A long name is truncated.
            let reply = send(json!({ long.as_str(): 1 })).await;
            assert_eq!(reply.status, 400, "{method} {path}");
            assert!(reply.body.len() < 2000, "{method} {path}: {}", reply.body.len());
        }
        let application = &write_operations[1].1;
        let keys = format!("{application}/api-keys");
        let cases = [
            ("POST", "/applications", json!({"name": ["x"]}), "/name must be a string"),
            ("POST", "/applications", json!({"name": {"x": 1}}), "/name must be a string"),
            ("POST", "/applications", json!({"name": "x", "description": 1}), "/description must be a string"),
            ("POST", "/applications", json!({"name": long}), "/name must have 1 to 100 characters"),
            ("POST", "/applications", json!({"name": "a\u{0}"}), "/name must not contain control characters"),
            ("POST", "/applications", json!({"name": "a\u{7f}"}), "/name must not contain control characters"),
            ("PATCH", application, json!({"name": false}), "/name must be a string"),
            ("PATCH", application, json!({"description": long}), "/description must have at most 500 characters"),
            ("POST", &keys, json!({"description": true}), "/description must be a string"),
            ("POST", &keys, json!({"description": "d", "mode": 1}), "/mode must be a string"),
            ("POST", &keys, json!({"description": "d", "scopes": {"a": 1}}), "/scopes must be an array"),
            ("POST", &keys, json!({"description": "d", "scopes": [null]}), "/scopes/0 must be a string"),
            ("POST", &keys, json!({"description": "d", "allowedIps": "10.0.0.0/8"}), "/allowedIps must be an array"),
            ("POST", &keys, json!({"description": "d", "rateLimit": 5}), "/rateLimit must be an object"),
            (
                "POST",
                &keys,
                json!({"description": "d", "rateLimit": {"limit": 1.5, "windowSeconds": 1}}),
                "/rateLimit/limit must be a whole number within its range",
            ),
            (
                "POST",
                &keys,
                json!({"description": "d", "rateLimit": {"limit": 1, "windowSeconds": 1, "burst": 2}}),
                "/rateLimit/burst is unknown",
            ),
            ("POST", &keys, json!({"description": "d", "metadata": "x"}), "/metadata must be an object"),
            ("POST", &keys, json!({"description": "d", "metadata": []}), "/metadata must be an object"),
            (
                "POST",
                &keys,
                json!({"description": "d", "expiresAt": true}),
                "/expiresAt must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z",
            ),
        ];
        for (method, path, body, expected) in cases {
            let reply = app.call(method, path).bearer(&token).json(body.clone()).await;
            assert_eq!((reply.status, reply.errors()), (400, vec![expected.to_owned()]), "{method} {path}");
            assert_problem(&reply, path);
        }
        assert_eq!(visible_resources(app, &token).await, before);
    })
    .await;
}

#[actix_web::test]
async fn all_invalid_fields_are_reported_in_one_response() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let before = visible_resources(app, &token).await;
        let keys = format!("/applications/{application}/api-keys");
        let (operator, service) = (app.operator(), app.service());
        // Unknown and missing fields, wrong types and invalid values.
        for (method, path, token, body, expected) in [
            (
                "POST",
                "/api-keys",
                &token,
                json!({"name": 7, "expiresAt": 1, "scopes": ["link:read"], "mode": "prod", "allowed_ips": ["10.0.0.1/8"],
                       "rate_limit": {"limit": 0}}),
                vec![
                    "/allowed_ips", "/expiresAt", "/mode", "/name", "/rate_limit/limit",
                    "/rate_limit/window_seconds", "/scopes",
                ],
            ),
            ("POST", keys.as_str(), &token, json!({"mode": 1, "scopes": [], "owner": 2}), vec!["/description", "/mode", "/owner", "/scopes"]),
            ("POST", "/account/api-keys", &token, json!({"name": "", "access": "x"}), vec!["/access", "/environment", "/name"]),
            ("POST", "/applications", &token, json!({"name": "\u{202e}x", "description": 5}), vec!["/description", "/name"]),
            ("PATCH", &format!("/applications/{application}"), &token, json!({"name": null, "description": 5, "id": 1}), vec!["/description", "/id", "/name"]),
            ("POST", "/service-keys", &operator, json!({"name": "\u{200b}", "x": 1}), vec!["/name", "/x"]),
            ("POST", "/verify", &service, json!({"path": 1, "client_ip": "x", "scope": []}), vec!["/client_ip", "/key", "/path", "/scope"]),
            (
                "POST",
                "/verify/batch",
                &service,
                json!({"requests": [{"key": "k", "scopes": ["x"]}, {"client_ip": "x"}, 7]}),
                vec!["/requests/0/scopes", "/requests/1/client_ip", "/requests/1/key", "/requests/2"],
            ),
        ] {
            let reply = app.call(method, path).bearer(token).json(body).await;
            assert_eq!(reply.status, 400, "{method} {path}: {reply}");
            let json = reply.json();
            let is_account_api = path.starts_with("/account");
            let errors = if is_account_api { &json["error"]["details"]["errors"] } else { &json["errors"] };
            let mut pointers: Vec<&str> =
                errors.as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
            pointers.sort_unstable();
            assert_eq!(pointers, expected, "{method} {path}: {reply}");
            let detail = if is_account_api { &json["error"]["message"] } else { &json["detail"] };
            let detail = detail.as_str().unwrap();
            assert!(expected.iter().all(|pointer| detail.contains(pointer)), "{method} {path}: {detail}");
            for error in errors.as_array().unwrap() {
                let detail = error["detail"].as_str().unwrap();
                assert!(!detail.contains(error["pointer"].as_str().unwrap()), "{detail}");
            }
        }
        assert_eq!(visible_resources(app, &token).await, before);
    })
    .await;
}

#[actix_web::test]
async fn unknown_fields_are_reported_with_a_suggestion() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let keys = format!("/applications/{application}/api-keys");
        for (path, body, expected) in [
            (
                "/api-keys",
                json!({"name": "k", "expiresAt": 1}),
                "/expiresAt is unknown; use `expires_at`",
            ),
            (
                &keys,
                json!({"description": "k", "expires_at": 1}),
                "/expires_at is unknown; use `expiresAt`",
            ),
            ("/api-keys", json!({"name": "k", "merchant": []}), "/merchant is unknown; did you mean `merchants`?"),
            (
                "/api-keys",
                json!({"name": "k", "rate_limit": {"limit": 1, "window_seconds": 1, "windowSeconds": 1}}),
                "/rate_limit/windowSeconds is unknown; use `window_seconds`",
            ),
        ] {
            let reply = app.post(path, body).bearer(&token).await;
            assert_eq!((reply.status, reply.errors()), (400, vec![expected.to_owned()]), "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn lenient_forms_of_json_are_accepted() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let send = |method: &str, path: &str, body: &str| {
            app.call(method, path).bearer(&token).header("content-type", "application/json").body(body)
        };
        let created = send("POST", "/api-keys", "\u{feff}{\"name\":\"k\",\"rate_limit\":{\"limit\":1e3,\"window_seconds\":60.0},\"expires_at\":\"9999-12-31T23:59:59Z\"}").await;
        assert_eq!(created.status, 201, "{created}");
        let json = created.json();
        assert_eq!(json["expires_at"], 253_402_207_200_i64);
        let path = format!("/api-keys/{}", json["key_id"].as_str().unwrap());
        let row = app.get(&path).bearer(&token).await.json();
        assert_eq!((&row["expires_at"], &row["rate_limit"]), (&json!(253_402_207_200_i64), &json!({"limit": 1000, "window_seconds": 60})));
        let patched = send("PATCH", &path, "{\"expires_at\":253402300799}").await;
        assert_eq!((patched.status, &patched.json()["expires_at"]), (200, &json!(253_402_207_200_i64)), "{patched}");
        // If every field of a POST is optional, null and an empty body are the same as {}.
        for action in ["suspend", "resume", "rotate", "revoke"] {
            let reply = send("POST", &format!("{path}/{action}"), "null").await;
            assert_eq!(reply.status, if action == "rotate" { 201 } else { 200 }, "{action}: {reply}");
        }
        let other = send("POST", &format!("{path}/revoke"), " \n").await;
        assert_eq!(other.status, 200, "{other}");
        assert_eq!(send("POST", "/applications", "null").await.errors(), [" The body must be a JSON object."]);
        assert_eq!(send("PATCH", &path, "null").await.errors(), [" The body must be a JSON object."]);
        let fraction = send("POST", &format!("{path}/rotate"), "{\"overlap_seconds\":5.5}").await;
        assert_eq!(fraction.errors(), ["/overlap_seconds must be a whole number within its range"]);
    })
    .await;
}

#[actix_web::test]
async fn unescaped_plus_in_a_time_is_explained() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        for name in ["since", "until"] {
            let reply = app
                .get(&format!("/audit-log?{name}=2026-01-01T00:00:00+00:00"))
                .bearer(&token)
                .await;
            let rule =
                "must not contain a space; write the + of the offset as %2B, or use a time that ends in Z";
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![format!("{name} {rule}")])
            );
            for time in [
                "2026-01-01T00:00:00%2B00:00",
                "2026-01-01T00:00:00Z",
                "1767225600",
            ] {
                assert_eq!(
                    app.get(&format!("/audit-log?{name}={time}"))
                        .bearer(&token)
                        .await
                        .status,
                    200,
                    "{time}"
                );
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn body_over_64_kib_is_413_with_any_transfer_encoding() {
    each_backend(async |app: &App| {
        let write_operations = write_operations(app).await;
        let token = app.management_token("acme");
        let before = visible_resources(app, &token).await;
        let body = |size: usize| format!("{{\"name\":\"{}\"}}", "x".repeat(size - 11)).into_bytes();
        let json = |method: &str, path: &str, token: &str| {
            app.call(method, path)
                .bearer(token)
                .header("content-type", "application/json")
        };
        for (method, path, token) in &write_operations {
            let call = || json(method, path, token);
            for (name, reply) in [
                ("with Content-Length", call().body(body(65_537)).await),
                ("in chunks", call().chunked(&body(65_537)).await),
                ("very large", call().body(body(400_000)).await),
                (
                    "very large, in chunks",
                    call().chunked(&body(400_000)).await,
                ),
                (
                    "Content-Length without a body",
                    call().header("content-length", "10000000000").await,
                ),
            ] {
                let context = format!("{method} {path} {name}");
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (413, "payload_too_large"),
                    "{context}"
                );
                assert_problem(&reply, &context);
            }
        }
        // The largest allowed body is read.
        for reply in [
            json("POST", "/applications", &token)
                .body(body(65_536))
                .await,
            json("POST", "/applications", &token)
                .chunked(&body(65_536))
                .await,
        ] {
            assert_eq!(reply.errors(), ["/name must have 1 to 100 characters"]);
        }
        let form = app
            .call("POST", "/introspect")
            .bearer(&app.service())
            .form(&format!("token={}", "x".repeat(65_536)));
        assert_eq!(form.await.status, 413);
        // Without a valid credential the body is not examined, regardless of its size.
        let reply = app
            .call("POST", "/applications")
            .header("content-type", "text/plain")
            .body(body(65_537))
            .await;
        assert_eq!(reply.status, 401);
        assert_eq!(visible_resources(app, &token).await, before);
    })
    .await;
}

#[actix_web::test]
async fn wrong_content_type_or_compressed_body_is_415() {
    each_backend(async |app: &App| {
        let write_operations = write_operations(app).await;
        let token = app.management_token("acme");
        let before = visible_resources(app, &token).await;
        for (method, path, token) in &write_operations {
            for content_type in [
                None,
                Some(""),
                Some("text/plain"),
                Some("text/json"),
                Some("application/jsonp"),
                Some("application/x-www-form-urlencoded"),
                Some("multipart/form-data; boundary=x"),
                Some("application/json, text/plain"),
                Some("application/json; charset=iso-8859-1"),
                Some("application/json;charset=\"UTF-16\""),
                Some("application/json; charset=utf-8; charset=us-ascii"),
            ] {
                let call = app
                    .call(method, path)
                    .bearer(token)
                    .body("{\"name\": \"x\"}");
                let reply = match content_type {
                    Some(content_type) => call.header("content-type", content_type).await,
                    None => call.await,
                };
                let context = format!("{method} {path} {content_type:?}");
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (415, "unsupported_media_type"),
                    "{context}"
                );
                let types = match path.as_str() {
                    path if *method == "PATCH" && !path.ends_with("/status") => {
                        "application/json, application/merge-patch+json"
                    }
                    _ => "application/json",
                };
                let accepted =
                    ["accept", "accept-patch", "accept-encoding"].map(|name| reply.header(name));
                let patch = (*method == "PATCH").then_some(types);
                assert_eq!(accepted, [Some(types), patch, None], "{context}");
                assert_problem(&reply, &context);
            }
            for encoding in ["gzip", "br", "deflate", "identity, gzip", "x"] {
                let call = app
                    .call(method, path)
                    .bearer(token)
                    .header("content-encoding", encoding);
                let reply = call.json(json!({"name": "x"})).await;
                let context = format!("{method} {path} {encoding}");
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (415, "unsupported_media_type"),
                    "{context}"
                );
                let accepted = ["accept", "accept-encoding"].map(|name| reply.header(name));
                assert_eq!(accepted, [None, Some("identity")], "{context}");
                assert_problem(&reply, &context);
            }
        }
        assert_eq!(visible_resources(app, &token).await, before);
        for content_type in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON;charset=UTF-8",
            "application/json; charset=\"utf-8\"",
            "application/json; profile=\"a;charset=latin1\"",
        ] {
            let call = app
                .call("POST", "/applications")
                .bearer(&token)
                .header("content-type", content_type);
            let reply = call
                .header("content-encoding", "Identity")
                .body(json!({"name": content_type}).to_string())
                .await;
            assert_eq!(reply.status, 201, "{content_type}: {reply}");
        }
        let form = |content_type: &str| {
            app.call("POST", "/introspect")
                .bearer(&app.service())
                .header("content-type", content_type)
                .body("token=x")
        };
        const FORM: &str = "application/x-www-form-urlencoded";
        assert_eq!(form(&format!("{FORM}; charset=UTF-8")).await.status, 200);
        let reply = form(&format!("{FORM}; charset=iso-8859-1")).await;
        assert_eq!((reply.status, reply.header("accept")), (415, Some(FORM)));
    })
    .await;
}

#[actix_web::test]
async fn wrong_method_is_405_with_the_allowed_methods() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        assert_response!(app.call("PUT", "/applications").bearer(&token).await, @r#"
        405
        allow: GET, POST, HEAD
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:method_not_allowed",
          "title": "Method not allowed",
          "status": 405,
          "detail": "This path does not support the method of the request. Use one of GET, POST, HEAD.",
          "code": "method_not_allowed",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC"
        }
        "#);
        for (path, allow) in [
            ("/livez", "GET, HEAD"),
            ("/openapi.json", "GET, HEAD"),
            ("/applications", "POST, GET, HEAD"),
            ("/applications/x", "GET, PATCH, DELETE, HEAD"),
            ("/applications/x/status", "PATCH"),
            ("/applications/x/api-keys", "POST, GET, HEAD"),
            ("/applications/x/api-keys/y", "DELETE"),
            ("/verify", "POST"),
            ("/verify/batch", "POST"),
            ("/introspect", "POST"),
            ("/whoami", "GET, DELETE, HEAD"),
            ("/audit-log", "GET, HEAD"),
            ("/accounts/acme", "GET, PUT, HEAD"),
            ("/service-keys", "POST, GET, HEAD"),
            ("/service-keys/x", "DELETE"),
        ] {
            let sorted = |list: &str| {
                let mut names: Vec<String> = list.split(", ").map(str::to_owned).collect();
                names.sort();
                names
            };
            for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
                if sorted(allow).iter().any(|allowed| allowed == method) {
                    continue;
                }
                let reply = app.call(method, path).await;
                let context = format!("{method} {path}");
                assert_eq!((reply.status, reply.code().as_str()), (405, "method_not_allowed"), "{context}");
                assert_eq!(reply.header("allow").map(sorted), Some(sorted(allow)), "{context}");
                assert_problem(&reply, &context);
            }
            let head = app.call("HEAD", path).await;
            assert_eq!(head.status == 405, !allow.contains("HEAD"), "HEAD {path}: {head}");
            assert_eq!(head.body, "", "HEAD {path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn trace_and_connect_are_405_on_every_path() {
    each_backend(async |app: &App| {
        const PAGES: &str = "GET, HEAD, POST";
        let address = app.running().address();
        for (path, allow) in [
            ("/", "GET, HEAD"),
            ("/nothing", ""),
            ("/docsx", ""),
            ("/livez", "GET, HEAD"),
            ("/docs", "GET, HEAD"),
            ("/docs/", "GET, HEAD"),
            ("/docs/swagger-ui.css", "GET, HEAD"),
            ("/dashboard", PAGES),
            ("/dashboard/keys", PAGES),
            ("/api/v1/nothing", ""),
            ("/api/v1/verify", "POST"),
            ("/v1/account/api-keys", "GET, POST, HEAD"),
        ] {
            let reply = Call::to(address, "TRACE", path).await;
            assert_eq!(
                (reply.status, reply.header("allow")),
                (405, Some(allow)),
                "{path}: {reply}"
            );
            let is_html = path.starts_with("/dashboard");
            let code = if path.starts_with("/v1") {
                "METHOD_NOT_ALLOWED"
            } else {
                "method_not_allowed"
            };
            assert!(is_html || reply.body.contains(code), "{path}: {reply}");
            let sentence = "This path does not support the method of the request.";
            let detail = match allow {
                "" => format!("{sentence}\""),
                _ => format!("{sentence} Use one of {allow}.\""),
            };
            assert!(is_html || reply.body.contains(&detail), "{path}: {reply}");
            // An HTTP client would send CONNECT with a host and a port instead of a path.
            for target in [path, "example.com:443"] {
                let mut stream = connect(address).await;
                send(
                    &mut stream,
                    format!("CONNECT {target} HTTP/1.1\r\nhost: x\r\n\r\n"),
                )
                .await;
                let (head, _) = read_response(&mut stream).await.expect("a response");
                let allow = if target == path { allow } else { "" };
                assert!(head.starts_with("http/1.1 405"), "{target}: {head}");
                let line = format!("allow: {}\r\n", allow.to_ascii_lowercase());
                assert!(head.contains(&line), "{target}: {head}");
            }
        }
        // The method is that of the request that a gateway authorizes.
        let gateway = Call::new(address, "TRACE", "/authz/forward-auth").await;
        assert_eq!(gateway.status, 401, "{gateway}");
    })
    .await;
}

#[actix_web::test]
async fn head_has_the_response_of_get_without_the_body() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let id = app.application(&token, "Web Store").await;
        for path in [
            "/livez",
            "/readyz",
            "/openapi.json",
            "/applications",
            &format!("/applications/{id}"),
            "/audit-log",
        ] {
            let get = app.get(path).bearer(&token).await;
            let head = app.call("HEAD", path).bearer(&token).await;
            assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
            for name in ["content-type", "content-length", "cache-control"] {
                assert_eq!(head.header(name), get.header(name), "{path} {name}");
            }
        }
        assert_eq!(app.call("HEAD", "/applications").await.status, 401);
    })
    .await;
}

#[actix_web::test]
async fn unknown_path_is_404_with_a_problem() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        assert_response!(app.get("/nothing").await, @r#"
        404
        cache-control: no-store
        content-type: application/problem+json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:not_found",
          "title": "Not found",
          "status": 404,
          "detail": "No resource exists at this path. Check the URL.",
          "code": "not_found",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC"
        }
        "#);
        for path in [
            "/nothing/at/all",
            "/api",
            "/api/v1",
            "/api/v1/",
            "/api/v3/applications",
            "/api/v1/applications/",
            "/api/v1//applications",
            "/api/v1/APPLICATIONS",
            "/api/v1/applications/x/api-keys/y/z",
            "/api/v1/%61pplications%2f",
            "/livez/",
            "/readyz/../livez",
        ] {
            for method in ["GET", "POST", "DELETE"] {
                let reply = app.call(method, path).bearer(&token).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (404, "not_found"),
                    "{method} {path}"
                );
                assert_problem(&reply, path);
            }
        }
        // A malformed ID gets the same response as an unknown one.
        let long = "x".repeat(5000);
        for id in [
            "%00",
            "%ff%fe",
            "..",
            "%2e%2e",
            "'%20OR%201=1",
            "1",
            "%F0%9F%94%91",
            long.as_str(),
        ] {
            for path in [
                format!("/applications/{id}"),
                format!("/applications/{id}/api-keys"),
            ] {
                let reply = app.get(&path).bearer(&token).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (404, "not_found"),
                    "{path} {reply}"
                );
                assert_problem(&reply, &path);
            }
        }
        for query in ["page=%ff", "%00=1", "page=1%00", "&&=&", "page"] {
            let reply = app
                .get(&format!("/applications?{query}"))
                .bearer(&token)
                .await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (400, "validation_failed"),
                "{query} {reply}"
            );
            assert_problem(&reply, query);
        }
    })
    .await;
}

/// Actix itself rejects malformed HTTP, with a status and no further information.
#[actix_web::test]
async fn malformed_http_is_rejected_without_server_details() {
    each_backend(async |app: &App| {
        let address = app.running().address();
        let long = format!("GET / HTTP/1.1\r\nx-long: {}\r\n\r\n", "x".repeat(300_000));
        for bytes in [
            &b"nonsense\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            long.as_bytes(),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut reply = Vec::new();
            let _ = stream.read_to_end(&mut reply).await;
            let reply = String::from_utf8_lossy(&reply).to_ascii_lowercase();
            assert!(
                reply.is_empty() || reply.starts_with("http/1.1 4"),
                "{reply}"
            );
            assert!(
                !reply.contains("actix") && !reply.contains("server:") && !reply.contains("rust"),
                "{reply}"
            );
        }
        assert_eq!(Call::new(address, "GET", "/livez").await.body, "ok");
    })
    .await;
}
