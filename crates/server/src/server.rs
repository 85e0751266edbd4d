//! Runs the server: listeners, background tasks, and graceful shutdown.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{App, middleware::from_fn, web};
use anyhow::Context as _;
use futures_util::future::{FutureExt as _, join, select_all};
use tokio::{sync::watch, task::JoinHandle};
use tollkey_store::Listener as ChangeListener;
use utoipa_actix_web::AppExt as _;

use crate::{
    background,
    config::Settings,
    edge::edge,
    fallback::{home, reject_trace_and_connect, unmatched},
    listen_address::ListenAddress,
    metrics_listener::MetricsListener,
    routes::{self, SURFACES},
    service_manager,
    signals::Signals,
    state::State,
    surfaces::verification::DirectGateway,
    telemetry::{self, Metrics},
    transport::{self, Connections, Listener, Server, open_files},
};

/// How long requests in flight may take once the server stops.
const FINISH: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct RunningServer {
    addresses: Vec<ListenAddress>,
    state: web::Data<State>,
    server: Server,
    connections: Arc<Connections>,
    metrics_listener: Option<MetricsListener>,
    grpc: Option<(SocketAddr, Server)>,
    drain: Duration,
    background: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    /// Notifies the verifier of changes by other replicas until it is dropped.
    _listener: Option<ChangeListener>,
}

/// Binds the sockets and starts serving. Needs an actix runtime.
pub fn start(
    settings: &Settings,
    state: State,
    metrics: Option<Metrics>,
) -> anyhow::Result<RunningServer> {
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
    let access = settings.server.socket_access();
    let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
    for address in settings.server.listen.iter() {
        let listener = Listener::bind(address, &access)
            .with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.address();
        addresses.push(address.context("cannot read the address of the socket")?);
        listeners.push(listener);
    }
    let for_gateways = state.clone();
    let front = move || DirectGateway::new(for_gateways.clone());
    let server = Server::start(listeners, &connections, &options, front, move || {
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
            .wrap(from_fn(reject_trace_and_connect))
            // The last one is the outermost.
            .wrap(from_fn(edge))
    })?;

    let metrics_listener = match settings.server.metrics_listen {
        Some(listen) => {
            let metrics = metrics.clone();
            Some(MetricsListener::start(
                listen,
                &state,
                metrics,
                &connections,
                &options,
            )?)
        }
        None => None,
    };

    let grpc = match settings.server.grpc_listen {
        #[cfg(feature = "grpc")]
        Some(listen) => Some(crate::grpc::start(listen, &state, &connections, &options)?),
        #[cfg(not(feature = "grpc"))]
        Some(_) => anyhow::bail!("this build has no gRPC"),
        None => None,
    };

    let verifier = state.service.verifier.clone();
    let listener = state
        .service
        .store
        .listen(move || verifier.notify())
        .context("cannot start the thread that listens for changes")?;
    let background = background::start(&state, metrics, &stopping);
    Ok(RunningServer {
        addresses,
        state,
        server,
        connections,
        metrics_listener,
        grpc,
        drain: settings.server.drain,
        background,
        stop,
        _listener: listener,
    })
}

impl RunningServer {
    /// Returns where the server listens, in the order of the setting.
    #[must_use]
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Returns the first TCP address.
    ///
    /// # Panics
    /// If the server listens on Unix sockets only.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let mut tcp = self.addresses.iter().filter_map(ListenAddress::tcp);
        tcp.next().expect("a TCP address")
    }

    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listener.as_ref().map(MetricsListener::address)
    }

    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(|(address, _)| *address)
    }

    /// Returns how many connections are open to the listeners of the API and of gRPC.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.connections.open()
    }

    #[must_use]
    pub fn state(&self) -> &web::Data<State> {
        &self.state
    }

    /// Runs until SIGTERM or SIGINT, drains, and stops. A second signal ends the drain; a later one closes connections
    /// with requests in flight.
    pub async fn until_signal(mut self, mut signals: Signals) -> anyhow::Result<()> {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            error = self.ended() => return Err(error),
        };
        self.begin_drain();
        service_manager::stopping(self.drain);
        tracing::info!(signal, drain_seconds = self.drain.as_secs(), "stopping");
        if !self.drain.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(self.drain) => {}
                signal = signals.next() => tracing::info!(signal, "second signal: ending the drain"),
                error = self.ended() => return Err(error),
            }
        }
        self.stop_unless(async {
            let signal = signals.next().await;
            tracing::info!(
                signal,
                "further signal: closing connections with requests in flight"
            );
        })
        .await;
        Ok(())
    }

    /// Waits until a part of the server ends unexpectedly, which is an error of this process.
    async fn ended(&mut self) -> anyhow::Error {
        let metrics_listener = async {
            match &mut self.metrics_listener {
                Some(listener) => listener.ended().await,
                None => pending().await,
            }
        };
        let grpc = async {
            match &mut self.grpc {
                Some((_, server)) => server.ended().await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.server.ended() => anyhow::anyhow!("the server ended unexpectedly"),
            () = grpc => anyhow::anyhow!("the gRPC listener ended unexpectedly"),
            () = metrics_listener => anyhow::anyhow!("the metrics listener ended unexpectedly"),
            (ended, ..) = select_all(self.background.iter_mut()) => match ended {
                Ok(()) => anyhow::anyhow!("a background task ended unexpectedly"),
                Err(error) => error.into(),
            },
        }
    }

    /// Begins the drain: the server is not ready, and responds with `Connection: close`. Polls of subscribers return.
    pub fn begin_drain(&self) {
        self.state.begin_drain();
        self.connections.announce_close();
        if let Some(listener) = &self.metrics_listener {
            listener.announce_close();
        }
    }

    /// Stops without waiting for the end of a drain: new connections are refused, requests in flight are finished,
    /// usage is stored, and the lease is released.
    pub async fn stop(self) {
        self.stop_unless(pending()).await;
    }

    /// Like [`RunningServer::stop`]. Connections with requests in flight are closed when `cut` resolves.
    async fn stop_unless(self, cut: impl Future<Output = ()>) {
        self.begin_drain();
        let cut = cut.shared();
        let grpc = async {
            if let Some((_, server)) = self.grpc {
                server
                    .finish_within(&self.connections, FINISH, cut.clone())
                    .await;
            }
        };
        let finished = self
            .server
            .finish_within(&self.connections, FINISH, cut.clone());
        join(finished, grpc).await;
        // Probes get responses until here.
        if let Some(listener) = self.metrics_listener {
            listener.stop().await;
        }
        // An error means that all tasks have ended.
        let _ = self.stop.send(true);
        for task in self.background {
            if let Err(error) = task.await {
                tracing::error!(%error, "background task failed");
            }
        }
    }
}
