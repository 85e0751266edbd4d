//! A vault of payment tokens behind Tollkey, as hellgate documents it: keys in `x-api-key`, some of them limited to
//! merchants and features.
//!
//! | module | contents |
//! |---|---|
//! | this one | the routes, and the requirements of each |
//! | [`handlers`] | the handlers |
//! | [`vault`] | the data, and the part of it that a key can see |
//! | [`upstream`] | the receiver of forwarded data |
//! | [`failure`] | errors |
#![forbid(unsafe_code)]

pub mod failure;
pub mod handlers;
pub mod upstream;
pub mod vault;

use std::{future::Future, io, net::SocketAddr};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use tokio::net::TcpListener;
use tollkey_axum::{Guard, GuardBuilder, MerchantSource, Requirement, Scope, TollkeyLayer};

use crate::{failure::Failure, upstream::Upstream, vault::Vaults};

/// The maximum size of a body, in bytes.
const MAX_BODY: usize = 4096;

/// The state of the handlers.
#[derive(Clone, Debug)]
pub struct Api {
    vaults: Vaults,
    upstream: Upstream,
}

/// Returns a guard that accepts keys in `x-api-key` only, and reads the merchant from `x-merchant-id`.
pub fn guard() -> GuardBuilder {
    Guard::builder()
        .credential_headers(["x-api-key"])
        .merchant(MerchantSource::header("x-merchant-id"))
        .realm("vault")
}

/// Returns the API with the requirements of each route.
pub fn app(guard: Guard, upstream: Upstream) -> Router {
    // The routes of the five features. The layer checks features, operating models and merchants.
    let features = Router::new()
        .route("/tokens", get(handlers::list))
        .route("/tokens/{id}", get(handlers::retrieve))
        .route("/tokens/{id}/payment-data", get(handlers::payment_data))
        .route(
            "/payment-data/{id}/forward",
            post(handlers::forward_payment_data),
        )
        .route("/forward", post(handlers::forward_cardholder_data))
        .fallback(async || Failure::not_found())
        .layer(TollkeyLayer::new(guard.clone()).require(Scope::COMMERCE));

    // This route has no feature, so scoped keys cannot call it. The merchant is in its path.
    let of_merchant = Requirement::from(Scope::COMMERCE)
        .merchant(MerchantSource::path("/merchants/{merchant}/tokens"));
    let storing = Router::new()
        .route("/merchants/{merchant}/tokens", post(handlers::create))
        .layer(TollkeyLayer::new(guard).require(of_merchant));

    let api = Api {
        vaults: Vaults::default(),
        upstream,
    };
    features
        .merge(storing)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

/// Serves the API until `stopped` resolves, and then completes the requests in flight.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    guard: Guard,
    upstream: Upstream,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // With the client's IP address, for keys with an IP allowlist.
    let app = app(guard, upstream).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(stopped)
        .await
}
