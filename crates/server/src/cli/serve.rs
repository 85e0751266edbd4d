//! `tollkey serve`

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use tollkey_service::Random;
use tollkey_verifier::SystemClock;

use crate::{
    assembly,
    config::{Settings, TokenSource},
    listen_address::ListenAddress,
    server::{self, RunningServer},
    service_manager,
    signals::Signals,
    telemetry::Metrics,
    transport::open_files,
};

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    open_files::raise();
    actix_web::rt::System::new().block_on(async {
        let metrics = Metrics::install()?;
        let random = Random::system();
        let mut signals = Signals::catch()?;
        // It may wait for the database. By default, a signal would not end the first process of a container.
        let opened = tokio::select! {
            opened = assembly::open(settings, Arc::new(SystemClock), random.clone()) => opened?,
            signal = signals.next() => {
                tracing::info!(signal, "stopping before the server listens");
                return Ok(ExitCode::SUCCESS);
            }
        };
        let development = opened.development;
        let clock = Arc::clone(&opened.state.service.clock);
        let running = server::start(settings, opened.state, Some(metrics))?;
        let listening = running.addresses().iter().map(|address| match address {
            ListenAddress::Tcp(address) => format!("http://{address}"),
            ListenAddress::Unix(_) => address.to_string(),
        });
        let listening: Vec<_> = listening.collect();
        log_summary(settings, &running);
        let mut stdout = io::stdout();
        // The server runs even if the reader of stdout is gone, for example after it has read the first line.
        let _ = writeln!(stdout, "listening on {}", listening.join(", "));
        if let Some(development) = development {
            let _ = writeln!(
                stdout,
                "\n{}",
                // Development mode listens on TCP only.
                development.message(&listening[0], clock.now(), &random)?
            );
        }
        service_manager::ready();
        running.until_signal(signals).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes a summary of the configuration to the log, in one line, for the diagnosis of problems.
fn log_summary(settings: &Settings, running: &RunningServer) {
    let off = || "off".to_owned();
    let addresses: Vec<_> = running
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = addresses.join(","),
        metrics_listen = running.metrics_address().map_or_else(off, |address| address.to_string()),
        grpc_listen = running.grpc_address().map_or_else(off, |address| address.to_string()),
        database = %settings.database.url,
        token_source = settings.tokens.source.name(),
        development_mode = matches!(settings.tokens.source, TokenSource::Development),
        oidc_issuer = settings.oidc.as_ref().map_or_else(off, |oidc| oidc.issuer.clone()),
        trusted_proxies = settings.server.trusted_proxies.as_ref().map_or(0, |list| list.networks().len()),
        workers = settings.server.workers(),
        drain_seconds = settings.server.drain.as_secs(),
        "server started"
    );
}
