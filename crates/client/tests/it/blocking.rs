//! Calls without an async runtime.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tollkey_client::{Auth, Client, ErrorKind, Scope, Secret, reqwest};
use wiremock::{Request, ResponseTemplate};

use crate::{
    fixtures,
    support::{Server, TOKEN, expect_error, json_response, only_header, problem, target},
};

/// A server with these responses, on a separate runtime.
fn answering(responses: impl IntoIterator<Item = ResponseTemplate>) -> Server {
    Runtime::new()
        .unwrap()
        .block_on(Server::answering(responses))
}

fn responding(respond: impl wiremock::Respond + 'static) -> Server {
    Runtime::new()
        .unwrap()
        .block_on(Server::responding(respond))
}

fn requests(server: &Server) -> Vec<Request> {
    Runtime::new().unwrap().block_on(server.requests())
}

fn me() -> ResponseTemplate {
    json_response(200, &fixtures::whoami())
}

#[test]
fn call_is_sent_without_a_runtime() {
    let server = answering([json_response(201, &fixtures::created_commerce_key()), me()]);
    let client = server.client();
    let created = client
        .commerce()
        .api_keys()
        .create("Key")
        .scopes([Scope::LINKS_READ])
        .send_blocking()
        .unwrap();
    assert_eq!(created.api_key.expose(), "ck_test_EXAMPLE1");
    assert_eq!(client.whoami().send_blocking().unwrap().id, fixtures::KEY);
    let requests = requests(&server);
    assert_eq!(target(&requests[0]), "/api/v1/api-keys");
    let body: Value = requests[0].body_json().unwrap();
    assert_eq!(
        body,
        json!({"name": "Key", "scope": "commerce", "scopes": ["links:read"]})
    );
    assert_eq!(
        only_header(&requests[1], "authorization"),
        format!("Bearer {TOKEN}")
    );
}

#[test]
fn blocking_creation_is_repeated_with_its_idempotency_key() {
    let unavailable = || problem(503, "unavailable", "temporarily unavailable");
    let server = answering([
        unavailable(),
        unavailable(),
        json_response(201, &fixtures::application()),
    ]);
    server
        .persistent()
        .applications()
        .create("Shop")
        .send_blocking()
        .unwrap();
    let keys: Vec<_> = requests(&server)
        .iter()
        .map(|request| only_header(request, "idempotency-key"))
        .collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn blocking_call_fails_like_an_async_one() {
    let server = answering([problem(404, "not_found", "the resource does not exist")]);
    let error = expect_error(server.client().applications().delete("app").send_blocking());
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string().split(" (").next().unwrap(),
        "DELETE /api/v1/applications/{id}: 404 not_found: the resource does not exist"
    );
    let error = expect_error(server.client().applications().delete("").send_blocking());
    assert_eq!(error.kind(), ErrorKind::Argument);
    let server = responding(me().set_delay(Duration::from_millis(500)));
    let client = server
        .builder()
        .timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    assert!(expect_error(client.whoami().send_blocking()).is_timeout());
}

#[test]
fn blocking_call_uses_a_token_function() {
    let server = answering([me()]);
    let auth = Auth::from_fn(|| async {
        // Needs the runtime's clock.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok::<_, std::io::Error>(Secret::new("from a function"))
    });
    server
        .client()
        .with_auth(auth)
        .whoami()
        .send_blocking()
        .unwrap();
    assert_eq!(
        only_header(&requests(&server)[0], "authorization"),
        "Bearer from a function"
    );
}

#[test]
fn blocking_items_are_fetched_when_needed() {
    let page = |next| {
        json_response(
            200,
            &fixtures::list_envelope(
                &json!([fixtures::account_key(), fixtures::account_key()]),
                next,
            ),
        )
    };
    let server = answering([page(Some("c1")), page(None)]);
    let mut items = server
        .client()
        .account()
        .api_keys()
        .list()
        .limit(2)
        .items_blocking();
    assert!(requests(&server).is_empty());
    assert!(items.next().unwrap().is_ok() && items.next().unwrap().is_ok());
    assert_eq!(requests(&server).len(), 1);
    assert_eq!(items.by_ref().map(Result::unwrap).count(), 2);
    assert!(items.next().is_none());
    let targets: Vec<_> = requests(&server).iter().map(target).collect();
    assert_eq!(
        targets,
        [
            "/api/v1/account/api-keys?limit=2",
            "/api/v1/account/api-keys?limit=2&cursor=c1"
        ]
    );
}

#[test]
fn blocking_items_end_after_the_first_error() {
    let first = json_response(
        200,
        &fixtures::list_envelope(&json!([fixtures::account_key()]), Some("c1")),
    );
    let server = answering([
        first,
        problem(401, "invalid_token", "the token has expired"),
    ]);
    let mut items = server.client().account().api_keys().list().items_blocking();
    assert!(items.next().unwrap().is_ok());
    assert!(expect_error(items.next().unwrap()).is_unauthorized());
    assert!(items.next().is_none() && items.next().is_none());
}

#[test]
fn every_list_has_blocking_items() {
    let server = responding(json_response(200, &json!([])));
    let client = server.client();
    assert_eq!(
        client.commerce().api_keys().list().items_blocking().count(),
        0
    );
    assert_eq!(client.audit_log().list().items_blocking().count(), 0);
    let mut page = fixtures::numbered_page(&json!([]));
    page["page"] = json!(1);
    let server = responding(json_response(200, &page));
    assert_eq!(
        server
            .client()
            .applications()
            .list()
            .items_blocking()
            .count(),
        0
    );
    assert_eq!(
        server
            .client()
            .applications()
            .api_keys("app")
            .list()
            .items_blocking()
            .count(),
        0
    );
    let server = responding(json_response(
        200,
        &fixtures::list_envelope(&json!([]), None),
    ));
    assert_eq!(
        server
            .client()
            .account()
            .audit_log()
            .list()
            .items_blocking()
            .count(),
        0
    );
}

#[test]
fn client_is_shared_by_threads() {
    let server = responding(json_response(200, &fixtures::invalid("expired")));
    let client = server.client();
    // The first thread creates the shared runtime; any thread may be first.
    thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for call in 0..5 {
                    let verdict = client
                        .verify(format!("ck_test_EXAMPLE{thread}{call}"))
                        .send_blocking()
                        .unwrap();
                    assert_eq!(verdict.code(), "expired");
                }
            });
        }
    });
    assert_eq!(requests(&server).len(), 40);
}

#[test]
fn blocking_iterator_outlives_its_client() {
    let server = answering([json_response(
        200,
        &json!([fixtures::commerce_key(), fixtures::commerce_key()]),
    )]);
    let mut items = {
        let client = server.client();
        client.commerce().api_keys().list().items_blocking()
    };
    assert!(items.next().unwrap().is_ok());
    assert_eq!(thread::spawn(move || items.count()).join().unwrap(), 1);
}

#[test]
fn blocking_call_uses_the_callers_http_client() {
    let server = answering([me()]);
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("x-custom", "yes".parse().unwrap());
    let own = reqwest::Client::builder()
        .default_headers(headers)
        .build()
        .unwrap();
    server
        .builder()
        .http_client(own)
        .build()
        .unwrap()
        .whoami()
        .send_blocking()
        .unwrap();
    assert_eq!(only_header(&requests(&server)[0], "x-custom"), "yes");
}

#[tokio::test]
async fn blocking_call_works_in_spawn_blocking() {
    let server = Server::responding(me()).await;
    let client = server.client();
    // The same client is used for both kinds of calls.
    client.whoami().await.unwrap();
    let shared = client.clone();
    let id = tokio::task::spawn_blocking(move || shared.whoami().send_blocking().unwrap().id)
        .await
        .unwrap();
    assert_eq!(id, fixtures::KEY);
    client.whoami().await.unwrap();
    assert_eq!(server.requests().await.len(), 3);
    // The last clone is dropped inside a runtime, where dropping a runtime would panic.
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_call_works_in_block_in_place() {
    let server = Server::responding(me()).await;
    let client = server.client();
    let id = tokio::task::block_in_place(|| client.whoami().send_blocking().unwrap().id);
    assert_eq!(id, fixtures::KEY);
}

#[tokio::test]
async fn blocking_call_panics_on_a_runtime_worker() {
    let server = Server::responding(me()).await;
    let client = server.client();
    assert!(catch_unwind(AssertUnwindSafe(|| client.whoami().send_blocking())).is_err());
    let items = client.commerce().api_keys().list().items_blocking();
    assert!(catch_unwind(AssertUnwindSafe(move || items.count())).is_err());
    assert!(server.requests().await.is_empty());
    // The client still works.
    client.whoami().await.unwrap();
    let shared: Client = client.clone();
    tokio::task::spawn_blocking(move || shared.whoami().send_blocking().unwrap())
        .await
        .unwrap();
}
