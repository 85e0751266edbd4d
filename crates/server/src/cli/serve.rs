//! `tollkey serve`

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use tollkey_verifier::SystemClock;

use crate::{
    config::Settings,
    random::Random,
    server::{self, Signals},
    telemetry::Metrics,
    transport::open_files,
};

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    open_files::raise();
    actix_web::rt::System::new().block_on(async {
        let metrics = Metrics::install()?;
        let random = Random::system();
        let mut signals = Signals::catch()?;
        // It may wait for the database. As the first process of a container it would not be ended by a signal otherwise.
        let opened = tokio::select! {
            opened = server::open(settings, Arc::new(SystemClock), random.clone()) => opened?,
            signal = signals.next() => {
                tracing::info!(signal, "stopping before the server listens");
                return Ok(ExitCode::SUCCESS);
            }
        };
        let development = opened.development;
        let clock = Arc::clone(&opened.state.clock);
        let running = server::start(settings, opened.state, Some(metrics))?;
        let base_url = format!("http://{}", running.address());
        let mut stdout = io::stdout();
        // Whoever started this may read the first line only: nobody listening is no reason not to serve.
        let _ = writeln!(stdout, "listening on {base_url}");
        if let Some(development) = development {
            let _ = writeln!(stdout, "\n{}", development.message(&base_url, clock.now(), &random)?);
        }
        running.until_signal(signals).await?;
        Ok(ExitCode::SUCCESS)
    })
}
