//! Creates the state of requests from the settings.

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use anyhow::Context as _;
use tollkey_core::{Clock, VerifierId};
use tollkey_service::{
    Limits, Random, Revocations, Service, StoreSource, audit::AuditCheckLimiter,
    idempotency::Sealer,
};
use tollkey_store::Store;
use tollkey_verifier::Verifier;

use crate::{
    auth::{jwt::TokenVerifier, oidc::Provider},
    config::{Secret, Settings, TokenSource},
    database,
    dev_mode::DevMode,
    sign_in::SignInMethods,
    state::{LogLimits, RequestSettings, State},
};

/// Creates the use cases on top of a store with this build's schema. `sealing_secret` decrypts the idempotency records;
/// without it, only this process can decrypt those that it writes.
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
        max_entries: settings.cache.keys,
        max_bytes: settings.cache.bytes,
        ..Default::default()
    };
    let verifier = Verifier::new(id, source, Arc::clone(&clock), limits)
        .await
        .context("the store does not respond")?;
    let sealer = match sealing_secret {
        Some(secret) => Sealer::new(secret.expose().as_bytes()),
        None => Sealer::new(random.secret().as_bytes()),
    };
    Ok(Service {
        store,
        verifier,
        clock,
        random,
        catalogue,
        sealer,
        audit_checks: AuditCheckLimiter::new(settings.database.pool),
        revocations: Revocations::default(),
        limits: Limits {
            application_keys: settings.key_limits.application_key_limit,
            account_keys: settings.key_limits.account_key_limit,
            key_depth: settings.key_limits.key_depth_limit,
        },
    })
}

fn assemble(
    settings: &Settings,
    service: Service,
    tokens: TokenVerifier,
    development: Option<&DevMode>,
) -> anyhow::Result<State> {
    let request_settings = RequestSettings {
        trusted_proxies: settings
            .server
            .trusted_proxies
            .as_ref()
            .map_or_else(Vec::new, |list| list.networks().to_vec()),
        merchant_header: settings
            .server
            .merchant_header
            .parse()
            .context("the merchant header is not a valid header name")?,
        credential_headers: settings.server.credential_headers,
        route_base: settings.server.route_base.clone(),
        development: development.is_some(),
    };
    let sign_in = SignInMethods {
        token: settings
            .dashboard_token_sign_in
            .unwrap_or(development.is_some())
            .then(|| tokens.sign_in_settings()),
        links: development.and_then(|development| development.links(service.clock.now())),
        oidc: settings.oidc.as_ref().map(Provider::new).transpose()?,
    };
    Ok(State {
        service,
        tokens,
        sign_in,
        request_settings,
        public_path: settings.public_path.clone(),
        document: OnceLock::new(),
        draining: AtomicBool::new(false),
        log_limits: LogLimits::default(),
    })
}

/// Returns the secret for idempotency records: the configured one, or the one that signs management tokens, if any.
fn sealing_secret<'a>(
    settings: &'a Settings,
    development: Option<&'a DevMode>,
) -> Option<&'a Secret> {
    match (&settings.database.sealing_secret, &settings.tokens.source) {
        (Some(secret), _) | (None, TokenSource::Hs256(secret)) => Some(secret),
        (None, _) => development.map(DevMode::secret),
    }
}

#[derive(Debug)]
pub struct OpenedServer {
    pub state: State,
    pub development: Option<DevMode>,
}

/// Opens the database and creates the state, without opening a listener.
pub async fn open(
    settings: &Settings,
    clock: Arc<dyn Clock>,
    random: Random,
) -> anyhow::Result<OpenedServer> {
    // Invalid settings are reported before the database is opened, and so before anything is created.
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
        tracing::warn!(%error, "cannot fetch the issuer's keys; management requests are rejected until they are fetched");
    }
    tracing::info!(database = %settings.database.url, "opening the database");
    let store = database::open_prepared(settings, &clock).await?;
    // After the database is opened, because the secret of development mode is only stored next to a usable database.
    let development = DevMode::enter(settings, &random)?;
    let tokens = match configured {
        Some(tokens) => tokens,
        None => TokenVerifier::open(&settings.tokens, development.as_ref().map(DevMode::secret))?,
    };
    let sealing_secret = sealing_secret(settings, development.as_ref());
    if sealing_secret.is_none() {
        tracing::warn!(
            "TOLLKEY_SEALING_SECRET is not set: a response that is stored for an Idempotency-Key can only be replayed by \
             the process that stored it"
        );
    }
    let service = service(settings, store, clock, random, sealing_secret).await?;
    let state = assemble(settings, service, tokens, development.as_ref())?;
    tracing::info!(verifier = %state.service.verifier.id(), "verifier started");
    Ok(OpenedServer { state, development })
}
