//! Everything put together and set running: state, routes, background tasks, an orderly end.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock, OnceLock, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use actix_web::{
    App, HttpRequest, HttpResponse,
    dev::ResourceDef,
    http::{
        Method,
        header::{self, Header as _},
    },
    middleware::from_fn,
    web,
};
use anyhow::Context as _;
use futures_util::future::select_all;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tollkey_core::{Clock, Problem, ProblemCode, VerifierId};
use tollkey_service::{
    Limits, Random, Revocations, Service, StoreSource, audit::Checks, idempotency::Sealer,
};
use tollkey_store::{Backend, Listener, OpenError, OpenOptions, SchemaError, Store};
use tollkey_verifier::Verifier;
use utoipa_actix_web::AppExt as _;

use crate::{
    auth::{jwt::TokenVerifier, oidc::Provider, published::UPKEEP_INTERVAL},
    config::{DatabaseKind, Secret, Settings, TokenSource},
    dev_mode::{DevMode, new_secret},
    edge::edge,
    openapi,
    rejection::HandlerResult,
    routes::{self, SURFACES},
    sign_in::Ways,
    state::{LogLimits, Policy, State},
    surfaces::health,
    telemetry::{self, Metrics},
    transport::{self, Connections, Server, open_files},
};

/// How often usage is written down.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// How often a replica looks for revocations that another one has not finished recording.
const REVOCATIONS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the last flush may take.
const LAST_FLUSH: Duration = Duration::from_secs(10);
/// How often old usage and old kept answers are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// How long requests in flight may take once the server stops.
const FINISH: Duration = Duration::from_secs(15);
/// How long connections without a request are kept once the listener is to be closed: a request may be on its way.
const LAST_REQUEST: Duration = Duration::from_millis(500);
/// How many connections the metrics listener may have: it is for probes and for Prometheus.
const METRICS_CONNECTIONS: usize = 64;

/// Opens the database that the settings name, and creates a SQLite file that does not exist. While a PostgreSQL server
/// cannot be reached, waits for it as long as `TOLLKEY_DATABASE_WAIT_SECONDS` allows. Blocks. Migrates nothing.
///
/// # Errors
/// [`OpenError`] as the cause, with the database's name.
pub fn open_store(settings: &Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    connect(settings, &clock, true)
}

/// As [`open_store`], for commands that only work with what exists: creates no file, and the schema must be that of this
/// build.
///
/// # Errors
/// As [`open_store`], also when the database does not exist; [`SchemaError`] as the cause, with the database's name.
pub fn open_existing_store(settings: &Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    anyhow::ensure!(
        settings.database.kind != DatabaseKind::SqliteMemory,
        "a database in memory is its server's alone; set DATABASE_URL to the one that the server uses"
    );
    let store = connect(settings, &clock, false)?;
    store
        .check_schema()
        .with_context(|| settings.database.url.target())?;
    Ok(store)
}

fn connect(settings: &Settings, clock: &Arc<dyn Clock>, create: bool) -> anyhow::Result<Store> {
    let options = OpenOptions {
        pool_size: settings.database_pool,
        create,
        ..OpenOptions::new(settings.database.url.expose())
    };
    let mut wait = DatabaseWait::new(settings.database_wait);
    loop {
        match Store::open(options.clone(), Arc::clone(clock)) {
            Ok(store) => return Ok(store),
            Err(error) => wait.pause_after(error)?,
        }
    }
}

/// The first pause between two attempts to open the database; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the log says what the process waits for.
const WAIT_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Waiting for a database that cannot be reached yet.
struct DatabaseWait {
    limit: Duration,
    began: Instant,
    pause: Duration,
    logged: Option<Instant>,
}

impl DatabaseWait {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            began: Instant::now(),
            pause: FIRST_PAUSE,
            logged: None,
        }
    }

    /// Pauses before the next attempt; fails with that error if waiting cannot help, or the time is over.
    fn pause_after(&mut self, error: OpenError) -> anyhow::Result<()> {
        if !error.is_transient() || self.limit.is_zero() {
            return Err(error.into());
        }
        let left = self.limit.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            let seconds = self.limit.as_secs();
            let waited = format!("gave up after {seconds} seconds (TOLLKEY_DATABASE_WAIT_SECONDS)");
            return Err(anyhow::Error::from(error).context(waited));
        }
        if self
            .logged
            .is_none_or(|at| at.elapsed() >= WAIT_LOG_INTERVAL)
        {
            self.logged = Some(Instant::now());
            tracing::warn!(%error, seconds_left = left.as_secs(), "waiting for the database");
        }
        thread::sleep(self.pause.min(left));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Migrates SQLite, and PostgreSQL when told so; otherwise its schema must be that of this build. Blocks.
///
/// # Errors
/// When the schema is older or newer than this build, or the store cannot be reached.
pub fn prepare_schema(settings: &Settings, store: &Store) -> anyhow::Result<()> {
    let prepare = || -> Result<(), SchemaError> {
        if store.backend() == Backend::Sqlite || settings.migrate {
            let applied = store.apply_migrations()?;
            if !applied.is_empty() {
                tracing::info!(migrations = applied.join(", "), "migrations applied");
            }
        }
        store.check_schema()
    };
    prepare().with_context(|| settings.database.url.target())
}

/// Runs work that blocks on a thread of its own, for which the process does not wait when a signal ends it.
async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name("tollkey-open".into())
        .spawn(move || {
            // The receiver is gone when a signal came first.
            let _ = done.send(work());
        })?;
    result
        .await
        .context("a thread that opens the database panicked")
}

/// Creates the use-cases on top of a store whose schema is that of this build. `sealing_secret` opens the idempotency records;
/// without one, only this process can open those that it writes.
///
/// # Errors
/// When the store does not respond.
pub async fn service(
    settings: &Settings,
    store: Store,
    clock: Arc<dyn Clock>,
    random: Random,
    sealing_secret: Option<&Secret>,
) -> anyhow::Result<Service> {
    let catalogue = Arc::new(settings.catalogue.clone());
    let source = StoreSource::new(store.clone(), Arc::clone(&catalogue));
    let id = random.with(|rng| VerifierId::new(rng));
    let limits = tollkey_verifier::Settings {
        max_entries: settings.cached_keys,
        max_bytes: settings.cache_bytes,
        ..Default::default()
    };
    let verifier = Verifier::new(id, source, Arc::clone(&clock), limits)
        .await
        .context("the store does not respond")?;
    let sealer = match sealing_secret {
        Some(secret) => Sealer::new(secret.expose().as_bytes()),
        None => Sealer::new(new_secret(&random).expose().as_bytes()),
    };
    Ok(Service {
        store,
        verifier,
        clock,
        random,
        catalogue,
        sealer,
        audit_checks: Checks::new(settings.database_pool),
        revocations: Revocations::default(),
        limits: Limits {
            application_keys: settings.application_key_limit,
            account_keys: settings.account_key_limit,
            key_depth: settings.key_depth_limit,
        },
    })
}

/// Creates what requests use.
///
/// # Errors
/// A sentence that says what to change.
fn assemble(
    settings: &Settings,
    service: Service,
    tokens: TokenVerifier,
    development: Option<&DevMode>,
) -> anyhow::Result<State> {
    let policy = Policy {
        trusted_proxies: settings
            .trusted_proxies
            .as_ref()
            .map_or_else(Vec::new, |list| list.networks().to_vec()),
        merchant_header: settings
            .merchant_header
            .parse()
            .context("the merchant header is no header name")?,
        credential_headers: settings.credential_headers,
        route_base: settings.route_base.clone(),
        development: development.is_some(),
    };
    let ways = Ways {
        token: settings
            .dashboard_token_sign_in
            .unwrap_or(development.is_some())
            .then(|| tokens.grounds()),
        links: development.and_then(|development| development.links(service.clock.now())),
        oidc: settings.oidc.as_ref().map(Provider::new).transpose()?,
    };
    Ok(State {
        service,
        tokens,
        ways,
        policy,
        public_path: settings.public_path.clone(),
        document: OnceLock::new(),
        draining: AtomicBool::new(false),
        log_limits: LogLimits::default(),
    })
}

/// The secret behind idempotency records: its own, or the one that signs management tokens, if this process has one.
fn sealing_secret<'a>(
    settings: &'a Settings,
    development: Option<&'a DevMode>,
) -> Option<&'a Secret> {
    match (&settings.sealing_secret, &settings.tokens.source) {
        (Some(secret), _) | (None, TokenSource::Hs256(secret)) => Some(secret),
        (None, _) => development.map(DevMode::secret),
    }
}

/// What [`open`] gives.
#[derive(Debug)]
pub struct Opened {
    /// What requests may use.
    pub state: State,
    /// Set in development mode.
    pub development: Option<DevMode>,
}

/// Opens everything that the settings name, short of a socket.
///
/// # Errors
/// A sentence that says what to change.
pub async fn open(
    settings: &Settings,
    clock: Arc<dyn Clock>,
    random: Random,
) -> anyhow::Result<Opened> {
    // What is wrong with the settings is said before the database is opened, and so before anything is created.
    let configured = match settings.tokens.source {
        TokenSource::Development => {
            DevMode::check(settings)?;
            None
        }
        _ => Some(TokenVerifier::open(&settings.tokens, None)?),
    };
    if let Some(tokens) = &configured
        && let Err(error) = tokens.warm_up(clock.now()).await
    {
        tracing::warn!(%error, "management requests are refused until the issuer's keys can be fetched");
    }
    tracing::info!(database = %settings.database.url, "opening the database");
    let store = on_own_thread({
        let (settings, clock) = (settings.clone(), Arc::clone(&clock));
        move || -> anyhow::Result<Store> {
            let store = open_store(&settings, clock)?;
            prepare_schema(&settings, &store)?;
            Ok(store)
        }
    })
    .await??;
    // The secret of development mode is kept beside a database that can be used, and nowhere else.
    let development = DevMode::enter(settings, &random)?;
    let tokens = match configured {
        Some(tokens) => tokens,
        None => TokenVerifier::open(&settings.tokens, development.as_ref().map(DevMode::secret))?,
    };
    let sealing_secret = sealing_secret(settings, development.as_ref());
    if sealing_secret.is_none() {
        tracing::warn!(
            "TOLLKEY_SEALING_SECRET is not set: an answer kept for an Idempotency-Key can be given again only by the \
             process that gave it"
        );
    }
    let service = service(settings, store, clock, random, sealing_secret).await?;
    let state = assemble(settings, service, tokens, development.as_ref())?;
    tracing::info!(verifier = %state.service.verifier.id(), "other replicas know this process by this id");
    Ok(Opened { state, development })
}

/// The signals that stop a server.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on SIGTERM and SIGINT no longer end the process: whoever waits for them does. To be called before the
    /// world is told that the server listens; a signal that comes before somebody waits is kept.
    ///
    /// # Errors
    /// When signals cannot be awaited.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

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
    let connections = Connections::new(open_files::max_connections(settings.max_connections)?);
    let options = transport::Options {
        workers: settings.workers,
        write_timeout: settings.write_timeout,
    };
    let listener = transport::listen(settings.listen)
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
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
    if let Some(listen) = settings.metrics_listen {
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
                .app_data(web::Data::new(SURFACES))
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
    let background = vec![
        tokio::spawn(keep_lease(state.clone(), stopping.clone())),
        tokio::spawn(record_revocations(state.clone(), stopping.clone())),
        tokio::spawn(keep_usage(state.clone(), metrics, stopping.clone())),
        tokio::spawn(keep_published(state.clone(), stopping)),
    ];
    Ok(Running {
        address,
        metrics_address,
        state,
        server,
        connections,
        metrics_server,
        drain: settings.drain,
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

/// Keeps the verifier's lease until the server stops.
async fn keep_lease(state: web::Data<State>, stopping: watch::Receiver<bool>) {
    state.service.verifier.clone().run(stopped(stopping)).await;
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the server with it.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Records revocations of many keys when one was made here, and every few seconds what another replica left, until the
/// server stops. What is not recorded by then is left to the next start, or to another replica.
async fn record_revocations(state: web::Data<State>, stopping: watch::Receiver<bool>) {
    let mut end = std::pin::pin!(stopped(stopping));
    let mut interval = tokio::time::interval(REVOCATIONS_INTERVAL);
    loop {
        tokio::select! {
            () = &mut end => return,
            () = state.service.revocations.notified() => {}
            _ = interval.tick() => {}
        }
        tokio::select! {
            () = &mut end => return,
            () = state.service.record_revocations() => {}
        }
    }
}

/// Writes usage down every few seconds and once more at the end.
async fn keep_usage(
    state: web::Data<State>,
    metrics: Option<Metrics>,
    stopping: watch::Receiver<bool>,
) {
    let mut end = std::pin::pin!(stopped(stopping));
    let mut prune = tokio::time::interval(PRUNE_INTERVAL);
    loop {
        let mut last = tokio::select! {
            () = tokio::time::sleep(FLUSH_INTERVAL) => false,
            _ = prune.tick() => {
                state.service.prune().await;
                continue;
            }
            () = &mut end => true,
        };
        if !last {
            last = tokio::select! {
                () = state.service.flush_usage() => false,
                () = &mut end => true,
            };
        }
        if last {
            // Who stops is not held up by counts; a database that takes them one by one gets what it can.
            if tokio::time::timeout(LAST_FLUSH, state.service.flush_usage())
                .await
                .is_err()
            {
                tracing::warn!("not all usage could be written down in time");
            }
        }
        if let Some(metrics) = &metrics {
            metrics.upkeep();
        }
        if last {
            return;
        }
    }
}

/// Fetches again what the issuers of tokens publish, before a request needs it.
async fn keep_published(state: web::Data<State>, stopping: watch::Receiver<bool>) {
    let mut end = std::pin::pin!(stopped(stopping));
    loop {
        let upkeep = async {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            let oidc = async {
                if let Some(provider) = &state.ways.oidc {
                    provider.refresh(state.service.clock.now()).await;
                }
            };
            futures_util::join!(state.tokens.refresh(state.service.clock.now()), oidc);
        };
        tokio::select! {
            () = upkeep => {}
            () = &mut end => return,
        }
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

/// The root. A browser is sent to the dashboard; there is nothing else.
async fn home(request: HttpRequest) -> HandlerResult {
    let accepted = header::Accept::parse(&request).map_or_else(|_| Vec::new(), |accept| accept.0);
    let is_browser = accepted
        .iter()
        .any(|it| it.item.essence_str() == "text/html" && it.quality > header::Quality::ZERO);
    if !is_browser {
        return nothing().await;
    }
    let mut response = HttpResponse::SeeOther();
    Ok(response
        .insert_header((header::LOCATION, "/dashboard"))
        .insert_header((header::VARY, "Accept"))
        .finish())
}

async fn nothing() -> HandlerResult {
    Err(Problem::new(ProblemCode::NotFound, "There is nothing at this path.").into())
}

/// What no route matches: 405 where the path exists with another method, else 404.
async fn unmatched(request: HttpRequest) -> HandlerResult {
    static PATHS: LazyLock<Vec<(ResourceDef, Method)>> = LazyLock::new(|| {
        openapi::operations()
            .map(|(path, method)| (ResourceDef::new(path), method))
            .collect()
    });
    let path = SURFACES.documented(request.match_info().as_str());
    let mut allowed: Vec<String> = PATHS
        .iter()
        .filter(|(template, _)| template.is_match(&path))
        .map(|(_, method)| method.to_string())
        .collect();
    if allowed.is_empty() {
        return nothing().await;
    }
    if allowed.iter().any(|method| method == "GET") {
        allowed.push("HEAD".to_owned());
    }
    let detail = format!("This path takes {}.", allowed.join(", "));
    let mut problem = Problem::new(ProblemCode::MethodNotAllowed, detail);
    problem.allowed_methods = allowed.into();
    Err(problem.into())
}
