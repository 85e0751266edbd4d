//! `tollkey-client` against a server in a process of its own.

use std::time::Duration;

use insta::assert_snapshot;
use tollkey_client::{Auth, Client};

use crate::{
    binary::{Tollkey, merchant},
    support::SECRET,
};

#[path = "../../../../examples/sdk-tour/src/tour.rs"]
mod tour;

#[actix_web::test]
async fn client_retries_until_the_server_is_back() {
    let tollkey = Tollkey::development().with("TOLLKEY_JWT_HS256_SECRET", SECRET);
    let server = tollkey.serve().await;
    let client = Client::builder()
        .base_url(format!("http://{}", server.address))
        .auth(Auth::bearer(merchant("acme")))
        .backoff(Duration::from_millis(200), Duration::from_secs(1))
        .max_retries(20)
        .build()
        .expect("a client");
    client
        .applications()
        .create("Before")
        .await
        .expect("an application");
    let address = server.address.to_string();
    server.stop().await;
    let again = tollkey.clone().with("TOLLKEY_LISTEN", &address);
    let (listed, server) = tokio::join!(client.applications().list(), again.serve());
    assert_eq!(listed.expect("a page").items[0].name, "Before");
    server.stop().await;
}

#[actix_web::test]
async fn tour_prints_its_steps() {
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let client = Client::builder().base_url(format!("http://{}", server.address));
    let token = tollkey.output_of(&["token", "--account", "acme"]).await;
    let service_key = tollkey.output_of(&["service-key", "create", "tour"]).await;
    let client = client
        .auth(Auth::bearer(token))
        .service_auth(Auth::service(service_key))
        .build()
        .expect("a client");
    let mut output = Vec::new();
    tour::walk(&client, &mut output).await.expect("the tour");
    let output = String::from_utf8(output).expect("text");
    // These two lines differ in each run.
    let (created, same): (Vec<_>, Vec<_>) = output
        .lines()
        .partition(|line| line.starts_with("created the "));
    assert_eq!(created.len(), 2, "{output}");
    assert!(created[1].ends_with(" Secret(redacted)"), "{output}");
    assert_snapshot!(same.join("\n"), @r#"
    == A key of an application

    == A resource server verifies it
    reading links: valid, a test key of acme
    writing links: insufficient_scope
    in live mode: wrong_mode
    an unknown key: unknown_key
    introspected: active true, scope "links:read"

    == The key describes itself
    application test active

    == Its application is disabled and enabled, then the key is revoked
    disabled: application_disabled
    enabled: valid
    revoked: revoked

    == A commerce key is rotated
    predecessor: valid
    successor: valid
    API key revoked successfully; predecessor: revoked

    == An account key creates another
    test secret created test publishable

    == Errors
    409 application_name_taken
    /name must have 1 to 255 characters
    /scopes unknown scope `links:destroy`

    == The audit log of the key
    api_key.revoked by merchant developer
    api_key.created by merchant developer

    Deleted the application; all keys of the tour are revoked.
    "#);
    server.stop().await;
}
