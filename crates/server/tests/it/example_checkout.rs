//! `examples/checkout-axum` with the real server.

use serde_json::json;

use crate::{
    binary::{Tollkey, merchant},
    examples::Example,
};
use tollkey_store::testing::backends;

#[actix_web::test]
async fn it_runs_as_a_program() {
    for database in backends() {
        let server = Tollkey::on(&database).serve().await;
        let service_key = server.service_key().await;
        let created =
            server.post("/api-keys", json!({"name": "Web", "scopes": ["links:read"]})).bearer(&merchant("acme"));
        let created = created.await.json();
        let app = Example::CheckoutAxum.start(server.address, &service_key.text).await;
        let reply = app.get("/links").bearer(created["api_key"].as_str().expect("a key")).await;
        assert_eq!((reply.status, &*reply.body), (200, "[]"), "{reply}");
        let reply = app.get("/links").await;
        assert_eq!(reply.status, 401, "{reply}");
        app.stop().await;
        server.stop().await;
    }
}
