//! The listener for Prometheus and for probes: `/metrics`, `/livez` and `/readyz`.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, HttpResponse, middleware::from_fn, web};
use anyhow::Context as _;

use crate::{
    edge::edge,
    fallback::{not_found, reject_trace_and_connect},
    routes,
    state::State,
    telemetry::{self, Metrics},
    transport::{self, Connections, NoEarlyHandler, Server},
};

const CONNECTIONS: usize = 64;
/// How long requests in flight may take once the listener stops.
const FINISH: Duration = Duration::from_secs(1);

/// The listener for Prometheus and for probes, whose connections are limited separately.
#[derive(Debug)]
pub(crate) struct MetricsListener {
    address: SocketAddr,
    server: Server,
    connections: Arc<Connections>,
}

impl MetricsListener {
    /// `api_connections` are those of the API, which the metrics report.
    pub(crate) fn start(
        listen: SocketAddr,
        state: &web::Data<State>,
        metrics: Option<Metrics>,
        api_connections: &Arc<Connections>,
        options: &transport::Options,
    ) -> anyhow::Result<Self> {
        let listener =
            transport::listen(listen).with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener
            .local_addr()
            .context("cannot read the address of the socket")?;
        let connections = Connections::new(CONNECTIONS);
        let options = transport::Options {
            workers: 1,
            ..options.clone()
        };
        let (state, api_connections) = (state.clone(), Arc::clone(api_connections));
        let server = Server::start(
            vec![listener.into()],
            &connections,
            &options,
            || NoEarlyHandler,
            move || {
                let mut app = App::new()
                    .app_data(state.clone())
                    .app_data(web::Data::new(telemetry::Requests::default()))
                    .configure(routes::probes)
                    .default_service(web::to(not_found));
                if let Some(metrics) = &metrics {
                    app = app
                        .app_data(web::Data::new(metrics.clone()))
                        .app_data(web::Data::from(Arc::clone(&api_connections)))
                        .route("/metrics", web::get().to(render_metrics));
                }
                app.wrap(from_fn(reject_trace_and_connect))
                    .wrap(from_fn(edge))
            },
        )?;
        Ok(Self {
            address,
            server,
            connections,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn ended(&mut self) {
        self.server.ended().await;
    }

    pub(crate) fn announce_close(&self) {
        self.connections.announce_close();
    }

    pub(crate) async fn stop(self) {
        self.connections.close_all();
        self.server
            .finish_within(&self.connections, FINISH, pending())
            .await;
    }
}

async fn render_metrics(
    state: web::Data<State>,
    metrics: web::Data<Metrics>,
    connections: web::Data<Connections>,
) -> HttpResponse {
    // At most two seconds, also while the database does not respond.
    let is_ready = state.is_ready().await;
    let service = &state.service;
    telemetry::record_server(is_ready, service.clock.now());
    telemetry::record_verifier(&service.verifier.stats());
    telemetry::record_pools(&service.store.pools());
    telemetry::record_connections(&connections);
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.render())
}
