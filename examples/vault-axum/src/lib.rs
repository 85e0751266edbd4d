//! A vault of payment tokens behind Tollkey, as hellgate documents it: keys in `x-api-key`, some of them bound to merchants and to
//! features of the vault.
//!
//! | module | says |
//! |---|---|
//! | here | the routes, and what each needs of a key |
//! | [`handlers`] | what is done on them |
//! | [`vault`] | what is kept, and which of it a key sees |
//! | [`upstream`] | where data is forwarded to |
//! | [`failure`] | what is answered when something is wrong |
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
use tollkey_axum::{Guard, GuardBuilder, Merchant, Requirement, Scope, TollkeyLayer};

use crate::{failure::Failure, upstream::Upstream, vault::Vaults};

/// The largest body that is read.
const MAX_BODY: usize = 4096;

/// What handlers use.
#[derive(Clone, Debug)]
pub struct Api {
    vaults: Vaults,
    upstream: Upstream,
}

/// How requests are read: the key stands in `x-api-key` and nowhere else, the merchant in `x-merchant-id`.
pub fn guard() -> GuardBuilder {
    Guard::builder()
        .credential_headers(["x-api-key"])
        .merchant(Merchant::header("x-merchant-id"))
        .realm("vault")
}

/// The API.
pub fn app(guard: Guard, upstream: Upstream) -> Router {
    // The five features. Which of them a scoped key has, and in which operating model, is for Tollkey to say, and so it is with
    // its merchants: nothing of that is written here.
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

    // No feature, so no scoped key can call it. Here the merchant stands in the path.
    let of_merchant =
        Requirement::from(Scope::COMMERCE).merchant(Merchant::path("/merchants/{merchant}/tokens"));
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

/// Serves the API until `stopped`, and then what was begun.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    guard: Guard,
    upstream: Upstream,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // With the address of the other end: a key may be bound to some.
    let app = app(guard, upstream).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(stopped)
        .await
}
