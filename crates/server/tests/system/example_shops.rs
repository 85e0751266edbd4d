//! The examples `storefront-actix` and `vault-axum` over real HTTP with the real server.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use actix_web::{HttpRequest, HttpResponse, HttpServer, web};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tollkey_core::{OperatingModel, feature::Feature};
use tollkey_middleware::{Guard, GuardBuilder};
use vault_axum::upstream::Upstream;

use crate::support::{
    App, Call, Key, Reply,
    account_keys::{create_key, key_request},
    each_backend,
};

struct Shop {
    address: SocketAddr,
    guard: Guard,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Shop {
    /// Starts an example with its own guard.
    async fn start<F>(
        app: &App,
        guard: GuardBuilder,
        serve: impl FnOnce(std::net::TcpListener, Guard, oneshot::Receiver<()>) -> F,
    ) -> Self
    where
        F: Future<Output = io::Result<()>> + 'static,
    {
        let service_key = app.service_key().await.text;
        let guard = guard
            .url(format!("http://{}", app.running().address()))
            .service_key(service_key);
        let guard = guard.connect().await.expect("a guard");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener
            .set_nonblocking(true)
            .expect("a listener for tokio");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let served = actix_web::rt::spawn(serve(listener, guard.clone(), stopped));
        Self {
            address,
            guard,
            stop,
            served,
        }
    }

    async fn stop(self) {
        self.stop.send(()).expect("a running example");
        self.served
            .await
            .expect("no panic")
            .expect("a clean shutdown");
        self.guard.shutdown().await;
    }

    fn call(&self, method: &str, path: &str) -> Call {
        Call::to(self.address, method, path)
    }
}

// The storefront

async fn storefront(app: &App) -> Shop {
    Shop::start(
        app,
        storefront_actix::guard(),
        |listener, guard, stopped| {
            storefront_actix::serve(listener, guard, async {
                let _ = stopped.await;
            })
        },
    )
    .await
}

async fn account_key(app: &App, account: &str, environment: &str, access: &str) -> Key {
    create_key(
        app,
        &app.management_token(account),
        key_request(environment, access),
    )
    .await
}

/// The status, and the code of an error. Asserts the envelope.
fn outcome(reply: &Reply) -> (u16, Option<String>) {
    let json = reply.json();
    let members: Vec<_> = json.as_object().expect("an envelope").keys().collect();
    assert_eq!(members, ["data", "error", "meta"], "{reply}");
    assert_eq!(
        reply.header("content-type"),
        Some("application/json"),
        "{reply}"
    );
    assert!(
        json["meta"]["requestId"]
            .as_str()
            .is_some_and(|id| id.starts_with("req_")),
        "{reply}"
    );
    assert_eq!(json["data"].is_null(), !json["error"].is_null(), "{reply}");
    (
        reply.status,
        json["error"]["code"].as_str().map(str::to_owned),
    )
}

fn error(status: u16, code: &str) -> (u16, Option<String>) {
    (status, Some(code.to_owned()))
}

/// Creates a product. Returns its ID.
async fn product(shop: &Shop, key: &Key, name: &str, published: bool) -> String {
    let body = json!({"name": name, "price": {"amount": 1900, "currency": "EUR"}, "published": published, "stock": 3});
    let reply = shop
        .call("POST", "/v1/account/products")
        .json(body)
        .bearer(&key.text)
        .await;
    assert_eq!(outcome(&reply), (201, None), "{reply}");
    reply.json()["data"]["id"]
        .as_str()
        .expect("an ID")
        .to_owned()
}

async fn names(shop: &Shop, path: &str, key: &Key) -> Vec<String> {
    let reply = shop.call("GET", path).bearer(&key.text).await;
    assert_eq!(outcome(&reply), (200, None), "{reply}");
    let products = reply.json()["data"].as_array().expect("a list").clone();
    products
        .iter()
        .map(|product| product["name"].as_str().expect("a name").to_owned())
        .collect()
}

const PRODUCTS: &str = "/v1/storefront/products";
const OWN_PRODUCTS: &str = "/v1/account/products";

#[actix_web::test]
async fn publishable_keys_read_the_catalog_only() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        let publishable = account_key(app, "acme", "live", "publishable").await;
        let commerce = app
            .commerce_key(&app.management_token("acme"), json!({}))
            .await;
        let id = product(&shop, &secret, "Mug", true).await;
        let doomed = [
            product(&shop, &secret, "Cup", true).await,
            product(&shop, &secret, "Jar", true).await,
        ];
        let new = json!({"name": "Pot", "price": {"amount": 1, "currency": "EUR"}});
        let (ok, created) = ((200, None), (201, None));
        let forbidden = error(403, "FORBIDDEN");
        let missing = error(404, "NOT_FOUND");
        // The expected results with a publishable key, with a commerce key and with a secret key.
        let rows = [
            (
                "GET",
                "/v1/storefront/public/store".to_owned(),
                None,
                &ok,
                &ok,
                &ok,
            ),
            ("GET", PRODUCTS.to_owned(), None, &ok, &ok, &ok),
            ("GET", format!("{PRODUCTS}?page=1"), None, &ok, &ok, &ok),
            ("GET", format!("{PRODUCTS}/{id}"), None, &ok, &ok, &ok),
            (
                "GET",
                format!("{PRODUCTS}/prod_1"),
                None,
                &missing,
                &missing,
                &missing,
            ),
            (
                "GET",
                OWN_PRODUCTS.to_owned(),
                None,
                &forbidden,
                &forbidden,
                &ok,
            ),
            (
                "POST",
                OWN_PRODUCTS.to_owned(),
                Some(new),
                &forbidden,
                &forbidden,
                &created,
            ),
            (
                "PUT",
                "/v1/account/store".to_owned(),
                Some(json!({"name": "Pots"})),
                &forbidden,
                &forbidden,
                &ok,
            ),
            (
                "DELETE",
                format!("{OWN_PRODUCTS}/{}", doomed[0]),
                None,
                &forbidden,
                &forbidden,
                &ok,
            ),
            (
                "DELETE",
                format!("{OWN_PRODUCTS}/{}", doomed[0]),
                None,
                &forbidden,
                &forbidden,
                &missing,
            ),
            // The document: "Trying anything else returns 403 FORBIDDEN."
            (
                "GET",
                format!("{PRODUCTS}/{id}/reviews"),
                None,
                &forbidden,
                &missing,
                &missing,
            ),
            (
                "GET",
                "/v1/storefront/public".to_owned(),
                None,
                &forbidden,
                &missing,
                &missing,
            ),
            (
                "GET",
                "/v1/orders".to_owned(),
                None,
                &forbidden,
                &missing,
                &missing,
            ),
            (
                "GET",
                format!("{OWN_PRODUCTS}/../../storefront/products"),
                None,
                &forbidden,
                &forbidden,
                &missing,
            ),
        ];
        for (method, path, body, by_publishable, by_commerce, by_secret) in rows {
            let call = |key: Option<&Key>| {
                let call = shop.call(method, &path);
                let call = key.iter().fold(call, |call, key| call.bearer(&key.text));
                body.iter().fold(call, |call, body| call.json(body.clone()))
            };
            let anonymous = call(None).await;
            assert_eq!(
                outcome(&anonymous),
                error(401, "INVALID_API_KEY"),
                "{method} {path}"
            );
            assert_eq!(
                anonymous.header("www-authenticate"),
                Some("Bearer realm=\"storefront\""),
                "{method} {path}"
            );
            assert_eq!(
                outcome(&call(Some(&publishable)).await),
                *by_publishable,
                "publishable: {method} {path}"
            );
            assert_eq!(
                outcome(&call(Some(&commerce)).await),
                *by_commerce,
                "commerce: {method} {path}"
            );
            assert_eq!(
                outcome(&call(Some(&secret)).await),
                *by_secret,
                "secret: {method} {path}"
            );
        }
        assert_eq!(
            names(&shop, OWN_PRODUCTS, &secret).await,
            ["Mug", "Jar", "Pot"],
            "rejected requests changed nothing"
        );
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn catalog_shows_published_products_without_stock() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        let publishable = account_key(app, "acme", "live", "publishable").await;
        let published = product(&shop, &secret, "Mug", true).await;
        let draft = product(&shop, &secret, "Cup", false).await;
        assert_eq!(names(&shop, PRODUCTS, &publishable).await, ["Mug"]);
        assert_eq!(names(&shop, PRODUCTS, &secret).await, ["Mug"]);
        assert_eq!(names(&shop, OWN_PRODUCTS, &secret).await, ["Mug", "Cup"]);
        let shown = |id: &str| {
            shop.call("GET", &format!("{PRODUCTS}/{id}"))
                .bearer(&publishable.text)
        };
        let listed =
            json!({"id": published, "name": "Mug", "price": {"amount": 1900, "currency": "EUR"}});
        assert_eq!(
            shown(&published).await.json()["data"],
            listed,
            "without the stock and the creation time"
        );
        assert_eq!(outcome(&shown(&draft).await), error(404, "NOT_FOUND"));
        let named = shop
            .call("PUT", "/v1/account/store")
            .json(json!({"name": "Pots"}))
            .bearer(&secret.text)
            .await;
        assert_eq!(named.status, 200, "{named}");
        let store = shop
            .call("GET", "/v1/storefront/public/store")
            .bearer(&publishable.text)
            .await;
        assert_eq!(store.json()["data"], json!({"name": "Pots"}));
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn shops_are_separate_by_account_and_environment() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let live = account_key(app, "acme", "live", "secret").await;
        let id = product(&shop, &live, "Mug", true).await;
        for (account, environment) in [("acme", "test"), ("umbrella", "live")] {
            let other = account_key(app, account, environment, "secret").await;
            let reading = account_key(app, account, environment, "publishable").await;
            assert!(
                names(&shop, OWN_PRODUCTS, &other).await.is_empty(),
                "{account} {environment}"
            );
            for key in [&other, &reading] {
                assert!(
                    names(&shop, PRODUCTS, key).await.is_empty(),
                    "{account} {environment}"
                );
                let shown = shop
                    .call("GET", &format!("{PRODUCTS}/{id}"))
                    .bearer(&key.text)
                    .await;
                assert_eq!(
                    outcome(&shown),
                    error(404, "NOT_FOUND"),
                    "{account} {environment}"
                );
            }
            let deleted = shop
                .call("DELETE", &format!("{OWN_PRODUCTS}/{id}"))
                .bearer(&other.text)
                .await;
            assert_eq!(
                outcome(&deleted),
                error(404, "NOT_FOUND"),
                "{account} {environment}"
            );
            product(&shop, &other, "Another", true).await;
        }
        assert_eq!(names(&shop, PRODUCTS, &live).await, ["Mug"]);
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn cors_allows_the_catalog_and_not_the_account() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let publishable = account_key(app, "acme", "live", "publishable").await;
        let from_page = |method: &str, path: &str| {
            shop.call(method, path)
                .header("origin", "https://pots.example")
        };
        let preflight = |path: &str, method: &str| {
            from_page("OPTIONS", path)
                .header("access-control-request-method", method)
                .header("access-control-request-headers", "authorization")
        };
        let response = preflight(PRODUCTS, "GET").await;
        assert_eq!(
            (
                response.status,
                response.header("access-control-allow-origin")
            ),
            (200, Some("*")),
            "{response}"
        );
        assert_eq!(
            response.header("access-control-allow-methods"),
            Some("GET"),
            "{response}"
        );
        let headers = response
            .header("access-control-allow-headers")
            .unwrap_or_default();
        let mut headers: Vec<_> = headers.split(',').map(str::trim).collect();
        headers.sort_unstable();
        assert_eq!(headers, ["authorization", "x-api-key"], "{response}");
        let wrong = preflight(PRODUCTS, "DELETE").await;
        assert_eq!(outcome(&wrong), error(400, "VALIDATION_ERROR"), "{wrong}");
        assert_eq!(wrong.header("access-control-allow-origin"), None, "{wrong}");

        // The page can read the response, even a rejection.
        let products = from_page("GET", PRODUCTS).bearer(&publishable.text).await;
        assert_eq!(
            (
                products.status,
                products.header("access-control-allow-origin")
            ),
            (200, Some("*")),
            "{products}"
        );
        let anonymous = from_page("GET", PRODUCTS).await;
        assert_eq!(
            outcome(&anonymous),
            error(401, "INVALID_API_KEY"),
            "{anonymous}"
        );
        assert_eq!(
            anonymous.header("access-control-allow-origin"),
            Some("*"),
            "{anonymous}"
        );

        let account = preflight(OWN_PRODUCTS, "GET").await;
        assert_eq!(
            outcome(&account),
            error(401, "INVALID_API_KEY"),
            "{account}"
        );
        assert_eq!(
            account.header("access-control-allow-origin"),
            None,
            "{account}"
        );
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn revoked_key_is_rejected_by_the_storefront() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        for access in ["secret", "publishable"] {
            let key = account_key(app, "acme", "live", access).await;
            let request = || shop.call("GET", PRODUCTS).bearer(&key.text);
            assert_eq!(outcome(&request().await), (200, None));
            let misses = shop.guard.stats().misses;
            assert_eq!(outcome(&request().await), (200, None));
            assert_eq!(shop.guard.stats().misses, misses, "the key is cached");
            let revoked = app
                .delete(&format!("/v1/account/api-keys/{}", key.id))
                .bearer(&secret.text)
                .await;
            assert_eq!(revoked.status, 200, "{revoked}");
            assert_eq!(
                outcome(&request().await),
                error(401, "INVALID_API_KEY"),
                "{access}"
            );
        }
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn storefront_reports_invalid_bodies_in_its_envelope() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        let send = |body: Value| {
            shop.call("POST", OWN_PRODUCTS)
                .json(body)
                .bearer(&secret.text)
        };
        let price = json!({"amount": 1900, "currency": "EUR"});
        for body in [
            json!({}),
            json!({"name": "", "price": price}),
            json!({"name": "n".repeat(101), "price": price}),
            json!({"name": "Mug", "price": {"amount": -1, "currency": "EUR"}}),
            json!({"name": "Mug", "price": {"amount": 1900, "currency": "euro"}}),
            json!({"name": "Mug", "price": price, "account": "umbrella"}),
        ] {
            assert_eq!(
                outcome(&send(body.clone()).await),
                error(400, "VALIDATION_ERROR"),
                "{body}"
            );
        }
        let large = json!({"name": "n".repeat(5000), "price": price});
        assert_eq!(outcome(&send(large).await), error(413, "PAYLOAD_TOO_LARGE"));
        let other = shop.call("PATCH", OWN_PRODUCTS).bearer(&secret.text).await;
        assert_eq!(outcome(&other), error(405, "METHOD_NOT_ALLOWED"));
        for number in 0..100 {
            product(&shop, &secret, &format!("Mug {number}"), false).await;
        }
        let full = send(json!({"name": "Mug", "price": price})).await;
        assert_eq!(outcome(&full), error(503, "UNAVAILABLE"), "{full}");
        shop.stop().await;
    })
    .await;
}

// The vault

/// The timeout of the receiver in these tests.
const FORWARDING: Duration = Duration::from_secs(10);
const NUMBER: &str = "4242424242424242";

async fn vault(app: &App, upstream: Upstream) -> Shop {
    Shop::start(app, vault_axum::guard(), |listener, guard, stopped| async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stopped = async {
            let _ = stopped.await;
        };
        vault_axum::serve(listener, guard, upstream, stopped).await
    })
    .await
}

/// Starts a receiver that runs until the test process ends: `/echo` returns the request, the other paths misbehave.
fn receiver(path: &str, timeout: Duration) -> Upstream {
    async fn echo(request: HttpRequest, body: web::Bytes) -> HttpResponse {
        let mut headers: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
        headers.sort_unstable();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        HttpResponse::Accepted()
            .json(json!({"method": request.method().as_str(), "headers": headers, "body": body}))
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "http://{}{path}",
        listener.local_addr().expect("an address")
    );
    let app = || {
        actix_web::App::new()
            .route("/echo", web::to(echo))
            .route("/silent", web::to(std::future::pending::<HttpResponse>))
            .route(
                "/large",
                web::to(async || HttpResponse::Ok().body("x".repeat(100_000))),
            )
            .route(
                "/text",
                web::to(async || HttpResponse::InternalServerError().body("broken")),
            )
            .route(
                "/moved",
                web::to(async || {
                    HttpResponse::Found()
                        .insert_header(("location", "/echo"))
                        .finish()
                }),
            )
    };
    let server = HttpServer::new(app)
        .workers(1)
        .disable_signals()
        .listen(listener)
        .expect("a listener");
    actix_web::rt::spawn(server.run());
    Upstream::new(&url, timeout).expect("a receiver")
}

fn echo() -> Upstream {
    receiver("/echo", FORWARDING)
}

/// A request to the vault, with or without a merchant.
fn request(shop: &Shop, key: &Key, merchant: Option<&str>, method: &str, path: &str) -> Call {
    let call = shop.call(method, path).header("x-api-key", &key.text);
    merchant.iter().fold(call, |call, merchant| {
        call.header("x-merchant-id", merchant)
    })
}

async fn key_of_acme(app: &App, body: Value) -> Key {
    app.commerce_key(&app.management_token("acme"), body).await
}

/// Stores a card of a merchant in the vault. Returns its token.
async fn store_card(shop: &Shop, key: &Key, merchant: &str) -> Value {
    let body = json!({"number": NUMBER, "holder": "Ada", "expiry": "12/30"});
    let reply = request(
        shop,
        key,
        None,
        "POST",
        &format!("/merchants/{merchant}/tokens"),
    )
    .json(body)
    .await;
    assert_eq!(reply.status, 201, "{reply}");
    reply.json()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// The IDs of the tokens that a key can read.
async fn token_ids(shop: &Shop, key: &Key, merchant: Option<&str>) -> Vec<String> {
    let reply = request(shop, key, merchant, "GET", "/tokens").await;
    assert_eq!(reply.status, 200, "{reply}");
    reply
        .json()
        .as_array()
        .expect("a list")
        .iter()
        .map(|token| text(&token["id"]).to_owned())
        .collect()
}

/// A request for each feature, with this token and payment data.
fn requests(token: &str, data: &str) -> [(Feature, &'static str, String, Option<Value>); 5] {
    let message = json!({"amount": 1900});
    [
        (Feature::TokensList, "GET", "/tokens".to_owned(), None),
        (
            Feature::TokensRetrieve,
            "GET",
            format!("/tokens/{token}"),
            None,
        ),
        (
            Feature::PaymentDataList,
            "GET",
            format!("/tokens/{token}/payment-data"),
            None,
        ),
        (
            Feature::PaymentDataForward,
            "POST",
            format!("/payment-data/{data}/forward"),
            Some(json!({"message": message})),
        ),
        (
            Feature::CardholderDataForward,
            "POST",
            "/forward".to_owned(),
            Some(json!({"token": token, "message": message})),
        ),
    ]
}

/// Stores a card of merchant `m_1`. Returns the IDs of the token and of its payment data.
async fn stored_card(shop: &Shop, full: &Key) -> (String, String) {
    let token = text(&store_card(shop, full, "m_1").await["id"]).to_owned();
    let data = request(
        shop,
        full,
        None,
        "GET",
        &format!("/tokens/{token}/payment-data"),
    )
    .await
    .json();
    assert_eq!(data.as_array().map(Vec::len), Some(1), "{data}");
    let data = text(&data[0]["id"]).to_owned();
    (token, data)
}

#[actix_web::test]
async fn features_and_operating_model_limit_a_scoped_key() {
    each_backend(async |app: &App| {
        let shop = vault(app, echo()).await;
        let full = key_of_acme(app, json!({})).await;
        let (token, data) = stored_card(&shop, &full).await;
        let mut all = Vec::new();
        for model in [OperatingModel::Ecosystem, OperatingModel::ManagedEcosystem] {
            app.set_model("acme", model.as_str()).await;
            let mut keys = vec![(None, key_of_acme(app, json!({"merchants": ["m_1"]})).await)];
            for feature in model.features() {
                let body = json!({"merchants": ["m_1"], "features": [feature.as_str()]});
                keys.push((Some(*feature), key_of_acme(app, body).await));
            }
            for (own, key) in &keys {
                for (feature, method, path, body) in requests(&token, &data) {
                    let call = request(&shop, key, Some("m_1"), method, &path);
                    let reply = body
                        .iter()
                        .fold(call, |call, body| call.json(body.clone()))
                        .await;
                    let may = own.map_or(model.features().contains(&feature), |own| own == feature);
                    assert_eq!(
                        reply.status,
                        if may { 200 } else { 403 },
                        "{model} {own:?}: {method} {path}\n{reply}"
                    );
                    assert!(may || reply.code() == "route_not_allowed", "{reply}");
                }
                // Routes of no feature.
                let storing = json!({"number": NUMBER, "holder": "Ada", "expiry": "12/30"});
                let reply = request(&shop, key, Some("m_1"), "POST", "/merchants/m_1/tokens")
                    .json(storing)
                    .await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "route_not_allowed"),
                    "{reply}"
                );
                let reply = request(&shop, key, Some("m_1"), "GET", "/nothing").await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "route_not_allowed"),
                    "{reply}"
                );
            }
            all.extend(keys);
        }
        // The model is checked with every request, so a change also applies to existing and cached keys.
        let list = || request(&shop, &all[0].1, Some("m_1"), "GET", "/tokens");
        assert_eq!(list().await.status, 403, "the managed model has no list");
        app.set_model("acme", "ecosystem").await;
        assert_eq!(list().await.status, 200);
        app.set_model("acme", "platform").await;
        for (own, key) in &all {
            for (_, method, path, body) in requests(&token, &data) {
                let call = request(&shop, key, Some("m_1"), method, &path);
                let reply = body
                    .iter()
                    .fold(call, |call, body| call.json(body.clone()))
                    .await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "route_not_allowed"),
                    "{own:?}: {reply}"
                );
            }
        }
        // Models do not apply to a key without restrictions.
        for (_, method, path, body) in requests(&token, &data) {
            let call = request(&shop, &full, None, method, &path);
            let reply = body
                .iter()
                .fold(call, |call, body| call.json(body.clone()))
                .await;
            assert_eq!(reply.status, 200, "{method} {path}\n{reply}");
        }
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn key_of_a_merchant_reads_only_its_tokens() {
    each_backend(async |app: &App| {
        let shop = vault(app, echo()).await;
        app.set_model("acme", "ecosystem").await;
        let full = key_of_acme(app, json!({})).await;
        let one = key_of_acme(app, json!({"merchants": ["m_1"]})).await;
        let both = key_of_acme(app, json!({"merchants": ["m_1", "m_2"]})).await;
        let any = key_of_acme(app, json!({"features": ["tokens.list"]})).await;
        let mut tokens = Vec::new();
        for merchant in ["m_1", "m_2", "m_3"] {
            let token = store_card(&shop, &full, merchant).await;
            assert_eq!(token["merchant"], merchant);
            tokens.push(text(&token["id"]).to_owned());
        }
        let [first, second, third] = [0, 1, 2].map(|at: usize| tokens[at].clone());
        for (key, merchant, expected) in [
            (&one, "m_1", &first),
            (&both, "m_1", &first),
            (&both, "m_2", &second),
            (&any, "m_3", &third),
            (&full, "m_2", &second),
        ] {
            assert_eq!(
                token_ids(&shop, key, Some(merchant)).await,
                std::slice::from_ref(expected),
                "{merchant}"
            );
        }
        for key in [&any, &full] {
            assert_eq!(
                token_ids(&shop, key, None).await,
                tokens,
                "without a merchant restriction"
            );
            assert!(token_ids(&shop, key, Some("m_4")).await.is_empty());
        }
        let (list, error) = ("/tokens", "merchant_not_allowed");
        for (key, merchant) in [
            (&one, Some("m_2")),
            (&one, None),
            (&both, Some("m_3")),
            (&full, Some("m 1")),
        ] {
            let reply = request(&shop, key, merchant, "GET", list).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (403, error),
                "{merchant:?}: {reply}"
            );
        }
        let twice = request(&shop, &both, Some("m_1"), "GET", list)
            .header("x-merchant-id", "m_2")
            .await;
        assert_eq!(
            (twice.status, twice.code().as_str()),
            (403, error),
            "{twice}"
        );
        // The token of another merchant is not found on any route.
        let listed = request(
            &shop,
            &full,
            None,
            "GET",
            &format!("/tokens/{second}/payment-data"),
        )
        .await
        .json();
        for (feature, method, path, body) in requests(&second, text(&listed[0]["id"]))
            .into_iter()
            .skip(1)
        {
            for (key, merchant) in [(&one, "m_1"), (&both, "m_1"), (&full, "m_3")] {
                let call = request(&shop, key, Some(merchant), method, &path);
                let reply = body
                    .iter()
                    .fold(call, |call, body| call.json(body.clone()))
                    .await;
                assert_eq!(reply.status, 404, "{feature:?} {merchant}: {reply}");
            }
        }
        // The merchant of a new token comes from the path, not from the header.
        let body = json!({"number": NUMBER, "holder": "Ada", "expiry": "12/30"});
        let created = request(&shop, &full, Some("m_2"), "POST", "/merchants/m_5/tokens")
            .json(body.clone())
            .await;
        assert_eq!(
            (created.status, &created.json()["merchant"]),
            (201, &json!("m_5")),
            "{created}"
        );
        let odd = request(&shop, &full, None, "POST", "/merchants/m%205/tokens")
            .json(body)
            .await;
        assert_eq!((odd.status, odd.code().as_str()), (403, error), "{odd}");
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn vaults_are_separate_and_require_commerce_keys() {
    each_backend(async |app: &App| {
        let shop = vault(app, echo()).await;
        let live = key_of_acme(app, json!({})).await;
        let (token, data) = stored_card(&shop, &live).await;
        let umbrella = app.management_token("umbrella");
        let others = [
            key_of_acme(app, json!({"mode": "test"})).await,
            app.commerce_key(&umbrella, json!({})).await,
        ];
        for other in &others {
            assert!(token_ids(&shop, other, None).await.is_empty());
            for (feature, method, path, body) in requests(&token, &data).into_iter().skip(1) {
                let call = request(&shop, other, None, method, &path);
                let reply = body
                    .iter()
                    .fold(call, |call, body| call.json(body.clone()))
                    .await;
                assert_eq!(reply.status, 404, "{feature:?}: {reply}");
            }
        }
        let links = key_of_acme(app, json!({"scopes": ["links:read", "links:write"]})).await;
        let storing = ("POST", "/merchants/m_1/tokens".to_owned());
        for (method, path) in requests(&token, &data)
            .map(|(_, method, path, _)| (method, path))
            .into_iter()
            .chain([storing])
        {
            let anonymous = shop.call(method, &path).await;
            assert_eq!(
                (anonymous.status, anonymous.code().as_str()),
                (401, "missing_credentials"),
                "{anonymous}"
            );
            // The document of the example has one header for keys; others are not read.
            let bearer = shop.call(method, &path).bearer(&live.text).await;
            assert_eq!(
                (bearer.status, bearer.code().as_str()),
                (401, "missing_credentials"),
                "{bearer}"
            );
            let reply = request(&shop, &links, None, method, &path).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (403, "insufficient_scope"),
                "{method} {path}: {reply}"
            );
        }
        let misses = shop.guard.stats().misses;
        assert_eq!(token_ids(&shop, &live, None).await, [token]);
        assert_eq!(shop.guard.stats().misses, misses, "the key is cached");
        let revoked = app
            .post(&format!("/api-keys/{}/revoke", live.id), json!({}))
            .bearer(&app.management_token("acme"))
            .await;
        assert_eq!(revoked.status, 200, "{revoked}");
        let reply = request(&shop, &live, None, "GET", "/tokens").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (401, "invalid_api_key"),
            "{reply}"
        );
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn vault_forwards_only_stored_data_and_the_message() {
    each_backend(async |app: &App| {
        let shop = vault(app, echo()).await;
        let key = key_of_acme(app, json!({})).await;
        let (token, data) = stored_card(&shop, &key).await;
        let message = json!({"amount": 1900, "note": ["a", null]});
        let sent = [
            (
                format!("/payment-data/{data}/forward"),
                json!({"message": message}),
                json!({"id": data, "token": token, "last4": "4242", "expiry": "12/30"}),
            ),
            (
                "/forward".to_owned(),
                json!({"token": token, "message": message}),
                json!({"token": token, "holder": "Ada", "last4": "4242"}),
            ),
        ];
        for (path, body, forwarded) in sent {
            let reply = request(&shop, &key, Some("m_1"), "POST", &path)
                .json(body)
                .header("cookie", "a=b")
                .await;
            assert_eq!(reply.status, 200, "{reply}");
            let response = json!({
                "method": "POST",
                "headers": ["accept", "content-length", "content-type", "host"],
                "body": {"merchant": "m_1", "data": forwarded, "message": message},
            });
            assert_eq!(reply.json(), json!({"status": 202, "body": response}));
        }
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn vault_reports_failures_of_the_receiver() {
    each_backend(async |app: &App| {
        let key = key_of_acme(app, json!({})).await;
        let closed_port = Upstream::new("http://127.0.0.1:1/", FORWARDING).expect("a receiver");
        for (upstream, status, expected) in [
            (
                receiver("/text", FORWARDING),
                200,
                json!({"status": 500, "body": "broken"}),
            ),
            (
                receiver("/moved", FORWARDING),
                200,
                json!({"status": 302, "body": ""}),
            ),
            (
                receiver("/large", FORWARDING),
                502,
                json!("The receiver's response is too large."),
            ),
            (
                receiver("/silent", Duration::from_millis(200)),
                504,
                json!("The receiver did not respond in time."),
            ),
            (closed_port, 502, json!("The receiver cannot be reached.")),
        ] {
            let shop = vault(app, upstream).await;
            let token = store_card(&shop, &key, "m_1").await;
            let body = json!({"token": token["id"], "message": null});
            let reply = request(&shop, &key, None, "POST", "/forward")
                .json(body)
                .await;
            let json = reply.json();
            let result = if status == 200 {
                &json
            } else {
                &json["detail"]
            };
            assert_eq!((reply.status, result), (status, &expected), "{reply}");
            shop.stop().await;
        }
        for url in ["", "vault.example", "ftp://vault.example/"] {
            assert!(Upstream::new(url, FORWARDING).is_err(), "{url}");
        }
    })
    .await;
}

#[actix_web::test]
async fn vault_responses_contain_no_card_number() {
    each_backend(async |app: &App| {
        let shop = vault(app, echo()).await;
        let key = key_of_acme(app, json!({})).await;
        let (token, data) = stored_card(&shop, &key).await;
        let full = |number: Value| json!({"number": number, "holder": "Ada", "expiry": "12/30"});
        let storing =
            |body: Value| request(&shop, &key, None, "POST", "/merchants/m_1/tokens").json(body);
        let number: u64 = NUMBER.parse().expect("a number");
        let mut replies = Vec::new();
        for (body, status) in [
            (full(json!(NUMBER)), 201),
            (full(json!(number)), 400),
            (full(json!(format!("{NUMBER}1"))), 400),
            (full(json!("4242")), 400),
            (full(json!([NUMBER])), 400),
            (json!({NUMBER: "number"}), 400),
            (
                json!({"number": NUMBER, "holder": "n".repeat(5000), "expiry": "12/30"}),
                413,
            ),
        ] {
            let reply = storing(body.clone()).await;
            assert_eq!(reply.status, status, "{body}: {reply}");
            replies.push(reply);
        }
        for (_, method, path, body) in requests(&token, &data) {
            let call = request(&shop, &key, None, method, &path);
            replies.push(
                body.iter()
                    .fold(call, |call, body| call.json(body.clone()))
                    .await,
            );
        }
        for reply in replies {
            assert!(!reply.body.contains("42424242"), "{reply}");
        }
        shop.stop().await;
    })
    .await;
}
