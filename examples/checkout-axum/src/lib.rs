//! A payment API behind Tollkey, as crypto-checkout documents it: links, sessions, webhooks, events and customers.
//!
//! [`app`] declares the scope of each route. The handlers do not check scopes; the key determines whose data they use
//! ([`store`]).
#![forbid(unsafe_code)]

pub mod amount;
pub mod customers;
pub mod events;
pub mod failure;
pub mod links;
pub mod sessions;
pub mod store;
pub mod webhooks;

use std::{future::Future, io, net::SocketAddr};

use axum::{Router, extract::DefaultBodyLimit, handler::Handler as _, routing::get};
use tokio::net::TcpListener;
use tollkey_axum::{Guard, GuardBuilder, Scope, TollkeyLayer, require};

use crate::{failure::Failure, store::Store};

/// The maximum size of a body, in bytes.
const MAX_BODY: usize = 4096;

/// Returns a guard that accepts keys in `Authorization: Bearer` only.
pub fn guard() -> GuardBuilder {
    Guard::builder()
        .credential_headers(["authorization"])
        .realm("checkout")
}

/// Returns the routes of the API, each with its required scope.
pub fn app(guard: Guard, store: Store) -> Router {
    Router::new()
        .route(
            "/api/v1/links",
            get(links::list.layer(require(Scope::LINKS_READ)))
                .post(links::create.layer(require(Scope::LINKS_WRITE))),
        )
        .route(
            "/api/v1/links/{id}",
            get(links::retrieve.layer(require(Scope::LINKS_READ)))
                .patch(links::update.layer(require(Scope::LINKS_WRITE)))
                .delete(links::delete.layer(require(Scope::LINKS_WRITE))),
        )
        .route(
            "/api/v1/sessions",
            get(sessions::list.layer(require(Scope::SESSIONS_READ)))
                .post(sessions::create.layer(require(Scope::SESSIONS_WRITE))),
        )
        .route(
            "/api/v1/sessions/{id}",
            get(sessions::retrieve.layer(require(Scope::SESSIONS_READ))),
        )
        .route(
            "/api/v1/webhooks",
            get(webhooks::list.layer(require(Scope::WEBHOOKS_READ)))
                .post(webhooks::create.layer(require(Scope::WEBHOOKS_WRITE))),
        )
        .route(
            "/api/v1/webhooks/{id}",
            get(webhooks::retrieve.layer(require(Scope::WEBHOOKS_READ)))
                .delete(webhooks::delete.layer(require(Scope::WEBHOOKS_WRITE))),
        )
        .route(
            "/api/v1/events",
            get(events::list.layer(require(Scope::EVENTS_READ))),
        )
        .route(
            "/api/v1/events/stream",
            get(events::stream.layer(require(Scope::EVENTS_READ))),
        )
        .route(
            "/api/v1/events/{id}",
            get(events::retrieve.layer(require(Scope::EVENTS_READ))),
        )
        .route(
            "/api/v1/customers",
            get(customers::list.layer(require(Scope::CUSTOMERS_READ)))
                .post(customers::create.layer(require(Scope::CUSTOMERS_WRITE))),
        )
        .route(
            "/api/v1/customers/{id}",
            get(customers::retrieve.layer(require(Scope::CUSTOMERS_READ)))
                .patch(customers::update.layer(require(Scope::CUSTOMERS_WRITE))),
        )
        .fallback(async || Failure::NotFound)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        // The outermost layer, so that a request without a valid key reaches nothing else.
        .layer(TollkeyLayer::new(guard))
        .with_state(store)
}

/// Serves the API until `stopped` resolves. It then ends the event streams and finishes the requests in flight.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    guard: Guard,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let store = Store::default();
    // The layer needs the client's IP address for keys with an IP allowlist.
    let app = app(guard, store.clone()).into_make_service_with_connect_info::<SocketAddr>();
    let stopped = async move {
        stopped.await;
        store.end_streams();
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stopped)
        .await
}
