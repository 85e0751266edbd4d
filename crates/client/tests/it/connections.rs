//! Connections: shared, kept alive, and left behind when they go silent.

use tollkey_client::{Client, reqwest};

use crate::{
    said,
    support::{Does, Wire, on_the_wire},
};

fn me() -> Does {
    Does::Serves(on_the_wire("200 OK", "application/json", &said::whoami()))
}

#[tokio::test]
async fn new_connections_are_separate_from_the_old_ones() {
    let wire = Wire::that([me()]).await;
    let client = wire.builder().header("x-team", "checkout").build().unwrap().for_account("acme");
    for _ in 0..2 {
        client.commerce().api_keys().list().await.unwrap_err();
    }
    assert_eq!(wire.connections(), 1);
    let separate = client.with_new_connections().unwrap();
    for client in [&separate, &client, &separate] {
        client.commerce().api_keys().list().await.unwrap_err();
    }
    assert_eq!(wire.connections(), 2);
    // Everything else stays.
    let heard = wire.heard();
    assert_eq!(heard.len(), 5);
    assert!(heard.iter().all(|request| *request == heard[0]), "{heard:?}");
    assert!(heard[0].contains("account=acme") && heard[0].contains("x-team: checkout"), "{}", heard[0]);
}

#[tokio::test]
async fn pool_of_a_given_http_client_is_shared() {
    let wire = Wire::that([me()]).await;
    let client: Client = wire.builder().http_client(reqwest::Client::new()).build().unwrap();
    client.whoami().await.unwrap();
    client.with_new_connections().unwrap().whoami().await.unwrap();
    assert_eq!(wire.connections(), 1);
}

#[tokio::test]
async fn blocking_calls_get_new_connections_too() {
    let wire = Wire::that([me()]).await;
    let client = wire.builder().build().unwrap();
    let connections = tokio::task::spawn_blocking(move || {
        client.whoami().send_blocking().unwrap();
        client.whoami().send_blocking().unwrap();
        let separate = client.with_new_connections().unwrap();
        separate.whoami().send_blocking().unwrap();
        client.whoami().send_blocking().unwrap();
        wire.connections()
    });
    assert_eq!(connections.await.unwrap(), 2);
}
