//! `tollkey serve`

use std::{process::ExitCode, sync::Arc};

use tollkey_verifier::SystemClock;

use crate::{config::Settings, random::Random, server, telemetry::Metrics};

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    actix_web::rt::System::new().block_on(async {
        let metrics = Metrics::install()?;
        let random = Random::system();
        let opened = server::open(settings, Arc::new(SystemClock), random.clone()).await?;
        let development = opened.development;
        let clock = Arc::clone(&opened.state.clock);
        let running = server::start(settings, opened.state, Some(metrics))?;
        let base_url = format!("http://{}", running.address());
        println!("listening on {base_url}");
        if let Some(development) = development {
            println!("\n{}", development.message(&base_url, clock.now(), &random)?);
        }
        running.until_signal().await?;
        Ok(ExitCode::SUCCESS)
    })
}
