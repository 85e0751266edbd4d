//! Unexpected responses, and those of a newer server.

use std::time::Duration;

use serde_json::{Value, json};
use tollkey_client::{
    Auth, Client, Denial, ErrorKind, Open, Status, VerifierId,
    reqwest::{self, redirect::Policy},
    verification::{VerificationRequest, VerifyResponse},
};
use wiremock::ResponseTemplate;

use crate::{
    fixtures,
    operations::rows,
    support::{
        REQUEST_ID, RawBehavior, Server, TOKEN, Wire, expect_error, json_response, nothing,
        only_header, response_with,
    },
};

#[tokio::test]
async fn response_that_is_not_json_is_rejected() {
    let page = "<html>Welcome to nginx!</html>";
    let me = fixtures::whoami().to_string();
    let unnamed = ResponseTemplate::new(200)
        .set_body_bytes(me.as_bytes())
        .insert_header("x-request-id", REQUEST_ID);
    let rows = [
        response_with(200, "text/html", page),
        response_with(200, "text/plain", me.as_bytes()),
        response_with(200, "application/octet-stream", me.as_bytes()),
        response_with(200, "application/jsonl", me.as_bytes()),
        unnamed,
        ResponseTemplate::new(200).insert_header("x-request-id", REQUEST_ID),
    ];
    for answer in rows {
        let server = Server::responding(answer).await;
        let error = expect_error(server.persistent().whoami().await);
        assert_eq!(
            (error.kind(), error.status()),
            (ErrorKind::Unreadable, Some(200))
        );
        assert_eq!(
            (error.code(), error.detail(), error.request_id()),
            (None, None, Some(REQUEST_ID))
        );
        let why = "the response is not JSON: is base_url the URL of a Tollkey server?";
        assert_eq!(
            error.to_string(),
            format!("GET /api/v1/whoami: 200: {why} ({REQUEST_ID})")
        );
        // The call is not repeated.
        assert_eq!(server.requests().await.len(), 1);
    }
}

#[tokio::test]
async fn web_page_is_rejected_by_every_call() {
    let server = Server::responding(response_with(
        200,
        "text/html",
        "<html>Welcome to nginx!</html>",
    ))
    .await;
    let client = server.client();
    for row in rows() {
        let error = expect_error((row.call)(client.clone()).await);
        assert_eq!(
            error.kind(),
            ErrorKind::Unreadable,
            "{}: {error}",
            row.operation
        );
        assert!(!format!("{error} {error:?}").contains("nginx"), "{error:?}");
    }
}

#[tokio::test]
async fn json_of_another_shape_is_rejected() {
    for row in rows() {
        let (status, Some(right)) = &row.answer else {
            continue;
        };
        let right = right.to_string();
        let cut = &right[..right.len() - 1];
        let mut wrong = vec![
            "",
            "null",
            "true",
            "7",
            "\"text\"",
            cut,
            "[7]",
            "{\"data\": null, \"error\": null}",
        ];
        wrong.push(if right.starts_with('[') { "{}" } else { "[]" });
        wrong.extend((!right.starts_with('[')).then_some("{}"));
        let server = Server::answering(
            wrong
                .iter()
                .map(|body| response_with(*status, "application/json", *body)),
        )
        .await;
        // Without retries: a creation would be repeated.
        let client = server.client();
        for (sent, body) in wrong.iter().enumerate() {
            let error = expect_error((row.call)(client.clone()).await);
            assert_eq!(
                error.kind(),
                ErrorKind::Unreadable,
                "{}: {body}: {error}",
                row.operation
            );
            assert_eq!(
                (error.status(), error.attempts()),
                (Some(*status), 1),
                "{}: {body}",
                row.operation
            );
            assert!(
                error
                    .to_string()
                    .contains(": the response cannot be read ("),
                "{error}"
            );
            assert_eq!(
                server.requests().await.len(),
                sent + 1,
                "{}: {body}",
                row.operation
            );
        }
    }
}

#[tokio::test]
async fn response_without_a_required_field_is_rejected() {
    for row in rows() {
        let (status, Some(right)) = &row.answer else {
            continue;
        };
        let mut without = Vec::new();
        without_each_required_field(right, &mut |name, body| {
            without.push((name.to_owned(), body))
        });
        let answers: Vec<_> = without
            .iter()
            .map(|(_, body)| json_response(*status, body))
            .collect();
        let server = Server::answering(answers).await;
        let client = server.client();
        for (name, body) in without {
            let outcome = (row.call)(client.clone()).await;
            let rejected = outcome.is_err_and(|error| error.kind() == ErrorKind::Unreadable);
            assert!(rejected, "{}: without {name}: {body}", row.operation);
        }
    }
}

/// Calls `with` for each required field (`id`, `key_id`, `valid`, `active` and the like) and the response without it.
fn without_each_required_field(right: &Value, with: &mut impl FnMut(&str, Value)) {
    const REQUIRED: [&str; 13] = [
        "id", "key_id", "valid", "active", "items", "results", "data", "seq", "cursor", "fullKey",
        "api_key", "value", "hash",
    ];
    let required_fields = |value: &Value| -> Vec<String> {
        let names = value
            .as_object()
            .into_iter()
            .flat_map(|object| object.keys().cloned());
        names
            .filter(|name| REQUIRED.contains(&name.as_str()))
            .collect()
    };
    // In the body, the first item of a list and the envelope.
    for pointer in [
        "",
        "/0",
        "/items/0",
        "/data",
        "/data/0",
        "/results/0",
        "/results/0/key",
        "/key",
    ] {
        let Some(object) = right.pointer(pointer) else {
            continue;
        };
        for name in required_fields(object) {
            let mut body = right.clone();
            let object = body
                .pointer_mut(pointer)
                .and_then(Value::as_object_mut)
                .expect("an object at this pointer");
            object.remove(&name);
            with(&format!("{pointer}/{name}"), body);
        }
    }
}

#[tokio::test]
async fn call_without_a_response_body_accepts_only_204() {
    let calls = |client: Client| async move {
        let applications = client.applications();
        [
            applications.delete("app").await,
            applications.api_keys("app").revoke("key").await,
            client.service_keys().revoke("key").await,
            client.revoke_self().await,
        ]
    };
    for (answer, ok) in [
        (nothing(), true),
        (ResponseTemplate::new(204), true),
        (
            json_response(200, &json!({"error": "unexpected body"})),
            false,
        ),
        (json_response(202, &json!({})), false),
        (ResponseTemplate::new(200), false),
    ] {
        let server = Server::responding(answer).await;
        for outcome in calls(server.client()).await {
            assert_eq!(outcome.is_ok(), ok, "{outcome:?}");
            let Err(error) = outcome else { continue };
            assert_eq!(error.kind(), ErrorKind::Unreadable);
            assert!(error.may_have_taken_effect());
        }
        assert_eq!(server.requests().await.len(), 4);
    }
}

#[tokio::test]
async fn call_with_a_response_body_rejects_204() {
    let server = Server::responding(nothing()).await;
    let client = server.client();
    for row in rows() {
        let outcome = (row.call)(client.clone()).await;
        match row.answer {
            (_, None) => outcome.unwrap(),
            (_, Some(_)) => assert_eq!(
                expect_error(outcome).kind(),
                ErrorKind::Unreadable,
                "{}",
                row.operation
            ),
        }
    }
}

/// The maximum length of a response.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;

#[tokio::test]
async fn too_large_content_length_is_rejected() {
    for status in ["200 OK", "404 Not Found"] {
        let length = MAX_RESPONSE + 1;
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{{"
        );
        let wire = Wire::that([RawBehavior::Stalls(head)]).await;
        let error = expect_error(
            wire.builder()
                .max_retries(2)
                .build()
                .unwrap()
                .whoami()
                .await,
        );
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Unreadable, 1),
            "{error}"
        );
        assert!(
            error.to_string().ends_with(": the response is too long"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn endless_response_is_rejected_at_the_limit() {
    let wire = Wire::that([
        RawBehavior::Pours(MAX_RESPONSE),
        RawBehavior::Pours(MAX_RESPONSE - 2),
    ])
    .await;
    let client = wire
        .builder()
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let error = expect_error(client.whoami().await);
    assert_eq!(error.kind(), ErrorKind::Unreadable, "{error:?}");
    assert!(
        error.to_string().ends_with(": the response is too long"),
        "{error}"
    );
    // Exactly the limit: the response is read and fails as invalid JSON.
    let error = expect_error(client.whoami().await);
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Server::responding(json_response(200, &fixtures::whoami())).await;
    for status in [300, 301, 302, 303, 304, 305, 307, 308] {
        let to = [
            format!("{}/api/v1/whoami", elsewhere.url()),
            "/api/v1/whoami/".to_owned(),
            "//example.com".to_owned(),
        ];
        for to in to {
            let server = Server::responding(
                ResponseTemplate::new(status).insert_header("location", to.as_str()),
            )
            .await;
            let error = expect_error(server.persistent().whoami().await);
            assert_eq!(
                (error.kind(), error.status()),
                (ErrorKind::Redirect, Some(status)),
                "{to}"
            );
            assert_eq!(error.attempts(), 1, "{to}");
            let text = error.to_string();
            assert_eq!(
                text,
                format!("GET /api/v1/whoami: {status}: redirects are not followed")
            );
            assert_eq!(server.requests().await.len(), 1, "{status} {to}");
        }
    }
    assert!(elsewhere.requests().await.is_empty());
}

#[tokio::test]
async fn redirect_is_rejected_by_every_call() {
    let elsewhere = Server::responding(nothing()).await;
    let to = elsewhere.url();
    let server =
        Server::responding(ResponseTemplate::new(307).insert_header("location", to.as_str())).await;
    for row in rows() {
        let error = expect_error((row.call)(server.client()).await);
        assert_eq!(error.kind(), ErrorKind::Redirect, "{}", row.operation);
    }
    assert!(elsewhere.requests().await.is_empty());
}

#[tokio::test]
async fn redirected_response_of_own_http_client_is_not_used() {
    let elsewhere = Server::responding(json_response(200, &fixtures::valid())).await;
    for status in [301, 302, 303, 307, 308] {
        let to = format!("{}/api/v1/verify", elsewhere.url());
        let server = Server::responding(
            ResponseTemplate::new(status).insert_header("location", to.as_str()),
        )
        .await;
        let following = reqwest::Client::builder()
            .redirect(Policy::limited(5))
            .build()
            .unwrap();
        let client = server
            .builder()
            .http_client(following)
            .max_retries(2)
            .build()
            .unwrap();
        let error = expect_error(client.verify("ck_test_EXAMPLE1").await);
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Redirect, 1),
            "{status}: {error}"
        );
    }
    // The caller's HTTP client follows the redirects, but the client rejects the responses.
    assert_eq!(elsewhere.requests().await.len(), 5);
}

#[tokio::test]
async fn redirect_loop_is_not_repeated() {
    let server =
        Server::responding(ResponseTemplate::new(302).insert_header("location", "/api/v1/whoami"))
            .await;
    let following = reqwest::Client::builder()
        .redirect(Policy::limited(3))
        .build()
        .unwrap();
    let failing = Policy::custom(|attempt| attempt.error("no redirects here"));
    let failing = reqwest::Client::builder()
        .redirect(failing)
        .build()
        .unwrap();
    for (http, expected) in [(following, 4), (failing, 5)] {
        let client = server
            .builder()
            .http_client(http)
            .max_retries(2)
            .build()
            .unwrap();
        let error = expect_error(client.whoami().await);
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Redirect, 1),
            "{error:?}"
        );
        assert_eq!(server.requests().await.len(), expected);
    }
}

#[tokio::test]
async fn unknown_fields_are_ignored_except_by_lookup() {
    let mut changed = 0;
    for row in rows() {
        let (status, Some(body)) = &row.answer else {
            continue;
        };
        let mut newer = body.clone();
        add_fields(&mut newer);
        if row.operation == "syncLookup" {
            // A verifier must not ignore unknown fields: a rate limit with one is rejected.
            let server = Server::answering([json_response(*status, &newer)]).await;
            assert_eq!(
                expect_error((row.call)(server.client()).await).kind(),
                ErrorKind::Unreadable
            );
            newer["key"]["rate_limit"] = body["key"]["rate_limit"].clone();
        }
        changed += usize::from(newer != *body);
        let server = Server::answering([json_response(*status, &newer)]).await;
        let outcome = (row.call)(server.client()).await;
        outcome.unwrap_or_else(|error| panic!("{}: {error}: {newer}", row.operation));
    }
    // Empty lists and responses without a body have no object to extend.
    assert!(changed >= 40, "{changed}");
}

/// Adds unknown fields to every object except `metadata` and `changes`.
fn add_fields(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(add_fields),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if name != "metadata" && name != "changes" {
                    add_fields(value);
                }
            }
            fields.insert(
                "of_a_newer_server".to_owned(),
                json!({"a": [1, null, "text"]}),
            );
            fields.insert("ofANewerServer".to_owned(), Value::Null);
        }
        _ => {}
    }
}

/// Replaces the values at these pointers with an unknown value.
fn with_unknown_values(mut body: Value, pointers: &[&str]) -> Value {
    for pointer in pointers {
        let value = body
            .pointer_mut(pointer)
            .unwrap_or_else(|| panic!("no value at {pointer}"));
        *value = json!("brand_new");
    }
    body
}

#[tokio::test]
async fn unknown_values_are_kept_except_by_lookup() {
    fn is_new<T: AsRef<str>>(value: &Open<T>) -> bool {
        matches!(value, Open::Unknown(text) if text == "brand_new") && value.as_str() == "brand_new"
    }
    /// A client of a server with this response.
    async fn newer(body: Value, pointers: &[&str]) -> (Client, Server) {
        let server =
            Server::responding(json_response(200, &with_unknown_values(body, pointers))).await;
        (server.client(), server)
    }

    let (client, _server) = newer(fixtures::applications(), &["/items/0/apiKeys/0/status"]).await;
    let page = client.applications().list().await.unwrap();
    assert!(is_new(&page.items[0].api_keys.as_ref().unwrap()[0].status));

    let pointers = ["/items/0/status", "/items/0/mode", "/items/0/scopes/0"];
    let (client, _server) = newer(
        fixtures::numbered_page(&json!([fixtures::application_key()])),
        &pointers,
    )
    .await;
    let page = client.applications().api_keys("app").list().await.unwrap();
    assert!(is_new(&page.items[0].status) && is_new(&page.items[0].mode));
    assert_eq!(page.items[0].scopes[0].as_str(), "brand_new");

    let pointers = ["/scope", "/status", "/mode", "/scopes/0", "/features/0"];
    let (client, _server) = newer(fixtures::commerce_key(), &pointers).await;
    let key = client.commerce().api_keys().get("key").await.unwrap();
    assert!(is_new(&key.scope) && is_new(&key.status) && is_new(&key.mode));
    assert!(is_new(&key.features.unwrap()[0]));
    assert_eq!(key.scopes[0].as_str(), "brand_new");
    assert!(key.status != Status::Active);

    let (client, _server) = newer(
        fixtures::created_commerce_key(),
        &["/scope", "/mode", "/scopes/0", "/features/0"],
    )
    .await;
    let created = client.commerce().api_keys().create("Key").await.unwrap();
    assert!(
        is_new(&created.scope) && is_new(&created.mode) && is_new(&created.features.unwrap()[0])
    );

    let pointers = ["/data/environment", "/data/access"];
    let (client, _server) = newer(fixtures::envelope(&fixtures::account_key()), &pointers).await;
    let key = client.account().api_keys().revoke("key").await.unwrap();
    assert!(is_new(&key.environment) && is_new(&key.access));

    let pointers = [
        "/data/0/action",
        "/data/0/actor/type",
        "/data/0/target/type",
    ];
    let (client, _server) = newer(
        fixtures::list_envelope(&json!([fixtures::account_audit_entry()]), None),
        &pointers,
    )
    .await;
    let page = client.account().audit_log().list().await.unwrap();
    assert!(is_new(&page.items[0].actor.r#type) && is_new(&page.items[0].target.r#type));

    let (client, _server) = newer(
        json!([fixtures::audit_entry()]),
        &["/0/action", "/0/actor/type", "/0/target/type"],
    )
    .await;
    let page = client.audit_log().list().await.unwrap();
    assert!(is_new(&page.items[0].actor.r#type) && is_new(&page.items[0].target.r#type));
    assert_eq!(page.items[0].action, "brand_new");

    let (client, _server) = newer(fixtures::account(), &["/operating_model"]).await;
    assert!(is_new(
        &client.accounts().get("acme").await.unwrap().operating_model
    ));

    let pointers = [
        "/key/family",
        "/key/mode",
        "/key/scopes/0",
        "/key/features/0",
    ];
    let (client, _server) = newer(fixtures::valid(), &pointers).await;
    let key = client
        .verify("ck_test_EXAMPLE1")
        .await
        .unwrap()
        .into_result()
        .unwrap()
        .key;
    assert!(is_new(&key.family) && is_new(&key.mode) && is_new(&key.features.unwrap()[0]));

    let (client, _server) = newer(
        fixtures::whoami(),
        &["/family", "/mode", "/status", "/scopes/0"],
    )
    .await;
    let me = client.whoami().await.unwrap();
    assert!(is_new(&me.family) && is_new(&me.mode) && is_new(&me.status));

    let (client, _server) = newer(fixtures::introspected(), &["/mode"]).await;
    assert!(is_new(
        &client
            .introspect("ck_test_EXAMPLE1")
            .await
            .unwrap()
            .mode
            .unwrap()
    ));

    // A verifier must not guess what an unknown value means.
    for pointer in [
        "/key/family",
        "/key/mode",
        "/key/features/0",
        "/key/operating_model",
    ] {
        let (client, _server) = newer(fixtures::found(), &[pointer]).await;
        let error = expect_error(
            client
                .subscription()
                .lookup(tollkey_client::Digest::of_key("ck_test_EXAMPLE1"))
                .await,
        );
        assert_eq!(error.kind(), ErrorKind::Unreadable, "{pointer}");
    }
    // A change of an unknown type is kept as it is.
    let (client, _server) = newer(fixtures::news(), &["/changes/0/type"]).await;
    let news = client
        .subscription()
        .poll(VerifierId::from_bytes([7; 16]))
        .await
        .unwrap();
    assert_eq!(news.changes.unwrap()[0].kind, "brand_new");
}

#[tokio::test]
async fn unknown_denial_code_denies() {
    let server = Server::responding(json_response(200, &fixtures::invalid("brand_new"))).await;
    let verdict = server.client().verify("ck_test_EXAMPLE1").await.unwrap();
    assert!(!verdict.is_valid());
    let denied = verdict.into_result().unwrap_err();
    assert_eq!(
        (denied.code.known(), denied.code.as_str()),
        (None, "brand_new")
    );
}

#[tokio::test]
async fn denial_that_contains_the_key_denies() {
    let mut body = fixtures::valid();
    body["valid"] = json!(false);
    body["code"] = json!("revoked");
    let batch = json!({"results": [body]});
    let server = Server::answering([json_response(200, &body), json_response(200, &batch)]).await;
    let client = server.client();
    let one = client.verify("ck_test_EXAMPLE1").await.unwrap();
    let several = client
        .verify_batch([VerificationRequest::new("ck_test_EXAMPLE1")])
        .await
        .unwrap();
    for verdict in [&one, &several[0]] {
        assert!(!verdict.is_valid() && verdict.key().is_none());
        assert_eq!(verdict.code(), "revoked");
        assert!(matches!(verdict, VerifyResponse::Invalid(_)));
    }
    assert_eq!(one.into_result().unwrap_err().code, Denial::Revoked);
}

#[tokio::test]
async fn ambiguous_verification_result_is_rejected() {
    let rows = [
        json!({"valid": true, "code": "valid"}),
        json!({"valid": true, "code": "valid", "key": null, "rate_limit": null}),
        json!({"valid": true, "code": "valid", "key": {}, "rate_limit": null}),
        json!({"valid": "true", "code": "valid", "key": fixtures::valid()["key"], "rate_limit": null}),
        json!({"valid": 1, "code": "valid", "key": fixtures::valid()["key"], "rate_limit": null}),
        json!({"valid": null, "code": "valid", "key": fixtures::valid()["key"], "rate_limit": null}),
        json!({"code": "valid", "key": fixtures::valid()["key"], "rate_limit": null}),
        json!({"valid": false}),
    ];
    for body in rows {
        let batch = json!({"results": [body]});
        let server =
            Server::answering([json_response(200, &body), json_response(200, &batch)]).await;
        let client = server.client();
        assert_eq!(
            expect_error(client.verify("ck_test_EXAMPLE1").await).kind(),
            ErrorKind::Unreadable,
            "{body}"
        );
        let several = client
            .verify_batch([VerificationRequest::new("ck_test_EXAMPLE1")])
            .await;
        assert_eq!(
            expect_error(several).kind(),
            ErrorKind::Unreadable,
            "{body}"
        );
    }
    // A repeated `valid` is rejected, because parsers differ in which value they use.
    let twice = r#"{"valid": false, "code": "revoked", "valid": true}"#;
    let server = Server::responding(response_with(200, "application/json", twice)).await;
    assert_eq!(
        expect_error(server.client().verify("ck_test_EXAMPLE1").await).kind(),
        ErrorKind::Unreadable
    );
}

#[tokio::test]
async fn batch_with_another_number_of_results_is_rejected() {
    let requests = || {
        [
            VerificationRequest::new("ck_test_EXAMPLE1"),
            VerificationRequest::new("ck_test_EXAMPLE2"),
        ]
    };
    for count in [0, 1, 3] {
        let body = json!({"results": vec![fixtures::valid(); count]});
        let server = Server::responding(json_response(200, &body)).await;
        let error = expect_error(server.persistent().verify_batch(requests()).await);
        assert_eq!(
            (error.kind(), error.attempts()),
            (ErrorKind::Unreadable, 1),
            "{count}"
        );
        let why = "200: the number of results is not the number of requests";
        assert_eq!(
            error.to_string(),
            format!("POST /api/v1/verify/batch: {why} ({REQUEST_ID})")
        );
    }
    let body = json!({"results": [fixtures::invalid("expired"), fixtures::valid()]});
    let server = Server::responding(json_response(200, &body)).await;
    let verdicts = server.client().verify_batch(requests()).await.unwrap();
    assert_eq!(
        verdicts
            .iter()
            .map(VerifyResponse::code)
            .collect::<Vec<_>>(),
        ["expired", "valid"]
    );
}

#[tokio::test]
async fn whoami_of_a_publishable_key_has_no_rest() {
    let restricted =
        json!({"id": fixtures::KEY, "family": "publishable", "mode": "live", "status": "active"});
    let server = Server::responding(json_response(200, &restricted)).await;
    let me = server.client().whoami().await.unwrap();
    assert_eq!(me.rest, None);
    // Unreadable fields are an error, not an absent rest.
    let mut broken = fixtures::whoami();
    broken["scopes"] = json!("sessions:write");
    let server = Server::responding(json_response(200, &broken)).await;
    assert_eq!(
        expect_error(server.client().whoami().await).kind(),
        ErrorKind::Unreadable
    );
}

#[tokio::test]
async fn with_auth_replaces_the_credential() {
    let server = Server::responding(json_response(200, &fixtures::whoami())).await;
    let client = server.client();
    client.whoami().await.unwrap();
    client
        .with_auth(Auth::key("ck_test_EXAMPLE1"))
        .whoami()
        .await
        .unwrap();
    let presented: Vec<_> = server
        .requests()
        .await
        .iter()
        .map(|request| only_header(request, "authorization"))
        .collect();
    assert_eq!(
        presented,
        [
            format!("Bearer {TOKEN}"),
            "Bearer ck_test_EXAMPLE1".to_owned()
        ]
    );
}
