//! Helpers that the tests share.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle};
use tollkey_core::{AccessRequest, Clock, Denial, Seq, VerifierId};
use tollkey_verifier::{
    Settings, Verdict, Verifier,
    testing::{ManualClock, MemorySource, TokioClock, record},
};

pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// Returns key number `n`.
pub(crate) fn text(n: usize) -> String {
    format!("ck_test_{n:032}")
}

/// A source with keys and a verifier that keeps its lease, on tokio's clock.
pub(crate) struct World {
    pub(crate) source: MemorySource,
    pub(crate) clock: Arc<TokioClock>,
    pub(crate) one: RunningVerifier,
}

impl World {
    pub(crate) async fn new(keys: usize) -> Self {
        Self::with(keys, Settings::default()).await
    }

    pub(crate) async fn with(keys: usize, settings: Settings) -> Self {
        Self::on(MemorySource::default(), keys, settings).await
    }

    pub(crate) async fn on(source: MemorySource, keys: usize, settings: Settings) -> Self {
        for n in 0..keys {
            source.put(&text(n), record(&text(n)));
        }
        let clock = Arc::new(TokioClock::start());
        let one = RunningVerifier::start(1, &source, &clock, settings).await;
        Self { source, clock, one }
    }

    pub(crate) async fn another(&self, id: u8) -> RunningVerifier {
        RunningVerifier::start(id, &self.source, &self.clock, Settings::default()).await
    }

    /// Revokes a key, as a server does. Returns the arguments of [`Verifier::wait_until_propagated`].
    pub(crate) fn revoke(&self, n: usize) -> (Seq, Duration) {
        let seq = self.source.change(&text(n), |record| {
            record.key.revoked_at = Some(self.clock.now())
        });
        (seq, self.clock.elapsed())
    }
}

pub(crate) struct RunningVerifier {
    pub(crate) verifier: Verifier<MemorySource>,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RunningVerifier {
    async fn start(
        id: u8,
        source: &MemorySource,
        clock: &Arc<TokioClock>,
        settings: Settings,
    ) -> Self {
        let id = VerifierId::from_bytes([id; 16]);
        let verifier = Verifier::new(id, source.clone(), clock.clone(), settings)
            .await
            .unwrap();
        let (shutdown, stop) = oneshot::channel();
        let task = tokio::spawn(verifier.clone().run(async {
            let _ = stop.await;
        }));
        while verifier.stats().lease_left.is_zero() {
            tokio::task::yield_now().await;
        }
        Self {
            verifier,
            shutdown,
            task,
        }
    }

    pub(crate) async fn stop(self) -> Verifier<MemorySource> {
        self.shutdown.send(()).unwrap();
        self.task.await.unwrap();
        self.verifier
    }

    /// Waits until the task has ended by itself.
    pub(crate) async fn ended(self) {
        self.task.await.unwrap();
    }

    /// Stops the task as a crash or a pause would: the verifier keeps its row, its cache and its lease, but
    /// does not renew the lease.
    pub(crate) async fn freeze(self) -> Verifier<MemorySource> {
        self.task.abort();
        let _ = self.task.await;
        self.verifier
    }

    pub(crate) async fn verify(&self, n: usize) -> Verdict {
        self.verifier
            .verify(&text(n), &AccessRequest::default())
            .await
            .unwrap()
    }

    pub(crate) async fn outcome(&self, n: usize) -> Result<(), Denial> {
        self.verify(n).await.outcome
    }

    pub(crate) async fn looks_up(&self, n: usize) -> bool {
        let before = self.verifier.source().finds();
        self.verify(n).await;
        self.verifier.source().finds() > before
    }
}

/// Returns a verifier without a lease. It looks up the key at the source for every verification.
pub(crate) async fn leaseless(
    source: &MemorySource,
    clock: &ManualClock,
) -> Verifier<MemorySource> {
    let id = VerifierId::from_bytes([9; 16]);
    Verifier::new(
        id,
        source.clone(),
        Arc::new(clock.clone()),
        Settings::default(),
    )
    .await
    .unwrap()
}
