//! A payment API behind Tollkey, as crypto-checkout documents it: links, sessions, webhooks, events and customers, each route behind
//! its own scope.
//!
//! | module | says |
//! |---|---|
//! | here | the routes, and what each needs of a key |
//! | [`handlers`] | what is done on them |
//! | [`things`] | what is kept: its members, and the rules for them |
//! | [`books`] | where it is kept, every account's live and test data apart |
//! | [`failure`] | what is answered when something is wrong |
#![forbid(unsafe_code)]

pub mod books;
pub mod failure;
pub mod handlers;
pub mod things;

use std::{future::Future, io, net::SocketAddr};

use axum::{Router, extract::DefaultBodyLimit, handler::Handler as _, routing::get};
use tokio::net::TcpListener;
use tollkey_axum::{Guard, GuardBuilder, Scope, TollkeyLayer, require};

use crate::{
    books::Books,
    failure::Failure,
    handlers::{change, create, list, remove, retrieve},
    things::{Customer, Event, Link, Session, Webhook},
};

/// The largest body that is read.
const MAX_BODY: usize = 4096;

/// How requests are read: the key stands in `Authorization: Bearer`, and nowhere else.
pub fn guard() -> GuardBuilder {
    Guard::builder().credential_headers(["authorization"]).realm("checkout")
}

/// The API. Every route is guarded, unknown ones too.
pub fn app(guard: Guard) -> Router {
    let links =
        get(list::<Link>.layer(require(Scope::LINKS_READ))).post(create::<Link>.layer(require(Scope::LINKS_WRITE)));
    let link = get(retrieve::<Link>.layer(require(Scope::LINKS_READ)))
        .patch(change::<Link>.layer(require(Scope::LINKS_WRITE)))
        .delete(remove::<Link>.layer(require(Scope::LINKS_WRITE)));

    let sessions = get(list::<Session>.layer(require(Scope::SESSIONS_READ)))
        .post(create::<Session>.layer(require(Scope::SESSIONS_WRITE)));
    let session = get(retrieve::<Session>.layer(require(Scope::SESSIONS_READ)));

    let webhooks = get(list::<Webhook>.layer(require(Scope::WEBHOOKS_READ)))
        .post(create::<Webhook>.layer(require(Scope::WEBHOOKS_WRITE)));
    let webhook = get(retrieve::<Webhook>.layer(require(Scope::WEBHOOKS_READ)))
        .delete(remove::<Webhook>.layer(require(Scope::WEBHOOKS_WRITE)));

    let events = get(list::<Event>.layer(require(Scope::EVENTS_READ)));
    let event = get(retrieve::<Event>.layer(require(Scope::EVENTS_READ)));

    let customers = get(list::<Customer>.layer(require(Scope::CUSTOMERS_READ)))
        .post(create::<Customer>.layer(require(Scope::CUSTOMERS_WRITE)));
    let customer = get(retrieve::<Customer>.layer(require(Scope::CUSTOMERS_READ)))
        .patch(change::<Customer>.layer(require(Scope::CUSTOMERS_WRITE)));

    Router::new()
        .route("/api/v1/links", links)
        .route("/api/v1/links/{id}", link)
        .route("/api/v1/sessions", sessions)
        .route("/api/v1/sessions/{id}", session)
        .route("/api/v1/webhooks", webhooks)
        .route("/api/v1/webhooks/{id}", webhook)
        .route("/api/v1/events", events)
        .route("/api/v1/events/{id}", event)
        .route("/api/v1/customers", customers)
        .route("/api/v1/customers/{id}", customer)
        .fallback(async || Failure::not_found())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(TollkeyLayer::new(guard))
        .with_state(Books::default())
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
    // With the address of the other end: a key may be bound to some.
    let app = app(guard).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).with_graceful_shutdown(stopped).await
}
