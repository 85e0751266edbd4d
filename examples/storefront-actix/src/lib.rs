//! A storefront behind Tollkey, as storlaunch documents it: a catalog that browsers read with publishable
//! keys (`pk_…`), and routes of the account that accept secret keys (`sk_…`) only.
//!
//! | module | contents |
//! |---|---|
//! | this one | the routes, and what each requires of a key |
//! | [`handlers`] | the handlers |
//! | [`shops`] | the data, separated by account and mode |
//! | [`envelope`] | the envelope of every response |
#![forbid(unsafe_code)]

pub mod envelope;
pub mod handlers;
pub mod shops;

use std::{future::Future, io, net::TcpListener};

use actix_cors::Cors;
use actix_web::{
    App, Error, HttpServer,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header,
    middleware::{Next, from_fn},
    web::{self, Data, JsonConfig, ServiceConfig},
};
use tollkey_actix::{Family, Guard, GuardBuilder, Tollkey, VerifiedKey};

use crate::{envelope::Failure, shops::Shops};

/// The maximum size of a body, in bytes.
const MAX_BODY: usize = 4096;
/// How many seconds requests in flight may take after the server is told to stop.
const LAST_REQUESTS: u64 = 10;
/// How many seconds a browser may cache a preflight response.
const PREFLIGHT: usize = 3600;

/// Returns a guard that accepts keys in all headers that Tollkey supports.
pub fn guard() -> GuardBuilder {
    Guard::builder().realm("storefront")
}

/// Adds the routes of the API.
pub fn routes(config: &mut ServiceConfig, guard: &Guard, shops: &Shops) {
    // Tollkey has the list of routes that publishable keys can call, so it is not repeated here. CORS is
    // outside the guard, because a preflight request presents no key.
    let catalogue = web::scope("/v1/storefront")
        .route("/public/store", web::get().to(handlers::store))
        .route("/products", web::get().to(handlers::products))
        .route("/products/{id}", web::get().to(handlers::product))
        .wrap(Tollkey::new(guard.clone()))
        .wrap(for_browsers());

    let account = web::scope("/account")
        .route("/store", web::put().to(handlers::name_store))
        .service(
            web::resource("/products")
                .get(handlers::own_products)
                .post(handlers::create_product),
        )
        .route("/products/{id}", web::delete().to(handlers::delete_product))
        .wrap(from_fn(require_secret_key));

    // The guard is around all other routes, so that a request without a key does not reveal which exist.
    let rest = web::scope("/v1")
        .service(account)
        .wrap(Tollkey::new(guard.clone()));

    let json = JsonConfig::default()
        .limit(MAX_BODY)
        .error_handler(|error, _| Failure::unreadable(&error).into());
    config
        .app_data(Data::new(shops.clone()))
        .app_data(json)
        .service(catalogue)
        .service(rest);
}

/// Allows any web page to read the catalog: a publishable key is meant for browsers.
fn for_browsers() -> Cors {
    Cors::default()
        .allow_any_origin()
        .send_wildcard()
        .allowed_methods(["GET"])
        .allowed_headers([
            header::AUTHORIZATION,
            header::HeaderName::from_static("x-api-key"),
        ])
        .expose_headers(["ratelimit", "ratelimit-policy", "retry-after"])
        .max_age(PREFLIGHT)
}

/// Allows secret keys only. Tollkey already rejects publishable keys here, but not those of other families.
async fn require_secret_key(
    key: VerifiedKey,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if key.family() != Family::Secret {
        return Err(Failure::forbidden("A secret key (sk_…) is required.").into());
    }
    next.call(request).await
}

/// Serves the API until `stopped` resolves. Then waits for the requests in flight, for at most ten seconds.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    guard: Guard,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let shops = Shops::default();
    let app = move || {
        App::new()
            .configure(|config| routes(config, &guard, &shops))
            .wrap(from_fn(envelope::in_the_envelope))
    };
    HttpServer::new(app)
        .shutdown_signal(stopped)
        .shutdown_timeout(LAST_REQUESTS)
        .listen(listener)?
        .run()
        .await
}
