//! The examples `storefront-actix` and `vault-axum` over real HTTP, before the real server.

use std::{future::Future, io, net::SocketAddr};

use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tollkey_middleware::{Guard, GuardBuilder};

use crate::{
    storlaunch::{make, wanted},
    support::{App, Call, Key, Reply, each_backend},
};

/// An example that serves.
struct Shop {
    address: SocketAddr,
    guard: Guard,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Shop {
    /// Starts an example with a guard of its own.
    async fn start<F>(
        app: &App,
        guard: GuardBuilder,
        serve: impl FnOnce(std::net::TcpListener, Guard, oneshot::Receiver<()>) -> F,
    ) -> Self
    where
        F: Future<Output = io::Result<()>> + 'static,
    {
        let service_key = app.service_key().await.text;
        let guard = guard.url(format!("http://{}", app.running().address())).service_key(service_key);
        let guard = guard.connect().await.expect("a guard");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener for tokio");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let served = actix_web::rt::spawn(serve(listener, guard.clone(), stopped));
        Self { address, guard, stop, served }
    }

    /// Stops it in good order.
    async fn stop(self) {
        self.stop.send(()).expect("it serves");
        self.served.await.expect("no panic").expect("a good end");
        self.guard.shutdown().await;
    }

    fn call(&self, method: &str, path: &str) -> Call {
        Call::to(self.address, method, path)
    }
}

// The storefront

async fn storefront(app: &App) -> Shop {
    Shop::start(app, storefront_actix::guard(), |listener, guard, stopped| {
        storefront_actix::serve(listener, guard, async {
            let _ = stopped.await;
        })
    })
    .await
}

/// An account key of that account.
async fn account_key(app: &App, account: &str, environment: &str, access: &str) -> Key {
    make(app, &app.merchant(account), wanted(environment, access)).await
}

/// Status, and the code of a failure in its envelope.
fn said(reply: &Reply) -> (u16, Option<String>) {
    let json = reply.json();
    let members: Vec<_> = json.as_object().expect("an envelope").keys().collect();
    assert_eq!(members, ["data", "error", "meta"], "{reply}");
    assert_eq!(reply.header("content-type"), Some("application/json"), "{reply}");
    assert!(json["meta"]["requestId"].as_str().is_some_and(|id| id.starts_with("req_")), "{reply}");
    assert_eq!(json["data"].is_null(), !json["error"].is_null(), "{reply}");
    (reply.status, json["error"]["code"].as_str().map(str::to_owned))
}

fn refused(status: u16, code: &str) -> (u16, Option<String>) {
    (status, Some(code.to_owned()))
}

/// Makes a product; gives its id.
async fn product(shop: &Shop, key: &Key, name: &str, published: bool) -> String {
    let body = json!({"name": name, "price": {"amount": 1900, "currency": "EUR"}, "published": published, "stock": 3});
    let reply = shop.call("POST", "/v1/account/products").json(body).bearer(&key.text).await;
    assert_eq!(said(&reply), (201, None), "{reply}");
    reply.json()["data"]["id"].as_str().expect("an id").to_owned()
}

/// The names of the products that a list has.
async fn names(shop: &Shop, path: &str, key: &Key) -> Vec<String> {
    let reply = shop.call("GET", path).bearer(&key.text).await;
    assert_eq!(said(&reply), (200, None), "{reply}");
    let products = reply.json()["data"].as_array().expect("a list").clone();
    products.iter().map(|product| product["name"].as_str().expect("a name").to_owned()).collect()
}

const PRODUCTS: &str = "/v1/storefront/products";
const OWN_PRODUCTS: &str = "/v1/account/products";

#[actix_web::test]
async fn publishable_keys_read_the_catalogue_and_secret_keys_do_everything() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        let publishable = account_key(app, "acme", "live", "publishable").await;
        let commerce = app.commerce_key(&app.merchant("acme"), json!({})).await;
        let id = product(&shop, &secret, "Mug", true).await;
        let doomed = [product(&shop, &secret, "Cup", true).await, product(&shop, &secret, "Jar", true).await];
        let new = json!({"name": "Pot", "price": {"amount": 1, "currency": "EUR"}});
        let (ok, made) = ((200, None), (201, None));
        let forbidden = refused(403, "FORBIDDEN");
        let missing = refused(404, "NOT_FOUND");
        // What each is answered: with a publishable key, with a commerce key, with a secret key.
        let rows = [
            ("GET", "/v1/storefront/public/store".to_owned(), None, &ok, &ok, &ok),
            ("GET", PRODUCTS.to_owned(), None, &ok, &ok, &ok),
            ("GET", format!("{PRODUCTS}?page=1"), None, &ok, &ok, &ok),
            ("GET", format!("{PRODUCTS}/{id}"), None, &ok, &ok, &ok),
            ("GET", format!("{PRODUCTS}/prod_1"), None, &missing, &missing, &missing),
            ("GET", OWN_PRODUCTS.to_owned(), None, &forbidden, &forbidden, &ok),
            ("POST", OWN_PRODUCTS.to_owned(), Some(new), &forbidden, &forbidden, &made),
            ("PUT", "/v1/account/store".to_owned(), Some(json!({"name": "Pots"})), &forbidden, &forbidden, &ok),
            ("DELETE", format!("{OWN_PRODUCTS}/{}", doomed[0]), None, &forbidden, &forbidden, &ok),
            ("DELETE", format!("{OWN_PRODUCTS}/{}", doomed[0]), None, &forbidden, &forbidden, &missing),
            // The document: "Trying anything else returns 403 FORBIDDEN."
            ("GET", format!("{PRODUCTS}/{id}/reviews"), None, &forbidden, &missing, &missing),
            ("GET", "/v1/storefront/public".to_owned(), None, &forbidden, &missing, &missing),
            ("GET", "/v1/orders".to_owned(), None, &forbidden, &missing, &missing),
            ("GET", format!("{OWN_PRODUCTS}/../../storefront/products"), None, &forbidden, &forbidden, &missing),
        ];
        for (method, path, body, by_publishable, by_commerce, by_secret) in rows {
            let call = |key: Option<&Key>| {
                let call = shop.call(method, &path);
                let call = key.iter().fold(call, |call, key| call.bearer(&key.text));
                body.iter().fold(call, |call, body| call.json(body.clone()))
            };
            let nobody = call(None).await;
            assert_eq!(said(&nobody), refused(401, "INVALID_API_KEY"), "{method} {path}");
            assert_eq!(nobody.header("www-authenticate"), Some("Bearer realm=\"storefront\""), "{method} {path}");
            assert_eq!(said(&call(Some(&publishable)).await), *by_publishable, "publishable: {method} {path}");
            assert_eq!(said(&call(Some(&commerce)).await), *by_commerce, "commerce: {method} {path}");
            assert_eq!(said(&call(Some(&secret)).await), *by_secret, "secret: {method} {path}");
        }
        assert_eq!(names(&shop, OWN_PRODUCTS, &secret).await, ["Mug", "Jar", "Pot"], "what was refused was not done");
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn the_catalogue_shows_what_is_published_and_nothing_else_of_it() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        let publishable = account_key(app, "acme", "live", "publishable").await;
        let published = product(&shop, &secret, "Mug", true).await;
        let draft = product(&shop, &secret, "Cup", false).await;
        assert_eq!(names(&shop, PRODUCTS, &publishable).await, ["Mug"]);
        assert_eq!(names(&shop, PRODUCTS, &secret).await, ["Mug"]);
        assert_eq!(names(&shop, OWN_PRODUCTS, &secret).await, ["Mug", "Cup"]);
        let shown = |id: &str| shop.call("GET", &format!("{PRODUCTS}/{id}")).bearer(&publishable.text);
        let listed = json!({"id": published, "name": "Mug", "price": {"amount": 1900, "currency": "EUR"}});
        assert_eq!(shown(&published).await.json()["data"], listed, "neither stock nor when it was made");
        assert_eq!(said(&shown(&draft).await), refused(404, "NOT_FOUND"));
        let named = shop.call("PUT", "/v1/account/store").json(json!({"name": "Pots"})).bearer(&secret.text).await;
        assert_eq!(named.status, 200, "{named}");
        let store = shop.call("GET", "/v1/storefront/public/store").bearer(&publishable.text).await;
        assert_eq!(store.json()["data"], json!({"name": "Pots"}));
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn shops_of_other_accounts_and_of_the_other_environment_are_other_shops() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let live = account_key(app, "acme", "live", "secret").await;
        let id = product(&shop, &live, "Mug", true).await;
        for (account, environment) in [("acme", "test"), ("umbrella", "live")] {
            let other = account_key(app, account, environment, "secret").await;
            let reading = account_key(app, account, environment, "publishable").await;
            assert!(names(&shop, OWN_PRODUCTS, &other).await.is_empty(), "{account} {environment}");
            for key in [&other, &reading] {
                assert!(names(&shop, PRODUCTS, key).await.is_empty(), "{account} {environment}");
                let shown = shop.call("GET", &format!("{PRODUCTS}/{id}")).bearer(&key.text).await;
                assert_eq!(said(&shown), refused(404, "NOT_FOUND"), "{account} {environment}");
            }
            let deleted = shop.call("DELETE", &format!("{OWN_PRODUCTS}/{id}")).bearer(&other.text).await;
            assert_eq!(said(&deleted), refused(404, "NOT_FOUND"), "{account} {environment}");
            product(&shop, &other, "Another", true).await;
        }
        assert_eq!(names(&shop, PRODUCTS, &live).await, ["Mug"]);
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn browsers_may_read_the_catalogue_from_any_page_and_the_account_from_none() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let publishable = account_key(app, "acme", "live", "publishable").await;
        let from_page = |method: &str, path: &str| shop.call(method, path).header("origin", "https://pots.example");
        let preflight = |path: &str, method: &str| {
            from_page("OPTIONS", path)
                .header("access-control-request-method", method)
                .header("access-control-request-headers", "authorization")
        };
        let told = preflight(PRODUCTS, "GET").await;
        assert_eq!((told.status, told.header("access-control-allow-origin")), (200, Some("*")), "{told}");
        assert_eq!(told.header("access-control-allow-methods"), Some("GET"), "{told}");
        let headers = told.header("access-control-allow-headers").unwrap_or_default();
        let mut headers: Vec<_> = headers.split(',').map(str::trim).collect();
        headers.sort_unstable();
        assert_eq!(headers, ["authorization", "x-api-key"], "{told}");
        let wrong = preflight(PRODUCTS, "DELETE").await;
        assert_eq!(said(&wrong), refused(400, "VALIDATION_ERROR"), "{wrong}");
        assert_eq!(wrong.header("access-control-allow-origin"), None, "{wrong}");

        // The page reads what it is answered, a refusal too.
        let products = from_page("GET", PRODUCTS).bearer(&publishable.text).await;
        assert_eq!((products.status, products.header("access-control-allow-origin")), (200, Some("*")), "{products}");
        let nobody = from_page("GET", PRODUCTS).await;
        assert_eq!(said(&nobody), refused(401, "INVALID_API_KEY"), "{nobody}");
        assert_eq!(nobody.header("access-control-allow-origin"), Some("*"), "{nobody}");

        let account = preflight(OWN_PRODUCTS, "GET").await;
        assert_eq!(said(&account), refused(401, "INVALID_API_KEY"), "{account}");
        assert_eq!(account.header("access-control-allow-origin"), None, "{account}");
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn a_key_of_the_storefront_that_is_revoked_is_refused_at_once() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        for access in ["secret", "publishable"] {
            let key = account_key(app, "acme", "live", access).await;
            let ask = || shop.call("GET", PRODUCTS).bearer(&key.text);
            assert_eq!(said(&ask().await), (200, None));
            let asked = shop.guard.stats().misses;
            assert_eq!(said(&ask().await), (200, None));
            assert_eq!(shop.guard.stats().misses, asked, "it is remembered");
            let revoked = app.delete(&format!("/v1/account/api-keys/{}", key.id)).bearer(&secret.text).await;
            assert_eq!(revoked.status, 200, "{revoked}");
            assert_eq!(said(&ask().await), refused(401, "INVALID_API_KEY"), "{access}");
        }
        shop.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn the_storefront_says_in_its_envelope_what_is_wrong_with_a_body() {
    each_backend(async |app: &App| {
        let shop = storefront(app).await;
        let secret = account_key(app, "acme", "live", "secret").await;
        let send = |body: Value| shop.call("POST", OWN_PRODUCTS).json(body).bearer(&secret.text);
        let price = json!({"amount": 1900, "currency": "EUR"});
        for body in [
            json!({}),
            json!({"name": "", "price": price}),
            json!({"name": "n".repeat(101), "price": price}),
            json!({"name": "Mug", "price": {"amount": -1, "currency": "EUR"}}),
            json!({"name": "Mug", "price": {"amount": 1900, "currency": "euro"}}),
            json!({"name": "Mug", "price": price, "account": "umbrella"}),
        ] {
            assert_eq!(said(&send(body.clone()).await), refused(400, "VALIDATION_ERROR"), "{body}");
        }
        let large = json!({"name": "n".repeat(5000), "price": price});
        assert_eq!(said(&send(large).await), refused(413, "PAYLOAD_TOO_LARGE"));
        let other = shop.call("PATCH", OWN_PRODUCTS).bearer(&secret.text).await;
        assert_eq!(said(&other), refused(405, "METHOD_NOT_ALLOWED"));
        for number in 0..100 {
            product(&shop, &secret, &format!("Mug {number}"), false).await;
        }
        let full = send(json!({"name": "Mug", "price": price})).await;
        assert_eq!(said(&full), refused(503, "UNAVAILABLE"), "{full}");
        shop.stop().await;
    })
    .await;
}
