//! The thread of a guard. Its subscription and its look-ups run on this thread, so they continue when a
//! runtime of the application ends or one of its workers is blocked.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

/// How long the end of a subscription may take: a lease of the default length. After that, no change waits
/// for this process.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A thread with a runtime. It ends when this is [stopped](Background::stop) or dropped.
pub(crate) struct Background {
    runtime: Handle,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<()>,
    subscription: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the operating system cannot create the thread or an event queue.
    pub(crate) fn start() -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        let subscription = Arc::<Mutex<Option<JoinHandle<()>>>>::default();
        let (started, runtime) = mpsc::sync_channel(1);
        let running = Arc::clone(&subscription);
        thread::Builder::new()
            .name("tollkey-guard".to_owned())
            .spawn(move || {
                let _alive = alive;
                // The runtime is built in the thread, because a runtime must not be dropped inside another one.
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let _ = started.send(Ok(runtime.handle().clone()));
                runtime.block_on(async {
                    until_stopped(stopped).await;
                    let task = running
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take();
                    let Some(task) = task else { return };
                    match timeout(STOP_LIMIT, task).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::error!(%error, "the subscription failed"),
                        Err(_) => tracing::warn!(
                            "the subscription could not be ended in time; its lease has expired"
                        ),
                    }
                });
                // A DNS look-up may still block another thread of the runtime.
                runtime.shutdown_background();
            })?;
        let runtime = runtime
            .recv()
            .map_err(|_| io::Error::other("the thread of the guard failed"))??;
        Ok(Self {
            runtime,
            stop,
            ended,
            subscription,
        })
    }

    /// The runtime of the thread. Tasks on it are canceled when the thread ends.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs the subscription that `subscribe` returns. Its argument resolves when the subscription has to end.
    pub(crate) fn subscribe<F: Future<Output = ()> + Send + 'static>(
        &self,
        subscribe: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
    ) {
        let task = self
            .runtime
            .spawn(subscribe(Box::pin(until_stopped(self.stop.subscribe()))));
        *self
            .subscription
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Ends the subscription and the thread, and waits until both have ended, for at most [`STOP_LIMIT`].
    /// Does not need a runtime.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        // Nothing is ever sent. An error means that the thread has ended.
        let _ = self.ended.clone().changed().await;
    }
}

/// Waits until the thread has to end: it was stopped, or the last clone of the guard was dropped.
async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
