//! A storefront behind Tollkey, as storlaunch documents it: a catalogue that browsers read with publishable keys (`pk_…`), and the
//! account's own routes, which take secret keys (`sk_…`) alone.
//!
//! | module | says |
//! |---|---|
//! | here | the routes, and what each needs of a key |
//! | [`handlers`] | what is done on them |
//! | [`shops`] | what is kept, every account's live and test data apart |
//! | [`answer`] | the envelope that every answer comes in |
#![forbid(unsafe_code)]

pub mod answer;
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

use crate::{answer::Failure, shops::Shops};

/// The largest body that is read.
const MAX_BODY: usize = 4096;
/// How many seconds requests may go on once the server was told to stop.
const LAST_REQUESTS: u64 = 10;
/// How many seconds a browser may remember what it was told about the catalogue.
const PREFLIGHT: usize = 3600;

/// How requests are read: a key may stand in any of the headers that Tollkey knows.
pub fn guard() -> GuardBuilder {
    Guard::builder().realm("storefront")
}

/// The API.
pub fn routes(config: &mut ServiceConfig, guard: &Guard, shops: &Shops) {
    // Publishable keys can call these and nothing else: Tollkey has that list, so it is not written here again.
    // CORS is outside of the guard, because the question whether a page may ask comes without a key.
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
        .wrap(from_fn(secret_keys));

    // The guard is around all that is left, so that somebody without a key does not learn which routes there are.
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

/// Which pages may read the catalogue: any, because that is what a publishable key is for.
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

/// Lets secret keys in alone. Publishable ones do not come this far; those of other families of the account would.
async fn secret_keys(
    key: VerifiedKey,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if key.family() != Family::Secret {
        return Err(Failure::forbidden("This needs a secret key (sk_…).").into());
    }
    next.call(request).await
}

/// Serves the API until `stopped`, and then what was begun.
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
            .wrap(from_fn(answer::in_the_envelope))
    };
    HttpServer::new(app)
        .shutdown_signal(stopped)
        .shutdown_timeout(LAST_REQUESTS)
        .listen(listener)?
        .run()
        .await
}
