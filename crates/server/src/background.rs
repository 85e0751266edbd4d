//! Tasks that run as long as the server does.

use std::time::Duration;

use actix_web::web;
use tokio::{sync::watch, task::JoinHandle};
use tollkey_service::background::UsageSchedule;

use crate::{auth::published::UPKEEP_INTERVAL, state::State, telemetry::Metrics};

/// How often usage is collected, and written if that is due.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// How often a replica looks for revocations that another one has not finished recording.
const REVOCATIONS_INTERVAL: Duration = Duration::from_secs(5);

/// How long the last flush may take.
const LAST_FLUSH: Duration = Duration::from_secs(10);

/// How often old usage and old kept answers are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Starts the tasks. They end when `stopping` says so.
pub fn start(
    state: &web::Data<State>,
    metrics: Option<Metrics>,
    stopping: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(keep_lease(state.clone(), stopping.clone())),
        tokio::spawn(record_revocations(state.clone(), stopping.clone())),
        tokio::spawn(keep_usage(state.clone(), metrics, stopping.clone())),
        tokio::spawn(keep_published(state.clone(), stopping.clone())),
    ]
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

/// Collects usage every few seconds, writes it when it is due, and once more at the end.
async fn keep_usage(
    state: web::Data<State>,
    metrics: Option<Metrics>,
    stopping: watch::Receiver<bool>,
) {
    let mut end = std::pin::pin!(stopped(stopping));
    let mut prune = tokio::time::interval(PRUNE_INTERVAL);
    let mut schedule = UsageSchedule::default();
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
                () = state.service.flush_usage_when_due(&mut schedule) => false,
                () = &mut end => true,
            };
        }
        if last {
            // Who stops is not held up by counts; a database that takes them one by one gets what it can.
            if tokio::time::timeout(LAST_FLUSH, state.service.flush_usage())
                .await
                .is_err()
            {
                tracing::warn!(
                    "usage counts were lost: they could not be stored before the server stopped"
                );
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
                if let Some(provider) = &state.sign_in.oidc {
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
