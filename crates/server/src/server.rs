//! Running the server: listeners, and an orderly end.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, HttpResponse, middleware::from_fn, web};
use anyhow::Context as _;
use futures_util::future::select_all;
use tokio::{sync::watch, task::JoinHandle};
use tollkey_store::Listener;
use utoipa_actix_web::AppExt as _;

use crate::{
    background,
    config::Settings,
    edge::edge,
    fallback::{home, nothing, unmatched},
    routes::{self, SURFACES},
    signals::Signals,
    state::State,
    surfaces::health,
    telemetry::{self, Metrics},
    transport::{self, Connections, Server, open_files},
};

/// How long requests in flight may take once the server stops.
const FINISH: Duration = Duration::from_secs(15);
/// How long connections without a request are kept once the listener is to be closed: a request may be on its way.
const LAST_REQUEST: Duration = Duration::from_millis(500);
/// How many connections the metrics listener may have: it is for probes and for Prometheus.
const METRICS_CONNECTIONS: usize = 64;

/// A running server.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    state: web::Data<State>,
    server: Server,
    connections: Arc<Connections>,
    metrics_server: Option<(Server, Arc<Connections>)>,
    drain: Duration,
    background: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    /// Wakes the verifier when another replica changes something; until it is dropped.
    _listener: Option<Listener>,
}

/// Binds the sockets and begins to answer. Needs an actix runtime.
///
/// # Errors
/// When an address cannot be bound, or the limit of open files is too low for the connections there may be.
pub fn start(
    settings: &Settings,
    state: State,
    metrics: Option<Metrics>,
) -> anyhow::Result<Running> {
    let state = web::Data::new(state);
    let (stop, stopping) = watch::channel(false);
    let shared = state.clone();
    let connections = Connections::new(open_files::max_connections(
        settings.server.max_connections,
    )?);
    let options = transport::Options {
        workers: settings.server.workers(),
        write_timeout: settings.write_timeout,
    };
    let listener = transport::listen(settings.server.listen)
        .with_context(|| format!("cannot listen on {}", settings.server.listen))?;
    let address = listener.local_addr().context("no socket was bound")?;
    let server = Server::start(listener, &connections, &options, move || {
        let (app, _) = App::new()
            .app_data(shared.clone())
            .into_utoipa_app()
            .configure(routes::documented_routes)
            .split_for_parts();
        app.app_data(web::Data::new(telemetry::Requests::default()))
            .app_data(web::Data::new(SURFACES))
            .configure(routes::other_routes)
            .route("/", web::get().to(home))
            .default_service(web::to(unmatched))
            .wrap(from_fn(edge))
    })?;

    let (mut metrics_address, mut metrics_server) = (None, None);
    if let Some(listen) = settings.server.metrics_listen {
        let (shared, metrics, connections) =
            (state.clone(), metrics.clone(), Arc::clone(&connections));
        let listener =
            transport::listen(listen).with_context(|| format!("cannot listen on {listen}"))?;
        metrics_address = Some(listener.local_addr().context("no socket was bound")?);
        let own_connections = Connections::new(METRICS_CONNECTIONS);
        let options = transport::Options {
            workers: 1,
            ..options
        };
        let server = Server::start(listener, &own_connections, &options, move || {
            let mut app = App::new()
                .app_data(shared.clone())
                .app_data(web::Data::new(telemetry::Requests::default()))
                .service(health::live)
                .service(health::ready)
                .default_service(web::to(nothing));
            if let Some(metrics) = &metrics {
                app = app
                    .app_data(web::Data::new(metrics.clone()))
                    .app_data(web::Data::from(Arc::clone(&connections)))
                    .route("/metrics", web::get().to(render_metrics));
            }
            app.wrap(from_fn(edge))
        })?;
        metrics_server = Some((server, own_connections));
    }

    let verifier = state.service.verifier.clone();
    let listener = state
        .service
        .store
        .listen(move || verifier.poke())
        .context("no thread to listen for changes")?;
    let background = background::start(&state, metrics, &stopping);
    Ok(Running {
        address,
        metrics_address,
        state,
        server,
        connections,
        metrics_server,
        drain: settings.server.drain,
        background,
        stop,
        _listener: listener,
    })
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves metrics.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// What its requests use.
    #[must_use]
    pub fn state(&self) -> &web::Data<State> {
        &self.state
    }

    /// Runs until SIGTERM or SIGINT, drains, and stops. A further signal ends the drain, and one after the drain cuts off the
    /// requests in flight.
    ///
    /// # Errors
    /// When a server or a background task ends by itself.
    pub async fn until_signal(mut self, mut signals: Signals) -> anyhow::Result<()> {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            error = self.ended() => return Err(error),
        };
        self.begin_drain();
        tracing::info!(signal, drain_seconds = self.drain.as_secs(), "stopping");
        if !self.drain.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(self.drain) => {}
                signal = signals.next() => tracing::info!(signal, "a second signal ends the drain"),
                error = self.ended() => return Err(error),
            }
        }
        self.stop_unless(async {
            let signal = signals.next().await;
            tracing::info!(
                signal,
                "a further signal ends the wait for requests in flight"
            );
        })
        .await;
        Ok(())
    }

    /// Waits until a part of the server ends by itself, which is an error of this process.
    async fn ended(&mut self) -> anyhow::Error {
        let metrics_server = async {
            match &mut self.metrics_server {
                Some((server, _)) => server.ended().await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.server.ended() => anyhow::anyhow!("the server ended by itself"),
            () = metrics_server => anyhow::anyhow!("the server of metrics ended by itself"),
            (ended, ..) = select_all(self.background.iter_mut()) => match ended {
                Ok(()) => anyhow::anyhow!("a background task ended by itself"),
                Err(error) => error.into(),
            },
        }
    }

    /// Begins the drain: the server is not ready any more, and still responds, with `Connection: close`. Polls of subscribers
    /// wait no longer. The lease is kept.
    pub fn begin_drain(&self) {
        self.state.begin_drain();
        self.connections.announce_close();
        if let Some((_, connections)) = &self.metrics_server {
            connections.announce_close();
        }
    }

    /// Stops without waiting for the end of a drain: new connections are refused, requests in flight are finished, usage is
    /// written, and the lease is given back.
    pub async fn stop(self) {
        self.stop_unless(pending()).await;
    }

    /// Stops as [`Running::stop`] does. Requests that are in flight when `cut` resolves are cut off.
    async fn stop_unless(self, cut: impl Future<Output = ()>) {
        self.begin_drain();
        finish(self.server, &self.connections, FINISH, cut).await;
        // Probes are answered until here.
        if let Some((server, connections)) = self.metrics_server {
            connections.close_all();
            finish(server, &connections, Duration::from_secs(1), pending()).await;
        }
        // The receivers may be gone already; then there is nobody to tell.
        let _ = self.stop.send(true);
        for task in self.background {
            if let Err(error) = task.await {
                tracing::error!(%error, "a background task failed");
            }
        }
    }
}

/// Closes a listener and ends its connections: each has its last response, which says so. After the limit, or when `cut`
/// resolves, connections are cut off.
async fn finish(
    mut server: Server,
    connections: &Connections,
    limit: Duration,
    cut: impl Future<Output = ()>,
) {
    let finished = async {
        let last_requests = async {
            server.stop_accepting().await;
            connections.all_closed().await;
        };
        // Whether all have ended or not, the rest is closed.
        let _ = tokio::time::timeout(LAST_REQUEST, last_requests).await;
        connections.close_all();
        server.finish().await;
    };
    let is_finished = tokio::select! {
        () = finished => true,
        () = tokio::time::sleep(limit) => false,
        () = cut => false,
    };
    if !is_finished {
        server.abort().await;
        tracing::warn!("requests in flight were cut off");
    }
}

async fn render_metrics(
    state: web::Data<State>,
    metrics: web::Data<Metrics>,
    connections: web::Data<Connections>,
) -> HttpResponse {
    telemetry::record_verifier(&state.service.verifier.stats());
    telemetry::record_connections(connections.open(), connections.pending_bytes());
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.render())
}
