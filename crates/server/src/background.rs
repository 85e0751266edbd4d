//! Background tasks of the server.

use std::time::Duration;

use actix_web::web;
use tokio::{sync::watch, task::JoinHandle};
use tollkey_service::background::UsageSchedule;

use crate::{auth::published::UPKEEP_INTERVAL, state::State, telemetry::Metrics};

/// How often usage is collected, and written when it is due.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// How often a replica checks for revocations that another replica has not finished recording.
const REVOCATIONS_INTERVAL: Duration = Duration::from_secs(5);
const LAST_FLUSH: Duration = Duration::from_secs(10);
/// How often old usage and expired records are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Starts the tasks, which run until `stopping` is `true`.
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

async fn keep_lease(state: web::Data<State>, stopping: watch::Receiver<bool>) {
    state.service.verifier.clone().run(stopped(stopping)).await;
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender was dropped, so the server has ended.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Records revocations of many keys until the server stops: those of this replica immediately, and those of other
/// replicas every few seconds. Another replica, or the next start, records the rest.
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

/// Collects usage every few seconds, stores it when it is due, and stores all of it before the server stops.
async fn keep_usage(
    state: web::Data<State>,
    metrics: Option<Metrics>,
    stopping: watch::Receiver<bool>,
) {
    let mut end = std::pin::pin!(stopped(stopping));
    let mut prune = tokio::time::interval(PRUNE_INTERVAL);
    let mut schedule = UsageSchedule::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(FLUSH_INTERVAL) => {}
            _ = prune.tick() => {
                state.service.prune().await;
                continue;
            }
            () = &mut end => return store_last_usage(&state, std::future::ready(())).await,
        }
        let mut flush = std::pin::pin!(state.service.flush_usage_when_due(&mut schedule));
        tokio::select! {
            () = &mut flush => {}
            () = &mut end => return store_last_usage(&state, flush).await,
        }
        if let Some(metrics) = &metrics {
            metrics.upkeep();
        }
    }
}

/// Finishes a running flush, because dropping it would lose the counts that it is writing, and stores the rest.
/// Both are limited in time together, so that a slow database does not delay the stop.
async fn store_last_usage(state: &State, running: impl Future<Output = ()>) {
    let all = async {
        running.await;
        state.service.flush_usage().await;
    };
    if tokio::time::timeout(LAST_FLUSH, all).await.is_err() {
        tracing::warn!(
            "usage counts were lost: they could not be stored before the server stopped"
        );
    }
}

/// Refreshes the published keys of token issuers and of the OpenID Connect provider before a request needs them.
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
